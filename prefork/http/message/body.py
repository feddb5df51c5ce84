"""Body: the async reader of an incoming message's body.

The connection feeds it, the handler reads it, and back-pressure runs the other way: when
more than HIGH_WATER bytes wait unread the source stops reading its socket, so a slow
reader slows the sender and memory stays flat whatever the length of the body.

Law: bytes are handed out in order, then the end or the error, exactly once per reader; a
truncated body is an error and never looks like a whole one (RFC 9112 section 8).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from prefork.http.errors import LocalProtocolError, MaxBytesError

HIGH_WATER = 64 * 1024
"""Unread bytes above which the source stops reading from its socket."""


class BodySource(Protocol):
    """What feeds a body: the server's connection, or the client's."""

    def body_wanted(self) -> None:
        """A reader waits: read from the socket, send 100 Continue if that is due, watch the clock."""

    def body_taken(self) -> None:
        """A reader is served for now: stop the clock."""

    def body_refused(self) -> None:
        """The rest will not be read: the connection cannot serve another message, unless it is short."""


class Body:
    """The body of a request (or response), read once, in order.

    `await body.read()` gives all of it; `await body.read(n)` up to n bytes, b"" at the end;
    `async for chunk in body` streams it in pieces as they arrive. One reader at a time.

    limit: the most bytes that will be handed out, None for no limit. What is over it raises
    MaxBytesError, after the bytes within it have been handed out. limit_name names the
    setting in that error.

    Raises: MaxBytesError (413), RemoteProtocolError (the peer broke the framing or left),
    HTTPTimeout (no byte came within the server's body_idle_timeout), LocalProtocolError
    (closed, or read by two tasks at once).

        async for chunk in r.body:
            await store(chunk)
    """

    __slots__ = (
        "_buffered",
        "_closed",
        "_complete",
        "_error",
        "_pieces",
        "_source",
        "_taken",
        "_waiter",
        "_whole",
        "content_length",
        "limit",
        "limit_name",
    )

    def __init__(
        self,
        source: BodySource | None = None,
        content_length: int = -1,
        limit: int | None = None,
        limit_name: str = "max_body_bytes",
    ) -> None:
        self._source = source
        self.content_length = content_length
        self.limit = limit
        self.limit_name = limit_name
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._taken = 0
        self._complete = False
        self._closed = False
        self._whole = False  # a read() wants everything: HIGH_WATER does not apply
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @classmethod
    def of(cls, data: bytes, limit: int | None = None) -> Body:
        """A body that is complete already."""
        self = cls(None, len(data), limit)
        if data:
            self._pieces.append(data)
            self._buffered = len(data)
        self._complete = True
        return self

    # What the source calls.

    def feed(self, data: bytes) -> bool:
        """Take received bytes; True asks the source to stop reading for now."""
        if self._closed:
            return False
        self._pieces.append(data)
        self._buffered += len(data)
        self._wake()
        return self._buffered > HIGH_WATER and not self._whole

    def feed_end(self) -> None:
        """The message is complete."""
        self._complete = True
        self._wake()

    def feed_error(self, error: Exception) -> None:
        """The rest of the message will never come."""
        if not self._complete:
            self._error = error
            self._complete = True
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # What the reader calls.

    @property
    def complete(self) -> bool:
        """Whether every byte of the body has been received (it may wait here unread)."""
        return self._complete and self._error is None

    @property
    def closed(self) -> bool:
        """Whether the rest was given up."""
        return self._closed

    async def read(self, n: int = -1) -> bytes:
        """Everything that is left (n < 0), or up to n bytes; b"" at the end of the body."""
        if n < 0:
            pieces = self._pieces
            if self._complete and len(pieces) == 1 and self._error is None and not self._taken:
                # All of it is here, in one piece: most bodies.
                limit = self.limit
                if limit is None or self._buffered <= limit:
                    self._taken = self._buffered
                    self._buffered = 0
                    return pieces.popleft()
            return await self._read_all()
        if n == 0:
            return b""
        piece = await self._next()
        if len(piece) > n:
            self._pieces.appendleft(piece[n:])
            self._buffered += len(piece) - n
            self._taken -= len(piece) - n
            piece = piece[:n]
        return piece

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._next()
        if not piece:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """Give up the rest: it is discarded, and later reads raise LocalProtocolError."""
        if self.content_length != 0:
            self._closed = True
            self._pieces.clear()
            self._buffered = 0
            self._wake()

    async def _read_all(self) -> bytes:
        limit = self.limit
        if limit is not None and self.content_length > limit and not self._closed:
            raise self._too_large(limit)
        self._whole = True
        try:
            while not self._complete and not self._closed:
                if limit is not None and self._taken + self._buffered > limit:
                    raise self._too_large(limit)
                await self._wait()
        finally:
            self._whole = False
        if self._closed:
            raise self._read_on_closed()
        if limit is not None and self._taken + self._buffered > limit:
            raise self._too_large(limit)
        if self._error is not None:
            raise self._error
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._taken += len(data)
        self._buffered = 0
        return data

    async def _next(self) -> bytes:
        """The next piece as it was received, b"" at the end."""
        while not self._pieces:
            if self._closed:
                raise self._read_on_closed()
            if self._complete:
                if self._error is not None:
                    raise self._error
                return b""
            await self._wait()
        piece = self._pieces.popleft()
        self._buffered -= len(piece)
        limit = self.limit
        if limit is not None and self._taken + len(piece) > limit:
            within = limit - self._taken
            if within <= 0:
                raise self._too_large(limit)
            self._pieces.appendleft(piece[within:])
            self._buffered += len(piece) - within
            piece = piece[:within]
        self._taken += len(piece)
        return piece

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise LocalProtocolError("http: the body is being read by another task")
        source = self._source
        if source is None:
            raise LocalProtocolError("http: the body has no source")
        self._waiter = asyncio.get_running_loop().create_future()
        source.body_wanted()
        try:
            await self._waiter
        finally:
            self._waiter = None
            source.body_taken()

    def _too_large(self, limit: int) -> MaxBytesError:
        if self._source is not None:
            self._source.body_refused()
        self.close()
        self._error = error = MaxBytesError(limit, self.limit_name)
        self._complete = True  # as far as any reader will ever know
        return error

    def _read_on_closed(self) -> Exception:
        if isinstance(self._error, MaxBytesError):
            return self._error  # Go: it stays, whoever reads again
        return LocalProtocolError(
            "http: invalid Read on closed Body: it was closed, or given up when the response header was sent "
            "(read it first, or call w.enable_full_duplex() to read while writing)"
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "complete" if self._complete else "open"
        return f"<Body {state} {self._taken} read, {self._buffered} waiting>"
