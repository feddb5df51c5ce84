"""The head of a request, as it goes on the wire (Go: Request.write and transferWriter).

Law: everything is checked before the first byte is written; nothing that a program puts into a
method, URL, Host, header or trailer can end a line (CVE-2020-26116, CVE-2023-49081 and kin).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefork import __version__
from prefork.http.errors import LocalProtocolError
from prefork.http.message.framing import is_trailer_name
from prefork.http.message.grammar import OWS, has_control, is_host_value, is_token, tokens
from prefork.http.message.idna import punycode_host_port, remove_zone
from prefork.http.message.query import quoted
from prefork.http.message.request import _USUAL_METHODS

if TYPE_CHECKING:
    from prefork.http.message.header import Header
    from prefork.http.message.request import Request

USER_AGENT = f"prefork/{__version__}"

CHUNKED = -1
"""Framing of a body whose length is not known."""
NO_BODY = -2
"""No framing fields at all."""

_has_target_control = re.compile("[\x00-\x20\x7f]").search
_LENGTH_METHODS = frozenset({"POST", "PUT", "PATCH"})
_FRAMING = frozenset({"Host", "User-Agent", "Content-Length", "Transfer-Encoding", "Trailer"})


def framing_of(request: Request) -> int:
    """How the body is framed: its length, CHUNKED or NO_BODY (Go: newTransferWriter).

    A body of unknown length is CHUNKED; for methods that seldom have one the caller finds out
    first whether there is any (`needs_probe`). A content_length of 0 with a body means, as in Go, that
    nobody has said how long it is. Raises LocalProtocolError for a length that is wrong: the
    server would take the rest of the body for the next request, or wait for ever.
    """
    length = request.content_length
    content = request._content
    if content is not None:
        if length > 0 and length != len(content):
            raise LocalProtocolError(f"http: ContentLength={length} with Body length {len(content)}")
        length = CHUNKED if length < 0 else len(content)
    elif request._body is None:
        if length > 0:
            raise LocalProtocolError(f"http: Request.ContentLength={length} with nil Body")
        length = 0
    elif length == 0:
        length = request._body.content_length
    if length < 0 or _has_trailer(request):
        return CHUNKED
    return length if length or request.method in _LENGTH_METHODS else NO_BODY


def needs_probe(request: Request) -> bool:
    """Whether an empty body of unknown length should send no framing fields at all (Go: probeRequestBody)."""
    return (
        request.method not in _LENGTH_METHODS
        and request.content_length < 0
        and request._body is not None
        and not _has_trailer(request)
    )


def _has_trailer(request: Request) -> bool:
    return request._extra is not None and bool(request._extra.get("trailer"))


def wants_close(request: Request) -> bool:
    """Whether the request says that its connection ends with it (Go: wantsClose)."""
    if request.close:
        return True
    header = request._header
    return (
        header is not None
        and "Connection" in header._fields
        and "close" in tokens(header._fields["Connection"])
    )


def asks_upgrade(request: Request) -> bool:
    """Whether the request wants to switch protocols (Go: isProtocolSwitchHeader)."""
    header = request._header
    return (
        header is not None
        and bool(header.get("Upgrade"))
        and "upgrade" in tokens(header._fields.get("Connection", []))
    )


def check(request: Request) -> None:
    """Refuse header and trailer fields that must not be sent. Raises LocalProtocolError."""
    if request.method not in _USUAL_METHODS and not is_token(request.method):
        raise LocalProtocolError(f"net/http: invalid method {quoted(request.method)}")
    header = request._header
    if header is not None:
        _check_fields(header, "header")
    if request._extra is not None and "trailer" in request._extra:
        trailer = request._extra["trailer"]
        _check_fields(trailer, "trailer")
        for name in trailer:
            if not is_trailer_name(name):
                raise LocalProtocolError(f"http: invalid Trailer key {quoted(name)}")
        format_trailers(trailer)


def _check_fields(header: Header, kind: str) -> None:
    for name, values in header._fields.items():
        if not is_token(name):
            raise LocalProtocolError(f"net/http: invalid {kind} field name {quoted(name)}")
        for value in values:
            if has_control(value):
                # Go does not show the value: it may be a secret.
                raise LocalProtocolError(f"net/http: invalid {kind} field value for {quoted(name)}")


def format_head(
    request: Request, uri: str, host: str, framing: int, *, gzip: bool, extra: str = "", close: bool = False
) -> bytes:
    """The head's bytes, in Go's order of fields.

    uri: the request target. host: the Host field. extra: whole lines that the Transport adds.
    gzip: ask for it. close: end the connection after this exchange.
    """
    header = request._header
    agent: str | None = USER_AGENT
    fields = ""
    if header is not None:
        agents = header._fields.get("User-Agent")
        if agents is not None:
            agent = agents[0] if agents else None
        fields = "".join(
            [
                f"{name}: {value.strip(OWS)}\r\n"
                for name, values in sorted(header._fields.items())
                if name not in _FRAMING
                for value in values
            ]
        )
    head = f"{request.method} {uri} HTTP/1.1\r\nHost: {host}\r\n"
    if agent:
        head += f"User-Agent: {agent.strip(OWS)}\r\n"
    if close and (header is None or "close" not in tokens(header._fields.get("Connection", []))):
        head += "Connection: close\r\n"
    if framing >= 0:
        head += f"Content-Length: {framing}\r\n"
    elif framing == CHUNKED:
        head += "Transfer-Encoding: chunked\r\n"
        if request._extra is not None and request._extra.get("trailer"):
            head += f"Trailer: {','.join(sorted(request._extra['trailer']))}\r\n"
    if gzip:
        head += f"{fields}Accept-Encoding: gzip\r\n{extra}\r\n"
    else:
        head += f"{fields}{extra}\r\n"
    return _encoded(head, "header")


def wire_host(request: Request, *, via_proxy: bool) -> str:
    """The value of the Host field: the request's own, else its URL's; in ASCII, without IPv6 zone."""
    host = request.host or request._peek_url().host
    host = remove_zone(punycode_host_port(host))
    if not is_host_value(host):
        if via_proxy:
            raise LocalProtocolError("http: invalid Host header")
        return ""  # Go: historically cleaned, so that the server answers 400
    return host


def wire_uri(request: Request, *, absolute_form: bool) -> str:
    """The request target. Raises LocalProtocolError for one that would break the line."""
    url = request._peek_url()
    uri = url.request_uri()
    if request.method == "CONNECT" and not url.path:
        uri = url.opaque or request.host or url.host
    elif absolute_form and url.scheme and not url.opaque:
        uri = f"{url.scheme}://{wire_host(request, via_proxy=True)}{uri}"
    if _has_target_control(uri):
        raise LocalProtocolError("net/http: can't write control character in Request.URL")
    return uri


def format_trailers(trailer: Header) -> bytes:
    """The last chunk and the trailer section. Raises LocalProtocolError for what has no bytes."""
    lines = "".join([f"{name}: {value.strip(OWS)}\r\n" for name, value in sorted(trailer.items())])
    return _encoded(f"0\r\n{lines}\r\n", "trailer")


def _encoded(text: str, what: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise LocalProtocolError(
            f"net/http: {what} of the request has a lone surrogate {error.object[error.start]!r}: "
            "it stands for no byte"
        ) from None
