"""The words between master and worker, and the shared table."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import ipc
from prefork.ipc import (
    MAX_MESSAGE,
    NOT_ACCEPTING,
    Control,
    Drain,
    Draining,
    ExitCode,
    Failed,
    MessageError,
    Ready,
    Scoreboard,
    Word,
    WorkerState,
)


@pytest.fixture
def pair():
    ends = Control.pair()
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def board():
    board = Scoreboard(4)
    yield board
    board.close()


def test_exit_codes_are_the_documented_ones():
    assert [(code.name, code.value) for code in ExitCode] == [
        ("CLEAN", 0),
        ("INTERNAL", 1),
        ("USAGE", 2),
        ("BOOT", 3),
        ("APP", 4),
        ("CRASH_BUDGET", 5),
        ("BIND", 6),
        ("CUT", 7),
    ]


# --- messages -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [Ready(), Failed(4, "no\nmodule"), Draining("SIGTERM"), Drain(30.0), Drain(0.0), Failed(3, "\udcff")],
)
def test_a_message_arrives_as_it_was_sent(pair, message):
    master, worker = pair
    assert worker.send(message)
    assert master.receive() == message


def test_messages_keep_their_borders_and_their_order(pair):
    master, worker = pair
    for _ in range(3):
        worker.send(Ready())
    worker.send(Failed(3, "x" * 5000))
    assert [master.receive() for _ in range(4)] == [Ready()] * 3 + [Failed(3, "x" * 5000)]


@given(st.text(max_size=200), st.sampled_from([1, 100, 3000]))
def test_every_text_fits_and_keeps_both_ends(text, times):
    text *= times
    data = ipc.encode(Failed(4, text))
    assert len(data) <= MAX_MESSAGE
    back = ipc.decode(data)
    assert isinstance(back, Failed)
    assert back.text[:100] == text[:100]
    assert back.text[-100:] == text[-100:]


def test_the_longest_text_goes_through_a_real_socket(pair):
    master, worker = pair
    # A control character becomes six bytes of JSON, the most that there are.
    assert worker.send(Failed(4, "\x01" * 100_000))
    message = master.receive()
    assert isinstance(message, Failed)
    assert "characters left out" in message.text


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff", "not JSON"),
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "unknown type None"),
        (b'{"type": ["ready"]}', "unknown type"),
        (b'{"type": "reload"}', "unknown type 'reload'"),
        (b'{"type": "ready", "pid": 1}', "wants"),
        (b'{"type": "failed", "code": 1}', "wants"),
        (b'{"type": "failed", "code": "1", "text": "x"}', "code is '1'"),
        (b'{"type": "failed", "code": true, "text": "x"}', "code is True"),
        (b'{"type": "drain", "timeout": null}', "timeout is None"),
    ],
)
def test_what_is_no_message_is_refused(data, why):
    with pytest.raises(MessageError, match=why):
        ipc.decode(data)


@given(st.binary())
def test_garbage_is_a_message_error_and_nothing_else(data):
    try:
        ipc.decode(data)
    except MessageError:
        pass


def test_the_end_of_the_other_side_is_none(pair):
    master, worker = pair
    worker.send(Draining("bye"))
    worker.close()
    assert master.receive() == Draining("bye")
    assert master.receive() is None
    assert not master.send(Ready())


def test_the_end_of_a_peer_that_did_not_read_is_none(pair):
    master, worker = pair
    master.send(Drain(1.0))
    worker.close()
    while master.receive() is not None:
        pass


def test_the_master_never_blocks(pair):
    master, _ = pair
    with pytest.raises(BlockingIOError):
        master.receive()
    # A worker that does not read does not stop the master.
    while master.send(Drain(1.0)):
        pass


def test_no_program_inherits_the_socket(pair):
    code = "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"
    out = subprocess.run(
        [sys.executable, "-c", code], close_fds=False, capture_output=True, text=True, check=True
    )
    assert not {pair[0].fileno(), pair[1].fileno()} & set(eval(out.stdout))


# --- scoreboard -----------------------------------------------------------------------------


def test_a_new_board_is_empty(board):
    assert list(board.rows()) == []
    assert all(not board.row(seat).accepting for seat in range(4))
    assert repr(board) == "<Scoreboard 0 of 4 seats taken>"


def test_a_seat_from_birth_to_death(board):
    board.assign(2, slot=1, generation=7, started=123)
    row = board.row(2)
    assert (row.seat, row.slot, row.generation, row.started) == (2, 1, 7, 123)
    assert row.state is WorkerState.BOOTING
    assert not row.accepting
    board.words[board.base(2) + Word.OPEN] = 5
    board.words[board.base(2) + Word.LOAD] = 5
    assert [r.open for r in board.rows()] == [5]
    assert board.row(2).accepting
    board.clear(2)
    assert list(board.rows()) == []
    assert board.words[board.base(2) + Word.LOAD] == NOT_ACCEPTING


def test_seats_do_not_touch(board):
    for seat in range(4):
        board.assign(seat, slot=seat, generation=1, started=seat)
    board.clear(1)
    assert [row.seat for row in board.rows()] == [0, 2, 3]
    assert [row.started for row in board.rows()] == [0, 2, 3]


def test_a_column_is_one_word_of_all_seats(board):
    for seat in range(4):
        board.words[board.base(seat) + Word.OPEN] = seat * 10
    column = board.column(Word.OPEN)
    assert (list(column), min(column), sum(column)) == ([0, 10, 20, 30], 0, 60)
    board.words[board.base(0) + Word.OPEN] = 99
    assert column[0] == 99


@pytest.mark.parametrize("seat", [-1, 4])
def test_there_is_no_such_seat(board, seat):
    with pytest.raises(IndexError):
        board.row(seat)


def test_a_board_needs_a_seat():
    with pytest.raises(ValueError, match="at least one"):
        Scoreboard(0)


def test_a_mapping_is_checked_before_it_is_believed(board):
    assert Scoreboard.check(board.words) == 4
    for word, value, why in [
        (0, 1, "not a prefork"),
        (1, 99, "version 99"),
        (2, 5, "cut short"),
        (3, 8, "8 words"),
    ]:
        before = board.words[word]
        board.words[word] = value
        with pytest.raises(ValueError, match=why):
            Scoreboard.check(board.words)
        board.words[word] = before
    with pytest.raises(ValueError, match="not a prefork"):
        Scoreboard.check(memoryview(b"\0" * 16).cast("Q"))


def test_what_a_child_writes_the_parent_reads_also_after_its_death(board):
    board.assign(3, slot=3, generation=1, started=1)
    pid = os.fork()
    if pid == 0:
        try:
            board.words[board.base(3) + Word.PID] = os.getpid()
            board.words[board.base(3) + Word.REQUESTS] = 2**64 - 2
            board.words[board.base(3) + Word.STATE] = WorkerState.READY
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    row = board.row(3)
    assert (row.pid, row.requests, row.state) == (pid, 2**64 - 2, WorkerState.READY)


def test_it_has_no_descriptor():
    before = os.listdir("/proc/self/fd")
    board = Scoreboard(64)
    assert os.listdir("/proc/self/fd") == before
    board.close()


def test_control_works_with_selectors_and_says_what_it_is(pair):
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(pair[0], selectors.EVENT_READ)
        assert selector.select(0) == []
        pair[1].send(Ready())
        assert len(selector.select(0)) == 1
    assert repr(pair[0]) == f"<Control fd {pair[0].fileno()}>"
    with socket.socket(fileno=os.dup(pair[0].fileno())) as sock:
        assert sock.type == socket.SOCK_SEQPACKET
