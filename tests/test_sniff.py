"""Content sniffing: every signature, its near misses, and the text rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.message.sniff import SNIFF_LENGTH, detect_content_type

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
BINARY = "application/octet-stream"

SIGNATURES = [
    (b"%PDF-1.7", "application/pdf"),
    (b"%!PS-Adobe-3.0", "application/postscript"),
    (b"\xfe\xff\x00a", "text/plain; charset=utf-16be"),
    (b"\xff\xfea\x00", "text/plain; charset=utf-16le"),
    (b"\xef\xbb\xbfhello", TEXT),
    (b"\xef\xbb\xbf\x00", TEXT),
    (b"\x00\x00\x01\x00", "image/x-icon"),
    (b"\x00\x00\x02\x00", "image/x-icon"),
    (b"BM6", "image/bmp"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a\x00", "image/gif"),
    (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
    (b"\x89PNG\r\n\x1a\n\x00", "image/png"),
    (b"\xff\xd8\xff\xe0", "image/jpeg"),
    (b"FORM\x00\x00\x00\x00AIFF", "audio/aiff"),
    (b"ID3\x04", "audio/mpeg"),
    (b"OggS\x00", "application/ogg"),
    (b"MThd\x00\x00\x00\x06", "audio/midi"),
    (b"RIFF1234AVI LIST", "video/avi"),
    (b"RIFF1234WAVEfmt ", "audio/wave"),
    (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom", "video/mp4"),
    (b"\x00\x00\x00\x14ftypisom\x00\x00\x00\x00mp41", "video/mp4"),
    (b"\x1aE\xdf\xa3", "video/webm"),
    (b"\x00\x01\x00\x00", "font/ttf"),
    (b"OTTO\x00", "font/otf"),
    (b"ttcf\x00", "font/collection"),
    (b"wOFF\x00", "font/woff"),
    (b"wOF2\x00", "font/woff2"),
    (bytes(34) + b"LP", "application/vnd.ms-fontobject"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
    (b"PK\x03\x04", "application/zip"),
    (b"Rar!\x1a\x07\x00", "application/x-rar-compressed"),
    (b"Rar!\x1a\x07\x01\x00", "application/x-rar-compressed"),
    (b"\x00asm\x01", "application/wasm"),
    (b"<?xml version='1.0'?>", "text/xml; charset=utf-8"),
    (b"\n <?xml", "text/xml; charset=utf-8"),
]

TAGS = ["!DOCTYPE HTML", "HTML", "HEAD", "SCRIPT", "IFRAME", "H1", "DIV", "FONT", "TABLE", "A"] + [
    "STYLE",
    "TITLE",
    "B",
    "BODY",
    "BR",
    "P",
    "!--",
]


@pytest.mark.parametrize(("data", "kind"), SIGNATURES)
def test_signature(data: bytes, kind: str) -> None:
    assert detect_content_type(data) == kind
    assert detect_content_type(data + bytes(1000)) == kind


@pytest.mark.parametrize("tag", TAGS)
def test_tag(tag: str) -> None:
    for spelling in (tag.encode(), tag.lower().encode()):
        for before in (b"", b" ", b"\r\n\t\x0c "):
            for after in (b">", b" "):
                assert detect_content_type(before + b"<" + spelling + after) == HTML
        for after in (b"", b"x", b"\t", b"/"):
            # One tag may begin with another: "<b" is in "<br>".
            assert detect_content_type(b"<" + spelling + after) == TEXT


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", TEXT),
        (b"pong", TEXT),
        (b'{"a": 1}', TEXT),
        (b"[1, 2]", TEXT),
        (b"alert(1)", TEXT),
        ("é".encode(), TEXT),
        (b"\xe9", TEXT),  # not valid UTF-8, but no binary byte either
        (b"\x1b[0m", TEXT),
        (b"\t\r\n\x0c", TEXT),
        (b"\x00", BINARY),
        (b"a\x00", BINARY),
        (b"\x7f", TEXT),
        (b"BM\x00"[:1], TEXT),
        (b"GIF88a", TEXT),
        (b"GIF87", TEXT),
        (b"Rar \x1a\x07\x00", BINARY),
        (b"PK\x03", BINARY),
        (b"\xfe\xff\x00", BINARY),
        (b"RIFF1234WEBP", TEXT),
        (b"RIFF12345WAVE", TEXT),
        (b"\x1f\x8b", BINARY),
        (b"owow\x00", BINARY),
        (b"\x00\x00\x00\x18ftypheic", BINARY),
        (b"\x00\x00\x00\x1cftypisom\x00\x00\x02\x00isommp42", BINARY),  # the box is longer than the data
        (b"\x00\x00\x00\x10ftypisommp42", BINARY),  # that is its minor version
        (b"\x00\x00\x00\x0bftypmp4", BINARY),
        (b"x" * 34 + b"LP", TEXT),  # a text with these letters is no font
        (b"x" * 33 + b"\x00LP", "application/vnd.ms-fontobject"),
    ],
)
def test_text_or_binary(data: bytes, kind: str) -> None:
    assert detect_content_type(data) == kind


def test_only_the_first_512_bytes_count() -> None:
    assert detect_content_type(b"a" * SNIFF_LENGTH + b"\x00") == TEXT
    assert detect_content_type(b"a" * (SNIFF_LENGTH - 1) + b"\x00") == BINARY
    assert detect_content_type(b" " * (SNIFF_LENGTH - 6) + b"<html>") == HTML
    assert detect_content_type(b" " * (SNIFF_LENGTH - 5) + b"<html>") == TEXT


def test_any_buffer() -> None:
    for make in (bytearray, memoryview):
        assert detect_content_type(make(b"GIF89a")) == "image/gif"
        assert detect_content_type(make(b"")) == TEXT
        assert detect_content_type(make(b"a" * SNIFF_LENGTH + b"\x00")) == TEXT


BINARY_BYTES = {*range(0x09), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)}


@given(st.binary(max_size=120).map(lambda data: b"x" + data))
def test_text_means_no_binary_byte(data: bytes) -> None:
    want = BINARY if BINARY_BYTES & set(data) else TEXT
    if data[34:36] == b"LP" and want == BINARY:
        want = "application/vnd.ms-fontobject"
    assert detect_content_type(data) == want


@given(st.binary(max_size=600))
def test_there_is_always_an_answer(data: bytes) -> None:
    kind = detect_content_type(data)
    assert "/" in kind
    assert detect_content_type(bytearray(data)) == kind


@pytest.mark.parametrize("byte", sorted(BINARY_BYTES))
def test_each_binary_byte_in_short_and_long_data(byte: int) -> None:
    for size in (1, 40, 60, 400):
        assert detect_content_type(b"x" * size + bytes([byte])) == BINARY
