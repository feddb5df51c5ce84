"""The header of an answer: how it is framed, what is added, and that nothing in it can end a line.

A strict little parser stands on the other side. It takes exactly what RFC 9112 allows, so
whatever a handler does, it must find one message and nothing behind it.
"""

from __future__ import annotations

import array
import asyncio
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork import http
from prefork.http.errors import LocalProtocolError
from prefork.http.message.framing import format_chunk
from prefork.http.server.clock import Clock
from prefork.http.server.head import HeadScanner
from prefork.http.server.response_writer import BUFFER, ResponseWriter, _line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[..., Any]

_spec = importlib.util.spec_from_file_location("helpers_wire", Path(__file__).with_name("helpers_wire.py"))
assert _spec is not None
assert _spec.loader is not None
wire_helpers: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(wire_helpers)
Log, Parsed, parse_one = wire_helpers.Log, wire_helpers.Parsed, wire_helpers.parse_one

DATE = re.compile(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n")


# --- a connection that remembers ------------------------------------------------------------


class Server:
    def __init__(self) -> None:
        self.clock = Clock(1.0, None)
        self.clock.tick(0.0)
        self.keep_alive = True
        self.log = Log()
        self.error_log = self.log.logger


class Conn:
    """What a ResponseWriter needs of a Connection."""

    def __init__(self, server: Server | None = None) -> None:
        self.server = server or Server()
        self.out: list[bytes] = []
        self.flushed = 0
        self.body_is_complete = True

    def send(self, data: bytes) -> None:
        self.out.append(data)

    def send_chunk(self, data: bytes) -> None:
        self.out.append(format_chunk(len(data)) + data + b"\r\n")

    def flush(self) -> None:
        self.flushed += 1

    def writable(self) -> Awaitable[None]:
        return http.handler.DONE

    def must_close(self, w: ResponseWriter) -> bool:
        return not self.server.keep_alive

    def informational_sent(self, status: int) -> None: ...

    @property
    def wire(self) -> bytes:
        return b"".join(self.out)


def request(method: str = "GET", proto: str = "HTTP/1.1", *fields: str, target: str = "/") -> http.Request:
    if method == "CONNECT" and target == "/":
        target = "a:80"
    head = "\r\n".join([f"{method} {target} {proto}", "Host: a", *fields, "", ""]).encode("latin-1")
    return HeadScanner().scan(head, None)  # type: ignore[arg-type]


def complete(w: ResponseWriter, conn: Conn) -> bytes:
    """What a connection does when the handler has returned."""
    answer = w._usual_answer()
    if answer is None:
        w._finish()
    else:
        conn.out.append(answer)
    return conn.wire


def answer(
    handler: Callable[[ResponseWriter], object],
    method: str = "GET",
    proto: str = "HTTP/1.1",
    *fields: str,
    general: bool = False,
    conn: Conn | None = None,
) -> Any:
    """The answer of a handler that does not wait. general: by the path for every case."""
    conn = conn or Conn()
    w = ResponseWriter(conn, request(method, proto, *fields))  # type: ignore[arg-type]
    handler(w)
    if general:
        w._finish()
    else:
        complete(w, conn)
    return parse_one(conn.wire, method)


# --- one answer, two paths ------------------------------------------------------------------


def test_the_answer_to_the_byte() -> None:
    conn = Conn()
    w = ResponseWriter(conn, request())  # type: ignore[arg-type]
    w.header["x-b"] = "2"
    w.header["Content-Type"] = "text/csv"
    w.header.add("X-A", "1")
    w.header.add("X-A", "3")
    w.write("é\n")
    wire = DATE.sub(b"<DATE>", complete(w, conn))
    assert wire == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nX-A: 1\r\nX-A: 3\r\nX-B: 2\r\n"
        b"<DATE>Content-Length: 3\r\n\r\n\xc3\xa9\n"
    )


NAMES = st.sampled_from(
    [
        *("X-A", "x-a", "X-B", "Content-Type", "Content-Length", "Content-Encoding", "Transfer-Encoding"),
        *(
            "Connection",
            "Date",
            "Trailer",
            "Trailer:X-T",
            "Trailer:Content-Length",
            "X-T",
            "Server",
            "Keep-Alive",
        ),
        *("Bad Name", "Bad\r\nName", "", "Set-Cookie", "Upgrade"),
    ]
)
FIELD_VALUES = st.one_of(
    st.none(),
    st.sampled_from(
        [
            *(
                "",
                "1",
                "5",
                "3000",
                "05",
                "+5",
                "5, 5",
                "close",
                "keep-alive",
                "x, close",
                "chunked",
                "identity",
            ),
            *(
                "gzip",
                "gzip, chunked",
                "text/plain",
                "text/html",
                "X-T",
                "X-T, Content-Length",
                "a\r\nX-I: 1",
            ),
            *("a\nb", "a\rb", "a\0b", " a ", "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "é", "\udcff", "\ud800"),
        ]
    ),
)
STATUSES = st.sampled_from([200, 200, 200, 201, 204, 205, 206, 299, 301, 304, 404, 413, 500, 599, 700, 999])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), NAMES, FIELD_VALUES),
        st.tuples(st.just("add"), NAMES, FIELD_VALUES),
        st.tuples(st.just("status"), STATUSES, st.none()),
        st.tuples(
            st.just("write"),
            st.sampled_from([b"", b"x", b"<html>", b"\x89PNG\r\n\x1a\n", b"y" * 1000]),
            st.none(),
        ),
    ),
    max_size=6,
)


def perform(w: ResponseWriter, steps: list[tuple[str, Any, Any]]) -> None:
    for what, first, second in steps:
        if what == "set":
            w.header[first] = second
        elif what == "add":
            w.header.add(first, second or "")
        elif what == "status":
            w.write_header(first)
        else:
            try:
                w.write(first)
            except LocalProtocolError:
                pass  # no body allowed, or more than declared: the handler goes on


@settings(max_examples=400, deadline=None)
@given(
    STEPS,
    st.sampled_from(["GET", "GET", "GET", "POST", "HEAD", "CONNECT", "OPTIONS"]),
    st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2"]),
    st.sampled_from(["X: y", "Connection: close", "Connection: keep-alive"]),
)
def test_the_short_way_says_what_the_long_way_says(
    steps: list[tuple[str, Any, Any]], method: str, proto: str, field: str
) -> None:
    server = Server()
    quick, general = Conn(server), Conn(server)
    quick_w, general_w = (
        ResponseWriter(conn, request(method, proto, field))  # type: ignore[arg-type]
        for conn in (quick, general)
    )
    perform(quick_w, steps)
    perform(general_w, steps)
    short = quick_w._usual_answer()
    close = general_w._finish()
    if short is not None:
        assert quick.out == [], "a short answer comes alone"
        assert short == general.wire
        assert quick_w.status == general_w.status
        assert quick_w.request.close == close
        assert quick_w.bytes_written == general_w.bytes_written
    with_short_body = general_w._declared > general_w.bytes_written
    if not with_short_body or method == "HEAD":
        parsed = parse_one(general.wire, method)
        if proto != "HTTP/1.0" and method != "CONNECT" and "identity" not in str(steps):
            assert not parsed.close, "the length is always known"
        if parsed.close:
            assert close


def test_the_short_way_is_short_where_it_matters() -> None:
    def is_short(handler: Callable[[ResponseWriter], object], *args: str) -> bool:
        w = ResponseWriter(Conn(), request(*args))  # type: ignore[arg-type]
        handler(w)
        return w._usual_answer() is not None

    assert is_short(lambda w: None)
    assert is_short(lambda w: w.write(b"pong"))
    assert is_short(lambda w: http.error(w, "no", 404), "POST")
    assert is_short(lambda w: w.header.add("Content-Type", "a/b"), "GET", "HTTP/1.1", "Connection: close")
    assert is_short(lambda w: w.write(b"x" * BUFFER))
    assert not is_short(lambda w: w.write(b"x" * (BUFFER + 1)))
    assert not is_short(lambda w: w.write_header(204))
    assert not is_short(lambda w: None, "HEAD")
    assert not is_short(lambda w: None, "GET", "HTTP/1.0")


# --- splitting ------------------------------------------------------------------------------

ATTACKS = [
    "\r\nX-Evil: 1",
    "\nX-Evil: 1",
    "\rX-Evil: 1",
    "\r\n\r\n<html>",
    "\0",
    "\u010a\u010d",
    "\u560a\u560d",
]
TEXTS = [
    *(chr(code) for code in range(256)),
    *(f"\\udc{code:02x}".encode().decode("unicode_escape") for code in range(128, 256)),
    *ATTACKS,
]
SLOTS: dict[str, Callable[[ResponseWriter, str], object]] = {
    "value": lambda w, text: w.header.add("X-V", text),
    "value, start": lambda w, text: w.header.add("X-V", text + "v"),
    "value, middle": lambda w, text: w.header.add("X-V", "v" + text + "v"),
    "value, end": lambda w, text: w.header.add("X-V", "v" + text),
    "name": lambda w, text: w.header.add(text, "v"),
    "name, start": lambda w, text: w.header.add(text + "X-N", "v"),
    "name, middle": lambda w, text: w.header.add("X-" + text + "-N", "v"),
    "name, end": lambda w, text: w.header.add("X-N" + text, "v"),
    "Connection": lambda w, text: w.header.add("Connection", "x" + text),
    "Content-Type": lambda w, text: w.header.add("Content-Type", "text/plain" + text),
    "Content-Length": lambda w, text: w.header.add("Content-Length", "4" + text),
    "Content-Encoding": lambda w, text: w.header.add("Content-Encoding", "x" + text),
    "Date": lambda w, text: w.header.add("Date", "x" + text),
    "Location": lambda w, text: http.redirect(w, w.request, "/x" + text, 302),
    "Set-Cookie value": lambda w, text: http.set_cookie(w, http.Cookie("c", "v" + text)),
    "Set-Cookie path": lambda w, text: http.set_cookie(w, http.Cookie("c", "v", path="/" + text)),
    "error": lambda w, text: http.error(w, "text" + text.encode("utf-8", "replace").decode(), 404),
    "declared trailer": lambda w, text: w.header.add("Trailer", "X-T" + text),
    "trailer name": lambda w, text: w.header.add("Trailer:X-T" + text, "v"),
    "trailer name, start": lambda w, text: w.header.add("Trailer:" + text + "X-T", "v"),
    "trailer value": lambda w, text: w.header.add("Trailer:X-T", "v" + text),
}


@pytest.mark.parametrize("way", ["usual", "general", "streamed", "informational"])
@pytest.mark.parametrize("slot", SLOTS)
def test_nothing_a_handler_says_can_split_the_answer(slot: str, way: str, run: Run) -> None:
    async def scenario() -> None:
        server = Server()
        for text in TEXTS:
            conn = Conn(server)
            w = ResponseWriter(conn, request())  # type: ignore[arg-type]
            SLOTS[slot](w, text)
            if w.status == 0:
                if way == "informational":
                    w.write_header(103)
                    parse_one(conn.wire)
                    conn.out.clear()
                w.write(b"body")
            if way == "streamed":
                await w.flush()
            if way == "general":
                w._finish()
            else:
                complete(w, conn)
            if w._declared > w.bytes_written:
                continue  # the text made it another number
            parsed = parse_one(conn.wire)
            assert parsed.get("X-Evil") is None
            assert not [name for name, _ in parsed.trailers if name == b"X-Evil"]
            assert parsed.status in (200, 302, 404)
            assert parsed.body == b"body" or parsed.status != 200

    run(scenario())


@pytest.mark.parametrize("status", range(100, 1000))
def test_every_status_is_one_line(status: int) -> None:
    conn = Conn()
    w = ResponseWriter(conn, request())  # type: ignore[arg-type]
    w.write_header(status)
    if status < 200 and status != 101:
        assert parse_one(conn.wire).status == status
        conn.out.clear()
        assert parse_one(complete(w, conn)).status == 200
    else:
        parsed = parse_one(complete(w, conn))
        assert parsed.status == status
        assert parsed.reason


@pytest.mark.parametrize("status", [-1, 0, 1, 99, 1000, 20000])
def test_there_are_no_other_statuses(status: int) -> None:
    w = ResponseWriter(Conn(), request())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="invalid WriteHeader code"):
        w.write_header(status)


def test_header_lines() -> None:
    assert _line("X-A", "a\r\nb") == b"X-A: a  b\r\n"
    assert _line("X-A", " \t a \t ") == b"X-A: a\r\n"
    assert _line("X-A", "\r\n a") == b"X-A: a\r\n"
    assert _line("X-A", "a\0\x0b\x1b\x7f\tb") == b"X-A: a    \tb\r\n"
    assert _line("X-A", "é\udcff") == b"X-A: \xc3\xa9\xff\r\n"
    assert _line("X-A", "\ud800x") == b"X-A: ?x\r\n"
    assert _line("X-A", "") == b"X-A: \r\n"
    for name in ("", "a b", "a\r\nb", "a:", "é", "Trailer:X"):
        assert _line(name, "v") == b""


def test_the_memo_of_lines_is_bounded() -> None:
    from prefork.http.server import response_writer

    for number in range(3000):
        assert _line("X-Number", str(number)) == b"X-Number: %d\r\n" % number
    assert len(response_writer._lines) <= response_writer._LINES_LIMIT
    assert _line("X-Long", "v" * 5000) == b"X-Long: " + b"v" * 5000 + b"\r\n"
    assert ("X-Long", "v" * 5000) not in response_writer._lines


# --- length and framing ---------------------------------------------------------------------

BOTH = pytest.mark.parametrize("general", [False, True], ids=["usual", "general"])


@BOTH
@pytest.mark.parametrize("size", [0, 1, BUFFER - 1, BUFFER])
def test_a_small_body_has_a_length(size: int, general: bool) -> None:
    for pieces in (
        [b"x" * size],
        [b"x"] * size if size < 100 else [b"x" * (size // 2), b"x" * (size - size // 2)],
    ):
        parsed = answer(lambda w, pieces=pieces: [w.write(piece) for piece in pieces], general=general)
        assert (parsed.get("Content-Length"), parsed.get("Transfer-Encoding")) == (str(size), None)
        assert parsed.body == b"x" * size


@pytest.mark.parametrize(
    "pieces", [[BUFFER + 1], [BUFFER, 1], [1, BUFFER], [1] * (BUFFER + 5), [5000, 3, 9000]]
)
def test_a_larger_body_is_chunked(pieces: list[int]) -> None:
    parsed = answer(lambda w: [w.write(b"x" * size) for size in pieces])
    assert (parsed.get("Content-Length"), parsed.get("Transfer-Encoding")) == (None, "chunked")
    assert parsed.body == b"x" * sum(pieces)


def test_to_http_1_0_a_larger_body_ends_with_the_connection() -> None:
    conn = Conn()
    w = ResponseWriter(conn, request("GET", "HTTP/1.0", "Connection: keep-alive"))  # type: ignore[arg-type]
    w.write(b"x" * 5000)
    assert w._finish() is True
    parsed = parse_one(conn.wire)
    assert (parsed.proto, parsed.close, len(parsed.body)) == ("HTTP/1.0", True, 5000)
    assert parsed.get("Connection") is None
    assert parsed.get("Transfer-Encoding") is None


@pytest.mark.parametrize("declared", ["4", " 4 ", "004"])
def test_a_length_the_handler_knows(declared: str) -> None:
    def handler(w: ResponseWriter) -> None:
        w.header["Content-Length"] = declared
        w.write(b"ab")
        w.write(b"cd")
        with pytest.raises(LocalProtocolError, match="more than the declared Content-Length"):
            w.write(b"e")

    parsed = answer(handler)
    assert parsed.body == b"abcd"
    assert parsed.get("Content-Length") == declared.strip()


def test_a_large_body_of_known_length_is_not_chunked() -> None:
    def handler(w: ResponseWriter) -> None:
        w.header["Content-Length"] = "10000"
        for _ in range(10):
            w.write(b"x" * 1000)

    parsed = answer(handler)
    assert (parsed.get("Transfer-Encoding"), len(parsed.body)) == (None, 10_000)


def test_a_body_shorter_than_declared_ends_the_connection() -> None:
    conn = Conn()
    w = ResponseWriter(conn, request())  # type: ignore[arg-type]
    w.header["Content-Length"] = "5"
    w.write(b"abc")
    assert w._usual_answer() is None
    assert w._finish() is True


@pytest.mark.parametrize(
    "lengths", [["x"], ["+4"], ["-4"], ["4,4"], ["4", "4"], ["4", "5"], ["1e1"], ["9" * 19], ["٤"]]
)
def test_a_length_that_is_none_is_left_out_and_logged(lengths: list[str]) -> None:
    conn = Conn()

    def handler(w: ResponseWriter) -> None:
        for length in lengths:
            w.header.add("Content-Length", length)
        w.write(b"body")

    parsed = answer(handler, conn=conn)
    assert parsed.get("Content-Length") is None
    assert parsed.body == b"body"
    (line,) = conn.server.log.lines
    assert "invalid Content-Length" in line


def test_an_empty_length_asks_for_none() -> None:
    def handler(w: ResponseWriter) -> None:
        w.header["Content-Length"] = None
        w.write(b"body")

    parsed = answer(handler)
    assert (parsed.get("Content-Length"), parsed.get("Transfer-Encoding")) == (None, "chunked")


@pytest.mark.parametrize("coding", ["chunked", "identity", "gzip", "gzip, chunked"])
@pytest.mark.parametrize("proto", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("with_length", [False, True])
def test_a_coding_set_by_the_handler(coding: str, proto: str, with_length: bool) -> None:
    def handler(w: ResponseWriter) -> None:
        w.header["Transfer-Encoding"] = coding
        if with_length:
            w.header["Content-Length"] = "4"
        w.write(b"body")

    conn = Conn()
    w = ResponseWriter(conn, request("GET", proto))  # type: ignore[arg-type]
    handler(w)
    assert w._usual_answer() is None
    close = w._finish()
    parsed = parse_one(conn.wire)
    assert parsed.body == b"body"
    assert bool(conn.server.log.lines) is (with_length and coding != "identity")
    if proto == "HTTP/1.0" or (coding == "identity" and not with_length):
        assert close
        assert not parsed.values(b"transfer-encoding")
    elif coding != "identity":
        assert parsed.values(b"transfer-encoding")[-1] == b"chunked"
        assert not parsed.values(b"content-length")


# --- bodies that may not be -----------------------------------------------------------------


@BOTH
def test_head_is_answered_like_get_without_the_body(general: bool) -> None:
    def small(w: ResponseWriter) -> None:
        w.write(b"<html>hello")

    head, get = answer(small, "HEAD", general=general), answer(small, "GET", general=general)
    assert head.fields == get.fields
    assert head.body == b""

    def none(w: ResponseWriter) -> None: ...

    assert answer(none, "HEAD").get("Content-Length") is None, "nobody knows what GET would have"

    def declared(w: ResponseWriter) -> None:
        w.header["Content-Length"] = "10"

    assert answer(declared, "HEAD").get("Content-Length") == "10"

    def large(w: ResponseWriter) -> None:
        w.write(b"x" * 5000)

    parsed = answer(large, "HEAD")
    assert (parsed.get("Transfer-Encoding"), parsed.get("Content-Length")) == (None, None)


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("proto", ["HTTP/1.0", "HTTP/1.1"])
def test_statuses_without_a_body(status: int, method: str, proto: str) -> None:
    def handler(w: ResponseWriter) -> None:
        w.header["Content-Length"] = "10"
        w.header["Transfer-Encoding"] = "chunked"
        w.header["Content-Type"] = "text/x"
        w.header["Etag"] = '"a"'
        w.write_header(status)
        with pytest.raises(LocalProtocolError, match="does not allow body"):
            w.write(b"body")
        w.write(b"")

    parsed = answer(handler, method, proto)
    assert (parsed.status, parsed.body, parsed.get("Etag")) == (status, b"", '"a"')
    assert parsed.get("Content-Length") is None
    assert parsed.get("Transfer-Encoding") is None
    assert parsed.get("Content-Type") == ("text/x" if status == 204 else None)


def test_connect_is_answered_without_framing() -> None:
    conn = Conn()
    w = ResponseWriter(conn, request("CONNECT"))  # type: ignore[arg-type]
    w.write_header(200)
    assert w._finish() is True
    parsed = parse_one(conn.wire, "CONNECT")
    assert [name for name, _ in parsed.fields] == [b"Date"]
    refused = answer(lambda w: http.error(w, "no", 405), "CONNECT")
    assert (refused.body, refused.get("Content-Length"), refused.get("Connection")) == (b"no\n", "3", "close")


# --- what is added --------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"hello", "text/plain; charset=utf-8"),
        (b"<html>", "text/html; charset=utf-8"),
        (b"\x89PNG\x0d\x0a\x1a\x0a", "image/png"),
        (b"\0\1\2", "application/octet-stream"),
    ],
)
def test_the_type_is_guessed(body: bytes, kind: str, general: bool) -> None:
    assert answer(lambda w: w.write(body), general=general).get("Content-Type") == kind
    large = answer(lambda w: w.write(body + b" " * 5000))
    assert large.get("Content-Type") == kind


@BOTH
def test_the_type_is_not_guessed(general: bool) -> None:
    def with_field(name: str, value: str | None) -> Any:
        def handler(w: ResponseWriter) -> None:
            w.header[name] = value
            w.write(b"<html>")

        return answer(handler, general=general)

    assert with_field("Content-Type", "text/x").get("Content-Type") == "text/x"
    assert with_field("Content-Type", None).get("Content-Type") is None
    assert with_field("Content-Type", "").get("Content-Type") == ""
    assert with_field("Content-Encoding", "gzip").get("Content-Type") is None
    assert with_field("Content-Encoding", "").get("Content-Type") is not None
    assert with_field("X-A", "1").get("Content-Type") == "text/html; charset=utf-8"
    assert answer(lambda w: None, general=general).get("Content-Type") is None, "there is nothing to look at"


@BOTH
def test_the_date(general: bool) -> None:
    assert DATE.search(answer(lambda w: w.write(b"x"), general=general).wire)

    def own(w: ResponseWriter) -> None:
        w.header["Date"] = "yesterday"

    def none(w: ResponseWriter) -> None:
        w.header["Date"] = None

    assert answer(own, general=general).get("Date") == "yesterday"
    assert answer(none, general=general).get("Date") is None


@pytest.mark.parametrize(
    ("method", "proto", "field", "own", "connection", "close"),
    [
        ("GET", "HTTP/1.1", "X: y", None, None, False),
        ("GET", "HTTP/1.1", "Connection: close", None, "close", True),
        ("GET", "HTTP/1.1", "X: y", "close", "close", True),
        ("GET", "HTTP/1.1", "X: y", "keep-alive", "keep-alive", False),
        ("GET", "HTTP/1.1", "Connection: close", "keep-alive", "close", True),
        ("GET", "HTTP/1.1", "X: y", "upgrade", "upgrade", False),
        ("GET", "HTTP/1.0", "X: y", None, None, True),
        ("GET", "HTTP/1.0", "Connection: keep-alive", None, "keep-alive", False),
        ("GET", "HTTP/1.0", "Connection: keep-alive", "close", "close", True),
        ("HEAD", "HTTP/1.0", "Connection: keep-alive", None, "keep-alive", False),
    ],
)
def test_who_closes(
    method: str, proto: str, field: str, own: str | None, connection: str | None, close: bool
) -> None:
    conn = Conn()
    w = ResponseWriter(conn, request(method, proto, field))  # type: ignore[arg-type]
    if own is not None:
        w.header["Connection"] = own
    w.write(b"x")
    short = w._usual_answer()
    if short is None:
        assert w._finish() is close
    else:
        conn.out.append(short)
        assert w.request.close is close
    assert parse_one(conn.wire, method).get("Connection") == connection


def test_a_server_that_drains_says_so() -> None:
    conn = Conn()
    conn.server.keep_alive = False
    assert answer(lambda w: w.write(b"x"), conn=conn).get("Connection") == "close"


# --- when the header is decided -------------------------------------------------------------


@pytest.mark.parametrize("by", ["write", "write_header", "flush"])
@pytest.mark.parametrize("touched_before", [False, True])
def test_the_header_is_decided_once(by: str, touched_before: bool, run: Run) -> None:
    async def scenario() -> None:
        conn = Conn()
        w = ResponseWriter(conn, request())  # type: ignore[arg-type]
        if touched_before:
            w.header["X-A"] = "1"
        assert (w.status, w.header_sent) == (0, False)
        if by == "write":
            w.write(b"")
        elif by == "write_header":
            w.write_header(200)
        else:
            await w.flush()
        assert (w.status, w.header_sent) == (200, True)
        w.header["X-A"] = "2"
        w.header["X-B"] = "2"
        w.header["Content-Length"] = "99"
        parsed = parse_one(complete(w, conn))
        assert parsed.get("X-A") == ("1" if touched_before else None)
        assert parsed.get("X-B") is None
        assert parsed.get("Content-Length") in ("0", None)

    run(scenario())


def test_a_second_status_is_ignored_and_logged_with_the_place() -> None:
    conn = Conn()

    def handler(w: ResponseWriter) -> None:
        w.write_header(201)
        w.write_header(500)

    assert answer(handler, conn=conn).status == 201
    (line,) = conn.server.log.lines
    assert "superfluous write_header call from" in line
    assert "handler" in line
    assert "test_response_head.py:" in line


def test_informational_answers_come_first_and_decide_nothing() -> None:
    conn = Conn()
    w = ResponseWriter(conn, request())  # type: ignore[arg-type]
    w.header["Link"] = "</a>; rel=preload"
    w.header["Content-Length"] = "4"
    w.write_header(103)
    w.write_header(103)
    assert w.status == 0
    assert conn.flushed == 2
    early = parse_one(conn.out[0])
    assert (early.status, early.fields) == (103, [(b"Link", b"</a>; rel=preload")])
    conn.out.clear()
    w.header["X-A"] = "1"
    w.write(b"body")
    parsed = parse_one(complete(w, conn))
    assert (parsed.status, parsed.get("Link"), parsed.get("X-A")) == (200, "</a>; rel=preload", "1")


@BOTH
def test_the_writer_is_dead_when_the_handler_has_returned(general: bool, run: Run) -> None:
    w = ResponseWriter(Conn(), request())  # type: ignore[arg-type]
    if general:
        w._finish()
    else:
        assert w._usual_answer() is not None
    uses: list[Callable[[], Any]] = [
        *(lambda: w.write(b"x"), lambda: w.write_header(200), w.enable_full_duplex),
        *(lambda: w.set_read_deadline(1), lambda: w.set_write_deadline(1)),
        *(lambda: run(w.flush()), lambda: run(w.hijack()), lambda: run(w.send_file("/etc/hostname"))),
    ]
    for use in uses:
        with pytest.raises(LocalProtocolError, match="after the handler has returned"):
            use()
    assert repr(w) == "<ResponseWriter finished 200 0 bytes>"


@pytest.mark.parametrize("data", [5, None, [b"x"], object()])
def test_what_cannot_be_written(data: Any) -> None:
    w = ResponseWriter(Conn(), request())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bytes, str or a buffer"):
        w.write(data)


def test_buffers_are_copied_when_they_are_written() -> None:
    def handler(w: ResponseWriter) -> None:
        data = bytearray(b"abc")
        w.write(data)
        data[:] = b"xyz"
        w.write(memoryview(b"d-e-f")[::2])
        w.write(array.array("B", [103, 104]))
        w.write("ié")

    assert answer(handler).body == b"abcdefghi\xc3\xa9"


@pytest.mark.parametrize("first", [0, 1, 2000])
def test_large_buffers_too(first: int) -> None:
    def handler(w: ResponseWriter) -> None:
        w.write(b"x" * first)
        data = bytearray(b"abc" * 1000)
        w.write(memoryview(data).toreadonly())
        data[:] = b"xyz" * 1000
        w.write(memoryview(b"d-e-f-" * 1000)[::2])
        w.write(memoryview(b"0123" * 1000).cast("i"))
        w.write(memoryview(b"ghi" * 1000))
        w.write(b"!")

    assert (
        answer(handler).body
        == b"x" * first + b"abc" * 1000 + b"def" * 1000 + b"0123" * 1000 + b"ghi" * 1000 + b"!"
    )


def test_what_a_client_has_sent_can_be_sent_back() -> None:
    # Text from the network may hold bytes that are no UTF-8: a 404 that names the path is no failure.
    r = request(target="/\xff")
    assert r.url.path == "/\udcff"
    assert answer(lambda w: w.write(f"no {r.url.path}")).body == b"no /\xff"
    with pytest.raises(UnicodeEncodeError):
        answer(lambda w: w.write("\ud800"))


# --- trailers -------------------------------------------------------------------------------


def test_declared_trailers() -> None:
    def handler(w: ResponseWriter) -> None:
        w.header["Trailer"] = "X-Sum, x-other , Content-Length, Host"
        w.write(b"body")
        w.header["X-Sum"] = "1"
        w.header.add("X-Other", "2")
        w.header.add("X-Other", "3\r\nX-Evil: 1")
        w.header["Content-Length"] = "99"
        w.header["Host"] = "evil"
        w.header["X-Undeclared"] = "no"

    parsed = answer(handler)
    assert parsed.get("Transfer-Encoding") == "chunked"
    assert parsed.get("Trailer") == "X-Sum, x-other , Content-Length, Host"
    assert parsed.trailers == [(b"X-Sum", b"1"), (b"X-Other", b"2"), (b"X-Other", b"3  X-Evil: 1")]
    assert parsed.body == b"body"


def test_undeclared_trailers_by_their_prefix() -> None:
    def handler(w: ResponseWriter) -> None:
        w.header["X-A"] = "1"
        w.write(b"x" * 5000)
        w.header["Trailer:x-sum"] = "1"
        w.header["Trailer:Content-Length"] = "99"
        w.header["Trailer:bad name"] = "1"
        w.header["Trailer:"] = "1"

    parsed = answer(handler)
    assert parsed.trailers == [(b"X-Sum", b"1")]
    assert all(b"trailer" not in name.lower() for name, _ in parsed.fields)


def test_a_trailer_known_before_the_header_makes_the_answer_chunked() -> None:
    def handler(w: ResponseWriter) -> None:
        w.header["Trailer:X-Sum"] = "1"
        w.write(b"body")

    parsed = answer(handler)
    assert (parsed.get("Transfer-Encoding"), parsed.trailers) == ("chunked", [(b"X-Sum", b"1")])


@pytest.mark.parametrize("general", [False, True])
def test_no_trailers_where_there_are_no_chunks(general: bool) -> None:
    def handler(w: ResponseWriter) -> None:
        w.header["Trailer"] = "X-Sum"
        w.header["Content-Length"] = "4"
        w.write(b"body")
        w.header["X-Sum"] = "1"

    assert answer(handler, general=general).trailers == []
    assert answer(handler, "HEAD", general=general).body == b""
    assert answer(handler, "GET", "HTTP/1.0", general=general).body == b"body"


# --- over a connection ----------------------------------------------------------------------


def test_what_is_no_text_does_not_hang_the_client(run: Run) -> None:
    # A lone surrogate cannot be encoded; it must not end in a connection without an answer.
    async def scenario() -> bytes:
        def handler(w: http.ResponseWriter, r: http.Request) -> None:
            w.header["X-A"] = "\ud800"
            w.write(b"body")

        server = http.Server("", handler)
        listener = http.server.server.listen("127.0.0.1:0")
        try:
            server.start([listener])
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            wire = await reader.read()
            writer.close()
            await writer.wait_closed()
            return wire
        finally:
            server.close()
            listener.close()

    parsed = parse_one(run(scenario()))
    assert (parsed.status, parsed.body, parsed.get("X-A")) == (200, b"body", "?")


def test_the_strict_parser_is_strict() -> None:
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    assert parse_one(good).body == b"x"
    for bad in (
        good + b"y",
        good.replace(b"1\r\n\r\n", b"2\r\n\r\n"),
        good.replace(b"Content", b"Con tent"),
        good.replace(b"OK\r\n", b"OK\n"),
        good.replace(b": 1", b": 1\r\nContent-Length: 1"),
        good.replace(b": 1", b": 1\x0b"),
        good.replace(b": 1", b": +1"),
        good.replace(b"200", b"2000"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
    ):
        with pytest.raises(AssertionError):
            parse_one(bad)
