"""What the size of prefork's idle pool and of its queue costs a request; all connections go to one server.

    pool-one       64 workers ask one host: 64 connections, nobody waits
    pool-hosts     the same load on 64 of 1,000 hosts, to each of which the pool holds 10 connections
    pool-rotate    the same, and the requests go round all of the hosts
    pool-waiting   64 connections to one host are all that is allowed, and 10,000 more workers want one

`pool-rotate` and `pool-waiting` also cost what memory costs that the processor's caches do not hold: ten
thousand connections or tasks are used in turn. The figures are taken while all workers go on.

Usage: see client_driver.py; WORKERS is the number of those whose requests are on their way.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import resource
import socket
import time
from collections.abc import Awaitable, Callable

from client_driver import PONG, Job, Tally, WrongAnswer, cpu_seconds, expect, plain_worker, run

from prefork import http

HOSTS, PER_HOST, WAITING = 1000, 10, 10_000


class Server:
    """The `dial` option of a transport: every name leads to the one server. `dials` counts."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.dials = 0

    async def dial(self, network: str, addr: str) -> socket.socket:
        self.dials += 1
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return sock


def asker(client: http.Client, url: str) -> Callable[[], Awaitable[None]]:
    """A request to one URL."""

    async def ask() -> None:
        response = await client.get(url)
        expect(response.status, response.body, PONG)

    return ask


async def steady(job: Job, asks: list[Callable[[], Awaitable[None]]]) -> dict[str, float]:
    """Requests and CPU seconds within the time, for workers that were at it before and go on after it."""
    tally = Tally()
    workers = asyncio.gather(*(plain_worker(ask, tally) for ask in asks))
    await _unless_failed(workers, job.seconds / 3)
    gc.collect()
    start, cpu, requests = time.perf_counter(), cpu_seconds(), tally.requests
    await _unless_failed(workers, job.seconds)
    found = {
        "requests": tally.requests - requests,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": cpu_seconds() - cpu,
    }
    tally.running = False
    await workers
    return found


async def _unless_failed(workers: asyncio.Future[list[None]], seconds: float) -> None:
    """Let the workers work for some seconds; raise what one of them raised."""
    await asyncio.wait([workers], timeout=seconds)
    if workers.done():
        await workers


async def main(job: Job) -> None:
    server = Server(job.port)
    limit = {"max_conns_per_host": job.workers} if job.case == "pool-waiting" else {}
    transport = http.Transport(
        dial=server.dial,
        max_idle_conns=2 * HOSTS * PER_HOST,
        max_idle_conns_per_host=job.workers,
        **limit,
    )
    async with http.Client(transport=transport) as client:
        connections = job.workers
        if job.case in ("pool-one", "pool-waiting"):
            more = WAITING if limit else 0
            asks = [asker(client, f"http://host.bench:{job.port}/ping")] * (job.workers + more)
        else:
            open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            hosts = max(job.workers, min(HOSTS, (open_files - 500) // PER_HOST))
            every = [asker(client, f"http://host{number}.bench:{job.port}/ping") for number in range(hosts)]
            for ask in every:
                await asyncio.gather(*(ask() for _ in range(PER_HOST)))
            connections = hosts * PER_HOST
            if job.case == "pool-hosts":
                asks = every[: job.workers]
            else:
                turn = itertools.cycle(every)

                async def next_host() -> None:
                    await next(turn)()

                asks = [next_host] * job.workers
        found = await steady(job, asks)
        if server.dials != connections:
            raise WrongAnswer(f"{server.dials} connections were made instead of {connections}")
        print(json.dumps({**found, "connections": connections}), flush=True)
    transport.close_idle_connections()


run(main)
