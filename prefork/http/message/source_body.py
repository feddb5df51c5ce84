"""SourceBody: the body of a request to be sent, read from a file or an async iterator as it goes out."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Protocol, TypeAlias

from prefork.http.errors import LocalProtocolError
from prefork.http.message.body import Body

FILE_PIECE = 256 * 1024
"""Bytes of a file that are read at once, in a thread: the disk may be slow."""


class BinaryFile(Protocol):
    """A file opened for reading in binary mode."""

    def read(self, n: int = ..., /) -> bytes: ...


BodyLike: TypeAlias = bytes | bytearray | memoryview | str | Body | BinaryFile | AsyncIterable[bytes]
"""What a program may give as the body of a request."""


class _Turn:
    """Whose turn it is, of the bodies that read one file: the last one that was rewound.

    A read that an earlier body has left to a thread may come late; it must not move the file
    under the reader that has begun at the start.
    """

    __slots__ = ("lock", "number")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number = 0


class SourceBody(Body):
    """A body that is pulled out of `pull()`, an async function that returns b"" at the end."""

    __slots__ = ("_ended", "_file", "_iterator", "_number", "_probe", "_start", "_turn")

    def __init__(self, content_length: int = -1) -> None:
        super().__init__(None, content_length)
        self._ended = False
        self._file: BinaryFile | None = None
        self._start: int | None = None  # where the file stood, if it can go back there
        self._turn: _Turn | None = None  # shared by all bodies of a file that can go back
        self._number = 0
        self._iterator: AsyncIterator[bytes] | None = None
        self._probe: asyncio.Task[bytes] | None = None  # the first piece, asked for already

    @property
    def again(self) -> Any:
        """Gives the body from its start once more; None when the source cannot do that."""
        return self._rewound if self._start is not None else None

    def _rewound(self) -> SourceBody:
        file = self._file
        turn = self._turn
        assert file is not None
        assert self._start is not None
        assert turn is not None
        body = SourceBody(self.content_length)
        body._file, body._start, body._turn = file, self._start, turn
        with turn.lock:
            if getattr(file, "closed", False):
                raise LocalProtocolError("the request body's file has been closed: it cannot be sent again")
            file.seek(self._start)  # type: ignore[attr-defined]
            turn.number += 1
            body._number = turn.number
        return body

    def _read_file(self) -> Any:
        """The next piece of the file; runs in a thread."""
        assert self._file is not None
        turn = self._turn
        if turn is None:
            return self._file.read(FILE_PIECE)
        with turn.lock:
            return self._file.read(FILE_PIECE) if turn.number == self._number else b""

    async def _next(self) -> bytes:
        if self._pieces:  # what a read(n) left over
            return await super()._next()
        if self._closed:
            raise LocalProtocolError("http: invalid Read on closed Body")
        if self._probe is not None:
            probe, self._probe = self._probe, None
            piece = await probe
        else:
            piece = await self._some()
        self._taken += len(piece)
        return piece

    async def _some(self) -> bytes:
        """The next piece of the source that holds anything, b"" at the end."""
        while not self._ended:
            piece = await self._pull()
            if piece:
                return piece
        return b""

    async def is_empty(self, timeout: float) -> bool:
        """Whether the body ends before its first byte; False when that is not known in `timeout` seconds."""
        if self._ended or self._probe is not None:
            return self._ended
        self._probe = probe = asyncio.get_running_loop().create_task(self._some())
        await asyncio.wait([probe], timeout=timeout)
        if not probe.done():
            return False
        piece = probe.result()
        self._probe = None
        if piece:
            self._pieces.append(piece)
            self._buffered += len(piece)
        return not piece

    async def _pull(self) -> bytes:
        if self._file is not None:
            loop = asyncio.get_running_loop()
            piece: Any = await loop.run_in_executor(None, self._read_file)
            self._ended = not piece
        else:
            assert self._iterator is not None
            try:
                piece = await anext(self._iterator)
            except StopAsyncIteration:
                piece = b""
                self._ended = True
        if not isinstance(piece, bytes | bytearray | memoryview):
            hint = (
                ": open the file in binary mode" if isinstance(piece, str) and self._file is not None else ""
            )
            raise TypeError(f"a request body must give bytes, not {type(piece).__name__}{hint}")
        return bytes(piece)

    async def _read_all(self) -> bytes:
        pieces = []
        while piece := await self._next():
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Give up the rest. A file that can go back to its start stays open, for a retry or a redirect."""
        self._closed = self._complete = True
        self._pieces.clear()
        if self._start is None:
            self.release()

    def release(self) -> None:
        """Close the file: nobody will send it again."""
        close = getattr(self._file, "close", None)
        if close is not None:
            close()

    def release_when_sent(self) -> None:
        """Let `close` close the file even if it could go back to its start."""
        self._start = None

    async def aclose(self) -> None:
        """Close, and let a generator's `finally` run now."""
        self.close()
        if self._probe is not None:
            probe, self._probe = self._probe, None
            probe.cancel()
            await asyncio.wait([probe])
        aclose = getattr(self._iterator, "aclose", None)
        if aclose is not None:
            await aclose()


def source_body(source: object) -> SourceBody:
    """The body of a file or an async iterator; TypeError for anything else.

    A regular file's length is known, so that it is sent with Content-Length.
    """
    if hasattr(source, "read") and not hasattr(source, "__anext__"):
        body = SourceBody()
        body._file = source
        try:
            if source.seekable():  # type: ignore[attr-defined]
                body._start = source.tell()  # type: ignore[attr-defined]
        except (AttributeError, OSError, ValueError):
            pass
        if body._start is not None:
            body._turn = _Turn()
            body.content_length = _length(source, body._start)
        return body
    if isinstance(source, AsyncIterable):
        body = SourceBody()
        body._iterator = aiter(source)
        return body
    raise TypeError(
        f"body must be bytes, str, a binary file, an async iterator or a Body, not {type(source).__name__}"
    )


def _length(file: Any, start: int) -> int:
    """Bytes from `start` to the end of the file, -1 when only reading can tell."""
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, OSError, ValueError):
        try:  # a file in memory
            end = file.seek(0, os.SEEK_END)
            file.seek(start)
        except (AttributeError, OSError, ValueError):
            return -1
        return max(0, int(end) - start)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return -1  # files of /proc have no size and much to say
    return max(0, status.st_size - start)
