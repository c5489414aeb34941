"""How often somebody may try to sign in: guessing is slow, and strangers cannot lock people out. PURE.

Who counts failures by account alone gives everybody a way to lock out anybody; who counts them by address alone lets
many addresses guess at one account. So there are two ways in, and what happens on one is not felt on the other:

1. A known device, a browser that signed in as this account before and has a proof of that, has a budget of its own.
   Strangers cannot use it up, and it is not held up by anything else: neither by the address that it shares with
   others, nor by what was tried on its account.
2. Everybody else, a stranger, passes three limits. Of an account from an address: a few tries, then pauses that double
   (one guesser; somebody who forgot). Of an address over all accounts (one common password, tried on everybody). Of an
   account over all addresses (many machines that guess together). While a crowd does that to an account, its owner
   waits on a browser that is new, for nothing tells the two apart.

All is counted the moment an attempt begins, so that a hundred at once are a hundred, and given back where it turns out
well. An account that does not exist has the same limits, or they would tell which do.

What is remembered is bounded, and what is forgotten is forgiven. So where there is too much, those go first who did
least: made-up accounts that are tried once each, by the million, push out each other. To have an account forgotten
that is under attack, nine thousand others have to be attacked as hard. Names are kept as digests: long ones take no
more room.
"""

import hmac
import math
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Protocol, TypeVar
from unicodedata import normalize

from proxy.gate.peers import network_of


@dataclass(frozen=True, slots=True)
class Budget:
    """So many attempts at once; each comes back, one after the other, after so many seconds."""

    attempts: int
    seconds_each: float


@dataclass(frozen=True, slots=True)
class Pauses:
    """So many attempts at will; then a pause after each, of so many seconds at first, and twice as long each time up
    to the longest.
    """

    attempts: int
    first: float
    longest: float


PAUSES: Final = Pauses(5, 1.0, 900.0)
"""Of an account from an address: seventeen guesses in the first hour, then four."""

ADDRESS: Final = Budget(30, 20.0)
"""Of an address over all accounts: thirty in ten minutes, again and again."""

STRANGERS: Final = Budget(30, 20.0)
"""Of an account over all addresses."""

DEVICES: Final = Budget(10, 60.0)
"""Of an account on browsers that it knows."""

MOST_REMEMBERED: Final = 10_000
"""Of how many each limit remembers what they did."""

_A_TENTH: Final = 10  # is forgotten at once: to sort them out is then rare
_DAY: Final = 86_400.0
_MOST_DOUBLINGS: Final = 30  # is beyond any pause
_ROUNDING: Final = 1e-6
_DIGEST_BYTES: Final = 16

_DEVICE_SECONDS: Final = 90 * 86_400
_SKEW_SECONDS: Final = 300  # the clocks of replicas need not agree
_TAG_BYTES: Final = 16
_MARK: Final = b"c8y-realtime-proxy device\0"  # one key never serves two purposes
_PROOF: Final = re.compile(r"[0-9]{1,12}\.[A-Za-z0-9_-]{22}")


class Attempts:
    """The limits of signing in.

    An account is `tenant/user`; spellings that may mean the same are the same. An address is as it was seen. None, and
    loopback, has no limits: behind a proxy that tells no addresses, all have the same one. Each attempt that began is
    told of as `succeeded` or `withdrawn`, or else has failed.
    """

    def __init__(
        self,
        *,
        pauses: Pauses = PAUSES,
        address: Budget = ADDRESS,
        strangers: Budget = STRANGERS,
        devices: Budget = DEVICES,
        most_remembered: int = MOST_REMEMBERED,
    ) -> None:
        self._pairs = _Paused(pauses, most_remembered)
        self._addresses = _Spent(address, most_remembered)
        self._strangers = _Spent(strangers, most_remembered)
        self._devices = _Spent(devices, most_remembered)

    def begin(self, *, account: str, address: str | None, is_known_device: bool, now: float) -> float:
        """Count an attempt, which may then be made: 0.0. Where it is one too many, nothing is counted, and the whole
        seconds to wait are returned. `now` is in monotonic seconds.
        """
        limits = self._limits(account, address, is_known_device=is_known_device)
        seconds = max(limit.wait(key, now) for limit, key in limits)
        if seconds > _ROUNDING:
            return float(math.ceil(seconds - _ROUNDING))
        for limit, key in limits:
            limit.count(key, now)
        return 0.0

    def succeeded(self, *, account: str, address: str | None, is_known_device: bool) -> None:
        """The attempt was right: it is given back, and what a stranger did before to this account from this address is
        forgiven. Nothing else is: who signs in buys nobody more guesses.
        """
        for limit, key in self._limits(account, address, is_known_device=is_known_device):
            limit.forgive(key)

    def withdrawn(self, *, account: str, address: str | None, is_known_device: bool) -> None:
        """The attempt told nobody anything, as where the platform was not reachable: it is given back."""
        for limit, key in self._limits(account, address, is_known_device=is_known_device):
            limit.give_back(key)

    def _limits(self, account: str, address: str | None, *, is_known_device: bool) -> "Sequence[tuple[_Limit, bytes]]":
        """What an attempt has to pass, and what it is known by there."""
        whose = _digest(_folded(account))
        if is_known_device:
            return [(self._devices, whose)]
        network = network_of(address) if address else None
        if network is None:
            return [(self._strangers, whose)]
        where = _digest(network)
        return [(self._strangers, whose), (self._addresses, where), (self._pairs, whose + where)]


def device_proof(keys: Sequence[bytes], account: str, now_unix: float) -> str:
    """What a browser keeps to show, for 90 days, that it signed in as this account. Fit for a cookie.

    The first of the secret `keys` makes it; each verifies, so that a new one can take over from an old.
    """
    issued = str(int(now_unix))
    return f"{issued}.{_tag(keys[0], issued, account)}"


def is_device(keys: Sequence[bytes], proof: str, account: str, now_unix: float) -> bool:
    """Whether a browser that sent this signed in as that account within the last 90 days."""
    if not _PROOF.fullmatch(proof):
        return False
    issued, _, tag = proof.partition(".")
    if not -_SKEW_SECONDS <= now_unix - int(issued) <= _DEVICE_SECONDS:
        return False
    matches = [hmac.compare_digest(_tag(key, issued, account), tag) for key in keys]
    return any(matches)


class _Limit(Protocol):
    """One limit for each of many."""

    def wait(self, key: bytes, now: float) -> float:
        """For how many seconds no attempt may be made."""

    def count(self, key: bytes, now: float) -> None:
        """One is made."""

    def give_back(self, key: bytes) -> None:
        """One was none."""

    def forgive(self, key: bytes) -> None:
        """One was right."""


class _Spent:
    """What each of many spent of its budget, kept as the time when all of that will have come back."""

    def __init__(self, budget: Budget, most: int) -> None:
        self._each = budget.seconds_each
        self._span = budget.seconds_each * budget.attempts
        self._most = most
        self._full_at: dict[bytes, float] = {}

    def wait(self, key: bytes, now: float) -> float:
        return max(0.0, self._full_at.get(key, now) + self._each - self._span - now)

    def count(self, key: bytes, now: float) -> None:
        if key not in self._full_at and len(self._full_at) >= self._most:
            self._full_at = _kept(self._full_at, self._most, lambda full_at: full_at > now, lambda full_at: full_at)
        self._full_at[key] = max(now, self._full_at.get(key, now)) + self._each

    def give_back(self, key: bytes) -> None:
        if key in self._full_at:
            self._full_at[key] -= self._each

    forgive = give_back  # the budget is everybody's who has this key


@dataclass(frozen=True, slots=True)
class _Tried:
    """How often somebody tried, when last, and until when to pause."""

    times: int
    last: float
    until: float


class _Paused:
    """The pauses of each of many. Who does nothing for a day begins anew: to wait for that gains a guesser nothing."""

    def __init__(self, pauses: Pauses, most: int) -> None:
        self._pauses = pauses
        self._most = most
        self._tried: dict[bytes, _Tried] = {}

    def wait(self, key: bytes, now: float) -> float:
        tried = self._tried.get(key)
        return max(0.0, tried.until - now) if tried is not None else 0.0

    def count(self, key: bytes, now: float) -> None:
        before = self._tried.get(key)
        if before is None and len(self._tried) >= self._most:
            self._tried = _kept(
                self._tried, self._most, lambda tried: now < tried.until + _DAY, lambda tried: (tried.times, tried.last)
            )
        self._set(key, before.times + 1 if before is not None and now < before.until + _DAY else 1, now)

    def give_back(self, key: bytes) -> None:
        tried = self._tried.get(key)
        if tried is not None:
            self._set(key, tried.times - 1, tried.last)

    def forgive(self, key: bytes) -> None:
        self._tried.pop(key, None)

    def _set(self, key: bytes, times: int, last: float) -> None:
        doublings = min(times - self._pauses.attempts, _MOST_DOUBLINGS)
        pause = min(self._pauses.first * 2.0**doublings, self._pauses.longest) if doublings >= 0 else 0.0
        self._tried[key] = _Tried(times, last, last + pause)


_Value = TypeVar("_Value")


def _kept(
    entries: dict[bytes, _Value],
    most: int,
    is_worth_something: Callable[[_Value], bool],
    worth: Callable[[_Value], Any],
) -> dict[bytes, _Value]:
    """Those that are remembered on, in place of as many as there may be."""
    kept = [entry for entry in entries.items() if is_worth_something(entry[1])]
    if len(kept) >= most:
        kept.sort(key=lambda entry: worth(entry[1]))
        del kept[: max(1, most // _A_TENTH)]
    return dict(kept)


def _folded(account: str) -> str:
    """One spelling for all that the platform may take for the same account."""
    tenant, slash, user = normalize("NFKC", account).casefold().partition("/")
    return f"{tenant.strip()}{slash}{user.strip()}"


def _digest(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def _tag(key: bytes, issued: str, account: str) -> str:
    mac = hmac.digest(key, _MARK + f"{issued}\0{_folded(account)}".encode(errors="surrogatepass"), "sha256")
    return urlsafe_b64encode(mac[:_TAG_BYTES]).decode().rstrip("=")
