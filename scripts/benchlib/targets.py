"""The figures that prefork sets itself, and whether a run reached them.

A limit is either a ratio to another server measured in the same run (of the medians of CPU per request), or
absolute. A target whose figures the run does not have is not judged.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from .cases import CASES
from .peers import PEERS

BEST = "best Python peer"


@dataclasses.dataclass(slots=True, kw_only=True, frozen=True)
class Target:
    """At most `limit` times `to`'s figure, or at most `limit` when `to` is None."""

    case: str
    limit: float
    to: str | None = None
    figure: str = "cpu_us"
    unit: str = ""


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


def samples(results: dict[str, Any], case: str, peer: str, figure: str = "cpu_us") -> list[float]:
    """A figure in all of a peer's rounds of a case."""
    rounds = results["cases"].get(case, {}).get(peer, {}).get("rounds", [])
    return [sample[figure] for sample in rounds if figure in sample]


def median(results: dict[str, Any], case: str, peer: str, figure: str = "cpu_us") -> float | None:
    """The median of a figure over a peer's rounds; None when it has none."""
    values = samples(results, case, peer, figure)
    return statistics.median(values) if values else None


def best_python_peer(results: dict[str, Any], case: str, figure: str = "cpu_us") -> str | None:
    """The name of the cheapest other server in Python; None when none was measured."""
    found = [
        (value, peer)
        for peer in results["cases"].get(case, {})
        if peer in PEERS and PEERS[peer].python
        if (value := median(results, case, peer, figure)) is not None
    ]
    return min(found)[1] if found else None


def judge(results: dict[str, Any]) -> list[Verdict]:
    """One verdict per target that the run has the figures for."""
    verdicts = []
    for target in TARGETS:
        ours = median(results, target.case, "prefork", target.figure)
        if ours is None:
            continue
        least = min(samples(results, target.case, "prefork", target.figure))
        if target.to is None:
            verdicts.append(Verdict(target=target, value=ours, least=least, text=""))
            continue
        peer = best_python_peer(results, target.case) if target.to == BEST else target.to
        theirs = median(results, target.case, peer, target.figure) if peer else None
        if peer and theirs:
            least /= min(samples(results, target.case, peer, target.figure))
            name = f"{target.to}, {peer}" if target.to == BEST else target.to
            text = f"{ours:.2f} / {theirs:.2f} µs ({name})"
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
    value = f"{verdict.value:6.3f}  {off:3.0f} % {side}  least {verdict.least:6.3f}"
    return f"{word}  {target.case:<14} {limit:<36} {value}  {verdict.text}".rstrip()
