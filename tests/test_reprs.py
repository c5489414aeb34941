"""Nothing that a proxy holds shows a secret when it is printed."""

import asyncio
import base64
import gc
from collections.abc import AsyncIterator, Iterator
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType, TracebackType

import pytest

from proxy.config import PREFIX, load
from proxy.demo.simulator import Simulator
from tests.conftest import PASSWORD, VALUES, Running, exchange, handshake, running


COOKIE, XSRF, PROXYS, THEIRS = "canary-cookie", "canary-xsrf", "canary-proxy", "canary-theirs"
SECRETS = [PASSWORD, base64.b64encode(f"t0815/service:{PASSWORD}".encode()).decode(), COOKIE, XSRF, PROXYS, THEIRS]
HEADERS = {
    "Origin": "https://app.example.com",
    "Cookie": f"authorization={COOKIE}; XSRF-TOKEN={XSRF}",
    "X-XSRF-TOKEN": XSRF,
    "Authorization": f"Basic {THEIRS}",
    "tfatoken": THEIRS,
}
ELSEWHERE = (ModuleType, CodeType, FrameType, TracebackType, BuiltinFunctionType, type)


def reachable(root: object) -> Iterator[object]:
    """Everything that the root leads to, but for modules and types."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        thing = waiting.pop()
        yield thing
        near = (
            [*(thing.__closure__ or ()), thing.__defaults__]
            if isinstance(thing, FunctionType)
            else gc.get_referents(thing)
        )
        for other in near:
            if id(other) not in seen and not isinstance(other, ELSEWHERE):
                seen.add(id(other))
                waiting.append(other)


def ours(root: object) -> Iterator[object]:
    """What it leads to of our own types. The simulator, in the same event loop, keeps no secrets from itself."""
    for thing in list(reachable(root)):
        room = type(thing).__module__
        if room.startswith("proxy.") and not room.startswith("proxy.demo"):
            yield thing


def names_that_show_nothing(root: object) -> set[str]:
    """The names of our types among what the root leads to; fails when one of them shows a secret."""
    names = set()
    for thing in ours(root):
        shown = f"{thing!r} {thing}"
        assert [secret for secret in SECRETS if secret in shown] == [], type(thing)
        names.add(type(thing).__name__)
    return names


@pytest.fixture
async def tenant() -> AsyncIterator[Simulator]:
    async with Simulator(password=PASSWORD, sessions={COOKIE: XSRF}) as simulator:
        yield simulator


async def connected(proxied: Running) -> None:
    """Handshake by long-polling, and let the connect be held until it is cancelled."""
    async with proxied.post([handshake()], headers=HEADERS) as response:
        [shaken] = await response.json()
        browser = response.headers["Set-Cookie"].partition(";")[0]
    assert shaken["successful"] is True
    cookies = {"Cookie": f"{HEADERS['Cookie']}; {browser}"}
    connect = {"channel": "/meta/connect", "id": "7", "clientId": shaken["clientId"]}
    async with proxied.post([connect], headers=HEADERS | cookies) as response:
        await response.read()


@pytest.mark.parametrize("source", ["stored", "cookie"])
async def test_nothing_at_work_shows_a_secret(tenant: Simulator, source: str) -> None:
    settings = {"credentials.default.source": source, "gate.origins": [HEADERS["Origin"]]}
    async with running(tenant.url, settings) as proxied, proxied.socket(headers=HEADERS) as socket:
        assert (await exchange(socket, [handshake()]))[0]["successful"] is True
        async with asyncio.TaskGroup() as group:
            holding = group.create_task(connected(proxied))
            await tenant.until(lambda: tenant.held_connects == 1)
            names = names_that_show_nothing(proxied.proxy)
            holding.cancel()
    # The walk has been everywhere: the configuration, both transports, a credential, and the requests with their heads.
    assert names >= {
        "Config",
        "Request",
        "RequestHead",
        "Head",
        "Prepared",
        "WebSocketRelay",
        "PollingRelay",
        "Upstream",
    }
    assert names >= {"Basic"} if source == "stored" else {"OAuthCookie"}


def test_configuration_shows_no_secret() -> None:
    given = {"C8Y_BASEURL": "https://tenant.example.com", f"{PREFIX}UPSTREAM__PROXY_URL": f"http://u:{PROXYS}@p:3128"}
    names = names_that_show_nothing(load(None, given | dict(VALUES)))
    assert names >= {"Config", "Upstream", "CredentialSettings"}
