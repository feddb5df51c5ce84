"""The head of a response: raw bytes in, a Response out, or an error that says what is wrong with it.

As on the server the connection cuts the head out of the stream; here its status line is judged
by a regular expression, the fields that frame the body by Python, and the syntax of all header
lines by httptools. What follows from a head for the body is RFC 9112 section 6.3.

Law: the parser is shown the header lines under a status line of its own, `204`, after which no
body follows whatever the header says; so it is always at the start of a message, and one parser
serves all connections. Bodies never pass through it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httptools

from prefork.http.errors import MalformedResponse
from prefork.http.message.grammar import ascii_lower, has_control, is_token, parse_content_length, tokens
from prefork.http.message.header import parse_fields
from prefork.http.message.query import quoted
from prefork.http.message.response import Response
from prefork.http.message.status import body_allowed_for_status

if TYPE_CHECKING:
    from typing import Any

    from prefork.http.message.request import Request

MAX_HEADER_LINES = 5000
"""Header lines of one response; every line costs far more memory than its bytes."""

# RFC 9112 section 4: status-line = HTTP-version SP status-code SP [ reason-phrase ]. The second space
# is often missing when there is no reason. A minor version that we do not know is treated as the highest
# that we do (RFC 9110 section 2.5).
_status_line = re.compile("HTTP/1\\.([0-9]) ([1-9][0-9]{2})(?: ([\t -~\x80-\U0010ffff]*))?\r\n").match

_bare_lf = re.compile(rb"(?<!\r)\n").search

# The fields that frame the body or decide about the connection.
_special_fields = re.compile(
    r"\n(?:[Cc][Oo][Nn](?:[Tt][Ee][Nn][Tt]-(?:[Ll][Ee][Nn][Gg][Tt][Hh]:(?:[ \t]*([0-9]{1,18})[ \t]*(?=\r))?"
    r"|([Ee][Nn][Cc][Oo][Dd][Ii][Nn][Gg]:))|[Nn][Ee][Cc][Tt][Ii][Oo][Nn]:(?![ \t]*[Kk]eep-[Aa]live\r))"
    r"|[Tt][Rr][Aa][Nn][Ss][Ff][Ee][Rr]-)"
).finditer

UNTIL_EOF = -2
"""framing length: the body ends where the connection does."""
CHUNKED = -1

_new = Response.__new__


class _NoCallbacks:
    """httptools wants a protocol object; ours has nothing to be told."""

    __slots__ = ()


_NO_CALLBACKS = _NoCallbacks()
_NO_CONTENT = b"HTTP/1.1 204 \r\n"
_parser = httptools.HttpResponseParser(_NO_CALLBACKS)


def read_head(head: bytes, request: Request) -> tuple[Response[Any], int, bool]:
    """The Response of a head that ends with its blank line, to `request`.

    Returns it with the length of the body on the wire in bytes (CHUNKED, UNTIL_EOF) and whether
    the body is gzip. Its `close_connection` is what the head says. Raises MalformedResponse.
    """
    global _parser
    text = head.decode("utf-8", "surrogateescape")
    match = _status_line(text)
    if match is None:
        raise _bad_status_line(text)
    minor, code, reason = match.groups()
    start = match.end() - 1
    length = UNTIL_EOF
    # (The parser sees bytes: they are where the characters are, unless the reason has others than ASCII.)
    simple = minor == "1" and (not reason or reason.isascii()) and len(head) < 4 * MAX_HEADER_LINES
    gzip = False
    if simple:
        for special in _special_fields(text, start):
            digits, encoding = special.groups()
            if digits is not None and length == UNTIL_EOF:
                length = int(digits)
            elif encoding is not None and not gzip:
                gzip = True
            else:
                simple = False
                break
    if simple:
        try:
            _parser.feed_data(_NO_CONTENT + head[start + 1 :])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            _parser = httptools.HttpResponseParser(_NO_CALLBACKS)
            simple = False
    status = int(code)
    r: Response[Any] = _new(Response)
    r.status = status
    r.reason = reason or ""
    r.proto = "HTTP/1.1"
    r.request = request
    r.uncompressed = r.close_connection = r._awaited = r._chunked = False
    r.tls = r.upgraded = r._header = r._trailer = r._stream = r._content = None
    r._head = text
    if not simple:
        r.proto = f"HTTP/1.{minor}"
        length, gzip = _read_fully(r, text, start)
    elif gzip:
        gzip = _is_gzip(parse_fields(text))
    if request.method == "HEAD" or status < 200 or status == 204 or status == 304:
        r.content_length = (
            max(length, -1) if request.method == "HEAD" and body_allowed_for_status(status) else 0
        )
        return r, 0, False
    r.content_length = length if length >= 0 else -1
    if length == UNTIL_EOF:
        r.close_connection = True
    return r, length, gzip


def _read_fully(r: Response[Any], text: str, start: int) -> tuple[int, bool]:
    """Judge the fields of an unusual head one by one; (length, gzip) of the body."""
    if text.count("\n") > MAX_HEADER_LINES:
        raise _too_many_lines()
    parser = httptools.HttpResponseParser(_NO_CALLBACKS)
    try:
        parser.feed_data(_NO_CONTENT + text[start + 1 :].encode("utf-8", "surrogateescape"))
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        _check_lines(text[start + 1 :])
        _framing(r, parse_fields(text))
        raise MalformedResponse("malformed MIME header") from None
    # Everything is syntactically right from here on, so the fields can be trusted to be what they seem.
    return _framing(r, parse_fields(text))


def _framing(r: Response[Any], fields: dict[str, list[str]]) -> tuple[int, bool]:
    """What the fields say of the body, (length, gzip), and of the connection."""
    old = r.proto == "HTTP/1.0"
    connection = tokens(fields.get("Connection", []))
    r.close_connection = "close" in connection or (old and "keep-alive" not in connection)
    codings = fields.get("Transfer-Encoding")
    lengths = fields.get("Content-Length")
    if codings is not None:
        if len(codings) != 1:
            raise MalformedResponse(f"too many transfer encodings: {_listed(codings)}")
        if ascii_lower(codings[0]) != "chunked":
            raise MalformedResponse(f"unsupported transfer encoding: {quoted(codings[0][:100])}")
        # Two framings, or one that HTTP/1.0 does not have: some hop would see another body than we do.
        if lengths is not None:
            raise MalformedResponse("http: Transfer-Encoding together with Content-Length")
        if old:
            raise MalformedResponse("http: Transfer-Encoding in HTTP/1.0")
        r._chunked = r.status >= 200 and r.status not in (204, 304)
        return CHUNKED, _is_gzip(fields)
    if lengths is None:
        return UNTIL_EOF, _is_gzip(fields)
    if len(lengths) > 1:
        raise MalformedResponse(
            f"http: message cannot contain multiple Content-Length headers; got {_listed(lengths)}"
        )
    try:
        return parse_content_length(lengths[0]), _is_gzip(fields)
    except ValueError:
        raise MalformedResponse(f"bad Content-Length {quoted(lengths[0][:100])}") from None


def _listed(values: list[str]) -> str:
    """Some values, as Go's %q shows a slice."""
    return f"[{' '.join([quoted(value[:32]) for value in values[:10]])}]"


def _is_gzip(fields: dict[str, list[str]]) -> bool:
    codings = fields.get("Content-Encoding", ())
    return len(codings) == 1 and ascii_lower(codings[0]) == "gzip"


def check_beginning(head: bytearray, checked: int, lines: int) -> int:
    """Refuse what has been received of a head when no end can make it right: the end may never come.

    The first `checked` bytes, with `lines` ends of lines, were looked at before; returns how many
    there are now. A wrong head is refused for the same reason in however many pieces it comes.
    Raises MalformedResponse.
    """
    newline = head.find(b"\n", checked)
    if newline < 0:
        return lines
    if not lines:
        line = head[: newline + 1].decode("utf-8", "surrogateescape")
        if _status_line(line) is None:
            raise _bad_status_line(line)
    bare = _bare_lf(head, newline)
    if bare is not None:
        text = head[: bare.end()].decode("utf-8", "surrogateescape")
        _check_lines(text.partition("\n")[2])
    lines += head.count(b"\n", newline)
    if lines > MAX_HEADER_LINES:
        raise _too_many_lines()
    return lines


def _too_many_lines() -> MalformedResponse:
    return MalformedResponse(f"net/http: server response has more than {MAX_HEADER_LINES} header lines")


def _bad_status_line(text: str) -> MalformedResponse:
    """What is wrong with the first line of a head, in Go's words."""
    line = text.partition("\n")[0].removesuffix("\r")
    version, space, rest = line.partition(" ")
    if not space:
        return MalformedResponse(f"malformed HTTP response {quoted(line[:100])}")
    code = rest.partition(" ")[0]
    if not re.fullmatch("[1-9][0-9]{2}", code):
        return MalformedResponse(f"malformed HTTP status code {quoted(code[:100])}")
    if not re.fullmatch(r"HTTP/1\.[0-9]", version):
        return MalformedResponse(f"malformed HTTP version {quoted(version[:100])}")
    why = "controls" if text.startswith(f"{line}\r\n") else "the line ends with bare LF"
    return MalformedResponse(f"malformed HTTP response {quoted(line[:100])}: {why}")


def _check_lines(block: str) -> None:
    """Raise for the first header line that is wrong, as far as that can be told line by line."""
    first = True
    for line in block.removesuffix("\n").split("\n"):
        shown = quoted(line.removesuffix("\r")[:100])
        if not line.endswith("\r"):
            raise MalformedResponse(f"malformed MIME header: a line ends with bare LF: {shown}")
        if line[0] in " \t":
            kind = "initial line" if first else "folded line"
            raise MalformedResponse(f"malformed MIME header {kind}: {shown}")
        name, colon, value = line[:-1].partition(":")
        if not colon and line != "\r":
            raise MalformedResponse(f"malformed MIME header: missing colon: {shown}")
        if line != "\r" and (not is_token(name) or has_control(value)):
            raise MalformedResponse(f"malformed MIME header line: {shown}")
        first = False


def check_parser() -> None:
    """Refuse to start when the parser's strictness, which the code above counts on, is gone.

    Raises RuntimeError naming the payload that passed.
    """
    for block in (
        b"A: b\nC: d\r\n\r\n",
        b"A : b\r\n\r\n",
        b"A: b\r\n c\r\n\r\n",
        b"A: \x00\r\n\r\n",
        b"no colon\r\n\r\n",
    ):
        try:
            httptools.HttpResponseParser(_NO_CALLBACKS).feed_data(_NO_CONTENT + block)
        except httptools.HttpParserError:
            continue
        raise RuntimeError(f"httptools accepts {block!r}: this version of it must not be used")
