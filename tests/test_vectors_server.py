"""Measured answers of Go's request reader, chunk codec, header helpers and server, row by row.

One test per row, so pytest's count is the number of rows that ran. Requests go through a real
connection without a socket. Rows that do not apply here are in vector_exceptions.py under their
index, with the reason, and must really differ. (golden_server_wire is in test_vectors_wire.py.)
"""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http
from prefork.http.errors import HTTPError, LocalProtocolError, RemoteProtocolError
from prefork.http.message.body import Body
from prefork.http.message.cookie import Cookie
from prefork.http.message.framing import ChunkedDecoder, is_trailer_name
from prefork.http.message.grammar import is_host_value, is_token, parse_content_length, tokens
from prefork.http.message.header import Header, canonical_header_key
from prefork.http.message.request import Request
from prefork.http.server.head import HeadScanner
from prefork.http.server.response_writer import _line

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.http.message.url import URL

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "shared" / "vectors"
EXCEPTIONS: dict[str, dict[str, str]] = runpy.run_path(str(HERE / "vector_exceptions.py"))["EXCEPTIONS"]

_spec = importlib.util.spec_from_file_location("helpers_wire", HERE / "helpers_wire.py")
assert _spec is not None
assert _spec.loader is not None
helpers: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
Wire, parse_all, parse_one, socketless = (
    helpers.Wire,
    helpers.parse_all,
    helpers.parse_one,
    helpers.socketless,
)

Row = Any
CHECKS: dict[str, Callable[[Row], Any]] = {}


def check(name: str) -> Callable[[Callable[[Row], Any]], Callable[[Row], Any]]:
    """Registers a function that asserts one row of the file `name`; it may return a coroutine."""

    def register(function: Callable[[Row], Any]) -> Callable[[Row], Any]:
        CHECKS[name] = function
        return function

    return register


def latin(text: str) -> bytes:
    return text.encode("latin-1")


def as_str(data: bytes) -> str:
    """Bytes of the wire in the form the API has them."""
    return data.decode("utf-8", "surrogateescape")


class Reader:
    """A handler that reads the body and remembers what it has seen."""

    def __init__(self) -> None:
        self.request: Request | None = None
        self.body = b""
        self.error: Exception | None = None

    async def serve_http(self, w: http.ResponseWriter, r: Request) -> None:
        assert self.request is None, "one request is enough"
        self.request = r
        try:
            async for piece in r.body:
                self.body += piece
        except HTTPError as error:
            self.error = error
        w.header["Connection"] = "close"


async def read_request(raw: bytes, **options: Any) -> tuple[Reader, list[Any]]:
    """What a handler sees of these bytes, byte by byte and then the end; and the answers."""
    reader = Reader()
    async with socketless(reader, **options) as server:
        wire = Wire(server)
        # Byte by byte, so that data before an error is handed out, as Go's reader does.
        await wire.feed(*[raw[i : i + 1] for i in range(len(raw))])
        await wire.eof()
        answers = parse_all(wire.written)
        await wire.lose()
    return reader, answers


async def status_of(raw: bytes, handler: Any = lambda w, r: None, **options: Any) -> int:
    """The status of the first answer."""
    async with socketless(handler, **options) as server:
        wire = Wire(server)
        await wire.feed(raw)
        status = parse_all(wire.written)[0].status
        await wire.lose()
    return int(status)


def make_url(fields: Row) -> URL:
    fields = dict(fields)
    assert fields.pop("user") is None
    return http.URL(**fields)


def assert_request(r: Request, want: Row) -> None:
    assert r.method == want["method"]
    assert (r.proto, r.proto_major, r.proto_minor) == (
        want["proto"],
        want["proto_major"],
        want["proto_minor"],
    )
    assert r.request_uri == as_str(latin(want["request_uri"]))
    assert r.host == want["host"]
    assert r.close is want["close"]
    assert r.content_length == want["content_length"]
    assert r.transfer_encoding == (want["transfer_encoding"] or [])
    url = dict(want["url"])
    for name in ("path", "raw_path", "raw_query"):
        url[name] = as_str(latin(url[name]))
    assert r.url == make_url(url)
    header = {name: [as_str(latin(value)) for value in values] for name, values in want["header"].items()}
    assert {name: r.header.values(name) for name in r.header} == header


# --- requests -------------------------------------------------------------------------------


@check("golden_request_read")
async def _(row: Row) -> None:
    reader, answers = await read_request(latin(row["raw"]))
    if row["error"] is not None:
        assert reader.request is None
        assert all(answer.status >= 400 for answer in answers)
        return
    if row["raw"].startswith("OPTIONS * "):  # which no handler sees, in Go's server neither
        reader.request = HeadScanner().scan(latin(row["raw"]), None)  # type: ignore[arg-type]
    assert reader.request is not None, answers[0].body
    assert_request(reader.request, row["request"])
    assert reader.body == latin(row["body"])
    assert (reader.error is None) is (row["body_error"] is None), reader.error


@check("request_read")
async def _(row: Row) -> None:
    reader, answers = await read_request(row["raw"].encode())
    if row["error"] is not None:
        assert reader.request is None
        assert answers[0].status == 400
        return
    assert reader.request is not None, answers[0].body
    assert_request(reader.request, row["request"])
    assert reader.body == row["body"].encode()
    assert reader.error is None
    trailer = reader.request.trailer
    assert {name: trailer.values(name) for name in trailer} == (row["trailer"] or {})


@check("request_read_bad")
async def _(row: Row) -> None:
    reader, answers = await read_request(row["raw"].encode())
    assert reader.request is None
    assert [answer.status for answer in answers] == [400]


@check("request_read_errors")
async def _(row: Row) -> None:
    reader, _answers = await read_request(row["raw"].encode())
    if row["error_contains"] is not None:
        assert reader.request is None
        return
    assert reader.request is not None
    assert {name: reader.request.header.values(name) for name in reader.request.header} == row["header"]


@check("new_request_host")
def _(row: Row) -> None:
    assert Request("GET", row["url"]).host == row["host"]


@check("parse_http_version")
def _(row: Row) -> None:
    head = f"GET / {row['in']}\r\nHost: a\r\n\r\n".encode()
    if row["ok"]:
        r = HeadScanner().scan(head, None)  # type: ignore[arg-type]
        assert (r.proto_major, r.proto_minor) == (row["major"], row["minor"])
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            HeadScanner().scan(head, None)  # type: ignore[arg-type]
        assert caught.value.status_hint == 400


@check("content_length_parse")
def _(row: Row) -> None:
    if row["error"] is None:
        assert parse_content_length(row["content_length"]) == int(row["value"])
    else:
        with pytest.raises(ValueError, match="bad Content-Length"):
            parse_content_length(row["content_length"])


@check("transfer_encoding_parse")
def _(row: Row) -> None:
    lines = "".join(f"Transfer-Encoding: {value}\r\n" for value in row["transfer_encoding"])
    head = f"POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode()
    if row["error"] is None:
        assert HeadScanner().scan(head, None).transfer_encoding == ["chunked"]  # type: ignore[arg-type]
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            HeadScanner().scan(head, None)  # type: ignore[arg-type]
        assert caught.value.status_hint in (400, 501)


# --- chunks ---------------------------------------------------------------------------------


def decode_bytewise(message: bytes) -> tuple[bytes, str | None]:
    """The data before the end or the error, and the error; a message that stops short is one."""
    decoder = ChunkedDecoder()
    data = b""
    try:
        for i in range(len(message)):
            data += decoder.feed(message[i : i + 1])
    except RemoteProtocolError as error:
        return data, error.text
    return data, None if decoder.done else "unexpected EOF"


@check("chunked_reader")
def _(row: Row) -> None:
    message = row["in"].encode()
    if row["error"] is None:
        message += b"\r\n"  # Go's reader stops before the trailer section
    assert decode_bytewise(message) == (row["data"].encode(), row["error"])


@check("chunked_parse_hex")
def _(row: Row) -> None:
    size = int(row["want"])
    data = b"x" * size if size < 1000 else b""
    got, error = decode_bytewise(row["in"].encode() + b"\r\n" + data)
    if row["error"] is not None:
        assert error == row["error"]
    else:
        assert got == data
        assert error == "unexpected EOF", "the size is right, the message goes on"


@check("golden_chunked_overhead")
def _(row: Row) -> None:
    extension = b";" + b"x" * (row["extension_bytes_including_semicolon"] - 1)
    decoder = ChunkedDecoder()
    read = 0
    error = None
    try:
        for _ in range(row["chunks_sent"]):
            read += len(decoder.feed(b"1" + extension + b"\r\n" + b"x\r\n"))
    except RemoteProtocolError as exc:
        error = exc.text
    assert (read, error) == (row["bytes_read"], row["error"])


@check("chunked_writer")
async def _(row: Row) -> None:
    async def handler(w: http.ResponseWriter, r: Request) -> None:
        await w.flush()
        for data in row["writes"]:
            await w.write(data)
            await w.flush()

    async with socketless(handler) as server:
        wire = Wire(server)
        await wire.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        body = wire.written.partition(b"\r\n\r\n")[2]
        await wire.lose()
    assert body == row["wire"].encode() + b"\r\n"


# --- headers --------------------------------------------------------------------------------


@check("header_canonical_key")
def _(row: Row) -> None:
    assert canonical_header_key(row["in"]) == row["out"]


@check("header_clone_or_make")
def _(row: Row) -> None:
    made = Header()
    for name, values in (row["in"] or {}).items():
        made[name] = None
        for value in values or ():
            made.add(name, value)
    copy = made.clone()
    want = {canonical_header_key(name): values or [] for name, values in row["want"].items()}
    assert {name: copy.values(name) for name in copy} == want
    assert copy == made
    copy["Another"] = "1"
    assert "Another" not in made


@check("header_foreach_element")
def _(row: Row) -> None:
    assert tokens([row["in"]]) == [element.lower() for element in row["want"]]


@check("header_has_token")
def _(row: Row) -> None:
    assert (row["token"] in tokens([row["header"]])) is row["want"]


@check("header_values_contains_token")
def _(row: Row) -> None:
    assert (row["token"].lower() in tokens(row["values"])) is row["want"]


@check("header_read_mime")
def _(row: Row) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + latin(row["in"])
    if row["error"] is not None:
        with pytest.raises(RemoteProtocolError) as caught:
            HeadScanner().scan(head, None)  # type: ignore[arg-type]
        assert caught.value.status_hint == 400
        return
    try:
        header = HeadScanner().scan(head, None).header  # type: ignore[arg-type]
    except RemoteProtocolError as error:
        pytest.fail(f"refused: {error}")
    want = {name: [as_str(latin(value)) for value in values] for name, values in row["header"].items()}
    assert {name: header.values(name) for name in header} == want


@check("header_write")
def _(row: Row) -> None:
    header = Header([(name, value) for name, values in row["header"].items() for value in values])
    lines = b"".join(
        _line(name, value)
        for name in sorted(header)
        if not row["exclude"].get(name)
        for value in header.values(name)
    )
    assert lines == row["expected"].encode()


@check("golden_byte_classes")
def _(row: Row) -> None:
    byte, in_name, in_value, in_host, in_cookie_value, in_cookie_path, boundary = row
    char = as_str(bytes([byte]))

    def scans(*lines: bytes) -> bool:
        head = b"\r\n".join([b"GET / HTTP/1.1", *lines, b"", b""])
        try:
            HeadScanner().scan(head, None)  # type: ignore[arg-type]
        except RemoteProtocolError:
            return False
        return True

    raw = bytes([byte])
    if byte != ord(":"):  # which ends the name
        assert scans(b"Host: a", b"a" + raw + b"b: v") is in_name
    assert scans(b"Host: a", b"X: a" + raw + b"b") is in_value
    assert scans(b"Host: a" + raw + b"b") is in_host
    assert (char in str(Cookie("n", f"a{char}b"))) is in_cookie_value
    assert (f"a{char}b" in str(Cookie("n", "v", path=f"a{char}b"))) is in_cookie_path
    assert (tokens([f"foo{char}"]) == ["foo"]) is boundary


@check("golden_valid_host_header")
def _(row: Row) -> None:
    assert bool(is_host_value(row["host"])) is row["valid"]


@check("golden_valid_method")
def _(row: Row) -> None:
    assert bool(is_token(row["method"])) is row["valid"]


@check("golden_valid_trailer_header")
def _(row: Row) -> None:
    assert is_trailer_name(row["name"]) is row["valid"]


# --- the server -----------------------------------------------------------------------------


@check("server_validates_method")
@check("server_validates_host_header")
@check("server_validates_headers")
async def _(row: Row) -> None:
    if "raw" in row:
        raw = latin(row["raw"])
    else:
        raw = latin(row["raw_prefix"]) + latin(row["repeat"]) * row["times"] + latin(row["raw_suffix"])
    assert await status_of(raw) == row["want_status"]


@check("server_header_value_count")
async def _(row: Row) -> None:
    # What Go's client adds counts too.
    lines = ["Host: a", "User-Agent: Go-http-client/1.1", "Accept-Encoding: gzip"]
    lines += [f"{name}: {value}" for name, values in row["header"].items() for value in values]
    body = ""
    if row["chunked"]:
        lines += ["Transfer-Encoding: chunked", "Trailer: " + ",".join(row["trailer"])]
        body = "0\r\n\r\n"
    raw = "\r\n".join(["POST / HTTP/1.1", *lines, "", body]).encode()
    assert await status_of(raw, max_header_values=row["max_header_value_count"]) == row["want_status"]


@check("server_trailer_value_count")
async def _(row: Row) -> None:
    trailers = "".join(f"{name}: {value}\r\n" for name, values in row["trailer"].items() for value in values)
    raw = "\r\n".join(
        [
            *(
                "POST / HTTP/1.1",
                "Host: a",
                "Transfer-Encoding: chunked",
                "Trailer: " + ",".join(row["trailer"]),
            ),
            *("", f"{len(row['body']):x}", row["body"], f"0\r\n{trailers}\r\n"),
        ]
    ).encode()
    reader, _ = await read_request(raw, max_header_values=row["max_header_value_count"])
    assert (reader.error is not None) is row["want_read_error"]
    assert reader.body == row["body"].encode()


@check("server_expect_continue")
async def _(row: Row) -> None:
    async def handler(w: http.ResponseWriter, r: Request) -> None:
        if row["read_body"]:
            await r.body.read()
        else:
            w.write_header(401)

    framing = "Transfer-Encoding: chunked" if row["chunked"] else f"Content-Length: {row['content_length']}"
    body = b"0\r\n\r\n" if row["chunked"] else b"x" * row["content_length"]
    expect = f"Expect: {row['expectation']}\r\n" if row["expectation"] else ""
    async with socketless(handler) as server:
        wire = Wire(server)
        await wire.feed(f"POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n{expect}\r\n".encode(), body)
        first_line = wire.written.partition(b"\r\n")[0]
        await wire.lose()
    assert row["first_line_contains"].encode() in first_line


@check("server_invalid_chunked")
async def _(row: Row) -> None:
    reader, _ = await read_request(row["raw"].encode())
    assert (reader.error is not None) is row["read_body_fails"]


@check("server_http10_connection")
async def _(row: Row) -> None:
    async with socketless(lambda w, r: None) as server:
        wire = Wire(server)
        await wire.feed(row["raw"].encode())
        answer = parse_one(wire.written)
        await wire.lose()
    assert answer.values(b"connection") == [value.encode() for value in row["want_connection"]]


@check("server_no_body_codes")
async def _(row: Row) -> None:
    def handler(w: http.ResponseWriter, r: Request) -> None:
        if row["set_content_length_123_first"]:
            w.header["Content-Length"] = "123"
        w.write_header(row["status"])
        if row["write_stuff_after"]:
            with pytest.raises(LocalProtocolError, match="does not allow body"):
                w.write("stuff")

    async with socketless(handler) as server:
        wire = Wire(server)
        await wire.feed(row["raw"].encode())
        answer = parse_one(wire.written)
        await wire.lose()
    assert answer.status == row["status"]
    assert (answer.get("Content-Length") is None) is row["want_no_content_length"]
    assert (answer.body == b"") is row["want_no_body"]


@check("server_connection_reuse")
async def _(row: Row) -> None:
    async def handler(w: http.ResponseWriter, r: Request) -> None:
        if "enable_full_duplex" in row["handler"]:
            w.enable_full_duplex()
        if "wrapper" in row["handler"]:
            r.body = Body.of(b"")

    async with socketless(handler) as server:
        wire = Wire(server)
        await wire.feed(row["raw"].encode())
        interim = b"100 Continue" in wire.written
        if interim:
            await wire.feed(b"x" * row["continue_body_size"])
        first = parse_all(wire.written)[-1]
        before = len(wire.written)
        await wire.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        reused = len(wire.written) > before
        await wire.lose()
    assert first.status == row["want_response"]
    assert interim is row["want_100_continue"]
    assert reused is row["want_reused"]


@check("server_handler_body_close")
async def _(row: Row) -> None:
    async def handler(w: http.ResponseWriter, r: Request) -> None:
        if r.method == "POST":
            r.body.close()

    async with socketless(handler) as server:
        wire = Wire(server)
        size = row["body_size"]
        await wire.feed(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode(), b"x" * size)
        await wire.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answers = parse_all(wire.written)
        await wire.lose()
    assert (len(answers) == 2) is row["want_next_request"]


@check("server_read_from_too_long")
async def _(row: Row) -> None:
    notes: list[str | None] = []

    async def handler(w: http.ResponseWriter, r: Request) -> None:
        w.header["Content-Length"] = str(row["content_length"])
        try:
            await w.write(b"x" * row["reader_size"])
        except LocalProtocolError as error:
            notes.append(str(error))
        else:
            notes.append(None)
        notes.append(str(w.bytes_written))

    async with socketless(handler) as server:
        wire = Wire(server)
        await wire.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await wire.lose()
    assert notes == [row["want_error"], str(row["want_n"])]


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
def test_row(name: str, number: int, row: Row, run: Callable[..., Any]) -> None:
    def verify() -> None:
        result = CHECKS[name](row)
        if result is not None:
            run(result)

    if str(number) in EXCEPTIONS.get(name, {}):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            verify()
    else:
        verify()


def test_every_exception_names_a_row() -> None:
    if not FOLDER.exists():
        pytest.skip(f"no vectors in {FOLDER}")
    for name in CHECKS:
        path = FOLDER / f"{name}.json"
        count = len(json.loads(path.read_text())["vectors"]) if path.exists() else 0
        listed = EXCEPTIONS.get(name, {})
        assert set(listed) <= {str(number) for number in range(count)}, name
        assert all(re.search(r"\w+ \w+", reason) for reason in listed.values()), f"{name}: say why"
