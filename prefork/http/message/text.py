"""The text of a body: its bytes in the charset that Content-Type names."""

from __future__ import annotations

import codecs

from prefork.http.message.grammar import OWS, ascii_lower

# Codecs of Python's that are no charset of any text. The peer names it: punycode takes quadratic time.
_NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})


def decode_text(data: bytes, content_type: str) -> str:
    """`data` as str: the charset parameter of `content_type`, else UTF-8; bad bytes become U+FFFD.

    Raises LookupError, with its name, for a charset that nobody knows.
    """
    charset = "utf-8"
    for part in content_type.split(";")[1:]:
        key, _, value = part.partition("=")
        if ascii_lower(key.strip(OWS)) == "charset":
            charset = value.strip(OWS).strip('"')
    try:
        if codecs.lookup(charset).name in _NO_CHARSETS:
            raise LookupError
        return data.decode(charset, "replace")
    except (LookupError, ValueError):  # ValueError: the name cannot even be looked up
        raise LookupError(f"unknown charset {charset!r}") from None
