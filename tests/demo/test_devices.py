"""A trusted certificate gets a device its token, for an hour."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from proxy.demo.devices import DEVICE_TOKEN_PATH
from proxy.demo.simulator import Fault, Simulator
from tests.demo.authority import Authority, Device
from tests.demo.caller import Caller, bearer, claims_of, handshake
from tests.demo.clock import Clock


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def simulator(clock: Clock, authority: Authority) -> AsyncIterator[Simulator]:
    async with Simulator(clock=clock, device_ssl_context=authority.listener()) as simulator:
        yield simulator


@pytest.fixture
def device(authority: Authority, tmp_path: Path) -> Device:
    return authority.device(tmp_path)


async def token_for(caller: Caller, authority: Authority, device: Device | None, **headers: str) -> str:
    url = caller.simulator.device_url + DEVICE_TOKEN_PATH
    async with caller.http.post(url, headers=headers, ssl=authority.client(device)) as response:
        assert response.status == 200
        assert response.content_type == "application/vnd.com.nsn.cumulocity.managedobject+json"
        told = await response.json()
    assert set(told) == {"accessToken"}
    return str(told["accessToken"])


async def test_device_gets_a_token_for_an_hour(
    caller: Caller, authority: Authority, device: Device, clock: Clock
) -> None:
    token = await token_for(caller, authority, device)
    claims = claims_of(token)
    assert (claims["sub"], claims["ten"], claims["exp"]) == ("device_gateway-1", "t0815", clock.now + 3600)
    assert (await caller.get(headers=bearer(token))).body["userName"] == "device_gateway-1"
    assert await caller.shake({"token": token})
    assert (await caller.poll(handshake(), headers=bearer(token))).body[0]["successful"] is True
    clock.advance(3600)
    assert (await caller.get(headers=bearer(token))).status == 401
    assert not await caller.shake({"token": token})
    assert (await caller.poll(handshake(), headers=bearer(token))).body[0]["successful"] is False


async def test_every_request_gets_a_token_of_its_own_and_is_on_record(
    caller: Caller, simulator: Simulator, authority: Authority, device: Device
) -> None:
    simulator.devices.token_seconds = 300
    tokens = [
        await token_for(caller, authority, device),
        await token_for(caller, authority, device, **{"X-Ssl-Cert-Chain": device.header}),
    ]
    assert len({claims_of(token)["jti"] for token in tokens}) == 2
    assert {claims_of(token)["exp"] - claims_of(token)["iat"] for token in tokens} == {300}
    assert simulator.devices.asked == ["gateway-1", "gateway-1"]
    assert simulator.devices.chains == [None, device.header]
    assert device.header.startswith("-----BEGIN CERTIFICATE-----")
    assert simulator.logins.live() == 0


@pytest.mark.parametrize("kind", ["none", "stranger", "expired"])
async def test_without_a_trusted_certificate_no_request_arrives(
    caller: Caller, simulator: Simulator, authority: Authority, tmp_path: Path, kind: str
) -> None:
    devices = {
        "none": None,
        "stranger": authority.stranger(tmp_path, "stranger"),
        "expired": authority.device(tmp_path, "expired", expired=True),
    }
    with pytest.raises(aiohttp.ClientError):
        await token_for(caller, authority, devices[kind])
    assert simulator.devices.asked == []


async def test_unregistered_device_is_a_401(
    caller: Caller, simulator: Simulator, authority: Authority, device: Device
) -> None:
    simulator.devices.unregistered.add("gateway-1")
    url = simulator.device_url + DEVICE_TOKEN_PATH
    async with caller.http.post(url, ssl=authority.client(device)) as response:
        assert (response.status, (await response.json())["error"]) == (401, "security/Unauthorized")


async def test_missing_chain_is_a_401_where_the_issuer_is_not_known(
    caller: Caller, simulator: Simulator, authority: Authority, device: Device
) -> None:
    simulator.devices.needs_chain = True
    async with caller.http.post(simulator.device_url + DEVICE_TOKEN_PATH, ssl=authority.client(device)) as response:
        assert response.status == 401
    assert await token_for(caller, authority, device, **{"X-Ssl-Cert-Chain": device.header})


async def test_tokens_end_by_logout_and_by_revocation(
    caller: Caller, simulator: Simulator, authority: Authority, device: Device
) -> None:
    first, second = [await token_for(caller, authority, device) for _ in range(2)]
    assert (await caller.call("POST", "/user/logout", bearer(first))).status == 200
    assert (await caller.get(headers=bearer(first))).status == 401
    assert (await caller.get(headers=bearer(second))).status == 200
    simulator.devices.forget()
    assert (await caller.get(headers=bearer(second))).status == 401


async def test_nothing_else_is_served_to_devices_and_no_token_elsewhere(
    caller: Caller, simulator: Simulator, authority: Authority, device: Device
) -> None:
    url = f"{simulator.device_url}/tenant/loginOptions"
    async with caller.http.get(url, ssl=authority.client(device)) as response:
        assert response.status == 404
    assert (await caller.call("POST", DEVICE_TOKEN_PATH)).status == 404


async def test_endpoint_fails_on_purpose(
    caller: Caller, simulator: Simulator, authority: Authority, device: Device
) -> None:
    simulator.faults[DEVICE_TOKEN_PATH] = Fault(status=503)
    async with caller.http.post(simulator.device_url + DEVICE_TOKEN_PATH, ssl=authority.client(device)) as response:
        assert response.status == 503
    assert simulator.devices.asked == ["gateway-1"]


async def test_listener_for_devices_stops_and_starts_with_the_simulator(
    caller: Caller, simulator: Simulator, authority: Authority, device: Device
) -> None:
    port = int(simulator.device_url.rpartition(":")[2])
    await simulator.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await token_for(caller, authority, device)
    await simulator.start(port=simulator.port, device_port=port)
    assert await token_for(caller, authority, device)


async def test_simulator_without_that_listener_has_no_address_for_devices() -> None:
    async with Simulator() as simulator:
        with pytest.raises(RuntimeError, match="no listener for devices"):
            _ = simulator.device_url
