"""Metrics of the application: counters, gauges and histograms, in the words of Prometheus.

    from prefork import http

    orders = http.metrics.counter("orders_total", "Orders taken.", "kind")
    waiting = http.metrics.gauge("jobs_waiting", "Jobs in the queue.")
    queries = http.metrics.histogram("query_seconds", "Time of a query.", "table")

    orders.labels("book").inc()
    waiting.set(len(jobs))
    with queries.labels("users").time():
        rows = await db.fetch(...)

They work in any program: the values stand in a list, and `render()` writes them as Prometheus
reads them. In a worker of `prefork run` they stand in memory that the master reads, which adds
them up over all workers and shows them at /metrics; nothing has to be said for that, and it does
not matter whether a metric is made before or after.

The laws: a change is an addition in place, without a lock and without a call into the kernel
(threads may do it, because nothing between reading and writing lets another thread run). What
has been made stays for the life of the process. There is room for MAX_VALUES values: a label
whose values never end (a user, a URL, an id) is for the log.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

MAX_VALUES: Final = 2048
"""Values of all metrics together: one for each counter and gauge and their sets of labels; a
histogram has one for each bucket and two more."""

DEFAULT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a histogram's buckets: good for seconds, from a database query to a slow page."""

ACROSS: Final = ("sum", "max", "min", "each")

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_INFINITY = float("inf")

M = TypeVar("M", bound="Metric")


class MetricError(ValueError):
    """A metric that cannot be made, or that is used in a wrong way. The text says what to write instead."""


class Words(Protocol):
    """Where values stand: a list of floats, or a view of shared memory."""

    def __getitem__(self, index: int, /) -> float: ...
    def __setitem__(self, index: int, value: float, /) -> None: ...


class Area(Protocol):
    """Memory that somebody else reads, and where is told what stands in it; see `Registry.attach`.

    declare: takes a description and the number of values it needs, and returns the index in
    `values` of the first; ValueError if there is no room.
    """

    @property
    def values(self) -> Words: ...

    def declare(self, line: dict[str, Any], values: int, /) -> int: ...


class Metric:
    """What counters, gauges and histograms have in common. Made by `counter`, `gauge` and `histogram`.

    name, help, label_names: as given. A metric with labels has no value itself; each set of
    label values is a metric of its own, which `labels` returns.
    """

    __slots__ = (
        "_at",
        "_children",
        "_label_values",
        "_registry",
        "_where",
        "_words",
        "help",
        "label_names",
        "name",
    )

    kind: str = ""

    def __init__(self, registry: Registry, name: str, help: str, label_names: tuple[str, ...]) -> None:
        self.name = name
        self.help = help
        self.label_names = label_names
        self._registry = registry
        self._where = ""
        self._label_values: tuple[str, ...] = ()
        self._children: dict[tuple[object, ...], Metric] = {}  # by label values, all of them texts
        self._words: Words = _NoValue(self)
        self._at = 0

    @property
    def _size(self) -> int:
        """How many values it has."""
        return 1

    def _description(self) -> dict[str, Any]:
        """What tells it from others, for whoever reads the values."""
        return {"metric": self.name, "kind": self.kind, "help": self.help, "labels": list(self.label_names)}

    def _like(self) -> Self:
        """One more of its kind, for a set of label values."""
        return type(self)(self._registry, self.name, self.help, self.label_names)

    def labels(self, *values: object, **by_name: object) -> Self:
        """The metric of one set of label values, in the order of their names, or by name.

        The same one for the same values; given as texts it is found at once. Raises MetricError
        for a wrong number or name, and when there is no more room.

            orders.labels("book").inc()
            orders.labels(kind="book").inc()
        """
        child = None if by_name else self._children.get(values)
        if child is None:
            child = self._registry._child(self, self._in_order(values, by_name))
        return child  # type: ignore[return-value]  # all children are of the parent's type

    def _in_order(self, values: tuple[object, ...], by_name: dict[str, object]) -> tuple[str, ...]:
        names = self.label_names
        if self._label_values or not names:
            raise MetricError(f"{self!r} has no labels to give")
        if by_name:
            if values or by_name.keys() != set(names):
                given = [*map(repr, values), *by_name]
                raise MetricError(f"{self!r} takes the labels {', '.join(names)}; got {', '.join(given)}")
            values = tuple([by_name[name] for name in names])
        if len(values) != len(names):
            raise MetricError(
                f"{self!r} takes {len(names)} label values ({', '.join(names)}); got {len(values)}"
            )
        return tuple([str(value) for value in values])

    def __repr__(self) -> str:
        labels = ""
        if self.label_names:
            values = self._label_values or ["..."] * len(self.label_names)
            pairs = zip(self.label_names, values, strict=True)
            labels = "{" + ", ".join(f"{name}={value}" for name, value in pairs) + "}"
        return f"<{type(self).__name__} {self.name}{labels}>"


class Counter(Metric):
    """Something that only grows: requests, bytes, errors. Its name ends in `_total`."""

    __slots__ = ()

    kind = "counter"

    def inc(self, amount: float = 1.0) -> None:
        """Add to it. Raises MetricError for a negative amount."""
        if not amount >= 0:
            raise MetricError(f"{self!r} cannot go back by {amount}; a gauge can")
        self._words[self._at] += amount

    @property
    def value(self) -> float:
        """In this process."""
        return self._words[self._at]


class Gauge(Metric):
    """Something that goes up and down: jobs that wait, a temperature."""

    __slots__ = ("_across",)

    kind = "gauge"

    def __init__(
        self, registry: Registry, name: str, help: str, label_names: tuple[str, ...], across: str = "sum"
    ) -> None:
        super().__init__(registry, name, help, label_names)
        self._across = across

    def _description(self) -> dict[str, Any]:
        return super()._description() | {"across": self._across}

    def _like(self) -> Self:
        return type(self)(self._registry, self.name, self.help, self.label_names, self._across)

    def set(self, value: float) -> None:
        """Give it a value."""
        self._words[self._at] = float(value)

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        self._words[self._at] += amount

    def dec(self, amount: float = 1.0) -> None:
        """Take away from it."""
        self._words[self._at] -= amount

    @property
    def value(self) -> float:
        """In this process."""
        return self._words[self._at]


class Histogram(Metric):
    """How something is spread: durations, sizes. It counts what falls into each bucket, and adds all up.

    bounds: the upper bounds of its buckets, without the last one, which takes all the rest.
    """

    __slots__ = ("bounds",)

    kind = "histogram"

    def __init__(
        self,
        registry: Registry,
        name: str,
        help: str,
        label_names: tuple[str, ...],
        bounds: tuple[float, ...] = DEFAULT_BUCKETS,
    ) -> None:
        super().__init__(registry, name, help, label_names)
        self.bounds = bounds

    @property
    def _size(self) -> int:
        return len(self.bounds) + 2  # the sum, then the buckets

    def _description(self) -> dict[str, Any]:
        return super()._description() | {"bounds": list(self.bounds)}

    def _like(self) -> Self:
        return type(self)(self._registry, self.name, self.help, self.label_names, self.bounds)

    def observe(self, value: float) -> None:
        """Count one value. Raises MetricError for one that is no number (nan)."""
        if value != value:
            raise MetricError(f"{self!r} cannot count {value}")
        words, at = self._words, self._at
        words[at] += value
        words[at + 1 + bisect_left(self.bounds, value)] += 1.0

    def time(self) -> Timer:
        """Counts the seconds that a `with` block takes, whether it ends well or not."""
        return Timer(self)

    @property
    def count(self) -> float:
        """Values counted in this process."""
        return sum(self._words[self._at + 1 + index] for index in range(len(self.bounds) + 1))

    @property
    def sum(self) -> float:
        """The sum of the values counted in this process."""
        return self._words[self._at]


class Timer:
    """`with histogram.time(): ...`"""

    __slots__ = ("_begin", "_histogram")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._begin = 0.0

    def __enter__(self) -> Timer:
        self._begin = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._histogram.observe(time.perf_counter() - self._begin)


class _NoValue:
    """In place of the values of a metric that has labels: whoever forgets them is told."""

    __slots__ = ("_metric",)

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def __getitem__(self, index: int) -> float:
        names = ", ".join(self._metric.label_names)
        raise MetricError(f"{self._metric!r} has labels: use .labels({names})")

    def __setitem__(self, index: int, value: float) -> None:
        self[index]


class Registry:
    """All metrics of a process, by name. There is one, `http.metrics.registry`; tests make their own.

    *Resource handling*: it keeps everything that was made. In a forked child it goes on with a
    copy of its own.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        self._all: list[Metric] = []  # those that have values
        self._words: list[float] | Words = []
        self._area: Area | None = None
        self._used = 0
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        where = "shared" if self._area is not None else "plain"
        return f"<Registry {len(self._metrics)} metrics, {self._used} of {MAX_VALUES} values, {where}>"

    # What an application makes.

    def counter(self, name: str, help: str, *labels: str) -> Counter:
        """A counter: see the function `counter`."""
        if not name.endswith("_total"):
            raise MetricError(f"the name of a counter ends in _total: {name}_total")
        return self._made(Counter(self, name, help, labels))

    def gauge(self, name: str, help: str, *labels: str, across: str = "sum") -> Gauge:
        """A gauge: see the function `gauge`."""
        if across not in ACROSS:
            raise MetricError(f"across={across!r} is none of {', '.join(ACROSS)}")
        if across == "each" and "worker" in labels:
            raise MetricError(f'{name}: across="each" adds the label worker itself')
        return self._made(Gauge(self, name, help, labels, across))

    def histogram(
        self, name: str, help: str, *labels: str, buckets: Sequence[float] = DEFAULT_BUCKETS
    ) -> Histogram:
        """A histogram: see the function `histogram`."""
        bounds = tuple([float(bound) for bound in buckets])
        if bounds and bounds[-1] == _INFINITY:
            bounds = bounds[:-1]
        if not bounds or list(bounds) != sorted(set(bounds)) or not all(map(_is_finite, bounds)):
            raise MetricError(f"{name}: buckets must be numbers in ascending order, not {list(buckets)}")
        if "le" in labels:
            raise MetricError(f"{name}: a histogram has the label le for its buckets; choose another name")
        return self._made(Histogram(self, name, help, labels, bounds))

    def _made(self, metric: M) -> M:
        """Keep a new metric; the one of this name that is there already if it is the same."""
        metric._where = _caller()
        _check_names(metric)
        with self._lock:
            known = self._metrics.get(metric.name)
            if known is not None:
                if {**known._description(), "help": ""} != {**metric._description(), "help": ""}:
                    raise MetricError(f"{metric.name} is something else already, made at {known._where}")
                return known  # type: ignore[return-value]  # its kind is the same
            for other in self._metrics.values():
                clash = _samples(metric) & _samples(other)
                if clash:
                    raise MetricError(
                        f"{metric.name}: {other.name}, made at {other._where}, has {min(clash)} as well"
                    )
            if self._area is not None:
                self._declare(self._area, metric, metric._description(), 0)
            self._metrics[metric.name] = metric
            if not metric.label_names:
                try:
                    self._give_values(metric)
                except MetricError:
                    del self._metrics[metric.name]
                    raise
            return metric

    def _child(self, parent: M, values: tuple[str, ...]) -> M:
        with self._lock:
            child = parent._children.get(values)
            if child is None:
                child = parent._like()
                child._label_values = values
                self._give_values(child)
                parent._children[values] = child
            return child  # type: ignore[return-value]

    def _give_values(self, metric: Metric) -> None:
        if self._used + metric._size > MAX_VALUES:
            raise self._no_room(metric, f"{self._used} of {MAX_VALUES} values are in use")
        if self._area is None:
            assert isinstance(self._words, list)
            first = len(self._words)
            self._words.extend([0.0] * metric._size)
        else:
            first = self._declare(self._area, metric, _series(metric), metric._size)
        self._used += metric._size
        self._all.append(metric)
        metric._at = first
        metric._words = self._words

    def _declare(self, area: Area, metric: Metric, line: dict[str, Any], values: int) -> int:
        try:
            return area.declare(line, values)
        except ValueError as error:
            raise self._no_room(metric, str(error)) from None

    def _no_room(self, metric: Metric, why: str) -> MetricError:
        sizes: dict[str, int] = {}
        for each in self._all:
            sizes[each.name] = sizes.get(each.name, 0) + each._size
        most = max(sizes, key=lambda name: sizes[name], default=metric.name)
        return MetricError(
            f"no room for {metric!r}: {why}, {sizes.get(most, 0)} of them by {most}. "
            "A label must have few values: not a user, a URL or an id"
        )

    # Where the values stand.

    def attach(self, area: Area) -> None:
        """Move all values into memory that somebody else reads; what is made later goes there as well.

        Raises MetricError when there is no room; the values stay where they were then.
        """
        with self._lock:
            for metric in self._metrics.values():
                self._declare(area, metric, metric._description(), 0)
            places = [self._declare(area, metric, _series(metric), metric._size) for metric in self._all]
            self._move(area.values, places)
            self._area = area

    def _move(self, words: Words, places: list[int]) -> None:
        for metric, first in zip(self._all, places, strict=True):
            for index in range(metric._size):
                words[first + index] = metric._words[metric._at + index]
            metric._at = first
            metric._words = words
        self._words = words

    def _after_fork(self) -> None:
        """In a child: the memory is still the parent's to write. Go on with a copy."""
        self._lock = threading.RLock()
        if self._area is not None:
            self._area = None
            places = []
            words: list[float] = []
            for metric in self._all:
                places.append(len(words))
                words.extend([0.0] * metric._size)
            self._move(words, places)

    # What others see.

    def render(self) -> str:
        """The values of this process in Prometheus' text format (version 0.0.4)."""
        lines: list[str] = []
        with self._lock:
            metrics, everything = list(self._metrics.values()), list(self._all)
        for metric in metrics:
            lines.append(f"# HELP {metric.name} {_escape_help(metric.help)}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            for each in everything:
                if each.name == metric.name:
                    lines += _sample_lines(each)
        return "".join([line + "\n" for line in lines])


def _series(metric: Metric) -> dict[str, Any]:
    return {"of": metric.name, "values": list(metric._label_values)}


def _samples(metric: Metric) -> set[str]:
    """The names of the lines that it has in the text format."""
    if metric.kind == "histogram":
        return {metric.name, *(metric.name + suffix for suffix in ("_bucket", "_sum", "_count"))}
    # Of a counter also what OpenMetrics calls it.
    return {metric.name, metric.name.removesuffix("_total")}


def _check_names(metric: Metric) -> None:
    name = metric.name
    if not _NAME.fullmatch(name):
        cure = re.sub(r"[^a-zA-Z0-9_]", "_", name) or "requests_total"
        if cure[0].isdigit():
            cure = f"_{cure}"
        raise MetricError(f"{name!r} is no name of a metric: letters, digits and _ only, such as {cure}")
    if name.startswith("prefork_"):
        raise MetricError(f"{name}: names that begin with prefork_ are those of the server itself")
    if metric.kind != "counter" and name.endswith("_total"):
        raise MetricError(f"{name}: only the names of counters end in _total; this is a {metric.kind}")
    if not isinstance(metric.help, str) or not metric.help.strip():
        raise MetricError(f"{name}: say in a few words what it counts: the second argument is its help text")
    seen: set[str] = set()
    for label in metric.label_names:
        if not isinstance(label, str) or not _NAME.fullmatch(label) or label.startswith("__"):
            raise MetricError(
                f"{name}: {label!r} is no name of a label: letters, digits and _ only, not beginning with __"
            )
        if label in seen:
            raise MetricError(f"{name}: the label {label} is named twice")
        seen.add(label)


def _is_finite(number: float) -> bool:
    return -_INFINITY < number < _INFINITY


def _caller() -> str:
    """File and line of the first frame outside of this module."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


# --- the text format ------------------------------------------------------------------------


def _sample_lines(metric: Metric) -> list[str]:
    pairs = [
        f'{name}="{_escape_label(value)}"'
        for name, value in zip(metric.label_names, metric._label_values, strict=True)
    ]
    labels = "{" + ",".join(pairs) + "}" if pairs else ""
    values = [metric._words[metric._at + index] for index in range(metric._size)]
    if not isinstance(metric, Histogram):
        return [f"{metric.name}{labels} {_number(values[0])}"]
    lines = []
    count = 0.0
    for bound, value in zip((*metric.bounds, _INFINITY), values[1:], strict=True):
        count += value
        inner = ",".join([*pairs, f'le="{_number(bound)}"'])
        lines.append(f"{metric.name}_bucket{{{inner}}} {_number(count)}")
    return [
        *lines,
        f"{metric.name}_sum{labels} {_number(values[0])}",
        f"{metric.name}_count{labels} {_number(count)}",
    ]


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (_INFINITY, -_INFINITY):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _escape_label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


# --- the one registry -----------------------------------------------------------------------

registry = Registry()
"""The metrics of this process."""

os.register_at_fork(after_in_child=registry._after_fork)


def counter(name: str, help: str, *labels: str) -> Counter:
    """A counter: it only grows. Its name ends in `_total`.

    help: what it counts, in a few words. labels: names, if it is counted by something. Asking again
    for a metric that is there gives the same one.

    Raises MetricError for a name that Prometheus would not take, for one that is something else
    already, and when there is no more room.

        errors = http.metrics.counter("mail_errors_total", "Mails that could not be sent.")
        errors.inc()
    """
    return registry.counter(name, help, *labels)


def gauge(name: str, help: str, *labels: str, across: str = "sum") -> Gauge:
    """A gauge: it goes up and down.

    across: what several workers have together: the "sum" of their values, their "max" or "min", or
    "each" one by itself, with its number in the label `worker`. The rest is as for `counter`.

        busy = http.metrics.gauge("pool_busy", "Database connections in use.")
        busy.inc(); ...; busy.dec()
    """
    return registry.gauge(name, help, *labels, across=across)


def histogram(name: str, help: str, *labels: str, buckets: Sequence[float] = DEFAULT_BUCKETS) -> Histogram:
    """A histogram: how values are spread.

    buckets: upper bounds, ascending; what is above the last one is counted as well. The rest is as
    for `counter`.

        sizes = http.metrics.histogram("upload_bytes", "Size of uploads.", buckets=(1e3, 1e6, 1e9))
        sizes.observe(len(data))
    """
    return registry.histogram(name, help, *labels, buckets=buckets)


def render() -> str:
    """The metrics of this process, in Prometheus' text format: for a program without a master.

    mux.handle_func("GET /metrics", lambda w, r: w.write(http.metrics.render()))
    """
    return registry.render()
