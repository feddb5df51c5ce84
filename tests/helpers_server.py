"""What tests of the running server share: a server in the test's own loop, a client that shows every byte.

Not a test module. Load it by path, as the test modules do: `tests` is no package.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefork import http
from prefork.http.server.server import listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


class Log(logging.Handler):
    """An error_log that remembers. A server's log must be empty at the end unless it was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.logger = logging.Logger("test", logging.WARNING)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def take(self) -> list[str]:
        """What has been logged, tracebacks included; the log is empty afterwards."""
        lines, self.lines = self.lines, []
        return lines


class Answer:
    """One response: status, reason, headers (lower-case names; the last one of a name), body, head."""

    def __init__(self, head: bytes) -> None:
        line, *fields = head[:-4].decode("latin-1").split("\r\n")
        self.proto, status, self.reason = (line + " ").split(" ", 2)
        self.status = int(status)
        self.reason = self.reason.strip()
        self.headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
        self.trailers: dict[str, str] = {}
        self.head = head
        self.body = b""

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.headers} {self.body[:100]!r}>"


class Client:
    """A socket of the running loop. It reads only when it is asked to, so it can be slow on purpose."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""

    @classmethod
    async def to(cls, address: Any, *, rcvbuf: int | None = None, sndbuf: int | None = None) -> Client:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        if isinstance(address, tuple) and ":" in address[0]:
            family = socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if rcvbuf is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            if sndbuf is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def send(self, data: bytes | str) -> Client:
        """Send all of it; a str is sent as Latin-1."""
        data = data.encode("latin-1") if isinstance(data, str) else data
        await asyncio.get_running_loop().sock_sendall(self.sock, data)
        return self

    async def fill(self) -> bool:
        """Receive something; False at the end of the connection."""
        data = await asyncio.get_running_loop().sock_recv(self.sock, 262144)
        self.buffer += data
        return bool(data)

    async def until(self, mark: bytes) -> bytes:
        """What comes up to and with `mark`."""
        while mark not in self.buffer:
            assert await self.fill(), f"connection closed before {mark!r}; got {self.buffer!r}"
        taken, _, self.buffer = self.buffer.partition(mark)
        return taken + mark

    async def exactly(self, size: int) -> bytes:
        """The next `size` bytes."""
        while len(self.buffer) < size:
            assert await self.fill(), f"connection closed after {len(self.buffer)} of {size} bytes"
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    async def rest(self) -> bytes:
        """Everything up to the orderly end of the connection."""
        while await self.fill():
            pass
        taken, self.buffer = self.buffer, b""
        return taken

    async def closed(self) -> bool:
        """Wait for the server to close in order. False if it sends something instead."""
        return not self.buffer and not await self.fill()

    async def reset_by_server(self) -> bool:
        """Wait for the end; whether it is a reset. What comes before it is in `buffer`."""
        try:
            while await self.fill():
                pass
        except ConnectionResetError:
            return True
        return False

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer to a request with `method`, informational ones included."""
        answer = Answer(await self.until(b"\r\n\r\n"))
        if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
            pass
        elif answer.headers.get("transfer-encoding") == "chunked":
            pieces = []
            while size := int((await self.until(b"\r\n")).split(b";")[0], 16):
                pieces.append(await self.exactly(size))
                assert await self.exactly(2) == b"\r\n"
            answer.body = b"".join(pieces)
            while (line := await self.until(b"\r\n")) != b"\r\n":
                name, _, value = line.decode("latin-1").partition(":")
                answer.trailers[name.lower()] = value.strip()
        elif "content-length" in answer.headers:
            answer.body = await self.exactly(int(answer.headers["content-length"]))
        else:
            answer.body = await self.rest()
        return answer

    async def ask(self, method: str, target: str, *headers: str, body: bytes = b"") -> Answer:
        """Send a request on this connection and read its answer."""
        if body:
            headers = (*headers, f"Content-Length: {len(body)}")
        head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: test", *headers, "", ""])
        await self.send(head.encode("latin-1") + body)
        return await self.answer(method)

    async def get(self, target: str = "/", *headers: str) -> Answer:
        return await self.ask("GET", target, *headers)

    def shut(self) -> None:
        """Half-close: no more will be sent, answers are still wanted."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave with RST, as a client that crashes does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.sock.close()


class Serving:
    """A server that accepts, with its log and its clients."""

    def __init__(self, server: http.Server, listener: socket.socket) -> None:
        self.server = server
        self.listener = listener
        self.log = Log()
        server.error_log = self.log.logger
        self._clients: list[Client] = []

    @property
    def address(self) -> Any:
        return self.listener.getsockname()

    @property
    def port(self) -> int:
        return int(self.address[1])

    async def client(self, **options: Any) -> Client:
        """A new connection; closed at the end."""
        client = await Client.to(self.address, **options)
        self._clients.append(client)
        return client

    async def get(self, target: str = "/", *headers: str) -> Answer:
        """One GET on a connection of its own."""
        client = await self.client()
        answer = await client.get(target, *headers)
        client.close()
        return answer

    @property
    def conn(self) -> http.Connection:
        """The server's side of the only connection."""
        (conn,) = self.server._connections
        return conn


@contextlib.asynccontextmanager
async def serving(
    handler: Any = None,
    *,
    addr: str = "127.0.0.1:0",
    sndbuf: int | None = None,
    rcvbuf: int | None = None,
    gate: Callable[[], float] | None = None,
    **options: Any,
) -> AsyncIterator[Serving]:
    """A started server on a free port. sndbuf, rcvbuf: kernel buffers of its connections, in bytes.

    At the end clients leave, then the server is closed; it must let go of every connection and
    handler, and must have logged nothing that the test has not taken.
    """
    listener = listen(addr)
    if sndbuf is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    if rcvbuf is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    s = Serving(http.Server("", handler, **options), listener)
    try:
        s.server.start([listener], gate=gate)
        yield s
    finally:
        for client in s._clients:
            client.close()
        s.server.close()
        listener.close()
        await eventually(lambda: not s.server._connections, "the end of all handlers", 5.0)
        if sys.exc_info()[0] is not None:
            print(*s.log.lines, sep="\n")  # pytest shows it with the failure
    assert s.server.open_connections == 0
    assert not s.log.lines, "\n".join(s.log.lines)


async def eventually(condition: Callable[[], Any], what: str = "", timeout: float = 10.0) -> None:
    """Wait until `condition()` is true, for what nobody announces; AssertionError after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        assert loop.time() < deadline, f"waited in vain for {what or condition}"
        await asyncio.sleep(0.002)


class Memory:
    """The most memory this process had resident above what it had at the start, in bytes.

    with Memory() as memory: ...
    memory.growth
    """

    growth = 0

    def __enter__(self) -> Memory:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # reset the peak (proc(5))
        self._before = self._read("VmRSS")
        return self

    def __exit__(self, *exc: object) -> None:
        self.growth = self._read("VmHWM") - self._before

    @staticmethod
    def _read(field: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {field} in /proc/self/status")


@contextlib.contextmanager
def in_thread(handler: Any, new_loop: Any, **options: Any) -> Iterator[Serving]:
    """A server on a loop in a thread of its own, for clients that block."""
    ready = threading.Event()
    holder: dict[str, Any] = {}

    async def main() -> None:
        async with serving(handler, **options) as s:
            stop = asyncio.Event()
            holder.update(s=s, stop=stop, loop=asyncio.get_running_loop())
            ready.set()
            await stop.wait()

    def target() -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(main())
        except BaseException as error:
            holder["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=target)
    thread.start()
    ready.wait()
    try:
        if "s" in holder:
            yield holder["s"]
    finally:
        if "loop" in holder and thread.is_alive():
            holder["loop"].call_soon_threadsafe(holder["stop"].set)
        thread.join()
    if "error" in holder:
        raise holder["error"]


def request(target: str = "/", *headers: str, method: str = "GET", proto: str = "HTTP/1.1") -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {target} {proto}", "Host: test", *headers, "", ""]).encode("latin-1")


def chunked(*pieces: bytes, trailer: str = "") -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + f"0\r\n{trailer}\r\n".encode()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
