"""Forms in the query and in a urlencoded body."""

from __future__ import annotations

import time

import pytest

from prefork.http.errors import RemoteProtocolError
from prefork.http.message.form import MAX_FORM_BYTES, FormError, parse_form

URLENCODED = "application/x-www-form-urlencoded"


def test_body_values_come_first() -> None:
    found = parse_form("POST", "a=q&b=q", URLENCODED, b"a=1&a=2&c=%20+")
    assert found.form == {"a": ["1", "2", "q"], "c": ["  "], "b": ["q"]}
    assert found.post_form == {"a": ["1", "2"], "c": ["  "]}
    assert found.error is None
    assert found.form["a"] is not found.post_form["a"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_methods_with_a_body(method: str) -> None:
    assert parse_form(method, "", URLENCODED, b"a=1").post_form == {"a": ["1"]}


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "post", "QUERY"])
def test_other_methods_have_none(method: str) -> None:
    found = parse_form(method, "q=1", URLENCODED, b"a=1")
    assert (found.form, found.post_form, found.error) == ({"q": ["1"]}, {}, None)


@pytest.mark.parametrize(
    ("content_type", "read", "error"),
    [
        (URLENCODED, True, None),
        ("Application/X-WWW-Form-Urlencoded ; charset=utf-8", True, None),
        (URLENCODED + ";;", True, "mime: invalid media parameter"),
        ("", False, None),
        ("text/plain", False, None),
        ("multipart/form-data; boundary=x", False, None),
        ("text/plain; x=", False, "mime: invalid media parameter"),
        ("a b", False, "mime: expected slash after first token"),
    ],
)
def test_content_types(content_type: str, read: bool, error: str | None) -> None:
    found = parse_form("POST", "", content_type, b"a=1")
    assert found.post_form == ({"a": ["1"]} if read else {})
    assert (str(found.error) if found.error else None) == error


def test_the_first_error_is_told_and_the_rest_is_read() -> None:
    found = parse_form("POST", "x;y&b=2", URLENCODED, b"a=%zz&c=3")
    assert found.form == {"c": ["3"], "b": ["2"]}
    assert str(found.error) == 'invalid URL escape "%zz"'
    assert str(parse_form("GET", "x;y&b=2", "", None).error) == "invalid semicolon separator in query"


def test_an_error_says_little_to_the_peer() -> None:
    error = parse_form("POST", "", URLENCODED, b"<script>%zz").error
    assert isinstance(error, FormError)
    assert isinstance(error, ValueError)
    assert isinstance(error, RemoteProtocolError)
    assert (error.status_hint, error.text) == (400, "malformed form")


def test_no_body() -> None:
    found = parse_form("POST", "a=1", URLENCODED, None)
    assert found.form == {"a": ["1"]}
    assert str(found.error) == "missing form body"
    assert parse_form("GET", "a=1", "", None).error is None
    assert parse_form("POST", "a=1", URLENCODED, b"").error is None


def test_the_size_is_limited() -> None:
    body = b"a=" + b"x" * (MAX_FORM_BYTES - 1)
    found = parse_form("POST", "b=1", URLENCODED, body)
    assert found.form == {"b": ["1"]}
    assert found.error is not None
    assert (str(found.error), found.error.status_hint) == ("http: POST too large", 413)
    assert parse_form("POST", "", URLENCODED, body[:-1]).error is None
    assert parse_form("POST", "", URLENCODED, body, max_bytes=None).error is None
    assert parse_form("POST", "", URLENCODED, b"abc", max_bytes=2).error is not None


def test_bytes_that_are_no_utf8_survive() -> None:
    assert parse_form("POST", "", URLENCODED, b"a=%ff\xfe").form == {"a": ["\udcff\udcfe"]}


def test_the_number_of_parameters_is_limited() -> None:
    assert parse_form("POST", "", URLENCODED, b"a&" * 9_999).error is None
    found = parse_form("POST", "", URLENCODED, b"a&" * 1_000_000)
    assert (found.form, str(found.error)) == ({}, "number of URL query parameters exceeded limit")


@pytest.mark.parametrize(
    "body", [b"%" * (1 << 20), b"a=%41" * 200_000, b";" * (1 << 20), b"=" * (1 << 20), b"+" * (1 << 20)]
)
def test_hostile_bodies_cost_one_pass(body: bytes) -> None:
    start = time.process_time()
    parse_form("POST", "", URLENCODED, body)
    assert time.process_time() - start < 2.0  # a tenth of it, unless something is quadratic
