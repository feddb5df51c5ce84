"""What a server counts, and the requests it has in hand: for whoever looks from outside.

Counting happens on every request, so it is a few additions to plain attributes, and the
commonest case is not counted at all: 200 is what is left of `requests` when all other statuses
are taken away, and so is the shortest duration. Whoever wants to know puts it together
(`by_status`, `by_duration`), at a time of his own.

What is in hand must be known to others even when a handler never comes back. So the request is
noted before its handler runs, where somebody else has said: in memory that another process can
read, for example. Nothing is noted, and nothing paid, where nobody has said so.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_OK = 200
_NEVER = float("inf")


class Numbers:
    """Counters of one server, from its start on. Durations are seconds, sizes bytes.

    bounds: upper bounds of the duration buckets, ascending; none counts no buckets.

    requests: answered, or given up because the client had gone; a connection that its handler
    takes over (`hijack`) is answered in that moment. seconds: of all of them together, from the
    end of the head to the end of the handler. received, sent: bytes, without TLS. exceptions:
    raised by handlers and logged. refused: what was no request, and was answered without a
    handler.
    in_flight: where requests in hand are noted; None for nowhere.

        server.numbers = Numbers(bounds=(0.001, 0.01, 0.1))
        server.numbers.by_status()[2]      # answers 200 to 299
    """

    __slots__ = (
        "bounds",
        "buckets",
        "exceptions",
        "in_flight",
        "received",
        "refused",
        "requests",
        "seconds",
        "sent",
        "shortest",
        "statuses",
    )

    def __init__(self, bounds: Sequence[float] = (), in_flight: InFlight | None = None) -> None:
        self.bounds = tuple(bounds)
        self.in_flight = in_flight
        self.requests = 0
        self.seconds = 0.0
        self.received = 0
        self.sent = 0
        self.exceptions = 0
        self.refused = 0
        self.statuses = [0] * 1000  # by status; 200 is not counted
        self.buckets = [0] * (len(self.bounds) + 1)  # the first one is not counted
        self.shortest = self.bounds[0] if self.bounds else _NEVER

    def answered(self, status: int, seconds: float) -> None:
        """A request is over. status: 0 if none was decided. (The connection has this inlined.)"""
        self.requests += 1
        self.seconds += seconds
        if seconds > self.shortest:
            self.buckets[bisect_left(self.bounds, seconds)] += 1
        if status != _OK:
            self.statuses[status] += 1

    def by_status(self) -> list[int]:
        """Answers by the first digit of their status, from 1 to 5; at 0 those without any of these."""
        counts = self.statuses
        classes = [sum(counts[first : first + 100]) for first in range(100, 600, 100)]
        others = sum(counts) - sum(classes)
        classes[1] = self.requests - classes[0] - sum(classes[2:]) - others
        return [others, *classes]

    def by_duration(self) -> list[int]:
        """Requests by duration: one number for each bound, of those above the one before; then the rest."""
        longer = self.buckets[1:]
        return [self.requests - sum(longer), *longer]

    def __repr__(self) -> str:
        return f"<Numbers {self.requests} requests, {self.exceptions} exceptions>"


class InFlight:
    """Where requests in hand are noted: records of fixed size in memory that somebody else reads.

    pack: writes a record: pack(memory, at, started, head, started); head is the request's head in
    bytes, of which it takes what it has room for. words: the same memory in 64-bit words; a
    record whose first word is 0 is free. records: where they begin in bytes, multiples of 8, not 0.
    at, word: where the next request is noted, in bytes and in words. free: other records, in words.

    One record is for the request whose handler is about to run; each request is written into it
    over the one before. A handler that waits keeps it (`keep`), and another record takes that
    role, as long as there is one.
    """

    __slots__ = ("at", "free", "memory", "pack", "word", "words")

    def __init__(
        self, pack: Callable[..., None], memory: memoryview, words: memoryview, records: Sequence[int]
    ) -> None:
        self.pack = pack
        self.memory = memory
        self.words = words
        self.free = [at >> 3 for at in reversed(records)]
        self.word = self.free.pop()
        self.at = self.word << 3

    def keep(self) -> int:
        """The request noted last stays noted. Returns its record, for `forget`; 0: there is none to spare.

        (The connection has both of them inlined.)
        """
        if not self.free:
            return 0
        kept = self.word
        self.word = self.free.pop()
        self.at = self.word << 3
        return kept

    def forget(self, record: int) -> None:
        """A request that was kept is over."""
        self.words[record] = 0
        self.free.append(record)

    def __repr__(self) -> str:
        return f"<InFlight {len(self.free)} records free>"
