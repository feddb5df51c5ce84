"""What the kernel tells of processes, memory and the terminal: small questions of the master."""

from __future__ import annotations

import os
import termios
from pathlib import Path


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or a debugger: it cannot help that it does nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The name before the state may hold anything, also ")".
    return stat.rpartition(")")[2].split()[0] in ("T", "t")


def terminal_is_gone() -> bool:
    """Whether the terminal on standard input has hung up."""
    try:
        termios.tcgetattr(0)
    except (termios.error, OSError, ValueError):
        return True
    return False


class OutOfMemory:
    """Whether the kernel has killed for want of memory in our cgroup, from one question to the next.

    Where there is no cgroup v2, or no memory controller, the answer is always no.
    """

    def __init__(self, root: str = "/sys/fs/cgroup", cgroup: str = "/proc/self/cgroup") -> None:
        self._file = self._find(root, cgroup)
        self._seen = self._count()

    @staticmethod
    def _find(root: str, cgroup: str) -> str | None:
        try:
            lines = Path(cgroup).read_text().splitlines()
        except OSError:
            return None
        own = next((line[3:] for line in lines if line.startswith("0::")), None)
        return None if own is None else os.path.join(root, own.lstrip("/"), "memory.events")

    def _count(self) -> int:
        if self._file is None:
            return 0
        try:
            lines = Path(self._file).read_text().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def happened(self) -> bool:
        """Whether there was such a kill since the last question."""
        before, self._seen = self._seen, self._count()
        return self._seen > before
