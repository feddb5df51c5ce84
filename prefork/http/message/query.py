"""Percent-encoding and query strings (Go: the escape functions and Values of net/url).

Every part of a URL has its own set of bytes that may stand unescaped. `Part` names the
parts; one table of 256 entries per part answers for each byte what stands for it.

Law: text is bytes. Inside Python a decoded part is a str that holds those bytes as UTF-8
with surrogateescape, so a byte that is no UTF-8 (`%ff`) survives the way through a str and
back. Nothing is replaced and nothing is normalised.

Query strings follow the WHATWG split that Go took in 1.17: only `&` separates pairs. A pair
that contains `;` is refused, since two parties that split it differently can be played
against each other (cache poisoning, CVE-2021-23336).
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_QUERY_PARAMS = 10_000
"""Most pairs that `parse_query` takes (Go: urlmaxqueryparams)."""


class URLError(ValueError):
    """A URL, or a part of one, that cannot be parsed (Go: url.Error, url.EscapeError).

    reason: what is wrong, in Go's words. url: the whole text that was being parsed, None
    when only a part was given.
    """

    def __init__(self, reason: str, url: str | None = None) -> None:
        super().__init__(reason, url)
        self.reason = reason
        self.url = url

    def __str__(self) -> str:
        return self.reason if self.url is None else f"parse {quoted(self.url)}: {self.reason}"


class QueryError(URLError):
    """A query string with at least one pair that cannot be taken.

    values: the pairs that could be taken, as Go's ParseQuery returns them beside its error.
    """

    def __init__(self, reason: str, values: Values) -> None:
        super().__init__(reason)
        self.values = values


class Part(IntEnum):
    """Which part of a URL a text belongs to; each has its own unescaped bytes."""

    PATH = 0
    PATH_SEGMENT = 1
    HOST = 2
    ZONE = 3
    USER_PASSWORD = 4
    QUERY_COMPONENT = 5
    FRAGMENT = 6


# RFC 3986 section 2.3: unreserved characters stand for themselves everywhere.
_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
# What may stand unescaped besides. In a host, `<`, `>` and `"` are left alone because a host
# cannot use percent-encoding for ASCII, so escaping them would give a host that no one parses.
_HOST_EXTRA = b"!$&'()*+,;=:[]<>\""
_EXTRA: dict[Part, bytes] = {
    Part.PATH: b"$&+,/:;=@",
    Part.PATH_SEGMENT: b"$&+:=@",
    Part.HOST: _HOST_EXTRA,
    Part.ZONE: _HOST_EXTRA,
    Part.USER_PASSWORD: b"$&+,;=",
    Part.QUERY_COMPONENT: b"",
    Part.FRAGMENT: b"$&+,/:;=?@!()*",
}


def _table(part: Part) -> tuple[str, ...]:
    bare = frozenset(_UNRESERVED + _EXTRA[part])
    table = [chr(b) if b in bare else f"%{b:02X}" for b in range(256)]
    if part is Part.QUERY_COMPONENT:
        table[0x20] = "+"
    return tuple(table)


_TABLES = tuple(_table(part) for part in Part)
# A str that needs no escaping is recognised in one C call; that is the usual case.
_BARE = tuple(
    re.compile("[" + re.escape((_UNRESERVED + _EXTRA[part]).decode()) + "]*").fullmatch for part in Part
)
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# In a host: every escape, whole or broken, and every ASCII byte that may not stand there.
_HOST_SUSPECT = re.compile(
    rb"%(?:[0-9A-Fa-f]{2})?|[^%\x80-\xff" + re.escape(_UNRESERVED + _HOST_EXTRA) + rb"]"
)


def must_escape(byte: int, part: Part) -> bool:
    """Whether `byte` (0 to 255) may not stand as it is in `part`."""
    return byte > 0x7F or _TABLES[part][byte] != chr(byte)


def is_bare(text: str, part: Part) -> bool:
    """Whether escaping `text` for `part` would change nothing."""
    return _BARE[part](text) is not None


def escape(text: str, part: Part) -> str:
    """Return `text` with every byte that may not stand in `part` as `%XX`."""
    if _BARE[part](text) is not None:
        return text
    return "".join(map(_TABLES[part].__getitem__, _bytes(text)))


def unescape(text: str, part: Part) -> str:
    """Return `text` with its `%XX` replaced by their bytes.

    Raises URLError for a `%` that is not followed by two hexadecimal digits, and in a host
    or zone for what those may not contain, escaped or not.
    """
    if part is Part.HOST or part is Part.ZONE:
        _check_host(_bytes(text), part)
    if "%" not in text:
        return text.replace("+", " ") if part is Part.QUERY_COMPONENT else text
    raw = _bytes(text)
    fault = _BAD_ESCAPE.search(raw)
    if fault is not None:
        raise URLError(f"invalid URL escape {quoted(_text(raw[fault.start() : fault.start() + 3]))}")
    if part is Part.QUERY_COMPONENT:
        raw = raw.replace(b"+", b" ")
    return _text(_ESCAPE.sub(_unhex, raw))


def _check_host(raw: bytes, part: Part) -> None:
    for match in _HOST_SUSPECT.finditer(raw):
        found = match[0]
        if found[:1] != b"%":
            raise URLError(f"invalid character {quoted(_text(found))} in host name")
        if len(found) == 1 or not _host_may_escape(int(found[1:], 16), part):
            bad = raw[match.start() : match.start() + 3]
            raise URLError(f"invalid URL escape {quoted(_text(bad))}")


def _host_may_escape(byte: int, part: Part) -> bool:
    # RFC 3986 section 3.2.2 lets a host escape non-ASCII bytes only; RFC 6874 adds %25 in
    # front of a zone. A zone may escape redundantly, but not bring in what could not be
    # written plainly, save the space that Windows puts into zone names.
    if byte == 0x25:
        return True
    if part is Part.HOST:
        return byte >= 0x80
    return byte == 0x20 or not must_escape(byte, Part.HOST)


def _unhex(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode())


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise URLError(f"lone surrogate {text[exc.start]!a} in URL") from None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def path_escape(text: str) -> str:
    """Escape `text` so that it can stand as one segment of a path (Go: url.PathEscape)."""
    return escape(text, Part.PATH_SEGMENT)


def path_unescape(text: str) -> str:
    """Undo `path_escape`; `+` stays `+` (Go: url.PathUnescape). Raises URLError."""
    return unescape(text, Part.PATH_SEGMENT)


def query_escape(text: str) -> str:
    """Escape `text` so that it can stand as a name or value of a query (Go: url.QueryEscape)."""
    return escape(text, Part.QUERY_COMPONENT)


def query_unescape(text: str) -> str:
    """Undo `query_escape`; `+` becomes a space (Go: url.QueryUnescape). Raises URLError."""
    return unescape(text, Part.QUERY_COMPONENT)


class Values(dict[str, list[str]]):
    """The pairs of a query or a form: name to list of values (Go: url.Values).

    It is a dict, names in the order of their first appearance; the methods spell out what is
    asked of it most.

        v = parse_query("q=go&tag=a&tag=b")
        v.first("q"), v["tag"]          # 'go', ['a', 'b']
    """

    __slots__ = ()

    def first(self, name: str, default: str = "") -> str:
        """Return the first value of `name`, or `default` (Go: Values.Get)."""
        found = self.get(name)
        return found[0] if found else default

    def add(self, name: str, value: str) -> None:
        """Append `value` to the values of `name`."""
        self.setdefault(name, []).append(value)

    def encode(self) -> str:
        """Return the query string of these pairs, sorted by name (Go: Values.Encode)."""
        return encode_query(self)


def parse_query(text: str, *, max_params: int = MAX_QUERY_PARAMS) -> Values:
    """Parse a query string such as `a=1&b=2` (Go: url.ParseQuery).

    A pair without `=` has the value "". Empty pairs are skipped.

    max_params: most pairs to take; 0 means any number.

    Raises QueryError when a pair contains `;` or a bad escape (its `values` hold all the other
    pairs), and when there are more pairs than `max_params` (its `values` are empty).
    """
    values = Values()
    if not text:
        return values
    if max_params and text.count("&") >= max_params:
        raise QueryError("number of URL query parameters exceeded limit", values)
    reason = ""
    plain = "%" not in text and "+" not in text
    for pair in text.split("&"):
        if not pair:
            continue
        if ";" in pair:
            reason = "invalid semicolon separator in query"
            continue
        name, _, value = pair.partition("=")
        if not plain:
            try:
                if "%" in name or "+" in name:
                    name = query_unescape(name)
                if "%" in value or "+" in value:
                    value = query_unescape(value)
            except URLError as exc:
                reason = reason or exc.reason
                continue
        if name in values:
            values[name].append(value)
        else:
            values[name] = [value]
    if reason:
        raise QueryError(reason, values)
    return values


def encode_query(values: Mapping[str, str | Iterable[str]]) -> str:
    """Return the query string of `values`, sorted by name (Go: Values.Encode).

    A value is one str or several.

        encode_query({"q": "a b", "tag": ["x", "y"]})   # 'q=a+b&tag=x&tag=y'
    """
    pairs: list[str] = []
    for name in sorted(values):
        prefix = query_escape(name) + "="
        found = values[name]
        several = (found,) if isinstance(found, str) else found
        pairs.extend(prefix + query_escape(value) for value in several)
    return "&".join(pairs)


_SHORT = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}


def quoted(text: str) -> str:
    """Return `text` between double quotes with control characters and stray bytes escaped.

    The form of Go's %q, so that messages about what a peer sent fit on one line and show
    each byte.
    """
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    out = ['"']
    for char in text:
        code = ord(char)
        if char in _SHORT:
            out.append(_SHORT[char])
        elif char.isprintable():
            out.append(char)
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        elif 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is no UTF-8
            out.append(f"\\x{code - 0xDC00:02x}")
        elif code < 0x10000:
            out.append(f"\\u{code:04x}")
        else:
            out.append(f"\\U{code:08x}")
    out.append('"')
    return "".join(out)
