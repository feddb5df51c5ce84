"""Handler: what answers a request (Go: Handler and HandlerFunc).

A handler is an object with `serve_http(w, r)`, or simply a callable `(w, r)`. Either may be
`async def`, which runs in a task of its own, or a plain `def`, which runs on the event loop
and must not block (wrap it in `http.blocking` if it does). What a handler returns is passed
on to whoever called it: nothing, or something to await.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from prefork.http.message.request import Request
    from prefork.http.server.response_writer import ResponseWriter


@runtime_checkable
class Handler(Protocol):
    """Answers requests (Go: Handler).

    `serve_http` reads `r`, writes to `w` and returns; when it has returned (or its awaitable
    is done) neither may be used any more. An exception is logged and answered with 500 if
    nothing has been sent, else the connection is cut.
    """

    def serve_http(self, w: ResponseWriter, r: Request, /) -> Awaitable[None] | None: ...


HandlerCallable: TypeAlias = "Callable[[ResponseWriter, Request], Any]"
HandlerLike: TypeAlias = "Handler | HandlerCallable"


class Done:
    """An awaitable that is done already: `await DONE` costs no trip through the loop."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return iter(())  # type: ignore[return-value]

    def __repr__(self) -> str:
        return "<done>"


DONE = Done()


def as_callable(handler: HandlerLike) -> HandlerCallable:
    """The `(w, r)` callable of a handler; TypeError when it is none."""
    serve_http = getattr(handler, "serve_http", None)
    if callable(serve_http) and not isinstance(handler, type):
        return serve_http  # type: ignore[no-any-return]
    if callable(handler) and not isinstance(handler, type):
        return handler
    raise TypeError(
        f"not a handler: {handler!r} has no method serve_http(w, r) and is no function (w, r)"
        + (" (it is a class: pass an instance)" if isinstance(handler, type) else "")
    )


class HandlerFunc:
    """A function as a Handler (Go: HandlerFunc).

    Only needed where an object with `serve_http` is wanted: everything here takes a bare
    function too. The result of `serve_http`, and of calling it, can always be awaited,
    whether the function is `async def` or not.

        handler = http.HandlerFunc(lambda w, r: w.write(b"hi"))
    """

    __slots__ = ("_call",)

    def __init__(self, handler: HandlerLike) -> None:
        self._call = as_callable(handler)

    def serve_http(self, w: ResponseWriter, r: Request) -> Awaitable[None]:
        result = self._call(w, r)
        return DONE if result is None else result

    __call__ = serve_http

    def __repr__(self) -> str:
        return f"<HandlerFunc {getattr(self._call, '__qualname__', self._call)}>"
