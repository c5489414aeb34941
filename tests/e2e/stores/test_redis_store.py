"""Sessions in a real Redis: what is true of every store, and what comes of it when Redis fails."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import pytest
import redis.asyncio

from proxy.frontdoor.redis_store import RedisStore
from proxy.frontdoor.stores import SessionStore, StoreUnavailable
from proxy.tls import trusting
from tests.conftest import until
from tests.demo.authority import Authority
from tests.frontdoor.redis import RedisServer, running_redis
from tests.frontdoor.store_claims import OTHER, SEALED, SharedStoreClaims, Told, opened, until_unavailable

from .conftest import a_password


AWAY = "It is tried again until it answers"


class RedisPlace:
    """A part of a Redis that other tests do not look at. Its time cannot be moved."""

    moment = 0.4

    def __init__(self, server: RedisServer) -> None:
        self.prefix = f"test-{secrets.token_hex(8)}:"
        self._server = server

    def store(self) -> RedisStore:
        return store_in(self._server, prefix=self.prefix)

    async def pass_time(self, seconds: float) -> None:
        async with self.client() as client:
            await client.set("moment", "", px=int(seconds * 1000) + 1)
            while await client.exists("moment"):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.002)

    def client(self) -> redis.asyncio.Redis:
        return redis.asyncio.Redis(port=self._server.port, password=self._server.password)


def store_in(server: RedisServer, *, prefix: str = "test:") -> RedisStore:
    return RedisStore(server.url, password=lambda: server.password, prefix=prefix)


@asynccontextmanager
async def opened_in(server: RedisServer) -> AsyncIterator[tuple[RedisStore, Told]]:
    """A store that listens."""
    store, told = store_in(server), Told()
    async with opened(store, told):
        assert told.keys == [None]
        told.keys.clear()
        yield store, told


@pytest.fixture
def place(server: RedisServer) -> RedisPlace:
    return RedisPlace(server)


class TestInRedis(SharedStoreClaims):
    async def test_whatever_is_kept_ends_by_itself(self, place: RedisPlace, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=60)
        await store.add("two", SEALED, seconds=60)
        await store.replace("one", OTHER)
        await store.keep("two", seconds=60)
        await store.claim("three", seconds=60)
        async with place.client() as client:
            left = {key: await client.pttl(key) async for key in client.scan_iter(f"{place.prefix}*")}
        assert len(left) == 3
        assert all(0 < milliseconds <= 60_000 for milliseconds in left.values())

    async def test_connections_are_no_more_than_may_be(self, place: RedisPlace, store: SessionStore) -> None:
        async with place.client() as client:
            before = len(await client.client_list())
            await asyncio.gather(*(store.load("unknown") for _ in range(500)))
            assert len(await client.client_list()) - before <= 32

    async def test_who_leaves_takes_all_connections_along(self, server: RedisServer, place: RedisPlace) -> None:
        async with place.client() as client:
            before = len(await client.client_list())
            async with opened_in(server) as (store, _):
                await asyncio.gather(*(store.load("unknown") for _ in range(10)))
            async with asyncio.timeout(5):
                while len(await client.client_list()) > before:  # noqa: ASYNC110 - nobody tells us
                    await asyncio.sleep(0.01)


# Redis goes, and comes back -------------------------------------------------------------------------------------------


def told_of_redis(caplog: pytest.LogCaptureFixture) -> list[int]:
    """The levels of what was logged about its being there or not."""
    return [record.levelno for record in caplog.records if record.name == "proxy.frontdoor.redis_store"]


async def until_used(store: SessionStore) -> None:
    """Use it until it can be used again."""
    async with asyncio.timeout(10):
        while True:
            try:
                await store.load("any")
            except StoreUnavailable:
                await asyncio.sleep(0.01)
            else:
                return


async def test_what_redis_lost_is_noticed_when_it_is_back(
    mortal: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_in(mortal) as (store, told):
        await asyncio.gather(*(store.add(f"key-{number}", SEALED, seconds=60) for number in range(10)))
        mortal.kill()
        await until_unavailable(store)
        for _ in range(20):
            with pytest.raises(StoreUnavailable, match="See whether it runs where"):
                await store.claim("key-1", seconds=60)
        assert told.keys == []
        mortal.start()
        await told.until(lambda keys: keys == [None], seconds=10)
        assert await store.missing(["key-1"]) == {"key-1"}
        await store.add("key-1", OTHER, seconds=60)
        await store.remove("key-1")
        await told.until(lambda keys: keys.count("key-1") == 2)  # so it listens again
    assert told_of_redis(caplog) == [logging.WARNING, logging.INFO]


async def test_connections_that_were_lost_meanwhile_fail_nobody(mortal: RedisServer) -> None:
    async with opened_in(mortal) as (store, told):
        await asyncio.gather(*(store.load("any") for _ in range(20)))
        mortal.kill()
        mortal.start()
        await told.until(lambda keys: keys == [None], seconds=10)
        await asyncio.gather(*(store.add(f"key-{number}", SEALED, seconds=60) for number in range(20)))


async def test_a_redis_that_stands_still_is_told_in_time_and_noticed(
    mortal: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_in(mortal) as (store, told):
        await asyncio.gather(*(store.load("any") for _ in range(5)))
        mortal.stand_still()
        async with asyncio.timeout(2.5):
            answers = await asyncio.gather(*(store.load("any") for _ in range(1000)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        assert "did not answer within 2 s" in str(answers[0])
        await until(lambda: AWAY in caplog.text)
        mortal.go_on()
        await told.until(lambda keys: keys == [None], seconds=10)
        await until_used(store)
        await store.add("one", SEALED, seconds=60)
        assert await asyncio.gather(*(store.load("one") for _ in range(50))) == [SEALED] * 50
    assert told_of_redis(caplog) == [logging.WARNING, logging.INFO]


@asynccontextmanager
async def a_way(to: RedisServer) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """An address that leads there, and what has it forget the connections that there are, without a word to them."""
    connected: list[tuple[asyncio.StreamWriter, asyncio.Task[None]]] = []

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", to.port)
        for source, target in ((reader, back), (there, writer)):
            connected.append((target, asyncio.get_running_loop().create_task(carry(source, target))))

    def forget() -> None:
        for _, carrying in connected:
            carrying.cancel()

    server = await asyncio.start_server(accept, "127.0.0.1")
    try:
        yield f"redis://localhost:{server.sockets[0].getsockname()[1]}", forget
    finally:
        server.close()
        forget()
        for writer, _ in connected:
            writer.close()
        await asyncio.wait([carrying for _, carrying in connected])


async def test_connections_that_lead_nowhere_are_noticed_and_fail_one_only(
    mortal: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_way(mortal) as (url, forget):
        store, told = RedisStore(url, password=lambda: mortal.password), Told()
        async with opened(store, told):
            await store.add("one", SEALED, seconds=60)
            await asyncio.gather(*(store.load("one") for _ in range(10)))
            forget()
            async with asyncio.timeout(2.5):
                with pytest.raises(StoreUnavailable, match="did not answer within 2 s"):
                    await store.load("one")
            async with asyncio.timeout(1):
                assert await asyncio.gather(*(store.load("one") for _ in range(10))) == [SEALED] * 10
            await told.until(lambda keys: keys == [None, None], seconds=5)
    assert told_of_redis(caplog) == [logging.WARNING, logging.INFO]


async def test_a_store_ends_in_time_though_redis_stands_still(authority: Authority, tmp_path: Path) -> None:
    trust = trusting(authority.ca_file(tmp_path), key="frontdoor.redis_ca_file", on_load=lambda _: None)
    with running_redis(tmp_path, tls=authority.server_files(tmp_path)) as server:
        store = RedisStore(server.url, trust=trust)
        async with opened(store):
            await asyncio.gather(*(store.load("any") for _ in range(5)))
            server.stand_still()
            async with asyncio.timeout(1):
                await store.close()


async def test_a_redis_that_is_not_there_yet_is_waited_for(
    mortal: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    mortal.kill()
    store, told = store_in(mortal), Told()
    async with asyncio.timeout(2.5):
        await store.open(told)
    try:
        await until_unavailable(store)
        assert told.keys == []
        mortal.start()
        await told.until(lambda keys: keys == [None], seconds=10)
        await store.add("one", SEALED, seconds=60)
        assert await store.load("one") == SEALED
    finally:
        await store.close()
    assert told_of_redis(caplog) == [logging.WARNING, logging.INFO]


async def test_one_who_lost_the_connection_for_words_is_told_that_any_may_have_changed(mortal: RedisServer) -> None:
    async with opened_in(mortal) as (store, told):
        assert mortal.tell("CLIENT", "KILL", "TYPE", "pubsub") == 1
        await told.until(lambda keys: keys == [None], seconds=5)
        await store.add("one", SEALED, seconds=60)
        await store.remove("one")
        await told.until(lambda keys: keys == [None, "one", "one"])


async def test_a_redis_that_has_nothing_to_say_is_not_taken_for_gone(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_in(server) as (_, told):
        with pytest.raises(TimeoutError):
            await told.until(bool, seconds=4.5)
    assert told_of_redis(caplog) == []


# The password ---------------------------------------------------------------------------------------------------------


async def test_the_password_may_change(mortal: RedisServer, evidence: list[str]) -> None:
    assert mortal.password is not None
    present = mortal.password
    store, told = RedisStore(mortal.url, password=lambda: present), Told()
    async with opened(store, told):
        await store.add("one", SEALED, seconds=60)
        fresh = a_password()
        mortal.tell("CONFIG", "SET", "requirepass", fresh)
        mortal.password = fresh
        evidence += [present, fresh]
        assert await store.load("one") == SEALED  # over connections that are open already
        mortal.tell("CLIENT", "KILL", "TYPE", "pubsub")
        mortal.tell("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until_unavailable(store)
        with pytest.raises(StoreUnavailable, match="does not take the user and password") as unavailable:
            await store.load("one")
        assert not any(secret in f"{unavailable.value!r}" for secret in evidence)
        present = fresh
        assert await store.load("one") == SEALED
        await told.until(lambda keys: keys == [None, None], seconds=10)


def unreadable() -> str:
    raise PermissionError(13, "canary")


def broken() -> str:
    raise ValueError("canary")


@pytest.mark.parametrize(
    ("password", "told"),
    [
        pytest.param(lambda: "canary-wrong", "does not take the user and password", id="wrong"),
        pytest.param(lambda: "", "does not take the user and password", id="empty"),
        pytest.param(lambda: None, "does not take the user and password", id="none"),
        pytest.param(unreadable, "password of Redis cannot be read", id="unreadable"),
        pytest.param(broken, "password of Redis cannot be read", id="broken"),
    ],
)
async def test_a_password_that_does_not_serve_is_told(
    server: RedisServer, password: Callable[[], str | None], told: str
) -> None:
    store = RedisStore(server.url, password=password)
    async with opened(store):
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match=told) as unavailable:
                await store.load("one")
            assert "canary" not in f"{unavailable.value!r} {unavailable.value}"


async def test_a_password_where_none_is_asked_for_is_told(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        async with opened(RedisStore(server.url)):
            pass
        store = RedisStore(server.url, password=lambda: "canary")
        async with opened(store):
            with pytest.raises(StoreUnavailable, match="does not take the user and password"):
                await store.load("one")


async def test_a_user_needs_no_more_than_is_said(server: RedisServer, evidence: list[str]) -> None:
    password = a_password()
    evidence.append(password)
    allowed = ["get", "set", "del", "exists", "pexpire", "ping", "publish", "subscribe"]
    server.tell(
        "ACL", "SETUSER", "ann", "reset", "on", f">{password}", "~ours:*", "&ours:*", *(f"+{each}" for each in allowed)
    )
    url = server.url.replace("://", "://ann@")
    store, told = RedisStore(url, password=lambda: password, prefix="ours:"), Told()
    async with opened(store, told):
        await store.add("one", SEALED, seconds=60)
        await store.replace("one", OTHER)
        await store.keep("one", seconds=60)
        assert await store.missing(["one", "two"]) == {"two"}
        assert await store.claim("one", seconds=0.001) is True
        await told.until(lambda keys: keys == [None, "one", "one"])
        assert await store.load("one") == OTHER
        assert await store.remove("one") is True
    elsewhere = RedisStore(url, password=lambda: password, prefix="theirs:")
    async with opened(elsewhere):
        with pytest.raises(StoreUnavailable, match=f"allow it {', '.join(allowed[:7])}"):
            await elsewhere.load("one")
        with pytest.raises(StoreUnavailable, match="may not do what is needed"):
            await elsewhere.remove("one")


# TLS ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> object:
    folder = tmp_path_factory.mktemp("secured")
    with running_redis(folder, password=a_password(), tls=authority.server_files(folder)) as it:
        yield it


async def test_redis_is_spoken_to_over_tls(secured: RedisServer, authority: Authority, tmp_path: Path) -> None:
    trust = trusting(authority.ca_file(tmp_path), key="frontdoor.redis_ca_file", on_load=lambda _: None)
    store, told = RedisStore(secured.url, password=lambda: secured.password, trust=trust), Told()
    async with opened(store, told):
        await store.add("one", SEALED, seconds=60)
        assert await store.load("one") == SEALED
        await store.remove("one")
        await told.until(lambda keys: keys == [None, "one", "one"])


async def test_a_redis_that_stands_still_is_told_in_time_over_tls_too(authority: Authority, tmp_path: Path) -> None:
    trust = trusting(authority.ca_file(tmp_path), key="frontdoor.redis_ca_file", on_load=lambda _: None)
    with running_redis(tmp_path, tls=authority.server_files(tmp_path)) as server:
        store = RedisStore(server.url, trust=trust)
        async with opened(store):
            await asyncio.gather(*(store.load("any") for _ in range(10)))
            server.stand_still()
            for _ in range(3):  # which wait for what is open, and for what is being opened
                async with asyncio.timeout(2.5):
                    with pytest.raises(StoreUnavailable, match="did not answer within 2 s"):
                        await store.load("any")
            async with asyncio.timeout(2.5):
                await store.close()


async def test_nobody_else_is_taken_for_redis(secured: RedisServer, tmp_path: Path) -> None:
    stranger = trusting(Authority().ca_file(tmp_path), key="frontdoor.redis_ca_file", on_load=lambda _: None)
    for trust in (None, stranger):
        store = RedisStore(secured.url, password=lambda: secured.password, trust=trust)
        async with opened(store):
            with pytest.raises(StoreUnavailable, match="certificate of Redis is not trusted"):
                await store.load("one")


async def test_redis_is_taken_for_no_other_host(secured: RedisServer, authority: Authority, tmp_path: Path) -> None:
    trust = trusting(authority.ca_file(tmp_path), key="frontdoor.redis_ca_file", on_load=lambda _: None)
    url = secured.url.replace("localhost", "127.0.0.1")
    store = RedisStore(url, password=lambda: secured.password, trust=trust)
    async with opened(store):
        with pytest.raises(StoreUnavailable, match="certificate of Redis is not trusted"):
            await store.load("one")


async def test_nothing_to_trust_is_told(secured: RedisServer) -> None:
    store = RedisStore(secured.url, password=lambda: secured.password, trust=cache(lambda: None))
    async with opened(store):
        with pytest.raises(StoreUnavailable, match="nothing to trust Redis by"):
            await store.load("one")


async def test_tls_on_one_side_only_is_told(server: RedisServer, secured: RedisServer) -> None:
    for url in (server.url.replace("redis:", "rediss:"), secured.url.replace("rediss:", "redis:")):
        store = RedisStore(url, password=lambda: "canary")
        async with opened(store):
            with pytest.raises(StoreUnavailable):
                await store.load("one")


# What Redis refuses ---------------------------------------------------------------------------------------------------


async def test_a_redis_that_is_full_is_told_and_passes(mortal: RedisServer) -> None:
    async with opened_in(mortal) as (store, _):
        await store.add("one", SEALED, seconds=60)
        mortal.tell("CONFIG", "SET", "maxmemory", "1")
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="Redis is full") as unavailable:
                await store.replace("one", OTHER)
            assert "other" not in str(unavailable.value)
            with pytest.raises(StoreUnavailable, match="Redis is full"):
                await store.claim("one", seconds=60)
        assert await store.load("one") == SEALED
        assert await store.remove("one") is True
        mortal.tell("CONFIG", "SET", "maxmemory", "0")
        await store.add("one", SEALED, seconds=60)


async def test_a_redis_that_became_a_replica_is_told_and_passes(mortal: RedisServer) -> None:
    async with opened_in(mortal) as (store, _):
        await store.add("one", SEALED, seconds=60)
        mortal.tell("REPLICAOF", "127.0.0.1", "1")
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="Redis is a replica"):
                await store.remove("one")
        mortal.tell("REPLICAOF", "NO", "ONE")
        assert await store.remove("one") is True


async def test_something_else_by_our_name_is_told(place: RedisPlace, server: RedisServer) -> None:
    server.tell("LPUSH", f"{place.prefix}session:one", "canary")
    store = place.store()
    async with opened(store):
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="refused a command") as unavailable:
                await store.load("one")
            assert "canary" not in str(unavailable.value)
        assert await store.missing(["one", "two"]) == {"two"}
        assert await store.remove("one") is True


async def test_nonsense_in_the_channel_changes_nothing(place: RedisPlace, server: RedisServer) -> None:
    store, told = place.store(), Told()
    async with opened(store, told):
        async with place.client() as client:
            await client.publish(f"{place.prefix}changed", b"\xff\xfe")
        await told.until(lambda keys: len(keys) == 2)
        await store.add("one", SEALED, seconds=60)
        await store.remove("one")
        await told.until(lambda keys: keys.count("one") == 2)
    del server


async def test_databases_by_number_are_apart(place: RedisPlace, server: RedisServer) -> None:
    here, there = (
        RedisStore(f"{server.url}/{number}", password=lambda: server.password, prefix=place.prefix) for number in (1, 2)
    )
    async with opened(here), opened(there):
        await here.add("one", SEALED, seconds=60)
        assert await here.load("one") == SEALED
        assert await there.load("one") is None


def test_what_it_holds_is_not_shown(server: RedisServer) -> None:
    url = server.url.replace("://", "://canary-user@")
    assert "canary" not in repr(RedisStore(url, password=lambda: "canary"))
