"""Two replicas behind nginx, with sessions in a real Redis: what one knows the other does, and one is enough."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.frontdoor.redis import RedisServer, running_redis

from .conftest import DoorOpener
from .frontdoor import FrontDoor, sign_in
from .people import Tab
from .stage import Evidence, Stage, Transport


pytestmark = pytest.mark.parametrize("origin", ["simulator"], indirect=True)

CHANNEL = "/measurements/4711"

Opener = Callable[[RedisServer], AbstractAsyncContextManager[FrontDoor]]


@pytest.fixture
def redis(tmp_path: Path, evidence: Evidence) -> Iterator[RedisServer]:
    """A Redis that keeps what it was told, with a password of its own."""
    password = f"canary-{secrets.token_hex(16)}"
    evidence.secrets.append(password.encode())
    folder = tmp_path / "redis"
    folder.mkdir()
    with running_redis(folder, password=password, keeps=True) as server:
        yield server
    evidence.given += [(path.name, path.read_bytes()) for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def open_replicas(open_door: DoorOpener, tmp_path: Path) -> Opener:
    """Open a front door with two replicas, which share a Redis."""

    @asynccontextmanager
    async def opener(redis: RedisServer) -> AsyncIterator[FrontDoor]:
        assert redis.password
        file = tmp_path / "redis-password"
        file.touch(mode=0o600)
        file.write_text(redis.password, encoding="utf-8")
        settings = {
            "frontdoor.sessions_file": "",
            "frontdoor.redis_url": redis.url,
            "frontdoor.redis_password_file": str(file),
        }
        async with open_door(settings, replicas=2) as door:
            yield door

    return opener


async def test_a_session_is_good_at_every_replica_and_ends_at_all_within_a_second(
    open_replicas: Opener, redis: RedisServer
) -> None:
    async with open_replicas(redis) as door:
        home = await door.signed_in(door.new_account("ada"))
        tabs = [await _listening(door, home) for _ in range(4)]
        assert [await _sockets(stage) for stage in door.stages] == [2, 2]
        await door.origin.publish(CHANNEL, 0, 1)
        for tab in tabs:
            await tab.client.receive(CHANNEL, 0, 1)
        await home.goto(f"{door.url}/sign-in")
        await home.click("button", "Sign out")
        async with asyncio.timeout(1):
            for tab in tabs:
                await tab.sockets_closed()
        assert [await _sockets(stage) for stage in door.stages] == [0, 0]
        for _ in door.stages:
            assert await tabs[0].evaluate("fetch('/session').then(({ status }) => status)") == 401
        assert door.origin.simulator.logins.live() == 0


@pytest.mark.parametrize("transport", ["websocket", "long-polling"])
async def test_clients_of_a_replica_that_dies_go_on_at_the_other_with_the_same_session(
    open_replicas: Opener, redis: RedisServer, transport: Transport
) -> None:
    async with open_replicas(redis) as door:
        home = await door.signed_in(door.new_account("ada"))
        tabs = [await _listening(door, home, transport) for _ in range(2)]
        await door.origin.publish(CHANNEL, 0, 10)
        for tab in tabs:
            await tab.client.receive(CHANNEL, 0, 10)
        first, other = door.stages
        await first.proxy.program.kill()
        number = 10
        for tab in tabs:
            number = await tab.client.goes_on(lambda number: door.origin.publish(CHANNEL, number, 1), number)
        assert await _sockets(other) == (2 if transport == "websocket" else 0)
        assert door.origin.simulator.logins.asked == 1


async def test_what_is_open_stays_while_redis_is_away_and_sessions_are_there_when_it_is_back(
    open_replicas: Opener, redis: RedisServer
) -> None:
    async with open_replicas(redis) as door:
        account = door.new_account("ada")
        home = await door.signed_in(account)
        tabs = [await _listening(door, home) for _ in range(2)]
        redis.kill()
        stranger = await door.tab("/sign-in")
        await sign_in(stranger, account)
        assert "Nobody can sign in right now" in await stranger.text()
        # What the platform began for nothing is ended there.
        await door.origin.simulator.until(lambda: door.origin.simulator.logins.live() == 1)
        assert await home.evaluate("fetch('/session').then(({ status }) => status)") == 503
        await door.origin.publish(CHANNEL, 0, 1)
        for tab in tabs:
            await tab.client.receive(CHANNEL, 0, 1)

        redis.start()
        assert await home.evaluate("fetch('/session').then(({ status }) => status)") == 200
        # For a second each replica may remember that it could not see.
        async with asyncio.timeout(10):
            while (newcomer := await _coming_in(door, home)) is None:
                pass
            while (user := await home.evaluate("current_user().catch(() => null)")) is None:
                pass
        assert user == "ada"
        await door.origin.publish(CHANNEL, 1, 1)
        for tab in (*tabs, newcomer):
            await tab.client.receive(CHANNEL, 1, 1)


async def test_everybody_has_to_sign_in_again_when_redis_comes_back_empty(
    open_replicas: Opener, redis: RedisServer
) -> None:
    async with open_replicas(redis) as door:
        account = door.new_account("ada")
        home = await door.signed_in(account)
        tabs = [await _listening(door, home) for _ in range(2)]
        redis.tell("FLUSHALL")
        redis.kill()
        redis.start()
        async with asyncio.timeout(10):
            for tab in tabs:
                await tab.sockets_closed()
        assert await home.evaluate("fetch('/session').then(({ status }) => status)") == 401
        await home.goto(f"{door.url}/sign-in")
        await sign_in(home, account)
        await _listening(door, home)


async def _listening(door: FrontDoor, home: Tab, transport: Transport = "websocket") -> Tab:
    """Another tab of the same person, which hears the channel."""
    tab = await home.owner.tab(f"{door.url}/")
    await (await tab.open_session(transport=transport)).start(CHANNEL)
    return tab


async def _coming_in(door: FrontDoor, home: Tab) -> Tab | None:
    """The same, if it gets a socket at once."""
    tab = await home.owner.tab(f"{door.url}/")
    await (await tab.open_session()).attempt(CHANNEL)
    if (await tab.client.next("handshake")).successful:
        await tab.client.subscribed(CHANNEL)
        return tab
    await tab.close()
    return None


async def _sockets(stage: Stage) -> int:
    """How many WebSockets of clients are open at a replica."""
    lines = (await stage.metrics()).splitlines()
    [line] = [each for each in lines if each.startswith('c8y_realtime_proxy_connections{transport="websocket"}')]
    return int(float(line.split()[-1]))
