"""Transport and its pool over real sockets: who gets which connection, and when one is closed."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http

if TYPE_CHECKING:
    from collections.abc import Callable

_spec = importlib.util.spec_from_file_location(
    "helpers_transport", Path(__file__).with_name("helpers_transport.py")
)
assert _spec is not None
assert _spec.loader is not None
h: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(h)

Run = "Callable[..., Any]"
both_loops = pytest.mark.both_loops


# --- reuse --------------------------------------------------------------------------------------


@both_loops
def test_one_connection_serves_one_request_after_another(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport() as sender:
            for number in range(5):
                assert await h.whole(sender, peer.get(f"/{number}")) == (200, b"0 GET /%d " % number)
            assert await h.whole(sender, peer.post(b"x" * 100_000)) == (200, b"0 POST / " + b"x" * 100_000)
            # The short way and the long one lead to the same connections.
            assert await h.whole(sender, peer.get(header={"X": "y"})) == (200, b"0 GET / ")
            stats = sender.stats()
            assert (stats.requests, stats.reuses, stats.dials, stats.waits) == (7, 6, 1, 1)
            assert (stats.idle, stats.active, stats.dialing, stats.waiting) == (1, 0, 0, 0)
            assert stats.hosts == {f"|http|127.0.0.1:{peer.port}": http.HostStats(1, 0, 0, 0)}
            h.check_pool(sender)

    run(main())


@both_loops
def test_the_connection_used_last_is_used_next(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport() as sender:
            first, second = [await sender.round_trip(peer.get()) for _ in range(2)]
            # (Short bodies come with their heads: those connections are idle, the first before the second.)
            assert sender.stats().idle == 1
            assert await first.body.read() == b"0 GET / "
            assert await second.body.read() == b"0 GET / "

        gates = [asyncio.Event() for _ in range(3)]

        async def gated(line: Any) -> None:
            while await line.request() is not None:
                await gates[line.number].wait()
                line.reply(str(line.number))

        async with h.peer(gated) as peer, h.transport() as sender:
            tasks = []
            for number in range(3):
                tasks.append(asyncio.create_task(h.whole(sender, peer.get())))
                await h.until(lambda number=number: len(peer.requests) == number + 1)
            for number in (1, 2, 0):
                gates[number].set()
                assert await tasks[number] == (200, str(number).encode())
            assert sender.stats().idle == 3
            assert [await h.whole(sender, peer.get()) for _ in range(3)] == [(200, b"0")] * 3

    run(main())


@both_loops
@pytest.mark.parametrize("who", ["request", "server", "HTTP/1.0", "header", "disable_keep_alives"])
def test_connection_close(run: Run, who: str) -> None:
    """Either side may end it; and a server that forgets to close does not keep it open."""

    async def forgetful(line: Any) -> None:
        while (received := await line.request()) is not None:
            if who == "server":
                line.reply("bye", "Connection: close")
            elif who == "HTTP/1.0":
                line.send("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nbye")
            else:
                assert received.fields["connection"] == "close"
                line.reply("bye")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        options = {"disable_keep_alives": True} if who == "disable_keep_alives" else {}
        async with h.peer(forgetful) as peer, h.transport(**options) as sender:
            for _ in range(2):
                header = {"Connection": "close"} if who == "header" else None
                request = peer.get(close=who == "request", header=header)
                assert await h.whole(sender, request) == (200, b"bye")
                await peer.all_closed()
            assert len(peer.lines) == 2
            assert sender.stats().idle == 0
            h.check_pool(sender)

    run(main())


@both_loops
def test_disable_keep_alives_with_a_queue(run: Run) -> None:
    """A used connection is no good for those who wait either."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with (
            h.peer() as peer,
            h.transport(disable_keep_alives=True, max_conns_per_host=1) as sender,
        ):
            answers = await asyncio.gather(*(h.whole(sender, peer.get()) for _ in range(4)))
            assert answers == [(200, b"%d GET / " % number) for number in range(4)]

    run(main())


@both_loops
def test_an_http_1_0_server_that_keeps_alive(run: Run) -> None:
    async def old(line: Any) -> None:
        while await line.request() is not None:
            line.send(f"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n{line.number}")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(old) as peer, h.transport() as sender:
            assert [await h.whole(sender, peer.get()) for _ in range(3)] == [(200, b"0")] * 3

    run(main())


# --- late binding -------------------------------------------------------------------------------


class Gate:
    """A `dial` that waits for the test. started: dials begun; each is let go by one `open()`."""

    def __init__(self) -> None:
        self.started = 0
        self._gates: list[asyncio.Event] = []

    async def dial(self, network: str, addr: str) -> socket.socket:
        assert network == "tcp"
        self.started += 1
        gate = asyncio.Event()
        self._gates.append(gate)
        await gate.wait()
        host, _, port = addr.rpartition(":")
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        except BaseException:
            sock.close()
            raise
        return sock

    def open(self, number: int) -> None:
        self._gates[number].set()


@both_loops
def test_a_request_takes_the_connection_that_is_free_first(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        gate = Gate()
        may_answer = asyncio.Event()

        async def slow(line: Any) -> None:
            while (received := await line.request()) is not None:
                if received.target == "/slow":
                    await may_answer.wait()
                line.reply(str(line.number))

        async with h.peer(slow) as peer, h.transport(dial=gate.dial) as sender:
            first = asyncio.create_task(h.whole(sender, peer.get("/slow")))
            await h.until(lambda: gate.started == 1)
            gate.open(0)
            await h.until(lambda: peer.requests)
            second = asyncio.create_task(h.whole(sender, peer.get()))
            await h.until(lambda: gate.started == 2)
            assert sender.stats().hosts[f"|http|127.0.0.1:{peer.port}"] == http.HostStats(0, 1, 1, 1)
            may_answer.set()
            assert await first == (200, b"0")
            assert await second == (200, b"0")  # not the connection that is being dialled
            assert sender.stats().dialing == 1
            gate.open(1)
            await h.until(lambda: sender.stats().idle == 2)
            assert await h.whole(sender, peer.get()) == (200, b"1")  # it was put back last
            stats = sender.stats()
            assert (stats.requests, stats.reuses, stats.dials, stats.waits) == (3, 2, 2, 2)
            h.check_pool(sender)

    run(main())


@both_loops
def test_the_dial_of_a_cancelled_request_is_for_the_pool(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        gate = Gate()
        async with h.peer() as peer, h.transport(dial=gate.dial) as sender:
            task = asyncio.create_task(h.whole(sender, peer.get()))
            await h.until(lambda: gate.started == 1)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            gate.open(0)
            await h.until(lambda: sender.stats().idle == 1)
            assert await h.whole(sender, peer.get()) == (200, b"0 GET / ")
            assert gate.started == 1
            # Or for another request that waits.
            held = await sender.round_trip(peer.post(b"x" * 1_000_000))
            first, second = (asyncio.create_task(h.whole(sender, peer.get(path))) for path in ("/a", "/b"))
            await h.until(lambda: gate.started == 3)
            first.cancel()
            await asyncio.wait([first])
            gate.open(1)
            assert await second == (200, b"1 GET /b ")
            gate.open(2)
            await h.until(lambda: sender.stats().idle == 2)
            await held.body.read()
            h.check_pool(sender)

    run(main())


@both_loops
def test_a_dial_that_fails_is_the_error_of_its_own_request(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        refusing = h.dial.refusing()
        async with h.peer() as peer, h.transport() as sender:
            url = f"http://127.0.0.1:{refusing}/"
            error = await h.failure(sender.round_trip(http.Request("GET", url)), http.ConnectError)
            assert (error.addr, error.phase, error.retryable) == (f"127.0.0.1:{refusing}", "dial", True)
            assert await h.whole(sender, peer.get()) == (200, b"0 GET / ")
            stats = sender.stats()
            assert (stats.dials, stats.dial_errors) == (2, 1)
            assert list(stats.hosts) == [f"|http|127.0.0.1:{peer.port}"]

    run(main())


# --- limits -------------------------------------------------------------------------------------


@both_loops
def test_max_conns_per_host(run: Run) -> None:
    """Who comes first is served first, and there are never more connections."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.peer() as other, h.transport(max_conns_per_host=2) as sender:
            held = [await sender.round_trip(peer.post(b"x" * 1_000_000)) for _ in range(2)]
            done: list[int] = []

            async def one(number: int) -> None:
                assert (await h.whole(sender, peer.get(f"/{number}")))[0] == 200
                done.append(number)

            tasks = [asyncio.create_task(one(number)) for number in range(10)]
            await h.until(lambda: sender.stats().waiting == 10)
            assert await h.whole(sender, other.get()) == (200, b"0 GET / ")  # the limit is per host
            tasks[3].cancel()
            for response in held:
                await response.body.read()
            await asyncio.wait(tasks)
            assert [received.target for received in peer.requests[2:]] == [
                f"/{number}" for number in range(10) if number != 3
            ]
            assert sorted(done) == [number for number in range(10) if number != 3]
            assert len(peer.lines) == 2
            h.check_pool(sender)

    run(main())


@both_loops
@pytest.mark.parametrize("how", ["close", "reset", "refused"])
def test_max_conns_per_host_with_connections_that_end(run: Run, how: str) -> None:
    """A place that becomes free is for who waits, whatever became of its connection."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async def ending(line: Any) -> None:
            await line.request()
            if how == "reset":
                line.reset()
            else:
                line.reply("x", "Connection: close")

        async with h.peer(ending) as peer, h.transport(max_conns_per_host=1) as sender:
            url = f"http://127.0.0.1:{h.dial.refusing()}/" if how == "refused" else peer.url()
            results = await asyncio.gather(
                *(h.whole(sender, http.Request("GET", url)) for _ in range(8)), return_exceptions=True
            )
            if how == "close":
                assert results == [(200, b"x")] * 8
            else:
                kind = http.ConnectError if how == "refused" else http.ConnectionLost
                assert all(isinstance(result, kind) for result in results), results
            assert sender.stats().dials == 8
            h.check_pool(sender)

    run(main())


@both_loops
def test_pool_timeout(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport(max_conns_per_host=1) as sender:
            held = await sender.round_trip(peer.post(b"x" * 1_000_000))
            request = h.deadline(peer.get(), 0.05)
            error = await h.failure(sender.round_trip(request), http.PoolTimeout)
            assert isinstance(error, TimeoutError)
            assert (error.phase, error.retryable, error.addr) == ("pool", True, f"127.0.0.1:{peer.port}")
            assert "max_conns_per_host" in str(error)
            assert "all 1 connections" in str(error)
            await held.body.read()
            assert (await h.whole(sender, peer.get("/next")))[1] == b"0 GET /next "
            assert [received.target for received in peer.requests] == ["/", "/next"]
            h.check_pool(sender)

    run(main())


@both_loops
def test_max_idle_conns(run: Run) -> None:
    """Of all hosts, the connection that was not used for the longest time goes."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with (
            h.peer() as a,
            h.peer() as b,
            h.peer() as c,
            h.transport(max_idle_conns=2) as sender,
        ):
            for peer in (a, b, a, c):
                await h.whole(sender, peer.get())
            await b.all_closed()
            assert (a.open, b.open, c.open) == (1, 0, 1)
            assert sender.stats().idle == 2
            h.check_pool(sender)

    run(main())


@both_loops
@pytest.mark.parametrize("limit", [0, 2])
def test_max_idle_conns_per_host(run: Run, limit: int) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport(max_idle_conns_per_host=limit) as sender:
            held = [await sender.round_trip(peer.post(b"x" * 1_000_000)) for _ in range(5)]
            for response in held:
                await response.body.read()
            assert sender.stats().idle == limit
            await h.until(lambda: peer.open == limit)
            h.check_pool(sender)

    run(main())


def test_a_limit_that_lets_nothing_through() -> None:
    with pytest.raises(ValueError, match="max_conns_per_host must be more than 0, or None for no limit: 0"):
        http.Transport(max_conns_per_host=0)


@both_loops
def test_idle_conn_timeout(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport(idle_conn_timeout=0.08) as sender:
            loop = asyncio.get_running_loop()
            await h.whole(sender, peer.get())
            await h.whole(sender, peer.get())
            began = loop.time()
            await peer.all_closed()
            assert 0.07 < loop.time() - began < 2
            assert sender.stats().idle == 0
            # It does not end an exchange that takes longer.
            assert len(peer.lines) == 1
            h.check_pool(sender)

    run(main())


@both_loops
def test_idle_conn_timeout_does_not_touch_a_request(run: Run) -> None:
    async def slow(line: Any) -> None:
        while (received := await line.request()) is not None:
            if received.target == "/slow":
                await asyncio.sleep(0.15)
            line.reply(str(line.number))

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(slow) as peer, h.transport(idle_conn_timeout=0.05) as sender:
            assert await h.whole(sender, peer.get()) == (200, b"0")
            assert await h.whole(sender, peer.get("/slow")) == (200, b"0")

    run(main())


@both_loops
@pytest.mark.parametrize("clock", ["drain", "write", "deadline"])
def test_the_clock_of_an_exchange_stops_with_it(run: Run, clock: str) -> None:
    """Without idle_conn_timeout no other clock takes its place."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        rest_now, body_now = asyncio.Event(), asyncio.Event()

        async def handler(line: Any) -> None:
            received = await line.head()
            if clock == "write":
                line.reply("early")
                await line.body(received)
            else:
                line.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nfir")
                await rest_now.wait()
                line.send("st.")
            await h.answering(line)

        async def body() -> Any:
            await body_now.wait()
            yield b"x"

        async with h.peer(handler) as peer, h.transport(idle_conn_timeout=None) as sender:
            if clock == "deadline":
                response = await sender.round_trip(h.deadline(peer.get(), 0.1))
            else:
                response = await sender.round_trip(peer.post(body()) if clock == "write" else peer.get())
            if clock == "drain":
                response.close()
            rest_now.set()
            body_now.set()
            if clock != "drain":
                await response.body.read()
            await h.until(lambda: sender.stats().idle == 1)
            await asyncio.sleep(0.15)
            assert await h.whole(sender, peer.get()) == (200, b"0 GET / ")

    run(main())


# --- closing ------------------------------------------------------------------------------------


@both_loops
def test_close_idle_connections(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport() as sender:
            sender.close_idle_connections()  # there is no pool yet
            held = [await sender.round_trip(peer.post(b"x" * 1_000_000)) for _ in range(2)]
            await h.whole(sender, peer.get())
            sender.close_idle_connections()
            assert sender.stats().idle == 0
            await h.until(lambda: peer.open == 2)
            await held[0].body.read()
            assert sender.stats().idle == 0  # what becomes idle now is closed too
            await h.until(lambda: peer.open == 1)
            assert await h.whole(sender, peer.get()) == (200, b"3 GET / ")
            await held[1].body.read()
            assert sender.stats().idle == 2
            h.check_pool(sender)

    run(main())


@both_loops
def test_close(run: Run) -> None:
    """Everything ends: idle connections, responses that are read, requests that wait, dials."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        gate = Gate()
        async with h.peer() as peer, h.peer() as other, h.transport(max_conns_per_host=1) as sender:
            await h.whole(sender, other.get())
            held = await sender.round_trip(peer.post(b"x" * 1_000_000))
            queued = [asyncio.create_task(h.whole(sender, peer.get())) for _ in range(3)]
            await h.until(lambda: sender.stats().waiting == 3)
            sender._dialer._dial = gate.dial
            dialing = asyncio.create_task(h.whole(sender, http.Request("GET", "http://127.0.0.1:1/")))
            await h.until(lambda: gate.started == 1)
            await sender.close()
            await asyncio.wait([*queued, dialing])
            for task in (*queued, dialing):
                error = task.exception()
                assert type(error) is http.ConnectionLost
                assert str(error) == "http: the Transport was closed"
                assert (error.phase, error.retryable) == ("pool", True)
                assert error.addr
            error = await h.failure(held.body.read(), http.ConnectionLost)
            assert str(error) == "http: the Transport was closed"
            await other.all_closed()
            await peer.all_closed()
            sender._dialer._dial = None
            assert await h.whole(sender, peer.get()) == (200, b"1 GET / ")  # it can be used again
            await sender.close()
            await sender.close()

    run(main())


@both_loops
def test_a_request_that_is_sent_again_after_close(run: Run) -> None:
    """It has found its kept connection dead, and the Transport closed: an error, no connection of nobody."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport() as sender:
            held = await sender.round_trip(peer.post(b"x" * 1_000_000))
            task = asyncio.create_task(h.whole(sender, peer.get()))
            await asyncio.sleep(0)
            await held.body.read()  # `task` is given the connection, and has not noticed
            await sender.close()
            error = await h.failure(task, http.ConnectionLost)
            assert "closed" in str(error)
            await peer.all_closed()

    run(main())


# --- numbers ------------------------------------------------------------------------------------


@both_loops
def test_reprs(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport() as sender:
            assert repr(sender) == "<Transport 0 connections, 0 idle>"
            held = await sender.round_trip(peer.post(b"x" * 1_000_000, "/held?password=x"))
            await h.whole(sender, peer.get())
            assert repr(sender) == "<Transport 2 connections, 1 idle>"
            assert repr(h.only_pool(sender)) == "<IdlePool 2 connections, 1 idle, 1 hosts>"
            idle = next(conn for conn in h.only_pool(sender).conns if conn in conn.host.idle)
            busy = next(conn for conn in h.only_pool(sender).conns if conn not in conn.host.idle)
            addr = f"http://127.0.0.1:{peer.port}"
            assert repr(idle) == f"<PersistConn {addr}, 1 requests, idle for 0.0 s>"
            assert repr(busy) == f"<PersistConn {addr}, 1 requests, POST {addr}/held?password=x>"
            assert repr(held).startswith("<Response 200 OK HTTP/1.1 <Body open 0 read, ")
            await held.body.read()
            await sender.close()
            assert repr(idle) == f"<PersistConn {addr}, 1 requests, closed: http: the Transport was closed>"
            assert repr(sender) == "<Transport 0 connections, 0 idle>"

    run(main())


# --- other protocols ----------------------------------------------------------------------------


def test_register_protocol(run: Run) -> None:
    class Shout:
        async def round_trip(self, request: http.Request) -> http.Response[Any]:
            if "skip" in str(request._peek_url()):
                raise http.SkipAltProtocol
            return http.Response(200, body=str(request.url).upper(), request=request)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport() as sender:
            sender.register_protocol("shout", Shout())
            sender.register_protocol("http", Shout())
            with pytest.raises(ValueError, match="protocol shout already registered"):
                sender.register_protocol("shout", Shout())
            assert await h.whole(sender, http.Request("GET", "shout://a/b")) == (200, b"SHOUT://A/B")
            assert await h.whole(sender, peer.get("/x")) == (200, peer.url("/x").upper().encode())
            assert peer.requests == []
            assert await h.whole(sender, peer.get("/skip")) == (200, b"0 GET /skip ")
            request = http.Request("GET", "shout://skip/")
            error = await h.failure(sender.round_trip(request), http.LocalProtocolError)
            assert str(error) == 'unsupported protocol scheme "shout"'

    run(main())


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (lambda: http.Request("GET", "ftp://x/"), 'unsupported protocol scheme "ftp"'),
        (lambda: http.Request("GET", "http:///x"), "http: no Host in request URL"),
        (
            lambda: http.Request("GET", "http://x/", header={"A": "b\r\nc: d"}),
            'net/http: invalid header field value for "A"',
        ),
    ],
)
def test_what_must_not_be_sent(run: Run, request_: Callable[[], http.Request], text: str) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.transport() as sender:
            closed: list[bool] = []

            async def body() -> Any:
                try:
                    yield b"x"
                finally:
                    closed.append(True)

            request = request_()
            error = await h.failure(sender.round_trip(request), http.LocalProtocolError)
            assert str(error) == text
            request = request_()
            request.body = http.Request("POST", "http://x/", body=body()).body
            await anext(request.body._iterator)  # begun, so that its `finally` has something to do
            await h.failure(sender.round_trip(request), http.LocalProtocolError)
            assert closed == [True]
            assert sender.stats().dials == 0

    run(main())
