"""The rounds of a run: each case with all of its servers in turn, A B C, A B C, so that a change in the
machine meets all of them alike. A server is started anew for each sample, on a fresh port, and warmed up;
when clients are measured, that is nginx.

The result is one dict, the same that the JSON file holds:

    format, started, finished    1; ISO 8601 in UTC
    machine, python, versions    facts, see tools
    settings                     rounds, seconds, cores as numbers, cases and peers as asked for, and
                                 "client": true when these are clients (see sides)
    cases[case][peer]            {"rounds": [sample, ...], "failed": [text, ...]}

A sample is what load.measure, special.idle, special.start or client_load.measure returned.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import random
import socket
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import cases, client_load, load, special, tools
from .clients import Client
from .peers import PEERS
from .process import Process
from .sides import CLIENT, SERVER, Side

if TYPE_CHECKING:
    from .peers import Peer


@dataclasses.dataclass(slots=True, kw_only=True, frozen=True)
class Plan:
    """What to run: names of cases and peers in order, rounds, seconds of load per sample, the two cores.

    A sample is taken up to `patience` times more while others disturb it; the least disturbed one counts. The
    cores are None where the machine has only one: then nothing is pinned, and the report says so. `client`
    means that clients are measured, on the client's core, and not servers.
    """

    cases: list[str]
    peers: list[str]
    rounds: int
    seconds: int
    patience: int = 0
    server_core: int | None
    client_core: int | None
    client: bool = False

    @property
    def side(self) -> Side:
        return CLIENT if self.client else SERVER


@dataclasses.dataclass(slots=True)
class Entrant:
    """A server or client in a case; `counts_for` are the cases whose tables its samples go into."""

    peer: Peer | Client
    case: cases.Case
    counts_for: list[str]
    failures: int = 0


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def entrants(plan: Plan) -> list[list[Entrant]]:
    """The peers of each case; cases of the same load are run together, and only prefork runs in each."""
    side = plan.side
    groups: dict[str, list[cases.Case]] = {}
    for name in plan.cases:
        case = side.cases[name]
        groups.setdefault(case.same_load_as or name, []).append(case)
    found = []
    for group in groups.values():
        row: list[Entrant] = []
        for name in plan.peers:
            peer = side.peers[name]
            taken = [case for case in group if peer.takes(case.name)]
            if name == "prefork":
                row.extend(Entrant(peer, case, [case.name]) for case in taken)
            elif taken:
                row.append(Entrant(peer, taken[0], [case.name for case in taken]))
        found.append(row)
    return found


def run(plan: Plan, kit: tools.Kit, results: dict[str, Any]) -> None:
    """Carry the plan out, filling `results` as it goes (so that an interrupted run keeps what it has)."""
    missing = {}
    for name in plan.peers:
        try:
            kit.check(name, plan.side.peers[name].package, client=plan.client)
        except tools.Missing as error:
            missing[name] = str(error)
            tools.say(f"{name} is left out: {error}")
    results.update(
        format=1,
        started=now(),
        finished=None,
        machine=tools.machine(),
        settings=dataclasses.asdict(plan),
        missing=missing,
        cases={},
        **kit.facts(),
    )
    for row in entrants(plan):
        row = [entrant for entrant in row if entrant.peer.name not in missing]
        for entrant in row:
            for name in entrant.counts_for:
                results["cases"].setdefault(name, {})[entrant.peer.name] = {"rounds": [], "failed": []}
        for number in range(plan.rounds):
            for entrant in row:
                if entrant.failures < 2:  # a third try would only cost time
                    _sample(plan, kit, entrant, number, results)
    results["finished"] = now()


def _sample(plan: Plan, kit: tools.Kit, entrant: Entrant, number: int, results: dict[str, Any]) -> None:
    """One sample of one server; a failure is noted, not raised."""
    title = f"{entrant.case.name} {number + 1}/{plan.rounds} {entrant.peer.name}"
    places = [results["cases"][name][entrant.peer.name] for name in entrant.counts_for]
    with tempfile.TemporaryFile() as log:
        try:
            sample = _measure(plan, kit, entrant, log)
            for _ in range(plan.patience):
                if sample.get("others", 0.0) <= load.DISTURBED:
                    break
                sample = min(sample, _measure(plan, kit, entrant, log), key=lambda taken: taken["others"])
        except (cases.WrongAnswer, load.LoadFailed, tools.Missing, OSError, ValueError) as error:
            entrant.failures += 1
            said = _last_line(log, "client" if plan.client else "server")
            text = f"{type(error).__name__}: {error}{said}".replace(f"{tools.ROOT}/", "")
            for place in places:
                place["failed"].append(text)
            tools.say(f"{title:<32} FAILED {text}")
            return
    entrant.failures = 0
    for place in places:
        place["rounds"].append(sample)
    tools.say(f"{title:<32} {'  '.join(f'{key} {value:g}' for key, value in sample.items())}")


def _measure(plan: Plan, kit: tools.Kit, entrant: Entrant, log: IO[bytes]) -> dict[str, float]:
    """Start the server, check, warm up, measure, check again, end it."""
    peer, case = entrant.peer, entrant.case
    wait_for_time_wait()
    port = free_port()
    environment = {
        **{key: os.environ[key] for key in ("PATH", "HOME", "LANG", "LC_ALL") if key in os.environ},
        **peer.environment,
    }
    if isinstance(peer, Client):
        return _measure_client(plan, kit, peer, case, port, environment, log)
    environment.update(BENCH_CASE=case.name, BENCH_ROUTES=str(case.routes))
    if case.kind == "start":
        assert peer.workers is not None
        argv, core = peer.workers(kit, port), None
    else:
        argv, core = peer.argv(kit, port, case.name), plan.server_core
    server = Process(argv, core=core, cwd=cases.APPS, env=environment, stdout=log, stderr=log)
    try:
        if case.kind == "start":
            return special.start(server, port)
        wait_until_listening(server, port)
        case.check(port)
        if case.kind == "idle":
            return special.idle(server, port)
        load.run_wrk(case, port, max(1, plan.seconds // 3), plan.client_core)
        sample = load.measure(server, case, port, plan.seconds, plan.server_core, plan.client_core)
        case.check(port)
        return sample
    finally:
        server.end()


def _measure_client(
    plan: Plan,
    kit: tools.Kit,
    client: Client,
    case: cases.Case,
    port: int,
    environment: dict[str, str],
    log: IO[bytes],
) -> dict[str, float]:
    """Start nginx, check it, let the client measure itself, check nginx again, end it."""
    argv = PEERS["nginx"].argv(kit, port, case.name)
    server = Process(argv, core=plan.server_core, cwd=cases.APPS, env=environment, stdout=log, stderr=log)
    try:
        wait_until_listening(server, port)
        case.check(port)
        sample = client_load.measure(
            client.argv(kit, case.name),
            case,
            port,
            seconds=plan.seconds,
            server=server,
            server_core=plan.server_core,
            core=plan.client_core,
            env=environment,
            log=log,
        )
        case.check(port)
        return sample
    finally:
        server.end()


def free_port() -> int:
    """A free port below those that the kernel gives to clients: a burst of connections cannot take it."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(min(16384, low // 2), min(low, 32768))
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_until_listening(server: Process, port: int, limit: float = 20.0) -> None:
    """Wait for the first accepted connection."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if not server.alive():
            raise cases.WrongAnswer(f"the server left with status {server.popen.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.01)
    raise cases.WrongAnswer(f"nothing listens after {limit:.0f} s")


def wait_for_time_wait(limit: float = 10.0) -> None:
    """Let closed connections leave the kernel's table when it is nearly full.

    Not for long: each sample has a port of its own, so they are in nobody's way, and a full table is the same
    for all servers.
    """
    room = int(Path("/proc/sys/net/ipv4/tcp_max_tw_buckets").read_text()) * 3 // 4
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        line = next(x for x in Path("/proc/net/sockstat").read_text().splitlines() if x.startswith("TCP:"))
        words = line.split()
        if int(words[words.index("tw") + 1]) < room:
            return
        time.sleep(1)


def _last_line(log: IO[bytes], who: str) -> str:
    """What the server or client said last, for the report of a failure."""
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return f" [{who}: {lines[-1][:200]}]" if lines else ""
