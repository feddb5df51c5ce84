"""Which process a log line comes from: the number that its worker has."""

from __future__ import annotations

_worker: int | None = None


def set_worker(number: int) -> None:
    """Say that this process is worker `number`, from 1. To be called before its first line."""
    global _worker
    _worker = number


def worker() -> int | None:
    """The number of this worker; None in the master, and where there are no workers."""
    return _worker
