"""WriterWrapper: the base for middleware that changes one thing about a ResponseWriter."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    import os
    from collections.abc import Awaitable
    from typing import BinaryIO

    from prefork.http.message.header import Header
    from prefork.http.message.request import Request
    from prefork.http.server.response_writer import Data, ResponseWriter


class WriterWrapper:
    """Forwards everything to another ResponseWriter: the base for middleware that changes one thing.

    Whatever a subclass does not override reaches the wrapped writer, so no capability (flush,
    hijack, send_file) is lost by wrapping.

        class Counting(http.WriterWrapper):
            def write(self, data):
                self.count = getattr(self, "count", 0) + len(data)
                return super().write(data)
    """

    def __init__(self, w: ResponseWriter | WriterWrapper) -> None:
        self.wrapped = w

    @property
    def request(self) -> Request:
        return self.wrapped.request

    @property
    def header(self) -> Header:
        return self.wrapped.header

    @property
    def header_sent(self) -> bool:
        return self.wrapped.header_sent

    @property
    def status(self) -> int:
        return self.wrapped.status

    @property
    def bytes_written(self) -> int:
        return self.wrapped.bytes_written

    def write_header(self, status: int) -> None:
        self.wrapped.write_header(status)

    def write(self, data: Data) -> Awaitable[None]:
        return self.wrapped.write(data)

    async def flush(self) -> None:
        await self.wrapped.flush()

    async def send_file(
        self, file: str | os.PathLike[str] | BinaryIO, offset: int = 0, count: int | None = None
    ) -> None:
        await self.wrapped.send_file(file, offset, count)

    async def hijack(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self.wrapped.hijack()

    def set_read_deadline(self, seconds: float | None) -> None:
        self.wrapped.set_read_deadline(seconds)

    def set_write_deadline(self, seconds: float | None) -> None:
        self.wrapped.set_write_deadline(seconds)

    def enable_full_duplex(self) -> None:
        self.wrapped.enable_full_duplex()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} around {self.wrapped!r}>"
