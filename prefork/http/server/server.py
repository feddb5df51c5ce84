"""Server: accepts connections and hands their requests to one handler (Go: Server).

One server lives on one event loop. It owns every connection it accepted, and the one timer
that watches all their deadlines.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import importlib
import inspect
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefork.http.errors import ServerClosed
from prefork.http.handler import as_callable
from prefork.http.message.request import Notice
from prefork.http.server.acceptor import Acceptor
from prefork.http.server.blocked import BlockedLoopWatch
from prefork.http.server.clock import Clock
from prefork.http.server.connection import Connection
from prefork.http.server.eager import HandlerRunner
from prefork.http.server.head import HeadScanner, check_parser
from prefork.http.server.mux import default_serve_mux
from prefork.http.server.numbers import Numbers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from prefork.http.handler import HandlerLike
    from prefork.http.message.request import Request
    from prefork.http.server.access import AccessRecord
    from prefork.http.server.connection import ConnState

T = TypeVar("T")
P = ParamSpec("P")

BACKLOG = 2048
"""Length of the listen queue of sockets that this module opens."""

NO_LIMIT = 1 << 62


class Server:
    """An HTTP/1 server.

    addr: ":8000", "host:port", "[::1]:8000" or "unix:/path", used by `listen_and_serve`.
    handler: a Handler or a function (w, r); None is `default_serve_mux`.

    Deadlines, in seconds; None switches one off:

    * read_header_timeout: from the first byte (or the accept) to the end of a request's head.
    * read_timeout: for the whole body of a request.
    * body_idle_timeout: between two pieces of a body while the handler waits for one.
    * write_timeout: from the head of the request to the end of its handler.
    * write_idle_timeout: while the client takes nothing of the answer.
    * idle_timeout: between requests.

    Limits; None switches one off: max_header_bytes (request line and header; 431),
    max_header_values (header lines; 431), max_body_bytes (413 when a handler reads more;
    `http.max_bytes_handler` sets it for one route), max_conns (open connections; more wait in
    the listen queue). blocking_threads: threads for `http.blocking` and `send_file`.

    conn_state is called with (connection, ConnState) on every change. access_log is called
    with an AccessRecord for every answer. error_log takes what goes wrong; None is the logger
    "prefork.http".

    Resource handling: `async with server` closes it at the end. A server serves once:
    after `shutdown` or `close` make a new one.

        server = http.Server(":8000", mux, idle_timeout=30)
        await server.listen_and_serve()
    """

    def __init__(
        self,
        addr: str = "",
        handler: HandlerLike | None = None,
        *,
        read_header_timeout: float | None = 10.0,
        read_timeout: float | None = None,
        body_idle_timeout: float | None = 30.0,
        write_timeout: float | None = None,
        write_idle_timeout: float | None = 60.0,
        idle_timeout: float | None = 75.0,
        max_header_bytes: int | None = 64 * 1024,
        max_header_values: int | None = 500,
        max_body_bytes: int | None = 10 << 20,
        max_conns: int | None = None,
        blocking_threads: int = 16,
        conn_state: Callable[[Connection, ConnState], None] | None = None,
        access_log: Callable[[AccessRecord], None] | None = None,
        error_log: logging.Logger | None = None,
    ) -> None:
        self.addr = addr
        self.read_header_timeout = read_header_timeout
        self.read_timeout = read_timeout
        self.body_idle_timeout = body_idle_timeout
        self.write_timeout = write_timeout
        self.write_idle_timeout = write_idle_timeout
        self.idle_timeout = idle_timeout
        self.max_header_bytes = NO_LIMIT if max_header_bytes is None else max_header_bytes
        self.max_header_values = NO_LIMIT if max_header_values is None else max_header_values
        self.max_body_bytes = max_body_bytes
        self.max_conns = max_conns
        self.blocking_threads = blocking_threads
        self.conn_state = self._guarded("conn_state", conn_state)
        self.access_log = self._guarded("access_log", access_log)
        self.error_log = error_log if error_log is not None else logging.getLogger("prefork.http")
        self.on_open_connections: Callable[[int], None] | None = None
        """Called with the number of open connections whenever it changes."""

        # What a connection asks for on every request stands ready.
        self._handler = as_callable(default_serve_mux if handler is None else handler)
        self.runner: HandlerRunner = None  # type: ignore[assignment]  # set by start
        self.scanner = HeadScanner(max_header_values=max_header_values)
        timeouts = [read_header_timeout, read_timeout, body_idle_timeout, write_idle_timeout, idle_timeout]
        shortest = min([t for t in timeouts if t is not None], default=4.0)
        self.clock = Clock(max(0.01, min(1.0, shortest / 4)), idle_timeout)
        self.head_timeout = read_timeout if read_header_timeout is None else read_header_timeout
        self.watched = access_log is not None or write_timeout is not None
        self.keep_alive = True
        self.numbers = Numbers()
        """What has been counted so far. May be replaced until the start."""
        self.open_connections = 0
        """Connections accepted and not yet closed."""
        self.shutting_down = Notice()
        """Set when `shutdown` begins."""

        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # set by start
        self._connections: set[Connection] = set()  # open, or closed with a handler still running
        self._acceptor: Acceptor | None = None
        self._owned: list[socket.socket] = []
        self._tick_handle: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closed = False
        self._on_shutdown: list[Callable[[], object]] = []
        self._hooks: set[asyncio.Future[Any]] = set()
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        self._complained_of_values: set[str] = set()

    # Life.

    def start(self, socks: Sequence[socket.socket], *, gate: Callable[[], float] | None = None) -> None:
        """Begin to accept on these listening sockets, on the running loop; return at once.

        gate: asked before each accept; 0.0 goes ahead, more leaves the queue to other
        processes for that many seconds. The sockets stay the caller's to close.
        Raises ServerClosed after `shutdown` or `close`.
        """
        if self._closed:
            raise ServerClosed("http: Server closed")
        if self._acceptor is not None:
            raise RuntimeError("http: the server has been started already")
        check_parser()
        self.loop = asyncio.get_running_loop()
        self.runner = HandlerRunner(self._handler, self.loop, self._returned_value)
        self._ended = self.loop.create_future()
        self._tick()
        self._acceptor = Acceptor(
            socks,
            functools.partial(Connection, self),
            loop=self.loop,
            log=self.error_log,
            gate=gate,
            is_full=self._is_full,
        )

    async def serve(self, *socks: socket.socket) -> None:
        """Serve these listening sockets until `shutdown` has finished or `close` was called.

        Raises ServerClosed when that happened before.
        """
        self.start(socks)
        assert self._ended is not None
        try:
            # Shielded: this is every waiter's future, not this call's.
            await asyncio.shield(self._ended)
        finally:
            self.close()

    async def listen_and_serve(self) -> None:
        """Listen on `addr` and serve until `shutdown` has finished or `close` was called."""
        sock = listen(self.addr)
        try:
            await self.serve(sock)
        finally:
            _close(sock)

    async def shutdown(self, timeout: float | None = 30.0, *, idle_grace: float = 0.0) -> int:
        """End without cutting anything short: accept what is queued, then no more; answer what is
        under way with `Connection: close`; close what is idle; wait.

        timeout: seconds until what is left is cut, None for ever. idle_grace: seconds that an idle
        connection stays open: a request that comes on it is still answered, with `Connection:
        close`, so that its client does not find it closed. Returns the number of connections that
        had to be cut with a request under way.
        """
        self._closed = True
        if self._acceptor is None:
            return 0
        self.keep_alive = False
        if not self.shutting_down:
            self.shutting_down.set()
            for hook in self._on_shutdown:
                task = self.loop.create_task(self._run_hook(hook))
                self._hooks.add(task)
                task.add_done_callback(self._hooks.discard)
        self._acceptor.drain()
        await self._acceptor.settle()
        for conn in tuple(self._connections):
            conn.drain(idle_grace)
        waiting = set(self._hooks)
        if self._connections:
            if self._empty is None:
                self._empty = self.loop.create_future()
            waiting.add(self._empty)
        if waiting:
            await asyncio.wait(waiting, timeout=timeout)
        return self._cut_all()

    async def _run_hook(self, hook: Callable[[], object]) -> None:
        try:
            result = hook()
            if inspect.isawaitable(result):
                await result
        except Exception:
            self.error_log.exception("http: an on-shutdown hook failed: %r", hook)

    def close(self) -> None:
        """End at once: cut every connection and cancel every handler (Go: Close)."""
        self._closed = True
        if self._acceptor is not None:
            self._cut_all()

    def _cut_all(self) -> int:
        assert self._acceptor is not None
        self._acceptor.stop()
        cut = sum([conn.cancel() for conn in tuple(self._connections)])
        if self._tick_handle is not None:
            self._tick_handle.cancel()
            self._tick_handle = None
        for task in self._hooks:
            task.cancel()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
            self.runner.close()
        return cut

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def register_on_shutdown(self, hook: Callable[[], Awaitable[None] | None]) -> None:
        """Call `hook` when `shutdown` begins (Go: RegisterOnShutdown).

        It may be a coroutine function; shutdown waits for it, within its timeout. A hook that
        raises is logged.
        """
        self._on_shutdown.append(hook)

    def set_keep_alives_enabled(self, enabled: bool) -> None:
        """Whether connections serve more than one request; turning it off closes idle ones."""
        self.keep_alive = enabled
        if not enabled:
            for conn in tuple(self._connections):
                conn.drain()

    @property
    def requests(self) -> int:
        """Requests answered so far."""
        return self.numbers.requests

    @property
    def active_connections(self) -> int:
        """Connections with a handler running."""
        return sum([conn.busy for conn in self._connections])

    # What connections report.

    def _connection_opened(self, conn: Connection) -> None:
        self._connections.add(conn)
        self.open_connections += 1
        if self.on_open_connections is not None:
            self.on_open_connections(self.open_connections)
        if self._ended is not None and self._ended.done():
            conn.abort()  # accepted just before `close`
        elif self.shutting_down:
            conn.drain()

    def _connection_closed(self, conn: Connection, *, busy: bool) -> None:
        self.open_connections -= 1
        if self.on_open_connections is not None:
            self.on_open_connections(self.open_connections)
        if not busy:
            self._handler_done(conn)
        if self._acceptor is not None:
            self._acceptor.resume()

    def _handler_done(self, conn: Connection) -> None:
        """The connection is closed and no handler of it runs any more."""
        self._connections.discard(conn)
        if self._empty is not None and not self._connections and not self._empty.done():
            self._empty.set_result(None)

    def _guarded(self, name: str, hook: Callable[P, object] | None) -> Callable[P, None] | None:
        """The hook, logging what it raises: its caller is in the middle of something."""
        if hook is None:
            return None

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                hook(*args, **kwargs)
            except Exception:
                self.error_log.exception("http: the %s hook failed", name)

        return call

    def _log_failure(self, conn: Connection, r: Request, error: BaseException) -> None:
        """A handler raised what it should not."""
        self.numbers.exceptions += 1
        self.error_log.error(
            "http: exception serving %s: %s %s %s: %s: %s",
            conn.remote_addr,
            r.method,
            r.request_uri,
            r.proto,
            type(error).__name__,
            error,
            exc_info=(type(error), error, _below_this_package(error)),
        )

    def _returned_value(self, r: Request) -> None:
        """A handler returned something that is not to be awaited: say so once for each route."""
        route = r.pattern or r.request_uri
        if route not in self._complained_of_values and len(self._complained_of_values) < 1000:
            self._complained_of_values.add(route)
            self.error_log.warning(
                "http: the handler of %r returned a value, which is ignored: answer with w.write(...)", route
            )

    # Threads.

    @property
    def executor(self) -> concurrent.futures.ThreadPoolExecutor:
        """The pool of `blocking_threads` threads, made when it is first needed."""
        if self._executor is None:
            self._executor = concurrent.futures.ThreadPoolExecutor(self.blocking_threads, "prefork-blocking")
        return self._executor

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function` in the pool and wait for its result."""
        return await self.loop.run_in_executor(self.executor, function, *args)

    # Time.

    def _tick(self) -> None:
        clock = self.clock
        now = self.loop.time()
        clock.tick(now)
        for conn in tuple(self._connections):
            if conn.deadline <= now or conn.write_deadline <= now:
                conn.expired(now)
        self._tick_handle = self.loop.call_later(clock.interval, self._tick)

    def _is_full(self) -> bool:
        return self.max_conns is not None and self.open_connections >= self.max_conns

    def __repr__(self) -> str:
        state = "closed" if self._closed else "serving" if self._acceptor else "new"
        return f"<Server {self.addr} {state} {self.open_connections} open, {self.requests} served>"


def listen(addr: str, backlog: int = BACKLOG) -> socket.socket:
    """A listening socket on ":port", "host:port", "[v6]:port" or "unix:/path".

    Raises OSError when it cannot be bound and ValueError when `addr` is none of these.
    """
    if addr.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        target: Any = addr[5:]
    else:
        host, colon, port = (addr or ":80").rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"address {addr!r}: want :port, host:port, [v6]:port or unix:/path")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        if not host and socket.has_dualstack_ipv6():
            family = socket.AF_INET6  # as Go: no host is every address of both families
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if host else 0)
        target = (host.strip("[]"), int(port))
    try:
        sock.bind(target)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {addr}: {os.strerror(error.errno or 0)}") from None
    return sock


def _close(sock: socket.socket) -> None:
    """Close a socket of `listen`, and remove its file if it has one (as Go does): it would be in the way."""
    name = sock.getsockname()
    sock.close()
    if isinstance(name, str) and name:
        with contextlib.suppress(OSError):
            os.unlink(name)


def listen_and_serve(
    addr: str = ":8000", handler: HandlerLike | None = None, *, workers: int | None = None, **options: Any
) -> None:
    """Serve until SIGINT or SIGTERM, then drain (Go: ListenAndServe). Blocks.

    addr and options are those of Server. workers=None serves in this process; workers=N
    forks N processes under a master, as `prefork run -w N` does, with this very handler.

        http.listen_and_serve(":8091", mux)
    """
    if workers is not None:
        # The one door from http to processes, by name and at the call: http can be imported alone.
        boot = importlib.import_module("prefork.workers.boot")
        boot.listen_and_serve(addr, handler, workers=workers, **options)
        return
    sock = listen(addr)
    try:
        # uvloop where it is installed: this package itself runs on any asyncio loop.
        new_loop = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        new_loop = asyncio.new_event_loop
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_serve_until_signal(Server(addr, handler, **options), sock))
    finally:
        _close(sock)


async def _serve_until_signal(server: Server, sock: socket.socket) -> None:
    """Serve; the first SIGINT or SIGTERM drains, the second one ends at once."""
    loop = asyncio.get_running_loop()
    stopping: asyncio.Task[int] | None = None

    def stop() -> None:
        nonlocal stopping
        if stopping is None:
            stopping = loop.create_task(server.shutdown())
        else:
            server.close()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    server.error_log.info("http: serving on %s", _format(sock))
    watch = BlockedLoopWatch(loop, server.error_log)
    watch.start()
    try:
        await server.serve(sock)
    finally:
        watch.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        if stopping is not None:
            await stopping


def _format(sock: socket.socket) -> str:
    name = sock.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _below_this_package(error: BaseException) -> TracebackType | None:
    """The traceback from the first frame that is not this package's: the handler's own."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        traceback = traceback.tb_next
    return traceback or error.__traceback__
