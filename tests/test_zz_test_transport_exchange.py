"""One exchange on a connection: retries, early answers, 100-continue, interim responses, upgrades."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import queue
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_spec = importlib.util.spec_from_file_location(
    "helpers_transport", Path(__file__).with_name("helpers_transport.py")
)
assert _spec is not None
assert _spec.loader is not None
h: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(h)

Run = "Callable[..., Any]"
both_loops = pytest.mark.both_loops

HEAD = "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n"
CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


# --- kept connections that have died --------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize(
    ("method", "options", "again"),
    [
        ("GET", {}, True),
        ("HEAD", {}, True),
        ("OPTIONS", {}, True),
        ("POST", {"body": b"x"}, False),
        ("POST", {"body": b"x", "header": {"Idempotency-Key": "7"}}, True),
        ("PUT", {}, False),
        ("DELETE", {"header": {"X-Idempotency-Key": "7"}}, True),
        ("GET", {"body": b"x"}, True),
        ("GET", {"body": "iterator"}, False),
        ("GET", {"body": "iterator", "get_body": lambda: b"again"}, True),
    ],
)
def test_a_kept_connection_that_dies_under_a_request(
    run: Run, end: str, method: str, options: dict[str, Any], again: bool
) -> None:
    """The server has closed it as the request came: again on another one if that does nothing twice."""

    async def dying(line: Any) -> None:
        await line.request()
        line.reply(str(line.number))
        if line.number == 0:
            if await line.request() is not None and end == "reset":
                line.reset()
        else:
            await h.answering(line)

    async def body() -> AsyncIterator[bytes]:
        yield b"once"

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(dying) as peer, h.transport() as sender:
            assert await h.whole(sender, peer.get()) == (200, b"0")
            mine = dict(options)
            if mine.get("body") == "iterator":
                mine["body"] = body()
            request = http.Request(method, peer.url("/second"), **mine)
            if again:
                status, _ = await h.whole(sender, request)
                assert status == 200
                assert [(r.method, r.target) for r in peer.requests[1:]] == [(method, "/second")] * 2
                assert sender.stats().retries == 1
            else:
                error = await h.failure_of(sender.round_trip(request), http.ConnectionLost)
                assert not error.retryable
                assert error.addr == f"127.0.0.1:{peer.port}"
                assert len(peer.requests) == 2
                assert sender.stats().retries == 0
            await h.until(lambda: len(peer.lines) == 1 + again)

    run(main())


@both_loops
def test_a_new_connection_that_dies_is_not_tried_again(run: Run) -> None:
    async def dying(line: Any) -> None:
        await line.request()

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(dying) as peer, h.transport() as sender:
            error = await h.failure(sender.round_trip(peer.get()), http.ConnectionLost)
            assert str(error) == "EOF: the server closed the connection without an answer"
            assert (error.phase, error.retryable) == ("header", False)
            assert len(peer.requests) == 1

    run(main())


@both_loops
def test_connections_that_the_server_has_closed_are_found_out_at_once(run: Run) -> None:
    """... and not by the next request: even a POST need not be sent on a dead connection."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport() as sender:
            held = [await sender.round_trip(peer.post(b"x" * 1_000_000)) for _ in range(4)]
            for response in held:
                await response.body.read()
            assert sender.stats().idle == 4
            peer.lines[0].reset()
            peer.lines[1].writer.close()
            peer.lines[2].send("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
            await h.until(lambda: sender.stats().idle == 1)
            assert (await h.whole(sender, peer.post(b"")))[1] == b"3 POST / "
            assert sender.stats().retries == 0
            h.check_pool(sender)

    run(main())


@both_loops
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("end", ["close", "reset", "408"])
def test_the_end_of_a_kept_connection_that_nobody_had_time_to_see(
    run: Run, end: str, traced: bool, tls: bool
) -> None:
    """A request that can be sent only once looks before it leaps: the loop was busy as the server closed."""

    async def closing(line: Any) -> None:
        await line.request()
        line.reply("first")
        if line.number:
            return
        await line.peer.go.wait()
        if end == "408":
            line.send("HTTP/1.1 408 Request Timeout\r\n\r\n")
        if end == "reset":
            line.reset()

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        context = h.dial.server_context() if tls else None
        tls_config = h.dial.trusting() if tls else None
        async with h.transport(tls_config=tls_config) as sender:
            with server_in_thread(closing, context) as peer:
                assert await h.whole(sender, peer.get()) == (200, b"first")
                # Nothing is awaited from here on, so that the loop cannot tell of the end.
                conn = h.only_pool(sender).conns.copy().pop()
                peer.loop.call_soon_threadsafe(peer.go.set)
                time.sleep(0.05)  # noqa: ASYNC251
                assert conn.has_news()
                assert not conn.is_closed
                trace = http.with_client_trace(http.ClientTrace()) if traced else contextlib.nullcontext()
                with trace:
                    assert await h.whole(sender, peer.post(once())) == (200, b"first")
                assert sender.stats().retries == 0
                assert conn.is_closed
                assert [received.method for received in peer.requests] == ["GET", "POST"]

    run(main())


@contextlib.contextmanager
def server_in_thread(handler: Any, tls: Any) -> Iterator[Any]:
    """A Peer that goes on while the loop of the test is busy."""
    started: queue.Queue[Any] = queue.Queue()

    async def serve() -> None:
        async with h.peer(handler, tls=tls) as peer:
            peer.go, peer.ended = asyncio.Event(), asyncio.Event()
            peer.loop = asyncio.get_running_loop()
            started.put(peer)
            await peer.ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    peer = started.get(timeout=10)
    try:
        yield peer
    finally:
        peer.loop.call_soon_threadsafe(peer.ended.set)
        thread.join(10)


def test_unsolicited_bytes_are_logged_and_never_an_answer(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def poisoned(line: Any) -> None:
        while await line.request() is not None:
            line.reply("right")
            if line.number == 0:
                line.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(poisoned) as peer, h.transport() as sender:
            assert await h.whole(sender, peer.get()) == (200, b"right")
            await h.until(lambda: sender.stats().idle == 0)
            assert await h.whole(sender, peer.get()) == (200, b"right")
            assert len(peer.lines) == 2

    run(main())


@both_loops
def test_nothing_is_done_twice_by_a_server_that_breaks_connections(run: Run) -> None:
    """RST and FIN before, within and behind answers: a POST arrives at most once, no answers are mixed up."""
    choice = random.Random(7)

    async def chaos(line: Any) -> None:
        while (received := await line.request()) is not None:
            what = choice.randrange(12)
            name = received.target
            if what == 0:
                return line.reset()
            if what == 1:
                return None
            if what == 2:
                line.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n\r\n{name[:-1]}")
                return line.reset() if choice.random() < 0.5 else None
            line.reply(name, *(["Connection: close"] if what == 3 else []))
            if what == 4:
                return line.reset()
            if what in (3, 5):
                return None
        return None

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(chaos) as peer, h.transport() as sender:
            number = 0
            outcomes: dict[str, int] = {}

            async def worker() -> None:
                nonlocal number
                while number < 1500:
                    number += 1
                    name = f"/{number}"
                    post = number % 2
                    request = peer.post(b"x" * (number % 3), name) if post else peer.get(name)
                    try:
                        assert await h.whole(sender, request) == (200, name.encode())
                        outcome = "answered"
                    except http.ConnectionLost as error:
                        outcome = f"{'post' if post else 'get'} {error.phase}"
                    outcomes[outcome] = outcomes.get(outcome, 0) + 1

            await asyncio.gather(*(worker() for _ in range(8)))
            counts: dict[tuple[str, str], int] = {}
            for received in peer.requests:
                key = received.method, received.target
                counts[key] = counts.get(key, 0) + 1
            assert all(count == 1 for (method, _), count in counts.items() if method == "POST")
            assert max(counts.values()) > 1, "nothing was ever retried: the server is too kind"
            assert outcomes["answered"] > 800, outcomes
            assert outcomes["post header"] > 10, outcomes
            h.check_pool(sender)

    run(main())


async def once() -> AsyncIterator[bytes]:
    yield b"once"


# --- responses before the request is sent -----------------------------------------------------------


def endless(sent: list[int]) -> Any:
    async def body() -> AsyncIterator[bytes]:
        try:
            while True:
                sent.append(1)
                yield b"x" * 16384
        finally:
            sent.append(-1)

    return body()


@both_loops
def test_a_refusal_while_the_body_is_being_sent(run: Run) -> None:
    """413 and close: the response is there, the rest of the body is not asked for any more."""

    async def refusing(line: Any) -> None:
        await line.head()
        await line.reader.readexactly(40_000)
        line.reply("too much", "Connection: close", status="413 Content Too Large")
        await line.drain()
        await line.closed()

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(refusing) as peer, h.transport() as sender:
            for _ in range(20):
                sent: list[int] = []
                assert await h.whole(sender, peer.post(endless(sent))) == (413, b"too much")
                await h.until(lambda sent=sent: sent[-1] == -1)
            assert sender.stats().idle == 0
            await peer.all_closed()
            h.check_pool(sender)

    run(main())


@both_loops
def test_a_refusal_with_a_reset(run: Run) -> None:
    """The server does not read what it has refused, so the kernel resets: an answer that was seen counts."""

    async def refusing(line: Any) -> None:
        await line.head()
        line.reply("too much", "Connection: close", status="413 Content Too Large")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(refusing) as peer, h.transport() as sender:
            answered = 0
            for _ in range(50):
                sent: list[int] = []
                try:
                    assert await h.whole(sender, peer.post(endless(sent))) == (413, b"too much")
                    answered += 1
                except http.ConnectionLost as error:
                    assert error.phase in ("header", "write")  # noqa: PT017
                await h.until(lambda sent=sent: sent[-1] == -1)
            assert answered >= 40, answered
            h.check_pool(sender)

    run(main())


@both_loops
@pytest.mark.parametrize("rest", ["comes", "is late"])
def test_an_early_answer_that_keeps_the_connection(run: Run, rest: str) -> None:
    """The connection is kept when the body is sent soon behind the response; WRITE_GRACE is 50 ms."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        seen, finish = asyncio.Event(), asyncio.Event()

        async def early(line: Any) -> None:
            received = await line.head()
            line.reply("early")
            await seen.wait()
            with contextlib.suppress(asyncio.IncompleteReadError):
                await line.body(received)
                await h.answering(line)

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            await finish.wait()
            yield b"last"

        async with h.peer(early) as peer, h.transport() as sender:
            assert await h.whole(sender, peer.post(body())) == (200, b"early")
            assert sender.stats().idle == 0  # not before the request is written
            seen.set()
            if rest == "comes":
                finish.set()
                await h.until(lambda: sender.stats().idle == 1)
                assert peer.requests[0].body == b"firstlast"
                assert await h.whole(sender, peer.get()) == (200, b"0 GET / ")
            else:
                await peer.all_closed()
                assert peer.requests[0].body == b"first"
                assert sender.stats().active == 0
            h.check_pool(sender)

    run(main())


@both_loops
def test_a_response_that_streams_while_the_request_does(run: Run) -> None:
    async def echo(line: Any) -> None:
        await line.head()
        line.send(CHUNKED)
        while size := int(await line.reader.readline(), 16):
            data = await line.reader.readexactly(size + 2)
            line.send(b"%x\r\n%b" % (size, data))
        await line.reader.readline()
        line.send("0\r\n\r\n")
        await h.answering(line)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(echo) as peer, h.transport() as sender:
            turn: asyncio.Queue[bytes] = asyncio.Queue()

            async def body() -> AsyncIterator[bytes]:
                while piece := await turn.get():
                    yield piece

            async with await sender.round_trip(peer.post(body())) as response:
                for number in range(20):
                    turn.put_nowait(b"%d" % number)
                    assert await response.body.read(10) == b"%d" % number
                turn.put_nowait(b"")
                assert await response.body.read() == b""
            await h.until(lambda: sender.stats().idle == 1)
            assert await h.whole(sender, peer.get()) == (200, b"0 GET / ")

    run(main())


# --- Expect: 100-continue ----------------------------------------------------------------------------


@both_loops
@pytest.mark.parametrize(
    ("answer", "sends", "reused"),
    [
        ("100", True, True),
        ("nothing", True, True),
        ("417 keep", True, True),
        ("417 close", False, False),
        ("102 100", True, True),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "iterator"])
def test_expect_100_continue(run: Run, answer: str, sends: bool, reused: bool, kind: str) -> None:
    async def server(line: Any) -> None:
        received = await line.head()
        assert received.fields["expect"] == "100-continue"
        if answer.startswith("417"):
            fields = ["Connection: close"] if answer.endswith("close") else []
            line.reply("no", *fields, status="417 Expectation Failed")
            if not sends:
                received.body = await line.closed()
                return
        for status in answer.split():
            if status in ("100", "102"):
                line.send(f"HTTP/1.1 {status} Whatever\r\n\r\n")
        await line.body(received)
        if not answer.startswith("417"):
            line.reply("thanks")
        await h.answering(line)

    async def body() -> AsyncIterator[bytes]:
        yield b"the "
        yield b"body"

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        closed: list[bool] = []
        timeout = 0.05 if answer == "nothing" else 30
        async with h.peer(server) as peer, h.transport(expect_continue_timeout=timeout) as sender:
            request = peer.post(b"the body" if kind == "bytes" else body(), header={"Expect": "100-continue"})
            status = 417 if answer.startswith("417") else 200
            assert await h.whole(sender, request) == (status, b"no" if status == 417 else b"thanks")
            if reused:
                await h.until(lambda: sender.stats().idle == 1)
                assert await h.whole(sender, peer.get()) == (200, b"0 GET / ")
            else:
                await peer.all_closed()
            assert peer.requests[0].body == (b"the body" if sends else b"")
            h.check_pool(sender)
            assert not closed

    run(main())


@both_loops
def test_expect_100_continue_that_need_not_wait(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport(expect_continue_timeout=0) as sender:
            request = peer.post(b"x", header={"Expect": "100-continue"})
            assert await h.whole(sender, request) == (200, b"0 POST / x")

    run(main())


@both_loops
@pytest.mark.parametrize("how", ["cancelled", "deadline", "server closes"])
def test_the_end_of_a_wait_for_100_continue(run: Run, how: str) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        closed: list[bool] = []

        async def body() -> AsyncIterator[bytes]:
            try:
                yield b"x"
            finally:
                closed.append(True)

        async def server(line: Any) -> None:
            await line.head()
            if how != "server closes":
                assert await line.closed() == b""

        async with h.peer(server) as peer, h.transport(expect_continue_timeout=30) as sender:
            request = peer.post(body(), header={"Expect": "100-continue"})
            if how == "deadline":
                h.deadline(request, 0.05)
            task = asyncio.create_task(sender.round_trip(request))
            await h.until(lambda: peer.requests)
            if how == "cancelled":
                task.cancel()
            await asyncio.wait([task])
            if how == "cancelled":
                assert task.cancelled()
            elif how == "deadline":
                assert (await h.failure(task, http.ClientTimeout)).phase == "write"
            else:
                await h.failure(task, http.ConnectionLost)
            await peer.all_closed()
            assert closed == []  # it was never begun
            h.check_pool(sender)

    run(main())


# --- 1xx and 101 ---------------------------------------------------------------------------------------


@both_loops
def test_interim_responses(run: Run) -> None:
    async def hints(line: Any) -> None:
        await line.request()
        line.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await line.drain()
        line.send(
            "HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + HEAD.format(2)
        )
        line.send("ok")
        await h.answering(line)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        seen: list[Any] = []
        trace = http.ClientTrace(
            got_1xx_response=lambda status, header: seen.append((status, header.get("Link"))),
            got_100_continue=lambda: seen.append("100"),
            got_first_response_byte=lambda: seen.append("first"),
        )
        async with h.peer(hints) as peer, h.transport() as sender:
            with http.with_client_trace(trace):
                assert await h.whole(sender, peer.get()) == (200, b"ok")
            assert seen == ["first", (103, "</a>"), (103, "</b>"), "100", (100, None)]
            assert await h.whole(sender, peer.get()) == (200, b"0 GET / ")

    run(main())


@both_loops
def test_upgrade(run: Run) -> None:
    async def switch(line: Any) -> None:
        received = await line.request()
        if received.fields.get("upgrade") == "echo":
            line.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello")
            await h.dial.echo(line.reader, line.writer)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with (
            h.peer(switch) as peer,
            h.transport(max_conns_per_host=1, idle_conn_timeout=0.05) as sender,
        ):
            header = {"Connection": "Upgrade", "Upgrade": "echo"}
            response = await sender.round_trip(h.deadline(peer.get(header=header), 0.1))
            assert response.status == 101
            assert response.header["Upgrade"] == "echo"
            assert await response.body.read() == b""
            reader, writer = response.upgraded
            assert await reader.readexactly(5) == b"hello"
            assert h.only_pool(sender).conns == set()
            await asyncio.sleep(0.15)  # no clock of the exchange goes on
            writer.write(b"x" * 1_000_000)
            await writer.drain()
            assert await reader.readexactly(1_000_000) == b"x" * 1_000_000
            await sender.close()  # it is not the Transport's any more
            writer.write(b"still")
            assert await reader.readexactly(5) == b"still"
            response.close()
            await peer.all_closed()

    run(main())


@both_loops
def test_a_switch_that_nobody_asked_for(run: Run) -> None:
    async def switch(line: Any) -> None:
        await line.request()
        line.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
        await line.closed()

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(switch) as peer, h.transport() as sender:
            error = await h.failure(sender.round_trip(peer.get()), http.MalformedResponse)
            assert "switched protocols" in str(error)
            await peer.all_closed()

    run(main())


@both_loops
def test_an_upgrade_that_is_refused(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async def server(line: Any) -> None:
            await line.request()
            line.reply("no", status="426 Upgrade Required")
            await h.answering(line)

        async with h.peer(server) as peer, h.transport() as sender:
            header = {"Connection": "Upgrade", "Upgrade": "echo"}
            assert await h.whole(sender, peer.get(header=header)) == (426, b"no")
            assert (await h.whole(sender, peer.get(header=header)))[1] == b"0 GET / "

    run(main())


@both_loops
@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("status", [101, 200, 2000])
def test_a_caller_that_goes_as_the_response_comes(run: Run, when: str, status: int) -> None:
    """In the same turn of the loop: nobody reads the response, and nobody else gets it."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        answer = asyncio.Event()

        async def server(line: Any) -> None:
            if line.number == 1:
                return await h.answering(line)
            await line.request()
            await answer.wait()
            if status == 101:
                line.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
                assert await line.closed() == b""
            elif status == 200:
                line.reply("short")
            else:
                line.send(HEAD.format(10) + "long")
                await line.drain()
                line.send("er....")
            return await h.answering(line)

        async with h.peer(server) as peer, h.transport(max_conns_per_host=1) as sender:
            header = {"Connection": "Upgrade", "Upgrade": "echo"}
            task = asyncio.create_task(sender.round_trip(peer.get("/1", header=header)))
            await h.until(lambda: peer.requests)
            # One that cannot be sent twice waits for the connection.
            next_one = asyncio.create_task(h.whole(sender, peer.post(once(), "/2", header=header)))
            await h.until(lambda: sender.stats().waiting)
            conn = h.only_pool(sender).conns.copy().pop()
            receive = conn.data_received

            def received(data: bytes) -> None:
                if when == "before":
                    task.cancel()
                receive(data)
                task.cancel()

            class Between(asyncio.Protocol):
                data_received = staticmethod(received)
                eof_received = staticmethod(conn.eof_received)
                connection_lost = staticmethod(conn.connection_lost)
                pause_writing = staticmethod(conn.pause_writing)
                resume_writing = staticmethod(conn.resume_writing)

            conn._transport.set_protocol(Between())
            answer.set()
            await asyncio.wait([task])
            assert task.cancelled()
            code, body = await next_one
            assert code == 200
            assert body.endswith(b" POST /2 once")
            if status == 101:
                await h.until(lambda: peer.open <= 1)
            h.check_pool(sender)

    run(main())

    run(main())
