"""Batches: what is judged is what goes up, and handshakes are settled once, by a plain second reading of the same JSON.

An input is a byte that chooses credential and policy, and payloads with NUL between them, going up and down in turn.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from proxy.bayeux import messages
from proxy.bayeux.messages import MalformedBatch
from proxy.bayeux.negotiation import AUTHN, FIELDS, ClientAuthn, Negotiation, brings_token, refuse
from proxy.bayeux.replies import Joiner, Refusal
from proxy.credentials.kinds import Basic, Credential, Jwt, OAuthCookie, is_token
from tests.fuzz.cutting import cuttings


TOKEN: Final = "eyJh/canary"
CREDENTIALS: Final[tuple[Credential | None, ...]] = (
    Jwt(TOKEN),
    Basic("ann", "canary??>", tenant="t1", tfa="canary-tfa"),
    OAuthCookie("canary-cookie", xsrf_token="canary/xsrf"),
    OAuthCookie("canary-cookie"),
    None,
)
POLICIES: Final = tuple(ClientAuthn)

WORDS: Final = (
    b'{"channel":"/meta/handshake"}',
    b'{"channel":"/meta/handshake","ext":{',
    b'"com.cumulocity.authn":{',
    b'"com\\u002ecumulocity.authn":',
    b'"channel":"/alarms/1"',
    b'"channel":"/meta/connect"',
    b'"ext":{',
    b'"token":"theirs"',
    b'"xsrfToken":"theirs"',
    b'"tfa":',
    b'"successful":true',
    b'"successful":false,"error":"403::',
    b'"advice":',
    b'"id":"1"',
    b'"systemOfUnits":"metric"',
    b"eyJh/canary",
    b"eyJh\\/canary",
    b"eyJh\\u002fcanary",
    b"\\u0065",
    b"\\ud83d\\ude00",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"NaN",
    b"1e400",
    b"null",
    b"\0[{",
    b"\0[]\0",
)


_MOST_PAYLOADS: Final = 8


def check(data: bytes) -> None:
    """Judge in every way. Raises AssertionError where two of them differ."""
    choice, payloads = data[0] if data else 0, data[1:].split(b"\0", _MOST_PAYLOADS - 1)
    credential = CREDENTIALS[choice % len(CREDENTIALS)]
    policy = POLICIES[choice // len(CREDENTIALS) % len(POLICIES)]
    play = _Play(credential, policy)
    for place, payload in enumerate(payloads):
        if place % 2:
            play.from_upstream(payload, float(place))
            _check_join(payload)
        else:
            play.from_client(payload, float(place))
    play.end(float(len(payloads)))


# A plain second reading -----------------------------------------------------------------------------------------------

Value = Any
Plain = dict[str, Value]


def _no_constant(name: str) -> Value:
    raise ValueError(name)


_plain: Final = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_no_constant)
"""The standard library's reader, with numbers left as texts, so that they are compared to the digit."""


def plainly(payload: bytes) -> Value:
    """The value that a payload is, by another reader; None for what is no JSON, or too deep to be read."""
    try:
        return _plain.decode(payload.decode())
    except (ValueError, RecursionError):
        return None


def batch_of(payload: bytes) -> list[Plain] | None:
    """The messages of a payload, by that reader."""
    value = plainly(payload)
    batch: list[Plain] | None = value if isinstance(value, list) else [value] if isinstance(value, dict) else None
    return batch


def _texts(value: Value) -> Iterator[str]:
    """Every text in a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member)
    elif isinstance(value, dict):
        for key, member in value.items():
            yield key
            yield from _texts(member)


def _offered(ext: Value) -> dict[str, str]:
    """The fields of a client's authn object that say something."""
    authn = ext.get(AUTHN) if isinstance(ext, dict) else None
    fields = authn if isinstance(authn, dict) else {}
    return {name: fields[name] for name in FIELDS if isinstance(fields.get(name), str) and fields[name]}


def _without_authn(message: Plain) -> Plain:
    ext = message.get("ext")
    if not isinstance(ext, dict):
        return message
    return message | {"ext": {name: value for name, value in ext.items() if name != AUTHN}}


# Up and down ----------------------------------------------------------------------------------------------------------


class _Play:
    """One negotiation, and what is expected of it."""

    def __init__(self, credential: Credential | None, policy: ClientAuthn) -> None:
        self._negotiation = Negotiation(credential, client_authn=policy, system_of_units="metric")
        self._policy = policy
        self._credential = credential
        self._awaited: list[float] = []
        self._secrets = set(((credential.authn() if credential else None) or {}).values())

    def from_client(self, payload: bytes, now: float) -> None:
        try:
            up = self._negotiation.from_client(payload, now)
        except MalformedBatch:
            assert self._negotiation.pending is bool(self._awaited)
            return
        came = batch_of(payload)
        if came is None:
            assert payload.count(b"[") + payload.count(b"{") > 500, "what is no JSON was taken for it"
            return
        self._check_around(payload, came)
        sent, refused = self._expected(came, now)
        if up.payload is None:
            assert (sent, up.batch) == ([], [])
        else:
            assert batch_of(up.payload) == sent
            assert messages.decode(up.payload) == up.batch
        assert [(outcome.verdict, outcome.reason) for outcome in up.outcomes] == [("refused", why) for why in refused]
        replies = batch_of(messages.encode(up.replies)) or []
        assert [reply["channel"] for reply in replies] == ["/meta/handshake"] * len(refused)
        self._check_silence(messages.encode([{"error": reply["error"]} for reply in up.replies]))
        assert self._negotiation.credential == self._credential
        assert self._negotiation.waiting_since == (self._awaited[0] if self._awaited else None)

    def _check_around(self, payload: bytes, came: list[Plain]) -> None:
        """What else can be done with a payload sees the same messages in it."""
        handshakes = [message for message in came if message["channel"] == "/meta/handshake"]
        assert brings_token(payload) is any("token" in _offered(message.get("ext")) for message in handshakes)
        refused = refuse(payload, Refusal("limit", "Full", 1))
        replies = batch_of(messages.encode(refused.replies)) or []
        assert [reply["channel"] for reply in replies] == [message["channel"] for message in came]
        assert len(refused.outcomes) == len(handshakes)

    def _expected(self, came: list[Plain], now: float) -> tuple[list[Plain], list[str]]:
        """What of a batch goes up, and why the rest is refused."""
        sent, refused = [], []
        for message in came:
            if message["channel"] != "/meta/handshake":
                sent.append(_without_authn(message))
                continue
            filled = self._filled(message) if len(self._awaited) < 8 else "limit"
            if isinstance(filled, str):
                refused.append(filled)
            else:
                sent.append(filled)
                self._awaited.append(now)
        return sent, refused

    def _filled(self, handshake: Plain) -> Plain | str:
        theirs = handshake.get("ext")
        if not isinstance(theirs, dict | None):
            return "malformed"
        ext, offered = dict(theirs or {}), _offered(theirs)
        authn: Value = ext.pop(AUTHN, None)
        if self._credential is not None and not (self._policy is ClientAuthn.FILL and "token" in offered):
            is_half = isinstance(self._credential, OAuthCookie)
            if self._policy is ClientAuthn.REFUSE and offered.keys() - ({"xsrfToken"} if is_half else set()):
                return "policy"
            self._complete(offered.get("xsrfToken", ""))
            authn = self._credential.authn()
            if authn is None:
                return "no_credential"
        if isinstance(authn, dict) and authn:
            ext[AUTHN] = authn
        if ext.get("systemOfUnits") not in {"imperial", "metric"}:
            ext["systemOfUnits"] = "metric"
        return handshake | {"ext": ext}

    def _complete(self, half: str) -> None:
        if isinstance(self._credential, OAuthCookie) and not self._credential.xsrf_token and is_token(half):
            self._credential = OAuthCookie(self._credential.token, xsrf_token=half)

    def from_upstream(self, payload: bytes, now: float) -> None:
        down = self._negotiation.from_upstream(payload, now)
        self._check_silence(down.payload)
        came = batch_of(payload)
        if messages.read(payload) is None or came is None:
            return self._go_on(len(down.outcomes))
        answers = [message for message in came if message.get("channel") == "/meta/handshake"]
        settled = list(zip(self._awaited, answers, strict=False))
        assert [(outcome.verdict, outcome.reason, outcome.seconds) for outcome in down.outcomes] == [
            (*_verdict(answer), now - since) for since, answer in settled
        ]
        self._go_on(len(settled))
        if not any(secret in text for text in _texts(came) for secret in self._secrets):
            assert batch_of(down.payload) == [_without_authn(message) for message in came]
        return None

    def _go_on(self, settled: int) -> None:
        del self._awaited[:settled]
        assert self._negotiation.pending is bool(self._awaited)

    def end(self, now: float) -> None:
        outcomes = self._negotiation.abandon(now, "client_gone")
        assert [(outcome.verdict, outcome.seconds) for outcome in outcomes] == [
            ("unanswered", now - since) for since in self._awaited
        ]
        assert not self._negotiation.pending

    def _check_silence(self, payload: bytes) -> None:
        """No secret stands in a payload, and none in its texts, however they are escaped."""
        texts = set(_texts(plainly(payload)))
        for secret in self._secrets:
            assert secret.encode() not in payload
            assert not any(secret in text for text in texts)


def _verdict(answer: Plain) -> tuple[str, str]:
    if answer.get("successful") is True:
        return "accepted", "ok"
    error = answer.get("error")
    reasons = {"401": "denied", "403": "denied", "402": "unknown_client"}
    return "rejected", reasons.get(error[:3] if isinstance(error, str) else "", "other")


def _check_join(payload: bytes) -> None:
    """Replies of our own join what comes down in one way, however it comes, and it stays JSON."""
    ours = [{"channel": messages.raw("/meta/handshake"), "id": messages.raw("]")}]
    joined = []
    for came in cuttings(payload):
        joiner = Joiner(ours)
        joined.append(b"".join([*map(joiner.feed, came), joiner.end()]))
    assert joined == joined[:1] * len(joined)
    value = plainly(payload)
    if value is not None or not payload.strip(b" \t\r\n"):
        theirs = value if isinstance(value, list) else [] if value is None else [value]
        assert plainly(joined[0]) == [{"channel": "/meta/handshake", "id": "]"}, *theirs]
