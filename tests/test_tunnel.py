"""Connections through proxies: CONNECT, TLS in TLS, SOCKS5; tinyproxy, squid, and proxies that mean ill."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.client import dial as dial_module
from prefork.http.client.dial import Dialer
from prefork.http.client.request_head import USER_AGENT
from prefork.http.client.trace import ClientTrace
from prefork.http.client.tunnel import MAX_HEAD, Link, connect_fields
from prefork.http.errors import (
    ConnectError,
    ConnectTimeout,
    LocalProtocolError,
    ProxyError,
    TLSError,
    TLSTimeout,
)
from prefork.http.message.header import Header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HELPERS = Path(__file__).with_name("helpers_dial.py")
_spec = importlib.util.spec_from_file_location("helpers_dial", HELPERS)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
listening, echo, saying, refusing = helpers.listening, helpers.echo, helpers.saying, helpers.refusing
server_context, trusting, through = helpers.server_context, helpers.trusting, helpers.through
dialed, failure, names, eventually = helpers.dialed, helpers.failure, helpers.names, helpers.eventually

pytestmark = pytest.mark.both_loops


async def says_hello(conn: Any) -> None:
    conn.transport.write(b"hello")
    assert await conn.receive(5) == b"hello"


# --- proxies of our own ---------------------------------------------------------------------------


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Both ways between a client and a server, until one of them ends."""

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()

    opening = asyncio.ensure_future(asyncio.open_connection("127.0.0.1", port))
    try:
        to_reader, to_writer = await asyncio.shield(opening)
    except asyncio.CancelledError:
        (await opening)[1].transport.abort()
        raise
    ways = {asyncio.ensure_future(copy(reader, to_writer)), asyncio.ensure_future(copy(to_reader, writer))}
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        to_writer.transport.abort()
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)


class HTTPProxy:
    """Answers CONNECT; connects all clients to one port, whatever they ask for."""

    def __init__(self, port: int, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.port = port
        self.answer = answer
        self.heads: list[bytes] = []
        self.open = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            await relay(reader, writer, self.port)
        finally:
            self.open -= 1
            writer.transport.abort()


class SOCKSProxy:
    """A SOCKS5 server for CONNECT. login: the pair it demands. port: where it connects everybody to."""

    def __init__(self, port: int, login: tuple[bytes, bytes] | None = None, reply: int = 0) -> None:
        self.port = port
        self.login = login
        self.reply = reply
        self.bound = b"\1\x7f\0\0\1\0\0"
        self.asked: list[tuple[int, bytes, int]] = []
        self.methods: list[bytes] = []
        self.open = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            await self.serve(reader, writer)
        finally:
            self.open -= 1
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version, count = await reader.readexactly(2)
        assert version == 5
        methods = await reader.readexactly(count)
        self.methods.append(methods)
        wanted = 0 if self.login is None else 2
        if wanted not in methods:
            writer.write(b"\5\xff")
            await reader.read()
            return
        writer.write(bytes([5, wanted]))
        if self.login is not None:
            assert await reader.readexactly(1) == b"\1"
            pair = []
            for _ in range(2):
                (size,) = await reader.readexactly(1)
                pair.append(await reader.readexactly(size))
            writer.write(b"\1\0" if tuple(pair) == self.login else b"\1\1")
            if tuple(pair) != self.login:
                await reader.read()
                return
        version, command, reserved, kind = await reader.readexactly(4)
        assert (version, command, reserved) == (5, 1, 0)
        size = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
        host = await reader.readexactly(size)
        self.asked.append((kind, host, int.from_bytes(await reader.readexactly(2), "big")))
        writer.write(bytes([5, self.reply, 0]) + self.bound)
        if self.reply == 0:
            await relay(reader, writer, self.port)


# --- CONNECT ----------------------------------------------------------------------------------------


def test_https_through_an_http_proxy(run: Any) -> None:
    async def main() -> None:
        async with listening(echo, tls=server_context("server.example")) as port:
            proxy = HTTPProxy(port)
            async with listening(proxy) as proxy_port:
                dialer = Dialer(tls_config=trusting(), proxy_connect_header=Header({"X-C": "1"}))
                with names(["127.0.0.1"]) as lookup:
                    method = through(
                        f"http://user:pw@proxy.example:{proxy_port}", "https", "server.example:443"
                    )
                    async with dialed(dialer, method) as conn:
                        await says_hello(conn)
                        assert conn.transport.get_extra_info("peername")[1] == proxy_port
                # The name of the server is the proxy's to look up.
                assert lookup.asked == ["proxy.example"]
            assert proxy.heads == [
                b"CONNECT server.example:443 HTTP/1.1\r\n"
                b"Host: server.example:443\r\n"
                b"User-Agent: " + USER_AGENT.encode() + b"\r\n"
                b"Proxy-Authorization: Basic dXNlcjpwdw==\r\n"
                b"X-C: 1\r\n\r\n"
            ]

    run(main())


def test_the_fields_of_connect(run: Any) -> None:
    agent = b"User-Agent: " + USER_AGENT.encode() + b"\r\n"
    assert connect_fields(None, "") == agent
    assert connect_fields(None, "Basic eA==") == agent + b"Proxy-Authorization: Basic eA==\r\n"
    header = Header(
        [("zeta", " last "), ("Alpha", "1"), ("alpha", "2"), ("Host", "evil"), ("Content-Length", "5")]
    )
    assert connect_fields(header, "") == agent + b"Alpha: 1\r\nAlpha: 2\r\nZeta: last\r\n"
    header = Header({"User-Agent": "mine", "Proxy-Authorization": "Bearer x"})
    assert connect_fields(header, "") == b"User-Agent: mine\r\nProxy-Authorization: Bearer x\r\n"
    assert connect_fields(header, "Basic eA==") == b"User-Agent: mine\r\nProxy-Authorization: Basic eA==\r\n"
    assert connect_fields(Header({"User-Agent": ""}), "") == b""
    assert connect_fields(Header({"X": "é"}), "") == agent + b"X: \xc3\xa9\r\n"


@pytest.mark.parametrize("field", [("X Y", "1"), ("X\r\nY", "1"), ("", "1"), ("X", "1\r\nY: 2"), ("X", "\0")])
def test_a_field_that_would_end_its_line_is_refused_at_once(run: Any, field: tuple[str, str]) -> None:
    with pytest.raises(LocalProtocolError, match="net/http: invalid header field"):
        Dialer(proxy_connect_header=Header([field]))


def test_later_changes_of_the_header_do_not_count(run: Any) -> None:
    async def main() -> None:
        header = Header({"X": "1"})
        dialer = Dialer(proxy_connect_header=header, tls_config=trusting())
        header["X"] = "2\r\nY: 3"
        async with listening(echo, tls=server_context()) as port:
            proxy = HTTPProxy(port)
            async with listening(proxy) as proxy_port:
                method = through(f"http://127.0.0.1:{proxy_port}", "https", f"localhost:{port}")
                transport = await dialer.dial(method, helpers.Recorder(), None)
                transport.abort()
        assert b"\r\nX: 1\r\n\r\n" in proxy.heads[0]

    run(main())


def test_a_target_that_would_end_its_line_is_refused(run: Any) -> None:
    async def main() -> None:
        async with listening(saying(then_wait=True)) as port:
            for addr in ("a\r\nX: y:443", "a b:443", "a\0b:443", "é:443"):
                for scheme in ("http", "socks5"):
                    error = await failure(Dialer(), through(f"{scheme}://127.0.0.1:{port}", "https", addr))
                    assert type(error) is ConnectError
                    assert "invalid host" in str(error)

    run(main())


def test_http_through_an_http_proxy_is_just_connected(run: Any) -> None:
    async def main() -> None:
        async with listening(echo) as port:
            method = through(f"http://u:p@127.0.0.1:{port}", "http", "server.example:80")
            async with dialed(Dialer(), method) as conn:
                await says_hello(conn)
        async with listening(echo, tls=server_context()) as port:
            method = through(f"https://127.0.0.1:{port}", "http", "server.example:80")
            async with dialed(Dialer(tls_config=trusting()), method) as conn:
                await says_hello(conn)

    run(main())


def test_tls_in_tls(run: Any) -> None:
    async def main() -> None:
        calls: list[str] = []
        trace = ClientTrace(
            tls_handshake_start=lambda: calls.append("start"),
            tls_handshake_done=lambda ssl_object, error: calls.append(ssl_object.server_hostname),
        )
        async with listening(echo, tls=server_context("server.example")) as port:
            proxy = HTTPProxy(port)
            async with listening(proxy, tls=server_context("localhost")) as proxy_port:
                with names(["127.0.0.1"]):
                    method = through(f"https://localhost:{proxy_port}", "https", "server.example:443")
                    async with dialed(Dialer(tls_config=trusting()), method, trace) as conn:
                        await says_hello(conn)
                        assert conn.transport.get_extra_info("ssl_object").server_hostname == "server.example"
                        sent = os.urandom(1 << 20)
                        conn.transport.write(sent)
                        assert await conn.receive(len(sent)) == sent
                # How the two ends of it take leave.
                with names(["127.0.0.1"]):
                    protocol = helpers.Recorder()
                    transport = await Dialer(tls_config=trusting()).dial(method, protocol, None)
                    transport.close()
                    await protocol.lost()
                    assert protocol.error is None
        assert calls == ["start", "localhost", "start", "server.example"]

    run(main())


@pytest.mark.parametrize("pieces", [1, 7])
def test_an_answer_in_pieces(run: Any, pieces: int) -> None:
    async def main() -> None:
        answer = (
            b"HTTP/1.0 200 OK\r\nProxy-Agent: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for begin in range(0, len(answer), pieces):
                writer.write(answer[begin : begin + pieces])
                await asyncio.sleep(0)
            await relay(reader, writer, port)

        async with listening(echo, tls=server_context()) as port, listening(handler) as proxy_port:
            method = through(f"http://127.0.0.1:{proxy_port}", "https", f"localhost:{port}")
            async with dialed(Dialer(tls_config=trusting()), method) as conn:
                await says_hello(conn)

    run(main())


NO_PROXY = "this is no HTTP proxy: malformed HTTP response "
TOO_LARGE = f"the proxy's answer to CONNECT has more than {MAX_HEAD} bytes of header"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nA: b\r\n\r\n", "Proxy Authentication Required"),
        (b"HTTP/1.1 403 Access violation\r\n\r\n<html>", "Access violation"),
        (b"HTTP/1.0 502 \r\n\r\n", "Bad Gateway"),
        (b"HTTP/1.0 502\r\n\r\n", "Bad Gateway"),
        (b"HTTP/1.0 599\r\n\r\n", "status code 599"),
        (b"HTTP/1.1 201 Created\r\n\r\n", "Created"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "Continue"),
        (b"HTTP/1.1 500 " + b"x" * 1000 + b"\r\n\r\n", "x" * 200),
        (b"HTTP/1.1 500 \xe9t\xe9\r\n\r\n", "été"),
        (b"HTTP/1.1 200 OK\r\n\r\nextra", "the proxy sent 5 bytes behind its answer to CONNECT"),
        (b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03", "the proxy sent 3 bytes behind its answer to CONNECT"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NO_PROXY + r'"SSH-2.0-OpenSSH_9.2\r"'),
        (b"\x15\x03\x01\x00\x02\x02\x46", NO_PROXY),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", NO_PROXY),
        (b"HTTP/1.1 200 OK\n\n", NO_PROXY + '"HTTP/1.1 200 OK"'),
        (b"HTTP/1.1 200 O\0K\r\n\r\n", NO_PROXY),
        (b"HTTP/1.1 200\tOK\r\n\r\n", NO_PROXY),
        (b"HTTP/1.1 +20 OK\r\n\r\n", NO_PROXY),
        (b"HTTP/1.1 2000 OK\r\n\r\n", NO_PROXY),
        (b"HTTP/2 200 OK\r\n\r\n", NO_PROXY),
        (b"HTTP/1.1  200 OK\r\n\r\n", NO_PROXY),
        (b"ICY 200 OK\r\n\r\n", NO_PROXY),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, TOO_LARGE),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", TOO_LARGE),
        (b"HTTP/1.1 200 " + b"x" * 100_000, TOO_LARGE),
        (b"", "eof before it was connected to server.example:443"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n", "eof before it was connected to server.example:443"),
        (b"HTTP/1.1 20", "eof before it was connected to server.example:443"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_tunnel(run: Any, answer: bytes, text: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.write_eof()
        await reader.read()

    async def main() -> None:
        async with listening(handler) as port:
            addr = f"127.0.0.1:{port}"
            error = await failure(Dialer(), through(f"http://u:secret@{addr}", "https", "server.example:443"))
        assert type(error) is ProxyError
        assert text in str(error)
        if text in (NO_PROXY, TOO_LARGE):
            assert str(error).startswith(text)
        assert len(str(error)) < 300
        assert (error.addr, error.phase) == (addr, "proxy")
        assert "secret" not in str(error)

    run(main())


def test_an_endless_head(run: Any) -> None:
    sent = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: y\r\n" * 1000)
            sent += 6000
            await writer.drain()

    async def main() -> None:
        async with listening(handler) as port:
            error = await failure(
                Dialer(), through(f"http://127.0.0.1:{port}", "https", "server.example:443")
            )
            assert str(error) == TOO_LARGE
        assert sent < 16 << 20  # what fits into the buffers of the sockets

    run(main())


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_that_never_answers(run: Any, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(dial_module, "PROXY_TIMEOUT", 0.05)
        async with listening(saying(then_wait=True)) as port:
            error = await failure(
                Dialer(), through(f"{scheme}://127.0.0.1:{port}", "https", "server.example:443")
            )
        assert type(error) is ConnectTimeout
        assert str(error) == f"proxy 127.0.0.1:{port}: no connection to server.example:443 within 0.05 s"
        assert (error.addr, error.phase, error.retryable) == (f"127.0.0.1:{port}", "proxy", True)

    run(main())


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_that_resets(run: Any, scheme: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        linger = b"\1\0\0\0\0\0\0\0"  # close with a reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def main() -> None:
        async with listening(handler) as port:
            error = await failure(
                Dialer(), through(f"{scheme}://127.0.0.1:{port}", "https", "server.example:443")
            )
        assert type(error) is ProxyError
        assert str(error) == (
            f"proxy 127.0.0.1:{port}: connection reset by peer before it was connected to server.example:443"
        )

    run(main())


def test_no_way_to_the_proxy(run: Any) -> None:
    async def main() -> None:
        port = refusing()
        for scheme in ("http", "socks5"):
            error = await failure(Dialer(), through(f"http://127.0.0.1:{port}", scheme, "server.example:80"))
            assert type(error) is ProxyError
            assert str(error) == f"proxyconnect tcp: dial tcp 127.0.0.1:{port}: connect: connection refused"
            assert (error.addr, error.phase, error.retryable) == (f"127.0.0.1:{port}", "dial", True)
            assert type(error.__cause__) is ConnectError
        with names(socket.gaierror(socket.EAI_NONAME, "unknown")):
            error = await failure(Dialer(), through("http://proxy.example", "https", "server.example:443"))
        assert str(error) == "proxyconnect tcp: dial tcp: lookup proxy.example: no such host"
        assert (error.addr, error.phase) == ("proxy.example:80", "dns")
        with helpers.deaf() as port:
            method = through(f"http://127.0.0.1:{port}", "https", "server.example:443")
            error = await failure(Dialer(dial_timeout=0.02), method)
        assert type(error) is ConnectTimeout
        assert str(error).startswith(f"proxyconnect tcp: dial tcp 127.0.0.1:{port}: i/o timeout after 0.02 s")

    run(main())


def test_no_tls_with_the_proxy(run: Any) -> None:
    async def main() -> None:
        async with listening(echo, tls=server_context(ca="wrong")) as port:
            method = through(f"https://127.0.0.1:{port}", "https", "server.example:443")
            error = await failure(Dialer(tls_config=trusting()), method)
        assert type(error) is ProxyError
        assert str(error).startswith(
            "proxyconnect tcp: tls: failed to verify certificate: x509: certificate signed"
        )
        assert (error.addr, error.phase) == (f"127.0.0.1:{port}", "tls")
        assert type(error.__cause__) is TLSError
        async with listening(saying(then_wait=True)) as port:
            method = through(f"https://127.0.0.1:{port}", "https", "server.example:443")
            error = await failure(Dialer(tls_handshake_timeout=0.02), method)
        assert type(error) is TLSTimeout
        assert str(error).startswith("proxyconnect tcp: net/http: TLS handshake timeout after 0.02 s")

    run(main())


def test_no_tls_with_the_server_behind_the_proxy(run: Any) -> None:
    async def main() -> None:
        for proxy_tls in (None, server_context()):
            scheme = "http" if proxy_tls is None else "https"
            for context, text in (
                (None, "HTTP response to HTTPS"),
                (server_context(), 'not valid for "server.exa'),
            ):
                plain = context is None

                async def handler(reader: Any, writer: Any, plain: bool = plain) -> None:
                    await reader.read(65536)
                    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" if plain else b"")
                    await reader.read(65536)

                async with listening(handler, tls=context) as port:
                    proxy = HTTPProxy(port)
                    async with listening(proxy, tls=proxy_tls) as proxy_port:
                        method = through(f"{scheme}://127.0.0.1:{proxy_port}", "https", "server.example:443")
                        error = await failure(Dialer(tls_config=trusting()), method)
                assert type(error) is TLSError
                assert text in str(error)
                assert error.addr == "server.example:443"

    run(main())


def test_a_proxy_url_that_cannot_be_used(run: Any) -> None:
    async def main() -> None:
        for proxy, text in (
            ("ftp://proxy.example", 'unsupported proxy scheme "ftp"'),
            ("socks4://proxy.example", 'unsupported proxy scheme "socks4"'),
            ("http://a-.é-", "cannot be the name of a host"),
        ):
            error = await failure(Dialer(), through(proxy, "https", "server.example:443"))
            assert type(error) is ProxyError
            assert text in str(error)
            assert not error.retryable

    run(main())


def test_the_dial_function_is_asked_for_the_proxy(run: Any) -> None:
    async def main() -> None:
        asked: list[str] = []
        async with listening(echo, tls=server_context("server.example")) as port:
            proxy = HTTPProxy(port)
            async with listening(proxy) as proxy_port:

                async def dial(network: str, addr: str) -> socket.socket:
                    asked.append(addr)
                    sock = socket.socket()
                    sock.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", proxy_port))
                    return sock

                dialer = Dialer(dial=dial, tls_config=trusting())
                async with dialed(
                    dialer, through("http://proxy.example", "https", "server.example:443")
                ) as conn:
                    await says_hello(conn)
        assert asked == ["proxy.example:80"]

    run(main())


# --- SOCKS5 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("login", [None, (b"user", b"p:w")])
def test_socks(run: Any, scheme: str, login: Any) -> None:
    async def main() -> None:
        user_info = "user:p%3Aw@" if login else ""
        for target, tls in (("http", None), ("https", server_context("server.example", "::1"))):
            async with listening(echo, tls=tls) as port:
                proxy = SOCKSProxy(port, login)
                async with listening(proxy) as proxy_port:
                    url = f"{scheme}://{user_info}127.0.0.1:{proxy_port}"
                    for addr in ("server.example:8080", "[::1]:443"):
                        async with dialed(Dialer(tls_config=trusting()), through(url, target, addr)) as conn:
                            await says_hello(conn)
                assert proxy.asked == [
                    (3, b"server.example", 8080),
                    (4, socket.inet_pton(socket.AF_INET6, "::1"), 443),
                ]
                assert set(proxy.methods) == {b"\0\2" if login else b"\0"}

    run(main())


def test_the_ways_to_write_an_address_for_socks(run: Any) -> None:
    async def main() -> None:
        async with listening(echo) as port:
            proxy = SOCKSProxy(port)
            async with listening(proxy) as proxy_port:
                url = f"socks5://127.0.0.1:{proxy_port}"
                for bound in (
                    b"\1" + b"x" * 6,
                    b"\4" + b"x" * 18,
                    b"\3\0" + b"x" * 2,
                    b"\3\xff" + b"x" * 257,
                ):
                    proxy.bound = bound
                    async with dialed(Dialer(), through(url, "http", "192.0.2.7:65535")) as conn:
                        await says_hello(conn)
                async with dialed(Dialer(), through(url, "http", "[fe80::1%eth0]:1")):
                    pass
                async with dialed(Dialer(), through(url, "http", "a" * 255 + ":1")):
                    pass
        assert proxy.asked == [
            *[(1, b"\xc0\0\2\7", 65535)] * 4,
            (4, socket.inet_pton(socket.AF_INET6, "fe80::1"), 1),  # a zone means something here only
            (3, b"a" * 255, 1),
        ]

    run(main())


def test_what_a_server_behind_socks_says_first_is_not_lost(run: Any) -> None:
    async def main() -> None:
        async def handler(reader: Any, writer: Any) -> None:
            await reader.readexactly(3)
            writer.write(b"\5\0")
            await reader.readexactly(4 + 1 + 14 + 2)
            writer.write(b"\5\0\0\1" + bytes(6) + b"220 ready\r\n")
            await echo(reader, writer)

        async with listening(handler) as port:
            async with dialed(
                Dialer(), through(f"socks5://127.0.0.1:{port}", "http", "server.example:80")
            ) as conn:
                assert await conn.receive(11) == b"220 ready\r\n"
                await says_hello(conn)
            # With TLS it is no word of the server's.
            method = through(f"socks5://127.0.0.1:{port}", "https", "server.example:443")
            error = await failure(Dialer(), method)
            assert "first record does not look like a TLS handshake" in str(error)

    run(main())


@pytest.mark.parametrize(
    ("login", "user_info", "text"),
    [
        (
            (b"user", b"pw"),
            "",
            "socks: no acceptable authentication methods: the proxy wants user and password",
        ),
        ((b"user", b"pw"), "user:wrong@", "socks: username/password authentication failed"),
        ((b"user", b"pw"), "user@", "socks: username/password authentication failed"),
        (None, ":pw@", "socks: invalid username/password"),
        (None, "u" * 256 + "@", "socks: invalid username/password"),
        (None, "u:" + "p" * 256 + "@", "socks: invalid username/password"),
    ],
)
def test_socks_login_that_fails(run: Any, login: Any, user_info: str, text: str) -> None:
    async def main() -> None:
        async with listening(SOCKSProxy(0, login)) as port:
            method = through(f"socks5://{user_info}127.0.0.1:{port}", "http", "server.example:80")
            error = await failure(Dialer(), method)
        assert type(error) is ProxyError
        assert str(error).startswith(text)
        assert error.addr == f"127.0.0.1:{port}"

    run(main())


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "general SOCKS server failure"),
        (2, "connection not allowed by ruleset"),
        (3, "network unreachable"),
        (4, "host unreachable"),
        (5, "connection refused"),
        (6, "TTL expired"),
        (7, "command not supported"),
        (8, "address type not supported"),
        (99, "unknown code: 99"),
    ],
)
def test_socks_refusal(run: Any, code: int, text: str) -> None:
    async def main() -> None:
        async with listening(SOCKSProxy(0, reply=code)) as port:
            error = await failure(
                Dialer(), through(f"socks5://127.0.0.1:{port}", "http", "server.example:80")
            )
        assert type(error) is ProxyError
        assert str(error) == f"socks: {text}"

    run(main())


END = "eof before it was connected to server.example:80"


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        (
            [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
            "socks: unexpected protocol version 72: is it an HTTP proxy?",
        ),
        ([b"\4\0"], "socks: unexpected protocol version 4"),
        ([b"\5\1"], "socks: unsupported authentication method 1"),
        ([b"\5\2"], "socks: unsupported authentication method 2"),
        ([b"\5\xff"], "socks: no acceptable authentication methods"),
        ([b"\5"], END),
        ([b""], END),
        ([b"\5\0", b"\4\0\0\1"], "socks: unexpected protocol version 4"),
        ([b"\5\0", b"\5\0\1\1"], "socks: non-zero reserved field"),
        ([b"\5\0", b"\5\0\0\2"], "socks: unknown address type 2"),
        ([b"\5\0", b"\5\0\0\1\0\0"], END),
        ([b"\5\0", b"\5\0\0\3\xff" + b"x" * 100], END),
        ([b"\5\0", b"\5\0\0\3"], END),
        ([b"\5\0", b""], END),
    ],
)
def test_a_socks_proxy_that_talks_nonsense(run: Any, answers: list[bytes], text: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.read(1000)
            writer.write(answer)
        writer.write_eof()
        await reader.read()

    async def main() -> None:
        async with listening(handler) as port:
            error = await failure(
                Dialer(), through(f"socks5://127.0.0.1:{port}", "http", "server.example:80")
            )
        assert type(error) is ProxyError
        assert text in str(error)
        assert error.phase == "proxy"

    run(main())


def test_a_wrong_version_of_the_login(run: Any) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\5\2")
        await reader.read(1000)
        writer.write(b"\5\0")
        await reader.read()

    async def main() -> None:
        async with listening(handler) as port:
            method = through(f"socks5://u:p@127.0.0.1:{port}", "http", "server.example:80")
            assert str(await failure(Dialer(), method)) == "socks: invalid username/password version"

    run(main())


def test_a_name_too_long_for_socks(run: Any) -> None:
    async def main() -> None:
        async with listening(SOCKSProxy(0)) as port:
            method = through(f"socks5://127.0.0.1:{port}", "http", "a" * 256 + ":80")
            assert str(await failure(Dialer(), method)) == "socks: FQDN too long"

    run(main())


# --- Link -----------------------------------------------------------------------------------------------


def test_link_waits_and_ends(run: Any) -> None:
    async def main() -> None:
        link = Link()
        waiting = asyncio.ensure_future(link.exactly(3))
        await asyncio.sleep(0)
        for piece in (b"a", b"b"):
            link.data_received(piece)
            await asyncio.sleep(0)
            assert not waiting.done()
        link.data_received(b"cd")
        assert await waiting == b"abc"
        link.eof_received()
        assert await link.exactly(1) == b"d"
        with pytest.raises(EOFError):
            await link.exactly(1)
        link.connection_lost(ConnectionResetError(104, "reset"))
        with pytest.raises(ConnectionResetError):
            await link.more()

    run(main())


# --- cancellation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "https", "socks5"])
def test_cancelled_at_every_wait(run: Any, kind: str) -> None:
    async def main() -> None:
        dialer = Dialer(tls_config=trusting())
        async with listening(echo, tls=server_context("server.example")) as port:
            proxy: Any = SOCKSProxy(port, (b"u", b"p")) if kind == "socks5" else HTTPProxy(port)
            tls = server_context("localhost") if kind == "https" else None
            async with listening(proxy, tls=tls) as proxy_port:
                method = through(f"{kind}://u:p@localhost:{proxy_port}", "https", "server.example:443")
                with names(["127.0.0.1"]):
                    waits = await helpers.cancelled_everywhere(
                        lambda protocol: dialer.dial(method, protocol, None), lambda: proxy.open == 0
                    )
        assert waits >= {"http": 5, "https": 6, "socks5": 7}[kind]

    run(main())


# --- tinyproxy and squid --------------------------------------------------------------------------------


class RealProxy:
    """A proxy in a process of its own, listening on 127.0.0.1."""

    def __init__(self, name: str, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.url = url
        self.process = process
        self.log = log


def free_port() -> int:
    port: int = refusing()
    return port


@contextlib.contextmanager
def started(
    name: str, command: Callable[[Path], list[str]], ports: list[int], until: Any
) -> Iterator[subprocess.Popen[bytes]]:
    # Not tmp_path: squid becomes another user, who must get in.
    with tempfile.TemporaryDirectory(prefix=f"prefork-{name}-") as folder:
        directory = Path(folder)
        directory.chmod(0o777)
        with open(directory / "output", "wb") as output:
            process = subprocess.Popen(
                command(directory), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

        def is_up() -> bool:
            if process.poll() is not None:
                pytest.fail(f"{name} ended with {process.returncode}: {(directory / 'output').read_text()}")
            for port in ports:
                with socket.socket() as sock:
                    if sock.connect_ex(("127.0.0.1", port)) != 0:
                        return False
            return True

        try:
            until(is_up, 20, f"{name} to listen")
            yield process
        finally:
            process.kill()  # nothing of it is worth an orderly end
            process.wait()


@pytest.fixture
def tinyproxy(until: Any) -> Iterator[int]:
    """Its port; it wants user:pass."""
    if not shutil.which("tinyproxy"):
        pytest.skip("no tinyproxy on this machine: apt install tinyproxy-bin")
    port = free_port()

    def command(directory: Path) -> list[str]:
        config = directory / "conf"
        config.write_text(
            f"Port {port}\nListen 127.0.0.1\nTimeout 30\nMaxClients 20\nBasicAuth user pass\n"
            f'LogFile "{directory}/log"\nPidFile "{directory}/pid"\n'
        )
        return ["tinyproxy", "-d", "-c", str(config)]

    with started("tinyproxy", command, [port], until):
        yield port


@pytest.fixture
def squid(until: Any) -> Iterator[tuple[int, int]]:
    """Its ports for http:// and https://."""
    binary = shutil.which("squid") or shutil.which("squid", path="/usr/sbin:/sbin")
    if not binary:
        pytest.skip("no squid on this machine: apt install squid")
    plain, tls = free_port(), free_port()

    def command(directory: Path) -> list[str]:
        pem = directory / "proxy.pem"
        cert = helpers.authority("right").issue_cert("127.0.0.1")
        cert.private_key_and_cert_chain_pem.write_to_path(str(pem))
        pem.chmod(0o644)
        config = directory / "conf"
        config.write_text(
            f"http_port 127.0.0.1:{plain}\nhttps_port 127.0.0.1:{tls} tls-cert={pem}\n"
            f"pid_filename {directory}/pid\ncache_log {directory}/cache.log\naccess_log none\n"
            f"coredump_dir {directory}\ncache deny all\nvisible_hostname squid.example\npinger_enable off\n"
            "memory_cache_shared off\ncollapsed_forwarding off\nhttp_access allow all\n"
        )
        service = re.sub("[^a-z0-9]", "", directory.name.lower())
        return [binary, "-N", "-n", service, "-f", str(config)]

    with started("squid", command, [plain, tls], until):
        yield plain, tls


async def uses(url: str, *, tls: bool = True) -> None:
    """Everything that a proxy is for; `url` is a proxy that knows us."""
    dialer = Dialer(tls_config=trusting())
    async with listening(echo, tls=server_context()) as port:
        for _ in range(2):
            async with dialed(dialer, through(url, "https", f"localhost:{port}")) as conn:
                await says_hello(conn)
                sent = os.urandom(300_000)
                conn.transport.write(sent)
                assert await conn.receive(len(sent)) == sent
        error = await failure(dialer, through(url, "https", f"127.0.0.2:{port}"))
        assert type(error) in (ProxyError, TLSError)

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.partition(b"\r\n")[0]
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(line), line)
        )
        await reader.read()

    async with listening(plain) as port:
        method = through(url, "http", f"127.0.0.1:{port}")
        async with dialed(dialer, method) as conn:
            authorization = b"Proxy-Authorization: Basic dXNlcjpwYXNz\r\n"
            conn.transport.write(
                b"GET http://127.0.0.1:%d/path?q HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%b\r\n"
                % (port, port, authorization)
            )
            await conn.until(lambda: conn.received.endswith(b"GET /path?q HTTP/1.1"))
            assert conn.received.startswith(b"HTTP/1.")


def test_tinyproxy(run: Any, tinyproxy: int) -> None:
    async def main() -> None:
        await uses(f"http://user:pass@127.0.0.1:{tinyproxy}")
        error = await failure(Dialer(), through(f"http://127.0.0.1:{tinyproxy}", "https", "localhost:443"))
        assert (type(error), str(error)) == (ProxyError, "Proxy Authentication Required")
        method = through(f"http://user:wrong@127.0.0.1:{tinyproxy}", "https", "localhost:443")
        assert isinstance(await failure(Dialer(), method), ProxyError)
        method = through(f"http://user:pass@127.0.0.1:{tinyproxy}", "https", f"127.0.0.1:{refusing()}")
        assert (str(await failure(Dialer(), method))) == "Unable to connect"

    run(main())


def test_squid(run: Any, squid: tuple[int, int]) -> None:
    async def main() -> None:
        plain, tls = squid
        for url in (f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{tls}"):
            await uses(url)
            method = through(url, "https", f"127.0.0.1:{refusing()}")
            assert str(await failure(Dialer(tls_config=trusting()), method)) == "Service Unavailable"
        error = await failure(Dialer(), through(f"https://127.0.0.1:{tls}", "https", "localhost:443"))
        assert "proxyconnect tcp: tls: failed to verify certificate" in str(error)
        error = await failure(Dialer(), through(f"https://127.0.0.1:{plain}", "https", "localhost:443"))
        assert str(error).startswith("proxyconnect tcp: ")

    run(main())
