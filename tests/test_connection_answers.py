"""Answers over real sockets: back-pressure, handlers that fail, hijacking, the end of a writer's life."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from prefork import http
from prefork.http.server import connection

HELPERS = Path(__file__).with_name("helpers_server.py")
_spec = importlib.util.spec_from_file_location("helpers_server", HELPERS)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
serving, request, eventually = helpers.serving, helpers.request, helpers.eventually

pytestmark = pytest.mark.both_loops

MIB = 1 << 20


# --- back-pressure --------------------------------------------------------------------------


def test_write_waits_for_a_slow_reader(run: Any) -> None:
    written: list[int] = []

    async def handler(w: Any, r: Any) -> None:
        for number in range(30):
            await w.write(b"x" * 100_000)
            written.append(number)

    async def main() -> None:
        async with serving(handler, sndbuf=16384) as s:
            c = await s.client(rcvbuf=16384)
            await c.send(request())
            await eventually(lambda: s.conn._write_blocked)
            stopped_at = len(written)
            assert 100_000 * stopped_at <= connection.WRITE_HIGH_WATER + 200_000
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(written) == stopped_at
            # It goes on when the client does, and not before the client has taken most of it.
            await c.exactly(50_000)
            assert len(written) <= stopped_at + 1
            assert len((await _rest_of_answer(c)).body) + 50_000 > 3_000_000

    run(main())


async def _rest_of_answer(c: Any) -> Any:
    """What is left of a chunked answer whose beginning has been taken."""
    answer = helpers.Answer(b"HTTP/1.1 200 OK\r\n\r\n")
    answer.body = await c.until(b"\r\n0\r\n\r\n")
    return answer


def test_small_writes_need_no_await(run: Any) -> None:
    def handler(w: Any, r: Any) -> None:
        for _ in range(1000):
            w.write("small")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            assert (await c.get()).body == b"small" * 1000

    run(main())


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_long_stream_in_little_memory(run: Any, framing: str) -> None:
    size = 100 * MIB
    piece = b"x" * 65536

    async def handler(w: Any, r: Any) -> None:
        if framing == "length":
            w.header["Content-Length"] = str(size)
        for _ in range(size // len(piece)):
            await w.write(piece)

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request())
            with helpers.Memory() as memory:
                await c.until(b"\r\n\r\n")
                received = len(c.buffer)
                view = memoryview(bytearray(256 * 1024))
                loop = asyncio.get_running_loop()
                tail = c.buffer[-7:]
                while received < size or (framing == "chunked" and tail != b"\r\n0\r\n\r\n"):
                    count = await loop.sock_recv_into(c.sock, view)
                    assert count
                    received += count
                    tail = (tail + bytes(view[max(0, count - 7) : count]))[-7:]
            assert received >= size
            assert memory.growth < 8 * MIB

    run(main())


def test_write_to_a_client_that_left_while_the_handler_waited(run: Any) -> None:
    raised: list[BaseException] = []

    async def handler(w: Any, r: Any) -> None:
        try:
            while True:
                await w.write(b"x" * 100_000)
        except ConnectionError as error:
            raised.append(error)
            raise

    async def main() -> None:
        async with serving(handler, sndbuf=16384) as s:
            c = await s.client(rcvbuf=16384)
            await c.send(request())
            await eventually(lambda: s.conn._write_blocked)
            c.reset()
            await eventually(lambda: raised)

    run(main())


# --- handlers that raise --------------------------------------------------------------------


def raising(error: BaseException, kind: str) -> Any:
    """A handler that raises `error`: at once, in its first step as a coroutine, or after waiting."""

    def plain(w: Any, r: Any) -> None:
        raise error

    async def at_once(w: Any, r: Any) -> None:
        raise error

    async def late(w: Any, r: Any) -> None:
        await asyncio.sleep(0)
        raise error

    return {"def": plain, "async": at_once, "late": late}[kind]


KINDS = pytest.mark.parametrize("kind", ["def", "async", "late"])


def answering_ok(failing: Any) -> Any:
    mux = http.ServeMux()
    mux.handle_func("/fail", failing)
    mux.handle_func("/ok", lambda w, r: w.write(b"ok"))
    return mux


@KINDS
def test_exception_is_answered_with_500_and_logged(run: Any, kind: str) -> None:
    async def main() -> None:
        async with serving(answering_ok(raising(ValueError("boom"), kind))) as s:
            c = await s.client()
            answer = await c.get("/fail?q=1")
            assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
            assert answer.headers["connection"] == "close"
            assert await c.closed()
            (logged,) = s.log.take()
            first, *rest = logged.splitlines()
            address = "{}:{}".format(*c.sock.getsockname())
            assert first == f"http: exception serving {address}: GET /fail?q=1 HTTP/1.1: ValueError: boom"
            # The traceback is the user's: nothing of this package, nothing of asyncio.
            files = set(re.findall(r'File "([^"]+)"', "\n".join(rest)))
            assert files == {__file__}
            assert (await s.get("/ok")).body == b"ok"

    run(main())


def test_exception_replaces_what_was_written_but_not_sent(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        w.header["X-Half"] = "done"
        w.write_header(201)
        w.write(b"half an answer")
        raise ValueError("boom")

    async def main() -> None:
        async with serving(handler) as s:
            answer = await s.get()
            assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
            assert "x-half" not in answer.headers
            assert len(s.log.take()) == 1

    run(main())


@pytest.mark.parametrize("error", [ValueError("boom"), http.StatusError(404, "late"), http.AbortHandler()])
@pytest.mark.parametrize("waits", [False, True])
def test_exception_behind_the_header_cuts_the_connection(run: Any, error: Exception, waits: bool) -> None:
    async def handler(w: Any, r: Any) -> None:
        await w.write(b"x" * 3000)
        await w.flush()
        if waits:
            await asyncio.sleep(0)
        raise error

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request() + request("/never"))
            received = await c.rest()
            assert received.count(b"HTTP/1.1") == 1
            assert received.endswith(b"bb8\r\n" + b"x" * 3000 + b"\r\n"), "it looks complete"
            assert len(s.log.take()) == (1 if isinstance(error, ValueError) else 0)

    run(main())


@KINDS
def test_status_error_is_the_answer(run: Any, kind: str) -> None:
    async def main() -> None:
        async with serving(raising(http.StatusError(404, "no such item"), kind)) as s:
            c = await s.client()
            for _ in range(2):  # the connection lives on
                answer = await c.get()
                assert (answer.status, answer.body) == (404, b"no such item\n")
                assert answer.headers["content-type"] == "text/plain; charset=utf-8"
                assert answer.headers["x-content-type-options"] == "nosniff"

    run(main())


def test_status_error_without_text_says_the_standard_one(run: Any) -> None:
    async def main() -> None:
        async with serving(raising(http.StatusError(503), "def")) as s:
            assert (await s.get()).body == b"Service Unavailable\n"

    run(main())


@KINDS
def test_abort_handler_drops_the_connection_silently(run: Any, kind: str) -> None:
    async def main() -> None:
        async with serving(raising(http.AbortHandler(), kind)) as s:
            c = await s.client()
            await c.send(request())
            assert await c.closed()

    run(main())


@KINDS
@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError()], ids=repr)
def test_no_exception_of_a_handler_ends_the_server(run: Any, error: BaseException, kind: str) -> None:
    async def main() -> None:
        async with serving(answering_ok(raising(error, kind))) as s:
            c = await s.client()
            answer = await c.get("/fail")
            assert (answer.status, answer.headers["connection"]) == (500, "close")
            assert len(s.log.take()) == (0 if isinstance(error, asyncio.CancelledError) else 1)
            assert (await s.get("/ok")).body == b"ok"

    run(main())


@KINDS
def test_failure_in_a_pipeline(run: Any, kind: str) -> None:
    """What came before it is answered, what came behind it is not."""

    async def main() -> None:
        async with serving(answering_ok(raising(ValueError(), kind))) as s:
            c = await s.client()
            await c.send(request("/ok") + request("/fail") + request("/ok"))
            assert [(await c.answer()).status for _ in range(2)] == [200, 500]
            assert await c.closed()
            assert len(s.log.take()) == 1

    run(main())


@pytest.mark.parametrize("small", [False, True])
def test_header_value_that_is_no_text(run: Any, small: bool) -> None:
    """A lone surrogate stands for no byte; it must not take the answer with it."""

    async def handler(w: Any, r: Any) -> None:
        w.header["X-Bad"] = "a\ud800b"
        w.write("x" * (1 if small else 5000))

    async def main() -> None:
        async with serving(handler) as s:
            answer = await s.get()
            assert (answer.status, answer.headers["x-bad"]) == (200, "a?b")

    run(main())


def test_close_delimited_answer_cut_short_ends_in_a_reset(run: Any) -> None:
    """An orderly end would say that the body is complete."""

    async def handler(w: Any, r: Any) -> None:
        await w.write(b"x" * 5000)
        await w.flush()
        await asyncio.sleep(0)
        raise http.AbortHandler

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request(proto="HTTP/1.0"))
            assert await c.reset_by_server()

    run(main())


def test_declared_length(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        w.header["Content-Length"] = "5"
        if r.url.path == "/short":
            await w.write(b"1234")
        else:
            await w.write(b"123")
            with pytest.raises(http.LocalProtocolError, match="more than the declared"):
                await w.write(b"456")
            await w.write(b"45")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            for _ in range(2):
                assert (await c.get()).body == b"12345"
            await c.send(request("/short") + request("/never"))
            assert (await c.rest()).endswith(b"\r\n\r\n1234")

    run(main())


# --- slips of handlers ----------------------------------------------------------------------


def test_returned_value_is_complained_of_once(run: Any) -> None:
    mux = http.ServeMux()
    mux.handle_func("/a/{x}", lambda w, r: "text")
    mux.handle_func("/fine", lambda w, r: w.write(b"what write returns may be returned"))

    @mux.handle_func("/b/{x}")
    async def coroutine(w: Any, r: Any) -> str:
        return "text"

    @mux.handle_func("/c/{x}")
    async def waiting(w: Any, r: Any) -> str:
        await asyncio.sleep(0)
        return "text"

    @mux.handle_func("/fine/too")
    async def fine(w: Any, r: Any) -> Any:
        return w.write(b"the same")

    async def main() -> None:
        async with serving(mux) as s:
            c = await s.client()
            for route in "abc":
                for number in range(3):
                    answer = await c.get(f"/{route}/{number}")
                    assert (answer.status, answer.body) == (200, b"")
                (line,) = s.log.take()
                assert f"'/{route}/{{x}}'" in line
                assert "w.write" in line
            await c.get("/fine")
            await c.get("/fine/too")

    run(main())


def test_second_write_header_is_logged_with_its_caller(run: Any) -> None:
    def handler(w: Any, r: Any) -> None:
        w.write_header(201)
        w.write_header(202)

    async def main() -> None:
        async with serving(handler) as s:
            assert (await s.get()).status == 201
            (line,) = s.log.take()
            assert "superfluous write_header call" in line
            assert f"({__file__}:" in line

    run(main())


@pytest.mark.parametrize("end", ["return", "raise", "late"])
def test_writer_is_dead_after_the_handler(run: Any, end: str) -> None:
    kept: list[Any] = []

    async def handler(w: Any, r: Any) -> None:
        kept.append(w)
        if end == "late":
            await asyncio.sleep(0)
        if end == "raise":
            raise http.StatusError(418)
        w.write(b"x")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.get()
            (w,) = kept
            for call in (
                lambda: w.write(b"late"),
                lambda: w.write_header(200),
                lambda: w.set_read_deadline(1),
                lambda: w.set_write_deadline(1),
                lambda: w.enable_full_duplex(),
            ):
                with pytest.raises(http.LocalProtocolError, match="after the handler has returned"):
                    call()
            for late in (w.flush, w.hijack, lambda: w.send_file(__file__)):
                with pytest.raises(http.LocalProtocolError, match="after the handler has returned"):
                    await late()
            w.header["X-Late"] = "harmless"
            assert "x-late" not in (await c.get()).headers

    run(main())


def test_task_that_outlives_its_handler_cannot_write_into_the_next_answer(run: Any) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def main() -> None:
        go_on = asyncio.Event()

        async def late(w: Any) -> None:
            await go_on.wait()
            await w.write(b"intruder")

        async def handler(w: Any, r: Any) -> None:
            if r.url.path == "/first":
                tasks.append(asyncio.create_task(late(w)))
            else:
                go_on.set()
                await asyncio.wait(tasks)
            w.write(r.url.path)

        async with serving(handler) as s:
            c = await s.client()
            assert (await c.get("/first")).body == b"/first"
            assert (await c.get("/second")).body == b"/second"
            with pytest.raises(http.LocalProtocolError):
                await tasks[0]

    run(main())


# --- hijacking ------------------------------------------------------------------------------


async def shout(w: http.ResponseWriter, r: http.Request) -> None:
    """Takes the connection over and speaks a protocol of its own: lines, answered in upper case."""
    reader, writer = await w.hijack()
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    async for line in reader:
        writer.write(line.upper())
        await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("at_once", [True, False])
def test_hijack(run: Any, at_once: bool) -> None:
    states: list[str] = []

    async def main() -> None:
        async with serving(shout, conn_state=lambda conn, state: states.append(state.value)) as s:
            c = await s.client()
            # Bytes behind the head belong to the new protocol, whether in the same segment or not.
            if at_once:
                await c.send(request("/", "Upgrade: shout", "Connection: upgrade") + b"one\ntw")
            else:
                await c.send(request("/", "Upgrade: shout", "Connection: upgrade"))
                await eventually(lambda: states[-1:] == ["hijacked"])
                await c.send(b"one\ntw")
            assert (await c.answer()).status == 101
            assert await c.until(b"\n") == b"ONE\n"
            await c.send(b"o\nGET / HTTP/1.1\r\n\r\n")
            assert await c.until(b"\n") == b"TWO\n"
            assert await c.until(b"\n\r\n") == b"GET / HTTP/1.1\r\n\r\n"
            assert s.server.open_connections == 0
            c.shut()
            assert await c.closed()
            await eventually(lambda: not s.server._connections)
            assert states == ["new", "active", "hijacked"]

    run(main())


def test_hijack_late_with_bytes_that_have_waited(run: Any) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def handler(w: Any, r: Any) -> None:
            await go_on.wait()
            await shout(w, r)

        async with serving(handler) as s:
            c = await s.client(sndbuf=16384)
            # More than is kept while a handler runs: reading has stopped, and must go on.
            lines = b"x" * 999 + b"\n"
            sending = asyncio.create_task(c.send(request() + lines * 1000))
            await eventually(lambda: s.server.active_connections and not s.conn.transport.is_reading())
            go_on.set()
            await c.answer()
            assert await c.exactly(1_000_000) == lines.upper() * 1000
            await sending
            c.shut()
            assert await c.closed()

    run(main())


def test_hijack_behind_other_answers(run: Any) -> None:
    """The answers to earlier requests of the pipeline leave before the handler has the connection."""
    mux = http.ServeMux()
    mux.handle_func("/shout", shout)
    mux.handle_func("/", lambda w, r: w.write(r.url.path))

    async def main() -> None:
        async with serving(mux) as s:
            c = await s.client()
            await c.send(request("/a") + request("/b") + request("/shout") + b"text\n")
            assert (await c.answer()).body == b"/a"
            assert (await c.answer()).body == b"/b"
            assert (await c.answer()).status == 101
            assert await c.until(b"\n") == b"TEXT\n"
            c.close()
            await eventually(lambda: not s.server._connections)

    run(main())


def test_hijack_after_flush(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        w.header["X-Mine"] = "yes"
        w.header["Content-Length"] = "10"
        w.write(b"begun")
        await w.flush()
        _, writer = await w.hijack()
        writer.write(b"ended")
        with pytest.raises(http.LocalProtocolError, match="hijack"):
            w.write(b"more")
        with pytest.raises(http.LocalProtocolError, match="hijack"):
            await w.hijack()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            answer = await c.get()
            assert (answer.headers["x-mine"], answer.body) == ("yes", b"begunended")
            assert await c.closed()

    run(main())


def test_hijack_while_the_client_is_slow(run: Any) -> None:
    size = 2_000_000

    async def handler(w: Any, r: Any) -> None:
        w.header["Content-Length"] = str(size + 3)
        w.write(b"x" * size)  # far above the high-water mark, and not awaited
        _, writer = await w.hijack()
        writer.write(b"end")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with serving(handler, sndbuf=16384) as s:
            c = await s.client(rcvbuf=16384)
            answer = await c.get()
            assert answer.body == b"x" * size + b"end"
            assert await c.closed()

    run(main())


def test_hijacked_connection_has_no_deadlines(run: Any) -> None:
    async def main() -> None:
        async with serving(shout, write_timeout=0.05, idle_timeout=0.05, read_header_timeout=0.05) as s:
            c = await s.client()
            await c.send(request())
            await c.answer()
            end = s.server.clock.now + 0.2
            await eventually(lambda: s.server.clock.now > end)
            await c.send(b"still here\n")
            assert await c.until(b"\n") == b"STILL HERE\n"
            c.shut()
            assert await c.closed()

    run(main())


def test_handler_that_fails_after_hijacking(run: Any) -> None:
    async def handler(w: Any, r: Any) -> None:
        _, writer = await w.hijack()
        writer.close()
        raise ValueError("mine")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request())
            assert await c.closed()
            await eventually(lambda: not s.server._connections)
            assert "ValueError: mine" in s.log.take()[0]

    run(main())


def test_hijack_of_a_half_closed_connection(run: Any) -> None:
    async def main() -> None:
        async with serving(shout) as s:
            c = await s.client()
            await c.send(request() + b"last words\n")
            c.shut()
            await c.answer()
            assert await c.rest() == b"LAST WORDS\n"

    run(main())


def test_unix_socket_answers_cut_short_end_without_a_reset(run: Any, tmp_path: Path) -> None:
    """A unix socket knows no reset: the connection just ends."""

    async def handler(w: Any, r: Any) -> None:
        await w.flush()
        raise http.AbortHandler

    async def main() -> None:
        async with serving(handler, addr=f"unix:{tmp_path}/s") as s:
            c = await s.client()
            assert c.sock.family == socket.AF_UNIX
            await c.send(request(proto="HTTP/1.0"))
            assert (await c.rest()).startswith(b"HTTP/1.0 200 OK\r\n")

    run(main())
