"""Batches as other clients compose them: Faye takes them as they come, the Java server does not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.conftest import handshake

from .conftest import StageOpener
from .stage import Leg, Stage, Transport, store
from .upstreams import ACCOUNT, EXACT, Upstream


PATH = "/notification/realtime"
CHANNEL = "/measurements/4711"
HANDSHAKE = handshake()
SUBSCRIBE = {"id": "s", "channel": "/meta/subscribe", "subscription": CHANNEL, "clientId": "not-known"}
TRANSPORTS: list[Transport] = ["long-polling", "websocket"]

Batch = Sequence[Mapping[str, Any]]


async def _exchange(stage: Stage, transport: Transport, batch: Batch | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Send one payload and return its replies."""
    payload = msgspec.json.encode(batch)
    async with aiohttp.ClientSession() as session:
        if transport == "websocket":
            async with session.ws_connect(f"{stage.url}{PATH}") as socket:
                await socket.send_str(payload.decode())
                return msgspec.json.decode(await socket.receive_str(timeout=10), type=list[dict[str, Any]])
        async with session.post(
            f"{stage.url}{PATH}", data=payload, headers={"Content-Type": "application/json"}
        ) as answer:
            assert answer.status == 200
            return msgspec.json.decode(await answer.read(), type=list[dict[str, Any]])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("batch", "handshakes"),
    [
        pytest.param(HANDSHAKE, 1, id="no-array"),
        pytest.param([HANDSHAKE, SUBSCRIBE], 1, id="handshake-first"),
        pytest.param([SUBSCRIBE, HANDSHAKE], 1, id="handshake-last"),
        pytest.param([SUBSCRIBE, HANDSHAKE, SUBSCRIBE, HANDSHAKE], 2, id="two-handshakes"),
    ],
)
async def test_a_handshake_is_filled_in_wherever_it_stands_in_a_batch(
    open_stage: StageOpener,
    faye: Upstream,
    directory: Path,
    transport: Transport,
    batch: Batch | Mapping[str, Any],
    handshakes: int,
) -> None:
    async with open_stage(faye, store(directory, ACCOUNT.files())) as stage:
        await _exchange(stage, transport, HANDSHAKE)  # until one is accepted, no second one goes up beside it
        replies = await _exchange(stage, transport, batch)
        messages = [batch] if isinstance(batch, Mapping) else batch
        assert [reply["channel"] for reply in replies] == [message["channel"] for message in messages]
        for reply in replies:
            assert reply["successful"] is (reply["channel"] == "/meta/handshake")
            if not reply["successful"]:
                # Faye's words for a client that it does not know: not ours, and nothing to do with credentials.
                assert reply["error"] == "401:not-known:Unknown client"
        assert await stage.handshakes() == {(transport, "stored", "accepted", "ok"): 1 + handshakes}
        assert (await faye.seen()).accepted == 1 + handshakes


async def test_the_java_servers_rejection_of_a_mixed_batch_comes_through_as_a_status(
    open_stage: StageOpener, cometd: Upstream, directory: Path
) -> None:
    async with (
        open_stage(cometd, store(directory, ACCOUNT.files())) as stage,
        aiohttp.ClientSession() as session,
    ):
        body, headers = msgspec.json.encode([HANDSHAKE, SUBSCRIBE]), {"Content-Type": "application/json"}
        direct = headers | {"Accept": "application/json", "Authorization": ACCOUNT.authorization()}
        bare = await session.post(f"{cometd.url}{PATH}", data=body, headers=direct)
        proxied = await session.post(f"{stage.url}{PATH}", data=body, headers=headers)
        assert proxied.status == bare.status == 500
        assert not {key for key in await stage.handshakes() if key[2] == "accepted"}


async def test_the_java_servers_rejection_of_a_mixed_batch_comes_through_as_a_close(
    open_stage: StageOpener, cometd: Upstream, directory: Path
) -> None:
    async with (
        open_stage(cometd, store(directory, ACCOUNT.files())) as stage,
        aiohttp.ClientSession() as session,
    ):
        closes = []
        for url in (cometd.url, stage.url):
            async with session.ws_connect(f"{url}{PATH}") as socket:
                await socket.send_str(msgspec.json.encode([HANDSHAKE, SUBSCRIBE]).decode())
                frame = await socket.receive(timeout=10)
                assert frame.type is aiohttp.WSMsgType.CLOSE
                closes.append(frame.data)
        assert closes[0] == closes[1]
        assert await stage.handshakes() == {("websocket", "stored", "unanswered", "upstream_gone"): 1}


async def test_faye_handshakes_by_long_polling_and_goes_on_over_its_websocket(
    open_stage: StageOpener, faye: Upstream, directory: Path
) -> None:
    async with (
        open_stage(faye, store(directory, ACCOUNT.files())) as stage,
        stage.client(Leg("faye", "node", "websocket")) as client,
    ):
        await client.start(CHANNEL)
        await faye.publish(CHANNEL, 0, 1000)
        await client.receive(CHANNEL, 0, 1000)
        await client.unsubscribe(CHANNEL)
        await client.disconnect()

        assert await stage.handshakes() == {("long-polling", "stored", "accepted", "ok"): 1}
        assert stage.tap.count(EXACT.encode(), upgraded=True) == 1000
