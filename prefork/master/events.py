"""What the supervisor is told, and what it wants done: the words between it and the arbiter.

Plain values without behaviour. An event says what has happened; an action says what shall
happen next, and the arbiter performs actions in the order in which they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import signal

    from prefork.ipc import Message

# --------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Start:
    """Once, at the beginning: the listeners are bound."""


@dataclass(frozen=True, slots=True)
class Forked:
    """A `Fork` action worked."""

    slot: int
    pid: int


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """A `Fork` action did not work: out of memory or of processes."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Said:
    """A worker sent a message."""

    pid: int
    message: Message


@dataclass(frozen=True, slots=True)
class Exited:
    """A child was reaped. status: as waitpid(2) returned it. Strangers' children are none of our business."""

    pid: int
    status: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody wants the service to end. why: the signal's name. now: without waiting for anything."""

    why: str
    now: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. Due at `next_deadline()`; harmless at any other time."""


Event: TypeAlias = Start | Forked | ForkFailed | Said | Exited | Stop | Tick


# --------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Fork:
    """Fork a worker. Must be answered by `Forked` or `ForkFailed` before any other event."""

    slot: int
    seat: int
    generation: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a worker."""

    pid: int
    message: Message


@dataclass(frozen=True, slots=True)
class Kill:
    """Send a signal to a child that is not reaped yet."""

    pid: int
    signal: signal.Signals


@dataclass(frozen=True, slots=True)
class Log:
    """For the log. level: as in `logging`. text: one line. detail: a traceback or the like, many lines."""

    level: int
    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the person who started the service why it did not start. Many lines, printed as they are."""

    text: str


@dataclass(frozen=True, slots=True)
class Serving:
    """Every slot has a worker that accepts, for the first time: the service is up."""


@dataclass(frozen=True, slots=True)
class Status:
    """The number of ready workers changed, or the phase did. One line for systemd and for people."""

    text: str


@dataclass(frozen=True, slots=True)
class Closing:
    """The service begins to end, whatever the reason: no new connections from now on. Sent once."""


@dataclass(frozen=True, slots=True)
class Exit:
    """No child is left. The master returns `code`."""

    code: int


Action: TypeAlias = Fork | Send | Kill | Log | Report | Serving | Status | Closing | Exit
