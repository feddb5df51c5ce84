"""What master and worker share: exit codes, control messages, the scoreboard.

Three small languages, and nothing else crosses the line between the processes:

* `ExitCode`: what a process says with its last breath.
* Messages: JSON datagrams over one socket pair per worker (`Control`). The worker says
  `Ready`, `Failed`, `Draining`, `Retiring`, `Changed`; the master says `Drain` and `Reopen`. End of file
  means that the other side is gone, which is how a worker learns of its master's death without
  polling.
* `Scoreboard`: numbers in shared memory, because they change too often to be sent and
  must be readable when the writer hangs or is dead. It has a file of its own, `scoreboard`;
  its names are here as well.
"""

from __future__ import annotations

import enum
import json
import signal
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from prefork.scoreboard import HEADER_WORDS as HEADER_WORDS
from prefork.scoreboard import NOT_ACCEPTING as NOT_ACCEPTING
from prefork.scoreboard import SEAT_WORDS as SEAT_WORDS
from prefork.scoreboard import TICK_EVERY as TICK_EVERY
from prefork.scoreboard import Row as Row
from prefork.scoreboard import Scoreboard as Scoreboard  # noqa: TC001  # its name is here as well
from prefork.scoreboard import Word as Word
from prefork.scoreboard import WorkerState as WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable


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


DUMP_SIGNAL: Final = signal.SIGUSR2
"""What makes a worker write the stacks of all its threads, also when its loop hangs."""

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
class Retiring:
    """worker -> master: it goes on serving, and wants a successor because of `reason` ("max_requests")."""

    reason: str
    type: ClassVar[str] = "retiring"


@dataclass(frozen=True, slots=True)
class Changed:
    """worker -> master: files of the application have changed. paths: for people, "app.py, views.py"."""

    paths: str
    type: ClassVar[str] = "changed"


@dataclass(frozen=True, slots=True)
class Reopen:
    """master -> worker: the log files have been renamed, open them anew."""

    type: ClassVar[str] = "reopen"


@dataclass(frozen=True, slots=True)
class Drain:
    """master -> worker: stop accepting, finish what is in flight within `timeout` seconds, exit.

    0.0 means at once. A second one can only make the time shorter.
    """

    timeout: float
    type: ClassVar[str] = "drain"


Message: TypeAlias = Ready | Failed | Draining | Retiring | Changed | Reopen | Drain

_KINDS: dict[str, Callable[..., Message]] = {
    kind.type: kind for kind in (Ready, Failed, Draining, Retiring, Changed, Reopen, Drain)
}
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "ready": {},
    "failed": {"code": (int,), "text": (str,)},
    "draining": {"reason": (str,)},
    "retiring": {"reason": (str,)},
    "changed": {"paths": (str,)},
    "reopen": {},
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


@dataclass(frozen=True, slots=True)
class Place:
    """What a child is born with: the argument of the function that the master forks.

    slot: which worker it is, from 0. seat: its row of the scoreboard. generation: of the
    code, from 1. control: its end of the socket pair. board: the shared scoreboard. stacks: a
    descriptor to write every thread's stack to when DUMP_SIGNAL comes, -1 for none.
    """

    slot: int
    seat: int
    generation: int
    control: Control
    board: Scoreboard
    stacks: int = -1
