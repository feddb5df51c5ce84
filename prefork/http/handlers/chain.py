"""chain: middleware around a handler, in the order it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from prefork.http.handler import HandlerFunc, HandlerLike

Middleware: TypeAlias = Callable[[HandlerFunc], HandlerLike]
"""Makes a handler from the next one. `await next(w, r)` and `await next.serve_http(w, r)` both work."""


def chain(handler: HandlerLike, *middlewares: Middleware) -> HandlerFunc:
    """`handler` inside the middlewares, the first outermost: chain(h, a, b) is a(b(h)).

    A middleware gets the next handler as an object whose call can always be awaited, whether
    it is `async def` or not, and returns a handler of any kind. Raises TypeError for a
    middleware that returns no handler (a forgotten `return`, usually).

        def timed(next):
            async def serve(w, r):
                start = time.perf_counter()
                await next(w, r)
                log.info("%s took %.3f s", r.pattern, time.perf_counter() - start)
            return serve

        mux.handle("/", http.chain(page, timed, signed_in))
    """
    current = _wrap(handler)
    for middleware in reversed(middlewares):
        made = middleware(current)
        try:
            current = _wrap(made)
        except TypeError as exc:
            exc.add_note(f"in http.chain: the middleware {middleware!r} must return a handler")
            raise
    return current


def _wrap(handler: HandlerLike) -> HandlerFunc:
    return handler if isinstance(handler, HandlerFunc) else HandlerFunc(handler)
