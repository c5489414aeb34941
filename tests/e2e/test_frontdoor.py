"""The front door end to end: people with Chromium sign in, and get notifications by the official client."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import msgspec
import pytest

from proxy.demo.accounts import Account
from proxy.demo.identity_provider import IdentityProvider
from proxy.demo.single_sign_on import SingleSignOn

from .conftest import DoorOpener
from .frontdoor import HOST, FrontDoor, Mode, code_of, sign_in
from .origin import TENANT
from .people import Cookie, Tab
from .stage import Evidence, Transport


CHANNEL = "/measurements/4711"
TRANSPORTS: list[Transport] = ["websocket", "long-polling"]
simulated = pytest.mark.parametrize("origin", ["simulator"], indirect=True)
each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


# Signing in -----------------------------------------------------------------------------------------------------------


@simulated
async def test_who_has_a_second_factor_is_asked_for_the_code(open_door: DoorOpener) -> None:
    async with open_door() as door:
        account = door.new_account("grace", with_codes=True)
        tab = await door.tab("/sign-in")
        await sign_in(tab, account)
        assert "A code is needed, too" in await tab.text()
        assert list(await tab.owner.cookies()) == ["__Host-c8y-sign-in"]
        await sign_in(tab, account, Code="000000")
        assert "The code is wrong or too old" in await tab.text()
        await sign_in(tab, account, Code=code_of(account))
        assert await tab.url() == f"{door.url}/"
        await _hears(door, tab)


@simulated
async def test_a_wrong_password_and_an_unknown_user_look_the_same(open_door: DoorOpener) -> None:
    async with open_door() as door:
        account = door.new_account("ada")
        tab = await door.tab("/sign-in")
        await sign_in(tab, account, password="wrong")
        wrong = await tab.text()
        await sign_in(tab, replace(account, user="nobody"))
        assert await tab.text() == wrong
        assert "Wrong user name or password" in wrong
        assert list(await tab.owner.cookies()) == ["__Host-c8y-sign-in"]


@simulated
async def test_who_has_to_set_up_a_second_factor_is_told_where(open_door: DoorOpener) -> None:
    async with open_door() as door:
        tab = await door.tab("/sign-in")
        await sign_in(tab, door.new_account("linus", needs_setup=True))
        assert "Set up two-factor authentication first" in await tab.text()
        link = await tab.evaluate("document.querySelector('#problem a').href")
        assert link == f"{door.origin.url}/"


@simulated
async def test_signing_in_and_out_needs_no_script(open_door: DoorOpener) -> None:
    async with open_door() as door:
        account = door.new_account("grace", with_codes=True)
        tab = await door.tab("/sign-in", javaScriptEnabled=False)
        await sign_in(tab, account)
        await sign_in(tab, account, Code=code_of(account))
        assert await tab.url() == f"{door.url}/"
        assert "__Host-c8y-session" in await tab.owner.cookies()
        await tab.click("link", "Account")
        assert "as grace in tenant t0815" in await tab.text()
        await tab.click("button", "Sign out")
        assert "You are signed out" in await tab.text()
        assert list(await tab.owner.cookies()) == ["__Host-c8y-device"]


@simulated
async def test_cookies_are_for_this_host_and_for_nobody_elses_pages(open_door: DoorOpener) -> None:
    async with open_door() as door:
        account = door.new_account("ada")
        tab = await door.tab("/sign-in")
        [form] = (await tab.owner.cookies()).values()
        expected = Cookie("__Host-c8y-sign-in", form.value, HOST, "/", http_only=True, secure=True, same_site="Strict")
        assert form == expected
        await sign_in(tab, account)
        cookies = await tab.owner.cookies()
        assert sorted(cookies) == ["XSRF-TOKEN", "__Host-c8y-device", "__Host-c8y-session"]
        for name, cookie in cookies.items():
            is_for_scripts = name == "XSRF-TOKEN"
            assert cookie == Cookie(
                name, cookie.value, HOST, "/", not is_for_scripts, secure=True, same_site="Strict", lasts=True
            )
        xsrf_token = cookies["XSRF-TOKEN"].value
        assert await tab.evaluate("document.cookie") == f"XSRF-TOKEN={xsrf_token}"


# Being signed in ------------------------------------------------------------------------------------------------------


@each_transport
async def test_who_signs_in_gets_notifications_and_nothing_of_the_platforms_session(
    open_door: DoorOpener, transport: Transport, evidence: Evidence
) -> None:
    async with open_door() as door:
        tab = await door.signed_in(door.new_account("ada"))
        client = await tab.open_session(transport=transport)
        await client.start(CHANNEL)
        await door.origin.publish(CHANNEL, 0, 10)
        await client.receive(CHANNEL, 0, 10)
        assert await tab.evaluate("current_user()") == "ada"
        told = await tab.evaluate("fetch('/session').then((answer) => answer.json())")
        assert (told["user"], told["tenant"]) == ("ada", "t0815")
        cookies = await tab.owner.cookies()
        assert told["csrfToken"] == cookies["XSRF-TOKEN"].value
        stored = "JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])"
        found = "".join(
            [await tab.owner.seen(), await tab.evaluate(stored), *(each.value for each in cookies.values())]
        )
        assert len(door.origin.simulator.logins.tokens) == 1
        assert [secret for secret in door.origin.secrets() if secret.decode() in found] == []
        await client.disconnect()
        assert {key[:2] for key in await door.stage.handshakes()} == {(transport, "session")}
    # The same is looked for wherever the proxy says anything, which would not find it if it were not recorded.
    assert any(b"XSRF-TOKEN=" in what for where, what in evidence.given if where.startswith("browser"))


@simulated
@each_transport
async def test_a_page_that_is_loaded_again_goes_on(open_door: DoorOpener, transport: Transport) -> None:
    async with open_door() as door:
        tab = await door.signed_in(door.new_account("ada"))
        await _hears(door, tab, transport)
        await tab.reload()
        await _hears(door, tab, transport)
        assert door.origin.simulator.logins.asked == 1


@simulated
async def test_signing_out_in_one_tab_ends_the_connections_of_the_other_within_a_second(open_door: DoorOpener) -> None:
    async with open_door() as door:
        ada, grace = door.new_account("ada"), door.new_account("grace")
        one, bystander = await door.signed_in(ada), await door.signed_in(grace)
        other = await one.owner.tab(f"{door.url}/")
        polling = await one.owner.tab(f"{door.url}/")
        await (await polling.open_session(transport="long-polling")).start(CHANNEL)
        for tab in (one, other, bystander):
            await (await tab.open_session()).start(CHANNEL)
        await one.goto(f"{door.url}/sign-in")
        await one.click("button", "Sign out")
        async with asyncio.timeout(1):
            assert await other.sockets_closed() == 1
            endings = [await tab.client.next("ended") for tab in (other, polling)]
        assert {str(ended.error).partition(",")[0] for ended in endings} == {"403::Signed out"}
        await polling.client.gave_up()
        await other.client.gave_up()
        await door.origin.publish(CHANNEL, 0, 1)
        await bystander.client.receive(CHANNEL, 0, 1)
        assert door.origin.simulator.logins.live(ada.owner) == 0
        assert await other.evaluate("fetch('/session').then((answer) => answer.status)") == 401


@simulated
async def test_a_token_is_renewed_while_only_a_socket_is_there(open_door: DoorOpener) -> None:
    async with open_door() as door:
        logins = door.origin.simulator.logins
        logins.rules = replace(logins.rules, token_seconds=4, renewal_seconds=1)
        tab = await door.signed_in(door.new_account("ada"))
        client = await tab.open_session()
        await client.start(CHANNEL)
        [first] = logins.tokens
        await door.origin.simulator.until(lambda: len(logins.tokens) > 2 and time.time() > first.expires, seconds=20)
        await door.origin.publish(CHANNEL, 0, 1)
        await client.receive(CHANNEL, 0, 1)
        newcomer = await tab.owner.tab(f"{door.url}/")
        await _hears(door, newcomer)
        assert logins.asked == 1


@simulated
async def test_a_session_outlives_the_proxy(open_door: DoorOpener) -> None:
    async with open_door() as door:
        tab = await door.signed_in(door.new_account("ada"))
        client = await tab.open_session()
        await client.start(CHANNEL)
        await door.stage.restart()
        await client.goes_on(lambda number: door.origin.publish(CHANNEL, number, 1), 0)
        assert door.origin.simulator.logins.asked == 1


# Pages of others ------------------------------------------------------------------------------------------------------


@simulated
async def test_pages_of_others_get_nowhere_with_the_cookies_of_who_is_signed_in(open_door: DoorOpener) -> None:
    async with open_door() as door:
        account = door.new_account("ada")
        home = await door.signed_in(account)
        await (await home.open_session()).start(CHANNEL)
        for where, stranger in door.strangers.items():
            page = await home.owner.tab(f"{stranger}/")
            for what, script in _attacks(door.url, account.password).items():
                assert await page.evaluate(script) == "failed", (where, what)
            for path, fields in {"sign-out": {}, "sign-in": {"user": "ada", "password": account.password}}.items():
                await page.submit(_form(f"{door.url}/{path}", fields))
                assert await page.url() == f"{door.url}/{path}"
                assert "signed out" not in await page.text()
                await page.goto(f"{stranger}/")
            await page.close()
        await door.origin.publish(CHANNEL, 0, 1)
        await home.client.receive(CHANNEL, 0, 1)
        assert await home.evaluate("current_user()") == "ada"
        assert door.origin.simulator.logins.asked == 1


async def test_a_listed_page_of_another_host_gets_notifications_where_the_proxy_ends_tls(open_door: DoorOpener) -> None:
    async with open_door(tls_ends_at="proxy") as door:
        account = door.new_account("ada")
        for transport in TRANSPORTS:
            tab = await door.signed_in(account, home=f"{door.application_url}/")
            client = await tab.open_session(door.url, transport)
            await client.start(CHANNEL)
            await door.origin.publish(CHANNEL, 0, 10)
            await client.receive(CHANNEL, 0, 10)
            # Its own cookies are not those of the front door: what is to be shown is told by that.
            assert await tab.evaluate("document.cookie") == ""
            assert await tab.evaluate(_WHO_AND_OUT.replace("DOOR", door.url)) == ["ada", 204]
            async with asyncio.timeout(1):
                await tab.sockets_closed()
        assert {key[1] for key in await door.stage.handshakes()} == {"session"}


# Sessions of the browser's own ----------------------------------------------------------------------------------------


@each_transport
async def test_the_official_client_logs_in_and_out_where_the_session_is_the_browsers_own(
    open_door: DoorOpener, transport: Transport
) -> None:
    async with open_door(mode="cookie") as door:
        # CometD's server tells no more of a User-Agent than stands before its first comma.
        logins = door.origin.simulator.logins
        logins.rules = replace(logins.rules, validates_user_agent=False)
        account = door.new_account("ada")
        tab = await door.tab()
        await _log_in(tab, account)
        cookies = await tab.owner.cookies()
        assert sorted(cookies) == ["XSRF-TOKEN", "__Host-authorization", "__Host-c8y-device"]
        for name, cookie in cookies.items():
            same_site = "Strict" if name == "__Host-c8y-device" else "Lax"
            is_for_scripts = name == "XSRF-TOKEN"
            assert cookie == Cookie(
                name, cookie.value, HOST, "/", not is_for_scripts, secure=True, same_site=same_site, lasts=True
            )
        [token] = logins.tokens
        assert (cookies["__Host-authorization"].value, cookies["XSRF-TOKEN"].value) == (token.value, token.xsrf_token)
        assert await tab.evaluate("document.cookie") == f"XSRF-TOKEN={token.xsrf_token}"
        assert await tab.evaluate("current_user()") == "ada"

        await (await tab.open_session(transport=transport)).start(CHANNEL)
        other = await tab.owner.tab(f"{door.url}/")
        await (await other.open_session()).start(CHANNEL)
        await door.origin.publish(CHANNEL, 0, 10)
        for each in (tab, other):
            await each.client.receive(CHANNEL, 0, 10)

        assert await tab.evaluate("log_out()") == 200
        async with asyncio.timeout(1):
            await other.sockets_closed()
            if transport == "long-polling":
                await tab.client.next("ended")
            else:
                await tab.sockets_closed()
        assert not {"XSRF-TOKEN", "__Host-authorization"} & (await tab.owner.cookies()).keys()
        assert door.origin.simulator.logins.live() == 0
        assert {key[:2] for key in await door.stage.handshakes()} == {(transport, "cookie"), ("websocket", "cookie")}


@simulated
async def test_the_browser_keeps_what_the_platform_renews_on_either_transport(open_door: DoorOpener) -> None:
    async with open_door(mode="cookie") as door:
        logins = door.origin.simulator.logins
        tab = await door.tab()
        await _log_in(tab, door.new_account("ada"))
        [first] = logins.tokens
        client = await tab.open_session(transport="long-polling")
        await client.start(CHANNEL)
        number = 0
        while len(logins.tokens) == 1:  # each poll that is made after two seconds may be the one
            await door.origin.publish(CHANNEL, number, 1)
            await client.receive(CHANNEL, number, 1)
            number += 1
        await client.disconnect()
        by_poll = (await tab.owner.cookies())["__Host-authorization"].value
        assert by_poll == logins.tokens[-1].value != first.value

        renewed = logins.tokens[-1]
        logins.rules = replace(logins.rules, renews_lone_cookies=True)
        while len(logins.tokens) == 2:
            socket = await tab.owner.tab(f"{door.url}/")
            await _hears(door, socket)
            await socket.close()
        by_upgrade = (await tab.owner.cookies())["__Host-authorization"]
        assert by_upgrade.value == logins.tokens[-1].value != renewed.value
        assert by_upgrade.secure
        assert by_upgrade.http_only
        assert logins.asked == 1


@simulated
async def test_an_xsrf_token_that_is_not_that_of_the_session_is_refused(open_door: DoorOpener) -> None:
    async with open_door(mode="cookie") as door:
        tab = await door.tab()
        await _log_in(tab, door.new_account("ada"))
        await tab.owner.forge("XSRF-TOKEN", "not-that-of-the-session", door.url)
        client = await tab.open_session(transport="long-polling")
        await client.attempt(CHANNEL)
        refused = await client.answered()
        assert not refused.successful
        assert "X-XSRF-TOKEN is not that of the session" in str(refused.error)
        assert await tab.evaluate("log_out()") == 401
        assert door.origin.simulator.logins.live() == 1


@simulated
async def test_pages_of_others_get_nowhere_with_the_browsers_own_session(open_door: DoorOpener) -> None:
    async with open_door(mode="cookie") as door:
        account = door.new_account("ada")
        home = await door.tab()
        await _log_in(home, account)
        await (await home.open_session()).start(CHANNEL)
        for where, stranger in door.strangers.items():
            page = await home.owner.tab(f"{stranger}/")
            for what, script in _attacks(door.url, account.password).items():
                assert await page.evaluate(script) == "failed", (where, what)
            await page.close()
        await door.origin.publish(CHANNEL, 0, 1)
        await home.client.receive(CHANNEL, 0, 1)
        assert door.origin.simulator.logins.live() == 1


# Single sign-on -------------------------------------------------------------------------------------------------------


@simulated
@pytest.mark.parametrize("mode", ["session", "cookie"])
async def test_who_signs_on_at_the_identity_provider_gets_notifications(open_door: DoorOpener, mode: Mode) -> None:
    async with open_door(mode=mode) as door, signing_on(door) as provider:
        person = await door.people.person()
        if mode == "session":
            tab = await person.tab(f"{door.url}/sign-in")
            await tab.click("link", _PROVIDER)
        else:
            tab = await person.tab(f"{door.url}/")
            await tab.submit(f"location.href = '/tenant/oauth?tenant_id={TENANT}&response_type=code'")
        assert (await tab.url()).startswith(f"{provider.url}/authorize")
        await tab.fill(User="guest", Password=provider.users["guest"])
        await tab.click("button", "Log in")
        assert await tab.url() == f"{door.url}/"
        own = "__Host-c8y-session" if mode == "session" else "__Host-authorization"
        assert {own, "XSRF-TOKEN"} <= (await person.cookies()).keys()
        assert await tab.evaluate("current_user()") == "guest"
        for transport in TRANSPORTS:
            page = await person.tab(f"{door.url}/")
            await _hears(door, page, transport)


@simulated
@pytest.mark.parametrize("mode", ["session", "cookie"])
async def test_a_sign_on_that_was_begun_elsewhere_is_not_ended_here(open_door: DoorOpener, mode: Mode) -> None:
    async with open_door(mode=mode) as door, signing_on(door) as provider:
        attacker = await (await door.people.person()).tab(f"{door.url}/")
        begin = f"/tenant/oauth?tenant_id={TENANT}&response_type=code"
        await attacker.submit(f"location.href = {_js(begin)}")
        # What the provider sends the attacker home with is what they have somebody else open.
        lure = await _signed_on(provider, await attacker.evaluate("document.querySelector('[name=request]').value"))
        assert lure.startswith(f"{door.url}/tenant/oauth?")
        for starts_too in (False, True):
            victim = await (await door.people.person()).tab(f"{door.url}/")
            if starts_too:
                await victim.submit(f"location.href = {_js(begin)}")
            assert await victim.goto(lure) == 403
            assert not {"__Host-c8y-session", "__Host-authorization"} & (await victim.owner.cookies()).keys()


@asynccontextmanager
async def signing_on(door: FrontDoor) -> AsyncIterator[IdentityProvider]:
    """An identity provider, by which people of the tenant sign on."""
    password = f"canary-{secrets.token_hex(16)}"
    door.evidence.secrets.append(password.encode())
    back = f"{door.url}/tenant/oauth"
    async with IdentityProvider(users={"guest": password}, redirect_uris=[back]) as provider:
        door.origin.simulator.sso = SingleSignOn(
            issuer=provider.url,
            client_id=provider.client_id,
            client_secret=provider.client_secret,
            redirect_uri=back,
            button_name=_PROVIDER,
        )
        yield provider


_PROVIDER = "Log in with the company"


async def _signed_on(provider: IdentityProvider, request: str) -> str:
    """Where the provider sends a browser that logged in for this request."""
    fields = {"request": request, "username": "guest", "password": provider.users["guest"], "answer": "log-in"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{provider.url}/authorize", data=fields, allow_redirects=False) as answer,
    ):
        return answer.headers["Location"]


async def _log_in(tab: Tab, account: Account) -> None:
    """Log in as applications do, by the official client."""
    credentials = {"user": account.user, "password": account.password, "tenant": account.tenant}
    await tab.evaluate(f"log_in({_js(credentials)})")


_WHO_AND_OUT = """
(async () => {
  const credentials = "include";
  const user = await (await fetch("DOOR/user/currentUser", { credentials })).json();
  const { csrfToken } = await (await fetch("DOOR/session", { credentials })).json();
  const headers = { "X-XSRF-TOKEN": csrfToken };
  const out = await fetch("DOOR/sign-out", { method: "POST", credentials, headers });
  return [user.userName, out.status];
})()
"""


def _attacks(url: str, password: str) -> dict[str, str]:
    """What a page of somebody else may try by script."""
    realtime = f"{url}/notification/realtime"
    handshake = [{"channel": "/meta/handshake", "version": "1.0", "supportedConnectionTypes": ["long-polling"]}]
    signing_in = {"user": "ada", "password": password}
    tried: dict[str, tuple[str, dict[str, object]]] = {
        "read who is signed in": (f"{url}/session", {}),
        "read of the platform": (f"{url}/user/currentUser", {}),
        "sign in": (f"{url}/sign-in", _posted(signing_in, "application/json")),
        "sign in by a simple request": (f"{url}/sign-in", _posted(signing_in, "text/plain")),
        "sign out": (f"{url}/sign-out", _posted({}, "application/json")),
        "sign out by a simple request": (f"{url}/sign-out", _posted({}, "text/plain")),
        "log out": (f"{url}/user/logout", _posted({}, "application/json")),
        "real-time": (realtime, _posted(handshake, "application/json")),
        "real-time by a simple request": (realtime, _posted(handshake, "text/plain")),
    }
    scripts = {
        what: f"fetch({_js(address)}, {_js({'credentials': 'include', **options})})"
        f".then(({{ status }}) => 'answered ' + status, () => 'failed')"
        for what, (address, options) in tried.items()
    }
    scripts["a socket"] = (
        f"new Promise((done) => {{ const it = new WebSocket({_js(realtime.replace('https', 'wss'))});"
        " it.onopen = () => done('opened'); it.onerror = () => done('failed'); })"
    )
    return scripts


def _posted(body: object, kind: str) -> dict[str, object]:
    return {"method": "POST", "headers": {"Content-Type": kind}, "body": _js(body)}


def _form(address: str, fields: Mapping[str, str]) -> str:
    """A script that sends a form, as any page may."""
    return f"""
        const form = Object.assign(document.createElement("form"), {{ method: "post", action: {_js(address)} }});
        for (const [name, value] of Object.entries({_js(fields)}))
          form.append(Object.assign(document.createElement("input"), {{ name, value }}));
        document.body.append(form);
        form.submit();
    """


def _js(value: object) -> str:
    return msgspec.json.encode(value).decode()


async def _hears(door: FrontDoor, tab: Tab, transport: Transport = "websocket") -> None:
    """Open a session on its page, hear something by it, and end it."""
    client = await tab.open_session(transport=transport)
    await client.start(CHANNEL)
    await door.origin.publish(CHANNEL, 0, 1)
    await client.receive(CHANNEL, 0, 1)
    await client.disconnect()
