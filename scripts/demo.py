"""A small app that shows the API. `scripts/serve` runs it; from this folder, so does `prefork run demo:mux`.

curl localhost:8000/                          what there is
curl localhost:8000/ping                      the shortest handler
curl localhost:8000/planets/venus             a path parameter, JSON, 404 for what is none
curl localhost:8000/echo -d hello             the body of the request, at once
curl localhost:8000/digest -T somefile        the body piece by piece, however large
curl localhost:8000/numbers/1000000 | tail    a long answer, made only as fast as it is read
curl localhost:8000/clock -N                  server-sent events, until you leave
curl localhost:8000/page -v                   103 Early Hints before the page
curl localhost:8000/slow                      code that blocks, in a thread of its own
curl localhost:8000/whoami -H 'X-Name: me'    what a request carries, and which worker answers
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time

from prefork import http

mux = http.ServeMux()

PLANETS = {
    "mercury": {"name": "Mercury", "moons": 0, "year": 0.24},
    "venus": {"name": "Venus", "moons": 0, "year": 0.62},
    "earth": {"name": "Earth", "moons": 1, "year": 1.0},
    "mars": {"name": "Mars", "moons": 2, "year": 1.88},
}


# A plain function runs on the event loop of its worker and must not block. A small answer
# needs no await: what is written is sent when the handler returns.
@mux.handle_func("/ping")
def ping(w: http.ResponseWriter, r: http.Request) -> None:
    w.write(b"pong")


# {$} means: this path and nothing below it.
@mux.handle_func("GET /{$}")
def index(w: http.ResponseWriter, r: http.Request) -> None:
    w.write("".join(f"{route.pattern}\n" for route in mux.routes()))


@mux.handle_func("GET /planets/{name}")
async def planet(w: http.ResponseWriter, r: http.Request) -> None:
    found = PLANETS.get(r.path_value("name").lower())
    if found is None:
        raise http.StatusError(404, "no such planet")
    http.write_json(w, found)


@mux.handle_func("POST /echo")
async def echo(w: http.ResponseWriter, r: http.Request) -> None:
    data = await r.body.read()  # no more than max_body_bytes; the client gets 413 for more
    w.header["Content-Type"] = r.header.get("Content-Type", "application/octet-stream")
    await w.write(data)


async def digest(w: http.ResponseWriter, r: http.Request) -> None:
    size, sha256 = 0, hashlib.sha256()
    async for chunk in r.body:  # nothing more is received while this loop is busy
        size += len(chunk)
        sha256.update(chunk)
    http.write_json(w, {"bytes": size, "sha256": sha256.hexdigest()})


# This one route takes more than the server's max_body_bytes.
mux.handle("PUT /digest", http.max_bytes_handler(digest, 100 << 30))


@mux.handle_func("GET /numbers/{count}")
async def numbers(w: http.ResponseWriter, r: http.Request) -> None:
    try:
        count = int(r.path_value("count"))
    except ValueError:
        raise http.StatusError(400, "count must be a number") from None
    for number in range(count):
        await w.write(b"%d\n" % number)  # waits while the client reads more slowly than this writes


@mux.handle_func("GET /clock")
async def clock(w: http.ResponseWriter, r: http.Request) -> None:
    w.header["Content-Type"] = "text/event-stream"
    w.header["Cache-Control"] = "no-store"
    # Whoever never ends by himself asks whether the client has left or the server wants to stop.
    while not (r.disconnected or r.shutting_down):
        await w.write(f"data: {time.strftime('%H:%M:%S')}\n\n")
        await w.flush()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(r.shutting_down.wait(), 1.0)


@mux.handle_func("GET /page")
async def page(w: http.ResponseWriter, r: http.Request) -> None:
    w.header["Link"] = "</style.css>; rel=preload; as=style"
    w.write_header(103)  # a 1xx status is sent at once; the browser can begin with the style
    await asyncio.sleep(0.2)  # meanwhile the page is made
    w.header["Content-Type"] = "text/html; charset=utf-8"
    w.write("<!doctype html><link rel=stylesheet href=/style.css><h1>Hello</h1>\n")


@mux.handle_func("GET /style.css")
def style(w: http.ResponseWriter, r: http.Request) -> None:
    w.header["Content-Type"] = "text/css"
    w.write("h1 { font-family: sans-serif }\n")


# Code that blocks (a database driver, a file, a computation in C) runs in a thread of the worker's pool.
@mux.handle_func("GET /slow")
@http.blocking
def slow(w: http.ResponseWriter, r: http.Request) -> None:
    time.sleep(1)
    w.write("worth the wait\n")


@mux.handle_func("/whoami")
def whoami(w: http.ResponseWriter, r: http.Request) -> None:
    http.write_json(
        w,
        {
            "method": r.method,
            "path": r.url.path,
            "query": r.url.raw_query,
            "client": r.remote_addr,
            "headers": dict(r.header.items()),
            "pattern": r.pattern,
            "worker": os.getpid(),
        },
    )


if __name__ == "__main__":
    http.listen_and_serve("127.0.0.1:8000", mux)  # this process alone, without workers
