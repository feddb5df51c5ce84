"""Every error of prefork.http, one tree.

    HTTPError
    ├── StatusError(status, text)        raise it in a handler to answer with that status
    │   └── MaxBytesError                413: the request body is larger than its limit
    ├── AbortHandler                     drop the connection, log nothing
    ├── LocalProtocolError               our side misused HTTP
    ├── RemoteProtocolError              the peer did
    │   └── FormError (ValueError)       a form body that cannot be parsed (in message/form.py)
    ├── HTTPTimeout (also TimeoutError)  a deadline passed
    ├── CookieError                      a cookie that RFC 6265 does not allow
    └── ServerClosed                     serve() after shutdown() or close()
    PatternError (ValueError)            a ServeMux pattern that cannot be parsed
    └── PatternConflict                  two patterns of which neither is more specific

*Local* means: fix the calling code. *Remote* means: the peer sent something that
HTTP does not allow; nothing in this process is wrong.
"""

from __future__ import annotations


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


class CookieError(HTTPError, ValueError):
    """A cookie that cannot be written or parsed under RFC 6265."""


class ServerClosed(HTTPError):
    """The server was shut down or closed (Go: ErrServerClosed)."""


class PatternError(ValueError):
    """A ServeMux pattern that cannot be parsed or registered."""


class PatternConflict(PatternError):
    """Two registered patterns match the same requests and neither is more specific."""
