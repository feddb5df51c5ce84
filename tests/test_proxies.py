"""HAProxy and nginx in front of two servers that are restarted in turn: nobody notices.

The configuration files are the ones that the README quotes; only the addresses are made free ones.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
HOST = "127.0.74.1"  # nobody else's, so that a port that was free a moment ago still is
FILES = ["haproxy.cfg", "nginx.conf"]

APP = """
import asyncio, os
from prefork import http

mux = http.ServeMux()

@mux.handle_func("GET /ping")
def ping(w, r):
    w.write(r.header.get("X-Forwarded-For", "nobody"))

@mux.handle_func("GET /slow")
async def slow(w, r):
    await asyncio.sleep(0.2)
    w.write("slow")

@mux.handle_func("POST /echo")
async def echo(w, r):
    await w.write(await r.body.read())

@mux.handle_func("GET /pid")
def pid(w, r):
    w.write(str(os.getppid()))
"""


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in socks]


def moved(name: str, ports: dict[int, int]) -> str:
    """The text of a configuration file with other ports, on our host."""
    text = (HERE / name).read_text()
    for old, new in ports.items():
        assert str(old) in text
        text = text.replace(f"127.0.0.1:{old}", f"{HOST}:{new}").replace(f"port {old}", f"port {new}")
    return text


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5):
        return True
    return False


@contextlib.contextmanager
def proxy(command: list[str], log: Path, port: int, until: Callable[..., object]) -> Iterator[None]:
    """A proxy that listens on `port`; it must still be there at the end."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        until(lambda: process.poll() is not None or accepts(port), what="the proxy")
        assert process.poll() is None, log.read_text()
        yield
        assert process.poll() is None, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


class Load(contextlib.AbstractContextManager["Load"]):
    """Clients of the proxy, each on one connection, until the end of the block. Nothing is tried again."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self.port = port
        self.done = 0
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(n,)) for n in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _client(self, number: int) -> None:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=20)
        count = 0
        while not self._over.is_set():
            method, target, body = [
                ("GET", "/ping", None),
                ("POST", "/echo", b"x" * 5000),
                ("GET", "/slow", None),
            ][(number + count) % 3]
            count += 1
            try:
                connection.request(method, target, body)
                answer = connection.getresponse()
                data = answer.read()
                if answer.status != 200 or (body is not None and data != body):
                    self.failures.append(f"{method} {target}: {answer.status} {data[:80]!r}")
                self.done += 1
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(f"{method} {target}: {exc!r}")
                connection.close()
            self._over.wait(0.01)
        connection.close()


def ask(port: int, target: str) -> bytes:
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 200, data
        return data
    finally:
        connection.close()


def rolling_restart(front: int, servers: list, begin, until) -> Load:
    """Stop and begin each of the servers in turn, under load. begin(number): starts one."""
    count = len(servers)
    until(lambda: len({ask(front, "/pid") for _ in range(8)}) == count, what="both servers behind the proxy")
    assert ask(front, "/ping").startswith(b"127.")
    with Load(front) as load:
        for number in range(count):
            before = load.done
            until(lambda before=before: load.done > before + 50, what="requests before the restart")
            assert servers[number].stop() == 0
            servers[number] = begin(number)
            pid = str(servers[number].pid).encode()
            until(lambda pid=pid: ask(front, "/pid") == pid, what="the new server behind the proxy")
    return load


@needs("nginx")
def test_nginx(tmp_path, prefork_process, until):
    front, one, two = free_ports(3)
    (tmp_path / "shop.conf").write_text(moved("nginx.conf", {8080: front, 8001: one, 8002: two}))
    temporary = "".join(
        f"{name}_temp_path {tmp_path};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off;\npid {tmp_path}/pid;\nerror_log stderr;\nworker_processes 1;\n"
        f"{'user root;' if os.geteuid() == 0 else ''}\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}include {tmp_path}/shop.conf;\n}}\n"
    )

    def begin(number: int):
        return prefork_process(APP, "-w", "2", "-b", f"{HOST}:{(one, two)[number]}")

    command = ["nginx", "-e", "stderr", "-c", str(tmp_path / "nginx.conf")]
    servers = [begin(0), begin(1)]
    with proxy(command, tmp_path / "proxy.log", front, until):
        load = rolling_restart(front, servers, begin, until)
    assert load.failures == []
    assert load.done > 100


@needs("haproxy")
def test_haproxy(tmp_path, prefork_process, until):
    front, one, two, health_one, health_two = free_ports(5)
    ports = {8080: front, 8001: one, 8002: two, 9001: health_one, 9002: health_two}
    (tmp_path / "haproxy.cfg").write_text(moved("haproxy.cfg", ports))

    def begin(number: int):
        port, health = [(one, health_one), (two, health_two)][number]
        flags = ["--admin", f"{HOST}:{health}", "--drain-delay", "3s"]
        return prefork_process(APP, "-w", "2", "-b", f"{HOST}:{port}", *flags)

    command = ["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")]
    servers = [begin(0), begin(1)]
    with proxy(command, tmp_path / "proxy.log", front, until):
        load = rolling_restart(front, servers, begin, until)
    assert load.failures == []
    assert load.done > 100


@needs("haproxy")
def test_haproxy_likes_its_file():
    done = subprocess.run(
        ["haproxy", "-c", "-f", str(HERE / "haproxy.cfg")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


@pytest.mark.parametrize("name", FILES)
def test_the_readme_quotes_the_file(name):
    readme = (HERE.parent / "README.md").read_text()
    assert f"\n{(HERE / name).read_text()}```" in readme
