"""The shared table beyond its words: requests in hand, the application's metrics, and who may die when."""

from __future__ import annotations

import itertools
import os
import random
import signal
import struct
import time
import traceback
from typing import TYPE_CHECKING

import pytest

from prefork.http.server.numbers import InFlight
from prefork.scoreboard import (
    BUCKETS,
    COUNTERS,
    HEADER_WORDS,
    LATENCY_BOUNDS,
    METRIC_BYTES,
    METRIC_WORDS,
    NOT_ACCEPTING,
    RECORD,
    RECORDS,
    SEAT_WORDS,
    Scoreboard,
    Word,
    WorkerState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard(4)
    yield board
    board.close()


def in_child(function: Callable[[], None]) -> int:
    """Fork a child that runs `function` until it returns or is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def seat_records(board: Scoreboard, seat: int) -> InFlight:
    records = [board.record(seat, number) for number in range(RECORDS)]
    return InFlight(RECORD.pack_into, board.memory, board.words, records)


# --- the layout -----------------------------------------------------------------------------


def test_words_fit_their_seat_and_do_not_overlap() -> None:
    last = Word.BUCKET + BUCKETS
    assert last <= SEAT_WORDS
    assert RECORD.size == 128
    assert SEAT_WORDS % 16 == 0  # pairs of cache lines: the processor fetches two at a time
    assert HEADER_WORDS % 16 == 0
    assert max(word for word in Word) == Word.BUCKET
    assert len(set(COUNTERS)) == len(COUNTERS)
    assert not set(COUNTERS) & {
        Word.OPEN,
        Word.ACTIVE,
        Word.TICK,
        Word.LOAD,
        Word.CLIENT_IDLE,
        Word.METRIC_WORDS,
    }


def test_bounds_are_ascending_and_close_enough() -> None:
    assert LATENCY_BOUNDS[0] == 0.0001
    assert LATENCY_BOUNDS[-1] == 60.0
    assert all(1.2 < high / low < 1.51 for low, high in itertools.pairwise(LATENCY_BOUNDS))


def test_no_seat_touches_another_one(board: Scoreboard) -> None:
    """Everything that the owner of a seat may write to is its own."""
    before = {seat: everything(board, seat) for seat in range(4)}
    base = board.base(1)
    for word in range(SEAT_WORDS):
        board.words[base + word] = 2**64 - 1
    for number in range(RECORDS):
        RECORD.pack_into(board.memory, board.record(1, number), 1.5, b"x" * 200, 1.5)
    board.words[base + Word.METRIC_WORDS] = board.words[base + Word.METRIC_BYTES] = 0
    area = board.metrics(1)
    area.declare({"name": "x" * 1000}, METRIC_WORDS)
    for index in range(METRIC_WORDS):
        area.values[index] = 1.0
    assert everything(board, 1) != before[1]
    for seat in (0, 2, 3):
        assert everything(board, seat) == before[seat]


def everything(board: Scoreboard, seat: int) -> tuple[object, ...]:
    at = board.record(seat, 0)
    area = board.metrics(seat)
    return (
        board.snapshot(seat),
        bytes(board.memory[at : at + RECORDS * RECORD.size]),
        area.values.tolist(),
        area.declared(),
    )


def test_what_is_not_used_takes_no_memory() -> None:
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[2]) * 4096  # shared pages

    before = resident()
    board = Scoreboard(512)  # 75 MiB of addresses
    board.assign(3, slot=0, generation=1, started=1)
    assert resident() - before < 2 << 20
    board.close()


def test_clear_leaves_nothing(board: Scoreboard) -> None:
    fresh = everything(board, 2)
    board.assign(2, slot=1, generation=3, started=5)
    for word in COUNTERS:
        board.words[board.base(2) + word] = 9
    records = seat_records(board, 2)
    RECORD.pack_into(board.memory, records.at, 1.0, b"GET / HTTP/1.1\r\n\r\n", 1.0)
    board.metrics(2).declare({"a": 1}, 3)
    board.metrics(2).values[2] = 7.0
    board.clear(2)
    assert board.in_flight(2) == []
    assert board.metrics(2).declared() == []
    after = everything(board, 2)
    assert (after[0], after[2], after[3]) == (fresh[0], fresh[2], fresh[3])
    assert board.words[board.base(2) + Word.LOAD] == NOT_ACCEPTING


def test_a_row_has_the_new_figures(board: Scoreboard) -> None:
    board.assign(0, slot=0, generation=1, started=1)
    for word, value in ((Word.LAG, 11), (Word.LAG_MAX, 12), (Word.IN_FLIGHT, 13), (Word.RSS, 14)):
        board.words[board.base(0) + word] = value
    row = board.row(0)
    assert (row.state, row.lag, row.lag_max, row.in_flight, row.rss) == (WorkerState.BOOTING, 11, 12, 13, 14)


# --- requests in hand -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"GET /report?full=1 HTTP/1.1\r\nHost: a\r\n\r\n", "GET /report?full=1"),
        (b"GET / HTTP/1.0\r\n\r\n", "GET /"),
        (b"GET /" + b"x" * 200 + b" HTTP/1.1\r\n\r\n", "GET /" + "x" * 107 + "..."),
        (b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n", r"GET /\xc3\xa4"),
        (b"GET /\x1b[2J HTTP/1.1\r\n\r\n", r"GET /\x1b[2J"),
        (b"something\r\n", "something"),
    ],
)
def test_a_record_says_method_and_target(board: Scoreboard, head: bytes, text: str) -> None:
    records = seat_records(board, 1)
    RECORD.pack_into(board.memory, records.at, 12.5, head, 12.5)
    assert [(each.started, each.request) for each in board.in_flight(1)] == [(12.5, text)]
    assert board.in_flight(0) == board.in_flight(2) == []


def test_in_hand_is_for_people(board: Scoreboard) -> None:
    records = seat_records(board, 1)
    began = time.monotonic() - 41
    RECORD.pack_into(board.memory, records.at, began, b"GET /report HTTP/1.1\r\n", began)
    (text,) = board.in_hand(1)
    assert text.startswith("GET /report (41.")


def test_those_that_wait_keep_their_record_and_the_oldest_comes_first(board: Scoreboard) -> None:
    records = seat_records(board, 1)

    def note(started: float, name: str) -> None:
        records.pack(records.memory, records.at, started, f"GET /{name} HTTP/1.1\r\n".encode(), started)

    note(1.0, "first")
    first = records.keep()
    note(2.0, "over")
    note(3.0, "second")
    second = records.keep()
    assert [each.request for each in board.in_flight(1)] == ["GET /first", "GET /second"]
    records.forget(first)
    assert [each.request for each in board.in_flight(1)] == ["GET /second"]
    note(4.0, "third")
    assert [each.request for each in board.in_flight(1)] == ["GET /second", "GET /third"]
    records.words[records.word] = 0  # its handler did not wait
    records.forget(second)
    assert board.in_flight(1) == []


def test_more_than_there_are_records(board: Scoreboard) -> None:
    records = seat_records(board, 1)
    kept = []
    for number in range(RECORDS + 20):
        records.pack(records.memory, records.at, float(number + 1), b"GET / HTTP/1.1\r\n", float(number + 1))
        kept.append(records.keep())
    # One stays for the request that runs now; the others go to those that came first.
    assert all(kept[: RECORDS - 1])
    assert not any(kept[RECORDS - 1 :])
    assert len(board.in_flight(1)) == RECORDS
    for record in filter(None, kept):
        records.forget(record)
    records.words[records.word] = 0
    assert board.in_flight(1) == []
    assert records.keep() != 0  # they are to be had again


def test_a_record_that_was_not_finished_is_left_out(board: Scoreboard) -> None:
    """The writer died, or is stopped, in the middle of it."""
    at = board.record(1, 0)
    whole = RECORD.pack(7.25, b"GET /whole HTTP/1.1\r\n", 7.25)
    for cut in range(1, RECORD.size):
        board.memory[at : at + RECORD.size] = whole[:cut] + bytes(RECORD.size - cut)
        found = board.in_flight(1)
        # The last bytes of this number are zero anyway: then the record is whole.
        assert found == [] or (found[0].request == "GET /whole" and cut >= RECORD.size - 8)


def test_a_reader_never_sees_half_a_record(board: Scoreboard) -> None:
    """A process writes as fast as it can while this one reads: every record that is told agrees in itself."""
    record = board.record(1, 0)

    def write() -> None:
        pack, memory, number = RECORD.pack_into, board.memory, 0
        heads = [b"GET /%d/%s HTTP/1.1\r\n\r\n" % (size, b"x" * size) for size in range(90)]
        while True:
            number = (number + 1) % 90
            started = float(number + 1)
            pack(memory, record, started, heads[number], started)
            if not number % 7:
                board.words[record >> 3] = 0

    pid = in_child(write)
    try:
        seen = set()
        deadline = time.monotonic() + 0.7
        while time.monotonic() < deadline:
            for each in board.in_flight(1):
                number = int(each.started) - 1
                assert each.request == f"GET /{number}/{'x' * number}"
                seen.add(number)
            if not random.randrange(50):
                # Wherever it stands.
                os.kill(pid, signal.SIGSTOP)
                board.in_flight(1)
                os.kill(pid, signal.SIGCONT)
        assert len(seen) > 20, "it has hardly been read at all"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for each in board.in_flight(1):  # what the dead have left
        assert each.request == f"GET /{int(each.started) - 1}/{'x' * (int(each.started) - 1)}"


def test_words_are_never_torn(board: Scoreboard) -> None:
    at = board.base(1) + Word.SENT
    patterns = (0, 2**64 - 1, 0x5555555555555555, 0xAAAAAAAAAAAAAAAA)
    values = board.metrics(1).values
    floats = (0.0, 1.0e300, -3.14159e-200)

    def write() -> None:
        words = board.words
        while True:
            for pattern in patterns:
                words[at] = pattern
            for number in floats:
                values[7] = number

    pid = in_child(write)
    try:
        deadline = time.monotonic() + 0.4
        while time.monotonic() < deadline:
            assert board.words[at] in patterns
            assert values[7] in floats
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# --- the application's metrics --------------------------------------------------------------


def test_lines_and_values_of_another_process(board: Scoreboard) -> None:
    def work() -> None:
        area = board.metrics(2)
        assert area.declare({"metric": "a", "help": "ä\n"}, 0) == 0
        assert area.declare({"of": "a"}, 1) == 0
        assert area.declare({"of": "a", "values": ["x"]}, 3) == 1
        area.values[0] = 1.5
        area.values[3] = float("inf")

    assert os.waitpid(in_child(work), 0)[1] == 0
    area = board.metrics(2)
    assert area.declared() == [
        {"metric": "a", "help": "ä\n", "at": 0},
        {"of": "a", "at": 0},
        {"of": "a", "values": ["x"], "at": 1},
    ]
    assert area.values[:4].tolist() == [1.5, 0.0, 0.0, float("inf")]
    assert repr(area).startswith("<MetricArea 4 values, ")


def test_there_is_an_end_of_room(board: Scoreboard) -> None:
    area = board.metrics(0)
    with pytest.raises(ValueError, match=f"no room for {METRIC_WORDS + 1} more values, 0 of {METRIC_WORDS}"):
        area.declare({}, METRIC_WORDS + 1)
    assert area.declare({}, METRIC_WORDS) == 0
    with pytest.raises(ValueError, match="no room for 1 more values"):
        area.declare({}, 1)
    with pytest.raises(ValueError, match="more bytes"):
        area.declare({"x": "y" * METRIC_BYTES}, 0)
    assert area.declared() == [{"at": 0}]


def test_a_line_is_there_when_its_length_is(board: Scoreboard) -> None:
    """A reader that looks all the time sees whole lines, each with what was declared before it."""

    def write() -> None:
        while True:
            area = board.metrics(1)
            for number in range(200):
                area.declare({"of": f"metric{number}", "values": ["ü" * (number % 40)]}, 1)
            area.clear()

    pid = in_child(write)
    try:
        most = 0
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            area = board.metrics(1)
            version = area.version
            lines = area.declared()
            if area.version >= version:  # else it was cleared meanwhile, which only the master does
                most = max(most, len(lines))
                assert all(line["of"] == f"metric{line['at']}" for line in lines if line["at"] < 200)
        assert most > 20
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_garbage_in_the_names_harms_nobody(board: Scoreboard) -> None:
    area = board.metrics(1)
    area.declare({"good": 1}, 0)
    base = board.base(1)
    garbage = b"\xff\xfe{\n[1]\n" + struct.pack("4Q", *range(4)) + b"\n"
    at = board.words[base + Word.METRIC_BYTES]
    names = area._names
    names[at : at + len(garbage)] = garbage
    board.words[base + Word.METRIC_BYTES] = 2**63
    assert board.metrics(1).declared()[0] == {"good": 1, "at": 0}
    board.words[base + Word.METRIC_WORDS] = 2**63
    board.clear(1)
    assert board.metrics(1).declared() == []
