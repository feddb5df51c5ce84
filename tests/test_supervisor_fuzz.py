"""The supervisor in any story at all: workers, operators and the kernel do what they like.

`Story` is a model of the world around the supervisor. It performs the actions as the arbiter
does, knows by itself who boots, who serves and who has been sent away, and looks after every
step whether the laws hold. Two tellers drive it: hypothesis, which finds the shortest story
that breaks a law, and a random one, which is fast and tells long ones.

PREFORK_FUZZ_EXAMPLES: how many stories hypothesis tells; the random teller tells as many, each of
`LONG` steps. 10,000 of them are 3 million steps.
"""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prefork.ipc import Changed, Drain, Draining, ExitCode, Failed, Ready, Retiring
from prefork.master.events import (
    Closing,
    Exit,
    Exited,
    Explain,
    Fork,
    Forked,
    ForkFailed,
    Hangs,
    Kill,
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
    Stop,
    Stopping,
    Tick,
)
from prefork.master.slots import BACKOFF_FIRST, BACKOFF_LAST, State
from prefork.master.supervisor import CANARY_SERVES, LEAVE_WITHIN, Phase, Supervisor

if TYPE_CHECKING:
    from prefork.master.events import Action, Event

EXAMPLES = int(os.environ.get("PREFORK_FUZZ_EXAMPLES", "0"))
LONG = 300

GRACEFUL, BOOT, DELAY = 5.0, 7.0, 3.0
HOURS = 5 * 3600.0
STATUSES = [0, 1 << 8, 4 << 8, 7 << 8, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM]
SOON = 1e-6


class Story:
    """One service from its start to its end.

    alive: the processes that are not reaped, by pid. booting, serving, gone: each of them is in one
    of the three; `gone` has been told to go, or has said that it goes. killed: of the gone, those
    with a SIGKILL on the way.
    """

    def __init__(self, count: int = 2, *, drain_delay: float = 0.0, crash_budget: int | None = None) -> None:
        self.now = 0.0
        self.supervisor = Supervisor(
            slots=count,
            graceful_timeout=GRACEFUL,
            boot_timeout=BOOT,
            drain_delay=drain_delay,
            crash_budget=crash_budget,
        )
        self.count = count
        self.drain_delay = drain_delay
        self.crash_budget = crash_budget
        # processes
        self.alive: dict[int, Fork] = {}
        self.booting: set[int] = set()
        self.serving: set[int] = set()
        self.gone: set[int] = set()
        self.killed: set[int] = set()
        self.explained: set[int] = set()
        self.said_ready: set[int] = set()
        self.wishes: set[int] = set()
        self.free_pids = list(range(101, 150))
        self.fork_works: bool | None = True  # None: every other time
        self.forks = 0
        self.lost_at: dict[int, float] = {}
        # the service
        self.ever_ready = False
        self.asked_to_stop = False
        self.reports = self.stoppings = self.closings = self.servings = 0
        self.exit_code: int | None = None
        # reloads
        self.answer = Prepared()
        self.waits = False  # somebody waits for a reload that has not begun
        self.running = 0  # the generation of the one under way, or 0
        self.canary: tuple[int, float | None] = (0, None)  # its slot, and when it became ready
        self.newest = 1
        self.entries = {1}  # the generations that the arbiter can fork
        self.last_ok: int | None = None  # the generation of the last reload, None if it failed
        self.tell(Start())

    # ---------------------------------------------------------------- the arbiter

    def tell(self, event: Event) -> None:
        """Whatever the event itself takes away from the service is to be noted before."""
        was_over = self.exit_code is not None
        served = {self.alive[pid].slot for pid in self.serving}
        todo = list(self.supervisor.handle(event, self.now))
        assert not (was_over and todo), "it speaks after its end"
        while todo:
            action = todo.pop(0)
            assert self.exit_code is None, f"{action} after Exit"
            todo += self.perform(action)
        if not self.stoppings:
            serves = {self.alive[pid].slot for pid in self.serving}
            assert {slot for slot in served if slot < self.supervisor.wanted} <= serves, (
                "fewer serve than before"
            )
        self.lost_at = {slot: at for slot, at in self.lost_at.items() if slot < self.supervisor.wanted}

    def perform(self, action: Action) -> list[Action]:
        match action:
            case Fork():
                return self.fork(action)
            case Kill(pid=pid, signal=signum):
                assert pid in self.alive, "a signal to a stranger"
                assert self.stoppings or pid not in self.serving, "it serves"
                if signum == signal.SIGKILL:
                    assert pid not in self.killed, "killed twice"
                    self.killed.add(pid)
                self.lose(pid)
            case Send(pid=pid, message=message):
                assert pid in self.alive
                assert isinstance(message, Drain)
                self.drain(pid)
            case Prepare(generation=generation):
                assert not self.stoppings
                assert self.waits, "nobody has asked for a reload"
                assert not self.running, "two reloads at a time"
                assert generation > self.newest
                self.waits, self.running, self.newest = False, generation, generation
                self.canary = (-1, None)
                if not self.answer.problem:
                    self.entries.add(generation)
                return self.supervisor.handle(self.answer, self.now)
            case Reloaded(ok=ok, text=text):
                self.reloaded(ok, text)
            case Explain(pid=pid):
                assert pid in self.alive
                assert pid not in self.explained, "explained twice"
                self.explained.add(pid)
            case Report():
                assert not self.ever_ready, "a failed start is reported after a READY"
                self.reports += 1
            case Serving():
                assert self.supervisor.ready * 2 > self.supervisor.wanted
                self.servings += 1
            case Stopping():
                assert not self.closings
                self.stoppings += 1
            case Closing():
                assert self.stoppings
                self.closings += 1
            case Exit(code=code):
                assert not self.alive, "it leaves children behind"
                assert self.stoppings == self.closings == 1
                assert not self.waits, "somebody waits for ever for a reload"
                assert not self.running, "somebody waits for ever for the end of a reload"
                self.exit_code = code
        return []

    def fork(self, action: Fork) -> list[Action]:
        slot = action.slot
        assert not self.stoppings, "forked after a stop"
        assert slot < self.supervisor.wanted, "forked into a slot that nobody wants"
        assert action.seat not in [fork.seat for fork in self.alive.values()], "two on one seat"
        assert 0 <= action.seat < Supervisor.seats(self.count)
        assert action.generation in self.entries, "a generation that is not known any more"
        others = self.of_slot(slot)
        assert len(others) <= 1, "a third process"
        assert not others & self.booting, "a second one that boots"
        incumbent = others & self.serving
        if incumbent:
            assert not self.successors(), "two successors at a time"
            if not self.running:
                assert incumbent <= self.wishes, "nobody wanted a successor"
        if self.running and action.generation == self.running:
            where, ready_at = self.canary
            if where == -1:
                self.canary = (slot, None)
            elif slot != where:
                assert ready_at is not None, "forked before the canary was ready"
                assert self.now >= ready_at + CANARY_SERVES - SOON, "forked before the canary was trusted"
        else:
            assert action.generation == self.supervisor.generation
            assert not (incumbent and self.running), "recycled during a reload"
            if slot in self.lost_at and not incumbent:
                assert self.now - self.lost_at[slot] > BACKOFF_FIRST - SOON, "no back-off"
        self.lost_at.pop(slot, None)
        self.forks += 1
        if self.fork_works is False or (self.fork_works is None and self.forks % 2):
            if not incumbent:
                self.lost_at[slot] = self.now
            return self.supervisor.handle(ForkFailed(slot, "EAGAIN"), self.now)
        # The lowest free pid: pids are used again as soon as they may be.
        pid = self.free_pids.pop(0)
        self.alive[pid] = action
        self.booting.add(pid)
        return self.supervisor.handle(Forked(slot, pid), self.now)

    def drain(self, pid: int) -> None:
        """It is told to go."""
        if pid not in self.serving:
            assert self.supervisor.phase is Phase.STOPPING, "told to drain, but it does not serve"
        elif not self.stoppings and self.alive[pid].slot < self.supervisor.wanted:
            successors = (self.of_slot(self.alive[pid].slot) & self.serving) - {pid}
            assert successors, "it is told to go, and nobody serves in its place"
            if self.alive[pid].generation != self.running and self.running:
                ready_at = self.canary[1]
                assert ready_at is not None
                assert self.now >= ready_at + CANARY_SERVES - SOON, "let go before the canary was trusted"
        self.lose(pid)

    def reloaded(self, ok: bool, text: str) -> None:
        assert text
        if self.running:
            if ok:
                assert self.supervisor.generation == self.running
                assert {self.alive[pid].generation for pid in self.booting | self.serving} <= {self.running}
            self.last_ok = self.running if ok else None
            self.running = 0
        else:
            assert self.waits, "nobody waits for the end of a reload"
            assert self.stoppings
            assert not ok
            self.waits = False
        if not self.supervisor.reloading:
            self.entries = {fork.generation for fork in self.alive.values()} | {self.supervisor.generation}

    # ---------------------------------------------------------------- the model

    def of_slot(self, slot: int) -> set[int]:
        return {pid for pid, fork in self.alive.items() if fork.slot == slot}

    def successors(self) -> set[int]:
        """Who boots while another one serves in its slot."""
        slots = {self.alive[pid].slot for pid in self.serving}
        return {pid for pid in self.booting if self.alive[pid].slot in slots}

    def lose(self, pid: int) -> None:
        """The service does not count on it any more."""
        if pid in self.gone:
            return
        self.booting.discard(pid)
        self.serving.discard(pid)
        self.gone.add(pid)
        slot = self.alive[pid].slot
        if not self.of_slot(slot) & (self.booting | self.serving):
            self.lost_at[slot] = self.now

    # ---------------------------------------------------------------- what may happen

    def time_passes(self, seconds: float) -> None:
        killed = set(self.killed)
        self.now += seconds
        self.tell(Tick())
        assert seconds < HOURS or self.killed == killed, "killed for time that nobody had"

    def the_next_deadline_comes(self) -> None:
        deadline = self.supervisor.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.tell(Tick())

    def ready(self, pid: int) -> None:
        if pid in self.said_ready:
            return
        self.said_ready.add(pid)
        self.ever_ready = True
        if pid in self.booting:
            self.booting.remove(pid)
            self.serving.add(pid)
            fork = self.alive[pid]
            if fork.generation == self.running and self.canary == (fork.slot, None):
                self.canary = (fork.slot, self.now)
        self.tell(Said(pid, Ready()))

    def failed(self, pid: int, code: int = 4, text: str = "boom") -> None:
        if pid in self.booting:
            self.lose(pid)
        self.tell(Said(pid, Failed(code, text)))

    def drains_by_itself(self, pid: int) -> None:
        self.lose(pid)
        self.tell(Said(pid, Draining("SIGTERM")))

    def hangs(self, pid: int) -> None:
        if pid in self.serving:
            self.lose(pid)
        self.tell(Hangs(pid, 31.5))

    def retires(self, pid: int) -> None:
        if pid in self.serving:
            self.wishes.add(pid)
        self.tell(Said(pid, Retiring("max_requests")))

    def dies(self, pid: int, status: int, flight: tuple[str, ...] = (), out_of_memory: bool = False) -> None:
        self.lose(pid)
        del self.alive[pid]
        self.free_pids = sorted([*self.free_pids, pid])
        for group in (self.gone, self.killed, self.explained, self.said_ready, self.wishes):
            group.discard(pid)
        self.tell(Exited(pid, status, flight, out_of_memory))

    def the_kernel_obeys(self) -> None:
        for pid in sorted(self.killed):
            self.dies(pid, signal.SIGKILL)

    def the_drained_leave(self) -> None:
        for pid in sorted(self.gone - self.killed):
            self.dies(pid, 0)

    def all_become_ready(self) -> None:
        for pid in sorted(self.booting):
            self.ready(pid)

    def reload(self) -> None:
        self.waits = True
        self.tell(Reload("SIGHUP"))

    def files_change(self, pid: int) -> None:
        """A worker tells of it; one that does not serve is not heeded."""
        if pid in self.serving and not self.stoppings:
            self.waits = True
        self.tell(Said(pid, Changed("app.py")))

    def scale(self, slots: int) -> None:
        for slot in range(self.supervisor.wanted, slots):
            self.lost_at.pop(slot, None)
        self.tell(Scale(slots, "SIGTTIN"))
        if not self.stoppings:
            assert self.supervisor.wanted == min(max(1, slots), Supervisor.capacity(self.count))

    def stop(self, now: bool) -> None:
        self.asked_to_stop = True
        self.tell(Stop("SIGTERM", now=now))

    def quiet(self) -> None:
        """Nobody fails and nobody wants anything for a while."""
        if self.stoppings:
            return
        self.fork_works = True
        if self.answer.problem:
            self.answer = Prepared()
        began = self.now
        for _ in range(200):
            while self.gone or self.booting:
                self.the_kernel_obeys()
                self.the_drained_leave()
                self.all_become_ready()
            self.look()
            if self.supervisor.next_deadline() is None:
                break
            self.the_next_deadline_comes()
        else:
            raise AssertionError("it does not come to rest")
        # Two reloads at most, the one under way and the one that waits, and then all back-offs.
        assert self.now < began + 2 * CANARY_SERVES + BACKOFF_LAST + SOON
        supervisor = self.supervisor
        assert supervisor.ready == supervisor.wanted
        assert sorted(fork.slot for fork in self.alive.values()) == list(range(supervisor.wanted))
        assert not self.waits
        assert not self.running
        assert not supervisor.reloading
        if self.last_ok is not None:
            assert supervisor.generation == self.last_ok
            assert {fork.generation for fork in self.alive.values()} == {self.last_ok}

    def finish(self) -> None:
        """However it stands: TERM ends it, even with workers that obey nothing but SIGKILL."""
        asked_at = self.now
        if self.exit_code is None:
            self.stop(now=False)
        for _ in range(100):
            if self.exit_code is not None:
                break
            self.the_kernel_obeys()
            self.the_next_deadline_comes()
        codes = {ExitCode.CLEAN, ExitCode.BOOT, ExitCode.APP, ExitCode.CUT}
        if self.crash_budget is not None:
            codes.add(ExitCode.CRASH_BUDGET)
        assert self.exit_code in codes
        assert self.now <= asked_at + self.drain_delay + GRACEFUL + 2 * LEAVE_WITHIN + SOON

    # ---------------------------------------------------------------- the laws

    def look(self) -> None:
        """After every step."""
        self.tell(Tick())
        supervisor = self.supervisor
        deadline = supervisor.next_deadline()
        assert deadline is None or deadline > self.now, "it spins"
        assert self.servings <= 1
        assert self.reports <= 1
        self.look_at_phase()
        # Both see the same.
        known = {pid: process.state for pid, process in supervisor._processes.items()}
        assert known.keys() == self.alive.keys()
        assert {pid for pid, state in known.items() if state is State.BOOTING} == self.booting
        assert {pid for pid, state in known.items() if state is State.READY} == self.serving
        if self.stoppings:
            return
        assert supervisor.reloading == bool(self.running)
        assert len(self.successors()) <= 1, "two successors at a time"
        if self.waits and not self.running and supervisor.phase is Phase.SERVING:
            assert self.successors(), "a reload is waiting, and nobody knows for what"
        if self.running:
            # Whatever it waits for ends in time; somebody killed has no deadline but the kernel's.
            assert deadline is not None or self.killed, "a reload waits for nothing"
        for slot in range(supervisor.wanted):
            pids = self.of_slot(slot)
            assert len(pids) <= 2, "a third process"
            if not pids & (self.booting | self.serving) and len(pids) < 2:
                assert deadline is not None, "a slot stays empty"
                assert deadline <= self.now + BACKOFF_LAST, "a slot stays empty"

    def look_at_phase(self) -> None:
        stopping = self.supervisor.phase in (Phase.DRAINING, Phase.STOPPING)
        assert self.stoppings == int(stopping)
        assert self.closings <= self.stoppings
        if self.asked_to_stop or self.reports:
            assert stopping
        else:
            assert not stopping or self.crash_budget is not None


# --- told by hypothesis ---------------------------------------------------------------------


class AnyStory(RuleBasedStateMachine):
    """Finds the shortest story that breaks a law."""

    story: Story

    @initialize(
        count=st.integers(1, 4),
        drain_delay=st.sampled_from([0.0, DELAY]),
        crash_budget=st.sampled_from([None, None, None, 2]),
        serves=st.booleans(),
    )
    def begin(self, count, drain_delay, crash_budget, serves):
        self.story = Story(count, drain_delay=drain_delay, crash_budget=crash_budget)
        if serves:
            self.story.all_become_ready()

    def pick(self, data, pids):
        return data.draw(st.sampled_from(sorted(pids)), label="pid")

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0, 6.0, 8.0, 61.0, HOURS]))
    def time_passes(self, seconds):
        self.story.time_passes(seconds)

    @rule()
    def the_next_deadline_comes(self):
        self.story.the_next_deadline_comes()

    @precondition(lambda self: self.story.booting)
    @rule(data=st.data())
    def ready(self, data):
        self.story.ready(self.pick(data, self.story.booting))

    @precondition(lambda self: self.story.gone)
    @rule(data=st.data())
    def ready_too_late(self, data):
        self.story.ready(self.pick(data, self.story.gone))

    @rule()
    def all_become_ready(self):
        self.story.all_become_ready()

    @precondition(lambda self: self.story.alive)
    @rule(data=st.data(), code=st.integers(0, 9), text=st.sampled_from(["boom", "a\nb\n", ""]))
    def failed(self, data, code, text):
        self.story.failed(self.pick(data, self.story.alive), code, text)

    @precondition(lambda self: self.story.alive)
    @rule(data=st.data())
    def drains_by_itself(self, data):
        self.story.drains_by_itself(self.pick(data, self.story.alive))

    @precondition(lambda self: self.story.alive)
    @rule(data=st.data())
    def hangs(self, data):
        self.story.hangs(self.pick(data, self.story.alive))

    @precondition(lambda self: self.story.alive)
    @rule(data=st.data())
    def retires(self, data):
        self.story.retires(self.pick(data, self.story.alive))

    @precondition(lambda self: self.story.alive)
    @rule(
        data=st.data(),
        status=st.sampled_from(STATUSES),
        flight=st.sampled_from([(), ("GET /",), ("GET /", "POST /x (3.0 s)")]),
        out_of_memory=st.booleans(),
    )
    def dies(self, data, status, flight, out_of_memory):
        self.story.dies(self.pick(data, self.story.alive), status, flight, out_of_memory)

    @rule()
    def the_kernel_obeys(self):
        self.story.the_kernel_obeys()

    @rule()
    def the_drained_leave(self):
        self.story.the_drained_leave()

    @rule(
        message=st.sampled_from(
            [
                Ready(),
                Failed(4, "x"),
                Draining("x"),
                Drain(1.0),
                Retiring("x"),
                None,
                Forked(0, 99),
                Prepared(),
            ]
        )
    )
    def a_stranger_speaks_or_dies(self, message):
        match message:
            case None:
                self.story.tell(Exited(99, 0))
                self.story.tell(Hangs(99, 9.0))
            case Forked() | Prepared():
                self.story.tell(message)
                self.story.tell(ForkFailed(0, "x"))
            case _:
                self.story.tell(Said(99, message))

    @rule(works=st.sampled_from([True, False, None]))
    def memory_comes_and_goes(self, works):
        self.story.fork_works = works

    @rule()
    def reload(self):
        self.story.reload()

    @precondition(lambda self: self.story.alive)
    @rule(data=st.data())
    def files_change(self, data):
        self.story.files_change(self.pick(data, self.story.alive))

    @rule(
        answer=st.one_of(
            st.just(Prepared(problem="no such setting")),
            st.builds(Prepared, slots=st.one_of(st.none(), st.integers(0, 14))),
        )
    )
    def the_settings_change(self, answer):
        self.story.answer = answer

    @rule(slots=st.integers(0, 14))
    def scale(self, slots):
        self.story.scale(slots)

    @rule()
    def quiet(self):
        self.story.quiet()

    @precondition(lambda self: self.story.ever_ready)
    @rule(now=st.booleans(), really=st.integers(0, 4))
    def stop(self, now, really):
        if not really:
            self.story.stop(now)

    @invariant()
    def the_laws_hold(self):
        self.story.look()

    def teardown(self):
        if hasattr(self, "story"):
            self.story.finish()


TestAnyStory = AnyStory.TestCase
TestAnyStory.settings = settings(
    max_examples=EXAMPLES or 100,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# --- told at random -------------------------------------------------------------------------


def tell_long_story(seed: int, steps: int = LONG) -> None:
    """Everything that hypothesis may do, with more patience: services live longer here."""
    rng = random.Random(seed)
    story = Story(
        rng.randint(1, 5),
        drain_delay=rng.choice([0.0, DELAY]),
        crash_budget=rng.choice([None, None, None, 5]),
    )
    calm = rng.random()  # how well this service does

    def any_of(pids):
        return rng.choice(sorted(pids)) if pids else None

    def one(act, pids, *more):
        pid = any_of(pids)
        if pid is not None:
            act(pid, *more)

    def the_settings_change():
        story.answer = Prepared(
            slots=rng.choice([None, None, rng.randint(0, 14)]),
            problem="no such setting" if rng.random() < 0.2 else "",
        )

    def time_passes():
        story.time_passes(rng.choice([0.0, 0.01, 0.1, 0.3, 0.3, 1.0, 2.0, 6.0, 8.0, 61.0, HOURS]))

    def memory():
        story.fork_works = rng.choice([True, True, False, None])

    kind = [
        (12, lambda: one(story.ready, story.booting)),
        (4, story.all_become_ready),
        (8, story.the_next_deadline_comes),
        (8, time_passes),
        (4, story.the_kernel_obeys),
        (4, story.the_drained_leave),
        (5, story.reload),
        (3, lambda: one(story.retires, story.serving)),
        (2, lambda: story.scale(rng.randint(0, 14))),
        (1, lambda: story.scale(story.supervisor.wanted + rng.choice([-1, 1]))),
        (1, the_settings_change),
        (1, lambda: one(story.files_change, story.alive)),
        (1, story.quiet),
        (1, memory),
    ]
    unkind = [
        (4, lambda: one(story.failed, story.booting, rng.randint(0, 9), rng.choice(["boom", "a\nb", ""]))),
        (1, lambda: one(story.failed, story.alive)),
        (2, lambda: one(story.drains_by_itself, story.booting | story.serving)),
        (2, lambda: one(story.hangs, story.serving | story.gone)),
        (6, lambda: one(story.dies, story.alive, rng.choice(STATUSES), ("GET /",), rng.random() < 0.3)),
        (2, lambda: one(story.dies, story.booting, rng.choice(STATUSES))),
        (1, lambda: one(story.ready, story.gone)),
        (1, lambda: one(story.retires, story.alive)),
    ]
    if rng.random() < 0.8:
        story.all_become_ready()
    for _ in range(steps):
        acts = kind if rng.random() < calm else unkind
        rng.choices([act for _, act in acts], [weight for weight, _ in acts])[0]()
        story.look()
        if story.ever_ready and rng.random() < 1 / (2 * steps):
            story.stop(rng.random() < 0.3)
        if story.exit_code is not None:
            break
    story.quiet()
    story.look()
    story.finish()


@pytest.mark.parametrize("part", range(10))
def test_long_stories(part):
    for number in range(max(1, (EXAMPLES or 200) // 10)):
        seed = part + 10 * number
        try:
            tell_long_story(seed)
        except BaseException as exc:
            exc.add_note(f"tell_long_story({seed})")
            raise
