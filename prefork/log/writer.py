"""Writer: many lines a second, handed to a thread that writes them in blocks.

For the access log. To hand a line over is to append it to a queue, and that is all that the loop
pays: no system call, and no wait, whatever the destination does. A pipe or a socket could be
written without waiting by the loop itself; a file could not: write(2) sleeps while its disk
does, for seconds when the disk is a network's. The thread writes what has gathered in
`GATHER` seconds in one block, which also makes a line cheaper than one write for each.

The price: a process that is killed loses the lines of its last moments, `GATHER` seconds of them.

Laws. The queue is bounded in bytes; what does not fit is counted and lost, and nothing more is
taken then until all of it is written, so that there is one gap and not many. A write that fails
loses its block, but for the lines that it has completed, and the next block is tried as if
nothing had happened. Losses are told when they begin and, with their number, when they are over.
"""

from __future__ import annotations

import atexit
import collections
import logging
import os
import threading
import time
import traceback
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefork.log.output import Output

BUFFER = 1 << 20
"""Bytes that may wait to be written."""

GATHER = 0.02
"""Seconds that the thread lets lines gather."""

QUIET = 10.0
"""Seconds between two reports of losses: a reader that is always too slow must not fill the other log."""

PATIENCE = 1.0
"""Seconds that `close` gives to what waits."""

_SLOW = "what reads them is too slow"

_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


class Writer:
    """Writes lines to an `Output`, from a thread of its own that the first line starts.

    name: what the lines are, for the reports ("access log").

    *Resource handling*: `close` writes what waits, ends the thread and closes the output; the end
    of the process calls it too. A forked child has a thread of its own and an empty queue.
    """

    def __init__(self, output: Output, name: str) -> None:
        self._output = output
        self._name = name
        self._reset()
        _writers.add(self)

    def _reset(self) -> None:
        # Each number has one thread that changes it: no lock is needed.
        self._lines: collections.deque[bytes] = collections.deque()
        self._taken = 0  # bytes, by `put`
        self._done = 0  # bytes, by the thread
        self._refused = 0  # lines, by `put`
        self._failed = 0  # lines, by the thread
        self._full = False  # `put` sets it; the thread, when nothing waits, unsets it
        self._asleep = True
        self._alarm = threading.Event()
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None  # when `close` stops waiting
        # The thread's own:
        self._opened = self._output.opened
        self._torn = False  # the last line written is without its end
        self._broken = False  # the last write failed
        self._why = ""
        self._told = 0  # lines lost that have been told
        self._told_of_begin = False
        self._told_at = -QUIET

    @property
    def lost(self) -> int:
        """Lines lost so far in this process."""
        return self._refused + self._failed

    def put(self, line: bytes) -> None:
        """Have a line written. Neither waits nor raises; at the worst the line is lost and counted."""
        size = len(line)
        waiting = self._taken - self._done
        if self._full or (waiting and waiting + size > BUFFER):
            self._full = True
            self._refused += 1
            return
        self._taken += size
        self._lines.append(line)
        if self._asleep:
            self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="prefork-access-log", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # no more threads are allowed: the next line tries again
            self._thread = thread
            atexit.register(self.close)
        self._asleep = False
        self._alarm.set()

    def close(self) -> None:
        """Write what waits, for a second at most, and close the output. Lines after that are lost."""
        self._deadline = time.monotonic() + PATIENCE
        thread, self._thread = self._thread, None
        if thread is not None:
            atexit.unregister(self.close)
            self._alarm.set()
            thread.join(PATIENCE + 1.0)
            if thread.is_alive():
                return  # a write to a disk that hangs: its descriptor is in use
        self._full = True
        self._output.close()

    # What runs in the thread.

    def _run(self) -> None:
        alarm = self._alarm
        while True:
            alarm.wait(self._until_report())
            alarm.clear()
            while self._lines:
                if self._deadline is None:
                    alarm.wait(GATHER)
                count = len(self._lines)  # not until it is empty: that would be a line at a time
                while count:
                    count -= self._write_block(count)
                self._report()
            self._full = False
            self._report()
            if self._deadline is not None:
                return
            # In this order: whoever appends a line later sees that we sleep.
            self._asleep = True
            if self._lines:
                alarm.set()

    def _write_block(self, count: int) -> int:
        """Write the oldest lines, up to `count` and to what one write may have; returns how many."""
        lines, most = self._lines, self._output.most
        block = [lines.popleft()]
        size = len(block[0])
        while len(block) < count and size + len(lines[0]) <= most:
            block.append(lines.popleft())
            size += len(block[-1])
        written = self._write(b"".join(block))
        self._broken = written < size
        for line in block if self._broken else ():
            written -= len(line)
            self._failed += written < 0
        self._done += size
        return len(block)

    def _write(self, data: bytes) -> int:
        """Write `data`, however long its reader takes; returns how much of it could be written."""
        if self._opened != self._output.opened:
            self._opened, self._torn = self._output.opened, False
        if self._torn:
            # What was begun is lost and counted; the next line is not to share its line.
            if not self._put_through(b"\n"):
                return 0
            self._torn = False
        written = self._put_through(data)
        if 0 < written < len(data):
            self._torn = not data.endswith(b"\n", 0, written)
        return written

    def _put_through(self, data: bytes) -> int:
        written = 0
        while written < len(data):
            try:
                written += self._output.write(data[written:] if written else data)
            except BlockingIOError:
                self._why = _SLOW
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    break
                self._report()
                self._output.wait(0.1)
            except OSError as exc:
                self._why = exc.strerror or str(exc)
                break
        return written

    def _report(self) -> None:
        """Tell of losses what is to be told now."""
        if not (self._full or self._broken):
            if self._until_report() == 0.0:
                lost = self.lost
                self._warn("%d %s lines are lost: %s", lost - self._told, self._name, self._why)
                self._told, self._told_at, self._told_of_begin = lost, time.monotonic(), False
        elif not self._told_of_begin and time.monotonic() - self._told_at >= QUIET:
            self._told_of_begin = True
            self._warn("%s lines are being lost: %s", self._name, self._why)

    def _until_report(self) -> float | None:
        """Seconds until the number of lines lost is to be told; None when there is nothing to tell."""
        if self.lost == self._told or self._full or self._broken:
            return None
        return max(0.0, self._told_at + QUIET - time.monotonic())

    def _warn(self, text: str, *args: object) -> None:
        try:
            logging.getLogger("prefork.access").warning(text, *args)
        except Exception:
            traceback.print_exc()  # a handler of the application's; this thread has to go on


def _forked() -> None:
    for writer in list(_writers):
        writer._reset()


os.register_at_fork(after_in_child=_forked)
