"""Servers that play any bytes, and connections of a Transport without a socket.

Not a test module. Load it by path, as the test modules do: `tests` is no package.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

from prefork.http.client.transport import Transport
from prefork.http.errors import HTTPError, TransportError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from prefork.http.message.request import Request
    from prefork.http.message.response import Response

SECOND = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsecond-ok"


class Player:
    """A server that plays `raw` to a request for /first, and answers all others properly.

    raw: bytes, or pieces that are sent one by one. after: what it does then: "hold" the connection
    and read on, "close" it, or reset it ("rst"). extra: what it sends later, in `say_more()`.
    requests: what it received, as (number of the connection, head).
    """

    def __init__(self, raw: bytes | Iterable[bytes], after: str = "hold", extra: bytes = b"") -> None:
        self.pieces = [raw] if isinstance(raw, bytes) else raw
        self.after = after
        self.extra = extra
        self.requests: list[tuple[int, bytes]] = []
        self.sent = 0
        self._gone: list[asyncio.Event] = []  # by number: the client has ended this connection
        self._say_more = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self._gone)
        self._gone.append(asyncio.Event())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append((number, head))
                if b" /first " not in head.partition(b"\r\n")[0]:
                    writer.write(SECOND)
                    continue
                for piece in self.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                    self.sent += len(piece)
                if self.after == "rst":
                    reset(writer)
                    return
                if self.after == "close":
                    writer.write_eof()
                if self.extra:
                    await self._say_more.wait()
                    writer.write(self.extra)
        except (OSError, EOFError):
            pass
        finally:
            self._gone[number].set()
            writer.transport.abort()

    async def say_more(self) -> None:
        """Send what is `extra`, and wait until the client has drawn its conclusions."""
        self._say_more.set()
        await self.ended(0)

    async def ended(self, number: int) -> None:
        """Wait until the client has ended this connection; TimeoutError if it does not."""
        async with asyncio.timeout(5):
            await self._gone[number].wait()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve for the time of the `with`; gives "127.0.0.1:port"."""
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            while tasks:
                for task in list(tasks):
                    task.cancel()
                await asyncio.wait(tasks)
            await server.wait_closed()


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# --- without a socket -------------------------------------------------------------------------


class FakeSocket(asyncio.Transport):
    """The transport of a connection that leads nowhere: keeps what is written, and can be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.paused = False
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written += data

    def writelines(self, pieces: Iterable[Any]) -> None:
        for piece in pieces:
            self.write(piece)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol


class Socketless(Transport):
    """A Transport whose connections are FakeSockets; `socket` is the last one, `sockets` their number."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"proxy": None, **options})
        self.socket = FakeSocket()
        self.sockets = 0
        self._dialer = self  # type: ignore[assignment]

    async def dial(self, method: Any, protocol: Any, trace: Any) -> asyncio.Transport:
        self.socket = FakeSocket()
        self.sockets += 1
        self.socket.protocol = protocol
        protocol.connection_made(self.socket)
        return self.socket


async def settle(turns: int = 5) -> None:
    """Let everything that can go on go on."""
    for _ in range(turns):
        await asyncio.sleep(0)


def shown(response: Response[Any]) -> dict[str, Any]:
    """What a response tells, without its body."""
    return {
        "status": response.status,
        "reason": response.reason,
        "proto": response.proto,
        "header": {name: response.header.values(name) for name in response.header},
        "content_length": response.content_length,
        "transfer_encoding": response.transfer_encoding,
        "close": response.close_connection,
        "uncompressed": response.uncompressed,
    }


def failed(error: Exception) -> dict[str, Any]:
    """What an error tells; it must be one of the tree, and say where it happened."""
    assert isinstance(error, HTTPError), repr(error)
    assert isinstance(error, TransportError), repr(error)
    assert error.phase, repr(error)
    assert error.addr, repr(error)
    return {"error": type(error).__name__, "text": error.text, "phase": error.phase}


async def exchange(transport: Socketless, request: Request, pieces: list[bytes], end: str) -> dict[str, Any]:
    """Send `request`, answer with `pieces`, and tell what came of it, in one dict.

    end: what the server does behind them, as a Player's `after`.
    """
    task = asyncio.ensure_future(_outcome(transport, request))
    await settle()
    sock = transport.socket
    for piece in pieces:
        if sock.closed:
            break
        sock.get_protocol().data_received(piece)
        await settle(2)
    if end == "close" and not sock.closed:
        sock.get_protocol().eof_received()
        sock.close()
    elif end == "rst" and not sock.closed:
        sock.closed = True
        sock.get_protocol().connection_lost(ConnectionResetError(104, "Connection reset by peer"))
    async with asyncio.timeout(5):
        result = await task
    await settle()
    result["kept"] = transport.stats().idle == 1
    assert result["kept"] != sock.closed
    return result


async def _outcome(transport: Transport, request: Request) -> dict[str, Any]:
    try:
        response = await transport.round_trip(request)
    except Exception as error:
        return failed(error)
    result = shown(response)
    if response.upgraded is not None:
        response.upgraded[1].close()
        return result
    try:
        result["body"] = b"".join([piece async for piece in response.body])
    except Exception as error:
        result.update(failed(error))
    result["trailer"] = {name: response.trailer.values(name) for name in response.trailer}
    return result
