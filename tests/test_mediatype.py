"""Media types and their parameters."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.message.grammar import is_token
from prefork.http.message.mediatype import MediaTypeError, format_media_type, parse_media_type


@pytest.mark.parametrize(
    ("text", "kind", "params"),
    [
        ("text/html", "text/html", {}),
        (" Text/HTML ; Charset=UTF-8", "text/html", {"charset": "UTF-8"}),
        ("text/html;charset=utf-8;", "text/html", {"charset": "utf-8"}),
        ("text/html; ;", "text/html", None),
        (
            'form-data; name="a b"; filename="x;y=\\"z\\".txt"',
            "form-data",
            {"name": "a b", "filename": 'x;y="z".txt'},
        ),
        ('form-data; filename="C:\\dev\\go\\foo.txt"', "form-data", {"filename": "C:\\dev\\go\\foo.txt"}),
        ('a; b=""', "a", {"b": ""}),
        ("a; b=c; b=c", "a", {"b": "c"}),
        ("a; f*=UTF-8''na%C3%AFve; f=x", "a", {"f": "naïve"}),
        ("a; f*=utf-8'en'%ff", "a", {"f": "\udcff"}),
        ("a; f*=latin1''x", "a", {}),
        ("a; f*=utf-8''%zz", "a", {}),
        ('a; f*0="x"; f*1*=%20y; f*2=z', "a", {"f": "x yz"}),
        ("a; f*1=x", "a", {}),
        ("a; f*0=x; f*2=z", "a", {"f": "x"}),
    ],
)
def test_parse(text: str, kind: str, params: dict[str, str] | None) -> None:
    if params is None:
        with pytest.raises(MediaTypeError):
            parse_media_type(text)
    else:
        assert parse_media_type(text) == (kind, params)


@pytest.mark.parametrize(
    ("text", "message", "kind"),
    [
        ("", "mime: no media type", ""),
        ("; a=b", "mime: no media type", ""),
        ("a/", "mime: expected token after slash", ""),
        ("a/b/c", "mime: unexpected content after media subtype", ""),
        ("a b", "mime: expected slash after first token", ""),
        ("a/b; c", "mime: invalid media parameter", "a/b"),
        ("a/b; c=", "mime: invalid media parameter", "a/b"),
        ("a/b; =c", "mime: invalid media parameter", "a/b"),
        ('a/b; c="d', "mime: invalid media parameter", "a/b"),
        ('a/b; c="\r\n"', "mime: invalid media parameter", "a/b"),
        ("a/b; c=d e=f", "mime: invalid media parameter", "a/b"),
        ("a/b; c=d; C=e", "mime: duplicate parameter name", ""),
    ],
)
def test_parse_errors(text: str, message: str, kind: str) -> None:
    with pytest.raises(MediaTypeError) as caught:
        parse_media_type(text)
    assert (str(caught.value), caught.value.media_type) == (message, kind)


@pytest.mark.parametrize(
    ("kind", "params", "want"),
    [
        ("Text/HTML", None, "text/html"),
        ("attachment", {"filename": "a b.txt"}, 'attachment; filename="a b.txt"'),
        ("a/b", {"z": "1", "Y": '"\\'}, 'a/b; y="\\"\\\\"; z=1'),
        ("a/b", {"f": "é\n*'%"}, "a/b; f*=utf-8''%C3%A9%0A%2A%27%25"),
        ("a/b", {"f": ""}, 'a/b; f=""'),
        ("a/b", {"f": "\udcff"}, "a/b; f*=utf-8''%FF"),
    ],
)
def test_format(kind: str, params: dict[str, str] | None, want: str) -> None:
    assert format_media_type(kind, params) == want


@pytest.mark.parametrize(
    ("kind", "params"),
    [("", {}), ("a/", {}), ("/b", {}), ("a b", {}), ("a/b", {"": "x"}), ("a/b", {"x y": ""})],
)
def test_what_cannot_be_formatted(kind: str, params: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="media type"):
        format_media_type(kind, params)


names = st.text(alphabet="abcxyz09-_.", min_size=1, max_size=8)


@given(st.dictionaries(names, st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=4))
def test_what_is_formatted_is_parsed(params: dict[str, str]) -> None:
    text = format_media_type("a/b", params)
    assert "\r" not in text
    assert "\n" not in text
    assert parse_media_type(text) == ("a/b", params)


@given(st.text(alphabet="ab/;= \"\\*'%0é\t", max_size=40))
def test_anything_is_a_type_or_an_error(text: str) -> None:
    try:
        kind, params = parse_media_type(text)
    except MediaTypeError:
        return
    assert all(map(is_token, kind.split("/")))
    assert all(name == name.lower() for name in params)


@pytest.mark.parametrize(
    "text",
    [
        "a/b" + ";" * 65536,
        "a/b" + "; " * 32768,
        "a/b;" + " " * 65536,
        'a/b; c="' + "\\" * 65536,
        'a/b; c="' + '\\"' * 32768,
        "a/b; c=" + "x" * 65536 + "@",
        "a/b" + "".join(f"; p{n}*{n}=x" for n in range(5000)),
        "a/b" + "".join(f"; p*{n}=x" for n in range(5000)),
        "a/b" + "; p=x" * 13000,
        "a/b; p*=utf-8''" + "%41" * 20000,
    ],
)
def test_hostile_values_cost_one_pass(text: str) -> None:
    start = time.process_time()
    try:
        parse_media_type(text)
    except MediaTypeError:
        pass
    assert time.process_time() - start < 1.0  # milliseconds, unless something is quadratic
