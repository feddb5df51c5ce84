"""Where a message's body ends: Content-Length, chunked, or not at all (RFC 9112 section 6).

`ChunkedDecoder` is a pure state machine over bytes: it opens no socket and knows no role.
It is ours, and not the parser library's, because the decoder must know the exact offset at
which the message ends (the next byte may be the next request), keep trailers apart from
headers, and bound what a peer can make us read per byte of data.

Law: only what RFC 9112 section 7.1 writes is accepted. A chunk line ends in CRLF, a size is
1*HEXDIG, the two bytes after the data are CRLF. Everything else has been a smuggling hole
in some server.
"""

from __future__ import annotations

import enum
import re

from prefork.http.errors import RemoteProtocolError
from prefork.http.message.grammar import OWS, has_control, is_token

MAX_CHUNK_LINE = 4096
"""Bytes of one chunk-size line with its extensions, CRLF not counted."""

MAX_EXCESS = 16 * 1024
"""Bytes of framing tolerated beyond the allowance of 16 + twice the data of each chunk."""

_size_line = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?").fullmatch
_too_many_digits = re.compile(rb"[0-9A-Fa-f]{17}").match

FORBIDDEN_TRAILERS = frozenset(
    {
        *("transfer-encoding", "content-length", "trailer", "host", "te", "connection", "upgrade"),
        *("content-type", "content-encoding", "content-range", "cache-control", "expect", "keep-alive"),
        *("max-forwards", "pragma", "range", "authorization", "cookie", "set-cookie", "proxy-authenticate"),
        *("proxy-authorization", "proxy-connection", "realm", "www-authenticate"),
    }
)
"""Fields that mean framing, routing or authority: never taken from, nor sent in, a trailer
section (RFC 9110 section 6.5.1)."""


def is_trailer_name(name: str) -> bool:
    """Whether a field of this name may stand in a trailer section (Go: ValidTrailerHeader)."""
    lower = name.lower()
    return lower not in FORBIDDEN_TRAILERS and not lower.startswith("if-")


class _State(enum.Enum):
    SIZE = "chunk-size line"
    DATA = "chunk data"
    DATA_END = "CRLF after chunk data"
    TRAILER = "trailer section"
    DONE = "done"


class ChunkedDecoder:
    """Decodes one chunked body, fed in pieces of any size.

    max_trailer_bytes: bytes of the whole trailer section. max_trailer_lines: its lines.

    `feed` returns the data it found, and raises RemoteProtocolError at the first byte that
    is wrong; nothing may be fed after that. When `done` is true, `rest` holds the bytes
    behind the message and `trailer_lines` the (name, value) pairs of the trailer section.

        d = ChunkedDecoder()
        d.feed(b"5\\r\\nhello\\r\\n0\\r\\n\\r\\nGET ")  # b"hello"
        d.done, d.rest                                # True, b"GET "
    """

    __slots__ = (
        "_excess",
        "_line",
        "_max_trailer_bytes",
        "_max_trailer_lines",
        "_remaining",
        "_state",
        "_trailer_bytes",
        "done",
        "rest",
        "trailer_lines",
    )

    def __init__(self, *, max_trailer_bytes: int = 64 * 1024, max_trailer_lines: int = 500) -> None:
        self._state = _State.SIZE
        self._line = bytearray()  # the start of a line whose end has not come yet
        self._remaining = 0
        self._excess = 0
        self._max_trailer_bytes = max_trailer_bytes
        self._max_trailer_lines = max_trailer_lines
        self._trailer_bytes = 0
        self.done = False
        self.rest = b""
        self.trailer_lines: list[tuple[str, str]] = []

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the message; the body data among them, possibly empty."""
        pieces: list[bytes] = []
        pos = 0
        end = len(data)
        while pos < end:
            state = self._state
            if state is _State.DATA:
                take = min(self._remaining, end - pos)
                pieces.append(data if take == end else data[pos : pos + take])
                pos += take
                self._remaining -= take
                if not self._remaining:
                    self._state = _State.DATA_END
            elif state is _State.DATA_END:
                want = b"\r\n"[len(self._line) :]
                got = data[pos : pos + len(want)]
                if not want.startswith(got):
                    raise RemoteProtocolError("malformed chunked encoding")
                pos += len(got)
                self._line += got
                if len(self._line) == 2:
                    self._line.clear()
                    self._state = _State.SIZE
            else:
                limit = MAX_CHUNK_LINE if state is _State.SIZE else self._max_trailer_bytes
                newline = data.find(b"\n", pos)
                stop = newline + 1 if newline >= 0 else end
                old = len(self._line)
                if old + stop - pos > limit + 2:
                    raise RemoteProtocolError("header line too long")
                self._line += data[pos:stop]
                pos = stop
                self._check_line(old)
                if newline < 0:
                    break
                line = bytes(self._line)
                self._line.clear()
                if line[-2:] != b"\r\n":
                    raise RemoteProtocolError("chunked line ends with bare LF")
                if state is _State.SIZE:
                    self._chunk_line(line[:-2])
                elif self._trailer_line(line[:-2]):
                    self._state = _State.DONE
                    self.done = True
                    self.rest = data[pos:]
                    break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_line(self, old: int) -> None:
        """Refuse a line, or its beginning, that no end can make right; bytes before `old` were checked.

        So a wrong line is refused for the same reason in however many pieces it comes.
        """
        line = self._line
        if not old and self._state is _State.SIZE and line[0] not in b"0123456789abcdefABCDEF":
            raise RemoteProtocolError(_why_no_size(line[:1]))
        if line.find(b"\r", max(0, old - 1), -2 if line.endswith(b"\n") else -1) >= 0:
            raise RemoteProtocolError("invalid CR in chunked line")

    def _chunk_line(self, line: bytes) -> None:
        match = _size_line(line)
        if match is None:
            raise RemoteProtocolError(_why_no_size(line))
        size = int(match[1], 16)
        if size > 2**63 - 1:
            raise RemoteProtocolError("http chunk length too large")
        # A sender of one byte per chunk spends five bytes of framing on each; more than that, for
        # long, is someone making us work for nothing.
        self._excess = max(0, self._excess + len(line) + 2 - 16 - 2 * size)
        if self._excess > MAX_EXCESS:
            raise RemoteProtocolError("chunked encoding contains too much non-data")
        if size:
            self._remaining = size
            self._state = _State.DATA
        else:
            self._state = _State.TRAILER

    def _trailer_line(self, line: bytes) -> bool:
        """Take one line of the trailer section; whether it was the blank line that ends it."""
        if not line:
            return True
        self._trailer_bytes += len(line) + 2
        if (
            self._trailer_bytes > self._max_trailer_bytes
            or len(self.trailer_lines) >= self._max_trailer_lines
        ):
            raise RemoteProtocolError("http: suspiciously long trailer after chunked body", 431)
        name, colon, value = line.decode("utf-8", "surrogateescape").partition(":")
        value = value.strip(OWS)
        if not colon or not is_token(name) or has_control(value):
            raise RemoteProtocolError("malformed trailer line")
        if name.lower() in ("transfer-encoding", "content-length", "trailer"):
            raise RemoteProtocolError("bad trailer key")
        self.trailer_lines.append((name, value))
        return False


def _why_no_size(line: bytes | bytearray) -> str:
    size = line.partition(b";")[0].rstrip(b"\r\n")
    if not size:
        return "empty hex number for chunk length"
    return "http chunk length too large" if _too_many_digits(size) else "invalid byte in chunk length"


def format_chunk(size: int) -> bytes:
    """The chunk-size line in front of `size` bytes of data."""
    return b"%x\r\n" % size


LAST_CHUNK = b"0\r\n\r\n"
"""The last chunk and an empty trailer section."""
