"""Deadlines of an exchange; how the body of a response ends: read, closed, forgotten, in trailers, gzip."""

from __future__ import annotations

import asyncio
import gc
import gzip
import importlib.util
import os
import resource
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http
from prefork.http.client import persist_conn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_spec = importlib.util.spec_from_file_location(
    "helpers_transport", Path(__file__).with_name("helpers_transport.py")
)
assert _spec is not None
assert _spec.loader is not None
h: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(h)

Run = "Callable[..., Any]"
both_loops = pytest.mark.both_loops

HEAD = "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n"
CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


# --- deadlines -------------------------------------------------------------------------------------------


async def silent(line: Any) -> None:
    await line.request()
    await line.closed()


@both_loops
def test_response_header_timeout(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(silent) as peer, h.transport(response_header_timeout=0.05) as sender:
            error = await h.failure(sender.round_trip(peer.get()), http.ResponseHeaderTimeout)
            assert str(error) == "net/http: timeout awaiting response headers"
            assert isinstance(error, TimeoutError)
            assert (error.phase, error.retryable, error.addr) == ("header", False, f"127.0.0.1:{peer.port}")
            await peer.all_closed()
            h.check_pool(sender)

    run(main())


@both_loops
@pytest.mark.parametrize("slow", ["request", "response"])
def test_response_header_timeout_is_for_the_header_only(run: Run, slow: str) -> None:
    async def server(line: Any) -> None:
        await line.request()
        line.send(HEAD.format(4) + "sl")
        if slow == "response":
            await asyncio.sleep(0.15)
        line.send("ow")
        await h.answering(line)

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        if slow == "request":
            await asyncio.sleep(0.15)
        yield b"y"

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(server) as peer, h.transport(response_header_timeout=0.05) as sender:
            assert await h.whole(sender, peer.post(body())) == (200, b"slow")
            assert await h.whole(sender, peer.get()) == (200, b"0 GET / ")

    run(main())


async def half_a_head(line: Any) -> None:
    await line.request()
    line.send("HTTP/1.1 200 OK\r\nContent-Le")
    await line.closed()


async def half_a_body(line: Any) -> None:
    await line.request()
    line.send(HEAD.format(10) + "half ")
    await line.closed()


async def deaf(line: Any) -> None:
    await line.peer.wake.wait()


@both_loops
@pytest.mark.parametrize("header_timeout", [None, 20.0])
@pytest.mark.parametrize(
    ("phase", "server"),
    [("header", silent), ("header", half_a_head), ("body", half_a_body), ("write", deaf)],
)
def test_the_deadline_of_an_exchange(run: Run, phase: str, server: Any, header_timeout: float | None) -> None:
    """Whatever the exchange waits for, and whatever other timeouts there are."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(server) as peer, h.transport(response_header_timeout=header_timeout) as sender:
            peer.wake = asyncio.Event()
            loop = asyncio.get_running_loop()
            began = loop.time()
            request = peer.post(b"x" * 20_000_000) if phase == "write" else peer.get()
            h.deadline(request, 0.1)
            error = await h.failure(h.whole(sender, request), http.ClientTimeout)
            assert isinstance(error, TimeoutError)
            assert "context deadline exceeded" in str(error)
            assert (error.phase, error.retryable) == (phase, False)
            assert error.addr == f"127.0.0.1:{peer.port}"
            assert loop.time() - began < 5
            peer.wake.set()
            await peer.all_closed()
            h.check_pool(sender)

    run(main())


@both_loops
def test_the_deadline_of_a_dial(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        with h.dial.deaf() as port:
            async with h.transport() as sender:
                request = h.deadline(http.Request("GET", f"http://127.0.0.1:{port}/"), 0.1)
                error = await h.failure(sender.round_trip(request), http.ClientTimeout)
                assert (error.phase, error.retryable) == ("dial", True)
                assert error.addr == f"127.0.0.1:{port}"
                assert sender.stats().waiting == 0
                assert sender.stats().dialing == 1  # it may serve another request

    run(main())


@both_loops
def test_the_deadline_of_a_handshake(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(deaf) as peer, h.transport(tls_config=h.dial.trusting()) as sender:
            peer.wake = asyncio.Event()
            request = h.deadline(http.Request("GET", f"https://127.0.0.1:{peer.port}/"), 0.1)
            error = await h.failure(sender.round_trip(request), http.ClientTimeout)
            assert (error.phase, error.retryable) == ("tls", True)
            await sender.close()
            peer.wake.set()

    run(main())


@both_loops
def test_a_deadline_that_has_passed_already(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport() as sender:
            for _ in range(2):
                request = h.deadline(peer.get(), -1)
                await h.failure(sender.round_trip(request), http.ClientTimeout)
                await h.whole(sender, peer.get())
            h.check_pool(sender)

    run(main())


# --- the ways a response's body ends ------------------------------------------------------------


@both_loops
@pytest.mark.parametrize(
    ("length", "sent_later", "kept"),
    [
        ("100000", 99_000, True),
        ("262144", 261_000, True),
        ("262145", 0, False),  # known to be too long
        ("chunked", 200_000, True),
        ("chunked", 400_000, False),
        ("chunked stall", 0, False),  # not within 50 ms
        ("eof", 0, False),
    ],
)
@pytest.mark.parametrize("held", [True, False])
def test_close_before_the_end_of_the_body(
    run: Run, length: str, sent_later: int, kept: bool, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short rest is read for the sake of the connection, whether or not the response is kept."""
    if "stall" not in length:
        monkeypatch.setattr(persist_conn, "DRAIN_TIME", 5.0)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        closed = asyncio.Event()

        async def server(line: Any) -> None:
            await line.request()
            if length.isdigit():
                line.send(HEAD.format(length) + "x" * 1000)
                await closed.wait()
                line.send("x" * (int(length) - 1000))
            elif length == "eof":
                line.send("HTTP/1.1 200 OK\r\n\r\nx")
                await line.closed()
            else:
                line.send(CHUNKED + "1\r\nx\r\n")
                await closed.wait()
                for _ in range(sent_later // 1000):
                    line.send("3e8\r\n" + "x" * 1000 + "\r\n")
                if "stall" in length:
                    await line.closed()
                else:
                    line.send("0\r\n\r\n")
            await h.answering(line)

        async with h.peer(server) as peer, h.transport() as sender:
            response = await sender.round_trip(peer.get())
            body = response.body
            assert (await body.read(1)) == b"x"
            response.close()
            response.close()
            error = await h.failure(body.read(), http.LocalProtocolError)
            assert str(error) == "http: read on closed response body"
            if not held:
                del response, body
                gc.collect()
            closed.set()
            await h.until(lambda: sender.stats().active == 0)
            assert sender.stats().idle == kept
            if kept:
                assert await h.whole(sender, peer.get()) == (200, b"0 GET / ")
            else:
                await peer.all_closed()
            h.check_pool(sender)

    run(main())


@both_loops
def test_a_body_that_nobody_closes(run: Run) -> None:
    """It says so, and its connection is closed."""

    async def server(line: Any) -> None:
        received = await line.request()
        coding = "Content-Encoding: gzip\r\n" if received.target == "/gunzip" else ""
        if received.target == "/chunked":
            line.send(CHUNKED + "4\r\nhalf\r\n")
        else:
            line.send(f"HTTP/1.1 200 OK\r\n{coding}Content-Length: 10\r\n\r\n" + "half ")
        await line.closed()

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(server) as peer, h.transport() as sender:
            for path in ("/", "/chunked", "/gunzip", "/body"):
                response = await sender.round_trip(peer.get(path))
                if path == "/body":
                    await response.body.read(1)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    await asyncio.sleep(0)  # the loop itself holds it until then
                    del response
                assert [w.category for w in caught] == [ResourceWarning], path
                assert "neither read to its end nor closed: <PersistConn http://127.0.0.1" in str(
                    caught[0].message
                )
                await peer.all_closed()
                assert sender.stats().active == 0
                assert not h.only_pool(sender).conns
            assert len(peer.lines) == 4

    run(main())


@both_loops
def test_a_body_that_is_complete_may_be_forgotten(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer() as peer, h.transport() as sender:
            for size in (0, 10, 60_000):
                response = await sender.round_trip(peer.post(b"x" * size))
                await h.until(lambda: sender.stats().idle == 1)
                del response
                gc.collect()
            response = await sender.round_trip(peer.post(b"x" * 10))
            response.close()
            assert sender.stats().idle == 1
            assert len(peer.lines) == 1

    run(main())


@both_loops
def test_a_slow_reader_slows_the_server(run: Run) -> None:
    """50 MiB through 64 KiB: what is not read stays with the server, and memory is flat."""
    total = 50 << 20

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        sent = 0

        async def firehose(line: Any) -> None:
            nonlocal sent
            await line.request()
            line.send(HEAD.format(total))
            piece = b"x" * 65536
            for _ in range(total // 65536):
                line.send(piece)
                await line.drain()
                sent += 65536
            await h.answering(line)

        async with h.peer(firehose) as peer, h.transport() as sender:
            response = await sender.round_trip(peer.get())
            body = response.body
            before = None
            while before != sent:  # until the server cannot send any more
                before = sent
                await asyncio.sleep(0.05)
            assert sent < 20 << 20  # kernels' buffers
            assert body.waiting_bytes <= sender.read_buffer_size + (256 << 10)
            assert h.only_pool(sender).conns.copy().pop()._reading_paused
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            received = 0
            while data := await body.read(100_000):
                received += len(data)
                assert body.waiting_bytes <= sender.read_buffer_size + (256 << 10)
            assert received == total
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 16 << 10
            assert await h.whole(sender, peer.get()) == (200, b"0 GET / ")

    run(main())


@both_loops
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_paused_connection_is_read_again_by_the_next_request(run: Run, coding: str) -> None:
    """The end of a body may come in a piece that is more than its reader wants to have waiting."""

    async def server(line: Any) -> None:
        while (received := await line.request()) is not None:
            if received.target == "/next":
                line.reply("next")
            elif coding == "length":
                line.send(HEAD.format(200_000))
                line.send("x" * 200_000)
            else:
                line.send(CHUNKED)
                line.send("30d40\r\n" + "x" * 200_000 + "\r\n0\r\n\r\n")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(server) as peer, h.transport(read_buffer_size=1000) as sender:
            for _ in range(20):
                async with await sender.round_trip(peer.get()) as response:
                    await asyncio.sleep(0)
                    size = 0
                    async for piece in response.body:
                        size += len(piece)
                        await asyncio.sleep(0)
                    assert size == 200_000
                assert await h.whole(sender, peer.get("/next")) == (200, b"next")
            assert len(peer.lines) == 1

    run(main())


# --- trailers, gzip ----------------------------------------------------------------------


@both_loops
def test_trailers_of_a_response(run: Run) -> None:
    async def server(line: Any) -> None:
        while (received := await line.request()) is not None:
            assert "trailer" not in received.fields
            line.send(CHUNKED.replace("\r\n\r\n", "\r\nTrailer: X-Sum, X-Other\r\n\r\n") + "3\r\nabc\r\n")
            if received.target == "/split":
                await line.drain()
                await asyncio.sleep(0.01)
            line.send("0\r\nX-Sum: 3\r\nX-Sum: again\r\n\r\n")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(server) as peer, h.transport() as sender:
            for path in ("/", "/split"):
                async with await sender.round_trip(peer.get(path)) as response:
                    assert response.transfer_encoding == ["chunked"]
                    assert response.content_length == -1
                    assert "Trailer" not in response.header
                    assert await response.body.read() == b"abc"
                    assert response.trailer.values("X-Sum") == ["3", "again"]
            assert len(peer.lines) == 1

    run(main())


@both_loops
@pytest.mark.parametrize("framing", ["length", "chunked", "eof"])
@pytest.mark.parametrize("pieces", [1, 7])
def test_gzip(run: Run, framing: str, pieces: int) -> None:
    text = os.urandom(20_000).hex().encode()
    data = gzip.compress(text)

    async def server(line: Any) -> None:
        while (received := await line.request()) is not None:
            assert received.fields["accept-encoding"] == "gzip"
            head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n"
            if framing == "length":
                line.send(head + f"Content-Length: {len(data)}\r\n\r\n")
            else:
                line.send(head + ("Transfer-Encoding: chunked\r\n\r\n" if framing == "chunked" else "\r\n"))
            step = len(data) // pieces + 1
            for start in range(0, len(data), step):
                piece = data[start : start + step]
                line.send(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece)
                if pieces > 1:
                    await line.drain()
                    await asyncio.sleep(0.001)
            if framing == "chunked":
                line.send("0\r\n\r\n")
            if framing == "eof":
                return

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(server) as peer, h.transport() as sender:
            for _ in range(3):
                async with await sender.round_trip(peer.get()) as response:
                    assert response.uncompressed
                    assert response.content_length == -1
                    assert "Content-Encoding" not in response.header
                    assert await response.body.read() == text
            assert len(peer.lines) == (3 if framing == "eof" else 1)
            response = await sender.round_trip(peer.get())
            assert await response.body.read(10) == text[:10]
            response.close()
            await h.until(lambda: sender.stats().active == 0)
            h.check_pool(sender)

    run(main())


@both_loops
def test_gzip_that_was_asked_for_by_the_caller_or_not_at_all(run: Run) -> None:
    async def server(line: Any) -> None:
        while (received := await line.request()) is not None:
            line.reply(
                gzip.compress(received.fields.get("accept-encoding", "").encode()), "Content-Encoding: gzip"
            )

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with (
            h.peer(server) as peer,
            h.transport() as sender,
            h.transport(disable_compression=True) as plain,
        ):
            for transport, header in (
                (sender, {"Accept-Encoding": "gzip"}),
                (sender, {"Range": "bytes=0-"}),
                (plain, {}),
            ):
                async with await transport.round_trip(peer.get(header=header)) as response:
                    assert not response.uncompressed
                    assert response.header["Content-Encoding"] == "gzip"
                    asked = header.get("Accept-Encoding", "")
                    assert gzip.decompress(await response.body.read()).decode() == asked

    run(main())


@both_loops
def test_gzip_that_is_broken_leaves_the_connection_whole(run: Run) -> None:
    async def server(line: Any) -> None:
        while (received := await line.request()) is not None:
            if received.target == "/next":
                line.reply("next")
            else:
                line.reply(gzip.compress(b"x" * 1000)[:-5] + b"12345", "Content-Encoding: gzip")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with h.peer(server) as peer, h.transport() as sender:
            for _ in range(2):
                async with await sender.round_trip(peer.get()) as response:
                    error = await h.failure(response.body.read(), http.DecodingError)
                    assert error.phase == "body"
                assert await h.whole(sender, peer.get("/next")) == (200, b"next")
            assert len(peer.lines) == 1

    run(main())
