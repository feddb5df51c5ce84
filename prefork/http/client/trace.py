"""ClientTrace: hooks into the life of a client's requests (Go: net/http/httptrace).

The hooks travel in a context variable, so that they reach requests made deep inside other
code; what nobody traces pays one look at a module's variable.
"""

from __future__ import annotations

import contextlib
import contextvars
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class GotConnInfo:
    """What `got_conn` is told.

    conn: the connection. reused: it has carried a request before. was_idle: it came from
    the idle pool, after `idle_time` seconds there.
    """

    conn: Any
    reused: bool
    was_idle: bool
    idle_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTrace:
    """Functions that are called as a request goes through a Transport; all of them optional.

    They are plain functions, run on the event loop, and must not block; what they raise is
    raised at the place that called them and fails the request. A dial made for one request may
    serve another and may outlive it: its hooks run all the same (Go: ClientTrace).

        trace = http.ClientTrace(got_conn=lambda info: print("reused", info.reused))
        with http.with_client_trace(trace):
            await client.get(url)
    """

    get_conn: Callable[[str], object] | None = None
    """(addr): a connection to "host:port" is about to be got, from the pool or by dialling."""
    got_conn: Callable[[GotConnInfo], object] | None = None
    put_idle_conn: Callable[[Exception | None], object] | None = None
    """(error): the connection went back to the pool, or why it did not."""
    got_first_response_byte: Callable[[], object] | None = None
    got_100_continue: Callable[[], object] | None = None
    got_1xx_response: Callable[[int, Any], object] | None = None
    """(status, header): an interim response came."""
    dns_start: Callable[[str], object] | None = None
    dns_done: Callable[[list[str], Exception | None], object] | None = None
    """(addresses, error)"""
    connect_start: Callable[[str, str], object] | None = None
    """(network, addr): "tcp" and one address; several may be tried at once."""
    connect_done: Callable[[str, str, Exception | None], object] | None = None
    tls_handshake_start: Callable[[], object] | None = None
    tls_handshake_done: Callable[[Any, Exception | None], object] | None = None
    """(ssl_object, error)"""
    wrote_header_field: Callable[[str, list[str]], object] | None = None
    """(name, values): for each field of the head, in the order in which they were sent."""
    wrote_headers: Callable[[], object] | None = None
    wait_100_continue: Callable[[], object] | None = None
    wrote_request: Callable[[Exception | None], object] | None = None
    """(error): head and body are written, or why not; may come after the response."""


_current: contextvars.ContextVar[ClientTrace | None] = contextvars.ContextVar(
    "prefork.http.trace", default=None
)
_ever_used = False


def context_client_trace() -> ClientTrace | None:
    """The trace that applies here, None if there is none (Go: ContextClientTrace)."""
    return _current.get() if _ever_used else None


@contextlib.contextmanager
def with_client_trace(trace: ClientTrace) -> Iterator[None]:
    """Trace the requests made inside of the `with`, and by tasks started there.

    A trace that applies already goes on: the new hooks run first, then the old ones (Go: WithClientTrace).
    """
    global _ever_used
    _ever_used = True
    outer = _current.get()
    token = _current.set(trace if outer is None else _compose(trace, outer))
    try:
        yield
    finally:
        _current.reset(token)


def wrote_head(trace: ClientTrace, head: bytes) -> None:
    """Call the hooks of a head that has been written."""
    if trace.wrote_header_field is not None:
        sent: dict[str, list[str]] = {}
        for line in head.decode("utf-8", "surrogateescape").split("\r\n")[1:-2]:
            name, _, value = line.partition(": ")
            sent.setdefault(name, []).append(value)
        for name, values in sent.items():
            trace.wrote_header_field(name, values)
    if trace.wrote_headers is not None:
        trace.wrote_headers()


def _compose(new: ClientTrace, old: ClientTrace) -> ClientTrace:
    def both(first: Callable[..., object], second: Callable[..., object]) -> Callable[..., object]:
        def call(*args: Any) -> None:
            first(*args)
            second(*args)

        return call

    hooks = {}
    for field in fields(ClientTrace):
        first, second = getattr(new, field.name), getattr(old, field.name)
        hooks[field.name] = both(first, second) if first and second else first or second
    return ClientTrace(**hooks)
