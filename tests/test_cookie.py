"""Cookies: writing, reading, the strict parsers, limits."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.errors import CookieError
from prefork.http.message.cookie import (
    MAX_COOKIES,
    Cookie,
    SameSite,
    parse_cookie,
    parse_set_cookie,
    read_cookies,
    read_set_cookies,
)

WHEN = datetime(2009, 11, 10, 23, 0, 0, tzinfo=UTC)


def pairs(cookies: list[Cookie]) -> list[tuple[str, str]]:
    return [(cookie.name, cookie.value) for cookie in cookies]


# --- writing --------------------------------------------------------------------------------


def test_all_attributes_in_gos_order() -> None:
    cookie = Cookie(
        "id",
        "7",
        path="/a",
        domain=".example.com",
        expires=WHEN,
        max_age=60,
        http_only=True,
        secure=True,
        same_site=SameSite.LAX,
        partitioned=True,
    )
    assert str(cookie) == (
        "id=7; Path=/a; Domain=example.com; Expires=Tue, 10 Nov 2009 23:00:00 GMT; Max-Age=60; "
        "HttpOnly; Secure; SameSite=Lax; Partitioned"
    )
    assert cookie.valid()


@pytest.mark.parametrize(
    ("cookie", "text"),
    [
        (Cookie("a"), "a="),
        (Cookie("a", "b"), "a=b"),
        (Cookie("a", "b c"), 'a="b c"'),
        (Cookie("a", "b,c"), 'a="b,c"'),
        (Cookie("a", "b", quoted=True), 'a="b"'),
        (Cookie("a", "", quoted=True), 'a=""'),
        (Cookie("a", max_age=0), "a=; Max-Age=0"),
        (Cookie("a", max_age=-1), "a=; Max-Age=0"),
        (Cookie("a", same_site=SameSite.DEFAULT), "a="),
        (Cookie("a", same_site=SameSite.NONE), "a=; SameSite=None"),
        (Cookie("a", same_site=SameSite.STRICT), "a=; SameSite=Strict"),
        (Cookie("a", expires=datetime(1600, 12, 31, tzinfo=UTC)), "a="),
        (Cookie("a", expires=datetime(1601, 1, 1)), "a=; Expires=Mon, 01 Jan 1601 00:00:00 GMT"),
        (
            Cookie("a", expires=WHEN.astimezone(timezone(timedelta(hours=-8)))),
            "a=; Expires=Tue, 10 Nov 2009 23:00:00 GMT",
        ),
        (Cookie(""), ""),
        (Cookie("a b", "c"), ""),
        (Cookie("a\r\nSet-Cookie: x", "c"), ""),
        (Cookie("é", "c"), ""),
    ],
)
def test_text(cookie: Cookie, text: str) -> None:
    assert str(cookie) == text


def test_bytes_that_may_not_stand_are_dropped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "prefork.http"):
        assert str(Cookie("a", 'x"y;z\\\r\né\x00', path="/p;\r\nq")) == "a=xyz; Path=/pq"
        assert str(Cookie("a", domain="bad domain")) == "a="
    assert [record.getMessage() for record in caplog.records] == [
        "http: invalid byte '\"' in Cookie.Value; such bytes are dropped",
        "http: invalid byte ';' in Cookie.Path; such bytes are dropped",
        'http: invalid Cookie.Domain "bad domain"; the attribute is dropped',
    ]


@pytest.mark.parametrize(
    ("domain", "good"),
    [
        ("example.com", True),
        (".example.com", True),
        ("example.com.", True),
        ("localhost", True),
        ("127.0.0.1", True),
        ("a" * 63 + ".com", True),
        ("a" * 64 + ".com", False),
        ("a." * 127 + "a", True),
        ("a." * 128 + "a", False),
        ("", False),
        (".", False),
        ("..a", False),
        ("a..b", False),
        ("-a.b", False),
        ("a-.b", False),
        ("a_b", False),
        ("1.2.3", False),
        ("::1", False),
        ("exämple.com", False),
        ("a.com; Secure", False),
    ],
)
def test_domains(domain: str, good: bool) -> None:
    assert ("Domain=" in str(Cookie("a", domain=domain))) is good


@pytest.mark.parametrize(
    ("cookie", "error"),
    [
        (Cookie(""), "http: invalid Cookie.Name"),
        (Cookie("a\t"), "http: invalid Cookie.Name"),
        (Cookie("a", expires=datetime(1600, 1, 1, tzinfo=UTC)), "http: invalid Cookie.Expires"),
        (Cookie("a", 'b"'), "http: invalid byte '\"' in Cookie.Value"),
        (Cookie("a", "b'\n"), "http: invalid byte '\\n' in Cookie.Value"),
        (Cookie("a", "é"), "http: invalid byte 'Ã' in Cookie.Value"),
        (Cookie("a", path="/;"), "http: invalid byte ';' in Cookie.Path"),
        (Cookie("a", domain="é"), "http: invalid Cookie.Domain"),
        (Cookie("a", partitioned=True), "http: partitioned cookies must be set with Secure"),
    ],
)
def test_invalid(cookie: Cookie, error: str) -> None:
    with pytest.raises(CookieError) as caught:
        cookie.valid()
    assert str(caught.value) == error


def test_what_a_client_sends() -> None:
    assert Cookie("a", "b c", path="/", secure=True).request_value() == 'a="b c"'
    assert Cookie("a\r\nb", "c\r\nd").request_value() == "a--b=cd"


@given(st.text(), st.text(), st.text())
def test_nothing_gets_out_of_the_field(value: str, path: str, domain: str) -> None:
    text = str(Cookie("x", value, path=path, domain=domain))
    assert text.isascii()
    assert text.isprintable()
    assert text.count(";") == text.count("; Path=") + text.count("; Domain=") <= 2
    assert ";" not in Cookie("x", value).request_value()


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("", []),
        ("a=1; b=2", [("a", "1"), ("b", "2")]),
        ("a=1;b=2;", [("a", "1"), ("b", "2")]),
        (";;a=1", [("a", "1")]),
        ("a", [("a", "")]),
        ("=x; b=2", [("b", "2")]),
        ("a=1; a=2", [("a", "1"), ("a", "2")]),
        ('a="1"', [("a", "1")]),
        ('a="', []),
        ('a=x"y', []),
        ("a=b=c", [("a", "b=c")]),
        ("a b=1; c=2", [("c", "2")]),
        ("a = 1", [("a", " 1")]),
        ("é=1; b=\udcff; c=3", [("c", "3")]),
        ("a=\x7f; b=\x00; c=\t", [("c", "")]),
        ("a=1, b=2", [("a", "1, b=2")]),
    ],
)
def test_read_cookies(line: str, want: list[tuple[str, str]]) -> None:
    assert pairs(read_cookies([line])) == want


def test_quotes_are_remembered() -> None:
    (cookie,) = read_cookies(['a="1 2"'])
    assert cookie.quoted
    assert cookie.request_value() == 'a="1 2"'


def test_several_lines_and_a_name() -> None:
    lines = ["a=1; b=2", "b=3; c=4"]
    assert pairs(read_cookies(lines)) == [("a", "1"), ("b", "2"), ("b", "3"), ("c", "4")]
    assert pairs(read_cookies(lines, "b")) == [("b", "2"), ("b", "3")]
    assert read_cookies(lines, "z") == []
    assert pairs(read_cookies(iter(lines), "a")) == [("a", "1")]


def test_too_many_cookies_are_none() -> None:
    assert len(read_cookies([";".join(["a="] * MAX_COOKIES)])) == MAX_COOKIES
    assert read_cookies([";".join(["a="] * (MAX_COOKIES + 1))]) == []
    assert read_cookies(["a="] * (MAX_COOKIES + 1)) == []
    assert len(read_set_cookies(["a="] * MAX_COOKIES)) == MAX_COOKIES
    assert read_set_cookies(["a="] * (MAX_COOKIES + 1)) == []
    with pytest.raises(CookieError, match="exceeded limit"):
        parse_cookie(";".join(["a="] * (MAX_COOKIES + 1)))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", "http: blank cookie"),
        ("  ", "http: blank cookie"),
        ("a=1; ", "http: '=' not found in cookie"),
        ("a=1; b", "http: '=' not found in cookie"),
        ("a =1", "http: invalid cookie name"),
        ("=1", "http: invalid cookie name"),
        ("a=\\", "http: invalid cookie value"),
    ],
)
def test_parse_cookie_is_strict(line: str, error: str) -> None:
    with pytest.raises(CookieError) as caught:
        parse_cookie(line)
    assert str(caught.value) == error


def test_parse_cookie() -> None:
    assert pairs(parse_cookie('a=1; b="2"')) == [("a", "1"), ("b", "2")]


# --- Set-Cookie -----------------------------------------------------------------------------


def test_parse_set_cookie() -> None:
    line = (
        'id="7"; PATH=/a; domain=.Example.com; expires=Tue, 10-Nov-2009 23:00:00 GMT; max-age=60;'
        " httponly; SECURE=yes; samesite=lAx; partitioned; priority=high"
    )
    assert parse_set_cookie(line) == Cookie(
        "id",
        "7",
        quoted=True,
        path="/a",
        domain=".Example.com",
        expires=WHEN,
        raw_expires="Tue, 10-Nov-2009 23:00:00 GMT",
        max_age=60,
        http_only=True,
        secure=True,
        same_site=SameSite.LAX,
        partitioned=True,
        raw=line,
        unparsed=["priority=high"],
    )


@pytest.mark.parametrize(
    ("text", "max_age"),
    [
        ("1", 1),
        ("0", -1),
        ("-5", -1),
        ("+5", 5),
        ("9223372036854775807", 9223372036854775807),
        ("9223372036854775808", None),
        ("030", None),
        ("00", -1),
        ("", None),
        ("1_0", None),
        ("1.5", None),
        ("٣", None),
        (" 1", None),
        ("9" * 5000, None),
    ],
)
def test_max_age(text: str, max_age: int | None) -> None:
    cookie = parse_set_cookie(f"a=b; max-age={text}")
    assert cookie.max_age == max_age
    assert cookie.unparsed == ([f"max-age={text}"] if max_age is None else [])


def test_attributes_that_cannot_be_read_are_kept() -> None:
    cookie = parse_set_cookie('a=b; expires=soon; path="/x"; samesite=maybe; x; ; sïte=1')
    assert (cookie.expires, cookie.raw_expires, cookie.path) == (None, "soon", "")
    assert cookie.same_site is SameSite.DEFAULT
    assert cookie.unparsed == ["expires=soon", 'path="/x"', "x"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", "http: blank cookie"),
        ("; path=/", "http: '=' not found in cookie"),
        ("a; path=/", "http: '=' not found in cookie"),
        ("=b", "http: invalid cookie name"),
        ("a=é", "http: invalid cookie value"),
    ],
)
def test_parse_set_cookie_errors(line: str, error: str) -> None:
    with pytest.raises(CookieError) as caught:
        parse_set_cookie(line)
    assert str(caught.value) == error
    assert pairs(read_set_cookies(["x=1", line, "y=2"])) == [("x", "1"), ("y", "2")]


# --- laws -----------------------------------------------------------------------------------

values = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"\\;'))


@given(values, st.booleans(), st.none() | st.integers(-1, 10**6), st.booleans())
def test_what_is_written_is_read(value: str, quoted: bool, max_age: int | None, secure: bool) -> None:
    value = value.strip()
    sent = Cookie("n", value, quoted=quoted, max_age=max_age, secure=secure, path="/", expires=WHEN)
    assert sent.valid()
    read = parse_set_cookie(str(sent))
    assert (read.value, read.path, read.secure, read.expires) == (value, "/", secure, WHEN)
    assert read.max_age == (max_age if max_age is None or max_age > 0 else -1)
    assert pairs(parse_cookie(sent.request_value())) == [("n", value)]
    assert str(read) == str(sent)


@given(st.text(alphabet='ab=; ",\\\té\udcff', max_size=60))
def test_any_line_is_cookies_or_cookie_error(line: str) -> None:
    for cookie in read_cookies([line]) + read_set_cookies([line]):
        assert cookie.valid()
    for parse in (parse_cookie, parse_set_cookie):
        try:
            parse(line)
        except CookieError:
            pass


@pytest.mark.parametrize(
    "line",
    [
        'a="' + '\\"' * 32768 + '"',
        "a=" + '"' * 65536,
        " " * 65536,
        "a=" + " " * 65536 + "b",
        "=" * 65536,
        "a=1; " * 2900,
    ],
)
def test_hostile_lines_cost_one_pass(line: str) -> None:
    start = time.process_time()
    read_cookies([line])
    read_set_cookies([line])
    assert time.process_time() - start < 1.0  # milliseconds, unless something is quadratic
