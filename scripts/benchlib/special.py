"""The two measures that wrk cannot make: what an idle connection weighs, and how long a start takes."""

from __future__ import annotations

import select
import socket
import time

from . import cases, tools
from .process import Process, pss

IDLE_CONNECTIONS = 8000
_IP_BIND_ADDRESS_NO_PORT = 24


def connect(port: int, number: int) -> socket.socket:
    """A connection from one of eight loopback addresses, so that no pair of addresses runs out of ports."""
    conn = socket.socket()
    try:
        conn.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        conn.bind((f"127.0.0.{2 + number % 8}", 0))
        conn.settimeout(10)
        conn.connect(("127.0.0.1", port))
    except OSError:
        conn.close()
        raise
    return conn


def _ask(conn: socket.socket, number: int) -> None:
    """One request, and its answer to the end."""
    conn.sendall(cases.request("GET", f"/ping?n={number}"))
    data = b""
    while not data.endswith(b"pong"):
        got = conn.recv(4096)
        if not got:
            raise cases.WrongAnswer(f"connection closed after {data[:60]!r}")
        data += got
    if not data.startswith(b"HTTP/1.1 200 "):
        raise cases.WrongAnswer(f"{data[:60]!r}")


def _settled_pss(server: Process) -> int:
    """The tree's PSS once it has stopped moving (two looks 0.3 s apart within 0.5 %), or after 5 s."""
    deadline = time.monotonic() + 5
    last = server.pss()
    while time.monotonic() < deadline:
        time.sleep(0.3)
        now = server.pss()
        if abs(now - last) <= 0.005 * last:
            return now
        last = now
    return last


def idle(server: Process, port: int) -> dict[str, float]:
    """PSS per idle keep-alive connection, each of which has had one request answered.

    It is the growth from a quarter of the connections to all of them: what a server allocates once does not
    count, nor does memory that it had freed before and kept help it. At the end the connections must all be
    open still, and a sample of them must answer again.
    """
    count = min(IDLE_CONNECTIONS, tools.open_files_limit() - 500)
    conns: list[socket.socket] = []
    base = 0
    try:
        poll = select.poll()
        for number in range(count):
            if number == count // 4:
                base = _settled_pss(server)
            conn = connect(port, number)
            conns.append(conn)
            _ask(conn, number)
            poll.register(conn, select.POLLIN)
        grown = _settled_pss(server)
        closed = len(poll.poll(0))
        if closed:
            raise cases.WrongAnswer(f"{closed} of {count} idle connections were closed too early")
        for number in range(0, count, max(1, count // 50)):
            _ask(conns[number], number)
    finally:
        server.end()  # first: the side that closes first is the one that keeps the ports busy
        for conn in conns:
            conn.close()
    return {
        "kib_per_connection": round((grown - base) / (count - count // 4) / 1024, 3),
        "connections": count,
        "pss_mib": round(grown / (1 << 20), 2),
    }


def first_answer(server: Process, port: int, limit: float = 20.0) -> float:
    """Seconds from the start of the process to the first right answer."""
    deadline = server.started + limit
    while time.monotonic() < deadline:
        if not server.alive():
            raise cases.WrongAnswer(f"the server left with status {server.popen.returncode}")
        try:
            [(status, _, body)] = cases.exchange(port, cases.request("GET", "/ping?n=0"))
        except OSError:
            time.sleep(0.001)
            continue
        seconds = time.monotonic() - server.started
        if status != 200 or body != b"pong":
            raise cases.WrongAnswer(f"status {status}, {body[:40]!r}")
        return seconds
    raise cases.WrongAnswer(f"no answer within {limit:.0f} s")


def start(server: Process, port: int, workers: int = 8) -> dict[str, float]:
    """Time to the first answer, then the PSS of a worker that has answered some requests.

    A worker is one of the `workers` largest processes below the one that was started; the mean is taken.
    """
    seconds = first_answer(server, port)
    deadline = time.monotonic() + 15
    while len(server.tree()) <= workers and time.monotonic() < deadline:
        time.sleep(0.05)
    _settled_pss(server)
    conns = [connect(port, number) for number in range(8 * workers)]
    for _ in range(4):
        for number, conn in enumerate(conns):
            _ask(conn, number)
    for conn in conns:
        conn.close()
    _settled_pss(server)
    sizes = sorted((pss(pid) for pid in server.tree()[1:]), reverse=True)[:workers]
    if len(sizes) < workers:
        raise cases.WrongAnswer(f"{len(sizes)} workers instead of {workers}")
    return {
        "seconds": round(seconds, 4),
        "worker_mib": round(sum(sizes) / workers / (1 << 20), 2),
        "pss_mib": round(server.pss() / (1 << 20), 2),
    }
