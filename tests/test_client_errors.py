"""A Client whose time runs out, or whose requests fail."""

from __future__ import annotations

import asyncio
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.client.client import Client
from prefork.http.errors import (
    ClientTimeout,
    ConnectError,
    ConnectionLost,
    HTTPTimeout,
    LocalProtocolError,
    PoolTimeout,
    TransportError,
)
from prefork.http.message.request import Request

if TYPE_CHECKING:
    from prefork.http.message.response import Response

HELPERS = Path(__file__).with_name("helpers_client.py")
_spec = importlib.util.spec_from_file_location("helpers_client", HELPERS)
assert _spec is not None
assert _spec.loader is not None
_helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_helpers)
rows = _helpers.rows
Fake = _helpers.Fake
OwnFake = _helpers.OwnFake
source_of = _helpers.source_of
streaming = _helpers.streaming
found = _helpers.found
forever = _helpers.forever

Row = dict[str, Any]
Run = Any


# Time.


@pytest.mark.both_loops
def test_the_timeout_awaiting_the_header(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ClientTimeout) as caught:
            await Client(transport=Fake(forever), timeout=0.02).get("http://u:p@a.com/")
        error = caught.value
        assert str(error) == (
            'Get "http://u:***@a.com/": context deadline exceeded '
            "(Client.Timeout exceeded while awaiting headers)"
        )
        assert isinstance(error, TimeoutError)
        assert isinstance(error, HTTPTimeout)
        assert error.phase == "header"
        assert not error.retryable

    run(main())


def test_the_timeout_is_for_all_hops(run: Run) -> None:
    async def main() -> None:
        fake = Fake(found("/2"), forever)
        with pytest.raises(ClientTimeout, match=r'^Get "http://a.com/2": '):
            await Client(transport=fake, timeout=0.02).get("http://a.com/")
        assert fake.requests[0]._deadline == fake.requests[1]._deadline

    run(main())


def test_the_timeout_reading_the_body(run: Run) -> None:
    async def main() -> None:
        response = streaming(200, b"some", end=False)
        with pytest.raises(ClientTimeout) as caught:
            await Client(transport=Fake(response), timeout=0.02).get("http://a.com/")
        assert str(caught.value) == (
            'Get "http://a.com/": context deadline exceeded '
            "(Client.Timeout or context cancellation while reading body)"
        )
        assert caught.value.phase == "body"
        assert response.body.closed

    run(main())


def test_a_transport_has_the_deadline(run: Run) -> None:
    """It is told, and raises by itself; what it says is completed."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for error in (
            PoolTimeout("context deadline exceeded: all busy"),
            ClientTimeout("context deadline exceeded"),
        ):
            fake = OwnFake(error)
            before = loop.time()
            with pytest.raises(type(error)) as caught:
                await Client(transport=fake, timeout=30).get("http://a.com/")
            assert before + 30 <= fake.requests[0]._deadline <= loop.time() + 30  # type: ignore[operator]
            assert caught.value.text.endswith(" (Client.Timeout exceeded while awaiting headers)")
            assert caught.value.args == (caught.value.text,)
        response = streaming(200, end=False)
        response.body.feed_error(ClientTimeout("context deadline exceeded", phase="body"))
        with pytest.raises(ClientTimeout, match="or context cancellation while reading body") as caught:
            await Client(transport=OwnFake(response), timeout=30).get("http://a.com/")

    run(main())


def test_a_deadline_stays_with_its_call(run: Run) -> None:
    async def main() -> None:
        fake = Fake()
        request = Request("GET", "http://a.com/")
        await Client(transport=fake, timeout=30).do(request)
        assert request._deadline is None
        assert fake.requests[0]._deadline is not None
        await Client(transport=fake).do(fake.requests[0])
        assert fake.requests[1]._deadline is None
        await Client(transport=fake).do(request)
        assert fake.requests[2] is request

    run(main())


def test_a_timeout_of_the_caller_is_the_callers(run: Run) -> None:
    async def main() -> None:
        for timeout in (None, 30):
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.01):
                    await Client(transport=Fake(forever), timeout=timeout).get("http://a.com/")
            assert not isinstance(caught.value, HTTPTimeout)

    run(main())


def test_cancellation(run: Run) -> None:
    async def main() -> None:
        begun = asyncio.Event()
        cancelled = []

        async def wait(request: Request) -> None:
            begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        file = io.BytesIO(b"x")
        task = asyncio.create_task(
            Client(transport=Fake(wait), timeout=30).post("http://a.com/", "a/b", file)
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cancelled == [True]
        assert file.closed
        response = streaming(200, b"some", end=False)
        task = asyncio.create_task(Client(transport=Fake(response)).get("http://a.com/"))
        await source_of(response).wanted.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert response.body.closed

    run(main())


# Errors.


@pytest.mark.parametrize("row", rows("client_strip_password"))
@pytest.mark.parametrize("fake", [Fake, OwnFake])
def test_vector_strip_password(run: Run, row: Row, fake: Any) -> None:
    async def main() -> None:
        with pytest.raises(TransportError) as caught:
            await Client(transport=fake(TransportError("dummy impl"))).get(row["url"])
        assert str(caught.value) == row["error"]

    run(main())


def test_errors_are_named_in_place(run: Run) -> None:
    async def main() -> None:
        error = ConnectError("connect: connection refused", addr="a.com:80")
        with pytest.raises(ConnectError) as caught:
            await Client(transport=Fake(error)).do(Request("PROPFIND", "http://a.com/x"))
        assert caught.value is error
        assert (error.op, error.url, error.addr, error.phase) == (
            "Propfind",
            "http://a.com/x",
            "a.com:80",
            "dial",
        )
        assert error.retryable
        fake = Fake(found("http://b.com/"), TransportError("gone"))
        with pytest.raises(TransportError, match=r'^Post "http://b.com/": gone$'):
            await Client(transport=fake).post("http://a.com/", "a/b", b"x")
        inner = TransportError("no token", op="Post", url="http://login/")
        with pytest.raises(TransportError, match=r'^Post "http://login/": no token$'):
            await Client(transport=Fake(inner)).get("http://a.com/")

    run(main())


def test_errors_of_the_body_are_named(run: Run) -> None:
    async def main() -> None:
        def lost() -> Response[Any]:
            response = streaming(200, b"some", end=False)
            response.body.feed_error(ConnectionLost("unexpected EOF", phase="body"))
            return response

        with pytest.raises(ConnectionLost, match=r'^Get "http://a.com/": unexpected EOF$'):
            await Client(transport=Fake(lost())).get("http://a.com/")
        with pytest.raises(ConnectionLost, match=r'^Get "http://a.com/2": unexpected EOF$'):
            async with Client(transport=Fake(found("/2"), lost())).get("http://a.com/") as response:
                await response.body.read()
        with pytest.raises(TransportError, match=r"^another$") as caught:
            async with Client(transport=Fake(lost())).get("http://a.com/"):
                raise TransportError("another")
        assert caught.value.url == ""

    run(main())


@pytest.mark.parametrize("error", [LocalProtocolError("mine"), ValueError("bad"), KeyError("k")])
def test_other_errors_pass_unchanged(run: Run, error: Exception) -> None:
    async def main() -> None:
        with pytest.raises(type(error)) as caught:
            await Client(transport=Fake(error), timeout=5).get("http://a.com/")
        assert caught.value is error

    run(main())


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "Connection refused"), TimeoutError()])
def test_errors_of_the_system_are_translated(run: Run, error: OSError) -> None:
    async def main() -> None:
        for timeout in (None, 5):
            with pytest.raises(TransportError) as caught:
                await Client(transport=Fake(error), timeout=timeout).get("http://a.com/")
            assert str(caught.value) == f'Get "http://a.com/": {str(error) or "TimeoutError"}'
            assert caught.value.__cause__ is error
            assert caught.value.phase == "header"
            response = streaming(200, end=False)
            response.body.feed_error(error)
            with pytest.raises(TransportError) as caught:
                await Client(transport=Fake(response), timeout=timeout).get("http://a.com/")
            assert caught.value.phase == "body"

    run(main())


def test_a_round_tripper_that_returns_nothing(run: Run) -> None:
    class Nothing:
        async def round_trip(self, request: Request) -> Any:
            return None

    async def main() -> None:
        with pytest.raises(
            LocalProtocolError, match=r"RoundTripper implementation \(Nothing\) returned None"
        ):
            await Client(transport=Nothing()).get("http://a.com/")

    run(main())
