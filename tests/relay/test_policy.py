"""What a client may not say is answered by the proxy, message by message, on both transports alike."""

from typing import Any

import pytest

from proxy.demo.simulator import Simulator
from proxy.gate.endpoints import ENDPOINTS
from tests.conftest import Message, Running, handshake, running
from tests.relay.talking import ANN, BOB, BY_KEY, KEYS, TRANSPORTS, connect, shaken, subscribe, talking


REASONS = ("subscribe", "publish", "call", "client_id")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def refused(proxied: Running, transport: str) -> dict[str, float]:
    """How many messages were refused, by reason."""
    counts = {reason: proxied.count("messages_refused_total", transport=transport, reason=reason) for reason in REASONS}
    return {reason: count for reason, count in counts.items() if count}


def told(replies: list[Message]) -> dict[Any, bool]:
    """What became of each message, by its id."""
    assert all(reply["successful"] or reply["error"].startswith("403::") for reply in replies)
    return {reply["id"]: reply["successful"] for reply in replies}


async def test_refused_messages_are_answered_and_the_rest_of_the_batch_goes_up(
    proxied: Running, upstream: Simulator, transport: str
) -> None:
    async with talking(proxied, transport) as talk:
        client_id = await shaken(talk)
        replies = await talk(
            subscribe(client_id, "/**", "1"),
            subscribe(client_id, "/alarms/*", "2"),
            {"channel": "/alarms/1", "id": "3", "clientId": client_id, "data": {"text": "hello"}},
            subscribe(client_id, ["/events/1", "/measurements/*"], "4"),
            {"channel": "/service/call", "id": "5", "clientId": client_id, "data": {}},
            subscribe(client_id, ["/events/1", "/inventory/1"], "6"),
        )
        assert [reply["id"] for reply in replies] == ["1", "3", "5", "6", "2", "4"]  # ours are in front
        assert told(replies) == {"1": False, "2": True, "3": False, "4": True, "5": False, "6": False}
        assert replies[3] == {
            "channel": "/meta/subscribe",
            "id": "6",
            "clientId": client_id,
            "subscription": ["/events/1", "/inventory/1"],
            "successful": False,
            "error": "403::This client may not subscribe to that channel",
        }
        assert refused(proxied, transport) == {"subscribe": 2, "publish": 1, "call": 1}
        assert [message["id"] for message in upstream.messages[1:]] == ["2", "4"]

        assert told(await talk(subscribe(client_id, "/events/*", "7"))) == {"7": True}  # it is still there


async def test_batch_that_is_refused_whole_does_not_go_up(
    proxied: Running, upstream: Simulator, transport: str
) -> None:
    async with talking(proxied, transport) as talk:
        client_id = await shaken(talk)
        replies = await talk(subscribe(client_id, "/**"), {"channel": "/a", "id": "p", "clientId": client_id})
        assert told(replies) == {"s": False, "p": False}
        assert len(upstream.payloads) == 1
        replies = await talk(subscribe(client_id, "/**"))
        assert told(replies) == {"s": False}
        assert len(upstream.payloads) == 1
    assert refused(proxied, transport) == {"subscribe": 2, "publish": 1}


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(rb'{"channel":"\/meta\/subscribe","id":"1","subscription":"\/\u002a\u002a"}', id="everything"),
        pytest.param(rb'{"channel":"\u002fmeta/subscribe","id":"1","subscription":["/\u002a"]}', id="one segment"),
        pytest.param(rb'{"channel":"/meta/subscribe","id":"1","subscription":"/meta/**"}', id="the meta family"),
        pytest.param(rb'{"channel":"/meta/subscribe","id":"1","subscription":"/service/**"}', id="services"),
        pytest.param(rb'{"channel":"/meta/subscribe","id":"1","subscription":"/alarms/{b}"}', id="a variable"),
        pytest.param(rb'{"channel":"/meta/subscribe","id":"1","subscription":["/alarms/1",["/**"]]}', id="nested"),
        pytest.param(rb'{"channel":"/meta/subscribe","id":"1"}', id="nothing"),
        pytest.param(
            rb'{"channel":"/meta/subscribe","id":"1","subscription":"/alarms/1","subscri\u0070tion":"/**"}', id="twice"
        ),
        pytest.param(rb'{"channel":"/alarms/1","id":"1","ch\u0061nnel":"/service/x","data":{}}', id="two channels"),
        pytest.param(rb'{"channel":"\u002fservice\u002fx","id":"1","data":{}}', id="a service with escapes"),
        pytest.param(rb'{"channel":"/alarms/1\u0000","id":"1","data":{}}', id="NUL behind"),
        pytest.param(rb'{"channel":"/alarms/*","id":"1","data":{}}', id="published to a pattern"),
        pytest.param(rb'{"channel":"/alarms//1","id":"1","data":{}}', id="an empty segment"),
    ],
)
async def test_no_spelling_of_a_message_gets_around_the_policy(
    proxied: Running, upstream: Simulator, transport: str, message: bytes
) -> None:
    async with talking(proxied, transport) as talk:
        assert told(await talk(message)) == {"1": False}
    assert upstream.messages == []


async def test_unsubscribing_connecting_and_leaving_is_free(proxied: Running, transport: str) -> None:
    async with talking(proxied, transport) as talk:
        client_id = await shaken(talk)
        unsubscribe = {"channel": "/meta/unsubscribe", "clientId": client_id}
        leave = {"channel": "/meta/disconnect", "id": "4", "clientId": client_id}
        for message in (
            unsubscribe | {"id": "1", "subscription": "/**"},
            unsubscribe | {"id": "2", "subscription": ["/service/a", "/meta/**"]},
            connect(client_id, transport) | {"id": "3"},
            leave,
        ):
            assert told(await talk(message)) == {message["id"]: True}
    assert refused(proxied, transport) == {}


AGENTS = ("/notification/operations", "/devicecontrol/notifications")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_default_of_each_endpoint(proxied: Running, transport: str, endpoint: str) -> None:
    async with talking(proxied, transport, endpoint) as talk:
        client_id = await shaken(talk)
        subscriptions = {"1": "/12345", "2": "/alarms/*", "3": "/*", "4": "/**", "5": ["/12345", "/alarms/1"]}
        replies = await talk(*(subscribe(client_id, name, number) for number, name in subscriptions.items()))
        is_of_agents = endpoint in AGENTS
        assert told(replies) == {"1": is_of_agents, "2": not is_of_agents, "3": False, "4": False, "5": False}


async def test_what_is_granted_at_an_endpoint_is_granted_there_alone(upstream: Simulator, transport: str) -> None:
    grants = [
        {"endpoints": ["/cep/realtime"], "subscribe": ["/cep/**"], "publish": ["/said/{id}"]},
        {"endpoints": ["/cep/realtime", "/notification/realtime"], "call": ["/service/*"]},
    ]
    expected = {
        "/cep/realtime": {"1": True, "2": True, "3": True, "4": False},
        "/notification/realtime": {"1": False, "2": False, "3": True, "4": False},
        "/notification/operations": {"1": False, "2": False, "3": False, "4": False},
    }
    async with running(upstream.url, {"gate.grants": grants}) as proxied:
        for endpoint, became in expected.items():
            async with talking(proxied, transport, endpoint) as talk:
                client_id = await shaken(talk)
                replies = await talk(
                    subscribe(client_id, "/cep/*", "1"),
                    {"channel": "/said/1", "id": "2", "clientId": client_id, "data": 1},
                    {"channel": "/service/x", "id": "3", "clientId": client_id, "data": 1},
                    subscribe(client_id, "/alarms/*", "4"),  # grants stand in place of the default
                )
                assert told(replies) == became


async def test_everything_granted_is_neither_the_meta_family_nor_services_to_hear(
    upstream: Simulator, transport: str
) -> None:
    everything = [{"subscribe": ["/**"], "publish": ["/**"], "call": ["/service/**"]}]
    async with running(upstream.url, {"gate.grants": everything}) as proxied, talking(proxied, transport) as talk:
        client_id = await shaken(talk)
        replies = await talk(
            {"channel": "/service/a/b", "id": "1", "clientId": client_id, "data": 1},
            {"channel": "/a/b", "id": "2", "clientId": client_id, "data": 1},
        )
        assert told(replies) == {"1": True, "2": True}
        replies = await talk(
            subscribe(client_id, ["/**", "/a/b", "/*"], "1"),
            subscribe(client_id, "/meta/**", "2"),
            subscribe(client_id, "/service/**", "3"),
        )
        assert told(replies) == {"1": True, "2": False, "3": False}


async def test_each_client_has_its_own_grants(upstream: Simulator, transport: str) -> None:
    grants = {"ann": [{"subscribe": ["/halls/{id}"]}], "bob": None}
    clients = [client | {"grants": grants[client["name"]]} for client in BY_KEY["clients"]]
    settings = BY_KEY | {"clients": clients, "gate.grants": [{"subscribe": ["/common"]}]}
    async with running(upstream.url, settings) as proxied:
        for headers, became in ((ANN, {"1": True, "2": False}), (BOB, {"1": False, "2": True})):
            async with talking(proxied, transport, headers=headers) as talk:
                client_id = await shaken(talk)
                replies = await talk(subscribe(client_id, "/halls/7", "1"), subscribe(client_id, "/common", "2"))
                assert told(replies) == became
                assert told(await talk(subscribe(client_id, "/halls/*", "3"))) == {"3": False}


async def test_a_session_of_one_endpoint_is_held_to_the_grants_of_the_other(
    upstream: Simulator, transport: str
) -> None:
    settings = BY_KEY | {"gate.grants": [{"endpoints": ["/cep/realtime"], "subscribe": ["/**"]}]}
    async with running(upstream.url, settings) as proxied:
        async with talking(proxied, transport, "/cep/realtime", ANN) as talk:
            client_id = await shaken(talk)
        async with talking(proxied, transport, "/notification/realtime", ANN) as talk:
            assert told(await talk(subscribe(client_id, "/**", "1"))) == {"1": False}


async def test_refused_message_beside_a_handshake_leaves_the_handshake_alone(proxied: Running, transport: str) -> None:
    async with talking(proxied, transport) as talk:
        replies = await talk(handshake(), {"channel": "/alarms/1", "id": "2", "data": 1})
        assert told(replies) == {"1": True, "2": False}
        client_id = next(reply["clientId"] for reply in replies if reply["id"] == "1")
        assert told(await talk(subscribe(client_id, "/alarms/1"))) == {"s": True}
    assert proxied.handshakes(transport) == {("accepted", "ok"): 1}


async def test_batch_that_is_too_long_is_refused_as_a_whole(upstream: Simulator) -> None:
    async with running(upstream.url, {"limits.batch_messages": 2} | BY_KEY) as proxied:
        batch = [handshake(), {"channel": "/a"}, {"channel": "/b"}]
        for headers in (ANN, {}):  # known, or not
            async with proxied.post(batch, headers=headers) as response:
                assert response.status == 413
                assert "limits.batch_messages" in await response.text()
        async with proxied.socket(headers=ANN) as socket:
            await socket.send_json(batch)
            frame = await socket.receive(timeout=10)
            assert frame.data == 1009
        assert proxied.count("limits_reached_total", limit="batch_messages") == 3
    assert upstream.messages == []


async def test_smartrest_passes_for_those_alone_who_are_granted_everything(upstream: Simulator) -> None:
    everything = [{"subscribe": ["/**"], "publish": ["/**"], "call": ["/service/**"]}]
    clients = [client | ({"grants": everything} if client["name"] == "ann" else {}) for client in BY_KEY["clients"]]
    settings = BY_KEY | {"clients": clients, "handshake.smartrest": "true"}
    async with running(upstream.url, settings) as proxied:
        for headers, status in ((ANN, 200), (BOB, 403), ({}, 401)):
            sent = {"X-Id": "1", "Content-Type": "text/plain"} | headers
            async with proxied.post(b"[]", headers=sent) as response:
                assert response.status == status
    assert len(upstream.requests) == 1
    assert KEYS["ann"] not in str(upstream.requests[0].headers)
