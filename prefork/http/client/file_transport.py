"""FileTransport: answers `file:` URLs from a folder (Go: NewFileTransport).

    transport.register_protocol("file", http.FileTransport("/srv/data"))
    response = await http.Client(transport=transport).get("file:///reports/today.csv")

Law: nothing outside of the folder is ever opened, neither by `..` nor through a symbolic link.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO

from prefork.http.message.header import Header
from prefork.http.message.httptime import format_time
from prefork.http.message.response import Response
from prefork.http.message.response_body import ResponseBody
from prefork.http.message.sniff import detect_content_type
from prefork.http.message.url import path_clean

if TYPE_CHECKING:
    from prefork.http.message.request import Request

PIECE = 256 * 1024
"""Bytes of a file that are read at once, in a thread: the disk may be slow."""


class FileTransport:
    """A RoundTripper for GET and HEAD of regular files below `root`.

    The host of the URL does not matter. 404: no such file, a directory, or outside of `root`;
    403: it may not be read; 405: another method. The response has Content-Type, Content-Length
    and Last-Modified; closing its body closes the file.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.realpath(root)

    async def round_trip(self, request: Request) -> Response[ResponseBody]:
        """The file as a response (Go: RoundTrip)."""
        if request.method not in ("GET", "HEAD"):
            return _plain(405, "Method Not Allowed", request, {"Allow": "GET, HEAD"})
        path = path_clean("/" + request._peek_url().path)
        loop = asyncio.get_running_loop()
        try:
            file, status, start = await loop.run_in_executor(None, self._open, path)
        except PermissionError:
            return _plain(403, "403 Forbidden", request)
        except (OSError, ValueError):
            return _plain(404, "404 page not found", request)
        content_type = mimetypes.guess_type(path)[0] or detect_content_type(start)
        if content_type.startswith("text/") and ";" not in content_type:
            content_type += "; charset=utf-8"
        header = Header(
            {
                "Content-Type": content_type,
                "Content-Length": str(status.st_size),
                "Last-Modified": format_time(status.st_mtime),
            }
        )
        if request.method == "HEAD":
            file.close()
            return Response(200, header=header, request=request, content_length=status.st_size)
        return Response(200, header=header, body=_FileBody(file, status.st_size), request=request)

    def _open(self, path: str) -> tuple[BinaryIO, os.stat_result, bytes]:
        """The opened file, its status and its first bytes; runs in a thread."""
        full = os.path.realpath(os.path.join(self._root, path.lstrip("/")))
        if os.path.commonpath((full, self._root)) != self._root:
            raise FileNotFoundError(path)
        # Non-blocking: opening a pipe that nobody writes to would wait for ever.
        fd = os.open(full, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(path)
            start = os.pread(fd, 512, 0)
            file = open(fd, "rb", buffering=0)  # noqa: SIM115  # the body closes it
        except BaseException:
            os.close(fd)
            raise
        return file, status, start


class _FileBody(ResponseBody):
    """Reads a file as it is asked for, as many bytes as the header has promised."""

    __slots__ = ("_file",)

    def __init__(self, file: Any, size: int) -> None:
        super().__init__(None, size)
        self._file = file

    async def _next(self) -> bytes:
        if self._pieces or self._closed or self._complete:
            return await super()._next()
        want = min(PIECE, self.content_length - self._taken)
        piece: bytes = b""
        if want:
            piece = await asyncio.get_running_loop().run_in_executor(None, self._file.read, want)
            if not piece:
                raise OSError(f"the file has become shorter than {self.content_length} bytes")
        self._taken += len(piece)
        if self._taken >= self.content_length:
            self._complete = True
            self._file.close()
        if self.limit is not None and self._taken > self.limit:
            raise self._too_large(self.limit)
        return piece

    def close(self) -> None:
        """Close the file; later reads raise LocalProtocolError."""
        super().close()
        self._file.close()


def _plain(
    status: int, text: str, request: Request, header: dict[str, str] | None = None
) -> Response[ResponseBody]:
    fields = {"Content-Type": "text/plain; charset=utf-8", **(header or {})}
    body = b"" if request.method == "HEAD" else f"{text}\n".encode()
    return Response(status, header=fields, body=body, request=request)
