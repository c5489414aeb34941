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
5. What a client may not say, and a clientId that is not its own, is answered here and does not go up; the rest of the
   batch does.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, Literal, NamedTuple, Protocol, Self, TypeVar

from msgspec import Raw

from proxy.bayeux import channels
from proxy.bayeux.messages import Batch, Message, channel, decode, encode, members, raw, read, string, strings
from proxy.bayeux.ownership import Ownership
from proxy.bayeux.replies import UNKNOWN_CLIENT, MessageReason, MessageRefusal, Refusal, RefusalReason, dismissal


AUTHN: Final = "com.cumulocity.authn"
FIELDS: Final = ("token", "tfa", "xsrfToken")
UNITS: Final = "systemOfUnits"  # stands beside the authn object in ext, not inside it
SYSTEMS_OF_UNITS: Final = ("imperial", "metric")

_TYPES: Final = frozenset({"websocket", "long-polling", "smartrest-long-polling"})
"""The connection types that can be had here; callback-polling would let any page read along."""

_REDACTED: Final = b"***"
_TELLING: Final = 8  # bytes by which the beginning of a secret is known
_ESCAPE: Final = re.compile(rb"\\(?:u00([2-7][0-9A-Fa-f])|.)", re.DOTALL)
"""One escape in JSON; those of printable ASCII with their number."""
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

    `ours` tells whether our credential went up with it: a client's own says nothing about ours. `limit` is the key of
    the limit for which it was refused, if it was for one.
    """

    verdict: Verdict
    reason: Reason
    seconds: float
    ours: bool = True
    limit: str | None = None


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
    """What goes up, as a batch and as bytes (None when nothing is left to send), our own replies, what they settled,
    and which messages they refused. `offers` tells whether our credential goes up in a handshake.
    """

    payload: bytes | None
    batch: Batch
    replies: Batch
    outcomes: Sequence[Outcome]
    refused: Sequence[MessageReason] = ()
    offers: bool = False

    def __repr__(self) -> str:
        """Nothing of what goes up, which holds the credential."""
        return f"Up({len(self.batch)} up, {len(self.replies)} down, outcomes={self.outcomes!r})"


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
    it and nothing of ours may. `withheld` says, at each handshake, why it must not go up just now, or None; it is told
    whether ours would go with it. `forbidden` says of any other message why it may not go up, by its channel.
    `ownership` ties clientIds to this client; None where clients have no identity. `retry_ms` is the pause advised with
    a passing refusal, and `batch_messages` how many messages a payload may have.
    """

    __slots__ = (
        "_batch_messages",
        "_client_authn",
        "_connect",
        "_forbidden",
        "_own",
        "_ownership",
        "_pending",
        "_retry_ms",
        "_units",
        "_withheld",
        "credential",
    )

    def __init__(
        self,
        credential: C | None,
        *,
        client_authn: ClientAuthn = ClientAuthn.OVERRIDE,
        system_of_units: str | None = None,
        withheld: Callable[[bool], Refusal | None] = lambda _: None,
        forbidden: Callable[[str, Message], MessageRefusal | None] = lambda _channel, _message: None,
        ownership: Ownership | None = None,
        retry_ms: int = 5000,
        batch_messages: int | None = None,
    ) -> None:
        self.credential = credential
        self._withheld = withheld
        self._forbidden = forbidden
        self._ownership = ownership
        self._own: tuple[bytes, Raw] = b"", Raw(b"null")  # the clientId verified last: as sent, and as it goes up
        self._batch_messages = batch_messages
        self._client_authn = client_authn
        self._units = system_of_units
        self._retry_ms = retry_ms
        self._connect: bytes | None = None  # the id of the last connect
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
        batch = decode(payload, most=self._batch_messages)
        going_up: Batch = []
        replies: Batch = []
        outcomes: list[Outcome] = []
        refused: list[MessageReason] = []
        offers = False
        for message in batch:
            name = channel(message)
            if name == channels.HANDSHAKE:
                verdict = self._fill(message) if len(self._pending) < _MOST_PENDING else self._too_many()
                if isinstance(verdict, Refusal):
                    replies.append(verdict.reply(message))
                    outcomes.append(Outcome("refused", verdict.reason, 0.0, limit=verdict.limit))
                    continue
                self._pending.append(_Pending(now, verdict))
                offers |= verdict
            elif (refusal := self._forbidden(name, message) or self._not_own(message)) is not None:
                replies.append(refusal.reply(message))
                refused.append(refusal.reason)
                continue
            elif "ext" in message:
                _strip_authn(message)
            if name == channels.CONNECT:
                self._connect = bytes(message.get("id") or b"null")
            going_up.append(message)
        payload_up = encode(going_up) if going_up or not batch else None
        return Up(payload_up, going_up, replies, outcomes, refused, offers)

    def from_upstream(self, payload: bytes, now: float) -> Down:
        """Observe a payload that upstream sent while an answer was awaited. Never raises.

        It is read before it is redacted: half of a credential may be the client's, and look like anything.
        """
        batch = read(payload)
        if batch is None:
            return Down(self._redacted(payload), ())
        outcomes: list[Outcome] = []
        scrubbed = False
        for message in batch:
            scrubbed |= _scrub(message)
            if self._pending and string(message.get("channel")) == channels.HANDSHAKE:
                asked = self._pending.pop(0)
                outcomes.append(_outcome(message, now - asked.since, ours=asked.ours))
                scrubbed |= _narrow_types(message) | self._tag(message)
        return Down(self._redacted(encode(batch) if scrubbed else payload), outcomes)

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

    def farewell(self, refusal: Refusal) -> Message | None:
        """The reply to the connect that upstream holds, for a client that is to stay away; None where there was none.

        It has no more of the connect than its id, which is all that there is to be remembered while it is held.
        """
        if self._connect is None:
            return None
        return dismissal({"channel": raw(channels.CONNECT), "id": Raw(self._connect)}, refusal)

    def as_sent(self, batch: Batch) -> Batch:
        """Messages that went up, with their clientIds as the client knows them: what replies of ours are made from."""
        return batch if self._ownership is None else [message | self._tagged(message) for message in batch]

    def _drain_pending(self) -> list[_Pending]:
        drained, self._pending = self._pending, []
        return drained

    def _not_own(self, message: Message) -> MessageRefusal | None:
        """Cut the tag off a clientId, or say that it is not this client's.

        One must be there: without it, upstream would go by a cookie that may have leaked as well.
        """
        if self._ownership is None:
            return None
        given = message.get("clientId")
        written = b"" if given is None else bytes(given)
        if not written or written != self._own[0]:
            client_id = self._ownership.untagged(string(given) or "")
            if client_id is None:
                return UNKNOWN_CLIENT
            self._own = written, raw(client_id)
        message["clientId"] = self._own[1]
        return None

    def _tag(self, answer: Message) -> bool:
        """Tie the clientId of an accepted handshake to this client; returns whether there was one."""
        tagged = self._tagged(answer)
        answer.update(tagged)
        return bool(tagged)

    def _tagged(self, message: Message) -> Message:
        """The clientId of a message as its owner gets it, as far as there are both."""
        client_id = string(message.get("clientId"))
        if self._ownership is None or client_id is None:
            return {}
        return {"clientId": raw(self._ownership.tagged(client_id))}

    def _too_many(self) -> Refusal:
        """Each would be a login attempt, and be bigger than what the client sent."""
        text = f"More than {_MOST_PENDING} handshakes wait for their answers on this connection"
        return Refusal("limit", text, self._retry_ms)

    def _redacted(self, payload: bytes) -> bytes:
        """A payload without the values of our authn: the platform quotes a token that it does not like."""
        secrets = () if self.credential is None else tuple(self.credential.secrets())
        payload = _without(secrets, payload)
        plain = _spelled_out(payload)
        return _without(secrets, plain) if any(secret in plain for secret in secrets) else payload

    def unquoted(self, text: bytes) -> bytes:
        """A text of upstream's that may have been cut short, without the beginning of our authn and what follows it."""
        for secret in self.credential.secrets() if text and self.credential is not None else ():
            if (at := text.find(secret[:_TELLING])) >= 0:
                text = text[:at] + _REDACTED
        return text

    def _fill(self, handshake: Message) -> bool | Refusal:
        """Put the authn object into a handshake; returns whether it is ours, or why it must not go up."""
        ext = members(handshake.get("ext"))
        if ext is None:
            return Refusal("malformed", "The handshake's ext is not an object")
        if self._ownership is not None:
            handshake.pop("clientId", None)  # a session begins here; whose an older one is was not asked
        theirs = ext.pop(AUTHN, None)
        offered = _offered(theirs)
        authn: object
        ours = self.credential is not None and not (self._client_authn is ClientAuthn.FILL and "token" in offered)
        if (refusal := self._withheld(ours)) is not None:
            return refusal
        if self.credential is None or not ours:
            authn = members(theirs)
        else:
            if self._client_authn is ClientAuthn.REFUSE and not offered.keys() <= self.credential.completed_by:
                return Refusal("policy", "Clients may not send credentials here: leave com.cumulocity.authn out")
            self.credential = self.credential.completed(offered)
            authn = self.credential.authn()
            if authn is None:
                return Refusal(
                    "no_credential",
                    "No XSRF token, or not that of the session: send it as X-XSRF-TOKEN or in com.cumulocity.authn. "
                    "Reload the page if it has changed",
                    self._retry_ms,
                )
        if authn:
            ext[AUTHN] = raw(authn)
        if self._units is not None and string(ext.get(UNITS)) not in SYSTEMS_OF_UNITS:
            ext[UNITS] = raw(self._units)
        if ext or "ext" in handshake:
            handshake["ext"] = raw(ext)
        return ours


def refuse(payload: bytes, refusal: Refusal, *, batch_messages: int | None = None) -> Up:
    """Refuse a whole payload: every message gets its failed reply, and connects the advice, too; every handshake gets
    its outcome.

    Raises MalformedBatch.
    """
    batch = decode(payload, most=batch_messages)
    handshakes = sum(channel(message) == channels.HANDSHAKE for message in batch)
    outcomes = [Outcome("refused", refusal.reason, 0.0)] * handshakes
    return Up(None, [], [dismissal(message, refusal) for message in batch], outcomes)


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


def _narrow_types(answer: Message) -> bool:
    """Leave those connection types in an answer that can be had here; returns whether others were there."""
    types = strings(answer.get("supportedConnectionTypes")) or ()
    served = [name for name in types if name in _TYPES]
    if len(served) == len(types):
        return False
    answer["supportedConnectionTypes"] = raw(served)
    return True


def _without(secrets: Iterable[bytes], payload: bytes) -> bytes:
    for secret in secrets:
        payload = payload.replace(secret, _REDACTED)
    return payload


def _spelled_out(payload: bytes) -> bytes:
    r"""The same JSON, with no escapes where none are needed: writers differ in what they escape (`\/`, `\u003d`)."""
    return _ESCAPE.sub(_spelling, payload) if b"\\" in payload else payload


def _spelling(escape: re.Match[bytes]) -> bytes:
    if escape[1] is None:
        return b"/" if escape[0] == b"\\/" else escape[0]
    character = bytes((int(escape[1], 16),))
    return b"\\" + character if character in b'"\\' else character


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
