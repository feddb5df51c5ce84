"""The benchmark: its tables, verdicts and picture from canned numbers, its checks against servers that answer
wrong, its processes, and tiny real runs of the floors where wrk and nginx are installed."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
try:
    from benchlib import (
        cases,
        client_load,
        clients,
        load,
        peers,
        picture,
        process,
        report,
        runner,
        sides,
        targets,
    )
finally:
    sys.path.remove(str(SCRIPTS))

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def sample(cpu: float) -> dict[str, float]:
    return {
        "cpu_us": cpu,
        "rps": 1e6 / cpu,
        "p50_us": 400,
        "p99_us": 900,
        "pss_mib": 20.0,
        "busy": 0.98,
        "others": 0.01,
    }


def place(*rounds: dict[str, float], failed: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"rounds": list(rounds), "failed": list(failed)}


@pytest.fixture
def results() -> dict[str, Any]:
    """A run as the JSON file holds it; prefork meets its target against Go, and misses the floor's by 4 %."""
    return {
        "format": 1,
        "started": "2026-03-01T10:00:00+00:00",
        "finished": "2026-03-01T10:30:00+00:00",
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "memory_gib": 8.0,
            "virtual": True,
            "kernel": "6.1.0",
            "system": "Linux x86_64",
            "load": 0.1,
        },
        "python": {
            "implementation": "CPython",
            "version": "3.13.0",
            "optimized": False,
            "lto": False,
            "commit": "abc1234",
        },
        "versions": {
            "prefork": "0.1.0",
            "uvloop": "0.23.0",
            "uvicorn": "0.54.0",
            "sanic": "1",
            "wrk": "4.1.0",
        },
        "settings": {"rounds": 3, "seconds": 2, "server_core": 0, "client_core": 1},
        "missing": {"nginx": "nginx is not installed"},
        "cases": {
            "pong": {
                "prefork": place(sample(9.8), sample(9.0), sample(9.1)),
                "floor": place(sample(6.5), sample(6.4), sample(6.9)),
                "go": place(sample(10.5), sample(10.0), sample(9.9)),
                "uvicorn": place(sample(16.0), sample(17.0), sample(16.5)),
                "aiohttp": place(sample(21.0), failed=("LoadFailed: wrk met errors: 3 read",)),
            },
            "pipeline": {
                "prefork": place({"cpu_us": 3.0, "rps": 300000, "pss_mib": 20.0, "busy": 0.9}),
                "go": place({"cpu_us": 10.0, "rps": 100000, "pss_mib": 10.0, "busy": 0.9}),
            },
            "idle": {
                "prefork": place({"kib_per_connection": 3.1, "pss_mib": 40.0}),
                "uvicorn": place({"kib_per_connection": 7.7, "pss_mib": 80.0}),
            },
            "start": {"prefork": place({"seconds": 0.61, "worker_mib": 12.0, "pss_mib": 100.0})},
        },
    }


@pytest.fixture
def client_results(results: dict[str, Any]) -> dict[str, Any]:
    """A run of clients; in `get-64` prefork meets the lesser target against Go, not the stretch."""
    results["settings"]["client"] = True
    results["versions"] |= {"httpx": "0.28.1", "aiohttp": "3.14.5", "nginx": "1.22.1", "go": "1.27.3"}
    results["cases"] = {
        "get-64": {
            "prefork": place({"cpu_us": 17.0}, {"cpu_us": 18.0}),
            "floor": place({"cpu_us": 7.0}),
            "go": place({"cpu_us": 16.0}),
            "aiohttp": place({"cpu_us": 50.0}),
            "httpx": place({"cpu_us": 4000.0}),
        },
        "get-1": {
            "prefork": place({"p50_us": 66.0, "cpu_us": 36.0}),
            "go": place({"p50_us": 60.0, "cpu_us": 47.0}),
            "httpx": place(failed=("LoadFailed: the client left with status 1",)),
        },
        "download": {
            "prefork": place({"cpu_ms": 25.0, "grown_mib": 1.5}),
            "go": place({"cpu_ms": 20.0, "grown_mib": 0.5}),
        },
        "pool": {
            "prefork": place(
                {
                    "hosts_ratio": 1.02,
                    "rotate_ratio": 1.4,
                    "waiting_ratio": 1.31,
                    "one_us": 15.0,
                }
            )
        },
    }
    return results


# --- what is made of the numbers -------------------------------------------------------------


def test_medians_and_best_python_peer(results: dict[str, Any]) -> None:
    assert targets.median(results, "pong", "prefork") == 9.1
    assert targets.median(results, "pong", "sanic") is None
    assert targets.median(results, "json", "prefork") is None
    assert targets.best_python_peer(results, "pong") == "uvicorn"
    assert targets.best_python_peer(results, "pipeline") is None


def test_targets_are_judged_by_the_figures_of_the_run(results: dict[str, Any]) -> None:
    verdicts = {(v.target.case, v.target.to, v.target.figure): v for v in targets.judge(results)}
    assert verdicts["pong", "go", "cpu_us"].met
    assert verdicts["pong", "go", "cpu_us"].value == pytest.approx(0.91)
    assert not verdicts["pong", "floor", "cpu_us"].met
    assert verdicts["pong", targets.BEST, "cpu_us"].met
    assert verdicts["idle", None, "kib_per_connection"].met
    assert not verdicts["start", None, "seconds"].met
    assert ("json", "go", "cpu_us") not in verdicts
    text = targets.describe(verdicts["pong", "floor", "cpu_us"])
    assert text.startswith("MISSED  pong")
    assert "1.400    4 % above" in text
    assert "9.10 / 6.50 µs" in text
    assert "22 % above" in targets.describe(verdicts["start", None, "seconds"])


def test_every_load_case_has_a_target() -> None:
    judged = {target.case for target in targets.TARGETS}
    assert judged == set(cases.CASES)
    assert {target.case for target in targets.CLIENT_TARGETS} == set(clients.CASES)


def test_terminal_report(results: dict[str, Any]) -> None:
    text = report.text(results)
    assert "3 interleaved rounds of 2 s" in text
    assert "prefork 0.1.0 abc1234, uvloop 0.23.0, uvicorn 0.54.0, wrk 4.1.0\n" in text
    [line] = [line for line in text.splitlines() if line.startswith("prefork ") and "109,890" in line]
    assert line.split() == [
        "prefork",
        "9.10",
        "-1%",
        "+8%",
        "109,890",
        "400",
        "900",
        "20.0",
        "0.98",
        "0.01",
    ] + [
        "0.91",
        "1.40",
        "0.55",
    ]
    assert "  aiohttp failed: LoadFailed: wrk met errors: 3 read" in text
    assert "nginx was left out: nginx is not installed" in text
    assert "targets: 6 of 8 met" in text


def test_report_of_a_run_without_prefork(results: dict[str, Any]) -> None:
    for case in results["cases"].values():
        case.pop("prefork")
    text = report.text(results)
    assert "targets" not in text
    assert "uvicorn" in text


def test_markdown_table(results: dict[str, Any]) -> None:
    text = report.markdown([results], "scripts/bench.svg")
    assert text.startswith("![CPU time per request of prefork and its peers](scripts/bench.svg)")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    assert rows[0] == [
        "",
        "**prefork**",
        "uvloop+httptools floor",
        "Go net/http",
        "uvicorn (bare ASGI)",
        "aiohttp",
    ]
    assert rows[2] == ["GET /ping (`async def`)", "**9.10**", "6.50", "10.00", "16.50", "21.00"]
    assert rows[4] == ["8,000 idle connections, KiB/conn", "**3.10**", "", "", "7.70", ""]
    assert len(rows) == 7
    assert all(len(row) == 6 for row in rows)


def test_readme_block_is_replaced(results: dict[str, Any], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{sides.SERVER.begin}\nold\n{sides.SERVER.end}\nafter\n")
    report.replace_block(readme, report.markdown([results]).splitlines())
    text = readme.read_text()
    report.replace_block(readme, report.markdown([results]).splitlines())
    assert readme.read_text() == text
    assert text.startswith(f"before\n{sides.SERVER.begin}\n\n**CPython 3.13.0**")
    assert text.endswith(f"\n\n{sides.SERVER.end}\nafter\n")
    assert "old" not in text


def test_readme_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    with pytest.raises(ValueError, match="no block between"):
        report.replace_block(readme, ["new"])
    assert readme.read_text() == "nothing here\n"


def test_picture_is_well_formed_and_has_every_panel(results: dict[str, Any]) -> None:
    root = xml.etree.ElementTree.fromstring(picture.svg(results))
    name = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{name}text")]
    assert "GET /ping, pipelined x16" in texts
    assert "KiB per connection" in texts
    assert "9.1" in texts
    assert "start with 8 workers" not in texts
    width = float(root.attrib["width"])
    assert len(list(root.iter(f"{name}g"))) == 3
    assert all(float(bar.attrib["width"]) <= width for bar in root.iter(f"{name}rect"))


def test_targets_of_clients_are_judged(client_results: dict[str, Any]) -> None:
    verdicts = {
        (v.target.case, v.target.to, v.target.figure, v.target.stretch): v
        for v in targets.judge(client_results)
    }
    assert {key: verdict.met for key, verdict in verdicts.items()} == {
        ("get-64", "go", "cpu_us", False): True,
        ("get-64", "go", "cpu_us", True): False,
        ("get-64", "aiohttp", "cpu_us", False): True,
        ("get-1", "go", "p50_us", False): True,
        ("download", "go", "cpu_ms", False): False,
        ("download", None, "grown_mib", False): True,
        ("pool", None, "hosts_ratio", False): True,
        ("pool", None, "waiting_ratio", False): False,
    }
    text = targets.describe(verdicts["get-64", "go", "cpu_us", True])
    assert text.startswith("MISSED  get-64         <= 1 x go (stretch)  ")
    assert "25.00 / 20.00 ms (go)" in targets.describe(verdicts["download", "go", "cpu_ms", False])


def test_terminal_report_of_clients(client_results: dict[str, Any]) -> None:
    text = report.text(client_results)
    assert "the client on one core, nginx on another" in text
    assert "aiohttp 3.14.5, nginx 1.22.1, go 1.27.3" in text
    assert "wrk" not in text
    assert "  httpx failed: LoadFailed: the client left with status 1" in text
    summary = report.summary(client_results).splitlines()
    assert [line.split() for line in summary[1:3]] == [
        ["get-64", "17.50", "CPU", "µs/req", "1.09", "2.50", "0.35", "aiohttp"],
        ["get-1", "66.00", "p50", "µs", "1.10", "-", "-"],
    ]
    assert "targets: 5 of 8 met" in text


def test_markdown_table_of_clients(client_results: dict[str, Any]) -> None:
    text = report.markdown([client_results])
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    assert rows[0] == ["", "**prefork**", "uvloop floor", "Go net/http", "aiohttp", "httpx"]
    assert rows[2:] == [
        ["GET, 64 at once over keep-alive", "**17.50**", "7.00", "16.00", "50.00", "4,000"],
        ["GET, one at a time, p50 µs", "**66.00**", "", "60.00", "", ""],
        ["GET, one at a time, CPU µs/req", "**36.00**", "", "47.00", "", ""],
        ["download of 100 MiB, streamed, CPU ms", "**25.00**", "", "20.00", "", ""],
        ["download of 100 MiB, streamed, RSS growth MiB", "**1.50**", "", "0.50", "", ""],
        ["pool, 1,000 hosts / one", "**1.02**", "", "", "", ""],
        ["pool, in turn / one", "**1.40**", "", "", "", ""],
        ["pool, 10,000 waiting / none", "**1.31**", "", "", "", ""],
    ]


def test_the_readme_has_a_block_for_each_half(client_results: dict[str, Any], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    server, client = sides.SERVER, sides.CLIENT
    readme.write_text(f"{server.begin}\nservers\n{server.end}\n{client.begin}\nold\n{client.end}\n")
    report.replace_block(readme, report.markdown([client_results]).splitlines(), client)
    text = readme.read_text()
    assert text.startswith(f"{server.begin}\nservers\n{server.end}\n{client.begin}\n\n**CPython 3.13.0**")
    assert "old" not in text


def test_picture_of_clients(client_results: dict[str, Any]) -> None:
    root = xml.etree.ElementTree.fromstring(picture.svg(client_results))
    name = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{name}text")]
    assert {"median latency in µs", "CPU ms per download", "uvloop floor", "4,000"} <= set(texts)
    assert len(list(root.iter(f"{name}g"))) == 3
    # A bar far longer than the others is cut: these must stay apart.
    width = {bar.attrib["y"]: float(bar.attrib["width"]) for bar in root.find(f"{name}g").iter(f"{name}rect")}
    _floor, go, prefork, aiohttp, httpx = width.values()
    assert httpx == aiohttp
    assert prefork - go > 3


def test_cases_of_one_load_are_run_together() -> None:
    plan = runner.Plan(
        cases=["pong", "pong-def", "json"],
        peers=["prefork", "go", "nginx"],
        rounds=1,
        seconds=1,
        server_core=None,
        client_core=None,
    )
    first, second = runner.entrants(plan)
    assert [(e.peer.name, e.case.name, e.counts_for) for e in first] == [
        ("prefork", "pong", ["pong"]),
        ("prefork", "pong-def", ["pong-def"]),
        ("go", "pong", ["pong", "pong-def"]),
        ("nginx", "pong", ["pong", "pong-def"]),
    ]
    assert [e.peer.name for e in second] == ["prefork", "go"]


def test_only_some_peers_have_workers_to_start() -> None:
    assert [name for name, peer in peers.PEERS.items() if peer.takes("start")] == [
        "prefork",
        "uvicorn",
        "granian",
    ]


# --- wrk -------------------------------------------------------------------------------------

GOOD = (
    "requests=1000 duration=1000000 bytes=150000 connect=0 read=0 write=0 status=0 timeout=0 p50=400 p99=900"
)


def test_wrk_output_is_read() -> None:
    counts = load.parse_wrk(f"Running 1s test\n  Requests/sec: 1\nBENCH {GOOD}\n")
    assert (counts["requests"], counts["p99"]) == (1000, 900)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (f"BENCH {GOOD.replace('status=0', 'status=7')}\n", "7 status"),
        (f"BENCH {GOOD.replace('read=0', 'read=2')}\n", "2 read"),
        (f"BENCH {GOOD.replace('requests=1000', 'requests=0')}\n", "no request was answered"),
        ("unable to connect to 127.0.0.1:1 Connection refused\n", "unable to connect"),
    ],
)
def test_errors_of_wrk_fail_the_sample(output: str, message: str) -> None:
    with pytest.raises(load.LoadFailed, match=message):
        load.parse_wrk(output)


# --- clients ---------------------------------------------------------------------------------


def test_only_prefork_has_its_pool_measured() -> None:
    plan = runner.Plan(
        cases=["get-1", "pool"],
        peers=["prefork", "go"],
        rounds=1,
        seconds=1,
        server_core=None,
        client_core=None,
        client=True,
    )
    found = [[(entrant.peer.name, entrant.case.name) for entrant in row] for row in runner.entrants(plan)]
    assert found == [[("prefork", "get-1"), ("go", "get-1")], [("prefork", "pool")]]


def test_figures_of_a_client() -> None:
    counts = client_load.parse(
        'a warning\n{"requests": 1000, "seconds": 2.0, "cpu_seconds": 0.5, "p50_us": 90.04, "p99_us": 200.5, '
        '"peak_mib": 30.0, "grown_mib": 1.25}\n'
    )
    latency = client_load.figures(clients.CASES["get-1"], counts)
    assert (latency["p50_us"], latency["cpu_us"], latency["rps"]) == (90.04, 500.0, 500.0)
    assert latency["busy"] == 0.25
    download = client_load.figures(clients.CASES["download"], counts)
    assert (download["cpu_ms"], download["grown_mib"]) == (0.5, 1.25)
    assert "cpu_us" not in download


def test_figures_of_the_pool_are_ratios_to_one_host() -> None:
    found = {
        name: {"requests": 1000, "cpu_seconds": cpu, "connections": 10_000}
        for name, cpu in zip(clients.POOL, (0.010, 0.011, 0.015, 0.012), strict=True)
    }
    sample = client_load.pool_figures(found)
    assert [sample[f"{name}_ratio"] for name in ("hosts", "rotate", "waiting")] == [1.1, 1.5, 1.2]
    assert sample["one_us"] == 10.0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "no result: ''"),
        ("Traceback\n", "no result: 'Traceback'"),
        ('{"requests": 0}\n', "no request was answered"),
    ],
)
def test_a_client_without_a_result_fails_the_sample(output: str, message: str) -> None:
    with pytest.raises(load.LoadFailed, match=message):
        client_load.parse(output)


@pytest.mark.parametrize(
    ("client", "status", "body", "message"),
    [
        ("floor", "404 Not Found", b"pong", "WrongAnswer: b'HTTP/1.1 404"),
        ("aiohttp", "404 Not Found", b"pong", "WrongAnswer: status 404"),
        ("aiohttp", "200 OK", b"gong", "WrongAnswer: status 200, \"b'gong'\" instead of b'pong'"),
    ],
)
def test_clients_check_what_they_get(
    client: str, status: str, body: bytes, message: str, tmp_path: Path
) -> None:
    pytest.importorskip("uvloop")
    log = tmp_path / "log"
    with answering(lambda data: answer(body, status=status)) as port, log.open("wb") as file:
        argv = [sys.executable, f"client_{client}.py", str(port), "get-1", "1", "0.1"]
        with pytest.raises(load.LoadFailed, match="the client left with status 1"):
            client_load.run_client(argv, seconds=0.1, log=file)
    assert message in log.read_text().splitlines()[-1]


# --- right and wrong answers -----------------------------------------------------------------


@contextlib.contextmanager
def answering(reply: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server on a thread that gives reply(first read) on each connection and closes it; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                conn, _ = listener.accept()
                with conn:
                    data = conn.recv(65536)
                    if data == b"stop":
                        return
                    conn.sendall(reply(data))

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        try:
            yield port
        finally:
            with socket.create_connection(("127.0.0.1", port)) as conn:
                conn.sendall(b"stop")
            thread.join()


def answer(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def item(data: bytes) -> bytes:
    ident = data.split(b" ", 2)[1].rpartition(b"/")[2]
    text = (SCRIPTS / "bench_apps" / "item.json").read_bytes()
    return answer(text.replace(b"00000000", ident), "Content-Type: application/json")


@pytest.mark.parametrize(
    ("case", "reply"),
    [
        ("pong", lambda data: answer(b"pong")),
        ("pong", lambda data: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npong\r\n0\r\n\r\n"),
        ("json", item),
        ("post-1k", lambda data: answer(data.partition(b"\r\n\r\n")[2])),
        ("pipeline", lambda data: answer(b"pong") * data.count(b"GET ")),
        ("connect", lambda data: answer(b"pong", "Connection: close")),
    ],
)
def test_right_answers_pass(case: str, reply: Callable[[bytes], bytes]) -> None:
    with answering(reply) as port:
        cases.CASES[case].check(port)


@pytest.mark.parametrize(
    ("case", "reply", "message"),
    [
        ("pong", lambda data: answer(b"pong", status="404 Not Found"), "status 404"),
        ("pong", lambda data: answer(b"gong"), "gong"),
        ("pong", lambda data: b"", "not a status line"),
        ("json", lambda data: item(data).replace(b"json\r\n", b"xml\r\n"), "Content-Type"),
        ("json", lambda data: item(b"GET /00000009 HTTP/1.1"), "body of 1024 bytes"),
        ("post-1k", lambda data: answer(data.partition(b"\r\n\r\n")[2][:-1] + b"!"), "body of 1024"),
        ("pipeline", lambda data: answer(b"pong") * 15, "not a status line"),
        ("connect", lambda data: answer(b"pong"), "no `Connection: close`"),
        ("connect", lambda data: answer(b"pong", "Connection: close") + b"x", "bytes after"),
        ("download-100m", lambda data: answer(b"x"), "status 200, 1 bytes"),
    ],
)
def test_wrong_answers_are_found(case: str, reply: Callable[[bytes], bytes], message: str) -> None:
    with answering(reply) as port, pytest.raises(cases.WrongAnswer, match=message):
        cases.CASES[case].check(port)


def test_an_upload_must_not_be_answered_too_early() -> None:
    early = pytest.raises(cases.WrongAnswer, match="an answer before the end of the request")
    with answering(lambda data: answer(b"pong")) as port, early:
        clients.check_upload(port)


# --- processes -------------------------------------------------------------------------------


def test_a_process_is_measured_and_ended_with_its_descendants(until: Callable[..., Any]) -> None:
    server = process.Process(["sh", "-c", "sleep 60 & sleep 60 & wait"])
    try:
        tree = until(lambda: (found := server.tree()) and len(found) == 3 and found, what="three processes")
        assert tree[0] == server.pid
        assert server.pss() > 0
        assert server.cpu_seconds() >= 0
        assert server.alive()
    finally:
        server.end()
    assert not server.alive()
    until(lambda: not any(map(running, tree)), what="the end of all three")
    assert server.tree() == [server.pid]
    assert server.pss() == 0


def running(pid: int) -> bool:
    """Whether a process exists and is not just waiting to be reaped by init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_cpu_time_counts_children_that_have_ended() -> None:
    burn = "import time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass"
    script = f"{sys.executable} -c '{burn}'; echo done; read line"
    server = process.Process(["sh", "-c", f"{script}; sleep 60"], stdout=subprocess.PIPE)
    try:
        assert server.popen.stdout is not None
        assert server.popen.stdout.readline() == b"done\n"
        assert server.cpu_seconds() >= 0.09
    finally:
        server.end()
        assert server.popen.stdout is not None
        server.popen.stdout.close()


def test_free_port_is_below_those_of_clients() -> None:
    assert 1024 < runner.free_port() < 32768


# --- the script ------------------------------------------------------------------------------


def bench(*arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, SCRIPTS / "bench", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)


def test_unknown_names_are_refused() -> None:
    done = bench("--cases", "pong,ping")
    assert done.returncode == 2
    assert "unknown: 'ping'; there are pong, pong-def" in done.stderr
    done = bench("--client", "--cases", "pong")
    assert done.returncode == 2
    assert "unknown: 'pong'; there are get-64, get-1" in done.stderr


def test_a_result_that_could_not_be_written_is_found_before_the_run(tmp_path: Path) -> None:
    done = bench("--cases", "pong", "--json", tmp_path / "none" / "out.json")
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_earlier_runs_are_reported_without_measuring(results: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(results))
    results["python"]["version"] = "3.11.7"
    second.write_text(json.dumps(results))
    done = bench("--from", first, "--from", second, "--svg", tmp_path / "out.svg")
    assert done.returncode == 0, done.stderr
    assert "CPython 3.13.0" in done.stdout
    assert "CPython 3.11.7" in done.stdout
    assert "CPython 3.11.7" in (tmp_path / "out.svg").read_text()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_tiny_run_of_the_floor(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = bench(
        *("--as-is", "--cases", "pong", "--peers", "floor", "--rounds", "1", "--seconds", "1"),
        *("--json", out, "--svg", tmp_path / "out.svg"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["cases"]["pong"]["floor"]["failed"] == []
    [measured] = found["cases"]["pong"]["floor"]["rounds"]
    assert measured["requests"] > 100
    assert 1 < measured["cpu_us"] < 1000
    assert measured["pss_mib"] > 5
    assert found["versions"]["wrk"]
    assert str(SCRIPTS.parent) not in out.read_text()
    assert "floor" in done.stdout
    xml.etree.ElementTree.parse(tmp_path / "out.svg")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_peer_that_does_not_start_is_reported_and_not_fatal(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    (tmp_path / "python").write_text(
        "#!/bin/sh\ncase $1 in -c) exec " + sys.executable + ' "$@";; esac\nexit 3\n'
    )
    (tmp_path / "python").chmod(0o755)
    done = bench(
        *("--as-is", "--python", tmp_path / "python", "--json", out),
        *("--cases", "pong", "--peers", "floor", "--rounds", "1", "--seconds", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert "floor failed: WrongAnswer: the server left with status 3" in done.stdout


@pytest.mark.skipif(not NGINX, reason="nginx is not installed")
def test_a_tiny_run_of_the_floor_for_clients(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = bench(
        *("--as-is", "--client", "--cases", "get-1,post-64k", "--peers", "floor"),
        *("--rounds", "1", "--seconds", "1", "--json", out),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    for case in ("get-1", "post-64k"):
        assert found["cases"][case]["floor"]["failed"] == []
        [measured] = found["cases"][case]["floor"]["rounds"]
        assert measured["requests"] > 100
        assert 1 < measured["cpu_us"] < 1000
        assert measured["peak_mib"] > 5
    [measured] = found["cases"]["get-1"]["floor"]["rounds"]
    assert 5 < measured["p50_us"] < 10_000
    assert found["versions"]["nginx"]
    assert str(SCRIPTS.parent) not in out.read_text()
    assert "the client on one core, nginx on another" in done.stdout


@pytest.mark.skipif(not NGINX, reason="nginx is not installed")
def test_a_client_that_does_not_start_is_reported_and_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "python").write_text(
        "#!/bin/sh\ncase $1 in -c) exec " + sys.executable + ' "$@";; esac\necho no >&2\nexit 3\n'
    )
    (tmp_path / "python").chmod(0o755)
    done = bench(
        *("--as-is", "--python", tmp_path / "python", "--client"),
        *("--cases", "get-64", "--peers", "floor", "--rounds", "1", "--seconds", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert "floor failed: LoadFailed: the client left with status 3 [client: no]" in done.stdout
