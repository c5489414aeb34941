"""Whole proxies whose people are signed in: what becomes of their connections, at one proxy and at two that share a
file.
"""

import asyncio
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web

from proxy import entrance
from proxy.demo.admission import Admitted
from proxy.demo.platform import renew
from proxy.demo.simulator import SessionRules, Simulator
from proxy.demo.tenant import Tenant
from proxy.frontdoor.sessions import Sessions
from proxy.frontdoor.sqlite_store import SqliteStore
from tests.conftest import PASSWORD, Message, Running, closed, configured, exchange, running, until
from tests.demo.clock import Clock
from tests.frontdoor.browsing import SETTINGS, TICKET, Browser, front_door
from tests.frontdoor.processes import Interrupted


RENEWING: Final = SessionRules(renewal_seconds=0.0)  # with every request
KEY: Final = b64encode(bytes(range(32)))
CONNECT: Final = {"channel": "/meta/connect", "connectionType": "long-polling", "id": "2"}
HANDSHAKE: Final = {
    "channel": "/meta/handshake",
    "version": "1.0",
    "supportedConnectionTypes": ["long-polling"],
    "id": "1",
}
SIGNED_OUT: Final = "Signed out, or the session has ended: sign in again"


def sessions_of(proxied: Running) -> Sessions:
    sessions = proxied.proxy._lasting.reception.sessions
    assert sessions is not None
    return sessions


@pytest.fixture
def shared(tmp_path: Path) -> Mapping[str, object]:
    """What makes replicas of proxies."""
    key = tmp_path / "key"
    key.write_bytes(KEY)
    return {"frontdoor.sessions_file": str(tmp_path / "sessions"), "frontdoor.session_key_file": str(key)}


@pytest.fixture
async def replicas(upstream: Simulator, shared: Mapping[str, object]) -> AsyncIterator[tuple[Running, Running]]:
    async with front_door(upstream, shared) as one, front_door(upstream, shared) as other:
        yield one, other


def at(proxied: Running, browser: Browser) -> Browser:
    """The same browser, by way of another proxy."""
    return Browser(proxied, cookies=dict(browser.cookies))


async def polled(browser: Browser, message: Message) -> list[Message]:
    """The answer to a long-polling POST of one message."""
    async with browser.proxied.post([message], headers=browser.headers) as answer:
        for line in answer.headers.getall("Set-Cookie", ()):
            browser._keep(line)
        assert answer.status == 200
        replies: list[Message] = await answer.json()
        return replies


@asynccontextmanager
async def held(browser: Browser, upstream: Simulator) -> AsyncIterator[aiohttp.ClientResponse]:
    """A connect that upstream holds."""
    before = set(upstream.sessions)
    [shaken] = await polled(browser, HANDSHAKE)
    assert shaken["successful"]
    [session] = set(upstream.sessions) - before
    async with browser.proxied.post([CONNECT | {"clientId": shaken["clientId"]}], headers=browser.headers) as answer:
        await upstream.until(lambda: session.held is not None)
        yield answer


async def assert_dismissed(answer: aiohttp.ClientResponse) -> None:
    """That a held connect is told not to come back."""
    async with asyncio.timeout(2):
        [reply] = await answer.json()
    assert (reply["channel"], reply["successful"], reply["id"]) == ("/meta/connect", False, "2")
    assert reply["advice"]["reconnect"] == "none"
    assert reply["error"] == f"403::{SIGNED_OUT}"


@asynccontextmanager
async def shaken(browser: Browser) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A socket whose handshake was accepted."""
    async with browser.socket() as socket:
        assert (await browser.shake_hands(socket))["successful"]
        yield socket


async def refused(browser: Browser) -> int:
    """The status that a socket is refused with."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
        await browser.socket().__aenter__()
    return refusal.value.status


def sent_tokens(upstream: Simulator) -> list[str]:
    """The tokens that upgrades and POSTs went up with, in order."""
    return [request.headers["Cookie"].partition("authorization=")[2].partition(";")[0] for request in upstream.requests]


# Replicas -------------------------------------------------------------------------------------------------------------


async def test_who_signs_out_at_one_has_no_connection_at_the_other(
    upstream: Simulator, replicas: tuple[Running, Running]
) -> None:
    one, other = replicas
    browser, bystander = Browser(one), Browser(one)
    await browser.sign_in()
    await bystander.sign_in()
    async with (
        shaken(at(other, browser)) as socket,
        held(at(other, browser), upstream) as poll,
        shaken(at(other, bystander)) as stays,
        held(at(other, bystander), upstream),
    ):
        assert (await browser.send("/sign-out", **{"X-XSRF-TOKEN": await browser.csrf_token()})).status == 204
        async with asyncio.timeout(1):
            assert await closed(socket) == (1008, SIGNED_OUT)
            await assert_dismissed(poll)
        assert not stays.closed
        assert (await exchange(stays, [{"channel": "/meta/subscribe", "clientId": "x", "id": "3"}]))[0]["id"] == "3"
        await upstream.until(lambda: upstream.held_connects == 1)
    assert upstream.logins.live() == 1


async def test_an_old_ticket_is_worth_nothing_anywhere(replicas: tuple[Running, Running]) -> None:
    one, other = replicas
    browser = Browser(one)
    await browser.sign_in()
    there = at(other, browser)
    assert (await there.get("/session")).status == 200
    await browser.send("/sign-out", **{"X-XSRF-TOKEN": await browser.csrf_token()})

    async with asyncio.timeout(1):
        while (await there.get("/session")).status != 401:
            pass
    assert await refused(there) == 401
    assert await refused(at(one, there)) == 401
    assert (await there.send("/sign-out")).status == 204


async def test_what_is_renewed_at_one_goes_up_from_the_other(shared: Mapping[str, object]) -> None:
    async with (
        Simulator(password=PASSWORD, rules=RENEWING) as upstream,
        front_door(upstream, shared) as one,
        front_door(upstream, shared) as other,
    ):
        browser = Browser(one)
        await browser.sign_in()
        for here, there in ((one, other), (other, one), (one, other)):
            async with held(at(here, browser), upstream):
                pass
            newest = upstream.logins.tokens[-1].value
            await until(partial(knows_only, here, newest), seconds=1.0)  # and so has kept it
            await until(partial(knows_only, there, newest), seconds=1.0)
            async with at(there, browser).socket():
                pass
            assert sent_tokens(upstream)[-1] == newest
        assert (upstream.logins.succeeded, upstream.logins.live()) == (1, 1)
        assert len(upstream.logins.tokens) == 7


def knows_only(proxied: Running, token: str) -> bool:
    """Whether a proxy knows of no session with another token, and does nothing about any."""
    sessions = sessions_of(proxied)
    known = [each.session.pair.token for each in sessions._sessions.values() if each.session is not None]
    return not sessions._tasks and {*known} <= {token}


async def test_a_restart_signs_nobody_out(upstream: Simulator, shared: Mapping[str, object]) -> None:
    async with front_door(upstream, shared) as proxied:
        browser = Browser(proxied)
        await browser.sign_in()
    async with front_door(upstream, shared) as proxied:
        again = at(proxied, browser)
        assert (await again.get("/session")).told["csrfToken"] == browser.cookies["XSRF-TOKEN"]
        async with shaken(again):
            pass
    assert upstream.logins.asked == 1


def content(directory: Path) -> bytes:
    """All that sessions leave there."""
    return b"".join(path.read_bytes() for path in directory.iterdir() if path.name != "key")


async def test_what_the_file_says_is_of_no_use_to_who_reads_it(
    upstream: Simulator, shared: Mapping[str, object], tmp_path: Path
) -> None:
    async with front_door(upstream, shared) as proxied:
        browser = Browser(proxied)
        await browser.sign_in()
        async with shaken(browser):
            pass
        kept = content(tmp_path)
        [token] = upstream.logins.tokens
        for secret in (token.value, token.xsrf_token, PASSWORD, *browser.cookies.values()):
            assert secret.encode() not in kept


# Renewal --------------------------------------------------------------------------------------------------------------


def _renew_by_the_cookie_alone(tenant: Tenant, request: web.Request, opened: web.WebSocketResponse) -> None:
    token = tenant.logins.judge(request.cookies["authorization"], user_agent=None)
    assert token is not None
    renew(tenant, Admitted(token.user, token), opened, secure=False)


@pytest.mark.parametrize("way", ["upgrade", "poll", "call"])
async def test_what_comes_along_with_an_answer_goes_up_next_and_never_down(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Simulator(password=PASSWORD, rules=RENEWING) as upstream, front_door(upstream) as proxied:
        browser = Browser(proxied)
        await browser.sign_in()
        if way == "upgrade":
            monkeypatch.setattr("proxy.demo.sockets._renew", _renew_by_the_cookie_alone)
        for turn in range(1, 5):
            if way == "upgrade":
                async with shaken(browser) as socket:
                    assert not socket._response.cookies
            elif way == "poll":
                async with held(browser, upstream):
                    pass
            else:
                answer = await browser.get("/user/currentUser")
                assert answer.status == 200
                assert "Set-Cookie" not in answer.headers
            assert len(upstream.logins.tokens) > turn
        newest = upstream.logins.tokens[-1].value
        async with browser.socket():
            pass
        assert sent_tokens(upstream)[-1] == newest
        assert upstream.logins.live() == 1
        for token in upstream.logins.tokens:
            for value in browser.cookies.values():
                assert token.value not in value
                assert token.xsrf_token not in value


async def test_many_who_open_at_once_while_it_is_renewed_all_get_in() -> None:
    async with Simulator(password=PASSWORD, rules=RENEWING) as upstream, front_door(upstream) as proxied:
        browser = Browser(proxied)
        await browser.sign_in()
        async with AsyncExitStack() as opened:
            await asyncio.gather(*(opened.enter_async_context(shaken(browser)) for _ in range(20)))
            assert upstream.open_sockets == 20
            async with held(browser, upstream):
                pass
        assert upstream.logins.live() == 1


# The end --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def timed(upstream: Simulator, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """A proxy whose sessions go by that clock alone."""
    monkeypatch.setattr(entrance, "unix_now", clock)
    monkeypatch.setattr(entrance, "SqliteStore", partial(SqliteStore, clock=clock))
    settings = dict(SETTINGS) | {"frontdoor.idle_seconds": 1000, "frontdoor.absolute_seconds": 5000}
    async with running(upstream.url, settings, values={}, clock=clock) as proxied:
        yield proxied


async def test_connections_end_when_the_absolute_time_is_over(
    upstream: Simulator, timed: Running, clock: Clock
) -> None:
    browser = Browser(timed)
    await browser.sign_in()
    async with shaken(browser) as socket, held(browser, upstream) as poll:
        for seconds in (900, 900, 900, 900, 900, 499):
            clock.advance(seconds)
            assert (await browser.get("/session")).status == 200
            await until(lambda: not sessions_of(timed)._tasks)
        assert not socket.closed
        clock.advance(1)
        async with asyncio.timeout(1):
            assert await closed(socket) == (1008, SIGNED_OUT)
            await assert_dismissed(poll)
    assert (await browser.get("/session")).status == 401
    assert await refused(browser) == 401
    await upstream.until(lambda: upstream.logins.live() == 0)


async def test_who_is_idle_for_too_long_is_signed_out_and_who_has_a_socket_is_not(timed: Running, clock: Clock) -> None:
    idle, busy = Browser(timed), Browser(timed)
    await idle.sign_in()
    await busy.sign_in()
    sessions = sessions_of(timed)
    async with shaken(busy) as socket:
        for _ in range(3):
            clock.advance(400)
            await until(lambda: sessions._next_look > clock.now and not sessions._tasks)
        assert not socket.closed
        assert (await busy.get("/session")).status == 200
        assert (await idle.get("/session")).status == 401


async def test_what_the_platform_ended_is_found_out_by_a_denied_handshake(upstream: Simulator) -> None:
    async with front_door(upstream) as proxied:
        browser = Browser(proxied)
        await browser.sign_in()
        async with shaken(browser) as socket, held(browser, upstream) as poll:
            upstream.logins.terminate()
            async with browser.socket() as denied:
                assert (await browser.shake_hands(denied))["successful"] is False
            async with asyncio.timeout(1):
                assert await closed(socket) == (1008, SIGNED_OUT)
                await assert_dismissed(poll)
        assert (await browser.get("/session")).status == 401


async def test_a_denial_by_one_endpoint_leaves_the_session_alone(
    upstream: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with front_door(upstream) as proxied:
        browser = Browser(proxied)
        await browser.sign_in()
        async with shaken(browser) as socket:
            monkeypatch.setattr(upstream.sessions, "answer", _denying)
            async with browser.socket() as denied:
                assert (await browser.shake_hands(denied))["successful"] is False
            monkeypatch.undo()
            assert await refused(browser) == 503
            async with proxied.socket("/cep/realtime", headers=browser.headers) as elsewhere:
                assert (await browser.shake_hands(elsewhere))["successful"]
            assert (await browser.get("/session")).status == 200
            assert not socket.closed


def _denying(incoming: Any, _: object) -> Message:
    return {"channel": incoming.channel, "id": "1", "successful": False, "error": "403::Handshake denied"}


async def test_who_signs_in_anew_loses_the_connections_of_before(upstream: Simulator) -> None:
    async with front_door(upstream) as proxied:
        browser = Browser(proxied)
        await browser.sign_in()
        async with shaken(browser) as socket:
            await browser.sign_in()
            assert await closed(socket) == (1008, SIGNED_OUT)
            async with shaken(browser):
                pass
        assert upstream.logins.live() == 1


# While the store is away ----------------------------------------------------------------------------------------------


async def test_while_the_store_is_away_what_is_open_stays_and_nothing_opens(
    upstream: Simulator, timed: Running, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    proxied, sessions = timed, sessions_of(timed)
    store = sessions._store = Interrupted(sessions._store)
    browser, stranger = Browser(proxied), Browser(proxied)
    await browser.sign_in()
    async with shaken(browser) as socket, held(browser, upstream):
        store.is_away = True
        clock.advance(2)
        requests = len(upstream.requests)
        assert await refused(browser) == 503
        async with proxied.post([CONNECT], headers=browser.headers) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        [refusal] = await polled(browser, HANDSHAKE)
        assert refusal["advice"]["reconnect"] == "handshake"
        assert len(upstream.requests) == requests
        assert (await browser.get("/session")).status == 503
        assert (await browser.get("/sign-in")).status == 503
        token = browser.cookies["XSRF-TOKEN"]
        assert (await browser.send("/sign-out", **{"X-XSRF-TOKEN": token})).status == 503
        assert TICKET in browser.cookies
        for each in (browser, stranger):
            answered = await each.sign_in()
            assert (answered.status, answered.told["error"]) == (503, "unavailable")
        assert TICKET not in stranger.cookies
        assert proxied.count("sign_ins_total", outcome="unavailable") == 2
        assert upstream.logins.live() == 1
        assert not socket.closed
        assert (await exchange(socket, [{"channel": "/meta/subscribe", "clientId": "x", "id": "3"}]))[0]["id"] == "3"
        store.is_away = False
        clock.advance(2)
        assert (await browser.get("/session")).status == 200
        async with shaken(browser):
            pass
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage().partition(":")[0] for record in warned] == ["Sessions cannot be looked up or kept"]


# Change ---------------------------------------------------------------------------------------------------------------


Change = Callable[..., Any]


@asynccontextmanager
async def changing(upstream: Simulator) -> AsyncIterator[tuple[Running, Change]]:
    async with front_door(upstream) as proxied:

        async def change(settings: Mapping[str, object] | None = None, *, url: str = upstream.url) -> None:
            ports = {"listen.port": proxied.proxy.config.listen.port, "admin.port": proxied.proxy.config.admin.port}
            await proxied.proxy.change(configured(url, dict(SETTINGS) | ports | dict(settings or {}), values={}))

        yield proxied, change


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"limits.client_connections": 50},
        {"gate.origins": ["https://app.example.com"]},
        {"gate.hosts": ["app.example.com"]},
        {"upstream.open_timeout_seconds": 3},
    ],
    ids=str,
)
async def test_who_is_signed_in_stays_so_when_the_configuration_changes(
    upstream: Simulator, settings: Mapping[str, object]
) -> None:
    async with changing(upstream) as (proxied, change):
        browser = Browser(proxied)
        await browser.sign_in()
        async with shaken(browser) as socket, held(browser, upstream) as poll:
            await change(settings)
            assert (await browser.get("/session")).status == 200
            async with shaken(browser):
                pass
            assert not socket.closed
            await browser.send("/sign-out", **{"X-XSRF-TOKEN": await browser.csrf_token()})
            assert await closed(socket) == (1008, SIGNED_OUT)
            await assert_dismissed(poll)
        assert upstream.logins.live() == 0


async def test_another_upstream_gets_nothing_of_the_sessions_at_the_one_before(upstream: Simulator) -> None:
    async with Simulator(password=PASSWORD) as another, changing(upstream) as (proxied, change):
        browser = Browser(proxied)
        await browser.sign_in()
        await change(url=another.url)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await browser.socket().__aenter__()
        assert (await browser.get("/session")).status == 401
        assert (another.requests, another.calls) == ([], [])
        await browser.sign_in()
        async with shaken(browser):
            pass


async def test_the_front_door_itself_changes_with_a_restart_only(
    upstream: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    async with changing(upstream) as (proxied, change):
        browser = Browser(proxied)
        await browser.sign_in()
        async with shaken(browser) as socket:
            await change({"frontdoor.absolute_seconds": 10_000, "limits.client_connections": 50})
            assert "frontdoor stays as it was until the proxy is started again" in caplog.text
            assert proxied.proxy.config.frontdoor.absolute_seconds == 43_200
            assert proxied.proxy.config.limits.client_connections == 50
            assert not socket.closed
            assert (await browser.get("/session")).status == 200


async def test_a_key_that_takes_over_signs_nobody_out_and_one_that_is_gone_does(
    upstream: Simulator, shared: Mapping[str, object]
) -> None:
    old, new = KEY, b64encode(bytes(range(1, 33)))

    def keep(*keys: bytes) -> None:
        Path(str(shared["frontdoor.session_key_file"])).write_bytes(b"\n".join(keys))
        sessions_of(proxied)._sessions.clear()  # as if a while had passed

    async with front_door(upstream, shared) as proxied:
        before, after = Browser(proxied), Browser(proxied)
        await before.sign_in()
        keep(new, old)
        await after.sign_in()
        assert (await before.get("/session")).status == 200
        keep(new)
        assert (await before.get("/session")).status == 401
        assert (await after.get("/session")).status == 200


async def test_nothing_of_the_front_door_outlives_the_proxy(upstream: Simulator, shared: Mapping[str, object]) -> None:
    before = asyncio.all_tasks()
    async with front_door(upstream, shared) as proxied:
        browser = Browser(proxied)
        await browser.sign_in()
        sessions = sessions_of(proxied)
        async with shaken(browser):
            await browser.get("/session")
    assert not sessions._tasks
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})
