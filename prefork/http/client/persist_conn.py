"""PersistConn: one connection of a Transport, kept for one request after another (Go: persistConn).

As in Go two loops own the two directions: `read_loop` everything that is received, `write_loop`
everything that is sent, and a request is handed to both. Here they are coroutines without a task:
each waits in a bare `yield`, and whoever has something for it, the event loop's callback with
bytes, or `round_trip` with a request, resumes it there and then. So a small exchange is one
write, one read and one wake-up of the caller, and the order of events is the order of the
code. Only a body that must be waited for (a file, an iterator) gets a task, as long as it lasts.

Laws:

* one request at a time; the connection is given back when its response was read to the end and
  its request written to the end, and in no other case;
* bytes that nobody has asked for end the connection: they can never become the next response;
* whoever waits is told, once: with the response, or with an error that says what happened where;
* every wait ends at `deadline`, a number that one timer per connection is kept in step with.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import math
import select
import types
import weakref
from typing import TYPE_CHECKING, Any

from prefork.http.client.bulk_reader import LONG_BODY, BulkReader
from prefork.http.client.request_head import wants_close
from prefork.http.client.response_head import CHUNKED, UNTIL_EOF, check_beginning, read_head
from prefork.http.client.retry import NothingWritten, ReadFromServerError
from prefork.http.client.send_body import send_body
from prefork.http.client.trace import wrote_head
from prefork.http.errors import (
    ClientTimeout,
    ConnectionLost,
    MalformedResponse,
    RemoteProtocolError,
    RequestBodyError,
    ResponseHeaderTimeout,
    ServerClosedIdle,
    TransportError,
)
from prefork.http.message.framing import ChunkedDecoder, is_trailer_name
from prefork.http.message.response_body import GunzipBody, ResponseBody
from prefork.http.tls import is_cut_off

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefork.http.client.idle_pool import HostPool, IdlePool
    from prefork.http.client.trace import ClientTrace
    from prefork.http.client.transport import Transport
    from prefork.http.message.header import Header
    from prefork.http.message.request import Request
    from prefork.http.message.response import Response

INLINE_BODY = 256 * 1024
"""Bytes of a body that is here up to which it is written at once, with its head."""

JOIN_LIMIT = 64 * 1024
"""Head and body up to this size are joined into one buffer; above it, copying costs more than writev."""

MAX_DRAIN = 256 * 1024
"""Bytes of a closed body that are read for the sake of the connection (Go: 256 << 10)."""

DRAIN_TIME = 0.05
"""Seconds for that at most."""

WRITE_GRACE = 0.05
"""Seconds an early response waits for its request to be written (Go: maxWriteWaitBeforeConnReuse)."""

NEVER = math.inf

log = logging.getLogger("prefork.http.client")


class Waiting(enum.Enum):
    """What `deadline` ends."""

    IDLE = "idle in the pool"
    REQUEST = "the exchange: the client's own timeout"
    HEADER = "the response header"
    DRAIN = "the rest of a closed body"
    WRITE = "the rest of the request behind its response"


IDLE, REQUEST, HEADER, DRAIN, WRITE = Waiting


@types.coroutine
def _resumed() -> Generator[None, Any, Any]:
    """Wait until the loop is resumed, and return what with: see the module's docstring."""
    return (yield)


class PersistConn(asyncio.Protocol):
    """One connection. Made by the Transport; users meet it in the `got_conn` trace hook.

    host: the servers it can serve. reused: it has been in the pool. requests: how many it carried.
    """

    __slots__ = (
        "_asked_gzip",
        "_body",
        "_close_after",
        "_closed",
        "_continue",
        "_deadline",
        "_drained",
        "_first_byte",
        "_idle_since",
        "_in_bulk",
        "_nothing_written",
        "_read_loop",
        "_reading_paused",
        "_request",
        "_response_done",
        "_sender",
        "_timer",
        "_timer_at",
        "_trace",
        "_transport",
        "_waiter",
        "_waiting",
        "_write_blocked",
        "_write_loop",
        "_written",
        "dial_phase",
        "host",
        "loop",
        "options",
        "pool",
        "requests",
        "reused",
        "tls",
    )

    def __init__(self, options: Transport, pool: IdlePool, host: HostPool) -> None:
        self.options = options
        self.pool = pool
        self.host = host
        self.loop = pool.loop
        self.dial_phase = "dial"  # the Dialer keeps it
        self.reused = False
        self.requests = 0
        self.tls: Any = None
        self._transport: asyncio.Transport | None = None
        self._closed: Exception | None = None
        # Of the current exchange.
        self._request: Request | None = None
        self._waiter: asyncio.Future[Response[ResponseBody]] | None = None
        self._body: weakref.ref[ResponseBody] | None = None
        self._trace: ClientTrace | None = None
        self._continue: asyncio.Future[bool] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._asked_gzip = False
        self._close_after = False
        self._first_byte = False
        self._written = True
        self._nothing_written = False
        self._response_done = False
        self._drained = 0
        # The socket's.
        self._reading_paused = False
        self._in_bulk = False
        self._write_blocked: asyncio.Future[None] | None = None
        self._deadline = NEVER
        self._waiting = IDLE
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._idle_since = 0.0

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self.tls = transport.get_extra_info("ssl_object")
        self.pool.conns.add(self)
        self._read_loop = self.read_loop()
        self._read_loop.send(None)
        self._write_loop = self.write_loop()
        self._write_loop.send(None)

    def data_received(self, data: bytes) -> None:
        self._read_loop.send(data)

    def eof_received(self) -> None:
        # Closing a TLS transport reads once more: the goodbye behind a response comes while its bytes
        # are still being taken, and the read loop, which has closed, must not be entered again.
        if self._closed is None:
            self._read_loop.send(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed is None:
            self._fail(self._lost_error(exc), exc)
        self._transport = None
        self._read_loop.close()
        self._write_loop.close()
        if self._write_blocked is not None:
            self.resume_writing()
        self.pool.lost(self)

    def pause_writing(self) -> None:
        self._write_blocked = self.loop.create_future()

    def resume_writing(self) -> None:
        blocked, self._write_blocked = self._write_blocked, None
        if blocked is not None and not blocked.done():
            blocked.set_result(None)

    # What the Transport calls.

    @property
    def is_closed(self) -> bool:
        """Whether no request can be sent on it any more."""
        return self._closed is not None or self._transport is None

    @property
    def has_ended(self) -> bool:
        """Whether it is closed, or its socket is being closed and that was not told yet."""
        return self._closed is not None or self._transport is None or self._transport.is_closing()

    def has_news(self) -> bool:
        """Whether bytes, or the end of the connection, have come that the loop has not told of yet."""
        if self._transport is None or self._transport.is_closing():
            return True
        sock = self._transport.get_extra_info("socket")
        if sock is None:
            return False  # a transport of a test, or of another kind: its callbacks tell all there is
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    @property
    def idle_time(self) -> float:
        """Seconds it has been in the pool."""
        return self.loop.time() - self._idle_since

    async def round_trip(
        self, request: Request, head: bytes, framing: int, gzip: bool, trace: ClientTrace | None
    ) -> Response[ResponseBody]:
        """Send `request`, whose head is `head`, and wait for the response's head.

        gzip: the head asks for it without the caller knowing. Cancelling it ends the connection.
        """
        if self.has_ended:
            raise NothingWritten(
                "http: server closed idle connection", addr=self.host.method.addr
            ) from self._closed
        self._request = request
        self._asked_gzip = gzip
        self._trace = trace
        self._close_after = (
            request.close
            or self.options.disable_keep_alives
            or (request._header is not None and wants_close(request))
        )
        self._first_byte = self._nothing_written = self._response_done = self._written = False
        self.requests += 1
        deadline: float | None = request._deadline
        if deadline is not None:
            self._waiting = REQUEST
            self._watch(deadline)
        else:
            self._deadline = NEVER
        waiter = self._waiter = self.loop.create_future()
        self._write_loop.send((request, head, framing))
        sender = self._sender
        try:
            return await waiter  # type: ignore[no-any-return]
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError | GeneratorExit):
                self._cancelled(waiter, sender)
            if sender is not None and not sender.done() and not isinstance(error, GeneratorExit):
                await asyncio.wait([sender])  # it ends now, and nobody else may touch the body before
            raise

    def _cancelled(
        self, waiter: asyncio.Future[Response[ResponseBody]], sender: asyncio.Task[None] | None
    ) -> None:
        """The caller has gone: nobody will read the response (Go: the request's context is done)."""
        if waiter.cancelled() or not waiter.done():
            if self._waiter is waiter:  # else the connection has seen it, and may be another's by now
                self.close(ConnectionLost("net/http: request canceled"))
        elif waiter.exception() is None:
            waiter.result().close()  # it came in the same moment
            if sender is not None and not sender.done():
                self.close(ConnectionLost("net/http: request canceled"))

    def close(self, error: Exception) -> None:
        """End the connection, whatever it is doing; `error` says why."""
        if self._closed is None:
            self._fail(error)

    def abort(self) -> None:
        """Cut the socket of a closed connection that does not come to its end."""
        if self._transport is not None:
            self._transport.abort()

    def became_idle(self) -> None:
        """The pool keeps it: start the idle timeout."""
        now = self._idle_since = self.loop.time()
        timeout = self.options.idle_conn_timeout
        if timeout is not None:
            self._waiting = IDLE
            self._watch(now + timeout)

    # Sending.

    async def write_loop(self) -> None:
        """Write one request after another, as `round_trip` hands them over (Go: writeLoop)."""
        while True:
            request, head, framing = await _resumed()
            transport: asyncio.Transport = self._transport  # type: ignore[assignment]
            content = request._content
            sender = None
            if content is None and request._body is None:
                transport.write(head)
                self._nothing_written = transport.is_closing()  # the socket refused the very first byte
            elif content is None or framing < 0 or len(content) > INLINE_BODY or b"\r\nExpect: " in head:
                self._sender = sender = self.loop.create_task(send_body(self, request, head, framing))
                sender.add_done_callback(self._sent)
                if not await _resumed():
                    continue
            else:
                if len(content) <= JOIN_LIMIT:
                    transport.write(head + content)
                else:
                    transport.writelines((head, content))
                self._nothing_written = transport.is_closing()
            try:
                if self._trace is not None and sender is None:
                    wrote_head(self._trace, head)
                self._request_written()
            except Exception as error:  # a trace hook's
                told = self._waiter is not None
                self._fail(error)
                if not told:
                    context = {"message": "a hook of a ClientTrace failed", "exception": error}
                    self.loop.call_exception_handler(context)

    def _sent(self, sender: asyncio.Task[None]) -> None:
        """The task that sent a body is done: the write loop goes on."""
        self._sender = None
        error: BaseException | None
        if sender.cancelled():
            # By `_fail`; or out of the body itself, which is then not whole.
            error = RequestBodyError("the request's body failed: it was cancelled")
        else:
            error = sender.exception()
        if error is not None:
            self._fail(error)
        if self._transport is not None:
            self._write_loop.send(self._closed is None)

    def _request_written(self) -> None:
        self._written = True
        trace = self._trace
        if trace is not None and trace.wrote_request is not None:
            trace.wrote_request(None)
        if self._response_done:
            self._give_back()
        elif self._waiter is not None and self.options.response_header_timeout is not None:
            self._waiting = HEADER
            self._watch(min(self.loop.time() + self.options.response_header_timeout, self._deadline))

    async def wait_continue(self) -> bool:
        """Wait for the server to want the body; whether to send it (RFC 9110 section 10.1.1)."""
        timeout = self.options.expect_continue_timeout
        if not timeout or self._response_done:
            return True
        if self._trace is not None and self._trace.wait_100_continue is not None:
            self._trace.wait_100_continue()
        self._continue = self.loop.create_future()
        timer = self.loop.call_later(timeout, self._let_continue, True)
        try:
            return await self._continue
        finally:
            timer.cancel()
            self._continue = None

    def _let_continue(self, wanted: bool) -> None:
        if self._continue is not None and not self._continue.done():
            self._continue.set_result(wanted)

    # Receiving.

    async def read_loop(self) -> None:
        """Take what is received: responses, in the order of the requests (Go: readLoop)."""
        try:
            data: bytes = await _resumed()
            while True:
                request = self._request
                if request is None or self._response_done:
                    self._unsolicited(data)
                elif not data:
                    self._fail(self._lost_error(None))
                else:
                    data = await self._read_response(request, data)
                    if data:
                        self._unsolicited(data)
                if self._closed is not None:
                    break
                data = await _resumed()
        except _ConnectionClosed:
            pass
        except MalformedResponse as error:
            if error.phase == "header":
                error.text = f"net/http: HTTP/1.x transport connection broken: {error.text}"
                error.args = (error.text,)
            self._fail(error)
        except Exception as error:
            # A trace hook's, or a fault of ours: the caller must not wait for ever.
            told = self._waiter is not None or self._body is not None
            self._fail(error)
            if not told:
                raise  # the loop will tell
        while True:
            await _resumed()  # what comes now is for nobody

    async def _more(self) -> bytes:
        """The next bytes of the response, b"" at the end of the connection."""
        data: bytes = await _resumed()
        if self._closed is not None:
            raise _ConnectionClosed
        return data

    async def _read_response(self, request: Request, data: bytes) -> bytes:
        """Read one response, from its first bytes; the bytes behind it, which nobody asked for."""
        self._first_byte = True
        trace = self._trace
        if trace is not None and trace.got_first_response_byte is not None:
            trace.got_first_response_byte()
        budget = self.options.max_response_header_bytes
        start = 0
        while True:
            end = data.find(b"\r\n\r\n", start) + 4
            if end < 4:
                data, end = await self._whole_head(data[start:], budget)
                start = 0
            if end - start > budget:
                raise self._header_too_large()
            response, length, gzip = read_head(data[start:end], request)
            if response.status >= 200:
                break
            # RFC 9110 section 15.2: any number of interim responses; their bytes count together.
            budget -= end - start
            start = end
            if response.status == 101:
                return self._switch_protocols(request, response, data[start:])
            self._interim(response)
        if self._waiter is None or self._waiter.done():
            # Cancelled, and its task has not run yet: nobody will read the response.
            self.close(ConnectionLost("net/http: request canceled"))
            raise _ConnectionClosed
        if self.tls is not None:
            response.tls = self.tls
        if self._waiting is HEADER:
            self._waiting = REQUEST
            self._deadline = NEVER if request._deadline is None else request._deadline
        if response.close_connection:
            self._close_after = True
        if self._continue is not None:
            # Go: the body goes out all the same when that saves the connection.
            self._let_continue(not self._close_after)
        gzip = gzip and self._asked_gzip
        if length == 0:
            response._content = b""
            rest = data[end:]
        elif 0 < length <= len(data) - end:
            content = data[end : end + length]
            rest = data[end + length :]
            if gzip:
                response._stream = GunzipBody.decoding(
                    response, ResponseBody.of(content), self.host.method.addr
                )
            else:
                response._content = content
        else:
            rest_of_body = self._read_body(response, length, gzip, data[end:])
            del response, data  # a body that is forgotten must be gone
            return await rest_of_body
        waiter = self._waiter
        self._waiter = None
        waiter.set_result(response)
        self._response_complete(rest)
        return rest

    async def _whole_head(self, data: bytes, budget: int) -> tuple[bytes, int]:
        """Receive until the head is whole; everything received, and where the head ends."""
        received = bytearray(data)
        checked = lines = 0
        while True:
            lines = check_beginning(received, checked, lines)
            if len(received) > budget:
                raise self._header_too_large()
            checked = len(received)
            data = await self._more()
            if not data:
                self._fail(self._lost_error(None))
                raise _ConnectionClosed
            searched = max(0, len(received) - 3)
            received += data
            end = received.find(b"\r\n\r\n", searched) + 4
            if end >= 4:
                return bytes(received), end

    def _header_too_large(self) -> MalformedResponse:
        limit = self.options.max_response_header_bytes
        return MalformedResponse(f"net/http: server response headers exceeded {limit} bytes; aborted")

    def _interim(self, response: Response[Any]) -> None:
        trace = self._trace
        if response.status == 100:
            self._let_continue(True)
            if trace is not None and trace.got_100_continue is not None:
                trace.got_100_continue()
        if trace is not None and trace.got_1xx_response is not None:
            trace.got_1xx_response(response.status, response.header)

    async def _read_body(
        self, response: Response[ResponseBody], length: int, gzip: bool, data: bytes
    ) -> bytes:
        """Feed the body of a response that is not here as a whole; the bytes behind it."""
        decoder = trailer = broken = None
        if length == CHUNKED:
            decoder = ChunkedDecoder()
            trailer = response.trailer
            try:
                data = self._decode(decoder, data)
            except MalformedResponse as error:
                broken = error  # the reader's, as if it had come in another segment than the head
                data = b""
        body = ResponseBody.of(data) if decoder is not None and decoder.done else ResponseBody(self, length)
        self._body = weakref.ref(body)
        response._stream = GunzipBody.decoding(response, body, self.host.method.addr) if gzip else body
        waiter = self._waiter
        self._waiter = None
        if decoder is not None and decoder.done:
            if not gzip:
                response._content, response._stream = data, None
            self._take_trailers(decoder, trailer)
            waiter.set_result(response)  # type: ignore[union-attr]
            self._response_complete(decoder.rest)
            return decoder.rest
        waiter.set_result(response)  # type: ignore[union-attr]
        # From here on only the caller may keep the body alive: if he forgets it, it says so.
        waiter = None
        del response, body
        if broken is not None:
            raise broken
        rest = b""
        remaining = length
        received = 0
        while True:
            received += len(data)
            if received > LONG_BODY and not self._in_bulk and self.tls is None:
                self._receive_with(BulkReader(self, self.pool.bulk_buffer()))
                self._in_bulk = True
            if decoder is not None:
                self._feed(data)
                if decoder.done:
                    self._take_trailers(decoder, trailer)
                    rest = decoder.rest
                    break
            elif length == UNTIL_EOF:
                self._feed(data)
            else:
                if len(data) > remaining:
                    rest = data[remaining:]
                    data = data[:remaining]
                remaining -= len(data)
                self._feed(data)
                if not remaining:
                    break
            data = await self._more()
            if not data:
                if length == UNTIL_EOF and not is_cut_off(self.tls):
                    break
                self._fail(self._lost_error(None))
                raise _ConnectionClosed
            if decoder is not None:
                data = self._decode(decoder, data)
        body_or_none = self._body()
        if body_or_none is not None:
            body_or_none.feed_end()
        self._response_complete(rest)
        return rest

    def _receive_with(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol take what comes, or ourselves again."""
        transport = self._transport
        assert transport is not None
        # A loop decides how to read when reading begins.
        if not self._reading_paused:
            transport.pause_reading()
        transport.set_protocol(protocol)
        if not self._reading_paused:
            transport.resume_reading()

    def _decode(self, decoder: ChunkedDecoder, data: bytes) -> bytes:
        try:
            return decoder.feed(data)
        except RemoteProtocolError as error:
            raise MalformedResponse(error.text, phase="body") from None

    def _take_trailers(self, decoder: ChunkedDecoder, trailer: Header | None) -> None:
        for name, value in decoder.trailer_lines:
            if trailer is not None and is_trailer_name(name):
                trailer.add(name, value)

    def _feed(self, data: bytes) -> None:
        """Hand bytes of the body to whoever reads it."""
        body = self._body() if self._body is not None else None
        if not data:
            return
        if body is None or body.closed:
            self._drained += len(data)
            if self._drained > MAX_DRAIN:
                self.close(ConnectionLost("the rest of a closed body was too long to read"))
                raise _ConnectionClosed
            return
        body.feed(data)
        if body.waiting_bytes > self.options.read_buffer_size and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()  # type: ignore[union-attr]

    def _response_complete(self, rest: bytes) -> None:
        """The response has been read to its end: keep the connection, or end it."""
        self._response_done = True
        self._body = None
        if self._in_bulk:
            self._in_bulk = False
            if self._closed is None:
                self._receive_with(self)
        if self._reading_paused:
            self.body_wanted()  # what waits unread is in memory: the connection need not wait with it
        if rest or self._close_after:
            self._request = None
            trace, self._trace = self._trace, None
            why = ConnectionLost("http: the connection ends with this response")
            self.close(why)
            if trace is not None and trace.put_idle_conn is not None:
                trace.put_idle_conn(why)
        elif self._written:
            self._give_back()
        else:
            self._waiting = WRITE
            self._watch(self.loop.time() + WRITE_GRACE)

    def _give_back(self) -> None:
        """The exchange is over, in both directions: the connection is free."""
        trace = self._trace
        self._request = self._trace = None
        self._deadline = NEVER  # whatever it was that ended with the exchange
        error = self.pool.put_idle(self)
        if trace is not None and trace.put_idle_conn is not None:
            trace.put_idle_conn(error)

    def _unsolicited(self, data: bytes) -> None:
        """Bytes that no request asked for, or the end of an idle connection."""
        if data and self._closed is None and not data.startswith((b"HTTP/1.0 408", b"HTTP/1.1 408")):
            log.warning("Unsolicited response received on idle HTTP channel starting with %.100r", data[:100])
        self.close(ServerClosedIdle("http: server closed idle connection"))

    def _switch_protocols(self, request: Request, response: Response[ResponseBody], data: bytes) -> bytes:
        """101: the connection is the caller's from here on (RFC 9110 section 15.2.2)."""
        header = request._header
        if header is None or "Upgrade" not in header:
            raise MalformedResponse("net/http: the server switched protocols without being asked")
        transport, waiter = self._transport, self._waiter
        assert transport is not None
        assert waiter is not None
        if waiter.done():  # cancelled, and its task has not run yet
            self.close(ConnectionLost("net/http: request canceled"))
            return b""
        self._request = self._waiter = self._transport = None
        self._closed = ConnectionLost("the connection has been handed over")
        self._stop_timer()
        self.pool.closing(self)
        self.pool.lost(self)
        reader = asyncio.StreamReader(loop=self.loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self.loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if data:
            reader.feed_data(data)
        response.tls = self.tls
        response._content = b""
        response.upgraded = (reader, asyncio.StreamWriter(transport, protocol, reader, self.loop))
        waiter.set_result(response)
        return b""

    # What a ResponseBody asks (ResponseBodySource).

    def body_wanted(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    def body_taken(self) -> None:
        """Nothing to do: the exchange has one deadline, whoever is slow."""

    def body_refused(self) -> None:
        """The caller has closed the body: read a short rest, for the sake of the connection."""
        body = self._body() if self._body is not None else None
        if self._closed is not None or body is None:
            return
        if body.content_length > MAX_DRAIN or body.content_length == UNTIL_EOF or self._close_after:
            self.close(ConnectionLost("the response's body was closed before its end"))
            return
        self._drained = 0
        self._waiting = DRAIN
        self._watch(min(self.loop.time() + DRAIN_TIME, self._deadline))
        self.body_wanted()

    def body_forgotten(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and all with it
            self.loop.call_soon_threadsafe(self.close, ConnectionLost("the response's body was forgotten"))

    # Ends.

    def _lost_error(self, exc: Exception | None) -> TransportError:
        """Why the connection that is gone matters to the exchange at hand."""
        reason = f": {exc}" if exc is not None else ""
        if self._waiter is None:
            if self._request is not None and not self._response_done:
                text = f"unexpected EOF{reason}: the connection ended within the body"
                return ConnectionLost(text, phase="body")
            return ServerClosedIdle("http: server closed idle connection")
        if self._first_byte:
            return ConnectionLost(f"net/http: HTTP/1.x transport connection broken: unexpected EOF{reason}")
        if self._nothing_written:
            return NothingWritten(f"http: server closed idle connection{reason}")
        if exc is not None:
            return ReadFromServerError(f"net/http: Transport failed to read from server{reason}")
        if self.reused:
            return ServerClosedIdle("http: server closed idle connection")
        return ConnectionLost("EOF: the server closed the connection without an answer")

    def _fail(self, error: BaseException, cause: BaseException | None = None) -> None:
        """The connection is over: tell whoever waits, once, and close the socket."""
        if self._closed is not None:
            return
        if isinstance(error, TransportError):
            error.addr = error.addr or self.host.method.addr
        if cause is not None:
            error.__cause__ = cause
        self._closed = error if isinstance(error, Exception) else ConnectionLost(repr(error))
        busy = self._request is not None
        waiter, body, trace = self._waiter, self._body, self._trace
        self._waiter = self._body = self._request = self._trace = None
        self._stop_timer()
        self.pool.closing(self)
        if self._sender is not None:
            self._sender.cancel()
        if self._transport is not None:
            if busy:
                self._transport.abort()  # what is unsent or unread is worth nothing
            else:
                self._transport.close()
        if waiter is not None:
            if not waiter.done():
                waiter.set_exception(error)
        elif body is not None and (reader := body()) is not None:
            reader.feed_error(self._closed)
        if trace is not None and not self._written and trace.wrote_request is not None:
            trace.wrote_request(self._closed)

    def _watch(self, deadline: float) -> None:
        """End the wait at `deadline`. The timer is moved only to an earlier time: a later one it finds."""
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self.loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        if self._deadline == NEVER or self._closed is not None:
            return
        if self._deadline - self.loop.time() > 0.001:  # the timer's own grain
            self._watch(self._deadline)
            return
        self._expired()

    def _expired(self) -> None:
        request = self._request
        if self._waiting is IDLE:
            if request is None:
                self.close(ConnectionLost("http: idle connection timeout"))
        elif self._waiting is DRAIN or self._waiting is WRITE:
            self.close(ConnectionLost(f"not in time: {self._waiting.value}"))
        elif request is not None:
            if self._waiting is HEADER and not _passed(request._deadline, self.loop.time()):
                self._fail(ResponseHeaderTimeout("net/http: timeout awaiting response headers"))
            elif self._waiter is None:
                self._fail(client_timeout("body"))
            else:
                self._fail(client_timeout("header" if self._written else "write"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = NEVER

    def __repr__(self) -> str:
        if self._closed is not None:
            state = f"closed: {self._closed}"
        elif self._request is not None:
            state = f"{self._request.method} {self._request._peek_url().redacted()}"
        else:
            state = f"idle for {self.idle_time:.1f} s" if self in self.host.idle else "connected"
        where = f"{self.host.method.scheme}://{self.host.method.addr}"
        return f"<PersistConn {where}, {self.requests} requests, {state}>"


class _ConnectionClosed(Exception):
    """The connection was closed while the read loop waited: nothing more is to be read."""


def _passed(deadline: float | None, now: float) -> bool:
    return deadline is not None and deadline - now <= 0.001


def client_timeout(phase: str) -> ClientTimeout:
    """The error of a client whose total timeout has passed, in Go's words."""
    if phase == "body":
        doing = "Client.Timeout or context cancellation while reading body"
    else:
        doing = "Client.Timeout exceeded while awaiting headers"
    return ClientTimeout(f"context deadline exceeded ({doing})", phase=phase)
