"""Sessions in SQLite: in a file, which several processes on one machine may share, or in memory.

1. The event loop never waits for the disk: one thread does all that there is to do, one thing at a time.
2. Each change leaves a number and its key beside what it changed. Every process looks for new ones four times a second,
   and so learns what the others did; who missed some is told that any may have changed.
3. What has ended counts as gone, and is taken out when something new comes in, some at a time.
"""

import asyncio
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from proxy.frontdoor.stores import StoreUnavailable


Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]

_KEY: Final = "frontdoor.sessions_file"  # as the configuration calls it
_ANSWER_SECONDS: Final = 2.0
_LOCK_SECONDS: Final = 1.5  # shorter, so that it is told that this was the reason
_LOOK_SECONDS: Final = 0.25
_PURGED_AT_ONCE: Final = 100
_CHANGES_KEPT: Final = 1000
_ASKED_AT_ONCE: Final = 500  # SQLite takes 999 values in a statement at least

_OURS: Final = 0x63387973  # marks the file as this proxy's: "c8ys"
_VERSION: Final = 1
_SCHEMA: Final = (
    "CREATE TABLE sessions (key TEXT PRIMARY KEY, sealed BLOB NOT NULL, ends REAL NOT NULL)",
    "CREATE INDEX ending ON sessions (ends)",
    "CREATE TABLE claims (key TEXT PRIMARY KEY, ends REAL NOT NULL)",
    "CREATE INDEX claims_ending ON claims (ends)",
    "CREATE TABLE changes (number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL)",
    f"PRAGMA application_id = {_OURS}",
    f"PRAGMA user_version = {_VERSION}",
)

log = logging.getLogger(__name__)


class SqliteStore:
    """Keeps sessions in a SQLite file that only its owner may read, made where there is none; in memory without a path.

    `clock` gives Unix time, which all who share the file go by.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._watching: asyncio.Task[None] | None = None
        self._on_change: Callable[[str | None], None] = lambda _: None
        self._seen = 0  # the number of the last change that was looked at
        self._told: set[int] = set()  # changes of our own, told before that

    async def open(self, on_change: Callable[[str | None], None]) -> None:
        """Begin, as `SessionStore` has it. Raises StoreUnavailable for a file that cannot be used."""
        self._on_change = on_change
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sessions")
        try:
            await self._in_thread(self._begin)
        except BaseException:
            await self.close()
            raise
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """End. Of no effect before `open`."""
        task, self._watching = self._watching, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        thread, self._thread = self._thread, None
        if thread is not None:
            ended = thread.submit(self._end)
            thread.shutdown(wait=False)
            with suppress(TimeoutError, sqlite3.Error):  # a disk that hangs must not hold us up
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await asyncio.wrap_future(ended)
        if task is not None and not task.cancelled():
            task.result()

    async def add(self, key: str, sealed: bytes, *, seconds: float) -> None:
        """As `SessionStore` has it. Raises ValueError where there is one by this key."""
        now = self._clock()

        def work(connection: sqlite3.Connection) -> bool:
            with _changing(connection):
                _purge(connection, "sessions", now)
                added = connection.execute(
                    "INSERT INTO sessions VALUES (:key, :sealed, :ends) ON CONFLICT (key) DO UPDATE "
                    "SET sealed = excluded.sealed, ends = excluded.ends WHERE sessions.ends <= :now",
                    {"key": key, "sealed": sealed, "ends": now + seconds, "now": now},
                )
            return bool(added.rowcount)

        if not await self._perform(work):
            raise ValueError("there is a session by this key already")

    async def load(self, key: str) -> bytes | None:
        """As `SessionStore` has it."""
        now = self._clock()

        def work(connection: sqlite3.Connection) -> bytes | None:
            found = connection.execute("SELECT sealed FROM sessions WHERE key = ? AND ends > ?", (key, now)).fetchone()
            return None if found is None else bytes(found[0])

        return await self._perform(work)

    async def replace(self, key: str, sealed: bytes) -> bool:
        """As `SessionStore` has it."""
        return await self._change(
            key, "UPDATE sessions SET sealed = :sealed WHERE key = :key AND ends > :now", {"sealed": sealed}
        )

    async def keep(self, key: str, *, seconds: float) -> bool:
        """As `SessionStore` has it. Nobody is told: what is kept stays the same."""
        now = self._clock()

        def work(connection: sqlite3.Connection) -> bool:
            kept = connection.execute(
                "UPDATE sessions SET ends = ? WHERE key = ? AND ends > ?", (now + seconds, key, now)
            )
            return bool(kept.rowcount)

        return await self._perform(work)

    async def remove(self, key: str) -> bool:
        """As `SessionStore` has it."""
        return await self._change(key, "DELETE FROM sessions WHERE key = :key AND ends > :now", {})

    async def missing(self, keys: Collection[str]) -> set[str]:
        """As `SessionStore` has it."""
        missing = set(keys)
        asked = list(missing)
        for start in range(0, len(asked), _ASKED_AT_ONCE):
            missing -= await self._present(asked[start : start + _ASKED_AT_ONCE])
        return missing

    async def claim(self, key: str, *, seconds: float) -> bool:
        """As `SessionStore` has it."""
        now = self._clock()

        def work(connection: sqlite3.Connection) -> bool:
            with _changing(connection):
                _purge(connection, "claims", now)
                claimed = connection.execute(
                    "INSERT INTO claims VALUES (:key, :ends) ON CONFLICT (key) DO UPDATE "
                    "SET ends = excluded.ends WHERE claims.ends <= :now",
                    {"key": key, "ends": now + seconds, "now": now},
                )
            return bool(claimed.rowcount)

        return await self._perform(work)

    async def _present(self, keys: list[str]) -> set[str]:
        now = self._clock()
        places = ", ".join("?" * len(keys))
        statement = f"SELECT key FROM sessions WHERE ends > ? AND key IN ({places})"  # noqa: S608 - of question marks
        return await self._perform(lambda connection: {key for (key,) in connection.execute(statement, (now, *keys))})

    async def _change(self, key: str, statement: str, values: dict[str, bytes]) -> bool:
        """Change a session, and tell of it; whether there was one."""
        given = values | {"key": key, "now": self._clock()}

        def work(connection: sqlite3.Connection) -> int | None:
            with _changing(connection):
                if not connection.execute(statement, given).rowcount:
                    return None
                number = connection.execute("INSERT INTO changes (key) VALUES (?)", (key,)).lastrowid
                assert number is not None  # noqa: S101 - the row was inserted
                connection.execute("DELETE FROM changes WHERE number <= ?", (number - _CHANGES_KEPT,))
            return number

        number = await self._perform(work)
        if number is None:
            return False
        self._told.add(number)
        self._on_change(key)
        return True

    # Changes of others ------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Tell of changes that others made, and of those of our own that nobody waited for any longer."""
        was_away = False
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                fresh = await self._perform(self._fresh_changes)
            except StoreUnavailable as problem:
                if not was_away:
                    log.warning("%s. Sessions that others end are not noticed until it is mended", problem)
                was_away = True
                continue
            if was_away:
                log.info("%s can be used again", _KEY)
                was_away = False
            self._tell(fresh)

    def _fresh_changes(self, connection: sqlite3.Connection) -> list[tuple[int, str]]:
        return connection.execute(
            "SELECT number, key FROM changes WHERE number > ? ORDER BY number", (self._seen,)
        ).fetchall()

    def _tell(self, fresh: list[tuple[int, str]]) -> None:
        if not fresh:
            return
        has_missed_some = fresh[0][0] != self._seen + 1
        self._seen = fresh[-1][0]
        told, self._told = self._told, {number for number in self._told if number > self._seen}
        if has_missed_some:
            self._on_change(None)
            return
        for number, key in fresh:
            if number not in told:
                self._on_change(key)

    # The thread -------------------------------------------------------------------------------------------------------

    async def _perform(self, work: Work[Result]) -> Result:
        """Have the thread do this. Raises StoreUnavailable."""

        def done() -> Result:
            assert self._connection is not None  # noqa: S101 - it is there while there is the thread
            return work(self._connection)

        return await self._in_thread(done)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        if self._thread is None:
            raise StoreUnavailable("The store of sessions is not open")
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError:
            text = f"{_KEY}: the disk did not answer within {_ANSWER_SECONDS:g} s. Look at what keeps it busy"
        except sqlite3.Error as problem:
            text = f"{_KEY}: {_explained(problem)}"
        raise StoreUnavailable(text)

    def _begin(self) -> None:
        # The thread keeps it, so that it is closed though nobody waited for this.
        self._connection, self._seen = _opened(self._path)

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _explained(problem: sqlite3.Error) -> str:
    """What is wrong, and what helps; SQLite's own words may quote."""
    name: str = getattr(problem, "sqlite_errorname", "") or "unknown"
    kind = "_".join(name.split("_")[:2])  # without what tells apart kinds of one kind
    return _EXPLANATIONS.get(kind, f"SQLite cannot use it ({name}). See whether it is whole")


_EXPLANATIONS: Final = {
    "SQLITE_BUSY": "another process holds it for too long. See who else uses it",
    "SQLITE_CANTOPEN": "cannot be opened. See that this process may read and write it and its directory",
    "SQLITE_CORRUPT": "is damaged. Move it away; everybody has to sign in again",
    "SQLITE_FULL": "the disk is full. Make room",
    "SQLITE_IOERR": "the disk does not read or write it. See that it is in order, and has room",
    "SQLITE_LOCKED": "another process holds it for too long. See who else uses it",
    "SQLITE_NOTADB": "is no SQLite database. Name another file, or one that is not there yet",
    "SQLITE_PERM": "may not be used. See that this process may read and write it",
    "SQLITE_READONLY": "may not be written. See that this process may write it and its directory",
}


def _opened(path: Path | None) -> tuple[sqlite3.Connection, int]:
    """A connection to the file, and the number of the last change in it. Raises StoreUnavailable and sqlite3.Error."""
    connection = sqlite3.connect(
        ":memory:" if path is None else _address(path), uri=True, isolation_level=None, timeout=_LOCK_SECONDS
    )
    try:
        _set_up(connection)
        with closing(connection.execute("SELECT max(seq) FROM sqlite_sequence")) as found:
            (seen,) = found.fetchone()
    except BaseException:
        connection.close()
        raise
    return connection, seen or 0


def _address(path: Path) -> str:
    """The file as SQLite is told it, made where it was missing. Raises StoreUnavailable."""
    try:
        file = Path(os.path.realpath(path))  # which, unlike Path.resolve, never raises
        # SQLite would make it readable for all. What SQLite puts beside it gets the same mode.
        with suppress(FileExistsError):
            made = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.close(made)
        is_file = stat.S_ISREG(file.stat().st_mode)
    except OSError as problem:
        what = problem.strerror
    else:
        if is_file:
            return f"file:{quote(os.fsencode(file))}?mode=rw"
        what = "Not a file"
    raise StoreUnavailable(f"{_KEY}: cannot be used: {what}. Name a file in a directory that this process may write")


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA secure_delete = ON")
    if _mark(connection) != (_OURS, _VERSION):
        with _changing(connection):
            _make_tables(connection)
    _begin_log(connection)
    connection.execute("PRAGMA synchronous = NORMAL")


def _make_tables(connection: sqlite3.Connection) -> None:
    """Make an empty file ours, unless another process just did. Raises StoreUnavailable for what is no empty file."""
    mark = _mark(connection)
    if mark == (_OURS, _VERSION):
        return
    if mark[0] == _OURS:
        text = f"{_KEY}: was made by another version of this proxy. Name another file, or move it away"
        raise StoreUnavailable(f"{text}; everybody has to sign in again")
    if mark != (0, 0) or connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() != (0,):
        raise StoreUnavailable(f"{_KEY}: holds something else than sessions. Name another file")
    for statement in _SCHEMA:
        connection.execute(statement)


def _mark(connection: sqlite3.Connection) -> tuple[int, int]:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


def _begin_log(connection: sqlite3.Connection) -> None:
    """Have changes written to a log first, so that who reads waits for nobody.

    Where others open the file at this moment, SQLite gives up without waiting.
    """
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


@contextmanager
def _changing(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _purge(connection: sqlite3.Connection, table: str, now: float) -> None:
    connection.execute(
        f"DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE ends <= ? LIMIT ?)",  # noqa: S608 - our names
        (now, _PURGED_AT_ONCE),
    )
