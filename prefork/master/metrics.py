"""What the scoreboard's numbers mean for the whole service: totals, rates, quantiles, rows.

    metrics = Metrics(board)
    metrics.retire(seat)                  # before board.clear(seat): counters never go back
    metrics.observe(time.monotonic())     # now and then: what rates are measured against
    metrics.worker_rows(time.monotonic()) # for `prefork status`
    metrics.totals()

Everything is read from shared memory and from /proc, in the moment it is asked for, and works
just as well when a worker hangs or has died. Nothing here decides anything.
"""

from __future__ import annotations

import collections
import contextlib
import resource
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from prefork.master.app_metrics import AppMetrics
from prefork.scoreboard import (
    BUCKETS,
    COUNTERS,
    LATENCY_BOUNDS,
    SEAT_WORDS,
    TICK_EVERY,
    Word,
    WorkerState,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefork.scoreboard import Row, Scoreboard

SAMPLE_EVERY: Final = 2.0
"""Seconds between two samples; rates and quantiles are those of the last two or three of them."""

_COUNTERS: Final = tuple([int(word) for word in COUNTERS])  # plain numbers are faster
_KEPT: Final = 3
_FORGET_AFTER: Final = 60.0
_PSS_WITHIN: Final = 0.05
"""Seconds for the kernel to add up the pages of all workers; the master has other things to do."""

TOTALS: Final[Mapping[str, Word]] = {
    "requests": Word.REQUESTS,
    "requests_1xx": Word.STATUS_1XX,
    "requests_2xx": Word.STATUS_2XX,
    "requests_3xx": Word.STATUS_3XX,
    "requests_4xx": Word.STATUS_4XX,
    "requests_5xx": Word.STATUS_5XX,
    "requests_other": Word.STATUS_OTHER,
    "refused": Word.REFUSED,
    "exceptions": Word.EXCEPTIONS,
    "accepted": Word.ACCEPTED,
    "received_bytes": Word.RECEIVED,
    "sent_bytes": Word.SENT,
    "client_requests": Word.CLIENT_REQUESTS,
    "client_reuses": Word.CLIENT_REUSES,
    "client_dials": Word.CLIENT_DIALS,
    "client_dial_errors": Word.CLIENT_DIAL_ERRORS,
    "client_retries": Word.CLIENT_RETRIES,
}
"""Counters as `prefork status` names them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The seats at one moment. at: time.monotonic(). seats: the words of each, by seat."""

    at: float
    seats: Mapping[int, Sequence[int]]


def take_sample(board: Scoreboard, now: float) -> Sample:
    """The board as it is now."""
    return Sample(now, {row.seat: board.snapshot(row.seat) for row in board.rows()})


class Retired:
    """The counters of all workers that are gone: what keeps a total from going back when one dies."""

    __slots__ = ("words",)

    def __init__(self) -> None:
        self.words = [0] * SEAT_WORDS

    def take(self, board: Scoreboard, seat: int) -> None:
        """The seat is about to be cleared. (Twice does no harm: a seat that is cleared counts nothing.)"""
        words = board.snapshot(seat)
        for word in _COUNTERS:
            self.words[word] += words[word]

    def __repr__(self) -> str:
        return f"<Retired {self.words[Word.REQUESTS]} requests>"


def totals(board: Scoreboard, retired: Retired) -> list[int]:
    """The counters of all workers there have been, by `Word`; the other words are 0."""
    result = list(retired.words)
    for row in board.rows():
        words = board.snapshot(row.seat)
        for word in _COUNTERS:
            result[word] += words[word]
    return result


def quantile(buckets: Sequence[int], q: float) -> float | None:
    """The duration in seconds that a share `q` (0 to 1) of the requests did not exceed, by their buckets.

    Within a bucket they are taken to be spread evenly on a logarithmic scale, in the first one
    from 0. None if there are none. Those above the last bound count as the last bound.
    """
    count = sum(buckets)
    if not count:
        return None
    wanted = q * count
    below = 0
    for index, inside in enumerate(buckets):
        if inside and below + inside >= wanted:
            if index == len(LATENCY_BOUNDS):
                break
            share = max(0.0, (wanted - below) / inside)
            high = LATENCY_BOUNDS[index]
            if index == 0:
                return high * share
            low = LATENCY_BOUNDS[index - 1]
            return float(low * (high / low) ** share)
        below += inside
    return LATENCY_BOUNDS[-1]


def lag(row: Row, now: float) -> float | None:
    """By how many seconds a worker's loop is late; grows while it hangs. None before it serves."""
    if row.state not in (WorkerState.READY, WorkerState.DRAINING):
        return None
    return max(row.lag / 1e9, now - row.tick / 1e9 - TICK_EVERY, 0.0)


def worker_rows(
    board: Scoreboard,
    now: float,
    previous: Sample | None = None,
    processes: Mapping[int, tuple[int, str]] | None = None,
    *,
    pss: bool = True,
) -> list[dict[str, Any]]:
    """What `Loop.status()["workers"]` has: one row for each process, by the number of its worker.

    now: time.monotonic(). previous: an earlier sample; rates and quantiles are those since then.
    A worker that has answered nothing since, or that the sample does not know, is shown by its
    whole life. processes: by seat, the pid and state that the master knows, which it does before
    the worker can say so itself. pss: whether to ask the kernel for it, which takes a
    millisecond for each GiB or so; it is given up when that takes too long.
    """
    rows = []
    enough = time.monotonic() + _PSS_WITHIN
    for row in board.rows():
        pid, state = (processes or {}).get(row.seat, (row.pid, row.state.name.lower()))
        words = board.snapshot(row.seat)
        age = max(0.0, now - row.started / 1e9)
        since = previous.seats.get(row.seat) if previous is not None else None
        requests, buckets, seconds = row.requests, words[Word.BUCKET : Word.BUCKET + BUCKETS], age
        if previous is not None and since is not None and since[Word.STARTED] == row.started:
            seconds = now - previous.at
            requests -= since[Word.REQUESTS]
            recent = [late - early for late, early in zip(buckets, since[Word.BUCKET :], strict=False)]
            buckets = recent if any(recent) else buckets
        late = lag(row, now)
        rows.append(
            {
                "worker": row.slot + 1,
                "pid": pid,
                "generation": row.generation,
                "state": state,
                "age": age,
                "requests": row.requests,
                "rate": requests / seconds if seconds > 0 else 0.0,
                "open": row.open,
                "active": row.active,
                "lag_ms": None if late is None else late * 1e3,
                **{f"p{share}_ms": _milliseconds(quantile(buckets, share / 100)) for share in (50, 90, 99)},
                "rss": resident(pid) or row.rss,
                "pss": proportional(pid) if pss and time.monotonic() < enough else None,
                "doing": [
                    {"request": each.request, "seconds": max(0.0, now - each.started)}
                    for each in board.in_flight(row.seat)
                ],
            }
        )
    return sorted(rows, key=lambda row: (row["worker"], row["generation"], -row["age"]))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


class History:
    """A few samples of the board, SAMPLE_EVERY seconds apart."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: collections.deque[Sample] = collections.deque(maxlen=_KEPT)

    def observe(self, board: Scoreboard, now: float) -> None:
        """Take a sample if it is time for one; call it as often as you like."""
        if not self._samples or now - self._samples[-1].at >= SAMPLE_EVERY:
            self._samples.append(take_sample(board, now))

    def before(self, now: float) -> Sample | None:
        """What to compare the present with: the oldest sample of the last minute that is not too young."""
        for sample in self._samples:
            if SAMPLE_EVERY / 2 <= now - sample.at <= _FORGET_AFTER:
                return sample
        return None


class Metrics:
    """The numbers of one service: those of its workers now, and of all that are gone.

    board: the scoreboard. app: the application's own metrics.
    """

    def __init__(self, board: Scoreboard) -> None:
        self.board = board
        self.retired = Retired()
        self.app = AppMetrics()
        self._history = History()

    def __repr__(self) -> str:
        return f"<Metrics {self.board!r} {self.retired!r}>"

    def retire(self, seat: int) -> None:
        """Before `board.clear(seat)`: its worker is gone, what it has counted stays."""
        self.app.retire(self.board, seat)
        self.retired.take(self.board, seat)

    def observe(self, now: float) -> None:
        """Call it every now and then, with time.monotonic(): rates are measured against the past."""
        self._history.observe(self.board, now)

    def worker_rows(
        self, now: float, processes: Mapping[int, tuple[int, str]] | None = None, *, pss: bool = True
    ) -> list[dict[str, Any]]:
        """See the function `worker_rows`; the rates are those of the last seconds."""
        rows = worker_rows(self.board, now, self._history.before(now), processes, pss=pss)
        self.observe(now)
        return rows

    def totals(self) -> dict[str, int]:
        """For `Loop.status()["totals"]`: the counters of all workers there have been."""
        words = totals(self.board, self.retired)
        return {name: words[word] for name, word in TOTALS.items()}


# --------------------------------------------------------------------------- what the kernel knows


def resident(pid: int) -> int:
    """Bytes of memory a process has; 0 if the kernel does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    return 0


def proportional(pid: int) -> int | None:
    """The same, but of shared pages only its part (PSS); None if the kernel does not tell.

    It must be allowed to look into the process: as root, or as its user.
    """
    with (
        contextlib.suppress(OSError, ValueError, IndexError),
        open(f"/proc/{pid}/smaps_rollup", "rb") as file,
    ):
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return None


def accept_queue(sock: socket.socket) -> int | None:
    """Connections that wait to be accepted. None of a unix socket, and of one that is closed."""
    if sock.fileno() == -1 or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        # tcp(7) and the kernel's tcp_get_info: of a listening socket, tcpi_unacked is the
        # length of the accept queue. It stands at byte 24 of struct tcp_info.
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        return int(struct.unpack_from("=I", info, 24)[0])
    except (OSError, struct.error):
        return None
