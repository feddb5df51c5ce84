"""The app of the bench for prefork: `prefork run prefork_app:mux`, or `prefork_app:plain` for plain `def`."""

from __future__ import annotations

import os
from pathlib import Path

from prefork import http

PREFIX, SUFFIX = Path(__file__).with_name("item.json").read_bytes().split(b"00000000")
SLICE = bytes(range(256)) * 4096
SLICES = 100

mux = http.ServeMux()
plain = http.ServeMux()


@mux.handle_func("GET /ping")
async def ping(w: http.ResponseWriter, r: http.Request) -> None:
    await w.write(b"pong")


@plain.handle_func("GET /ping")
def ping_plain(w: http.ResponseWriter, r: http.Request) -> None:
    w.write(b"pong")


async def item(w: http.ResponseWriter, r: http.Request) -> None:
    w.header["Content-Type"] = "application/json"
    await w.write(PREFIX + r.path_value("id").encode() + SUFFIX)


for number in range(int(os.environ.get("BENCH_ROUTES", "1"))):
    mux.handle_func(f"GET /api/v1/r{number:03}/items/{{id}}", item)


@mux.handle_func("POST /echo")
async def echo(w: http.ResponseWriter, r: http.Request) -> None:
    body = await r.body.read()
    w.header["Content-Type"] = "application/octet-stream"
    w.header["Content-Length"] = str(len(body))
    await w.write(body)


@mux.handle_func("GET /download")
async def download(w: http.ResponseWriter, r: http.Request) -> None:
    w.header["Content-Type"] = "application/octet-stream"
    w.header["Content-Length"] = str(SLICES * len(SLICE))
    for _ in range(SLICES):
        await w.write(SLICE)
