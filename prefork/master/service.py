"""What else may live in the master's loop, and what the loop offers to it.

The arbiter's loop is there to supervise; a control socket, the health listener and their like
are guests in it. Each is a `Service`, and all that it knows of the master is this `Loop`:

    class Greeter:
        def attach(self, loop: Loop) -> None:
            self._sock = socket.create_server(("127.0.0.1", 7))
            self._sock.setblocking(False)
            loop.register(self._sock, selectors.EVENT_READ, self._greet)

        def _greet(self, events: int) -> None:
            ...                             # accept, send: whatever does not wait

        def close(self) -> None:
            self._sock.close()

    arbiter.run(4, entry, services=[Greeter()])

The laws: a guest never blocks, because the loop that waits for it watches over the workers;
it never raises for what goes wrong at run time, because serving does not depend on it; what it
keeps for strangers is bounded; and in a forked child it does nothing but close its descriptors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import socket

    from prefork.ipc import Scoreboard

ReloadDone = Callable[[bool, str], object]
"""Called once with how a reload ended: whether the new generation serves, and what happened, for
people; the application's traceback is part of the text when that was the cause."""

StacksDone = Callable[[dict[int, str]], object]
"""Called once with the stacks of all threads, by the number of the worker, from 1. A worker that
did not answer in time is in it as well, with a text that says so."""


class Loop(Protocol):
    """The master's loop, as its guests see it. One thread: no call may come from another one.

    board: the shared scoreboard; guests only read it.
    """

    @property
    def board(self) -> Scoreboard: ...

    def register(self, sock: socket.socket, events: int, callback: Callable[[int], object]) -> None:
        """Call `callback(ready)` whenever one of `events` is possible on `sock`.

        events, ready: selectors.EVENT_READ, EVENT_WRITE, or both. The socket must be non-blocking
        and must be unregistered before it is closed. It is the guest's to close.

        Raises KeyError if it is registered already.
        """

    def modify(self, sock: socket.socket, events: int) -> None:
        """Wait for other `events` from now on; the callback stays. Raises KeyError if `sock` is unknown."""

    def unregister(self, sock: socket.socket) -> None:
        """Wait for nothing any more on `sock`. Raises KeyError if it is unknown.

        A callback that is due in the same turn of the loop may be skipped or still come.
        """

    def call_at(self, when: float, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback()` once, when time.monotonic() is past `when`.

        Returns a function that cancels it, which is harmless after the call.
        """

    def status(self) -> dict[str, Any]:
        """How the service does, as `prefork status --json` prints it. Made anew at each call.

        version         of prefork
        pid             of the master
        app             what is served: "app:mux"
        phase           "starting", "serving", "reloading", "draining", "stopping"
        uptime          seconds
        generation      of the code, from 1
        bind            the addresses, as URLs
        workers_wanted  and workers_ready: numbers
        last_reload     null, or {"ok": bool, "text": str, "at": Unix time in seconds}
        restarts        {reason: number}
        totals          {counter: number} over all workers, those that are gone included
        workers         a list, one object for each process:
            worker      its number, from 1
            pid, generation
            state       "booting", "ready", "draining", "leaving"
            age         seconds
            requests    since its birth; rate: per second
            open        connections; active: of them, with a request in flight
            lag_ms      how late its loop turns; null if that is not known
            p50_ms, p90_ms, p99_ms     of the time to answer; null if there is nothing to tell
            rss         bytes; pss: bytes, null if the kernel does not tell
            doing       [{"request": "GET /report", "seconds": 41.0}, ...], the oldest first
        """
        ...

    def reload(self, done: ReloadDone | None, why: str) -> None:
        """Start the application anew, in a new generation; the old one serves until the new one does.

        why: who asks, for the log. done: called when it is over, perhaps before this returns; a
        request that comes during a reload is told of the end of the one that covers it. None:
        nobody waits.
        """

    def scale(self, workers: int) -> str:
        """Have this number of workers from now on. Returns what is being done, for people.

        Raises ValueError with a text for people if it cannot be.
        """
        ...

    def stop(self, why: str, at_once: bool = False) -> None:
        """End the service, as a SIGTERM does; `at_once`: as a SIGQUIT does. why: who asks, for the log."""

    def stacks(self, worker: int | None, done: StacksDone) -> None:
        """Ask a worker, by its number from 1, or all of them (None), for the stacks of all threads.

        done: called when all have answered or their time is over, perhaps before this returns.

        Raises ValueError with a text for people if there is no such worker.
        """


class Service(Protocol):
    """A guest of the master's loop."""

    def attach(self, loop: Loop) -> None:
        """Open what is not open yet, and register it. Called once, before the first fork.

        Must not raise for what the surroundings do (an address in use, a directory that is
        missing): that is told in the log, and the service goes on without this guest.
        """

    def close(self) -> None:
        """Close all descriptors, and do nothing else that anybody outside could notice.

        Called in each forked child, where the loop is gone already: nothing may be unregistered,
        no file be removed, nothing be sent. Called in the master as well, at the very end; a guest
        that leaves something behind (a socket file) tells the two apart by its process id.
        """
