"""Telling systemd: a fake manager listens."""

from __future__ import annotations

import os
import re
import socket
import time

import pytest

from prefork.master.notify import Notifier, Stage


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A socket that receives, and its address as NOTIFY_SOCKET has it."""
    address = str(tmp_path / "notify") if request.param == "path" else "@prefork-test-notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.settimeout(5)
        yield sock, address


def test_what_systemd_hears(manager):
    sock, address = manager
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "OTHER": "x"}
    notifier = Notifier.from_environ(environ)
    assert environ == {"OTHER": "x"}
    for call, datagram in [
        (lambda: notifier.ready("4/4 workers ready"), b"READY=1\nSTATUS=4/4 workers ready"),
        (lambda: notifier.ready(), b"READY=1"),
        (lambda: notifier.status("3/4 workers ready"), b"STATUS=3/4 workers ready"),
        (lambda: notifier.stopping("draining"), b"STOPPING=1\nSTATUS=draining"),
        (lambda: notifier.status("caf\u00e9 \udcff"), "STATUS=café \\udcff".encode()),
    ]:
        assert call() is True
        assert sock.recv(4096) == datagram
    assert repr(notifier) == f"<Notifier {address}>"


def test_a_status_cannot_smuggle_an_assignment(manager):
    sock, address = manager
    Notifier(address).status("all well\nMAINPID=1\r\n")
    assert sock.recv(4096) == b"STATUS=all well MAINPID=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_systemd_nothing_happens(environ, caplog):
    notifier = Notifier.from_environ(environ)
    assert notifier.ready("x") is False
    assert notifier.stopping() is False
    assert repr(notifier) == "<Notifier off>"
    assert not caplog.records


def test_an_address_of_another_sort_is_told(caplog):
    assert Notifier.from_environ({"NOTIFY_SOCKET": "vsock:2:1"}).ready() is False
    assert "NOTIFY_SOCKET=vsock:2:1 is no path" in caplog.text


def test_a_manager_that_is_gone_is_told_and_survived(tmp_path, caplog):
    assert Notifier(str(tmp_path / "gone")).ready() is False
    assert "systemd was not told READY=1" in caplog.text


def test_a_manager_that_does_not_read_stops_nobody(manager, caplog, monkeypatch):
    monkeypatch.setattr("prefork.master.notify._SEND_WITHIN", 0.2)
    sock, address = manager
    notifier = Notifier(address)
    told = [notifier.status("x" * 1000) for _ in range(5000) if not caplog.records]
    assert told[0] is True
    assert told[-1] is False
    # It is not waited for again, and not complained about, until it listens.
    begin = time.monotonic()
    assert not any(notifier.alive() for _ in range(50))
    assert time.monotonic() - begin < 5.0
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    sock.recv(4096)
    assert notifier.alive() is True
    assert notifier.status("x" * 1000) is False
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2


def test_an_empty_status_says_nothing(manager):
    _, address = manager
    assert Notifier(address).status("") is False


# --- the story of a service -----------------------------------------------------------------


def heard(sock: socket.socket) -> list[str]:
    """What has been sent, a text for each datagram."""
    texts = []
    sock.setblocking(False)
    try:
        while True:
            texts.append(sock.recv(65536).decode())
    except BlockingIOError:
        return texts


def test_a_life_with_reloads(manager):
    sock, address = manager
    notifier = Notifier(address)
    assert notifier.stage is Stage.STARTING
    notifier.status("0/2 workers ready")
    notifier.extend(15.0)
    notifier.ready("2/2 workers ready")
    assert notifier.stage is Stage.SERVING
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading("loading generation 2")
    assert notifier.stage is Stage.RELOADING
    notifier.reloading()  # somebody asks again before it is over
    notifier.reloaded("reload failed: ImportError (still serving generation 1)")
    assert notifier.stage is Stage.SERVING
    notifier.alive()
    notifier.stopping("draining, 2 workers left")
    assert notifier.stage is Stage.STOPPING
    notifier.extend(0.5)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    texts = heard(sock)
    times = [int(usec) for text in texts for usec in re.findall(r"MONOTONIC_USEC=([0-9]+)", text)]
    assert len(times) == 2
    assert before <= times[0] <= times[1] <= after
    assert [re.sub(r"USEC=[0-9]{9,}", "USEC=now", text) for text in texts] == [
        "STATUS=0/2 workers ready",
        "EXTEND_TIMEOUT_USEC=15000000",
        "READY=1\nSTATUS=2/2 workers ready",
        "RELOADING=1\nMONOTONIC_USEC=now\nSTATUS=loading generation 2",
        "RELOADING=1\nMONOTONIC_USEC=now",
        "READY=1\nSTATUS=reload failed: ImportError (still serving generation 1)",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=draining, 2 workers left",
        "EXTEND_TIMEOUT_USEC=500000",
    ]


def test_a_step_at_the_wrong_time_is_not_told(manager):
    sock, address = manager
    notifier = Notifier(address)
    # A reload that ends before the service was ever ready must not make it ready.
    assert notifier.reloading() is False
    assert notifier.reloaded() is False
    assert notifier.ready() is True
    assert notifier.reloaded() is False
    # A stop overtakes a reload.
    assert notifier.reloading() is True
    assert notifier.stopping() is True
    assert notifier.reloaded() is False
    assert notifier.reloading() is False
    assert notifier.ready() is False
    assert [text.partition("\n")[0] for text in heard(sock)] == ["READY=1", "RELOADING=1", "STOPPING=1"]


def test_the_steps_are_taken_without_systemd_too():
    notifier = Notifier(None)
    assert not notifier.on
    for step, stage in [
        (notifier.ready, Stage.SERVING),
        (notifier.reloading, Stage.RELOADING),
        (notifier.reloaded, Stage.SERVING),
        (notifier.stopping, Stage.STOPPING),
    ]:
        assert step() is False
        assert notifier.stage is stage


# --- the watchdog ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "1e9"}, None),
        ({"WATCHDOG_USEC": "18446744073709551615"}, None),  # USEC_INFINITY
        ({"WATCHDOG_PID": str(os.getpid())}, None),
    ],
)
def test_how_often_the_watchdog_wants_to_hear(environ, interval):
    environ = environ | {"NOTIFY_SOCKET": "@prefork-test-nobody", "FDSTORE": "16"}
    assert Notifier.from_environ(environ).watchdog_interval == interval
    assert environ == {}


def test_nobody_watches_without_a_socket():
    assert Notifier.from_environ({"WATCHDOG_USEC": "30000000"}).watchdog_interval is None


# --- descriptors that systemd keeps ---------------------------------------------------------


def test_a_listener_is_given_into_the_store(manager):
    sock, address = manager
    notifier = Notifier(address)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert notifier.store("listen-127.0.0.1_8000", listener) is True
        data, fds, flags, _ = socket.recv_fds(sock, 4096, 8)
        assert data == b"FDSTORE=1\nFDNAME=listen-127.0.0.1_8000\nFDPOLL=0"
        assert not flags & socket.MSG_CTRUNC
        (fd,) = fds
        with socket.socket(fileno=fd) as copy:
            assert copy.getsockname() == listener.getsockname()
            assert os.fstat(fd).st_ino == os.fstat(listener.fileno()).st_ino
    assert notifier.forget("listen-127.0.0.1_8000") is True
    assert sock.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=listen-127.0.0.1_8000"


@pytest.mark.parametrize("name", ["", "a:b", "a\nREADY=1", "caf\u00e9", "x" * 256])
def test_a_name_that_systemd_would_refuse(manager, name):
    sock, address = manager
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert Notifier(address).store(name, listener) is False
    assert heard(sock) == []


def test_a_socket_that_is_closed_is_not_stored(manager, caplog):
    _, address = manager
    listener = socket.create_server(("127.0.0.1", 0))
    listener.close()
    assert Notifier(address).store("x", listener) is False
    assert "systemd was not told FDSTORE=1" in caplog.text


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, True),  # before 254 nothing tells
        ({"FDSTORE": "16"}, True),
        ({"FDSTORE": "16", "MEMORY_PRESSURE_WATCH": "/x"}, True),
        ({"MEMORY_PRESSURE_WATCH": "/x"}, False),
    ],
)
def test_a_store_that_has_no_room_is_not_asked(manager, environ, asked):
    sock, address = manager
    notifier = Notifier.from_environ(environ | {"NOTIFY_SOCKET": address})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert notifier.store("x", listener) is asked
    assert len(heard(sock)) == asked
