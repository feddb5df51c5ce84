"""Acceptor: takes connections from a listening socket, one reader callback per socket.

We accept by hand, not through `loop.create_server`: several processes may share the socket,
and then a worker must be able to leave connections to a less loaded sibling; at the
descriptor limit the queue must be left alone instead of being accepted and dropped (which is
what libuv does); and `create_server` would call listen(2) again, with a backlog of its own.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
from typing import TYPE_CHECKING, Any

from prefork.http.server.clock import NEVER

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Coroutine, Sequence

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY = 0.1  # seconds to leave the queue alone after one of these

# The client left while it was queued, or the network failed it: accept(2) says to try again.
_CONNECTION_FAILED = (
    *(errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT),
    *(errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
)

_DRAIN_LIMIT = 65536  # no listen queue is longer


class _Listener:
    """A listening socket, and a cheap way to accept from it.

    `socket.accept` makes a `socket.socket`, whose family and type are converted to enums each
    time somebody looks, which costs more than the system call. The C class it is built on
    (`socket.SocketType`) is all that a transport needs.
    """

    __slots__ = ("_accept", "_family", "_type", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._accept = sock._accept  # type: ignore[attr-defined]  # what socket.accept calls
        self._family = int(sock.family)
        self._type = int(sock.type)

    def accept(self) -> Any:
        fd, _ = self._accept()
        return socket.SocketType(self._family, self._type, 0, fd)


class Acceptor:
    """Accepts on listening, non-blocking sockets until stopped.

    factory: makes the protocol of one connection. gate: asked before each accept; 0.0 goes
    ahead, a positive number of seconds leaves the queue to others that long. is_full: true
    while this process has all the connections it may have; `resume` ends the wait.

    Resource handling: `stop` removes the readers; the sockets stay their owner's.
    """

    def __init__(
        self,
        socks: Sequence[socket.socket],
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        loop: asyncio.AbstractEventLoop,
        log: logging.Logger,
        gate: Callable[[], float] | None,
        is_full: Callable[[], bool],
    ) -> None:
        self._listeners = [_Listener(sock) for sock in socks]
        self._factory = factory
        self._loop = loop
        self._log = log
        self._gate = gate
        self._is_full = is_full
        self._away: asyncio.TimerHandle | None = None  # set while the readers are removed for a time
        self._waiting = False  # for `resume`
        self._stopped = False
        self._starting: set[asyncio.Future[Any]] = set()
        self._complained_at = -NEVER
        self._watch()

    def _watch(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener.sock, self._readable, listener)

    def _unwatch(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener.sock)

    def _readable(self, listener: _Listener) -> None:
        # One at a time: the loop comes back at once if there is more, a second try that finds nothing
        # costs a system call and an exception, and siblings get their share of a burst.
        if self._is_full():
            self._unwatch()
            self._waiting = True
        elif self._gate is not None and (pause := self._gate()) > 0.0:
            self._step_back(pause)
        else:
            self._accept(listener)

    def _accept(self, listener: _Listener) -> bool:
        """Accept one connection; whether another try makes sense."""
        try:
            connection = listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                self._complain(error)
                self._step_back(_RETRY)
                return False
            if error.errno in _CONNECTION_FAILED:
                return True
            self._complain(error)
            return False
        # This coroutine makes the transport at its first step and then only waits for it to be ready. A
        # Task for that would cost more than the rest of the accept: it is stepped by hand.
        coroutine = self._loop.connect_accepted_socket(self._factory, connection)
        try:
            ready = coroutine.send(None)
        except StopIteration:
            return True
        except OSError as error:
            self._failed(error)
            return True
        ready._asyncio_future_blocking = False
        self._starting.add(ready)
        ready.add_done_callback(functools.partial(self._started, coroutine))
        return True

    def _started(self, coroutine: Coroutine[Any, Any, Any], ready: asyncio.Future[Any]) -> None:
        self._starting.discard(ready)
        try:
            coroutine.send(None)
        except StopIteration:
            pass
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self._log.error("http: a connection could not be set up: %s", error)

    def _step_back(self, seconds: float) -> None:
        if self._away is None and not self._stopped:
            self._unwatch()
            self._away = self._loop.call_later(seconds, self._come_back)

    def _come_back(self) -> None:
        self._away = None
        if not self._stopped and not self._waiting:
            self._watch()

    def resume(self) -> None:
        """A connection has ended: accept again if it was full."""
        if self._waiting and not self._stopped:
            self._waiting = False
            if self._away is None:
                self._watch()

    def _complain(self, error: OSError) -> None:
        now = self._loop.time()
        if now - self._complained_at >= 1.0:
            self._complained_at = now
            self._log.error(
                "http: accept: %s; leaving the queue alone for %.1f s at a time. "
                "Raise the limit of open files (ulimit -n, LimitNOFILE=) or lower max_conns",
                error.strerror,
                _RETRY,
            )

    def drain(self) -> None:
        """Take what is queued now, whatever the gate and the limit say, and stop: what stays is reset."""
        if not self._stopped:
            self.stop()
            for listener in self._listeners:
                for _ in range(_DRAIN_LIMIT):
                    if not self._accept(listener):
                        break

    def stop(self) -> None:
        """Accept no more."""
        if not self._stopped:
            self._stopped = True
            if self._away is not None:
                self._away.cancel()
                self._away = None
            elif not self._waiting:
                self._unwatch()

    async def settle(self) -> None:
        """Wait until every accepted connection has its transport."""
        while self._starting:
            await asyncio.wait(self._starting)
