"""error, not_found, redirect, set_cookie, write_json."""

from __future__ import annotations

import json
import logging
import re
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefork.http.handlers.replies import (
    error,
    not_found,
    not_found_handler,
    redirect,
    redirect_handler,
    set_cookie,
    write_json,
)
from prefork.http.message.cookie import Cookie
from prefork.http.message.header import Header
from prefork.http.message.request import Request

WRITTEN = object()


class Recorder:
    """As much of a ResponseWriter as the replies use; `events` is the order of calls."""

    def __init__(self) -> None:
        self.header = Header()
        self.status = 0
        self.body = b""
        self.events: list[str] = []

    def write_header(self, status: int) -> None:
        self.events.append("header")
        self.status = status

    def write(self, data: bytes | str) -> Any:
        self.events.append("write")
        self.body += data if isinstance(data, bytes) else data.encode()
        return WRITTEN


def get(target: str, method: str = "GET") -> Request:
    return Request(method, target)


# --- error ----------------------------------------------------------------------------------


def test_error() -> None:
    w = Recorder()
    w.header["Content-Length"] = "5"
    w.header["content-type"] = "application/json"
    w.header["Content-Encoding"] = "gzip"
    w.header["X-Request-Id"] = "7"
    assert error(w, "no such item", 404) is WRITTEN
    assert (w.status, w.body, w.events) == (404, b"no such item\n", ["header", "write"])
    assert dict(w.header.items()) == {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Encoding": "gzip",  # as in Go: only what is certainly wrong goes
        "X-Request-Id": "7",
        "X-Content-Type-Options": "nosniff",
    }


@pytest.mark.parametrize("code", [204, 304])
def test_error_without_a_body(code: int) -> None:
    w = Recorder()
    assert error(w, "x", code) is None
    assert (w.status, w.body) == (code, b"")


def test_not_found() -> None:
    for handler in (not_found, not_found_handler()):
        w = Recorder()
        assert handler(w, get("/x")) is WRITTEN
        assert (w.status, w.body) == (404, b"404 page not found\n")


# --- redirect -------------------------------------------------------------------------------


def location(url: str, target: str = "/a/b") -> str:
    w = Recorder()
    redirect(w, get(target), url, 302)
    return w.header["Location"]


@pytest.mark.parametrize(
    ("url", "want"),
    [
        ("c", "/a/c"),
        ("./c/", "/a/c/"),
        ("../c", "/c"),
        ("../../../c", "/c"),
        ("", "/a/"),
        ("?q=1", "/a/?q=1"),
        ("#f", "/a/#f"),
        ("c#f/../g", "/a/c#f/../g"),
        ("c?q=//x/../y", "/a/c?q=//x/../y"),
        ("/x//y/../z", "/x/z"),
        ("/x/", "/x/"),
        ("/", "/"),
        ("http://other/x/../y", "http://other/x/../y"),
        ("//other/x", "//other/x"),
        ("mailto:a@b", "mailto:a@b"),
        ("/фубар?ф", "/%d1%84%d1%83%d0%b1%d0%b0%d1%80?%d1%84"),
        ("/\udcff", "/%ff"),
        ("/a b", "/a b"),
        ("/100%", "/100%"),
    ],
)
def test_location(url: str, want: str) -> None:
    assert location(url) == want


def test_location_is_relative_to_the_path_as_received() -> None:
    assert location("c", "/x%2Fy/z") == "/x%2Fy/c"
    assert location("c", "http://h/x/z?q") == "/x/c"
    assert location("c", "http://h") == "/c"


@pytest.mark.parametrize(
    "url",
    [
        "///evil.test",
        "////evil.test/x",
        "/\\evil.test",
        "\\\\evil.test",
        "/\\/evil.test",
        "\\/evil.test",
        "/\t/evil.test",
        "\t//evil.test",
        "/\n/evil.test",
        "/\r\n/evil.test",
        "/\x00/evil.test",
        " //evil.test",
        "/.//evil.test",
        "/x/..//evil.test",
        "..//evil.test",
        ".//evil.test",
        "/%zz\\..//evil.test",
        "/\\evil.test/%zz",
        "\\/evil.test/%",
        "/\\evil.test:80:80",
        "///evil.test/%zz",
    ],
)
def test_a_path_never_becomes_another_host(url: str) -> None:
    for target in ("/a/b", "//evil.test/x", "/\\evil.test/x", "/"):
        w = Recorder()
        redirect(w, Request("GET", "http://here" + target), url, 302)
        _assert_stays_here(w.header["Location"])


def _assert_stays_here(found: str) -> None:
    # What browsers do before they parse: tabs and newlines vanish, a backslash is a slash.
    seen = re.sub("[\t\r\n]", "", found.strip(" ")).replace("\\", "/")
    assert found[0] == "/", found
    assert seen[:2] != "//", found
    assert urlsplit(urljoin("http://here/", seen)).netloc == "here", found
    assert not re.search("[\x00-\x1f\x7f]", found)


@given(st.text(alphabet="/\\.:@?#%\t\r\n a\x00é", max_size=30), st.text(alphabet="/\\.%a:", max_size=12))
@example("/\\evil", "")
@example("//", "")
@example("//@", "")
def test_no_relative_reference_names_a_host(url: str, target: str) -> None:
    if re.match(r"//[^/]|[A-Za-z][A-Za-z0-9+.-]*:", url):
        return  # that is a host, or a scheme, by the caller's own words
    try:
        r = Request("GET", "http://here/" + target)
    except ValueError:
        return
    w = Recorder()
    redirect(w, r, url, 302)
    _assert_stays_here(w.header["Location"])


def test_control_bytes_are_escaped_in_any_url() -> None:
    assert location("http://h/\r\nSet-Cookie: a=b") == "http://h/%0D%0ASet-Cookie: a=b"


@pytest.mark.parametrize(
    ("method", "body", "content_type"),
    [
        ("GET", b'<a href="/x?a=&#34;&lt;&amp;&#39;&gt;">See Other</a>.\n\n', "text/html; charset=utf-8"),
        ("HEAD", b"", "text/html; charset=utf-8"),
        ("POST", b"", None),
        ("DELETE", b"", None),
    ],
)
def test_body_of_a_redirect(method: str, body: bytes, content_type: str | None) -> None:
    w = Recorder()
    result = redirect(w, get("/", method), "/x?a=\"<&'>", 303)
    assert result is (WRITTEN if body else None)
    assert (w.status, w.body, w.header.get("Content-Type")) == (303, body, content_type)


@pytest.mark.parametrize("value", ["application/json", "", None])
def test_a_content_type_of_the_handler_means_no_body(value: str | None) -> None:
    w = Recorder()
    w.header["Content-Type"] = value
    assert redirect(w, get("/"), "/x", 302) is None
    assert (w.body, w.header.values("Content-Type")) == (b"", [] if value is None else [value])


def test_redirect_with_304_has_no_body() -> None:
    w = Recorder()
    assert redirect(w, get("/"), "/x", 304) is None
    assert w.body == b""


def test_redirect_handler() -> None:
    w = Recorder()
    assert redirect_handler("../x", 308)(w, get("/a/b/c")) is WRITTEN
    assert (w.status, w.header["Location"]) == (308, "/a/x")


# --- cookies and JSON -----------------------------------------------------------------------


def test_set_cookie(caplog: pytest.LogCaptureFixture) -> None:
    w = Recorder()
    set_cookie(w, Cookie("a", "b"))
    set_cookie(w, Cookie("c", "d e"))
    with caplog.at_level(logging.WARNING, "prefork.http"):
        set_cookie(w, Cookie("bad name\r\n", "x"))
    assert w.header.values("Set-Cookie") == ["a=b", 'c="d e"']
    assert "invalid Cookie.Name" in caplog.text
    assert w.events == []


def test_write_json() -> None:
    w = Recorder()
    assert write_json(w, {"a": [1, None, True], "ü": "</script>"}) is WRITTEN
    assert (w.status, w.body) == (200, '{"a":[1,null,true],"ü":"</script>"}'.encode())
    assert w.header["Content-Type"] == "application/json"


def test_write_json_with_status_and_type() -> None:
    w = Recorder()
    w.header["Content-Type"] = "application/problem+json"
    write_json(w, [], status=422)
    assert (w.status, w.body, w.header["Content-Type"]) == (422, b"[]", "application/problem+json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, {b"a": 1}])
def test_what_json_cannot_say_is_refused_before_anything_is_sent(value: object) -> None:
    w = Recorder()
    with pytest.raises((TypeError, ValueError)):
        write_json(w, value)
    assert (w.events, len(w.header)) == ([], 0)


def test_lone_surrogates_are_written_as_escapes() -> None:
    w = Recorder()
    write_json(w, "\udcff")
    assert w.body == b'"\\udcff"'


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_json_is_read_back(value: object) -> None:
    w = Recorder()
    write_json(w, value)
    assert json.loads(w.body) == value
