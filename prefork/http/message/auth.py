"""HTTP Basic authentication (RFC 7617): the value of the Authorization header, both ways."""

from __future__ import annotations

import binascii
import re

# binascii alone lets padding pass that is not due, even in its strict mode.
_is_base64 = re.compile("(?:[A-Za-z0-9+/]{4})*+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?").fullmatch


def parse_basic_auth(value: str) -> tuple[str, str] | None:
    """(user, password) of an Authorization value; None when it is not well-formed Basic (Go: BasicAuth).

    The scheme in any case, exactly one space, standard base64 with its padding; the first
    colon ends the user. The bytes are read as UTF-8, `surrogateescape` for those that are not.
    Compare the password with `hmac.compare_digest`, so that the time taken tells nothing.

        parse_basic_auth("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")  # ('Aladdin', 'open sesame')
    """
    # Six ASCII characters: str.lower could make a "basic" of others, encode() would not let them pass.
    if value[:6].encode("utf-8", "surrogatepass").lower() != b"basic ":
        return None
    if not _is_base64(value, 6):
        return None
    user, colon, password = binascii.a2b_base64(value[6:]).partition(b":")
    if not colon:
        return None
    return user.decode("utf-8", "surrogateescape"), password.decode("utf-8", "surrogateescape")


def basic_auth(user: str, password: str) -> str:
    """The Authorization value for this user and password (Go: SetBasicAuth).

    Not encrypted: anybody who sees it can read the password. A colon in `user` would move to
    the password on the other side (RFC 7617 section 2 forbids it).
    """
    pair = f"{user}:{password}".encode("utf-8", "surrogateescape")
    return "Basic " + binascii.b2a_base64(pair, newline=False).decode("ascii")
