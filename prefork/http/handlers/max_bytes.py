"""max_bytes_handler: another limit of the request body for one route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prefork.http.handler import as_callable

if TYPE_CHECKING:
    from prefork.http.handler import HandlerCallable, HandlerLike
    from prefork.http.message.request import Request
    from prefork.http.server.response_writer import ResponseWriter

LIMIT_NAME: Final = "max_bytes_handler"
"""What `body.limit_name` says of a limit that was set here; the server's own is max_body_bytes."""


def max_bytes_handler(handler: HandlerLike, n: int) -> HandlerCallable:
    """A handler that lets `handler` read at most `n` bytes of the body (Go: MaxBytesHandler).

    It replaces the server's max_body_bytes, in either direction; of several around the same
    handler the smallest counts. Reading past it raises MaxBytesError, after the bytes
    within it have been handed out; uncaught that answers 413.

        mux.handle("POST /upload", http.max_bytes_handler(upload, 1 << 30))
    """
    call = as_callable(handler)
    n = max(0, n)

    def handle_limited(w: ResponseWriter, r: Request) -> Any:
        body = r.body
        if body.limit_name != LIMIT_NAME or body.limit is None or n < body.limit:
            body.limit = n
            body.limit_name = LIMIT_NAME
        return call(w, r)

    return handle_limited
