"""Logs: nothing a client sends forges a line, and no reader of the log can stop the server."""

from __future__ import annotations

import contextlib
import fcntl
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
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import log

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Stream:
    fd: int

    def fileno(self) -> int:
        return self.fd


@dataclass
class Record:
    """An AccessRecord."""

    remote_addr: str = "127.0.0.1:53122"
    method: str = "GET"
    target: str = "/ping"
    proto: str = "HTTP/1.1"
    status: int = 200
    bytes_written: int = 4
    start: float = 1763859600.75
    duration: float = 0.000087
    referer: str = ""
    user_agent: str = "curl/8.5"


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
    log.setup("info", Stream(pipe[1]))
    logging.getLogger("prefork.master").info("serving %s", "app:mux")
    logging.getLogger("prefork.master").debug("not this one")
    logger.error("bad")
    assert re.fullmatch(HEAD + "info     serving app:mux\n" + HEAD + "error    bad\n", empty(pipe[0]))


def test_setup_leaves_other_loggers_alone_and_replaces_its_own_handler(
    logger: logging.Logger, pipe: tuple[int, int]
) -> None:
    root = logging.getLogger().handlers[:]
    log.setup("warning", Stream(pipe[1]))
    log.setup("debug", Stream(pipe[1]))
    logger.debug("once")
    assert empty(pipe[0]).count("once") == 1
    assert logging.getLogger().handlers == root


def test_a_line_cannot_be_forged(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    log.setup("info", Stream(pipe[1]))
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
    log.setup("info", Stream(pipe[1]))
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
    log.setup("info", Stream(pipe[1]))
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
        log.setup("info", Stream(slave))
        logger.warning("colour")
        assert "\x1b[33mwarning \x1b[0m colour" in os.read(master, 1000).decode()
        monkeypatch.setenv("NO_COLOR", "1")
        log.setup("info", Stream(slave))
        logger.warning("none")
        assert "\x1b" not in os.read(master, 1000).decode()
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("TERM", "dumb")
        log.setup("info", Stream(slave))
        logger.warning("dumb")
        assert "\x1b" not in os.read(master, 1000).decode()
    finally:
        os.close(master)
        os.close(slave)
    log.setup("info", Stream(pipe[1]))
    logger.critical("plain")
    monkeypatch.setenv("FORCE_COLOR", "1")
    log.setup("info", Stream(pipe[1]))
    logger.critical("forced")
    plain, forced = empty(pipe[0]).splitlines()
    assert "\x1b" not in plain
    assert "\x1b[31;1mcritical\x1b[0m forced" in forced


def test_journal_lines_have_a_priority_each_and_no_time(
    logger: logging.Logger, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(pipe[1])
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log.setup("debug", Stream(pipe[1]))
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
    log.setup("info", Stream(pipe[1]))
    logger.info("another stream")
    assert re.fullmatch(HEAD + "info     another stream\n", empty(pipe[0]))


# --- readers that are slow or gone ----------------------------------------------------------


def test_a_stalled_reader_costs_lines_and_they_are_counted(
    logger: logging.Logger, pipe: tuple[int, int]
) -> None:
    log.setup("info", Stream(pipe[1]))
    fill(pipe[1])
    begin = time.monotonic()
    for number in range(1000):
        logger.info("lost %d", number)
    assert time.monotonic() - begin < 5, "a stalled reader is waited for once, not for every line"
    assert os.get_blocking(pipe[1]), "the flags of a shared descriptor are not ours to change"
    empty(pipe[0])
    logger.info("through")
    logger.info("again")
    assert [line.split("] ", 1)[1] for line in empty(pipe[0]).splitlines()] == [
        "info     through",
        "warning  1000 log lines are lost: what reads this log was too slow or gone",
        "info     again",
    ]


def test_a_reader_that_only_lags_loses_nothing(tmp_path: os.PathLike[str]) -> None:
    program = (
        "import sys; from prefork import log; import logging; log.setup('info', sys.stdout)\n"
        "for number in range(5000): logging.getLogger('prefork').info('%d %s', number, 'x' * 100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        numbers = [int(line.split()[4]) for line in process.stdout]
        assert process.wait(30) == 0
    assert numbers == list(range(5000))


def test_a_reader_that_is_gone_is_survived(logger: logging.Logger, pipe: tuple[int, int]) -> None:
    log.setup("info", Stream(pipe[1]))
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
    assert not sink.write(b"lost\n")
    got = empty(pipe[0])
    assert sink.write(b"next\n")
    got += empty(pipe[0])
    assert got == long.decode() + "next\n"
    assert sink.lost == 1
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
    assert not sink.write(b"lost\n")  # and does not block
    assert sink.lost == 1


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


# --- access log -----------------------------------------------------------------------------

LINE = re.compile(
    r"(?P<host>[!-~]+) - - \[(?P<time>[^]]+)\] "
    r'"(?P<request>(?:[^"\\]|\\x[0-9A-F]{2})*)" (?P<status>\d+) (?P<size>\d+) '
    r'"(?P<referer>(?:[^"\\]|\\x[0-9A-F]{2})*)" "(?P<agent>(?:[^"\\]|\\x[0-9A-F]{2})*)" '
    r"(?P<took>\d+\.\d{6})\n"
)


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("utc")
def test_combined_format_and_duration(pipe: tuple[int, int]) -> None:
    access = log.access_logger(Stream(pipe[1]))
    access(Record())
    access(
        Record(
            start=1763859661.0, target="/", referer="http://a/", status=404, bytes_written=0, duration=12.5
        )
    )
    access.close()
    assert empty(pipe[0]) == (
        '127.0.0.1 - - [23/Nov/2025:01:00:00 +0000] "GET /ping HTTP/1.1" 200 4 "-" "curl/8.5" 0.000087\n'
        '127.0.0.1 - - [23/Nov/2025:01:01:01 +0000] "GET / HTTP/1.1" 404 0 "http://a/" "curl/8.5" 12.500000\n'
    )


@pytest.mark.parametrize(
    ("zone", "stamp"),
    [
        ("Europe/Berlin", "23/Nov/2025:02:00:00 +0100"),
        ("XXX+3:30", "22/Nov/2025:21:30:00 -0330"),
        ("Asia/Kathmandu", "23/Nov/2025:06:45:00 +0545"),
    ],
)
def test_local_time_with_its_offset(zone: str, stamp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "/" in zone and not os.path.exists(f"/usr/share/zoneinfo/{zone}"):
        pytest.skip("no time zone database (tzdata) on this machine")
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            assert f" [{stamp}] " in log.AccessLog(log.Sink(-1)).line(Record())
    finally:
        time.tzset()


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.7:53122", "10.0.0.7"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("[fe80::1%eth0]:80", "fe80::1%eth0"),
        ("@", "@"),
        ("", "-"),
        ("/run/x y.sock", "/run/xy.sock"),
    ],
)
def test_hosts(address: str, host: str) -> None:
    line = log.AccessLog(log.Sink(-1)).line(Record(remote_addr=address))
    assert line.split(" ", 1)[0] == host


def test_escapes() -> None:
    access = log.AccessLog(log.Sink(-1))
    record = Record(
        target='/a"b\\c\x00d\x7f\xe9\udcff',
        user_agent='x" 200 0 "-" "forged\n127.0.0.1',
        referer="\u20ac\ud800",
    )
    line = access.line(record)
    assert r'"GET /a\x22b\x5Cc\x00d\x7F\xC3\xA9\xFF HTTP/1.1"' in line
    assert r'"x\x22 200 0 \x22-\x22 \x22forged\x0A127.0.0.1"' in line
    assert r'"\xE2\x82\xAC\xED\xA0\x80"' in line
    assert line.count("\n") == 1


def test_a_request_that_could_not_be_read_is_a_dash() -> None:
    line = log.AccessLog(log.Sink(-1)).line(Record(method="", target="", status=400))
    assert '] "-" 400 4 "-" ' in line


@given(st.text(), st.text(), st.text(), st.text())
def test_any_request_gives_one_line_that_parses(method: str, target: str, referer: str, agent: str) -> None:
    record = Record(method=method, target=target, referer=referer, user_agent=agent)
    line = log.AccessLog(log.Sink(-1)).line(record)
    match = LINE.fullmatch(line)
    assert match is not None, line
    if method:
        unescaped = re.sub(r"\\x(..)", lambda m: chr(int(m[1], 16)), match["request"]).encode("latin-1")
        assert unescaped.decode("utf-8", "surrogatepass") == f"{method} {target} HTTP/1.1"


def test_lost_access_lines_are_told_on_the_console(
    logger: logging.Logger, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    logger.propagate = True
    access = log.access_logger(Stream(pipe[1]))
    fill(pipe[1])
    for _ in range(3):
        access(Record())
    empty(pipe[0])
    access(Record())
    access.close()
    assert caplog.messages == ["3 access log lines are lost: what reads them was too slow or gone"]
    assert LINE.fullmatch(empty(pipe[0]))
