"""RoundTrippers and jars that only pretend, and responses with bodies that a test feeds.

Not a test module. Load it by path, as the test modules do: `tests` is no package.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.client.transport import Transport
from prefork.http.message.cookie import read_cookies
from prefork.http.message.response import Response
from prefork.http.message.response_body import ResponseBody

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prefork.http.message.cookie import Cookie
    from prefork.http.message.request import Request
    from prefork.http.message.url import URL

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "vectors"


def rows(name: str) -> list[Any]:
    """One parameter per row of a file of measured answers; a single skipped one when it is not there."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return [pytest.param({}, marks=pytest.mark.skip(reason=f"no vectors in {FOLDER}"))]
    return [pytest.param(row, id=str(i)) for i, row in enumerate(json.loads(path.read_text())["vectors"])]


class Fake:
    """A RoundTripper with its answers ready: responses, exceptions, or functions of the request.

    sent: what it was asked for, as (method, url, header, body).
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.sent: list[tuple[str, str, dict[str, list[str]], bytes | None]] = []

    async def round_trip(self, request: Request) -> Response[Any]:
        self.requests.append(request)
        body = request._content
        if body is None and request._body is not None:
            body = await request._body.read()
        header = {name: request.header.values(name) for name in sorted(request.header)}
        self.sent.append((request.method, str(request._peek_url()), header, body))
        answer = self.answers.pop(0) if self.answers else Response(200, body=b"ok")
        if callable(answer):
            answer = answer(request)
            if asyncio.iscoroutine(answer):
                answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Response) and answer.request is None:
            answer.request = request
        return answer

    def urls(self) -> list[str]:
        return [url for _, url, _, _ in self.sent]


class OwnFake(Fake, Transport):
    """The same as a Transport: the Client leaves deadlines to it."""

    def __init__(self, *answers: Any) -> None:
        Transport.__init__(self)
        Fake.__init__(self, *answers)


class Source:
    """What feeds a body in place of a connection."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.wanted = asyncio.Event()

    def body_wanted(self) -> None:
        self.wanted.set()

    def body_taken(self) -> None:
        pass

    def body_refused(self) -> None:
        self.calls.append("refused")

    def body_forgotten(self) -> None:
        self.calls.append("forgotten")


def streaming(
    status: int = 200, *pieces: bytes, end: bool = True, length: int = -1, **more: Any
) -> Response[Any]:
    """A response whose body comes from a Source, `response.body._source`."""
    body = ResponseBody(Source(), length)
    for piece in pieces:
        body.feed(piece)
    if end:
        body.feed_end()
    return Response(status, body=body, **more)


def source_of(response: Response[Any]) -> Source:
    source = response._stream._source  # type: ignore[union-attr]
    assert isinstance(source, Source)
    return source


def found(location: str, status: int = 302, **more: Any) -> Response[Any]:
    return Response(status, header={"Location": location}, **more)


async def forever(request: Request) -> Response[Any]:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def pieces() -> AsyncIterator[bytes]:
    yield b"bo"
    yield b"dy"


class FakeJar:
    """Remembers what it is told, and gives the cookies of a host."""

    def __init__(self, **cookies: str) -> None:
        self.by_host = {host.replace("_", "."): text for host, text in cookies.items()}
        self.told: list[tuple[str, list[str]]] = []
        self.asked: list[str] = []

    def set_cookies(self, url: URL, cookies: list[Cookie]) -> None:
        self.told.append((str(url), [cookie.request_value() for cookie in cookies]))

    def cookies(self, url: URL) -> list[Cookie]:
        self.asked.append(str(url))
        return read_cookies([self.by_host.get(url.host, "")])

    def __repr__(self) -> str:
        return "FakeJar"
