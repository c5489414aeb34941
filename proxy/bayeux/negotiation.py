"""Handshakes in flight: filled in going up, settled coming down.

            handshake goes up                     its answer comes down
     idle  -------------------->  pending(n)  ---------------------------->  idle or pending(n - 1)
                                      |   the connection ends
                                      +-------------------------------->  n times `unanswered`

1. Each handshake that was read yields exactly one outcome.
2. Answers are matched in order among `/meta/handshake` replies, wherever they stand in the array; never by `id`,
   which is optional and chosen by the client.
3. Our authn *replaces* the client's by default: official clients store theirs and re-send it verbatim with every
   re-handshake, also long after it went stale.
4. Siblings in `ext` (`ack`, `timesync`, unknown keys) survive byte for byte.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, Literal, NamedTuple, Protocol, Self, TypeVar

from msgspec import Raw

from proxy.bayeux import channels
from proxy.bayeux.messages import Batch, Message, channel, decode, encode, members, raw, read, string
from proxy.bayeux.replies import Refusal, RefusalReason


AUTHN: Final = "com.cumulocity.authn"
FIELDS: Final = ("token", "tfa", "xsrfToken")
UNITS: Final = "systemOfUnits"  # stands beside the authn object in ext, not inside it
SYSTEMS_OF_UNITS: Final = ("imperial", "metric")

_REDACTED: Final = b"***"
_MOST_PENDING: Final = 8

Verdict = Literal["accepted", "rejected", "unanswered", "refused"]
RejectedReason = Literal["denied", "unknown_client", "other"]
UnansweredReason = Literal["client_gone", "upstream_gone", "timeout", "drained"]
Reason = Literal["ok"] | RejectedReason | UnansweredReason | RefusalReason


class ClientAuthn(StrEnum):
    """What happens to an authn object that the client sends."""

    OVERRIDE = "override"
    """Replaced by ours."""
    FILL = "fill"
    """Kept where it holds a token, and then nothing of ours goes up; replaced otherwise."""
    REFUSE = "refuse"
    """Refused, with a lasting refusal, unless it is the client's half of our credential."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one handshake ended, with the seconds since it was read.

    `ours` tells whether our credential went up with it: a client's own says nothing about ours.
    """

    verdict: Verdict
    reason: Reason
    seconds: float
    ours: bool = True


class Credential(Protocol):
    """What a negotiation needs of a credential; the kinds live in `proxy.credentials.kinds`."""

    @property
    def completed_by(self) -> frozenset[str]:
        """The authn fields that the client supplies as its half of this credential."""
        ...

    def completed(self, offered: Mapping[str, str]) -> Self:
        """The credential with what the client offered; itself where nothing was missing."""
        ...

    def authn(self) -> Mapping[str, str] | None:
        """The authn object, or None while a half is missing."""
        ...

    def secrets(self) -> Iterable[bytes]:
        """What of the authn object must not come down, as it may stand in JSON."""
        ...


C = TypeVar("C", bound=Credential)


class Up(NamedTuple):
    """What goes up, as a batch and as bytes (None when nothing is left to send), our own replies, and what they
    settled.
    """

    payload: bytes | None
    batch: Batch
    replies: Batch
    outcomes: Sequence[Outcome]


class Down(NamedTuple):
    """What goes down, and what it settled."""

    payload: bytes
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class _Pending:
    since: float
    ours: bool


class Negotiation(Generic[C]):
    """The handshakes of one WebSocket or one POST.

    `credential` is the one that this upstream connection was opened with, or None when the client's own goes up on
    it and nothing of ours may. `withheld` says, at each handshake, why ours must not be offered just now, or None.
    `retry_ms` is the pause advised with a passing refusal.
    """

    __slots__ = ("_client_authn", "_pending", "_retry_ms", "_units", "_withheld", "credential")

    def __init__(
        self,
        credential: C | None,
        *,
        client_authn: ClientAuthn = ClientAuthn.OVERRIDE,
        system_of_units: str | None = None,
        withheld: Callable[[], Refusal | None] = lambda: None,
        retry_ms: int = 5000,
    ) -> None:
        self.credential = credential
        self._withheld = withheld
        self._client_authn = client_authn
        self._units = system_of_units
        self._retry_ms = retry_ms
        self._pending: list[_Pending] = []  # a handful at most, and none nearly always

    @property
    def pending(self) -> bool:
        """Whether an answer is awaited: the one question that the way down asks."""
        return bool(self._pending)

    @property
    def waiting_since(self) -> float | None:
        """When the oldest handshake without an answer was read."""
        return self._pending[0].since if self._pending else None

    def from_client(self, payload: bytes, now: float) -> Up:
        """Judge a client's payload. Raises MalformedBatch."""
        batch = decode(payload)
        going_up: Batch = []
        refused: Batch = []
        outcomes: list[Outcome] = []
        for message in batch:
            if channel(message) != channels.HANDSHAKE:
                if "ext" in message:
                    _strip_authn(message)
                going_up.append(message)
                continue
            verdict = self._fill(message) if len(self._pending) < _MOST_PENDING else self._too_many()
            if isinstance(verdict, Refusal):
                refused.append(verdict.reply(message))
                outcomes.append(Outcome("refused", verdict.reason, 0.0))
            else:
                self._pending.append(_Pending(now, verdict))
                going_up.append(message)
        return Up(encode(going_up) if going_up or not batch else None, going_up, refused, outcomes)

    def from_upstream(self, payload: bytes, now: float) -> Down:
        """Observe a payload that upstream sent while an answer was awaited. Never raises."""
        payload = self._redacted(payload)
        batch = read(payload)
        if batch is None:
            return Down(payload, ())
        outcomes: list[Outcome] = []
        scrubbed = False
        for message in batch:
            scrubbed |= _scrub(message)
            if self._pending and string(message.get("channel")) == channels.HANDSHAKE:
                asked = self._pending.pop(0)
                outcomes.append(_outcome(message, now - asked.since, ours=asked.ours))
        return Down(encode(batch) if scrubbed else payload, outcomes)

    def answered_with_status(self, status: int, now: float) -> list[Outcome]:
        """Settle what upstream answered with an HTTP status other than 200: a rejection of every handshake."""
        reason: RejectedReason = "denied" if status in {401, 403} else "other"
        return [Outcome("rejected", reason, now - asked.since, asked.ours) for asked in self._drain_pending()]

    def abandon(self, now: float, reason: UnansweredReason) -> list[Outcome]:
        """Settle what never got an answer, at the end."""
        return [Outcome("unanswered", reason, now - asked.since, asked.ours) for asked in self._drain_pending()]

    def refuse_pending(self, reason: RefusalReason) -> list[Outcome]:
        """Settle as refused what could not be sent up after all."""
        return [Outcome("refused", reason, 0.0) for _ in self._drain_pending()]

    def _drain_pending(self) -> list[_Pending]:
        drained, self._pending = self._pending, []
        return drained

    def _too_many(self) -> Refusal:
        """Each would be a login attempt, and be bigger than what the client sent."""
        text = f"More than {_MOST_PENDING} handshakes wait for their answers on this connection"
        return Refusal("limit", text, self._retry_ms)

    def _redacted(self, payload: bytes) -> bytes:
        """A payload without the values of our authn: the platform quotes a token that it does not like."""
        for secret in self.credential.secrets() if self.credential is not None else ():
            payload = payload.replace(secret, _REDACTED)
        return payload

    def _fill(self, handshake: Message) -> bool | Refusal:
        """Put the authn object into a handshake; returns whether it is ours, or why it must not go up."""
        ext = members(handshake.get("ext"))
        if ext is None:
            return Refusal("malformed", "The handshake's ext is not an object")
        theirs = ext.pop(AUTHN, None)
        offered = _offered(theirs)
        authn: object
        if self.credential is None or (self._client_authn is ClientAuthn.FILL and "token" in offered):
            ours, authn = False, members(theirs)
        else:
            if (refusal := self._withheld()) is not None:
                return refusal
            if self._client_authn is ClientAuthn.REFUSE and not offered.keys() <= self.credential.completed_by:
                return Refusal("policy", "Clients may not send credentials here: leave com.cumulocity.authn out")
            self.credential = self.credential.completed(offered)
            ours, authn = True, self.credential.authn()
            if authn is None:
                return Refusal(
                    "no_credential",
                    "No XSRF token: send it as X-XSRF-TOKEN or in com.cumulocity.authn",
                    self._retry_ms,
                )
        if authn:
            ext[AUTHN] = raw(authn)
        if self._units is not None and string(ext.get(UNITS)) not in SYSTEMS_OF_UNITS:
            ext[UNITS] = raw(self._units)
        if ext or "ext" in handshake:
            handshake["ext"] = raw(ext)
        return ours


def refuse(payload: bytes, refusal: Refusal) -> Up:
    """Refuse a whole payload: every message gets its failed reply, every handshake its outcome.

    Raises MalformedBatch.
    """
    batch = decode(payload)
    handshakes = sum(channel(message) == channels.HANDSHAKE for message in batch)
    outcomes = [Outcome("refused", refusal.reason, 0.0)] * handshakes
    return Up(None, [], [refusal.reply(message) for message in batch], outcomes)


def brings_token(payload: bytes) -> bool:
    """Whether a handshake in a payload holds a token of the client's own. Raises MalformedBatch."""
    return any(
        "token" in _offered((members(message.get("ext")) or {}).get(AUTHN))
        for message in decode(payload)
        if channel(message) == channels.HANDSHAKE
    )


def _offered(authn: Raw | None) -> dict[str, str]:
    """The fields of a client's authn object that say something.

    An application that holds no key still sends `authn:{}`, and some send nulls: that is offering nothing.
    """
    fields = members(authn) or {}
    texts = {name: string(fields.get(name)) for name in FIELDS}
    return {name: text for name, text in texts.items() if text}


def _strip_authn(message: Message) -> None:
    """Remove authn from a message that is not a handshake: no credential rides on anything else."""
    ext = members(message.get("ext"))
    if ext and ext.pop(AUTHN, None) is not None:
        message["ext"] = raw(ext)


def _scrub(message: Message) -> bool:
    """Remove authn that upstream echoed; returns whether there was any."""
    before = message.get("ext")
    if before is None:
        return False
    _strip_authn(message)
    return message["ext"] is not before


def _outcome(answer: Message, seconds: float, *, ours: bool) -> Outcome:
    """Read the answer to a handshake.

    Success is in the body, never in the HTTP status; a failure's `error` is `code:args:text`, or just text, or
    missing, and `successful` may be missing too, so only the number is compared.
    """
    if bytes(answer.get("successful", b"")) == b"true":
        return Outcome("accepted", "ok", seconds, ours)
    code = (string(answer.get("error")) or "")[:3]
    reason: RejectedReason
    match code:
        case "401" | "403":
            reason = "denied"
        case "402":
            reason = "unknown_client"
        case _:
            reason = "other"
    return Outcome("rejected", reason, seconds, ours)
