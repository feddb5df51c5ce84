"""Status codes: their names, their texts, their rendered lines (RFC 9110 section 15).

The texts are Go's, which are the IANA registry's but for a few older ones that clients
know by heart (413 `Request Entity Too Large`, 414, 416, 418). The line of a known code
is rendered once, at import: the server's hot path is one look-up in `STATUS_LINE`.
"""

from __future__ import annotations

from typing import Final

STATUS_CONTINUE: Final = 100
STATUS_SWITCHING_PROTOCOLS: Final = 101
STATUS_PROCESSING: Final = 102
STATUS_EARLY_HINTS: Final = 103

STATUS_OK: Final = 200
STATUS_CREATED: Final = 201
STATUS_ACCEPTED: Final = 202
STATUS_NON_AUTHORITATIVE_INFO: Final = 203
STATUS_NO_CONTENT: Final = 204
STATUS_RESET_CONTENT: Final = 205
STATUS_PARTIAL_CONTENT: Final = 206
STATUS_MULTI_STATUS: Final = 207
STATUS_ALREADY_REPORTED: Final = 208
STATUS_IM_USED: Final = 226

STATUS_MULTIPLE_CHOICES: Final = 300
STATUS_MOVED_PERMANENTLY: Final = 301
STATUS_FOUND: Final = 302
STATUS_SEE_OTHER: Final = 303
STATUS_NOT_MODIFIED: Final = 304
STATUS_USE_PROXY: Final = 305
STATUS_TEMPORARY_REDIRECT: Final = 307
STATUS_PERMANENT_REDIRECT: Final = 308

STATUS_BAD_REQUEST: Final = 400
STATUS_UNAUTHORIZED: Final = 401
STATUS_PAYMENT_REQUIRED: Final = 402
STATUS_FORBIDDEN: Final = 403
STATUS_NOT_FOUND: Final = 404
STATUS_METHOD_NOT_ALLOWED: Final = 405
STATUS_NOT_ACCEPTABLE: Final = 406
STATUS_PROXY_AUTH_REQUIRED: Final = 407
STATUS_REQUEST_TIMEOUT: Final = 408
STATUS_CONFLICT: Final = 409
STATUS_GONE: Final = 410
STATUS_LENGTH_REQUIRED: Final = 411
STATUS_PRECONDITION_FAILED: Final = 412
STATUS_REQUEST_ENTITY_TOO_LARGE: Final = 413
STATUS_REQUEST_URI_TOO_LONG: Final = 414
STATUS_UNSUPPORTED_MEDIA_TYPE: Final = 415
STATUS_REQUESTED_RANGE_NOT_SATISFIABLE: Final = 416
STATUS_EXPECTATION_FAILED: Final = 417
STATUS_TEAPOT: Final = 418
STATUS_MISDIRECTED_REQUEST: Final = 421
STATUS_UNPROCESSABLE_ENTITY: Final = 422
STATUS_LOCKED: Final = 423
STATUS_FAILED_DEPENDENCY: Final = 424
STATUS_TOO_EARLY: Final = 425
STATUS_UPGRADE_REQUIRED: Final = 426
STATUS_PRECONDITION_REQUIRED: Final = 428
STATUS_TOO_MANY_REQUESTS: Final = 429
STATUS_REQUEST_HEADER_FIELDS_TOO_LARGE: Final = 431
STATUS_UNAVAILABLE_FOR_LEGAL_REASONS: Final = 451

STATUS_INTERNAL_SERVER_ERROR: Final = 500
STATUS_NOT_IMPLEMENTED: Final = 501
STATUS_BAD_GATEWAY: Final = 502
STATUS_SERVICE_UNAVAILABLE: Final = 503
STATUS_GATEWAY_TIMEOUT: Final = 504
STATUS_HTTP_VERSION_NOT_SUPPORTED: Final = 505
STATUS_VARIANT_ALSO_NEGOTIATES: Final = 506
STATUS_INSUFFICIENT_STORAGE: Final = 507
STATUS_LOOP_DETECTED: Final = 508
STATUS_NOT_EXTENDED: Final = 510
STATUS_NETWORK_AUTHENTICATION_REQUIRED: Final = 511

_TEXTS: Final[dict[int, str]] = {
    STATUS_CONTINUE: "Continue",
    STATUS_SWITCHING_PROTOCOLS: "Switching Protocols",
    STATUS_PROCESSING: "Processing",
    STATUS_EARLY_HINTS: "Early Hints",
    STATUS_OK: "OK",
    STATUS_CREATED: "Created",
    STATUS_ACCEPTED: "Accepted",
    STATUS_NON_AUTHORITATIVE_INFO: "Non-Authoritative Information",
    STATUS_NO_CONTENT: "No Content",
    STATUS_RESET_CONTENT: "Reset Content",
    STATUS_PARTIAL_CONTENT: "Partial Content",
    STATUS_MULTI_STATUS: "Multi-Status",
    STATUS_ALREADY_REPORTED: "Already Reported",
    STATUS_IM_USED: "IM Used",
    STATUS_MULTIPLE_CHOICES: "Multiple Choices",
    STATUS_MOVED_PERMANENTLY: "Moved Permanently",
    STATUS_FOUND: "Found",
    STATUS_SEE_OTHER: "See Other",
    STATUS_NOT_MODIFIED: "Not Modified",
    STATUS_USE_PROXY: "Use Proxy",
    STATUS_TEMPORARY_REDIRECT: "Temporary Redirect",
    STATUS_PERMANENT_REDIRECT: "Permanent Redirect",
    STATUS_BAD_REQUEST: "Bad Request",
    STATUS_UNAUTHORIZED: "Unauthorized",
    STATUS_PAYMENT_REQUIRED: "Payment Required",
    STATUS_FORBIDDEN: "Forbidden",
    STATUS_NOT_FOUND: "Not Found",
    STATUS_METHOD_NOT_ALLOWED: "Method Not Allowed",
    STATUS_NOT_ACCEPTABLE: "Not Acceptable",
    STATUS_PROXY_AUTH_REQUIRED: "Proxy Authentication Required",
    STATUS_REQUEST_TIMEOUT: "Request Timeout",
    STATUS_CONFLICT: "Conflict",
    STATUS_GONE: "Gone",
    STATUS_LENGTH_REQUIRED: "Length Required",
    STATUS_PRECONDITION_FAILED: "Precondition Failed",
    STATUS_REQUEST_ENTITY_TOO_LARGE: "Request Entity Too Large",
    STATUS_REQUEST_URI_TOO_LONG: "Request URI Too Long",
    STATUS_UNSUPPORTED_MEDIA_TYPE: "Unsupported Media Type",
    STATUS_REQUESTED_RANGE_NOT_SATISFIABLE: "Requested Range Not Satisfiable",
    STATUS_EXPECTATION_FAILED: "Expectation Failed",
    STATUS_TEAPOT: "I'm a teapot",
    STATUS_MISDIRECTED_REQUEST: "Misdirected Request",
    STATUS_UNPROCESSABLE_ENTITY: "Unprocessable Entity",
    STATUS_LOCKED: "Locked",
    STATUS_FAILED_DEPENDENCY: "Failed Dependency",
    STATUS_TOO_EARLY: "Too Early",
    STATUS_UPGRADE_REQUIRED: "Upgrade Required",
    STATUS_PRECONDITION_REQUIRED: "Precondition Required",
    STATUS_TOO_MANY_REQUESTS: "Too Many Requests",
    STATUS_REQUEST_HEADER_FIELDS_TOO_LARGE: "Request Header Fields Too Large",
    STATUS_UNAVAILABLE_FOR_LEGAL_REASONS: "Unavailable For Legal Reasons",
    STATUS_INTERNAL_SERVER_ERROR: "Internal Server Error",
    STATUS_NOT_IMPLEMENTED: "Not Implemented",
    STATUS_BAD_GATEWAY: "Bad Gateway",
    STATUS_SERVICE_UNAVAILABLE: "Service Unavailable",
    STATUS_GATEWAY_TIMEOUT: "Gateway Timeout",
    STATUS_HTTP_VERSION_NOT_SUPPORTED: "HTTP Version Not Supported",
    STATUS_VARIANT_ALSO_NEGOTIATES: "Variant Also Negotiates",
    STATUS_INSUFFICIENT_STORAGE: "Insufficient Storage",
    STATUS_LOOP_DETECTED: "Loop Detected",
    STATUS_NOT_EXTENDED: "Not Extended",
    STATUS_NETWORK_AUTHENTICATION_REQUIRED: "Network Authentication Required",
}

_BODILESS: Final = frozenset((*range(100, 200), STATUS_NO_CONTENT, STATUS_NOT_MODIFIED))


def status_text(code: int) -> str:
    """`404` -> `Not Found`; "" for a code without a registered text (Go: StatusText)."""
    return _TEXTS.get(code, "")


def body_allowed_for_status(code: int) -> bool:
    """Whether a response of this status may have a body (RFC 9110 section 6.4.1).

    1xx, 204 and 304 never have one, whatever their header says.
    """
    return code not in _BODILESS


def status_line(code: int, proto: str = "HTTP/1.1") -> bytes:
    """The first line of a response, with its CRLF: `HTTP/1.1 299 status code 299`.

    proto: that of the request. HTTP/1.0 is answered in HTTP/1.0, everything else in HTTP/1.1.
    Raises ValueError for a code outside 100 to 999: three digits are the grammar
    (RFC 9112 section 4).
    """
    if proto != "HTTP/1.0":
        line = STATUS_LINE.get(code)
        return _render(code, 1) if line is None else line
    return _render(code, 0)


def _render(code: int, minor: int) -> bytes:
    if not 100 <= code <= 999:
        raise ValueError(f"invalid status code {code}: it must be 100 to 999")
    return b"HTTP/1.%d %d %s\r\n" % (minor, code, (_TEXTS.get(code) or f"status code {code}").encode())


STATUS_LINE: Final[dict[int, bytes]] = {code: _render(code, 1) for code in _TEXTS}
"""The HTTP/1.1 status line of every known code; `status_line` renders the others."""
