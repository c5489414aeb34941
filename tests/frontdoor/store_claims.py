"""What is true of every store of sessions, whatever keeps them: claims that a class of tests for one of them inherits.

class TestOurs(StoreClaims):
    @pytest.fixture
    async def place(self) -> AsyncIterator[Place]: ...
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

import pytest

from proxy.frontdoor.stores import SessionStore, StoreUnavailable


SEALED: Final = bytes(range(256)) * 16
OTHER: Final = b"\0other\xff"


class Place(Protocol):
    """Where sessions are kept."""

    moment: float
    """So many seconds are easily told from none here."""

    def store(self) -> SessionStore:
        """One more store that keeps them there; it is not open yet."""
        ...

    async def pass_time(self, seconds: float) -> None:
        """Have so much time pass, as this place has it."""
        ...


class Told:
    """What a store told of changes."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        self._came = asyncio.Event()

    def __call__(self, key: str | None) -> None:
        self.keys.append(key)
        self._came.set()

    async def until(self, is_so: Callable[[list[str | None]], bool], *, seconds: float = 1.0) -> None:
        """Wait until this is so of what was told."""
        async with asyncio.timeout(seconds):
            while not is_so(self.keys):
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def opened(store: SessionStore, told: Callable[[str | None], None] = lambda _: None) -> AsyncIterator[None]:
    await store.open(told)
    try:
        yield
    finally:
        await store.close()


async def until_unavailable(store: SessionStore) -> StoreUnavailable:
    """Use it until it is found to be unavailable, which is noticed in time; returns what is said then."""
    async with asyncio.timeout(2.5):
        while True:
            try:
                await store.load("any")
            except StoreUnavailable as unavailable:
                return unavailable


class StoreClaims:
    @pytest.fixture
    def told(self) -> Told:
        return Told()

    @pytest.fixture
    async def store(self, place: Place, told: Told) -> AsyncIterator[SessionStore]:
        store = place.store()
        async with opened(store, told):
            told.keys.clear()
            yield store

    async def test_what_was_added_is_loaded_as_it_was(self, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=60)
        await store.add("other", OTHER, seconds=60)
        assert await store.load("one") == SEALED
        assert await store.load("other") == OTHER

    async def test_there_is_nothing_by_an_unknown_key(self, store: SessionStore) -> None:
        assert await store.load("unknown") is None
        assert await store.replace("unknown", SEALED) is False
        assert await store.keep("unknown", seconds=60) is False
        assert await store.remove("unknown") is False
        assert await store.load("unknown") is None

    async def test_a_new_session_takes_nobodys_place(self, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=60)
        with pytest.raises(ValueError, match="already"):
            await store.add("one", OTHER, seconds=60)
        assert await store.load("one") == SEALED

    async def test_a_session_ends_by_itself(self, place: Place, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=place.moment)
        await store.add("other", SEALED, seconds=60 * place.moment)
        assert await store.load("one") == SEALED
        await place.pass_time(place.moment)
        assert await store.load("one") is None
        assert await store.load("other") == SEALED

    async def test_a_session_that_ended_is_not_brought_back(self, place: Place, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=place.moment)
        await place.pass_time(place.moment)
        assert await store.replace("one", OTHER) is False
        assert await store.keep("one", seconds=60) is False
        assert await store.remove("one") is False
        assert await store.load("one") is None

    async def test_a_session_that_was_removed_is_not_brought_back(self, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=60)
        assert await store.remove("one") is True
        assert await store.replace("one", OTHER) is False
        assert await store.keep("one", seconds=60) is False
        assert await store.load("one") is None

    async def test_a_key_whose_session_ended_may_be_used_anew(self, place: Place, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=place.moment)
        await place.pass_time(place.moment)
        await store.add("one", OTHER, seconds=60)
        assert await store.load("one") == OTHER

    async def test_what_takes_its_place_has_no_more_time_than_it(self, place: Place, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=2 * place.moment)
        await place.pass_time(place.moment)
        assert await store.replace("one", OTHER) is True
        assert await store.load("one") == OTHER
        await place.pass_time(place.moment)
        assert await store.load("one") is None

    async def test_what_takes_its_place_has_no_less_time_than_it(self, place: Place, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=60 * place.moment)
        assert await store.replace("one", OTHER) is True
        await place.pass_time(2 * place.moment)
        assert await store.load("one") == OTHER

    async def test_a_session_may_be_kept_for_longer(self, place: Place, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=2 * place.moment)
        assert await store.keep("one", seconds=60 * place.moment) is True
        await place.pass_time(3 * place.moment)
        assert await store.load("one") == SEALED

    async def test_a_session_may_be_kept_for_shorter(self, place: Place, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=60 * place.moment)
        assert await store.keep("one", seconds=place.moment) is True
        await place.pass_time(place.moment)
        assert await store.load("one") is None

    async def test_those_that_have_ended_are_told_from_the_rest(self, place: Place, store: SessionStore) -> None:
        for number in range(4):
            await store.add(f"there-{number}", SEALED, seconds=60 * place.moment)
        await store.add("removed", SEALED, seconds=60 * place.moment)
        await store.add("ended", SEALED, seconds=place.moment)
        await store.remove("removed")
        await place.pass_time(place.moment)
        there = [f"there-{number}" for number in range(4)]
        assert await store.missing(there) == set()
        assert await store.missing([*there, "removed", "ended", "unknown"]) == {"removed", "ended", "unknown"}

    async def test_any_number_may_be_asked_about(self, store: SessionStore) -> None:
        await store.add("key-777", SEALED, seconds=60)
        keys = {f"key-{number}" for number in range(1234)}
        assert await store.missing(keys) == keys - {"key-777"}
        assert await store.missing(set()) == set()

    async def test_changes_are_told(self, store: SessionStore, told: Told) -> None:
        for key in ("replaced", "removed", "kept"):
            await store.add(key, SEALED, seconds=60)
        await store.keep("kept", seconds=60)
        assert told.keys == []
        await store.replace("replaced", OTHER)
        assert set(told.keys) == {"replaced"}
        await store.remove("removed")
        assert set(told.keys) == {"replaced", "removed"}

    async def test_one_of_many_who_claim_a_session_has_it(self, place: Place, store: SessionStore) -> None:
        others = await asyncio.gather(*(store.claim("one", seconds=60 * place.moment) for _ in range(50)))
        assert sorted(others) == [False] * 49 + [True]
        assert await store.claim("other", seconds=60 * place.moment) is True

    async def test_a_claim_ends_by_itself(self, place: Place, store: SessionStore) -> None:
        assert await store.claim("one", seconds=place.moment) is True
        assert await store.claim("one", seconds=place.moment) is False
        await place.pass_time(place.moment)
        assert await store.claim("one", seconds=place.moment) is True

    async def test_a_claim_is_no_session(self, store: SessionStore) -> None:
        assert await store.claim("one", seconds=60) is True
        assert await store.load("one") is None
        await store.add("one", SEALED, seconds=60)
        assert await store.claim("one", seconds=60) is False

    async def test_many_things_may_be_done_at_once(self, store: SessionStore) -> None:
        keys = [f"key-{number}" for number in range(200)]
        await asyncio.gather(*(store.add(key, key.encode(), seconds=60) for key in keys))
        assert await asyncio.gather(*(store.load(key) for key in keys)) == [key.encode() for key in keys]
        assert all(await asyncio.gather(*(store.remove(key) for key in keys)))
        assert await store.missing(keys) == set(keys)

    async def test_who_goes_away_meanwhile_leaves_it_in_order(self, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=60)
        for _ in range(100):
            leaving = asyncio.get_running_loop().create_task(store.replace("one", OTHER))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait([leaving])
        found = await asyncio.gather(*(store.load("one") for _ in range(40)))
        assert found in ([SEALED] * 40, [OTHER] * 40)

    async def test_a_store_that_is_not_open_is_unavailable(self, place: Place) -> None:
        store = place.store()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="not open"):
                await store.load("one")
            await store.close()
            async with opened(store):
                assert await store.load("unknown") is None
        await store.close()


class SharedStoreClaims(StoreClaims):
    """And of those that several processes keep them in."""

    @pytest.fixture
    def told_there(self) -> Told:
        return Told()

    @pytest.fixture
    async def there(self, place: Place, store: SessionStore, told_there: Told) -> AsyncIterator[SessionStore]:
        del store  # which is open before
        there = place.store()
        async with opened(there, told_there):
            told_there.keys.clear()
            yield there

    async def test_what_one_keeps_the_others_have(self, store: SessionStore, there: SessionStore) -> None:
        await store.add("one", SEALED, seconds=60)
        assert await there.load("one") == SEALED
        assert await there.replace("one", OTHER) is True
        assert await store.load("one") == OTHER
        assert await store.missing(["one"]) == set()
        assert await there.remove("one") is True
        assert await store.missing(["one"]) == {"one"}
        assert await store.load("one") is None

    async def test_others_are_told_what_was_removed(
        self, store: SessionStore, there: SessionStore, told_there: Told
    ) -> None:
        await store.add("one", SEALED, seconds=60)
        await there.claim("one", seconds=60)
        await store.remove("one")
        await told_there.until(lambda keys: "one" in keys)
        assert set(told_there.keys) == {"one"}

    async def test_others_are_told_what_was_changed(
        self, store: SessionStore, there: SessionStore, told_there: Told
    ) -> None:
        await store.add("one", SEALED, seconds=60)
        await store.replace("one", OTHER)
        await told_there.until(lambda keys: "one" in keys)
        assert await there.load("one") == OTHER

    async def test_a_claim_keeps_others_from_it(self, place: Place, store: SessionStore, there: SessionStore) -> None:
        assert await store.claim("one", seconds=place.moment) is True
        assert await there.claim("one", seconds=place.moment) is False
        await place.pass_time(place.moment)
        assert await there.claim("one", seconds=place.moment) is True
        assert await store.claim("one", seconds=place.moment) is False

    async def test_one_of_many_in_two_places_has_it(self, store: SessionStore, there: SessionStore) -> None:
        claims = [each.claim("one", seconds=60) for _ in range(25) for each in (store, there)]
        assert sorted(await asyncio.gather(*claims)) == [False] * 49 + [True]

    async def test_what_is_kept_outlives_who_keeps_it(self, place: Place) -> None:
        store = place.store()
        async with opened(store):
            await store.add("one", SEALED, seconds=60)
        async with opened(store):
            assert await store.load("one") == SEALED
