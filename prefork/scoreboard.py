"""The scoreboard: what the workers tell of themselves, in memory that all processes share.

Numbers that change too often to be sent, and that must be readable when their writer hangs or
is dead: who is alive, how many connections it has, what it has answered and how fast, which
requests it has in hand, and the application's own metrics.

The laws:

1. It is made once, before the first fork, by an anonymous shared mapping. It has no file
   and no descriptor, so there is nothing to leak, to clean up or to be read-only.
2. A *seat* is one worker's part of it. One process owns it: the worker that sits on it, from
   its birth to its death; before and after, the master. Only the owner writes, everyone
   may read. (A slot is "worker 3"; while one process of a slot drains and its replacement
   already serves, both need a seat, hence there are more seats than slots.)
3. One word is read and written whole: a `memoryview` cast to "Q" or "d" compiles to a single
   aligned 8-byte move on every 64-bit machine. Two words may belong to different moments;
   whoever needs several must be content with that.
4. Counters only grow, from zero, until the seat is cleared. Whoever wants totals that
   outlive a worker takes its counters before that.

A seat has four areas, each at the same distance from its neighbour's:

    words     SEAT_WORDS of 64 bits, by position: see `Word`
    records   RECORDS requests in hand: see `InFlight`
    values    METRIC_WORDS floats: the application's metrics
    names     METRIC_BYTES of text that says which value is what: see `MetricArea`

The kernel gives memory only to pages that are touched: what a service does not use costs nothing.
"""

from __future__ import annotations

import enum
import json
import mmap
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator


class WorkerState(enum.IntEnum):
    """The state word of a seat."""

    EMPTY = 0
    BOOTING = 1
    READY = 2
    DRAINING = 3


class Word(enum.IntEnum):
    """The words of a seat, by position. What counts since birth is in `COUNTERS`; ns are CLOCK_MONOTONIC."""

    PID = 0
    SLOT = 1  # which worker: 0 is "worker 1"
    GENERATION = 2
    STATE = 3  # WorkerState
    STARTED = 4  # ns at the fork
    TICK = 5  # ns when the worker's loop last turned
    OPEN = 6  # connections open now
    ACTIVE = 7  # of them, with a request in flight
    REQUESTS = 8  # answered since birth
    ACCEPTED = 9  # connections accepted since birth
    LOAD = 10  # OPEN while it takes new connections, else NOT_ACCEPTING: one word decides the accept gate
    LAG = 11  # ns by which the last tick was late
    LAG_MAX = 12  # ns, the worst of the last ten to twenty seconds
    IN_FLIGHT = 13  # requests whose handler has begun and is not done; with HTTP/1.1 as many as ACTIVE
    RSS = 14  # bytes of memory, looked at once a second

    # Answers by the class of their status; together: REQUESTS. OTHER had none: the connection was lost.
    STATUS_1XX = 16  # a connection taken over by its handler, above all
    STATUS_2XX = 17
    STATUS_3XX = 18
    STATUS_4XX = 19
    STATUS_5XX = 20
    STATUS_OTHER = 21
    REFUSED = 22  # what was no request, and was answered 400 or the like without a handler
    EXCEPTIONS = 23  # raised by handlers and logged

    RECEIVED = 24  # bytes, after TLS
    SENT = 25  # bytes given to the kernel, before TLS
    DURATION = 26  # ns of all requests together, from the end of the head to the end of the handler
    CLIENT_REQUESTS = 27  # round trips of all Transports of this process
    CLIENT_REUSES = 28  # of them, on a kept connection
    CLIENT_DIALS = 29
    CLIENT_DIAL_ERRORS = 30
    CLIENT_RETRIES = 31

    CLIENT_IDLE = 32  # connections of all Transports now
    CLIENT_ACTIVE = 33  # of them in use, or being dialled
    METRIC_WORDS = 34  # of `values`, in use
    METRIC_BYTES = 35  # of `names`, in use

    BUCKET = 40  # the first of len(LATENCY_BOUNDS) + 1: requests by duration; each counts in one bucket only


LATENCY_BOUNDS: Final = (
    *(
        float(f"{digits}e{decade}")
        for decade in range(-4, 1)
        for digits in ("1", "1.5", "2", "3", "4", "6", "8")
    ),
    *(10.0, 15.0, 20.0, 30.0, 40.0, 60.0),
)
"""Upper bounds of the duration buckets in seconds, each at most half more than the one below it."""

BUCKETS: Final = len(LATENCY_BOUNDS) + 1

COUNTERS: Final = (
    Word.REQUESTS,
    Word.ACCEPTED,
    *range(Word.STATUS_1XX, Word.EXCEPTIONS + 1),
    *range(Word.RECEIVED, Word.CLIENT_RETRIES + 1),
    *range(Word.BUCKET, Word.BUCKET + BUCKETS),
)
"""The words that count from birth on."""

SEAT_WORDS: Final = 96  # 12 cache lines: no two workers write to the same one, nor to its neighbour
HEADER_WORDS: Final = 16
NOT_ACCEPTING: Final = 2**64 - 1
"""LOAD of a seat that takes no connections: empty, booting, draining, or out of descriptors."""

TICK_EVERY: Final = 0.25
"""Seconds between two heartbeats of an idle loop."""

RECORDS: Final = 32
RECORD: Final = struct.Struct("d112sd")
"""A request in hand: its begin (time.monotonic()), the first bytes of its head, its begin again."""

METRIC_WORDS: Final = 2048
METRIC_BYTES: Final = 128 * 1024

_MAGIC: Final = int.from_bytes(b"prefork\0", "little")
_VERSION: Final = 2
_PAGE: Final = 4096
_READ_TRIES: Final = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One seat as read at one moment (word by word: see law 3). Times are ns, sizes bytes."""

    seat: int
    pid: int
    slot: int
    generation: int
    state: WorkerState
    started: int
    tick: int
    open: int
    active: int
    requests: int
    accepted: int
    accepting: bool
    lag: int
    lag_max: int
    in_flight: int
    rss: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request that a worker has in hand. started: time.monotonic(). request: "GET /report?full=1"."""

    started: float
    request: str


class Scoreboard:
    """The shared table of workers, one seat for each process that may live at a time.

        board = Scoreboard(seats=16)           # in the master, before the first fork
        board.assign(3, slot=1, generation=1)  # master, before it forks the worker for seat 3
        board.words[board.base(3) + Word.OPEN] = 17     # in that worker
        board.row(3).open                      # anywhere
        board.clear(3)                         # master, after it has reaped the worker

    words: the whole mapping by 64-bit words; a seat's begin at `base(seat)`. memory: the same by
    bytes; a seat's records begin at `record(seat, 0)`.

    *Resource handling*: the mapping lives until the last process that holds it is gone;
    `close()` gives up this process' share.
    """

    __slots__ = ("_floats", "_memory", "_names", "_records", "_values", "memory", "seats", "words")

    def __init__(self, seats: int) -> None:
        if seats < 1:
            raise ValueError(f"a scoreboard needs at least one seat, got {seats}")
        # Where the areas begin, in bytes. Whole pages: what nobody uses is never touched.
        self._records = _whole_pages((HEADER_WORDS + seats * SEAT_WORDS) * 8)
        self._values = self._records + _whole_pages(seats * RECORDS * RECORD.size)
        self._names = self._values + seats * METRIC_WORDS * 8
        self._memory = mmap.mmap(-1, self._names + seats * METRIC_BYTES)
        self.memory = memoryview(self._memory)
        self.words = self.memory.cast("Q")
        self._floats = self.memory.cast("d")
        self.seats = seats
        self.words[0], self.words[1], self.words[2], self.words[3] = _MAGIC, _VERSION, seats, SEAT_WORDS
        for seat in range(seats):
            self.words[self.base(seat) + Word.LOAD] = NOT_ACCEPTING

    @staticmethod
    def check(words: memoryview) -> int:
        """The number of seats in a mapping made elsewhere. Raises ValueError if it is not one of ours."""
        if len(words) < HEADER_WORDS or words[0] != _MAGIC:
            raise ValueError("not a prefork scoreboard")
        if words[1] != _VERSION or words[3] != SEAT_WORDS:
            raise ValueError(f"scoreboard version {words[1]} with {words[3]} words, this is {_VERSION}")
        seats = int(words[2])
        size = _whole_pages((HEADER_WORDS + seats * SEAT_WORDS) * 8)
        size += _whole_pages(seats * RECORDS * RECORD.size) + seats * (METRIC_WORDS * 8 + METRIC_BYTES)
        if len(words) * 8 < size:
            raise ValueError("scoreboard cut short")
        return seats

    def __repr__(self) -> str:
        taken = sum(1 for row in self.rows())
        return f"<Scoreboard {taken} of {self.seats} seats taken>"

    def column(self, word: Word) -> memoryview:
        """One word of all seats, by seat: a live view, which `min` or `sum` reads without a loop of ours."""
        return self.words[HEADER_WORDS + word : HEADER_WORDS + self.seats * SEAT_WORDS : SEAT_WORDS]

    def base(self, seat: int) -> int:
        """Index in `words` of the first word of a seat."""
        if not 0 <= seat < self.seats:
            raise IndexError(f"seat {seat} of {self.seats}")
        return HEADER_WORDS + seat * SEAT_WORDS

    def record(self, seat: int, number: int) -> int:
        """Where in `memory` a record of a seat begins: a multiple of 8 bytes."""
        if not (0 <= seat < self.seats and 0 <= number < RECORDS):
            raise IndexError(f"record {number} of {RECORDS}, seat {seat} of {self.seats}")
        return self._records + (seat * RECORDS + number) * RECORD.size

    def assign(self, seat: int, *, slot: int, generation: int, started: int) -> None:
        """Master only, before the fork: the seat is booting. The pid is written by the worker itself."""
        self.clear(seat)
        base = self.base(seat)
        self.words[base + Word.SLOT] = slot
        self.words[base + Word.GENERATION] = generation
        self.words[base + Word.STARTED] = started
        self.words[base + Word.STATE] = WorkerState.BOOTING

    def clear(self, seat: int) -> None:
        """Master only, before a birth or after a death: nobody sits here, and all counters are zero."""
        words, base = self.words, self.base(seat)
        # First of all, siblings must stop waiting for a worker that will never accept again.
        words[base + Word.LOAD] = NOT_ACCEPTING
        self.metrics(seat).clear()
        for word in range(SEAT_WORDS):
            if word != Word.LOAD:
                words[base + word] = 0
        for number in range(RECORDS):
            words[self.record(seat, number) >> 3] = 0

    def row(self, seat: int) -> Row:
        """What the seat says now."""
        words, base = self.words, self.base(seat)
        return Row(
            seat=seat,
            pid=words[base + Word.PID],
            slot=words[base + Word.SLOT],
            generation=words[base + Word.GENERATION],
            state=WorkerState(words[base + Word.STATE]),
            started=words[base + Word.STARTED],
            tick=words[base + Word.TICK],
            open=words[base + Word.OPEN],
            active=words[base + Word.ACTIVE],
            requests=words[base + Word.REQUESTS],
            accepted=words[base + Word.ACCEPTED],
            accepting=words[base + Word.LOAD] != NOT_ACCEPTING,
            lag=words[base + Word.LAG],
            lag_max=words[base + Word.LAG_MAX],
            in_flight=words[base + Word.IN_FLIGHT],
            rss=words[base + Word.RSS],
        )

    def rows(self) -> Iterator[Row]:
        """The seats that are taken."""
        for seat in range(self.seats):
            row = self.row(seat)
            if row.state is not WorkerState.EMPTY:
                yield row

    def snapshot(self, seat: int) -> list[int]:
        """All words of a seat, by `Word`."""
        base = self.base(seat)
        return self.words[base : base + SEAT_WORDS].tolist()

    def in_flight(self, seat: int) -> list[InFlight]:
        """The requests that the seat's worker has in hand, the oldest first; also when it hangs or is dead.

        At most RECORDS of them. A handler that runs without waiting is in the list from before
        its first line; those that wait are in it as long as there are records.
        """
        found = []
        for number in range(RECORDS):
            at = self.record(seat, number)
            if self.words[at >> 3] and (record := self._read_record(at)) is not None:
                found.append(record)
        return sorted(found, key=lambda record: record.started)

    def in_hand(self, seat: int) -> tuple[str, ...]:
        """The same for people: "GET /report (41.0 s)"."""
        now = time.monotonic()
        return tuple([f"{each.request} ({now - each.started:.1f} s)" for each in self.in_flight(seat)])

    def _read_record(self, at: int) -> InFlight | None:
        # The writer overwrites it without asking who reads. It first wipes the record, then
        # writes the begin, the text, and the begin again; so a copy whose two begins agree is
        # whole, unless it was taken while the text was being written. Then a second copy differs.
        copy = bytes(self.memory[at : at + RECORD.size])
        for _ in range(_READ_TRIES):
            again = bytes(self.memory[at : at + RECORD.size])
            if again == copy:
                break
            copy = again
        else:
            return None  # it changes all the time: what runs there is over before it can be told
        started, head, ended = RECORD.unpack(copy)
        if not started or started != ended:
            return None
        return InFlight(started, _request_text(head))

    def metrics(self, seat: int) -> MetricArea:
        """The application's metrics of a seat."""
        base = self.base(seat)
        values = self._values // 8 + seat * METRIC_WORDS
        names = self._names + seat * METRIC_BYTES
        return MetricArea(
            self.words[base + Word.METRIC_WORDS : base + Word.METRIC_BYTES + 1],
            self._floats[values : values + METRIC_WORDS],
            self.memory[names : names + METRIC_BYTES],
        )

    def close(self) -> None:
        """Give up the mapping in this process. Idempotent; the others keep theirs."""
        for view in (self.words, self._floats, self.memory):
            view.release()
        try:
            self._memory.close()
        except BufferError:
            pass  # a view of it is in use: the mapping goes when the view does


class MetricArea:
    """The application's metrics of one seat: floats, and the lines of text that say what they are.

    The worker appends a line for each metric that the application makes, and from then on changes
    its values in place. Workers agree on nothing: each has lines of its own, and whoever adds
    them up goes by the names in them. A line is a JSON object; what stands in it is up to the
    two who write and read it.

    values: METRIC_WORDS floats, a live view. `reserve` gives them out from the first on.
    """

    __slots__ = ("_names", "_used", "values")

    def __init__(self, used: memoryview, values: memoryview[float], names: memoryview) -> None:
        self._used = used  # two words: METRIC_WORDS and METRIC_BYTES
        self.values = values
        self._names = names

    def __repr__(self) -> str:
        return f"<MetricArea {self._used[0]} values, {self._used[1]} bytes of names>"

    def declare(self, line: dict[str, Any], values: int) -> int:
        """Owner only: append a line, with so many values of its own. Returns the index of the first.

        That index is in the line as well, as "at". Raises ValueError when there is no room, and
        changes nothing then.
        """
        first, begin = self._used
        line = line | {"at": first}
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        if first + values > METRIC_WORDS:
            raise ValueError(f"no room for {values} more values, {first} of {METRIC_WORDS} are in use")
        if begin + len(text) > METRIC_BYTES:
            raise ValueError(f"no room for {len(text)} more bytes, {begin} of {METRIC_BYTES} are in use")
        self._names[begin : begin + len(text)] = text
        # The length comes last: who sees it sees the line as well.
        self._used[0] = first + values
        self._used[1] = begin + len(text)
        return first

    def declared(self) -> list[dict[str, Any]]:
        """All lines so far, in the order of their `declare`. A line that cannot be read is left out."""
        lines = []
        for text in bytes(self._names[: min(self._used[1], METRIC_BYTES)]).splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                lines.append(line)
        return lines

    @property
    def version(self) -> int:
        """Grows with each line: as long as it stays, `declared` says the same."""
        return int(self._used[1])

    def clear(self) -> None:
        """Forget all lines and set their values to zero."""
        for index in range(min(self._used[0], METRIC_WORDS)):
            self.values[index] = 0.0
        self._used[0] = self._used[1] = 0


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _request_text(head: bytes) -> str:
    """METHOD and target out of the first bytes of a request's head."""
    line, end, _ = head.rstrip(b"\0").partition(b"\r\n")
    text = line.decode("ascii", "backslashreplace")
    if end:
        text = text.rpartition(" HTTP/")[0] or text
    else:
        text += "..."  # it is longer than a record
    return "".join([char if char.isprintable() else f"\\x{ord(char):02x}" for char in text])
