"""Credentials that have to be fetched: what is here is given out at once, and one task of each source sees to the rest.

                     it comes
     coming -----------------------------> here: given out, renewed when it is time
       ^                                     |
       |  the time is over, or what it is    |  upstream denied it, and it is good no longer;
       |  fetched with has changed           |  or its time ran out
       +---------- without <-----------------+
                 cooling down after a denial, backing off while upstream is away

1. Nobody who asks ever waits here, and nobody who asks fetches: there is one fetch at a time, since there is one task.
2. What is here is given out until its time is over, or it is known to be good no longer, whatever becomes of fetching.
3. Upstream that is away is asked again after a pause that doubles, with jitter, up to a minute. A denial rests for the
   cool-down, twice as long after each further one, up to eight times; what it is fetched with counts as new when it
   changes.
4. A value that upstream denied at some endpoint is checked at once. If it is good still, the denial was about that
   endpoint, where it cools. Else it is replaced, once in a cool-down at most.
"""

import asyncio
import contextlib
import logging
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NotRequired, Unpack

from proxy.credentials.guard import Guard
from proxy.credentials.guards import Guards
from proxy.credentials.kinds import Credential
from proxy.credentials.sources import Coming, CoolingDown, NoCredential, SourceOptions
from proxy.credentials.stored import BrokenCredential, RevokedCredential, Watched
from proxy.head import Head
from proxy.upstream.posts import UpstreamUnavailable


_PAUSE_SECONDS: Final = (1.0, 60.0)
"""The first pause while upstream is away, and the longest."""

_LONGEST_REST: Final = 8
"""How many cool-downs a denial that repeats itself rests at most."""

_OVERLAP_SECONDS: Final = 30.0
"""How long whoever opened a connection may shake hands on it with what was renewed meanwhile, maybe by that very
opening. The platform revokes a session's token a minute after its renewal.
"""

_LEAST_SECONDS: Final = 1.0
"""Nothing is fetched again sooner because of its time alone."""

LEAVING_SECONDS: Final = 2.0
"""How long the task of a source may take to end what it is at, and to say goodbye."""

Wait = Callable[[asyncio.Event, float], Awaitable[None]]
"""Waits for an event, but no longer than so many seconds, which may be infinite."""

log = logging.getLogger(__name__)


class FetchDenied(Exception):
    """Who gives credentials out said no. The text says why, and what helps; it quotes nothing.

    `is_final` tells that it is of no use to ask again before what it was asked with has changed.
    """

    def __init__(self, text: str, *, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_final = is_final


class FetchUnanswered(UpstreamUnavailable):
    """Upstream may have given out a credential that did not arrive: it is not asked again before the cool-down."""


class NotYet(Exception):
    """Nothing can be fetched for so many seconds, which is nobody's fault."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not within {seconds:g} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Fetched:
    """A credential, the seconds after which to see about it again, and those for which it is good at most."""

    credential: Credential
    again_seconds: float
    good_seconds: float = math.inf


async def event_or_seconds(event: asyncio.Event, seconds: float) -> None:
    """Wait as `Wait` says."""
    # Not `wait_for`, which forgets that it was cancelled when the event comes at the same time.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if math.isinf(seconds) else seconds):
            await event.wait()


class FetchingOptions(SourceOptions):
    """What sources are told that fetch: `wait` waits by `clock`, `chance` gives numbers from 0 to 1, and their task may
    take `leaving_seconds` to end.
    """

    wait: NotRequired[Wait]
    chance: NotRequired[Callable[[], float]]
    leaving_seconds: NotRequired[float]


def pause_seconds(failures: int, chance: float) -> float:
    """How long to wait while upstream is away, after so many failures: twice as long each time, with jitter."""
    first, longest = _PAUSE_SECONDS
    return min(first * 2.0 ** min(failures, 10), longest) * (1 + chance) / 2


class FetchedSource(ABC):
    """One credential for all clients that has to be fetched, and is so between `start` and `stop`; `kind` is what
    metrics call the source.

    Subclasses say what it is fetched with (`fingerprint`, `reread`), and how (`renewed`, `fetch`, `tend`, `leave`).
    """

    is_clients_own: Final = False

    def __init__(self, *, kind: str, **options: Unpack[FetchingOptions]) -> None:
        self.name: Final = kind
        self.is_revoked = False
        self.called: Final = options["credential"]
        self._cooldown = options["cooldown_seconds"]
        self._clock = options["clock"]
        self._on_load = options["on_load"]
        self._wait = options.get("wait", event_or_seconds)
        self._chance = options.get("chance", random.random)
        self._leaving_seconds = options.get("leaving_seconds", LEAVING_SECONDS)
        self._guards = Guards(self._cooldown, self._clock, self._doubt)
        self._values = Watched(self.fingerprint, self.reread, self._complain_of_values)
        self._can_fetch = False  # whether there is something to fetch with
        self._has_changed = False  # whether that is another since the last fetch was begun
        self._credential: Credential | None = None
        self._good_until = -math.inf
        self._before: Credential | None = None  # what was renewed last
        self._before_until = -math.inf
        self._due_at = -math.inf
        self._resting_until = -math.inf
        self._doubted: set[str] = set()  # endpoints that denied the credential, which is not checked yet
        self._doubted_until = -math.inf  # before that, none is checked
        self._denials = self._failures = 0
        self._problem = self._complaint = ""
        self._is_busy = self._is_leaving = self._is_retired = False
        self._wanted = asyncio.Event()
        self._arrival = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # For subclasses to fill in ----------------------------------------------------------------------------------------

    @abstractmethod
    def fingerprint(self) -> object:
        """What changes when that does which the credential is fetched with. Asked at each use, so it must be cheap."""

    @abstractmethod
    def reread(self) -> bool:
        """Take over what the credential is fetched with; returns whether another one is to be fetched for it.

        Called when the fingerprint has changed. Raises BrokenCredential; what was good last then stays.
        """

    async def renewed(self, credential: Credential) -> Fetched | None:  # noqa: ARG002 - see below
        """Whether the credential is good still: itself, or what takes its place; None where a fresh one has to be
        fetched. Raises UpstreamUnavailable and FetchDenied.

        Called when it is time, and when there is doubt. Here a fresh one is fetched each time.
        """
        return None

    @abstractmethod
    async def fetch(self) -> Fetched:
        """A fresh credential. Raises UpstreamUnavailable, FetchDenied and NotYet."""

    async def tend(self) -> None:  # noqa: B027 - where there is nothing else to do
        """Do what else there is to do, each time that the task is awake."""

    async def leave(self, *, for_good: bool) -> None:  # noqa: B027 - where there is nobody to say it to
        """Say goodbye to whoever gave the credential; `for_good` when it is not wanted any more, so not after a restart
        either. May be cut off. Raises UpstreamUnavailable.
        """

    # What the proxy calls ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to fetch; this does not wait until something is here."""
        self._is_leaving = False
        self._wanted.set()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """End the task of this source; it gets a moment to say goodbye. Of no effect before `start`."""
        task, self._task = self._task, None
        if task is None:
            return
        self._is_leaving = True
        self._wanted.set()
        try:
            await asyncio.wait([task], timeout=self._leaving_seconds)
        finally:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    def is_usable(self) -> bool:
        self._look()
        return not self._is_retired and self.current() is not None

    def retire(self) -> None:
        self._is_retired = True
        self._guards.renew()
        self._wanted.set()

    @property
    def complaint(self) -> str:
        """What was wrong the last time, as the log tells it; empty while all is well."""
        return self._values.complaint or self._complaint

    def secrets(self) -> tuple[str, ...]:
        credential = self._credential
        if credential is None:
            return ()
        return (*(credential.authn() or {}).values(), *credential.cookies().values())

    def obtain(self, head: Head, endpoint: str) -> Credential:  # noqa: ARG002 - one credential for all clients
        """Raises NoCredential, and Coming and CoolingDown as kinds of it."""
        self._look()
        credential = self.current()
        if credential is None or self._is_retired:
            raise self._absence()
        self._check_rest(endpoint)
        return credential

    def recheck(self, credential: Credential, endpoint: str) -> None:
        """Raises NoCredential when the credential was replaced since, unless by its renewal just now, and as `obtain`
        does.
        """
        self._look()
        if self._is_retired or not (credential == self.current() or self._is_good_still(credential)):
            raise NoCredential("The credential has changed: connect again")
        self._check_rest(endpoint)

    def guard(self, credential: Credential, endpoint: str) -> Guard | None:
        if self._is_retired or (credential is not self._credential and credential != self._credential):
            return None
        return self._guards.at(endpoint)

    # For subclasses to call -------------------------------------------------------------------------------------------

    def current(self) -> Credential | None:
        """The credential, while it is good."""
        return self._credential if self._clock() < self._good_until else None

    def take(self, fetched: Fetched) -> None:
        """Give this out from now on."""
        now = self._clock()
        before = self.current()
        if before != fetched.credential:
            self._before = None if self._doubted else before
            self._before_until = min(self._good_until, now + _OVERLAP_SECONDS)
        self._good_until = now + fetched.good_seconds
        self._due_at = now + max(min(fetched.again_seconds, fetched.good_seconds), _LEAST_SECONDS)
        self._put(fetched.credential)

    def drop(self) -> None:
        """Give out nothing: what was here is good no longer."""
        self._good_until = self._before_until = -math.inf
        self._put(None)

    def wake(self) -> None:
        """Have the task do what there is to do."""
        self._wanted.set()

    # What is here -----------------------------------------------------------------------------------------------------

    def _is_good_still(self, credential: Credential) -> bool:
        return credential == self._before and self._clock() < self._before_until

    def _put(self, credential: Credential | None) -> None:
        if credential != self._credential:
            self._credential = credential
            self._doubted.clear()
            self._guards.renew()

    def _check_rest(self, endpoint: str) -> None:
        if seconds := self._guards.resting_seconds(endpoint):
            raise Coming(self._arrival) if endpoint in self._doubted and self._is_at_it else CoolingDown(seconds)

    def _absence(self) -> NoCredential:
        """Why there is nothing."""
        if self._is_retired or self._is_leaving:
            return NoCredential("This credential is not in use")
        if self._task is None:  # which is about to begin
            return Coming(self._arrival)
        if self._can_fetch and self._clock() >= self._due_at:
            self._wanted.set()
        if self._is_at_it:
            return Coming(self._arrival)
        if (seconds := self._resting_until - self._clock()) > 0 and not math.isinf(seconds):
            return CoolingDown(seconds, "Upstream gave no credential to this proxy; it is not asked again for a while")
        return NoCredential(self._problem or "There is no credential yet")

    @property
    def _is_at_it(self) -> bool:
        return self._is_busy or (self._wanted.is_set() and self._task is not None)

    # What it is fetched with ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        is_other = self._values.look()
        if is_other is None:
            return
        self._complaint = ""
        if is_other or not self._can_fetch or self.is_revoked:
            self._can_fetch, self.is_revoked = True, False
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Fetch at once: what denied or delayed it was about other values."""
        self._has_changed = True
        self._denials = self._failures = 0
        self._resting_until = -math.inf
        self._due_at = self._clock()
        self._wanted.set()

    def _complain_of_values(self, problem: BrokenCredential) -> None:
        if isinstance(problem, RevokedCredential):
            self.is_revoked = True
            self._can_fetch = False
            self.drop()
            self._wanted.set()
        if not self._can_fetch:
            self._problem = "What the credential of this proxy is fetched with is broken"
        remedy = "The last good one stays" if self._can_fetch else "Handshakes are refused until it is mended"
        log.error("The credential %s is broken: %s. %s", self.called, problem, remedy)
        self._on_load(False)  # noqa: FBT003 - the callback's one argument

    # What denials are about -------------------------------------------------------------------------------------------

    def _doubt(self, endpoint: str) -> None:
        """Upstream denied the credential at an endpoint."""
        log.warning("Upstream rejected the credential %s at %s; whether it is good is checked", self.called, endpoint)
        self._doubted.add(endpoint)
        self._due_at = min(self._due_at, max(self._clock(), self._doubted_until, self._resting_until))
        self._wanted.set()

    # The task ---------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        try:
            while not (self._is_leaving or self._is_retired):
                self._wanted.clear()
                self._is_busy = True
                await self._turn()
                self._is_busy = False
                self._announce()
                await self._wait(self._wanted, self._idle_seconds())
            await self._say_goodbye(for_good=self._is_retired)
        finally:
            self._is_busy = False
            self._announce()

    def _idle_seconds(self) -> float:
        """How long there will be nothing to do."""
        return max(0.0, self._due_at - self._clock()) if self._can_fetch or self.is_revoked else math.inf

    def _announce(self) -> None:
        """Let those ask again who wait."""
        arrival, self._arrival = self._arrival, asyncio.Event()
        arrival.set()

    async def _turn(self) -> None:
        """Do what is to be done now."""
        self._look()
        if self.is_revoked:
            self._due_at = math.inf
            try:
                await self.leave(for_good=True)
            except UpstreamUnavailable as problem:
                self._unreachable(str(problem))
        elif self._can_fetch and self._clock() >= self._due_at:
            await self._attempt()
        await self.tend()

    async def _attempt(self) -> None:
        is_doubted = bool(self._doubted)
        before = self.current()
        self._has_changed = False
        try:
            fetched = None if before is None else await self.renewed(before)
            if fetched is None:
                if is_doubted:
                    self.drop()
                    self._doubted_until = self._clock() + self._cooldown
                fetched = await self.fetch()
        except FetchDenied as problem:
            self._denied(problem)
        except NotYet as early:
            self._resting_until = self._due_at = self._clock() + early.seconds
        except UpstreamUnavailable as problem:
            self._unreachable(str(problem), self._cooldown if isinstance(problem, FetchUnanswered) else 0.0)
        except Exception:  # without this task nothing would ever come
            log.exception("The credential %s could not be fetched", self.called)
            self._unreachable("A fault of this proxy")
        else:
            self._arrived(fetched, before, is_doubted=is_doubted)
        if self._has_changed:  # meanwhile
            self._begin_anew()

    def _arrived(self, fetched: Fetched, before: Credential | None, *, is_doubted: bool) -> None:
        self.take(fetched)
        self._denials = self._failures = 0
        if fetched.credential != before:
            log.info("The credential %s is %s", self.called, "here" if before is None else "renewed")
            self._on_load(True)  # noqa: FBT003 - the callback's one argument
        elif self._problem:
            log.info("The credential %s can be renewed again", self.called)
        self._problem = self._complaint = ""
        if is_doubted and fetched.credential != before:
            self._doubted_until = self._clock() + self._cooldown
        for endpoint in sorted(self._doubted):
            log.error(
                "The credential %s is good, but not at %s: it is not offered there for %g s. Check what it is allowed",
                self.called,
                endpoint,
                self._cooldown,
            )
        self._doubted.clear()

    def _denied(self, problem: FetchDenied) -> None:
        rest = math.inf if problem.is_final else self._cooldown * min(2**self._denials, _LONGEST_REST)
        self._denials += 1
        self._resting_until = self._due_at = self._clock() + rest
        self._tell(logging.ERROR, str(problem), "Upstream gave no credential to this proxy")

    def _unreachable(self, problem: str, rest: float = 0.0) -> None:
        pause = pause_seconds(self._failures, self._chance())
        self._failures += 1
        self._resting_until = self._clock() + rest
        self._due_at = self._clock() + max(pause, rest)
        self._tell(logging.WARNING, problem, "The credential of this proxy cannot be fetched: upstream is unreachable")

    def _tell(self, level: int, problem: str, to_clients: str) -> None:
        """Log and count what is wrong; the log is told once."""
        self._on_load(False)  # noqa: FBT003 - the callback's one argument
        if problem != self._complaint or not self._problem:
            remedy = "Handshakes are refused for now" if self.current() is None else "The present one stays for now"
            log.log(level, "The credential %s cannot be fetched: %s. %s", self.called, problem, remedy)
        self._complaint = problem
        self._problem = to_clients

    async def _say_goodbye(self, *, for_good: bool) -> None:
        try:
            await self.leave(for_good=for_good)
        except UpstreamUnavailable as problem:
            log.warning("Upstream was not told that the credential %s is done with: %s", self.called, problem)
