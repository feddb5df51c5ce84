"""This worker's seat: what it publishes in the scoreboard.

Others decide by these numbers (siblings: who accepts; the master: who is alive), so the law
is that each is written in the moment it changes, or by the tick of the loop itself. A number
that a helper thread kept fresh would say "alive" of a loop that hangs.

A publication is one or two stores into shared memory: no lock, no call into the kernel.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from prefork.ipc import NOT_ACCEPTING, Word, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.ipc import Place

TICK_EVERY: Final = 0.25
"""Seconds between two heartbeats of an idle loop."""


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
