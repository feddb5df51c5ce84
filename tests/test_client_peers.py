"""The client and servers and proxies that are not ours: nginx, aiohttp, Go, tinyproxy, squid; and our own."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from aiohttp import web

from prefork import http

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


h = _load("helpers_transport")
server_helpers = _load("helpers_server")
tunnel = _load("test_tunnel")
tinyproxy, squid = tunnel.tinyproxy, tunnel.squid  # fixtures

Run = "Callable[..., Any]"
both_loops = pytest.mark.both_loops


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        await asyncio.sleep(0)
        yield piece


# --- servers with handlers: the same ones in three languages ---------------------------------------

TEXT = b"All work and no play makes Jack a dull boy.\n" * 500


def own_handler() -> http.ServeMux:
    mux = http.ServeMux()

    @mux.handle_func("/echo")
    async def echo(w: Any, r: Any) -> None:
        body = await r.body.read()
        w.header["X-Coding"] = ",".join(r.transfer_encoding)
        w.header["X-Length"] = str(r.content_length)
        w.header["X-Trailer"] = r.trailer.get("X-Sum", "")
        await w.write(body)

    @mux.handle_func("/stream")
    async def stream(w: Any, r: Any) -> None:
        w.header["Trailer"] = "X-Sum"
        for _ in range(100):
            await w.write(b"x" * 10_000)
            await w.flush()
        w.header["X-Sum"] = "1000000"

    @mux.handle_func("/gzip")
    async def zipped(w: Any, r: Any) -> None:
        w.header["Content-Encoding"] = "gzip"
        await w.write(gzip.compress(TEXT))

    @mux.handle_func("/close")
    async def close(w: Any, r: Any) -> None:
        w.header["Connection"] = "close"
        await w.write(b"bye")

    @mux.handle_func("/empty")
    def empty(w: Any, r: Any) -> None:
        w.write_header(204)

    @mux.handle_func("/moved")
    def moved(w: Any, r: Any) -> None:
        http.redirect(w, r, "/echo", 307)

    @mux.handle_func("/slow")
    async def slow(w: Any, r: Any) -> None:
        await r.disconnected

    return mux


def aiohttp_app() -> web.Application:
    async def echo(request: web.Request) -> web.Response:
        body = await request.read()
        headers = {
            "X-Coding": request.headers.get("Transfer-Encoding", ""),
            "X-Length": request.headers.get("Content-Length", "0" if not body else "-1"),
            "X-Trailer": "",
        }
        return web.Response(body=body, headers=headers)

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b"x" * 10_000)
        await response.write_eof()
        return response

    async def zipped(request: web.Request) -> web.Response:
        response = web.Response(body=TEXT)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async def close(request: web.Request) -> web.Response:
        response = web.Response(body=b"bye")
        response.force_close()
        return response

    async def empty(request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def moved(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("/echo")

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def duplex(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece)
        return response

    async def refuse(request: web.Request) -> None:
        raise web.HTTPExpectationFailed

    app = web.Application(client_max_size=64 << 20)
    for handler in (echo, stream, close, empty, moved, slow, duplex):
        app.router.add_route("*", f"/{handler.__name__}", handler)
    app.router.add_route("*", "/gzip", zipped)
    app.router.add_route("*", "/refused", echo, expect_handler=refuse)
    return app


@contextlib.asynccontextmanager
async def aiohttp_server(listener: socket.socket | None = None) -> AsyncIterator[str]:
    """Its URL; it accepts on a copy of `listener`, or on a free port."""
    runner = web.AppRunner(
        aiohttp_app(), handle_signals=False, shutdown_timeout=0.1, handler_cancellation=True
    )
    await runner.setup()
    try:
        sock = listener.dup() if listener is not None else socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, sock).start()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        await runner.cleanup()


GO = """
package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

func main() {
	text := strings.Repeat("All work and no play makes Jack a dull boy.\\n", 500)
	http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Coding", strings.Join(r.TransferEncoding, ","))
		w.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
		w.Header().Set("X-Trailer", r.Trailer.Get("X-Sum"))
		w.Write(body)
	})
	http.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		for i := 0; i < 100; i++ {
			io.WriteString(w, strings.Repeat("x", 10000))
			w.(http.Flusher).Flush()
		}
		w.Header().Set("X-Sum", "1000000")
	})
	http.HandleFunc("/gzip", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, text)
		z.Close()
	})
	http.HandleFunc("/close", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		io.WriteString(w, "bye")
	})
	http.HandleFunc("/empty", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	http.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/echo", 307)
	})
	http.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	http.Serve(listener, nil)
}
"""


async def uses(base: str, **options: Any) -> None:
    """All that the three can do, on one connection."""
    async with h.transport(**options) as sender:
        client = http.Client(transport=sender)
        response = await client.get(f"{base}/echo")
        assert (response.status, response.body) == (200, b"")
        assert response.header["X-Length"] == "0"
        assert response.header["X-Coding"] == ""
        for size in (1, 1000, 65_536, 300_000, 3_000_000):
            body = os.urandom(size)
            response = await client.post(f"{base}/echo", "application/octet-stream", body)
            assert response.body == body
            assert response.header["X-Length"] == str(size)
            response = await client.post(f"{base}/echo", "text/plain", pieces(body[:10], body[10:]))
            assert response.body == body
            assert response.header["X-Coding"] == "chunked"
        request = http.Request("POST", f"{base}/echo", body=pieces(b"a", b"b"), trailer={"X-Sum": "2"})
        response = await client.do(request)
        assert response.body == b"ab"
        assert response.header["X-Trailer"] in ("2", "")
        request = http.Request("PUT", f"{base}/echo", body=b"expected", header={"Expect": "100-continue"})
        assert (await client.do(request)).body == b"expected"
        response = await client.head(f"{base}/gzip")
        assert (response.status, response.body) == (200, b"")
        async with client.get(f"{base}/stream") as response:
            assert response.transfer_encoding == ["chunked"]
            size = 0
            async for piece in response.body:
                size += len(piece)
            assert size == 1_000_000
            assert response.trailer.get("X-Sum", "1000000") == "1000000"
        response = await client.get(f"{base}/gzip")
        assert response.body == TEXT
        assert response.uncompressed
        assert (await client.get(f"{base}/empty")).status == 204
        response = await client.post(f"{base}/moved", "text/plain", b"again")
        assert response.body == b"again"
        answers = [await client.get(f"{base}/echo") for _ in range(50)]
        assert all(answer.status == 200 for answer in answers)
        assert sender.stats().dials == 1
        # And what ends a connection.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.get(f"{base}/slow")
        async with client.get(f"{base}/stream") as response:
            await response.body.read(1)
        assert (await client.get(f"{base}/close")).body == b"bye"
        assert (await client.get(f"{base}/echo")).status == 200
        many = await asyncio.gather(
            *(client.post(f"{base}/echo", "text/plain", b"%d" % n) for n in range(100))
        )
        assert [response.body for response in many] == [b"%d" % n for n in range(100)]
        await h.until(lambda: sender.stats().active == 0)
        h.check_pool(sender)


@both_loops
def test_our_own_server(run: Run) -> None:
    with server_helpers.in_thread(own_handler(), uvloop.new_event_loop) as s:
        run(uses(f"http://127.0.0.1:{s.port}"))


@both_loops
def test_aiohttp(run: Run) -> None:
    async def main() -> None:
        async with aiohttp_server() as base:
            await uses(base)

    run(main())


@both_loops
def test_aiohttp_answers_before_it_has_all(run: Run) -> None:
    """An echo comes while its request goes out; a refused body goes out, to save the connection."""

    async def main() -> None:
        async with aiohttp_server() as base, h.transport() as sender:
            client = http.Client(transport=sender)
            went: asyncio.Queue[bytes] = asyncio.Queue()

            async def said() -> AsyncIterator[bytes]:
                while piece := await went.get():
                    yield piece

            went.put_nowait(b"0")
            async with client.post(f"{base}/duplex", "text/plain", said()) as response:
                assert await response.body.read(1) == b"0"
                for _ in range(20):
                    piece = os.urandom(30_000)
                    went.put_nowait(piece)
                    echo = b""
                    while len(echo) < len(piece):
                        echo += await response.body.read(len(piece) - len(echo))
                    assert echo == piece
                went.put_nowait(b"")
                assert await response.body.read() == b""
            assert (await client.get(f"{base}/echo")).status == 200
            assert sender.stats().dials == 1

            sent: list[bool] = []

            async def unwanted() -> AsyncIterator[bytes]:
                yield b"x" * 100_000
                sent.append(True)

            header = {"Expect": "100-continue"}
            request = http.Request(
                "PUT", f"{base}/refused", body=unwanted(), header=header, content_length=100_000
            )
            assert (await client.do(request)).status == 417
            await h.until(lambda: sender.stats().active == 0)
            assert sent == [True]
            assert (await client.get(f"{base}/echo")).status == 200
            assert (sender.stats().dials, sender.stats().retries) == (1, 0)
            h.check_pool(sender)

    run(main())


BENCH = Path(__file__).resolve().parent.parent / "scripts" / ".bench" / "go"


@pytest.fixture(scope="module")
def go_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server of Go's net/http, built with the benchmark's toolchain or the one on PATH."""
    goroot = BENCH / "toolchain" / "go"
    go = goroot / "bin" / "go" if (goroot / "bin" / "go").exists() else shutil.which("go")
    if go is None:
        pytest.skip("no Go toolchain: neither in scripts/.bench/go (scripts/bench makes it) nor on PATH")
    directory = tmp_path_factory.mktemp("go")
    (directory / "main.go").write_text(GO)
    (directory / "go.mod").write_text("module peer\n\ngo 1.21\n")
    environ = os.environ | {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
    if goroot.exists():
        environ |= {"GOROOT": str(goroot), "GOCACHE": str(BENCH / "cache"), "HOME": str(BENCH)}
    subprocess.run([go, "build", "-o", "peer", "."], cwd=directory, env=environ, check=True, timeout=240)
    with subprocess.Popen([directory / "peer"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


@both_loops
def test_go(run: Run, go_port: int) -> None:
    run(uses(f"http://127.0.0.1:{go_port}"))


# --- nginx --------------------------------------------------------------------------------------------

NGINX = """
daemon off;
{user}
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    gzip on;
    gzip_types text/plain application/octet-stream;
    gzip_min_length 100;
    client_max_body_size 8m;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {directory}/one.pem;
    ssl_certificate_key {directory}/one.pem;
    server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{tls} ssl;
        server_name localhost one.example;
        root {directory}/static;
        location = /who {{ return 200 "one $ssl_server_name $ssl_protocol"; }}
        location = /generation {{ return 200 "{generation}"; }}
        location /few {{
            keepalive_requests 5;
            alias {directory}/static/;
        }}
        location /short {{
            keepalive_timeout 50ms;
            alias {directory}/static/;
        }}
        location /ending {{
            chunked_transfer_encoding off;
            alias {directory}/static/;
        }}
        location /proxy/ {{ proxy_pass http://127.0.0.1:{backend}/; }}
        location /unbuffered/ {{
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_pass http://127.0.0.1:{backend}/;
        }}
        location /aiohttp/ {{ proxy_pass http://127.0.0.1:{aiohttp}/; }}
        location /limited/ {{
            client_max_body_size 64k;
            lingering_close always;
            proxy_pass http://127.0.0.1:{backend}/;
        }}
    }}
    server {{
        listen 127.0.0.1:{tls} ssl;
        server_name two.example;
        ssl_certificate {directory}/two.pem;
        ssl_certificate_key {directory}/two.pem;
        location = /who {{ return 200 "two $ssl_server_name $ssl_protocol"; }}
    }}
    server {{
        listen 127.0.0.1:{mutual} ssl;
        server_name localhost;
        ssl_client_certificate {directory}/clients.pem;
        ssl_verify_client on;
        location = /who {{ return 200 "$ssl_client_verify"; }}
    }}
}}
"""


class Nginx:
    """A running nginx. static: the folder that it serves; behind it our own server and aiohttp's.

    generation: what /generation answers, as text, since the last `reload`.
    """

    def __init__(self, binary: str, directory: Path, backend: int) -> None:
        self.directory = directory
        self.static = directory / "static"
        self.generation = 0
        self.listeners = {
            name: socket.create_server(("127.0.0.1", 0), backlog=128)
            for name in ("plain", "tls", "mutual", "aiohttp")
        }
        self.ports = {name: sock.getsockname()[1] for name, sock in self.listeners.items()}
        self.ports["backend"] = backend
        self._configure()
        # It takes over listening sockets as from its own predecessor: no port can be lost to others.
        taken = [self.listeners[name].fileno() for name in ("plain", "tls", "mutual")]
        command = [binary, "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(self._config)]
        environ = os.environ | {"NGINX": "".join(f"{fd};" for fd in taken)}
        self.process = subprocess.Popen(command, env=environ, pass_fds=taken)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['plain']}"

    def https(self, host: str, which: str = "tls") -> str:
        return f"https://{host}:{self.ports[which]}"

    def reload(self) -> None:
        """New workers with the next generation; the old ones finish what they have begun."""
        self.generation += 1
        self._configure()
        self.process.send_signal(signal.SIGHUP)

    @property
    def _config(self) -> Path:
        return self.directory / "nginx.conf"

    def _configure(self) -> None:
        self._config.write_text(
            NGINX.format(
                directory=self.directory,
                generation=self.generation,
                user="user root;" if os.geteuid() == 0 else "",
                **self.ports,
            )
        )

    def wait_until_up(self) -> None:
        # Also the first connection of the server behind it opens a descriptor for the whole of its loop.
        try:
            with urllib.request.urlopen(f"{self.url}/proxy/echo", timeout=10) as response:
                assert response.status == 200
        except OSError as error:
            log = (self.directory / "error.log").read_text()
            raise AssertionError(f"nginx does not answer: {error}; {log}") from error

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        for sock in self.listeners.values():
            sock.close()


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        pytest.skip("no nginx on this machine: apt install nginx-light")
    directory = tmp_path_factory.mktemp("nginx")
    static = directory / "static"
    static.mkdir()
    (static / "text.txt").write_bytes(TEXT)
    (static / "small").write_bytes(b"small")
    (static / "big").write_bytes(os.urandom(1 << 20) * 20)
    h.dial.authority("clients").cert_pem.write_to_path(str(directory / "clients.pem"))
    for name, hosts in (("one", ("localhost", "one.example")), ("two", ("two.example",))):
        cert = h.dial.authority("right").issue_cert(*hosts)
        cert.private_key_and_cert_chain_pem.write_to_path(str(directory / f"{name}.pem"))
    with server_helpers.in_thread(own_handler(), uvloop.new_event_loop) as backend:
        server = Nginx(binary, directory, backend.port)
        try:
            server.wait_until_up()
            yield server
        finally:
            server.stop()


@both_loops
def test_nginx_static_files(run: Run, nginx: Nginx) -> None:
    base = nginx.url

    async def main() -> None:
        async with h.transport() as sender:
            client = http.Client(transport=sender)
            response = await client.get(f"{base}/small")
            assert (response.status, response.body) == (200, b"small")
            assert response.content_length == 5
            assert response.header["Server"].startswith("nginx")
            response = await client.get(f"{base}/text.txt")
            assert response.uncompressed
            assert response.transfer_encoding == ["chunked"]
            assert response.body == TEXT
            response = await client.get(f"{base}/text.txt", header={"Range": "bytes=4-7"})
            assert (response.status, response.body) == (206, TEXT[4:8])
            response = await client.get(f"{base}/text.txt", header={"Range": "bytes=30000-"})
            assert response.status == 416
            response = await client.head(f"{base}/big")
            assert response.content_length == 20 << 20
            tag = response.header["ETag"]
            response = await client.get(f"{base}/big", header={"If-None-Match": tag})
            assert (response.status, response.body) == (304, b"")
            digest = hashlib.sha256()
            header = {"Accept-Encoding": "identity"}
            async with client.get(f"{base}/big", header=header) as response:
                assert response.content_length == 20 << 20
                async for piece in response.body:
                    digest.update(piece)
            assert digest.digest() == hashlib.sha256((nginx.static / "big").read_bytes()).digest()
            assert (await client.get(f"{base}/none")).status == 404
            response = await client.get(f"{base}/none/../small")
            assert response.status == 200
            assert (await client.post(f"{base}/small", "text/plain", b"x" * 65_536)).status == 405
            assert sender.stats().dials == 1

    run(main())


@both_loops
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nginx_ends_connections(run: Run, nginx: Nginx, scheme: str) -> None:
    """By number of requests, with a word; by time, without one; and as the end of a body."""
    base = nginx.url if scheme == "http" else nginx.https("localhost")
    tls_config = h.dial.trusting()

    async def main() -> None:
        async with h.transport(tls_config=tls_config) as sender:
            client = http.Client(transport=sender)
            for _ in range(100):
                assert (await client.get(f"{base}/few/small")).body == b"small"
            assert sender.stats().dials == 20
            assert sender.stats().retries == 0
        async with h.transport(tls_config=tls_config, max_conns_per_host=10) as sender:
            client = http.Client(transport=sender)
            answers = await asyncio.gather(*(client.get(f"{base}/few/small") for _ in range(100)))
            assert all(answer.body == b"small" for answer in answers)
            await h.until(lambda: not sender.stats().dialing)  # for whom another had room
            h.check_pool(sender)
        async with h.transport(tls_config=tls_config) as sender:
            client = http.Client(transport=sender)
            for number in range(6):
                assert (await client.get(f"{base}/short/small")).body == b"small"
                if number % 2:
                    await h.until(lambda: not sender.stats().idle)
            h.check_pool(sender)
        async with h.transport(tls_config=tls_config) as sender:
            client = http.Client(transport=sender)
            for dials in (1, 2):
                response = await client.get(f"{base}/ending/text.txt")
                assert (response.body, response.uncompressed) == (TEXT, True)
                assert (response.content_length, response.transfer_encoding) == (-1, [])
                assert response.close_connection
                assert (sender.stats().dials, sender.stats().idle) == (dials, 0)

    run(main())


@both_loops
@pytest.mark.parametrize("way", ["proxy", "unbuffered", "aiohttp", "https"])
def test_nginx_as_a_reverse_proxy(run: Run, nginx: Nginx, way: str) -> None:
    base = nginx.https("localhost") + "/proxy" if way == "https" else f"{nginx.url}/{way}"

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            if way == "aiohttp":
                await stack.enter_async_context(aiohttp_server(nginx.listeners["aiohttp"]))
            sender = await stack.enter_async_context(h.transport(tls_config=h.dial.trusting()))
            client = http.Client(transport=sender)
            for size in (0, 10, 65_536, 5 << 20):
                body = os.urandom(size)
                response = await client.post(f"{base}/echo", "image/png", body)
                assert (response.status, response.body) == (200, body)
                response = await client.post(f"{base}/echo", "image/png", pieces(body[:5], body[5:]))
                assert (response.status, response.body) == (200, body)
            request = http.Request(
                "POST", f"{base}/echo", body=b"x" * 65_536, header={"Expect": "100-continue"}
            )
            assert len((await client.do(request)).body) == 65_536
            response = await client.get(f"{base}/stream")
            assert response.transfer_encoding == ["chunked"]
            assert response.body == b"x" * 1_000_000
            assert (await client.get(f"{base}/gzip")).body == TEXT
            assert sender.stats().dials == 1
            h.check_pool(sender)

    run(main())


@both_loops
def test_nginx_refuses_a_body_while_it_is_sent(run: Run, nginx: Nginx) -> None:
    """By its length, before the first byte; in chunks, when there were too many. The answer is read."""
    url = f"{nginx.url}/limited/echo"
    ended: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                await asyncio.sleep(0)
                yield b"x" * 16_384
        finally:
            ended.append(True)

    async def main() -> None:
        async with h.transport() as sender:
            client = http.Client(transport=sender)
            for number in range(1, 11):
                response = await client.post(url, "text/plain", b"x" * (5 << 20))
                assert (response.status, response.close_connection) == (413, True)
                assert b"413 Request Entity Too Large" in response.body
                assert (await client.post(url, "text/plain", endless())).status == 413
                await h.until(lambda number=number: len(ended) == number)
                assert (await client.post(url, "text/plain", b"x" * 65_536)).status == 200
            assert sender.stats().retries == 0
            await h.until(lambda: sender.stats().active == 0)
            h.check_pool(sender)

    run(main())


@both_loops
def test_nginx_reloads(run: Run, nginx: Nginx) -> None:
    """Old workers end their idle connections at any moment: the client may see it, its caller must not."""

    async def main() -> None:
        async with h.transport(max_conns_per_host=16) as sender:
            client = http.Client(transport=sender)
            seen: set[bytes] = set()
            done = False

            async def ask() -> None:
                while not done:
                    response = await client.get(f"{nginx.url}/generation")
                    assert response.status == 200
                    seen.add(response.body)

            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(ask())
                identity = {"Accept-Encoding": "identity"}
                async with client.get(f"{nginx.url}/big", header=identity) as response:
                    digest = hashlib.sha256(await response.body.read(1))
                    for _ in range(3):
                        nginx.reload()
                        await h.until(lambda: str(nginx.generation).encode() in seen)
                    async for piece in response.body:
                        digest.update(piece)
                done = True
            assert digest.digest() == hashlib.sha256((nginx.static / "big").read_bytes()).digest()
            assert sender.stats().dials > 8
            h.check_pool(sender)

    run(main())


# --- TLS ------------------------------------------------------------------------------------------------


@both_loops
def test_https(run: Run) -> None:
    async def main() -> None:
        tls = h.dial.server_context("localhost", alpn=("http/1.1",))
        context = h.dial.trusting()
        async with h.peer(tls=tls) as peer, h.transport(tls_config=context) as sender:
            client = http.Client(transport=sender)
            url = f"https://localhost:{peer.port}/"
            for number in range(10):
                response = await client.get(url)
                assert response.body == b"0 GET / "
                assert response.tls.version() == "TLSv1.3"
                if number % 3 == 0:
                    body = os.urandom(500_000)
                    assert (await client.post(url, "", body)).body == b"0 POST / " + body
            assert sender.stats().dials == 1
            # A connection that the server closes is found out at once.
            peer.lines[0].writer.close()
            await h.until(lambda: not sender.stats().idle)
            assert (await client.get(url)).body == b"1 GET / "
            held = await sender.round_trip(http.Request("POST", url, body=b"x" * 1_000_000))
            await sender.close()
            await h.failure_of(held.body.read(), http.ConnectionLost)
            await peer.all_closed()

    run(main())


@both_loops
def test_the_goodbye_of_tls_comes_with_the_response(run: Run) -> None:
    async def last(line: Any) -> None:
        if await line.request() is not None:
            line.reply("bye", "Connection: close")
            line.writer.close()

    async def main() -> None:
        tls = h.dial.server_context("localhost")
        async with h.peer(last, tls=tls) as peer, h.transport(tls_config=h.dial.trusting()) as sender:
            client = http.Client(transport=sender)
            for dials in range(1, 11):
                assert (await client.get(f"https://localhost:{peer.port}/")).body == b"bye"
                assert (sender.stats().dials, sender.stats().idle) == (dials, 0)

    run(main())


@both_loops
def test_https_with_a_client_certificate(run: Run) -> None:
    async def main() -> None:
        tls = h.dial.server_context("localhost", client_ca="clients")

        async def who(line: Any) -> None:
            while await line.request() is not None:
                certificate = line.writer.get_extra_info("peercert")
                line.reply(certificate["subjectAltName"][0][1])

        async with h.peer(who, tls=tls) as peer:
            url = f"https://localhost:{peer.port}/"
            async with h.transport(tls_config=h.dial.trusting(client_cert="clients")) as sender:
                client = http.Client(transport=sender)
                for _ in range(3):
                    assert (await client.get(url)).text() == "me@client.example"
                assert sender.stats().dials == 1
            async with h.transport(tls_config=h.dial.trusting()) as sender:
                error = await h.failure_of(http.Client(transport=sender).get(url), http.TransportError)
                assert isinstance(error, http.TLSError | http.ConnectionLost), repr(error)
                # What the server says about it is lost when the request is on its way already.
                assert re.search("certificate required|reset|closed", str(error)), repr(error)

    run(main())


@both_loops
def test_https_to_nginx(run: Run, nginx: Nginx) -> None:
    """The name tells it which certificate to show; connections are kept per name."""

    async def main() -> None:
        async with h.transport(tls_config=h.dial.trusting()) as sender:
            client = http.Client(transport=sender)
            with h.dial.names(["127.0.0.1"]):
                for _ in range(3):
                    for name in ("one", "two"):
                        url = nginx.https(f"{name}.example") + "/who"
                        response = await client.get(url)
                        assert response.text() == f"{name} {name}.example TLSv1.3"
                        assert response.tls.version() == "TLSv1.3"
                assert sender.stats().dials == 2
                error = await h.failure(client.get(nginx.https("three.example")), http.TLSError)
                assert 'certificate is not valid for "three.example"' in str(error)
            base = nginx.https("localhost")
            header = {"Accept-Encoding": "identity"}
            digest = hashlib.sha256()
            async with client.get(f"{base}/big", header=header) as response:
                async for piece in response.body:
                    digest.update(piece)
            assert digest.digest() == hashlib.sha256((nginx.static / "big").read_bytes()).digest()
            assert (await client.get(f"{base}/text.txt")).body == TEXT
            assert sender.stats().hosts[f"|https|localhost:{nginx.ports['tls']}"].idle == 1
            # The one protocol on the port of the other.
            error = await h.failure(client.get(f"https://127.0.0.1:{nginx.ports['plain']}/"), http.TLSError)
            assert "server gave HTTP response to HTTPS client" in str(error)
            response = await client.get(f"http://127.0.0.1:{nginx.ports['tls']}/")
            assert response.status == 400
            assert b"plain HTTP request was sent to HTTPS port" in response.body
            h.check_pool(sender)

    run(main())


@both_loops
def test_nginx_wants_a_client_certificate(run: Run, nginx: Nginx) -> None:
    """It shakes hands with anybody, and refuses requests without the right one."""
    url = nginx.https("localhost", "mutual") + "/who"

    async def main() -> None:
        for authority, status, text, dials in (
            ("clients", 200, "SUCCESS", 1),
            (None, 400, "No required SSL certificate was sent", 3),
            ("strangers", 400, "The SSL certificate error", 3),
        ):
            context = h.dial.trusting(client_cert=authority)
            async with h.transport(tls_config=context) as sender:
                client = http.Client(transport=sender)
                for _ in range(3):
                    response = await client.get(url)
                    assert response.status == status
                    assert text in response.text()
                assert sender.stats().dials == dials
                h.check_pool(sender)

    run(main())


# --- proxies ------------------------------------------------------------------------------------------------


async def through(proxy: str, *, kept: bool) -> None:
    """http and https through a proxy. kept: it keeps the connections of plain requests."""
    context = tunnel.trusting()
    async with (
        h.peer() as plain,
        h.peer() as other,
        h.peer(tls=tunnel.server_context("localhost")) as secure,
        h.transport(proxy=proxy, tls_config=context) as sender,
    ):
        client = http.Client(transport=sender)
        for _ in range(5):
            assert re.fullmatch(rb"\d GET /a\?b ", (await client.get(plain.url("/a?b"))).body)
        body = os.urandom(65_536)
        if not kept:
            await h.until(lambda: not sender.stats().idle)  # it does not say so
        assert (await client.post(plain.url("/p"), "text/plain", body)).body.endswith(b" POST /p " + body)
        assert (await client.get(other.url())).status == 200
        if kept:
            assert sender.stats().dials == 1  # to the proxy, whatever the server
        url = f"https://localhost:{secure.port}/"
        dials = sender.stats().dials
        for _ in range(5):
            assert (await client.get(url)).body == b"0 GET / "
        assert (await client.post(url, "text/plain", body)).body == b"0 POST / " + body
        assert sender.stats().dials == dials + 1
        assert not any("proxy-authorization" in received.fields for received in secure.requests)
        answers = await asyncio.gather(*(client.get(plain.url(f"/{n}")) for n in range(10)))
        assert [answer.body.split()[2] for answer in answers] == [b"/%d" % n for n in range(10)]
        response = await client.get(f"http://127.0.0.1:{h.dial.refusing()}/")
        assert response.status >= 500
        error = await h.failure(client.get(f"https://127.0.0.1:{h.dial.refusing()}/"), http.ProxyError)
        assert error.phase == "proxy"
        await h.until(lambda: sender.stats().active == 0)
        h.check_pool(sender)


@both_loops
def test_tinyproxy(run: Run, tinyproxy: int) -> None:
    async def main() -> None:
        await through(f"http://user:pass@127.0.0.1:{tinyproxy}", kept=False)
        async with h.peer() as peer, h.transport(proxy=f"http://127.0.0.1:{tinyproxy}") as sender:
            assert (await h.whole(sender, peer.get()))[0] == 407
            request = http.Request("GET", f"https://127.0.0.1:{peer.port}/")
            error = await h.failure(sender.round_trip(request), http.ProxyError)
            assert str(error) == "Proxy Authentication Required"
            assert peer.requests == []

    run(main())


@both_loops
def test_squid(run: Run, squid: tuple[int, int]) -> None:
    async def main() -> None:
        for scheme, port in zip(("http", "https"), squid, strict=True):
            await through(f"{scheme}://127.0.0.1:{port}", kept=True)

    run(main())


def test_a_proxy_that_is_chosen_per_request(run: Run) -> None:
    """It is asked once per request: what is sent, and where, must fit together."""

    async def proxy(line: Any) -> None:
        while (received := await line.request()) is not None:
            line.reply(f"{received.target} {received.fields.get('proxy-authorization', '')}")

    async def main() -> None:
        async with h.peer(proxy) as one, h.peer(proxy) as two:
            asked: list[str] = []

            def choose(request: http.Request) -> http.URL:
                asked.append(str(request.url))
                number = len(asked)
                peer = one if number % 2 else two
                return http.URL.parse(f"http://u{number}:p@127.0.0.1:{peer.port}")

            async with h.transport(proxy=choose) as sender:
                for number in range(1, 5):
                    status, body = await h.whole(sender, http.Request("GET", "http://far.example/x"))
                    assert status == 200
                    assert body.startswith(b"http://far.example/x Basic ")
                    assert len(asked) == number
                assert len(one.requests) == len(two.requests) == 2

    run(main())
