"""The public listener as strangers find it."""

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.demo.simulator import Simulator
from tests.conftest import PASSWORD, Running, handshake, pages_of, running


PAGE = "https://app.example.com"
DEMO = pages_of(root=lambda: web.Response(text="demo"))


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        pytest.param({"Origin": "https://evil.example.com"}, "origin", id="foreign page"),
        pytest.param({"Origin": "null"}, "origin", id="sandboxed page"),
        pytest.param({"Sec-Fetch-Mode": "websocket"}, "origin", id="browser without Origin"),
        pytest.param({"Cookie": "authorization=a"}, "origin", id="cookies without Origin"),
        pytest.param({"Host": "evil.example.com"}, "host", id="rebound name"),
    ],
)
async def test_both_transports_pass_the_same_gate(
    proxied: Running, upstream: Simulator, headers: dict[str, str], reason: str
) -> None:
    async with proxied.post([handshake()], headers=headers) as response:
        assert response.status == 403
        assert f"gate.{reason}s" in await response.text()
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await proxied.client.ws_connect(f"{proxied.url}/notification/realtime", headers=headers)

    assert refused.value.status == 403
    assert proxied.upgrades() == {("refused", reason): 1}
    assert upstream.requests == []


async def test_listed_origin_comes_in_and_gets_its_cors_answer(upstream: Simulator) -> None:
    async with running(upstream.url, {"gate.origins": [PAGE]}) as proxied:
        async with proxied.client.options(
            f"{proxied.url}/notification/realtime/handshake", headers={"Origin": PAGE}
        ) as preflight:
            assert preflight.status == 204
            assert preflight.headers.getall("Access-Control-Allow-Origin") == [PAGE]  # twice is none, to a browser
        async with proxied.post([handshake()], headers={"Origin": PAGE}) as response:
            assert response.headers["Access-Control-Allow-Origin"] == PAGE
            assert response.headers["Vary"] == "Origin"
        async with proxied.post(b"nonsense", headers={"Origin": PAGE}) as response:
            assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (400, PAGE)


async def test_preflight_of_a_foreign_page_is_refused_without_cors_headers(proxied: Running) -> None:
    url = f"{proxied.url}/notification/realtime"
    async with proxied.client.options(url, headers={"Origin": "https://evil.example.com"}) as response:
        assert response.status == 403
        assert not [name for name in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics", 404),
        ("POST", "/inventory/managedObjects", 404),
        ("POST", "/notification/realtime/../../user", 404),
        ("POST", "/notification//realtime", 404),
        ("POST", "/notification/realtime/%2e%2e/x", 404),
        ("POST", "/notification%2frealtime", 404),
        ("POST", "/NOTIFICATION/realtime", 404),
        ("POST", "/notification/realtime;x", 404),
        ("POST", "/notification2/consumer/", 404),
        ("GET", "/notification/realtime", 405),
        ("PUT", "/notification/realtime", 405),
        ("GET", "/notification/realtime?message=[]&jsonp=f", 405),
    ],
)
async def test_nothing_but_the_endpoints_is_served(
    proxied: Running, upstream: Simulator, method: str, path: str, status: int
) -> None:
    response = await raw(proxied, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\n[]")

    assert response.startswith(f"HTTP/1.1 {status} ".encode())
    assert upstream.requests == []


JSON = "Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n"


async def raw(proxied: Running, request: str | bytes) -> bytes:
    """Send bytes as they are, and read until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxied.proxy.public_port)
    writer.write(request if isinstance(request, bytes) else request.encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    "target", ["http://elsewhere.example.com/notification/realtime", "*", "//notification/realtime"]
)
async def test_the_client_never_chooses_where_a_request_goes(
    proxied: Running, upstream: Simulator, target: str
) -> None:
    response = await raw(proxied, f"POST {target} HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\n[]")

    assert response.split(b" ")[1] in {b"404", b"400"}
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        pytest.param("POST /cep/realtime HTTP/1.1\r\nHost: localhost\r\nCookie: " + "x" * 70_000, 431, id="too long"),
        pytest.param("POST /cep/realtime HTTP/1.1\r\nHost: localhost\r\nCookie : a", 400, id="space before colon"),
        pytest.param("POST /cep/realtime HTTP/1.1\r\nHost: localhost\r\nContent-Length: +2", 400, id="odd length"),
        pytest.param("POST /cep/realtime HTTP/1.1\nHost: localhost\nCookie: a\n\n", 400, id="bare line feeds"),
        pytest.param("nonsense", 400, id="no request line"),
    ],
)
async def test_malformed_head_is_refused_without_quoting_it(proxied: Running, request_head: str, status: int) -> None:
    """What could not be parsed may be a cookie."""
    response = await raw(proxied, f"{request_head}{PASSWORD}\r\n\r\n")

    assert response.startswith(f"HTTP/1.1 {status} ".encode())
    assert PASSWORD.encode() not in response
    assert b"Connection: close\r\n" in response


async def test_long_single_sign_on_cookies_pass(proxied: Running) -> None:
    async with proxied.post([handshake()], headers={"Cookie": "BAYEUX_BROWSER=" + "x" * 20_000}) as response:
        assert response.status == 200


@pytest.mark.parametrize("header", ["Host", "Origin"])
async def test_header_sent_twice_is_refused(proxied: Running, header: str) -> None:
    twice = f"{header}: localhost\r\n" * 2 + ("Host: localhost\r\n" if header != "Host" else "")
    response = await raw(proxied, f"POST /cep/realtime HTTP/1.1\r\n{twice}{JSON}\r\n[]")

    assert response.split(b" ")[1] == b"400"


async def test_two_authorization_cookies_are_refused(upstream: Simulator) -> None:
    settings = {"credentials.default.source": "cookie", "gate.origins": [PAGE]}
    async with running(upstream.url, settings, values={}) as proxied:
        headers = {"Origin": PAGE, "Cookie": "authorization=a; authorization=b", "X-XSRF-TOKEN": "x"}
        async with proxied.post([handshake()], headers=headers) as response:
            assert (response.status, (await response.json())[0]["successful"]) == (200, False)
            assert "authorization" in await response.text()


async def test_bytes_behind_a_refused_upgrade_are_no_request(proxied: Running, upstream: Simulator) -> None:
    upgrade = "GET /cep/realtime HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    smuggled = f"POST /cep/realtime HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\n[]"
    response = await raw(proxied, upgrade + smuggled)

    assert response.count(b"HTTP/1.1 ") == 1
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("version", "body"),
    [
        pytest.param("1.0", "\r\n", id="HTTP/1.0"),
        pytest.param("1.1", "Content-Length: 2\r\n\r\n[]", id="with a body"),
        pytest.param("1.1", "Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n", id="with a chunked body"),
    ],
)
async def test_upgrade_that_could_be_read_two_ways_is_not_dialled(
    proxied: Running, upstream: Simulator, version: str, body: str
) -> None:
    opening = (
        "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    response = await raw(proxied, f"GET /cep/realtime HTTP/{version}\r\n{opening}{body}")

    assert response.split(b" ")[1] == b"400"
    assert upstream.requests == []


async def test_connections_over_the_limit_are_told_so(upstream: Simulator) -> None:
    async with running(upstream.url, {"limits.connections": 2}) as proxied, proxied.socket(), proxied.socket():
        async with proxied.post([handshake()]) as response:
            assert response.status == 429
            assert "Retry-After" in response.headers


async def test_connection_without_a_complete_head_is_ended(upstream: Simulator) -> None:
    async with running(upstream.url, {"limits.idle_seconds": 0.1, "limits.head_seconds": 0.1}) as proxied:
        assert (await raw(proxied, "POST /cep/realtime HTTP/1.1\r\nHost: local")).startswith(b"HTTP/1.1 408 ")
        assert await raw(proxied, b"") == b""


async def expecting(proxied: Running, body: bytes) -> bytes:
    """Send a body once it is asked for; returns what comes then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxied.proxy.public_port)
    head = "POST /cep/realtime HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_expectation_of_a_go_ahead_is_met(proxied: Running) -> None:
    assert (await expecting(proxied, b'[{"channel":"/meta/handshake"}]')).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_what_is_wrong_behind_a_go_ahead_is_told_all_the_same(proxied: Running) -> None:
    assert (await expecting(proxied, b"[1]")).startswith(b"HTTP/1.1 400 ")


async def test_nobody_is_told_to_go_ahead_with_too_much(proxied: Running) -> None:
    head = "POST /cep/realtime HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    response = await raw(proxied, f"{head}Expect: 100-continue\r\nContent-Length: {1 << 30}\r\n\r\n")

    assert response.startswith(b"HTTP/1.1 413 ")


@pytest.mark.logs_errors
async def test_fault_of_ours_tells_the_client_nothing(upstream: Simulator, caplog: Any) -> None:
    async with running(upstream.url) as proxied:
        proxied.proxy._polling.carriage = None  # type: ignore[assignment]
        async with proxied.post([handshake()]) as response:
            assert (response.status, await response.text()) == (500, "Internal error\n")
    assert "fault of ours" in caplog.text


async def test_every_answer_names_the_same_server_and_forbids_sniffing(upstream: Simulator) -> None:
    async with running(upstream.url, pages=DEMO) as proxied:
        for method, path in (
            ("GET", "/"),
            ("POST", "/nowhere"),
            ("POST", "/cep/realtime"),
            ("OPTIONS", "/cep/realtime"),
        ):
            async with proxied.client.request(method, proxied.url + path, json=[handshake()]) as response:
                assert response.headers["Server"] == "c8y-realtime-proxy"
                assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_page_is_served_to_admitted_hosts_only(upstream: Simulator) -> None:
    async with running(upstream.url, pages=DEMO) as proxied:
        for host, status in (("localhost", 200), ("evil.example", 403)):
            async with proxied.client.get(proxied.url, headers={"Host": host}) as response:
                assert response.status == status
