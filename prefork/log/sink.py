"""Sink: lines written at once, or kept for a while when they do not go through.

For few lines that matter: those of the console log. A line is written by the one who logs it,
before the call returns. If its destination takes none, it waits in a bounded buffer, which goes
out before the next line, or when `flush` is called, by whoever has a loop. A full buffer costs
lines; none is taken then until the buffer is empty, so that there is one gap and not many.
"""

from __future__ import annotations

import collections
import os
import threading
import time
import weakref

from prefork.log.output import Output

BUFFER = 1 << 20
"""Bytes that may wait for a destination that takes none."""

_sinks: weakref.WeakSet[Sink] = weakref.WeakSet()


class Sink:
    """Writes lines to an `Output`, without waiting and without raising, from any thread.

    to: an Output, which is then this sink's to close, or the number of a descriptor.
    lost: lines since the last one that got through; whoever reports it sets it to 0.
    why: what the last one was lost for.
    """

    __slots__ = ("__weakref__", "_lines", "_lock", "_opened", "_output", "_size", "_torn", "lost", "why")

    def __init__(self, to: Output | int) -> None:
        self.lost = 0
        self.why = ""
        self._output = to if isinstance(to, Output) else Output(to)
        self._opened = self._output.opened
        self._lines: collections.deque[bytes] = collections.deque()
        self._size = 0
        self._torn = False  # the last line written is without its end
        self._lock = threading.RLock()
        _sinks.add(self)

    def fileno(self) -> int:
        return self._output.fileno()

    def write(self, line: bytes) -> bool:
        """Write or keep a whole line; False if it is lost, which `lost` counts."""
        with self._lock:
            if not self.flush() and (self.lost or self._size + len(line) > BUFFER):
                self._lose(1, "what reads it is too slow")
                return False
            if self._torn and not self._lines:
                line = b"\n" + line  # the line that was begun is lost; this one is not
            self._lines.append(line)
            self._size += len(line)
            lost = self.lost
            self.flush()
            return self.lost == lost

    def flush(self, timeout: float = 0.0) -> bool:
        """Write what waits, for `timeout` seconds at most; whether nothing waits any more."""
        if not self._lines and self._opened == self._output.opened:
            return True
        with self._lock:
            if self._opened != self._output.opened:
                self._start_anew()
            return self._flush(timeout)

    def _flush(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout if timeout else 0.0
        while self._lines:
            line = self._lines[0]
            try:
                written = self._output.write(line)
            except BlockingIOError:
                if not timeout or time.monotonic() >= deadline:
                    return False
                self._output.wait(deadline - time.monotonic())
            except OSError as exc:
                self._lose(len(self._lines), exc.strerror or str(exc))
                self._forget()
            else:
                self._size -= written
                self._torn = written < len(line)
                if self._torn:
                    self._lines[0] = line[written:]
                else:
                    self._lines.popleft()
        return True

    def _start_anew(self) -> None:
        """The file is another one: the end of a line that was begun in the old one is not for it."""
        self._opened = self._output.opened
        if self._torn and self._lines:
            self._size -= len(self._lines.popleft())
            self._lose(1, "its file was opened anew in the middle of it")
        self._torn = False

    def close(self) -> None:
        """Close what was opened for it; what waits, or is written afterwards, is lost."""
        with self._lock:
            self._forget()
            self._output.close()

    def _lose(self, count: int, why: str) -> None:
        self.lost += count
        self.why = why

    def _forget(self) -> None:
        self._lines.clear()
        self._size = 0

    def _forked(self) -> None:
        """In a child: what waits is the parent's to write, the end of its line included."""
        self._lock = threading.RLock()  # another thread of the parent may have held it
        self._forget()
        self._torn = False
        self.lost = 0


def flush() -> bool:
    """Write what waits in the sinks of this process; whether nothing waits any more.

    A loop calls it in each turn, and soon again when it returns False.
    """
    done = [sink.flush() for sink in list(_sinks)]
    return all(done)


def _forked() -> None:
    for sink in list(_sinks):
        sink._forked()


os.register_at_fork(after_in_child=_forked)
