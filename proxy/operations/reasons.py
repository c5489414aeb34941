"""What each way to fail means, in words for an operator, and what helps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from proxy.bayeux.replies import MessageReason
from proxy.operations.history import Event


DOCTOR: Final = "`c8y-realtime-proxy doctor --credential {credential}`"
_DOCTOR: Final = "`c8y-realtime-proxy doctor`"


@dataclass(frozen=True, slots=True)
class Told:
    """What happened, and the remedy: in general, where the credential is the client's `own`, and where none of the
    configuration was at hand (`without`). `when` says what exactly is counted as this, where the words do not. Code
    stands in backticks, and the name of the credential in braces.
    """

    words: str
    remedy: str
    own: str = ""
    without: str = ""
    when: str = ""

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
    when="it answered 401 or 403, in Bayeux or as HTTP status",
)
_CLIENT_GONE: Final = Told(
    "The client left before it was answered",
    "A few are usual. Where there are many, see whether the network, or a proxy in front of this one, cuts them off.",
    when="it ended the connection first, or broke a rule that ended it",
)
_DRAINING: Final = Told(
    "This proxy was going down", "Nothing: clients come back by themselves, to another replica or to the next start."
)
_IDENTITY: Final = Told(
    "The client did not prove who it is",
    when="as `gate.identity` asks it to",
    remedy="Give it what `gate.identity` asks for, and see that it is not out of date. "
    "`c8y-realtime-proxy clients list` tells which clients there are.",
)
_NO_CREDENTIAL: Final = Told(
    "There was no credential to send",
    f"The credential {{credential}} is not there, or not yet: the status page says why. {DOCTOR} tells more.",
    own="The client came without its own: its user has to sign in to Cumulocity first, by an address of this proxy.",
    without="None that this client may use is for its path and Host: see `endpoints` and `hosts` of the credentials.",
    when="nothing is stored, or the client's cookie or XSRF token is missing, wrong, or there twice",
)
_COOLDOWN: Final = Told(
    "Upstream rejected the credential a short while ago, so it was not offered again",
    f"Mend the credential {{credential}}: a new value is offered at once. {DOCTOR} tells what is wrong with this one.",
    when="`cooldown_seconds` of the credential are not over yet",
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
            when="it answered 402",
        ),
        ("rejected", "other"): Told(
            "Upstream rejected the handshake for a reason of its own",
            f"{_DOCTOR} makes the same handshake, and tells what upstream says.",
            when="it answered neither 401, 402 nor 403",
        ),
        ("unanswered", "client_gone"): _CLIENT_GONE,
        ("unanswered", "upstream_gone"): Told(
            "Upstream ended the connection before it answered",
            "See whether the platform was started again, or a proxy on the way to it cuts connections off. "
            f"{_DOCTOR} goes the same way step by step.",
            when="or its answer held no reply, or another handshake on the same connection was rejected",
        ),
        ("unanswered", "timeout"): Told(
            "Upstream did not answer in time",
            "See how quick the platform is for others. `handshake.timeout_seconds` says how long it gets. "
            f"{_DOCTOR} measures each step.",
            when="it was silent for `handshake.timeout_seconds`",
        ),
        ("unanswered", "drained"): _DRAINING,
        ("refused", "identity"): _IDENTITY,
        ("refused", "policy"): Told(
            "The client sent a credential of its own, which it must not",
            "Take it out of the client, or have it replaced: `handshake.client_authn` = `override`.",
            when="`handshake.client_authn` is `refuse`",
        ),
        ("refused", "no_credential"): _NO_CREDENTIAL,
        ("refused", "cooldown"): _COOLDOWN,
        ("refused", "limit"): Told(
            "Too many handshakes, or connections, at once",
            "The metric `limits_reached_total` says which limit it was: raise it in the section `limits`, "
            "or look for a client that comes back without a pause.",
            when="of this client or from this address within a minute, of this client's connections, or on one "
            "connection, where eight may wait for their answers, and one while it is not known whether upstream "
            "accepts the credential",
        ),
        ("refused", "unavailable"): replace(_UNAVAILABLE, when="or this proxy was going down"),
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
            when="it answered with another status than 101, 401 and 403",
        ),
        ("unanswered", "client_gone"): _CLIENT_GONE,
        ("refused", "origin"): Told(
            "A page of an origin that is not listed asked for a WebSocket",
            "If that page may connect, add its origin to `gate.origins`. The log has the address that it came from.",
            when="it is not in `gate.origins`",
        ),
        ("refused", "host"): Told(
            "The client asked for a Host that is not listed",
            "If clients come by another name, add it to `gate.hosts`. The log has the address that it came from.",
            when="it is not in `gate.hosts`",
        ),
        ("refused", "identity"): _IDENTITY,
        ("refused", "limit"): Told(
            "Too many connections at once",
            "Raise `limits.connections` or `limits.client_connections`, or look for a client that leaves them open.",
            when="`limits.connections` or `limits.client_connections` was reached",
        ),
        ("refused", "no_credential"): _NO_CREDENTIAL,
        ("refused", "cooldown"): _COOLDOWN,
        ("refused", "unavailable"): Told(
            _UNAVAILABLE.words,
            f"{_UNAVAILABLE.remedy} Where it was a fault of ours, the log says so.",
            when="or it was a fault of ours",
        ),
        ("refused", "draining"): _DRAINING,
        ("refused", "malformed"): Told(
            "The request was no opening of a WebSocket, or not at one of the paths",
            "Have the client ask at a real-time path, such as `/notification/realtime`, with WebSocket version 13.",
        ),
    }
)
"""By outcome and reason."""

MESSAGES: Final[Mapping[MessageReason, str]] = MappingProxyType(
    {
        "subscribe": "the client is not granted the channel, or the pattern, that it asks for",
        "publish": "the client is not granted the channel that it sends to",
        "call": "the client is not granted the service that it sends to",
        "client_id": "the clientId is not this client's (`402::Unknown client`)",
    }
)
"""Why a message other than a handshake did not go up."""

SIGN_INS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ok": "a session has begun, by the page, by a login that passed through, or by single sign-on",
        "credentials": "user, password or tenant was wrong",
        "code_required": "a one-time code was missing",
        "code_wrong": "a one-time code was not accepted",
        "setup_required": "two-factor authentication has to be set up first",
        "forbidden": "the platform knows the user, and does not let them in",
        "too_many": "refused, without asking the platform",
        "unavailable": "the platform, or where sessions are kept, could not be reached",
    }
)
"""How an attempt to sign in ended."""

_TABLES: Final[Mapping[Event, Mapping[tuple[str, str], Told]]] = MappingProxyType(
    {"handshake": HANDSHAKES, "upgrade": UPGRADES}
)


def told(event: Event, outcome: str, reason: str) -> Told:
    """What this end of a handshake, or of an upgrade, means."""
    return _TABLES[event][outcome, reason]
