"""The arbiter with real forks and real signals, and no HTTP: every worker is a function of a few lines.

Each test runs a master in a process of its own. What happens in it comes out as lines on its
standard output, so that the test waits for events and never for time.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from prefork.ipc import ExitCode
from prefork.master import arbiter

PRELUDE = """
import json, logging, os, select, signal, socket, subprocess, sys, threading, time
from prefork.ipc import *
from prefork.master import arbiter
from prefork.master.notify import Notifier

logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="log: %(message)s", force=True)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())   # one write: lines do not mix

def obey(place):
    "Wait to be told to go; returns the message, None when the master is gone."
    return place.control.receive()

def good(place):
    place.control.send(Ready())
    say("ready", place.slot, os.getpid())
    obey(place)
    return 0
"""


class Master:
    """A master process. `line(pattern)` waits for a line of its output and returns the match."""

    def __init__(self, body: str, **popen) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **popen,
        )
        self._taken: set[int] = set()
        os.set_blocking(self.process.stdout.fileno(), False)
        self._rest = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self, deadline: float) -> bool:
        """Read what there is. False at the end of the output."""
        fd = self.process.stdout.fileno()
        while True:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    pytest.fail("waited in vain; so far:\n" + "\n".join(self.lines))
                time.sleep(0.005)
                continue
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.lines += [line.decode(errors="replace") for line in lines]
            return bool(data)

    def line(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        """The first line that matches and was not returned before; the order among processes is open."""
        deadline = time.monotonic() + timeout
        while True:
            for index, text in enumerate(self.lines):
                match = re.search(pattern, text)
                if match and index not in self._taken:
                    self._taken.add(index)
                    return match
            if not self._read(deadline):
                pytest.fail(f"no {pattern!r} in:\n" + "\n".join(self.lines))

    def ready(self, count: int) -> dict[int, int]:
        """Wait for so many READYs; pids by slot."""
        found = [self.line(r"^ready (\d+) (\d+)") for _ in range(count)]
        return {int(match[1]): int(match[2]) for match in found}

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 10.0) -> int:
        """The exit code; all output is in `lines`."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        return self.process.wait(timeout)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def master():
    made = []

    def start(body: str, **popen) -> Master:
        made.append(Master(body, **popen))
        return made[-1]

    yield start
    for one in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.process.stdout.close()
        one.process.wait()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- start ----------------------------------------------------------------------------------


def test_workers_run_and_term_ends_them_cleanly(master):
    m = master("sys.exit(arbiter.run(4, good, on_serving=lambda: say('serving')))")
    pids = m.ready(4)
    assert sorted(pids) == [0, 1, 2, 3]
    m.line("serving")
    m.signal(signal.SIGTERM)
    assert m.end() == ExitCode.CLEAN
    assert not any(alive(pid) for pid in pids.values())
    assert "log: SIGTERM: draining 4 workers, at most 30 s" in m.lines


def test_the_hooks_come_in_order(master):
    m = master("""
        code = arbiter.run(2, good, name="app:mux", set_title=lambda t: say("title", t),
            on_serving=lambda: say("serving"), on_closing=lambda: say("closing"))
        say("code", code)
    """)
    m.ready(2)
    m.line("^serving")
    m.signal(signal.SIGINT)
    m.end()
    words = [line for line in m.lines if not line.startswith(("log:", "ready"))]
    assert words == ["title prefork: master [app:mux]", "serving", "closing", "code 0"]


@pytest.mark.parametrize("code", [3, 4])
def test_a_failed_start_is_one_message_and_the_code(master, code):
    m = master(f"""
        def bad(place):
            place.control.send(Failed({code}, "Traceback of the user\\nNameError: x"))
            return {code}
        sys.exit(arbiter.run(8, bad))
    """)
    assert m.end() == code
    assert m.text.count("NameError: x") == 1


def test_an_exception_before_ready_is_a_failed_start(master):
    m = master("""
        def bad(place):
            1 / 0
        sys.exit(arbiter.run(2, bad))
    """)
    assert m.end() == ExitCode.BOOT
    assert m.text.count("ZeroDivisionError") == 1


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("os._exit(5)", "exited with code 5 before it was ready"),
        ("sys.exit(6)", "exited with code 6 before it was ready"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL before it was ready"),
    ],
)
def test_a_death_before_ready_is_told_by_its_cause(master, how, why):
    m = master(f"""
        def bad(place):
            {how}
        sys.exit(arbiter.run(2, bad))
    """)
    assert m.end() == ExitCode.BOOT
    assert m.text.count(why) == 1


def test_a_start_that_hangs_ends_at_the_boot_timeout(master):
    m = master("""
        def hangs(place):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            say("hangs")
            while True: time.sleep(60)
        sys.exit(arbiter.run(2, hangs, options=arbiter.Options(boot_timeout=0.2)))
    """)
    started = time.monotonic()
    assert m.end() == ExitCode.BOOT
    assert time.monotonic() - started < 5
    assert "was not ready within 0.2 s" in m.text


def test_a_fork_that_is_refused_is_told(master):
    m = master("""
        def refuse(): raise OSError(11, "Resource temporarily unavailable")
        os.fork = refuse
        sys.exit(arbiter.run(2, good))
    """)
    assert m.end() == ExitCode.BOOT
    assert "cannot fork worker 1: the limit of processes is reached" in m.text


# --- crashes --------------------------------------------------------------------------------


def test_a_killed_worker_comes_back_on_another_pid(master):
    m = master("sys.exit(arbiter.run(2, good))")
    pids = m.ready(2)
    os.kill(pids[1], signal.SIGKILL)
    m.line(rf"worker 2 \(pid {pids[1]}\) was killed by SIGKILL after .*; next one in 0.1 s")
    assert list(m.ready(1)) == [1]
    m.signal(signal.SIGTERM)
    assert m.end() == 0


def test_a_start_that_fails_later_is_no_end(master):
    m = master("""
        os.environ["MARK"] = str(os.getpid())
        def second_time_bad(place):
            if place.slot == 1 and not os.path.exists(sys.argv[0]):
                pass
            place.control.send(Ready())
            say("ready", place.slot, os.getpid())
            obey(place)
            return 0
        tries = []
        def entry(place):
            # The scoreboard is the only thing that outlives a worker here.
            words, at = place.board.words, place.board.base(place.board.seats - 1) + 12
            words[at] += 1
            if words[at] in (3, 4):
                place.control.send(Failed(4, "SyntaxError"))
                return 4
            return second_time_bad(place)
        sys.exit(arbiter.run(2, entry))
    """)
    pids = m.ready(2)
    os.kill(pids[0], signal.SIGKILL)
    m.line("next one in 0.1 s")
    m.line("failed to start; next one in 0.2 s")
    m.line("failed to start as before; next one in 0.4 s")
    assert list(m.ready(1)) == [0]
    m.signal(signal.SIGTERM)
    assert m.end() == 0
    assert m.text.count("SyntaxError") == 1


def test_a_worker_that_drains_by_itself_is_replaced_before_it_is_gone(master):
    m = master("""
        def entry(place):
            asked = []
            signal.signal(signal.SIGTERM, lambda *a: asked.append(1))
            place.control.send(Ready())
            say("ready", place.slot, os.getpid())
            place.control.setblocking(False)
            while not asked and not select.select([place.control], [], [], 0.01)[0]: pass
            if asked:
                place.control.send(Draining("SIGTERM"))
                place.control.setblocking(True)
                select.select([place.control], [], [])
            say("gone", os.getpid())
            return 0
        sys.exit(arbiter.run(1, entry))
    """)
    first = m.ready(1)[0]
    os.kill(first, signal.SIGTERM)
    m.line(r"drains by itself \(SIGTERM\)")
    second = m.ready(1)[0]
    assert alive(first)
    assert second != first
    m.signal(signal.SIGTERM)
    # The first one has no order of ours left to wait for: it has its own deadline.
    m.line(f"gone {second}")
    m.signal(signal.SIGTERM)
    m.line(f"gone {first}")
    assert m.end() == 0


# --- stop -----------------------------------------------------------------------------------


STUBBORN = """
def stubborn(place):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    place.control.send(Ready())
    say("ready", place.slot, os.getpid())
    while True:
        say("told", obey(place))
"""


def test_who_does_not_go_in_time_is_killed_and_the_code_says_so(master):
    m = master(STUBBORN + "sys.exit(arbiter.run(2, stubborn, options=arbiter.Options(graceful_timeout=0.2)))")
    m.ready(2)
    m.signal(signal.SIGTERM)
    assert m.end() == ExitCode.CUT
    assert m.text.count("told Drain(timeout=0.2)") == 2
    assert m.text.count("was not done within the graceful timeout of 0.2 s, killed") == 2


def test_a_second_signal_means_at_once(master):
    m = master(STUBBORN + "sys.exit(arbiter.run(2, stubborn))")
    m.ready(2)
    m.signal(signal.SIGINT)
    m.line("told Drain.timeout=30")
    m.signal(signal.SIGINT)
    m.line("told Drain.timeout=0")
    assert m.end(5) == ExitCode.CUT


def test_quit_means_at_once(master):
    m = master("sys.exit(arbiter.run(2, good))")
    m.ready(2)
    m.signal(signal.SIGQUIT)
    assert m.end(5) == 0
    assert "log: SIGQUIT: stopping at once" in m.lines


def test_exit_code_of_a_worker_that_cut_something(master):
    m = master("""
        def cuts(place):
            good(place)
            return int(ExitCode.CUT)
        sys.exit(arbiter.run(1, cuts))
    """)
    m.ready(1)
    m.signal(signal.SIGTERM)
    assert m.end() == ExitCode.CUT


def test_signals_to_the_group_are_the_masters_business(master):
    m = master("sys.exit(arbiter.run(2, good))")
    pids = m.ready(2)
    for pid in pids.values():
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    os.killpg(m.pid, signal.SIGUSR2)
    m.line("SIGUSR2 does nothing here")
    assert all(alive(pid) for pid in pids.values())
    os.killpg(m.pid, signal.SIGINT)
    assert m.end() == 0
    assert "was killed" not in m.text


def test_hangup_without_a_terminal_reloads(master):
    m = master("sys.exit(arbiter.run(1, good))")
    old = m.ready(1)[0]
    m.signal(signal.SIGHUP)
    m.line("SIGHUP: reloading, generation 2")
    assert m.ready(1)[0] != old
    m.line("reloaded: 1 worker of generation 2")
    m.signal(signal.SIGTERM)
    assert m.end() == 0


def test_hangup_of_the_terminal_ends_it():
    """A terminal of its own: the shell's window is closed."""
    pid, fd = os.forkpty()
    if pid == 0:
        try:
            os.execv(
                sys.executable,
                [
                    sys.executable,
                    "-c",
                    PRELUDE + "sys.exit(arbiter.run(2, good, on_serving=lambda: say('serving')))",
                ],
            )
        finally:
            os._exit(99)
    seen = b""
    try:
        while b"serving" not in seen or seen.count(b"ready ") < 2:
            seen += os.read(fd, 4096)
        workers = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    finally:
        os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not any(alive(worker) for worker in workers)


def test_workers_leave_when_the_master_is_killed(master, until):
    m = master("sys.exit(arbiter.run(3, good))")
    pids = m.ready(3)
    m.signal(signal.SIGKILL)
    m.end()
    until(lambda: not any(alive(pid) for pid in pids.values()), what="the orphans to leave")


def test_a_storm_of_signals_loses_no_term(master):
    m = master("sys.exit(arbiter.run(3, good))")
    m.ready(3)
    noise = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD)
    for number in range(1000):
        m.signal(noise[number % 4])
    m.signal(signal.SIGTERM)
    for _ in range(100):
        # Only what does no harm to a master that has given its handlers back.
        m.signal(signal.SIGCHLD)
    # A worker of this kind dies of a SIGTERM that comes when it has just become ready.
    assert m.end() in (0, ExitCode.CUT)


def test_term_in_every_moment_of_the_start_ends_it(master):
    """TERM comes after 1, 2, 3 ... forks: during the start it is never lost, and nothing is left."""
    for moment in range(1, 5):
        m = master(f"""
            real, count = os.fork, [0]
            def fork():
                pid = real()
                if pid:
                    count[0] += 1
                    if count[0] == {moment}: os.kill(os.getpid(), signal.SIGTERM)
                return pid
            os.fork = fork
            def slow(place):
                signal.pause()
            sys.exit(arbiter.run(4, slow))
        """)
        assert m.end() == 0


# --- children -------------------------------------------------------------------------------


def test_strangers_children_are_buried_too(master, until):
    m = master("""
        # One dies before the master listens, one while it does.
        early = subprocess.Popen(["true"]); os.waitid(os.P_PID, early.pid, os.WEXITED | os.WNOWAIT)
        late = subprocess.Popen(["sleep", "60"])
        sys.exit(arbiter.run(1, good, on_serving=lambda: os.kill(late.pid, signal.SIGKILL)))
    """)
    m.line("reaped pid")
    m.line("reaped pid")
    worker = m.ready(1)[0]
    path = Path(f"/proc/{m.pid}/task/{m.pid}/children")
    until(lambda: path.read_text().split() == [str(worker)])
    m.signal(signal.SIGTERM)
    assert m.end() == 0


def test_deaths_are_seen_without_pidfds(master):
    m = master("""
        def refuse(pid): raise OSError(38, "Function not implemented")
        os.pidfd_open = refuse
        sys.exit(arbiter.run(2, good))
    """)
    pids = m.ready(2)
    os.kill(pids[0], signal.SIGKILL)
    assert list(m.ready(1)) == [0]
    m.signal(signal.SIGTERM)
    assert m.end() == 0


def test_many_deaths_leave_no_zombie_and_no_descriptor(master, until):
    m = master("""
        from prefork.master import slots
        slots.BACKOFF_FIRST = slots.BACKOFF_LAST = 0.001
        sys.exit(arbiter.run(4, good))
    """)
    pids = m.ready(4)
    count = len(os.listdir(f"/proc/{m.pid}/fd"))
    for _ in range(25):
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        pids = m.ready(4)
    children = Path(f"/proc/{m.pid}/task/{m.pid}/children")
    until(lambda: sorted(map(int, children.read_text().split())) == sorted(pids.values()))
    until(lambda: len(os.listdir(f"/proc/{m.pid}/fd")) == count)
    m.signal(signal.SIGTERM)
    assert m.end() == 0


DESCRIPTORS = """
def shows(place):
    place.control.send(Ready())
    fds = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
           if os.path.exists(f"/proc/self/fd/{fd}")}
    say("fds", place.slot, place.control.fileno(), place.stacks, json.dumps(fds))
    out = subprocess.run([sys.executable, "-c",
        "import os; print([f for f in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + f)])"],
        close_fds=False, capture_output=True, text=True)
    status = open("/proc/self/status").read()
    child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
    pick = lambda text: [line for line in text.splitlines() if line.startswith(("SigBlk", "SigIgn"))]
    say("exec", out.stdout.strip(), pick(status), pick(child))
    say("ready", place.slot, os.getpid())
    obey(place)
    return 0
"""


def test_a_worker_inherits_stdio_listeners_and_its_control_socket_and_nothing_else(master):
    import ast
    import json

    m = master(
        DESCRIPTORS
        + """
listener = socket.create_server(("127.0.0.1", 0))
say("listener", listener.fileno())
sys.exit(arbiter.run(4, shows))
"""
    )
    listener = m.line(r"^listener (\d+)")[1]
    pids = []
    for _ in range(4):
        match = m.line(r"^fds (\d) (\d+) (\d+) (.*)")
        allowed = {"0", "1", "2", listener, match[2], match[3]}
        assert set(json.loads(match[4])) <= allowed
        match = m.line(r"^exec (\[.*?\]) (\[.*?\]) (\[.*?\])")
        assert set(ast.literal_eval(match[1])) <= {"0", "1", "2"}
        # No signal is blocked, and none that the master handles is ignored, here and in a program
        # started by the worker. (Python itself ignores SIGPIPE and SIGXFSZ.)
        for lines in (match[2], match[3]):
            blocked, ignored = (int(text.split()[-1], 16) for text in ast.literal_eval(lines))
            assert blocked == 0
            assert ignored & ~(1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0
        pids.append(m.line(r"^ready \d (\d+)")[1])
    # The last one was forked when the master had three control sockets and pidfds open: none leaked.
    os.kill(int(pids[0]), signal.SIGKILL)
    match = m.line(r"^fds (\d) (\d+) (\d+) (.*)")
    assert set(json.loads(match[4])) <= {"0", "1", "2", listener, match[2], match[3]}
    m.signal(signal.SIGTERM)
    assert m.end() == 0


def test_buffers_and_exit_hooks_belong_to_one_process(master):
    m = master("""
        import atexit
        atexit.register(lambda: say("hook of", os.getpid()))
        def entry(place):
            atexit.register(lambda: say("worker's hook of", os.getpid()))
            return good(place)
        print("once")     # in the buffer when it forks
        sys.exit(arbiter.run(2, entry))
    """)
    pids = m.ready(2)
    m.signal(signal.SIGTERM)
    assert m.end() == 0
    assert m.lines.count("once") == 1
    hooks = [line for line in m.lines if "hook of" in line]
    workers = [f"worker's hook of {pid}" for pid in pids.values()]
    assert sorted(hooks) == sorted([*workers, f"hook of {m.pid}"])


def test_the_seats_tell_who_lives(master):
    m = master("""
        def entry(place):
            words, base = place.board.words, place.board.base(place.seat)
            say("seat", place.seat, place.slot, WorkerState(words[base + Word.STATE]).name)
            place.control.send(Ready())
            words[base + Word.STATE] = WorkerState.READY
            if place.slot == 2:
                say("rows", sorted(r.slot for r in place.board.rows()))
            return obey(place) and 0
        sys.exit(arbiter.run(3, entry, on_serving=lambda: say("up")))
    """)
    seats = {m.line(r"^seat (\d) (\d) BOOTING")[1] for _ in range(3)}
    assert seats == {"0", "1", "2"}
    m.line(r"^rows \[0, 1, 2\]")
    m.line("^up")  # the master has heard of all: before that, its TERM would kill a worker of this kind
    m.signal(signal.SIGTERM)
    assert m.end() == 0


def test_words_that_are_no_messages_are_logged_and_survived(master):
    m = master("""
        def entry(place):
            sock = socket.socket(fileno=os.dup(place.control.fileno()))
            sock.send(b"\\xff\\xff")
            sock.send(b'{"type": "later"}')
            return good(place)
        sys.exit(arbiter.run(1, entry))
    """)
    m.line("sent no message of ours: not JSON")
    m.line("sent no message of ours: unknown type 'later'")
    m.ready(1)
    m.signal(signal.SIGTERM)
    assert m.end() == 0


def test_a_worker_that_closes_its_socket_is_still_a_worker(master):
    m = master("""
        def entry(place):
            place.control.send(Ready())
            place.control.close()
            say("ready", place.slot, os.getpid())
            signal.pause()
        sys.exit(arbiter.run(1, entry, options=arbiter.Options(graceful_timeout=0.1)))
    """)
    pid = m.ready(1)[0]
    os.kill(pid, signal.SIGKILL)
    pid = m.ready(1)[0]
    m.signal(signal.SIGTERM)
    assert m.end() == ExitCode.CUT


def test_it_does_not_spin(master):
    m = master("sys.exit(arbiter.run(2, good))")
    m.ready(2)
    m.signal(signal.SIGUSR2)
    m.line("SIGUSR2")

    def switches() -> int:
        text = Path(f"/proc/{m.pid}/status").read_text()
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.M)[1])

    before = switches()
    time.sleep(0.3)
    assert switches() - before <= 2
    m.signal(signal.SIGTERM)
    assert m.end() == 0


# --- systemd --------------------------------------------------------------------------------


def test_systemd_is_told_in_order(master, tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        m = master(
            """
            notifier = Notifier.from_environ()
            def entry(place):
                assert "NOTIFY_SOCKET" not in os.environ
                return good(place)
            sys.exit(arbiter.run(2, entry, notifier=notifier))
            """,
            env={**os.environ, "NOTIFY_SOCKET": path},
        )
        m.ready(2)
        heard = []
        while "STATUS=2/2 workers ready" not in heard:
            heard.append(manager.recv(4096).decode())
        m.signal(signal.SIGTERM)
        assert m.end() == 0
        manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(manager.recv(4096).decode())
    # READY only after both are ready, and before the status that says so.
    assert heard[:4] == [
        "STATUS=0/2 workers ready",
        "STATUS=1/2 workers ready",
        "READY=1",
        "STATUS=2/2 workers ready",
    ]
    assert heard[4] == "STOPPING=1"
    assert heard[5] == "STATUS=draining, 2 workers left"


# --- the caller -----------------------------------------------------------------------------


def test_the_caller_gets_its_handlers_back(master):
    m = master("""
        mine = lambda *a: None
        signal.signal(signal.SIGTERM, mine)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        before = len(os.listdir("/proc/self/fd"))
        def entry(place):
            place.control.send(Ready())
            obey(place)
            return 0
        for _ in range(2):
            say("code", arbiter.run(2, entry, on_serving=lambda: os.kill(os.getpid(), signal.SIGINT)))
        say(signal.getsignal(signal.SIGTERM) is mine, signal.getsignal(signal.SIGHUP) == signal.SIG_IGN,
            signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            len(os.listdir("/proc/self/fd")) - before, signal.set_wakeup_fd(-1))
    """)
    assert m.end() == 0
    assert [line for line in m.lines if not line.startswith("log:")] == [
        "code 0",
        "code 0",
        "True True True 0 -1",
    ]


def test_threads_that_a_fork_loses_are_named(master):
    m = master("""
        over = threading.Event()
        thread = threading.Thread(target=over.wait, name="metrics-pusher"); thread.start()
        code = arbiter.run(1, good)
        over.set(); thread.join()
        sys.exit(code)
    """)
    m.line("threads do not survive a fork.*metrics-pusher")
    m.ready(1)
    m.signal(signal.SIGTERM)
    assert m.end() == 0


def test_only_the_main_thread_can_run_it():
    caught: list[BaseException] = []

    def target() -> None:
        try:
            arbiter.run(1, lambda place: 0)
        except RuntimeError as exc:
            caught.append(exc)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_the_master_imports_neither_asyncio_nor_http():
    code = (
        "import sys; from prefork.master import arbiter, sockets, notify; "
        "print([m for m in sys.modules if m.split('.')[0] in ('asyncio', 'uvloop', 'httptools', 'concurrent')"
        " or m.startswith(('prefork.http', 'prefork.workers'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
