r"""The language of access log formats: gunicorn's atoms, and a few of ours.

    %(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(D)s %({X-Forwarded-For}i)s

An atom is written %(name)s, a percent sign %%; everything else stands for itself. This is the
grammar and the list of names, which the settings are checked with; `formats` gives them meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMED: Final = ("combined", "json", "logfmt")

COMBINED: Final = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(B)s "%(f)s" "%(a)s" %(L)s'
"""What the name `combined` stands for: Apache's and nginx' format, with the time taken at its end."""

ATOMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "h": "address of the client",
        "l": "a dash",
        "u": "user name of Basic authentication, unchecked",
        "t": "start of the request, [23/Nov/2026:09:30:01 +0100]",
        "r": "request line",
        "m": "method",
        "U": "path, as it was sent",
        "q": "query, as it was sent",
        "H": "protocol",
        "s": "status, 0 if there was none",
        "B": "bytes of the body",
        "b": "bytes of the body, a dash for none",
        "f": "referer",
        "a": "user agent",
        "T": "time taken, in whole seconds",
        "D": "time taken, in microseconds",
        "M": "time taken, in milliseconds",
        "L": "time taken, in seconds with six decimals",
        "p": "process id, <4711>",
        "pattern": "ServeMux pattern that matched",
        "worker": "number of the worker",
        "request_id": "X-Request-Id of the request, or one made for it",
    }
)
"""Every atom but those with a name of their own, {Name}i, {Name}o, {NAME}e; and what it is."""

_ATOM: Final = re.compile(r"\((?:([A-Za-z_]+)|\{([^{}()]+)\}([ioe]))\)s")


@dataclass(frozen=True, slots=True)
class Atom:
    """One %(...)s. name: a key of `ATOMS`, or "i", "o", "e" with the `key` of the header or variable."""

    name: str
    key: str = ""


def parse(text: str) -> list[str | Atom]:
    """The literal texts and atoms of a format, in order.

    Raises ValueError with a text for the user.
    """
    for char in text:
        if not char.isprintable() and char != "\t":
            raise ValueError(f"a format is one line of text, and {char!r} is not for that")
    first, *rest = text.replace("%%", "\0").split("%")
    parts: list[str | Atom] = [first]
    for piece in rest:
        match = _ATOM.match(piece)
        if match is None:
            shown = f"%{piece}".replace("\0", "%%")
            raise ValueError(f"{shown[:30]!r} is no atom; one is written %(h)s, a percent sign %%")
        name, key, kind = match.groups()
        if name is not None and name not in ATOMS:
            there_are = " ".join([*ATOMS, "{Header}i", "{Header}o", "{VARIABLE}e"])
            raise ValueError(f"there is no atom %({name})s; there are: {there_are}")
        parts += [Atom(name) if name is not None else Atom(kind, key), piece[match.end() :]]
    return [part.replace("\0", "%") if isinstance(part, str) else part for part in parts if part != ""]


def check(text: str) -> str:
    """`text`, if it is the name of a format or a format; a name in lower case.

    Raises ValueError with a text for the user.
    """
    if text.lower() in NAMED:
        return text.lower()
    if "%" not in text:
        raise ValueError(f"there is no format {text!r}, and it has no atom such as %(h)s either")
    parse(text)
    return text
