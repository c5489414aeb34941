"""The sessions of those who signed in: how long they last, how their tokens are renewed, and how they end.

        sign in                    a request, or an open connection, within the idle time
           |                          +-----+
           v                          v     |
        begun  ------------------->  there -+---> ended: signed out, idle, its absolute time is over,
                                      ^   |              or the platform ended it
                                      +---+
                       renewed: along with an answer of upstream,
                       or on our asking while a connection is open

1. What a session is lies in the store, sealed, by a key that is made of its ticket and does not give that away. What is
   held here is a copy: a second old at most when a connection opens by it, and made anew when somebody changes the
   session.
2. A session that has ended ends its connections in every process: each is told by the store, and looks for itself in
   case that it was not.
3. One process renews a session at a time. The others go on with what it got.
4. Where the store is away, nobody signs in or out, nothing new is opened, and what is open stays.
5. Whoever looks a session up while it is being looked up shares the answer. What is done about one afterwards goes by
   what is known of it then: nothing that was under way brings back what has ended, or an older pair.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from math import inf
from typing import Final, TypeVar

from proxy.credentials.guard import Guard
from proxy.credentials.guards import Guards
from proxy.credentials.kinds import PlatformSessionCookie, is_token
from proxy.credentials.sources import Coming, CoolingDown, NoCredential, NotNow, SignedOut
from proxy.frontdoor.kept import BrowserSession, opened
from proxy.frontdoor.sealing import Sealing
from proxy.frontdoor.stores import SessionStore, StoreUnavailable
from proxy.gate.identity import subject_of
from proxy.upstream.platform import Denied, Platform, PlatformSession, claims_of
from proxy.upstream.posts import UpstreamUnavailable


TICK_SECONDS: Final = 0.5
"""How often it is looked whose time is over."""

_FRESH_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 15.0
"""How often all sessions of open connections are looked for in the store, in case that word of an end was lost."""

_TOUCH_SECONDS: Final = 60.0
"""How often the idle time of a session begins anew at most."""

_CLAIM_SECONDS: Final = 15.0
"""How long a process has to renew a session: longer than the platform may take to answer; and less where tokens live
so shortly that the next attempt is due before.
"""

_OVERLAP_SECONDS: Final = 30.0
"""How long what was renewed counts on connections that were opened with it; the platform revokes it after a minute."""

_REMEMBERED_SECONDS: Final = 30.0
"""How long a session is known here that nobody uses."""

_AWAY_SECONDS: Final = 60.0
"""How often it is said that the store is away."""

_COOLDOWN_SECONDS: Final = 60.0
_TICKET_BYTES: Final = 32
_LEAST_SECONDS: Final = 0.001

_Told = TypeVar("_Told")

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Known:
    """What is known here of the session with one key; `session` is None where there is none. `ends` is in Unix time,
    all other times in monotonic seconds.
    """

    guards: Guards
    session: BrowserSession | None = None
    ends: float = inf
    used: float = -inf
    touched: float = -inf
    due: float = inf  # when to see about the next pair
    before: PlatformSession | None = None  # the pair that was renewed last, good until
    before_until: float = -inf
    looked: float = -inf  # when the store last told of it
    arrival: asyncio.Event | None = None  # while it is looked up
    has_changed: bool = False  # since it was looked up, or that began
    is_unseen: bool = False  # the store was away then
    is_unsaved: bool = False  # what is known here is newer than what the store has
    is_saving: bool = False
    is_renewing: bool = False
    is_doubted: bool = False  # upstream denied what it has


class Sessions:
    """The sessions of one front door.

    `platform` gives the way there is to the platform now. `in_use` tells the keys of the sessions that have open
    connections here, and `on_ended` is told the keys of those that have ended, and must have none. `clock` gives
    monotonic seconds, `unix_clock` Unix time.
    """

    def __init__(
        self,
        store: SessionStore,
        sealing: Sealing,
        platform: Callable[[], Platform],
        *,
        idle_seconds: float,
        absolute_seconds: float,
        in_use: Callable[[], Collection[str]],
        on_ended: Callable[[Collection[str]], None],
        clock: Callable[[], float],
        unix_clock: Callable[[], float],
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self._store = store
        self._sealing = sealing
        self._platform = platform
        self._idle = idle_seconds
        self.absolute_seconds: Final = absolute_seconds
        self._in_use = in_use
        self._on_ended = on_ended
        self._clock = clock
        self._unix_clock = unix_clock
        self._tick_seconds = tick_seconds
        self._sessions: dict[str, _Known] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_tick: asyncio.TimerHandle | None = None
        self._next_look = -inf
        self._is_looking = False
        self._next_word = -inf  # that the store is away

    # Life -------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to look after sessions. Raises StoreUnavailable for what will not pass by itself."""
        await self._store.open(self._changed)
        self._tick()

    async def stop(self) -> None:
        """End what is under way."""
        if self._next_tick is not None:
            self._next_tick.cancel()
        while tasks := tuple(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await self._store.close()

    def _run(self, work: Coroutine[object, object, None]) -> None:
        """Have something done in the background, which is owned here, and whose failure is told."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("A session could not be looked after by a fault of ours", exc_info=problem)

    async def _told(self, answer: Awaitable[_Told]) -> _Told:
        """What the store tells. Raises StoreUnavailable, which is said now and then while it lasts."""
        try:
            return await answer
        except StoreUnavailable as away:
            if (now := self._clock()) >= self._next_word:
                self._next_word = now + _AWAY_SECONDS
                log.warning("Sessions cannot be looked up or kept: %s. What is open stays, and nobody signs in", away)
            raise

    # Beginning and ending ---------------------------------------------------------------------------------------------

    async def begin(
        self, pair: PlatformSession, *, user: str, tenant: str, instead_of: str | None = None
    ) -> tuple[str, BrowserSession]:
        """A new session, and the ticket that stands for it. The one whose ticket it takes the place of ends before.

        Raises StoreUnavailable; then there is no new one, at the platform neither.
        """
        ticket = secrets.token_urlsafe(_TICKET_BYTES)
        key, now = subject_of(ticket), self._unix_clock()
        session = BrowserSession(
            key,
            user,
            tenant,
            pair,
            secrets.token_urlsafe(_TICKET_BYTES),
            began=now,
            renewed=now,
            upstream=self._platform().url,
        )
        try:
            if instead_of is not None:
                await self.end(instead_of)
            seconds = min(self._idle, self.absolute_seconds)
            await self._told(self._store.add(key, session.sealed(self._sealing), seconds=seconds))
        except StoreUnavailable:
            await self._log_out(session)
            raise
        known = self._known(key)
        known.looked = known.used = known.touched = self._clock()
        self._put(known, session)
        return ticket, session

    async def found(self, ticket: str) -> BrowserSession | None:
        """The session that a ticket stands for. Raises StoreUnavailable."""
        key = subject_of(ticket)
        known = self._known(key)
        if not self._is_fresh(known):
            await self._look_up(key, known).wait()
        if known.is_unseen:
            raise StoreUnavailable("Sessions cannot be looked up now")
        self._use(known)
        return known.session

    async def end(self, ticket: str) -> None:
        """End a session, here and in every process, and at the platform. Raises StoreUnavailable."""
        session = await self.found(ticket)
        if session is None:
            return
        await self._told(self._store.remove(session.key))
        known = self._known(session.key)
        latest = known.session or session  # it may have been renewed meanwhile
        self._ended({session.key})
        await self._log_out(latest)

    async def _log_out(self, session: BrowserSession) -> None:
        try:
            await self._platform().log_out(session.pair)
        except Denied as denied:
            if denied.kind != "ended":
                log.warning("A platform session was not logged out: %s", denied)
        except UpstreamUnavailable as gone:
            log.warning("A platform session was not logged out, and lives on until it ends by itself: %s", gone)

    def _ended(self, keys: Collection[str]) -> None:
        """Know of no session by these any more, and have no connection by them."""
        ended = [self._known(key) for key in keys]
        for known in ended:
            if known.is_unsaved and known.session is not None:  # so nobody else can log it out
                self._run(self._log_out(known.session))
            known.session = known.before = None
            known.is_unsaved = known.is_doubted = known.is_unseen = False
            known.looked = self._clock()
            known.has_changed = known.arrival is not None  # what is on its way may be older
        self._on_ended(keys)
        for known in ended:
            known.guards.renew()

    # What the source asks ---------------------------------------------------------------------------------------------

    def credential_of(self, ticket: str, endpoint: str) -> PlatformSessionCookie:
        """What the session with this ticket has for upstream.

        Raises NoCredential, and as kinds of it NotNow, Coming, and CoolingDown where upstream denied it.
        """
        key = subject_of(ticket)
        known = self._known(key)
        if not self._is_fresh(known):
            raise Coming(self._look_up(key, known))
        if known.is_unseen:
            raise NotNow("Sessions cannot be looked up now: try again")
        self._use(known)
        if known.session is None:
            raise _nobody()
        _check_rest(known, endpoint)
        return known.session.credential

    def recheck(self, credential: PlatformSessionCookie, endpoint: str) -> None:
        """Whether a credential may be offered again, on the connection that it was got for. Raises NoCredential."""
        known = self._sessions.get(credential.owner)
        if known is None or known.session is None:
            raise _nobody()
        is_before = known.before is not None and known.before.token == credential.token
        if known.session.pair.token != credential.token and not (is_before and self._clock() < known.before_until):
            raise NoCredential("The session was renewed: connect again")
        _check_rest(known, endpoint)

    def guard(self, credential: PlatformSessionCookie, endpoint: str) -> Guard | None:
        """What stands between a session and an endpoint: what upstream denies to it is checked, and rests there."""
        known = self._by_pair(credential)
        return None if known is None else known.guards.at(endpoint)

    def renewed_by_upstream(self, credential: PlatformSessionCookie, token: str, xsrf_token: str | None) -> None:
        """Go on with another pair, which came along with an answer to a client."""
        known = self._by_pair(credential)
        if known is None or known.session is None or not is_token(token) or token == credential.token:
            return
        if xsrf_token is None or not is_token(xsrf_token):
            xsrf_token = claims_of(token).xsrf_token or credential.xsrf_token
        self._renewed(known, known.session, PlatformSession(token, xsrf_token))
        self._run(self._save(known))

    def doubt(self, credential: PlatformSessionCookie) -> None:
        """Upstream denied what a session has: see whether it is good still."""
        if (known := self._by_pair(credential)) is not None:
            self._doubt(known)

    # Knowing ----------------------------------------------------------------------------------------------------------

    def _known(self, key: str) -> _Known:
        known = self._sessions.get(key)
        if known is None:
            guards = Guards(_COOLDOWN_SECONDS, self._clock, lambda _: self._doubt(made))
            known = made = self._sessions[key] = _Known(guards)
        return known

    def _by_pair(self, credential: PlatformSessionCookie) -> _Known | None:
        """What is known of whose credential this is, unless the session goes on with another pair by now."""
        known = self._sessions.get(credential.owner)
        if known is None or known.session is None or known.session.pair.token != credential.token:
            return None
        return known

    def _is_fresh(self, known: _Known) -> bool:
        """Whether a connection may open by what is known."""
        is_ours = known.session is None or self._is_of_upstream(known.session)
        return is_ours and self._clock() - known.looked <= _FRESH_SECONDS

    def _is_of_upstream(self, session: BrowserSession) -> bool:
        """Whether a session is one at the upstream that there is now."""
        return session.upstream == self._platform().url

    def _look_up(self, key: str, known: _Known) -> asyncio.Event:
        """Have it seen what the store has by this key; what is returned is set when that is done."""
        if known.arrival is None:
            known.arrival = asyncio.Event()
            self._run(self._looked_up(key, known, known.arrival))
        return known.arrival

    async def _looked_up(self, key: str, known: _Known, arrival: asyncio.Event) -> None:
        sealed = None
        try:
            known.has_changed = True
            while known.has_changed:
                known.has_changed = False
                sealed = await self._told(self._store.load(key))
            known.is_unseen = False
        except StoreUnavailable:
            known.is_unseen = True
        finally:
            known.arrival, known.looked = None, self._clock()
            arrival.set()
        if not known.is_unseen:
            session = None if sealed is None else opened(key, sealed, self._sealing)
            self._learn(key, known, session if session is not None and self._is_of_upstream(session) else None)
        if (session := known.session) is not None and self._unix_clock() >= known.ends:
            self._ended({key})
            self._run(self._end_for_age(session))

    def _learn(self, key: str, known: _Known, session: BrowserSession | None) -> None:
        """Know a session as the store has it, or that it has none."""
        if session is None:
            if known.session is not None:
                if self._unix_clock() >= known.ends:  # else whoever ended it has done so
                    self._run(self._log_out(known.session))
                self._ended({key})
            return
        if not known.is_unsaved:  # else what is known here is newer
            self._put(known, session)

    def _put(self, known: _Known, session: BrowserSession) -> None:
        """Go on with a session. What was known of another pair does not hold for this one."""
        before, known.session = known.session, session
        if before is not None and before.pair == session.pair:
            return
        now, unix_now = self._clock(), self._unix_clock()
        known.ends = min(session.began + self.absolute_seconds, session.token_ends)
        known.due = now + max(session.renewal_due - unix_now, min(session.renewal_interval, self._tick_seconds))
        known.is_doubted = False
        if before is not None:
            known.before, known.before_until = before.pair, now + _OVERLAP_SECONDS
            known.guards.follow()

    def _renewed(self, known: _Known, session: BrowserSession, pair: PlatformSession) -> None:
        """Have a session go on with another pair, which is to be kept."""
        self._put(known, replace(session, pair=pair, renewed=self._unix_clock()))
        known.is_unsaved = True

    # Keeping ----------------------------------------------------------------------------------------------------------

    def _use(self, known: _Known) -> None:
        """Somebody uses a session: its idle time begins anew, now and then."""
        known.used = now = self._clock()
        session = known.session
        if session is None or now - known.touched < min(_TOUCH_SECONDS, self._idle / 4):
            return
        known.touched = now
        self._run(self._touch(known, session))

    async def _touch(self, known: _Known, session: BrowserSession) -> None:
        left = session.began + self.absolute_seconds - self._unix_clock()
        seconds = max(_LEAST_SECONDS, min(self._idle, left))
        try:
            is_there = await self._told(self._store.keep(session.key, seconds=seconds))
        except StoreUnavailable:  # the next time will do
            return
        if not is_there and known.session is not None:
            self._ended({session.key})

    async def _save(self, known: _Known) -> None:
        """Have the store keep what is newer here. Where it is away, that is done again."""
        if known.is_saving:
            return
        known.is_saving = True
        try:
            while known.is_unsaved and (session := known.session) is not None:
                if not await self._told(self._store.replace(session.key, session.sealed(self._sealing))):
                    self._ended({session.key})
                elif known.session is session:  # else there is a newer one by now
                    known.is_unsaved = False
        except StoreUnavailable:
            pass
        finally:
            known.is_saving = False

    def _changed(self, key: str | None) -> None:
        """The store says that a session changed, or that any may have."""
        if key is None:
            self._next_look = -inf
            for each in self._sessions.values():
                each.has_changed = True
        elif (known := self._sessions.get(key)) is not None:
            known.has_changed = True
            if known.session is not None:
                self._look_up(key, known)

    # Time -------------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """See whose time is over, and who needs a new pair."""
        self._next_tick = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)
        in_use = set(self._in_use())
        for key in in_use - self._sessions.keys():
            self._look_up(key, self._known(key))
        for key, known in tuple(self._sessions.items()):
            if known.looked > -inf:
                self._look_after(key, known, is_in_use=key in in_use)
        if in_use and not self._is_looking and self._clock() >= self._next_look:
            self._next_look = self._clock() + min(_LOOK_SECONDS, self._idle / 4)
            self._run(self._look_for(in_use))

    def _look_after(self, key: str, known: _Known, *, is_in_use: bool) -> None:
        now, session = self._clock(), known.session
        if session is None:
            if is_in_use and not known.is_unseen:
                self._on_ended({key})  # which was opening when it ended
            elif not is_in_use and now - known.looked > _FRESH_SECONDS:
                self._forget(key)
        elif self._unix_clock() >= known.ends:
            self._look_up(key, known)  # since it may have been renewed
        elif known.is_unsaved:
            self._run(self._save(known))
        elif known.is_doubted or (is_in_use and now >= known.due):
            self._renew_soon(known)
        elif not is_in_use and now - known.used > _REMEMBERED_SECONDS:
            self._forget(key)

    def _forget(self, key: str) -> None:
        if self._sessions[key].arrival is None:  # else somebody waits for it
            del self._sessions[key]

    async def _end_for_age(self, session: BrowserSession) -> None:
        log.info("A session ended: it was too old, or its token could not be renewed in time")
        await self._remove(session)
        await self._log_out(session)

    async def _remove(self, session: BrowserSession) -> None:
        """Take a session out of the store. Where that is away, it ends there by itself."""
        with contextlib.suppress(StoreUnavailable):
            await self._told(self._store.remove(session.key))

    async def _look_for(self, in_use: set[str]) -> None:
        """See which sessions of open connections have ended elsewhere, and keep the others from ending idle."""
        self._is_looking = True
        try:
            if gone := await self._told(self._store.missing(in_use)):
                self._ended(gone)
            for key in in_use - gone:
                known = self._known(key)
                if known.session is None or known.has_changed:
                    await self._look_up(key, known).wait()
                self._use(known)
        except StoreUnavailable:  # it is looked again
            pass
        finally:
            self._is_looking = False

    # Renewal ----------------------------------------------------------------------------------------------------------

    def _doubt(self, known: _Known) -> None:
        known.is_doubted = True
        self._renew_soon(known)

    def _renew_soon(self, known: _Known) -> None:
        if known.session is not None and not known.is_renewing:
            known.is_renewing = True
            self._run(self._renew(known, known.session))

    async def _renew(self, known: _Known, session: BrowserSession) -> None:
        """Have the platform renew a session, unless another process does; in doubt, see whether it is good still."""
        known.due = self._clock() + session.renewal_interval
        is_doubted, known.is_doubted = known.is_doubted, False
        seconds = min(_CLAIM_SECONDS, session.renewal_interval)
        try:
            if is_doubted or await self._told(self._store.claim(session.key, seconds=seconds)):
                pair = await self._platform().renewed(session.pair)
                if pair != session.pair and _has(known, session.pair):
                    self._renewed(known, session, pair)
                    await self._save(known)
        except Denied as denied:
            if denied.kind == "ended":
                await self._denied(known, session)
            else:
                log.warning("The session of somebody who is signed in could not be renewed: %s", denied)
        except UpstreamUnavailable as gone:
            log.info("The session of somebody who is signed in could not be renewed now: %s", gone)
        except StoreUnavailable:  # it is tried again
            pass
        finally:
            known.is_renewing = False

    async def _denied(self, known: _Known, session: BrowserSession) -> None:
        """End a session whose pair the platform knows no more, unless it goes on with another by now."""
        known.has_changed = True
        await self._look_up(session.key, known).wait()
        if _has(known, session.pair):
            log.info("The platform ended the session of somebody who is signed in")
            self._ended({session.key})
            await self._remove(session)


def _has(known: _Known, pair: PlatformSession) -> bool:
    """Whether a session goes on with this pair."""
    return known.session is not None and known.session.pair == pair


def _check_rest(known: _Known, endpoint: str) -> None:
    if seconds := known.guards.resting_seconds(endpoint):
        raise CoolingDown(seconds, "Upstream does not accept this session there; it is not offered for a while")


def _nobody() -> NoCredential:
    return SignedOut("Nobody is signed in by this session any more: sign in again")
