"""Patterns: what parses, how two of them relate, how a conflict is explained."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.errors import PatternConflict, PatternError
from prefork.http.server.pattern import (
    Pattern,
    Relation,
    Segment,
    common_path,
    compare,
    compare_methods,
    compare_paths,
    conflicts,
    describe_conflict,
    difference_path,
    parse_pattern,
)

# --- parsing --------------------------------------------------------------------------------

LITERAL_A = Segment("a")
REST = Segment("", wild=True, multi=True)


@pytest.mark.parametrize(
    ("text", "method", "host", "segments"),
    [
        ("/", "", "", (REST,)),
        ("/a", "", "", (LITERAL_A,)),
        ("/a/", "", "", (LITERAL_A, REST)),
        ("/{$}", "", "", (Segment("/"),)),
        ("/a/{$}", "", "", (LITERAL_A, Segment("/"))),
        ("GET /a/{id}", "GET", "", (LITERAL_A, Segment("id", wild=True))),
        ("/{_x9...}", "", "", (Segment("_x9", wild=True, multi=True),)),
        ("/{naïve}", "", "", (Segment("naïve", wild=True),)),
        ("POST \t example.com/a", "POST", "example.com", (LITERAL_A,)),
        ("h:80/", "", "h:80", (REST,)),
        ("M-SEARCH /a", "M-SEARCH", "", (LITERAL_A,)),
        ("/%61", "", "", (LITERAL_A,)),
        ("/a%2Fb", "", "", (Segment("a/b"),)),
        ("/%7Bx%7D", "", "", (Segment("{x}"),)),
        ("/100%", "", "", (Segment("100%"),)),
        ("//a", "", "", (Segment(""), LITERAL_A)),
        ("CONNECT /a/../b", "CONNECT", "", (LITERAL_A, Segment(".."), Segment("b"))),
    ],
)
def test_parse(text: str, method: str, host: str, segments: tuple[Segment, ...]) -> None:
    pattern = parse_pattern(text)
    assert pattern == Pattern(text, method, host, segments)
    assert str(pattern) == text


def test_names_are_those_that_record_a_value() -> None:
    assert parse_pattern("/{a}/b/{c}/{d...}").names == ("a", "c", "d")
    assert parse_pattern("/{a}/b/").names == ("a",)
    assert parse_pattern("/{a}/{$}").names == ("a",)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("GET", "at offset 0: host/path missing /"),
        ("GET x", "at offset 4: host/path missing /"),
        ("G{T /", 'at offset 0: invalid method "G{T"'),
        ("{a}.com/", "at offset 0: host contains '{' (missing initial '/'?)"),
        ("GET a{b}/", "at offset 5: host contains '{' (missing initial '/'?)"),
        ("GET /a//b", "at offset 4: non-CONNECT pattern with unclean path can never match"),
        ("GET h/a/./b", "at offset 5: non-CONNECT pattern with unclean path can never match"),
        ("/a{b}", "at offset 1: bad wildcard segment (must start with '{')"),
        ("/{b}c", "at offset 1: bad wildcard segment (must end with '}')"),
        ("/a/{", "at offset 3: bad wildcard segment (must end with '}')"),
        ("/{}", "at offset 1: empty wildcard"),
        ("/{...}", "at offset 1: empty wildcard"),
        ("/{a b}", 'at offset 0: invalid method "/{a"'),
        ("/{a-b}", 'at offset 1: bad wildcard name "a-b"'),
        ("/{1a}", 'at offset 1: bad wildcard name "1a"'),
        ("/{a²}", 'at offset 1: bad wildcard name "a²"'),
        ("/{a.}", 'at offset 1: bad wildcard name "a."'),
        ("/{a...}/b", "at offset 1: {...} wildcard not at end"),
        ("/{a...}/", "at offset 1: {...} wildcard not at end"),
        ("/{$}/", "at offset 1: {$} not at end"),
        ("/{a}/b/{a}", 'at offset 7: duplicate wildcard name "a"'),
        ("/{a}/{a...}", 'at offset 5: duplicate wildcard name "a"'),
        ("GET h/{a}/{a}", 'at offset 10: duplicate wildcard name "a"'),
    ],
)
def test_parse_errors(text: str, fault: str) -> None:
    with pytest.raises(PatternError) as caught:
        parse_pattern(text)
    assert str(caught.value) == f'parsing "{text}": {fault}'
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, PatternConflict)


def test_an_empty_pattern_has_its_own_text() -> None:
    with pytest.raises(PatternError, match=r"^http: invalid pattern$"):
        parse_pattern("")


def test_a_pattern_is_a_str() -> None:
    with pytest.raises(TypeError, match="a pattern is a str, not bytes"):
        parse_pattern(b"/a")  # type: ignore[arg-type]


# --- relations ------------------------------------------------------------------------------


def matches(pattern: Pattern, path: str) -> bool:
    """Whether `pattern` matches a path, told in the simplest words there are."""
    parts = path[1:].split("/")
    segments = pattern.segments
    for at, segment in enumerate(segments):
        if segment.multi:
            return len(parts) > at
        if at >= len(parts):
            return False
        last = at == len(parts) - 1
        if segment == Segment("/"):
            return last and parts[at] == ""
        if segment.wild:
            if parts[at] == "":
                return False
        elif parts[at] != segment.text or (last and parts[at] == ""):
            return False
    return len(parts) == len(segments)


# Enough paths to tell all patterns of up to three segments over a and b apart: every choice
# of a, b, something else and nothing, up to five segments long.
PATHS = ["/" + "/".join(parts) for size in range(1, 6) for parts in product(["a", "b", "c", ""], repeat=size)]

paths = st.lists(st.sampled_from(["a", "b", "{%s}"]), max_size=3).flatmap(
    lambda parts: st.sampled_from(["", "/", "/{$}", "/{rest...}"]).map(
        lambda end: (
            "/" + "/".join(p.replace("%s", f"x{i}") for i, p in enumerate(parts)) + end
            if parts
            else end or "/"
        )
    )
)
methods = st.sampled_from(["", "GET ", "HEAD ", "POST "])
patterns = st.builds(lambda method, path: parse_pattern(method + path), methods, paths)


@given(patterns, patterns)
def test_relations_are_those_of_the_sets_of_paths(p1: Pattern, p2: Pattern) -> None:
    first = {path for path in PATHS if matches(p1, path)}
    second = {path for path in PATHS if matches(p2, path)}
    if not first & second:
        want = Relation.DISJOINT
    else:
        want = Relation(bool(first - second) | bool(second - first) << 1)
    assert compare_paths(p1, p2) is want
    assert compare_paths(p2, p1) is want.inverse()


@given(patterns, patterns)
def test_examples_in_explanations_are_true(p1: Pattern, p2: Pattern) -> None:
    relation = compare_paths(p1, p2)
    if relation is Relation.DISJOINT:
        return
    assert matches(p1, common_path(p1, p2))
    assert matches(p2, common_path(p1, p2))
    if relation in (Relation.OVERLAPS, Relation.MORE_GENERAL):
        path = difference_path(p1, p2)
        assert matches(p1, path)
        assert not matches(p2, path)


@given(patterns, patterns)
def test_conflicts_are_symmetric_and_explained(p1: Pattern, p2: Pattern) -> None:
    assert compare(p1, p2) is compare(p2, p1).inverse()
    assert conflicts(p1, p2) is conflicts(p2, p1)
    assert conflicts(p1, p1)
    if conflicts(p1, p2):
        assert p1.text in describe_conflict(p1, p2)
        assert p2.text in describe_conflict(p1, p2)


def test_methods() -> None:
    def relation(m1: str, m2: str) -> Relation:
        return compare_methods(parse_pattern(f"{m1} /".lstrip()), parse_pattern(f"{m2} /".lstrip()))

    assert relation("", "") is Relation.EQUIVALENT
    assert relation("PUT", "PUT") is Relation.EQUIVALENT
    assert relation("", "HEAD") is Relation.MORE_GENERAL
    assert relation("GET", "HEAD") is Relation.MORE_GENERAL
    assert relation("HEAD", "GET") is Relation.MORE_SPECIFIC
    assert relation("GET", "get") is Relation.DISJOINT


def test_relations_combine() -> None:
    general, specific = Relation.MORE_GENERAL, Relation.MORE_SPECIFIC
    assert general.combine(specific) is Relation.OVERLAPS
    assert general.combine(general) is general
    assert Relation.EQUIVALENT.combine(specific) is specific
    for relation in Relation:
        assert relation.combine(Relation.DISJOINT) is Relation.DISJOINT
        assert relation.inverse().inverse() is relation


def test_different_hosts_never_conflict() -> None:
    assert not conflicts(parse_pattern("a/x"), parse_pattern("b/x"))
    assert not conflicts(parse_pattern("a/x"), parse_pattern("/x"))
    assert conflicts(parse_pattern("a/x"), parse_pattern("a/x"))


def test_an_empty_segment_is_nothing_a_wildcard_takes() -> None:
    assert compare_paths(parse_pattern("//a"), parse_pattern("/{x}/a")) is Relation.DISJOINT
    assert compare_paths(parse_pattern("//a"), parse_pattern("/{x...}")) is Relation.MORE_SPECIFIC


# --- explanations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ("/a/{x}", "/a/{y}", "/a/{x} matches the same requests as /a/{y}"),
        ("/a/", "/a/{rest...}", "/a/ matches the same requests as /a/{rest...}"),
        (
            "GET /a",
            "HEAD /{x}",
            "GET /a matches more methods than HEAD /{x}, but has a more specific path pattern",
        ),
        (
            "POST /",
            "/a",
            "POST / matches fewer methods than /a, but has a more general path pattern",
        ),
        (
            "/posts/{id}",
            "/{resource}/latest",
            '/posts/{id} and /{resource}/latest both match some paths, like "/posts/latest".\n'
            "But neither is more specific than the other.\n"
            '/posts/{id} matches "/posts/id", but /{resource}/latest doesn\'t.\n'
            '/{resource}/latest matches "/resource/latest", but /posts/{id} doesn\'t.',
        ),
    ],
)
def test_descriptions(first: str, second: str, text: str) -> None:
    assert describe_conflict(parse_pattern(first), parse_pattern(second)) == text
