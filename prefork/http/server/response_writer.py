"""ResponseWriter: what a handler answers with (Go: ResponseWriter and ResponseController).

The bytes of a response pass two stages. Body bytes gather in a buffer of 2048; when the
handler ends within it the length is known and goes into Content-Length. When it overflows,
or on flush, the header is sent and the body becomes chunked. Behind that the connection
gathers what goes to the socket, so that head and body leave in one write.

Laws: the header is decided once, at the first write or write_header; later changes reach
only trailers. Nothing a handler puts into a header can end a line. When the handler has
returned the writer is dead.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from prefork.http.errors import LocalProtocolError
from prefork.http.handler import DONE
from prefork.http.message.framing import LAST_CHUNK, is_trailer_name
from prefork.http.message.grammar import OWS, is_token, parse_content_length, tokens
from prefork.http.message.header import Header, canonical_header_key
from prefork.http.message.sniff import SNIFF_LENGTH, detect_content_type
from prefork.http.message.status import body_allowed_for_status, status_line

if TYPE_CHECKING:
    from prefork.http.message.request import Request
    from prefork.http.server.connection import Connection

BUFFER = 2048
"""Body bytes held back for a Content-Length (Go's bufferBeforeChunkingSize)."""

FILE_BLOCK = 256 * 1024
"""Bytes read and written at a time by send_file."""

TRAILER_PREFIX = "Trailer:"
"""A header key with this prefix names an undeclared trailer (Go: TrailerPrefix)."""

Data: TypeAlias = "bytes | bytearray | memoryview | str"

_length_lines = [b"Content-Length: %d\r\n" % n for n in range(BUFFER + 1)]
_CONTENT_TYPE = {
    t: b"Content-Type: " + t.encode() + b"\r\n"
    for t in ("text/plain; charset=utf-8", "text/html; charset=utf-8")
}
_CLOSE = b"Connection: close\r\n\r\n"
_BEARS_ON_FRAMING = frozenset({"Connection", "Content-Encoding", "Date", "Trailer", "Transfer-Encoding"})


def _type_line(kind: str) -> bytes:
    return b"Content-Type: %b\r\n" % kind.encode()


# Header lines rendered before; a hit has been checked already. Bounded: values can come from anywhere.
_lines: dict[tuple[str, str], bytes] = {}
_LINES_LIMIT = 1024


class ResponseWriter:
    """Writes one response.

    A handler sets `header`, may call `write_header(status)` once, writes the body and
    returns; the first write implies status 200. Small answers need no await; a stream awaits
    each write, which waits while the client is slower than the handler.

    Resource handling: the server completes the response when the handler is done: length,
    chunks, trailers. After that every method raises LocalProtocolError. If the handler raises,
    the answer is 500 when nothing has been sent, else the connection is cut.

        w.header["Content-Type"] = "text/csv"
        async for row in rows:
            await w.write(row)
    """

    __slots__ = (
        "_body_allowed",
        "_buffer",
        "_chunked",
        "_close",
        "_conn",
        "_declared",
        "_head_sent",
        "_header",
        "_snapshot",
        "_trailer_names",
        "bytes_written",
        "request",
        "status",
    )

    def __init__(self, conn: Connection, request: Request) -> None:
        self._conn: Connection | None = conn
        self.request = request
        self.status = 0
        """The final status, 0 while none has been decided."""
        self.bytes_written = 0
        """Body bytes written by the handler (on HEAD: that would have been sent)."""
        self._header: Header | None = None
        self._snapshot: dict[str, list[str]] | None = None  # the header when the status was decided
        self._buffer = b""  # body bytes held back, at most BUFFER; joined as they come: they are few
        self._head_sent = False
        self._chunked = False
        self._body_allowed = True
        self._declared = -1  # the Content-Length that the handler, or the end of a small body, has set
        self._close = request.close
        self._trailer_names: list[str] | None = None

    # What a handler reads and sets.

    @property
    def header(self) -> Header:
        """The response's header: mutable until the status is decided, for trailers until the end."""
        header = self._header
        if header is None:
            header = self._header = Header()
        return header

    @property
    def header_sent(self) -> bool:
        """Whether the header is decided: the first write or write_header has happened."""
        return self.status != 0

    @property
    def _header_on_wire(self) -> bool:
        """Whether the header has gone to the connection: from then on the answer cannot be replaced."""
        return self._head_sent

    @property
    def _ends_at_close(self) -> bool:
        """Whether only the end of the connection will tell the client that the body is complete."""
        return self._head_sent and self._body_allowed and not self._chunked and self._declared < 0

    @property
    def _is_head(self) -> bool:
        return self.request.method == "HEAD"

    def write_header(self, status: int) -> None:
        """Decide the status and the header. 100 to 199 (but 101) are sent at once and decide nothing.

        status: 100 to 999, else ValueError. A second final status is ignored and logged with
        the caller's file and line, as in Go: which of the two was meant cannot be known here.
        """
        conn = self._conn
        if conn is None:
            raise _finished("write_header")
        if not 100 <= status <= 999:
            raise ValueError(f"invalid WriteHeader code {status}")
        if self.status:
            caller = sys._getframe(1)
            conn.server.error_log.warning(
                "http: superfluous write_header call from %s (%s:%d)",
                caller.f_code.co_qualname,
                caller.f_code.co_filename,
                caller.f_lineno,
            )
        elif status < 200 and status != 101:
            self._send_informational(status)
        else:
            self._decide(status)

    def write(self, data: Data) -> Awaitable[None]:
        """Write a piece of the body: bytes, str (as UTF-8) or any buffer.

        The awaitable is done already while less than the connection's high-water mark (256 KiB)
        waits for the client; else it waits for the client to catch up.

        Raises LocalProtocolError when the status or method allows no body, when the bytes are
        more than the declared Content-Length (nothing of `data` is sent then), or when the
        handler has returned; ConnectionResetError when the client has gone.
        """
        conn = self._conn
        if conn is None:
            raise _finished("write")
        if type(data) is not bytes:
            data = _to_bytes(data)
        if not self.status:
            if self._header is None:
                self.status = 200
            else:
                self._decide(200)
        size = len(data)
        if not self._body_allowed:
            if not size:
                return DONE
            raise LocalProtocolError("http: request method or response status code does not allow body")
        if self._declared >= 0 and self.bytes_written + size > self._declared:
            raise LocalProtocolError("http: wrote more than the declared Content-Length")
        self.bytes_written += size
        if not self._buffer:
            if size <= BUFFER:
                self._buffer = data
                return DONE
        elif len(self._buffer) + size <= BUFFER:
            self._buffer += data
            return DONE
        self._overflow(data, size)
        return conn.writable()

    async def flush(self) -> None:
        """Send the header and everything written so far to the client now."""
        conn = self._conn
        if conn is None:
            raise _finished("flush")
        if not self.status:
            self._decide(200)
        self._emit()
        conn.flush()
        await conn.writable()

    async def send_file(
        self, file: str | os.PathLike[str] | BinaryIO, offset: int = 0, count: int | None = None
    ) -> None:
        """Write a file, or `count` bytes of it from `offset` (None: to its end).

        Sets Content-Length when the header is not decided. file: a path, or an open binary
        file with a descriptor, which stays open. Reads 256 KiB at a time outside the event
        loop and waits for the client between them: memory stays flat.

        Raises OSError from opening and reading, ValueError for a range outside the file.
        """
        if self._conn is None:
            raise _finished("send_file")
        server = self._conn.server
        opened = None
        if hasattr(file, "fileno"):
            fd = file.fileno()
        else:
            opening = server.loop.run_in_executor(server.executor, os.open, file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fd = opened = await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_close_opened)
                raise
        try:
            size = os.fstat(fd).st_size
            end = size if count is None else offset + count
            if not 0 <= offset <= end <= size:
                raise ValueError(f"bytes {offset} to {end} of a file of {size} bytes")
            if not self.status and "Content-Length" not in self.header:
                self.header["Content-Length"] = str(end - offset)
            while offset < end:
                block = await server.in_thread(os.pread, fd, min(FILE_BLOCK, end - offset), offset)
                if not block:
                    raise OSError(f"the file became shorter while it was sent (at byte {offset} of {end})")
                offset += len(block)
                await self.write(block)
        finally:
            if opened is not None:
                os.close(opened)

    async def hijack(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Take the connection over: the server forgets it, no deadline applies any more.

        Returns a stream reader, which starts with the bytes received behind the request, and
        a stream writer, which the caller must close. What was flushed has been sent; nothing
        else will be. Raises LocalProtocolError when it has been hijacked already (Go: Hijacker).
        """
        conn = self._conn
        if conn is None:
            raise _finished("hijack")
        if self._head_sent:
            self._emit()
        return conn.hijack()

    def set_read_deadline(self, seconds: float | None) -> None:
        """Let reads of the body fail when it is not complete in `seconds` from now; None for never."""
        if self._conn is None:
            raise _finished("set_read_deadline")
        self._conn.set_read_deadline(seconds)

    def set_write_deadline(self, seconds: float | None) -> None:
        """Cut the connection when the response is not written in `seconds` from now; None for never."""
        if self._conn is None:
            raise _finished("set_write_deadline")
        self._conn.set_write_deadline(seconds)

    def enable_full_duplex(self) -> None:
        """Let the handler read the body after, and while, it writes (Go: EnableFullDuplex).

        Without it the unread rest of the body is given up when the header is sent.
        """
        if self._conn is None:
            raise _finished("enable_full_duplex")
        self._conn.full_duplex = True

    # Deciding and sending.

    def _decide(self, status: int) -> None:
        """Fix status and header, and what follows from them for the body."""
        self.status = status
        self._body_allowed = body_allowed_for_status(status)
        header = self._header
        if header is None:
            return
        fields = self._snapshot = header._share()
        lengths = fields.get("Content-Length")
        if lengths:
            try:
                (length,) = lengths  # two of them would frame the answer in two ways
                self._declared = parse_content_length(length)
            except ValueError:
                assert self._conn is not None
                self._conn.server.error_log.warning("http: invalid Content-Length of %r", ", ".join(lengths))
                self._snapshot = {**fields, "Content-Length": []}
        if "Trailer" in fields:
            self._trailer_names = [
                name for name in map(canonical_header_key, tokens(fields["Trailer"])) if is_trailer_name(name)
            ]

    def _overflow(self, data: bytes, size: int) -> None:
        """Take data that does not fit the buffer; full buffers and big pieces go out.

        Chunks are cut as Go's 2048-byte bufio.Writer does it, so that their sizes are Go's.
        """
        if self._buffer:
            room = BUFFER - len(self._buffer)
            self._buffer += data[:room]
            self._emit()
            data = data[room:]
            size -= room
        if size > BUFFER:
            self._emit(data)
        else:
            self._buffer = bytes(data)

    def _emit(self, data: bytes | None = None) -> None:
        """Hand the buffered body, or `data`, to the connection, the header first if it is due."""
        conn = self._conn
        assert conn is not None
        if data is None:
            data = self._buffer
            self._buffer = b""
        if not self._head_sent:
            conn.send(self._render_head(data, done=False))
        if not data or self._is_head:
            return
        if self._chunked:
            conn.send_chunk(data)
        else:
            conn.send(data)

    def _usual_answer(self) -> bytes | None:
        """The handler has returned: the whole answer in one piece, in the case that nearly all
        answers are; None in every other, and then `_finish` is due.

        It says in few steps what `_render_head` says for every case (a test compares them):
        nothing has been sent, the connection lives on or the client wants it closed, the status
        has a body, that is whole and small, and no field of the header bears on the framing but a
        Content-Length that is right. The writer is dead afterwards.
        """
        r = self.request
        conn = self._conn
        if (
            conn is None
            or self._head_sent
            or not self._body_allowed
            or not r._is_usual
            or not conn.server.keep_alive
            or (r.content_length and not conn.body_is_complete)
        ):
            return None
        clock = conn.server.clock
        data = self._buffer
        status = self.status or 200
        fields = self._snapshot if self.status or self._header is None else self._header._fields
        length = _length_lines[len(data)]
        if fields is None:
            start = clock.ok_date if status == 200 else status_line(status) + clock.date_line
        else:
            if not fields.keys().isdisjoint(_BEARS_ON_FRAMING):
                return None
            if "Content-Length" in fields:
                if self._declared != len(data):
                    return None
                length = b""  # the handler's own line says it
            parts = [status_line(status)]
            for name in sorted(fields) if len(fields) > 1 else fields:
                for value in fields[name]:
                    line = _lines.get((name, value))
                    if line is None:
                        if name.startswith(TRAILER_PREFIX):
                            return None
                        line = _line(name, value)
                    parts.append(line)
            parts.append(clock.date_line)
            start = b"".join(parts)
        self.status = status
        self._conn = None
        end = _CLOSE if self._close else b"\r\n"
        if not data or (fields is not None and "Content-Type" in fields):
            return b"".join((start, length, end, data))
        kind = detect_content_type(data)
        return b"".join((start, length, _CONTENT_TYPE.get(kind) or _type_line(kind), end, data))

    def _finish(self) -> bool:
        """The handler has returned: complete the answer. Whether the connection must close.

        Called by the connection, once. The writer is dead afterwards.
        """
        conn = self._conn
        assert conn is not None
        if not self.status:
            self._decide(200)
        if not self._head_sent:
            data = self._buffer
            head = self._render_head(data, done=True)
            if self._chunked:
                conn.send(head)
                if data and not self._is_head:
                    conn.send_chunk(data)
            elif self._is_head:
                conn.send(head)
            else:
                conn.send(head + data)
        elif self._buffer:
            self._emit()
        if self._chunked and not self._is_head:
            conn.send(self._render_trailer())
        if (
            self._declared >= 0
            and self.bytes_written < self._declared
            and self._body_allowed
            and not self._is_head
        ):
            self._close = True  # a short body: the client must not wait for the rest
        self._conn = None
        return self._close

    def _abandon(self) -> None:
        """The handler failed, or took the connection over: nothing more may be written."""
        self._conn = None

    def _send_informational(self, status: int) -> None:
        conn = self._conn
        assert conn is not None
        parts = [status_line(status, self.request.proto)]
        if self._header is not None:
            fields = self._header._fields
            parts += [
                _line(name, value)
                for name in sorted(fields)
                if name not in ("Content-Length", "Transfer-Encoding") and not name.startswith(TRAILER_PREFIX)
                for value in fields[name]
            ]
        parts.append(b"\r\n")
        conn.informational_sent(status)
        conn.send(b"".join(parts))
        conn.flush()

    def _render_head(self, data: bytes, *, done: bool) -> bytes:
        """The status line and header, and with them the decision how the body is framed.

        data: the first bytes of the body. done: they are all of it. The order is Go's: the
        handler's fields by name, then Date, Content-Length, Content-Type, Connection,
        Transfer-Encoding.
        """
        conn = self._conn
        r = self.request
        assert conn is not None
        status = self.status
        fields = self._snapshot or {}
        is_11 = r.proto != "HTTP/1.0"
        allowed = self._body_allowed
        dropped: set[str] = set()
        connect_ok = r.method == "CONNECT" and 200 <= status < 300
        if not allowed:
            dropped.update(("Content-Length", "Transfer-Encoding"))
            if status == 304:
                dropped.add("Content-Type")
            self._declared = -1
        coding = fields.get("Transfer-Encoding")
        if coding is not None and self._declared >= 0 and coding != ["identity"]:
            conn.server.error_log.warning(
                "http: write_header called with both Transfer-Encoding of %r and a Content-Length of %d",
                coding[0] if coding else "",
                self._declared,
            )
            dropped.add("Content-Length")
            self._declared = -1

        length: bytes = b""
        trailers = self._trailer_names is not None or any(
            name.startswith(TRAILER_PREFIX) and fields[name] for name in fields
        )
        if (
            done
            and allowed
            and not trailers
            and coding is None
            and "Content-Length" not in fields
            and not connect_ok
            and (data or not self._is_head)
        ):
            self._declared = len(data)
            length = _length_lines[len(data)]

        sniffed = b""
        if (
            allowed
            and data
            and coding is None
            and "Content-Type" not in fields
            and not any(fields.get("Content-Encoding", ()))
        ):
            kind = detect_content_type(bytes(data[:SNIFF_LENGTH]))
            sniffed = _CONTENT_TYPE.get(kind) or _type_line(kind)

        # Who ends the body, and does the connection live on?
        chunking = b""
        keep_10 = False
        wanted = fields.get("Connection")
        if not is_11 and not self._close:
            keep_10 = self._is_head or self._declared >= 0 or not allowed
            self._close = not keep_10
        if wanted == ["close"] or conn.must_close(self):
            self._close = True
            keep_10 = False
        if r.method == "CONNECT":
            self._close = True
        if self._is_head or not allowed or self._declared >= 0 or connect_ok:
            dropped.add("Transfer-Encoding")
        elif not is_11 or coding == ["identity"]:
            dropped.add("Transfer-Encoding")
            self._close = True
        else:
            self._chunked = True
            chunking = b"Transfer-Encoding: chunked\r\n"
            dropped.add("Content-Length")
            if coding == ["chunked"]:
                dropped.add("Transfer-Encoding")

        connection = b""
        if self._close and status != 101:
            if wanted is None or "close" not in tokens(wanted):
                dropped.add("Connection")
                if is_11 and not connect_ok and coding != ["identity"]:
                    connection = b"Connection: close\r\n"
        elif keep_10 and wanted is None:
            connection = b"Connection: keep-alive\r\n"

        parts = [status_line(status, r.proto)]
        for name in sorted(fields):
            if name not in dropped and not name.startswith(TRAILER_PREFIX):
                parts += [_line(name, value) for value in fields[name]]
        if "Date" not in fields:
            parts.append(conn.server.clock.date_line)
        parts += (length, sniffed, connection, chunking, b"\r\n")
        self._head_sent = True
        return b"".join(parts)

    def _render_trailer(self) -> bytes:
        """The last chunk and the trailer section: what was declared, and what has the prefix."""
        header = self._header
        if header is None:
            return LAST_CHUNK
        fields = header._fields
        parts = [b"0\r\n"]
        for name in self._trailer_names or ():
            parts += [_line(name, value) for value in fields.get(name, ())]
        for key in fields:
            if key.startswith(TRAILER_PREFIX):
                name = canonical_header_key(key[len(TRAILER_PREFIX) :])
                if is_trailer_name(name):
                    parts += [_line(name, value) for value in fields[key]]
        parts.append(b"\r\n")
        return b"".join(parts)

    def __repr__(self) -> str:
        state = "finished" if self._conn is None else "open"
        return f"<ResponseWriter {state} {self.status or '-'} {self.bytes_written} bytes>"


_unsafe = re.compile("[\x00-\x08\x0a-\x1f\x7f]")


def _line(name: str, value: str) -> bytes:
    """One header line. An invalid name gives no line; controls in a value, CR and LF above all,
    become spaces (RFC 9110 section 5.5), and what is no text at all becomes `?`."""
    known = _lines.get((name, value))
    if known is not None:
        return known
    if not is_token(name):
        return b""
    clean = _unsafe.sub(" ", value).strip(OWS)
    try:
        line = f"{name}: {clean}\r\n".encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        line = f"{name}: {clean}\r\n".encode("utf-8", "replace")
    if len(_lines) < _LINES_LIMIT and len(line) <= 128:
        _lines[(name, value)] = line
    return line


def _to_bytes(data: object) -> bytes:
    """What the handler wrote, as bytes that cannot change under us while the client takes them.

    A large view of bytes is passed on as it is: nobody can change it either.
    """
    if isinstance(data, str):
        return data.encode("utf-8", "surrogateescape")  # what a client sent can be sent back
    if (
        isinstance(data, memoryview)
        and data.nbytes > BUFFER
        and type(data.obj) is bytes
        and data.c_contiguous
    ):
        return data.cast("B")  # type: ignore[return-value]  # a buffer is all that the transport wants
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    try:
        return bytes(memoryview(data))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"write() takes bytes, str or a buffer, not {type(data).__name__}") from None


def _close_opened(opening: asyncio.Future[int]) -> None:
    """Nobody waits for this file any more."""
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())


def _finished(method: str) -> LocalProtocolError:
    return LocalProtocolError(
        f"w.{method}() after the handler has returned, or after hijack(): "
        "do everything with w inside the handler, and await the tasks that use it"
    )
