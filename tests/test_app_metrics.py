"""The application's metrics: made anywhere, counted in a list or in shared memory, added up by the master."""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from prefork import http
from prefork.http.metrics import MAX_VALUES, MetricError, Registry
from prefork.master.app_metrics import AppMetrics, Family
from prefork.scoreboard import METRIC_WORDS, Scoreboard, Word, WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard(4)
    yield board
    board.close()


# --- counters, gauges, histograms -----------------------------------------------------------


def test_a_counter(registry: Registry) -> None:
    orders = registry.counter("orders_total", "Orders taken.")
    orders.inc()
    orders.inc(2.5)
    orders.inc(0)
    assert orders.value == 3.5
    with pytest.raises(MetricError, match="cannot go back by -1"):
        orders.inc(-1)
    with pytest.raises(MetricError, match="cannot go back by nan"):
        orders.inc(float("nan"))
    assert orders.value == 3.5


def test_a_gauge(registry: Registry) -> None:
    jobs = registry.gauge("jobs", "Jobs that wait.")
    jobs.set(7)
    jobs.inc()
    jobs.dec(3)
    assert jobs.value == 5
    with pytest.raises((TypeError, ValueError)):
        jobs.set("many")  # type: ignore[arg-type]
    assert jobs.value == 5


def test_a_histogram(registry: Registry) -> None:
    sizes = registry.histogram("sizes", "Sizes.", buckets=(1, 10, float("inf")))
    for value in (0, 1, 1.5, 10, 11, 1e9):
        sizes.observe(value)
    assert sizes.bounds == (1.0, 10.0)
    assert (sizes.count, sizes.sum) == (6, 0 + 1 + 1.5 + 10 + 11 + 1e9)
    assert [line for line in registry.render().splitlines() if "bucket" in line] == [
        'sizes_bucket{le="1"} 2',
        'sizes_bucket{le="10"} 4',
        'sizes_bucket{le="+Inf"} 6',
    ]
    with pytest.raises(MetricError, match="cannot count nan"):
        sizes.observe(float("nan"))


def test_the_time_of_a_block_also_if_it_fails(registry: Registry) -> None:
    times = registry.histogram("seconds", "Time.", "what")
    with pytest.raises(KeyError), times.labels("a").time():
        raise KeyError
    with times.labels("a").time():
        pass
    assert times.labels("a").count == 2
    assert 0 < times.labels("a").sum < 1


def test_labels(registry: Registry) -> None:
    orders = registry.counter("orders_total", "Orders.", "kind", "code")
    orders.labels("book", 200).inc()
    orders.labels("book", "200").inc()
    orders.labels(code="200", kind="book").inc()
    orders.labels("pen", 404).inc(5)
    assert orders.labels("book", "200") is orders.labels(kind="book", code=200)
    assert orders.labels("book", 200).value == 3
    assert repr(orders) == "<Counter orders_total{kind=..., code=...}>"
    assert repr(orders.labels("pen", 404)) == "<Counter orders_total{kind=pen, code=404}>"
    # Equal as numbers, other texts.
    assert orders.labels("x", True) is not orders.labels("x", 1)


def test_a_metric_with_labels_has_no_value_itself(registry: Registry) -> None:
    for metric, use in (
        (registry.counter("a_total", "A.", "x"), lambda metric: metric.inc()),
        (registry.gauge("b", "B.", "x"), lambda metric: metric.set(1)),
        (registry.histogram("c", "C.", "x"), lambda metric: metric.observe(1)),
    ):
        with pytest.raises(MetricError, match=r"has labels: use .labels\(x\)"):
            use(metric)


@pytest.mark.parametrize(
    ("values", "names", "why"),
    [
        (("a",), {}, r"takes 2 label values \(kind, code\); got 1"),
        (("a", "b", "c"), {}, "takes 2 label values"),
        ((), {"kind": "a"}, "takes the labels kind, code; got kind"),
        ((), {"kind": "a", "cod": "b"}, "takes the labels kind, code; got kind, cod"),
        (("a",), {"code": "b"}, "takes the labels"),
    ],
)
def test_wrong_labels(registry: Registry, values: Any, names: Any, why: str) -> None:
    orders = registry.counter("orders_total", "Orders.", "kind", "code")
    with pytest.raises(MetricError, match=why):
        orders.labels(*values, **names)


def test_labels_of_what_has_none(registry: Registry) -> None:
    plain = registry.counter("a_total", "A.")
    with pytest.raises(MetricError, match="has no labels to give"):
        plain.labels("x")
    child = registry.counter("b_total", "B.", "x").labels("1")
    with pytest.raises(MetricError, match="has no labels to give"):
        child.labels("1")


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda r: r.counter("orders", "x"), "ends in _total: orders_total"),
        (lambda r: r.counter("my-orders_total", "x"), "such as my_orders_total"),
        (lambda r: r.counter("1_total", "x"), "such as _1_total"),
        (lambda r: r.gauge("", "x"), "is no name of a metric"),
        (lambda r: r.gauge("a:b", "x"), "such as a_b"),
        (lambda r: r.gauge("größe", "x"), "is no name of a metric"),
        (lambda r: r.gauge("jobs_total", "x"), "only the names of counters end in _total; this is a gauge"),
        (lambda r: r.gauge("prefork_x", "x"), "those of the server itself"),
        (lambda r: r.gauge("a", ""), "say in a few words what it counts"),
        (lambda r: r.gauge("a", "x", "b-c"), "'b-c' is no name of a label"),
        (lambda r: r.gauge("a", "x", "__b"), "'__b' is no name of a label"),
        (lambda r: r.gauge("a", "x", "b", "b"), "the label b is named twice"),
        (lambda r: r.gauge("a", "x", across="avg"), "none of sum, max, min, each"),
        (lambda r: r.gauge("a", "x", "worker", across="each"), "adds the label worker itself"),
        (lambda r: r.histogram("a", "x", "le"), "has the label le for its buckets"),
        (lambda r: r.histogram("a", "x", buckets=()), "ascending order"),
        (lambda r: r.histogram("a", "x", buckets=(2, 1)), "ascending order"),
        (lambda r: r.histogram("a", "x", buckets=(1, 1)), "ascending order"),
        (lambda r: r.histogram("a", "x", buckets=(float("nan"), 1)), "ascending order"),
    ],
)
def test_what_cannot_be_made(registry: Registry, make: Any, why: str) -> None:
    with pytest.raises(MetricError, match=why):
        make(registry)
    assert registry.render() == ""


def test_asking_again_gives_the_same_one(registry: Registry) -> None:
    first = registry.counter("a_total", "A.", "x")
    assert registry.counter("a_total", "Told in other words.", "x") is first
    hist = registry.histogram("h", "H.", buckets=(1, 2))
    assert registry.histogram("h", "H.", buckets=(1.0, 2.0)) is hist


@pytest.mark.parametrize(
    "make",
    [
        lambda r: r.counter("a_total", "A."),
        lambda r: r.counter("a_total", "A.", "y"),
        lambda r: r.histogram("h", "H.", buckets=(1, 3)),
        lambda r: r.gauge("h", "H."),
        lambda r: r.gauge("g", "G.", across="max"),
    ],
)
def test_a_name_is_one_thing_only_and_the_error_says_where_it_was_made(registry: Registry, make: Any) -> None:
    registry.counter("a_total", "A.", "x")
    registry.histogram("h", "H.", buckets=(1, 2))
    registry.gauge("g", "G.")
    with pytest.raises(MetricError, match=rf"is something else already, made at {re.escape(__file__)}:\d+"):
        make(registry)


@pytest.mark.parametrize("name", ["h_bucket", "h_sum", "h_count"])
def test_the_lines_of_a_histogram_are_taken(registry: Registry, name: str) -> None:
    registry.histogram("h", "H.")
    with pytest.raises(MetricError, match=f"h, made at .*, has {name} as well"):
        registry.gauge(name, "x")


def test_the_names_of_openmetrics_are_taken(registry: Registry) -> None:
    registry.counter("a_total", "A.")
    with pytest.raises(MetricError, match="has a as well"):
        registry.gauge("a", "x")


# --- room -----------------------------------------------------------------------------------


def test_there_is_room_for_so_many_values(registry: Registry) -> None:
    registry.gauge("other", "x")
    users = registry.counter("users_total", "x", "user")
    for number in range(MAX_VALUES - 1):
        users.labels(number).inc()
    with pytest.raises(
        MetricError, match=f"{MAX_VALUES} of {MAX_VALUES} values are in use, 2047 of them by users_total"
    ):
        users.labels("one more")
    with pytest.raises(MetricError, match="not a user, a URL or an id"):
        registry.gauge("more", "x")
    users.labels(5).inc()
    assert users.labels(5).value == 2
    registry.counter("with_labels_total", "x", "y")  # needs no value
    assert "more" not in registry.render()


def test_the_same_in_shared_memory(registry: Registry, board: Scoreboard) -> None:
    assert MAX_VALUES == METRIC_WORDS
    registry.attach(board.metrics(1))
    users = registry.counter("users_total", "x", "user")
    for number in range(MAX_VALUES):
        users.labels(number).inc()
    with pytest.raises(MetricError, match=r"no room for .*users_total"):
        users.labels("one more")
    with pytest.raises(MetricError, match="no room"):
        users.labels("x" * 140_000)


def test_too_much_before_the_worker_starts(registry: Registry, board: Scoreboard) -> None:
    long = registry.counter("a_total", "x", "text")
    long.labels("x" * 140_000).inc(3)
    with pytest.raises(MetricError, match="more bytes"):
        registry.attach(board.metrics(1))
    assert long.labels("x" * 140_000).value == 3  # it counts where it did


# --- the text -------------------------------------------------------------------------------


def test_the_text_format(registry: Registry) -> None:
    orders = registry.counter("orders_total", "Orders \\ taken\nso far.", "kind")
    orders.labels('a"b\\c\nd').inc()
    registry.gauge("temperature", "T.").set(-3.25)
    registry.gauge("nothing", "N.", "x")
    registry.histogram("h", "H.", "x", buckets=(0.5,)).labels("y").observe(2)
    registry.gauge("odd", "O.", "x").labels("inf").set(float("inf"))
    assert registry.render() == (
        "# HELP orders_total Orders \\\\ taken\\nso far.\n"
        "# TYPE orders_total counter\n"
        'orders_total{kind="a\\"b\\\\c\\nd"} 1\n'
        "# HELP temperature T.\n# TYPE temperature gauge\ntemperature -3.25\n"
        "# HELP nothing N.\n# TYPE nothing gauge\n"
        "# HELP h H.\n# TYPE h histogram\n"
        'h_bucket{x="y",le="0.5"} 0\nh_bucket{x="y",le="+Inf"} 1\nh_sum{x="y"} 2\nh_count{x="y"} 1\n'
        '# HELP odd O.\n# TYPE odd gauge\nodd{x="inf"} +Inf\n'
    )


def test_the_module_has_one_registry() -> None:
    # In a process of its own, because what is made stays.
    code = (
        "from prefork import http\n"
        "c = http.metrics.counter('a_total', 'A.', 'x')\n"
        "c.labels('1').inc()\n"
        "http.metrics.gauge('g', 'G.', across='max').set(2)\n"
        "http.metrics.histogram('h', 'H.', buckets=[1]).observe(3)\n"
        "assert http.metrics.registry.counter('a_total', 'A.', 'x') is c\n"
        "text = http.metrics.render()\n"
        "assert 'a_total{x=\"1\"} 1\\n' in text and 'g 2\\n' in text and 'h_sum 3\\n' in text, text\n"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-W", "error", "-c", code]) == 0
    assert "metrics" not in http.__all__


# --- threads and forks ----------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_threads_lose_nothing(registry: Registry, board: Scoreboard, shared: bool) -> None:
    if shared:
        registry.attach(board.metrics(0))
    counter = registry.counter("a_total", "A.", "x")
    hist = registry.histogram("h", "H.")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work() -> None:
        for number in range(20_000):
            counter.labels(str(number % 50)).inc()
            hist.observe(0.1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sum(counter.labels(str(number)).value for number in range(50)) == 80_000
    assert hist.count == 80_000


def test_a_child_does_not_write_into_its_parents_memory(board: Scoreboard) -> None:
    """The application may fork as well: what its child counts is the child's."""
    code = (
        "import os\n"
        "from prefork import http\n"
        "from prefork.scoreboard import Scoreboard\n"
        "board = Scoreboard(1)\n"
        "c = http.metrics.counter('a_total', 'A.')\n"
        "h = http.metrics.histogram('h', 'H.')\n"
        "c.inc()\n"
        "http.metrics.registry.attach(board.metrics(0))\n"
        "c.inc()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    assert c.value == 2\n"
        "    c.inc(); h.observe(1); http.metrics.gauge('g', 'G.').set(1)\n"
        "    assert c.value == 3\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "c.inc()\n"
        "assert c.value == 3 and h.count == 0\n"
        "assert len(board.metrics(0).declared()) == 4\n"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


# --- put together by the master -------------------------------------------------------------


def seat(board: Scoreboard, number: int, *, generation: int = 1, started: int = 1) -> Registry:
    """A worker on a seat: its registry."""
    board.assign(number, slot=number, generation=generation, started=started)
    board.words[board.base(number) + Word.STATE] = WorkerState.READY
    registry = Registry()
    registry.attach(board.metrics(number))
    return registry


def by_name(families: list[Family]) -> dict[str, dict[tuple[str, ...], list[float]]]:
    return {family.name: family.series for family in families}


def test_values_stay_when_they_move(registry: Registry, board: Scoreboard) -> None:
    before = registry.counter("before_total", "x", "y")
    before.labels("a").inc(4)
    kept = before.labels("a")
    hist = registry.histogram("h", "x", buckets=(1, 2))
    hist.observe(1.5)
    registry.gauge("plain", "x").set(3)
    text = registry.render()
    registry.attach(board.metrics(3))
    assert registry.render() == text
    kept.inc()
    hist.observe(5)
    registry.gauge("after", "x").set(9)
    assert by_name(AppMetrics().families(board)) == {
        "before_total": {("a",): [5.0]},
        "h": {(): [6.5, 0.0, 1.0, 1.0]},
        "plain": {(): [3.0]},
        "after": {(): [9.0]},
    }


def test_workers_are_added_up_by_name_and_labels(board: Scoreboard) -> None:
    one, two = seat(board, 0), seat(board, 1)
    # In another order, and each with something that the other does not have.
    one.counter("a_total", "A.", "x").labels("1").inc()
    one.gauge("g", "G.").set(5)
    one.histogram("h", "H.", buckets=(1,)).observe(0.5)
    two.histogram("h", "H.", buckets=(1,)).observe(2)
    two.gauge("g", "G.").set(7)
    two.counter("b_total", "B.").inc(2)
    two.counter("a_total", "A.", "x").labels("2").inc()
    two.counter("a_total", "A.", "x").labels("1").inc()
    families = AppMetrics().families(board)
    assert by_name(families) == {
        "a_total": {("1",): [2.0], ("2",): [1.0]},
        "b_total": {(): [2.0]},
        "g": {(): [12.0]},
        "h": {(): [2.5, 1.0, 1.0]},
    }
    assert [family.name for family in families] == ["a_total", "b_total", "g", "h"]


def test_gauges_across_workers(board: Scoreboard) -> None:
    for number, value in ((0, 3.0), (1, 8.0), (3, 5.0)):
        registry = seat(board, number)
        for across in ("sum", "max", "min", "each"):
            registry.gauge(f"of_{across}", "x", "y", across=across).labels("z").set(value)
    assert by_name(AppMetrics().families(board)) == {
        "of_sum": {("z",): [16.0]},
        "of_max": {("z",): [8.0]},
        "of_min": {("z",): [3.0]},
        "of_each": {("z", "1"): [3.0], ("z", "2"): [8.0], ("z", "4"): [5.0]},
    }


def test_a_metric_without_values_is_announced(board: Scoreboard) -> None:
    seat(board, 0).counter("a_total", "A.", "x")
    (family,) = AppMetrics().families(board)
    assert (family.name, family.help, family.labels, family.series) == ("a_total", "A.", ("x",), {})


def test_counters_of_the_dead_stay_and_gauges_go(board: Scoreboard) -> None:
    metrics = AppMetrics()
    for life in range(1, 4):
        registry = seat(board, 0, started=life)
        registry.counter("a_total", "A.", "x").labels("1").inc(2)
        registry.histogram("h", "H.", buckets=(1,)).observe(3)
        registry.gauge("g", "G.").set(life)
        assert by_name(metrics.families(board)) == {
            "a_total": {("1",): [2.0 * life]},
            "h": {(): [3.0 * life, 0.0, life]},
            "g": {(): [life]},
        }
        metrics.retire(board, 0)
        board.clear(0)
    assert by_name(metrics.families(board)) == {"a_total": {("1",): [6.0]}, "h": {(): [9.0, 0.0, 3.0]}}
    metrics.retire(board, 0)  # nothing there: nothing added
    assert by_name(metrics.families(board))["a_total"] == {("1",): [6.0]}


def test_there_is_an_end_to_what_is_remembered(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefork.master.app_metrics.MAX_SERIES", 10)
    metrics = AppMetrics()
    for life in range(4):
        registry = seat(board, 0, started=life + 1)
        for number in range(6):
            registry.counter("a_total", "A.", "x").labels(f"{life}.{number}").inc()
        metrics.retire(board, 0)
        board.clear(0)
    (family,) = metrics.families(board)
    assert len(family.series) == 10
    assert ("3.5",) in family.series
    assert repr(metrics) == "<AppMetrics 1 metrics of workers that are gone>"


def test_another_meaning_under_the_same_name(board: Scoreboard) -> None:
    """New code counts by other labels: the newest is told, nothing is added that does not fit."""
    metrics = AppMetrics()
    seat(board, 0, generation=1).counter("a_total", "A.", "x").labels("1").inc(5)
    seat(board, 1, generation=2).counter("a_total", "A.", "y").labels("2").inc(7)
    (family,) = metrics.families(board)
    assert (family.labels, family.series) == (("y",), {("2",): [7.0]})
    metrics.retire(board, 0)
    board.clear(0)
    (family,) = metrics.families(board)
    assert family.labels == ("y",)
    metrics.retire(board, 1)
    board.clear(1)
    seat(board, 1, generation=2).counter("a_total", "A.", "y").labels("2").inc(1)
    (family,) = metrics.families(board)
    assert (family.labels, family.series) == (("y",), {("2",): [8.0]})


def test_a_new_worker_whose_lines_are_as_long_as_the_old_ones(board: Scoreboard) -> None:
    metrics = AppMetrics()
    registry = seat(board, 0, started=1)
    registry.counter("a_total", "A.").inc(1)
    registry.counter("b_total", "B.").inc(2)
    assert by_name(metrics.families(board)) == {"a_total": {(): [1.0]}, "b_total": {(): [2.0]}}
    registry = seat(board, 0, started=2)
    registry.counter("b_total", "B.").inc(2)
    registry.counter("a_total", "A.").inc(1)
    assert by_name(metrics.families(board)) == {"a_total": {(): [1.0]}, "b_total": {(): [2.0]}}


def test_lines_that_make_no_sense_are_left_out(board: Scoreboard) -> None:
    board.assign(0, slot=0, generation=1, started=1)
    area = board.metrics(0)
    good = {"metric": "a_total", "kind": "counter", "help": "A.", "labels": ["x"]}
    for line, values in (
        ({**good, "labels": [1]}, 0),
        ({**good, "metric": 'a"} 1\nb'}, 0),
        ({**good, "kind": "summary"}, 0),
        ({**good, "metric": "h", "kind": "histogram", "bounds": ["1"]}, 0),
        ({"of": "a_total", "values": ["too early"]}, 1),
        (good, 0),
        ({"of": "a_total", "values": ["good"]}, 1),
        ({"of": "a_total", "values": []}, 1),
        ({"of": "a_total", "values": [None]}, 1),
        ({"of": "unknown", "values": ["1"]}, 1),
        ({"of": ["a_total"], "values": {}}, 1),
        ({}, 0),
    ):
        area.declare(line, values)
    assert by_name(AppMetrics().families(board)) == {"a_total": {("good",): [0.0]}}


def test_a_dead_process_has_left_its_numbers(board: Scoreboard) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            registry = seat(board, 2)
            registry.counter("a_total", "A.").inc(3)
            os.kill(os.getpid(), 9)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.waitpid(pid, 0)
    assert by_name(AppMetrics().families(board)) == {"a_total": {(): [3.0]}}
