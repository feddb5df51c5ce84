"""The short answers: error, not found, redirect, JSON, a cookie (Go: http.Error, Redirect, ...).

Plain functions: they return what `w.write` returned, or None when nothing was written. The
answers are small, so there is nothing to wait for; awaiting the result does no harm.

Law: nothing of a request gets into an answer unescaped, and a path on this server never
turns into the address of another one.
"""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Final, Protocol

from prefork.http.message.query import URLError
from prefork.http.message.status import body_allowed_for_status, status_text
from prefork.http.message.url import URL, path_clean

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefork.http.message.cookie import Cookie
    from prefork.http.message.header import Header
    from prefork.http.message.request import Request
    from prefork.http.server.response_writer import Data

_log = logging.getLogger("prefork.http")


class Writer(Protocol):
    """The part of a ResponseWriter that an answer needs; a WriterWrapper has it too."""

    @property
    def header(self) -> Header: ...
    def write_header(self, status: int, /) -> None: ...
    def write(self, data: Data, /) -> Awaitable[None]: ...


def error(w: Writer, text: str, code: int) -> Awaitable[None] | None:
    """Answer with `text` and a newline as plain text (Go: Error).

    Content-Length is removed from the header, Content-Type replaced: whatever was prepared
    for a success does not describe this body. The handler should return afterwards.

        http.error(w, "no such item", 404)
    """
    header = w.header
    header.pop("Content-Length")
    header["Content-Type"] = "text/plain; charset=utf-8"
    # The text may repeat input; a browser must not take it for HTML.
    header["X-Content-Type-Options"] = "nosniff"
    w.write_header(code)
    if not body_allowed_for_status(code):
        return None
    return w.write(text + "\n")


def not_found(w: Writer, r: Request) -> Awaitable[None] | None:
    """Answer 404 page not found (Go: NotFound)."""
    return error(w, "404 page not found", 404)


def not_found_handler() -> Callable[[Writer, Request], Awaitable[None] | None]:
    """A handler that answers every request with 404 (Go: NotFoundHandler)."""
    return not_found


_unsafe: Final = re.compile("[\x00-\x1f\x7f]")
_non_ascii: Final = re.compile(rb"[\x80-\xff]")
_host_or_scheme: Final = re.compile(r"//[^/]|[A-Za-z][A-Za-z0-9+.\-]*+:").match
_path_end: Final = re.compile("[?#]")
_html: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"})


def redirect(w: Writer, r: Request, url: str, code: int) -> Awaitable[None] | None:
    """Answer with a redirect to `url`, which may be relative to the request's path (Go: Redirect).

    code: a 3xx status; 302, 303, 307 or 308 usually. A relative path is joined to the
    request's and cleaned of `.`, `..` and doubled slashes; a full URL, and one that starts
    with `//host`, stays as it is. For GET and HEAD a Content-Type is set, and for GET a short
    hypertext body written, unless the header has a Content-Type already.

        http.redirect(w, r, "../login?next=/cart", 303)
    """
    # Browsers drop tabs and newlines from a URL and read `\\` as `/`: left alone, "/\t/host"
    # and "/\\host" would be paths here and hosts there.
    url = _unsafe.sub(_percent, url)
    if not _names_a_host(url):
        url = _on_this_server(url, r)
    header = w.header
    plain = "Content-Type" not in header
    header["Location"] = hex_escape_non_ascii(url)
    if plain and r.method in ("GET", "HEAD"):
        header["Content-Type"] = "text/html; charset=utf-8"
    w.write_header(code)
    if not plain or r.method != "GET" or not body_allowed_for_status(code):
        return None
    body = f'<a href="{url.translate(_html)}">{status_text(code)}</a>.\n\n'
    return w.write(body.encode("utf-8", "surrogateescape"))


def _names_a_host(url: str) -> bool:
    """Whether `url` has a scheme or a host of its own, so that nothing of the request's may be put in."""
    try:
        parsed = URL.parse(url)
    except URLError:
        # Go lets these out as they are. "/\\host/%" is among them: a host to a browser.
        return _host_or_scheme(url) is not None
    return bool(parsed.scheme or parsed.host)


def _on_this_server(url: str, r: Request) -> str:
    """An absolute path, with query and fragment as they were, for a reference without a host."""
    if not url.startswith("/"):
        base = r.url.escaped_path()
        url = (base[: base.rfind("/") + 1] or "/") + url
    end = _path_end.search(url)
    path, rest = (url[: end.start()], url[end.start() :]) if end else (url, "")
    cleaned = path_clean(path.replace("\\", "%5C"))
    if path.endswith("/") and not cleaned.endswith("/"):
        cleaned += "/"
    return cleaned + rest


def _percent(match: re.Match[str]) -> str:
    return f"%{ord(match[0]):02X}"


def hex_escape_non_ascii(text: str) -> str:
    """`/ф` -> `/%d1%84`: each byte above ASCII, of the text in UTF-8, as lower-case %xx."""
    if text.isascii():
        return text
    raw = text.encode("utf-8", "surrogateescape")
    return _non_ascii.sub(lambda match: b"%%%02x" % match[0][0], raw).decode("ascii")


def redirect_handler(url: str, code: int) -> Callable[[Writer, Request], Awaitable[None] | None]:
    """A handler that redirects every request to `url` (Go: RedirectHandler).

    mux.handle("/old", http.redirect_handler("/new", 308))
    """

    def handle_redirect(w: Writer, r: Request) -> Awaitable[None] | None:
        return redirect(w, r, url, code)

    return handle_redirect


def set_cookie(w: Writer, cookie: Cookie) -> None:
    """Add a Set-Cookie field (Go: SetCookie). A cookie whose name is no token is left out and logged.

    http.set_cookie(w, http.Cookie("session", token, path="/", http_only=True, secure=True))
    """
    text = str(cookie)
    if text:
        w.header.add("Set-Cookie", text)
    else:
        _log.warning("http: invalid Cookie.Name %r; the cookie is not sent", cookie.name)


_encode_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_encode_json_ascii = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def write_json(w: Writer, value: object, status: int = 200) -> Awaitable[None]:
    """Answer with `value` as compact JSON in UTF-8; Content-Type is application/json unless set.

    Raises TypeError or ValueError for what JSON cannot say (NaN too), before anything has
    been sent. Returns what `w.write` returns: await it when the answer is large.

        http.write_json(w, {"id": 7})
    """
    text = _encode_json(value)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a lone surrogate: bytes of a request that were no UTF-8
        data = _encode_json_ascii(value).encode()
    header = w.header
    if "Content-Type" not in header:
        header["Content-Type"] = "application/json"
    w.write_header(status)
    return w.write(data)
