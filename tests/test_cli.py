"""The command line as a user meets it: real processes, exit codes, and messages that help."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from prefork import __version__, cli
from prefork.settings import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Command = Callable[..., Any]

APP = """
from prefork import http

mux = http.ServeMux()

@mux.handle_func("GET /hello/{name}")
async def hello(w, r):
    w.write("hello " + r.path_value("name"))

@mux.handle_func("/pid")
def pid(w, r):
    import os
    w.write(str(os.getpid()))

def make():
    return mux

plain = hello
number = 7
"""


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PREFORK_")]:
        monkeypatch.delenv(name)


def ours(text: str) -> list[str]:
    """Lines of a traceback that point into prefork."""
    return re.findall(r'File ".*/(?:prefork|workers)/.*', text)


# --- help and versions ----------------------------------------------------------------------


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in ("run", "check", "routes", "version"):
        assert re.search(rf"^  {name} +\w", overview, re.MULTILINE)
        assert cli.main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: prefork {name}")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_shows_every_setting_with_default_and_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    flat = " ".join(text.split())
    for setting in TABLE.values():
        assert f"{setting.group}:" in text
        assert f"[{setting.variable}]" in flat
        assert setting.help in flat
        for flag in setting.flags:
            assert flag in text
        if setting.flags:
            assert f"[default: {setting.shown(setting.default)}] [{setting.variable}]" in flat
    assert max(map(len, text.splitlines())) <= columns


def test_version_imports_nothing_of_the_server(prefork_command: Command) -> None:
    done = prefork_command("version", env={"PYTHONPROFILEIMPORTTIME": "1"})
    expected = (
        rf"prefork {re.escape(__version__)}, Python 3\.\d+\.\d+\S*, uvloop \d[\d.]+, httptools \d[\d.]+\n"
    )
    assert re.fullmatch(expected, done.stdout)
    assert done.code == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "prefork.cli" in imported
    for heavy in ("asyncio", "uvloop", "httptools", "prefork.http", "prefork.master", "importlib.metadata"):
        assert heavy not in imported


def test_version_in_three_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["version"], ["--version"], ["-V"]):
        assert cli.main(arguments) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == 1


# --- arguments that are wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "prefork: which command?\n\nUsage: prefork COMMAND"),
        (["rum"], "prefork: there is no command 'rum'; did you mean run?"),
        (["zzz"], "prefork: there is no command 'zzz'; there are run, check, routes, version"),
        (["app:mux"], "prefork: there is no command 'app:mux'; to serve it: prefork run app:mux"),
        (["run"], "prefork: which application? Write: prefork run MODULE:ATTRIBUTE"),
        (["run", "a:b", "c"], "prefork: prefork run: one argument too many: 'c'"),
        (["run", "a:b", "--wrokers=3"], "there is no option --wrokers; did you mean --workers?"),
        (["run", "a:b", "--keepalive", "3"], "there is no option --keepalive; did you mean --idle-timeout?"),
        (["run", "a:b", "-x"], "there is no option -x; `prefork run --help` lists them"),
        (["run", "a:b", "--work", "3"], "there is no option --work"),
        (["run", "a:b", "-w"], "argument -w/--workers: expected one argument"),
        (["run", "a:b", "--access-log=yes"], "--access-log"),
        (["run", "a:b", "-w", "many"], "prefork: -w: 'many' does not fit; expected a whole number"),
        (["run", "a:b", "--bind=nowhere"], "prefork: --bind: 'nowhere' has no port; write nowhere:8000"),
        (["run", "a:b", "--keep-alive", "long"], "prefork: --keep-alive: 'long' does not fit"),
        (["run", "a:b", "-c", "no.toml"], "prefork: -c no.toml: cannot read this settings file"),
        (["routes", "a:b", "-w", "3"], "prefork routes: there is no option -w"),
        (["version", "-w"], "prefork version: there is no option -w"),
        (["run", ""], "prefork: the argument APP: '' does not fit; expected MODULE:ATTRIBUTE"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err
    if arguments:
        assert printed.err.count("\n") == 1


def test_unknown_settings_in_file_and_environment(prefork_command: Command) -> None:
    done = prefork_command("run", "app:mux", files={"prefork.toml": "wrokers = 3\n"}, app=APP)
    assert done.code == 2
    assert re.fullmatch(
        r"prefork: \S+/prefork\.toml: there is no setting 'wrokers'; did you mean workers\?\n", done.stderr
    )
    done = prefork_command("run", "app:mux", files={"prefork.toml": ""}, env={"PREFORK_BINDD": ":1"})
    assert done.code == 2
    assert done.stderr == "prefork: PREFORK_BINDD: there is no such setting; did you mean PREFORK_BIND?\n"


def test_an_internal_error_is_one_message_with_its_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("no such luck")

    monkeypatch.setattr(cli, "versions", broken)
    assert cli.main(["version"]) == 1
    error = capsys.readouterr().err
    assert re.match(
        r"prefork: internal error: ZeroDivisionError: no such luck \(test_cli\.py:\d+\); this is a", error
    )
    assert error.count("\n") == 1


def test_interrupt_and_broken_pipe(monkeypatch: pytest.MonkeyPatch, prefork_command: Command) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "versions", interrupted)
    assert cli.main(["version"]) == 130
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "prefork", "run", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=30, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


# --- applications that are wrong ------------------------------------------------------------

BROKEN = """
import sys

def load():
    settings = {}
    return settings["database"]

load()
"""

WRONG_APPS: dict[str, tuple[str, str | None, list[str]]] = {
    "no module": (
        "nomodule:mux",
        None,
        ["there is no module 'nomodule', neither in .* nor among", "--chdir"],
    ),
    "near module": ("ap:mux", APP, ["there is no module 'ap'.*; did you mean app:mux\\?"]),
    "no attribute": (
        "app:nomux",
        APP,
        ["'app' has no attribute 'nomux'; it has: .*mux.*did you mean app:mux"],
    ),
    "no handler": ("app:number", APP, ["app:number is no handler: a handler has serve_http.*this is a int"]),
    "a file": ("app.py:mux", APP, ["'app.py:mux' names a file; write the module: app:mux"]),
    "no library": (
        "app:mux",
        "import nolib\n",
        ["importing app failed", 'File ".*/app.py", line 1', "nolib"],
    ),
    "syntax": ("app:mux", "def broken(:\n", ["importing app failed", 'app.py", line 1', "SyntaxError"]),
    "raises": (
        "app:mux",
        BROKEN,
        ["importing app failed", 'app.py", line 6, in load', "KeyError: 'database'"],
    ),
    "exits": ("app:mux", "import sys\nsys.exit(0)\n", [r"importing app called sys.exit\(0\)"]),
    "factory": ("app:boom()", "def boom():\n    1 / 0\n", [r"app:boom\(\) failed", "ZeroDivisionError"]),
}


@pytest.mark.parametrize("command", ["run", "check", "routes"])
@pytest.mark.parametrize(("target", "app", "patterns"), WRONG_APPS.values(), ids=WRONG_APPS)
def test_wrong_applications(
    prefork_command: Command, command: str, target: str, app: str | None, patterns: list[str]
) -> None:
    options = ["-b", "127.0.0.1:0", "-w", "2"] if command == "run" else []
    done = prefork_command(command, target, *options, app=app)
    assert done.code == 4, done.stderr
    for pattern in patterns:
        assert re.search(pattern, done.stderr), done.stderr
    assert not ours(done.stderr), "their traceback, never ours"
    assert done.stderr.count("Traceback") <= 1, "once, not once per worker"
    assert done.stdout == "" or command == "check"


def test_address_in_use(prefork_command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = prefork_command("run", "app:mux", "-b", f"127.0.0.1:{port}", app=APP)
    assert done.code == 6
    assert f"127.0.0.1:{port}" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


# --- run ------------------------------------------------------------------------------------


def test_run_serves_and_stops_cleanly(prefork_process: Command) -> None:
    server = prefork_process(APP, "-w", "2")
    line = server.wait_for_log(r".*serving.*")[0]
    assert re.search(
        rf"serving app:mux on http://127\.0\.0\.1:{server.port} with 2 workers "
        rf"\(prefork {re.escape(__version__)}, Python 3\.\d+\.\d+\S*, uvloop [\d.]+, httptools [\d.]+\)$",
        line,
    )
    assert len(server.workers()) == 2
    assert server.get("/hello/you").body == b"hello you"
    assert int(server.get("/pid").body) in server.workers()
    assert server.stop() == 0
    assert server.stdout() == ""


def test_run_takes_app_and_all_else_from_a_file(prefork_process: Command, tmp_path: Path) -> None:
    path = tmp_path / "here.sock"
    text = f'bind = ["unix:{path}", "127.0.0.1:0"]\nworkers = 2\naccess_log = true\nlog_level = "debug"\n'
    server = prefork_process(
        APP, "--bind", f"unix:{path}", "--bind=127.0.0.1:0", files={"prefork.toml": text}
    )
    assert f"unix:{path}" in server.addresses
    assert server.get("/hello/file").status == 200
    assert server.stop() == 0
    assert not path.exists()


def test_access_log_on_standard_output(prefork_process: Command, until: Command) -> None:
    server = prefork_process(APP, "--access-log")
    client = server.connect()
    client.get('/hello/%22x%22"', 'User-Agent: evil\\"agent', "Referer: http://a/")
    client.close()
    lines = until(lambda: server.stdout().splitlines(), 5, "an access log line")
    assert re.fullmatch(
        r"127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "
        r'"GET /hello/%22x%22\\x22 HTTP/1\.1" \d+ \d+ "http://a/" "evil\\x5C\\x22agent" \d+\.\d{6}',
        lines[0],
    )
    assert server.stop() == 0


def test_factory_and_chdir(prefork_process: Command, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "other.py").write_text(APP)
    server = prefork_process("", "--chdir", "there", target="other:make()")
    assert server.get("/hello/x").status == 200
    assert server.stop() == 0


# --- check and routes -----------------------------------------------------------------------


def test_check_prints_every_value_with_its_source(prefork_command: Command, tmp_path: Path) -> None:
    done = prefork_command(
        "check", "app:mux", "-w", "3", "--keep-alive", "90",
        app=APP, files={"prefork.toml": 'max_body_bytes = "1GiB"\n'}, env={"PREFORK_BACKLOG": "99"},
    )  # fmt: skip
    assert (done.code, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split(None, 1)[1] for line in done.stdout.splitlines() if line}
    assert set(TABLE) <= set(rows)
    assert rows["app"].split(None, 1) == ["app:mux", "the argument APP"]
    assert rows["workers"].split(None, 1) == ["3", "-w"]
    assert rows["idle_timeout"].split(None, 1) == ["90s", "--keep-alive"]
    assert rows["backlog"].split(None, 1) == ["99", "PREFORK_BACKLOG"]
    assert rows["max_body_bytes"].split(None, 1) == ["1GiB", f"{tmp_path}/prefork.toml: max_body_bytes"]
    assert rows["read_timeout"].split(None, 1) == ["none", "default"]
    assert done.stdout.endswith("app:mux is a ServeMux with 2 routes: it can be served\n")


def test_check_of_a_function_and_a_factory(prefork_command: Command) -> None:
    assert prefork_command("check", "app:plain", app=APP).stdout.endswith(
        "app:plain is a function: it can be served\n"
    )
    assert "app:make() is a ServeMux with 2 routes" in prefork_command("check", "app:make()").stdout


def test_check_opens_no_port(prefork_command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        assert prefork_command("check", "app:mux", "-b", bind, app=APP).code == 0


def test_routes(prefork_command: Command) -> None:
    done = prefork_command("routes", "app:mux", app=APP)
    assert (done.code, done.stderr) == (0, "")
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first[:2] == ["GET", "/hello/{name}"]
    assert first[2] == "app.hello"
    assert re.fullmatch(r".*app\.py:\d+", first[-1])
    assert second[:2] == ["/pid", "app.pid"]


def test_routes_of_what_has_none(prefork_command: Command) -> None:
    done = prefork_command("routes", "app:plain", app=APP)
    assert done.code == 2
    assert done.stderr == "prefork: app:plain is no ServeMux but a function: it has no routes to show\n"
