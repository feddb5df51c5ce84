"""One sample of a client: the client is run against nginx, and says at its end what the load cost it."""

from __future__ import annotations

import json
import subprocess
import time
from typing import IO, TYPE_CHECKING

from . import cases, clients
from .load import LoadFailed, ended_children
from .process import Process, core_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PATIENCE = 60.0
"""Seconds that a client may take beyond those of the load: to start, to fill its pool, to end."""


def run_client(
    argv: Sequence[str | Path],
    *,
    seconds: float,
    core: int | None = None,
    env: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
) -> dict[str, float]:
    """Run a client to its end and return the figures that it printed; LoadFailed when it did not."""
    process = Process(argv, core=core, cwd=cases.APPS, env=env, stdout=subprocess.PIPE, stderr=log)
    try:
        output, _ = process.popen.communicate(timeout=seconds * 4 / 3 + PATIENCE)
    except subprocess.TimeoutExpired:
        raise LoadFailed("the client did not end") from None
    finally:
        process.end()
    if process.popen.returncode:
        raise LoadFailed(f"the client left with status {process.popen.returncode}")
    return parse(output.decode())


def parse(output: str) -> dict[str, float]:
    """The last line of a client's output."""
    lines = output.strip().splitlines()
    try:
        counts: dict[str, float] = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        raise LoadFailed(f"the client printed no result: {output.strip()[-300:]!r}") from None
    if not counts["requests"]:
        raise LoadFailed("no request was answered")
    return counts


def measure(
    argv: Sequence[str | Path],
    case: cases.Case,
    port: int,
    *,
    seconds: float,
    server: Process,
    server_core: int | None,
    core: int | None,
    env: Mapping[str, str],
    log: IO[bytes],
) -> dict[str, float]:
    """One sample of a client on `core`, with the server (on `server_core`) that listens on `port`."""
    begin, cpu_server, cpu_client = time.monotonic(), server.cpu_seconds(), ended_children()
    own = time.process_time()
    worked_server, worked = core_seconds(server_core), core_seconds(core)

    def run(name: str) -> dict[str, float]:
        arguments = [*argv, str(port), name, str(case.connections), str(seconds)]
        return run_client(arguments, seconds=seconds, core=core, env=env, log=log)

    if case.kind == "pool":
        sample = pool_figures({name: run(f"pool-{name}") for name in clients.POOL})
    else:
        sample = figures(case, run(case.name))
    elapsed = time.monotonic() - begin
    # This process shares the server's core.
    ours = server.cpu_seconds() - cpu_server + time.process_time() - own
    others = max(
        core_seconds(server_core) - worked_server - ours,
        core_seconds(core) - worked - (ended_children() - cpu_client),
        0.0,
    )
    sample["others"] = round(others / elapsed, 3) if None not in (server_core, core) else 0.0
    return sample


def figures(case: cases.Case, counts: dict[str, float]) -> dict[str, float]:
    """A sample from what a client printed."""
    requests, seconds, cpu = counts["requests"], counts["seconds"], counts["cpu_seconds"]
    sample: dict[str, float] = {}
    if case.kind == "latency":
        sample.update(p50_us=round(counts["p50_us"], 2), p99_us=round(counts["p99_us"], 2))
    if case.kind == "download":
        sample.update(cpu_ms=round(cpu * 1e3 / requests, 3), grown_mib=round(counts["grown_mib"], 2))
    else:
        sample.update(cpu_us=round(cpu * 1e6 / requests, 3))
    return {
        **sample,
        "rps": round(requests / seconds, 1),
        "peak_mib": round(counts["peak_mib"], 2),
        # Near 1.0 the client was the bottleneck; far below, it waited for the server.
        "busy": round(cpu / seconds, 3),
        "requests": round(requests),
    }


def pool_figures(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """A sample of the case `pool`: CPU per request with each of its loads, and their ratios to the first."""
    cpu = {name: counts["cpu_seconds"] * 1e6 / counts["requests"] for name, counts in found.items()}
    ratios = {f"{name}_ratio": round(value / cpu["one"], 3) for name, value in cpu.items() if name != "one"}
    return {
        **ratios,
        **{f"{name}_us": round(value, 3) for name, value in cpu.items()},
        "connections": round(found["hosts"]["connections"]),
        "requests": round(sum(counts["requests"] for counts in found.values())),
    }
