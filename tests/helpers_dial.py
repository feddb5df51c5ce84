"""Certificates, servers and protocols for tests that make connections.

Not a test module. Load it by path, as the test modules do: `tests` is no package.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import trustme

from prefork.http.client.connect_method import ConnectMethod
from prefork.http.message.url import URL

if TYPE_CHECKING:
    import datetime
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
    from types import CoroutineType

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


# --- certificates -----------------------------------------------------------------------------


@functools.cache
def authority(name: str) -> trustme.CA:
    """One authority per name, for the whole run."""
    return trustme.CA(organization_name=name)


@functools.cache
def server_context(
    *names: str,
    ca: str = "right",
    client_ca: str | None = None,
    alpn: tuple[str, ...] = (),
    maximum: ssl.TLSVersion | None = None,
    begin: datetime.datetime | None = None,
    end: datetime.datetime | None = None,
) -> ssl.SSLContext:
    """A server's context with a certificate for `names`. client_ca: demands one of its clients."""
    cert = authority(ca).issue_cert(*(names or ("localhost", "127.0.0.1")), not_before=begin, not_after=end)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(context)
    if client_ca is not None:
        authority(client_ca).configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if maximum is not None:
        context.maximum_version = maximum
    return context


def trusting(*, ca: str = "right", client_cert: str | None = None) -> ssl.SSLContext:
    """A client's context that trusts one authority. client_cert: the authority of its own certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority(ca).configure_trust(context)
    if client_cert is not None:
        authority(client_cert).issue_cert("me@client.example").configure_cert(context)
    return context


# --- servers ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening(
    handler: Handler, *, tls: ssl.SSLContext | None = None, path: str | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A server for the time of the `with`; gives its port on `host` (0 for a socket at `path`).

    What becomes of a connection that breaks, or is open at the end, is no fault of its handler.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, EOFError):
            pass

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            writer.transport.abort()
            tasks.discard(task)

        task.add_done_callback(done)

    if path is not None:
        server = await asyncio.start_unix_server(connected, path, ssl=tls)
        port = 0
    else:
        server = await asyncio.start_server(connected, host, 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        server.close()
        while tasks:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await server.wait_closed()
        await settled()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def saying(*pieces: bytes, then_wait: bool = False) -> Handler:
    """A handler that sends these pieces at once, and then ends the connection or keeps it."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then_wait:
            while await reader.read(65536):
                pass
        else:
            if writer.can_write_eof():
                writer.write_eof()
            await reader.read(65536)

    return handler


@contextlib.contextmanager
def blocking_tls(context: ssl.SSLContext) -> Iterator[int]:
    """A port where a thread shakes hands and closes, and says why when it does not like the client.

    The servers of event loops end the connection then without the alert of TLS.
    """

    def serve() -> None:
        while True:
            conn, _ = listener.accept()
            with conn:
                if closing:
                    return
                try:
                    context.wrap_socket(conn, server_side=True).close()
                except OSError:
                    with contextlib.suppress(OSError):
                        conn.shutdown(socket.SHUT_WR)
                        while conn.recv(65536):
                            pass

    closing: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            closing.append(True)
            socket.create_connection(listener.getsockname()).close()
            thread.join(10)


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """A port of 127.0.0.1 that answers no SYN: its queue is full, and nobody accepts."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def refusing() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# --- clients ----------------------------------------------------------------------------------


class Recorder(asyncio.Protocol):
    """A protocol that remembers what was called, and lets a test wait for it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.transport: Any = None
        self.received = b""
        self.error: Exception | None = None
        self._changed = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.calls.append("made")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.calls.append("data")
        self.received += data
        self._changed.set()

    def eof_received(self) -> None:
        self.calls.append("eof")
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.error = exc
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what one of the callbacks brings."""
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def receive(self, size: int) -> bytes:
        """Wait for `size` bytes, or more if they come together; they are taken."""
        await self.until(lambda: len(self.received) >= size)
        taken, self.received = self.received, b""
        return taken

    async def lost(self) -> None:
        await self.until(lambda: "lost" in self.calls)


def direct(
    port: int, scheme: str = "http", host: str = "127.0.0.1", *, only_h1: bool = False
) -> ConnectMethod:
    return ConnectMethod(None, scheme, f"{host}:{port}", only_h1=only_h1)


def through(proxy: str, scheme: str, addr: str) -> ConnectMethod:
    return ConnectMethod(URL.parse(proxy), scheme, addr)


@contextlib.asynccontextmanager
async def dialed(dialer: Any, method: ConnectMethod, trace: Any = None) -> AsyncIterator[Recorder]:
    """A connection for the time of the `with`."""
    protocol = Recorder()
    transport = await dialer.dial(method, protocol, trace)
    try:
        assert protocol.calls[0] == "made"
        assert protocol.calls.count("made") == 1
        assert protocol.transport is transport
        yield protocol
    finally:
        transport.abort()
        await protocol.lost()


async def failure(dialer: Any, method: ConnectMethod, trace: Any = None) -> Any:
    """The error of a dial that must fail; its protocol must never have heard of it."""
    protocol = Recorder()
    try:
        transport = await dialer.dial(method, protocol, trace)
    except Exception as error:
        await settled()
        assert protocol.calls == []
        return error
    transport.abort()
    await protocol.lost()
    raise AssertionError("the dial has not failed")


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no callback of ours tells: it looks every millisecond."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def settled() -> None:
    """Let closed transports close their sockets."""
    for _ in range(5):
        await asyncio.sleep(0)


class _Lookup:
    def __init__(self, answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int, **options: Any) -> Any:
        self.asked.append(host)
        await asyncio.sleep(0)
        if isinstance(self.answers, BaseException):
            raise self.answers
        if self.answers is None:
            await asyncio.get_running_loop().create_future()
        found = []
        for answer in self.answers:
            name, its_port = answer if isinstance(answer, tuple) else (answer, port)
            ipv6 = ":" in name
            family = socket.AF_INET6 if ipv6 else socket.AF_INET
            sockaddr = (name, its_port, 0, 0) if ipv6 else (name, its_port)
            found.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", sockaddr))
        return found


@contextlib.contextmanager
def names(answers: Any) -> Iterator[_Lookup]:
    """What the running loop's DNS answers: addresses, (address, port)s, an error, None for never."""
    loop: Any = asyncio.get_running_loop()
    lookup = loop.getaddrinfo = _Lookup(answers)
    try:
        yield lookup
    finally:
        del loop.getaddrinfo


# --- cancellation -----------------------------------------------------------------------------


class _CancelledAt:
    """Awaits a coroutine and cancels it at its n-th wait; `reached` tells whether there was one.

    late: not while it waits, but when what it waits for has just come.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int, *, late: bool) -> None:
        self.coroutine = coroutine
        self.left = n
        self.late = late
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self.coroutine
        task = asyncio.current_task()
        assert task is not None
        step: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731
        while True:
            try:
                future = step()
            except StopIteration as end:
                return end.value
            cancel_now = self.left == 0
            self.left -= 1
            if cancel_now:
                self.reached = True
                if not self.late:
                    task.cancel()
            try:
                yield future
            except BaseException as error:
                step = functools.partial(coroutine.throw, error)
            else:
                if cancel_now and self.late:
                    step = functools.partial(coroutine.throw, asyncio.CancelledError())
                else:
                    step = lambda: coroutine.send(None)  # noqa: E731


def descriptors() -> set[str]:
    """The open sockets of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                found.add(target)
    return found


async def cancelled_everywhere(
    dial: Callable[[asyncio.Protocol], CoroutineType[Any, Any, asyncio.Transport]],
    peers_are_gone: Callable[[], bool],
) -> int:
    """Cancel `dial(protocol)` at its first wait, its second, ... until it ends; the number of waits.

    Each time no socket may stay open, nor the protocol have heard of anything. peers_are_gone:
    whether the other ends have noticed and closed theirs.
    """
    before = descriptors()
    waits = 0
    for late in (False, True):
        for n in range(100):
            protocol = Recorder()
            attempt = _CancelledAt(dial(protocol), n, late=late)
            task = asyncio.ensure_future(_finish(attempt))
            await asyncio.wait([task])
            if not task.cancelled():
                transport = task.result()
                transport.abort()
                await protocol.lost()
            else:
                assert attempt.reached
                assert protocol.calls == [], f"cancelled at wait {n}"
            await eventually(peers_are_gone)
            await settled()
            assert descriptors() <= before, f"cancelled at wait {n}, late: {late}"
            if not attempt.reached:
                waits = max(waits, n)
                break
        else:
            raise AssertionError("no end")
    return waits


async def _finish(attempt: _CancelledAt) -> Any:
    return await attempt
