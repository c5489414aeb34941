"""Numbers: from closed sets, of what they say, and where they belong."""

import asyncio
import random
from itertools import product
from typing import Any

import aiohttp
import pytest

from proxy.demo.simulator import Simulator
from proxy.relay.frames import TEXT, frame
from tests.attacks.ways import (
    AUTHN,
    CONNECT,
    OWN,
    PAGE,
    SESSION,
    SHAKE,
    TARGET,
    WAYS,
    Ask,
    as_head,
    batch,
    close_code_of,
    head_of,
    staged,
    switching,
    upgrade,
    written,
)
from tests.conftest import Running, exchange, handshake, receive, running, until
from tests.operations.test_admin import asked
from tests.relay.raw import SECONDS, Asked, client, recording


MASK = b"\x01\x02\x03\x04"


def series(proxied: Running) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every series there is, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in proxied.proxy.metrics.registry.collect()
        for sample in family.samples
    }


# S-57: labels ---------------------------------------------------------------------------------------------------------

ODD = [
    "",
    "/",
    "\x00",
    "\\",
    '"',
    "\u00e9",
    "\U0001f600",
    "\r\n",
    "{}",
    "%s",
    "a" * 300,
    "/meta/handshake",
    "-1",
    "../",
]


def odd_text(chance: random.Random) -> str:
    return "".join(chance.choice([*ODD, chr(chance.randrange(32, 0x3000))]) for _ in range(chance.randrange(1, 5)))


def odd_message(chance: random.Random) -> dict[str, Any]:
    """A message that goes up, with something odd at each place where a label could come from."""
    return {
        "channel": f"/{odd_text(chance)}",
        "clientId": odd_text(chance),
        "id": odd_text(chance),
        "ext": {odd_text(chance): odd_text(chance), AUTHN: odd_text(chance)},
        "subscription": odd_text(chance),
        "error": f"{chance.randrange(999)}::{odd_text(chance)}",
    }


def odd_head(chance: random.Random) -> bytes:
    line = "".join(chance.choice("ABCxyz/%?#:;=. \t\\\x00\x7f\xff") for _ in range(chance.randrange(1, 40)))
    method = chance.choice(["GET", "POST", "BREW", line, ""])
    return as_head(
        f"{method} /{line} HTTP/1.{chance.randrange(3)}", f"Host: {chance.choice(['localhost', line])}", line
    )


@pytest.mark.logs_errors
async def test_s57_ten_thousand_odd_inputs_leave_the_number_of_series_as_it_was() -> None:
    chance = random.Random(57)  # noqa: S311 - the same odd inputs each time

    def answer_oddly(payload: bytes) -> bytes:
        return written([odd_message(chance) | {"channel": "/meta/handshake"} for _ in batch(payload)[:2]])

    async with staged(reply=answer_oddly) as stage:
        before = series(stage.proxied)
        sent = 0
        for _ in range(90):
            async with client(stage.proxied) as one:
                one.send(upgrade(f"User-Agent: {chance.random()}", target=TARGET))
                await head_of(one)
                for _ in range(chance.randrange(60, 120)):
                    one.send(frame(TEXT, written([odd_message(chance)]), mask=MASK))
                    sent += 1
                one.send(frame(TEXT, SHAKE, mask=MASK) + frame(TEXT, odd_text(chance).encode(), mask=MASK))
                sent += 2
                assert await close_code_of(one) == 1007
        for _ in range(300):
            told = await WAYS["long-polling"](stage.proxied, written([odd_message(chance), handshake()]))
            sent += 2
            assert told.status in {200, 400}
        while sent < 10_000:
            async with client(stage.proxied) as one:
                one.send(odd_head(chance))
                one.writer.write_eof()
                await one.rest()
            sent += 1
        assert series(stage.proxied) == before


# S-58: what has a duration --------------------------------------------------------------------------------------------


def durations(proxied: Running) -> dict[str, float]:
    """How many durations were observed, by histogram and transport."""
    return {
        sample.name + sample.labels["transport"]: sample.value
        for family in proxied.proxy.metrics.registry.collect()
        if family.type in {"histogram", "summary"}
        for sample in family.samples
        if sample.name.endswith("_count")
    }


async def test_s58_only_handshakes_have_a_duration(proxied: Running, upstream: Simulator) -> None:
    name = "c8y_realtime_proxy_handshake_duration_seconds_count"
    async with proxied.socket() as socket:
        [shaken] = await exchange(socket, [handshake()])
        once = {f"{name}websocket": 1, f"{name}long-polling": 0}
        assert durations(proxied) == once
        subscription = {"channel": "/meta/subscribe", "clientId": shaken["clientId"], "subscription": "/alarms/1"}
        await exchange(socket, [subscription])
        for _ in range(5):
            upstream.publish("/alarms/1", {})
            await receive(socket)
        async with proxied.post([CONNECT | {"clientId": "gone"}]) as response:
            await response.read()
    async with proxied.post([handshake()]) as response:
        [shaken] = await response.json()
        cookies = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
    held = asyncio.get_running_loop().create_task(hold(proxied, shaken["clientId"], cookies))
    await upstream.until(lambda: upstream.held_connects == 1)
    held.cancel()
    await upstream.until(lambda: upstream.held_connects == 0)
    assert durations(proxied) == once | {f"{name}long-polling": 1}


async def hold(proxied: Running, client_id: str, cookies: dict[str, str]) -> bytes:
    async with proxied.post([CONNECT | {"clientId": client_id}], headers=cookies) as response:
        return await response.read()


# S-59: where numbers are told -----------------------------------------------------------------------------------------


async def test_s59_the_public_listener_serves_no_numbers_and_no_probe(ask: Ask) -> None:
    paths = ("/metrics", "/livez", "/readyz", "/startupz", "/metrics/", "//metrics", "/METRICS", "/debug/vars")
    async with staged() as stage:
        for path, ending in product(paths, ("", "?x=1", "/../metrics", "/../notification/realtime")):
            assert (await ask(stage.proxied, SHAKE, target=f"{path}{ending}")).status == 404
            async with client(stage.proxied) as one:
                one.send(as_head(f"GET {path}{ending} HTTP/1.1", "Host: localhost"))
                assert (await head_of(one))[0] == 404
        assert stage.upstream.connections == 0


async def test_s59_the_admin_listener_relays_nothing() -> None:
    async with staged() as stage, aiohttp.ClientSession() as session:
        for path in (TARGET, f"{TARGET}/handshake", "/cep/realtime", "/"):
            async with session.post(f"{stage.proxied.admin_url}{path}", data=SHAKE) as response:
                assert response.status == (405 if path == "/" else 404)
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(f"{stage.proxied.admin_url}{path}")
        assert stage.upstream.connections == 0


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/startupz", "/nothing"])
async def test_s59_the_admin_listener_answers_to_no_name_but_its_own(path: str) -> None:
    """What a page that had its name point here would read (DNS rebinding)."""
    async with staged() as stage:
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", ""):
            status, _, text = await asked(stage.proxied.proxy.admin_port, f"Host: {host}", path=path)
            assert (status, "evil" in text) == (403, False)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_s59_no_page_changes_anything_at_the_admin_listener(method: str) -> None:
    async with staged() as stage:
        for origin, path in product((PAGE, "null", stage.proxied.admin_url), ("/metrics", "/livez", "/nothing")):
            lines = ("Host: localhost", f"Origin: {origin}")
            status, headers, _ = await asked(stage.proxied.proxy.admin_port, *lines, method=method, path=path)
            assert status == 403
            assert not any(name.startswith("access-control-") for name in headers)


# S-60: one outcome ----------------------------------------------------------------------------------------------------

Ended = tuple[str, str]
DENIAL = b'{"channel":"/meta/handshake","successful":false,"error":"403::Denied"}'


def denying(error: str | None, **more: object) -> dict[str, Any]:
    denial = {"channel": "/meta/handshake", "successful": False} | ({"error": error} if error else {}) | more
    return {"reply": lambda _: written([denial])}


ENDINGS: dict[str, tuple[dict[str, Any], bytes, tuple[str, ...], Ended]] = {
    "accepted": ({}, SHAKE, (), ("accepted", "ok")),
    "accepted beside others": ({}, written([CONNECT, handshake(), CONNECT]), (), ("accepted", "ok")),
    "accepted, whatever the client's half of a credential is": (
        {"settings": SESSION},
        written([handshake(ext={AUTHN: {"xsrfToken": "true"}})]),
        OWN[:2],
        ("accepted", "ok"),
    ),
    "denied, whatever the client's half of a credential is": (
        {"settings": SESSION, **denying("403::Denied")},
        written([handshake(ext={AUTHN: {"xsrfToken": "403"}})]),
        OWN[:2],
        ("rejected", "denied"),
    ),
    "denied": (denying("403::Denied"), SHAKE, (), ("rejected", "denied")),
    "denied by another number": (denying("401::Denied"), SHAKE, (), ("rejected", "denied")),
    "denied twice": ({"reply": lambda _: b"[%b,%b]" % ((DENIAL,) * 2)}, SHAKE, (), ("rejected", "denied")),
    "unknown client": (denying("402::Unknown"), SHAKE, (), ("rejected", "unknown_client")),
    "rejected in other words": (denying("500::Oops"), SHAKE, (), ("rejected", "other")),
    "rejected in no words": (denying(None), SHAKE, (), ("rejected", "other")),
    "rejected with an odd error": (denying("\x00" * 3), SHAKE, (), ("rejected", "other")),
    "answered without a verdict": (
        {"reply": lambda _: b'[{"channel":"/meta/handshake"}]'},
        SHAKE,
        (),
        ("rejected", "other"),
    ),
    "refused by policy": (
        {"settings": {"handshake.client_authn": "refuse"}},
        written([handshake(ext={AUTHN: {"token": "x"}})]),
        (),
        ("refused", "policy"),
    ),
    "malformed": ({}, written([handshake(ext=[])]), (), ("refused", "malformed")),
    "without half of a credential": ({"settings": SESSION}, SHAKE, OWN[:2], ("refused", "no_credential")),
}


@pytest.mark.parametrize(("stage_of", "payload", "lines", "ended"), ENDINGS.values(), ids=ENDINGS)
@pytest.mark.logs_errors
async def test_s60_a_handshake_that_is_answered_has_one_outcome(
    ask: Ask, stage_of: dict[str, Any], payload: bytes, lines: tuple[str, ...], ended: Ended
) -> None:
    more = dict(stage_of)
    settings = more.pop("settings", None)
    source = "cookie" if settings is SESSION else "stored"
    async with staged(settings, **more) as stage:
        await ask(stage.proxied, payload, *lines)
        assert stage.proxied.handshakes(ask.transport, source) == {ended: 1}


NOBODY = "http://localhost:9"


@pytest.mark.parametrize("reason", ["client_gone", "upstream_gone", "timeout", "drained"])
@pytest.mark.parametrize("transport", list(WAYS))
async def test_s60_a_handshake_that_is_not_answered_has_one_outcome(transport: str, reason: str) -> None:
    is_post = transport == "long-polling"
    arrived: asyncio.Queue[Asked] = asyncio.Queue()

    async def stay_silent(asked: Asked) -> None:
        if asked.head.startswith(b"GET "):
            asked.writer.write(switching(asked.head))
            await asked.reader.read(1 << 16)
        arrived.put_nowait(asked)
        await asked.writer.wait_closed()
        raise ConnectionAbortedError

    settings = {
        "handshake.timeout_seconds": 0.05 if reason == "timeout" else 30,
        "drain.timeout_seconds": 1.5 if is_post else 0.2,
    }
    async with recording(stay_silent) as upstream, running(upstream.url, settings) as proxied, client(proxied) as one:
        posting = as_head(
            f"POST {TARGET} HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            f"Content-Length: {len(SHAKE)}",
        )
        one.send(posting + SHAKE if is_post else upgrade() + frame(TEXT, SHAKE, mask=MASK))
        asked = await asyncio.wait_for(arrived.get(), SECONDS)
        if reason == "drained":
            await proxied.proxy.drain()
        elif reason != "timeout":
            (one if reason == "client_gone" else asked).writer.transport.abort()
        await until(lambda: bool(proxied.handshakes(transport)))
        assert proxied.handshakes(transport) == {("unanswered", reason): 1}
    assert proxied.handshakes(transport) == {("unanswered", reason): 1}


async def test_s60_a_handshake_that_goes_nowhere_has_one_outcome() -> None:
    async with running(NOBODY) as proxied:
        await WAYS["long-polling"](proxied, SHAKE)
        assert proxied.handshakes("long-polling") == {("refused", "unavailable"): 1}


async def test_s60_handshakes_over_the_limit_have_one_outcome_each(ask: Ask) -> None:
    """Eight wait for their answers at most, on one connection; before the credential has proved to be good, one."""
    many = written([handshake()] * 20)
    async with staged() as stage:
        await ask(stage.proxied, many)
        assert stage.proxied.handshakes(ask.transport) == {("accepted", "ok"): 1, ("refused", "limit"): 19}
        await ask(stage.proxied, many)
        assert stage.proxied.handshakes(ask.transport) == {("accepted", "ok"): 9, ("refused", "limit"): 31}
