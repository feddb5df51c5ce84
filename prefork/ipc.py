"""What master and worker share: exit codes, control messages, the scoreboard.

Three small languages, and nothing else crosses the line between the processes:

* `ExitCode`: what a process says with its last breath.
* Messages: JSON datagrams over one socket pair per worker (`Control`). The worker says
  `Ready`, `Failed`, `Draining`; the master says `Drain`. End of file means that the other
  side is gone, which is how a worker learns of its master's death without polling.
* `Scoreboard`: numbers in shared memory, because they change too often to be sent and
  must be readable when the writer hangs or is dead.

The laws of the scoreboard:

1. It is made once, before the first fork, by an anonymous shared mapping. It has no file
   and no descriptor, so there is nothing to leak, to clean up or to be read-only.
2. A *seat* is a row of 64-bit words. One process owns it: the worker that sits on it, from
   its birth to its death; before and after, the master. Only the owner writes, everyone
   may read. (A slot is "worker 3"; while one process of a slot drains and its replacement
   already serves, both need a seat, hence there are more seats than slots.)
3. One word is read and written whole: a `memoryview` cast to "Q" compiles to a single
   aligned 8-byte move on every 64-bit machine. Two words may belong to different moments;
   whoever needs several must be content with that.
"""

from __future__ import annotations

import enum
import json
import mmap
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ExitCode(enum.IntEnum):
    """What `prefork run` returns to the shell and to systemd. Workers use the same numbers."""

    CLEAN = 0
    INTERNAL = 1  # a fault of ours; the log has a traceback
    USAGE = 2  # a wrong flag or setting: starting again will not help
    BOOT = 3  # a worker failed to start
    APP = 4  # the application could not be imported
    CRASH_BUDGET = 5  # workers died too often
    BIND = 6  # an address could not be bound
    CUT = 7  # stopped, but something in flight had to be cut: graceful timeout, or told to go at once


# --------------------------------------------------------------------------- messages

MAX_MESSAGE: Final = 128 * 1024
"""The longest datagram in bytes. Below the default send buffer (208 KiB), so that one is never refused."""

MAX_TEXT: Final = 16 * 1024
"""The longest text in a message in characters: JSON takes up to six bytes for one."""


class MessageError(ValueError):
    """A datagram that is no message. The other side runs our code, so this is a bug or a stranger."""


@dataclass(frozen=True, slots=True)
class Ready:
    """worker -> master: the listeners are being accepted from."""

    type: ClassVar[str] = "ready"


@dataclass(frozen=True, slots=True)
class Failed:
    """worker -> master: it could not start and is about to exit with `code`.

    text: for people, complete with the user's traceback when it was their code; may have many lines.
    """

    code: int
    text: str
    type: ClassVar[str] = "failed"


@dataclass(frozen=True, slots=True)
class Draining:
    """worker -> master: it has stopped accepting by itself, because of `reason`, and wants a successor."""

    reason: str
    type: ClassVar[str] = "draining"


@dataclass(frozen=True, slots=True)
class Drain:
    """master -> worker: stop accepting, finish what is in flight within `timeout` seconds, exit.

    0.0 means at once. A second one can only make the time shorter.
    """

    timeout: float
    type: ClassVar[str] = "drain"


Message: TypeAlias = Ready | Failed | Draining | Drain

_KINDS: dict[str, Callable[..., Message]] = {kind.type: kind for kind in (Ready, Failed, Draining, Drain)}
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "ready": {},
    "failed": {"code": (int,), "text": (str,)},
    "draining": {"reason": (str,)},
    "drain": {"timeout": (int, float)},
}


def encode(message: Message) -> bytes:
    """One datagram. A text that is too long loses its middle: head and end say what was and why."""
    fields: dict[str, Any] = asdict(message)
    for name, value in fields.items():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            half = MAX_TEXT // 2
            fields[name] = (
                f"{value[:half]}\n... {len(value) - 2 * half} characters left out ...\n{value[-half:]}"
            )
    # A traceback may hold lone surrogates, which strict UTF-8 refuses; json.loads passes them as well.
    text = json.dumps({"type": message.type, **fields}, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> Message:
    """The message in a datagram. Raises MessageError, saying what is wrong with it."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise MessageError(f"not JSON: {data[:80]!r}") from exc
    if not isinstance(fields, dict):
        raise MessageError(f"not an object: {data[:80]!r}")
    kind = fields.pop("type", None)
    wanted = _FIELDS.get(kind) if isinstance(kind, str) else None
    if wanted is None:
        raise MessageError(f"unknown type {kind!r}")
    if fields.keys() != wanted.keys():
        raise MessageError(f"{kind}: has {sorted(fields)}, wants {sorted(wanted)}")
    for name, types in wanted.items():
        if not isinstance(fields[name], types) or isinstance(fields[name], bool):
            raise MessageError(f"{kind}: {name} is {fields[name]!r}")
    return _KINDS[kind](**fields)


class Control:
    """One end of the socket pair between master and worker.

    SOCK_SEQPACKET keeps messages apart and, unlike datagram sockets, reports the end of
    the other side. Both ends are close-on-exec: a program started by a handler never
    holds one open, which would hide the death of its owner.

    *Resource handling*: `close()` closes the socket; the process that forks must close the
    end that is not its own. `fileno()` makes it fit for selectors and event loops.
    """

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def pair(cls) -> tuple[Control, Control]:
        """The master's end (never blocks) and the worker's."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        return cls(ours), cls(theirs)

    def __repr__(self) -> str:
        return f"<Control fd {self._sock.fileno()}>"

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def send(self, message: Message) -> bool:
        """Send, or return False when the other side is gone or (not blocking) does not read."""
        try:
            self._sock.send(encode(message))
        except OSError:
            # EPIPE/ECONNRESET: gone, and its end of file or its exit tells the owner so.
            # EAGAIN: a peer that does not read; the deadlines of the supervisor deal with it.
            return False
        return True

    def receive(self) -> Message | None:
        """The next message; None at the end of file.

        Raises BlockingIOError when there is none yet (not blocking), MessageError for a
        datagram that is none.
        """
        try:
            data = self._sock.recv(MAX_MESSAGE)
        except ConnectionResetError:  # the peer closed with messages unread: gone all the same
            return None
        return decode(data) if data else None

    def close(self) -> None:
        self._sock.close()


# --------------------------------------------------------------------------- scoreboard


class WorkerState(enum.IntEnum):
    """The state word of a seat."""

    EMPTY = 0
    BOOTING = 1
    READY = 2
    DRAINING = 3


class Word(enum.IntEnum):
    """The words of a seat, by position."""

    PID = 0
    SLOT = 1  # which worker: 0 is "worker 1"
    GENERATION = 2
    STATE = 3  # WorkerState
    STARTED = 4  # CLOCK_MONOTONIC ns at the fork
    TICK = 5  # CLOCK_MONOTONIC ns when the worker's loop last turned
    OPEN = 6  # connections open now
    ACTIVE = 7  # of them, with a request in flight
    REQUESTS = 8  # served since birth
    ACCEPTED = 9  # connections accepted since birth
    LOAD = 10  # OPEN while it takes new connections, else NOT_ACCEPTING: one word decides the accept gate


SEAT_WORDS: Final = 16  # 128 bytes: two cache lines, so that no two workers write to the same one
HEADER_WORDS: Final = 16
NOT_ACCEPTING: Final = 2**64 - 1
"""LOAD of a seat that takes no connections: empty, booting, draining, or out of descriptors."""

_MAGIC: Final = int.from_bytes(b"prefork\0", "little")
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One seat as read at one moment (word by word: see law 3)."""

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


class Scoreboard:
    """The shared table of workers, one row ("seat") for each process that may live at a time.

        board = Scoreboard(seats=16)           # in the master, before the first fork
        board.assign(3, slot=1, generation=1)  # master, before it forks the worker for seat 3
        board.words[board.base(3) + Word.OPEN] = 17     # in that worker
        board.row(3).open                      # anywhere
        board.clear(3)                         # master, after it has reaped the worker

    *Resource handling*: the mapping lives until the last process that holds it is gone;
    `close()` gives up this process' share.
    """

    __slots__ = ("_memory", "seats", "words")

    def __init__(self, seats: int) -> None:
        if seats < 1:
            raise ValueError(f"a scoreboard needs at least one seat, got {seats}")
        self._memory = mmap.mmap(-1, (HEADER_WORDS + seats * SEAT_WORDS) * 8)
        self.words = memoryview(self._memory).cast("Q")
        self.seats = seats
        self.words[0], self.words[1], self.words[2], self.words[3] = _MAGIC, _VERSION, seats, SEAT_WORDS
        for seat in range(seats):
            self.clear(seat)

    @staticmethod
    def check(words: memoryview) -> int:
        """The number of seats in a mapping made elsewhere. Raises ValueError if it is not one of ours."""
        if len(words) < HEADER_WORDS or words[0] != _MAGIC:
            raise ValueError("not a prefork scoreboard")
        if words[1] != _VERSION or words[3] != SEAT_WORDS:
            raise ValueError(f"scoreboard version {words[1]} with {words[3]} words, this is {_VERSION}")
        seats = int(words[2])
        if len(words) < HEADER_WORDS + seats * SEAT_WORDS:
            raise ValueError("scoreboard cut short")
        return seats

    def __repr__(self) -> str:
        taken = sum(1 for row in self.rows())
        return f"<Scoreboard {taken} of {self.seats} seats taken>"

    def column(self, word: Word) -> memoryview:
        """One word of all seats, by seat: a live view, which `min` or `sum` reads without a loop of ours."""
        return self.words[HEADER_WORDS + word :: SEAT_WORDS]

    def base(self, seat: int) -> int:
        """Index in `words` of the first word of a seat."""
        if not 0 <= seat < self.seats:
            raise IndexError(f"seat {seat} of {self.seats}")
        return HEADER_WORDS + seat * SEAT_WORDS

    def assign(self, seat: int, *, slot: int, generation: int, started: int) -> None:
        """Master only, before the fork: the seat is booting. The pid is written by the worker itself."""
        self.clear(seat)
        base = self.base(seat)
        self.words[base + Word.SLOT] = slot
        self.words[base + Word.GENERATION] = generation
        self.words[base + Word.STARTED] = started
        self.words[base + Word.STATE] = WorkerState.BOOTING

    def clear(self, seat: int) -> None:
        """Master only, before a birth or after a death: nobody sits here."""
        base = self.base(seat)
        # First of all, siblings must stop waiting for a worker that will never accept again.
        self.words[base + Word.LOAD] = NOT_ACCEPTING
        for word in range(SEAT_WORDS):
            if word != Word.LOAD:
                self.words[base + word] = 0

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
        )

    def rows(self) -> Iterator[Row]:
        """The seats that are taken."""
        for seat in range(self.seats):
            row = self.row(seat)
            if row.state is not WorkerState.EMPTY:
                yield row

    def close(self) -> None:
        """Give up the mapping in this process. Idempotent; the others keep theirs."""
        self.words.release()
        try:
            self._memory.close()
        except BufferError:
            pass  # a view of it is in use: the mapping goes when the view does


@dataclass(frozen=True, slots=True)
class Place:
    """What a child is born with: the argument of the function that the master forks.

    slot: which worker it is, from 0. seat: its row of the scoreboard. generation: of the
    code, from 1. control: its end of the socket pair. board: the shared scoreboard.
    """

    slot: int
    seat: int
    generation: int
    control: Control
    board: Scoreboard
