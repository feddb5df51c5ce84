"""Which servers are compared, and how each is started: one worker on one core, on uvloop if in Python.

Options are those that a careful operator would set for speed and no more: no access log, no WebSocket
support loaded, keep-alive at least as long as the measurement of idle connections takes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from . import cases, tools

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLAIN = ("pong", "pong-def", "pong-headers", "pipeline", "connect", "idle")


@dataclasses.dataclass(slots=True, kw_only=True, frozen=True)
class Peer:
    """One server.

    `argv(kit, port, case)` starts it in bench_apps. `cases` None means all but `start`, which only those with
    `workers` (the same for 8 worker processes) take part in. `package` is the Python package that it needs;
    `python` marks the peers among which the best Python peer is sought. `default` False means: measured only
    when asked for by name.
    """

    name: str
    label: str
    argv: Callable[[tools.Kit, int, str], list[str | Path]]
    workers: Callable[[tools.Kit, int], list[str | Path]] | None = None
    cases: tuple[str, ...] | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    package: str | None = None
    python: bool = False
    default: bool = True

    def takes(self, case: str) -> bool:
        """Whether this server takes part in a case."""
        if cases.CASES[case].kind == "start":
            return self.workers is not None
        return self.cases is None or case in self.cases


def _prefork(kit: tools.Kit, port: int, case: str) -> list[str | Path]:
    app = "prefork_app:plain" if case == "pong-def" else "prefork_app:mux"
    return [kit.python, "-m", "prefork", "run", app, "-w", "1", "-b", f"127.0.0.1:{port}"]


def _prefork_workers(kit: tools.Kit, port: int) -> list[str | Path]:
    scripts = cases.APPS.parent
    demo = (scripts / "demo.py").exists()
    app: list[str | Path] = ["--chdir", scripts, "demo:mux"] if demo else ["prefork_app:mux"]
    return [kit.python, "-m", "prefork", "run", *app, "-w", "8", "-b", f"127.0.0.1:{port}"]


def _uvicorn(kit: tools.Kit, port: int, workers: int) -> list[str | Path]:
    return [
        *(kit.python, "-m", "uvicorn", "uvicorn_app:app", "--port", str(port), "--workers", str(workers)),
        *("--interface", "asgi3", "--loop", "uvloop", "--http", "httptools", "--ws", "none"),
        *("--lifespan", "off", "--no-access-log", "--log-level", "warning"),
        *("--timeout-keep-alive", "75", "--backlog", "4096"),
    ]


def _granian(kit: tools.Kit, port: int, interface: str, app: str, workers: int) -> list[str | Path]:
    return [
        *(kit.python, "-m", "granian", "--interface", interface, app, "--port", str(port)),
        *("--workers", str(workers), "--loop", "uvloop", "--http", "1", "--no-ws", "--log-level", "warning"),
        # An idle connection counts as work in progress: without these two it would neither hold 8,000 of
        # them nor keep them open for long enough (60 s is the most that it takes).
        *("--backlog", "4096", "--backpressure", "16384", "--http1-header-read-timeout", "60000"),
    ]


_ALL = (
    Peer(
        name="prefork",
        package="prefork",
        label="prefork",
        argv=_prefork,
        workers=_prefork_workers,
    ),
    Peer(
        name="floor",
        package="httptools",
        label="uvloop+httptools floor",
        argv=lambda kit, port, case: [kit.python, "floor.py", str(port)],
    ),
    Peer(
        name="bare",
        package="httptools",
        label="uvloop, no parser",
        argv=lambda kit, port, case: [kit.python, "floor.py", str(port)],
        environment={"FLOOR": "bare"},
        cases=("pong", "pong-def", "pong-headers"),
        default=False,
    ),
    Peer(
        name="go",
        label="Go net/http",
        argv=lambda kit, port, case: [kit.go_peer(), str(port)],
        environment={"GOMAXPROCS": "1"},
    ),
    Peer(
        name="nginx",
        label="nginx",
        argv=lambda kit, port, case: [kit.nginx(), "-e", "stderr", "-c", kit.nginx_conf(port)],
        cases=(*PLAIN, "download-100m"),
    ),
    Peer(
        name="uvicorn",
        package="uvicorn",
        label="uvicorn (bare ASGI)",
        argv=lambda kit, port, case: _uvicorn(kit, port, 1),
        workers=lambda kit, port: _uvicorn(kit, port, 8),
        python=True,
    ),
    Peer(
        name="granian",
        package="granian",
        label="granian (RSGI)",
        argv=lambda kit, port, case: _granian(kit, port, "rsgi", "granian_app:app", 1),
        workers=lambda kit, port: _granian(kit, port, "rsgi", "granian_app:app", 8),
        python=True,
    ),
    Peer(
        name="granian-asgi",
        package="granian",
        label="granian (ASGI)",
        argv=lambda kit, port, case: _granian(kit, port, "asginl", "uvicorn_app:app", 1),
        python=True,
        default=False,
    ),
    Peer(
        name="aiohttp",
        package="aiohttp",
        label="aiohttp",
        argv=lambda kit, port, case: [kit.python, "aiohttp_app.py", str(port)],
        python=True,
    ),
    Peer(
        name="sanic",
        package="sanic",
        label="sanic",
        argv=lambda kit, port, case: [kit.python, "sanic_app.py", str(port)],
        python=True,
    ),
)

PEERS = {peer.name: peer for peer in _ALL}
