"""When a request that failed is sent again (Go: persistConn.shouldRetryRequest).

Law: nothing is sent twice that could act twice. Only a kept connection is excused, for the
server may have closed it at any time; a new one that fails has told us something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.http.errors import ConnectionLost, ServerClosedIdle

if TYPE_CHECKING:
    from prefork.http.message.request import Request

_REPLAYABLE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class NothingWritten(ConnectionLost):
    """The connection was gone before any byte of the request was written (Go: nothingWrittenError)."""

    phase = "write"
    retryable = True


class ReadFromServerError(ConnectionLost):
    """Reading the first byte of the response failed (Go: transportReadFromServerError)."""


def should_retry(request: Request, error: Exception, *, reused: bool) -> bool:
    """Whether `request`, which failed with `error`, may be sent again on another connection."""
    if not reused or not isinstance(error, ConnectionLost):
        return False
    if isinstance(error, NothingWritten):
        return has_no_body(request) or request.get_body is not None
    if isinstance(error, ServerClosedIdle | ReadFromServerError):
        return is_replayable(request)
    return False


def is_replayable(request: Request) -> bool:
    """Whether sending the request twice does no more than sending it once (Go: isReplayable).

    Idempotency-Key says so of any method: the server promises to act once per key.
    """
    if not has_no_body(request) and request.get_body is None:
        return False
    if request.method in _REPLAYABLE_METHODS:
        return True
    header = request._header
    return header is not None and ("Idempotency-Key" in header or "X-Idempotency-Key" in header)


def has_no_body(request: Request) -> bool:
    """Whether there is nothing that a first attempt could have used up."""
    return request._body is None and not request._content
