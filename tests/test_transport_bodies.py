"""Bodies of requests on their way out: files, iterators, lengths that lie, bodies that fail or never end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http
from prefork.http.message.body import Body

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


async def pieces(*data: bytes, gap: float | None = None) -> AsyncIterator[bytes]:
    for piece in data:
        if gap is not None:
            await asyncio.sleep(gap)
        yield piece


class Watched:
    """An async generator that tells what becomes of it. It waits at `wait`, and ends once."""

    def __init__(self, *data: bytes, wait: bool = False, error: BaseException | None = None) -> None:
        self.data = data
        self.wait = wait
        self.error = error
        self.events: list[str] = []
        self.waiting = asyncio.Event()
        self.go = asyncio.Event()
        self.body = self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        self.events.append("begin")
        try:
            for piece in self.data:
                yield piece
            if self.wait:
                self.waiting.set()
                await self.go.wait()
            if self.error is not None:
                raise self.error
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # it has something to say, and takes its time
            self.events.append("end")


# --- kinds ----------------------------------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("size", [0, 1, 65_536, 262_144, 262_145, 5_000_000])
def test_bytes(run: Run, size: int) -> None:
    async def main() -> None:
        async with h.peer() as peer, h.transport() as sender:
            for kind in (bytes, bytearray, memoryview):
                assert (await h.whole(sender, peer.post(kind(b"x" * size))))[1] == b"0 POST / " + b"x" * size
            assert {received.fields["content-length"] for received in peer.requests} == {str(size)}
            h.check_pool(sender)

    run(main())


@both_loops
def test_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytes(range(256)) * 3000
    path.write_bytes(b"skipped" + data)

    async def main() -> None:
        async with h.peer() as peer, h.transport() as sender:
            with path.open("rb") as file:
                file.seek(7)
                assert (await h.whole(sender, peer.post(file)))[1].endswith(b" POST / " + data)
                assert peer.requests[0].fields["content-length"] == str(len(data))
            assert (await h.whole(sender, peer.post(io.BytesIO(b"memory"))))[1].endswith(b" POST / memory")
            assert peer.requests[1].fields["content-length"] == "6"
            path.write_text("text")
            with path.open() as text:
                error = await h.failure(sender.round_trip(peer.post(text)), http.RequestBodyError)
                assert "binary mode" in str(error)

    run(main())


@both_loops
def test_a_pipe_has_no_length(run: Run) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        async with h.peer() as peer, h.transport() as sender:
            with left, right:
                file = right.makefile("rb", buffering=0)
                left.sendall(b"through a pipe")
                left.shutdown(socket.SHUT_WR)
                assert (await h.whole(sender, peer.post(file)))[1] == b"0 POST / through a pipe"
                assert peer.requests[0].fields["transfer-encoding"] == "chunked"
                assert file.closed  # it cannot go back: it is of no more use

    run(main())


@both_loops
def test_an_iterator(run: Run) -> None:
    class Own:
        """An iterator that is no generator, without aclose."""

        def __init__(self) -> None:
            self.left = [b"c", b"", bytearray(b"d")]

        def __aiter__(self) -> Own:
            return self

        async def __anext__(self) -> Any:
            await asyncio.sleep(0)
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    async def main() -> None:
        async with h.peer() as peer, h.transport() as sender:
            body = pieces(b"a", b"", b"b" * 100_000, gap=0.001)
            assert (await h.whole(sender, peer.post(body)))[1] == b"0 POST / a" + b"b" * 100_000
            assert (await h.whole(sender, peer.post(Own())))[1] == b"0 POST / cd"
            assert (await h.whole(sender, peer.post(pieces())))[1] == b"0 POST / "
            assert [received.fields["transfer-encoding"] for received in peer.requests] == ["chunked"] * 3
            assert (await h.whole(sender, peer.post(pieces(b"ab", b"c"), content_length=3)))[
                1
            ] == b"0 POST / abc"
            assert peer.requests[3].fields["content-length"] == "3"
            assert len(peer.lines) == 1

    run(main())


@both_loops
def test_the_body_of_another_request(run: Run) -> None:
    """As a handler passes on what it receives, while it receives it."""

    class Source:
        wanted = 0

        def body_wanted(self) -> None:
            self.wanted += 1

        def body_taken(self) -> None:
            pass

        def body_refused(self) -> None:
            pass

    async def main() -> None:
        async with h.peer() as peer, h.transport() as sender:
            assert (await h.whole(sender, peer.post(Body.of(b"there"))))[1] == b"0 POST / there"
            assert peer.requests[0].fields["content-length"] == "5"
            source = Source()
            body = Body(source)
            task = asyncio.create_task(h.whole(sender, peer.post(body)))
            for number in range(3):
                await h.until(lambda number=number: source.wanted > number)
                body.feed(b"%d" % number)
            await h.until(lambda: source.wanted > 3)
            body.feed_end()
            assert (await task)[1] == b"0 POST / 012"
            broken = Body(source)
            task = asyncio.create_task(h.whole(sender, peer.post(broken)))
            broken.feed_error(http.RemoteProtocolError("gone"))
            error = await h.failure(task, http.RequestBodyError)
            assert "gone" in str(error)
            assert isinstance(error.__cause__, http.RemoteProtocolError)

    run(main())


@both_loops
def test_trailers(run: Run) -> None:
    async def main() -> None:
        async with h.peer() as peer, h.transport() as sender:
            request = peer.post(pieces(b"a", b"b"), trailer={"X-Sum": "2", "X-Empty": ""})
            assert (await h.whole(sender, request))[1] == b"0 POST / ab"
            received = peer.requests[0]
            assert received.fields["trailer"] == "X-Empty,X-Sum"
            assert received.trailers == ["X-Empty: ", "X-Sum: 2"]
            # The value may be found out as the body goes by.
            late = peer.post(None, trailer={"X-Sum": ""})

            async def counted() -> AsyncIterator[bytes]:
                yield b"abc"
                late.trailer["X-Sum"] = "3"

            late._set_source(counted())
            await h.whole(sender, late)
            assert peer.requests[1].trailers == ["X-Sum: 3"]
            # Bytes are sent in chunks then.
            await h.whole(sender, peer.post(b"abc", trailer={"X-Sum": "3"}))
            assert peer.requests[2].body == b"abc"
            assert peer.requests[2].trailers == ["X-Sum: 3"]
            for name in ("Content-Length", "Transfer-Encoding", "Trailer"):
                request = peer.post(b"", trailer={name: "1"})
                error = await h.failure(sender.round_trip(request), http.LocalProtocolError)
                assert str(error) == f'http: invalid Trailer key "{name}"'

    run(main())


# --- is there a body at all? -------------------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD"])
def test_a_body_that_may_be_empty_is_asked_first(run: Run, method: str) -> None:
    async def main() -> None:
        async with h.peer() as peer, h.transport() as sender:

            async def send(body: Any) -> Any:
                await h.whole(sender, http.Request(method, peer.url(), body=body))
                return peer.requests[-1]

            received = await send(pieces())
            assert not {"content-length", "transfer-encoding"} & received.fields.keys()
            received = await send(pieces(b"", b"ab", b"c"))
            assert received.fields["transfer-encoding"] == "chunked"
            assert received.body == b"abc"
            began = time.monotonic()
            received = await send(pieces(b"late", gap=0.3))  # PROBE_TIME is 200 ms
            assert time.monotonic() - began < 2
            assert received.fields["transfer-encoding"] == "chunked"
            assert received.body == b"late"
            received = await send(pieces(gap=0.3))
            assert received.body == b""
            assert len(peer.lines) == 1

    run(main())


@both_loops
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("end", ["cancelled", "fails"])
def test_a_body_that_ends_badly_while_it_is_asked(run: Run, end: str, plain: bool) -> None:
    async def main() -> None:
        async with h.peer() as peer, h.transport() as sender:
            watched = Watched(wait=True, error=ValueError("no") if end == "fails" else None)
            request = peer.get(body=watched.body, header=None if plain else {"X": "y"})
            task = asyncio.create_task(sender.round_trip(request))
            await watched.waiting.wait()
            if end == "cancelled":
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
            else:
                watched.go.set()
                error = await h.failure(task, http.RequestBodyError)
                assert isinstance(error.__cause__, ValueError)
                assert error.phase == "write"
            assert watched.events == ["begin", "end"]
            assert await h.whole(sender, peer.get("/next")) == (200, b"0 GET /next ") or peer.lines[1:]
            h.check_pool(sender)

    run(main())


# --- bodies that are not what they seem -----------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_body_of_another_length(run: Run, length: int, method: str) -> None:
    """Nothing behind it can be taken for the next request."""

    async def server(line: Any) -> None:
        received = await line.head()
        received.body = await line.closed()

    async def main() -> None:
        async with h.peer(server) as peer, h.transport() as sender:
            body = pieces(b"a", b"bcd")
            request = http.Request(method, peer.url(), body=body, content_length=length)
            error = await h.failure(sender.round_trip(request), http.RequestBodyError)
            assert f"http: ContentLength={length} with Body length 4" in str(error)
            assert (error.phase, error.retryable) == ("write", False)
            await peer.all_closed()
            assert peer.requests[0].body in ((b"a", b"") if length == 2 else (b"abcd", b"a", b""))
            h.check_pool(sender)

    run(main())


@both_loops
@pytest.mark.parametrize("error", [ValueError("broken"), OSError("disk"), asyncio.CancelledError(), "str"])
@pytest.mark.parametrize("answered", [False, True])
def test_a_body_that_fails(run: Run, error: Any, answered: bool) -> None:
    """The request is not whole then, and must not look as if it were; not even when its answer is there."""

    async def server(line: Any) -> None:
        received = await line.head()
        if answered:
            line.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ")
        received.body = await line.closed()

    async def main() -> None:
        async with h.peer(server) as peer, h.transport() as sender:
            data: Any = [b"some", "text"] if error == "str" else [b"some"]
            watched = Watched(*data, wait=error != "str", error=None if error == "str" else error)
            task = asyncio.create_task(h.whole(sender, peer.post(watched.body)))
            await h.until(lambda: peer.requests)
            if answered and error != "str":
                await h.until(lambda: sender.stats().active and h.only_pool(sender).conns.copy().pop()._body)
            watched.go.set()
            failed = await h.failure(task, http.RequestBodyError)
            assert failed.phase == "write"
            assert failed.addr == f"127.0.0.1:{peer.port}"
            if isinstance(error, Exception):
                assert failed.__cause__ is error
                assert str(error) in str(failed)
            await peer.all_closed()
            if peer.requests[0].body:
                assert peer.requests[0].body == b"4\r\nsome\r\n"  # without a last chunk
            assert watched.events == ["begin", "end"]
            h.check_pool(sender)

    run(main())


@both_loops
@pytest.mark.parametrize("how", ["cancelled", "deadline", "reset", "response closed", "refused"])
def test_a_body_that_waits_for_ever(run: Run, how: str) -> None:
    """However the exchange ends, the generator is ended, once, and before anything else is said."""

    async def server(line: Any) -> None:
        await line.head()
        await line.reader.readexactly(5)
        if how == "reset":
            line.reset()
        elif how == "response closed":
            line.send("HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\nx")
        elif how == "refused":
            line.reply("no", "Connection: close", status="400 Bad Request")
        await line.closed()

    async def main() -> None:
        async with h.peer(server) as peer, h.transport() as sender:
            watched = Watched(b"begin", wait=True)
            request = peer.post(watched.body)
            if how == "deadline":
                h.deadline(request, 0.05)
            task = asyncio.create_task(sender.round_trip(request))
            await watched.waiting.wait()
            if how == "cancelled":
                task.cancel()
            await asyncio.wait([task])
            if how == "cancelled":
                assert task.cancelled()
            elif how == "deadline":
                assert (await h.failure(task, http.ClientTimeout)).phase == "write"
            elif how == "reset":
                await h.failure_of(task, http.ConnectionLost)
            elif how == "refused":
                response = task.result()
                assert response.status == 400
            else:
                response = task.result()
                response.close()
            await h.until(lambda: watched.events == ["begin", "end"])
            await peer.all_closed()
            h.check_pool(sender)

    run(main())


@both_loops
def test_a_peer_that_does_not_read_slows_the_body(run: Run) -> None:
    async def main() -> None:
        read = asyncio.Event()

        async def slow(line: Any) -> None:
            received = await line.head()
            await read.wait()
            await line.body(received)
            line.reply("thanks")

        async with h.peer(slow) as peer, h.transport(write_buffer_size=10_000) as sender:
            sent = 0

            async def body() -> AsyncIterator[bytes]:
                nonlocal sent
                for _ in range(1000):
                    sent += 20_000
                    yield b"x" * 20_000

            task = asyncio.create_task(h.whole(sender, peer.post(body())))
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.05)
            assert 0 < sent < 12_000_000  # the kernels' buffers
            conn = h.only_pool(sender).conns.copy().pop()
            assert conn._transport.get_write_buffer_size() <= 10_000 + 20_020 * 2
            read.set()
            assert await task == (200, b"thanks")
            assert len(peer.requests[0].body) == sent == 20_000_000

    run(main())


@both_loops
def test_a_body_that_never_waits_leaves_the_loop_to_others(run: Run) -> None:
    """A fast peer takes what comes: nothing ever makes the sender wait."""

    def swallow(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(OSError):
            while sock.recv(1 << 20):
                pass

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=swallow, args=(listener,))
            thread.start()

            async def body() -> AsyncIterator[bytes]:
                began = time.monotonic()
                while True:
                    assert time.monotonic() - began < 20
                    yield b"x" * 1000

            async with h.transport() as sender:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
                request = h.deadline(http.Request("POST", url, body=body()), 0.3)
                began = time.monotonic()
                error = await h.failure(sender.round_trip(request), http.ClientTimeout)
                assert error.phase == "write"
                assert time.monotonic() - began < 5
            await asyncio.get_running_loop().run_in_executor(None, thread.join)

    run(main())


# --- again -------------------------------------------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("kind", ["file", "bytes", "get_body"])
def test_a_body_that_is_sent_again(run: Run, kind: str, tmp_path: Path) -> None:
    """The kept connection dies as the body goes out: all of it is sent again."""
    data = bytes(range(256)) * 4000
    path = tmp_path / "file"
    path.write_bytes(data)

    async def server(line: Any) -> None:
        if line.number == 0:
            await line.request()
            line.reply("first")
            await line.head()
            await line.reader.readexactly(300_000)
            line.reset()
        else:
            received = await line.request()
            line.reply(str(len(received.body)))

    async def main() -> None:
        async with h.peer(server) as peer, h.transport() as sender:
            assert await h.whole(sender, peer.get()) == (200, b"first")
            file = path.open("rb")
            options: dict[str, Any] = {"header": {"Idempotency-Key": "1"}}
            if kind == "get_body":
                request = peer.post(
                    pieces(data), get_body=lambda: pieces(data[:500_000], data[500_000:]), **options
                )
            else:
                request = peer.post(file if kind == "file" else data, **options)
            assert await h.whole(sender, request) == (200, b"%d" % len(data))
            assert peer.requests[-1].body == data
            assert sender.stats().retries == 1
            file.close()

    run(main())
