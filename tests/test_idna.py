"""Hosts outside of ASCII: what is connected to, what the Host field says, and without the library."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.client.connect_method import canonical_addr
from prefork.http.message import idna
from prefork.http.message.idna import (
    MAX_HOST,
    encode_label,
    punycode,
    punycode_host_port,
    remove_port,
    remove_zone,
    to_ascii,
)
from prefork.http.message.query import URLError
from prefork.http.message.url import URL

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "vectors"

Row = dict[str, Any]


@pytest.fixture(params=["library", "standard library"])
def tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Once with the tables of the library `idna`, once as if it was not installed."""
    if request.param == "library":
        pytest.importorskip("idna")
    else:
        monkeypatch.setitem(sys.modules, "idna", None)
    idna._lookup.cache_clear()
    yield request.param
    idna._lookup.cache_clear()


# --- the name to connect to -----------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["", "example.org", "EXAMPLE.org", "a_b", "-a-", "a..b", "127.0.0.1", "::1", "fe80::1%en0", "fe80::1%é"],
)
def test_ascii_and_addresses_are_left_alone(host: str) -> None:
    assert to_ascii(host) == host


@pytest.mark.parametrize(
    ("host", "want"),
    [
        ("bücher.de", "xn--bcher-kva.de"),
        ("BÜCHER.DE", "xn--bcher-kva.de"),
        ("bu\u0308cher.de", "xn--bcher-kva.de"),
        ("bücher。de\uff0e", "xn--bcher-kva.de."),
        ("\uff25\uff38\uff21\uff2d\uff30\uff2c\uff25.com", "example.com"),
        ("straße.de", "xn--strae-oqa.de"),
        ("STRAẞE.de", "xn--strae-oqa.de"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
        ("xn--bcher-kva.é", "xn--bcher-kva.xn--9ca"),
        ("\uff11\uff12\uff17.0.0.1", "127.0.0.1"),
        ("Ελλάς.gr", "xn--hxarsa0b.gr"),
    ],
)
def test_mapped_names(host: str, want: str, tables: str) -> None:
    assert to_ascii(host) == want


@pytest.mark.parametrize("host", ["עברית.com", "😀.com", "①.com", "क्\u200dष.in"])
def test_what_only_tables_can_tell(host: str, tables: str) -> None:
    if tables == "library":
        assert to_ascii(host).isascii()
    else:
        with pytest.raises(URLError, match=r'pip install "prefork\[idna\]"'):
            to_ascii(host)


@pytest.mark.parametrize(
    "host",
    [
        "é..de",
        ".é.de",
        "。é",
        "-é.de",
        "é-.de",
        "aé--b.de",
        "ab--é.de",
        "é_x.de",
        "é x.de",
        "é:1",
        "é/x",
        "é@x",
        "\u2100.com",  # "a/c"
        "é\u2488com",  # "1."
        "\u0301a.de",
        "é\udcff.de",
        "אa.com",
        "a\u200db.com",
        "\u00ad",
        "\ufe00",
        "xn--abc-.é",  # a second name for "abc"
        "xn--\u212a.com",
        "xn--a.é",
        "é" * 64,
        ".".join(["é" * 20] * 12),
        "é" * (MAX_HOST + 1),
    ],
)
def test_what_is_no_name(host: str, tables: str) -> None:
    with pytest.raises(URLError):
        to_ascii(host)


def test_the_message_names_the_host(tables: str) -> None:
    with pytest.raises(URLError, match=r'^"é\.\.de" cannot be the name of a host: a label is empty$'):
        to_ascii("é..de")


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x2FFFF), min_size=1, max_size=12))
def test_without_tables_the_same_or_nothing(host: str) -> None:
    """Less is taken without the library, but nothing is taken for another host."""
    pytest.importorskip("idna")
    lookup = idna._lookup.__wrapped__
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "idna", None)
        try:
            plain = lookup(host)
        except URLError:
            return
    assert lookup(host) == plain


@given(st.text(max_size=30))
def test_the_result_is_a_name(host: str) -> None:
    try:
        name = to_ascii(host)
    except URLError:
        return
    assert name == host or (set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") and len(name) <= 254)
    if not host.isascii() and ":" not in host:
        assert to_ascii(name) == name


@given(st.from_regex(r"[a-z0-9-]{0,20}", fullmatch=True))
def test_a_label_in_punycode_has_one_spelling(label: str) -> None:
    try:
        name = to_ascii(f"xn--{label}.é")
    except URLError:
        return
    assert name == f"xn--{label}.xn--9ca"
    assert not label.encode().decode("punycode").isascii()


# --- the Host field -------------------------------------------------------------------------


def test_punycode_maps_nothing() -> None:
    assert punycode("BÜCHER.de") == "xn--BCHER-2pa.de"
    assert punycode("A.b") == "A.b"


@pytest.mark.parametrize(
    ("host", "want"),
    [
        ("example.org:80", "example.org:80"),
        ("bücher.de:8080", "xn--bcher-kva.de:8080"),
        ("[::1]:80", "[::1]:80"),
        ("[fe80::1%é]:80", "[fe80::1%é]:80"),
    ],
)
def test_host_and_port(host: str, want: str) -> None:
    assert punycode_host_port(host) == want


@pytest.mark.parametrize("host", ["é\udcff", "é" * (MAX_HOST + 1)])
def test_hosts_that_have_no_punycode(host: str) -> None:
    with pytest.raises(URLError):
        punycode_host_port(host)


@pytest.mark.parametrize(
    ("host", "want"),
    [("a:1", "a"), ("a", "a"), ("[::1]", "[::1]"), ("[::1]:1", "[::1]"), ("", ""), (":1", ""), ("a:", "a")],
)
def test_remove_port(host: str, want: str) -> None:
    assert remove_port(host) == want


def test_remove_zone_of_addresses_in_brackets_only() -> None:
    assert remove_zone("[fe80::1%eth0]") == "[fe80::1]"
    assert remove_zone("fe80::1%eth0") == "fe80::1%eth0"


# --- the measured rows ----------------------------------------------------------------------


def check_row(name: str, row: Row) -> None:
    match name:
        case "host_punycode":
            assert punycode_host_port(row["in"].encode("latin-1").decode()) == row["want"]
        case "golden_remove_zone":
            assert remove_zone(row["in"]) == row["want"]
        case "host_remove_port":
            assert remove_port(row["in"]) == row["want"]
        case "golden_canonical_addr":
            assert canonical_addr(URL.parse(row["url"])) == row["canonical_addr"]
        case "cookiejar_punycode":
            assert encode_label(row["s"]) == row["encoded"]


FILES = (
    "host_punycode",
    "golden_remove_zone",
    "host_remove_port",
    "golden_canonical_addr",
    "cookiejar_punycode",
)


def rows() -> list[Any]:
    found = [
        pytest.param(name, row, id=f"{name}-{number}")
        for name in FILES
        if (path := FOLDER / f"{name}.json").exists()
        for number, row in enumerate(json.loads(path.read_text())["vectors"])
    ]
    return found or [pytest.param("", {}, marks=pytest.mark.skip(reason=f"no vectors in {FOLDER}"))]


@pytest.mark.parametrize(("name", "row"), rows())
def test_row(name: str, row: Row) -> None:
    check_row(name, row)
