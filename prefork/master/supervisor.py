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
    DRAINING  TERM or INT: after the delay for load balancers, every worker finishes what it
              has, within the graceful timeout.
    STOPPING  QUIT, a second TERM, or a failed start: everybody goes at once.

Laws, each one an invariant of the test:

* Nothing is forked after the service was told to stop.
* A slot has at most two processes: one that goes and one that comes.
* After a stop `Exit` comes as soon as the last child is reaped, exactly once, and last.
* Signals go only to children that are not yet reaped, so never to a stranger with their pid.
* A worker that serves is told to go, by a reload or for its age, only when its successor serves;
  and by a reload the first one only when its successor, the canary, has served for a moment.
* At most one worker is being replaced at a time, and a reload that fails stops where it is.
* Every reload that was asked for ends, with `Reloaded`.
* Deadlines pass only at a `Tick`. After it the next one lies in the future: the loop cannot spin.
* A master that was not running (stopped, suspended, starved) blames nobody for the time that passed.
"""

from __future__ import annotations

import enum
import os
import signal
from collections import deque
from typing import TYPE_CHECKING, Final

from prefork.ipc import Changed, Drain, Draining, ExitCode, Failed, Ready, Retiring
from prefork.master.events import (
    Action,
    Closing,
    Event,
    Exit,
    Exited,
    Explain,
    Fork,
    Forked,
    ForkFailed,
    Hangs,
    Kill,
    Log,
    Prepare,
    Prepared,
    Reload,
    Reloaded,
    Report,
    Said,
    Scale,
    Send,
    Serving,
    Start,
    Status,
    Stop,
    Stopping,
    Tick,
)
from prefork.master.rollout import Rollout
from prefork.master.slots import MAX_PER_SLOT, Process, Slot, State

if TYPE_CHECKING:
    from prefork.ipc import Message

LEAVE_WITHIN: Final = 1.0
"""Seconds between asking a process to go at once and SIGKILL."""

EXPLAIN_WITHIN: Final = 0.5
"""Seconds a worker that hangs gets to write its stacks before SIGKILL."""

CANARY_SERVES: Final = 0.3
"""Seconds the first worker of a new generation serves before the worker that it replaces is let go."""

BUDGET_PERIOD: Final = 60.0
"""Seconds within which the losses are counted that the crash budget allows."""

STALLED_AFTER: Final = 2.0
"""Seconds. A master that is so late for a deadline has not been running."""


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

    slots: how many workers shall serve, at least 1; `Scale` changes it, up to `capacity(slots)`.
    graceful_timeout: seconds a worker gets to finish its requests.
    boot_timeout: seconds from the fork to READY.
    drain_delay: seconds to go on serving after the order to stop, while load balancers look away.
    crash_budget: how many unexpected deaths within a minute are borne; one more ends the service.
    None for any number.

    `handle(event, now)` takes any event at any time; what makes no sense any more (a message
    of a process that is reaped, a stop after the stop) is ignored. now: monotonic seconds,
    never going back.

    restarts: how many workers have been replaced, by reason: "boot" (it failed to start), "fork",
    "crash", "oom", "hung", "left" (it was told to go by somebody else), "reload", or what the worker
    itself gave as the reason to retire. A successor that fails counts nowhere: it replaced nobody.
    """

    __slots__ = (
        "_announced",
        "_boot_timeout",
        "_capacity",
        "_closed",
        "_code",
        "_crash_budget",
        "_drain_at",
        "_drain_delay",
        "_exited",
        "_graceful_timeout",
        "_last_event_at",
        "_last_generation",
        "_losses",
        "_out",
        "_processes",
        "_recycling",
        "_reload_wanted",
        "_rollout",
        "_seats",
        "_slots",
        "_status",
        "generation",
        "phase",
        "restarts",
    )

    def __init__(
        self,
        *,
        slots: int,
        graceful_timeout: float = 30.0,
        boot_timeout: float = 60.0,
        drain_delay: float = 0.0,
        crash_budget: int | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"at least one worker is needed, got {slots}")
        self.phase = Phase.STARTING
        self.generation = 1
        self.restarts: dict[str, int] = {}
        self._slots = [Slot(number) for number in range(slots)]
        self._seats = set(range(self.seats(slots)))
        self._processes: dict[int, Process] = {}
        self._last_generation = 1
        self._rollout: Rollout | None = None
        self._reload_wanted = ""
        self._recycling: int | None = None
        self._graceful_timeout = graceful_timeout
        self._boot_timeout = boot_timeout
        self._drain_delay = drain_delay
        self._drain_at: float | None = None
        self._crash_budget = crash_budget
        self._losses: deque[float] = deque()
        self._last_event_at = 0.0
        self._announced = False
        self._exited = False
        self._closed = False
        self._capacity = self.capacity(slots)
        self._code = ExitCode.CLEAN
        self._status = ""
        self._out: list[Action] = []

    def __repr__(self) -> str:
        ready, total, alive = self.ready, self.wanted, len(self._processes)
        return f"<Supervisor {self.phase.value} {ready}/{total} ready, {alive} alive>"

    @staticmethod
    def capacity(slots: int) -> int:
        """The most workers that a service begun with `slots` can be scaled to."""
        return max(2 * slots, slots + 8)

    @classmethod
    def seats(cls, slots: int) -> int:
        """How many processes a service begun with `slots` workers may have at most, at one moment."""
        return cls.capacity(slots) * MAX_PER_SLOT

    @property
    def ready(self) -> int:
        """How many slots have a worker that serves."""
        return sum(slot.ready for slot in self._slots if slot.wanted)

    @property
    def wanted(self) -> int:
        """How many workers there shall be."""
        return sum(slot.wanted for slot in self._slots)

    @property
    def most(self) -> int:
        """How many workers there can be."""
        return self._capacity

    @property
    def reloading(self) -> bool:
        """Whether a reload is under way."""
        return self._rollout is not None

    def process(self, pid: int) -> Process | None:
        """The process with this pid, None when there is none of ours."""
        return self._processes.get(pid)

    def next_deadline(self) -> float | None:
        """When to send `Tick`; None when only an event from outside can change anything."""
        times = [p.deadline for p in self._processes.values() if p.deadline is not None]
        times += [slot.due for slot in self._slots if slot.due is not None and slot.room]
        times += [process.retire_at for process in self._retiring()]
        if self._rollout is not None and self._rollout.proves_at is not None:
            times.append(self._rollout.proves_at)
        if self._drain_at is not None:
            times.append(self._drain_at)
        return min(times, default=None)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event, return what to do about it, in this order."""
        if self._exited:
            return []
        self._forgive_stall(now)
        self._last_event_at = now
        match event:
            case Start():
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
            case Exited(pid=pid):
                process = self._processes.pop(pid, None)
                if process is not None:
                    self._reaped(process, event, now)
            case Hangs(pid=pid, seconds=seconds):
                process = self._processes.get(pid)
                if process is not None:
                    self._hangs(process, seconds, now)
            case Reload(why=why):
                self._reload(why)
            case Prepared():
                self._prepared(event, now)
            case Scale(slots=wanted, why=why):
                self._scale(wanted, why, now)
            case Stop(why=why, now=at_once):
                self._stop(why, at_once, now)
            case Tick():
                self._pass_deadlines(now)
        self._replace(now)
        self._fork_due(now)
        if not self._announced and self.phase is Phase.SERVING and self._quorum():
            self._announced = True
            self._do(Serving())
        self._tell_status()
        if self._stopping and not self._processes and all(slot.forking is None for slot in self._slots):
            self._exited = True
            self._drain_at = None
            if not self._closed:  # they all went before the load balancers looked away
                self._do(Closing())
            self._do(Exit(int(self._code)))
        out, self._out = self._out, []
        return out

    # ---------------------------------------------------------------- small helpers

    def _quorum(self) -> bool:
        """Whether the service is up: all serve, or more than half, and the others have failed already."""
        missing = [slot for slot in self._slots if slot.wanted and not slot.ready]
        return not missing or (self.ready > self.wanted // 2 and all(slot.failures for slot in missing))

    def _do(self, action: Action) -> None:
        self._out.append(action)

    def _log(self, level: int, text: str, detail: str = "") -> None:
        self._out.append(Log(level, text, detail))

    @property
    def _stopping(self) -> bool:
        return self.phase in (Phase.DRAINING, Phase.STOPPING)

    def _enter(self, phase: Phase) -> None:
        assert phase in TRANSITIONS[self.phase], f"{self.phase} -> {phase}"
        self.phase = phase

    def _tell_status(self) -> None:
        total, ready, alive = self.wanted, self.ready, len(self._processes)
        rollout = self._rollout
        match self.phase:
            case Phase.STARTING | Phase.SERVING:
                text = f"{ready}/{total} workers ready"
                if rollout is not None and not rollout.prepared:
                    text += ", reloading"
                elif rollout is not None:
                    done, all_of_them = len(rollout.done), rollout.total
                    text += f", reloading: {done} of {all_of_them} run generation {rollout.generation}"
                elif self.generation > 1:
                    text += f", generation {self.generation}"
            case Phase.DRAINING if self._drain_at is not None:
                text = f"stopping soon, {_count(alive, 'worker')} still serving"
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
            if slot.wanted and slot.due is not None and slot.due <= now and slot.room:
                slot.due = None
                self._fork(slot)

    def _fork(self, slot: Slot) -> None:
        rollout = self._rollout
        generation = self.generation
        if rollout is not None and rollout.covers(slot.number):
            generation = rollout.generation
        slot.forking = min(self._seats)
        slot.forking_generation = generation
        self._seats.remove(slot.forking)
        self._do(Fork(slot.number, slot.forking, generation))

    def _forked(self, slot: Slot, pid: int, now: float) -> None:
        if slot.forking is None:
            return
        process = Process(
            slot=slot.number,
            seat=slot.forking,
            pid=pid,
            generation=slot.forking_generation,
            forked_at=now,
            deadline=now + self._boot_timeout,
        )
        slot.forking = None
        slot.processes.append(process)
        self._processes[pid] = process
        if self._stopping and self._drain_at is None:
            self._dismiss(process, now)
        elif not slot.wanted:
            self._send_away(process, now)

    def _fork_failed(self, slot: Slot, reason: str, now: float) -> None:
        if slot.forking is None:
            return
        self._seats.add(slot.forking)
        slot.forking = None
        text = f"cannot fork worker {slot.number + 1}: {reason}"
        if self.phase is Phase.STARTING:
            self._abort(ExitCode.BOOT, text, now)
        elif not self._stopping and not self._successor_failed(slot, text, now):
            self._lost(slot, text, None, now, reason="fork")

    def _said(self, process: Process, message: Message, now: float) -> None:
        match message:
            case Ready():
                if self.phase is Phase.STARTING:
                    self._enter(Phase.SERVING)
                if process.state is State.BOOTING:
                    process.become_ready(now)
                    self._took_over(self._slots[process.slot], process, now)
                elif process.ready_at is None:
                    # It was told to go in the moment it began to serve. What it accepted counts.
                    process.ready_at = now
            case Failed(code=code, text=text) if process.state is State.BOOTING:
                process.leave(now + LEAVE_WITHIN)
                self._boot_failed(process, _exit_code(code), text, now)
            case Failed(text=text) if process.ready_at is not None:
                self._log(_ERROR, f"{process.name} failed", text.rstrip())
            case Draining(reason=reason) if process.fills:
                self._drains_by_itself(process, reason, now)
            case Retiring(reason=reason) if process.state is State.READY and not process.retires:
                process.retire(reason, now)
            case Changed(paths=paths) if process.state is State.READY and not self._stopping:
                self._reload(f"{paths} changed")
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
        reason: str,
        level: int = _ERROR,
        detail: str = "",
    ) -> None:
        """The slot lost a process that filled it: say so, and ask for another one if it is empty now.

        process: which one; None if there was not even one, because it could not be forked.
        """
        if not slot.wanted:
            self._log(level, text, detail)
            return
        if self._recycling == slot.number:
            self._recycling = None  # Whoever boots in it now is no successor any more, just its worker.
        self._count_restart(reason)
        if slot.current is None:
            delay = slot.schedule(now, served_since=process.ready_at if process is not None else None)
            text += f"; next one in {delay:g} s"
        self._log(level, text, detail)
        if level >= _ERROR:
            self._spend_budget(now)

    def _count_restart(self, reason: str) -> None:
        self.restarts[reason] = self.restarts.get(reason, 0) + 1

    def _spend_budget(self, now: float) -> None:
        if self._crash_budget is None or self._stopping:
            return
        self._losses.append(now)
        while self._losses[0] <= now - BUDGET_PERIOD:
            self._losses.popleft()
        if len(self._losses) > self._crash_budget:
            self._code = ExitCode.CRASH_BUDGET
            count = len(self._losses)
            self._log(
                _ERROR, f"{count} workers lost within {_seconds(BUDGET_PERIOD)}: the crash budget is spent"
            )
            self._close(Phase.DRAINING, now)

    def _boot_failed(self, process: Process, code: ExitCode, text: str, now: float) -> None:
        """It will never be ready. text: the whole story, for people."""
        if self.phase is Phase.STARTING:
            self._abort(code, text, now)
            return
        if self._stopping:
            return
        slot = self._slots[process.slot]
        if self._successor_failed(slot, text, now):
            return
        news = text != slot.last_complaint
        slot.last_complaint = text
        why = f"{process.name} failed to start" + ("" if news else " as before")
        self._lost(slot, why, process, now, reason="boot", detail=text.rstrip() if news else "")

    def _reaped(self, process: Process, event: Exited, now: float) -> None:
        slot = self._slots[process.slot]
        slot.processes.remove(process)
        self._seats.add(process.seat)
        how = describe(event.status)
        out_of_memory = (
            event.out_of_memory
            and process.state is not State.KILLED
            and os.WIFSIGNALED(event.status)
            and os.WTERMSIG(event.status) == signal.SIGKILL
        )
        if out_of_memory:
            how += " (out of memory: see the cgroup's memory.events)"
        in_hand = f"; in hand: {', '.join(event.flight)}" if event.flight else ""
        if self._stopping:
            if event.status != 0 and process.ready_at is not None:
                # A worker that never served had nothing to cut, however it went.
                if self._code is ExitCode.CLEAN:
                    self._code = ExitCode.CUT
                self._log(_WARNING, f"{process.name} {how}: what it had in flight is cut{in_hand}")
            return
        match process.state:
            case State.BOOTING:
                text = f"{process.name} {how} before it was ready"
                if self.phase is Phase.STARTING:
                    self._abort(ExitCode.BOOT, text, now)
                elif not self._successor_failed(slot, text, now):
                    self._lost(slot, text, process, now, reason="boot")
            case State.READY:
                text = f"{process.name} {how} after {_seconds(process.served(now))}{in_hand}"
                self._lost_serving(process, text, now, reason="oom" if out_of_memory else "crash")
            case State.DRAINING if process.ready_at is None:
                pass  # It never served: there was nothing to finish, however it went.
            case State.DRAINING if event.status == 0:
                self._log(_INFO, f"{process.name} has drained and left")
            case State.DRAINING:
                self._log(
                    _WARNING, f"{process.name} {how} while it drained: what it had in flight is cut{in_hand}"
                )
            case _ if process.hung:
                self._log(_ERROR, f"{process.name}, which hung, {how}{in_hand}")
            case _ if event.flight:
                self._log(_WARNING, f"{process.name} {how}: what it had in flight is cut{in_hand}")
            case _:
                pass  # LEAVING and KILLED were told of when they were sent away.

    def _lost_serving(self, process: Process, text: str, now: float, *, reason: str) -> None:
        """A worker that served is dead, or as good as dead."""
        slot = self._slots[process.slot]
        rollout = self._rollout
        if self._is_canary(process):
            self._successor_failed(slot, text, now)
            return
        if rollout is not None and process.generation == rollout.generation:
            self._end_rollout(ok=False, text=f"{text}: the reload is given up", now=now)
        self._lost(slot, text, process, now, reason=reason)

    def _drains_by_itself(self, process: Process, reason: str, now: float) -> None:
        """Somebody else has told it to go."""
        slot = self._slots[process.slot]
        text = f"{process.name} drains by itself ({reason})"
        successor = process.state is State.BOOTING or self._is_canary(process)
        process.drain(now + self._graceful_timeout + LEAVE_WITHIN)
        if self._stopping:
            self._log(_INFO, text)
        elif not (successor and self._successor_failed(slot, text, now)):
            self._lost(slot, text, process, now, level=_INFO, reason="left")

    def _hangs(self, process: Process, seconds: float, now: float) -> None:
        """Its loop does not turn: have it explained, end it, replace it."""
        if process.state not in (State.READY, State.DRAINING) or process.hung:
            return
        served = process.state is State.READY
        process.hung = True
        process.leave(now + EXPLAIN_WITHIN)
        self._do(Explain(process.pid, process.name, seconds))
        text = f"{process.name} hangs: its loop has not turned for {_seconds(seconds)}"
        if served and not self._stopping:
            self._lost_serving(process, text, now, reason="hung")
        else:
            self._log(_ERROR, text)

    def _forgive_stall(self, now: float) -> None:
        """Give back the time in which the master did not run.

        Perhaps nobody else did either, as when the machine sleeps or a container is frozen. And what
        the workers have said meanwhile, that they are ready for example, is not heard yet.
        """
        deadlines = [p.deadline for p in self._processes.values() if p.deadline is not None]
        late = now - min(deadlines, default=now)
        if late <= STALLED_AFTER:
            return
        lost = now - self._last_event_at
        for process in self._processes.values():
            if process.deadline is not None:
                # A moment at least: whoever had almost none left has to wake up as well.
                process.deadline = max(process.deadline + lost, now + LEAVE_WITHIN)
        self._log(_WARNING, f"the master did not run for {_seconds(late)} or more: all deadlines are put off")

    def _pass_deadlines(self, now: float) -> None:
        if self._drain_at is not None and self._drain_at <= now:
            self._close(Phase.DRAINING, now)
        rollout = self._rollout
        if rollout is not None and rollout.proves_at is not None and rollout.proves_at <= now:
            self._trust_canary(rollout, now)
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

    # ---------------------------------------------------------------- replacing what serves

    def _reload(self, why: str) -> None:
        if self._stopping:
            self._do(Reloaded(False, "the service is stopping"))
            return
        # One that comes while another is under way is done after it: the code may have changed since.
        if self._rollout is not None and not self._reload_wanted:
            self._log(_INFO, f"{why}: another reload will follow the one under way")
        self._reload_wanted = why

    def _prepared(self, event: Prepared, now: float) -> None:
        rollout = self._rollout
        if rollout is None or rollout.prepared:
            return  # the answer to nothing, or given up in the meantime
        if event.problem:
            self._end_rollout(ok=False, text=event.problem, now=now)
            return
        rollout.slots = event.slots
        rollout.waiting = [slot.number for slot in self._slots if slot.wanted]
        rollout.prepared = True

    def _replace(self, now: float) -> None:
        """Begin the next replacement of a worker that serves, if one is due and none is under way."""
        if self._rollout is not None:
            self._roll(self._rollout, now)
        if self.phase is not Phase.SERVING or self._rollout is not None or self._recycling is not None:
            return
        if self._reload_wanted:
            why, self._reload_wanted = self._reload_wanted, ""
            self._last_generation += 1
            self._rollout = Rollout(self._last_generation, why, now, waiting=[])
            self._log(_INFO, f"{why}: reloading, generation {self._last_generation}")
            self._do(Prepare(self._last_generation))
            return
        retiring = min(self._retiring(), key=lambda process: process.retire_at, default=None)
        if retiring is not None and retiring.retire_at <= now:
            self._recycling = retiring.slot
            self._fork(self._slots[retiring.slot])

    def _retiring(self) -> list[Process]:
        """The workers for which a successor may be forked now: one at a time, and none during a reload."""
        if self.phase is not Phase.SERVING or self._rollout is not None or self._recycling is not None:
            return []
        currents = [slot.current for slot in self._slots if slot.wanted and slot.room_for_successor]
        return [process for process in currents if process is not None and process.retires]

    def _roll(self, rollout: Rollout, now: float) -> None:
        """Go on with a reload as far as that is possible now."""
        while rollout.at is None and rollout.waiting:
            slot = self._slots[rollout.waiting[0]]
            if slot.current is not None and slot.current.generation == rollout.generation:
                # It was lost while it waited for its turn, and has been filled by the new generation.
                rollout.begin_next()
                if slot.ready:
                    rollout.finish()
            elif slot.room_for_successor:
                rollout.begin_next()
                self._fork(slot)
            elif slot.room:
                # Nobody serves in it, perhaps because the old code does not work: no need to wait.
                rollout.begin_next()
                slot.due = now
            else:
                return  # a process of it is still on its way out, or in
        if rollout.prepared and rollout.at is None:
            self.generation = rollout.generation
            took = _seconds(now - rollout.started_at)
            text = f"{_count(len(rollout.done), 'worker')} of generation {rollout.generation}, in {took}"
            self._end_rollout(ok=True, text=text, now=now)

    def _took_over(self, slot: Slot, process: Process, now: float) -> None:
        """A worker is ready: who serves in its slot up to now has a successor."""
        slot.last_complaint = ""
        rollout = self._rollout
        if rollout is not None and rollout.at == slot.number:
            if not rollout.done:
                rollout.proves_at = now + CANARY_SERVES
                return
            rollout.finish()
        self._let_go(slot, process, now)

    def _is_canary(self, process: Process) -> bool:
        """Whether it is the first of a new generation, serves already, and is not trusted yet."""
        rollout = self._rollout
        return (
            rollout is not None
            and rollout.proves_at is not None
            and rollout.at == process.slot
            and rollout.generation == process.generation
        )

    def _trust_canary(self, rollout: Rollout, now: float) -> None:
        """The new code serves: it may replace what serves now, and the new settings are heeded."""
        canary = next(p for p in self._processes.values() if p.state is State.READY and self._is_canary(p))
        rollout.finish()
        self._let_go(self._slots[canary.slot], canary, now)
        if rollout.slots is not None:
            self._scale(rollout.slots, rollout.why, now)

    def _let_go(self, slot: Slot, successor: Process, now: float) -> None:
        """Send away who has been replaced."""
        recycled = self._recycling == slot.number
        if recycled:
            self._recycling = None
        if self._stopping:
            return  # There was a delay for load balancers; until it is over everybody serves.
        for old in slot.processes:
            if old is successor or old.state is not State.READY:
                continue
            self._count_restart(old.retires if recycled else "reload")
            self._send_away(old, now)
            if recycled:
                self._log(_INFO, f"{old.name} is replaced ({old.retires}) by {successor.name}")

    def _successor_failed(self, slot: Slot, text: str, now: float) -> bool:
        """A worker that should have taken over did not: who serves goes on. False: it was no such one."""
        rollout = self._rollout
        if rollout is not None and rollout.at == slot.number:
            self._end_rollout(ok=False, text=text, now=now)
            if slot.wanted and slot.current is None:
                # Nobody served in it, so it goes on to be tried.
                slot.schedule(now, served_since=None)
            return True
        if self._recycling != slot.number:
            return False
        self._recycling = None
        old = slot.current
        assert old is not None
        delay = old.retire_later(now)
        news = text != slot.last_complaint
        slot.last_complaint = text
        state = f"the successor of {old.name} failed, it goes on serving; next one in {delay:g} s"
        self._log(_ERROR, f"{state}: {_brief(text)}", _whole(text) if news else "")
        return True

    def _end_rollout(self, *, ok: bool, text: str, now: float) -> None:
        rollout, self._rollout = self._rollout, None
        assert rollout is not None
        if ok:
            self._log(_INFO, f"reloaded: {text}")
            self._do(Reloaded(True, text))
            return
        if rollout.at is not None:
            # Another worker is to blame, and this one was about to take over: not any more.
            slot = self._slots[rollout.at]
            if slot.successor is not None:
                self._send_away(slot.successor, now)
        done = len(rollout.done)
        if done:
            new = f"{done} of {rollout.total} workers run generation {rollout.generation}"
            state = f"{new}, the others go on as before"
        else:
            state = f"generation {self.generation} goes on serving"
        self._log(_ERROR, f"reload failed, {state}: {_brief(text)}", _whole(text))
        self._do(Reloaded(False, f"reload failed, {state}\n{text.rstrip()}"))

    def _send_away(self, process: Process, now: float) -> None:
        """Let one process of a service that goes on finish its requests."""
        if process.state is State.READY:
            self._do(Send(process.pid, Drain(self._graceful_timeout)))
            process.drain(now + self._graceful_timeout + LEAVE_WITHIN)
        elif process.state is State.BOOTING:
            # It does not read messages yet. SIGTERM kills it while it boots; if it began to
            # serve a moment ago (its READY is on the way) it drains, and nothing is lost.
            self._do(Kill(process.pid, signal.SIGTERM))
            process.drain(now + self._graceful_timeout + LEAVE_WITHIN)

    def _scale(self, asked: int, why: str, now: float) -> None:
        if self._stopping:
            return
        wanted = min(max(1, asked), self._capacity)
        if wanted < asked:
            limit = f"this service can have at most {wanted}, unless it is started anew with more"
            self._log(_WARNING, f"{why}: {asked} workers are wanted, but {limit}")
        elif wanted > asked:
            self._log(_WARNING, f"{why}: {asked} workers are wanted, but a service needs one")
        rollout = self._rollout
        if rollout is not None:
            rollout.slots = None  # The last word counts.
        if wanted == self.wanted:
            return
        self._log(_INFO, f"{why}: from {self.wanted} to {_count(wanted, 'worker')}")
        while len(self._slots) < wanted:
            self._slots.append(Slot(len(self._slots), wanted=False))
        for slot in self._slots[:wanted]:
            if not slot.wanted:
                slot.wanted = True
                slot.due = now
                if rollout is not None:
                    rollout.add(slot.number)
        for slot in self._slots[wanted:]:
            slot.wanted = False
            slot.due = None
            if rollout is not None:
                rollout.forget(slot.number)
            if self._recycling == slot.number:
                self._recycling = None
            for process in list(slot.processes):
                self._send_away(process, now)

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
        elif self._drain_delay > 0 and self.phase is Phase.SERVING:
            self._log(_INFO, f"{why}: not ready any more, draining in {_seconds(self._drain_delay)}")
            self._leave_service()
            self._enter(Phase.DRAINING)
            self._drain_at = now + self._drain_delay
        else:
            limit = _seconds(self._graceful_timeout)
            self._log(_INFO, f"{why}: draining {_count(self.ready, 'worker')}, at most {limit}")
            self._close(Phase.DRAINING, now)

    def _abort(self, code: ExitCode, text: str, now: float) -> None:
        """The service cannot start."""
        self._code = code
        self._do(Report(text))
        self._close(Phase.STOPPING, now)

    def _leave_service(self) -> None:
        """From now on nobody is replaced."""
        self._do(Stopping())
        for slot in self._slots:
            slot.due = None
        self._recycling = None
        # The one under way, and the one that should have come after it.
        for pending in (self._rollout is not None, bool(self._reload_wanted)):
            if pending:
                self._do(Reloaded(False, "the service is stopping"))
        self._rollout = None
        self._reload_wanted = ""

    def _close(self, phase: Phase, now: float) -> None:
        if not self._stopping:
            self._leave_service()
        if not self._closed:
            self._closed = True
            self._do(Closing())
        self._drain_at = None
        if self.phase is not phase:
            self._enter(phase)
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
        else:
            self._send_away(process, now)

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


def _brief(text: str) -> str:
    """The last line of a story: of a traceback it is the one that says what went wrong."""
    return text.rstrip().rpartition("\n")[2]


def _whole(text: str) -> str:
    """A story of many lines, "" if its last line is all of it."""
    text = text.rstrip()
    return text if "\n" in text else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds % 1 and seconds < 100 else f"{seconds:.0f} s"
