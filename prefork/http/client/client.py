"""Client: requests as a program wants them made: redirects, cookies, a timeout for all of it (Go: Client).

A Client is thin: connections are its transport's. What it adds is decided per request and costs
nothing when it is not needed; the usual request goes through `_do` in a straight line.

    async with http.Client(timeout=30) as client:
        response = await client.get(url)             # all of it: response.body is bytes
        async with client.get(url) as response:      # streaming: response.body is a ResponseBody
            async for chunk in response.body: ...

Laws. Awaited, a call holds nothing any more: the body was read, the connection is back in the
pool. Entered, it gives the connection back at the end of the `async with`. A request that a
program handed in is never changed, except that its body is read; the file it is read from is
closed when the call is done, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from prefork.http.client.call import Call, name_error, operation
from prefork.http.client.redirect import (
    REDIRECT_STATUSES,
    Chain,
    UseLastResponse,
    redirect_behavior,
    release,
    strip_password,
)
from prefork.http.client.round_tripper import Foreign
from prefork.http.client.transport import Transport
from prefork.http.errors import (
    HTTPError,
    LocalProtocolError,
    TooManyRedirects,
    TransportError,
)
from prefork.http.message.auth import basic_auth
from prefork.http.message.header import Header
from prefork.http.message.query import encode_query
from prefork.http.message.request import Request
from prefork.http.message.url import URL, URLError

if TYPE_CHECKING:
    from prefork.http.client.round_tripper import RoundTripper
    from prefork.http.message.cookie import Cookie
    from prefork.http.message.response import Response
    from prefork.http.message.source_body import BodyLike

MAX_BODY_BYTES: Final = 64 << 20
"""The largest body of an awaited response, unless the Client says otherwise."""

MAX_REDIRECTS: Final = 10

REDIRECT_BODY_BYTES: Final = 2048
"""A redirect's body is read if it is no longer: its connection can then take the next request."""

REDIRECT_BODY_SECONDS: Final = 0.05
"""How long to wait for such a body: a new connection is made in that time."""

HeaderLike: TypeAlias = Header | Mapping[str, str] | Iterable[tuple[str, str]]
CheckRedirect: TypeAlias = Callable[[Request, Sequence[Request]], Any]


class Jar(Protocol):
    """Where a Client keeps cookies (Go: http.CookieJar); `CookieJar` is one."""

    def set_cookies(self, url: URL, cookies: list[Cookie]) -> None: ...

    def cookies(self, url: URL) -> list[Cookie]: ...


class Client:
    """Makes requests; use one for many of them, from any task (Go: Client).

    transport: what sends them; None makes a Transport of the client's own, which `close()`
    ends. One that is handed in stays open: it may serve other clients.

    jar: keeps cookies between requests, a CookieJar say; None for no cookies.

    timeout: seconds for all of a request: connecting, redirects, header and body, also of a
    response that streams. None for no limit. Through a RoundTripper of another kind a body
    that streams is not limited.

    check_redirect: called as `check_redirect(request, via)` before a redirect is followed:
    request is the next one, and may be edited; via holds those made so far, the oldest first. It
    may be async. It raises to refuse: UseLastResponse gives the caller the redirect's own
    response (`use_last_response` always does), any other exception is the call's and carries
    the response, closed, as `.response`. None follows until 10 requests were made.

    max_body_bytes: the largest body that awaiting a call reads, BodyTooLarge if there is more; None
    for no limit. Streaming has none.

    A call raises TransportError when there is no response, or not all of it; `op` and `url` tell
    which request, the last one after redirects. A status of 4xx or 5xx is a response like any
    other: see `Response.raise_for_status`. A request that cannot be sent is a LocalProtocolError
    or a ValueError.

    Redirects are followed to every scheme that the transport knows. Name and password in a URL
    are sent as Basic authentication, unless there is an Authorization field.

        client = http.Client(jar=http.CookieJar(), timeout=10.0)
        response = await client.get("https://example.com/", header={"Accept": "text/html"})
        print(response.status, response.text())
        await client.close()
    """

    __slots__ = (
        "_foreign",
        "_owns_transport",
        "_round_trip",
        "_transport",
        "check_redirect",
        "jar",
        "max_body_bytes",
        "timeout",
    )

    def __init__(
        self,
        *,
        transport: RoundTripper | None = None,
        jar: Jar | None = None,
        timeout: float | None = None,
        check_redirect: CheckRedirect | None = None,
        max_body_bytes: int | None = MAX_BODY_BYTES,
    ) -> None:
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be more than 0 seconds, or None for no limit: {timeout}")
        if max_body_bytes is not None and max_body_bytes < 0:
            raise ValueError(f"max_body_bytes must not be negative: {max_body_bytes}")
        self._owns_transport = transport is None
        self._transport: RoundTripper = Transport() if transport is None else transport
        # A Transport keeps to the request's deadline by itself, and raises errors of this tree only.
        self._foreign = None if isinstance(self._transport, Transport) else Foreign(self._transport)
        self._round_trip = (self._foreign or self._transport).round_trip
        self.jar = jar
        self.timeout = timeout
        self.check_redirect = check_redirect
        self.max_body_bytes = max_body_bytes

    @property
    def transport(self) -> RoundTripper:
        """What sends the requests."""
        return self._transport

    # What to ask for.

    def do(self, request: Request) -> Call:
        """Send a request of any kind.

        response = await client.do(http.Request("PUT", url, body=open("picture.png", "rb")))
        """
        if request._head:
            raise LocalProtocolError("http: Request.RequestURI can't be set in client requests")
        if self.timeout is not None or request._deadline is not None:
            # A deadline is one call's, and a program may send its request twice at once.
            request = request._shallow_copy()
            request._deadline = None
        return Call(self, request)

    def get(self, url: str | URL, *, header: HeaderLike | None = None) -> Call:
        """GET a URL. Raises ValueError for one that cannot be parsed, here and not when awaited."""
        return Call(self, Request("GET", url, header=header))

    def head(self, url: str | URL, *, header: HeaderLike | None = None) -> Call:
        """HEAD: the header that GET would give, without the body."""
        return Call(self, Request("HEAD", url, header=header))

    def post(
        self, url: str | URL, content_type: str, body: BodyLike | None, *, header: HeaderLike | None = None
    ) -> Call:
        """POST a body of a type: bytes, str, a binary file, an async iterator or a Body (see Request).

        response = await client.post(url, "application/json", json.dumps(item))
        """
        fields = Header._of({"Content-Type": [content_type]})
        if header is not None:
            fields = header.clone() if isinstance(header, Header) else Header(header)
            fields["Content-Type"] = content_type
        return Call(self, Request("POST", url, header=fields, body=body))

    def post_form(
        self,
        url: str | URL,
        data: Mapping[str, str | Iterable[str]],
        *,
        header: HeaderLike | None = None,
    ) -> Call:
        """POST a form, urlencoded. A value is one str or several.

        response = await client.post_form(url, {"name": "Ada", "tag": ["a", "b"]})
        """
        return self.post(url, "application/x-www-form-urlencoded", encode_query(data), header=header)

    # The life of the client.

    def close_idle_connections(self) -> None:
        """Close the connections that nobody uses now, if the transport can (Go: CloseIdleConnections)."""
        close = getattr(self._transport, "close_idle_connections", None)
        if close is not None:
            close()

    async def close(self) -> None:
        """Close the client's own Transport with its connections; one that was handed in stays open."""
        if self._owns_transport and isinstance(self._transport, Transport):
            await self._transport.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        more = "" if self.timeout is None else f" timeout={self.timeout:g}s"
        if self.jar is not None:
            more += f" jar={self.jar!r}"
        return f"<Client{more} {self._transport!r}>"

    # How it is done.

    async def _do(self, request: Request, call: Call | None) -> Response[Any]:
        """The response, its body read; or, for a `call` that was entered, still streaming."""
        chain: Chain | None = None
        timeout = self.timeout
        if timeout is not None:
            request._deadline = asyncio.get_running_loop().time() + timeout
        try:
            if request._target is None or self.jar is not None:
                response = await self._send(request)
            else:
                response = await self._round_trip(request)
            if response.status in REDIRECT_STATUSES:
                chain = Chain(request, with_jar=self.jar is not None)
                response = await self._follow(chain, response)
            if call is not None:
                call._chain = chain
                return response
            content = response._content
            limit = self.max_body_bytes
            if response._stream is None and content is not None and (limit is None or len(content) <= limit):
                response._awaited = True  # it came together with the header
            elif self._foreign is None:
                await response._read_whole(limit)
            else:
                await self._foreign.read_whole(response, limit, request._deadline)
        except BaseException as error:
            if isinstance(error, TransportError):
                name_error(error, request.method, request if chain is None else chain.via[-1])
            release(request, chain)
            raise
        if chain is not None or request._body is not None:
            release(request, chain)
        return response

    async def _send(self, request: Request) -> Response[Any]:
        """One request and its response, with what only a Client knows of: user info and cookies."""
        jar = self.jar
        url = request._peek_url()
        header: Header | None = None
        if url.username is not None and not request.header.get("Authorization"):
            header = request.header.clone()
            header["Authorization"] = basic_auth(url.username, url.password or "")
        if jar is not None:
            if request.host and request.host != url.host:
                url = url.clone()
                url.host = request.host
            if cookies := jar.cookies(url):
                header = request.header.clone() if header is None else header
                before = header.get("Cookie")
                text = "; ".join([cookie.request_value() for cookie in cookies])
                header["Cookie"] = f"{before}; {text}" if before else text
        if header is not None:
            request = request._shallow_copy()
            request.header = header
        response: Response[Any] = await self._round_trip(request)
        if jar is not None:
            try:
                if received := response.cookies():
                    jar.set_cookies(url, received)
            except BaseException:
                response.close()
                raise
        return response

    async def _follow(self, chain: Chain, response: Response[Any]) -> Response[Any]:
        """The response behind all redirects."""
        via = chain.via
        while True:
            method, follows, keeps_body = redirect_behavior(via[-1].method, response.status, via[0])
            location = response.header.get("Location")
            if not follows or not location:
                return response
            try:
                hop = chain.next(response, location, method, keeps_body=keeps_body)
            except BaseException:
                response.close()
                raise
            try:
                if not await self._may_follow(hop, via):
                    return response
            except BaseException as error:
                response.close()
                _attach(error, response, via[0].method, location)
                raise
            await _finish(response)
            if via[-1]._body is not None:
                via[-1]._body.close()  # it may still be on its way: nobody wants the rest
            via.append(hop)
            try:
                response = await self._send(hop)
            except (LocalProtocolError, URLError) as error:
                # A scheme nobody speaks, no host: of the first request that is the program's fault.
                raise TransportError(str(error), phase="redirect") from error

    async def _may_follow(self, hop: Request, via: list[Request]) -> bool:
        """Ask `check_redirect`; False when the caller wants the redirect's own response."""
        check = self.check_redirect
        if check is None:
            if len(via) >= MAX_REDIRECTS:
                raise TooManyRedirects(f"stopped after {MAX_REDIRECTS} redirects")
            return True
        host, url_host = hop.host, hop._peek_url().host
        try:
            verdict = check(hop, tuple(via))
            if inspect.isawaitable(verdict):
                verdict = await verdict
            if isinstance(verdict, BaseException) or verdict is UseLastResponse:
                raise verdict
        except UseLastResponse:
            return False
        if verdict is not None:
            # A False that means "no" would be followed.
            raise TypeError(f"check_redirect must return None, or raise to refuse; it returned {verdict!r}")
        if hop.host == host and hop._peek_url().host != url_host:
            hop.host = hop._peek_url().host.removesuffix(":")  # it was given another URL
        return True


async def _finish(response: Response[Any]) -> None:
    """Close a redirect's response; a short body is read first, so that its connection is free at once."""
    stream = response._stream
    try:
        if stream is not None and response.content_length <= REDIRECT_BODY_BYTES:
            left = REDIRECT_BODY_BYTES
            async with asyncio.timeout(REDIRECT_BODY_SECONDS):
                while left > 0 and (piece := await stream.read(left)):
                    left -= len(piece)
    except (HTTPError, OSError):
        pass  # the connection is of no use to anybody; the redirect is
    finally:
        response.close()


def _attach(error: BaseException, response: Response[Any], method: str, location: str) -> None:
    """Give what `check_redirect` has raised the response that it was asked about."""
    if isinstance(error, Exception):
        with contextlib.suppress(AttributeError):
            error.response = response  # type: ignore[attr-defined]
    if isinstance(error, TransportError) and not error.url:
        error.op, error.url = operation(method), _shown(location)


def _shown(location: str) -> str:
    """The text of a Location field, without its password."""
    return strip_password(URL.parse(location)) if "@" in location else location


default_client = Client()
"""What the functions of this module use: its transport is per process and per loop."""


def get(url: str | URL, *, header: HeaderLike | None = None) -> Call:
    """`default_client.get`: see Client.

    response = await http.get("https://example.com/")
    """
    return default_client.get(url, header=header)


def head(url: str | URL, *, header: HeaderLike | None = None) -> Call:
    """`default_client.head`: see Client."""
    return default_client.head(url, header=header)


def post(
    url: str | URL, content_type: str, body: BodyLike | None, *, header: HeaderLike | None = None
) -> Call:
    """`default_client.post`: see Client."""
    return default_client.post(url, content_type, body, header=header)


def post_form(
    url: str | URL, data: Mapping[str, str | Iterable[str]], *, header: HeaderLike | None = None
) -> Call:
    """`default_client.post_form`: see Client."""
    return default_client.post_form(url, data, header=header)
