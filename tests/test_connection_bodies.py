"""Request bodies over real sockets: framing, 100-continue, back-pressure, and what becomes of unread ones."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from prefork import http
from prefork.http.message import body as body_module
from prefork.http.server import connection

HELPERS = Path(__file__).with_name("helpers_server.py")
_spec = importlib.util.spec_from_file_location("helpers_server", HELPERS)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
serving, request, chunked, eventually = helpers.serving, helpers.request, helpers.chunked, helpers.eventually

pytestmark = pytest.mark.both_loops

RECEIVE_AT_ONCE = 256 * 1024
"""What either loop receives in one go at most."""

CHUNKED = "Transfer-Encoding: chunked"


def post(*headers: str, target: str = "/", proto: str = "HTTP/1.1") -> bytes:
    head: bytes = request(target, *headers, method="POST", proto=proto)
    return head


async def echo(w: http.ResponseWriter, r: http.Request) -> None:
    await w.write(await r.body.read())


async def stays(c: Any) -> None:
    """The connection serves another request."""
    assert (await c.ask("POST", "/", body=b"again")).status == 200


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", ["whole", "bytes", "head first"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_body_arrives_however_it_is_cut(run: Any, framing: str, pieces: str) -> None:
    async def handler(w: Any, r: Any) -> None:
        assert r.content_length == (9 if framing == "length" else -1)
        assert r.transfer_encoding == ([] if framing == "length" else ["chunked"])
        await echo(w, r)

    if framing == "length":
        message = post("Content-Length: 9") + b"some body"
    else:
        message = post(CHUNKED) + b"4;x=y\r\nsome\r\n5\r\n body\r\n0\r\n\r\n"

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            for _ in range(2):
                if pieces == "whole":
                    await c.send(message)
                elif pieces == "head first":
                    head, _, rest = message.partition(b"\r\n\r\n")
                    await c.send(head + b"\r\n\r\n")
                    await eventually(lambda: s.server.active_connections)
                    await c.send(rest)
                else:
                    for byte in message:
                        await c.send(bytes([byte]))
                        await asyncio.sleep(0)
                assert (await c.answer()).body == b"some body"

    run(main())


def test_read_in_portions_and_by_iteration(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        first = await r.body.read(3)
        nothing = await r.body.read(0)
        rest = b"".join([piece async for piece in r.body])
        end = await r.body.read()
        w.write(repr((first, nothing, rest, end, await r.body.read(5))))

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            answer = await c.ask("POST", "/", body=b"0123456789")
            assert answer.body == b"(b'012', b'', b'3456789', b'', b'')"

    run(main())


def test_request_without_body_reads_empty(run: Any) -> None:
    async def main() -> None:
        async with serving(echo) as s:
            c = await s.client()
            assert (await c.get()).body == b""
            await c.send(post())
            assert (await c.answer()).body == b""

    run(main())


def test_requests_behind_bodies(run: Any) -> None:
    """A pipeline of bodies of both framings, all in one segment."""

    async def handler(w: Any, r: Any) -> None:
        data = await r.body.read()
        await asyncio.sleep(0)
        w.write(data)

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            one = post("Content-Length: 3") + b"one" + b"\r\n"  # an old client's extra CRLF
            two = post(CHUNKED) + chunked(b"t", b"wo")
            three = post("Content-Length: 5") + b"three"
            await c.send((one + two + three) * 20)
            for _ in range(20):
                for body in (b"one", b"two", b"three"):
                    assert (await c.answer()).body == body

    run(main())


def test_trailers(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        before = dict.fromkeys(r.trailer)
        await r.body.read()
        w.write(repr((before, list(r.trailer.items()), "X-Sum" in r.header)))

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            trailer = "X-Sum: 7\r\nX-Late: b\r\nContent-Type: text/evil\r\nX-Sum: 8\r\n"
            await c.send(post(CHUNKED, "Trailer: X-Sum"))
            await eventually(lambda: s.server.active_connections)
            await c.send(chunked(b"data", trailer=trailer))
            answer = await c.answer()
            assert answer.body.decode() == repr(
                ({"X-Sum": None}, [("X-Sum", "7"), ("X-Sum", "8"), ("X-Late", "b")], False)
            )
            await stays(c)

    run(main())


def test_body_is_read_by_one_task_at_a_time(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        reader = asyncio.create_task(r.body.read())
        await asyncio.sleep(0)
        with pytest.raises(http.LocalProtocolError, match="another task"):
            await r.body.read()
        w.write(await reader)

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(post("Content-Length: 2"))
            await eventually(lambda: s.server.active_connections)
            for _ in range(3):
                await asyncio.sleep(0)
            await c.send(b"ok")
            assert (await c.answer()).body == b"ok"

    run(main())


# --- 100-continue ---------------------------------------------------------------------------

EXPECT = "Expect: 100-continue"


def test_continue_is_sent_on_the_first_read(run: Any) -> None:
    async def main() -> None:
        start = asyncio.Event()

        async def handler(w: Any, r: Any) -> None:
            await start.wait()
            w.write(await r.body.read(2) + await r.body.read())

        async with serving(handler) as s:
            c = await s.client()
            await c.send(post(EXPECT, "Content-Length: 4"))
            await eventually(lambda: s.server.active_connections)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(c.fill(), 0.02)
            start.set()
            answer = await c.answer()
            assert answer.head == b"HTTP/1.1 100 Continue\r\n\r\n"
            await c.send(b"bo")
            await asyncio.sleep(0)
            await c.send(b"dy")
            assert (await c.answer()).body == b"body"
            await stays(c)

    run(main())


def test_continue_is_not_sent_to_who_does_not_wait_for_it(run: Any) -> None:
    async def main() -> None:
        async with serving(echo) as s:
            c = await s.client()
            # The body is there already, or the client speaks HTTP/1.0, which has no 1xx, or there is no body.
            await c.send(post(EXPECT, "Content-Length: 4") + b"body")
            assert (await c.answer()).body == b"body"
            await c.send(post(EXPECT))
            assert (await c.answer()).status == 200
            head = post(EXPECT, "Content-Length: 4", "Connection: keep-alive", proto="HTTP/1.0")
            await c.send(head)
            await eventually(lambda: s.server.active_connections)
            await c.send(b"body")
            answer = await c.answer()
            assert (answer.status, answer.body) == (200, b"body")

    run(main())


def test_body_that_was_not_asked_for_ends_the_connection(run: Any) -> None:
    """The client waits for 100: whether it sends the body after the answer cannot be known."""

    async def main() -> None:
        async with serving(lambda w, r: w.write(b"no")) as s:
            c = await s.client()
            await c.send(post(EXPECT, "Content-Length: 4"))
            answer = await c.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await c.closed()

    run(main())


def test_reading_after_the_header_is_on_its_way_sends_no_continue(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        w.enable_full_duplex()
        await w.flush()
        await w.write(await r.body.read())

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(post(EXPECT, "Content-Length: 4"))
            await c.until(b"\r\n\r\n")
            await c.send(b"body")
            assert await c.until(b"0\r\n\r\n") == b"4\r\nbody\r\n0\r\n\r\n"

    run(main())


def test_handler_can_send_continue_itself(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        w.write_header(100)
        await echo(w, r)

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(post(EXPECT, "Content-Length: 4"))
            assert (await c.answer()).status == 100
            await c.send(b"body")
            assert (await c.answer()).body == b"body"

    run(main())


def test_other_expectations_fail(run: Any) -> None:
    async def main() -> None:
        async with serving(echo) as s:
            c = await s.client()
            await c.send(post("Expect: the-unexpected", "Content-Length: 4") + b"body")
            answer = await c.answer()
            assert (answer.status, answer.headers["connection"]) == (417, "close")
            assert await c.closed()
            assert s.server.requests == 0

    run(main())


# --- back-pressure --------------------------------------------------------------------------

MIB = 1 << 20


async def upload(c: Any, size: int, framing: str) -> None:
    piece = bytes(MIB)
    if framing == "length":
        await c.send(post(f"Content-Length: {size}"))
        for _ in range(size // MIB):
            await c.send(piece)
    else:
        await c.send(post(CHUNKED))
        for _ in range(size // MIB):
            await c.send(b"%x\r\n%b\r\n" % (MIB, piece))
        await c.send(b"0\r\n\r\n")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_handler_that_does_not_read_stops_the_client(run: Any, framing: str) -> None:
    size = 50 * MIB

    async def main() -> None:
        go_on = asyncio.Event()

        async def handler(w: Any, r: Any) -> None:
            await r.body.read(1)
            await go_on.wait()
            total = 1
            async for piece in r.body:
                total += len(piece)
            w.write(str(total))

        async with serving(handler, max_body_bytes=None) as s:
            c = await s.client()
            with helpers.Memory() as memory:
                sending = asyncio.create_task(upload(c, size, framing))
                await eventually(lambda: s.server.active_connections and not s.conn.transport.is_reading())
                buffered = s.conn._incoming.body._buffered
                assert buffered <= body_module.HIGH_WATER + RECEIVE_AT_ONCE
                for _ in range(100):
                    await asyncio.sleep(0)
                assert s.conn._incoming.body._buffered == buffered
                assert not sending.done()
                go_on.set()
                assert (await c.answer()).body == str(size).encode()
                await sending
            assert memory.growth < 16 * MIB

    run(main())


def test_body_read_in_pieces_arrives_whole(run: Any) -> None:
    """A reader slower than the client: paused and resumed many times, nothing lost or repeated."""
    data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(100_000))  # 3.2 MB, no two parts alike

    async def handler(w: Any, r: Any) -> None:
        digest = hashlib.sha256()
        while piece := await r.body.read(50_000):
            digest.update(piece)
            await asyncio.sleep(0)
        w.write(digest.hexdigest())

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            answer = await c.ask("POST", "/", body=data)
            assert answer.body.decode() == hashlib.sha256(data).hexdigest()
            pieces = [data[pos : pos + 7919] for pos in range(0, len(data), 7919)]
            await c.send(post(CHUNKED) + chunked(*pieces))
            assert (await c.answer()).body.decode() == hashlib.sha256(data).hexdigest()

    run(main())


def test_whole_body_larger_than_the_high_water_mark(run: Any) -> None:
    async def main() -> None:
        async with serving(echo) as s:
            c = await s.client()
            sending = asyncio.create_task(c.send(post(f"Content-Length: {5 * MIB}") + b"x" * 5 * MIB))
            assert (await c.answer()).body == b"x" * 5 * MIB
            await sending

    run(main())


# --- bodies that nobody reads ---------------------------------------------------------------


async def ignoring(w: Any, r: Any) -> None:
    if r.content_length != 5:
        w.write(b"unread")


@pytest.mark.parametrize(
    "message",
    [
        post("Content-Length: 6") + b"unread",
        post(CHUNKED) + chunked(b"unread"),
        post("Content-Length: 200000") + b"x" * 200_000,
        post(CHUNKED) + chunked(*[b"x" * 1000] * 200),
    ],
    ids=["length", "chunked", "longer length", "longer chunked"],
)
def test_small_unread_body_keeps_the_connection(run: Any, message: bytes) -> None:
    async def main() -> None:
        async with serving(ignoring) as s:
            c = await s.client()
            for _ in range(2):
                await c.send(message)
                answer = await c.answer()
                assert answer.body == b"unread"
                assert "connection" not in answer.headers
            await stays(c)
            # The answer comes before the body has: then it is the rest that is skipped.
            head, _, rest = message.partition(b"\r\n\r\n")
            await c.send(head + b"\r\n\r\n" + rest[:1])
            assert (await c.answer()).body == b"unread"
            await c.send(rest[1:])
            await stays(c)

    run(main())


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_large_unread_body_ends_the_connection(run: Any, framing: str) -> None:
    async def main() -> None:
        async with serving(ignoring) as s:
            c = await s.client()
            await c.send(post("Content-Length: 1000000" if framing == "length" else CHUNKED))
            answer = await c.answer()
            assert answer.body == b"unread"
            if framing == "length":
                assert answer.headers["connection"] == "close"
            # The client sends on, without a reset, and finds the end behind the answer.
            piece = b"x" * 1000 if framing == "length" else b"3e8\r\n" + b"x" * 1000 + b"\r\n"
            for _ in range(400):
                await c.send(piece)
                await asyncio.sleep(0)
            assert await c.closed()

    run(main())


async def asyncio_client(port: int, data: bytes) -> bytes:
    """What a plain asyncio client that sends everything first sees."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()


async def blocking_client(port: int, data: bytes) -> bytes:
    """What a plain blocking client that sends everything first sees."""

    def talk() -> bytes:
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(data)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    return await asyncio.to_thread(talk)


@pytest.mark.parametrize("client", [asyncio_client, blocking_client])
@pytest.mark.parametrize("status", [431, 413, 400, 200, 417])
def test_client_that_is_still_sending_sees_the_answer(run: Any, status: int, client: Any) -> None:
    rest = b"x" * 2_000_000
    data = {
        431: b"GET / HTTP/1.1\r\nHost: a\r\nBig: " + rest,
        413: post(f"Content-Length: {len(rest)}", target="/read") + rest,
        400: post(f"Content-Length : {len(rest)}") + rest,
        200: post(f"Content-Length: {len(rest)}") + rest,
        417: post(f"Content-Length: {len(rest)}", "Expect: more") + rest,
    }[status]

    async def handler(w: Any, r: Any) -> None:
        if r.url.path == "/read":
            await r.body.read()
        w.write(b"unread")

    async def main() -> None:
        async with serving(handler, max_body_bytes=1_000_000) as s:
            received = await client(s.port, data)
            assert received.startswith(b"HTTP/1.1 %d " % status)

    run(main())


async def send_without_end(c: Any) -> None:
    while True:
        await c.send(b"x" * 100_000)
        await asyncio.sleep(0)


def test_lingering_ends_for_a_client_that_sends_without_end(run: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "LINGER", 0.05)

    async def main() -> None:
        async with serving(ignoring) as s:
            c = await s.client()
            await c.send(b"nonsense\r\n\r\n")
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await send_without_end(c)
            await eventually(lambda: s.server.open_connections == 0)

    run(main())


# --- bodies that break ----------------------------------------------------------------------


class Outcomes:
    """A handler that reads, and remembers what that raised."""

    def __init__(self, *, swallow: bool = False) -> None:
        self.errors: list[Exception] = []
        self.swallow = swallow

    async def serve_http(self, w: Any, r: Any) -> None:
        try:
            w.write(await r.body.read())
        except http.HTTPError as error:
            self.errors.append(error)
            if not self.swallow:
                raise
            w.write(b"swallowed")


@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize(
    "rest",
    [b"3\r\nabcX", b"zz\r\n", b"-1\r\n", b"5\nhello\r\n", b"1\r\na\r\n0\r\nTransfer-Encoding: x\r\n\r\n"],
)
@pytest.mark.parametrize("late", [False, True])
def test_malformed_chunks(run: Any, rest: bytes, swallow: bool, late: bool) -> None:
    handler = Outcomes(swallow=swallow)

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            if late:
                await c.send(post(CHUNKED))
                await eventually(lambda: s.server.active_connections)
                await c.send(rest + request("/never"))
            else:
                await c.send(post(CHUNKED) + rest + request("/never"))
            answer = await c.answer()
            assert answer.status == (200 if swallow else 400)
            assert answer.headers["connection"] == "close"
            assert await c.closed()
            assert isinstance(handler.errors[0], http.RemoteProtocolError)
            assert s.server.requests == 1

    run(main())


def test_malformed_body_that_nobody_reads(run: Any) -> None:
    async def main() -> None:
        async with serving(ignoring) as s:
            c = await s.client()
            await c.send(post(CHUNKED) + b"zz\r\n" + request("/never"))
            answer = await c.answer()
            assert (answer.body, answer.headers["connection"]) == (b"unread", "close")
            assert await c.closed()
            # It breaks when the answer is out.
            c = await s.client()
            await c.send(post(CHUNKED))
            assert (await c.answer()).body == b"unread"
            await c.send(b"zz\r\n" + request("/never"))
            assert await c.closed()
            assert s.server.requests == 2

    run(main())


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_body_cut_short(run: Any, framing: str) -> None:
    handler = Outcomes()

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            head = post("Content-Length: 5") if framing == "length" else post(CHUNKED) + b"5\r\n"
            await c.send(head + b"abc")
            await eventually(lambda: s.server.active_connections)
            c.shut()
            assert (await c.answer()).status == 400
            assert await c.closed()
            (error,) = handler.errors
            assert "unexpected EOF" in str(error)

    run(main())


def test_bytes_before_the_break_are_handed_out(run: Any) -> None:
    got: list[bytes] = []

    async def handler(w: Any, r: Any) -> None:
        async for piece in r.body:
            got.append(piece)  # noqa: PERF401 - the pieces before the failure are what counts

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(post(CHUNKED) + b"3\r\nabc\r\n")
            await eventually(lambda: got)
            await c.send(b"oops\r\n")
            assert (await c.answer()).status == 400
            assert got == [b"abc"]

    run(main())


# --- limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("whole", [True, False])
def test_body_limit_answers_413_and_names_the_setting(run: Any, framing: str, whole: bool) -> None:
    taken = 0

    async def handler(w: Any, r: Any) -> None:
        nonlocal taken
        if whole:
            taken += len(await r.body.read())
        else:
            async for piece in r.body:
                taken += len(piece)
        w.write(b"ok")

    def message(size: int) -> bytes:
        if framing == "length":
            return post(f"Content-Length: {size}") + b"x" * size
        return post(CHUNKED) + chunked(*[b"x" * 10] * (size // 10))

    async def main() -> None:
        nonlocal taken
        async with serving(handler, max_body_bytes=1000) as s:
            c = await s.client()
            await c.send(message(1000))
            assert (await c.answer()).status == 200
            assert taken == 1000
            taken = 0
            await c.send(message(1010))
            answer = await c.answer()
            assert (answer.status, answer.headers["connection"]) == (413, "close")
            assert answer.body == b"request body too large: the limit is 1000 bytes (max_body_bytes)\n"
            assert taken == (0 if whole else 1000)
            assert await c.closed()

    run(main())


def test_body_limit_of_one_route(run: Any) -> None:
    mux = http.ServeMux()
    mux.handle("/small", http.max_bytes_handler(echo, 10))
    mux.handle("/big", http.max_bytes_handler(echo, 10_000))
    mux.handle_func("/", echo)

    async def main() -> None:
        async with serving(mux, max_body_bytes=100) as s:
            c = await s.client()
            assert (await c.ask("POST", "/small", body=b"x" * 10)).status == 200
            assert (await c.ask("POST", "/big", body=b"x" * 10_000)).status == 200
            assert (await c.ask("POST", "/", body=b"x" * 100)).status == 200
            answer = await c.ask("POST", "/small", body=b"x" * 11)
            assert (answer.status, b"(max_bytes_handler)" in answer.body) == (413, True)

    run(main())


def test_limit_of_none_is_none(run: Any) -> None:
    async def main() -> None:
        async with serving(echo, max_body_bytes=None) as s:
            c = await s.client()
            sending = asyncio.create_task(c.send(post(f"Content-Length: {11 * MIB}") + bytes(11 * MIB)))
            assert len((await c.answer()).body) == 11 * MIB
            await sending

    run(main())


# --- reading and writing at the same time ---------------------------------------------------


def test_body_is_given_up_when_the_header_is_sent(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        await w.flush()
        with pytest.raises(http.LocalProtocolError, match="enable_full_duplex"):
            await r.body.read()
        await w.write(b"refused")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            assert (await c.ask("POST", "/", body=b"x" * 10)).body == b"refused"
            assert (await c.ask("POST", "/", body=b"x" * 10)).body == b"refused"

    run(main())


def test_body_given_up_does_not_stop_the_client(run: Any) -> None:
    """It sends all of its body before it reads; the handler streams its answer without reading."""
    size = 900_000

    async def main() -> None:
        async def handler(w: Any, r: Any) -> None:
            await eventually(lambda: not s.conn.transport.is_reading())
            for _ in range(9):
                await w.write(b"x" * 100_000)

        async with serving(handler, rcvbuf=16384, sndbuf=16384) as s:
            c = await s.client(rcvbuf=16384, sndbuf=16384)
            await c.send(post(f"Content-Length: {size}") + b"x" * size)
            assert len((await c.answer()).body) == size

    run(main())


def test_full_duplex_echo(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        w.enable_full_duplex()
        async for piece in r.body:
            await w.write(piece.upper())
            await w.flush()

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            for _ in range(2):
                await c.send(post(CHUNKED) + b"3\r\nabc\r\n")
                head = await c.until(b"\r\n\r\n")
                assert b"Transfer-Encoding: chunked" in head
                assert await c.until(b"ABC\r\n") == b"3\r\nABC\r\n"
                await c.send(b"3\r\ndef\r\n")
                assert await c.until(b"DEF\r\n") == b"3\r\nDEF\r\n"
                await c.send(b"0\r\n\r\n")
                assert await c.until(b"0\r\n\r\n") == b"0\r\n\r\n"

    run(main())
