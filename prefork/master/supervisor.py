"""Every decision of the master, as a pure state machine.

Events and the time go in, actions come out. No clock, no process, no descriptor, no log:
`arbiter` performs the actions and reports what comes of them. That is why a test can drive
it through millions of orders of events that a real kernel would show once a year.

    supervisor = Supervisor(slots=8, graceful_timeout=30.0, boot_timeout=60.0)
    actions = supervisor.handle(Start(), now)
    wake_up_at = supervisor.next_deadline()

The service goes through four phases, only forwards:

    STARTING  no worker has been ready yet. The first failure ends everything (fail fast):
              a service that cannot start shall say so once and give an exit code.
    SERVING   from the first READY on. Whatever dies now comes back, ever more slowly.
    DRAINING  TERM or INT: every worker finishes what it has, within the graceful timeout.
    STOPPING  QUIT, a second TERM, or a failed start: everybody goes at once.

Laws, each one an invariant of the test:

* Nothing is forked after the service was told to stop.
* A slot has at most one process that fills it and at most two in all.
* After a stop `Exit` comes as soon as the last child is reaped, exactly once, and last.
* Signals go only to children that are not yet reaped, so never to a stranger with their pid.
* After `handle(Tick())` the next deadline lies in the future: the loop cannot spin.
"""

from __future__ import annotations

import enum
import os
import signal
from typing import TYPE_CHECKING, Final

from prefork.ipc import Drain, Draining, ExitCode, Failed, Ready
from prefork.master.events import (
    Action,
    Closing,
    Event,
    Exit,
    Exited,
    Fork,
    Forked,
    ForkFailed,
    Kill,
    Log,
    Report,
    Said,
    Send,
    Serving,
    Start,
    Status,
    Stop,
    Tick,
)
from prefork.master.slots import MAX_PER_SLOT, Process, Slot, State

if TYPE_CHECKING:
    from prefork.ipc import Message

LEAVE_WITHIN: Final = 1.0
"""Seconds between asking a process to go at once and SIGKILL."""


class Phase(enum.Enum):
    """Of the whole service; see the module's text."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


TRANSITIONS: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.STARTING: frozenset({Phase.SERVING, Phase.DRAINING, Phase.STOPPING}),
    Phase.SERVING: frozenset({Phase.DRAINING, Phase.STOPPING}),
    Phase.DRAINING: frozenset({Phase.STOPPING}),
    Phase.STOPPING: frozenset(),
}


_INFO: Final = 20
_WARNING: Final = 30
_ERROR: Final = 40


class Supervisor:
    """Keeps `slots` workers alive, and ends them when told to.

    slots: how many workers shall serve, at least 1.
    graceful_timeout: seconds a worker gets to finish its requests.
    boot_timeout: seconds from the fork to READY.

    `handle(event, now)` takes any event at any time; what makes no sense any more (a message
    of a process that is reaped, a stop after the stop) is ignored. now: monotonic seconds,
    never going back.
    """

    __slots__ = (
        "_announced",
        "_boot_timeout",
        "_code",
        "_exited",
        "_generation",
        "_graceful_timeout",
        "_out",
        "_processes",
        "_seats",
        "_slots",
        "_started_at",
        "_status",
        "phase",
    )

    def __init__(self, *, slots: int, graceful_timeout: float = 30.0, boot_timeout: float = 60.0) -> None:
        if slots < 1:
            raise ValueError(f"at least one worker is needed, got {slots}")
        self.phase = Phase.STARTING
        self._slots = [Slot(number) for number in range(slots)]
        self._seats = set(range(self.seats(slots)))
        self._processes: dict[int, Process] = {}
        self._generation = 1
        self._graceful_timeout = graceful_timeout
        self._boot_timeout = boot_timeout
        self._started_at = 0.0
        self._announced = False
        self._exited = False
        self._code = ExitCode.CLEAN
        self._status = ""
        self._out: list[Action] = []

    def __repr__(self) -> str:
        ready, total, alive = self._ready(), len(self._slots), len(self._processes)
        return f"<Supervisor {self.phase.value} {ready}/{total} ready, {alive} alive>"

    @staticmethod
    def seats(slots: int) -> int:
        """How many processes `slots` workers may be at most, at one moment."""
        return slots * MAX_PER_SLOT

    def next_deadline(self) -> float | None:
        """When to send `Tick`; None when only an event from outside can change anything."""
        times = [p.deadline for p in self._processes.values() if p.deadline is not None]
        times += [slot.due for slot in self._slots if slot.due is not None and slot.room]
        return min(times, default=None)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event, return what to do about it, in this order."""
        if self._exited:
            return []
        match event:
            case Start():
                self._started_at = now
                for slot in self._slots:
                    slot.due = now
            case Forked(slot=number, pid=pid):
                self._forked(self._slots[number], pid, now)
            case ForkFailed(slot=number, reason=reason):
                self._fork_failed(self._slots[number], reason, now)
            case Said(pid=pid, message=message):
                process = self._processes.get(pid)
                if process is not None:
                    self._said(process, message, now)
            case Exited(pid=pid, status=status):
                process = self._processes.pop(pid, None)
                if process is not None:
                    self._reaped(process, status, now)
            case Stop(why=why, now=at_once):
                self._stop(why, at_once, now)
            case Tick():
                pass
        self._pass_deadlines(now)
        self._fork_due(now)
        if not self._announced and self._ready() == len(self._slots):
            self._announced = True
            self._do(Serving())
        self._tell_status()
        if self._stopping and not self._processes and all(slot.forking is None for slot in self._slots):
            self._exited = True
            self._do(Exit(int(self._code)))
        out, self._out = self._out, []
        return out

    # ---------------------------------------------------------------- small helpers

    def _do(self, action: Action) -> None:
        self._out.append(action)

    def _log(self, level: int, text: str, detail: str = "") -> None:
        self._out.append(Log(level, text, detail))

    @property
    def _stopping(self) -> bool:
        return self.phase in (Phase.DRAINING, Phase.STOPPING)

    def _ready(self) -> int:
        return sum(slot.ready for slot in self._slots)

    def _enter(self, phase: Phase) -> None:
        assert phase in TRANSITIONS[self.phase], f"{self.phase} -> {phase}"
        self.phase = phase

    def _tell_status(self) -> None:
        total, ready, alive = len(self._slots), self._ready(), len(self._processes)
        match self.phase:
            case Phase.STARTING | Phase.SERVING:
                text = f"{ready}/{total} workers ready"
            case Phase.DRAINING:
                text = f"draining, {_count(alive, 'worker')} left"
            case Phase.STOPPING:
                text = f"stopping, {_count(alive, 'worker')} left"
        if text != self._status:
            self._status = text
            self._do(Status(text))

    # ---------------------------------------------------------------- birth

    def _fork_due(self, now: float) -> None:
        if self._stopping:
            return
        for slot in self._slots:
            # Without room both places are taken by processes on their way out: the fork stays due.
            if slot.due is not None and slot.due <= now and slot.room:
                slot.due = None
                slot.forking = min(self._seats)
                self._seats.remove(slot.forking)
                self._do(Fork(slot.number, slot.forking, self._generation))

    def _forked(self, slot: Slot, pid: int, now: float) -> None:
        if slot.forking is None:
            return
        process = Process(
            slot=slot.number,
            seat=slot.forking,
            pid=pid,
            generation=self._generation,
            forked_at=now,
            deadline=now + self._boot_timeout,
        )
        slot.forking = None
        slot.processes.append(process)
        self._processes[pid] = process
        if self._stopping:
            self._dismiss(process, now)

    def _fork_failed(self, slot: Slot, reason: str, now: float) -> None:
        if slot.forking is None:
            return
        self._seats.add(slot.forking)
        slot.forking = None
        text = f"cannot fork worker {slot.number + 1}: {reason}"
        if self.phase is Phase.STARTING:
            self._abort(ExitCode.BOOT, text, now)
        elif not self._stopping:
            self._lost(slot, text, None, now)

    def _said(self, process: Process, message: Message, now: float) -> None:
        match message:
            case Ready():
                if self.phase is Phase.STARTING:
                    self._enter(Phase.SERVING)
                if process.state is State.BOOTING:
                    process.become_ready(now)
                    self._slots[process.slot].last_complaint = ""
                elif process.ready_at is None:
                    # It was told to go in the moment it began to serve. What it accepted counts.
                    process.ready_at = now
            case Failed(code=code, text=text) if process.state is State.BOOTING:
                process.leave(now + LEAVE_WITHIN)
                self._boot_failed(process, _exit_code(code), text, now)
            case Failed(text=text) if process.ready_at is not None:
                self._log(_ERROR, f"{process.name} failed", text.rstrip())
            case Draining(reason=reason) if process.fills:
                process.drain(now + self._graceful_timeout + LEAVE_WITHIN)
                slot = self._slots[process.slot]
                self._lost(slot, f"{process.name} drains by itself ({reason})", process, now, level=_INFO)
            case _:
                pass  # A message of no consequence in this state: its exit will be seen anyway.

    # ---------------------------------------------------------------- loss

    def _lost(
        self,
        slot: Slot,
        text: str,
        process: Process | None,
        now: float,
        *,
        level: int = _ERROR,
        detail: str = "",
    ) -> None:
        """The slot is empty: ask for a successor and say so. process: who filled it, if anybody did."""
        delay = slot.schedule(now, served_since=process.ready_at if process is not None else None)
        self._log(level, f"{text}; next one in {delay:g} s", detail)

    def _boot_failed(self, process: Process, code: ExitCode, text: str, now: float) -> None:
        """It will never be ready. text: the whole story, for people."""
        if self.phase is Phase.STARTING:
            self._abort(code, text, now)
            return
        if self._stopping:
            return
        slot = self._slots[process.slot]
        if text == slot.last_complaint:
            self._lost(slot, f"{process.name} failed to start as before", process, now)
        else:
            slot.last_complaint = text
            self._lost(slot, f"{process.name} failed to start", process, now, detail=text.rstrip())

    def _reaped(self, process: Process, status: int, now: float) -> None:
        slot = self._slots[process.slot]
        slot.processes.remove(process)
        self._seats.add(process.seat)
        how = describe(status)
        if self._stopping:
            if status != 0 and process.ready_at is not None:
                # A worker that never served had nothing to cut, however it went.
                if self._code is ExitCode.CLEAN:
                    self._code = ExitCode.CUT
                self._log(_WARNING, f"{process.name} {how}: what it had in flight is cut")
            return
        match process.state:
            case State.BOOTING:
                text = f"{process.name} {how} before it was ready"
                if self.phase is Phase.STARTING:
                    self._abort(ExitCode.BOOT, text, now)
                else:
                    self._lost(slot, text, process, now)
            case State.READY:
                age = now - (process.ready_at or now)
                self._lost(slot, f"{process.name} {how} after {_seconds(age)}", process, now)
            case State.DRAINING if status == 0:
                self._log(_INFO, f"{process.name} has drained and left")
            case State.DRAINING:
                self._log(_WARNING, f"{process.name} {how} while it drained: what it had in flight is cut")
            case _:
                pass  # LEAVING and KILLED were told of when they were sent away.

    def _pass_deadlines(self, now: float) -> None:
        for process in list(self._processes.values()):
            if process.deadline is None or process.deadline > now:
                continue
            match process.state:
                case State.BOOTING:
                    self._kill(process)
                    text = f"worker {process.slot + 1} was not ready within {_seconds(self._boot_timeout)}"
                    self._boot_failed(process, ExitCode.BOOT, text, now)
                case State.DRAINING:
                    self._kill(process)
                    limit = _seconds(self._graceful_timeout)
                    self._log(
                        _WARNING,
                        f"{process.name} was not done within the graceful timeout of {limit}, killed",
                    )
                case _:
                    self._kill(process)

    # ---------------------------------------------------------------- stop

    def _stop(self, why: str, at_once: bool, now: float) -> None:
        if self.phase is Phase.STOPPING:
            # They have been asked, and somebody is out of patience.
            for process in self._processes.values():
                if process.state is not State.KILLED:
                    self._kill(process)
        elif at_once or self.phase is Phase.DRAINING:
            self._log(_INFO, f"{why}: stopping at once")
            self._close(Phase.STOPPING, now)
        else:
            limit = _seconds(self._graceful_timeout)
            self._log(_INFO, f"{why}: draining {_count(self._ready(), 'worker')}, at most {limit}")
            self._close(Phase.DRAINING, now)

    def _abort(self, code: ExitCode, text: str, now: float) -> None:
        """The service cannot start."""
        self._code = code
        self._do(Report(text))
        self._close(Phase.STOPPING, now)

    def _close(self, phase: Phase, now: float) -> None:
        if not self._stopping:
            self._do(Closing())
        self._enter(phase)
        for slot in self._slots:
            slot.due = None
        for process in list(self._processes.values()):
            self._dismiss(process, now)

    def _dismiss(self, process: Process, now: float) -> None:
        """Send a process away, as the phase demands."""
        if self.phase is Phase.STOPPING:
            if process.state is State.BOOTING:
                self._do(Kill(process.pid, signal.SIGTERM))
                process.leave(now + LEAVE_WITHIN)
            elif process.state in (State.READY, State.DRAINING):
                self._do(Send(process.pid, Drain(0.0)))
                process.leave(now + LEAVE_WITHIN)
        elif process.state is State.READY:
            self._do(Send(process.pid, Drain(self._graceful_timeout)))
            process.drain(now + self._graceful_timeout + LEAVE_WITHIN)
        elif process.state is State.BOOTING:
            # It does not read messages yet. SIGTERM kills it while it boots; if it began to
            # serve a moment ago (its READY is on the way) it drains, and nothing is lost.
            self._do(Kill(process.pid, signal.SIGTERM))
            process.drain(now + self._graceful_timeout + LEAVE_WITHIN)

    def _kill(self, process: Process) -> None:
        self._do(Kill(process.pid, signal.SIGKILL))
        process.kill()


def describe(status: int) -> str:
    """How a child ended, by its wait status: "was killed by SIGSEGV (core dumped)", "exited with code 3"."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (core dumped)" if os.WCOREDUMP(status) else "")


def _exit_code(code: int) -> ExitCode:
    """A worker's own word on why it failed to start, if it is one of ours."""
    return ExitCode.APP if code == ExitCode.APP else ExitCode.BOOT


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds % 1 and seconds < 100 else f"{seconds:.0f} s"
