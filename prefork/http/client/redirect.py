"""Redirects: what the next request is after a 301, 302, 303, 307 or 308 (Go: redirectBehavior and kin).

Nothing is sent from here; the loop that does is in client.py. Law: what a program meant for one
host does not reach another. Credentials in the header of the first request go to its host and
the subdomains of that, and once a hop has led elsewhere they stay behind, even if a later one
leads back: whoever was asked in between could have chosen the way (CVE-2024-45336).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prefork.http.errors import HTTPError, RequestBodyError, TransportError
from prefork.http.message.header import Header
from prefork.http.message.idna import punycode
from prefork.http.message.query import quoted
from prefork.http.message.request import Request
from prefork.http.message.source_body import SourceBody
from prefork.http.message.url import URL, URLError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefork.http.message.cookie import Cookie
    from prefork.http.message.response import Response

REDIRECT_STATUSES: Final = frozenset({301, 302, 303, 307, 308})

SENSITIVE: Final = frozenset(
    {"Authorization", "Www-Authenticate", "Cookie", "Cookie2", "Proxy-Authorization", "Proxy-Authenticate"}
)
"""Fields that are for the first host alone, in canonical spelling."""

OF_THE_BODY: Final = frozenset({"Content-Encoding", "Content-Language", "Content-Location", "Content-Type"})
"""Fields that tell of a body, and go when the body does."""


class UseLastResponse(HTTPError):
    """What a `check_redirect` raises or returns for the redirect's own response (Go: ErrUseLastResponse)."""


def use_last_response(request: Request, via: Sequence[Request]) -> None:
    """A `check_redirect` that follows nothing: the caller gets the 3xx itself.

    client = http.Client(check_redirect=http.use_last_response)
    """
    raise UseLastResponse("net/http: use last response")


def redirect_behavior(method: str, status: int, first: Request) -> tuple[str, bool, bool]:
    """(method of the next request, whether there is one, whether it has the body) (Go: redirectBehavior).

    method: of the request that was answered with `status`. first: the first request of the
    chain, whose body is the one to be sent again. A body that cannot be sent again (no
    `get_body`) is not redirected by 307 and 308: the caller gets the response.
    """
    if status in (307, 308):
        return method, not has_body(first) or first.get_body is not None, True
    if status in REDIRECT_STATUSES:
        # RFC 9110 section 15.4.2 allows it for POST; Go, and the web, do it for every method.
        return method if method in ("GET", "HEAD") else "GET", True, False
    return "", False, False


def has_body(request: Request) -> bool:
    """Whether there is, or may be, something to send (Go: outgoingLength() != 0)."""
    if request._content is not None:
        return bool(request._content)
    return request._body is not None and request._body.content_length != 0


def should_copy_header_on_redirect(initial: URL, dest: URL) -> bool:
    """Whether SENSITIVE fields, meant for `initial`, may go to `dest` (Go: shouldCopyHeaderOnRedirect).

    Ports and schemes do not matter; names that are not ASCII are compared as they travel, which
    takes two spellings of one name for two.
    """
    return is_domain_or_subdomain(_ascii_host(dest), _ascii_host(initial))


def is_domain_or_subdomain(sub: str, parent: str) -> bool:
    """Whether the host `sub` is `parent` or below it (Go: isDomainOrSubdomain)."""
    if sub == parent:
        return True
    # An IPv6 address is no name, and its zone may hold whatever text was put into the URL.
    if ":" in sub or "%" in sub:
        return False
    return sub.endswith("." + parent)


def _ascii_host(url: URL) -> str:
    host = url.hostname()
    try:
        return punycode(host)
    except URLError:
        return host


def referer_for_url(last: URL, new: URL, explicit: str) -> str:
    """The Referer to set on a request to `new`, "" for none (Go: refererForURL).

    last: where the redirect came from. explicit: the Referer that the first request had.
    """
    # RFC 9110 section 10.1.3: "A user agent MUST NOT send a Referer header field in an unsecured
    # HTTP request if the referring resource was accessed with a secure protocol."
    if last.scheme == "https" and new.scheme == "http":
        return ""
    if explicit:
        return explicit
    if last.username is not None:
        last = last.clone()
        last.username = last.password = None
    return str(last)


def copied_header(first: Header, *, strip_sensitive: bool, strip_body: bool) -> Header:
    """The header of a hop: the first request's, less what must not, or need not, go along."""
    return Header._of(
        {
            name: list(values)
            for name, values in first._fields.items()
            if not (strip_sensitive and name in SENSITIVE) and not (strip_body and name in OF_THE_BODY)
        }
    )


def drop_replaced_cookies(header: Header, own: list[Cookie], replaced: Iterable[Cookie]) -> list[Cookie]:
    """Take out of the Cookie field what a response has set anew, for a client with a jar.

    header: what later hops copy from; it is changed. own: the cookies in it. Returns those that
    are left. A cookie of a request says nothing of domain and path, so the name decides.
    """
    names = {cookie.name for cookie in replaced}
    left = [cookie for cookie in own if cookie.name not in names]
    if len(left) < len(own):
        header.pop("Cookie")
        if left:
            header["Cookie"] = "; ".join(sorted(cookie.request_value() for cookie in left))
    return left


def strip_password(url: URL) -> str:
    """The URL's text with `***` in place of the password (Go: stripPassword)."""
    if url.password is None:
        return str(url)
    url = url.clone()
    url.password = "***"
    # Encoded by str(); a colon in the name before it would be encoded too, so the first one it is.
    return str(url).replace(":%2A%2A%2A@", ":***@", 1)


class Chain:
    """The requests of one call, from the first on, and what the next one looks like.

    via: those that were sent, the oldest first.
    """

    __slots__ = ("_cookies", "_header", "_made", "_strip_sensitive", "_with_body", "via")

    def __init__(self, first: Request, *, with_jar: bool) -> None:
        self.via = [first]
        self._header = first.header.clone()  # what the hops copy from
        self._cookies = first.cookies() if with_jar else []
        self._with_body = True
        self._strip_sensitive = False
        self._made: list[Request] = [first]  # with those that were not sent in the end

    def next(self, response: Response[Any], location: str, method: str, *, keeps_body: bool) -> Request:
        """The request that `location` asks for; who sends it puts it into `via`.

        Raises TransportError for a location that is no URL, RequestBodyError when the body
        cannot be had again.
        """
        first, last = self.via[0], self.via[-1]
        last_url = last._peek_url()
        try:
            reference = URL.parse(location)
            target = last_url.resolve_reference(reference)
        except URLError as error:
            raise TransportError(
                f"failed to parse Location header {quoted(location)}: {error}", phase="redirect"
            ) from error
        if target.scheme not in ("http", "https", last_url.scheme):
            # Not even when the Transport knows the scheme: a server must not lead to a local file.
            raise TransportError(
                f"unsupported protocol scheme {quoted(target.scheme)}",
                op=method[:1] + method[1:].lower(),
                url=strip_password(target),
                phase="redirect",
            )
        # Gone once, the body does not come back: the method has changed too.
        self._with_body = self._with_body and keeps_body
        hop = _same_body(first, method, target) if self._with_body else Request(method, target)
        self._made.append(hop)
        hop._deadline = first._deadline
        hop._more()["response"] = response
        if last.host and last.host != last_url.host and not reference.scheme and not reference.host:
            # "//other/path" names another server (Go sends it this one's Host, and its cookies).
            hop.host = last.host
        if self._cookies:
            self._cookies = drop_replaced_cookies(self._header, self._cookies, response.cookies())
        if not should_copy_header_on_redirect(first._peek_url(), target):
            self._strip_sensitive = True
        hop.header = copied_header(
            self._header, strip_sensitive=self._strip_sensitive, strip_body=not self._with_body
        )
        referer = referer_for_url(last_url, target, hop.header.get("Referer", ""))
        if referer:
            hop.header["Referer"] = referer
        return hop

    def release(self) -> None:
        """Close the files that bodies were read from."""
        for request in self._made:
            if isinstance(request._body, SourceBody):
                request._body.release()


def release(request: Request, chain: Chain | None) -> None:
    """Close the files that bodies were read from, when the call is done."""
    if chain is not None:
        chain.release()
    elif isinstance(request._body, SourceBody):
        request._body.release()


def _same_body(first: Request, method: str, url: URL) -> Request:
    """A request with the body of the first one, from its start."""
    get_body = first.get_body
    if get_body is None or first._content is not None:
        return Request(method, url, body=first._content)
    try:
        body = get_body()
    except OSError as error:
        raise RequestBodyError(f"http: the body cannot be sent again: {error}") from error
    length = first.content_length
    return Request(method, url, body=body, content_length=length if length >= 0 else None, get_body=get_body)
