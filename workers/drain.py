"""The end of a worker: finish what is there, take nothing new, go.

Three things may order it, in any order and more than once: the master's `Drain`, a SIGTERM,
and the death of the master. The law: it begins once, and a later order can only make it
shorter.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from prefork.http import Server
    from prefork.workers.board import Seat

log = logging.getLogger("prefork")

IDLE_GRACE: Final = 1.0
"""Seconds that an idle connection stays open for its next request, which is then its last: who
keeps connections busy never finds one closed."""

_CLOSE_WITHIN: Final = 0.1
"""Seconds for cut connections to be torn down; nobody waits for a handler that refuses to be cancelled."""


class Drain:
    """The one drain of a worker's server.

    socks: the listening sockets, closed in this process as soon as their queues are empty, so
    that the kernel sends newcomers to the other workers, or refuses them when this is the last.

        drain = Drain(server, seat, socks)
        drain.begin(30.0)            # from a callback of the loop
        cut = await drain.wait()     # how many connections had to be cut; 0 is a clean end
    """

    def __init__(
        self, server: Server, seat: Seat, socks: Sequence[socket.socket], *, idle_grace: float = IDLE_GRACE
    ) -> None:
        self._server = server
        self._seat = seat
        self._socks = socks
        self._idle_grace = idle_grace
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._at_once = asyncio.Event()
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "done" if self._ended.done() else "draining" if self.begun else "not begun"
        return f"<Drain {state} {self._server!r}>"

    @property
    def begun(self) -> bool:
        return self._task is not None

    def begin(self, timeout: float) -> None:
        """Drain within `timeout` seconds: 0.0 is at once, infinity is never in a hurry."""
        deadline = self._loop.time() + timeout
        if self._task is None:
            self._seat.drain()
            self._task = self._loop.create_task(self._run())
        elif deadline >= self._deadline:
            return
        self._deadline = deadline
        if self._timer is not None:
            self._timer.cancel()
        if timeout <= 0:
            self._at_once.set()
        elif not math.isinf(timeout):
            self._timer = self._loop.call_later(timeout, self._at_once.set)

    async def wait(self) -> int:
        """The number of connections that were cut with a request under way, when all is over."""
        return await asyncio.shield(self._ended)

    async def _run(self) -> None:
        cut = 0
        # The deadline is ours, because it may be shortened while the server waits.
        grace = min(self._idle_grace, self._deadline - self._loop.time())
        shutdown = self._loop.create_task(self._server.shutdown(None, idle_grace=grace))
        # Its first step, which empties the queues, is behind us when we come back.
        await asyncio.sleep(0)
        for sock in self._socks:
            sock.close()
        hurry = self._loop.create_task(self._at_once.wait())
        try:
            await asyncio.wait([shutdown, hurry], return_when=asyncio.FIRST_COMPLETED)
            if not shutdown.done():
                cut = self._server.active_connections
                self._server.close()
                await asyncio.wait([shutdown], timeout=_CLOSE_WITHIN)
            if cut:
                what = "a connection" if cut == 1 else f"{cut} connections"
                log.warning("cut %s with a request under way: the time was over", what)
        finally:
            for task in (shutdown, hurry):
                task.cancel()
            await asyncio.gather(shutdown, hurry, return_exceptions=True)
            if self._timer is not None:
                self._timer.cancel()
            self._ended.set_result(cut)
