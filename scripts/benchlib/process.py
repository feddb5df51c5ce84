"""Processes of a benchmark: started on one core, measured from /proc, and never left behind.

The law here: whatever is started as a `Process` is in `_running` until it is known to be dead, and `end_all`
(registered with atexit, and reached on signals through KeyboardInterrupt) ends the whole tree of each. The
children also ask the kernel to kill them when this process dies, which covers SIGKILL.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TICKS = os.sysconf("SC_CLK_TCK")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1

_running: set[Process] = set()


class Process:
    """A child with all of its descendants, in a session of its own. End it with `end()`."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        core: int | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> None:
        """Start `argv`; `core` None leaves it on every core that this process began with."""
        cores = ALL_CORES if core is None else {core}

        def prepare() -> None:
            os.sched_setaffinity(0, cores)
            nice = os.getpriority(os.PRIO_PROCESS, 0)
            if nice:
                # Where the kernel groups processes by session, it is the groups that compete.
                with contextlib.suppress(OSError):
                    Path("/proc/self/autogroup").write_text(str(nice))
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        self.started = time.monotonic()
        self.popen = subprocess.Popen(
            [os.fspath(part) for part in argv],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=prepare,  # safe: this process has one thread
        )
        _running.add(self)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def alive(self) -> bool:
        return self.popen.poll() is None

    def tree(self) -> list[int]:
        """Its pid and those of all living descendants, itself first."""
        children: dict[int, list[int]] = {}
        for pid, parent in _parents().items():
            children.setdefault(parent, []).append(pid)
        found = [self.pid]
        for pid in found:  # grows while it is walked
            found.extend(children.get(pid, ()))
        return found

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far: every thread, and children already reaped."""
        ticks = 0
        for pid in self.tree():
            fields = _stat(pid)
            if fields is not None:
                ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
        return ticks / _TICKS

    def pss(self) -> int:
        """Proportional set size of the tree in bytes."""
        return sum(map(pss, self.tree()))

    def end(self) -> None:
        """Kill the whole tree and wait for it. Figures are taken already: nobody needs a graceful end."""
        tree = self.tree() if self.alive() else []
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()
        _running.discard(self)


ALL_CORES = os.sched_getaffinity(0)


def end_all() -> None:
    for process in list(_running):
        process.end()


atexit.register(end_all)


def pss(pid: int) -> int:
    """Proportional set size of one process in bytes; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def core_seconds(core: int | None) -> float:
    """Time that a core (None: all of them) has worked since the machine started, for whomever."""
    name = "cpu" if core is None else f"cpu{core}"
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"{name} "):
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
            return (user + nice + system + irq + softirq + steal) / _TICKS
    return 0.0


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (the name before may hold anything); None when gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _parents() -> dict[int, int]:
    """The parent of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if fields is not None:
                found[int(name)] = int(fields[1])
    return found
