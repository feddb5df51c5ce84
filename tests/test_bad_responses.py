"""Hostile servers: the client gets a clear error in time, and never another request's answer.

Three ways to look at it: a table over real sockets, in which a second request follows each bad
answer; the same answers in any segments; damaged answers by the thousand. Where the folder of
measured vectors is, all of its rows. What never ends is in test_endless_responses.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import importlib.util
import itertools
import json
import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork import http
from prefork.http.errors import ConnectionLost, DecodingError, MalformedResponse, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., Any]

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parent.parent / "shared" / "vectors" / "http1_bad_responses.json"


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helpers = _load("helpers_responses")
Player, Socketless, exchange, settle = helpers.Player, helpers.Socketless, helpers.exchange, helpers.settle

BROKEN = "net/http: HTTP/1.x transport connection broken: "
POISON = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"
HELLO = gzip.compress(b"hello", mtime=0).decode("latin-1")


def head(*fields: str, line: str = "HTTP/1.1 200 OK") -> str:
    return "\r\n".join([line, *fields, "", ""])


def sized(body: str, *fields: str, line: str = "HTTP/1.1 200 OK") -> str:
    return head(*fields, f"Content-Length: {len(body)}", line=line) + body


def chunked(wire: str, *fields: str) -> str:
    return head("Transfer-Encoding: chunked", *fields) + wire


# Each row: (what the server sends, what it does then, status, body, whether the connection is kept).
GOOD: dict[str, tuple[str, str, int, bytes, bool]] = {
    "length": (sized("hello"), "hold", 200, b"hello", True),
    "length of nothing": (sized(""), "hold", 200, b"", True),
    "length with white space": (head("Content-Length: \t5 \t") + "hello", "hold", 200, b"hello", True),
    "chunks": (chunked("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"), "hold", 200, b"hello world", True),
    "chunks of nothing": (chunked("0\r\n\r\n"), "hold", 200, b"", True),
    "chunk extensions": (chunked('5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n'), "hold", 200, b"hello", True),
    "trailers": (
        chunked("5\r\nhello\r\n0\r\nX-A: 1\r\nSet-Cookie: e=1\r\n\r\n", "Trailer: X-A, X-B"),
        *("hold", 200, b"hello", True),
    ),
    "until the end": (head() + "hello", "close", 200, b"hello", False),
    "HTTP/1.0": ("HTTP/1.0 200 OK\r\n\r\nhello", "close", 200, b"hello", False),
    "HTTP/1.0 with a length": (sized("hello", line="HTTP/1.0 200 OK"), "hold", 200, b"hello", False),
    "HTTP/1.0, kept": (
        sized("hello", "Connection: keep-alive", line="HTTP/1.0 200 OK"),
        *("hold", 200, b"hello", True),
    ),
    "HTTP/1.7": (sized("hello", line="HTTP/1.7 200 OK"), "hold", 200, b"hello", True),
    "says that it closes": (sized("hello", "Connection: close"), "hold", 200, b"hello", False),
    "says both": (sized("hello", "Connection: keep-alive, Close"), "hold", 200, b"hello", False),
    "no reason": (sized("hello", line="HTTP/1.1 200 "), "hold", 200, b"hello", True),
    "no space either": (sized("hello", line="HTTP/1.1 200"), "hold", 200, b"hello", True),
    "reason in UTF-8": (sized("hello", line="HTTP/1.1 200 \xc3\xa9t\xc3\xa9"), "hold", 200, b"hello", True),
    "status 999": (sized("hello", line="HTTP/1.1 999 X"), "hold", 999, b"hello", True),
    "any bytes in a value": (sized("hello", "X: \xe9\xff\t!"), "hold", 200, b"hello", True),
    "204": (head(line="HTTP/1.1 204 No Content"), "hold", 204, b"", True),
    "204 with a length": (head("Content-Length: 5", line="HTTP/1.1 204 X"), "hold", 204, b"", True),
    "204 with a body": (sized("hello", line="HTTP/1.1 204 X"), "hold", 204, b"", False),
    "204 with a poison": (head(line="HTTP/1.1 204 X") + POISON, "hold", 204, b"", False),
    "304 with a length": (head("Content-Length: 5", line="HTTP/1.1 304 X"), "hold", 304, b"", True),
    "304 with chunks": (
        head("Transfer-Encoding: chunked", line="HTTP/1.1 304 X") + "0\r\n\r\n",
        *("hold", 304, b"", False),
    ),
    "103": (head("Link: </a>", line="HTTP/1.1 103 X") + sized("hello"), "hold", 200, b"hello", True),
    "100 with a length": (
        head("Content-Length: 5", line="HTTP/1.1 100 X") + sized("hello"),
        *("hold", 200, b"hello", True),
    ),
    "many of 100": (head(line="HTTP/1.1 100 X") * 100 + sized("hello"), "hold", 200, b"hello", True),
    "gzip": (sized(HELLO, "Content-Encoding: GZip"), "hold", 200, b"hello", True),
    "gzip, chunked": (
        chunked(f"{len(HELLO):x}\r\n{HELLO}\r\n0\r\n\r\n", "Content-Encoding: gzip"),
        *("hold", 200, b"hello", True),
    ),
    "gzip until the end": (head("Content-Encoding: gzip") + HELLO, "close", 200, b"hello", False),
    "gzip in two members": (sized(HELLO * 2, "Content-Encoding: gzip"), "hold", 200, b"hellohello", True),
    "a coding that was not asked for": (sized("x", "Content-Encoding: br"), "hold", 200, b"x", True),
    "a poison behind the length": (sized("hello") + POISON, "hold", 200, b"hello", False),
    "a blank line behind the length": (sized("hello") + "\r\n", "hold", 200, b"hello", False),
    "a poison behind nothing": (sized("") + POISON, "hold", 200, b"", False),
    "a poison behind chunks": (chunked("5\r\nhello\r\n0\r\n\r\n") + POISON, "hold", 200, b"hello", False),
    "a poison behind gzip": (
        sized(HELLO, "Content-Encoding: gzip") + POISON,
        *("hold", 200, b"hello", False),
    ),
}

# Each row: (what the server sends, what it does then, class of the error, its phase, its text).
BAD: dict[str, tuple[str, str, type[TransportError], str, str]] = {
    name: (raw, after, MalformedResponse, "header", BROKEN + text)
    for name, (raw, after, text) in {
        "garbage": ("garbage\r\n\r\n", "hold", 'malformed HTTP response "garbage"'),
        "garbage without an end": ("garbage\r\n", "hold", 'malformed HTTP response "garbage"'),
        "another protocol": ("SSH-2.0-x\r\n", "hold", 'malformed HTTP response "SSH-2.0-x"'),
        "a blank line first": ("\r\n" + sized("hello"), "hold", 'malformed HTTP response ""'),
        "junk in front": (
            sized("x", line="junkHTTP/1.1 200 OK"),
            "hold",
            'malformed HTTP version "junkHTTP/1.1"',
        ),
        "HTTP/2": (sized("x", line="HTTP/2.0 200 OK"), "hold", 'malformed HTTP version "HTTP/2.0"'),
        "http/1.1": (sized("x", line="http/1.1 200 OK"), "hold", 'malformed HTTP version "http/1.1"'),
        "HTTP/1.10": (sized("x", line="HTTP/1.10 200 OK"), "hold", 'malformed HTTP version "HTTP/1.10"'),
        "ICY": (sized("x", line="ICY 200 OK"), "hold", 'malformed HTTP version "ICY"'),
        "status of letters": (sized("x", line="HTTP/1.1 2xx OK"), "hold", 'malformed HTTP status code "2xx"'),
        "status of two digits": (
            sized("x", line="HTTP/1.1 20 OK"),
            "hold",
            'malformed HTTP status code "20"',
        ),
        "status of four digits": (
            sized("x", line="HTTP/1.1 2000 OK"),
            *("hold", 'malformed HTTP status code "2000"'),
        ),
        "status with a sign": (
            sized("x", line="HTTP/1.1 +20 OK"),
            "hold",
            'malformed HTTP status code "+20"',
        ),
        "status 000": (sized("x", line="HTTP/1.1 000 OK"), "hold", 'malformed HTTP status code "000"'),
        "status in other digits": (
            sized("x", line="HTTP/1.1 \xd9\xa2\xd9\xa0\xd9\xa0 OK"),
            *("hold", 'malformed HTTP status code "\u0662\u0660\u0660"'),
        ),
        "two spaces": (sized("x", line="HTTP/1.1  200 OK"), "hold", 'malformed HTTP status code ""'),
        "NUL in the reason": (
            sized("x", line="HTTP/1.1 200 O\0K"),
            *("hold", 'malformed HTTP response "HTTP/1.1 200 O\\x00K": controls'),
        ),
        "LF behind the status": (
            "HTTP/1.1 200 OK\nContent-Length: 1\n\nx",
            *("hold", 'malformed HTTP response "HTTP/1.1 200 OK": the line ends with bare LF'),
        ),
        "LF behind a field": (
            "HTTP/1.1 200 OK\r\nA: b\nContent-Length: 1\n\nx",
            *("hold", 'malformed MIME header: a line ends with bare LF: "A: b"'),
        ),
        "CR within a field": (
            sized("x", "A: b\rSet-Cookie: c=d"),
            *("hold", 'malformed MIME header line: "A: b\\rSet-Cookie: c=d"'),
        ),
        "NUL in a value": (sized("x", "A: \0"), "hold", 'malformed MIME header line: "A: \\x00"'),
        "DEL in a value": (sized("x", "A: \x7f"), "hold", 'malformed MIME header line: "A: \\x7f"'),
        "a folded line": (sized("x", "A: b", " c"), "hold", 'malformed MIME header folded line: " c"'),
        "a folded first line": (
            sized("x", "\tA: b"),
            "hold",
            'malformed MIME header initial line: "\\tA: b"',
        ),
        "no colon": (sized("x", "Foo"), "hold", 'malformed MIME header: missing colon: "Foo"'),
        "no name": (sized("x", ": b"), "hold", 'malformed MIME header line: ": b"'),
        "space before the colon": (sized("x", "A : b"), "hold", 'malformed MIME header line: "A : b"'),
        "no ASCII in a name": (sized("x", "F\xf6o: b"), "hold", 'malformed MIME header line: "F\\xf6o: b"'),
        "length with a sign": (head("Content-Length: +5") + "hello", "hold", 'bad Content-Length "+5"'),
        "length below zero": (head("Content-Length: -5") + "hello", "hold", 'bad Content-Length "-5"'),
        "length with an underscore": (head("Content-Length: 1_0"), "hold", 'bad Content-Length "1_0"'),
        "length in hexadecimal": (head("Content-Length: 0x5"), "hold", 'bad Content-Length "0x5"'),
        "length in other digits": (
            head("Content-Length: \xd9\xa5") + "hello",
            *("hold", 'bad Content-Length "\u0665"'),
        ),
        "length without digits": (head("Content-Length: ") + "hello", "hold", 'bad Content-Length ""'),
        "length twice in a line": (
            head("Content-Length: 5, 5") + "hello",
            "hold",
            'bad Content-Length "5, 5"',
        ),
        "length above 2^63": (
            head("Content-Length: 9223372036854775808"),
            *("hold", 'bad Content-Length "9223372036854775808"'),
        ),
        "length above 2^64": (
            head("Content-Length: 18446744073709551617") + "h",
            *("hold", 'bad Content-Length "18446744073709551617"'),
        ),
        "bad length of a 204": (
            head("Content-Length: x", line="HTTP/1.1 204 OK"),
            *("hold", 'bad Content-Length "x"'),
        ),
        "two lengths": (
            head("Content-Length: 5", "Content-Length: 3") + "hello",
            "hold",
            'http: message cannot contain multiple Content-Length headers; got ["5" "3"]',
        ),
        "two equal lengths": (
            head("Content-Length: 5", "content-length: 5") + "hello",
            "hold",
            'http: message cannot contain multiple Content-Length headers; got ["5" "5"]',
        ),
        "length and chunks": (
            chunked("0\r\n\r\n", "Content-Length: 5"),
            *("hold", "http: Transfer-Encoding together with Content-Length"),
        ),
        "chunks in HTTP/1.0": (
            head("Transfer-Encoding: chunked", line="HTTP/1.0 200 OK") + "0\r\n\r\n",
            *("close", "http: Transfer-Encoding in HTTP/1.0"),
        ),
        "unknown coding": (
            head("Transfer-Encoding: xchunked") + "0\r\n\r\n",
            *("hold", 'unsupported transfer encoding: "xchunked"'),
        ),
        "coding twice": (
            chunked("0\r\n\r\n", "Transfer-Encoding: chunked"),
            *("hold", 'too many transfer encodings: ["chunked" "chunked"]'),
        ),
        "a vertical tab before the coding": (
            head("Transfer-Encoding: \x0bchunked"),
            *("hold", 'malformed MIME header line: "Transfer-Encoding: \\vchunked"'),
        ),
        "101 unasked": (
            head("Connection: Upgrade", "Upgrade: evil", line="HTTP/1.1 101 X") + POISON,
            *("hold", "net/http: the server switched protocols without being asked"),
        ),
        "bad 103": (
            head("A : b", line="HTTP/1.1 103 X") + sized("x"),
            *("hold", 'malformed MIME header line: "A : b"'),
        ),
    }.items()
}
BAD |= {
    name: (chunked(raw), "hold", MalformedResponse, "body", text)
    for name, (raw, text) in {
        "0x": ("0x5\r\nhello\r\n0\r\n\r\n", "invalid byte in chunk length"),
        "chunk with a sign": ("+5\r\nhello\r\n0\r\n\r\n", "invalid byte in chunk length"),
        "chunk with an underscore": ("0_5\r\nhello\r\n0\r\n\r\n", "invalid byte in chunk length"),
        "chunk with a space": ("5 \r\nhello\r\n0\r\n\r\n", "invalid byte in chunk length"),
        "chunk without a size": ("\r\nhello\r\n0\r\n\r\n", "empty hex number for chunk length"),
        "chunk of 2^63": ("8000000000000000\r\nhello", "http chunk length too large"),
        "chunk of 17 digits": ("00000000000000005\r\nhello", "http chunk length too large"),
        "LF behind a size": ("5\nhello\r\n0\r\n\r\n", "chunked line ends with bare LF"),
        "LF behind a chunk": ("5\r\nhello\n0\r\n\r\n", "malformed chunked encoding"),
        "chunk too long": ("5\r\nhelloX\r\n0\r\n\r\n", "malformed chunked encoding"),
        "CR in a chunk line": ("5;\rx\r\nhello\r\n0\r\n\r\n", "invalid CR in chunked line"),
        "trailer without a colon": ("0\r\nX\r\n\r\n", "malformed trailer line"),
        "trailer that frames": ("0\r\nContent-Length: 3\r\n\r\n", "bad trailer key"),
    }.items()
}
LOST_BODY = "unexpected EOF: the connection ended within the body"
BAD |= {
    "nothing": (
        *("", "close", ConnectionLost, "header"),
        "EOF: the server closed the connection without an answer",
    ),
    "half a status line": (
        *("HTTP/1.1 20", "close", ConnectionLost, "header"),
        f"{BROKEN}unexpected EOF",
    ),
    "half a head": (
        *("HTTP/1.1 200 OK\r\nContent-Le", "close", ConnectionLost, "header"),
        f"{BROKEN}unexpected EOF",
    ),
    "only a 100": (
        *(head(line="HTTP/1.1 100 X"), "close", ConnectionLost, "header"),
        f"{BROKEN}unexpected EOF",
    ),
    "half a body": (head("Content-Length: 9") + "hello", "close", ConnectionLost, "body", LOST_BODY),
    "no body": (head("Content-Length: 9"), "close", ConnectionLost, "body", LOST_BODY),
    "half a chunk": (chunked("9\r\nhello"), "close", ConnectionLost, "body", LOST_BODY),
    "no last chunk": (chunked("5\r\nhello\r\n"), "close", ConnectionLost, "body", LOST_BODY),
    "no end of trailers": (chunked("0\r\nX: y\r\n"), "close", ConnectionLost, "body", LOST_BODY),
}
GZIPPED = "Content-Encoding: gzip"
BAD_CODING: dict[str, tuple[str, str]] = {
    "gzip of nothing": (chunked("0\r\n\r\n", GZIPPED), "gzip: the body is empty"),
    "gzip cut off": (
        sized(HELLO[:-4], GZIPPED),
        "gzip: unexpected EOF: the compressed body is cut off",
    ),
    "gzip cut off in the second member": (
        sized(HELLO + HELLO[:15], GZIPPED),
        "gzip: unexpected EOF: the compressed body is cut off",
    ),
    "no gzip at all": (sized("hello, it is long enough", GZIPPED), "gzip: invalid data"),
    "gzip with a wrong checksum": (sized(HELLO[:-8] + "\0" * 8, GZIPPED), "gzip: invalid data"),
    "gzip with a wrong length": (sized(HELLO[:-4] + "\xff\0\0\0", GZIPPED), "gzip: invalid data"),
    "garbage behind gzip": (sized(HELLO + "garbage", GZIPPED), "gzip: invalid data"),
}


class Played:
    """What a client saw of a row, and the second request after it."""

    def __init__(self) -> None:
        self.response: Any = None
        self.body = b""
        self.error: TransportError | None = None
        self.kept = False  # the second request went over the same connection
        self.second = b""  # its head


async def play(
    raw: bytes, after: str, *, streamed: bool, extra: bytes = b"", method: str = "GET", **options: Any
) -> Played:
    """Ask a server that answers with `raw`, then ask it again; that answer must be the right one."""
    played = Played()
    player = Player(raw, after, extra)
    transport = http.Transport(proxy=None, **options)
    client = http.Client(transport=transport, jar=http.CookieJar())
    async with player.serving() as addr, contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(transport.close)
        request = http.Request(method, f"http://{addr}/first")
        try:
            async with asyncio.timeout(5):
                if streamed:
                    async with client.do(request) as streaming:
                        played.response = streaming
                        played.body = b"".join([piece async for piece in streaming.body])
                else:
                    played.response = await client.do(request)
                    played.body = played.response.body
        except TransportError as error:
            played.error = error
        if played.error is not None:
            assert played.error.phase
            if played.error.phase != "redirect":
                assert played.error.addr == addr
                assert played.error.url == f"http://{addr}/first"
        if extra:
            await player.say_more()
        second = await client.get(f"http://{addr}/second")
        assert (second.status, second.body) == (200, b"second-ok")
        assert len(player.requests) == 2, "nothing is asked twice"
        number, played.second = player.requests[-1]
        played.kept = number == 0
        if not played.kept:
            await player.ended(0)
    return played


both_ways = pytest.mark.parametrize("streamed", [False, True], ids=["awaited", "streamed"])


@pytest.mark.both_loops
@both_ways
@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_read_is_read(name: str, streamed: bool, run: Run) -> None:
    raw, after, status, body, kept = GOOD[name]
    played = run(play(raw.encode("latin-1"), after, streamed=streamed))
    assert played.error is None
    assert (played.response.status, played.body) == (status, body)
    assert played.kept == kept


@pytest.mark.both_loops
@both_ways
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_an_error(name: str, streamed: bool, run: Run) -> None:
    raw, after, kind, phase, text = BAD[name]
    played = run(play(raw.encode("latin-1"), after, streamed=streamed))
    assert played.error is not None
    assert (type(played.error), played.error.phase, played.error.text) == (kind, phase, text)
    assert not played.error.retryable
    assert not played.kept


@both_ways
@pytest.mark.parametrize("name", BAD_CODING)
def test_what_cannot_be_decoded_is_an_error(name: str, streamed: bool, run: Run) -> None:
    raw, text = BAD_CODING[name]
    played = run(play(raw.encode("latin-1"), "hold", streamed=streamed))
    assert isinstance(played.error, DecodingError)
    assert played.error.phase == "body"
    assert played.error.text.startswith(text)
    assert played.kept  # the message itself was right


@pytest.mark.both_loops
@pytest.mark.parametrize("raw", ["", "HTTP/1.1 200 OK\r\nContent-Le", head("Content-Length: 9") + "hello"])
def test_reset(raw: str, run: Run) -> None:
    played = run(play(raw.encode(), "rst", streamed=False))
    assert isinstance(played.error, ConnectionLost)
    assert played.error.phase == ("body" if "\r\n\r\n" in raw else "header")


@pytest.mark.parametrize("raw", [sized("hello"), head("Content-Length: 5"), head(), chunked("")])
def test_head_has_no_body(raw: str, run: Run) -> None:
    played = run(play(raw.encode(), "hold", streamed=False, method="HEAD"))
    assert (played.response.status, played.body) == (200, b"")
    assert played.kept == raw.endswith("\r\n\r\n")


@pytest.mark.parametrize("extra", [POISON, "HTTP/1.1 100 Continue\r\n\r\n", "\0\1garbage", "\r\n"])
def test_bytes_that_nobody_asked_for(extra: str, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    played = run(play(sized("hello").encode(), "hold", streamed=False, extra=extra.encode()))
    assert (played.body, played.kept) == (b"hello", False)
    assert "Unsolicited response received on idle HTTP channel" in caplog.text


def test_a_408_on_an_idle_connection_is_no_news(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    extra = sized("", "Connection: close", line="HTTP/1.1 408 Request Timeout")
    played = run(play(sized("hello").encode(), "hold", streamed=False, extra=extra.encode()))
    assert (played.body, played.kept) == (b"hello", False)
    assert not caplog.text


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("gopher://127.0.0.1:11211/_stats", "unsupported protocol scheme"),
        ("javascript:alert(1)", "unsupported protocol scheme"),
        ("file:///etc/passwd", "unsupported protocol scheme"),
        ("http://exa mple.test/", "failed to parse Location header"),
        ("http://[::1/", "failed to parse Location header"),
        ("http:///nowhere", "no Host"),
    ],
)
def test_redirects_that_lead_nowhere(location: str, problem: str, run: Run) -> None:
    raw = sized("", f"Location: {location}", line="HTTP/1.1 302 Found")
    played = run(play(raw.encode(), "hold", streamed=False))
    assert played.error is not None
    assert played.error.phase == "redirect"
    assert problem in played.error.text
    assert played.kept


def test_no_cookie_that_is_none(run: Run) -> None:
    cookies = [
        "Set-Cookie: one=1; Path=/",
        "Set-Cookie: two=2; Domain=evil.test",
        "Set-Cookie: three=3; Secure; Domain=127.0.0.2",
        "Set-Cookie: =4",
        "Set-Cookie: five=5; Path=/../x",
    ]
    played = run(play(sized("hello", *cookies).encode(), "hold", streamed=False))
    assert b"\r\nCookie: one=1\r\n" in played.second
    many = [f"Set-Cookie: c{i}=v; Path=/" for i in range(3001)]
    played = run(play(sized("hello", *many).encode(), "hold", streamed=False))
    assert played.body == b"hello"
    assert b"Cookie" not in played.second


# --- the measured rows ------------------------------------------------------------------------

ROWS = json.loads(VECTORS.read_text()) if VECTORS.exists() else []
NO_ROWS = pytest.param({}, marks=pytest.mark.skip(reason=f"no vectors in {VECTORS.parent}"))

# Rows that may end either way and end here in the way that is not preferred.
TOLERATED = {
    "gz_chain_of_codings": "codings that were not asked for are handed on as they are (Go does so too)",
}


def raw_bytes(row: dict[str, Any]) -> bytes:
    if row.get("raw_parts"):
        return b"".join(text.encode("latin-1") * times for text, times in row["raw_parts"])
    return bytes(row["raw"].encode("latin-1"))


@both_ways
@pytest.mark.parametrize("row", ROWS or [NO_ROWS], ids=[row["name"] for row in ROWS] or ["none"])
def test_vectors_of_bad_responses(row: dict[str, Any], streamed: bool, run: Run) -> None:
    extra = row.get("extra", "").encode("latin-1")
    method = row["request"]["method"]
    played = run(play(raw_bytes(row), row["after"], streamed=streamed, extra=extra, method=method))
    if row["expect"] == "accept":
        assert played.error is None
    elif row["expect"] == "error" or (row.get("prefer") == "error" and row["name"] not in TOLERATED):
        assert played.error is not None
    if played.error is None:
        assert played.response.status == (600 if row["name"] == "sl_s600" else row.get("status", 200))
        if "body" in row:
            assert played.body == row["body"].encode("latin-1")
        elif "body_len" in row:
            assert len(played.body) == row["body_len"]
    if row["reuse"] != "may":
        assert played.kept == (row["reuse"] == "should")
    if row["category"] == "cookies" or row["name"] in ("chunk_trailer_set_cookie", "set_cookie_5000"):
        # A Secure cookie is sent to a loopback address, where this server is, without TLS too (as Go does).
        sent = row["name"] in ("cookie_ok", "cookie_secure_from_http")
        expected = b"\r\nCookie: a=b\r\n" if sent else b""
        assert (b"Cookie" in played.second) == bool(expected)
        assert expected in played.second


def test_all_rows_were_played() -> None:
    if not ROWS:
        pytest.skip(f"no vectors in {VECTORS.parent}")
    assert len(ROWS) == 113
    assert set(TOLERATED) <= {row["name"] for row in ROWS}


# --- segments ---------------------------------------------------------------------------------

STREAMS: dict[str, tuple[str, bytes, str]] = {
    **{name: ("GET", row[0].encode("latin-1"), row[1]) for name, row in (GOOD | BAD).items()},
    **{name: ("GET", raw.encode("latin-1"), "hold") for name, (raw, _) in BAD_CODING.items()},
    "HEAD": ("HEAD", sized("hello").encode(), "hold"),
    "HEAD without a body": ("HEAD", head("Content-Length: 5").encode(), "hold"),
    "reset in the head": ("GET", b"HTTP/1.1 200 OK\r\n", "rst"),
    "reset in the body": ("GET", head("Content-Length: 9").encode() + b"hello", "rst"),
    **{
        f"row {row['name']}": (row["request"]["method"], raw_bytes(row), row["after"])
        for row in ROWS
        if row["category"] not in ("redirect", "cookies")
        and not row.get("raw_parts")
        and len(row["raw"]) < 2000
    },
}


async def outcome(name: str, pieces: list[bytes]) -> dict[str, Any]:
    method, _, after = STREAMS[name]
    transport = Socketless()
    try:
        result: dict[str, Any] = await exchange(
            transport, http.Request(method, "http://server.test/"), pieces, after
        )
    finally:
        await transport.close()
    return result


@functools.cache
def whole(name: str) -> dict[str, Any]:
    raw = STREAMS[name][1]
    return asyncio.run(outcome(name, [raw] if raw else []))


@pytest.fixture
def quiet() -> Iterator[None]:
    """Without the warnings about bytes that nobody has asked for."""
    logger = logging.getLogger("prefork.http.client")
    logger.disabled = True
    yield
    logger.disabled = False


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", STREAMS)
def test_the_cuts_between_segments_do_not_matter(name: str, run: Run) -> None:
    data = STREAMS[name][1]
    want = whole(name)
    if name in GOOD:
        assert (want["status"], want["body"], want["kept"]) == GOOD[name][2:]

    async def scenario() -> None:
        for place in range(1, min(len(data), 400)):
            assert await outcome(name, [data[:place], data[place:]]) == want, f"cut at {place}"
        assert await outcome(name, [data[i : i + 1] for i in range(len(data))]) == want, "cut into bytes"

    run(scenario(), timeout=60)


@pytest.mark.usefixtures("quiet")
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_nor_do_several_of_them(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(STREAMS)))
    raw = STREAMS[name][1]
    places = data.draw(st.lists(st.integers(1, max(1, len(raw) - 1)), max_size=8))
    edges = sorted({0, len(raw), *places})
    pieces = [piece for a, b in itertools.pairwise(edges) if (piece := raw[a:b])]
    assert asyncio.run(outcome(name, pieces)) == whole(name), pieces


def test_a_head_that_drips_is_a_head(run: Run) -> None:
    async def scenario() -> None:
        raw = chunked("5\r\nhello\r\n0\r\nX-T: v\r\n\r\n", "X-A: b", "Trailer: X-T").encode()
        player = Player([raw[i : i + 1] for i in range(len(raw))])
        async with player.serving() as addr, http.Client(transport=http.Transport(proxy=None)) as client:
            for _ in range(2):
                response = await client.get(f"http://{addr}/first")
                assert (response.body, response.header["X-A"]) == (b"hello", "b")
                assert response.trailer["X-T"] == "v"
            assert {number for number, _ in player.requests} == {0}
            await client.transport.close()  # type: ignore[attr-defined]

    run(scenario())


# --- damage -----------------------------------------------------------------------------------

SCRAPS = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\r\n\r\n", b"\xff", b",", b";", b"-1", b"0x"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"HTTP/1.0"),
    *(
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"9" * 20,
        b"\r\n folded",
        b"HTTP/1.1 100 X\r\n\r\n",
        b"HTTP/1.1 101 X",
    ),
    *(b"Content-Encoding: gzip\r\n", b"Upgrade: x\r\nConnection: upgrade\r\n", b"HTTP/1.1 204 X\r\n\r\n"),
]


def damaged(rng: random.Random, corpus: list[bytes]) -> bytes:
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        how = rng.randrange(5)
        if how == 0 and place < len(data):
            data[place] = rng.randrange(256)
        elif how == 1:
            del data[place : place + rng.randint(1, 8)]
        elif how == 2:
            data[place:place] = rng.choice(SCRAPS)
        elif how == 3:
            other = rng.randrange(len(data) + 1)
            data[place:place] = data[other : other + rng.randint(1, 20)]
        else:
            del data[place:]
    return bytes(data)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("seed", range(4))
def test_damaged_answers_are_answers_or_errors(seed: int, run: Run) -> None:
    rng = random.Random(seed)
    corpus = [raw for _, raw, _ in STREAMS.values() if len(raw) < 2000]

    async def scenario() -> None:
        for number in range(600):
            data = damaged(rng, corpus)
            edges = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.randint(0, 3)))})
            pieces = [piece for a, b in itertools.pairwise(edges) if (piece := data[a:b])]
            transport = Socketless()
            request = http.Request(rng.choice(["GET", "HEAD", "POST"]), "http://server.test/")
            try:
                result = await exchange(transport, request, pieces, "close")
                assert not result["kept"]
                assert transport.sockets == 1
                assert not transport.stats().hosts
                if "error" not in result:
                    assert 200 <= result["status"] <= 999
            except BaseException as error:
                error.add_note(f"seed {seed}, round {number}: {request.method} {pieces!r}")
                raise
            finally:
                await transport.close()

    run(scenario(), timeout=60)
