"""`prefork run --admin`: the numbers of real workers that serve, hang, die and are replaced."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

APP = """
import asyncio, os, time
from prefork import http

mux = http.ServeMux()
pings = http.metrics.counter("pings_total", "Pings.", "kind")
size = http.metrics.gauge("workers_born", "One each.")
size.set(1)

@mux.handle_func("/ping")
def ping(w, r):
    pings.labels("usual").inc()
    http.metrics.histogram("later_seconds", "Made while it serves.").observe(0.2)
    w.write("pong")

@mux.handle_func("/pid")
def pid(w, r):
    w.write(str(os.getpid()))

@mux.handle_func("/fails")
def fails(w, r):
    raise ValueError("a fault of the application")

@mux.handle_func("/hang")
def hang(w, r):
    while True:
        time.sleep(0.01)

@mux.handle_func("/hang/later")
async def hang_later(w, r):
    await asyncio.sleep(0.01)
    while True:
        pass

@mux.handle_func("/slow/{ms}")
async def slow(w, r):
    await asyncio.sleep(int(r.path_value("ms")) / 1000)
"""


@pytest.fixture
def admin_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def start(prefork_process: Any, admin_port: int) -> Callable[..., Any]:
    def start(*arguments: str) -> Any:
        return prefork_process(APP, "--admin", f"127.0.0.1:{admin_port}", *arguments)

    return start


@pytest.fixture
def numbers(connect: Any, admin_port: int) -> Callable[[], dict[str, float]]:
    def numbers() -> dict[str, float]:
        """The samples of /metrics, by name and labels."""
        answer = connect(admin_port).get("/metrics", "Connection: close")
        assert answer.status == 200
        lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    return numbers


def answered(samples: dict[str, float]) -> float:
    return sum(value for name, value in samples.items() if name.startswith("prefork_requests_total"))


def test_the_numbers_are_those_of_the_clients(start: Any, numbers: Any, until: Any) -> None:
    server = start("-w", "3")
    for _ in range(40):
        client = server.connect()
        assert client.get("/ping").body == b"pong"
        client.close()
    client = server.connect()
    for _ in range(10):
        client.get("/ping")
    assert client.get("/none").status == 404
    assert client.get("/fails").status == 500
    with contextlib.closing(server.connect()) as broken:
        assert broken.send("nonsense\r\n\r\n").response().status == 400
    samples = until(lambda: samples if answered(samples := numbers()) == 52 else None, 5, "52 requests")
    assert samples['prefork_requests_total{code_class="2xx"}'] == 50
    assert samples['prefork_requests_total{code_class="4xx"}'] == 1
    assert samples['prefork_requests_total{code_class="5xx"}'] == 1
    assert samples["prefork_requests_refused_total"] == 1
    assert samples["prefork_handler_exceptions_total"] == 1
    assert samples["prefork_request_duration_seconds_count"] == 52
    assert samples["prefork_connections_accepted_total"] == 42
    assert samples['prefork_workers{state="ready"}'] == 3
    assert samples["prefork_generation"] == 1
    # The application's: added up over the workers, also what is made while they serve.
    assert samples['pings_total{kind="usual"}'] == 50
    assert samples["workers_born"] == 3
    assert samples["later_seconds_count"] == 50
    assert samples["later_seconds_sum"] == pytest.approx(10.0)


def test_all_workers_hang_and_the_master_answers(
    start: Any, numbers: Any, until: Any, connect: Any, admin_port: int
) -> None:
    server = start("-w", "2", "--worker-timeout", "none")
    stuck: list[Any] = []

    def hanging() -> int:
        """Hang another worker; how many hang, as the numbers tell."""
        if len(stuck) < 40:
            stuck.append(server.connect().send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n"))
        return sum(value > 0.5 for name, value in numbers().items() if "loop_lag_seconds" in name)

    until(lambda: hanging() == 2, 15, "both workers to hang")
    for path in ("/livez", "/readyz", "/metrics"):
        took = []
        for _ in range(5):
            begin = time.monotonic()
            assert connect(admin_port).get(path).status == 200
            took.append(time.monotonic() - begin)
        assert min(took) < 0.05
    for worker in server.workers():
        os.kill(worker, signal.SIGKILL)


def test_no_counter_goes_back_when_workers_are_killed(start: Any, numbers: Any, until: Any) -> None:
    server = start("-w", "3")
    done = threading.Event()
    served = [0]

    def load() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError, AssertionError):
                client = server.connect(timeout=5)
                for _ in range(20):
                    if client.get("/ping").status == 200:
                        served[0] += 1
                client.close()

    def counters() -> dict[str, float]:
        kinds = ("_total", "_bucket", "_sum", "_count")
        return {name: value for name, value in numbers().items() if name.partition("{")[0].endswith(kinds)}

    thread = threading.Thread(target=load)
    thread.start()
    try:
        before = counters()
        for _ in range(6):
            victim = until(server.workers)[0]
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            deadline = time.monotonic() + 0.4
            while time.monotonic() < deadline:
                now = counters()
                assert all(now[name] >= value for name, value in before.items())
                before = now
    finally:
        done.set()
        thread.join()
    # What a worker had answered since its last tick dies with it.
    assert answered(numbers()) >= served[0] * 0.5
    assert sum(value for name, value in numbers().items() if "restarts_total" in name) >= 1


def test_a_worker_that_leaves_in_good_order_takes_nothing_with_it(
    start: Any, numbers: Any, until: Any
) -> None:
    server = start("-w", "2")
    total = 0
    for _ in range(3):
        pids = set(server.workers())
        for _ in range(30):
            assert server.get("/ping").status == 200
            total += 1
        server.signal(signal.SIGHUP)
        until(lambda pids=pids: not pids & set(server.workers()), 20, "all workers to be replaced")
        until(lambda: numbers()['prefork_workers{state="ready"}'] == 2, 10)
        samples = until(lambda total=total: s if answered(s := numbers()) == total else None, 5)
        assert samples['pings_total{kind="usual"}'] == total
        assert samples["workers_born"] == 2
    assert numbers()["prefork_generation"] == 4


def test_not_ready_any_more_while_it_drains(start: Any, connect: Any, admin_port: int, until: Any) -> None:
    server = start("-w", "2", "--drain-delay", "1s")
    assert connect(admin_port).get("/readyz").status == 200
    busy = server.connect().send("GET /slow/1500 HTTP/1.1\r\nHost: a\r\n\r\n")
    server.signal(signal.SIGTERM)
    until(lambda: connect(admin_port).get("/readyz").status == 503, 5)
    assert server.get("/ping").status == 200  # it still serves: the balancer has not looked yet
    assert connect(admin_port).get("/livez").status == 200
    assert busy.response().status == 200
    assert server.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        connect(admin_port)


def test_an_admin_address_that_cannot_be_had_is_told_at_once(prefork_command: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = prefork_command("run", "app:mux", "-b", "127.0.0.1:0", "--admin", f"127.0.0.1:{port}", app=APP)
    assert done.code == 6
    assert re.search(rf"cannot listen on 127.0.0.1:{port}: the address is in use", done.stderr)


@pytest.mark.parametrize("path", ["/hang", "/hang/later"])
def test_what_a_worker_that_is_killed_had_in_hand_is_in_the_log(start: Any, until: Any, path: str) -> None:
    server = start("-w", "1", "--worker-timeout", "1s")
    server.connect().send(f"GET {path}?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    server.wait_for_log(rf"hangs .*GET {path}\?x=1", 15)
    until(lambda: server.get("/ping").status == 200, 15)
