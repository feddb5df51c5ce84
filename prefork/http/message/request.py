"""Request: a request as a server receives it, or as a client will send it (Go: Request).

On a server most of a request is never looked at, so what the connection stores is the text
of the head and the few fields that framing needs; `url`, `header`, cookies and forms are
made from it the first time somebody asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any, Protocol

from prefork.http.errors import AbortHandler, LocalProtocolError, StatusError
from prefork.http.message import auth
from prefork.http.message.body import Body
from prefork.http.message.cookie import Cookie, read_cookies
from prefork.http.message.form import MAX_FORM_BYTES, parse_form
from prefork.http.message.grammar import OWS, ascii_lower, is_token
from prefork.http.message.header import Header, parse_fields
from prefork.http.message.query import quoted
from prefork.http.message.source_body import BodyLike, SourceBody, source_body
from prefork.http.message.text import decode_text
from prefork.http.message.url import URL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
    from concurrent.futures import Executor

    from prefork.http.message.multipart import MultipartForm


_USUAL_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestOwner(Protocol):
    """What a request asks of the connection that received it."""

    @property
    def remote_addr(self) -> str: ...

    @property
    def disconnected(self) -> Notice: ...

    @property
    def shutting_down(self) -> Notice: ...

    @property
    def executor(self) -> Executor: ...


class Notice:
    """Something that happens once: true when it has, awaitable until it does.

    if r.shutting_down: ...
    await r.disconnected
    """

    __slots__ = ("_happened", "_waiters")

    def __init__(self) -> None:
        self._happened = False
        self._waiters: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        return self._happened

    is_set = __bool__

    def set(self) -> None:
        """It has happened: wake everyone who waits."""
        self._happened = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Return when it has happened; at once if it has already."""
        if self._happened:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def __await__(self) -> Generator[Any, None, None]:
        return self.wait().__await__()


class Request:
    """One request.

    A server makes it from what it received; it is valid until the handler is done. A
    program makes it to send it, or to test a handler:

        http.Request("GET", "http://example.com/items/7?full=1", header={"Accept": "text/html"})

    method: a token, case-sensitive. url: a URL or its text. header: a Header, a mapping or
    pairs. host: what goes into the Host field; None takes it from the URL. close: end the
    connection after the exchange. trailer: fields to send behind the body, which is then chunked.

    body: what to send, or None for nothing: bytes, str (as UTF-8), a binary file, an async
    iterator of bytes, or a Body. content_length: its length in bytes, when that is not known
    from the body itself; None for unknown (the body is chunked). get_body: called without
    arguments for the same body from its start, when a redirect or a retry needs it again; bytes
    and files that can seek need none. A file is read from where it stands; the Client closes it
    when the request is done.

    Raises ValueError for a method that is no token or a negative length, URLError (a ValueError)
    for a URL that cannot be parsed, TypeError for a body of another type.

    content_length is the body's length in bytes, -1 when it is unknown (chunked).
    request_uri is the request target exactly as received. close tells that the connection
    ends with this exchange. pattern is the ServeMux pattern that matched, "" if none did.
    """

    __slots__ = (
        "_body",
        "_content",
        "_deadline",
        "_extra",
        "_head",
        "_header",
        "_is_usual",
        "_owner",
        "_path_values",
        "_plain_path",
        "_target",
        "_url",
        "_url_text",
        "close",
        "content_length",
        "host",
        "method",
        "pattern",
        "proto",
    )

    method: str
    proto: str
    host: str
    content_length: int
    close: bool
    pattern: str
    _plain_path: str | None  # the path when the target is origin-form without escapes: what a mux looks up
    _is_usual: bool  # received with HTTP/1.1, and neither HEAD nor CONNECT: the answer may take the short way
    _path_values: dict[str, str] | None
    _head: str  # the received head, "" on a request made by a program
    _header: Header | None
    _url: URL | None
    _url_text: str  # what `_target` was made of; `_url` is parsed from it when somebody asks
    _target: Target | None  # where it leads, as long as nobody has had the URL to change it
    _body: Body | None
    _content: bytes | None  # the body of a request to be sent, when it is all here
    _deadline: float | None  # the loop's time by which a request to be sent must be answered
    _owner: RequestOwner | None
    _extra: dict[str, Any] | None  # what few requests have: trailer, forms, transfer_encoding, ...

    def __init__(
        self,
        method: str,
        url: str | URL,
        *,
        header: Header | Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        body: BodyLike | None = None,
        host: str | None = None,
        trailer: Header | Mapping[str, str] | None = None,
        content_length: int | None = None,
        get_body: Callable[[], BodyLike] | None = None,
        close: bool = False,
    ) -> None:
        if method not in _USUAL_METHODS:
            method = method or "GET"
            if not is_token(method):
                raise ValueError(f"net/http: invalid method {quoted(method)}")
        self.method = method
        self._target = target = None
        if isinstance(url, str):
            target = _targets[url] if url in _targets else _find_target(url)
            if target is not None:
                self._target = target
                self._url_text = url
        if target is not None:
            self._url = None
            self.host = target.host if host is None else host
        else:
            self._url = parsed = url if isinstance(url, URL) else URL.parse(url)
            self.host = parsed.host.removesuffix(":") if host is None else host
        self.proto = "HTTP/1.1"
        self.close = close
        self.pattern = ""
        self._plain_path = None
        self._is_usual = False
        self._path_values = None
        self._head = ""
        self._header = header if header is None or isinstance(header, Header) else Header(header)
        self._owner = None
        self._extra = None
        self._deadline = None
        self._body = None
        if body is None:
            self._content = None
            self.content_length = 0
        else:
            self._set_source(body)
        if content_length is not None:
            if content_length < 0:
                raise ValueError(f"content_length must not be negative: {content_length}")
            self.content_length = content_length
        if trailer is not None:
            self._more()["trailer"] = trailer if isinstance(trailer, Header) else Header(trailer)
        if get_body is not None:
            self._more()["get_body"] = get_body

    def _set_source(self, body: BodyLike) -> None:
        """Take over what a program wants to be sent."""
        if isinstance(body, str):
            body = body.encode()
        if isinstance(body, bytes | bytearray | memoryview):
            self._content = bytes(body)
            self._body = None
            self.content_length = len(self._content)
        else:
            self._content = None
            self._body = body if isinstance(body, Body) else source_body(body)
            self.content_length = self._body.content_length

    @property
    def get_body(self) -> Callable[[], BodyLike] | None:
        """Gives the body from its start once more; None when it can be sent only once (Go: GetBody)."""
        if self._extra is not None and "get_body" in self._extra:
            return self._extra["get_body"]  # type: ignore[no-any-return]
        content = self._content
        if content is not None:
            return lambda: content
        return self._body.again if isinstance(self._body, SourceBody) else None

    @get_body.setter
    def get_body(self, get_body: Callable[[], BodyLike] | None) -> None:
        self._more()["get_body"] = get_body

    # The head.

    @property
    def url(self) -> URL:
        """The parsed request target (Go: Request.URL)."""
        url = self._peek_url()
        self._plain_path = self._target = None  # whoever has the URL may change it
        return url

    @url.setter
    def url(self, url: URL) -> None:
        self._url = url
        self._plain_path = self._target = None

    def _peek_url(self) -> URL:
        """The URL, for those who only read it."""
        url = self._url
        if url is None:
            received = bool(self._head)
            url = self._url = (
                _parse_target(self.method, self.request_uri) if received else URL.parse(self._url_text)
            )
        return url

    @property
    def header(self) -> Header:
        """The header fields, without Host (that is `host`) and Transfer-Encoding (`transfer_encoding`).

        Of a chunked request Trailer is missing too: the names it announces are in `trailer`.
        """
        header = self._header
        if header is None:
            header = self._header = _parse_header(self._head)
        return header

    @header.setter
    def header(self, header: Header) -> None:
        self._header = header

    @property
    def request_uri(self) -> str:
        """The request target exactly as received; "" on a request made by a program."""
        return self._head.split(" ", 2)[1] if self._head else ""

    @property
    def proto_major(self) -> int:
        return int(self.proto[5])

    @property
    def proto_minor(self) -> int:
        return int(self.proto[7])

    def proto_at_least(self, major: int, minor: int) -> bool:
        """Whether the message speaks at least this version of HTTP."""
        return (self.proto_major, self.proto_minor) >= (major, minor)

    @property
    def remote_addr(self) -> str:
        """The peer as "ip:port" ("[v6]:port"); "@" for a unix socket; "" when there is none."""
        if self._extra is not None and "remote_addr" in self._extra:
            return str(self._extra["remote_addr"])
        return self._owner.remote_addr if self._owner is not None else ""

    @remote_addr.setter
    def remote_addr(self, address: str) -> None:
        self._more()["remote_addr"] = address

    @property
    def transfer_encoding(self) -> list[str]:
        """["chunked"] for a chunked body, else []."""
        return ["chunked"] if self.content_length < 0 else []

    @property
    def tls(self) -> object | None:
        """The connection's TLS object (ssl.SSLObject), None in plain text."""
        return self._extra.get("tls") if self._extra else None

    @property
    def response(self) -> object | None:
        """The redirect response that caused this request; None on a server."""
        return self._extra.get("response") if self._extra else None

    def path_value(self, name: str) -> str:
        """What the wildcard `{name}` of the matched pattern stood for, unescaped; "" if there is none."""
        values = self._path_values
        if values and name in values:
            return values[name]
        if self._extra is not None and "path_values" in self._extra:
            return str(self._extra["path_values"].get(name, ""))
        return ""

    def set_path_value(self, name: str, value: str) -> None:
        """Set what `path_value(name)` returns: for routers other than ServeMux.

        A value that a ServeMux has matched is replaced; others survive the match of another mux.
        """
        if self._path_values and name in self._path_values:
            self._path_values[name] = value
        else:
            self._more().setdefault("path_values", {})[name] = value

    # Header fields with a meaning.

    def referer(self) -> str:
        """The Referer field, "" if absent."""
        return self.header.get("Referer", "")

    def user_agent(self) -> str:
        """The User-Agent field, "" if absent."""
        return self.header.get("User-Agent", "")

    def basic_auth(self) -> tuple[str, str] | None:
        """(user, password) of a Basic Authorization field, None if there is none (RFC 7617)."""
        value = self.header.get("Authorization")
        return auth.parse_basic_auth(value) if value else None

    def set_basic_auth(self, user: str, password: str) -> None:
        """Set the Authorization field to Basic authentication with these."""
        self.header["Authorization"] = auth.basic_auth(user, password)

    def cookies(self) -> list[Cookie]:
        """The cookies of the Cookie fields, in order; what cannot be parsed is left out."""
        return read_cookies(self.header.values("Cookie"))

    def cookie(self, name: str) -> Cookie | None:
        """The first cookie of this name, None if there is none."""
        found = read_cookies(self.header.values("Cookie"), name)
        return found[0] if found else None

    def add_cookie(self, cookie: Cookie) -> None:
        """Append `name=value` to the Cookie field; attributes of the cookie are not sent."""
        text = cookie.request_value()
        before = self.header.get("Cookie")
        self.header["Cookie"] = f"{before}; {text}" if before else text

    # The body.

    @property
    def body(self) -> Body:
        """The body's reader; on a request without one it is at its end."""
        body = self._body
        if body is None:
            content = None if self._head else self._content
            body = self._body = Body.of(content or b"")
        return body

    @body.setter
    def body(self, body: Body) -> None:
        self._body = body
        self._content = None

    @property
    def trailer(self) -> Header:
        """The trailer fields: complete when the body has been read to its end."""
        extra = self._more()
        if "trailer" not in extra:
            extra["trailer"] = Header()
        return extra["trailer"]  # type: ignore[no-any-return]

    async def text(self) -> str:
        """The whole body as str: the charset of Content-Type, else UTF-8 (bad bytes become U+FFFD)."""
        data = await self.body.read()
        try:
            return decode_text(data, self.header.get("Content-Type", ""))
        except LookupError as error:
            raise StatusError(415, str(error)) from None

    async def json(self) -> Any:
        """The whole body parsed as JSON. StatusError(400) when it is none: uncaught, it is the answer."""
        data = await self.body.read()
        try:
            return json.loads(data)
        except ValueError as error:
            raise StatusError(400, f"the request body is not valid JSON: {error}") from None
        except RecursionError:
            raise StatusError(400, "the request body is not valid JSON: nested too deeply") from None

    # Forms.

    async def parse_form(self) -> None:
        """Fill `form` and `post_form` from the query and, for POST, PUT and PATCH, a urlencoded body.

        Raises ValueError with the first thing that was wrong; what could be parsed is there
        all the same. A second call does nothing (Go: ParseForm).
        """
        extra = self._more()
        if "form" in extra:
            return
        content_type = self.header.get("Content-Type", "")
        wanted = self.method in ("POST", "PUT", "PATCH")
        urlencoded = (
            ascii_lower(content_type.partition(";")[0].strip(OWS)) == "application/x-www-form-urlencoded"
        )
        body = await self.body.read() if wanted and urlencoded else b""
        # Go: the form's own limit of 10 MB holds unless the route has set another.
        limit = None if self.body.limit_name == "max_bytes_handler" else MAX_FORM_BYTES
        result = parse_form(self.method, self.url.raw_query, content_type, body, max_bytes=limit)
        extra["form"], extra["post_form"] = result.form, result.post_form
        if result.error is not None:
            raise result.error

    async def parse_multipart_form(self, max_memory: int = 32 << 20) -> MultipartForm:
        """Parse a multipart/form-data body; its values join `form` and `post_form`.

        max_memory: bytes of file parts kept in memory; larger ones go to temporary files,
        which `multipart_form.remove_all()` deletes. Raises ValueError for a body of another
        type or a malformed one (Go: ParseMultipartForm).
        """
        from prefork.http.message.multipart import parse_multipart

        extra = self._more()
        problem: ValueError | None = None
        try:
            await self.parse_form()
        except ValueError as error:
            problem = error
        if "multipart_form" not in extra:
            parsed = await parse_multipart(self.body, self.header.get("Content-Type", ""), max_memory)
            extra["multipart_form"] = parsed
            for name, values in parsed.value.items():
                extra["form"].setdefault(name, []).extend(values)
                extra["post_form"].setdefault(name, []).extend(values)
        if problem is not None:
            raise problem
        return extra["multipart_form"]  # type: ignore[no-any-return]

    @property
    def form(self) -> dict[str, list[str]]:
        """Body and query parameters, the body's first: complete after `await r.parse_form()`."""
        return self._parsed("form")

    @property
    def post_form(self) -> dict[str, list[str]]:
        """The body's parameters: complete after `await r.parse_form()`."""
        return self._parsed("post_form")

    @property
    def multipart_form(self) -> MultipartForm | None:
        """The parsed multipart form: set by `await r.parse_multipart_form()`."""
        return self._extra.get("multipart_form") if self._extra else None

    def release(self) -> None:
        """Delete what the request keeps outside memory: the server calls it when the handler is done."""
        form = self.multipart_form
        if form is not None:
            form.remove_all()

    def form_value(self, name: str) -> str:
        """The first value of a parameter, "" if there is none.

        Before `parse_form` has been awaited only the query is known.
        """
        if self._extra is not None and "form" in self._extra:
            values = self._extra["form"].get(name)
        else:
            values = self.url.query().get(name)
        return values[0] if values else ""

    def _parsed(self, which: str) -> dict[str, list[str]]:
        if self._extra is None or which not in self._extra:
            raise LocalProtocolError(f"r.{which} is made by `await r.parse_form()`: call it first")
        return self._extra[which]  # type: ignore[no-any-return]

    # The other end.

    @property
    def disconnected(self) -> Notice:
        """Set when the client has gone, or has shut down its sending side.

        The handler is told, not killed: see `cancel_on_disconnect`.
        """
        return self._owner.disconnected if self._owner is not None else self._own_notice("disconnected")

    @property
    def shutting_down(self) -> Notice:
        """Set when the server drains: long streams should come to their end."""
        return self._owner.shutting_down if self._owner is not None else self._own_notice("shutting_down")

    @property
    def executor(self) -> Executor | None:
        """The server's bounded pool of threads; None, the loop's own, on a request made by a program."""
        return self._owner.executor if self._owner is not None else None

    @contextlib.asynccontextmanager
    async def cancel_on_disconnect(self) -> AsyncIterator[None]:
        """Cancel the body of the `async with` when the client leaves; it ends in AbortHandler.

        async with r.cancel_on_disconnect():
            rows = await slow_query()
        """
        task = asyncio.current_task()
        assert task is not None, "cancel_on_disconnect needs a task: use it in an async handler"
        left = False

        async def watch() -> None:
            nonlocal left
            await self.disconnected.wait()
            left = True
            task.cancel()

        watcher = asyncio.get_running_loop().create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if left and task.uncancel() == 0:
                raise AbortHandler("the client left") from None
            raise
        finally:
            watcher.cancel()
            # The watcher must be gone before we are: a task without an owner is a leak.
            await asyncio.wait([watcher])

    def _own_notice(self, name: str) -> Notice:
        notice = self._more().setdefault(name, Notice())
        assert isinstance(notice, Notice)
        return notice

    def _more(self) -> dict[str, Any]:
        if self._extra is None:
            self._extra = {}
        return self._extra

    def _shallow_copy(self) -> Request:
        copy = Request.__new__(Request)
        for name in Request.__slots__:
            if hasattr(self, name):  # a received request lacks what only sending needs
                setattr(copy, name, getattr(self, name))
        return copy

    def clone(self) -> Request:
        """A copy whose URL, header, trailer and forms are its own; the body is shared (Go: Clone)."""
        copy = self._shallow_copy()
        copy._url = self._url.clone() if self._url is not None else None
        copy._header = self.header.clone()
        copy._path_values = dict(self._path_values) if self._path_values else None
        if copy._body is None and self._head:
            copy._body = self.body
        if self._extra is not None:
            copy._extra = extra = dict(self._extra)
            for form in ("form", "post_form"):
                if form in extra:
                    extra[form] = {name: list(values) for name, values in extra[form].items()}
            if "trailer" in extra:
                extra["trailer"] = extra["trailer"].clone()
            if "path_values" in extra:
                extra["path_values"] = dict(extra["path_values"])
        return copy

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.request_uri or self._peek_url().redacted()} {self.proto}>"


def _parse_target(method: str, target: str) -> URL:
    """The URL of a received request target (RFC 9112 section 3.2); it has been checked already."""
    if method == "CONNECT" and not target.startswith("/"):
        url = URL.parse_request_uri("http://" + target)
        url.scheme = ""
        return url
    return URL.parse_request_uri(target)


def _parse_header(head: str) -> Header:
    """The Header of a received request's head."""
    fields = parse_fields(head)
    fields.pop("Host", None)
    fields.pop("Transfer-Encoding", None)
    return Header._of(fields)


class Target:
    """Where the text of a URL leads, for a request that nobody looks at more closely.

    scheme, host (with its port), uri (path and query), addr ("host:port" with the port filled in)
    and key, by which a Transport's pool knows connections that go there directly. get_head: the
    head of a GET without anything special, when one has been sent.
    """

    __slots__ = ("addr", "get_head", "host", "key", "scheme", "uri")

    def __init__(self, scheme: str, host: str, uri: str) -> None:
        self.scheme = scheme
        self.host = host
        self.uri = uri
        self.addr = host if ":" in host else f"{host}:{'80' if scheme == 'http' else '443'}"
        self.key = f"|{scheme}|{self.addr}"
        self.get_head = b""


# The usual URL: it is sent as it is written, and parsing it would neither change nor refuse it.
_usual_url = re.compile(
    r"(https?)://([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[1-9][0-9]{0,4})?)(/[A-Za-z0-9/._~-]*)?(\?[A-Za-z0-9/._~=&+%-]*[A-Za-z0-9=])?"
).fullmatch

_targets: dict[str, Target | None] = {}
_TARGETS_LIMIT = 1024  # texts remembered; most programs ask for few, in a loop


def _find_target(text: str) -> Target | None:
    """The target of a URL's text; None when the URL must be parsed to know."""
    match = _usual_url(text)
    target = Target(match[1], match[2], (match[3] or "/") + (match[4] or "")) if match else None
    if len(text) <= 256:
        if len(_targets) >= _TARGETS_LIMIT:
            _targets.clear()
        _targets[text] = target
    return target
