"""What every way to log in passes: how often somebody may try, and how a browser shows that it has been here before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp.web import Response

from proxy.frontdoor.attempts import Attempts, device_proof, is_device
from proxy.head import AmbiguousHeader, Head


DEVICE_COOKIE: Final = "__Host-c8y-device"
_DEVICE_SECONDS: Final = 90 * 86_400


class Turnstile:
    """Counts attempts to log in, at the sign-in page and by relayed logins alike.

    `keys` sign what tells a browser that somebody signed in with before. `clock` gives monotonic seconds, `unix_clock`
    Unix time.
    """

    def __init__(
        self,
        keys: Callable[[], Sequence[bytes]],
        *,
        clock: Callable[[], float],
        unix_clock: Callable[[], float],
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._unix_clock = unix_clock
        self._attempts = Attempts()

    def enter(self, head: Head, *, user: str, tenant: str) -> "Attempt":
        """One attempt, which counts from now on, unless it has to wait."""
        named, _, name = user.rpartition("/")
        account = f"{named or tenant}/{name}"
        known = is_device(self._keys(), cookie_in(head, DEVICE_COOKIE), account, self._unix_clock())
        # The tenant is not counted by: upstream may go by its own name whatever else is said.
        attempt = Attempt(self._attempts, name, head.peer, known, self._proof_of, account)
        attempt.begin(self._clock())
        return attempt

    def _proof_of(self, account: str) -> str:
        return device_proof(self._keys(), account, self._unix_clock())


@dataclass(slots=True)
class Attempt:
    """One attempt to log in; `wait` is how many whole seconds it has to, zero where it may be made."""

    _attempts: Attempts
    _name: str
    _address: str | None
    _is_known_device: bool
    _proof_of: Callable[[str], str]
    _account: str
    wait: int = 0

    def begin(self, now: float) -> None:
        """Count it, and find out whether it may be made."""
        seconds = self._attempts.begin(
            account=self._name, address=self._address, is_known_device=self._is_known_device, now=now
        )
        self.wait = int(seconds) + 1 if seconds > 0 else 0

    def withdraw(self) -> None:
        """Count it not at all: it told nothing about a password."""
        self._attempts.withdrawn(account=self._name, address=self._address, is_known_device=self._is_known_device)

    def succeed(self) -> None:
        """Forgive what was counted before it."""
        self._attempts.succeeded(account=self._name, address=self._address, is_known_device=self._is_known_device)

    def remember(self, response: Response) -> None:
        """Have the browser show from now on that somebody signed in with it: it has attempts of its own then, which
        nobody else can use up.
        """
        response.set_cookie(
            DEVICE_COOKIE,
            self._proof_of(self._account),
            max_age=_DEVICE_SECONDS,
            secure=True,
            httponly=True,
            samesite="Strict",
            path="/",
        )


def cookie_in(head: Head, name: str) -> str:
    """A cookie of ours; where there are two, one is none of ours, and neither counts."""
    try:
        return head.cookie(name) or ""
    except AmbiguousHeader:
        return ""
