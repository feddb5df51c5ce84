"""The byte classes of HTTP/1, each once (RFC 9110 section 5.6, RFC 9112).

Law: everything here is ASCII. Names and numbers from the network are matched by explicit
character classes, never by str methods: `str.strip`, `str.lower`, `str.isdigit` and `int`
know far more characters (U+212A lowers to `k`, `int("1_0")` is 10) than HTTP does.
White space is SP and HTAB, nothing else.
"""

from __future__ import annotations

import re

OWS = " \t"
"""Optional white space (RFC 9110 section 5.6.3)."""

TOKEN_CLASS = r"!#$%&'*+\-.^_`|~0-9A-Za-z"
"""The inside of a regular expression's character class for tchar (RFC 9110 section 5.6.2)."""

HOST_CLASS = r"!$%&'()*+,\-.:;=\[\]_~0-9A-Za-z"
"""Bytes a Host value may hold: RFC 3986 section 3.2.2 and 2.1 to 2.3, as Go's server checks them."""

is_token = re.compile(rf"[{TOKEN_CLASS}]+").fullmatch
is_host_value = re.compile(rf"[{HOST_CLASS}]*").fullmatch
is_digits = re.compile(r"[0-9]+").fullmatch

has_control = re.compile("[\x00-\x08\x0a-\x1f\x7f]").search
"""Finds a byte that no header value may hold: controls but HTAB (RFC 9110 section 5.5)."""

MAX_LENGTH = 2**63 - 1
"""The largest message length: what every hop can hold in a signed 64-bit integer."""


def parse_content_length(value: str) -> int:
    """The value of one Content-Length line, 1*DIGIT; ValueError for anything else.

    No sign, no list, no underscore, nothing above 2^63-1 (RFC 9110 section 8.6).
    """
    value = value.strip(OWS)
    if len(value) > 32 or not is_digits(value):
        raise ValueError(f"bad Content-Length {value[:32]!r}")
    length = int(value)
    if length > MAX_LENGTH:
        raise ValueError(f"bad Content-Length {value!r}")
    return length


def tokens(values: list[str]) -> list[str]:
    """The elements of comma-separated header lines, lower-cased, blanks dropped."""
    return [
        element for value in values for part in value.split(",") if (element := ascii_lower(part.strip(OWS)))
    ]


_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def ascii_lower(text: str) -> str:
    """Lower-case A to Z and leave every other character alone."""
    return text.lower() if text.isascii() else text.translate(_LOWER)
