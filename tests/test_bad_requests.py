"""Bad bytes from the network: refused with the right status, and nothing behind them is served.

Four ways to look at it: a table over real sockets; the same bytes in any segments; damaged
requests by the thousand; and, where the folder of measured vectors is, all of its rows.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import itertools
import random
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http
from prefork.http.server.server import listen

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., Any]

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parent.parent / "shared" / "vectors"


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helpers = _load("helpers_wire")
parse_all, Wire, socketless, settle = helpers.parse_all, helpers.Wire, helpers.socketless, helpers.settle
serving = _load("helpers_server").serving


async def report(w: http.ResponseWriter, r: http.Request) -> None:
    """Reads the body, waits a turn and answers with what it has understood."""
    body = b""
    async for piece in r.body:
        body += piece
    if r.request_uri.startswith("/wait"):
        await asyncio.sleep(0)
    w.header["X-Method"] = r.method
    w.header["Content-Type"] = "text/plain"
    if r.method == "CONNECT":
        w.write_header(405)
    trailers = sorted(r.trailer.items())
    foo = r.header.get("Foo")
    w.write(f"PATH={r.request_uri} HOST={r.host} FOO={foo!r} BODY={len(body)}:{body[:60]!r} {trailers}")


def glance(w: http.ResponseWriter, r: http.Request) -> None:
    """Answers at once, without a look at the body."""
    w.header["X-Method"] = r.method
    if r.method == "CONNECT":
        w.write_header(405)
    w.write(f"PATH={r.request_uri} HOST={r.host}")


# --- a table, over sockets ------------------------------------------------------------------

OK = b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n"
BEHIND = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def post(*fields: str, body: str = "", line: str = "POST /x HTTP/1.1") -> bytes:
    return "\r\n".join([line, "Host: a", *fields, "", body]).encode("latin-1")


CHUNKED = "Transfer-Encoding: chunked"

# name: (status, bytes). Behind all of them stands a request that must not be served.
BAD: dict[str, tuple[int, bytes]] = {
    # Request lines.
    "no request at all": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "blank lines first": (400, b"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n"),
    "space first": (400, b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "tab for a space": (400, b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space behind the version": (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /\r\nHost: a\r\n\r\n"),
    "no target": (400, b"GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
    "lower-case version": (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "another protocol": (400, b"GET / RTSP/1.1\r\nHost: a\r\n\r\n"),
    "HTTP/2 by name": (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "HTTP/2 by its preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/0.9 by name": (505, b"GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
    "method that is no token": (400, b"GE(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "NUL in the method": (400, b"G\0T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "target without a slash": (400, b"GET x HTTP/1.1\r\nHost: a\r\n\r\n"),
    "NUL in the target": (400, b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bad escape": (400, b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n"),
    "CONNECT without a port": (400, b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n"),
    # Lines.
    "bare LF": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare LF behind the request line": (400, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    "bare LF between fields": (400, b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
    "bare LF at the end": (400, b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    "bare CR": (400, b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"),
    "CR CR LF": (400, b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"),
    "folded": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n"),
    "folded first": (400, b"GET / HTTP/1.1\r\n X: b\r\nHost: a\r\n\r\n"),
    "no colon": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"),
    "no name": (400, b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
    "space before the colon": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n"),
    "NUL in a value": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n"),
    # Host.
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    "Host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "Host with user info": (400, b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    # Lengths.
    "two lengths": (400, post("Content-Length: 5", "Content-Length: 6", body="hello")),
    "two equal lengths": (400, post("Content-Length: 5", "Content-Length: 5", body="hello")),
    "list of lengths": (400, post("Content-Length: 5, 5", body="hello")),
    "signed length": (400, post("Content-Length: +5", body="hello")),
    "negative length": (400, post("Content-Length: -5", body="hello")),
    "length with an underscore": (400, post("Content-Length: 0_5", body="hello")),
    "hexadecimal length": (400, post("Content-Length: 0x5", body="hello")),
    "no length": (400, post("Content-Length:", body="hello")),
    "length of another script": (400, post("Content-Length: \xd9\xa5", body="hello")),
    "length above 2^63": (400, post("Content-Length: 9223372036854775808", body="hello")),
    # Codings.
    "coding and length": (400, post(CHUNKED, "Content-Length: 5", body="0\r\n\r\n")),
    "length and coding": (400, post("Content-Length: 5", CHUNKED, body="0\r\n\r\n")),
    "length and empty coding": (400, post("Content-Length: 5", "Transfer-Encoding:", body="hello")),
    "empty coding": (501, post("Transfer-Encoding:", body="hello")),
    "unknown coding": (501, post("Transfer-Encoding: cow", body="hello")),
    "two codings": (501, post("Transfer-Encoding: gzip, chunked", body="0\r\n\r\n")),
    "chunked twice": (501, post(CHUNKED, CHUNKED, body="0\r\n\r\n")),
    "chunked with a parameter": (501, post("Transfer-Encoding: chunked;a", body="0\r\n\r\n")),
    "coding with another white space": (400, post("Transfer-Encoding:\x0bchunked", body="0\r\n\r\n")),
    "coding on HTTP/1.0": (400, post(CHUNKED, body="0\r\n\r\n", line="POST /x HTTP/1.0")),
    "trailer that frames": (400, post(CHUNKED, "Trailer: Content-Length", body="0\r\n\r\n")),
    # Limits and expectations.
    "too many lines": (431, post(*["X: y"] * 500)),
    "too many bytes": (431, post("X: " + "y" * 70_000)),
    "endless request line": (431, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "impossible expectation": (417, post("Expect: a-pony", "Content-Length: 5", body="hello")),
}

# As above; that the body is bad shows only when it is read.
BAD_BODIES: dict[str, tuple[int, bytes]] = {
    "chunk size with a prefix": (400, post(CHUNKED, body="0x5\r\nhello\r\n0\r\n\r\n")),
    "chunk size with an underscore": (400, post(CHUNKED, body="1_0\r\nhello\r\n0\r\n\r\n")),
    "negative chunk size": (400, post(CHUNKED, body="-1\r\nhello\r\n0\r\n\r\n")),
    "chunk size above 2^64": (400, post(CHUNKED, body="10000000000000005\r\nhello\r\n0\r\n\r\n")),
    "chunk line with bare LF": (400, post(CHUNKED, body="5\nhello\r\n0\r\n\r\n")),
    "chunk line with bare CR": (400, post(CHUNKED, body="5\rXhello\r\n0\r\n\r\n")),
    "chunk that is too long": (400, post(CHUNKED, body="5\r\nhello!\r\n0\r\n\r\n")),
    "chunk without its end": (400, post(CHUNKED, body="5\r\nhello0\r\n\r\n")),
    "last chunk with bare LF": (400, post(CHUNKED, body="0\r\n\n")),
    "Content-Length as a trailer": (400, post(CHUNKED, body="0\r\nContent-Length: 5\r\n\r\n")),
    "bad trailer": (400, post(CHUNKED, body="0\r\nX : y\r\n\r\n")),
    "too many trailers": (431, post(CHUNKED, body="0\r\n" + "X: y\r\n" * 501 + "\r\n")),
}


@pytest.mark.parametrize("handler", [report, glance], ids=["handler reads", "handler does not"])
@pytest.mark.parametrize("before", [b"", OK, OK * 3], ids=["alone", "behind one", "behind three"])
def test_bad_requests_over_sockets(handler: Any, before: bytes, run: Run) -> None:
    # The names of all that fail, so that one run shows everything.
    async def one(s: Any, name: str) -> str:
        status, bad = {**BAD, **BAD_BODIES}[name]
        client = await s.client()
        await client.send(before + bad + BEHIND)
        wire = await asyncio.wait_for(client.rest(), 5)  # rest: it must end, and not with a reset
        client.close()
        answers = parse_all(wire)
        good, last = answers[:-1], answers[-1]
        if [a.status for a in good] != [200] * before.count(b"GET") or not all(
            b"/first" in a.body for a in good
        ):
            return f"{name}: the good ones before were answered {[a.status for a in good]}"
        if b"/smuggled" in wire:
            return f"{name}: what was behind it was served"
        if last.get("Connection") != "close":
            return f"{name}: does not say that it closes"
        if handler is glance and name in BAD_BODIES:
            status = 200  # it answers without a look
        if last.status != status:
            return f"{name}: {last.status} for {status}"
        if b"Host: a" in last.body or b"hello" in last.body:
            return f"{name}: the client's bytes are sent back"
        return ""

    async def scenario() -> list[str]:
        async with serving(handler) as s:
            return [fault for name in (*BAD, *BAD_BODIES) if (fault := await one(s, name))]

    faults = run(scenario(), timeout=60)
    assert not faults, "\n".join(faults)


def test_a_slow_bad_request_is_answered_before_its_end(run: Run) -> None:
    # What cannot become right is refused at once, not when the rest comes, which may be never.
    async def scenario() -> None:
        async with serving(report, read_header_timeout=None) as s:
            for beginning in (
                b"\x16\x03\x01",
                b"\nGET",
                b"GET / HTTP/1.1\n",
                b"GET / HTTP/1.1\r\nA\rB",
                b" ",
            ):
                client = await s.client()
                await client.send(beginning)
                assert (await asyncio.wait_for(client.answer(), 5)).status == 400
                assert await client.closed()

    run(scenario())


# --- segments -------------------------------------------------------------------------------

GOOD_STREAMS: dict[str, bytes] = {
    "one": OK,
    "three": OK + b"GET /wait HTTP/1.1\r\nHost: a\r\nFoo: bar\r\n\r\n" + OK,
    "methods": b"".join(
        b"%b /wait/%b?q=%%41 HTTP/1.1\r\nhost: a\r\n\r\n" % (method, method)
        for method in (b"GET", b"HEAD", b"FOO", b"OPTIONS", b"DELETE")
    ),
    "length": post("Content-Length: 11", body="hello\r\n\r\nhi") + OK,
    "length of nothing": post("Content-Length: 0") + OK,
    "chunks": post(CHUNKED, body="5\r\nhello\r\n6;a=b\r\n\r\n\r\n\r\n\r\n0\r\n\r\n") + OK,
    "trailers": post(CHUNKED, "Trailer: X-A", body="1\r\na\r\n0\r\nX-A: b\r\nX-Host: c\r\nHost: evil\r\n\r\n")
    + OK,
    "bodies": post("Content-Length: 3", body="abc", line="PUT /wait HTTP/1.1") * 3 + OK,
    "close": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + OK,
    "close with a body": post("Connection: close", "Content-Length: 3", body="abc") + OK,
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n" + OK,
    "HTTP/1.0, kept": b"GET /%41 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2 + OK,
    "blank line behind a POST": post("Content-Length: 3", body="abc\r\n") + OK,
    "blank lines behind a POST": post("Content-Length: 3", body="abc\r\n\r\n")
    + post("Content-Length: 1", body="d\n")
    + OK,
    "blank line behind a POST without a body": post() + b"\r\n" + OK,
    "blank line behind a POST that waits": post(
        "Content-Length: 3", body="abc\r\n", line="POST /wait HTTP/1.1"
    )
    + OK,
    "blank line behind chunks": post(CHUNKED, body="1\r\na\r\n0\r\n\r\n\r\n") + OK,
    "upgrade": post("Connection: upgrade", "Upgrade: websocket", "Content-Length: 36", body=BEHIND.decode())
    + OK,
    "upgrade with chunks": post("Connection: upgrade", "Upgrade: x", CHUNKED, body="1\r\na\r\n0\r\n\r\n")
    + OK,
    "CONNECT": b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\n\r\nabc" + OK,
    "absolute": b"GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n" + OK,
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n" + OK,
    "expects": post("Expect: 100-continue", "Content-Length: 3", body="abc") + OK,
    "unfinished head": OK + b"GET /second HTTP/1.1\r\nHost:",
    "unfinished body": post("Content-Length: 5", body="abc"),
    "unfinished chunk": post(CHUNKED, body="5\r\nabc"),
    "large": post("X: " + "y" * 3000, "Content-Length: 5000", body="z" * 5000) + OK,
}
BAD_STREAMS = {
    **{name: OK + bad + BEHIND for name, (_, bad) in (BAD | BAD_BODIES).items() if len(bad) < 8000},
    "five blank bytes behind a POST": post("Content-Length: 3", body="abc\r\n\r\n\r") + BEHIND,
    "blank line behind a GET": OK + b"\r\n" + BEHIND,
    "garbage behind a body": post("Content-Length: 3", body="abcX\0") + BEHIND,
    "length that is too short": post("Content-Length: 3", body="abcdef") + b"\r\n" + BEHIND,
    "two faults": b"GET / HTTP/2.0\r\nHost: a\r\nX : b\nc: d\r\n\r\n",
    "two other faults": b"GET / HTTP/1.1\r\nX : b\r\nHost: a\nc: d\r\n\r\n",
    "three faults": b"GET / HTTP/9.9\r\nX\rY: b\r\nHost: a/\r\nHost: a\nc: d\r\n\r\n",
}


def cuts(data: bytes, count: int, rng: random.Random) -> list[list[bytes]]:
    """The data whole, byte by byte, cut once at `count` places, and at `count` random sets of places."""
    found = [[data], [data[i : i + 1] for i in range(len(data))]]
    places = range(1, len(data)) if len(data) <= count else rng.sample(range(1, len(data)), count)
    found += [[data[:place], data[place:]] for place in places]
    for _ in range(count):
        edges = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(rng.randint(1, 6)))})
        found.append([data[a:b] for a, b in itertools.pairwise(edges)])
    return found


async def outcome(server: http.Server, pieces: list[bytes], *, eof: bool) -> tuple[bytes, str]:
    """What is written, 100 Continue left out, and what the connection does then."""
    wire = Wire(server)
    await wire.feed(*pieces)
    if eof:
        await wire.eof()
    result = wire.written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""), wire.state
    await wire.lose()
    return result


STREAMS = {**{f"good: {name}": data for name, data in GOOD_STREAMS.items()}, **BAD_STREAMS}


@pytest.mark.parametrize("eof", [False, True], ids=["stays", "half-closes"])
@pytest.mark.parametrize("name", STREAMS)
def test_the_cuts_between_segments_do_not_matter(name: str, eof: bool, run: Run) -> None:
    data = STREAMS[name]

    async def scenario() -> None:
        async with socketless(report) as server:
            want = await outcome(server, [data], eof=eof)
            parse_all(want[0])
            assert b"/smuggled" not in want[0].replace(BEHIND, b"").replace(repr(BEHIND)[2:-1].encode(), b"")
            for pieces in cuts(data, 30 if eof else 100, random.Random(name)):
                got = await outcome(server, pieces, eof=eof)
                assert got == want, f"cut into {pieces if len(pieces) < 9 else 'bytes'}"

    run(scenario(), timeout=60)


# Here it matters: a connection that ends while the client sends must linger, and a client that
# waits for 100 Continue and does not get it may, or may not, send the body.
CUTS_MATTER = {"good: close with a body", "good: expects"}


@pytest.mark.parametrize(
    "name", [f"good: {name}" for name in GOOD_STREAMS if f"good: {name}" not in CUTS_MATTER]
)
def test_nor_for_a_handler_that_does_not_read(name: str, run: Run) -> None:
    data = STREAMS[name]

    async def scenario() -> None:
        async with socketless(glance) as server:
            want = await outcome(server, [data], eof=False)
            for pieces in cuts(data, 30, random.Random(name)):
                got = await outcome(server, pieces, eof=False)
                assert got == want, f"cut into {pieces if len(pieces) < 9 else 'bytes'}"

    run(scenario(), timeout=60)


# --- garbage --------------------------------------------------------------------------------

SCRAPS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b"\r\n\r\n",
        b"\xff",
        b"%",
        b"\x0b",
        b",",
        b";",
        b"-1",
        b"0x",
    ),
    *(b"Host: b\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(
        b"Expect: 100-continue\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b" HTTP/1.0",
        b"HTTP/2.0",
        b"POST / HTTP/1.1\r\n",
    ),
    *(b"Upgrade: x\r\nConnection: upgrade\r\n", b"9" * 20, b"\r\n folded", b"GET http://x/", b"CONNECT x:1"),
]


def damaged(rng: random.Random, corpus: list[bytes]) -> bytes:
    data = bytearray(b"".join(rng.choices(corpus, k=rng.randint(1, 3))))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        how = rng.randrange(5)
        if how == 0 and place < len(data):
            data[place] = rng.randrange(256)
        elif how == 1:
            del data[place : place + rng.randint(1, 8)]
        elif how == 2:
            data[place:place] = rng.choice(SCRAPS)
        elif how == 3:
            other = rng.randrange(len(data) + 1)
            data[place:place] = data[other : other + rng.randint(1, 20)]
        else:
            del data[place:]
    return bytes(data)


async def fuzz(rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    corpus = [
        data
        for data in (*GOOD_STREAMS.values(), *(bad for _, bad in (BAD | BAD_BODIES).values()))
        if len(data) < 2000
    ]
    loop_faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_faults.append(context))
    async with socketless(report) as reading, socketless(glance) as glancing:
        for number in range(rounds):
            server = glancing if number % 4 == 0 else reading
            data = damaged(rng, corpus)
            edges = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.randint(0, 3)))})
            wire = Wire(server)
            try:
                await wire.feed(*[data[a:b] for a, b in itertools.pairwise(edges)])
                if rng.randrange(2):
                    await wire.eof()
                    assert wire.state in ("closed", "ended"), "a client that is gone is let go"
                answers = parse_all(wire.written)
                for answer in answers[:-1]:
                    if answer.status >= 200:
                        assert answer.get("Connection") != "close", (
                            "something was served behind the last answer"
                        )
                for answer in answers:
                    assert answer.status in (100, 200, 400, 405, 413, 417, 431, 501, 505), answer.status
                await wire.lose()
                assert not server.open_connections
                assert not server.active_connections
            except BaseException as error:
                error.add_note(f"seed {seed}, round {number}: {data!r} cut at {edges}")
                raise
            assert not loop_faults, (data, loop_faults)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_requests_end_in_whole_answers(seed: int, run: Run) -> None:
    run(fuzz(700, seed), timeout=120)


# --- measured vectors -----------------------------------------------------------------------


def _judge() -> Any:
    """The functions of the script that judges a running server."""
    source = (VECTORS / "run_requests.py").read_text().rpartition("asyncio.run(main())")[0]
    judge = types.ModuleType("run_requests")
    spec = importlib.util.spec_from_file_location("loader", VECTORS / "loader.py")
    assert spec is not None
    assert spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    before = sys.modules.get("loader")
    sys.modules["loader"] = loader
    try:
        exec(compile(source, str(VECTORS / "run_requests.py"), "exec"), judge.__dict__)
    finally:
        del sys.modules["loader"]
        if before is not None:
            sys.modules["loader"] = before
    return judge


@functools.cache
def _rows() -> dict[str, Any]:
    if not (VECTORS / "http1_bad_requests.json").exists():
        return {}
    return {row["name"]: row for row in _judge().load("http1_bad_requests.json")}


@functools.cache
def _verdicts() -> dict[str, str]:
    """Every row against a server of our own, judged."""
    judge = _judge()

    async def describe(w: http.ResponseWriter, r: http.Request) -> None:
        body = await r.body.read()
        foo = r.header.get("Foo")
        w.header["Content-Type"] = "text/plain"
        w.write(f"PATH={r.request_uri} HOST={r.host} FOO={foo!r} BODY={len(body)}:{body[:60]!r}\n")

    async def main() -> dict[str, str]:
        gate = asyncio.Semaphore(120)
        verdicts: dict[str, str] = {}
        server = http.Server("", describe)
        listener = listen("127.0.0.1:0")
        port = listener.getsockname()[1]

        async def one(name: str, row: dict[str, Any]) -> None:
            async with gate:
                result = await judge.one("127.0.0.1", port, row, 1.0)
                verdict = judge.judge(row, result)
                if verdict != "ok":
                    verdict += f": expected {row['expect']}, got {result['codes']} {result['data'][:200]!r}"
                verdicts[name] = verdict

        try:
            server.start([listener])
            await asyncio.gather(*[one(name, row) for name, row in _rows().items()])
        finally:
            server.close()
            listener.close()
        await settle()
        return verdicts

    return asyncio.run(main())


@pytest.mark.parametrize("name", list(_rows()) or ["none"])
def test_vectors_of_bad_requests(name: str) -> None:
    if not _rows():
        pytest.skip(f"no vectors in {VECTORS}")
    assert _verdicts()[name] == "ok"


def test_every_vector_is_refused_alike_in_any_segments(run: Run) -> None:
    if not _rows():
        pytest.skip(f"no vectors in {VECTORS}")
    judge = _judge()
    faults: list[str] = []
    count = 0

    async def scenario() -> None:
        nonlocal count
        async with socketless(report) as server:
            for name, row in _rows().items():
                data = judge.raw_bytes(row)
                if len(data) > 4096:
                    continue
                count += 1
                eof = row.get("after") == "eof"
                want = await outcome(server, [data], eof=eof)
                for pieces in cuts(data, 10, random.Random(name)):
                    got = await outcome(server, pieces, eof=eof)
                    if got != want:
                        faults.append(
                            f"{name}: {want} but {got} for {pieces if len(pieces) < 9 else 'bytes'}"
                        )
                        break

    run(scenario(), timeout=120)
    assert not faults, f"{len(faults)} of {count} rows:\n" + "\n".join(faults)
    assert count > 200
