"""AccessRecord: one answered request, as an access log sees it.

Made only when somebody logs. What a log may not ask for is found when it does, and in the text
of the head as it was received: to parse all of a header for two fields of it would cost more
than all the rest of a log line.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from typing import TYPE_CHECKING

from prefork.http.message import auth
from prefork.http.message.grammar import OWS, ascii_lower

if TYPE_CHECKING:
    from prefork.http.message.request import Request
    from prefork.http.server.response_writer import ResponseWriter

_is_sane_id = re.compile(r"[0-9A-Za-z._~:/+=@-]{1,128}").fullmatch

_ids = itertools.count(1)
_id_prefix = ""


def _new_id() -> str:
    """16 random digits for the process, and a number: unique, and cheap."""
    global _id_prefix
    if not _id_prefix:
        _id_prefix = os.urandom(8).hex()
    return f"{_id_prefix}-{next(_ids):x}"


def _forked() -> None:
    global _id_prefix
    _id_prefix = ""


os.register_at_fork(after_in_child=_forked)


class AccessRecord:
    """What the access log is told of one request.

    status: 0 when the connection was cut before a status was decided. bytes_written: of the
    body. duration: seconds from the end of the request's head to the end of its handler.
    start: seconds since the epoch. Text fields hold what the client sent: escape them.
    """

    __slots__ = (
        "_head",
        "_lower_head",
        "_request",
        "_request_id",
        "_writer",
        "bytes_written",
        "duration",
        "host",
        "method",
        "pattern",
        "proto",
        "remote_addr",
        "start",
        "status",
        "target",
    )

    def __init__(
        self,
        r: Request,
        status: int,
        bytes_written: int,
        duration: float,
        writer: ResponseWriter | None = None,
    ) -> None:
        self.remote_addr = r.remote_addr
        self.method = r.method
        self.target = r.request_uri
        self.proto = r.proto
        self.status = status
        self.bytes_written = bytes_written
        self.duration = duration
        self.start = time.time() - duration
        self.host = r.host
        self.pattern = r.pattern
        self._head = r._head
        self._lower_head = ""
        self._request: Request | None = r
        self._request_id = ""
        self._writer = writer

    @classmethod
    def of_refusal(cls, remote_addr: str, status: int, bytes_written: int) -> AccessRecord:
        """The record of bytes that were no request."""
        self = cls.__new__(cls)
        self.remote_addr = remote_addr
        self.method = self.target = self.proto = self.host = self.pattern = ""
        self.status = status
        self.bytes_written = bytes_written
        self.duration = 0.0
        self.start = time.time()
        self._head = self._lower_head = self._request_id = ""
        self._request = None
        self._writer = None
        return self

    def request_header(self, name: str) -> str:
        """The first value of a field of the request, as it was received; "" if absent."""
        return self._field(f"\r\n{ascii_lower(name)}:")

    def _field(self, mark: str) -> str:
        """The first value of the field whose line begins with `mark`: line end, name, colon."""
        # A name is a token, so that nothing but the line of a field has this form.
        lower = self._lower_head or self._lower()
        at = lower.find(mark)
        if at < 0:
            return ""
        at += len(mark)
        return self._head[at : lower.index("\r\n", at)].strip(OWS)

    def _lower(self) -> str:
        if not self._head and self._request is not None:  # made by a program, a test perhaps
            self._head = "".join([f"\r\n{name}:{value}" for name, value in self._request.header.items()])
        self._lower_head = lower = ascii_lower(self._head) + "\r\n"
        return lower

    def response_header(self, name: str) -> str:
        """The first value of a field of the response that the handler has set; "" if absent.

        Those that the server adds (Date, Content-Length, a Content-Type it has found) are not here.
        """
        writer = self._writer
        if writer is None or writer._header is None:
            return ""
        return writer._header.get(name, "")

    @property
    def referer(self) -> str:
        """The Referer field, "" if absent."""
        return self._field("\r\nreferer:")

    @property
    def user_agent(self) -> str:
        """The User-Agent field, "" if absent."""
        return self._field("\r\nuser-agent:")

    @property
    def user(self) -> str:
        """The user of Basic authentication, "" if there is none. Nobody has checked the password."""
        value = self._field("\r\nauthorization:")
        found = auth.parse_basic_auth(value) if value else None
        return found[0] if found is not None else ""

    @property
    def request_id(self) -> str:
        """X-Request-Id of the request, if that is 1 to 128 of letters, digits, ._~:/+=@-; else a new one."""
        found = self._request_id
        if not found:
            found = self._field("\r\nx-request-id:")
            if not found or not _is_sane_id(found):
                found = _new_id()
            self._request_id = found
        return found

    def __repr__(self) -> str:
        return f"<AccessRecord {self.method} {self.target} {self.status} {self.duration:.4f} s>"
