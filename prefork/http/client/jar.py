"""CookieJar: the cookies of a client, kept between its requests (RFC 6265; Go: net/http/cookiejar).

Entries are filed under the registrable domain of the host that set them ("example.co.uk" of
"www.example.co.uk"): a request looks at its own file and at nothing else. Which part of a name
is for everybody to register under ("co.uk") only a public suffix list knows; without one the
last two labels are taken, and then two owners under "co.uk" share a file and can set
cookies for each other. Give a list wherever servers are not all your own:

    jar = http.CookieJar(public_suffix_list=http.public_suffix_list())

Laws. A cookie goes to hosts that its domain matches, to paths below its own, and, with Secure,
over https only, or to this very machine. What the jar keeps is bounded, however much servers
send. Cookies are copied on their way in and out: nobody outside holds what is inside.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Final

from prefork.http.client.cookie_domain import (
    PublicSuffixList,
    canonical_host,
    default_path,
    domain_and_type,
    has_dot_suffix,
    is_loopback,
    jar_key,
    public_suffix_list,
)
from prefork.http.errors import CookieError
from prefork.http.message.cookie import Cookie, SameSite
from prefork.http.message.grammar import is_token
from prefork.http.message.url import URL, URLError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "MAX_ATTRIBUTE_BYTES",
    "MAX_COOKIE_BYTES",
    "MAX_PER_DOMAIN",
    "MAX_TOTAL",
    "CookieJar",
    "PublicSuffixList",
    "public_suffix_list",
]

MAX_COOKIE_BYTES: Final = 4096
"""A cookie with more in name and value together is not kept (RFC 6265bis section 5.6)."""

MAX_ATTRIBUTE_BYTES: Final = 1024
"""A cookie with a longer path or domain is not kept."""

MAX_PER_DOMAIN: Final = 180
"""Cookies of one registrable domain; one more drops the one that was not used for longest."""

MAX_TOTAL: Final = 3000
"""Cookies of all domains; one more drops the one that was not used for longest."""

_END_OF_TIME: Final = 253402300799.0  # 9999-12-31, the last day of datetime


class _Entry:
    """A kept cookie. `key` is the registrable domain it is filed under, `number` its age: first is 0."""

    __slots__ = (
        "domain",
        "expires",
        "host_only",
        "http_only",
        "key",
        "name",
        "number",
        "path",
        "quoted",
        "same_site",
        "secure",
        "value",
    )

    def __init__(
        self, cookie: Cookie, *, key: str, domain: str, host_only: bool, path: str, expires: float | None
    ) -> None:
        self.key = key
        self.name = cookie.name
        self.value = cookie.value
        self.quoted = cookie.quoted
        self.domain = domain
        self.host_only = host_only
        self.path = path
        self.secure = cookie.secure
        self.http_only = cookie.http_only
        self.same_site: SameSite | None = cookie.same_site
        self.expires = expires
        self.number = 0

    @property
    def id(self) -> _Id:
        return self.domain, self.path, self.name

    def is_for(self, host: str, path: str) -> bool:
        if self.domain != host and (self.host_only or not has_dot_suffix(host, self.domain)):
            return False
        mine = self.path
        return path == mine or (path.startswith(mine) and (mine[-1] == "/" or path[len(mine)] == "/"))


_Id = tuple[str, str, str]
_NO_ENTRIES: Final[OrderedDict[_Id, _Entry]] = OrderedDict()


class CookieJar:
    """Keeps what servers set, and gives what belongs to a request (Go: cookiejar.Jar).

    public_suffix_list: None checks nothing against a list, see the top of this module. now:
    the seconds since 1970, for tests of what expires. The cookies are in memory only; iterate
    over the jar to save them.

    May be used by several threads at once. For http and https URLs only: for others nothing
    is kept and nothing given.

        client = http.Client(jar=http.CookieJar())
    """

    __slots__ = ("_filed", "_lock", "_next_number", "_now", "_recent", "_suffixes")

    def __init__(
        self,
        *,
        public_suffix_list: PublicSuffixList | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._suffixes = public_suffix_list
        self._now = now
        self._lock = Lock()
        self._next_number = 0
        # Both in the order of their last use, so that what has to go is the first.
        self._filed: dict[str, OrderedDict[_Id, _Entry]] = {}
        self._recent: OrderedDict[_Entry, None] = OrderedDict()

    def set_cookies(self, url: URL, cookies: Iterable[Cookie]) -> None:
        """Keep the cookies of a response to a request for `url` (Go: SetCookies).

        A cookie that the host may not set, that its name's prefix forbids (`__Secure-`,
        `__Host-`), or that is too large, is left out without an error. Max-Age counts before
        Expires; a time in the past deletes the cookie of that domain, path and name.
        """
        cookies = list(cookies)
        host = _host_of(url) if cookies else None
        if host is None:
            return
        trusted = url.scheme == "https" or is_loopback(host)
        key = jar_key(host, self._suffixes)
        now = self._now()
        directory = default_path(url.path)
        with self._lock:
            self._drop_expired(key, now)
            for cookie in cookies:
                try:
                    entry = self._new_entry(cookie, host, directory, key, trusted, now)
                except CookieError:
                    continue
                if entry.expires is None or entry.expires > now:
                    self._keep(entry)
                elif (old := self._filed.get(key, _NO_ENTRIES).get(entry.id)) is not None:
                    self._drop(old)

    def cookies(self, url: URL) -> list[Cookie]:
        """The cookies to send with a request for `url`, in the order to send them in (Go: Cookies).

        Those of longer paths come first, then the older ones. Only name, value and quoted are
        set, for `Cookie.request_value`.
        """
        host = _host_of(url) if self._recent else None
        if host is None:
            return []
        path = url.path or "/"
        key = jar_key(host, self._suffixes)
        now = self._now()
        with self._lock:
            self._drop_expired(key, now)
            entries = self._filed.get(key)
            if not entries:
                return []
            chosen = [entry for entry in entries.values() if entry.is_for(host, path)]
            if url.scheme != "https" and not is_loopback(host):
                chosen = [entry for entry in chosen if not entry.secure]
            for entry in chosen:
                entries.move_to_end(entry.id)
                self._recent.move_to_end(entry)
        # All these paths begin the request's path, so there is one of each length.
        chosen.sort(key=lambda entry: (-len(entry.path), entry.number))
        return [Cookie(entry.name, entry.value, quoted=entry.quoted) for entry in chosen]

    def clear(self) -> None:
        """Forget all cookies."""
        with self._lock:
            self._filed.clear()
            self._recent.clear()

    def __iter__(self) -> Iterator[tuple[URL, Cookie]]:
        """Every cookie with a URL that may set it, the oldest first.

        The cookie has all its attributes; `domain` is "" when it is for that URL's host only.
        Setting each for its URL makes an equal jar:

            for url, cookie in jar:
                other.set_cookies(url, [cookie])
        """
        now = self._now()
        with self._lock:
            entries = [entry for entry in self._recent if entry.expires is None or entry.expires > now]
        for entry in sorted(entries, key=lambda entry: entry.number):
            host = f"[{entry.domain}]" if ":" in entry.domain else entry.domain
            expires = None if entry.expires is None else datetime.fromtimestamp(entry.expires, UTC)
            yield (
                URL(scheme="https" if entry.secure else "http", host=host, path="/"),
                Cookie(
                    entry.name,
                    entry.value,
                    quoted=entry.quoted,
                    path=entry.path,
                    domain="" if entry.host_only else entry.domain,
                    expires=expires,
                    secure=entry.secure,
                    http_only=entry.http_only,
                    same_site=entry.same_site,
                ),
            )

    def __len__(self) -> int:
        """The number of cookies, those included that expired and were not asked for since."""
        return len(self._recent)

    def __bool__(self) -> bool:
        """True, also when it is empty: it is still a jar."""
        return True

    def __repr__(self) -> str:
        return f"<CookieJar {len(self._recent)} cookies of {len(self._filed)} domains>"

    def _new_entry(
        self, cookie: Cookie, host: str, directory: str, key: str, trusted: bool, now: float
    ) -> _Entry:
        """The entry for a cookie that `host` sets; CookieError when it may not."""
        if not is_token(cookie.name):
            raise CookieError("cookiejar: invalid cookie name")
        _check_prefix(cookie, trusted)
        domain, host_only = domain_and_type(host, cookie.domain, self._suffixes)
        path = cookie.path if cookie.path[:1] == "/" else directory
        expires: float | None = None
        if cookie.max_age is not None:
            expires = now + min(cookie.max_age, _END_OF_TIME) if cookie.max_age > 0 else now
        elif cookie.expires is not None:
            when = cookie.expires
            expires = (when.replace(tzinfo=UTC) if when.tzinfo is None else when).timestamp()
        if expires is not None:
            expires = min(expires, _END_OF_TIME)
        if (
            len(cookie.name) + len(cookie.value) > MAX_COOKIE_BYTES
            or len(path) > MAX_ATTRIBUTE_BYTES
            or len(domain) > MAX_ATTRIBUTE_BYTES
        ):
            raise CookieError("cookiejar: cookie too large")
        return _Entry(cookie, key=key, domain=domain, host_only=host_only, path=path, expires=expires)

    def _keep(self, entry: _Entry) -> None:
        entries = self._filed.get(entry.key)
        if entries is None:
            entries = self._filed[entry.key] = OrderedDict()
        old = entries.pop(entry.id, None)
        if old is not None:
            entry.number = old.number  # RFC 6265 section 5.3: an update keeps the creation time
            del self._recent[old]
        else:
            entry.number = self._next_number
            self._next_number += 1
        entries[entry.id] = entry
        self._recent[entry] = None
        if len(entries) > MAX_PER_DOMAIN:
            self._drop(next(iter(entries.values())))
        elif len(self._recent) > MAX_TOTAL:
            self._drop(next(iter(self._recent)))

    def _drop(self, entry: _Entry) -> None:
        entries = self._filed[entry.key]
        del entries[entry.id]
        del self._recent[entry]
        if not entries:
            del self._filed[entry.key]

    def _drop_expired(self, key: str, now: float) -> None:
        entries = self._filed.get(key, _NO_ENTRIES).values()
        for entry in [entry for entry in entries if entry.expires is not None and entry.expires <= now]:
            self._drop(entry)


def _host_of(url: URL) -> str | None:
    """The canonical host of a URL that can have cookies, None for any other."""
    if url.scheme not in ("http", "https"):
        return None
    try:
        return canonical_host(url.host) or None
    except URLError:
        return None


def _check_prefix(cookie: Cookie, trusted: bool) -> None:
    """Hold a name to its promise (RFC 6265bis section 4.1.3); CookieError when it is broken.

    Browsers compare the prefix in any case, since servers may look names up so.
    """
    name = cookie.name[:9].lower()
    if name.startswith(("__secure-", "__host-")) and not (cookie.secure and trusted):
        raise CookieError("cookiejar: the prefix of the cookie's name needs Secure and https")
    if name.startswith("__host-") and (cookie.domain or cookie.path != "/"):
        raise CookieError("cookiejar: __Host- needs Path=/ and no Domain")
