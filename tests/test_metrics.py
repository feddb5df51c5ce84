"""What the master makes of the scoreboard: totals that never go back, rates, quantiles, /metrics."""

from __future__ import annotations

import math
import os
import random
import re
import socket
import statistics
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import __version__
from prefork.http.metrics import Registry
from prefork.http.server.numbers import Numbers
from prefork.master.exposition import Facts, render
from prefork.master.metrics import (
    History,
    Metrics,
    Retired,
    accept_queue,
    lag,
    proportional,
    quantile,
    resident,
    take_sample,
    totals,
    worker_rows,
)
from prefork.scoreboard import (
    BUCKETS,
    COUNTERS,
    LATENCY_BOUNDS,
    RECORD,
    SEAT_WORDS,
    TICK_EVERY,
    Scoreboard,
    Word,
    WorkerState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FACTS = Facts(generation=3, wanted=2, started=1_700_000_000.0, restarts={"exit": 2, 'odd"\n': 1})
NOW = 1000.0


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard(4)
    yield board
    board.close()


def sit(
    board: Scoreboard,
    seat: int,
    words: Mapping[int, int] | None = None,
    *,
    slot: int = 0,
    generation: int = 1,
    started: float = NOW - 100,
    state: WorkerState = WorkerState.READY,
) -> None:
    """A worker takes a seat."""
    board.assign(seat, slot=slot, generation=generation, started=int(started * 1e9))
    base = board.base(seat)
    fields = {Word.PID: os.getpid(), Word.STATE: state, Word.TICK: int(NOW * 1e9)}
    for word, value in {**fields, **(words or {})}.items():
        board.words[base + word] = value


def bump(board: Scoreboard, seat: int, count: int) -> None:
    for word in COUNTERS:
        board.words[board.base(seat) + word] += count


# --- totals ---------------------------------------------------------------------------------


def test_totals_are_those_of_the_living_and_the_dead(board: Scoreboard) -> None:
    metrics = Metrics(board)
    sit(board, 0, slot=0)
    sit(board, 2, slot=1)
    bump(board, 0, 5)
    bump(board, 2, 7)
    assert metrics.totals()["requests"] == 12
    metrics.retire(0)
    board.clear(0)
    metrics.retire(0)  # twice
    assert metrics.totals()["requests"] == 12
    sit(board, 0, slot=0)
    bump(board, 0, 1)
    assert set(metrics.totals().values()) == {13}
    assert repr(metrics.retired) == "<Retired 5 requests>"


def test_gauges_are_in_no_total(board: Scoreboard) -> None:
    retired = Retired()
    sit(board, 0, {Word.OPEN: 5, Word.CLIENT_IDLE: 5, Word.LAG: 5, Word.RSS: 5})
    retired.take(board, 0)
    assert not any(retired.words)
    assert not any(totals(board, retired))


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["count", "die", "born"]), st.integers(0, 1000)),
        max_size=60,
    )
)
def test_no_total_ever_goes_back(steps: list[tuple[int, str, int]]) -> None:
    board = Scoreboard(4)
    metrics = Metrics(board)
    counted = 0
    before = totals(board, metrics.retired)
    for seat, what, count in steps:
        taken = board.row(seat).state is not WorkerState.EMPTY
        if what == "count" and taken:
            bump(board, seat, count)
            counted += count
        elif what == "die" and taken:
            metrics.retire(seat)
            board.clear(seat)
        elif what == "born" and not taken:
            sit(board, seat)
        now = totals(board, metrics.retired)
        assert all(late >= early for late, early in zip(now, before, strict=True))
        before = now
    assert before[Word.REQUESTS] == before[Word.SENT] == counted
    board.close()


# --- quantiles ------------------------------------------------------------------------------


def spread(durations: list[float]) -> list[int]:
    numbers = Numbers(LATENCY_BOUNDS)
    for duration in durations:
        numbers.answered(200, duration)
    return numbers.by_duration()


def test_no_requests_have_no_quantile() -> None:
    assert quantile([0] * BUCKETS, 0.5) is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_quantile_is_right_within_a_fifth(seed: int, share: float) -> None:
    chance = random.Random(seed)
    shapes: list[Callable[[], float]] = [
        lambda: chance.lognormvariate(math.log(0.02), 1.0),
        lambda: chance.expovariate(10),
        lambda: chance.uniform(0.001, 0.5),
        lambda: 0.0005 * chance.paretovariate(1.5),
        lambda: chance.choice([0.003, 0.005, 0.3]) * chance.uniform(0.9, 1.1),
        lambda: max(0.0002, chance.gauss(0.1, 0.02)),
    ]
    durations = [min(59.0, shapes[seed]()) for _ in range(20_000)]
    right = statistics.quantiles(durations, n=100)[round(share * 100) - 1]
    found = quantile(spread(durations), share)
    assert found is not None
    assert found == pytest.approx(right, rel=0.2)


def test_the_ends_of_the_scale() -> None:
    fast = quantile(spread([0.000_005] * 100), 0.5)
    assert fast is not None
    assert 0 < fast <= 0.0001
    assert quantile(spread([3600.0] * 10), 0.5) == 60.0
    assert quantile(spread([0.1]), 0.5) == pytest.approx(0.1, rel=0.25)
    assert quantile(spread([0.1]), 0.0) == pytest.approx(0.1, rel=0.25)
    assert quantile(spread([0.1]), 1.0) == pytest.approx(0.1)


@given(st.lists(st.integers(0, 50), min_size=BUCKETS, max_size=BUCKETS), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_are_in_order(buckets: list[int], one: float, other: float) -> None:
    low, high = quantile(buckets, min(one, other)), quantile(buckets, max(one, other))
    if sum(buckets):
        assert low is not None
        assert high is not None
        assert 0 <= low <= high <= 60


# --- rows -----------------------------------------------------------------------------------


def test_a_row_has_what_status_promises(board: Scoreboard) -> None:
    words = {Word.REQUESTS: 500, Word.OPEN: 9, Word.ACTIVE: 4, Word.LAG: 2_000_000}
    sit(board, 1, words | {Word.BUCKET + LATENCY_BOUNDS.index(0.01): 500}, slot=2, generation=4)
    began = NOW - 41
    RECORD.pack_into(board.memory, board.record(1, 3), began, b"GET /report HTTP/1.1\r\n", began)
    (row,) = worker_rows(board, NOW)
    assert row["doing"] == [{"request": "GET /report", "seconds": pytest.approx(41.0)}]
    assert 8 <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= 10
    assert row["lag_ms"] == pytest.approx(2.0)
    assert {
        name: row[name] for name in ("worker", "pid", "generation", "state", "requests", "open", "active")
    } == {
        "worker": 3,
        "pid": os.getpid(),
        "generation": 4,
        "state": "ready",
        "requests": 500,
        "open": 9,
        "active": 4,
    }
    assert (row["age"], row["rate"]) == (pytest.approx(100.0), pytest.approx(5.0))
    assert row["rss"] == pytest.approx(resident(os.getpid()), rel=0.2)
    assert row["pss"] is None or row["pss"] <= row["rss"] * 1.1
    assert list(row) == [
        *("worker", "pid", "generation", "state", "age", "requests", "rate", "open", "active"),
        *("lag_ms", "p50_ms", "p90_ms", "p99_ms", "rss", "pss", "doing"),
    ]


def test_rates_and_quantiles_are_those_since_the_sample(board: Scoreboard) -> None:
    slow, fast = Word.BUCKET + LATENCY_BOUNDS.index(10.0), Word.BUCKET + LATENCY_BOUNDS.index(0.001)
    sit(board, 0, {Word.REQUESTS: 1000, slow: 1000})
    sample = take_sample(board, NOW)
    base = board.base(0)
    (row,) = worker_rows(board, NOW + 4, sample, pss=False)
    assert (row["rate"], row["p50_ms"] > 5000) == (0.0, True)  # nothing new: its whole life
    board.words[base + Word.REQUESTS] += 200
    board.words[base + fast] += 200
    (row,) = worker_rows(board, NOW + 4, sample, pss=False)
    assert row["rate"] == pytest.approx(50.0)
    assert row["p99_ms"] <= 1.0
    assert row["pss"] is None


def test_another_worker_on_the_seat_is_not_compared(board: Scoreboard) -> None:
    sit(board, 0, {Word.REQUESTS: 1000}, started=NOW - 50)
    sample = take_sample(board, NOW)
    board.clear(0)
    sit(board, 0, {Word.REQUESTS: 10}, started=NOW + 1)
    (row,) = worker_rows(board, NOW + 3, sample, pss=False)
    assert row["rate"] == pytest.approx(5.0)


def test_what_the_master_knows_better(board: Scoreboard) -> None:
    sit(board, 0, {Word.PID: 0}, state=WorkerState.BOOTING)
    sit(board, 1, slot=1)
    rows = worker_rows(board, NOW, None, {0: (4_000_000, "leaving")}, pss=False)
    assert [(row["pid"], row["state"]) for row in rows] == [(4_000_000, "leaving"), (os.getpid(), "ready")]
    assert rows[0]["lag_ms"] is None
    assert (rows[0]["p50_ms"], rows[0]["rss"]) == (None, 0)


def test_rows_are_in_the_order_of_the_workers(board: Scoreboard) -> None:
    sit(board, 0, slot=2)
    sit(board, 1, slot=0, generation=2)
    sit(board, 2, slot=1)
    sit(board, 3, slot=0, generation=1)
    rows = worker_rows(board, NOW, pss=False)
    assert [(row["worker"], row["generation"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (3, 1)]


def test_lag_grows_while_a_worker_hangs(board: Scoreboard) -> None:
    sit(board, 0, {Word.LAG: 3_000_000})
    assert lag(board.row(0), NOW + 0.1) == pytest.approx(0.003)
    assert lag(board.row(0), NOW + 10) == pytest.approx(10 - TICK_EVERY)


def test_history_compares_with_the_last_seconds(board: Scoreboard) -> None:
    history = History()
    assert history.before(NOW) is None
    sit(board, 0)
    for tenth in range(200):
        history.observe(board, NOW + tenth / 10)
    now = NOW + 20
    sample = history.before(now)
    assert sample is not None
    assert 3 <= now - sample.at <= 7
    assert history.before(sample.at + 1000) is None  # too long ago to say anything of now


def test_metrics_puts_it_together(board: Scoreboard) -> None:
    metrics = Metrics(board)
    now = time.monotonic()
    sit(board, 0, {Word.REQUESTS: 100}, started=now - 10)
    metrics.observe(now)
    board.words[board.base(0) + Word.REQUESTS] += 30
    (row,) = metrics.worker_rows(now + 3)
    assert row["rate"] == pytest.approx(10.0)
    assert metrics.totals()["requests"] == 130
    assert repr(metrics) == "<Metrics <Scoreboard 1 of 4 seats taken> <Retired 0 requests>>"


# --- what the kernel knows ------------------------------------------------------------------


def test_memory_of_a_process() -> None:
    assert 1 << 20 < resident(os.getpid()) < 1 << 34
    assert resident(0) == 0
    assert resident(2**30) == 0
    assert proportional(2**30) is None
    own = proportional(os.getpid())
    assert own is None or 1 << 20 < own < resident(os.getpid()) * 1.1


def test_the_accept_queue(tmp_path: object) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert accept_queue(listener) == 0
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        assert accept_queue(listener) == 3
        for client in clients:
            client.close()
    assert accept_queue(listener) is None
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"{tmp_path}/s")
        unix.listen()
        assert accept_queue(unix) is None


# --- the text -------------------------------------------------------------------------------

_LINE = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (\S+)')


def parse(text: str, *, openmetrics: bool = False) -> dict[str, float]:
    """A strict reader of either format: samples by name and labels, each below its family."""
    samples: dict[str, float] = {}
    families: set[str] = set()
    family = kind = ""
    lines = text.split("\n")
    assert lines.pop() == ""
    if openmetrics:
        assert lines.pop() == "# EOF"
    for line in lines:
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in families, f"{family} is announced twice"
            families.add(family)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family
            assert kind in ("counter", "gauge", "histogram")
        else:
            match = _LINE.fullmatch(line)
            assert match, line
            name, labels, value = match.groups()
            if kind == "histogram":
                assert name in (f"{family}_bucket", f"{family}_sum", f"{family}_count"), line
            elif kind == "counter":
                assert name == (f"{family}_total" if openmetrics else family), line
                assert name.endswith("_total")
            else:
                assert name == family, line
            key = f"{name}{{{labels}}}" if labels else name
            assert key not in samples, f"{key} twice"
            samples[key] = float(value)
    return samples


def filled(board: Scoreboard) -> Metrics:
    metrics = Metrics(board)
    sit(board, 0, {Word.OPEN: 3, Word.ACTIVE: 2, Word.IN_FLIGHT: 1, Word.RSS: 1 << 20}, slot=0)
    sit(board, 1, {Word.OPEN: 4, Word.RSS: 1 << 20, Word.CLIENT_IDLE: 6}, slot=1)
    sit(board, 2, {Word.RSS: 1 << 21, Word.LAG: 10**9}, slot=1, state=WorkerState.DRAINING)
    sit(board, 3, slot=2, state=WorkerState.BOOTING)
    for seat in range(3):
        bump(board, seat, 10 + seat)
        registry = Registry()
        registry.attach(board.metrics(seat))
        registry.counter("orders_total", 'Orders "taken"\nso far.', "kind").labels('a"b\\c\nd').inc(seat + 1)
        registry.histogram("query_seconds", "Q.", buckets=(1, 2)).observe(seat)
        registry.gauge("jobs", "J.", across="each").set(0.5)
        registry.gauge("unused", "U.", "x")
    return metrics


@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_text_of_metrics(board: Scoreboard, openmetrics: bool) -> None:
    metrics = filled(board)
    facts = Facts(
        generation=3,
        wanted=2,
        started=1.5,
        restarts=FACTS.restarts,
        queues={"http://a:1": 7, "unix:/x": None},
    )
    samples = parse(render(metrics, facts, openmetrics=openmetrics, now=NOW), openmetrics=openmetrics)
    one = "1.0" if openmetrics else "1"
    expected = {
        'prefork_requests_total{code_class="2xx"}': 33,
        'prefork_requests_total{code_class="other"}': 33,
        'prefork_request_duration_seconds_bucket{le="0.0001"}': 33,
        f'prefork_request_duration_seconds_bucket{{le="{one}"}}': 33 * (LATENCY_BOUNDS.index(1.0) + 1),
        'prefork_request_duration_seconds_bucket{le="+Inf"}': 33 * BUCKETS,
        "prefork_request_duration_seconds_count": 33 * BUCKETS,
        "prefork_request_duration_seconds_sum": 33e-9,
        "prefork_received_bytes_total": 33,
        "prefork_client_dials_total": 33,
        "prefork_connections_open": 7,
        "prefork_connections_active": 2,
        "prefork_in_flight": 1,
        'prefork_client_connections{state="idle"}': 6,
        'prefork_workers{state="booting"}': 1,
        'prefork_workers{state="ready"}': 2,
        'prefork_workers{state="draining"}': 1,
        "prefork_workers_wanted": 2,
        'prefork_loop_lag_seconds{worker="1"}': 0,
        'prefork_loop_lag_seconds{worker="2"}': 1,
        'prefork_worker_resident_bytes{worker="2"}': 3 << 20,
        'prefork_accept_queue{address="http://a:1"}': 7,
        'prefork_worker_restarts_total{reason="exit"}': 2,
        'prefork_worker_restarts_total{reason="odd\\"\\n"}': 1,
        "prefork_generation": 3,
        "prefork_start_time_seconds": 1.5,
        f'prefork_info{{version="{__version__}"}}': 1,
        'orders_total{kind="a\\"b\\\\c\\nd"}': 6,
        f'query_seconds_bucket{{le="{one}"}}': 2,
        "query_seconds_sum": 3,
        "query_seconds_count": 3,
        'jobs{worker="1"}': 0.5,
        'jobs{worker="2"}': 1.0,
    }
    assert {name: samples.get(name) for name in expected} == expected
    assert "unix" not in str(samples)
    assert 'prefork_loop_lag_seconds{worker="3"}' not in samples
    assert samples["prefork_master_resident_bytes"] > 1 << 20


def test_an_empty_service_has_its_counters_too(board: Scoreboard) -> None:
    samples = parse(render(Metrics(board), Facts(generation=1, wanted=1, started=0.0)))
    assert samples['prefork_requests_total{code_class="5xx"}'] == 0
    assert samples["prefork_request_duration_seconds_count"] == 0


def test_counters_in_the_text_never_go_back(board: Scoreboard) -> None:
    metrics = filled(board)
    before = parse(render(metrics, FACTS))
    for seat in range(3):
        metrics.retire(seat)
        board.clear(seat)
        after = parse(render(metrics, FACTS))
        for name, value in before.items():
            if "_total" in name or "_bucket" in name or name.endswith(("_sum", "_count")):
                assert after[name] == value
    assert "jobs" not in after


def test_sixty_four_workers_are_told_in_a_moment() -> None:
    """Also when all of them hang: nobody is asked. (The limit is generous: others use this machine.)"""
    board = Scoreboard(64)
    metrics = Metrics(board)
    for seat in range(64):
        sit(board, seat, slot=seat)
        registry = Registry()
        registry.attach(board.metrics(seat))
        for number in range(20):
            registry.counter("orders_total", "O.", "kind").labels(number).inc()
    render(metrics, FACTS)
    took = []
    for _ in range(9):
        begin = time.perf_counter()
        render(metrics, FACTS)
        took.append(time.perf_counter() - begin)
    assert min(took) < 0.02
    board.close()


def test_it_does_not_need_the_words_beyond_its_own(board: Scoreboard) -> None:
    assert len(totals(board, Retired())) == SEAT_WORDS
