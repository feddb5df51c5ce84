"""URLs: what parsing takes and refuses, the two spellings of a path, queries, references."""

from __future__ import annotations

import copy
import pickle
import posixpath
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from prefork.http.message.query import (
    MAX_QUERY_PARAMS,
    Part,
    QueryError,
    URLError,
    Values,
    encode_query,
    escape,
    is_bare,
    must_escape,
    parse_query,
    path_escape,
    path_unescape,
    query_escape,
    query_unescape,
    quoted,
    unescape,
)
from prefork.http.message.url import URL, clean_path, join_path, path_clean

if TYPE_CHECKING:
    from collections.abc import Callable

# Any text that came from bytes: surrogateescape stands for what is no UTF-8.
any_text = st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
# Text made of what URLs are made of, so that parsing gets somewhere.
url_text = st.lists(
    st.sampled_from(
        ["http", "https", "mailto", ":", "//", "/", "@", "u", "h", ".", "..", "[::1]", ":80"]
        + ["?", "#", "=", "&", ";", "+", "%2F", "%41", "%25", "%ff", "%zz", "é", " ", "*", "a"]
    ),
    max_size=9,
).map("".join)

path_text = st.lists(st.sampled_from(["/", "/", ".", "..", "a", "b.", "%2e", "\x00"]), max_size=9).map(
    "".join
)


# --- parsing --------------------------------------------------------------------------------


def test_the_parts_of_an_absolute_url() -> None:
    url = URL.parse("HTTPS://us%65r:p%40ss@Example.org:8443/a%2Fb/c?q=1&r#fr%61g")
    assert url.scheme == "https"
    assert (url.username, url.password) == ("user", "p@ss")
    assert url.host == "Example.org:8443"
    assert (url.hostname(), url.port()) == ("Example.org", "8443")
    assert (url.path, url.raw_path) == ("/a/b/c", "/a%2Fb/c")
    assert url.escaped_path() == "/a%2Fb/c"
    assert url.raw_query == "q=1&r"
    assert (url.fragment, url.raw_fragment) == ("frag", "fr%61g")
    assert url.request_uri() == "/a%2Fb/c?q=1&r"
    assert str(url) == "https://user:p%40ss@Example.org:8443/a%2Fb/c?q=1&r#fr%61g"
    assert url.is_abs()


def test_no_password_is_not_an_empty_one() -> None:
    assert URL.parse("http://h/").username is None
    assert URL.parse("http://u@h/").password is None
    assert URL.parse("http://u:@h/").password == ""
    for text in ("http://h/", "http://u@h/", "http://u:@h/", "http://:p@h/"):
        assert str(URL.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "host", "hostname", "port"),
    [
        ("http://[::1]:80/", "[::1]:80", "::1", "80"),
        ("http://[fe80::1%25en%300]/", "[fe80::1%en00]", "fe80::1%en00", ""),
        ("http://[::ffff:10.0.0.1]/", "[::ffff:10.0.0.1]", "::ffff:10.0.0.1", ""),
        ("http://h:/", "h:", "h", ""),
        ("http://b%c3%bccher.example/", "bücher.example", "bücher.example", ""),
        ("postgresql://a:1,b:2/db", "a:1,b:2", "a:1,b", "2"),
        ("//h/x", "h", "h", ""),
    ],
)
def test_hosts(text: str, host: str, hostname: str, port: str) -> None:
    url = URL.parse(text)
    assert (url.host, url.hostname(), url.port()) == (host, hostname, port)


def test_an_escaped_host_is_written_escaped_again() -> None:
    assert str(URL.parse("http://[fe80::1%25en0]/")) == "http://[fe80::1%25en0]/"
    assert str(URL.parse("http://b%c3%bccher.example/")) == "http://b%C3%BCcher.example/"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://a\nb/", "net/url: invalid control character in URL"),
        ("/a\x7f", "net/url: invalid control character in URL"),
        (":foo", "missing protocol scheme"),
        ("1http://h", "first path segment in URL cannot contain colon"),
        ("a:b/c".replace("a:", "a_:"), "first path segment in URL cannot contain colon"),
        ("/%zz", 'invalid URL escape "%zz"'),
        ("/%4", 'invalid URL escape "%4"'),
        ("http://%41/", 'invalid URL escape "%41"'),
        ("http://a b/", 'invalid character " " in host name'),
        ("http://a^%zz/", 'invalid character "^" in host name'),
        ("http://a%zz^/", 'invalid URL escape "%zz"'),
        ("http://h:8a/", 'invalid port ":8a" after host'),
        ("http://a:1,b:2/", 'invalid port ":1,b:2" after host'),
        ("http://u\\@h/", "net/url: invalid userinfo"),
        ("http://u%zz@h/", 'invalid URL escape "%zz"'),
        ("http://[::1", "missing ']' in host"),
        ("http://x[::1]/", "invalid IP-literal"),
        ("http://[10.0.0.1]/", "invalid IP-literal"),
        ("http://[::1]x/", 'invalid port "x" after host'),
        ("http://[::1%25]/", 'invalid host: "::1%" has an empty zone'),
        ("http://[::1%25a^]/", 'invalid character "^" in host name'),
        ("http://[::1%25a%2f]/", 'invalid URL escape "%2f"'),
        ("http://[:1]/", 'invalid host: ":1" is not an IPv6 address'),
        ("http://[]/", 'invalid host: "" is not an IPv6 address'),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(URLError) as caught:
        URL.parse(text)
    assert caught.value.reason == reason
    assert caught.value.url == text
    assert str(caught.value) == f"parse {quoted(text)}: {reason}"


def test_the_text_of_an_error_is_without_the_fragment_that_was_right() -> None:
    with pytest.raises(URLError, match=r'^parse "/%zz": invalid URL escape "%zz"$'):
        URL.parse("/%zz#frag")
    with pytest.raises(URLError, match=r'^parse "/a#%zz": invalid URL escape "%zz"$'):
        URL.parse("/a#%zz")


def test_a_lone_surrogate_is_an_error_of_ours() -> None:
    with pytest.raises(URLError, match="lone surrogate"):
        URL.parse("/%41\ud800")


def test_relative_references() -> None:
    assert URL.parse("").path == ""
    assert URL.parse("a/b:c").path == "a/b:c"
    assert URL.parse("///x") == URL(path="///x")
    assert URL.parse("*").path == "*"
    assert URL.parse("?") != URL.parse("")
    assert URL.parse("?").force_query


def test_rootless_and_hostless() -> None:
    opaque = URL.parse("mailto:a%40b?subject=x")
    assert (opaque.opaque, opaque.path, opaque.raw_query) == ("a%40b", "", "subject=x")
    assert URL.parse("file:/etc/hosts").omit_host
    for text in ("mailto:a%40b?subject=x", "file:/etc/hosts", "file:///etc/hosts", "http:?q"):
        assert str(URL.parse(text)) == text


# --- the target of a request ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "raw_query"),
    [
        ("//evil.example/x", "//evil.example/x", "", ""),
        ("/a#b?c#d", "/a#b", "/a#b", "c#d"),
        ("*", "*", "", ""),
        ("/a?", "/a", "", ""),
        ("/a??b", "/a", "", "?b"),
        ("/%41", "/A", "/%41", ""),
        ("/a+b", "/a+b", "", ""),
        ("http://h/p?q", "/p", "", "q"),
    ],
)
def test_request_targets(target: str, path: str, raw_path: str, raw_query: str) -> None:
    url = URL.parse_request_uri(target)
    assert (url.path, url.raw_path, url.raw_query) == (path, raw_path, raw_query)
    assert url.fragment == ""
    assert url.host == ("h" if target.startswith("http") else "")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("", "empty url"),
        ("a/b", "invalid URI for request"),
        ("../a", "invalid URI for request"),
        ("/a%", 'invalid URL escape "%"'),
        ("/a%é", 'invalid URL escape "%é"'),
        ("/\r", "net/url: invalid control character in URL"),
    ],
)
def test_refused_request_targets(target: str, reason: str) -> None:
    with pytest.raises(URLError) as caught:
        URL.parse_request_uri(target)
    assert str(caught.value) == f"parse {quoted(target)}: {reason}"


def test_the_request_uri_of_an_empty_path_is_a_slash() -> None:
    assert URL.parse("http://h").request_uri() == "/"
    assert URL.parse("http://h?q").request_uri() == "/?q"
    assert URL.parse("http://h?").request_uri() == "/?"
    assert URL(scheme="http", opaque="//h/%2f").request_uri() == "http://h/%2f"


# --- the two spellings of a path ------------------------------------------------------------


def test_a_raw_path_that_says_something_else_is_ignored() -> None:
    assert URL(path="/a b", raw_path="/a%20b").escaped_path() == "/a%20b"
    assert URL(path="/a/b", raw_path="/a%2Fb").escaped_path() == "/a%2Fb"
    assert URL(path="/other", raw_path="/a%2Fb").escaped_path() == "/other"
    assert URL(path="/a b", raw_path="/a b").escaped_path() == "/a%20b"
    assert URL(path="/é", raw_path="/é").escaped_path() == "/%C3%A9"
    assert URL(path="/%", raw_path="/%").escaped_path() == "/%25"
    assert URL(path="*").escaped_path() == "*"


def test_no_byte_is_lost() -> None:
    url = URL.parse_request_uri("/%ff%C3%A9\udcfe")
    assert url.path.encode("utf-8", "surrogateescape") == b"/\xff\xc3\xa9\xfe"
    assert url.escaped_path() == "/%FF%C3%A9%FE"


@given(url_text)
@example("http:%2f/host/path")
@example("http://[fe80::1%25en0]:8/")
def test_writing_and_reading_again_is_stable(text: str) -> None:
    try:
        url = URL.parse(text)
    except URLError:
        assume(False)
    again = URL.parse(str(url))
    assert str(again) == str(url)
    assert (again.scheme, again.host, again.username) == (url.scheme, url.host, url.username)
    assert (again.path, again.raw_query, again.fragment) == (
        # A path without a slash after a host gets one, and dots keep `a:b` from being a scheme.
        "./" + url.path if str(url).startswith("./") and not url.path.startswith("./") else url.path,
        url.raw_query,
        url.fragment,
    )


@given(any_text)
def test_garbage_ends_in_a_url_or_a_url_error(text: str) -> None:
    for parse in (URL.parse, URL.parse_request_uri):
        try:
            url = parse(text)
        except URLError:
            continue
        assert isinstance(str(url), str)
        assert isinstance(url.request_uri(), str)
        url.query()


@given(path=any_text)
def test_any_path_survives_a_request_line(path: str) -> None:
    url = URL(path="/" + path)
    assert URL.parse_request_uri(url.request_uri()).path == url.path


# --- escaping -------------------------------------------------------------------------------


@given(any_text, st.sampled_from([part for part in Part if part not in (Part.HOST, Part.ZONE)]))
def test_unescape_undoes_escape(text: str, part: Part) -> None:
    escaped = escape(text, part)
    assert escaped.isascii()
    assert unescape(escaped, part) == text
    assert is_bare(text, part) is (escaped == text)


@given(st.text(alphabet=st.characters(min_codepoint=128, max_codepoint=0x2FFF), max_size=8))
def test_hosts_escape_what_is_not_ascii(text: str) -> None:
    assert unescape(escape(text, Part.HOST), Part.HOST) == text


def test_escaping_by_part() -> None:
    assert path_escape("a/b c?d;e,f+é") == "a%2Fb%20c%3Fd%3Be%2Cf+%C3%A9"
    assert query_escape("a/b c?d&e=f+é") == "a%2Fb+c%3Fd%26e%3Df%2B%C3%A9"
    assert escape("/a b;c", Part.PATH) == "/a%20b;c"
    assert path_unescape("a+b%20c") == "a+b c"
    assert query_unescape("a+b%2Bc") == "a b+c"
    assert must_escape(0xE9, Part.HOST)
    assert not must_escape(ord("~"), Part.QUERY_COMPONENT)
    assert must_escape(ord(" "), Part.QUERY_COMPONENT)


@pytest.mark.parametrize("text", ["%", "%4", "%zz", "a%4gb", "%%41", "+%z+"])
@pytest.mark.parametrize("undo", [path_unescape, query_unescape])
def test_bad_escapes(undo: Callable[[str], str], text: str) -> None:
    with pytest.raises(URLError, match="invalid URL escape") as caught:
        undo(text)
    assert caught.value.url is None
    assert quoted(text[text.index("%") :][:3]) in str(caught.value)


def test_quoted_is_one_line_and_loses_nothing() -> None:
    assert quoted("plain") == '"plain"'
    assert quoted('a"b\\c') == '"a\\"b\\\\c"'
    assert quoted("a\r\n\t\x00\x7f") == '"a\\r\\n\\t\\x00\\x7f"'
    assert quoted("é\u200b\U000e0001") == '"é\\u200b\\U000e0001"'
    assert quoted("\udcff") == '"\\xff"'


# --- queries --------------------------------------------------------------------------------


def test_parse_query() -> None:
    values = parse_query("a=1&b=2&a=3&c&=d&&e=x%26y+z")
    assert values == {"a": ["1", "3"], "b": ["2"], "c": [""], "": ["d"], "e": ["x&y z"]}
    assert list(values) == ["a", "b", "c", "", "e"]
    assert values.first("a") == "1"
    assert values.first("nope") == ""
    assert values.first("nope", "x") == "x"
    assert parse_query("") == {}


def test_values_can_be_built() -> None:
    values = Values()
    values.add("b", "2")
    values.add("a", "1 1")
    values.add("b", "3")
    assert values.encode() == "a=1+1&b=2&b=3"
    assert encode_query({"q": "a&b", "tag": ("x", "y"), "none": []}) == "q=a%26b&tag=x&tag=y"


@pytest.mark.parametrize(
    ("query", "reason", "values"),
    [
        ("a=1;b=2&c=3", "invalid semicolon separator in query", {"c": ["3"]}),
        ("a=%zz&b=2", 'invalid URL escape "%zz"', {"b": ["2"]}),
        ("%zz=1&%yy=2", 'invalid URL escape "%zz"', {}),
        ("a=%zz&b;&c=3", "invalid semicolon separator in query", {"c": ["3"]}),
    ],
)
def test_a_query_with_faults_keeps_the_rest(query: str, reason: str, values: dict[str, list[str]]) -> None:
    with pytest.raises(QueryError) as caught:
        parse_query(query)
    assert str(caught.value) == reason
    assert caught.value.values == values
    assert URL(raw_query=query).query() == values


def test_a_query_has_a_limit() -> None:
    most = "&".join(["a=1"] * MAX_QUERY_PARAMS)
    assert len(parse_query(most)["a"]) == MAX_QUERY_PARAMS
    with pytest.raises(QueryError, match="number of URL query parameters exceeded limit") as caught:
        parse_query(most + "&b=1")
    assert caught.value.values == {}
    assert len(parse_query(most + "&b=1", max_params=0)) == 2
    with pytest.raises(QueryError):
        parse_query("a&b&c", max_params=2)
    assert len(parse_query("a&b", max_params=2)) == 2


@given(st.dictionaries(any_text, st.lists(any_text, min_size=1, max_size=3), max_size=5))
def test_parse_undoes_encode(values: dict[str, list[str]]) -> None:
    # An empty name with an empty value is written `=`, which is a pair; it comes back.
    assert parse_query(encode_query(values)) == values


def test_the_query_of_a_url_is_parsed_once_until_it_changes() -> None:
    url = URL.parse("/?a=1")
    assert url.query() is url.query()
    url.raw_query = "b=2"
    assert url.query() == {"b": ["2"]}
    url.raw_query = url.query().encode() + "&c=3"
    assert url.query() == {"b": ["2"], "c": ["3"]}


# --- references and joining -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("g", "http://u@a/b/c/g"),
        ("/g", "http://u@a/g"),
        ("//g", "http://g"),
        ("?y", "http://u@a/b/c/d;p?y"),
        ("", "http://u@a/b/c/d;p?q"),
        ("#s", "http://u@a/b/c/d;p?q#s"),
        ("../../../g", "http://u@a/g"),
        ("g/./h/../i/", "http://u@a/b/c/g/i/"),
        ("..%2f", "http://u@a/b/c/..%2f"),
        ("mailto:x", "mailto:x"),
        ("https://x/../y", "https://x/y"),
    ],
)
def test_resolve_reference(reference: str, target: str) -> None:
    base = URL.parse("http://u@a/b/c/d;p?q")
    assert str(base.resolve_reference(reference)) == target
    assert str(base.resolve_reference(URL.parse(reference))) == target
    assert str(base) == "http://u@a/b/c/d;p?q"


@given(path_text)
def test_resolving_a_path_never_changes_the_host(reference: str) -> None:
    assume("\x00" not in reference and not reference.startswith("//"))
    url = URL.parse(str(URL.parse("http://h/a/b").resolve_reference(reference)))
    assert url.host == "h"
    assert url.path.startswith("/")
    assert not set(url.escaped_path().split("/")) & {".", ".."}


def test_dots_do_not_uncover_a_host() -> None:
    assert str(URL.parse("/a").resolve_reference("..//evil.example")) == "/evil.example"


def test_resolving_against_an_opaque_url() -> None:
    base = URL.parse("mailto:a@b?x")
    assert str(base.resolve_reference("#f")) == "mailto:a@b?x#f"
    assert str(base.resolve_reference("?y")) == "mailto:a@b?y"


@pytest.mark.parametrize(
    ("base", "elements", "want"),
    [
        ("http://h", ("a", "b"), "http://h/a/b"),
        ("http://h/a/", ("../../b/",), "http://h/b/"),
        ("http://h/a?q#f", ("b",), "http://h/a/b?q#f"),
        ("a", ("../../b",), "b"),
        ("http://h/a", ("%2e%2e",), "http://h/a/%2e%2e"),
        ("http://h/a/", (), "http://h/a/"),
    ],
)
def test_join_path(base: str, elements: tuple[str, ...], want: str) -> None:
    assert join_path(base, *elements) == want
    assert str(URL.parse(base).join_path(*elements)) == want


def test_join_path_refuses_bad_escapes() -> None:
    with pytest.raises(URLError):
        URL.parse("http://h/").join_path("100%")


# --- clean paths ----------------------------------------------------------------------------


@given(path_text)
@example("/.well-known/x")
@example("/a/..")
def test_clean_path_is_canonical(path: str) -> None:
    cleaned = clean_path(path)
    assert cleaned.startswith("/")
    assert not set(cleaned.strip("/").split("/")[:-1]) & {"", ".", ".."}
    assert cleaned.split("/")[-1] not in (".", "..")
    assert clean_path(cleaned) == cleaned
    assert (cleaned == "/") or cleaned.endswith("/") == path.endswith("/")


@given(path_text)
def test_path_clean_agrees_with_the_standard_library(path: str) -> None:
    assume("\x00" not in path)
    # POSIX lets two leading slashes mean something of their own; here they do not.
    want = posixpath.normpath(path)
    assert path_clean(path) == (want[1:] if want.startswith("//") else want)


def test_clean_path_leaves_escapes_alone() -> None:
    assert clean_path("/%2e%2e/a%2f..%2fb") == "/%2e%2e/a%2f..%2fb"


# --- URLs as objects ------------------------------------------------------------------------


def test_secrets_stay_out_of_logs() -> None:
    url = URL.parse("http://u:secret@h/")
    assert url.redacted() == "http://u:xxxxx@h/"
    assert repr(url) == "<URL http://u:xxxxx@h/>"
    assert URL.parse("http://u@h/").redacted() == "http://u@h/"
    assert url.password == "secret"


def test_equality_clones_and_copies() -> None:
    url = URL.parse("http://u:p@h/a%2Fb?q#f")
    for other in (url.clone(), copy.copy(url), copy.deepcopy(url), pickle.loads(pickle.dumps(url))):
        assert other == url
        assert str(other) == str(url)
        other.path = "/x"
        assert other != url
    assert url != "http://u:p@h/a%2Fb?q#f"
    with pytest.raises(TypeError):
        hash(url)
    with pytest.raises(AttributeError):
        url.paht = "/x"  # type: ignore[attr-defined]


def test_the_parsed_query_is_no_part_of_equality() -> None:
    first, second = URL.parse("/?a=1"), URL.parse("/?a=1")
    first.query()
    assert first == second
