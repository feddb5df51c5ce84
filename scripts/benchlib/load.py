"""One run of wrk against a server, and the server's CPU time during it."""

from __future__ import annotations

import re
import resource
import subprocess
import time
from pathlib import Path

from . import cases, tools
from .process import Process, core_seconds

DISTURBED = 0.05
"""The share of the server's or of wrk's core taken by others above which a sample counts as disturbed.

A core that others use is cold whenever the server gets it back, and a wrk that has to wait sends in bursts or
leaves the server idle: both make a request dearer, by as much as twice.
"""

LUA = Path(__file__).parent.parent / "wrk"


class LoadFailed(Exception):
    """wrk could not do its work, or met errors; the text says which."""


def run_wrk(case: cases.Case, port: int, seconds: int, core: int | None) -> dict[str, int]:
    """Drive the case's load and return wrk's counts (times in microseconds); LoadFailed on any error."""
    argv: list[str | Path] = [
        *(tools.wrk(), "-t1", f"-c{case.connections}", f"-d{seconds}s", "--timeout", "10s"),
        *("-s", case.script, f"http://127.0.0.1:{port}", "--", *case.arguments),
    ]
    process = Process(argv, core=core, cwd=LUA, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output, _ = process.popen.communicate(timeout=seconds + 60)
    except subprocess.TimeoutExpired:
        raise LoadFailed("wrk did not end") from None
    finally:
        process.end()
    return parse_wrk(output.decode())


def parse_wrk(output: str) -> dict[str, int]:
    """Read the BENCH line that wrk/common.lua prints at the end."""
    line = re.search(r"^BENCH (.*)$", output, re.MULTILINE)
    if line is None:
        raise LoadFailed(f"wrk: {output.strip()[-300:]}")
    counts = {key: int(value) for key, value in re.findall(r"(\w+)=(-?\d+)", line.group(1))}
    errors = {key: counts[key] for key in ("connect", "read", "write", "status", "timeout") if counts[key]}
    if errors:
        raise LoadFailed(f"wrk met errors: {', '.join(f'{n} {key}' for key, n in errors.items())}")
    if not counts["requests"]:
        raise LoadFailed("no request was answered")
    return counts


def measure(
    server: Process, case: cases.Case, port: int, seconds: int, server_core: int | None, core: int | None
) -> dict[str, float]:
    """One sample: load for `seconds` by wrk on `core`, and what it cost the server on its own."""
    start, cpu, cpu_wrk = time.monotonic(), server.cpu_seconds(), ended_children()
    worked, worked_wrk = core_seconds(server_core), core_seconds(core)
    counts = run_wrk(case, port, seconds, core)
    elapsed = time.monotonic() - start
    cpu, cpu_wrk = server.cpu_seconds() - cpu, ended_children() - cpu_wrk
    others = max(core_seconds(server_core) - worked - cpu, core_seconds(core) - worked_wrk - cpu_wrk, 0.0)
    requests: float = counts["requests"]
    size = counts["bytes"] / requests
    if case.by_bytes:
        requests = counts["bytes"] / case.body
    # The answers were checked one by one before; under load their size must still be that of a right one.
    elif not case.body * 0.98 <= size <= case.body * 1.02 + 1024:
        raise LoadFailed(f"answers of {size:.0f} bytes on average, for a body of {case.body}")
    # wrk corrects latencies by the rate of requests: when these are pipelined, the result is nonsense.
    latency = {} if case.pipelined else {"p50_us": counts["p50"], "p99_us": counts["p99"]}
    return {
        "cpu_us": round(cpu * 1e6 / requests, 3),
        "rps": round(requests * 1e6 / counts["duration"], 1),
        **latency,
        "pss_mib": round(server.pss() / (1 << 20), 2),
        # Near 1.0 the server was the bottleneck; far below, it waited for wrk (or stalled).
        "busy": round(cpu / elapsed, 3),
        # What others took of the server's core, or of wrk's, whichever is more.
        "others": round(others / elapsed, 3) if None not in (server_core, core) else 0.0,
        "requests": round(requests),
    }


def ended_children() -> float:
    """User and system time of the children that have ended: wrk or a client is among them, not the server."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
