"""ServeMux: which handler answers, what is redirected, refused, and told to the programmer."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.errors import PatternConflict, PatternError
from prefork.http.message.header import Header
from prefork.http.message.request import Request
from prefork.http.message.url import URL
from prefork.http.server import mux as mux_module
from prefork.http.server.head import HeadScanner
from prefork.http.server.mux import Route, ServeMux, _strip_port

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = str(Path(__file__).resolve())


class Recorder:
    """As much of a ResponseWriter as a mux and its replies use."""

    def __init__(self) -> None:
        self.header = Header()
        self.status = 0
        self.body = ""

    def write_header(self, status: int) -> None:
        self.status = self.status or status

    def write(self, data: bytes | str) -> None:
        self.write_header(200)
        self.body += data if isinstance(data, str) else data.decode()


def get(target: str, method: str = "GET", host: str = "x", minor: int = 1) -> Request:
    """A request as the server makes it from the wire."""
    head = f"{method} {target} HTTP/1.{minor}\r\nHost: {host}\r\n\r\n"
    return HeadScanner().scan(head.encode("utf-8", "surrogateescape"), None)  # type: ignore[arg-type]


def serve(mux: ServeMux, r: Request) -> Recorder:
    w = Recorder()
    result = mux.serve_http(w, r)  # type: ignore[arg-type]
    assert result is None
    return w


def make(*patterns: str) -> ServeMux:
    """A mux whose handlers answer with their pattern and the values of its wildcards."""
    mux = ServeMux()
    for pattern in patterns:
        names = re.findall(r"\{(\w+)", pattern)

        def answer(w: Any, r: Request, pattern: str = pattern, names: list[str] = names) -> None:
            assert r.pattern == pattern
            w.write(" ".join([pattern, *(f"{name}={r.path_value(name)}" for name in names)]))

        mux.handle(pattern, answer)
    return mux


def ask(mux: ServeMux, target: str, method: str = "GET", host: str = "x") -> str:
    """What the mux answers: the body for 200, else status and Location or Allow.

    Asked in three ways that must agree: by the shortcuts, without them, and by `handler`.
    """
    r = get(target, method, host)
    w = serve(mux, r)
    long = get(target, method, host)
    long._plain_path = None
    w2 = serve(mux, long)
    assert (w2.status, w2.body, list(w2.header.items())) == (w.status, w.body, list(w.header.items()))
    asked = get(target, method, host)
    handler, pattern = mux.handler(asked)
    assert pattern == r.pattern == long.pattern
    assert asked.pattern == ""
    assert asked._path_values is None
    assert handler is not None
    if w.status == 200:
        return w.body
    extra = w.header.get("Location", "") + w.header.get("Allow", "")
    return f"{w.status} {extra}".rstrip()


# --- which handler --------------------------------------------------------------------------


def test_the_most_specific_pattern_wins() -> None:
    mux = make("/", "/a", "/a/", "/a/{id}", "GET /a/{id}", "GET /a/b", "/a/{id}/c", "/f/{path...}", "/e/{$}")
    assert ask(mux, "/") == "/"
    assert ask(mux, "/a") == "/a"
    assert ask(mux, "/a/") == "/a/"
    assert ask(mux, "/a/b") == "GET /a/b"
    assert ask(mux, "/a/b", "PUT") == "/a/{id} id=b"
    assert ask(mux, "/a/q") == "GET /a/{id} id=q"
    assert ask(mux, "/a/q", "PUT") == "/a/{id} id=q"
    assert ask(mux, "/a/q/c") == "/a/{id}/c id=q"
    assert ask(mux, "/a/q/d") == "/a/"
    assert ask(mux, "/f/x/y.css") == "/f/{path...} path=x/y.css"
    assert ask(mux, "/e/") == "/e/{$}"
    assert ask(mux, "/e/x") == "/"
    assert ask(mux, "/q?a=/b") == "/"


def test_path_values_are_decoded() -> None:
    mux = make("/a/{x}", "/b/{x}/{rest...}")
    assert ask(mux, "/a/x%2Fy%20z") == "/a/{x} x=x/y z"
    assert ask(mux, "/a/caf\u00e9") == "/a/{x} x=café"
    assert ask(mux, "/a/%2e%2e") == "/a/{x} x=.."
    assert ask(mux, "/b/%41/c%2Fd/e") == "/b/{x}/{rest...} x=A rest=c/d/e"
    assert ask(mux, "/b/1/") == "/b/{x}/{rest...} x=1 rest="


def test_methods() -> None:
    mux = make("GET /a", "POST /a", "/any", "CUSTOM /a")
    assert ask(mux, "/a") == ask(mux, "/a", "HEAD") == "GET /a"
    assert ask(mux, "/a", "POST") == "POST /a"
    assert ask(mux, "/a", "CUSTOM") == "CUSTOM /a"
    for method in ("GET", "PURGE", "get", "OPTIONS"):
        assert ask(mux, "/any", method) == "/any"


def test_hosts_come_first() -> None:
    mux = make("/a", "/b", "/c/{x}", "GET h.com/a", "h.com/c/", "GET h.com/{y}", "[::1]/a")
    assert ask(mux, "/a") == "/a"
    assert ask(mux, "/a", host="h.com") == ask(mux, "/a", host="h.com:8080") == "GET h.com/a"
    assert ask(mux, "/a", "PUT", host="h.com") == "/a"
    assert ask(mux, "/b", host="h.com") == "GET h.com/{y} y=b"
    assert ask(mux, "/b", "PUT", host="h.com") == "/b"
    assert ask(mux, "/c/1", host="h.com") == "h.com/c/"
    assert ask(mux, "/c/1", host="H.com") == "/c/{x} x=1"
    assert ask(mux, "/c/1", host="h.com.") == "/c/{x} x=1"
    assert ask(mux, "/d/1", host="h.com") == "404"
    assert ask(mux, "/a", host="[::1]") == "[::1]/a"
    assert ask(mux, "/a", host="[::1]:80") == "/a"  # the name without port has no brackets


def test_an_absolute_target_tells_the_host() -> None:
    mux = make("/a", "h.com/a")
    assert ask(mux, "http://h.com/a", host="x") == "h.com/a"


def test_a_host_pattern_that_comes_late() -> None:
    mux = make("/a", "/b/{x}")
    assert ask(mux, "/a", host="h") == "/a"
    mux.handle("h/a", lambda w, r: w.write("late"))
    mux.handle("/c", lambda w, r: w.write("later"))
    assert ask(mux, "/a", host="h") == "late"
    assert ask(mux, "/a") == "/a"
    assert ask(mux, "/b/1", host="h") == "/b/{x} x=1"
    assert ask(mux, "/c") == ask(mux, "/c", host="h") == "later"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("h", "h"),
        ("h:80", "h"),
        ("h:", "h"),
        (":80", ""),
        ("", ""),
        ("[::1]:80", "::1"),
        ("[::1]", "[::1]"),
        ("a:b:c", "a:b:c"),
        ("[a]b:1", "[a]b:1"),
        ("a]:1", "a]:1"),
        ("[a:1", "[a:1"),
    ],
)
def test_ports_are_stripped(host: str, name: str) -> None:
    assert _strip_port(host) == name


# --- redirects ------------------------------------------------------------------------------


def test_unclean_paths_are_redirected() -> None:
    mux = make("/", "GET /g", "/a%2Fb/c", "/{x}/y")
    assert ask(mux, "//a") == "307 /a"
    assert ask(mux, "/a/../g") == "307 /g"
    assert ask(mux, "/./g", "POST") == "307 /g"
    assert ask(mux, "/a/./b/") == "307 /a/b/"
    assert ask(mux, "//x?q=1&r=%2F") == "307 /x?q=1&r=%2F"
    assert ask(mux, "/x//y") == "307 /x/y"
    assert ask(mux, "/a%2Fb//c") == "307 /a%2Fb/c"
    assert ask(mux, "/..%2f//c") == "307 /..%2f/c"
    # Escaped dots are data, not a way up.
    assert ask(mux, "/%2e%2e/y") == "/{x}/y x=.."
    assert ask(mux, "/.well-known") == "/"


def test_an_unclean_path_is_redirected_even_to_nothing() -> None:
    mux = make("/a")
    assert ask(mux, "//nope") == "307 /nope"
    assert mux.handler(get("//nope"))[1] == ""


def test_a_redirect_never_leaves_the_server() -> None:
    mux = make("/{rest...}")
    for target in ("//evil.example/x", "///evil.example", "/.//evil.example", "/a/..//evil.example"):
        status, _, location = ask(mux, target).partition(" ")
        assert status == "307"
        assert re.match(r"/[^/\\]", location)


def test_subtrees_are_redirected_to() -> None:
    mux = make("/a/", "/b/{$}", "/c/{rest...}", "POST /d/", "/e/{x}/", "/e/f")
    assert ask(mux, "/a") == "307 /a/"
    assert ask(mux, "/a?q") == "307 /a/?q"
    assert ask(mux, "/b") == "307 /b/"
    assert ask(mux, "/c", "PUT") == "307 /c/"
    assert ask(mux, "/d", "POST") == "307 /d/"
    assert ask(mux, "/d") == "405 POST"
    assert ask(mux, "/e/1") == "307 /e/1/"
    assert ask(mux, "/e/f") == "/e/f"
    assert ask(mux, "/e/%41%2F") == "307 /e/%41%2F/"
    assert ask(mux, "/x/../a") == "307 /a/"  # cleaning and slash in one
    assert ask(mux, "//a?q") == "307 /a/?q"


def test_a_subtree_further_up_does_not_hinder_the_redirect() -> None:
    mux = make("/", "/a/b/", "/{x}/c/{$}")
    assert ask(mux, "/a/b") == "307 /a/b/"
    assert ask(mux, "/a/c") == "307 /a/c/"
    assert ask(mux, "/q/c") == "307 /q/c/"
    assert ask(mux, "/q/d") == "/"
    assert ask(mux, "/a/b/x") == "/a/b/"


def test_no_redirect_from_an_exact_match() -> None:
    mux = make("/a", "/a/", "/{x}", "/{x}/")
    assert ask(mux, "/a") == "/a"
    assert ask(mux, "/b") == "/{x} x=b"
    assert ask(mux, "/b/") == "/{x}/ x=b"


def test_the_redirect_of_a_host_to_its_subtree() -> None:
    mux = make("h/a/", "/a", "/b/")
    assert ask(mux, "/a", host="h") == "/a"  # matched exactly, though without host
    assert ask(mux, "/b", host="h") == "307 /b/"
    assert ask(make("h/a/", "/"), "/a", host="h") == "307 /a/"


def test_the_pattern_of_a_redirect_is_that_which_will_match() -> None:
    mux = make("GET /a/", "/b/{x}")
    assert mux.handler(get("/a"))[1] == "GET /a/"
    assert mux.handler(get("//b/1"))[1] == "/b/{x}"
    assert repr(mux.handler(get("/a?q=1"))[0]) == "<redirect to /a/?q=1>"


def test_characters_that_must_be_escaped_in_a_redirect() -> None:
    mux = make("/{x}/")
    assert ask(mux, "//{a}") == "307 /%7Ba%7D/"
    assert ask(mux, '/"><script>') == "307 /%22%3E%3Cscript%3E/"


# --- what is not there ----------------------------------------------------------------------


def test_404() -> None:
    mux = make("/a", "/b/{x}", "/c/{$}")
    for target in ("/", "/b", "/b/", "/a/", "/c/x", "/A", "/b/1/2", "/%2F/%2F"):
        assert ask(mux, target) == "404"
    w = serve(mux, get("/nope"))
    assert w.body == "404 page not found\n"
    assert w.header["Content-Type"] == "text/plain; charset=utf-8"
    assert ask(ServeMux(), "/") == "404"


def test_405_names_the_methods() -> None:
    mux = make("GET /a", "PUT /a", "HEAD /h", "POST /{x}", "GET /t/", "PUT /t", "DELETE h/a")
    assert ask(mux, "/a", "DELETE") == "405 GET, HEAD, POST, PUT"
    assert ask(mux, "/a", "OPTIONS", host="h") == "405 DELETE, GET, HEAD, POST, PUT"
    assert ask(mux, "/h", "GET") == "405 HEAD, POST"
    assert ask(mux, "/t", "DELETE") == "405 GET, HEAD, POST, PUT"
    assert ask(mux, "/t/x", "POST") == "405 GET, HEAD"
    w = serve(mux, get("/a", "DELETE"))
    assert w.body == "Method Not Allowed\n"
    assert mux.handler(get("/a", "DELETE"))[1] == ""
    assert repr(mux.handler(get("/h"))[0]) == "<405, allowed: HEAD, POST>"


def test_asterisk() -> None:
    mux = make("/")
    w = serve(mux, get("*", "OPTIONS"))
    assert (w.status, w.body, w.header.get("Connection")) == (400, "", "close")
    w = serve(mux, get("*", "OPTIONS", minor=0))
    assert (w.status, w.header.get("Connection")) == (400, None)


# --- CONNECT --------------------------------------------------------------------------------


def connect(url: str, host: str | None = None) -> Request:
    return Request("CONNECT", url, host=host)


def test_connect_keeps_path_and_port() -> None:
    mux = make("/a", "/a/../b", "/t/", "h/a", "h:1/a", "h:1/t2/", "CONNECT /c//d")
    assert serve(mux, connect("/a/../b", "x")).body == "/a/../b"
    assert serve(mux, connect("/c//d", "x")).body == "CONNECT /c//d"
    assert serve(mux, connect("http://h/a")).body == "h/a"
    assert serve(mux, connect("http://h:1/a")).body == "h:1/a"
    assert serve(mux, connect("http://h:2/a")).body == "/a"
    # The slash redirect looks at the URL's host, the rest at the request's.
    assert serve(mux, connect("http://h:1/t2", "h")).header["Location"] == "/t2/"
    assert serve(mux, connect("/t2", "h:1")).status == 404
    assert serve(mux, connect("/t", "h")).status == 307


def test_connect_to_an_authority_has_no_path() -> None:
    mux = make("/", "h:443/")
    assert ask(mux, "h:443", "CONNECT", host="h:443") == "404"
    assert serve(make("CONNECT h:443/a"), get("h:443", "CONNECT", host="h:443")).status == 404


def test_connect_with_an_empty_segment_matches_no_wildcard() -> None:
    mux = make("/{x}/", "/{x}/b")
    for path in ("//", "//b", "/a//"):
        r = connect(path, "h")
        assert r.path_value("x") == ""
        w = serve(mux, r)
        assert w.body == ("/{x}/ x=a" if path == "/a//" else "404 page not found\n")


# --- handlers -------------------------------------------------------------------------------


def test_what_the_handler_returns_is_passed_on() -> None:
    mux = ServeMux()

    class Awaited:
        def __await__(self) -> Iterator[None]:
            return iter(())

    awaited = Awaited()
    mux.handle_func("/literal", lambda w, r: awaited)
    mux.handle_func("/{wild}", lambda w, r: awaited)
    mux.handle_func("/a/{wild...}", lambda w, r: awaited)
    for target in ("/literal", "/x", "/%78", "/a/b/c"):
        assert mux.serve_http(Recorder(), get(target)) is awaited  # type: ignore[arg-type]


def test_async_handlers() -> None:
    mux = ServeMux()

    @mux.handle_func("/{name}")
    async def hello(w: Any, r: Request) -> None:
        w.write("hello " + r.path_value("name"))

    w = Recorder()
    coroutine: Any = mux.serve_http(w, get("/you"))  # type: ignore[arg-type]
    assert w.status == 0
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert w.body == "hello you"


def test_a_handler_is_given_back_as_it_was() -> None:
    class Page:
        def serve_http(self, w: Any, r: Any) -> None:
            w.write("page")

    mux, page = ServeMux(), Page()
    mux.handle("/page", page)
    mux.handle("/mux/", ServeMux())
    assert mux.handler(get("/page")) == (page, "/page")
    assert serve(mux, get("/page")).body == "page"


def test_muxes_nest() -> None:
    inner = make("/api/items/{id}", "/api/fixed")
    outer = ServeMux()
    outer.handle("/{version}/", inner)
    r = get("/api/items/7")
    assert serve(outer, r).body == "/api/items/{id} id=7"
    assert r.pattern == "/api/items/{id}"
    assert r.path_value("version") == ""
    r = get("/api/fixed")
    assert serve(outer, r).body == "/api/fixed"
    assert r.path_value("version") == ""
    assert serve(outer, get("/api/nope")).status == 404


def test_a_url_that_was_replaced_is_what_counts() -> None:
    mux = make("/a", "/b", "/c/{x}", "/d%2Fe")
    for path, want in (
        ("/b", "/b"),
        ("/c/ x", "/c/{x} x= x"),
        ("/c/%", "/c/{x} x=%"),
        ("/c/a?b", "/c/{x} x=a?b"),
    ):
        r = get("/a")
        r.url = URL(path=path)
        assert serve(mux, r).body == want
    r = get("/a")
    r.url = URL(path="/d/e", raw_path="/d%2Fe")
    assert serve(mux, r).body == "/d%2Fe"


# --- registering ----------------------------------------------------------------------------


def line() -> int:
    return sys._getframe(1).f_lineno


def test_a_conflict_names_both_places() -> None:
    mux = ServeMux()
    mux.handle("/posts/{id}", print)
    first = line() - 1
    with pytest.raises(PatternConflict) as caught:
        mux.handle_func("/{kind}/latest", print)
    second = line() - 1
    assert str(caught.value) == (
        f'pattern "/{{kind}}/latest" (registered at {HERE}:{second}) conflicts with '
        f'pattern "/posts/{{id}}" (registered at {HERE}:{first}):\n'
        '/{kind}/latest and /posts/{id} both match some paths, like "/posts/latest".\n'
        "But neither is more specific than the other.\n"
        '/{kind}/latest matches "/kind/latest", but /posts/{id} doesn\'t.\n'
        '/posts/{id} matches "/posts/id", but /{kind}/latest doesn\'t.'
    )


def test_a_conflict_through_decorators() -> None:
    mux = ServeMux()
    first = line() + 2

    @mux.handle_func("GET /a")
    def one(w: Any, r: Any) -> None: ...

    second = line() + 4
    with pytest.raises(PatternConflict) as caught:
        # The line of the decorator, not of the function.

        @mux.handle_func("GET /a")
        def two(w: Any, r: Any) -> None: ...

    assert f"{HERE}:{first}" in str(caught.value)
    assert f"{HERE}:{second}" in str(caught.value)
    assert str(caught.value).endswith("\nGET /a matches the same requests as GET /a")


def test_the_decorator_returns_the_function() -> None:
    mux = ServeMux()

    def f(w: Any, r: Any) -> None: ...

    assert mux.handle_func("/a")(f) is f
    assert mux.handle_func("/b", f) is None  # type: ignore[func-returns-value]
    assert mux.handler(get("/a")) == (f, "/a")


def test_what_cannot_be_registered_leaves_the_mux_as_it_was() -> None:
    mux = make("/a", "/b/{x}")
    before = repr(mux)
    for pattern, handler, error, text in (
        ("", print, PatternError, "http: invalid pattern"),
        ("/{x", print, PatternError, r'parsing "/{x": at offset 1: bad wildcard segment'),
        ("/c", None, PatternError, "http: nil handler"),
        ("/c", 7, TypeError, "not a handler: 7"),
        ("/c", ServeMux, TypeError, "it is a class: pass an instance"),
        ("/a", print, PatternConflict, "matches the same requests as"),
        ("/{y}/c", print, PatternConflict, "neither is more specific"),
        ("h/{x}/{x}", print, PatternError, "duplicate wildcard name"),
    ):
        for register in (mux.handle, mux.handle_func):
            with pytest.raises(error, match=text):
                register(pattern, handler)  # type: ignore[arg-type]
    assert repr(mux) == before == "<ServeMux 2 routes>"
    assert ask(mux, "/c") == "404"
    assert ask(mux, "/a", host="h") == "/a"


def test_a_bad_pattern_in_a_decorator_is_refused_before_there_is_a_function() -> None:
    with pytest.raises(PatternError, match="empty wildcard"):
        ServeMux().handle_func("/{}")


def test_a_conflict_on_a_new_host_does_not_make_the_host() -> None:
    mux = make("h/a")
    with pytest.raises(PatternConflict):
        mux.handle("h/a", print)
    mux.handle("g/a", lambda w, r: w.write("g"))
    assert repr(mux) == "<ServeMux 2 routes, 2 hosts>"
    assert ask(mux, "/a", host="g") == "g"


def test_routes() -> None:
    mux = ServeMux()
    mux.handle("GET h/a/{x}", print)
    mux.handle("/", mux)
    here = line()
    first, second = mux.routes()
    assert isinstance(first, Route)
    assert (first.pattern, first.handler, first.handler_name) == ("GET h/a/{x}", print, "builtins.print")
    assert first.location == f"{HERE}:{here - 2}"
    assert second.handler_name == "<ServeMux 2 routes, 1 hosts>"
    mux.routes().clear()
    assert len(mux.routes()) == 2


def test_the_default_mux(monkeypatch: pytest.MonkeyPatch) -> None:
    mux = ServeMux()
    monkeypatch.setattr(mux_module, "default_serve_mux", mux)
    mux_module.handle("/a", lambda w, r: w.write("a"))

    @mux_module.handle_func("/b")
    def b(w: Any, r: Any) -> None:
        w.write("b")

    mux_module.handle_func("/c", b)
    here = line()
    assert ask(mux, "/a") == "a"
    assert ask(mux, "/b") == ask(mux, "/c") == "b"
    assert [r.location for r in mux.routes()][2] == f"{HERE}:{here - 1}"
    assert b.__name__ == "b"


def test_thousands_of_routes_are_registered_without_comparing_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = 0
    conflicts = mux_module.conflicts

    def counting(p1: Any, p2: Any) -> bool:
        nonlocal compared
        compared += 1
        return conflicts(p1, p2)

    monkeypatch.setattr(mux_module, "conflicts", counting)
    mux = ServeMux()
    mux.handle("/", print)
    for n in range(1000):
        mux.handle(f"/r{n}", print)
        mux.handle(f"GET /r{n}/{{id}}", print)
        mux.handle(f"/static{n}/", print)
    assert compared <= 3 * 3000


def test_registering_while_serving() -> None:
    mux = make("/a", "/w/{x}")
    stop = threading.Event()
    faults: list[str] = []

    def keep_asking() -> None:
        while not stop.is_set():
            for target, want in (("/a", "/a"), ("/w/1", "/w/{x} x=1"), ("/%61", "/a")):
                w = serve(mux, get(target))
                if w.body != want:
                    faults.append(f"{target}: {w.status} {w.body}")

    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(300):
        mux.handle(f"/r{n}/{{x}}/{n}", print)
        mux.handle(f"POST /w/{n}", print)
        mux.handle(f"PUT /a/{'b/' * (n % 100)}{n}", print)
        if n % 100 == 99:
            mux.handle(f"h{n}/a", print)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults


def test_registering_from_many_threads() -> None:
    mux = ServeMux()
    refused: list[str] = []
    start = threading.Barrier(4)

    def register() -> None:
        start.wait()
        for n in range(50):
            try:
                mux.handle(f"/r/{n}", print)
            except PatternConflict:
                refused.append(f"/r/{n}")

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mux.routes()) == 50
    assert len(refused) == 150


# --- the shortcut law -----------------------------------------------------------------------

parts = st.sampled_from(["a", "b", "{%s}", "%61", "a%2Fb", ".a"])
pattern_texts = st.builds(
    lambda method, host, path, end: (
        method
        + host
        + "/"
        + "/".join(p.replace("%s", f"x{n}") for n, p in enumerate([*path, end] if path else [end]))
    ),
    st.sampled_from(["", "", "GET ", "HEAD ", "POST ", "CONNECT "]),
    st.sampled_from(["", "", "", "h"]),
    st.lists(parts, max_size=2),
    st.sampled_from(["a", "", "{$}", "{rest...}", "{last}", "b"]),
)
targets = st.lists(
    st.sampled_from(["a", "b", "c", ".a", "..", ".", "", "%61", "a%2Fb", "%2e%2e", "{a}", "é"]), max_size=4
).map(lambda segments: "/" + "/".join(segments))


@given(
    st.lists(pattern_texts, min_size=1, max_size=10),
    st.lists(targets, min_size=1, max_size=6),
    st.sampled_from(["GET", "HEAD", "POST", "PURGE", "CONNECT"]),
    st.sampled_from(["x", "h", "h:80"]),
)
def test_however_it_is_asked_a_mux_gives_one_answer(
    texts: list[str], paths: list[str], method: str, host: str
) -> None:
    kept: list[str] = []
    for text in texts:
        try:
            make(*kept, text)
        except PatternConflict:
            continue
        kept.append(text)
    mux = make(*kept)
    for path in paths:
        ask(mux, path, method, host)
