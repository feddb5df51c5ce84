"""Log files and log streams of a whole server: rotation loses nothing, no destination harms the service."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import logging
import os
import pwd
import re
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from prefork import log
from prefork.http import AccessRecord
from prefork.settings import SettingsError, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Fixture = Callable[..., Any]

APP = """
import logging
from prefork import http
mux = http.ServeMux()
said = logging.getLogger("prefork.said")

@mux.handle_func("GET /n/{number}")
def number(w, r):
    said.info("number=%s", r.path_value("number"))
    w.write(b"ok")

@mux.handle_func("/quiet")
def quiet(w, r):
    w.write(b"ok")
"""


class Load:
    """Clients that ask for /n/0, /n/1, ... on connections of their own until they are told to stop."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self.numbers: list[int] = []
        self.failures: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        with contextlib.closing(connection):
            while not self._stop.is_set():
                with self._lock:
                    number = len(self.numbers)
                    self.numbers.append(number)
                try:
                    connection.request("GET", f"/n/{number}")
                    body = connection.getresponse().read()
                except Exception as exc:
                    self.failures.append(repr(exc))
                    return
                if body != b"ok":
                    self.failures.append(repr(body))


def lines_of(*paths: Path) -> list[str]:
    text = "".join(path.read_text() for path in paths)
    assert text.endswith("\n")
    return text.splitlines()


# --- rotation -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["console", "json"])
def test_rotation_under_load_loses_and_doubles_no_line(
    format: str, prefork_process: Fixture, until: Fixture, tmp_path: Path
) -> None:
    """logrotate's way: rename, then USR1 to the master; twenty times."""
    access, console = tmp_path / "access.log", tmp_path / "stderr"  # the fixture looks into this one
    server = prefork_process(
        APP,
        *("-w", "2", "--log-format", format, "--log-file", "stderr"),
        *("--access-log-file", str(access), "--access-log-format", "json"),
    )
    olds: dict[Path, list[Path]] = {access: [], console: []}
    with Load(server.port) as load:
        for turn in range(20):
            until(lambda: all(path.stat().st_size for path in olds) or load.failures)
            for path, old in olds.items():
                old.append(path.with_name(f"{path.name}.{turn}"))
                path.rename(old[-1])
            server.signal(signal.SIGUSR1)
            for path in olds:
                until(path.exists, what=f"a new {path}")
        until(lambda: all(path.stat().st_size for path in olds) or load.failures)
    assert not load.failures
    assert server.stop() == 0

    records = [json.loads(line) for line in lines_of(*olds[access], access)]
    found = collections.Counter(record["target"] for record in records)
    assert found == {f"/n/{number}": 1 for number in load.numbers}
    assert {record["worker"] for record in records} <= {1, 2}
    said = collections.Counter(re.findall(r"number=(\d+)", "\n".join(lines_of(*olds[console], console))))
    assert said == {str(number): 1 for number in load.numbers}
    if format == "json":
        assert all(json.loads(line) for line in lines_of(*olds[console], console))
    assert not server.stdout()


def test_a_file_that_cannot_be_opened_anew_stays_in_use(
    prefork_process: Fixture, until: Fixture, tmp_path: Path
) -> None:
    logs, moved = tmp_path / "logs", tmp_path / "moved"
    logs.mkdir()
    server = prefork_process(APP, "--access-log-file", str(logs / "a"), "--access-log-format", "%(U)s")
    assert server.get("/n/1").status == 200
    logs.rename(moved)
    server.signal(signal.SIGUSR1)
    server.wait_for_log(
        rf"error +cannot open the log file {logs}/a: No such file or directory; the old one stays in use"
    )
    assert server.get("/n/2").status == 200
    until(lambda: (moved / "a").read_text() == "/n/1\n/n/2\n")
    logs.mkdir()
    server.signal(signal.SIGUSR1)
    until((logs / "a").exists)
    assert server.get("/n/3").status == 200
    until(lambda: (logs / "a").read_text() == "/n/3\n")
    assert server.stop() == 0


def test_reopen_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "log"
    access = log.access_logger(path=str(path), format="%(U)s")
    descriptor = access._writer._output.fileno()
    assert not os.get_inheritable(descriptor)
    path.rename(tmp_path / "old")
    log.reopen()
    assert path.read_text() == ""
    assert os.path.samestat(os.fstat(descriptor), path.stat())
    assert not os.get_inheritable(descriptor)
    access.close()
    path.unlink()
    log.reopen()  # closed: not opened again
    assert not path.exists()


# --- opening --------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["--log-file", "--access-log-file"])
def test_a_file_that_cannot_be_opened_at_the_start(
    setting: str, prefork_command: Fixture, tmp_path: Path
) -> None:
    for path, problem in (
        (tmp_path / "none" / "log", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ):
        done = prefork_command("run", "app:mux", "-b", "127.0.0.1:0", setting, str(path), app=APP)
        assert done.code == 2
        assert done.stderr == f"prefork: cannot open the log file {path}: {problem}\n"


def test_a_named_pipe_without_a_reader_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(log.LogFileError, match="No such device or address"):
        log.access_logger(path=str(tmp_path / "pipe"))
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    access = log.access_logger(path=str(tmp_path / "pipe"))
    access(AccessRecord.of_refusal("127.0.0.1:1", 400, 15))
    access.close()
    assert b' "-" 400 ' in os.read(reader, 1000)
    os.close(reader)


def test_a_file_is_appended_to_and_made_by_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "log"
    before = os.umask(0o027)
    try:
        access = log.access_logger(path=str(path))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.write_text("before\n")
    access(AccessRecord.of_refusal("127.0.0.1:1", 400, 15))
    access.close()
    assert path.read_text().startswith("before\n127.0.0.1 - - [")


def test_files_are_made_by_the_umask_of_the_settings(
    prefork_process: Fixture, until: Fixture, tmp_path: Path
) -> None:
    access, console = tmp_path / "access", tmp_path / "stderr"
    server = prefork_process(
        APP, *("--umask", "077", "--access-log-file", str(access), "--log-file", str(console))
    )
    assert access.stat().st_mode & 0o777 == 0o600
    for path in (access, console):
        path.rename(f"{path}.old")
    server.signal(signal.SIGUSR1)
    for path in (access, console):
        until(path.exists)
        assert path.stat().st_mode & 0o777 == 0o600
    assert server.stop() == 0


def test_setup_that_fails_changes_nothing(tmp_path: Path) -> None:
    before = logging.getLogger("prefork").handlers[:]
    with pytest.raises(log.LogFileError):
        log.setup(path=str(tmp_path / "none" / "log"))
    assert logging.getLogger("prefork").handlers == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_files_belong_to_the_user_that_the_workers_run_as(
    prefork_process: Fixture, prefork_command: Fixture, until: Fixture, tmp_path: Path
) -> None:
    nobody = pwd.getpwnam("nobody")
    refused = prefork_command(
        *("run", "app:mux", "-b", "127.0.0.1:0", "--user", "nobody"),
        *("--access-log-file", "/root/prefork-test.log"),
        app=APP,
    )
    assert refused.code == 2
    assert refused.stderr == (
        "prefork: cannot open the log file /root/prefork-test.log "
        f"as uid {nobody.pw_uid}: Permission denied\n"
    )
    with _open_to_all(tmp_path):
        logs = tmp_path / "logs"
        logs.mkdir()
        access, console = logs / "access", logs / "console"
        console.touch()
        (tmp_path / "stderr").symlink_to(console)  # the fixture looks into this one
        for path in (logs, console):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        server = prefork_process(
            APP,
            *("--user", "nobody", "--access-log-format", "%(U)s"),
            *("--access-log-file", str(access), "--log-file", str(console)),
        )
        assert server.get("/n/1").status == 200
        until(lambda: access.read_text())
        for path in (access, console):
            assert path.stat().st_uid == nobody.pw_uid
            path.rename(f"{path}.old")
        server.signal(signal.SIGUSR1)
        for path in (access, console):
            until(path.exists)
        assert server.get("/n/2").status == 200
        until(lambda: access.read_text() == "/n/2\n")
        assert "number=2" in console.read_text()
        assert {path.stat().st_uid for path in (access, console)} == {nobody.pw_uid}
        assert server.stop() == 0


@contextlib.contextmanager
def _open_to_all(directory: Path) -> Iterator[None]:
    """Let everybody enter `directory`: pytest's are root's own."""
    closed = [path for path in [directory, *directory.parents] if not path.stat().st_mode & 0o001]
    modes = {path: path.stat().st_mode & 0o777 for path in closed}
    try:
        for path in closed:
            path.chmod(modes[path] | 0o055)
        yield
    finally:
        for path in closed:
            path.chmod(modes[path])


# --- settings -------------------------------------------------------------------------------


def test_a_relative_file_is_relative_to_where_the_server_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(environ={"PREFORK_LOG_FILE": "a/log", "PREFORK_ACCESS_LOG_FILE": "-"})
    assert (settings.log_file, settings.access_log_file) == (str(tmp_path / "a" / "log"), "-")
    assert not settings.logs_requests


@pytest.mark.parametrize(
    ("environ", "logs"),
    [
        ({}, False),
        ({"PREFORK_ACCESS_LOG": "on"}, True),
        ({"PREFORK_ACCESS_LOG_FILE": "log"}, True),
        ({"PREFORK_ACCESS_LOG_FILE": "log", "PREFORK_ACCESS_LOG": "off"}, False),
        ({"PREFORK_ACCESS_LOG_FORMAT": "json"}, False),
    ],
)
def test_what_turns_the_access_log_on(environ: dict[str, str], logs: bool) -> None:
    assert load(environ=environ).logs_requests is logs


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            "%(h)s %(x)s",
            r"there is no atom %\(x\)s; there are: h l u t r m U q .* request_id {Header}i .*; expected",
        ),
        ("%h", r"'%h' is no atom; one is written %\(h\)s"),
        ("common", "there is no format 'common', .*; expected combined, json, logfmt, or"),
    ],
)
def test_an_access_log_format_that_is_none(value: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=f"^PREFORK_ACCESS_LOG_FORMAT: {problem}"):
        load(environ={"PREFORK_ACCESS_LOG_FORMAT": value})


# --- destinations that fail -----------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_costs_lines_and_not_requests(
    prefork_process: Fixture, until: Fixture, small_disk: Path
) -> None:
    access, filler = small_disk / "access", small_disk / "filler"
    server = prefork_process(APP, "--access-log-file", str(access), "--access-log-format", "%(U)s %(a)s")
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"#" * 4096):
            pass
    os.truncate(filler, filler.stat().st_size - 4096)  # one page is left
    client = server.connect()
    for number in range(300):
        assert client.get(f"/n/{number}", "User-Agent: " + "x" * 100).status == 200
    server.wait_for_log("warning +access log lines are being lost: No space left on device")
    filler.unlink()

    def works_again() -> re.Match[str] | None:
        client.get("/quiet", "User-Agent: works")
        return re.search(r"warning +(\d+) access log lines are lost: No space left on device", server.log())

    lost = int(until(works_again)[1])
    client.close()
    assert server.stop() == 0
    # What was written before the disk was full, perhaps a line that broke off, and what came later.
    whole = [int(number) for number in re.findall(r"^/n/(\d+) x{100}$", access.read_text(), re.MULTILINE)]
    assert whole == sorted(set(whole))
    assert whole[:30] == list(range(30))
    assert len(whole) + lost == 300
    assert access.read_text().endswith("\n/quiet works\n")
    assert len(re.findall("lines are (being )?lost", server.log())) == 2


def test_a_console_log_on_a_full_disk(prefork_process: Fixture, until: Fixture, small_disk: Path) -> None:
    console, filler = small_disk / "console", small_disk / "filler"
    (console.parents[1] / "stderr").symlink_to(console)  # the fixture looks into this one
    server = prefork_process(APP, "--log-file", str(console))
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"#" * 4096):
            pass
    client = server.connect()
    for number in range(1000):
        assert client.get(f"/n/{number}").status == 200
    filler.unlink()
    until(lambda: client.get("/n/1000").status == 200 and "number=1000" in console.read_text())
    text = console.read_text()
    (lost,) = re.findall(r"warning +(\d+) log lines are lost: No space left on device\n", text)
    numbers = [int(number) for number in re.findall(r"info +number=(\d+)$", text, re.MULTILINE)]
    before = [number for number in numbers if number < 1000]
    assert before == list(range(len(before)))
    assert len(before) + int(lost) == 1000
    client.close()
    assert server.stop() == 0


def test_dev_full(prefork_process: Fixture) -> None:
    server = prefork_process(APP, "--access-log-file", "/dev/full")
    client = server.connect()
    for number in range(100):
        assert client.get(f"/n/{number}").status == 200
    server.wait_for_log("warning +access log lines are being lost: No space left on device")
    client.close()
    assert server.stop() == 0
    assert len(re.findall("access log lines are", server.log())) == 1


@pytest.mark.parametrize("format", ["combined", "json"])
def test_a_reader_that_stalls_costs_lines_and_not_requests(
    format: str, prefork_process: Fixture, until: Fixture, tmp_path: Path
) -> None:
    """Both logs go into pipes that nobody reads for a while."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    server = prefork_process(APP, "--access-log-file", str(tmp_path / "pipe"), "--access-log-format", format)
    client = server.connect(timeout=5)
    agent = "User-Agent: " + "x" * 8000
    count = 400
    for _ in range(count):
        assert client.get("/quiet", agent).status == 200
    server.wait_for_log("warning +access log lines are being lost: what reads them is too slow")
    got = b""

    def told() -> re.Match[str] | None:
        nonlocal got
        with contextlib.suppress(BlockingIOError):
            while data := os.read(reader, 1 << 20):
                got += data
        return re.search(
            r"warning +(\d+) access log lines are lost: what reads them is too slow", server.log()
        )

    lost = int(until(told)[1])
    assert client.get("/quiet").status == 200
    client.close()
    assert server.stop() == 0
    told()
    os.close(reader)
    assert got.count(b"\n") == count - lost + 1
    assert got.count(b"x" * 8000) == count - lost


def test_a_stalled_console_does_not_stop_the_server(
    prefork_process: Fixture, until: Fixture, tmp_path: Path
) -> None:
    console = tmp_path / "stderr"  # the fixture looks into this one
    server = prefork_process(APP, "--log-file", "stderr")
    console.rename(tmp_path / "old")
    os.mkfifo(console)
    reader = os.open(console, os.O_RDONLY | os.O_NONBLOCK)
    server.signal(signal.SIGUSR1)
    client = server.connect(timeout=5)
    got = b""

    def read() -> None:
        nonlocal got
        with contextlib.suppress(BlockingIOError):
            while data := os.read(reader, 1 << 20):
                got += data

    def arrives() -> bytes:
        assert client.get("/n/first").status == 200
        read()
        return got

    until(arrives)
    numbers = range(3000)
    for number in numbers:
        assert client.get(f"/n/{number}-" + "x" * 1000).status == 200
    client.close()
    server.signal(signal.SIGTERM)
    until(lambda: read() or server.process.poll() is not None)
    read()
    os.close(reader)
    assert server.wait() == 0
    found = [int(number) for number in re.findall(rb"number=(\d+)-x{1000}\n", got)]
    assert found == list(range(len(found)))
    assert len(found) > 500  # what a buffer holds has come when the reader woke up


# --- a whole server's lines -----------------------------------------------------------------


def test_json_of_a_whole_server(prefork_process: Fixture, until: Fixture) -> None:
    server = prefork_process(
        APP, "--log-format", "json", "--access-log", "--access-log-format", "json", "-w", "2"
    )
    assert server.get("/n/7?a=1", "X-Request-Id: abc-1", "User-Agent: x").status == 200
    assert server.get("/none").status == 404
    client = server.connect()
    client.send("nonsense\r\n\r\n")
    assert b"400 Bad Request" in client.rest()
    lines = until(lambda: (found := server.stdout().splitlines()) and len(found) == 3 and found)
    records = [json.loads(line) for line in lines]
    workers = {record["pid"]: record["worker"] for record in records}
    assert set(workers) <= set(server.workers())
    assert set(workers.values()) <= {1, 2}
    by_target = {record["target"]: record for record in records}
    found = by_target["/n/7?a=1"]
    assert (found["pattern"], found["request_id"], found["status"]) == ("GET /n/{number}", "abc-1", 200)
    assert 0 <= found["duration"] < 5
    assert (by_target["/none"]["pattern"], by_target["/none"]["status"]) == ("", 404)
    assert (by_target[""]["method"], by_target[""]["status"]) == ("", 400)
    assert server.stop() == 0
    console = [json.loads(line) for line in server.log().splitlines()]
    (said,) = [record for record in console if record["message"] == "number=7"]
    assert (said["logger"], said["level"], said["worker"]) == ("prefork.said", "info", found["worker"])
    (serving,) = [record for record in console if record["message"].startswith("serving app:mux on ")]
    assert (serving["worker"], serving["pid"]) == (None, server.pid)


def test_the_last_lines_before_a_stop_are_written(prefork_process: Fixture) -> None:
    server = prefork_process(APP, "--access-log", "--access-log-format", "%(U)s")
    client = server.connect()
    for number in range(50):
        assert client.get(f"/n/{number}").status == 200
    client.close()
    assert server.stop() == 0
    assert server.stdout().split() == [f"/n/{number}" for number in range(50)]
