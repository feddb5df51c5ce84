"""What a program puts into a request stays where it put it (CVE-2019-9740, CVE-2020-26116 and kin).

Every byte, and every character of the same number, at the beginning, in the middle and at the end of
everything that a program can set: either the request is refused and nothing is sent, or a strict parser
reads exactly one request, and in it the value.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http
from prefork.http.client.request_head import USER_AGENT
from prefork.http.errors import LocalProtocolError, RemoteProtocolError, RequestBodyError
from prefork.http.message.query import Part, unescape
from prefork.http.message.url import URL
from prefork.http.server.head import HeadScanner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Run = Callable[..., Any]

HERE = Path(__file__).resolve().parent
_spec = importlib.util.spec_from_file_location("helpers_responses", HERE / "helpers_responses.py")
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

CHARACTERS = [chr(code) for code in range(256)] + [
    bytes([code]).decode("utf-8", "surrogateescape") for code in range(128, 256)
]
PLACES = ["{}", "{}ab", "a{}b", "ab{}"]
TARGETS = [place.format(char) for char in CHARACTERS for place in PLACES]
TRICKS = [
    *(
        "\r\nX-Evil: 1",
        "\nX-Evil: 1",
        "\r\n\r\nGET /evil HTTP/1.1\r\nHost: e\r\n\r\n",
        " HTTP/1.1\r\nX-Evil: 1\r\n\r\n",
    ),
    *(
        " HTTP/1.1\r\nTransfer-Encoding: chunked",
        "\u010d\u010a",
        "\uff0d\uff0a",
        "\u2028",
        "\u0085",
        "\ud800",
    ),
    *(
        "\r\n folded",
        "\0\r\n",
        "%0d%0aX-Evil:%201",
        "\r",
        "#",
        "?",
        "//evil",
        "@evil",
        ":80",
        "\\evil",
        "[::1]",
    ),
]
VALUES = TARGETS + [place.format(trick) for trick in TRICKS for place in PLACES]


def unescaped(text: str) -> str:
    return unescape(text, Part.PATH)


def raw(text: str) -> bytes:
    """The bytes of a str as they are sent."""
    return text.encode("utf-8", "surrogateescape")


class Sent:
    """One request, read as strictly as RFC 9112 allows; AssertionError for anything else."""

    def __init__(self, wire: bytes) -> None:
        match = re.match(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~\x80-\xff]+) HTTP/1\.1\r\n", wire)
        assert match, f"no request line: {wire[:200]!r}"
        self.method, self.target = match.groups()
        self.rest = wire[match.end() :]
        self.fields = self._fields()
        assert len(self.values(b"Host")) == 1
        lengths, codings = self.values(b"Content-Length"), self.values(b"Transfer-Encoding")
        assert len(lengths) + len(codings) <= 1
        self.body = b""
        self.trailers: list[tuple[bytes, bytes]] = []
        if lengths:
            size = int(lengths[0])
            self.body, self.rest = self.rest[:size], self.rest[size:]
            assert len(self.body) == size
        elif codings:
            assert codings == [b"chunked"]
            while size := int(self._line(), 16):
                self.body += self.rest[:size]
                assert self.rest[size : size + 2] == b"\r\n"
                self.rest = self.rest[size + 2 :]
            self.trailers = self._fields()
        assert not self.rest, f"there is something behind the request: {self.rest!r}"

    def _line(self) -> bytes:
        line, end, self.rest = self.rest.partition(b"\r\n")
        assert end, f"the request breaks off: {line!r}"
        assert not set(line) & {*range(9), *range(10, 32), 127}, f"controls in {line!r}"
        return line

    def _fields(self) -> list[tuple[bytes, bytes]]:
        fields = []
        while line := self._line():
            name, colon, value = line.partition(b": ")
            assert colon
            assert re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name), f"bad name in {line!r}"
            assert value == value.strip(b" \t")
            fields.append((name, value))
        return fields

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field.lower() == name.lower()]

    def names(self) -> set[bytes]:
        return {name for name, _ in self.fields}


USUAL = {b"Host", b"User-Agent", b"Accept-Encoding"}


class Answering(helpers.FakeSocket):  # type: ignore[misc, name-defined]
    """Answers when something has been written, a little later."""

    def write(self, data: Any) -> None:
        if not self.written:
            asyncio.get_running_loop().create_task(self._answer())
        super().write(data)

    async def _answer(self) -> None:
        await helpers.settle(10)
        if not self.closed:
            self.protocol.data_received(b"HTTP/1.1 204 OK\r\nConnection: close\r\n\r\n")


async def wire_of(make: Callable[[], http.Request], **options: Any) -> bytes | None:
    """What is sent for a request; None when it is refused, and then nothing may have been sent."""
    transport = helpers.Socketless(**options)
    sockets: list[Answering] = []

    async def dial(method: Any, protocol: Any, trace: Any) -> asyncio.Transport:
        sockets.append(Answering())
        sockets[-1].protocol = protocol
        protocol.connection_made(sockets[-1])
        return sockets[-1]

    transport.dial = dial
    written = b""
    try:
        (await transport.round_trip(make())).close()
        written = bytes(sockets[0].written)
        assert written
    except (LocalProtocolError, ValueError):
        assert not sockets or not sockets[0].written
    finally:
        await transport.close()
    assert len(sockets) <= 1
    return written or None


def read(wire: bytes) -> Sent:
    """The one request that these bytes are, for a strict parser and for our own server."""
    sent = Sent(wire)
    head = wire.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    try:
        received = HeadScanner().scan(head, None)  # type: ignore[arg-type]
    except RemoteProtocolError:
        pass  # a bad escape, a Host that is none, an expectation it cannot meet: but one request
    else:
        assert raw(received.method) == sent.method
        assert raw(received.request_uri) == sent.target
        assert received.content_length in (-1, len(sent.body))
    return sent


def check_all(
    run: Run, make: Callable[[str], http.Request], check: Callable[[Sent, str], None], **options: Any
) -> None:
    """Send a request for each value; `check` looks at those that were not refused."""
    count = 0

    async def scenario() -> None:
        nonlocal count
        for value in VALUES:
            wire = await wire_of(functools.partial(make, value), **options)
            if wire is None:
                continue
            count += 1
            try:
                check(read(wire), value)
            except AssertionError as error:
                error.add_note(f"{value!r}: {wire!r}")
                raise

    run(scenario(), timeout=120)
    assert count > 100, "so many are good"


def get(url: str = "http://server.test/", **options: Any) -> http.Request:
    return http.Request("GET", url, **options)


def set_attribute(name: str, value: str) -> http.Request:
    request = get()
    setattr(request, name, value)
    return request


def set_url(name: str, value: str) -> http.Request:
    request = get("http://server.test/a?b=c")
    setattr(request.url, name, value)
    return request


# --- the request line -------------------------------------------------------------------------


def test_method(run: Run) -> None:
    def check(sent: Sent, value: str) -> None:
        assert sent.method == raw(value)
        assert sent.names() <= USUAL

    check_all(run, lambda value: http.Request(value, "http://server.test/"), check)
    check_all(run, functools.partial(set_attribute, "method"), check)


@pytest.mark.parametrize("options", [{}, {"proxy": "http://proxy.test:3128"}], ids=["direct", "proxied"])
def test_path(options: dict[str, Any], run: Run) -> None:
    def check(sent: Sent, value: str) -> None:
        assert sent.names() <= USUAL
        assert sent.target.isascii()

    def check_text(sent: Sent, value: str) -> None:
        # In a URL's text the value may be an escape, or begin the query or the fragment.
        check(sent, value)
        path = sent.target.removeprefix(b"http://server.test").partition(b"?")[0].decode()
        wanted = value.partition("#")[0].partition("?")[0]
        assert unescaped(path) == "/" + (unescaped(wanted) if "%" in wanted else wanted)

    def check_attribute(sent: Sent, value: str) -> None:
        check(sent, value)
        path = sent.target.removeprefix(b"http://server.test").removesuffix(b"?b=c").decode()
        assert unescaped(path).lstrip("/") == value.lstrip("/")

    check_all(run, lambda value: get("http://server.test/" + value), check_text, **options)
    check_all(run, lambda value: set_url("path", "/" + value), check_attribute, **options)
    check_all(run, lambda value: set_url("path", value), check_attribute, **options)


@pytest.mark.parametrize("options", [{}, {"proxy": "http://proxy.test:3128"}], ids=["direct", "proxied"])
def test_query(options: dict[str, Any], run: Run) -> None:
    def check(sent: Sent, value: str) -> None:
        assert sent.names() <= USUAL
        assert sent.target.removeprefix(b"http://server.test").partition(b"?")[2] in (
            raw(value),
            raw(value.partition("#")[0]),
        )

    check_all(run, lambda value: get("http://server.test/?" + value), check, **options)
    check_all(run, functools.partial(set_url, "raw_query"), check, **options)


def test_opaque(run: Run) -> None:
    def check(sent: Sent, value: str) -> None:
        assert sent.names() <= USUAL
        assert raw(value) in sent.target

    check_all(run, lambda value: set_url("opaque", "//server.test/" + value), check)


def test_fragment(run: Run) -> None:
    def check(sent: Sent, value: str) -> None:
        assert sent.names() <= USUAL
        assert sent.target == b"/a?b=c"

    check_all(run, functools.partial(set_url, "fragment"), check)


def test_scheme(run: Run) -> None:
    async def scenario() -> None:
        for value in VALUES:
            assert await wire_of(functools.partial(set_url, "scheme", value)) is None

    run(scenario())


def test_target_of_connect(run: Run) -> None:
    def make(value: str) -> http.Request:
        request = http.Request("CONNECT", "http://server.test", host=value)
        request.url.path = ""
        return request

    def check(sent: Sent, value: str) -> None:
        assert sent.names() <= USUAL
        assert sent.target == raw(value)

    check_all(run, make, check)


# --- the host ---------------------------------------------------------------------------------


def same_host(sent: Sent, value: str) -> None:
    assert sent.names() <= USUAL
    (host,) = sent.values(b"Host")
    if value.isascii() and re.fullmatch(r"[!$%&'()*+,\-.:;=\[\]_~0-9A-Za-z]+", value):
        assert host == value.removesuffix(":").encode() or "[" in value or host == value.encode()
    elif not value.isascii():
        assert host.startswith(b"xn--") or b".xn--" in host or host == b""
    else:
        assert host == b""  # Go's way too: the server will refuse it


def test_host(run: Run) -> None:
    check_all(run, lambda value: get(host=value or None), same_host)
    check_all(run, functools.partial(set_attribute, "host"), same_host)

    def direct(value: str) -> http.Request:
        request = set_url("host", value)
        request.host = ""
        return request

    check_all(run, direct, same_host)


def test_host_in_the_text_of_a_url(run: Run) -> None:
    def check(sent: Sent, value: str) -> None:
        assert sent.names() <= USUAL
        host = value.partition("#")[0].partition("?")[0].partition("/")[0].rpartition("@")[2]
        same_host(sent, unescaped(host) if "%" in host else host)

    check_all(run, lambda value: get(f"http://{value}/"), check)
    check_all(run, lambda value: get(f"http://{value}.server.test/"), lambda sent, _: None)


def test_host_behind_a_proxy_is_good_or_refused(run: Run) -> None:
    def check(sent: Sent, value: str) -> None:
        (host,) = sent.values(b"Host")
        assert sent.names() <= USUAL
        assert sent.target == b"http://%s/" % host
        assert host

    check_all(run, lambda value: get(host=value), check, proxy="http://proxy.test:3128")


# --- header and trailer -----------------------------------------------------------------------


def test_header_name(run: Run) -> None:
    framing = {"content-length", "transfer-encoding", "host", "trailer", "user-agent"}

    def check(sent: Sent, value: str) -> None:
        assert value.lower() not in framing
        assert sent.names() <= USUAL | {http.canonical_header_key(value).encode()}
        assert b"v" in sent.values(value.encode())

    check_all(run, lambda value: get(header=[(value, "v")]), check)
    check_all(run, lambda value: get(header=http.Header._of({value: ["v"]})), lambda sent, value: None)


@pytest.mark.parametrize("name", ["X-A", "User-Agent", "Cookie", "Connection", "Expect", "Upgrade"])
def test_header_value(name: str, run: Run) -> None:
    def check(sent: Sent, value: str) -> None:
        assert sent.names() <= USUAL | {name.encode()}
        found = sent.values(name.encode())
        assert found == [raw(value).strip(b" \t")] or (name == "User-Agent" and not value.strip(" \t"))

    check_all(run, lambda value: get(header={name: value}), check)


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Transfer-Encoding", "Trailer"])
def test_fields_that_frame_are_not_the_program_s(name: str, run: Run) -> None:
    def check(sent: Sent, value: str) -> None:
        assert sent.names() <= USUAL
        assert sent.values(b"Host") == [b"server.test"]
        assert not sent.body

    check_all(run, lambda value: get(header={name: value}), check)


def with_trailer(name: str, value: str) -> http.Request:
    return http.Request("POST", "http://server.test/", body=b"body", trailer=http.Header([(name, value)]))


def test_trailer(run: Run) -> None:
    expected = USUAL | {b"Trailer", b"Transfer-Encoding"}

    def check_name(sent: Sent, value: str) -> None:
        name = http.canonical_header_key(value).encode()
        assert sent.names() == expected
        assert (sent.body, sent.trailers, sent.values(b"Trailer")) == (b"body", [(name, b"v")], [name])

    def check_value(sent: Sent, value: str) -> None:
        assert sent.names() == expected
        assert (sent.body, sent.trailers) == (b"body", [(b"X-T", raw(value).strip(b" \t"))])

    check_all(run, lambda value: with_trailer(value, "v"), check_name)
    check_all(run, lambda value: with_trailer("X-T", value), check_value)


@pytest.mark.parametrize(
    "name", ["Content-Length", "transfer-encoding", "Host", "Trailer", "Connection", "Set-Cookie", "If-Match"]
)
def test_a_trailer_that_means_something_in_front(name: str, run: Run) -> None:
    assert run(wire_of(lambda: with_trailer(name, "v"))) is None


def test_cookie_and_credentials(run: Run) -> None:
    def cookie(value: str) -> http.Request:
        request = get()
        request.add_cookie(http.Cookie("n", value))
        request.add_cookie(http.Cookie(value, "v"))
        return request

    def check_cookie(sent: Sent, value: str) -> None:
        assert sent.names() <= USUAL | {b"Cookie"}
        assert len(sent.values(b"Cookie")) == 1

    def credentials(value: str) -> http.Request:
        request = get()
        request.set_basic_auth(value, value)
        return request

    def check_credentials(sent: Sent, value: str) -> None:
        assert re.fullmatch(rb"Basic [A-Za-z0-9+/]+=*", *sent.values(b"Authorization"))

    check_all(run, cookie, check_cookie)
    check_all(run, credentials, check_credentials)


# --- the body ---------------------------------------------------------------------------------


async def once(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


EVIL = b"abc\r\nGET /evil HTTP/1.1\r\nHost: e\r\n\r\n"


def declared(body: Any, length: int | None, method: str = "POST") -> http.Request:
    request = http.Request(method, "http://server.test/", body=body)
    if length is not None:
        request.content_length = length
    return request


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_a_body_is_as_long_as_its_length(method: str, run: Run) -> None:
    """A body that is longer than its header says is the next request to the server."""

    async def scenario() -> None:
        for length, wanted in ((None, EVIL), (len(EVIL), EVIL), (-1, EVIL), (0, EVIL), (3, None), (99, None)):
            wire = await wire_of(lambda length=length: declared(EVIL, length, method))
            assert (wire and read(wire).body) == wanted, length
        for length in (None, -1, 0, len(EVIL)):
            wire = await wire_of(lambda length=length: declared(once(EVIL), length, method))
            assert wire is not None
            assert read(wire).body == EVIL
        wire = await wire_of(lambda: declared(None, 3, method))
        assert wire is None or (read(wire).body == b"" and method == "GET")
        for body in (b"", once()):
            wire = await wire_of(lambda body=body: declared(body, None, method))
            assert wire is not None
            sent = read(wire)
            assert sent.body == b""
            if method != "POST":
                assert sent.names() <= USUAL

    run(scenario())


@pytest.mark.parametrize("length", [3, 99])
def test_a_stream_of_another_length_ends_the_connection(length: int, run: Run) -> None:
    async def scenario() -> None:
        transport = helpers.Socketless()
        with pytest.raises(
            RequestBodyError, match=f"ContentLength={length} with Body length {len(EVIL)}"
        ) as caught:
            await transport.round_trip(declared(once(EVIL), length))
        assert caught.value.phase == "write"
        assert caught.value.addr == "server.test:80"
        assert b"evil" not in transport.socket.written or length > len(EVIL)
        assert transport.socket.closed
        await helpers.settle()
        await transport.close()

    run(scenario())


@pytest.mark.parametrize("size", [0, 5, 70_000, 300_000])
def test_chunks_are_whole(size: int, run: Run) -> None:
    data = b"\r\n0\r\n\r\n" * (size // 7)

    async def scenario() -> None:
        for body in (data, once(data), once(*[data[i : i + 1000] for i in range(0, len(data), 1000)])):
            wire = await wire_of(lambda body=body: declared(body, -1))
            assert wire is not None
            sent = read(wire)
            assert sent.values(b"Transfer-Encoding") == [b"chunked"]
            assert sent.body == data

    run(scenario())


# --- CONNECT to a proxy -------------------------------------------------------------------------


async def connect_of(url: URL, header: http.Header | None = None) -> bytes | None:
    """What a proxy receives for a request to `url`; None when nothing is sent."""
    received: list[bytes] = []
    over: list[asyncio.Task[None]] = []

    async def proxy(sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        while piece := await reader.read(65536):
            received.append(piece)
            if b"\r\n\r\n" in piece:
                writer.write(b"HTTP/1.1 403 No\r\n\r\n")
        writer.close()

    async def dial(network: str, addr: str) -> socket.socket:
        assert addr == "proxy.test:3128"
        ours, theirs = socket.socketpair()
        over.append(asyncio.get_running_loop().create_task(proxy(theirs)))
        return ours

    with contextlib.suppress(http.TransportError, LocalProtocolError, ValueError):
        transport = http.Transport(proxy="http://proxy.test:3128", dial=dial, proxy_connect_header=header)
        try:
            await transport.round_trip(http.Request("GET", url))
        finally:
            await transport.close()
            await asyncio.gather(*over)
    await helpers.settle()
    return b"".join(received) or None


def test_connect(run: Run) -> None:
    def server(value: str) -> URL:
        url = URL.parse("https://server.test/")
        url.host = value
        return url

    url = URL.parse("https://server.test/")
    count = 0

    async def scenario() -> None:
        nonlocal count
        for value in VALUES:
            hosts = await connect_of(server(value))
            values = await connect_of(url, http.Header([("X-A", value)]))
            names = await connect_of(url, http.Header([(value, "v")]))
            for wire in (hosts, values, names):
                if wire is None:
                    continue
                count += 1
                sent = Sent(wire)
                assert sent.method == b"CONNECT"
                assert sent.values(b"Host") == [sent.target]
                assert b"X-Evil" not in sent.names()
                assert len(sent.names()) <= 3
            if values is not None:
                assert Sent(values).values(b"X-A") == [raw(value).strip(b" \t")]

    run(scenario(), timeout=120)
    assert count > 1000


def test_the_user_agent_is_ours(run: Run) -> None:
    wire = run(wire_of(get))
    assert (
        wire
        == b"GET / HTTP/1.1\r\nHost: server.test\r\nUser-Agent: %s\r\nAccept-Encoding: gzip\r\n\r\n"
        % (USER_AGENT.encode())
    )
