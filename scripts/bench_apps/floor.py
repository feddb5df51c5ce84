"""The floor: what uvloop and httptools cost when a server does nothing else.

One asyncio Protocol per case. It is no HTTP server (fixed answers, no routes, no limits, no errors), so
the distance from it is what a real server's semantics cost. All of httptools' callbacks are installed and
keep what they are given, as every server must.

`FLOOR=bare` in the environment leaves httptools out too: one read is taken for one request. That answers
`pong` and `pong-headers` only, and shows what the kernel and uvloop alone take.

Usage: floor.py PORT
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httptools
import uvloop

PREFIX, SUFFIX = Path(__file__).with_name("item.json").read_bytes().split(b"00000000")
SLICE = bytes(range(256)) * 4096
SLICES = 100


def head(length: int, content_type: str, connection: str = "") -> bytes:
    """A response head up to and with the empty line."""
    lines = [
        "HTTP/1.1 200 OK",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
        f"Date: {formatdate(usegmt=True)}",
    ]
    if connection:
        lines.append(f"Connection: {connection}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


PONG = head(4, "text/plain; charset=utf-8") + b"pong"
PONG_CLOSE = head(4, "text/plain; charset=utf-8", "close") + b"pong"
JSON_PREFIX = head(len(PREFIX) + 8 + len(SUFFIX), "application/json") + PREFIX
DOWNLOAD = head(SLICES * len(SLICE), "application/octet-stream")


class Bare(asyncio.Protocol):
    """No parser: whatever arrives is answered."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(PONG)


class Pong(asyncio.Protocol):
    """Parses, then gives the fixed answer; the answers to what came in one read leave in one write."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.out: list[bytes] = []
        self.closing = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.parser = None

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        out = self.out
        if out:
            self.out = []
            if len(out) == 1:
                self.transport.write(out[0])
            elif len(out[1]) < 1 << 16:
                self.transport.write(b"".join(out))
            else:
                self.transport.writelines(out)
            if self.closing:
                self.transport.close()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        pass

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        if self.parser.should_keep_alive():
            self.out.append(PONG)
        else:
            self.out.append(PONG_CLOSE)
            self.closing = True


class Json(Pong):
    """Puts the last segment of the path into the prepared text."""

    def on_message_complete(self) -> None:
        self.out += (JSON_PREFIX, self.url[-8:], SUFFIX)


class Echo(Pong):
    """Answers with the body."""

    def on_message_complete(self) -> None:
        body = self.body
        data = body[0] if len(body) == 1 else b"".join(body)
        self.out += (head(len(data), "application/octet-stream"), data)


class Download(Pong):
    """Writes the slices one after the other, as fast as the transport takes them."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.left = 0
        self.paused = False

    def on_message_complete(self) -> None:
        self.transport.write(DOWNLOAD)
        self.left = SLICES
        self.pump()

    def pump(self) -> None:
        while self.left and not self.paused:
            self.left -= 1
            self.transport.write(SLICE)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.pump()


def protocol() -> type[asyncio.Protocol]:
    """The class for the case that the environment names."""
    if os.environ.get("FLOOR") == "bare":
        return Bare
    case = os.environ.get("BENCH_CASE", "pong")
    if case.startswith("post-"):
        return Echo
    return {"json": Json, "download-100m": Download}.get(case, Pong)


def keep_freed_memory() -> None:
    """Stop glibc from giving each big read buffer back: the page faults would cost more than all the rest."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 20)  # M_TRIM_THRESHOLD
        mallopt(-2, 16 << 20)  # M_TOP_PAD


async def main() -> None:
    keep_freed_memory()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol(), "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


uvloop.run(main())
