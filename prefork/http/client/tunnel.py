"""What is said to a proxy before a connection is the caller's: Link, and the CONNECT of HTTP.

A Link is the protocol of a connection in the making. It keeps what arrives and lets one
coroutine wait for it; once every handshake is done `hand_over` puts the real protocol in its
place, which sees one connection_made and every byte that was not part of a handshake.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from prefork.http.client.request_head import USER_AGENT
from prefork.http.errors import LocalProtocolError, ProxyError
from prefork.http.message.grammar import OWS, has_control, is_token
from prefork.http.message.idna import remove_zone
from prefork.http.message.query import quoted
from prefork.http.message.status import status_text

if TYPE_CHECKING:
    from prefork.http.message.header import Header

MAX_HEAD: Final = 64 * 1024
"""Most bytes of a proxy's answer to CONNECT."""

_status_line = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?").fullmatch
_not_ours = frozenset({"Host", "User-Agent", "Content-Length", "Transfer-Encoding", "Trailer"})


class Link(asyncio.Protocol):
    """The protocol of a connection until all handshakes are done.

    buffer: what has arrived and was not taken yet. ended: nothing more will come; error: why,
    None for a regular end.
    """

    __slots__ = ("_waiter", "buffer", "ended", "error")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ended = False
        self.error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._wake()

    def eof_received(self) -> None:
        self.ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.error = exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def more(self) -> None:
        """Wait for more in the buffer. EOFError, or the OSError of the connection, when no more will come."""
        size = len(self.buffer)
        while len(self.buffer) == size:
            if self.ended:
                raise self.error or EOFError("EOF")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def exactly(self, size: int) -> bytes:
        """Take the next `size` bytes; raises as `more`."""
        while len(self.buffer) < size:
            await self.more()
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken

    def hand_over(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        """The connection is `protocol`'s from now on."""
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self.buffer:
            protocol.data_received(bytes(self.buffer))


def connect_fields(header: Header | None, authorization: str) -> bytes:
    """The header lines of a CONNECT behind Host: User-Agent, then the others, sorted.

    header: the fields to add. authorization: the value of Proxy-Authorization, "" for none; it
    replaces one in `header`. Raises LocalProtocolError for a field that must not be sent.
    """
    fields: dict[str, list[str]] = {}
    for name, value in header.items() if header is not None else ():
        if not is_token(name):
            raise LocalProtocolError(f"net/http: invalid header field name {quoted(name)}")
        if has_control(value):
            raise LocalProtocolError(f"net/http: invalid header field value for {quoted(name)}")
        fields.setdefault(name, []).append(value.strip(OWS))
    if authorization:
        fields["Proxy-Authorization"] = [authorization]
    lines = [f"User-Agent: {agent}" for agent in fields.get("User-Agent", [USER_AGENT])[:1] if agent]
    for name in sorted(fields.keys() - _not_ours):
        lines += [f"{name}: {value}" for value in fields[name]]
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "surrogateescape")


async def open_tunnel(link: Link, transport: asyncio.Transport, addr: str, fields: bytes) -> None:
    """Let the HTTP proxy at the other end connect to `addr` (RFC 9110 section 9.3.6).

    fields: as of `connect_fields`. Raises ProxyError; with the reason phrase as its text when
    the proxy refuses. EOFError or OSError when the connection ends.
    """
    target = remove_zone(addr).encode("ascii")
    transport.write(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (target, target, fields))
    status, reason = _parse_status(await _read_head(link))
    if status != 200:
        raise ProxyError(reason)
    if link.buffer:
        # The server behind a tunnel waits for the client's TLS: only the proxy itself can be so early.
        raise ProxyError(f"the proxy sent {len(link.buffer)} bytes behind its answer to CONNECT")


async def _read_head(link: Link) -> bytes:
    """Take the status line; the other lines are taken and mean nothing."""
    buffer = link.buffer
    begin = 0
    while (end := buffer.find(b"\r\n\r\n", begin)) < 0:
        # Do not wait for the end of what will never be a head.
        first_line, line_end, _ = buffer[:MAX_HEAD].partition(b"\n")
        if not first_line.startswith(b"HTTP/1."[: len(first_line)]):
            raise _no_proxy(first_line)
        if line_end:
            if not first_line.endswith(b"\r"):
                raise _no_proxy(first_line)
            _parse_status(bytes(first_line[:-1]))
        if len(buffer) > MAX_HEAD:
            break
        begin = max(len(buffer) - 3, 0)
        await link.more()
    if end > MAX_HEAD or end < 0:
        raise ProxyError(f"the proxy's answer to CONNECT has more than {MAX_HEAD} bytes of header")
    line = bytes(buffer[:end]).partition(b"\r\n")[0]
    del buffer[: end + 4]
    return line


def _parse_status(line: bytes) -> tuple[int, str]:
    match = _status_line(line)
    if match is None:
        raise _no_proxy(line)
    status = int(match[1])
    reason = (match[2] or b"").decode("latin-1").strip(OWS)[:200]
    return status, reason or status_text(status) or f"status code {status}"


def _no_proxy(data: bytes | bytearray) -> ProxyError:
    text = bytes(data[:40]).decode("latin-1")
    return ProxyError(f"this is no HTTP proxy: malformed HTTP response {quoted(text)}")
