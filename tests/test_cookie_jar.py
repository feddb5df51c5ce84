"""The cookie jar: who may set what for whom, what is sent where, order, expiry, bounds."""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.http.client import cookie_domain
from prefork.http.client.cookie_domain import (
    canonical_host,
    default_path,
    domain_and_type,
    has_dot_suffix,
    is_ip,
    is_loopback,
    jar_key,
    split_port,
)
from prefork.http.client.jar import (
    MAX_ATTRIBUTE_BYTES,
    MAX_COOKIE_BYTES,
    MAX_PER_DOMAIN,
    MAX_TOTAL,
    CookieJar,
    PublicSuffixList,
    public_suffix_list,
)
from prefork.http.errors import CookieError
from prefork.http.message.cookie import Cookie, SameSite, read_set_cookies
from prefork.http.message.url import URL, URLError

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "vectors"
START = datetime(2013, 1, 1, 12, tzinfo=UTC).timestamp()

Row = dict[str, Any]


WRONG = {"www.buggy.psl": "xy", "www2.buggy.psl": "com"}


class FakeList:
    """The list of the measured rows: "co.uk", else the last label, and two answers that are wrong."""

    def public_suffix(self, domain: str) -> str:
        if domain == "co.uk" or domain.endswith(".co.uk"):
            return "co.uk"
        return WRONG.get(domain) or domain.rpartition(".")[2]


class FakeClock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def make(suffixes: PublicSuffixList | None = None) -> tuple[CookieJar, FakeClock]:
    clock = FakeClock()
    return CookieJar(public_suffix_list=suffixes, now=clock), clock


def put(jar: CookieJar, url: str, *lines: str) -> None:
    jar.set_cookies(URL.parse(url), read_set_cookies(lines))


def sent(jar: CookieJar, url: str) -> str:
    return " ".join(cookie.request_value() for cookie in jar.cookies(URL.parse(url)))


def content(jar: CookieJar) -> str:
    return " ".join(sorted(cookie.request_value() for _, cookie in jar))


# --- domains --------------------------------------------------------------------------------


def test_a_cookie_without_domain_is_for_its_host_only() -> None:
    jar, _ = make()
    put(jar, "http://www.host.test/", "a=1")
    assert sent(jar, "http://www.host.test/") == "a=1"
    assert sent(jar, "http://WWW.host.test.:8080/x") == "a=1"
    assert sent(jar, "http://sub.www.host.test/") == sent(jar, "http://host.test/") == ""


def test_a_domain_cookie_is_for_all_names_below() -> None:
    jar, _ = make()
    put(jar, "http://www.host.test/", "a=1; Domain=.HOST.test")
    for url in ("http://host.test", "https://www.host.test", "http://a.b.host.test"):
        assert sent(jar, url) == "a=1"
    assert sent(jar, "http://badhost.test") == sent(jar, "http://test") == ""


@pytest.mark.parametrize(
    "domain", ["other.test", "sub.www.host.test", "ost.test", "test.", "..host.test", ".", "hóst.test", "/"]
)
def test_domains_that_a_host_may_not_set(domain: str) -> None:
    jar, _ = make(FakeList())
    jar.set_cookies(URL.parse("http://www.host.test/"), [Cookie("a", "1", domain=domain)])
    assert len(jar) == 0


def test_public_suffixes() -> None:
    jar, _ = make(FakeList())
    put(jar, "http://www.a.co.uk/", "a=1; Domain=co.uk", "b=2; Domain=uk", "c=3; Domain=a.co.uk")
    assert sent(jar, "http://a.co.uk/") == "c=3"
    assert sent(jar, "http://b.co.uk/") == ""
    put(jar, "http://co.uk/", "own=1; Domain=co.uk")
    assert sent(jar, "http://co.uk/") == "own=1"
    assert "own" not in sent(jar, "http://a.co.uk/")


def test_without_a_list_one_registrable_name_does_not_reach_another() -> None:
    jar, _ = make()
    put(jar, "http://www.a.test/", "a=1; Domain=test")
    assert sent(jar, "http://www.b.test/") == sent(jar, "http://test/") == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "127.1", "0x7f.1", "10.0.0.1:80"])
def test_addresses_have_host_only_cookies(host: str) -> None:
    jar, _ = make()
    put(jar, f"http://{host}/", "a=1", "b=2; Domain=1", "c=3; Domain=.1", "d=4; Domain=0.0.1")
    assert sent(jar, f"http://{host}/") == "a=1"
    assert sent(jar, "http://1/") == sent(jar, "http://2.1/") == ""


def test_an_address_may_name_itself() -> None:
    jar, _ = make()
    put(jar, "http://[::1]:8080/", "a=1; Domain=::1")
    assert sent(jar, "http://[::1]/") == "a=1"


def test_a_zone_makes_no_subdomain() -> None:
    jar, _ = make()
    jar.set_cookies(URL(scheme="http", host="[::1%.www.host.test]"), [Cookie("a", "1", domain="host.test")])
    assert len(jar) == 0


def test_one_server_one_set_of_cookies() -> None:
    jar, _ = make()
    put(jar, "http://BÜCHER.de/", "a=1; Domain=xn--bcher-kva.de")
    assert sent(jar, "http://www.bücher.de/") == sent(jar, "http://xn--bcher-kva.de/") == "a=1"


@pytest.mark.parametrize(
    "url", ["ftp://host.test/", "//host.test/", "http:opaque", "http:///x", "http://é..de/"]
)
def test_urls_without_cookies(url: str) -> None:
    jar, _ = make()
    put(jar, url, "a=1")
    put(jar, "http://host.test/", "b=2; Domain=host.test")
    assert len(jar) == 1
    assert sent(jar, url) == ""


def test_a_host_that_is_none_keeps_nothing() -> None:
    jar, _ = make()
    jar.set_cookies(URL(scheme="http", host="[::1"), [Cookie("a", "1")])
    assert len(jar) == 0
    with pytest.raises(URLError):
        canonical_host("[::1")


@pytest.mark.parametrize(
    ("host", "want"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.255.0.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::1%lo", True),
        ("127.1", False),
        ("127.0.0.1.test", False),
        ("localhost.test", False),
        ("::2", False),
        ("::x", False),
        ("128.0.0.1", False),
    ],
)
def test_loopback(host: str, want: bool) -> None:
    assert is_loopback(host) is want


# --- paths and order ------------------------------------------------------------------------


def test_paths_are_compared_by_segments_and_never_cleaned() -> None:
    jar, _ = make()
    put(jar, "http://h.test/a/b", "d=1", "p=2; Path=/x", "s=3; Path=/x/", "t=4; Path=/../x", "r=5; Path=rel")
    assert sent(jar, "http://h.test/a") == "d=1 r=5"
    assert sent(jar, "http://h.test/ab") == ""
    assert sent(jar, "http://h.test/x") == "p=2"
    assert sent(jar, "http://h.test/x/y") == "s=3 p=2"
    assert sent(jar, "http://h.test/xy") == ""


def test_longer_paths_first_then_the_older_ones() -> None:
    jar, clock = make()
    put(jar, "http://h.test/", "a=1", "b=2")
    clock.now += 1
    put(jar, "http://h.test/", "c=3; Path=/x", "a=new")
    assert sent(jar, "http://h.test/x") == "c=3 a=new b=2"


def test_a_cookie_of_a_path_with_a_query_is_for_its_directory() -> None:
    jar, _ = make()
    put(jar, "http://h.test/a/b?c=/d/e", "a=1")
    assert [cookie.path for _, cookie in jar] == ["/a"]


# --- secure ---------------------------------------------------------------------------------


def test_secure_cookies_go_over_https_or_nowhere_else() -> None:
    jar, _ = make()
    put(jar, "https://h.test/", "a=1; Secure", "b=2")
    assert sent(jar, "http://h.test/") == "b=2"
    assert sent(jar, "https://h.test/") == "a=1 b=2"


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:80"])
def test_secure_cookies_of_this_machine_need_no_https(host: str) -> None:
    jar, _ = make()
    put(jar, f"http://{host}/", "a=1; Secure", "__Host-b=2; Secure; Path=/")
    assert sent(jar, f"http://{host}/") == "a=1 __Host-b=2"


@pytest.mark.parametrize(
    ("url", "line", "kept"),
    [
        ("https://h.test/", "__Secure-a=1; Secure", True),
        ("https://h.test/", "__Secure-a=1; Secure; Domain=h.test", True),
        ("https://h.test/", "__Secure-a=1", False),
        ("http://h.test/", "__Secure-a=1; Secure", False),
        ("https://h.test/", "__secure-a=1", False),
        ("https://h.test/", "__Host-a=1; Secure; Path=/", True),
        ("https://h.test/", "__Host-a=1; Secure; Path=/; Domain=h.test", False),
        ("https://h.test/", "__Host-a=1; Secure; Path=/x", False),
        ("https://h.test/", "__Host-a=1; Secure", False),
        ("https://h.test/", "__Host-a=1; Path=/", False),
        ("http://h.test/", "__Host-a=1; Secure; Path=/", False),
        ("https://h.test/", "__HOST-a=1; Secure; Path=/x", False),
        ("http://h.test/", "_Host-a=1", True),
    ],
)
def test_prefixes_of_names(url: str, line: str, kept: bool) -> None:
    jar, _ = make()
    put(jar, url, line)
    assert len(jar) == kept


def test_a_prefixed_cookie_is_not_deleted_by_who_could_not_set_it() -> None:
    jar, _ = make()
    put(jar, "https://h.test/", "__Host-a=1; Secure; Path=/")
    put(jar, "http://h.test/", "__Host-a=; Secure; Path=/; Max-Age=0")
    assert sent(jar, "https://h.test/") == "__Host-a=1"


# --- expiry ---------------------------------------------------------------------------------


def test_max_age_counts_before_expires() -> None:
    jar, clock = make()
    past, future = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    url = URL.parse("http://h.test/")
    jar.set_cookies(
        url, [Cookie("a", "1", max_age=5, expires=past), Cookie("b", "2", max_age=0, expires=future)]
    )
    assert sent(jar, "http://h.test/") == "a=1"
    clock.now += 5
    assert sent(jar, "http://h.test/") == ""
    assert len(jar) == 0


def test_session_cookies_stay() -> None:
    jar, clock = make()
    put(jar, "http://h.test/", "a=1", "b=2; Expires=nonsense")
    clock.now += 1e9
    assert sent(jar, "http://h.test/") == "a=1 b=2"


@pytest.mark.parametrize(
    "expires",
    [
        datetime(2013, 1, 1, 12, 0, 1),  # a naive one means UTC
        datetime(2013, 1, 1, 13, 0, 1, tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_expires_in_any_zone(expires: datetime) -> None:
    jar, clock = make()
    jar.set_cookies(URL.parse("http://h.test/"), [Cookie("a", "1", expires=expires)])
    assert sent(jar, "http://h.test/") == "a=1"
    clock.now += 1
    assert sent(jar, "http://h.test/") == ""


@pytest.mark.parametrize(
    "cookie",
    [
        Cookie("a", "1", max_age=2**63 - 1),
        Cookie("a", "1", max_age=10**400),
        Cookie("a", "1", expires=datetime.max),
        Cookie("a", "1", expires=datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))),
    ],
)
def test_times_without_end(cookie: Cookie) -> None:
    jar, clock = make()
    jar.set_cookies(URL.parse("http://h.test/"), [cookie])
    clock.now += 1e10
    (_, found), *_ = jar
    assert found.expires is not None
    assert found.expires.year == 9999


def test_deleting_is_by_domain_path_and_name() -> None:
    jar, _ = make()
    put(jar, "http://www.h.test/", "a=1", "a=2; Path=/x", "a=3; Domain=h.test")
    put(jar, "http://www.h.test/", "a=; Domain=h.test; Max-Age=0", "b=; Max-Age=0")
    assert content(jar) == "a=1 a=2"
    put(jar, "http://www.h.test/", "a=; Path=/x; Expires=Thu, 01 Jan 1970 00:00:00 GMT")
    assert content(jar) == "a=1"


# --- bounds ---------------------------------------------------------------------------------


def test_the_size_of_one_cookie() -> None:
    jar, _ = make()
    url = URL.parse("http://h.test/")
    jar.set_cookies(url, [Cookie("a", "x" * (MAX_COOKIE_BYTES - 1)), Cookie("b", "x" * MAX_COOKIE_BYTES)])
    jar.set_cookies(
        url,
        [
            Cookie("c", "1", path="/" + "p" * (MAX_ATTRIBUTE_BYTES - 1)),
            Cookie("d", "1", path="/" + "p" * MAX_ATTRIBUTE_BYTES),
        ],
    )
    assert [cookie.name for _, cookie in jar] == ["a", "c"]
    long_path = URL.parse(f"http://h.test/{'p' * MAX_ATTRIBUTE_BYTES}/")
    jar.set_cookies(long_path, [Cookie("e", "1")])
    jar.set_cookies(URL.parse(f"http://{'h.' * MAX_ATTRIBUTE_BYTES}test/"), [Cookie("f", "1")])
    assert len(jar) == 2


def test_a_domain_has_so_many_cookies_and_the_least_used_one_goes() -> None:
    jar, _ = make()
    for number in range(MAX_PER_DOMAIN):
        put(jar, f"http://host{number}.h.test/", f"n{number}=1; Path=/p{number}")
    put(jar, "http://other.test/", "o=1")
    assert sent(jar, "http://host0.h.test/p0") == "n0=1"
    put(jar, "http://new.h.test/", "new=1")
    assert len(jar) == MAX_PER_DOMAIN + 1
    assert sent(jar, "http://host0.h.test/p0") == "n0=1"
    assert sent(jar, "http://host1.h.test/p1") == ""
    assert sent(jar, "http://other.test/") == "o=1"


def test_expired_cookies_make_room_first() -> None:
    jar, clock = make()
    put(jar, "http://h.test/", "old=1")
    put(jar, "http://h.test/", *[f"n{number}=1; Max-Age=5" for number in range(MAX_PER_DOMAIN - 1)])
    clock.now += 5
    put(jar, "http://h.test/", "new=1")
    assert sent(jar, "http://h.test/") == "old=1 new=1"


def test_the_jar_has_so_many_cookies_and_the_least_used_one_goes() -> None:
    jar, _ = make()
    for number in range(MAX_TOTAL):
        put(jar, f"http://h{number // 100}.test/", f"n{number}=1; Path=/{number}")
    assert len(jar) == MAX_TOTAL
    assert sent(jar, "http://h0.test/0") == "n0=1"
    put(jar, "http://new.test/", "new=1")
    assert len(jar) == MAX_TOTAL
    assert sent(jar, "http://h0.test/0") == "n0=1"
    assert sent(jar, "http://h0.test/1") == ""


def test_updating_a_full_domain_drops_nothing() -> None:
    jar, _ = make()
    put(jar, "http://h.test/", *[f"n{number}=1" for number in range(MAX_PER_DOMAIN)])
    put(jar, "http://h.test/", *[f"n{number}=2" for number in range(MAX_PER_DOMAIN)])
    assert sent(jar, "http://h.test/").split() == [f"n{number}=2" for number in range(MAX_PER_DOMAIN)]


def test_what_was_dropped_leaves_nothing_behind() -> None:
    jar, _ = make()
    for number in range(100):
        put(jar, f"http://h{number}.test/", "a=1")
        put(jar, f"http://h{number}.test/", "a=; Max-Age=0")
    assert len(jar) == 0
    assert jar._filed == {}


# --- the object -----------------------------------------------------------------------------


def test_cookies_are_copies() -> None:
    jar, _ = make()
    cookie = Cookie("a", "1", quoted=True, path="rel", domain=".H.test", max_age=5, unparsed=["x"])
    before = repr(cookie)
    jar.set_cookies(URL.parse("http://h.test/"), [cookie])
    assert repr(cookie) == before
    cookie.value = "changed"
    (found,) = jar.cookies(URL.parse("http://h.test/"))
    assert found == Cookie("a", "1", quoted=True)
    found.value = "changed"
    assert sent(jar, "http://h.test/") == 'a="1"'


def test_names_that_are_no_tokens_are_not_kept() -> None:
    jar, _ = make()
    url = URL.parse("http://h.test/")
    jar.set_cookies(url, [Cookie(name, "1") for name in ("", "a b", "a;b", "a=b", "a\r\nX: y")])
    assert len(jar) == 0


def test_set_cookies_takes_any_iterable() -> None:
    jar, _ = make()
    url = URL.parse("http://h.test/")
    put(jar, "http://h.test/", "a=1")
    # A generator that asks the jar itself must not wait for it.
    jar.set_cookies(url, (Cookie("b", cookie.value) for cookie in jar.cookies(url)))
    jar.set_cookies(url, [])
    assert sent(jar, "http://h.test/") == "a=1 b=1"


def test_a_jar_can_be_copied_cookie_by_cookie() -> None:
    jar, clock = make(FakeList())
    put(jar, "http://www.h.test/a/b", "host=1", 'domain="2"; Domain=h.test; HttpOnly; SameSite=Lax')
    put(jar, "https://www.h.test/", "__Host-s=3; Secure; Path=/", "age=4; Max-Age=60; Path=/x")
    put(jar, "http://[::1]:80/", "ip=5")
    put(jar, "http://co.uk/", "suffix=6; Domain=co.uk")
    put(jar, "http://www.h.test/", "gone=7; Max-Age=1")
    clock.now += 1
    copy = CookieJar(public_suffix_list=FakeList(), now=clock)
    for url, cookie in jar:
        copy.set_cookies(url, [cookie])
    assert list(copy) == list(jar)
    assert len(copy) == 6
    kept = {cookie.name: (str(url), cookie) for url, cookie in copy}
    assert kept["domain"] == (
        "http://h.test/",
        Cookie(
            "domain", "2", quoted=True, domain="h.test", path="/a", http_only=True, same_site=SameSite.LAX
        ),
    )
    assert kept["__Host-s"][0] == "https://www.h.test/"
    assert kept["ip"][0] == "http://[::1]/"
    assert kept["age"][1].expires == datetime.fromtimestamp(START + 60, UTC)
    assert sent(copy, "http://h.test/a") == 'domain="2"'


def test_clear_repr_and_truth() -> None:
    jar, _ = make()
    assert jar
    put(jar, "http://a.test/", "a=secret", "b=secret")
    put(jar, "http://b.test/", "a=secret")
    assert repr(jar) == "<CookieJar 3 cookies of 2 domains>"
    jar.clear()
    assert repr(jar) == "<CookieJar 0 cookies of 0 domains>"
    assert sent(jar, "http://a.test/") == ""


def test_several_threads() -> None:
    jar = CookieJar()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(300):
                put(jar, f"http://h{step % 7}.test/", f"n{number}-{step % 50}=1; Max-Age={step % 3}")
                sent(jar, f"http://h{step % 7}.test/")
                list(jar)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(jar) == sum(len(entries) for entries in jar._filed.values())


# --- the packaged list ----------------------------------------------------------------------


def test_the_packaged_list() -> None:
    pytest.importorskip("publicsuffixlist")
    suffixes = public_suffix_list()
    assert suffixes is public_suffix_list()
    assert "publicsuffixlist" in repr(suffixes)
    for domain, want in {
        "www.example.co.uk": "co.uk",
        "co.uk": "co.uk",
        "a.github.io": "github.io",
        "www.city.kobe.jp": "kobe.jp",
        "a.unknown-tld": "unknown-tld",
        "www.xn--85x722f.xn--55qx5d.cn": "xn--55qx5d.cn",
        "a..b": "",
    }.items():
        assert suffixes.public_suffix(domain) == want
    jar, _ = make(suffixes)
    put(jar, "https://a.github.io/", "a=1; Domain=github.io", "b=2; Domain=a.github.io")
    assert content(jar) == "b=2"


def test_the_packaged_list_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "publicsuffixlist", None)
    cookie_domain._read_list.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "prefork\[publicsuffix\]"'):
        public_suffix_list()


# --- properties -----------------------------------------------------------------------------

# Hosts that could get at each other's cookies.
FAMILIES = (
    ("h.test", "a.h.test", "b.a.h.test", "ba.h.test", "test"),
    ("co.uk", "x.co.uk", "a.x.co.uk", "y.co.uk", "uk"),
    ("127.0.0.1", "7.0.0.1", "0.0.1", "0.1", "[::1]", "[::1]:80", "localhost", "a.localhost"),
    ("é.test", "a.xn--9ca.test", "xn--9ca.test", "xn--9ca"),
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PATHS = ("/", "/a", "/a/", "/a/b", "/ab", "")


def responses(hosts: tuple[str, ...]) -> st.SearchStrategy[list[tuple[URL, list[Cookie]]]]:
    """What servers answer, most of it such that a cookie is kept."""
    domains = st.sampled_from(hosts)
    cookies = st.builds(
        Cookie,
        st.sampled_from(["a", "a", "a", "b", "b", "__Host-a", "__Secure-a"]),
        st.sampled_from(["1"] * 7 + ["x" * MAX_COOKIE_BYTES]),
        domain=st.just("") | domains | domains.map(lambda host: "." + host),
        path=st.sampled_from([*PATHS, "rel"]),
        secure=st.booleans(),
        max_age=st.sampled_from([None, None, None, None, 1000, 0]),
    )
    schemes = st.sampled_from(["http", "https", "https", "https", "ws"])
    urls = st.builds(URL, scheme=schemes, host=domains, path=st.sampled_from(PATHS))
    return st.lists(st.tuples(urls, st.lists(cookies, min_size=1, max_size=4)), min_size=1, max_size=8)


REQUESTS = [
    URL(scheme=scheme, host=host, path=path)
    for scheme in ("http", "https", "ws")
    for hosts in FAMILIES
    for host in hosts
    for path in PATHS
]


def plain_host(url: URL) -> str:
    host = "xn--9ca.test" if url.host == "é.test" else url.host
    return host.removesuffix(":80").strip("[]").removesuffix(".")


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(FAMILIES).flatmap(responses), st.sampled_from([None, FakeList()]))
def test_nothing_goes_where_it_does_not_belong(
    received: list[tuple[URL, list[Cookie]]], suffixes: PublicSuffixList | None
) -> None:
    jar, _ = make(suffixes)
    set_by: dict[str, tuple[URL, Cookie]] = {}
    for url, given_cookies in received:
        for cookie in given_cookies:
            if cookie.value == "1":
                # A value of its own tells who set it.
                cookie.value = f"v{len(set_by)}"
                set_by[cookie.value] = url, cookie
        jar.set_cookies(url, given_cookies)
        assert len(jar) <= MAX_TOTAL
    for url in REQUESTS:
        host, path = plain_host(url), url.path or "/"
        for found in jar.cookies(url):
            assert url.scheme != "ws"
            assert len(found.name) + len(found.value) <= MAX_COOKIE_BYTES
            setter, cookie = set_by[found.value]
            assert setter.scheme != "ws"
            trusted = setter.scheme == "https" or plain_host(setter) in LOOPBACK
            domain = cookie.domain.strip("[]").removesuffix(":80").removeprefix(".").lower()
            if host != plain_host(setter):
                assert cookie.domain
                assert host == domain or host.endswith("." + domain)
                assert plain_host(setter) == domain or plain_host(setter).endswith("." + domain)
                assert not is_ip(host)
                assert suffixes is None or has_dot_suffix(domain, suffixes.public_suffix(domain))
                assert not cookie.name.startswith("__Host-")
            if cookie.secure:
                assert url.scheme == "https" or host in LOOPBACK
            if cookie.path.startswith("/"):
                assert path == cookie.path or path.startswith(cookie.path.rstrip("/") + "/")
            if cookie.name.startswith("__"):
                assert cookie.secure
                assert trusted
            if cookie.name == "__Host-a":
                assert cookie.path == "/"
            assert cookie.max_age is None or cookie.max_age > 0


# --- the measured rows ----------------------------------------------------------------------


def load(name: str) -> list[Row]:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text())["vectors"] if path.exists() else []


def check_row(name: str, row: Row) -> None:
    match name:
        case "cookiejar_canonical_host":
            if row["error"]:
                with pytest.raises(URLError):
                    canonical_host(row["in"])
            else:
                assert canonical_host(row["in"]) == row["want"]
        case "cookiejar_default_path":
            assert default_path(row["in"]) == row["want"]
        case "cookiejar_domain_and_type":
            if row["error"]:
                with pytest.raises(CookieError) as caught:
                    domain_and_type(row["host"], row["domain"], FakeList())
                assert str(caught.value) == row["error"]
            else:
                found = domain_and_type(row["host"], row["domain"], FakeList())
                assert found == (row["want_domain"], row["want_host_only"])
        case "cookiejar_has_dot_suffix":
            assert has_dot_suffix(row["s"], row["suffix"]) is row["want"]
        case "cookiejar_has_port":
            assert (split_port(row["in"])[1] is not None) is row["want"]
        case "cookiejar_is_ip":
            assert is_ip(row["in"]) is row["want"]
        case "cookiejar_jar_key":
            assert jar_key(row["in"], FakeList()) == row["want"]
        case "cookiejar_jar_key_nil_psl":
            assert jar_key(row["in"], None) == row["want"]
        case "golden_cookiejar_order":
            jar, _ = make()
            put(jar, row["from_url"], *row["set_cookies"])
            assert sent(jar, row["to_url"]) == row["want"]
        case "cookiejar_jar_tests":
            jar, clock = make(FakeList())
            for step in steps_to(row):
                clock.now = START
                put(jar, step["from_url"], *step["set_cookies"])
                clock.now = START + 1.001
                assert content(jar) == step["content"]
                for query in step["queries"]:
                    clock.now = START + query["at_ms"] / 1000
                    assert sent(jar, query["to_url"]) == query["want"]


def steps_to(row: Row) -> list[Row]:
    """The rows whose cookies are in the jar before this one's, and this one."""
    steps: list[Row] = []
    for step in load("cookiejar_jar_tests"):
        if step["fresh_jar"]:
            steps = []
        steps.append(step)
        if step == row:
            break
    return steps


FILES = (
    "cookiejar_canonical_host",
    "cookiejar_default_path",
    "cookiejar_domain_and_type",
    "cookiejar_has_dot_suffix",
    "cookiejar_has_port",
    "cookiejar_is_ip",
    "cookiejar_jar_key",
    "cookiejar_jar_key_nil_psl",
    "cookiejar_jar_tests",
    "golden_cookiejar_order",
)


def rows() -> list[Any]:
    found = [
        pytest.param(name, row, id=f"{name}-{number}")
        for name in FILES
        for number, row in enumerate(load(name))
    ]
    return found or [pytest.param("", {}, marks=pytest.mark.skip(reason=f"no vectors in {FOLDER}"))]


@pytest.mark.parametrize(("name", "row"), rows())
def test_row(name: str, row: Row) -> None:
    check_row(name, row)
