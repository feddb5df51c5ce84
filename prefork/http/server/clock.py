"""Clock: the time of one server, read once per tick instead of once per request.

Deadlines are seconds, not microseconds: they are computed from the last tick and one tick is
added, so that none fires early; the sweep that looks for late connections runs on the same
tick. The Date line and the head of the commonest response are rendered with it.
"""

from __future__ import annotations

import time

from prefork.http.message.httptime import format_time

NEVER = float("inf")


class Clock:
    """The current time and what is rendered from it.

    interval: seconds between ticks. now: the loop's time at the last tick.
    """

    __slots__ = ("_idle_timeout", "_second", "date_line", "idle_deadline", "interval", "now", "ok_date")

    def __init__(self, interval: float, idle_timeout: float | None) -> None:
        self.interval = interval
        self._idle_timeout = idle_timeout
        self._second = 0
        self.now = 0.0
        self.idle_deadline = NEVER
        self.date_line = b""
        self.ok_date = b""

    def tick(self, now: float) -> None:
        """Take over the loop's time."""
        self.now = now
        if self._idle_timeout is not None:
            self.idle_deadline = now + self._idle_timeout + self.interval
        second = int(time.time())
        if second != self._second:
            self._second = second
            self.date_line = b"Date: %b\r\n" % format_time(second).encode()
            self.ok_date = b"HTTP/1.1 200 OK\r\n" + self.date_line

    def after(self, seconds: float | None) -> float:
        """The deadline that many seconds from now; None is never."""
        return NEVER if seconds is None else self.now + seconds + self.interval
