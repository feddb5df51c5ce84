"""The application's metrics, read from the workers' seats and put together.

Each worker says what it has in lines of its own (see `MetricArea`): a line {"metric", "kind",
"help", "labels", ...} for each metric, and a line {"of", "values", "at"} for each set of label
values. Here they are found again by name and label values: counters and histograms are added up;
of gauges the sum, the maximum or the minimum is taken, or each worker's is kept, as the metric says.

The law: the memory is written by processes in which anything may run. A line that does not make
sense is left out, and nothing in it can stop the master.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from prefork.scoreboard import METRIC_WORDS, Word

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefork.scoreboard import Scoreboard

MAX_SERIES: Final = 16_384
"""Sets of label values of one metric that are remembered of workers that are gone."""

_KINDS: Final = ("counter", "gauge", "histogram")
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(slots=True)
class Family:
    """One metric with all its sets of label values.

    kind: "counter", "gauge" or "histogram". bounds: of a histogram. across: of a gauge. series: by
    label values, one number, or of a histogram its sum and then a number for each bucket.
    generation: of the code that made it.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()
    across: str = "sum"
    generation: int = 0
    series: dict[tuple[str, ...], list[float]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Values of one set of label values."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1

    def fits(self, other: Family) -> bool:
        """Whether the other's numbers mean the same."""
        return (self.kind, self.labels, self.bounds, self.across) == (
            other.kind,
            other.labels,
            other.bounds,
            other.across,
        )

    def empty(self) -> Family:
        """The same metric, without any values."""
        return Family(self.name, self.kind, self.help, self.labels, self.bounds, self.across, self.generation)

    def add(self, key: tuple[str, ...], values: list[float]) -> None:
        """Put the values of one more worker to those that are there."""
        known = self.series.get(key)
        if known is None:
            self.series[key] = values
        elif self.across == "max":
            known[0] = max(known[0], values[0])
        elif self.across == "min":
            known[0] = min(known[0], values[0])
        elif len(values) == 1:
            known[0] += values[0]
        else:
            for index, value in enumerate(values):
                known[index] += value


@dataclass(slots=True)
class _Layout:
    """What the lines of one worker say, as long as there are no more of them.

    started, version: of which worker, and how many bytes of lines. metrics: each with its sets of
    label values, and where the numbers of each begin. end: of all numbers.
    """

    started: int
    version: int
    metrics: list[tuple[Family, list[tuple[tuple[str, ...], int]]]]
    end: int


class AppMetrics:
    """Reads the application's metrics of all seats, and remembers the counters of workers that are gone.

    metrics = AppMetrics()
    metrics.retire(board, seat)       # before the seat is cleared
    metrics.families(board)           # all of it, now
    """

    def __init__(self) -> None:
        self._layouts: dict[int, _Layout] = {}
        self._retired: dict[str, Family] = {}

    def __repr__(self) -> str:
        return f"<AppMetrics {len(self._retired)} metrics of workers that are gone>"

    def families(self, board: Scoreboard) -> list[Family]:
        """All metrics, by name."""
        merged = {name: _copy(family, family.series.items()) for name, family in self._retired.items()}
        for seat in range(board.seats):
            self._add_seat(merged, board, seat)
        return [merged[name] for name in sorted(merged)]

    def retire(self, board: Scoreboard, seat: int) -> None:
        """The seat is about to be cleared: keep what must not go back."""
        self._add_seat(self._retired, board, seat, gauges=False)
        self._layouts.pop(seat, None)
        for family in self._retired.values():
            while len(family.series) > MAX_SERIES:
                del family.series[next(iter(family.series))]

    def _add_seat(
        self, families: dict[str, Family], board: Scoreboard, seat: int, *, gauges: bool = True
    ) -> None:
        base = board.base(seat)
        if not board.words[base + Word.METRIC_BYTES]:
            return
        layout = self._layout(board, seat)
        numbers: list[float] = list(board.metrics(seat).values[: layout.end])
        for family, places in layout.metrics:
            if family.kind == "gauge" and not gauges:
                continue
            into = families.get(family.name)
            if into is None or (not into.fits(family) and into.generation < family.generation):
                # What the code before it has counted under this name was something else.
                into = families[family.name] = family.empty()
            if into.fits(family):
                size = family.size
                for key, at in places:
                    into.add(key, numbers[at : at + size])

    def _layout(self, board: Scoreboard, seat: int) -> _Layout:
        base, area = board.base(seat), board.metrics(seat)
        started, version = board.words[base + Word.STARTED], area.version
        known = self._layouts.get(seat)
        if known is None or (known.started, known.version) != (started, version):
            generation, worker = board.words[base + Word.GENERATION], str(board.words[base + Word.SLOT] + 1)
            metrics = _parse(area.declared(), generation, worker)
            ends = [at + family.size for family, places in metrics for _, at in places]
            known = self._layouts[seat] = _Layout(started, version, metrics, max(ends, default=0))
        return known


def _copy(family: Family, series: Iterable[tuple[tuple[str, ...], list[float]]]) -> Family:
    copy = family.empty()
    copy.series = {key: list(values) for key, values in series}
    return copy


def _parse(
    lines: list[dict[str, Any]], generation: int, worker: str
) -> list[tuple[Family, list[tuple[tuple[str, ...], int]]]]:
    metrics: dict[str, tuple[Family, list[tuple[tuple[str, ...], int]]]] = {}
    for line in lines:
        match line:
            case {"metric": str(name), "kind": str(kind), "help": str(help), "labels": list(labels)}:
                bounds, across = line.get("bounds", []), line.get("across", "sum")
                if (
                    kind in _KINDS
                    and _are_names([name, *labels])
                    and isinstance(bounds, list)
                    and _are(bounds, (int, float))
                ):
                    extra = ("worker",) if across == "each" else ()
                    all_labels = (*labels, *extra)
                    family = Family(name, kind, help, all_labels, tuple(bounds), str(across), generation)
                    metrics[name] = family, []
            case {"of": str(name), "values": list(values), "at": int(at)} if name in metrics:
                family, places = metrics[name]
                key = (*values, worker) if family.across == "each" else tuple(values)
                if (
                    _are(values, str)
                    and len(key) == len(family.labels)
                    and 0 <= at <= METRIC_WORDS - family.size
                ):
                    places.append((key, at))
    return list(metrics.values())


def _are_names(values: list[Any]) -> bool:
    return all(isinstance(value, str) and _NAME.fullmatch(value) for value in values)


def _are(values: list[Any], kind: type | tuple[type, ...]) -> bool:
    return all(isinstance(value, kind) for value in values)
