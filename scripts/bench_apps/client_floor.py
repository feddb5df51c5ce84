"""The floor for clients: what uvloop costs when a client does nothing else.

One asyncio Protocol per connection that writes the same bytes whenever the last answer has ended. It is no
HTTP client (no pool, no parser, no redirects, no headers for anybody to read, no coroutine that waits for
the answer), so the distance from it is what a real client's semantics cost.

Usage: see client_driver.py
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from client_driver import DOWNLOAD, PONG, UPLOAD, Job, Tally, WrongAnswer, measure, run


def request(method: str, path: str, body: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n".encode() + body


REQUESTS = {
    "get-64": request("GET", "/ping"),
    "get-1": request("GET", "/ping"),
    "post-64k": request("POST", "/upload", UPLOAD),
    "download": request("GET", "/download"),
}


class Worker:
    """One connection: `begin(tally)` gives a future that is done when the tally's time is over."""

    def __init__(self, job: Job) -> None:
        self.request = REQUESTS[job.case]
        self.timed = job.case == "get-1"

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def begin(self, tally: Tally) -> asyncio.Future[None]:
        self.tally = tally
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ask()
        return self.over

    def ask(self) -> None:
        self.head = b""
        self.left = -1
        if self.timed:
            self.asked = time.perf_counter_ns()
        self.transport.write(self.request)

    def find_end(self, data: bytes, length: int) -> None:
        """Look for the end of the head; `left` is what is missing of the answer when it is there."""
        if self.head:
            data = self.head + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.head = data
        elif data.startswith(b"HTTP/1.1 200 ") and len(data) <= end + 4 + length:
            self.left = end + 4 + length - len(data)
        elif not self.over.done():
            self.over.set_exception(WrongAnswer(f"{data[:60]!r}"))

    def answered(self) -> None:
        tally = self.tally
        tally.requests += 1
        if self.timed:
            tally.latencies.append(time.perf_counter_ns() - self.asked)
        if tally.running:
            self.ask()
        else:
            self.over.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(error or WrongAnswer("the connection was closed"))


class Small(Worker, asyncio.Protocol):
    """Answers of a few bytes."""

    def data_received(self, data: bytes) -> None:
        if self.left > 0:
            self.left -= len(data)
        else:
            self.find_end(data, len(PONG))
        if not self.left:
            self.answered()


class Large(Worker, asyncio.BufferedProtocol):
    """A large answer, read into the same buffer over and over: new bytes for each read cost more."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.buffer = bytearray(64 << 10)

    def get_buffer(self, hint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, size: int) -> None:
        if self.left > 0:
            self.left -= size
        else:
            self.find_end(bytes(self.buffer[:size]), DOWNLOAD)
        if not self.left:
            self.answered()


async def main(job: Job) -> None:
    loop = asyncio.get_running_loop()
    kind = Large if job.case == "download" else Small
    made = [
        await loop.create_connection(lambda: kind(job), "127.0.0.1", job.port) for _ in range(job.workers)
    ]

    async def work(tally: Tally) -> None:
        await asyncio.gather(*(connection.begin(tally) for _, connection in made))

    await measure(job, work)
    for transport, _ in made:
        transport.close()


run(main)
