"""What is asked of a server: the load of each case, and what a right answer to it looks like.

Every answer is checked over a plain socket before and after each measurement, by code that shares nothing
with any server: status 200, the exact body, `Connection: close` where it was asked for, answers to pipelined
requests in order.

The JSON of the case `json` is a prepared text of 1 KiB (bench_apps/item.json), the same in all servers, in
which the id is replaced by the path parameter: so the rows compare servers and routers, not JSON encoders.
aiohttp, sanic, Go and prefork match with their own routers, on 500 routes with a parameter each; bare ASGI
and RSGI have none, there the app looks the parent path up in a dict.
"""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

APPS = Path(__file__).parent.parent / "bench_apps"
ROUTES = 500
DEPTH = 16
SLICE = bytes(range(256)) * 4096
SLICES = 100


class WrongAnswer(Exception):
    """A server answered, but not what was asked; the text says what."""


@dataclasses.dataclass(slots=True, kw_only=True, frozen=True)
class Case:
    """One row of the bench.

    `kind` is "load" (wrk drives it; the figure is CPU per request), "idle" or "start" (see `special`); for
    clients it is "client", "latency", "download" or "pool" (see `client_load`).
    `same_load_as` names the case whose load, and so whose results of the other peers, this one shares.
    `by_bytes` counts requests by the bytes received, for answers so large that those cut off at the end of a
    run would matter. `body` is the size of the answer's body; the bytes that wrk counts must agree with it.
    """

    name: str
    title: str
    kind: str = "load"
    script: str = ""
    arguments: tuple[str, ...] = ()
    connections: int = 64
    body: int = 4
    by_bytes: bool = False
    pipelined: bool = False
    check: Callable[[int], None] = lambda port: None
    same_load_as: str | None = None
    routes: int = 1


def request(method: str, target: str, body: bytes | None = None, *lines: str) -> bytes:
    """The bytes of a request."""
    head = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *lines]
    if body is not None:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + (body or b"")


def read_response(stream: BinaryIO) -> tuple[int, dict[str, str], bytes]:
    """Status, header (lower-case names) and body of the next response on a stream."""
    line = stream.readline()
    if not line.startswith(b"HTTP/1.1 "):
        raise WrongAnswer(f"not a status line: {line[:60]!r}")
    status = int(line[9:12])
    header = {}
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        header[name.lower()] = value.strip()
    if header.get("transfer-encoding") == "chunked":
        parts = []
        while size := int(stream.readline().split(b";")[0], 16):
            parts.append(stream.read(size))
            stream.readline()
        stream.readline()
        return status, header, b"".join(parts)
    return status, header, stream.read(int(header.get("content-length", 0)))


def exchange(port: int, data: bytes, count: int = 1) -> list[tuple[int, dict[str, str], bytes]]:
    """Send `data` on a new connection and read `count` responses."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as conn, conn.makefile("rb") as stream:
        conn.sendall(data)
        return [read_response(stream) for _ in range(count)]


def expect(status: int, body: bytes, wanted: bytes) -> None:
    """Raise WrongAnswer unless this is a 200 with the body `wanted`."""
    if status != 200:
        raise WrongAnswer(f"status {status}")
    if body != wanted:
        raise WrongAnswer(f"body of {len(body)} bytes {body[:40]!r}, not of {len(wanted)} {wanted[:40]!r}")


def check_pong(port: int) -> None:
    for n in range(3):
        [(status, _, body)] = exchange(port, request("GET", f"/ping?n={n}", None, "Accept: */*"))
        expect(status, body, b"pong")


def check_json(port: int) -> None:
    text = (APPS / "item.json").read_bytes()
    for route, ident in ((0, b"00000001"), (ROUTES // 2, b"12345678"), (ROUTES - 1, b"99999999")):
        target = f"/api/v1/r{route:03}/items/{ident.decode()}"
        [(status, header, body)] = exchange(port, request("GET", target))
        expect(status, body, text.replace(b"00000000", ident))
        if not header.get("content-type", "").startswith("application/json"):
            raise WrongAnswer(f"Content-Type {header.get('content-type')!r}")


def check_echo(size: int) -> Callable[[int], None]:
    def check(port: int) -> None:
        for n in range(2):
            body = (f"{n:08} ".encode() + bytes(range(256)) * (size // 256 + 1))[:size]
            [(status, _, got)] = exchange(port, request("POST", f"/echo?n={n}", body))
            expect(status, got, body)

    return check


def check_download(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as conn:
        conn.sendall(request("GET", "/download?n=1"))
        with conn.makefile("rb") as stream:
            status, _, body = read_response(stream)
    if status != 200 or len(body) != SLICES * len(SLICE):
        raise WrongAnswer(f"status {status}, {len(body)} bytes")
    view = memoryview(body)
    for start in range(0, len(body), len(SLICE)):
        if view[start : start + len(SLICE)] != SLICE:
            raise WrongAnswer(f"other bytes than expected after {start}")


def check_pipeline(port: int) -> None:
    many = b"".join(request("GET", f"/ping?n={n}") for n in range(DEPTH))
    for status, _, body in exchange(port, many, DEPTH):
        expect(status, body, b"pong")


def check_close(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as conn:
        conn.sendall(request("GET", "/ping?n=1", None, "Connection: close"))
        with conn.makefile("rb") as stream:
            status, header, body = read_response(stream)
            expect(status, body, b"pong")
            if header.get("connection", "").lower() != "close":
                raise WrongAnswer("no `Connection: close` in the answer")
            if stream.read(1):
                raise WrongAnswer("bytes after the answer")


_ALL = (
    Case(
        name="pong",
        title="GET /ping (`async def`)",
        script="pong.lua",
        check=check_pong,
    ),
    Case(
        name="pong-def",
        title="GET /ping (plain `def`)",
        script="pong.lua",
        check=check_pong,
        same_load_as="pong",
    ),
    Case(
        name="pong-headers",
        title="GET /ping, ten browser headers",
        script="headers.lua",
        check=check_pong,
    ),
    Case(
        name="json",
        title="JSON 1 KiB, path parameter, 500 routes",
        script="json.lua",
        arguments=(str(ROUTES),),
        body=1024,
        check=check_json,
        routes=ROUTES,
    ),
    Case(
        name="post-1k",
        title="POST echo 1 KiB",
        script="post.lua",
        arguments=(str(1 << 10), "4099"),
        body=1 << 10,
        check=check_echo(1 << 10),
    ),
    Case(
        name="post-64k",
        title="POST echo 64 KiB",
        script="post.lua",
        arguments=(str(64 << 10), "257"),
        connections=16,
        body=64 << 10,
        check=check_echo(64 << 10),
    ),
    Case(
        name="post-1m",
        title="POST echo 1 MiB",
        script="post.lua",
        arguments=(str(1 << 20), "17"),
        connections=8,
        body=1 << 20,
        by_bytes=True,
        check=check_echo(1 << 20),
    ),
    Case(
        name="download-100m",
        title="download of 100 MiB",
        script="download.lua",
        connections=4,
        body=SLICES * len(SLICE),
        by_bytes=True,
        check=check_download,
    ),
    Case(
        name="pipeline",
        title=f"GET /ping, pipelined x{DEPTH}",
        script="pong.lua",
        arguments=(str(DEPTH),),
        pipelined=True,
        check=check_pipeline,
    ),
    Case(
        name="connect",
        title="GET /ping, a connection per request",
        script="pong.lua",
        arguments=("1", "close"),
        connections=32,
        check=check_close,
    ),
    Case(name="idle", title="8,000 idle connections", kind="idle", check=check_pong),
    Case(name="start", title="start with 8 workers", kind="start", check=check_pong),
)

CASES = {case.name: case for case in _ALL}
