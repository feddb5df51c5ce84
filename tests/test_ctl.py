"""The commands that ask a running server: finding it, what is printed, exit codes, messages that help."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import importlib.util
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import cli, ctl, overview
from prefork.master.control import ControlService
from prefork.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helpers = _load("helpers_control")


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory, and nothing said in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PREFORK_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setattr(ctl, "_USUAL_PLACES", (f"{tmp_path}/run/*/control.sock",))


class Server:
    """A control service in a thread. loop: what it is asked, and what it shall say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = f"unix:{path}"
        self.loop = helpers.FakeLoop()
        self.loop.status_is = copy.deepcopy(helpers.STATUS)
        self.stack = contextlib.ExitStack()
        self.service = ControlService(self.address)

    def start(self) -> Server:
        self.service.attach(self.loop)
        self.stack.enter_context(helpers.turning(self.loop))
        return self

    def close(self) -> None:
        self.stack.close()
        self.service.close()
        self.loop.restart()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """It runs, and PREFORK_CONTROL names it."""
    server = Server(tmp_path / "control.sock").start()
    monkeypatch.setenv("PREFORK_CONTROL", server.address)
    yield server
    server.close()
    server.loop.close()


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """`scripted(*data)`: the address of a server that answers its first request with these bytes, then ends.

    None in place of bytes: it stays silent until the client leaves.
    """
    with contextlib.ExitStack() as stack:

        def make(*data: bytes | None) -> str:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(tmp_path / "odd.sock"))
            listener.listen()

            def serve() -> None:
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):
                    sock.recv(65536)
                    for piece in data:
                        if piece is None:
                            sock.recv(1)
                        else:
                            sock.sendall(piece)

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return f"unix:{tmp_path}/odd.sock"

        yield make


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


# --- where it is ------------------------------------------------------------------------------


def test_what_says_where_it_is_in_order(tmp_path: Path) -> None:
    environ: dict[str, str] = {"RUNTIME_DIRECTORY": "/run/demo:/run/other"}
    assert ctl.find(None, None, environ) == "unix:/run/demo/control.sock"
    Path("prefork.toml").write_text('control = "unix:@file"\n')
    assert ctl.find(None, None, environ) == "unix:@file"
    Path("other.toml").write_text('control = "unix:relative.sock"\n')
    assert ctl.find(None, "other.toml", environ) == f"unix:{tmp_path}/relative.sock"
    environ["PREFORK_CONFIG"] = "other.toml"
    assert ctl.find(None, None, environ) == f"unix:{tmp_path}/relative.sock"
    environ["PREFORK_CONTROL"] = "unix:@variable"
    assert ctl.find(None, "other.toml", environ) == "unix:@variable"
    assert ctl.find("unix:@flag", None, environ) == "unix:@flag"
    assert ctl.find("auto", None, environ) == "unix:/run/demo/control.sock"


def test_a_broken_settings_file_keeps_nobody_from_asking_who_needs_none() -> None:
    Path("prefork.toml").write_text("wrokers = 3\n")
    assert ctl.find("unix:@flag", None, {}) == "unix:@flag"
    assert ctl.find(None, None, {"PREFORK_CONTROL": "unix:@x", "PREFORK_WROKERS": "3"}) == "unix:@x"
    with pytest.raises(SettingsError, match="there is no setting 'wrokers'; did you mean workers"):
        ctl.find(None, None, {})


def test_nothing_says_where_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, error = call(capsys, "status")
    assert (code, out) == (2, "")
    assert error == (
        "prefork: which server? --control is not given, PREFORK_CONTROL is not set, no `control` in a "
        f"settings file of {tmp_path}, RUNTIME_DIRECTORY is not set. Start it with --control unix:/PATH "
        "(or with RuntimeDirectory= in its systemd unit), and name the same --control here\n"
    )
    for name in ("one", "two"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "control.sock").touch()
    code, _, error = call(capsys, "stop")
    assert code == 2, "what is merely there is not used"
    assert error.endswith(
        f"; on this machine there are unix:{tmp_path}/run/one/control.sock, "
        f"unix:{tmp_path}/run/two/control.sock\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--control", "none"], "--control says that there is no control socket"),
        (["--control", "/run/x.sock"], "--control: '/run/x.sock' names no unix socket; write unix:/run/app/"),
        (["--control", ":80"], "--control: ':80' names no unix socket"),
        (["--control", ""], "--control: '' does not fit; expected unix:/PATH"),
        (["--control", "unix:"], "names no path"),
        (["--control", "unix:@"], "names no unix socket"),
        (["--control", f"unix:/{'x' * 101}"], "is longer than 101 bytes"),
        (["-c", "none.toml"], "-c none.toml: cannot read this settings file"),
        (["-c", "off.toml"], "off.toml: control says that there is no control socket"),
    ],
)
def test_what_says_it_wrongly(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    Path("off.toml").write_text('control = "none"\n')
    code, out, error = call(capsys, "status", *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


# --- nobody there -----------------------------------------------------------------------------


def test_nobody_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/none.sock"
    for command in (["status"], ["reload", "--wait"], ["scale", "3"], ["stop"], ["stacks"], ["top"]):
        assert call(capsys, *command, "--control", address) == (
            1,
            "",
            f"prefork: there is no {address}: the server is not running, or with another --control\n",
        )
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(address.removeprefix("unix:"))
    assert call(capsys, "status", "--control", address)[2] == (
        f"prefork: nobody listens at {address}: the server has ended, or has another --control\n"
    )
    assert "nobody listens at unix:@prefork-none" in call(
        capsys, "status", "--control", "unix:@prefork-none"
    )[2]  # fmt: skip


def test_a_server_that_does_not_accept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(ctl, "_ANSWER_WITHIN", 0.05)
    path = str(tmp_path / "full.sock")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(path)
        code, _, error = call(capsys, "status", "--control", f"unix:{path}")
    assert (code, error) == (
        1,
        f"prefork: the server at unix:{path} does not take connections; is it stopped?\n",
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((), "has closed the connection without an answer"),
        ((b'{"ok": tr',), "has closed the connection without an answer"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "is no prefork master"),
        ((b"[]\n",), "is no prefork master"),
        ((b"{}\n",), "is no prefork master"),
        ((b'{"ok": false}\n',), "is no prefork master"),
        ((b'{"ok": true}\n',), "is no prefork master"),
        ((b"[" * 100_000 + b"\n",), "is no prefork master"),
        ((b'{"ok": false, "error": "no \\u001b[31mway\\nat all"}\n',), "prefork: no \\x1b[31mway\nat all\n"),
        ((None,), "does not answer (0.2 s); is it stopped?"),
        ((b'{"ok": ', None), "does not answer (0.2 s); is it stopped?"),
    ],
)
def test_odd_answers(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    scripted: Callable[..., str],
    data: tuple[bytes | None, ...],
    message: str,
) -> None:
    monkeypatch.setattr(ctl, "_ANSWER_WITHIN", 0.2)
    code, out, error = call(capsys, "status", "--control", scripted(*data))
    assert (code, out) == (1, "")
    assert message in error
    assert "internal error" not in error


def test_an_endless_answer(capsys: pytest.CaptureFixture[str], monkeypatch: Any, scripted: Any) -> None:
    monkeypatch.setattr(ctl, "_LONGEST_ANSWER", 1 << 20)
    assert "is no prefork master" in call(capsys, "status", "--control", scripted(b"x" * (8 << 20)))[2]


def test_who_is_refused_is_told_why(
    capsys: pytest.CaptureFixture[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork.master.control._credentials", lambda sock: (1, 4242))
    code, out, error = call(capsys, "stop")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"prefork: permission denied: root.* may control .*, user 4242 may not\n", error)
    assert server.loop.calls == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_of_somebody_else() -> None:
    path = Path("/tmp", f"prefork-test-ctl-{os.getpid()}.sock")  # tmp_path lets no stranger in
    service = ControlService(f"unix:{path}")
    loop = helpers.FakeLoop()
    service.attach(loop)
    try:
        said = helpers.as_user(65533, lambda: str(ctl.status(f"unix:{path}")))
    finally:
        service.close()
        loop.close()
    assert said == (
        f"ControlError: permission denied: unix:{path} is for root and the user that the server's master "
        "runs as; try it with sudo"
    )


# --- the commands -----------------------------------------------------------------------------


def test_status(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    code, out, error = call(capsys, "status")
    assert (code, error) == (0, "")
    assert re.sub(r"last reload \d+ d \d+ h ago", "last reload LONG ago", out) == (
        "app:mux is serving: generation 3, up 3 h 12 m (prefork 0.1.0, pid 4711)\n"
        "on http://127.0.0.1:8000, unix:/run/app.sock\n"
        "2 of 2 workers ready, 1204 req/s, 17 connections open, 3 active\n"
        "last reload LONG ago: generation 3 serves\n"
        "restarts: crash 2, max_requests 1\n"
        "\n"
        "worker   pid  gen  state    req/s    p50   p90    p99  open  active    lag   rss  pss  doing\n"
        "     1  4712    3  ready     1204  1.2ms  12ms  1.25s    17       3  0.4ms   84M  41M  "
        "GET /report 41 s (+2)\n"
        "     2  4713    3  booting      0      -     -      -     0       0      -  900K    -\n"
    )
    assert server.loop.calls == [("status",)]


def test_status_as_json(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    code, out, _ = call(capsys, "status", "--json")
    assert code == 0
    assert json.loads(out) == helpers.STATUS
    assert "\x1b" not in out
    assert out.isascii()


def test_reload(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    code, out, error = call(capsys, "reload")
    assert (code, out, error) == (0, "reloading; `prefork status` shows how it goes\n", "")
    traceback = (
        'reload failed: importing app failed\nTraceback\n\tFile "app.py"\nSyntaxError: \x1b]0;evil\x07'
    )

    def reload(done: Any, why: str) -> None:
        server.loop.call_at(time.monotonic() + 0.05, lambda: done(*outcome))

    server.loop.reload = reload
    outcome: tuple[bool, str] = (True, "generation 4 serves")
    assert call(capsys, "reload", "--wait") == (0, "generation 4 serves\n", "")
    outcome = (False, traceback)
    code, out, error = call(capsys, "reload", "--wait")
    assert (code, out) == (1, "")
    assert error == (
        "prefork: reload failed: importing app failed\nTraceback\n        File \"app.py\"\n"
        "SyntaxError: \\x1b]0;evil\\x07\n"
    )  # fmt: skip


def test_reload_of_a_server_that_ends_meanwhile(
    capsys: pytest.CaptureFixture[str], scripted: Callable[..., str]
) -> None:
    code, _, error = call(capsys, "reload", "--wait", "--control", scripted())
    assert code == 1
    assert "has closed the connection without an answer" in error


def test_scale_stop_and_stacks(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    assert call(capsys, "scale", "4") == (0, "from 2 to 4 workers\n", "")
    assert call(capsys, "scale", "9") == (1, "", "prefork: this service can have at most 8 workers\n")
    assert call(capsys, "stop") == (0, "stopping; requests in flight are finished first\n", "")
    assert call(capsys, "stop", "--now") == (0, "stopping at once\n", "")
    server.loop.stacks_are = {1: 'Thread 1:\n  File "a.py"\n', 12: "it did not answer\x1b in time"}
    assert call(capsys, "stacks") == (
        0,
        'worker 1:\nThread 1:\n  File "a.py"\n\nworker 12:\nit did not answer\\x1b in time\n',
        "",
    )
    assert call(capsys, "stacks", "1")[0] == 0
    assert call(capsys, "stacks", "99") == (1, "", "prefork: there is no worker 99\n")
    calls = [call[:2] for call in server.loop.calls]
    assert calls == [
        ("scale", 4), ("scale", 9), ("stop", False), ("stop", True), ("stacks", None), ("stacks", 1),
        ("stacks", 99),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scale"], "prefork scale: the following arguments are required: N"),
        (["scale", "many"], "'many' is not the number of workers; expected a whole number from 1 to 1024"),
        (["scale", "0"], "'0' is not the number of workers"),
        (["scale", "-1"], "'-1' is not the number of workers"),
        (["scale", "1_0"], "'1_0' is not the number of workers"),
        (["scale", "1", "2"], "prefork scale: one argument too many: '2'"),
        (["stacks", "first"], "'first' is not the number of the worker"),
        (["status", "--jsn"], "prefork status: there is no option --jsn; `prefork status --help` lists them"),
        (["reload", "--wait=yes"], "prefork reload: argument --wait: ignored explicit argument 'yes'"),
        (["stop", "--workers", "3"], "prefork stop: there is no option --workers"),
    ],
)
@pytest.mark.usefixtures("server")
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, out, error = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", ["status", "reload", "scale", "stop", "stacks", "top"])
def test_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: prefork {command} [OPTION...]")
    assert "--control ADDRESS" in out
    assert "[PREFORK_CONTROL]" in out
    assert max(map(len, out.splitlines())) <= columns
    assert f"  {command}" in call(capsys, "--help")[1]


def test_asking_imports_nothing_of_the_server(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "prefork", "status", "--control", server.address],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "prefork.ctl" in imported
    assert not imported & {"asyncio", "uvloop", "httptools", "rich", "prefork.http", "prefork.master"}
    assert done.stdout.startswith("app:mux is serving")


def test_the_whole_way_through_a_pipe_that_ends(server: Server) -> None:
    """`prefork status | head -0`"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "prefork", "status", "--control", server.address],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


# --- how it is shown --------------------------------------------------------------------------


def test_what_is_missing_is_shown_as_such() -> None:
    assert overview.text({}) == (
        "- is -: generation -, up - (prefork -, pid -)\non -\n- of - workers ready, 0 req/s, "
        "0 connections open, 0 active\n\n"
        "worker  pid  gen  state  req/s  p50  p90  p99  open  active  lag  rss  pss  doing"
    )
    lines = overview.table({"workers": [{}]})
    assert lines[1].split() == ["-"] * 13


def test_what_strangers_chose_is_escaped() -> None:
    evil = "GET /\x1b[2J\r\n\u202e\ud800é"
    status = copy.deepcopy(helpers.STATUS)
    status["app"] = status["bind"][0] = status["last_reload"]["text"] = evil
    status["restarts"] = {evil: 1}
    status["workers"][0]["doing"][0]["request"] = evil
    status["workers"][0]["state"] = evil
    shown = overview.text(status)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert shown.count("GET /\\x1b[2J\\r\\n\\u202e\\ud800é") >= 4
    assert overview.clean_lines("a\tb\n\x00c") == "a       b\n\\x00c"


def test_what_standard_output_cannot_hold(capfdbinary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.dup(1), "w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        overview.say("GET /é")
    assert capfdbinary.readouterr().out == b"GET /\\xe9\n"


def test_a_failed_reload_shows_its_exception() -> None:
    status = copy.deepcopy(helpers.STATUS)
    status["last_reload"] = {
        "ok": False,
        "text": "importing app failed:\nTraceback:\n  File app.py\nKeyError: 'database'\n",
        "at": time.time() - 300,
    }
    assert "last reload FAILED 5 m 0 s ago: importing app failed: ... KeyError: 'database'" in overview.head(
        status
    )
    status["last_reload"] = None
    status["restarts"] = {"crash": 0}
    assert len(overview.head(status)) == 3


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    every = overview.table(helpers.STATUS)
    assert overview.table(helpers.STATUS, 200) == every
    assert overview.table(helpers.STATUS, 80)[0].split() == [
        "worker", "pid", "state", "req/s", "p99", "open", "active", "doing",
    ]  # fmt: skip
    for width in range(20, 130):
        lines = overview.table(helpers.STATUS, width)
        assert lines[0].split()[0] == "worker"
        if width > 50:
            assert "GET /report 41 s" in lines[1][:width]


def test_workers_by_number_the_older_process_first() -> None:
    workers = [
        {"worker": 2, "pid": 5},
        {"worker": 1, "pid": 9, "age": 1.0},
        {"worker": 1, "pid": 8, "age": 7.0},
    ]
    rows = overview.cells_of({"workers": workers})
    assert [row[1].strip() for row in rows] == ["pid", "8", "9", "5"]


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (overview._seconds, 0.0, "0.0 s"),
        (overview._seconds, 9.96, "10 s"),
        (overview._seconds, 41.4, "41 s"),
        (overview._seconds, 119.4, "119 s"),
        (overview._seconds, 119.6, "2 m 0 s"),
        (overview._seconds, 7205, "2 h 0 m"),
        (overview._seconds, 86400 * 12 + 3600, "12 d 1 h"),
        (overview._milliseconds, 0.04, "0.0ms"),
        (overview._milliseconds, 9.96, "10ms"),
        (overview._milliseconds, 999.4, "999ms"),
        (overview._milliseconds, 999.6, "1.00s"),
        (overview._rate, 0.0, "0"),
        (overview._rate, 0.26, "0.3"),
        (overview._rate, 123456.7, "123457"),
        (overview._size, 0, "0K"),
        (overview._size, (1 << 20) - 1, "1024K"),
        (overview._size, 1.5 * (1 << 20), "1.5M"),
        (overview._size, 84 << 20, "84M"),
        (overview._size, 3 << 30, "3.0G"),
    ],
)
def test_figures(show: Callable[[float], str], value: float, text: str) -> None:
    assert show(value) == text


# --- top --------------------------------------------------------------------------------------


def test_top_without_a_terminal_is_one_look(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    code, out, error = call(capsys, "top")
    assert (code, error) == (0, "")
    assert out == overview.text(helpers.STATUS) + "\n"
    assert server.loop.calls == [("status",)]


class Terminal:
    """A `prefork top` in a terminal of its own."""

    def __init__(self, server: Server, rich: bool, columns: int = 160, lines: int = 24) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        program = "import sys; from prefork import cli, overview; overview.EVERY = 0.05;"
        if not rich:
            program += "sys.modules['rich'] = None;"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program + "sys.exit(cli.main())", "top", "--control", server.address],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": str(lines)},
            start_new_session=True,
        )
        self.output = ""

    def wait_for(self, pattern: str, timeout: float = 15.0) -> None:
        """Until it shows something new that matches."""
        begin = len(self.output)
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.output[begin:]):
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self.output[begin:]!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 65536).decode(errors="replace")

    def wait(self, timeout: float = 15.0) -> int:
        """The exit code; what it still writes is taken, or it could not end."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            if select.select([self.master], [], [], 0.05)[0]:
                self.output += os.read(self.master, 65536).decode(errors="replace")
        while select.select([self.master], [], [], 0)[0]:
            self.output += os.read(self.master, 65536).decode(errors="replace")
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self.master)


@pytest.fixture(params=[True, False], ids=["rich", "plain"])
def terminal(request: pytest.FixtureRequest, server: Server) -> Iterator[Terminal]:
    if request.param:
        pytest.importorskip("rich")
    terminal = Terminal(server, request.param)
    yield terminal
    terminal.close()


def test_top_in_a_terminal(terminal: Terminal, server: Server) -> None:
    terminal.wait_for(r"app:mux is serving: generation 3")
    terminal.wait_for(r"GET /report 41 s \(\+2\)")
    server.loop.status_is["workers"][1]["doing"] = [{"request": "GET /[red]\x1b[5m", "seconds": 3.0}]
    terminal.wait_for(r"GET /\[red\]\\x1b\[5m 3.0 s")
    os.write(terminal.master, b"xyz")
    terminal.wait_for("q ends")
    os.write(terminal.master, b"q")
    assert terminal.wait() == 0
    assert "Traceback" not in terminal.output
    assert "\x1b[?1049h" in terminal.output
    assert terminal.output.rindex("\x1b[?1049l") > terminal.output.rindex("q ends")
    assert terminal.output.rindex("\x1b[?25h") > terminal.output.rindex("\x1b[?25l")
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_top_ends_by_interrupt(terminal: Terminal) -> None:
    terminal.wait_for("q ends")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 0
    assert "Traceback" not in terminal.output
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_top_outlives_the_server(terminal: Terminal, server: Server) -> None:
    terminal.wait_for("app:mux is serving")
    server.close()
    terminal.wait_for(r"has closed the connection|there is no unix:")
    terminal.wait_for(r"there is no unix:\S+control.sock: the server is not running")
    server.loop.status_is["generation"] = 77
    server.start()
    terminal.wait_for("generation 77")
    os.write(terminal.master, b"Q")
    assert terminal.wait() == 0


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
def test_top_in_a_small_terminal(server: Server, rich: bool) -> None:
    server.loop.status_is["workers"] *= 20
    terminal = Terminal(server, rich, columns=50, lines=10)
    try:
        terminal.wait_for("app:mux is serving")
        terminal.wait_for("worker")
        os.write(terminal.master, b"q")
        assert terminal.wait() == 0
    finally:
        terminal.close()
    if not rich:
        frame = terminal.output.split("\x1b[H")[1].partition("\x1b[J")[0]
        lines = [line.removesuffix("\x1b[K") for line in frame.split("\r\n")]
        assert len(lines) <= 10
        assert max(map(len, lines)) < 50
