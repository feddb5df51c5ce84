"""Start a handler now instead of on the next turn of the loop.

An `async def` handler needs a Task, so that `asyncio.timeout`, task groups and `current_task`
work in it; but a Task that waits for the loop to come round costs more than everything else
that a small request needs. So the first step runs here and now, and a handler that never
waits is done when `run` returns.

CPython 3.12 has that built in: `Task(eager_start=True)`. Before, one spare Task stands ready:
the handler's first step runs as if the spare had started it. If the handler ends there, the
spare is as good as new; if it waits, the spare takes it over, and it is from its first
line to its last in one and the same task.

Law: `run` is called when no task is running, from a transport's or a future's callback.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from prefork.http.handler import DONE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from prefork.http.handler import HandlerCallable
    from prefork.http.message.request import Request
    from prefork.http.server.response_writer import ResponseWriter

_copy_context = contextvars.copy_context
_Task = asyncio.Task


def is_ignored(value: Any) -> bool:
    """Whether a handler that returned this seems to believe that it answers with it."""
    return value is not None and value is not DONE


class HandlerExit(Exception):
    """A handler raised SystemExit, its cause: left alone, that would end the loop and all requests."""


def _as_coroutine(result: Any) -> Coroutine[Any, Any, Any] | None:
    """Any awaitable as a coroutine; None for what is no awaitable."""
    if not hasattr(result, "__await__"):
        return None

    async def wait() -> None:
        await result

    return wait()


if sys.version_info >= (3, 12):

    async def _contained(coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await coroutine
        except SystemExit as error:
            raise HandlerExit from error

    class HandlerRunner:
        """Runs handlers on one loop, each in a context of its own.

        uvloop calls all connections of a listener in one and the same context: a ContextVar set
        by one handler would be seen by the next. ignored: called with the request of a handler
        that returned something which is not to be awaited.
        """

        __slots__ = ("_handler", "_loop", "ignored")

        def __init__(
            self,
            handler: HandlerCallable,
            loop: asyncio.AbstractEventLoop,
            ignored: Callable[[Request], None],
        ) -> None:
            self._handler = handler
            self._loop = loop
            self.ignored = ignored

        def run(self, w: ResponseWriter, r: Request) -> asyncio.Task[Any] | None:
            """Run the handler until it first waits: its task then, None when it is done.

            Raises what the handler raised before it waited.
            """
            context = _copy_context()
            result = context.run(self._handler, w, r)
            if result is None or result is DONE:
                return None
            if type(result) is not CoroutineType:
                result = _as_coroutine(result)
                if result is None:
                    self.ignored(r)
                    return None
            task = _Task(_contained(result), loop=self._loop, context=context, eager_start=True)
            if not task.done():
                return task
            if is_ignored(task.result()):
                self.ignored(r)
            return None

        def close(self) -> None:
            """Nothing is held."""

else:
    from asyncio.tasks import _enter_task, _leave_task, _register_task, _unregister_task

    class HandlerRunner:
        """Runs handlers on one loop, each in a context of its own.

        uvloop calls all connections of a listener in one and the same context: a ContextVar set
        by one handler would be seen by the next. ignored: called with the request of a handler
        that returned something which is not to be awaited.
        """

        __slots__ = ("_context", "_driven", "_handler", "_loop", "_pristine", "_step", "_task", "ignored")

        def __init__(
            self,
            handler: HandlerCallable,
            loop: asyncio.AbstractEventLoop,
            ignored: Callable[[Request], None],
        ) -> None:
            self._handler = handler
            self._loop = loop
            self.ignored = ignored
            self._make_spare()

        def _make_spare(self) -> None:
            self._context = _copy_context()
            self._pristine = self._context.copy()
            self._driven: list[tuple[Coroutine[Any, Any, Any], Any]] = []
            drive = _drive(self._driven)
            next(drive)
            self._task, self._step = _unstarted(drive, self._loop, self._context)
            # Nobody may find, cancel or wait for a task that may never start, nor miss it.
            _unregister_task(self._task)
            self._task._log_destroy_pending = False  # type: ignore[attr-defined]

        def run(self, w: ResponseWriter, r: Request) -> asyncio.Task[Any] | None:
            """Run the handler until it first waits: its task then, None when it is done.

            Raises what the handler raised before it waited.
            """
            context = self._context
            task = self._task
            waits = False
            try:
                result = context.run(self._handler, w, r)
                if result is None or result is DONE:
                    return None
                if type(result) is not CoroutineType:
                    result = _as_coroutine(result)
                    if result is None:
                        self.ignored(r)
                        return None
                _enter_task(self._loop, task)
                try:
                    waited_for = context.run(result.send, None)
                    waits = True
                except StopIteration as stop:
                    if is_ignored(stop.value):
                        self.ignored(r)
                    return None
                finally:
                    _leave_task(self._loop, task)
            finally:
                # The next handler must find nothing of this one. (Equal contexts are untouched ones: they
                # share one tree until one of them changes, so that this costs next to nothing.)
                if not waits and (context != self._pristine or task.cancelling()):
                    self._make_spare()
            step = self._step
            self._driven.append((result, waited_for))
            self._make_spare()
            _register_task(task)
            task._log_destroy_pending = True  # type: ignore[attr-defined]
            context.run(step)
            return task

        def close(self) -> None:
            """The spare goes without a word: it has never begun."""

    def _drive(driven: list[tuple[Coroutine[Any, Any, Any], Any]]) -> Generator[Any, Any, Any]:
        """What a spare task runs: a coroutine that stands at its first wait, on to its end."""
        cancelled: BaseException | None = None
        try:
            yield None  # here it stands when it becomes a spare
        except BaseException as error:
            cancelled = error
        if not driven:
            raise cancelled or AssertionError("a spare task was started without a handler")
        coroutine, waited_for = driven.pop()
        try:
            # A handler may cancel its own task before it waits: then it is what it waits for that is
            # cancelled, or if that cannot be, the wait.
            if cancelled is not None and (waited_for is None or not waited_for.cancel()):
                waited_for = coroutine.throw(cancelled)
            while True:
                try:
                    value = yield waited_for
                except BaseException as error:
                    waited_for = coroutine.throw(error)
                else:
                    waited_for = coroutine.send(value)
        except StopIteration as stop:
            return stop.value
        except SystemExit as error:
            raise HandlerExit from error

    _first_step: list[Callable[[], object]] = []

    def _capture(callback: Callable[[], object], *, context: contextvars.Context | None = None) -> None:
        _first_step.append(callback)

    def _unstarted(
        coroutine: Any, loop: asyncio.AbstractEventLoop, context: contextvars.Context
    ) -> tuple[asyncio.Task[Any], Callable[[], object]]:
        """A task and its first step, which the caller runs in `context`.

        A new Task hands its first step to `loop.call_soon`; for that one moment call_soon is ours.
        """
        loop.call_soon = _capture  # type: ignore[method-assign,assignment]
        try:
            task = _Task(coroutine, loop=loop, context=context)
        finally:
            del loop.call_soon
        return task, _first_step.pop()
