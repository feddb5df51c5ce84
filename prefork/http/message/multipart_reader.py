"""A multipart body, part by part, as it arrives (RFC 2046 section 5.1, RFC 7578; Go: multipart.Reader).

The boundary search is the `multipart` package's sans-IO parser; this is the one file that
knows it. Around it: pulling from an async body, part headers in this library's Header, and
limits. Nothing is held but the piece of the body that is being looked at.

Laws. A part's header is bounded in lines and bytes, and has no folded lines and no control
bytes. Lines end in CRLF: Go takes a bare LF too, which gives two parsers two readings.
Whatever the bytes, the result is parts or FormError. The body is read to its end,
also behind the last boundary, so that the connection can be used again.
"""

from __future__ import annotations

import binascii
import posixpath
from typing import TYPE_CHECKING, Any, Final

from prefork.http.message.form import FormError, NotMultipart, form_too_large
from prefork.http.message.grammar import OWS, ascii_lower, has_control
from prefork.http.message.header import Header
from prefork.http.message.mediatype import MediaTypeError, parse_media_type

try:
    import multipart
    from multipart import PushMultipartParser
except ImportError as exc:
    raise ImportError(
        'multipart forms need the package "multipart": pip install "prefork[multipart]"'
    ) from exc
if not hasattr(PushMultipartParser, "_create_segment"):
    # Hooks of 2.0 are used, and old releases of python-multipart take the same module name.
    raise ImportError('the package "multipart" is too old: pip install "multipart>=2.0"')

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterator

MAX_HEADERS: Final = 10_000
"""Header lines over all parts of one body (Go: multipartmaxheaders)."""

MAX_HEADER_LINE: Final = 8192
"""Bytes of one header line of a part."""

# RFC 2046 section 5.1.1 says "no longer than 70 characters"; some senders exceed it.
_MAX_BOUNDARY: Final = 200

_MORE: Final = object()


def multipart_boundary(content_type: str, *, allow_mixed: bool = False) -> str:
    """The boundary that a multipart/form-data Content-Type names.

    allow_mixed: take multipart/mixed too. Raises NotMultipart for another or a malformed
    type, FormError when there is no usable boundary.
    """
    try:
        kind, params = parse_media_type(content_type)
    except MediaTypeError:
        raise NotMultipart from None
    if kind != "multipart/form-data" and not (allow_mixed and kind == "multipart/mixed"):
        raise NotMultipart
    boundary = params.get("boundary")
    if boundary is None:
        raise FormError("no multipart boundary param in Content-Type")
    if not 0 < len(boundary) <= _MAX_BOUNDARY:
        raise FormError("multipart: invalid boundary")
    return boundary


class Part:
    """One part of a multipart body (Go: multipart.Part).

    header: its header fields. form_name: the `name` of a form-data part, else "". filename: the
    last path segment of the name that the sender gave, "" if it gave none: a label to show,
    never a path to open.

    Valid until the reader is asked for the next part; what was not read is skipped then.

        async for chunk in part: ...
    """

    __slots__ = ("_decoder", "_reader", "filename", "form_name", "header")

    def __init__(self, reader: MultipartReader, header: Header) -> None:
        self._reader = reader
        self.header = header
        self.form_name = ""
        self.filename = ""
        self._decoder: _QuotedPrintable | None = None
        try:
            disposition, params = parse_media_type(header.get("Content-Disposition", ""))
        except MediaTypeError:
            params = {}
        else:
            if disposition == "form-data":
                self.form_name = params.get("name", "")
        filename = params.get("filename", "")
        if filename:
            # Some browsers sent a whole path, and anybody can send "../../x".
            self.filename = posixpath.basename(filename.rstrip("/")) or "/"
        encoding = header.get("Content-Transfer-Encoding", "")
        if ascii_lower(encoding) == "quoted-printable":
            # RFC 7578 section 4.7 deprecates it; mailers that post forms still use it.
            del header["Content-Transfer-Encoding"]
            self._decoder = _QuotedPrintable()

    def __aiter__(self) -> Part:
        return self

    async def __anext__(self) -> bytes:
        decoder = self._decoder
        while True:
            chunk = await self._reader._chunk(self)
            if decoder is not None:
                chunk = decoder.finish() if chunk is None else decoder.decode(chunk)
                if chunk == b"":
                    continue
            if chunk is None:
                raise StopAsyncIteration
            return chunk

    async def read(self) -> bytes:
        """All of the part that is left. In memory: the server's body limit bounds it."""
        return b"".join([chunk async for chunk in self])

    def __repr__(self) -> str:
        return f"<Part {self.form_name!r}{f' file {self.filename!r}' if self.filename else ''}>"


class MultipartReader:
    """Reads a multipart body part by part, without holding any of it (Go: multipart.Reader).

    body: yields bytes, `r.body` for one. content_type: the request's. allow_mixed: take
    multipart/mixed too. max_parts: None for any number.

    Raises FormError (400, or 413 for a limit), at once when the type is wrong or has no
    boundary and later for what is malformed; and whatever the body raises.

        async for part in MultipartReader(r.body, r.header.get("Content-Type", "")):
            async for chunk in part:
                await store(part.filename, chunk)
    """

    def __init__(
        self,
        body: AsyncIterable[bytes],
        content_type: str,
        *,
        allow_mixed: bool = False,
        max_parts: int | None = None,
    ) -> None:
        boundary = multipart_boundary(content_type, allow_mixed=allow_mixed)
        self._body: AsyncIterator[bytes] = aiter(body)
        try:
            self._parser = _Parser(boundary.encode("utf-8", "surrogateescape"), max_parts)
        except multipart.MultipartError as exc:
            raise FormError(f"multipart: {exc}") from None
        self._events: Iterator[object] = iter(())
        self._part: Part | None = None
        self._ended = False

    def __aiter__(self) -> MultipartReader:
        return self

    async def __anext__(self) -> Part:
        if self._part is not None:  # skip what was not read of it
            self._part = None
            while await self._event() is not None:
                pass
        event = await self._event()
        if event is None:
            raise StopAsyncIteration
        header = Header()
        for name, value in event.headerlist:  # type: ignore[attr-defined]
            value = value.encode("latin-1").decode("utf-8", "surrogateescape")
            header.add(name, value.strip(OWS))
        self._part = part = Part(self, header)
        return part

    async def _chunk(self, part: Part) -> bytes | None:
        """The next piece of the part, None at its end."""
        if part is not self._part:
            return None
        event = await self._event()
        if event is None:
            self._part = None
            return None
        assert isinstance(event, bytes | bytearray)
        return bytes(event)

    async def _event(self) -> object:
        """A segment, a piece of its body, None for its end; None between parts: the end of all."""
        while True:
            try:
                event = next(self._events, _MORE)
            except multipart.ParserLimitReached:
                raise form_too_large() from None
            except multipart.MultipartError as exc:
                raise FormError(f"multipart: {exc}") from None
            if event is not _MORE:
                return event
            if self._ended:
                return None
            try:
                chunk = await anext(self._body)
            except StopAsyncIteration:
                self._finish()
                continue
            if chunk:  # an empty piece would mean the end to the parser
                self._events = self._parser.parse(
                    chunk if isinstance(chunk, bytes | bytearray) else bytes(chunk)
                )

    def _finish(self) -> None:
        self._ended = True
        try:
            self._parser.close()
        except multipart.MultipartError:
            reason = "multipart: NextPart: EOF" if self._part is None else "unexpected EOF"
            raise FormError(reason) from None


class _Parser(PushMultipartParser):  # type: ignore[misc]
    """The library's parser with stricter headers; what a part is, is decided by Part."""

    def __init__(self, boundary: bytes, max_parts: int | None) -> None:
        limits: dict[str, Any] = {} if max_parts is None else {"max_segment_count": max_parts}
        super().__init__(
            boundary,
            max_header_size=MAX_HEADER_LINE,
            max_header_count=MAX_HEADERS,
            header_charset="latin1",  # any byte passes; the reader decodes as UTF-8
            **limits,
        )
        self._headers_left = MAX_HEADERS

    def _on_segment_headerline(self, line: bytes) -> None:
        self._headers_left -= 1
        if self._headers_left < 0:
            raise multipart.ParserLimitReached("too many header lines")
        # A folded line costs the length of everything before it, each time; and header
        # values reach applications, logs and other headers.
        if line[:1] in (b" ", b"\t") or has_control(line.decode("latin-1")):
            raise multipart.ParserError("malformed part header")
        super()._on_segment_headerline(line)

    def _create_segment(self, headerlist: list[tuple[str, str]]) -> multipart.MultipartSegment:
        segment = multipart.MultipartSegment([])
        segment.headerlist = headerlist
        return segment


class _QuotedPrintable:
    """Decodes RFC 2045 section 6.7 in pieces: an escape may be cut anywhere."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def decode(self, chunk: bytes) -> bytes:
        data = self._held + chunk
        cut = data.rfind(b"=", max(0, len(data) - 2))
        if cut < 0:
            cut = len(data)
        self._held = data[cut:]
        return binascii.a2b_qp(data[:cut])

    def finish(self) -> bytes | None:
        """What was held back; None when there is nothing more."""
        held, self._held = self._held, b""
        return binascii.a2b_qp(held) or None
