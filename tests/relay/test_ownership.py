"""A clientId is worth nothing to another client: on no socket, transport or replica, and its owner keeps it."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.bayeux.ownership import Ownership
from proxy.demo.simulator import Simulator
from tests.conftest import CLIENT_ID_KEY_FILE, Message, Running, handshake, receive, running
from tests.relay.talking import (
    ANN,
    BOB,
    BY_KEY,
    KEYS,
    PAGE,
    TRANSPORTS,
    Talk,
    connect,
    shaken,
    subscribe,
    talking,
    with_cookie,
)


OWN: Final = {"credentials.default.source": "cookie", "gate.origins": [PAGE]}
UNKNOWN: Final = "402::Unknown client"
PLACES: Final = ("the same proxy", "a replica", "after a restart")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
async def known(upstream: Simulator) -> AsyncIterator[Running]:
    """A proxy that knows two clients."""
    async with running(upstream.url, BY_KEY) as proxied:
        yield proxied


@asynccontextmanager
async def elsewhere(upstream: Simulator, first: Running, place: str) -> AsyncIterator[Running]:
    """Where a client may come back to."""
    if place == "the same proxy":
        yield first
        return
    if place == "after a restart":
        await first.proxy.drain()
        await first.proxy.__aexit__()
    async with running(upstream.url, BY_KEY) as other:
        yield other


def without_a_tag(client_id: str) -> str:
    return client_id.rpartition(".")[0]


def every_message(client_id: str) -> Iterator[Message]:
    """One of each kind that names a session."""
    yield connect(client_id)
    yield subscribe(client_id, "/alarms/*")
    yield {"channel": "/meta/unsubscribe", "id": "u", "clientId": client_id, "subscription": "/alarms/*"}
    yield {"channel": "/meta/disconnect", "id": "d", "clientId": client_id}


async def assert_worthless(talk: Talk, client_id: str) -> None:
    """Whatever is said with a clientId, it is nobody's."""
    for said in (client_id, without_a_tag(client_id), client_id[:-1], f"{client_id}A"):
        for message in every_message(said):
            [reply] = await talk(message)
            assert (reply["successful"], reply["error"], reply["clientId"]) == (False, UNKNOWN, said)
            assert reply["advice"] == {"reconnect": "handshake", "interval": 0}


async def test_upstream_never_sees_a_tag_and_the_client_never_a_clientid_without(
    known: Running, upstream: Simulator, transport: str
) -> None:
    async with talking(known, transport, headers=ANN) as talk:
        client_id = await shaken(talk)
        assert without_a_tag(client_id) in upstream.client_ids
        for message in every_message(client_id):
            [reply] = await talk(message)
            assert reply["successful"] is True
    assert {message["clientId"] for message in upstream.messages[1:]} == {without_a_tag(client_id)}
    assert client_id.rpartition(".")[2].encode() not in b"".join(upstream.payloads)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("begun", TRANSPORTS)
@pytest.mark.parametrize("continued", TRANSPORTS)
async def test_owner_goes_on_with_its_clientid(
    known: Running, upstream: Simulator, begun: str, continued: str, place: str
) -> None:
    """As Faye does, which handshakes by long-polling and then takes a WebSocket; and as all do after a lost one."""
    async with talking(known, begun, headers=ANN) as talk:
        client_id = await shaken(talk)
        [reply] = await talk(subscribe(client_id, "/alarms/*"))
        assert reply["successful"] is True
        cookie = talk.cookie
    await upstream.until(lambda: upstream.open_sockets == 0)
    async with (
        elsewhere(upstream, known, place) as proxied,
        talking(proxied, continued, headers=with_cookie(ANN, cookie)) as talk,
    ):
        assert upstream.publish("/alarms/1", {"text": "meanwhile"}) == 1
        notification, reply = await talk(connect(client_id, continued))
        assert notification["data"] == {"text": "meanwhile"}
        assert reply["successful"] is True


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("begun", TRANSPORTS)
@pytest.mark.parametrize("continued", TRANSPORTS)
async def test_clientid_of_another_client_is_worth_nothing(
    known: Running, upstream: Simulator, begun: str, continued: str, place: str
) -> None:
    async with talking(known, begun, headers=ANN) as talk:
        client_id = await shaken(talk)
        cookie = talk.cookie
    before = len(upstream.messages)
    async with elsewhere(upstream, known, place) as proxied:
        async with talking(proxied, continued, headers=with_cookie(BOB, cookie)) as talk:  # even with the leaked cookie
            await assert_worthless(talk, client_id)
        count = proxied.count("messages_refused_total", transport=continued, reason="client_id")
        assert count == 16
    assert len(upstream.messages) == before
    assert without_a_tag(client_id) in upstream.client_ids


async def test_clientid_of_another_client_is_worth_nothing_amid_a_session(
    known: Running, upstream: Simulator, transport: str
) -> None:
    async with (
        talking(known, transport, headers=ANN) as ann,
        talking(known, transport, headers=BOB) as bob,
    ):
        ann_id, bob_id = await shaken(ann), await shaken(bob)
        [subscribed] = await bob(subscribe(bob_id, "/alarms/*"))
        assert subscribed["successful"] is True
        await assert_worthless(bob, ann_id)
        replies = await bob(
            subscribe(bob_id, "/events/*", "1"),
            subscribe(ann_id, "/events/*", "2"),
            subscribe(f"{without_a_tag(ann_id)}.{bob_id.rpartition('.')[2]}", "/events/*", "3"),
            subscribe(bob_id, "/measurements/*", "4"),
        )
        assert {reply["id"]: reply["successful"] for reply in replies} == {"1": True, "2": False, "3": False, "4": True}
        [subscribed] = await ann(subscribe(ann_id, "/operations/*"))
        assert subscribed["successful"] is True
    subscribed_to = {session.client_id: session.subscriptions for session in upstream.sessions}
    assert subscribed_to[without_a_tag(ann_id)] == {"/operations/*"}
    assert subscribed_to[without_a_tag(bob_id)] == {"/alarms/*", "/events/*", "/measurements/*"}


async def test_clientid_is_as_good_by_either_way_to_say_a_key(known: Running, transport: str) -> None:
    async with talking(known, transport, headers=ANN) as talk:
        client_id = await shaken(talk)
        cookie = talk.cookie
    basic = base64.b64encode(f"t0815/ann:{KEYS['ann']}".encode()).decode()
    headers = with_cookie(ANN | {"Authorization": f"Basic {basic}"}, cookie)
    async with talking(known, transport, headers=headers) as talk:
        [reply] = await talk(connect(client_id, transport))
        assert reply["successful"] is True


@pytest.mark.parametrize(
    "client_id",
    [
        pytest.param(b"", id="missing"),
        pytest.param(b',"clientId":null', id="null"),
        pytest.param(b',"clientId":5', id="a number"),
        pytest.param(b',"clientId":""', id="an empty text"),
        pytest.param(b',"clientId":"."', id="a dot"),
    ],
)
async def test_message_without_a_clientid_is_nobodys(
    known: Running, upstream: Simulator, transport: str, client_id: bytes
) -> None:
    """Without one, upstream would go by the WebSocket or by a cookie."""
    async with talking(known, transport, headers=ANN) as talk:
        await shaken(talk)
        for channel in (b"/meta/connect", b"/meta/disconnect", b"/meta/unsubscribe"):
            [reply] = await talk(b'{"channel":"%b"%b}' % (channel, client_id))
            assert reply["error"] == UNKNOWN
    assert len(upstream.messages) == 1


async def test_handshake_with_a_clientid_begins_a_session_of_its_own(
    known: Running, upstream: Simulator, transport: str
) -> None:
    async with talking(known, transport, headers=ANN) as talk:
        anns = await shaken(talk)
    async with talking(known, transport, headers=BOB) as talk:
        [answer] = await talk(handshake(clientId=anns))
        assert answer["successful"] is True
        assert without_a_tag(answer["clientId"]) != without_a_tag(anns)
    assert [message.get("clientId") for message in upstream.messages] == [None, None]


async def test_key_that_is_changed_verifies_until_it_is_taken_out(upstream: Simulator, tmp_path: Path) -> None:
    old, new = CLIENT_ID_KEY_FILE.read_text().strip(), "another secret of tests"
    client_ids: list[str] = []
    for lines, accepted in (([old], []), ([new, old], [True]), ([new], [False, True]), ([old], [True, False])):
        file = tmp_path / "-".join(line[0] for line in lines)
        file.write_text("".join(f"{line}\n" for line in lines))
        async with (
            running(upstream.url, BY_KEY | {"gate.client_id_key_file": str(file)}) as proxied,
            talking(proxied, "websocket", headers=ANN) as talk,
        ):
            replies = [await talk(subscribe(client_id, "/alarms/*")) for client_id in client_ids]
            assert [reply.get("error") != UNKNOWN for [reply] in replies] == accepted
            if len(client_ids) < 2:
                client_ids.append(await shaken(talk))


async def test_session_of_another_platform_user_is_not_taken_over(transport: str) -> None:
    def brings(name: str) -> dict[str, str]:
        return {"Origin": PAGE, "Cookie": f"authorization={name}; XSRF-TOKEN=x-{name}"}

    sessions = {name: f"x-{name}" for name in ("ann", "bob")}
    async with Simulator(sessions=sessions) as upstream, running(upstream.url, OWN, values={}) as proxied:
        async with talking(proxied, transport, headers=brings("ann")) as talk:
            client_id = await shaken(talk)
            [reply] = await talk(subscribe(client_id, "/alarms/*"))
            assert reply["successful"] is True
            cookie = talk.cookie
        before = len(upstream.messages)
        async with talking(proxied, transport, headers=with_cookie(brings("bob"), cookie)) as talk:
            await assert_worthless(talk, client_id)
        assert len(upstream.messages) == before
        async with talking(proxied, transport, headers=with_cookie(brings("ann"), cookie)) as talk:
            [reply] = await talk(connect(client_id, transport))
            assert reply["successful"] is True
        # Who brings no cookie has no clientId either.
        async with proxied.post([connect(client_id)], headers={"Origin": PAGE}) as response:
            [reply] = await response.json()
            assert (reply["successful"], reply["advice"]) == (False, {"reconnect": "none"})


async def test_clients_without_identities_share_what_upstream_knows(
    proxied: Running, upstream: Simulator, transport: str
) -> None:
    async with talking(proxied, transport) as talk:
        client_id = await shaken(talk)
        [reply] = await talk(subscribe(client_id, "/alarms/*"))
        assert reply["successful"] is True
    assert client_id in upstream.client_ids


@pytest.mark.logs_errors  # a stored value is denied
async def test_refusal_of_what_waited_names_the_clientid_as_its_owner_does() -> None:
    shaking, may_answer = asyncio.Event(), asyncio.Event()

    async def deny(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoclose=False)
        await socket.prepare(request)
        await socket.receive()
        shaking.set()
        await may_answer.wait()
        await socket.send_json([{"channel": "/meta/handshake", "successful": False, "error": "403::Denied"}])
        await socket.receive()
        return socket

    application = web.Application()
    application.router.add_get("/{path:.*}", deny)
    client_id = Ownership(CLIENT_ID_KEY_FILE.read_bytes().splitlines(), "ann", "", "default", "t0815").tagged("c")
    async with (
        TestServer(application, host="localhost") as server,
        running(str(server.make_url("")), BY_KEY) as proxied,
        proxied.socket(headers=ANN) as first,
        proxied.socket(headers=ANN) as second,
    ):
        await first.send_json([handshake()])
        await shaking.wait()
        await second.send_json([handshake(), connect(client_id)])
        async with proxied.client.get(proxied.url):  # what was sent before has come in by then
            may_answer.set()
        replies = await receive(second)
        assert [(reply["successful"], reply.get("clientId")) for reply in replies] == [
            (False, None),
            (False, client_id),
        ]


async def test_goodbye_to_a_held_connect_names_the_clientid_as_its_owner_does(
    known: Running, upstream: Simulator
) -> None:
    async with talking(known, "long-polling", headers=ANN) as talk:
        client_id = await shaken(talk)
        async with asyncio.TaskGroup() as group:
            held = group.create_task(talk({"channel": "/meta/connect", "id": "c", "clientId": client_id}))
            await upstream.until(lambda: upstream.held_connects == 1)
            await known.proxy.drain()
        [goodbye] = held.result()
    assert (goodbye["successful"], goodbye["advice"]["reconnect"]) == (True, "retry")
    assert goodbye["clientId"] == client_id
