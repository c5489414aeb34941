"""One request for a page, byte by byte: what of it is read, what is refused, and that no other comes in behind it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

import pytest
from aiohttp.web import Response

from proxy.demo.simulator import Simulator
from proxy.relay.pages import Page, Pages, Visit
from tests.conftest import Running, running, until
from tests.relay.raw import SECONDS, client


LIMIT: Final = 64 * 1024
SECOND: Final = b"POST /second HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


@dataclass
class Heard:
    """What pages were asked, as they were."""

    visits: list[Visit] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    answer: bytes = b"done"

    def __post_init__(self) -> None:
        self.let_go.set()

    async def serve(self, visit: Visit) -> Response:
        self.visits.append(visit)
        self.arrived.set()
        await self.let_go.wait()
        return Response(body=self.answer)

    @property
    def bodies(self) -> list[bytes]:
        return [visit.body for visit in self.visits]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def settings() -> dict[str, object]:
    return {}


@pytest.fixture
async def proxied(upstream: Simulator, heard: Heard, settings: dict[str, object]) -> AsyncIterator[Running]:
    page = Page(heard.serve, admits="changing")
    pages = {("GET", "/page"): page, ("POST", "/page"): page, ("POST", "/second"): page}
    async with running(upstream.url, settings, pages=pages) as proxied:
        yield proxied


def asked(*lines: str, body: bytes = b"", method: str = "POST", version: str = "1.1") -> bytes:
    """A request for the page."""
    head = "".join(f"{line}\r\n" for line in (f"{method} /page HTTP/{version}", "Host: localhost", *lines))
    return head.encode() + b"\r\n" + body


def sized(body: bytes, *lines: str) -> bytes:
    return asked(*lines, f"Content-Length: {len(body)}", body=body)


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return asked("Transfer-Encoding: chunked", body=b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + end)


async def sent(proxied: Running, data: bytes) -> list[int]:
    """The statuses of all that is answered to these bytes, until the connection ends."""
    async with client(proxied) as one:
        one.send(data)
        return await one.statuses()


# What is read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        pytest.param(sized(b"a=b"), b"a=b", id="with a length"),
        pytest.param(chunked(b"a=", b"b"), b"a=b", id="in chunks"),
        pytest.param(chunked(b"a=b", end=b"0;x=y\r\nTrailer: z\r\n\r\n"), b"a=b", id="in chunks, with a trailer"),
        pytest.param(asked(), b"", id="without"),
        pytest.param(asked("Content-Length: 0"), b"", id="of no length"),
        pytest.param(chunked(), b"", id="of no chunk"),
        pytest.param(sized(b"\0\r\n\r\n" * 9), b"\0\r\n\r\n" * 9, id="of bytes that could be a head"),
        pytest.param(sized(b"x" * LIMIT), b"x" * LIMIT, id="as big as may be"),
        pytest.param(chunked(b"x" * LIMIT), b"x" * LIMIT, id="as big as may be, in chunks"),
    ],
)
async def test_body_comes_as_it_was_sent_in_one_piece_or_byte_by_byte(
    proxied: Running, heard: Heard, request_: bytes, body: bytes
) -> None:
    assert await sent(proxied, request_) == [200]
    if len(request_) < 1000:
        async with client(proxied) as one:
            for at in range(len(request_)):
                one.send(request_[at : at + 1])
                await asyncio.sleep(0)
            assert await one.statuses() == [200]
    assert set(heard.bodies) == {body}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_connection_ends_with_the_one_answer(proxied: Running, version: str) -> None:
    async with client(proxied) as one:
        one.send(asked("Connection: keep-alive", "Content-Length: 1", body=b"x", version=version))
        [answer] = await one.answers()
        assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"done", "close")


async def test_go_ahead_is_given_before_a_body_and_not_before_one_that_is_refused(
    proxied: Running, heard: Heard
) -> None:
    async with client(proxied) as one:
        one.send(asked("Expect: 100-continue", "Content-Length: 1"))
        assert (await one.answer()).status == 100
        one.send(b"x")
        assert await one.statuses() == [200]
    assert await sent(proxied, asked("Expect: 100-continue", f"Content-Length: {LIMIT + 1}")) == [413]
    assert await sent(proxied, asked("Expect: 100-continue", "Content-Length: 1", "Origin: http://e.example")) == [403]
    assert await sent(proxied, asked("Expect: a-miracle", "Content-Length: 1")) == [417]
    assert heard.bodies == [b"x"]


async def test_long_cookies_reach_a_page(proxied: Running, heard: Heard) -> None:
    """Those of a single sign-on outgrow what aiohttp reads."""
    assert await sent(proxied, sized(b"x", "Cookie: BAYEUX_BROWSER=" + "x" * 20_000)) == [200]
    assert len(heard.visits[0].asked.head.value("cookie") or "") > 20_000


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(sized(b"x" * (LIMIT + 1)), 413, id="too big"),
        pytest.param(asked(f"Content-Length: {1 << 40}"), 413, id="too big, and not sent"),
        pytest.param(chunked(b"x" * LIMIT, b"x"), 413, id="too big, in chunks"),
        pytest.param(
            asked("Content-Length: 1", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400, id="length, chunks"
        ),
        pytest.param(asked("Content-Length: 1", "Content-Length: 2", body=b"xy"), 400, id="two lengths"),
        pytest.param(asked("Content-Length: 1, 1", body=b"x"), 400, id="two lengths in one"),
        pytest.param(asked("Content-Length: +1", body=b"x"), 400, id="an odd length"),
        pytest.param(asked("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 400, id="another coding"),
        pytest.param(asked("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400, id="a coding that is none"),
        pytest.param(
            asked("Transfer-Encoding: chunked", body=b"0\r\n\r\n", version="1.0"), 400, id="chunks of HTTP/1.0"
        ),
        pytest.param(asked("Transfer-Encoding: chunked", body=b"x\r\n"), 400, id="a size that is none"),
        pytest.param(
            asked("Transfer-Encoding: chunked", body=b"1\r\nxy\r\n0\r\n\r\n"), 400, id="a chunk that is longer"
        ),
        pytest.param(asked("Transfer-Encoding: chunked", body=b"1\nx\n0\n\n"), 400, id="bare line feeds"),
        pytest.param(sized(b"x", "Content-Encoding: gzip"), 415, id="packed"),
        pytest.param(sized(b"x", "Content-Encoding: identity", "Content-Encoding: gzip"), 400, id="packed, or not"),
        pytest.param(asked("Content-Length: 1", body=b"x", method="GET"), 400, id="a GET with a body"),
        pytest.param(
            asked("Transfer-Encoding: chunked", body=b"0\r\n\r\n", method="GET"),
            400,
            id="a GET with a body of no chunk",
        ),
        pytest.param(asked(method="HEAD"), 405, id="HEAD"),
        pytest.param(asked(method="PUT"), 405, id="another method"),
        pytest.param(asked("Connection: Upgrade", "Upgrade: websocket", method="GET"), 404, id="a WebSocket"),
    ],
)
async def test_what_could_be_read_two_ways_or_is_too_much_is_refused_alone(
    proxied: Running, heard: Heard, request_: bytes, status: int
) -> None:
    assert await sent(proxied, request_ + SECOND) == [status]
    assert heard.visits == []


@pytest.mark.parametrize("settings", [{"limits.payload_seconds": 0.1}])
async def test_slow_body_is_refused(proxied: Running, heard: Heard) -> None:
    assert await sent(proxied, asked("Content-Length: 2", body=b"x")) == [408]
    assert await sent(proxied, asked("Transfer-Encoding: chunked", body=b"1\r\nx\r\n")) == [408]
    assert heard.visits == []


@pytest.mark.parametrize("settings", [{"limits.client_payload_bytes": 10}])
async def test_configured_limit_holds_for_pages_where_it_is_lower(proxied: Running) -> None:
    assert await sent(proxied, sized(b"x" * 10)) == [200]
    assert await sent(proxied, sized(b"x" * 11)) == [413]


# What comes behind ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(sized(b"x"), id="behind a body"),
        pytest.param(chunked(b"x"), id="behind chunks"),
        pytest.param(asked(), id="behind no body"),
        pytest.param(asked(method="GET"), id="behind a GET"),
        pytest.param(sized(b"x", "Connection: Upgrade", "Upgrade: websocket"), id="behind an upgrade that is none"),
        pytest.param(sized(b"x", "Connection: Upgrade", "Upgrade: h2c"), id="behind another upgrade"),
    ],
)
async def test_second_request_on_a_connection_is_never_served(proxied: Running, heard: Heard, first: bytes) -> None:
    heard.let_go.clear()
    for together in (True, False):
        heard.arrived.clear()
        async with client(proxied) as one:
            one.send(first + (SECOND if together else b""))
            await asyncio.wait_for(heard.arrived.wait(), SECONDS)
            one.send(SECOND)
            heard.let_go.set()
            assert await one.statuses() == [200]
        heard.let_go.clear()
    assert [visit.asked.head.path for visit in heard.visits] == ["/page", "/page"]


async def test_what_is_poured_in_behind_a_request_is_kept_nowhere(proxied: Running, heard: Heard) -> None:
    heard.let_go.clear()
    async with client(proxied) as one:
        one.send(sized(b"x"))
        await asyncio.wait_for(heard.arrived.wait(), SECONDS)
        one.send(SECOND * 10_000)
        await asyncio.wait_for(one.writer.drain(), SECONDS)
        [connection] = proxied.proxy._pages._server.connections  # type: ignore[union-attr]
        assert not connection._messages
        heard.let_go.set()
        assert b"done" in await one.rest()
    assert len(heard.visits) == 1


# Comings and goings ---------------------------------------------------------------------------------------------------


def open_connections(proxied: Running) -> int:
    return len(proxied.proxy._pages) + len(proxied.proxy._listener.doors)


@pytest.mark.parametrize(
    "begun", [asked("Content-Length: 9", body=b"x"), asked("Transfer-Encoding: chunked", body=b"9\r\nx")]
)
async def test_client_that_goes_within_its_body_leaves_nothing_behind(
    proxied: Running, heard: Heard, begun: bytes
) -> None:
    async with client(proxied) as one:
        one.send(begun)
        await until(lambda: open_connections(proxied) == 1)
    await until(lambda: open_connections(proxied) == 0)
    assert heard.visits == []


async def test_client_that_goes_before_its_answer_counts_until_that_is_done(proxied: Running, heard: Heard) -> None:
    heard.let_go.clear()
    async with client(proxied) as one:
        one.send(sized(b"x"))
        await asyncio.wait_for(heard.arrived.wait(), SECONDS)
    assert open_connections(proxied) == 1
    heard.let_go.set()
    await until(lambda: open_connections(proxied) == 0)
    assert await sent(proxied, sized(b"x")) == [200]


async def test_client_that_does_not_take_its_answer_is_cut_off(proxied: Running, heard: Heard) -> None:
    heard.answer = b"x" * (16 << 20)
    proxied.proxy._pages._takers.seconds = 0.1
    async with client(proxied) as one:
        one.writer.transport.pause_reading()  # type: ignore[attr-defined]
        one.send(sized(b"x"))
        await until(lambda: len(heard.visits) == 1)
        await until(lambda: open_connections(proxied) == 0)


@pytest.mark.parametrize("settings", [{"limits.connections": 2}])
async def test_connections_of_pages_count_like_all_others(proxied: Running, heard: Heard) -> None:
    heard.let_go.clear()
    async with client(proxied) as one, client(proxied) as two, client(proxied) as three:
        for each in (one, two):
            each.send(sized(b"x"))
        await until(lambda: len(heard.visits) == 2)
        three.send(sized(b"x"))
        assert await three.statuses() == [429]
        heard.let_go.set()
        assert await one.statuses() == await two.statuses() == [200]
    assert await sent(proxied, sized(b"x")) == [200]


async def test_page_is_found_by_its_method_and_path_byte_for_byte(proxied: Running, heard: Heard) -> None:
    async def status(first: str) -> list[int]:
        async with client(proxied) as one:
            one.send(f"{first} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return await one.statuses()

    for target in ("/Page", "/page/", "//page", "/./page", "/x/../page", "/%70age", "/page;x", "http://localhost/page"):
        assert await status(f"POST {target}") == [404], target
    assert await status("POST /page?x=/../second#y") == [400]
    assert heard.visits == []
    assert await status("POST /page?x=/../second") == [200]
    assert heard.visits[0].query == "x=/../second"


async def test_pages_that_were_never_asked_for_end_at_once() -> None:
    pages = Pages({})
    assert len(pages) == 0
    await pages.shutdown(1)
