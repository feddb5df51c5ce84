"""Client and Call: what is sent, and what comes back."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.client import client as client_module
from prefork.http.client.client import Client, default_client, get, head, post, post_form
from prefork.http.client.transport import Transport
from prefork.http.errors import (
    BodyTooLarge,
    LocalProtocolError,
    TransportError,
)
from prefork.http.message.header import Header
from prefork.http.message.request import Request
from prefork.http.message.response import Response
from prefork.http.message.source_body import source_body
from prefork.http.message.url import URL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


HELPERS = Path(__file__).with_name("helpers_client.py")
_spec = importlib.util.spec_from_file_location("helpers_client", HELPERS)
assert _spec is not None
assert _spec.loader is not None
_helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_helpers)
Fake = _helpers.Fake
OwnFake = _helpers.OwnFake
FakeJar = _helpers.FakeJar
source_of = _helpers.source_of
streaming = _helpers.streaming
found = _helpers.found
pieces = _helpers.pieces

Row = dict[str, Any]
Run = Any


# What is asked for, and what comes back.


@pytest.mark.both_loops
def test_get(run: Run) -> None:
    fake = Fake(Response(200, header={"Content-Type": "text/plain"}, body=b"hi"))

    async def main() -> None:
        async with Client(transport=fake) as client:
            response = await client.get("http://a.com/x?q=1", header={"Accept": "text/plain"})
        assert (response.status, response.body, response.text()) == (200, b"hi", "hi")
        assert response.request is fake.requests[0]

    run(main())
    assert fake.sent == [("GET", "http://a.com/x?q=1", {"Accept": ["text/plain"]}, None)]


def test_the_other_methods(run: Run) -> None:
    fake = Fake()
    form = "application/x-www-form-urlencoded"
    mine = Header({"X": "1", "content-type": "gone"})

    async def main() -> None:
        client = Client(transport=fake)
        await client.head(URL.parse("http://a.com/"), header=[("X", "1")])
        await client.post("http://a.com/", "text/plain", "hi")
        await client.post("http://a.com/", "text/plain", None, header=mine)
        await client.post_form("http://a.com/", {"b": ["1", "2"], "a": "x y"})
        await client.do(Request("PUT", "http://a.com/", body=pieces()))
        response = await client.do(Request("DELETE", "http://a.com/"))
        assert response.body == b"ok"

    run(main())
    url = "http://a.com/"
    assert fake.sent == [
        ("HEAD", url, {"X": ["1"]}, None),
        ("POST", url, {"Content-Type": ["text/plain"]}, b"hi"),
        ("POST", url, {"Content-Type": ["text/plain"], "X": ["1"]}, None),
        ("POST", url, {"Content-Type": [form]}, b"a=x+y&b=1&b=2"),
        ("PUT", url, {}, b"body"),
        ("DELETE", url, {}, None),
    ]
    assert mine["Content-Type"] == "gone"


def test_the_functions_use_the_default_client(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(default_client.transport, Transport)
    fake = Fake()
    monkeypatch.setattr(client_module, "default_client", Client(transport=fake))

    async def main() -> None:
        await get("http://a.com/", header={"X": "1"})
        await head("http://a.com/")
        await post("http://a.com/", "text/plain", b"x")
        await post_form("http://a.com/", {"a": "1"})

    run(main())
    assert [method for method, *_ in fake.sent] == ["GET", "HEAD", "POST", "POST"]


def test_a_status_is_no_error(run: Run) -> None:
    response = run(
        Client(transport=Fake(Response(503, body=b"busy")))._do(Request("GET", "http://a.com/"), None)
    )
    assert (response.status, response.body) == (503, b"busy")


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="timeout must be more than 0"):
        Client(timeout=0)
    with pytest.raises(ValueError, match="max_body_bytes must not be negative"):
        Client(max_body_bytes=-1)
    with pytest.raises(ValueError, match="parse"):
        Client(transport=Fake()).get("http://a b/")
    received = Request("GET", "http://a.com/")
    received._head = "GET / HTTP/1.1\r\n\r\n"
    with pytest.raises(LocalProtocolError, match="RequestURI can't be set in client requests"):
        Client(transport=Fake()).do(received)


def test_repr() -> None:
    fake = Fake()
    assert repr(Client(transport=fake)) == f"<Client {fake!r}>"
    assert (
        repr(Client(transport=fake, timeout=2.5, jar=FakeJar()))
        == f"<Client timeout=2.5s jar=FakeJar {fake!r}>"
    )
    assert repr(Client()).startswith("<Client <Transport ")
    call = Client(transport=fake).get("http://u:secret@a.com/")
    assert repr(call) == "<Call GET http://u:xxxxx@a.com/>"
    call.close()


# The body: awaited, streaming, too large.


def test_awaited_bodies_are_read(run: Run) -> None:
    async def main() -> None:
        response = await Client(transport=Fake(streaming(200, b"he", b"llo"))).get("http://a.com/")
        assert response.body == b"hello"
        late = streaming(end=False)
        call = asyncio.create_task(Client(transport=Fake(late)).get("http://a.com/"))
        await source_of(late).wanted.wait()
        late.body.feed(b"late")
        late.body.feed_end()
        assert (await call).body == b"late"

    run(main())


def test_streaming(run: Run) -> None:
    async def main() -> None:
        response = streaming(200, b"1", b"2", end=False)
        async with Client(transport=Fake(response)).get("http://a.com/") as entered:
            assert entered is response
            assert await entered.body.read(1) == b"1"
            assert not entered.body.closed
            source = source_of(response)
        assert entered.body.closed
        assert source.calls == ["refused"]
        with pytest.raises(LocalProtocolError, match="closed response body"):
            await entered.body.read()
        async with Client(transport=Fake(Response(200, body=b"here"))).get("http://a.com/") as entered:
            assert [chunk async for chunk in entered.body] == [b"here"]

    run(main())


def test_streaming_is_closed_when_its_reader_fails(run: Run) -> None:
    async def main() -> None:
        response = streaming(end=False)
        with pytest.raises(ZeroDivisionError):
            async with Client(transport=Fake(response)).get("http://a.com/"):
                raise ZeroDivisionError
        assert response.body.closed

    run(main())


def test_a_response_that_somebody_had_read_before(run: Run) -> None:
    """A RoundTripper may be made of another Client, whose responses have bytes."""

    class Inner:
        async def round_trip(self, request: Request) -> Response[Any]:
            return await Client(transport=Fake(Response(200, body=b"in"))).do(request)

    async def main() -> None:
        async with Client(transport=Inner()).get("http://a.com/") as response:
            assert await response.body.read() == b"in"
        assert (await Client(transport=Inner()).get("http://a.com/")).body == b"in"

    run(main())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Response(200, body=b"12345"),
        lambda: streaming(200, b"123", b"45"),
        lambda: streaming(200, b"12345", end=False),
        lambda: streaming(200, end=False, length=5),
    ],
)
@pytest.mark.parametrize("fake", [Fake, OwnFake])
def test_max_body_bytes(run: Run, make: Callable[[], Response[Any]], fake: Any) -> None:
    async def main() -> None:
        response = make()
        with pytest.raises(
            BodyTooLarge, match=r'^Get "http://a.com/": response body larger than 4 bytes'
        ) as caught:
            await Client(transport=fake(response), max_body_bytes=4).get("http://a.com/")
        assert caught.value.phase == "body"
        if response._stream is not None:
            assert response.body.closed
        async with Client(transport=fake(make()), max_body_bytes=4).get("http://a.com/") as response:
            if response.content_length < 0:
                response.body.feed_end()
                assert await response.body.read() == b"12345"

    run(main())


def test_max_body_bytes_that_are_not_reached(run: Run) -> None:
    async def main() -> None:
        for limit in (5, None):
            for response in (Response(200, body=b"12345"), streaming(200, b"123", b"45")):
                client = Client(transport=Fake(response), max_body_bytes=limit)
                assert (await client.get("http://a.com/")).body == b"12345"

    run(main())


# Calls.


def test_a_call_is_made_once(run: Run) -> None:
    fake = Fake()

    async def main() -> None:
        call = Client(transport=fake).get("http://a.com/")
        await call
        with pytest.raises(RuntimeError, match=r"^<Call GET http://a.com/> has been made already"):
            await call
        with pytest.raises(RuntimeError, match="made already"):
            async with call:
                pass
        with pytest.raises(RuntimeError, match="made already"):
            call.send(None)

    run(main())
    assert len(fake.sent) == 1


@pytest.mark.both_loops
def test_a_call_is_a_coroutine_to_asyncio(run: Run) -> None:
    fake = Fake(lambda _: streaming(200, b"1"), lambda _: streaming(200, b"2"), Response(200, body=b"3"))

    async def main() -> None:
        client = Client(transport=fake)
        task = asyncio.create_task(client.get("http://a.com/"))
        assert "Call" in repr(task)
        assert (await task).body == b"1"
        first, second = await asyncio.gather(client.get("http://a.com/"), client.get("http://a.com/"))
        assert {first.body, second.body} == {b"2", b"3"}
        assert (await asyncio.wait_for(client.get("http://a.com/"), 5)).body == b"ok"
        async with asyncio.TaskGroup() as group:
            task = group.create_task(client.get("http://a.com/"))
        assert task.result().status == 200

    run(main())
    assert asyncio.run(Client(transport=fake).get("http://a.com/")).status == 200  # type: ignore[arg-type]


def test_a_call_that_nobody_makes_is_named(run: Run) -> None:
    async def main() -> None:
        call = Client(transport=Fake()).get("http://a.com/")
        with pytest.warns(RuntimeWarning, match=r"^<Call GET http://a.com/> was never awaited$"):
            del call
        call = Client(transport=Fake()).get("http://a.com/")
        call.close()
        call.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del call
            gc.collect()

    run(main())


def test_a_task_that_is_cancelled_before_it_begins(run: Run) -> None:
    fake = Fake()
    file = io.BytesIO(b"x")

    async def main() -> None:
        task = asyncio.create_task(Client(transport=fake).post("http://a.com/", "a/b", file))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert fake.sent == []
    assert file.closed


# Its transport.


class Closable(Transport):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def close(self) -> None:
        self.calls.append("close")

    def close_idle_connections(self) -> None:
        self.calls.append("idle")


def test_a_client_closes_its_own_transport_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "Transport", Closable)

    async def main() -> None:
        async with Client() as client:
            client.close_idle_connections()
        assert client.transport.calls == ["idle", "close"]
        given = Closable()
        async with Client(transport=given) as client:
            client.close_idle_connections()
        assert given.calls == ["idle"]
        fake = Fake()
        async with Client(transport=fake) as client:
            client.close_idle_connections()  # it has none
            assert client.transport is fake

    run(main())


# Files.


def test_files_are_closed_on_every_path(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"body")
    outcomes: list[Any] = [
        Response(200),
        streaming(200, b"x"),
        TransportError("gone"),
        ValueError("bad"),
        found("/x", 303),
        found("http://a b/", 307),
        Response(307),
    ]

    async def main() -> None:
        for outcome in outcomes:
            file = path.open("rb")
            try:
                await Client(transport=Fake(outcome), timeout=5).post("http://a.com/", "a/b", file)
            except (TransportError, ValueError):
                pass
            assert file.closed
        file = path.open("rb")
        async with Client(transport=Fake()).post("http://a.com/", "a/b", file):
            assert not file.closed  # it may still be on its way
        assert file.closed
        file = path.open("rb")
        with pytest.raises(TransportError):
            async with Client(transport=Fake(TransportError("gone"))).post("http://a.com/", "a/b", file):
                pass
        assert file.closed

    run(main())


def test_a_slow_read_does_not_move_a_file_that_was_rewound(run: Run) -> None:
    """A thread that was to read for the first hop comes too late: the second has the file."""

    async def main() -> None:
        request = Request("PUT", "http://a.com/", body=io.BytesIO(b"body"))
        old = request._body
        again = request.get_body
        assert again is not None
        new = again()
        assert old._read_file() == b""  # type: ignore[union-attr]
        assert await new.read() == b"body"  # type: ignore[union-attr]

    run(main())


def test_whether_a_body_is_empty(run: Run) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def nothing() -> AsyncIterator[bytes]:
            yield b""

        async def late() -> AsyncIterator[bytes]:
            await go_on.wait()
            yield b"late"

        assert await source_body(nothing()).is_empty(5)
        body = source_body(pieces())
        assert not await body.is_empty(5)
        assert await body.read() == b"body"
        body = source_body(late())
        assert not await body.is_empty(0.01)
        go_on.set()
        assert await body.read() == b"late"

    run(main())
