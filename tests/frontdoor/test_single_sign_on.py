"""Single sign-on through the front door, in both modes: to the identity provider and back, and who comes back."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Final

import msgspec
import pytest
from yarl import URL

from proxy.demo.identity_provider import IdentityProvider
from proxy.demo.simulator import Simulator, SingleSignOn
from proxy.frontdoor.logins import SIGN_ON_COOKIE
from tests.conftest import PASSWORD, Running, handshake
from tests.frontdoor.browsing import ORIGIN, TICKET, Answered, Browser
from tests.frontdoor.calling import MODES, SESSION, Tenant, csrf, front_door, log_in, pair, tenant


PATH: Final = "/tenant/oauth"
BEGIN: Final = f"{PATH}?tenant_id=t0815&response_type=code"
EVIL: Final = "https://evil.example"
BY_LINK: Final = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
"""What a browser says that is sent somewhere by a page of another site."""

PROVIDER: Final = "https://login.example.com/authorize?client_id=c&state=s1"


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def provider() -> AsyncIterator[IdentityProvider]:
    uris = [f"{ORIGIN}{PATH}", f"{ORIGIN}/app/"]
    async with IdentityProvider(users={"ann": PASSWORD}, redirect_uris=uris) as provider:
        yield provider


@pytest.fixture
async def simulator(provider: IdentityProvider) -> AsyncIterator[Simulator]:
    sso = SingleSignOn(
        issuer=provider.url,
        client_id=provider.client_id,
        client_secret=provider.client_secret,
        redirect_uri=f"{ORIGIN}{PATH}",
    )
    async with Simulator(password=PASSWORD, sso=sso) as simulator:
        yield simulator


@pytest.fixture
async def proxied(mode: str, simulator: Simulator, tmp_path: Path) -> AsyncIterator[Running]:
    async with front_door(mode, simulator.url, tmp_path) as proxied:
        yield proxied


@dataclass(frozen=True)
class Person:
    """Somebody with a browser, who knows a password at the provider."""

    browser: Browser
    provider: IdentityProvider

    async def sent(self, path: str = BEGIN) -> str:
        """Where the front door sends who begins to sign on."""
        answered = await self.browser.get(path, **BY_LINK)
        assert answered.status == 302
        return answered.headers["Location"]

    async def back(self, location: str, **fields: str) -> URL:
        """Where the provider sends who logs in there, or does as `fields` say."""
        http = self.browser.proxied.client
        async with http.get(location) as shown:
            found = re.search(r'name="request" value="([^"]+)"', await shown.text())
        assert found is not None
        form = {"request": unescape(found[1]), "username": "ann", "password": PASSWORD} | fields
        async with http.post(f"{self.provider.url}/authorize", data=form, allow_redirects=False) as answered:
            return URL(answered.headers["Location"])

    async def come_back(self, url: URL) -> Answered:
        """Come back from the provider: without a cookie that only goes with requests of the same site."""
        keeps = {name: value for name, value in self.browser.cookies.items() if self._goes_along(name)}
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in keeps.items())}
        return await self.browser.get(url.raw_path_qs, **BY_LINK, **cookie)

    def _goes_along(self, name: str) -> bool:
        known = self.browser.attributes.get(name)
        return known is None or known["samesite"] != "Strict"


@pytest.fixture
def person(proxied: Running, provider: IdentityProvider) -> Person:
    return Person(Browser(proxied), provider)


async def is_signed_in(browser: Browser) -> bool:
    return (await browser.get("/user/currentUser", **csrf(browser))).status == 200


def is_marked(browser: Browser) -> bool:
    return SIGN_ON_COOKIE in browser.cookies


# There and back -------------------------------------------------------------------------------------------------------


async def test_browser_is_sent_to_the_provider_and_comes_back_signed_in(
    mode: str, person: Person, simulator: Simulator, provider: IdentityProvider
) -> None:
    browser = person.browser
    location = await person.sent()
    assert URL(location).origin() == URL(provider.url)
    kept = browser.attributes[SIGN_ON_COOKIE]
    assert (kept["samesite"], kept["httponly"], kept["max-age"]) == ("Lax", True, "600")
    assert URL(location).query["state"] not in browser.cookies[SIGN_ON_COOKIE]
    back = await person.back(location)
    assert back.path == PATH
    answered = await person.come_back(back)
    assert (answered.status, answered.headers["Location"]) == (302, "/")
    assert not is_marked(browser)
    assert (TICKET in browser.cookies) == (mode == SESSION)
    assert await is_signed_in(browser)
    async with browser.proxied.post([handshake()], headers=browser.headers | csrf(browser)) as response:
        assert (await response.json())[0]["successful"]
    if mode == SESSION:
        [issued] = simulator.logins.tokens
        assert issued.value not in str(browser.cookies)
        assert (await browser.get("/session")).told["user"] == "ann"


async def test_application_that_controls_the_flow_is_told_where_to_go_and_hands_in_the_code(
    mode: str, person: Person, simulator: Simulator
) -> None:
    assert simulator.sso is not None
    simulator.sso = replace(simulator.sso, flow_controlled_by_ui=True, redirect_uri=f"{ORIGIN}/app/")
    browser, script = person.browser, {"Sec-Fetch-Mode": "cors"}
    told = await browser.get(BEGIN, **script)
    assert (told.status, "Location" in told.headers) == (200, False)
    back = await person.back(told.told["redirectTo"])
    assert back.path == "/app/"
    form = {"grant_type": "AUTHORIZATION_CODE", "code": back.query["code"], "state": back.query["state"]}
    answered = await browser.submit(f"{PATH}?tenant_id=t0815", form)
    assert (answered.status, answered.body) == (200, b"")
    assert (TICKET in browser.cookies) == (mode == SESSION)
    assert await is_signed_in(browser)
    assert not is_marked(browser)


@pytest.mark.parametrize("said", [("code", "state"), ("code",)])
async def test_application_that_controls_the_flow_may_hand_in_the_code_by_get(
    person: Person, simulator: Simulator, said: tuple[str, ...]
) -> None:
    assert simulator.sso is not None
    simulator.sso = replace(simulator.sso, flow_controlled_by_ui=True, redirect_uri=f"{ORIGIN}/app/")
    browser, script = person.browser, {"Sec-Fetch-Mode": "cors"}
    back = await person.back((await browser.get(BEGIN, **script)).told["redirectTo"])
    query = {name: back.query[name] for name in said}
    answered = await browser.get(str(URL(PATH).with_query(query)), **script)
    assert answered.status == 200
    assert await is_signed_in(browser)


@pytest.mark.parametrize("mode", [SESSION])
async def test_sign_in_page_leads_there(person: Person) -> None:
    shown = (await person.browser.get("/sign-in")).body.decode()
    [link] = re.findall(r'href="(/tenant/oauth[^"]*)"', shown)
    assert unescape(link) == BEGIN
    assert await person.back(await person.sent(unescape(link)))


# Who comes back -------------------------------------------------------------------------------------------------------


async def test_who_was_sent_for_a_code_by_somebody_else_is_not_signed_in(
    person: Person, simulator: Simulator, provider: IdentityProvider
) -> None:
    """Else they would act, and leave what they write, in the account of whoever made them follow a link."""
    attacker = Person(Browser(person.browser.proxied), provider)
    theirs = await attacker.back(await attacker.sent())
    refused = await person.come_back(theirs)
    assert (refused.status, refused.told["error"]) == (403, "state")
    await person.sent()  # also not while they sign on themselves
    refused = await person.come_back(theirs)
    assert (refused.status, refused.told["error"]) == (403, "state")
    assert is_marked(person.browser)
    assert person.browser.cookies.keys() == {SIGN_ON_COOKIE}
    assert simulator.logins.succeeded == 0


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"state": None}, id="no state"),
        pytest.param({"state": ""}, id="an empty state"),
        pytest.param({"state": "other"}, id="another state"),
        pytest.param({"state": "\u00e4"}, id="a state beyond ASCII"),
    ],
)
async def test_state_has_to_be_the_one_that_the_browser_was_sent_with(
    person: Person, simulator: Simulator, changed: dict[str, str | None]
) -> None:
    back = await person.back(await person.sent())
    query = {name: value for name, value in (dict(back.query) | changed).items() if value is not None}
    assert (await person.come_back(back.with_query(query))).status == 403
    assert simulator.logins.asked == 0


@pytest.mark.parametrize("mark", ["", "x", "\u00e4", "0" * 64, "\U0001f511" * 16])
async def test_cookie_that_is_none_of_ours_lets_nobody_in(person: Person, simulator: Simulator, mark: str) -> None:
    back = await person.back(await person.sent())
    person.browser.cookies[SIGN_ON_COOKIE] = mark
    assert (await person.come_back(back)).status == 403
    twice = f"{SIGN_ON_COOKIE}=a; {SIGN_ON_COOKIE}=b"
    assert (await person.browser.get(back.raw_path_qs, **BY_LINK, Cookie=twice)).status == 403
    assert simulator.logins.asked == 0


@pytest.mark.parametrize(
    "trick",
    [
        "&grant_type=AUTHORIZATION_CODE&grant_type=x",
        "&grant_type=x",
        "&grant_type=PASSWORD",
        "&response_type=code",
        "&state=other",
        "&code=other",
        "&c%6fde=other",
    ],
)
async def test_no_trick_with_fields_gets_around_the_state(
    person: Person, simulator: Simulator, provider: IdentityProvider, trick: str
) -> None:
    attacker = Person(Browser(person.browser.proxied), provider)
    theirs = await attacker.back(await attacker.sent())
    await person.sent()
    answered = await person.browser.get(f"{theirs.raw_path_qs}{trick}", **BY_LINK)
    assert answered.status in {400, 403}
    assert person.browser.cookies.keys() == {SIGN_ON_COOKIE}
    assert simulator.logins.asked == 0


async def test_script_that_says_no_state_has_to_have_begun(person: Person, provider: IdentityProvider) -> None:
    attacker = Person(Browser(person.browser.proxied), provider)
    theirs = await attacker.back(await attacker.sent())
    form = {"grant_type": "AUTHORIZATION_CODE", "code": theirs.query["code"]}
    assert (await person.browser.submit(PATH, form)).status == 403
    await person.sent()
    with_state = form | {"state": theirs.query["state"]}
    assert (await person.browser.submit(PATH, with_state)).status == 403
    assert person.browser.cookies.keys() == {SIGN_ON_COOKIE}


async def test_page_of_another_site_can_hand_in_no_code(person: Person, simulator: Simulator) -> None:
    back = await person.back(await person.sent())
    form = {"grant_type": "AUTHORIZATION_CODE", **back.query}
    assert (await person.browser.submit(PATH, form, Origin=EVIL)).status == 403
    for how in ({"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}):
        assert (await person.browser.get(back.raw_path_qs, **(BY_LINK | how))).status == 403
    assert simulator.logins.asked == 0


async def test_code_is_good_once(person: Person, simulator: Simulator) -> None:
    back = await person.back(await person.sent())
    mark = person.browser.cookies[SIGN_ON_COOKIE]
    assert (await person.come_back(back)).status == 302
    assert (await person.come_back(back)).status == 403
    other = Person(Browser(person.browser.proxied), person.provider)
    other.browser.cookies[SIGN_ON_COOKIE] = mark
    assert (await other.come_back(back)).status == 401
    assert other.browser.cookies == {}
    assert simulator.logins.succeeded == 1


async def test_who_declines_is_told_so_and_not_signed_in(person: Person, simulator: Simulator) -> None:
    back = await person.back(await person.sent(), answer="decline")
    assert back.query["error"] == "access_denied"
    answered = await person.come_back(back)
    assert answered.status == 401
    assert answered.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert person.browser.cookies == {}
    assert simulator.logins.succeeded == 0


async def test_sign_on_takes_the_place_of_the_session_that_there_was(mode: str, person: Person) -> None:
    assert (await log_in(person.browser)).status == 200
    before = dict(person.browser.cookies)
    assert (await person.come_back(await person.back(await person.sent()))).status == 302
    name = {SESSION: TICKET, "cookie": "authorization"}.get(mode, "__Host-authorization")
    assert person.browser.cookies[name] != before[name]
    assert await is_signed_in(person.browser)


# Where it leads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "location"),
    [
        (f"{ORIGIN}/app/?x=1", f"{ORIGIN}/app/?x=1"),
        ("/app/", "/"),
        (EVIL, "/"),
        (f"{ORIGIN}.evil.example/", "/"),
        (f"{ORIGIN}@evil.example/", "/"),
        (f"{ORIGIN}/sign-out", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
async def test_browser_is_sent_on_among_our_own_alone(person: Person, asked: str, location: str) -> None:
    sent = await person.sent(f"{BEGIN}&originUri={asked}")
    assert URL(sent).origin() == URL(person.provider.url)
    answered = await person.come_back(await person.back(sent))
    assert (answered.status, answered.headers["Location"]) == (302, location)


@pytest.fixture
async def behind() -> AsyncIterator[Tenant]:
    async with tenant() as behind:
        yield behind


@pytest.fixture
async def browser(mode: str, behind: Tenant, tmp_path: Path) -> AsyncIterator[Browser]:
    async with front_door(mode, behind.url, tmp_path) as proxied:
        yield Browser(proxied)


def redirecting(behind: Tenant, location: str, *more: tuple[str, str], status: int = 302) -> None:
    behind.answer(PATH, status, ("Location", location), *more, body=b"")


HOSTILE: Final = [
    f"{EVIL}/",
    "//evil.example/",
    "/\\evil.example",
    "/sign-out",
    "/..//evil.example",
    "javascript:alert(1)",
    "data:text/html,x",
    f"{ORIGIN}.evil.example/",
    "http://[",
    "",
]


@pytest.mark.parametrize("location", [*HOSTILE, "{platform}//evil.example", "{platform}/\\evil.example"])
async def test_location_of_a_sign_on_that_is_over_leads_nowhere_else(
    browser: Browser, behind: Tenant, location: str
) -> None:
    redirecting(behind, PROVIDER)
    assert (await browser.get(BEGIN, **BY_LINK)).headers["Location"] == PROVIDER
    redirecting(behind, location.format(platform=behind.url), *pair("first"))
    answered = await browser.get(f"{PATH}?code=c&state=s1", **BY_LINK)
    assert (answered.status, answered.headers["Location"]) == (302, "/")
    redirecting(behind, PROVIDER)
    await browser.get(BEGIN, **BY_LINK)
    redirecting(behind, location.format(platform=behind.url))
    answered = await browser.get(f"{PATH}?error=access_denied&state=s1", **BY_LINK)
    assert (answered.status, answered.headers["Location"]) == (302, "/")


@pytest.mark.parametrize(("location", "leads"), [("{platform}/app/#/x", "/app/#/x"), ("/app/", "/app/")])
@pytest.mark.parametrize("status", [301, 302, 303, 307])
async def test_location_within_the_platform_leads_to_the_same_path_here(
    browser: Browser, behind: Tenant, location: str, leads: str, status: int
) -> None:
    redirecting(behind, PROVIDER)
    await browser.get(BEGIN, **BY_LINK)
    redirecting(behind, location.format(platform=behind.url), *pair("first"), status=status)
    answered = await browser.get(f"{PATH}?code=c&state=s1", **BY_LINK)
    assert (answered.status, answered.headers["Location"]) == (status, leads)


@pytest.mark.parametrize(
    ("query", "location"),
    [
        pytest.param(f"?originUri={EVIL}/", f"{EVIL}/", id="no sign-on at all"),
        pytest.param("", PROVIDER, id="nothing asked for"),
        pytest.param("?response_type=token", PROVIDER, id="something else asked for"),
        pytest.param(f"?response_type=code&originUri={EVIL}/x", f"{EVIL}/", id="an origin that was brought along"),
        pytest.param(f"?response_type=code&x={EVIL}:443", f"{EVIL}/y?state=z", id="with its port"),
        pytest.param("?response_type=code", "{platform}/tenant/oauth?x", id="within the platform, and never back"),
        *(
            pytest.param("?response_type=code", each, id=f"hostile {n}")
            for n, each in enumerate(HOSTILE[1:], 1)
            if "http:" not in each
        ),
    ],
)
async def test_location_is_that_of_the_provider_only_where_a_sign_on_begins(
    browser: Browser, behind: Tenant, query: str, location: str
) -> None:
    redirecting(behind, location.format(platform=behind.url))
    answered = await browser.get(f"{PATH}{query}", **BY_LINK)
    assert answered.status == 302
    assert answered.headers["Location"] in {"/", "/tenant/oauth?x"}
    assert not is_marked(browser)


@pytest.mark.parametrize("status", [200, 302])
async def test_session_that_begins_unasked_for_is_kept_from_the_browser(
    browser: Browser, behind: Tenant, status: int
) -> None:
    redirecting(behind, PROVIDER, *pair("first"), status=status)
    answered = await browser.get(BEGIN, **BY_LINK)
    assert answered.status == 502
    assert browser.cookies == {}


async def test_platform_without_a_state_still_wants_who_began(browser: Browser, behind: Tenant) -> None:
    redirecting(behind, "/", *pair("first"))
    assert (await browser.get(f"{PATH}?code=c", **BY_LINK)).status == 403
    redirecting(behind, "https://login.example.com/authorize?client_id=c")
    assert (await browser.get(BEGIN, **BY_LINK)).status == 302
    redirecting(behind, "/app/", *pair("first"))
    assert (await browser.get(f"{PATH}?code=c", **BY_LINK)).headers["Location"] == "/app/"


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_denial_sends_nobody_anywhere(browser: Browser, behind: Tenant, status: int) -> None:
    behind.answer(PATH, status, ("Location", PROVIDER), body=msgspec.json.encode({"redirectTo": PROVIDER}))
    answered = await browser.get(BEGIN, **BY_LINK)
    assert (answered.status, "Location" in answered.headers) == (status, False)
    assert not is_marked(browser)


async def test_denial_begins_no_session_whatever_comes_with_it(browser: Browser, behind: Tenant) -> None:
    redirecting(behind, PROVIDER)
    await browser.get(BEGIN, **BY_LINK)
    redirecting(behind, "/app/", *pair("first"), status=401)
    assert (await browser.get(f"{PATH}?code=c&state=s1", **BY_LINK)).status == 401
    assert TICKET not in browser.cookies
    assert not is_marked(browser)


async def test_query_of_a_sign_on_goes_up_as_it_was_sent_and_no_session_with_it(
    browser: Browser, behind: Tenant
) -> None:
    await log_in(browser)
    redirecting(behind, PROVIDER)
    await browser.get(f"{BEGIN}&y=&x=%26%20z", **BY_LINK)
    assert behind.last.target == f"{BEGIN}&y=&x=%26%20z"
    assert not {"cookie", "x-xsrf-token", "authorization", "origin", "referer"} & set(behind.last.names)
