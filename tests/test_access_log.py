"""The access log: every format says what it promises, no client forges a line, no reader stops the server."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import http, log
from prefork.http.server.access import AccessRecord
from prefork.log import atoms, escape, writer
from prefork.log.formats import compile_format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_spec = importlib.util.spec_from_file_location(
    "helpers_server", Path(__file__).with_name("helpers_server.py")
)
assert _spec is not None
assert _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)


@dataclass
class Stream:
    fd: int

    def fileno(self) -> int:
        return self.fd


@dataclass
class Record:
    """An AccessRecord."""

    remote_addr: str = "127.0.0.1:53122"
    method: str = "GET"
    target: str = "/ping"
    proto: str = "HTTP/1.1"
    host: str = "example.com"
    status: int = 200
    bytes_written: int = 4
    start: float = 1763859600.75
    duration: float = 0.000087
    pattern: str = "GET /ping"
    referer: str = ""
    user_agent: str = "curl/8.5"
    user: str = ""
    request_id: str = "9f86d081884c7d65-1a"
    request: dict[str, str] = field(default_factory=dict)
    response: dict[str, str] = field(default_factory=dict)

    def request_header(self, name: str) -> str:
        return self.request.get(name.lower(), "")

    def response_header(self, name: str) -> str:
        return self.response.get(name.lower(), "")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):  # a test may have closed it
            os.close(fd)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What the logger "prefork.access" says."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("prefork.access")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def fill(fd: int) -> None:
    """Fill the pipe behind `fd`, through a description of its own."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(own, b"#" * 4095 + b"\n")
    os.close(own)


def empty(fd: int) -> str:
    """Everything in the pipe now, but for what filled it."""
    os.set_blocking(fd, False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(fd, 1 << 20):
            data += chunk
    os.set_blocking(fd, True)
    return re.sub("#+\n", "", data.decode())


# --- combined -------------------------------------------------------------------------------

FIELD = r'(?:[^"\\]|\\x[0-9A-F]{2})*'
LINE = re.compile(
    r"(?P<host>[!-~]+) - (?P<user>[!-~]+) \[(?P<time>[^]]+)\] "
    rf'"(?P<request>{FIELD})" (?P<status>\d+) (?P<size>\d+) '
    rf'"(?P<referer>{FIELD})" "(?P<agent>{FIELD})" '
    r"(?P<took>\d+\.\d{6})\n"
)
combined = compile_format()


def unescaped(text: str) -> str:
    data = re.sub(r"\\x(..)", lambda match: chr(int(match[1], 16)), text).encode("latin-1")
    return data.decode("utf-8", "surrogatepass")


@pytest.mark.usefixtures("utc")
def test_combined_format_and_duration(pipe: tuple[int, int]) -> None:
    access = log.access_logger(Stream(pipe[1]))
    access(Record())
    access(
        Record(
            start=1763859661.0,
            target="/",
            referer="http://a/",
            status=404,
            bytes_written=0,
            duration=12.5,
            user="ada",
        )
    )
    access.close()
    assert empty(pipe[0]) == (
        '127.0.0.1 - - [23/Nov/2025:01:00:00 +0000] "GET /ping HTTP/1.1" 200 4 "-" "curl/8.5" 0.000087\n'
        '127.0.0.1 - ada [23/Nov/2025:01:01:01 +0000] "GET / HTTP/1.1" 404 0 "http://a/" "curl/8.5" '
        "12.500000\n"
    )


@pytest.mark.parametrize(
    ("zone", "stamp"),
    [
        ("Europe/Berlin", "23/Nov/2025:02:00:00 +0100"),
        ("XXX+3:30", "22/Nov/2025:21:30:00 -0330"),
        ("Asia/Kathmandu", "23/Nov/2025:06:45:00 +0545"),
    ],
)
def test_local_time_with_its_offset(zone: str, stamp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "/" in zone and not os.path.exists(f"/usr/share/zoneinfo/{zone}"):
        pytest.skip("no time zone database (tzdata) on this machine")
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            assert f" [{stamp}] " in compile_format()(Record())
    finally:
        time.tzset()


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.7:53122", "10.0.0.7"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("[fe80::1%eth0]:80", "fe80::1%eth0"),
        ("@", "@"),
        ("", "-"),
        ("/run/x y.sock", r"/run/x\x20y.sock"),
    ],
)
def test_hosts(address: str, host: str) -> None:
    assert combined(Record(remote_addr=address)).split(" ", 1)[0] == host


def test_escapes() -> None:
    record = Record(
        target='/a"b\\c\x00d\x7f\xe9\udcff',
        user_agent='x" 200 0 "-" "forged\n127.0.0.1',
        referer="\u20ac\ud800",
        user="ada - [now] x",
    )
    line = combined(record)
    assert r'"GET /a\x22b\x5Cc\x00d\x7F\xC3\xA9\xFF HTTP/1.1"' in line
    assert r'"x\x22 200 0 \x22-\x22 \x22forged\x0A127.0.0.1"' in line
    assert r'"\xE2\x82\xAC\xED\xA0\x80"' in line
    assert r" - ada\x20-\x20[now]\x20x [" in line
    assert line.count("\n") == 1


def test_a_request_that_could_not_be_read_is_a_dash() -> None:
    record = AccessRecord.of_refusal("127.0.0.1:1", 400, 15)
    assert '] "-" 400 15 "-" "-" 0.000000\n' in combined(record)
    assert json.loads(compile_format("json")(record))["target"] == ""


texts = st.text()


@given(texts, texts, texts, texts, texts)
def test_any_request_gives_one_line_that_parses(
    method: str, target: str, referer: str, agent: str, user: str
) -> None:
    record = Record(method=method, target=target, referer=referer, user_agent=agent, user=user)
    line = combined(record)
    match = LINE.fullmatch(line)
    assert match is not None, line
    if method:
        wanted = " ".join(text or "-" for text in (method, target, "HTTP/1.1"))
        if not any("\udc80" <= char <= "\udcff" for char in wanted):
            assert unescaped(match["request"]) == wanted


# --- formats of atoms -----------------------------------------------------------------------


@pytest.mark.usefixtures("utc")
@pytest.mark.parametrize(
    ("atom", "shown"),
    [
        ("h", "10.0.0.7"),
        ("l", "-"),
        ("u", "ada"),
        ("t", "[23/Nov/2025:01:00:00 +0000]"),
        ("r", "PUT /a%20b?c=d HTTP/1.0"),
        ("m", "PUT"),
        ("U", "/a%20b"),
        ("q", "c=d"),
        ("H", "HTTP/1.0"),
        ("s", "201"),
        ("B", "0"),
        ("b", "-"),
        ("f", "http://a/?b"),
        ("a", "curl/8.5"),
        ("T", "12"),
        ("D", "12345678"),
        ("M", "12345"),
        ("L", "12.345678"),
        ("p", f"<{os.getpid()}>"),
        ("pattern", "PUT\\x20/{path...}"),
        ("worker", "-"),
        ("request_id", "id-1"),
        ("{X-Forwarded-For}i", "1.2.3.4,\\x205.6.7.8"),
        ("{x-none}i", "-"),
        ("{Content-Type}o", "text/plain;\\x20charset=utf-8"),
        ("{REQUEST_METHOD}e", "PUT"),
        ("{HTTP_X_FORWARDED_FOR}e", "1.2.3.4,\\x205.6.7.8"),
        ("{PATH_INFO}e", "/a%20b"),
        ("{QUERY_STRING}e", "c=d"),
        ("{SERVER_PROTOCOL}e", "HTTP/1.0"),
        ("{REMOTE_ADDR}e", "10.0.0.7"),
        ("{REMOTE_USER}e", "ada"),
        ("{CONTENT_TYPE}e", "a/b"),
        ("{CONTENT_LENGTH}e", "3"),
        ("{DEPLOYMENT}e", "blue\\x201"),
        ("{NOT_SET}e", "-"),
    ],
)
def test_atoms(atom: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYMENT", "blue 1")
    monkeypatch.delenv("NOT_SET", raising=False)
    record = Record(
        remote_addr="10.0.0.7:1",
        method="PUT",
        target="/a%20b?c=d",
        proto="HTTP/1.0",
        status=201,
        bytes_written=0,
        duration=12.3456783,
        pattern="PUT /{path...}",
        referer="http://a/?b",
        user="ada",
        request_id="id-1",
        request={"x-forwarded-for": "1.2.3.4, 5.6.7.8", "content-type": "a/b", "content-length": "3"},
        response={"content-type": "text/plain; charset=utf-8"},
    )
    assert compile_format(f"%({atom})s")(record) == shown + "\n"
    quoted = compile_format(f'"%({atom})s"')(record)
    assert quoted == f'"{shown}"\n'.replace("\\x20", " ")


def test_every_atom_is_known_to_the_compiler() -> None:
    for name in atoms.ATOMS:
        assert compile_format(f"%({name})s")(Record()).endswith("\n")


def test_gunicorns_own_format() -> None:
    """The default of its access_log_format."""
    line = compile_format('%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"')
    assert re.fullmatch(
        r'127\.0\.0\.1 - - \[.+\] "GET /ping HTTP/1\.1" 200 4 "-" "curl/8\.5"\n', line(Record())
    )


def test_literal_text_stands_for_itself() -> None:
    line = compile_format('100%% {r.status} {{}} \\n \'a\' """ é\t%(s)s{_stamp}%%(s)s')
    assert line(Record()) == '100% {r.status} {{}} \\n \'a\' """ é\t200{_stamp}%(s)s\n'


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a?b?c", "/a", "b?c"),
        ("/", "/", ""),
        ("*", "*", ""),
        ("http://h:80/a/b?c=http://d/", "/a/b", "c=http://d/"),
        ("http://h", "/", ""),
        ("h:443", "h:443", ""),
        ("/a://b?c", "/a://b", "c"),
    ],
)
def test_path_and_query(target: str, path: str, query: str) -> None:
    assert compile_format("%(U)s?%(q)s")(Record(target=target)) == f"{path}?{query}\n"


def test_what_would_end_a_field_is_escaped() -> None:
    evil = 'a b|c;d,e]f"g\th'
    record = Record(user_agent=evil, method="M|M")
    line = compile_format("%(m)s|%(a)s|[%(a)s];%(a)s,\"%(a)s\"\t'%(a)s'")(record)
    assert (
        line
        == (
            r"M\x7CM|a\x20b\x7Cc;d,e]f\x22g\x09h|[a\x20b|c;d,e\x5Df\x22g\x09h];"
            r"a\x20b|c;d\x2Ce]f\x22g\x09h,"
            + r'"a b|c;d,e]f\x22g\x09h"'
            + "\t"
            + r"'a\x20b|c;d,e]f\x22g\x09h'"
        )
        + "\n"
    )
    assert compile_format('"%(m)s %(a)s"')(record) == r'"M|M a b|c;d,e]f\x22g\x09h"' + "\n"
    assert compile_format('"%(a)s %(m)s"')(record) == r'"a\x20b|c;d,e]f\x22g\x09h M|M"' + "\n"


@given(st.text(alphabet=st.characters(codec="ascii")), texts)
def test_fields_with_a_separator_of_ones_own_can_be_split(separator: str, text: str) -> None:
    separator = "".join(char for char in separator if char in "|;,:/\t !$'#~^")[:3] or "|"
    line = compile_format(f"%(a)s{separator}%(s)s")(Record(user_agent=text))
    value, _, rest = line.partition(separator[0])
    assert rest == separator[1:] + "200\n"
    if text and not any("\udc80" <= char <= "\udcff" for char in text):
        assert unescaped(value) == text


@pytest.mark.parametrize(
    ("format", "problem"),
    [
        ("%(x)s", r"there is no atom %\(x\)s; there are: h l u t r m U q H s B b f a T D M L p .*{Header}i"),
        ("%(REQUEST)s", r"there is no atom %\(REQUEST\)s"),
        ("%(h)d", r"'%\(h\)d' is no atom; one is written %\(h\)s, a percent sign %%"),
        ("%(h)s 5%", "'%' is no atom"),
        ("%h %l", "'%h ' is no atom"),
        ("%{X}i", "is no atom"),
        ("%({X}x)s", "is no atom"),
        ("jsno", "there is no format 'jsno'"),
        ("", "there is no format ''"),
        ("%(h)s\n%(m)s", r"a format is one line of text, and '\\n' is not for that"),
        ("%(h)s\x00", "is one line of text"),
    ],
)
def test_formats_that_are_none(format: str, problem: str, pipe: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=problem):
        compile_format(format)
    with pytest.raises(ValueError, match=problem):
        log.access_logger(Stream(pipe[1]), format=format)


def test_names_of_formats_in_any_case() -> None:
    assert json.loads(compile_format("JSON")(Record()))["status"] == 200


# --- JSON and logfmt ------------------------------------------------------------------------


def test_json() -> None:
    line = compile_format("json")(Record(referer='a"b', target="/é?\n"))
    assert line.isascii()
    assert line.endswith("}\n")
    found = json.loads(line)
    assert list(found.items()) == [
        ("time", "2025-11-23T01:00:00.750000Z"),
        ("level", "info"),
        ("logger", "prefork.access"),
        ("worker", None),
        ("pid", os.getpid()),
        ("request_id", "9f86d081884c7d65-1a"),
        ("remote", "127.0.0.1"),
        ("method", "GET"),
        ("target", "/é?\n"),
        ("proto", "HTTP/1.1"),
        ("host", "example.com"),
        ("pattern", "GET /ping"),
        ("status", 200),
        ("bytes", 4),
        ("duration", 0.000087),
        ("referer", 'a"b'),
        ("user_agent", "curl/8.5"),
    ]


def test_logfmt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefork.log.origin._worker", 2)
    assert compile_format("logfmt")(Record(target="/?a=b", user_agent='a "b"')) == (
        f"time=2025-11-23T01:00:00.750000Z level=info logger=prefork.access worker=2 pid={os.getpid()} "
        'request_id="9f86d081884c7d65-1a" remote=127.0.0.1 method=GET target="/?a=b" proto=HTTP/1.1 '
        'host=example.com pattern="GET /ping" status=200 bytes=4 duration=0.000087 referer="" '
        'user_agent="a \\"b\\""\n'
    )


structured = {name: compile_format(name) for name in ("json", "logfmt")}
PAIR = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[!#-<>-\[\]-~]*)( |\n)')


@given(texts, texts, texts, texts, texts, texts)
def test_any_request_gives_one_object_and_one_row(
    method: str, target: str, host: str, agent: str, pattern: str, referer: str
) -> None:
    record = Record(
        method=method, target=target, host=host, user_agent=agent, pattern=pattern, referer=referer
    )
    line = structured["json"](record)
    assert line.isascii()
    assert line[:-1].isprintable()
    found = json.loads(line)
    row = structured["logfmt"](record)
    assert "".join(match[0] for match in PAIR.finditer(row)) == row
    pairs = {name: json.loads(value) if value[0] == '"' else value for name, value, _ in PAIR.findall(row)}
    assert list(pairs) == [name for name in found if name != "worker"]
    for name in ("method", "target", "host", "pattern", "referer", "user_agent"):
        wanted = re.sub("[\ud800-\udfff]", "\ufffd", getattr(record, name))
        assert found[name] == wanted
        assert pairs[name] == wanted


def test_what_is_remembered_is_bounded() -> None:
    calls: list[str] = []

    def upper(text: str) -> str:
        calls.append(text)
        return text.upper()

    escaper = escape.Escaper(upper)
    assert [escaper["a"], escaper["a"]] == ["A", "A"]
    assert calls == ["a"]
    for number in range(5000):
        assert escaper[f"n{number}"] == f"N{number}"
    assert len(escaper) <= 1024
    assert escaper["x" * 100_000] == "X" * 100_000
    assert max(map(len, escaper)) < 1000


# --- the record -----------------------------------------------------------------------------


def received(*lines: str, request_line: str = "GET / HTTP/1.1") -> AccessRecord:
    request = http.Request("GET", "http://test/")
    request._head = "\r\n".join([request_line, *lines, "", ""])
    request._header = None
    return AccessRecord(request, 200, 0, 0.0)


names = st.sampled_from(["Referer", "User-Agent", "x-request-id", "X-A", "x-a", "Host-X", "Xreferer"])
values = st.text(st.characters(blacklist_characters="\r\n\0", codec="utf-8") | st.sampled_from("İ\udcff:"))


@given(st.lists(st.tuples(names, values), max_size=6))
def test_header_of_the_request_is_what_was_received(fields: list[tuple[str, str]]) -> None:
    record = received(*[f"{name}: {value}" for name, value in fields])
    header = http.Request("GET", "/").header
    for name, value in fields:
        header.add(name, value.strip(" \t"))
    for name in ("Referer", "user-agent", "X-REQUEST-ID", "x-a", "host-x", "none", "a"):
        assert record.request_header(name) == header.get(name, "")
    assert (record.referer, record.user_agent) == (header.get("Referer", ""), header.get("User-Agent", ""))


def test_header_of_a_request_made_by_a_program() -> None:
    record = AccessRecord(http.Request("GET", "/", header={"Referer": "ref", "X-A": "1"}), 200, 0, 0.0)
    assert (record.referer, record.request_header("x-a"), record.user_agent) == ("ref", "1", "")


def test_user_of_basic_authentication() -> None:
    assert received("Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==").user == "Aladdin"
    assert received("Authorization: Bearer x").user == ""
    assert received().user == ""


@pytest.mark.parametrize(
    "id", ["4bf92f3577b34da6a3ce929d0e0e4736", "Root=1-67891233-abcdef", "a/b+c==", "x" * 128]
)
def test_a_request_id_of_the_request_is_kept(id: str) -> None:
    record = received(f"x-request-ID:  {id}")
    assert record.request_id == id


@pytest.mark.parametrize("id", ["", "a b", 'a"b', "x" * 129, "é", "a\\b", "<script>", "a{b", "٣"])
def test_another_request_id_is_replaced(id: str) -> None:
    record = received(f"X-Request-Id: {id}")
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", record.request_id)
    assert record.request_id == record.request_id


def test_request_ids_are_unique_also_in_a_forked_child() -> None:
    mine = [received().request_id for _ in range(1000)]
    assert len(set(mine)) == 1000
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, received().request_id.encode())
        os._exit(0)
    os.waitpid(child, 0)
    others = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert others.split("-")[0] != mine[0].split("-")[0]


def test_a_record_of_the_server(run: Callable[..., Any]) -> None:
    """What a handler has set of the response, and what came with the request."""
    records: list[AccessRecord] = []
    mux = http.ServeMux()

    @mux.handle_func("GET /items/{id}")
    def item(w: http.ResponseWriter, r: http.Request) -> None:
        w.header["X-Cache"] = "hit"
        w.write(b"pong")

    async def main() -> None:
        async with helpers.serving(mux, access_log=records.append) as s:
            client = await s.client()
            await client.get("/items/7", "X-A: 1", "X-Request-Id: abc")
            await client.get("/else")

    run(main())
    line = compile_format("%({X-Cache}o)s %({X-None}o)s %({x-a}i)s %({host}i)s %(request_id)s %(pattern)s")
    assert line(records[0]) == "hit - 1 test abc GET\\x20/items/{id}\n"
    assert re.fullmatch(r"- - - test [0-9a-f]{16}-[0-9a-f]+ -\n", line(records[1]))


# --- the writer -----------------------------------------------------------------------------


def wait_for(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return result


def read_some(fd: int) -> str:
    """What comes, at least a line."""
    text = ""
    while not text.endswith("\n"):
        text += os.read(fd, 1 << 20).decode()
    return text


def test_lines_come_by_themselves(pipe: tuple[int, int]) -> None:
    access = log.access_logger(Stream(pipe[1]))
    for number in range(3):
        access(Record(target=f"/{number}"))
        assert f'"GET /{number} HTTP/1.1"' in read_some(pipe[0])  # nobody calls flush or close
    access.close()


def test_all_lines_in_their_order(pipe: tuple[int, int]) -> None:
    access = log.access_logger(Stream(pipe[1]), format="%(U)s")
    got: list[str] = []

    def read() -> None:
        with open(os.dup(pipe[0])) as file:
            got.extend(file)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(20_000):
        access(Record(target=f"/{number}"))
    access.close()
    os.close(pipe[1])
    reader.join(10)
    assert [int(line[1:]) for line in got] == list(range(20_000))
    assert access.lost == 0


def test_a_stalled_reader_neither_blocks_nor_grows(pipe: tuple[int, int], told: list[str]) -> None:
    access = log.access_logger(Stream(pipe[1]), format="%(U)s")
    fill(pipe[1])
    record = Record(target="/" + "x" * 999)
    slowest = 0.0
    for _ in range(2000):
        begin = time.monotonic()
        access(record)
        slowest = max(slowest, time.monotonic() - begin)
    assert slowest < 0.5
    assert os.get_blocking(pipe[1]), "the flags of a shared descriptor are not ours to change"
    lost = access.lost
    assert 0.9 * writer.BUFFER < (2000 - lost) * 1001 < writer.BUFFER + 1001
    wait_for(lambda: told == ["access log lines are being lost: what reads them is too slow"])
    got = 0
    while got < 2000 - lost:
        got += empty(pipe[0]).count("\n")
    wait_for(lambda: len(told) == 2)
    assert told[1] == f"{lost} access log lines are lost: what reads them is too slow"
    access(record)
    assert read_some(pipe[0]).count("\n") == 1
    access.close()
    assert access.lost == lost
    assert len(told) == 2


def test_a_disk_that_hangs_does_not_stop_the_loop(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    write = os.write

    def slow(fd: int, data: bytes) -> int:
        hangs.set()
        goes_on.wait(20)
        return write(fd, data)

    access = log.access_logger(path=str(tmp_path / "log"), format="%(U)s")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", slow)
        access(Record(target="/1"))
        assert hangs.wait(10)
        begin = time.monotonic()
        access(Record(target="/2"))
        assert time.monotonic() - begin < 1
        goes_on.set()
        access.close()
    assert (tmp_path / "log").read_text() == "/1\n/2\n"


def test_a_reader_that_is_gone(pipe: tuple[int, int], told: list[str]) -> None:
    access = log.access_logger(Stream(pipe[1]))
    os.close(pipe[0])
    access(Record())
    wait_for(lambda: told == ["access log lines are being lost: Broken pipe"])
    access(Record())
    access.close()
    assert access.lost == 2
    access(Record())  # lost, and nothing else
    assert access.lost == 3
    assert len(told) == 1


def test_losses_are_not_told_all_the_time(
    pipe: tuple[int, int], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full now and then."""
    state = {"full": True, "writes": 0}
    real = os.write

    def write(fd: int, data: bytes) -> int:
        state["writes"] += 1
        if state["full"]:
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(writer, "GATHER", 0.0)
    monkeypatch.setattr(writer, "QUIET", 0.5)
    access = log.access_logger(Stream(pipe[1]))
    begin = time.monotonic()
    for _ in range(20):
        for full in (True, False):
            state.update(full=full, writes=0)
            access(Record())
            wait_for(lambda: state["writes"])
    took = time.monotonic() - begin
    assert access.lost == 20
    # The rest is told when it is due, also when there is no further line.
    wait_for(lambda: sum(int(text.split()[0]) for text in told if text[0].isdigit()) == 20)
    access.close()
    assert len(told) <= 2 * (2 + took / 0.5)
    assert told[:2] == [
        "access log lines are being lost: No space left on device",
        "1 access log lines are lost: No space left on device",
    ]


def test_a_full_disk(told: list[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what fits is written: half a line is ended before the next one, and counted."""
    real = os.write
    room = [25]

    def write(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        data = data[: room[0]]
        room[0] -= len(data)
        return real(fd, data)

    access = log.access_logger(path=str(tmp_path / "log"), format="%(U)s")
    monkeypatch.setattr(os, "write", write)
    for number in range(5):
        access(Record(target=f"/line-{number}"))  # 8 bytes each
    wait_for(lambda: access.lost == 2)
    access(Record(target="/line-5"))
    wait_for(lambda: access.lost == 3)
    room[0] = 1000
    access(Record(target="/line-6"))
    access.close()
    assert (tmp_path / "log").read_text().split("\n") == ["/line-0", "/line-1", "/line-2", "/", "/line-6", ""]
    assert told == [
        "access log lines are being lost: No space left on device",
        "3 access log lines are lost: No space left on device",
    ]


def test_no_more_threads(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    access = log.access_logger(Stream(pipe[1]), format="%(U)s")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        access(Record(target="/1"))
        access(Record(target="/2"))
    access(Record(target="/3"))
    access.close()
    assert empty(pipe[0]) == "/1\n/2\n/3\n"


def test_a_forked_child_writes_its_own_lines(pipe: tuple[int, int]) -> None:
    access = log.access_logger(Stream(pipe[1]), format="%(worker)s %(p)s %(U)s")
    access(Record(target="/parent"))
    parent = read_some(pipe[0])
    fill(pipe[1])
    access(Record(target="/waits"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn of the thread
        child = os.fork()
    if child == 0:
        empty(pipe[0])
        log.set_worker(7)
        access(Record(target="/child"))
        access.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    access.close()
    lines = (parent + empty(pipe[0])).splitlines()
    assert sorted(lines) == sorted(
        [f"- <{os.getpid()}> /parent", f"- <{os.getpid()}> /waits", f"7 <{child}> /child"]
    )


def test_the_end_of_the_process_writes_what_waits(tmp_path: Any) -> None:
    program = (
        "from prefork import log; from prefork.http.server.access import AccessRecord\n"
        "access = log.access_logger()\n"
        "for n in range(100): access(AccessRecord.of_refusal('1.2.3.4:5', n + 100, n))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert [int(line.split()[-5]) for line in done.stdout.splitlines()] == list(range(100, 200))


def test_the_journal_gets_a_priority_that_no_client_can_write(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(pipe[1])
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    for format in ("%(a)s", "json"):
        access = log.access_logger(Stream(pipe[1]), format=format)
        access(Record(user_agent="<0>panic"))
        access.close()
    first, second = empty(pipe[0]).splitlines()
    assert first == "<6><0>panic"
    assert second.startswith("<6>{")
    assert json.loads(second[3:])["user_agent"] == "<0>panic"
