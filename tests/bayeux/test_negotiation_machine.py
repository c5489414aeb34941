"""Whatever goes up and comes down, in whatever order: a negotiation beside a model of it."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.bayeux.messages import MalformedBatch, Message, channel, decode, encode, members
from proxy.bayeux.negotiation import AUTHN, ClientAuthn, Negotiation, Outcome, UnansweredReason, brings_token, refuse
from proxy.bayeux.replies import Refusal, RefusalReason
from proxy.credentials.kinds import Basic, Credential, Jwt, OAuthCookie


MOST_PENDING: Final = 8
COOLDOWN: Final = Refusal("cooldown", "Not now", 100)

CREDENTIALS: Final[dict[str, tuple[Credential | None, str]]] = {
    "basic": (Basic("ann", "canary??>", tenant="t1"), "dDEvYW5uOmNhbmFyeT8/Pg=="),
    "basic with tfa": (Basic("ann", "x", tfa="canary=tfa"), "canary=tfa"),
    "jwt": (Jwt("eyJh/canary.x="), "eyJh/canary.x="),
    "cookie": (OAuthCookie("canary-cookie", xsrf_token="canary/xsrf"), "canary/xsrf"),
    "open cookie": (OAuthCookie("canary-cookie"), "canary-cookie"),
    "the client's own": (None, "canary"),
}
"""Credentials, each with a secret of its that upstream may quote."""


# Up -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Authn:
    """An authn object as a client writes it, and what it offers by that."""

    written: bytes
    offered: dict[str, str]


AUTHNS: Final = (
    Authn(b"null", {}),
    Authn(b"{}", {}),
    Authn(b'"their-text"', {}),
    Authn(b'{"token":"","tfa":null,"xsrfToken":5}', {}),
    Authn(b'{"token":"their-token" , "n":1.0}', {"token": "their-token"}),
    Authn(b'{"tfa":"their-tfa"}', {"tfa": "their-tfa"}),
    Authn(b'{"xsrfToken":"their-xsrf"}', {"xsrfToken": "their-xsrf"}),
    Authn(b'{"xsrfToken":"their\\u0020xsrf"}', {"xsrfToken": "their xsrf"}),
    Authn(
        b'{"token":"their-token","tfa":"their-tfa","xsrfToken":"their-other-xsrf"}',
        {"token": "their-token", "tfa": "their-tfa", "xsrfToken": "their-other-xsrf"},
    ),
)
SIBLINGS: Final = {"ack": b"true", "timesync": b'{"tc":1.50e+05, "l":-0 }', "x": b'"\\/\\u0041"', "null": b"null"}
NAMES: Final = (b'"com.cumulocity.authn"', b'"com\\u002ecumulocity.authn"')


@dataclass(frozen=True, slots=True)
class Sent:
    """A message as a client sends it. Its ext is an object, raw bytes instead of one, or None where there is none."""

    channel: str
    ext: tuple[str, ...] | bytes | None
    authn: Authn | None
    name: bytes
    is_behind: bool

    @property
    def is_handshake(self) -> bool:
        return self.channel == "/meta/handshake"

    @property
    def offered(self) -> dict[str, str]:
        return self.authn.offered if self.authn is not None and isinstance(self.ext, tuple) else {}

    def written(self) -> bytes:
        if self.ext is None:
            return b'{"channel":"%b"}' % self.channel.encode()
        if isinstance(self.ext, bytes):
            return b'{"ext":%b,"channel":"%b"}' % (self.ext, self.channel.encode())
        parts = [b'"%b":%b' % (name.encode(), SIBLINGS[name]) for name in self.ext]
        if self.authn is not None:
            parts.insert(len(parts) * self.is_behind, self.name + b":" + self.authn.written)
        return b'{"channel":"%b","ext":{%b}}' % (self.channel.encode(), b",".join(parts))


OBJECTS: Final = st.lists(st.sampled_from(sorted(SIBLINGS)), max_size=2, unique=True).map(tuple)
SENT: Final = st.builds(
    Sent,
    channel=st.sampled_from(["/meta/handshake"] * 4 + ["/meta/connect", "/alarms/1"]),
    ext=OBJECTS | OBJECTS | OBJECTS | OBJECTS | st.sampled_from([None, b"null", b"5", b'["their-token"]']),
    authn=st.none() | st.sampled_from(AUTHNS) | st.sampled_from(AUTHNS),
    name=st.sampled_from(NAMES),
    is_behind=st.booleans(),
)
FORMS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "as they are": lambda batch: b"[" + batch + b"]",
    "among spaces": lambda batch: b"\n [ " + batch + b"\t] ",
    "alone": lambda batch: batch,
}
JUNK: Final = (
    b"",
    b"[{",
    b"5",
    b'[{"channel":"/meta/handshake"},{}]',
    b'[{"channel":"/meta/handshake"},{"channel":"/Meta/handshake"}]',
    b'[{"channel":"/meta/handshake","ext":{"com.cumulocity.authn":{"token":"\xff"}}}]',
    b'[{"channel":"/meta/handshake","ext":{"com.cumulocity.authn":{"token":"\\ud800"}}}]',
    b'{"channel":"/meta/handshake"}{"channel":"/meta/handshake"}',
    b"\xef\xbb\xbf[]",
    b"[" * 100_000,
)

BATCHES: Final = (
    st.lists(SENT, max_size=3)
    | st.lists(SENT, min_size=1, max_size=1)
    | st.lists(SENT, min_size=1, max_size=3)
    | st.lists(SENT, min_size=3, max_size=3).map(lambda batch: batch * 4)
    | st.sampled_from(JUNK)
)

# Down -----------------------------------------------------------------------------------------------------------------

ANSWERS: Final[dict[str, tuple[bytes, tuple[str, str] | None]]] = {
    "accepted": (b'"channel":"/meta/handshake","successful":true', ("accepted", "ok")),
    "denied": (b'"channel":"\\/meta\\/handshake","successful":false,"error":"403::Denied"', ("rejected", "denied")),
    "unknown": (b'"error":"402::Unknown client","channel":"/meta/handshake"', ("rejected", "unknown_client")),
    "broken": (b'"channel":"/meta/handshake","successful":"true"', ("rejected", "other")),
    "connect": (b'"channel":"/meta/connect","successful":true', None),
    "event": (b'"channel":"/alarms/1","data":{"channel":"/meta/handshake","successful":true}', None),
    "no channel": (b'"successful":true', None),
}
"""What upstream says, and how it settles a handshake."""

QUOTES: Final[dict[str, Callable[[str], str]]] = {
    "plainly": lambda secret: secret,
    "slashes escaped": lambda secret: secret.replace("/", "\\/"),
    "as a careful writer of pages": lambda secret: secret.replace("=", "\\u003d").replace("/", "\\u002F"),
    "as code points": lambda secret: "".join(f"\\u{ord(character):04x}" for character in secret),
    "behind an escaped backslash": lambda secret: "\\\\" + secret.replace("/", "\\/"),
}


NOISE: Final = (b"", b"  ", b"[{", b'[{"channel":"/meta/handshake"', b"\xff", b"<p>%b</p>", b"[1]")


@dataclass(frozen=True, slots=True)
class Told:
    """A message as upstream sends it, with the ways in which it quotes a secret and whether it echoes the authn."""

    kind: str
    quotes: tuple[str, ...]
    echoes: bool

    def written(self, secret: str) -> bytes:
        quotes = [f'"{place}":"{QUOTES[quote](secret)}"'.encode() for place, quote in enumerate(self.quotes)]
        echo = [b'"ext":{"ack":true,"com.cumulocity.authn":{"token":"%b"}}' % secret.encode()] * self.echoes
        return b"{" + b",".join([ANSWERS[self.kind][0], *quotes, *echo]) + b"}"


TOLD: Final = st.builds(
    Told,
    kind=st.sampled_from(sorted(ANSWERS)) | st.sampled_from(["accepted", "denied"]),
    quotes=st.lists(st.sampled_from(sorted(QUOTES)), max_size=2).map(tuple),
    echoes=st.booleans(),
)


ANSWER_BATCHES: Final = st.lists(TOLD, max_size=4) | st.lists(TOLD, min_size=1, max_size=1) | st.sampled_from(NOISE)


def texts_of(payload: bytes) -> str:
    """All that a payload says, whatever was escaped in it."""
    try:
        return repr(msgspec.json.decode(payload))
    except msgspec.DecodeError:
        return payload.decode(errors="replace")


class Negotiating(RuleBasedStateMachine):
    """The model: the handshakes that are awaited, the credential, and whether it is withheld."""

    negotiation: Negotiation[Credential]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.handshakes = 0
        self.settled = 0
        self.awaited: deque[tuple[float, bool]] = deque()  # when each was read, and whether ours went up with it
        self.withheld: Refusal | None = None

    @initialize(
        kind=st.sampled_from(sorted(CREDENTIALS)),
        policy=st.sampled_from(list(ClientAuthn)),
        units=st.sampled_from([None, "metric"]),
    )
    def open(self, kind: str, policy: ClientAuthn, units: str | None) -> None:
        self.credential, self.secret = CREDENTIALS[kind]
        self.policy, self.units = policy, units
        self.negotiation = Negotiation(
            self.credential,
            client_authn=policy,
            system_of_units=units,
            withheld=lambda ours: self.withheld if ours else None,
            retry_ms=5000,
        )

    # What happens -----------------------------------------------------------------------------------------------------

    @rule(
        batch=BATCHES,
        form=st.sampled_from(sorted(FORMS)),
        pause=st.integers(1, 5),
        is_withheld=st.sampled_from([False] * 9 + [True]),
    )
    def client_sends(self, batch: list[Sent] | bytes, form: str, pause: int, *, is_withheld: bool) -> None:
        self.now += pause
        self.withheld = COOLDOWN if is_withheld else None
        if isinstance(batch, bytes):
            self.client_sends_junk(batch)
            return
        payload = FORMS["as they are" if len(batch) != 1 else form](b",".join(sent.written() for sent in batch))
        expected = [self.judged(sent) for sent in batch]
        up = self.negotiation.from_client(payload, self.now)

        going_up = [sent for sent, refused in zip(batch, expected, strict=True) if refused is None]
        refused = [reason for reason in expected if reason is not None]
        assert [(outcome.verdict, outcome.reason) for outcome in up.outcomes] == [("refused", why) for why in refused]
        self.check_replies(encode(up.replies), len(refused))
        assert (up.payload is None) is (not going_up and bool(batch))
        assert len(up.batch) == len(going_up)
        if up.payload is not None:
            assert decode(up.payload) == up.batch
        for sent, message in zip(going_up, up.batch, strict=True):
            assert channel(message) == sent.channel
            assert message.keys() == ({"channel", "ext"} if sent.ext is not None or "ext" in message else {"channel"})
            self.check_ext(sent, message)
        self.settled += len(up.outcomes)

        handshakes = [sent for sent in batch if sent.is_handshake]
        assert brings_token(payload) is any("token" in sent.offered for sent in handshakes)
        all_refused = refuse(payload, COOLDOWN)
        assert list(all_refused.outcomes) == [Outcome("refused", "cooldown", 0.0)] * len(handshakes)
        assert [channel(reply) for reply in all_refused.replies] == [sent.channel for sent in batch]

    def client_sends_junk(self, payload: bytes) -> None:
        for judge in (lambda: self.negotiation.from_client(payload, self.now), lambda: brings_token(payload)):
            with pytest.raises(MalformedBatch) as malformed:
                judge()
            assert "their-" not in str(malformed.value)

    @precondition(lambda self: bool(self.awaited))
    @rule(batch=ANSWER_BATCHES, form=st.sampled_from(sorted(FORMS)))
    def upstream_sends(self, batch: list[Told] | bytes, form: str) -> None:
        if isinstance(batch, bytes):
            self.upstream_sends_junk(batch)
            return
        payload = FORMS["as they are" if len(batch) != 1 else form](
            b",".join(told.written(self.secret) for told in batch)
        )
        down = self.negotiation.from_upstream(payload, self.now)
        verdicts = [verdict for told in batch if (verdict := ANSWERS[told.kind][1]) is not None]
        settled = [self.awaited.popleft() for _ in verdicts[: len(self.awaited)]]
        assert list(down.outcomes) == [
            Outcome(*verdict, self.now - since, ours)  # type: ignore[arg-type] # of the table
            for verdict, (since, ours) in zip(verdicts, settled, strict=False)
        ]
        self.settled += len(settled)
        self.check_silence(down.payload)
        assert AUTHN.encode() not in down.payload
        if not any(told.echoes or told.quotes for told in batch):
            assert down.payload == payload
        read = msgspec.json.decode(down.payload)
        for told, message in zip(batch, read if isinstance(read, list) else [read], strict=True):
            assert message.get("ext") == ({"ack": True} if told.echoes else None)
            assert {"0", "1"} & message.keys() == {str(place) for place in range(len(told.quotes))}

    def upstream_sends_junk(self, payload: bytes) -> None:
        payload = payload.replace(b"%b", self.secret.encode())
        down = self.negotiation.from_upstream(payload, self.now)
        assert list(down.outcomes) == []
        self.check_silence(down.payload)
        assert down.payload == payload or self.secret.encode() in payload

    @precondition(lambda self: bool(self.awaited))
    @rule(ending=st.sampled_from([401, 403, 500, *get_args(UnansweredReason), *get_args(RefusalReason)]))
    def no_answer_comes(self, ending: Any) -> None:
        if ending in get_args(UnansweredReason):
            self.check_end(self.negotiation.abandon(self.now, ending), "unanswered", ending)
        elif ending in get_args(RefusalReason):
            outcomes = self.negotiation.refuse_pending(ending)
            assert outcomes == [Outcome("refused", ending, 0.0)] * len(self.awaited)
            self.settled += len(outcomes)
            self.awaited.clear()
        else:
            reason = "denied" if ending in {401, 403} else "other"
            self.check_end(self.negotiation.answered_with_status(ending, self.now), "rejected", reason)

    # What is expected -------------------------------------------------------------------------------------------------

    def judged(self, sent: Sent) -> str | None:
        """Why a message does not go up, or None; the model takes note of one that does."""
        if not sent.is_handshake:
            return None
        self.handshakes += 1
        if len(self.awaited) >= MOST_PENDING:
            return "limit"
        if isinstance(sent.ext, bytes) and sent.ext != b"null":
            return "malformed"
        is_ours = self.is_ours(sent)
        if is_ours and (refused := self.refused(sent.offered)):
            return refused
        self.awaited.append((self.now, is_ours))
        return None

    def is_ours(self, sent: Sent) -> bool:
        return self.credential is not None and not (self.policy is ClientAuthn.FILL and "token" in sent.offered)

    def refused(self, offered: dict[str, str]) -> str | None:
        """Why ours does not go up with a handshake; the model is completed by a half that is offered in time."""
        if self.withheld:
            return "cooldown"
        is_cookie = isinstance(self.credential, OAuthCookie)
        if self.policy is ClientAuthn.REFUSE and offered.keys() - ({"xsrfToken"} if is_cookie else set()):
            return "policy"
        if isinstance(self.credential, OAuthCookie) and not self.credential.xsrf_token:
            half = offered.get("xsrfToken")
            if half is None or " " in half:
                return "no_credential"
            self.credential = OAuthCookie(self.credential.token, xsrf_token=half)
        return None

    def check_ext(self, sent: Sent, message: Message) -> None:
        """Siblings are as they came, byte for byte and in order, and the authn is whose it must be."""
        if not sent.is_handshake and not isinstance(sent.ext, tuple):
            assert message.get("ext") == (None if sent.ext is None else msgspec.Raw(sent.ext))
            return
        ext = members(message.get("ext"))
        assert ext is not None
        authn, units = ext.pop(AUTHN, None), ext.pop("systemOfUnits", None)
        siblings = sent.ext if isinstance(sent.ext, tuple) else ()
        assert [(name, bytes(value)) for name, value in ext.items()] == [(name, SIBLINGS[name]) for name in siblings]
        if not sent.is_handshake:
            assert (authn, units) == (None, None)
            return
        assert units == (msgspec.Raw(b'"metric"') if self.units else None)
        if self.is_ours(sent):
            assert self.credential is not None
            assert msgspec.json.decode(authn or b"") == self.credential.authn()
        else:
            theirs = sent.authn.written if sent.authn is not None and isinstance(sent.ext, tuple) else b"{}"
            says_something = theirs.startswith(b"{") and theirs != b"{}"
            assert members(authn) == (members(msgspec.Raw(theirs)) if says_something else {})

    def check_replies(self, replies: bytes, refused: int) -> None:
        read: list[dict[str, Any]] = msgspec.json.decode(replies)
        assert [reply["channel"] for reply in read] == ["/meta/handshake"] * refused
        assert all(reply["successful"] is False and reply["error"].startswith("403::") for reply in read)
        assert b"their-" not in replies
        self.check_silence(replies)

    def check_silence(self, payload: bytes) -> None:
        """No secret comes down, and none in disguise. (That of the client's own connection is not ours to keep.)"""
        if self.credential is None or self.credential.authn() is None or self.secret == "canary-cookie":
            return
        assert self.secret.encode() not in payload
        assert self.secret not in texts_of(payload)

    def check_end(self, outcomes: Sequence[Outcome], verdict: str, reason: str) -> None:
        assert [(outcome.verdict, outcome.reason) for outcome in outcomes] == [(verdict, reason)] * len(self.awaited)
        assert [(outcome.seconds, outcome.ours) for outcome in outcomes] == [
            (self.now - since, ours) for since, ours in self.awaited
        ]
        self.settled += len(outcomes)
        self.awaited.clear()

    @invariant()
    def each_handshake_that_was_read_is_awaited_or_has_its_one_outcome(self) -> None:
        assert self.settled + len(self.awaited) == self.handshakes
        assert self.negotiation.pending is bool(self.awaited)
        assert self.negotiation.waiting_since == (self.awaited[0][0] if self.awaited else None)

    @invariant()
    def credential_is_the_one_of_the_connection(self) -> None:
        assert self.negotiation.credential == self.credential

    def teardown(self) -> None:
        if hasattr(self, "negotiation"):
            self.check_end(self.negotiation.abandon(self.now, "client_gone"), "unanswered", "client_gone")


TestNegotiating = Negotiating.TestCase
TestNegotiating.settings = settings(max_examples=120, stateful_step_count=20, deadline=None, derandomize=True)
