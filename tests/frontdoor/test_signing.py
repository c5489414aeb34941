"""Signing in and out, as scripts and forms do it, through a whole proxy."""

import asyncio

import aiohttp
import msgspec
import pytest

from proxy.demo.simulator import Simulator
from tests.conftest import PASSWORD, exchange, receive
from tests.frontdoor.browsing import TICKET, Browser, front_door


async def test_who_signs_in_gets_notifications_and_no_token_of_the_platform(upstream: Simulator) -> None:
    async with front_door(upstream) as proxied:
        browser = Browser(proxied)
        signed_in = await browser.sign_in()
        assert (signed_in.status, signed_in.body) == (204, b"")
        async with browser.socket() as socket:
            assert (await browser.shake_hands(socket))["successful"]
        answer = await browser.get("/session")
        assert (answer.told["user"], answer.told["tenant"]) == ("service", "t0815")
        assert answer.told["csrfToken"] == browser.cookies["XSRF-TOKEN"]
        [token] = upstream.logins.tokens
        for value in browser.cookies.values():
            assert token.value not in value
            assert token.xsrf_token not in value


async def test_who_has_not_signed_in_gets_nothing(upstream: Simulator) -> None:
    async with front_door(upstream) as proxied:
        browser = Browser(proxied)
        assert (await browser.get("/session")).status == 401
        browser.cookies[TICKET] = "x" * 43
        assert (await browser.get("/session")).status == 401
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await browser.socket().__aenter__()
        assert refused.value.status == 401
        assert upstream.requests == []


async def test_signing_out_ends_the_sockets_of_the_session_and_of_no_other(upstream: Simulator) -> None:
    async with front_door(upstream) as proxied:
        one, other = Browser(proxied), Browser(proxied)
        await one.sign_in()
        await other.sign_in()
        async with one.socket() as socket, one.socket() as second, other.socket() as stays:
            for each, browser in ((socket, one), (second, one), (stays, other)):
                assert (await browser.shake_hands(each))["successful"]
            old = dict(one.cookies)
            out = await one.send("/sign-out", **{"X-XSRF-TOKEN": await one.csrf_token()})
            assert out.status == 204
            assert TICKET not in one.cookies
            for ended in (socket, second):
                message = await ended.receive(timeout=1)
                assert (message.type, ended.close_code) == (aiohttp.WSMsgType.CLOSE, 1008), message
            assert (await other.get("/session")).status == 200
            assert not stays.closed
        one.cookies = old
        assert (await one.get("/session")).status == 401
        assert upstream.logins.live() == 1


async def test_who_signs_out_is_told_to_stay_away_before_the_socket_closes(upstream: Simulator) -> None:
    async with front_door(upstream) as proxied:
        browser = Browser(proxied)
        await browser.sign_in()
        async with browser.socket() as socket:
            client_id = (await browser.shake_hands(socket))["clientId"]
            connect = {"channel": "/meta/connect", "clientId": client_id, "connectionType": "websocket"}
            [first] = await exchange(socket, [connect | {"id": "7", "advice": {"timeout": 0}}])
            assert first["successful"]
            await socket.send_str(msgspec.json.encode([connect | {"id": "8"}]).decode())
            await upstream.until(lambda: upstream.held_connects == 1)
            await browser.send("/sign-out", **{"X-XSRF-TOKEN": await browser.csrf_token()})
            [farewell] = await receive(socket)
            assert (farewell["channel"], farewell["id"], farewell["successful"]) == ("/meta/connect", "8", False)
            assert farewell["advice"] == {"reconnect": "none"}
            assert (await socket.receive(timeout=1)).type is aiohttp.WSMsgType.CLOSE
            assert socket.close_code == 1008


async def test_wrong_password_and_unknown_user_are_told_alike(upstream: Simulator) -> None:
    async with front_door(upstream) as proxied:
        browser = Browser(proxied)
        wrong = await browser.sign_in(password="wrong")
        unknown = await browser.sign_in(user="nobody")
        assert (wrong.status, wrong.told) == (unknown.status, unknown.told)
        assert (wrong.status, wrong.told["error"]) == (401, "credentials")
        assert browser.cookies == {}
        assert PASSWORD not in repr(wrong)


async def test_session_id_changes_with_every_sign_in_and_the_one_before_ends(upstream: Simulator) -> None:
    async with front_door(upstream) as proxied:
        browser = Browser(proxied)
        browser.cookies[TICKET] = planted = "planted-by-somebody-else-0123456789012345678"
        await browser.sign_in()
        first = dict(browser.cookies)
        assert first[TICKET] != planted
        await browser.sign_in()
        assert browser.cookies[TICKET] != first[TICKET]
        browser.cookies = first
        assert (await browser.get("/session")).status == 401
        async with asyncio.timeout(5):
            await upstream.until(lambda: upstream.logins.live() == 1)


async def test_no_header_of_a_page_or_of_a_relayed_answer_comes_twice(upstream: Simulator) -> None:
    async with front_door(upstream) as proxied:
        browser = Browser(proxied)
        for path in ("/sign-in", "/session", "/tenant/loginOptions"):
            headers = (await browser.get(path)).headers.items()  # unlike keys(), with those that come twice
            names = [name.lower() for name, _ in headers if name.lower() != "set-cookie"]
            assert "x-content-type-options" in names
            assert len(names) == len(set(names)), path
