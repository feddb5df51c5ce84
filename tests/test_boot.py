"""Workers as they are: the real server in real processes, from the fork to the last answer."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest

from prefork.ipc import ExitCode
from prefork.workers import process
from prefork.workers.process import PrivilegeError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

APP = """
import asyncio, json, os, resource, signal, subprocess, sys, threading
from prefork import http

mux = http.ServeMux()

@mux.handle_func("/ping")
async def ping(w, r):
    w.write(b"pong")

@mux.handle_func("/pid")
def pid(w, r):
    w.write(str(os.getpid()))

@mux.handle_func("/sleep/{seconds}")
async def sleep(w, r):
    print("asleep", os.getpid(), flush=True)
    await asyncio.sleep(float(r.path_value("seconds")))
    w.write(b"slept " + str(os.getpid()).encode())

@mux.handle_func("/hang")
async def hang(w, r):
    while True:
        pass
"""


def status(pid: int, field: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return re.search(rf"^{field}:\s*(.*)$", text, re.M)[1]


def alive(pid: int) -> bool:
    try:
        return status(pid, "State")[0] != "Z"
    except OSError:
        return False


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def files(pid: int) -> dict[int, str]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


# --- start ----------------------------------------------------------------------------------


def test_titles(prefork_process):
    server = prefork_process(APP, "-w", "3")
    assert title(server.pid) == "prefork: master [app:mux]"
    assert sorted(map(title, server.workers())) == [f"prefork: worker {n} [app:mux]" for n in (1, 2, 3)]


def test_before_the_fork_there_is_no_loop_no_thread_and_no_application(tmp_path):
    """Everything is imported, so that the workers share it, and nothing of it runs."""
    (tmp_path / "app.py").write_text(APP)
    code = """
        import json, os, signal, sys, threading
        from prefork.settings import Settings
        from prefork.workers import boot
        real = os.fork
        def fork():
            import asyncio
            try: loop = asyncio.get_event_loop_policy()._local._loop
            except AttributeError: loop = None
            print(json.dumps({
                "tasks": len(os.listdir("/proc/self/task")),
                "threads": threading.active_count(),
                "loop": repr(loop),
                "app": "app" in sys.modules,
                "warm": all(name in sys.modules for name in ("uvloop", "httptools", "prefork.http")),
                "epolls": sum("eventpoll" in os.readlink(f"/proc/self/fd/{fd}")
                    for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
            }), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return real()
        os.fork = fork
        sys.exit(boot.run("app:mux", None, Settings(bind=("127.0.0.1:0",), workers=1)))
    """
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning:__main__", "-c"]
    out = subprocess.run(
        [*command, textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(out.stdout.splitlines()[0])
    # The one epoll instance is the master's own selector; workers close it.
    expected = {"tasks": 1, "threads": 1, "loop": "None", "app": False, "warm": True, "epolls": 1}
    assert found == expected


def test_a_worker_shares_with_the_master_its_stdio_and_listeners_only(prefork_process, tmp_path):
    server = prefork_process(APP, "-w", "3", "-b", "127.0.0.1:0", "-b", f"unix:{tmp_path}/x.sock")
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_for_log("was killed by SIGKILL")
    master = files(server.pid)
    listeners = {
        name
        for fd, name in master.items()
        if name.startswith("socket:") and f"{name[8:-1]}" in _listening_inodes()
    }
    stdio = {master[fd] for fd in (0, 1, 2)}
    assert len(listeners) == 2
    for pid in server.workers():
        mine = files(pid)
        shared = {name for name in mine.values() if ":[" in name and "anon_inode" not in name}
        # Besides, the pipe that the master reads this worker's stacks from.
        assert [name[:5] for name in shared & set(master.values()) - listeners - stdio] in ([], ["pipe:"])
        # And with no other worker anything else.
        for other in set(server.workers()) - {pid}:
            assert shared & set(files(other).values()) <= listeners | stdio
        # One epoll, and it is the loop's: the master's is closed.
        assert list(mine.values()).count("anon_inode:[eventpoll]") == 1
        assert "anon_inode:[pidfd]" not in mine.values()


def _listening_inodes() -> set[str]:
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        if line.split()[3] == "0A":
            found.add(line.split()[9])
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        if int(line.split()[3], 16) & 0x10000:
            found.add(line.split()[6])
    return found


def test_programs_that_the_application_starts_get_nothing_of_ours(prefork_process):
    app = APP + textwrap.dedent("""
        @mux.handle_func("/exec")
        def exec_(w, r):
            code = ("import os; print([f for f in os.listdir('/proc/self/fd')"
                    " if os.path.exists('/proc/self/fd/' + f)]);"
                    "print(open('/proc/self/status').read())")
            w.write(subprocess.check_output([sys.executable, "-c", code], close_fds=False))
        """)
    text = prefork_process(app).get("/exec").body.decode()
    assert set(eval(text.splitlines()[0])) <= {"0", "1", "2"}
    assert int(re.search(r"SigBlk:\s*(\w+)", text)[1], 16) == 0
    ignored = int(re.search(r"SigIgn:\s*(\w+)", text)[1], 16)
    assert not ignored & 1 << signal.SIGINT - 1
    assert not ignored & 1 << signal.SIGTERM - 1


def test_limits_and_signals_of_a_worker(prefork_process):
    app = APP + textwrap.dedent("""
        @mux.handle_func("/limits")
        def limits(w, r):
            w.write(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))
        """)
    soft, hard = json.loads(prefork_process(app).get("/limits").body)
    assert soft == min(hard, 1 << 20)


def test_the_app_sees_its_directory_and_umask(prefork_process, tmp_path):
    sub = tmp_path / "sub"
    sub.mkdir()
    (sub / "other.py").write_text(APP + "\nopen('made', 'w').close()\n")
    server = prefork_process(
        "", "--chdir", str(sub), "--umask", "027", "-b", f"unix:{tmp_path}/u.sock", target="other:mux"
    )
    assert (sub / "made").stat().st_mode & 0o777 == 0o640
    assert os.stat(f"{tmp_path}/u.sock").st_mode & 0o777 == 0o640
    assert server.stop() == 0


def test_an_async_factory_runs_on_the_loop_that_serves(prefork_process):
    app = APP + textwrap.dedent("""
        async def make():
            loop = asyncio.get_running_loop()
            ticks = []
            async def tick():
                while True:
                    ticks.append(1)
                    await asyncio.sleep(0.001)
            task = loop.create_task(tick())
            @mux.handle_func("/loop")
            async def same(w, r):
                before = len(ticks)
                while len(ticks) < before + 3:
                    await asyncio.sleep(0.001)
                w.write(str(asyncio.get_running_loop() is loop))
            return mux
        """)
    server = prefork_process(app, target="app:make()")
    assert server.get("/loop").body == b"True"
    assert server.stop() == 0
    assert "Task was destroyed" not in server.log()


@pytest.mark.parametrize(
    ("app", "code", "why"),
    [
        ("import nothing_of_this_name", ExitCode.APP, "No module named 'nothing_of_this_name'"),
        ("raise ValueError('no database')", ExitCode.APP, "ValueError: no database"),
        ("mux = 3", ExitCode.APP, "app:mux is no handler"),
        ("import os; os._exit(9)", ExitCode.BOOT, "exited with code 9 before it was ready"),
        ("import os, signal; os.kill(os.getpid(), 11)", ExitCode.BOOT, "was killed by SIGSEGV"),
    ],
)
def test_a_start_that_fails_says_so_once(prefork_command, app, code, why):
    done = prefork_command("run", "app:mux", "-w", "4", "-b", "127.0.0.1:0", app=app)
    assert done.code == code
    assert done.stderr.count(why) == 1
    if "SIGSEGV" not in why:  # faulthandler shows everything
        assert "prefork/workers" not in done.stderr
        assert "importlib" not in done.stderr


def test_an_import_that_hangs(prefork_command):
    app = "import time; time.sleep(60)"
    done = prefork_command("run", "app:mux", "-b", "127.0.0.1:0", "--boot-timeout", "0.3", app=app)
    assert done.code == ExitCode.BOOT
    assert "worker 1 was not ready within 0.3 s" in done.stderr


def test_an_address_in_use(prefork_command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = prefork_command("run", "app:mux", "-b", address, app=APP)
    assert done.code == ExitCode.BIND
    assert f"cannot listen on {address}: the address is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_backlog_is_not_shrunk_by_the_workers(prefork_process):
    server = prefork_process(APP, "-w", "2", "--backlog", "777")
    server.get("/ping")
    out = subprocess.run(
        ["ss", "-Hltn", f"sport = :{server.port}"], capture_output=True, text=True, check=True
    )
    assert int(out.stdout.split()[2]) == 777


# --- fair accept ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [4, 8])
def test_64_connections_are_shared_out(prefork_process, workers):
    server = prefork_process(APP, "-w", str(workers))
    clients = [server.connect() for _ in range(64)]
    for client in clients:
        client.send("GET /pid HTTP/1.1\r\nHost: x\r\n\r\n")
    held = Counter(client.response().body for client in clients)
    assert len(held) == workers
    assert max(held.values()) <= 64 // workers + 2


def test_connections_one_after_the_other_are_shared_out_too(prefork_process):
    server = prefork_process(APP, "-w", "4")
    held = Counter(server.connect().get("/pid").body for _ in range(40))
    assert max(held.values()) <= 10 + 2


def test_a_stopped_worker_keeps_nobody_waiting(prefork_process):
    server = prefork_process(APP, "-w", "3")
    for _ in range(30):
        server.connect().get("/ping")
    stopped = server.workers()[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        held = [server.connect(timeout=5).get("/pid").body for _ in range(30)]
        assert str(stopped).encode() not in held
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_a_worker_without_descriptors_leaves_the_queue_to_the_others(prefork_process, until):
    """One of two may open 64 files: with 150 connections at once none is refused, none is cut."""
    app = APP + textwrap.dedent("""
        import fcntl
        with open("first", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_size == 0:
                lock.write(str(os.getpid()))
                resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        """)
    server = prefork_process(app, "-w", "2")
    poor = (server.directory / "first").read_bytes()
    clients = [server.connect() for _ in range(150)]
    held = Counter(client.get("/pid").body for client in clients)
    assert sum(held.values()) == 150
    assert 20 < held[poor] < 64
    assert "Too many open files" not in server.log()
    # When they go it comes back.
    for client in clients:
        client.close()
    until(lambda: server.get("/pid").body == poor, what="it to accept again")


# --- stop -----------------------------------------------------------------------------------


def asleep(server, until) -> int:
    """The pid of the worker in which a /sleep request is under way."""
    return int(until(lambda: re.search(r"asleep (\d+)", server.stdout()), what="the request")[1])


def test_term_lets_a_request_finish_and_refuses_new_ones(prefork_process, until):
    server = prefork_process(APP, "-w", "2")
    # Long: a SYN that comes while the door is being closed is sent again by the kernel after a second.
    client = server.connect().send("GET /sleep/3 HTTP/1.1\r\nHost: x\r\n\r\n")
    asleep(server, until)
    server.signal(signal.SIGTERM)
    server.wait_for_log("draining 2 workers")

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", server.port), 5).close()
        except ConnectionRefusedError:
            return True
        return False

    until(refused, what="the listener to be closed by all")
    assert server.process.poll() is None
    answer = client.response()
    assert answer.body.startswith(b"slept")
    assert answer.headers["connection"] == "close"
    assert server.wait() == ExitCode.CLEAN


def test_what_is_in_the_queue_at_term_is_answered(prefork_process, until):
    """The only worker is busy, connections queue up, and then comes TERM."""
    app = APP + textwrap.dedent("""
        @mux.handle_func("/block")
        def block(w, r):
            import time
            print("asleep", os.getpid(), flush=True)
            time.sleep(0.5)
            w.write(b"blocked")
        """)
    server = prefork_process(app)
    first = server.connect().send("GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
    asleep(server, until)
    queued = [server.connect().send("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(20)]
    server.signal(signal.SIGTERM)
    assert first.response().body == b"blocked"
    assert [client.response().body for client in queued] == [b"pong"] * 20
    assert server.wait() == ExitCode.CLEAN


def test_idle_connections_do_not_hold_it_up(prefork_process):
    server = prefork_process(APP, "-w", "2")
    clients = [server.connect() for _ in range(10)]
    for client in clients:
        client.get("/ping")
    assert server.stop(5) == ExitCode.CLEAN
    assert all(client.closed() for client in clients)


def test_what_does_not_finish_in_time_is_cut_and_told(prefork_process, until):
    server = prefork_process(APP, "--graceful-timeout", "0.3")
    client = server.connect().send("GET /sleep/60 HTTP/1.1\r\nHost: x\r\n\r\n")
    asleep(server, until)
    assert server.stop() == ExitCode.CUT
    assert "cut a connection with a request under way" in server.log()
    assert client.closed()


def test_a_worker_that_hangs_is_killed_at_the_timeout(prefork_process):
    server = prefork_process(APP, "--graceful-timeout", "0.3")
    server.connect().send("GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
    server.connect().send("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    assert server.stop() == ExitCode.CUT
    assert re.search(r"was not done within the graceful timeout of 0.3 s, killed", server.log())


def test_a_second_signal_cuts_at_once(prefork_process, until):
    server = prefork_process(APP)
    server.connect().send("GET /sleep/60 HTTP/1.1\r\nHost: x\r\n\r\n")
    asleep(server, until)
    server.signal(signal.SIGINT)
    server.wait_for_log("draining")
    server.signal(signal.SIGINT)
    assert server.wait(5) == ExitCode.CUT


def test_quit_with_nothing_in_flight_is_clean(prefork_process):
    server = prefork_process(APP, "-w", "2")
    server.connect().get("/ping")
    server.signal(signal.SIGQUIT)
    assert server.wait(5) == ExitCode.CLEAN


def test_control_c_reaches_all_and_only_the_master_acts(prefork_process, until):
    server = prefork_process(APP, "-w", "2")
    client = server.connect().send("GET /sleep/0.3 HTTP/1.1\r\nHost: x\r\n\r\n")
    asleep(server, until)
    os.killpg(server.pid, signal.SIGINT)
    assert client.response().body.startswith(b"slept")
    assert server.wait() == ExitCode.CLEAN
    assert "Traceback" not in server.log()


def test_the_applications_own_tasks_and_exit_hooks_end_properly(prefork_process):
    app = APP + textwrap.dedent("""
        import atexit
        atexit.register(lambda: print("exit hook", flush=True))
        async def background():
            try:
                await asyncio.sleep(3600)
            finally:
                print("background ends", flush=True)
        tasks = []
        async def make():
            tasks.append(asyncio.create_task(background()))
            await asyncio.sleep(0)
            return mux
        """)
    server = prefork_process(app, target="app:make()")
    assert server.stop() == ExitCode.CLEAN
    assert server.stdout().split("\n") == ["background ends", "exit hook", ""]


def test_a_socket_file_is_gone_at_the_end(prefork_process, tmp_path, connect):
    path = tmp_path / "x.sock"
    server = prefork_process(APP, "-w", "2", "-b", f"unix:{path}")
    assert connect(str(path)).get("/ping").body == b"pong"
    assert server.stop() == ExitCode.CLEAN
    assert not path.exists()


# --- one worker ------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_told(prefork_process, until):
    server = prefork_process(APP, "-w", "2")
    victim, other = server.workers()
    os.kill(victim, signal.SIGKILL)
    server.wait_for_log(rf"\(pid {victim}\) was killed by SIGKILL after .*; next one in 0.1 s")
    until(lambda: len(set(server.workers()) - {victim}) == 2, what="the replacement")
    assert other in server.workers()
    held = until(lambda: held if len(held := _held(server)) == 2 else None, what="both to serve")
    assert str(victim).encode() not in held


def _held(server) -> Counter:
    return Counter(server.get("/pid").body for _ in range(10))


def test_term_to_one_worker_replaces_it_and_loses_nothing(prefork_process, until):
    server = prefork_process(APP, "-w", "2")
    client = server.connect().send("GET /sleep/0.8 HTTP/1.1\r\nHost: x\r\n\r\n")
    old = asleep(server, until)
    os.kill(old, signal.SIGTERM)
    server.wait_for_log(rf"\(pid {old}\) drains by itself \(SIGTERM\)")
    # The replacement comes while the old one still works.
    until(lambda: len(server.workers()) == 3, what="the replacement")
    assert client.response().body == f"slept {old}".encode()
    until(lambda: not alive(old))
    server.wait_for_log(rf"\(pid {old}\) has drained and left")
    assert server.stop() == ExitCode.CLEAN


def test_under_load_no_request_is_lost_when_workers_are_told_to_leave(prefork_process, until):
    server = prefork_process(APP, "-w", "2")
    stop, failures, done = threading.Event(), [], Counter()

    def load() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
                    sock.sendall(b"GET /pid HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answer = b""
                    while data := sock.recv(4096):
                        answer += data
                    done[answer.rpartition(b"\r\n")[2]] += 1
                    assert b" 200 OK" in answer
            except Exception as exc:
                failures.append(exc)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            before = set(server.workers())
            victim = min(before)
            os.kill(victim, signal.SIGTERM)
            until(lambda v=victim: not alive(v) and len(server.workers()) == 2, what="a replacement")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(done) >= 3


def test_workers_leave_when_the_master_is_killed_and_finish_first(prefork_process, until):
    server = prefork_process(APP, "-w", "2")
    workers = server.workers()
    client = server.connect().send("GET /sleep/0.5 HTTP/1.1\r\nHost: x\r\n\r\n")
    asleep(server, until)
    server.signal(signal.SIGKILL)
    server.wait()
    assert client.response().body.startswith(b"slept")
    until(lambda: not any(alive(pid) for pid in workers), what="the orphans to leave")
    with socket.create_server(("127.0.0.1", server.port)):
        pass  # the port is free


def test_a_worker_that_hangs_in_its_import_does_not_outlive_the_master(tmp_path, until):
    (tmp_path / "app.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "prefork", "run", "app:mux", "-b", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as master:
        worker = int(master.stdout.readline())
        master.kill()
    until(lambda: not alive(worker), what="the orphan to leave")


def test_the_heartbeat_is_the_loops_own(tmp_path):
    """A loop that hangs does not tick, whatever else its process does."""
    (tmp_path / "app.py").write_text(APP)
    code = """
        import os, socket, sys, threading, time
        from prefork.ipc import Scoreboard
        from prefork.master import arbiter
        from prefork.settings import Settings
        from prefork.workers import boot
        boards = []
        class Board(Scoreboard):
            __slots__ = ()
            def __init__(self, seats):
                super().__init__(seats)
                boards.append(self)
        arbiter.Scoreboard = Board
        os.set_inheritable(0, True)
        def watch():
            # A child of the master watches: the master itself must not have threads.
            board = boards[0]
            if os.fork():
                return
            row = lambda: board.row(0)
            while row().tick == 0 or not row().accepting: time.sleep(0.01)
            ticks = set()
            while len(ticks) < 4: ticks.add(row().tick); time.sleep(0.01)
            port = int(sys.argv[1])
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
            while row().open != 3: time.sleep(0.01)
            clients.pop().close()
            while row().open != 2: time.sleep(0.01)
            clients[0].sendall(b"GET /ping HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"); clients[0].recv(999)
            while row().requests != 1: time.sleep(0.01)
            clients[0].sendall(b"GET /sleep/0.6 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
            while row().active != 1: time.sleep(0.01)
            clients[0].recv(999)
            clients[0].sendall(b"GET /hang HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
            time.sleep(0.1)
            stuck = row().tick
            time.sleep(0.6)
            print("stands still", row().tick == stuck, row().accepted, flush=True)
            os.kill(os.getppid(), 9)
            os.kill(row().pid, 9)
            os._exit(0)
        real = boot.logger.info
        def info(text, *args):
            real(text, *args)
            if text.startswith("serving"): watch()
        boot.logger.info = info
        sys.exit(boot.run("app:mux", None, Settings(bind=(f"127.0.0.1:{sys.argv[1]}",))))
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    command = [sys.executable, "-c", textwrap.dedent(code), port]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert "stands still True 3" in out.stdout, out.stderr


# --- a handler as an object -----------------------------------------------------------------

PROGRAM = """
import logging, os, signal, sys
from prefork import http

mux = http.ServeMux()
seen = []

@mux.handle_func("/ping")
def ping(w, r):
    seen.append(1)
    w.write(f"pong {os.getppid() == PARENT}")

PARENT = os.getpid()
if __name__ == "__main__":
    options = {"idle_timeout": 5, "graceful_timeout": 3, "conn_state": lambda conn, state: None}
    http.listen_and_serve(sys.argv[1], mux, workers=2, **options)
    print("returned", flush=True)
"""


def test_listen_and_serve_with_workers(tmp_path, until, connect):
    (tmp_path / "program.py").write_text(PROGRAM)
    path = str(tmp_path / "p.sock")
    with open(tmp_path / "log", "wb") as log:
        program = subprocess.Popen(
            [sys.executable, "program.py", f"unix:{path}"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=log
        )
    try:
        text = until(
            lambda: t if "serving" in (t := (tmp_path / "log").read_text()) else None, what="the start"
        )
        assert f"serving program.py on unix:{path} with 2 workers" in text
        assert connect(path).get("/ping").body == b"pong True"
        assert title(program.pid) == "prefork: master [program.py]"
        program.send_signal(signal.SIGTERM)
        out, _ = program.communicate(timeout=15)
        assert program.returncode == 0
        assert out == b"returned\n"
    finally:
        program.kill()
        program.communicate()


def test_a_mistake_of_the_caller_is_the_callers_traceback():
    from prefork import http
    from prefork.workers import boot

    with pytest.raises(TypeError, match="colour"):
        http.listen_and_serve(":0", lambda w, r: None, workers=2, colour="red")
    with pytest.raises(TypeError, match="not a handler"):
        boot.listen_and_serve(":0", 3, workers=2)
    with pytest.raises(ValueError, match="no port"):
        boot.listen_and_serve("localhost", lambda w, r: None, workers=2)


def test_a_start_that_fails_ends_the_program_with_the_code():
    code = """if True:
        from prefork import http
        from prefork.workers import process
        process.tune_malloc = lambda: 1 / 0     # whatever may go wrong in a worker
        http.listen_and_serve("127.0.0.1:0", lambda w, r: None, workers=2)
        print("never comes here")
    """
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.stdout == ""
    assert out.returncode == ExitCode.BOOT
    assert out.stderr.count("ZeroDivisionError") == 1


# --- privileges -----------------------------------------------------------------------------


@needs_root
def test_workers_give_up_root_for_good(prefork_process, tmp_path):
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and parent != Path("/") and str(parent).startswith("/tmp/pytest"):
            os.chmod(parent, 0o755)
    nobody = pwd.getpwnam("nobody")
    app = APP + textwrap.dedent("""
        WHO = os.getresuid(), os.getresgid(), os.getgroups()
        @mux.handle_func("/who")
        def who(w, r):
            try:
                os.setuid(0)
                w.write("root again")
            except PermissionError:
                w.write(json.dumps(WHO))
        """)
    path = tmp_path / "x.sock"
    server = prefork_process(app, "--user", "nobody", "-b", "127.0.0.1:0", "-b", f"unix:{path}")
    uids, gids, groups = json.loads(server.get("/who").body)
    assert uids == [nobody.pw_uid] * 3
    assert gids == [nobody.pw_gid] * 3
    assert set(groups) == set(os.getgrouplist("nobody", nobody.pw_gid))
    assert status(server.pid, "Uid").split()[0] == "0"
    assert (path.stat().st_uid, path.stat().st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert server.stop() == ExitCode.CLEAN
    assert not path.exists()


@needs_root
def test_an_identity_is_looked_up_before_anything_is_bound():
    nobody = pwd.getpwnam("nobody")
    assert process.identity(None, None) is None
    who = process.identity("nobody", None)
    assert (who.uid, who.gid) == (nobody.pw_uid, nobody.pw_gid)
    assert process.identity(str(nobody.pw_uid), None) == who
    assert process.identity(None, "0").uid == 0
    assert process.identity("4000000", "4000001") == process.Identity(4000000, 4000001, (4000001,))
    with pytest.raises(PrivilegeError, match="give --group too"):
        process.identity("4000000", None)
    with pytest.raises(PrivilegeError, match="no user 'no-such-user'"):
        process.identity("no-such-user", None)
    with pytest.raises(PrivilegeError, match="no group 'no-such-group'"):
        process.identity(None, "no-such-group")


def test_only_root_can_change(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PrivilegeError, match="only root"):
        process.identity("root", None)


def test_a_drop_that_does_not_take_hold_is_an_error(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, lambda *args: None)
    monkeypatch.setattr(os, "getresuid", lambda: (0, 0, 0))
    with pytest.raises(PrivilegeError, match="instead of 65534"):
        process.become(process.Identity(65534, 65534, ()))


# --- memory and limits ----------------------------------------------------------------------


def in_a_process(code: str, **env: str) -> str:
    out = subprocess.run(
        [sys.executable, "-c", "from prefork.workers import process; " + code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **env},
    )
    return out.stdout.strip()


def test_malloc_is_tuned_where_it_is_glibc_and_nobody_has_done_so():
    glibc = "GNU" in os.confstr("CS_GNU_LIBC_VERSION") if hasattr(os, "confstr") else False
    expected = str(glibc or "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or ""))
    assert in_a_process("print(process.tune_malloc())") == expected
    assert in_a_process("print(process.tune_malloc())", MALLOC_TOP_PAD_="4096") == "False"


def test_the_file_limit_is_raised_as_far_as_it_goes():
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (100, 200)); "
        "print(process.raise_file_limit(), r.getrlimit(r.RLIMIT_NOFILE), process.raise_file_limit())"
    )
    assert in_a_process(code) == "200 (200, 200) 200"


def test_a_limit_that_may_not_be_raised_stays(monkeypatch):
    import resource

    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 200))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert process.raise_file_limit() == 100


def test_dying_with_a_parent_that_is_dead_already():
    assert (
        in_a_process("import os; print(process.die_with(os.getppid()), process.die_with(1 << 22))")
        == "True False"
    )
