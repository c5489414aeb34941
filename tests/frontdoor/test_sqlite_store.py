"""Sessions in SQLite: what is true of every store, and what its file is like."""

import asyncio
import logging
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from proxy.frontdoor.sqlite_store import _SCHEMA, SqliteStore
from proxy.frontdoor.stores import SessionStore, StoreUnavailable
from tests.conftest import until

from .store_claims import OTHER, SEALED, Place, SharedStoreClaims, StoreClaims, Told, opened


class SqlitePlace:
    """A file, or memory, and the time that its stores go by."""

    moment = 60.0

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.now = 1_700_000_000.0

    def store(self) -> SqliteStore:
        return SqliteStore(self.path, clock=lambda: self.now)

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sessions % ?#.sqlite"  # as an address of SQLite it would mean something else


class TestInMemory(StoreClaims):
    @pytest.fixture
    def place(self) -> Place:
        return SqlitePlace(None)

    async def test_every_store_has_a_memory_of_its_own(self, place: Place, store: SessionStore) -> None:
        await store.add("one", SEALED, seconds=60)
        there = place.store()
        async with opened(there):
            assert await there.load("one") is None


class TestInFile(SharedStoreClaims):
    @pytest.fixture
    def place(self, file: Path) -> Place:
        return SqlitePlace(file)


# The file -------------------------------------------------------------------------------------------------------------


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def content(file: Path) -> bytes:
    return file.read_bytes()


@pytest.mark.parametrize("umask", [0o000, 0o022])
async def test_only_its_owner_may_read_what_is_kept(file: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = SqliteStore(file)
        async with opened(store):
            await store.add("one", SEALED, seconds=60)
            found = modes(file.parent)
    finally:
        os.umask(before)
    assert found == {file.name: 0o600, f"{file.name}-wal": 0o600, f"{file.name}-shm": 0o600}
    assert modes(file.parent) == {file.name: 0o600}


async def test_what_a_link_leads_to_is_made_for_its_owner_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    async with opened(SqliteStore(tmp_path / "link")):
        assert modes(tmp_path)["there"] == 0o600


async def test_what_has_ended_is_taken_out_of_the_file(file: Path) -> None:
    place = SqlitePlace(file)
    store = place.store()
    async with opened(store):
        for number in range(250):
            await store.add(f"old-{number}", b"", seconds=60)
            await store.claim(f"old-{number}", seconds=60)
        await place.pass_time(60)
        await store.add("old-249", b"", seconds=60)  # which is not taken out yet
        assert await store.claim("old-249", seconds=60) is True
        for number in range(2):
            await store.add(f"new-{number}", b"", seconds=60)
            await store.claim(f"new-{number}", seconds=60)
    with closing(sqlite3.connect(file)) as connection:
        for table in ("sessions", "claims"):
            keys = {key for (key,) in connection.execute(f"SELECT key FROM {table}")}  # noqa: S608 - ours
            assert keys == {"old-249", "new-0", "new-1"}


async def test_what_was_removed_is_not_left_in_the_file(file: Path) -> None:
    store = SqliteStore(file)
    async with opened(store):
        await store.add("one", b"canary" * 100, seconds=60)
        await store.remove("one")
    assert b"canarycanary" not in content(file)


async def test_only_the_newest_changes_are_remembered(file: Path) -> None:
    store = SqliteStore(file)
    async with opened(store):
        await store.add("one", b"", seconds=60)
        for _ in range(1100):
            await store.replace("one", b"")
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*), max(number) FROM changes").fetchone() == (1000, 1100)


async def test_who_missed_changes_is_told_that_any_may_have_changed(file: Path) -> None:
    store, told = SqliteStore(file), Told()
    async with opened(store, told):
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("INSERT INTO changes VALUES (7, 'seven')")
            connection.commit()
        await told.until(lambda keys: None in keys)
    assert told.keys == [None]


async def test_each_change_is_told_once_where_it_was_made(file: Path) -> None:
    store, there, told, told_there = SqliteStore(file), SqliteStore(file), Told(), Told()
    async with opened(store, told), opened(there, told_there):
        for key in ("one", "two"):
            await store.add(key, SEALED, seconds=60)
            await store.replace(key, OTHER)
        await there.remove("one")
        await told.until(lambda keys: len(keys) == 3)
        await told_there.until(lambda keys: len(keys) == 3)
        await store.remove("two")
        await told_there.until(lambda keys: len(keys) == 4)
    assert told.keys == ["one", "two", "one", "two"]
    assert sorted(told_there.keys, key=str) == ["one", "one", "two", "two"]


async def test_what_was_not_changed_is_not_told(file: Path) -> None:
    store, there, told, told_there = SqliteStore(file), SqliteStore(file), Told(), Told()
    async with opened(store, told), opened(there, told_there):
        await store.replace("unknown", OTHER)
        await store.remove("unknown")
        await store.add("one", SEALED, seconds=60)
        await store.remove("one")
        await told_there.until(bool)
    assert told.keys == told_there.keys == ["one"]


# Other processes ------------------------------------------------------------------------------------------------------


ELSEWHERE = """
import asyncio, pathlib, sys
from proxy.frontdoor.sqlite_store import SqliteStore

async def main():
    store = SqliteStore(pathlib.Path(sys.argv[1]))
    await store.open(lambda _: None)
    print(await store.load("one") == b"sealed", await store.remove("one"))
    print(sum([await store.claim(f"key-{number}", seconds=60) for number in range(200)]))
    await store.close()

asyncio.run(main())
"""


async def test_another_process_shares_the_file(file: Path) -> None:
    store, told = SqliteStore(file), Told()
    async with opened(store, told):
        await store.add("one", b"sealed", seconds=60)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ELSEWHERE, str(file), stdout=subprocess.PIPE
        )
        claims = sum([await store.claim(f"key-{number}", seconds=60) for number in range(200)])
        written, _ = await process.communicate()
        assert process.returncode == 0
        found, claims_there = written.decode().splitlines()
        assert found == "True True"
        assert claims + int(claims_there) == 200
        await told.until(lambda keys: keys == ["one"])


async def test_many_may_make_the_file_at_once(file: Path) -> None:
    stores = [SqliteStore(file) for _ in range(24)]
    await asyncio.gather(*(store.open(lambda _: None) for store in stores))
    await stores[0].add("one", SEALED, seconds=60)
    assert await asyncio.gather(*(store.load("one") for store in stores)) == [SEALED] * 24
    await asyncio.gather(*(store.close() for store in stores))


async def test_who_opens_a_file_that_another_makes_now_waits_for_it(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        asyncio.get_running_loop().call_later(0.2, connection.execute, "COMMIT")
        store = SqliteStore(file)
        async with opened(store):
            await store.add("one", SEALED, seconds=60)


async def test_who_opens_a_file_that_another_reads_now_waits_for_it(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in ("BEGIN", *_SCHEMA, "COMMIT", "BEGIN", "SELECT * FROM sessions"):
            connection.execute(statement)
        asyncio.get_running_loop().call_later(0.2, connection.execute, "COMMIT")
        store = SqliteStore(file)
        async with opened(store):
            await store.add("one", SEALED, seconds=60)


# What is wrong --------------------------------------------------------------------------------------------------------


def garbage(file: Path) -> None:
    file.write_bytes(b"canary " * 1000)


def a_directory(file: Path) -> None:
    file.mkdir()


def a_pipe(file: Path) -> None:
    os.mkfifo(file)


def no_directory(file: Path) -> None:
    file.parent.rmdir()


def a_file_for_a_directory(file: Path) -> None:
    file.parent.rmdir()
    file.parent.write_bytes(b"")


def a_link_to_itself(file: Path) -> None:
    file.symlink_to(file.name)


def a_database_of_another(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


def a_marked_database_of_another(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA application_id = 252006673")


def another_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        assert application == 0
        connection.execute(f"PRAGMA application_id = {0x63387973}")
        connection.execute("PRAGMA user_version = 999")


def damage(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    content = file.read_bytes()
    file.write_bytes(content[:100] + b"\xff" * 100 + content[200:])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        pytest.param(garbage, "no SQLite database", id="garbage"),
        pytest.param(a_directory, "Not a file", id="a directory"),
        pytest.param(a_pipe, "Not a file", id="a pipe"),
        pytest.param(no_directory, "No such file or directory", id="no directory"),
        pytest.param(a_file_for_a_directory, "Not a directory", id="a file for a directory"),
        pytest.param(a_link_to_itself, "Too many levels of symbolic links", id="a link to itself"),
        pytest.param(a_database_of_another, "something else than sessions", id="a database of another"),
        pytest.param(a_marked_database_of_another, "something else than sessions", id="marked by another"),
        pytest.param(another_version, "another version", id="another version"),
        pytest.param(damage, "is damaged", id="damage"),
    ],
)
async def test_a_file_that_cannot_be_used_is_told_and_left_alone(
    tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    (tmp_path / "canary").mkdir()
    file = tmp_path / "canary" / "sessions"
    spoil(file)
    before = file.read_bytes() if file.is_file() else None
    store = SqliteStore(file)
    with pytest.raises(StoreUnavailable, match=told) as unavailable:
        await store.open(lambda _: None)
    assert str(unavailable.value).startswith("frontdoor.sessions_file: ")
    assert "canary" not in str(unavailable.value)
    assert before == (file.read_bytes() if file.is_file() else None)
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.load("one")
    await store.close()


async def test_a_file_of_ours_says_so(file: Path) -> None:
    async with opened(SqliteStore(file)):
        pass
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (0x63387973,)
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


async def test_a_full_disk_is_told_and_passes(file: Path) -> None:
    store = SqliteStore(file)
    async with opened(store):
        await store.add("one", SEALED, seconds=60)
        await store._perform(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchone())
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await store.add("two", SEALED * 100, seconds=60)
        assert await store.load("one") == SEALED
        await store._perform(lambda connection: connection.execute("PRAGMA max_page_count = 1000").fetchone())
        await store.add("two", SEALED * 100, seconds=60)


async def test_who_holds_the_file_for_too_long_is_told_in_time_and_holds_nobody_up(file: Path) -> None:
    store = SqliteStore(file)
    async with opened(store):
        await store.add("one", SEALED, seconds=60)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            async with asyncio.timeout(2.5):
                waiting = asyncio.get_running_loop().create_task(store.replace("one", OTHER))
                await asyncio.sleep(0)
                turns = 0
                while not waiting.done():
                    turns += 1
                    await asyncio.sleep(0.001)
                with pytest.raises(StoreUnavailable, match="another process holds it for too long"):
                    await waiting
            assert turns > 100
        assert await store.replace("one", OTHER) is True


async def test_a_disk_that_hangs_is_told_in_time(file: Path) -> None:
    store = SqliteStore(file)
    async with opened(store):
        goes_on = asyncio.Event()
        loop = asyncio.get_running_loop()
        hanging = loop.create_task(
            store._in_thread(lambda: asyncio.run_coroutine_threadsafe(goes_on.wait(), loop).result())
        )
        await asyncio.sleep(0)
        async with asyncio.timeout(2.5):
            with pytest.raises(StoreUnavailable, match="did not answer"):
                await store.add("one", SEALED, seconds=60)
            with pytest.raises(StoreUnavailable, match="did not answer"):
                await hanging
        goes_on.set()
        assert await store.load("one") is None  # nobody waited for it any longer, so it was not done


async def test_trouble_with_looking_for_changes_is_told_once_and_passes(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = SqliteStore(file), Told()
    look, looks = store._fresh_changes, Told()

    def counted(connection: sqlite3.Connection) -> list[tuple[int, str]]:
        loop.call_soon_threadsafe(looks, None)
        return look(connection)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(store, "_fresh_changes", counted)

    async with opened(store, told):
        await store.add("one", SEALED, seconds=60)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("ALTER TABLE changes RENAME TO hidden")
            await until(lambda: "not noticed until it is mended" in caplog.text, seconds=2)
            with pytest.raises(StoreUnavailable):
                await store.remove("one")
            assert await store.load("one") == SEALED
            await looks.until(lambda keys: len(keys) > 4, seconds=2)
            connection.execute("ALTER TABLE hidden RENAME TO changes")
            await until(lambda: "can be used again" in caplog.text, seconds=2)
            connection.execute("INSERT INTO changes (key) VALUES ('two')")
            connection.commit()
            await told.until(lambda keys: keys == ["two"])
    assert [record.levelno for record in caplog.records if "sessions_file" in record.getMessage()] == [
        logging.WARNING,
        logging.INFO,
    ]
