"""The guards of one value: what upstream denies at one endpoint may be good at another."""

from collections.abc import Callable

from proxy.credentials.guard import Guard


class Guards:
    """The guards of one value, one for each endpoint.

    `on_denied` is told the endpoint at which the value begins to cool; the rest is as `Guard` has it.
    """

    def __init__(self, cooldown_seconds: float, clock: Callable[[], float], on_denied: Callable[[str], None]) -> None:
        self._cooldown = cooldown_seconds
        self._clock = clock
        self._on_denied = on_denied
        self._guards: dict[str, Guard] = {}

    def at(self, endpoint: str) -> Guard:
        """The guard before an endpoint."""
        guard = self._guards.get(endpoint)
        if guard is None:
            guard = Guard(self._cooldown, self._clock, lambda: self._on_denied(endpoint))
            self._guards[endpoint] = guard
        return guard

    def resting_seconds(self, endpoint: str) -> float:
        """How long the value must still rest there; zero when it may be offered."""
        guard = self._guards.get(endpoint)
        return 0.0 if guard is None else guard.resting_seconds

    def renew(self) -> None:
        """Begin anew, since the value has changed: what waits has the old one in hand, and is called off."""
        for guard in self._replaced():
            guard.call_off()

    def follow(self) -> None:
        """Begin anew, since upstream renewed the value, and so has accepted it: what waits goes up with the old one."""
        for guard in self._replaced():
            guard.accepted()

    def _replaced(self) -> list[Guard]:
        guards, self._guards = self._guards, {}
        return list(guards.values())
