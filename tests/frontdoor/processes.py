"""Processes of a proxy in miniature: what looks after sessions in each, by a clock that is moved by hand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from proxy.credentials.kinds import PlatformSessionCookie
from proxy.credentials.sources import Coming
from proxy.demo.simulator import Simulator
from proxy.frontdoor.kept import BrowserSession
from proxy.frontdoor.sealing import Sealing
from proxy.frontdoor.sessions import Sessions
from proxy.frontdoor.stores import SessionStore, StoreUnavailable
from proxy.upstream.platform import Platform
from tests.conftest import PASSWORD, until
from tests.demo.clock import Clock


Result = TypeVar("Result")

ENDPOINT: Final = "/notification/realtime"
OTHER_ENDPOINT: Final = "/cep/realtime"
IDLE: Final = 4500.0
ABSOLUTE: Final = 43_200.0
SECRET: Final = b"a secret of tests, which is none"
CURRENT_USER: Final = "/user/currentUser"


class Interrupted:
    """A store in front of another one, which can be away, and late: with what `before` names, until that event is set;
    what `after` names was done by then, and is told late. While it is `deaf`, word of changes is lost. `asked` is what
    it was asked, in order.
    """

    def __init__(self, store: SessionStore) -> None:
        self.store = store
        self.is_away = self.is_deaf = False
        self.before: dict[str, asyncio.Event] = {}
        self.after: dict[str, asyncio.Event] = {}
        self.asked: list[str] = []

    async def open(self, on_change: Callable[[str | None], None]) -> None:
        self.tell = on_change
        await self.store.open(lambda key: None if self.is_deaf else on_change(key))

    async def close(self) -> None:
        await self.store.close()

    async def add(self, key: str, sealed: bytes, *, seconds: float) -> None:
        await self._through("add", lambda: self.store.add(key, sealed, seconds=seconds))

    async def load(self, key: str) -> bytes | None:
        return await self._through("load", lambda: self.store.load(key))

    async def replace(self, key: str, sealed: bytes) -> bool:
        return await self._through("replace", lambda: self.store.replace(key, sealed))

    async def keep(self, key: str, *, seconds: float) -> bool:
        return await self._through("keep", lambda: self.store.keep(key, seconds=seconds))

    async def remove(self, key: str) -> bool:
        return await self._through("remove", lambda: self.store.remove(key))

    async def missing(self, keys: Collection[str]) -> set[str]:
        return await self._through("missing", lambda: self.store.missing(keys))

    async def claim(self, key: str, *, seconds: float) -> bool:
        return await self._through("claim", lambda: self.store.claim(key, seconds=seconds))

    async def _through(self, name: str, ask: Callable[[], Awaitable[Result]]) -> Result:
        self.asked.append(name)
        if (late := self.before.get(name)) is not None:
            await late.wait()
        if self.is_away:
            raise StoreUnavailable("The store of this test is away")
        told = await ask()
        if (late := self.after.get(name)) is not None:
            await late.wait()
        return told


@dataclass
class Process:
    """What one process does about sessions. `in_use` are those with open connections, of which `ended` have lost them;
    `ticks` counts how often it was looked at the time.
    """

    sessions: Sessions
    store: Interrupted
    upstream: Simulator
    in_use: set[str] = field(default_factory=set)
    ended: list[str] = field(default_factory=list)
    ticks: int = 0

    async def sign_in(self, *, instead_of: str | None = None) -> tuple[str, BrowserSession]:
        """A ticket, and the session that it stands for."""
        platform = self.sessions._platform()
        pair = await platform.log_in(tenant="t0815", user="service", password=PASSWORD, code=None)
        return await self.sessions.begin(pair, user="service", tenant="t0815", instead_of=instead_of)

    async def renew(self, session: BrowserSession) -> None:
        """Have the platform renew a session along with an answer."""
        pair = await self.sessions._platform().renewed(session.pair)
        assert pair != session.pair
        self.sessions.renewed_by_upstream(session.credential, pair.token, pair.xsrf_token)

    async def credential(self, ticket: str, endpoint: str = ENDPOINT) -> PlatformSessionCookie:
        """What a connection opens with, as the carriage asks for it. Raises NoCredential."""
        while True:
            try:
                return self.sessions.credential_of(ticket, endpoint)
            except Coming as coming:
                await coming.arrival.wait()

    async def until_asked(self, *names: str) -> None:
        """Wait until the store has been asked for all of this."""
        await until(lambda: {*names} <= {*self.store.asked})

    async def pass_ticks(self, times: int = 5) -> None:
        """Wait until it was looked at the time so often from now on, whatever comes of that."""
        seen = self.ticks
        await until(lambda: self.ticks >= seen + times)

    async def look(self, times: int = 2) -> None:
        """Wait until it was looked at the time so often from now on, and all is done that came of it."""
        await self.pass_ticks(times)
        await self.rest()

    async def rest(self) -> None:
        """Wait until nothing is under way."""
        await until(lambda: not self.sessions._tasks)

    def is_over(self, key: str) -> bool:
        """Whether its connections have ended."""
        return key in self.ended


@asynccontextmanager
async def process(
    upstream: Simulator, store: SessionStore, time: Clock, /, *, sealing: Sealing | None = None, **more: Any
) -> AsyncIterator[Process]:
    """A process that has begun; `time` is what both of its clocks show, unless there is `more` to it."""
    there: list[Process] = []

    def in_use() -> Collection[str]:
        if there:
            there[0].ticks += 1
            return there[0].in_use
        return ()

    def on_ended(keys: Collection[str]) -> None:
        there[0].ended += keys
        there[0].in_use -= set(keys)

    platform = Platform(upstream.url, tls=lambda: None)
    interrupted = Interrupted(store)
    options: dict[str, Any] = {
        "idle_seconds": IDLE,
        "absolute_seconds": ABSOLUTE,
        "clock": time,
        "unix_clock": time,
        "tick_seconds": 0.01,
    } | more
    sessions = Sessions(
        interrupted,
        sealing or Sealing(lambda: [SECRET]),
        lambda: platform,
        in_use=in_use,
        on_ended=on_ended,
        **options,
    )
    there.append(Process(sessions, interrupted, upstream))
    await sessions.start()
    try:
        yield there[0]
    finally:
        await sessions.stop()
        assert not sessions._tasks
