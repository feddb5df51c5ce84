"""Connections of the server, over real sockets: keep-alive, pipelining, states, what handlers live in."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest

from prefork import http
from prefork.http.server import connection

HELPERS = Path(__file__).with_name("helpers_server.py")
_spec = importlib.util.spec_from_file_location("helpers_server", HELPERS)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
serving, request, eventually = helpers.serving, helpers.request, helpers.eventually

pytestmark = pytest.mark.both_loops

RECEIVE_AT_ONCE = 256 * 1024
"""What either loop receives in one go at most."""


def echo_target(w: http.ResponseWriter, r: http.Request) -> None:
    w.write(r.request_uri)


# --- keep-alive -----------------------------------------------------------------------------


def test_one_connection_serves_many_requests(run: Any) -> None:
    async def main() -> None:
        async with serving(echo_target) as s:
            c = await s.client()
            for number in range(3):
                answer = await c.get(f"/{number}")
                assert (answer.status, answer.body) == (200, b"/%d" % number)
                assert "connection" not in answer.headers
            assert s.server.requests == 3
            assert s.server.open_connections == 1

    run(main())


def test_connection_close_ends_it(run: Any) -> None:
    async def main() -> None:
        async with serving(echo_target) as s:
            c = await s.client()
            await c.send(request("/a", "Connection: close") + request("/never"))
            answer = await c.answer()
            assert answer.headers["connection"] == "close"
            assert await c.closed()
            await eventually(lambda: s.server.open_connections == 0)
            assert s.server.requests == 1

    run(main())


def test_handler_can_end_the_connection(run: Any) -> None:
    def handler(w: Any, r: Any) -> None:
        w.header["Connection"] = "close"
        w.write(b"bye")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            answer = await c.get()
            assert (answer.body, answer.headers["connection"]) == (b"bye", "close")
            assert await c.closed()

    run(main())


def test_http_10_closes_unless_asked_to_stay(run: Any) -> None:
    async def main() -> None:
        async with serving(echo_target) as s:
            c = await s.client()
            await c.send(request("/a", proto="HTTP/1.0"))
            answer = await c.answer()
            assert (answer.body, answer.headers.get("connection")) == (b"/a", None)
            assert await c.closed()

            c = await s.client()
            for target in ("/b", "/c"):
                await c.send(request(target, "Connection: keep-alive", proto="HTTP/1.0"))
                answer = await c.answer()
                assert (answer.body, answer.headers["connection"]) == (target.encode(), "keep-alive")

    run(main())


def test_http_10_body_of_unknown_length_ends_with_the_connection(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        await w.flush()
        await w.write(b"one")
        await w.flush()
        await w.write(b"two")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request("/", "Connection: keep-alive", proto="HTTP/1.0"))
            answer = await c.answer()
            assert "transfer-encoding" not in answer.headers
            assert "content-length" not in answer.headers
            assert answer.body == b"onetwo"

    run(main())


# --- pipelining -----------------------------------------------------------------------------


def test_pipelined_answers_keep_their_order(run: Any) -> None:
    """The first handler waits for long, the second shortly, the third not at all."""
    running = 0

    async def main() -> None:
        gate = asyncio.Event()

        async def handler(w: Any, r: Any) -> None:
            nonlocal running
            running += 1
            assert running == 1, "two handlers of one connection at a time"
            if r.url.path == "/1":
                await gate.wait()
            elif r.url.path == "/2":
                await asyncio.sleep(0)
            w.write(r.url.path)
            running -= 1

        async with serving(handler) as s:
            c = await s.client()
            await c.send(b"".join(request(f"/{n}") for n in (1, 2, 3)))
            await eventually(lambda: s.server.active_connections == 1)
            assert s.server.requests == 0
            gate.set()
            for number in (1, 2, 3):
                assert (await c.answer()).body == b"/%d" % number

    run(main())


@pytest.mark.parametrize("waits", [False, True])
def test_pipeline_of_5000(run: Any, waits: bool) -> None:
    async def handler(w: Any, r: Any) -> None:
        if waits:
            await asyncio.sleep(0)
        w.write(r.request_uri)

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            sending = asyncio.create_task(c.send(b"".join(request(f"/{n}") for n in range(5000))))
            for number in range(5000):
                assert (await c.answer()).body == b"/%d" % number
            await sending

    run(main())


def test_pipelining_connection_lets_others_have_their_turn(run: Any) -> None:
    served = 0
    when: list[int] = []

    def handler(w: Any, r: Any) -> None:
        nonlocal served
        if r.url.path == "/other":
            when.append(served)
        else:
            served += 1
        w.write(b"x")

    async def main() -> None:
        async with serving(handler) as s:
            greedy, other = await s.client(), await s.client()
            await greedy.get()
            await other.get()
            before = served
            # Both are in the server's kernel before its loop runs again.
            greedy.sock.send(request("/") * 2000)
            other.sock.send(request("/other"))
            await other.answer()
            assert when[0] - before <= 2 * connection.INLINE_REQUESTS
            for _ in range(2000):
                await greedy.answer()

    run(main())


def test_pipelined_bytes_are_bounded_while_a_handler_waits(run: Any) -> None:
    """The client is stopped by its socket, and everything is answered in the end."""
    total = 2000

    async def main() -> None:
        gate = asyncio.Event()

        async def handler(w: Any, r: Any) -> None:
            await gate.wait()
            w.write(b"x")

        async with serving(handler, rcvbuf=16384) as s:
            c = await s.client(sndbuf=16384)
            sending = asyncio.create_task(c.send(request("/", "Padding: " + "x" * 1000) * total))
            await eventually(lambda: s.server.active_connections == 1 and not s.conn.transport.is_reading())
            assert len(s.conn._buffer) <= connection.MAX_PIPELINED + RECEIVE_AT_ONCE
            assert not sending.done()
            gate.set()
            for _ in range(total):
                assert (await c.answer()).status == 200
            await sending
            assert s.conn.transport.is_reading()

    run(main())


@pytest.mark.parametrize("at_once", [True, False])
def test_client_that_reads_no_answers_is_not_served_without_end(run: Any, at_once: bool) -> None:
    """Requests are small and answers big: memory must not grow because nobody reads them."""
    size, total = 100_000, 200

    def handler(w: Any, r: Any) -> None:
        w.write(b"x" * size)

    async def main() -> None:
        async with serving(handler, sndbuf=16384) as s:
            c = await s.client(rcvbuf=16384)
            if at_once:
                await c.send(request("/") * total)
            else:
                # One request per received piece: the server has had each before the next is sent.
                for _ in range(total):
                    before = s.server.requests
                    await c.send(request("/"))
                    for _ in range(20):
                        await asyncio.sleep(0)
                        if s.server.requests > before:
                            break
            await eventually(lambda: s.server.open_connections == 1 and s.conn._write_blocked)
            for _ in range(100):
                await asyncio.sleep(0)
            assert s.conn.transport.get_write_buffer_size() < 10 * size
            for _ in range(total):
                assert len((await c.answer()).body) == size

    run(main())


def test_pipelined_requests_nobody_answers_yet_are_bounded(run: Any) -> None:
    """The same, and the client goes on sending: its requests must not pile up either."""
    size, total = 100_000, 3000

    def handler(w: Any, r: Any) -> None:
        w.header["Content-Length"] = str(size)
        if r.method != "HEAD":
            w.write(b"x" * size)

    async def main() -> None:
        async with serving(handler, sndbuf=16384, rcvbuf=16384) as s:
            c = await s.client(rcvbuf=16384, sndbuf=16384)
            heads = request("/") * 20 + request("/", "Padding: " + "x" * 1000, method="HEAD") * total
            sending = asyncio.create_task(c.send(heads))
            await eventually(lambda: s.server.open_connections == 1 and s.conn._write_blocked)
            await eventually(lambda: sending.done() or not s.conn.transport.is_reading())
            assert not sending.done(), "all requests were taken in though no answer was read"
            assert len(s.conn._buffer) <= connection.MAX_PIPELINED + RECEIVE_AT_ONCE
            for number in range(20 + total):
                assert (await c.answer("HEAD" if number >= 20 else "GET")).status == 200
            await sending

    run(main())


def test_client_that_pipelines_faster_than_it_can_be_served(run: Any) -> None:
    """It reads its answers, so nothing is blocked: still its requests must not pile up."""
    total = 60_000
    most = 0

    async def main() -> None:
        nonlocal most
        async with serving(echo_target) as s:
            c = await s.client()

            async def send() -> None:
                for _ in range(10):
                    await c.send(request("/") * (total // 10))

            async def watch() -> None:
                nonlocal most
                while True:
                    if s.server.open_connections:
                        most = max(most, len(s.conn._buffer or b""))
                    await asyncio.sleep(0)

            tasks = [asyncio.create_task(send()), asyncio.create_task(watch())]
            received = tail = b""
            count = 0
            while count < total:
                assert await c.fill()
                received, c.buffer = tail + c.buffer, b""
                count += received.count(b"HTTP/1.1 200 OK\r\n")
                tail = received[received.rfind(b"\n") + 1 :]
            tasks[1].cancel()
            await asyncio.wait(tasks)
            assert s.server.requests == total
            assert 0 < most <= connection.MAX_PIPELINED + RECEIVE_AT_ONCE

    run(main())


def test_good_request_before_a_bad_one_is_answered_first(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        await asyncio.sleep(0)
        w.write(b"good")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request("/") + b"GET / HTTP/1.1\r\nBad Name: x\r\n\r\n" + request("/never"))
            assert (await c.answer()).body == b"good"
            answer = await c.answer()
            assert (answer.status, answer.headers["connection"]) == (400, "close")
            assert await c.closed()
            assert s.server.requests == 1

    run(main())


# --- half-closing clients -------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
def test_half_closing_client_gets_its_answers(run: Any, waits: bool) -> None:
    async def handler(w: Any, r: Any) -> None:
        if waits:
            await asyncio.sleep(0.01)
        w.write(r.request_uri)

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request("/1"))
            c.shut()
            assert (await c.answer()).body == b"/1"
            assert await c.closed()

    run(main())


@pytest.mark.parametrize("first_waits", [False, True])
def test_half_closing_client_gets_all_answers_of_its_pipeline(run: Any, first_waits: bool) -> None:
    async def handler(w: Any, r: Any) -> None:
        if first_waits and r.url.path == "/0":
            await asyncio.sleep(0.01)
        w.write(r.request_uri)

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(b"".join(request(f"/{n}") for n in range(100)))
            c.shut()
            for number in range(100):
                assert (await c.answer()).body == b"/%d" % number
            assert await c.closed()

    run(main())


def test_half_close_inside_a_head(run: Any) -> None:
    """Inside a line it is a bad request; between lines there is nobody to answer (as Go does)."""

    async def main() -> None:
        async with serving(echo_target) as s:
            c = await s.client()
            await c.send(b"GET / HTTP/1.1\r\nHos")
            c.shut()
            assert (await c.answer()).status == 400
            assert await c.closed()
            c = await s.client()
            await c.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
            c.shut()
            assert await c.closed()

    run(main())


# --- clients that leave ---------------------------------------------------------------------


def test_reset_in_the_middle_of_a_request_frees_everything(run: Any) -> None:
    outcomes: list[BaseException] = []

    async def handler(w: Any, r: Any) -> None:
        try:
            await r.body.read()
        except BaseException as error:
            outcomes.append(error)
            raise

    async def main() -> None:
        async with serving(handler) as s:
            await s.get()
            await eventually(lambda: not s.server._connections)
            descriptors = helpers.open_descriptors()
            c = await s.client()
            await c.send(request("/", "Content-Length: 1000", method="POST") + b"x" * 10)
            await eventually(lambda: s.server.active_connections == 1)
            c.reset()
            await eventually(lambda: not s.server._connections)
            assert s.server.open_connections == 0
            (error,) = outcomes
            assert isinstance(error, http.RemoteProtocolError)
            # Half a head, then gone.
            c = await s.client()
            await c.send(b"GET / HT")
            await eventually(lambda: s.server.open_connections == 1 and s.conn._head_begun)
            c.reset()
            await eventually(lambda: not s.server._connections)
            assert helpers.open_descriptors() == descriptors

    run(main())


def test_handler_is_told_of_a_client_that_left(run: Any) -> None:
    told: list[Any] = []

    async def handler(w: Any, r: Any) -> None:
        told.append(bool(r.disconnected))
        await r.disconnected
        told.append(bool(r.disconnected))
        with pytest.raises(ConnectionResetError):
            await write_without_end(w)
        told.append("written")

    async def write_without_end(w: Any) -> None:
        while True:
            await w.write(b"x" * 100_000)
            await asyncio.sleep(0)

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request())
            await eventually(lambda: told)
            c.reset()
            await eventually(lambda: not s.server._connections)
            assert told == [False, True, "written"]

    run(main())


def test_cancel_on_disconnect(run: Any) -> None:
    steps: list[str] = []

    async def handler(w: Any, r: Any) -> None:
        try:
            async with r.cancel_on_disconnect():
                steps.append("begun")
                await asyncio.Event().wait()
        finally:
            steps.append("ended")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request())
            await eventually(lambda: steps)
            c.close()
            await eventually(lambda: not s.server._connections)
            assert steps == ["begun", "ended"]

    run(main())


def test_cancel_on_disconnect_does_nothing_while_the_client_stays(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        async with r.cancel_on_disconnect():
            await asyncio.sleep(0)
        assert asyncio.current_task().cancelling() == 0
        w.write(b"here")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            for _ in range(2):
                assert (await c.get()).body == b"here"

    run(main())


# --- states, access log ---------------------------------------------------------------------


class States:
    """A conn_state hook that remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, conn: http.Connection, state: http.ConnState) -> None:
        assert isinstance(conn, http.Connection)
        self.seen.append(state.value)


def test_conn_state_of_a_kept_connection(run: Any) -> None:
    states = States()

    async def main() -> None:
        async with serving(echo_target, conn_state=states) as s:
            c = await s.client()
            await eventually(lambda: states.seen)
            assert states.seen == ["new"]
            await c.get()
            await c.get()
            assert states.seen == ["new", "active", "idle", "active", "idle"]
            c.close()
            await eventually(lambda: s.server.open_connections == 0)
            assert states.seen[5:] == ["closed"]

    run(main())


def test_conn_state_of_a_dripping_head(run: Any) -> None:
    states = States()

    async def main() -> None:
        async with serving(echo_target, conn_state=states) as s:
            c = await s.client()
            for byte in request():
                await c.send(bytes([byte]))
                await asyncio.sleep(0)
            await c.answer()
            assert states.seen == ["new", "active", "idle"]

    run(main())


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (b"", ["new", "closed"]),
        (b"GET nonsense\r\n\r\n", ["new", "active", "closed"]),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", ["new", "active", "closed"]),
    ],
)
def test_conn_state_of_short_lives(run: Any, sent: bytes, seen: list[str]) -> None:
    states = States()

    async def main() -> None:
        async with serving(echo_target, conn_state=states) as s:
            c = await s.client()
            await c.send(sent)
            if sent:
                await c.rest()
            c.close()
            await eventually(lambda: states.seen[-1:] == ["closed"])
            assert states.seen == seen

    run(main())


def test_access_log(run: Any) -> None:
    records: list[http.AccessRecord] = []

    async def handler(w: Any, r: Any) -> None:
        if r.url.path == "/fails":
            raise RuntimeError("x")
        await asyncio.sleep(0.01)
        w.write_header(201)
        await w.write(b"x" * 5000)

    mux = http.ServeMux()
    mux.handle_func("GET /a/{id}", handler)
    mux.handle_func("/fails", handler)

    async def main() -> None:
        async with serving(mux, access_log=records.append) as s:
            c = await s.client()
            started = time.time()
            await c.get("/a/7?q=1", "User-Agent: ua", "Referer: ref")
            (record,) = records
            assert record.remote_addr == "{}:{}".format(*c.sock.getsockname())
            assert (record.method, record.target, record.proto) == ("GET", "/a/7?q=1", "HTTP/1.1")
            assert (record.status, record.bytes_written) == (201, 5000)
            assert (record.host, record.user_agent, record.referer) == ("test", "ua", "ref")
            assert record.pattern == "GET /a/{id}"
            assert 0.009 < record.duration < 5
            assert abs(record.start - started) < 5

            await c.send(request("/b") + request("/fails"))
            assert (await c.answer()).status == 404
            assert (await c.answer()).status == 500
            assert [(r.target, r.status) for r in records[1:]] == [("/b", 404), ("/fails", 500)]
            assert len(s.log.take()) == 1

            c = await s.client()
            await c.send(b"nonsense\r\n\r\n")
            await c.rest()
            assert (records[-1].method, records[-1].status) == ("", 400)

    run(main())


def test_access_log_of_a_client_that_left(run: Any) -> None:
    records: list[http.AccessRecord] = []

    async def handler(w: Any, r: Any) -> None:
        await r.disconnected

    async def main() -> None:
        async with serving(handler, access_log=records.append) as s:
            c = await s.client()
            await c.send(request("/gone"))
            await eventually(lambda: s.server.active_connections)
            c.reset()
            await eventually(lambda: records)
            assert (records[0].target, records[0].status) == ("/gone", 0)

    run(main())


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("hook", ["conn_state", "access_log"])
def test_hook_that_raises_harms_nobody(run: Any, hook: str, waits: bool) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("mine")

    async def handler(w: Any, r: Any) -> None:
        if waits:
            await asyncio.sleep(0)
        w.write(b"x")

    async def main() -> None:
        async with serving(handler, **{hook: broken}) as s:
            c = await s.client()
            for _ in range(2):
                assert (await c.get()).body == b"x"
            c.close()
            await eventually(lambda: s.server.open_connections == 0)
            logged = s.log.take()
            assert len(logged) == {"conn_state": 6, "access_log": 2}[hook]
            assert all(f"{hook} hook failed" in line and "RuntimeError: mine" in line for line in logged)

    run(main())


def test_options_star_is_answered_by_the_server(run: Any) -> None:
    async def main() -> None:
        async with serving(lambda w, r: w.write(b"handler")) as s:
            c = await s.client()
            answer = await c.ask("OPTIONS", "*")
            assert (answer.status, answer.headers["content-length"], answer.body) == (200, "0", b"")
            assert (await c.ask("OPTIONS", "/")).body == b"handler"

    run(main())


# --- what handlers live in ------------------------------------------------------------------

VAR: contextvars.ContextVar[str] = contextvars.ContextVar("VAR", default="unset")


@pytest.mark.parametrize("kind", ["def", "async", "waiting"])
def test_context_variables_do_not_leak_into_other_requests(run: Any, kind: str) -> None:
    def plain(w: Any, r: Any) -> None:
        w.write(VAR.get())
        VAR.set(r.url.path)
        w.write(" " + VAR.get())

    async def asynchronous(w: Any, r: Any) -> None:
        plain(w, r)

    async def waiting(w: Any, r: Any) -> None:
        w.write(VAR.get())
        VAR.set(r.url.path)
        await asyncio.sleep(0)
        assert VAR.get() == r.url.path
        await asyncio.create_task(child(w))
        w.write(" " + VAR.get())

    async def child(w: Any) -> None:
        VAR.set(VAR.get() + "/child")  # in a context of its own

    async def main() -> None:
        async with serving({"def": plain, "async": asynchronous, "waiting": waiting}[kind]) as s:
            c = await s.client()
            for number in range(3):
                assert (await c.get(f"/{number}")).body == b"unset /%d" % number
            await c.send(request("/a") + request("/b") + request("/c"))  # pipelined
            for letter in "abc":
                assert (await c.answer()).body == f"unset /{letter}".encode()
            assert (await s.get("/other")).body == b"unset /other"
            assert VAR.get() == "unset"

    run(main())


def test_context_variables_of_requests_at_the_same_time(run: Any) -> None:
    async def main() -> None:
        both = asyncio.Barrier(2)

        async def handler(w: Any, r: Any) -> None:
            assert VAR.get() == "unset"
            VAR.set(r.url.path)
            await both.wait()
            w.write(VAR.get())

        async with serving(handler) as s:
            answers = await asyncio.gather(s.get("/a"), s.get("/b"))
            assert [a.body for a in answers] == [b"/a", b"/b"]

    run(main())


@pytest.mark.parametrize("wait_first", [False, True])
def test_asyncio_works_in_handlers(run: Any, wait_first: bool) -> None:
    """asyncio.timeout, TaskGroup and current_task, before the first await and after it."""
    tasks: list[Any] = []

    async def handler(w: Any, r: Any) -> None:
        if wait_first:
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await asyncio.Event().wait()
        assert task.cancelling() == 0
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            one = group.create_task(asyncio.sleep(0, 1))
            two = group.create_task(asyncio.sleep(0, 2))
        assert await asyncio.wait_for(asyncio.sleep(0, 3), 10) == 3
        with pytest.raises(ExceptionGroup):
            await failing_group()
        assert asyncio.current_task() is task
        tasks.append(task)
        w.write(str(one.result() + two.result()))

    async def failing_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait())
            group.create_task(fails())

    async def fails() -> None:
        raise ValueError

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            for _ in range(3):
                assert (await c.get()).body == b"3"
            assert len(set(tasks)) == 3
            assert asyncio.current_task() not in tasks

    run(main())
