"""The supervisor: no process is forked here, and no time passes.

First what it does in each situation, one story per test; then a machine that tells it any
story at all, and looks after every step whether the laws of its docstring hold.
"""

from __future__ import annotations

import logging
import math
import os
import signal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prefork.ipc import Drain, Draining, ExitCode, Failed, Ready
from prefork.master import slots
from prefork.master.events import (
    Closing,
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
from prefork.master.slots import BACKOFF_FIRST, BACKOFF_LAST, HEALTHY_AFTER, State, backoff
from prefork.master.supervisor import LEAVE_WITHIN, Phase, Supervisor, describe

GRACEFUL, BOOT = 30.0, 60.0


def exited(code: int) -> int:
    """A wait status."""
    return code << 8


class World:
    """A kernel of straw: answers forks at once and remembers what was done."""

    def __init__(self, count: int = 2) -> None:
        self.now = 1000.0
        self.supervisor = Supervisor(slots=count, graceful_timeout=GRACEFUL, boot_timeout=BOOT)
        self.pids: dict[int, int] = {}  # slot -> the newest pid in it
        self.seats: dict[int, int] = {}
        self.next_pid = 100
        self.can_fork = True

    def tell(self, event) -> list:
        done, todo = [], list(self.supervisor.handle(event, self.now))
        while todo:
            action = todo.pop(0)
            done.append(action)
            if isinstance(action, Fork):
                if self.can_fork:
                    self.next_pid += 1
                    self.pids[action.slot] = self.next_pid
                    self.seats[self.next_pid] = action.seat
                    event = Forked(action.slot, self.next_pid)
                else:
                    event = ForkFailed(action.slot, "no room")
                todo += self.supervisor.handle(event, self.now)
        return done

    def after(self, seconds: float) -> list:
        self.now += seconds
        return self.tell(Tick())

    def say(self, slot: int, message) -> list:
        return self.tell(Said(self.pids[slot], message))

    def serve(self) -> World:
        self.tell(Start())
        for slot in list(self.pids):
            self.say(slot, Ready())
        return self

    def die(self, slot: int, status: int = signal.SIGSEGV) -> list:
        return self.tell(Exited(self.pids[slot], status))


def kinds(actions: list) -> list[type]:
    return [type(action) for action in actions if not isinstance(action, (Log, Status))]


def logged(actions: list) -> str:
    return "\n".join(action.text for action in actions if isinstance(action, Log))


@pytest.fixture
def world() -> World:
    return World(2)


# --- start ----------------------------------------------------------------------------------


def test_start_forks_every_slot_on_a_seat_of_its_own(world):
    assert world.tell(Start())[:2] == [Fork(0, 0, 1), Fork(1, 1, 1)]
    assert world.supervisor.phase is Phase.STARTING


def test_it_serves_when_all_are_ready(world):
    world.tell(Start())
    assert world.say(0, Ready()) == [Status("1/2 workers ready")]
    assert world.supervisor.phase is Phase.SERVING
    assert world.say(1, Ready()) == [Serving(), Status("2/2 workers ready")]


def test_serving_is_told_once(world):
    world.serve()
    world.die(0)
    world.after(1)
    assert Serving() not in world.say(0, Ready())


def test_at_least_one_worker():
    with pytest.raises(ValueError, match="at least one"):
        Supervisor(slots=0)


@pytest.mark.parametrize(("said", "code"), [(4, ExitCode.APP), (3, ExitCode.BOOT), (77, ExitCode.BOOT)])
def test_the_first_failure_before_any_is_ready_ends_everything_with_one_report(world, said, code):
    world.tell(Start())
    actions = world.say(0, Failed(said, "no module named app"))
    assert actions[:2] == [Report("no module named app"), Closing()]
    assert Kill(world.pids[1], signal.SIGTERM) in actions
    assert kinds(world.say(1, Failed(said, "no module named app"))) == []
    assert kinds(world.die(0, exited(said))) == []
    assert world.die(1, exited(said))[-1] == Exit(code)


def test_a_death_without_a_word_before_any_is_ready_is_reported_by_its_cause(world):
    world.tell(Start())
    report = world.die(1, signal.SIGSEGV)[0]
    assert isinstance(report, Report)
    assert "worker 2" in report.text
    assert "killed by SIGSEGV" in report.text
    assert world.die(0, signal.SIGTERM)[-1] == Exit(ExitCode.BOOT)


def test_a_hang_at_the_start_ends_everything(world):
    world.tell(Start())
    actions = world.after(BOOT)
    assert Kill(world.pids[0], signal.SIGKILL) in actions
    assert Report("worker 1 was not ready within 60 s") in actions
    world.die(0, signal.SIGKILL)
    assert world.die(1, signal.SIGTERM)[-1] == Exit(ExitCode.BOOT)


def test_no_room_for_the_first_worker(world):
    world.can_fork = False
    actions = world.tell(Start())
    assert Report("cannot fork worker 1: no room") in actions
    assert actions[-1] == Exit(ExitCode.BOOT)


def test_once_one_was_ready_a_failure_is_no_end(world):
    world.tell(Start())
    world.say(0, Ready())
    actions = world.say(1, Failed(4, "Traceback"))
    assert kinds(actions) == []
    assert "next one in 0.1 s" in logged(actions)
    assert [action.detail for action in actions if isinstance(action, Log)] == ["Traceback"]
    world.die(1, exited(4))
    assert kinds(world.after(0.1)) == [Fork]


# --- crashes --------------------------------------------------------------------------------


def test_the_log_says_who_died_of_what_and_when_it_comes_back(world):
    world.serve()
    world.now += 5.24
    pid = world.pids[1]
    assert (
        logged(world.die(1)) == f"worker 2 (pid {pid}) was killed by SIGSEGV after 5.2 s; next one in 0.1 s"
    )
    assert kinds(world.after(0.09)) == []
    assert kinds(world.after(0.02)) == [Fork]
    assert logged(world.die(1, exited(1))).endswith(
        "exited with code 1 before it was ready; next one in 0.2 s"
    )


def test_the_delay_doubles_up_to_half_a_minute(world):
    world.serve()
    delays = []
    for _ in range(12):
        world.die(0)
        due = world.supervisor.next_deadline()
        delays.append(round(due - world.now, 6))
        world.after(due - world.now)
        world.say(0, Ready())
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]


def test_a_healthy_minute_forgives(world):
    world.serve()
    for _ in range(5):
        world.die(0)
        world.after(30)
        world.say(0, Ready())
    world.now += HEALTHY_AFTER
    assert "next one in 0.1 s" in logged(world.die(0))
    world.after(0.1)
    world.say(0, Ready())
    assert "next one in 0.2 s" in logged(world.die(0))


def test_the_last_words_of_a_worker_that_serves_are_logged(world):
    world.serve()
    actions = world.say(0, Failed(3, "Traceback: of ours"))
    assert kinds(actions) == []
    assert [a.detail for a in actions if isinstance(a, Log)] == ["Traceback: of ours"]


def test_slots_have_their_own_delays(world):
    world.serve()
    for _ in range(5):
        world.die(0)
        world.after(30)
        world.say(0, Ready())
    assert "next one in 0.1 s" in logged(world.die(1))


def test_backoff_never_overflows():
    assert backoff(0) == BACKOFF_FIRST
    assert backoff(10**9) == BACKOFF_LAST


def test_the_same_failure_is_explained_once(world):
    world.serve()
    world.die(0)
    texts = []
    for story in ("SyntaxError", "SyntaxError", "ImportError"):
        world.after(30)
        texts += [a.detail for a in world.say(0, Failed(4, story)) if isinstance(a, Log)]
        world.die(0, exited(4))
    assert texts == ["SyntaxError", "", "ImportError"]


def test_a_hang_at_a_restart_is_killed_and_tried_again(world):
    world.serve()
    world.die(0)
    world.after(1)
    hung = world.pids[0]
    assert kinds(world.after(BOOT)) == [Kill]
    # Its successor does not wait for the kernel to bury it.
    assert kinds(world.after(0.2)) == [Fork]
    assert world.pids[0] != hung
    assert kinds(world.tell(Exited(hung, signal.SIGKILL))) == []


def test_no_room_for_a_successor_is_tried_again(world):
    world.serve()
    world.die(0)
    world.can_fork = False
    assert "cannot fork worker 1: no room; next one in 0.2 s" in logged(world.after(0.1))
    world.can_fork = True
    assert kinds(world.after(0.2)) == [Fork]


def test_a_worker_that_says_failed_and_stays_is_killed(world):
    world.serve()
    world.die(0)
    world.after(0.1)
    pid = world.pids[0]
    world.say(0, Failed(3, "x"))
    world.now += 0.2
    assert Kill(pid, signal.SIGKILL) in world.after(LEAVE_WITHIN)


def test_a_worker_that_drains_by_itself_is_replaced_while_it_drains(world):
    world.serve()
    old = world.pids[0]
    actions = world.say(0, Draining("SIGTERM"))
    assert logged(actions) == f"worker 1 (pid {old}) drains by itself (SIGTERM); next one in 0.1 s"
    fork = next(a for a in world.after(0.1) if isinstance(a, Fork))
    assert fork.slot == 0
    assert fork.seat != world.seats[old]
    assert "has drained" in logged(world.tell(Exited(old, 0)))


def test_a_slot_holds_two_processes_and_no_third(world):
    world.serve()
    first = world.pids[0]
    world.say(0, Draining("SIGTERM"))
    world.after(0.1)
    world.say(0, Draining("SIGTERM"))
    assert kinds(world.after(10)) == []
    assert kinds(world.tell(Exited(first, 0))) == [Fork]


def test_who_drains_by_itself_has_no_more_time_than_others(world):
    world.serve()
    pid = world.pids[0]
    world.say(0, Draining("SIGTERM"))
    world.after(0.1)
    world.say(0, Ready())
    assert kinds(world.after(GRACEFUL)) == []
    assert kinds(world.after(LEAVE_WITHIN)) == [Kill]
    assert logged(world.tell(Exited(pid, signal.SIGKILL))) == ""


# --- stop -----------------------------------------------------------------------------------


def test_term_drains_everybody_and_the_code_is_zero(world):
    world.serve()
    actions = world.tell(Stop("SIGTERM"))
    assert kinds(actions) == [Closing, Send, Send]
    assert [a.message for a in actions if isinstance(a, Send)] == [Drain(GRACEFUL)] * 2
    assert logged(actions) == "SIGTERM: draining 2 workers, at most 30 s"
    assert kinds(world.die(0, 0)) == []
    assert world.die(1, 0)[-1] == Exit(ExitCode.CLEAN)
    assert world.tell(Stop("SIGTERM")) == []


def test_term_before_anything(world):
    assert kinds(world.tell(Stop("SIGTERM"))) == [Closing, Exit]


@pytest.mark.parametrize("status", [exited(ExitCode.CUT), signal.SIGSEGV, exited(1)])
def test_what_was_cut_is_told_by_the_code(world, status):
    world.serve()
    world.tell(Stop("SIGINT"))
    assert "is cut" in logged(world.die(0, status))
    assert world.die(1, 0)[-1] == Exit(ExitCode.CUT)


def test_who_does_not_finish_in_time_is_killed(world):
    world.serve()
    world.tell(Stop("SIGTERM"))
    world.die(1, 0)
    assert kinds(world.after(GRACEFUL)) == []
    actions = world.after(LEAVE_WITHIN)
    assert kinds(actions) == [Kill]
    assert "was not done within the graceful timeout of 30 s" in logged(actions)
    assert world.die(0, signal.SIGKILL)[-1] == Exit(ExitCode.CUT)


def test_a_worker_that_boots_at_the_stop_is_ended_and_nothing_is_cut(world):
    world.serve()
    world.die(0)
    world.after(0.1)
    assert Kill(world.pids[0], signal.SIGTERM) in world.tell(Stop("SIGTERM"))
    world.die(0, signal.SIGTERM)
    assert world.die(1, 0)[-1] == Exit(ExitCode.CLEAN)


def test_a_worker_that_became_ready_in_the_moment_of_the_stop_may_finish(world):
    world.serve()
    world.die(0)
    world.after(0.1)
    world.tell(Stop("SIGTERM"))
    world.say(0, Ready())
    assert kinds(world.after(GRACEFUL - 1)) == []
    world.die(1, 0)
    assert world.die(0, exited(ExitCode.CUT))[-1] == Exit(ExitCode.CUT)


def test_a_slot_that_waits_for_its_next_worker_at_the_stop_gets_none(world):
    world.serve()
    world.die(0)
    world.tell(Stop("SIGTERM"))
    assert kinds(world.after(5)) == []
    assert world.die(1, 0)[-1] == Exit(ExitCode.CLEAN)


def test_the_second_signal_means_at_once_and_the_third_means_kill(world):
    world.serve()
    world.tell(Stop("SIGTERM"))
    actions = world.tell(Stop("SIGTERM"))
    assert [a.message for a in actions if isinstance(a, Send)] == [Drain(0.0)] * 2
    assert kinds(actions) == [Send, Send]
    assert kinds(world.tell(Stop("SIGTERM"))) == [Kill, Kill]
    assert kinds(world.tell(Stop("SIGTERM"))) == []


def test_at_once_is_soon_also_for_a_worker_that_hangs(world):
    world.serve()
    assert kinds(world.tell(Stop("SIGQUIT", now=True))) == [Closing, Send, Send]
    assert kinds(world.after(LEAVE_WITHIN)) == [Kill, Kill]
    world.die(0, signal.SIGKILL)
    assert world.die(1, signal.SIGKILL)[-1] == Exit(ExitCode.CUT)


def test_at_once_with_nothing_in_flight_is_clean(world):
    world.serve()
    world.tell(Stop("SIGQUIT", now=True))
    world.die(0, 0)
    assert world.die(1, 0)[-1] == Exit(ExitCode.CLEAN)


def test_a_stop_while_a_start_fails_keeps_the_failures_code(world):
    world.tell(Start())
    world.say(0, Failed(4, "x"))
    world.tell(Stop("SIGTERM"))
    world.die(0, exited(4))
    assert world.die(1, signal.SIGKILL)[-1] == Exit(ExitCode.APP)


def test_infinite_patience_is_possible():
    world = World(1)
    world.supervisor = Supervisor(slots=1, graceful_timeout=math.inf, boot_timeout=math.inf)
    world.serve()
    world.tell(Stop("SIGTERM"))
    assert kinds(world.after(1e9)) == []
    assert world.die(0, 0)[-1] == Exit(ExitCode.CLEAN)


# --- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exited with code 0"),
        (exited(3), "exited with code 3"),
        (signal.SIGKILL, "was killed by SIGKILL"),
        (signal.SIGSEGV | 0x80, "was killed by SIGSEGV (core dumped)"),
        (40, "was killed by signal 40"),
    ],
)
def test_how_it_ended(status, text):
    assert describe(status) == text


def test_reprs_tell_the_state(world):
    world.serve()
    assert repr(world.supervisor) == "<Supervisor serving 2/2 ready, 2 alive>"
    process = world.supervisor._processes[world.pids[0]]
    assert repr(process) == f"<Process worker 1 pid {world.pids[0]} ready>"


def test_every_state_is_reachable_only_forwards():
    order = list(State)
    for state, successors in slots.TRANSITIONS.items():
        assert all(order.index(successor) > order.index(state) for successor in successors)
    assert set(slots.TRANSITIONS) == set(State)


def test_a_transition_that_is_none_is_a_bug():
    process = slots.Process(slot=0, seat=0, pid=1, generation=1, forked_at=0.0, deadline=1.0)
    process.kill()
    with pytest.raises(AssertionError):
        process.become_ready(2.0)


# --- any story at all -----------------------------------------------------------------------


class AnyStory(RuleBasedStateMachine):
    """Workers, operators and the kernel do what they like; the laws must hold."""

    @initialize(count=st.integers(1, 4))
    def begin(self, count):
        self.now = 0.0
        self.supervisor = Supervisor(slots=count, graceful_timeout=5.0, boot_timeout=7.0)
        self.count = count
        self.alive: dict[int, Fork] = {}
        self.saw_ready: set[int] = set()
        self.killed: set[int] = set()
        self.sent_away: set[int] = set()
        self.lost_at: dict[int, float] = {}
        self.ever_ready = False
        self.asked_to_stop = False
        self.exit_code: int | None = None
        self.reports = 0
        self.closings = 0
        self.fork_works = True
        self.free_pids = list(range(101, 120))
        self.tell(Start())

    def tell(self, event):
        was_over = self.exit_code is not None
        todo = list(self.supervisor.handle(event, self.now))
        assert not (was_over and todo), "it speaks after its end"
        while todo:
            action = todo.pop(0)
            assert self.exit_code is None, f"{action} after Exit"
            todo += self.perform(action)

    def perform(self, action):
        match action:
            case Fork(slot=slot, seat=seat):
                assert not self.asked_to_stop, "forked after a stop"
                assert not self.reports, "forked after a failed start"
                assert seat not in [fork.seat for fork in self.alive.values()], "two on one seat"
                assert 0 <= seat < Supervisor.seats(self.count)
                if slot in self.lost_at:
                    waited = self.now - self.lost_at.pop(slot)
                    assert waited > BACKOFF_FIRST - 1e-6, "no back-off"
                if not self.fork_works:
                    self.lost_at[slot] = self.now
                    return self.supervisor.handle(ForkFailed(slot, "EAGAIN"), self.now)
                # The lowest free pid: pids are used again as soon as they may be.
                pid = self.free_pids.pop(0)
                self.alive[pid] = action
                return self.supervisor.handle(Forked(slot, pid), self.now)
            case Kill(pid=pid, signal=signum):
                assert pid in self.alive, "a signal to a stranger"
                self.lose(pid)
                if signum == signal.SIGKILL:
                    assert pid not in self.killed, "killed twice"
                    self.killed.add(pid)
            case Send(pid=pid, message=message):
                assert pid in self.alive
                assert isinstance(message, Drain)
                self.sent_away.add(pid)
            case Report():
                assert not self.ever_ready, "a failed start is reported after a READY"
                self.reports += 1
            case Closing():
                self.closings += 1
            case Exit(code=code):
                assert not self.alive, "it leaves children behind"
                assert self.asked_to_stop or self.reports
                self.exit_code = code
        return []

    def pick(self, data):
        return data.draw(st.sampled_from(sorted(self.alive)), label="pid")

    def lose(self, pid):
        """The slot of `pid` has lost the process that filled it."""
        if pid not in self.sent_away:
            self.lost_at[self.alive[pid].slot] = self.now
            self.sent_away.add(pid)

    def bury(self, pid, status):
        self.lose(pid)
        del self.alive[pid]
        self.free_pids = sorted([*self.free_pids, pid])
        for group in (self.saw_ready, self.killed, self.sent_away):
            group.discard(pid)
        self.tell(Exited(pid, status))

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0, 6.0, 8.0, 61.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.tell(Tick())

    @rule()
    def the_next_deadline_comes(self):
        deadline = self.supervisor.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.tell(Tick())

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def ready(self, data):
        pid = self.pick(data)
        if pid not in self.saw_ready:
            self.saw_ready.add(pid)
            self.ever_ready = True
            self.tell(Said(pid, Ready()))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), code=st.integers(0, 9))
    def failed(self, data, code):
        pid = self.pick(data)
        if pid not in self.saw_ready:
            self.lose(pid)
        self.tell(Said(pid, Failed(code, "boom")))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def drains_by_itself(self, data):
        pid = self.pick(data)
        self.lose(pid)
        self.tell(Said(pid, Draining("SIGTERM")))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), status=st.sampled_from([0, exited(1), exited(4), exited(7), 9, 11, 15]))
    def dies(self, data, status):
        self.bury(self.pick(data), status)

    @precondition(lambda self: self.killed)
    @rule()
    def the_kernel_obeys(self):
        for pid in list(self.killed):
            self.bury(pid, signal.SIGKILL)

    @rule(message=st.sampled_from([Ready(), Failed(4, "x"), Draining("x"), Drain(1.0)]))
    def a_stranger_speaks(self, message):
        self.tell(Said(99, message))

    @rule()
    def a_stranger_dies(self):
        self.tell(Exited(99, 0))

    @rule(works=st.booleans())
    def memory_comes_and_goes(self, works):
        self.fork_works = works

    @precondition(lambda self: self.ever_ready)
    @rule(now=st.booleans())
    def stop(self, now):
        self.asked_to_stop = True
        self.tell(Stop("SIGTERM", now=now))

    @invariant()
    def slots_are_not_crowded(self):
        by_slot: dict[int, list[int]] = {}
        for pid, fork in self.alive.items():
            by_slot.setdefault(fork.slot, []).append(pid)
        for pids in by_slot.values():
            assert len(pids) <= 2
            assert len([pid for pid in pids if pid not in self.sent_away]) <= 1

    @invariant()
    def the_phase_is_what_was_asked_for(self):
        stopping = self.supervisor.phase in (Phase.DRAINING, Phase.STOPPING)
        assert stopping == bool(self.asked_to_stop or self.reports)
        assert self.closings == int(stopping)
        assert self.reports <= 1

    @invariant()
    def it_cannot_spin(self):
        self.tell(Tick())
        deadline = self.supervisor.next_deadline()
        assert deadline is None or deadline > self.now

    @invariant()
    def an_empty_slot_is_filled_in_time(self):
        if self.asked_to_stop or self.reports:
            return
        slots_filled = {fork.slot for pid, fork in self.alive.items() if pid not in self.sent_away}
        crowded = [fork.slot for fork in self.alive.values()]
        for slot in range(self.count):
            if slot not in slots_filled and crowded.count(slot) < 2:
                deadline = self.supervisor.next_deadline()
                assert deadline is not None
                assert deadline <= self.now + BACKOFF_LAST

    def teardown(self):
        if not hasattr(self, "supervisor"):
            return
        # However it stands: TERM ends it, even with workers that obey nothing but SIGKILL.
        asked_at = self.now
        if self.exit_code is None:
            self.asked_to_stop = True
            self.tell(Stop("SIGTERM"))
        for _ in range(100):
            if self.exit_code is not None:
                break
            self.the_kernel_obeys()
            self.the_next_deadline_comes()
        assert self.exit_code in {ExitCode.CLEAN, ExitCode.BOOT, ExitCode.APP, ExitCode.CUT}
        assert self.now <= asked_at + 5.0 + 2 * LEAVE_WITHIN + 1e-6


TestAnyStory = AnyStory.TestCase
TestAnyStory.settings = settings(
    max_examples=int(os.environ.get("SUPERVISOR_STORIES", "300")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_log_levels_are_those_of_logging(world):
    world.serve()
    levels = [a.level for a in world.die(0) if isinstance(a, Log)]
    assert levels == [logging.ERROR]
