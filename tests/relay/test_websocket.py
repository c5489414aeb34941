"""WebSockets through the proxy, on real sockets."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.test_utils import TestServer

from proxy.bayeux.negotiation import AUTHN
from proxy.demo.simulator import Simulator
from proxy.gate.endpoints import ENDPOINTS
from tests.conftest import EVERYTHING, PASSWORD, VALUES, Message, Running, closed, exchange, handshake, receive, running


TOKEN = base64.b64encode(f"t0815/service:{PASSWORD}".encode()).decode()
BROWSER = {"Origin": "https://app.example.com"}
COOKIE_MODE = {"credentials.default.source": "cookie", "gate.origins": ["https://app.example.com"]}


Script = Callable[[web.WebSocketResponse], Awaitable[None]]
Scripted = Callable[[Script], Awaitable[TestServer]]


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    """Starts upstreams that follow a script on every WebSocket."""
    servers = []

    async def start(script: Script) -> TestServer:
        async def handle(request: web.Request) -> web.StreamResponse:
            socket = web.WebSocketResponse(autoclose=False, compress=False, max_msg_size=0)
            socket.headers.add("Set-Cookie", "BAYEUX_BROWSER=b1; Path=/; HttpOnly; Secure; Domain=tenant.example.com")
            socket.headers.add("Set-Cookie", "authorization=leak")
            await socket.prepare(request)
            await script(socket)
            return socket

        servers.append(server := TestServer(web.Application(), host="localhost"))
        server.app.router.add_get("/{path:.*}", handle)
        await server.start_server()
        return server

    yield start
    for server in servers:
        await server.close()


async def test_handshake_is_filled_in_and_accepted(proxied: Running, upstream: Simulator) -> None:
    async with proxied.socket() as socket:
        [answer] = await exchange(socket, [handshake(ext={"ack": True})])

    assert answer["successful"] is True
    assert upstream.messages[0]["ext"] == {"ack": True, AUTHN: {"token": TOKEN}}
    assert proxied.handshakes() == {("accepted", "ok"): 1}
    assert proxied.upgrades() == {("accepted", "ok"): 1}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("ending", ["", "/", "/handshake", "/connect", "/disconnect"])
async def test_every_endpoint_is_relayed_at_its_own_path(
    proxied: Running, upstream: Simulator, endpoint: str, ending: str
) -> None:
    async with proxied.socket(endpoint + ending + "?to=elsewhere") as socket:
        [answer] = await exchange(socket, handshake())

    assert answer["successful"] is True
    assert (upstream.requests[0].path, upstream.requests[0].query) == (endpoint + ending, "")


async def test_notifications_arrive_intact_and_in_order(proxied: Running, upstream: Simulator) -> None:
    async with proxied.socket() as socket:
        [answer] = await exchange(socket, [handshake()])
        subscribe = {"channel": "/meta/subscribe", "id": "2", "clientId": answer["clientId"]}
        await exchange(socket, [subscribe | {"subscription": "/measurements/*"}])
        for number in range(1000):
            upstream.publish("/measurements/1", {"number": number, "text": "Grüße ✓"})
        received: list[Message] = []
        while len(received) < 1000:
            received += await receive(socket)

    assert [message["data"] for message in received] == [
        {"number": number, "text": "Grüße ✓"} for number in range(1000)
    ]


async def test_a_notification_of_16_megabytes_passes(proxied: Running, upstream: Simulator) -> None:
    text = "x" * 16_000_000
    async with proxied.socket() as socket:
        [answer] = await exchange(socket, [handshake()])
        subscribe = {"channel": "/meta/subscribe", "id": "2", "clientId": answer["clientId"]}
        await exchange(socket, [subscribe | {"subscription": "/events/1"}])
        upstream.publish("/events/1", {"text": text})
        [notification] = await receive(socket)

    assert notification["data"]["text"] == text


@pytest.mark.logs_errors
async def test_rejection_crosses_unchanged_and_then_the_socket_is_closed(upstream: Simulator) -> None:
    values = dict(VALUES) | {"C8Y_PASSWORD": "wrong"}
    async with running(upstream.url, values=values) as proxied, proxied.socket() as socket:
        answer = await exchange(socket, [handshake()])
        code, _ = await closed(socket)

        assert answer == [
            {"channel": "/meta/handshake", "id": "1", "successful": False, "error": "403::Handshake denied"}
        ]
        assert code == WSCloseCode.OK
        assert proxied.handshakes() == {("rejected", "denied"): 1}


async def test_socket_with_a_refusal_is_closed_when_the_other_handshakes_are_answered(upstream: Simulator) -> None:
    async with running(upstream.url, {"handshake.client_authn": "refuse"}) as proxied, proxied.socket() as socket:
        [refused] = await exchange(socket, [handshake(id="1"), handshake(id="2", ext={AUTHN: {"token": "b3du"}})])
        assert (refused["id"], refused["successful"]) == ("2", False)
        [accepted] = await receive(socket)
        assert (accepted["id"], accepted["successful"]) == ("1", True)
        assert await closed(socket) == (WSCloseCode.POLICY_VIOLATION, "Handshake refused")


@pytest.mark.logs_errors
async def test_rejected_value_is_not_offered_again_on_sockets_that_are_already_open(upstream: Simulator) -> None:
    values = dict(VALUES) | {"C8Y_PASSWORD": "wrong"}
    async with running(upstream.url, values=values) as proxied, proxied.socket() as one, proxied.socket() as other:
        await exchange(one, [handshake()])
        [answer] = await exchange(other, [handshake()])

        assert answer["advice"]["reconnect"] == "handshake"
        assert await closed(other) == (WSCloseCode.POLICY_VIOLATION, "Handshake refused")
        assert len(upstream.messages) == 1
        assert proxied.handshakes() == {("rejected", "denied"): 1, ("refused", "cooldown"): 1}


async def test_replaced_value_is_not_offered_on_sockets_opened_before(upstream: Simulator, tmp_path: Path) -> None:
    for name, value in {"tenant": "t0815", "user": "service", "password": PASSWORD}.items():
        (tmp_path / name).write_text(value)
    async with running(upstream.url, {"credentials.default.directory": str(tmp_path)}) as proxied:
        async with proxied.socket() as socket:
            [answer] = await exchange(socket, [handshake()])
            assert answer["successful"] is True
            (tmp_path / "password").write_text("of tomorrow")
            [answer] = await exchange(socket, [handshake()])
            assert answer["advice"]["reconnect"] == "handshake"
            await closed(socket)
        assert len(upstream.messages) == 1
        assert proxied.handshakes() == {("accepted", "ok"): 1, ("refused", "no_credential"): 1}


async def test_stale_client_token_is_replaced_on_every_rehandshake(proxied: Running, upstream: Simulator) -> None:
    stale = handshake(ext={AUTHN: {"token": "c3RhbGU="}})
    async with proxied.socket() as socket:
        for _ in range(2):
            [answer] = await exchange(socket, [stale])
            assert answer["successful"] is True

    assert [message["ext"][AUTHN] for message in upstream.messages] == [{"token": TOKEN}] * 2
    assert proxied.handshakes() == {("accepted", "ok"): 2}


async def test_first_message_may_be_a_connect_with_an_old_client_id(proxied: Running) -> None:
    async with proxied.socket() as first:
        [answer] = await exchange(first, [handshake()])
    connect = {"channel": "/meta/connect", "clientId": answer["clientId"], "connectionType": "websocket"}
    async with proxied.socket() as second:
        [reply] = await exchange(second, [connect | {"id": "9", "advice": {"timeout": 0}}])

    assert reply["successful"] is True


async def test_handshake_is_filled_in_anywhere_in_a_batch(upstream: Simulator) -> None:
    publish = {"channel": "/service/x", "data": {"number": 1}, "id": "7"}
    async with running(upstream.url, {"gate.grants": [EVERYTHING]}) as proxied, proxied.socket() as socket:
        await exchange(socket, [publish, handshake()])

    assert upstream.messages[1]["ext"][AUTHN] == {"token": TOKEN}


async def test_refused_handshake_is_answered_by_us_and_the_socket_closed(upstream: Simulator) -> None:
    own = handshake(ext={AUTHN: {"token": "b3du"}})
    async with running(upstream.url, {"handshake.client_authn": "refuse"}) as proxied, proxied.socket() as socket:
        [answer] = await exchange(socket, [own])
        code, _ = await closed(socket)

        assert answer["successful"] is False
        assert answer["advice"] == {"reconnect": "none"}
        assert code == WSCloseCode.POLICY_VIOLATION
        assert proxied.handshakes() == {("refused", "policy"): 1}
        assert upstream.messages == []


@pytest.mark.logs_errors
async def test_clients_own_credential_passes_under_fill_and_cools_nothing(upstream: Simulator) -> None:
    own = handshake(ext={AUTHN: {"token": "b3du"}})
    async with running(upstream.url, {"handshake.client_authn": "fill"}) as proxied:
        async with proxied.socket() as socket:
            [answer] = await exchange(socket, [own])
            assert answer["error"] == "403::Handshake denied"
        async with proxied.socket() as socket:
            [answer] = await exchange(socket, [handshake()])
            assert answer["successful"] is True

    assert upstream.messages[0]["ext"][AUTHN] == {"token": "b3du"}


async def test_cookie_goes_into_the_upgrade_and_its_xsrf_token_into_the_handshake() -> None:
    async with (
        Simulator(sessions={"cookie-jwt": "xsrf-1"}) as upstream,
        running(upstream.url, COOKIE_MODE, values={}) as proxied,
        proxied.socket(headers=BROWSER | {"Cookie": "authorization=cookie-jwt; other=1"}) as socket,
    ):
        [answer] = await exchange(socket, [handshake(ext={AUTHN: {"xsrfToken": "xsrf-1"}})])

        assert answer["successful"] is True
        assert upstream.requests[0].headers["Cookie"] == "authorization=cookie-jwt"
        assert proxied.handshakes(source="cookie") == {("accepted", "ok"): 1}


async def test_xsrf_cookie_of_an_admitted_page_fills_the_gap() -> None:
    cookies = "authorization=cookie-jwt; XSRF-TOKEN=xsrf-1"
    async with (
        Simulator(sessions={"cookie-jwt": "xsrf-1"}) as upstream,
        running(upstream.url, COOKIE_MODE, values={}) as proxied,
        proxied.socket(headers=BROWSER | {"Cookie": cookies}) as socket,
    ):
        [answer] = await exchange(socket, [handshake()])

        assert answer["successful"] is True
        assert upstream.messages[0]["ext"] == {AUTHN: {"xsrfToken": "xsrf-1"}}


async def test_cookie_without_any_xsrf_token_is_refused_and_may_try_again() -> None:
    async with (
        Simulator(sessions={"cookie-jwt": "xsrf-1"}) as upstream,
        running(upstream.url, COOKIE_MODE, values={}) as proxied,
        proxied.socket(headers=BROWSER | {"Cookie": "authorization=cookie-jwt"}) as socket,
    ):
        [answer] = await exchange(socket, [handshake()])

        assert answer["advice"]["reconnect"] == "handshake"
        assert answer["advice"]["interval"] >= 5000
        assert await closed(socket) == (WSCloseCode.POLICY_VIOLATION, "Handshake refused")
        assert proxied.handshakes(source="cookie") == {("refused", "no_credential"): 1}


async def test_upgrade_without_its_cookie_is_refused_before_upstream_is_dialled() -> None:
    async with Simulator() as upstream, running(upstream.url, COOKIE_MODE, values={}) as proxied:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await proxied.client.ws_connect(f"{proxied.url}/notification/realtime", headers=BROWSER)

        assert refused.value.status == 401
        assert proxied.upgrades() == {("refused", "no_credential"): 1}
        assert upstream.requests == []


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        pytest.param("nonsense", WSCloseCode.INVALID_TEXT, id="not JSON"),
        pytest.param('[{"id":1}]', WSCloseCode.INVALID_TEXT, id="no channel"),
        pytest.param('[{"channel":"/meta/handshake/"}]', WSCloseCode.INVALID_TEXT, id="lookalike"),
        pytest.param(b"[]", WSCloseCode.UNSUPPORTED_DATA, id="binary"),
        pytest.param(" " * (1024 * 1024 + 1), WSCloseCode.MESSAGE_TOO_BIG, id="too big"),
    ],
)
async def test_bad_message_ends_the_socket_with_its_code(
    proxied: Running, upstream: Simulator, payload: str | bytes, code: int
) -> None:
    async with proxied.socket() as socket:
        await (socket.send_str(payload) if isinstance(payload, str) else socket.send_bytes(payload))

        assert (await closed(socket))[0] == code
    await upstream.until(lambda: upstream.open_sockets == 0)
    assert upstream.messages == []


async def test_close_code_and_reason_of_the_client_reach_upstream(scripted: Scripted) -> None:
    seen: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    async def script(socket: web.WebSocketResponse) -> None:
        frame = await socket.receive()
        seen.set_result((frame.data, frame.extra or ""))

    server = await scripted(script)
    async with running(str(server.make_url(""))) as proxied:
        async with proxied.socket() as socket:
            await socket.close(code=4321, message=b"enough")
        assert await asyncio.wait_for(seen, 5) == (4321, "enough")


async def test_close_code_and_reason_of_upstream_reach_the_client(scripted: Scripted) -> None:
    async def script(socket: web.WebSocketResponse) -> None:
        await socket.close(code=4321, message=b"enough")

    server = await scripted(script)
    async with running(str(server.make_url(""))) as proxied, proxied.socket() as socket:
        assert await closed(socket) == (4321, "enough")


async def test_upstream_that_vanishes_ends_the_socket_with_1011(proxied: Running, upstream: Simulator) -> None:
    async with proxied.socket() as socket:
        await upstream.until(lambda: upstream.open_sockets == 1)
        upstream.answers_handshakes = False
        await socket.send_str(msgspec.json.encode([handshake()]).decode())
        await upstream.until(lambda: len(upstream.messages) == 1)
        upstream.drop_all()

        assert (await closed(socket))[0] == WSCloseCode.INTERNAL_ERROR
    assert proxied.handshakes() == {("unanswered", "upstream_gone"): 1}


async def test_client_that_vanishes_ends_the_socket_upstream(proxied: Running, upstream: Simulator) -> None:
    upstream.answers_handshakes = False
    async with proxied.socket() as socket:
        await socket.send_str(msgspec.json.encode([handshake()]).decode())
        await upstream.until(lambda: len(upstream.messages) == 1)
        transport = socket.get_extra_info("socket")
        assert transport is not None
        connection = socket._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()
        await upstream.until(lambda: upstream.open_sockets == 0)

    assert proxied.handshakes() == {("unanswered", "client_gone"): 1}


async def test_handshake_that_upstream_never_answers_times_out(upstream: Simulator) -> None:
    upstream.answers_handshakes = False
    async with running(upstream.url, {"handshake.timeout_seconds": 0.05}) as proxied, proxied.socket() as socket:
        await socket.send_str(msgspec.json.encode([handshake()]).decode())

        assert (await closed(socket))[0] == WSCloseCode.INTERNAL_ERROR
        assert proxied.handshakes() == {("unanswered", "timeout"): 1}


async def test_answered_handshake_leaves_no_timer_behind(upstream: Simulator) -> None:
    async with running(upstream.url, {"handshake.timeout_seconds": 0.2}) as proxied, proxied.socket() as socket:
        [answer] = await exchange(socket, [handshake()])
        connect = {"channel": "/meta/connect", "clientId": answer["clientId"], "connectionType": "websocket"}
        [reply] = await exchange(socket, [connect | {"advice": {"timeout": 400}}])

        assert reply["successful"] is True


async def test_authn_that_upstream_echoes_is_scrubbed(scripted: Scripted) -> None:
    async def script(socket: web.WebSocketResponse) -> None:
        [asked] = msgspec.json.decode((await socket.receive()).data)
        await socket.send_str(msgspec.json.encode([asked | {"successful": True}]).decode())
        await socket.receive()

    server = await scripted(script)
    async with running(str(server.make_url(""))) as proxied, proxied.socket() as socket:
        [answer] = await exchange(socket, [handshake(ext={"ack": True})])

        assert answer["ext"] == {"ack": True}


async def test_payloads_after_the_answer_pass_byte_for_byte(scripted: Scripted) -> None:
    odd = '[ {"channel" : "/x", "data":1.10e2, "\\u0061":"\\/" } ]'

    async def script(socket: web.WebSocketResponse) -> None:
        await socket.receive()
        await socket.send_str('[{"channel":"/meta/handshake","successful":true}]')
        await socket.send_str(odd)
        await socket.receive()

    server = await scripted(script)
    async with running(str(server.make_url(""))) as proxied, proxied.socket() as socket:
        await exchange(socket, [handshake()])
        frame = await socket.receive()

        assert (frame.type, frame.data) == (WSMsgType.TEXT, odd)


async def test_payloads_are_counted_with_their_bytes_at_upstream(proxied: Running, upstream: Simulator) -> None:
    async with proxied.socket() as socket:
        await socket.send_str(msgspec.json.encode([handshake()]).decode())
        answer = (await socket.receive()).data.encode()
        assert proxied.crossed("websocket", "up") == (1, len(upstream.payloads[0]))
        assert proxied.crossed("websocket", "down") == (1, len(answer))


@pytest.mark.parametrize(("status", "reason"), [(401, "denied"), (403, "denied"), (404, "other"), (302, "other")])
async def test_upgrade_that_upstream_rejects_is_a_bad_gateway(upstream: Simulator, status: int, reason: str) -> None:
    upstream.answers_with_status = status
    async with running(upstream.url) as proxied:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await proxied.client.ws_connect(f"{proxied.url}/notification/realtime")

        assert refused.value.status == 502
        assert proxied.upgrades() == {("rejected", reason): 1}


async def test_upgrade_is_not_redirected() -> None:
    paths = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    redirecting = web.Application()
    redirecting.router.add_get("/{path:.*}", elsewhere)
    async with (
        TestServer(redirecting, host="localhost") as upstream,
        running(str(upstream.make_url(""))) as proxied,
    ):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await proxied.client.ws_connect(f"{proxied.url}/cep/realtime")
        assert refused.value.status == 502
    assert paths == ["/cep/realtime"]


async def test_unreachable_upstream_is_a_bad_gateway_before_the_client_is_accepted(upstream: Simulator) -> None:
    await upstream.stop()
    async with running(upstream.url) as proxied:
        async with proxied.client.get(
            f"{proxied.url}/notification/realtime",
            headers={
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
            },
        ) as response:
            assert response.status == 502
            assert "not reachable" in await response.text()
        assert proxied.upgrades() == {("refused", "unavailable"): 1}


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Sec-WebSocket-Key": "short"}, id="key too short"),
        pytest.param({"Sec-WebSocket-Key": "!" * 24}, id="key not base64"),
        pytest.param({"Sec-WebSocket-Version": "8"}, id="old version"),
    ],
)
async def test_malformed_upgrade_is_refused_and_nothing_dialled(
    proxied: Running, upstream: Simulator, headers: dict[str, str]
) -> None:
    asked = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    }
    async with proxied.client.get(f"{proxied.url}/cep/realtime", headers=asked | headers) as response:
        assert response.status == 400
    assert proxied.upgrades() == {("refused", "malformed"): 1}
    assert upstream.requests == []


async def test_relayed_cookies_come_down_on_the_101_and_no_others_do(scripted: Scripted) -> None:
    async def script(socket: web.WebSocketResponse) -> None:
        await socket.receive()

    server = await scripted(script)
    async with running(str(server.make_url(""))) as proxied, proxied.socket() as socket:
        assert socket._response.headers.getall("Set-Cookie") == ["BAYEUX_BROWSER=b1; Path=/; HttpOnly"]


async def test_relayed_cookies_go_up_and_no_others_do(upstream: Simulator) -> None:
    page = {"Origin": "https://app.example.com"}
    cookies = {"Cookie": "a=1; authorization=own; BAYEUX_BROWSER=b0; XSRF-TOKEN=own"}
    async with (
        running(upstream.url, {"gate.origins": list(page.values())}) as proxied,
        proxied.socket(headers=page | cookies),
    ):
        assert upstream.requests[0].headers["Cookie"] == "BAYEUX_BROWSER=b0"


async def test_stored_credential_stays_off_the_upgrade(proxied: Running, upstream: Simulator) -> None:
    """The platform reads it from the handshake; on the upgrade it would only travel twice."""
    async with proxied.socket(headers={"Authorization": "Basic b3du", "tfatoken": "1"}):
        pass

    headers = upstream.requests[0].headers
    assert "Authorization" not in headers
    assert "tfatoken" not in headers
    assert headers["User-Agent"] == "c8y-realtime-proxy"


async def test_connections_are_counted_while_they_last(proxied: Running, upstream: Simulator) -> None:
    async with proxied.socket() as one, proxied.socket() as two:
        assert proxied.count("connections", transport="websocket") == 2
        await one.close()
        await two.close()
        await upstream.until(lambda: upstream.open_sockets == 0)
    async with proxied.client.get(f"{proxied.admin_url}/metrics") as response:
        await response.read()
    assert proxied.count("connections", transport="websocket") == 0
