"""A Client that follows redirects and keeps cookies."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from prefork.http.client.client import Client
from prefork.http.client.jar import CookieJar
from prefork.http.client.redirect import UseLastResponse, use_last_response
from prefork.http.errors import (
    ConnectionLost,
    LocalProtocolError,
    TooManyRedirects,
    TransportError,
)
from prefork.http.message.header import Header
from prefork.http.message.request import Request
from prefork.http.message.response import Response
from prefork.http.message.url import URL

if TYPE_CHECKING:
    from prefork.http.message.cookie import Cookie

HELPERS = Path(__file__).with_name("helpers_client.py")
_spec = importlib.util.spec_from_file_location("helpers_client", HELPERS)
assert _spec is not None
assert _spec.loader is not None
_helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_helpers)
rows = _helpers.rows
Fake = _helpers.Fake
FakeJar = _helpers.FakeJar
source_of = _helpers.source_of
streaming = _helpers.streaming
found = _helpers.found
pieces = _helpers.pieces

Row = dict[str, Any]
Run = Any


# Redirects.


@pytest.mark.parametrize("row", rows("golden_client_redirect_hops"))
def test_vector_redirect_hops(run: Run, row: Row) -> None:
    answers = [found(row["first_location"], row["first_status"])]
    if row["second_location"]:
        answers.append(found(row["second_location"]))
    fake = Fake(*answers)
    header = Header([(name, value) for name, values in (row["header"] or {}).items() for value in values])
    request = Request(
        row["method"], row["url"], header=header, body=row["body"] or None, host=row["host_override"] or None
    )
    response = run(Client(transport=fake)._do(request, None))
    assert response.status == row["final_status"]
    assert row["error"] is None
    got = [
        {
            "body": None if body is None else body.decode(),
            "content_length": request.content_length,
            "header": header,
            "method": method,
            "url": url,
        }
        for (method, url, header, body), request in zip(fake.sent, fake.requests, strict=True)
    ]
    want = [{name: hop[name] for name in hop if name != "host_field"} for hop in row["requests_sent"]]
    assert got == want
    for hop, request in zip(row["requests_sent"], fake.requests, strict=True):
        assert request.host == (hop["host_field"] or request._peek_url().host)  # Go: empty means the URL's


@pytest.mark.parametrize("row", rows("client_redirects_by_method"))
def test_vector_redirects_by_method(run: Run, row: Row) -> None:
    log: list[str] = []

    def serve(request: Request) -> Response[Any]:
        url = request._peek_url()
        body = (request._content or b"").decode()
        log.append(f'{request.method} {url.request_uri()} "{body}"')
        query = dict(parse_qsl(urlsplit(str(url)).query))
        status = int(query.get("code", 200))
        response = Response(status, body=b"x")
        if status // 100 == 3:
            code, _, rest = query.get("next", "").partition(",")
            more = (f"?code={code}" + (f"&next={rest}" if rest else "")) if code else ""
            response.header["Location"] = f"http://a.com/{more}"
        return response

    async def main() -> None:
        client = Client(transport=Fake(*[serve] * 100))
        for one in row["requests"]:
            response = await client.do(
                Request(row["method"], "http://a.com" + one["suffix"], body=one["body"])
            )
            assert response.status == one["final_status"]

    run(main())
    assert log == row["server_log"]


def test_the_response_is_that_of_the_last_hop(run: Run) -> None:
    fake = Fake(found("/2"), found("http://b.com/3", 301), Response(200, body=b"there"))

    async def main() -> None:
        response = await Client(transport=fake).get("http://a.com/1")
        assert response.body == b"there"
        assert str(response.request.url) == "http://b.com/3"
        assert response.request.response.status == 301
        async with Client(transport=Fake(found("/2"), streaming(200, b"x"))).get(
            "http://a.com/1"
        ) as response:
            assert await response.body.read() == b"x"

    run(main())
    assert fake.urls() == ["http://a.com/1", "http://a.com/2", "http://b.com/3"]


@pytest.mark.parametrize("response", [found("", 302), Response(302), found("/x", 300), found("/x", 304)])
def test_what_is_no_redirect_is_returned(run: Run, response: Response[Any]) -> None:
    fake = Fake(response)
    assert run(Client(transport=fake)._do(Request("GET", "http://a.com/"), None)) is response
    assert len(fake.sent) == 1


def test_ten_redirects(run: Run) -> None:
    fake = Fake(*[lambda request: found(f"{request._peek_url().path}x") for _ in range(20)])

    async def main() -> None:
        with pytest.raises(
            TooManyRedirects, match=r'^Get "/xxxxxxxxxx": stopped after 10 redirects$'
        ) as caught:
            await Client(transport=fake).get("http://a.com/")
        assert caught.value.response.status == 302
        assert caught.value.phase == "redirect"

    run(main())
    assert len(fake.sent) == 10


def test_a_password_in_a_location_is_hidden(run: Run) -> None:
    fake = Fake(*[found("http://u:secret@b.com/")] * 20)

    async def main() -> None:
        with pytest.raises(TooManyRedirects, match=r'^Get "http://u:\*\*\*@b.com/": stopped'):
            await Client(transport=fake).get("http://a.com/")

    run(main())
    assert fake.urls()[1] == "http://u:secret@b.com/"
    assert fake.sent[1][2]["Authorization"] == ["Basic dTpzZWNyZXQ="]
    assert fake.sent[2][2]["Referer"] == ["http://b.com/"]


def test_a_location_that_cannot_be_parsed(run: Run) -> None:
    async def main() -> None:
        response = streaming(302, end=False, header={"Location": "http://a b/"})
        with pytest.raises(TransportError) as caught:
            await Client(transport=Fake(response)).get("http://a.com/")
        assert str(caught.value) == (
            'Get "http://a.com/": failed to parse Location header "http://a b/": '
            'parse "http://a b/": invalid character " " in host name'
        )
        assert response.body.closed

    run(main())


def test_a_redirect_that_the_transport_refuses_is_the_servers_fault(run: Run) -> None:
    async def main() -> None:
        refusal = LocalProtocolError('unsupported protocol scheme "gopher"')
        with pytest.raises(TransportError) as caught:
            await Client(transport=Fake(found("gopher://b.com/"), refusal)).get("http://a.com/")
        assert str(caught.value) == 'Get "gopher://b.com/": unsupported protocol scheme "gopher"'
        assert caught.value.phase == "redirect"
        async with Client() as client:
            with pytest.raises(LocalProtocolError, match=r'^unsupported protocol scheme "gopher"$'):
                await client.get("gopher://b.com/")
            with pytest.raises(LocalProtocolError, match=r'^unsupported protocol scheme ""$'):
                await client.get("/x")
            with pytest.raises(LocalProtocolError, match="no Host in request URL"):
                await client.get("http:///x")

    run(main())


def test_short_bodies_of_redirects_are_read(run: Run) -> None:
    async def main() -> None:
        header = {"Location": "/2"}
        for response, refused in (
            (streaming(302, b"short", header=header), []),
            (streaming(302, b"x" * 3000, end=False, header=header), ["refused"]),
            (streaming(302, b"some", end=False, length=4000, header=header), ["refused"]),
            (streaming(302, b"never ends", end=False, header=header), ["refused"]),
        ):
            source = source_of(response)
            got = await Client(transport=Fake(response)).get("http://a.com/")
            assert got.body == b"ok"
            assert response.body.closed
            assert source.calls == refused
        broken = streaming(302, end=False, header=header)
        broken.body.feed_error(ConnectionLost("gone"))
        assert (await Client(transport=Fake(broken)).get("http://a.com/")).body == b"ok"

    run(main())


def test_bodies_are_sent_again(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"body")
    made = []

    def again() -> Any:
        made.append(path.open("rb"))
        return made[-1]

    async def main() -> None:
        for status in (307, 308):
            file = path.open("rb")
            for body, get_body in ((b"body", None), (file, None), (pieces(), pieces), (pieces(), again)):
                fake = Fake(found("/2", status), found("http://b.com/3", status))
                request = Request("PUT", "http://a.com/1", body=body, get_body=get_body)
                assert (await Client(transport=fake).do(request)).status == 200
                assert [(method, sent) for method, _, _, sent in fake.sent] == [("PUT", b"body")] * 3
            assert file.closed
        assert [one.closed for one in made] == [True] * 4

    run(main())


def test_a_body_that_cannot_be_sent_again(run: Run) -> None:
    async def main() -> None:
        fake = Fake(found("/2", 307, body=b"elsewhere"))
        response = await Client(transport=fake).post("http://a.com/", "a/b", pieces())
        assert (response.status, response.body) == (307, b"elsewhere")
        fake = Fake(found("/2", 303))
        assert (await Client(transport=fake).post("http://a.com/", "a/b", pieces())).status == 200
        assert [(method, body) for method, _, _, body in fake.sent] == [("POST", b"body"), ("GET", None)]

    run(main())


# check_redirect.


def test_check_redirect_sees_and_edits(run: Run) -> None:
    seen: list[tuple[str, list[str]]] = []

    def check(request: Request, via: Any) -> None:
        seen.append((str(request.url), [str(one.url) for one in via]))
        request.header["X-Hop"] = str(len(via))

    async def check_later(request: Request, via: Any) -> None:
        await asyncio.sleep(0)
        check(request, via)

    async def main() -> None:
        for function in (check, check_later):
            seen.clear()
            fake = Fake(found("/2"), found("/3"))
            await Client(transport=fake, check_redirect=function).get("http://a.com/1")
            assert [header.get("X-Hop") for _, _, header, _ in fake.sent] == [None, ["1"], ["2"]]
            one, two, three = fake.urls()
            assert seen == [(two, [one]), (three, [one, two])]
        fake = Fake(*[found("/x")] * 15)
        assert (await Client(transport=fake, check_redirect=check).get("http://a.com/")).status == 200

    run(main())


def test_check_redirect_may_lead_elsewhere(run: Run) -> None:
    def set_host(request: Request, via: Any) -> None:
        request.url.host = "c.com"

    def set_url(request: Request, via: Any) -> None:
        request.url = URL.parse("http://c.com/z")

    def set_both(request: Request, via: Any) -> None:
        request.url.host = "c.com"
        request.host = "mine"

    async def main() -> None:
        for check, host in ((set_host, "c.com"), (set_url, "c.com"), (set_both, "mine")):
            fake = Fake(found("http://b.com/"))
            await Client(transport=fake, check_redirect=check).get("http://a.com/")
            assert fake.requests[1]._peek_url().host == "c.com"
            assert fake.requests[1].host == host

    run(main())


async def refuse_later(request: Request, via: Any) -> None:
    raise UseLastResponse


@pytest.mark.parametrize(
    "check",
    [use_last_response, refuse_later, lambda r, v: UseLastResponse, lambda r, v: UseLastResponse("no")],
)
def test_use_last_response(run: Run, check: Any) -> None:
    async def main() -> None:
        client = Client(
            transport=Fake(streaming(302, b"body", header={"Location": "/x"})), check_redirect=check
        )
        response = await client.get("http://a.com/")
        assert (response.status, response.body) == (302, b"body")
        client = Client(
            transport=Fake(streaming(302, b"body", header={"Location": "/x"})), check_redirect=check
        )
        async with client.get("http://a.com/") as streamed:
            assert await streamed.body.read() == b"body"

    run(main())


class Refused(Exception):
    pass


def test_check_redirect_refuses(run: Run) -> None:
    def refuse(request: Request, via: Any) -> None:
        raise Refused("no")

    def return_error(request: Request, via: Any) -> Exception:
        return Refused("no")

    async def main() -> None:
        for check in (refuse, return_error):
            fake = Fake(streaming(302, end=False, header={"Location": "/x"}))
            with pytest.raises(Refused) as caught:
                await Client(transport=fake, check_redirect=check).get("http://a.com/")
            assert caught.value.response.status == 302  # type: ignore[attr-defined]
            assert caught.value.response.body.closed  # type: ignore[attr-defined]
        with pytest.raises(
            TypeError, match="check_redirect must return None, or raise to refuse; it returned False"
        ):
            await Client(transport=Fake(found("/x")), check_redirect=lambda r, v: False).get("http://a.com/")

        def transport_error(request: Request, via: Any) -> None:
            raise TransportError("not there", phase="redirect")

        with pytest.raises(TransportError, match=r'^Head "/x": not there$') as failed:
            await Client(transport=Fake(found("/x")), check_redirect=transport_error).head("http://a.com/")
        assert failed.value.response.status == 302  # type: ignore[attr-defined]

    run(main())


def test_check_redirect_is_cancelled(run: Run) -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def check(request: Request, via: Any) -> None:
            asked.set()
            await asyncio.get_running_loop().create_future()

        response = streaming(302, end=False, header={"Location": "/x"})
        client = Client(transport=Fake(response), check_redirect=check)
        task = asyncio.create_task(client.get("http://a.com/"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert response.body.closed

    run(main())


# User info and cookies.


def test_user_info_becomes_basic_authentication(run: Run) -> None:
    fake = Fake()

    async def main() -> None:
        client = Client(transport=fake)
        await client.get("http://Aladdin:open%20sesame@a.com/")
        await client.get("http://user@a.com/")
        await client.get("http://user:pass@a.com/", header={"Authorization": "mine"})
        request = Request("GET", "http://Aladdin:open%20sesame@a.com/")
        await client.do(request)
        assert "Authorization" not in request.header

    run(main())
    got = [header["Authorization"] for _, _, header, _ in fake.sent]
    aladdin = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert got == [[aladdin], ["Basic dXNlcjo="], ["mine"], [aladdin]]


def test_a_jar_is_asked_and_told_on_every_hop(run: Run) -> None:
    jar = FakeJar(a_com="a=1; x=2", b_com="b=1")
    first = found("http://b.com/2")
    first.header.add("Set-Cookie", "s=1")
    first.header.add("Set-Cookie", "t=2; Path=/")
    last = Response(200, header={"Set-Cookie": "u=3"})
    fake = Fake(first, last)
    request = Request("GET", "http://a.com/1", header={"Cookie": "mine=0"})
    run(Client(transport=fake, jar=jar)._do(request, None))
    assert [header["Cookie"] for _, _, header, _ in fake.sent] == [["mine=0; a=1; x=2"], ["b=1"]]
    assert jar.asked == ["http://a.com/1", "http://b.com/2"]
    assert jar.told == [("http://a.com/1", ["s=1", "t=2"]), ("http://b.com/2", ["u=3"])]
    assert request.header["Cookie"] == "mine=0"


def test_a_jar_knows_servers_by_the_host_field(run: Run) -> None:
    jar = FakeJar(virtual_example="v=1")
    fake = Fake(found("/2"), found("//other.com/3"), Response(200, header={"Set-Cookie": "u=3"}))
    run(
        Client(transport=fake, jar=jar)._do(
            Request("GET", "http://127.0.0.1/1", host="virtual.example"), None
        )
    )
    assert jar.asked == ["http://virtual.example/1", "http://virtual.example/2", "http://other.com/3"]
    assert ["Cookie" in header for _, _, header, _ in fake.sent] == [True, True, False]
    assert fake.urls()[1] == "http://127.0.0.1/2"


def test_cookies_given_by_hand_yield_to_those_that_are_set(run: Run) -> None:
    first = found("/2")
    first.header["Set-Cookie"] = "b=new"
    fake = Fake(first)
    header = {"Cookie": "b=2; a=1; c=3"}
    run(Client(transport=fake, jar=CookieJar())._do(Request("GET", "http://a.com/", header=header), None))
    assert fake.sent[1][2]["Cookie"] == ["a=1; c=3; b=new"]
    fake = Fake(first)  # without a jar nobody would send the new one
    run(Client(transport=fake)._do(Request("GET", "http://a.com/", header=header), None))
    assert fake.sent[1][2]["Cookie"] == ["b=2; a=1; c=3"]


def test_a_cookie_jar(run: Run) -> None:
    jar = CookieJar()
    fake = Fake(Response(200, header={"Set-Cookie": "id=7; Path=/"}))

    async def main() -> None:
        client = Client(transport=fake, jar=jar)
        await client.get("http://a.com/in")
        await client.get("http://a.com/again")
        await client.get("http://b.com/")

    run(main())
    assert [header.get("Cookie") for _, _, header, _ in fake.sent] == [None, ["id=7"], None]


def test_a_jar_that_fails_closes_the_response(run: Run) -> None:
    class Broken(FakeJar):
        def set_cookies(self, url: URL, cookies: list[Cookie]) -> None:
            raise RuntimeError("full")

    async def main() -> None:
        response = streaming(200, end=False, header={"Set-Cookie": "a=1"})
        with pytest.raises(RuntimeError, match="full"):
            await Client(transport=Fake(response), jar=Broken()).get("http://a.com/")
        assert response.body.closed

    run(main())
