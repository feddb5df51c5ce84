"""Reload and recycling, one story per test: nothing that serves goes before its successor serves."""

from __future__ import annotations

import importlib.util
import logging
import signal
from pathlib import Path

import pytest

from prefork.ipc import Changed, Drain, Draining, ExitCode, Failed, Retiring
from prefork.master.events import (
    Closing,
    Exit,
    Explain,
    Fork,
    Hangs,
    Kill,
    Log,
    Prepare,
    Prepared,
    Reloaded,
    Report,
    Send,
    Serving,
    Start,
    Status,
    Stop,
    Stopping,
    Tick,
)
from prefork.master.rollout import Rollout
from prefork.master.slots import BACKOFF_FIRST, BACKOFF_LAST
from prefork.master.supervisor import CANARY_SERVES, EXPLAIN_WITHIN, LEAVE_WITHIN, Phase

_spec = importlib.util.spec_from_file_location(
    "helpers_supervisor", Path(__file__).with_name("helpers_supervisor.py")
)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
World, exited, kinds, acts = helpers.World, helpers.exited, helpers.kinds, helpers.acts
logged, details, outcome, drained = helpers.logged, helpers.details, helpers.outcome, helpers.drained
GRACEFUL, BOOT = helpers.GRACEFUL, helpers.BOOT

TRACEBACK = 'Traceback (most recent call last):\n  File "app.py", line 3\nSyntaxError: invalid syntax\n'


@pytest.fixture
def world() -> World:
    return World(3).serve()


def forks(actions) -> list[tuple[int, int]]:
    """(slot, generation) of each."""
    return [(action.slot, action.generation) for action in actions if isinstance(action, Fork)]


# --- a reload that works --------------------------------------------------------------------


def test_canary_first_then_one_slot_after_the_other(world):
    old = [world.pids[slot] for slot in range(3)]
    actions = world.reload()
    assert acts(actions)[0] == Prepare(2)
    assert forks(actions) == [(0, 2)]
    assert kinds(actions) == [Prepare, Fork]
    # The canary serves, beside the old one, and nothing else happens yet.
    assert acts(world.ready(0)) == []
    assert world.supervisor.next_deadline() == world.now + CANARY_SERVES
    assert acts(world.after(CANARY_SERVES - 0.01)) == []
    # READY of the new before Drain of the old; the next one does not wait until the old one is gone.
    now = acts(world.after(0.01))
    assert now[0] == Send(old[0], Drain(GRACEFUL))
    assert forks(now) == [(1, 2)]
    assert len(now) == 2
    now = acts(world.ready(1))
    assert now[0] == Send(old[1], Drain(GRACEFUL))
    assert forks(now) == [(2, 2)]
    assert len(now) == 2
    now = acts(world.ready(2))
    assert now == [Send(old[2], Drain(GRACEFUL)), Reloaded(True, "3 workers of generation 2, in 0.3 s")]
    assert world.supervisor.generation == 2
    assert world.supervisor.restarts == {"reload": 3}
    assert world.generations() == [2, 2, 2]
    for pid in old:
        assert "has drained and left" in logged(world.exit(pid))
    assert world.supervisor.next_deadline() is None


def test_the_log_and_the_status_tell_of_it(world):
    actions = world.reload("SIGHUP")
    assert logged(actions) == "SIGHUP: reloading, generation 2"
    assert [a.text for a in actions if isinstance(a, Status)] == [
        "3/3 workers ready, reloading",
        "3/3 workers ready, reloading: 0 of 3 run generation 2",
    ]
    world.ready(0)
    assert world.trust()[-1] == Status("3/3 workers ready, reloading: 1 of 3 run generation 2")
    world.ready(1)
    actions = world.ready(2)
    assert logged(actions) == "reloaded: 3 workers of generation 2, in 0.3 s"
    assert actions[-1] == Status("3/3 workers ready, generation 2")


def test_one_worker_is_enough_for_a_reload():
    world = World(1).serve()
    old = world.pids[0]
    world.reload()
    world.ready(0)
    actions = world.trust()
    assert drained(actions) == [old]
    assert outcome(actions).ok


def test_never_fewer_ready_than_wanted(world):
    for _ in range(5):
        before = dict(world.pids)
        world.reload()
        for slot in range(3):
            assert world.supervisor.ready == 3
            world.ready(slot)
            world.trust()
        assert world.supervisor.ready == 3
        for pid in before.values():
            world.exit(pid)
    assert world.generations() == [6, 6, 6]


def test_a_crash_afterwards_is_replaced_by_the_new_generation(world):
    world.reload()
    for slot in range(3):
        world.ready(slot)
        world.trust()
    world.die(1)
    assert forks(world.after(0.1)) == [(1, 2)]


def test_a_reload_before_anything_is_ready_comes_when_something_is():
    world = World(2)
    world.tell(Start())
    assert acts(world.reload()) == []
    assert kinds(world.ready(0)) == [Prepare, Fork]
    # The worker of the other slot is still on its way in; it is replaced when it is there.
    world.ready(0)
    assert forks(world.trust()) == []
    boots = world.pids[1]
    assert Serving() in world.ready(1)
    assert world.pids[1] != boots


def test_a_service_that_does_not_start_answers_its_reload():
    world = World(2)
    world.tell(Start())
    world.reload()
    actions = world.say(0, Failed(4, TRACEBACK))
    assert kinds(actions)[:4] == [Report, Stopping, Reloaded, Closing]
    assert not outcome(actions).ok


def test_a_slot_that_is_full_is_waited_for(world):
    """Two processes on their way out are as many as a slot has room for."""
    world.reload()
    for slot in range(3):
        world.ready(slot)
        world.trust()
    # The first generation still drains when the next reload comes.
    first = [pid for pid, fork in world.forks.items() if fork.generation == 1]
    assert kinds(world.reload()) == [Prepare]
    assert forks(world.exit(first[0])) == [(0, 3)]
    world.ready(0)
    assert forks(world.trust()) == []
    # Nobody waits longer than the graceful timeout.
    assert Kill(first[1], signal.SIGKILL) in world.after(GRACEFUL + LEAVE_WITHIN)
    assert forks(world.exit(first[1], signal.SIGKILL)) == [(1, 3)]


def test_settings_are_read_once(world):
    world.reload()
    world.ready(0)
    world.trust()
    # The answer to nothing: it does not begin anew.
    assert world.tell(Prepared(slots=1)) == []
    assert world.tell(Prepared(problem="what?")) == []
    world.ready(1)
    assert outcome(world.ready(2)).ok
    assert world.supervisor.wanted == 3


def test_a_worker_tells_that_files_have_changed(world):
    actions = world.say(1, Changed("app.py, views.py"))
    assert logged(actions) == "app.py, views.py changed: reloading, generation 2"
    assert kinds(actions) == [Prepare, Fork]


def test_one_that_does_not_serve_any_more_is_not_heeded(world):
    world.say(1, Draining("SIGTERM"))
    assert world.say(1, Changed("app.py")) == []
    world.tell(Stop("SIGTERM"))
    assert world.say(0, Changed("app.py")) == []


# --- a reload that fails --------------------------------------------------------------------


def untouched(world: World, before: dict[int, int]) -> None:
    """The old generation serves, all of it, and nobody else is left when the dust has settled."""
    assert world.supervisor.generation == 1
    assert not world.supervisor.reloading
    assert world.supervisor.ready == len(before)
    for slot, pid in before.items():
        current = world.supervisor._slots[slot].current
        assert current is not None
        assert current.pid == pid


def test_settings_that_cannot_be_used(world):
    before = dict(world.pids)
    world.answer = Prepared(problem="prefork.toml: workers: 'many' is no number")
    actions = world.reload()
    assert kinds(actions) == [Prepare, Reloaded]
    assert outcome(actions) == Reloaded(
        False,
        "reload failed, generation 1 goes on serving\nprefork.toml: workers: 'many' is no number",
    )
    untouched(world, before)


def test_a_canary_that_says_why(world):
    before = dict(world.pids)
    world.reload()
    actions = world.say(0, Failed(4, TRACEBACK))
    assert kinds(actions) == [Reloaded]
    assert not outcome(actions).ok
    assert outcome(actions).text == f"reload failed, generation 1 goes on serving\n{TRACEBACK.rstrip()}"
    assert logged(actions) == "reload failed, generation 1 goes on serving: SyntaxError: invalid syntax"
    assert details(actions) == [TRACEBACK.rstrip()]
    assert logged(world.die(0, exited(4))) == ""
    untouched(world, before)


def test_a_canary_that_exits_without_a_word(world):
    before = dict(world.pids)
    world.reload()
    pid = world.pids[0]
    actions = world.die(0, exited(3))
    text = f"worker 1 (pid {pid}) exited with code 3 before it was ready"
    assert outcome(actions).text == f"reload failed, generation 1 goes on serving\n{text}"
    # One line says it all.
    assert logged(actions) == f"reload failed, generation 1 goes on serving: {text}"
    assert details(actions) == [""]
    untouched(world, before)


def test_a_canary_that_crashes(world):
    before = dict(world.pids)
    world.reload()
    assert "was killed by SIGSEGV before it was ready" in outcome(world.die(0)).text
    untouched(world, before)


def test_a_canary_that_hangs_at_its_start(world):
    before = dict(world.pids)
    world.reload()
    actions = world.after(BOOT)
    assert kinds(actions) == [Kill, Reloaded]
    assert "worker 1 was not ready within 60 s" in outcome(actions).text
    assert acts(world.die(0, signal.SIGKILL)) == []
    untouched(world, before)


def test_a_canary_that_cannot_be_forked(world):
    before = dict(world.pids)
    world.can_fork = False
    assert "cannot fork worker 1: no room" in outcome(world.reload()).text
    untouched(world, before)


def test_a_canary_that_dies_right_after_it_was_ready(world):
    before = dict(world.pids)
    world.reload()
    world.ready(0)
    world.after(CANARY_SERVES / 2)
    actions = world.die(0, flight=("GET /",))
    assert kinds(actions) == [Reloaded]
    assert "was killed by SIGSEGV after 0.1 s; in hand: GET /" in outcome(actions).text
    untouched(world, before)
    assert world.supervisor.restarts == {}
    assert world.supervisor.next_deadline() is None


def test_a_canary_that_hangs_right_after_it_was_ready(world):
    before = dict(world.pids)
    world.reload()
    world.ready(0)
    canary = world.pids[0]
    actions = world.tell(Hangs(canary, 0.2))
    assert kinds(actions) == [Explain, Reloaded]
    assert Kill(canary, signal.SIGKILL) in world.after(EXPLAIN_WITHIN)
    untouched(world, before)


@pytest.mark.parametrize("ready", [False, True])
def test_a_canary_that_somebody_else_tells_to_go(world, ready):
    before = dict(world.pids)
    world.reload()
    if ready:
        world.ready(0)
    assert "drains by itself (SIGTERM)" in outcome(world.say(0, Draining("SIGTERM"))).text
    untouched(world, before)
    assert forks(world.after(BACKOFF_LAST)) == []


def test_failed_reloads_cost_nothing_of_the_crash_budget():
    world = World(1, crash_budget=0).serve()
    for _ in range(5):
        world.reload()
        assert not outcome(world.say(0, Failed(4, TRACEBACK))).ok
        world.die(0, exited(4))
    assert world.supervisor.phase is Phase.SERVING


def test_a_failure_in_a_later_slot_stops_it_there(world):
    before = dict(world.pids)
    world.reload()
    world.ready(0)
    world.trust()
    actions = world.say(1, Failed(4, TRACEBACK))
    assert kinds(actions) == [Reloaded]
    text = "reload failed, 1 of 3 workers run generation 2, the others go on as before"
    assert outcome(actions) == Reloaded(False, f"{text}\n{TRACEBACK.rstrip()}")
    assert world.supervisor.ready == 3
    assert [p.pid for p in world.supervisor._slots[1].processes if p.fills] == [before[1]]
    assert acts(world.after(BACKOFF_LAST)) == []
    # The next one replaces them all.
    world.exit(before[0])
    world.die(1, exited(4))
    world.reload()
    for slot in range(3):
        world.ready(slot)
        world.trust()
    assert world.generations() == [3, 3, 3]


def test_a_new_worker_that_dies_during_the_reload_ends_it(world):
    before = dict(world.pids)
    world.reload()
    world.ready(0)
    world.trust()
    boots = world.pids[1]
    actions = world.die(0)
    assert "was killed by SIGSEGV after 0.3 s: the reload is given up" in outcome(actions).text
    # The one that was about to take over does not.
    assert Kill(boots, signal.SIGTERM) in actions
    assert logged(world.exit(boots, signal.SIGTERM)) == ""
    assert world.supervisor._slots[1].current.pid == before[1]
    # Its own slot is filled again, by what served before.
    assert forks(world.after(0.1)) == [(0, 1)]
    assert world.supervisor.restarts == {"reload": 1, "crash": 1}


def test_a_new_worker_that_hangs_during_the_reload_ends_it(world):
    world.reload()
    world.ready(0)
    world.trust()
    actions = world.tell(Hangs(world.pids[0], 30.0))
    assert kinds(actions) == [Explain, Kill, Reloaded]
    assert "hangs: its loop has not turned for 30 s: the reload is given up" in outcome(actions).text


def test_a_successor_whose_ready_comes_too_late_drains(world):
    """It was told to go by SIGTERM when it had just begun to serve."""
    before = dict(world.pids)
    world.reload()
    world.ready(0)
    world.trust()
    boots = world.pids[1]
    world.die(0)
    assert acts(world.ready(1)) == []
    assert "has drained and left" in logged(world.exit(boots))
    assert world.supervisor._slots[1].current.pid == before[1]


# --- several at a time ----------------------------------------------------------------------


def test_a_second_one_comes_after_the_first(world):
    world.reload()
    actions = world.reload("prefork reload")
    assert acts(actions) == []
    assert logged(actions) == "prefork reload: another reload will follow the one under way"
    # And all that come meanwhile are one.
    assert world.reload() == []
    first = [pid for pid, fork in world.forks.items() if fork.generation == 1]
    world.ready(0)
    world.trust()
    world.ready(1)
    for pid in first[:2]:
        world.exit(pid)
    actions = world.ready(2)
    assert kinds(actions) == [Send, Reloaded, Prepare, Fork]
    assert Prepare(3) in actions
    world.exit(first[2])
    last = []
    for slot in range(3):
        last += world.ready(slot)
        last += world.trust()
    assert outcome(last).ok
    assert world.generations() == [3, 3, 3]
    assert not world.supervisor.reloading


def test_a_second_one_comes_also_after_a_failure(world):
    world.reload()
    world.reload()
    actions = world.say(0, Failed(4, TRACEBACK))
    # The slot is full until the canary is gone.
    assert kinds(actions) == [Reloaded, Prepare]
    assert kinds(world.die(0, exited(4))) == [Fork]


# --- stop during a reload -------------------------------------------------------------------


def test_term_is_obeyed_at_once(world):
    before = dict(world.pids)
    world.reload()
    actions = world.tell(Stop("SIGTERM"))
    assert kinds(actions) == [Stopping, Reloaded, Closing, Send, Send, Send, Kill]
    assert outcome(actions) == Reloaded(False, "the service is stopping")
    assert drained(actions) == list(before.values())
    assert Kill(world.pids[0], signal.SIGTERM) in actions
    world.die(0, signal.SIGTERM)
    for pid in before.values():
        actions = world.exit(pid)
    assert actions[-1] == Exit(ExitCode.CLEAN)


def test_term_ends_also_the_one_that_should_follow(world):
    world.reload()
    world.reload()
    actions = world.tell(Stop("SIGTERM"))
    assert [a for a in actions if isinstance(a, Reloaded)] == [Reloaded(False, "the service is stopping")] * 2


def test_term_while_the_canary_proves_itself(world):
    world.reload()
    world.ready(0)
    assert len(drained(world.tell(Stop("SIGTERM")))) == 4
    assert acts(world.after(CANARY_SERVES)) == []


def test_nobody_is_replaced_in_the_delay_for_load_balancers():
    world = World(2, drain_delay=5.0).serve()
    world.reload()
    world.tell(Stop("SIGTERM"))
    assert acts(world.ready(0)) == []
    assert acts(world.trust()) == []
    assert len(drained(world.after(5))) == 3


# --- deaths during a reload -----------------------------------------------------------------


def test_an_old_worker_dies_while_its_successor_boots(world):
    world.reload()
    old = next(pid for pid, fork in world.forks.items() if fork.slot == 0)
    actions = world.exit(old, signal.SIGSEGV)
    assert acts(actions) == []
    assert "next one" not in logged(actions)
    assert world.supervisor.restarts == {"crash": 1}
    world.ready(0)
    assert forks(world.trust()) == [(1, 2)]
    assert world.supervisor.restarts == {"crash": 1}


def test_an_old_worker_and_then_its_successor_die(world):
    world.reload()
    old = next(pid for pid, fork in world.forks.items() if fork.slot == 0)
    world.exit(old, signal.SIGSEGV)
    assert not outcome(world.die(0, exited(3))).ok
    assert forks(world.after(0.1)) == [(0, 1)]


def test_an_old_worker_dies_while_the_canary_proves_itself(world):
    world.reload()
    old = next(pid for pid, fork in world.forks.items() if fork.slot == 0)
    world.ready(0)
    assert acts(world.exit(old, signal.SIGSEGV)) == []
    assert forks(world.trust()) == [(1, 2)]


def test_an_old_worker_that_dies_before_the_canary_is_trusted_comes_back_old(world):
    world.reload()
    world.exit(world.pids[2], signal.SIGSEGV)
    assert forks(world.after(0.1)) == [(2, 1)]
    world.ready(2)
    world.ready(0)
    assert forks(world.trust()) == [(1, 2)]
    assert forks(world.ready(1)) == [(2, 2)]


def test_an_old_worker_that_dies_later_comes_back_new(world):
    world.reload()
    world.ready(0)
    world.trust()
    world.exit(world.pids[2], signal.SIGSEGV)
    assert forks(world.after(0.1)) == [(2, 2)]
    # And need not be replaced again.
    world.ready(2)
    actions = world.ready(1)
    assert forks(actions) == []
    assert outcome(actions) == Reloaded(True, "3 workers of generation 2, in 0.4 s")


@pytest.mark.parametrize("works", [True, False])
def test_it_is_waited_for_when_its_turn_comes_while_it_boots(world, works):
    world.reload()
    world.ready(0)
    world.trust()
    world.exit(world.pids[2], signal.SIGSEGV)
    world.after(0.1)
    assert kinds(world.ready(1)) == [Send]
    assert outcome(world.ready(2) if works else world.say(2, Failed(4, TRACEBACK))).ok == works


def test_the_slot_whose_turn_it_is_does_not_wait_for_its_back_off(world):
    for _ in range(5):
        world.die(0)
        world.after(BACKOFF_LAST)
        world.ready(0)
    world.die(0)
    assert forks(world.reload()) == [(0, 2)]


def test_a_new_worker_told_to_go_by_somebody_else_is_no_failure(world):
    world.reload()
    world.ready(0)
    world.trust()
    actions = world.say(0, Draining("SIGTERM"))
    assert kinds(actions) == []
    world.ready(1)
    assert outcome(world.ready(2)).ok


def test_a_reload_heals_a_service_that_does_nothing_but_crash():
    world = World(3).serve()
    for slot in range(3):
        world.die(slot)
    for _ in range(8):
        world.after(BACKOFF_LAST)
        for slot in range(3):
            world.say(slot, Failed(4, TRACEBACK))
            world.die(slot, exited(4))
    assert world.supervisor.ready == 0
    assert world.supervisor.next_deadline() > world.now + 10
    # Nobody waits for half a minute now.
    assert forks(world.reload()) == [(0, 2)]
    world.ready(0)
    assert forks(world.trust()) == [(1, 2)]
    assert forks(world.ready(1)) == [(2, 2)]
    assert outcome(world.ready(2)).ok
    assert world.supervisor.ready == 3


def test_a_slot_of_it_that_boots_at_the_moment_is_waited_for(world):
    world.die(0)
    world.after(0.1)
    assert kinds(world.reload()) == [Prepare]
    assert forks(world.say(0, Failed(4, TRACEBACK))) == [(0, 2)]


def test_a_reload_that_fails_in_an_empty_slot_tries_on_with_the_old_generation(world):
    world.die(0)
    world.reload()
    assert not outcome(world.say(0, Failed(4, TRACEBACK))).ok
    assert forks(world.after(0.2)) == [(0, 1)]


# --- scale during a reload ------------------------------------------------------------------


def test_up_before_the_canary_is_trusted(world):
    world.reload()
    assert forks(world.scale(4)) == [(3, 1)]
    world.ready(3)
    world.ready(0)
    world.trust()
    world.ready(1)
    # It has its turn, as everybody else.
    assert forks(world.ready(2)) == [(3, 2)]
    assert outcome(world.ready(3)).text.startswith("4 workers")


def test_up_after_the_canary_is_trusted(world):
    world.reload()
    world.ready(0)
    world.trust()
    assert forks(world.scale(4)) == [(3, 2)]
    world.ready(1)
    world.ready(3)
    assert outcome(world.ready(2)).text.startswith("4 workers")
    assert world.generations() == [2, 2, 2, 2]


def test_down_to_the_slot_that_is_replaced(world):
    before = dict(world.pids)
    world.reload()
    world.ready(0)
    world.trust()
    successor = world.pids[1]
    actions = world.scale(1)
    assert drained(actions) == [before[1], before[2]]
    assert Kill(successor, signal.SIGTERM) in actions
    assert outcome(actions) == Reloaded(True, "1 worker of generation 2, in 0.3 s")


def test_who_is_scaled_away_is_not_counted(world):
    world.reload()
    world.ready(0)
    world.trust()
    world.ready(1)
    assert outcome(world.scale(1)).text.startswith("1 worker of generation 2")


def test_down_and_up_again(world):
    world.reload()
    world.ready(0)
    world.trust()
    world.ready(1)
    world.scale(1)
    assert not world.supervisor.reloading
    for pid, fork in list(world.forks.items()):
        if fork.slot > 0:
            world.exit(pid)
    assert forks(world.scale(3)) == [(1, 2), (2, 2)]


def test_down_and_up_again_before_the_canary_is_trusted(world):
    old = world.pids[2]
    world.reload()
    world.scale(2)
    world.exit(old)
    assert forks(world.scale(3)) == [(2, 1)]
    world.ready(2)
    world.ready(0)
    world.trust()
    # It has its turn again.
    assert forks(world.ready(1)) == [(2, 2)]
    assert outcome(world.ready(2)).text.startswith("3 workers")


def test_the_new_settings_want_more_workers(world):
    world.answer = Prepared(slots=5)
    assert forks(world.reload()) == [(0, 2)]
    # Not before the canary is trusted.
    assert world.supervisor.wanted == 3
    world.ready(0)
    actions = world.trust()
    assert "SIGHUP: from 3 to 5 workers" in logged(actions)
    assert sorted(forks(actions)) == [(1, 2), (3, 2), (4, 2)]
    for slot in (3, 4, 1):
        world.ready(slot)
    assert outcome(world.ready(2)).text.startswith("5 workers of generation 2")


def test_the_new_settings_want_fewer_workers(world):
    before = dict(world.pids)
    world.answer = Prepared(slots=1)
    world.reload()
    world.ready(0)
    actions = world.trust()
    assert drained(actions) == list(before.values())
    assert outcome(actions).text.startswith("1 worker of")


def test_the_new_settings_want_more_than_there_can_be(world):
    world.answer = Prepared(slots=99)
    world.reload()
    world.ready(0)
    assert "99 workers are wanted, but this service can have at most 11" in logged(world.trust())
    assert world.supervisor.wanted == 11


def test_a_reload_that_fails_leaves_the_number_alone(world):
    world.answer = Prepared(slots=5)
    world.reload()
    world.say(0, Failed(4, TRACEBACK))
    assert world.supervisor.wanted == 3


def test_whoever_scales_meanwhile_has_the_last_word(world):
    world.answer = Prepared(slots=5)
    world.reload()
    world.scale(2)
    world.ready(0)
    world.trust()
    assert world.supervisor.wanted == 2


# --- recycling ------------------------------------------------------------------------------


def test_the_successor_first(world):
    old = world.pids[1]
    assert forks(world.say(1, Retiring("max_requests"))) == [(1, 1)]
    # It was asked for once.
    assert world.say(2, Draining("x")) != []
    actions = world.ready(1)
    assert acts(actions) == [Send(old, Drain(GRACEFUL))]
    assert logged(actions) == (
        f"worker 2 (pid {old}) is replaced (max_requests) by worker 2 (pid {world.pids[1]})"
    )
    assert world.supervisor.restarts == {"left": 1, "max_requests": 1}
    assert "has drained" in logged(world.exit(old))


def test_one_at_a_time_the_one_that_asked_first_first(world):
    world.say(2, Retiring("max_rss"))
    world.now += 1
    assert world.say(1, Retiring("max_requests")) == []
    world.now += 1
    assert world.say(0, Retiring("max_requests")) == []
    assert forks(world.ready(2)) == [(1, 1)]
    assert forks(world.ready(1)) == [(0, 1)]
    assert forks(world.ready(0)) == []
    assert world.supervisor.restarts == {"max_rss": 1, "max_requests": 2}


def test_a_wish_is_told_once(world):
    world.say(0, Retiring("max_requests"))
    assert world.tell(Tick()) == []
    old = next(pid for pid, fork in world.forks.items() if fork.slot == 0)
    world.pids[0], new = old, world.pids[0]
    assert world.say(0, Retiring("max_rss")) == []
    world.pids[0] = new
    world.ready(0)
    assert world.supervisor.restarts == {"max_requests": 1}


def test_a_successor_that_fails_leaves_the_old_one_in_peace(world):
    old = world.pids[0]
    world.say(0, Retiring("max_requests"))
    delays, told = [], []
    for _ in range(11):
        actions = world.say(0, Failed(4, TRACEBACK))
        assert acts(actions) == []
        assert f"the successor of worker 1 (pid {old}) failed, it goes on serving" in logged(actions)
        assert logged(actions).endswith("s: SyntaxError: invalid syntax")
        told += details(actions)
        world.die(0, exited(4))
        delays.append(round(world.supervisor.next_deadline() - world.now, 6))
        assert world.supervisor.ready == 3
        assert forks(world.after(delays[-1])) == [(0, 1)]
    assert delays[:4] == [BACKOFF_FIRST, 0.2, 0.4, 0.8]
    assert delays[-1] == BACKOFF_LAST
    # One traceback is enough.
    assert [bool(text) for text in told] == [True] + [False] * 10
    assert drained(world.ready(0)) == [old]
    assert world.supervisor.restarts == {"max_requests": 1}


@pytest.mark.parametrize("how", ["exit", "hang", "fork", "drain"])
def test_however_it_fails(world, how):
    if how == "fork":
        world.can_fork = False
    actions = world.say(0, Retiring("max_lifetime"))
    if how == "exit":
        actions = world.die(0, exited(3))
    elif how == "hang":
        actions = world.after(BOOT)
    elif how == "drain":
        actions = world.say(0, Draining("SIGTERM"))
    assert "it goes on serving; next one in 0.1 s" in logged(actions)
    assert world.supervisor.ready == 3
    # The others are not held up by it.
    world.can_fork = True
    assert forks(world.say(1, Retiring("max_lifetime"))) == [(1, 1)]


def test_a_failing_successor_costs_nothing_of_the_crash_budget():
    world = World(1, crash_budget=0).serve()
    world.say(0, Retiring("max_requests"))
    world.say(0, Failed(4, TRACEBACK))
    assert world.supervisor.phase is Phase.SERVING


def test_the_old_one_dies_while_its_successor_boots(world):
    old = world.pids[0]
    world.say(0, Retiring("max_rss"))
    actions = world.exit(old, signal.SIGKILL, out_of_memory=True)
    assert acts(actions) == []
    assert world.supervisor.restarts == {"oom": 1}
    assert acts(world.ready(0)) == []
    # The next one may be recycled.
    assert forks(world.say(1, Retiring("max_rss"))) == [(1, 1)]


def test_the_old_one_and_then_its_successor_die(world):
    old = world.pids[0]
    world.say(0, Retiring("max_rss"))
    world.exit(old, signal.SIGSEGV)
    assert "next one in 0.1 s" in logged(world.die(0, exited(3)))
    assert forks(world.after(0.1)) == [(0, 1)]
    world.ready(0)
    assert forks(world.say(1, Retiring("max_rss"))) == [(1, 1)]


def test_a_wish_dies_with_the_worker(world):
    world.say(1, Retiring("max_requests"))
    world.say(0, Retiring("max_requests"))
    world.die(0)
    world.after(0.1)
    world.ready(0)
    assert forks(world.ready(1)) == []
    assert world.supervisor.next_deadline() == world.now + GRACEFUL + LEAVE_WITHIN


def test_never_during_a_reload(world):
    world.reload()
    assert world.say(1, Retiring("max_requests")) == []
    world.ready(0)
    assert forks(world.trust()) == [(1, 2)]
    world.ready(1)
    assert outcome(world.ready(2)).ok
    # It has been replaced anyway.
    assert world.supervisor.restarts == {"reload": 3}


def test_after_a_reload_that_failed(world):
    world.reload()
    world.say(1, Retiring("max_requests"))
    assert forks(world.say(0, Failed(4, TRACEBACK))) == [(1, 1)]


def test_a_canary_that_wants_to_retire_at_once(world):
    world.reload()
    world.ready(0)
    world.say(0, Retiring("max_requests"))
    old = next(pid for pid, fork in world.forks.items() if fork.slot == 0)
    world.trust()
    world.ready(1)
    actions = world.ready(2)
    assert outcome(actions).ok
    assert forks(actions) == []
    # As soon as there is room.
    assert forks(world.exit(old)) == [(0, 2)]


def test_a_reload_waits_for_the_recycling_under_way(world):
    old = world.pids[1]
    world.say(1, Retiring("max_requests"))
    assert acts(world.reload()) == []
    actions = world.ready(1)
    assert drained(actions) == [old]
    assert forks(actions) == [(0, 2)]
    assert kinds(actions) == [Send, Prepare, Fork]


def test_scaled_down_while_it_is_recycled(world):
    old = world.pids[2]
    world.say(2, Retiring("max_requests"))
    actions = world.scale(2)
    assert drained(actions) == [old]
    assert Kill(world.pids[2], signal.SIGTERM) in actions
    assert forks(world.say(0, Retiring("max_requests"))) == [(0, 1)]


def test_term_while_one_is_recycled(world):
    world.say(0, Retiring("max_requests"))
    assert kinds(world.tell(Stop("SIGTERM"))) == [Stopping, Closing, Send, Send, Send, Kill]


def test_a_slot_with_its_predecessor_still_draining_is_not_recycled_yet(world):
    first = world.pids[0]
    world.say(0, Retiring("max_requests"))
    world.ready(0)
    assert forks(world.say(0, Retiring("max_requests"))) == []
    assert forks(world.exit(first)) == [(0, 1)]


# --- words ----------------------------------------------------------------------------------


def test_the_repr_tells_how_far_it_is():
    rollout = Rollout(2, "SIGHUP", 0.0, waiting=[0, 1, 2])
    rollout.begin_next()
    rollout.finish()
    assert repr(rollout) == "<Rollout of generation 2: 1 done, 2 waiting>"


def test_a_failed_reload_is_an_error_in_the_log(world):
    world.reload()
    actions = world.say(0, Failed(4, TRACEBACK))
    assert [a.level for a in actions if isinstance(a, Log)] == [logging.ERROR]
