"""One client of the control socket: a line comes, is performed, its answer goes, the next line comes.

The laws: it is never waited for; it has a time for everything but for what it asked for; and what
is kept for it is bounded: one request line and a bit, one answer. While it waits for an answer, or
does not take one, no more is read from it.

States, and what ends each of them:

    IDLE      nothing is asked          a byte comes, or IDLE_WITHIN is over: closed
    READING   a line is not complete    its end comes, or LINE_WITHIN is over: told so, closed
    WORKING   a request is performed    its answer is there, or the client leaves
    SENDING   an answer is on its way   it is sent, or SEND_WITHIN is over: closed

A client that closes its sending direction only (`... | socat - UNIX:...`) is answered still.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import select
import time
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from prefork.master.service import Loop

log = logging.getLogger("prefork")

MAX_LINE: Final = 64 * 1024
"""The longest request, in bytes."""

LINE_WITHIN: Final = 10.0
"""Seconds for a request to be complete, once it has begun."""

SEND_WITHIN: Final = 10.0
"""Seconds for a client to take an answer."""

IDLE_WITHIN: Final = 60.0
"""Seconds that a client may stay without asking anything."""


class State(enum.Enum):
    IDLE = "idle"
    READING = "reading"
    WORKING = "working"
    SENDING = "sending"
    CLOSED = "closed"


TRANSITIONS: Final = {
    State.IDLE: frozenset({State.READING, State.WORKING, State.SENDING, State.CLOSED}),
    State.READING: frozenset({State.WORKING, State.SENDING, State.CLOSED}),
    State.WORKING: frozenset({State.SENDING, State.CLOSED}),
    State.SENDING: frozenset({State.IDLE, State.READING, State.CLOSED}),
    State.CLOSED: frozenset[State](),
}

_TIMES: Final = {
    State.IDLE: IDLE_WITHIN,
    State.READING: LINE_WITHIN,
    State.WORKING: None,  # what it waits for has deadlines of its own
    State.SENDING: SEND_WITHIN,
    State.CLOSED: None,
}


class Client:
    """A connection that has been accepted and may ask.

    name: who it is, for the log: "control socket (pid 4711, user 0)".
    perform: called with the client and each line; calls `answer`, now or later.
    gone: called once, when the connection is closed.
    deadline: `late` is to be called when time.monotonic() is past it; None: it may take its time.

    *Resource handling*: the socket is the client's from now on. Raises OSError if the loop cannot
    wait for it; the socket is then still the caller's.
    """

    __slots__ = (
        "_events",
        "_gone",
        "_input",
        "_last",
        "_loop",
        "_output",
        "_perform",
        "_sock",
        "_told_all",
        "deadline",
        "name",
        "state",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        name: str,
        perform: Callable[[Client, bytes], None],
        gone: Callable[[Client], None],
    ) -> None:
        self.name = name
        self.state = State.IDLE
        self.deadline: float | None = time.monotonic() + IDLE_WITHIN
        self._loop = loop
        self._sock = sock
        self._perform = perform
        self._gone = gone
        self._input = bytearray()
        self._output = memoryview(b"")
        self._events = EVENT_READ  # what the loop waits for
        self._told_all = False  # it has sent its end of file
        self._last = False  # close after this answer
        loop.register(sock, EVENT_READ, self._ready)

    def __repr__(self) -> str:
        return f"<Client {self.name} {self.state.value}>"

    def answer(self, answer: dict[str, Any]) -> None:
        """Send this as the answer to the request. Whoever has left by now misses it."""
        if self.state is State.WORKING:
            self._deliver(answer)

    def close(self) -> None:
        """Close the connection, whatever is going on."""
        if self.state is not State.CLOSED:
            self._enter(State.CLOSED)
            self._wait_for(0)
            self._sock.close()
            self._gone(self)

    def abandon(self) -> None:
        """Close the descriptor without a word to anybody, the loop included."""
        self.state = State.CLOSED
        self._events = 0
        self._sock.close()

    # ---------------------------------------------------------------- what happens

    def _ready(self, events: int) -> None:
        # Each asks again: what comes first may have changed everything.
        if events & EVENT_WRITE and self._events & EVENT_WRITE:
            self._send()
        elif events & EVENT_READ and self._events & EVENT_READ:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(MAX_LINE + 1 - len(self._input))
        except BlockingIOError:
            return
        except OSError:  # reset: it has left with something unread
            self.close()
            return
        self._input += data
        self._told_all = not data
        if self.state is State.WORKING:
            if self._told_all and _hung_up(self._sock):
                self.close()
            else:
                self._wait_for_input()
        elif self.state is State.IDLE or b"\n" in data or self._told_all or len(self._input) > MAX_LINE:
            # Else a line goes on, and is not looked at again for each byte.
            self._next()

    def _next(self) -> None:
        """Have the next request performed, if it is here."""
        if self.state not in (State.IDLE, State.READING):
            return
        line, end, rest = self._input.lstrip().partition(b"\n")
        if end or (line and self._told_all):
            self._input = rest
            self._enter(State.WORKING)
            self._wait_for_input()
            self._perform(self, bytes(line))
        elif self._told_all:
            self.close()
        elif len(line) > MAX_LINE:
            self._refuse(f"a request is one line of at most {MAX_LINE} bytes")
        else:
            self._input = line
            if line and self.state is State.IDLE:
                self._enter(State.READING)
            self._wait_for_input()

    def _deliver(self, answer: dict[str, Any]) -> None:
        try:
            text = json.dumps(answer, allow_nan=False)
        except (TypeError, ValueError) as exc:
            log.error("control socket: an answer that is not JSON: %s", exc)
            text = json.dumps({"ok": False, "error": f"internal error: the answer is not JSON: {exc}"})
        self._output = memoryview(text.encode("ascii") + b"\n")
        self._enter(State.SENDING)
        self._send()

    def _send(self) -> None:
        try:
            sent = self._sock.send(self._output)
        except BlockingIOError:
            sent = 0
        except OSError:  # it has not waited for the answer
            self.close()
            return
        self._output = self._output[sent:]
        if self._output:
            self._wait_for(EVENT_WRITE)
        elif self._last:
            self.close()
        else:
            self._enter(State.READING if self._input else State.IDLE)
            if self._input or self._told_all:
                # Not now: others have their turn before the next request of this one.
                self._wait_for(0)
                self._loop.call_at(time.monotonic(), self._next)
            else:
                self._wait_for(EVENT_READ)

    def late(self) -> None:
        """Its time is over."""
        if self.state is State.READING:
            self._refuse(f"no complete request within {LINE_WITHIN:g} s")
        else:
            self.close()

    def _refuse(self, error: str) -> None:
        """Say what is wrong, and that is the end of it."""
        self._last = True
        drain(self._sock)
        self._deliver({"ok": False, "error": error})

    # ---------------------------------------------------------------- states and events

    def _enter(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state
        seconds = _TIMES[state]
        self.deadline = None if seconds is None else time.monotonic() + seconds

    def _wait_for_input(self) -> None:
        # After the end of file it is readable for ever. Else there is a bound to what is kept.
        full = self._told_all or len(self._input) > MAX_LINE
        self._wait_for(0 if full else EVENT_READ)

    def _wait_for(self, events: int) -> None:
        before, self._events = self._events, events
        if events == before:
            return
        if not events:
            self._loop.unregister(self._sock)
        elif before:
            self._loop.modify(self._sock, events)
        else:
            try:
                self._loop.register(self._sock, events, self._ready)
            except OSError as exc:  # the kernel's limit of watched descriptors
                log.warning("%s: cannot wait for it: %s", self.name, exc.strerror)
                self._events = 0
                self._loop.call_at(time.monotonic(), self.close)


def drain(sock: socket.socket) -> None:
    """Take what is there and forget it: closed with something unread, the other side gets a reset."""
    with contextlib.suppress(OSError):
        sock.recv(MAX_LINE)


def _hung_up(sock: socket.socket) -> bool:
    """Whether the other side has closed the socket, and not only its sending direction."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
