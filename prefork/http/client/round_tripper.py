"""RoundTripper: what sends a request for a Client, and how one that is no Transport is kept in bounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

from prefork.http.errors import ClientTimeout, HTTPError, LocalProtocolError, TransportError
from prefork.http.message.response import Response

if TYPE_CHECKING:
    from prefork.http.message.request import Request
    from prefork.http.message.response_body import ResponseBody


class RoundTripper(Protocol):
    """Sends one request and gives the response, its body streaming (Go: RoundTripper).

    It follows no redirects, adds no cookies and does not change the request. It raises a
    TransportError when there is no response; any status is a response. A Transport is one; one
    of a program's own may wrap it, or answer by itself:

        class Always:
            async def round_trip(self, request):
                return http.Response(200, body=b"hi", request=request)
    """

    async def round_trip(self, request: Request, /) -> Response[ResponseBody]: ...


class Foreign:
    """Keeps a RoundTripper to the request's deadline, and makes its OSErrors TransportErrors.

    A Transport needs neither.
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: RoundTripper) -> None:
        self._transport = transport

    async def round_trip(self, request: Request) -> Response[Any]:
        async with _bounded(request._deadline, "header"):
            response = await self._transport.round_trip(request)
        if not isinstance(response, Response):
            raise LocalProtocolError(
                f"http: RoundTripper implementation ({type(self._transport).__name__}) "
                f"returned {response!r} instead of a Response"
            )
        response._awaited = False  # whoever had it before: its body is to be read, or streamed, now
        return response

    async def read_whole(self, response: Response[Any], limit: int | None, deadline: float | None) -> None:
        async with _bounded(deadline, "body"):
            await response._read_whole(limit)


@contextlib.asynccontextmanager
async def _bounded(deadline: float | None, phase: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline) as limit:
            yield
    except HTTPError:
        raise
    except OSError as error:
        if isinstance(error, TimeoutError) and limit.expired():
            raise ClientTimeout("context deadline exceeded", phase=phase) from None
        raise TransportError(str(error) or type(error).__name__, phase=phase) from error
