"""The two halves of the bench, servers and clients: their tables, and what is said of each."""

from __future__ import annotations

import dataclasses
from typing import Any

from . import cases, clients, peers


@dataclasses.dataclass(slots=True, kw_only=True, frozen=True)
class Side:
    """One half. `begin` and `end` are its marks in the README, `versions` those that every report names.

    `figure` is what the README's table holds where a row does not say otherwise, `pinned` who ran where.
    """

    cases: dict[str, cases.Case]
    peers: dict[str, peers.Peer] | dict[str, clients.Client]
    begin: str
    end: str
    figure: str
    pinned: str
    versions: frozenset[str]

    def usual_peers(self) -> list[str]:
        """Those that are measured when nobody is asked for by name."""
        return [name for name, peer in self.peers.items() if peer.default]


SERVER = Side(
    cases=cases.CASES,
    peers=peers.PEERS,
    begin="<!-- bench:begin -->",
    end="<!-- bench:end -->",
    figure="CPU µs per request on one core",
    pinned="the server on one core, wrk on another",
    versions=frozenset({"uvloop", "httptools", "wrk"}),
)

CLIENT = Side(
    cases=clients.CASES,
    peers=clients.CLIENTS,
    begin="<!-- bench-client:begin -->",
    end="<!-- bench-client:end -->",
    figure="clients, CPU µs per request on one core",
    pinned="the client on one core, nginx on another",
    versions=frozenset({"uvloop", "httptools", "nginx"}),
)


def side_of(results: dict[str, Any]) -> Side:
    """Which half a run's result belongs to."""
    return CLIENT if results["settings"].get("client") else SERVER
