"""What may be said to systemd in good faith: "give me more time" and "I am alive".

    witness = Witness(boot_timeout=60.0, graceful_timeout=30.0, watchdog_interval=notifier.watchdog_interval)
    say = witness.tick(notifier.stage, board.rows(), time.monotonic())
    if say.extend is not None:
        notifier.extend(say.extend)
    if say.alive:
        notifier.alive()

Pure: stage, rows of the scoreboard and time in, words out. It is asked whenever the master's loop
has turned, and at the latest at `next_deadline()`.

The laws:

1. Time is asked for only while something gets on, never because time has passed.
   At a start or a reload that is a worker that boots for the first time in its slot and
   generation, within `boot_timeout`; what boots again after it failed is a crash loop, and
   runs into systemd's own limit. At the stop it is the `drain_delay`, and then what is in flight
   getting less, within `graceful_timeout`; when nothing ends any more, systemd's limit is right.
2. "Alive" is said only by a loop that turns, as this is called by nobody else, and only while
   at least one worker's own loop turns too: a master that is well over workers that all hang
   is a service that is dead. Before it is ready, and at its end, systemd does not watch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prefork.ipc import WorkerState
from prefork.master.notify import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefork.ipc import Row

EXTEND_EVERY: Final = 5.0
EXTEND_BY: Final = 15.0
"""Seconds from now that are asked for, again and again: three times the pause between two demands."""

FRESH: Final = 5.0
"""Seconds since its last turn for which a worker's loop counts as turning. It ticks four times a second."""

_RETRY: Final = 1.0
"""Seconds until the workers are looked at again, when "alive" is due and cannot be said."""


@dataclass(frozen=True, slots=True)
class Say:
    """What to tell systemd now. extend: seconds for `Notifier.extend`, or None. alive: call `alive()`."""

    extend: float | None = None
    alive: bool = False


class Witness:
    """Watches the scoreboard for progress and for life.

    boot_timeout, graceful_timeout, drain_delay: seconds, as the supervisor has them.
    watchdog_interval: seconds between two signs of life; None: nobody waits for them.

    One for the life of the master.
    """

    __slots__ = (
        "_attempts",
        "_boot_timeout",
        "_drain_delay",
        "_extend_at",
        "_feed_at",
        "_graceful_timeout",
        "_interval",
        "_least",
        "_progress_at",
        "_stage",
        "_stage_at",
    )

    def __init__(
        self,
        *,
        boot_timeout: float,
        graceful_timeout: float,
        drain_delay: float = 0.0,
        watchdog_interval: float | None = None,
    ) -> None:
        self._boot_timeout = boot_timeout
        self._graceful_timeout = graceful_timeout
        self._drain_delay = drain_delay
        self._interval = watchdog_interval
        self._stage: Stage | None = None
        self._stage_at = 0.0
        self._extend_at: float | None = None
        self._feed_at: float | None = None
        # (generation, slot) -> when the first process of it was forked, in ns
        self._attempts: dict[tuple[int, int], int] = {}
        # workers, connections and requests: the least there was since the drain began, and since when
        self._least: tuple[int, ...] | None = None
        self._progress_at = 0.0

    def __repr__(self) -> str:
        stage = self._stage.value if self._stage is not None else "not begun"
        return f"<Witness {stage}, extend at {self._extend_at}, feed at {self._feed_at}>"

    def next_deadline(self) -> float | None:
        """When to call `tick` again at the latest (monotonic seconds); None: whenever something happens."""
        times = [when for when in (self._extend_at, self._feed_at) if when is not None]
        return min(times, default=None)

    def tick(self, stage: Stage, rows: Iterable[Row], now: float) -> Say:
        """stage: `Notifier.stage`. rows: `Scoreboard.rows()`. now: time.monotonic()."""
        if stage is not self._stage:
            self._enter(stage, now)
        if stage is Stage.SERVING and (self._feed_at is None or now < self._feed_at):
            return Say()  # and the rows are not read at all
        rows = list(rows)
        return Say(extend=self._extend(rows, now), alive=self._alive(rows, now))

    def _enter(self, stage: Stage, now: float) -> None:
        self._stage, self._stage_at = stage, now
        # What is over within moments needs no more time.
        self._extend_at = None if stage is Stage.SERVING else now + EXTEND_EVERY
        self._attempts.clear()
        self._least = None
        if stage not in (Stage.SERVING, Stage.RELOADING) or self._interval is None:
            self._feed_at = None
        elif self._feed_at is None:
            self._feed_at = now

    # ---------------------------------------------------------------- more time

    def _extend(self, rows: list[Row], now: float) -> float | None:
        match self._stage:
            case Stage.STARTING | Stage.RELOADING:
                limit = self._booting_until(rows, now)
            case Stage.STOPPING:
                limit = self._draining_until(rows, now)
            case _:
                return None
        if self._extend_at is None or now < self._extend_at:
            return None
        self._extend_at = now + EXTEND_EVERY
        # Not beyond the moment in which prefork itself would lose its patience.
        left = min(EXTEND_BY, limit - now)
        return left if left > 0 else None

    def _booting_until(self, rows: list[Row], now: float) -> float:
        """Until when a worker may boot that does so for the first time; `now` when there is none."""
        latest = now
        for row in rows:
            first = self._attempts.setdefault((row.generation, row.slot), row.started)
            if row.state is WorkerState.BOOTING and row.started == first:
                # A little is added for what comes after it: the last one makes the service ready.
                latest = max(latest, row.started / 1e9 + self._boot_timeout + EXTEND_EVERY)
        return latest

    def _draining_until(self, rows: list[Row], now: float) -> float:
        """Until when the stop may take; not in the future when nothing has ended for a while."""
        drain_at = self._stage_at + self._drain_delay
        end = drain_at + self._graceful_timeout + EXTEND_EVERY
        if now < drain_at:
            return end
        left = len(rows), sum(row.open for row in rows), sum(row.active for row in rows)
        if self._least is None:
            self._least = left
            self._progress_at = now
        elif any(number < least for number, least in zip(left, self._least, strict=True)):
            self._least = tuple(map(min, left, self._least))
            self._progress_at = now
        return min(end, self._progress_at + EXTEND_BY)

    # ---------------------------------------------------------------- alive

    def _alive(self, rows: list[Row], now: float) -> bool:
        if self._feed_at is None or self._interval is None or now < self._feed_at:
            return False
        # `tick` is the worker's own stamp of the same clock; 0 until it has turned once.
        if any(row.tick and now - row.tick / 1e9 <= FRESH for row in rows):
            self._feed_at = now + self._interval
            return True
        self._feed_at = now + min(_RETRY, self._interval)
        return False
