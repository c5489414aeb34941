"""What happened lately, for people who look: how handshakes ended in the last hour, and the latest failures.

1. It is bounded whatever comes: by the minutes of an hour, by the credentials of the configuration, and by how many
   failures are kept. The same failure again is counted where it stands, so that a flood washes no other one out.
2. Nothing is kept that a client sent. Names are those of the configuration; all else comes from closed sets.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from proxy.bayeux.negotiation import Outcome


MINUTES: Final = 60
"""How far back handshakes are counted."""

MOST_FAILURES: Final = 50

Event = Literal["handshake", "upgrade"]

Counted = tuple[Event, str, str | None, str]
"""What is counted by the minute: event, transport, name of the credential, outcome."""

_MINUTE_SECONDS: Final = 60
_NEVER: Final = -1


@dataclass(frozen=True, slots=True)
class Failure:
    """What did not go well, how often so far, and when for the first time and the last, in Unix time.

    `credential` is its name in the configuration; None where none was chosen, or the client sent one of its own.
    """

    event: Event
    transport: str
    credential: str | None
    outcome: str
    reason: str
    times: int
    first_at: float
    last_at: float


@dataclass(frozen=True, slots=True)
class Minute:
    """What was counted in one minute, which began at that Unix time."""

    begun_at: int
    counts: Mapping[Counted, int]


@dataclass(slots=True)
class _Times:
    first_at: float
    last_at: float
    count: int = 0


class History:
    """What one proxy remembers of handshakes and upgrades; `clock` gives Unix time, which may jump."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock: Final = clock
        self.since: Final = clock()
        self._ring: list[tuple[int, dict[Counted, int]]] = [(_NEVER, {})] * MINUTES
        self._failures: OrderedDict[tuple[Event, str, str | None, str, str], _Times] = OrderedDict()
        self._denied: set[str] = set()
        self._loaded_at: dict[tuple[str, str], float] = {}

    # What is told -----------------------------------------------------------------------------------------------------

    def settled(self, transport: str, credential: str | None, outcome: Outcome) -> None:
        """Remember how a handshake ended; `credential` names the one that was chosen, if one was."""
        name = credential if outcome.ours else None
        self._count("handshake", transport, name, outcome.verdict, outcome.reason)

    def upgraded(self, credential: str | None, outcome: str, reason: str) -> None:
        """Remember how the opening of a WebSocket ended that failed."""
        self._count("upgrade", "websocket", credential, outcome, reason)

    def loaded(self, source: str, credential: str) -> None:
        """Remember that a credential was loaded, or fetched: what upstream said of the one before holds no more."""
        self._loaded_at[source, credential] = self.clock()
        self._denied.discard(credential)

    def _count(self, event: Event, transport: str, credential: str | None, outcome: str, reason: str) -> None:
        now = self.clock()
        minute = int(now // _MINUTE_SECONDS)
        slot = minute % MINUTES
        if self._ring[slot][0] != minute:
            self._ring[slot] = (minute, {})
        counts = self._ring[slot][1]
        counted = event, transport, credential, outcome
        counts[counted] = counts.get(counted, 0) + 1
        if outcome != "accepted":
            self._note_failure((event, transport, credential, outcome, reason), now)
            if reason == "denied" and credential is not None:
                self._denied.add(credential)
        elif self._denied and credential is not None:
            self._denied.discard(credential)

    def _note_failure(self, failure: tuple[Event, str, str | None, str, str], now: float) -> None:
        times = self._failures.get(failure)
        if times is None:
            if len(self._failures) >= MOST_FAILURES:
                self._failures.popitem(last=False)
            times = self._failures[failure] = _Times(now, now)
        times.last_at = now
        times.count += 1
        self._failures.move_to_end(failure)

    # What is asked ----------------------------------------------------------------------------------------------------

    def minutes(self) -> Iterator[Minute]:
        """The minutes of the last hour, the oldest first. The last one is not over yet."""
        this = int(self.clock() // _MINUTE_SECONDS)
        for minute in range(this - MINUTES + 1, this + 1):
            of, counts = self._ring[minute % MINUTES]
            yield Minute(minute * _MINUTE_SECONDS, counts if of == minute else {})

    def failures(self) -> Iterator[Failure]:
        """The failures that are kept, the latest first."""
        for failure, times in reversed(self._failures.items()):
            yield Failure(*failure, times=times.count, first_at=times.first_at, last_at=times.last_at)

    def is_denied(self, credential: str) -> bool:
        """Whether upstream did not accept this credential when it was asked last."""
        return credential in self._denied

    def loaded_at(self, source: str, credential: str) -> float | None:
        """When it was loaded last from this kind of source, in Unix time; None where it was not."""
        return self._loaded_at.get((source, credential))
