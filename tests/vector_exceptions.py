"""Rows of the measured vectors that do not hold here: {file: {row key: reason}}.

The tests that read the vectors share it; a row listed here must really differ.
"""

from __future__ import annotations

EXCEPTIONS: dict[str, dict[str, str]] = {
    "cookie_valid": {
        "http: nil Cookie": "a method has an object: there is no nil cookie",
    },
    "golden_mux_serve": {
        "21": "the space in the target makes the request line malformed; no mux or URL ever sees it",
    },
    "golden_server_wire": {
        "status 99 panics": "an exception before anything was sent is answered with 500",
        "panic before write": "an exception before anything was sent is answered with 500",
        "panic after write": "an exception before anything was sent is answered with 500",
        "non canonical key kept": "a Header has one spelling per name, the canonical one",
        "PRI preface": "HTTP/2 is refused with 505; no handler can do anything with the preface",
        "POST chunked and content-length": "Transfer-Encoding with Content-Length is refused: smuggling",
        "leading CRLF after GET not tolerated": "a bad request behind a good one is reported as active too",
        "short body then EOF": "the answer says that the connection closes, and the error says more",
        "expect continue, not read": "the connection is closed at once; Go waits for a body that never comes",
        "bad: bare LF lines accepted": "bare LF is refused",
        "bad: two equal content-lengths accepted": "a repeated Content-Length is refused",
        "bad: TE on HTTP/1.0 ignored": "Transfer-Encoding on HTTP/1.0 is refused",
        "TimeoutHandler 20ms message": "no TimeoutHandler: `async with asyncio.timeout()` in the handler",
        "TimeoutHandler default body": "no TimeoutHandler: `async with asyncio.timeout()` in the handler",
        "TimeoutHandler empty handler": "no TimeoutHandler: `async with asyncio.timeout()` in the handler",
    },
    "path_base": {"*": "nothing here takes the last element of a path; Python has posixpath.basename"},
    "path_split": {"*": "nothing here splits a path at its last slash; Python has str.rpartition"},
    "url_parse_errors": {
        "13": "the reason says that it is no IPv6 address, not at which character that shows",
    },
    "url_parse_request_uri": {
        "19": "the reason says that it is no IPv6 address, not at which character that shows",
        "20": "the reason says that it is no IPv6 address, not at which character that shows",
    },
    "url_redacted": {
        "3": "a method has an object: there is no nil URL",
    },
}
