"""What a server counts: answers, bytes, durations, and the requests that it has in hand."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http
from prefork.http.server.numbers import InFlight, Numbers
from prefork.ipc import Control, Place
from prefork.scoreboard import BUCKETS, LATENCY_BOUNDS, RECORD, RECORDS, Scoreboard, Word
from prefork.workers.board import Recorder, Seat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = pytest.mark.both_loops


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard(2)
    yield board
    board.close()


class Site:
    """A server on a free port whose requests in hand are noted on seat 1 of a board."""

    def __init__(self, handler: Any, board: Scoreboard, **options: Any) -> None:
        log = logging.getLogger("test.numbers")
        log.disabled = True
        self.server = http.Server("", handler, error_log=log, **options)
        records = [board.record(1, number) for number in range(RECORDS)]
        in_flight = InFlight(RECORD.pack_into, board.memory, board.words, records)
        self.server.numbers = self.numbers = Numbers(LATENCY_BOUNDS, in_flight)
        self._board = board
        self._sock = http.server.server.listen("127.0.0.1:0")
        self.port = self._sock.getsockname()[1]

    async def __aenter__(self) -> Site:
        self.server.start([self._sock])
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.server.shutdown(1)
        self._sock.close()

    def in_hand(self) -> list[str]:
        return [each.request for each in self._board.in_flight(1)]

    async def exchange(self, data: bytes) -> bytes:
        """Send, end our side, and read all that comes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            if writer.can_write_eof():
                writer.write_eof()
            return await reader.read()
        finally:
            writer.close()

    async def get(self, path: str = "/", method: str = "GET", body: bytes = b"") -> bytes:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{length}\r\n"
        return await self.exchange(head.encode() + body)

    def count(self, name: str) -> object:
        return self.server.active_connections if name == "active" else getattr(self.numbers, name)

    async def counts(self, **wanted: object) -> None:
        """Wait until the numbers are these, for what a client cannot wait for."""
        deadline = time.monotonic() + 5
        while (found := {name: self.count(name) for name in wanted}) != wanted:
            assert time.monotonic() < deadline, f"{found}, and not {wanted}"
            await asyncio.sleep(0.005)


def mux() -> http.ServeMux:
    mux = http.ServeMux()

    @mux.handle_func("/status/{code}")
    def status(w: http.ResponseWriter, r: http.Request) -> None:
        w.write_header(int(r.path_value("code")))

    @mux.handle_func("/text/{size}")
    def text(w: http.ResponseWriter, r: http.Request) -> None:
        w.write("x" * int(r.path_value("size")))

    @mux.handle_func("/fails")
    def fails(w: http.ResponseWriter, r: http.Request) -> None:
        raise ValueError("a fault of the application")

    @mux.handle_func("/fails/late")
    async def fails_late(w: http.ResponseWriter, r: http.Request) -> None:
        w.write("begun")
        await w.flush()
        raise ValueError("too late for another answer")

    @mux.handle_func("/aborts")
    def aborts(w: http.ResponseWriter, r: http.Request) -> None:
        raise http.AbortHandler

    @mux.handle_func("/teapot")
    def teapot(w: http.ResponseWriter, r: http.Request) -> None:
        raise http.StatusError(418)

    @mux.handle_func("/sleep/{ms}")
    async def sleep(w: http.ResponseWriter, r: http.Request) -> None:
        await asyncio.sleep(int(r.path_value("ms")) / 1000)

    @mux.handle_func("/takes/over")
    async def takes_over(w: http.ResponseWriter, r: http.Request) -> None:
        _, writer = await w.hijack()
        writer.write(b"something else")
        writer.close()

    return mux


# --- the counters ---------------------------------------------------------------------------


def test_answers_by_status(run: Callable[..., Any], board: Scoreboard) -> None:
    async def main() -> None:
        async with Site(mux(), board) as site:
            for path in (
                "/text/4",
                "/text/5000",
                "/status/204",
                "/status/301",
                "/status/999",
                "/teapot",
                "/none",
            ):
                await site.get(path)
            await site.get("/fails")
            await site.get("/takes/over")
            await site.counts(requests=9)
            assert site.numbers.by_status() == [1, 1, 3, 1, 2, 1]
            assert site.numbers.exceptions == 1
            assert site.server.requests == 9

    run(main())


def test_answers_without_an_end(run: Callable[..., Any], board: Scoreboard) -> None:
    async def main() -> None:
        async with Site(mux(), board) as site:
            assert (await site.get("/fails/late")).endswith(b"begun\r\n")
            assert await site.get("/aborts") == b""
            await site.counts(requests=2)
            # One had decided for 200, one had decided nothing.
            assert site.numbers.by_status() == [1, 0, 1, 0, 0, 0]
            assert site.numbers.exceptions == 1

    run(main())


def test_a_client_that_leaves(run: Callable[..., Any], board: Scoreboard) -> None:
    async def main() -> None:
        async with Site(mux(), board) as site:
            _, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(b"GET /sleep/50 HTTP/1.1\r\nHost: a\r\n\r\n")
            await site.counts(active=1)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()  # by a reset
            await site.counts(active=0, requests=1)
            assert site.in_hand() == []
            assert site.numbers.by_status() == [1, 0, 0, 0, 0, 0]

    run(main())


def test_what_is_no_request_is_counted_apart(run: Callable[..., Any], board: Scoreboard) -> None:
    async def main() -> None:
        async with Site(mux(), board) as site:
            for garbage in (
                b"hello\r\n\r\n",
                b"GET / HTTP/1.1\r\n\r\n",
                b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
            ):
                assert b" 400 " in (answer := await site.exchange(garbage)) or b" 505 " in answer
            assert (site.numbers.refused, site.numbers.requests) == (3, 0)
            assert sum(site.numbers.by_status()) == sum(site.numbers.by_duration()) == 0

    run(main())


def test_bytes_are_those_of_the_wire(run: Callable[..., Any], board: Scoreboard) -> None:
    """In one piece, byte by byte, pipelined, with bodies, chunked, refused: nothing twice or left out."""

    @http.HandlerFunc
    async def handler(w: http.ResponseWriter, r: http.Request) -> None:
        data = await r.body.read()
        if r.url.path == "/wait":
            await asyncio.sleep(0.001)
        if r.url.path == "/chunks":
            for size in (1, 15, 16, 3000, 70_000):
                await w.write("x" * size)
                await w.flush()
        else:
            w.write(data * 3)

    get = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"
    post = b"POST /%s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s"
    chunked = b"POST /wait HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    sent = [
        get % b"",
        get % b"wait" * 5,
        get % b"" * 100,
        (post % (b"wait", 4, b"body")) * 3 + get % b"",
        chunked * 2 + get % b"chunks",
        post % (b"", 300_000, b"y" * 300_000) + get % b"wait",
        get % b"chunks",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n",
    ]

    async def main() -> None:
        async with Site(handler, board) as site:
            received = answered = 0
            for data in sent:
                answer = await site.exchange(data)
                received += len(data)
                answered += len(answer)
                await site.counts(received=received, sent=answered)
            before = site.numbers.requests
            _, writer = await asyncio.open_connection("127.0.0.1", site.port)
            for byte in get % b"wait" + post % (b"", 3, b"abc"):
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
                received += 1
            await site.counts(received=received, requests=before + 2)
            writer.close()

    run(main())


def test_durations(run: Callable[..., Any], board: Scoreboard) -> None:
    async def main() -> None:
        async with Site(mux(), board) as site:
            for ms in (0, 20, 20, 120):
                await site.get(f"/sleep/{ms}")
            await site.get("/text/1")
            await site.counts(requests=5)
            buckets = site.numbers.by_duration()
            assert len(buckets) == BUCKETS
            assert sum(buckets) == 5
            assert sum(buckets[LATENCY_BOUNDS.index(0.1) + 1 :]) == 1
            assert sum(buckets[LATENCY_BOUNDS.index(0.015) + 1 :]) == 3
            assert 0.16 <= site.numbers.seconds < 5

    run(main())


def test_every_place_that_counts_agrees() -> None:
    """`answered` is what the connection does on its short way."""
    one, other = Numbers((0.1, 0.2)), Numbers((0.1, 0.2))
    for status, seconds in ((200, 0.05), (200, 0.1), (404, 0.15), (0, 0.2), (500, 0.3), (600, 9.0)):
        one.answered(status, seconds)
        other.requests += 1
        other.seconds += seconds
    assert one.by_status() == [2, 0, 2, 0, 1, 1]
    assert one.by_duration() == [2, 2, 2]
    assert one.seconds == other.seconds
    assert Numbers().by_duration() == [0]
    assert repr(one) == "<Numbers 6 requests, 0 exceptions>"


# --- requests in hand -----------------------------------------------------------------------


def test_a_request_is_in_hand_before_its_handler_runs(run: Callable[..., Any], board: Scoreboard) -> None:
    seen: list[list[str]] = []

    async def main() -> None:
        def handler(w: http.ResponseWriter, r: http.Request) -> None:
            seen.append(site.in_hand())

        async with Site(handler, board) as site:
            await site.get("/now?a=1")
            await site.exchange(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPUT /2 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert site.in_hand() == []

    run(main())
    assert seen == [["GET /now?a=1"], ["GET /1"], ["PUT /2"]]


def test_requests_that_wait_are_in_hand_until_they_are_done(
    run: Callable[..., Any], board: Scoreboard
) -> None:
    async def main() -> None:
        gates = {name: asyncio.Event() for name in "abc"}

        async def handler(w: http.ResponseWriter, r: http.Request) -> None:
            gate = gates.get(r.url.path[1:])
            if gate is not None:
                await gate.wait()

        async with Site(handler, board) as site:
            tasks = {}
            for count, name in enumerate("abc", 1):
                tasks[name] = asyncio.create_task(site.get(f"/{name}"))
                await site.counts(active=count)
            await site.get("/at/once")
            assert site.in_hand() == ["GET /a", "GET /b", "GET /c"]
            assert all(0 <= time.monotonic() - each.started < 5 for each in board.in_flight(1))
            gates["b"].set()
            await tasks["b"]
            assert site.in_hand() == ["GET /a", "GET /c"]
            gates["a"].set()
            gates["c"].set()
            await asyncio.gather(*tasks.values())
            assert site.in_hand() == []
            assert site.server.active_connections == 0

    run(main())


def test_more_requests_than_records(run: Callable[..., Any], board: Scoreboard) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def handler(w: http.ResponseWriter, r: http.Request) -> None:
            await gate.wait()

        async with Site(handler, board) as site:
            tasks = [asyncio.create_task(site.get(f"/{number}")) for number in range(RECORDS + 10)]
            await site.counts(active=RECORDS + 10)
            assert len(site.in_hand()) == RECORDS - 1
            gate.set()
            await asyncio.gather(*tasks)
            assert site.in_hand() == []
            assert site.numbers.requests == RECORDS + 10
            gate.clear()
            task = asyncio.create_task(site.get("/again"))
            await site.counts(active=1)
            assert site.in_hand() == ["GET /again"]
            gate.set()
            await task

    run(main())


@pytest.mark.parametrize(
    "path", ["/fails", "/fails/late", "/aborts", "/teapot", "/takes/over", "/status/204"]
)
def test_nothing_stays_in_hand(run: Callable[..., Any], board: Scoreboard, path: str) -> None:
    async def main() -> None:
        async with Site(mux(), board) as site:
            await site.get(path)
            await site.counts(requests=1, active=0)
            assert site.in_hand() == []
            assert repr(site.numbers.in_flight) == f"<InFlight {RECORDS - 1} records free>"

    run(main())


def test_a_server_without_records_notes_nothing(run: Callable[..., Any]) -> None:
    async def main() -> None:
        server = http.Server("", mux())
        sock = http.server.server.listen("127.0.0.1:0")
        server.start([sock])
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(b"GET /sleep/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert server.numbers.by_status() == [0, 0, 1, 0, 0, 0]
        assert server.numbers.by_duration() == [1]
        assert server.numbers.in_flight is None
        await server.shutdown(1)
        sock.close()

    run(main())


# --- into the seat --------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 10**9

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def place(board: Scoreboard) -> Iterator[Place]:
    ours, theirs = Control.pair()
    board.assign(1, slot=4, generation=2, started=1)
    place = Place.__new__(Place)  # a place may get more fields
    for name, value in (("slot", 4), ("seat", 1), ("generation", 2), ("control", theirs), ("board", board)):
        object.__setattr__(place, name, value)
    yield place
    ours.close()
    theirs.close()


@pytest.fixture(autouse=True)
def own_metrics(monkeypatch: pytest.MonkeyPatch) -> http.metrics.Registry:
    registry = http.metrics.Registry()
    monkeypatch.setattr(http.metrics, "registry", registry)
    return registry


def test_the_tick_copies_everything(
    board: Scoreboard, place: Place, own_metrics: http.metrics.Registry
) -> None:
    jobs = own_metrics.gauge("jobs", "x")
    server = http.Server("", mux())
    seat = Seat(place)
    recorder = Recorder(seat, server, board)
    numbers = server.numbers
    for status, seconds in ((200, 0.00005), (204, 0.05), (404, 0.05), (0, 100.0), (101, 0.05)):
        numbers.answered(status, seconds)
    numbers.received, numbers.sent, numbers.exceptions, numbers.refused = 1, 2, 3, 4
    jobs.set(6)
    recorder.tick()
    words = board.snapshot(1)
    assert words[Word.STATUS_1XX : Word.STATUS_OTHER + 1] == [1, 2, 0, 1, 0, 1]
    assert words[Word.REQUESTS] == 5 == sum(words[Word.BUCKET : Word.BUCKET + BUCKETS])
    assert words[Word.BUCKET] == 1
    assert words[Word.BUCKET + LATENCY_BOUNDS.index(0.06)] == 3
    assert words[Word.BUCKET + BUCKETS - 1] == 1
    assert (words[Word.RECEIVED], words[Word.SENT], words[Word.EXCEPTIONS], words[Word.REFUSED]) == (
        1,
        2,
        3,
        4,
    )
    assert words[Word.IN_FLIGHT] == words[Word.ACTIVE] == 0
    assert words[Word.DURATION] == pytest.approx(100.15005e9)
    assert 1 << 20 < words[Word.RSS] < 1 << 34
    assert board.metrics(1).values[0] == 6
    assert board.row(1).tick > 0
    assert repr(recorder).startswith("<Recorder <Seat 1 booting 0 open>")


def test_lag_is_how_late_the_tick_is(board: Scoreboard, place: Place) -> None:
    clock = Clock()
    recorder = Recorder(Seat(place, clock=clock), http.Server(""), board, clock=clock)
    ms = 10**6
    recorder.tick()
    assert (board.row(1).lag, board.row(1).lag_max) == (0, 0)
    seen = []
    for late in (0, 30, -5, 700, 1):
        clock.now += (250 + late) * ms
        recorder.tick()
        seen.append((board.row(1).lag // ms, board.row(1).lag_max // ms))
    assert seen == [(0, 0), (30, 30), (0, 30), (700, 700), (1, 700)]
    for _ in range(2 * 40 + 4):  # two periods of ten seconds later it is forgotten
        clock.now += 250 * ms
        recorder.tick()
    assert (board.row(1).lag, board.row(1).lag_max) == (0, 0)
    clock.now += 3600 * 1000 * ms
    recorder.tick()
    assert board.row(1).lag_max == board.row(1).lag > 3599 * 1000 * ms


def test_the_client_pool_is_counted(run: Callable[..., Any], board: Scoreboard, place: Place) -> None:
    def words() -> dict[str, int]:
        recorder.tick()
        return {
            word.name: board.words[board.base(1) + word] for word in Word if word.name.startswith("CLIENT")
        }

    recorder = Recorder(Seat(place), http.Server(""), board)
    before = words()

    async def main() -> None:
        from prefork.http.client.transport import Transport

        transports = [Transport(), Transport()]
        async with Site(mux(), Scoreboard(2)) as site:
            base = f"http://127.0.0.1:{site.port}"
            url = f"{base}/text/3"
            for transport in transports:
                for _ in range(3):
                    response = await transport.round_trip(http.Request("GET", url))
                    assert await response.body.read() == b"xxx"
            now = words()
            assert now["CLIENT_REQUESTS"] - before["CLIENT_REQUESTS"] == 6
            assert now["CLIENT_DIALS"] - before["CLIENT_DIALS"] == 2
            assert now["CLIENT_REUSES"] - before["CLIENT_REUSES"] == 4
            assert now["CLIENT_IDLE"] - before["CLIENT_IDLE"] == 2
            slow = asyncio.create_task(transports[0].round_trip(http.Request("GET", f"{base}/sleep/50")))
            await site.counts(active=1)
            now = words()
            assert now["CLIENT_ACTIVE"] - before["CLIENT_ACTIVE"] == 1
            assert board.row(1).active == board.row(1).in_flight == 0  # of another server
            await (await slow).body.read()
            await transports[0].close()
            # What is gone has been done all the same.
            await transports.pop().close()
            now = words()
            assert now["CLIENT_REQUESTS"] - before["CLIENT_REQUESTS"] == 7
            assert now["CLIENT_IDLE"] == before["CLIENT_IDLE"]
            assert now["CLIENT_DIAL_ERRORS"] == before["CLIENT_DIAL_ERRORS"]
            with pytest.raises(http.HTTPError):
                await transports[0].round_trip(http.Request("GET", "http://127.0.0.1:1/"))
            assert words()["CLIENT_DIAL_ERRORS"] == before["CLIENT_DIAL_ERRORS"] + 1
            await transports[0].close()

    awaited: Awaitable[None] = main()
    run(awaited)
    assert words()["CLIENT_REQUESTS"] - before["CLIENT_REQUESTS"] == 8
