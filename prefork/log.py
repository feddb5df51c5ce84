"""Logs: the console log on standard error, and the access log.

Both carry text that clients chose, and several processes write them into one pipe. Hence:

- What a client sent cannot forge a line or drive a terminal: everything that is not printable
  is escaped, and the lines of a traceback, the only record of several lines, are indented.
- A record is one write(2), so lines of different processes do not mix (up to PIPE_BUF, 4 KiB).
- A reader that is slow or gone costs log lines, never requests: no write waits for long, none
  raises, and the number of lines lost is told as soon as lines get through again.

The console log is the logger "prefork" and its children. No other logger is touched: what the
application logs is the application's to configure.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import stat
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

_SYSLOG = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_COLOURS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31"}


class HasFileno(Protocol):
    """An open file: sys.stdout, sys.stderr, a socket."""

    def fileno(self) -> int: ...


class AccessRecord(Protocol):
    """What the access log needs to know of an answered request."""

    @property
    def remote_addr(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def proto(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...
    @property
    def start(self) -> float: ...
    @property
    def duration(self) -> float: ...
    @property
    def referer(self) -> str: ...
    @property
    def user_agent(self) -> str: ...


# --- the console log ------------------------------------------------------------------------


def setup(level: str = "info", stream: HasFileno | None = None) -> None:
    """Send the logger "prefork" to `stream` (None: standard error), from `level` up.

    level: debug, info, warning, error or critical. On a terminal levels are coloured; NO_COLOR
    (not empty) forbids that, FORCE_COLOR asks for it anywhere. If `stream` is the journal's,
    as JOURNAL_STREAM tells, lines bear a priority (`<6>`) for it and no time.

    A second call replaces the first one's handler. Fork afterwards: children inherit it.
    """
    fd = 2 if stream is None else stream.fileno()
    formatter: logging.Formatter
    if _is_journal(fd, os.environ):
        formatter = JournalFormatter()
    else:
        formatter = ConsoleFormatter(colour=_wants_colour(fd, os.environ))
    handler = SinkHandler(Sink(fd))
    handler.setFormatter(formatter)
    logger = logging.getLogger("prefork")
    for old in [old for old in logger.handlers if isinstance(old, SinkHandler)]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def _is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    # systemd.exec(5): "$JOURNAL_STREAM [...] device and inode numbers of the file descriptor,
    # decimal, separated by a colon"; they must be compared, because the stream may be another now.
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _wants_colour(fd: int, environ: Mapping[str, str]) -> bool:
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return os.isatty(fd) and environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """`text` with everything escaped that is not printable: controls, line ends, surrogates."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char) or (
        f"\\x{ord(char):02x}" if char <= "\xff" else f"\\u{ord(char):04x}"
    )


class ConsoleFormatter(logging.Formatter):
    """`2026-11-23 09:30:01.042 [4711] info     message`, then an indented traceback if there is one."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        lines = [self.head(record) + printable(record.getMessage())]
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        for block in (record.exc_text, record.stack_info):
            if block:
                # Indented and escaped, or the text of an exception could pass for a record.
                lines += ["    " + printable(line.expandtabs()) for line in block.split("\n")]
        return "\n".join(lines)

    def head(self, record: logging.LogRecord) -> str:
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower():8}"
        if self._colour:
            level = f"\x1b[{_COLOURS.get(record.levelno, '31;1')}m{level}\x1b[0m"
        return f"{now}.{int(record.msecs):03} [{record.process}] {level} "


class JournalFormatter(ConsoleFormatter):
    """`<6>[4711] message`: journald knows the time, and reads the priority from each line."""

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{_SYSLOG.get(record.levelno, 5)}>"
        return priority + super().format(record).replace("\n", "\n" + priority)

    def head(self, record: logging.LogRecord) -> str:
        return f"[{record.process}] "


class SinkHandler(logging.Handler):
    """Writes records to a `Sink`, and a record of its own when lines were lost before."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        if self._write(record) and self._sink.lost:
            lost, self._sink.lost = self._sink.lost, 0
            text = "%d log lines are lost: what reads this log was too slow or gone"
            notice = logging.LogRecord(record.name, logging.WARNING, __file__, 0, text, (lost,), None)
            if not self._write(notice):
                self._sink.lost += lost

    def _write(self, record: logging.LogRecord) -> bool:
        try:
            line = self.format(record)
        except Exception as error:
            # A log call with wrong arguments must not break the code that makes it.
            line = f"{record.pathname}:{record.lineno}: this log record cannot be shown: {error!r}"
        return self._sink.write((line + "\n").encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        self._sink.close()
        super().close()


# --- the access log -------------------------------------------------------------------------

# What a quoted field may hold as it is: printable ASCII but the quote and the backslash.
_UNSAFE = re.compile(r"[^ !#-\[\]-~]")
_ESCAPES = [chr(byte) if not _UNSAFE.match(chr(byte)) else f"\\x{byte:02X}" for byte in range(256)]
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class AccessLog:
    """Writes one line for each `AccessRecord` it is called with. Made by `access_logger`."""

    __slots__ = ("_second", "_sink", "_stamp")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._second = -1
        self._stamp = ""

    def __call__(self, record: AccessRecord) -> None:
        sink = self._sink
        if sink.write(self.line(record).encode("ascii")) and sink.lost:
            lost, sink.lost = sink.lost, 0
            logger = logging.getLogger("prefork.access")
            logger.warning("%d access log lines are lost: what reads them was too slow or gone", lost)

    def line(self, record: AccessRecord) -> str:
        """The line for `record`, with its end."""
        second = int(record.start)
        if second != self._second:
            self._second, self._stamp = second, _timestamp(second)
        host = record.remote_addr
        if ":" in host:
            host = host[: host.rindex(":")].strip("[]")
        request = f"{record.method} {record.target} {record.proto}" if record.method else "-"
        return (
            f"{_escaped(host).replace(' ', '') or '-'} - - [{self._stamp}] "
            f'"{_escaped(request)}" {record.status} {record.bytes_written} '
            f'"{_escaped(record.referer) or "-"}" "{_escaped(record.user_agent) or "-"}" '
            f"{record.duration:.6f}\n"
        )

    def close(self) -> None:
        """Give back what was opened for it. Lines after that are lost."""
        self._sink.close()


def access_logger(stream: HasFileno) -> AccessLog:
    """A function that writes one line per answered request to `stream`, usually sys.stdout.

    The line is Apache's and nginx' combined format with the time taken, in seconds, at its end:

        127.0.0.1 - - [23/Nov/2026:09:30:01 +0100] "GET /ping HTTP/1.1" 200 4 "-" "curl/8.5" 0.000087

    The time is the request's start; the size is that of the body. In the quoted fields every byte
    that is not printable ASCII, the quote and the backslash are written as \\xHH, so that a
    line always parses. It goes out in one write(2) and is lost if the reader does not take it
    within a tenth of a second; the logger "prefork.access" then tells how many were.
    """
    return AccessLog(Sink(stream.fileno()))


def _timestamp(second: int) -> str:
    # Not strftime("%b"): the name of the month would follow the locale.
    local = time.localtime(second)
    sign, offset = ("-", -local.tm_gmtoff) if local.tm_gmtoff < 0 else ("+", local.tm_gmtoff)
    return (
        f"{local.tm_mday:02}/{_MONTHS[local.tm_mon - 1]}/{local.tm_year}:"
        f"{local.tm_hour:02}:{local.tm_min:02}:{local.tm_sec:02} "
        f"{sign}{offset // 3600:02}{offset % 3600 // 60:02}"
    )


def _escaped(text: str) -> str:
    if _UNSAFE.search(text) is None:
        return text
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogatepass")
    return "".join([_ESCAPES[byte] for byte in data])


# --- writing without waiting ----------------------------------------------------------------

_PATIENCE = 0.1


class Sink:
    """A descriptor to write lines to, without waiting long and without raising.

    A full pipe is waited for, a tenth of a second in all, so that a reader that works but lags
    loses nothing. If it takes nothing in that time, lines are lost, without further waiting,
    until one gets through: a stalled reader stalls nobody but once.

    A pipe is opened a second time, non-blocking: O_NONBLOCK on the descriptor itself would hold
    for everyone who shares it, the user's shell included. A socket (the journal's) is sent to
    with MSG_DONTWAIT. Where neither can be (a terminal, another user's pipe), poll(2) is asked
    before each write, and no write is larger than what poll(2) promises to fit.

    *Resource handling*: the descriptor stays the caller's; `close` closes what was opened here.
    """

    __slots__ = ("_asks", "_fd", "_opened", "_pid", "_poll", "_rest", "_socket", "lost")

    def __init__(self, fd: int) -> None:
        self.lost = 0  # lines since the last one that got through; whoever reports it sets it to 0
        self._fd = fd
        self._opened = False  # whether _fd was opened here
        self._asks = False  # whether a write might block, so that poll must be asked
        self._socket: socket.socket | None = None
        self._rest = b""  # the end of a line of which a part was written
        self._pid = 0  # the process that _rest belongs to
        self._poll = select.poll()
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            self._fd = -1  # closed: every line is lost, also when the number is somebody's later
            return
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(fd))
        elif stat.S_ISFIFO(mode):
            try:
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._opened = True
            except OSError:
                self._asks = True
        elif not stat.S_ISREG(mode):
            self._asks = True
        self._poll.register(self._fd, select.POLLOUT)

    def write(self, line: bytes) -> bool:
        """Write a whole line; False if it is lost, which `lost` counts."""
        try:
            if self._rest and self._pid == os.getpid():
                # Not in a forked child: there the other half is the parent's to write.
                self._rest = self._rest[self._put(self._rest) :]
                if self._rest:
                    self.lost += 1
                    return False
            written = self._put(line)
        except OSError:  # EPIPE, EIO, EBADF: the reader is gone; ENOSPC
            self._rest = b""
            written = 0
        if written == 0:
            self.lost += 1
            return False
        self._rest = line[written:]
        if self._rest:
            self._pid = os.getpid()
        return True

    def close(self) -> None:
        """Close what was opened here; what is written afterwards is lost."""
        if self._socket is not None:
            self._socket.close()
        if self._opened:
            os.close(self._fd)
        self._opened, self._fd = False, -1

    def _put(self, data: bytes) -> int:
        """Write what can be written in time; returns how much that was."""
        written = 0
        deadline: float | None = None
        while written < len(data):
            try:
                written += self._send(data[written:] if written else data)
            except BlockingIOError:
                if self.lost:
                    break
                now = time.monotonic()
                deadline = deadline or now + _PATIENCE
                if now >= deadline or not self._poll.poll((deadline - now) * 1000):
                    break
        return written

    def _send(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._asks:
            if not self._poll.poll(0):
                raise BlockingIOError
            data = data[: select.PIPE_BUF]
        return os.write(self._fd, data)
