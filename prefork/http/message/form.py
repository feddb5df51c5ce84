"""HTML forms in the query and in a urlencoded body (Go: Request.ParseForm).

Only the rules are here, on pieces that are in memory already; Request reads the body.
multipart/form-data is in multipart.py.

Law: what can be read is read. The first thing that is wrong is reported beside the
parameters that were fine, never instead of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prefork.http.errors import RemoteProtocolError
from prefork.http.message.mediatype import MediaTypeError, parse_media_type
from prefork.http.message.query import QueryError, Values, parse_query

MAX_FORM_BYTES: Final = 10 << 20
"""The most bytes of a urlencoded body that are parsed unless the caller allows more (Go: 10 MB)."""

_BODY_METHODS = frozenset(("POST", "PUT", "PATCH"))


class FormError(RemoteProtocolError, ValueError):
    """A form that cannot be parsed, or is over a limit.

    `str(error)` says what is wrong, in Go's words, and may quote the peer's bytes; `text` is a
    constant that may be sent back. status_hint: 400, 413 for a limit, 415 for another type.
    """

    def __init__(self, reason: str, status_hint: int = 400) -> None:
        super().__init__("form too large" if status_hint == 413 else "malformed form", status_hint)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class NotMultipart(FormError):
    """The body is not of the type multipart/form-data (Go: ErrNotMultipart)."""

    def __init__(self) -> None:
        super().__init__("request Content-Type isn't multipart/form-data", 415)


def form_too_large() -> FormError:
    """The error for every limit of a multipart body (Go: ErrMessageTooLarge)."""
    return FormError("multipart: message too large", 413)


@dataclass(slots=True)
class FormResult:
    """What parse_form found.

    form: the parameters of body and query, a name's values from the body first.
    post_form: those of the body. error: the first thing that was wrong, None if nothing was.
    """

    form: Values
    post_form: Values
    error: FormError | None = None


def parse_form(
    method: str,
    raw_query: str,
    content_type: str,
    body: bytes | None,
    *,
    max_bytes: int | None = MAX_FORM_BYTES,
) -> FormResult:
    """The form parameters of a request.

    The body counts for POST, PUT and PATCH, and only when `content_type` ("" for none) is
    application/x-www-form-urlencoded; of any other type it is left alone, which is no error.
    body: all of it; None for a request that should have one and does not (an empty body is
    b""). max_bytes: above it the body is not parsed; None for no limit.

    Never raises for what a peer sent: see FormResult.error.

        parse_form("POST", "a=q", "application/x-www-form-urlencoded", b"a=b").form  # {'a': ['b', 'q']}
    """
    error: FormError | None = None
    post_form = Values()
    if method in _BODY_METHODS:
        post_form, error = _parse_body(content_type, body, max_bytes)
    form = Values({name: list(values) for name, values in post_form.items()})
    query, query_error = _parse(raw_query)
    for name, values in query.items():
        form.setdefault(name, []).extend(values)
    return FormResult(form, post_form, error or query_error)


def _parse_body(
    content_type: str, body: bytes | None, max_bytes: int | None
) -> tuple[Values, FormError | None]:
    if body is None:
        return Values(), FormError("missing form body")
    error: FormError | None = None
    # RFC 9110 section 8.3: without a Content-Type the recipient may assume octet-stream.
    kind = ""
    if content_type:
        try:
            kind, _ = parse_media_type(content_type)
        except MediaTypeError as exc:
            kind, error = exc.media_type, FormError(str(exc))
    if kind != "application/x-www-form-urlencoded":
        return Values(), error
    if max_bytes is not None and len(body) > max_bytes:
        return Values(), error or FormError("http: POST too large", 413)
    values, body_error = _parse(body.decode("utf-8", "surrogateescape"))
    return values, error or body_error


def _parse(text: str) -> tuple[Values, FormError | None]:
    try:
        return parse_query(text), None
    except QueryError as exc:
        return exc.values, FormError(exc.reason)
