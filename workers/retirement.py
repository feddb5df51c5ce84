"""When a worker has served long enough: it asks for a successor, and serves on until that is ready.

Limits are looked at by the loop's own tick. Each is stretched by chance, by up to a tenth or by
what the settings say, so that workers that were born together do not retire together.
"""

from __future__ import annotations

import random
import resource
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prefork.settings import Settings

RSS_EVERY: Final = 1.0
"""Seconds between two looks at the memory."""

_PAGE: Final = resource.getpagesize()


class Retirement:
    """The limits of one worker.

    born: the loop's time at its start. `reason(requests, now)` is why it should go, "" while it
    should not; it says so once.

        retirement = Retirement(settings, loop.time())
        reason = retirement.reason(server.requests, loop.time())   # "max_requests", ...
    """

    __slots__ = ("_asked", "_end", "_max_requests", "_max_rss", "_next_look")

    def __init__(self, settings: Settings, born: float, chance: random.Random | None = None) -> None:
        # Not the module's generator: all workers are forked with the same one.
        chance = chance or random.SystemRandom()
        self._max_requests: int | None = None
        if settings.max_requests is not None:
            jitter = settings.max_requests_jitter
            extra = settings.max_requests // 10 if jitter is None else jitter
            self._max_requests = settings.max_requests + chance.randint(0, extra)
        self._end: float | None = None
        if settings.max_lifetime is not None:
            self._end = born + settings.max_lifetime * (1 + chance.random() / 10)
        self._max_rss = settings.max_rss
        self._next_look = born
        self._asked = False

    def reason(self, requests: int, now: float) -> str:
        """Why this worker should be replaced; "" if it should not, or has said so already."""
        if self._asked:
            return ""
        reason = ""
        if self._max_requests is not None and requests >= self._max_requests:
            reason = "max_requests"
        elif self._end is not None and now >= self._end:
            reason = "max_lifetime"
        elif self._max_rss is not None and now >= self._next_look:
            self._next_look = now + RSS_EVERY
            if resident() > self._max_rss:
                reason = "max_rss"
        self._asked = bool(reason)
        return reason


def resident() -> int:
    """Bytes of memory this process has in RAM, shared pages included; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
