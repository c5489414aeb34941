"""Rules and dashboard against a real Prometheus, which scrapes proxies that serve and refuse real clients."""

import asyncio
import contextlib
import math
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from proxy import __version__
from proxy.demo.simulator import Simulator
from tests.conftest import handshake
from tests.demo.authority import Authority

from .prometheus import DASHBOARD, Labels, Prometheus, scraping
from .stage import Evidence, Leg, Stage, staged, store
from .tap import tapped
from .upstreams import ACCOUNT, WRONG, Upstream


CHANNEL = "/events/4711"
SOCKETS, POLLS = 6, 2
BATCH = 3
WAITS_SECONDS = 20

BOARD: dict[str, Any] = msgspec.json.decode(DASHBOARD.read_bytes())
QUERIES = {
    f"{panel['title']} {target['refId']}": (target["expr"], bool(target.get("instant")))
    for panel in BOARD["panels"]
    for target in panel.get("targets", ())
}


def filled_in(expression: str, **variables: str) -> str:
    """An expression with its variables replaced, as Grafana does it where everything is chosen."""
    known = {"job": ".*", "instance": ".*", "__rate_interval": "1m", "__range": "5m"} | variables
    expression = re.sub(r"\$(\w+)", lambda match: known[match[1]], expression)
    assert "$" not in expression
    return expression


@dataclass(frozen=True)
class Scene:
    """What there is to see: a sidecar, another one whose credential is wrong, and a front door."""

    prometheus: Prometheus
    sidecar: Stage
    stale: Stage
    door: Stage
    began_at: float

    async def shown(self, title: str, query: str = "A", **variables: str) -> dict[Labels, float]:
        """What a panel shows now."""
        return await self.prometheus.query(filled_in(QUERIES[f"{title} {query}"][0], **variables))


def labels(**given: str) -> Labels:
    return frozenset(given.items())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until that is so."""
    async with asyncio.timeout(WAITS_SECONDS):
        while not await condition():  # noqa: ASYNC110 - Prometheus tells nobody of itself
            await asyncio.sleep(0.1)


async def posted(stage: Stage, batch: object) -> int:
    """Send a batch as somebody does who has no manners; returns the status."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{stage.url}/notification/realtime/", json=batch) as answer,
    ):
        await answer.read()
        return answer.status


async def misbehave(stage: Stage) -> None:
    """Make one of each failure that is the client's: of a foreign page, not granted, and too much."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(f"{stage.url}/notification/realtime", origin="https://elsewhere.example.com")
    assert await posted(stage, [{"channel": "/service/none", "clientId": "none", "data": {}}]) == 200
    assert await posted(stage, [handshake()] * (BATCH + 1)) == 413


async def sign_in(door: aiohttp.ClientSession, url: str, password: str) -> int:
    headers = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    async with door.post(
        f"{url}/sign-in", json={"user": ACCOUNT.user, "password": password}, headers=headers
    ) as answer:
        return answer.status


def target(stage: Stage) -> str:
    return f"127.0.0.1:{stage.proxy.admin_port}"


@pytest.fixture
def gone() -> Iterator[str]:
    """Where a proxy is not, and nothing else comes meanwhile: a port that is taken, on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
async def scene(
    cometd: Upstream, authority: Authority, evidence: Evidence, tmp_path: Path, gone: str
) -> AsyncIterator[Scene]:
    """Everything has happened, and Prometheus knows."""
    folders = {name: tmp_path / name for name in ("good", "wrong", "tls", "prometheus")}
    for folder in folders.values():
        folder.mkdir()
    good = store(folders["good"], ACCOUNT.files()) | {"limits.batch_messages": BATCH}
    wrong = store(folders["wrong"], WRONG.files())
    certificate, key = authority.server_files(folders["tls"])
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(
            Simulator(tenant=ACCOUNT.tenant, user=ACCOUNT.user, password=ACCOUNT.password)
        )
        sidecar = await stack.enter_async_context(staged(cometd, good, browser=None, evidence=evidence))
        stale = await stack.enter_async_context(staged(cometd, wrong, browser=None, evidence=evidence))
        tap = await stack.enter_async_context(tapped(0))
        url = f"https://localhost:{tap.port}"
        given = {
            "credentials.default.source": "session",
            "frontdoor.public_origin": url,
            "listen.tls.certificate_file": str(certificate),
            "listen.tls.key_file": str(key),
        }
        door = await stack.enter_async_context(staged(platform, given, browser=None, evidence=evidence, tap=tap))
        began_at = time.time()
        prometheus = await stack.enter_async_context(
            scraping(folders["prometheus"], *map(target, (sidecar, stale, door)), gone)
        )

        async def all_are_scraped() -> bool:
            return await prometheus.query("sum(up)") == {labels(): 3.0}

        # What is counted before the first scrape is no increase to Prometheus.
        await until(all_are_scraped)
        sockets = await stack.enter_async_context(sidecar.crowd(Leg("cometd", "node", "websocket"), SOCKETS))
        polls = [
            await stack.enter_async_context(sidecar.client(Leg("cometd", "node", "long-polling"))) for _ in range(POLLS)
        ]
        await asyncio.gather(sockets.attempt(CHANNEL), *(poll.start(CHANNEL) for poll in polls))
        await sockets.all("subscribe", successful=True)
        await cometd.publish(CHANNEL, 0, 3)
        await asyncio.gather(sockets.all("message", successful=None), *(poll.receive(CHANNEL, 0, 3) for poll in polls))
        await misbehave(sidecar)
        for _ in range(2):  # denied, and not offered again
            assert await posted(stale, [handshake()]) == 200
        trusting = aiohttp.TCPConnector(ssl=authority.client())
        person = await stack.enter_async_context(aiohttp.ClientSession(connector=trusting))
        assert [await sign_in(person, url, password) for password in (WRONG.password, ACCOUNT.password)] == [401, 204]
        opened = await stack.enter_async_context(person.ws_connect(f"{url}/notification/realtime", origin=url))
        await opened.send_json([handshake()])
        assert (await opened.receive_json())[0]["successful"] is True

        async def all_is_known() -> bool:
            held = await prometheus.query("sum by (transport) (c8y_realtime_proxy_connections)")
            ended = await prometheus.query("sum(c8y_realtime_proxy_handshakes_total)")
            return held == {labels(transport="websocket"): SOCKETS + 1, labels(transport="long-polling"): POLLS} and (
                ended == {labels(): SOCKETS + POLLS + 2 + 1}
            )

        await until(all_is_known)
        yield Scene(prometheus, sidecar, stale, door, began_at)


async def test_dashboard_shows_what_happened_and_alerts_say_what_is_wrong(scene: Scene, gone: str) -> None:
    """One test, since the scene takes its time."""
    await every_query_has_an_answer(scene)
    await what_is_known_is_shown(scene)
    await variables_choose(scene)
    await rules_are_healthy_and_those_fire_that_should(scene, gone)


async def every_query_has_an_answer(scene: Scene) -> None:
    async def nothing_is_empty() -> bool:
        empty[:] = await empty_panels(scene)
        return not empty

    empty: list[str] = []
    with contextlib.suppress(TimeoutError):  # a rate needs two scrapes
        await until(nothing_is_empty)
    assert empty == []


async def empty_panels(scene: Scene) -> list[str]:
    """The queries of panels that have no answer."""
    empty = []
    for name, (expression, is_instant) in QUERIES.items():
        if is_instant:
            values = list((await scene.prometheus.query(filled_in(expression))).values())
        else:
            found = await scene.prometheus.range(filled_in(expression), scene.began_at, time.time())
            values = [value for series in found for value in series.values]
        if not any(math.isfinite(value) for value in values):
            empty.append(name)
    return empty


async def what_is_known_is_shown(scene: Scene) -> None:
    sidecar, stale, door = map(target, (scene.sidecar, scene.stale, scene.door))
    assert await scene.shown("Ready") == await scene.shown("Ready", "B") == {labels(): 3.0}
    assert await scene.shown("Open connections") == {
        labels(transport="websocket"): SOCKETS + 1,
        labels(transport="long-polling"): POLLS,
    }
    assert await scene.shown("Credentials in trouble") == {labels(): 1.0}
    assert await scene.shown("Versions") == {labels(version=__version__): 3.0}
    accepted = SOCKETS + POLLS + 1
    [share] = (await scene.shown("Accepted handshakes")).values()
    assert share == pytest.approx(accepted / (accepted + 2), abs=0.1)  # each proxy was scraped at its own time
    assert await by_instance(scene, "State of each credential") == {sidecar: 0.0, stale: 2.0, door: 0.0}
    assert await by_instance(scene, "Uses of each credential") == {sidecar: SOCKETS + POLLS, stale: 0.0}
    assert set((await scene.shown("Files of the configuration")).values()) == {1.0}
    [left] = (await scene.shown("Certificate")).values()
    assert left > 86_400
    open_now = await by_instance(scene, "Connections of the listener, and their limit")
    assert (open_now[sidecar] >= SOCKETS + POLLS, open_now[door] >= 1) == (True, True)
    assert await happened(scene, "Handshakes that failed, by reason") == {
        labels(outcome="rejected", reason="denied"),
        labels(outcome="refused", reason="cooldown"),
    }
    assert await happened(scene, "Openings of WebSockets, by reason") == {
        labels(outcome="accepted", reason="ok"),
        labels(outcome="refused", reason="origin"),
    }
    assert await happened(scene, "Handshakes by transport and source") == {
        labels(transport="websocket", source="stored"),
        labels(transport="long-polling", source="stored"),
        labels(transport="websocket", source="session"),
    }
    assert await happened(scene, "Messages that did not go up, by reason") == {labels(reason="call")}
    assert await happened(scene, "Limits that were reached") == {labels(limit="batch_messages")}
    assert await happened(scene, "Sign-ins by outcome") == {labels(outcome="ok"), labels(outcome="credentials")}
    assert len(await happened(scene, "Payloads")) == len(await happened(scene, "Traffic")) == 4


async def by_instance(scene: Scene, title: str) -> dict[str, float]:
    """What a panel shows now of each proxy."""
    return {dict(each)["instance"]: value for each, value in (await scene.shown(title)).items()}


async def happened(scene: Scene, title: str) -> set[Labels]:
    """Of what a panel counts, all that came to more than nothing."""
    return {each for each, value in (await scene.shown(title)).items() if value > 0}


async def variables_choose(scene: Scene) -> None:
    variables = {each["name"]: each for each in BOARD["templating"]["list"]}
    offered = {}
    for name in ("job", "instance"):
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variables[name]["query"]["query"])
        assert asked
        offered[name] = await scene.prometheus.values(asked[2], filled_in(asked[1]))
    there = sorted(map(target, (scene.sidecar, scene.stale, scene.door)))
    assert (offered["job"], sorted(offered["instance"])) == (["c8y-realtime-proxy"], there)
    for expression, _ in QUERIES.values():
        nobody = await scene.prometheus.query(filled_in(expression, instance="nobody"))
        assert [value for value in nobody.values() if math.isfinite(value)] == [], expression
    chosen = target(scene.door).replace(".", r"\\.")  # as Grafana writes a text into a pattern within quotes
    assert await scene.shown("Open connections", instance=chosen) == {
        labels(transport="websocket"): 1.0,
        labels(transport="long-polling"): 0.0,
    }


async def rules_are_healthy_and_those_fire_that_should(scene: Scene, gone: str) -> None:
    expected = {f"C8yRealtimeProxy{name}" for name in ("Down", "CredentialDenied", "CredentialUsesNearLimit")}

    async def they_fire() -> bool:
        return await scene.prometheus.firing() >= expected

    await until(they_fire)
    assert await scene.prometheus.firing() == expected
    rules = await scene.prometheus.rules()
    assert [rule for rule in rules if (rule["health"], rule.get("lastError", "")) != ("ok", "")] == []
    told = {rule["name"]: rule["alerts"] for rule in rules if rule.get("alerts")}
    [down] = told["C8yRealtimeProxyDown"]
    assert down["annotations"]["summary"] == f"{gone} cannot be scraped"
    [denied] = told["C8yRealtimeProxyCredentialDenied"]
    assert (denied["labels"]["instance"], denied["labels"]["credential"]) == (target(scene.stale), "default")
    assert denied["annotations"]["runbook_url"].endswith("/runbook-credential-denied.html")
    assert await scene.prometheus.query("count(instance:c8y_realtime_proxy_attempts:rate5m > 0)") == {labels(): 3.0}
