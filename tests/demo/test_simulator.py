"""The simulator is as strict, and as odd, as the platform is documented to be."""

import asyncio
import base64
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import msgspec
import pytest
import trustme

from proxy.demo.sessions import channel_matches
from proxy.demo.simulator import ENDINGS, PATHS, Accounts, Simulator


JWT = "eyJhbGciOiJub25lIn0.e30."
COOKIE = "cookie-of-a-browser-session"
XSRF = "xsrf-of-that-session"
REALTIME = "/notification/realtime"
RETRY = {"interval": 0, "timeout": 5_400_000, "reconnect": "retry"}
HANDSHAKE: dict[str, Any] = {"channel": "/meta/handshake", "version": "1.0"}

Message = dict[str, Any]
Authn = Mapping[str, object]


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    async with Simulator(tokens={JWT}, sessions={COOKIE: XSRF}) as simulator:
        yield simulator


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


def basic(simulator: Simulator) -> str:
    accounts = simulator.accounts
    return base64.b64encode(f"{accounts.tenant}/{accounts.user}:{accounts.password}".encode()).decode()


def handshake_with(authn: Authn | None, **ext: object) -> Message:
    return {**HANDSHAKE, "id": "1", "ext": {"com.cumulocity.authn": authn, **ext}}


class Socket:
    """A client on a WebSocket that says what it is told to say."""

    def __init__(self, opened: aiohttp.ClientWebSocketResponse) -> None:
        self.opened = opened

    async def say(self, *messages: Message) -> list[Message]:
        await self.opened.send_json(list(messages))
        return await self.hear()

    async def hear(self) -> list[Message]:
        heard: list[Message] = await self.opened.receive_json(timeout=5)
        return heard


async def connected(http: aiohttp.ClientSession, simulator: Simulator, **options: Any) -> Socket:
    return Socket(await http.ws_connect(simulator.url + REALTIME, **options))


async def shaken(http: aiohttp.ClientSession, simulator: Simulator, *channels: str) -> tuple[Socket, str]:
    """A WebSocket with a session that is subscribed to `channels`."""
    socket = await connected(http, simulator)
    (reply,) = await socket.say(handshake_with({"token": basic(simulator)}))
    client_id: str = reply["clientId"]
    if channels:
        await socket.say(subscribe(client_id, list(channels)))
    return socket, client_id


def subscribe(client_id: str, subscription: str | list[str]) -> Message:
    return {"channel": "/meta/subscribe", "id": "s", "clientId": client_id, "subscription": subscription}


def connect(client_id: str, timeout: int | None = None) -> Message:
    message: Message = {
        "channel": "/meta/connect",
        "id": "c",
        "clientId": client_id,
        "connectionType": "websocket",
    }
    return message if timeout is None else {**message, "advice": {"timeout": timeout}}


class Poller:
    """A client on long polling, with the headers it was given and the cookies it gets."""

    def __init__(self, http: aiohttp.ClientSession, simulator: Simulator, headers: Mapping[str, str]) -> None:
        self.http = http
        self.url = simulator.url + REALTIME
        self.headers = dict(headers)

    def post(self, *messages: Message, ending: str = "/") -> Any:
        return self.http.post(self.url + ending, json=list(messages), headers=self.headers)

    async def say(self, *messages: Message) -> list[Message]:
        async with self.post(*messages) as response:
            assert response.status == 200
            if cookie := response.headers.get("Set-Cookie"):
                kept = [self.headers["Cookie"]] if "Cookie" in self.headers else []
                self.headers["Cookie"] = "; ".join([*kept, cookie.partition(";")[0]])
            heard: list[Message] = await response.json()
            return heard

    async def shake(self, *channels: str) -> str:
        (reply,) = await self.say(HANDSHAKE)
        client_id: str = reply["clientId"]
        if channels:
            await self.say(subscribe(client_id, list(channels)))
        return client_id


@pytest.fixture
def poller(http: aiohttp.ClientSession, upstream: Simulator) -> Poller:
    return Poller(http, upstream, {"Authorization": f"Basic {basic(upstream)}"})


# -- handshakes --------------------------------------------------------------------------------------------------


async def test_handshake_is_answered_as_documented(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket = await connected(http, upstream)
    (reply,) = await socket.say(handshake_with({"token": basic(upstream)}))
    assert re.fullmatch("[0-9a-z]{26,33}", reply.pop("clientId"))
    assert reply == {
        "channel": "/meta/handshake",
        "id": "1",
        "version": "1.0",
        "minimumVersion": "1.0",
        "supportedConnectionTypes": ["long-polling", "smartrest-long-polling", "websocket"],
        "successful": True,
        "advice": RETRY,
    }


async def test_ack_is_confirmed_only_if_asked_for(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket = await connected(http, upstream)
    (reply,) = await socket.say(handshake_with({"token": basic(upstream)}, ack=True))
    assert reply["ext"] == {"ack": True}


@pytest.mark.parametrize(
    ("authn", "cookie", "admitted"),
    [
        pytest.param({"token": "BASIC"}, None, True, id="user and password"),
        pytest.param({"token": JWT}, None, True, id="token"),
        pytest.param({"xsrfToken": XSRF}, COOKIE, True, id="cookie of the upgrade and its XSRF token"),
        pytest.param({"token": COOKIE, "xsrfToken": XSRF}, None, True, id="replayed cookie and its XSRF token"),
        pytest.param(None, None, False, id="nothing"),
        pytest.param({}, None, False, id="empty authn, as a client without keys sends it"),
        pytest.param({"token": "BASIC="}, None, False, id="almost the password"),
        pytest.param({"token": f"Bearer {JWT}"}, None, False, id="token behind the word Bearer"),
        pytest.param({"xsrfToken": XSRF}, None, False, id="XSRF token without cookie"),
        pytest.param({"xsrfToken": "guessed"}, COOKIE, False, id="cookie with another XSRF token"),
        pytest.param({}, COOKIE, False, id="cookie without XSRF token"),
        pytest.param({"token": ["BASIC"]}, None, False, id="token of a wrong type"),
        pytest.param("BASIC", None, False, id="authn that is no object"),
    ],
)
async def test_websocket_judges_ext_and_upgrade_cookie(
    http: aiohttp.ClientSession, upstream: Simulator, *, authn: Any, cookie: str | None, admitted: bool
) -> None:
    if isinstance(authn, dict) and isinstance(authn.get("token"), str):
        authn = {**authn, "token": authn["token"].replace("BASIC", basic(upstream))}
    headers = {"Cookie": f"authorization={cookie}"} if cookie else {}
    socket = await connected(http, upstream, headers=headers)
    (reply,) = await socket.say(handshake_with(authn))
    if admitted:
        assert reply["successful"] is True
    else:
        assert reply == {
            "channel": "/meta/handshake",
            "id": "1",
            "successful": False,
            "error": "403::Handshake denied",
        }
        assert not upstream.client_ids


async def test_headers_of_the_upgrade_are_no_credential(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket = await connected(http, upstream, headers={"Authorization": f"Basic {basic(upstream)}"})
    (reply,) = await socket.say(HANDSHAKE)
    assert reply["error"] == "403::Handshake denied"


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        pytest.param({"Authorization": "Basic BASIC"}, True, id="user and password"),
        pytest.param({"Authorization": f"Bearer {JWT}"}, True, id="token"),
        pytest.param({"Cookie": f"authorization={COOKIE}", "x-xsrf-token": XSRF}, True, id="cookie and XSRF header"),
        pytest.param({}, False, id="nothing"),
        pytest.param({"Authorization": "Basic"}, False, id="bare Basic"),
        pytest.param({"Authorization": f"Basic {JWT}"}, False, id="token as Basic"),
        pytest.param({"Authorization": "Bearer BASIC"}, False, id="password as Bearer"),
        pytest.param({"Authorization": "Digest BASIC"}, False, id="unknown scheme"),
        pytest.param({"Cookie": f"authorization={COOKIE}"}, False, id="cookie without XSRF header"),
    ],
)
async def test_long_polling_judges_every_request(
    http: aiohttp.ClientSession, upstream: Simulator, *, headers: dict[str, str], admitted: bool
) -> None:
    headers = {name: value.replace("BASIC", basic(upstream)) for name, value in headers.items()}
    poller = Poller(http, upstream, headers)
    (reply,) = await poller.say(handshake_with({"token": basic(upstream)}))
    assert reply["successful"] is admitted
    assert "advice" in reply or reply["error"] == "403::Handshake denied"
    async with poller.post(subscribe("anyone", "/alarms/*")) as response:
        assert response.status == (200 if admitted else 401)


async def test_tfa_goes_with_the_password_and_not_with_a_token(http: aiohttp.ClientSession) -> None:
    async with Simulator(tfa="246810", tokens={JWT}) as upstream:
        socket = await connected(http, upstream)
        replies = await socket.say(
            handshake_with({"token": basic(upstream)}),
            handshake_with({"token": basic(upstream), "tfa": "246810"}),
            handshake_with({"token": JWT}),
        )
        assert [reply["successful"] for reply in replies] == [False, True, True]
        headers = {"Authorization": f"Basic {basic(upstream)}"}
        (denied,) = await Poller(http, upstream, headers).say(HANDSHAKE)
        (admitted,) = await Poller(http, upstream, {**headers, "tfatoken": "246810"}).say(HANDSHAKE)
        assert (denied["successful"], admitted["successful"]) == (False, True)


async def test_changed_password_counts_from_the_next_handshake(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    old = basic(upstream)
    upstream.accounts = replace(upstream.accounts, password="pässword:with colon")
    socket = await connected(http, upstream)
    replies = await socket.say(handshake_with({"token": old}), handshake_with({"token": basic(upstream)}))
    assert [reply["successful"] for reply in replies] == [False, True]


def test_accounts_show_no_secret() -> None:
    shown = repr(Accounts(tenant="t", user="u", password="p4ss", tfa="s3cond", tokens={JWT}, sessions={COOKIE: XSRF}))
    assert not [secret for secret in ("p4ss", "s3cond", JWT, COOKIE, XSRF) if secret in shown]


# -- paths and framing -------------------------------------------------------------------------------------------


async def test_every_path_serves_both_transports(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    message = handshake_with({"token": basic(upstream)})
    headers = {"Authorization": f"Basic {basic(upstream)}"}
    assert len(PATHS) * len(ENDINGS) == 25
    for path in (path + ending for path in PATHS for ending in ENDINGS):
        async with http.post(upstream.url + path, json=message, headers=headers) as response:
            assert (await response.json())[0]["successful"] is True
        async with http.ws_connect(upstream.url + path) as socket:
            await socket.send_json(message)
            assert (await socket.receive_json())[0]["successful"] is True


async def test_other_paths_and_plain_gets_are_not_served(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    async with http.post(f"{upstream.url}/notification/realtime/other") as response:
        assert response.status == 404
    async with http.get(upstream.url + REALTIME) as response:
        assert response.status == 405


async def test_compression_is_not_negotiated(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket = await connected(http, upstream, compress=15)
    assert socket.opened.compress == 0


async def test_mixed_batch_is_answered_message_by_message_in_order(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    socket, client_id = await shaken(http, upstream)
    replies = await socket.say(
        subscribe(client_id, "/alarms/1"),
        {**handshake_with({"token": basic(upstream)}), "id": 2},
        {**handshake_with({"token": "wrong"}), "id": "three"},
        {"channel": "/meta/unsubscribe", "clientId": client_id, "subscription": "/alarms/1"},
        {"channel": "/meta/other", "id": "5", "clientId": client_id},
    )
    assert [(reply["channel"], reply.get("id"), reply["successful"]) for reply in replies] == [
        ("/meta/subscribe", "s", True),
        ("/meta/handshake", 2, True),
        ("/meta/handshake", "three", False),
        ("/meta/unsubscribe", None, True),
        ("/meta/other", "5", False),
    ]


@pytest.mark.parametrize("payload", ["", "nonsense", "[1]", '"text"', "[{}]", '[{"channel":1}]', "[" * 100_000])
async def test_what_is_no_batch_is_an_error(
    http: aiohttp.ClientSession, upstream: Simulator, poller: Poller, payload: str
) -> None:
    async with http.post(poller.url, data=payload, headers=poller.headers) as response:
        assert response.status == 400
    socket = await connected(http, upstream)
    await socket.opened.send_str(payload)
    assert (await socket.opened.receive()).data == aiohttp.WSCloseCode.INVALID_TEXT


async def test_binary_frames_are_not_served(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket = await connected(http, upstream)
    await socket.opened.send_bytes(b"[]")
    assert (await socket.opened.receive()).data == aiohttp.WSCloseCode.UNSUPPORTED_DATA


async def test_16_megabytes_pass_in_both_directions(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket = await connected(http, upstream, max_msg_size=0)
    (reply,) = await socket.say(handshake_with({"token": basic(upstream)}))
    await socket.say(subscribe(reply["clientId"], "/big"))
    await socket.opened.send_json({"channel": "/big", "clientId": reply["clientId"], "data": "x" * 2**24})
    ((notification,), (published,)) = (await socket.hear(), await socket.hear())
    assert len(notification["data"]) == 2**24
    assert published["successful"] is True


# -- sessions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subscription", "channel", "matches"),
    [
        ("/alarms/1", "/alarms/1", True),
        ("/alarms/1", "/alarms/12", False),
        ("/alarms/*", "/alarms/1", True),
        ("/alarms/*", "/alarms", False),
        ("/alarms/*", "/alarms/1/2", False),
        ("/alarms/*", "/alarmsWithChildren/1", False),
        ("/alarms/**", "/alarms/1", True),
        ("/alarms/**", "/alarms/1/2", True),
        ("/alarms/**", "/alarms", False),
        ("/*", "/4711", True),
        ("/**", "/alarms/1", True),
        ("/*/1", "/alarms/1", False),
        ("/alarms/1*", "/alarms/12", False),
    ],
)
def test_wildcards_stand_for_whole_segments_at_the_end(subscription: str, channel: str, *, matches: bool) -> None:
    assert channel_matches(subscription, channel) is matches


async def test_notifications_arrive_at_once_on_websocket(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket, client_id = await shaken(http, upstream, "/alarms/*", "/events/7")
    await socket.opened.send_json([connect(client_id)])
    await upstream.until(lambda: upstream.held_connects == 1)
    data = {"realtimeAction": "CREATE", "data": {"id": "9", "severity": "MAJOR"}}
    assert upstream.publish("/alarms/7", data) == 1
    assert upstream.publish("/measurements/7", data) == 0
    assert await socket.hear() == [{"channel": "/alarms/7", "data": data}]
    assert upstream.held_connects == 1


async def test_unsubscribed_channels_are_quiet(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket, client_id = await shaken(http, upstream, "/alarms/*", "/events/*")
    await socket.say({"channel": "/meta/unsubscribe", "clientId": client_id, "subscription": ["/alarms/*"]})
    assert (upstream.publish("/alarms/7", {}), upstream.publish("/events/7", {})) == (0, 1)


@pytest.mark.parametrize("subscription", ["/meta/connect", "alarms", "/alarms//1", [], None, [3]])
async def test_odd_subscriptions_are_denied(
    http: aiohttp.ClientSession, upstream: Simulator, subscription: Any
) -> None:
    socket, client_id = await shaken(http, upstream)
    (reply,) = await socket.say(subscribe(client_id, subscription))
    assert reply["successful"] is False


async def test_published_numbers_come_back_to_the_digit(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket, client_id = await shaken(http, upstream, "/echo")
    written = '{"a":1.10,"b":1e400,"c":123456789012345678901234567890}'
    await socket.opened.send_str(f'{{"channel":"/echo","id":"e","clientId":"{client_id}","data":{written}}}')
    assert await socket.opened.receive_str() == f'[{{"channel":"/echo","data":{written}}}]'
    assert await socket.hear() == [{"channel": "/echo", "id": "e", "successful": True}]


async def test_service_channels_are_answered_and_not_echoed(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket, client_id = await shaken(http, upstream, "/**")
    (reply,) = await socket.say({"channel": "/service/x", "clientId": client_id, "data": {}})
    assert reply == {"channel": "/service/x", "successful": True}


async def test_unknown_client_is_advised_to_shake_hands_by_connect_only(
    http: aiohttp.ClientSession, upstream: Simulator, poller: Poller
) -> None:
    socket = await connected(http, upstream)
    expected = [
        {
            "channel": "/meta/connect",
            "id": "c",
            "successful": False,
            "error": "402::Unknown client",
            "advice": {"interval": 0, "reconnect": "handshake"},
        },
        {"channel": "/meta/subscribe", "id": "s", "successful": False, "error": "402::Unknown client"},
    ]
    messages = (connect("nobody"), subscribe("nobody", "/alarms/*"))
    assert await socket.say(*messages) == expected
    assert await poller.say(*messages) == expected


async def test_new_websocket_continues_a_session_without_handshake(
    http: aiohttp.ClientSession, upstream: Simulator, poller: Poller
) -> None:
    client_id = await poller.shake("/alarms/*")
    upstream.publish("/alarms/1", "missed")
    socket = await connected(http, upstream)
    heard = [*await socket.say(connect(client_id, 0)), *await socket.hear()]
    assert [message["channel"] for message in heard] == ["/alarms/1", "/meta/connect"]
    upstream.publish("/alarms/1", "live")
    assert (await socket.hear())[0]["data"] == "live"


async def test_what_is_published_between_two_sockets_is_kept(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket, client_id = await shaken(http, upstream, "/alarms/*")
    upstream.drop_all()
    await upstream.until(lambda: upstream.open_sockets == 0)
    assert (await socket.opened.receive()).type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}
    upstream.publish("/alarms/1", "kept")
    again = await connected(http, upstream)
    assert (await again.say(connect(client_id)))[0]["data"] == "kept"


async def test_client_that_stays_away_loses_its_session(http: aiohttp.ClientSession) -> None:
    async with Simulator(max_interval_seconds=-1) as upstream:
        poller = Poller(http, upstream, {"Authorization": f"Basic {basic(upstream)}"})
        client_id = await poller.shake()
        (reply,) = await poller.say(connect(client_id))
        assert reply["error"] == "402::Unknown client"
        assert not upstream.client_ids


async def test_disconnect_ends_the_session_and_its_held_connect(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    socket, client_id = await shaken(http, upstream)
    await socket.opened.send_json([connect(client_id)])
    heard = await socket.say({"channel": "/meta/disconnect", "id": "d", "clientId": client_id})
    heard += await socket.hear()
    assert [(message["channel"], message["successful"]) for message in heard] == [
        ("/meta/disconnect", True),
        ("/meta/connect", True),
    ]
    assert heard[1]["advice"]["reconnect"] == "none"
    assert not upstream.client_ids


async def test_forgotten_sessions_are_told_to_shake_hands(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket, client_id = await shaken(http, upstream)
    await socket.opened.send_json([connect(client_id)])
    await upstream.until(lambda: upstream.held_connects == 1)
    upstream.forget_sessions()
    (reply,) = await socket.hear()
    assert (reply["error"], reply["advice"]["reconnect"]) == ("402::Unknown client", "handshake")


# -- connects that are held --------------------------------------------------------------------------------------


async def test_second_connect_ends_the_wait_of_the_first(http: aiohttp.ClientSession, upstream: Simulator) -> None:
    socket, client_id = await shaken(http, upstream)
    await socket.opened.send_json([connect(client_id)])
    (first,) = await socket.say({**connect(client_id), "id": "second"})
    assert (first["id"], first["advice"]) == ("c", RETRY)
    assert upstream.held_connects == 1


async def test_connect_is_answered_when_its_time_is_over(http: aiohttp.ClientSession) -> None:
    async with Simulator(hold_seconds=0.05) as upstream:
        socket, client_id = await shaken(http, upstream)
        (reply,) = await socket.say(connect(client_id, 60_000))
        assert reply["advice"] == {"interval": 0, "timeout": 50, "reconnect": "retry"}
        poller = Poller(http, upstream, {"Authorization": f"Basic {basic(upstream)}"})
        (reply,) = await poller.say(connect(await poller.shake()))
        assert reply["successful"] is True


async def test_client_may_ask_for_an_answer_at_once(
    http: aiohttp.ClientSession, upstream: Simulator, poller: Poller
) -> None:
    socket, client_id = await shaken(http, upstream)
    replies = await socket.say(connect(client_id, 0), subscribe(client_id, "/alarms/*"))
    assert [reply["channel"] for reply in replies] == ["/meta/connect", "/meta/subscribe"]
    (reply,) = await poller.say(connect(await poller.shake(), 0))
    assert reply["advice"] == RETRY


async def test_held_poll_sends_headers_at_once_then_spaces_then_events_before_the_reply(
    http: aiohttp.ClientSession,
) -> None:
    async with Simulator(keepalive_seconds=0.02) as upstream:
        poller = Poller(http, upstream, {"Authorization": f"Basic {basic(upstream)}"})
        client_id = await poller.shake()
        batch = subscribe(client_id, "/alarms/*"), connect(client_id)
        async with asyncio.timeout(5), poller.post(*batch, ending="/connect") as response:
            assert response.status == 200
            assert await response.content.readexactly(2) == b"  "
            upstream.publish("/alarms/1", "first")
            upstream.publish("/alarms/2", "second")
            rest = await response.read()
        messages = msgspec.json.decode(rest)
        assert [message["channel"] for message in messages] == [
            "/meta/subscribe",
            "/alarms/1",
            "/alarms/2",
            "/meta/connect",
        ]


async def test_held_poll_ends_when_its_client_goes(upstream: Simulator, poller: Poller) -> None:
    client_id = await poller.shake("/alarms/*")
    async with poller.post(connect(client_id)) as response:
        assert upstream.held_connects == 1
        response.close()
        await upstream.until(lambda: upstream.held_connects == 0)
    upstream.publish("/alarms/1", "kept")
    heard = await poller.say(connect(client_id))
    assert [message["channel"] for message in heard] == ["/alarms/1", "/meta/connect"]


# -- oddities of long polling ------------------------------------------------------------------------------------


async def test_session_belongs_to_the_browser_that_has_its_cookie(poller: Poller) -> None:
    async with poller.post(HANDSHAKE) as response:
        assert re.fullmatch("BAYEUX_BROWSER=[^;]+; HttpOnly; Path=/", response.headers["Set-Cookie"])
        client_id = (await response.json())[0]["clientId"]
    (reply,) = await poller.say(subscribe(client_id, "/alarms/*"))
    assert reply["error"] == "402::Unknown client"
    poller.headers["Cookie"] = response.headers["Set-Cookie"].partition(";")[0]
    (reply,) = await poller.say(subscribe(client_id, "/alarms/*"))
    assert reply["successful"] is True


async def test_session_cookie_can_be_switched_off(http: aiohttp.ClientSession) -> None:
    async with Simulator(session_cookie=False) as upstream:
        poller = Poller(http, upstream, {"Authorization": f"Basic {basic(upstream)}"})
        async with poller.post(HANDSHAKE) as response:
            assert "Set-Cookie" not in response.headers
            client_id = (await response.json())[0]["clientId"]
        (reply,) = await poller.say(connect(client_id, 0))
        assert reply["successful"] is True


async def test_without_accept_the_body_is_empty(
    http: aiohttp.ClientSession, upstream: Simulator, poller: Poller
) -> None:
    async with http.post(
        poller.url, json=[HANDSHAKE], headers=poller.headers, skip_auto_headers={"Accept"}
    ) as response:
        assert (response.status, await response.read()) == (200, b"")
    assert len(upstream.client_ids) == 1


async def test_unauthorized_is_a_json_401_that_asks_no_browser_to_open_a_window(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    async with Poller(http, upstream, {"UseXBasic": "true"}).post(connect("x")) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("XBasic ")
        assert (await response.json())["error"] == "security/Unauthorized"


# -- what tests of the proxy lean on -----------------------------------------------------------------------------


async def test_everything_that_arrives_is_on_record(
    http: aiohttp.ClientSession, upstream: Simulator, poller: Poller
) -> None:
    await http.ws_connect(f"{upstream.url}{REALTIME}?q=1", headers={"X-Probe": "a"})
    await poller.shake()
    upgrade, post = upstream.requests
    assert (upgrade.kind, upgrade.method, upgrade.path, upgrade.query) == ("upgrade", "GET", REALTIME, "q=1")
    assert upgrade.headers["x-probe"] == "a"
    assert (post.kind, post.method, post.path, post.query) == ("post", "POST", f"{REALTIME}/", "")
    assert upstream.messages == [HANDSHAKE]
    assert [msgspec.json.decode(payload) for payload in upstream.payloads] == [[HANDSHAKE]]


async def test_handshakes_can_go_unanswered(http: aiohttp.ClientSession, upstream: Simulator, poller: Poller) -> None:
    upstream.answers_handshakes = False
    socket = await connected(http, upstream)
    await socket.opened.send_json([HANDSHAKE])
    await upstream.until(lambda: len(upstream.messages) == 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await poller.say(HANDSHAKE)
    assert (len(upstream.messages), upstream.client_ids) == (2, frozenset())


async def test_any_status_can_be_answered(http: aiohttp.ClientSession, upstream: Simulator, poller: Poller) -> None:
    upstream.answers_with_status = 503
    async with poller.post(HANDSHAKE) as response:
        assert response.status == 503
    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
        await connected(http, upstream)
    assert [request.kind for request in upstream.requests] == ["post", "upgrade"]


async def test_until_gives_up(upstream: Simulator) -> None:
    with pytest.raises(TimeoutError):
        await upstream.until(lambda: False, seconds=0.01)


async def test_stop_is_quick_and_says_goodbye_and_start_comes_back_at_the_same_port(
    http: aiohttp.ClientSession, upstream: Simulator, poller: Poller
) -> None:
    socket, client_id = await shaken(http, upstream)
    await socket.opened.send_json([connect(client_id)])
    polling_id = await poller.shake()
    async with poller.post(connect(polling_id)) as response:
        started = time.monotonic()
        await upstream.stop()
        assert time.monotonic() - started < 2
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    assert (await socket.opened.receive()).data == aiohttp.WSCloseCode.GOING_AWAY
    await upstream.start(port=upstream.port)
    (reply,) = await poller.say(connect(polling_id))
    assert reply["error"] == "402::Unknown client"


async def test_stop_does_not_wait_for_a_client_that_does_not_read(
    http: aiohttp.ClientSession, upstream: Simulator
) -> None:
    await shaken(http, upstream, "/big")
    upstream.publish("/big", "x" * 2**23)
    started = time.monotonic()
    await upstream.stop()
    assert time.monotonic() - started < 3


async def test_stop_leaves_no_task_behind(http: aiohttp.ClientSession) -> None:
    async with Simulator() as upstream:
        socket, client_id = await shaken(http, upstream)
        await socket.opened.send_json([connect(client_id)])
        await upstream.until(lambda: upstream.held_connects == 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_unstarted_simulator_has_no_url_and_stops_without_complaint() -> None:
    simulator = Simulator()
    await simulator.stop()
    simulator.drop_all()
    with pytest.raises(RuntimeError, match="not been started"):
        _ = simulator.url


async def test_tls_is_served_from_a_given_context(http: aiohttp.ClientSession) -> None:
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(theirs)
    authority.configure_trust(ours)
    async with Simulator(ssl_context=theirs) as upstream:
        assert upstream.url.startswith("https://localhost:")
        socket = await connected(http, upstream, ssl=ours)
        (reply,) = await socket.say(handshake_with({"token": basic(upstream)}))
        assert reply["successful"] is True
        await socket.opened.close()
