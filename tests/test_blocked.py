"""The watch that names a handler which blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from prefork.http.server.blocked import BlockedLoopWatch


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.came.set()


def a_handler_that_blocks(until: threading.Event) -> None:
    assert until.wait(20), "nothing was reported"


def test_the_blocking_function_is_named_once(run: Any) -> None:
    records = Records()
    log = logging.Logger("test")
    log.addHandler(records)

    async def main() -> None:
        watch = BlockedLoopWatch(asyncio.get_running_loop(), log, threshold=0.05)
        watch.start()
        try:
            # Called the way a connection calls it: with a frame of the package below.
            for _ in range(2):
                exec(
                    compile("f(e)", BlockedLoopWatch.__init__.__code__.co_filename, "exec"), _globals(records)
                )
        finally:
            watch.stop()

    run(main())
    assert len(records.messages) == 1
    assert "a_handler_that_blocks" in records.messages[0]
    assert "test_blocked.py" in records.messages[0]
    assert "http.blocking" in records.messages[0]


def _globals(records: Records) -> dict[str, Any]:
    return {"f": a_handler_that_blocks, "e": records.came}


def test_a_loop_that_turns_is_left_alone(run: Any) -> None:
    records = Records()
    log = logging.Logger("test")
    log.addHandler(records)

    async def main() -> None:
        watch = BlockedLoopWatch(asyncio.get_running_loop(), log, threshold=0.2)
        watch.start()
        await asyncio.sleep(0.5)  # the time in which a report would come
        watch.stop()

    run(main())
    assert records.messages == []
