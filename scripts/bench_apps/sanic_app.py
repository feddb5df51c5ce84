"""The app of the bench for sanic, with sanic's own router, one process, on uvloop (sanic's default).

Usage: sanic_app.py PORT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sanic import Request, Sanic
from sanic.response import HTTPResponse, raw

PREFIX, SUFFIX = Path(__file__).with_name("item.json").read_bytes().split(b"00000000")
SLICE = bytes(range(256)) * 4096
SLICES = 100

app = Sanic("bench")
app.config.FALLBACK_ERROR_FORMAT = "text"


@app.get("/ping")
async def ping(request: Request) -> HTTPResponse:
    return raw(b"pong", content_type="text/plain; charset=utf-8")


async def item(request: Request, ident: str) -> HTTPResponse:
    return raw(PREFIX + ident.encode() + SUFFIX, content_type="application/json")


for number in range(int(os.environ.get("BENCH_ROUTES", "1"))):
    app.add_route(item, f"/api/v1/r{number:03}/items/<ident>", name=f"item{number}")


@app.post("/echo")
async def echo(request: Request) -> HTTPResponse:
    return raw(request.body, content_type="application/octet-stream")


@app.get("/download")
async def download(request: Request) -> None:
    response = await request.respond(
        content_type="application/octet-stream", headers={"content-length": str(SLICES * len(SLICE))}
    )
    for _ in range(SLICES):
        await response.send(SLICE)
    await response.eof()


if __name__ == "__main__":
    app.run("127.0.0.1", int(sys.argv[1]), backlog=4096, access_log=False, motd=False, single_process=True)
