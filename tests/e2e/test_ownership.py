"""A clientId is of use to its client alone, and to that one at every proxy that has the key."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from .clients import Keys
from .conftest import StageOpener
from .stage import Browser, Client, Leg, Stage, Transport, store
from .upstreams import ACCOUNT, COOKIES, Upstream


PATH = "/notification/realtime"
CHANNEL = "/measurements/4711"
BY_COOKIE: dict[str, object] = {"credentials.default.source": "cookie"}
AT_ONCE: dict[str, object] = {"drain.spread_seconds": 0.1}
TRANSPORTS: list[Transport] = ["long-polling", "websocket"]
LEGS = [Leg("cometd", "node", transport) for transport in TRANSPORTS]
NODE_LEGS = [Leg(library, "node", transport) for library in ("c8y", "cometd", "faye") for transport in TRANSPORTS]
CHROMIUM_LEGS = [Leg(library, "chromium", transport) for library in ("c8y", "cometd") for transport in TRANSPORTS]

Message = Mapping[str, Any]
Replies = list[dict[str, Any]]


class Raw:
    """A client that says what it likes, in POSTs or on one WebSocket."""

    def __init__(self, session: aiohttp.ClientSession, url: str, transport: Transport) -> None:
        self._session = session
        self._url = url
        self._transport = transport
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def ask(self, *batch: Message) -> Replies:
        """Say something, and return what comes next."""
        body = msgspec.json.encode(batch)
        if self._transport == "long-polling":
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            async with self._session.post(self._url, data=body, headers=headers) as answer:
                assert answer.status == 200
                return msgspec.json.decode(await answer.read(), type=Replies)
        if self._socket is None:
            self._socket = await self._session.ws_connect(self._url)
        await self._socket.send_str(body.decode())
        return await self.hear()

    async def hear(self) -> Replies:
        """What comes next on the WebSocket."""
        assert self._socket
        return msgspec.json.decode(await self._socket.receive_str(timeout=10), type=Replies)


@asynccontextmanager
async def raw(stage: Stage, transport: Transport, headers: Mapping[str, str]) -> AsyncIterator[Raw]:
    """A client with these headers, and no cookies of its own."""
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout) as session:
        yield Raw(session, f"{stage.url}{PATH}", transport)


class Fleet:
    """Clients of every kind at once, each on a channel of its own."""

    def __init__(self, stage: Stage, upstream: Upstream, clients: Sequence[Client]) -> None:
        self._stage = stage
        self._upstream = upstream
        self._clients = {f"/measurements/{number}": client for number, client in enumerate(clients)}

    async def start(self) -> None:
        await self._each(lambda client, channel: client.start(channel))

    async def receive(self, first: int, count: int) -> None:
        """Publish to each, and wait for it: nothing else may happen to them meanwhile."""

        async def receive(client: Client, channel: str) -> None:
            await self._upstream.publish(channel, first, count)
            await client.receive(channel, first, count)

        await self._each(receive)

    async def go_on(self) -> None:
        """Wait until each gets measurements again, without a new handshake."""
        await self._each(
            lambda client, channel: client.goes_on(lambda number: self._upstream.publish(channel, number, 1), 10)
        )

    async def recovered(self) -> None:
        await self._each(lambda client, channel: client.recovered(channel))

    async def disconnect(self) -> None:
        await self._each(lambda client, _: client.disconnect())

    async def _each(self, what: Callable[[Client, str], Any]) -> None:
        await asyncio.gather(*(what(client, channel) for channel, client in self._clients.items()))


@asynccontextmanager
async def fleet(stage: Stage, upstream: Upstream, legs: Sequence[Leg], keys: Keys) -> AsyncIterator[Fleet]:
    """A client for each leg: in Node with the key of one client, in Chromium with its own cookies."""
    async with AsyncExitStack() as programs:
        clients = [
            stage.client(leg, auth="cookie", cookies=COOKIES[0])
            if leg.place == "chromium"
            else stage.client(leg, **keys.options(leg, "one"))
            for leg in legs
        ]
        yield Fleet(stage, upstream, await asyncio.gather(*map(programs.enter_async_context, clients)))


def connect(client_id: str | None, transport: Transport) -> Message:
    """A `/meta/connect` that upstream answers at once; without a clientId it would go by a cookie."""
    asked = {"id": "1", "channel": "/meta/connect", "connectionType": transport, "advice": {"timeout": 0}}
    return asked if client_id is None else asked | {"clientId": client_id}


def claims(client_id: str | None, transport: Transport) -> list[Message]:
    """All that somebody could want to do with a session."""
    named = {} if client_id is None else {"clientId": client_id}
    return [
        connect(client_id, transport),
        {"id": "2", "channel": "/meta/subscribe", "subscription": "/alarms/*", **named},
        {"id": "3", "channel": "/meta/unsubscribe", "subscription": CHANNEL, **named},
        {"id": "4", "channel": "/meta/disconnect", **named},
    ]


def is_told_unknown(replies: Replies, asked: Sequence[Message]) -> bool:
    """Whether this is the answer to all of a batch, and nothing else: that the clientId is nobody's."""
    unknown = {
        "successful": False,
        "error": "402::Unknown client",
        "advice": {"reconnect": "handshake", "interval": 0},
    }
    kept = ("id", "channel", "clientId", "subscription")
    return replies == [{name: one[name] for name in kept if name in one} | unknown for one in asked]


def browser_of(stage: Stage) -> dict[str, str]:
    """The cookie by which CometD knows who does long-polling, as it came down; none where it did not."""
    found = [match[0].decode() for sent in stage.tap.sent() if (match := re.search(rb"BAYEUX_BROWSER=[^;\r]+", sent))]
    return {"Cookie": found[0]} if found else {}


def headers_of(browser: Browser, cookies: Mapping[str, str]) -> dict[str, str]:
    """What a browser sends from its page."""
    return {"Origin": browser.page, "Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}


@pytest.mark.parametrize(
    ("leg", "transport"),
    [
        pytest.param(LEGS[0], "long-polling", id="with-the-cookie-of-long-polling"),
        pytest.param(LEGS[0], "websocket", id="from-long-polling-to-websocket"),
        pytest.param(LEGS[1], "websocket", id="from-websocket-to-websocket"),
    ],
)
async def test_upstream_hands_a_session_over_to_whoever_names_its_clientid(
    open_stage: StageOpener, cometd: Upstream, directory: Path, leg: Leg, transport: Transport
) -> None:
    """What the others prevent can be done where clients have no identities: these are no empty claims."""
    async with open_stage(cometd, store(directory, ACCOUNT.files())) as stage, stage.client(leg) as victim:
        client_id = await victim.start(CHANNEL)
        async with raw(stage, transport, browser_of(stage) if transport == "long-polling" else {}) as thief:
            channels: set[str] = set()
            while CHANNEL not in channels:  # the victim asks for its session back
                replies = await thief.ask(connect(client_id, transport))
                assert all(reply.get("successful", True) for reply in replies)
                channels = {reply["channel"] for reply in replies}
                await cometd.publish(CHANNEL, 0, 1)


@pytest.mark.parametrize("leg", LEGS, ids=str)
async def test_a_clientid_is_of_no_use_to_another_client(
    open_stage: StageOpener, upstream: Upstream, directory: Path, keys: Keys, leg: Leg
) -> None:
    async with (
        open_stage(upstream, keys.settings(directory)) as stage,
        stage.client(leg, **keys.options(leg, "one")) as victim,
    ):
        client_id = await victim.start(CHANNEL)
        untagged, _, tag = client_id.rpartition(".")
        assert untagged
        for number, transport in enumerate(TRANSPORTS):
            async with raw(stage, transport, keys.headers("other") | browser_of(stage)) as thief:
                for claimed in (client_id, untagged, f"{untagged}.{tag[::-1]}", None):
                    asked = claims(claimed, transport)
                    assert is_told_unknown(await thief.ask(*asked), asked)
                await upstream.publish(CHANNEL, number * 10, 10)
                await victim.receive(CHANNEL, number * 10, 10)
                # Had anything of that come here, it would stand in front of this answer.
                last = connect(client_id, transport)
                assert is_told_unknown(await thief.ask(last), [last])
        await victim.disconnect()
        assert await stage.handshakes() == {(leg.transport, "stored", "accepted", "ok"): 1}
        assert (await upstream.seen()).accepted == 1


async def test_a_clientid_is_of_no_use_to_another_browser_session(
    open_stage: StageOpener, browser: Browser, cometd: Upstream
) -> None:
    """Where clients bring their own cookie, it is that cookie that a clientId belongs to."""
    leg, (own, foreign) = Leg("c8y", "chromium", "websocket"), COOKIES
    async with (
        open_stage(cometd, BY_COOKIE) as stage,
        stage.client(leg, auth="cookie", cookies=own) as victim,
    ):
        client_id = await victim.start(CHANNEL)
        for number, transport in enumerate(TRANSPORTS):
            async with raw(stage, transport, headers_of(browser, foreign)) as thief:
                for claimed in (client_id, client_id.rpartition(".")[0], None):
                    asked = claims(claimed, transport)
                    assert is_told_unknown(await thief.ask(*asked), asked)
                await cometd.publish(CHANNEL, number * 10, 10)
                await victim.receive(CHANNEL, number * 10, 10)
                last = connect(client_id, transport)
                assert is_told_unknown(await thief.ask(last), [last])
        async with raw(stage, "websocket", headers_of(browser, own)) as owner:
            [reply] = await owner.ask(connect(client_id, "websocket"))
            assert reply["successful"] is True


async def test_sessions_go_on_after_a_restart_of_the_proxy(
    open_stage: StageOpener, cometd: Upstream, faye: Upstream, directory: Path, keys: Keys
) -> None:
    async def live_through_it(upstream: Upstream) -> None:
        settings = keys.settings(directory) | AT_ONCE
        async with open_stage(upstream, settings) as stage, fleet(stage, upstream, NODE_LEGS, keys) as clients:
            await clients.start()
            await clients.receive(0, 10)
            await stage.restart()
            await clients.go_on()
            await clients.disconnect()
            assert await stage.handshakes() == {}
            assert (await upstream.seen()).accepted == len(NODE_LEGS)

    # Most of it is waiting: clients are told to take their time.
    await asyncio.gather(live_through_it(cometd), live_through_it(faye))


async def test_sessions_go_on_at_a_replica_with_the_same_key_and_begin_anew_at_one_with_another(
    open_stage: StageOpener,
    cometd: Upstream,
    faye: Upstream,
    directory: Path,
    keys: Keys,
    new_key_file: Callable[[], str],
) -> None:
    async def live_through_it(upstream: Upstream) -> None:
        settings = keys.settings(directory) | AT_ONCE
        async with open_stage(upstream, settings) as stage, fleet(stage, upstream, NODE_LEGS, keys) as clients:
            await _hand_over_twice(stage, clients, new_key_file())
            assert (await upstream.seen()).accepted == 2 * len(NODE_LEGS)

    await asyncio.gather(live_through_it(cometd), live_through_it(faye))


async def test_browsers_sessions_go_on_at_a_replica_with_the_same_key_and_begin_anew_at_one_with_another(
    open_stage: StageOpener, cometd: Upstream, keys: Keys, new_key_file: Callable[[], str]
) -> None:
    async with (
        open_stage(cometd, BY_COOKIE | AT_ONCE) as stage,
        fleet(stage, cometd, CHROMIUM_LEGS, keys) as clients,
    ):
        await _hand_over_twice(stage, clients, new_key_file())
        assert (await cometd.seen()).accepted == 2 * len(CHROMIUM_LEGS)


async def _hand_over_twice(stage: Stage, clients: Fleet, other_key_file: str) -> None:
    await clients.start()
    await clients.receive(0, 10)
    await stage.hand_over()
    await clients.go_on()
    assert await stage.handshakes() == {}

    await stage.hand_over({"gate.client_id_key_file": other_key_file})
    await clients.recovered()
    await clients.receive(1000, 10)
    await clients.disconnect()
    assert {key[2:] for key in await stage.handshakes()} == {("accepted", "ok")}


async def test_faye_changes_its_transport_with_a_clientid_of_its_own(
    open_stage: StageOpener, upstream: Upstream, directory: Path, keys: Keys
) -> None:
    leg = Leg("faye", "node", "websocket")
    async with (
        open_stage(upstream, keys.settings(directory)) as stage,
        stage.client(leg, **keys.options(leg, "one")) as client,
    ):
        await client.start(CHANNEL)
        await upstream.publish(CHANNEL, 0, 100)
        await client.receive(CHANNEL, 0, 100)
        await client.unsubscribe(CHANNEL)
        await client.disconnect()
        assert await stage.handshakes() == {("long-polling", "stored", "accepted", "ok"): 1}
        assert stage.tap.count(CHANNEL.encode(), upgraded=True) >= 100
