"""The app of the bench for aiohttp's server, on uvloop, with aiohttp's own router.

Usage: aiohttp_app.py PORT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import uvloop
from aiohttp import web

PREFIX, SUFFIX = Path(__file__).with_name("item.json").read_bytes().split(b"00000000")
SLICE = bytes(range(256)) * 4096
SLICES = 100


async def ping(request: web.Request) -> web.Response:
    return web.Response(body=b"pong", content_type="text/plain", charset="utf-8")


async def item(request: web.Request) -> web.Response:
    body = PREFIX + request.match_info["id"].encode() + SUFFIX
    return web.Response(body=body, content_type="application/json")


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read(), content_type="application/octet-stream")


async def download(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_type = "application/octet-stream"
    response.content_length = SLICES * len(SLICE)
    await response.prepare(request)
    for _ in range(SLICES):
        await response.write(SLICE)
    await response.write_eof()
    return response


app = web.Application(client_max_size=10 << 20)
app.router.add_get("/ping", ping)
for number in range(int(os.environ.get("BENCH_ROUTES", "1"))):
    app.router.add_get(f"/api/v1/r{number:03}/items/{{id}}", item)
app.router.add_post("/echo", echo)
app.router.add_get("/download", download)

web.run_app(
    app,
    host="127.0.0.1",
    port=int(sys.argv[1]),
    backlog=4096,
    access_log=None,
    print=None,
    loop=uvloop.new_event_loop(),
)
