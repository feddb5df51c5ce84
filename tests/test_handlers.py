"""strip_prefix, max_bytes_handler, allow_query_semicolons, chain."""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.errors import MaxBytesError
from prefork.http.handler import HandlerFunc
from prefork.http.handlers.chain import chain
from prefork.http.handlers.max_bytes import max_bytes_handler
from prefork.http.handlers.replies import redirect, redirect_handler, set_cookie, write_json
from prefork.http.handlers.semicolons import allow_query_semicolons
from prefork.http.handlers.strip_prefix import strip_prefix
from prefork.http.message.body import Body
from prefork.http.message.cookie import Cookie
from prefork.http.message.header import Header
from prefork.http.message.request import Request
from prefork.http.message.url import URL
from prefork.http.server.mux import ServeMux
from prefork.http.server.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Recorder:
    def __init__(self) -> None:
        self.header = Header()
        self.status = 0
        self.body = b""

    def write_header(self, status: int) -> None:
        self.status = status

    def write(self, data: bytes | str) -> None:
        self.status = self.status or 200
        self.body += data if isinstance(data, bytes) else data.encode()


def received(target: str, method: str = "GET", body: bytes = b"") -> Request:
    """A request as a server has it: parsed from a target, with the mux's shortcut."""
    r = Request(method, URL.parse_request_uri(target), body=body)
    if "%" not in target:
        r._plain_path = target.partition("?")[0]
    return r


# --- strip_prefix ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "target", "path", "raw_path"),
    [
        ("/api", "/api/x", "/x", ""),
        ("/api/", "/api/x", "x", ""),
        ("/api", "/api", "", ""),
        ("/api", "/apix", "x", ""),
        ("/api", "/api/a%2Fb", "/a/b", "/a%2Fb"),
        ("/foo/bar", "/foo/bar%2Fqux", "/qux", "%2Fqux"),
        ("/a b", "/a%20b/c", "/c", ""),
    ],
)
def test_strip_prefix(prefix: str, target: str, path: str, raw_path: str) -> None:
    seen: list[Request] = []
    r = received(target + "?q=1")
    assert strip_prefix(prefix, lambda w, r: seen.append(r))(Recorder(), r) is None
    (inner,) = seen
    assert (inner.url.path, inner.url.raw_path, inner.url.raw_query) == (path, raw_path, "q=1")
    assert inner._plain_path in (None, path)
    assert str(r.url) == target + "?q=1", "the original is as it was"
    assert inner is not r
    assert (inner.header, inner.body, inner.method) == (r.header, r.body, r.method)


@pytest.mark.parametrize("target", ["/", "/ap", "/API/x", "/x/api", "/%61pi%2Fx", "*"])
def test_strip_prefix_without_the_prefix(target: str) -> None:
    w = Recorder()
    strip_prefix("/api", lambda w, r: pytest.fail("called"))(w, received(target))
    assert (w.status, w.body) == (404, b"404 page not found\n")


def test_strip_nothing() -> None:
    def handler(w: Any, r: Any) -> None: ...

    assert strip_prefix("", handler) is handler


def test_a_mux_behind_a_prefix() -> None:
    mux = ServeMux()

    @mux.handle_func("GET /items/{id}")
    def item(w: Any, r: Request) -> None:
        w.write(f"item {r.path_value('id')} {r.pattern}")

    @mux.handle_func("/items")
    def items(w: Any, r: Request) -> None:
        w.write("items")

    outer = ServeMux()
    outer.handle("/v1/", strip_prefix("/v1", mux))
    for target, body in [
        ("/v1/items/a%2Fb", b"item a/b GET /items/{id}"),
        ("/v1/items/7", b"item 7 GET /items/{id}"),
        ("/v1/items", b"items"),
    ]:
        w, r = Recorder(), received(target)
        outer.serve_http(w, r)
        assert w.body == body
        assert r.pattern == "/v1/"


def test_what_the_inner_handler_parses_belongs_to_the_request(run: Run) -> None:
    async def inner(w: Any, r: Request) -> None:
        await r.parse_multipart_form(0)

    async def check() -> None:
        r = received(
            "/x/y",
            "POST",
            b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nz\r\n--b--\r\n',
        )
        r.header["Content-Type"] = "multipart/form-data; boundary=b"
        await strip_prefix("/x", inner)(Recorder(), r)
        assert r.multipart_form is not None, "or the server could not remove its files"
        r.multipart_form.remove_all()

    run(check())


# --- on a real server -----------------------------------------------------------------------


@pytest.mark.both_loops
def test_on_a_server(run: Run) -> None:
    mux = ServeMux()

    @mux.handle_func("GET /login")
    def login(w: Any, r: Request) -> None:
        set_cookie(w, Cookie("s", "x y", http_only=True))
        redirect(w, r, "home?é", 303)

    @mux.handle_func("GET /json")
    async def answer(w: Any, r: Request) -> None:
        await write_json(w, {"a": 1}, 201)

    async def echo(w: Any, r: Request) -> None:
        await w.write(await r.body.read())

    mux.handle("POST /small", max_bytes_handler(echo, 4))
    mux.handle("/old", redirect_handler("/new", 308))
    outer = ServeMux()
    outer.handle("/v1/", strip_prefix("/v1", mux))

    async def check() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setblocking(False)
            server = Server(handler=outer)
            server.start([sock])
            reader, writer = await asyncio.open_connection(*sock.getsockname())

            async def ask(line: str, body: str = "") -> tuple[str, str]:
                length = f"Content-Length: {len(body)}\r\n" if body else ""
                writer.write(f"{line} HTTP/1.1\r\nHost: x\r\n{length}\r\n{body}".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = re.search("(?i)content-length: ([0-9]+)", head)
                text = await reader.readexactly(int(size[1]) if size else 0)
                return head, text.decode()

            head, body = await ask("GET /v1/login")
            assert head.startswith("HTTP/1.1 303 See Other\r\n")
            assert "\r\nLocation: /home?%c3%a9\r\n" in head, "the prefix is unknown to the inner handler"
            assert '\r\nSet-Cookie: s="x y"; HttpOnly\r\n' in head
            assert "\r\nContent-Type: text/html; charset=utf-8\r\n" in head
            assert body == '<a href="/home?é">See Other</a>.\n\n'
            head, body = await ask("GET /v1/json")
            assert head.startswith("HTTP/1.1 201 Created\r\n")
            assert "\r\nContent-Type: application/json\r\n" in head
            assert body == '{"a":1}'
            head, body = await ask("DELETE /v1/old")
            assert head.startswith("HTTP/1.1 308 Permanent Redirect\r\n")
            assert (("Location: /new\r\n" in head), "Content-Type" in head, body) == (True, False, "")
            head, body = await ask("GET /v2")
            assert head.startswith("HTTP/1.1 404 Not Found\r\n")
            assert "\r\nX-Content-Type-Options: nosniff\r\n" in head
            assert body == "404 page not found\n"
            assert (await ask("POST /v1/small", "1234"))[1] == "1234"
            head, body = await ask("POST /v1/small", "12345")
            assert head.startswith("HTTP/1.1 413 Request Entity Too Large\r\n")
            assert "max_bytes_handler" in body
            writer.close()
            await server.shutdown(5.0)

    run(check())


# --- max_bytes_handler ----------------------------------------------------------------------


async def read_all(w: Any, r: Request) -> None:
    w.write(await r.body.read())


async def stream(w: Any, r: Request) -> None:
    async for chunk in r.body:
        w.write(chunk)


@pytest.mark.parametrize("handler", [read_all, stream])
def test_max_bytes(run: Run, handler: Any) -> None:
    async def check() -> None:
        w = Recorder()
        await max_bytes_handler(handler, 5)(w, received("/", "POST", b"12345"))
        assert w.body == b"12345"
        w = Recorder()
        with pytest.raises(MaxBytesError, match=r"limit is 5 bytes \(max_bytes_handler\)") as caught:
            await max_bytes_handler(handler, 5)(w, received("/", "POST", b"123456"))
        assert (caught.value.status, caught.value.limit) == (413, 5)
        assert w.body == (b"12345" if handler is stream else b"")

    run(check())


def test_max_bytes_replaces_the_servers_limit_in_either_direction(run: Run) -> None:
    async def check() -> None:
        for limit in (1, 100):
            r = received("/", "POST")
            r.body = Body.of(b"x" * 50)
            r.body.limit = limit
            w = Recorder()
            await max_bytes_handler(read_all, 50)(w, r)
            assert w.body == b"x" * 50

    run(check())


@pytest.mark.parametrize(("outer", "inner"), [(3, 9), (9, 3)])
def test_the_smallest_of_several_counts(run: Run, outer: int, inner: int) -> None:
    async def check() -> None:
        with pytest.raises(MaxBytesError) as caught:
            await max_bytes_handler(max_bytes_handler(read_all, inner), outer)(
                Recorder(), received("/", "POST", b"1234")
            )
        assert caught.value.limit == 3

    run(check())


def test_a_negative_limit_is_none_at_all(run: Run) -> None:
    async def check() -> None:
        w = Recorder()
        await max_bytes_handler(read_all, -1)(w, received("/"))
        with pytest.raises(MaxBytesError):
            await max_bytes_handler(read_all, -1)(w, received("/", "POST", b"x"))

    run(check())


# --- allow_query_semicolons -----------------------------------------------------------------


def test_semicolons() -> None:
    seen: list[Request] = []
    handler = allow_query_semicolons(lambda w, r: seen.append(r))
    r = received("/p;q?a=1;b=2&c=%3B")
    handler(None, r)
    assert seen[0].url.raw_query == "a=1&b=2&c=%3B"
    assert seen[0].url.query() == {"a": ["1"], "b": ["2"], "c": [";"]}
    assert seen[0].url.path == "/p;q"
    assert seen[0]._plain_path == r._plain_path
    assert r.url.raw_query == "a=1;b=2&c=%3B"


def test_without_semicolons_nothing_is_copied() -> None:
    seen: list[Request] = []
    r = received("/p;q?a=1&b=2")
    allow_query_semicolons(lambda w, r: seen.append(r))(None, r)
    assert seen == [r]


# --- chain ----------------------------------------------------------------------------------


def logged(log: list[str], name: str, *, method: bool = False) -> Callable[[HandlerFunc], Any]:
    def middleware(next: HandlerFunc) -> Any:
        async def serve(w: Any, r: Any) -> None:
            log.append(f"{name}(")
            await (next.serve_http(w, r) if method else next(w, r))
            log.append(f"){name}")

        return serve

    return middleware


class ObjectHandler:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def serve_http(self, w: Any, r: Any) -> None:
        self.log.append("h")


@pytest.mark.parametrize("method", [False, True])
@pytest.mark.parametrize("kind", ["def", "async def", "object", "async object"])
def test_chain(run: Run, kind: str, method: bool) -> None:
    log: list[str] = []

    async def serve(w: Any, r: Any) -> None:
        await asyncio.sleep(0)
        log.append("h")

    class AsyncHandler:
        serve_http = staticmethod(serve)

    handler: Any = {
        "def": lambda w, r: log.append("h"),
        "async def": serve,
        "object": ObjectHandler(log),
        "async object": AsyncHandler(),
    }[kind]

    async def check() -> None:
        chained = chain(handler, logged(log, "a", method=method), logged(log, "b", method=method))
        await chained.serve_http(None, None)
        await chained(None, None)

    run(check())
    assert log == ["a(", "b(", "h", ")b", ")a"] * 2


def test_a_chain_of_plain_functions_needs_no_task() -> None:
    log: list[str] = []

    def middleware(next: HandlerFunc) -> Any:
        def serve(w: Any, r: Any) -> Any:
            log.append("m")
            return next(w, r)

        return serve

    result = chain(lambda w, r: log.append("h"), middleware, middleware)(None, None)
    assert log == ["m", "m", "h"]
    assert not inspect.iscoroutine(result)
    assert list(result.__await__()) == []


def test_a_middleware_may_be_a_class() -> None:
    log: list[str] = []

    class Middleware:
        def __init__(self, next: HandlerFunc) -> None:
            self.next = next

        def serve_http(self, w: Any, r: Any) -> Any:
            log.append("m")
            return self.next.serve_http(w, r)

    chain(ObjectHandler(log), Middleware)(None, None)
    assert log == ["m", "h"]


def test_chain_of_nothing_is_the_handler() -> None:
    handler = HandlerFunc(lambda w, r: None)
    assert chain(handler) is handler


def test_a_forgotten_return_is_told() -> None:
    def forgetful(next: HandlerFunc) -> Any:
        pass

    with pytest.raises(TypeError) as caught:
        chain(lambda w, r: None, forgetful)
    assert "forgetful" in "".join(caught.value.__notes__)
    with pytest.raises(TypeError, match="not a handler"):
        chain(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrap", [lambda h: strip_prefix("/x", h), lambda h: max_bytes_handler(h, 1), allow_query_semicolons]
)
def test_what_is_no_handler_is_refused_at_once(wrap: Callable[[Any], Any]) -> None:
    for nonsense in (None, 7, ObjectHandler):
        with pytest.raises(TypeError, match="not a handler"):
            wrap(nonsense)
