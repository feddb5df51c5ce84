"""Measured answers of Go's net/url and ServeMux, row by row.

One test per row, so pytest's count is the number of rows that ran. Rows that do not apply here
are in vector_exceptions.py under their index (or "*" for a whole file) with the reason, and must
really differ.
"""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.errors import PatternError
from prefork.http.message.header import Header
from prefork.http.message.query import (
    Part,
    encode_query,
    must_escape,
    path_escape,
    path_unescape,
    query_escape,
    query_unescape,
)
from prefork.http.message.request import Request
from prefork.http.message.url import URL, URLError, _resolve_path, clean_path, join_path, path_clean
from prefork.http.server.mux import ServeMux, _strip_port
from prefork.http.server.pattern import (
    Relation,
    common_path,
    compare,
    compare_methods,
    compare_paths,
    conflicts,
    describe_conflict,
    difference_path,
    parse_pattern,
)
from prefork.http.server.routing import _split

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "vectors"
EXCEPTIONS: dict[str, dict[str, str]] = runpy.run_path(str(Path(__file__).with_name("vector_exceptions.py")))[
    "EXCEPTIONS"
]
FILES = re.compile(r"(golden_)?(url|mux|servemux|path)_.*|golden_strip_host_port")
# These are read by test_vectors_message.py.
ELSEWHERE = {"url_parse_query", "url_parse_query_limits"}

Row = Any
CHECKS: dict[str, Callable[[Row], None]] = {}


def check(name: str) -> Callable[[Callable[[Row], None]], Callable[[Row], None]]:
    """Registers a function that asserts one row of the file `name`."""

    def register(function: Callable[[Row], None]) -> Callable[[Row], None]:
        CHECKS[name] = function
        return function

    return register


def fault(function: Callable[..., object], *arguments: str) -> str | None:
    """The text of the URLError that a call raises, None when it raises none."""
    try:
        function(*arguments)
    except URLError as exc:
        return str(exc)
    return None


# --- URLs -----------------------------------------------------------------------------------


def make_url(fields: Row) -> URL:
    fields = dict(fields)
    user = fields.pop("user")
    url = URL(**fields)
    if user is not None:
        url.username = user["username"]
        url.password = user["password"] if user["password_set"] else None
    return url


@check("url_parse")
def _(row: Row) -> None:
    url = make_url(row["want"])
    assert str(url) == row["string"]
    if not row["in"]:  # a URL that no text parses to
        return
    assert URL.parse(row["in"]) == url
    assert url.escaped_path() == row["escaped_path"]
    assert url.request_uri() == row["request_uri"]
    assert url.hostname() == row["hostname"]
    assert url.port() == row["port"]


@check("url_parse_errors")
def _(row: Row) -> None:
    text = row["in"].encode("latin-1").decode("utf-8", "surrogateescape")
    assert fault(URL.parse, text) == row["go_error"]


@check("url_parse_request_uri")
def _(row: Row) -> None:
    assert fault(URL.parse_request_uri, row["url"]) == row["go_error"]


@check("golden_url_request_target")
def _(row: Row) -> None:
    assert fault(URL.parse_request_uri, row["in"]) == row["error"]
    if row["error"] is not None:
        return
    url = URL.parse_request_uri(row["in"])
    assert url.path == row["path"]
    assert url.raw_path == row["raw_path"]
    assert url.raw_query == row["raw_query"]
    assert url.force_query is row["force_query"]
    assert url.escaped_path() == row["escaped_path"]
    assert url.request_uri() == row["request_uri"]
    assert str(url) == row["string"]


@check("url_string")
def _(row: Row) -> None:
    assert str(make_url(row["url"])) == row["want"]


@check("url_request_uri")
def _(row: Row) -> None:
    assert make_url(row["url"]).request_uri() == row["want"]


@check("url_redacted")
def _(row: Row) -> None:
    assert row["url"] is not None
    assert make_url(row["url"]).redacted() == row["want"]


@check("url_hostname_port")
def _(row: Row) -> None:
    url = URL(host=row["host_field"])
    assert (url.hostname(), url.port()) == (row["hostname"], row["port"])


@check("url_resolve_path")
def _(row: Row) -> None:
    assert _resolve_path(row["base"], row["ref"]) == row["want"]


@check("url_resolve_reference")
def _(row: Row) -> None:
    assert str(URL.parse(row["base"]).resolve_reference(row["rel"])) == row["want"]


@check("url_join_path")
def _(row: Row) -> None:
    elements = row["elem"] or []
    if row["error"]:
        assert fault(join_path, row["base"], *elements)
    else:
        assert join_path(row["base"], *elements) == row["want"]


@check("url_path_escape")
def _(row: Row) -> None:
    assert path_escape(row["in"]) == row["out"]
    assert path_unescape(row["out"]) == row["in"]


@check("url_query_escape")
def _(row: Row) -> None:
    assert query_escape(row["in"]) == row["out"]
    assert query_unescape(row["out"]) == row["in"]


@check("url_query_unescape")
def _(row: Row) -> None:
    assert fault(query_unescape, row["in"]) == row["error"]
    if row["error"] is None:
        assert query_unescape(row["in"]) == row["out"]


@check("url_encode_query")
def _(row: Row) -> None:
    assert encode_query(row["values"]) == row["want"]


@check("url_should_escape")
def _(row: Row) -> None:
    assert must_escape(row["byte"], Part[row["mode"].upper()]) is row["escape"]


@check("golden_url_escape_classes")
def _(row: Row) -> None:
    byte, *wanted = row
    parts = ("PATH", "PATH_SEGMENT", "HOST", "ZONE", "USER_PASSWORD", "QUERY_COMPONENT", "FRAGMENT")
    assert [must_escape(byte, Part[part]) for part in parts] == wanted


@check("path_clean")
def _(row: Row) -> None:
    assert path_clean(row["in"]) == row["want"]


@check("mux_clean_path")
def _(row: Row) -> None:
    assert clean_path(row["in"]) == row["want"]


# --- patterns -------------------------------------------------------------------------------

RELATIONS = {
    "equivalent": Relation.EQUIVALENT,
    "moreGeneral": Relation.MORE_GENERAL,
    "moreSpecific": Relation.MORE_SPECIFIC,
    "overlaps": Relation.OVERLAPS,
    "disjoint": Relation.DISJOINT,
}


@check("mux_pattern_parse")
def _(row: Row) -> None:
    pattern = parse_pattern(row["in"])
    assert (pattern.method, pattern.host) == (row["method"], row["host"])
    assert [{"s": s.text, "wild": s.wild, "multi": s.multi} for s in pattern.segments] == row["segments"]


@check("mux_pattern_errors")
def _(row: Row) -> None:
    with pytest.raises(PatternError) as caught:
        parse_pattern(row["in"])
    assert str(caught.value) == f'parsing "{row["in"]}": {row["go_error"]}'


@check("mux_compare_paths")
def _(row: Row) -> None:
    _check_relation(row, compare_paths)


@check("mux_compare_methods")
def _(row: Row) -> None:
    _check_relation(row, compare_methods)


def _check_relation(row: Row, function: Callable[..., Relation]) -> None:
    p1, p2 = parse_pattern(row["p1"]), parse_pattern(row["p2"])
    assert function(p1, p2) is RELATIONS[row["want"]]
    assert function(p2, p1) is RELATIONS[row["inverse"]]
    assert function(p1, p2).inverse() is RELATIONS[row["inverse"]]


@check("mux_conflicts")
def _(row: Row) -> None:
    p1, p2 = parse_pattern(row["p1"]), parse_pattern(row["p2"])
    assert conflicts(p1, p2) is conflicts(p2, p1) is row["conflict"]
    assert compare(p1, p2) is RELATIONS[row["paths_and_methods"]]
    if row["conflict"]:
        assert describe_conflict(p1, p2) == row["description"]


@check("golden_mux_relations")
def _(row: Row) -> None:
    first, second, relation, conflict = row
    p1, p2 = parse_pattern(first), parse_pattern(second)
    assert compare(p1, p2) is RELATIONS[relation]
    assert conflicts(p1, p2) is conflict


@check("mux_describe_conflict")
def _(row: Row) -> None:
    assert describe_conflict(parse_pattern(row["p1"]), parse_pattern(row["p2"])) == row["description"]


@check("mux_common_path")
def _(row: Row) -> None:
    assert common_path(parse_pattern(row["p1"]), parse_pattern(row["p2"])) == row["want"]


@check("mux_difference_path")
def _(row: Row) -> None:
    assert difference_path(parse_pattern(row["p1"]), parse_pattern(row["p2"])) == row["want"]


# --- the mux --------------------------------------------------------------------------------


class Recorder:
    """As much of a ResponseWriter as a mux and its replies use."""

    def __init__(self) -> None:
        self.header = Header()
        self.status = 0
        self.body = ""

    def write_header(self, status: int) -> None:
        self.status = self.status or status

    def write(self, data: bytes | str) -> None:
        self.write_header(200)
        self.body += data if isinstance(data, str) else data.decode()


def serving(patterns: list[str]) -> ServeMux:
    """A mux whose handlers tell their pattern in the field Ran and answer 200."""
    mux = ServeMux()
    for pattern in patterns:

        def ran(w: Any, r: Request, pattern: str = pattern) -> None:
            w.header["Ran"] = pattern
            w.write_header(200)

        mux.handle(pattern, ran)
    return mux


def answering(register: list[Row]) -> ServeMux:
    """A mux from rows {pattern, handler}, where handler is a status or "checkQueryString"."""
    mux = ServeMux()
    for entry in register:

        def answer(w: Any, r: Request, status: int | str = entry["handler"]) -> None:
            if not isinstance(status, int):
                status = 200 if r.url.path == "/" + r.url.raw_query.partition("/")[2] else 500
            w.write_header(status)

        mux.handle(entry["pattern"], answer)
    return mux


def serve(mux: ServeMux, r: Request) -> Recorder:
    w = Recorder()
    mux.serve_http(w, r)  # type: ignore[arg-type]
    return w


def received(method: str, target: str, host: str, *, plain: bool) -> Request:
    """A request as the server makes it; plain: with the path set aside for the mux."""
    r = Request(method, URL.parse_request_uri(target), host=host)
    if plain and "%" not in target:
        r._plain_path = target.partition("?")[0]
    return r


@check("mux_first_segment")
def _(row: Row) -> None:
    assert [segment or "/" for segment in _split(row["path"])[1:]] == row["segments"]


@check("mux_match")
def _(row: Row) -> None:
    found = serving(row["patterns"])._find(row["host"], row["path"], row["method"])
    pattern, values = (found[0].pattern, found[1]) if found else ("", [])
    assert (pattern, values) == (row["want_pattern"], row["want_matches"])


@check("mux_matching_methods")
def _(row: Row) -> None:
    methods = serving(row["patterns"])._any_host.methods(row["path"])
    assert sorted(methods) == (row["want"] or [])


@check("mux_exact_match")
def _(row: Row) -> None:
    mux = serving([row["pattern"]] if row["pattern"] else [])
    found = mux._find("", row["path"], "GET")
    assert (found is not None and found[0].is_exact(row["path"])) is row["want"]


@check("mux_register_errors")
def _(row: Row) -> None:
    mux = serving(row["already_registered"])
    with pytest.raises(PatternError) as caught:
        mux.handle(row["pattern"], lambda w, r: None)
    text = re.sub(r"registered at \S+:\d+\)", "registered at FILE:LINE)", str(caught.value))
    assert text == row["go_error"]


@check("mux_escaped_paths")
def _(row: Row) -> None:
    # The column of Go 1.21 is about a mux that is not here.
    mux = serving([row["pattern"]])
    for path in row["paths"]:
        for plain in (True, False):
            r = received("GET", path, "", plain=plain)
            assert serve(mux, r).header["Ran"] == r.pattern == row["pattern"]


@check("mux_find_handler")
def _(row: Row) -> None:
    mux = ServeMux()
    for entry in row["register"]:
        mux.handle(entry["pattern"], lambda w, r, id=entry["id"]: w.write(str(id)))
    r = Request(row["method"], URL(path=row["path"]), host=row["host"])
    handler, pattern = mux.handler(r)
    assert pattern == row["pattern"]
    w = Recorder()
    handler(w, r)  # type: ignore[operator, arg-type]
    if "handler" in row["want"]:
        assert w.body == str(row["want"]["handler"])
    else:
        assert (w.status, w.header["Location"]) == (row["want"]["code"], row["want"]["redirect"])


@check("servemux_tests")
def _(row: Row) -> None:
    r = Request(row["method"], URL(path=row["path"]), host=row["host"])
    handler, pattern = answering(row["register"]).handler(r)
    assert pattern == row["pattern"]
    w = Recorder()
    handler(w, r)  # type: ignore[operator, arg-type]
    assert (w.status, w.header.get("Location", "")) == (row["code"], row["location"])


@check("servemux_tests2")
def _(row: Row) -> None:
    mux = ServeMux()
    for entry in row["register"]:
        status = entry["handler"] if isinstance(entry["handler"], int) else 200
        mux.handle(entry["pattern"], lambda w, r, status=status: w.write_header(status))
    r = Request(row["method"], row["url"], host=row["host"])
    assert mux.handler(r)[1] == row["first_pattern"]
    w = serve(mux, r)
    assert (w.status, w.header.get("Location", "")) == (row["first_code"], row["first_location"])
    if row["redirect_ok"]:
        w = serve(mux, Request(row["method"], w.header["Location"], host=row["host"]))
    assert w.status == row["final_code"]


@check("servemux_host_handlers")
def _(row: Row) -> None:
    mux = ServeMux()
    for entry in row["register"]:
        mux.handle(entry["pattern"], lambda w, r, text=entry["msg"]: w.write(text))
    w = serve(mux, Request("GET", row["url"]))
    assert (w.header["Location"] if row["is_redirect"] else w.body) == row["expected"]


@check("servemux_misc")
def _(row: Row) -> None:
    for plain in (True, False):
        w = serve(serving(row["register"]), received("GET", row["path"], "", plain=plain))
        assert (w.status, w.header.get("Location", "")) == (row["code"], row["location"])


@check("servemux_path_value")
def _(row: Row) -> None:
    for plain in (True, False):
        r = received("GET", row["url"], "", plain=plain)
        assert serve(serving([row["pattern"]]), r).status == 200
        assert {name: r.path_value(name) for name in row["want"]} == row["want"]


@check("servemux_slash_redirect_host")
def _(row: Row) -> None:
    w = serve(serving(row["register"]), Request(row["method"], row["url"]))
    assert (w.status, w.header.get("Location", ""), w.header.get("Ran", "")) == (
        row["code"],
        row["location"],
        row["handler"],
    )


@check("servemux_slash_redirect_query")
def _(row: Row) -> None:
    mux = ServeMux()
    for pattern in ("/testOne", "/testTwo/", "/testThree"):
        mux.handle_func(pattern, lambda w, r: w.write(r.url.raw_query))
    mux.handle_func("/testThree/", lambda w, r: w.write(r.url.raw_query + ":bar"))
    w = serve(mux, Request(row["method"], row["path"]))
    if w.status == 307:
        w = serve(mux, Request(row["method"], w.header["Location"]))
    assert (w.status == 200) is row["status_ok"]
    assert w.body == row["want_body"]


@check("servemux_status_405")
def _(row: Row) -> None:
    for plain in (True, False):
        mux = serving(row["register"])
        w = serve(mux, received(row["method"], row["path"], "", plain=plain))
        if w.status == 307:  # the measuring client follows redirects
            w = serve(mux, received(row["method"], w.header["Location"], "", plain=plain))
        assert (w.status, w.header.get("Allow", "")) == (row["want_status"], row["want_allow"])


@check("golden_mux_serve")
def _(row: Row) -> None:
    if "parse_error" in row:
        assert fault(URL.parse_request_uri, row["target"]) == row["parse_error"]
        return
    mux = serving(row["patterns"])
    for plain in (True, False):
        r = received(row["method"], row["target"], row["host"], plain=plain)
        _, found = mux.handler(r)
        w = serve(mux, r)
        assert w.status == row["status"]
        assert w.header.get("Ran", "") == row["pattern"]
        assert r.pattern == found == row["request_pattern"]
        assert w.header.get("Location", "") == row["location"]
        assert w.header.get("Allow", "") == row["allow"]
        assert w.body == row["body"]
        assert w.header.get("Content-Type", "") == row["content_type"]
        assert (r._path_values or None) == (row["path_values"] or None)


@check("golden_strip_host_port")
def _(row: Row) -> None:
    assert _strip_port(row["in"]) == row["strip_host_port"]


# --- the rows -------------------------------------------------------------------------------


def rows() -> list[Any]:
    found = []
    for name in sorted(CHECKS):
        path = FOLDER / f"{name}.json"
        if path.exists():
            for number, row in enumerate(json.loads(path.read_text())["vectors"]):
                found.append(pytest.param(name, number, row, id=f"{name}-{number}"))
    return found or [pytest.param("", 0, {}, marks=pytest.mark.skip(reason=f"no vectors in {FOLDER}"))]


@pytest.mark.parametrize(("name", "number", "row"), rows())
def test_row(name: str, number: int, row: Row) -> None:
    if str(number) in EXCEPTIONS.get(name, {}):
        with pytest.raises(AssertionError):
            CHECKS[name](row)
    else:
        CHECKS[name](row)


def test_every_file_is_read_or_excepted() -> None:
    if not FOLDER.exists():
        pytest.skip(f"no vectors in {FOLDER}")
    files = {path.stem for path in FOLDER.glob("*.json") if FILES.fullmatch(path.stem)}
    excepted = {name for name, reasons in EXCEPTIONS.items() if "*" in reasons}
    assert files - excepted - ELSEWHERE == set(CHECKS)
    for name in CHECKS:
        size = len(json.loads((FOLDER / f"{name}.json").read_text())["vectors"])
        assert {int(number) for number in EXCEPTIONS.get(name, {})} <= set(range(size)), name
