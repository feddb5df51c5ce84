"""The admin listener: /livez, /readyz and /metrics, answered by the master itself.

Load balancers and Prometheus ask here, on an address of its own, and are answered also when
every worker hangs: nothing but the master's loop and the scoreboard is needed for it.

    GET /livez      200 while the master's loop turns
    GET /readyz     200 while new connections are welcome, else 503; the text says why
    GET /metrics    the numbers, for Prometheus; as OpenMetrics if Accept asks for it

It speaks just enough HTTP/1.1 for that, and strictly: GET and HEAD, no bodies. The laws are those
of a guest in the loop that watches over the workers: it never waits, and what strangers can do to
it is bounded. A client has TIMEOUT seconds for each request and each answer; when there are
MAX_CLIENTS of them, the one that has been silent for longest makes room for the next; and
after each answer the loop has its turn before the next one.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import time
from dataclasses import dataclass
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Final

from prefork.master import sockets
from prefork.master.exposition import OPENMETRICS, TEXT

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.master.service import Loop

log = logging.getLogger("prefork")

MAX_CLIENTS: Final = 64
MAX_HEAD: Final = 8 * 1024
TIMEOUT: Final = 5.0
LINGER: Final = 1.0
"""Seconds for a client to take note of the end of the connection before it is closed."""

_PAUSE: Final = 1.0
"""Seconds without accepting, when there are no descriptors left."""

_PLAIN: Final = "text/plain; charset=utf-8"

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/([0-9])\.([0-9])")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_AUTHORITY: Final = re.compile(rb"http://[^/?#]*", re.IGNORECASE)
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def always() -> tuple[bool, str]:
    """Alive: who can answer at all is."""
    return True, "ok"


class AdminService:
    """Listens on `addr` and answers there. A `Service`.

    addr: HOST:PORT, :PORT, [IPV6]:PORT, unix:/PATH or fd:N. It is bound at once.
    ready: whether new connections are welcome, and a line that says why or why not.
    metrics: makes the text of /metrics; True asks for OpenMetrics.
    live: as `ready`, about the master; it is alive anyway if it can answer.
    umask, owner: of a socket file, as in `sockets.bind`.

        admin = AdminService("127.0.0.1:9090", ready=lambda: (True, "4 workers are ready"), metrics=text)
        admin.attach(loop)

    *Resource handling*: the listening socket is open from the beginning; `close` closes it and
    all its clients. A socket file is removed by the process that made it.

    Raises BindError, whose text is for the user, if `addr` cannot be listened on, and ValueError
    if it is no address. What the callables raise is logged and answered with 500.
    """

    def __init__(
        self,
        addr: str,
        *,
        ready: Callable[[], tuple[bool, str]],
        metrics: Callable[[bool], str],
        live: Callable[[], tuple[bool, str]] = always,
        umask: int | None = None,
        owner: tuple[int, int] = (-1, -1),
    ) -> None:
        # Not what systemd passes: that is for the application, unless `addr` says fd:N.
        (self._listener,) = sockets.bind([addr], backlog=MAX_CLIENTS, umask=umask, owner=owner, environ={})
        self._pid = os.getpid()
        self._answers: dict[str, Callable[[_Request], _Answer]] = {
            "/livez": lambda request: _state(live),
            "/readyz": lambda request: _state(ready),
            "/metrics": lambda request: _numbers(metrics, request.openmetrics),
        }
        self._loop: Loop | None = None
        self._clients: dict[_Client, None] = {}  # who has been silent for longest comes first
        self._starving = False
        self._sweep_at = 0.0  # 0: there is no timer

    def __repr__(self) -> str:
        return f"<AdminService {self.url} {len(self._clients)} clients>"

    @property
    def url(self) -> str:
        """Where it listens, for people: "http://127.0.0.1:9090"."""
        return self._listener.url

    # ---------------------------------------------------------------- life

    def attach(self, loop: Loop) -> None:
        self._loop = loop
        loop.register(self._listener.sock, EVENT_READ, self._accept)

    def close(self) -> None:
        self._loop = None
        for client in self._clients:
            client.sock.close()
        self._clients.clear()
        if os.getpid() == self._pid:
            self._listener.retire()
        else:
            self._listener.close()

    # ---------------------------------------------------------------- clients come and go

    def _accept(self, events: int) -> None:
        for _ in range(MAX_CLIENTS):
            if self._loop is None:
                return
            try:
                sock, _ = self._listener.sock.accept()
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._starve(self._loop, exc)
                return
            self._starving = False
            self._admit(self._loop, sock)

    def _admit(self, loop: Loop, sock: socket.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            self.drop(next(iter(self._clients)))
        try:
            sock.setblocking(False)
            client = _Client(self, sock)
            loop.register(sock, EVENT_READ, client.ready)
        except OSError as exc:  # no room for one more in the epoll instance
            sock.close()
            log.warning("admin listener: cannot take a client on: %s", exc.strerror)
            return
        self._clients[client] = None
        self.touch(client, TIMEOUT)

    def _starve(self, loop: Loop, exc: OSError) -> None:
        # The listener stays readable: to look again at once would be a loop without rest.
        if not self._starving:
            log.warning("admin listener: cannot accept: %s", exc.strerror)
        self._starving = True
        loop.unregister(self._listener.sock)
        loop.call_at(time.monotonic() + _PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        if self._loop is not None:
            self._loop.register(self._listener.sock, EVENT_READ, self._accept)

    def touch(self, client: _Client, seconds: float) -> None:
        """The client has got further: from now on it has so many seconds for the next step."""
        if client in self._clients and self._loop is not None:
            self._clients.pop(client)
            self._clients[client] = None
            client.deadline = time.monotonic() + seconds
            if not self._sweep_at or client.deadline < self._sweep_at:
                self._sweep_at = client.deadline
                self._loop.call_at(client.deadline, self._sweep)

    def _sweep(self) -> None:
        """End what is late, and come back when the next one is."""
        now = time.monotonic()
        if self._loop is None or now < self._sweep_at:
            return  # a timer that was set earlier for a later time
        for client in [client for client in self._clients if client.deadline <= now]:
            client.late()
        self._sweep_at = min([client.deadline for client in self._clients], default=0.0)
        if self._sweep_at:
            self._loop.call_at(self._sweep_at, self._sweep)

    def drop(self, client: _Client) -> None:
        """Close a client's connection."""
        if client in self._clients:
            del self._clients[client]
            if self._loop is not None:
                self._loop.unregister(client.sock)
            client.sock.close()

    def wait_for(self, client: _Client, events: int) -> None:
        """What to wait for on a client's socket from now on."""
        if client in self._clients and self._loop is not None:
            self._loop.modify(client.sock, events)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back after everybody else has had a turn."""
        if self._loop is not None:
            self._loop.call_at(time.monotonic(), callback)

    # ---------------------------------------------------------------- answers

    def answer(self, request: _Request) -> _Answer:
        """What to say to a request that is well formed. Never raises."""
        make = self._answers.get(request.path)
        if make is None:
            return _Answer(404, f"there is nothing here; there are {', '.join(self._answers)}")
        if request.method not in ("GET", "HEAD"):
            return _Answer(405, "GET and HEAD only", allow=True)
        try:
            return make(request)
        except Exception:
            # A fault in what is asked for must not end the process that watches over the workers.
            log.exception("admin listener: %s failed", request.path)
            return _Answer(500, "internal error; the log has more")


def _state(ask: Callable[[], tuple[bool, str]]) -> _Answer:
    good, text = ask()
    return _Answer(200 if good else 503, text)


def _numbers(make: Callable[[bool], str], openmetrics: bool) -> _Answer:
    return _Answer(200, make(openmetrics), OPENMETRICS if openmetrics else TEXT)


class _Client:
    """One connection: reads a head, writes the answer, and so on.

    reading -> writing -> reading | lingering (our side is shut down) -> closed
    """

    __slots__ = ("_in", "_last", "_lingering", "_out", "_service", "_waits", "deadline", "sock")

    def __init__(self, service: AdminService, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = 0.0
        self._service = service
        self._in = bytearray()
        self._out = memoryview(b"")
        self._last = False  # the connection ends with the answer that is being written
        self._lingering = False
        self._waits = False  # for its turn to have the next request answered

    def ready(self, events: int) -> None:
        """The socket can be read or written."""
        try:
            if self._out:
                self._write()
            elif self.sock.fileno() != -1:
                self._read()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._service.drop(self)  # reset, or gone in another way

    def late(self) -> None:
        """Its time is over."""
        if self._in and not self._out and not self._lingering:
            self._send(_Answer(408, f"the request was not complete within {TIMEOUT:g} s"), close=True)
        else:
            self._service.drop(self)

    def _read(self) -> None:
        room = MAX_HEAD - len(self._in)
        if not room:
            return  # requests wait here already: these first
        data = self.sock.recv(room)
        if not data:
            self._service.drop(self)
        elif not self._lingering:  # else what comes now is dropped
            if not self._in:
                self._service.touch(self, TIMEOUT)
            self._in += data
            if not self._waits:
                self._next()

    def _next(self) -> None:
        """Answer the next request, if it is here."""
        if self._out or self._last or self.sock.fileno() == -1:
            return
        end = self._in.find(b"\r\n\r\n", 0, MAX_HEAD)
        if end < 0:
            if len(self._in) >= MAX_HEAD:
                text = f"the head of a request has at most {MAX_HEAD} bytes here"
                self._send(_Answer(431, text), close=True)
            return
        head = bytes(self._in[:end])
        del self._in[: end + 4]
        try:
            request = _Request.parse(head)
        except _BadRequest as error:
            self._send(_Answer(error.status, error.text), close=True)
        else:
            self._send(self._service.answer(request), request=request)

    def _send(self, answer: _Answer, *, close: bool = False, request: _Request | None = None) -> None:
        self._last = close or request is None or request.close
        self._out = memoryview(answer.render(request, close=self._last))
        self._service.touch(self, TIMEOUT)
        try:
            self._write()
        except (BlockingIOError, InterruptedError):
            self._service.wait_for(self, EVENT_WRITE)
        except OSError:
            self._service.drop(self)

    def _write(self) -> None:
        while self._out:
            self._out = self._out[self.sock.send(self._out) :]
        self._service.wait_for(self, EVENT_READ)
        if self._last:
            # Closed at once, the kernel would answer what the client still sends with a reset,
            # which can destroy our answer before it has been read (RFC 9112 section 9.6).
            self._lingering = True
            self._in.clear()
            self.sock.shutdown(socket.SHUT_WR)
            self._service.touch(self, LINGER)
        else:
            self._service.touch(self, TIMEOUT)
            if self._in:
                self._waits = True
                self._service.soon(self._next_pipelined)

    def _next_pipelined(self) -> None:
        self._waits = False
        try:
            self._next()
        except OSError:
            self._service.drop(self)


# --------------------------------------------------------------------------- HTTP


class _BadRequest(Exception):
    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class _Request:
    """A request as far as it matters here. path: without the query. close: the client wants no other one."""

    method: str
    path: str
    minor: int
    close: bool
    openmetrics: bool

    @classmethod
    def parse(cls, head: bytes) -> _Request:
        """Read a head without the empty line at its end. Raises _BadRequest."""
        line, *lines = head.split(b"\r\n")
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise _BadRequest(400, "this is no HTTP/1.1 request")
        method, target, major, minor = match.groups()
        if major != b"1":
            raise _BadRequest(505, "HTTP/1.1 only")
        fields: dict[bytes, list[bytes]] = {}
        for text in lines:
            field = _FIELD.fullmatch(text)
            if field is None:
                raise _BadRequest(400, "a header field is not well formed")
            fields.setdefault(field[1].lower(), []).append(field[2].rstrip(b" \t"))
        hosts = fields.get(b"host", [])
        if len(hosts) > 1 or (not hosts and minor != b"0"):
            raise _BadRequest(400, "a request has one Host field")
        if b"transfer-encoding" in fields or fields.get(b"content-length", [b"0"]) != [b"0"]:
            raise _BadRequest(400, "requests have no body here")
        connection = _members(fields.get(b"connection", []))
        accept = _members(fields.get(b"accept", []))
        return cls(
            method=method.decode("ascii"),
            path=_path(target),
            minor=int(minor),
            close="close" in connection or (minor == b"0" and "keep-alive" not in connection),
            openmetrics=any(
                media.startswith("application/openmetrics-text")
                and not re.search(r";\s*q=0(\.0*)?\s*(;|$)", media)
                for media in accept
            ),
        )


def _path(target: bytes) -> str:
    """The path of an origin-form or absolute-form target, without its query."""
    authority = _AUTHORITY.match(target)
    if authority is not None:
        target = target[authority.end() :]
    return target.partition(b"?")[0].decode("ascii")


def _members(values: list[bytes]) -> list[str]:
    """The members of a list field, in lower case."""
    return [part.strip(" \t") for part in b",".join(values).decode("latin-1").lower().split(",")]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What to say. allow: name the methods that are allowed."""

    status: int
    text: str
    content_type: str = _PLAIN
    allow: bool = False

    def render(self, request: _Request | None, *, close: bool) -> bytes:
        """The bytes of it. request: None if it could not be understood."""
        body = (self.text if self.text.endswith("\n") else f"{self.text}\n").encode("utf-8", "replace")
        lines = [
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}",
            f"Date: {_date(time.time())}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
        ]
        if self.allow:
            lines.append("Allow: GET, HEAD")
        if close:
            lines.append("Connection: close")
        elif request is not None and request.minor == 0:
            lines.append("Connection: keep-alive")
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        return head if request is not None and request.method == "HEAD" else head + body


def _date(seconds: float) -> str:
    """As in a Date field. (strftime would use the words of the locale.)"""
    year, month, day, hour, minute, second, weekday, *_ = time.gmtime(seconds)
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year} {hour:02}:{minute:02}:{second:02} GMT"
