"""Header: names without case, values in order, and who owns the lists inside."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.http.message import header as module
from prefork.http.message.header import Header, canonical_header_key
from prefork.http.message.request import _parse_header
from prefork.http.server.response_writer import _line


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("content-type", "Content-Type"),
        ("CONTENT-TYPE", "Content-Type"),
        ("cOnTeNt-TyPe", "Content-Type"),
        ("host", "Host"),
        ("a-1-c", "A-1-C"),
        ("1a2b", "1a2b"),
        ("x-o'neil", "X-O'neil"),  # str.title would write O'Neil
        ("www-authenticate", "Www-Authenticate"),
        ("etag", "Etag"),
        ("-", "-"),
        ("a--b", "A--B"),
        ("_x_y", "_x_y"),
        # No tokens: left as they are.
        ("", ""),
        ("foo bar", "foo bar"),
        ("foo:bar", "foo:bar"),
        ("foo\r\nbar", "foo\r\nbar"),
        ("exposé", "exposé"),
        ("\u212aeep-alive", "\u212aeep-alive"),
        ("trailer:x", "trailer:x"),
    ],
)
def test_canonical_header_key(name: str, canonical: str) -> None:
    assert canonical_header_key(name) == canonical
    assert canonical_header_key(canonical) == canonical
    assert canonical_header_key(name) == canonical, "the second time it comes from the memo"


def test_the_memo_of_spellings_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_canonical", {})
    for number in range(module._CANONICAL_LIMIT + 500):
        assert canonical_header_key(f"x-made-up-{number}") == f"X-Made-Up-{number}"
    assert len(module._canonical) == module._CANONICAL_LIMIT
    monkeypatch.setattr(module, "_canonical", {})
    canonical_header_key("x" * 65)
    canonical_header_key("no token")
    assert not module._canonical, "long names and non-tokens would only fill it"


def test_reading_and_writing() -> None:
    h = Header()
    assert not h
    assert len(h) == 0
    h["content-type"] = "text/plain"
    assert h["Content-Type"] == h["CONTENT-TYPE"] == "text/plain"
    assert "content-TYPE" in h
    assert list(h) == ["Content-Type"]
    h.add("Set-Cookie", "a=1")
    h.add("set-cookie", "b=2")
    assert h["Set-Cookie"] == "a=1"
    assert h.get("SET-COOKIE") == "a=1"
    assert h.values("set-cookie") == ["a=1", "b=2"]
    assert list(h.items()) == [("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    assert len(h) == 2
    h["Set-Cookie"] = "c=3"
    assert h.values("Set-Cookie") == ["c=3"]
    del h["SET-cookie"]
    assert "Set-Cookie" not in h
    assert repr(h) == "Header([('Content-Type', 'text/plain')])"


def test_what_is_absent() -> None:
    h = Header()
    with pytest.raises(KeyError, match="X-None"):
        h["X-None"]
    with pytest.raises(KeyError):
        del h["X-None"]
    assert h.get("X-None") is None
    assert h.get("X-None", "d") == "d"
    assert h.values("X-None") == []
    assert h.pop("X-None") is None
    assert h.pop("X-None", "d") == "d"
    assert "X-None" not in h
    assert 5 not in h


def test_a_name_without_a_value_is_there_and_has_none() -> None:
    h = Header({"Date": "today"})
    h["date"] = None
    assert "Date" in h
    assert list(h) == ["Date"]
    assert h.values("Date") == []
    assert h.get("Date", "d") == "d"
    assert list(h.items()) == []
    with pytest.raises(KeyError):
        h["Date"]
    h.add("Date", "tomorrow")
    assert h["Date"] == "tomorrow"
    assert h.pop("Date") == "tomorrow"
    assert "Date" not in h


@pytest.mark.parametrize("value", [5, b"bytes", ["list"], 1.5, True, object()])
def test_a_value_of_another_type_is_refused_where_it_is_set(value: Any) -> None:
    h = Header()
    with pytest.raises(TypeError, match="'X-Y'"):
        h["X-Y"] = value
    with pytest.raises(TypeError, match="'X-Y'"):
        h.add("X-Y", value)
    with pytest.raises(TypeError, match="'X-Y'"):
        Header({"X-Y": value})
    assert not h


def test_a_subclass_of_str_is_a_str() -> None:
    class Encoding(enum.StrEnum):
        GZIP = "gzip"

    h = Header({"Content-Encoding": Encoding.GZIP})
    assert h["Content-Encoding"] == "gzip"
    h["Content-Encoding"] = Encoding.GZIP
    h.add("Content-Encoding", Encoding.GZIP)
    assert h.values("Content-Encoding") == ["gzip", "gzip"]


def test_items_of_every_kind_make_a_header() -> None:
    pairs = [("a", "1"), ("B", "2"), ("A", "3")]
    assert list(Header(pairs).items()) == [("A", "1"), ("A", "3"), ("B", "2")]
    assert Header(iter(pairs)) == Header(pairs)
    assert Header({"a": "1", "A": "3", "b": "2"}) == Header(pairs)
    assert Header(Header(pairs)) == Header(pairs)
    assert Header() == Header(None) == Header({}) == Header([])


def test_equality() -> None:
    assert Header({"a": "1"}) == Header([("A", "1")])
    assert Header({"a": "1"}) != Header({"a": "2"})
    assert Header([("a", "1"), ("a", "2")]) != Header([("a", "2"), ("a", "1")])
    assert Header() != {}
    with pytest.raises(TypeError, match="unhashable"):
        hash(Header())


def test_a_clone_shares_nothing() -> None:
    h = Header([("A", "1"), ("A", "2")])
    h["Date"] = None
    copy = h.clone()
    assert copy == h
    assert "Date" in copy
    copy.add("A", "3")
    copy["B"] = "4"
    assert h.values("A") == ["1", "2"]
    assert "B" not in h
    del h["A"]
    assert copy.values("A") == ["1", "2", "3"]


def test_a_list_of_values_handed_out_is_the_callers_own() -> None:
    h = Header([("A", "1"), ("A", "2")])
    h.values("A").append("3")
    assert h.values("A") == ["1", "2"]


CHANGES = {
    "set": lambda h: h.__setitem__("a", "changed"),
    "set to nothing": lambda h: h.__setitem__("A", None),
    "add": lambda h: h.add("A", "more"),
    "add another": lambda h: h.add("X", "more"),
    "delete": lambda h: h.__delitem__("A"),
    "pop": lambda h: h.pop("A"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_snapshot_keeps_what_was_there(change: Any) -> None:
    h = Header([("A", "1"), ("A", "2"), ("B", "3")])
    snapshot = h._share()
    before = {name: list(values) for name, values in snapshot.items()}
    change(h)
    assert snapshot == before
    assert h != Header._of(before), "the change itself has happened"
    again = h._share()
    kept = {name: list(values) for name, values in again.items()}
    change_back = h.clone()
    h.add("A", "later")
    assert again == kept
    assert change_back == Header._of(kept)


def test_reading_does_not_cost_a_copy() -> None:
    h = Header({"A": "1"})
    snapshot = h._share()
    assert (h["A"], h.get("a"), h.values("a"), list(h), len(h), "A" in h) == ("1", "1", ["1"], ["A"], 1, True)
    assert list(h.items()) == [("A", "1")]
    assert h._share() is snapshot


NAMES = st.sampled_from(["a", "A", "content-type", "CONTENT-type", "x-1", "no token", "b"])
VALUES = st.one_of(st.none(), st.text(max_size=5))
STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "add", "del", "pop", "share", "clone"]), NAMES, VALUES), max_size=20
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_any_steps_leave_what_a_plain_dict_of_lists_would_hold(
    steps: list[tuple[str, str, str | None]],
) -> None:
    h = Header()
    model: dict[str, list[str]] = {}
    snapshots: list[tuple[dict[str, list[str]], dict[str, list[str]]]] = []
    for what, name, value in steps:
        key = canonical_header_key(name)
        if what == "set":
            h[name] = value
            model[key] = [] if value is None else [value]
        elif what == "add":
            h.add(name, value or "")
            model.setdefault(key, []).append(value or "")
        elif what == "del" and key in model:
            del h[name]
            del model[key]
        elif what == "pop":
            values = model.pop(key, None)
            assert h.pop(name, "none") == (values[0] if values else "none")
        elif what == "share":
            snapshots.append((h._share(), {k: list(v) for k, v in model.items()}))
        elif what == "clone":
            h = h.clone()
    assert list(h) == list(model)
    assert list(h.items()) == [(k, v) for k, values in model.items() for v in values]
    for key, values in model.items():
        assert h.values(key.upper() if key != "no token" else key) == values
    for taken, kept in snapshots:
        assert taken == kept


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40).filter(lambda value: not set(value) & {*range(32), 127}))
def test_any_bytes_of_a_value_survive_the_round_trip(raw: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Raw: " + raw + b"\r\n\r\n"
    h = _parse_header(head.decode("utf-8", "surrogateescape"))
    assert list(h) == ["X-Raw"]
    assert h["X-Raw"].encode("utf-8", "surrogateescape") == raw.strip(b" ")
    assert _line("X-Raw", h["X-Raw"]) == b"X-Raw: " + raw.strip(b" ") + b"\r\n"
    if raw.isascii():
        assert h["X-Raw"] == raw.decode().strip(" ")


def test_the_header_of_a_received_head() -> None:
    head = (
        "GET / HTTP/1.1\r\nhost: a\r\nACCEPT:text/html\r\nX-A: \t 1 2 \t\r\nx-a:\r\nX-B: a:b\r\n"
        "Pragma: no-cache\r\nX-U: é\r\n\r\n"
    )
    h = _parse_header(head)
    assert "Host" not in h, "that is r.host"
    assert list(h) == ["Accept", "X-A", "X-B", "Pragma", "X-U", "Cache-Control"]
    assert h["Accept"] == "text/html"
    assert h.values("X-A") == ["1 2", ""]
    assert h["X-B"] == "a:b"
    assert h["X-U"] == "é"
    assert h["Cache-Control"] == "no-cache", "Pragma: no-cache means that (RFC 9111 section 5.4)"
    kept = _parse_header("GET / HTTP/1.1\r\nPragma: no-cache\r\nCache-Control: max-age=0\r\n\r\n")
    assert kept["Cache-Control"] == "max-age=0"
