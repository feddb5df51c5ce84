"""Every error of prefork.http, one tree.

    HTTPError
    ├── StatusError(status, text)        raise it in a handler to answer with that status
    │   └── MaxBytesError                413: the request body is larger than its limit
    ├── AbortHandler                     drop the connection, log nothing
    ├── LocalProtocolError               our side misused HTTP
    ├── RemoteProtocolError              the peer did
    │   └── FormError (ValueError)       a form body that cannot be parsed (in message/form.py)
    ├── TransportError(op, url, addr, phase, retryable)   a request of a client failed
    │   ├── ConnectError                 no connection: DNS, refused, unreachable
    │   ├── TLSError                     the handshake failed, or the certificate is not trusted
    │   ├── ProxyError                   the proxy refused, or is no proxy
    │   ├── ConnectionLost               the connection ended before the response did
    │   │   └── ServerClosedIdle         ... as the request was sent on a kept connection
    │   ├── MalformedResponse (also RemoteProtocolError)   the server's answer is not HTTP
    │   ├── BodyTooLarge                 a response larger than `max_body_bytes`
    │   ├── RequestBodyError             the request's body failed, or has another length than declared
    │   ├── DecodingError                a content coding that cannot be decoded
    │   ├── ResponseStatusError (also StatusError)   what raise_for_status() raises
    │   ├── TooManyRedirects             the server sends us round and round
    │   └── ConnectTimeout, TLSTimeout, PoolTimeout, ResponseHeaderTimeout, ClientTimeout (also HTTPTimeout)
    ├── HTTPTimeout (also TimeoutError)  a deadline passed
    ├── CookieError                      a cookie that RFC 6265 does not allow
    └── ServerClosed                     serve() after shutdown() or close()
    PatternError (ValueError)            a ServeMux pattern that cannot be parsed
    └── PatternConflict                  two patterns of which neither is more specific

*Local* means: fix the calling code. *Remote* means: the peer sent something that
HTTP does not allow; nothing in this process is wrong.
"""

from __future__ import annotations

from typing import Any


class HTTPError(Exception):
    """Base of every error that prefork.http raises on its own account."""


class StatusError(HTTPError):
    """Raise it in a handler to answer with `status` and `text`.

    Before the header is sent the server answers as `http.error(w, text, status)` would;
    after that the response cannot be changed any more, and the connection is cut so that
    the client does not take half an answer for a whole one.

    status: 400 to 599. text: the body; empty means the status' standard text.

        raise http.StatusError(404, "no such item")
    """

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text

    def __str__(self) -> str:
        return f"{self.status} {self.text}".rstrip()


class MaxBytesError(StatusError):
    """The request body is larger than `limit` bytes (Go: MaxBytesError).

    Raised by reads of `r.body`. Not caught by the handler, it answers 413.
    """

    def __init__(self, limit: int, setting: str = "max_body_bytes") -> None:
        super().__init__(413, f"request body too large: the limit is {limit} bytes ({setting})")
        self.limit = limit


class AbortHandler(HTTPError):
    """Raise it in a handler to cut the connection without logging (Go: ErrAbortHandler)."""


class LocalProtocolError(HTTPError):
    """This side used HTTP wrongly: body after a 304, more bytes than declared, a dead writer."""


class RemoteProtocolError(HTTPError):
    """The peer sent what HTTP does not allow.

    status_hint: the status a server answers it with. text: the response body, constant
    text that never repeats the peer's bytes.
    """

    def __init__(self, text: str, status_hint: int = 400) -> None:
        super().__init__(text)
        self.text = text
        self.status_hint = status_hint


class HTTPTimeout(HTTPError, TimeoutError):
    """A deadline of this exchange passed."""


class TransportError(HTTPError):
    """A request of a client failed (Go: url.Error).

    op: the method, capitalised ("Get"). url: the URL without its password. addr: the "host:port"
    (or proxy) that the connection was for, "" before that is known. phase: where it failed:
    "request", "proxy", "pool", "dns", "dial", "tls", "write", "header", "body", "redirect" or "response".
    retryable: True when the server cannot have acted on the request, so that sending it again
    cannot do anything twice. `__cause__` is the error of the operating system, if there was one.

        try:
            response = await client.get(url)
        except http.TransportError as error:
            log.warning("%s (phase %s, safe to retry: %s)", error, error.phase, error.retryable)
    """

    phase = ""
    retryable = False

    def __init__(
        self,
        text: str,
        *,
        op: str = "",
        url: str = "",
        addr: str = "",
        phase: str = "",
        retryable: bool | None = None,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.op = op
        self.url = url
        self.addr = addr
        if phase:
            self.phase = phase
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        return f'{self.op} "{self.url}": {self.text}' if self.url else self.text


class ConnectError(TransportError):
    """No connection was made: the name has no address, or nobody could be reached there."""

    phase = "dial"
    retryable = True


class TLSError(TransportError):
    """The TLS handshake failed, or the certificate is not one to trust for this host."""

    phase = "tls"
    retryable = True


class ProxyError(TransportError):
    """The proxy could not be used, refused the connection, or does not speak its protocol."""

    phase = "proxy"
    retryable = True


class ConnectionLost(TransportError):
    """The connection ended, or broke, before the response was complete."""

    phase = "header"


class ServerClosedIdle(ConnectionLost):
    """The server closed a kept connection while the request was on its way (Go: errServerClosedIdle).

    Not retried by itself only when sending the request again could do something twice.
    """


class MalformedResponse(TransportError, RemoteProtocolError):
    """The server sent what HTTP does not allow; the connection is closed."""

    phase = "header"

    def __init__(self, text: str, **where: Any) -> None:
        TransportError.__init__(self, text, **where)


class BodyTooLarge(TransportError):
    """An awaited response has a larger body than `limit` bytes (`max_body_bytes`)."""

    phase = "body"

    def __init__(self, limit: int, **where: Any) -> None:
        super().__init__(
            f"response body larger than {limit} bytes (max_body_bytes): stream it with `async with`, "
            "or raise the limit",
            **where,
        )
        self.limit = limit


class RequestBodyError(TransportError):
    """The request's body raised an error, or did not have the length that was declared."""

    phase = "write"


class DecodingError(TransportError):
    """The body is not what its Content-Encoding says."""

    phase = "body"


class ResponseStatusError(TransportError, StatusError):
    """What `response.raise_for_status()` raises for 4xx and 5xx; `response` is the response.

    status: the response's. Not caught by a handler it is a failure of that handler like any other.
    """

    phase = "response"

    def __init__(self, response: Any) -> None:
        request = response.request
        TransportError.__init__(
            self,
            f"{response.status} {response.reason}".rstrip(),
            op=request.method.capitalize() if request is not None else "",
            url=request._peek_url().redacted() if request is not None else "",
        )
        self.status = response.status
        self.response = response

    __str__ = TransportError.__str__


class TooManyRedirects(TransportError):
    """More redirects than `check_redirect` allows; `response` is the last one, its body closed."""

    phase = "redirect"
    response: Any = None


class ConnectTimeout(TransportError, HTTPTimeout):
    """No connection within `dial_timeout`."""

    phase = "dial"
    retryable = True


class TLSTimeout(TransportError, HTTPTimeout):
    """No TLS session within `tls_handshake_timeout` (Go: TLS handshake timeout)."""

    phase = "tls"
    retryable = True


class PoolTimeout(TransportError, HTTPTimeout):
    """The client's timeout passed while the request waited for a connection to become free."""

    phase = "pool"
    retryable = True


class ResponseHeaderTimeout(TransportError, HTTPTimeout):
    """No response header within `response_header_timeout` after the request was written."""

    phase = "header"


class ClientTimeout(TransportError, HTTPTimeout):
    """The client's total timeout passed; `phase` tells what was being waited for."""


class CookieError(HTTPError, ValueError):
    """A cookie that cannot be written or parsed under RFC 6265."""


class ServerClosed(HTTPError):
    """The server was shut down or closed (Go: ErrServerClosed)."""


class PatternError(ValueError):
    """A ServeMux pattern that cannot be parsed or registered."""


class PatternConflict(PatternError):
    """Two registered patterns match the same requests and neither is more specific."""
