"""The console log: nothing a client sends forges a line, and no reader of it can stop the server."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import pty
import re
import socket
import subprocess
import sys
import time
import tty
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import log
from prefork.log import escape, sink

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Stream:
    fd: int

    def fileno(self) -> int:
        return self.fd


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The logger "prefork", as untouched after the test as before it."""
    logger = logging.getLogger("prefork")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield logger
    for handler in [handler for handler in logger.handlers if handler not in handlers]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):  # a test may have closed it
            os.close(fd)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "JOURNAL_STREAM", "TERM"):
        monkeypatch.delenv(name, raising=False)


def fill(fd: int) -> None:
    """Fill the pipe behind `fd`, through a description of its own."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(own, b"#" * 4095 + b"\n")
    os.close(own)


def empty(fd: int) -> str:
    """Everything in the pipe now."""
    os.set_blocking(fd, False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(fd, 1 << 20):
            data += chunk
    os.set_blocking(fd, True)
    return data.decode()


# --- console --------------------------------------------------------------------------------

HEAD = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} \[{os.getpid()}\] "


def test_a_record_is_one_line_with_time_pid_and_level(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    log.setup("info", "console", Stream(pipe[1]))
    logging.getLogger("prefork.master").info("serving %s", "app:mux")
    logging.getLogger("prefork.master").debug("not this one")
    logger.error("bad")
    assert re.fullmatch(HEAD + "info     serving app:mux\n" + HEAD + "error    bad\n", empty(pipe[0]))


def test_setup_leaves_other_loggers_alone_and_replaces_its_own_handler(
    logger: logging.Logger, pipe: tuple[int, int]
) -> None:
    root = logging.getLogger().handlers[:]
    log.setup("warning", "console", Stream(pipe[1]))
    log.setup("debug", "console", Stream(pipe[1]))
    logger.debug("once")
    assert empty(pipe[0]).count("once") == 1
    assert logging.getLogger().handlers == root


def test_a_line_cannot_be_forged(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    log.setup("info", "console", Stream(pipe[1]))
    evil = "/x\n2026-11-23 00:00:00.000 [1] error    forged\r\x1b[2J\x85\u2028\u202e\udcff\x00é"
    logger.info("GET %s", evil)
    line = empty(pipe[0])
    assert line.splitlines() == [line.rstrip("\n")]
    shown = r"\x1b[2J\x85\u2028\u202e\udcff\x00é"
    assert line.endswith(rf"GET /x\n2026-11-23 00:00:00.000 [1] error    forged\r{shown}" + "\n")


@given(st.text())
def test_printable_is_printable_and_keeps_what_is(text: str) -> None:
    assert log.printable(text).isprintable()
    if text.isprintable():
        assert log.printable(text) == text


def test_a_traceback_is_indented_and_escaped(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    log.setup("info", "console", Stream(pipe[1]))
    try:
        raise ValueError("first\n2026-11-23 00:00:00.000 [1] error    forged\x1b[2J")
    except ValueError:
        logger.exception("handler of %s failed", "GET /x")
    first, *rest = empty(pipe[0]).splitlines()
    assert re.fullmatch(HEAD + "error    handler of GET /x failed", first)
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == r"    2026-11-23 00:00:00.000 [1] error    forged\x1b[2J"
    assert all(line.startswith("    ") for line in rest)


def test_a_wrong_log_call_is_told_and_harmless(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    log.setup("info", "console", Stream(pipe[1]))
    logger.info("%d items", "three")
    assert "test_log.py:" in (text := empty(pipe[0]))
    assert "this log record cannot be shown: TypeError(" in text


def test_colours_only_on_a_terminal_that_wants_them(
    logger: logging.Logger, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    try:
        monkeypatch.setenv("TERM", "xterm")
        log.setup("info", "console", Stream(slave))
        logger.warning("colour")
        assert "\x1b[33mwarning \x1b[0m colour" in os.read(master, 1000).decode()
        monkeypatch.setenv("NO_COLOR", "1")
        log.setup("info", "console", Stream(slave))
        logger.warning("none")
        assert "\x1b" not in os.read(master, 1000).decode()
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("TERM", "dumb")
        log.setup("info", "console", Stream(slave))
        logger.warning("dumb")
        assert "\x1b" not in os.read(master, 1000).decode()
    finally:
        os.close(master)
        os.close(slave)
    log.setup("info", "console", Stream(pipe[1]))
    logger.critical("plain")
    monkeypatch.setenv("FORCE_COLOR", "1")
    log.setup("info", "console", Stream(pipe[1]))
    logger.critical("forced")
    plain, forced = empty(pipe[0]).splitlines()
    assert "\x1b" not in plain
    assert "\x1b[31;1mcritical\x1b[0m forced" in forced


def test_journal_lines_have_a_priority_each_and_no_time(
    logger: logging.Logger, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(pipe[1])
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log.setup("debug", "console", Stream(pipe[1]))
    logger.debug("d")
    logger.info("i")
    logger.warning("w")
    try:
        raise OSError("two\nlines")
    except OSError:
        logger.critical("c", exc_info=True)
    pid = os.getpid()
    debug, info, warning, *critical = empty(pipe[0]).splitlines()
    assert [debug, info, warning] == [f"<7>[{pid}] d", f"<6>[{pid}] i", f"<4>[{pid}] w"]
    assert critical[0] == f"<2>[{pid}] c"
    assert critical[-1] == "<2>    lines"
    assert all(line.startswith("<2>") for line in critical)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
    log.setup("info", "console", Stream(pipe[1]))
    logger.info("another stream")
    assert re.fullmatch(HEAD + "info     another stream\n", empty(pipe[0]))


def test_the_journal_has_json_without_time_behind_the_priority(
    logger: logging.Logger, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(pipe[1])
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log.setup("info", "json", Stream(pipe[1]))
    logger.warning("w\n<0>not an emergency")
    log.setup("info", "logfmt", Stream(pipe[1]))
    logger.error("e")
    json_line, logfmt_line = empty(pipe[0]).splitlines()
    assert json_line.startswith("<4>{")  # journald takes the priority off: MESSAGE= is the object
    assert json.loads(json_line[3:]) == {
        "level": "warning",
        "logger": "prefork",
        "worker": None,
        "pid": os.getpid(),
        "message": "w\n<0>not an emergency",
    }
    assert logfmt_line == f"<3>level=error logger=prefork pid={os.getpid()} message=e"


# --- JSON and logfmt ------------------------------------------------------------------------


def test_json_is_an_object_per_line(
    logger: logging.Logger, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.setup("debug", "json", Stream(pipe[1]))
    before = datetime.now(UTC)
    logging.getLogger("prefork.master").info("serving %s", "app:mux")
    monkeypatch.setattr("prefork.log.origin._worker", 3)
    try:
        raise ValueError('a "quoted"\ntext')
    except ValueError:
        logger.exception("failed", stack_info=True)
    first, second = map(json.loads, empty(pipe[0]).splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first["time"])
    assert before - timedelta(seconds=1) < datetime.fromisoformat(first["time"]) < datetime.now(UTC)
    del first["time"]
    assert first == {
        "level": "info",
        "logger": "prefork.master",
        "worker": None,
        "pid": os.getpid(),
        "message": "serving app:mux",
    }
    assert list(second) == ["time", "level", "logger", "worker", "pid", "message", "exception", "stack"]
    assert (second["level"], second["worker"]) == ("error", 3)
    assert second["exception"].startswith("Traceback (most recent call last):\n")
    assert second["exception"].endswith('ValueError: a "quoted"\ntext')
    assert second["stack"].startswith("Stack (most recent call last):\n")


EVIL = '/x"}\n{"level":"error","message":"forged"}\r\x1b[2J\x7f\x85\u2028\u202e\udcff\x00\ud83d\\é€😀'


def test_json_cannot_be_forged(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    log.setup("info", "json", Stream(pipe[1]))
    logger.info("GET %s", EVIL)
    (line,) = empty(pipe[0]).split("\n")[:-1]
    assert line.isascii()
    assert line.isprintable()
    shown = EVIL.replace("\udcff", "\ufffd").replace("\ud83d", "\ufffd")
    assert json.loads(line)["message"] == "GET " + shown


@given(st.text())
def test_json_string_is_json_and_logfmt_is_one_value(text: str) -> None:
    clean = re.sub("[\ud800-\udfff]", "\ufffd", text)
    line = escape.json_string(text)
    assert json.loads(line) == clean
    assert line.isascii()
    assert line.isprintable()
    value = escape.logfmt_value(text)
    if value.startswith('"'):
        assert json.loads(value) == clean
    else:
        assert value == text
        assert re.fullmatch(r"[!-~]+", value)
        assert not set(value) & set('"=\\ ')


def test_logfmt_has_the_same_pairs(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    log.setup("info", "logfmt", Stream(pipe[1]))
    logger.warning('a "b" c=d\n')
    try:
        raise OSError("x")
    except OSError:
        logger.exception("failed")
    first, second = empty(pipe[0]).splitlines()
    pid = os.getpid()
    time_part, rest = first.split(" ", 1)
    assert re.fullmatch(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time_part)
    assert rest == f'level=warning logger=prefork pid={pid} message="a \\"b\\" c=d\\n"'
    assert ' message=failed exception="Traceback (most recent call last):\\n' in second


@pytest.mark.parametrize("format", ["json", "logfmt"])
def test_a_wrong_log_call_keeps_the_format(
    format: str, logger: logging.Logger, pipe: tuple[int, int]
) -> None:
    log.setup("info", format, Stream(pipe[1]))
    logger.info("%d items", "three")
    line = empty(pipe[0])
    assert line.count("\n") == 1
    assert "this log record cannot be shown: TypeError(" in line
    if format == "json":
        assert json.loads(line)["level"] == "info"


# --- readers that are slow or gone ----------------------------------------------------------


def test_a_stalled_reader_costs_lines_and_they_are_counted(
    logger: logging.Logger, pipe: tuple[int, int]
) -> None:
    log.setup("info", "console", Stream(pipe[1]))
    fill(pipe[1])
    begin = time.monotonic()
    kept = 0
    for number in range(2000):
        logger.info("%d %s", number, "x" * 1000)
    assert time.monotonic() - begin < 5, "a stalled reader is not waited for"
    assert os.get_blocking(pipe[1]), "the flags of a shared descriptor are not ours to change"
    text = empty(pipe[0])
    while not log.flush():
        text += empty(pipe[0])
    text += empty(pipe[0])
    kept = text.count("info     ")
    assert [int(line.split()[4]) for line in text.splitlines() if "info  " in line] == list(range(kept))
    assert 0.9 * sink.BUFFER < kept * 1000 < sink.BUFFER
    logger.info("through")
    logger.info("again")
    assert [line.split("] ", 1)[1] for line in empty(pipe[0]).splitlines()] == [
        "info     through",
        f"warning  {2000 - kept} log lines are lost: what reads it is too slow",
        "info     again",
    ]


def test_lines_wait_for_a_reader_and_are_written_before_the_next(
    logger: logging.Logger, pipe: tuple[int, int]
) -> None:
    log.setup("info", "console", Stream(pipe[1]))
    fill(pipe[1])
    logger.info("one")
    logger.info("two")
    assert not log.flush()
    empty(pipe[0])
    logger.info("three")
    assert [line.split()[-1] for line in empty(pipe[0]).splitlines()] == ["one", "two", "three"]
    assert log.flush()


def test_a_forked_child_does_not_write_what_waits_in_its_parent(
    logger: logging.Logger, pipe: tuple[int, int]
) -> None:
    log.setup("info", "console", Stream(pipe[1]))
    fill(pipe[1])
    logger.info("of the parent")
    empty(pipe[0])
    child = os.fork()
    if child == 0:
        logger.info("of the child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert [line.split()[-1] for line in empty(pipe[0]).splitlines()] == ["child"]
    assert log.flush()
    assert [line.split()[-1] for line in empty(pipe[0]).splitlines()] == ["parent"]


def test_lines_have_their_last_chance_at_the_end_of_the_process() -> None:
    program = (
        "import sys; from prefork import log; import logging; log.setup('info', stream=sys.stdout)\n"
        "for number in range(1000): logging.getLogger('prefork').info('%d %s', number, 'x' * 200)\n"
        "sys.stderr.write('logged'); sys.stderr.flush()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.read(6) == b"logged"  # all of them, though nobody has read a line yet
        numbers = [int(line.split()[4]) for line in process.stdout]
        assert process.wait(30) == 0
    assert numbers == list(range(1000))


def test_a_reader_that_only_lags_loses_nothing(tmp_path: os.PathLike[str]) -> None:
    program = (
        "import sys; from prefork import log; import logging; log.setup('info', stream=sys.stdout)\n"
        "for number in range(5000): logging.getLogger('prefork').info('%d %s', number, 'x' * 100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        numbers = [int(line.split()[4]) for line in process.stdout]
        assert process.wait(30) == 0
    assert numbers == list(range(5000))


def test_a_reader_that_is_gone_is_survived(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    log.setup("info", "console", Stream(pipe[1]))
    os.close(pipe[0])
    logger.info("nobody reads this")


def test_a_closed_descriptor_never_becomes_another_file() -> None:
    fd = fcntl.fcntl(2, fcntl.F_DUPFD, 200)
    os.close(fd)
    sink = log.Sink(fd)
    left, right = socket.socketpair()
    with left, right:
        os.dup2(left.fileno(), fd)  # what accept() would do with the free number
        try:
            assert not sink.write(b"not for clients\n")
            right.setblocking(False)
            with pytest.raises(BlockingIOError):
                right.recv(100)
        finally:
            os.close(fd)
    assert sink.lost == 1


def test_half_a_line_is_finished_before_the_next(pipe: tuple[int, int]) -> None:
    sink = log.Sink(pipe[1])
    long = b"L" * 100_000 + b"\n"  # more than a pipe holds
    assert sink.write(long)
    assert sink.write(b"next\n")
    got = empty(pipe[0])
    assert sink.write(b"last\n")
    got += empty(pipe[0])
    assert got == long.decode() + "next\nlast\n"
    assert sink.lost == 0
    sink.close()


def test_a_line_that_will_never_be_whole_does_not_swallow_the_next(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sink = log.Sink(pipe[1])
    assert sink.write(b"L" * 100_000 + b"\n")
    got = empty(pipe[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert not sink.write(b"lost\n")
    assert (sink.lost, sink.why) == (2, "No space left on device")
    assert sink.write(b"next\n")
    assert (got + empty(pipe[0])).split("\n")[1:] == ["next", ""]
    sink.close()


def test_a_forked_child_does_not_finish_its_parents_line(pipe: tuple[int, int]) -> None:
    sink = log.Sink(pipe[1])
    assert sink.write(b"L" * 100_000 + b"\n")
    empty(pipe[0])
    child = os.fork()
    if child == 0:
        os._exit(0 if sink.write(b"child\n") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert empty(pipe[0]) == "child\n"
    sink.close()


def test_another_users_pipe_is_asked_before_each_write(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patch:  # who gave up root may not open root's pipe again
        patch.setattr(os, "open", refused)
        sink = log.Sink(pipe[1])
    assert sink.write(b"p" * 10_000 + b"\n")
    assert empty(pipe[0]) == "p" * 10_000 + "\n"
    fill(pipe[1])
    assert sink.write(b"waits\n")  # and does not block
    assert not sink.flush()
    empty(pipe[0])
    assert sink.flush()
    assert empty(pipe[0]) == "waits\n"


def test_a_socket_is_written_without_blocking() -> None:
    left, right = socket.socketpair()
    with left, right:
        sink = log.Sink(left.fileno())
        while sink.write(b"x" * 1000 + b"\n"):
            pass
        assert sink.lost == 1
        assert left.getblocking()
        sink.close()


def test_a_terminal_gets_long_records_whole() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    try:
        sink = log.Sink(slave)
        assert sink.write(b"T" * 3000 + b"\n")
        got = b""
        while not got.endswith(b"\n"):
            got += os.read(master, 10_000)
        assert got == b"T" * 3000 + b"\n"
        while sink.write(b"t" * 999 + b"\n"):
            pass  # a terminal halted by Ctrl-S
        assert sink.lost == 1
    finally:
        os.close(master)
        os.close(slave)
