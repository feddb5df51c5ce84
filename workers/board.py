"""This worker's seat: what it publishes in the scoreboard.

Others decide by these numbers (siblings: who accepts; the master: who is alive), so the law
is that each is written in the moment it changes, or by the tick of the loop itself. A number
that a helper thread kept fresh would say "alive" of a loop that hangs.

A publication is one or two stores into shared memory: no lock, no call into the kernel. What
nobody decides by (answers, bytes, durations) the server counts for itself, and the tick copies
it: of a worker that is killed, the last quarter of a second is lost.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from prefork.http import metrics
from prefork.http.client.idle_pool import pool_totals
from prefork.http.server.numbers import InFlight, Numbers
from prefork.scoreboard import (
    LATENCY_BOUNDS,
    NOT_ACCEPTING,
    RECORD,
    RECORDS,
    TICK_EVERY,
    Word,
    WorkerState,
)
from prefork.workers.retirement import resident

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.http import Server
    from prefork.ipc import Place
    from prefork.scoreboard import Scoreboard

__all__ = ["TICK_EVERY", "Recorder", "Seat"]

_TICK: Final = int(TICK_EVERY * 1e9)

_LAG_PERIOD: Final = 10 * 10**9
"""LAG_MAX is the worst of the period under way and the one before it, in ns."""

_RSS_EVERY: Final = 4
"""Ticks between two looks at the memory, which cost a few system calls."""


class Seat:
    """The row of one worker, for that worker to write.

    open: connections open now. granted: accepts that the gate has allowed and that have not
    become connections yet; they count as load, or a burst would be taken before it shows.
    accepting: whether this worker takes connections at all.

    It is booting until `ready()`; `drain()` is final.
    """

    __slots__ = ("_clock", "accepting", "base", "granted", "number", "open", "words")

    def __init__(self, place: Place, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.words = place.board.words
        self.base = place.board.base(place.seat)
        self.number = place.seat
        self.open = 0
        self.granted = 0
        self.accepting = False
        self._clock = clock
        self.words[self.base + Word.PID] = os.getpid()
        self.words[self.base + Word.TICK] = clock()

    def __repr__(self) -> str:
        state = WorkerState(self.words[self.base + Word.STATE]).name.lower()
        return f"<Seat {self.number} {state} {self.open} open>"

    def ready(self) -> None:
        """It accepts from now on."""
        self.tick(0, 0)
        self.words[self.base + Word.STATE] = WorkerState.READY
        self.accept(True)

    def drain(self) -> None:
        """It accepts no more."""
        self.words[self.base + Word.STATE] = WorkerState.DRAINING
        self.accept(False)

    def accept(self, accepting: bool) -> None:
        """Whether siblings shall leave connections to this worker."""
        self.accepting = accepting
        self._publish_load()

    def tick(self, active: int, requests: int) -> None:
        """The heartbeat, called by the loop. active: connections with a request in flight."""
        words, base = self.words, self.base
        words[base + Word.ACTIVE] = active
        words[base + Word.REQUESTS] = requests
        words[base + Word.TICK] = self._clock()

    def open_changed(self, count: int) -> None:
        """The number of open connections is `count` now. Called once or twice per connection."""
        if count > self.open:
            self.words[self.base + Word.ACCEPTED] += count - self.open
            if self.granted:
                self.granted -= 1
        self.open = count
        self.words[self.base + Word.OPEN] = count
        self._publish_load()

    def grant(self) -> None:
        """The gate allows one accept."""
        self.granted += 1
        self._publish_load()

    def settle(self) -> None:
        """What was granted has become connections, or others were faster."""
        self.granted = 0
        self._publish_load()

    def _publish_load(self) -> None:
        load = self.open + self.granted if self.accepting else NOT_ACCEPTING
        self.words[self.base + Word.LOAD] = load


class Recorder:
    """Tells others what the server of this worker does: its counters at each tick, its requests at once.

    Made before the server starts: it replaces `server.numbers`, which has counted nothing yet, and
    moves the application's metrics into the seat. `tick` is the heartbeat, for the loop to call
    every TICK_EVERY seconds, and once more at the end.

        recorder = Recorder(seat, server, place.board)
        ...
        recorder.tick()

    Raises MetricError when the application has made more metrics than a seat has room for.
    """

    __slots__ = ("_clock", "_due", "_lag_worst", "_period_end", "_seat", "_server", "_until_rss")

    def __init__(
        self,
        seat: Seat,
        server: Server,
        board: Scoreboard,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._seat = seat
        self._server = server
        self._clock = clock
        self._due = 0  # when the next tick should come; 0 before the first
        self._lag_worst = (0, 0)  # of the period before, and of this one
        self._period_end = 0
        self._until_rss = 0
        records = [board.record(seat.number, number) for number in range(RECORDS)]
        server.numbers = Numbers(
            LATENCY_BOUNDS, InFlight(RECORD.pack_into, board.memory, board.words, records)
        )
        metrics.registry.attach(board.metrics(seat.number))

    def __repr__(self) -> str:
        return f"<Recorder {self._seat!r} {self._server.numbers!r}>"

    def tick(self) -> None:
        """Copy everything. How late it is called, is how late the loop is."""
        now = self._clock()
        self._record_lag(now)
        self._record_numbers()
        self._record_client()
        self._until_rss -= 1
        if self._until_rss < 0:
            self._until_rss = _RSS_EVERY - 1
            self._seat.words[self._seat.base + Word.RSS] = resident()
        active = self._server.active_connections
        self._seat.words[self._seat.base + Word.IN_FLIGHT] = active
        self._seat.tick(active, self._server.numbers.requests)

    def _record_lag(self, now: int) -> None:
        lag = max(0, now - self._due) if self._due else 0
        self._due = now + _TICK
        before, worst = self._lag_worst
        if now >= self._period_end:
            # Nothing is left of a period that ended long ago: the loop has hung meanwhile, and `lag` says so.
            before, worst = (worst if now < self._period_end + _LAG_PERIOD else 0), 0
            self._period_end = now + _LAG_PERIOD
        worst = max(worst, lag)
        self._lag_worst = before, worst
        words, base = self._seat.words, self._seat.base
        words[base + Word.LAG] = lag
        words[base + Word.LAG_MAX] = max(before, worst)

    def _record_numbers(self) -> None:
        words, base, numbers = self._seat.words, self._seat.base, self._server.numbers
        others, *classes = numbers.by_status()
        for word, count in enumerate(classes, base + Word.STATUS_1XX):
            words[word] = count
        words[base + Word.STATUS_OTHER] = others
        words[base + Word.REFUSED] = numbers.refused
        words[base + Word.EXCEPTIONS] = numbers.exceptions
        words[base + Word.RECEIVED] = numbers.received
        words[base + Word.SENT] = numbers.sent
        words[base + Word.DURATION] = int(numbers.seconds * 1e9)
        for word, count in enumerate(numbers.by_duration(), base + Word.BUCKET):
            words[word] = count

    def _record_client(self) -> None:
        words, base, totals = self._seat.words, self._seat.base, pool_totals()
        words[base + Word.CLIENT_REQUESTS] = totals.requests
        words[base + Word.CLIENT_REUSES] = totals.reuses
        words[base + Word.CLIENT_DIALS] = totals.dials
        words[base + Word.CLIENT_DIAL_ERRORS] = totals.dial_errors
        words[base + Word.CLIENT_RETRIES] = totals.retries
        words[base + Word.CLIENT_IDLE] = totals.idle
        words[base + Word.CLIENT_ACTIVE] = max(0, totals.active)
