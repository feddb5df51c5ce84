"""The README says what is so: its table of settings is the program's, its examples run.

Its table is made anew from prefork/settings.py by

    UPDATE_SNAPSHOTS=1 scripts/test tests/test_readme.py
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import re
import socket
import tomllib
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefork import http
from prefork.ipc import ExitCode
from prefork.settings import TABLE, load

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
MARKED = re.compile(r"(<!-- settings:begin[^>]*-->\n)(.*?)(<!-- settings:end -->)", re.DOTALL)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def settings_table() -> str:
    """The settings as a table in Markdown, a row each."""
    rows = ["| key | flag | default | meaning |", "|---|---|---|---|"]
    group = ""
    for setting in TABLE.values():
        if setting.group != group:
            group = setting.group
            rows.append(f"| **{group}** | | | |")
        flags = ", ".join(f"`{flag}`" for flag in setting.flags) or "the argument"
        default = f"`{setting.shown(setting.default)}`" if setting.default != "" else ""
        rows.append(f"| `{setting.name}` | {flags} | {default} | {setting.help} |")
    note = "The variable of a key is `PREFORK_` and the key in capitals: `PREFORK_READ_TIMEOUT`."
    return "\n".join([*rows, "", note, ""])


def test_settings_table_is_up_to_date() -> None:
    text = README.read_text()
    match = MARKED.search(text)
    assert match is not None
    if os.environ.get("UPDATE_SNAPSHOTS"):
        README.write_text(text[: match.start(2)] + settings_table() + text[match.end(2) :])
    else:
        assert match[2] == settings_table(), "UPDATE_SNAPSHOTS=1 makes it anew"


def test_exit_codes_are_the_documented_ones() -> None:
    codes = re.findall(r"^\| (\d) \| ", README.read_text(), re.MULTILINE)
    assert [int(code) for code in codes] == [code.value for code in ExitCode]


def test_settings_file_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = blocks("toml")
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("prefork.toml").write_text(text)
    settings = load(environ={})
    assert {key for key in TABLE if settings.origin(key) != "default"} == set(tomllib.loads(text))
    assert settings.max_body_bytes == 50 << 20
    assert settings.graceful_timeout == 60.0


def test_python_of_the_readme_is_python() -> None:
    found = blocks("python")
    assert len(found) == 4
    for text in found:
        compile(text, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_ten_line_app_runs(prefork_process: Callable[..., Any]) -> None:
    app = blocks("python")[0]
    lines = [line for line in app.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 10
    server = prefork_process(app, "-w", "2")
    assert server.get("/hello/gopher").body == b"hello, gopher\n"
    assert server.get("/hello/nobody").status == 404
    assert server.stop() == 0


def test_the_clients_examples_run(run: Callable[..., Any], tmp_path: Path) -> None:
    """As they stand, against a server that answers what they ask for."""
    mux = http.ServeMux()
    seen: list[tuple[str, bytes]] = []

    @mux.handle_func("/")
    async def answer(w: http.ResponseWriter, r: http.Request) -> None:
        seen.append((f"{r.method} {r.url.path}", await r.body.read()))
        if r.url.path == "/big.csv":
            w.write("1,2,3\n" * 1000)
        else:
            http.write_json(w, {"id": 7})

    (tmp_path / "picture").write_bytes(b"picture")
    usual, unusual = (text for text in blocks("python") if "client." in text)

    async def main() -> None:
        server = http.Server(handler=mux)
        sock = socket.create_server(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sock))
        for text in (usual, "from prefork import http\n" + unusual):
            names = {"server": f"http://127.0.0.1:{sock.getsockname()[1]}", "path": tmp_path / "picture"}
            code = compile(text, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            await types.FunctionType(code, names)()
        await server.shutdown(5)
        with contextlib.suppress(http.ServerClosed):
            await task
        sock.close()

    run(main())
    assert [line for line, _ in seen] == [
        "GET /items/7",
        "GET /big.csv",
        "POST /items",
        "POST /login",
        "PUT /items/7/picture",
        "GET /items/7",
    ]
    assert seen[3][1] == b"tag=a&tag=b&user=ada"
    assert seen[4][1] == b"picture"
