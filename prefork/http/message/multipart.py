"""multipart/form-data as a whole: values in memory, files in memory or on disk (Go: ParseMultipartForm).

Files share one budget of memory; a file that does not fit goes to a temporary file, one for
all of a form's files, which has no name in any directory: nothing is left behind when the
process dies. Reading and writing it happens in a thread, never on the event loop.

Law: memory is bounded by max_memory + 10 MB + bookkeeping, whatever the number and the shape of
the parts; every name, header and value is charged against it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from prefork.http.message.form import FormError, form_too_large

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable
    from typing import IO, ParamSpec, Self, TypeVar

    from prefork.http.message.header import Header
    from prefork.http.message.multipart_reader import MultipartReader, Part

    P = ParamSpec("P")
    T = TypeVar("T")

DEFAULT_MAX_MEMORY: Final = 32 << 20
"""Bytes of file parts kept in memory when the caller does not say (Go: 32 MB)."""

MAX_PARTS: Final = 1000
"""Parts of one form (Go: multipartmaxparts)."""

_VALUE_MEMORY: Final = 10 << 20  # for everything that is not a file, beside max_memory
_ENTRY_COST: Final = 200  # what one more entry of a form costs besides its bytes
_FILE_COST: Final = 100
_FIELD_COST: Final = 100
_BLOCK: Final = 256 * 1024  # bytes written to, or read from, disk in one hop to a thread


class MultipartForm:
    """A parsed form (Go: multipart.Form).

    value: the parts without a filename, name to values in order. file: the others.

    Resource handling: `remove_all` gives the temporary file back. The server calls it when
    the handler is done; a program that parses a form by itself calls it itself.
    """

    __slots__ = ("_disk", "file", "value")

    def __init__(self) -> None:
        self.value: dict[str, list[str]] = {}
        self.file: dict[str, list[FileHeader]] = {}
        self._disk: _TempFile | None = None

    def remove_all(self) -> None:
        """Close the temporary file; files that were in it cannot be read any more. Idempotent."""
        if self._disk is not None:
            self._disk.close()

    def __repr__(self) -> str:
        values = sum(map(len, self.value.values()))
        files = sum(map(len, self.file.values()))
        disk = self._disk.size if self._disk is not None else 0
        return f"<MultipartForm {values} values, {files} files, {disk} bytes on disk>"


class FileHeader:
    """A file of a form (Go: multipart.FileHeader).

    filename: as the sender named it, without directories: a label to show, never a path to
    open. header: the part's header fields; Content-Type is the sender's claim. size: bytes.

        async with form.file["avatar"][0].open() as file:
            while chunk := await file.read(65536): ...
    """

    __slots__ = ("_content", "_disk", "_offset", "filename", "header", "size")

    def __init__(
        self, filename: str, header: Header, size: int, content: bytes | _TempFile, offset: int = 0
    ) -> None:
        self.filename = filename
        self.header = header
        self.size = size
        self._content = content if isinstance(content, bytes) else None
        self._disk = None if isinstance(content, bytes) else content
        self._offset = offset

    @property
    def in_memory(self) -> bool:
        """Whether the file is held in memory and not on disk."""
        return self._disk is None

    async def read(self) -> bytes:
        """The whole file. Raises ValueError after `remove_all` when it was on disk."""
        return await self._read_at(0, self.size)

    def open(self) -> FormFile:
        """A reader of its own position, for `async with`."""
        return FormFile(self)

    async def _read_at(self, start: int, count: int) -> bytes:
        count = max(0, min(count, self.size - start))
        if self._content is not None:
            return self._content[start : start + count]
        assert self._disk is not None
        return await self._disk.read(self._offset + start, count)

    def __repr__(self) -> str:
        return (
            f"<FileHeader {self.filename!r} {self.size} bytes {'in memory' if self.in_memory else 'on disk'}>"
        )


class FormFile:
    """An opened file of a form: reads from a position that moves (Go: multipart.File).

    Iterating yields blocks of 256 KiB. Raises ValueError when it was closed, or when the
    form was removed.
    """

    __slots__ = ("_closed", "_file", "_position")

    def __init__(self, file: FileHeader) -> None:
        self._file = file
        self._position = 0
        self._closed = False

    async def read(self, n: int = -1) -> bytes:
        """Up to n bytes, all that is left for n < 0; b"" at the end."""
        if self._closed:
            raise ValueError("read of a closed form file")
        data = await self._file._read_at(self._position, self._file.size if n < 0 else n)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, as io.IOBase.seek does; returns it. ValueError for one below 0."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the file's start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def close(self) -> None:
        """Refuse further reads. The bytes belong to the form and stay."""
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __aiter__(self) -> FormFile:
        return self

    async def __anext__(self) -> bytes:
        data = await self.read(_BLOCK)
        if not data:
            raise StopAsyncIteration
        return data

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"at {self._position}"
        return f"<FormFile {self._file.filename!r} {state} of {self._file.size}>"


async def parse_multipart(
    body: AsyncIterable[bytes] | None, content_type: str, max_memory: int = DEFAULT_MAX_MEMORY
) -> MultipartForm:
    """Read a multipart/form-data body to its end.

    body: yields bytes; None for a request without one. content_type: the request's, "" for
    none. max_memory: bytes of file parts kept in memory; files over it go to disk. Everything
    that is not a file must fit in max_memory + 10 MB.

    Parts without a name are skipped. Raises NotMultipart for another type; FormError for a
    malformed body (status_hint 400) and for more than 1000 parts, 10,000 header lines or
    the memory above (413); OSError from the temporary file; what the body raises. Nothing
    is left on disk then.
    """
    if body is None:
        raise FormError("missing form body")
    # Here, because it needs an optional package and most programs read no such form.
    from prefork.http.message.multipart_reader import MultipartReader

    reader = MultipartReader(body, content_type, max_parts=MAX_PARTS)
    form = MultipartForm()
    try:
        await _Budget(form, max(0, max_memory)).fill(reader)
    except BaseException:
        form.remove_all()
        raise
    return form


class _Budget:
    """Takes the parts of one form, and counts what they cost."""

    __slots__ = ("_form", "_left", "_left_for_files")

    def __init__(self, form: MultipartForm, max_memory: int) -> None:
        self._form = form
        self._left_for_files = max_memory
        self._left = max_memory + _VALUE_MEMORY

    def _charge(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise form_too_large()

    async def fill(self, reader: MultipartReader) -> None:
        form = self._form
        async for part in reader:
            name = part.form_name
            if not name:
                continue
            self._charge(len(name) + _ENTRY_COST)
            if not part.filename:
                form.value.setdefault(name, []).append(await self._value(part))
                continue
            self._charge(_ENTRY_COST + _FILE_COST)
            self._charge(sum(len(key) + len(value) + _FIELD_COST for key, value in part.header.items()))
            form.file.setdefault(name, []).append(await self._file(part))

    # Pieces are joined as they come: a sender chooses their size, and a list of a million
    # two-byte pieces takes twenty times what is charged for it.

    async def _value(self, part: Part) -> str:
        data = bytearray()
        async for chunk in part:
            self._charge(len(chunk))
            data += chunk
        return data.decode("utf-8", "surrogateescape")

    async def _file(self, part: Part) -> FileHeader:
        data = bytearray()
        async for chunk in part:
            data += chunk
            if len(data) > self._left_for_files:
                return await self._spill(part, data)
        self._left_for_files -= len(data)
        self._charge(len(data))
        return FileHeader(part.filename, part.header, len(data), bytes(data))

    async def _spill(self, part: Part, data: bytearray) -> FileHeader:
        """The part goes to disk, `data` being its beginning."""
        disk = self._form._disk
        if disk is None:
            disk = self._form._disk = _TempFile()
        offset = disk.size
        async for chunk in part:
            if len(data) >= _BLOCK:
                await disk.append(bytes(data))
                data.clear()
            data += chunk
        await disk.append(bytes(data))
        return FileHeader(part.filename, part.header, disk.size - offset, disk, offset)


class _TempFile:
    """A file without a name, used from the event loop through threads.

    An operation goes on in its thread when the task that waits for it is cancelled; closing
    the descriptor under it could hit a stranger that got the same number. So `close` waits,
    without blocking, for the last operation.
    """

    __slots__ = ("_closed", "_file", "_running", "size")

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._running = 0
        self._closed = False
        self.size = 0

    async def append(self, data: bytes) -> None:
        """Write at the end; one caller at a time."""
        await self._in_thread(self._append, data)
        self.size += len(data)

    async def read(self, offset: int, count: int) -> bytes:
        return await self._in_thread(self._read, offset, count)

    def close(self) -> None:
        self._closed = True
        if not self._running and self._file is not None:
            self._file.close()

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise ValueError("the form's files have been removed")
        operation = asyncio.get_running_loop().run_in_executor(None, function, *args)
        self._running += 1
        operation.add_done_callback(self._ran)
        return await asyncio.shield(operation)

    def _ran(self, operation: asyncio.Future[T]) -> None:
        self._running -= 1
        if not operation.cancelled():
            operation.exception()  # nobody may be left to fetch it
        if self._closed:
            self.close()

    # In a thread.

    def _append(self, data: bytes) -> None:
        if self._file is None:
            import tempfile  # brings shutil, random, hashlib: few workers need them

            self._file = tempfile.TemporaryFile(prefix="prefork-", buffering=0)  # noqa: SIM115
        view = memoryview(data)
        offset = self.size
        while view:
            written = os.pwrite(self._file.fileno(), view, offset)
            offset += written
            view = view[written:]

    def _read(self, offset: int, count: int) -> bytes:
        assert self._file is not None
        pieces = []
        while count:
            piece = os.pread(self._file.fileno(), count, offset)
            if not piece:
                raise OSError("the temporary file is shorter than what was written to it")
            pieces.append(piece)
            offset += len(piece)
            count -= len(piece)
        return b"".join(pieces)
