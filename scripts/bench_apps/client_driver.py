"""What all clients of the bench in Python share: the load of a case, and what it cost this process.

A client's file gives `run` one coroutine function that opens the client and hands over three of its own:
`get`, `post` and `download`, each of which makes one request, reads the answer to its end and checks it.
Workers call them over and over, first to warm up, then for the figures; requests that were begun by the end
of the time are finished, and count. The last line on standard output is the result, as JSON.

Usage of each client: client_NAME.py PORT CASE WORKERS SECONDS
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

PONG = b"pong"
UPLOAD = bytes(range(256)) * 256
DOWNLOAD = 100 << 20

Ask = Callable[[], Awaitable[object]]


class WrongAnswer(Exception):
    """The client got something else than the server sends."""


@dataclasses.dataclass(slots=True, frozen=True)
class Job:
    """What the command line asks for: `workers` requests at once, for `seconds` after a third of them."""

    port: int
    case: str
    workers: int
    seconds: float

    @property
    def ping(self) -> str:
        return f"http://127.0.0.1:{self.port}/ping"

    @property
    def upload(self) -> str:
        return f"http://127.0.0.1:{self.port}/upload"

    @property
    def download(self) -> str:
        return f"http://127.0.0.1:{self.port}/download"


@dataclasses.dataclass(slots=True)
class Tally:
    """What the workers of one phase have done; they go on while `running`. Latencies are in nanoseconds."""

    running: bool = True
    requests: int = 0
    latencies: list[int] = dataclasses.field(default_factory=list)


def expect(status: int, body: object, wanted: object) -> None:
    """Raise WrongAnswer unless this is a 200 with the body (or the size of it) that the server sends."""
    if status != 200 or body != wanted:
        raise WrongAnswer(f"status {status}, {str(body)[:60]!r} instead of {wanted!r}")


async def drive(job: Job, *, get: Ask, post: Ask, download: Ask) -> None:
    """Carry out the job with a client's three requests."""
    ask = {"get-64": get, "get-1": get, "post-64k": post, "download": download}[job.case]

    async def work(tally: Tally) -> None:
        worker = timed_worker if job.case == "get-1" else plain_worker
        await asyncio.gather(*(worker(ask, tally) for _ in range(job.workers)))

    if job.case == "download":
        await get()  # what a client loads with its first request is no growth
    await measure(job, work)


async def plain_worker(ask: Ask, tally: Tally) -> None:
    """One request after the other."""
    while tally.running:
        await ask()
        tally.requests += 1


async def timed_worker(ask: Ask, tally: Tally) -> None:
    """The same, keeping how long each took."""
    clock = time.perf_counter_ns
    while tally.running:
        begin = clock()
        await ask()
        tally.latencies.append(clock() - begin)
        tally.requests += 1


async def measure(job: Job, work: Callable[[Tally], Awaitable[None]]) -> None:
    """Warm up, measure and print. `work(tally)` makes requests until the tally says that the time is over."""
    base = _status_kib("VmRSS")
    _reset_peak()
    await phase(job.seconds / 3, work)
    gc.collect()
    print(json.dumps({**await phase(job.seconds, work), **memory(base)}), flush=True)


async def phase(seconds: float, work: Callable[[Tally], Awaitable[None]]) -> dict[str, float]:
    """Let `work` run for some seconds; its requests, seconds, CPU seconds, and latencies if it took any."""
    tally = Tally()
    timer = asyncio.get_running_loop().call_later(seconds, setattr, tally, "running", False)
    try:
        start, cpu = time.perf_counter(), cpu_seconds()
        await work(tally)
        found = {
            "requests": tally.requests,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": cpu_seconds() - cpu,
        }
    finally:
        timer.cancel()
    if tally.latencies:
        ordered = sorted(tally.latencies)
        found["p50_us"] = ordered[len(ordered) // 2] / 1000
        found["p99_us"] = ordered[len(ordered) * 99 // 100] / 1000
    return found


def cpu_seconds() -> float:
    """User and system time of this process, with all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory(base: int) -> dict[str, float]:
    """The most memory held since the peak was reset, and how much that is above `base` KiB."""
    peak = _status_kib("VmHWM")
    return {"peak_mib": peak / 1024, "grown_mib": max(0, peak - base) / 1024}


def _status_kib(name: str) -> int:
    """A line of /proc/self/status that is given in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(name)


def _reset_peak() -> None:
    """Let VmHWM begin anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def run(main: Callable[[Job], Coroutine[Any, Any, None]]) -> None:
    """Run a client on uvloop with what the command line says."""
    port, case, workers, seconds = sys.argv[1:]
    uvloop.run(main(Job(int(port), case, int(workers), float(seconds))))
