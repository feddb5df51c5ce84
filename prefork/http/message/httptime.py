"""Dates on the wire (RFC 9110 section 5.6.7): write one form, read three.

    Sun, 06 Nov 1994 08:49:37 GMT      IMF-fixdate, the only form that is written
    Sunday, 06-Nov-94 08:49:37 GMT     RFC 850, read
    Sun Nov  6 08:49:37 1994           ANSI C asctime, read

Written by hand because `strftime` follows the locale and `email.utils` is three times
slower. Reading accepts what Go's ParseTime accepts: names in any case, runs of spaces, a
one-digit hour, a fraction of a second; a weekday that does not fit the date is not an
error, and neither is another zone's abbreviation, which counts as GMT. One difference:
the year 0000 is refused, because `datetime` has none.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBER = {name.lower(): number for number, name in enumerate(_MONTHS, 1)}


def format_time(when: float | datetime) -> str:
    """`Sun, 06 Nov 1994 08:49:37 GMT` (Go: TimeFormat).

    when: unix seconds (a fraction is cut off), or a datetime; a naive one is taken as UTC.
    Raises ValueError or OverflowError for a year that four digits cannot hold.
    """
    if isinstance(when, datetime):
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        year, month, day, hour, minute, second, weekday, _, _ = when.utctimetuple()
    else:
        year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(when)
    if not 0 <= year <= 9999:
        raise ValueError(f"year {year} does not fit an HTTP date")
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"


# Go's rules, each piece once. Possessive repeats: a hostile value costs one pass.
_SP = " ++"
_DAY_NAME = "(?:mon|tue|wed|thu|fri|sat|sun)"
_DAY_NAME_LONG = "(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday)"
_MONTH = "(?P<month>" + "|".join(name.lower() for name in _MONTHS) + ")"
_CLOCK = r"(?P<hour>[0-9]{1,2}+):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})(?:[.,][0-9]++)?+"
# An abbreviation as Go's time.Parse takes it; case matters here.
_ZONE = (
    "(?-i:GMT(?:[+-](?:2[0-3]|1[0-9]|0?[0-9]))?+|[+-](?:2[0-3]|[01][0-9])"
    "|(?!GMT)(?:ChST|MeST|MESZ|WITA|[A-Z]{3,4}T|[A-Z]{3}))"
)
_FLAGS = re.ASCII | re.IGNORECASE

_imf_fixdate = re.compile(
    rf"{_DAY_NAME},{_SP}(?P<day>[0-9]{{2}}){_SP}{_MONTH}{_SP}(?P<year>[0-9]{{4}}){_SP}{_CLOCK}{_SP}(?-i:GMT)",
    _FLAGS,
).fullmatch
_rfc850 = re.compile(
    rf"{_DAY_NAME_LONG},{_SP}(?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}){_SP}{_CLOCK}{_SP}{_ZONE}",
    _FLAGS,
).fullmatch
_asctime = re.compile(
    rf"{_DAY_NAME}{_SP}{_MONTH}{_SP}(?P<day>[0-9]{{1,2}}+){_SP}{_CLOCK}{_SP}(?P<year>[0-9]{{4}})",
    _FLAGS,
).fullmatch
# The two forms of a cookie's Expires: RFC 1123 with any zone, and the same with dashes.
_cookie_date = re.compile(
    rf"{_DAY_NAME},{_SP}(?P<day>[0-9]{{2}})(?:(?P<dash>-)|{_SP}){_MONTH}(?(dash)-|{_SP})"
    rf"(?P<year>[0-9]{{4}}){_SP}{_CLOCK}{_SP}{_ZONE}",
    _FLAGS,
).fullmatch


def _datetime(match: re.Match[str]) -> datetime:
    year = int(match["year"])
    if len(match["year"]) == 2:  # RFC 850; Go's pivot: 69 to 99 are the last century
        year += 1900 if year >= 69 else 2000
    return datetime(
        year,
        _MONTH_NUMBER[match["month"].lower()],
        int(match["day"]),
        int(match["hour"]),
        int(match["minute"]),
        int(match["second"]),
        tzinfo=UTC,
    )


def parse_time(text: str) -> datetime:
    """The moment an HTTP date names, in UTC, whole seconds (Go: ParseTime).

    Raises ValueError for anything but the three forms, and for a date that does not exist.
    """
    match = _imf_fixdate(text) or _rfc850(text) or _asctime(text)
    if match is None:
        raise ValueError(f"not an HTTP date: {text[:64]!r}")
    return _datetime(match)


def parse_cookie_time(text: str) -> datetime:
    """The moment a cookie's `Expires` names: IMF-fixdate, or the same with dashes in the date.

    Raises ValueError as `parse_time` does; RFC 850 and asctime are refused, as in Go.
    """
    match = _cookie_date(text)
    if match is None:
        raise ValueError(f"not a cookie date: {text[:64]!r}")
    return _datetime(match)
