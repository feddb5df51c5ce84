r"""Access log formats, compiled: each becomes one function from a record to its line.

    line = compile_format('%(h)s "%(r)s" %(s)s %(L)s')
    line(record)                   # '127.0.0.1 "GET /ping HTTP/1.1" 200 0.000087\n'

The function is one f-string, made as source text; what a format does not mention costs nothing.
Text of the client goes through an `Escaper`. In JSON and logfmt values are what these formats
make of them. In a format of atoms every byte but printable ASCII, the quote and the backslash
are written as \xHH, and so is what would end the field: the space, unless the field is quoted,
and the character that follows it in the format. A line thus always parses in one way. An empty
value is a dash, but for an empty query.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Protocol

from prefork.log import origin
from prefork.log.atoms import COMBINED, Atom, check, parse
from prefork.log.escape import Escaper, Hex, json_string, logfmt_value

if TYPE_CHECKING:
    from collections.abc import Callable

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class AccessRecord(Protocol):
    """What the access log needs to know of an answered request: `http.AccessRecord`."""

    @property
    def remote_addr(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def proto(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...
    @property
    def start(self) -> float: ...
    @property
    def duration(self) -> float: ...
    @property
    def pattern(self) -> str: ...
    @property
    def referer(self) -> str: ...
    @property
    def user_agent(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def request_id(self) -> str:
        """Of characters that are harmless in every format: letters, digits and some of ._~:/+=@-"""

    def request_header(self, name: str) -> str: ...
    def response_header(self, name: str) -> str: ...


def compile_format(text: str = "combined", *, prefix: str = "") -> Callable[[AccessRecord], str]:
    """The function that makes the line of a record, with its end.

    text: combined, json, logfmt, or a format of atoms. prefix: what every line begins with.
    Process id, worker and variables of the environment are those of now.

    Raises ValueError with a text for the user.
    """
    text = check(text)
    code = _Code()
    code.literal(prefix)
    if text in ("json", "logfmt"):
        _structured(code, json=text == "json")
    else:
        _atoms(code, COMBINED if text == "combined" else text)
    code.literal("\n")
    return code.function()


class _Code:
    """The source of a function that returns an f-string, and the objects it uses."""

    def __init__(self) -> None:
        self._names: dict[str, Any] = {"_second": -1, "_stamp": ""}
        self._before: list[str] = []
        self._text = ""

    def literal(self, text: str) -> None:
        self._text += text.replace("{", "{{").replace("}", "}}")

    def bind(self, value: object) -> str:
        """A name for `value`."""
        name = f"_{len(self._names)}"
        self._names[name] = value
        return name

    def put(self, expression: str, spec: str = "") -> None:
        """The value of `expression`, in which `r` is the record, comes here."""
        # By a name, because an expression inside of an f-string could have no quotes.
        name = f"v{len(self._before)}"
        self._before.append(f"    {name} = {expression}")
        self._text += f"{{{name}{spec}}}"

    def stamp(self, clock: Callable[[int], str]) -> None:
        """`clock(second)` of the record's start comes here; it is called once a second."""
        name = self.bind(clock)
        self._before += [
            "    second = int(r.start)",
            f"    if second != _second: _second, _stamp = second, {name}(second)",
        ]
        self._text += "{_stamp}"

    def function(self) -> Callable[[AccessRecord], str]:
        lines = ["def line(r):", "    global _second, _stamp", *self._before, f"    return f{self._text!r}"]
        exec("\n".join(lines), self._names)  # of texts in this file, and of what repr() has quoted
        function: Callable[[AccessRecord], str] = self._names["line"]
        return function


# --- JSON and logfmt ------------------------------------------------------------------------

_TEXTS_BEFORE = ("method", "target", "proto", "host", "pattern")
_TEXTS_AFTER = ("referer", "user_agent")


def _structured(code: _Code, *, json: bool) -> None:
    """The pairs of a record: the same keys in both formats."""
    escape = json_string if json else logfmt_value
    worker = origin.worker()
    before = "{" if json else ""

    def key(name: str) -> None:
        nonlocal before
        code.literal(f'{before}"{name}":' if json else f"{before}{name}=")
        before = "," if json else " "

    def text(name: str, escape: Callable[[str], str], expression: str) -> None:
        key(name)
        code.put(f"{code.bind(Escaper(escape))}[{expression}]")

    key("time")
    code.literal('"' if json else "")
    code.stamp(utc_stamp)
    code.literal(".")
    code.put("int(r.start % 1.0 * 1e6)", ":06")
    code.literal('Z"' if json else "Z")
    for name, constant in (("level", "info"), ("logger", "prefork.access")):
        key(name)
        code.literal(escape(constant))
    if worker is not None or json:
        key("worker")
        code.literal("null" if worker is None else str(worker))
    key("pid")
    code.literal(str(os.getpid()))
    key("request_id")
    code.literal('"')
    code.put("r.request_id")
    code.literal('"')
    text("remote", lambda address: escape(host_of(address)), "r.remote_addr")
    for name in _TEXTS_BEFORE:
        text(name, escape, f"r.{name}")
    for name, expression, spec in (
        ("status", "r.status", ""),
        ("bytes", "r.bytes_written", ""),
        ("duration", "r.duration", ":.6f"),
    ):
        key(name)
        code.put(expression, spec)
    for name in _TEXTS_AFTER:
        text(name, escape, f"r.{name}")
    code.literal("}" if json else "")


# --- atoms ----------------------------------------------------------------------------------

_TEXTS = {
    "m": "r.method",
    "H": "r.proto",
    "f": "r.referer",
    "a": "r.user_agent",
    "u": "r.user",
    "pattern": "r.pattern",
}
_NUMBERS = {
    "s": ("r.status", ""),
    "B": ("r.bytes_written", ""),
    "b": ('r.bytes_written or "-"', ""),
    "T": ("int(r.duration)", ""),
    "D": ("int(r.duration * 1e6)", ""),
    "M": ("int(r.duration * 1e3)", ""),
    "L": ("r.duration", ":.6f"),
    "request_id": ("r.request_id", ""),
}
_VARIABLES = {
    "REQUEST_METHOD": Atom("m"),
    "PATH_INFO": Atom("U"),
    "QUERY_STRING": Atom("q"),
    "SERVER_PROTOCOL": Atom("H"),
    "REMOTE_ADDR": Atom("h"),
    "REMOTE_USER": Atom("u"),
    "CONTENT_TYPE": Atom("i", "Content-Type"),
    "CONTENT_LENGTH": Atom("i", "Content-Length"),
}
"""CGI's names, which a WSGI server's environ has, and the atoms that are the same."""


def _atoms(code: _Code, text: str) -> None:
    parts = parse(text)
    quoted = False
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        if isinstance(part, str):
            code.literal(part)
            quoted ^= part.count('"') % 2 == 1
        else:
            ends = "" if quoted else " "
            if isinstance(following, str) and not following[:1].isalnum():
                ends += following[:1]
            _atom(code, part, ends)


def _atom(code: _Code, atom: Atom, ends: str) -> None:
    """Put one atom. ends: the characters that would end its field."""

    def text(expression: str, of: Callable[[str], str] | None = None, *, ends: str = ends) -> str:
        escape = Hex(ends, empty="" if atom.name == "q" else "-")
        return f"{code.bind(Escaper(escape if of is None else lambda text: escape(of(text))))}[{expression}]"

    name, key = atom.name, atom.key
    if name == "e":
        if key in _VARIABLES:
            _atom(code, _VARIABLES[key], ends)
        elif key.startswith("HTTP_"):
            _atom(code, Atom("i", key[5:].replace("_", "-")), ends)
        else:
            code.literal(Hex(ends, empty="-")(os.environ.get(key, "")))
    elif name == "i":
        code.put(text(f"r.request_header({key!r})"))
    elif name == "o":
        code.put(text(f"r.response_header({key!r})"))
    elif name in _TEXTS:
        code.put(text(_TEXTS[name]))
    elif name in _NUMBERS:
        code.put(*_NUMBERS[name])
    elif name == "r":
        pieces = [f"{{{text(f'r.{piece}', ends=ends + ' ')}}}" for piece in ("method", "target", "proto")]
        code.put(f'f"{" ".join(pieces)}" if r.method else "-"')
    elif name == "h":
        code.put(text("r.remote_addr", host_of))
    elif name in "Uq":
        code.put(text("r.target", path_of if name == "U" else query_of))
    elif name == "t":
        code.literal("[")
        code.stamp(local_stamp)
        code.literal("]")
    elif name == "p":
        code.literal(f"<{os.getpid()}>")
    elif name == "worker":
        code.literal(str(origin.worker() or "-"))
    else:
        assert name == "l"
        code.literal("-")


# --- values ---------------------------------------------------------------------------------


def host_of(address: str) -> str:
    """`10.0.0.7` of "10.0.0.7:53122", `2001:db8::1` of "[2001:db8::1]:80", a path as it is."""
    if ":" in address:
        return address[: address.rindex(":")].strip("[]")
    return address


def path_of(target: str) -> str:
    """The path of a request target, as it was sent: `/a%20b` of "/a%20b?c" and of "http://host/a%20b"."""
    path = target.partition("?")[0]
    if "://" in path and not path.startswith("/"):
        rest = path.partition("://")[2]
        return "/" + rest.partition("/")[2]
    return path


def query_of(target: str) -> str:
    """The query of a request target, as it was sent, without its question mark."""
    return target.partition("?")[2]


def utc_stamp(second: int) -> str:
    """`2026-11-23T08:30:01`: RFC 3339 in UTC, but for its fraction and its Z."""
    now = time.gmtime(second)
    return (
        f"{now.tm_year:04}-{now.tm_mon:02}-{now.tm_mday:02}T{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
    )


def local_stamp(second: int) -> str:
    """`23/Nov/2026:09:30:01 +0100`, in local time."""
    # Not strftime("%b"): the name of the month would follow the locale.
    local = time.localtime(second)
    sign, offset = ("-", -local.tm_gmtoff) if local.tm_gmtoff < 0 else ("+", local.tm_gmtoff)
    return (
        f"{local.tm_mday:02}/{_MONTHS[local.tm_mon - 1]}/{local.tm_year}:"
        f"{local.tm_hour:02}:{local.tm_min:02}:{local.tm_sec:02} "
        f"{sign}{offset // 3600:02}{offset % 3600 // 60:02}"
    )
