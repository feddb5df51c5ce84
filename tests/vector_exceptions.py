"""Rows of the measured vectors that do not hold here: {file: {row key: reason}}.

The tests that read the vectors share it; a row listed here must really differ.
"""

from __future__ import annotations

EXCEPTIONS: dict[str, dict[str, str]] = {
    "chunked_parse_hex": {
        "1": "a chunk of more than 2^63-1 bytes is refused when its size is read",
        "9": "a chunk of more than 2^63-1 bytes is refused when its size is read",
    },
    "chunked_reader": {
        "19": "white space behind a chunk size is refused: RFC 9112 has none there",
    },
    "cookie_valid": {
        "http: nil Cookie": "a method has an object: there is no nil cookie",
    },
    "golden_client_wire": {
        "GET headers sorted": "a Header has one spelling per name, the canonical one",
        "GET stream with data is chunked (probe)": "what was read to see if there is a body is one chunk",
        "response 101 without upgrade headers": "a protocol is switched only when that was asked for",
    },
    "golden_mux_serve": {
        "21": "the space in the target makes the request line malformed; no mux or URL ever sees it",
    },
    "golden_request_read": {
        "19": "folded lines are refused",
        "20": "white space before a colon is refused: Go's server does so too, one step later",
        "29": "a repeated Content-Length is refused",
        "38": "white space behind a chunk size is refused: RFC 9112 has none there",
        "48": "HTTP/2 is refused with 505; no handler can do anything with the preface",
    },
    "golden_response_read": {
        "1": "bare LF is refused",
        "3": "two spaces before the status are refused",
        "8": "Transfer-Encoding with Content-Length is refused: smuggling",
        "10": "Transfer-Encoding on HTTP/1.0 is refused",
        "17": "white space before a colon is refused",
        "18": "folded lines are refused",
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
    "header_read_mime": {
        "0": "bare LF is refused",
        "1": "white space before a colon is refused: Go's server does so too, one step later",
        "9": "bare LF and folded lines are refused",
    },
    "header_write": {
        "1": "a Header has one spelling per name, the canonical one",
    },
    "path_base": {"*": "nothing here takes the last element of a path; Python has posixpath.basename"},
    "path_split": {"*": "nothing here splits a path at its last slash; Python has str.rpartition"},
    "request_read": {
        "4": "Transfer-Encoding with Content-Length is refused: smuggling",
        "7": "HTTP/1.1 without Host is refused: Go's server does so too, one step later",
    },
    "request_read_errors": {
        "1": "HTTP/1.1 without Host is refused: Go's server does so too, one step later",
        "4": "a repeated Content-Length is refused",
    },
    "request_write": {
        "7": "a Header has one spelling per name, the canonical one",
        "8": "a request of a Transport has a scheme: to a proxy it names the whole URL",
    },
    "response_read": {
        "3": "Transfer-Encoding with Content-Length is refused: smuggling",
        "9": "Transfer-Encoding on HTTP/1.0 is refused",
    },
    "response_read_errors": {
        "8": "HTTP/2 is refused: it is not spoken on this connection",
        "13": "a repeated Content-Length is refused",
        "14": "a repeated Content-Length is refused",
    },
    "response_write": {"*": "a Response is received, not written; a handler copies it with a ResponseWriter"},
    "server_connection_reuse": {
        "1": "a body that waits for 100 Continue in vain ends the connection; Go's own test skips this row",
    },
    "server_header_value_count": {
        "4": "announced trailers are one header line; what counts are the lines of the trailer section",
    },
    "server_read_from_too_long": {
        "3": "a write that is too long is refused whole: no byte of it is sent",
        "4": "a write that is too long is refused whole: no byte of it is sent",
    },
    "server_validates_host_header": {
        "12": "HTTP/2 is refused with 505; no handler can do anything with the preface",
    },
    "transport_invalid_requests": {
        "nil URL": "a Request always has a URL",
    },
    "transport_should_retry": {
        "1": "an error of HTTP/2, which is not spoken here",
    },
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
