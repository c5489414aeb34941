"""How connections end, in the log: one line each, with who ended it, why, and what each side was told.

Outcomes and reasons are closed sets, and public API as those of metrics are: docs/logs.md describes each. Nothing is
told that a client or upstream said: names are those of the configuration, all else comes from here.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, NamedTuple

from proxy.bayeux.messages import BatchTooLong, MalformedBatch
from proxy.bayeux.negotiation import Outcome
from proxy.gate.clients import Client
from proxy.gate.identity import NotIdentified, SessionEnded
from proxy.operations.metrics import UPGRADE_REASONS, Transport
from proxy.relay.failures import (
    BinaryMessage,
    HandshakeRefused,
    HandshakeRejected,
    HandshakeTimeout,
    LegEnded,
    ProofEnded,
    Side,
    http_failure,
    limit_of,
)


events: Final = logging.getLogger(__name__)

ENDINGS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "closed": {"by_client": "the client closed it", "by_upstream": "upstream closed it"},
        "answered": {"ok": "upstream answered"},
        "accepted": {"ok": "upstream accepted the handshake"},
        "rejected": {
            "denied": "upstream did not accept the credential",
            "unknown_client": "upstream did not know the client's session",
            "other": "upstream rejected it for another reason",
        },
        "unanswered": {
            "client_gone": "the client left before it was answered",
            "upstream_gone": "upstream went away before it had answered",
            "timeout": "upstream did not answer a handshake in time",
        },
        "broken": {
            "client_gone": "the client was gone without a close frame",
            "upstream_gone": "upstream was gone without a close frame",
            "client_silent": "the client did not answer a ping",
            "upstream_silent": "upstream did not answer a ping",
            "client_stalled": "the client did not take what it was sent",
            "upstream_stalled": "upstream did not take what it was sent",
            "upstream_malformed": "upstream broke the protocol",
            "limit": "upstream sent more than a limit allows",
        },
        "drained": {
            "draining": "this proxy was going down, and said so",
            "cut_off": "this proxy went down before it was over",
        },
        "revoked": {
            "identity": "the client was removed, or what proved who it is does so no longer",
            "signed_out": "its user signed out, or the session ended",
            "expired": "the proof of who the client is has expired",
            "no_credential": "the credential was taken away, or from this client",
        },
        "refused": {
            "origin": "its Origin is not admitted",
            "host": "its Host is not admitted",
            "identity": "the client did not prove who it is",
            "policy": "the client sent a credential of its own, which it must not",
            "no_credential": "there was no credential to send",
            "cooldown": "upstream rejected the credential a short while ago",
            "limit": "a limit was reached",
            "unavailable": "upstream could not be reached",
            "draining": "this proxy was going down",
            "malformed": "it was malformed, or nothing is served there",
            "subscribe": "the client is not granted what it subscribes to",
            "publish": "the client is not granted what it publishes to",
            "call": "the client is not granted what it calls",
            "client_id": "the clientId is not of this client",
        },
        "failed": {"fault": "a fault of this proxy, told above"},
    }
)
"""Every reason of every outcome, in words."""

_GONE: Final = 1006
"""What RFC 6455, 7.1.5 calls an end without a close frame."""


class Ending(NamedTuple):
    """Outcome and reason, which are of ENDINGS, and the key of the limit that was reached, if one was."""

    outcome: str
    reason: str
    limit: str | None = None


ANSWERED: Final = Ending("answered", "ok")
DRAINED: Final = Ending("drained", "draining")
CUT_OFF: Final = Ending("drained", "cut_off")
CLIENT_GONE: Final = Ending("unanswered", "client_gone")
UPSTREAM_GONE: Final = Ending("unanswered", "upstream_gone")
SENT_AHEAD: Final = Ending("refused", "malformed")
TOO_BIG: Final = Ending("broken", "limit", "upstream_payload_bytes")
SILENT: Final[Mapping[Side, Ending]] = MappingProxyType(
    {"client": Ending("broken", "client_silent"), "upstream": Ending("broken", "upstream_silent")}
)
STALLED: Final[Mapping[Side, Ending]] = MappingProxyType(
    {
        "client": Ending("broken", "client_stalled", "stalled_seconds"),
        "upstream": Ending("broken", "upstream_stalled", "stalled_seconds"),
    }
)


def ending_of(problem: Exception) -> Ending:  # noqa: PLR0911 - a table
    """How something ended that ended by this. One that is known to no table is a fault of ours."""
    limit = limit_of(problem)
    match problem:
        case LegEnded():
            return _ending_of_leg(problem)
        case HandshakeRejected():
            return Ending("rejected", problem.reason)
        case HandshakeRefused():
            return Ending("refused", problem.reason, problem.limit)
        case HandshakeTimeout():
            return Ending("unanswered", "timeout")
        case ProofEnded():
            return Ending("revoked", "expired")
        case BatchTooLong():
            return Ending("refused", "limit", limit)
        case BinaryMessage() | MalformedBatch():
            return Ending("refused", "malformed")
        case _ if limit is not None:
            return Ending("refused", "limit", limit)
        case _:
            failure = http_failure(problem)
            return Ending("failed", "fault") if failure is None else _of_request(failure.reason)


def _ending_of_leg(ended: LegEnded) -> Ending:
    if ended.violated:
        outcome = "refused" if ended.side == "client" else "broken"
        if ended.limit is not None:
            return Ending(outcome, "limit", ended.limit)
        return Ending(outcome, "malformed" if ended.side == "client" else "upstream_malformed")
    if ended.code is None:
        return Ending("broken", "client_gone" if ended.side == "client" else "upstream_gone")
    return Ending("closed", "by_client" if ended.side == "client" else "by_upstream")


def _of_request(reason: str) -> Ending:
    """How a request ended that did for this reason, as metrics of upgrades have it."""
    outcome = next((outcome for outcome, reasons in UPGRADE_REASONS.items() if reason in reasons), "refused")
    return Ending(outcome, reason)


def revoked(problem: Exception) -> Ending:
    """How a connection ended that could stay no longer, for this reason."""
    if isinstance(problem, SessionEnded):
        return Ending("revoked", "signed_out")
    return Ending("revoked", "identity" if isinstance(problem, NotIdentified) else "no_credential")


def of_handshake(outcome: Outcome) -> Ending:
    """How a request ended whose handshake did so."""
    if outcome.reason == "drained":
        return DRAINED
    return Ending(outcome.verdict, outcome.reason, outcome.limit)


def of_status(status: int) -> Ending:
    """How a request ended that upstream answered so."""
    if status == HTTPStatus.OK:
        return ANSWERED
    return Ending("rejected", "denied" if status in {401, 403} else "other")


def close_codes(ended: LegEnded | None, told_client: int, told_upstream: int) -> tuple[int, int]:
    """The close codes of a WebSocket as the log has them, to or from the client and upstream: what the side said that
    ended it, and what we told the other, or both.
    """
    if ended is None or ended.violated:
        return told_client, told_upstream
    said = ended.code or _GONE
    return (said, told_upstream) if ended.side == "client" else (told_client, said)


def level_of(outcome: str) -> int:
    """How important an end is. A POST that upstream answered is a detail: who polls has one every few moments."""
    return logging.DEBUG if outcome == "answered" else logging.INFO


def tell(
    transport: Transport,
    ending: Ending,
    *,
    endpoint: str,
    seconds: float,
    client: Client,
    credential: str | None,
    peer: str,
    status: int = 0,
    codes: tuple[int, int] | None = None,
) -> None:
    """Tell how a connection ended: a WebSocket with its close codes, as `close_codes` has them; a POST, or a WebSocket
    that was not opened, with the HTTP status of the answer, if there was one.
    """
    level = level_of(ending.outcome)
    if not events.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "event": "connection_ended",
        "transport": transport,
        "outcome": ending.outcome,
        "reason": ending.reason,
    }
    told = [ending.outcome, ending.reason]
    if ending.limit is not None:
        fields["limit"] = ending.limit
        told.append(f"limits.{ending.limit}")
    fields["seconds"] = round(seconds, 3)
    if codes is not None:
        fields["close_code"], fields["upstream_close_code"] = codes
        told.append(f"close code {codes[0]}, upstream {codes[1]}")
    if status:
        fields["status"] = status
        told.append(f"status {status}")
    fields |= {"client": client.name, "credential": credential or "", "endpoint": endpoint, "peer": peer}
    words = ENDINGS[ending.outcome][ending.reason]
    events.log(
        level,
        "%s%s%s%s after %.3f s: %s (%s)",
        "A WebSocket" if transport == "websocket" else "A POST",
        f" of {client.name}" if client.name else "",
        f" from {peer}" if peer else "",
        " ended" if transport != "websocket" or codes is not None else " did not open",
        seconds,
        words,
        ", ".join(told),
        extra={"fields": fields},
    )


def tell_refusal(ending: Ending, *, status: int, peer: str) -> None:
    """Tell of a request that was none of those, or could not be read, and is refused."""
    if not events.isEnabledFor(logging.INFO):
        return
    fields: dict[str, object] = {"event": "request_refused", "outcome": ending.outcome, "reason": ending.reason}
    told = [ending.outcome, ending.reason]
    if ending.limit is not None:
        fields["limit"] = ending.limit
        told.append(f"limits.{ending.limit}")
    fields |= {"status": status, "peer": peer}
    events.info(
        "A request%s was not served: %s (%s, status %d)",
        f" from {peer}" if peer else "",
        ENDINGS[ending.outcome][ending.reason],
        ", ".join(told),
        status,
        extra={"fields": fields},
    )
