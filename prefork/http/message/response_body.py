"""ResponseBody: the body of a response, and GunzipBody, which decodes it on the way.

Law: a response's body ends in one of three ways: read to its end, closed, or forgotten. The
first two give the connection back when that is possible; the third closes it and warns.
"""

from __future__ import annotations

import asyncio
import warnings
import zlib
from typing import TYPE_CHECKING, Any, Protocol, cast

from prefork.http.errors import BodyTooLarge, DecodingError, LocalProtocolError
from prefork.http.message.body import Body, BodySource

if TYPE_CHECKING:
    from prefork.http.message.response import Response

DECODED_PIECE = 64 * 1024
"""Bytes decoded at once: a small input can stand for a thousand times as much."""

ENCODED_PIECE = 16 * 1024
"""Bytes given to the decoder at once: it copies what it leaves over, each time."""

TURN = 16
"""Pieces of a body read as a whole that are decoded before the event loop has its turn."""


class ResponseBodySource(BodySource, Protocol):
    """What feeds a response's body: the client's connection."""

    def body_forgotten(self) -> None:
        """Nobody holds the body any more: end the connection. May be called from any thread."""


class ResponseBody(Body):
    """The body of a response, read once, in order.

    `await body.read()` gives all of it, `await body.read(n)` up to n bytes and b"" at the end,
    `async for chunk in body` streams it. `close()` gives up the rest: a short rest is read in the
    background, so that the connection can be kept; otherwise it is closed (Go: Body.Close).

    Raises: ConnectionLost (it ended too early), MalformedResponse (broken framing), DecodingError,
    ClientTimeout, BodyTooLarge (more than `limit` bytes), LocalProtocolError (closed, or read by
    two tasks at once).
    """

    __slots__ = ("__weakref__",)

    @classmethod
    def of(cls, data: bytes, limit: int | None = None) -> ResponseBody:
        """A body that is complete already."""
        self = cls(None, len(data), limit)
        if data:
            self._pieces.append(data)
            self._buffered = len(data)
        self._complete = True
        return self

    @property
    def waiting_bytes(self) -> int:
        """Received bytes that nobody has read; 0 while somebody reads everything: they are not too many."""
        return 0 if self._whole else self._buffered

    def close(self) -> None:
        """Give up the rest; later reads raise LocalProtocolError."""
        if self._closed:
            return
        self._closed = True
        self._pieces.clear()
        self._buffered = 0
        self._wake()
        if self._source is not None and not self._complete:
            self._source.body_refused()

    def __del__(self) -> None:
        source = getattr(self, "_source", None)
        if source is not None and not self._complete and not self._closed:
            warnings.warn(
                f"a response's body was neither read to its end nor closed: {source!r} is closed "
                "(use `async with`, or await the client's call instead of the transport's)",
                ResourceWarning,
                stacklevel=1,
            )
            cast("ResponseBodySource", source).body_forgotten()

    async def _read_all(self) -> bytes:
        pieces: list[bytes] = []
        if self._source is not None and not self._complete:
            return await super()._read_all()
        while piece := await self._next():
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_large(self, limit: int) -> Any:
        error = BodyTooLarge(limit)
        self.close()
        self._error = error
        self._complete = True
        return error

    def _read_on_closed(self) -> Exception:
        if isinstance(self._error, BodyTooLarge):
            return self._error
        return LocalProtocolError("http: read on closed response body")


class GunzipBody(ResponseBody):
    """A body with `Content-Encoding: gzip`, decoded as it is read (RFC 1952; Go: gzipReader).

    The wire's bytes come out of `raw`. The checksum and length behind the data are verified;
    several members are one body.
    """

    __slots__ = ("_addr", "_decoder", "_encoded", "_input", "_raw", "_started")

    def __init__(self, raw: ResponseBody, addr: str = "") -> None:
        super().__init__(None, -1)
        self._raw = raw
        self._addr = addr
        self._decoder = zlib.decompressobj(31)
        self._encoded = memoryview(b"")  # received, and not yet given to the decoder
        self._input = b""
        self._started = False

    @classmethod
    def decoding(cls, response: Response[Any], raw: ResponseBody, addr: str) -> GunzipBody:
        """The decoded body of `response`, whose header tells nothing of the coding any more.

        addr: the server's, for errors.
        """
        response.uncompressed = True
        response.content_length = -1
        return cls(raw, addr)

    async def _read_all(self) -> bytes:
        pieces: list[bytes] = []
        while piece := await self._next():
            pieces.append(piece)
            if not len(pieces) % TURN:
                await asyncio.sleep(0)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _next(self) -> bytes:
        if self._pieces:
            return self._count(self._pieces.popleft(), waiting=True)
        if self._closed:
            raise self._read_on_closed()
        if self._error is not None:
            raise self._error
        while not self._complete:
            try:
                piece = await self._decode()
            except DecodingError as error:
                # What the server sent is whole; only its meaning is lost.
                error.addr = self._addr
                self._error = error
                self._raw.close()
                raise
            if piece:
                return self._count(piece, waiting=False)
            if self.limit is not None and self._raw._taken - self._taken > self.limit + DECODED_PIECE:
                raise self._too_large(self.limit)  # so many bytes that stand for none
        return b""

    def _count(self, piece: bytes, *, waiting: bool) -> bytes:
        if waiting:
            self._buffered -= len(piece)
        self._taken += len(piece)
        if self.limit is not None and self._taken > self.limit:
            raise self._too_large(self.limit)
        return piece

    async def _decode(self) -> bytes:
        """Up to DECODED_PIECE bytes; b"" when there is more input to ask for, or at the end."""
        decoder = self._decoder
        if not self._input and not decoder.eof:
            self._input = await self._more_input()
            if not self._input:
                if not self._started:
                    raise DecodingError("gzip: the body is empty")
                # A decoder that has seen nothing stands between two members: a good place to end.
                raise DecodingError("gzip: unexpected EOF: the compressed body is cut off")
        try:
            if decoder.eof:
                return await self._next_member()
            piece = decoder.decompress(self._input, DECODED_PIECE)
        except zlib.error as error:
            raise DecodingError(f"gzip: invalid data: {error}") from None
        self._started = True
        self._input = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
        return piece

    async def _more_input(self) -> bytes:
        """Up to ENCODED_PIECE bytes as they were received, b"" at the end."""
        encoded = self._encoded or memoryview(await self._raw._next())
        self._encoded = encoded[ENCODED_PIECE:]
        return bytes(encoded[:ENCODED_PIECE])

    async def _next_member(self) -> bytes:
        if not self._input:
            self._input = await self._more_input()
        if not self._input:
            self._complete = True
            return b""
        self._decoder = zlib.decompressobj(31)
        return b""

    def close(self) -> None:
        """Give up the rest, on the wire too."""
        if not self._closed:
            self._closed = True
            self._pieces.clear()
            self._buffered = 0
            self._encoded = memoryview(b"")
            self._raw.close()
