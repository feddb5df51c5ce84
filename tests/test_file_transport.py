"""file: URLs out of one folder, and nothing from outside of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "page.html").write_text("<p>page</p>")
    (folder / "data").write_bytes(bytes(range(256)) * 4096)
    (folder / "a b").write_text("space")
    (folder / "folder").mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "inner").symlink_to(folder / "page.html")
    os.mkfifo(folder / "pipe")
    return folder


def client(root: Path) -> http.Client:
    transport = http.Transport()
    transport.register_protocol("file", http.FileTransport(root))
    return http.Client(transport=transport)


@pytest.mark.both_loops
def test_a_file_is_a_response(run: Callable[..., Any], root: Path) -> None:
    async def main() -> None:
        response = await client(root).get("file:///page.html")
        assert (response.status, response.body) == (200, b"<p>page</p>")
        assert response.header["Content-Type"] == "text/html; charset=utf-8"
        assert response.header["Content-Length"] == "11"
        assert http.parse_time(response.header["Last-Modified"])
        assert (await client(root).get("file://host/a%20b")).text() == "space"
        assert (await client(root).get("file:///inner")).status == 200
        head = await client(root).head("file:///data")
        assert (head.content_length, head.body) == (1 << 20, b"")

    run(main())


def test_a_long_file_streams_and_is_closed(run: Callable[..., Any], root: Path) -> None:
    async def main() -> None:
        size = 0
        async with client(root).get("file:///data") as response:
            async for chunk in response.body:
                size += len(chunk)
        assert size == 1 << 20
        async with client(root).get("file:///data") as response:
            assert len(await response.body.read(10)) == 10
        with pytest.raises(http.LocalProtocolError):
            await response.body.read()

    run(main())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/folder", 404),
        ("/../secret", 404),
        ("/%2e%2e/secret", 404),
        ("/link", 404),
        ("/pipe", 404),
        ("/page.html%00", 404),
        ("/", 404),
    ],
)
def test_what_is_not_there_is_not_there(run: Callable[..., Any], root: Path, path: str, status: int) -> None:
    async def main() -> None:
        response = await client(root).get(f"file://{path}")
        assert response.status == status
        assert b"secret" not in response.body

    run(main())


def test_other_methods_are_refused(run: Callable[..., Any], root: Path) -> None:
    async def main() -> None:
        response = await client(root).post("file:///page.html", "text/plain", "x")
        assert (response.status, response.header["Allow"]) == (405, "GET, HEAD")

    run(main())


def test_a_file_over_the_limit(run: Callable[..., Any], root: Path) -> None:
    async def main() -> None:
        transport = http.Transport()
        transport.register_protocol("file", http.FileTransport(root))
        with pytest.raises(http.BodyTooLarge):
            await http.Client(transport=transport, max_body_bytes=1000).get("file:///data")

    run(main())
