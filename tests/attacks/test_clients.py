"""Who a client is: proved with every request, and by nothing that it claims; and whose a clientId is."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from proxy.gate.keys import generated
from proxy.gate.tokens import LEEWAY_SECONDS
from tests.attacks.ways import CONNECT, SHAKE, TARGET, Ask, as_head, batch, staged, value_of, written
from tests.conftest import closed
from tests.gate.tokens import AUDIENCE, ISSUER, base64url, jwks, public_jwk, token
from tests.relay.raw import SECONDS, Client, client
from tests.relay.talking import BY_KEY, KEYS


ANN: Final = f"Authorization: Bearer {KEYS['ann']}"
BOB: Final = f"Authorization: Bearer {KEYS['bob']}"


@pytest.fixture
def known(tmp_path: Path) -> dict[str, Any]:
    """Settings by which clients are known by keys, and by tokens of an issuer."""
    (tmp_path / "jwks.json").write_bytes(jwks(public_jwk("ES256")))
    return BY_KEY | {
        "gate.identity": ["basic", "bearer", "jwt"],
        "gate.jwt.jwks_file": str(tmp_path / "jwks.json"),
        "gate.jwt.issuer": ISSUER,
        "gate.jwt.audience": AUDIENCE,
        "clients": [*BY_KEY["clients"], {"name": "people", "subjects": ["*"]}],
    }


def tokened(**more: Any) -> str:
    """The header with a token that is good for a minute, but for what is said otherwise."""
    return f"Authorization: Bearer {token(**{'exp': time.time() + 60} | more)}"


def unsigned() -> str:
    claimed = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + 60}
    return (
        f"Authorization: Bearer {base64url(written({'alg': 'none', 'kid': 'ES256-0'}))}.{base64url(written(claimed))}."
    )


# S-8: what is remembered ----------------------------------------------------------------------------------------------


def posted(*lines: str, body: bytes = b"[]") -> bytes:
    head = (f"POST {TARGET} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines)
    return as_head(*head, f"Content-Length: {len(body)}") + body


async def test_s08_a_connection_is_worth_nothing_without_the_proof_of_its_first_request(known: dict[str, Any]) -> None:
    wrong = ANN[:-1] + ("A" if ANN[-1] != "A" else "B")  # as long as the right one
    async with staged(known) as stage:
        for lines in ((), (wrong,), (ANN, "X-Forwarded-User: ann")):
            async with client(stage.proxied) as one:
                one.send(posted(ANN))
                assert (await one.answer()).status == 200
                one.send(posted(*lines))
                assert (await one.answer()).status == (200 if ANN in lines else 401)
        assert len(stage.tenant.payloads) == 4


async def test_s08_a_proof_that_has_ended_is_none_on_a_connection_that_it_opened(known: dict[str, Any]) -> None:
    """The same request to the last byte is served until then, and not after."""
    async with staged(known) as stage, client(stage.proxied) as one:
        request = posted(tokened(exp=time.time() - LEEWAY_SECONDS + 0.5))
        one.send(request)
        assert (await one.answer()).status == 200
        async with asyncio.timeout(SECONDS):
            while (status := (await asked_again(one, request))) == 200:
                pass
        assert status == 401


async def test_s40_a_socket_ends_soon_after_the_proof_that_opened_it(known: dict[str, Any]) -> None:
    """One heartbeat looks after all sockets; with a key, which has no end, one stays open."""
    _, _, token = tokened(exp=time.time() - LEEWAY_SECONDS + 0.5).partition(": ")
    async with staged(known | {"limits.heartbeat_seconds": 2}) as stage:
        async with (
            stage.proxied.socket(headers={"Authorization": ANN.partition(": ")[2]}) as kept,
            stage.proxied.socket(headers={"Authorization": token}) as socket,
        ):
            assert await closed(socket) == (1008, "Prove again who you are")
            await kept.send_str("[]")
            assert not kept.closed


async def asked_again(one: Client, request: bytes) -> int:
    one.send(request)
    return (await one.answer()).status


# S-9: claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(lambda: "X-Id-Token: a.b.c", id="nothing"),
        pytest.param(lambda: "X-Forwarded-User: ann", id="a name in a header"),
        pytest.param(lambda: "X-SSL-Client-S-DN: CN=ann", id="a certificate in a header"),
        pytest.param(lambda: "X-Forwarded-Client-Cert: Subject=CN=ann", id="a certificate as Envoy tells it"),
        pytest.param(lambda: f"X-Authorization: Bearer {KEYS['ann']}", id="a key in another header"),
        pytest.param(lambda: "Authorization: Bearer ann", id="a name for a key"),
        pytest.param(lambda: f"Authorization: Bearer {generated('ann')}", id="another key"),
        pytest.param(lambda: ANN.replace("ann.", "bob."), id="a key of somebody else"),
        pytest.param(lambda: ANN[:-1], id="a key cut short"),
        pytest.param(unsigned, id="a token that nobody signed"),
        pytest.param(lambda: tokened(which=1, header={"kid": "ES256-0"}), id="a token signed by somebody else"),
        pytest.param(lambda: tokened(iss="https://other.example.com"), id="a token of another issuer"),
        pytest.param(lambda: tokened(aud="other"), id="a token for others"),
        pytest.param(lambda: tokened(exp=time.time() - 60), id="a token that has expired"),
        pytest.param(lambda: tokened(nbf=time.time() + 60), id="a token that is not good yet"),
    ],
)
async def test_s09_who_proves_nothing_is_nobody(ask: Ask, line: Callable[[], str], known: dict[str, Any]) -> None:
    """It is told so for good, in the words of its transport, and upstream hears nothing of it."""
    async with staged(known) as stage:
        told = await ask(stage.proxied, SHAKE, line())
        if ask.transport == "websocket":
            assert told.status == 401
            assert (value_of(told.headers, "www-authenticate") or "").startswith("Bearer realm=")
        else:
            [reply] = batch(told.payload)
            assert (reply["successful"], reply["error"][:5]) == (False, "403::")
            assert reply["advice"] == {"reconnect": "none"}
        assert stage.upstream.connections == 0


@pytest.mark.parametrize("line", [lambda: ANN, tokened], ids=["key", "token"])
async def test_s09_what_proves_a_client_stays_here(ask: Ask, line: Callable[[], str], known: dict[str, Any]) -> None:
    async with staged(known) as stage:
        sent = line()
        told = await ask(stage.proxied, SHAKE, sent)
        assert not told.is_turned_away
        assert sent.rpartition(" ")[2].encode() not in stage.reached()


async def test_s09_a_clientid_is_of_use_to_its_owner_alone(ask: Ask) -> None:
    async with staged(BY_KEY) as stage:
        [shaken] = batch((await ask(stage.proxied, SHAKE, ANN)).payload)
        owned: str = shaken["clientId"]
        bare, _, tag = owned.rpartition(".")
        stage.tenant.payloads.clear()
        for line, client_id in [
            (BOB, owned),
            *((who, {"clientId": None}) for who in (ANN, BOB)),
            *((ANN, changed) for changed in (bare, f"{bare}.", f"other.{tag}", f"{owned}.{tag}", owned[:-1], "")),
        ]:
            told = await ask(stage.proxied, written([CONNECT | {"clientId": client_id}]), line)
            [reply] = batch(told.payload)
            assert (reply["successful"], reply["error"][:5]) == (False, "402::")
            assert reply["advice"]["reconnect"] == "handshake"
        without = {name: value for name, value in CONNECT.items() if name != "clientId"}
        assert (await ask(stage.proxied, written([without]), ANN)).is_turned_away
        assert stage.tenant.payloads == []
        assert not (await ask(stage.proxied, written([CONNECT | {"clientId": owned}]), ANN)).is_turned_away
        [payload] = stage.tenant.payloads
        assert batch(payload)[0]["clientId"] == bare == "c"
