"""Dates on the wire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.message.httptime import format_time, parse_cookie_time, parse_time

WHEN = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


def test_format() -> None:
    text = "Sun, 06 Nov 1994 08:49:37 GMT"
    assert format_time(784111777) == text
    assert format_time(784111777.999) == text
    assert format_time(WHEN) == text
    assert format_time(WHEN.replace(tzinfo=None)) == text  # naive: UTC
    assert format_time(WHEN.astimezone(timezone(timedelta(hours=5, minutes=30)))) == text
    assert format_time(0) == "Thu, 01 Jan 1970 00:00:00 GMT"
    assert format_time(-1) == "Wed, 31 Dec 1969 23:59:59 GMT"
    assert format_time(datetime(7, 1, 2, tzinfo=UTC)) == "Tue, 02 Jan 0007 00:00:00 GMT"


def test_a_year_of_five_digits_is_refused() -> None:
    with pytest.raises(ValueError, match="year 10000"):
        format_time(253402300800)


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun Nov 06 08:49:37 1994",
        "Mon, 06 Nov 1994 08:49:37 GMT",  # the weekday is not looked at
        "sun, 06 nOv 1994 8:49:37 GMT",
        "Sun,  06  Nov  1994  08:49:37  GMT",
        "Sun, 06 Nov 1994 08:49:37.5 GMT",
        "Sun, 06 Nov 1994 08:49:37,123456789 GMT",
        "Sunday, 06-Nov-94 08:49:37 PST",  # another zone counts as GMT
        "Sunday, 06-Nov-94 08:49:37 GMT+3",
        "Sunday, 06-Nov-94 08:49:37 +03",
    ],
)
def test_parse(text: str) -> None:
    assert parse_time(text) == WHEN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "784111777",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 06-Nov-1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 gmt",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 GMT ",
        " Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:49:60 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, ٠٦ Nov 1994 08:49:37 GMT",  # digits, but not ours
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMTT",
        "1994-11-06T08:49:37Z",
        "Sun, 06\tNov 1994 08:49:37 GMT",
    ],
)
def test_what_is_no_date(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


def test_two_digit_years_turn_at_69() -> None:
    assert parse_time("Sunday, 06-Nov-68 08:49:37 GMT").year == 2068
    assert parse_time("Sunday, 06-Nov-69 08:49:37 GMT").year == 1969


def test_cookie_dates() -> None:
    assert parse_cookie_time("Sun, 06 Nov 1994 08:49:37 GMT") == WHEN
    assert parse_cookie_time("Sun, 06-Nov-1994 08:49:37 GMT") == WHEN
    assert parse_cookie_time("Sun, 06 Nov 1994 08:49:37 PST") == WHEN
    for text in (
        "Sun, 06-Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ):
        with pytest.raises(ValueError):
            parse_cookie_time(text)


@given(st.integers(min_value=-62135596800, max_value=253402300799))
def test_what_is_written_is_read(seconds: int) -> None:
    text = format_time(seconds)
    assert len(text) == 29
    assert parse_time(text) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    assert parse_cookie_time(text) == parse_time(text)


@given(st.text(alphabet="Sun, 0123456789:.NovGMT+-", max_size=60))
def test_anything_else_is_a_value_error(text: str) -> None:
    for parse in (parse_time, parse_cookie_time):
        try:
            found = parse(text)
        except ValueError:
            continue
        assert found.tzinfo is UTC
