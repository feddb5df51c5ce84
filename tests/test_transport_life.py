"""Where a Transport may live: in forked children, on several loops, up to the end of its loop."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from prefork import http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_spec = importlib.util.spec_from_file_location(
    "helpers_transport", Path(__file__).with_name("helpers_transport.py")
)
assert _spec is not None
assert _spec.loader is not None
h: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(h)

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=LOOPS)
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return LOOPS[request.param]


@pytest.fixture
def server() -> Iterator[Any]:
    """A Peer in a thread of its own: it outlives the loops of the test."""
    started, peers, stop = threading.Event(), [], []

    async def serve() -> None:
        async with h.peer() as peer:
            peers.append(peer)
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            stop.append(lambda: loop.call_soon_threadsafe(ended.set))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait(10)
    yield peers[0]
    stop[0]()
    thread.join(10)
    assert not thread.is_alive()


def run_script(text: str, *arguments: object, timeout: float = 60) -> str:
    """The output of a Python program; anything on its standard error fails the test, warnings too."""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(text), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert not done.stderr, done.stderr
    assert done.returncode == 0, done.stdout
    return done.stdout


# --- fork -----------------------------------------------------------------------------------------

FORK = """
    import asyncio, gc, os, sys, traceback
    import uvloop
    from prefork import http

    url, loop_name, tls = sys.argv[1:]
    new_loop = uvloop.new_event_loop if loop_name == "uvloop" else asyncio.new_event_loop
    context = None
    if tls:
        import ssl
        context = ssl.create_default_context(cafile=tls)
    client = http.Client(transport=http.Transport(proxy=None, tls_config=context))

    async def get():
        response = await client.get(url)
        return response.body.split()[0].decode()

    def child(parents):
        # (What forks in the middle of a program may well see the parent's objects go.)
        assert repr(client.transport) == "<Transport 0 connections, 0 idle>", client.transport
        gc.collect()
        async def main():
            mine = await get()
            assert mine not in parents, (mine, parents)
            assert await get() == mine
            assert client.transport.stats().dials == 1
            await client.close()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())
        gc.collect()

    def fork(function, *arguments):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                function(*arguments)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    async def main():
        idle = await get()
        async with client.get(url + "big") as response:
            first = await response.body.read(1000)
            for _ in range(3):
                fork(child, {idle})
            # The idle connection and the one in use go on as if nothing had been.
            rest = await response.body.read()
            assert len(first) + len(rest) == 3_000_000, len(rest)
            number = first.split()[0].decode()
        assert await get() == number
        assert client.transport.stats().dials == 1, client.transport.stats()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
        gc.collect()
    print("well")
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_forked_child_begins_anew(loop: str, scheme: str, tmp_path: Path) -> None:
    """It never touches the parent's connections, however it ends, and the parent goes on with them."""
    authority = tmp_path / "ca.pem"
    h.dial.authority("right").cert_pem.write_to_path(str(authority))
    tls = h.dial.server_context() if scheme == "https" else None

    async def big(line: Any) -> None:
        while (received := await line.request()) is not None:
            text = b"%d " % line.number
            line.reply(text.ljust(3_000_000) if received.target == "/big" else text)
            await line.drain()

    async def main() -> None:
        async with h.peer(big, tls=tls) as peer:
            out = await asyncio.to_thread(run_script, FORK, peer.url(), loop, authority if tls else "")
            assert out == "well\n"
            assert len(peer.lines) == 4
            await peer.all_closed()

    asyncio.run(main())


# --- loops ----------------------------------------------------------------------------------------


def test_loops_in_two_threads_share_a_transport(server: Any) -> None:
    """Each has connections of its own; what one does is no matter for the other."""
    sender = http.Transport(proxy=None, max_conns_per_host=3)
    errors: list[BaseException] = []
    stats: list[http.TransportStats] = []
    barrier = threading.Barrier(4)

    async def work(name: str) -> None:
        async def one(number: int) -> None:
            path = f"/{name}/{number}"
            status, body = await h.whole(sender, server.get(path))
            assert (status, body.split()[2]) == (200, path.encode())

        for _ in range(10):
            await asyncio.gather(*(one(number) for number in range(20)))
        stats.append(sender.stats())
        h.check_pool(sender) if name == "alone" else None
        if name == "closing":
            await sender.close()

    def thread(name: str, new_loop: Any) -> None:
        try:
            barrier.wait(10)
            for _ in range(3):
                with asyncio.Runner(loop_factory=new_loop) as runner:
                    runner.run(work(name))
        except BaseException as error:
            errors.append(error)

    names = [("a", uvloop.new_event_loop), ("b", asyncio.new_event_loop), ("closing", uvloop.new_event_loop)]
    threads = [threading.Thread(target=thread, args=pair) for pair in names]
    for each in threads:
        each.start()
    barrier.wait(10)
    for _ in range(200):
        repr(sender)
    for each in threads:
        each.join(60)
    assert not errors, errors
    assert all((each.requests, each.dials) == (200, 3) for each in stats), stats
    assert not sender._pools


def test_one_loop_after_another(server: Any, new_loop: Any) -> None:
    sender = http.Transport(proxy=None)
    for _ in range(3):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            assert runner.run(h.whole(sender, server.get()))[0] == 200
            assert runner.run(h.whole(sender, server.get()))[0] == 200
            assert repr(sender) == "<Transport 1 connections, 1 idle>"
        assert repr(sender) == "<Transport 0 connections, 0 idle>"
    assert len(server.lines) == 3


def test_a_loop_that_ends_without_a_word(server: Any, new_loop: Any) -> None:
    """Nobody has closed its generators: its connections are garbage, and no other loop is troubled."""
    sender = http.Transport(proxy=None)
    loop = new_loop()
    assert loop.run_until_complete(h.whole(sender, server.get()))[0] == 200
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it was the program's duty
        loop.close()
        del loop
        with asyncio.Runner(loop_factory=new_loop) as runner:
            assert runner.run(h.whole(sender, server.get()))[0] == 200
            assert len(sender._pools) == 1
        gc.collect()


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", ["idle", "streaming", "waiting", "dialing", "sending"])
def test_the_end_of_a_loop_closes_everything(server: Any, new_loop: Any, busy: str) -> None:
    """A Client that nobody has closed: no warning, no descriptor, nothing for the loop to complain of."""
    faults: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        client = http.Client(transport=http.Transport(proxy=None, max_conns_per_host=2))
        assert (await client.get(server.url())).status == 200
        if busy == "idle":
            return
        started = asyncio.Event()

        async def hold() -> None:
            async with client.do(server.post(b"x" * 1_000_000)) as response:
                started.set()
                await asyncio.Event().wait()
                await response.body.read()

        async def endless() -> Any:
            while True:
                yield b"x"
                started.set()
                await asyncio.sleep(0.001)

        async def call() -> None:
            await client.get(server.url())

        if busy == "dialing":
            client.transport._dialer._dial = lambda network, addr: asyncio.Event().wait()  # type: ignore
            tasks = [asyncio.create_task(client.get("http://127.0.0.1:1/")) for _ in range(3)]
            await h.until(lambda: client.transport.stats().dialing)
        elif busy == "sending":
            tasks = [asyncio.create_task(client.post(server.url(), "", endless()))]
            await started.wait()
        else:
            tasks = [asyncio.create_task(hold()), asyncio.create_task(hold())]
            await h.until(lambda: client.transport.stats().active == 2)
            if busy == "waiting":
                tasks += [asyncio.create_task(call()) for _ in range(3)]
                await h.until(lambda: client.transport.stats().waiting == 3)
        main.tasks = tasks  # type: ignore[attr-defined]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())
        gc.collect()
    assert not faults, faults


@pytest.mark.parametrize("debug", [False, True])
def test_a_client_that_is_never_closed(server: Any, debug: bool) -> None:
    """At the end of a whole program, too."""
    script = """
        import asyncio, sys
        from prefork import http

        client = http.Client(transport=http.Transport(proxy=None))

        async def main():
            assert (await client.get(sys.argv[1])).status == 200
            print((await http.get(sys.argv[1])).status)

        asyncio.run(main(), debug=sys.argv[2] == "True")
    """
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    assert environ
    assert run_script(script, server.url(), debug) == "200\n"


def test_transports_that_come_and_go(server: Any, new_loop: Any) -> None:
    """One per request is a waste, but nothing of it stays."""

    async def main() -> None:
        for _ in range(50):
            async with http.Client(transport=None) as client:
                assert (await client.get(server.url())).status == 200
        gc.collect()
        for _ in range(20):
            client = http.Client()
            assert (await client.get(server.url())).status == 200
            client.close_idle_connections()
        del client
        for _ in range(3):
            await asyncio.sleep(0.01)
            gc.collect()
        assert not [t for t in gc.get_objects() if type(t) is http.Transport and t._pools]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
