"""Every kind of credential that the platform documents, on both transports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from .conftest import StageOpener
from .stage import Browser, Leg, Transport, store
from .upstreams import ACCOUNT, COOKIES, TOKEN, WITH_TFA, Upstream


CHANNEL = "/events/4711"
NODE_LEGS = [Leg("cometd", "node", "long-polling"), Leg("cometd", "node", "websocket")]
JAR = COOKIES[0]
COOKIE, XSRF = JAR["authorization"], JAR["XSRF-TOKEN"]


@pytest.mark.parametrize("leg", NODE_LEGS, ids=str)
@pytest.mark.parametrize(
    ("values", "authn"),
    [
        pytest.param(WITH_TFA.files(), {"token", "tfa"}, id="basic-with-tfa"),
        pytest.param({"token": TOKEN}, {"token"}, id="jwt"),
    ],
)
async def test_a_stored_credential_of_every_kind_opens_a_session(
    open_stage: StageOpener,
    upstream: Upstream,
    leg: Leg,
    directory: Path,
    values: Mapping[str, str],
    authn: set[str],
) -> None:
    async with (
        open_stage(upstream, store(directory, values)) as stage,
        stage.client(leg) as client,
    ):
        await client.start(CHANNEL)
        await upstream.publish(CHANNEL, 0, 10)
        await client.receive(CHANNEL, 0, 10)
        await client.disconnect()
        assert await stage.handshakes() == {(leg.transport, "stored", "accepted", "ok"): 1}
        assert (await upstream.seen()).ext["com.cumulocity.authn"].keys() == authn


@pytest.mark.parametrize("leg", NODE_LEGS, ids=str)
async def test_the_configured_system_of_units_stands_beside_authn(
    open_stage: StageOpener, upstream: Upstream, leg: Leg, directory: Path
) -> None:
    settings = store(directory, ACCOUNT.files()) | {"handshake.system_of_units": "imperial"}
    async with open_stage(upstream, settings) as stage, stage.client(leg) as client:
        await client.start(CHANNEL)
        seen = await upstream.seen()
        assert seen.ext["systemOfUnits"] == "imperial"
        assert "systemOfUnits" not in seen.ext["com.cumulocity.authn"]
        await client.disconnect()
        assert await stage.handshakes() == {(leg.transport, "stored", "accepted", "ok"): 1}


@pytest.mark.parametrize(
    ("leg", "auth"),
    [
        pytest.param(Leg("c8y", "chromium", "websocket"), "cookie", id="c8y-websocket-token-in-handshake"),
        pytest.param(Leg("c8y", "chromium", "websocket"), "none", id="c8y-websocket-token-in-cookie"),
        pytest.param(Leg("c8y", "chromium", "long-polling"), "cookie", id="c8y-long-polling-token-in-header"),
        pytest.param(Leg("cometd", "chromium", "websocket"), "none", id="cometd-websocket-token-in-cookie"),
        pytest.param(Leg("cometd", "chromium", "long-polling"), "none", id="cometd-long-polling-token-in-cookie"),
    ],
)
async def test_a_browsers_own_cookie_opens_a_session(
    open_stage: StageOpener, upstream: Upstream, leg: Leg, auth: str
) -> None:
    async with (
        open_stage(upstream, {"credentials.default.source": "cookie"}) as stage,
        stage.client(leg, auth=auth, cookies=JAR) as client,
    ):
        await client.start(CHANNEL)
        await upstream.publish(CHANNEL, 0, 10)
        await client.receive(CHANNEL, 0, 10)
        await client.disconnect()
        assert await stage.handshakes() == {(leg.transport, "cookie", "accepted", "ok"): 1}
        _assert_cookie_alone(await upstream.seen())


@pytest.mark.parametrize("token", ["header", "cookie"])
async def test_a_cookie_opens_a_session_outside_a_browser_that_names_its_origin(
    open_stage: StageOpener, browser: Browser, upstream: Upstream, token: str
) -> None:
    headers = {"Origin": browser.page, "Cookie": f"authorization={COOKIE}"}
    if token == "header":
        headers["X-XSRF-TOKEN"] = XSRF
    else:
        headers["Cookie"] += f"; XSRF-TOKEN={XSRF}"
    async with (
        open_stage(upstream, {"credentials.default.source": "cookie"}) as stage,
        stage.client(NODE_LEGS[0], headers=headers) as client,
    ):
        await client.start(CHANNEL)
        await upstream.publish(CHANNEL, 0, 10)
        await client.receive(CHANNEL, 0, 10)
        await client.disconnect()
        assert await stage.handshakes() == {("long-polling", "cookie", "accepted", "ok"): 1}
        _assert_cookie_alone(await upstream.seen())


@pytest.mark.parametrize("transport", ["long-polling", "websocket"])
async def test_a_page_of_a_foreign_origin_gets_nowhere_with_a_browsers_cookie(
    open_stage: StageOpener, upstream: Upstream, transport: Transport
) -> None:
    settings = {"credentials.default.source": "cookie", "gate.origins": ["https://elsewhere.example.com"]}
    async with (
        open_stage(upstream, settings) as stage,
        stage.client(Leg("cometd", "chromium", transport), cookies=JAR) as client,
    ):
        await client.attempt(CHANNEL)
        failed = await client.next("handshake")
        # No answer of anybody: the browser lets the page read nothing, and nothing went up.
        assert (failed.successful, failed.error) == (False, None)
        seen = await upstream.seen()
        assert (seen.accepted, seen.denied, seen.headers) == (0, 0, {})
        assert await stage.handshakes() == {}


def _assert_cookie_alone(seen: Any) -> None:
    """Exactly one kind of credential went up."""
    assert "authorization" not in seen.headers
    assert f"authorization={COOKIE}" in seen.headers["cookie"]
    assert seen.ext["com.cumulocity.authn"] == {"xsrfToken": XSRF}
