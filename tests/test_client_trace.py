"""ClientTrace: every hook in its place, whatever way a request goes, and hooks that fail."""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http

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
HOOKS = [field.name for field in fields(http.ClientTrace)]


class Recording:
    """Writes down what is called. events: (hook, *arguments); names: the hooks alone."""

    def __init__(self, *, fail: str = "") -> None:
        self.events: list[tuple[Any, ...]] = []

        def recorder(name: str) -> Any:
            def record(*arguments: Any) -> None:
                self.events.append((name, *arguments))
                if name == fail:
                    raise RuntimeError(f"{name} fails")

            return record

        self.trace = http.ClientTrace(**{name: recorder(name) for name in HOOKS})

    @property
    def names(self) -> list[str]:
        """Without repetitions of the same one."""
        found: list[str] = []
        for name, *_ in self.events:
            if found[-1:] != [name]:
                found.append(name)
        return found

    def of(self, name: str) -> Any:
        """The arguments of the only call."""
        (event,) = [event for event in self.events if event[0] == name]
        return event[1:]


@both_loops
def test_the_order_of_events(run: Run) -> None:
    async def main() -> None:
        async with h.peer() as peer, h.transport() as sender:
            addr = f"127.0.0.1:{peer.port}"
            seen = Recording()
            with http.with_client_trace(seen.trace):
                await h.whole(sender, peer.get(header={"B": "1", "A": "2"}))
            assert seen.names == [
                "get_conn",
                "connect_start",
                "connect_done",
                "got_conn",
                "wrote_header_field",
                "wrote_headers",
                "wrote_request",
                "got_first_response_byte",
                "put_idle_conn",
            ]
            assert seen.of("get_conn") == (addr,)
            assert seen.of("connect_start") == ("tcp", addr)
            assert seen.of("connect_done") == ("tcp", addr, None)
            (info,) = seen.of("got_conn")
            assert (info.reused, info.was_idle, info.idle_time) == (False, False, 0.0)
            assert info.conn in h.only_pool(sender).conns
            assert seen.of("wrote_request") == (None,)
            assert seen.of("put_idle_conn") == (None,)
            assert [event[1:] for event in seen.events if event[0] == "wrote_header_field"] == [
                ("Host", [addr]),
                ("User-Agent", [f"prefork/{__import__('prefork').__version__}"]),
                ("A", ["2"]),
                ("B", ["1"]),
                ("Accept-Encoding", ["gzip"]),
            ]
            seen = Recording()
            with http.with_client_trace(seen.trace):
                await h.whole(sender, peer.get())
            assert seen.names[:3] == ["get_conn", "got_conn", "wrote_header_field"]
            (info,) = seen.of("got_conn")
            assert (info.reused, info.was_idle) == (True, True)
            assert 0 <= info.idle_time < 5
            before = len(seen.events)
            await h.whole(sender, peer.get())
            assert len(seen.events) == before  # the trace has ended

    run(main())


@both_loops
def test_dns_and_tls(run: Run) -> None:
    async def main() -> None:
        tls = h.dial.server_context("one.test")
        async with h.peer(tls=tls) as peer, h.transport(tls_config=h.dial.trusting()) as sender:
            seen = Recording()
            with h.dial.names(["127.0.0.1"]), http.with_client_trace(seen.trace):
                await h.whole(sender, http.Request("GET", f"https://one.test:{peer.port}/"))
            assert seen.names[:8] == [
                "get_conn",
                "dns_start",
                "dns_done",
                "connect_start",
                "connect_done",
                "tls_handshake_start",
                "tls_handshake_done",
                "got_conn",
            ]
            assert seen.of("dns_start") == ("one.test",)
            assert seen.of("dns_done") == (["127.0.0.1"], None)
            ssl_object, error = seen.of("tls_handshake_done")
            assert error is None
            assert ssl_object.version().startswith("TLSv1")

    run(main())


@both_loops
def test_bodies_and_100_continue(run: Run) -> None:
    async def server(line: Any) -> None:
        received = await line.head()
        line.send("HTTP/1.1 100 Continue\r\n\r\n")
        await line.body(received)
        line.reply("thanks")
        await h.answering(line)

    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    async def main() -> None:
        async with h.peer(server) as peer, h.transport() as sender:
            seen = Recording()
            with http.with_client_trace(seen.trace):
                await h.whole(sender, peer.post(body(), header={"Expect": "100-continue"}))
                await h.until(lambda: seen.names[-1] == "put_idle_conn")
            assert seen.names[3:] == [
                "got_conn",
                "wrote_header_field",
                "wrote_headers",
                "wait_100_continue",
                "got_first_response_byte",
                "got_100_continue",
                "got_1xx_response",
                "wrote_request",
                "put_idle_conn",
            ]
            assert len([event for event in seen.events if event[0] == "wrote_headers"]) == 1
            status, header = seen.of("got_1xx_response")
            assert status == 100
            assert isinstance(header, http.Header)
            for size in (10, 100_000, 300_000):
                seen = Recording()
                with http.with_client_trace(seen.trace):
                    await h.whole(sender, peer.post(b"x" * size))
                    await h.until(lambda seen=seen: seen.names[-1] == "put_idle_conn")
                assert seen.names[1:] == [
                    "got_conn",
                    "wrote_header_field",
                    "wrote_headers",
                    "wrote_request",
                    "got_first_response_byte",
                    "put_idle_conn",
                ]

    run(main())


@both_loops
def test_what_goes_wrong_is_told(run: Run) -> None:
    async def server(line: Any) -> None:
        received = await line.head()
        if received.target == "/close":
            line.reply("bye", "Connection: close")
        elif received.target == "/early":
            line.reply("early")
            await line.closed()
        else:
            await line.closed()

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        raise ValueError("broken")

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async def main() -> None:
        async with h.peer(server) as peer, h.transport() as sender:
            seen = Recording()
            with http.with_client_trace(seen.trace):
                await h.whole(sender, peer.get("/close"))
            assert seen.names[-1] == "put_idle_conn"
            assert isinstance(seen.of("put_idle_conn")[0], http.ConnectionLost)
            seen = Recording()
            with http.with_client_trace(seen.trace):
                error = await h.failure(sender.round_trip(peer.post(body())), http.RequestBodyError)
            assert seen.of("wrote_request") == (error,)
            seen = Recording()
            with http.with_client_trace(seen.trace):
                await h.whole(sender, peer.post(endless(), "/early"))
                await h.until(lambda: seen.names[-1] == "wrote_request")
            assert isinstance(seen.of("wrote_request")[0], http.ConnectionLost)
            seen = Recording()
            with http.with_client_trace(seen.trace):
                url = f"http://127.0.0.1:{h.dial.refusing()}/"
                await h.failure(sender.round_trip(http.Request("GET", url)), http.ConnectError)
            assert seen.names == ["get_conn", "connect_start", "connect_done"]
            assert isinstance(seen.of("connect_done")[2], OSError)
            seen = Recording()
            with http.with_client_trace(seen.trace), h.dial.names(OSError("no")):
                await h.failure(
                    sender.round_trip(http.Request("GET", "http://nowhere.test/")), http.ConnectError
                )
            assert seen.names == ["get_conn", "dns_start", "dns_done"]
            assert seen.of("dns_done")[0] == []
            assert isinstance(seen.of("dns_done")[1], Exception)

    run(main())


@both_loops
def test_a_retry(run: Run) -> None:
    async def dying(line: Any) -> None:
        await line.request()
        line.reply("x")
        if line.number:
            await h.answering(line)
        await line.request()

    async def main() -> None:
        async with h.peer(dying) as peer, h.transport() as sender:
            await h.whole(sender, peer.get())
            seen = Recording()
            with http.with_client_trace(seen.trace):
                await h.whole(sender, peer.get())
            conns = [event[1] for event in seen.events if event[0] == "got_conn"]
            assert [info.reused for info in conns] == [True, False]

    run(main())


def test_traces_are_added_to_those_that_apply(run: Run) -> None:
    async def main() -> None:
        order: list[str] = []
        outer = http.ClientTrace(
            got_conn=lambda info: order.append("outer"), get_conn=lambda addr: order.append("outer get")
        )
        inner = http.ClientTrace(
            got_conn=lambda info: order.append("inner"), wrote_headers=lambda: order.append("inner wrote")
        )
        async with h.peer() as peer, h.transport() as sender:
            with http.with_client_trace(outer):
                assert http.context_client_trace() is outer
                with http.with_client_trace(inner):
                    task = asyncio.create_task(h.whole(sender, peer.get()))  # tasks begun there are traced
                await task
                assert order == ["outer get", "inner", "outer", "inner wrote"]
                order.clear()
                await h.whole(sender, peer.get())
                assert order == ["outer get", "outer"]
            assert http.context_client_trace() is None

    run(main())


@pytest.mark.parametrize("size", [0, 300_000])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_fails(hook: str, size: int) -> None:
    """Its error is the request's, if that can still fail; nobody waits for ever, and nothing is left."""
    faults: list[Any] = []

    async def server(line: Any) -> None:
        while (received := await line.head()) is not None:
            if "expect" in received.fields:
                line.send("HTTP/1.1 100 Continue\r\n\r\n")
            await line.body(received)
            if received.target != "/next":
                line.send("HTTP/1.1 103 Early Hints\r\n\r\n")
            line.reply("x" * size)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        tls = h.dial.server_context("one.test")
        async with (
            asyncio.timeout(20),
            h.peer(server, tls=tls) as peer,
            h.transport(tls_config=h.dial.trusting(), max_conns_per_host=1) as sender,
        ):
            url = f"https://one.test:{peer.port}/"
            for header in (None, {"Expect": "100-continue"}):
                seen = Recording(fail=hook)
                with h.dial.names(["127.0.0.1"]):
                    request = http.Request("POST", url, body=b"x", header=header)
                    with http.with_client_trace(seen.trace):
                        try:
                            assert (await h.whole(sender, request))[0] == 200
                        except RuntimeError as error:
                            assert str(error) == f"{hook} fails"  # noqa: PT017
                        else:
                            late = hook in ("put_idle_conn", "wrote_request")
                            assert late or hook not in seen.names
                    # The one place for a connection is free again.
                    assert (await h.whole(sender, http.Request("GET", url + "next")))[0] == 200
                await h.until(lambda: sender.stats().active == 0)
                h.check_pool(sender)
                sender.close_idle_connections()

    with asyncio.Runner() as runner:
        runner.run(main())
    assert [str(fault["exception"]) for fault in faults] in ([], [f"{hook} fails"], [f"{hook} fails"] * 2)
