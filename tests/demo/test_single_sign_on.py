"""People sign on at an identity provider, and come back to the platform with a code that is good once."""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from html import unescape
from typing import Any

import jwt
import pytest
from aiohttp import web
from yarl import URL

from proxy.demo.accounts import User
from proxy.demo.identity_provider import IdentityProvider
from proxy.demo.simulator import Simulator, SingleSignOn
from tests.demo.caller import Answered, Caller, bearer
from tests.demo.clock import Clock


APPLICATION = "https://app.example.com/"
INIT = "/tenant/oauth?tenant_id=t0815&response_type=code"
BAD = "Invalid credentials! : Bad credentials"


@pytest.fixture
async def provider(clock: Clock) -> AsyncIterator[IdentityProvider]:
    users = {"ann": "ann's", "<b>": "bold"}
    async with IdentityProvider(users=users, redirect_uris=[APPLICATION], clock=clock) as provider:
        yield provider


@pytest.fixture
async def simulator(clock: Clock, provider: IdentityProvider) -> AsyncIterator[Simulator]:
    sso = SingleSignOn(
        issuer=provider.url,
        client_id=provider.client_id,
        client_secret=provider.client_secret,
        redirect_uri=APPLICATION,
    )
    async with Simulator(clock=clock, sso=sso) as simulator:
        yield simulator


def settings_of(simulator: Simulator) -> SingleSignOn:
    assert simulator.sso is not None
    return simulator.sso


@dataclass(frozen=True, slots=True)
class Browser:
    """Goes where it is sent, as far as a test says."""

    caller: Caller
    provider: IdentityProvider

    async def sent(self, path: str = INIT) -> str:
        """Where the platform sends who begins to sign on."""
        answered = await self.caller.call("GET", path, allow_redirects=False)
        assert answered.status == 302
        return answered.headers["Location"]

    async def page(self, location: str) -> str:
        async with self.caller.http.get(location) as response:
            assert (response.status, response.content_type) == (200, "text/html")
            return await response.text()

    async def answer(self, page: str, **fields: str) -> tuple[int, str, str]:
        """Answer the login page: a status, where that leads, and what it shows."""
        found = re.search(r'name="request" value="([^"]+)"', page)
        assert found is not None
        form = {"request": unescape(found[1]), "username": "ann", "password": "ann's"} | fields
        url = f"{self.provider.url}/authorize"
        async with self.caller.http.post(url, data=form, allow_redirects=False) as response:
            return response.status, response.headers.get("Location", ""), await response.text()

    async def back(self, path: str = INIT) -> Mapping[str, str]:
        """Log in, and come back with a code and a state."""
        status, location, _ = await self.answer(await self.page(await self.sent(path)))
        assert (status, str(URL(location).with_query(None))) == (302, APPLICATION)
        return URL(location).query

    async def redeem(self, code: str, path: str = "/tenant/oauth?tenant_id=t0815", **fields: str) -> Answered:
        form = {"grant_type": "AUTHORIZATION_CODE", "code": code} | fields
        return await self.caller.call("POST", path, data=form)


@pytest.fixture
def browser(caller: Caller, provider: IdentityProvider) -> Browser:
    return Browser(caller, provider)


def assert_denied(answered: Answered) -> None:
    assert (answered.status, len(answered.cookies)) == (401, 0)
    assert set(answered.body) == {"error", "message", "info"}
    assert (answered.body["error"], answered.message) == ("security/Unauthorized", BAD)


# -- the options -------------------------------------------------------------------------------------------------


async def test_login_options_list_single_sign_on_where_the_tenant_has_it(caller: Caller, simulator: Simulator) -> None:
    *_, option = (await caller.get("/tenant/loginOptions")).body["loginOptions"]
    assert option == {
        "self": f"{simulator.url}/tenant/loginOptions/OAUTH2",
        "id": "OAUTH2",
        "type": "OAUTH2",
        "grantType": "AUTHORIZATION_CODE",
        "userManagementSource": "REMOTE",
        "providerName": "Simulated identity provider",
        "buttonName": "Log in with the simulated identity provider",
        "visibleOnLoginPage": True,
        "initRequest": simulator.url + INIT,
    }
    simulator.sso = replace(settings_of(simulator), is_visible=False, flow_controlled_by_ui=True)
    *_, option = (await caller.get("/tenant/loginOptions")).body["loginOptions"]
    assert (option["visibleOnLoginPage"], option["flowControlledByUI"]) == (False, True)


async def test_tenant_without_single_sign_on_lists_none_and_serves_none(caller: Caller, simulator: Simulator) -> None:
    simulator.sso = None
    options = (await caller.get("/tenant/loginOptions")).body["loginOptions"]
    assert [option["type"] for option in options] == ["OAUTH2_INTERNAL", "BASIC"]
    assert (await caller.get(INIT)).status == 400
    assert (await caller.log_in({"grant_type": "AUTHORIZATION_CODE", "code": "x"})).status == 400


# -- the way there and back --------------------------------------------------------------------------------------


async def test_platform_sends_a_browser_to_the_provider_each_time_with_a_new_state_and_nonce(
    browser: Browser, provider: IdentityProvider
) -> None:
    first, second = URL(await browser.sent()), URL(await browser.sent())
    assert str(first.with_query(None)) == f"{provider.url}/authorize"
    assert set(first.query) == {"client_id", "redirect_uri", "response_type", "scope", "state", "nonce"}
    assert first.query["client_id"] == provider.client_id
    assert (first.query["redirect_uri"], first.query["response_type"]) == (APPLICATION, "code")
    assert "openid" in first.query["scope"].split()
    assert len({url.query[name] for url in (first, second) for name in ("state", "nonce")}) == 4


async def test_code_gets_the_pair_of_a_session_of_who_logged_in(
    browser: Browser, caller: Caller, provider: IdentityProvider, simulator: Simulator
) -> None:
    location = await browser.sent()
    _, back, _ = await browser.answer(await browser.page(location))
    returned = URL(back).query
    assert set(returned) == {"code", "state"}
    assert returned["state"] == URL(location).query["state"]
    answered = await browser.redeem(returned["code"])
    assert (answered.status, answered.body) == (200, None)
    pair = answered.pair
    assert (pair.claims["sub"], pair.claims["ten"], pair.claims["xsrfToken"]) == ("ann", "t0815", pair.xsrf_token)
    assert answered.cookies["authorization"]["httponly"]
    assert (await caller.get(headers=pair.headers)).body["userName"] == "ann"
    assert await caller.shake({"xsrfToken": pair.xsrf_token}, pair.cookie)
    assert (provider.pages, provider.asked, provider.redeemed) == (1, 1, 1)
    assert (simulator.sign_ons.begun, simulator.sign_ons.finished) == (1, 1)
    assert (simulator.logins.asked, simulator.logins.succeeded) == (1, 1)
    assert (await caller.call("POST", "/user/logout", pair.headers)).status == 200
    assert (await caller.get(headers=pair.headers)).status == 401


@pytest.mark.parametrize("grant", ["AUTHORIZATION_CODE", "authorization_code"])
async def test_code_may_be_in_the_query(browser: Browser, caller: Caller, grant: str) -> None:
    code = (await browser.back())["code"]
    answered = await caller.call("POST", f"/tenant/oauth?tenant_id=t0815&grant_type={grant}&code={code}")
    assert answered.pair.claims["sub"] == "ann"


async def test_code_gets_a_token_in_the_body_where_that_is_asked_for(browser: Browser, caller: Caller) -> None:
    answered = await browser.redeem((await browser.back())["code"], "/tenant/oauth/token")
    assert (answered.status, len(answered.cookies)) == (200, 0)
    assert (await caller.get(headers=bearer(answered.body["access_token"]))).body["userName"] == "ann"


async def test_sessions_of_single_sign_on_count_like_others(browser: Browser, simulator: Simulator) -> None:
    simulator.logins.rules = replace(simulator.logins.rules, parallel=1)
    pairs = [(await browser.redeem((await browser.back())["code"])).pair for _ in range(2)]
    assert simulator.logins.live(User("t0815", "ann")) == 1
    assert (await browser.caller.get(headers=pairs[0].headers)).status == 401
    assert (await browser.caller.get(headers=pairs[1].headers)).status == 200


async def test_user_name_arrives_as_the_provider_has_it(browser: Browser) -> None:
    page = await browser.page(await browser.sent())
    _, location, _ = await browser.answer(page, username="<b>", password="bold")
    assert (await browser.redeem(URL(location).query["code"])).pair.claims["sub"] == "<b>"


async def test_redirect_uri_may_change_at_any_time(
    browser: Browser, provider: IdentityProvider, simulator: Simulator
) -> None:
    moved = "https://localhost:8443/after?kept=1"
    simulator.sso = replace(settings_of(simulator), redirect_uri=moved)
    provider.redirect_uris = [moved]
    _, location, _ = await browser.answer(await browser.page(await browser.sent()))
    assert location.startswith(f"{moved}&code=")
    assert (await browser.redeem(URL(location).query["code"])).status == 200


# -- what is good once, and for a time ---------------------------------------------------------------------------


async def test_code_is_good_once(browser: Browser, provider: IdentityProvider, simulator: Simulator) -> None:
    code = (await browser.back())["code"]
    assert (await browser.redeem(code)).status == 200
    assert_denied(await browser.redeem(code))
    assert simulator.logins.live() == 1
    assert (provider.asked, provider.redeemed) == (2, 1)  # so it was the provider, too, that denied


@pytest.mark.parametrize(("age", "status"), [(59, 200), (60, 401)])
async def test_code_expires_after_a_minute(browser: Browser, clock: Clock, *, age: int, status: int) -> None:
    code = (await browser.back())["code"]
    clock.advance(age)
    assert (await browser.redeem(code)).status == status


async def test_state_is_good_once(browser: Browser, simulator: Simulator) -> None:
    first, second = await browser.back(), await browser.back()
    assert (await browser.redeem(first["code"], state=first["state"])).status == 200
    assert_denied(await browser.redeem(second["code"], state=first["state"]))
    assert (await browser.redeem(second["code"], state=second["state"])).status == 200
    assert simulator.logins.live() == 2


async def test_state_belongs_to_its_code(browser: Browser, simulator: Simulator) -> None:
    first, second = await browser.back(), await browser.back()
    assert_denied(await browser.redeem(first["code"], state=second["state"]))
    assert simulator.logins.live() == 0


@pytest.mark.parametrize("state", ["", "guessed"])
async def test_unknown_state_is_denied_and_the_provider_is_not_asked(
    browser: Browser, provider: IdentityProvider, state: str
) -> None:
    assert_denied(await browser.redeem((await browser.back())["code"], state=state))
    assert provider.asked == 0


async def test_sign_on_that_takes_too_long_has_ended(browser: Browser, clock: Clock) -> None:
    location = await browser.sent()
    clock.advance(599)
    _, back, _ = await browser.answer(await browser.page(location))
    clock.advance(1)
    assert_denied(await browser.redeem(URL(back).query["code"]))


async def test_code_for_a_sign_on_that_the_platform_did_not_begin_is_denied(browser: Browser) -> None:
    location = URL(await browser.sent())
    for begun in (location.update_query(nonce="mine"), location.without_query_params("nonce")):
        _, back, _ = await browser.answer(await browser.page(str(begun)))
        assert_denied(await browser.redeem(URL(back).query["code"]))


@pytest.mark.parametrize("fields", [{"code": ""}, {"code": "guessed"}])
async def test_unknown_code_is_denied(browser: Browser, fields: dict[str, str]) -> None:
    assert_denied(await browser.redeem(**fields))


@pytest.mark.parametrize("path", ["/tenant/oauth?tenant_id=t2", "/tenant/oauth/token?tenant_id=t2"])
async def test_code_is_good_in_its_tenant_only(browser: Browser, path: str) -> None:
    code = (await browser.back())["code"]
    assert_denied(await browser.redeem(code, path))
    assert (await browser.redeem(code)).status == 200


async def test_another_tenant_sends_nobody_to_the_provider(caller: Caller) -> None:
    assert_denied(await caller.get("/tenant/oauth?tenant_id=t2&response_type=code"))


@pytest.mark.parametrize("path", ["/tenant/oauth", "/tenant/oauth?response_type=token"])
async def test_anything_else_is_a_bad_request(caller: Caller, path: str) -> None:
    assert (await caller.get(path)).status == 400


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"client_secret": "x" * 32}, id="secret"),
        pytest.param({"client_id": "somebody else"}, id="client"),
        pytest.param({"redirect_uri": "https://elsewhere.example.com/"}, id="redirect URI"),
    ],
)
async def test_wrong_settings_redeem_nothing(
    browser: Browser, provider: IdentityProvider, simulator: Simulator, wrong: dict[str, Any]
) -> None:
    code, right = (await browser.back())["code"], settings_of(simulator)
    simulator.sso = replace(right, **wrong)
    assert_denied(await browser.redeem(code))
    assert (provider.asked, provider.redeemed) == (1, 0)


# -- a platform that takes the browser back itself ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://app.example.com/cockpit?x=1", "https://app.example.com/cockpit?x=1"),
        ("https://elsewhere.example.com/", "/"),
        ("http://app.example.com/", "/"),
        ("//elsewhere.example.com/", "/"),
        ("/cockpit", "/"),
        ("", "/"),
    ],
)
async def test_browser_that_comes_back_to_the_platform_goes_on_where_it_came_from(
    browser: Browser, caller: Caller, origin: str, expected: str
) -> None:
    path = str(URL(INIT).update_query(originUri=origin))
    back = URL("/tenant/oauth").with_query(dict(await browser.back(path)))
    answered = await caller.call("GET", str(back), allow_redirects=False)
    assert (answered.status, answered.headers["Location"]) == (302, expected)
    assert (await caller.get(headers=answered.pair.headers)).body["userName"] == "ann"
    assert_denied(await caller.call("GET", str(back), allow_redirects=False))


async def test_application_that_controls_the_flow_is_told_and_not_redirected(
    browser: Browser, caller: Caller, simulator: Simulator
) -> None:
    simulator.sso = replace(settings_of(simulator), flow_controlled_by_ui=True)
    begun = await caller.get(INIT)
    assert (begun.status, set(begun.body)) == (200, {"redirectTo"})
    _, location, _ = await browser.answer(await browser.page(begun.body["redirectTo"]))
    answered = await caller.get(f"/tenant/oauth?code={URL(location).query['code']}")
    assert (answered.status, answered.pair.claims["sub"]) == (200, "ann")


# -- the provider ------------------------------------------------------------------------------------------------


async def test_wrong_password_shows_the_page_again_and_the_right_one_still_leads_back(browser: Browser) -> None:
    page = await browser.page(await browser.sent())
    for wrong in ({"password": "wrong"}, {"username": "nobody"}, {"username": "", "password": ""}):
        status, location, page = await browser.answer(page, **wrong)
        assert (status, location) == (401, "")
        assert "User or password is wrong." in page
    status, location, _ = await browser.answer(page)
    assert (status, location.startswith(APPLICATION)) == (302, True)


async def test_login_page_is_good_for_one_login(browser: Browser) -> None:
    page = await browser.page(await browser.sent())
    assert (await browser.answer(page))[0] == 302
    assert (await browser.answer(page))[:2] == (400, "")


async def test_who_declines_comes_back_with_an_error(browser: Browser, caller: Caller) -> None:
    begun = await browser.sent()
    page = await browser.page(begun)
    _, location, _ = await browser.answer(page, answer="decline")
    assert URL(location).query == {"error": "access_denied", "state": URL(begun).query["state"]}
    assert (await browser.answer(page))[0] == 400
    assert_denied(await caller.get(f"/tenant/oauth?{URL(location).query_string}"))


@pytest.mark.parametrize(
    "wrong", [{"client_id": "somebody"}, {"redirect_uri": "https://elsewhere.example.com/"}, {"redirect_uri": ""}]
)
async def test_provider_sends_nobody_where_it_does_not_know(browser: Browser, wrong: dict[str, str]) -> None:
    location = URL(await browser.sent()).update_query(wrong)
    async with browser.caller.http.get(location, allow_redirects=False) as response:
        assert (response.status, "Location" in response.headers) == (400, False)
    assert browser.provider.pages == 0


async def test_provider_knows_codes_only(browser: Browser) -> None:
    location = URL(await browser.sent()).update_query(response_type="token")
    async with browser.caller.http.get(location, allow_redirects=False) as response:
        assert URL(response.headers["Location"]).query["error"] == "unsupported_response_type"


async def test_provider_frames_no_page_and_keeps_none(browser: Browser) -> None:
    async with browser.caller.http.get(await browser.sent()) as response:
        assert response.headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("wrong", "status", "error"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "wrong"}, 401, "invalid_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"redirect_uri": "https://elsewhere.example.com/"}, 400, "invalid_grant"),
        ({"code": "wrong"}, 400, "invalid_grant"),
    ],
)
async def test_token_endpoint_says_what_is_wrong(
    browser: Browser, provider: IdentityProvider, wrong: dict[str, str], status: int, error: str
) -> None:
    right = {
        "grant_type": "authorization_code",
        "client_id": provider.client_id,
        "client_secret": provider.client_secret,
        "redirect_uri": APPLICATION,
        "code": (await browser.back())["code"],
    }
    async with browser.caller.http.post(f"{provider.url}/token", data=right | wrong) as response:
        assert (response.status, await response.json()) == (status, {"error": error})
    assert provider.redeemed == 0


async def test_provider_that_is_gone_is_a_bad_gateway(browser: Browser, provider: IdentityProvider) -> None:
    code, port = (await browser.back())["code"], provider.port
    await provider.stop()
    assert (await browser.redeem(code)).status == 502
    await provider.start(port=port)
    assert (await browser.redeem(code)).status == 200


async def test_unstarted_provider_has_no_address_and_stops_without_complaint() -> None:
    provider = IdentityProvider(users={})
    await provider.stop()
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = provider.url


@pytest.fixture
async def answering(simulator: Simulator) -> AsyncIterator[dict[str, Any]]:
    """What a provider that is not ours answers to whoever asks for a token: a body, and with which status."""
    answer: dict[str, Any] = {"body": {}, "status": 200}

    async def tell(_: web.Request) -> web.Response:
        return web.json_response(answer["body"], status=answer["status"])

    app = web.Application()
    app.router.add_post("/token", tell)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    simulator.sso = replace(settings_of(simulator), issuer=f"http://127.0.0.1:{runner.addresses[0][1]}")
    yield answer
    await runner.cleanup()


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"iss": "http://elsewhere.example.com"}, id="issuer"),
        pytest.param({"aud": "somebody else"}, id="audience"),
        pytest.param({"exp": 1_800_000_000}, id="time"),
        pytest.param({"nonce": "guessed"}, id="nonce"),
        pytest.param({"sub": None}, id="nobody"),
    ],
)
async def test_id_token_has_to_be_for_this_platform_and_this_sign_on(
    browser: Browser, clock: Clock, simulator: Simulator, answering: dict[str, Any], wrong: dict[str, Any]
) -> None:
    settings = settings_of(simulator)
    for claims, key, status in (
        (wrong, settings.client_secret, 401),
        ({}, "another secret, as long as the right one is", 401),
        ({}, settings.client_secret, 200),
    ):
        right = {
            "iss": settings.issuer,
            "aud": settings.client_id,
            "sub": "ann",
            "exp": clock.now + 1,
            "nonce": URL(await browser.sent()).query["nonce"],
        }
        answering["body"] = {"id_token": jwt.encode(right | claims, key, algorithm="HS256")}
        assert (await browser.redeem("any")).status == status


@pytest.mark.parametrize(("body", "status"), [({}, 200), ([], 500), ({"id_token": 1}, 200)])
async def test_answer_without_an_id_token_is_a_bad_gateway(
    browser: Browser, answering: dict[str, Any], body: object, status: int
) -> None:
    answering.update(body=body, status=status)
    assert (await browser.redeem("any")).status == 502


def test_settings_show_no_secret(simulator: Simulator) -> None:
    assert settings_of(simulator).client_secret not in repr(settings_of(simulator))
