"""blocking: run a handler that blocks in a thread of the server's bounded pool.

The function gets a writer and a request whose waiting methods wait for real instead of
returning something to await: `r.body.read()` returns bytes, `w.write()` returns when the
client has room. Everything that touches the connection happens on the event loop's thread;
the function's own thread only asks for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from prefork.http.errors import LocalProtocolError
from prefork.http.handler import DONE
from prefork.http.server.wrapper import WriterWrapper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from prefork.http.message.body import Body
    from prefork.http.message.multipart import FileHeader, MultipartForm
    from prefork.http.message.request import Request
    from prefork.http.server.response_writer import Data, ResponseWriter

T = TypeVar("T")

GATHER = 64 * 1024
"""Body bytes gathered in the thread before they are handed to the loop."""


def blocking(
    function: Callable[[Any, Any], object],
) -> Callable[[ResponseWriter, Request], Coroutine[Any, Any, None]]:
    """A handler that runs `function(w, r)` in a thread.

    At most Server(blocking_threads=...) run at once, the rest wait their turn. In the
    function `r.body.read()`, `for chunk in r.body`, `r.json()`, `r.parse_form()`,
    `w.write()`, `w.flush()` and `w.send_file()` block until they are done; everything else
    is as in any handler. A handler whose client has gone still runs to its end: threads
    cannot be cancelled. Raises TypeError for an `async def`, which has no use for a thread.

        @mux.handle_func("GET /report/{id}")
        @http.blocking
        def report(w, r):
            w.write(render(db.query(r.path_value("id"))))
    """

    if inspect.iscoroutinefunction(function):
        raise TypeError(f"http.blocking({function.__qualname__}): it is async def, and needs no thread")

    @functools.wraps(function)
    async def handler(w: ResponseWriter, r: Request) -> Any:
        loop = asyncio.get_running_loop()
        writer = BlockingWriter(w, loop)
        request = BlockingRequest(r, loop)
        context = contextvars.copy_context()
        result, error = await loop.run_in_executor(
            r.executor, context.run, _outcome, function, writer, request
        )
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        rest = writer.take()
        if rest:
            await w.write(rest)
        return result

    return handler


def _outcome(
    function: Callable[[Any, Any], object], w: BlockingWriter, r: BlockingRequest
) -> tuple[object, BaseException | None]:
    """What the function returned, or raised: not every exception can pass through a future."""
    try:
        return function(w, r), None
    except BaseException as error:
        return None, error


class _Caller:
    """Runs coroutines on the loop from another thread and waits for them."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not None:
            coroutine.close()
            raise LocalProtocolError("http: this writer or request belongs to a blocking handler's thread")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class BlockingWriter(WriterWrapper):
    """The ResponseWriter of a blocking handler: its waiting methods block."""

    def __init__(self, w: ResponseWriter, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(w)
        self._call = _Caller(loop)
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: Data) -> Awaitable[None]:
        """Write a piece of the body; block while the client has no room for it."""
        piece = data.encode() if isinstance(data, str) else bytes(data)
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > GATHER:
            self._call(self._pass_on())
        return DONE

    def take(self) -> bytes:
        """What has been gathered and not handed on."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return data

    async def _pass_on(self) -> None:
        data = self.take()
        if data:
            await self.wrapped.write(data)

    def write_header(self, status: int) -> None:
        """Decide the status and the header."""

        async def decide() -> None:
            self.wrapped.write_header(status)

        self._call(decide())

    def flush(self) -> None:  # type: ignore[override]
        """Send everything written so far to the client now."""

        async def flush() -> None:
            await self._pass_on()
            await self.wrapped.flush()

        self._call(flush())

    def send_file(self, *args: Any, **options: Any) -> None:  # type: ignore[override]
        """Write a file, as ResponseWriter.send_file does."""

        async def send() -> None:
            await self._pass_on()
            await self.wrapped.send_file(*args, **options)

        self._call(send())

    def set_read_deadline(self, seconds: float | None) -> None:
        """As ResponseWriter.set_read_deadline."""

        async def set_deadline() -> None:
            self.wrapped.set_read_deadline(seconds)

        self._call(set_deadline())

    def set_write_deadline(self, seconds: float | None) -> None:
        """As ResponseWriter.set_write_deadline."""

        async def set_deadline() -> None:
            self.wrapped.set_write_deadline(seconds)

        self._call(set_deadline())


class BlockingBody:
    """The body of a blocking handler's request: read it, or iterate over it."""

    def __init__(self, body: Body, call: _Caller) -> None:
        self._body = body
        self._call = call

    def read(self, n: int = -1) -> bytes:
        """Everything that is left (n < 0), or up to n bytes; b"" at the end."""
        return self._call(self._body.read(n))

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(GATHER):
            yield piece


class BlockingFile:
    """One file of a multipart form in a blocking handler: `read()` blocks."""

    def __init__(self, file: FileHeader, call: _Caller) -> None:
        self._file = file
        self._call = call

    def read(self) -> bytes:
        """The whole file."""
        return self._call(self._file.read())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class BlockingForm:
    """A parsed multipart form in a blocking handler: `value` and `file`, as in MultipartForm."""

    def __init__(self, form: MultipartForm, call: _Caller) -> None:
        self.value = form.value
        self.file = {name: [BlockingFile(file, call) for file in files] for name, files in form.file.items()}
        self.remove_all = form.remove_all


class BlockingRequest:
    """The request of a blocking handler: everything of Request, the waiting methods block."""

    def __init__(self, r: Request, loop: asyncio.AbstractEventLoop) -> None:
        self._request = r
        self._call = _Caller(loop)

    @property
    def body(self) -> BlockingBody:
        return BlockingBody(self._request.body, self._call)

    def text(self) -> str:
        return self._call(self._request.text())

    def json(self) -> Any:
        return self._call(self._request.json())

    def parse_form(self) -> None:
        self._call(self._request.parse_form())

    def parse_multipart_form(self, max_memory: int = 32 << 20) -> Any:
        form = self._call(self._request.parse_multipart_form(max_memory))
        return BlockingForm(form, self._call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def __repr__(self) -> str:
        return f"<BlockingRequest around {self._request!r}>"
