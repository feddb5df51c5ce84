"""Long bodies: received through one small buffer, whole, and the connection is as good as before."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from prefork import http

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = bytes(range(251)) * 20_000  # 5 MB


async def serve(mux: http.ServeMux) -> tuple[http.Server, socket.socket, str]:
    server = http.Server(handler=mux)
    sock = socket.create_server(("127.0.0.1", 0))
    server.start([sock])
    return server, sock, f"http://127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.both_loops
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("slow", [False, True])
def test_long_bodies_one_after_another(run: Callable[..., Any], chunked: bool, slow: bool) -> None:
    mux = http.ServeMux()

    @mux.handle_func("/")
    async def long(w: http.ResponseWriter, r: http.Request) -> None:
        if not chunked:
            w.header["Content-Length"] = str(len(DATA))
        for start in range(0, len(DATA), 100_000):
            await w.write(DATA[start : start + 100_000])

    @mux.handle_func("/short")
    def short(w: http.ResponseWriter, r: http.Request) -> None:
        w.write("short")

    async def main() -> None:
        server, sock, url = await serve(mux)
        async with http.Client(transport=(transport := http.Transport())) as client:
            for _ in range(3):
                digest = hashlib.sha256()
                async with client.get(url) as response:
                    async for piece in response.body:
                        digest.update(piece)
                        if slow:
                            await asyncio.sleep(0)
                assert digest.digest() == hashlib.sha256(DATA).digest()
                assert (await client.get(f"{url}/short")).body == b"short"
            assert (await client.get(url)).body == DATA
            stats = transport.stats()
            assert (stats.dials, stats.requests) == (1, 7)
            await transport.close()
        await server.shutdown(5)
        sock.close()

    run(main())


@pytest.mark.both_loops
@pytest.mark.parametrize("cut", [False, True])
def test_tls_that_ends_without_a_goodbye_is_no_end_of_a_body(run: Callable[..., Any], cut: bool) -> None:
    authority = trustme.CA()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(ours)
    theirs = ssl.create_default_context()
    authority.configure_trust(theirs)

    async def main() -> None:
        read = asyncio.Event()

        async def until_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
            await writer.drain()
            await read.wait()
            if cut:
                raw = writer.transport.get_extra_info("socket")
                with socket.fromfd(raw.fileno(), raw.family, raw.type) as sock:
                    sock.shutdown(socket.SHUT_WR)
                await reader.read()
            writer.close()

        server = await asyncio.start_server(until_eof, "127.0.0.1", 0, ssl=ours)
        port = server.sockets[0].getsockname()[1]
        async with http.Transport(tls_config=theirs) as transport:
            request = http.Request("GET", f"https://localhost:{port}/")
            response = await transport.round_trip(request)
            assert await response.body.read(5) == b"hello"
            read.set()
            if cut:
                with pytest.raises(http.ConnectionLost, match="unexpected EOF"):
                    await response.body.read()
            else:
                assert await response.body.read() == b""
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)

    run(main())
