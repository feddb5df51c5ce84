"""Transport: sends one request, and keeps connections for the next (Go: Transport).

The way of a request: `round_trip` checks it and finds its connect key; the IdlePool of this loop
has an idle connection, or the request waits for one while a dial is under way (`_get_conn`);
the PersistConn does the exchange; if it was a kept connection that had died meanwhile, and
nothing can happen twice, the request goes round again.

Law: connections belong to the process and the loop that opened them. Every loop has an IdlePool
of its own, which ends with the loop; after a fork the child starts with none and never touches
the parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefork.http.client import trace as tracing
from prefork.http.client.connect_method import ConnectMethod, canonical_addr
from prefork.http.client.dial import Dialer
from prefork.http.client.idle_pool import HostPool, HostStats, IdlePool, WantConn
from prefork.http.client.persist_conn import PersistConn, client_timeout
from prefork.http.client.proxy import (
    environment_has_proxies,
    proxy_authorization,
    proxy_from_environment,
    proxy_url,
)
from prefork.http.client.request_head import (
    NO_BODY,
    asks_upgrade,
    check,
    format_head,
    framing_of,
    needs_probe,
    wants_close,
    wire_host,
    wire_uri,
)
from prefork.http.client.response_head import check_parser
from prefork.http.client.retry import is_replayable, should_retry
from prefork.http.client.round_tripper import Foreign, RoundTripper
from prefork.http.errors import (
    ConnectionLost,
    LocalProtocolError,
    PoolTimeout,
    ProxyError,
    RequestBodyError,
    TransportError,
)
from prefork.http.message.query import quoted
from prefork.http.message.source_body import SourceBody

if TYPE_CHECKING:
    import socket
    import ssl

    from prefork.http.client.trace import ClientTrace
    from prefork.http.message.header import Header
    from prefork.http.message.request import Request, Target
    from prefork.http.message.response import Response
    from prefork.http.message.response_body import ResponseBody
    from prefork.http.message.url import URL

PROBE_TIME = 0.2
"""Seconds to wait for the first byte of a body that may be empty (Go: probeRequestBody)."""

CLOSE_TIME = 1.0
"""Seconds that `close` gives connections to say goodbye."""

_NO_FIELDS: dict[str, list[str]] = {}
_get_running_loop = asyncio.get_running_loop

check_parser()


class SkipAltProtocol(Exception):
    """A registered RoundTripper raises it to leave a request to the Transport (Go: ErrSkipAltProtocol)."""


@dataclass(frozen=True, slots=True)
class TransportStats:
    """What a Transport has done on this loop, and has open now.

    requests: round trips begun. reuses: of these, on a kept connection. dials, dial_errors: TCP
    (or proxy, or TLS) connections begun, and those that failed. waits: requests that found no
    idle connection. retries: requests sent again because a kept connection had died. idle,
    active, dialing, waiting: now, over all hosts; `hosts` has them by connect key.
    """

    requests: int
    reuses: int
    dials: int
    dial_errors: int
    waits: int
    retries: int
    idle: int
    active: int
    dialing: int
    waiting: int
    hosts: dict[str, HostStats]


class Transport:
    """A RoundTripper over HTTP/1.1 that keeps connections, for HTTP and HTTPS, with proxies.

    Times are seconds, sizes bytes; None means no limit. Make one and share it: its pool is its
    use. It may be used on several event loops, and before and after a fork.

    proxy: the proxy of a request: a URL for all, a function of the request that returns a URL or
    None, or None for no proxy; by default what HTTP_PROXY, HTTPS_PROXY and NO_PROXY say.
    dial: `async (network, addr) -> socket.socket`, a connected socket, instead of ours; network
    is "tcp", addr "host:port". dial_timeout: for the name and the TCP connection. tls_config: an
    ssl.SSLContext for servers (and https:// proxies); None trusts what the system trusts.
    tls_handshake_timeout. proxy_connect_header: fields for CONNECT requests.

    disable_keep_alives: a connection per request. disable_compression: do not ask for gzip (what
    is asked for by the Transport is decoded by it; what the caller asks for is not).

    max_idle_conns: idle connections kept, over all hosts. max_idle_conns_per_host: of one host;
    None for as many. max_conns_per_host: idle, in use and being dialled; more requests wait in
    order. idle_conn_timeout: how long an idle connection is kept.

    response_header_timeout: from the request written to the response's head read.
    expect_continue_timeout: how long a request with `Expect: 100-continue` waits before it sends
    its body; 0 for not at all. max_response_header_bytes: of the head, interim responses included.
    read_buffer_size: bytes of a body that wait unread before the socket is not read any more.
    write_buffer_size: bytes of a streamed request body that wait unsent before it is asked for more.

    Raises in `round_trip`: TransportError (its classes tell what failed and where),
    LocalProtocolError for a request that must not be sent; nothing has been sent then.

    Resource handling: `await transport.close()` closes everything on this loop; the end of the
    loop (`asyncio.run`, `loop.shutdown_asyncgens()`) does it too.

        transport = http.Transport(max_conns_per_host=20, response_header_timeout=5)
        async with await transport.round_trip(http.Request("GET", url)) as response:
            data = await response.body.read()
    """

    def __init__(
        self,
        *,
        proxy: str | URL | Callable[[Request], URL | None] | None = proxy_from_environment,
        dial: Callable[[str, str], Awaitable[socket.socket]] | None = None,
        dial_timeout: float | None = 30.0,
        tls_config: ssl.SSLContext | None = None,
        tls_handshake_timeout: float | None = 10.0,
        proxy_connect_header: Header | None = None,
        disable_keep_alives: bool = False,
        disable_compression: bool = False,
        max_idle_conns: int | None = 100,
        max_idle_conns_per_host: int | None = None,
        max_conns_per_host: int | None = None,
        idle_conn_timeout: float | None = 90.0,
        response_header_timeout: float | None = None,
        expect_continue_timeout: float = 1.0,
        max_response_header_bytes: int = 10 << 20,
        read_buffer_size: int = 256 * 1024,
        write_buffer_size: int = 64 * 1024,
    ) -> None:
        if max_conns_per_host is not None and max_conns_per_host <= 0:
            raise ValueError(
                f"max_conns_per_host must be more than 0, or None for no limit: {max_conns_per_host}"
            )
        self.disable_keep_alives = disable_keep_alives
        self.disable_compression = disable_compression
        self.max_idle_conns = max_idle_conns
        self.max_idle_conns_per_host = max_idle_conns_per_host
        self.max_conns_per_host = max_conns_per_host
        self.idle_conn_timeout = idle_conn_timeout
        self.response_header_timeout = response_header_timeout
        self.expect_continue_timeout = expect_continue_timeout
        self.max_response_header_bytes = max_response_header_bytes
        self.read_buffer_size = read_buffer_size
        self.write_buffer_size = write_buffer_size
        self._find_proxy = proxy if proxy is None or callable(proxy) else proxy_url(proxy)
        self._dialer = Dialer(
            dial=dial,
            tls_config=tls_config,
            dial_timeout=dial_timeout,
            tls_handshake_timeout=tls_handshake_timeout,
            proxy_connect_header=proxy_connect_header,
        )
        self._protocols: dict[str, Foreign] = {}
        self._is_plain = False  # requests need nothing that depends on the request: see round_trip
        self._pool: IdlePool | None = None  # the pool used last
        self._pools: dict[asyncio.AbstractEventLoop, _LoopPool] = {}
        _transports.add(self)

    async def round_trip(self, request: Request) -> Response[ResponseBody]:
        """Send `request` once and return the response when its head is there (Go: RoundTrip).

        The body is to be read to its end, or closed. Redirects, cookies and credentials in the
        URL are the Client's matter. Cancelling it closes the connection in use.
        """
        loop = _get_running_loop()
        pool = self._pool
        if pool is None or pool.loop is not loop:
            pool = self._enter(loop)
        target = request._target
        method: ConnectMethod | None = None
        if (
            target is not None
            and self._is_plain
            and request._header is None
            and request._content is None
            and request._body is None
            and request._extra is None
            and request.method == "GET"
            and request.host is target.host
            and not request.close
        ):
            # The usual request of a program, with nothing to check or to ask a proxy for.
            key = target.key
            head = target.get_head or _remember_head(target, request)
            framing = NO_BODY
            gzip = replayable = True
        else:
            prepared = await self._prepare(request)
            if not isinstance(prepared, tuple):
                return prepared
            method, key, head, framing, gzip = prepared
            replayable = is_replayable(request)
        trace = tracing.context_client_trace()
        pool.requests += 1
        while True:
            host_pool = pool.hosts.get(key)
            if host_pool is not None and host_pool.idle and trace is None:
                conn = pool.take(host_pool)
                pool.reuses += 1
            else:
                try:
                    # (Asked once only: the function that names the proxy may have another answer each time.)
                    method = method or self._connect_method(request)
                    conn = await self._get_conn(pool, method, request, trace)
                except BaseException:
                    await _close_body(request)
                    raise
            try:
                if conn.reused and not replayable and not await _is_alive(pool, conn):
                    continue
                return await conn.round_trip(request, head, framing, gzip, trace)
            except TransportError as error:
                if not should_retry(request, error, reused=conn.reused):
                    await _close_body(request)
                    raise
            except BaseException:
                await _close_body(request)
                raise
            pool.retries += 1
            request = _rewound(request)

    async def _prepare(
        self, request: Request
    ) -> tuple[ConnectMethod | None, str, bytes, int, bool] | Response[ResponseBody]:
        """Check the request and decide about it: (way, its key, head, framing, whether gzip is asked for).

        The way is None when it is the plain one. Or the response at once, of the RoundTripper that is
        registered for its scheme. Raises
        LocalProtocolError for what must not be sent; the body is closed then.
        """
        try:
            check(request)
            if self._protocols:
                other = self._protocols.get(request._peek_url().scheme)
                if other is not None:
                    with contextlib.suppress(SkipAltProtocol):
                        return await other.round_trip(request)
            fields = request._header._fields if request._header is not None else _NO_FIELDS
            gzip = (
                not self.disable_compression
                and request.method != "HEAD"
                and "Accept-Encoding" not in fields
                and "Range" not in fields
            )
            framing = framing_of(request)
            if request._body is not None and needs_probe(request) and await _is_empty(request):
                framing = NO_BODY
            target = request._target
            method: ConnectMethod | None = None
            extra = ""
            if self.disable_keep_alives and not (wants_close(request) or asks_upgrade(request)):
                extra = "Connection: close\r\n"
            if target is not None and self._is_plain and "Upgrade" not in fields:
                key, uri, host = target.key, target.uri, request.host
                if host is not target.host:
                    host = wire_host(request, via_proxy=False)
            else:
                method = self._connect_method(request)
                key = method.key
                uri = wire_uri(request, absolute_form=method.absolute_form)
                host = wire_host(request, via_proxy=method.proxy is not None)
                if method.absolute_form and (credentials := proxy_authorization(method.proxy)):
                    extra = f"Proxy-Authorization: {credentials}\r\n{extra}"
            head = format_head(request, uri, host, framing, gzip=gzip, extra=extra, close=request.close)
        except BaseException:
            await _close_body(request)
            raise
        return method, key, head, framing, gzip

    def _connect_method(self, request: Request) -> ConnectMethod:
        """Where the request goes; refuses what cannot be sent anywhere."""
        if request._head:
            raise LocalProtocolError("http: Request.RequestURI can't be set in client requests")
        target = request._target
        header = request._header
        only_h1 = header is not None and asks_upgrade(request)
        if target is not None and self._is_plain:
            return ConnectMethod(None, target.scheme, target.addr, only_h1=only_h1)
        url = request._peek_url()
        if url.scheme not in ("http", "https"):
            raise LocalProtocolError(f"unsupported protocol scheme {quoted(url.scheme)}")
        if not url.host:
            raise LocalProtocolError("http: no Host in request URL")
        proxy = None
        if self._find_proxy is not None:
            try:
                proxy = self._find_proxy(request)
            except ValueError as error:
                raise ProxyError(str(error), retryable=False) from error
        return ConnectMethod(proxy, url.scheme, canonical_addr(url), only_h1=only_h1)

    # Connections.

    async def _get_conn(
        self, pool: IdlePool, method: ConnectMethod, request: Request, trace: ClientTrace | None
    ) -> PersistConn:
        """An idle connection, or the first that becomes free or is dialled (Go: getConn)."""
        if trace is not None and trace.get_conn is not None:
            trace.get_conn(method.addr)
        host = pool.host(method)
        was_idle = bool(host.idle)
        idle_time = 0.0
        if was_idle:
            conn = pool.take(host)
            pool.reuses += 1
            idle_time = conn.idle_time
        else:
            conn = await self._wait_for_conn(pool, host, request, trace)
            if conn.reused:
                pool.reuses += 1
        if trace is not None and trace.got_conn is not None:
            try:
                trace.got_conn(tracing.GotConnInfo(conn, conn.reused, was_idle, idle_time))
            except BaseException:
                pool.put_idle(conn)
                raise
        return conn

    async def _wait_for_conn(
        self, pool: IdlePool, host: HostPool, request: Request, trace: ClientTrace | None
    ) -> PersistConn:
        want = pool.want(host, trace)
        deadline = request._deadline
        timer = None if deadline is None else pool.loop.call_at(deadline, _give_up, want)
        try:
            return await want.future
        except BaseException:
            pool.unwant(want)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _enter(self, loop: asyncio.AbstractEventLoop) -> IdlePool:
        """The pool of this loop, made at its first request."""
        entry = self._pools.get(loop)
        if entry is None:
            for other in list(self._pools):  # of other threads, too
                if other.is_closed():
                    self._pools.pop(other, None)  # ended without a word
            entry = self._pools[loop] = _LoopPool(self, loop)
        self._pool = entry.idle_pool
        self._is_plain = self._needs_nothing()
        return entry.idle_pool

    def _needs_nothing(self) -> bool:
        no_proxy = self._find_proxy is None or (
            self._find_proxy is proxy_from_environment and not environment_has_proxies()
        )
        return no_proxy and not (self._protocols or self.disable_keep_alives or self.disable_compression)

    # For users.

    def register_protocol(self, scheme: str, round_tripper: RoundTripper) -> None:
        """Let `round_tripper` answer requests for URLs with this scheme (Go: RegisterProtocol).

        It may raise SkipAltProtocol to leave one to the Transport. Raises ValueError for a scheme
        that has one already.

            transport.register_protocol("file", http.FileTransport("/srv/data"))
        """
        if scheme in self._protocols:
            raise ValueError(f"protocol {scheme} already registered")
        self._protocols[scheme] = Foreign(round_tripper)
        self._is_plain = False

    def close_idle_connections(self) -> None:
        """Close the idle connections of this loop (Go: CloseIdleConnections).

        What becomes idle later is closed too, until a request needs a new connection.
        """
        entry = self._pools.get(asyncio.get_running_loop())
        if entry is not None:
            entry.idle_pool.close_idle()

    async def close(self) -> None:
        """Close everything on this loop: idle connections, those in use, dials. It may be used again."""
        entry = self._pools.get(asyncio.get_running_loop())
        if entry is not None:
            self._leave(entry)
            await entry.close()

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _leave(self, entry: _LoopPool) -> None:
        """Forget a loop's pool, which is being closed; the next request there begins a new one."""
        if self._pools.get(entry.idle_pool.loop) is entry:
            del self._pools[entry.idle_pool.loop]
        if self._pool is entry.idle_pool:
            self._pool = None

    def stats(self) -> TransportStats:
        """Counters and state on this loop."""
        pool = self._enter(asyncio.get_running_loop())
        hosts = pool.host_stats()
        return TransportStats(
            requests=pool.requests,
            reuses=pool.reuses,
            dials=pool.dials,
            dial_errors=pool.dial_errors,
            waits=pool.waits,
            retries=pool.retries,
            idle=pool.idle,
            active=sum(host.active for host in hosts.values()),
            dialing=sum(host.dialing for host in hosts.values()),
            waiting=sum(host.waiting for host in hosts.values()),
            hosts=hosts,
        )

    def _after_fork(self) -> None:
        """In a child: forget the parent's connections, without a word to the other ends."""
        self._pools = {}
        self._pool = None

    def __repr__(self) -> str:
        pools = list(self._pools.values())
        conns = sum(len(entry.idle_pool.conns) for entry in pools)
        idle = sum(entry.idle_pool.idle for entry in pools)
        return f"<Transport {conns} connections, {idle} idle>"


class _LoopPool:
    """An IdlePool with what ends with it: its dials, and the watch for the end of its loop."""

    def __init__(self, transport: Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._dials: set[asyncio.Task[None]] = set()
        self.idle_pool = IdlePool(
            loop,
            self._start_dial,
            max_idle=transport.max_idle_conns,
            max_idle_per_host=transport.max_idle_conns_per_host,
            max_per_host=transport.max_conns_per_host,
        )
        # An event loop closes its asynchronous generators before it ends: this one takes us along.
        self._guard = self._until_shutdown()
        with contextlib.suppress(StopIteration):
            self._guard.__anext__().send(None)

    def _start_dial(self, want: WantConn) -> None:
        task = self.idle_pool.loop.create_task(self._dial(want))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self, want: WantConn) -> None:
        """Connect for `want`; the dial goes on when the request has been served otherwise, or cancelled."""
        pool = self.idle_pool
        conn = want.conn = PersistConn(self._transport, pool, want.host)
        try:
            await self._transport._dialer.dial(want.host.method, conn, want.trace)
        except asyncio.CancelledError:
            pool.dial_failed(want, _closed(), conn)
            raise
        except Exception as error:
            pool.dial_failed(want, error, conn)
        else:
            pool.dialed(want, conn)

    async def _until_shutdown(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._transport._leave(self)
            await self._close_all()

    async def close(self) -> None:
        """Close everything. Not to be called twice at once."""
        await self._guard.aclose()

    async def _close_all(self) -> None:
        pool = self.idle_pool
        pool.close()
        for conn in list(pool.conns):
            conn.close(_closed())
        dials = list(self._dials)
        for task in dials:
            task.cancel()
        if dials:
            await asyncio.wait(dials)
        await pool.wait_closed(CLOSE_TIME)


def _closed() -> ConnectionLost:
    return ConnectionLost("http: the Transport was closed", phase="pool")


def _remember_head(target: Target, request: Request) -> bytes:
    """The head of a plain GET: it is the same every time."""
    head = target.get_head = format_head(request, target.uri, target.host, NO_BODY, gzip=True)
    return head


def _give_up(want: WantConn) -> None:
    """The client's timeout has passed before there was a connection."""
    if want.waiting:
        if want in want.host.dial_queue:
            limit = want.host.conns
            want.future.set_exception(
                PoolTimeout(
                    f"context deadline exceeded: all {limit} connections to the host are in use "
                    "(max_conns_per_host)",
                    addr=want.host.method.addr,
                )
            )
        else:
            error = client_timeout(want.conn.dial_phase if want.conn is not None else "dial")
            error.addr = want.host.method.addr
            error.retryable = True
            want.future.set_exception(error)


async def _is_alive(pool: IdlePool, conn: PersistConn) -> bool:
    """Whether a request that can be sent only once may go out on a kept connection.

    Its end may have come, and the loop, busy until now, has not told yet. (Go's read loops run by
    themselves, and have seen it.)
    """
    turns = 10  # the loop looks at its sockets, then calls who is concerned: through TLS it takes a few
    while conn.has_news() and turns and not conn.has_ended:
        turns -= 1
        try:
            await asyncio.sleep(0)
        except BaseException:
            pool.put_idle(conn)
            raise
    if conn.has_ended:
        pool.reuses -= 1
        return False
    return True


async def _is_empty(request: Request) -> bool:
    body = request._body
    try:
        return isinstance(body, SourceBody) and await body.is_empty(PROBE_TIME)
    except Exception as error:
        raise RequestBodyError(f"the request's body failed: {error or type(error).__name__}") from error


async def _close_body(request: Request) -> None:
    """Close the request's body: it will not be sent (Go: RoundTrip closes it, also on errors)."""
    body = request._body
    if isinstance(body, SourceBody):
        await body.aclose()
    elif body is not None:
        body.close()


def _rewound(request: Request) -> Request:
    """The request with its body at the start again (Go: rewindBody)."""
    if request._body is None:
        return request
    get_body = request.get_body
    assert get_body is not None, "should_retry lets nothing pass that cannot be rewound"
    again = request._shallow_copy()
    length = again.content_length
    again._set_source(get_body())
    again.content_length = length
    if isinstance(again._body, SourceBody) and "get_body" in (request._extra or ()):
        again._body.release_when_sent()  # the program's own get_body has opened it, for us alone
    return again


_transports: weakref.WeakSet[Transport] = weakref.WeakSet()


def _forget_all() -> None:
    for transport in list(_transports):
        transport._after_fork()


os.register_at_fork(after_in_child=_forget_all)
