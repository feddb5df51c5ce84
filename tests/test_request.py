"""Request: made by a program, and as a server receives it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.errors import AbortHandler, LocalProtocolError, MaxBytesError, StatusError
from prefork.http.message import request as module
from prefork.http.message.body import Body
from prefork.http.message.cookie import Cookie
from prefork.http.message.header import Header
from prefork.http.message.request import Notice, Request
from prefork.http.message.url import URL, URLError
from prefork.http.server.head import HeadScanner

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., Any]


class Owner:
    """What a connection is to its requests."""

    def __init__(self) -> None:
        self.remote_addr = "10.0.0.7:53122"
        self.disconnected = Notice()
        self.shutting_down = Notice()
        self.executor: Any = None


def received(line: str, *fields: str, owner: Owner | None = None) -> Request:
    head = "\r\n".join([line, "Host: example.com", *fields, "", ""]).encode("latin-1")
    return HeadScanner().scan(head, owner or Owner())


# --- made by a program ----------------------------------------------------------------------


def test_a_request_of_ones_own() -> None:
    r = Request("PUT", "http://example.com:81/items/7?full=1#x", header={"accept": "text/html"}, body="héllo")
    assert (r.method, r.host, r.proto) == ("PUT", "example.com:81", "HTTP/1.1")
    assert (r.url.path, r.url.raw_query, r.url.fragment) == ("/items/7", "full=1", "x")
    assert (r.header["Accept"], r.content_length) == ("text/html", 6)
    assert (r.close, r.pattern, r.request_uri, r.remote_addr) == (False, "", "", "")
    assert (r.proto_major, r.proto_minor) == (1, 1)
    assert r.proto_at_least(1, 0)
    assert r.proto_at_least(1, 1)
    assert not r.proto_at_least(1, 2)
    assert not r.proto_at_least(2, 0)
    assert (r.transfer_encoding, list(r.trailer), r.tls, r.response, r.executor) == ([], [], None, None, None)
    assert (r.referer(), r.user_agent()) == ("", "")
    assert repr(r) == "<Request PUT http://example.com:81/items/7?full=1#x HTTP/1.1>"


def test_what_it_is_made_of(run: Run) -> None:
    url = URL.parse("/a")
    header = Header({"A": "1"})
    body = Body.of(b"xyz")
    r = Request("", url, header=header, body=body, host="other")
    assert (r.method, r.host) == ("GET", "other")
    assert r.url is url
    assert r.header is header
    assert r.body is body
    assert r.content_length == 3
    for data in (b"abc", bytearray(b"abc"), memoryview(b"abc"), "abc"):
        assert run(Request("POST", "/", body=data).body.read()) == b"abc"
    assert run(Request("GET", "/").body.read()) == b""
    assert Request("POST", "/", body=Body(content_length=-1)).transfer_encoding == ["chunked"]
    assert Request("GET", "/", header=[("a", "1"), ("A", "2")]).header.values("a") == ["1", "2"]


@pytest.mark.parametrize("method", ["GE T", "GET\r\n", "GÉT", "(", "\u212a"])
def test_a_method_is_a_token(method: str) -> None:
    with pytest.raises(ValueError, match="invalid method"):
        Request(method, "/")


def test_what_cannot_be_a_request() -> None:
    with pytest.raises(URLError):
        Request("GET", "http://[::1/")
    with pytest.raises(TypeError, match="body must be"):
        Request("POST", "/", body=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Request("POST", "/", header={"A": 5})  # type: ignore[dict-item]


# --- received -------------------------------------------------------------------------------


def test_url_and_header_are_made_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real_target, real_header = module._parse_target, module._parse_header
    monkeypatch.setattr(module, "_parse_target", lambda *a: made.append("url") or real_target(*a))
    monkeypatch.setattr(module, "_parse_header", lambda *a: made.append("header") or real_header(*a))
    r = received("GET /a/b?c=d HTTP/1.1", "X-A: 1")
    assert (r.method, r.host, r.request_uri, r.close, r.content_length) == (
        "GET",
        "example.com",
        "/a/b?c=d",
        False,
        0,
    )
    assert (repr(r), r.path_value("x"), r.pattern) == ("<Request GET /a/b?c=d HTTP/1.1>", "", "")
    assert made == []
    assert r.url.path == r.url.path == "/a/b"
    assert made == ["url"]
    assert r.url is r.url
    assert r.header["X-A"] == r.header["x-a"] == "1"
    assert r.header is r.header
    assert made == ["url", "header"]


def test_the_shortcut_of_the_mux_goes_when_the_url_may_have_changed() -> None:
    r = received("GET /a HTTP/1.1")
    assert r._plain_path == "/a"
    r.url.path = "/b"
    assert r._plain_path is None
    r = received("GET /a HTTP/1.1")
    r.url = URL.parse("/b")
    assert r._plain_path is None
    assert r.url.path == "/b"


def test_the_fields_that_have_a_name_of_their_own() -> None:
    r = received("GET / HTTP/1.1", "Referer: http://a/", "User-Agent: curl/8", "Authorization: Basic dTpw")
    assert r.referer() == "http://a/"
    assert r.user_agent() == "curl/8"
    assert r.basic_auth() == ("u", "p")
    assert "Host" not in r.header
    r.header = Header()
    assert r.user_agent() == ""
    assert r.basic_auth() is None
    r.set_basic_auth("user", "päss:word")
    assert r.basic_auth() == ("user", "päss:word")
    r.header["Authorization"] = "Bearer x"
    assert r.basic_auth() is None


def test_cookies() -> None:
    r = received("GET / HTTP/1.1", "Cookie: a=1; b=2", 'Cookie: a=3; bad(=1; c="q"')
    assert [(c.name, c.value) for c in r.cookies()] == [("a", "1"), ("b", "2"), ("a", "3"), ("c", "q")]
    first = r.cookie("a")
    assert first is not None
    assert first.value == "1"
    assert r.cookie("none") is None
    own = Request("GET", "/")
    assert own.cookies() == []
    own.add_cookie(Cookie("a", "1", path="/x"))
    own.add_cookie(Cookie("b", "2"))
    assert own.header.values("Cookie") == ["a=1; b=2"]


def test_the_address_of_the_client() -> None:
    r = received("GET / HTTP/1.1")
    assert r.remote_addr == "10.0.0.7:53122"
    r.remote_addr = "192.0.2.1:9"  # as a middleware behind a proxy does
    assert r.remote_addr == "192.0.2.1:9"
    own = Request("GET", "/")
    own.remote_addr = "192.0.2.1:9"
    assert own.remote_addr == "192.0.2.1:9"


@pytest.mark.parametrize("proto", ["HTTP/1.0", "HTTP/1.1", "HTTP/1.2"])
def test_the_version(proto: str) -> None:
    r = received(f"GET /%41 {proto}")
    assert (r.proto, r.proto_major, r.proto_minor) == (proto, 1, int(proto[-1]))
    assert r.proto_at_least(1, 1) is (proto != "HTTP/1.0")


def test_path_values() -> None:
    for r in (received("GET /x HTTP/1.1"), Request("GET", "/x")):
        assert r.path_value("id") == ""
        r.set_path_value("id", "7")
        r.set_path_value("name", "n")
        assert (r.path_value("id"), r.path_value("name"), r.path_value("x")) == ("7", "n", "")
        r._path_values = {"id": "8"}  # what a mux does when a pattern matches
        assert (r.path_value("id"), r.path_value("name")) == ("8", "n")
        r.set_path_value("id", "9")
        assert r.path_value("id") == "9"


# --- body -----------------------------------------------------------------------------------


def test_json(run: Run) -> None:
    value = {"a": [1, 2.5, None, True, "é"]}
    assert run(Request("POST", "/", body=json.dumps(value)).json()) == value
    assert run(Request("POST", "/", body=json.dumps(value).encode("utf-16")).json()) == value


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nope", b"{} {}", b"\xff", b'"\xff"', b"[" * 200_000, b'{"a":' * 100_000, b"9" * 100_000],
    ids=lambda body: f"{body[:5]!r} {len(body)}",
)
def test_what_is_no_json_is_400(run: Run, body: bytes) -> None:
    with pytest.raises(StatusError, match="not valid JSON") as caught:
        run(Request("POST", "/", body=body).json())
    assert caught.value.status == 400
    assert len(caught.value.text) < 300, "the client's bytes are not sent back"


def text_request(content_type: str | None, body: bytes) -> Request:
    return Request(
        "POST", "/", header={"Content-Type": content_type} if content_type is not None else None, body=body
    )


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        (None, "é".encode(), "é"),
        ("text/plain", "é".encode(), "é"),
        ("text/plain; charset=utf-8", "é".encode(), "é"),
        ('text/plain; CHARSET = "ISO-8859-1" ', b"\xe9", "é"),
        ("text/plain; format=flowed; charset=latin1", b"\xe9", "é"),
        ("text/plain; charset=windows-1252", b"\x80", "€"),
        ("text/plain; charset=shift_jis", "日本".encode("shift_jis"), "日本"),
        ("text/plain; charset=utf-16", "é".encode("utf-16"), "é"),
        ("text/plain", b"a\xffb", "a\ufffdb"),
        ("text/plain; charset=ascii", b"a\xe9", "a\ufffd"),
    ],
)
def test_text(run: Run, content_type: str | None, body: bytes, text: str) -> None:
    assert run(text_request(content_type, body).text()) == text


@pytest.mark.parametrize(
    "charset",
    [
        *(
            "nonsense",
            "",
            "hex",
            "base64",
            "zlib",
            "rot13",
            "../../etc/passwd",
            "\udcff",
            "é",
            "a" * 500,
        ),
        # Codecs of Python's that are no charset.
        *("idna", "undefined", "unicode_escape", "raw_unicode_escape", "PunyCode"),
    ],
)
def test_an_unknown_charset_is_415(run: Run, charset: str) -> None:
    with pytest.raises(StatusError, match="unknown charset") as caught:
        run(text_request(f"text/plain; charset={charset}", b"a\xff\\d").text())
    assert caught.value.status == 415


def test_no_charset_makes_a_body_expensive(run: Run) -> None:
    # Python decodes punycode in quadratic time: minutes for this body.
    begun = time.process_time()
    with pytest.raises(StatusError):
        run(text_request("text/plain; charset=punycode", b"a" * 3_000_000).text())
    assert time.process_time() - begun < 1.0


def test_the_limit_of_the_body_is_the_limit_of_all_that_read_it(run: Run) -> None:
    def limited() -> Request:
        body = Body.of(b"x" * 11)
        body.limit = 10
        r = Request("POST", "/", body=body)
        r.header["Content-Type"] = "application/x-www-form-urlencoded"
        return r

    for read in (Request.text, Request.json, Request.parse_form):
        with pytest.raises(MaxBytesError):
            run(read(limited()))


# --- forms ----------------------------------------------------------------------------------

URLENCODED = {"Content-Type": "application/x-www-form-urlencoded"}


def test_forms_are_there_when_they_have_been_parsed(run: Run) -> None:
    r = Request("POST", "/?a=q&b=q", header=URLENCODED, body=b"a=1&c=2")
    assert r.form_value("a") == "q", "the query is known at once"
    assert r.form_value("c") == ""
    for name in ("form", "post_form"):
        with pytest.raises(LocalProtocolError, match=f"r.{name} is made by"):
            getattr(r, name)
    assert r.multipart_form is None
    run(r.parse_form())
    assert r.form == {"a": ["1", "q"], "c": ["2"], "b": ["q"]}
    assert r.post_form == {"a": ["1"], "c": ["2"]}
    assert (r.form_value("a"), r.form_value("c"), r.form_value("x")) == ("1", "2", "")
    before = r.form
    run(r.parse_form())
    assert r.form is before, "the second time does nothing"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize(
    "content_type",
    ["application/x-www-form-urlencoded", "APPLICATION/X-WWW-Form-Urlencoded ; charset=utf-8"],
)
def test_the_methods_and_the_type_that_have_a_form_in_the_body(
    run: Run, method: str, content_type: str
) -> None:
    r = Request(method, "/", header={"Content-Type": content_type}, body=b"a=1")
    run(r.parse_form())
    assert r.post_form == {"a": ["1"]}


@pytest.mark.parametrize(
    ("method", "content_type"),
    [
        ("GET", "application/x-www-form-urlencoded"),
        ("DELETE", "application/x-www-form-urlencoded"),
        ("POST", "text/x"),
    ],
)
def test_other_bodies_are_left_alone(run: Run, method: str, content_type: str) -> None:
    r = Request(method, "/?q=1", header={"Content-Type": content_type}, body=b"a=1")
    run(r.parse_form())
    assert (r.form, r.post_form) == ({"q": ["1"]}, {})
    assert run(r.body.read()) == b"a=1"


def test_a_bad_form_gives_what_could_be_parsed(run: Run) -> None:
    r = Request("POST", "/?q=%zz&r=1", header=URLENCODED, body=b"a=1")
    with pytest.raises(ValueError, match="%zz"):
        run(r.parse_form())
    assert r.form == {"a": ["1"], "r": ["1"]}
    run(r.parse_form())


def test_a_multipart_form_joins_the_others(run: Run) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nm\r\n--b--\r\n'
    r = Request("POST", "/?a=q", header={"Content-Type": "multipart/form-data; boundary=b"}, body=body)
    form = run(r.parse_multipart_form())
    assert form is r.multipart_form
    assert form.value == {"a": ["m"]}
    assert (r.form, r.post_form) == ({"a": ["q", "m"]}, {"a": ["m"]})
    assert run(r.parse_multipart_form()) is form
    assert r.form == {"a": ["q", "m"]}, "the second time does nothing"
    r.release()
    with pytest.raises(ValueError):
        run(Request("POST", "/", body=b"x").parse_multipart_form())


# --- copies ---------------------------------------------------------------------------------


def test_a_clone_has_its_own_everything_but_the_body(run: Run) -> None:
    owner = Owner()
    r = received("POST /a?b=c HTTP/1.1", "X-A: 1", "Content-Length: 3", owner=owner)
    r.body = Body.of(b"xyz")
    r.set_path_value("own", "1")
    r._path_values = {"id": "7"}
    r.trailer.add("T", "1")
    run(r.parse_form())
    copy = r.clone()
    assert repr(copy) == repr(r)
    assert (copy.url, copy.header, copy.trailer, copy.form) == (r.url, r.header, r.trailer, r.form)
    copy.url.path = "/changed"
    copy.header["X-A"] = "changed"
    copy.set_path_value("id", "changed")
    copy.set_path_value("own", "changed")
    copy.set_path_value("new", "changed")
    copy.trailer["T"] = "changed"
    copy.form["b"].append("changed")
    copy.form["new"] = ["changed"]
    copy.method = "GET"
    assert (r.method, r.url.path, r.header["X-A"], r.trailer["T"]) == ("POST", "/a", "1", "1")
    assert (r.path_value("id"), r.path_value("own"), r.path_value("new")) == ("7", "1", "")
    assert r.form == {"b": ["c"]}
    assert copy.body is r.body
    assert run(copy.body.read()) == b"xyz"
    assert copy.remote_addr == r.remote_addr
    assert copy.disconnected is owner.disconnected


def test_a_clone_of_a_request_that_nobody_has_looked_at() -> None:
    r = received("GET /a HTTP/1.1", "X-A: 1")
    copy = r.clone()
    assert (copy.url.path, copy.header["X-A"], copy._plain_path) == ("/a", "1", None)
    copy.url.path = "/b"
    assert r.url.path == "/a"
    assert copy.body is r.body
    own = Request("GET", "http://a/b")
    assert own.clone().url == own.url
    assert own.clone().url is not own.url


# --- the other end --------------------------------------------------------------------------


def test_a_notice(run: Run) -> None:
    async def scenario() -> None:
        notice = Notice()
        assert not notice
        assert not notice.is_set()
        waiters = [asyncio.create_task(notice.wait()) for _ in range(2)]

        async def awaits() -> None:
            await notice

        waiters.append(asyncio.create_task(awaits()))
        gave_up = asyncio.create_task(notice.wait())
        await asyncio.sleep(0)
        gave_up.cancel()
        await asyncio.wait([gave_up])
        assert len(notice._waiters) == 3, "who gives up is forgotten"
        assert not any(waiter.done() for waiter in waiters)
        notice.set()
        await asyncio.gather(*waiters)
        assert notice
        await notice
        await notice.wait()
        notice.set()
        assert not notice._waiters

    run(scenario())


def test_the_notices_of_a_request() -> None:
    owner = Owner()
    r = received("GET / HTTP/1.1", owner=owner)
    assert r.disconnected is owner.disconnected
    assert r.shutting_down is owner.shutting_down
    own = Request("GET", "/")
    assert own.disconnected is own.disconnected
    assert own.disconnected is not own.shutting_down
    assert not own.shutting_down
    own.shutting_down.set()
    assert own.shutting_down


def test_cancel_on_disconnect_ends_in_abort(run: Run) -> None:
    async def scenario(r: Request) -> list[str]:
        happened: list[str] = []
        asyncio.get_running_loop().call_soon(r.disconnected.set)
        try:
            async with r.cancel_on_disconnect():
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    happened.append("cleaned up")
        except AbortHandler:
            happened.append("aborted")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # the task goes on as if nothing had been
        return happened

    assert run(scenario(Request("GET", "/"))) == ["cleaned up", "aborted"]
    assert run(scenario(received("GET / HTTP/1.1"))) == ["cleaned up", "aborted"]


def test_cancel_on_disconnect_when_the_client_has_left_before(run: Run) -> None:
    async def scenario() -> None:
        r = Request("GET", "/")
        r.disconnected.set()
        with pytest.raises(AbortHandler):
            async with r.cancel_on_disconnect():
                await asyncio.get_running_loop().create_future()

    run(scenario())


def test_cancel_on_disconnect_leaves_alone_what_does_not_wait_any_more(run: Run) -> None:
    async def scenario() -> str:
        r = Request("GET", "/")
        async with r.cancel_on_disconnect():
            await asyncio.sleep(0)
            r.disconnected.set()
            result = "done"
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return result

    assert run(scenario()) == "done"


def test_an_error_inside_is_passed_on(run: Run) -> None:
    async def scenario() -> None:
        async with Request("GET", "/").cancel_on_disconnect():
            await asyncio.sleep(0)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        run(scenario())


def test_a_cancellation_from_outside_stays_one(run: Run) -> None:
    async def handler(r: Request) -> None:
        async with r.cancel_on_disconnect():
            await asyncio.get_running_loop().create_future()

    async def scenario(*, left: bool) -> None:
        r = Request("GET", "/")
        task = asyncio.create_task(handler(r))
        await asyncio.sleep(0)
        task.cancel()
        if left:
            r.disconnected.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario(left=False))
    run(scenario(left=True))


def test_a_timeout_inside_keeps_its_meaning(run: Run) -> None:
    async def scenario() -> None:
        r = Request("GET", "/")
        with pytest.raises(TimeoutError):
            async with r.cancel_on_disconnect(), asyncio.timeout(0.01):
                await asyncio.get_running_loop().create_future()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), r.cancel_on_disconnect():
                await asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, r.disconnected.set)
        with pytest.raises(AbortHandler):
            async with asyncio.timeout(10), r.cancel_on_disconnect():
                await asyncio.get_running_loop().create_future()

    run(scenario())
