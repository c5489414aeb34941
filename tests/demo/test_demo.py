"""The demo's upstream has something to tell, and its page is whole, closed and without a key."""

import asyncio
import base64
import hashlib
import re
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from random import Random
from typing import cast

import aiohttp
import pytest
from aiohttp.web import Response

from proxy.demo.feed import DEVICES, Notification, notifications
from proxy.demo.page import OUTCOMES_PATH, PEOPLE_PATH, demo_page, door_page
from proxy.demo.people import people, told
from proxy.demo.show import running_upstream, stored_values
from proxy.demo.totp import code_at
from proxy.frontdoor.signing import SESSION, SIGN_IN, SIGN_OUT
from proxy.relay.pages import Page, Visit


NOON = datetime(2026, 1, 2, 12, 0, 0, 345_678, tzinfo=UTC)


def first(count: int) -> list[Notification]:
    return list(islice(notifications(Random(1), lambda: NOON), count))  # noqa: S311 - the same weather each time


def test_every_device_measures_in_turn_near_its_usual_value() -> None:
    measured = [each for each in first(400) if each.channel.startswith("/measurements/")]
    assert [each.channel for each in measured[:4]] == [f"/measurements/{device.id}" for device in DEVICES]
    for number, each in enumerate(measured):
        device = DEVICES[number % len(DEVICES)]
        data = each.data["data"]
        assert each.data["realtimeAction"] == "CREATE"
        assert (data["time"], data["source"]["id"]) == ("2026-01-02T12:00:00.345Z", device.id)
        reading = data[device.fragment][device.series]
        assert reading["unit"] == device.unit
        assert abs(reading["value"] - device.usual) < 2 * device.swing


def test_alarms_are_raised_and_cleared_one_after_the_other_by_every_device() -> None:
    alarms = [each for each in first(400) if each.channel.startswith("/alarms/")]
    raised, cleared = alarms[::2], alarms[1::2]
    assert {each.channel for each in raised} == {f"/alarms/{device.id}" for device in DEVICES}
    for before, after in zip(raised, cleared, strict=False):
        assert (before.data["realtimeAction"], before.data["data"]["status"]) == ("CREATE", "ACTIVE")
        assert (after.data["realtimeAction"], after.data["data"]["status"]) == ("UPDATE", "CLEARED")
        assert before.data["data"]["id"] == after.data["data"]["id"]
        assert before.channel == after.channel


def test_no_notification_shares_its_id_with_another_thing() -> None:
    created = [each.data["data"]["id"] for each in first(400) if each.data["realtimeAction"] == "CREATE"]
    assert len(created) == len(set(created))


async def test_running_upstream_feeds_subscribers_and_leaves_nothing_behind() -> None:
    async with (
        running_upstream(seconds_between=0.01) as upstream,
        aiohttp.ClientSession(f"{upstream.url}/notification/") as http,
        http.ws_connect("realtime") as socket,
    ):
        authn = {"com.cumulocity.authn": {"token": upstream.accounts.basic}}
        await socket.send_json({"channel": "/meta/handshake", "ext": authn})
        (reply,) = await socket.receive_json()
        client_id = reply["clientId"]
        await socket.send_json({"channel": "/meta/subscribe", "clientId": client_id, "subscription": "/**"})
        (reply,) = await socket.receive_json()
        assert reply["successful"] is True
        (notification,) = await socket.receive_json(timeout=5)
        assert notification["data"]["realtimeAction"] == "CREATE"
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_goes_wrong_beside_the_upstream_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with running_upstream():
            raise ZeroDivisionError
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_stored_values_are_admitted_unless_they_are_meant_to_be_wrong() -> None:
    async with running_upstream() as upstream:
        right, wrong = stored_values(upstream), stored_values(upstream, wrong=True)
        accounts = upstream.accounts
        assert right == {"tenant": accounts.tenant, "user": accounts.user, "password": accounts.password}
        assert {name for name in right if right[name] != wrong[name]} == {"password"}
    async with running_upstream() as another:
        assert another.accounts.password != right["password"]


async def shown(page: Page) -> Response:
    """What a page answers to anybody; none of these looks at who asks."""
    return await page.serve(cast("Visit", None))


def text_of(response: Response) -> str:
    assert isinstance(response.body, bytes)
    return response.body.decode()


PAGES = pytest.mark.parametrize("page", [demo_page(), door_page()], ids=["demo", "door"])


@PAGES
async def test_page_loads_nothing_from_anywhere(page: Page) -> None:
    response = await shown(page)
    text = text_of(response)
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert re.findall(r"""src=["']?(\w+:)|<link[^>]* href=["']?(\w+:)""", text) == [("", "data:")]
    assert not re.findall(r"@import|url\(|<iframe|<img|innerHTML|\beval\(", text)
    assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org", "http://localhost"}


async def test_pages_ask_for_what_is_served() -> None:
    demo, door = text_of(await shown(demo_page())), text_of(await shown(door_page()))
    for path in (OUTCOMES_PATH, PEOPLE_PATH):
        assert f'"{path}"' in demo
    for path in (SIGN_IN, SIGN_OUT, SESSION):
        assert f'"{path}"' in door


@PAGES
async def test_page_sends_no_authn(page: Page) -> None:
    script = text_of(await shown(page)).partition("<script>")[2]
    assert "cumulocity.authn" not in script
    assert "Authorization" not in script


@PAGES
async def test_policy_admits_the_one_script_and_the_one_style_that_are_there(page: Page) -> None:
    response = await shown(page)
    policy = dict(each.split(" ", 1) for each in response.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    for kind in ("script", "style"):
        [content] = re.findall(rf"<{kind}>(.*?)</{kind}>", text_of(response), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
        assert "/* realtime.js */" not in content
    assert not re.findall(r"<[^>]* (?:style|on\w+)=", text_of(response))


async def test_policy_allows_the_own_origin_and_the_proxy_with_the_wrong_password() -> None:
    response = await shown(demo_page(wrong_port=12345, door_port=12346))
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src 'self' ws: http://127.0.0.1:12345 http://localhost:12345;" in policy
    assert 'data-wrong-port="12345" data-door-port="12346"' in text_of(response)
    door = await shown(door_page(demo_port=12347))
    assert "connect-src 'self' ws:;" in door.headers["Content-Security-Policy"]
    assert 'data-demo-port="12347"' in text_of(door)


@PAGES
@pytest.mark.parametrize("label", ["id", "aria-labelledby"])
async def test_every_label_of_the_page_names_an_element(page: Page, label: str) -> None:
    text = text_of(await shown(page))
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(rf'\s{label}="([^"]+)"', text)) <= set(ids)
    used = set(re.findall(r'\$\("([\w-]+)"\)', text))
    assert used <= set(ids)


# People ---------------------------------------------------------------------------------------------------------------


def test_passwords_are_three_words_and_others_each_time() -> None:
    made = [each.password for _ in range(20) for each in people()]
    assert all(re.fullmatch(r"[a-z]+-[a-z]+-[a-z]+", password) for password in made)
    assert len(set(made)) == len(made)


def test_nobody_shows_a_password_by_accident() -> None:
    for each in people():
        assert each.password not in repr(each)
        assert each.totp is None or each.totp not in repr(each)


def test_code_that_is_shown_is_the_one_of_the_moment() -> None:
    those = people()
    [grace] = [each for each in those if each.totp]
    assert grace.totp is not None
    for moment, seconds in ((60.0, 30), (61.5, 29), (89.9, 1), (90.0, 30)):
        [shown_code] = [each for each in told(those, partial(float, moment)) if each["code"]]
        assert (shown_code["user"], shown_code["seconds"]) == (grace.user, seconds)
        assert shown_code["code"] == code_at(grace.totp, moment)
    assert [each["code"] for each in told(those) if each["user"] != grace.user] == [None] * 3
