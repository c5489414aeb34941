"""What a client may subscribe to, publish and call.

The rules of wildcards apply to the pattern that is *asked for*: a grant of `/measurements/*` does not admit `/**`,
which would hear more than was granted. What is not granted is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from msgspec import Raw

from proxy.bayeux import channels
from proxy.bayeux.channels import Segments, covers, granted, is_plain, is_service, requested
from proxy.bayeux.messages import Message, strings
from proxy.bayeux.replies import MessageRefusal
from proxy.gate.endpoints import ENDPOINTS


_DATA: Final = (
    "/alarms/*",
    "/alarmsWithChildren/*",
    "/applications/*",
    "/bulkOperations/*",
    "/events/*",
    "/eventsWithChildren/*",
    "/managedobjects/*",
    "/measurements/*",
    "/operations/*",
)
_AGENTS: Final = frozenset({"/notification/operations", "/devicecontrol/notifications"})
_FREE: Final = frozenset({channels.CONNECT, channels.DISCONNECT, channels.UNSUBSCRIBE})
_MOST_KNOWN: Final = 1024
_LONGEST_KNOWN: Final = 256


@dataclass(frozen=True, slots=True)
class Grant:
    """What may be done at some endpoints: patterns of channels, in the words of `channels.granted`."""

    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    call: tuple[str, ...] = ()


DEFAULT: Final[Mapping[str, Grant]] = MappingProxyType(
    {endpoint: Grant(subscribe=("/{id}",) if endpoint in _AGENTS else _DATA) for endpoint in ENDPOINTS}
)
"""What clients may do that were not granted anything else, by endpoint: hear the platform's data channels, and where
agents ask for their operations one agent's. They publish nothing, and call no service.
"""


class Policy:
    """What one client may do at one endpoint."""

    __slots__ = ("_call", "_publish", "_sendable", "_subscribe", "granted", "permits_all")

    def __init__(self, grants: Iterable[Grant]) -> None:
        grants = tuple(grants)
        self._subscribe = _patterns(pattern for grant in grants for pattern in grant.subscribe)
        self._publish = _patterns(pattern for grant in grants for pattern in grant.publish)
        self._call = _patterns(pattern for grant in grants for pattern in grant.call)
        self._sendable: dict[str, MessageRefusal | None] = {}  # by channel that messages were sent to lately
        self.granted: Final = frozenset(
            (what, pattern)
            for what, patterns in enumerate((self._subscribe, self._publish, self._call))
            for pattern in patterns
        )
        """What may be done to which channels."""
        everything = (channels.MANY,)
        self.permits_all: Final = (
            everything in self._subscribe and everything in self._publish and ("service", *everything) in self._call
        )
        """Whether there is nothing that this refuses: then what cannot be read may pass, too."""

    def permits_what(self, other: "Policy") -> bool:
        """Whether all that another policy permits is permitted here, too, each pattern of it by one of ours."""
        return all(
            any(mine == theirs and covers(grant, pattern) for mine, grant in self.granted)
            for theirs, pattern in other.granted - self.granted
        )

    def refusal(self, channel: str, message: Message) -> MessageRefusal | None:
        """Why a message other than a handshake must not go up; None when it may."""
        if channel in _FREE:
            return None
        if channel == channels.SUBSCRIBE:
            return self._of_subscription(message.get("subscription"))
        if len(channel) > _LONGEST_KNOWN:
            return self._of_sending(channel)
        known = self._sendable
        if channel not in known:
            if len(known) == _MOST_KNOWN:
                known.clear()
            known[channel] = self._of_sending(channel)
        return known[channel]

    def _of_subscription(self, subscription: Raw | None) -> MessageRefusal | None:
        names = strings(subscription)
        if not names:
            return MessageRefusal("subscribe", "The subscription is neither a channel nor a list of channels")
        for name in names:
            asked = requested(name)
            if asked is None:
                return MessageRefusal("subscribe", "The subscription holds a name that is no channel")
            if not any(covers(grant, asked) for grant in self._subscribe):
                return MessageRefusal("subscribe", "This client may not subscribe to that channel")
        return None

    def _of_sending(self, channel: str) -> MessageRefusal | None:
        asked = requested(channel)
        if asked is None or not is_plain(asked):
            return MessageRefusal("publish", "Messages are sent to one channel, plainly written")
        if is_service(asked):
            permitted, refusal = self._call, MessageRefusal("call", "This client may not call that service")
        else:
            permitted, refusal = self._publish, MessageRefusal("publish", "This client may not publish to that channel")
        return None if any(covers(grant, asked) for grant in permitted) else refusal


def _patterns(texts: Iterable[str]) -> tuple[Segments, ...]:
    """The patterns of grants. Raises ValueError for a text that is none."""
    patterns = []
    for text in texts:
        if (segments := granted(text)) is None:
            raise ValueError(f"{text} is no pattern of channels")
        patterns.append(segments)
    return tuple(patterns)
