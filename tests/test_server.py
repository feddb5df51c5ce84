"""Server: start, drain and end; limits on connections; listening; files; several servers and loops."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http
from prefork.http.server import connection
from prefork.http.server import server as server_module
from prefork.http.server.server import listen

if TYPE_CHECKING:
    from collections.abc import Iterator

HELPERS = Path(__file__).with_name("helpers_server.py")
_spec = importlib.util.spec_from_file_location("helpers_server", HELPERS)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
serving, request, eventually = helpers.serving, helpers.request, helpers.eventually

pytestmark = pytest.mark.both_loops


def pong(w: http.ResponseWriter, r: http.Request) -> None:
    w.write(b"pong")


# --- shutdown -------------------------------------------------------------------------------


def test_shutdown_lets_requests_finish(run: Any) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def handler(w: Any, r: Any) -> None:
            await go_on.wait()
            w.write(b"finished")

        async with serving(handler) as s:
            clients = [await s.client() for _ in range(3)]
            for c in clients:
                await c.send(request())
            await eventually(lambda: s.server.active_connections == 3)
            stopping = asyncio.create_task(s.server.shutdown(10))
            await eventually(lambda: s.server.shutting_down)
            assert not stopping.done()
            go_on.set()
            for c in clients:
                answer = await c.answer()
                assert (answer.body, answer.headers["connection"]) == (b"finished", "close")
                assert await c.closed()
                c.close()
            assert await stopping == 0
            assert s.server.open_connections == 0

    run(main())


def test_shutdown_closes_idle_connections_in_order(run: Any) -> None:
    async def main() -> None:
        async with serving(pong) as s:
            c = await s.client()
            await c.get()
            stopping = asyncio.create_task(s.server.shutdown(10))
            assert await c.closed()
            c.close()
            assert await stopping == 0

    run(main())


def test_shutdown_does_not_wait_for_long_for_clients_that_stay(run: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "LINGER", 0.02)
    monkeypatch.setattr(connection, "NEW_GRACE", 0.02)

    async def main() -> None:
        async with serving(pong, idle_timeout=0.1) as s:
            idle, fresh = await s.client(), await s.client()
            await idle.get()
            await eventually(lambda: s.server.open_connections == 2)
            assert await s.server.shutdown(10) == 0
            assert await idle.closed()
            assert await fresh.closed()

    run(main())


def test_request_that_is_on_its_way_when_shutdown_begins_is_answered(run: Any) -> None:
    async def main() -> None:
        async with serving(pong) as s:
            fresh, begun = await s.client(), await s.client()
            await begun.send(b"GET / HTTP/1.1\r\nHo")
            await eventually(lambda: s.server.open_connections == 2)
            await eventually(lambda: any(conn._head_begun for conn in s.server._connections))
            stopping = asyncio.create_task(s.server.shutdown(10))
            await eventually(lambda: s.server.shutting_down)
            await fresh.send(request())
            await begun.send(b"st: a\r\n\r\n")
            for c in (fresh, begun):
                answer = await c.answer()
                assert (answer.body, answer.headers["connection"]) == (b"pong", "close")
                c.close()
            assert await stopping == 0

    run(main())


def test_queued_connections_are_served(run: Any) -> None:
    """They have been accepted by the kernel: to drop them would be to reset them."""

    async def main() -> None:
        async with serving(pong, gate=lambda: 10.0) as s:
            clients = [await s.client() for _ in range(20)]
            for c in clients:
                await c.send(request())
            for _ in range(20):
                await asyncio.sleep(0)
            assert s.server.open_connections == 0
            stopping = asyncio.create_task(s.server.shutdown(10))
            for c in clients:
                answer = await c.answer()
                assert (answer.body, answer.headers["connection"]) == (b"pong", "close")
                c.close()
            assert await stopping == 0

    run(main())


def test_shutdown_cuts_what_does_not_end_in_time(run: Any) -> None:
    told: list[str] = []

    async def handler(w: Any, r: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    async def main() -> None:
        async with serving(handler) as s:
            clients = [await s.client() for _ in range(3)]
            for c in clients[:2]:
                await c.send(request())
            await eventually(lambda: s.server.active_connections == 2)
            assert await s.server.shutdown(0.05) == 2
            await eventually(lambda: told == ["cancelled"] * 2)
            for c in clients[:2]:
                await c.reset_by_server()
                assert c.buffer == b""

    run(main())


def test_streams_are_told_to_finish(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        while not r.shutting_down:
            await w.write(b"tick ")
            await w.flush()
            await asyncio.wait([asyncio.ensure_future(r.shutting_down.wait())], timeout=10)
        await w.write(b"bye")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request())
            await c.until(b"tick ")
            stopping = asyncio.create_task(s.server.shutdown(10))
            assert (await c.rest()).endswith(b"3\r\nbye\r\n0\r\n\r\n")
            c.close()
            assert await stopping == 0

    run(main())


def test_unread_body_at_shutdown(run: Any) -> None:
    """The answer is out without `Connection: close`, the rest of the body is still coming."""

    async def main() -> None:
        async with serving(pong) as s:
            c = await s.client()
            await c.send(request("/", "Content-Length: 10", method="POST"))
            answer = await c.answer()
            assert "connection" not in answer.headers
            stopping = asyncio.create_task(s.server.shutdown(10))
            await eventually(lambda: s.server.shutting_down)
            await c.send(b"0123456789")
            assert await c.closed()
            c.close()
            assert await stopping == 0

    run(main())


def test_pipeline_at_shutdown_is_answered_up_to_the_one_under_way(run: Any) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def handler(w: Any, r: Any) -> None:
            await go_on.wait()
            w.write(r.url.path)

        async with serving(handler) as s:
            c = await s.client()
            await c.send(request("/1") + request("/2"))
            await eventually(lambda: s.server.active_connections)
            stopping = asyncio.create_task(s.server.shutdown(10))
            await eventually(lambda: s.server.shutting_down)
            go_on.set()
            answer = await c.answer()
            assert (answer.body, answer.headers["connection"]) == (b"/1", "close")
            assert await c.closed()
            c.close()
            assert await stopping == 0

    run(main())


def test_hooks_run_when_shutdown_begins(run: Any) -> None:
    steps: list[str] = []

    async def slow_hook() -> None:
        steps.append("begun")
        await asyncio.sleep(0.01)
        steps.append("ended")

    def broken_hook() -> None:
        raise RuntimeError("plain hook")

    async def broken_later() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("async hook")

    async def main() -> None:
        async with serving(pong) as s:
            s.server.register_on_shutdown(lambda: steps.append("plain"))
            s.server.register_on_shutdown(broken_hook)
            s.server.register_on_shutdown(slow_hook)
            s.server.register_on_shutdown(broken_later)
            assert await s.server.shutdown(10) == 0
            assert steps == ["plain", "begun", "ended"]
            assert await s.server.shutdown(10) == 0
            assert len(steps) == 3
            plain, later = s.log.take()
            assert "plain hook" in plain
            assert "async hook" in later

    run(main())


def test_hook_that_does_not_end_is_cancelled(run: Any) -> None:
    steps: list[str] = []

    async def hook() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("ended")

    async def main() -> None:
        async with serving(pong) as s:
            s.server.register_on_shutdown(hook)
            assert await s.server.shutdown(0.05) == 0
            await eventually(lambda: steps)

    run(main())


# --- the life of a server -------------------------------------------------------------------


def test_serve_until_shutdown(run: Any) -> None:
    async def main() -> None:
        server = http.Server("", pong)
        with listen("127.0.0.1:0") as sock:
            task = asyncio.create_task(server.serve(sock))
            c = await helpers.Client.to(sock.getsockname())
            assert (await c.get()).body == b"pong"
            c.close()
            await server.shutdown(10)
            await task
            for call in (server.serve(sock), server.listen_and_serve()):
                with pytest.raises(http.ServerClosed):
                    await call
            with pytest.raises(http.ServerClosed):
                server.start([sock])

    run(main())


def test_serve_after_close_before_start(run: Any) -> None:
    async def main() -> None:
        for end in (http.Server.close, http.Server.shutdown):
            server = http.Server("", pong)
            result = end(server)
            if result is not None:
                assert await result == 0
            with listen("127.0.0.1:0") as sock, pytest.raises(http.ServerClosed, match="Server closed"):
                await server.serve(sock)

    run(main())


def test_start_twice(run: Any) -> None:
    async def main() -> None:
        async with serving(pong) as s:
            with pytest.raises(RuntimeError, match="already"):
                s.server.start([s.listener])

    run(main())


def test_close_cuts_everything(run: Any) -> None:
    told: list[str] = []

    async def handler(w: Any, r: Any) -> None:
        w.write(b"x" * 3000)
        await w.flush()
        try:
            await asyncio.Event().wait()
        finally:
            told.append("ended")

    async def main() -> None:
        server = http.Server("", handler)
        with listen("127.0.0.1:0") as sock:
            task = asyncio.create_task(server.serve(sock))
            busy = await helpers.Client.to(sock.getsockname())
            fresh = await helpers.Client.to(sock.getsockname())
            await busy.send(request())
            await busy.until(b"\r\n\r\n")
            server.close()
            server.close()
            await task
            await busy.reset_by_server()
            await fresh.reset_by_server()
            assert told == ["ended"]
            assert server.open_connections == 0
            busy.close()
            fresh.close()

    run(main())


def test_close_from_within_a_handler(run: Any) -> None:
    async def main() -> None:
        async def handler(w: Any, r: Any) -> None:
            if r.url.path == "/waits":
                await asyncio.sleep(0)
            w.write(b"bye")
            s.server.close()
            if r.url.path == "/cleans":
                await asyncio.sleep(0)

        for target in ("/", "/waits", "/cleans"):
            async with serving(handler) as s:
                c = await s.client()
                await c.send(request(target))
                await c.reset_by_server()
                await eventually(lambda: not s.server._connections)

    run(main())


def test_shutdown_from_within_a_handler(run: Any) -> None:
    stopping: list[asyncio.Task[int]] = []

    async def main() -> None:
        async def handler(w: Any, r: Any) -> None:
            stopping.append(asyncio.create_task(s.server.shutdown(10)))
            await r.shutting_down
            w.write(b"bye")

        async with serving(handler) as s:
            c = await s.client()
            answer = await c.get()
            assert (answer.body, answer.headers["connection"]) == (b"bye", "close")
            c.close()
            assert await stopping[0] == 0

    run(main())


def test_connection_that_arrives_while_the_server_closes(run: Any) -> None:
    """It has been accepted, its transport is not there yet, and then the server is closed."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def gate() -> float:
            loop.call_soon(s.server.close)
            return 0.0

        async with serving(pong, gate=gate) as s:
            c = await s.client()
            await c.reset_by_server()
            await eventually(lambda: s.server.open_connections == 0)

    run(main())


def test_cancelled_serve_closes(run: Any) -> None:
    async def main() -> None:
        server = http.Server("", pong)
        with listen("127.0.0.1:0") as sock:
            task = asyncio.create_task(server.serve(sock))
            c = await helpers.Client.to(sock.getsockname())
            await c.get()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await c.reset_by_server()
            c.close()

    run(main())


def test_async_with_closes(run: Any) -> None:
    async def main() -> None:
        with listen("127.0.0.1:0") as sock:
            async with http.Server("", pong) as server:
                server.start([sock])
                c = await helpers.Client.to(sock.getsockname())
                assert (await c.get()).body == b"pong"
            await c.reset_by_server()
            c.close()
            await asyncio.sleep(0)

    run(main())


def test_counters(run: Any) -> None:
    counts: list[int] = []

    async def main() -> None:
        async with serving(pong) as s:
            s.server.on_open_connections = counts.append
            one, two = await s.client(), await s.client()
            await one.get()
            await one.get()
            await two.get()
            assert (s.server.open_connections, s.server.active_connections, s.server.requests) == (2, 0, 3)
            one.close()
            await eventually(lambda: s.server.open_connections == 1)
            two.reset()
            await eventually(lambda: s.server.open_connections == 0)
            assert counts == [1, 2, 1, 0]
            assert s.server.requests == 3

    run(main())


def test_set_keep_alives_enabled(run: Any) -> None:
    async def main() -> None:
        async with serving(pong) as s:
            idle, later = await s.client(), await s.client()
            await idle.get()
            await eventually(lambda: s.server.open_connections == 2)
            s.server.set_keep_alives_enabled(False)
            assert await idle.closed()
            answer = await later.get()
            assert (answer.body, answer.headers["connection"]) == (b"pong", "close")
            assert await later.closed()
            s.server.set_keep_alives_enabled(True)
            again = await s.client()
            for _ in range(2):
                assert "connection" not in (await again.get()).headers

    run(main())


def test_two_servers_in_one_loop(run: Any) -> None:
    async def main() -> None:
        async with (
            serving(lambda w, r: w.write(b"one")) as one,
            serving(lambda w, r: w.write(b"two")) as two,
        ):
            for _ in range(2):
                assert [(await s.get()).body for s in (one, two)] == [b"one", b"two"]
            assert await one.server.shutdown(5) == 0
            assert (await two.get()).body == b"two"

    run(main())


def test_one_server_on_several_sockets(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        with listen("127.0.0.1:0") as tcp, listen(f"unix:{tmp_path}/s") as unix:
            async with http.Server("", lambda w, r: w.write(r.remote_addr)) as server:
                server.start([tcp, unix])
                for sock in (tcp, unix):
                    c = await helpers.Client.to(sock.getsockname())
                    local = c.sock.getsockname()
                    answer = await c.get()
                    assert answer.body.decode() == (f"127.0.0.1:{local[1]}" if sock is tcp else "@")
                    c.close()
            await asyncio.sleep(0)

    run(main())


def test_default_handler_is_the_default_mux(run: Any) -> None:
    async def main() -> None:
        async with serving(None) as s:
            assert (await s.get("/there-is-no-such-route")).status == 404

    run(main())


@pytest.mark.parametrize("handler", [7, "app:mux", http.ServeMux])
def test_what_is_no_handler(handler: Any) -> None:
    with pytest.raises(TypeError, match="not a handler"):
        http.Server("", handler)


# --- how many connections -------------------------------------------------------------------


def test_max_conns(run: Any) -> None:
    """More wait in the listen queue, and are served when others leave."""

    async def main() -> None:
        async with serving(pong, max_conns=3) as s:
            clients = [await s.client() for _ in range(6)]
            for c in clients:
                await c.send(request())
            await eventually(lambda: s.server.requests == 3)
            for _ in range(50):
                await asyncio.sleep(0)
            assert s.server.open_connections == 3
            waiting = list(clients)
            for _ in range(3):
                # Whoever has got an answer leaves.
                done = [c for c in waiting if await _has_answer(c)]
                assert len(done) <= 3
                for c in done:
                    c.close()
                    waiting.remove(c)
                if not waiting:
                    break
                served = s.server.requests
                await eventually(lambda served=served: s.server.requests > served)
            await eventually(lambda: s.server.requests == 6)
            assert s.server.open_connections <= 3

    run(main())


async def _has_answer(c: Any) -> bool:
    try:
        await asyncio.wait_for(c.fill(), 0.05)
    except TimeoutError:
        return False
    return b"pong" in c.buffer


def test_max_conns_and_drain(run: Any) -> None:
    async def main() -> None:
        async with serving(pong, max_conns=1) as s:
            clients = [await s.client() for _ in range(4)]
            for c in clients:
                await c.send(request())
            await clients[0].answer()
            stopping = asyncio.create_task(s.server.shutdown(10))
            clients[0].close()
            for c in clients[1:]:
                assert (await c.answer()).body == b"pong"
                c.close()
            assert await stopping == 0

    run(main())


def test_gate_steps_back_and_returns(run: Any) -> None:
    asked: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def gate() -> float:
            asked.append(loop.time())
            return 0.03 if len(asked) <= 3 else 0.0

        async with serving(pong, gate=gate) as s:
            assert (await s.get()).body == b"pong"
            assert len(asked) == 4
            assert all(later - earlier >= 0.025 for earlier, later in itertools.pairwise(asked))
            await s.get()
            assert len(asked) == 5

    run(main())


EMFILE = """
import asyncio, importlib.util, os, resource, sys, time
import uvloop
from prefork import http
from prefork.http.server.server import listen

def handler(w, r):
    w.write(f"{time.process_time()}")

async def main():
    sock = listen("127.0.0.1:0")
    server = http.Server("", handler)
    server.start([sock])
    used = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, used + 5))
    print(sock.getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()
    print(server.requests, flush=True)
    await asyncio.sleep(0)

import logging
logging.basicConfig(format="%(message)s")
with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[1] == "uvloop" else None) as runner:
    runner.run(main())
"""


@contextlib.contextmanager
def script(text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def cpu_time(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_out_of_descriptors(run: Any, request: Any, connect: Any) -> None:
    """The queue is left alone, without spinning, and served when there is room again."""
    with script(EMFILE, request.node.callspec.params["run"]) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        clients = [connect(port) for _ in range(20)]
        for c in clients:
            c.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "Too many open files" in line
        assert "LimitNOFILE" in line
        before = cpu_time(process.pid)
        assert clients[0].response().status == 200
        clients[-1].socket.settimeout(0.6)
        with pytest.raises(TimeoutError):
            clients[-1].response()
        assert cpu_time(process.pid) - before < 0.3
        clients[-1].socket.settimeout(10)
        for c in clients[1:]:
            # Served in the order of the queue, as the ones before leave.
            assert c.response().status == 200
            c.close()
        out, _ = process.communicate("")
        assert out == "20\n"


# --- listening ------------------------------------------------------------------------------


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize(
    ("addr", "reach", "not_reach"),
    [
        (":0", ["127.0.0.1", "::1"], []),
        ("127.0.0.1:0", ["127.0.0.1"], ["::1"]),
        ("localhost:0", ["127.0.0.1"], []),
        ("0.0.0.0:0", ["127.0.0.1"], ["::1"]),
        ("[::1]:0", ["::1"], ["127.0.0.1"]),
        ("[::]:0", ["::1"], ["127.0.0.1"]),
    ],
)
def test_listen(run: Any, addr: str, reach: list[str], not_reach: list[str]) -> None:
    if not has_ipv6():
        if addr.startswith("["):
            pytest.skip("no IPv6 here")
        reach = [host for host in reach if host != "::1"]

    async def main() -> None:
        async with serving(lambda w, r: w.write(r.remote_addr), addr=addr) as s:
            for host in reach:
                c = await helpers.Client.to((host, s.port))
                answer = await c.get()
                local = c.sock.getsockname()[1]
                assert answer.body.decode().endswith(
                    f"[::1]:{local}" if host == "::1" else f"127.0.0.1:{local}"
                )
                c.close()
            for host in not_reach:
                with pytest.raises(ConnectionRefusedError):
                    await helpers.Client.to((host, s.port))

    run(main())


def test_listen_on_a_unix_socket(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(pong, addr=f"unix:{tmp_path}/s.sock") as s:
            assert s.address == f"{tmp_path}/s.sock"
            assert (await s.get()).body == b"pong"

    run(main())


@pytest.mark.parametrize(
    "addr", ["8000", "localhost", ":", ":x", ":-1", ":65536", "::1:80", ":\uff18\uff10", ":8_0"]
)
def test_listen_refuses_what_is_no_address(addr: str) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        listen(addr).close()
    assert addr in str(caught.value) or isinstance(caught.value, OSError)


def test_listen_on_an_address_in_use(tmp_path: Path) -> None:
    with listen("127.0.0.1:0") as sock:
        addr = f"127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen on {addr}: Address already in use"):
            listen(addr)
    with listen(f"unix:{tmp_path}/s"), pytest.raises(OSError, match=r"cannot listen on unix:.*in use"):
        listen(f"unix:{tmp_path}/s")


def test_port_can_be_taken_again_at_once(run: Any) -> None:
    """A connection in TIME_WAIT must not hold up a restart."""

    async def main() -> None:
        async with serving(pong) as s:
            c = await s.client()
            await c.get("/", "Connection: close")
            assert await c.closed()
            port = s.port
        listen(f"127.0.0.1:{port}").close()

    run(main())


def test_backlog_is_as_asked() -> None:
    with listen("127.0.0.1:0", backlog=7) as sock:
        port = sock.getsockname()[1]
        shown = subprocess.run(
            ["ss", "-ltn", f"sport = :{port}"], capture_output=True, text=True, check=False
        )
        if shown.returncode != 0:
            pytest.skip("no ss here")
        assert shown.stdout.splitlines()[1].split()[2] == "7"


# --- listen_and_serve -----------------------------------------------------------------------

MAIN = """
import logging, sys, asyncio
from prefork import http

logging.basicConfig(format="%(message)s", level=logging.INFO)

@http.handle_func("/ping")
def ping(w, r):
    w.write(b"pong")

@http.handle_func("/slow")
async def slow(w, r):
    w.write(b"begun ")
    await w.flush()
    await r.shutting_down
    await asyncio.sleep(0.05)
    await w.write(b"ended")

@http.handle_func("/never")
async def never(w, r):
    await w.flush()
    await asyncio.Event().wait()

http.listen_and_serve(sys.argv[1], read_header_timeout=5)
print("served")
"""


def serving_port(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    match = re.search(r"serving on .*:(\d+)", process.stderr.readline())
    assert match is not None
    return int(match[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_listen_and_serve_drains_at_a_signal(number: int, connect: Any) -> None:
    with script(MAIN, "127.0.0.1:0") as process:
        port = serving_port(process)
        idle, slow = connect(port), connect(port)
        assert idle.get("/ping").body == b"pong"
        slow.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        slow.until(b"begun ")
        process.send_signal(number)
        assert slow.rest().endswith(b"5\r\nended\r\n0\r\n\r\n")
        assert idle.closed()
        slow.close()
        idle.close()
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, "served\n", "")
        with pytest.raises(ConnectionRefusedError):
            connect(port)


def test_second_signal_ends_at_once(connect: Any) -> None:
    with script(MAIN, "127.0.0.1:0") as process:
        c = connect(serving_port(process))
        c.send(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")
        c.until(b"\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        # It drains: the listener is still there, but nobody is accepted any more.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out) == (0, "served\n"), err
        assert "Traceback" not in err


def test_listen_and_serve_on_a_unix_socket_can_be_started_again(tmp_path: Path, connect: Any) -> None:
    path = str(tmp_path / "s.sock")
    for _ in range(2):
        with script(MAIN, f"unix:{path}") as process:
            assert process.stderr is not None
            assert process.stderr.readline() == f"http: serving on unix:{path}\n"
            assert connect(path).get("/ping").body == b"pong"
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=10)
            assert (process.returncode, out, err) == (0, "served\n", "")


def test_server_listen_and_serve(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        for _ in range(2):
            server = http.Server(f"unix:{tmp_path}/s", pong)
            task = asyncio.create_task(server.listen_and_serve())
            await eventually(lambda: os.path.exists(f"{tmp_path}/s"))
            c = await helpers.Client.to(f"{tmp_path}/s")
            assert (await c.get()).body == b"pong"
            c.close()
            await server.shutdown(5)
            await task

    run(main())


# --- send_file ------------------------------------------------------------------------------

SIZE = 700_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(n % 251 for n in range(SIZE)))
    return path


@pytest.mark.parametrize("kind", ["path", "str", "file"])
@pytest.mark.parametrize(
    ("offset", "count"), [(0, None), (0, 0), (SIZE, None), (5, 10), (300_000, 300_000), (699_999, None)]
)
def test_send_file(run: Any, file: Path, kind: str, offset: int, count: int | None) -> None:
    opened = open(file, "rb")  # noqa: SIM115 - closed below, after the server
    want = file.read_bytes()[offset:][: SIZE if count is None else count]

    async def handler(w: Any, r: Any) -> None:
        w.header["Content-Type"] = "application/octet-stream"
        await w.send_file({"path": file, "str": str(file), "file": opened}[kind], offset, count)

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            answer = await c.get()
            assert answer.body == want
            assert answer.headers["content-length"] == str(len(want))
            answer = await c.ask("HEAD", "/")
            assert answer.headers["content-length"] == str(len(want))
            assert (await c.get()).body == want

    with opened:
        run(main())
        assert opened.tell() == 0, "the file's own position was moved"


def test_send_file_between_other_writes(run: Any, file: Path) -> None:
    async def handler(w: Any, r: Any) -> None:
        w.write(b"<")
        await w.send_file(file, 10, 20)
        await w.send_file(file, 0, 5)
        w.write(b">")

    data = file.read_bytes()

    async def main() -> None:
        async with serving(handler) as s:
            assert (await s.get()).body == b"<" + data[10:30] + data[:5] + b">"

    run(main())


@pytest.mark.parametrize(
    "arguments", [("missing",), ("data.bin", -1), ("data.bin", 0, SIZE + 1), ("data.bin", SIZE + 1), (".",)]
)
def test_send_file_that_cannot_be_sent(run: Any, file: Path, arguments: tuple[Any, ...]) -> None:
    async def handler(w: Any, r: Any) -> None:
        await w.send_file(file.parent / arguments[0], *arguments[1:])

    async def main() -> None:
        async with serving(handler) as s:
            answer = await s.get()
            assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
            assert len(s.log.take()) == 1

    run(main())


def test_send_file_without_a_descriptor(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        await w.send_file(io.BytesIO(b"x"))

    async def main() -> None:
        async with serving(handler) as s:
            assert (await s.get()).status == 500
            assert "UnsupportedOperation" in s.log.take()[0]

    run(main())


def test_file_that_shrinks_while_it_is_sent(run: Any, file: Path) -> None:
    """The client must not take what it got for the whole."""

    async def main() -> None:
        async with serving(lambda w, r: w.send_file(file), sndbuf=16384) as s:
            c = await s.client(rcvbuf=16384)
            await c.send(request())
            await eventually(lambda: s.server.open_connections and s.conn._write_blocked)
            os.truncate(file, 1000)
            await c.until(b"\r\n\r\n")
            assert 1000 < len(await c.rest()) < SIZE
            assert "became shorter" in s.log.take()[0]

    run(main())


def test_send_file_in_little_memory(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "big"
    size = 60 << 20
    with open(path, "wb") as opened:
        opened.truncate(size)

    async def main() -> None:
        async with serving(lambda w, r: w.send_file(path)) as s:
            c = await s.client()
            with helpers.Memory() as memory:
                await c.send(request())
                await c.until(b"\r\n\r\n")
                received, c.buffer = len(c.buffer), b""
                while received < size:
                    assert await c.fill()
                    received, c.buffer = received + len(c.buffer), b""
            assert memory.growth < 8 << 20

    run(main())


def test_send_file_of_a_client_that_left_closes_the_file(run: Any, tmp_path: Path) -> None:
    """Opening a pipe blocks until somebody writes to it: the request is long cancelled by then."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def handler(w: Any, r: Any) -> None:
        async with r.cancel_on_disconnect():
            await w.send_file(fifo)

    async def main() -> None:
        async with serving(handler, blocking_threads=1) as s:
            c = await s.client()
            await c.send(request())
            await eventually(lambda: s.server.active_connections)
            c.close()
            await eventually(lambda: not s.server._connections)
            # The pipe is opened now; the check for leaks around every test finds what stays open.
            os.close(os.open(fifo, os.O_WRONLY))
            await s.server.in_thread(threading.get_ident)

    run(main())


def test_constants_are_what_the_documentation_says() -> None:
    assert server_module.BACKLOG == 2048
    assert http.Server().max_body_bytes == 10 << 20
    assert http.Server(max_header_bytes=None).max_header_bytes > 1 << 40
