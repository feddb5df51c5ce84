"""Which hosts a cookie is for: hosts as the cookie jar compares them, and public suffixes (RFC 6265).

    host         canonical: "www.example.co.uk"; lower case ASCII without port and last dot
    suffix       where everybody can register a name: "co.uk"; a public suffix list knows
    jar key      one label more, what one owner registered: "example.co.uk"
    domain       what a cookie is for: a host and, unless it is host-only, all names below it

Law: a domain is never a public suffix that the list knows, and its host is that domain or below
it, so that no owner sets cookies for another one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from prefork.http.errors import CookieError
from prefork.http.message.grammar import ascii_lower
from prefork.http.message.idna import to_ascii
from prefork.http.message.query import URLError

if TYPE_CHECKING:
    from collections.abc import Callable

_octet = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_is_ipv4 = re.compile(rf"{_octet}(?:\.{_octet}){{3}}").fullmatch
# Resolvers read "127.1" and "0x7f.1" as addresses, too.
_ends_in_number = re.compile(r"(?:\A|\.)(?:[0-9]+|0x[0-9a-f]*)\Z").search


class PublicSuffixList(Protocol):
    """Knows under which names everybody can register one (publicsuffix.org; Go: PublicSuffixList)."""

    def public_suffix(self, domain: str) -> str:
        """The longest public suffix of a domain, which is lower case ASCII: "co.uk" of "a.b.co.uk".

        "" when there is none to be told.
        """


def public_suffix_list() -> PublicSuffixList:
    """The list as the package `publicsuffixlist` brings it; read once, then shared.

    Raises ImportError when the package is not installed. The list changes every week: update
    the package now and then.
    """
    return _read_list()


@lru_cache(maxsize=1)
def _read_list() -> PublicSuffixList:
    try:
        from publicsuffixlist import PublicSuffixList as Rules
    except ImportError as exc:
        raise ImportError(
            'the public suffix list needs the package "publicsuffixlist": pip install "prefork[publicsuffix]"'
        ) from exc
    return _PackagedList(Rules().publicsuffix)


class _PackagedList:
    __slots__ = ("_lookup",)

    def __init__(self, lookup: Callable[[str], str | None]) -> None:
        self._lookup = lookup

    def public_suffix(self, domain: str) -> str:
        return self._lookup(domain) or ""

    def __repr__(self) -> str:
        return "<PublicSuffixList of the package publicsuffixlist>"


def canonical_host(host: str) -> str:
    """The host as the jar knows it: in lower case ASCII, without port, brackets and last dot.

    It is the name that is connected to, so that each server has one set of cookies, however
    its name is spelled. Raises URLError for what is no host (Go: canonicalHost).
    """
    name, _ = split_port(host)
    return ascii_lower(to_ascii(name.removesuffix(".")))


def split_port(host: str) -> tuple[str, str | None]:
    """Host and port, the host without brackets; None for no port. Raises URLError."""
    if host[:1] == "[":
        name, bracket, port = host[1:].partition("]")
        if not bracket or (port and port[0] != ":"):
            raise URLError("missing ']' in host")
        return name, port[1:] if port else None
    if host.count(":") == 1:
        name, _, port = host.partition(":")
        return name, port
    return host, None


def jar_key(host: str, suffixes: PublicSuffixList | None) -> str:
    """The registrable domain of a canonical host, or the host if it has none (Go: jarKey)."""
    if is_ip(host):
        return host
    if suffixes is None:
        end = host.rfind(".") - 1  # what stands before the last label has at least one character
        if end < 0:
            return host
    else:
        suffix = suffixes.public_suffix(host)
        end = len(host) - len(suffix) - 1
        # A list that is wrong about the end of the name is not believed; the host alone is safe.
        if not suffix or suffix == host or end < 0 or host[end] != ".":
            return host
    return host[host.rfind(".", 0, end) + 1 :]


def domain_and_type(host: str, domain: str, suffixes: PublicSuffixList | None) -> tuple[str, bool]:
    """The domain a cookie is for, and whether for that host only (RFC 6265 section 5.3, 4 to 6).

    host: canonical, who sets the cookie. domain: the attribute, "" for none. Raises CookieError
    when the host may not set it (Go: domainAndType).
    """
    if not domain:
        return host, True
    if is_ip(host) or _ends_in_number(host):
        # An address has no subdomains, so neither has it a leading dot to be stripped of.
        if domain != host:
            raise CookieError("cookiejar: illegal cookie domain attribute")
        return host, True
    domain = domain.removeprefix(".")
    if not domain or domain[0] == "." or domain[-1] == "." or not domain.isascii():
        raise CookieError("cookiejar: malformed cookie domain attribute")
    domain = domain.lower()
    if suffixes is not None:
        suffix = suffixes.public_suffix(domain)
        if suffix and not has_dot_suffix(domain, suffix):
            # The suffix itself: its own site may set it, as a cookie for itself.
            if domain == host:
                return host, True
            raise CookieError("cookiejar: illegal cookie domain attribute")
    if domain != host and not has_dot_suffix(host, domain):
        raise CookieError("cookiejar: illegal cookie domain attribute")
    return domain, False


def default_path(path: str) -> str:
    """The directory of a request's path, what a cookie without Path is for (RFC 6265 section 5.1.4)."""
    if path[:1] != "/":
        return "/"
    return path[: path.rfind("/")] or "/"


def has_dot_suffix(name: str, suffix: str) -> bool:
    """Whether `name` ends with a dot and `suffix`."""
    end = len(name) - len(suffix)
    return end > 0 and name[end - 1] == "." and name.endswith(suffix)


def is_ip(host: str) -> bool:
    """Whether a canonical host is an address. No name has a colon or a percent sign in it."""
    return ":" in host or "%" in host or _is_ipv4(host) is not None


def is_loopback(host: str) -> bool:
    """Whether a canonical host is this machine: what is sent there passes no network."""
    if host == "localhost":
        return True
    if ":" not in host:
        return host.startswith("127.") and _is_ipv4(host) is not None
    import ipaddress  # rarely needed: most hosts are names

    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return address.is_loopback or (address.ipv4_mapped is not None and address.ipv4_mapped.is_loopback)
