"""The other half of the bench, `scripts/bench --client`: which clients are compared, and on what.

The server is nginx, on the other core. A client is a program in bench_apps that makes the load by itself,
N requests at once, checks every answer, and prints at the end what that cost it (client_driver.py says how;
the one in Go does the same). The answers of nginx are checked before and after as in the other half.

None of the clients has a timeout set: Go's and prefork's have none by default, and one costs each of the
others something. Each may keep as many idle connections as there are requests at once.
"""

from __future__ import annotations

import dataclasses
import select
import socket
from typing import TYPE_CHECKING

from . import cases
from .cases import Case

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from . import tools

POOL = ("one", "hosts", "rotate", "waiting")
"""What the client of the case `pool` is asked for in turn: see bench_apps/client_prefork_pool.py."""


@dataclasses.dataclass(slots=True, kw_only=True, frozen=True)
class Client:
    """One client. `argv(kit, case)` starts it in bench_apps; port, case, requests at once and seconds follow.

    `cases` None means all but `pool`. `package` is the Python package that it needs; `python` marks the
    clients among which the best Python peer is sought. `default` False means: only when asked for by name.
    """

    name: str
    label: str
    argv: Callable[[tools.Kit, str], list[str | Path]]
    cases: tuple[str, ...] | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    package: str | None = None
    python: bool = False
    default: bool = True

    def takes(self, case: str) -> bool:
        """Whether this client takes part in a case."""
        return case != "pool" if self.cases is None else case in self.cases


def check_upload(port: int) -> None:
    """A body is answered when it is there, not before: no client should have to write after the answer."""
    data = cases.request("POST", "/upload", bytes(range(256)) * 256)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as conn, conn.makefile("rb") as stream:
        for _ in range(2):
            conn.sendall(data[:-1])
            if select.select([conn], [], [], 0.02)[0]:
                raise cases.WrongAnswer("an answer before the end of the request")
            conn.sendall(data[-1:])
            status, _, body = cases.read_response(stream)
            cases.expect(status, body, b"pong")


_CASES = (
    Case(
        name="get-64",
        title="GET, 64 at once over keep-alive",
        kind="client",
        connections=64,
        check=cases.check_pong,
    ),
    Case(
        name="get-1",
        title="GET, one at a time",
        kind="latency",
        connections=1,
        check=cases.check_pong,
    ),
    Case(
        name="post-64k",
        title="POST 64 KiB, 16 at once",
        kind="client",
        connections=16,
        check=check_upload,
    ),
    Case(
        name="download",
        title="download of 100 MiB, streamed",
        kind="download",
        connections=1,
        check=cases.check_download,
    ),
    Case(
        name="pool",
        title="pool",
        kind="pool",
        connections=64,
        check=cases.check_pong,
    ),
)

CASES = {case.name: case for case in _CASES}


def _prefork(kit: tools.Kit, case: str) -> list[str | Path]:
    return [kit.python, "client_prefork_pool.py" if case == "pool" else "client_prefork.py"]


_CLIENTS = (
    Client(name="prefork", package="prefork", label="prefork", argv=_prefork, cases=tuple(CASES)),
    Client(
        name="floor",
        package="uvloop",
        label="uvloop floor",
        argv=lambda kit, case: [kit.python, "client_floor.py"],
    ),
    Client(
        name="go",
        label="Go net/http",
        argv=lambda kit, case: [kit.go_client()],
        environment={"GOMAXPROCS": "1"},
    ),
    Client(
        name="aiohttp",
        package="aiohttp",
        label="aiohttp",
        argv=lambda kit, case: [kit.python, "client_aiohttp.py"],
        python=True,
    ),
    Client(
        name="httpx",
        package="httpx",
        label="httpx",
        argv=lambda kit, case: [kit.python, "client_httpx.py"],
        python=True,
    ),
    Client(
        name="niquests",
        package="niquests",
        label="niquests",
        argv=lambda kit, case: [kit.python, "client_niquests.py"],
        python=True,
    ),
)

CLIENTS = {client.name: client for client in _CLIENTS}
