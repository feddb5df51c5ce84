"""Incoming: the body of one request on its way in, from the stream into its Body.

It knows where the body ends and what is left of it; the connection knows when to read, when
to stop and what to do about a body that breaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.http.message.body import Body
from prefork.http.message.framing import ChunkedDecoder, is_trailer_name
from prefork.http.server.head import CHUNKED, announced_trailers

if TYPE_CHECKING:
    from prefork.http.message.body import BodySource
    from prefork.http.message.request import Request
    from prefork.http.server.server import Server


class Incoming:
    """One body being received; it exists from the end of the head to the end of the body.

    continue_due: the client waits for 100 Continue. discarded: bytes read after the handler was
    done. full: the Body asks to read no more for now. rest: the bytes behind a complete body.
    """

    __slots__ = ("_decoder", "_request", "body", "continue_due", "discarded", "full", "remaining", "rest")

    def __init__(self, source: BodySource, r: Request, server: Server) -> None:
        length = r.content_length
        self.body = r._body = Body(source, length, server.max_body_bytes)
        self.continue_due = server.scanner.expects_continue
        self.discarded = 0
        self.full = False
        self.rest = b""
        self.remaining = length
        self._request = r
        self._decoder: ChunkedDecoder | None = None
        if length == CHUNKED:
            self._decoder = ChunkedDecoder(
                max_trailer_bytes=server.max_header_bytes, max_trailer_lines=server.max_header_values
            )
            # Announced trailers are there from the start, without a value (Go does so).
            for name in announced_trailers(r.header.values("Trailer")):
                r.trailer[name] = None
            r.header.pop("Trailer")

    def take(self, data: bytes) -> bool:
        """Feed received bytes to the Body; whether it is complete now.

        Raises RemoteProtocolError when they are not what the framing allows.
        """
        self.continue_due = False  # the client did not wait for it
        body = self.body
        decoder = self._decoder
        if decoder is None:
            self.remaining -= len(data)
            if self.remaining < 0:
                self.rest = data[self.remaining :]
                data = data[: self.remaining]
            self.full = body.feed(data)
            if self.remaining > 0:
                return False
        else:
            piece = decoder.feed(data)
            self.full = bool(piece) and body.feed(piece)
            if not decoder.done:
                return False
            self.rest = decoder.rest
            for name, value in decoder.trailer_lines:
                if is_trailer_name(name):
                    self._request.trailer.add(name, value)
        body.feed_end()
        return True

    def is_worth_reading(self, limit: int) -> bool:
        """Whether the rest of an unwanted body may be short enough to read on to the next request."""
        return not self.continue_due and self.remaining <= limit
