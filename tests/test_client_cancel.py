"""10,000 requests cancelled anywhere: nothing is left, and the next response is the right one.

The server answers as it likes: slowly, in chunks, compressed, early, with interim responses, or with the end
of the connection. Every answer names its request, so that one that went astray is found at once.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import importlib.util
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http
from prefork.http.client.persist_conn import PersistConn
from prefork.http.message.source_body import SourceBody

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
CANCELLED = 834  # calls of three kinds, four times: 10,008


class Server:
    """One that answers as it likes. posts: how often each POST arrived with its whole head."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.posts: dict[str, int] = {}

    async def pause(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        if self.random.random() < 0.04:
            await asyncio.sleep(self.random.random() * 0.002)

    async def __call__(self, line: Any) -> None:
        choice = self.random
        while (received := await line.head()) is not None:
            line.peer.requests.clear()
            name = received.target
            if received.method == "POST":
                self.posts[name] = self.posts.get(name, 0) + 1
            await self.pause()
            if choice.random() < 0.06:
                return line.reset() if choice.random() < 0.5 else None
            early = choice.random() < 0.1
            if "expect" in received.fields and choice.random() < 0.7:
                line.send("HTTP/1.1 100 Continue\r\n\r\n")
            if not early:
                await line.body(received)
            if choice.random() < 0.2:
                line.send("HTTP/1.1 103 Early Hints\r\nLink: <wrong>\r\n\r\n")
                await self.pause()
            ends = choice.random() < 0.08
            await self.answer(line, received, ends)
            if ends:
                return None
            if early:
                await line.body(received)
        return None

    async def answer(self, line: Any, received: Any, ends: bool) -> None:
        choice = self.random
        body = f"{received.target}\n".encode() * choice.choice((1, 1, 10, 800))
        fields = f"X-Name: {received.target}\r\n" + ("Connection: close\r\n" if ends else "")
        if received.fields.get("accept-encoding") == "gzip" and choice.random() < 0.3:
            body = gzip.compress(body, 1)
            fields += "Content-Encoding: gzip\r\n"
        pieces = [body]
        if choice.random() < 0.5:
            cuts = sorted(choice.randrange(len(body) + 1) for _ in range(3))
            pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        kind = choice.random()
        if kind < 0.4:
            head = f"HTTP/1.1 200 OK\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode()
        elif kind < 0.9 or not ends:
            head = f"HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n".encode()
            pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
            pieces.append(b"0\r\nX-Last: yes\r\n\r\n")
        else:
            head = f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode()
        if choice.random() < 0.3:
            line.send(head[:20])
            await self.pause()
            head = head[20:]
        if len(pieces) == 1:
            return line.send(head + pieces[0])
        line.send(head)
        for piece in pieces:
            await self.pause()
            line.send(piece)
        await line.drain()
        return None


class Requests:
    """Calls of all kinds, one after another, some of them cancelled."""

    def __init__(self, client: http.Client, peer: Any, seed: int) -> None:
        self.client = client
        self.peer = peer
        self.random = random.Random(seed)
        self.number = 0
        self.begun = self.ended = 0
        self.outcomes: dict[str, int] = {}

    async def generator(self, name: str) -> AsyncIterator[bytes]:
        self.begun += 1
        try:
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)
                yield name.encode() * self.random.choice((1, 1000))
        finally:
            self.ended += 1

    def request(self, name: str) -> http.Request:
        choice = self.random
        header = {"Expect": "100-continue"} if choice.random() < 0.15 else None
        kind = choice.randrange(8)
        if kind < 4:
            return self.peer.get(name)  # type: ignore[no-any-return]
        if kind == 4:
            return self.peer.post(name.encode(), name, header=header)  # type: ignore[no-any-return]
        if kind == 5:
            return self.peer.post(b"x" * 270_000, name, header=header)  # type: ignore[no-any-return]
        body = self.generator(name)
        if kind == 6:
            return self.peer.get(name, body=body)  # type: ignore[no-any-return]
        return self.peer.post(body, name, header=header)  # type: ignore[no-any-return]

    async def call(self, name: str, *, kind: int) -> None:
        """One call, whose answer must be its own."""
        request = self.request(name)
        line = f"{name}\n".encode()
        if kind == 0:
            response = await self.client.do(request)
            assert response.header["X-Name"] == name
            assert response.body == line * (len(response.body) // len(line))
            return
        async with self.client.do(request) as response:
            assert response.header["X-Name"] == name
            if kind == 1:
                data = b"".join([piece async for piece in response.body])
                assert data == line * (len(data) // len(line))
                if response.transfer_encoding:
                    assert response.trailer["X-Last"] == "yes"
            else:
                data = await response.body.read(len(line))
                assert line.startswith(data)

    async def one(self, *, cancelled: bool) -> None:
        choice = self.random
        self.number += 1
        name = f"/{id(self)}/{self.number}"
        coroutine = self.call(name, kind=choice.randrange(3))
        if cancelled:
            waits = choice.choice((0, 0, 1, 1, 2, 3, 4, 6, 9, 15))
            attempt = h.dial._CancelledAt(coroutine, waits, late=choice.random() < 0.5)
            task = asyncio.create_task(awaited(attempt))
        else:
            task = asyncio.create_task(coroutine)
        await asyncio.wait([task])
        if task.cancelled():
            outcome = "cancelled"
        else:
            try:
                task.result()
                outcome = "answered"
            except (http.ConnectionLost, http.ClientTimeout, http.PoolTimeout) as error:
                outcome = type(error).__name__
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


async def awaited(awaitable: Any) -> Any:
    return await awaitable


def check_at_any_time(pool: Any) -> None:
    """What is true of a pool whatever is under way."""
    assert pool.idle == sum(len(host.idle) for host in pool.hosts.values())
    for host in pool.hosts.values():
        assert host.conns >= len(host.idle) + host.dialing >= 0
        assert host.conns or host.waiting
        assert pool._max_per_host is None or host.conns <= pool._max_per_host
        for conn in host.idle:
            assert not conn.is_closed
            assert conn._request is None
            assert conn._waiter is None
            assert conn._sender is None
            assert conn._written
            assert conn in pool.conns


@pytest.mark.both_loops
@pytest.mark.parametrize("kind", ["one at a time", "at once", "few connections"])
@pytest.mark.parametrize("seed", [1, 2])
def test_cancel_anywhere(run: Run, kind: str, seed: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        if seed == 2 and isinstance(loop, asyncio.SelectorEventLoop):
            # Some programs have it, from CPython 3.12 on. (uvloop 0.23 does not know it there.)
            loop.set_task_factory(getattr(asyncio, "eager_task_factory", None))
        server = Server(seed)
        options: dict[str, Any] = {"max_conns_per_host": 3} if kind == "few connections" else {}
        async with h.peer(server) as peer:
            async with h.transport(expect_continue_timeout=0.002, **options) as sender:
                await calls_of_all_kinds(server, peer, sender)
            await peer.all_closed()

    async def calls_of_all_kinds(server: Server, peer: Any, sender: http.Transport) -> None:
        patient = http.Client(transport=sender)
        hasty = http.Client(transport=sender, timeout=0.004)
        calls = Requests(patient, peer, seed)

        async def worker(number: int) -> None:
            mine = Requests(hasty if number % 4 == 3 else patient, peer, seed * 100 + number)
            mine.outcomes = calls.outcomes
            while calls.outcomes.get("cancelled", 0) < CANCELLED:
                await mine.one(cancelled=True)
                check_at_any_time(pool())
                await mine.one(cancelled=False)
            calls.begun += mine.begun
            calls.ended += mine.ended

        def pool() -> Any:
            return h.only_pool(sender)

        workers = 1 if kind == "one at a time" else 12
        await asyncio.gather(*(worker(number) for number in range(workers)))
        await h.until(lambda: sender.stats().active == sender.stats().dialing == 0)
        h.check_pool(sender)
        check_at_any_time(pool())
        assert calls.outcomes["answered"] > CANCELLED // 2, calls.outcomes
        assert calls.begun == calls.ended, "a body was not closed"
        assert max(server.posts.values()) == 1, "a POST was sent twice"
        stats = sender.stats()
        assert stats.reuses > stats.requests // 3, stats

    def alive() -> list[Any]:
        gc.collect()
        kinds = (PersistConn, http.ResponseBody, http.Response, http.Request, SourceBody, http.Call)
        return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]

    before = {id(thing) for thing in alive()}  # other tests' tables have some
    run(main(), timeout=60)
    left = [thing for thing in alive() if id(thing) not in before]
    assert not left, left[:10]
