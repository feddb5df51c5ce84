"""The benchmark: its tables, verdicts and picture from canned numbers, its checks against servers that answer
wrong, its processes, and one tiny real run of the floor where wrk is installed."""

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
    from benchlib import cases, load, peers, picture, process, report, runner, targets
finally:
    sys.path.remove(str(SCRIPTS))


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
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.replace_block(readme, report.markdown([results]).splitlines())
    text = readme.read_text()
    report.replace_block(readme, report.markdown([results]).splitlines())
    assert readme.read_text() == text
    assert text.startswith(f"before\n{report.BEGIN}\n\n**CPython 3.13.0**")
    assert text.endswith(f"\n\n{report.END}\nafter\n")
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
