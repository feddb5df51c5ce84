"""Which proxy a request goes through: the environment's variables, NO_PROXY, measured rows of Go."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from prefork.http.client import proxy
from prefork.http.client.proxy import ProxyConfig, proxy_authorization, proxy_from_environment, proxy_url
from prefork.http.errors import ProxyError
from prefork.http.message.request import Request
from prefork.http.message.url import URL, URLError

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "vectors"
EXCEPTIONS: dict[str, dict[str, str]] = runpy.run_path(str(Path(__file__).with_name("vector_exceptions.py")))[
    "EXCEPTIONS"
]


def rows(name: str) -> list[dict[str, Any]]:
    path = FOLDER / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no vectors in {FOLDER}")
    found: list[dict[str, Any]] = json.loads(path.read_text())["vectors"]
    return found


def proxy_for(environ: dict[str, str], url: str) -> str | None:
    found = ProxyConfig(environ).proxy_for(URL.parse(url))
    return None if found is None else str(found)


def goes_direct(no_proxy: str, url: str) -> bool:
    return proxy_for({"HTTP_PROXY": "p:1", "HTTPS_PROXY": "p:2", "NO_PROXY": no_proxy}, url) is None


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies, to be changed; read anew after the test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(proxy, "_environment", None)
    return monkeypatch


# --- measured rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["proxy_for_url", "proxy_from_environment"])
def test_vectors(name: str) -> None:
    listed = EXCEPTIONS.get(name, {})
    checked = 0
    for number, row in enumerate(rows(name)):
        environ = {
            "HTTP_PROXY": row["http_proxy"],
            "https_proxy": row["https_proxy"],
            "NO_PROXY": row["no_proxy"],
            "REQUEST_METHOD": row.get("request_method_env") or ("GET" if row.get("cgi") else ""),
        }
        try:
            got, error = proxy_for(environ, row["url"]), None
        except ProxyError as exc:
            got, error = None, exc.text
        same = (got, error) == (row["want"], row["error"])
        assert same is (str(number) not in listed), (number, row, got, error)
        checked += same
    print(f"{name}: {checked} rows, {len(listed)} exceptions")


def test_vectors_of_proxy_authorization() -> None:
    found = rows("transport_proxy_auth")
    for row in found:
        url = URL.parse(row["proxy"]) if row["proxy"] else None
        assert proxy_authorization(url) == row["proxy_authorization"], row
    print(f"transport_proxy_auth: {len(found)} rows")


# --- the environment ----------------------------------------------------------------------------


def test_a_proxy_per_scheme() -> None:
    environ = {"HTTP_PROXY": "plain.example:3128", "HTTPS_PROXY": "socks5h://u:p@secure.example"}
    assert proxy_for(environ, "http://example.com/") == "http://plain.example:3128"
    assert proxy_for(environ, "https://example.com/") == "socks5h://u:p@secure.example"
    assert proxy_for(environ, "ftp://example.com/") is None
    assert proxy_for({}, "http://example.com/") is None
    assert not ProxyConfig({})
    assert ProxyConfig(environ)


def test_upper_case_comes_first() -> None:
    both = {
        "http_proxy": "lower:1",
        "HTTP_PROXY": "upper:1",
        "no_proxy": "a.example",
        "NO_PROXY": "b.example",
    }
    assert proxy_for(both, "http://a.example/") == "http://upper:1"
    assert proxy_for(both, "http://b.example/") is None
    lower = {"http_proxy": "lower:1", "HTTP_PROXY": "", "no_proxy": "a.example"}
    assert proxy_for(lower, "http://b.example/") == "http://lower:1"
    assert proxy_for(lower, "http://a.example/") is None


def test_the_environment_is_read_once(environment: pytest.MonkeyPatch) -> None:
    request = Request("GET", "http://example.com/")
    assert proxy_from_environment(request) is None
    environment.setenv("HTTP_PROXY", "late:1")
    assert proxy_from_environment(request) is None
    proxy.read_environment()
    assert str(proxy_from_environment(request)) == "http://late:1"
    environment.delenv("HTTP_PROXY")
    assert str(proxy_from_environment(request)) == "http://late:1"


def test_a_cgi_script_takes_no_proxy_from_its_client() -> None:
    environ = {"HTTP_PROXY": "evil.example:1", "HTTPS_PROXY": "fine.example:1", "REQUEST_METHOD": "GET"}
    with pytest.raises(ProxyError, match="refusing to use HTTP_PROXY value in CGI environment") as caught:
        proxy_for(environ, "http://example.com/")
    assert not caught.value.retryable
    assert caught.value.phase == "proxy"
    assert proxy_for(environ, "https://example.com/") == "http://fine.example:1"
    assert proxy_for(environ | {"HTTP_PROXY": ""}, "http://example.com/") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("http://us er:secret@proxy/", 'invalid proxy address "http://proxy/": '),
        ("u:secret@proxy:port", 'invalid proxy address "proxy:port": invalid port ":port" after host'),
        ("u:se://cret@proxy:port", "invalid proxy address "),
        ("ftp://proxy:21", 'invalid proxy address "ftp://proxy:21": unsupported proxy scheme "ftp"'),
        ("http://:3128", 'invalid proxy address "http://:3128": there is no host in it'),
        ("http://", 'invalid proxy address "http://": there is no host in it'),
        ("://x", 'invalid proxy address "://x": missing protocol scheme'),
        ("proxy:1\r\nX: y", "invalid proxy address "),
    ],
)
def test_a_proxy_that_cannot_be_used_is_never_gone_around(value: str, text: str) -> None:
    config = ProxyConfig({"HTTPS_PROXY": value, "NO_PROXY": "direct.example"})
    for _ in range(2):
        with pytest.raises(ProxyError) as caught:
            config.proxy_for(URL.parse("https://example.com/"))
        assert str(caught.value).startswith(text)
        assert "secret" not in str(caught.value)
        assert "cret" not in str(caught.value)
        assert not caught.value.retryable
    assert config.proxy_for(URL.parse("https://direct.example/")) is None
    assert config.proxy_for(URL.parse("http://example.com/")) is None


# --- who is reached directly ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost/", "http://localhost:8080/", "https://localhost/", "http://127.0.0.1/"),
        *("http://127.8.9.10:1/", "http://[::1]:80/", "http://[::ffff:127.0.0.1]/", "http://[::1%25lo]/"),
    ],
)
def test_this_machine_is_never_proxied(url: str) -> None:
    assert goes_direct("", url)


@pytest.mark.parametrize(
    "url",
    [
        "http://foo.localhost/",
        "http://LOCALHOST/",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://localhost.net/",
    ],
)
def test_what_only_looks_like_this_machine_is(url: str) -> None:
    assert not goes_direct("", url)


@pytest.mark.parametrize(
    ("no_proxy", "direct", "proxied"),
    [
        ("*", "http://example.com/ https://192.0.2.1/ http://[2001:db8::1]/", ""),
        ("a.example,*", "http://b.example/", ""),
        ("example.com", "http://example.com/ http://EXAMPLE.com/ http://a.b.example.com:81/", "http://anexample.com/"),
        (".example.com", "http://a.example.com/", "http://example.com/"),
        ("*.example.com", "http://a.example.com/", "http://example.com/ http://an.example/"),
        ("Example.COM", "http://example.com/", "http://example.org/"),
        (" a.example ,, b.example\t", "http://a.example/ http://b.example/", "http://c.example/"),
        ("example.com:80", "http://example.com/ http://a.example.com:80/", "https://example.com/ http://example.com:81/"),
        ("example.com:443", "https://example.com/", "http://example.com/"),
        ("example.com:", "http://example.com:81/", ""),
        ("192.0.2.1", "http://192.0.2.1:81/ http://[::ffff:192.0.2.1]/", "http://192.0.2.2/ http://192.0.2.1.example/"),
        ("192.0.2.1:81", "http://192.0.2.1:81/", "http://192.0.2.1/"),
        ("10.0.0.0/8", "http://10.9.8.7:81/ http://[::ffff:10.1.2.3]/", "http://11.0.0.1/ http://10.example/"),
        ("10.9.8.7/8", "http://10.1.1.1/", ""),
        ("10.0.0.0/33,10.0.0.0/255.0.0.0,10.*", "", "http://10.0.0.1/"),
        ("2001:db8::1", "http://[2001:db8::1]:81/ http://[2001:DB8:0::1]/", "http://[2001:db8::2]/"),
        ("[2001:db8::1]", "http://[2001:db8::1]:81/", "http://[2001:db8::2]/"),
        ("[2001:db8::1]:81", "http://[2001:db8::1]:81/", "http://[2001:db8::1]/"),
        ("2001:db8::/32", "http://[2001:db8:1::1]/", "http://[2001:db9::1]/ http://192.0.2.1/"),
        ("bücher.example", "http://xn--bcher-kva.example/ http://BÜCHER.example/", "http://bucher.example/"),
        ("xn--bcher-kva.example", "http://www.bücher.example/", "http://bucher.example/"),
        (":80,[]:80,[],.,*.", "", "http://example.com/ http://192.0.2.1/"),
        ("example.com", "", "http://[2001:db8::1%25.example.com]/"),  # an address is no name
    ],
)  # fmt: skip
def test_no_proxy(no_proxy: str, direct: str, proxied: str) -> None:
    for url in direct.split():
        assert goes_direct(no_proxy, url), url
    for url in proxied.split():
        assert not goes_direct(no_proxy, url), url


def test_a_host_that_is_no_name_is_proxied() -> None:
    assert not goes_direct("a.example", "http://a-.é-/")


# --- one proxy, and who we are there ---------------------------------------------------------------


def test_proxy_url_is_for_everybody() -> None:
    for given in ("http://u:p@proxy.example:3128", URL.parse("http://u:p@proxy.example:3128")):
        choose = proxy_url(given)
        for url in ("http://example.com/", "https://localhost/", "http://127.0.0.1/"):
            assert str(choose(Request("GET", url))) == "http://u:p@proxy.example:3128"


@pytest.mark.parametrize("url", ["proxy.example:3128", "", "http://", "ftp://proxy.example", "http://a b/"])
def test_proxy_url_refuses_what_is_no_proxy(url: str) -> None:
    with pytest.raises(URLError):
        proxy_url(url)


@pytest.mark.parametrize(
    ("url", "value"),
    [
        ("http://bar.com", ""),
        ("http://foo@bar.com", "Basic Zm9vOg=="),
        ("http://foo:bar@bar.com", "Basic Zm9vOmJhcg=="),
        ("http://:@bar.com", "Basic Og=="),
        ("http://f%6Fo:b%3Aar@bar.com", "Basic Zm9vOmI6YXI="),
        ("socks5://%ff:x@bar.com", "Basic /zp4"),
    ],
)
def test_proxy_authorization(url: str, value: str) -> None:
    assert proxy_authorization(URL.parse(url)) == value
    assert proxy_authorization(None) == ""
