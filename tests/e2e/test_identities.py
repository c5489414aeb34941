"""Who clients are: every proof from every client that can send it, and nothing of it beyond the proxy."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from .clients import Keys
from .conftest import StageOpener
from .stage import Evidence, Leg, Stage, Transport, store
from .tap import tapped
from .upstreams import ACCOUNT, WRONG, Upstream


CHANNEL = "/measurements/4711"
TRANSPORTS: list[Transport] = ["long-polling", "websocket"]
LEGS = [Leg(library, "node", transport) for library in ("c8y", "cometd", "faye") for transport in TRANSPORTS]

Proof = tuple[Leg, Mapping[str, Any]]


async def live(stage: Stage, upstream: Upstream, proofs: Sequence[Proof]) -> None:
    """Whole sessions side by side, each of a client with such options, and on a channel of its own."""

    async def one(leg: Leg, options: Mapping[str, Any], channel: str) -> None:
        async with stage.client(leg, **options) as client:
            await client.start(channel)
            await upstream.publish(channel, 0, 10)
            await client.receive(channel, 0, 10)
            await client.disconnect()

    await asyncio.gather(*(one(*proof, f"/measurements/{number}") for number, proof in enumerate(proofs)))
    assert {key[2:] for key in await stage.handshakes()} == {("accepted", "ok")}
    assert sum((await stage.handshakes()).values()) == (await upstream.seen()).accepted == len(proofs)


async def test_keys_and_tokens_let_clients_in_and_do_not_go_up(
    open_stage: StageOpener, upstream: Upstream, directory: Path, tmp_path: Path, keys: Keys, evidence: Evidence
) -> None:
    issued, token = _issued(tmp_path)
    signature = token.rpartition(".")[2].encode()
    evidence.secrets.append(signature)
    settings = keys.settings(directory, {"name": "third", "subjects": ["third"]}) | issued
    settings["gate.identity"] = ["basic", "bearer", "jwt"]
    proofs: list[Proof] = [
        *((leg, keys.options(leg, "one", basic=True)) for leg in LEGS),
        *((leg, keys.options(leg, "other")) for leg in LEGS if leg.library == "faye"),
        *((leg, {"headers": {"Authorization": f"Bearer {token}"}}) for leg in LEGS if leg.library == "cometd"),
    ]
    async with tapped(upstream.port) as above:
        settings["upstream.url"] = f"http://localhost:{above.port}"
        async with open_stage(upstream, settings) as stage:
            await live(stage, upstream, proofs)
    said = above.said()
    assert not [secret for secret in (*keys.secrets(), signature) if secret in said]
    # What does go up is found there: in headers, and within the frames of WebSockets.
    proxys_own = ACCOUNT.authorization().removeprefix("Basic ").encode()
    assert b"Authorization: Basic " + proxys_own in said
    assert b'"token":"' + proxys_own in said


async def test_certificates_let_clients_in(
    open_stage: StageOpener, upstream: Upstream, directory: Path, tmp_path: Path
) -> None:
    authority = trustme.CA()
    server, press = authority.issue_cert("localhost"), authority.issue_cert("press-7")
    files = {name: str(tmp_path / name) for name in ("certificate_file", "key_file", "client_ca_file")}
    server.cert_chain_pems[0].write_to_path(files["certificate_file"])
    server.private_key_pem.write_to_path(files["key_file"])
    authority.cert_pem.write_to_path(files["client_ca_file"])
    settings = store(directory, ACCOUNT.files()) | {f"listen.tls.{name}": path for name, path in files.items()}
    settings |= {"gate.identity": ["mtls"], "clients": [{"name": "press", "certificates": ["press-7"]}]}
    shown = {
        "ca": authority.cert_pem.bytes().decode(),
        "cert": press.cert_chain_pems[0].bytes().decode(),
        "key": press.private_key_pem.bytes().decode(),
    }
    async with open_stage(upstream, settings) as stage:
        await live(stage, upstream, [(leg, {"tls": shown}) for leg in LEGS])


@pytest.mark.parametrize("leg", [LEGS[0], LEGS[1], LEGS[2], LEGS[3], Leg("c8y", "chromium", "long-polling")], ids=str)
async def test_a_wrong_key_stops_a_client_after_one_handshake(
    open_stage: StageOpener, cometd: Upstream, directory: Path, keys: Keys, evidence: Evidence, leg: Leg
) -> None:
    wrong = Keys()
    evidence.secrets += wrong.secrets()
    async with (
        open_stage(cometd, keys.settings(directory)) as stage,
        stage.client(leg, **wrong.options(leg, "one")) as client,
    ):
        await client.attempt(CHANNEL)
        refused = await client.answered()
        assert not refused.successful
        assert str(refused.error).startswith("403::")
        assert refused.advice
        assert refused.advice.reconnect == "none"
        await client.gave_up()
        # A refused upgrade makes clients fall back to long-polling, where they are told.
        assert await stage.handshakes() == {("long-polling", "stored", "refused", "identity"): 1}
        assert await stage.upgrades() == ({("refused", "identity"): 1} if leg.transport == "websocket" else {})
        assert stage.tap.count(b'"403::') == 1
        seen = await cometd.seen()
        assert (seen.accepted, seen.denied, seen.unauthorized, seen.headers) == (0, 0, 0, {})


async def test_a_browser_that_cannot_send_its_key_with_an_upgrade_falls_back_to_long_polling(
    open_stage: StageOpener, cometd: Upstream, directory: Path, keys: Keys
) -> None:
    leg = Leg("c8y", "chromium", "websocket")
    async with (
        open_stage(cometd, keys.settings(directory)) as stage,
        stage.client(leg, **keys.options(leg, "one")) as client,
    ):
        await client.attempt(CHANNEL)
        await client.recovered(CHANNEL)
        await cometd.publish(CHANNEL, 0, 10)
        await client.receive(CHANNEL, 0, 10)
        await client.disconnect()
        assert await stage.handshakes() == {("long-polling", "stored", "accepted", "ok"): 1}


async def test_a_stale_password_is_offered_once_for_a_whole_crowd_and_its_correction_cures_them_all(
    open_stage: StageOpener, cometd: Upstream, directory: Path
) -> None:
    settings = store(directory, WRONG.files()) | {"credentials.default.cooldown_seconds": 2}
    polling, socket = (Leg("cometd", "node", transport) for transport in TRANSPORTS)
    async with (
        open_stage(cometd, settings) as stage,
        stage.crowd(polling, 10, path="/notification/realtime") as one,
        stage.crowd(socket, 10, path="/cep/realtime") as other,
    ):
        await asyncio.gather(one.attempt(CHANNEL), other.attempt(CHANNEL))
        await asyncio.gather(one.all("handshake", successful=False), other.all("handshake", successful=False))
        denied = (await cometd.seen()).denied
        assert denied == len(("/notification/realtime", "/cep/realtime"))

        store(directory, ACCOUNT.files())
        await asyncio.gather(one.all("subscribe", successful=True), other.all("subscribe", successful=True))
        await cometd.publish(CHANNEL, 0, 1)
        await asyncio.gather(one.all("message", successful=None), other.all("message", successful=None))
        seen, ended = await cometd.seen(), await stage.handshakes()
        accepted = {transport: ended[transport, "stored", "accepted", "ok"] for transport in TRANSPORTS}
        assert (seen.accepted, seen.denied) == (sum(accepted.values()), denied)
        # The ten on long-polling are one program with one cookie jar: of two that handshake at the same time, one loses
        # its BAYEUX_BROWSER to the other, is not known by it any more, and handshakes again.
        again = accepted["long-polling"] - 10
        assert accepted["websocket"] == 10
        assert 0 <= again <= stage.tap.count(b"402::session_unknown")


def _issued(directory: Path) -> tuple[dict[str, object], str]:
    """What a proxy is told of an issuer of tokens, and a token of that."""
    signing = ec.generate_private_key(ec.SECP256R1())
    public: dict[str, Any] = ECAlgorithm.to_jwk(signing.public_key(), as_dict=True)
    file = directory / "jwks.json"
    file.write_bytes(msgspec.json.encode({"keys": [public | {"kid": "first"}]}))
    claims = {"iss": "https://issuer.example.com", "aud": "realtime", "sub": "third", "exp": time.time() + 600}
    settings = {"jwks_file": str(file), "issuer": claims["iss"], "audience": claims["aud"]}
    token = jwt.encode(claims, signing, "ES256", {"kid": "first"})
    return {f"gate.jwt.{name}": value for name, value in settings.items()}, token
