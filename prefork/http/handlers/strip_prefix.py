"""strip_prefix: serve a subtree with a handler that does not know where it is mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefork.http.handler import as_callable
from prefork.http.handlers.derive import with_url
from prefork.http.handlers.replies import not_found

if TYPE_CHECKING:
    from prefork.http.handler import HandlerCallable, HandlerLike
    from prefork.http.message.request import Request
    from prefork.http.server.response_writer import ResponseWriter


def strip_prefix(prefix: str, handler: HandlerLike) -> HandlerCallable:
    """A handler that takes `prefix` off the path and calls `handler` (Go: StripPrefix).

    The inner handler gets a copy of the request with the shorter `url.path` (and
    `url.raw_path`); `request_uri` stays as received. A path without the prefix is answered
    with 404, and so is one where the prefix is escaped differently (`/%61pi` for `/api`). With
    an empty prefix nothing is changed.

        mux.handle("/static/", http.strip_prefix("/static", files))
    """
    call = as_callable(handler)
    if not prefix:
        return call

    def handle_stripped(w: ResponseWriter, r: Request) -> Any:
        url = r.url
        path = url.path.removeprefix(prefix)
        raw_path = url.raw_path.removeprefix(prefix)
        if len(path) == len(url.path) or (url.raw_path and len(raw_path) == len(url.raw_path)):
            return not_found(w, r)
        url = url.clone()
        url.path, url.raw_path = path, raw_path
        plain = r._plain_path
        return call(w, with_url(r, url, path if plain is not None and path.startswith("/") else None))

    return handle_stripped
