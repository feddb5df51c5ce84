"""Slots and the processes in them: the state that the supervisor decides about.

A *slot* is a place in the service that shall always be filled: "worker 3". A *process* is
one forked child that fills it for a while. Usually a slot has one process; while it is
replaced it has two, the one that goes and the one that comes, and never more.

A process goes through five states, only forwards:

    BOOTING ──> READY ──> DRAINING ──> LEAVING ──> KILLED
        every later state may be reached directly

    BOOTING   forked, not yet accepting; deadline: the boot timeout
    READY     accepting; no deadline
    DRAINING  finishes what it has; deadline: its graceful timeout
    LEAVING   told to go at once, or said that it goes; deadline: a moment
    KILLED    SIGKILL is sent; nothing left to do but to reap it

Being reaped is no state: a process that is reaped is forgotten. The law here: a method
named after the transition is the only way into a state, and it asserts where it comes from.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

BACKOFF_FIRST: Final = 0.1
BACKOFF_LAST: Final = 30.0
HEALTHY_AFTER: Final = 60.0
"""Seconds. A worker that was ready for so long owes nothing to the failures before it."""

MAX_PER_SLOT: Final = 2
"""Processes of one slot alive at a time: one that leaves and one that comes."""


class State(enum.Enum):
    """Of a process; see the module's text."""

    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    LEAVING = "leaving"
    KILLED = "killed"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.BOOTING: frozenset({State.READY, State.DRAINING, State.LEAVING, State.KILLED}),
    State.READY: frozenset({State.DRAINING, State.LEAVING, State.KILLED}),
    State.DRAINING: frozenset({State.LEAVING, State.KILLED}),
    State.LEAVING: frozenset({State.KILLED}),
    State.KILLED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Process:
    """One forked worker, from the fork until it is reaped.

    deadline: when the supervisor must do something about it (monotonic seconds), or None.
    ready_at: when it said READY, or None.
    retires: why it wants a successor, "" if it does not. retire_at: when to fork that one.
    retire_failures: how many successors in a row did not get ready.
    hung: its loop did not turn, so it was told to go.
    """

    slot: int
    seat: int
    pid: int
    generation: int
    forked_at: float
    deadline: float | None
    state: State = State.BOOTING
    ready_at: float | None = None
    retires: str = ""
    retire_at: float = 0.0
    retire_failures: int = 0
    hung: bool = False

    def __repr__(self) -> str:
        return f"<Process worker {self.slot + 1} pid {self.pid} {self.state.value}>"

    @property
    def name(self) -> str:
        """For the log."""
        return f"worker {self.slot + 1} (pid {self.pid})"

    @property
    def fills(self) -> bool:
        """It is the one its slot counts on: it serves, or is about to."""
        return self.state in (State.BOOTING, State.READY)

    def _enter(self, state: State, deadline: float | None) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state
        self.deadline = deadline

    def become_ready(self, now: float) -> None:
        self._enter(State.READY, None)
        self.ready_at = now

    def served(self, now: float) -> float:
        """Seconds since it became ready, 0 if it never did."""
        return now - self.ready_at if self.ready_at is not None else 0.0

    def retire(self, reason: str, now: float) -> None:
        """It goes on serving, and wants a successor."""
        assert self.state is State.READY, self.state
        self.retires = reason
        self.retire_at = now

    def retire_later(self, now: float) -> float:
        """Its successor failed: it serves on. Returns the delay until the next one is tried."""
        delay = backoff(self.retire_failures)
        self.retire_failures += 1
        self.retire_at = now + delay
        return delay

    def drain(self, deadline: float) -> None:
        self._enter(State.DRAINING, deadline)

    def leave(self, deadline: float) -> None:
        self._enter(State.LEAVING, deadline)

    def kill(self) -> None:
        self._enter(State.KILLED, None)


@dataclass(slots=True, eq=False)
class Slot:
    """A place that shall be filled.

    failures: how many processes in a row it lost without a healthy minute between.
    due: when to fork the next one (monotonic seconds); None when there is nothing to fork.
    forking: the seat for which a fork is asked, while its outcome is not yet known; else None.
    forking_generation: what that fork will run.
    last_complaint: the text of the last failed start, so that a loop of crashes logs it once.
    wanted: False after the service was scaled down; what is left in it drains.
    """

    number: int
    processes: list[Process] = field(default_factory=list)
    failures: int = 0
    due: float | None = None
    forking: int | None = None
    forking_generation: int = 1
    last_complaint: str = ""
    wanted: bool = True

    def __repr__(self) -> str:
        return f"<Slot {self.number} {self.processes} failures {self.failures} due {self.due}>"

    @property
    def current(self) -> Process | None:
        """The process that fills the slot: the one that serves, else the one that boots."""
        filling = [p for p in self.processes if p.fills]
        return next((p for p in filling if p.state is State.READY), filling[0] if filling else None)

    @property
    def successor(self) -> Process | None:
        """The process that boots while another one serves, to take its place."""
        serving = any(p.state is State.READY for p in self.processes)
        return next((p for p in self.processes if serving and p.state is State.BOOTING), None)

    @property
    def ready(self) -> bool:
        return any(p.state is State.READY for p in self.processes)

    @property
    def room(self) -> bool:
        """A process may be forked into it, because it is empty."""
        return self.forking is None and self.current is None and len(self.processes) < MAX_PER_SLOT

    @property
    def room_for_successor(self) -> bool:
        """A process may be forked into it, beside the one that serves."""
        return (
            self.forking is None
            and self.ready
            and self.successor is None
            and len(self.processes) < MAX_PER_SLOT
        )

    def schedule(self, now: float, *, served_since: float | None) -> float:
        """Ask for a successor and return the delay until it comes.

        served_since: when the predecessor became ready; None if it never did. 0.1 s, doubled with
        each further loss up to 30 s; a predecessor that served for a minute starts the count anew.
        """
        if served_since is not None and now - served_since >= HEALTHY_AFTER:
            self.failures = 0
        delay = backoff(self.failures)
        self.failures += 1
        self.due = now + delay
        return delay


def backoff(failures: int) -> float:
    """Seconds to wait before the next fork, after so many losses in a row before this one."""
    # The exponent is capped: 2**1100 is no float any more, and a slot may fail for weeks.
    return min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** min(failures, 16))
