"""The lock-out guard: a value that upstream may deny is not offered a thousand times before that is known.

                     the first attempt goes up
      untried -----------------------------------> trying: the others wait for how it ends
         ^                                            |          |
         |  the cool-down is over, or there           | denied   | accepted
         |  was no proof for a while                  v          v
         +--------------------------------------- cooling <--- proven: all go up
                                                       denied

1. One guard stands before one value at one endpoint: what upstream denies at one may be good at another, and a value
   that changed is another value. It is told what became of each attempt.
2. An attempt that went up counts as one until upstream has spoken, also when its client has left. So, while nothing is
   known, there is one each turn at most, however many come and go.
3. Who waits is told once, to go up or that it is called off, unless it leaves before.
"""

from collections.abc import Callable
from typing import Final, Protocol

from proxy.deadlines import Deadlines


FRESH_SECONDS: Final = 15.0
"""For how long a proof counts. While there is traffic, it is renewed all the time."""

SILENCE_SECONDS: Final = 2.0
"""After so long without a denial, a request that upstream holds counts as accepted. It sends the head of its answer at
once; this is for what stands in between and keeps that back.
"""

TURN_SECONDS: Final = 5.0
"""How long the others wait for one attempt, before the next one of them has its turn."""


class Attempt(Protocol):
    """Something that offers a value to upstream, and may have to wait before it does."""

    def go_up(self) -> None:
        """Offer it now."""
        ...

    def call_off(self) -> None:
        """Do not offer it: upstream denied it to another, or could not be reached."""
        ...


class Guard:
    """Lets attempts up one at a time until one was accepted.

    `clock` gives monotonic seconds; `on_denied` is told when the value begins to cool.
    """

    def __init__(
        self,
        cooldown_seconds: float,
        clock: Callable[[], float],
        on_denied: Callable[[], None],
        *,
        fresh_seconds: float = FRESH_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
        turn_seconds: float = TURN_SECONDS,
    ) -> None:
        self._cooldown = cooldown_seconds
        self._fresh = fresh_seconds
        self._clock = clock
        self._on_denied = on_denied
        self._proven_until = self._cooling_until = clock()
        self._trying: Attempt | None = None  # what is up, and may have left since
        self._waiting: dict[Attempt, None] = {}
        self._is_following = False
        self._silences: Deadlines[Attempt] = Deadlines(silence_seconds, lambda _: self.accepted())
        self._turns = Deadlines(turn_seconds, self.undecided)

    @property
    def resting_seconds(self) -> float:
        """How long the value must still rest; zero when it may be offered."""
        return max(0.0, self._cooling_until - self._clock())

    @property
    def is_proven(self) -> bool:
        """Whether upstream accepted the value a short while ago."""
        return self._clock() < self._proven_until

    def may_go_up(self, attempt: Attempt) -> bool:
        """Whether an attempt may go up now; else it is told later. Not to be asked while the value rests."""
        if self.is_proven or attempt is self._trying:
            return True
        if self._trying is not None:
            self._waiting[attempt] = None
            return False
        self._try(attempt)
        return True

    def held(self, attempt: Attempt) -> None:
        """An attempt is with upstream, which may take its time to answer, unless it denies."""
        if attempt is self._trying:
            self._silences.start(attempt)

    def accepted(self) -> None:
        """Upstream accepted the value, or did not deny it."""
        now = self._clock()
        if now < self._cooling_until:  # somebody was told otherwise
            return
        self._proven_until = now + self._fresh
        self._end_trial()
        self._follow()

    def denied(self) -> None:
        """Upstream denied the value."""
        now = self._clock()
        if now >= self._cooling_until:
            self._cooling_until = now + self._cooldown
            self._on_denied()
        self._proven_until = now
        self.call_off()

    def doubt(self) -> None:
        """Upstream went away: when it is back, what it accepted before may be denied."""
        self._proven_until = self._clock()

    def unreachable(self, attempt: Attempt) -> None:
        """Upstream could not be asked; the others would not fare better."""
        self.doubt()
        if attempt is self._trying:
            self.call_off()

    def undecided(self, attempt: Attempt) -> None:
        """Upstream answered an attempt without a word about the value, or takes long over it: the next has its turn."""
        if attempt is self._trying:
            self._end_trial()
            self._follow()

    def left(self, attempt: Attempt) -> None:
        """An attempt is over. If it was up, nobody will hear what came of it, and the next has its turn in time."""
        self._waiting.pop(attempt, None)
        self._silences.stop(attempt)

    def call_off(self) -> None:
        """Let nobody wait any more."""
        self._end_trial()
        dismissed, self._waiting = self._waiting, {}
        for attempt in dismissed:
            attempt.call_off()

    def _try(self, attempt: Attempt) -> None:
        self._trying = attempt
        self._turns.start(attempt)

    def _end_trial(self) -> None:
        if self._trying is not None:
            self._turns.stop(self._trying)
            self._silences.stop(self._trying)
            self._trying = None

    def _follow(self) -> None:
        """Let those who wait go up in their order: all of them while there is proof, else the next one.

        What one of them does at once may bring us here again: it is this loop that goes on then, for a thousand would
        nest as deep.
        """
        if self._is_following:
            return
        self._is_following = True
        try:
            while self._waiting and self._trying is None:
                following = next(iter(self._waiting))
                del self._waiting[following]
                if not self.is_proven:
                    self._try(following)
                following.go_up()
        finally:
            self._is_following = False
