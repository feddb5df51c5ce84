"""HeadScanner: one complete request head in, one Request out, or an error with Go's text.

httptools (llhttp) is strict about the bytes of names and values but leaves much of HTTP to
us: it does not look at Host, takes several codings before `chunked`, reads the body of an
`Upgrade` or CONNECT request as the next request, refuses methods it does not know, accepts
`RTSP/1.1`, and cannot say at which byte a message ended. So the connection cuts the head out
of the stream (it ends with the first CRLF CRLF) and only heads come here:

* the usual head (origin-form target, HTTP/1.1, one well-formed Host, at most a Content-Length) is
  recognised by two regular expressions, and httptools checks the syntax of all the rest, if any;
* every other head is taken apart line by line and judged against RFC 9112 in Python; then
  httptools must agree on the same header lines.

Law: the head parser sees only whole heads that promise no body, so it is always at the start
of a message and one parser serves all connections; whenever that does not hold it is replaced.
Bodies never pass through it.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import httptools

from prefork.http.errors import RemoteProtocolError
from prefork.http.message.framing import is_trailer_name
from prefork.http.message.grammar import (
    HOST_CLASS,
    OWS,
    ascii_lower,
    has_control,
    is_host_value,
    is_token,
    parse_content_length,
    tokens,
)
from prefork.http.message.request import Request, _parse_target
from prefork.http.message.url import URLError

if TYPE_CHECKING:
    from prefork.http.message.request import RequestOwner

# The usual request line, with the Host field behind it if it comes first, as most clients send it,
# and Connection behind that, as simple clients do. Often that is all, and nothing is left to check.
# The path has no escape, so that it is its own decoded form; the methods are those that llhttp
# treats alike.
_usual_start = re.compile(
    r"(GET|HEAD|POST|PUT|DELETE|OPTIONS|TRACE|PATCH) (/[!-$&->@-~]*)(?:\?[!-~]*)? HTTP/1\.1\r\n"
    rf"(?:[Hh]ost:[ \t]*([{HOST_CLASS}]+)[ \t]*\r\n(?:Connection: (close|keep-alive)\r\n)?)?"
).match

# The fields behind it that decide how the head is read, with the value of a well-formed Host or
# Content-Length. What only looks like one (a field named Con...) costs time and nothing else.
# (The parser's own should_keep_alive is of no use: it forgets when the message is complete.)
_special_fields = re.compile(
    rf"\n[HhCcTtEe](?:[Oo][Ss][Tt]:(?:[ \t]*([{HOST_CLASS}]+)[ \t]*(?=\r))?"
    r"|[Oo][Nn][Tt][Ee][Nn][Tt]-[Ll][Ee][Nn][Gg][Tt][Hh]:(?:[ \t]*([0-9]{1,18})[ \t]*(?=\r))?"
    r"|[Oo][Nn][Nn][Ee][Cc][Tt][Ii][Oo][Nn]:(?![ \t]*[Kk]eep-[Aa]live\r)"
    r"|[Rr][Aa][Nn][Ss][Ff][Ee][Rr]-|[Xx][Pp][Ee][Cc][Tt]:)"
).finditer

_CLOSE = "\nConnection: close\r\n"

_new = Request.__new__
_new_parser = httptools.HttpRequestParser

CHUNKED = -1
"""content_length of a chunked body."""


class _NoCallbacks:
    """httptools wants a protocol object; ours has nothing to be told."""

    __slots__ = ()


_NO_CALLBACKS = _NoCallbacks()


class HeadScanner:
    """Turns request heads into Requests. One per server; it keeps nothing of any connection.

    max_header_values: header lines allowed in one head, None for no limit.

    The Request has `close`, `content_length` (CHUNKED for chunked) and `host` set. What the
    head says about 100-continue is in `expects_continue` until the next scan.
    """

    __slots__ = ("_max_lines", "_parser", "_safe_length", "expects_continue")

    def __init__(self, *, max_header_values: int | None = 500) -> None:
        self._parser = _new_parser(_NO_CALLBACKS)
        self._max_lines = max_header_values
        # No head this short has too many lines: the shortest is "a:\r\n".
        self._safe_length = 4 * max_header_values if max_header_values is not None else 1 << 62
        self.expects_continue = False

    def scan(self, head: bytes, owner: RequestOwner) -> Request:
        """The Request of a head that ends with its blank line.

        Raises RemoteProtocolError, whose status_hint and text are the answer.
        """
        text = head.decode("utf-8", "surrogateescape")
        match = _usual_start(text)
        if match is None or len(head) > self._safe_length:
            return self._scan_fully(text, owner)
        method, path, host, connection = match.groups()
        length = 0
        close = connection == "close"
        start = match.end() - 1
        if start + 3 != len(text):
            sized = False
            for special in _special_fields(text, start):
                a_host, a_length = special.groups()
                if a_host is not None and host is None:
                    host = a_host
                elif a_length is not None and not sized:
                    sized = True
                    length = int(a_length)
                elif text.startswith(_CLOSE, special.start()):
                    close = True
                else:
                    return self._scan_fully(text, owner)
            try:
                self._parser.feed_data(head)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                # An upgrade is for a handler that hijacks to take up; to all others it is a plain request.
                self._parser = _new_parser(_NO_CALLBACKS)
                return self._scan_fully(text, owner)
            if length or close:
                self._parser = _new_parser(_NO_CALLBACKS)
                self.expects_continue = False
        if host is None:
            return self._scan_fully(text, owner)
        r = _new(Request)
        r.method = method
        r._plain_path = path
        r._is_usual = method != "HEAD"
        r.host = host
        r.proto = "HTTP/1.1"
        r.content_length = length
        r.close = close
        r.pattern = ""
        r._head = text
        r._owner = owner
        r._url = r._header = r._body = r._path_values = r._extra = None
        return r

    def _scan_fully(self, text: str, owner: RequestOwner) -> Request:
        if (
            text.count("\n") != (ends := text.count("\r\n"))
            or text.count("\r") != ends
            or not "!" <= text[0] <= "~"
        ):
            # First of all: these show before the head is complete, and the answer must not depend on that.
            raise RemoteProtocolError("400 Bad Request")
        line, _, block = text.partition("\r\n")
        method, target, minor = _request_line(line)
        lines = block.split("\r\n")[:-2]
        if self._max_lines is not None and len(lines) > self._max_lines:
            raise RemoteProtocolError("431 Request Header Fields Too Large", 431)
        fields = _fields(lines)

        r = _new(Request)
        r.method = method
        r.proto = f"HTTP/1.{minor}"
        r._is_usual = minor != 0 and method != "HEAD" and method != "CONNECT"
        r.pattern = ""
        r._head = text
        r._owner = owner
        r._header = r._body = r._path_values = r._extra = r._plain_path = None
        try:
            r._url = url = _parse_target(method, target)
        except URLError:
            raise RemoteProtocolError("400 Bad Request") from None
        r.host = _host(fields.get("host"), minor, method)
        if url.host or url.scheme:
            _check_authority(method, target, url.host)
            # RFC 9112 section 3.2.2: the authority of an absolute-form target replaces Host.
            r.host = url.host
        elif target.startswith("/"):
            path = target.partition("?")[0]
            if "%" not in path:
                r._plain_path = path
        r.content_length = length = _body_length(fields, minor)
        connection = tokens(fields.get("connection", []))
        r.close = "close" in connection or (minor == 0 and "keep-alive" not in connection)
        self.expects_continue = _expectation(fields.get("expect"), minor) and length != 0
        self._check_syntax(block)
        return r

    def _check_syntax(self, block: str) -> None:
        """httptools' opinion of header lines that we found right."""
        parser = _new_parser(_NO_CALLBACKS)
        try:
            parser.feed_data(b"GET / HTTP/1.1\r\n" + block.encode("utf-8", "surrogateescape"))
        except httptools.HttpParserUpgrade:
            pass  # the head is whole, and its body does not pass through a parser
        except httptools.HttpParserError:
            raise RemoteProtocolError("400 Bad Request") from None


def _request_line(line: str) -> tuple[str, str, int]:
    """(method, target, minor version): exactly two single spaces (RFC 9112 section 3)."""
    parts = line.split(" ")
    if len(parts) != 3 or not is_token(parts[0]) or not parts[1]:
        raise RemoteProtocolError("400 Bad Request")
    method, target, version = parts
    if not re.fullmatch(r"HTTP/[0-9]\.[0-9]", version):
        raise RemoteProtocolError("400 Bad Request")
    if version[5] != "1":
        raise RemoteProtocolError("505 HTTP Version Not Supported: unsupported protocol version", 505)
    if method == "PRI":  # the preface of HTTP/2 means nothing here (RFC 9113 section 3.4)
        raise RemoteProtocolError("400 Bad Request")
    return method, target, int(version[7])


def _fields(lines: list[str]) -> dict[str, list[str]]:
    """Lower-cased names with their values, of lines that must be right to the byte."""
    fields: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not is_token(name):
            if colon and name and name[0] not in OWS and is_token(re.sub("[ ]", "", name)):
                # The classic of request smuggling, `Content-Length : 5`, has a text of its own.
                raise RemoteProtocolError("400 Bad Request: invalid header name")
            raise RemoteProtocolError("400 Bad Request")
        if has_control(value):
            raise RemoteProtocolError("400 Bad Request")
        fields.setdefault(ascii_lower(name), []).append(value.strip(OWS))
    return fields


def _host(values: list[str] | None, minor: int, method: str) -> str:
    """The value of Host: one, and well-formed (RFC 9112 section 3.2)."""
    if values is None:
        if minor >= 1 and method != "CONNECT":
            raise RemoteProtocolError("400 Bad Request: missing required Host header")
        return ""
    if len(values) > 1:
        raise RemoteProtocolError("400 Bad Request")
    if not is_host_value(values[0]):
        raise RemoteProtocolError("400 Bad Request: malformed Host header")
    return values[0]


def _check_authority(method: str, target: str, host: str) -> None:
    """The authority of an absolute-form or CONNECT target."""
    name, colon, port = host.rpartition(":")
    if not host or not is_host_value(host):
        raise RemoteProtocolError("400 Bad Request")
    if method == "CONNECT" and (target != host or not colon or not name):
        # RFC 9112 section 3.2.3: host and port, nothing else.
        raise RemoteProtocolError("400 Bad Request")
    if colon and port and "]" not in port and (not port.isascii() or not port.isdigit() or int(port) > 65535):
        raise RemoteProtocolError("400 Bad Request")


def _body_length(fields: dict[str, list[str]], minor: int) -> int:
    """Bytes of the body, CHUNKED, or 0 (RFC 9112 section 6.3)."""
    codings = fields.get("transfer-encoding")
    lengths = fields.get("content-length")
    if codings is not None:
        if lengths is not None or minor == 0:
            # Two framings, or one that an HTTP/1.0 hop does not see: somebody is smuggling.
            raise RemoteProtocolError("400 Bad Request")
        if len(codings) != 1 or ascii_lower(codings[0]) != "chunked":
            raise RemoteProtocolError("Unsupported transfer encoding", 501)
        for name in tokens(fields.get("trailer", [])):
            if name in ("transfer-encoding", "content-length", "trailer"):
                raise RemoteProtocolError("400 Bad Request")
        return CHUNKED
    if lengths is None:
        return 0
    if len(lengths) != 1:
        raise RemoteProtocolError("400 Bad Request")
    try:
        return parse_content_length(lengths[0])
    except ValueError:
        raise RemoteProtocolError("400 Bad Request") from None


def _expectation(values: list[str] | None, minor: int) -> bool:
    """Whether the client waits for 100 Continue; any other expectation is 417 (RFC 9110 section 10.1.1)."""
    if values is None:
        return False
    if [ascii_lower(value) for value in values] != ["100-continue"]:
        if values == [""]:
            return False
        raise RemoteProtocolError("", 417)
    return minor >= 1


def announced_trailers(values: list[str]) -> list[str]:
    """The names of a Trailer field that may really stand in a trailer section."""
    return [name for name in tokens(values) if is_trailer_name(name)]


# What llhttp before 9.4 accepted, each a known way to smuggle a request.
_CANARIES = (
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\rXhello\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nFoo: a\r\n b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nFoo : a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\rX: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nFoo: a\nBar: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nFoo: a\0b\r\n\r\n",
)


@functools.cache
def check_parser() -> None:
    """Refuse to serve with an httptools that is too lenient: the wheel can hold another llhttp."""
    for canary in _CANARIES:
        try:
            _new_parser(_NO_CALLBACKS).feed_data(canary)
        except httptools.HttpParserError:
            continue
        raise RuntimeError(
            f"the installed httptools accepts {canary!r}, which smuggles requests: install httptools>=0.9"
        )
