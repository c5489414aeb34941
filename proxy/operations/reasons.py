"""What each way to fail means, in words for an operator, and what helps."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from proxy.operations.history import Event


DOCTOR: Final = "`c8y-realtime-proxy doctor --credential {credential}`"
_DOCTOR: Final = "`c8y-realtime-proxy doctor`"


@dataclass(frozen=True, slots=True)
class Told:
    """What happened, and the remedy: in general, where the credential is the client's `own`, and where none of the
    configuration was at hand (`without`). Code stands in backticks, and the name of the credential in braces.
    """

    words: str
    remedy: str
    own: str = ""
    without: str = ""

    def remedy_for(self, credential: str | None, *, is_clients_own: bool) -> str:
        """The remedy where this credential was chosen, or none."""
        if credential is None:
            text = self.without or self.own or self.remedy
        else:
            text = (is_clients_own and self.own) or self.remedy
        return text.replace("{credential}", credential or "NAME")


_OWN_DENIED: Final = "It is the client's own: its user has to sign in again, or lacks a permission in Cumulocity."
_DENIED: Final = Told(
    "Upstream did not accept the credential",
    f"Check tenant, user and password of the credential {{credential}}. {DOCTOR} looks at it step by step.",
    own=_OWN_DENIED,
)
_CLIENT_GONE: Final = Told(
    "The client left before it was answered",
    "A few are usual. Where there are many, see whether the network, or a proxy in front of this one, cuts them off.",
)
_DRAINING: Final = Told(
    "This proxy was going down", "Nothing: clients come back by themselves, to another replica or to the next start."
)
_IDENTITY: Final = Told(
    "The client did not prove who it is",
    "Give it what `gate.identity` asks for, and see that it is not out of date. "
    "`c8y-realtime-proxy clients list` tells which clients there are.",
)
_NO_CREDENTIAL: Final = Told(
    "There was no credential to send",
    f"The credential {{credential}} is not there, or not yet: this page says why. {DOCTOR} tells more.",
    own="The client came without its own: its user has to sign in to Cumulocity first, by an address of this proxy.",
    without="None that this client may use is for its path and Host: see `endpoints` and `hosts` of the credentials.",
)
_COOLDOWN: Final = Told(
    "Upstream rejected the credential a short while ago, so it was not offered again",
    f"Mend the credential {{credential}}: a new value is offered at once. {DOCTOR} tells what is wrong with this one.",
)
_UNAVAILABLE: Final = Told(
    "Upstream could not be reached",
    f"Check `upstream.url`, the network and upstream's certificate. {_DOCTOR} does so step by step.",
)

HANDSHAKES: Final[Mapping[tuple[str, str], Told]] = MappingProxyType(
    {
        ("accepted", "ok"): Told("Upstream accepted the handshake", "Nothing."),
        ("rejected", "denied"): _DENIED,
        ("rejected", "unknown_client"): Told(
            "Upstream did not know the client's session",
            "Nothing: the client begins a new one. Where there are many, the platform was started again.",
        ),
        ("rejected", "other"): Told(
            "Upstream rejected the handshake for a reason of its own",
            f"{_DOCTOR} makes the same handshake, and tells what upstream says.",
        ),
        ("unanswered", "client_gone"): _CLIENT_GONE,
        ("unanswered", "upstream_gone"): Told(
            "Upstream ended the connection before it answered",
            "See whether the platform was started again, or a proxy on the way to it cuts connections off. "
            f"{_DOCTOR} goes the same way step by step.",
        ),
        ("unanswered", "timeout"): Told(
            "Upstream did not answer in time",
            "See how quick the platform is for others. `handshake.timeout_seconds` says how long it gets. "
            f"{_DOCTOR} measures each step.",
        ),
        ("unanswered", "drained"): _DRAINING,
        ("refused", "identity"): _IDENTITY,
        ("refused", "policy"): Told(
            "The client sent a credential of its own, which it must not",
            "Take it out of the client, or have it replaced: `handshake.client_authn` = `override`.",
        ),
        ("refused", "no_credential"): _NO_CREDENTIAL,
        ("refused", "cooldown"): _COOLDOWN,
        ("refused", "limit"): Told(
            "Too many handshakes, or connections, at once",
            "The metric `limits_reached_total` says which limit it was: raise it in the section `limits`, "
            "or look for a client that comes back without a pause.",
        ),
        ("refused", "unavailable"): _UNAVAILABLE,
        ("refused", "malformed"): Told(
            "The handshake could not be read: its ext was not an object", "Mend the client that sends it."
        ),
    }
)
"""By outcome and reason."""

UPGRADES: Final[Mapping[tuple[str, str], Told]] = MappingProxyType(
    {
        ("accepted", "ok"): Told("Both sides are connected", "Nothing."),
        ("rejected", "denied"): _DENIED,
        ("rejected", "other"): Told(
            "Upstream opened no WebSocket",
            f"See whether a proxy on the way to it lets WebSockets through. {_DOCTOR} tells what was answered.",
        ),
        ("unanswered", "client_gone"): _CLIENT_GONE,
        ("refused", "origin"): Told(
            "A page of an origin that is not listed asked for a WebSocket",
            "If that page may connect, add its origin to `gate.origins`. The log has the address that it came from.",
        ),
        ("refused", "host"): Told(
            "The client asked for a Host that is not listed",
            "If clients come by another name, add it to `gate.hosts`. The log has the address that it came from.",
        ),
        ("refused", "identity"): _IDENTITY,
        ("refused", "limit"): Told(
            "Too many connections at once",
            "Raise `limits.connections` or `limits.client_connections`, or look for a client that leaves them open.",
        ),
        ("refused", "no_credential"): _NO_CREDENTIAL,
        ("refused", "cooldown"): _COOLDOWN,
        ("refused", "unavailable"): Told(
            _UNAVAILABLE.words, f"{_UNAVAILABLE.remedy} Where it was a fault of ours, the log says so."
        ),
        ("refused", "draining"): _DRAINING,
        ("refused", "malformed"): Told(
            "The request was no opening of a WebSocket, or not at one of the paths",
            "Have the client ask at a real-time path, such as `/notification/realtime`, with WebSocket version 13.",
        ),
    }
)
"""By outcome and reason."""

_TABLES: Final[Mapping[Event, Mapping[tuple[str, str], Told]]] = MappingProxyType(
    {"handshake": HANDSHAKES, "upgrade": UPGRADES}
)


def told(event: Event, outcome: str, reason: str) -> Told:
    """What this end of a handshake, or of an upgrade, means."""
    return _TABLES[event][outcome, reason]
