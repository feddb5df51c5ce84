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
    """A child was reaped. status: as waitpid(2) returned it. Strangers' children are none of our business.

    flight: the requests it had in hand, as the scoreboard tells. out_of_memory: the kernel has
    killed processes of this cgroup since the last death.
    """

    pid: int
    status: int
    flight: tuple[str, ...] = ()
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Hangs:
    """A worker's loop has not turned for `seconds`. Told again and again as long as that is so."""

    pid: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Reload:
    """Somebody wants the application loaded afresh. why: the signal's name, or who asked."""

    why: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The outcome of a `Prepare` action: the settings have been read again, or why they cannot be used.

    slots: how many workers they ask for, which is heeded when the first of the new generation
    serves; None leaves the number as it is.
    """

    slots: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Somebody wants `slots` workers."""

    slots: int
    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody wants the service to end. why: the signal's name. now: without waiting for anything."""

    why: str
    now: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. Due at `next_deadline()`, after everything else that is known by then; harmless at
    any other time."""


Event: TypeAlias = (
    Start | Forked | ForkFailed | Said | Exited | Hangs | Reload | Prepared | Scale | Stop | Tick
)


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
class Explain:
    """A worker hangs: log what it has in hand, and have it write every thread's stack."""

    pid: int
    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Prepare:
    """Read the settings again, for `generation`. Must be answered by `Prepared` before any other event."""

    generation: int


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A reload is over. ok: every worker runs the new generation. text: what happened, for people.

    Sent once for each `Prepare`. A `Reload` that comes before its `Prepare` shares it with those before
    it, one that comes later has the next one; a stop ends both kinds, each with one of these.
    """

    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Serving:
    """The service is up: every slot has a worker that accepts, or more than half, and the rest has failed."""


@dataclass(frozen=True, slots=True)
class Status:
    """The number of ready workers changed, or the phase did. One line for systemd and for people."""

    text: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The service begins to end, whatever the reason: it is not ready any more. Sent once."""


@dataclass(frozen=True, slots=True)
class Closing:
    """No new connections from now on. Sent once, after `Stopping`: at once, or after the delay for load
    balancers."""


@dataclass(frozen=True, slots=True)
class Exit:
    """No child is left. The master returns `code`."""

    code: int


Action: TypeAlias = (
    Fork
    | Send
    | Kill
    | Log
    | Report
    | Explain
    | Prepare
    | Reloaded
    | Serving
    | Status
    | Stopping
    | Closing
    | Exit
)
