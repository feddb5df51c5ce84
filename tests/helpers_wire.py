"""A connection without a socket, and a strict parser for what it writes.

Not a test module. Load it by path, as the test modules do: `tests` is no package.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import TYPE_CHECKING, Any

from prefork import http
from prefork.http.message.grammar import is_token
from prefork.http.server.connection import Connection, Reading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


class Parsed:
    """One response: status, reason, fields in order, body, trailers, and the bytes behind it.

    Takes exactly what RFC 9112 allows and fails with AssertionError for everything else. close:
    only the end of the connection ends the body. method: of the request.
    """

    def __init__(self, wire: bytes, method: str = "GET") -> None:
        self.wire = wire
        match = re.match(rb"HTTP/1\.[01] ([1-9][0-9]{2}) ([\t\x20-\x7e\x80-\xff]*)\r\n", wire)
        assert match, f"no status line: {wire[:80]!r}"
        self.proto = wire[:8].decode()
        self.status = int(match[1])
        self.reason = match[2].decode()
        self.rest = wire[match.end() :]
        self.fields = self._fields()
        self.close = False
        self.body = b""
        self.trailers: list[tuple[bytes, bytes]] = []
        lengths = self.values(b"content-length")
        codings = self.values(b"transfer-encoding")
        assert len(lengths) <= 1, "two lengths"
        assert not (lengths and codings), "two framings"
        if method == "HEAD" or self.status < 200 or self.status in (204, 304):
            if self.status < 200 or self.status == 204:
                assert not lengths
                assert not codings
        elif method == "CONNECT" and self.status < 300:
            assert not lengths
            assert not codings
            self.body, self.rest = self.rest, b""
        elif codings:
            assert codings[-1] == b"chunked"
            assert self.proto == "HTTP/1.1"
            self._chunks()
        elif lengths:
            assert re.fullmatch(rb"[0-9]+", lengths[0])
            size = int(lengths[0])
            assert len(self.rest) >= size, "the body is short"
            self.body, self.rest = self.rest[:size], self.rest[size:]
        else:
            self.close = True
            self.body, self.rest = self.rest, b""

    def _line(self) -> bytes:
        line, end, self.rest = self.rest.partition(b"\r\n")
        assert end, f"the message breaks off: {line[:80]!r}"
        assert not set(line) & {*range(9), *range(10, 32), 127}, f"controls in {line!r}"
        return line

    def _fields(self) -> list[tuple[bytes, bytes]]:
        fields = []
        while line := self._line():
            name, colon, value = line.partition(b": ")
            assert colon or line.endswith(b":")
            assert is_token(name.decode("latin-1")), f"bad name in {line!r}"
            assert value == value.strip(b" \t")
            fields.append((name, value))
        return fields

    def _chunks(self) -> None:
        while True:
            size = self._line()
            assert re.fullmatch(rb"[0-9a-f]+", size)
            if size == b"0":
                break
            data = self.rest[: int(size, 16)]
            assert len(data) == int(size, 16)
            self.body += data
            self.rest = self.rest[len(data) :]
            assert self.rest[:2] == b"\r\n"
            self.rest = self.rest[2:]
        self.trailers = self._fields()

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field.lower() == name]

    def get(self, name: str) -> str | None:
        """The value of a field that must not be there twice."""
        values = self.values(name.lower().encode())
        assert len(values) <= 1
        return values[0].decode("utf-8", "surrogateescape") if values else None


def parse_one(wire: bytes, method: str = "GET") -> Parsed:
    """Bytes that must be one message and nothing else."""
    parsed = Parsed(wire, method)
    assert parsed.rest == b"", f"there is something behind the message: {parsed.rest[:80]!r}"
    return parsed


def parse_all(wire: bytes) -> list[Parsed]:
    """Bytes that must be whole messages; the field X-Method names the method that each answers."""
    found = []
    while wire:
        method = re.match(rb"(?:[^\r]+\r\n)*?X-Method: (\w+)\r\n", wire.partition(b"\r\n\r\n")[0] + b"\r\n")
        parsed = Parsed(wire, method[1].decode() if method else "GET")
        assert parsed.rest is not wire
        wire = parsed.rest
        found.append(parsed)
    return found


class Transport(asyncio.Transport):
    """A transport that keeps what is written, and takes all of it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.paused = False
        self.ended = False
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.ended, "write after write_eof"
        if not self.closed:
            self.written += data

    def writelines(self, pieces: Iterable[Any]) -> None:
        for piece in pieces:
            self.write(piece)

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class Wire:
    """One connection of `server` without a socket: bytes in by `feed`, bytes out in `written`."""

    def __init__(self, server: http.Server) -> None:
        self.transport = Transport()
        self.conn = Connection(server)
        self.conn.connection_made(self.transport)

    async def feed(self, *pieces: bytes) -> None:
        """Give the connection these pieces, each when it wants to read and its handlers wait."""
        for piece in pieces:
            for _ in range(20):
                if not self.transport.paused:
                    break
                await asyncio.sleep(0)
            if self.transport.closed or self.transport.paused:
                return
            await self._call(self.conn.data_received, piece)

    async def eof(self) -> None:
        """The client shuts down its sending side."""
        if not self.transport.closed:
            await self._call(self.conn.eof_received)

    @property
    def written(self) -> bytes:
        """What has been written, dates left out."""
        return re.sub(rb"\r\nDate: [^\r]*", b"\r\nDate: <DATE>", self.transport.written)

    @property
    def state(self) -> str:
        """What the connection does next."""
        if self.transport.closed:
            return "closed"
        return "ended" if self.transport.ended else Reading(self.conn._reading).name.lower()

    async def lose(self) -> None:
        """The end: everything that belongs to the connection must go."""
        self.transport.closed = True
        await self._call(self.conn.connection_lost, None)

    async def _call(self, callback: Any, *args: Any) -> None:
        """As a loop does: not inside anybody's task. What it raises is raised here."""
        faults = []

        def call() -> None:
            try:
                callback(*args)
            except BaseException as error:
                faults.append(error)

        asyncio.get_running_loop().call_soon(call)
        progress = None
        while progress != (progress := (len(self.transport.written), id(self.conn._task))):
            await settle()
        if faults:
            raise faults[0]


async def settle() -> None:
    """Let handlers run until they wait for more than the loop."""
    for _ in range(5):
        await asyncio.sleep(0)


class Log(logging.Handler):
    """An error log that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.logger = logging.Logger("test", logging.WARNING)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextlib.asynccontextmanager
async def socketless(handler: Any, **options: Any) -> AsyncIterator[http.Server]:
    """A started server that listens nowhere; it must log nothing."""
    log = Log()
    server = http.Server("", handler, error_log=log.logger, **options)
    server.start([])
    try:
        yield server
    finally:
        server.close()
        await settle()
    assert not log.lines, "\n".join(log.lines)
