"""Connection: one client connection of the server, from its first byte to its last.

A Protocol, never streams: bytes come in through `data_received`, whole heads go to the
HeadScanner, the handler is started at once and, if it does not wait, its answer is written
before `data_received` returns: one read, one write, no task switch and no timer.

Laws:

* one handler at a time, answers in the order of the requests; bytes of later requests wait;
* after a request that could not be understood nothing more of that connection is read as
  one; its answer is followed by a half-close, so that the client can read it;
* every state has a deadline, kept as a number that the server's sweep compares;
* the transport is closed exactly once, and `connection_lost` ends everything.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from prefork.http.errors import (
    AbortHandler,
    HTTPTimeout,
    LocalProtocolError,
    MaxBytesError,
    RemoteProtocolError,
    StatusError,
    TransportError,
)
from prefork.http.handler import DONE
from prefork.http.handlers import replies
from prefork.http.message.body import Body
from prefork.http.message.framing import format_chunk
from prefork.http.message.request import Notice
from prefork.http.message.status import status_line, status_text
from prefork.http.server.access import AccessRecord
from prefork.http.server.clock import NEVER
from prefork.http.server.eager import HandlerExit, is_ignored
from prefork.http.server.incoming import Incoming
from prefork.http.server.response_writer import ResponseWriter

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from concurrent.futures import Executor

    from prefork.http.message.request import Request
    from prefork.http.server.server import Server

FLUSH_AT = 16 * 1024
"""Bytes of output gathered before they go to the socket on their own."""

JOIN_LIMIT = 64 * 1024
"""Output up to this size is joined into one buffer; above it, copying costs more than writev."""

WRITE_HIGH_WATER = 256 * 1024
WRITE_LOW_WATER = 64 * 1024

MAX_DISCARD = 256 * 1024
"""Bytes of an unread request body that are read for the sake of the connection (Go: 256 << 10)."""

MAX_PIPELINED = 64 * 1024
"""Bytes of later requests kept while a handler runs; then the socket is not read."""

MAX_BLANKS = 4
"""CR and LF that are ignored behind a POST."""

INLINE_REQUESTS = 32
"""Pipelined requests served in one go before other connections get their turn."""

LINGER = 0.5
"""Seconds to wait, after the last answer, for the client to have read it (Go: rstAvoidanceDelay)."""

LINGER_BYTES = 1 << 20
"""Bytes dropped during that time at most."""

NEW_GRACE = 1.0
"""Seconds a connection without a request is waited for when the server drains."""

_REFUSAL = b"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST

_now = time.monotonic


class ConnState(enum.Enum):
    """What a connection is doing, for the `conn_state` hook (Go: ConnState).

    NEW -> ACTIVE | CLOSED. ACTIVE -> IDLE | HIJACKED | CLOSED. IDLE -> ACTIVE | CLOSED.
    """

    NEW = "new"
    ACTIVE = "active"
    IDLE = "idle"
    HIJACKED = "hijacked"
    CLOSED = "closed"


class Reading(enum.IntEnum):
    """What the next received bytes are."""

    HEAD = 0  # of a request, or nothing yet
    BODY = 1  # of the current request's body
    AHEAD = 2  # of a later request, while a handler runs
    DEAF = 3  # nothing any more: dropped until the answer is out
    LINGERING = 4  # dropped: our last answer is out, the client may be reading it
    GONE = 5  # not ours: hijacked, closed or lost


HEAD, BODY, AHEAD, DEAF, LINGERING, GONE = Reading


class Connection(asyncio.Protocol):
    """One accepted connection. Made by the server; users meet it in the `conn_state` hook.

    It is the `RequestOwner` of its requests and the `BodySource` of their bodies.
    """

    __slots__ = (
        "_active",
        "_blanks",
        "_buffer",
        "_disconnected",
        "_eof",
        "_fresh",
        "_head_begun",
        "_hijacked",
        "_incoming",
        "_lingered",
        "_lost",
        "_out",
        "_out_size",
        "_paused",
        "_peer",
        "_reading",
        "_record",
        "_started_at",
        "_streaming",
        "_task",
        "_timers",
        "_unwritable",
        "_write_blocked",
        "_write_mark",
        "_writer",
        "deadline",
        "full_duplex",
        "server",
        "transport",
        "write_deadline",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.deadline = NEVER  # of what is being read, or of idling
        self.write_deadline = NEVER  # of output that the client does not take
        # Input.
        self._reading: int = HEAD
        self._buffer: bytearray | None = None  # received, not yet understood
        self._blanks = 0  # CR and LF that may still stand before the next head
        self._head_begun = False  # part of a head is in the buffer, and its deadline runs
        self._active = False  # the conn_state hook has been told of this request
        self._paused = False
        self._fresh = True  # no request has come
        self._eof = False  # the client has shut down its side
        self._lost = False
        # The request being served.
        self._writer: ResponseWriter | None = None  # set while its handler runs
        self._task: asyncio.Task[Any] | None = None  # set while that handler waits
        self._started_at = 0.0  # when its head was complete
        self._record = 0  # where it is noted while that handler waits
        self._timers: dict[str, asyncio.TimerHandle] | None = None
        self._disconnected: Notice | None = None
        self._hijacked: asyncio.StreamReader | None = None
        self.full_duplex = False
        self._lingered = 0  # bytes dropped since the last answer
        self._incoming: Incoming | None = None  # its body, while that is being received
        # Output.
        self._out: list[bytes] = []  # written, not yet given to the transport
        self._out_size = 0
        self._streaming = False
        self._write_blocked = False
        self._write_mark = 0  # how much was unwritten when the clock was last set
        self._unwritable: asyncio.Future[None] | None = None
        self._peer: str | None = None

    # Transport callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        server = self.server
        self.deadline = server.clock.after(server.head_timeout)
        server._connection_opened(self)
        if server.conn_state is not None:
            server.conn_state(self, ConnState.NEW)

    def _receive(self, data: bytes) -> None:
        """Received bytes that are not the beginning of a request."""
        reading = self._reading
        if reading == HEAD:
            self._continue_head(data)
        elif reading == BODY:
            self._receive_body(data)
        elif reading == AHEAD:
            self._keep(data)
        elif reading == LINGERING:
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES:
                self._close()

    def eof_received(self) -> bool:
        """The client has shut down its side. True keeps ours open for the answer."""
        self._eof = True
        if self._reading == BODY:
            self._break_body(
                RemoteProtocolError("unexpected EOF: the client ended the request body too early")
            )
        self._tell_gone()
        if self._writer is not None:
            pass  # its answer is still wanted
        elif self._reading != HEAD or not self._buffer:
            self._close()
        elif self._head_begun:
            self._head_cut_short()
        # Else whole requests wait for their turn.
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._reading = GONE
        self._buffer = None
        self._out.clear()
        self._out_size = 0
        self.deadline = self.write_deadline = NEVER
        self._cancel_timers()
        if self._incoming is not None:
            lost = RemoteProtocolError("the connection was lost while the request body was read")
            self._incoming.body.feed_error(lost)
            self._incoming = None
        if self._unwritable is not None and not self._unwritable.done():
            self._unwritable.set_exception(_gone())
            self._unwritable.exception()  # seen: whoever awaits it gets it, but nobody has to
        self._tell_gone()
        server = self.server
        if server.conn_state is not None:
            server.conn_state(self, ConnState.CLOSED)
        server._connection_closed(self, busy=self._writer is not None)
        self.transport = None

    def pause_writing(self) -> None:
        self._write_blocked = True
        self._watch_write()

    def resume_writing(self) -> None:
        self._write_blocked = False
        self.write_deadline = NEVER
        waiter, self._unwritable = self._unwritable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        self._next()

    # Heads.

    def data_received(self, data: bytes) -> None:
        """Serve every complete request in `data`, keep the rest."""
        server = self.server
        numbers = server.numbers
        size = len(data)
        numbers.received += size
        if self._reading != HEAD or self._buffer is not None or self._write_blocked:
            self._receive(data)
            return
        scan = server.scanner.scan
        limit = server.max_header_bytes
        in_flight = numbers.in_flight
        pos = served = 0
        while True:
            end = data.find(b"\r\n\r\n", pos) + 4
            if end == 3:
                self._begin_head(bytearray(data[pos:]))
                break
            if end - pos > limit:
                self._refuse(RemoteProtocolError("431 Request Header Fields Too Large", 431))
                break
            head = data if end == size and not pos else data[pos:end]
            try:
                r = scan(head, self)
            except RemoteProtocolError as error:
                start = self._skip_blank(data, pos)
                if start > pos:
                    pos = start
                    continue
                self._refuse(error)
                break
            pos = end
            if server.conn_state is not None:
                self._activate()
            if r.content_length:
                data = self._begin_body(r, data[pos:])
                pos = 0
                size = len(data)
            if r.method == "POST":
                self._blanks = MAX_BLANKS
            elif self._blanks:
                self._blanks = 0
            self._started_at = started = _now()
            if in_flight is not None:
                # Before the handler runs: it may never come back.
                in_flight.pack(in_flight.memory, in_flight.at, started, head, started)
            self._dispatch(r)
            if self._reading != HEAD:
                if pos < size:
                    self._keep(data[pos:])
                break
            if pos == size:
                break
            served += 1
            if served == INLINE_REQUESTS or self._write_blocked:
                # Other connections wait for their turn, or this client does not read its answers.
                self._buffer = bytearray(data[pos:])
                if not self._write_blocked:
                    server.loop.call_soon(self._next)
                break
        if in_flight is not None:
            in_flight.words[in_flight.word] = 0
        out = self._out
        if len(out) == 1 and self.transport is not None:
            numbers.sent += self._out_size
            self.transport.write(out[0])
            out.clear()
            self._out_size = 0
        elif out:
            self.flush()
        if self._eof and self._reading == HEAD and self._buffer is None:
            self._close()

    def _next(self) -> None:
        """Go on with bytes that have waited, if it is their turn."""
        buffer = self._buffer
        if (
            buffer is not None
            and self._reading == HEAD
            and self._writer is None
            and not self._head_begun
            and not self._write_blocked
        ):
            self._buffer = None
            self.server.numbers.received -= len(buffer)  # they were counted when they came
            self.data_received(bytes(buffer))
            if self._paused and self._reading in (HEAD, AHEAD) and len(self._buffer or b"") <= MAX_PIPELINED:
                self._resume()
        elif self._eof and buffer is None and self._reading == HEAD and self._writer is None:
            self._close()

    def _keep(self, data: bytes) -> None:
        """Bytes of later requests: they wait, up to a limit, until this one is answered."""
        if self._reading == AHEAD:
            if self._buffer is None:
                self._buffer = bytearray(data)
            else:
                self._buffer += data
            if len(self._buffer) > MAX_PIPELINED:
                self._pause()
        elif self._hijacked is not None:
            self._hijacked.feed_data(data)

    def _begin_head(self, partial: bytearray) -> None:
        """The beginning of a head: from now on the rest has head_timeout, however it drips."""
        del partial[: self._skip_blank(partial, 0)]
        if partial:
            self._buffer = partial
            self._head_begun = True
            self.deadline = self.server.clock.after(self.server.head_timeout)
            self._activate()
            self._check_partial(0)

    def _skip_blank(self, data: bytes | bytearray, pos: int) -> int:
        """Step over the CR and LF behind a POST which old clients send (Go does so too)."""
        while self._blanks and data[pos : pos + 1] in (b"\r", b"\n"):
            self._blanks -= 1
            pos += 1
        return pos

    def _continue_head(self, data: bytes) -> None:
        buffer = self._buffer
        if buffer is None:  # the client does not read its answers: it gets no more until it does
            buffer = self._buffer = bytearray()
        old = len(buffer)
        buffer += data
        if not self._head_begun:
            # Whole requests wait here for their turn, and `_next` will be called.
            if len(buffer) > MAX_PIPELINED:
                self._pause()
        # Only what is new is searched: a head that drips in must not be searched from its start each time.
        elif buffer.find(b"\r\n\r\n", max(0, old - 3)) >= 0:
            self._head_begun = False
            self._next()
        else:
            self._check_partial(old)

    def _check_partial(self, old: int) -> None:
        """Refuse a beginning that cannot become a head; bytes before `old` were checked before."""
        buffer = self._buffer
        assert buffer is not None
        size = len(buffer)
        seen = max(0, old - 1)
        ends = buffer.count(b"\r\n", seen)
        if size > self.server.max_header_bytes:
            self._refuse(RemoteProtocolError("431 Request Header Fields Too Large", 431))
        elif (
            not 32 < buffer[0] < 127
            or buffer.count(b"\n", old) != ends
            or buffer.count(b"\r", seen, size - 1) != ends
        ):
            self._refuse(RemoteProtocolError("400 Bad Request"))
        elif self._eof:
            self._head_cut_short()

    def _head_cut_short(self) -> None:
        """The head will not be completed: an answer if it broke off inside a line, as Go does."""
        if self._buffer is not None and not self._buffer.endswith(b"\r\n"):
            self._refuse(RemoteProtocolError("400 Bad Request"))
        else:
            self._end(linger=True)

    def _refuse(self, error: RemoteProtocolError) -> None:
        """Answer what is no request, and understand nothing more of this connection."""
        status = error.status_hint
        self._activate()
        if status == 417:
            head = b"Connection: close\r\n" + self.server.clock.date_line + b"Content-Length: 0\r\n\r\n"
            self.send(status_line(status) + head)
            size = 0
        else:
            # A text that begins with the status is the reason phrase too (Go writes it so).
            reason = error.text if error.text.startswith(str(status)) else f"{status} {status_text(status)}"
            self.send(b"HTTP/1.1 %b\r\n%b%b" % (reason.encode(), _REFUSAL, error.text.encode()))
            size = len(error.text)
        self.server.numbers.refused += 1
        if self.server.access_log is not None:
            self.server.access_log(AccessRecord.of_refusal(self.remote_addr, status, size))
        self._end(linger=True)

    # Bodies.

    def _begin_body(self, r: Request, data: bytes) -> bytes:
        """Get ready for the body of `r`, take what of it is in `data`, return what is behind it."""
        self.full_duplex = False
        length = r.content_length
        if 0 < length <= len(data):
            # Most bodies are small and come with their head: there is nothing to wait for.
            r._body = Body.of(data[:length], self.server.max_body_bytes)
            return data[length:]
        self._incoming = Incoming(self, r, self.server)
        self._reading = BODY
        self.deadline = NEVER  # until somebody reads it
        if self.server.read_timeout is not None:
            self.set_read_deadline(self.server.read_timeout)
        return self._take_body(data) if data else b""

    def _receive_body(self, data: bytes) -> None:
        incoming = self._incoming
        assert incoming is not None
        if self._writer is None:
            # Its handler is done and did not want it.
            incoming.discarded += len(data)
            if incoming.discarded > MAX_DISCARD:
                self._end(linger=True)
                return
        elif self.deadline != NEVER:
            self.deadline = self.server.clock.after(self.server.body_idle_timeout)
        rest = self._take_body(data)
        if self._reading == HEAD:
            self._idle()
            if rest:
                self.server.numbers.received -= len(rest)
                self.data_received(rest)
        elif rest:
            self._keep(rest)

    def _take_body(self, data: bytes) -> bytes:
        """Take bytes of the body; those behind it when it is complete, else b""."""
        incoming = self._incoming
        assert incoming is not None
        try:
            complete = incoming.take(data)
        except RemoteProtocolError as error:
            self._break_body(error)
            return b""
        if not complete:
            if incoming.full:
                self._pause()
            return b""
        self._forget_body()
        self._reading = HEAD if self._writer is None else AHEAD
        return incoming.rest

    def _forget_body(self) -> None:
        self._incoming = None
        self._cancel_timers("read")
        if self._paused:
            self._resume()

    def _break_body(self, error: Exception) -> None:
        """The rest of the body will not come, or cannot be understood."""
        assert self._incoming is not None
        body = self._incoming.body
        self._forget_body()
        self._reading = DEAF
        if body.closed and self._writer is None:
            self._end(linger=True)  # nobody wanted it anyway
        else:
            body.feed_error(error)

    @property
    def body_is_complete(self) -> bool:
        """Whether the current request's body has been received whole and in order."""
        return self._incoming is None and self._reading != DEAF

    # What a Body asks (BodySource).

    def body_wanted(self) -> None:
        self.deadline = self.server.clock.after(self.server.body_idle_timeout)
        incoming = self._incoming
        if incoming is not None and incoming.continue_due:
            incoming.continue_due = False
            if self._writer is not None and not self._writer._header_on_wire:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._out:
            self.flush()
        if self._paused:
            self._resume()

    def body_taken(self) -> None:
        if self._writer is not None:  # else the reader has outlived its handler, and the clock is another's
            self.deadline = NEVER

    def body_refused(self) -> None:
        if self._reading == BODY:
            self._forget_body()
            self._reading = DEAF

    # Handlers.

    def _dispatch(self, r: Request) -> None:
        """Run the handler: to its end if it does not wait, else until it first does."""
        server = self.server
        self._fresh = False
        self._writer = w = ResponseWriter(self, r)
        if server.write_timeout is not None:
            self.set_write_deadline(server.write_timeout)
        if r._plain_path is None and r.method == "OPTIONS" and r.request_uri == "*":
            # About the server as a whole, not about any resource of a handler (RFC 9110 section 9.3.7).
            w.header["Content-Length"] = "0"
            self._finished(w)
            return
        try:
            task = server.runner.run(w, r)
        except BaseException as error:
            self._failed(w, error)
            return
        if task is None:
            self._finished(w)
            return
        self._task = task
        in_flight = server.numbers.in_flight
        if in_flight is not None and in_flight.free:
            # InFlight.keep, inlined.
            self._record = in_flight.word
            in_flight.word = word = in_flight.free.pop()
            in_flight.at = word << 3
        if self._reading == HEAD:
            self._reading = AHEAD
            self.deadline = NEVER
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        w = self._writer
        assert w is not None
        self._task = None
        record = self._record
        if record:
            # InFlight.forget, inlined.
            in_flight = self.server.numbers.in_flight
            assert in_flight is not None
            self._record = 0
            in_flight.words[record] = 0
            in_flight.free.append(record)
        error = _cancelled(task) if task.cancelled() else task.exception()
        if error is None:
            if is_ignored(task.result()):
                self.server.runner.ignored(w.request)
            self._finished(w)
        else:
            self._failed(w, error)
        if self._out:
            self.flush()
        self._next()

    def _finished(self, w: ResponseWriter) -> None:
        """The handler is done: complete its answer and turn to what comes next."""
        server = self.server
        self._writer = None
        if self._timers:
            self._cancel_timers()  # what this handler has set must not strike the next
        if w.request._extra is not None:
            w.request.release()
        try:
            answer = w._usual_answer() if self._reading != GONE else None
        except Exception as error:
            self._writer = w
            self._failed(w, error)
            return
        if answer is None:
            self._finish_unusual(w)
            return
        self._out.append(answer)
        self._out_size += len(answer)
        # Numbers.answered, inlined.
        numbers = server.numbers
        numbers.requests += 1
        took = _now() - self._started_at
        numbers.seconds += took
        if took > numbers.shortest:
            numbers.buckets[bisect_left(numbers.bounds, took)] += 1
        if w.status != 200:
            numbers.statuses[w.status] += 1
        if server.watched:
            self._end_watch(w)
        if w.request.close:
            self._end(linger=False)
            return
        self._reading = HEAD
        self.deadline = server.clock.idle_deadline
        if self._active:
            self._idle()

    def _finish_unusual(self, w: ResponseWriter) -> None:
        if self._reading == GONE:
            self._finished_gone(w)
            return
        try:
            close = w._finish()
        except Exception as error:
            self._writer = w
            self._failed(w, error)
            return
        self._count(w.status)
        if self.server.watched:
            self._end_watch(w)
        if self._reading == BODY:
            if close or not self._discard_body():
                self._end(linger=True)
        elif close or self._reading == DEAF:
            self._end(linger=self._reading == DEAF or not w.request.close)
        else:
            self._reading = HEAD
            self._idle()

    def _finished_gone(self, w: ResponseWriter) -> None:
        """The handler is done, but the connection was lost or hijacked meanwhile."""
        w._abandon()
        if self._hijacked is None:
            self._count(w.status)
        if self.server.watched:
            self._end_watch(w)
        self.server._handler_done(self)

    def _count(self, status: int) -> None:
        """The current request is over."""
        self.server.numbers.answered(status, _now() - self._started_at)

    def _failed(self, w: ResponseWriter, error: BaseException) -> None:
        """The handler raised: answer if nothing has been sent, cut the connection if something has."""
        server = self.server
        r = w.request
        gone = self._reading == GONE
        if isinstance(error, HandlerExit) and error.__cause__ is not None:
            error = error.__cause__
        of_a_client = isinstance(error, TransportError)  # not of this connection: the handler called somebody
        if isinstance(error, StatusError) and not of_a_client:
            status, text = error.status, error.text or status_text(error.status)
        elif isinstance(error, RemoteProtocolError) and not of_a_client and error.status_hint:
            status, text = error.status_hint, error.text
        elif isinstance(error, HTTPTimeout) and not of_a_client:
            status, text = 408, str(error)
        else:
            status, text = 500, "Internal Server Error"
            quiet = isinstance(error, AbortHandler | asyncio.CancelledError) or (
                gone and isinstance(error, ConnectionError)
            )
            if not quiet:
                server._log_failure(self, r, error)
        if gone:
            self._writer = None
            self._finished_gone(w)
        elif w._header_on_wire or isinstance(error, AbortHandler):
            cut_silently = w._ends_at_close
            w._abandon()
            self._count(w.status)
            self._writer = None
            if server.watched:
                self._end_watch(w)
            self._cut(reset=cut_silently)
        else:
            w._abandon()
            self._writer = w = ResponseWriter(self, r)
            if of_a_client or not isinstance(error, StatusError) or isinstance(error, MaxBytesError):
                w.header["Connection"] = "close"
            replies.error(w, text, status)
            self._finished(w)
        if isinstance(error, KeyboardInterrupt):
            raise error

    def _discard_body(self) -> bool:
        """Read on over the unread rest of the body, if it is worth it: the next request is behind it."""
        incoming = self._incoming
        assert incoming is not None
        incoming.body.close()
        if self._eof or not incoming.is_worth_reading(MAX_DISCARD):
            return False
        self.deadline = self.server.clock.after(self.server.body_idle_timeout)
        if self._paused:
            self._resume()
        return True

    # What a ResponseWriter asks.

    def must_close(self, w: ResponseWriter) -> bool:
        """Whether the answer whose header is being sent is this connection's last.

        It is also the moment when the unread rest of the body is given up, unless the handler
        asked for full duplex: a client that waits for the answer before it sends on, and a
        handler that waits for the body before it answers, would wait for each other.
        """
        must = not self.server.keep_alive or self._reading == DEAF
        body = w.request._body
        if body is not None and w.request.content_length and not self.full_duplex:
            incoming = self._incoming
            if incoming is not None and not incoming.is_worth_reading(MAX_DISCARD - 1):
                must = True
            body.close()
            if self._paused and incoming is not None:
                self._resume()
        return must

    def send(self, data: bytes) -> None:
        """Add to the output."""
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size > FLUSH_AT:
            self.flush()

    def send_chunk(self, data: bytes) -> None:
        """Add one chunk of a chunked body to the output."""
        size = format_chunk(len(data))
        self._out += (size, data, b"\r\n")
        self._out_size += len(size) + len(data) + 2
        if self._out_size > FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        """Give the output to the transport, which writes it to the socket at once if it can."""
        out = self._out
        size = self._out_size
        self._out = []
        self._out_size = 0
        transport = self.transport
        if transport is None or not out:
            return
        self.server.numbers.sent += size
        if len(out) == 1:
            data = out[0]
            if size > JOIN_LIMIT:
                self._begin_streaming(transport)
            transport.write(data)
        elif size <= JOIN_LIMIT:
            transport.write(b"".join(out))
        else:
            self._begin_streaming(transport)
            transport.writelines(out)
            if not self._write_blocked and transport.get_write_buffer_size() > WRITE_HIGH_WATER:
                # The writelines of asyncio in CPython 3.12 and 3.13.0 forgets to look; this looks again.
                transport.set_write_buffer_limits(WRITE_HIGH_WATER, WRITE_LOW_WATER)

    def _begin_streaming(self, transport: asyncio.Transport) -> None:
        # uvloop's own low-water mark is a few bytes: every wait would drain the pipe.
        if not self._streaming:
            self._streaming = True
            transport.set_write_buffer_limits(WRITE_HIGH_WATER, WRITE_LOW_WATER)

    def writable(self) -> Awaitable[None]:
        """Done while the client keeps up; else done when it has caught up."""
        if self._lost:
            raise _gone()
        if not self._write_blocked:
            return DONE
        waiter = self._unwritable
        if waiter is None or waiter.done():
            waiter = self._unwritable = self.server.loop.create_future()
        return waiter

    def informational_sent(self, status: int) -> None:
        if status == 100 and self._incoming is not None:
            self._incoming.continue_due = False

    def hijack(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        transport = self.transport
        writer = self._writer
        if transport is None or writer is None or self._reading == GONE:
            raise LocalProtocolError("http: the connection has been hijacked, or is gone")
        loop = self.server.loop
        self._hijacked = reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        writer._abandon()
        self._reading = GONE
        self.deadline = self.write_deadline = NEVER
        self._cancel_timers()
        waiting = bytes(self._buffer or b"")
        self._incoming = self._buffer = None
        self.flush()  # answers to earlier requests, and what the handler has flushed
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._write_blocked:
            protocol.pause_writing()
        if self._paused:
            self._resume()
        if waiting:
            reader.feed_data(waiting)
        if self._eof:
            reader.feed_eof()
        if self.server.conn_state is not None:
            self.server.conn_state(self, ConnState.HIJACKED)
        self._count(101)
        _ = self.remote_addr  # known from now on
        self.transport = None  # the handler's: nothing here may touch it any more
        self.server._connection_closed(self, busy=True)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    # What a Request asks (RequestOwner).

    @property
    def remote_addr(self) -> str:
        peer = self._peer
        if peer is None:
            address = self.transport.get_extra_info("peername") if self.transport is not None else None
            peer = self._peer = _format_address(address)
        return peer

    @property
    def disconnected(self) -> Notice:
        notice = self._disconnected
        if notice is None:
            notice = self._disconnected = Notice()
            if self._lost or self._eof:
                notice.set()
        return notice

    @property
    def shutting_down(self) -> Notice:
        return self.server.shutting_down

    @property
    def executor(self) -> Executor:
        return self.server.executor

    def _tell_gone(self) -> None:
        if self._disconnected is not None:
            self._disconnected.set()

    # Endings.

    def _end(self, *, linger: bool) -> None:
        """The last answer is out: close, in two steps if the client may still be sending.

        Bytes that arrive at a closed socket are answered with RST, which can destroy an
        answer that the client has not read yet (RFC 9112 section 9.6).
        """
        if self._out:
            self.flush()
        transport = self.transport
        if transport is None:
            return
        if not linger or self._eof:
            self._close()
            return
        if self._incoming is not None:
            self._incoming.body.close()
            self._forget_body()
        self._reading = LINGERING
        self._buffer = None
        self._lingered = 0
        if self._paused:
            self._resume()
        self.deadline = NEVER
        self._set_timer("linger", LINGER, self._stop_lingering)
        transport.write_eof()

    def _stop_lingering(self) -> None:
        """The client has had its time; output that it has not taken yet keeps its own deadline."""
        transport = self.transport
        if transport is None:
            return
        if transport.get_write_buffer_size():
            if self.write_deadline == NEVER:
                self._watch_write()
            self._set_timer("linger", LINGER, self._stop_lingering)
        else:
            self._close()

    def _close(self) -> None:
        """Close when the output is written."""
        transport = self.transport
        if transport is None:
            return
        if self._out:
            self.flush()
        self._reading = DEAF
        self._buffer = None
        self.deadline = NEVER
        if transport.get_write_buffer_size():
            self._watch_write()
        transport.close()

    def _cut(self, *, reset: bool) -> None:
        """End an answer that is not complete, so that the client cannot take it for complete."""
        transport = self.transport
        if transport is None:
            return
        if not reset:
            self._end(linger=self._reading == BODY)
            return
        # Only the end of the connection would end this body: it must not be an orderly one.
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.abort()

    def abort(self) -> None:
        """Drop the connection now, output and all."""
        if self.transport is not None:
            self._reading = DEAF
            self.transport.abort()

    def cancel(self) -> bool:
        """Cut the connection and cancel its handler; whether anything was under way."""
        busy = self._writer is not None
        if self._task is not None:
            self._task.cancel("the server is closing")
        self.abort()
        return busy

    def drain(self, idle_grace: float = 0.0) -> None:
        """The server is shutting down: close if nothing is under way, and nothing comes in time."""
        if self._writer is None and self._reading == HEAD and self._buffer is None:
            if self._fresh or idle_grace > 0:
                # Accepted, but its request has not come: it may be on its way.
                grace = max(idle_grace, NEW_GRACE) if self._fresh else idle_grace
                self.deadline = min(self.deadline, self.server.clock.after(grace))
            else:
                self._end(linger=True)

    @property
    def busy(self) -> bool:
        """Whether a handler is running."""
        return self._writer is not None

    # Deadlines.

    def expired(self, now: float) -> None:
        """Called by the server's sweep when a deadline has passed."""
        transport = self.transport
        if transport is None:
            return
        if self.write_deadline <= now:
            unwritten = transport.get_write_buffer_size()
            if not unwritten:
                self.write_deadline = NEVER
            elif unwritten >= self._write_mark:
                self.abort()
                return
            else:
                self._watch_write()
        if self.deadline > now:
            return
        self.deadline = NEVER
        if self._reading == BODY and self._writer is not None:
            seconds = self.server.body_idle_timeout
            self._break_body(
                HTTPTimeout(f"no byte of the request body came for {seconds} s (body_idle_timeout)")
            )
        elif self._reading == HEAD and self._head_begun:
            self._head_cut_short()
        elif self._reading == HEAD and (self._buffer or transport.get_write_buffer_size()):
            # Not idle: the client is still taking its answer, and that has a deadline of its own.
            if self.write_deadline == NEVER:
                self._watch_write()
            self.deadline = self.server.clock.idle_deadline
        else:
            self._end(linger=True)

    def set_read_deadline(self, seconds: float | None) -> None:
        self._set_timer("read", seconds, self._read_deadline)

    def set_write_deadline(self, seconds: float | None) -> None:
        self._set_timer("write", seconds, self.abort)

    def _read_deadline(self) -> None:
        if self._reading == BODY:
            self._break_body(HTTPTimeout("the request body was not complete in time (read deadline)"))

    def _set_timer(self, name: str, seconds: float | None, callback: Any) -> None:
        self._cancel_timers(name)
        if seconds is not None and not self._lost:
            if self._timers is None:
                self._timers = {}
            self._timers[name] = self.server.loop.call_later(seconds, callback)

    def _cancel_timers(self, *names: str) -> None:
        timers = self._timers
        if timers:
            for name in names or tuple(timers):
                timer = timers.pop(name, None)
                if timer is not None:
                    timer.cancel()

    def _watch_write(self) -> None:
        """(Re)start the clock of output that the client does not take."""
        self._write_mark = self.transport.get_write_buffer_size() if self.transport is not None else 0
        self.write_deadline = self.server.clock.after(self.server.write_idle_timeout)

    # What is told to others.

    def _activate(self) -> None:
        """A request has begun."""
        if not self._active:
            self._active = True
            if self.server.conn_state is not None:
                self.server.conn_state(self, ConnState.ACTIVE)

    def _idle(self) -> None:
        """A request has been answered and nothing of the next one is here."""
        if not self.server.keep_alive:
            # The server began to drain when the header of the answer was sent already.
            self._end(linger=True)
            return
        self.deadline = self.server.clock.idle_deadline
        if self._active:
            self._active = False
            if self.server.conn_state is not None:
                self.server.conn_state(self, ConnState.IDLE)

    def _end_watch(self, w: ResponseWriter) -> None:
        """Only when somebody wants to know: access log, write_timeout."""
        self._cancel_timers("write")
        if self.server.access_log is not None:
            duration = _now() - self._started_at
            self.server.access_log(AccessRecord(w.request, w.status, w.bytes_written, duration, w))

    def _pause(self) -> None:
        if not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        self._paused = False
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def __repr__(self) -> str:
        state = (
            "gone"
            if self.transport is None
            else "active"
            if self.busy
            else Reading(self._reading).name.lower()
        )
        what = f" {self._writer.request.method} {self._writer.request.request_uri}" if self._writer else ""
        return f"<Connection {self.remote_addr} {state}{what}>"


def _gone() -> ConnectionResetError:
    return ConnectionResetError("the client has closed the connection")


def _cancelled(task: asyncio.Task[Any]) -> BaseException:
    try:
        task.result()
    except asyncio.CancelledError as error:
        return error
    raise AssertionError("unreachable")


def _format_address(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[0].removeprefix("::ffff:"), address[1]  # an IPv4 peer of a dual-stack socket
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "@"
