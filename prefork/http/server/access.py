"""AccessRecord: one answered request, as an access log sees it.

Made only when somebody logs; it takes the request's fields when it is asked for them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefork.http.message.request import Request


class AccessRecord:
    """What the access log is told of one request.

    status: 0 when the connection was cut before a status was decided. bytes_written: of the
    body. duration: seconds from the end of the request's head to the end of its handler.
    start: seconds since the epoch. Text fields hold what the client sent: escape them.
    """

    __slots__ = (
        "bytes_written",
        "duration",
        "host",
        "method",
        "pattern",
        "proto",
        "referer",
        "remote_addr",
        "start",
        "status",
        "target",
        "user_agent",
    )

    def __init__(self, r: Request, status: int, bytes_written: int, duration: float) -> None:
        self.remote_addr = r.remote_addr
        self.method = r.method
        self.target = r.request_uri
        self.proto = r.proto
        self.status = status
        self.bytes_written = bytes_written
        self.duration = duration
        self.start = time.time() - duration
        self.user_agent = r.user_agent()
        self.referer = r.referer()
        self.host = r.host
        self.pattern = r.pattern

    @classmethod
    def of_refusal(cls, remote_addr: str, status: int, bytes_written: int) -> AccessRecord:
        """The record of bytes that were no request."""
        self = cls.__new__(cls)
        self.remote_addr = remote_addr
        self.method = self.target = self.proto = self.user_agent = self.referer = self.host = self.pattern = (
            ""
        )
        self.status = status
        self.bytes_written = bytes_written
        self.duration = 0.0
        self.start = time.time()
        return self

    def __repr__(self) -> str:
        return f"<AccessRecord {self.method} {self.target} {self.status} {self.duration:.4f} s>"
