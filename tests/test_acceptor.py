"""The accept gate: a scoreboard of straw, a clock that stands, and no connection.

Then a machine of many workers and one queue, in which every worker follows its gate: the
laws are that the load stays level and that no connection waits for ever.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.ipc import NOT_ACCEPTING, Control, Place, Scoreboard, Word, WorkerState
from prefork.workers.acceptor import (
    CAP_PAUSE,
    FREE_FOR,
    PATIENCE,
    PRESSURE,
    STALE,
    STEP_BACK,
    AcceptGate,
    Descriptors,
)
from prefork.workers.board import Seat

MS = 1_000_000


class Crew:
    """Workers that share a scoreboard and a clock."""

    def __init__(self, count: int, *, queue=(), descriptors=None) -> None:
        self.now = 10_000 * MS
        self.board = Scoreboard(count * 2)
        self.control = Control.pair()
        self.later: list = []
        self.seats, self.gates = [], []
        for number in range(count):
            self.board.assign(number, slot=number, generation=1, started=self.now)
            place = Place(number, number, 1, self.control[1], self.board)
            seat = Seat(place, clock=lambda: self.now)
            seat.ready()
            self.seats.append(seat)
            self.gates.append(
                AcceptGate(
                    seat,
                    self.board,
                    queue,
                    descriptors,
                    call_soon=self.later.append,
                    clock=lambda: self.now,
                )
            )

    def open(self, *counts: int) -> Crew:
        for seat, count in zip(self.seats, counts, strict=True):
            seat.open_changed(count)
        return self

    def turn(self) -> None:
        """The end of a turn of the loop: what was granted is a connection now, or nothing."""
        later, self.later[:] = list(self.later), []
        for callback in later:
            callback()

    def tick(self, *numbers: int) -> None:
        for number in numbers:
            self.seats[number].tick(0, 0)

    def close(self) -> None:
        self.board.close()
        for end in self.control:
            end.close()


@pytest.fixture
def crew():
    made = []

    def make(count: int, **options) -> Crew:
        made.append(Crew(count, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- who goes -------------------------------------------------------------------------------


@pytest.mark.parametrize("loads", [(0, 0, 0), (1, 0, 0), (5, 5, 5), (6, 5, 5), (100, 99, 100)])
def test_who_has_at_most_one_more_than_the_least_goes(crew, loads):
    assert crew(3).open(*loads).gates[0].ask() == 0.0


@pytest.mark.parametrize("loads", [(2, 0, 0), (7, 5, 9), (100, 0, 100)])
def test_who_has_two_more_steps_back(crew, loads):
    assert crew(3).open(*loads).gates[0].ask() == STEP_BACK


def test_a_worker_alone_never_waits(crew):
    assert crew(1).open(1000).gates[0].ask() == 0.0


def test_what_was_granted_counts_until_the_turn_is_over(crew):
    c = crew(2)
    gate = c.gates[0]
    assert [gate.ask() for _ in range(3)] == [0.0, 0.0, STEP_BACK]
    assert c.board.words[c.seats[0].base + Word.LOAD] == 2
    # Another process was faster: nothing came of it.
    c.turn()
    assert c.board.words[c.seats[0].base + Word.LOAD] == 0
    assert gate.ask() == 0.0


def test_a_grant_that_becomes_a_connection_counts_once(crew):
    c = crew(2)
    c.gates[0].ask()
    c.gates[0].ask()
    c.seats[0].open_changed(1)
    assert c.board.words[c.seats[0].base + Word.LOAD] == 2
    c.seats[0].open_changed(2)
    assert c.board.words[c.seats[0].base + Word.LOAD] == 2
    c.turn()
    assert c.board.row(0).open == 2
    assert c.board.row(0).accepted == 2


@pytest.mark.parametrize(
    "leave",
    [
        lambda c: c.seats[1].drain(),
        lambda c: c.seats[1].accept(False),
        lambda c: c.board.clear(1),
        lambda c: c.board.assign(1, slot=1, generation=2, started=0),
    ],
    ids=["draining", "out of descriptors", "dead", "booting"],
)
def test_who_does_not_accept_does_not_count(crew, leave):
    c = crew(2).open(9, 0)
    leave(c)
    assert c.gates[0].ask() == 0.0


def test_whose_loop_has_not_turned_for_long_does_not_count(crew):
    c = crew(2).open(9, 0)
    c.now += STALE + 1
    assert c.gates[0].ask() == 0.0
    c.tick(1)
    assert c.gates[0].ask() == STEP_BACK


# --- who does not come ----------------------------------------------------------------------


def asks(c: Crew, number: int, seconds: float, *, ticking=()) -> float:
    """Ask every 3 ms for so long; returns the time until the gate opens."""
    begin = c.now
    while (pause := c.gates[number].ask()) and c.now - begin < seconds * 1e9:
        c.now += int(pause * 1e9)
        c.tick(*ticking)
        c.turn()
    return (c.now - begin) / 1e9


def test_a_sibling_that_stands_still_is_waited_for_once(crew):
    c = crew(2).open(9, 0)
    assert PATIENCE / 1e9 <= asks(c, 0, 1) <= PATIENCE / 1e9 + STEP_BACK
    for _ in range(5):
        c.now += 100 * MS
        assert c.gates[0].ask() == 0.0
    c.tick(1)
    assert c.gates[0].ask() == STEP_BACK


def test_all_who_wait_find_out_at_the_same_time(crew):
    """Or the first to give up would take all connections, because the others see that somebody comes."""
    c = crew(4).open(9, 9, 9, 0)
    for _ in range(20):
        for number in (0, 1, 2):
            c.gates[number].ask()
        c.now += 3 * MS
    taken = Counter()
    rng = random.Random(1)
    for _ in range(30):
        for number in rng.sample(range(3), 3):
            if c.gates[number].ask() == 0.0:
                taken[number] += 1
                c.seats[number].open_changed(c.seats[number].open + 1)
                c.turn()
                break
        c.now += 10 * MS
    assert max(taken.values()) - min(taken.values()) <= 2


def test_a_sibling_that_ticks_but_does_not_accept_does_not_keep_a_connection_waiting(crew):
    c = crew(2).open(9, 0)
    assert asks(c, 0, 1, ticking=[1]) <= PATIENCE / 1e9 + STEP_BACK
    # The longer it goes on, the shorter the wait.
    waits = [asks(c, 0, 1, ticking=[1]) for _ in range(6)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] <= 2 * STEP_BACK


def test_patience_returns_when_somebody_comes(crew):
    c = crew(2).open(9, 0)
    for _ in range(6):
        asks(c, 0, 1, ticking=[1])
    c.seats[1].open_changed(1)
    assert asks(c, 0, 1, ticking=[1]) >= PATIENCE / 1e9


def test_a_rare_connection_is_not_taken_for_one_that_waits_long(crew):
    c = crew(2).open(9, 0)
    for _ in range(50):
        # A moment later it is gone: the sibling has it, and it has gone again.
        assert c.gates[0].ask() == STEP_BACK
        c.seats[1].open_changed(1)
        c.seats[1].open_changed(0)
        c.now += 30 * MS


# --- when those who accept are too few ------------------------------------------------------


class Queue:
    """A listening socket with a known number of connections in its queue."""

    family = socket.AF_INET
    waiting = 0

    def getsockopt(self, level, option, size):
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return self.waiting.to_bytes(4, "little").rjust(size, b"\0")


def test_a_queue_that_stays_long_is_everybodys(crew):
    queue = Queue()
    c = crew(2, queue=[queue]).open(100, 0)
    queue.waiting = 20
    looks = 0
    while c.gates[0].ask():
        # The sibling works as hard as it can.
        looks += 1
        c.seats[1].open_changed(1)
        c.seats[1].open_changed(0)
        c.tick(1)
        c.now += 3 * MS
        assert looks < 1000
    assert looks == PRESSURE - 1
    for _ in range(100):
        c.now += 5 * MS
        assert c.gates[0].ask() == 0.0
        c.turn()
    c.now += FREE_FOR
    c.tick(1)
    assert c.gates[0].ask() == STEP_BACK


def test_a_queue_that_is_worked_off_is_left_alone(crew):
    queue = Queue()
    c = crew(2, queue=[queue]).open(100, 0)
    for look in range(1000):
        # Mostly one connection, which is on its way to the sibling; now and then two.
        queue.waiting = 2 if look % 3 == 0 else 1
        assert c.gates[0].ask() == STEP_BACK
        c.seats[1].open_changed(1)
        c.seats[1].open_changed(0)
        c.tick(1)
        c.now += 3 * MS


def test_the_length_of_a_real_queue():
    with socket.create_server(("127.0.0.1", 0)) as listener, Scoreboard_of_one() as (seat, board):
        gate = AcceptGate(seat, board, [listener], None, call_soon=lambda f: None)
        assert gate._waiting() == 0
        clients = [socket.create_connection(listener.getsockname(), 5) for _ in range(3)]
        assert gate._waiting() == 3
        listener.accept()[0].close()
        assert gate._waiting() == 2
        for client in clients:
            client.close()


class Scoreboard_of_one:
    def __enter__(self):
        self.board = Scoreboard(2)
        self.control = Control.pair()
        return Seat(Place(0, 0, 1, self.control[1], self.board)), self.board

    def __exit__(self, *exc):
        self.board.close()
        for end in self.control:
            end.close()


# --- descriptors ----------------------------------------------------------------------------


def test_descriptors_are_left_until_the_reserve():
    probe = os.open("/dev/null", os.O_RDONLY)
    lowest = os.dup(probe)
    os.close(lowest)
    try:
        assert Descriptors(probe, limit=lowest + 5, reserve=4).left()
        assert not Descriptors(probe, limit=lowest + 4, reserve=4).left()
        # The default reserve: a tenth of a small limit, 64 of a large one.
        assert not Descriptors(probe, limit=lowest + 1).left()
        assert Descriptors(probe).left()
    finally:
        os.close(probe)


def test_most_calls_do_not_ask_the_kernel(monkeypatch):
    calls = []
    real = os.dup
    monkeypatch.setattr(os, "dup", lambda fd: calls.append(fd) or real(fd))
    descriptors = Descriptors(0, limit=20_000)
    for _ in range(4_000):
        assert descriptors.left()
    assert len(calls) == 1


def test_out_of_descriptors_altogether(monkeypatch):
    def dup(fd):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", dup)
    assert not Descriptors(0).left()


def test_at_the_cap_the_queue_is_left_to_others(crew):
    class Few:
        some = False

        def left(self):
            return self.some

    few = Few()
    c = crew(2, descriptors=few).open(0, 9)
    assert c.gates[0].ask() == CAP_PAUSE
    assert not c.board.row(0).accepting
    assert "capped" in repr(c.gates[0])
    # The other one, which has more, does not wait for it.
    assert c.gates[1]._comes(c.seats[0].base + Word.LOAD, c.now)
    assert c.board.words[c.seats[0].base + Word.LOAD] == NOT_ACCEPTING
    few.some = True
    assert c.gates[0].ask() == 0.0
    assert c.board.row(0).accepting


# --- the seat -------------------------------------------------------------------------------


def test_a_seat_from_boot_to_drain(crew):
    c = crew(1)
    c.board.clear(0)
    c.board.assign(0, slot=0, generation=1, started=1)
    seat = Seat(Place(0, 0, 1, c.control[1], c.board), clock=lambda: 77)
    assert c.board.row(0).pid == os.getpid()
    assert c.board.row(0).state is WorkerState.BOOTING
    assert not c.board.row(0).accepting
    seat.ready()
    seat.open_changed(3)
    seat.tick(2, 10)
    row = c.board.row(0)
    assert (row.state, row.open, row.active, row.requests, row.tick) == (WorkerState.READY, 3, 2, 10, 77)
    assert row.accepting
    assert repr(seat) == "<Seat 0 ready 3 open>"
    seat.drain()
    seat.open_changed(2)
    row = c.board.row(0)
    assert (row.state, row.open, row.accepting) == (WorkerState.DRAINING, 2, False)


# --- many workers, one queue ----------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 8),
    connections=st.integers(1, 200),
    batch=st.integers(1, 64),
    stopped=st.integers(0, 1),
    seed=st.integers(0, 10_000),
)
def test_the_load_is_level_and_nobody_waits_for_ever(count, connections, batch, stopped, seed):
    """Connections stay open. Workers wake in any order; one may be stopped all the time."""
    c = Crew(count)
    try:
        rng = random.Random(seed)
        alive = list(range(stopped, count))
        back_at = dict.fromkeys(alive, 0)
        left, queue, begin = connections, 0, c.now
        while left or queue:
            if not queue:
                queue = min(batch, left)
                left -= queue
            for number in rng.sample(alive, len(alive)):
                if back_at[number] > c.now:
                    continue
                for _ in range(8):
                    pause = c.gates[number].ask()
                    if pause:
                        back_at[number] = c.now + int(pause * 1e9)
                        break
                    if not queue:
                        break
                    queue -= 1
                    c.seats[number].open_changed(c.seats[number].open + 1)
                c.turn()
            c.now += 1 * MS
            assert c.now - begin < 60_000 * MS, "a connection waits for ever"
        open_now = [c.seats[number].open for number in alive]
        assert sum(open_now) == connections
        assert max(open_now) - min(open_now) <= 2
    finally:
        c.close()
