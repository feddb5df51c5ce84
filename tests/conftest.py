"""What every test gets: a leak check, an event loop, raw sockets, a real `prefork run`.

The leak check runs around every test without being asked for. A test that leaves an
asyncio task pending, a file descriptor open or a child process alive fails, and the
message names what it left.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loops: the `run` fixture on uvloop and on asyncio")
    # The first uvloop of a process opens pipes for all of them and keeps them: no test's leak.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "run" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_loops"):
        metafunc.parametrize("run", ["uvloop", "asyncio"], indirect=True)


def until(condition: Callable[[], Any], timeout: float = 10.0, what: str = "") -> Any:
    """The first true value of `condition()`; fails the test when there is none in `timeout` seconds.

    For what another process does and cannot be awaited. It looks every 10 ms.
    """
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s in vain for {what or condition}")
        time.sleep(0.01)
    return result


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    """The function `until`, for test modules, which cannot import a conftest."""
    return until


# --- leaks ----------------------------------------------------------------------------------


def _open_files() -> dict[int, str]:
    files = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone again
            files[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return files


def _children() -> set[int]:
    pids: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            pids.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return pids


def _pending_tasks() -> set[asyncio.Task[Any]]:
    # Where asyncio keeps its tasks differs by version; asyncio.all_tasks() wants their loop.
    tasks: set[asyncio.Task[Any]] = set()
    for name in ("_all_tasks", "_scheduled_tasks", "_eager_tasks"):
        tasks.update(getattr(asyncio.tasks, name, ()))
    return {task for task in tasks if not task.done()}


def _describe_child(pid: int) -> str:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"{pid} ({command.strip() or 'zombie'})"
    return str(pid)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fails a test that leaves a task, a descriptor or a child process behind."""
    files, children, tasks = _open_files(), _children(), _pending_tasks()
    yield

    def leaked() -> list[str]:
        now = _open_files()
        found = [f"descriptor {fd} -> {now[fd]}" for fd in sorted(now) if files.get(fd) != now[fd]]
        found += [f"child process {_describe_child(pid)}" for pid in sorted(_children() - children)]
        found += [f"pending task {task!r}" for task in _pending_tasks() - tasks]
        return found

    if leaked():
        # Garbage that only a collection finds is no leak; a thread may be closing its files.
        gc.collect()
        deadline = time.monotonic() + 1.0
        while (found := leaked()) and time.monotonic() < deadline:
            time.sleep(0.01)
        if found:
            pytest.fail("the test leaves behind: " + "; ".join(found))


# --- event loops ----------------------------------------------------------------------------

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """`run(coro, timeout=30.0)`: runs a coroutine to its end and returns its result.

    The loop is uvloop's; with `@pytest.mark.both_loops` the test runs on uvloop and on asyncio.
    Several calls in one test share the loop. Tasks still pending when `coro` is done are a
    failure, as is a loop that logs an exception nobody has taken.
    """
    faults: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=LOOPS[getattr(request, "param", "uvloop")]) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: faults.append(context))

        def call(coro: Coroutine[Any, Any, Any], timeout: float = 30.0) -> Any:
            async def bounded() -> Any:
                async with asyncio.timeout(timeout):
                    result = await coro
                # Callbacks that are due already may finish what looks pending.
                for _ in range(3):
                    await asyncio.sleep(0)
                left = asyncio.all_tasks() - {asyncio.current_task()}
                assert not left, f"tasks left pending: {left}"
                return result

            return runner.run(bounded())

        yield call
    assert not faults, f"the event loop reports: {faults}"


# --- raw sockets ----------------------------------------------------------------------------


@dataclass(slots=True)
class RawResponse:
    """A response as it came over the wire. headers: names in lower case, the last one of a name."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes
    head: bytes


class RawClient:
    """A blocking socket and just enough HTTP to look at the bytes of answers.

    Every read has a deadline of `timeout` seconds; socket.timeout fails the test.
    """

    def __init__(self, address: tuple[str, int] | str, timeout: float = 10.0) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        if isinstance(address, tuple) and ":" in address[0]:
            family = socket.AF_INET6
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.buffer = b""
        try:
            self.socket.settimeout(timeout)
            self.socket.connect(address)
        except BaseException:
            self.socket.close()
            raise

    def send(self, data: bytes | str) -> RawClient:
        """Send all of `data`; a str is sent as Latin-1. Returns self, for chaining."""
        self.socket.sendall(data.encode("latin-1") if isinstance(data, str) else data)
        return self

    def get(self, target: str = "/", *headers: str) -> RawResponse:
        """Send a GET on this connection and read the answer."""
        self.send("\r\n".join([f"GET {target} HTTP/1.1", "Host: test", *headers, "", ""]))
        return self.response()

    def _fill(self) -> bool:
        data = self.socket.recv(65536)
        self.buffer += data
        return bool(data)

    def until(self, mark: bytes) -> bytes:
        """What comes up to and with `mark`. AssertionError if the connection ends before it."""
        while mark not in self.buffer:
            assert self._fill(), f"connection closed before {mark!r}; got {self.buffer!r}"
        taken, _, rest = self.buffer.partition(mark)
        self.buffer = rest
        return taken + mark

    def exactly(self, size: int) -> bytes:
        """The next `size` bytes. AssertionError if the connection ends before."""
        while len(self.buffer) < size:
            assert self._fill(), f"connection closed after {len(self.buffer)} of {size} bytes"
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while self._fill():
            pass
        taken, self.buffer = self.buffer, b""
        return taken

    def closed(self) -> bool:
        """Wait for the peer to close. False if it sends something instead."""
        return not self.buffer and not self._fill()

    def response(self, method: str = "GET") -> RawResponse:
        """The next final response (1xx ones are skipped) to a request with `method`."""
        head = self.until(b"\r\n\r\n")
        line, *fields = head[:-4].decode("latin-1").split("\r\n")
        _, status, reason = (line + " ").split(" ", 2)
        if status.startswith("1") and status != "101":
            return self.response(method)
        headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
        if method == "HEAD" or status in ("204", "304"):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.until(b"\r\n").split(b";")[0], 16):
                body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            while self.until(b"\r\n") != b"\r\n":
                pass
        elif "content-length" in headers:
            body = self.exactly(int(headers["content-length"]))
        else:
            body = self.rest()
        return RawResponse(int(status), reason.strip(), headers, body, head)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., RawClient]]:
    """`connect(port)`, `connect((host, port))`, `connect("/path.sock")`: a RawClient, closed for you."""
    with contextlib.ExitStack() as stack:

        def make(address: int | tuple[str, int] | str, timeout: float = 10.0) -> RawClient:
            client = RawClient(("127.0.0.1", address) if isinstance(address, int) else address, timeout)
            stack.callback(client.close)
            return client

        yield make


# --- prefork as a process -------------------------------------------------------------------


@dataclass(slots=True)
class Finished:
    """A prefork command that has ended."""

    code: int
    stdout: str
    stderr: str


@dataclass
class PreforkProcess:
    """A `prefork run` that is serving. `log()` is its standard error so far, `stdout()` the other."""

    process: subprocess.Popen[bytes]
    directory: Path
    addresses: list[str] = field(default_factory=list)
    clients: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def pid(self) -> int:
        """Of the master."""
        return self.process.pid

    @property
    def port(self) -> int:
        """Of the first TCP address."""
        return next(int(address.rpartition(":")[2]) for address in self.addresses if "://" in address)

    @property
    def url(self) -> str:
        return next(address for address in self.addresses if "://" in address)

    def log(self) -> str:
        return (self.directory / "stderr").read_text(errors="replace")

    def stdout(self) -> str:
        return (self.directory / "stdout").read_text(errors="replace")

    def workers(self) -> list[int]:
        """The pids of the master's children that are alive."""
        return sorted(map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()))

    def connect(self, timeout: float = 10.0) -> RawClient:
        """A new connection to the first TCP address."""
        client = RawClient(("127.0.0.1", self.port), timeout)
        self.clients.callback(client.close)
        return client

    def get(self, target: str = "/", *headers: str) -> RawResponse:
        """One GET on a connection of its own."""
        client = self.connect()
        try:
            return client.get(target, *headers, "Connection: close")
        finally:
            client.close()

    def wait_for_log(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        """Wait until the log has a match of `pattern`."""
        match: re.Match[str] = until(
            lambda: re.search(pattern, self.log()), timeout, f"{pattern!r} in the log:\n{self.log()}"
        )
        return match

    def signal(self, number: int) -> None:
        """Send a signal to the master."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 15.0) -> int:
        """The exit code; waits for the end."""
        return self.process.wait(timeout)

    def stop(self, timeout: float = 15.0) -> int:
        """TERM, then the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)


STARTED = re.compile(r"serving .* on (?P<addresses>.+?) with \d+ workers?\b")


@pytest.fixture
def prefork_command(tmp_path: Path) -> Callable[..., Finished]:
    """`prefork_command("check", "app:mux", app="...")`: runs a command to its end.

    app: the text of app.py in the working directory, which is tmp_path. files: more of them.
    env: changes to the environment, from which PREFORK_ variables are taken first.
    """

    def call(
        *arguments: str,
        app: str | None = None,
        files: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Finished:
        _write_files(tmp_path, app, files)
        done = subprocess.run(
            [sys.executable, "-m", "prefork", *arguments],
            cwd=tmp_path,
            env=_environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def prefork_process(tmp_path: Path) -> Iterator[Callable[..., PreforkProcess]]:
    """`prefork_process(app_text, "-w", "2")`: starts `prefork run app:mux` and waits until it serves.

    It listens on a free port of 127.0.0.1 unless the arguments have a `-b`. Whatever happens
    in the test, master and workers are gone after it.
    """
    started: list[PreforkProcess] = []

    def start(
        app: str,
        *arguments: str,
        target: str = "app:mux",
        files: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        timeout: float = 20.0,
    ) -> PreforkProcess:
        directory = tmp_path / f"run{len(started)}" if started else tmp_path
        directory.mkdir(exist_ok=True)
        _write_files(directory, app, files)
        if "-b" not in arguments:
            arguments = ("-b", "127.0.0.1:0", *arguments)
        with open(directory / "stdout", "wb") as out, open(directory / "stderr", "wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefork", "run", target, *arguments],
                cwd=directory,
                env=_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # so that all of it can be killed as one group
                pass_fds=tuple(pass_fds),
            )
        server = PreforkProcess(process, directory)
        started.append(server)

        def is_up() -> re.Match[str] | None:
            if process.poll() is not None:
                pytest.fail(f"prefork run ended with {process.returncode}:\n{server.log()}")
            return STARTED.search(server.log())

        match = until(is_up, timeout, "the start-up line")
        server.addresses = re.split(r",? and |, ", match["addresses"])
        return server

    yield start
    for server in started:
        server.clients.close()
        if server.process.poll() is None:
            server.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(5.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        until(functools.partial(_group_is_gone, server.pid), 5.0, f"the end of process group {server.pid}")


def _write_files(directory: Path, app: str | None, files: Mapping[str, str] | None) -> None:
    for name, text in ({"app.py": app} if app is not None else {}).items() | (files or {}).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _environment(changes: Mapping[str, str] | None) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFORK_")}
    for name in ("NO_COLOR", "FORCE_COLOR", "JOURNAL_STREAM", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"):
        inherited.pop(name, None)
    return inherited | {"PYTHONDONTWRITEBYTECODE": "1"} | dict(changes or {})


def _group_is_gone(pgid: int) -> bool:
    # Zombies do not count: an orphan is init's to reap, and some containers have a lazy one.
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                state, _, group = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == pgid and state != "Z":
                    return False
    return True
