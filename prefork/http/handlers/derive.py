"""A request with another URL: what handlers pass on that rewrite the path or the query.

A shallow copy, as Go makes one: header, body, forms and what the connection keeps are shared
with the original, so whatever the inner handler reads or parses is seen, and cleaned up,
by the server that owns the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefork.http.message.request import Request
    from prefork.http.message.url import URL


def with_url(r: Request, url: URL, plain_path: str | None = None) -> Request:
    """A copy of `r` for `url`. plain_path: the path when it needs no unescaping, else None."""
    r._more()  # made before the copy, so that both have the same one
    r._body = r.body  # as well
    copy = r._shallow_copy()
    copy._url = url
    copy._plain_path = plain_path
    return copy
