"""ChunkedDecoder: what it takes, what it refuses, and that the cuts between segments do not matter."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.http.errors import RemoteProtocolError
from prefork.http.message.framing import (
    FORBIDDEN_TRAILERS,
    LAST_CHUNK,
    MAX_CHUNK_LINE,
    MAX_EXCESS,
    ChunkedDecoder,
    format_chunk,
    is_trailer_name,
)

Verdict = tuple[bytes, bool, bytes, list[tuple[str, str]]]


def decode(*pieces: bytes, decoder: ChunkedDecoder | None = None) -> Verdict:
    """(data, done, rest, trailer lines) of a message fed in these pieces; stops when it is done."""
    d = decoder or ChunkedDecoder()
    data = b""
    rest = b""
    for piece in pieces:
        if d.done:
            rest += piece
        else:
            data += d.feed(piece)
            rest = d.rest
    return data, d.done, rest, d.trailer_lines


def bytewise(message: bytes) -> Verdict:
    return decode(*[message[i : i + 1] for i in range(len(message))])


GOOD = {
    "empty": (b"0\r\n\r\n", b"", []),
    "one": (b"5\r\nhello\r\n0\r\n\r\n", b"hello", []),
    "two": (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world", []),
    "hexadecimal, either case": (
        b"a\r\n0123456789\r\nA\r\n9876543210\r\n0\r\n\r\n",
        b"01234567899876543210",
        [],
    ),
    "leading zeros": (b"0005\r\nhello\r\n0\r\n\r\n", b"hello", []),
    "16 digits": (b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello", []),
    "CRLF in the data": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", []),
    "a chunk that looks like an end": (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n", []),
    "extension": (b"5;a=b\r\nhello\r\n0;c\r\n\r\n", b"hello", []),
    "quoted extension": (b'5;a="b;c \t\xff"\r\nhello\r\n0\r\n\r\n', b"hello", []),
    "empty extension": (b"5;\r\nhello\r\n0\r\n\r\n", b"hello", []),
    "blank before the extension": (b"5 \t;a\r\nhello\r\n0\r\n\r\n", b"hello", []),
    "trailer": (b"0\r\nX-Sum: 1\r\n\r\n", b"", [("X-Sum", "1")]),
    "trailers": (
        b"1\r\na\r\n0\r\nx:\r\nY: \t b c \t\r\nx: d:e\r\n\r\n",
        b"a",
        [("x", ""), ("Y", "b c"), ("x", "d:e")],
    ),
    "obs-text in a trailer": (b"0\r\nX: \xc3\xa9\xff\r\n\r\n", b"", [("X", "é\udcff")]),
    "all bytes": (b"100\r\n" + bytes(range(256)) + b"\r\n0\r\n\r\n", bytes(range(256)), []),
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    message, data, trailers = GOOD[name]
    assert decode(message) == (data, True, b"", trailers)
    assert decode(message + b"GET / HTTP/1.1") == (data, True, b"GET / HTTP/1.1", trailers)
    assert bytewise(message) == (data, True, b"", trailers)
    for cut in range(len(message)):
        assert decode(message[:cut])[1] is False, "an unfinished message waits"
        assert decode(message[:cut], message[cut:] + b"!") == (data, True, b"!", trailers)


BAD = {
    # Sizes.
    "no size": (b"\r\nhello", "empty hex number for chunk length"),
    "no size but an extension": (b";a\r\nhello", "empty hex number for chunk length"),
    "space first": (b" 5\r\nhello", "invalid byte in chunk length"),
    "tab first": (b"\t5\r\nhello", "invalid byte in chunk length"),
    "space behind": (b"5 \r\nhello", "invalid byte in chunk length"),
    "sign": (b"+5\r\nhello", "invalid byte in chunk length"),
    "minus": (b"-5\r\nhello", "invalid byte in chunk length"),
    "minus zero": (b"-0\r\n\r\n", "invalid byte in chunk length"),
    "prefix": (b"0x5\r\nhello", "invalid byte in chunk length"),
    "underscore": (b"1_0\r\n0123456789abcdef", "invalid byte in chunk length"),
    "no digit": (b"g\r\n", "invalid byte in chunk length"),
    "digit of another script": (b"\xd9\xa5\r\nhello", "invalid byte in chunk length"),
    "comma": (b"5,a\r\nhello", "invalid byte in chunk length"),
    "NUL": (b"5\0\r\nhello", "invalid byte in chunk length"),
    "17 digits": (b"00000000000000005\r\nhello", "http chunk length too large"),
    "above 2^63": (b"8000000000000000\r\n", "http chunk length too large"),
    "2^64-1": (b"ffffffffffffffff\r\n", "http chunk length too large"),
    "2^64+5": (b"10000000000000005\r\nhello", "http chunk length too large"),
    # Line ends.
    "bare LF": (b"5\nhello\r\n0\r\n\r\n", "chunked line ends with bare LF"),
    "bare CR": (b"5\rhello", "invalid CR in chunked line"),
    "CR CR LF": (b"5\r\r\nhello", "invalid CR in chunked line"),
    "CR and something": (b"5\rX\nhello\r\n", "invalid CR in chunked line"),
    "CR in an extension": (b"5;a\rb\r\nhello", "invalid CR in chunked line"),
    "LF in an extension": (b"5;a\nb\r\nhello", "chunked line ends with bare LF"),
    "NUL in an extension": (b"5;a\0b\r\nhello", "invalid byte in chunk length"),
    "bare LF behind the last chunk": (b"0\n\r\n", "chunked line ends with bare LF"),
    "bare LF at the end": (b"0\r\n\n", "chunked line ends with bare LF"),
    "bare CR at the end": (b"0\r\n\rX", "invalid CR in chunked line"),
    # Behind the data.
    "too much data": (b"5\r\nhelloo\r\n0\r\n\r\n", "malformed chunked encoding"),
    "nothing behind the data": (b"5\r\nhello0\r\n\r\n", "malformed chunked encoding"),
    "bare LF behind the data": (b"5\r\nhello\n0\r\n\r\n", "malformed chunked encoding"),
    "bare CR behind the data": (b"5\r\nhello\r0\r\n\r\n", "malformed chunked encoding"),
    "two bytes behind the data": (b"5\r\nhelloXX0\r\n\r\n", "malformed chunked encoding"),
    # Trailers.
    "trailer without a colon": (b"0\r\nfoo\r\n\r\n", "malformed trailer line"),
    "trailer without a name": (b"0\r\n: a\r\n\r\n", "malformed trailer line"),
    "blank before the colon": (b"0\r\nX : a\r\n\r\n", "malformed trailer line"),
    "folded trailer": (b"0\r\nX: a\r\n b\r\n\r\n", "malformed trailer line"),
    "trailer name": (b"0\r\nX(: a\r\n\r\n", "malformed trailer line"),
    "trailer name beyond ASCII": (b"0\r\nX\xc3\xa9: a\r\n\r\n", "malformed trailer line"),
    "NUL in a trailer": (b"0\r\nX: a\0b\r\n\r\n", "malformed trailer line"),
    "DEL in a trailer": (b"0\r\nX: a\x7fb\r\n\r\n", "malformed trailer line"),
    "CR in a trailer": (b"0\r\nX: a\rb\r\n\r\n", "invalid CR in chunked line"),
    "bare LF in a trailer": (b"0\r\nX: a\nY: b\r\n\r\n", "chunked line ends with bare LF"),
    "Content-Length": (b"0\r\nContent-Length: 5\r\n\r\n", "bad trailer key"),
    "content-length": (b"0\r\ncontent-length: 5\r\n\r\n", "bad trailer key"),
    "Transfer-Encoding": (b"0\r\nTRANSFER-ENCODING: chunked\r\n\r\n", "bad trailer key"),
    "Trailer": (b"0\r\nTrailer: X\r\n\r\n", "bad trailer key"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    message, text = BAD[name]
    with pytest.raises(RemoteProtocolError) as caught:
        decode(message)
    assert (caught.value.text, caught.value.status_hint) == (text, 400)
    with pytest.raises(RemoteProtocolError) as caught:
        bytewise(message)
    assert (caught.value.text, caught.value.status_hint) == (text, 400), "byte by byte it is the same error"


@pytest.mark.parametrize("behind", [b"X", b"\n", b"0", b"\r\r"])
def test_what_is_behind_the_data_is_refused_at_its_first_byte(behind: bytes) -> None:
    d = ChunkedDecoder()
    assert d.feed(b"2\r\nab") == b"ab"
    with pytest.raises(RemoteProtocolError, match="malformed chunked encoding"):
        d.feed(behind)


def test_a_line_that_cannot_become_right_is_refused_before_its_end() -> None:
    for beginning in (b"x", b" ", b"\r", b"1\rx", b";"):
        with pytest.raises(RemoteProtocolError):
            ChunkedDecoder().feed(beginning)
    for beginning in (b"1", b"fffffffff", b"5;a", b"5\r"):
        assert ChunkedDecoder().feed(beginning) == b""


def test_a_line_of_the_longest_length_and_one_more() -> None:
    def line(length: int) -> bytes:
        return b"1;" + b"a" * (length - 2)

    assert decode(line(MAX_CHUNK_LINE) + b"\r\nx\r\n0\r\n\r\n") == (b"x", True, b"", [])
    with pytest.raises(RemoteProtocolError, match="header line too long"):
        decode(line(MAX_CHUNK_LINE + 1) + b"\r\nx\r\n0\r\n\r\n")
    with pytest.raises(RemoteProtocolError, match="header line too long"):
        # Its end has not come, and may never.
        decode(line(MAX_CHUNK_LINE + 3))
    with pytest.raises(RemoteProtocolError, match="header line too long"):
        bytewise(line(MAX_CHUNK_LINE + 3))


def test_trailers_are_limited_in_bytes_and_in_lines() -> None:
    def limited() -> ChunkedDecoder:
        return ChunkedDecoder(max_trailer_bytes=30, max_trailer_lines=3)

    three = b"0\r\na: 1\r\nb: 2\r\nc: 3\r\n\r\n"
    assert decode(three, decoder=limited())[1:3] == (True, b"")
    for message in (
        b"0\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\n\r\n",  # lines
        b"0\r\na: 0123456789\r\nb: 01234567890\r\n\r\n",  # bytes of all
    ):
        with pytest.raises(RemoteProtocolError, match="suspiciously long trailer") as caught:
            decode(message, decoder=limited())
        assert caught.value.status_hint == 431
    with pytest.raises(RemoteProtocolError, match="header line too long"):
        decode(b"0\r\na: " + b"x" * 40, decoder=limited())  # bytes of one, before its end


@pytest.mark.parametrize(("extension", "excess"), [(1, 0), (15, 0), (16, 1), (20, 5), (100, 85)])
def test_framing_costs_no_more_than_the_budget(extension: int, excess: int) -> None:
    # One byte per chunk: 16 bytes and twice the data are free for each, MAX_EXCESS for all.
    d = ChunkedDecoder()
    chunk = b"1;" + b"x" * (extension - 1) + b"\r\nx\r\n"
    if not excess:
        assert d.feed(chunk * 20_000) == b"x" * 20_000
        return
    affordable = MAX_EXCESS // excess
    assert d.feed(chunk * affordable) == b"x" * affordable
    with pytest.raises(RemoteProtocolError, match="too much non-data"):
        d.feed(chunk)


def test_real_data_pays_for_its_framing() -> None:
    d = ChunkedDecoder()
    for _ in range(300):
        assert d.feed(b"800;" + b"x" * 2000 + b"\r\n" + b"d" * 2048 + b"\r\n") == b"d" * 2048


# --- properties -----------------------------------------------------------------------------

TOKENS = st.text("abcXYZ019-_!~", min_size=1, max_size=8).filter(
    lambda name: name.lower() not in ("trailer",)  # the others have letters that are not in the alphabet
)
VALUES = st.text('abc \t:;,="\x80é', max_size=12).map(lambda value: value.strip(" \t"))
EXTENSIONS = st.one_of(st.just(b""), st.sampled_from([b";a", b";a=b", b' ;q="\\"x"', b";", b"\t;\xe9\xff"]))


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, bytes, list[tuple[str, str]]]:
    """A valid chunked message, its data, its trailer lines."""
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    wire = []
    for chunk in chunks:
        size = draw(st.sampled_from([b"%x", b"%X", b"%04x", b"%016X"])) % len(chunk)
        wire.append(size + draw(EXTENSIONS) + b"\r\n" + chunk + b"\r\n")
    wire.append(draw(st.sampled_from([b"0", b"00", b"0" * 16])) + draw(EXTENSIONS) + b"\r\n")
    trailers = draw(st.lists(st.tuples(TOKENS, VALUES), max_size=4))
    for name, value in trailers:
        blank = draw(st.sampled_from(["", " ", "\t "]))
        wire.append(f"{name}:{blank}{value}{blank}\r\n".encode())
    wire.append(b"\r\n")
    return b"".join(wire), b"".join(chunks), trailers


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


PLACES = st.lists(st.integers(0, 10_000), max_size=8)


@settings(max_examples=150, deadline=None)
@given(messages(), PLACES, st.binary(max_size=10))
def test_any_cuts_give_the_same_message(
    message: tuple[bytes, bytes, list[tuple[str, str]]], places: list[int], rest: bytes
) -> None:
    wire, data, trailers = message
    assert decode(*cut(wire + rest, places)) == (data, True, rest, trailers)
    assert bytewise(wire + rest) == (data, True, rest, trailers)


GARBAGE = st.one_of(
    st.binary(max_size=60),
    st.text("0123456789abcfF;\r\n :-x", max_size=60).map(str.encode),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid message with a few of its bytes changed, left out or doubled."""
    wire = bytearray(draw(messages())[0])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(wire) - 1)) if wire else 0
        how = draw(st.sampled_from(["change", "drop", "double", "insert"]))
        if how == "change" and wire:
            wire[place] = draw(st.sampled_from(b"\r\n\0 ;0aG\xff"))
        elif how == "drop":
            del wire[place : place + draw(st.integers(1, 3))]
        elif how == "double":
            wire[place:place] = wire[place : place + draw(st.integers(1, 3))]
        else:
            wire[place:place] = draw(st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"0\r\n\r\n", b"-"]))
    return bytes(wire)


@settings(max_examples=400, deadline=None)
@given(st.one_of(GARBAGE, damaged()), PLACES)
def test_garbage_ends_in_an_error_or_waits_whatever_the_cuts(garbage: bytes, places: list[int]) -> None:
    verdicts: list[object] = []
    for pieces in ([garbage], [garbage[i : i + 1] for i in range(len(garbage))], cut(garbage, places)):
        try:
            verdicts.append(decode(*pieces))
        except RemoteProtocolError as error:
            verdicts.append((error.text, error.status_hint))
    assert verdicts[0] == verdicts[1] == verdicts[2]


def test_bytes_cost_the_same_wherever_they_are() -> None:
    # 64 KiB byte by byte: as data, and as one long trailer line, whose beginning must not be looked
    # at again for each byte. Quadratic cost would be a hundred times this bound.
    def seconds(start: bytes, byte: bytes) -> float:
        d = ChunkedDecoder(max_trailer_bytes=1 << 20)
        d.feed(start)
        begun = time.process_time()
        for _ in range(65536):
            d.feed(byte)
        return time.process_time() - begun

    assert seconds(b"10000\r\n", b"x") < 1.5
    assert seconds(b"0\r\nX: ", b"x") < 1.5


# --- sending --------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=100), max_size=5))
def test_what_we_send_is_what_we_read(pieces: list[bytes]) -> None:
    wire = b"".join(format_chunk(len(piece)) + piece + b"\r\n" for piece in pieces) + LAST_CHUNK
    assert decode(wire) == (b"".join(pieces), True, b"", [])


@pytest.mark.parametrize("name", sorted(FORBIDDEN_TRAILERS))
def test_fields_that_mean_framing_routing_or_authority_are_no_trailers(name: str) -> None:
    assert not is_trailer_name(name)
    assert not is_trailer_name(name.title())
    assert not is_trailer_name(name.upper())


def test_other_fields_are_trailers() -> None:
    for name in ("X-Checksum", "Server-Timing", "Etag", "Content-Md5", "Iffy", "X-If-Match", "Location"):
        assert is_trailer_name(name)
    for name in ("If-Match", "if-none-match", "IF-RANGE", "If-Anything"):
        assert not is_trailer_name(name), "conditions come too late in a trailer"
