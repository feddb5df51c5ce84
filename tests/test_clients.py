"""Clients that are not ours: wrk, curl, http.client, aiohttp; against a thread and `prefork run`."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import importlib.util
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import uvloop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

HELPERS = Path(__file__).with_name("helpers_server.py")
_spec = importlib.util.spec_from_file_location("helpers_server", HELPERS)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

APP = """
import asyncio
import json
from prefork import http

mux = http.ServeMux()


@mux.handle_func("GET /ping")
async def ping(w, r):
    w.write(b"pong")


@mux.handle_func("GET /plain/{id}")
def plain(w, r):
    w.header["X-Id"] = r.path_value("id")
    w.write("plain " + r.path_value("id"))


@mux.handle_func("POST /echo")
async def echo(w, r):
    w.header["Content-Type"] = r.header.get("Content-Type", "application/octet-stream")
    w.header["X-Coding"] = " ".join(r.transfer_encoding)
    w.header["X-Proto"] = r.proto
    await w.write(await r.body.read())


@mux.handle_func("POST /json")
async def reply(w, r):
    value = await r.json()
    http.write_json(w, {"got": value})


@mux.handle_func("POST /upper")
async def upper(w, r):
    w.enable_full_duplex()
    async for piece in r.body:
        await w.write(piece.upper())
        await w.flush()


@mux.handle_func("GET /stream/{n}")
async def stream(w, r):
    for number in range(int(r.path_value("n"))):
        await w.write(b"x" * 65536)


@mux.handle_func("GET /sleep")
async def sleep(w, r):
    await asyncio.sleep(0.05)
    w.write("slept")


@mux.handle_func("GET /trailer")
async def trailer(w, r):
    w.header["Trailer"] = "X-Sum"
    await w.write(b"with a trailer")
    w.header["X-Sum"] = "14"


@mux.handle_func("GET /early")
async def early(w, r):
    w.header["Link"] = "</style.css>; rel=preload"
    w.write_header(103)
    w.write("after hints")


@mux.handle_func("GET /old")
def old(w, r):
    http.redirect(w, r, "/ping", 302)
"""


@pytest.fixture(scope="module")
def process_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of one `prefork run` for all tests: it must go on as if each were the first."""
    directory = tmp_path_factory.mktemp("clients")
    (directory / "app.py").write_text(APP)
    with (
        open(directory / "log", "w+") as log,
        subprocess.Popen(
            [sys.executable, "-m", "prefork", "run", "app:mux", "-b", "127.0.0.1:0", "-w", "2"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 20
            while not (
                started := re.search(r"on http://127\.0\.0\.1:(\d+)", (directory / "log").read_text())
            ):
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline, "prefork run does not start"
                time.sleep(0.01)
            yield int(started[1])
        finally:
            process.terminate()
            try:
                assert process.wait(15) == 0
            finally:
                process.kill()
    assert "Traceback" not in (directory / "log").read_text()


@pytest.fixture(params=["thread", "process"])
def port(request: pytest.FixtureRequest, process_port: int) -> Iterator[int]:
    """Of a server that serves APP."""
    if request.param == "process":
        yield process_port
    else:
        names: dict[str, Any] = {}
        exec(APP, names)
        with helpers.in_thread(names["mux"], uvloop.new_event_loop) as s:
            yield s.port


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed here")
    return path


# --- wrk ------------------------------------------------------------------------------------


MIXED = """
local targets = {"/ping", "/plain/7", "/stream/2", "/trailer", "/sleep"}
local n = 0
request = function()
  n = n + 1
  return wrk.format("GET", targets[n % #targets + 1])
end
"""

PIPELINED = """
init = function(args)
  local requests = {}
  for i = 1, 16 do requests[i] = wrk.format("GET", "/plain/" .. i) end
  all = table.concat(requests)
end
request = function() return all end
"""


@pytest.mark.parametrize("lua", [MIXED, PIPELINED], ids=["mixed", "pipelined"])
def test_wrk(port: int, lua: str, tmp_path: Path) -> None:
    script = tmp_path / "script.lua"
    script.write_text(lua)
    command = [tool("wrk"), "-t1", "-c16", "-d1s", "-s", str(script), f"http://127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    found = re.search(r"(\d+) requests in", done.stdout)
    assert found is not None
    assert int(found[1]) > 50
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout


# --- curl -----------------------------------------------------------------------------------


def curl(port: int, *arguments: str, stdin: bytes = b"") -> tuple[str, bytes]:
    """(what curl tells about the connection and the headers, the body)."""
    arguments = tuple(a.replace("URL", f"http://127.0.0.1:{port}") for a in arguments)
    done = subprocess.run(
        [tool("curl"), "-sSv", "--max-time", "20", *arguments], input=stdin, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stderr.decode(errors="replace"), done.stdout


def test_curl_get_and_reuse(port: int) -> None:
    told, body = curl(port, "URL/ping", "URL/plain/1", "URL/trailer", "URL/plain/2")
    assert body == b"pongplain 1with a trailerplain 2"
    assert told.count("Re-using existing connection") == 3


def test_curl_head(port: int) -> None:
    told, body = curl(port, "-I", "URL/ping", "URL/stream/3")
    assert told.count("< HTTP/1.1 200 OK") == 2
    assert "< Content-Length: 4" in told
    assert body.count(b"HTTP/1.1 200 OK") == 2


def test_curl_post(port: int) -> None:
    told, body = curl(port, "-d", "a=1&b=2", "URL/echo")
    assert body == b"a=1&b=2"
    assert "< Content-Type: application/x-www-form-urlencoded" in told


def test_curl_chunked_upload(port: int) -> None:
    data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(10_000))
    told, body = curl(port, "-X", "POST", "-T", "-", "URL/echo", stdin=data)
    assert "> Transfer-Encoding: chunked" in told
    assert "< X-Coding: chunked" in told
    assert body == data


def test_curl_expect_100(port: int) -> None:
    data = b"x" * 2_000_000  # large enough for curl to ask first
    told, body = curl(port, "-H", "Expect: 100-continue", "--data-binary", "@-", "URL/echo", stdin=data)
    assert "< HTTP/1.1 100 Continue" in told
    assert body == data


def test_curl_body_too_large(port: int) -> None:
    """It asks with Expect, is told 413, and does not send the body."""
    data = b"x" * (11 << 20)
    told, body = curl(port, "-H", "Expect: 100-continue", "--data-binary", "@-", "URL/echo", stdin=data)
    assert "< HTTP/1.1 413 " in told
    assert "100 Continue" not in told
    assert b"max_body_bytes" in body


def test_curl_http_10(port: int) -> None:
    told, body = curl(port, "--http1.0", "URL/ping", "URL/stream/2")
    assert body == b"pong" + b"x" * 2 * 65536
    assert "< HTTP/1.0 200 OK" in told
    assert "Transfer-Encoding" not in told


def test_curl_follows_redirects_and_early_hints(port: int) -> None:
    told, body = curl(port, "-L", "URL/old", "URL/early")
    assert body == b"pongafter hints"
    assert "< HTTP/1.1 302 Found" in told
    assert "< HTTP/1.1 103 Early Hints" in told


# --- http.client ----------------------------------------------------------------------------


def test_http_client(port: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        sock = None
        for number in range(3):
            client.request("GET", f"/plain/{number}")
            response = client.getresponse()
            assert (response.status, response.read()) == (200, b"plain %d" % number)
            assert response.getheader("X-Id") == str(number)
            assert sock is None or client.sock is sock, "the connection was not kept"
            sock = client.sock
        client.request("HEAD", "/ping")
        response = client.getresponse()
        assert (response.getheader("Content-Length"), response.read()) == ("4", b"")
        client.request("POST", "/echo", body=b"sized")
        assert client.getresponse().read() == b"sized"
        client.request("POST", "/echo", body=iter([b"in ", b"chunks"]), encode_chunked=True)
        response = client.getresponse()
        assert (response.getheader("X-Coding"), response.read()) == ("chunked", b"in chunks")
        client.request("GET", "/stream/5")
        assert len(client.getresponse().read()) == 5 * 65536
        client.request("DELETE", "/ping")
        response = client.getresponse()
        assert (response.status, response.getheader("Allow")) == (405, "GET, HEAD")
        response.read()
        client.request("GET", "/nowhere")
        response = client.getresponse()
        assert (response.status, response.read()) == (404, b"404 page not found\n")
        assert client.sock is sock
    finally:
        client.close()


# --- aiohttp --------------------------------------------------------------------------------


def aiohttp_test(run: Any, port: int, test: Any) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(total=20)
        ) as session:
            await test(session)
        await asyncio.sleep(0)  # aiohttp closes its sockets a turn later

    run(main())


def test_aiohttp_json(run: Any, port: int) -> None:
    async def test(session: aiohttp.ClientSession) -> None:
        value = {"name": "käse", "list": list(range(2000))}
        for _ in range(2):
            async with session.post("/json", json=value) as response:
                assert response.status == 200
                assert await response.json() == {"got": value}
        async with session.post("/json", data=b"{") as response:
            assert response.status == 400

    aiohttp_test(run, port, test)


def test_aiohttp_streams_both_ways(run: Any, port: int) -> None:
    """The answer to a piece comes before the next piece is sent."""

    async def test(session: aiohttp.ClientSession) -> None:
        answered = asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            for number in range(5):
                answered.clear()
                yield b"piece %d " % number
                await answered.wait()

        received = []
        async with session.post("/upper", data=pieces()) as response:
            async for piece in response.content.iter_any():
                received.append(piece)
                answered.set()
        assert b"".join(received) == b"".join(b"PIECE %d " % number for number in range(5))

    aiohttp_test(run, port, test)


def test_aiohttp_download(run: Any, port: int) -> None:
    async def test(session: aiohttp.ClientSession) -> None:
        async with session.get("/stream/100") as response:
            total = 0
            async for piece in response.content.iter_chunked(10_000):
                total += len(piece)
            assert total == 100 * 65536

    aiohttp_test(run, port, test)


def test_aiohttp_100_at_once(run: Any, port: int) -> None:
    async def test(session: aiohttp.ClientSession) -> None:
        async def one(number: int) -> None:
            async with session.get(f"/plain/{number}") as response:
                assert await response.text() == f"plain {number}"
            async with session.get("/sleep") as response:
                assert await response.text() == "slept"
            async with session.post("/echo", data=str(number)) as response:
                assert await response.text() == str(number)

        await asyncio.gather(*map(one, range(100)))

    aiohttp_test(run, port, test)
