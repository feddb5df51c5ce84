"""The app of the bench for granian over RSGI, its own interface (its ASGI runs uvicorn_app.py).

RSGI brings no router, so the case with 500 routes looks the path's head up in a dict, as uvicorn_app.py does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

PREFIX, SUFFIX = Path(__file__).with_name("item.json").read_bytes().split(b"00000000")
SLICE = bytes(range(256)) * 4096
SLICES = 100

TEXT = [("content-type", "text/plain; charset=utf-8")]
JSON = [("content-type", "application/json")]
BINARY = [("content-type", "application/octet-stream")]


async def ping(scope: Any, protocol: Any) -> None:
    protocol.response_bytes(200, TEXT, b"pong")


async def item(scope: Any, protocol: Any, ident: str) -> None:
    protocol.response_bytes(200, JSON, PREFIX + ident.encode() + SUFFIX)


async def echo(scope: Any, protocol: Any) -> None:
    protocol.response_bytes(200, BINARY, await protocol())


async def download(scope: Any, protocol: Any) -> None:
    transport = protocol.response_stream(200, [*BINARY, ("content-length", str(SLICES * len(SLICE)))])
    for _ in range(SLICES):
        await transport.send_bytes(SLICE)


LITERAL = {("GET", "/ping"): ping, ("POST", "/echo"): echo, ("GET", "/download"): download}
WITH_ID = {
    ("GET", f"/api/v1/r{number:03}/items"): item for number in range(int(os.environ.get("BENCH_ROUTES", "1")))
}


class App:
    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        method, path = scope.method, scope.path
        handler = LITERAL.get((method, path))
        if handler is not None:
            await handler(scope, protocol)
            return
        parent, _, ident = path.rpartition("/")
        with_id = WITH_ID.get((method, parent))
        if with_id is not None and ident:
            await with_id(scope, protocol, ident)
            return
        protocol.response_empty(404, [])


app = App()
