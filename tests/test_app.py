"""The whole proxy: listeners, probes, TLS, and the way out."""

import asyncio
import errno
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest
import trustme
from aiohttp import WSCloseCode, web
from aiohttp.test_utils import TestServer
from cryptography import x509

from proxy.app import CannotListen, Proxy, _telling
from proxy.config import load
from proxy.credentials.kinds import Credential
from proxy.credentials.stored import StoredSource
from proxy.demo.simulator import Simulator
from proxy.gate.clients import Client
from proxy.gate.identity import IdentityUnavailable
from proxy.gate.keys import generated, stored
from proxy.head import Head
from tests.conftest import ENDING_SECONDS, PASSWORD, VALUES, Running, closed, exchange, handshake, running
from tests.gate.tokens import AUDIENCE, ISSUER, jwks, public_jwk, token


async def probe(proxied: Running, path: str) -> tuple[int, str]:
    async with proxied.client.get(f"{proxied.admin_url}{path}") as response:
        return response.status, (await response.text()).strip()


async def test_probes_pass_while_upstream_is_down(upstream: Simulator) -> None:
    await upstream.stop()
    async with running(upstream.url) as proxied:
        for path in ("/livez", "/readyz", "/startupz"):
            assert await probe(proxied, path) == (200, "ok")


@pytest.mark.logs_errors
async def test_without_a_usable_credential_it_lives_but_is_not_ready(upstream: Simulator, tmp_path: Path) -> None:
    async with running(upstream.url, {"credentials.default.directory": str(tmp_path)}, values={}) as proxied:
        assert (await probe(proxied, "/livez"))[0] == 200
        assert await probe(proxied, "/readyz") == (503, "no usable credential: see the log")
        async with proxied.post([handshake()]) as response:
            [answer] = await response.json()
            assert answer["advice"]["reconnect"] == "handshake"
        for name, value in {"tenant": "t0815", "user": "service", "password": PASSWORD}.items():
            (tmp_path / name).write_text(value)
        assert await probe(proxied, "/readyz") == (200, "ok")
        assert proxied.count("credential_reloads_total", source="stored", result="failed") == 1


async def test_metrics_are_on_the_admin_listener_only(proxied: Running) -> None:
    status, text = await probe(proxied, "/metrics")
    assert status == 200
    assert 'c8y_realtime_proxy_build_info{version="' in text
    async with proxied.client.get(f"{proxied.url}/metrics") as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("host", "told"),
    [
        pytest.param(
            "127.0.0.1", r"listen\.port: cannot listen on .*: Address already in use; choose a free", id="port"
        ),
        pytest.param(
            "192.0.2.1", r"listen\.host: cannot listen on .*; choose an address of this machine", id="address"
        ),
        pytest.param("x.invalid", r"listen\.host: cannot listen on .*; choose an address of this machine", id="name"),
    ],
)
async def test_listener_that_cannot_be_opened_is_told_by_its_key(
    proxied: Running, upstream: Simulator, host: str, told: str
) -> None:
    environment = {
        "C8Y_BASEURL": upstream.url,
        "C8Y_REALTIME_PROXY__LISTEN__HOST": host,
        "C8Y_REALTIME_PROXY__LISTEN__PORT": str(proxied.proxy.public_port),
        "C8Y_REALTIME_PROXY__ADMIN__PORT": "0",
        "C8Y_REALTIME_PROXY__GATE__HOSTS": '["proxy.example.com"]',
        "C8Y_REALTIME_PROXY__GATE__IDENTITY": '["none"]',
        "C8Y_REALTIME_PROXY__GATE__ADMIT_ANYONE": "true",
    }
    with pytest.raises(CannotListen, match=f"^{told}"):
        async with Proxy(load(None, environment | dict(VALUES))):
            pass


def test_port_that_takes_a_right_is_told_with_what_needs_none() -> None:
    """Which ports these are is the machine's choice, and whoever runs the tests may have that right."""
    refused = PermissionError(errno.EACCES, "Permission denied")
    told = r"^listen\.port: cannot listen on 127\.0\.0\.1:443: Permission denied; choose one of 1024 or above"
    with pytest.raises(CannotListen, match=told), _telling("listen", "127.0.0.1", 443):
        raise refused


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def certificate_files(authority: trustme.CA, directory: Path) -> dict[str, object]:
    certificate = authority.issue_cert("localhost")
    key_file, certificate_file = directory / "key.pem", directory / "certificate.pem"
    certificate.private_key_pem.write_to_path(key_file)
    certificate.cert_chain_pems[0].write_to_path(certificate_file)
    return {"listen.tls.key_file": str(key_file), "listen.tls.certificate_file": str(certificate_file)}


async def test_tls_on_both_sides(authority: trustme.CA, tmp_path: Path) -> None:
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    settings = certificate_files(authority, tmp_path) | {"upstream.ca_file": str(tmp_path / "ca.pem")}
    async with (
        Simulator(password=PASSWORD, ssl_context=server) as upstream,
        running(upstream.url, settings, client_tls=client) as proxied,
    ):
        async with proxied.socket() as socket:
            [answer] = await exchange(socket, [handshake()])
            assert answer["successful"] is True
        async with proxied.post([handshake()]) as response:
            assert (await response.json())[0]["successful"] is True
            assert response.headers["Set-Cookie"].startswith("BAYEUX_BROWSER=")


CLIENT_CA: Final = "clients.pem"


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[Head]:
    """The heads of requests as the rooms behind the door come to see them."""
    seen: list[Head] = []
    obtain = StoredSource.obtain

    def recording(self: StoredSource, head: Head, endpoint: str) -> Credential:
        seen.append(head)
        return obtain(self, head, endpoint)

    monkeypatch.setattr(StoredSource, "obtain", recording)
    return seen


@asynccontextmanager
async def asking_for_certificates(
    upstream: Simulator, authority: trustme.CA, directory: Path, shown: trustme.LeafCert | None, *methods: str
) -> AsyncIterator[Running]:
    """A proxy that identifies clients by the certificates of an authority, and a client that shows one, or none."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    if shown is not None:
        shown.configure_cert(client)
    authority.cert_pem.write_to_path(directory / CLIENT_CA)
    settings = certificate_files(authority, directory) | {
        "listen.tls.client_ca_file": str(directory / CLIENT_CA),
        "gate.identity": methods,
        "clients": [
            {"name": "press", "certificates": ["press-7", "press.example.com"]},
            {"name": "hall", "key": stored(HALL)} if "bearer" in methods else {"name": "all", "certificates": ["*"]},
        ],
    }
    async with running(upstream.url, settings, client_tls=client) as proxied:
        yield proxied


HALL: Final = generated("hall")


@pytest.mark.parametrize(
    ("names", "common_name", "subject"),
    [
        pytest.param((), "press-7", "press-7", id="common name, as devices have"),
        pytest.param(("x.example.com", "press.example.com"), None, "press.example.com", id="alternative name"),
    ],
)
@pytest.mark.parametrize("methods", [("mtls",), ("mtls", "bearer")], ids=["alone", "beside keys"])
async def test_certificate_of_a_client_proves_it_on_both_transports(
    upstream: Simulator,
    authority: trustme.CA,
    tmp_path: Path,
    heads: list[Head],
    methods: tuple[str, ...],
    names: tuple[str, ...],
    common_name: str | None,
    subject: str,
) -> None:
    issued = authority.issue_cert(*names, common_name=common_name)
    async with asking_for_certificates(upstream, authority, tmp_path, issued, *methods) as proxied:
        async with proxied.post([{"channel": "/meta/connect"}]) as response:
            await response.read()
        async with proxied.socket():
            pass
        known = [proxied.proxy._wiring.identities.identify(head) for head in heads]
    assert [(client.name, client.subject) for client in known] == [("press", subject)] * 2
    until = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).not_valid_after_utc.timestamp()
    assert [client.until for client in known] == [until] * 2


async def test_client_without_a_certificate_may_prove_itself_otherwise(
    upstream: Simulator, authority: trustme.CA, tmp_path: Path, heads: list[Head]
) -> None:
    async with asking_for_certificates(upstream, authority, tmp_path, None, "mtls", "bearer") as proxied:
        bearer = {"Authorization": f"Bearer {HALL}"}
        async with proxied.post([{"channel": "/meta/connect"}], headers=bearer) as response:
            await response.read()
        [head] = heads
        assert head.certificate is None
        assert proxied.proxy._wiring.identities.identify(head).name == "hall"


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(lambda _: None, id="none"),
        pytest.param(lambda _: trustme.CA().issue_cert(common_name="press-7"), id="of another authority"),
        pytest.param(
            lambda own: own.issue_cert(common_name="press-7", not_after=datetime.now(UTC) - timedelta(days=1)),
            id="expired",
        ),
    ],
)
async def test_certificate_that_is_not_genuine_ends_the_tls_handshake(
    upstream: Simulator,
    authority: trustme.CA,
    tmp_path: Path,
    heads: list[Head],
    shown: Callable[[trustme.CA], trustme.LeafCert | None],
) -> None:
    methods = ("mtls",) if shown(authority) is None else ("mtls", "bearer")
    async with asking_for_certificates(upstream, authority, tmp_path, shown(authority), *methods) as proxied:
        with pytest.raises(aiohttp.ClientError):
            async with proxied.post([{"channel": "/meta/connect"}]):
                pass
    assert heads == []


async def test_nobody_is_asked_for_a_certificate_by_default(
    upstream: Simulator, authority: trustme.CA, tmp_path: Path, heads: list[Head]
) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    authority.issue_cert(common_name="press-7").configure_cert(client)
    async with running(upstream.url, certificate_files(authority, tmp_path), client_tls=client) as proxied:
        async with proxied.post([{"channel": "/meta/connect"}]) as response:
            await response.read()
    assert [head.certificate for head in heads] == [None]


async def identified(proxied: Running, head: Head) -> Client:
    """Who sent a head, once the keys are there to tell."""
    while True:
        try:
            return proxied.proxy._wiring.identities.identify(head)
        except IdentityUnavailable:
            await asyncio.sleep(0)


async def test_keys_of_tokens_are_fetched_while_the_proxy_runs(upstream: Simulator) -> None:
    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=jwks(public_jwk("ES256")))

    issuer = web.Application()
    issuer.router.add_get("/jwks.json", serve)
    async with TestServer(issuer, host="localhost") as server:
        settings = {
            "gate.identity": ["jwt"],
            "gate.jwt.jwks_url": str(server.make_url("/jwks.json")),
            "gate.jwt.issuer": ISSUER,
            "gate.jwt.audience": AUDIENCE,
            "clients": [{"name": "people", "subjects": ["*"], "grants": [{"call": ["/service/x"]}]}],
        }
        head = Head("POST", "/cep/realtime", (("authorization", f"Bearer {token(exp=time.time() + 60)}"),))
        async with running(upstream.url, settings) as proxied:
            client = await identified(proxied, head)
    assert (client.name, client.subject) == ("people", "ann")
    assert client.policies["/cep/realtime"].refusal("/service/x", {}) is None
    assert client.policies["/cep/realtime"].refusal("/service/y", {}) is not None


async def test_upstream_with_an_unknown_certificate_gets_no_credential(authority: trustme.CA) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    async with Simulator(ssl_context=server) as upstream, running(upstream.url) as proxied:
        async with proxied.post([{"channel": "/meta/connect"}]) as response:
            assert response.status == 502
            assert "not reachable" in await response.text()
        assert upstream.requests == []


async def test_drain_says_goodbye_to_everybody_in_their_own_words(upstream: Simulator) -> None:
    async with running(upstream.url) as proxied, proxied.socket() as socket:
        [answer] = await exchange(socket, [handshake()])
        async with proxied.post([handshake()]) as response:
            [shaken] = await response.json()
            cookies = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
        connect = {"channel": "/meta/connect", "id": "7", "clientId": shaken["clientId"]}
        parked = asyncio.get_running_loop().create_task(posted(proxied, [connect], cookies))
        await upstream.until(lambda: upstream.held_connects == 1)

        await proxied.proxy.drain()

        assert await closed(socket) == (WSCloseCode.GOING_AWAY, "Connect again")
        [goodbye] = await parked
        assert (goodbye["id"], goodbye["successful"]) == ("7", True)
        assert goodbye["advice"]["reconnect"] == "retry"
        assert 5000 <= goodbye["advice"]["interval"] <= 7500
        assert answer["successful"] is True
        assert await probe(proxied, "/readyz") == (503, "draining")
        assert await probe(proxied, "/livez") == (200, "ok")


async def test_connect_parked_beside_other_messages_gets_its_goodbye_and_they_their_failure(
    upstream: Simulator, proxied: Running
) -> None:
    async with proxied.post([handshake()]) as response:
        [shaken] = await response.json()
        cookies = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
    connect = {"channel": "/meta/connect", "id": "7", "clientId": shaken["clientId"]}
    subscribe = {"channel": "/meta/subscribe", "id": "8", "subscription": "/alarms/1", "clientId": shaken["clientId"]}
    async with asyncio.TaskGroup() as group:
        parked = group.create_task(posted(proxied, [connect, subscribe], cookies))
        await upstream.until(lambda: upstream.held_connects == 1)
        await proxied.proxy.drain()
        goodbye, failed = await parked

    assert (goodbye["id"], goodbye["successful"], goodbye["advice"]["reconnect"]) == ("7", True, "retry")
    assert (failed["id"], failed["successful"]) == ("8", False)


async def test_upgrade_that_was_dialling_when_the_drain_began_is_refused() -> None:
    dialled, answer = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        dialled.set()
        await answer.wait()
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        return socket

    slow_upstream = web.Application()
    slow_upstream.router.add_get("/{path:.*}", slow)
    async with (
        TestServer(slow_upstream, host="localhost") as server,
        running(str(server.make_url(""))) as proxied,
        asyncio.TaskGroup() as group,
    ):
        opening = group.create_task(refusal_of_an_upgrade(proxied))
        await dialled.wait()
        await proxied.proxy.drain()
        answer.set()
        assert await opening == 503
        assert proxied.upgrades() == {("refused", "draining"): 1}


async def refusal_of_an_upgrade(proxied: Running) -> int:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await proxied.client.ws_connect(f"{proxied.url}/cep/realtime")
    return refused.value.status


async def posted(proxied: Running, batch: object, headers: dict[str, str]) -> Any:
    async with proxied.post(batch, headers=headers) as response:
        return msgspec.json.decode(await response.read())


async def test_parked_connect_that_has_had_spaces_gets_its_goodbye_too() -> None:
    async with (
        Simulator(password=PASSWORD, keepalive_seconds=0.02) as upstream,
        running(upstream.url) as proxied,
    ):
        async with proxied.post([handshake()]) as response:
            [shaken] = await response.json()
            cookies = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
        connect = {"channel": "/meta/connect", "id": "7", "clientId": shaken["clientId"]}
        async with proxied.post([connect], headers=cookies) as response:
            await response.content.readexactly(1)
            await proxied.proxy.drain()
            [goodbye] = msgspec.json.decode(await response.read())
            assert goodbye["advice"]["reconnect"] == "retry"


async def test_newcomers_are_sent_away_while_draining(proxied: Running) -> None:
    await proxied.proxy.drain()
    async with proxied.post([handshake()]) as response:
        [answer] = await response.json()
        assert answer["advice"]["reconnect"] == "handshake"
    async with proxied.post([{"channel": "/meta/connect"}]) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0

    assert await refusal_of_an_upgrade(proxied) == 503
    assert proxied.upgrades() == {("refused", "draining"): 1}
    assert proxied.handshakes("long-polling") == {("refused", "unavailable"): 1}


async def test_handshake_in_flight_at_the_end_counts_as_drained(proxied: Running, upstream: Simulator) -> None:
    upstream.answers_handshakes = False
    async with proxied.socket() as socket:
        await socket.send_str(msgspec.json.encode([handshake()]).decode())
        await upstream.until(lambda: len(upstream.messages) == 1)
        await proxied.proxy.drain()

    assert proxied.handshakes() == {("unanswered", "drained"): 1}


async def test_connections_that_never_leave_are_cut_off_in_time(upstream: Simulator) -> None:
    async with running(upstream.url, {"drain.timeout_seconds": 0.1}) as proxied:
        sockets = [await proxied.client.ws_connect(f"{proxied.url}/cep/realtime") for _ in range(20)]
        started = time.monotonic()
        await proxied.proxy.drain()  # nobody reads: no close frame is answered
    for socket in sockets:
        await socket.close()
    assert time.monotonic() - started < ENDING_SECONDS
