"""The demo's upstream has something to tell, and its page is whole, closed and without a key."""

import asyncio
import re
from datetime import UTC, datetime
from itertools import islice
from random import Random

import aiohttp
import pytest
from aiohttp.web import Response

from proxy.demo.feed import DEVICES, Notification, notifications
from proxy.demo.page import OUTCOMES_PATH, demo_page
from proxy.demo.show import running_upstream, stored_values


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


def text_of(page: Response) -> str:
    assert isinstance(page.body, bytes)
    return page.body.decode()


def test_page_loads_nothing_from_anywhere() -> None:
    page = demo_page()()
    text = text_of(page)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert re.findall(r"""(?:src|href)=["']?(\w+:)""", text) == ["data:"]
    assert not re.findall(r"@import|url\(|<iframe|<img|innerHTML|\beval\(", text)
    assert set(re.findall(r"https?://[\w.]+", text)) == {"http://www.w3.org"}
    assert f'"{OUTCOMES_PATH}"' in text


def test_page_sends_no_authn() -> None:
    script = text_of(demo_page()()).partition("<script>")[2]
    assert "cumulocity.authn" not in script
    assert "Authorization" not in script


def test_policy_allows_the_own_origin_and_the_proxy_with_the_wrong_password() -> None:
    page = demo_page(wrong_port=12345)()
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src 'self' ws: http://127.0.0.1:12345 http://localhost:12345;" in policy
    assert 'data-wrong-port="12345"' in text_of(page)


@pytest.mark.parametrize("label", ["id", "aria-labelledby"])
def test_every_label_of_the_page_names_an_element(label: str) -> None:
    text = text_of(demo_page()())
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(rf'\s{label}="([^"]+)"', text)) <= set(ids)
    used = set(re.findall(r'\$\("([\w-]+)"\)', text))
    assert used <= set(ids)
