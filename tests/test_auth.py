"""Basic authentication."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.message.auth import basic_auth, parse_basic_auth


def test_the_example_of_the_rfc() -> None:
    assert basic_auth("Aladdin", "open sesame") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert parse_basic_auth("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==") == ("Aladdin", "open sesame")


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC", "bAsIc"])
def test_the_scheme_in_any_case(scheme: str) -> None:
    assert parse_basic_auth(f"{scheme} Og==") == ("", "")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Basic",
        "Basic ",
        "BasicOg==",
        "Basic  Og==",
        "Basic\tOg==",
        "Bearer Og==",
        "ba\u017fic Og==",  # a long s, which lower-cases to itself and upper-cases to S
        "Basic Og",
        "Basic Og=",
        "Basic Og===",
        "Basic Og==\n",
        "Basic O g==",
        "Basic QUI=",  # no colon
        "Basic /-_=",
        "Basic é===",
        "Basic \udcff===",
        "\udcff",
    ],
)
def test_what_is_not_basic(value: str) -> None:
    assert parse_basic_auth(value) is None


def test_the_first_colon_separates() -> None:
    assert parse_basic_auth(basic_auth("u", "a:b")) == ("u", "a:b")


@given(st.text(alphabet=st.characters(exclude_characters=":", exclude_categories=["Cs"])), st.text())
def test_what_is_written_is_read(user: str, password: str) -> None:
    try:
        password.encode()
    except UnicodeEncodeError:
        password = ""
    assert parse_basic_auth(basic_auth(user, password)) == (user, password)


def test_bytes_that_are_no_utf8_survive() -> None:
    assert parse_basic_auth(basic_auth("\udcff", "\udc80")) == ("\udcff", "\udc80")
