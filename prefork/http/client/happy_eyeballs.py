"""From "host:port" to a connected socket: DNS, then all addresses in a race (RFC 8305).

A host often has addresses of both families, and the way to one of them may be broken without
anybody saying so. So the next address is tried when the last one has failed or has been silent
for 300 ms, families in turn, and the first that answers wins.

The race is one coroutine and a loop's reader callbacks, without tasks: whatever ends it, a
winner, a failure or a cancellation, it closes every other socket before it is over.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from prefork.http.errors import ConnectError
from prefork.http.message.grammar import is_digits, is_host_value
from prefork.http.message.query import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefork.http.client.trace import ClientTrace

Address: TypeAlias = tuple[socket.AddressFamily, tuple[Any, ...]]
"""A family and what `socket.connect` wants for it."""

STAGGER: Final = 0.3
"""Seconds that an address has before the next one is tried besides it (Go: FallbackDelay)."""

# Go's defaults of net.KeepAliveConfig, with the 30 s of DefaultTransport.
_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9),
)


def split_addr(addr: str) -> tuple[str, int]:
    """Host (without brackets) and port of "host:port"; ConnectError when they cannot be connected to."""
    host, _, port = addr.rpartition(":")
    host = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    # What Python and a name server make of other bytes, of NUL say, need not be the same.
    if not host or not is_host_value(host):
        raise ConnectError(f"dial tcp: invalid host {quoted(host)}", addr=addr, retryable=False)
    if not is_digits(port) or len(port) > 5 or int(port) > 65535:
        raise ConnectError(f"dial tcp: address {port}: invalid port", addr=addr, retryable=False)
    return host, int(port)


async def resolve(addr: str, trace: ClientTrace | None) -> list[Address]:
    """The addresses of "host:port", never none; an address literal is not looked up.

    Raises ConnectError (phase "dns").
    """
    host, port = split_addr(addr)
    if literal := _literal(host, port, addr):
        return [literal]
    if trace is not None and trace.dns_start is not None:
        trace.dns_start(host)
    addresses: list[Address] = []
    failure: BaseException | None = None
    try:
        addresses = await _look_up(host, port, addr)
    except BaseException as error:
        failure = error
        raise
    finally:
        if trace is not None and trace.dns_done is not None:
            trace.dns_done([str(sockaddr[0]) for _, sockaddr in addresses], told(failure))
    return addresses


async def _look_up(host: str, port: int, addr: str) -> list[Address]:
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        if not infos:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
    except (OSError, UnicodeError) as error:  # UnicodeError: a label is too long, or empty
        text = "no such host"
        if isinstance(error, OSError) and error.errno not in (socket.EAI_NONAME, socket.EAI_NODATA):
            text = (error.strerror or str(error)).lower()
        raise ConnectError(f"dial tcp: lookup {host}: {text}", addr=addr, phase="dns") from error
    return [(family, sockaddr) for family, _, _, _, sockaddr in infos]


def _literal(host: str, port: int, addr: str) -> Address | None:
    if ":" not in host:
        try:
            socket.inet_pton(socket.AF_INET, host)
        except OSError:
            return None
        return socket.AF_INET, (host, port)
    address, percent, zone = host.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, address)
        scope = 0
        if percent:
            scope = int(zone) if is_digits(zone) else socket.if_nametoindex(zone)
    except OSError as error:
        raise ConnectError(f"dial tcp: invalid address {quoted(host)}", addr=addr, retryable=False) from error
    return socket.AF_INET6, (address, port, 0, scope)


def interleave(addresses: Sequence[Address]) -> list[Address]:
    """The families in turn, beginning with that of the first address (RFC 8305 section 4)."""
    if not addresses:
        return []
    family = addresses[0][0]
    first = [address for address in addresses if address[0] == family]
    other = [address for address in addresses if address[0] != family]
    pairs = itertools.zip_longest(first, other)
    return [address for pair in pairs for address in pair if address is not None]


async def connect(addresses: Sequence[Address], addr: str, trace: ClientTrace | None) -> socket.socket:
    """A socket connected to one of `addresses`, which are those of `addr`: non-blocking, without delay.

    Raises ConnectError, for the first address, when none can be reached.
    """
    return await _Race(addr, trace).run(interleave(addresses))


class _Race:
    __slots__ = ("_addr", "_failures", "_loop", "_ready", "_runners", "_trace", "_waiter")

    def __init__(self, addr: str, trace: ClientTrace | None) -> None:
        self._addr = addr
        self._trace = trace
        self._loop = asyncio.get_running_loop()
        self._runners: dict[socket.socket, Address] = {}
        self._ready: list[socket.socket] = []  # connected, or failed
        self._failures: list[tuple[Address, str, OSError]] = []
        self._waiter: asyncio.Future[None] | None = None

    async def run(self, addresses: list[Address]) -> socket.socket:
        winner: socket.socket | None = None
        try:
            winner = await self._winner(addresses[::-1])
            self._close()
        except BaseException:
            if winner is not None:
                winner.close()
            self._close()
            raise
        if winner is None:
            raise self._error(addresses)
        return winner

    async def _winner(self, waiting: list[Address]) -> socket.socket | None:
        """The first socket that is connected, None when none can be. waiting: the first address last."""
        while waiting or self._runners:
            if waiting and not self._start(waiting.pop()):
                continue
            winner = await self._first_ready(STAGGER if waiting else None)
            if winner is not None:
                return winner
        return None

    def _start(self, address: Address) -> bool:
        """Begin to connect; False when it has failed already."""
        family, sockaddr = address
        trace = self._trace
        if trace is not None and trace.connect_start is not None:
            trace.connect_start("tcp", _text(sockaddr))
        try:
            sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        except OSError as error:
            self._failed(address, "socket", error)
            return False
        self._runners[sock] = address
        sock.setblocking(False)
        try:
            for option in _OPTIONS:
                sock.setsockopt(*option)
            code = sock.connect_ex(sockaddr)
        except OSError as error:
            code = error.errno or errno.EINVAL
        if code in (errno.EINPROGRESS, errno.EINTR):
            self._loop.add_writer(sock, self._on_writable, sock)
            return True
        if code == 0:
            self._ready.append(sock)
            return True
        self._lost(sock, code)
        return False

    def _on_writable(self, sock: socket.socket) -> None:
        self._loop.remove_writer(sock)
        self._ready.append(sock)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _first_ready(self, timeout: float | None) -> socket.socket | None:
        """A socket that is connected; None after `timeout` seconds or when one has failed."""
        if not self._ready:
            self._waiter = waiter = self._loop.create_future()
            timer = self._loop.call_later(timeout, _wake, waiter) if timeout is not None else None
            try:
                await waiter
            finally:
                if timer is not None:
                    timer.cancel()
                self._waiter = None
        while self._ready:
            sock = self._ready.pop(0)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            address = self._runners[sock]
            if code == 0 and sock.getsockname() == address[1]:
                # A port of this machine that nobody listens on was just lent to this very
                # socket, which TCP lets connect to itself.
                code = errno.ECONNREFUSED
            if code != 0:
                self._lost(sock, code)
                continue
            self._done(address, None)
            del self._runners[sock]
            return sock
        return None

    def _lost(self, sock: socket.socket, code: int) -> None:
        address = self._runners.pop(sock)
        sock.close()
        self._failed(address, "connect", OSError(code, os.strerror(code)))

    def _failed(self, address: Address, step: str, error: OSError) -> None:
        self._failures.append((address, step, error))
        self._done(address, error)

    def _done(self, address: Address, error: OSError | None) -> None:
        trace = self._trace
        if trace is not None and trace.connect_done is not None:
            trace.connect_done("tcp", _text(address[1]), error)

    def _close(self) -> None:
        """The race is over: close who is still running."""
        losers = self._runners
        self._runners = {}
        for sock in losers:
            self._loop.remove_writer(sock)
            sock.close()
        for address in losers.values():
            self._done(address, _cancelled())

    def _error(self, addresses: list[Address]) -> ConnectError:
        self._failures.sort(key=lambda failure: addresses.index(failure[0]))
        (_, sockaddr), step, error = self._failures[0]
        text = f"dial tcp {_text(sockaddr)}: {step}: {os.strerror(error.errno or 0).lower()}"
        host = self._addr.rpartition(":")[0].strip("[]")
        if len(addresses) > 1:
            others = len(addresses) - 1
            text += f" (nor can {others} other address{'es' if others > 1 else ''} of {host} be reached)"
        elif host != sockaddr[0]:
            text += f" ({host})"
        failure = ConnectError(text, addr=self._addr)
        failure.__cause__ = error
        return failure


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def told(error: BaseException | None) -> Exception | None:
    """What a trace is told of `error`: a cancellation is an OSError there, as in Go."""
    return error if error is None or isinstance(error, Exception) else _cancelled()


def _cancelled() -> OSError:
    return OSError(errno.ECANCELED, "operation was canceled")


def _text(sockaddr: tuple[Any, ...]) -> str:
    host, port = sockaddr[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
