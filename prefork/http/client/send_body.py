"""Sending a request whose body must be waited for, or is long: a task for as long as that lasts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from prefork.http.client.request_head import CHUNKED, NO_BODY, format_trailers
from prefork.http.client.trace import wrote_head
from prefork.http.errors import RequestBodyError
from prefork.http.message.framing import LAST_CHUNK, format_chunk
from prefork.http.message.grammar import tokens
from prefork.http.message.source_body import SourceBody

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from prefork.http.client.persist_conn import PersistConn
    from prefork.http.message.request import Request

PIECE = 256 * 1024
"""Bytes of a body in memory that are written at once."""

TURN = 0.01
"""Seconds that a body which never has to wait is sent before the loop does something else."""


async def send_body(conn: PersistConn, request: Request, head: bytes, framing: int) -> None:
    """Write head and body of `request`; `framing` is the body's length, CHUNKED, or NO_BODY.

    Raises RequestBodyError when the body fails or has another length than its header says: the
    connection cannot be saved then. The body is closed in any case.
    """
    transport = conn._transport
    assert transport is not None
    buffer = conn.options.write_buffer_size
    transport.set_write_buffer_limits(high=buffer, low=buffer // 4)
    body = request._body
    try:
        transport.write(head)
        if conn._trace is not None:
            wrote_head(conn._trace, head)
        if _expects_continue(request) and not await conn.wait_continue():
            return  # the answer is there already, and the connection ends with it
        sent = 0
        length = 0 if framing == NO_BODY else framing
        now = conn.loop.time
        turn_ends = now() + TURN
        try:
            async with contextlib.aclosing(_pieces(request)) as pieces:
                async for piece in pieces:
                    sent += len(piece)
                    if transport.is_closing():
                        # connection_lost is about to come, and cancels us. Some versions of asyncio
                        # would still register the socket, if they were given more to write.
                        await conn.loop.create_future()
                    if framing == CHUNKED:
                        transport.writelines((format_chunk(len(piece)), piece, b"\r\n"))
                        # (Not every version of asyncio looks at the limits in writelines: here they do.)
                        transport.set_write_buffer_limits(high=buffer, low=buffer // 4)
                    elif sent > length:
                        break
                    else:
                        transport.write(piece)
                    if conn._write_blocked is not None:
                        await conn._write_blocked
                        turn_ends = now() + TURN
                    elif now() > turn_ends:
                        await asyncio.sleep(0)  # the peer takes all that comes: others want their turn
                        turn_ends = now() + TURN
        except Exception as error:
            raise RequestBodyError(f"the request's body failed: {error or type(error).__name__}") from error
        if framing == CHUNKED:
            trailer = request._extra.get("trailer") if request._extra is not None else None
            transport.write(format_trailers(trailer) if trailer else LAST_CHUNK)
        elif sent != length:
            more = " or more" if sent > length else ""
            raise RequestBodyError(
                "net/http: HTTP/1.x transport connection broken: "
                f"http: ContentLength={length} with Body length {sent}{more}"
            )
    finally:
        if isinstance(body, SourceBody):
            await body.aclose()
        elif body is not None:
            body.close()


def _expects_continue(request: Request) -> bool:
    header = request._header
    return header is not None and "100-continue" in tokens(header._fields.get("Expect", []))


async def _pieces(request: Request) -> AsyncGenerator[bytes | memoryview, None]:
    content = request._content
    if content is not None:
        view = memoryview(content)
        for start in range(0, len(content), PIECE):
            yield view[start : start + PIECE]
    elif request._body is not None:
        async for piece in request._body:
            yield piece
