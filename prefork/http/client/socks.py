"""SOCKS5: a proxy that connects to anything, by name (RFC 1928; user and password, RFC 1929).

The name of the server goes to the proxy, which looks it up: `socks5` and `socks5h` are the
same here, as in Go. An address literal goes as an address.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from prefork.http.errors import ProxyError

if TYPE_CHECKING:
    import asyncio

    from prefork.http.client.tunnel import Link

_VERSION: Final = 5
_CONNECT: Final = 1
_NO_AUTHENTICATION, _USER_PASSWORD, _NONE_ACCEPTABLE = 0, 2, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4

# RFC 1928 section 6
_REPLIES: Final = {
    1: "general SOCKS server failure",
    2: "connection not allowed by ruleset",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}


async def socks_connect(
    link: Link, transport: asyncio.Transport, host: str, port: int, user: str | None, password: str
) -> None:
    """Let the SOCKS5 proxy at the other end connect to `host`, a name or an address, and `port`.

    user: None to offer no authentication. Raises ProxyError, EOFError or OSError when the
    connection ends. What the server sends is left in the link.
    """
    methods = bytes([_NO_AUTHENTICATION] if user is None else [_NO_AUTHENTICATION, _USER_PASSWORD])
    login = b"" if user is None else _login(user, password)
    request = bytes([_VERSION, _CONNECT, 0]) + _address(host) + port.to_bytes(2, "big")

    transport.write(bytes([_VERSION, len(methods)]) + methods)
    version, method = await link.exactly(2)
    _check_version(version)
    if method == _NONE_ACCEPTABLE:
        raise ProxyError(
            "socks: no acceptable authentication methods: the proxy wants "
            + ("user and password in its URL" if user is None else "another one than user and password")
        )
    if method not in methods:
        raise ProxyError(f"socks: unsupported authentication method {method}")
    if method == _USER_PASSWORD:
        transport.write(login)
        version, status = await link.exactly(2)
        if version != 1:
            raise ProxyError("socks: invalid username/password version")
        if status != 0:
            raise ProxyError("socks: username/password authentication failed")

    transport.write(request)
    version, reply, reserved, kind = await link.exactly(4)
    _check_version(version)
    if reply != 0:
        raise ProxyError(f"socks: {_REPLIES.get(reply, f'unknown code: {reply}')}")
    if reserved != 0:
        raise ProxyError("socks: non-zero reserved field")
    if kind == _NAME:
        size = (await link.exactly(1))[0]
    elif kind in (_IPV4, _IPV6):
        size = 4 if kind == _IPV4 else 16
    else:
        raise ProxyError(f"socks: unknown address type {kind}")
    await link.exactly(size + 2)  # where the proxy connects from, which nobody needs


def _check_version(version: int) -> None:
    if version != _VERSION:
        hint = ": is it an HTTP proxy?" if version == ord("H") else ""
        raise ProxyError(f"socks: unexpected protocol version {version}{hint}")


def _login(user: str, password: str) -> bytes:
    name, word = (text.encode("utf-8", "surrogateescape") for text in (user, password))
    if not 0 < len(name) <= 255 or len(word) > 255:
        raise ProxyError("socks: invalid username/password: each has at most 255 bytes", retryable=False)
    return bytes([1, len(name)]) + name + bytes([len(word)]) + word


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        if len(name) > 255:
            raise ProxyError("socks: FQDN too long", retryable=False) from None
        return bytes([_NAME, len(name)]) + name
    return bytes([_IPV4 if address.version == 4 else _IPV6]) + address.packed
