"""The fixtures of conftest.py can fail: a leak check that finds nothing checks nothing."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

LEAKING = """
import asyncio, os, socket, subprocess, sys, threading
import pytest

kept = []

def test_leaks_what_the_kernel_knows():
    kept.append(os.open("/dev/null", os.O_RDONLY))
    kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
    if os.fork() == 0:
        os._exit(0)

def test_leaks_a_task():
    loop = asyncio.new_event_loop()
    kept.append(loop.create_task(asyncio.sleep(3600)))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

def test_leaves_a_task_in_run(run):
    async def main():
        kept.append(asyncio.create_task(asyncio.sleep(3600)))
    run(main())

def test_leaves_an_unhandled_exception(run):
    async def main():
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
    run(main())

def test_hangs(run):
    run(asyncio.Event().wait(), timeout=0.1)

def test_is_clean(run):
    async def main():
        await asyncio.wait_for(asyncio.sleep(0), 1)
    run(main())
    subprocess.run([sys.executable, "-c", ""])
    a, b = socket.socketpair()
    threading.Timer(0.1, lambda: (a.close(), b.close())).start()
"""


def test_leaks_are_found_and_named(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_leaking.py").write_text(LEAKING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=line", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "2000"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    failures = [line for line in done.stdout.splitlines() if line.startswith(("ERROR", "FAILED"))]

    def failure(name: str) -> str:
        (line,) = (line for line in failures if f"::{name}" in line)
        return line

    kernel = failure("test_leaks_what_the_kernel_knows")
    assert re.match(r"ERROR .* the test leaves behind: descriptor \d+ -> /dev/null; .*child process", kernel)
    assert "input()); " in kernel
    assert "(zombie)" in kernel
    assert "the test leaves behind: pending task <Task pending name=" in failure("test_leaks_a_task")
    assert "AssertionError: tasks left pending: {<Task" in failure("test_leaves_a_task_in_run")
    assert "the event loop reports: " in failure("test_leaves_an_unhandled_exception")
    assert "TimeoutError" in failure("test_hangs")
    assert len(failures) == 5, "and test_is_clean is"


@pytest.mark.both_loops
def test_run_is_on_both_loops(run: Callable[..., Any], request: pytest.FixtureRequest) -> None:
    async def module() -> str:
        return type(asyncio.get_running_loop()).__module__.split(".")[0]

    assert run(module()) == request.node.callspec.params["run"]
    assert run(module()), "more than one call in a test"


def test_run_uses_uvloop_unless_told_otherwise(run: Callable[..., Any]) -> None:
    async def module() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run(module()).startswith("uvloop")


APP = "from prefork import http\nmux = http.ServeMux()\nmux.handle_func('/', lambda w, r: w.write('ok'))\n"


@pytest.mark.parametrize("end", ["left running", "killed", "stopped"])
def test_no_process_survives_the_fixture(prefork_process: Callable[..., Any], end: str) -> None:
    server = prefork_process(APP, "-w", "2")
    assert server.get("/").body == b"ok"
    assert len(server.workers()) == 2
    if end == "killed":
        os.kill(server.pid, 9)
        assert server.wait() == -9
    elif end == "stopped":
        assert server.stop() == 0
