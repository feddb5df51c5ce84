"""The app of the bench for uvicorn: bare ASGI.

ASGI brings no router, so the case with 500 routes looks the path's head up in a dict: the least that a
framework on top could do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

PREFIX, SUFFIX = Path(__file__).with_name("item.json").read_bytes().split(b"00000000")
SLICE = bytes(range(256)) * 4096
SLICES = 100

TEXT = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"4")]


async def ping(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": TEXT})
    await send({"type": "http.response.body", "body": b"pong"})


async def answer(send: Any, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def item(scope: Any, receive: Any, send: Any, ident: str) -> None:
    await answer(send, b"application/json", PREFIX + ident.encode() + SUFFIX)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message.get("more_body"):
            break
    await answer(send, b"application/octet-stream", b"".join(parts))


async def download(scope: Any, receive: Any, send: Any) -> None:
    length = str(SLICES * len(SLICE)).encode()
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(SLICES):
        await send({"type": "http.response.body", "body": SLICE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


LITERAL = {("GET", "/ping"): ping, ("POST", "/echo"): echo, ("GET", "/download"): download}
WITH_ID = {
    ("GET", f"/api/v1/r{number:03}/items"): item for number in range(int(os.environ.get("BENCH_ROUTES", "1")))
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    method, path = scope["method"], scope["path"]
    handler = LITERAL.get((method, path))
    if handler is not None:
        await handler(scope, receive, send)
        return
    parent, _, ident = path.rpartition("/")
    with_id = WITH_ID.get((method, parent))
    if with_id is not None and ident:
        await with_id(scope, receive, send, ident)
        return
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
