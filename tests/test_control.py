"""The control socket: what it answers, whom it obeys, what clients cannot do to the loop, and its file."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import logging
import os
import resource
import selectors
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefork.master import control, control_client
from prefork.master.control import MAX_CLIENTS, ControlService
from prefork.master.control_client import MAX_LINE, TRANSITIONS, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helpers = _load("helpers_control")


class Bench:
    """A service at a socket file, its loop, and as many clients as a test wants."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = str(path)
        self.loop = helpers.FakeLoop()
        self.service = ControlService(f"unix:{path}", **options)
        self.peers: list[Any] = []
        self.service.attach(self.loop)

    def peer(self) -> Any:
        peer = helpers.Peer(self.loop, self.path)
        self.peers.append(peer)
        return peer

    def idle(self) -> bool:
        """Whether nothing but the listener is left."""
        return self.loop.sockets() == 1 and not self.service._clients

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.service.close()
        self.loop.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "control.sock")
    yield bench
    bench.close()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients have a twentieth of a second, and it is looked after."""
    monkeypatch.setattr(control, "SWEEP_EVERY", 0.01)
    for state in (State.READING, State.SENDING):
        monkeypatch.setitem(control_client._TIMES, state, 0.05)
    monkeypatch.setattr(control_client, "LINE_WITHIN", 0.05)


# --- what it answers --------------------------------------------------------------------------


def test_every_request(bench: Bench) -> None:
    peer = bench.peer()
    who = f"control socket (pid {os.getpid()}, user {os.geteuid()})"
    assert peer.ask(do="status") == {"ok": True, "status": helpers.STATUS}
    assert peer.ask(do="scale", workers=4) == {"ok": True, "text": "from 2 to 4 workers"}
    assert peer.ask(do="reload")["ok"] is True
    assert peer.ask(do="reload", wait=False)["ok"] is True
    assert peer.ask(do="stacks")["stacks"] == {"1": bench.loop.stacks_are[1]}
    assert peer.ask(do="stacks", worker=1)["stacks"] == {"1": bench.loop.stacks_are[1]}
    assert "finished first" in peer.ask(do="stop")["text"]
    assert "at once" in peer.ask(do="stop", now=True)["text"]
    assert bench.loop.calls == [
        ("status",),
        ("scale", 4),
        ("reload", False, who),
        ("reload", False, who),
        ("stacks", None),
        ("stacks", 1),
        ("stop", False, who),
        ("stop", True, who),
    ]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"status", "not JSON: 'status'"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 60000, "not JSON"),
        (b'{"do": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"do": ' + b"1" * 4000 + b"}", '"do" must be one of status, reload, scale, stop, stacks, not'),
        *((b'{"do": ' + b"[" * deep + b"]" * deep + b"}", "") for deep in range(300, 1100, 100)),
        (b"[]", "not an object such as"),
        (b"null", "not an object such as"),
        (b"{}", '"do" must be one of'),
        (b'{"do": ["status"]}', '"do" must be one of'),
        (b'{"do": "exec"}', "\"do\" must be one of status, reload, scale, stop, stacks, not 'exec'"),
        (b'{"do": "status", "all": true}', "status has no 'all'; it has nothing more"),
        (b'{"do": "reload", "wait": 1}', "wait of reload must be true or false, not 1"),
        (b'{"do": "stop", "now": "yes"}', "now of stop must be true or false, not 'yes'"),
        (b'{"do": "stop", "wait": true}', "stop has no 'wait'; it has now"),
        (b'{"do": "scale"}', "scale needs workers"),
        (b'{"do": "scale", "workers": 0}', "workers of scale must be 1 to 1024, not 0"),
        (b'{"do": "scale", "workers": true}', "workers of scale must be 1 to 1024, not True"),
        (b'{"do": "scale", "workers": 2.0}', "workers of scale must be 1 to 1024, not 2.0"),
        (b'{"do": "scale", "workers": 1e999}', "workers of scale must be 1 to 1024, not inf"),
        (b'{"do": "scale", "workers": 9}', "this service can have at most 8 workers"),
        (b'{"do": "stacks", "worker": "1"}', "worker of stacks must be 1 to 1024, not '1'"),
        (b'{"do": "stacks", "worker": 99}', "there is no worker 99"),
    ],
)
def test_wrong_requests_are_answered_and_the_next_one_is_served(
    bench: Bench, line: bytes, error: str
) -> None:
    peer = bench.peer()
    answer = peer.send(line + b"\n").line()
    assert answer["ok"] is False
    assert error in answer["error"]
    assert len(answer["error"]) < 300
    assert peer.ask(do="status")["ok"] is True
    assert [call[0] for call in bench.loop.calls if call[0] not in ("scale", "stacks")] == ["status"]


def test_reload_with_wait_answers_all_who_wait_when_it_is_over(bench: Bench) -> None:
    patient, other, gone = bench.peer(), bench.peer(), bench.peer()
    for peer in (patient, other, gone):
        peer.send(b'{"do": "reload", "wait": true}\n')
    bench.loop.until(lambda: len(bench.loop.waiters) == 3)
    assert bench.peer().ask(do="status")["ok"] is True  # nobody is kept from asking meanwhile
    gone.close()
    bench.loop.until(lambda: len(bench.service._clients) == 3)
    assert patient.buffer == other.buffer == b""
    text = 'reload failed: importing app failed:\nTraceback\n  File "app.py", line 3\nSyntaxError: "\ud800"'
    for done in bench.loop.waiters:
        done(False, text)
    assert patient.line() == other.line() == {"ok": False, "error": text}
    assert patient.ask(do="status")["ok"] is True
    other.send(b'{"do": "reload", "wait": true}\n')
    bench.loop.until(lambda: len(bench.loop.waiters) == 4)
    bench.loop.waiters[3](True, "generation 4 serves")
    assert other.line() == {"ok": True, "text": "generation 4 serves"}


def test_a_second_end_of_a_reload_does_no_harm(bench: Bench) -> None:
    peer = bench.peer()
    peer.send(b'{"do": "reload", "wait": true}\n')
    bench.loop.until(lambda: bench.loop.waiters)
    bench.loop.waiters[0](True, "done")
    bench.loop.waiters[0](True, "done twice")
    assert peer.line()["text"] == "done"
    assert peer.ask(do="status")["ok"] is True


def test_pipelined_requests_are_answered_in_order_one_per_turn(bench: Bench) -> None:
    one, two = bench.peer(), bench.peer()
    one.send(b'\n\r\n{"do": "reload", "wait": true}\r\n' + b'{"do": "status"}\n' * 3 + b'{"do": "nothing"}')
    two.send(b'{"do": "scale", "workers": 1}\n')
    bench.loop.until(lambda: bench.loop.waiters)
    assert two.line()["ok"] is True
    assert ("status",) not in bench.loop.calls
    bench.loop.waiters[0](True, "done")
    assert ("status",) not in bench.loop.calls, "not within the call that ends the reload"
    assert one.line() == {"ok": True, "text": "done"}
    for _ in range(3):
        assert one.line()["status"] == helpers.STATUS
    one.sock.shutdown(socket.SHUT_WR)  # the end of file ends the last line, too
    assert '"do" must be' in one.line()["error"]
    assert one.gone()


def test_who_has_sent_all_is_answered_still(bench: Bench) -> None:
    peer = bench.peer()
    peer.send(b'{"do": "reload", "wait": true}\n').sock.shutdown(socket.SHUT_WR)
    bench.loop.until(lambda: bench.loop.waiters and bench.loop.sockets() == 1)  # no reading any more
    for _ in range(5):
        bench.loop.turn()
    bench.loop.waiters[0](True, "done")
    assert peer.line() == {"ok": True, "text": "done"}
    assert peer.gone()
    assert bench.idle()


def test_long_texts_lose_their_middle(bench: Bench) -> None:
    peer = bench.peer()
    bench.loop.stacks_are = {number: f"{number} begin {'x' * 100_000} end" for number in range(1, 65)}
    stacks = peer.ask(do="stacks")["stacks"]
    assert list(stacks) == [str(number) for number in range(1, 65)]
    assert stacks["7"].startswith("7 begin x")
    assert stacks["7"].endswith("x end")
    assert "characters left out" in stacks["7"]
    assert sum(map(len, stacks.values())) < control.MAX_STACKS + 64 * 100
    peer.send(b'{"do": "reload", "wait": true}\n')
    bench.loop.until(lambda: bench.loop.waiters)
    bench.loop.waiters[0](False, "y" * 10_000_000)
    assert len(peer.line()["error"]) < control.MAX_TEXT + 100


def test_a_fault_behind_a_request_is_told_and_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    peer = bench.peer()
    bench.loop.failing = True
    assert peer.ask(do="status")["error"].startswith("internal error: KeyError: 'no such seat'; the log")
    assert caplog.records[0].exc_info
    bench.loop.failing = False
    bench.loop.status_is = {"rate": float("nan")}
    assert peer.ask(do="status")["error"].startswith("internal error: the answer is not JSON")
    bench.loop.status_is = helpers.STATUS
    assert peer.ask(do="status")["ok"] is True


# --- whom it obeys ----------------------------------------------------------------------------


def test_strangers_are_told_and_logged_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "_credentials", lambda sock: (99, 4242))
    for _ in range(3):
        peer = bench.peer()
        peer.send(b'{"do": "stop"}\n')
        error = peer.line()["error"]
        assert error.startswith("permission denied: root")
        assert error.endswith("may control this service, user 4242 may not")
        assert peer.gone()
    monkeypatch.setattr(control, "_credentials", lambda sock: (99, 0))
    assert bench.peer().ask(do="status")["ok"] is True
    assert bench.loop.calls == [("status",)]
    assert [record.getMessage().partition(":")[2][:33] for record in caplog.records] == [
        " refused user 4242 (pid 99): root"
    ]


def test_allowed_uids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path / "c.sock", allowed_uids=[7])
    monkeypatch.setattr(control, "_credentials", lambda sock: (99, 7))
    assert bench.peer().ask(do="status")["ok"] is True
    monkeypatch.setattr(control, "_credentials", lambda sock: (99, 0))
    assert bench.peer().line()["error"] == (
        "permission denied: user 7 may control this service, user 0 may not"
    )
    bench.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_real_stranger() -> None:
    """Refused by the kernel at a file, and by us where there is none, or one that everybody may write."""
    name = f"prefork-test-{os.getpid()}"
    # Not in tmp_path, which lets no stranger in.
    for address, mode in ((f"@{name}", 0o600), (f"/tmp/{name}.sock", 0o666), (f"/tmp/{name}.sock", 0o600)):

        def ask(path: str = address.replace("@", "\0")) -> str:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(path)
                with contextlib.suppress(BrokenPipeError):  # turned away before it has asked
                    sock.sendall(b'{"do": "status"}\n')
                return sock.recv(65536).decode()

        service, loop = attached(f"unix:{address}", mode=mode)
        try:
            answer = helpers.as_user(65533, ask, loop.turn)
            friend = helpers.as_user(0, ask, loop.turn)
        finally:
            service.close()
            loop.close()
        if address.startswith("/") and mode == 0o600:
            assert answer == "PermissionError: [Errno 13] Permission denied"
        else:
            assert json.loads(answer)["error"] == (
                "permission denied: root may control this service, user 65533 may not"
            )
        assert json.loads(friend)["ok"] is True
        assert loop.calls == [("status",)]


# --- what clients cannot do -------------------------------------------------------------------


def test_no_more_than_so_many_clients(bench: Bench) -> None:
    peers = [bench.peer() for _ in range(MAX_CLIENTS)]
    assert all(peer.ask(do="status")["ok"] for peer in peers)
    extra = bench.peer()
    extra.send(b'{"do": "status"}\n')
    assert extra.line()["error"] == f"too many clients: {MAX_CLIENTS} are connected already"
    assert extra.gone()
    peers[3].close()
    bench.loop.until(lambda: len(bench.service._clients) == MAX_CLIENTS - 1)
    assert bench.peer().ask(do="status")["ok"] is True


@pytest.mark.parametrize("size", [MAX_LINE + 1, MAX_LINE * 20])
def test_an_endless_line_is_refused(bench: Bench, size: int) -> None:
    peer = bench.peer()
    data = memoryview(b"x" * size)

    def fed() -> bool:
        nonlocal data
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            data = data[peer.sock.send(data) :]
        peer.look()
        return b"\n" in peer.buffer

    bench.loop.until(fed)
    assert "at most 65536 bytes" in peer.line()["error"]
    assert peer.gone()
    assert bench.idle()


def test_the_longest_line_is_fine(bench: Bench) -> None:
    peer = bench.peer()
    request = b'{"do": "status"' + b" " * (MAX_LINE - 16) + b"}"
    assert len(request) == MAX_LINE
    peer.send(request)
    bench.loop.until(lambda: [client.state for client in bench.service._clients] == [State.READING])
    assert peer.send(b"\n").line()["ok"] is True


@pytest.mark.usefixtures("hurry")
def test_a_line_that_does_not_end_in_time(bench: Bench) -> None:
    slow, good = bench.peer(), bench.peer()
    begin = time.monotonic()
    slow.send(b"{")

    def told() -> bool:
        slow.send(b" ")  # a byte now and then does not help
        slow.look()
        return slow.buffer != b""

    bench.loop.until(told)
    assert time.monotonic() - begin >= 0.05
    assert slow.line()["error"] == "no complete request within 0.05 s"
    assert slow.gone()
    assert good.ask(do="status")["ok"] is True


def test_who_asks_nothing_is_sent_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SWEEP_EVERY", 0.01)
    monkeypatch.setitem(control_client._TIMES, State.IDLE, 0.02)
    monkeypatch.setattr(control_client, "IDLE_WITHIN", 0.02)
    silent, asked = bench.peer(), bench.peer()
    assert asked.ask(do="status")["ok"] is True
    assert silent.gone()
    assert asked.gone()
    assert bench.idle()


@pytest.mark.usefixtures("hurry")
def test_who_waits_for_a_reload_has_time(bench: Bench) -> None:
    peer = bench.peer()
    peer.send(b'{"do": "reload", "wait": true}\n')
    begin = time.monotonic()
    bench.loop.until(lambda: time.monotonic() > begin + 0.2)
    assert not peer.buffer
    bench.loop.waiters[0](True, "done")
    assert peer.line() == {"ok": True, "text": "done"}


@pytest.mark.usefixtures("hurry")
def test_who_does_not_take_an_answer_is_cut_and_nobody_waits(bench: Bench) -> None:
    bench.loop.stacks_are = dict.fromkeys(range(1, 17), "x" * 65536)  # more than a socket holds
    lazy, good = bench.peer(), bench.peer()
    lazy.send(b'{"do": "stacks"}\n' * 1000)
    bench.loop.until(lambda: bench.loop.calls)
    begin = time.monotonic()
    assert good.ask(do="status")["ok"] is True
    assert time.monotonic() - begin < 1.0
    bench.loop.until(lambda: len(bench.service._clients) == 1)
    assert bench.loop.calls == [("stacks", None), ("status",)], "one answer at a time is made"


def test_what_a_waiting_client_sends_is_bounded(bench: Bench) -> None:
    peer = bench.peer()
    peer.send(b'{"do": "reload", "wait": true}\n')
    bench.loop.until(lambda: bench.loop.waiters)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 100_000_000:
            sent += peer.sock.send(b'{"do": "status"}\n' * 1000)
            bench.loop.turn()
    assert sent < 100_000_000
    (client,) = bench.service._clients
    assert len(client._input) <= MAX_LINE + 1
    begin = time.monotonic()
    for _ in range(10):
        bench.loop.turn(0.01)
    assert time.monotonic() - begin > 0.05, "and the loop rests"
    bench.loop.waiters[0](True, "done")
    assert peer.line()["text"] == "done"
    assert peer.line()["ok"] is True


def test_who_leaves_in_the_middle(bench: Bench) -> None:
    for data in (
        b"",
        b"{",
        b'{"do": "status"}\n',
        b'{"do": "stacks"}\n' * 5,
        b'{"do": "reload", "wait": true}\n',
    ):
        peer = bench.peer()
        peer.send(data)
        bench.loop.turn()
        peer.close()
        bench.loop.until(bench.idle)
    for done in bench.loop.waiters:
        done(True, "nobody is there")


def test_no_descriptors_left(bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(control, "_PAUSE", 0.02)
    peer = bench.peer()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        bench.loop.turn()
        assert bench.loop.sockets() == 0, "it does not listen for a while"
        begin = time.monotonic()
        bench.loop.until(lambda: time.monotonic() > begin + 0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert peer.ask(do="status")["ok"] is True
    assert [record.getMessage() for record in caplog.records] == [
        f"control socket: cannot accept: {os.strerror(errno.EMFILE)}"
    ]


def test_the_kernel_watches_no_more_descriptors(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = bench.peer()
    real = bench.loop.register

    def full(sock: socket.socket, events: int, callback: Callable[[int], object]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bench.loop, "register", full)
    assert peer.gone()
    monkeypatch.setattr(bench.loop, "register", real)
    peer = bench.peer()
    peer.send(b'{"do": "reload", "wait": true}\n' + b'{"do": "status"}\n' * 5000)  # the input is full
    bench.loop.until(lambda: bench.loop.waiters and bench.loop.sockets() == 1)
    monkeypatch.setattr(bench.loop, "register", full)
    bench.loop.waiters[0](True, "done")
    assert peer.line()["ok"] is True
    assert peer.gone()
    monkeypatch.setattr(bench.loop, "register", real)
    assert bench.peer().ask(do="status")["ok"] is True


WORDS = [
    b'{"do": "status"}',
    b'{"do":',
    b'"scale", "workers": 3}',
    b'{"do": "stacks", "worker": 1}',
    b"{}",
    b"\n",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.one_of(
                st.binary(max_size=40),
                st.sampled_from(WORDS),
                st.sampled_from(["turn", "half", "close", "finish"]),
                st.just(b'{"do": "reload", "wait": true}\n'),
            ),
        ),
        max_size=40,
    )
)
def test_whatever_clients_do_the_service_serves(tmp_path: Path, steps: list[tuple[int, Any]]) -> None:
    bench = Bench(tmp_path / "fuzz.sock")
    try:
        for number, step in steps:
            while len(bench.peers) <= number:
                bench.peer()
            peer = bench.peers[number]
            match step:
                case bytes():
                    with contextlib.suppress(OSError):
                        peer.sock.send(step)
                case "turn":
                    bench.loop.turn()
                case "half":
                    with contextlib.suppress(OSError):
                        peer.sock.shutdown(socket.SHUT_WR)
                case "close":
                    peer.close()
                    bench.peers[number] = bench.peer()
                case "finish":
                    for done in bench.loop.waiters:
                        done(True, "done")
        good = bench.peer()
        assert good.ask(do="status")["ok"] is True
        for peer in bench.peers[:-1]:
            with contextlib.suppress(OSError):
                peer.look()
            assert all(isinstance(json.loads(line)["ok"], bool) for line in peer.buffer.splitlines())
            peer.close()
        for done in bench.loop.waiters:
            done(True, "done")
        bench.loop.until(lambda: len(bench.service._clients) == 1)
    finally:
        bench.close()


@given(line=st.binary().map(lambda data: data.replace(b"\n", b"")) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["do", "wait", "now", "workers", "worker"]) | st.text(), inner, max_size=3
    ),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_every_line_is_a_request_or_a_value_error(line: bytes) -> None:
    error = ""
    try:
        assert control._Request.parse(line).do in control._FIELDS
    except ValueError as exc:
        error = str(exc)
        assert error != ""
    assert error.isprintable()
    assert len(error) < 300


def test_states_are_all_reached_as_the_table_says() -> None:
    assert set(TRANSITIONS) == set(State) == set(control_client._TIMES)
    assert all(State.CLOSED in after for state, after in TRANSITIONS.items() if state is not State.CLOSED)


# --- the file ---------------------------------------------------------------------------------


def attached(address: str, **options: Any) -> tuple[ControlService, Any]:
    service, loop = ControlService(address, **options), helpers.FakeLoop()
    service.attach(loop)
    return service, loop


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_mode_of_the_file_and_its_end(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "control.sock"
    before = os.umask(umask)
    try:
        service, loop = attached(f"unix:{path}", mode=mode)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == mode
    assert stat.S_ISSOCK(path.lstat().st_mode)
    assert os.listdir(tmp_path) == ["control.sock"]
    service.close()
    service.close()
    loop.close()
    assert os.listdir(tmp_path) == []


def test_it_is_never_wider_and_complete_when_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = os.rename

    def rename(source: str, target: str) -> None:
        seen.append(stat.S_IMODE(os.lstat(source).st_mode))
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(source)  # it listens
        assert not os.path.lexists(target)
        real(source, target)

    def chmod(path: str, mode: int) -> None:
        seen.append(stat.S_IMODE(os.lstat(path).st_mode))

    before = os.umask(0)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "chmod", chmod)
    try:
        service, loop = attached(f"unix:{tmp_path}/c")
    finally:
        os.umask(before)
    assert seen == [0o600, 0o600]
    service.close()
    loop.close()


def test_a_live_one_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "control.sock"
    first = Bench(path)
    inode = path.lstat().st_ino
    second, loop = attached(f"unix:{path}")
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].getMessage() == (
        f"no control socket: cannot listen on unix:{path}: a live server listens there; choose another "
        "path; `prefork status` and the like cannot reach this service, all else works"
    )
    assert loop.sockets() == 0
    second.close()
    loop.close()
    assert path.lstat().st_ino == inode
    assert first.peer().ask(do="status")["ok"] is True
    assert os.listdir(tmp_path) == ["control.sock"]
    first.close()


def test_a_live_one_with_a_full_queue_is_not_taken(tmp_path: Path, caplog: Any) -> None:
    path = str(tmp_path / "control.sock")
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(path)
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(path)
        service, loop = attached(f"unix:{path}")
        assert "a live server" in caplog.text
        service.close()
        loop.close()
    assert os.path.exists(path)


def test_a_dead_one_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bench = Bench(path)
    assert bench.peer().ask(do="status")["ok"] is True
    bench.close()
    assert not path.exists()
    assert not caplog.records


def test_who_starts_at_the_same_time_does_not_steal(tmp_path: Path) -> None:
    """Many processes, one name left behind by a dead server: exactly one gets it."""
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    ready, go = os.pipe()
    told, tell = os.pipe()
    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(go)
                os.read(ready, 1)  # end of file: all at once
                _service, loop = attached(f"unix:{path}")
                os.write(tell, b"1" if loop.sockets() else b"0")
                os.close(tell)
                time.sleep(60)
            finally:
                os._exit(1)
        pids.append(pid)
    os.close(ready)
    os.close(go)
    os.close(tell)
    answers = b""
    while len(answers) < 8 and (data := os.read(told, 8)):
        answers += data
    os.close(told)
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert sorted(answers) == sorted(b"00000001")
    assert os.listdir(tmp_path) == ["control.sock"]


def test_at_the_end_only_its_own_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    first = Bench(path)
    path.unlink()
    second = Bench(path)
    first.close()
    assert second.peer().ask(do="status")["ok"] is True
    path.unlink()
    path.write_text("somebody's")
    second.close()
    assert path.read_text() == "somebody's"


def test_a_child_closes_and_removes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "control.sock")
    peer = bench.peer()
    peer.send(b'{"do": "reload", "wait": true}\n')
    bench.loop.until(lambda: bench.loop.waiters)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fds = len(os.listdir("/proc/self/fd"))
            bench.loop.selector.close()
            bench.service.close()
            code = 0 if len(os.listdir("/proc/self/fd")) == fds - 3 else 2  # listener, client, epoll
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    bench.loop.waiters[0](True, "done")
    assert peer.line()["text"] == "done"
    assert bench.peer().ask(do="status")["ok"] is True
    bench.close()


def test_after_the_end_nothing_happens_any_more(bench: Bench) -> None:
    peer = bench.peer()
    peer.send(b'{"do": "reload", "wait": true}\n')
    bench.loop.until(lambda: bench.loop.waiters)
    bench.service.close()
    bench.loop.waiters[0](False, "stopped")
    while bench.loop.timers:  # the sweep, of nobody
        bench.loop.timers[0][0] = 0.0
        bench.loop.turn()
    bench.service._accept(selectors.EVENT_READ)
    assert peer.gone()


def test_what_stands_in_the_way_is_one_line_in_the_log(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "directory").mkdir()
    long = "x" * 120
    cases = {
        "file": "something that is no socket is there; move it away",
        "directory": "something that is no socket is there; move it away",
        "none/control.sock": f"there is no directory {tmp_path}/none",
        "file/control.sock": f"there is no directory {tmp_path}/file",
    }
    for name, why in cases.items():
        caplog.clear()
        service, loop = attached(f"unix:{tmp_path}/{name}")
        assert loop.sockets() == 0
        (record,) = caplog.records
        assert f"cannot listen on unix:{tmp_path}/{name}: {why}; `prefork status`" in record.getMessage()
        assert repr(service) == f"<ControlService unix:{tmp_path}/{name} off>"
        service.close()
        loop.close()
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ValueError, match="at most 107 bytes"):
        ControlService(f"unix:/{long}")
    almost = f"unix:/tmp/{'x' * 101}"
    caplog.clear()
    service, loop = attached(almost)
    assert "too long" in caplog.text
    service.close()
    loop.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_to_the_directory(tmp_path: Path, caplog: Any) -> None:
    tmp_path.chmod(0o500)
    service, loop = attached(f"unix:{tmp_path}/control.sock")
    assert "Permission denied" in caplog.text
    service.close()
    loop.close()


def test_abstract_names(caplog: pytest.LogCaptureFixture) -> None:
    name = f"prefork-test-{os.getpid()}"
    first, loop = attached(f"unix:@{name}")
    peer = helpers.Peer(loop, f"\0{name}")
    assert peer.ask(do="status")["ok"] is True
    second, other = attached(f"unix:@{name}")
    assert other.sockets() == 0
    assert f"cannot listen on unix:@{name}: another process has this name;" in caplog.text
    peer.close()
    for service in (first, second):
        service.close()
    loop.close()
    other.close()


@pytest.mark.parametrize("address", ["127.0.0.1:80", ":80", "fd:3"])
def test_only_unix_sockets(address: str) -> None:
    with pytest.raises(ValueError, match="is no unix socket"):
        ControlService(address)
