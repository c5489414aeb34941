"""Who is not known is told so in the words of its transport, and is counted once."""

import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from proxy.bayeux.negotiation import AUTHN
from proxy.demo.simulator import Simulator
from tests.conftest import PASSWORD, handshake, running
from tests.relay.raw import client, post
from tests.relay.talking import BY_KEY, KEYS, PAGE, TRANSPORTS, connect, talking


CHALLENGE = 'Bearer realm="c8y-realtime-proxy", Basic realm="c8y-realtime-proxy", charset="UTF-8"'


async def test_upgrade_of_somebody_unknown_is_refused_and_nothing_is_dialled(upstream: Simulator) -> None:
    async with running(upstream.url, BY_KEY) as proxied:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await proxied.client.ws_connect(f"{proxied.url}/notification/realtime")
        assert refused.value.status == 401
        assert refused.value.headers is not None
        assert refused.value.headers["WWW-Authenticate"] == CHALLENGE
        assert proxied.upgrades() == {("refused", "identity"): 1}
        assert proxied.handshakes() == {}
    assert upstream.requests == []


@pytest.mark.parametrize("endpoint", ["/notification/realtime/handshake", "/notification/operations/", "/cep/realtime"])
async def test_handshake_of_somebody_unknown_is_refused_for_good(upstream: Simulator, endpoint: str) -> None:
    async with running(upstream.url, BY_KEY) as proxied:
        batch = [handshake(), {"channel": "/alarms/1", "id": "2", "data": 1}]
        async with proxied.post(batch, endpoint) as response:
            assert response.status == 200
            assert "WWW-Authenticate" not in response.headers
            shook, neighbour = await response.json()
        assert (shook["id"], shook["successful"], shook["advice"]) == ("1", False, {"reconnect": "none"})
        assert shook["error"].startswith("403::Nothing proves who this client is")
        assert (neighbour["id"], neighbour["successful"]) == ("2", False)
        assert "advice" not in neighbour
        assert proxied.handshakes("long-polling") == {("refused", "identity"): 1}
    assert upstream.requests == []


async def test_anything_else_of_somebody_unknown_is_refused_by_status(upstream: Simulator) -> None:
    async with running(upstream.url, BY_KEY) as proxied:
        for batch, status in (([connect("c")], 401), ([], 401), (b"[1]", 400)):
            async with proxied.post(batch) as response:
                assert response.status == status
                assert response.headers.get("WWW-Authenticate") == (CHALLENGE if status == 401 else None)
        assert proxied.handshakes("long-polling") == {}
    assert upstream.requests == []


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_proof_that_is_sent_twice_is_none(upstream: Simulator, transport: str) -> None:
    lines = [f"Authorization: Bearer {KEYS['ann']}"] * 2
    async with running(upstream.url, BY_KEY) as proxied, client(proxied) as one:
        request = post(b'[{"channel":"/meta/handshake"}]', *lines)
        if transport == "websocket":
            opening = "GET /cep/realtime HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"
            key = "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
            request = "".join(f"{line}\r\n" for line in (*opening, *key, *lines, "")).encode()
        one.send(request)
        assert (await one.answer()).status == 400
    assert upstream.requests == []


async def test_preflight_is_answered_to_anybody(upstream: Simulator) -> None:
    """A browser sends no proof with it."""
    async with running(upstream.url, BY_KEY) as proxied:
        url = f"{proxied.url}/notification/realtime"
        async with proxied.client.options(url, headers={"Origin": PAGE}) as response:
            assert response.status == 204


# Certificates ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_certificate(tmp_path: Path) -> tuple[dict[str, Any], ssl.SSLContext]:
    """Settings by which the client `press-7` is known by its certificate; and its side of the connection."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    listening = authority.issue_cert("localhost")
    listening.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in listening.cert_chain_pems:
        blob.write_to_path(tmp_path / "certificate.pem", append=True)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    authority.issue_cert("press-7.example.com").configure_cert(context)
    return (
        {
            "gate.identity": ["mtls"],
            "listen.tls.certificate_file": str(tmp_path / "certificate.pem"),
            "listen.tls.key_file": str(tmp_path / "key.pem"),
            "listen.tls.client_ca_file": str(tmp_path / "ca.pem"),
            "gate.origins": [PAGE],
            "clients": [{"name": "press-7", "certificates": ["press-7.example.com"]}],
        },
        context,
    )


@pytest.mark.parametrize(
    ("begun", "continued"), [("long-polling", "websocket"), ("websocket", "long-polling")], ids=["as Faye", "fallback"]
)
@pytest.mark.parametrize("policy", ["override", "fill"])
async def test_clientid_outlives_a_change_of_transport_with_a_token_of_its_own(
    by_certificate: tuple[dict[str, Any], ssl.SSLContext], policy: str, begun: str, continued: str
) -> None:
    """Under `fill` its token goes up in place of ours, and a WebSocket is opened with ours all the same."""
    settings, context = by_certificate
    headers = {"Origin": PAGE, "Authorization": "Bearer h.p.s"}
    async with (
        Simulator(password=PASSWORD, tokens=["h.p.s"], session_cookie=False) as upstream,
        running(upstream.url, settings | {"handshake.client_authn": policy}, client_tls=context) as proxied,
    ):
        async with talking(proxied, begun, headers=headers) as talk:
            [answer] = await talk(handshake(ext={AUTHN: {"token": "h.p.s"}}))
        async with talking(proxied, continued, headers=headers) as talk:
            [reply] = await talk(connect(answer["clientId"], continued))
            assert reply["successful"] is True
