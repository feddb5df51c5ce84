"""allow_query_semicolons: the old separator of query parameters, for clients that still use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefork.http.handler import as_callable
from prefork.http.handlers.derive import with_url

if TYPE_CHECKING:
    from prefork.http.handler import HandlerCallable, HandlerLike
    from prefork.http.message.request import Request
    from prefork.http.server.response_writer import ResponseWriter


def allow_query_semicolons(handler: HandlerLike) -> HandlerCallable:
    """A handler that turns `;` in the query into `&` for `handler` (Go: AllowQuerySemicolons).

    Without it a parameter that contains `;` is refused, because caches and proxies that split
    the query differently can be played against the server. So use it only where no such
    thing stands in front. `%3B` is not touched. Must be called before the form is parsed.
    """
    call = as_callable(handler)

    def handle_semicolons(w: ResponseWriter, r: Request) -> Any:
        if ";" not in r.url.raw_query:
            return call(w, r)
        url = r.url.clone()
        url.raw_query = url.raw_query.replace(";", "&")
        return call(w, with_url(r, url, r._plain_path))

    return handle_semicolons
