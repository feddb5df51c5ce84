"""The server against what a real Go server answered to the same bytes, byte for byte.

Each row is one TCP connection, a handler made of simple operations, the bytes sent and the
bytes received. Rows that are meant to differ are in vector_exceptions.py with their reason.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from prefork import http
from prefork.http.server.server import listen

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parent.parent / "shared" / "vectors"
FILE = VECTORS / "golden_server_wire.json"

_spec = importlib.util.spec_from_file_location("vector_exceptions", HERE / "vector_exceptions.py")
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
EXCEPTIONS: dict[str, str] = _module.EXCEPTIONS.get("golden_server_wire", {})

if not FILE.exists():
    pytest.skip("the folder of measured vectors is not here", allow_module_level=True)

ROWS = json.loads(FILE.read_text())["vectors"]


def wire(text: str) -> bytes:
    return text.encode("latin-1")


def as_str(text: str) -> str:
    """A header value of the row, bytes as Latin-1, in the form the API takes it."""
    return wire(text).decode("utf-8", "surrogateescape")


class Handler:
    """Runs the operations of a row for every request."""

    def __init__(self, ops: list[list[Any]]) -> None:
        self.ops = ops
        self.calls = 0
        self.notes: list[str] = []

    async def serve_http(self, w: http.ResponseWriter, r: http.Request) -> None:
        self.calls += 1
        for name, *args in self.ops:
            await getattr(self, "op_" + name)(w, r, *args)

    async def op_header_set(self, w: Any, r: Any, name: str, value: str) -> None:
        w.header[name] = as_str(value)

    async def op_header_add(self, w: Any, r: Any, name: str, value: str) -> None:
        w.header.add(name, as_str(value))

    async def op_header_raw(self, w: Any, r: Any, name: str, values: list[str] | None) -> None:
        w.header[name] = None
        for value in values or ():
            w.header.add(name, value)

    async def op_write_header(self, w: Any, r: Any, status: int) -> None:
        w.write_header(status)

    async def op_write(self, w: Any, r: Any, text: str) -> None:
        await self._write(w, wire(text))

    async def op_write_repeat(self, w: Any, r: Any, text: str, times: int) -> None:
        await self._write(w, wire(text) * times)

    async def _write(self, w: Any, data: bytes) -> None:
        try:
            await w.write(data)
        except http.LocalProtocolError as error:
            self.notes.append(f"write -> 0, {error}")
        else:
            self.notes.append(f"write -> {len(data)}, <nil>")

    async def op_flush(self, w: Any, r: Any) -> None:
        await w.flush()

    async def op_read_body(self, w: Any, r: Any) -> None:
        await self._read(r, -1)

    async def op_read_body_n(self, w: Any, r: Any, n: int) -> None:
        await self._read(r, n)

    async def _read(self, r: Any, n: int) -> None:
        data = b""
        problem = "<nil>"
        try:
            while n < 0 or len(data) < n:
                piece = await r.body.read(n - len(data) if n >= 0 else 65536)
                if not piece:
                    break
                data += piece
        except (http.HTTPError, OSError) as error:
            problem = str(error)
        self.notes.append(f'read {len(data)} bytes "{data[:64].decode("latin-1")}", {problem}')

    async def op_close_body(self, w: Any, r: Any) -> None:
        r.body.close()
        self.notes.append("close -> <nil>")

    async def op_echo_body(self, w: Any, r: Any) -> None:
        await w.write(await r.body.read())

    async def op_dump(self, w: Any, r: Any) -> None:
        coding = " ".join(r.transfer_encoding)
        text = "|".join(
            [
                *(r.method, r.request_uri, r.url.path, r.url.raw_query, r.proto, r.host),
                *(f"cl={r.content_length}", f"te=[{coding}]", f"close={str(r.close).lower()}"),
            ]
        )
        await w.write(text)

    async def op_trailer_note(self, w: Any, r: Any) -> None:
        inside = " ".join(f"{name}:[{' '.join(r.trailer.values(name))}]" for name in sorted(r.trailer))
        self.notes.append(f"trailer map[{inside}]")

    async def op_panic(self, w: Any, r: Any) -> None:
        raise RuntimeError("boom")

    async def op_panic_abort(self, w: Any, r: Any) -> None:
        raise http.AbortHandler

    async def op_full_duplex(self, w: Any, r: Any) -> None:
        w.enable_full_duplex()

    async def op_max_bytes(self, w: Any, r: Any, limit: int) -> None:
        r.body.limit = limit

    async def op_error(self, w: Any, r: Any, text: str, status: int) -> None:
        http.error(w, text, status)

    async def op_not_found(self, w: Any, r: Any) -> None:
        http.not_found(w, r)

    async def op_redirect(self, w: Any, r: Any, url: str, status: int) -> None:
        http.redirect(w, r, url, status)

    async def op_hijack_write(self, w: Any, r: Any, text: str) -> None:
        _, writer = await w.hijack()
        writer.write(wire(text))
        writer.close()
        await writer.wait_closed()

    async def op_set_cookie(self, w: Any, r: Any, name: str, value: str) -> None:
        http.set_cookie(w, http.Cookie(name, value))


def sends(row: dict[str, Any]) -> list[bytes]:
    if row["sends"] is not None:
        return [wire(text) for text in row["sends"]]
    return [
        wire(part["text"])
        if "text" in part
        else wire(part["prefix"] + part["repeat"] * part["times"] + part["suffix"])
        for part in row["sends_spec"]
    ]


def normal(data: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"\r\nDate: <DATE>", data)


async def play(row: dict[str, Any]) -> dict[str, Any]:
    """Run one row; what happened in the row's own words."""
    options = row["server"]
    handler = Handler(row["handler_ops"])
    log: list[str] = []
    states: list[str] = []
    logger = logging.Logger("test")
    logger.addHandler(_Collect(log))

    def seconds(name: str) -> float | None:
        return options[name] / 1000 if name in options else None

    server = http.Server(
        "",
        http.ServeMux() if options.get("handler") == "empty ServeMux" else handler,
        read_header_timeout=seconds("read_header_timeout_ms"),
        read_timeout=seconds("read_timeout_ms"),
        idle_timeout=seconds("idle_timeout_ms"),
        max_header_bytes=options.get("max_header_bytes", 1 << 20) + 4096,  # the slop of Go's read buffer
        conn_state=lambda conn, state: states.append(state.value),
        error_log=logger,
    )
    if options.get("keep_alives_enabled") is False:
        server.set_keep_alives_enabled(False)
    listener = listen("127.0.0.1:0")
    received = b""
    closed = False
    try:
        server.start([listener])
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        wanted = b""
        pieces = sends(row)
        for number, (data, answer) in enumerate(zip(pieces, row["received"], strict=True), 1):
            writer.write(data)
            await writer.drain()
            if number == len(pieces) and row["client_half_close"]:
                writer.write_eof()
            wanted += wire(answer)
            while len(normal(received)) < len(wanted):
                try:
                    piece = await asyncio.wait_for(reader.read(65536), 3)
                except TimeoutError:
                    break
                if not piece:
                    closed = True
                    break
                received += piece
        if not closed:
            try:
                piece = await asyncio.wait_for(reader.read(65536), 3 if row["server_closed"] else 0.03)
                received += piece
                closed = not piece
            except TimeoutError:
                pass
            except ConnectionError:
                closed = True
        writer.close()
        await asyncio.wait({asyncio.ensure_future(writer.wait_closed())})
        await server.shutdown(1)
    finally:
        server.close()
        listener.close()
        await asyncio.sleep(0)
    return {
        "received": normal(received).decode("latin-1"),
        "handler_calls": handler.calls,
        "handler_notes": handler.notes,
        "server_closed": closed,
        "conn_states": states,
        "log": log,
    }


class _Collect(logging.Handler):
    def __init__(self, into: list[str]) -> None:
        super().__init__()
        self.into = into

    def emit(self, record: logging.LogRecord) -> None:
        self.into.append(record.getMessage())


def differences(row: dict[str, Any], got: dict[str, Any]) -> list[str]:
    want = {**row, "received": "".join(row["received"])}
    names = ["received", "handler_calls", "server_closed"]
    if "exception" not in "".join(got["log"]):
        names.append("conn_states")
    found = [f"{name}: want {want[name]!r}, got {got[name]!r}" for name in names if want[name] != got[name]]
    notes = [note.partition(": it was closed, or given up")[0] for note in got["handler_notes"]]
    if notes != want["handler_notes"]:
        found.append(f"handler_notes: want {want['handler_notes']!r}, got {notes!r}")
    if bool(want["log"]) != bool(got["log"]):
        found.append(f"log: want {want['log']!r}, got {got['log']!r}")
    return found


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_go_answers_the_same(row: dict[str, Any], run: Any) -> None:
    found = ["no such handler"] if "wrap" in row["server"] else differences(row, run(play(row)))
    if row["name"] in EXCEPTIONS:
        assert found, "this row is listed as an exception, but it agrees"
    else:
        assert not found, "\n".join(found)
