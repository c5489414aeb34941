"""The service users that the platform gives to a microservice: one in each tenant that has subscribed to it.

1. One poller asks for all of them, whichever credentials they are for; each credential sees its own tenant only.
2. The list is what the platform said last. Whoever is not on it any more is revoked, until it is again; while upstream
   cannot be asked, nobody is. A list that is none is not believed.
3. A bootstrap user that upstream denied rests for the cool-down, or until its values change.
4. A service user that upstream denied may have a new password, so the platform is asked at once.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Unpack

from proxy.credentials.fetched import Wait, event_or_seconds, pause_seconds
from proxy.credentials.kinds import Basic, Credential
from proxy.credentials.sources import Coming, CoolingDown, NoCredential, SourceOptions
from proxy.credentials.stored import (
    BrokenCredential,
    Fingerprint,
    RevokedCredential,
    Store,
    StoredSource,
    Watched,
    credential_from,
)
from proxy.head import Head
from proxy.upstream.platform import Denied, Platform, ServiceUser
from proxy.upstream.posts import UpstreamUnavailable


log = logging.getLogger(__name__)


class Subscriptions:
    """The service users by tenant, as the platform tells them to the bootstrap user in `store`; asked every
    `poll_seconds` between `start` and `stop`.

    `called` names the bootstrap user in the log. `clock` gives monotonic seconds, `wait` waits by it, and `chance`
    gives numbers from 0 to 1. `on_load` is told of every time that there was no list: who is on it is told by sources.
    """

    def __init__(
        self,
        store: Store,
        platform: Platform,
        *,
        called: str,
        poll_seconds: float,
        cooldown_seconds: float,
        clock: Callable[[], float],
        on_load: Callable[[bool], None],
        wait: Wait = event_or_seconds,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._platform = platform
        self._called = called
        self._interval = poll_seconds
        self._cooldown = cooldown_seconds
        self._clock = clock
        self._on_load = on_load
        self._wait = wait
        self._chance = chance
        self._values = Watched(store.fingerprint, lambda: bootstrap_from(store.read()), self._complain)
        self._bootstrap: Basic | None = None
        self._users: Mapping[str, ServiceUser] | None = None
        self._due_at = self._resting_until = clock()
        self._failures = 0
        self._problem = ""  # why there was no list the last time
        self._is_busy = self._is_over = False
        self._wanted = asyncio.Event()
        self._arrival = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to ask; this does not wait for an answer."""
        self._is_over = False
        self._wanted.set()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Ask no more. Of no effect before `start`."""
        self._is_over = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    @property
    def users(self) -> Mapping[str, ServiceUser] | None:
        """Who the microservice is, by tenant; None before the platform has told."""
        return self._users

    def see_about(self) -> None:
        """Ask as soon as may be: someone on the list seems to be denied."""
        self._due_at = min(self._due_at, max(self._clock(), self._resting_until))
        self._wanted.set()

    def look(self) -> None:
        """Look at the bootstrap values, and ask at once when they have changed."""
        bootstrap = self._values.look()
        if bootstrap is not None and bootstrap != self._bootstrap:
            self._bootstrap = bootstrap
            self._problem = ""
            self._resting_until = self._due_at = self._clock()
            self._wanted.set()

    @property
    def complaint(self) -> str:
        """What is wrong with the values or was with the last list, as the log tells it; empty while all is well."""
        return self._values.complaint or self._problem

    def secrets(self) -> tuple[str, ...]:
        """What this holds of the bootstrap user, in each form that goes up."""
        bootstrap = self._bootstrap
        return () if bootstrap is None else (bootstrap.password, *bootstrap.authn().values())

    def awaited(self) -> asyncio.Event | None:
        """What is set when the platform has been asked, if it is being asked now, or about to be for the first time."""
        is_at_it = self._task is None or self._is_busy or self._wanted.is_set()
        return self._arrival if is_at_it and not self._is_over else None

    def absence(self) -> NoCredential:
        """Why there is no list yet."""
        if (arrival := self.awaited()) is not None:
            return Coming(arrival)
        text = "Upstream has not told this proxy yet who it is in this tenant"
        seconds = self._resting_until - self._clock()
        return CoolingDown(seconds, text) if seconds > 0 else NoCredential(text)

    async def _keep(self) -> None:
        try:
            while True:
                self.look()
                self._wanted.clear()
                if self._clock() >= self._due_at:
                    self._is_busy = True
                    await self._ask()
                    self._is_busy = False
                    if self._wanted.is_set():  # somebody knows better than what was asked before
                        self._due_at = max(self._clock(), self._resting_until)
                self._announce()
                await self._wait(self._wanted, max(0.0, self._due_at - self._clock()))
        finally:
            self._is_busy = False
            self._announce()

    def _announce(self) -> None:
        """Let those ask again who wait."""
        arrival, self._arrival = self._arrival, asyncio.Event()
        arrival.set()

    async def _ask(self) -> None:
        bootstrap = self._bootstrap
        self._due_at = self._clock() + self._interval
        if bootstrap is None:
            return
        try:
            users = await self._platform.service_users(
                tenant=bootstrap.tenant or "", user=bootstrap.user, password=bootstrap.password
            )
        except Denied as denied:
            if bootstrap is self._bootstrap:  # what was stored meanwhile is not denied
                self._failed(logging.ERROR, str(denied), rest=self._cooldown)
        except UpstreamUnavailable as gone:
            self._failed(logging.WARNING, str(gone))
        except Exception:  # without this task nothing would ever come
            log.exception("The subscriptions of %s could not be asked for", self._called)
            self._failed(logging.WARNING, "A fault of this proxy")
        else:
            self._take(users)

    def _take(self, users: Mapping[str, ServiceUser]) -> None:
        if self._users is None or self._problem:
            log.info("The subscriptions of %s are known: %d tenants", self._called, len(users))
        self._users = users
        self._failures = 0
        self._problem = ""
        self._due_at = self._clock() + self._interval

    def _failed(self, level: int, problem: str, *, rest: float = 0.0) -> None:
        pause = pause_seconds(self._failures, self._chance())
        self._failures += 1
        self._resting_until = self._clock() + rest
        self._due_at = self._clock() + (rest or min(pause, self._interval))
        self._tell(level, problem)

    def _tell(self, level: int, problem: str) -> None:
        """Log and count what is wrong; the log is told once."""
        self._on_load(False)  # noqa: FBT003 - the callback's one argument
        if problem != self._problem:
            remedy = "Handshakes are refused for now" if self._users is None else "The last ones stay"
            log.log(level, "The subscriptions of %s are not to be had: %s. %s", self._called, problem, remedy)
        self._problem = problem

    def _complain(self, problem: BrokenCredential) -> None:
        remedy = "There is none until they are mended" if self._bootstrap is None else "The last good ones stay"
        log.error("The values of the bootstrap user %s are broken: %s. %s", self._called, problem, remedy)
        self._on_load(False)  # noqa: FBT003 - see above


def bootstrap_from(values: Mapping[str, str]) -> Basic:
    """Make the bootstrap user that the values describe. Raises BrokenCredential."""
    bootstrap = credential_from(values)
    if not isinstance(bootstrap, Basic) or bootstrap.tenant is None or bootstrap.tfa is not None:
        raise BrokenCredential("expected tenant, user and password of the bootstrap user, and nothing else")
    return bootstrap


class _InTenant:
    """What is stored of the service user of one tenant."""

    def __init__(self, subscriptions: Subscriptions, tenant: str) -> None:
        self._subscriptions = subscriptions
        self._tenant = tenant

    def fingerprint(self) -> Fingerprint:
        return (self._user(),)

    def read(self) -> Mapping[str, str]:
        """Raises RevokedCredential."""
        user = self._user()
        if user is None:
            raise RevokedCredential(
                f"the tenant {self._tenant} has not subscribed to this microservice, or not any more"
            )
        return {"tenant": self._tenant, "user": user.name, "password": user.password}

    def _user(self) -> ServiceUser | None:
        return (self._subscriptions.users or {}).get(self._tenant)


class SubscriptionSource(StoredSource):
    """The service user of one tenant, for all clients; the rest is as `StoredSource` has it."""

    def __init__(self, subscriptions: Subscriptions, tenant: str, **options: Unpack[SourceOptions]) -> None:
        super().__init__(_InTenant(subscriptions, tenant), kind="subscriptions", **options)
        self._subscriptions = subscriptions

    def obtain(self, head: Head, endpoint: str) -> Credential:
        """Raises NoCredential, and Coming and CoolingDown as kinds of it."""
        try:
            credential = super().obtain(head, endpoint)
        except CoolingDown:
            if (arrival := self._subscriptions.awaited()) is not None:
                raise Coming(arrival) from None
            raise
        except NoCredential:
            if self._subscriptions.users is None:
                raise self._subscriptions.absence() from None
            if self.is_revoked:
                raise NoCredential("This tenant has not subscribed to the microservice of this proxy") from None
            raise
        return credential

    @property
    def complaint(self) -> str:
        return super().complaint or self._subscriptions.complaint

    def secrets(self) -> tuple[str, ...]:
        return (*super().secrets(), *self._subscriptions.secrets())

    def _look(self) -> None:
        self._subscriptions.look()
        if self._subscriptions.users is not None:
            super()._look()

    def _tell_denied(self, endpoint: str) -> None:
        super()._tell_denied(endpoint)
        self._subscriptions.see_about()
