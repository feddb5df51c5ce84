"""The console log: what the logger "prefork" and its children say, on standard error or in a file.

    console     2026-11-23 09:30:01.042 [4711] info     serving app:mux, and tracebacks, indented
    json        {"time":"2026-11-23T08:30:01.042117Z","level":"info","logger":"prefork",
                "worker":1,"pid":4711,"message":"..."}, with "exception" if there is one
    logfmt      the same pairs as time=... level=info ...

The journal knows the time: its lines have none in any format. It takes a priority from the start
of each line, `<6>`, and takes it off: what is behind it, a JSON object perhaps, is the message.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from prefork.log import origin
from prefork.log.escape import json_string, logfmt_value, printable
from prefork.log.formats import utc_stamp
from prefork.log.output import Output, is_journal
from prefork.log.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prefork.log.output import HasFileno, Owner

_SYSLOG = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_COLOURS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31"}
_PATIENCE = 1.0


def setup(
    level: str = "info",
    format: str = "console",
    stream: HasFileno | None = None,
    *,
    path: str = "-",
    owner: Owner | None = None,
) -> None:
    """Send the logger "prefork" to `stream` (None: standard error), from `level` up.

    level: debug, info, warning, error or critical. format: console, json or logfmt. On a terminal
    the levels of `console` are coloured; NO_COLOR (not empty) forbids that, FORCE_COLOR asks for it
    anywhere. path: a file to append to instead of `stream`, unless it is "-"; `reopen` opens it
    anew. owner: whose rights open it, if this process is root.

    A second call replaces the first one's handler. Fork afterwards: children inherit it.

    Raises LogFileError; then everything stays as it was.
    """
    fd = 2 if stream is None else stream.fileno()
    output = Output(fd) if path == "-" else Output.open(path, owner)
    handler = SinkHandler(Sink(output))
    handler.setFormatter(_formatter(format, output.fileno()))
    logger = logging.getLogger("prefork")
    for old in [old for old in logger.handlers if isinstance(old, SinkHandler)]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def _formatter(format: str, fd: int) -> logging.Formatter:
    journal = is_journal(fd)
    formatter: logging.Formatter
    if format == "json":
        formatter = JsonFormatter(timed=not journal)
    elif format == "logfmt":
        formatter = LogfmtFormatter(timed=not journal)
    else:
        formatter = ConsoleFormatter(timed=not journal, colour=not journal and _wants_colour(fd, os.environ))
    return JournalFormatter(formatter) if journal else formatter


def _wants_colour(fd: int, environ: Mapping[str, str]) -> bool:
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return os.isatty(fd) and environ.get("TERM") != "dumb"


class ConsoleFormatter(logging.Formatter):
    """For people. Not timed, it leaves out the level as well."""

    def __init__(self, *, timed: bool = True, colour: bool = False) -> None:
        super().__init__()
        self._timed = timed
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        lines = [self._head(record) + printable(record.getMessage())]
        for block in _blocks(self, record).values():
            # Indented and escaped, or the text of an exception could pass for a record.
            lines += ["    " + printable(line.expandtabs()) for line in block.split("\n")]
        return "\n".join(lines)

    def _head(self, record: logging.LogRecord) -> str:
        if not self._timed:
            return f"[{record.process}] "
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower():8}"
        if self._colour:
            level = f"\x1b[{_COLOURS.get(record.levelno, '31;1')}m{level}\x1b[0m"
        return f"{now}.{int(record.msecs):03} [{record.process}] {level} "


class JsonFormatter(logging.Formatter):
    """One object in one line, ASCII only; tracebacks are texts in it."""

    def __init__(self, *, timed: bool = True) -> None:
        super().__init__()
        self._timed = timed

    def format(self, record: logging.LogRecord) -> str:
        return "{" + ",".join([f'"{key}":{_json(value)}' for key, value in self._pairs(record)]) + "}"

    def _pairs(self, record: logging.LogRecord) -> Iterator[tuple[str, str | int | None]]:
        if self._timed:
            yield "time", f"{utc_stamp(int(record.created))}.{int(record.created % 1.0 * 1e6):06}Z"
        yield "level", record.levelname.lower()
        yield "logger", record.name
        yield "worker", origin.worker()
        yield "pid", record.process
        yield "message", record.getMessage()
        yield from _blocks(self, record).items()


class LogfmtFormatter(JsonFormatter):
    """The same pairs as logfmt; without the worker, where there is none."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = [(key, value) for key, value in self._pairs(record) if value is not None]
        return " ".join([f"{key}={logfmt_value(str(value))}" for key, value in pairs])


class JournalFormatter(logging.Formatter):
    """What `inner` makes, with a priority at the start of each line."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{_SYSLOG.get(record.levelno, 5)}>"
        return priority + self._inner.format(record).replace("\n", "\n" + priority)


def _json(value: str | int | None) -> str:
    if isinstance(value, str):
        return json_string(value)
    return "null" if value is None else str(value)


def _blocks(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, str]:
    """The texts of many lines that a record has: a traceback, a stack."""
    if record.exc_info and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    blocks = {"exception": record.exc_text, "stack": record.stack_info}
    return {name: block for name, block in blocks.items() if block}


class SinkHandler(logging.Handler):
    """Writes records to a `Sink`, and a record of its own when lines were lost before."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        if self._write(record) and self._sink.lost:
            lost, self._sink.lost = self._sink.lost, 0
            text = "%d log lines are lost: %s"
            notice = _record(record.name, logging.WARNING, text, lost, self._sink.why)
            if not self._write(notice):
                self._sink.lost += lost

    def _write(self, record: logging.LogRecord) -> bool:
        try:
            line = self.format(record)
        except Exception as error:
            # A log call with wrong arguments must not break the code that makes it.
            text = "%s:%d: this log record cannot be shown: %r"
            line = self.format(
                _record(record.name, record.levelno, text, record.pathname, record.lineno, error)
            )
        return self._sink.write((line + "\n").encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """At the end of the process: what waits has one second."""
        self._sink.flush(_PATIENCE)

    def close(self) -> None:
        self._sink.close()
        super().close()


def _record(name: str, level: int, text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 0, text, args, None)
