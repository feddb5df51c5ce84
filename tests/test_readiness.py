"""When more time may be asked for, and when the watchdog may be told that all is well."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.ipc import Scoreboard, Word, WorkerState
from prefork.master.notify import Stage
from prefork.master.readiness import EXTEND_BY, EXTEND_EVERY, FRESH, Say, Witness

BOOT, GRACEFUL = 60.0, 30.0


@dataclass(frozen=True)
class FakeRow:
    """What `Witness` looks at of a row. Times in seconds here, in ns there."""

    slot: int = 0
    generation: int = 1
    state: WorkerState = WorkerState.READY
    born: float = 100.0
    beat: float = 0.0
    open: int = 0
    active: int = 0

    @property
    def started(self) -> int:
        return round(self.born * 1e9)

    @property
    def tick(self) -> int:
        return round(self.beat * 1e9)


def witness(**options) -> Witness:
    return Witness(**({"boot_timeout": BOOT, "graceful_timeout": GRACEFUL} | options))


def extensions(one: Witness, stage: Stage, rows_at, begin: float, end: float) -> list[tuple[float, float]]:
    """Seconds since `begin` and what is asked for then, with a look each second."""
    found = []
    now = begin
    while now <= end:
        say = one.tick(stage, rows_at(now), now)
        assert not say.alive
        if say.extend is not None:
            found.append((now - begin, say.extend))
        now += 1.0
    return found


# --- more time ------------------------------------------------------------------------------


def test_a_start_that_is_over_at_once_asks_for_nothing():
    one = witness()
    row = FakeRow(state=WorkerState.BOOTING)
    assert extensions(one, Stage.STARTING, lambda now: [row], 100.0, 104.0) == []
    assert extensions(one, Stage.SERVING, lambda now: [FakeRow()], 105.0, 200.0) == []


def test_a_slow_start_asks_while_a_worker_boots():
    one = witness()
    row = FakeRow(state=WorkerState.BOOTING)
    asked = extensions(one, Stage.STARTING, lambda now: [row], 100.0, 200.0)
    assert [when for when, _ in asked] == [5.0 * n for n in range(1, 13)]
    assert {seconds for when, seconds in asked if when <= BOOT - 10} == {EXTEND_BY}
    # Never much beyond the boot timeout, at which the master itself gives up.
    assert max(when + seconds for when, seconds in asked) == BOOT + EXTEND_EVERY


def test_a_crash_loop_asks_for_nothing():
    def rows(now: float) -> list[FakeRow]:
        # It dies after 3 s, and the next one is there 1 s later.
        return [FakeRow(state=WorkerState.BOOTING, born=100.0 + (now - 100.0) // 4 * 4), FakeRow(slot=1)]

    assert extensions(witness(), Stage.STARTING, rows, 100.0, 400.0) == []


def test_one_that_boots_for_the_first_time_counts_beside_a_crash_loop():
    def rows(now: float) -> list[FakeRow]:
        crashing = FakeRow(state=WorkerState.BOOTING, born=now)
        return [crashing, FakeRow(slot=1, state=WorkerState.BOOTING)][: 2 if now < 120 else 1]

    asked = extensions(witness(), Stage.STARTING, rows, 100.0, 200.0)
    assert [when for when, _ in asked] == [5.0, 10.0, 15.0]


def test_a_rolling_reload_asks_while_each_new_worker_boots_for_the_first_time():
    def rows(now: float) -> list[FakeRow]:
        slot = int((now - 100.0) // 20)
        old = [FakeRow(slot=n) for n in range(4)]
        if slot >= 4:
            return old
        return [*old, FakeRow(slot=slot, generation=2, state=WorkerState.BOOTING, born=100.0 + 20 * slot)]

    asked = extensions(witness(), Stage.RELOADING, rows, 100.0, 300.0)
    assert [when for when, _ in asked] == [5.0 * n for n in range(1, 16)]


def test_attempts_are_counted_anew_in_each_reload():
    one = witness()
    booting = FakeRow(generation=2, state=WorkerState.BOOTING)
    assert extensions(one, Stage.RELOADING, lambda now: [booting], 100.0, 106.0)
    assert extensions(one, Stage.SERVING, lambda now: [FakeRow()], 107.0, 150.0) == []
    again = replace(booting, born=151.0)
    assert extensions(one, Stage.RELOADING, lambda now: [again], 151.0, 157.0)


def test_a_stop_asks_while_what_is_in_flight_gets_less():
    def rows(now: float) -> list[FakeRow]:
        return [FakeRow(open=max(1, 10 - int(now - 100.0)), active=1)]  # the last one does not end

    asked = extensions(witness(graceful_timeout=60.0), Stage.STOPPING, rows, 100.0, 200.0)
    # The last progress is after 9 s: nothing asks for a time later than 15 s after that.
    assert asked == [(5.0, EXTEND_BY), (10.0, 14.0), (15.0, 9.0), (20.0, 4.0)]


def test_a_stop_never_asks_for_much_more_than_the_graceful_timeout():
    def rows(now: float) -> list[FakeRow]:
        return [FakeRow(open=1000 - int(now - 100.0))]

    asked = extensions(witness(), Stage.STOPPING, rows, 100.0, 300.0)
    assert max(when + seconds for when, seconds in asked) == GRACEFUL + EXTEND_EVERY


def test_a_number_that_goes_up_and_down_is_no_progress():
    def rows(now: float) -> list[FakeRow]:
        return [FakeRow(open=5, active=int(now) % 3)]

    asked = extensions(witness(graceful_timeout=600.0), Stage.STOPPING, rows, 100.0, 700.0)
    assert max(when + seconds for when, seconds in asked) <= 2 + EXTEND_BY


def test_the_delay_before_the_drain_is_waited_out():
    def rows(now: float) -> list[FakeRow]:
        return [FakeRow(open=int(now) % 7, active=int(now) % 2)]  # it serves as ever

    asked = extensions(witness(drain_delay=40.0), Stage.STOPPING, rows, 100.0, 200.0)
    assert [when for when, _ in asked][:8] == [5.0 * n for n in range(1, 9)]
    assert max(when + seconds for when, seconds in asked) <= 40.0 + GRACEFUL + EXTEND_EVERY


def test_a_worker_that_leaves_is_progress():
    def rows(now: float) -> list[FakeRow]:
        return [FakeRow(slot=n) for n in range(4 - int(now - 100.0) // 10)]

    asked = extensions(witness(), Stage.STOPPING, rows, 100.0, 140.0)
    assert [when for when, _ in asked] == [5.0, 10.0, 15.0, 20.0, 25.0, 30.0]


# --- alive ----------------------------------------------------------------------------------


def test_nobody_watches_before_it_is_ready_and_after_its_end():
    one = witness(watchdog_interval=10.0)
    rows = [FakeRow(beat=100.0)]
    assert one.tick(Stage.STARTING, rows, 100.0) == Say()
    assert one.tick(Stage.STOPPING, rows, 101.0) == Say()
    assert one.tick(Stage.STOPPING, rows, 104.0) == Say()


def test_alive_is_said_at_the_pace_of_the_watchdog():
    one = witness(watchdog_interval=10.0)
    said = []
    for now in range(100, 150):
        if one.tick(Stage.SERVING, [FakeRow(beat=float(now))], float(now)).alive:
            said.append(now)
        assert one.next_deadline() == said[-1] + 10.0
    assert said == [100, 110, 120, 130, 140]


def test_a_reload_does_not_change_the_pace():
    one = witness(watchdog_interval=10.0)
    rows = [FakeRow(beat=100.0)]
    assert one.tick(Stage.SERVING, rows, 100.0).alive
    assert not one.tick(Stage.RELOADING, rows, 101.0).alive
    assert not one.tick(Stage.SERVING, rows, 102.0).alive
    assert one.tick(Stage.SERVING, [FakeRow(beat=110.0)], 110.0).alive


def test_without_a_watchdog_nothing_is_said():
    one = witness()
    assert one.tick(Stage.SERVING, [FakeRow(beat=100.0)], 100.0) == Say()
    assert one.next_deadline() is None


def test_one_worker_that_turns_is_enough_and_none_is_not():
    one = witness(watchdog_interval=10.0)
    hung = FakeRow(beat=50.0)
    assert one.tick(Stage.SERVING, [hung, FakeRow(slot=1, beat=100.0)], 100.0).alive
    assert not one.tick(Stage.SERVING, [hung, FakeRow(slot=1, beat=100.0)], 110.0).alive
    assert one.next_deadline() == 111.0
    assert not one.tick(Stage.SERVING, [], 111.0).alive
    # One that has been forked and has not turned yet is no sign of life.
    assert not one.tick(Stage.SERVING, [FakeRow(beat=0.0, state=WorkerState.BOOTING)], 112.0).alive
    # As soon as one turns again it is said, not half a period later.
    assert one.tick(Stage.SERVING, [FakeRow(beat=113.0)], 113.0).alive
    assert one.next_deadline() == 123.0


def test_how_fresh_a_heartbeat_must_be():
    assert witness(watchdog_interval=1.0).tick(Stage.SERVING, [FakeRow(beat=100.0)], 100.0 + FRESH).alive
    late = 100.1 + FRESH
    assert not witness(watchdog_interval=1.0).tick(Stage.SERVING, [FakeRow(beat=100.0)], late).alive


@given(st.lists(st.tuples(st.sampled_from(list(Stage)), st.floats(0, 30), st.booleans()), max_size=80))
def test_it_never_says_more_than_it_may(steps):
    """Any stages in any order: not alive without a heartbeat, no time without progress, no busy loop."""
    one = witness(watchdog_interval=10.0)
    now = 1000.0
    last_alive = last_extend = -1e9
    for stage, pause, beats in steps:
        now += pause
        rows = [FakeRow(beat=now if beats else now - 60.0)]
        say = one.tick(stage, rows, now)
        if say.alive:
            assert beats
            assert stage in (Stage.SERVING, Stage.RELOADING)
            last_alive = now
        if say.extend is not None:
            assert stage is Stage.STOPPING  # nobody boots here
            assert 0 < say.extend <= EXTEND_BY
            assert now - last_extend >= EXTEND_EVERY
            last_extend = now
        deadline = one.next_deadline()
        assert deadline is None or deadline > now
        if say.alive:
            assert deadline <= last_alive + 10.0


def test_the_rows_of_a_real_scoreboard():
    board = Scoreboard(2)
    try:
        one = witness(watchdog_interval=10.0)
        board.assign(0, slot=0, generation=1, started=time.monotonic_ns())
        now = time.monotonic()
        assert one.tick(Stage.STARTING, board.rows(), now) == Say()
        assert one.tick(Stage.STARTING, board.rows(), now + 5.0) == Say(extend=EXTEND_BY)
        board.words[board.base(0) + Word.STATE] = WorkerState.READY
        board.words[board.base(0) + Word.TICK] = time.monotonic_ns()
        assert one.tick(Stage.SERVING, board.rows(), now + 4.0) == Say(alive=True)
        assert "serving" in repr(one)
    finally:
        board.close()


@pytest.mark.parametrize("stage", list(Stage))
def test_an_empty_board_is_no_reason_for_anything(stage):
    one = witness(watchdog_interval=10.0)
    assert one.tick(stage, [], 100.0) == Say()
