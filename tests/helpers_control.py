"""A loop for control sockets without a master behind it: a real selector, and answers that a test chooses."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import select
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 4711,
    "app": "app:mux",
    "phase": "serving",
    "uptime": 11520.5,
    "generation": 3,
    "bind": ["http://127.0.0.1:8000", "unix:/run/app.sock"],
    "workers_wanted": 2,
    "workers_ready": 2,
    "last_reload": {"ok": True, "text": "generation 3 serves", "at": 1700000000.0},
    "restarts": {"crash": 2, "max_requests": 1},
    "totals": {"requests": 123456, "connections": 4000},
    "workers": [
        {
            "worker": 1, "pid": 4712, "generation": 3, "state": "ready", "age": 61.0, "requests": 1000,
            "rate": 1204.4, "open": 17, "active": 3, "lag_ms": 0.4, "p50_ms": 1.25, "p90_ms": 12.5,
            "p99_ms": 1250.0, "rss": 84 << 20, "pss": 41 << 20,
            "doing": [
                {"request": "GET /report", "seconds": 41.0},
                {"request": "GET /\x1b[31mred", "seconds": 0.25},
                {"request": "POST /third", "seconds": 0.1},
            ],
        },
        {
            "worker": 2, "pid": 4713, "generation": 3, "state": "booting", "age": 0.5, "requests": 0,
            "rate": 0.0, "open": 0, "active": 0, "lag_ms": None, "p50_ms": None, "p90_ms": None,
            "p99_ms": None, "rss": 900 << 10, "pss": None, "doing": [],
        },
    ],
}  # fmt: skip


class FakeLoop:
    """A `Loop`. calls: what was asked for. waiters: the `done` of reloads that nobody has ended yet."""

    board: Any = None

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.timers: list[list[Any]] = []
        self.count = itertools.count()
        self.calls: list[tuple[Any, ...]] = []
        self.waiters: list[Callable[[bool, str], object]] = []
        self.status_is: Any = STATUS
        self.stacks_are: dict[int, str] | None = {1: "Thread 0x1:\n  File app.py, line 3 in handler"}
        self.failing = False

    # what the arbiter does

    def turn(self, timeout: float = 0.0) -> None:
        if self.timers:
            timeout = max(0.0, min(timeout, self.timers[0][0] - time.monotonic()))
        for key, events in self.selector.select(timeout):
            key.data(events)
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            callback = heapq.heappop(self.timers)[2]
            if callback is not None:
                callback()

    def until(self, condition: Callable[[], Any], timeout: float = 10.0) -> Any:
        """Turn until `condition()` is true, and return it."""
        deadline = time.monotonic() + timeout
        while not (result := condition()):
            assert time.monotonic() < deadline, f"waited in vain for {condition}"
            self.turn(0.01)
        return result

    def sockets(self) -> int:
        return len(self.selector.get_map())

    def restart(self) -> None:
        """Forget who is registered."""
        self.selector.close()
        self.selector = selectors.DefaultSelector()
        self.timers.clear()

    def close(self) -> None:
        self.selector.close()

    # what guests may ask for

    def register(self, sock: socket.socket, events: int, callback: Callable[[int], object]) -> None:
        assert not sock.getblocking()
        self.selector.register(sock, events, callback)

    def modify(self, sock: socket.socket, events: int) -> None:
        self.selector.modify(sock, events, self.selector.get_key(sock).data)

    def unregister(self, sock: socket.socket) -> None:
        self.selector.unregister(sock)

    def call_at(self, when: float, callback: Callable[[], object]) -> Callable[[], None]:
        timer = [when, next(self.count), callback]
        heapq.heappush(self.timers, timer)

        def cancel() -> None:
            timer[2] = None

        return cancel

    def status(self) -> dict[str, Any]:
        self.calls.append(("status",))
        if self.failing:
            raise KeyError("no such seat")
        result: dict[str, Any] = self.status_is
        return result

    def reload(self, done: Callable[[bool, str], object] | None, why: str) -> None:
        self.calls.append(("reload", done is not None, why))
        if done is not None:
            self.waiters.append(done)

    def scale(self, workers: int) -> str:
        self.calls.append(("scale", workers))
        if workers > 8:
            raise ValueError("this service can have at most 8 workers")
        return f"from 2 to {workers} workers"

    def stop(self, why: str, at_once: bool = False) -> None:
        self.calls.append(("stop", at_once, why))

    def stacks(self, worker: int | None, done: Callable[[dict[int, str]], object]) -> None:
        self.calls.append(("stacks", worker))
        if worker == 99:
            raise ValueError("there is no worker 99")
        if self.stacks_are is not None:
            done(self.stacks_are)


class Peer:
    """The other side: connected, not blocking, and patient while the loop turns."""

    def __init__(self, loop: FakeLoop, address: str) -> None:
        self.loop = loop
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.connect(address)
        self.buffer = b""
        self.ended = False

    def send(self, data: bytes) -> Peer:
        """As much as goes; the rest is lost."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self.sock.send(data)
        return self

    def look(self) -> None:
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        self.buffer += data
        self.ended = self.ended or not data

    def line(self, timeout: float = 10.0) -> dict[str, Any] | None:
        """The next answer; None if the connection ends instead."""

        def there() -> bool:
            self.look()
            return b"\n" in self.buffer or self.ended

        self.loop.until(there, timeout)
        line, _, self.buffer = self.buffer.partition(b"\n")
        if not line:
            return None
        answer = json.loads(line)
        assert type(answer["ok"]) is bool
        return dict(answer)

    def ask(self, **request: Any) -> dict[str, Any]:
        answer = self.send(json.dumps(request).encode() + b"\n").line()
        assert answer is not None
        return answer

    def gone(self, timeout: float = 10.0) -> bool:
        """Wait for the end of the connection."""

        def ended() -> bool:
            self.look()
            return self.ended

        self.loop.until(ended, timeout)
        return True

    def close(self) -> None:
        self.sock.close()


def as_user(uid: int, function: Callable[[], str], turn: Callable[[], object] | None = None) -> str:
    """What `function` returns, or raises, in a child that is this user. turn: called until it is done."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            text = function()
        except BaseException as exc:
            text = f"{type(exc).__name__}: {exc}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    while not select.select([read], [], [], 0.01)[0]:
        if turn is not None:
            turn()
    with open(read, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


@contextlib.contextmanager
def turning(loop: FakeLoop) -> Iterator[None]:
    """The loop turns in a thread meanwhile."""
    over = threading.Event()

    def turn() -> None:
        while not over.is_set():
            loop.turn(0.01)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
