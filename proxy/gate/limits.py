"""How much and how long. Sizes in bytes, times in seconds."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from proxy.gate.clients import Client


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one public listener; docs/configuration.md describes each under `limits`.

    `handshake_seconds` is how long upstream may take over a handshake.
    """

    connections: int
    strangers: int
    client_connections: int
    client_handshakes: int
    address_handshakes: int
    idle_seconds: float
    head_seconds: float
    first_message_seconds: float
    payload_seconds: float
    stalled_seconds: float
    head_bytes: int
    client_payload_bytes: int
    upstream_payload_bytes: int
    batch_messages: int
    fragments: int
    handshake_seconds: float
    heartbeat_seconds: float


class TooMany(Exception):
    """Somebody has more than a limit allows. `limit` is its key; the text says so to the client."""

    def __init__(self, limit: str, text: str) -> None:
        super().__init__(f"{text} (limits.{limit})")
        self.limit = limit


class Shares:
    """How many connections each client has, `most` at a time. Clients without an identity cannot be told apart, and
    share the total.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken: dict[tuple[str, str], int] = {}

    def take(self, client: Client) -> None:
        """Count one connection more. Raises TooMany, and then counts none."""
        if not client.is_known:
            return
        key = client.name, client.subject
        taken = self._taken.get(key, 0)
        if taken >= self.most:
            raise TooMany("client_connections", "This client has too many connections: close some of them")
        self._taken[key] = taken + 1

    def give_back(self, client: Client) -> None:
        """Count one less."""
        if not client.is_known:
            return
        key = client.name, client.subject
        left = self._taken[key] - 1
        if left:
            self._taken[key] = left
        else:
            del self._taken[key]


_MOST_KNOWN: Final = 10_000
_MINUTE: Final = 60.0


class Rate:
    """How often each of many may do something: `per_minute` times, all of them at once if need be.

    Of those who did it lately, the last ten thousand are known; whoever is forgotten begins anew.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how much, and when that was so

    def take(self, who: str, now: float) -> float:
        """Count one time more; or, where that is too often, count nothing and return the seconds to wait."""
        used, since = self._used.pop(who, (0.0, now))
        used = max(0.0, used - (now - since) * self.per_minute / _MINUTE)
        is_too_often = used + 1 > self.per_minute
        self._used[who] = (used if is_too_often else used + 1, now)
        if len(self._used) > _MOST_KNOWN:
            self._used.popitem(last=False)
        return (used + 1 - self.per_minute) * _MINUTE / self.per_minute if is_too_often else 0.0
