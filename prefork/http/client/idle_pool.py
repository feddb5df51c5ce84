"""IdlePool: the connections of one Transport on one event loop (Go: the idle maps and queues of Transport).

Every server (every connect key) has a HostPool with its idle connections, most recently used
last, and the requests that wait for one, oldest first. A request that finds no idle
connection becomes a WantConn: a dial is started for it at once, and it takes what comes first,
that dial's connection or one that another request gives back; the connection that comes too
late goes to the pool.

Law: every operation takes the same time whatever the number of hosts, connections and
waiting requests; ordered dicts give order, membership and removal at once.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prefork.http.client.bulk_reader import BUFFER
from prefork.http.errors import ConnectionLost

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from prefork.http.client.connect_method import ConnectMethod
    from prefork.http.client.persist_conn import PersistConn
    from prefork.http.client.trace import ClientTrace


class WantConn:
    """A request that waits for a connection (Go: wantConn).

    future: resolved with the connection, or with the error of the dial made for it. conn: the
    connection that is dialled for it, None as long as it has to wait for that.
    """

    __slots__ = ("conn", "future", "host", "trace")

    def __init__(
        self, host: HostPool, future: asyncio.Future[PersistConn], trace: ClientTrace | None
    ) -> None:
        self.host = host
        self.future = future
        self.trace = trace
        self.conn: PersistConn | None = None

    @property
    def waiting(self) -> bool:
        return not self.future.done()


class HostPool:
    """The connections to one server, and who waits for one.

    conns: all of them, with those being dialled. dialing: of these, the dials under way.
    """

    __slots__ = ("conns", "dial_queue", "dialing", "idle", "method", "waiting")

    def __init__(self, method: ConnectMethod) -> None:
        self.method = method
        self.conns = 0
        self.dialing = 0
        self.idle: dict[PersistConn, None] = {}
        self.waiting: OrderedDict[WantConn, None] = OrderedDict()
        self.dial_queue: OrderedDict[WantConn, None] = OrderedDict()  # no dial yet: max_conns_per_host


@dataclass(frozen=True, slots=True)
class HostStats:
    """The connections to one server: idle, in use, being dialled; and the requests that wait for one."""

    idle: int
    active: int
    dialing: int
    waiting: int


@dataclass(slots=True)
class PoolTotals:
    """What all Transports of this process have done, on all loops, and have open now.

    requests: round trips begun. reuses: of these, on a kept connection. dials, dial_errors,
    waits, retries: as in `TransportStats`. Those never go back. idle, active: connections now;
    active ones are in use.
    """

    requests: int = 0
    reuses: int = 0
    dials: int = 0
    dial_errors: int = 0
    waits: int = 0
    retries: int = 0
    idle: int = 0
    active: int = 0

    def add(self, pool: IdlePool) -> None:
        """Add the counters of one pool."""
        self.requests += pool.requests
        self.reuses += pool.reuses
        self.dials += pool.dials
        self.dial_errors += pool.dial_errors
        self.waits += pool.waits
        self.retries += pool.retries


class IdlePool:
    """What a Transport has open on one loop.

    max_idle, max_idle_per_host, max_per_host: limits, None for no limit. start_dial(want): begins
    to dial for a WantConn; it ends with `dialed` or `dial_failed`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start_dial: Callable[[WantConn], object],
        *,
        max_idle: int | None,
        max_idle_per_host: int | None,
        max_per_host: int | None,
    ) -> None:
        self.loop = loop
        self.hosts: dict[str, HostPool] = {}
        self.conns: set[PersistConn] = set()
        self.requests = self.reuses = self.dials = self.dial_errors = self.waits = self.retries = 0
        self.refuses_idle = False  # after close_idle_connections, until the next request needs a connection
        self.closed = False
        self._bulk: memoryview | None = None
        self._all_lost: asyncio.Future[None] | None = None
        self._lru: OrderedDict[PersistConn, None] = OrderedDict()
        self._start_dial = start_dial
        self._max_idle = max_idle
        self._max_idle_per_host = max_idle_per_host
        self._max_per_host = max_per_host
        self._ended = _ended  # not the global at the end: that is another one after a fork
        _pools.add(self)

    def __del__(self) -> None:
        # What it has done stays done.
        self._ended.add(self)

    def bulk_buffer(self) -> memoryview:
        """The buffer that all connections receive long bodies into."""
        if self._bulk is None:
            self._bulk = memoryview(bytearray(BUFFER))
        return self._bulk

    def host(self, method: ConnectMethod) -> HostPool:
        """The HostPool of a connect key, made if it is new."""
        host = self.hosts.get(method.key)
        if host is None:
            host = self.hosts[method.key] = HostPool(method)
        return host

    def take(self, host: HostPool) -> PersistConn:
        """The most recently used idle connection of a host that has one: its buffers are warm."""
        conn = host.idle.popitem()[0]
        del self._lru[conn]
        return conn

    def want(self, host: HostPool, trace: ClientTrace | None) -> WantConn:
        """Wait for a connection, and dial one if the limit allows."""
        self.refuses_idle = False
        want = WantConn(host, self.loop.create_future(), trace)
        if self.closed:
            want.future.set_exception(_pool_closed(host))
            return want
        host.waiting[want] = None
        self.waits += 1
        if self._max_per_host is None or host.conns < self._max_per_host:
            self._dial(want)
        else:
            host.dial_queue[want] = None
        return want

    def unwant(self, want: WantConn) -> None:
        """The request has gone. A connection that it was given, and has not taken, goes back."""
        self._forget(want)
        future = want.future
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None:
            self.put_idle(future.result())

    def _forget(self, want: WantConn) -> None:
        host = want.host
        host.waiting.pop(want, None)
        host.dial_queue.pop(want, None)
        self._drop_if_empty(host)

    def _dial(self, want: WantConn) -> None:
        want.host.conns += 1
        want.host.dialing += 1
        self.dials += 1
        self._start_dial(want)

    def dialed(self, want: WantConn, conn: PersistConn) -> None:
        """A dial has brought a connection: for its WantConn, if that still waits, else for the pool."""
        host = want.host
        host.dialing -= 1
        if want.waiting:
            host.waiting.pop(want, None)
            want.future.set_result(conn)
        else:
            self.put_idle(conn)

    def dial_failed(self, want: WantConn, error: Exception, conn: PersistConn) -> None:
        """A dial has failed: an error for its WantConn, and room for another dial."""
        host = want.host
        host.dialing -= 1
        self.dial_errors += 1
        if want.waiting:
            want.future.set_exception(error)
        self._forget(want)
        conn.close(error)

    def put_idle(self, conn: PersistConn) -> Exception | None:
        """Take a connection back: for a waiting request, or to keep; if it is closed, why is returned."""
        host = conn.host
        if conn.is_closed:
            return ConnectionLost("http: persistConn is closed")
        conn.reused = True
        while host.waiting:
            want = host.waiting.popitem(last=False)[0]
            host.dial_queue.pop(want, None)
            if want.waiting:
                want.future.set_result(conn)
                return None
        if self.closed or self.refuses_idle:
            return self._reject(conn, "http: idle connections are being closed")
        if self._max_idle_per_host is not None and len(host.idle) >= self._max_idle_per_host:
            return self._reject(conn, "http: putIdleConn: too many idle connections for host")
        if self._max_idle is not None and len(self._lru) >= self._max_idle:
            if not self._lru:
                return self._reject(conn, "http: too many idle connections")
            next(iter(self._lru)).close(ConnectionLost("http: too many idle connections"))
        host.idle[conn] = None
        self._lru[conn] = None
        conn.became_idle()
        return None

    def _reject(self, conn: PersistConn, why: str) -> Exception:
        error = ConnectionLost(why)
        conn.close(error)
        return error

    def closing(self, conn: PersistConn) -> None:
        """A connection is not to be used any more; its place is free."""
        host = conn.host
        if conn in host.idle:
            del host.idle[conn]
            del self._lru[conn]
        self._left(host)

    def lost(self, conn: PersistConn) -> None:
        """A closed connection's socket is gone."""
        self.conns.discard(conn)
        if not self.conns and self._all_lost is not None and not self._all_lost.done():
            self._all_lost.set_result(None)

    async def wait_closed(self, timeout: float) -> None:
        """Wait for the sockets of closed connections to be closed; after `timeout` seconds they are cut."""
        if not self.conns:
            return
        self._all_lost = self.loop.create_future()
        timer = self.loop.call_later(timeout, self._abort_all)
        try:
            await self._all_lost
        finally:
            timer.cancel()

    def _abort_all(self) -> None:
        for conn in list(self.conns):
            conn.abort()

    def _left(self, host: HostPool) -> None:
        host.conns -= 1
        while host.dial_queue:
            want = host.dial_queue.popitem(last=False)[0]
            if want.waiting:
                self._dial(want)
                return
        self._drop_if_empty(host)

    def _drop_if_empty(self, host: HostPool) -> None:
        # By identity: a request that wakes up late may still hold a host that another has replaced.
        if not host.conns and not host.waiting and self.hosts.get(host.method.key) is host:
            del self.hosts[host.method.key]

    def close(self) -> None:
        """End every wait with an error; nothing is dialled or kept from now on."""
        self.closed = True
        for host in list(self.hosts.values()):
            host.dial_queue.clear()
            while host.waiting:
                want = host.waiting.popitem(last=False)[0]
                if want.waiting:
                    want.future.set_exception(_pool_closed(host))
            self._drop_if_empty(host)

    def close_idle(self) -> None:
        """Close what is idle, and what becomes idle before the next request needs a new connection."""
        self.refuses_idle = True
        while self._lru:
            next(iter(self._lru)).close(ConnectionLost("http: CloseIdleConnections called"))

    @property
    def idle(self) -> int:
        """The number of idle connections."""
        return len(self._lru)

    def host_stats(self) -> dict[str, HostStats]:
        """The state of each host, by connect key."""
        return {
            key: HostStats(
                idle=len(host.idle),
                active=host.conns - host.dialing - len(host.idle),
                dialing=host.dialing,
                waiting=len(host.waiting),
            )
            for key, host in self.hosts.items()
        }

    def __repr__(self) -> str:
        return f"<IdlePool {len(self.conns)} connections, {self.idle} idle, {len(self.hosts)} hosts>"


def _pool_closed(host: HostPool) -> ConnectionLost:
    return ConnectionLost(
        "http: the Transport was closed", addr=host.method.addr, phase="pool", retryable=True
    )


_pools: weakref.WeakSet[IdlePool] = weakref.WeakSet()
_ended = PoolTotals()  # of the pools that are gone


def pool_totals() -> PoolTotals:
    """The sum over all pools of this process, those that are gone included; a few additions for each."""
    totals = replace(_ended)
    for pool in _live_pools():
        totals.add(pool)
        totals.idle += pool.idle
        totals.active += len(pool.conns) - pool.idle
    return totals


def _live_pools() -> list[IdlePool]:
    while True:
        try:
            return list(_pools)
        except RuntimeError:
            pass  # another thread, with a loop of its own, has just made one


def _after_fork() -> None:
    # The parent's, which the child has not done.
    global _ended
    _pools.clear()
    _ended = PoolTotals()


os.register_at_fork(after_in_child=_after_fork)
