"""multipart/form-data: parts, files in memory and on disk, limits, hostile bodies."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.message import multipart, multipart_reader
from prefork.http.message.body import Body
from prefork.http.message.form import FormError, NotMultipart
from prefork.http.message.multipart import MultipartForm, parse_multipart
from prefork.http.message.multipart_reader import MultipartReader, multipart_boundary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    Run = Callable[[Coroutine[Any, Any, Any]], Any]

TYPE = "multipart/form-data; boundary=xxx"


def part(disposition: str, content: bytes | str, *headers: str) -> bytes:
    head = "\r\n".join([f"Content-Disposition: {disposition}", *headers])
    return (
        f"--xxx\r\n{head}\r\n\r\n".encode()
        + (content if isinstance(content, bytes) else content.encode())
        + b"\r\n"
    )


def value(name: str, content: bytes | str) -> bytes:
    return part(f'form-data; name="{name}"', content)


def file(name: str, filename: str, content: bytes | str) -> bytes:
    return part(f'form-data; name="{name}"; filename="{filename}"', content, "Content-Type: text/plain")


END = b"--xxx--\r\n"


async def pieces(data: bytes, *sizes: int) -> AsyncIterator[bytes]:
    """`data` in pieces of the given sizes, over and over; whole without any."""
    at, turn = 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)] if sizes else len(data)
        yield data[at : at + size]
        at, turn = at + size, turn + 1


def parse(
    data: bytes, max_memory: int = 1 << 20, *sizes: int, content_type: str = TYPE
) -> Coroutine[Any, Any, MultipartForm]:
    return parse_multipart(pieces(data, *sizes), content_type, max_memory)


def error_of(
    run: Run, data: bytes, max_memory: int = 1 << 20, *sizes: int, content_type: str = TYPE
) -> FormError:
    with pytest.raises(FormError) as caught:
        run(parse(data, max_memory, *sizes, content_type=content_type))
    return caught.value


# --- what is in a form ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_values_and_files(run: Run, size: int) -> None:
    async def check() -> None:
        data = (
            value("a", "1")
            + file("f", "x.txt", "hello\r\n--xx")
            + value("a", "zwei ü")
            + value("e", "")
            + END
        )
        form = await parse(data, 1 << 20, size)
        assert form.value == {"a": ["1", "zwei ü"], "e": [""]}
        (found,) = form.file["f"]
        assert (found.filename, found.size, found.in_memory) == ("x.txt", 11, True)
        assert found.header["content-type"] == "text/plain"
        assert await found.read() == b"hello\r\n--xx"
        assert await found.read() == b"hello\r\n--xx"

    run(check())


def test_a_request_body_is_a_source(run: Run) -> None:
    async def check() -> None:
        form = await parse_multipart(Body.of(value("a", "1") + END), TYPE)
        assert form.value == {"a": ["1"]}

    run(check())


def test_an_empty_form(run: Run) -> None:
    async def check() -> None:
        form = await parse(END)
        assert (form.value, form.file) == ({}, {})
        form.remove_all()

    run(check())


@pytest.mark.parametrize(
    ("disposition", "name", "filename"),
    [
        ('form-data; name="f"; filename="a/b/c.txt"', "f", "c.txt"),
        ('form-data; name="f"; filename="../../etc/passwd"', "f", "passwd"),
        ('form-data; name="f"; filename="C:\\dir\\x.txt"', "f", "C:\\dir\\x.txt"),
        ('form-data; name="f"; filename="q\\"q"', "f", 'q"q'),
        ("form-data; name=f; filename*=utf-8''%e2%82%ac.txt", "f", "€.txt"),
        ('form-data; name="f"; filename="ü.txt"', "f", "ü.txt"),
        ('FORM-DATA; NAME="f"; FILENAME="x"', "f", "x"),
        ('form-data; name="f"; filename="/"', "f", "/"),
        ('form-data; name="f"; filename="dir/"', "f", "dir"),
    ],
)
def test_names_of_files(run: Run, disposition: str, name: str, filename: str) -> None:
    async def check() -> None:
        form = await parse(part(disposition, "x") + END)
        assert [(key, found.filename) for key, several in form.file.items() for found in several] == [
            (name, filename)
        ]

    run(check())


def test_parts_without_a_name_are_skipped(run: Run) -> None:
    async def check() -> None:
        data = (
            part("form-data", "1")
            + part('attachment; name="a"', "2")
            + part("form-data; name", "3")
            + b"--xxx\r\nX-Other: y\r\n\r\n4\r\n"
            + b"--xxx\r\n\r\n5\r\n"
            + value("b", "6")
        )
        assert (await parse(data + END)).value == {"b": ["6"]}

    run(check())


def test_an_empty_filename_is_a_value(run: Run) -> None:
    async def check() -> None:
        form = await parse(file("f", "", "1") + END)
        assert (form.value, form.file) == ({"f": ["1"]}, {})

    run(check())


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_quoted_printable(run: Run, size: int) -> None:
    async def check() -> None:
        data = (
            part('form-data; name="a"', "a=3Db=\r\nc =C3=A9=", "Content-Transfer-Encoding: Quoted-Printable")
            + END
        )
        assert (await parse(data, 1 << 20, size)).value["a"][0].startswith("a=bc é")

    run(check())


def test_bytes_that_are_no_utf8_survive(run: Run) -> None:
    async def check() -> None:
        data = (
            part('form-data; name="a"', b"\xff")
            + b'--xxx\r\nContent-Disposition: form-data; name="\xfe"\r\n\r\nx\r\n'
        )
        assert (await parse(data + END)).value == {"a": ["\udcff"], "\udcfe": ["x"]}

    run(check())


def test_preamble_and_epilogue_are_ignored(run: Run) -> None:
    async def check() -> None:
        data = b"preamble\r\n" + value("a", "1") + END + b"epilogue --xxx\r\n" * 100
        for size in (1, 5, 100_000):
            assert (await parse(data, 1 << 20, size)).value == {"a": ["1"]}

    run(check())


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=60), st.booleans()), max_size=5),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.sampled_from([0, 20, 1 << 20]),
)
def test_any_split_gives_the_same_form(
    parts: list[tuple[str, bytes, bool]], sizes: list[int], max_memory: int
) -> None:
    contents = [content.replace(b"--xxx", b"") for _, content, _ in parts]
    data = b"".join(
        file(name, "f", content) if is_file else value(name, content)
        for (name, _, is_file), content in zip(parts, contents, strict=True)
    )

    async def check() -> None:
        form = await parse(data + END, max_memory, *sizes)
        try:
            for name in "abc":
                mine = [
                    (content, is_file)
                    for (n, _, is_file), content in zip(parts, contents, strict=True)
                    if n == name
                ]
                assert form.value.get(name, []) == [
                    c.decode("utf-8", "surrogateescape") for c, f in mine if not f
                ]
                assert [await found.read() for found in form.file.get(name, [])] == [c for c, f in mine if f]
        finally:
            form.remove_all()

    asyncio.run(check())


@given(st.text(alphabet='-x\r\n ;:=ab"\0é', max_size=200))
def test_garbage_ends_in_form_error(text: str) -> None:
    async def check() -> None:
        for data in (text.encode(), b"--xxx\r\n" + text.encode(), value("a", text) + text.encode() + END):
            try:
                (await parse(data, 0, 3)).remove_all()
            except FormError:
                continue

    asyncio.run(check())


# --- files on disk --------------------------------------------------------------------------


@pytest.mark.both_loops
def test_files_over_the_memory_go_to_disk(run: Run) -> None:
    async def check() -> None:
        contents = [os.urandom(300_000), b"small", os.urandom(1_000_000), b""]
        data = b"".join(file("f", f"{n}.bin", content) for n, content in enumerate(contents)) + END
        form = await parse(data, 1000, 65_536)
        files = form.file["f"]
        assert [found.in_memory for found in files] == [False, True, False, True]
        assert [found.size for found in files] == [len(content) for content in contents]
        assert [await found.read() for found in files] == contents
        # At once, in threads, from one descriptor.
        assert await asyncio.gather(*(found.read() for found in files)) == contents
        assert repr(form) == "<MultipartForm 0 values, 4 files, 1300000 bytes on disk>"
        form.remove_all()
        form.remove_all()
        assert await files[1].read() == b"small"
        with pytest.raises(ValueError, match="removed"):
            await files[0].read()

    run(check())


def test_the_files_share_the_memory(run: Run) -> None:
    async def check() -> None:
        form = await parse(
            file("f", "1", b"x" * 60) + file("f", "2", b"y" * 60) + file("f", "3", b"z" * 40) + END, 100
        )
        assert [found.in_memory for found in form.file["f"]] == [True, False, True]
        assert await form.file["f"][1].read() == b"y" * 60
        form.remove_all()

    run(check())


@pytest.mark.parametrize("max_memory", [0, 1 << 20])
def test_an_opened_file(run: Run, max_memory: int) -> None:
    async def check() -> None:
        content = bytes(range(256)) * 2000
        form = await parse(file("f", "x", content) + END, max_memory, 10_000)
        header = form.file["f"][0]
        async with header.open() as opened:
            assert await opened.read(10) == content[:10]
            assert opened.tell() == 10
            assert opened.seek(-5, os.SEEK_END) == len(content) - 5
            assert await opened.read() == content[-5:]
            assert await opened.read() == b""
            assert opened.seek(3) == 3
            assert opened.seek(4, os.SEEK_CUR) == 7
            assert await opened.read(1) == content[7:8]
            opened.seek(10**9)
            assert await opened.read(5) == b""
            with pytest.raises(ValueError, match="before the file's start"):
                opened.seek(-1)
            opened.seek(0)
            assert b"".join([block async for block in opened]) == content
            assert await header.open().read() == content
        with pytest.raises(ValueError, match="closed"):
            await opened.read()
        form.remove_all()

    run(check())


def test_nothing_is_left_when_the_body_breaks(run: Run) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield file("f", "x", b"y" * 1_000_000)[:-100]
        raise ConnectionResetError("gone")

    async def check() -> None:
        with pytest.raises(ConnectionResetError):
            await parse_multipart(broken(), TYPE, 0)
        with pytest.raises(FormError, match="unexpected EOF"):
            await parse(file("f", "x", b"y" * 1_000_000)[:-100], 0, 65_536)

    run(check())  # descriptors are counted around every test


def test_a_cancelled_write_does_not_close_its_file_under_itself(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on, done = threading.Event(), threading.Event(), threading.Event()
    fds: list[int] = []
    pwrite = os.pwrite

    def slow_pwrite(fd: int, data: memoryview, offset: int) -> int:
        entered.set()
        assert go_on.wait(10)
        os.fstat(fd)  # still ours
        fds.append(fd)
        written = pwrite(fd, data, offset)
        done.set()
        return written

    monkeypatch.setattr(multipart.os, "pwrite", slow_pwrite)

    async def check() -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(parse(file("f", "x", b"y" * 1_000_000) + END, 0, 65_536))
        await loop.run_in_executor(None, entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await loop.run_in_executor(None, done.wait, 10)
        while True:
            try:
                os.fstat(fds[0])
            except OSError:
                break
            await asyncio.sleep(0.001)

    run(check())


def test_a_full_disk_is_an_os_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multipart.os, "pwrite", full)

    async def check() -> None:
        with pytest.raises(OSError, match="No space left"):
            await parse(file("f", "x", b"y" * 1000) + END, 0)

    run(check())


def test_short_writes_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(multipart.os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:1000], offset))

    async def check() -> None:
        content = os.urandom(10_500)
        form = await parse(file("f", "x", content) + END, 0)
        assert await form.file["f"][0].read() == content
        form.remove_all()

    run(check())


# --- the wrong type, the wrong bytes --------------------------------------------------------


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "multipart/mixed; boundary=x", "multipart/form-data; boundary="]
)
def test_not_multipart(run: Run, content_type: str) -> None:
    error = error_of(run, b"", content_type=content_type)
    assert isinstance(error, NotMultipart)
    assert (str(error), error.status_hint) == ("request Content-Type isn't multipart/form-data", 415)


@pytest.mark.parametrize(
    ("content_type", "text"),
    [
        ("multipart/form-data", "no multipart boundary param in Content-Type"),
        ('multipart/form-data; boundary=""', "multipart: invalid boundary"),
        ("multipart/form-data; boundary=" + "x" * 201, "multipart: invalid boundary"),
    ],
)
def test_boundaries(run: Run, content_type: str, text: str) -> None:
    assert str(error_of(run, b"", content_type=content_type)) == text


def test_missing_body(run: Run) -> None:
    async def check() -> None:
        with pytest.raises(FormError, match="missing form body"):
            await parse_multipart(None, TYPE)

    run(check())


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "multipart: NextPart: EOF"),
        (b"no boundary at all", "multipart: NextPart: EOF"),
        (b"--xxx\r\n", "multipart: NextPart: EOF"),
        (b'--xxx\r\nContent-Disposition: form-data; name="a"', "multipart: NextPart: EOF"),
        (value("a", "1"), "unexpected EOF"),
        (value("a", "1") + b"--xxx", "unexpected EOF"),
        (part("form-data", "1"), "multipart: NextPart: EOF"),
        (b"--xxx\r\n folded: x\r\n\r\n" + END, "malformed part header"),
        (b"--xxx\r\nA: b\r\n c\r\n\r\n" + END, "malformed part header"),
        (b"--xxx\r\nA: b\x00c\r\n\r\n" + END, "malformed part header"),
        (b"--xxx\r\nA: b\rc\r\n\r\n" + END, "malformed part header"),
        (b"--xxx\r\nno colon\r\n\r\n" + END, "multipart: "),
        (b"--xxx\r\nA: b\nC: d\r\n\r\n" + END, "multipart: "),
        (b"--xxx\nA: b\r\n\r\n" + END, "multipart: "),
        (value("a", "1")[:-2] + b"\r\n--xxxx\r\n" + END, "multipart: "),
    ],
)
def test_malformed(run: Run, data: bytes, text: str, size: int) -> None:
    error = error_of(run, data, 1 << 20, size)
    assert text in str(error)
    assert (error.status_hint, error.text) == (400, "malformed form")


# --- limits ---------------------------------------------------------------------------------


def test_number_of_parts(run: Run) -> None:
    async def check() -> None:
        assert len((await parse(value("a", "1") * 1000 + END)).value["a"]) == 1000

    run(check())
    assert error_of(run, value("a", "1") * 1001 + END).status_hint == 413
    # Parts that count for nothing count.
    assert error_of(run, part("x", "1") * 1001 + END).status_hint == 413


def test_number_of_header_lines(run: Run) -> None:
    lines = [f"X-{n}: y" for n in range(9_999)]

    async def check() -> None:
        form = await parse(part('form-data; name="f"; filename="f"', "", *lines) + END)
        assert len(form.file["f"][0].header) == 10_000

    run(check())
    assert error_of(run, part('form-data; name="f"', "", *lines, "Z: 1") + END).status_hint == 413
    assert error_of(run, part("form-data; name=f", "", *lines) + value("a", "") + END).status_hint == 413


def test_length_of_a_header_line(run: Run) -> None:
    assert error_of(run, value("a" * 9000, "") + END).status_hint == 413
    assert error_of(run, value("a" * 100_000, "") + END, 1 << 20, 1000).status_hint == 413
    assert error_of(run, part("form-data", "", "X" * 100_000) + END, 1 << 20, 1000).status_hint == 413


def test_memory_of_values(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "_VALUE_MEMORY", 10_000)
    assert error_of(run, value("a", "x" * 10_000) + END, 0, 100).status_hint == 413
    assert error_of(run, b"".join(value(f"a{n}", "") for n in range(60)) + END, 0).status_hint == 413
    assert error_of(run, b"".join(file(f"a{n}", "f", "") for n in range(60)) + END, 0).status_hint == 413

    async def check() -> None:
        assert len((await parse(value("a", "x" * 9_000) + END, 0)).value["a"][0]) == 9_000
        (await parse(file("a", "f", b"x" * 1_000_000) + END, 0)).remove_all()  # on disk it is free

    run(check())


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n" * 500_000,
        b"--xx" * 250_000,
        b"\r\n--xx" * 150_000,
        b"--xxx\r\n" * 150_000,
        b"--xxx\r\n" + b"A: b\r\n c\r\n" * 90_000,
        b"--xxx\r\n" + b"A:\r\n" * 250_000,
        value("a", b"\r" * 1_000_000) + END,
        value("a", b"\r\n--xx" * 150_000) + END,
        part("form-data" + "; a" * 2000, "") * 150 + END,
        value("a", "") * 20_000,
    ],
)
def test_hostile_bodies_cost_one_pass(run: Run, data: bytes) -> None:
    async def check() -> None:
        start = time.process_time()
        try:
            (await parse(data, 1 << 20, 65_536)).remove_all()
        except FormError:
            pass
        assert time.process_time() - start < 2.0  # a tenth of it, unless something is quadratic

    run(check())


# --- part by part ---------------------------------------------------------------------------


def test_reader(run: Run) -> None:
    async def check() -> None:
        data = value("a", "1" * 100) + file("f", "x", "abc") + part("inline", "z") + END
        reader = MultipartReader(pieces(data, 10), "multipart/mixed; boundary=xxx", allow_mixed=True)
        found = []
        stale = None
        async for each in reader:
            if stale is not None:
                assert await stale.read() == b""
            content = b"" if each.form_name == "a" else await each.read()  # the first is skipped
            found.append((each.form_name, each.filename, content))
            stale = each
        assert found == [("a", "", b""), ("f", "x", b"abc"), ("", "", b"z")]
        with pytest.raises(StopAsyncIteration):
            await anext(reader)

    run(check())


def test_reader_holds_nothing(run: Run) -> None:
    async def check() -> None:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            yield file("f", "x", b"")[:-2]
            while True:
                sent += 1
                yield b"y" * 1000

        reader = MultipartReader(endless(), TYPE)
        first = await anext(reader)
        for _ in range(50):
            assert await anext(first) == b"y" * 1000
        assert sent == 50

    run(check())


def test_boundary() -> None:
    assert multipart_boundary('Multipart/Form-Data; Boundary="a b"') == "a b"
    assert multipart_boundary("multipart/mixed; boundary=x", allow_mixed=True) == "x"
    with pytest.raises(NotMultipart):
        multipart_boundary("multipart/mixed; boundary=x")


def test_without_the_package_the_message_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, multipart_reader.__name__)
    monkeypatch.setitem(sys.modules, "multipart", None)

    async def check() -> None:
        with pytest.raises(ImportError, match=r'pip install "prefork\[multipart\]"'):
            await parse(END)

    run(check())


def test_an_old_package_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        class PushMultipartParser:
            pass

    monkeypatch.delitem(sys.modules, multipart_reader.__name__)
    monkeypatch.setitem(sys.modules, "multipart", Old)  # type: ignore[arg-type]

    async def check() -> None:
        with pytest.raises(ImportError, match="too old"):
            await parse(END)

    run(check())
