"""Host names outside of ASCII: their `xn--` form, and the host and port that travel with them.

Two conversions, as Go has them:

    to_ascii            the name to look up and connect to: mapped first (UTS #46), so that
                        "BÜCHER.de" and "bücher。de" are one server (Go: idna.Lookup)
    punycode_host_port  the Host field of a request: label by label, nothing is mapped

Both leave a host of ASCII alone, whatever it holds: it is not lower-cased and not checked,
because a name server or a dialer of one's own may know names that no registry allows.

The tables of UTS #46 are those of the library `idna`. Without it names of left-to-right
letters and digits still work; where the standard library cannot tell, the name is refused,
never guessed: to guess is to connect to somebody else.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from prefork.http.message.query import URLError, quoted

MAX_HOST: Final = 1024
"""The longest host that is converted, in characters; a name in ASCII has at most 253 (RFC 1035)."""

# What "use STD3 ASCII rules" of UTS #46 leaves of ASCII: letters, digits, hyphen.
_NOT_STD3 = re.compile(r"[\x00-,./:-`{-\x7f]").search
# Letters and marks that the mapping of UTS #46 drops: fillers, joiners, variation selectors.
_IGNORED = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
).search
# A byte that is no UTF-8, as a decoded URL holds it; the codec would take it for a character.
_STRAY_BYTE = re.compile("[\ud800-\udfff]").search
_DOTS = re.compile("[\u3002\uff0e\uff61]")
_LETTERS_AND_DIGITS = frozenset(("Ll", "Lo", "Lm", "Mn", "Mc", "Nd"))
_MAPPED = _LETTERS_AND_DIGITS | {"Lu", "Lt"}
_LEFT_TO_RIGHT = frozenset(("L", "EN", "NSM"))
# Kept as they are: "straße" and "strasse" may be two owners. Only lower() makes one of U+1E9E.
_SHARP_S = frozenset("\u00df\u03c2\u1e9e")


def to_ascii(host: str) -> str:
    """The name to resolve and to connect to, in ASCII and then lower case (Go: idnaASCII).

    An ASCII host is returned unchanged, and so is an IPv6 address with its zone. Raises
    URLError for what cannot be a name: characters that UTS #46 forbids, a label that is empty,
    longer than 63 bytes, begins or ends with a hyphen, or mixes directions of writing.

        to_ascii("Bücher.de")  # "xn--bcher-kva.de"
    """
    if host.isascii():
        return host
    address, _, _ = host.partition("%")
    if ":" in address and address.isascii():
        return host  # the name of a network interface, which nobody maps
    return _lookup(host)


def punycode(host: str) -> str:
    """Each label that is not ASCII as `xn--` and its Punycode (RFC 3492), unmapped, in the case it has.

    An ASCII host is returned unchanged. Raises URLError for a host that is longer than
    MAX_HOST, and for bytes that are no UTF-8.
    """
    if host.isascii():
        return host
    if len(host) > MAX_HOST:
        raise URLError(f"host longer than {MAX_HOST} characters")
    return ".".join(label if label.isascii() else f"xn--{encode_label(label)}" for label in host.split("."))


def punycode_host_port(host: str) -> str:
    """`host` or `host:port` as the Host field carries it (Go: httpguts.PunycodeHostPort).

    A colon without a port behind it is dropped when the host is not ASCII, as Go does. An
    address in brackets is left alone: only its zone can hold more than ASCII, see
    `remove_zone`. Raises URLError as `punycode` does.
    """
    if host.isascii() or host[0] == "[":
        return host
    name, _, port = host.partition(":")
    return f"{punycode(name)}:{port}" if port else punycode(name)


def remove_zone(host: str) -> str:
    """The host without the zone of an IPv6 address in brackets, which means something here only.

    RFC 6874 section 4: a zone must not leave the machine (Go: removeZone).

        remove_zone("[fe80::1%en0]:8080")  # "[fe80::1]:8080"
    """
    end = host.rfind("]")
    if host[:1] != "[" or end < 0:
        return host
    zone = host.rfind("%", 0, end)
    return host if zone < 0 else host[:zone] + host[end:]


def remove_port(host: str) -> str:
    """`host:port` without the port, an IPv6 address with its brackets (Go: removePort)."""
    colon = host.rfind(":")
    return host[:colon] if colon > host.rfind("]") else host


def encode_label(label: str) -> str:
    """Punycode of one label, without `xn--` (RFC 3492); URLError for bytes that are no UTF-8."""
    if _STRAY_BYTE(label):
        raise _refused(label, "it is not UTF-8")
    return label.encode("punycode").decode("ascii")


@lru_cache(maxsize=256)
def _lookup(host: str) -> str:
    if len(host) > MAX_HOST:
        raise URLError(f"host longer than {MAX_HOST} characters")
    try:
        import idna
    except ImportError:
        mapped = _map_letters(host)
        check = _check_left_to_right
    else:
        try:
            mapped = idna.uts46_remap(host, std3_rules=True)
        except UnicodeError as exc:
            raise _refused(host, str(exc)) from None
        check = _check_with_tables
    labels = mapped.split(".")
    texts = [_decoded(host, label) if label.startswith("xn--") else label for label in labels]
    any_right_to_left = any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in "".join(texts))
    for number, text in enumerate(texts):
        # A name may end with the dot of the root.
        if text or not 0 < number == len(texts) - 1:
            check(host, text, any_right_to_left)
    encoded = [text if text.isascii() else f"xn--{encode_label(text)}" for text in texts]
    for label in encoded:
        if len(label) > 63:
            raise _refused(host, "a label is longer than 63 bytes")
    name = ".".join(encoded)
    if len(name.removesuffix(".")) > 253:
        raise _refused(host, "it is longer than 253 bytes")
    return name


def _decoded(host: str, label: str) -> str:
    """The text of an `xn--` label, which must be the only spelling of that text."""
    try:
        text = label[4:].encode("ascii").decode("punycode")
    except UnicodeError:
        text = ""
    # One that decodes to plain ASCII is a second name of a host that has its own already.
    if text.isascii() or f"xn--{encode_label(text)}" != label:
        raise _refused(host, f"{quoted(label)} is not the form of any name")
    return text


def _check_label(host: str, label: str) -> None:
    if not label:
        raise _refused(host, "a label is empty")
    if _NOT_STD3(label):
        raise _refused(host, "of ASCII only letters, digits and hyphens can be in a name")
    if label[0] == "-" or label[-1] == "-" or label[2:4] == "--":
        raise _refused(host, "a label begins or ends with a hyphen, or has two in third place")
    if unicodedata.category(label[0])[0] == "M":
        raise _refused(host, "a label begins with a combining mark")


def _check_with_tables(host: str, label: str, any_right_to_left: bool) -> None:
    import idna

    _check_label(host, label)
    try:
        if not label.isascii() and idna.uts46_remap(label, std3_rules=True) != label:
            raise _refused(host, f"{quoted(label)} has another spelling")
        if any_right_to_left:
            idna.check_bidi(label, check_ltr=True)
        for position, char in enumerate(label):
            if char in "\u200c\u200d" and not idna.valid_contextj(label, position):
                raise _refused(host, "a joiner stands where it changes nothing")
    except UnicodeError as exc:
        raise _refused(host, str(exc)) from None


def _map_letters(host: str) -> str:
    """What UTS #46 maps, as far as normalisation and case folding alone tell it."""
    host = _DOTS.sub(".", host)
    for char in host:
        # Compatibility forms of other kinds may hide a dot or a slash ("\u2100" is "a/c"), and
        # those of the final sigma are mapped to the other one.
        if not char.isascii() and (
            unicodedata.category(char) not in _MAPPED
            or unicodedata.normalize("NFKC", char.casefold()) == "\u03c2"
        ):
            raise _needs_library(host)
    return unicodedata.normalize("NFC", _fold(unicodedata.normalize("NFKC", _fold(host))))


def _fold(text: str) -> str:
    return "".join(char.lower() if char in _SHARP_S else char.casefold() for char in text)


def _check_left_to_right(host: str, label: str, any_right_to_left: bool) -> None:
    _check_label(host, label)
    for char in label:
        if not char.isascii() and (
            unicodedata.category(char) not in _LETTERS_AND_DIGITS
            or unicodedata.bidirectional(char) not in _LEFT_TO_RIGHT
            or _IGNORED(char)
        ):
            raise _needs_library(host)
    if _map_letters(label) != label:
        raise _refused(host, f"{quoted(label)} has another spelling")


def _refused(host: str, why: str) -> URLError:
    return URLError(f"{quoted(host)} cannot be the name of a host: {why}")


def _needs_library(host: str) -> URLError:
    return URLError(f'host {quoted(host)} needs the package "idna": pip install "prefork[idna]"')
