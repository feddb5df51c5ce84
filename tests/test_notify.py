"""Telling systemd: a fake manager listens."""

from __future__ import annotations

import socket

import pytest

from prefork.master.notify import Notifier


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
    monkeypatch.setattr("prefork.master.notify._SEND_WITHIN", 0.05)
    _, address = manager
    notifier = Notifier(address)
    told = [notifier.status("x" * 1000) for _ in range(5000) if not caplog.records]
    assert told[0] is True
    assert told[-1] is False


def test_an_empty_status_says_nothing(manager):
    _, address = manager
    assert Notifier(address).status("") is False
