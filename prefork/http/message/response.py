"""Response: the answer to a client's request (Go: Response)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prefork.http.errors import HTTPError, LocalProtocolError, ResponseStatusError
from prefork.http.message.cookie import Cookie, read_set_cookies
from prefork.http.message.framing import is_trailer_name
from prefork.http.message.grammar import is_token, tokens
from prefork.http.message.header import Header, parse_fields
from prefork.http.message.response_body import ResponseBody
from prefork.http.message.status import status_text
from prefork.http.message.text import decode_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

    from prefork.http.message.request import Request
    from prefork.http.message.url import URL

BodyT = TypeVar("BodyT", bytes, ResponseBody)


class NoLocation(HTTPError):
    """The response has no Location field (Go: ErrNoLocation)."""


class Response(Generic[BodyT]):
    """One response.

    status: the code, 200 say. reason: the text behind it. proto: "HTTP/1.1". content_length: the
    length of the body in bytes as the header tells it, -1 when it does not (chunked, until the
    end of the connection, or decoded). uncompressed: the body was compressed on the wire and the
    Transport has decoded it; Content-Encoding and Content-Length are then gone from the header.
    close: the connection ends with this response. request: the request that was answered, the
    last one after redirects. tls: the connection's ssl.SSLObject, None in plain text.

    body: bytes when the response was awaited (`await client.get(url)`), a ResponseBody to
    read from when it streams (`async with client.get(url)`, `transport.round_trip`).

    A program makes one to test with, or in a RoundTripper of its own:

        http.Response(200, header={"Content-Type": "text/plain"}, body=b"hi", request=request)

    Resource handling: a streaming response holds its connection until the body was read to its
    end, or `close()`. An awaited one holds nothing.
    """

    __slots__ = (
        "_awaited",
        "_chunked",
        "_content",
        "_head",
        "_header",
        "_stream",
        "_trailer",
        "close_connection",
        "content_length",
        "proto",
        "reason",
        "request",
        "status",
        "tls",
        "uncompressed",
        "upgraded",
    )

    status: int
    reason: str
    proto: str
    content_length: int
    uncompressed: bool
    close_connection: bool
    request: Request | None
    tls: Any
    upgraded: Any
    _awaited: bool  # the body was read for the caller: `body` is bytes
    _chunked: bool
    _content: bytes | None  # the whole body, when it is all here
    _stream: ResponseBody | None
    _head: str
    _header: Header | None
    _trailer: Header | None

    def __init__(
        self,
        status: int,
        *,
        header: Header | Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        body: bytes | str | ResponseBody = b"",
        request: Request | None = None,
        reason: str | None = None,
        proto: str = "HTTP/1.1",
        content_length: int | None = None,
    ) -> None:
        self.status = status
        self.reason = status_text(status) if reason is None else reason
        self.proto = proto
        self.request = request
        self.uncompressed = self.close_connection = self._awaited = self._chunked = False
        self.tls = self.upgraded = self._trailer = self._stream = self._content = None
        self._head = ""
        self._header = header if isinstance(header, Header) else Header(header)
        if isinstance(body, ResponseBody):
            self._stream = body
            self.content_length = body.content_length
        else:
            self._content = body.encode() if isinstance(body, str) else body
            self.content_length = len(self._content)
        if content_length is not None:
            self.content_length = content_length

    @property
    def header(self) -> Header:
        """The header fields, without those that only framed the message (Transfer-Encoding, Trailer)."""
        header = self._header
        if header is None:
            header = self._header = self._parse_header()
        return header

    @header.setter
    def header(self, header: Header) -> None:
        self._header = header

    def _parse_header(self) -> Header:
        fields = parse_fields(self._head)
        if self._chunked:
            # RFC 9112 section 6.3: the coding overrides a length, and both served the framing alone.
            for name in ("Transfer-Encoding", "Trailer", "Content-Length"):
                fields.pop(name, None)
        if self.proto != "HTTP/1.0" and "Connection" in fields and "close" in tokens(fields["Connection"]):
            del fields["Connection"]  # Go: it is in `close`
        if self.uncompressed:
            fields.pop("Content-Encoding", None)
            fields.pop("Content-Length", None)
        return Header._of(fields)

    @property
    def proto_major(self) -> int:
        return int(self.proto[5])

    @property
    def proto_minor(self) -> int:
        return int(self.proto[7])

    @property
    def transfer_encoding(self) -> list[str]:
        """["chunked"] when the body came in chunks, else []."""
        return ["chunked"] if self._chunked else []

    @property
    def trailer(self) -> Header:
        """The trailer fields: complete when the body has been read to its end.

        Before that it has the names that the Trailer field announces, without values.
        """
        trailer = self._trailer
        if trailer is None:
            trailer = self._trailer = Header()
            if self._chunked and "\ntrailer:" in self._head.lower():
                for name in tokens(parse_fields(self._head)["Trailer"]):
                    if is_token(name) and is_trailer_name(name):
                        trailer[name] = None
        return trailer

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status < 400

    def cookies(self) -> list[Cookie]:
        """The cookies of the Set-Cookie fields; what is none is left out."""
        return read_set_cookies(self.header.values("Set-Cookie"))

    def location(self) -> URL:
        """The URL of the Location field, resolved against the request's (Go: Location).

        Raises NoLocation when there is none, URLError when it cannot be parsed.
        """
        from prefork.http.message.url import URL

        location = self.header.get("Location")
        if not location:
            raise NoLocation("http: no Location header in response")
        if self.request is not None:
            return self.request._peek_url().resolve_reference(location)
        return URL.parse(location)

    def raise_for_status(self) -> Self:
        """This response; raises ResponseStatusError for 4xx and 5xx."""
        if self.status >= 400:
            raise ResponseStatusError(self)
        return self

    # The body.

    @property
    def body(self) -> BodyT:
        """The body: bytes of an awaited response, the reader of a streaming one."""
        if self._awaited:
            return self._content  # type: ignore[return-value]
        stream = self._stream
        if stream is None:
            stream = self._stream = ResponseBody.of(self._content or b"")
        return stream  # type: ignore[return-value]

    @body.setter
    def body(self, body: BodyT) -> None:
        if isinstance(body, ResponseBody):
            self._stream, self._content, self._awaited = body, None, False
        else:
            self._stream, self._content, self._awaited = None, bytes(body), True

    async def _read_whole(self, limit: int | None) -> None:
        """Read the body to its end: from now on it is bytes."""
        stream = self._stream
        if stream is not None:
            stream.limit = limit
            try:
                self._content = await stream.read()
            except BaseException:
                stream.close()
                raise
        elif limit is not None and self._content is not None and len(self._content) > limit:
            raise ResponseBody()._too_large(limit)
        elif self._content is None:
            self._content = b""
        self._stream = None
        self._awaited = True

    def _whole(self) -> bytes:
        if not self._awaited:
            raise LocalProtocolError(
                "the body of this response has not been read: `await` the call, or use `await r.body.read()`"
            )
        return self._content or b""

    def text(self: Response[bytes]) -> str:
        """The body as str: in Content-Type's charset if it is known, else UTF-8 (bad bytes become U+FFFD)."""
        data = self._whole()
        try:
            return decode_text(data, self.header.get("Content-Type", ""))
        except LookupError:
            return data.decode("utf-8", "replace")

    def json(self: Response[bytes]) -> Any:
        """The body parsed as JSON. Raises ValueError when it is none."""
        return json.loads(self._whole())

    def close(self) -> None:
        """Give up the rest of the body; the connection is kept if that is little (see ResponseBody.close)."""
        if self._stream is not None:
            self._stream.close()
        if self.upgraded is not None:
            self.upgraded[1].close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{len(self._content)} bytes" if self._content is not None else repr(self._stream)
        return f"<Response {self.status} {self.reason} {self.proto} {state}>"
