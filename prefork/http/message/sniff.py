"""Guess a body's Content-Type from its first bytes (WHATWG MIME sniffing, as Go does it).

The server asks for every response that does not name its type, so the common answer, a
small text, must be cheap: one look at the first byte tells whether any signature can
match, then one C-speed call tells text from binary.

Law: never executable by surprise. An answer is `text/html` only for a known tag at the
very start; JSON, CSS and scripts are `text/plain`.

One difference from Go: the Embedded OpenType mark (`LP` at offset 34) counts only in
data that is binary anyway. Go looks nowhere else, and so calls every text with those
two letters in that place a font.
"""

from __future__ import annotations

import re
from typing import Final

SNIFF_LENGTH: Final = 512
"""How many bytes are looked at, at most."""

_TEXT: Final = "text/plain; charset=utf-8"
_BINARY: Final = "application/octet-stream"

# "binary data byte" in the standard's words: controls but HTAB, LF, FF, CR and ESC.
_BINARY_BYTES: Final = bytes([*range(0x00, 0x09), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)])
_LETTERS: Final = bytes(range(ord("a"), ord("z") + 1))
# All the others. `lstrip` looks each byte up from the left of this list: letters first.
_TEXT_BYTES: Final = _LETTERS + bytes(range(256)).translate(None, _LETTERS + _BINARY_BYTES)
# Below this many bytes `lstrip` (a cost per byte) beats `translate` (a cost per call).
_SHORT: Final = 48

# Ordered, first match wins; within one first byte the longer pattern stands first.
_PREFIXES: Final[tuple[tuple[bytes, str], ...]] = (
    (b"%PDF-", "application/pdf"),
    (b"%!PS-Adobe-", "application/postscript"),
    (b"\xef\xbb\xbf", _TEXT),
    (b"\x00\x00\x01\x00", "image/x-icon"),
    (b"\x00\x00\x02\x00", "image/x-icon"),
    (b"BM", "image/bmp"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"ID3", "audio/mpeg"),
    (b"OggS\x00", "application/ogg"),
    (b"MThd\x00\x00\x00\x06", "audio/midi"),
    (b"\x1aE\xdf\xa3", "video/webm"),
    (b"\x00\x01\x00\x00", "font/ttf"),
    (b"OTTO", "font/otf"),
    (b"ttcf", "font/collection"),
    (b"wOFF", "font/woff"),
    (b"wOF2", "font/woff2"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
    (b"PK\x03\x04", "application/zip"),
    (b"Rar!\x1a\x07\x00", "application/x-rar-compressed"),
    (b"Rar!\x1a\x07\x01\x00", "application/x-rar-compressed"),
    (b"\x00asm", "application/wasm"),
)

# Containers: four letters, a length of four bytes, then the kind.
_CONTAINERS: Final[tuple[tuple[bytes, bytes, str], ...]] = (
    (b"RIFF", b"WEBPVP", "image/webp"),
    (b"RIFF", b"WAVE", "audio/wave"),
    (b"RIFF", b"AVI ", "video/avi"),
    (b"FORM", b"AIFF", "audio/aiff"),
)

# A tag counts when a space or ">" ends it: `<abbr` is not `<a`. White space may stand before.
_html_tag = re.compile(
    rb"[\t\n\x0c\r ]*+<(?:!DOCTYPE HTML|HTML|HEAD|SCRIPT|IFRAME|H1|DIV|FONT|TABLE|A|STYLE|TITLE"
    rb"|BODY|BR|B|P|!--)[ >]",
    re.IGNORECASE,
).match
_xml = re.compile(rb"[\t\n\x0c\r ]*+<\?xml").match


def _starts(byte: int) -> tuple[bytes, ...] | None:
    if byte in b"\t\n\x0c\r <" or byte == 0:  # markup; an MPEG-4 box, whose size comes first
        return (b"",)
    known = (
        [prefix for prefix, _ in _PREFIXES]
        + [name for name, _, _ in _CONTAINERS]
        + [b"\xfe\xff", b"\xff\xfe"]
    )
    return tuple(prefix for prefix in known if prefix[0] == byte) or None


# Indexed by the first byte: None when only the text rule can apply, which is the answer
# for nearly every text; else what the data must start with to be worth a closer look.
_STARTS: Final = tuple(_starts(byte) for byte in range(256))


def detect_content_type(data: bytes | bytearray | memoryview) -> str:
    """The media type of a body that starts with `data` (Go: DetectContentType).

    At most the first 512 bytes are looked at. There is always an answer: for want of a
    better one `text/plain; charset=utf-8` when no byte is binary (an empty body included),
    else `application/octet-stream`.

        detect_content_type(b"<!DOCTYPE html>")  # 'text/html; charset=utf-8'
    """
    if type(data) is not bytes:
        data = bytes(memoryview(data).cast("B")[:SNIFF_LENGTH])
    elif len(data) > SNIFF_LENGTH:
        data = data[:SNIFF_LENGTH]
    if not data:
        return _TEXT
    starts = _STARTS[data[0]]
    if starts is not None and data.startswith(starts):
        found = _match_signature(data)
        if found is not None:
            return found
    if len(data) < _SHORT:
        if not data.lstrip(_TEXT_BYTES):
            return _TEXT
    elif len(data.translate(None, _BINARY_BYTES)) == len(data):
        return _TEXT
    return "application/vnd.ms-fontobject" if data[34:36] == b"LP" else _BINARY


def _match_signature(data: bytes) -> str | None:
    if _html_tag(data):
        return "text/html; charset=utf-8"
    if _xml(data):
        return "text/xml; charset=utf-8"
    # The mark and one more character: two bytes alone may be anything.
    if len(data) >= 4:
        if data.startswith(b"\xfe\xff"):
            return "text/plain; charset=utf-16be"
        if data.startswith(b"\xff\xfe"):
            return "text/plain; charset=utf-16le"
    for prefix, kind in _PREFIXES:
        if data.startswith(prefix):
            return kind
    for container, form, kind in _CONTAINERS:
        if data.startswith(container) and data.startswith(form, 8):
            return kind
    return "video/mp4" if _is_mp4(data) else None


def _is_mp4(data: bytes) -> bool:
    """An `ftyp` box that lists an `mp4` brand (WHATWG MIME sniffing section 6.2.1)."""
    if len(data) < 12 or data[4:8] != b"ftyp":
        return False
    size = int.from_bytes(data[:4], "big")
    if len(data) < size or size % 4:
        return False
    # Offset 12 is the minor version, a number that may look like a brand.
    return any(data.startswith(b"mp4", at) for at in range(8, size, 4) if at != 12)
