"""The routing tree: it finds what a naive search over all patterns finds, by every shortcut."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.message.request import Request
from prefork.http.message.url import clean_path
from prefork.http.server.pattern import Relation, compare, conflicts, parse_pattern
from prefork.http.server.routing import COMMON_METHODS, Route, RoutingTree

if TYPE_CHECKING:
    from prefork.http.server.pattern import Pattern


def handler(w: Any, r: Any) -> None:
    return None


def route(text: str) -> Route:
    return Route(parse_pattern(text), handler, handler, "file.py:1")


def tree_of(*texts: str) -> RoutingTree:
    tree = RoutingTree()
    for text in texts:
        tree.insert(route(text))
    return tree


def find(tree: RoutingTree, path: str, method: str = "GET") -> tuple[str, list[str]] | None:
    found = tree.find(path, method)
    return (found[0].pattern, found[1]) if found else None


def take(tree: RoutingTree, path: str, method: str = "GET") -> tuple[str, list[str]] | None:
    """What the shortcuts find, in the form of `find`."""
    r = Request(method, "/")
    if tree.take(r, path, method) is None:
        assert r.pattern == ""
        return None
    return r.pattern, list((r._path_values or {}).values())


# --- the order of precedence ----------------------------------------------------------------


def test_literal_before_wildcard_before_multi() -> None:
    tree = tree_of("/{x}", "/a", "/{rest...}", "/a/{y}/c", "/a/b/{z}")
    assert find(tree, "/a") == ("/a", [])
    assert find(tree, "/q") == ("/{x}", ["q"])
    assert find(tree, "/") == ("/{rest...}", [""])
    assert find(tree, "/q/r/") == ("/{rest...}", ["q/r/"])
    assert find(tree, "/a/b/c/d") == ("/{rest...}", ["a/b/c/d"])


def test_the_search_backs_up() -> None:
    tree = tree_of("/a/{x}/c", "/a/b/{y}", "/{z...}")
    assert find(tree, "/a/b/d") == ("/a/b/{y}", ["d"])
    assert find(tree, "/a/q/c") == ("/a/{x}/c", ["q"])
    assert find(tree, "/a/b/c/e") == ("/{z...}", ["a/b/c/e"])
    assert take(tree, "/a/b/c/e") is None


def test_backing_up_over_a_method() -> None:
    tree = tree_of("POST /a/b", "GET /a/{x}", "/")
    assert find(tree, "/a/b", "POST") == ("POST /a/b", [])
    assert find(tree, "/a/b", "GET") == take(tree, "/a/b", "GET") == ("GET /a/{x}", ["b"])
    assert find(tree, "/a/b", "PUT") == ("/", [])


def test_get_serves_head_unless_head_is_there() -> None:
    tree = tree_of("GET /a", "GET /b", "HEAD /b", "/c")
    assert find(tree, "/a", "HEAD") == ("GET /a", [])
    assert find(tree, "/b", "HEAD") == ("HEAD /b", [])
    assert find(tree, "/b", "GET") == ("GET /b", [])
    assert find(tree, "/a", "POST") is None
    assert find(tree, "/a", "get") is None
    for method in (*COMMON_METHODS, "get", "PURGE"):
        assert find(tree, "/c", method) == take(tree, "/c", method) == ("/c", [])


def test_the_order_of_insertion_does_not_matter() -> None:
    texts = ["/a", "GET /a", "HEAD /a", "/a/", "GET /a/{$}", "/{x}", "GET /{x}/b", "/{rest...}"]
    first, second = tree_of(*texts), tree_of(*reversed(texts))
    for path in ("/a", "/a/", "/a/b", "/b", "/b/b", "/"):
        for method in ("GET", "HEAD", "POST", "PURGE"):
            assert find(first, path, method) == find(second, path, method)
            assert first.literals.get(path, {}).get(method) is None or (
                first.literals[path][method].pattern == second.literals[path][method].pattern
            )


# --- segments -------------------------------------------------------------------------------


def test_a_wildcard_takes_one_name() -> None:
    tree = tree_of("/{x}/b")
    assert find(tree, "/a/b") == ("/{x}/b", ["a"])
    assert find(tree, "//b") is None
    assert find(tree, "/b") is None
    assert find(tree, "/a/c/b") is None
    assert find(tree, "/a/b/") is None


def test_trailing_slashes() -> None:
    tree = tree_of("/a/", "/b/{$}", "/c", "/d/{x}", "/e/{rest...}")
    assert find(tree, "/a/") == take(tree, "/a/") == ("/a/", [])
    assert find(tree, "/a/x/y/") == take(tree, "/a/x/y/") == ("/a/", [])
    assert find(tree, "/a") is None
    assert find(tree, "/b/") == take(tree, "/b/") == ("/b/{$}", [])
    assert find(tree, "/b/x") is None
    assert find(tree, "/c/") is None
    assert find(tree, "/d/") is None
    assert find(tree, "/e/") == take(tree, "/e/") == ("/e/{rest...}", [""])


def test_escapes_are_undone_segment_by_segment() -> None:
    tree = tree_of("/%61", "/b/{x}", "/c/{x}/{rest...}", "/e%2Ff", "/%")
    assert find(tree, "/a") == ("/%61", [])
    assert find(tree, "/%61") == ("/%61", [])
    assert find(tree, "/b/%C3%A9%20") == ("/b/{x}", ["é "])
    assert find(tree, "/b/x%2Fy") == ("/b/{x}", ["x/y"])
    assert find(tree, "/c/%2Fx/y%2F/%ff") == ("/c/{x}/{rest...}", ["/x", "y//\udcff"])
    assert find(tree, "/e%2ff") == ("/e%2Ff", [])
    assert find(tree, "/e/f") is None
    assert find(tree, "/%25") == ("/%", [])


def test_a_lone_encoded_slash_is_a_trailing_slash() -> None:
    # As Go has it: it is no name, so no wildcard takes it.
    tree = tree_of("/a/{x}", "/b/{$}")
    assert find(tree, "/a/%2F") is None
    assert find(tree, "/b/%2F") == ("/b/{$}", [])


def test_exact_matches() -> None:
    for text, path, exact in (
        ("/a", "/a", True),
        ("/{x}", "/a", True),
        ("/a/{$}", "/a/", True),
        ("/a/", "/a/", True),
        ("/a/{rest...}", "/a/", True),
        ("/", "/a", False),
        ("/a/", "/a/b/", False),
        ("/a/{rest...}", "/a/b", False),
    ):
        assert route(text).is_exact(path) is exact


def test_more_wildcards_than_are_written_out() -> None:
    tree = tree_of("/{a}/{b}/{c}/{d}/{e...}", "/{a}/{b}/{c}")
    assert take(tree, "/1/2/3/4/5/6") == ("/{a}/{b}/{c}/{d}/{e...}", ["1", "2", "3", "4", "5/6"])
    assert take(tree, "/1/2/3") == ("/{a}/{b}/{c}", ["1", "2", "3"])


def test_a_path_longer_than_any_pattern() -> None:
    tree = tree_of("/{x}/b/", "/q/{rest...}")
    long = "/".join("b" * 1000)
    assert take(tree, f"/a/b/{long}/") == ("/{x}/b/", ["a"])
    assert take(tree, f"/q/{long}/") == ("/q/{rest...}", [f"{long}/"])
    deep = "/" + "/".join(f"{{x{n}}}" for n in range(200))
    tree = tree_of(deep)
    path = "/" + "/".join("b" * 200)
    assert take(tree, path) == find(tree, path) == (deep, ["b"] * 200)
    assert take(tree, path + "/b") is None


# --- methods for Allow ----------------------------------------------------------------------


def test_methods() -> None:
    tree = tree_of("GET /a", "POST /{x}", "PUT /{rest...}", "HEAD /h", "/any", "DELETE /a/{$}")
    assert tree.methods("/a") == {"GET", "HEAD", "POST", "PUT"}
    assert tree.methods("/h") == {"HEAD", "POST", "PUT"}
    assert tree.methods("/a/") == {"DELETE", "PUT"}
    assert tree.methods("/any") == {"POST", "PUT"}
    assert tree_of("GET /a").methods("/b") == set()


# --- what the shortcuts hold ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/", "/"),
        ("/{$}", "/"),
        ("/a", "/a"),
        ("GET /a/b", "/a/b"),
        ("/a/", "/a/"),
        ("/a/{$}", "/a/"),
        ("/%61/b", "/a/b"),
        ("/.well-known", "/.well-known"),
    ],
)
def test_literals_hold(text: str, path: str) -> None:
    tree = tree_of(text)
    assert list(tree.literals) == [path]
    assert tree.literals[path]["GET"].pattern == text


@pytest.mark.parametrize(
    "text",
    [
        "/{x}",
        "/a/{x...}",
        "/{x}/b",
        "//a",
        "/a//",
        "/a/../b",
        "/.",
        "/a%2Fb",
        "/a/%2F/b",
        "/100%",
        "/%2e%2e/a",
    ],
)
def test_literals_do_not_hold(text: str) -> None:
    assert tree_of(text).literals == {}


def test_literals_know_the_methods() -> None:
    tree = tree_of("GET /a", "POST /a")
    assert {method: r.pattern for method, r in tree.literals["/a"].items()} == {
        "GET": "GET /a",
        "HEAD": "GET /a",
        "POST": "POST /a",
    }
    tree.insert(route("/a"))
    assert tree.literals["/a"]["HEAD"].pattern == "GET /a"
    assert tree.literals["/a"]["PUT"].pattern == "/a"


def test_a_subtree_and_its_root_share_an_entry() -> None:
    tree = tree_of("/a/", "POST /a/{$}", "PUT /a/{rest...}")
    table = tree.literals["/a/"]
    assert table["GET"].pattern == "/a/"
    assert table["POST"].pattern == "POST /a/{$}"
    assert "PUT" not in table or table["PUT"].pattern != "/a/"
    assert find(tree, "/a/", "PUT") == ("PUT /a/{rest...}", [""])


# --- against the naive search ---------------------------------------------------------------

segment = st.sampled_from(["a", "b", "{%s}", "{%s}", "%61", "a%2Fb", ".a", "%25", "é"])
pattern_paths = st.lists(segment, max_size=3).flatmap(
    lambda parts: st.sampled_from(["", "", "", "/", "/{$}", "/{rest...}"]).map(
        lambda end: (
            "/" + "/".join(p.replace("%s", f"x{i}") for i, p in enumerate(parts)) + end
            if parts
            else end or "/"
        )
    )
)
pattern_texts = st.builds(
    str.__add__, st.sampled_from(["", "", "GET ", "HEAD ", "POST ", "PURGE "]), pattern_paths
)
request_paths = st.lists(
    st.sampled_from(["a", "b", "c", ".a", "é", "%61", "a%2Fb", "%2F", "%25", "%C3%A9"]), max_size=4
).flatmap(
    lambda parts: st.sampled_from(["", "/"]).map(lambda end: "/" + "/".join(parts) + (end if parts else ""))
)
request_methods = st.sampled_from(["GET", "HEAD", "POST", "PURGE", "OPTIONS"])


def consistent(texts: list[str]) -> list[Pattern]:
    """Those of `texts` that can be in one tree, first come, first served."""
    kept: list[Pattern] = []
    for pattern in map(parse_pattern, texts):
        if not any(conflicts(pattern, other) for other in kept):
            kept.append(pattern)
    return kept


def naive(kept: list[Pattern], path: str, method: str) -> str | None:
    """The most specific pattern that matches, by comparing patterns with each other."""
    # A request is itself like a pattern that nothing is more specific than.
    literal = "".join(
        "/{$}" if part in ("", "%2F") and at == path.count("/") - 1 else f"/{part.replace('{', '%7B')}"
        for at, part in enumerate(path[1:].split("/"))
    )
    request = parse_pattern(f"{method} {literal}")
    found = [p for p in kept if compare(p, request) in (Relation.EQUIVALENT, Relation.MORE_GENERAL)]
    for p1, p2 in pairwise(found):
        assert compare(p1, p2) in (Relation.MORE_GENERAL, Relation.MORE_SPECIFIC)
    for candidate in found:
        if all(p is candidate or compare(candidate, p) is Relation.MORE_SPECIFIC for p in found):
            return candidate.text
    assert not found
    return None


@given(
    st.lists(pattern_texts, min_size=1, max_size=12),
    st.lists(request_paths, min_size=1, max_size=8),
    request_methods,
)
def test_the_tree_agrees_with_a_naive_search(texts: list[str], paths: list[str], method: str) -> None:
    kept = consistent(texts)
    tree = tree_of(*(p.text for p in kept))
    for path in paths:
        found = tree.find(path, method)
        assert (found[0].pattern if found else None) == naive(kept, path, method)


@given(
    st.lists(pattern_texts, min_size=1, max_size=12),
    st.lists(request_paths, min_size=1, max_size=8),
    request_methods,
)
def test_the_shortcuts_agree_with_the_tree(texts: list[str], paths: list[str], method: str) -> None:
    tree = tree_of(*(p.text for p in consistent(texts)))
    for path in [*paths, *filter(None, tree.literals)]:
        if "%" in path or clean_path(path) != path:
            continue
        found = tree.find(path, method)
        entry = tree.literals.get(path, {}).get(method)
        if entry is not None:
            assert found == (entry, [])
        short = take(tree, path, method)
        if short is not None:
            assert found is not None
            assert short == (found[0].pattern, found[1])
            # What `take` finds is final: a slash behind the path would not be matched exactly,
            # where the path itself is not.
            slashed = tree.find(path + "/", method)
            if not found[0].is_exact(path) and not path.endswith("/"):
                assert slashed is None or not slashed[0].is_exact(path + "/")


@given(st.lists(pattern_texts, min_size=1, max_size=12), pattern_texts)
def test_overlapping_finds_every_conflict(texts: list[str], text: str) -> None:
    kept = consistent(texts)
    tree = tree_of(*(p.text for p in kept))
    pattern = parse_pattern(text)
    overlapping = [r.parsed for r in tree.overlapping(pattern)]
    assert len(overlapping) == len(set(overlapping))
    for p in kept:
        if p in overlapping:
            continue
        assert not conflicts(pattern, p)
    assert {p for p in kept if conflicts(pattern, p)} <= set(overlapping)


# --- cost -----------------------------------------------------------------------------------


def test_overlapping_does_not_look_at_everything() -> None:
    tree = tree_of("/", *(f"/api/r{n}/{{id}}" for n in range(500)), *(f"/dir{n}/" for n in range(500)))
    for text in ("/api/new", "/api/new/{id}", "/new/", "GET /api/r7/{id}/x"):
        assert len(list(tree.overlapping(parse_pattern(text)))) <= 2


def test_routes_describe_themselves() -> None:
    class Page:
        def serve_http(self, w: Any, r: Any) -> None: ...

    class Shown(Page):
        def __repr__(self) -> str:
            return "<shown>"

    def named(h: Any) -> str:
        return Route(parse_pattern("/"), h, handler, "f.py:1").handler_name

    assert named(handler) == f"{__name__}.handler"
    assert named(Page()).endswith("<locals>.Page")
    assert named(Page().serve_http).endswith("Page.serve_http")
    assert named(Shown()) == "<shown>"
    assert repr(route("/a")) == f"<Route '/a' {__name__}.handler file.py:1>"
