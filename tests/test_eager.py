"""HandlerRunner: handlers begin at once, and are in one task from their first line to their last."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import subprocess
import sys
import types
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from prefork.http.server.eager import HandlerExit, HandlerRunner

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.both_loops

VAR: contextvars.ContextVar[str] = contextvars.ContextVar("VAR", default="unset")


class Runner:
    """A HandlerRunner whose `run` is called as it must be: from a callback, while no task is running.

    The "request" is a name, the "writer" a list that handlers append to.
    """

    def __init__(self, handler: Callable[[Any, Any], Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ignored: list[Any] = []
        self.runner = HandlerRunner(handler, self.loop, self.ignored.append)
        self.steps: list[Any] = []

    async def run(self, request: Any = "r") -> asyncio.Task[Any] | None:
        result = self.loop.create_future()

        def call() -> None:
            try:
                result.set_result([self.runner.run(self.steps, request)])  # type: ignore[arg-type]
            except BaseException as error:
                result.set_exception(error)

        self.loop.call_soon(call)
        (task,) = await result
        return task  # type: ignore[no-any-return]

    def close(self) -> None:
        self.runner.close()


def test_plain_function_runs_now(run: Any) -> None:
    async def main() -> None:
        runner = Runner(lambda steps, r: steps.append(r))
        assert await runner.run("a") is None
        assert await runner.run("b") is None
        assert runner.steps == ["a", "b"]
        runner.close()

    run(main())


def test_coroutine_that_never_waits_is_done_when_run_returns(run: Any) -> None:
    async def handler(steps: Any, r: Any) -> None:
        await inner(steps)
        steps.append(asyncio.current_task())

    async def inner(steps: Any) -> None:
        steps.append("inner")

    async def main() -> None:
        runner = Runner(handler)
        for _ in range(3):
            assert await runner.run() is None
        assert runner.steps[::2] == ["inner"] * 3
        assert all(isinstance(task, asyncio.Task) for task in runner.steps[1::2])
        assert asyncio.current_task() not in runner.steps
        runner.close()

    run(main())


def test_coroutine_that_waits_goes_on_in_the_same_task(run: Any) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def handler(steps: Any, r: Any) -> str:
            steps.append(asyncio.current_task())
            await gate.wait()
            steps.append(asyncio.current_task())
            await asyncio.sleep(0)
            steps.append(asyncio.current_task())
            return "done"

        runner = Runner(handler)
        task = await runner.run()
        assert task is not None
        assert runner.steps == [task]
        assert task in asyncio.all_tasks()
        gate.set()
        assert await task == "done"
        assert runner.steps == [task] * 3
        assert task not in asyncio.all_tasks()
        runner.close()

    run(main())


def test_many_at_a_time(run: Any) -> None:
    async def main() -> None:
        async def handler(steps: Any, r: Any) -> None:
            for number in range(r):
                await asyncio.sleep(0)
                steps.append((r, number, asyncio.current_task()))

        runner = Runner(handler)
        tasks = [await runner.run(n) for n in (0, 1, 5, 3, 0, 2)]
        await asyncio.wait([task for task in tasks if task is not None])
        for name, task in zip((0, 1, 5, 3, 0, 2), tasks, strict=True):
            mine = [(number, who) for r, number, who in runner.steps if r == name]
            assert mine == [(number, task) for number in range(name)]
        assert tasks[0] is tasks[4] is None
        runner.close()

    run(main())


# --- what handlers return -------------------------------------------------------------------


def test_any_awaitable_is_awaited(run: Any) -> None:
    async def main() -> None:
        ready = asyncio.get_running_loop().create_future()

        class Later:
            def __await__(self) -> Any:
                return ready.__await__()

        @types.coroutine
        def old_style(steps: Any, r: Any) -> Any:
            yield from ready

        def future(steps: Any, r: Any) -> Any:
            return ready

        for handler in (future, lambda w, r: Later(), old_style):
            ready = asyncio.get_running_loop().create_future()
            runner = Runner(handler)
            task = await runner.run()
            if handler is old_style:
                # A generator object has no __await__ of its own: it is a value like any other.
                assert (task, runner.ignored) == (None, ["r"])
            else:
                assert task is not None
                assert not task.done()
                ready.set_result(None)
                await task
                assert runner.ignored == []
            runner.close()

    run(main())


def test_values_are_reported(run: Any) -> None:
    async def coroutine(steps: Any, r: Any) -> str:
        return "value"

    async def main() -> None:
        for handler in (lambda steps, r: "value", lambda steps, r: 0, coroutine):
            runner = Runner(handler)
            assert await runner.run("who") is None
            assert runner.ignored == ["who"]
            runner.close()

    run(main())


# --- exceptions -----------------------------------------------------------------------------


def test_exceptions_before_the_first_wait_come_from_run(run: Any) -> None:
    def plain(steps: Any, r: Any) -> None:
        raise r

    async def coroutine(steps: Any, r: Any) -> None:
        raise r

    async def main() -> None:
        for handler in (plain, coroutine):
            runner = Runner(handler)
            for error in (ValueError("x"), asyncio.CancelledError()):
                with pytest.raises(type(error)):
                    await runner.run(error)
            runner.close()

    run(main())


def test_exceptions_after_it_are_the_tasks(run: Any) -> None:
    async def handler(steps: Any, r: Any) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            steps.append("finally")
        raise r

    async def main() -> None:
        runner = Runner(handler)
        task = await runner.run(ValueError("x"))
        assert task is not None
        with pytest.raises(ValueError, match="x"):
            await task
        assert runner.steps == ["finally"]
        task = await runner.run(asyncio.CancelledError())
        assert task is not None
        await asyncio.wait([task])
        assert task.cancelled()
        runner.close()

    run(main())


@pytest.mark.parametrize("waits", [False, True])
def test_system_exit_does_not_reach_the_loop(run: Any, waits: bool) -> None:
    async def handler(steps: Any, r: Any) -> None:
        if waits:
            await asyncio.sleep(0)
        sys.exit(3)

    async def main() -> None:
        runner = Runner(handler)
        try:
            task = await runner.run()
            assert task is not None
            await task
        except (HandlerExit, SystemExit) as error:
            exit_error = error.__cause__ or error
            assert isinstance(exit_error, SystemExit)
            assert exit_error.code == 3
        else:
            pytest.fail("nothing was raised")
        runner.close()

    run(main())


def test_failure_of_what_is_waited_for(run: Any) -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def handler(steps: Any, r: Any) -> None:
            try:
                await future
            except KeyError as error:
                steps.append(error)
                await asyncio.sleep(0)
                steps.append("recovered")

        runner = Runner(handler)
        task = await runner.run()
        error = KeyError("x")
        future.set_exception(error)
        await task  # type: ignore[misc]
        assert runner.steps == [error, "recovered"]
        runner.close()

    run(main())


# --- cancellation ---------------------------------------------------------------------------


def test_cancelling_a_waiting_handler(run: Any) -> None:
    async def handler(steps: Any, r: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            steps.append(error.args)
            await asyncio.sleep(0)
            steps.append("cleaned up")
            raise

    async def main() -> None:
        runner = Runner(handler)
        task = await runner.run()
        assert task is not None
        assert task.cancel("enough")
        await asyncio.wait([task])
        assert task.cancelled()
        assert runner.steps == [("enough",), "cleaned up"]
        runner.close()

    run(main())


def test_handler_that_cancels_itself_before_it_waits(run: Any) -> None:
    """The next wait raises, in the handler, as in any task."""

    async def handler(steps: Any, r: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if r == "never waits":
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            steps.append("cancelled")
            assert task.uncancel() == 0
        await asyncio.sleep(0)
        steps.append("went on")

    async def main() -> None:
        runner = Runner(handler)
        task = await runner.run()
        assert task is not None
        await task
        assert runner.steps == ["cancelled", "went on"]
        # One that does not wait never notices (whether its end counts as cancelled is left to asyncio),
        # and neither does the next one.
        for _ in range(2):
            runner.steps.clear()
            with contextlib.suppress(asyncio.CancelledError):
                assert await runner.run("never waits") is None
            task = await runner.run()
            assert task is not None
            await task
            assert runner.steps == ["cancelled", "went on"]
        runner.close()

    run(main())


@pytest.mark.parametrize("waits_for", ["task", "future", "sleep"])
def test_handler_that_cancels_itself_cancels_what_it_waits_for(run: Any, waits_for: str) -> None:
    async def main() -> None:
        async def handler(steps: Any, r: Any) -> None:
            child = asyncio.create_task(asyncio.Event().wait())
            future = asyncio.get_running_loop().create_future()
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            with pytest.raises(asyncio.CancelledError):
                await (asyncio.sleep(0) if waits_for == "sleep" else child if waits_for == "task" else future)
            steps.append((child.cancelled(), future.cancelled()))
            child.cancel()

        runner = Runner(handler)
        await (await runner.run())  # type: ignore[misc]
        assert runner.steps == [(waits_for == "task", waits_for == "future")]
        runner.close()

    run(main())


@pytest.mark.parametrize("delay", [-1, 0, 0.001])
def test_timeout_as_the_first_thing(run: Any, delay: float) -> None:
    async def handler(steps: Any, r: Any) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(delay):
                await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        steps.append(task.cancelling())

    async def main() -> None:
        runner = Runner(handler)
        task = await runner.run()
        assert task is not None
        await task
        assert runner.steps == [0]
        runner.close()

    run(main())


# --- contexts -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["def", "async", "waiting"])
def test_each_handler_has_a_context_of_its_own(run: Any, kind: str) -> None:
    def plain(steps: Any, r: Any) -> None:
        steps.append(VAR.get())
        VAR.set(r)

    async def coroutine(steps: Any, r: Any) -> None:
        plain(steps, r)

    async def waiting(steps: Any, r: Any) -> None:
        plain(steps, r)
        await asyncio.sleep(0)
        steps.append(VAR.get())

    async def main() -> None:
        runner = Runner({"def": plain, "async": coroutine, "waiting": waiting}[kind])
        for name in "ab":
            task = await runner.run(name)
            if task is not None:
                await task
        assert runner.steps == (["unset", "a", "unset", "b"] if kind == "waiting" else ["unset"] * 2)
        assert VAR.get() == "unset"
        runner.close()

    run(main())


# --- what stays behind ----------------------------------------------------------------------


def test_nothing_of_the_runner_is_among_all_tasks(run: Any) -> None:
    async def main() -> None:
        me = {asyncio.current_task()}
        gate = asyncio.Event()

        async def handler(steps: Any, r: Any) -> None:
            if r == "waits":
                await gate.wait()

        runner = Runner(handler)
        assert asyncio.all_tasks() == me
        await runner.run()
        assert asyncio.all_tasks() == me
        task = await runner.run("waits")
        assert asyncio.all_tasks() == me | {task}
        gate.set()
        await task  # type: ignore[misc]
        assert asyncio.all_tasks() == me
        runner.close()
        assert asyncio.all_tasks() == me

    run(main())


def test_handlers_are_let_go_of(run: Any) -> None:
    class Local:
        pass

    refs: list[weakref.ref[Any]] = []

    async def handler(steps: Any, r: Any) -> None:
        local = Local()
        refs.append(weakref.ref(local))
        if r == "waits":
            await asyncio.sleep(0)

    async def main() -> None:
        runner = Runner(handler)
        await runner.run()
        task = await runner.run("waits")
        await task  # type: ignore[misc]
        del task
        gc.collect()
        assert [ref() for ref in refs] == [None, None]
        runner.close()

    run(main())


def test_runner_that_is_never_closed_says_nothing(run: Any) -> None:
    """The `run` fixture fails for whatever the loop has to complain of."""

    async def handler(steps: Any, r: Any) -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        runner = Runner(handler)
        await (await runner.run())  # type: ignore[misc]
        del runner
        gc.collect()
        await asyncio.sleep(0)

    run(main())


def test_close_inside_a_handler(run: Any) -> None:
    async def main() -> None:
        async def handler(steps: Any, r: Any) -> None:
            if r == "waits":
                await asyncio.sleep(0)
            runner.close()
            steps.append(asyncio.current_task())
            await asyncio.sleep(0)
            steps.append(asyncio.current_task())

        for r in ("now", "waits"):
            runner = Runner(handler)
            task = await runner.run(r)
            await task  # type: ignore[misc]
            assert runner.steps == [task, task]
            await (await runner.run(r))  # type: ignore[misc]

    run(main())


def test_debug_mode(run: Any) -> None:
    async def handler(steps: Any, r: Any) -> None:
        steps.append("now")
        await asyncio.sleep(0)
        steps.append("later")

    async def main() -> None:
        asyncio.get_running_loop().set_debug(True)
        runner = Runner(handler)
        for _ in range(2):
            await (await runner.run())  # type: ignore[misc]
        assert runner.steps == ["now", "later"] * 2
        runner.close()

    run(main())


SCRIPT = """
import asyncio, sys
import uvloop
from prefork import http
from prefork.http.server.server import listen

async def handler(w, r):
    if r.url.path == "/waits":
        await asyncio.sleep(0)
    if r.url.path == "/hangs":
        await asyncio.Event().wait()
    w.write(b"x")

async def main():
    server = http.Server("", handler)
    sock = listen("127.0.0.1:0")
    server.start([sock])
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    for path in sys.argv[2:]:
        writer.write(f"GET {path} HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n".encode())
        if path != "/hangs":
            await reader.readuntil(b"\\r\\n\\r\\nx")
    await asyncio.sleep(0.05)
    # Neither the server nor anything else is closed.

with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[1] == "uvloop" else None) as runner:
    runner.run(main())
print("ended")
"""


@pytest.mark.parametrize("targets", [[], ["/now"], ["/now", "/waits"], ["/waits", "/now", "/hangs"]])
def test_program_that_never_closes_its_server_ends(run: Any, targets: list[str], request: Any) -> None:
    name = request.node.callspec.params["run"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, *targets],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
    assert "Task was destroyed" not in done.stderr
    assert "Traceback" not in done.stderr


def test_both_loops_are_what_they_say(run: Any, request: Any) -> None:
    async def main() -> None:
        is_uvloop = isinstance(asyncio.get_running_loop(), uvloop.Loop)
        assert is_uvloop == (request.node.callspec.params["run"] == "uvloop")

    run(main())
