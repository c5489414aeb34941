"""What a failure looks like to the client: one table for HTTP, one for open sockets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from aiohttp import WSCloseCode

from proxy.bayeux.messages import BatchTooLong, MalformedBatch
from proxy.bayeux.negotiation import Reason, UnansweredReason
from proxy.credentials.sources import CoolingDown, NoCredential, NotNow
from proxy.gate.admission import NotAdmitted
from proxy.gate.identity import IdentityUnavailable, NotIdentified
from proxy.gate.limits import TooMany
from proxy.head import AmbiguousHeader
from proxy.http1 import MalformedBody, MalformedHead
from proxy.upstream.client import UpgradeRejected
from proxy.upstream.posts import UpstreamUnavailable


class BadRequest(Exception):
    """A request that is wrong in a way the client can mend; the text says how. `limit` is the key of one it exceeds."""

    def __init__(self, status: int, text: str, *, allow: str | None = None, limit: str | None = None) -> None:
        super().__init__(f"{text} (limits.{limit})" if limit else text)
        self.status = status
        self.allow = allow
        self.limit = limit


class Draining(Exception):
    """We are leaving; another replica, or our successor, answers."""


class HandshakeTimeout(Exception):
    """Upstream has not answered a handshake in time."""


class HandshakeRejected(Exception):
    """Upstream rejected a handshake, for this reason, and its answer has been delivered."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class HandshakeRefused(Exception):
    """We refused a handshake, for this reason, and our reply has been delivered. `limit` is that of one it exceeds."""

    def __init__(self, reason: Reason, *, limit: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.limit = limit


class ProofEnded(Exception):
    """What a client proved itself by when it opened a WebSocket is good no longer."""


class Silent(Exception):
    """A client opened a WebSocket, and sent no message in time."""


class TooSlow(Exception):
    """A client began a message, and did not end it in time."""


class BinaryMessage(Exception):
    """Bayeux is text; a binary message is none of ours."""


Side = Literal["client", "upstream"]


class LegEnded(Exception):
    """One side of a WebSocket is gone.

    `code` is its close code, or None when it vanished without one. `violated` tells that it broke the protocol or a
    limit, whose key is `limit`, and has already been closed with that code.
    """

    def __init__(
        self, side: Side, code: int | None, text: bytes = b"", *, violated: bool = False, limit: str | None = None
    ) -> None:
        super().__init__(f"{side} ended with {code}")
        self.side = side
        self.code = code
        self.text = text
        self.violated = violated
        self.limit = limit


@dataclass(frozen=True, slots=True)
class HttpFailure:
    """An HTTP answer of our own; `reason` is the label under which a failed upgrade counts."""

    status: int
    reason: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)


_SOON: Final = MappingProxyType({"Retry-After": "5"})


def http_failure(error: Exception) -> HttpFailure | None:  # noqa: C901, PLR0911, PLR0912 - a table
    """The HTTP form of an error, or None for a bug of ours."""
    text = str(error)
    match error:
        case NotAdmitted():
            return HttpFailure(403, error.reason, text)
        case TooMany():
            return HttpFailure(429, "limit", text, _SOON)
        case IdentityUnavailable():
            return HttpFailure(503, "identity", text, _SOON)
        case NotIdentified():
            return HttpFailure(401, "identity", text, {"WWW-Authenticate": error.challenge} if error.challenge else {})
        case Draining():
            return HttpFailure(503, "draining", "This proxy is going down: connect again", _SOON)
        case CoolingDown():
            return HttpFailure(503, "cooldown", text, {"Retry-After": str(math.ceil(error.seconds))})
        case NotNow():
            return HttpFailure(503, "no_credential", text, _SOON)
        case NoCredential():
            return HttpFailure(401, "no_credential", text)
        case BatchTooLong():
            return HttpFailure(413, "malformed", f"Malformed request: {text}")
        case MalformedBatch() | MalformedBody() | MalformedHead() | AmbiguousHeader():
            return HttpFailure(400, "malformed", f"Malformed request: {text}")
        case ConnectionError():
            return HttpFailure(400, "client_gone", "The client is gone")
        case BadRequest():
            return HttpFailure(error.status, "malformed", text, {"Allow": error.allow} if error.allow else {})
        case UpgradeRejected():
            return HttpFailure(502, "denied" if error.status in {401, 403} else "other", text)
        case UpstreamUnavailable():
            return HttpFailure(504 if error.timed_out else 502, "unavailable", text)
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Closing:
    """How both legs of a WebSocket are closed, and why handshakes still in flight got no answer."""

    client: int
    upstream: int
    text: bytes
    unanswered: UnansweredReason


def limit_of(error: BaseException) -> str | None:
    """The key of the limit that somebody reached by this, or None."""
    match error:
        case TooMany() | BadRequest() | LegEnded():
            return error.limit
        case BatchTooLong():
            return "batch_messages"
        case Silent():
            return "first_message_seconds"
        case TooSlow():
            return "payload_seconds"
        case _:
            return None


FAULT: Final = Closing(WSCloseCode.INTERNAL_ERROR, WSCloseCode.GOING_AWAY, b"", "upstream_gone")
"""The closing for a bug of ours: no detail for anybody."""

_SILENT: Final = b"No message came in time (limits.first_message_seconds)"
_TOO_SLOW: Final = b"The message did not end in time (limits.payload_seconds)"


def closing(error: BaseException) -> Closing | None:  # noqa: C901, PLR0911, PLR0912 - a table
    """The closing for the way a WebSocket ended, or None for a bug of ours."""
    match error:
        case LegEnded(side="client", violated=True):
            text = f"limits.{error.limit}".encode() if error.limit else b""
            return Closing(error.code or WSCloseCode.PROTOCOL_ERROR, WSCloseCode.GOING_AWAY, text, "client_gone")
        case LegEnded(side="client"):
            code = _sendable(error.code, WSCloseCode.GOING_AWAY)
            return Closing(code, code, error.text, "client_gone")
        case LegEnded(violated=True):
            # The sender of a message too big is told 1009, its peer only that the connection is over.
            client = WSCloseCode.GOING_AWAY if error.code == WSCloseCode.MESSAGE_TOO_BIG else WSCloseCode.INTERNAL_ERROR
            return Closing(client, error.code or WSCloseCode.PROTOCOL_ERROR, b"", "upstream_gone")
        case LegEnded():
            code = _sendable(error.code, WSCloseCode.INTERNAL_ERROR)
            return Closing(code, code, error.text, "upstream_gone")
        case BatchTooLong():
            return Closing(WSCloseCode.MESSAGE_TOO_BIG, WSCloseCode.GOING_AWAY, str(error).encode(), "client_gone")
        case ProofEnded():
            text = b"Prove again who you are"
            return Closing(WSCloseCode.POLICY_VIOLATION, WSCloseCode.GOING_AWAY, text, "client_gone")
        case NotIdentified() | NoCredential():
            text = str(error).encode()
            return Closing(WSCloseCode.POLICY_VIOLATION, WSCloseCode.GOING_AWAY, text, "client_gone")
        case Silent():
            return Closing(WSCloseCode.POLICY_VIOLATION, WSCloseCode.GOING_AWAY, _SILENT, "client_gone")
        case TooSlow():
            return Closing(WSCloseCode.POLICY_VIOLATION, WSCloseCode.GOING_AWAY, _TOO_SLOW, "client_gone")
        case MalformedBatch():
            return Closing(WSCloseCode.INVALID_TEXT, WSCloseCode.GOING_AWAY, str(error).encode(), "client_gone")
        case BinaryMessage():
            return Closing(WSCloseCode.UNSUPPORTED_DATA, WSCloseCode.GOING_AWAY, b"Send text", "client_gone")
        case HandshakeRefused():
            return Closing(WSCloseCode.POLICY_VIOLATION, WSCloseCode.GOING_AWAY, b"Handshake refused", "client_gone")
        case HandshakeRejected():
            return Closing(WSCloseCode.OK, WSCloseCode.OK, b"Handshake rejected", "upstream_gone")
        case HandshakeTimeout():
            return Closing(WSCloseCode.INTERNAL_ERROR, WSCloseCode.GOING_AWAY, b"No answer from upstream", "timeout")
        case Draining():
            return Closing(WSCloseCode.GOING_AWAY, WSCloseCode.GOING_AWAY, b"Connect again", "drained")
        case _:
            return None


def _sendable(code: int | None, otherwise: int) -> int:
    """The code to mirror; `otherwise` for one that stands for silence and must not be sent (RFC 6455, 7.4.1)."""
    if code == _NO_STATUS:
        return WSCloseCode.OK
    return otherwise if code is None or code in _UNSENDABLE else code


_NO_STATUS: Final = 1005
_UNSENDABLE: Final = frozenset({1004, 1006, 1015})
