"""Measured answers of Go's net/http, row by row, for cookies, forms, media types, dates and replies.

One test per row, so pytest's count is the number of rows that ran. Rows that do not apply
here are in vector_exceptions.py with their reason, and must really differ.
"""

from __future__ import annotations

import json
import runpy
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.errors import CookieError
from prefork.http.handlers import replies
from prefork.http.handlers.max_bytes import max_bytes_handler
from prefork.http.handlers.semicolons import allow_query_semicolons
from prefork.http.handlers.strip_prefix import strip_prefix
from prefork.http.message import auth, cookie, httptime, mediatype, multipart, multipart_reader, sniff, status
from prefork.http.message.body import Body
from prefork.http.message.form import FormError, parse_form
from prefork.http.message.header import Header
from prefork.http.message.query import QueryError, parse_query
from prefork.http.message.request import Request
from prefork.http.message.url import URL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "vectors"
EXCEPTIONS: dict[str, dict[str, str]] = runpy.run_path(str(Path(__file__).with_name("vector_exceptions.py")))[
    "EXCEPTIONS"
]

Row = dict[str, Any]
CHECKS: dict[str, Callable[[Row], Any]] = {}


def check(name: str) -> Callable[[Callable[[Row], Any]], Callable[[Row], Any]]:
    """Registers a function that asserts one row of the file `name`; it may return a coroutine."""

    def register(function: Callable[[Row], Any]) -> Callable[[Row], Any]:
        CHECKS[name] = function
        return function

    return register


def key(row: Row) -> str:
    """What identifies a row in vector_exceptions.py: its inputs that are short."""
    for field in (
        "name",
        "desc",
        "note",
        "in",
        "line",
        "query",
        "authorization",
        "url",
        "data",
        "from",
        "go_error",
    ):
        if row.get(field) is not None:
            return str(row[field])
    return json.dumps(row, sort_keys=True)


class Recorder:
    """As much of a ResponseWriter as the replies use."""

    def __init__(self) -> None:
        self.header = Header()
        self.status = 0
        self.body = b""

    def write_header(self, status: int) -> None:
        self.status = status

    def write(self, data: bytes | str) -> None:
        self.body += data if isinstance(data, bytes) else data.encode()


async def pieces(data: bytes, size: int = 37) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


# --- status, time, sniffing -----------------------------------------------------------------


@check("golden_status_text")
def _(row: Row) -> None:
    assert status.status_text(row["code"]) == row["text"]
    assert status.body_allowed_for_status(row["code"]) is row["body_allowed"]


@check("header_parse_time")
def _(row: Row) -> None:
    if row["error"]:
        with pytest.raises(ValueError, match="not an HTTP date"):
            httptime.parse_time(row["in"])
    else:
        assert int(httptime.parse_time(row["in"]).timestamp()) == row["unix"]


@check("sniff")
@check("golden_sniff")
def _(row: Row) -> None:
    assert sniff.detect_content_type(row["data"].encode("latin-1")) == row["content_type"]


# --- cookies --------------------------------------------------------------------------------


def make_cookie(fields: Row) -> cookie.Cookie:
    expires = fields["expires"]
    return cookie.Cookie(
        fields["name"],
        fields["value"],
        quoted=fields["quoted"],
        path=fields["path"],
        domain=fields["domain"],
        expires=datetime.fromisoformat(expires.split(".")[0].rstrip("Z")).replace(tzinfo=UTC)
        if expires
        else None,
        raw_expires=fields["raw_expires"],
        max_age=fields["max_age"] or None,
        secure=fields["secure"],
        http_only=fields["http_only"],
        same_site=cookie.SameSite(fields["same_site"]) if fields["same_site"] else None,
        partitioned=fields["partitioned"],
        raw=fields["raw"],
        unparsed=fields["unparsed"] or [],
    )


def cookie_lines(spec: Row) -> list[str]:
    if "repeat_joined_by_semicolon" in spec:
        return [";".join([spec["repeat_joined_by_semicolon"]] * spec["times"])]
    if "repeat_line" in spec:
        return [spec["repeat_line"]] * spec["lines"]
    return list(spec["lines"])


@check("cookie_add_cookie")
def _(row: Row) -> None:
    assert "; ".join(make_cookie(fields).request_value() for fields in row["cookies"]) == row["raw"]


@check("cookie_parse_cookie")
def _(row: Row) -> None:
    if row["error"] is None:
        assert cookie.parse_cookie(row["line"]) == [make_cookie(fields) for fields in row["cookies"]]
    else:
        with pytest.raises(CookieError) as caught:
            cookie.parse_cookie(row["line"])
        assert str(caught.value) == row["error"]


@check("cookie_parse_set_cookie")
def _(row: Row) -> None:
    if row["error"] is None:
        assert cookie.parse_set_cookie(row["line"]) == make_cookie(row["cookie"])
    else:
        with pytest.raises(CookieError) as caught:
            cookie.parse_set_cookie(row["line"])
        assert str(caught.value) == row["error"]


@check("cookie_read_cookies")
def _(row: Row) -> None:
    lines = cookie_lines(row["cookie"])
    found = cookie.read_cookies(lines, row["filter"])
    assert len(found) == row["want_count"]
    if row["cookies"] is not None:
        assert found == [make_cookie(fields) for fields in row["cookies"]]
    if row.get("golden"):
        error = None
        try:
            cookie.parse_cookie(lines[0])
        except CookieError as exc:
            error = str(exc)
        assert error == row["parse_cookie_error"]


@check("cookie_read_set_cookies")
def _(row: Row) -> None:
    lines = cookie_lines(row["set_cookie"])
    found = cookie.read_set_cookies(lines)
    assert len(found) == row["want_count"]
    if row["cookies"] is not None:
        assert found == [make_cookie(fields) for fields in row["cookies"]]
    if row.get("go_error"):
        with pytest.raises(CookieError) as caught:
            cookie.parse_set_cookie(lines[0])
        assert str(caught.value) == row["go_error"]


@check("cookie_sanitize_path")
def _(row: Row) -> None:
    assert str(cookie.Cookie("a", path=row["in"])) == f"a=; Path={row['want']}"


@check("cookie_sanitize_value")
def _(row: Row) -> None:
    value = row["in"].encode("latin-1").decode("utf-8", "surrogateescape")
    assert str(cookie.Cookie("a", value, quoted=row["quoted"])) == f"a={row['want']}"


@check("cookie_valid")
def _(row: Row) -> None:
    made = make_cookie(row["cookie"]) if row["cookie"] else cookie.Cookie("")
    if row["valid"]:
        assert made.valid()
    else:
        with pytest.raises(CookieError) as caught:
            made.valid()
        assert str(caught.value) == row["go_error"]


@check("cookie_write_set_cookies")
def _(row: Row) -> None:
    assert str(make_cookie(row["cookie"])) == row["raw"]


@check("golden_cookie_domain_valid")
def _(row: Row) -> None:
    written = "Domain=" in str(cookie.Cookie("a", domain=row["in"]))
    assert written is row["valid_cookie_domain"]


# --- authentication, media types ------------------------------------------------------------


@check("basic_auth_parse")
def _(row: Row) -> None:
    want = (row["username"], row["password"]) if row["ok"] else None
    assert auth.parse_basic_auth(row["authorization"]) == want


@check("basic_auth_set")
def _(row: Row) -> None:
    assert auth.basic_auth(row["username"], row["password"]) == row["header"]


@check("mime_parse_media_type")
def _(row: Row) -> None:
    if row["go_error"] is None:
        assert mediatype.parse_media_type(row["in"]) == (row["type"], row["params"])
    else:
        with pytest.raises(mediatype.MediaTypeError) as caught:
            mediatype.parse_media_type(row["in"])
        assert (str(caught.value), caught.value.media_type) == (row["go_error"], row["go_type"])


@check("mime_bad_media_type")
def _(row: Row) -> None:
    with pytest.raises(mediatype.MediaTypeError) as caught:
        mediatype.parse_media_type(row["in"])
    assert (str(caught.value), caught.value.media_type) == (row["go_error"], row["go_type"])


@check("mime_format_media_type")
def _(row: Row) -> None:
    if row["want"]:
        assert mediatype.format_media_type(row["type"], row["params"]) == row["want"]
    else:
        with pytest.raises(ValueError, match="media type"):
            mediatype.format_media_type(row["type"], row["params"])


# --- forms ----------------------------------------------------------------------------------


@check("golden_form_parse")
def _(row: Row) -> None:
    query = URL.parse(row["url"]).raw_query
    found = parse_form(row["method"], query, row["content_type"], row["body"].encode())
    assert found.form == row["form"]
    assert found.post_form == row["post_form"]
    assert (str(found.error) if found.error else None) == row["error"]


@check("form_parse_content_type")
def _(row: Row) -> None:
    content_type = row["header"].get("Content-Type", [""])[0]
    error = parse_form(row["method"], "", content_type, row["body"].encode()).error
    assert (str(error) if error else None) == row["error"]


@check("golden_multipart_form")
async def _(row: Row) -> None:
    body = row["body"].encode()
    if row["error"]:
        with pytest.raises(FormError) as caught:
            await multipart.parse_multipart(pieces(body), row["content_type"], 1 << 20)
        assert str(caught.value) == row["error"]
        return
    form = await multipart.parse_multipart(pieces(body), row["content_type"], 1 << 20)
    assert form.value == row["values"]
    files = [
        {
            "content": (await file.read()).decode(),
            "field": name,
            "filename": file.filename,
            "header": {field: file.header.values(field) for field in file.header},
            "size": file.size,
        }
        for name, several in form.file.items()
        for file in several
    ]
    assert files == row["files"]


@check("multipart_reader")
def _(row: Row) -> None:
    if row["should_error"]:
        with pytest.raises(FormError):
            multipart_reader.multipart_boundary(row["content_type"], allow_mixed=True)
    else:
        assert multipart_reader.multipart_boundary(row["content_type"], allow_mixed=True) == "foo123"


@check("multipart_form_limits")
async def _(row: Row) -> None:
    def part(name: str, extra: str = "") -> str:
        return f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\nx\r\n'

    headers = "".join(f"\r\nX-{n}: v" for n in range(row["extra_keys_per_file"]))
    if row["extra_keys_per_file"]:
        headers += "\r\nContent-Type: text/plain"
    body = "".join(part(f"v{n}") for n in range(row["values"]))
    body += "".join(part(f"f{n}", '; filename="a"' + headers) for n in range(row["files"]))
    body += "--b--\r\n"
    parsing = multipart.parse_multipart(
        pieces(body.encode(), 4096), "multipart/form-data; boundary=b", row["max_memory"]
    )
    if row["want_error"]:
        with pytest.raises(FormError) as caught:
            await parsing
        assert (str(caught.value), caught.value.status_hint) == (row["want_error"], 413)
    else:
        (await parsing).remove_all()


@check("url_parse_query")
def _(row: Row) -> None:
    found = parse_form("GET", row["query"], "", None)
    assert found.form == row["out"]
    assert (str(found.error) if found.error else None) == row["go_error"]


@check("url_parse_query_limits")
def _(row: Row) -> None:
    query = "&".join(["a=x"] * row["params"])
    limit = int(row["godebug"].rpartition("=")[2]) if row["godebug"] else None
    try:
        if limit is None:
            parse_query(query)
        else:
            parse_query(query, max_params=limit)
    except QueryError:
        assert row["want_error"]
    else:
        assert not row["want_error"]


# --- replies and small handlers -------------------------------------------------------------


@check("server_redirect")
def _(row: Row) -> None:
    w = Recorder()
    replies.redirect(w, Request("GET", row["request_url"]), row["in"], row["code"])
    assert w.header["Location"] == row["location"]
    assert w.status == row["code"]
    if "body" in row:
        assert w.body.decode() == row["body"]


@check("server_redirect_content_type")
def _(row: Row) -> None:
    w = Recorder()
    if row["preset"]:
        w.header["Content-Type"] = row["preset_content_type"]
    replies.redirect(w, Request(row["method"], row["url"]), row["redirect_to"], row["code"])
    assert w.header.get("Content-Type", "") == row["want_content_type"]
    assert w.body.decode() == row["want_body"]


@check("golden_hex_escape_non_ascii")
def _(row: Row) -> None:
    text = row["in"].encode("latin-1").decode("utf-8", "surrogateescape")
    assert replies.hex_escape_non_ascii(text) == row["want"]


@check("server_strip_prefix")
def _(row: Row) -> None:
    seen: list[Request] = []
    handler = strip_prefix(row["prefix"], lambda w, r: seen.append(r))
    w = Recorder()
    handler(w, Request("GET", URL.parse_request_uri(row["path"])))
    if row["not_found"]:
        assert (w.status, seen) == (404, [])
    else:
        assert (seen[0].url.path, seen[0].url.raw_path) == (row["want_path"], row["want_raw_path"])


@check("server_max_bytes_handler")
async def _(row: Row) -> None:
    read = 0

    async def count(w: Any, r: Request) -> None:
        nonlocal read
        async for chunk in r.body:
            read += len(chunk)

    r = Request("POST", "/", body=Body.of(b"x" * row["request_size"]))
    error = None
    try:
        await max_bytes_handler(count, row["max_size"])(Recorder(), r)
    except Exception as exc:
        error = type(exc).__name__
    assert read == row["bytes_read"]
    assert error == ("MaxBytesError" if row["max_bytes_error"] else None)


@check("server_query_semicolon")
async def _(row: Row) -> None:
    found: list[tuple[str, bool]] = []

    async def handler(w: Any, r: Request) -> None:
        failed = False
        try:
            await r.parse_form()
        except ValueError:
            failed = True
        found.append((r.form_value("x"), failed))

    await handler(None, Request("GET", "http://x/" + row["query"]))
    await allow_query_semicolons(handler)(Recorder(), Request("GET", "http://x/" + row["query"]))
    assert found == [
        (row["x_default"], row["parse_form_error_by_default"]),
        (row["x_with_allow_query_semicolons"], False),
    ]


# --- the rows -------------------------------------------------------------------------------


def rows() -> list[Any]:
    found = []
    for name in sorted(CHECKS):
        path = FOLDER / f"{name}.json"
        if path.exists():
            for number, row in enumerate(json.loads(path.read_text())["vectors"]):
                found.append(pytest.param(name, row, id=f"{name}-{number}"))
    return found or [pytest.param("", {}, marks=pytest.mark.skip(reason=f"no vectors in {FOLDER}"))]


@pytest.mark.parametrize(("name", "row"), rows())
def test_row(name: str, row: Row, run: Callable[..., Any]) -> None:
    reason = EXCEPTIONS.get(name, {}).get(key(row))
    if reason is None:
        _check(name, row, run)
    else:
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            _check(name, row, run)


# What Go takes from the environment are constants here.
SETTINGS = {
    "httpcookiemaxnum": (cookie, "MAX_COOKIES"),
    "multipartmaxheaders": (multipart_reader, "MAX_HEADERS"),
}


def _check(name: str, row: Row, run: Callable[..., Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        setting, _, value = row.get("godebug", "").partition("=")
        if setting in SETTINGS:
            patch.setattr(*SETTINGS[setting], int(value))
        result = CHECKS[name](row)
        if result is not None:
            run(result)


def test_every_exception_names_a_row() -> None:
    if not FOLDER.exists():
        pytest.skip(f"no vectors in {FOLDER}")
    for name in CHECKS:
        path = FOLDER / f"{name}.json"
        known = {key(row) for row in json.loads(path.read_text())["vectors"]} if path.exists() else set()
        assert set(EXCEPTIONS.get(name, {})) <= known, f"{name}: exceptions for rows that do not exist"
