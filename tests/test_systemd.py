"""The units, and socket activation, by systemd's own tools. What systemd is told: test_systemd_story.py."""

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
UNITS = [ROOT / "systemd" / name for name in ("prefork@.service", "prefork@.socket")]
DROP_IN = ROOT / "systemd" / "prefork@.service.d" / "notify-reload.conf"
FILES = [*UNITS, DROP_IN]

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


def systemd_version() -> int:
    out = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True)
    return int(out.stdout.split()[1])


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
def test_systemd_understands_the_drop_in(units):
    """Since 253. An older one says what it does not know, and that is all it has to say."""
    folder = units / DROP_IN.parent.name
    folder.mkdir()
    (folder / DROP_IN.name).write_text(DROP_IN.read_text())
    code, text = analyze("verify", str(units / "prefork@.service"))
    if systemd_version() >= 253:
        assert (code, text) == (0, "")
    else:
        assert [line for line in text.splitlines() if "notify-reload" not in line] == []
        assert "Failed to parse service type" in text


@needs("systemd-analyze")
def test_the_service_is_hardened(units):
    service = str(units / "prefork@.service")
    code, text = analyze("security", "--offline=true", "--threshold=12", service)
    assert code == 0, text


@pytest.mark.parametrize("unit", FILES, ids=lambda unit: unit.name)
def test_no_line_has_a_trailing_comment(unit):
    assert not [value for _, value in directives(unit) if "#" in value or ";" in value]


def test_the_readme_explains_every_directive_and_no_other():
    text = (ROOT / "systemd" / "README.md").read_text()
    for unit in FILES:
        section = text.split(f"## `{unit.relative_to(ROOT / 'systemd')}`")[1].split("\n## ")[0]
        first_cells = "\n".join(re.findall(r"^\|[^|]*\|", section, re.M))
        explained = set(re.findall(r"`([A-Z][A-Za-z]+)=", first_cells))
        explained |= {"WantedBy"} if "`WantedBy=" in section else set()
        assert explained == {name for name, _ in directives(unit)}


def test_the_readmes_values_are_the_units():
    text = (ROOT / "systemd" / "README.md").read_text()
    for unit in FILES:
        section = text.split(f"## `{unit.relative_to(ROOT / 'systemd')}`")[1].split("\n## ")[0]
        for name, value in directives(unit):
            for given in re.findall(rf"^\|[^|]*`{name}=([^`]+)`", section, re.M):
                assert given in [other for key, other in directives(unit) if key == name] or any(
                    given in other_unit.read_text() for other_unit in UNITS
                ), f"{name}={value}, not {given}"


def test_times_fit_the_defaults():
    from prefork.settings import Settings

    values = dict(directives(ROOT / "systemd" / "prefork@.service"))
    settings = Settings()
    assert int(values["TimeoutStopSec"]) > settings.drain_delay + settings.graceful_timeout
    assert int(values["TimeoutStartSec"]) > settings.boot_timeout
    assert settings.worker_timeout is not None
    assert int(values["WatchdogSec"]) > settings.worker_timeout + settings.boot_timeout


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
