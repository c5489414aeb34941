"""Whole lives of sessions: the official client and CometD's own, on both transports, in front of both servers."""

from pathlib import Path

import pytest

from .conftest import StageOpener
from .stage import Leg, store
from .upstreams import ACCOUNT, EXACT, WRONG, Upstream


MEASUREMENTS, ALARMS = "/measurements/4711", "/alarms/4711"
LEGS = [
    Leg("c8y", "node", "long-polling"),
    Leg("c8y", "node", "websocket"),
    Leg("c8y", "chromium", "long-polling"),
    Leg("c8y", "chromium", "websocket"),
    Leg("cometd", "node", "long-polling"),
    Leg("cometd", "node", "websocket"),
    Leg("cometd", "chromium", "long-polling"),
    Leg("cometd", "chromium", "websocket"),
]
each_leg = pytest.mark.parametrize("leg", LEGS, ids=str)
each_plain_leg = pytest.mark.parametrize("leg", [LEGS[4], LEGS[5]], ids=str)


@each_leg
async def test_a_session_without_credentials_lives_from_handshake_to_handshake(
    open_stage: StageOpener, upstream: Upstream, leg: Leg, directory: Path
) -> None:
    async with (
        open_stage(upstream, store(directory, ACCOUNT.files())) as stage,
        stage.client(leg) as client,
    ):
        await client.start(MEASUREMENTS, ALARMS)
        await upstream.publish(MEASUREMENTS, 0, 1000)
        await client.receive(MEASUREMENTS, 0, 1000)
        # What clients tell is what they made of it: their numbers, for one, are not as exact.
        assert stage.tap.count(EXACT.encode()) == stage.tap.count("Grüße \U0001f680".encode()) == 1000

        await client.unsubscribe(MEASUREMENTS)
        await upstream.publish(MEASUREMENTS, 1000, 10)
        await upstream.publish(ALARMS, 0, 1)
        await client.receive(ALARMS, 0, 1)

        await client.disconnect()
        await client.start(MEASUREMENTS)
        await upstream.publish(MEASUREMENTS, 2000, 10)
        await client.receive(MEASUREMENTS, 2000, 10)
        await client.disconnect()

        assert await stage.handshakes() == {(leg.transport, "stored", "accepted", "ok"): 2}
        seen = await upstream.seen()
        assert (seen.accepted, seen.denied, seen.unauthorized) == (2, 0, 0)


@each_leg
async def test_a_session_recovers_when_upstream_restarts(
    open_stage: StageOpener, mortal: Upstream, leg: Leg, directory: Path
) -> None:
    async with (
        open_stage(mortal, store(directory, ACCOUNT.files())) as stage,
        stage.client(leg) as client,
    ):
        await client.start(MEASUREMENTS)
        await mortal.publish(MEASUREMENTS, 0, 10)
        await client.receive(MEASUREMENTS, 0, 10)

        mortal.kill()
        assert await stage.readiness() == 200
        mortal.start()

        await client.recovered(MEASUREMENTS)
        await mortal.publish(MEASUREMENTS, 10, 100)
        await client.receive(MEASUREMENTS, 10, 100)
        await client.disconnect()

        counted = await stage.handshakes()
        assert {(outcome, reason) for _, _, outcome, reason in counted} <= {
            ("accepted", "ok"),
            ("refused", "unavailable"),
            ("unanswered", "upstream_gone"),
        }
        assert sum(number for key, number in counted.items() if key[2] == "accepted") == 2
        assert counted[leg.transport, "stored", "accepted", "ok"] >= 1


@each_leg
async def test_a_wrong_password_is_denied_in_upstreams_words_offered_once_and_cured_by_its_correction(
    open_stage: StageOpener, upstream: Upstream, leg: Leg, directory: Path
) -> None:
    long_polling = leg.transport == "long-polling"
    settings = store(directory, WRONG.files()) | {"credentials.default.cooldown_seconds": 1 if long_polling else 60}
    async with open_stage(upstream, settings) as stage, stage.client(leg) as client:
        await client.attempt(MEASUREMENTS)
        denied = await client.next("handshake")
        assert (denied.successful, denied.error, denied.advice) == (False, "403::Handshake denied", None)

        # Without advice clients come again at once, but the value is not offered again so soon.
        again = await client.next("handshake")
        assert not again.successful
        if long_polling:
            assert str(again.error).startswith("403::")
            assert again.advice
            assert again.advice.reconnect == "handshake"
            assert 0 < again.advice.interval <= 1500
            cooled = {(leg.transport, "stored", "refused", "cooldown"): 1}
        else:
            # That was sent into the socket that is closed after the denial; the next finds no upgrade.
            again = await client.next("handshake")
            assert (again.successful, again.error) == (False, None)
            assert stage.tap.count(b"HTTP/1.1 503 ") >= 1
            cooled = {}
        assert (await upstream.seen()).denied == 1
        assert await stage.handshakes() == {(leg.transport, "stored", "rejected", "denied"): 1} | cooled

        store(directory, ACCOUNT.files())
        await client.recovered(MEASUREMENTS)
        await upstream.publish(MEASUREMENTS, 0, 10)
        await client.receive(MEASUREMENTS, 0, 10)
        assert (await stage.handshakes())[leg.transport, "stored", "accepted", "ok"] == 1


@each_plain_leg
async def test_a_session_lives_on_the_older_path(
    open_stage: StageOpener, cometd: Upstream, leg: Leg, directory: Path
) -> None:
    async with (
        open_stage(cometd, store(directory, ACCOUNT.files())) as stage,
        stage.client(leg, path="/cep/realtime") as client,
    ):
        await client.start(MEASUREMENTS)
        await cometd.publish(MEASUREMENTS, 0, 10)
        await client.receive(MEASUREMENTS, 0, 10)
        await client.disconnect()
        assert await stage.handshakes() == {(leg.transport, "stored", "accepted", "ok"): 1}


@each_plain_leg
async def test_the_proxy_stops_in_order_under_connected_clients(
    open_stage: StageOpener, upstream: Upstream, leg: Leg, directory: Path
) -> None:
    async with (
        open_stage(upstream, store(directory, ACCOUNT.files())) as stage,
        stage.client(leg) as client,
    ):
        await client.start(MEASUREMENTS)
        await stage.stop()
