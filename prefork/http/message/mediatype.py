"""Media types with parameters: `text/html; charset=utf-8` (RFC 9110 section 8.3, RFC 2045, RFC 2231).

The same grammar serves Content-Type and Content-Disposition, so a type without a subtype
(`form-data`) is fine. Parsing is Go's: strict about the grammar, forgiving about one thing,
the unescaped backslashes of a Windows path between quotes. Parameters that RFC 2231 encodes
(`filename*=utf-8''...`) or splits (`name*0=`, `name*1=`) are put together again.

Law: one pass over the text, whatever it holds; every repeat of the expressions is possessive.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefork.http.message.grammar import TOKEN_CLASS, ascii_lower, is_token

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPACE = " \t\r\n\v\f"
_SPECIALS = r"()<>@,;:\\\"/\[\]?="  # tspecials of RFC 2045 section 5.1, for a character class

_token = re.compile(rf"[{TOKEN_CLASS}]++").match
_param = re.compile(
    rf"[{_SPACE}]*+;[{_SPACE}]*+(?P<name>[{TOKEN_CLASS}]++)[{_SPACE}]*+="
    # A backslash escapes only what could not stand there by itself; before anything else it
    # is a backslash. Internet Explorer sent `filename="C:\dev\go\foo.txt"`.
    rf'(?:[{_SPACE}]*+"(?P<quoted>(?:[^"\\\r\n]++|\\[{_SPECIALS}]|\\)*+)"|[{_SPACE}]*+(?P<token>[{TOKEN_CLASS}]++))'
).match
_escaped = re.compile(rf"\\([{_SPECIALS}])")
_percent = re.compile(rb"%([0-9A-Fa-f]{2})")
_bad_percent = re.compile(r"%(?![0-9A-Fa-f]{2})").search
_needs_encoding = re.compile(r"[^\t -~]").search
# attribute-char of RFC 2231 section 7, what may stand unencoded in an extended value.
_extended = re.compile(rf"[^{TOKEN_CLASS}]|[*'%]".encode())


class MediaTypeError(ValueError):
    """A media type that cannot be parsed.

    media_type: the type, when only the parameters are bad; else "".
    """

    def __init__(self, text: str, media_type: str = "") -> None:
        super().__init__(text)
        self.media_type = media_type


def parse_media_type(text: str) -> tuple[str, dict[str, str]]:
    """The type, lower case, and its parameters, names lower case (Go: mime.ParseMediaType).

    Raises MediaTypeError for a malformed type or parameter, and when a parameter is there
    twice with different values. An extended parameter in a charset other than UTF-8 and
    US-ASCII is left out.

        parse_media_type('Text/HTML; Charset="utf-8"')  # ('text/html', {'charset': 'utf-8'})
    """
    base, _, _ = text.partition(";")
    media_type = ascii_lower(base).strip(_SPACE)
    _check_type(media_type)
    params: dict[str, str] = {}
    pieces: dict[str, dict[str, str]] = {}  # RFC 2231: base name -> name with its stars -> value
    at = len(base)
    while match := _param(text, at):
        at = match.end()
        name = ascii_lower(match["name"])
        value = match["token"]
        if value is None:
            value = match["quoted"]
            if "\\" in value:
                value = _escaped.sub(r"\1", value)
        stem, star, _ = name.partition("*")
        found = pieces.setdefault(stem, {}) if star else params
        # Repeating a parameter is wrong; repeating it with the same value does no harm.
        if found.setdefault(name, value) != value:
            raise MediaTypeError("mime: duplicate parameter name")
    if text[at:].strip(_SPACE) not in ("", ";"):
        raise MediaTypeError("mime: invalid media parameter", media_type)
    for stem, parts in pieces.items():
        joined = _join(stem, parts)
        if joined is not None:
            params[stem] = joined
    return media_type, params


def _check_type(media_type: str) -> None:
    first = _token(media_type)
    if first is None:
        raise MediaTypeError("mime: no media type")
    rest = media_type[first.end() :]
    if not rest:
        return
    if rest[0] != "/":
        raise MediaTypeError("mime: expected slash after first token")
    second = _token(rest, 1)
    if second is None:
        raise MediaTypeError("mime: expected token after slash")
    if second.end() != len(rest):
        raise MediaTypeError("mime: unexpected content after media subtype")


def _join(stem: str, parts: dict[str, str]) -> str | None:
    """The value of a parameter from its RFC 2231 parts; None when there is none to be had."""
    whole = parts.get(f"{stem}*")
    if whole is not None:
        return _decode_extended(whole)
    joined: list[str] = []
    for number in range(len(parts)):
        plain = parts.get(f"{stem}*{number}")
        if plain is not None:
            joined.append(plain)
            continue
        encoded = parts.get(f"{stem}*{number}*")
        if encoded is None:
            break
        # The charset stands in the first part only.
        joined.append((_decode_percent(encoded) if number else _decode_extended(encoded)) or "")
    return "".join(joined) if joined else None


def _decode_extended(value: str) -> str | None:
    """`utf-8'en'na%C3%AFve` -> `naïve`; None when it is malformed or in another charset."""
    charset, _, rest = value.partition("'")
    _, quote, text = rest.partition("'")
    if not quote or ascii_lower(charset) not in ("utf-8", "us-ascii"):
        return None
    return _decode_percent(text)


def _decode_percent(text: str) -> str | None:
    if "%" not in text:
        return text
    if _bad_percent(text):
        return None
    raw = text.encode("utf-8", "surrogateescape")
    decoded = _percent.sub(lambda match: bytes.fromhex(match[1].decode()), raw)
    return decoded.decode("utf-8", "surrogateescape")


def format_media_type(media_type: str, params: Mapping[str, str] | None = None) -> str:
    """The text of a media type with its parameters, sorted by name (Go: mime.FormatMediaType).

    Values are quoted when they must be, and written as `name*=utf-8''...` when they hold
    what quotes cannot. Raises ValueError for a type or a name that is no token.

        format_media_type("attachment", {"filename": "a b.txt"})  # 'attachment; filename="a b.txt"'
    """
    major, slash, minor = media_type.partition("/")
    if not is_token(major) or (slash and not is_token(minor)):
        raise ValueError(f"bad media type {media_type!r}")
    out = [ascii_lower(media_type)]
    for name, value in sorted((params or {}).items()):
        if not is_token(name):
            raise ValueError(f"bad name {name!r} of a media type's parameter")
        name = ascii_lower(name)
        if _needs_encoding(value):
            raw = value.encode("utf-8", "surrogateescape")
            encoded = _extended.sub(lambda match: b"%%%02X" % match[0][0], raw)
            out.append(f"{name}*=utf-8''{encoded.decode('ascii')}")
        elif is_token(value):
            out.append(f"{name}={value}")
        else:
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            out.append(f'{name}="{escaped}"')
    return "; ".join(out)
