"""Credentials that the platform gives out, through a whole proxy: who is served with them, and who no more."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import trustme

from proxy.demo.simulator import Simulator
from tests.conftest import PASSWORD, closed, exchange, handshake, running
from tests.upstream.devices import Device


SUBSCRIBED: Final = {
    "credentials.default.source": "subscriptions",
    "credentials.default.tenant": "t1",
    "credentials.default.poll_seconds": 0.05,
}


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(trustme.CA(), tmp_path)


async def test_device_is_served_with_its_token_by_an_upstream_that_only_its_own_authority_vouches_for(
    device: Device,
) -> None:
    settings = {
        "upstream.ca_file": str(device.ca_file),
        "credentials.default.source": "device",
        "credentials.default.certificate_file": str(device.certificate_file),
        "credentials.default.key_file": str(device.key_file),
    }
    async with Simulator(
        password=PASSWORD, ssl_context=device.listening(), device_ssl_context=device.listening(device.authority)
    ) as upstream:
        settings["credentials.default.token_url"] = upstream.device_url
        async with running(upstream.url, settings, values={}) as proxied:
            async with proxied.socket() as socket:
                [answer] = await exchange(socket, [handshake()])
                assert answer["successful"] is True
            async with proxied.post([handshake()], "/notification/realtime/handshake") as response:
                assert [each["successful"] for each in await response.json()] == [True]
            assert upstream.devices.asked == ["line-3"]
            assert proxied.handshakes(source="device") == {("accepted", "ok"): 1}


@pytest.fixture
async def subscribed() -> AsyncIterator[Simulator]:
    async with Simulator(password=PASSWORD) as upstream:
        upstream.subscriptions.subscribe("t1", PASSWORD)
        yield upstream


@pytest.mark.logs_errors
async def test_tenant_that_unsubscribes_is_parted_from_and_served_again_when_it_comes_back(
    subscribed: Simulator,
) -> None:
    bootstrap = subscribed.subscriptions
    values = {
        "C8Y_BOOTSTRAP_TENANT": bootstrap.tenant,
        "C8Y_BOOTSTRAP_USER": bootstrap.user,
        "C8Y_BOOTSTRAP_PASSWORD": bootstrap.password,
    }
    async with running(subscribed.url, SUBSCRIBED, values=values, look_seconds=0.05) as proxied:
        async with proxied.socket() as socket:
            [answer] = await exchange(socket, [handshake()])
            assert answer["successful"] is True
            bootstrap.unsubscribe("t1")
            assert (await closed(socket))[0] == 1008
        async with proxied.post([handshake()], "/notification/realtime/handshake") as response:
            [refusal] = await response.json()
            assert refusal["error"].startswith("403::")
        bootstrap.subscribe("t1", PASSWORD)
        asked = len(subscribed.calls)
        await subscribed.until(lambda: len(subscribed.calls) >= asked + 2)
        async with proxied.socket() as socket:
            [answer] = await exchange(socket, [handshake()])
            assert answer["successful"] is True
