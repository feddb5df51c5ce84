"""BulkReader: receives a long body into one small buffer, over and over.

A loop that hands out bytes reads up to 256 KiB at a time into fresh memory, which the kernel
maps and clears first and the processor's caches cannot hold. Over a buffer of 64 KiB that stays where
it is the same 100 MiB cost about half. So a connection whose body has proved to be long takes this
for its transport's protocol, until the body's end; short responses have no use for it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefork.http.client.persist_conn import PersistConn

BUFFER = 64 * 1024
"""Bytes received at once."""

LONG_BODY = 512 * 1024
"""Bytes of a body after which it is a long one."""


class BulkReader(asyncio.BufferedProtocol):
    """Stands between a transport and its PersistConn, which it tells everything."""

    __slots__ = ("_conn", "_view")

    def __init__(self, conn: PersistConn, view: memoryview) -> None:
        self._conn = conn
        self._view = view

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to receive: what was there has been copied, so all connections of a loop share it."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._conn.data_received(bytes(self._view[:nbytes]))

    def eof_received(self) -> None:
        self._conn.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._conn.connection_lost(exc)

    def pause_writing(self) -> None:
        self._conn.pause_writing()

    def resume_writing(self) -> None:
        self._conn.resume_writing()
