"""URLs (Go: net/url).

A URL keeps its path twice: `path` is decoded, what handlers compare and open; `raw_path` is
the spelling that was received, kept only when encoding `path` again would not give it back.
`escaped_path()` chooses between the two. So a path with an encoded slash (`/a%2Fb`) is not
confused with one of two segments, although both have the same `path`.

Law: what `URL.parse` made and `str()` wrote means the same to whoever parses it next; no host,
user info or scheme appears that the first text did not have.

Two parsers for two places. `URL.parse` takes references as documents hold them and splits the
fragment off. `URL.parse_request_uri` takes the target of a request line, where there is no
fragment, and where `//x` is a path: reading it as a host would let a request choose it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefork.http.message.query import (
    Part,
    QueryError,
    URLError,
    Values,
    encode_query,
    escape,
    is_bare,
    must_escape,
    parse_query,
    path_escape,
    path_unescape,
    query_escape,
    query_unescape,
    quoted,
    unescape,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "URL",
    "QueryError",
    "URLError",
    "Values",
    "clean_path",
    "encode_query",
    "join_path",
    "parse_query",
    "path_clean",
    "path_escape",
    "path_unescape",
    "query_escape",
    "query_unescape",
]

_CONTROL = re.compile("[\x00-\x1f\x7f]")
# RFC 3986 section 3.1: scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." )
_SCHEME = re.compile("([A-Za-z][A-Za-z0-9+.-]*):")
_PORT = re.compile("(?::[0-9]*)?")
# RFC 3986 section 3.2.1, plus `@`: what stands before the last one is taken as user info.
_USER_INFO = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
# pchar of RFC 3986 and, as browsers do, square brackets; the rest is decided by the part.
_KEPT = frozenset(b"!$&'()*+,;=:@[]%")


class URL:
    """A parsed URL or a reference to one (Go: url.URL).

        [scheme:][//[username[:password]@]host][/]path[?raw_query][#fragment]
        scheme:opaque[?raw_query][#fragment]

    scheme: lower case, "" in a relative reference. opaque: what follows `scheme:` when that is
    no slash, still encoded. username: None when there is no user info; password: None when
    none is given (`u@h`), which is not the same as an empty one (`u:@h`). host: `host` or
    `host:port`, an IPv6 address in brackets. path: decoded. raw_path: the received spelling of
    the path, "" when it is the default encoding of `path`. raw_query: encoded, without `?`.
    force_query: write a `?` although raw_query is "". fragment, raw_fragment: as path and
    raw_path. omit_host: write `scheme:/path` and not `scheme:///path` when host is "".

    Attributes may be assigned. A raw_path that does not decode to path is ignored.

        u = URL.parse("https://example.org/a%2Fb?q=1")
        u.host, u.path, u.escaped_path(), u.query()["q"]     # 'example.org', '/a/b', '/a%2Fb', ['1']
    """

    __slots__ = (
        "_parsed_query",
        "force_query",
        "fragment",
        "host",
        "omit_host",
        "opaque",
        "password",
        "path",
        "raw_fragment",
        "raw_path",
        "raw_query",
        "scheme",
        "username",
    )

    def __init__(
        self,
        *,
        scheme: str = "",
        opaque: str = "",
        username: str | None = None,
        password: str | None = None,
        host: str = "",
        path: str = "",
        raw_path: str = "",
        raw_query: str = "",
        force_query: bool = False,
        fragment: str = "",
        raw_fragment: str = "",
        omit_host: bool = False,
    ) -> None:
        self.scheme = scheme
        self.opaque = opaque
        self.username = username
        self.password = password
        self.host = host
        self.path = path
        self.raw_path = raw_path
        self.raw_query = raw_query
        self.force_query = force_query
        self.fragment = fragment
        self.raw_fragment = raw_fragment
        self.omit_host = omit_host
        self._parsed_query: tuple[str, Values] | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an absolute URL or a relative reference (Go: url.Parse).

        Raises URLError.
        """
        before, _, fragment = text.partition("#")
        url = cls()
        try:
            url._parse(before, via_request=False)
        except URLError as exc:
            raise URLError(exc.reason, before) from None
        if fragment:
            try:
                url._set_fragment(fragment)
            except URLError as exc:
                raise URLError(exc.reason, text) from None
        return url

    @classmethod
    def parse_request_uri(cls, text: str) -> Self:
        """Parse the target of a request line (Go: url.ParseRequestURI).

        Only an absolute URL, an absolute path and `*` are taken. `#` is part of the path or
        query, `//x/y` is a path. Raises URLError.
        """
        url = cls()
        try:
            url._parse(text, via_request=True)
        except URLError as exc:
            raise URLError(exc.reason, text) from None
        return url

    def _parse(self, text: str, *, via_request: bool) -> None:
        if _CONTROL.search(text) is not None:
            raise URLError("net/url: invalid control character in URL")
        if not text and via_request:
            raise URLError("empty url")
        if text == "*":
            self.path = "*"
            return
        rest = text
        if text[:1] != "/":
            if text[:1] == ":":
                raise URLError("missing protocol scheme")
            scheme = _SCHEME.match(text)
            if scheme is not None:
                self.scheme = scheme[1].lower()
                rest = text[scheme.end() :]
        rest, mark, self.raw_query = rest.partition("?")
        self.force_query = bool(mark) and not self.raw_query
        if rest[:1] != "/":
            if self.scheme:
                # RFC 3986 calls this a rootless path; nothing says that slashes and dots in
                # it mean what they mean in a path, so it is left as it is.
                self.opaque = rest
                return
            if via_request:
                raise URLError("invalid URI for request")
            # RFC 3986 section 4.2: "A path segment that contains a colon character (e.g.,
            # "this:that") cannot be used as the first segment of a relative-path reference".
            if ":" in rest.partition("/")[0]:
                raise URLError("first path segment in URL cannot contain colon")
        if rest[:2] == "//" and (self.scheme or not (via_request or rest[2:3] == "/")):
            authority, slash, rest = rest[2:].partition("/")
            rest = slash + rest
            self._parse_authority(authority)
        elif self.scheme and rest[:1] == "/":
            self.omit_host = True
        self._set_path(rest)

    def _parse_authority(self, authority: str) -> None:
        user_info, at, host = authority.rpartition("@")
        self.host = _parse_host(self.scheme, host)
        if not at:
            return
        if _USER_INFO.fullmatch(user_info) is None:
            raise URLError("net/url: invalid userinfo")
        username, colon, password = user_info.partition(":")
        self.username = unescape(username, Part.USER_PASSWORD)
        if colon:
            self.password = unescape(password, Part.USER_PASSWORD)

    def _set_path(self, escaped: str) -> None:
        if is_bare(escaped, Part.PATH):
            self.path, self.raw_path = escaped, ""
            return
        self.path = unescape(escaped, Part.PATH)
        self.raw_path = "" if escape(self.path, Part.PATH) == escaped else escaped

    def _set_fragment(self, escaped: str) -> None:
        self.fragment = unescape(escaped, Part.FRAGMENT)
        self.raw_fragment = "" if escape(self.fragment, Part.FRAGMENT) == escaped else escaped

    def escaped_path(self) -> str:
        """Return the path as it travels: `raw_path` where that spells `path`, else its encoding."""
        if self.raw_path and _spells(self.raw_path, self.path, Part.PATH):
            return self.raw_path
        return "*" if self.path == "*" else escape(self.path, Part.PATH)

    def escaped_fragment(self) -> str:
        """Return the fragment as it travels, chosen as in `escaped_path`."""
        if self.raw_fragment and _spells(self.raw_fragment, self.fragment, Part.FRAGMENT):
            return self.raw_fragment
        return escape(self.fragment, Part.FRAGMENT)

    def request_uri(self) -> str:
        """Return path and query as a request line has them: `/a?q=1`, never empty."""
        if not self.opaque:
            target = self.escaped_path() or "/"
        elif self.opaque.startswith("//"):
            target = f"{self.scheme}:{self.opaque}"
        else:
            target = self.opaque
        return f"{target}?{self.raw_query}" if self.force_query or self.raw_query else target

    def hostname(self) -> str:
        """Return the host without port and without the brackets of an IPv6 address."""
        return _split_host_port(self.host)[0]

    def port(self) -> str:
        """Return the digits of the port, "" when there is none."""
        return _split_host_port(self.host)[1]

    def is_abs(self) -> bool:
        """Whether the URL has a scheme."""
        return bool(self.scheme)

    def query(self) -> Values:
        """Return the pairs of `raw_query`, leaving out those that cannot be taken.

        Parsed once for each value of `raw_query`: every call gives the same object. Changing
        it does not change the URL; for that assign `raw_query = values.encode()`.
        Use `parse_query(url.raw_query)` to learn of faults.
        """
        cached = self._parsed_query
        if cached is None or cached[0] != self.raw_query:
            try:
                values = parse_query(self.raw_query)
            except QueryError as exc:
                values = exc.values
            cached = self._parsed_query = (self.raw_query, values)
        return cached[1]

    def redacted(self) -> str:
        """Return `str(url)` with `xxxxx` in place of the password, for logs."""
        if self.password is None:
            return str(self)
        url = self.clone()
        url.password = "xxxxx"
        return str(url)

    def clone(self) -> URL:
        """Return an independent copy."""
        return URL(
            scheme=self.scheme,
            opaque=self.opaque,
            username=self.username,
            password=self.password,
            host=self.host,
            path=self.path,
            raw_path=self.raw_path,
            raw_query=self.raw_query,
            force_query=self.force_query,
            fragment=self.fragment,
            raw_fragment=self.raw_fragment,
            omit_host=self.omit_host,
        )

    def resolve_reference(self, reference: URL | str) -> URL:
        """Return the absolute URL that `reference` means in a document at this one.

        RFC 3986 section 5.2. A str is parsed first (Go: URL.Parse), which raises URLError.
        """
        ref = URL.parse(reference) if isinstance(reference, str) else reference
        url = ref.clone()
        if not ref.scheme:
            url.scheme = self.scheme
        if ref.scheme or ref.host or ref.username is not None:
            url._set_path(_resolve_path(ref.escaped_path(), ""))
            return url
        if not ref.opaque:
            if not ref.path and not ref.force_query and not ref.raw_query:
                url.raw_query = self.raw_query
                if not ref.fragment:
                    url.fragment, url.raw_fragment = self.fragment, self.raw_fragment
            if ref.path or not self.opaque:
                url.host, url.username, url.password = self.host, self.username, self.password
                url._set_path(_resolve_path(self.escaped_path(), ref.escaped_path()))
                return url
            url.opaque = self.opaque
        url.username = url.password = None
        url.host = url.path = ""
        return url

    def join_path(self, *elements: str) -> URL:
        """Return a copy whose path has `elements` (escaped) appended and is clean.

        `..` cannot lead out of the root. A trailing slash of the last element is kept.
        Raises URLError for a bad escape.
        """
        first = self.escaped_path()
        absolute = first.startswith("/")
        parts = [first if absolute else "/" + first, *elements]
        joined = "/".join(part for part in parts if part)
        path = path_clean(joined)
        if not absolute:
            path = path[1:]
        if parts[-1].endswith("/") and not path.endswith("/"):
            path += "/"
        url = self.clone()
        url._set_path(path)
        return url

    def __str__(self) -> str:
        out: list[str] = []
        if self.scheme:
            out.append(f"{self.scheme}:")
        if self.opaque:
            out.append(self.opaque)
        else:
            hostless = self.omit_host and not self.host and self.username is None
            if not hostless and (self.scheme or self.host or self.username is not None):
                out.append(self._authority())
            path = self.escaped_path()
            if hostless and path.startswith("//"):
                # Written plainly, the next parser would take the path's first segment for a host.
                out.append("%2F")
                path = path[1:]
            if path and path[0] != "/" and self.host:
                out.append("/")
            if not out and ":" in path.partition("/")[0]:
                # RFC 3986 section 4.2: such a segment "must be preceded by a dot-segment".
                out.append("./")
            out.append(path)
        if self.force_query or self.raw_query:
            out.append(f"?{self.raw_query}")
        if self.fragment:
            out.append(f"#{self.escaped_fragment()}")
        return "".join(out)

    def _authority(self) -> str:
        host = escape(self.host, Part.HOST)
        if self.username is None:
            return f"//{host}" if host or self.path else ""
        user_info = escape(self.username, Part.USER_PASSWORD)
        if self.password is not None:
            user_info += ":" + escape(self.password, Part.USER_PASSWORD)
        return f"//{user_info}@{host}"

    def __repr__(self) -> str:
        return f"<URL {self.redacted()}>"

    # Attributes may be assigned, so there is no hash: a URL cannot be a key.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, URL):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS)


_FIELDS = tuple(name for name in URL.__slots__ if name != "_parsed_query")


def join_path(base: str, *elements: str) -> str:
    """Parse `base`, append `elements` to its path and return the text (Go: url.JoinPath)."""
    return str(URL.parse(base).join_path(*elements))


def clean_path(path: str) -> str:
    """Return the canonical form of a request path, as ServeMux redirects to it.

    It begins with a slash, has no empty, `.` or `..` segment, and keeps a trailing slash.
    Escapes are not looked into: `%2e%2e` stays.
    """
    if not path:
        return "/"
    if path[0] != "/":
        path = "/" + path
    # Nothing to clean is the rule; "/." is in every path that has a dot segment.
    if "//" not in path and "/." not in path:
        return path
    cleaned = path_clean(path)
    if path[-1] == "/" and cleaned != "/":
        cleaned += "/"
    return cleaned


def path_clean(path: str) -> str:
    """Return the shortest path that names the same as `path` (Go: path.Clean).

    Empty and `.` segments vanish, `..` takes the segment before it away, `/..` at the root
    is `/`. The result has no trailing slash unless it is `/`, and is `.` rather than empty.
    """
    rooted = path[:1] == "/"
    kept: list[str] = []
    for segment in path.split("/"):
        if segment in ("", "."):
            continue
        if segment != "..":
            kept.append(segment)
        elif kept and kept[-1] != "..":
            kept.pop()
        elif not rooted:
            kept.append(segment)
    cleaned = "/".join(kept)
    return "/" + cleaned if rooted else cleaned or "."


def _parse_host(scheme: str, host: str) -> str:
    bracket = host.rfind("[")
    if bracket > 0:
        raise URLError("invalid IP-literal")
    if bracket == 0:
        return _parse_ip_literal(host)
    colon = host.find(":")
    if colon >= 0:
        if scheme not in ("http", "https"):
            # Databases list several hosts: postgresql://a:1,b:2. RFC 3986 does not know that,
            # and in http it is refused.
            colon = host.rfind(":")
        _check_port(host[colon:])
    return unescape(host, Part.HOST)


def _parse_ip_literal(host: str) -> str:
    """Return the decoded form of `[address]`, `[address%25zone]`, each with `:port` or not."""
    end = host.rfind("]")
    if end < 0:
        raise URLError("missing ']' in host")
    port = host[end + 1 :]
    _check_port(port)
    name = host[1:end]
    zone = name.find("%25")  # RFC 6874: an encoded percent sign introduces the zone
    if zone >= 0:
        name = unescape(name[:zone], Part.HOST) + unescape(name[zone:], Part.ZONE)
    else:
        name = unescape(name, Part.HOST)
    _check_ipv6(name)
    return f"[{name}]{port}"


def _check_ipv6(name: str) -> None:
    # Imported here: most processes never meet an address literal in a URL.
    import ipaddress

    address, percent, zone = name.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        try:
            ipaddress.IPv4Address(name)
        except ValueError:
            raise URLError(f"invalid host: {quoted(name)} is not an IPv6 address") from None
        # RFC 3986 section 3.2.2: brackets are for IPv6 alone.
        raise URLError("invalid IP-literal") from None
    if percent and not zone:
        raise URLError(f"invalid host: {quoted(name)} has an empty zone")


def _check_port(port: str) -> None:
    if _PORT.fullmatch(port) is None:
        raise URLError(f"invalid port {quoted(port)} after host")


def _split_host_port(host: str) -> tuple[str, str]:
    name, colon, port = host.rpartition(":")
    if not colon or _PORT.fullmatch(":" + port) is None:
        name, port = host, ""
    if name[:1] == "[" and name[-1:] == "]":
        name = name[1:-1]
    return name, port


def _spells(raw: str, decoded: str, part: Part) -> bool:
    """Whether `raw` is a valid encoding of `decoded`."""
    if not raw.isascii():
        return False
    if any(must_escape(byte, part) and byte not in _KEPT for byte in raw.encode()):
        return False
    try:
        return unescape(raw, part) == decoded
    except URLError:
        return False


def _resolve_path(base: str, reference: str) -> str:
    """Join two encoded paths and take the dot segments out (RFC 3986 section 5.2.4)."""
    if not reference:
        full = base
    elif reference[0] == "/":
        full = reference
    else:
        full = base[: base.rfind("/") + 1] + reference
    if not full:
        return ""
    segments = full.split("/")
    if segments[0] == "":
        del segments[0]
    kept: list[str] = []
    at_root = False
    for segment in segments:
        if segment == "..":
            if kept:
                kept.pop()
            at_root = not kept
            continue
        # `a/..//b` is `/b`: as `//b` it would be taken for a host.
        if segment != "." and not (at_root and segment == ""):
            kept.append(segment)
        at_root = False
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
