"""Sessions in Redis, for any number of replicas.

1. An answer comes in time or not at all: one deadline stands over all that is done for it, and nothing is tried twice.
2. A change and the word of it go to Redis together; in no transaction, which a Redis that is full refuses even where
   something is removed. One connection listens for such words; while there is none, any session may have changed, and
   that is told as soon as there is one again.
3. What Redis says is never passed on: it quotes commands, and with them what is kept.
"""

import asyncio
import logging
import math
import os
import random
import socket
import ssl
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.connection import RedisSSLContext
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import TimeoutError as Unanswered

from proxy.frontdoor.stores import StoreUnavailable
from proxy.tls import Trust


_ANSWER_SECONDS: Final = 2.0
_SILENCE_SECONDS: Final = 2.0  # after which who listens asks whether Redis is still there
_PAUSE_SECONDS: Final = 0.1  # before the first new attempt to listen; it doubles
_LONGEST_PAUSE_SECONDS: Final = 5.0
_MOST_CONNECTIONS: Final = 32
_ASKED_AT_ONCE: Final = 500

_PROBLEMS: Final = (RedisError, OSError)  # TimeoutError is among the latter

_Command = tuple[str | bytes | int, ...]

_arbitrary: Final = random.SystemRandom()

log = logging.getLogger(__name__)


class RedisStore:
    """Keeps sessions in the Redis at `url`, which begins with `redis://`, or with `rediss://` for TLS; there may be a
    user in it, and the number of a database.

    `password` is asked for each connection, so that it may change; it raises OSError or ValueError where it cannot be
    read. `trust` gives what TLS connections are opened with, and is None for the system's certificate authorities. All
    that is kept has names that begin with `prefix`.
    """

    def __init__(
        self,
        url: str,
        *,
        password: Callable[[], str | None] = lambda: None,
        trust: Trust | None = None,
        prefix: str = "c8y-realtime-proxy:",
    ) -> None:
        """Raises ValueError for what is no such URL."""
        self._how = _how_to_connect(url, password, trust or cache(ssl.create_default_context))
        self._prefix = prefix
        self._channel = f"{prefix}changed"
        self._redis: Redis | None = None
        self._pool: _Pool | None = None
        self._listening: asyncio.Task[None] | None = None
        self._was_tried = asyncio.Event()  # whether listening has begun, or failed
        self._is_away = False
        self._on_change: Callable[[str | None], None] = lambda _: None

    async def open(self, on_change: Callable[[str | None], None]) -> None:
        """Begin, as `SessionStore` has it. A Redis that is away may come: this waits for it for a moment only."""
        self._on_change = on_change
        self._was_tried.clear()
        self._is_away = False
        self._pool = pool = _Pool(
            max_connections=_MOST_CONNECTIONS + 1,  # one of which listens
            timeout=None,
            **self._how,
        )
        self._redis = Redis(connection_pool=pool)
        self._listening = asyncio.get_running_loop().create_task(self._listen(pool))
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._was_tried.wait()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End. Of no effect before `open`."""
        task, self._listening = self._listening, None
        pool, self._pool, self._redis = self._pool, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if pool is not None:
            await pool.drop_idle()
            with suppress(*_PROBLEMS):
                await pool.aclose()
        if task is not None and not task.cancelled():
            task.result()

    async def add(self, key: str, sealed: bytes, *, seconds: float) -> None:
        """As `SessionStore` has it. Raises ValueError where there is one by this key."""
        (added,) = await self._ask(("SET", self._session(key), sealed, "PX", _milliseconds(seconds), "NX"))
        if not added:
            raise ValueError("there is a session by this key already")

    async def load(self, key: str) -> bytes | None:
        """As `SessionStore` has it."""
        (sealed,) = await self._ask(("GET", self._session(key)))
        return None if sealed is None else bytes(sealed)

    async def replace(self, key: str, sealed: bytes) -> bool:
        """As `SessionStore` has it."""
        return await self._change(key, ("SET", self._session(key), sealed, "XX", "KEEPTTL"))

    async def keep(self, key: str, *, seconds: float) -> bool:
        """As `SessionStore` has it. Nobody is told: what is kept stays the same."""
        (kept,) = await self._ask(("PEXPIRE", self._session(key), _milliseconds(seconds)))
        return bool(kept)

    async def remove(self, key: str) -> bool:
        """As `SessionStore` has it."""
        return await self._change(key, ("DEL", self._session(key)))

    async def missing(self, keys: Collection[str]) -> set[str]:
        """As `SessionStore` has it."""
        missing: set[str] = set()
        asked = list(keys)
        for start in range(0, len(asked), _ASKED_AT_ONCE):
            some = asked[start : start + _ASKED_AT_ONCE]
            there = await self._ask(*(("EXISTS", self._session(key)) for key in some))
            missing.update(key for key, is_there in zip(some, there, strict=True) if not is_there)
        return missing

    async def claim(self, key: str, *, seconds: float) -> bool:
        """As `SessionStore` has it."""
        (claimed,) = await self._ask(("SET", f"{self._prefix}claim:{key}", "", "PX", _milliseconds(seconds), "NX"))
        return bool(claimed)

    def _session(self, key: str) -> str:
        return f"{self._prefix}session:{key}"

    async def _change(self, key: str, command: _Command) -> bool:
        """Change a session, and tell of it; whether there was one. Who listens here is told of it once more later."""
        changed, _ = await self._ask(command, ("PUBLISH", self._channel, key))
        if changed:
            self._on_change(key)
        return bool(changed)

    async def _ask(self, *commands: _Command) -> list[Any]:
        """What Redis answers to each, one after the other. Raises StoreUnavailable."""
        redis, pool = self._redis, self._pool
        if redis is None or pool is None:
            raise StoreUnavailable("The store of sessions is not open")
        try:
            async with asyncio.timeout(_ANSWER_SECONDS), redis.pipeline(transaction=False) as pipeline:
                for command in commands:
                    _ = pipeline.execute_command(*command)  # which only notes it
                return await pipeline.execute()
        except _PROBLEMS as problem:
            text = _explained(problem)
            is_connection_to_blame = not isinstance(problem, ResponseError) or isinstance(problem, ReadOnlyError)
        if is_connection_to_blame:  # then so are those beside it, and new ones go to where Redis is by now
            await pool.drop_idle()
        raise StoreUnavailable(text)

    # Words of changes -------------------------------------------------------------------------------------------------

    async def _listen(self, pool: "_Pool") -> None:
        """Tell of changes, and begin anew whenever the connection is lost."""
        loop = asyncio.get_running_loop()
        pause = _PAUSE_SECONDS
        while True:
            began = loop.time()
            try:
                await self._hear(pool)
            except _PROBLEMS as problem:
                if not self._is_away:
                    log.warning("%s. It is tried again until it answers", _explained(problem))
                self._is_away = True
                self._was_tried.set()
            if loop.time() - began > _LONGEST_PAUSE_SECONDS:  # it was not lost as soon as it was had
                pause = _PAUSE_SECONDS
            await asyncio.sleep(pause * _arbitrary.uniform(0.5, 1))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _hear(self, pool: "_Pool") -> None:
        """Listen, over one connection, until that is lost. Raises what the library does."""
        async with asyncio.timeout(_ANSWER_SECONDS):
            connection: Connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await connection.send_command("SUBSCRIBE", self._channel)
                await connection.read_response()
            self._begin_to_hear()
            while True:
                word = await _next_word(connection)
                if word[0] == b"message":
                    self._on_change(word[2].decode(errors="replace"))
        finally:
            await connection.disconnect(nowait=True)
            await pool.release(connection)

    def _begin_to_hear(self) -> None:
        if self._is_away:
            log.info("Redis answers again")
        self._is_away = False
        self._was_tried.set()
        self._on_change(None)


async def _next_word(connection: Connection) -> list[Any]:
    """What comes next over a connection that listens. Raises what the library does, and TimeoutError."""
    word = await connection.read_response(timeout=_SILENCE_SECONDS, disconnect_on_error=False)
    if word is None:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await connection.send_command("PING")
            word = await connection.read_response()
    return list(word)


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))


# Connecting -----------------------------------------------------------------------------------------------------------


def _how_to_connect(url: str, password: Callable[[], str | None], trust: Trust) -> dict[str, Any]:
    """What the pool of connections is made with. Raises ValueError."""
    expected = ValueError("expected the address of a Redis, such as redis://redis.example.com:6379/0")
    try:
        parts = urlsplit(url)
        port = 6379 if parts.port is None else parts.port
        database = int(parts.path.removeprefix("/") or "0")
    except ValueError:
        raise expected from None
    if parts.scheme not in {"redis", "rediss"} or not parts.hostname or parts.password or parts.query:
        raise expected
    user = None if parts.username is None else unquote(parts.username)
    how: dict[str, Any] = {
        "connection_class": Connection,
        "host": parts.hostname,
        "port": port,
        "db": database,
        "credential_provider": _Credentials(user, password),
        "socket_timeout": None,  # ours does: what the library has for it swallows a deadline that comes with an answer
        "socket_connect_timeout": _ANSWER_SECONDS,
        "driver_info": None,  # it takes two commands more, which a user may not be allowed
        "protocol": 2,
    }
    return how if parts.scheme == "redis" else how | {"connection_class": _TlsConnection, "trust": trust}


class _Pool(BlockingConnectionPool):
    """A bounded number of connections."""

    async def drop_idle(self) -> None:
        """Let go those that nobody uses now. Nobody waits until they are closed, which over TLS needs an answer."""
        for connection in list(self._available_connections):
            await connection.disconnect(nowait=True)


class _CannotConnect(RedisError):
    """Something that is needed to connect is not there. The text is ours."""


class _Credentials(CredentialProvider):
    """The user and the password of the moment."""

    def __init__(self, user: str | None, password: Callable[[], str | None]) -> None:
        self._user = user
        self._password = password

    def get_credentials(self) -> tuple[Any, ...]:
        """The password, with the user before it where there is one; empty for none."""
        try:
            password = self._password()
        except (OSError, ValueError):
            text = "The password of Redis cannot be read: see frontdoor.redis_password_file"
        else:
            names = () if self._user is None else (self._user,)
            return () if password is None else (*names, password)
        raise _CannotConnect(text)

    async def get_credentials_async(self) -> tuple[Any, ...]:
        return self.get_credentials()


class _TlsConnection(SSLConnection):
    """A connection that is opened with what is trusted at that moment."""

    def __init__(self, *, trust: Trust, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = _Trusted(trust)


class _Trusted(RedisSSLContext):
    def __init__(self, trust: Trust) -> None:
        super().__init__()
        self._trust = trust

    def get(self) -> ssl.SSLContext:
        context = self._trust()
        if context is None:
            raise _CannotConnect("There is nothing to trust Redis by: see frontdoor.redis_ca_file")
        return context


# What is wrong --------------------------------------------------------------------------------------------------------


def _explained(problem: Exception) -> str:
    """What is wrong with Redis, and what helps; nothing of what it or the library said."""
    reasons = _reasons(problem)
    for reason in reasons:
        if isinstance(reason, _CannotConnect):
            return str(reason)
    for kind, text in _EXPLANATIONS:
        if any(isinstance(reason, kind) for reason in reasons):
            return text
    number = next((reason.errno for reason in reasons if isinstance(reason, OSError) and reason.errno), None)
    if number is not None:
        return f"Redis cannot be reached: {os.strerror(number)}. See whether it runs where frontdoor.redis_url says"
    if any(isinstance(reason, OSError) for reason in reasons):
        return "Redis cannot be reached. See whether it runs where frontdoor.redis_url says"
    if isinstance(problem, Disconnected):
        return "Redis ended the connection. See its log"
    return "Redis refused a command. See that it is of version 6 or newer, and its log"


def _reasons(problem: BaseException | None) -> list[BaseException]:
    """A problem, and what led to it."""
    reasons: list[BaseException] = []
    while problem is not None and problem not in reasons:
        reasons.append(problem)
        problem = problem.__cause__ or problem.__context__
    return reasons


_UNANSWERED: Final = f"Redis did not answer within {_ANSWER_SECONDS:g} s. See whether it is overloaded, or out of reach"
_DENIED: Final = (
    "Redis does not take the user and password: see frontdoor.redis_password_file, and the user in frontdoor.redis_url"
)
_NOT_PERMITTED: Final = (
    "The user of Redis may not do what is needed: allow it get, set, del, exists, pexpire, ping, publish and "
    "subscribe, on the keys and the channel of this proxy"
)
_EXPLANATIONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (AuthenticationError, _DENIED),
    (NoPermissionError, _NOT_PERMITTED),
    (OutOfMemoryError, "Redis is full: give it more memory"),
    (ReadOnlyError, "Redis is a replica, which takes no changes: have frontdoor.redis_url name the primary"),
    (BusyLoadingError, "Redis is still loading what it holds"),
    (AskError, "Redis is a cluster: have frontdoor.redis_url name one that is not"),
    (ClusterError, "Redis has lost the others it works with. See its log"),
    (ssl.SSLCertVerificationError, "The certificate of Redis is not trusted: see frontdoor.redis_ca_file"),
    (
        ssl.SSLError,
        "Redis does not speak TLS as expected: see whether frontdoor.redis_url begins with rediss:// rightly",
    ),
    (socket.gaierror, "The name of Redis is not known: see frontdoor.redis_url, and the name servers"),
    (Unanswered, _UNANSWERED),
    (TimeoutError, _UNANSWERED),
)
