"""How many use a stored credential at once: the platform counts as well, and closes the oldest of too many."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final


log = logging.getLogger(__name__)

PLATFORM_LIMIT: Final = 10
"""How many connections the platform keeps for one user, channel and node, by default."""

_WARN_AT: Final = 8
_CALM_AT: Final = 5
_BETWEEN_CONNECTS_SECONDS: Final = 15.0  # the platform forgets a session that stays away for ten
_MOST_KNOWN: Final = 10_000


class Uses:
    """The live uses of one stored credential: WebSockets that are open, and clientIds whose connect is held or was a
    moment ago. `clock` gives monotonic seconds. Of more than ten thousand clientIds, those beyond that are not counted.
    """

    def __init__(self, credential: str, clock: Callable[[], float]) -> None:
        self._credential = credential
        self._clock = clock
        self._sockets = 0
        self._held: dict[str, int] = {}  # by clientId, and by how many connects
        self._away: OrderedDict[str, float] = OrderedDict()  # until when it counts, the next to be forgotten first
        self._has_warned = False

    def count(self) -> int:
        """How many there are now."""
        now, away = self._clock(), self._away
        while away and next(iter(away.values())) < now:
            away.popitem(last=False)
        return self._sockets + len(self._held) + len(away)

    def opened(self) -> None:
        """Count a WebSocket more."""
        self._sockets += 1
        self._consider()

    def closed(self) -> None:
        """Count a WebSocket less."""
        self._sockets -= 1

    def held(self, client_id: str) -> None:
        """Count a session whose connect is held from now on."""
        known = self._held.get(client_id, 0)
        if not known:
            self._away.pop(client_id, None)
            if len(self._held) + len(self._away) >= _MOST_KNOWN:
                if not self._away:
                    return
                self._away.popitem(last=False)
        self._held[client_id] = known + 1
        self._consider()

    def answered(self, client_id: str) -> None:
        """Expect the next connect of a session soon, unless another one is held."""
        known = self._held.pop(client_id, 0)
        if known > 1:
            self._held[client_id] = known - 1
        elif known:
            self._away[client_id] = self._clock() + _BETWEEN_CONNECTS_SECONDS

    def gone(self, client_id: str) -> None:
        """Count a session no more."""
        self._held.pop(client_id, None)
        self._away.pop(client_id, None)

    def _consider(self) -> None:
        """Warn once when the platform's limit comes near, and again only after it was calm in between."""
        count = self.count()
        if count < _CALM_AT:
            self._has_warned = False
        elif count >= _WARN_AT and not self._has_warned:
            self._has_warned = True
            log.warning(
                "The credential %s is in use %d times at once. Where more than %d connections of one user subscribe to "
                "one channel, the platform closes the oldest: give clients users of their own, or raise its limit",
                self._credential,
                count,
                PLATFORM_LIMIT,
            )
