"""Redirects: which request follows, and what it may carry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.client.redirect import (
    Chain,
    UseLastResponse,
    copied_header,
    drop_replaced_cookies,
    has_body,
    is_domain_or_subdomain,
    redirect_behavior,
    referer_for_url,
    release,
    should_copy_header_on_redirect,
    strip_password,
    use_last_response,
)
from prefork.http.errors import RequestBodyError, TransportError
from prefork.http.message.cookie import read_cookies
from prefork.http.message.header import Header
from prefork.http.message.request import Request
from prefork.http.message.response import Response
from prefork.http.message.url import URL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "vectors"
Row = dict[str, Any]


def rows(name: str) -> list[Any]:
    """One parameter per row of a file of measured answers; a single skipped one when it is not there."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return [pytest.param({}, marks=pytest.mark.skip(reason=f"no vectors in {FOLDER}"))]
    return [pytest.param(row, id=str(i)) for i, row in enumerate(json.loads(path.read_text())["vectors"])]


async def pieces() -> AsyncIterator[bytes]:
    yield b"body"


def request_with(body: str, method: str = "POST") -> Request:
    if body == "none":
        return Request(method, "http://a.com/")
    return Request(method, "http://a.com/", body=pieces(), get_body=pieces if body == "getbody" else None)


# What is asked for next.


@pytest.mark.parametrize("row", rows("golden_redirect_behavior"))
def test_vector_redirect_behavior(row: Row) -> None:
    got = redirect_behavior(row["method"], row["code"], request_with(row["body"], row["method"]))
    assert got == (row["redirect_method"], row["should_redirect"], row["include_body"])


@pytest.mark.parametrize("row", rows("client_redirect_types"))
def test_vector_redirect_types(row: Row) -> None:
    method, follows, _ = redirect_behavior(row["method"], row["status"], request_with("none", row["method"]))
    assert follows
    assert method == row["want_method"]


@pytest.mark.parametrize(
    ("method", "status", "body", "expected"),
    [
        ("GET", 301, "none", ("GET", True, False)),
        ("HEAD", 303, "none", ("HEAD", True, False)),
        ("POST", 302, "getbody", ("GET", True, False)),
        ("DELETE", 301, "none", ("GET", True, False)),
        ("POST", 307, "getbody", ("POST", True, True)),
        ("POST", 308, "nogetbody", ("POST", False, True)),
        ("PUT", 307, "none", ("PUT", True, True)),
        ("get", 302, "none", ("GET", True, False)),
        *[("GET", status, "none", ("", False, False)) for status in (200, 300, 304, 305, 306, 309, 404)],
    ],
)
def test_redirect_behavior(method: str, status: int, body: str, expected: tuple[str, bool, bool]) -> None:
    assert redirect_behavior(method, status, request_with(body, method)) == expected


def test_a_body_that_is_here_can_be_sent_again(tmp_path: Path) -> None:
    for body in (b"x", "x", b""):
        assert redirect_behavior("PUT", 307, Request("PUT", "http://a.com/", body=body))[1]
    path = tmp_path / "body"
    path.write_bytes(b"x")
    request = Request("PUT", "http://a.com/", body=path.open("rb"))
    assert redirect_behavior("PUT", 307, request)[1]
    release(request, None)


def test_has_body() -> None:
    assert not has_body(Request("POST", "http://a.com/"))
    assert not has_body(Request("POST", "http://a.com/", body=b""))
    assert has_body(Request("POST", "http://a.com/", body=b"x"))
    assert has_body(Request("POST", "http://a.com/", body=pieces()))
    looked_at = Request("GET", "http://a.com/")
    assert looked_at.body is not None
    assert not has_body(looked_at)


# Who may see what.


@pytest.mark.parametrize("row", rows("golden_is_domain_or_subdomain"))
def test_vector_is_domain_or_subdomain(row: Row) -> None:
    assert is_domain_or_subdomain(row["sub"], row["parent"]) is row["want"]


@pytest.mark.parametrize("row", rows("client_should_copy_header"))
def test_vector_should_copy_header(row: Row) -> None:
    initial, dest = URL.parse(row["initial_url"]), URL.parse(row["dest_url"])
    assert should_copy_header_on_redirect(initial, dest) is row["want"]


@pytest.mark.parametrize(
    ("initial", "dest", "expected"),
    [
        ("http://a.com/", "https://a.com:8443/x", True),
        ("http://a.com/", "http://x.y.a.com/", True),
        ("http://a.com/", "http://ba.com/", False),
        ("http://sub.a.com/", "http://a.com/", False),
        ("http://a.com/", "http://a.com.evil.com/", False),
        ("http://a.com/", "http://A.com/", False),
        ("http://[::1]/", "http://[::1]:8/", True),
        ("http://a.com/", "http://[fe80::1%25.a.com]/", False),
        ("http://bücher.de/", "http://xn--bcher-kva.de/", True),
        ("http://bücher.de/", "http://www.bücher.de/", True),
        ("http://\udc80.com/", "http://\udc80.com/", True),
    ],
)
def test_should_copy_header(initial: str, dest: str, expected: bool) -> None:
    urls = [
        URL(scheme="http", host=text.split("/")[2]) if "\udc80" in text else URL.parse(text)
        for text in (initial, dest)
    ]
    assert should_copy_header_on_redirect(*urls) is expected


@pytest.mark.parametrize("row", rows("client_referer"))
def test_vector_referer(row: Row) -> None:
    last, new = URL.parse(row["last_url"]), URL.parse(row["new_url"])
    assert referer_for_url(last, new, row["explicit_referer"]) == row["want"]


def test_referer() -> None:
    last = URL.parse("https://user:secret@a.com/x?q=1")
    assert referer_for_url(last, URL.parse("https://b.com/"), "") == "https://a.com/x?q=1"
    assert referer_for_url(last, URL.parse("http://b.com/"), "") == ""
    assert referer_for_url(last, URL.parse("https://b.com/"), "https://c.com/") == "https://c.com/"
    assert last.password == "secret"


def test_copied_header() -> None:
    first = Header(
        [
            ("authorization", "a"),
            ("COOKIE", "c=1"),
            ("Cookie2", "c"),
            ("Www-Authenticate", "w"),
            ("Proxy-Authorization", "p"),
            ("proxy-authenticate", "p"),
            ("Content-Type", "t"),
            ("content-encoding", "e"),
            ("Content-Language", "l"),
            ("Content-Location", "l"),
            ("Accept", "1"),
            ("Accept", "2"),
        ]
    )
    every = copied_header(first, strip_sensitive=False, strip_body=False)
    assert every == first
    every.add("Accept", "3")
    assert first.values("Accept") == ["1", "2"]
    assert list(copied_header(first, strip_sensitive=True, strip_body=True)) == ["Accept"]
    assert "Content-Type" in copied_header(first, strip_sensitive=True, strip_body=False)
    assert "Cookie" in copied_header(first, strip_sensitive=False, strip_body=True)


def test_drop_replaced_cookies() -> None:
    header = Header({"Cookie": "b=2; a=1; b=3"})
    own = read_cookies(header.values("Cookie"))
    assert drop_replaced_cookies(header, own, read_cookies(["z=1"])) == own
    assert header["Cookie"] == "b=2; a=1; b=3"
    own = drop_replaced_cookies(header, own, read_cookies(["a=9"]))
    assert header["Cookie"] == "b=2; b=3"
    assert drop_replaced_cookies(header, own, read_cookies(["b=9"])) == []
    assert "Cookie" not in header


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a.com/x", "http://a.com/x"),
        ("http://user@a.com/", "http://user@a.com/"),
        ("http://user:@a.com/", "http://user:***@a.com/"),
        ("http://user:p%2Fw@a.com/p%2Fw", "http://user:***@a.com/p%2Fw"),
        ("http://:secret@a.com/", "http://:***@a.com/"),
        ("http://u%3A%2A%2A%2A%40:secret@a.com/", "http://u%3A%2A%2A%2A%40:***@a.com/"),
        ("http://u%0A:secret@a.com/", "http://u%0A:***@a.com/"),
    ],
)
def test_strip_password(url: str, expected: str) -> None:
    assert strip_password(URL.parse(url)) == expected


# A chain of requests.


def found(location: str, **more: str) -> Response[Any]:
    return Response(302, header={"Location": location, **more})


def follow(chain: Chain, location: str, method: str = "GET", *, keeps_body: bool = False) -> Request:
    hop = chain.next(found(location), location, method, keeps_body=keeps_body)
    chain.via.append(hop)
    return hop


def test_credentials_stay_behind_and_do_not_come_back() -> None:
    chain = Chain(Request("GET", "http://a.com/", header={"Authorization": "s", "X": "1"}), with_jar=False)
    assert "Authorization" in follow(chain, "http://sub.a.com/").header
    assert "Authorization" in follow(chain, "http://a.com:8080/").header
    assert "Authorization" not in follow(chain, "http://b.com/").header
    back = follow(chain, "http://a.com/")
    assert "Authorization" not in back.header
    assert back.header["X"] == "1"
    assert back.header["Referer"] == "http://b.com/"


def test_user_info_goes_along_only_on_the_same_server() -> None:
    chain = Chain(Request("GET", "http://u:p@a.com/x"), with_jar=False)
    hop = follow(chain, "/y")
    assert hop.url.username == "u"
    assert hop.header["Referer"] == "http://a.com/x"
    assert follow(chain, "http://a.com/z").url.username is None


def test_a_body_that_was_dropped_does_not_come_back() -> None:
    first = Request("POST", "http://a.com/", header={"Content-Type": "t"}, body=b"body")
    chain = Chain(first, with_jar=False)
    kept = follow(chain, "/1", "POST", keeps_body=True)
    assert (kept._content, kept.content_length, kept.header["Content-Type"]) == (b"body", 4, "t")
    dropped = follow(chain, "/2")
    assert (dropped._content, dropped.content_length) == (None, 0)
    assert "Content-Type" not in dropped.header
    again = follow(chain, "/3", keeps_body=True)
    assert (again._content, "Content-Type" in again.header) == (None, False)


def test_the_host_override_is_for_one_server() -> None:
    def host_after(location: str) -> str:
        chain = Chain(Request("GET", "http://127.0.0.1/", host="virtual.example"), with_jar=False)
        return follow(chain, location).host

    assert host_after("/y") == "virtual.example"
    assert host_after("?q") == "virtual.example"
    assert host_after("http://127.0.0.1/y") == "127.0.0.1"
    assert host_after("//other.com/y") == "other.com"


def test_a_hop_knows_the_response_that_caused_it() -> None:
    chain = Chain(Request("GET", "http://a.com/"), with_jar=False)
    response = found("/y")
    assert chain.next(response, "/y", "GET", keeps_body=False).response is response


@pytest.mark.parametrize("location", ["http://a b.com/", "http://a.com:x/", "%zz", "/\x00", ":x"])
def test_a_location_that_is_no_url(location: str) -> None:
    chain = Chain(Request("GET", "http://a.com/"), with_jar=False)
    with pytest.raises(TransportError, match=r'^failed to parse Location header ".*": parse ') as caught:
        follow(chain, location)
    assert caught.value.phase == "redirect"


def test_get_body_that_fails() -> None:
    def gone() -> bytes:
        raise FileNotFoundError(2, "gone")

    first = Request("POST", "http://a.com/", body=pieces(), get_body=gone)
    chain = Chain(first, with_jar=False)
    with pytest.raises(RequestBodyError, match="cannot be sent again") as caught:
        follow(chain, "/", "POST", keeps_body=True)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_files_are_rewound_and_released(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"-body")
    file = path.open("rb")
    file.read(1)
    opened = []

    def get_body() -> Any:
        opened.append(path.open("rb"))
        return opened[-1]

    async def check() -> None:
        chain = Chain(Request("PUT", "http://a.com/", body=file), with_jar=False)
        for location in ("/1", "/2"):
            hop = follow(chain, location, "PUT", keeps_body=True)
            assert hop.content_length == 4
            assert await hop.body.read() == b"body"
        release(chain.via[0], chain)
        assert file.closed
        chain = Chain(
            Request("PUT", "http://a.com/", body=pieces(), content_length=5, get_body=get_body),
            with_jar=False,
        )
        hop = follow(chain, "/1", "PUT", keeps_body=True)
        assert hop.content_length == 5
        assert hop.get_body is get_body
        release(chain.via[0], chain)

    run(check())
    assert [file.closed for file in opened] == [True]


def test_use_last_response() -> None:
    with pytest.raises(UseLastResponse):
        use_last_response(Request("GET", "http://a.com/"), ())
