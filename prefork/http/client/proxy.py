"""Which proxy a request goes through (Go: ProxyFromEnvironment and x/net/http/httpproxy).

    HTTP_PROXY, HTTPS_PROXY   the proxy for http: and for https: URLs, else the same in lower case:
                              http://, https://, socks5:// or socks5h://; without a scheme http://
    NO_PROXY                  who is reached directly, separated by commas:
        *                       everybody
        example.com             this host and its subdomains
        .example.com            its subdomains only; also written *.example.com
        192.0.2.7, 10.0.0.0/8   an address, or a range of them; IPv6 with or without brackets
        HOST:PORT               each of the above but a range, on this port only

`localhost` and loopback addresses are never asked for through a proxy; `foo.localhost` is.

Law: a request never goes around a proxy that was asked for but cannot be used; it fails.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from prefork.http.client.connect_method import PORTS
from prefork.http.errors import ProxyError
from prefork.http.message.auth import basic_auth
from prefork.http.message.idna import to_ascii
from prefork.http.message.query import URLError, quoted
from prefork.http.message.url import URL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prefork.http.message.request import Request

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_CGI_TEXT = "refusing to use HTTP_PROXY value in CGI environment; see golang.org/s/cgihttpproxy"
_host_and_port = re.compile(r"(?:\[([^\[\]]*)\]|([^:]*)):([^:]*)").fullmatch
_cidr = re.compile(r"([0-9a-f.:]+)/([0-9]{1,3})").fullmatch


class ProxyConfig:
    """The proxies that an environment asks for (Go: httpproxy.Config).

    environ: names and values like those of os.environ. Nothing is read later on.

        config = ProxyConfig({"HTTPS_PROXY": "proxy.corp:3128", "NO_PROXY": ".corp"})
        config.proxy_for(URL.parse("https://example.com/"))  # <URL http://proxy.corp:3128>
        config.proxy_for(URL.parse("https://wiki.corp/"))    # None: no proxy
    """

    __slots__ = ("_cgi", "_everybody", "_ip", "_names", "_networks", "_proxies")

    def __init__(self, environ: Mapping[str, str]) -> None:
        def value(name: str) -> str:
            return environ.get(name) or environ.get(name.lower()) or ""

        self._proxies: dict[str, URL | ProxyError] = {}
        for scheme in ("http", "https"):
            if text := value(f"{scheme.upper()}_PROXY"):
                self._proxies[scheme] = _parse_proxy(text)
        # A CGI script finds the header `Proxy` of its client in HTTP_PROXY ("httpoxy", CVE-2016-5386).
        self._cgi = bool(environ.get("REQUEST_METHOD"))
        self._everybody = False
        self._networks: list[Network] = []
        self._ip: list[tuple[Address, str]] = []
        self._names: list[tuple[str, bool, str]] = []  # ".example.com", itself too, port or ""
        for entry in value("NO_PROXY").split(","):
            self._exclude(entry.strip().lower())

    def _exclude(self, entry: str) -> None:
        if entry == "*":
            self._everybody = True
            return
        if _cidr(entry):
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                pass  # no range: then it is a name that no host has
            else:
                return
        host, port = entry, ""
        if match := _host_and_port(entry):
            host, port = match[1] or match[2] or "", match[3]
        elif entry[:1] == "[" and entry[-1:] == "]":
            host = entry[1:-1]
        if not host:
            return
        if address := _parse_address(host):
            self._ip.append((address, port))
            return
        host = host.removeprefix("*") if host.startswith("*.") else host
        itself = host[0] != "."
        try:
            host = to_ascii(host.removeprefix("."))
        except URLError:
            return  # what cannot be a name is no host's
        self._names.append((f".{host.lower()}", itself, port))

    def proxy_for(self, url: URL) -> URL | None:
        """The proxy for a request to `url`, None to connect directly.

        Raises ProxyError when the proxy that is asked for cannot be used: its address cannot be
        parsed, or it may come from the client of a CGI script (Go goes on without a proxy when
        it cannot parse one).
        """
        proxy = self._proxies.get(url.scheme)
        if proxy is None:
            return None
        if self._cgi and url.scheme == "http":
            raise ProxyError(_CGI_TEXT, retryable=False)
        host = url.hostname()
        try:
            host = to_ascii(host)
        except URLError:
            pass  # it will be refused when it is connected to
        if not self._use_proxy(host, url.port() or PORTS[url.scheme]):
            return None
        if isinstance(proxy, ProxyError):
            raise ProxyError(proxy.text, retryable=False)
        return proxy

    def _use_proxy(self, host: str, port: str) -> bool:
        address = _parse_address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return False
        if self._everybody:
            return False
        if address is None:
            host = host.lower()
            for name, itself, its_port in self._names:
                if its_port in ("", port) and (host.endswith(name) or (itself and host == name[1:])):
                    return False
            return True
        # An address is no name: a zone can end like one ("::1%.example.com", CVE-2025-22870).
        if any(address in network for network in self._networks if network.version == address.version):
            return False
        return not any(address == other and its_port in ("", port) for other, its_port in self._ip)

    def __bool__(self) -> bool:
        """Whether there is any proxy: False means that `proxy_for` is always None."""
        return bool(self._proxies)


def _parse_address(host: str) -> Address | None:
    """The address that `host` spells, without its zone; an IPv4 address mapped into IPv6 is the IPv4 one."""
    if not (":" in host or host[-1:].isdigit()):
        return None
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (address.version == 6 and address.ipv4_mapped) or address


def _parse_proxy(text: str) -> URL | ProxyError:
    # "proxy:3128" would be a URL with the scheme "proxy".
    try:
        return _checked(text if "://" in text else f"http://{text}")
    except URLError as error:
        return ProxyError(f"invalid proxy address {quoted(_without_user_info(text))}: {error.reason}")


def _checked(text: URL | str) -> URL:
    url = URL.parse(text) if isinstance(text, str) else text
    if url.scheme not in PROXY_SCHEMES:
        raise URLError(f"unsupported proxy scheme {quoted(url.scheme)}: use {', '.join(PROXY_SCHEMES)}")
    if not url.hostname():
        raise URLError("there is no host in it")
    return url


def _without_user_info(text: str) -> str:
    scheme, mark, rest = text.partition("://") if "://" in text else ("", "", text)
    return scheme + mark + rest.rpartition("@")[2]


_environment: ProxyConfig | None = None


def proxy_from_environment(request: Request) -> URL | None:
    """The proxy that the environment variables ask for, None for none (Go: ProxyFromEnvironment).

    The environment is read by the first call in a process; `read_environment` reads it again.
    Raises ProxyError as `ProxyConfig.proxy_for` does.

        transport = http.Transport(proxy=http.proxy_from_environment)
    """
    config = _environment
    if config is None:
        config = read_environment()
    return config.proxy_for(request.url) if config else None


def environment_has_proxies() -> bool:
    """Whether `proxy_from_environment` can ever return one."""
    return bool(_environment if _environment is not None else read_environment())


def read_environment() -> ProxyConfig:
    """Take the environment as it is now for `proxy_from_environment`; for tests that change it."""
    global _environment
    _environment = ProxyConfig(os.environ)
    return _environment


def proxy_url(url: URL | str) -> Callable[[Any], URL | None]:
    """A function that names the same proxy for every request (Go: ProxyURL).

    Raises URLError (a ValueError) for what is no URL with a host and one of the schemes http,
    https, socks5 and socks5h.

        transport = http.Transport(proxy=http.proxy_url("http://user:password@proxy.corp:3128"))
    """
    proxy = _checked(url)

    def the_same(request: Any) -> URL | None:
        return proxy

    return the_same


def proxy_authorization(url: URL | None) -> str:
    """The Proxy-Authorization value from the user info of a proxy's URL, "" when it has none."""
    if url is None or url.username is None:
        return ""
    return basic_auth(url.username, url.password or "")
