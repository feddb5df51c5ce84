"""Patterns of ServeMux: what they are, how two of them relate.

A pattern is written `[METHOD ][HOST]/[PATH]` and kept as a list of segments, because nearly
every question about patterns (does it match, is it more specific, do two of them overlap) is
a walk over corresponding segments. What makes the surface awkward vanishes in that form: a
trailing slash is a wildcard that takes the rest, `{$}` is a segment like any other.

    /a/b            literal "a", literal "b"
    /a/{id}         literal "a", wildcard "id"
    /a/             literal "a", multi ""        (anonymous: records no value)
    /a/{rest...}    literal "a", multi "rest"
    /a/{$}          literal "a", literal "/"

The last line is why `/` can stand for "the path ends in a slash": no segment of a path holds
a slash, except where `%2F` was written, and a lone `%2F` is not a name worth serving.

Law: of two patterns that match the same request, one is more specific than the other, or they
are never both in a mux. So which one answers does not depend on the order of registration.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from prefork.http.errors import PatternError
from prefork.http.message.grammar import is_token
from prefork.http.message.query import URLError, path_unescape, quoted
from prefork.http.message.url import clean_path

SLASH = "/"
"""The literal that stands for a path's trailing slash."""


class Segment(NamedTuple):
    """One segment of a pattern.

    text: the decoded literal, or the wildcard's name ("" for an anonymous multi).
    wild: matches any one segment. multi: matches the whole rest (then wild is set too).
    """

    text: str
    wild: bool = False
    multi: bool = False


class Pattern(NamedTuple):
    """A parsed pattern. method "" means every method, host "" every host."""

    text: str
    method: str
    host: str
    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        return self.text

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the wildcards that record a value, from left to right."""
        return tuple(s.text for s in self.segments if s.wild and s.text)


class Relation(IntEnum):
    """How the requests of one pattern relate to those of another.

    Unless they are disjoint, two bits say it: 1 when the first pattern matches something that
    the second does not, 2 the other way round. That makes combining two independent aspects
    (method and path, one segment and the next) a matter of OR.
    """

    EQUIVALENT = 0
    MORE_GENERAL = 1
    MORE_SPECIFIC = 2
    OVERLAPS = 3
    DISJOINT = 4

    def inverse(self) -> Relation:
        """How the second pattern relates to the first."""
        return _INVERSE.get(self, self)

    def combine(self, other: Relation) -> Relation:
        """The relation of wholes whose parts relate as `self` and `other`."""
        if self is Relation.DISJOINT or other is Relation.DISJOINT:
            return Relation.DISJOINT
        return Relation(self | other)


_INVERSE = {
    Relation.MORE_GENERAL: Relation.MORE_SPECIFIC,
    Relation.MORE_SPECIFIC: Relation.MORE_GENERAL,
}


def parse_pattern(text: str) -> Pattern:
    """Parse `[METHOD ][HOST]/[PATH]`.

    Blanks (spaces, tabs) separate method and host. The path's literal segments are percent-decoded.
    A wildcard is a whole segment; its name is an identifier, unique in the pattern; `{name...}`
    and `{$}` stand at the end.

    Raises PatternError, whose text tells the offset of the fault.
    """
    if not isinstance(text, str):
        raise TypeError(f"a pattern is a str, not {type(text).__name__}")
    if not text:
        raise PatternError("http: invalid pattern")
    rest = text
    method = ""
    for at, char in enumerate(text):
        if char in " \t":
            method, rest = text[:at], text[at + 1 :].lstrip(" \t")
            break
    if method and not is_token(method):
        raise _fault(text, 0, f"invalid method {quoted(method)}")
    host, slash, path = rest.partition("/")
    offset = len(text) - len(rest)
    if not slash:
        raise _fault(text, offset, "host/path missing /")
    if "{" in host:
        raise _fault(text, offset + host.index("{"), "host contains '{' (missing initial '/'?)")
    offset += len(host)
    path = slash + path
    # Without a method the pattern can still serve CONNECT, whose path is not cleaned.
    if method and method != "CONNECT" and path != clean_path(path):
        raise _fault(text, offset, "non-CONNECT pattern with unclean path can never match")
    return Pattern(text, method, host, _parse_path(text, path, offset + 1))


def _parse_path(text: str, path: str, offset: int) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    seen: set[str] = set()
    parts = path[1:].split("/")
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if part == "" and last:
            segments.append(Segment("", wild=True, multi=True))
        elif "{" not in part:
            segments.append(Segment(decode_segment(part)))
        else:
            segment = _parse_wildcard(text, part, offset, last=last)
            if segment.wild:
                if segment.text in seen:
                    raise _fault(text, offset, f"duplicate wildcard name {quoted(segment.text)}")
                seen.add(segment.text)
            segments.append(segment)
        offset += len(part) + 1
    return tuple(segments)


def _parse_wildcard(text: str, part: str, offset: int, *, last: bool) -> Segment:
    if part[0] != "{":
        raise _fault(text, offset, "bad wildcard segment (must start with '{')")
    if part[-1] != "}":
        raise _fault(text, offset, "bad wildcard segment (must end with '}')")
    name = part[1:-1]
    if name == "$":
        if not last:
            raise _fault(text, offset, "{$} not at end")
        return Segment(SLASH)
    multi = name.endswith("...")
    name = name.removesuffix("...")
    if multi and not last:
        raise _fault(text, offset, "{...} wildcard not at end")
    if not name:
        raise _fault(text, offset, "empty wildcard")
    if not _is_identifier(name):
        raise _fault(text, offset, f"bad wildcard name {quoted(name)}")
    return Segment(name, wild=True, multi=multi)


def _is_identifier(name: str) -> bool:
    # Letters, decimal digits and underscores, as Go has them: str.isidentifier knows more.
    return not name[0].isdecimal() and all(c == "_" or c.isalpha() or c.isdecimal() for c in name)


def _fault(text: str, offset: int, reason: str) -> PatternError:
    return PatternError(f"parsing {quoted(text)}: at offset {offset}: {reason}")


def decode_segment(text: str) -> str:
    """Return `text` percent-decoded, or as it is when that cannot be done."""
    if "%" not in text:
        return text
    try:
        return path_unescape(text)
    except URLError:
        return text


def compare_methods(p1: Pattern, p2: Pattern) -> Relation:
    """The relation of two patterns by method alone: "" matches all, GET matches HEAD too."""
    m1, m2 = p1.method, p2.method
    if m1 == m2:
        return Relation.EQUIVALENT
    if m1 == "" or (m1 == "GET" and m2 == "HEAD"):
        return Relation.MORE_GENERAL
    if m2 == "" or (m2 == "GET" and m1 == "HEAD"):
        return Relation.MORE_SPECIFIC
    return Relation.DISJOINT


def compare_paths(p1: Pattern, p2: Pattern) -> Relation:
    """The relation of two patterns by path alone."""
    first, second = p1.segments, p2.segments
    relation = 0
    for s1, s2 in zip(first, second, strict=False):
        if s1.multi or s2.multi:
            relation |= (not s2.multi) | (not s1.multi) << 1
        elif s1.wild or s2.wild:
            # A wildcard takes a segment that has a name: neither the trailing slash nor
            # the nothing between two slashes.
            if not (s1.wild and s2.wild) and (s2.text if s1.wild else s1.text) in ("", SLASH):
                return Relation.DISJOINT
            relation |= (not s2.wild) | (not s1.wild) << 1
        elif s1.text != s2.text:
            return Relation.DISJOINT
    # Segments without a counterpart can only be taken by a multi at the end of the other.
    if len(first) < len(second):
        return Relation(relation | 1) if first[-1].multi else Relation.DISJOINT
    if len(second) < len(first):
        return Relation(relation | 2) if second[-1].multi else Relation.DISJOINT
    return Relation(relation)


def compare(p1: Pattern, p2: Pattern) -> Relation:
    """The relation of two patterns by method and path, not looking at hosts."""
    methods = compare_methods(p1, p2)
    if methods is Relation.DISJOINT:
        return methods
    return methods.combine(compare_paths(p1, p2))


def conflicts(p1: Pattern, p2: Pattern) -> bool:
    """Whether some request matches both and neither takes precedence.

    Of two patterns with different hosts never: either they match different hosts, or one has
    none and yields to the other.
    """
    return p1.host == p2.host and compare(p1, p2) in (Relation.EQUIVALENT, Relation.OVERLAPS)


def describe_conflict(p1: Pattern, p2: Pattern) -> str:
    """Explain to the programmer why `p1` and `p2` conflict (they must)."""
    methods, paths = compare_methods(p1, p2), compare_paths(p1, p2)
    if methods.combine(paths) is Relation.EQUIVALENT:
        return f"{p1} matches the same requests as {p2}"
    if paths is Relation.OVERLAPS:
        return (
            f"{p1} and {p2} both match some paths, like {quoted(common_path(p1, p2))}.\n"
            "But neither is more specific than the other.\n"
            f"{p1} matches {quoted(difference_path(p1, p2))}, but {p2} doesn't.\n"
            f"{p2} matches {quoted(difference_path(p2, p1))}, but {p1} doesn't."
        )
    # What is left: each is the more general one in one of the two aspects.
    if paths is Relation.MORE_SPECIFIC:
        return f"{p1} matches more methods than {p2}, but has a more specific path pattern"
    return f"{p1} matches fewer methods than {p2}, but has a more general path pattern"


def common_path(p1: Pattern, p2: Pattern) -> str:
    """Return a path that both match; there must be one."""
    shared = min(len(p1.segments), len(p2.segments))
    picked = [
        s2 if s1.multi or (s1.wild and not s2.multi) else s1
        for s1, s2 in zip(p1.segments, p2.segments, strict=False)
    ]
    return _example([*picked, *p1.segments[shared:], *p2.segments[shared:]])


def difference_path(p1: Pattern, p2: Pattern) -> str:
    """Return a path that `p1` matches and `p2` does not; there must be one, and a common one."""
    picked: list[Segment] = []
    for s1, s2 in zip(p1.segments, p2.segments, strict=False):
        if s1.multi:
            # A trailing slash tells them apart, unless that is just what p2 asks for.
            picked.append(Segment(s1.text or "x") if s2 == Segment(SLASH) else Segment(SLASH))
            return _example(picked)
        if s1.wild and not s2.wild and s1.text == s2.text:
            picked.append(Segment(s1.text + "x"))
        else:
            picked.append(s1)
    return _example([*picked, *p1.segments[len(picked) :]])


def _example(segments: list[Segment]) -> str:
    return "".join("/" if s.multi or s.text == SLASH else f"/{s.text}" for s in segments)
