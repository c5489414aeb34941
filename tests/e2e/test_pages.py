"""The pages as people meet them in Chromium: narrow and wide, light and dark, by keyboard, and by ear.

Pictures of all are left in tests/e2e/target/pages.
"""

import pytest

from proxy.demo.faults import Fault
from proxy.demo.identity_provider import IdentityProvider
from proxy.demo.single_sign_on import SingleSignOn

from .conftest import DoorOpener
from .frontdoor import FrontDoor, code_of, sign_in
from .people import Tab
from .upstreams import HERE


pytestmark = [pytest.mark.parametrize("origin", ["simulator"], indirect=True), pytest.mark.timeout(120)]

PICTURES = HERE / "target/pages"

WIDE, NARROW, NARROWEST = (1280, 800), (390, 844), (320, 640)

_LOGIN = "/tenant/oauth"


async def test_every_page_fits_a_phone_and_tells_by_ear_what_it_tells_by_eye(open_door: DoorOpener) -> None:
    async with open_door() as door:
        ada, grace = door.new_account("ada"), door.new_account("grace", with_codes=True)
        linus = door.new_account("linus", needs_setup=True)
        logins = door.origin.simulator.faults
        tab = await door.tab("/sign-in")
        fields = ['textbox "User name"', 'textbox "Password"', 'button "Sign in"']
        await _looks_well(tab, "sign-in", 'heading "Sign in"', *fields)

        await sign_in(tab, ada, password="wrong")
        await _looks_well(tab, "credentials", "alert", "Wrong user name or password", *fields)
        await sign_in(tab, grace)
        await _looks_well(tab, "code-required", "alert", "A code is needed, too", 'textbox "Code"', *fields)
        await sign_in(tab, grace, Code="000000")
        await _looks_well(tab, "code-wrong", "alert", "The code is wrong or too old", 'textbox "Code"', *fields)
        await tab.goto(f"{door.url}/sign-in")
        await sign_in(tab, linus)
        await _looks_well(tab, "setup-required", "alert", 'link "Set it up on the platform"', *fields)
        logins[_LOGIN] = Fault(status=403)
        await sign_in(tab, ada)
        await _looks_well(tab, "forbidden", "alert", "You may not sign in here", *fields)
        logins[_LOGIN] = Fault(status=503)
        await sign_in(tab, ada)
        await _looks_well(tab, "unavailable", "alert", "Nobody can sign in right now", *fields)
        del logins[_LOGIN]
        await tab.owner.forge("__Host-c8y-sign-in", "another", door.url)
        await sign_in(tab, ada)
        await _looks_well(tab, "expired", "alert", "This page was open for too long", *fields)
        await sign_in(tab, ada)
        await (await tab.open_session()).start("/measurements/1")
        account = await tab.owner.tab(f"{door.url}/sign-in")
        await _looks_well(account, "signed-in", 'heading "You are signed in"', 'link "Continue"', 'button "Sign out"')
        await _status_looks_well(door, tab)
        await account.click("button", "Sign out")
        await _looks_well(account, "signed-out", 'heading "You are signed out"', 'link "Sign in again"')

        guesser = await door.tab()
        await guesser.evaluate(_GUESSES)
        await guesser.goto(f"{door.url}/sign-in")
        await sign_in(guesser, linus, password="wrong")
        await _looks_well(guesser, "too-many", "alert", "Too many attempts", *fields)


async def test_the_form_of_a_door_to_many_tenants_fits_a_phone(open_door: DoorOpener) -> None:
    async with open_door({"frontdoor.asks_tenant": True}) as door:
        back = f"{door.url}{_LOGIN}"
        async with IdentityProvider(users={}, redirect_uris=[back]) as provider:
            door.origin.simulator.sso = SingleSignOn(
                issuer=provider.url,
                client_id=provider.client_id,
                client_secret=provider.client_secret,
                redirect_uri=back,
                button_name="Log in with the company",
            )
            tab = await door.tab("/sign-in")
            expected = [
                'textbox "Tenant"',
                'textbox "User name"',
                'textbox "Password"',
                'link "Log in with the company"',
            ]
            await _looks_well(tab, "tenant-and-single-sign-on", *expected)


async def test_signing_in_and_out_needs_a_keyboard_only(open_door: DoorOpener) -> None:
    async with open_door() as door:
        grace = door.new_account("grace", with_codes=True)
        tab = await door.tab("/sign-in")
        # The focus is where one begins, and moves in the order of the page.
        await tab.type(grace.user)
        await tab.press("Tab")
        await tab.type(grace.password)
        await tab.press("Enter", leaves=True)
        assert await tab.evaluate("document.activeElement.name") == "password"
        await tab.type(grace.password)
        await tab.press("Tab")
        await tab.type(code_of(grace))
        await tab.press("Tab")
        assert await tab.evaluate("document.activeElement.type") == "submit"
        assert await tab.evaluate(_IS_FOCUS_SEEN)
        await tab.press("Enter", leaves=True)
        assert await tab.url() == f"{door.url}/"
        await tab.goto(f"{door.url}/sign-in")
        assert await tab.evaluate("document.activeElement.innerText") == "Continue"
        await tab.press("Tab")
        assert await tab.evaluate("document.activeElement.innerText") == "Sign out"
        assert await tab.evaluate(_IS_FOCUS_SEEN)
        await tab.press("Enter", leaves=True)
        assert "You are signed out" in await tab.text()
        await tab.press("Enter", leaves=True)
        assert await tab.url() == f"{door.url}/sign-in"


_GUESSES = """
Promise.all(Array.from({ length: 40 }, () => fetch("/sign-in", {
  method: "POST", headers: { "Content-Type": "application/json" }, body: '{"user": "linus", "password": "wrong"}',
})))
"""
_IS_FOCUS_SEEN = "getComputedStyle(document.activeElement).outlineStyle === 'solid'"
_OVERHANG = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_SMALL = """
[...document.querySelectorAll("a, button, input:not([type=hidden])")]
  .filter((each) => each.getBoundingClientRect().height < 44).map((each) => each.outerHTML)
"""


async def _looks_well(tab: Tab, name: str, *told: str) -> None:
    """No page scrolls sideways, what is touched is large enough for that, and it tells all of this."""
    tree = await tab.tree()
    assert [each for each in told if each not in tree] == [], tree
    await _pictured(tab, name)
    assert await tab.evaluate(_SMALL) == []


async def _status_looks_well(door: FrontDoor, tab: Tab) -> None:
    status = await tab.owner.tab(f"http://127.0.0.1:{door.stage.proxy.admin_port}/")
    await _pictured(status, "status")


async def _pictured(tab: Tab, name: str) -> None:
    for width, height in (NARROWEST, NARROW, WIDE):
        await tab.resize(width, height)
        assert await tab.evaluate(_OVERHANG) <= 0, (name, width)
        if width != NARROWEST[0]:
            await _draw(tab, f"{name}-{width}")


async def _draw(tab: Tab, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        # Without motion: no color is on its way to another one.
        await tab.look(colorScheme=scheme, reducedMotion="reduce")
        await tab.screenshot(PICTURES / f"{name}-{scheme}.png")
