"""The fair accept gate: which of the workers takes the next connection.

All workers wait on the same listening socket, and the kernel wakes them in an order that has
nothing to do with their load: left alone, one worker of four may take all of 64 connections.
So each asks the gate before it accepts, and the gate looks at the scoreboard: who has more
than one connection above the least loaded sibling steps back for a few milliseconds.

A rule that says "not me" is only as good as its answer to "what if nobody": the law here is
that a connection never waits for a worker that does not come. Hence:

* Only siblings count that accept (not booting, draining or out of descriptors) and whose
  loop has turned lately. One of the least loaded is always free to go.
* A sibling whose loop does not turn for 40 ms, although the connection wakes it as well,
  is not waited for until it does: it is busy, stopped, or hangs.
* No sibling has accepted anything for 40 ms: those that the connection was left to do not
  come. It is taken.
* Siblings do accept, but connections queue up all the time that this worker stands back: those
  who accept are fewer than the load needs. A worker that has just been born with no connections
  would otherwise serve all newcomers alone, while others with a hundred idle ones stand by.
  For a second everybody accepts.

The gate also knows the limit of descriptors. A worker that runs into EMFILE would spin on a
queue that others could serve, so it leaves the queue to them a little before.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from prefork.ipc import Word

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefork.ipc import Scoreboard
    from prefork.workers.board import Seat

_MS: Final = 1_000_000  # in ns

STEP_BACK: Final = 0.003
"""Seconds a worker leaves the queue to others: a few turns of their loops."""

CAP_PAUSE: Final = 0.1
"""Seconds between two looks for descriptors when there are none left."""

STALE: Final = 2_000 * _MS
PATIENCE: Final = 40 * _MS
PRESSURE: Final = 20
"""Looks in excess at which connections queued, before a worker that stands back joins in."""
LOOKS_APART: Final = 15 * _MS
FREE_FOR: Final = 1_000 * _MS

_TICK: Final = Word.TICK - Word.LOAD
_ACCEPTED: Final = Word.ACCEPTED - Word.LOAD


class AcceptGate:
    """Says before each accept whether this worker should: `ask()` returns seconds to step back, or 0.0.

    seat: this worker's. board: everybody's. queue: the listening sockets, to see how many wait.
    descriptors: the limit of this process; None does not look.
    call_soon: runs a function after what is going on now; by then an accept that was allowed
    has become a connection (`loop.call_soon`).

        gate = AcceptGate(seat, board, socks, Descriptors(), call_soon=loop.call_soon)
        server.start(socks, gate=gate.ask)
    """

    def __init__(
        self,
        seat: Seat,
        board: Scoreboard,
        queue: Sequence[socket.socket],
        descriptors: Descriptors | None,
        *,
        call_soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._seat = seat
        self._words = board.words
        self._tick_at = seat.base + Word.TICK
        self._all_loads = board.column(Word.LOAD)
        # Where the loads of the others are; the other words of a seat lie at fixed distances.
        self._loads = [board.base(n) + Word.LOAD for n in range(board.seats) if n != seat.number]
        self._queue = [sock for sock in queue if sock.family in (socket.AF_INET, socket.AF_INET6)]
        self._blind = len(self._queue) < len(queue)
        self._descriptors = descriptors
        self._call_soon = call_soon
        self._clock = clock
        self._capped = False
        # How long nobody has accepted.
        self._waiting_since = 0
        self._accepted_then = -1
        self._took_one = False
        self._patience = PATIENCE
        # Whose loop does not turn although a connection is there: by the place of its load.
        self._suspects: dict[int, tuple[int, int]] = {}  # tick, and since when it stands at that
        self._blamed: dict[int, int] = {}  # tick
        # How often the queue was long since the last turn of ours.
        self._pressure = 0
        self._last_look = 0
        self._free_until = 0

    def __repr__(self) -> str:
        state = "capped" if self._capped else "free" if self._clock() < self._free_until else "fair"
        return f"<AcceptGate {state} {self._seat!r}>"

    def ask(self) -> float:
        """0.0: accept one. More: leave the queue to others for so many seconds."""
        now = self._clock()
        seat = self._seat
        self._words[self._tick_at] = now
        if self._descriptors is not None and not self._has_descriptors(self._descriptors):
            return CAP_PAUSE
        load = seat.open + seat.granted
        if load > 1:
            # The least of all loads, this one's among them, which does no harm.
            if min(self._all_loads) < load - 1:
                pause = self._stand_back(load - 1, now)
                if pause:
                    return pause
            else:
                self._pressure = 0
        if not seat.granted:
            self._call_soon(seat.settle)
        seat.grant()
        self._took_one = True
        return 0.0

    def _has_descriptors(self, descriptors: Descriptors) -> bool:
        if descriptors.left():
            if self._capped:
                self._capped = False
                self._seat.accept(True)
            return True
        if not self._capped:
            self._capped = True
            self._seat.accept(False)
        return False

    def _stand_back(self, fair: int, now: int) -> float:
        """Some seat has less than `fair`. Whether to wait for it: seconds, or 0.0."""
        words = self._words
        if now < self._free_until:
            return 0.0
        # Looks that follow each other closely are one long look at a queue that is not empty.
        if now - self._last_look > LOOKS_APART:
            self._suspects.clear()
            self._pressure = 0
        self._last_look = now
        if not any(words[at] < fair and self._comes(at, now) for at in self._loads):
            return 0.0
        # One that waits may be on its way already to whom it was left to; a second one is queued.
        queued = self._blind or self._waiting() > 1
        self._pressure = max(0, self._pressure + (1 if queued else -1))
        if self._pressure >= PRESSURE:
            self._pressure = 0
            self._free_until = now + FREE_FOR
            return 0.0
        accepted = sum([words[at + _ACCEPTED] for at in self._loads])
        if accepted != self._accepted_then:
            # Somebody came (or died, and took its count along).
            self._accepted_then = accepted
            self._patience = PATIENCE
            self._wait_anew(now)
        elif self._took_one:
            # Who waits now is somebody else.
            self._wait_anew(now)
        elif now - self._waiting_since >= self._patience:
            # As long as nobody else comes, ever less patience.
            self._patience //= 2
            self._wait_anew(now)
            return 0.0
        return STEP_BACK

    def _wait_anew(self, now: int) -> None:
        self._waiting_since = now
        self._took_one = False

    def _comes(self, at: int, now: int) -> bool:
        """Whether the seat's worker can be expected to take what is left to it.

        A loop that waits is woken by the same connection as this one, and asks its own gate,
        which moves its tick. One that does not within our patience is busy, stopped or hung.
        """
        tick = self._words[at + _TICK]
        if now - tick > STALE or self._blamed.get(at) == tick:
            return False
        then, since = self._suspects.get(at, (-1, 0))
        if then != tick:
            self._suspects[at] = (tick, now)
        elif now - since >= PATIENCE:
            self._blamed[at] = tick
            return False
        return True

    def _waiting(self) -> int:
        """Connections in the accept queues."""
        total = 0
        for sock in self._queue:
            # tcp(7) and the kernel's tcp_get_info: of a listening socket, tcpi_unacked is the
            # length of the accept queue. It stands at byte 24 of struct tcp_info.
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
            total += struct.unpack_from("=I", info, 24)[0]
        return total


class LoneGate:
    """The gate of a worker that has no siblings: it minds its descriptors, and nobody else.

    descriptors: the limit of this process.
    """

    __slots__ = ("_descriptors",)

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors

    def ask(self) -> float:
        """0.0: accept one. More: leave the queue alone for so many seconds."""
        return 0.0 if self._descriptors.left() else CAP_PAUSE


class Descriptors:
    """Whether this process has descriptors to spare, without counting them.

    The kernel gives out the lowest free number. So a descriptor that is made for a test tells
    how many are in use at least, and nothing needs to know who uses them: connections, the
    application's database, its files. Most calls only count down to the next test.

    limit: of open files; None asks the kernel. reserve: how many the application keeps.
    """

    __slots__ = ("_calls_left", "_ceiling", "_probe")

    def __init__(self, probe: int, *, limit: int | None = None, reserve: int | None = None) -> None:
        if limit is None:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if reserve is None:
            reserve = min(64, limit // 8)
        self._ceiling = limit - reserve
        self._probe = probe
        self._calls_left = 0

    def left(self) -> bool:
        """True if another connection may be accepted."""
        if self._calls_left > 0:
            self._calls_left -= 1
            return True
        try:
            lowest = os.dup(self._probe)
        except OSError:  # EMFILE: the limit was lowered, or the reserve is used up
            return False
        os.close(lowest)
        if lowest >= self._ceiling:
            return False
        # A connection may bring descriptors of the application's with it: three are allowed for.
        self._calls_left = (self._ceiling - lowest) // 4
        return True
