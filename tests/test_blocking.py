"""http.blocking: handlers that block, in threads, and everything they touch on the loop."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from prefork import http

HELPERS = Path(__file__).with_name("helpers_server.py")
_spec = importlib.util.spec_from_file_location("helpers_server", HELPERS)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
serving, request, chunked, eventually = helpers.serving, helpers.request, helpers.chunked, helpers.eventually

pytestmark = pytest.mark.both_loops


def test_runs_in_a_thread_of_the_pool(run: Any) -> None:
    seen: list[str] = []

    @http.blocking
    def handler(w: Any, r: Any) -> None:
        """What the function says of itself."""
        seen.append(threading.current_thread().name)
        w.header["X-Path"] = r.url.path
        w.write_header(201)
        w.write("from a ")
        w.write(b"thread")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            for _ in range(2):
                answer = await c.get("/p")
                assert (answer.status, answer.body) == (201, b"from a thread")
                assert answer.headers["x-path"] == "/p"
                assert answer.headers["content-length"] == "13"
            assert all(name.startswith("prefork-blocking") for name in seen)

    run(main())
    assert handler.__doc__ == "What the function says of itself."
    assert handler.__name__ == "handler"


@pytest.mark.parametrize("how", ["whole", "portions", "iterated", "ignored"])
def test_body(run: Any, how: str) -> None:
    @http.blocking
    def handler(w: Any, r: Any) -> None:
        w.enable_full_duplex()
        if how == "whole":
            w.write(r.body.read())
        elif how == "portions":
            while piece := r.body.read(1000):
                w.write(piece)
        elif how == "iterated":
            for piece in r.body:
                w.write(piece)

    async def main() -> None:
        body = bytes(n % 251 for n in range(200_000))
        async with serving(handler) as s:
            c = await s.client()
            for _ in range(2):
                answer = await c.ask("POST", "/", body=body)
                assert answer.body == (b"" if how == "ignored" else body)
            await c.send(request("/", "Transfer-Encoding: chunked", method="POST"))
            await eventually(lambda: s.server.active_connections or how == "ignored")
            await c.send(chunked(b"some ", b"chunks"))
            assert (await c.answer()).body == (b"" if how == "ignored" else b"some chunks")

    run(main())


def test_json_text_and_forms(run: Any) -> None:
    @http.blocking
    def handler(w: Any, r: Any) -> None:
        if r.url.path == "/json":
            w.write(json.dumps(r.json()))
        elif r.url.path == "/text":
            w.write(r.text())
        elif r.url.path == "/form":
            r.parse_form()
            w.write(f"{r.form['a']} {r.post_form} {r.form_value('b')} {r.method} {r.path_value('none')!r}")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            assert (await c.ask("POST", "/json", body=b'{"a": [1, 2]}')).body == b'{"a": [1, 2]}'
            assert (await c.ask("POST", "/json", body=b"{")).status == 400
            assert (await c.ask("POST", "/text", body="käse".encode())).body.decode() == "käse"
            form = "Content-Type: application/x-www-form-urlencoded"
            answer = await c.ask("POST", "/form?a=2&b=3", form, body=b"a=1")
            assert answer.body == b"['1', '2'] {'a': ['1']} 3 POST ''"

    run(main())


def test_write_blocks_while_the_client_is_slow(run: Any) -> None:
    written: list[int] = []
    size, count = 100_000, 40

    @http.blocking
    def handler(w: Any, r: Any) -> None:
        for number in range(count):
            w.write(b"x" * size)
            written.append(number)

    async def main() -> None:
        async with serving(handler, sndbuf=16384) as s:
            c = await s.client(rcvbuf=16384)
            await c.send(request())
            await eventually(lambda: s.server.open_connections and s.conn._write_blocked)
            stopped_at = len(written)
            assert stopped_at < 10
            assert await asyncio.to_thread(threading.Event().wait, 0.05) is False
            assert len(written) <= stopped_at + 1
            assert len((await c.answer()).body) == size * count

    run(main())


def test_flush_and_send_file(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"in the file")

    @http.blocking
    def handler(w: Any, r: Any) -> None:
        w.write(b"first ")
        w.flush()
        assert w.header_sent
        w.write(b"second ")
        w.send_file(path, 7)
        w.write(b" last")

    async def main() -> None:
        async with serving(handler) as s:
            answer = await s.get()
            assert answer.body == b"first second file last"
            assert answer.headers["transfer-encoding"] == "chunked"

    run(main())


def test_length_of_a_file_alone_is_known(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)

    async def main() -> None:
        async with serving(http.blocking(lambda w, r: w.send_file(path))) as s:
            assert (await s.get()).headers["content-length"] == "5000"

    run(main())


# --- failures -------------------------------------------------------------------------------


def test_exceptions(run: Any) -> None:
    @http.blocking
    def handler(w: Any, r: Any) -> None:
        w.write(b"half")
        if r.url.path == "/status":
            raise http.StatusError(404, "nothing here")
        if r.url.path == "/abort":
            raise http.AbortHandler
        if r.url.path == "/exit":
            raise SystemExit(3)
        if r.url.path == "/stop":
            raise StopIteration
        raise ValueError("boom")

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            answer = await c.get("/status")
            assert (answer.status, answer.body) == (404, b"nothing here\n")
            answer = await c.get("/boom")
            assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
            (logged,) = s.log.take()
            assert "GET /boom HTTP/1.1: ValueError: boom" in logged
            assert set(re.findall(r'File "([^"]+)"', logged)) == {__file__}
            for target in ("/exit", "/stop"):
                assert (await s.get(target)).status == 500
                assert len(s.log.take()) == 1
            c = await s.client()
            await c.send(request("/abort"))
            assert await c.closed()

    run(main())


def test_limit_of_the_body(run: Any) -> None:
    caught: list[str] = []

    @http.blocking
    def handler(w: Any, r: Any) -> None:
        try:
            r.body.read()
        except http.MaxBytesError as error:
            caught.append(str(error))
            raise

    async def main() -> None:
        async with serving(handler, max_body_bytes=10) as s:
            c = await s.client()
            answer = await c.ask("POST", "/", body=b"x" * 11)
            assert answer.status == 413
            assert b"max_body_bytes" in answer.body
            assert "max_body_bytes" in caught[0]

    run(main())


def test_deadlines_are_set_on_the_loop(run: Any) -> None:
    @http.blocking
    def handler(w: Any, r: Any) -> None:
        w.set_write_deadline(10)
        w.set_write_deadline(None)
        w.set_read_deadline(0.02)
        r.body.read()

    async def main() -> None:
        asyncio.get_running_loop().set_debug(True)  # complains of calls from other threads
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request("/", "Content-Length: 10", method="POST"))
            assert (await c.answer()).status == 408

    run(main())


def test_returned_values_are_complained_of(run: Any) -> None:
    async def main() -> None:
        async with serving(http.blocking(lambda w, r: "text")) as s:
            assert (await s.get()).body == b""
            assert "returned a value" in s.log.take()[0]

    run(main())


def test_coroutine_functions_are_refused() -> None:
    async def handler(w: Any, r: Any) -> None: ...

    with pytest.raises(TypeError, match="async"):
        http.blocking(handler)


def test_methods_that_wait_refuse_to_run_on_the_loop(run: Any) -> None:
    """A blocking call on the loop's own thread would wait for itself."""
    kept: list[Any] = []

    async def main() -> None:
        go_on = threading.Event()

        @http.blocking
        def handler(w: Any, r: Any) -> None:
            kept.extend((w, r))
            go_on.wait(10)

        async with serving(handler) as s:
            c = await s.client()
            await c.send(request())
            await eventually(lambda: len(kept) == 2)
            w, r = kept
            for call in (w.flush, lambda: w.write_header(200), r.body.read, r.json):
                with pytest.raises(http.LocalProtocolError, match="thread"):
                    call()
            go_on.set()
            assert (await c.answer()).status == 200

    run(main())


# --- the pool -------------------------------------------------------------------------------


def test_no_more_run_at_once_than_the_pool_has_threads(run: Any) -> None:
    lock = threading.Lock()
    now = most = 0

    async def main() -> None:
        go_on = threading.Event()

        @http.blocking
        def handler(w: Any, r: Any) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            go_on.wait(10)
            with lock:
                now -= 1
            w.write(b"done")

        async with serving(handler, blocking_threads=2) as s:
            clients = [await s.client() for _ in range(6)]
            for c in clients:
                await c.send(request())
            await eventually(lambda: s.server.active_connections == 6 and now == 2)
            go_on.set()
            for c in clients:
                assert (await c.answer()).body == b"done"
            assert most == 2

    run(main())


def test_the_loop_serves_others_meanwhile(run: Any) -> None:
    async def main() -> None:
        go_on = threading.Event()
        mux = http.ServeMux()
        mux.handle_func("/block", http.blocking(lambda w, r: go_on.wait(10) and None))
        mux.handle_func("/", lambda w, r: w.write(b"free"))

        async with serving(mux, blocking_threads=1) as s:
            c = await s.client()
            await c.send(request("/block"))
            await eventually(lambda: s.server.active_connections)
            assert (await s.get("/")).body == b"free"
            go_on.set()
            assert (await c.answer()).status == 200

    run(main())


VAR: contextvars.ContextVar[str] = contextvars.ContextVar("VAR", default="unset")


def test_context_variables_reach_the_thread(run: Any) -> None:
    @http.blocking
    def inner(w: Any, r: Any) -> None:
        w.write(VAR.get())
        VAR.set("of the thread")

    async def outer(w: Any, r: Any) -> None:
        VAR.set(r.url.path)
        await inner(w, r)
        w.write(" " + VAR.get())

    async def main() -> None:
        mux = http.ServeMux()
        mux.handle_func("/plain", inner)
        mux.handle_func("/", outer)
        async with serving(mux, blocking_threads=1) as s:
            c = await s.client()
            for target in ("/a", "/b"):
                assert (await c.get(target)).body == f"{target} {target}".encode()
            for _ in range(2):
                assert (await c.get("/plain")).body == b"unset"

    run(main())


# --- clients that leave ---------------------------------------------------------------------


def test_handler_whose_client_left_runs_to_its_end(run: Any) -> None:
    steps: list[Any] = []

    async def main() -> None:
        go_on = threading.Event()

        @http.blocking
        def handler(w: Any, r: Any) -> None:
            steps.append("begun")
            go_on.wait(10)
            steps.append(bool(r.disconnected))
            try:
                for _ in range(10):
                    w.write(b"x" * 100_000)
            except ConnectionError as error:
                steps.append(type(error))
                raise

        async with serving(handler) as s:
            c = await s.client()
            await c.send(request())
            await eventually(lambda: steps)
            c.reset()
            await eventually(lambda: s.server.open_connections == 0)
            go_on.set()
            await eventually(lambda: not s.server._connections)
            assert steps == ["begun", True, ConnectionResetError]

    run(main())


def test_client_leaves_while_the_handler_waits_for_its_body(run: Any) -> None:
    raised: list[Exception] = []

    @http.blocking
    def handler(w: Any, r: Any) -> None:
        try:
            r.body.read()
        except http.HTTPError as error:
            raised.append(error)
            raise

    async def main() -> None:
        async with serving(handler) as s:
            c = await s.client()
            await c.send(request("/", "Content-Length: 10", method="POST"))
            await eventually(lambda: s.server.active_connections and s.conn._incoming.body._waiter)
            c.reset()
            await eventually(lambda: raised)
            assert isinstance(raised[0], http.RemoteProtocolError)

    run(main())


def test_server_closes_while_a_handler_blocks(run: Any) -> None:
    """The thread goes on alone; what it then asks of its writer is refused, not waited for."""
    refused: list[BaseException] = []

    async def main() -> None:
        go_on, ended, begun = threading.Event(), threading.Event(), threading.Event()

        @http.blocking
        def handler(w: Any, r: Any) -> None:
            begun.set()
            go_on.wait(10)
            try:
                w.write(b"x" * 100_000)
                w.flush()
            except BaseException as error:
                refused.append(error)
            ended.set()

        async with serving(handler) as s:
            c = await s.client()
            await c.send(request())
            await eventually(begun.is_set)
            s.server.close()
            await eventually(lambda: not s.server._connections)
            go_on.set()
            await eventually(ended.is_set)
            assert isinstance(refused[0], http.LocalProtocolError)

    run(main())


def test_shutdown_waits_for_handlers_that_block(run: Any) -> None:
    async def main() -> None:
        go_on = threading.Event()

        @http.blocking
        def handler(w: Any, r: Any) -> None:
            go_on.wait(10)
            w.write(b"finished")

        async with serving(handler) as s:
            c = await s.client()
            await c.send(request())
            await eventually(lambda: s.server.active_connections)
            stopping = asyncio.create_task(s.server.shutdown(10))
            await eventually(lambda: s.server.shutting_down)
            go_on.set()
            answer = await c.answer()
            assert (answer.body, answer.headers["connection"]) == (b"finished", "close")
            c.close()
            assert await stopping == 0

    run(main())


def test_wrapped_writer(run: Any) -> None:
    """Middleware in front of a blocking handler keeps its say."""

    class Shouting(http.WriterWrapper):
        def write(self, data: Any) -> Any:
            return super().write(bytes(data).upper())

    @http.blocking
    def handler(w: Any, r: Any) -> None:
        w.write(b"quiet ")
        w.flush()
        w.write(b"words")

    async def main() -> None:
        async with serving(lambda w, r: handler(Shouting(w), r)) as s:
            assert (await s.get()).body == b"QUIET WORDS"

    run(main())
