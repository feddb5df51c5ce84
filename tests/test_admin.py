"""The admin listener, on a loop of ten lines: its answers, its HTTP, and what strangers cannot do to it."""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import os
import random
import re
import resource
import selectors
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from prefork.master import admin as admin_module
from prefork.master.admin import MAX_CLIENTS, MAX_HEAD, AdminService
from prefork.master.sockets import BindError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class MiniLoop:
    """The master's loop, as its guests see it, in a thread. `late`: the longest turn, in seconds."""

    board: Any = None

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._ids = itertools.count()
        self._woken, self._waker = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, lambda ready: self._woken.recv(1))
        self._stop = False
        self.late = 0.0
        self.turns = 0
        self.fault: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def register(self, sock: socket.socket, events: int, callback: Callable[[int], object]) -> None:
        self._selector.register(sock, events, callback)

    def modify(self, sock: socket.socket, events: int) -> None:
        self._selector.modify(sock, events, self._selector.get_key(sock).data)

    def unregister(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def call_at(self, when: float, callback: Callable[[], object]) -> Callable[[], None]:
        heapq.heappush(self._timers, (when, next(self._ids), callback))
        return lambda: None

    def _run(self) -> None:
        try:
            while not self._stop:
                timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
                ready = self._selector.select(timeout)
                begin = time.monotonic()
                self.turns += 1
                for key, events in ready:
                    key.data(events)
                now = time.monotonic()
                while self._timers and self._timers[0][0] <= now:
                    heapq.heappop(self._timers)[2]()
                self.late = max(self.late, time.monotonic() - begin)
        except BaseException as error:  # what a guest must never do
            self.fault = error

    def stop(self, service: AdminService) -> None:
        self._stop = True
        self._waker.send(b"x")
        self.thread.join()
        self._selector.close()
        self._woken.close()
        self._waker.close()
        service.close()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Admin:
    """A service that runs, and what it is asked for."""

    def __init__(self, addr: str = "127.0.0.1:0") -> None:
        self.ready: Any = (True, "3 workers are ready")
        self.text: Any = "a_metric 1\n"
        self.asked: list[bool] = []
        self.service = AdminService(addr, ready=self._ready, metrics=self._metrics)
        self.loop = MiniLoop()
        self.service.attach(self.loop)
        self.loop.thread.start()

    def _ready(self) -> tuple[bool, str]:
        if isinstance(self.ready, Exception):
            raise self.ready
        return self.ready  # type: ignore[no-any-return]

    def _metrics(self, openmetrics: bool) -> str:
        self.asked.append(openmetrics)
        return self.text  # type: ignore[no-any-return]

    @property
    def port(self) -> int:
        return int(self.service.url.rpartition(":")[2])


@pytest.fixture
def admin() -> Iterator[Admin]:
    admin = Admin()
    yield admin
    admin.loop.stop(admin.service)
    assert admin.loop.fault is None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_module, "TIMEOUT", 0.2)
    monkeypatch.setattr(admin_module, "LINGER", 0.1)


GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


# --- what it answers ------------------------------------------------------------------------


def test_livez(admin: Admin, connect: Any) -> None:
    answer = connect(admin.port).get("/livez")
    assert (answer.status, answer.body) == (200, b"ok\n")


def test_readyz(admin: Admin, connect: Any) -> None:
    client = connect(admin.port)
    answer = client.get("/readyz")
    assert (answer.status, answer.reason, answer.body) == (200, "OK", b"3 workers are ready\n")
    admin.ready = (False, "draining")
    answer = client.get("/readyz")
    assert (answer.status, answer.reason, answer.body) == (503, "Service Unavailable", b"draining\n")


def test_metrics(admin: Admin, connect: Any) -> None:
    client = connect(admin.port)
    answer = client.get("/metrics?x=1")
    assert (answer.status, answer.body) == (200, b"a_metric 1\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    answer = client.get("/metrics", f"Accept: {prometheus}")
    assert answer.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    client.get("/metrics", "Accept: application/openmetrics-text; q=0, */*")
    assert admin.asked == [False, True, False]


def test_the_head_of_an_answer(admin: Admin, connect: Any) -> None:
    answer = connect(admin.port).get("/livez")
    assert list(answer.headers) == ["date", "content-type", "content-length", "cache-control"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    then = time.strptime(answer.headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
    assert abs(time.time() - (time.mktime(then) - time.timezone)) < 3


def test_head_is_get_without_a_body(admin: Admin, connect: Any) -> None:
    client = connect(admin.port)
    for path, length in (("/livez", 3), ("/metrics", 11), ("/nothing", None)):
        client.send(f"HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = client.response("HEAD")
        assert answer.body == b""
        assert length in (None, int(answer.headers["content-length"]))
    assert client.get("/livez").body == b"ok\n"


def test_what_is_not_there(admin: Admin, connect: Any) -> None:
    answer = connect(admin.port).get("/")
    assert (answer.status, answer.body) == (
        404,
        b"there is nothing here; there are /livez, /readyz, /metrics\n",
    )
    for target in ("/livez/", "/LIVEZ", "//livez", "/livez%20", "/../livez", "*"):
        assert connect(admin.port).get(target).status == 404


def test_other_methods(admin: Admin, connect: Any) -> None:
    client = connect(admin.port)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "get", "X"):
        client.send(f"{method} /readyz HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        answer = client.response()
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_fault_in_what_is_asked_for(admin: Admin, connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    admin.ready = ZeroDivisionError("oops")
    client = connect(admin.port)
    answer = client.get("/readyz")
    assert (answer.status, answer.body) == (500, b"internal error; the log has more\n")
    assert "oops" in caplog.text
    admin.ready = "neither"
    assert client.get("/readyz").status == 500
    assert client.get("/livez").status == 200


# --- its HTTP -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /livez\r\n\r\n", 400),
        (b"GET  /livez HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (b"GET /liv\x7fez HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\nHost: a\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200 + b"\r\n\r\n", 400),
    ],
)
def test_what_is_refused(admin: Admin, connect: Any, request_bytes: bytes, status: int) -> None:
    client = connect(admin.port).send(request_bytes + GET)
    answer = client.response()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert client.rest() == b""  # nothing behind it is taken for a request
    assert admin.loop.fault is None


def test_targets_of_other_forms(admin: Admin, connect: Any) -> None:
    client = connect(admin.port)
    assert client.get("http://any.where:80/livez").status == 200
    assert client.get("HTTP://a/metrics?x=http://b/").status == 200
    assert client.get("/x?y=http://a/livez").status == 404
    assert client.get("http://a").status == 404


def test_connections_live_on(admin: Admin, connect: Any) -> None:
    client = connect(admin.port)
    for _ in range(50):
        assert client.get("/livez").status == 200
    answer = client.get("/livez", "Connection: Foo, Close")
    assert answer.headers["connection"] == "close"
    assert client.rest() == b""


def test_http_1_0(admin: Admin, connect: Any) -> None:
    client = connect(admin.port).send("GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert client.response().headers["connection"] == "keep-alive"
    client.send("GET /livez HTTP/1.0\r\n\r\n")
    assert client.response().headers["connection"] == "close"
    assert client.rest() == b""


def test_byte_by_byte(admin: Admin, connect: Any) -> None:
    client = connect(admin.port)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in GET:
        client.send(bytes([byte]))
    assert client.response().status == 200


def test_pipelined_requests_are_answered_in_order(admin: Admin, connect: Any) -> None:
    paths = ["/livez", "/none", "/metrics", "/readyz"] * 100
    data = "".join([f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n" for path in paths])
    client = connect(admin.port).send(data)
    found = [client.response().status for _ in paths]
    assert found == [200, 404, 200, 200] * 100
    assert admin.loop.turns > 300  # the loop had its turn between them


def test_a_long_answer_to_a_client_that_takes_its_time(admin: Admin, connect: Any) -> None:
    admin.text = "x" * (12 << 20)  # more than the kernel keeps for it
    client = connect(admin.port)
    client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
    assert connect(admin.port).get("/livez").status == 200  # meanwhile
    assert [len(client.response().body) for _ in range(2)] == [len(admin.text) + 1, 3]


def test_a_client_that_leaves_in_the_middle(admin: Admin, connect: Any, until: Any) -> None:
    admin.text = "x" * (8 << 20)
    for data in (b"", b"GET /liv", GET, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 3):
        connect(admin.port).send(data).close()
    reset = connect(admin.port).send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
    reset.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    reset.close()
    assert connect(admin.port).get("/livez").status == 200
    until(lambda: len(admin.service._clients) <= 1, what="the clients to be forgotten")


@pytest.mark.parametrize("seed", range(3))
def test_garbage_of_all_sorts(admin: Admin, connect: Any, seed: int) -> None:
    chance = random.Random(seed)
    pieces = [GET, b"\r\n", b"\r\n\r\n", b"GET ", b" HTTP/1.1", b"Host: a", b"\0", b"x" * 3000, b":", b" "]
    for _ in range(60):
        client = connect(admin.port)
        with contextlib.suppress(OSError):
            for _ in range(chance.randrange(1, 12)):
                client.send(chance.choice([*pieces, chance.randbytes(50)]))
        client.close()
    assert connect(admin.port).get("/livez").status == 200
    assert admin.loop.fault is None


# --- what strangers cannot do ---------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_nobody_keeps_a_place_for_ever(connect: Any) -> None:
    admin = Admin()
    try:
        idle = connect(admin.port)
        dripping = connect(admin.port).send(b"GET /livez HTTP/1.1\r\n")
        silent = connect(admin.port)
        assert silent.get("/livez").status == 200
        begin = time.monotonic()
        assert idle.rest() == b""
        assert silent.rest() == b""
        answer = dripping.response()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert dripping.rest() == b""
        assert time.monotonic() - begin < 3
        admin.text = "x" * (8 << 20)
        lazy = connect(admin.port)
        lazy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        deadline = time.monotonic() + 5
        while admin.service._clients:
            assert time.monotonic() < deadline, "a client that takes nothing is still here"
            time.sleep(0.01)
    finally:
        admin.loop.stop(admin.service)
    assert admin.loop.fault is None


@pytest.mark.usefixtures("quick")
def test_a_head_that_drips_has_its_time_all_the_same(connect: Any) -> None:
    admin = Admin()
    try:
        client = connect(admin.port)
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begin < 5:
                client.send(b"X")
                time.sleep(0.02)
        assert 0.15 < time.monotonic() - begin < 2
    finally:
        admin.loop.stop(admin.service)


def test_the_one_that_is_silent_for_longest_makes_room(admin: Admin, connect: Any) -> None:
    crowd = [connect(admin.port) for _ in range(MAX_CLIENTS)]
    assert crowd[0].get("/livez").status == 200  # not silent any more
    late = connect(admin.port)
    assert late.get("/readyz").status == 200
    assert crowd[1].rest() == b""
    assert crowd[0].get("/livez").status == 200
    assert crowd[2].get("/livez").status == 200
    assert len(admin.service._clients) == MAX_CLIENTS


def test_hundreds_of_slow_clients_harm_nobody(admin: Admin, connect: Any) -> None:
    slow = []
    for number in range(300):
        slow.append(connect(admin.port).send(b"GET /readyz HTTP/1.1\r\nHost: "))
        if not number % 20:
            begin = time.monotonic()
            assert connect(admin.port).get("/readyz").status == 200
            assert time.monotonic() - begin < 1
    assert len(admin.service._clients) <= MAX_CLIENTS
    assert admin.loop.late < 0.5


def test_a_client_that_asks_without_end_does_not_have_the_loop_for_itself(admin: Admin, connect: Any) -> None:
    greedy = connect(admin.port)
    greedy.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            greedy.socket.send(GET * 100)
    for _ in range(5):
        assert connect(admin.port).get("/livez").status == 200
    assert admin.loop.late < 0.5
    for client in admin.service._clients:
        assert len(client._in) <= MAX_HEAD


def test_out_of_descriptors(
    admin: Admin, connect: Any, caplog: pytest.LogCaptureFixture, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_module, "_PAUSE", 0.1)
    assert connect(admin.port).get("/livez").status == 200
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = socket.socket()
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        client.connect(("127.0.0.1", admin.port))
        until(lambda: "cannot accept" in caplog.text)
        turns = admin.loop.turns
        time.sleep(0.3)
        assert admin.loop.turns - turns < 20  # it does not spin
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with client:
        client.settimeout(5)
        client.sendall(GET)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    assert caplog.text.count("cannot accept") == 1


# --- its life -------------------------------------------------------------------------------


def make(addr: str) -> AdminService:
    return AdminService(addr, ready=lambda: (True, ""), metrics=lambda openmetrics: "")


def test_an_address_that_is_taken_is_an_error_at_the_start(admin: Admin) -> None:
    with pytest.raises(BindError, match=f"cannot listen on 127.0.0.1:{admin.port}: the address is in use"):
        make(f"127.0.0.1:{admin.port}")
    with pytest.raises(ValueError, match="has no port"):
        make("localhost")


def test_what_systemd_passes_is_the_applications(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    service = make("127.0.0.1:0")
    assert os.environ["LISTEN_FDS"] == "1"
    assert service.url.startswith("http://127.0.0.1:")
    assert repr(service) == f"<AdminService {service.url} 0 clients>"
    service.close()


def test_a_socket_file(tmp_path: Path, connect: Any) -> None:
    path = tmp_path / "admin.sock"
    admin = Admin(f"unix:{path}")
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert connect(str(path)).get("/livez").body == b"ok\n"
        # A forked child closes its copy, and nothing else.
        pid = os.fork()
        if pid == 0:
            admin.service.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert connect(str(path)).get("/livez").body == b"ok\n"
    finally:
        admin.loop.stop(admin.service)
    assert not path.exists()


def test_an_inherited_socket(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        admin = Admin(f"fd:{os.dup(sock.fileno())}")
        try:
            assert connect(sock.getsockname()[1]).get("/livez").status == 200
        finally:
            admin.loop.stop(admin.service)


def test_close_closes_everything(connect: Any) -> None:
    admin = Admin()
    clients = [connect(admin.port) for _ in range(5)]
    for client in clients:
        client.get("/livez")
    admin.loop.stop(admin.service)
    for client in clients:
        assert client.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        connect(admin.port)


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys\nimport prefork.master.admin, prefork.master.exposition\n"
        "bad = {'asyncio', 'uvloop', 'httptools', 'http', 'email', 'prefork.http'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_accept_of_one_that_is_gone(admin: Admin, monkeypatch: pytest.MonkeyPatch, connect: Any) -> None:
    """accept(2) may fail for reasons of that one connection: the next one is taken."""
    service = admin.service
    real = service._listener.sock

    class Once:
        failed = False

        def accept(self) -> Any:
            if not self.failed:
                self.failed = True
                raise OSError(errno.ECONNABORTED, "gone")
            return real.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(service._listener, "sock", Once())
    assert connect(admin.port).get("/livez").status == 200
    monkeypatch.undo()
    assert re.fullmatch(r"<AdminService http://127.0.0.1:\d+ \d clients>", repr(service))
