"""Cookies (RFC 6265): what the Cookie and Set-Cookie fields hold, read and written as Go does.

One class for both directions. A server reads `name=value` pairs (`read_cookies`) and writes
cookies with attributes (`str(cookie)`); a client does the reverse (`read_set_cookies`,
`Cookie.request_value`). Readers take what they can and leave the rest out, because one bad
cookie of somebody else's must not take the others away; `parse_cookie` and
`parse_set_cookie` are strict and say what is wrong.

Laws. Nothing that is written can end the field or add an attribute: bytes that RFC 6265
does not allow are dropped, names that are no tokens give no cookie at all. Reading is linear
in the length of the field, and more than MAX_COOKIES are not read at all.
"""

from __future__ import annotations

import enum
import logging
import re
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from prefork.http.errors import CookieError
from prefork.http.message.grammar import ascii_lower, is_token
from prefork.http.message.httptime import format_time, parse_cookie_time
from prefork.http.message.query import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_COOKIES: Final = 3000
"""The most cookies one message may hold; with more, none is read (Go: httpcookiemaxnum)."""

_log = logging.getLogger("prefork.http")

_SPACE = " \t\r\n"

# cookie-octet of RFC 6265 section 4.1.1, and space and comma, which browsers take too.
_bad_value_byte = re.compile(r'[^ -~]|["\\;]')
_bad_path_byte = re.compile(r"[^ -~]|;")
_domain_label = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}+(?<!-)").fullmatch
_has_letter = re.compile(r"[A-Za-z]").search
_int = re.compile(r"[+-]?+[0-9]{1,64}+").fullmatch
_int64 = range(-(2**63), 2**63)


class SameSite(enum.Enum):
    """When a browser sends the cookie with requests that another site caused (RFC 6265bis section 5.2).

    DEFAULT: the attribute stood there without a known value; it is not written.
    """

    DEFAULT = "Default"
    LAX = "Lax"
    STRICT = "Strict"
    NONE = "None"


_SAME_SITE = {"lax": SameSite.LAX, "strict": SameSite.STRICT, "none": SameSite.NONE}


@dataclass(slots=True)
class Cookie:
    """A cookie, as it is sent in Set-Cookie or received in Cookie (Go: Cookie).

    name: a token. value: without its double quotes; quoted tells that it had, or shall have,
    them. path, domain: "" for no attribute; a leading dot of the domain is not written.
    expires: a datetime (naive: UTC), None for no attribute; raw_expires is what was received,
    also when it could not be read. max_age: seconds; None for no attribute; 0 and below mean
    "delete now" (written `Max-Age=0`, and -1 on a cookie that was read). same_site: None for no
    attribute. partitioned needs secure. raw: the received Set-Cookie line. unparsed:
    attributes of it that are unknown or malformed.

    `str(cookie)` is the Set-Cookie value, "" when the name is invalid.

        http.set_cookie(w, http.Cookie("session", token, path="/", secure=True, http_only=True,
                                       same_site=http.SameSite.LAX, max_age=3600))
    """

    name: str
    value: str = ""
    _: KW_ONLY
    quoted: bool = False
    path: str = ""
    domain: str = ""
    expires: datetime | None = None
    raw_expires: str = ""
    max_age: int | None = None
    secure: bool = False
    http_only: bool = False
    same_site: SameSite | None = None
    partitioned: bool = False
    raw: str = ""
    unparsed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The value of a Set-Cookie field; "" when the name is no token (Go: Cookie.String)."""
        if not is_token(self.name):
            return ""
        parts = [f"{self.name}={_clean_value(self.value, self.quoted)}"]
        if self.path:
            parts.append(f"Path={_clean('Cookie.Path', self.path, _bad_path_byte)}")
        if self.domain:
            if _is_cookie_domain(self.domain):
                parts.append(f"Domain={self.domain.removeprefix('.')}")
            else:
                _log.warning("http: invalid Cookie.Domain %s; the attribute is dropped", quoted(self.domain))
        if self.expires is not None and (expires := _utc(self.expires)).year >= 1601:
            parts.append(f"Expires={format_time(expires)}")
        if self.max_age is not None:
            parts.append(f"Max-Age={max(self.max_age, 0)}")
        if self.http_only:
            parts.append("HttpOnly")
        if self.secure:
            parts.append("Secure")
        if self.same_site is not None and self.same_site is not SameSite.DEFAULT:
            parts.append(f"SameSite={self.same_site.value}")
        if self.partitioned:
            parts.append("Partitioned")
        return "; ".join(parts)

    def valid(self) -> Literal[True]:
        """True when the cookie can be sent exactly as it is (Go: Cookie.Valid).

        Raises CookieError with the first thing that RFC 6265 does not allow. `str(cookie)`
        asks for less: it repairs or drops what it can.
        """
        if not is_token(self.name):
            raise CookieError("http: invalid Cookie.Name")
        if self.expires is not None and _utc(self.expires).year < 1601:
            raise CookieError("http: invalid Cookie.Expires")
        _check("Cookie.Value", self.value, _bad_value_byte)
        _check("Cookie.Path", self.path, _bad_path_byte)
        if self.domain and not _is_cookie_domain(self.domain):
            raise CookieError("http: invalid Cookie.Domain")
        if self.partitioned and not self.secure:
            raise CookieError("http: partitioned cookies must be set with Secure")
        return True

    def request_value(self) -> str:
        """`name=value` as a Cookie field holds it (Go: Request.AddCookie)."""
        name = self.name.replace("\n", "-").replace("\r", "-")
        return f"{name}={_clean_value(self.value, self.quoted)}"


def read_cookies(lines: Iterable[str], name: str = "") -> list[Cookie]:
    """The cookies in the values of Cookie fields, in order; with `name`, those of that name only.

    An entry with an invalid name or value is left out; one without `=` is a name with the
    value "". Empty when the fields have more than MAX_COOKIES entries (Go: Request.Cookies).
    """
    lines = list(lines)
    cookies: list[Cookie] = []
    if sum(line.count(";") + 1 for line in lines) > MAX_COOKIES:
        return cookies
    for line in lines:
        for part in line.split(";"):
            part = part.strip(_SPACE)
            if not part:
                continue
            found, _, text = part.partition("=")
            found = found.strip(_SPACE)
            if (name and found != name) or not is_token(found):
                continue
            value = _parse_value(text, allow_quotes=True)
            if value is not None:
                cookies.append(Cookie(found, value, quoted=len(value) != len(text)))
    return cookies


def read_set_cookies(lines: Iterable[str]) -> list[Cookie]:
    """The cookies in the values of Set-Cookie fields; a line that is none is left out.

    Empty when there are more than MAX_COOKIES lines (Go: Response.Cookies).
    """
    lines = list(lines)
    cookies: list[Cookie] = []
    if len(lines) > MAX_COOKIES:
        return cookies
    for line in lines:
        try:
            cookies.append(parse_set_cookie(line))
        except CookieError:
            continue
    return cookies


def parse_cookie(line: str) -> list[Cookie]:
    """The cookies of one Cookie field's value, strictly (Go: ParseCookie).

    Raises CookieError when any entry is not `name=value` with a valid name and value, and
    when there are more than MAX_COOKIES.
    """
    if line.count(";") + 1 > MAX_COOKIES:
        raise CookieError("http: number of cookies exceeded limit")
    line = line.strip(_SPACE)
    if not line:
        raise CookieError("http: blank cookie")
    cookies = []
    for part in line.split(";"):
        name, equals, text = part.strip(_SPACE).partition("=")
        if not equals:
            raise CookieError("http: '=' not found in cookie")
        if not is_token(name):
            raise CookieError("http: invalid cookie name")
        value = _parse_value(text, allow_quotes=True)
        if value is None:
            raise CookieError("http: invalid cookie value")
        cookies.append(Cookie(name, value, quoted=len(value) != len(text)))
    return cookies


def parse_set_cookie(line: str) -> Cookie:
    """The cookie of one Set-Cookie field's value (Go: ParseSetCookie).

    Attribute names in any case; what is unknown or malformed goes to `unparsed`. Raises
    CookieError when the first part is not `name=value` with a valid name and value.

        parse_set_cookie("id=7; Path=/; Max-Age=60; Secure").max_age  # 60
    """
    first, *attributes = line.strip(_SPACE).split(";")
    first = first.strip(_SPACE)
    if not first and not attributes:
        raise CookieError("http: blank cookie")
    name, equals, text = first.partition("=")
    if not equals:
        raise CookieError("http: '=' not found in cookie")
    name = name.strip(_SPACE)
    if not is_token(name):
        raise CookieError("http: invalid cookie name")
    value = _parse_value(text, allow_quotes=True)
    if value is None:
        raise CookieError("http: invalid cookie value")
    cookie = Cookie(name, value, quoted=len(value) != len(text), raw=line)
    for attribute in attributes:
        attribute = attribute.strip(_SPACE)
        if not attribute:
            continue
        key, _, text = attribute.partition("=")
        if not (key.isascii() and key.isprintable()):
            continue
        value = _parse_value(text, allow_quotes=False)
        if value is None or not _set_attribute(cookie, ascii_lower(key), value):
            cookie.unparsed.append(attribute)
    return cookie


def _set_attribute(cookie: Cookie, key: str, value: str) -> bool:
    """Take one attribute of a Set-Cookie line over; False when it is unknown or malformed."""
    match key:
        case "samesite":
            cookie.same_site = _SAME_SITE.get(ascii_lower(value), SameSite.DEFAULT)
        case "secure":
            cookie.secure = True
        case "httponly":
            cookie.http_only = True
        case "partitioned":
            cookie.partitioned = True
        case "domain":
            cookie.domain = value
        case "path":
            cookie.path = value
        case "max-age":
            # RFC 6265 section 5.2.2 starts with a digit or "-"; a leading zero is ambiguous.
            if not _int(value) or (seconds := int(value)) not in _int64 or (seconds and value[0] == "0"):
                return False
            cookie.max_age = seconds if seconds > 0 else -1
        case "expires":
            cookie.raw_expires = value
            try:
                cookie.expires = parse_cookie_time(value)
            except ValueError:
                cookie.expires = None
                return False
        case _:
            return False
    return True


def _parse_value(text: str, *, allow_quotes: bool) -> str | None:
    """The value without one pair of quotes around it; None when it has a byte it may not have."""
    if allow_quotes and len(text) > 1 and text[0] == '"' == text[-1]:
        text = text[1:-1]
    return None if _bad_value_byte.search(text) else text


def _clean_value(value: str, quote: bool) -> str:
    value = _clean("Cookie.Value", value, _bad_value_byte)
    # Browsers disagree on a bare space or comma; all of them keep what is between quotes.
    return f'"{value}"' if quote or " " in value or "," in value else value


def _clean(what: str, text: str, bad: re.Pattern[str]) -> str:
    found = bad.search(text)
    if found is None:
        return text
    _log.warning("http: invalid byte %s in %s; such bytes are dropped", _quoted_byte(found[0]), what)
    return bad.sub("", text)


def _check(what: str, text: str, bad: re.Pattern[str]) -> None:
    found = bad.search(text)
    if found is not None:
        raise CookieError(f"http: invalid byte {_quoted_byte(found[0])} in {what}")


def _quoted_byte(character: str) -> str:
    """The first byte of `character` between single quotes, as Go's %q shows a byte."""
    byte = chr(character.encode("utf-8", "surrogateescape")[0])
    return f"'{byte}'" if byte == '"' else f"'{quoted(byte)[1:-1]}'"


def _utc(when: datetime) -> datetime:
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def _is_cookie_domain(domain: str) -> bool:
    """A host name of letters, digits and inner hyphens with at least one letter, or an IPv4 address."""
    if 0 < len(domain) <= 255 and _has_letter(domain):
        labels = domain.removeprefix(".").removesuffix(".").split(".")
        if all(map(_domain_label, labels)):
            return True
    import ipaddress  # rarely needed: most domains are names

    try:
        ipaddress.IPv4Address(domain)
    except ValueError:
        return False
    return True
