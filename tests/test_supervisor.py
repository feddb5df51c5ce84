"""The supervisor: what it does in each situation, one story per test.

No process is forked here, and no time passes. Reloads and recycling have a file of their own,
test_rollout.py; test_supervisor_fuzz.py tells it any story at all.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import signal
from pathlib import Path

import pytest

from prefork.ipc import Drain, Draining, ExitCode, Failed, Ready, Retiring
from prefork.master import slots
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
    Log,
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
from prefork.master.slots import BACKOFF_FIRST, BACKOFF_LAST, HEALTHY_AFTER, State, backoff
from prefork.master.supervisor import (
    BUDGET_PERIOD,
    EXPLAIN_WITHIN,
    LEAVE_WITHIN,
    Phase,
    Supervisor,
    describe,
)

_spec = importlib.util.spec_from_file_location(
    "helpers_supervisor", Path(__file__).with_name("helpers_supervisor.py")
)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
World, exited, kinds, logged, details = (
    helpers.World,
    helpers.exited,
    helpers.kinds,
    helpers.logged,
    helpers.details,
)
only, drained, GRACEFUL, BOOT = helpers.only, helpers.drained, helpers.GRACEFUL, helpers.BOOT


@pytest.fixture
def world() -> World:
    return World(2)


# --- start ----------------------------------------------------------------------------------


def test_start_forks_every_slot_on_a_seat_of_its_own(world):
    assert world.tell(Start())[:2] == [Fork(0, 0, 1), Fork(1, 1, 1)]
    assert world.supervisor.phase is Phase.STARTING


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_it_serves_when_all_are_ready(count):
    world = World(count)
    world.tell(Start())
    for slot in range(count - 1):
        assert world.ready(slot) == [Status(f"{slot + 1}/{count} workers ready")]
        assert world.supervisor.phase is Phase.SERVING
    assert world.ready(count - 1) == [Serving(), Status(f"{count}/{count} workers ready")]


@pytest.mark.parametrize(("count", "enough"), [(3, 2), (4, 3), (8, 5)])
def test_it_serves_with_more_than_half_when_the_others_have_failed(count, enough):
    world = World(count)
    world.tell(Start())
    for slot in range(enough):
        assert Serving() not in world.ready(slot)
    actions = []
    for slot in range(enough, count):
        assert Serving() not in actions
        actions = world.die(slot)
    assert Serving() in actions


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
    assert actions[:3] == [Report("no module named app"), Stopping(), Closing()]
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
    assert details(actions) == ["Traceback"]
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
    assert details(actions) == ["Traceback: of ours"]


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
        texts += details(world.say(0, Failed(4, story)))
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
    assert fork.seat != world.forks[old].seat
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
    assert kinds(actions) == [Stopping, Closing, Send, Send]
    assert [a.message for a in actions if isinstance(a, Send)] == [Drain(GRACEFUL)] * 2
    assert logged(actions) == "SIGTERM: draining 2 workers, at most 30 s"
    assert kinds(world.die(0, 0)) == []
    assert world.die(1, 0)[-1] == Exit(ExitCode.CLEAN)
    assert world.tell(Stop("SIGTERM")) == []


def test_term_before_anything(world):
    assert kinds(world.tell(Stop("SIGTERM"))) == [Stopping, Closing, Exit]


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
    assert kinds(world.tell(Stop("SIGQUIT", now=True))) == [Stopping, Closing, Send, Send]
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
    world = World(1, graceful_timeout=math.inf, boot_timeout=math.inf).serve()
    world.tell(Stop("SIGTERM"))
    assert kinds(world.after(1e9)) == []
    assert world.die(0, 0)[-1] == Exit(ExitCode.CLEAN)


# --- what a death tells ---------------------------------------------------------------------


def test_what_the_dead_had_in_hand_is_told(world):
    world.serve()
    flight = ("GET /report (41.0 s)", "POST /upload (0.2 s)")
    text = logged(world.die(0, flight=flight))
    assert (
        "was killed by SIGSEGV after 0 s; in hand: GET /report (41.0 s), POST /upload (0.2 s); next" in text
    )


def test_a_kill_of_the_kernel_for_memory_is_told_as_such(world):
    world.serve()
    assert "was killed by SIGKILL (out of memory: see" in logged(
        world.die(0, signal.SIGKILL, out_of_memory=True)
    )
    assert world.supervisor.restarts == {"oom": 1}


@pytest.mark.parametrize("status", [signal.SIGSEGV, exited(1)])
def test_another_death_is_none_for_memory(world, status):
    # The kernel has killed something in the cgroup, a child of the worker perhaps.
    world.serve()
    assert "out of memory" not in logged(world.die(0, status, out_of_memory=True))
    assert world.supervisor.restarts == {"crash": 1}


def test_what_a_worker_had_in_hand_that_we_killed_is_told(world):
    world.serve()
    old = world.pids[0]
    world.say(0, Draining("SIGTERM"))
    world.after(GRACEFUL + LEAVE_WITHIN)
    text = logged(world.exit(old, signal.SIGKILL, flight=("GET /slow (31.0 s)",), out_of_memory=True))
    assert text.startswith(f"worker 1 (pid {old}) was killed by SIGKILL: what it had in flight is cut;")
    assert text.endswith("; in hand: GET /slow (31.0 s)")


def test_what_was_cut_at_the_stop_is_told_by_name(world):
    world.serve()
    world.tell(Stop("SIGTERM"))
    assert "is cut; in hand: GET /slow" in logged(world.die(0, exited(ExitCode.CUT), flight=("GET /slow",)))


def test_restarts_are_counted_by_reason(world):
    world.serve()
    world.die(0)
    world.after(0.1)
    world.die(0, exited(3))
    world.can_fork = False
    world.after(0.2)
    world.can_fork = True
    world.after(0.4)
    world.ready(0)
    world.say(0, Draining("SIGTERM"))
    world.tell(Hangs(world.pids[1], 30.0))
    assert world.supervisor.restarts == {"crash": 1, "boot": 1, "fork": 1, "left": 1, "hung": 1}


# --- hanging --------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_explained_then_killed_and_replaced_meanwhile(world):
    world.serve()
    hung = world.pids[1]
    actions = world.tell(Hangs(hung, 30.2))
    assert actions[0] == Explain(hung, f"worker 2 (pid {hung})", 30.2)
    assert logged(actions) == (
        f"worker 2 (pid {hung}) hangs: its loop has not turned for 30.2 s; next one in 0.1 s"
    )
    assert kinds(world.after(0.1)) == [Fork]
    assert kinds(world.after(EXPLAIN_WITHIN - 0.11)) == []
    assert Kill(hung, signal.SIGKILL) in world.after(0.02)
    assert kinds(world.ready(1)) == []
    text = logged(world.exit(hung, signal.SIGKILL, flight=("GET /loop (30.3 s)",)))
    assert text == f"worker 2 (pid {hung}), which hung, was killed by SIGKILL; in hand: GET /loop (30.3 s)"
    assert world.supervisor.ready == 2


def test_it_is_explained_once(world):
    world.serve()
    world.tell(Hangs(world.pids[0], 30.0))
    assert world.tell(Hangs(world.pids[0], 30.3)) == []


def test_whoever_boots_does_not_hang(world):
    # It has the boot timeout.
    world.serve()
    world.die(0)
    world.after(0.1)
    assert world.tell(Hangs(world.pids[0], 50.0)) == []


def test_a_worker_that_hangs_while_it_drains_is_ended_early(world):
    world.serve()
    old = world.pids[0]
    world.say(0, Draining("SIGTERM"))
    world.after(0.1)
    world.ready(0)
    actions = world.tell(Hangs(old, 10.0))
    assert kinds(actions) == [Explain]
    assert "hangs: its loop has not turned for 10 s" in logged(actions)
    assert kinds(world.after(EXPLAIN_WITHIN)) == [Kill]
    assert "which hung" in logged(world.exit(old, signal.SIGKILL))
    assert world.supervisor.restarts == {"left": 1}


def test_a_worker_that_hangs_at_the_stop_holds_up_nobody(world):
    world.serve()
    world.tell(Stop("SIGTERM"))
    world.die(0, 0)
    assert kinds(world.tell(Hangs(world.pids[1], 10.0))) == [Explain]
    assert kinds(world.after(EXPLAIN_WITHIN)) == [Kill]
    assert world.die(1, signal.SIGKILL)[-1] == Exit(ExitCode.CUT)


def test_a_hanging_stranger_is_none_of_our_business(world):
    world.serve()
    assert world.tell(Hangs(99, 10.0)) == []


# --- scale ----------------------------------------------------------------------------------


def test_up(world):
    world.serve()
    actions = world.scale(4)
    assert logged(actions) == "SIGTTIN: from 2 to 4 workers"
    assert [(a.slot, a.generation) for a in actions if isinstance(a, Fork)] == [(2, 1), (3, 1)]
    assert actions[-1] == Status("2/4 workers ready")
    world.ready(2)
    world.ready(3)
    assert world.supervisor.ready == 4


def test_down(world):
    world.serve()
    actions = world.scale(1)
    assert logged(actions) == "SIGTTIN: from 2 to 1 worker"
    assert [a for a in actions if isinstance(a, Send)] == [Send(world.pids[1], Drain(GRACEFUL))]
    assert "has drained" in logged(world.die(1, 0))
    assert world.supervisor.next_deadline() is None


def test_down_and_up_again_while_the_old_one_drains(world):
    world.serve()
    old = world.pids[1]
    world.scale(1)
    assert [a.slot for a in world.scale(2) if isinstance(a, Fork)] == [1]
    assert world.pids[1] != old
    world.scale(1)
    # Both places are taken by processes on their way out.
    assert kinds(world.scale(2)) == []
    assert kinds(world.exit(old, 0)) == [Fork]


def test_down_while_a_worker_boots(world):
    world.serve()
    world.scale(3)
    assert [a for a in world.scale(2) if isinstance(a, Kill)] == [Kill(world.pids[2], signal.SIGTERM)]
    assert logged(world.die(2, signal.SIGTERM)) == ""
    assert kinds(world.after(BACKOFF_LAST)) == []


def test_down_while_a_slot_waits_for_its_next_worker(world):
    world.serve()
    world.die(1)
    world.scale(1)
    assert kinds(world.after(BACKOFF_LAST)) == []
    assert kinds(world.scale(2)) == [Fork]


def test_down_before_anything_is_ready(world):
    world.tell(Start())
    world.scale(1)
    assert kinds(world.die(1, signal.SIGTERM)) == []
    assert kinds(world.ready(0)) == [Serving]


def test_fewer_may_be_all_of_them():
    world = World(4)
    world.tell(Start())
    world.ready(0)
    world.ready(1)
    assert Serving() in world.scale(2)


def test_the_most_there_can_be(world):
    world.serve()
    most = world.supervisor.most
    assert most == Supervisor.capacity(2) == 10
    actions = world.scale(most + 1)
    assert "SIGTTIN: 11 workers are wanted, but this service can have at most 10" in logged(actions)
    assert world.supervisor.wanted == most
    assert len({fork.seat for fork in world.forks.values()}) == most
    # Told again, although nothing changes.
    assert "at most 10" in logged(world.scale(most + 1))


def test_the_least_there_can_be(world):
    world.serve()
    world.scale(1)
    assert logged(world.scale(0)) == "SIGTTIN: 0 workers are wanted, but a service needs one"
    assert world.supervisor.wanted == 1


def test_the_number_it_has_is_nothing_to_tell(world):
    world.serve()
    assert world.scale(2) == []


def test_no_scale_after_the_stop(world):
    world.serve()
    world.tell(Stop("SIGTERM"))
    assert world.scale(5) == []


# --- the crash budget -----------------------------------------------------------------------


def test_the_crash_budget_ends_the_service():
    world = World(2, crash_budget=2).serve()
    for _ in range(2):
        assert Stopping() not in world.die(0)
        world.after(1)
        world.ready(0)
    actions = world.die(0)
    assert kinds(actions) == [Stopping, Closing, Send]
    assert "3 workers lost within 60 s: the crash budget is spent" in logged(actions)
    # Gracefully: the others finish what they have.
    assert world.supervisor.phase is Phase.DRAINING
    assert world.die(1, 0)[-1] == Exit(ExitCode.CRASH_BUDGET)


def test_what_was_cut_does_not_hide_the_crash_budget():
    world = World(2, crash_budget=0).serve()
    world.die(0)
    assert world.die(1, exited(ExitCode.CUT))[-1] == Exit(ExitCode.CRASH_BUDGET)


def test_the_budget_is_for_a_minute():
    world = World(1, crash_budget=1).serve()
    for _ in range(5):
        assert Stopping() not in world.die(0)
        world.after(31)
        world.ready(0)
        world.after(BUDGET_PERIOD - 31)
    assert world.supervisor.phase is Phase.SERVING


def test_failed_starts_and_hangs_cost_as_well_as_failed_forks():
    world = World(2, crash_budget=2).serve()
    world.die(0)
    world.can_fork = False
    world.after(0.1)
    assert Stopping() in world.tell(Hangs(world.pids[1], 30.0))


def test_a_worker_that_is_told_to_go_costs_nothing():
    world = World(1, crash_budget=0).serve()
    assert Stopping() not in world.say(0, Draining("SIGTERM"))


# --- the delay for load balancers -----------------------------------------------------------


def delayed() -> World:
    return World(2, drain_delay=5.0).serve()


def test_not_ready_first_then_no_connections():
    world = delayed()
    actions = world.tell(Stop("SIGTERM"))
    assert kinds(actions) == [Stopping]
    assert logged(actions) == "SIGTERM: not ready any more, draining in 5 s"
    assert actions[-1] == Status("stopping soon, 2 workers still serving")
    assert kinds(world.after(4.9)) == []
    actions = world.after(0.1)
    assert kinds(actions) == [Closing, Send, Send]
    assert actions[-1] == Status("draining, 2 workers left")
    world.die(0, 0)
    assert world.die(1, 0)[-1] == Exit(ExitCode.CLEAN)


def test_the_second_term_does_not_wait_for_the_delay():
    world = delayed()
    world.tell(Stop("SIGTERM"))
    actions = world.tell(Stop("SIGTERM"))
    assert kinds(actions) == [Closing, Send, Send]
    assert [a.message for a in actions if isinstance(a, Send)] == [Drain(0.0)] * 2
    assert world.supervisor.phase is Phase.STOPPING
    assert Closing() not in world.after(5)


def test_at_once_knows_no_delay():
    assert kinds(delayed().tell(Stop("SIGQUIT", now=True))) == [Stopping, Closing, Send, Send]


def test_no_delay_before_anything_is_ready():
    world = World(2, drain_delay=5.0)
    world.tell(Start())
    assert kinds(world.tell(Stop("SIGTERM"))) == [Stopping, Closing, Kill, Kill]


def test_who_dies_within_the_delay_is_not_replaced_and_was_cut():
    world = delayed()
    world.tell(Stop("SIGTERM"))
    assert "is cut" in logged(world.die(0))
    assert kinds(world.after(1)) == []
    world.after(4)
    assert world.die(1, 0)[-1] == Exit(ExitCode.CUT)


def test_when_all_die_within_the_delay_it_is_over():
    world = delayed()
    world.tell(Stop("SIGTERM"))
    world.die(0)
    assert kinds(world.die(1)) == [Closing, Exit]
    assert world.supervisor.next_deadline() is None


def test_a_worker_that_boots_within_the_delay_may_serve():
    world = delayed()
    world.die(0)
    world.after(0.1)
    world.tell(Stop("SIGTERM"))
    assert kinds(world.ready(0)) == []
    assert drained(world.after(5)) == [world.pids[1], world.pids[0]]


def test_a_worker_that_hangs_within_the_delay_is_ended_and_not_replaced():
    world = delayed()
    world.tell(Stop("SIGTERM"))
    assert kinds(world.tell(Hangs(world.pids[0], 30.0))) == [Explain]
    assert kinds(world.after(EXPLAIN_WITHIN)) == [Kill]


# --- time that nobody had -------------------------------------------------------------------


def test_a_master_that_did_not_run_kills_nobody_for_it(world):
    world.serve()
    world.die(0)
    world.after(0.1)
    world.now += 7200
    actions = world.tell(Tick())
    assert kinds(actions) == []
    assert "the master did not run for 7140 s or more" in logged(actions)
    # The boot timeout begins anew.
    assert kinds(world.after(BOOT - 1)) == []
    assert kinds(world.after(1)) == [Kill]


def test_what_was_said_while_the_master_did_not_run_is_heard_first(world):
    world.tell(Start())
    world.now += 3600
    assert kinds(world.ready(0)) == []
    assert kinds(world.ready(1)) == [Serving]
    assert kinds(world.tell(Tick())) == []


def test_a_drain_goes_on_after_a_sleep_of_the_machine(world):
    world.serve()
    world.tell(Stop("SIGTERM"))
    assert kinds(world.after(7200)) == []
    assert kinds(world.after(GRACEFUL + LEAVE_WITHIN)) == [Kill, Kill]


def test_who_had_hardly_any_time_left_gets_a_moment(world):
    world.serve()
    world.die(0)
    world.after(0.1)
    assert kinds(world.after(BOOT - 0.001)) == []
    assert kinds(world.after(3600)) == []
    assert kinds(world.after(LEAVE_WITHIN - 0.1)) == []
    assert kinds(world.after(0.1)) == [Kill]


def test_being_a_little_late_is_no_excuse(world):
    world.serve()
    world.die(0)
    world.after(0.1)
    assert kinds(world.after(BOOT + 1.9)) == [Kill]


def test_deadlines_pass_only_when_everything_has_been_heard():
    # Two workers become ready in the last moment: the first word must not kill the second worker.
    world = World(2)
    world.tell(Start())
    world.now += BOOT
    world.ready(0)
    assert kinds(world.ready(1)) == [Serving]


# --- what makes no sense --------------------------------------------------------------------


def test_answers_to_nothing_are_ignored(world):
    world.serve()
    assert world.tell(Forked(0, 4711)) == []
    assert world.tell(ForkFailed(0, "what fork?")) == []
    assert world.tell(world.answer) == []


def test_a_fork_that_works_when_nobody_wants_it_any_more():
    """The arbiter answers before anything else happens; nothing breaks if it does not."""
    supervisor = Supervisor(slots=2, graceful_timeout=GRACEFUL, boot_timeout=BOOT)
    supervisor.handle(Start(), 0.0)
    supervisor.handle(Scale(1, "SIGTTOU"), 0.0)
    assert supervisor.handle(Forked(1, 102), 0.0)[0] == Kill(102, signal.SIGTERM)
    supervisor.handle(Stop("SIGTERM"), 0.0)
    assert supervisor.handle(Forked(0, 101), 0.0)[0] == Kill(101, signal.SIGTERM)
    supervisor.handle(Exited(102, signal.SIGTERM), 0.0)
    assert supervisor.handle(Exited(101, signal.SIGTERM), 0.0)[-1] == Exit(ExitCode.CLEAN)


def test_a_fork_that_works_after_another_one_has_spent_the_budget():
    world = World(2, crash_budget=2).serve()
    world.die(0)
    world.die(1)
    supervisor = world.supervisor
    supervisor.handle(Tick(), world.now + 0.1)
    assert Stopping() in supervisor.handle(ForkFailed(0, "no room"), world.now + 0.1)
    assert supervisor.handle(Forked(1, 200), world.now + 0.1)[0] == Kill(200, signal.SIGTERM)
    assert supervisor.handle(Exited(200, signal.SIGTERM), world.now + 0.1)[-1] == Exit(ExitCode.CRASH_BUDGET)


def test_words_that_fit_no_state_are_ignored(world):
    world.serve()
    assert world.ready(0) == []
    world.say(0, Draining("SIGTERM"))
    assert world.say(0, Retiring("max_requests")) == []
    assert world.say(0, Draining("SIGTERM")) == []


def test_a_reload_after_the_stop_ends_at_once(world):
    world.serve()
    world.tell(Stop("SIGTERM"))
    assert world.tell(Reload("SIGHUP")) == [Reloaded(False, "the service is stopping")]


def test_nothing_is_heard_after_the_end(world):
    world.serve()
    world.tell(Stop("SIGTERM"))
    world.die(0, 0)
    world.die(1, 0)
    for event in (Tick(), Start(), Said(101, Ready()), Exited(101, 0), Stop("SIGTERM")):
        assert world.tell(event) == []


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


def test_log_levels_are_those_of_logging(world):
    world.serve()
    levels = [a.level for a in world.die(0) if isinstance(a, Log)]
    assert levels == [logging.ERROR]
