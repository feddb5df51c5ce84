"""The access log: a line for each answered request.

server = http.Server(handler=mux, access_log=log.access_logger(sys.stdout, format="json"))
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import TYPE_CHECKING

from prefork.log.atoms import check
from prefork.log.formats import compile_format
from prefork.log.output import Output, is_journal
from prefork.log.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.log.formats import AccessRecord
    from prefork.log.output import HasFileno, Owner

_logs: weakref.WeakSet[AccessLog] = weakref.WeakSet()


class AccessLog:
    """Writes one line for each `AccessRecord` it is called with. Made by `access_logger`.

    *Resource handling*: `close` writes what waits and gives back what was opened. The end of the
    process does so too.
    """

    __slots__ = ("__weakref__", "_format", "_prefix", "_put", "_writer", "line")

    line: Callable[[AccessRecord], str]
    """The line of a record, with its end."""

    def __init__(self, output: Output, format: str = "combined") -> None:
        self._format = check(format)
        # The journal takes a priority from the start of a line: one that we do not write, a
        # client could.
        self._prefix = "<6>" if is_journal(output.fileno()) else ""
        self._forget()
        self._writer = Writer(output, "access log")
        self._put = self._writer.put
        _logs.add(self)

    def _forget(self) -> None:
        """Compile the format with the first line: only then it is sure which worker this is."""
        self.line = self._first_line

    def _first_line(self, record: AccessRecord) -> str:
        self.line = compile_format(self._format, prefix=self._prefix)
        return self.line(record)

    def __call__(self, record: AccessRecord) -> None:
        self._put(self.line(record).encode("utf-8", "backslashreplace"))

    @property
    def lost(self) -> int:
        """Lines lost so far in this process."""
        return self._writer.lost

    def close(self) -> None:
        """Write what waits, for a second at most; lines after that are lost."""
        self._writer.close()


def access_logger(
    stream: HasFileno | None = None,
    *,
    format: str = "combined",
    path: str = "-",
    owner: Owner | None = None,
) -> AccessLog:
    r"""A function that writes one line per answered request.

    stream: where to; None is standard output. path: a file to append to instead, unless it is
    "-"; `reopen` opens it anew. owner: whose rights open it, if this process is root.

    format: "combined" is Apache's and nginx' format with the time taken, in seconds, at its end:

        127.0.0.1 - - [23/Nov/2026:09:30:01 +0100] "GET /ping HTTP/1.1" 200 4 "-" "curl/8.5" 0.000087

    "json" and "logfmt" have more, one object or one row of pairs per line:

        {"time":"2026-11-23T08:30:01.250000Z","level":"info","logger":"prefork.access","worker":1,
        "pid":4711,"request_id":"9f86d081884c7d65-1a","remote":"127.0.0.1","method":"GET",
        "target":"/ping","proto":"HTTP/1.1","host":"example.com","pattern":"GET /ping","status":200,
        "bytes":4,"duration":0.000087,"referer":"","user_agent":"curl/8.5"}

    Anything else is a format of atoms (`prefork.log.atoms`), such as '%(h)s %(m)s %(U)s %(s)s %(D)s'.

    The time is the request's start; the size is that of the body. Lines are written by a thread,
    a fiftieth of a second later; if they cannot be, they are lost, and the logger
    "prefork.access" tells how many and why.

    Raises LogFileError, and ValueError for a format that is none.
    """
    output = Output((stream or sys.stdout).fileno()) if path == "-" else Output.open(path, owner)
    try:
        return AccessLog(output, format)
    except ValueError:
        output.close()
        raise


def _forked() -> None:
    for log in list(_logs):
        log._forget()


os.register_at_fork(after_in_child=_forked)
