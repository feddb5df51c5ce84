"""Servers that do what a test says, byte by byte, and Transports that must leave nothing behind.

Not a test module. Load it by path, as the test modules do: `tests` is no package.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefork import http

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

_spec = importlib.util.spec_from_file_location("helpers_dial", Path(__file__).with_name("helpers_dial.py"))
assert _spec is not None
assert _spec.loader is not None
dial: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(dial)

Handler = "Callable[[Line], Awaitable[None]]"


class Received:
    """A request as a server saw it. fields: names in lower case, the last one of a name."""

    def __init__(self, head: bytes) -> None:
        self.head = head
        line, *fields = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        self.method, self.target, self.proto = line.split(" ")
        self.fields = {
            name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)
        }
        self.body = b""
        self.trailers: list[str] = []

    def __repr__(self) -> str:
        return f"<Received {self.method} {self.target} {self.fields} {len(self.body)} bytes>"


class Line:
    """The server's end of a connection. number: how many there were before."""

    def __init__(
        self, peer: Peer, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.peer = peer
        self.number = number
        self.reader = reader
        self.writer = writer

    async def head(self) -> Received | None:
        """The next request without its body, None when the client has closed."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            assert not error.partial, error.partial  # noqa: PT017
            return None
        received = Received(head)
        self.peer.requests.append(received)
        return received

    async def body(self, received: Received) -> Received:
        """Read the body that belongs to a head."""
        if received.fields.get("transfer-encoding") == "chunked":
            body = bytearray()
            try:
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += await self.reader.readexactly(size)
                    assert await self.reader.readexactly(2) == b"\r\n"
            finally:
                received.body = bytes(body)
            while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
                received.trailers.append(line.decode().removesuffix("\r\n"))
        else:
            received.body = await self.reader.readexactly(int(received.fields.get("content-length", "0")))
        return received

    async def request(self) -> Received | None:
        """The next request, with its body; None when the client has closed."""
        received = await self.head()
        return None if received is None else await self.body(received)

    def send(self, data: bytes | str) -> None:
        if self.writer.transport.is_closing():
            raise ConnectionResetError
        self.writer.write(data.encode() if isinstance(data, str) else data)

    def reply(self, body: bytes | str = b"", *fields: str, status: str = "200 OK") -> None:
        """Answer with Content-Length."""
        data = body.encode() if isinstance(body, str) else body
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", *fields, "", ""]
        self.send("\r\n".join(lines).encode() + data)

    async def drain(self) -> None:
        await self.writer.drain()

    async def closed(self) -> bytes:
        """Wait for the client to close, or to reset; what it has sent before that."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(65536):
                received += data
        return received

    def reset(self) -> None:
        """Cut the connection with an RST."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Peer:
    """A server on 127.0.0.1. requests: all it has received; lines: all its connections."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.port = 0
        self.requests: list[Received] = []
        self.lines: list[Line] = []
        self.open = 0

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    def get(self, path: str = "/", **more: Any) -> http.Request:
        return http.Request("GET", self.url(path), **more)

    def post(self, body: Any, path: str = "/", **more: Any) -> http.Request:
        return http.Request("POST", self.url(path), body=body, **more)

    async def all_closed(self) -> None:
        """Wait until no connection is open at this end."""
        await until(lambda: not self.open)


async def answering(line: Line) -> None:
    """Answer every request with its method, target and body."""
    while (received := await line.request()) is not None:
        answer = f"{line.number} {received.method} {received.target} ".encode() + received.body
        line.reply(b"" if received.method == "HEAD" else answer)


@contextlib.asynccontextmanager
async def peer(
    handler: Callable[[Line], Awaitable[None]] = answering, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Peer]:
    """A server whose every connection is given to `handler`, and closed when that returns."""
    server = Peer("https" if tls else "http")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(server, len(server.lines), reader, writer)
        server.lines.append(line)
        server.open += 1
        try:
            await handler(line)
        finally:
            server.open -= 1

    async with dial.listening(serve, tls=tls) as server.port:
        yield server


@contextlib.asynccontextmanager
async def transport(**options: Any) -> AsyncIterator[http.Transport]:
    """A Transport without proxies, closed at the end; nothing may be left of it then."""
    options.setdefault("proxy", None)
    sender = http.Transport(**options)
    try:
        yield sender
    finally:
        pools = [entry.idle_pool for entry in sender._pools.values()]
        await sender.close()
        assert not sender._pools
        for pool in pools:
            assert not pool.conns, pool.conns
            assert not pool.hosts, pool.hosts
            assert not pool.idle


async def whole(sender: http.Transport, request: http.Request) -> tuple[int, bytes]:
    """Status and body of the response."""
    async with await sender.round_trip(request) as response:
        return response.status, await response.body.read()


async def failure(awaitable: Awaitable[Any], kind: type[Exception] = http.TransportError) -> Any:
    """The error that must come; it must be of just this class."""
    try:
        result = await awaitable
    except Exception as error:
        if type(error) is not kind:
            raise
        return error
    raise AssertionError(f"no error, but {result!r}")


async def failure_of(awaitable: Awaitable[Any], base: type[Exception]) -> Any:
    """The error that must come; of this class, or one below it."""
    try:
        result = await awaitable
    except base as error:
        return error
    raise AssertionError(f"no error, but {result!r}")


async def until(condition: Callable[[], Any], what: str = "", timeout: float = 10.0) -> Any:
    """Wait for what the other side does and what cannot be awaited."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not (result := condition()):
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what or condition}")
        await asyncio.sleep(0.001)
    return result


def deadline(request: http.Request, seconds: float) -> http.Request:
    """Give a request the total timeout that a Client would give it."""
    request._deadline = asyncio.get_running_loop().time() + seconds
    return request


def only_pool(sender: http.Transport) -> Any:
    """The IdlePool of this loop."""
    return sender._pools[asyncio.get_running_loop()].idle_pool


def check_pool(sender: http.Transport) -> None:
    """What must be true of a pool when nothing is under way."""
    for entry in sender._pools.values():
        pool = entry.idle_pool
        for host in pool.hosts.values():
            assert not host.waiting
            assert not host.dial_queue
            assert not host.dialing
            assert host.conns == len(host.idle), f"{host.conns} connections, {len(host.idle)} idle"
            assert all(not conn.is_closed and conn._request is None for conn in host.idle)
        assert pool.idle == sum(len(host.idle) for host in pool.hosts.values())
