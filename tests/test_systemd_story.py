"""What the service manager hears of a whole `prefork run`: a fake one listens."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HOST = "127.0.75.1"  # nobody else's, so that a port that was free a moment ago still is

APP = """
import asyncio, json, os
from prefork import http

mux = http.ServeMux()

@mux.handle_func("/environ")
def environ(w, r):
    names = [name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_", "FDSTORE"))]
    w.write(json.dumps(names))

@mux.handle_func("/ping")
async def ping(w, r):
    await asyncio.sleep(0.01)
    w.write("pong")
"""


@dataclass
class Manager:
    """Plays systemd. fds: what is in its descriptor store, by name."""

    sock: socket.socket
    path: str
    heard: list[str] = field(default_factory=list)
    fds: dict[str, int] = field(default_factory=dict)

    def hear(self, timeout: float = 20.0) -> str:
        """The next datagram. TimeoutError when there is none."""
        self.sock.settimeout(timeout)
        data, fds, _, _ = socket.recv_fds(self.sock, 65536, 4)
        text = data.decode()
        if "FDSTORE=1" in text:
            name = re.search(r"^FDNAME=(.*)$", text, re.MULTILINE)
            assert name is not None
            assert len(fds) == 1
            if name[1] in self.fds:  # systemd keeps the first of two that are the same
                assert os.fstat(self.fds[name[1]]).st_ino == os.fstat(fds[0]).st_ino
                os.close(fds.pop())
            else:
                self.fds[name[1]] = fds.pop()
        for name in re.findall(r"^FDSTOREREMOVE=1\nFDNAME=(.*)$", text):
            os.close(self.fds.pop(name))
        self.heard.append(text)
        return text

    def until(self, wanted: str, timeout: float = 20.0) -> list[str]:
        """What is said up to and with `wanted`, but for the watchdog's. AssertionError: it never was."""
        found = []
        deadline = time.monotonic() + timeout
        try:
            while wanted not in found[-1:]:
                text = self.hear(max(0.01, deadline - time.monotonic()))
                if text != "WATCHDOG=1":
                    found.append(re.sub(r"MONOTONIC_USEC=[0-9]+", "MONOTONIC_USEC=now", text))
        except TimeoutError:
            raise AssertionError(f"waited for {wanted!r} in vain, heard {found}") from None
        return found

    def rest(self) -> list[str]:
        """What has been said by now, but for the watchdog's."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.hear(0.0))
        return [text for text in found if text != "WATCHDOG=1"]


@pytest.fixture
def manager(tmp_path):
    path = str(tmp_path / "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        one = Manager(sock, path)
        yield one
        for fd in one.fds.values():
            os.close(fd)


def test_start_loss_and_stop(manager, prefork_process):
    environ = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "1000000", "FDSTORE": "16"}
    server = prefork_process(APP, "-w", "2", env=environ)
    # More than half of the workers make the service ready.
    assert manager.until("STATUS=2/2 workers ready") == [
        "STATUS=0/2 workers ready",
        "STATUS=1/2 workers ready",
        "READY=1",
        "STATUS=2/2 workers ready",
    ]
    assert server.get("/ping").body == b"pong"
    assert server.get("/environ").body == b"[]"
    os.kill(server.workers()[0], signal.SIGKILL)
    assert manager.until("STATUS=2/2 workers ready") == [
        "STATUS=1/2 workers ready",
        "STATUS=2/2 workers ready",
    ]
    assert server.stop() == 0
    assert manager.rest()[:2] == ["STOPPING=1", "STATUS=draining, 2 workers left"]
    assert sum("READY=1" in text for text in manager.heard) == 1
    assert manager.fds == {}  # port 0 is not for keeping


def test_a_failed_start_is_never_ready(manager, prefork_command):
    done = prefork_command(
        "run",
        "app:mux",
        "-b",
        "127.0.0.1:0",
        app="raise RuntimeError('no')",
        env={"NOTIFY_SOCKET": manager.path},
    )
    assert done.code == 4
    said = manager.rest()
    assert not [text for text in said if "READY" in text]
    assert "STOPPING=1" in said


def test_reloads(manager, prefork_process):
    server = prefork_process(APP, "-w", "2", env={"NOTIFY_SOCKET": manager.path})
    manager.until("STATUS=2/2 workers ready")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    server.signal(signal.SIGHUP)
    said = manager.until("STATUS=2/2 workers ready, generation 2")
    assert said[0] == "RELOADING=1\nMONOTONIC_USEC=now"
    (ready,) = [text for text in said if text.startswith("READY=1")]
    assert "2 workers of generation 2" in ready
    (usec,) = [re.search(r"MONOTONIC_USEC=([0-9]+)", text) for text in manager.heard if "RELOADING" in text]
    assert usec is not None
    assert before <= int(usec[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    # One that fails is over as well, and says so.
    (server.directory / "app.py").write_text("1 / 0")
    server.signal(signal.SIGHUP)
    said = []
    while not said or not said[-1].startswith("READY=1"):
        said.append(manager.hear())
    assert said[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert re.search(r"^STATUS=.+", said[-1], re.MULTILINE)
    assert server.get("/ping").body == b"pong"
    # A stop overtakes a reload: nothing is ready any more after it.
    server.signal(signal.SIGHUP)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    said = manager.rest()
    assert not [text for text in said[said.index("STOPPING=1") :] if "READY" in text or "RELOADING" in text]


def test_the_watchdog_hears_of_workers_that_all_hang(manager, prefork_process):
    server = prefork_process(
        APP,
        "-w",
        "2",
        "--worker-timeout",
        "none",
        env={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "600000"},
    )
    manager.until("STATUS=2/2 workers ready")

    def heartbeat(timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        with contextlib.suppress(TimeoutError):
            while (left := deadline - time.monotonic()) > 0:
                if manager.hear(left) == "WATCHDOG=1":
                    return True
        return False

    one, two = server.workers()
    assert heartbeat(5.0)
    try:
        os.kill(one, signal.SIGSTOP)
        for _ in range(3):
            assert heartbeat(5.0)  # one is enough
        os.kill(two, signal.SIGSTOP)
        stopped = time.monotonic()
        while heartbeat(2.0):
            assert time.monotonic() - stopped < 10.0
    finally:
        for pid in (one, two):
            os.kill(pid, signal.SIGCONT)
    assert heartbeat(5.0)
    assert server.stop() == 0


# --- more time ------------------------------------------------------------------------------


def hurried(*arguments: str) -> list[str]:
    """A `prefork` that asks for more time after a moment, not after five seconds."""
    code = (
        "import sys; from prefork.master import readiness; from prefork import cli; "
        "readiness.EXTEND_EVERY = 0.2; sys.exit(cli.main())"
    )
    return [sys.executable, "-c", code, *arguments]


@contextlib.contextmanager
def started(command: list[str], directory: Path, environ: dict[str, str], fds: tuple[int, ...] = ()):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFORK_")}
    with open(directory / "log", "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=inherited | environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=fds,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_time_is_asked_for_while_workers_boot_and_requests_end(manager, tmp_path, until):
    slow = APP.replace("await asyncio.sleep(0.01)", "open('busy', 'x').close(); await asyncio.sleep(0.6)")
    (tmp_path / "app.py").write_text("import time; time.sleep(1)\n" + slow)
    command = hurried("run", "app:mux", "-b", f"unix:{tmp_path}/app.sock")
    with started(command, tmp_path, {"NOTIFY_SOCKET": manager.path}) as process:
        said = manager.until("STATUS=1/1 workers ready")
        asked = [text for text in said if text.startswith("EXTEND_TIMEOUT_USEC=")]
        assert asked == ["EXTEND_TIMEOUT_USEC=15000000"] * len(asked)
        assert len(asked) >= 3
        assert said.index(asked[0]) < said.index("READY=1")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(f"{tmp_path}/app.sock")
            client.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            until((tmp_path / "busy").exists, what="the request in flight")
            process.send_signal(signal.SIGTERM)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        assert process.wait(20) == 0
        said = manager.rest()
        assert "EXTEND_TIMEOUT_USEC=14" in "\n".join(said[said.index("STOPPING=1") :])


# --- the descriptor store -------------------------------------------------------------------


class Newcomers(contextlib.AbstractContextManager["Newcomers"]):
    """Clients that come all the time, each with a connection of its own. Nothing is tried again."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._come) for _ in range(4)]

    def __enter__(self) -> Newcomers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _come(self) -> None:
        while not self._over.wait(0.01):
            try:
                with socket.create_connection((HOST, self._port), timeout=30) as sock:
                    sock.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answer = b""
                    while data := sock.recv(65536):
                        answer += data
                assert answer.endswith(b"pong"), answer
                self.answered += 1
            except (OSError, AssertionError) as exc:
                self.failures.append(repr(exc))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["restart", "crash"])
def test_a_restart_refuses_nobody(manager, tmp_path, until, end):
    (tmp_path / "app.py").write_text(APP)
    with socket.create_server((HOST, 0)) as sock:
        port = sock.getsockname()[1]
    name = f"listen-{HOST}_{port}"
    run = [sys.executable, "-m", "prefork", "run", "app:mux", "-w", "2", "-b", f"{HOST}:{port}"]
    environ = {"NOTIFY_SOCKET": manager.path, "FDSTORE": "16"}
    with started(run, tmp_path, environ) as process:
        said = manager.until("STATUS=2/2 workers ready")
        assert said[0] == f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0"
        with Newcomers(port) as load:
            until(lambda: load.answered > 20, what="the first answers")
            process.send_signal(end)
            assert process.wait(20) == (0 if end == signal.SIGTERM else -signal.SIGKILL)
            manager.rest()
            # systemd passes what it has kept, as bash does here: from descriptor 3 on, with its own pid.
            passed = (
                f"exec 3<&{manager.fds[name]}; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name} exec "
                + '"$@"'
            )
            again = ["bash", "-c", passed, "-", *run]
            with started(again, tmp_path, environ, (manager.fds[name],)) as process:
                manager.until("READY=1")
                before = load.answered
                until(lambda: load.answered > before + 50, what="answers of the next run")
                load.__exit__()
                assert load.failures == []
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
    assert f"taking over {HOST}:{port} from the last run" in (tmp_path / "log").read_text()


def test_a_socket_that_is_not_wanted_any_more_is_forgotten(manager, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    with socket.create_server((HOST, 0)) as sock:
        manager.fds["listen-x_1"] = os.dup(sock.fileno())
    passed = (
        f"exec 3<&{manager.fds['listen-x_1']}; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=listen-x_1 exec "
    )
    run = [sys.executable, "-m", "prefork", "run", "app:mux", "-b", f"unix:{tmp_path}/app.sock"]
    command = ["bash", "-c", passed + '"$@"', "-", *run]
    with started(command, tmp_path, {"NOTIFY_SOCKET": manager.path}, (manager.fds["listen-x_1"],)) as process:
        assert manager.until("READY=1")[0] == "FDSTOREREMOVE=1\nFDNAME=listen-x_1"
        assert manager.fds == {}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
