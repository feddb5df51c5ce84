"""Call: a request about to be made, to be awaited for all of the response or entered for a stream of it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any

from prefork.http.client.connect_method import canonical_addr
from prefork.http.client.redirect import release, strip_password
from prefork.http.errors import ClientTimeout, PoolTimeout, TransportError

if TYPE_CHECKING:
    from types import TracebackType

    from prefork.http.client.client import Client
    from prefork.http.client.redirect import Chain
    from prefork.http.message.request import Request
    from prefork.http.message.response import Response
    from prefork.http.message.response_body import ResponseBody

_AWAITING_HEADERS = " (Client.Timeout exceeded while awaiting headers)"
_READING_BODY = " (Client.Timeout or context cancellation while reading body)"


class Call(Coroutine[Any, Any, "Response[bytes]"]):
    """A request about to be made: await it or enter it, once.

    Awaited it gives a Response whose body is bytes. Entered with `async with` it gives one
    that streams, and is closed at the end of the block. Nothing is sent before. It is a coroutine
    to asyncio, so that `asyncio.run`, `gather` and `TaskGroup.create_task` take it as it is.

        first, second = await asyncio.gather(client.get(one), client.get(other))
    """

    __slots__ = ("_chain", "_client", "_coroutine", "_request", "_response")

    _client: Client | None  # None when the call has been made
    _chain: Chain | None
    _coroutine: Coroutine[Any, Any, Response[bytes]]
    _response: Response[ResponseBody]

    def __init__(self, client: Client, request: Request) -> None:
        self._client = client
        self._request = request

    def __await__(self) -> Generator[Any, None, Response[bytes]]:
        client = self._client
        if client is None:
            raise self._used()
        self._client = None
        return client._do(self._request, None).__await__()

    async def __aenter__(self) -> Response[ResponseBody]:
        client = self._client
        if client is None:
            raise self._used()
        self._client = None
        self._response = await client._do(self._request, self)
        return self._response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        response, chain, request = self._response, self._chain, self._request
        if isinstance(error, TransportError) and _came_from(response, error):
            name_error(error, request.method, request if chain is None else chain.via[-1])
        response.close()
        release(request, chain)

    def _used(self) -> RuntimeError:
        return RuntimeError(f"{self!r} has been made already: a call is awaited or entered once")

    # What makes it a coroutine to asyncio.

    def _started(self) -> Coroutine[Any, Any, Response[bytes]]:
        client = self._client
        if client is not None:
            self._client = None
            self._coroutine = client._do(self._request, None)
        elif not hasattr(self, "_coroutine"):
            raise self._used()
        return self._coroutine

    def send(self, value: Any) -> Any:
        """Run until it waits (see types.CoroutineType)."""
        return self._started().send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an exception where it waits."""
        if self._client is not None:
            release(self._request, None)  # cancelled before it began
        return self._started().throw(*error)

    def close(self) -> None:
        """Give the call up."""
        if self._client is not None:
            self._client = None
            release(self._request, None)
        elif hasattr(self, "_coroutine"):
            self._coroutine.close()

    def __del__(self) -> None:
        if getattr(self, "_client", None) is not None:
            warnings.warn(f"{self!r} was never awaited", RuntimeWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"<Call {self._request.method} {self._request._peek_url().redacted()}>"


def operation(method: str) -> str:
    """`GET` -> `Get` (Go: urlErrorOp)."""
    return method[:1] + method[1:].lower()


def name_error(error: TransportError, method: str, request: Request) -> None:
    """Tell which request has failed, unless it was another one (Go: url.Error)."""
    if isinstance(error, ClientTimeout | PoolTimeout) and "(Client.Timeout" not in error.text:
        error.text += _READING_BODY if error.phase == "body" else _AWAITING_HEADERS
        error.args = (error.text,)
    if not error.url:
        error.op = operation(method)
        error.url = strip_password(request._peek_url())
    if not error.addr and error.phase == "body":
        with contextlib.suppress(ValueError):  # a RoundTripper of the program's may answer for any host
            error.addr = canonical_addr(request._peek_url())


def _came_from(response: Response[Any], error: TransportError) -> bool:
    """Whether it was the reading of this response's body that failed."""
    stream: Any = response._stream
    while stream is not None:
        if stream._error is error:
            return True
        stream = getattr(stream, "_raw", None)  # what a decoder reads from
    return False
