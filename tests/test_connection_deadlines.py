"""Deadlines of connections: each state has one, and none strikes what it is not meant for.

The timeouts are tiny and the tests wait for what they cause; where something must not happen,
they wait until several such timeouts have gone by on the server's own clock.
"""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from prefork import http
from prefork.http.server import connection
from prefork.http.server.clock import NEVER

HELPERS = Path(__file__).with_name("helpers_server.py")
_spec = importlib.util.spec_from_file_location("helpers_server", HELPERS)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
serving, request, chunked, eventually = helpers.serving, helpers.request, helpers.chunked, helpers.eventually

pytestmark = pytest.mark.both_loops

SHORT = 0.08  # seconds
NO_TIMEOUTS: dict[str, Any] = dict.fromkeys(
    ["read_header_timeout", "read_timeout", "body_idle_timeout", "write_idle_timeout", "idle_timeout"]
)


def only(**timeouts: float) -> dict[str, Any]:
    """Server options with these timeouts and no other."""
    return NO_TIMEOUTS | timeouts


def post(*headers: str) -> bytes:
    head: bytes = request("/", *headers, method="POST")
    return head


async def pass_time(s: Any, seconds: float) -> None:
    """Wait so long, on the loop's clock and on the server's, which stands still between ticks."""
    loop, clock = asyncio.get_running_loop(), s.server.clock
    end = loop.time() + seconds
    await eventually(lambda: loop.time() >= end and (clock.now >= end or clock.interval >= 1.0))


async def echo(w: http.ResponseWriter, r: http.Request) -> None:
    w.write(await r.body.read())


# --- heads ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"GET / HTTP/1.1\r\n", None),  # between two lines: nothing to say (as Go)
        (b"GET / HTT", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX", 400),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_read_header_timeout(run: Any, sent: bytes, status: int | None, first: bool) -> None:
    async def main() -> None:
        async with serving(echo, **only(read_header_timeout=SHORT, idle_timeout=SHORT)) as s:
            c = await s.client()
            if not first:
                await c.get()
            await c.send(sent)
            if status is not None:
                answer = await c.answer()
                assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert await c.closed()

    run(main())


def test_dripping_does_not_extend_the_header_timeout(run: Any) -> None:
    async def main() -> None:
        async with serving(echo, **only(read_header_timeout=SHORT)) as s:
            c = await s.client()

            async def drip() -> None:
                while True:
                    await c.send(b"x")
                    await asyncio.sleep(SHORT / 10)

            await c.send(b"GET /")
            dripping = asyncio.create_task(drip())
            assert (await c.answer()).status == 400
            dripping.cancel()
            await asyncio.wait([dripping])

    run(main())


def test_read_timeout_stands_in_for_the_header_timeout(run: Any) -> None:
    async def main() -> None:
        async with serving(echo, **only(read_timeout=SHORT)) as s:
            c = await s.client()
            assert await c.closed()

    run(main())


def test_header_timeout_does_not_strike_a_handler(run: Any) -> None:
    async def main() -> None:
        async def handler(w: Any, r: Any) -> None:
            await pass_time(s, 3 * SHORT)
            w.write(b"late")

        async with serving(handler, **only(read_header_timeout=SHORT, idle_timeout=SHORT)) as s:
            c = await s.client()
            assert (await c.get()).body == b"late"
            assert await c.closed()

    run(main())


# --- idling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
def test_idle_timeout(run: Any, waits: bool) -> None:
    async def handler(w: Any, r: Any) -> None:
        if waits:
            await asyncio.sleep(0)
        w.write(b"x")

    async def main() -> None:
        async with serving(handler, **only(idle_timeout=SHORT)) as s:
            c = await s.client()
            loop = asyncio.get_running_loop()
            for _ in range(2):
                await c.get()
            before = loop.time()
            assert await c.closed()
            assert loop.time() - before >= SHORT

    run(main())


def test_idle_timeout_does_not_cut_an_answer_that_is_being_taken(run: Any) -> None:
    """The handler is long done, and the client reads on, slowly."""
    size = 2_000_000

    def handler(w: Any, r: Any) -> None:
        w.write(b"x" * size)

    async def main() -> None:
        async with serving(handler, sndbuf=16384, **only(idle_timeout=SHORT)) as s:
            c = await s.client(rcvbuf=16384)
            await c.send(request())
            await c.until(b"\r\n\r\n")
            for _ in range(3):
                await pass_time(s, 2 * SHORT)
                await c.fill()
            left = size + len(b"1e8480\r\n\r\n0\r\n\r\n")
            await c.exactly(left)
            assert await c.closed()

    run(main())


def test_deadline_after_a_reader_that_outlived_its_handler(run: Any) -> None:
    readers: list[asyncio.Task[bytes]] = []

    async def handler(w: Any, r: Any) -> None:
        readers.append(asyncio.create_task(r.body.read()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def main() -> None:
        async with serving(handler, **only(body_idle_timeout=SHORT)) as s:
            c = await s.client()
            await c.send(post("Content-Length: 4"))
            assert (await c.answer()).status == 200
            assert await c.closed()
            with pytest.raises(http.LocalProtocolError):
                await readers[0]

    run(main())


# --- bodies ---------------------------------------------------------------------------------


def test_body_idle_timeout(run: Any) -> None:
    caught: list[Exception] = []

    async def handler(w: Any, r: Any) -> None:
        try:
            await r.body.read()
        except TimeoutError as error:
            caught.append(error)
            raise

    async def main() -> None:
        async with serving(handler, **only(body_idle_timeout=SHORT)) as s:
            c = await s.client()
            await c.send(post("Content-Length: 4") + b"bo")
            answer = await c.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert b"body_idle_timeout" in answer.body
            assert await c.closed()
            assert isinstance(caught[0], http.HTTPTimeout)

    run(main())


def test_body_idle_timeout_runs_only_while_the_handler_reads(run: Any) -> None:
    async def main() -> None:
        async def handler(w: Any, r: Any) -> None:
            await pass_time(s, 3 * SHORT)
            w.write(await r.body.read(2))
            await pass_time(s, 3 * SHORT)
            w.write(await r.body.read())

        async with serving(handler, **only(body_idle_timeout=SHORT)) as s:
            c = await s.client()
            await c.send(post("Content-Length: 4") + b"bo")
            await pass_time(s, 4 * SHORT)
            await c.send(b"dy")
            assert (await c.answer()).body == b"body"

    run(main())


def test_dripping_body_is_not_idle(run: Any) -> None:
    async def main() -> None:
        async with serving(echo, **only(body_idle_timeout=SHORT)) as s:
            c = await s.client()
            await c.send(post("Content-Length: 8"))
            for byte in b"all of i":
                await pass_time(s, SHORT / 2)
                await c.send(bytes([byte]))
            assert (await c.answer()).body == b"all of i"

    run(main())


def test_read_timeout_is_for_the_whole_body(run: Any) -> None:
    async def main() -> None:
        async with serving(echo, **only(read_timeout=SHORT, body_idle_timeout=10)) as s:
            c = await s.client()
            # In time: the clock starts anew with each request.
            for _ in range(2):
                assert (await c.ask("POST", "/", body=b"quick")).body == b"quick"

            async def drip() -> None:
                while True:
                    await c.send(b"1\r\nx\r\n")
                    await asyncio.sleep(SHORT / 10)

            await c.send(post("Transfer-Encoding: chunked"))
            dripping = asyncio.create_task(drip())
            answer = await c.answer()
            assert (answer.status, b"in time" in answer.body) == (408, True)
            dripping.cancel()
            await asyncio.wait([dripping])

    run(main())


def test_unread_body_is_waited_for_only_so_long(run: Any) -> None:
    async def main() -> None:
        async with serving(lambda w, r: w.write(b"unread"), **only(body_idle_timeout=SHORT)) as s:
            c = await s.client()
            await c.send(post("Content-Length: 4") + b"bo")
            assert (await c.answer()).body == b"unread"
            assert await c.closed()

    run(main())


def test_set_read_deadline(run: Any) -> None:
    async def main() -> None:
        async def handler(w: Any, r: Any) -> None:
            if r.url.path == "/set":
                w.set_read_deadline(SHORT)
            elif r.url.path == "/unset":
                w.set_read_deadline(SHORT)
                w.set_read_deadline(None)
                await pass_time(s, 2 * SHORT)
            w.write(await r.body.read())

        async with serving(handler, **only(body_idle_timeout=10)) as s:
            c = await s.client()
            await c.send(request("/unset", "Content-Length: 4", method="POST"))
            await pass_time(s, 2 * SHORT)
            await c.send(b"body")
            assert (await c.answer()).body == b"body"
            await c.send(request("/set", "Content-Length: 4", method="POST") + b"bo")
            answer = await c.answer()
            assert (answer.status, b"read deadline" in answer.body) == (408, True)

    run(main())


# --- answers --------------------------------------------------------------------------------


def test_write_idle_timeout(run: Any) -> None:
    """The client stops reading: the handler is told by an exception, and nothing is logged."""
    told: list[BaseException] = []

    async def handler(w: Any, r: Any) -> None:
        try:
            while True:
                await w.write(b"x" * 100_000)
        except BaseException as error:
            told.append(error)
            raise

    async def main() -> None:
        async with serving(handler, sndbuf=16384, **only(write_idle_timeout=SHORT)) as s:
            c = await s.client(rcvbuf=16384)
            await c.send(request())
            await eventually(lambda: told)
            assert isinstance(told[0], ConnectionResetError)
            await eventually(lambda: not s.server._connections)

    run(main())


def test_write_idle_timeout_of_an_answer_whose_handler_is_done(run: Any) -> None:
    def handler(w: Any, r: Any) -> None:
        w.write(b"x" * 3_000_000)

    async def main() -> None:
        async with serving(handler, sndbuf=16384, **only(write_idle_timeout=SHORT)) as s:
            c = await s.client(rcvbuf=16384)
            await c.send(request())
            await eventually(lambda: s.server.requests)
            await eventually(lambda: not s.server._connections)

    run(main())


def test_slow_reader_is_not_an_idle_one(run: Any) -> None:
    size = 3_000_000

    async def handler(w: Any, r: Any) -> None:
        w.header["Content-Length"] = str(size)
        for _ in range(size // 100_000):
            await w.write(b"x" * 100_000)

    async def main() -> None:
        async with serving(handler, sndbuf=16384, **only(write_idle_timeout=2 * SHORT)) as s:
            c = await s.client(rcvbuf=16384)
            await c.send(request())
            await eventually(lambda: s.conn._write_blocked)
            for _ in range(10):
                await pass_time(s, SHORT / 2)
                before = len(c.buffer)
                while len(c.buffer) - before < 50_000:
                    await c.fill()
            assert len((await c.answer()).body) == size

    run(main())


def test_last_answer_is_given_time_to_be_read(run: Any, monkeypatch: Any) -> None:
    """The wait before closing is for a client that has the answer, not for one that is still taking it."""
    monkeypatch.setattr(connection, "LINGER", 0.02)
    size = 3_000_000

    def handler(w: Any, r: Any) -> None:
        w.header["Connection"] = "close"
        w.write(b"x" * size)

    async def main() -> None:
        async with serving(handler, sndbuf=16384, **only(write_idle_timeout=4 * SHORT)) as s:
            c = await s.client(rcvbuf=16384)
            await c.send(request())
            await c.until(b"\r\n\r\n")
            for _ in range(5):
                await pass_time(s, SHORT)
                await c.fill()
            await c.exactly(size + len(b"2dc6c0\r\n\r\n0\r\n\r\n"))
            assert await c.closed()

    run(main())


@pytest.mark.parametrize("begun", [False, True])
def test_write_timeout(run: Any, begun: bool) -> None:
    told: list[str] = []

    async def handler(w: Any, r: Any) -> None:
        if r.url.path == "/quick":
            return
        if begun:
            w.write(b"x" * 3000)
            await w.flush()
        await r.disconnected
        told.append(r.url.path)

    async def main() -> None:
        async with serving(handler, write_timeout=SHORT) as s:
            c = await s.client()
            for _ in range(3):
                assert (await c.get("/quick")).status == 200
            await c.send(request("/slow"))
            if begun:
                await c.until(b"\r\n\r\n")
            await c.reset_by_server()
            await eventually(lambda: told)

    run(main())


def test_write_timeout_is_for_one_request(run: Any) -> None:
    async def main() -> None:
        async with serving(lambda w, r: w.write(b"x"), write_timeout=SHORT) as s:
            c = await s.client()
            for _ in range(3):
                assert (await c.get()).status == 200
                await pass_time(s, 2 * SHORT)

    run(main())


def test_set_write_deadline(run: Any) -> None:
    async def main() -> None:
        async def handler(w: Any, r: Any) -> None:
            w.set_write_deadline(SHORT)
            if r.url.path == "/unset":
                w.set_write_deadline(None)
            await pass_time(s, 3 * SHORT)
            w.write(b"late")

        async with serving(handler) as s:
            c = await s.client()
            assert (await c.get("/unset")).body == b"late"
            await c.send(request("/set"))
            await c.reset_by_server()
            assert c.buffer == b""

    run(main())


@pytest.mark.parametrize("waits", [False, True])
def test_deadlines_end_with_their_request(run: Any, waits: bool) -> None:
    """The connection lives on: neither later requests nor its idling may be struck by them."""

    async def main() -> None:
        async def handler(w: Any, r: Any) -> None:
            if r.url.path == "/sets":
                w.set_write_deadline(SHORT)
                w.set_read_deadline(SHORT)
                if waits:
                    await asyncio.sleep(0)
            w.write(await r.body.read())

        async with serving(handler, body_idle_timeout=10) as s:
            c = await s.client()
            await c.get("/sets")
            await c.send(post("Content-Length: 4") + b"bo")
            await pass_time(s, 3 * SHORT)
            await c.send(b"dy")
            assert (await c.answer()).body == b"body"
            await c.get("/sets")
            await pass_time(s, 3 * SHORT)
            assert (await c.get()).status == 200

    run(main())


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("how", ["small", "large", "closing", "raising"])
def test_write_deadline_strikes_as_the_handler_ends(run: Any, how: str, turns: int) -> None:
    """Cut in any turn of the loop around its end: the client gets an answer or none, and nobody complains."""

    async def handler(w: Any, r: Any) -> None:
        w.set_write_deadline(0)
        if how == "closing":
            w.header["Connection"] = "close"
        w.write(b"x" * (100_000 if how == "large" else 10))
        for _ in range(turns):
            await asyncio.sleep(0)
        if how == "raising":
            raise http.StatusError(418)

    async def main() -> None:
        async with serving(handler, **NO_TIMEOUTS) as s:
            c = await s.client()
            await c.send(request())
            c.shut()
            await c.reset_by_server()
            await eventually(lambda: not s.server._connections)

    run(main())


def test_none_switches_everything_off(run: Any) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def handler(w: Any, r: Any) -> None:
            await go_on.wait()
            w.write(await r.body.read())

        async with serving(handler, **NO_TIMEOUTS) as s:
            c = await s.client()
            await eventually(lambda: s.server.open_connections)
            assert (s.conn.deadline, s.conn.write_deadline) == (NEVER, NEVER)
            await c.send(b"GET / HT")
            await eventually(lambda: s.conn._head_begun)
            assert s.conn.deadline == NEVER
            await c.send(b"TP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
            go_on.set()
            await eventually(lambda: s.server.active_connections)
            assert s.conn.deadline == NEVER
            await c.send(b"x")
            assert (await c.answer()).body == b"x"
            assert s.conn.deadline == NEVER

    run(main())
