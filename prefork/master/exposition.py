"""The numbers of the service as text for Prometheus: what /metrics answers.

Two dialects: the text format 0.0.4, which everything reads, and OpenMetrics 1.0 for whoever
asks for it. They differ in how counters are announced, in how bounds are written, and in the
last line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prefork import __version__
from prefork.master.metrics import lag, resident, totals
from prefork.scoreboard import BUCKETS, LATENCY_BOUNDS, Word, WorkerState

if TYPE_CHECKING:
    from prefork.master.app_metrics import Family
    from prefork.master.metrics import Metrics

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_CLASSES: Final = {
    "1xx": Word.STATUS_1XX,
    "2xx": Word.STATUS_2XX,
    "3xx": Word.STATUS_3XX,
    "4xx": Word.STATUS_4XX,
    "5xx": Word.STATUS_5XX,
    "other": Word.STATUS_OTHER,
}

_COUNTERS: Final = (
    (
        "prefork_requests_refused_total",
        Word.REFUSED,
        "What was no request, and was answered 400 or the like.",
    ),
    (
        "prefork_handler_exceptions_total",
        Word.EXCEPTIONS,
        "Exceptions that handlers raised and that were logged.",
    ),
    ("prefork_received_bytes_total", Word.RECEIVED, "Bytes received from clients, after TLS."),
    ("prefork_sent_bytes_total", Word.SENT, "Bytes sent to clients, before TLS."),
    ("prefork_connections_accepted_total", Word.ACCEPTED, "Connections accepted."),
    ("prefork_client_requests_total", Word.CLIENT_REQUESTS, "Requests sent by the HTTP client."),
    ("prefork_client_reuses_total", Word.CLIENT_REUSES, "Of them, those on a kept connection."),
    ("prefork_client_dials_total", Word.CLIENT_DIALS, "Connections the HTTP client began to open."),
    ("prefork_client_dial_errors_total", Word.CLIENT_DIAL_ERRORS, "Of them, those that failed."),
    (
        "prefork_client_retries_total",
        Word.CLIENT_RETRIES,
        "Requests sent again because a kept connection had died.",
    ),
)

_GAUGES: Final = (
    ("prefork_connections_open", Word.OPEN, "Connections open."),
    ("prefork_connections_active", Word.ACTIVE, "Of them, those with a request in flight."),
    ("prefork_in_flight", Word.IN_FLIGHT, "Requests whose handler has begun and is not done."),
)

_INFINITY: Final = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the master knows and the scoreboard does not.

    wanted: workers that there shall be. restarts: workers that were replaced, by reason. started:
    Unix time. queues: connections that wait to be accepted, by address; None where nobody can tell.
    """

    generation: int
    wanted: int
    started: float
    restarts: Mapping[str, int] = field(default_factory=dict)
    queues: Mapping[str, int | None] = field(default_factory=dict)


class _Page:
    """Lines of text, in one of the two dialects."""

    def __init__(self, *, openmetrics: bool) -> None:
        self._openmetrics = openmetrics
        self._lines: list[str] = []

    def family(self, name: str, kind: str, help: str) -> None:
        """Announce a metric; its samples follow."""
        if self._openmetrics and kind == "counter":
            name = name.removesuffix("_total")
        help = help.replace("\\", "\\\\").replace("\n", "\\n")
        if self._openmetrics:
            help = help.replace('"', '\\"')
        self._lines.append(f"# HELP {name} {help}")
        self._lines.append(f"# TYPE {name} {kind}")

    def sample(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        pairs = ",".join([f'{label}="{_escape(text)}"' for label, text in (labels or {}).items()])
        self._lines.append(f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}")

    def single(
        self, name: str, kind: str, help: str, value: float, labels: Mapping[str, str] | None = None
    ) -> None:
        """A metric with one sample."""
        self.family(name, kind, help)
        self.sample(name, value, labels)

    def histogram(
        self,
        name: str,
        bounds: tuple[float, ...],
        buckets: list[float],
        total: float,
        labels: Mapping[str, str],
    ) -> None:
        """The samples of a histogram. buckets: how many fell into each, the last one above all bounds."""
        count = 0.0
        for bound, inside in zip((*bounds, _INFINITY), buckets, strict=True):
            count += inside
            text = _number(bound)
            if self._openmetrics and bound != _INFINITY:
                text = repr(float(bound))
            self.sample(f"{name}_bucket", count, {**labels, "le": text})
        self.sample(f"{name}_sum", total, labels)
        self.sample(f"{name}_count", count, labels)

    def text(self) -> str:
        end = ["# EOF"] if self._openmetrics else []
        return "".join([line + "\n" for line in self._lines + end])


def render(metrics: Metrics, facts: Facts, *, openmetrics: bool = False, now: float | None = None) -> str:
    """Everything, as text. now: time.monotonic(), for tests."""
    now = time.monotonic() if now is None else now
    page = _Page(openmetrics=openmetrics)
    words = totals(metrics.board, metrics.retired)

    page.family("prefork_requests_total", "counter", "Requests answered, by the class of their status.")
    for name, word in _CLASSES.items():
        page.sample("prefork_requests_total", words[word], {"code_class": name})
    page.family(
        "prefork_request_duration_seconds",
        "histogram",
        "From the end of a request's head to the end of its handler.",
    )
    page.histogram(
        "prefork_request_duration_seconds",
        LATENCY_BOUNDS,
        [float(count) for count in words[Word.BUCKET : Word.BUCKET + BUCKETS]],
        words[Word.DURATION] / 1e9,
        {},
    )
    for counter, word, help in _COUNTERS:
        page.single(counter, "counter", help, words[word])
    _render_workers(page, metrics, facts, now)
    _render_master(page, facts)
    for family in metrics.app.families(metrics.board):
        _render_family(page, family)
    return page.text()


def _render_workers(page: _Page, metrics: Metrics, facts: Facts, now: float) -> None:
    """What is true now of the processes there are."""
    board = metrics.board
    rows = list(board.rows())
    words = [board.snapshot(row.seat) for row in rows]
    for gauge, word, help in _GAUGES:
        page.single(gauge, "gauge", help, sum(seat[word] for seat in words))
    page.family("prefork_client_connections", "gauge", "Connections of the HTTP client.")
    page.sample(
        "prefork_client_connections", sum(seat[Word.CLIENT_IDLE] for seat in words), {"state": "idle"}
    )
    page.sample(
        "prefork_client_connections", sum(seat[Word.CLIENT_ACTIVE] for seat in words), {"state": "active"}
    )
    page.single("prefork_workers_wanted", "gauge", "Workers that there shall be.", facts.wanted)
    page.family("prefork_workers", "gauge", "Worker processes, by what they do.")
    for state in (WorkerState.BOOTING, WorkerState.READY, WorkerState.DRAINING):
        count = sum(row.state is state for row in rows)
        page.sample("prefork_workers", count, {"state": state.name.lower()})
    # While a worker is being replaced it has two processes: one line for both.
    late: dict[str, float] = {}
    worst: dict[str, float] = {}
    memory: dict[str, int] = {}
    for row in rows:
        worker = str(row.slot + 1)
        memory[worker] = memory.get(worker, 0) + row.rss
        seconds = lag(row, now)
        if seconds is not None:
            late[worker] = max(late.get(worker, 0.0), seconds)
            worst[worker] = max(worst.get(worker, 0.0), row.lag_max / 1e9, seconds)
    for name, help, values in (
        (
            "prefork_loop_lag_seconds",
            "By how much a worker's event loop is late; grows while it hangs.",
            late,
        ),
        ("prefork_loop_lag_max_seconds", "The same, the worst of the last ten to twenty seconds.", worst),
        ("prefork_worker_resident_bytes", "Memory of a worker.", memory),
    ):
        page.family(name, "gauge", help)
        for worker, value in sorted(values.items(), key=lambda item: int(item[0])):
            page.sample(name, value, {"worker": worker})


def _render_master(page: _Page, facts: Facts) -> None:
    queues = {address: length for address, length in facts.queues.items() if length is not None}
    if queues:
        page.family("prefork_accept_queue", "gauge", "Connections that wait to be accepted.")
        for address, length in queues.items():
            page.sample("prefork_accept_queue", length, {"address": address})
    page.family("prefork_worker_restarts_total", "counter", "Workers that were replaced, by reason.")
    for reason, count in sorted(facts.restarts.items()):
        page.sample("prefork_worker_restarts_total", count, {"reason": reason})
    page.single(
        "prefork_generation", "gauge", "Generation of the code; a reload makes a new one.", facts.generation
    )
    page.single("prefork_start_time_seconds", "gauge", "When the master started, Unix time.", facts.started)
    page.single("prefork_master_resident_bytes", "gauge", "Memory of the master.", resident(os.getpid()))
    page.single("prefork_info", "gauge", "The version of prefork.", 1, {"version": __version__})


def _render_family(page: _Page, family: Family) -> None:
    page.family(family.name, family.kind, family.help)
    for key, values in sorted(family.series.items()):
        labels = dict(zip(family.labels, key, strict=True))
        if family.kind == "histogram":
            page.histogram(family.name, family.bounds, values[1:], values[0], labels)
        else:
            page.sample(family.name, values[0], labels)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (_INFINITY, -_INFINITY):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
