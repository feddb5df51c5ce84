"""Answers without an end, bombs and answers that come too late: an error in time, and little memory."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.util
import random
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http
from prefork.http.client.response_head import MAX_HEADER_LINES
from prefork.http.errors import (
    BodyTooLarge,
    ClientTimeout,
    ConnectionLost,
    MalformedResponse,
    ResponseHeaderTimeout,
    TransportError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., Any]

_spec = importlib.util.spec_from_file_location(
    "helpers_responses", Path(__file__).with_name("helpers_responses.py")
)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
Player, Socketless, settle = helpers.Player, helpers.Socketless, helpers.settle

GZIPPED = "Content-Encoding: gzip"
HELLO = gzip.compress(b"hello", mtime=0).decode("latin-1")


def head(*fields: str, line: str = "HTTP/1.1 200 OK") -> str:
    return "\r\n".join([line, *fields, "", ""])


def sized(body: str, *fields: str) -> str:
    return head(*fields, f"Content-Length: {len(body)}") + body


def chunked(wire: str, *fields: str) -> str:
    return head("Transfer-Encoding: chunked", *fields) + wire


# --- without end ------------------------------------------------------------------------------


def endless(start: str, piece: str) -> Iterator[bytes]:
    """The start, and then pieces for ever, 64 KiB or so at a time."""
    yield start.encode("latin-1")
    more = piece.encode("latin-1")
    more *= max(1, 65536 // len(more))
    while True:
        yield more


ENDLESS: dict[str, tuple[str, str, type[TransportError], str]] = {
    "status line": ("HTTP/1.1 200 O", "K", MalformedResponse, "server response headers exceeded"),
    "header line": (head()[:-2] + "A: ", "b", MalformedResponse, "server response headers exceeded"),
    "header lines": (
        head()[:-2],
        "A: b\r\n",
        MalformedResponse,
        f"more than {MAX_HEADER_LINES} header lines",
    ),
    "long header lines": (
        *(head()[:-2], "A: " + "b" * 8000 + "\r\n", MalformedResponse),
        "server response headers exceeded",
    ),
    "interim responses": (
        "",
        "HTTP/1.1 103 X\r\n\r\n",
        MalformedResponse,
        "server response headers exceeded",
    ),
    "long interim responses": (
        *("", head("A: " + "b" * 5000, line="HTTP/1.1 103 X"), MalformedResponse),
        "server response headers exceeded",
    ),
    "chunk size": (chunked(""), "0", MalformedResponse, "header line too long"),
    "chunk extension": (chunked("5;"), "a", MalformedResponse, "header line too long"),
    "chunk extensions": (
        *(chunked(""), "1;" + "a" * 100 + "\r\nx\r\n", MalformedResponse),
        "chunked encoding contains too much non-data",
    ),
    "trailer": (chunked("0\r\nA: "), "b", MalformedResponse, "header line too long"),
    "trailers": (chunked("0\r\n"), "A: b\r\n", MalformedResponse, "suspiciously long trailer"),
    "chunks": (
        chunked(""),
        "100\r\n" + "x" * 256 + "\r\n",
        BodyTooLarge,
        "response body larger than 1048576 bytes",
    ),
    "body": (head(), "x", BodyTooLarge, "response body larger than 1048576 bytes"),
    "members of gzip that are empty": (
        head(GZIPPED),
        gzip.compress(b"", mtime=0).decode("latin-1"),
        *(BodyTooLarge, "response body larger than 1048576 bytes"),
    ),
    "gzip": (
        head(GZIPPED),
        gzip.compress(b"\0" * 5_000_000, mtime=0).decode("latin-1"),
        *(BodyTooLarge, "response body larger than 1048576 bytes"),
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_ends(name: str, run: Run) -> None:
    start, piece, kind, text = ENDLESS[name]

    async def scenario() -> None:
        player = Player(endless(start, piece))
        transport = http.Transport(proxy=None, max_response_header_bytes=1 << 20)
        client = http.Client(transport=transport, max_body_bytes=1 << 20)
        async with player.serving() as addr:
            tracemalloc.start()
            try:
                async with asyncio.timeout(10):
                    with pytest.raises(kind) as caught:
                        await client.get(f"http://{addr}/first")
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert text in caught.value.text
            assert caught.value.addr == addr
            assert peak < 8 << 20
            await player.ended(0)
            assert (await client.get(f"http://{addr}/second")).body == b"second-ok"
            await transport.close()

    run(scenario(), timeout=30)


def test_interim_responses_cost_little(run: Run) -> None:
    # Ten megabytes of them in large segments: the time grows with the bytes, not with their square.
    async def scenario() -> float:
        transport = Socketless()
        segment = b"HTTP/1.1 103 X\r\n\r\n" * 14000
        task = asyncio.ensure_future(transport.round_trip(http.Request("GET", "http://server.test/")))
        await settle()
        longest = 0.0
        while not transport.socket.closed:
            began = time.thread_time()
            transport.socket.get_protocol().data_received(segment)
            longest = max(longest, time.thread_time() - began)
        with pytest.raises(MalformedResponse, match="exceeded 10485760 bytes"):
            await task
        await settle()
        return longest

    assert run(scenario(), timeout=60) < 1.0


@pytest.mark.parametrize("seconds", [0.05])
def test_what_does_not_come_in_time(seconds: float, run: Run) -> None:
    async def scenario() -> None:
        for raw, kind, phase in (
            (b"", ResponseHeaderTimeout, "header"),
            (b"HTTP/1.1 200 OK\r\nA: b\r\n", ResponseHeaderTimeout, "header"),
            (b"HTTP/1.1 103 X\r\n\r\n", ResponseHeaderTimeout, "header"),
            (head("Content-Length: 9").encode() + b"hello", ClientTimeout, "body"),
            (chunked("5\r\nhel").encode(), ClientTimeout, "body"),
            (head().encode() + b"hello", ClientTimeout, "body"),
            (head(GZIPPED).encode() + HELLO.encode("latin-1")[:12], ClientTimeout, "body"),
        ):
            player = Player(raw)
            body = kind is ClientTimeout
            transport = http.Transport(proxy=None, response_header_timeout=None if body else seconds)
            client = http.Client(transport=transport, timeout=seconds if body else None)
            async with player.serving() as addr:
                with pytest.raises(kind) as caught:
                    await client.get(f"http://{addr}/first")
                assert (caught.value.phase, caught.value.addr) == (phase, addr)
                await player.ended(0)
                await transport.close()

    run(scenario())


# --- memory -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def asking(raw: Any, after: str = "hold", **options: Any) -> Any:
    """(client, URL) of a server that answers with `raw`."""
    transport = http.Transport(proxy=None)
    async with Player(raw, after).serving() as addr:
        try:
            yield http.Client(transport=transport, **options), f"http://{addr}/first"
        finally:
            await transport.close()


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """Fails when more than `size` bytes are allocated at once."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak <= size


def bomb(size: int) -> bytes:
    """`size` bytes of nothing, gzipped."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join([packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]) + packer.flush()
    return sized(packed.decode("latin-1"), GZIPPED).encode("latin-1")


def test_a_bomb_is_streamed_in_small_pieces(run: Run) -> None:
    raw = bomb(64 << 20)

    async def scenario() -> None:
        async with asking(raw, max_body_bytes=1 << 20) as (client, url):
            size = largest = 0
            with at_most(3 << 20):
                async with client.get(url) as response:
                    assert response.uncompressed
                    async for piece in response.body:
                        size += len(piece)
                        largest = max(largest, len(piece))
            assert size == 64 << 20
            assert largest <= 64 << 10
            with at_most(4 << 20):
                async with client.get(url) as response:  # and as many as are asked for
                    assert await response.body.read(10) == bytes(10)

    run(scenario(), timeout=30)


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_an_awaited_bomb_is_too_large(limit: int, run: Run) -> None:
    raw = bomb(64 << 20)

    async def scenario() -> None:
        async with asking(raw, max_body_bytes=limit) as (client, url):
            with at_most(4 << 20), pytest.raises(BodyTooLarge, match=f"larger than {limit} bytes") as caught:
                await client.get(url)
            assert caught.value.phase == "body"
            assert caught.value.addr
            assert caught.value.limit == limit

    run(scenario(), timeout=30)


def test_what_is_as_large_as_allowed_is_read(run: Run) -> None:
    data = random.Random(1).randbytes(300_000)
    packed = gzip.compress(data)
    assert len(packed) > len(data)

    async def scenario() -> None:
        for body, fields in ((data, ()), (packed, (GZIPPED,))):
            raw = sized(body.decode("latin-1"), *fields).encode("latin-1")
            async with asking(raw, max_body_bytes=len(data)) as (client, url):
                assert (await client.get(url)).body == data
            async with asking(raw, max_body_bytes=len(data) - 1) as (client, url):
                with pytest.raises(BodyTooLarge):
                    await client.get(url)

    run(scenario())


def test_a_length_allocates_nothing(run: Run) -> None:
    raw = head("Content-Length: 1000000000000").encode() + b"hello"

    async def scenario() -> None:
        async with asking(raw) as (client, url):
            with at_most(1 << 20), pytest.raises(BodyTooLarge):
                await client.get(url)
            async with client.get(url) as response:
                assert response.content_length == 10**12
                with at_most(1 << 20):
                    assert await response.body.read(100) == b"hello"
        async with asking(raw, "close", max_body_bytes=None) as (client, url):
            with at_most(1 << 20), pytest.raises(ConnectionLost, match="unexpected EOF"):
                await client.get(url)

    run(scenario())


@pytest.mark.parametrize(
    ("start", "piece", "end"),
    [
        (head(), b"x" * 65536, b""),
        (head("Content-Length: 131072"), b"x" * 65536, b""),
        (chunked(""), b"10000\r\n" + b"x" * 65536 + b"\r\n", b"0\r\n\r\n"),
    ],
    ids=["end", "length", "chunks"],
)
def test_who_does_not_read_stops_the_server(start: str, piece: bytes, end: bytes, run: Run) -> None:
    async def scenario() -> None:
        transport = Socketless(read_buffer_size=100_000)
        task = asyncio.ensure_future(transport.round_trip(http.Request("GET", "http://server.test/")))
        await settle()
        sock = transport.socket
        protocol = sock.get_protocol()
        protocol.data_received(start.encode())
        response = await task
        protocol.data_received(piece)
        assert not sock.paused
        protocol.data_received(piece[:-10])
        assert sock.paused
        reading = asyncio.ensure_future(response.body.read())
        await settle()
        assert not sock.paused  # somebody waits for more
        protocol.data_received(piece[-10:] + end)
        if start == head():
            protocol.eof_received()
            sock.close()
        assert await reading == b"x" * 131072
        await transport.close()

    run(scenario())


def test_the_loop_goes_on_while_a_bomb_is_decoded(run: Run) -> None:
    raw = bomb(32 << 20)

    async def scenario() -> None:
        async with asking(raw) as (client, url):
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counter = asyncio.ensure_future(count())
            async with client.get(url) as response:
                before = turns
                assert len(await response.body.read()) == 32 << 20
            counter.cancel()
            assert turns - before >= 30

    run(scenario(), timeout=30)


def test_reading_what_was_too_large_again_fails_again(run: Run) -> None:
    async def scenario() -> None:
        async with asking(sized("hello", "A: b").encode()) as (client, url), client.get(url) as response:
            response.body.limit = 3
            with pytest.raises(BodyTooLarge):
                await response.body.read()
            with pytest.raises(BodyTooLarge):
                await response.body.read()

    run(scenario())
