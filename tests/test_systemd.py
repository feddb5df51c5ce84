"""The units, and what prefork does with what systemd gives it, by systemd's own tools."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UNITS = sorted((ROOT / "systemd").glob("prefork@.*"))

APP = """
import json, os
from prefork import http

mux = http.ServeMux()

@mux.handle_func("/environ")
def environ(w, r):
    names = [name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))]
    w.write(json.dumps(names))

@mux.handle_func("/ping")
def ping(w, r):
    w.write(b"pong")
"""


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


@pytest.fixture
def units(tmp_path):
    """Copies of the units whose command exists on this machine: verify looks for it."""
    for unit in UNITS:
        text = unit.read_text().replace("/srv/%i/.venv/bin/prefork", sys.executable)
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def directives(unit: Path) -> list[tuple[str, str]]:
    lines = [line for line in unit.read_text().splitlines() if line and not line.startswith(("#", ";", "["))]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def analyze(*arguments: str) -> tuple[int, str]:
    """Exit code and everything that systemd-analyze says."""
    out = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    return out.returncode, out.stdout + out.stderr


# --- the units ------------------------------------------------------------------------------


@needs("systemd-analyze")
def test_systemd_understands_every_line(units):
    paths = [str(units / unit.name) for unit in UNITS]
    assert analyze("verify", *paths) == (0, "")


@needs("systemd-analyze")
def test_verify_would_complain(units):
    """The check above means something: a mistake is found."""
    path = units / "prefork@.service"
    path.write_text(path.read_text().replace("KillMode=mixed", "KillMode=mixed  # drain"))
    assert "Failed to parse kill mode" in analyze("verify", str(path))[1]


@needs("systemd-analyze")
def test_the_service_is_hardened(units):
    service = str(units / "prefork@.service")
    code, text = analyze("security", "--offline=true", "--threshold=12", service)
    assert code == 0, text


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_line_has_a_trailing_comment(unit):
    assert not [value for _, value in directives(unit) if "#" in value or ";" in value]


def test_the_readme_explains_every_directive_and_no_other():
    text = (ROOT / "systemd" / "README.md").read_text()
    for unit in UNITS:
        section = text.split(f"## `{unit.name}`")[1].split("\n## ")[0]
        first_cells = "\n".join(re.findall(r"^\|[^|]*\|", section, re.M))
        explained = set(re.findall(r"`([A-Z][A-Za-z]+)=", first_cells))
        explained |= {"WantedBy"} if "`WantedBy=" in section else set()
        assert explained == {name for name, _ in directives(unit)}


def test_the_readmes_values_are_the_units():
    text = (ROOT / "systemd" / "README.md").read_text()
    for unit in UNITS:
        for name, value in directives(unit):
            for given in re.findall(rf"^\|[^|]*`{name}=([^`]+)`", text, re.M):
                assert given in [other for key, other in directives(unit) if key == name] or any(
                    given in other_unit.read_text() for other_unit in UNITS
                ), f"{name}={value}, not {given}"


def test_times_fit_the_defaults():
    from prefork.settings import Settings

    values = dict(directives(ROOT / "systemd" / "prefork@.service"))
    assert int(values["TimeoutStopSec"]) > Settings().graceful_timeout
    assert int(values["TimeoutStartSec"]) > Settings().boot_timeout


# --- socket activation ----------------------------------------------------------------------


def get(path: str, target: str) -> bytes:
    """One request over a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := client.recv(65536):
            answer += data
    return answer.partition(b"\r\n\r\n")[2]


@needs("systemd-socket-activate")
def test_the_first_connection_starts_it_and_is_answered(tmp_path, until):
    (tmp_path / "app.py").write_text(APP)
    paths = [str(tmp_path / "a.sock"), str(tmp_path / "b.sock")]
    command = ["systemd-socket-activate", "-l", paths[0], "-l", paths[1], "--fdname=http:admin"]
    for name in ("PATH", "HOME", "PYTHONPATH", "VIRTUAL_ENV"):
        if name in os.environ:
            command += ["-E", name]
    command += [sys.executable, "-m", "prefork", "run", "app:mux", "-w", "2"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: all(map(os.path.exists, paths)), what="the sockets of systemd-socket-activate")
        assert get(paths[0], "/ping") == b"pong"
        assert get(paths[1], "/ping") == b"pong"
        assert get(paths[0], "/environ") == b"[]"
        line = f"serving app:mux on unix:{paths[0]}, unix:{paths[1]} with 2 workers"
        until(lambda: line in (tmp_path / "log").read_text(), what="the start-up line")
        # It became the program, whose pid was promised in LISTEN_PID.
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    # The files are systemd's: it may hold the sockets for the next start.
    assert all(map(os.path.exists, paths))


# --- notification ---------------------------------------------------------------------------


def test_the_service_manager_hears_the_whole_story(tmp_path, prefork_process):
    path = str(tmp_path / "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        server = prefork_process(APP, "-w", "2", env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"})
        heard = []
        while "READY=1" not in heard:
            heard.append(manager.recv(4096).decode())
        assert heard[:-1] == ["STATUS=0/2 workers ready", "STATUS=1/2 workers ready"]
        assert server.get("/ping").body == b"pong"
        assert server.get("/environ").body == b"[]"
        os.kill(server.workers()[0], signal.SIGKILL)
        server.wait_for_log("was killed by SIGKILL")
        while heard[-1] != "STATUS=1/2 workers ready":
            heard.append(manager.recv(4096).decode())
        while heard[-1] != "STATUS=2/2 workers ready":
            heard.append(manager.recv(4096).decode())
        assert server.stop() == 0
        manager.setblocking(False)
        rest = []
        while True:
            try:
                rest.append(manager.recv(4096).decode())
            except BlockingIOError:
                break
    assert rest[:2] == ["STOPPING=1", "STATUS=draining, 2 workers left"]
    assert heard.count("READY=1") == 1


def test_a_failed_start_is_never_ready(tmp_path, prefork_command):
    path = str(tmp_path / "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        done = prefork_command(
            "run", "app:mux", "-b", "127.0.0.1:0", app="raise RuntimeError('no')", env={"NOTIFY_SOCKET": path}
        )
        manager.setblocking(False)
        heard = []
        while True:
            try:
                heard.append(manager.recv(4096).decode())
            except BlockingIOError:
                break
    assert done.code == 4
    assert not [text for text in heard if "READY" in text]
    assert "STOPPING=1" in heard
