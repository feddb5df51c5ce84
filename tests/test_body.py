"""Body: bytes in order, then the end or the error; limits; one reader; back-pressure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefork.http.errors import HTTPTimeout, LocalProtocolError, MaxBytesError, RemoteProtocolError
from prefork.http.message.body import HIGH_WATER, Body

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., Any]


class Source:
    """Feeds a body the next of `pieces` whenever its reader waits, and writes down what it is told."""

    def __init__(self, *pieces: bytes | Exception | None, content_length: int = -1, **options: Any) -> None:
        self.pieces = list(pieces)  # None: the end
        self.told: list[str] = []
        self.body = Body(self, content_length, **options)

    def body_wanted(self) -> None:
        self.told.append("wanted")
        if self.pieces:
            # As a socket does: later, not while the reader is asking.
            asyncio.get_running_loop().call_soon(self.give)

    def body_taken(self) -> None:
        self.told.append("taken")

    def body_refused(self) -> None:
        self.told.append("refused")

    def give(self) -> None:
        piece = self.pieces.pop(0)
        if piece is None:
            self.body.feed_end()
        elif isinstance(piece, Exception):
            self.body.feed_error(piece)
        else:
            self.body.feed(piece)


async def collect_into(got: list[bytes], body: Body) -> None:
    async for piece in body:
        got += [piece]  # one by one: what came before an error counts


# --- reading --------------------------------------------------------------------------------


def test_read_all(run: Run) -> None:
    source = Source(b"one ", b"two ", b"three", None)
    assert run(source.body.read()) == b"one two three"
    assert source.body.complete
    assert run(source.body.read()) == b""
    assert run(source.body.read(10)) == b""


def test_read_up_to_n(run: Run) -> None:
    async def read() -> list[bytes]:
        body = Source(b"abcde", b"f", None).body
        return [await body.read(n) for n in (2, 0, 2, 5, 5, 5, 5)]

    # What is there at once: never more than n, never a wait for more than one byte.
    assert run(read()) == [b"ab", b"", b"cd", b"e", b"f", b"", b""]


def test_iteration_gives_the_pieces_as_they_came(run: Run) -> None:
    async def collect() -> list[bytes]:
        return [piece async for piece in Source(b"one", b"two", None).body]

    assert run(collect()) == [b"one", b"two"]


def test_the_ways_of_reading_mix(run: Run) -> None:
    async def read() -> list[bytes]:
        body = Source(b"abcdef", b"ghi", b"jkl", None).body
        got = [await body.read(2)]
        async for piece in body:
            got.append(piece)
            if piece == b"cdef":
                break
        got.append(await body.read())
        return got

    assert run(read()) == [b"ab", b"cdef", b"ghijkl"]


def test_a_body_that_is_there_already(run: Run) -> None:
    body = Body.of(b"hello")
    assert (body.content_length, body.complete, body.closed) == (5, True, False)
    assert run(body.read(4)) == b"hell"
    assert run(body.read()) == b"o"
    assert run(body.read()) == b""
    empty = Body.of(b"")
    assert run(empty.read()) == b""
    assert run(empty.read(1)) == b""
    empty.close()
    assert run(empty.read()) == b"", "there was nothing to give up"


def test_a_body_that_nobody_feeds_says_so(run: Run) -> None:
    with pytest.raises(LocalProtocolError, match="no source"):
        run(Body().read())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.binary(min_size=1, max_size=9), max_size=6),
    st.lists(st.integers(-1, 7), max_size=12),
    st.data(),
)
def test_any_reads_give_the_bytes_in_order(
    run: Run, pieces: list[bytes], sizes: list[int], data: st.DataObject
) -> None:
    limit = data.draw(st.one_of(st.none(), st.integers(0, 60)))
    whole = b"".join(pieces)

    async def read() -> tuple[bytes, str]:
        body = Source(*pieces, None, limit=limit).body
        got = b""
        try:
            for n in [*sizes, *[5] * (len(whole) + 1)]:
                piece = await body.read(n)
                assert n < 0 or len(piece) <= n
                got += piece
        except MaxBytesError:
            return got, "too large"
        return got, "end"

    got, end = run(read())
    if limit is None or limit >= len(whole):
        assert (got, end) == (whole, "end")
    elif -1 in sizes:
        assert end == "too large"
        assert whole[:limit].startswith(got)
    else:
        assert (got, end) == (whole[:limit], "too large")


# --- limits ---------------------------------------------------------------------------------


def test_read_all_refuses_a_declared_length_before_reading(run: Run) -> None:
    source = Source(b"x" * 11, None, content_length=11, limit=10)
    with pytest.raises(MaxBytesError) as caught:
        run(source.body.read())
    assert source.told == ["refused"], "nothing was asked for, and the connection knows"
    assert (caught.value.status, caught.value.limit) == (413, 10)
    assert caught.value.text == "request body too large: the limit is 10 bytes (max_body_bytes)"
    assert source.body.closed
    for n in (-1, 5):
        with pytest.raises(MaxBytesError):  # it stays so, whoever reads again
            run(source.body.read(n))
    source.body.feed_error(RemoteProtocolError("the connection was lost"))
    with pytest.raises(MaxBytesError):
        run(source.body.read())
    assert source.told == ["refused"]


def test_read_all_of_unknown_length_stops_above_the_limit(run: Run) -> None:
    source = Source(*[b"x" * 4] * 100, None, limit=10, limit_name="the_route")
    with pytest.raises(MaxBytesError, match=r"\(the_route\)"):
        run(source.body.read())
    assert len(source.pieces) == 98, "it stopped with the first bytes above it"
    assert source.told[-1] == "refused"


def test_a_body_as_long_as_the_limit_is_whole(run: Run) -> None:
    assert run(Source(b"x" * 10, None, content_length=10, limit=10).body.read()) == b"x" * 10
    assert run(Source(b"x" * 5, b"x" * 5, None, limit=10).body.read()) == b"x" * 10
    assert run(Source(None, limit=0).body.read()) == b""


def test_pieces_within_the_limit_are_handed_out_before_the_error(run: Run) -> None:
    async def collect() -> list[bytes]:
        source = Source(b"abcd", b"efgh", b"ijkl", None, limit=6)
        got: list[bytes] = []
        with pytest.raises(MaxBytesError):
            await collect_into(got, source.body)
        assert source.told[-1] == "refused"
        return got

    assert run(collect()) == [b"abcd", b"ef"]


def test_what_was_pushed_back_is_not_counted_twice(run: Run) -> None:
    async def read() -> bytes:
        body = Source(b"abcdef", None, limit=6).body
        got = b""
        while piece := await body.read(1):
            got += piece
        return got

    assert run(read()) == b"abcdef"


def test_a_limit_set_later_counts_from_the_beginning(run: Run) -> None:
    async def read() -> None:
        body = Source(b"abcdef", b"ghi", None).body
        assert await body.read(4) == b"abcd"
        body.limit = 6
        assert await body.read() == b"ef"

    with pytest.raises(MaxBytesError):
        run(read())


# --- errors ---------------------------------------------------------------------------------

BROKEN = [RemoteProtocolError("malformed"), HTTPTimeout("late")]


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_an_error_comes_after_the_data_and_stays(run: Run, error: Exception) -> None:
    async def collect() -> list[bytes]:
        body = Source(b"one", b"two", error).body
        got: list[bytes] = []
        with pytest.raises(type(error), match=str(error)):
            await collect_into(got, body)
        assert not body.complete, "a body that broke off never looks like a whole one"
        for n in (-1, 5):
            with pytest.raises(type(error), match=str(error)):
                await body.read(n)
        return got

    assert run(collect()) == [b"one", b"two"]


def test_read_all_of_a_broken_body_gives_nothing_but_the_error(run: Run) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        run(Source(b"one", RemoteProtocolError("malformed")).body.read())


def test_an_error_after_the_end_is_none(run: Run) -> None:
    source = Source(b"one", None)
    assert run(source.body.read()) == b"one"
    source.body.feed_error(RemoteProtocolError("the connection was lost"))
    assert source.body.complete
    assert run(source.body.read()) == b""


# --- closing --------------------------------------------------------------------------------


def test_close_gives_up_the_rest(run: Run) -> None:
    source = Source(b"one", b"two", None)
    assert run(source.body.read(2)) == b"on"
    source.body.close()
    assert source.body.closed
    for n in (-1, 5):
        with pytest.raises(LocalProtocolError, match="closed Body"):
            run(source.body.read(n))
    assert source.body.feed(b"more" * HIGH_WATER) is False, "what still comes is dropped, at full speed"
    assert "0 waiting" in repr(source.body)
    source.body.close()


def test_close_wakes_who_waits(run: Run) -> None:
    async def scenario(n: int) -> None:
        source = Source()
        reader = asyncio.create_task(source.body.read(n))
        await asyncio.sleep(0)
        source.body.close()
        with pytest.raises(LocalProtocolError, match="closed Body"):
            await reader

    run(scenario(-1))
    run(scenario(5))


# --- who reads ------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(-1, -1), (-1, 5), (5, -1), (5, 5)])
def test_a_second_reader_at_once_is_refused_and_the_first_not_disturbed(
    run: Run, first: int, second: int
) -> None:
    async def scenario() -> None:
        source = Source()
        reader = asyncio.create_task(source.body.read(first))
        await asyncio.sleep(0)
        with pytest.raises(LocalProtocolError, match="another task"):
            await source.body.read(second)
        source.body.feed(b"data")
        source.body.feed_end()
        assert await reader == b"data"

    run(scenario())


def test_a_cancelled_reader_leaves_the_body_usable(run: Run) -> None:
    async def scenario(n: int) -> None:
        source = Source()
        source.body.feed(b"ab")
        if n > 0:
            assert await source.body.read(n) == b"ab"
        for _ in range(3):
            reader = asyncio.create_task(source.body.read(n))
            await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
        assert source.told == ["wanted", "taken"] * 3
        source.body.feed(b"cd")
        source.body.feed_end()
        assert await source.body.read() == (b"cd" if n > 0 else b"abcd")

    run(scenario(5))
    run(scenario(-1))


def test_a_reader_cancelled_when_its_bytes_have_come_loses_none(run: Run) -> None:
    async def scenario() -> None:
        source = Source()
        reader = asyncio.create_task(source.body.read(5))
        await asyncio.sleep(0)
        source.body.feed(b"abc")  # it is woken, but has not run
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        source.body.feed_end()
        assert await source.body.read() == b"abc"

    run(scenario())


# --- back-pressure --------------------------------------------------------------------------


def test_the_source_is_told_to_stop_above_the_high_water_mark() -> None:
    body = Source().body
    assert body.feed(b"x" * HIGH_WATER) is False
    assert body.feed(b"x") is True
    assert body.feed(b"x") is True


def test_the_source_hears_when_a_reader_waits_and_when_it_has_got_something(run: Run) -> None:
    async def scenario() -> None:
        source = Source()
        assert source.body.feed(b"x" * (HIGH_WATER + 1)) is True
        assert len(await source.body.read(HIGH_WATER)) == HIGH_WATER
        assert source.told == [], "what is there is taken without a word"
        assert await source.body.read(5) == b"x"
        assert source.body.feed(b"y") is False, "there is room again"
        assert await source.body.read(5) == b"y"
        reader = asyncio.create_task(source.body.read(5))
        await asyncio.sleep(0)
        assert source.told == ["wanted"], "now it is starving"
        source.body.feed(b"z")
        assert await reader == b"z"
        assert source.told == ["wanted", "taken"]

    run(scenario())


def test_who_wants_everything_is_not_slowed_down(run: Run) -> None:
    async def scenario() -> None:
        source = Source()
        reader = asyncio.create_task(source.body.read())
        await asyncio.sleep(0)
        for _ in range(5):
            assert source.body.feed(b"x" * HIGH_WATER) is False
        source.body.feed_end()
        assert len(await reader) == 5 * HIGH_WATER

    run(scenario())


def test_repr_tells_the_state() -> None:
    source = Source()
    source.body.feed(b"abc")
    assert repr(source.body) == "<Body open 0 read, 3 waiting>"
    source.body.feed_end()
    assert repr(source.body) == "<Body complete 0 read, 3 waiting>"
    source.body.close()
    assert repr(source.body) == "<Body closed 0 read, 0 waiting>"
