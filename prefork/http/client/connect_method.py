"""ConnectMethod: where a connection goes, and how (Go: connectMethod)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.http.message.idna import to_ascii

if TYPE_CHECKING:
    from prefork.http.message.url import URL

PORTS = {"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}


def canonical_addr(url: URL) -> str:
    """ "host:port" of a URL: the host in ASCII, the port filled in (Go: canonicalAddr)."""
    host = to_ascii(url.hostname())
    port = url.port() or PORTS.get(url.scheme, "")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class ConnectMethod:
    """How to reach a server.

    proxy: the URL of the proxy on the way, None for none. scheme: "http" or "https", of the
    server. addr: "host:port" of the server, as `canonical_addr` writes it; only_h1: HTTP/2 must
    not be negotiated (an upgrade is asked for).

    key: what the pool sorts connections by. Through an HTTP proxy all plain-text servers share
    connections, so the server is not in their key.
    """

    __slots__ = ("addr", "key", "only_h1", "proxy", "scheme")

    def __init__(self, proxy: URL | None, scheme: str, addr: str, *, only_h1: bool = False) -> None:
        self.proxy = proxy
        self.scheme = scheme
        self.addr = addr
        self.only_h1 = only_h1
        target = "" if self.absolute_form else addr
        self.key = f"{proxy or ''}|{scheme}{',h1' if only_h1 else ''}|{target}"

    @property
    def absolute_form(self) -> bool:
        """Whether requests name the whole URL, for an HTTP proxy to forward (RFC 9112 section 3.2.2)."""
        return self.proxy is not None and self.scheme == "http" and self.proxy.scheme in ("http", "https")

    @property
    def dial_addr(self) -> str:
        """ "host:port" that the TCP connection goes to: the proxy's, if there is one."""
        return canonical_addr(self.proxy) if self.proxy is not None else self.addr

    @property
    def tls_host(self) -> str:
        """The name that the server's certificate must have."""
        return self.addr.rpartition(":")[0].strip("[]").partition("%")[0]

    def __repr__(self) -> str:
        proxy = f" through {self.proxy.redacted()}" if self.proxy is not None else ""
        return f"<ConnectMethod {self.scheme}://{self.addr}{proxy}>"
