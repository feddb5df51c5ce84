"""The byte classes: every one of 256 bytes, and what Python's own methods would take beyond them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.http.message.grammar import (
    MAX_LENGTH,
    ascii_lower,
    has_control,
    is_digits,
    is_host_value,
    is_token,
    parse_content_length,
    tokens,
)

TCHAR = set("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
HOST = set("!$%&'()*+,-.:;=[]_~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

# What str.isdigit, str.isalpha, str.isspace and str.lower know beyond ASCII; the Kelvin sign lowers to k.
BEYOND = [
    "\xb2",
    "\u0665",
    "\uff15",
    "é",
    "\u212a",
    "\u0130",
    "\u00a0",
    "\u0085",
    "\u2028",
    "\udc80",
    "\udcff",
]


@pytest.mark.parametrize("code", range(256))
def test_every_byte_is_in_the_classes_the_rfc_puts_it_in(code: int) -> None:
    char = chr(code)
    assert bool(is_token(char)) is (char in TCHAR)
    assert bool(is_host_value(char)) is (char in HOST)
    assert bool(is_digits(char)) is (char in "0123456789")
    assert bool(has_control(char)) is ((code < 32 and char != "\t") or code == 127)


@pytest.mark.parametrize("char", BEYOND)
def test_nothing_beyond_ascii_is_a_token_a_digit_or_a_host(char: str) -> None:
    assert not is_token(char)
    assert not is_token("a" + char)
    assert not is_digits("1" + char)
    assert not is_host_value("a" + char)


def test_a_class_matches_the_whole_text_to_its_last_byte() -> None:
    # `$` would let a line feed at the end through.
    assert not is_token("abc\n")
    assert not is_token("")
    assert not is_digits("12\n")
    assert not is_digits("")
    assert not is_host_value("example.com\n")
    assert is_host_value("")  # `Host:` without a value is allowed
    assert has_control("a\n")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("0", 0),
        ("7", 7),
        ("00012", 12),
        (" 12\t", 12),
        ("9223372036854775807", MAX_LENGTH),
        ("00000000000009223372036854775807", MAX_LENGTH),
    ],
)
def test_content_length(text: str, length: int) -> None:
    assert parse_content_length(text) == length


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "+5",
            "-1",
            "-0",
            "1_0",
            "0x10",
            "1e3",
            "1.0",
            "5 5",
            "5,5",
            "5, 5",
            "5;",
            "a",
            "5a",
            "\v5",
        ),
        *("5\x0c", "5\n", "\u00a05", "5\u2003", "\xb2", "\u0665", "\uff15", "9223372036854775808", "1" * 40),
        *("0" * 33, "18446744073709551621"),
    ],
)
def test_a_content_length_is_digits_and_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match="bad Content-Length"):
        parse_content_length(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_a_content_length_is_what_the_digits_say_or_an_error(text: str) -> None:
    try:
        length = parse_content_length(text)
    except ValueError:
        return
    assert 0 <= length <= MAX_LENGTH
    digits = text.strip(" \t")
    assert set(digits) <= set("0123456789")
    assert str(length) == (digits.lstrip("0") or "0")


def test_a_long_number_is_refused_without_being_computed() -> None:
    # int() of a million digits takes seconds, and raises a ValueError of its own above 4300.
    with pytest.raises(ValueError, match="bad Content-Length") as caught:
        parse_content_length("9" * 1_000_000)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], []),
        ([""], []),
        (["close"], ["close"]),
        (["Keep-Alive, CLOSE"], ["keep-alive", "close"]),
        ([" a ,\tb\t,, ,c"], ["a", "b", "c"]),
        (["a", "b, c"], ["a", "b", "c"]),
        (["a b"], ["a b"]),
        (["\u00a0close"], ["\u00a0close"]),  # no-break space is no white space here
        (["\x0bclose"], ["\x0bclose"]),
        (["\u212aeep-alive"], ["\u212aeep-alive"]),
    ],
)
def test_tokens(lines: list[str], found: list[str]) -> None:
    assert tokens(lines) == found


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_ascii_lower_changes_a_to_z_and_nothing_else(text: str) -> None:
    lowered = ascii_lower(text)
    assert len(lowered) == len(text)
    for before, after in zip(text, lowered, strict=True):
        assert after == (chr(ord(before) + 32) if "A" <= before <= "Z" else before)


def test_ascii_lower_knows_no_kelvin() -> None:
    assert ascii_lower("\u212aEEP") == "\u212aeep"
    assert ascii_lower("Transfer-Encoding\u0130") == "transfer-encoding\u0130"
