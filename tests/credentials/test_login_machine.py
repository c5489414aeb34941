"""The life of a login in any order: what is stored, time, restarts, denials, and an upstream that comes and goes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.credentials.fetched import FetchDenied
from proxy.credentials.kinds import PlatformSessionCookie
from proxy.credentials.login import LoginSource
from proxy.credentials.sources import NoCredential
from proxy.demo.faults import Fault
from proxy.demo.simulator import SessionRules, Simulator
from proxy.upstream.platform import Denied, Platform, PlatformSession
from tests.conftest import PASSWORD
from tests.credentials.clock import Clock
from tests.credentials.test_login import COOLDOWN, HEAD, US, Keeper, Place, cookies_of


ENDPOINTS: Final = ("/notification/realtime", "/cep/realtime", "/notification/operations")
PATHS: Final = ("/tenant/oauth", "/user/currentUser", "/user/logout")
PASSWORDS: Final = (PASSWORD, "second", "third")
GRACE: Final = 60.0  # for which the platform takes a token that it renewed


class Watched(Platform):
    """Takes note of each password that upstream denied, and does not let one up again that should rest."""

    def __init__(self, url: str, clock: Clock) -> None:
        super().__init__(url, tls=lambda: None)
        self.clock = clock
        self.denied: dict[str, float] = {}
        self.is_broken = False

    async def log_in(self, *, tenant: str | None, user: str, password: str, code: str | None) -> PlatformSession:
        self.is_broken |= self.clock.now < self.denied.get(password, -COOLDOWN) + COOLDOWN
        if self.is_broken:
            raise FetchDenied("It should have rested", is_final=True)
        try:
            return await super().log_in(tenant=tenant, user=user, password=password, code=code)
        except Denied:
            self.denied = {password: self.clock.now}
            raise


class Life(RuleBasedStateMachine):
    """What is checked after each step is what `proxy.credentials.login` promises."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.keeper: Keeper | None = Keeper()
        self.source: LoginSource | None = None
        self.accepted_at: dict[str, float] = {}  # by token
        self.ended_unheard: set[str] = set()  # tokens that somebody else ended, and no client was denied since

    def do(self, act: Callable[[], Awaitable[object]]) -> None:
        """Do it within the loop, and let what follows from it happen."""

        async def run() -> None:
            await act()
            if self.source is not None:
                self.source.is_usable()
                await self.clock.settle()

        self.loop.run_until_complete(run())

    @initialize(
        rules=st.sampled_from(
            [
                SessionRules(renewal_seconds=86_400.0, validates_user_agent=True),
                SessionRules(renewal_seconds=2700.0, token_seconds=5400.0, absolute_seconds=28_800.0),
                SessionRules(),
                SessionRules(token_seconds=300.0, parallel=1),
            ]
        ),
        is_kept=st.booleans(),
    )
    def begin(self, rules: SessionRules, is_kept: bool) -> None:  # noqa: FBT001 - as it is drawn
        self.upstream = Simulator(password=PASSWORD, rules=rules, clock=self.clock.unix)
        self.keeper = Keeper() if is_kept else None
        self.loop.run_until_complete(self.upstream.start())
        self.platform = Watched(self.upstream.url, self.clock)
        self.place = Place(self.upstream, self.clock, self.keeper)
        self.do(self.start)

    async def start(self) -> None:
        self.source = self.place.source(platform=self.platform, chance=lambda: 0.5)
        await self.source.start()

    def teardown(self) -> None:
        async def end() -> None:
            if self.source is not None:
                await self.source.stop()
                await self.upstream.stop()

        self.loop.run_until_complete(end())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def offered(self, endpoint: str = ENDPOINTS[0]) -> PlatformSessionCookie | None:
        assert self.source is not None
        try:
            credential = self.source.obtain(HEAD, endpoint)
        except NoCredential:
            return None
        assert isinstance(credential, PlatformSessionCookie)
        return credential

    def is_beyond_all_renewal(self, credential: PlatformSessionCookie) -> bool:
        """Whether its absolute timeout is over, of which no token tells."""
        logins = self.upstream.logins
        session, _ = logins._by_token[credential.token]
        return self.clock.unix() >= session.started + logins.rules.absolute_seconds

    # What happens -----------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 20.0, 61.0, 300.0]), lives=st.sampled_from([0.0, 0.3, 0.6, 1.1]))
    def time_passes(self, seconds: float, lives: float) -> None:
        if not self.upstream.faults:  # else it would be asked a thousand times
            seconds += lives * self.upstream.logins.rules.token_seconds
        self.do(lambda: self.clock.move(seconds))

    @rule(password=st.sampled_from(PASSWORDS))
    def password_is_changed_and_stored(self, password: str) -> None:
        self.place.change_password(password)
        self.platform.denied.clear()
        self.do(self.clock.settle)

    @rule()
    def wrong_password_is_stored(self) -> None:
        self.place.store.values["password"] += "?"
        self.do(self.clock.settle)

    @rule(password=st.sampled_from(PASSWORDS))
    def password_is_changed_upstream_alone(self, password: str) -> None:
        self.upstream.accounts = replace(self.upstream.accounts, password=password)

    @rule()
    def restart(self) -> None:
        async def act() -> None:
            assert self.source is not None
            await self.source.stop()
            self.platform.denied.clear()  # it is not remembered for so long
            await self.start()

        if not self.upstream.faults:  # what cannot be logged out lives on
            self.do(act)

    @rule()
    def somebody_ends_all_sessions(self) -> None:
        self.upstream.logins.terminate()
        self.ended_unheard |= set(self.accepted_at)

    @rule(endpoint=st.sampled_from(ENDPOINTS))
    def client_is_denied(self, endpoint: str) -> None:
        async def act() -> None:
            credential = self.offered(endpoint)
            if credential is None:
                return
            assert self.source is not None
            guard = self.source.guard(credential, endpoint)
            assert guard is not None
            guard.denied()

        self.do(act)

    @rule()
    def client_posts(self) -> None:
        async def act() -> None:
            credential = self.offered()
            if credential is None or not self.place.is_accepted(credential):
                return
            cookies = await cookies_of(self.place, credential)
            if "authorization" in cookies:
                assert self.source is not None
                self.source.renewed_by_upstream(credential, cookies["authorization"], cookies.get("XSRF-TOKEN"))

        self.do(act)

    @rule(path=st.sampled_from(PATHS), status=st.sampled_from([500, 503]))
    def upstream_fails(self, path: str, status: int) -> None:
        self.upstream.faults[path] = Fault(status=status)

    @rule()
    def upstream_recovers(self) -> None:
        self.upstream.faults.clear()

    # What holds -------------------------------------------------------------------------------------------------------

    @invariant()
    def there_is_one_session_at_most(self) -> None:
        if self.source is not None:
            assert self.upstream.logins.most(US) <= 1

    @invariant()
    def a_password_that_was_denied_rests(self) -> None:
        if self.source is not None:
            assert not self.platform.is_broken

    @invariant()
    def what_is_offered_is_accepted_or_was_a_minute_ago(self) -> None:
        if self.source is None or (credential := self.offered()) is None:
            return
        if self.place.is_accepted(credential):
            self.accepted_at[credential.token] = self.clock.now
            self.ended_unheard.discard(credential.token)
        elif credential.token not in self.ended_unheard and not self.is_beyond_all_renewal(credential):
            assert self.clock.now - self.accepted_at.get(credential.token, 0.0) <= GRACE


TestAnyOrder = pytest.mark.logs_errors(Life.TestCase)
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=25)
