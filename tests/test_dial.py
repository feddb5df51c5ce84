"""Dialer: sockets, the race of addresses, TLS, what is wrong in whose words, and that nothing stays open."""

from __future__ import annotations

import asyncio
import datetime
import errno
import importlib.util
import os
import shutil
import socket
import ssl
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from prefork.http import tls
from prefork.http.client import happy_eyeballs
from prefork.http.client.dial import Dialer
from prefork.http.client.happy_eyeballs import interleave
from prefork.http.client.trace import ClientTrace
from prefork.http.errors import ConnectError, ConnectTimeout, HTTPTimeout, TLSError, TLSTimeout

HELPERS = Path(__file__).with_name("helpers_dial.py")
_spec = importlib.util.spec_from_file_location("helpers_dial", HELPERS)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
listening, echo, saying, deaf, refusing = (
    helpers.listening,
    helpers.echo,
    helpers.saying,
    helpers.deaf,
    helpers.refusing,
)
server_context, trusting, direct = helpers.server_context, helpers.trusting, helpers.direct
dialed, failure, names, eventually = helpers.dialed, helpers.failure, helpers.names, helpers.eventually

pytestmark = pytest.mark.both_loops


async def says_hello(conn: Any) -> None:
    conn.transport.write(b"hello")
    assert await conn.receive(5) == b"hello"


# --- a plain connection -------------------------------------------------------------------------


def test_plain_connection(run: Any) -> None:
    async def main() -> None:
        async with listening(echo) as port, dialed(Dialer(), direct(port)) as conn:
            await says_hello(conn)
            sock = conn.transport.get_extra_info("socket")
            for level, option, wanted in (
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9),
            ):
                assert bool(sock.getsockopt(level, option)) == bool(wanted)
                assert wanted == 1 or sock.getsockopt(level, option) == wanted

    run(main())


def test_what_the_server_says_first_is_not_lost(run: Any) -> None:
    async def main() -> None:
        handler = saying(b"220 here I am\r\n", b"x" * 100_000, then_wait=True)
        async with listening(handler) as port:
            for _ in range(10):
                async with dialed(Dialer(), direct(port)) as conn:
                    assert await conn.receive(100_015) == b"220 here I am\r\n" + b"x" * 100_000

    run(main())


def test_a_name_is_looked_up_and_a_literal_is_not(run: Any) -> None:
    async def main() -> None:
        async with listening(echo) as port:
            with names(["127.0.0.1"]) as lookup:
                async with dialed(Dialer(), direct(port, host="server.example")) as conn:
                    await says_hello(conn)
                async with dialed(Dialer(), direct(port)) as conn:
                    await says_hello(conn)
            assert lookup.asked == ["server.example"]
            async with dialed(Dialer(), direct(port, host="localhost")) as conn:  # the loop's own DNS
                await says_hello(conn)

    run(main())


def test_ipv6(run: Any) -> None:
    async def main() -> None:
        with names(AssertionError("a literal is looked up")):
            async with listening(echo, host="::1") as port:
                for host in ("[::1]", "[::1%lo]", "[::1%1]"):
                    async with dialed(Dialer(), direct(port, host=host)) as conn:
                        await says_hello(conn)
            for host in ("[::1%no-such-interface]", "[:::1]", "[::1%]"):
                error = await failure(Dialer(), direct(80, host=host))
                assert str(error) == f'dial tcp: invalid address "{host[1:-1]}"'

    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 on this machine")
    run(main())


# --- no connection ------------------------------------------------------------------------------


def test_refused(run: Any) -> None:
    async def main() -> None:
        port = refusing()
        error = await failure(Dialer(), direct(port))
        assert type(error) is ConnectError
        assert str(error) == f"dial tcp 127.0.0.1:{port}: connect: connection refused"
        assert (error.addr, error.phase, error.retryable) == (f"127.0.0.1:{port}", "dial", True)
        assert error.__cause__.errno == errno.ECONNREFUSED
        with names(["127.0.0.1"]):
            error = await failure(Dialer(), direct(port, host="server.example"))
        assert str(error) == f"dial tcp 127.0.0.1:{port}: connect: connection refused (server.example)"
        assert error.addr == f"server.example:{port}"

    run(main())


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "no such host"),
        (socket.gaierror(socket.EAI_NODATA, "No address"), "no such host"),
        (
            socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
            "temporary failure in name resolution",
        ),
        (UnicodeError("label empty or too long"), "no such host"),
        ([], "no such host"),
    ],
)
def test_dns_failure(run: Any, answer: Any, text: str) -> None:
    async def main() -> None:
        with names(answer):
            error = await failure(Dialer(), direct(80, host="server.example"))
        assert type(error) is ConnectError
        assert str(error) == f"dial tcp: lookup server.example: {text}"
        assert (error.addr, error.phase, error.retryable) == ("server.example:80", "dns", True)

    run(main())


def test_a_label_that_no_name_server_takes(run: Any) -> None:
    async def main() -> None:
        for host in ("a" * 64 + ".example", "a..example"):
            error = await failure(Dialer(), direct(80, host=host))
            assert type(error) is ConnectError
            assert str(error) == f"dial tcp: lookup {host}: no such host"

    run(main())


@pytest.mark.parametrize(
    ("addr", "text"),
    [
        ("evil.example\0.good.example:80", r'dial tcp: invalid host "evil.example\x00.good.example"'),
        ("a b:80", 'dial tcp: invalid host "a b"'),
        ("a\r\nX: y:80", r'dial tcp: invalid host "a\r\nX: y"'),
        ("é:80", 'dial tcp: invalid host "é"'),
        (":80", 'dial tcp: invalid host ""'),
        ("[]:80", 'dial tcp: invalid host ""'),
        ("server.example:", "dial tcp: address : invalid port"),
        ("server.example:99999", "dial tcp: address 99999: invalid port"),
        ("server.example:1_0", "dial tcp: address 1_0: invalid port"),
    ],
)
def test_what_is_no_address(run: Any, addr: str, text: str) -> None:
    async def main() -> None:
        with names(AssertionError("it is looked up")):
            host, _, port = addr.rpartition(":")
            error = await failure(Dialer(), direct(port, host=host))
        assert type(error) is ConnectError
        assert (str(error), error.retryable) == (text, False)

    run(main())


def test_timeout_of_dns_and_of_connecting(run: Any) -> None:
    async def main() -> None:
        dialer = Dialer(dial_timeout=0.05)
        with names(None):
            error = await failure(dialer, direct(80, host="server.example"))
        assert type(error) is ConnectTimeout
        assert isinstance(error, HTTPTimeout)
        assert isinstance(error, TimeoutError)
        assert str(error) == "dial tcp: lookup server.example: i/o timeout after 0.05 s (dial_timeout)"
        assert (error.addr, error.phase, error.retryable) == ("server.example:80", "dns", True)
        with deaf() as port:
            error = await failure(dialer, direct(port))
        assert type(error) is ConnectTimeout
        assert str(error) == f"dial tcp 127.0.0.1:{port}: i/o timeout after 0.05 s (dial_timeout)"
        assert error.phase == "dial"

    run(main())


def test_no_timeout(run: Any) -> None:
    async def main() -> None:
        dialer = Dialer(dial_timeout=None, tls_handshake_timeout=None, tls_config=trusting())
        tls = server_context()
        async with listening(echo, tls=tls) as port, dialed(dialer, direct(port, "https")) as conn:
            await says_hello(conn)

    run(main())


def test_no_descriptors_left(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        port = refusing()
        with monkeypatch.context() as patch:
            patch.setattr(happy_eyeballs.socket, "socket", none_left)
            error = await failure(Dialer(), direct(port))
        assert type(error) is ConnectError
        assert str(error) == f"dial tcp 127.0.0.1:{port}: socket: too many open files"

    run(main())


def test_a_socket_that_connects_to_itself_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlucky(socket.socket):
        def connect_ex(self, address: Any) -> int:
            self.bind(address)  # the port that it is lent is the one it looks for
            return super().connect_ex(address)

    async def main() -> None:
        port = refusing()
        with monkeypatch.context() as patch:
            patch.setattr(happy_eyeballs.socket, "socket", Unlucky)
            error = await failure(Dialer(), direct(port))
        assert str(error) == f"dial tcp 127.0.0.1:{port}: connect: connection refused"

    run(main())


# --- the race of addresses ----------------------------------------------------------------------


def test_families_take_turns(run: Any) -> None:
    def of(*hosts: str) -> list[Any]:
        return [(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, 80)) for host in hosts]

    for given, wanted in (
        ((), ()),
        (("1.1.1.1",), ("1.1.1.1",)),
        (("::1", "::2", "1.1.1.1", "2.2.2.2"), ("::1", "1.1.1.1", "::2", "2.2.2.2")),
        (("1.1.1.1", "::1", "::2", "::3"), ("1.1.1.1", "::1", "::2", "::3")),
        (("::1", "::2", "::3", "1.1.1.1"), ("::1", "1.1.1.1", "::2", "::3")),
    ):
        assert interleave(of(*given)) == of(*wanted)


def test_a_dead_first_address_costs_one_stagger(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(happy_eyeballs, "STAGGER", 0.05)
        before = helpers.descriptors()
        async with listening(echo) as port:
            with deaf() as dead, names([("127.0.0.1", dead), ("127.0.0.1", port)]):
                opened = helpers.descriptors()
                begin = asyncio.get_running_loop().time()
                async with dialed(Dialer(), direct(80, host="server.example")) as conn:
                    assert 0.04 < asyncio.get_running_loop().time() - begin < 5
                    await says_hello(conn)
                    assert conn.transport.get_extra_info("peername") == ("127.0.0.1", port)
                    # The loser is closed already: our end and the server's are all that is new.
                    assert len(helpers.descriptors() - opened) == 2
                await helpers.settled()
        await helpers.settled()
        assert helpers.descriptors() <= before

    run(main())


def test_a_refusing_first_address_costs_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(happy_eyeballs, "STAGGER", 3600.0)
        async with listening(echo) as port:
            answers = [("127.0.0.1", refusing()), ("::1", refusing()), ("127.0.0.1", port)]
            with names(answers):
                async with dialed(Dialer(), direct(80, host="server.example")) as conn:
                    await says_hello(conn)

    run(main())


def test_a_slow_first_address_may_still_win(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(happy_eyeballs, "STAGGER", 0.01)
        tried: list[str] = []
        async with listening(echo) as port:
            with deaf() as dead, names([("127.0.0.1", dead), ("127.0.0.2", dead), ("127.0.0.1", port)]):
                trace = ClientTrace(connect_start=lambda network, addr: tried.append(addr))
                async with dialed(Dialer(), direct(80, host="server.example"), trace) as conn:
                    await says_hello(conn)
        assert len(tried) == 3

    run(main())


def test_all_addresses_fail(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(happy_eyeballs, "STAGGER", 0.01)
        first, second, third = refusing(), refusing(), refusing()
        with names([("127.0.0.1", first), ("127.0.0.2", second)]):
            error = await failure(Dialer(), direct(80, host="server.example"))
        assert str(error) == (
            f"dial tcp 127.0.0.1:{first}: connect: connection refused "
            "(nor can 1 other address of server.example be reached)"
        )
        with names([("127.0.0.1", first), ("127.0.0.2", second), ("127.0.0.3", third)]):
            error = await failure(Dialer(), direct(80, host="server.example"))
        assert "(nor can 2 other addresses of server.example be reached)" in str(error)
        # A dead one besides: until the timeout.
        with deaf() as dead, names([("127.0.0.1", first), ("127.0.0.1", dead)]):
            error = await failure(Dialer(dial_timeout=0.1), direct(80, host="server.example"))
        assert type(error) is ConnectTimeout

    run(main())


# --- the caller's own dial ------------------------------------------------------------------------


def test_dial_function(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        asked = []

        async def dial(network: str, addr: str) -> socket.socket:
            asked.append((network, addr))
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            return sock

        path = str(tmp_path / "plain")
        with names(AssertionError("a name is looked up")):
            dialer = Dialer(dial=dial, tls_config=trusting())
            method = direct(80, host="server.example")
            async with listening(echo, path=path), dialed(dialer, method) as conn:
                await says_hello(conn)
            path = str(tmp_path / "tls")
            async with listening(echo, path=path, tls=server_context("server.example")):
                async with dialed(dialer, direct(443, "https", host="server.example")) as conn:
                    await says_hello(conn)
                error = await failure(dialer, direct(443, "https", host="other.example"))
        assert asked == [
            ("tcp", "server.example:80"),
            ("tcp", "server.example:443"),
            ("tcp", "other.example:443"),
        ]
        assert 'not valid for "other.example"' in str(error)

    run(main())


def test_dial_function_that_fails(run: Any) -> None:
    class OwnError(Exception):
        pass

    def raising(error: Any) -> Any:
        async def dial(network: str, addr: str) -> socket.socket:
            raise error

        return dial

    async def main() -> None:
        method = direct(80, host="server.example")
        error = await failure(
            Dialer(dial=raising(OSError(errno.ENOENT, "No such file or directory"))), method
        )
        assert type(error) is ConnectError
        assert str(error) == "dial tcp server.example:80: no such file or directory"
        assert (error.addr, error.phase) == ("server.example:80", "dial")
        error = await failure(Dialer(dial=raising(socket.gaierror(socket.EAI_NONAME, "unknown"))), method)
        assert (type(error), error.phase) == (ConnectError, "dns")
        error = await failure(Dialer(dial=raising(TimeoutError("too slow"))), method)
        assert type(error) is ConnectTimeout
        assert str(error) == "dial tcp server.example:80: i/o timeout"
        for own in (OwnError(), ConnectTimeout("mine"), ConnectError("mine")):
            assert await failure(Dialer(dial=raising(own)), method) is own

    run(main())


def test_dial_function_that_gives_no_connection(run: Any) -> None:
    def giving(value: Any) -> Any:
        async def dial(network: str, addr: str) -> Any:
            return value

        return dial

    async def never(network: str, addr: str) -> Any:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        method = direct(80, host="server.example")
        error = await failure(Dialer(dial=giving(None)), method)
        assert type(error) is ConnectError
        assert str(error) == "net/http: Transport.dial hook returned None, not a connected socket.socket"
        assert not error.retryable
        error = await failure(Dialer(dial=giving((1, 2))), method)
        assert str(error) == "net/http: Transport.dial hook returned tuple, not a connected socket.socket"
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        assert isinstance(await failure(Dialer(dial=giving(datagrams)), method), ValueError)
        assert datagrams.fileno() == -1
        error = await failure(Dialer(dial=never, dial_timeout=0.02), method)
        assert (type(error), error.phase) == (ConnectTimeout, "dial")

    run(main())


# --- TLS ------------------------------------------------------------------------------------------


def test_tls(run: Any) -> None:
    async def main() -> None:
        dialer = Dialer(tls_config=trusting())
        async with listening(echo, tls=server_context()) as port:
            for host in ("localhost", "localhost.", "LOCALHOST", "127.0.0.1"):
                with names(["127.0.0.1"]):
                    async with dialed(dialer, direct(port, "https", host=host)) as conn:
                        await says_hello(conn)
                        assert conn.transport.get_extra_info("ssl_object").version() == "TLSv1.3"
                        assert conn.transport.get_extra_info("peercert")["subjectAltName"]

    run(main())


def test_what_the_server_says_first_over_tls_is_not_lost(run: Any) -> None:
    async def main() -> None:
        dialer = Dialer(tls_config=trusting())
        said = [b"a" * 40_000, b"b" * 40_000, b"c"]
        async with listening(saying(*said, then_wait=True), tls=server_context()) as port:
            for _ in range(10):
                async with dialed(dialer, direct(port, "https")) as conn:
                    assert await conn.receive(80_001) == b"".join(said)
                    await says_hello_to_nobody(conn)

    async def says_hello_to_nobody(conn: Any) -> None:
        conn.transport.write(b"hello")
        assert "lost" not in conn.calls

    run(main())


def test_server_name_indication(run: Any) -> None:
    async def main() -> None:
        seen: list[Any] = []
        context = server_context("a.example", "127.0.0.1", alpn=("own context",))
        context.sni_callback = lambda ssl_object, name, context: seen.append(name)
        dialer = Dialer(tls_config=trusting())
        async with listening(echo, tls=context) as port:
            for host in ("a.example", "a.example."):
                with names(["127.0.0.1"]):
                    async with dialed(dialer, direct(port, "https", host=host)):
                        pass
            async with dialed(dialer, direct(port, "https")):
                pass
        # RFC 6066 section 3: no trailing dot, and no address literals.
        assert seen == ["a.example", "a.example", None]

    run(main())


UNTRUSTED = "tls: failed to verify certificate: x509: "


@pytest.mark.parametrize(
    ("context", "host", "texts"),
    [
        ({"ca": "wrong"}, "localhost", ["certificate signed by unknown authority", "client_context(ca"]),
        ({}, "other.example", ['certificate is not valid for "other.example"']),
        ({"names": ("localhost",)}, "127.0.0.1", ['certificate is not valid for "127.0.0.1"']),
        ({"begin": datetime.datetime(2019, 1, 1), "end": datetime.datetime(2020, 1, 1)}, "localhost",
         ["certificate has expired", "clock"]),
        ({"begin": datetime.datetime(2035, 1, 1), "end": datetime.datetime(2036, 1, 1)}, "localhost",
         ["certificate is not yet valid", "clock"]),
    ],
    ids=["unknown authority", "other name", "other address", "expired", "not yet valid"],
)  # fmt: skip
def test_a_certificate_that_is_not_trusted(run: Any, context: Any, host: str, texts: list[str]) -> None:
    async def main() -> None:
        given = dict(context)
        async with listening(echo, tls=server_context(*given.pop("names", ()), **given)) as port:
            with names(["127.0.0.1"]):
                error = await failure(Dialer(tls_config=trusting()), direct(port, "https", host=host))
        assert type(error) is TLSError
        assert str(error).startswith(UNTRUSTED + texts[0])
        assert texts[-1] in str(error)
        assert (error.addr, error.phase, error.retryable) == (f"{host}:{port}", "tls", True)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)

    run(main())


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_certificate(run: Any, maximum: ssl.TLSVersion) -> None:
    async def main() -> None:
        async with listening(echo, tls=server_context(client_ca="clients", maximum=maximum)) as port:
            dialer = Dialer(tls_config=trusting(client_cert="clients"))
            async with dialed(dialer, direct(port, "https")) as conn:
                await says_hello(conn)

    run(main())


def test_client_certificate_that_is_missing_or_wrong(run: Any) -> None:
    async def main() -> None:
        with helpers.blocking_tls(
            server_context(client_ca="clients", maximum=ssl.TLSVersion.TLSv1_2)
        ) as port:
            error = await failure(Dialer(tls_config=trusting()), direct(port, "https"))
            assert type(error) is TLSError
            assert str(error).startswith("remote error: tls: handshake failure")
            error = await failure(Dialer(tls_config=trusting(client_cert="wrong")), direct(port, "https"))
            assert str(error).startswith("remote error: tls: unknown ca: the server wants another client")
            assert "client_context(cert_file=...)" in str(error)
        with helpers.blocking_tls(server_context(client_ca="clients")) as port:
            # The client of TLS 1.3 is done before its certificate is looked at: who hears of it
            # first, the dialer or the protocol, is chance.
            protocol = helpers.Recorder()
            dialing: Any = None
            try:
                await Dialer(tls_config=trusting()).dial(direct(port, "https"), protocol, None)
                await protocol.lost()
            except TLSError as error:
                dialing = error
            assert "CERTIFICATE_REQUIRED" in str(protocol.error) or "certificate required" in str(dialing)

    run(main())


def test_handshake_that_stalls(run: Any) -> None:
    async def main() -> None:
        dialer = Dialer(tls_handshake_timeout=0.05)
        async with listening(saying(then_wait=True)) as port:
            error = await failure(dialer, direct(port, "https"))
        assert type(error) is TLSTimeout
        assert isinstance(error, TimeoutError)
        assert str(error) == "net/http: TLS handshake timeout after 0.05 s (tls_handshake_timeout)"
        assert (error.addr, error.phase, error.retryable) == (f"127.0.0.1:{port}", "tls", True)

    run(main())


def answering(data: bytes) -> Any:
    """Waits for the first bytes, answers with these and closes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        await reader.read(65536)

    return handler


PLAIN_HTTP = "http: server gave HTTP response to HTTPS client"
NO_TLS = "tls: first record does not look like a TLS handshake: is TLS spoken on this port?"
END = "EOF: the server closed the connection during the TLS handshake"


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), PLAIN_HTTP),
        (answering(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent something\n"), PLAIN_HTTP),
        (saying(b"HTTP/1.1 408 Request Timeout\r\n\r\n"), PLAIN_HTTP),
        (answering(b"HTTP/3.0 nonsense"), NO_TLS),
        (answering(b"-ERR unknown command\r\n"), NO_TLS),
        (saying(b"SSH-2.0-OpenSSH_9.2\r\n"), NO_TLS),
        (answering(b"\x15\x03\x01\x00\x02\x02\x28"), "remote error: tls: handshake failure"),
        (answering(b"\x15\x03\x01\x00\x02\x02\x46"), "remote error: tls: protocol version: TLS 1.2"),
        (answering(b""), END),
        (saying(), END),
    ],
)  # fmt: skip
def test_a_server_without_tls(run: Any, handler: Any, text: str) -> None:
    async def main() -> None:
        async with listening(handler) as port:
            for config in (None, trusting()):
                dialer = Dialer(tls_config=config)
                for _ in range(3):
                    error = await failure(dialer, direct(port, "https"))
                    assert type(error) is TLSError
                    # Some servers speak first: whether that is before the handshake is chance.
                    assert str(error).startswith(text)

    run(main())


def test_reset_in_the_handshake(run: Any) -> None:
    async def main() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            linger = b"\1\0\0\0\0\0\0\0"  # close with a reset
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        async with listening(handler) as port:
            error = await failure(Dialer(), direct(port, "https"))
        assert type(error) is TLSError
        assert str(error) == "connection reset by peer (during the TLS handshake)"

    run(main())


def test_old_tls_is_refused(run: Any) -> None:
    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        helpers.authority("right").issue_cert("localhost").configure_cert(context)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with helpers.blocking_tls(context) as port:
            error = await failure(Dialer(), direct(port, "https"))
        assert type(error) is TLSError
        assert str(error) == "remote error: tls: protocol version: TLS 1.2 is the least that is spoken here"

    run(main())


def test_names_that_no_certificate_can_have(run: Any) -> None:
    async def main() -> None:
        async def dial(network: str, addr: str) -> socket.socket:
            mine, other = socket.socketpair()
            other.close()
            return mine

        for host in (".example", "a..example", "a" * 64 + ".example"):
            error = await failure(Dialer(dial=dial), direct(443, "https", host=host))
            assert type(error) is TLSError
            assert str(error) == f'tls: invalid server name "{host}"'

    run(main())


# --- contexts and ALPN ------------------------------------------------------------------------------


def test_alpn(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with listening(echo, tls=server_context(alpn=("h2", "http/1.1"))) as port:
            # Offered as it should be, and chosen as it was offered.
            async with dialed(Dialer(), direct(port, "https")) as conn:
                assert conn.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            dialer = Dialer(alpn=("h2", "http/1.1"))
            error = await failure(dialer, direct(port, "https"))
            assert type(error) is TLSError
            assert str(error) == (
                'tls: server chose the protocol "h2" by ALPN, which is not spoken here: offer http/1.1 only'
            )
            assert (error.addr, error.retryable) == (f"127.0.0.1:{port}", False)
            async with dialed(dialer, direct(port, "https", only_h1=True)) as conn:
                await says_hello(conn)
            # One's own context offers what its owner has set: here nothing.
            async with dialed(Dialer(tls_config=trusting()), direct(port, "https")) as conn:
                assert conn.transport.get_extra_info("ssl_object").selected_alpn_protocol() is None
            own = trusting()
            own.set_alpn_protocols(["h2"])
            error = await failure(Dialer(tls_config=own), direct(port, "https"))
            assert 'the protocol "h2"' in str(error)
        no_alpn = server_context()
        async with listening(echo, tls=no_alpn) as port, dialed(Dialer(), direct(port, "https")) as conn:
            assert conn.transport.get_extra_info("ssl_object").selected_alpn_protocol() is None

    authority = tmp_path / "ca.pem"
    helpers.authority("right").cert_pem.write_to_path(str(authority))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    run(main())


def test_a_context_is_made_once_and_only_for_https(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def making(**options: Any) -> ssl.SSLContext:
        made.append(options)
        return trusting()  # type: ignore[no-any-return]

    async def main() -> None:
        monkeypatch.setattr("prefork.http.client.dial.client_context", making)
        dialer = Dialer()
        async with listening(echo) as port, dialed(dialer, direct(port)):
            assert made == []
        async with listening(echo, tls=server_context()) as port:
            for _ in range(3):
                async with dialed(dialer, direct(port, "https")):
                    pass
        assert made == [{"alpn": ("http/1.1",)}]

    run(main())


def test_a_shared_context_is_not_changed(run: Any) -> None:
    async def main() -> None:
        context = trusting()

        def state() -> Any:
            names = ("options", "verify_flags", "verify_mode", "check_hostname", "minimum_version")
            return [getattr(context, name) for name in names], vars(context), context.get_ca_certs()

        before = state()
        async with listening(echo, tls=server_context()) as port:
            for dialer in (Dialer(tls_config=context), Dialer(tls_config=context, alpn=("h2",))):
                async with dialed(dialer, direct(port, "https", only_h1=True)) as conn:
                    ssl_object = conn.transport.get_extra_info("ssl_object")
                    assert ssl_object.context is context
                    assert "do_handshake" not in vars(ssl_object)  # no cycle is left
        assert state() == before

    run(main())


def test_what_is_no_context_of_a_client(run: Any) -> None:
    with pytest.raises(TypeError, match=r"tls_config must be an ssl.SSLContext, not bool"):
        Dialer(tls_config=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="context for servers"):
        Dialer(tls_config=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


def test_client_context_from_files(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "both")}
        helpers.authority("right").cert_pem.write_to_path(str(files["ca"]))
        cert = helpers.authority("clients").issue_cert("me@client.example")
        cert.private_key_pem.write_to_path(str(files["key"]))
        cert.cert_chain_pems[0].write_to_path(str(files["cert"]))
        cert.private_key_and_cert_chain_pem.write_to_path(str(files["both"]))
        async with listening(echo, tls=server_context(client_ca="clients")) as port:
            for options in (
                {"cert_file": files["both"]},
                {"cert_file": files["cert"], "key_file": files["key"]},
            ):
                context = tls.client_context(ca_file=files["ca"], **options)
                async with dialed(Dialer(tls_config=context), direct(port, "https")) as conn:
                    await says_hello(conn)
        with pytest.raises(OSError, match="No such file"):
            tls.client_context(ca_file=tmp_path / "none.pem")

    run(main())


def test_the_default_context_checks_everything(run: Any) -> None:
    context = tls.client_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.fixture
def no_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose trust store is an empty folder."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    return tmp_path


def test_authorities_in_a_folder(run: Any, no_authorities: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        tls = server_context()
        async with listening(echo, tls=tls) as port, dialed(Dialer(), direct(port, "https")) as conn:
            await says_hello(conn)

    if not shutil.which("openssl"):
        pytest.skip("no openssl command, which knows how such a folder names its files")
    helpers.authority("right").cert_pem.write_to_path(str(no_authorities / "ca.pem"))
    assert os.spawnlp(os.P_WAIT, "openssl", "openssl", "rehash", str(no_authorities)) == 0
    monkeypatch.setitem(sys.modules, "certifi", None)
    monkeypatch.setitem(sys.modules, "truststore", None)
    run(main())


def test_authorities_of_certifi_then_of_truststore(
    run: Any, no_authorities: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("certifi")
    truststore = pytest.importorskip("truststore")
    assert len(tls.client_context().get_ca_certs()) > 50
    monkeypatch.setitem(sys.modules, "certifi", None)
    context = tls.client_context()
    assert isinstance(context, truststore.SSLContext)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2

    async def main() -> None:
        async with listening(echo, tls=server_context(alpn=("http/1.1",))) as port:
            method = direct(port, "https")
            assert "unknown authority" in str(await failure(Dialer(tls_config=context), method))
            # It looks for the authorities at each handshake.
            authority = no_authorities / "ca.pem"
            helpers.authority("right").cert_pem.write_to_path(str(authority))
            monkeypatch.setenv("SSL_CERT_FILE", str(authority))
            async with dialed(Dialer(tls_config=context), method) as conn:
                await says_hello(conn)
                assert conn.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"

    run(main())


def test_nobody_to_trust(run: Any, no_authorities: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with listening(echo, tls=server_context()) as port:
            error = await failure(Dialer(), direct(port, "https"))
        assert type(error) is TLSError
        assert "no certificate authorities" in str(error)
        assert "pip install certifi" in str(error)

    monkeypatch.setitem(sys.modules, "certifi", None)
    monkeypatch.setitem(sys.modules, "truststore", None)
    run(main())


# --- trace ------------------------------------------------------------------------------------------


def tracing(calls: list[Any]) -> ClientTrace:
    return ClientTrace(
        dns_start=lambda host: calls.append(("dns_start", host)),
        dns_done=lambda addresses, error: calls.append(("dns_done", addresses, error)),
        connect_start=lambda network, addr: calls.append(("connect_start", network, addr)),
        connect_done=lambda network, addr, error: calls.append(("connect_done", network, addr, error)),
        tls_handshake_start=lambda: calls.append(("tls_handshake_start",)),
        tls_handshake_done=lambda ssl_object, error: calls.append(("tls_handshake_done", ssl_object, error)),
    )


def test_trace(run: Any) -> None:
    async def main() -> None:
        calls: list[Any] = []
        async with listening(echo, tls=server_context()) as port:
            with names(["127.0.0.1"]):
                dialer = Dialer(tls_config=trusting())
                async with dialed(dialer, direct(port, "https", host="localhost"), tracing(calls)) as conn:
                    ssl_object = conn.transport.get_extra_info("ssl_object")
        assert calls == [
            ("dns_start", "localhost"),
            ("dns_done", ["127.0.0.1"], None),
            ("connect_start", "tcp", f"127.0.0.1:{port}"),
            ("connect_done", "tcp", f"127.0.0.1:{port}", None),
            ("tls_handshake_start",),
            ("tls_handshake_done", ssl_object, None),
        ]
        async with listening(echo) as port:
            calls.clear()
            async with dialed(Dialer(), direct(port), tracing(calls)):
                assert [call[0] for call in calls] == ["connect_start", "connect_done"]
            # A trace may have hooks for some things only.
            async with dialed(Dialer(), direct(port), ClientTrace()):
                pass

    run(main())


def test_trace_of_failures(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        calls: list[Any] = []
        with names(socket.gaierror(socket.EAI_NONAME, "unknown")):
            error = await failure(Dialer(), direct(80, host="server.example"), tracing(calls))
        assert calls == [("dns_start", "server.example"), ("dns_done", [], error)]

        calls.clear()
        error = await failure(Dialer(), direct(refusing()), tracing(calls))
        assert calls[-1][0] == "connect_done"
        assert calls[-1][3] is error.__cause__

        calls.clear()
        async with listening(answering(b"junk, junk, junk")) as port:
            error = await failure(Dialer(), direct(port, "https"), tracing(calls))
        assert calls[-2:] == [("tls_handshake_start",), ("tls_handshake_done", None, error)]

        calls.clear()
        monkeypatch.setattr(happy_eyeballs, "STAGGER", 0.01)
        async with listening(echo) as port:
            with deaf() as dead, names([("127.0.0.1", dead), ("127.0.0.1", port)]):
                async with dialed(Dialer(), direct(80, host="server.example"), tracing(calls)):
                    pass
        done = {call[2]: call[3] for call in calls if call[0] == "connect_done"}
        assert done[f"127.0.0.1:{port}"] is None
        assert done[f"127.0.0.1:{dead}"].errno == errno.ECANCELED

        calls.clear()
        with names(None):
            error = await failure(
                Dialer(dial_timeout=0.01), direct(80, host="server.example"), tracing(calls)
            )
        assert calls[-1][0] == "dns_done"
        assert calls[-1][2].errno == errno.ECANCELED

    run(main())


@pytest.mark.parametrize(
    "hook",
    ["dns_start", "dns_done", "connect_start", "connect_done", "tls_handshake_start", "tls_handshake_done"],
)
def test_a_hook_that_raises_fails_the_dial_and_leaves_nothing_open(run: Any, hook: str) -> None:
    class HookError(Exception):
        pass

    def raising(*args: Any) -> None:
        raise HookError

    async def main() -> None:
        async with listening(echo, tls=server_context()) as port:
            before = helpers.descriptors()
            with names(["127.0.0.1"]):
                trace = ClientTrace(**{hook: raising})
                error = await failure(
                    Dialer(tls_config=trusting()), direct(port, "https", host="localhost"), trace
                )
                assert type(error) is HookError
            await eventually(lambda: helpers.descriptors() <= before)

    run(main())


# --- cancellation -------------------------------------------------------------------------------------


class Counted:
    """An echo server's handler that knows how many connections it has."""

    def __init__(self) -> None:
        self.open = 0

    async def __call__(self, reader: Any, writer: Any) -> None:
        self.open += 1
        try:
            await echo(reader, writer)
        finally:
            self.open -= 1
            writer.transport.abort()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cancelled_at_every_wait(run: Any, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(happy_eyeballs, "STAGGER", 0.001)
        dialer = Dialer(tls_config=trusting())
        server = Counted()
        async with listening(server, tls=server_context() if scheme == "https" else None) as port:
            answers = [("127.0.0.1", refusing()), ("127.0.0.1", 0), ("127.0.0.1", port)]
            with deaf() as dead:
                answers[1] = ("127.0.0.1", dead)
                with names(answers):
                    waits = await helpers.cancelled_everywhere(
                        lambda protocol: dialer.dial(direct(port, scheme, host="localhost"), protocol, None),
                        lambda: server.open == 0,
                    )
        assert waits >= (4 if scheme == "http" else 5)

    run(main())


def test_cancelled_by_its_task(run: Any) -> None:
    async def main() -> None:
        async with listening(saying(then_wait=True)) as port:
            with deaf() as dead:
                before = helpers.descriptors()
                for method in (direct(port, "https"), direct(dead)):
                    for delay in (0, 0.001, 0.01):
                        protocol = helpers.Recorder()
                        task = asyncio.ensure_future(Dialer().dial(method, protocol, None))
                        await asyncio.sleep(delay)
                        task.cancel()
                        await asyncio.wait([task])
                        assert task.cancelled()
                        assert protocol.calls == []
                await eventually(lambda: helpers.descriptors() <= before)

    run(main())
