"""The client against what Go's client did with the same requests and answers, row by row.

Requests go through a real Transport; its `dial` gives one end of a socketpair, and a small server
at the other end plays the row. One test per row, so pytest's count is the number of rows that ran.
Rows that are meant to differ are in vector_exceptions.py with their reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import importlib.util
import json
import logging
import re
import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.client.connect_method import ConnectMethod
from prefork.http.client.request_head import USER_AGENT
from prefork.http.client.retry import NothingWritten, ReadFromServerError, is_replayable, should_retry
from prefork.http.client.transport import Transport
from prefork.http.errors import (
    ConnectionLost,
    HTTPError,
    LocalProtocolError,
    ServerClosedIdle,
    TransportError,
)
from prefork.http.message.header import Header
from prefork.http.message.request import Request
from prefork.http.message.response import NoLocation, Response
from prefork.http.message.url import URL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "shared" / "vectors"
EXCEPTIONS: dict[str, dict[str, str]] = runpy.run_path(str(HERE / "vector_exceptions.py"))["EXCEPTIONS"]

_spec = importlib.util.spec_from_file_location("helpers_responses", HERE / "helpers_responses.py")
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

Row = dict[str, Any]
CHECKS: dict[str, Callable[[Row], Any]] = {}
BROKEN = "net/http: HTTP/1.x transport connection broken: "


def check(name: str) -> Callable[[Callable[[Row], Any]], Callable[[Row], Any]]:
    """Registers a function that asserts one row of the file `name`; it may return a coroutine."""

    def register(function: Callable[[Row], Any]) -> Callable[[Row], Any]:
        CHECKS[name] = function
        return function

    return register


def wire(text: str) -> bytes:
    """The bytes of a row, with our name in place of Go's."""
    return text.replace("Go-http-client/1.1", USER_AGENT).encode("latin-1")


def unwire(text: str) -> str:
    """A str of a row, its bytes as Latin-1, as the API takes it."""
    return text.encode("latin-1").decode("utf-8", "surrogateescape")


# --- a server at the other end of a socketpair ---------------------------------------------------


class Server:
    """Reads whole requests and answers all with the same bytes.

    dialed: the addresses that were dialled. requests: what was received, as (connection, bytes).
    closes: whether the connection ends behind the answer.
    """

    def __init__(self, answer: bytes | Callable[[bytes], bytes] | None, *, closes: bool = False) -> None:
        self.answer = answer
        self.closes = closes
        self.dialed: list[str] = []
        self.requests: list[tuple[int, bytes]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def dial(self, network: str, addr: str) -> socket.socket:
        assert network == "tcp"
        self.dialed.append(addr)
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        serving = self._serve(len(self._tasks), reader, writer)
        self._tasks.append(asyncio.get_running_loop().create_task(serving))
        return ours

    async def _serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read_request(reader)
                self.requests.append((number, request))
                if self.answer is not None:
                    writer.write(self.answer(request) if callable(self.answer) else self.answer)
                if self.closes:
                    writer.write_eof()
        except (EOFError, OSError):
            pass
        finally:
            writer.transport.abort()

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await helpers.settle()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    request = await reader.readuntil(b"\r\n\r\n")
    if length := re.search(rb"\r\nContent-Length: ([0-9]+)\r\n", request):
        request += await reader.readexactly(int(length[1]))
    elif b"\r\nTransfer-Encoding: chunked\r\n" in request:
        while True:
            line = await reader.readuntil(b"\r\n")
            request += line
            if line == b"0\r\n":
                break
            request += await reader.readexactly(int(line, 16) + 2)
        while line != b"\r\n":
            line = await reader.readuntil(b"\r\n")
            request += line
    return request


@contextlib.asynccontextmanager
async def between(server: Server, **options: Any) -> AsyncIterator[Transport]:
    """A Transport whose connections all lead to `server`."""
    async with server:
        transport = Transport(**{"proxy": None, "dial": server.dial, "expect_continue_timeout": 0, **options})
        try:
            yield transport
        finally:
            await transport.close()


async def once(*pieces: bytes, error: str | None = None) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if error is not None:
        raise RuntimeError(error)


def make_header(fields: dict[str, list[str] | None] | None) -> Header:
    header = Header()
    for name, values in (fields or {}).items():
        header[unwire(name)] = None
        for value in values or ():
            header.add(unwire(name), unwire(value))
    return header


def make_url(parts: Row, host: str = "") -> URL:
    """A URL of a row. A Transport wants scheme and host, where Go's Request.Write needs neither."""
    url = URL.parse("http://x/")
    url.scheme, url.host = parts["scheme"] or "http", parts["host"] or host
    url.path, url.raw_query, url.opaque = parts["path"], parts["raw_query"], parts["opaque"]
    return url


def of_header(header: Header) -> dict[str, list[str]]:
    return {name: header.values(name) for name in header}


def of_fields(fields: dict[str, list[str] | None] | None) -> dict[str, list[str]]:
    return {
        unwire(name): [unwire(value) for value in values or ()] for name, values in (fields or {}).items()
    }


def same_head(response: Response[Any], want: Row) -> None:
    status, _, reason = want["status"].partition(" ")
    assert (response.status, response.reason) == (int(status), reason)
    assert response.proto == want["proto"]
    assert response.close_connection == want["close"]
    assert response.content_length == want["content_length"]
    assert of_header(response.header) == of_fields(want["header"])
    assert response.transfer_encoding == (want["transfer_encoding"] or [])
    assert response.uncompressed == want["uncompressed"]


# --- requests on the wire ------------------------------------------------------------------------


def wire_request(fields: Row) -> Request:
    kind, data = fields["body_kind"], fields["body"].encode("latin-1")
    body = {"none": None, "nobody": b"", "bytes": data}.get(kind)
    request = Request(
        fields["method"],
        unwire(fields["url"]),
        header=make_header(fields["header"]) if fields["header"] else None,
        body=once(*([data] if data else [])) if kind == "stream" else body,
        host=fields["host"] or None,
        trailer=make_header(fields["trailer"]) if fields["trailer"] else None,
        content_length=fields["content_length"] or None,
        close=fields["close"],
    )
    if fields["transfer_encoding"] == ["chunked"]:
        request.content_length = -1
    return request


@check("golden_client_wire")
async def _(row: Row) -> None:
    raw = row["server_response"]
    if isinstance(raw, dict):
        raw = raw["prefix"] + raw["repeat"] * raw["times"] + raw["suffix"]
    options = row["transport"]
    server = Server(None if raw == "<never>" else raw.encode("latin-1"), closes=row["server_closes_after"])
    timeout = options.get("response_header_timeout_ms")
    async with between(
        server,
        proxy=options.get("proxy"),
        proxy_connect_header=make_header(options.get("proxy_connect_header")),
        response_header_timeout=timeout / 1000 if timeout else None,
    ) as transport:
        want = row["result"]
        response, problem = await attempt(transport, lambda: wire_request(row["request"]))
        assert (None if problem is None else str(problem)) == want["error"]
        if response is not None:
            same_head(response, want)
            if row["client_reads_body"]:
                await same_body(response, want)
            response.close()
            await over(transport)
        assert server.dialed == row["dialed"]
        assert [request for _, request in server.requests] == ([wire(row["wire"])] if row["wire"] else [])
        if row["second_request_reuses_conn"] is not None:
            async with await transport.round_trip(wire_request(row["request"])):
                assert (server.requests[1][0] == 0) == row["second_request_reuses_conn"]
            await over(transport)


async def attempt(
    transport: Transport, request: Callable[[], Request]
) -> tuple[Response[Any] | None, Exception | None]:
    """The response to a request, or the error that making or sending it raises."""
    try:
        return await transport.round_trip(request()), None
    except (HTTPError, ValueError) as error:
        return None, error


async def same_body(response: Response[Any], want: Row) -> None:
    if response.upgraded is not None:
        assert await response.upgraded[0].read() == want["body"].encode("latin-1")
        return
    if want["body_error"] is None:
        assert await response.body.read() == want["body"].encode("latin-1")
    else:
        with pytest.raises(TransportError):
            await response.body.read()
    assert of_header(response.trailer) == of_fields(want["trailer"])


async def over(transport: Transport) -> None:
    """Wait until the connection has been given back or closed."""
    async with asyncio.timeout(5):
        for _ in iter(lambda: transport.stats().active, 0):
            await asyncio.sleep(0)


@check("request_write")
async def _(row: Row) -> None:
    fields, body = row["request"], row["body"]
    for via, expected in (("want_write", row["want_write"]), ("want_proxy", row["want_proxy"])):
        if expected is None and (via == "want_proxy" or row["error"] is None):
            continue
        data = body.get("data", "").encode()
        content = {"none": None, "bytes": data, "stream": once(data, error=body.get("read_error"))}[
            body["kind"]
        ]
        server = Server(b"HTTP/1.1 204 OK\r\n\r\n")
        proxy = "http://proxy.test:3128" if via == "want_proxy" else None
        async with between(server, proxy=proxy, disable_compression=True) as transport:
            request = Request(
                fields["method"],
                make_url(fields["url"], fields["host"]),
                header=make_header(fields["header"]),
                body=content,
                host=fields["host"] or None,
                trailer=make_header(fields["trailer"]) if fields["trailer"] else None,
                content_length=fields["content_length"] or None,
                close=fields["close"],
            )
            if fields["transfer_encoding"] == ["chunked"]:
                request.content_length = -1
            _, problem = await attempt(transport, lambda: request)  # noqa: B023
            if problem is not None:
                assert str(problem.__cause__ or problem) == row["error"]
            else:
                assert row["error"] is None
                assert server.requests == [(0, wire(expected))]


@check("client_user_agent")
async def _(row: Row) -> None:
    server = Server(b"HTTP/1.1 204 OK\r\n\r\n")
    async with between(server) as transport:
        header = make_header({"User-Agent": row["header_user_agent"]}) if row["set"] else None
        (await transport.round_trip(Request("GET", "http://server.test/", header=header))).close()
    seen = re.findall(rb"\r\nUser-Agent: ([^\r]*)", server.requests[0][1])
    assert seen == [wire(value) for value in row["server_sees"]]


@check("transport_connection_close")
async def _(row: Row) -> None:
    server = Server(b"HTTP/1.1 204 OK\r\n\r\n")
    async with between(server, disable_keep_alives=row["disable_keep_alives"]) as transport:
        for number in range(2):
            request = Request("GET", "http://server.test/", close=row["request_close"])
            (await transport.round_trip(request)).close()
            wanted = row["want_connection_close_count"]
            assert server.requests[number][1].count(b"\r\nConnection: close\r\n") == wanted
        # The server has not said that it closes.
        assert len(server.dialed) == (2 if wanted else 1)


@check("transport_gzip")
async def _(row: Row) -> None:
    asked = row["request_accept_encoding"]
    coding = row["wire_accept_encoding"]
    body = gzip.compress(b"foobar") if coding == "gzip" else b"foobar"
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n"
    server = Server(head.encode() + body)
    async with between(server) as transport:
        header = {"Accept-Encoding": asked} if asked else None
        response = await transport.round_trip(Request("GET", "http://server.test/", header=header))
        assert await response.body.read() == (body if row["body_left_compressed"] else b"foobar")
        assert response.uncompressed == (not asked)
        assert ("Content-Encoding" in response.header) == bool(asked)
    assert f"\r\nAccept-Encoding: {coding}\r\n".encode() in server.requests[0][1]


# --- requests that are refused -------------------------------------------------------------------


async def refused(request: Request, text: str) -> None:
    """The request must be refused with this text, before anything is dialled, and its body be closed."""
    server = Server(None)
    async with between(server) as transport:
        with pytest.raises(LocalProtocolError, match=re.escape(text)):
            await transport.round_trip(request)
    assert not server.dialed
    if request._body is not None:
        assert request._body.closed


@check("client_rejects_invalid_headers")
async def _(row: Row) -> None:
    assert not row["ok"]
    header = Header([(row["key"], row["value"])])
    await refused(Request("GET", "http://server.test/", header=header), "invalid header field name")


@check("transport_invalid_requests")
async def _(row: Row) -> None:
    request = Request(row["method"], "http://server.test/", body=once(b"a body"))
    assert row["url"] is not None, "a Request always has a URL"
    request.url = make_url(row["url"])
    await refused(request, row["error_contains"])


@check("transport_invalid_trailers")
async def _(row: Row) -> None:
    request = Request("POST", "http://server.test/", body=once(b"x"), trailer=make_header(row["trailer"]))
    await refused(request, row["error_contains"])


# --- responses -----------------------------------------------------------------------------------


async def read_response(raw: bytes, method: str, want: Row | None, body: str | None, trailer: Any) -> None:
    """Let a server answer `raw` and then close; the response must be `want`, None for an error."""
    header = {"Connection": "Upgrade", "Upgrade": "x"} if b" 101 " in raw[:13] else None
    async with between(Server(raw, closes=True), disable_compression=True) as transport:
        response = await transport.round_trip(Request(method, "http://server.test/", header=header))
        assert want is not None, "Go does not take it"
        same_head(response, want)
        await same_body(response, {"body": body, "body_error": None, "trailer": trailer})
        response.close()


@check("response_read")
async def _(row: Row) -> None:
    want = row["response"]
    raw, trailer = row["raw"].encode("latin-1"), row["trailer_after_body"]
    await read_response(raw, want["request_method"], want, row["body"], trailer)


@check("golden_response_read")
async def _(row: Row) -> None:
    want, raw = row["response"], row["raw"].encode()
    if row["error"] is None:
        await read_response(raw, row["method"], want, row["body"], want["trailer"])
    else:
        with pytest.raises(TransportError) as caught:
            await read_response(raw, row["method"], None, None, None)
        assert caught.value.text == BROKEN + row["error"]


@check("response_read_errors")
async def _(row: Row) -> None:
    async with between(Server(row["raw"].encode(), closes=True)) as transport:
        response, problem = await attempt(transport, lambda: Request("GET", "http://server.test/"))
        assert (None if problem is None else str(problem)) == (row["go_error"] and BROKEN + row["go_error"])
        if response is not None:
            response.close()


@check("client_head_content_length")
async def _(row: Row) -> None:
    length = row["suffix"].partition("=")[2]
    field = f"Content-Length: {length}\r\n" if length else ""
    async with between(Server(f"HTTP/1.1 200 OK\r\n{field}\r\n".encode())) as transport:
        response = await transport.round_trip(Request("HEAD", f"http://server.test/{row['suffix']}"))
        assert response.content_length == row["want_content_length"]
        assert await response.body.read() == b""


@check("response_location")
def _(row: Row) -> None:
    request = Request("GET", row["request_url"]) if row["request_url"] else None
    header = {"Location": row["location"]} if row["location"] else None
    response = Response(302, header=header, request=request)
    if row["error"]:
        with pytest.raises(NoLocation) as caught:
            response.location()
        assert str(caught.value) == row["error"]
    else:
        assert str(response.location()) == row["want"]


# --- connections ---------------------------------------------------------------------------------


@check("transport_cache_keys")
def _(row: Row) -> None:
    proxy = URL.parse(row["proxy"]) if row["proxy"] else None
    assert ConnectMethod(proxy, row["scheme"], row["addr"]).key == row["key"]


@check("transport_is_408")
async def _(row: Row) -> None:
    # Go tells a server's farewell from an answer that nobody asked for: it is not logged.
    lines: list[str] = []
    logger = logging.getLogger("prefork.http.client")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        transport = helpers.Socketless()
        sent = [b"HTTP/1.1 204 OK\r\n\r\n", row["in"].encode()]
        result = await helpers.exchange(transport, Request("GET", "http://server.test/"), sent, "hold")
        await transport.close()
    finally:
        logger.removeHandler(handler)
    assert not result["kept"]
    assert row["want"] == (not lines)


@check("transport_not_read_to_end_reuse")
async def _(row: Row) -> None:
    size = row["body_len"]
    body = b"x" * size
    if row["content_length_known"]:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (size, body)
    else:
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (size, body)
    server = Server(answer)
    async with between(server) as transport:
        for _ in range(2):
            method = "HEAD" if row["head_request"] else "GET"
            response = await transport.round_trip(Request(method, "http://server.test/"))
            response.close()
            await over(transport)
    assert (len(server.dialed) == 1) == row["want_reuse"]


@check("transport_body_drain")
async def _(row: Row) -> None:
    assert row["server_truncate"]
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", closes=True)
    async with between(server) as transport:
        for _ in range(2):
            response = await transport.round_trip(Request("GET", "http://server.test/"))
            if row["read"]:
                with pytest.raises(ConnectionLost, match=row["want_read_error"]):
                    await response.body.read()
            response.close()
            await over(transport)
    assert (len(server.dialed) == 1) == row["want_reuse"]


# --- retries -------------------------------------------------------------------------------------


def replayable(method: str, *, has_body: bool, has_get_body: bool, key: str | None = None) -> Request:
    header = {key: "k"} if key else None
    body = b"x" if has_get_body else once(b"x") if has_body else None
    return Request(method or "GET", "http://server.test/", header=header, body=body)


@check("transport_request_replayable")
def _(row: Row) -> None:
    request = replayable(row["method"], has_body=row["body"].startswith("body"), has_get_body=False)
    if row["body"] == "NoBody":
        request = Request(row["method"], "http://server.test/", body=b"")
    assert is_replayable(request) is row["want"]


ERRORS: dict[str, Exception] = {
    "nothingWrittenError": NothingWritten(""),
    "transportReadFromServerError": ReadFromServerError(""),
    "errServerClosedIdle": ServerClosedIdle(""),
    "errMissingHost": LocalProtocolError("http: Request.Write on Request with no Host or URL set"),
    "other": ConnectionLost("other"),
}


@check("transport_should_retry")
def _(row: Row) -> None:
    request = replayable(
        row["method"],
        has_body=row["has_body"],
        has_get_body=row["has_get_body"],
        key=row.get("idempotency_header"),
    )
    assert row["error_kind"] in ERRORS, "an error that nothing here raises"
    retry = should_retry(request, ERRORS[row["error_kind"]], reused=row["conn_reused"])
    assert retry is row["want_retry"]


class FailingSocket(helpers.FakeSocket):  # type: ignore[misc, name-defined]
    """Its first request is answered; the second breaks it after `fail_after` bytes."""

    fail_after = 0
    answer = b"HTTP/1.1 204 OK\r\n\r\n"

    def write(self, data: Any) -> None:
        loop = asyncio.get_running_loop()
        first = not self.written
        if first or self.fail_after:
            super().write(data)
        if first:
            loop.call_soon(self.protocol.data_received, self.answer)
        elif self.fail_after:
            loop.call_soon(self.protocol.eof_received)  # the server has closed it, as the bytes arrived
            self.close()
        else:
            self.close()


@check("transport_retry_on_error")
async def _(row: Row) -> None:
    transport = helpers.Socketless()
    sockets: list[FailingSocket] = []

    async def dial(method: Any, protocol: Any, trace: Any) -> asyncio.Transport:
        sockets.append(FailingSocket())
        sockets[-1].fail_after = row["bytes_written_before_failure"]
        sockets[-1].protocol = protocol
        protocol.connection_made(sockets[-1])
        return sockets[-1]

    transport.dial = dial
    try:
        for _ in range(2):
            body = row["body"].encode() or None
            request = Request(row["method"], "http://fake.golang/", body=body)
            (await transport.round_trip(request)).close()
            await helpers.settle()
        assert transport.stats().retries == 1
    finally:
        await transport.close()
    assert len(sockets) == row["sequence"].count("dial") == 2
    assert bytes(sockets[1].written) == wire(row["wire"])


# --- all of them ---------------------------------------------------------------------------------


@functools.cache
def rows(name: str) -> list[tuple[str, Row]]:
    """The rows of a file, with what names them in vector_exceptions.py."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return []
    return [(str(row.get("name", i)), row) for i, row in enumerate(json.loads(path.read_text())["vectors"])]


PARAMETERS = [
    pytest.param(name, key, row, id=f"{name}-{key}") for name in CHECKS for key, row in rows(name)
] or [pytest.param("", "", {}, marks=pytest.mark.skip(reason=f"no vectors in {FOLDER}"))]


@pytest.mark.parametrize(("name", "key", "row"), PARAMETERS)
def test_row(name: str, key: str, row: Row, run: Callable[..., Any]) -> None:
    def play() -> None:
        result = CHECKS[name](row)
        if result is not None:
            run(result)

    if key in EXCEPTIONS.get(name, {}):
        with pytest.raises((AssertionError, TransportError, pytest.fail.Exception)):
            play()
    else:
        play()


def test_every_exception_names_a_row() -> None:
    if not FOLDER.exists():
        pytest.skip(f"no vectors in {FOLDER}")
    for name in CHECKS:
        known = {key for key, _ in rows(name)}
        assert set(EXCEPTIONS.get(name, {})) <= known, f"{name}: exceptions for rows that do not exist"
