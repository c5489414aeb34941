"""Long-polling POSTs through the proxy, on real sockets."""

import asyncio
import base64
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.bayeux.negotiation import AUTHN
from proxy.demo.simulator import Simulator
from proxy.gate.endpoints import ENDPOINTS
from proxy.operations.metrics import Metrics
from tests.conftest import EVERYTHING, PASSWORD, VALUES, Message, Running, handshake, running


TOKEN = base64.b64encode(f"t0815/service:{PASSWORD}".encode()).decode()
PAGE = {"Origin": "https://app.example.com"}
COOKIE_MODE = {"credentials.default.source": "cookie", "gate.origins": ["https://app.example.com"]}
CONNECT = {"channel": "/meta/connect", "id": "3", "clientId": "c", "connectionType": "long-polling"}


Scripted = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[TestServer]]


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    """Starts upstreams that answer every POST by a function."""
    servers = []

    async def start(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> TestServer:
        servers.append(server := TestServer(web.Application(), host="localhost"))
        server.app.router.add_post("/{path:.*}", answer)
        await server.start_server()
        return server

    yield start
    for server in servers:
        await server.close()


async def shaken(proxied: Running, **options: Any) -> tuple[str, dict[str, str]]:
    """Handshake by long-polling; returns the clientId and the cookies to go on with."""
    async with proxied.post([handshake()], "/notification/realtime/handshake", **options) as response:
        [answer] = await response.json()
        assert answer["successful"] is True
        return answer["clientId"], {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}


async def answers(response: aiohttp.ClientResponse) -> list[Message]:
    decoded: list[Message] = msgspec.json.decode(await response.read())
    return decoded


async def test_payloads_are_counted_with_their_bytes_at_upstream(proxied: Running, upstream: Simulator) -> None:
    async with proxied.post([handshake()]) as response:
        answer = await response.read()
    assert proxied.crossed("long-polling", "up") == (1, len(upstream.payloads[0]))
    assert proxied.crossed("long-polling", "down") == (1, len(answer))


async def test_handshake_is_filled_in_and_accepted(proxied: Running, upstream: Simulator) -> None:
    await shaken(proxied)

    assert upstream.messages[0]["ext"] == {AUTHN: {"token": TOKEN}}
    assert proxied.handshakes("long-polling") == {("accepted", "ok"): 1}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("ending", ["", "/", "/handshake", "/connect", "/disconnect"])
async def test_every_endpoint_is_relayed_at_its_own_path(
    proxied: Running, upstream: Simulator, endpoint: str, ending: str
) -> None:
    async with proxied.post(handshake(), endpoint + ending + "?to=elsewhere") as response:
        assert response.status == 200
    assert (upstream.requests[0].path, upstream.requests[0].query) == (endpoint + ending, "")


async def test_every_request_carries_the_credential_in_its_headers(proxied: Running, upstream: Simulator) -> None:
    client_id, cookies = await shaken(proxied)
    subscribe = {"channel": "/meta/subscribe", "id": "2", "clientId": client_id, "subscription": "/alarms/*"}
    async with proxied.post([subscribe], headers=cookies) as response:
        [answer] = await answers(response)

    assert answer["successful"] is True
    for request in upstream.requests:
        assert request.headers.getall("Authorization") == [f"Basic {TOKEN}"]
        assert request.headers["Content-Type"] == "application/json;charset=UTF-8"


async def test_accept_is_added_where_the_client_sent_none(proxied: Running, upstream: Simulator) -> None:
    async with proxied.client.post(
        f"{proxied.url}/notification/realtime",
        data=msgspec.json.encode([handshake()]),
        headers={"Content-Type": "application/json"},
        skip_auto_headers=("Accept",),
    ) as response:
        assert (await answers(response))[0]["successful"] is True
    assert upstream.requests[0].headers["Accept"] == "application/json"


async def test_clients_own_credentials_never_go_up(proxied: Running, upstream: Simulator) -> None:
    theirs = {
        "Authorization": "Bearer theirs",
        "tfatoken": "theirs",
        "X-XSRF-TOKEN": "theirs",
        "X_XSRF_TOKEN": "theirs",
        "X-Forwarded-For": "10.0.0.1",
        "Forwarded": "for=10.0.0.1",
        "User-Agent": "Mozilla/5.0",
        "Connection": "keep-alive, Authorization",
        "X-Cumulocity-Application-Key": "key-1",
    }
    async with proxied.post([handshake(ext={AUTHN: {"token": "theirs"}})], headers=theirs) as response:
        assert (await answers(response))[0]["successful"] is True

    headers = upstream.requests[0].headers
    assert "theirs" not in str(headers)
    assert headers["Authorization"] == f"Basic {TOKEN}"
    assert headers["X-Cumulocity-Application-Key"] == "key-1"
    assert headers["User-Agent"] == "c8y-realtime-proxy"
    assert not {"x-forwarded-for", "forwarded", "x_xsrf_token"} & {name.lower() for name in headers}


async def test_tfa_token_goes_into_ext_and_header(tmp_path: Any) -> None:
    for name, value in {"tenant": "t0815", "user": "service", "password": PASSWORD, "tfa": "123456"}.items():
        (tmp_path / name).write_text(f"{value}\n")
    stored = {"credentials.default.directory": str(tmp_path)}
    async with Simulator(password=PASSWORD, tfa="123456") as upstream, running(upstream.url, stored) as proxied:
        await shaken(proxied)

        assert upstream.messages[0]["ext"][AUTHN] == {"token": TOKEN, "tfa": "123456"}
        assert upstream.requests[0].headers["tfatoken"] == "123456"


async def test_stored_jwt_goes_raw_into_ext_and_as_bearer_into_the_header() -> None:
    async with Simulator(tokens=["h.p.s"]) as upstream, running(upstream.url, values={"C8Y_TOKEN": "h.p.s"}) as proxied:
        await shaken(proxied)

        assert upstream.messages[0]["ext"][AUTHN] == {"token": "h.p.s"}
        assert upstream.requests[0].headers["Authorization"] == "Bearer h.p.s"


@pytest.mark.parametrize(
    ("headers", "ext"),
    [
        pytest.param({"Cookie": "authorization=jwt", "X-XSRF-TOKEN": "x1"}, {}, id="header"),
        pytest.param({"Cookie": "authorization=jwt"}, {"ext": {AUTHN: {"xsrfToken": "x1"}}}, id="handshake"),
        pytest.param({"Cookie": "authorization=jwt; XSRF-TOKEN=x1"}, {}, id="cookie"),
        pytest.param(
            {"Cookie": "authorization=jwt; XSRF-TOKEN=stale", "X-XSRF-TOKEN": "x1"}, {}, id="header before cookie"
        ),
    ],
)
async def test_cookie_and_xsrf_token_become_one_credential(headers: dict[str, str], ext: dict[str, Any]) -> None:
    async with (
        Simulator(sessions={"jwt": "x1"}) as upstream,
        running(upstream.url, COOKIE_MODE, values={}) as proxied,
        proxied.post([handshake(**ext)], headers=PAGE | {"User-Agent": "Mozilla/5.0"} | headers) as response,
    ):
        assert (await answers(response))[0]["successful"] is True
        assert response.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
        up = upstream.requests[0].headers
        assert (up["Cookie"], up["X-XSRF-TOKEN"]) == ("authorization=jwt", "x1")
        assert "Authorization" not in up
        assert up["User-Agent"] == "Mozilla/5.0"
        assert upstream.messages[0]["ext"] == {AUTHN: {"xsrfToken": "x1"}}


async def test_client_without_its_cookie_is_not_promoted_to_the_stored_user() -> None:
    async with Simulator(password=PASSWORD) as upstream, running(upstream.url, COOKIE_MODE, values=VALUES) as proxied:
        async with proxied.post([handshake()]) as response:
            [answer] = await answers(response)
            assert (response.status, answer["successful"]) == (200, False)
            assert answer["advice"] == {"reconnect": "none"}
        async with proxied.post([CONNECT]) as response:
            [answer] = await answers(response)
            assert (response.status, answer["successful"], answer["advice"]) == (200, False, {"reconnect": "none"})
        assert upstream.requests == []
        assert proxied.handshakes("long-polling", "cookie") == {("refused", "no_credential"): 1}


@pytest.mark.logs_errors
async def test_rejection_crosses_unchanged_and_the_value_then_cools_down(upstream: Simulator) -> None:
    async with running(upstream.url, values=dict(VALUES) | {"C8Y_PASSWORD": "wrong"}) as proxied:
        async with proxied.post([handshake()]) as response:
            assert response.status == 200
            assert await response.text() == (
                '[{"channel":"/meta/handshake","id":"1","successful":false,"error":"403::Handshake denied"}]'
            )
        async with proxied.post([handshake()]) as response:
            [answer] = await answers(response)
            assert answer["advice"]["reconnect"] == "handshake"
            assert answer["advice"]["interval"] > 10_000
        async with proxied.post([CONNECT]) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 10
        assert len(upstream.requests) == 1
        assert proxied.handshakes("long-polling") == {("rejected", "denied"): 1, ("refused", "cooldown"): 1}


@pytest.mark.logs_errors
async def test_changed_value_is_offered_at_once(upstream: Simulator, tmp_path: Any) -> None:
    for name, value in {"tenant": "t0815", "user": "service", "password": "old"}.items():
        (tmp_path / name).write_text(value)
    async with running(upstream.url, {"credentials.default.directory": str(tmp_path)}) as proxied:
        async with proxied.post([handshake()]) as response:
            assert (await answers(response))[0]["error"] == "403::Handshake denied"
        (tmp_path / "password").write_text(PASSWORD)
        await shaken(proxied)


@pytest.mark.logs_errors
@pytest.mark.parametrize(("status", "reason"), [(401, "denied"), (403, "denied"), (500, "other")])
async def test_http_status_is_a_rejection_and_crosses(upstream: Simulator, status: int, reason: str) -> None:
    upstream.answers_with_status = status
    async with running(upstream.url) as proxied, proxied.post([handshake()]) as response:
        assert response.status == status
        assert "WWW-Authenticate" not in response.headers
        assert proxied.handshakes("long-polling") == {("rejected", reason): 1}


@pytest.mark.logs_errors
async def test_stored_value_is_not_offered_again_after_a_401_to_anything(upstream: Simulator) -> None:
    upstream.answers_with_status = 401
    async with running(upstream.url) as proxied:
        async with proxied.post([CONNECT]) as response:
            assert response.status == 401
        async with proxied.post([handshake()]):
            pass
        assert len(upstream.requests) == 1
        assert proxied.handshakes("long-polling") == {("refused", "cooldown"): 1}


@pytest.mark.logs_errors
@pytest.mark.parametrize("status", [200, 401])
async def test_token_that_upstream_quotes_does_not_come_down(scripted: Scripted, status: int) -> None:
    async def quoting(request: web.Request) -> web.StreamResponse:
        await request.read()
        error = f"403::Token '{TOKEN}' unknown"
        answer = msgspec.json.encode([{"channel": "/meta/handshake", "successful": False, "error": error}])
        return web.Response(status=status, body=answer, content_type="application/json")

    server = await scripted(quoting)
    async with running(str(server.make_url(""))) as proxied, proxied.post([handshake()]) as response:
        assert response.status == status
        assert (await answers(response))[0]["error"] == "403::Token '***' unknown"


async def test_redirect_is_not_followed(scripted: Scripted) -> None:
    paths = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    server = await scripted(elsewhere)
    async with running(str(server.make_url(""))) as proxied:
        async with proxied.post([handshake()], allow_redirects=False) as response:
            assert response.status == 307
            assert "Location" not in response.headers
    assert paths == ["/notification/realtime/"]


async def test_answer_that_nobody_can_read_is_a_bad_gateway(scripted: Scripted) -> None:
    async def encoded(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(body=gzip.compress(b"[]"), headers={"Content-Encoding": "gzip"})

    server = await scripted(encoded)
    async with running(str(server.make_url(""))) as proxied, proxied.post([CONNECT]) as response:
        assert response.status == 502


async def test_answer_to_a_handshake_is_held_up_to_the_limit(scripted: Scripted) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(text='[{"channel":"/meta/handshake","successful":true,"x":"' + "x" * 200_000 + '"}]')

    server = await scripted(endless)
    async with running(str(server.make_url("")), {"limits.upstream_payload_bytes": 100_000}) as proxied:
        async with proxied.post([handshake()]) as response:
            [answer] = await answers(response)
            assert answer["advice"]["reconnect"] == "handshake"
        assert proxied.handshakes("long-polling") == {("unanswered", "upstream_gone"): 1}


@pytest.mark.logs_errors
async def test_fault_of_ours_within_an_answer_is_not_passed_off_as_complete(
    upstream: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def relayed(_: Metrics, __: str, direction: str, *___: int) -> None:
        assert direction == "up", "a fault"

    async with running(upstream.url) as proxied:
        monkeypatch.setattr(Metrics, "relayed", relayed)
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
            async with proxied.post([handshake(ext=[]), CONNECT | {"clientId": "unknown"}]) as response:
                await response.read()


async def test_held_connect_sends_its_headers_and_spaces_as_they_come() -> None:
    async with (
        Simulator(password=PASSWORD, keepalive_seconds=0.05, hold_seconds=60) as upstream,
        running(upstream.url) as proxied,
    ):
        client_id, cookies = await shaken(proxied)
        subscribe = {"channel": "/meta/subscribe", "clientId": client_id, "subscription": "/events/1"}
        connect = CONNECT | {"clientId": client_id}
        async with proxied.post([subscribe], headers=cookies):
            pass
        async with proxied.post([connect], "/notification/realtime/connect", headers=cookies) as response:
            first = await response.content.readexactly(3)
            upstream.publish("/events/1", {"number": 1})
            rest = await response.content.read()

        assert first == b"   "
        notification, reply = msgspec.json.decode(rest)
        assert notification["data"] == {"number": 1}
        assert reply["successful"] is True


async def test_client_that_goes_ends_its_held_connect_upstream(proxied: Running, upstream: Simulator) -> None:
    client_id, cookies = await shaken(proxied)
    task = asyncio.get_running_loop().create_task(hold(proxied, client_id, cookies))
    await upstream.until(lambda: upstream.held_connects == 1)
    task.cancel()
    await upstream.until(lambda: upstream.held_connects == 0)
    with pytest.raises(asyncio.CancelledError):
        await task


async def hold(proxied: Running, client_id: str, cookies: dict[str, str]) -> bytes:
    async with proxied.post([CONNECT | {"clientId": client_id}], headers=cookies) as response:
        return await response.read()


async def test_two_hundred_held_connects_do_not_delay_the_next_request(proxied: Running, upstream: Simulator) -> None:
    async with asyncio.TaskGroup() as group:
        held = []
        for client_id, cookies in [await shaken(proxied) for _ in range(200)]:
            held.append(group.create_task(hold(proxied, client_id, cookies)))
        await upstream.until(lambda: upstream.held_connects == 200)
        await shaken(proxied)
        for task in held:
            task.cancel()


async def test_two_clients_never_share_a_cookie(proxied: Running, upstream: Simulator) -> None:
    (first, one), (second, two) = await shaken(proxied), await shaken(proxied)

    assert one != two
    for client_id, cookies in ((first, one), (second, two)):
        async with proxied.post([CONNECT | {"clientId": client_id, "advice": {"timeout": 0}}], headers=cookies) as got:
            assert (await answers(got))[0]["successful"] is True
    assert [request.headers.get("Cookie") for request in upstream.requests] == [None, None, *map(cookie, (one, two))]


def cookie(headers: dict[str, str]) -> str:
    return headers["Cookie"]


async def test_our_replies_join_upstreams_in_front(upstream: Simulator) -> None:
    publish = {"channel": "/service/x", "id": "7", "data": {}}
    own = handshake(ext={AUTHN: {"token": "b3du"}})
    async with (
        running(upstream.url, {"handshake.client_authn": "refuse", "gate.grants": [EVERYTHING]}) as proxied,
        proxied.post([publish, own]) as response,
    ):
        ours, theirs = await answers(response)
        assert (ours["channel"], ours["advice"]) == ("/meta/handshake", {"reconnect": "none"})
        assert theirs["id"] == "7"
        assert [message["channel"] for message in upstream.messages] == ["/service/x"]
        assert proxied.handshakes("long-polling") == {("refused", "policy"): 1}


async def test_refused_handshake_alone_is_answered_without_upstream(upstream: Simulator) -> None:
    own = handshake(ext={AUTHN: {"token": "b3du"}})
    async with running(upstream.url, {"handshake.client_authn": "refuse"}) as proxied, proxied.post(own) as response:
        [answer] = await answers(response)
        assert answer["error"].startswith("403::")
        assert upstream.requests == []


async def test_clients_own_header_counts_as_its_credential_under_fill(upstream: Simulator) -> None:
    own = {"Authorization": f"Basic {TOKEN}"}
    stored = dict(VALUES) | {"C8Y_PASSWORD": "not used"}
    async with running(upstream.url, {"handshake.client_authn": "fill"}, values=stored) as proxied:
        async with proxied.post([handshake()], headers=own) as response:
            assert (await answers(response))[0]["successful"] is True
    assert upstream.requests[0].headers.getall("Authorization") == [f"Basic {TOKEN}"]
    assert "ext" not in upstream.messages[0]


async def test_nothing_of_ours_goes_with_a_token_that_comes_in_ext_alone_under_fill(upstream: Simulator) -> None:
    async with running(upstream.url, {"handshake.client_authn": "fill"}) as proxied:
        async with proxied.post([handshake(ext={AUTHN: {"token": "b3du"}})]) as response:
            assert (await answers(response))[0]["successful"] is False
        await shaken(proxied)  # what upstream rejected was not ours, so ours has nothing to rest for
    assert "Authorization" not in upstream.requests[0].headers
    assert upstream.messages[0]["ext"] == {AUTHN: {"token": "b3du"}}


async def test_bare_authorization_counts_as_none_under_fill(upstream: Simulator) -> None:
    async with running(upstream.url, {"handshake.client_authn": "fill"}) as proxied:
        async with proxied.post([handshake(ext={AUTHN: {}})], headers={"Authorization": "Basic "}) as response:
            assert (await answers(response))[0]["successful"] is True
    assert upstream.messages[0]["ext"][AUTHN] == {"token": TOKEN}


async def test_handshake_is_refused_in_passing_while_upstream_is_down(upstream: Simulator) -> None:
    await upstream.stop()
    async with running(upstream.url) as proxied:
        async with proxied.post([handshake(), CONNECT]) as response:
            first, second = await answers(response)
            assert response.status == 200
            assert first["advice"]["reconnect"] == "handshake"
            assert second["successful"] is False
        async with proxied.post([CONNECT]) as response:
            assert response.status == 502
        assert proxied.handshakes("long-polling") == {("refused", "unavailable"): 1}


async def test_every_handshake_of_a_mixed_batch_is_settled_while_upstream_is_down(upstream: Simulator) -> None:
    await upstream.stop()
    own = handshake(id="2", ext={AUTHN: {"token": "b3du"}})
    async with running(upstream.url, {"handshake.client_authn": "refuse"}) as proxied:
        async with proxied.post([own, handshake()]) as response:
            lasting, passing = await answers(response)
            assert (lasting["id"], lasting["advice"]["reconnect"]) == ("2", "none")
            assert (passing["id"], passing["advice"]["reconnect"]) == ("1", "handshake")
        assert proxied.handshakes("long-polling") == {("refused", "policy"): 1, ("refused", "unavailable"): 1}


async def test_handshake_that_went_up_before_upstream_was_gone_counts_as_unanswered(scripted: Scripted) -> None:
    async def leaving(request: web.Request) -> web.StreamResponse:
        await request.read()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server = await scripted(leaving)
    async with running(str(server.make_url(""))) as proxied:
        async with proxied.post([handshake()]) as response:
            [answer] = await answers(response)
            assert (response.status, answer["advice"]["reconnect"]) == (200, "handshake")
        assert proxied.handshakes("long-polling") == {("unanswered", "upstream_gone"): 1}


@pytest.mark.parametrize("said", [None, b"  "], ids=["in silence", "behind a head and spaces"])
async def test_handshake_that_upstream_never_answers_times_out(scripted: Scripted, said: bytes | None) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse()
        if said is not None:
            await response.prepare(request)
            await response.write(said)
        await asyncio.Event().wait()
        return response

    server = await scripted(silent)
    async with running(str(server.make_url("")), {"handshake.timeout_seconds": 0.05}) as proxied:
        async with proxied.post([handshake()]) as response:
            [answer] = await answers(response)
            assert (response.status, answer["advice"]["reconnect"]) == (200, "handshake")
        assert proxied.handshakes("long-polling") == {("unanswered", "timeout"): 1}


async def test_body_that_upstream_breaks_off_is_not_passed_off_as_complete(scripted: Scripted) -> None:
    async def breaking(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'[{"channel":"/x"')
        assert request.transport is not None
        request.transport.abort()
        return response

    server = await scripted(breaking)
    async with running(str(server.make_url(""))) as proxied:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with proxied.post([CONNECT]) as response:
                await response.read()


async def test_answer_without_a_handshake_reply_leaves_it_unanswered(scripted: Scripted) -> None:
    async def other(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.json_response([{"channel": "/x"}])

    server = await scripted(other)
    async with running(str(server.make_url(""))) as proxied:
        async with proxied.post([handshake()]) as response:
            assert await answers(response) == [{"channel": "/x"}]
        assert proxied.handshakes("long-polling") == {("unanswered", "upstream_gone"): 1}


async def test_echoed_authn_is_scrubbed(scripted: Scripted) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        [asked] = msgspec.json.decode(await request.read())
        return web.json_response([asked | {"successful": True}])

    server = await scripted(echo)
    async with running(str(server.make_url(""))) as proxied, proxied.post([handshake()]) as response:
        assert AUTHN not in await response.text()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"Content-Type": "text/plain"}, 415, id="text"),
        pytest.param({"Content-Type": "application/x-www-form-urlencoded"}, 415, id="form"),
        pytest.param({"Content-Type": "application/json;charset=UTF-16"}, 415, id="UTF-16"),
        pytest.param({"Content-Encoding": "gzip"}, 415, id="gzip"),
        pytest.param({"X-Id": "device"}, 403, id="SmartREST"),
        pytest.param({"Content-Type": "application/json; charset=utf-8"}, 200, id="charset in lower case"),
    ],
)
async def test_only_plain_json_passes(proxied: Running, headers: dict[str, str], status: int) -> None:
    async with proxied.post([handshake()], headers=headers) as response:
        assert response.status == status


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1]", b'[{"channel":1}]', b"\xff", b"[" * 100_000])
async def test_malformed_batch_is_a_bad_request(proxied: Running, upstream: Simulator, body: bytes) -> None:
    async with proxied.post(body) as response:
        assert response.status == 400
    assert upstream.requests == []


async def test_body_over_the_limit_is_refused(upstream: Simulator) -> None:
    async with running(upstream.url, {"limits.client_payload_bytes": 100}) as proxied:
        async with proxied.post(b" " * 101) as response:
            assert response.status == 413
            assert "limits.client_payload_bytes" in await response.text()

        async def pieces() -> Any:
            for _ in range(101):
                yield b" "

        async with proxied.client.post(
            f"{proxied.url}/cep/realtime", data=pieces(), headers={"Content-Type": "application/json"}
        ) as response:
            assert response.status == 413


async def test_body_that_is_announced_as_over_the_limit_is_not_waited_for(proxied: Running) -> None:
    reader, writer = await asyncio.open_connection("localhost", proxied.proxy.public_port)
    writer.write(b"POST /cep/realtime HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: 1048577\r\n\r\n")
    status = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    await writer.wait_closed()

    assert status.split(b" ")[1] == b"413"


async def test_body_that_does_not_arrive_is_given_up(upstream: Simulator) -> None:
    async with running(upstream.url, {"limits.payload_seconds": 0.05}) as proxied:

        async def stalled() -> Any:
            yield b"["
            await asyncio.Event().wait()

        async with proxied.client.post(
            f"{proxied.url}/cep/realtime", data=stalled(), headers={"Content-Type": "application/json"}
        ) as response:
            assert response.status == 408


async def test_smartrest_passes_unread_where_it_is_switched_on(scripted: Scripted) -> None:
    seen: list[tuple[bytes, dict[str, str]]] = []

    async def smartrest(request: web.Request) -> web.StreamResponse:
        seen.append((await request.read(), dict(request.headers)))
        return web.Response(text="83,ok\n")

    server = await scripted(smartrest)
    async with running(str(server.make_url("")), {"handshake.smartrest": True, "gate.grants": [EVERYTHING]}) as proxied:
        headers = {"X-Id": "device", "Content-Type": "text/plain"}
        async with proxied.post(b"80\n", headers=headers) as response:
            assert await response.text() == "83,ok\n"
    [(body, up)] = seen
    assert (body, up["X-Id"], up["Authorization"]) == (b"80\n", "device", f"Basic {TOKEN}")


@pytest.mark.parametrize("ours", [{}, {"handshake.system_of_units": "imperial"}])
async def test_system_of_units_stands_beside_authn(upstream: Simulator, ours: dict[str, str]) -> None:
    async with running(upstream.url, ours) as proxied:
        await shaken(proxied)
        async with proxied.post([handshake(ext={"systemOfUnits": "metric"})]):
            pass
    first, second = upstream.messages
    assert first["ext"].get("systemOfUnits") == ours.get("handshake.system_of_units")
    assert second["ext"]["systemOfUnits"] == "metric"


async def test_no_timer_is_shorter_than_the_platforms() -> None:
    """A held connect lasts up to two hours, and the heartbeat stays below common idle cuts of 60 s."""
    async with Simulator() as upstream, running(upstream.url) as proxied:
        config = proxied.proxy.config
        assert config.upstream.poll_idle_timeout_seconds > 2 * 60 * 60
        assert config.limits.heartbeat_seconds < 60
        assert config.upstream.open_timeout_seconds < 10
