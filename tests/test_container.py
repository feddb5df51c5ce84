"""As in a container: process 1 of its namespace, a root that cannot be written to, no /tmp, no home.

Namespaces of unshare(1) take the place of a container's; where they are not allowed the tests
are skipped, with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

APP = """
import json, os, subprocess
from prefork import http

mux = http.ServeMux()

def stat(pid):
    with open(f"/proc/{pid}/stat") as file:
        state, parent = file.read().rpartition(")")[2].split()[:2]
    return state, int(parent)

@mux.handle_func("/facts")
def facts(w, r):
    writable = [path for path in ("/", "/tmp", "/var/tmp", "/dev/shm", os.getcwd()) if can_write(path)]
    processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    w.write(json.dumps({"master": os.getppid(), "writable": writable, "processes": len(processes)}))

def can_write(path):
    try:
        with open(path + "/x", "w"):
            return True
    except OSError:
        return False

@mux.handle_func("/orphans")
@http.blocking
def orphans(w, r):
    # Each child leaves a grandchild behind, which process 1 inherits.
    for _ in range(25):
        subprocess.run(["/bin/sh", "-c", "sleep 0.05 & exit 0"], check=True)
    w.write("left behind")

@mux.handle_func("/strangers")
def strangers(w, r):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != 1:
            try:
                state, parent = stat(name)
                with open(f"/proc/{name}/comm") as file:
                    comm = file.read().strip()
            except OSError:
                continue  # gone in the meantime
            if state == "Z" or comm in ("sleep", "sh"):
                found.append([comm, state, parent])
    w.write(json.dumps(found))

@mux.handle_func("/echo")
async def echo(w, r):
    w.write(str(len(await r.body.read())))
"""

BEGIN = """
set -e
mount --bind {directory} /srv
cd /srv
# All of the root, and what is mounted below it, can be read only; what people write to by habit is hidden.
for place in {hidden}; do
    if [ -d $place ]; then mount -t tmpfs -o ro,mode=000 none $place; fi
done
for place in {needed}; do
    mount --bind $place $place
    mount -o remount,bind,ro $place
done
mount -o remount,bind,ro /srv
mount -o remount,bind,ro /
exec env -i PATH=/usr/bin:/bin {environment} {command}
"""


def places() -> tuple[list[str], list[str]]:
    """Where people write by habit: what can be hidden, and what holds this checkout or its Python."""
    needed = [os.path.realpath(path) + "/" for path in (ROOT, sys.prefix, sys.base_prefix)]
    hidden, kept = [], []
    for place in ("/tmp", "/var/tmp", "/dev/shm", "/home"):
        inside = any(path.startswith(place + "/") for path in needed)
        (kept if inside else hidden).append(place)
    return hidden, kept


@functools.cache
def why_not() -> str:
    """Why there are no namespaces here; "" when there are."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    try:
        done = subprocess.run(
            [
                "unshare",
                "-rpfm",
                "--mount-proc",
                "sh",
                "-c",
                "mount --bind /usr /srv && mount -o remount,bind,ro /",
            ],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "unshare hangs here"
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


@dataclass
class Container:
    """A `prefork run` as process 1. process: unshare(1), whose exit code is that of process 1."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, target: str, body: bytes = b"") -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as sock:
            head = f"POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = b""
            while data := sock.recv(65536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return answer.partition(b"\r\n\r\n")[2]

    def master(self) -> int:
        """The pid that process 1 has out here."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])


@pytest.fixture
def container(tmp_path: Path, until: Callable[..., object]) -> Iterator[Callable[..., Container]]:
    """`container("-w", "2")`: a server in namespaces of its own, which serves."""
    if why := why_not():
        pytest.skip(why)
    started: list[subprocess.Popen[bytes]] = []

    def start(*flags: str, **environment: str) -> Container:
        (tmp_path / "app.py").write_text(APP)
        command = [sys.executable, "-m", "prefork", "run", "app:mux", "-b", "127.0.0.1:0", *flags]
        environment = {"PYTHONPATH": str(ROOT)} | environment
        hidden, needed = places()
        script = BEGIN.format(
            hidden=" ".join(hidden),
            needed=" ".join(needed),
            directory=shlex.quote(str(tmp_path)),
            command=shlex.join(command),
            environment=shlex.join(f"{name}={value}" for name, value in environment.items()),
        )
        log = tmp_path / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                ["unshare", "-rpfm", "--mount-proc", "--kill-child", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        started.append(process)

        def port() -> int:
            assert process.poll() is None, log.read_text()
            match = re.search(r"serving .* on http://127\.0\.0\.1:(\d+)", log.read_text())
            return int(match[1]) if match else 0

        return Container(process, until(port, 30, "the start-up line"), log)

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_a_life_as_process_1_on_a_read_only_root(container, until):
    server = container("-w", "2")
    facts = json.loads(server.get("/facts"))
    assert facts == {"master": 1, "writable": [], "processes": 3}
    assert server.get("/echo", b"x" * 5_000_000) == b"5000000"
    os.kill(server.master(), signal.SIGHUP)
    until(lambda: "generation 2" in server.log.read_text(), what="the reload")
    assert server.get("/echo", b"x") == b"1"
    # The kernel gives process 1 no default actions: without a handler it could not be stopped.
    os.kill(server.master(), signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.log.read_text()


def test_it_buries_the_orphans_of_others(container, until):
    server = container("-w", "2")
    for _ in range(4):
        assert server.get("/orphans") == b"left behind"
    until(lambda: json.loads(server.get("/strangers")) == [], what="the last orphan's burial")
    assert json.loads(server.get("/facts"))["processes"] == 3
    os.kill(server.master(), signal.SIGTERM)
    assert server.process.wait(20) == 0


def test_a_worker_that_is_killed_is_replaced(container, until):
    server = container("-w", "1")
    (worker,) = Path(f"/proc/{server.master()}/task/{server.master()}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    until(lambda: "was killed by SIGKILL" in server.log.read_text(), what="the report of its death")
    assert server.get("/echo", b"xy") == b"2"


# --- the recipe of the README ---------------------------------------------------------------


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_dockerfile_of_the_readme(tmp_path, prefork_command):
    """Its settings exist, its command is one, and the shell is not process 1."""
    (text,) = blocks("dockerfile")
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    program, *arguments = json.loads(command)
    assert program.endswith("/prefork")
    assert arguments[0] == "run"
    settings = dict(re.findall(r"(PREFORK_[A-Z_]+)=(\S+)", text))
    assert settings
    done = prefork_command("check", *arguments[1:], app=APP, env=settings)
    assert done.code == 0, done.stderr
    for name, value in settings.items():
        assert re.search(rf"^{name.removeprefix('PREFORK_').lower()} +\S.* {name}$", done.stdout, re.M), value


def test_the_times_of_the_readmes_pod_fit():
    """Kubernetes waits for longer than prefork takes, and asks where prefork answers."""
    (pod,) = blocks("yaml")
    (dockerfile,) = blocks("dockerfile")
    grace = int(re.search(r"terminationGracePeriodSeconds: (\d+)", pod)[1])
    delay = int(re.search(r"PREFORK_DRAIN_DELAY=(\d+)s", dockerfile)[1])
    from prefork.settings import Settings

    assert grace > delay + Settings().graceful_timeout
    admin = re.search(r"PREFORK_ADMIN=:(\d+)", dockerfile)[1]
    ports = dict(re.findall(r"name: (\w+), containerPort: (\d+)", pod))
    assert ports["admin"] == admin
    assert f"PREFORK_BIND=:{ports['http']}" in dockerfile
    probes = re.findall(r"(\w+)Probe:\n +httpGet: \{path: (\S+), port: (\w+)\}", pod)
    assert probes == [
        ("startup", "/readyz", "admin"),
        ("liveness", "/livez", "admin"),
        ("readiness", "/readyz", "admin"),
    ]
    # One failed readiness probe takes it out before the delay is over.
    period, failures = (
        int(re.search(rf"readinessProbe:(?:\n .*)*?\n +{name}: (\d+)", pod)[1])
        for name in ("periodSeconds", "failureThreshold")
    )
    assert period * failures < delay
    for line in ("readOnlyRootFilesystem: true", "runAsNonRoot: true", "drop: [ALL]"):
        assert line in pod
