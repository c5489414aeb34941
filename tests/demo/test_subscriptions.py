"""Tenants subscribe to a microservice and leave it, and none hears what another is told."""

import aiohttp
import pytest

from proxy.demo.accounts import basic
from proxy.demo.simulator import Account, Simulator
from tests.demo.caller import REALTIME, Answered, Caller, handshake


PATH = "/application/currentApplication/subscriptions"


def as_basic(value: str) -> dict[str, str]:
    return {"Authorization": f"Basic {value}"}


async def listed(caller: Caller) -> list[dict[str, str]]:
    answered = await caller.get(PATH, as_basic(caller.simulator.subscriptions.basic))
    assert answered.status == 200
    users: list[dict[str, str]] = answered.body["users"]
    return users


async def test_bootstrap_user_is_told_of_every_subscribed_tenant(caller: Caller, simulator: Simulator) -> None:
    assert await listed(caller) == []
    first, second = simulator.subscriptions.subscribe("t1"), simulator.subscriptions.subscribe("t2", "chosen")
    assert await listed(caller) == [
        {"tenant": "t1", "name": "service_proxy", "password": first},
        {"tenant": "t2", "name": "service_proxy", "password": "chosen"},
    ]
    assert first != second == "chosen"
    simulator.subscriptions.unsubscribe("t1")
    assert [user["tenant"] for user in await listed(caller)] == ["t2"]


async def test_nobody_else_is_told(caller: Caller, simulator: Simulator) -> None:
    password = simulator.subscriptions.subscribe("t1")
    service = basic("t1", "service_proxy", password)
    for headers in ({}, as_basic(simulator.accounts.basic), as_basic(service), as_basic("")):
        assert (await caller.get(PATH, headers)).status == 401


async def test_bootstrap_user_is_no_user_of_notifications(caller: Caller, simulator: Simulator) -> None:
    assert not await caller.shake({"token": simulator.subscriptions.basic})


async def test_service_user_is_admitted_in_its_tenant_while_it_is_subscribed(
    caller: Caller, simulator: Simulator
) -> None:
    service = basic("t1", "service_proxy", simulator.subscriptions.subscribe("t1"))
    assert await caller.shake({"token": service})
    assert (await caller.poll(handshake(), headers=as_basic(service))).body[0]["successful"] is True
    assert (await caller.get("/tenant/currentTenant", as_basic(service))).body["name"] == "t1"
    simulator.subscriptions.unsubscribe("t1")
    assert not await caller.shake({"token": service})
    connect = {"channel": "/meta/connect", "clientId": "x"}
    assert (await caller.poll(connect, headers=as_basic(service))).status == 401


async def test_rotated_password_replaces_the_old_one(caller: Caller, simulator: Simulator) -> None:
    old = basic("t1", "service_proxy", simulator.subscriptions.subscribe("t1"))
    new = basic("t1", "service_proxy", simulator.subscriptions.subscribe("t1"))
    assert len(await listed(caller)) == 1
    assert not await caller.shake({"token": old})
    assert await caller.shake({"token": new})


async def subscribed(socket: aiohttp.ClientWebSocketResponse, token: str) -> str:
    await socket.send_json([handshake({"token": token})])
    client_id: str = (await socket.receive_json())[0]["clientId"]
    await socket.send_json([{"channel": "/meta/subscribe", "clientId": client_id, "subscription": "/**"}])
    assert (await socket.receive_json())[0]["successful"] is True
    return client_id


async def test_notifications_stay_within_their_tenant(caller: Caller, simulator: Simulator) -> None:
    services = {tenant: basic(tenant, "service_proxy", simulator.subscriptions.subscribe(tenant)) for tenant in "ab"}
    url = simulator.url + REALTIME
    async with (
        caller.http.ws_connect(url) as of_a,
        caller.http.ws_connect(url) as of_b,
        caller.http.ws_connect(url) as first,
    ):
        publisher = await subscribed(of_a, services["a"])
        await subscribed(of_b, services["b"])
        await subscribed(first, simulator.accounts.basic)
        assert simulator.publish("/alarms/1", "for a", tenant="a") == 1
        assert simulator.publish("/alarms/1", "for b", tenant="b") == 1
        assert simulator.publish("/alarms/1", "for the first") == 1
        await of_a.send_json([{"channel": "/own", "clientId": publisher, "data": "a's own"}])
        heard = [[message["data"] for message in await socket.receive_json()] for socket in (of_a, of_b, first)]
        assert heard == [["for a"], ["for b"], ["for the first"]]
        assert [message["data"] for message in await of_a.receive_json()] == ["a's own"]
        assert simulator.publish("/alarms/1", "again", tenant="b") == 1
        assert [message["data"] for message in await of_b.receive_json()] == ["again"]


async def test_long_polling_session_continues_under_its_own_tenant_only(caller: Caller, simulator: Simulator) -> None:
    a, b = (as_basic(basic(t, "service_proxy", simulator.subscriptions.subscribe(t))) for t in "ab")

    async def connect(headers: dict[str, str]) -> Answered:
        message = {"channel": "/meta/connect", "clientId": client_id, "advice": {"timeout": 0}}
        return await caller.poll(message, headers={**headers, **cookie})

    shaken = await caller.poll(handshake(), headers=a)
    client_id = shaken.body[0]["clientId"]
    cookie = {"Cookie": f"BAYEUX_BROWSER={shaken.cookies['BAYEUX_BROWSER'].value}"}
    assert (await connect(b)).body[0]["error"] == "402::Unknown client"
    assert (await connect(a)).body[0]["successful"] is True


async def test_sockets_of_a_tenant_that_left_are_closed_when_told(caller: Caller, simulator: Simulator) -> None:
    service = basic("t1", "service_proxy", simulator.subscriptions.subscribe("t1"))
    url = simulator.url + REALTIME
    async with caller.http.ws_connect(url) as left, caller.http.ws_connect(url) as stayed:
        await subscribed(left, service)
        await subscribed(stayed, simulator.accounts.basic)
        simulator.subscriptions.unsubscribe("t1")
        await simulator.close_ended_sockets()
        assert (await left.receive()).data == aiohttp.WSCloseCode.POLICY_VIOLATION
        await simulator.until(lambda: simulator.open_sockets == 1)
        simulator.publish("/alarms/1", "still here")
        assert (await stayed.receive_json())[0]["data"] == "still here"


@pytest.mark.parametrize("tenant", ["t0815", "t2"])
async def test_user_of_another_tenant_is_not_taken_for_ones_own(http: aiohttp.ClientSession, tenant: str) -> None:
    same_name = Account(tenant="t2", user="service", password="theirs")
    async with Simulator(others=[same_name]) as simulator:
        caller = Caller(http, simulator)
        value = simulator.accounts.basic if tenant == "t0815" else basic("t2", "service", "theirs")
        assert (await caller.get("/tenant/currentTenant", as_basic(value))).body["name"] == tenant
        assert (await caller.get("/tenant/currentTenant", as_basic(basic(tenant, "service", "neither")))).status == 401
