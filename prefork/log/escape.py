r"""How text that anybody may have chosen is written, so that it stays one value of one line.

    printable      for people: controls, line ends and surrogates as \n, \x1b, \u202e
    Hex            for the access log's text formats: every byte that is not harmless as \xHH
    json_string    a JSON string, quotes included, ASCII only
    logfmt_value   bare where that is unambiguous, else a JSON string

An `Escaper` remembers what it has done. A server sees the same methods, agents and patterns
again and again; to look up a text of 100 characters takes a tenth of the time that it takes to
look at each of them.
"""

from __future__ import annotations

import re
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_REMEMBERED = 1024
_LONGEST_REMEMBERED = 256
_SURROGATE = re.compile("[\ud800-\udfff]")
_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII but space, quote, equals sign, backslash


class Escaper(dict[str, str]):
    """`escaper[text]` is `escape(text)`, remembered. Bounded: the network must not make it grow."""

    __slots__ = ("_escape",)

    def __init__(self, escape: Callable[[str], str]) -> None:
        super().__init__()
        self._escape = escape

    def __missing__(self, text: str) -> str:
        result = self._escape(text)
        if len(text) <= _LONGEST_REMEMBERED:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[text] = result
        return result


def printable(text: str) -> str:
    """`text` with everything escaped that is not printable: controls, line ends, surrogates."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char) or (
        f"\\x{ord(char):02x}" if char <= "\xff" else f"\\u{ord(char):04x}"
    )


class Hex:
    r"""A function: every byte but printable ASCII, the quote and the backslash are written as \xHH.

    also: more characters to escape, those that would end the field where it stands. empty:
    what stands for an empty text.
    """

    __slots__ = ("_bytes", "_empty", "_unsafe")

    def __init__(self, also: str = "", empty: str = "") -> None:
        unsafe = set('"\\' + also)
        safe = "".join(char for char in map(chr, range(0x20, 0x7F)) if char not in unsafe)
        self._unsafe = re.compile(f"[^{re.escape(safe)}]")
        self._bytes = [chr(byte) if chr(byte) in safe else f"\\x{byte:02X}" for byte in range(256)]
        self._empty = empty

    def __call__(self, text: str) -> str:
        if self._unsafe.search(text) is None:
            return text or self._empty
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            data = text.encode("utf-8", "surrogatepass")
        return "".join([self._bytes[byte] for byte in data])


def json_string(text: str) -> str:
    """`text` as a JSON string, all of it printable ASCII.

    What is no Unicode (bytes that are no UTF-8) becomes U+FFFD: a lone surrogate is valid JSON,
    and yet many readers refuse it.
    """
    if text.isprintable():
        return encode_basestring_ascii(text)
    text = encode_basestring_ascii(_SURROGATE.sub("\ufffd", text))
    return text.replace("\x7f", "\\u007f")


def logfmt_value(text: str) -> str:
    """`text` as the value of a logfmt pair."""
    return text if _BARE.fullmatch(text) else json_string(text)
