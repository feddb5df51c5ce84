"""Dialer: makes the connections of a Transport (Go: Transport.dialConn and net.Dialer).

The way to a server, each step only where it is needed:

    1. DNS, and a race of the addresses          happy_eyeballs.py; or the `dial` function of the caller
    2. TLS with the proxy                        an https:// proxy
    3. CONNECT, or the handshake of SOCKS5       tunnel.py, socks.py
    4. TLS with the server                       https: also inside of the TLS with the proxy

Until the last step a Link holds the connection; then the caller's protocol gets it. Whatever
goes wrong on the way, or who cancels it, the socket is closed and the caller's protocol has
never heard of it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from asyncio import sslproto
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from prefork.http.client import happy_eyeballs
from prefork.http.client.connect_method import canonical_addr
from prefork.http.client.proxy import PROXY_SCHEMES, proxy_authorization
from prefork.http.client.socks import socks_connect
from prefork.http.client.tunnel import Link, connect_fields, open_tunnel
from prefork.http.errors import (
    ConnectError,
    ConnectTimeout,
    HTTPError,
    ProxyError,
    TLSError,
    TLSTimeout,
    TransportError,
)
from prefork.http.message.query import URLError, quoted
from prefork.http.tls import HandshakeContext, client_context, handshake_error, spoke_first

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefork.http.client.connect_method import ConnectMethod
    from prefork.http.client.trace import ClientTrace
    from prefork.http.message.header import Header
    from prefork.http.message.url import URL

    DialFunction: TypeAlias = Callable[[str, str], Awaitable[socket.socket]]

PROXY_TIMEOUT: Final = 60.0
"""Seconds that a proxy has to connect to the server (Go: one minute as well)."""

_HTTP_1: Final = ("http/1.1",)

# An error of the inner TLS raised a TypeError in the outer one, and left the socket open:
# https://github.com/python/cpython/issues/113214
_TLS_IN_TLS_IS_BROKEN: Final = sys.version_info[2] < {11: 8, 12: 2}.get(sys.version_info[1], 0)
_SHUTDOWN_TIMEOUT: Final = 5.0  # seconds for the last words of TLS; Go's, too
_NEVER: Final = 1e6  # seconds; loops insist on a limit of their own for handshakes


class Dialer:
    """Connects to servers and makes the way there, for one loop.

    dial: `async def dial(network, addr)` that gives a connected stream socket of any family,
    instead of DNS and TCP here; network is "tcp", addr the "host:port" of the server or of its
    proxy (Go: DialContext). What it raises besides OSError is raised unchanged.

    tls_config: the SSLContext for servers and for https:// proxies. It is used as it is and
    never changed, so it can be shared; the protocols to offer by ALPN are those that its owner
    has set, none if he has set none. None: a context of our own (`client_context`), made when
    the first one is needed and kept.

    dial_timeout: seconds for DNS and connecting together, or for `dial`. tls_handshake_timeout:
    seconds for each TLS handshake. None: no limit. proxy_connect_header: more fields for the
    CONNECT request; they are copied. alpn: what to offer to servers, the preferred one first.

        dialer = Dialer()
        method = ConnectMethod(None, "https", "example.com:443")
        transport = await dialer.dial(method, protocol, None)

    Raises (from `dial`) ConnectError, ConnectTimeout, TLSError, TLSTimeout and ProxyError, which
    is also what failures on the way to the proxy are, but for timeouts.

    Resource handling: the transport is the caller's to close. A Dialer itself holds nothing open.
    """

    __slots__ = (
        "_alpn",
        "_connect_header",
        "_contexts",
        "_dial",
        "_dial_timeout",
        "_tls_config",
        "_tls_timeout",
    )

    def __init__(
        self,
        *,
        dial: DialFunction | None = None,
        tls_config: ssl.SSLContext | None = None,
        dial_timeout: float | None = 30.0,
        tls_handshake_timeout: float | None = 10.0,
        proxy_connect_header: Header | None = None,
        alpn: tuple[str, ...] = _HTTP_1,
    ) -> None:
        if tls_config is not None and not isinstance(tls_config, ssl.SSLContext):
            raise TypeError(f"tls_config must be an ssl.SSLContext, not {type(tls_config).__name__}")
        if tls_config is not None and tls_config.protocol == ssl.PROTOCOL_TLS_SERVER:
            raise ValueError("tls_config is a context for servers: make it with PROTOCOL_TLS_CLIENT")
        self._dial = dial
        self._tls_config = None if tls_config is None else HandshakeContext(tls_config)
        self._dial_timeout = dial_timeout
        self._tls_timeout = tls_handshake_timeout
        self._connect_header = None if proxy_connect_header is None else proxy_connect_header.clone()
        connect_fields(self._connect_header, "")  # finds fields that must not be sent
        self._alpn = alpn
        self._contexts: dict[tuple[str, ...], HandshakeContext] = {}

    async def dial(
        self, method: ConnectMethod, protocol: asyncio.Protocol, trace: ClientTrace | None
    ) -> asyncio.Transport:
        """A transport to `method.addr`, TLS done, tunnels made.

        `protocol.connection_made(transport)` was called exactly once, with the final transport,
        and every later byte goes to `protocol`. Before that its attribute `dial_phase` is set to
        "proxy" and "tls" when the dial gets there.
        """
        tell: Any = protocol
        proxy = method.proxy
        proxy_addr = ""
        if proxy is None:
            sock = await self._connect(method.addr, trace)
        else:
            proxy_addr = _proxy_addr(proxy)
            happy_eyeballs.split_addr(method.addr)
            try:
                sock = await self._connect(proxy_addr, trace)
            except TransportError as error:
                raise _proxy_failed(error) from error
        link = Link()
        bottom = transport = await _attach(sock, link)
        try:
            if proxy is not None:
                tell.dial_phase = "proxy"
                transport = await self._pass_proxy(proxy, proxy_addr, method, link, transport, trace)
            if method.scheme == "https":
                tell.dial_phase = "tls"
                alpn = _HTTP_1 if method.only_h1 else self._alpn
                transport = await self._tls(link, transport, method.addr, alpn, trace)
            if link.ended:
                raise ConnectError(
                    f"dial tcp {method.addr}: the connection was closed as soon as it was made",
                    addr=method.addr,
                ) from link.error
            link.hand_over(transport, protocol)
        except BaseException:
            bottom.abort()
            raise
        return transport

    # The first step: a connected socket.

    async def _connect(self, addr: str, trace: ClientTrace | None) -> socket.socket:
        looking_up = self._dial is None
        try:
            async with asyncio.timeout(self._dial_timeout) as limit:
                if self._dial is not None:
                    return await _call(self._dial, addr)
                addresses = await happy_eyeballs.resolve(addr, trace)
                looking_up = False
                return await happy_eyeballs.connect(addresses, addr, trace)
        except TimeoutError as error:
            if isinstance(error, HTTPError):
                raise
            where = f"lookup {addr.rpartition(':')[0]}" if looking_up else addr
            after = f" after {self._dial_timeout:g} s (dial_timeout)" if limit.expired() else ""
            raise ConnectTimeout(
                f"dial tcp{':' if looking_up else ''} {where}: i/o timeout{after}",
                addr=addr,
                phase="dns" if looking_up else "dial",
            ) from error

    # The second and the third: the proxy.

    async def _pass_proxy(
        self,
        proxy: URL,
        addr: str,
        method: ConnectMethod,
        link: Link,
        transport: asyncio.Transport,
        trace: ClientTrace | None,
    ) -> asyncio.Transport:
        """Make a transport to the proxy at `addr` one to the server, or to a proxy that forwards requests."""
        if proxy.scheme == "https":
            try:
                transport = await self._tls(link, transport, addr, _HTTP_1, trace)
            except TransportError as error:
                raise _proxy_failed(error) from error
        if method.absolute_form:
            return transport
        try:
            async with asyncio.timeout(PROXY_TIMEOUT) as limit:
                if proxy.scheme in ("http", "https"):
                    fields = connect_fields(self._connect_header, proxy_authorization(proxy))
                    await open_tunnel(link, transport, method.addr, fields)
                else:
                    _, port = happy_eyeballs.split_addr(method.addr)
                    user, password = proxy.username, proxy.password or ""
                    await socks_connect(link, transport, method.tls_host, port, user, password)
        except ProxyError as error:
            error.addr = addr
            raise
        except (EOFError, OSError) as error:
            if limit.expired():
                text = f"proxy {addr}: no connection to {method.addr} within {PROXY_TIMEOUT:g} s"
                raise ConnectTimeout(text, addr=addr, phase="proxy") from error
            what = (getattr(error, "strerror", None) or str(error)).lower()
            raise ProxyError(
                f"proxy {addr}: {what} before it was connected to {method.addr}", addr=addr
            ) from error
        return transport

    # The fourth, and the second for https:// proxies: TLS.

    async def _tls(
        self,
        link: Link,
        transport: asyncio.Transport,
        addr: str,
        alpn: tuple[str, ...],
        trace: ClientTrace | None,
    ) -> asyncio.Transport:
        """Shake hands with the server at `addr`, which must be who it says, and speak HTTP/1."""
        host = _server_name(addr)
        context = self._context(alpn)
        if trace is not None and trace.tls_handshake_start is not None:
            trace.tls_handshake_start()
        ssl_object: ssl.SSLObject | None = None
        failure: BaseException | None = None
        try:
            secured = await self._shake_hands(link, transport, context, host, addr)
            ssl_object = secured.get_extra_info("ssl_object")
            _check_protocol(ssl_object, addr)
        except BaseException as error:
            failure = error
            raise
        finally:
            if trace is not None and trace.tls_handshake_done is not None:
                trace.tls_handshake_done(ssl_object, happy_eyeballs.told(failure))
        return secured

    async def _shake_hands(
        self, link: Link, transport: asyncio.Transport, context: ssl.SSLContext, host: str, addr: str
    ) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        if link.buffer or link.ended:
            early = spoke_first(bytes(link.buffer)) if link.buffer else link.error or ConnectionResetError()
            raise handshake_error(early, host, addr) from early
        if _TLS_IN_TLS_IS_BROKEN and isinstance(transport, sslproto._SSLProtocolTransport):
            transport._force_close = lambda exc: transport.abort()  # type: ignore[attr-defined]
        try:
            async with asyncio.timeout(self._tls_timeout) as limit:
                secured = await loop.start_tls(
                    transport,
                    link,
                    context,
                    server_hostname=host,
                    ssl_handshake_timeout=_NEVER,
                    ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT,
                )
        except TimeoutError as error:
            if limit.expired():
                after = f"after {self._tls_timeout:g} s (tls_handshake_timeout)"
                raise TLSTimeout(f"net/http: TLS handshake timeout {after}", addr=addr) from error
            raise handshake_error(error, host, addr) from error
        except OSError as error:
            raise handshake_error(error, host, addr) from error
        if secured is None or link.ended:
            # Refused right behind the handshake: so servers of TLS 1.3 answer a client certificate.
            end = link.error or ConnectionResetError()
            raise handshake_error(end, host, addr) from end
        return secured

    def _context(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        if self._tls_config is not None:
            return self._tls_config
        context = self._contexts.get(alpn)
        if context is None:
            context = self._contexts[alpn] = HandshakeContext(client_context(alpn=alpn))
        return context


async def _attach(sock: socket.socket, link: Link) -> asyncio.Transport:
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: link, sock=sock)
    except BaseException:
        sock.close()
        raise
    return transport


async def _call(dial: DialFunction, addr: str) -> socket.socket:
    try:
        sock: Any = await dial("tcp", addr)
    except (HTTPError, TimeoutError):
        raise
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        phase = "dns" if isinstance(error, socket.gaierror) else "dial"
        raise ConnectError(f"dial tcp {addr}: {what}", addr=addr, phase=phase) from error
    if not isinstance(sock, socket.socket):
        raise ConnectError(
            f"net/http: Transport.dial hook returned {sock if sock is None else type(sock).__name__}, "
            "not a connected socket.socket",
            addr=addr,
            retryable=False,
        )
    return sock


def _proxy_addr(proxy: URL) -> str:
    try:
        if proxy.scheme not in PROXY_SCHEMES:
            raise URLError(f"unsupported proxy scheme {quoted(proxy.scheme)}")
        return canonical_addr(proxy)
    except URLError as error:
        raise ProxyError(error.reason, addr=proxy.host, retryable=False) from None


def _proxy_failed(error: TransportError) -> TransportError:
    """What an error on the way to the proxy is for the request (Go: net.OpError with Op proxyconnect)."""
    kind = type(error) if isinstance(error, TimeoutError) else ProxyError
    return kind(
        f"proxyconnect tcp: {error.text}", addr=error.addr, phase=error.phase, retryable=error.retryable
    )


def _server_name(addr: str) -> str:
    """The name that a certificate must have: no port, brackets or zone, no dot of the DNS root."""
    host, _ = happy_eyeballs.split_addr(addr)
    host = host.partition("%")[0].removesuffix(".")
    try:
        if not host or host[0] == ".":
            raise UnicodeError
        host.encode("idna")  # as the ssl module will do it, which some loops do not expect to fail
    except UnicodeError:
        raise TLSError(f"tls: invalid server name {quoted(host)}", addr=addr, retryable=False) from None
    return host


def _check_protocol(ssl_object: ssl.SSLObject | None, addr: str) -> None:
    chosen = ssl_object.selected_alpn_protocol() if ssl_object is not None else None
    if chosen not in (None, *_HTTP_1):
        raise TLSError(
            f"tls: server chose the protocol {quoted(str(chosen))} by ALPN, which is not spoken here: "
            "offer http/1.1 only",
            addr=addr,
            retryable=False,
        )
