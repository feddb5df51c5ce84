"""BlockedLoopWatch: finds the handler that blocks the event loop, and names it in the log.

A plain `def` handler, and everything between two awaits of an `async def` one, runs on the
event loop; while it waits for a disk or a database nobody else is served. The loop cannot
notice that itself, so a thread looks: when the loop has not turned for a while it takes the
stack of the loop's thread, and says which line of whose code it stands at.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    import logging
    from types import FrameType

THRESHOLD = 1.0
"""Seconds the loop may stand still before it is reported."""

QUIET = 60.0
"""Seconds before the same function is reported again."""

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class BlockedLoopWatch:
    """Watches one loop, from the thread that runs it.

    threshold: seconds. Resource handling: `start` begins a daemon thread and a timer on the
    loop; `stop` ends both and waits for the thread.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, log: logging.Logger, threshold: float = THRESHOLD
    ) -> None:
        self._loop = loop
        self._log = log
        self._threshold = threshold
        self._turned = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="prefork-blocked-loop", daemon=True)
        self._reported: dict[str, float] = {}

    def start(self) -> None:
        """Begin to watch the loop of this thread."""
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        if self._timer is not None:
            self._timer.cancel()
        self._stopping.set()
        self._thread.join()

    def _turn(self) -> None:
        self._turned = time.monotonic()
        self._timer = self._loop.call_later(self._threshold / 4, self._turn)

    def _watch(self) -> None:
        while not self._stopping.wait(self._threshold / 2):
            since = self._turned
            if time.monotonic() - since > self._threshold and self._loop.is_running():
                frame = sys._current_frames().get(self._watched)
                if frame is not None:
                    self._report(frame, since)
                del frame

    def _report(self, frame: FrameType, since: float) -> None:
        inner, outer = _users_frames(frame)
        if outer is None or inner is None:
            return  # the loop's own doing, a long garbage collection say: no advice would help
        code = outer.f_code
        where = f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
        now = time.monotonic()
        if now - self._reported.get(where, -QUIET) < QUIET:
            return
        self._reported[where] = now
        self._log.warning(
            "http: the event loop has been blocked for %.1f s by %s, now at %s:%d: nobody else is served "
            "meanwhile. Wrap a handler that blocks in http.blocking, or await what it waits for",
            now - since,
            where,
            inner.f_code.co_filename,
            inner.f_lineno,
        )


def _users_frames(frame: FrameType) -> tuple[FrameType | None, FrameType | None]:
    """The innermost and the outermost frame, above the last of this package's, that are the user's."""
    inner = outer = None
    current: FrameType | None = frame
    while current is not None:
        if current.f_code.co_filename.startswith(_PACKAGE):
            break
        inner = inner or current
        outer = current
        current = current.f_back
    return (inner, outer) if current is not None else (None, None)
