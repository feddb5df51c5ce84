"""The figures that prefork sets itself, and whether a run reached them.

A limit is either a ratio to another server or client measured in the same run (of the medians of CPU per
request, if no other figure is named), or absolute. A target whose figures the run does not have is not
judged.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from .cases import CASES
from .sides import CLIENT, side_of

BEST = "best Python peer"


@dataclasses.dataclass(slots=True, kw_only=True, frozen=True)
class Target:
    """At most `limit` times `to`'s figure, or at most `limit` when `to` is None.

    `stretch` marks the better one of two limits for the same figure.
    """

    case: str
    limit: float
    to: str | None = None
    figure: str = "cpu_us"
    unit: str = ""
    stretch: bool = False


@dataclasses.dataclass(slots=True, kw_only=True, frozen=True)
class Verdict:
    """How a target fared: `value` is the ratio or the absolute figure reached by the medians.

    `least` is the same by the least samples: disturbances only ever add, so it moves less on a busy machine.
    """

    target: Target
    value: float
    least: float
    text: str

    @property
    def met(self) -> bool:
        return self.value <= self.target.limit


TARGETS = (
    Target(case="pong", to="go", limit=0.95),
    Target(case="pong", to="floor", limit=1.35),
    Target(case="pong", to="uvicorn", limit=0.65),
    Target(case="pong-def", to="go", limit=0.88),
    Target(case="pong-headers", to="go", limit=1.0),
    Target(case="json", to="go", limit=1.0),
    Target(case="post-1k", to="go", limit=1.0),
    Target(case="post-1m", to="go", limit=0.8),
    Target(case="download-100m", to="go", limit=1.05),
    Target(case="pipeline", to="go", limit=0.4),
    Target(case="connect", to="go", limit=1.0),
    *(Target(case=name, to=BEST, limit=1.0) for name, case in CASES.items() if case.kind == "load"),
    Target(case="idle", figure="kib_per_connection", limit=4.0, unit="KiB of PSS per connection"),
    Target(case="start", figure="seconds", limit=0.5, unit="s to the first answer"),
    Target(case="start", figure="worker_mib", limit=22.0, unit="MiB of PSS per worker"),
)

CLIENT_TARGETS = (
    Target(case="get-64", to="go", limit=1.25),
    Target(case="get-64", to="go", limit=1.0, stretch=True),
    Target(case="get-64", to="aiohttp", limit=0.4),
    Target(case="get-1", figure="p50_us", to="go", limit=1.15),
    Target(case="post-64k", to="go", limit=1.0),
    Target(case="download", figure="cpu_ms", unit="ms", to="go", limit=1.0),
    Target(case="download", figure="grown_mib", limit=8.0, unit="MiB of RSS growth"),
    Target(case="pool", figure="hosts_ratio", limit=1.15, unit="x, 1,000 hosts to one"),
    # Ten thousand tasks that run in turn find nothing of theirs in the processor's caches: a queue that costs
    # nothing comes to 1.1 to 1.2 here.
    Target(case="pool", figure="waiting_ratio", limit=1.25, unit="x, 10,000 waiting to none"),
)


def samples(results: dict[str, Any], case: str, peer: str, figure: str = "cpu_us") -> list[float]:
    """A figure in all of a peer's rounds of a case."""
    rounds = results["cases"].get(case, {}).get(peer, {}).get("rounds", [])
    return [sample[figure] for sample in rounds if figure in sample]


def median(results: dict[str, Any], case: str, peer: str, figure: str = "cpu_us") -> float | None:
    """The median of a figure over a peer's rounds; None when it has none."""
    values = samples(results, case, peer, figure)
    return statistics.median(values) if values else None


def best_python_peer(results: dict[str, Any], case: str, figure: str = "cpu_us") -> str | None:
    """The name of the cheapest other server or client in Python; None when none was measured."""
    peers = side_of(results).peers
    found = [
        (value, peer)
        for peer in results["cases"].get(case, {})
        if peer in peers and peers[peer].python
        if (value := median(results, case, peer, figure)) is not None
    ]
    return min(found)[1] if found else None


def judge(results: dict[str, Any]) -> list[Verdict]:
    """One verdict per target that the run has the figures for."""
    verdicts = []
    for target in CLIENT_TARGETS if side_of(results) is CLIENT else TARGETS:
        ours = median(results, target.case, "prefork", target.figure)
        if ours is None:
            continue
        least = min(samples(results, target.case, "prefork", target.figure))
        if target.to is None:
            verdicts.append(Verdict(target=target, value=ours, least=least, text=""))
            continue
        peer = best_python_peer(results, target.case, target.figure) if target.to == BEST else target.to
        theirs = median(results, target.case, peer, target.figure) if peer else None
        if peer and theirs:
            least /= min(samples(results, target.case, peer, target.figure))
            name = f"{target.to}, {peer}" if target.to == BEST else target.to
            text = f"{ours:.2f} / {theirs:.2f} {target.unit or 'µs'} ({name})"
            verdicts.append(Verdict(target=target, value=ours / theirs, least=least, text=text))
    return verdicts


def describe(verdict: Verdict) -> str:
    """A line of the report: met or missed, by how much, and the figures behind it."""
    target = verdict.target
    word = "met   " if verdict.met else "MISSED"
    off = abs(verdict.value / target.limit - 1) * 100
    side = "below" if verdict.met else "above"
    limit = (
        f"<= {target.limit:g} {target.unit}" if target.to is None else f"<= {target.limit:g} x {target.to}"
    )
    if target.stretch:
        limit += " (stretch)"
    value = f"{verdict.value:6.3f}  {off:3.0f} % {side}  least {verdict.least:6.3f}"
    return f"{word}  {target.case:<14} {limit:<36} {value}  {verdict.text}".rstrip()
