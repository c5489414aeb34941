"""Handshakes are filled in going up and settled coming down, each exactly once."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, Final, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.bayeux import negotiation
from proxy.bayeux.messages import Batch, BatchTooLong, MalformedBatch, Message, encode
from proxy.bayeux.negotiation import (
    AUTHN,
    ClientAuthn,
    Negotiation,
    Outcome,
    UnansweredReason,
    Up,
)
from proxy.bayeux.ownership import Ownership
from proxy.bayeux.replies import MessageRefusal, Refusal, RefusalReason
from proxy.credentials.kinds import Basic, Credential, Jwt, OAuthCookie


Form = Callable[[bytes], bytes]

PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=150)

BASIC: Final = Basic("ann", "pass:word", tenant="t1")
BASIC_TFA: Final = replace(BASIC, tfa="123456")
JWT: Final = Jwt("eyJh.e30.x")
CLOSED: Final = OAuthCookie("cookie", xsrf_token="header")
OPEN: Final = OAuthCookie("cookie")
SPARE: Final = OAuthCookie("cookie", spare_xsrf_token="spare")

BASIC_AUTHN: Final = {"token": base64.b64encode(b"t1/ann:pass:word").decode()}
THEIRS: Final = {"token": "theirs", "tfa": "their-tfa", "xsrfToken": "their-xsrf"}

POLICY: Final = "policy"
NO_CREDENTIAL: Final = "no_credential"
NOTHING: Final = object()


def handshake(authn: object = NOTHING, **ext: object) -> bytes:
    members = ext if authn is NOTHING else {AUTHN: authn, **ext}
    message: dict[str, object] = {"channel": "/meta/handshake", "id": "1", "version": "1.0"}
    return msgspec.json.encode(message | ({"ext": members} if members else {}))


def read(payload: bytes | None) -> list[dict[str, Any]]:
    assert payload is not None
    batch: list[dict[str, Any]] = msgspec.json.decode(payload)
    return batch


def replies_of(up: Up) -> list[dict[str, Any]]:
    return read(encode(up.replies))


def handshakes_in(payload: bytes | None) -> list[dict[str, Any]]:
    return [message for message in read(payload) if message["channel"] == "/meta/handshake"]


def negotiation_with(credential: Credential | None = BASIC, **policy: Any) -> Negotiation[Credential]:
    return Negotiation(credential, **policy)


def awaiting(count: int = 1, *, since: float = 0.0) -> Negotiation[Credential]:
    """A negotiation with so many handshakes in flight."""
    negotiating = negotiation_with()
    for _ in range(count):
        negotiating.from_client(handshake(), since)
    return negotiating


# What goes up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "credential", "theirs", "expected"),
    [
        pytest.param("override", BASIC, NOTHING, BASIC_AUTHN, id="override: basic, nothing"),
        pytest.param("override", BASIC, {}, BASIC_AUTHN, id="override: basic, an empty object"),
        pytest.param("override", BASIC, None, BASIC_AUTHN, id="override: basic, null"),
        pytest.param("override", BASIC, "text", BASIC_AUTHN, id="override: basic, a text"),
        pytest.param("override", BASIC, [{"token": "x"}], BASIC_AUTHN, id="override: basic, an array"),
        pytest.param("override", BASIC, {"token": "stale"}, BASIC_AUTHN, id="override: basic, a stale token"),
        pytest.param("override", BASIC, THEIRS, BASIC_AUTHN, id="override: basic, all fields, none is merged"),
        pytest.param("override", BASIC, {"other": 1}, BASIC_AUTHN, id="override: basic, an unknown field"),
        pytest.param("override", BASIC_TFA, THEIRS, BASIC_AUTHN | {"tfa": "123456"}, id="override: basic with tfa"),
        pytest.param("override", JWT, NOTHING, {"token": JWT.token}, id="override: jwt, nothing"),
        pytest.param("override", JWT, THEIRS, {"token": JWT.token}, id="override: jwt, all fields"),
        pytest.param("override", CLOSED, NOTHING, {"xsrfToken": "header"}, id="override: closed cookie, nothing"),
        pytest.param("override", CLOSED, THEIRS, {"xsrfToken": "header"}, id="override: closed cookie, all fields"),
        pytest.param(
            "override", OPEN, {"xsrfToken": "x"}, {"xsrfToken": "x"}, id="override: open cookie, the other half"
        ),
        pytest.param("override", OPEN, THEIRS, {"xsrfToken": "their-xsrf"}, id="override: open cookie, all fields"),
        pytest.param("override", OPEN, NOTHING, NO_CREDENTIAL, id="override: open cookie, nothing"),
        pytest.param(
            "override", OPEN, {"token": "x", "tfa": "y"}, NO_CREDENTIAL, id="override: open cookie, not their token"
        ),
        pytest.param("override", OPEN, {"xsrfToken": ""}, NO_CREDENTIAL, id="override: open cookie, an empty half"),
        pytest.param("override", OPEN, {"xsrfToken": None}, NO_CREDENTIAL, id="override: open cookie, a null half"),
        pytest.param(
            "override", OPEN, {"xsrfToken": 5}, NO_CREDENTIAL, id="override: open cookie, a number for a half"
        ),
        pytest.param(
            "override", OPEN, {"xsrfToken": "a\r\nb: c"}, NO_CREDENTIAL, id="override: open cookie, a line break"
        ),
        pytest.param("override", OPEN, {"xsrfToken": "a; b=c"}, NO_CREDENTIAL, id="override: open cookie, a semicolon"),
        pytest.param("override", SPARE, NOTHING, {"xsrfToken": "spare"}, id="override: cookie with a spare, nothing"),
        pytest.param(
            "override", SPARE, {"xsrfToken": "x"}, {"xsrfToken": "x"}, id="override: cookie with a spare, a half"
        ),
        pytest.param(
            "override", SPARE, {"xsrfToken": "\n"}, {"xsrfToken": "spare"}, id="override: a spare, a useless half"
        ),
        pytest.param("fill", BASIC, NOTHING, BASIC_AUTHN, id="fill: basic, nothing"),
        pytest.param("fill", BASIC, {}, BASIC_AUTHN, id="fill: basic, an empty object"),
        pytest.param("fill", BASIC, {"token": ""}, BASIC_AUTHN, id="fill: basic, an empty token"),
        pytest.param("fill", BASIC, {"token": None}, BASIC_AUTHN, id="fill: basic, a null token"),
        pytest.param("fill", BASIC, {"token": 5}, BASIC_AUTHN, id="fill: basic, a number for a token"),
        pytest.param(
            "fill", BASIC, {"tfa": "x", "xsrfToken": "y"}, BASIC_AUTHN, id="fill: basic, no token, none is merged"
        ),
        pytest.param("fill", BASIC_TFA, {"token": "t"}, {"token": "t"}, id="fill: their token without our tfa"),
        pytest.param("fill", BASIC, THEIRS | {"other": [1]}, THEIRS | {"other": [1]}, id="fill: theirs as it came"),
        pytest.param("fill", JWT, NOTHING, {"token": JWT.token}, id="fill: jwt, nothing"),
        pytest.param("fill", JWT, THEIRS, THEIRS, id="fill: jwt, theirs"),
        pytest.param("refuse", BASIC, NOTHING, BASIC_AUTHN, id="refuse: basic, nothing"),
        pytest.param("refuse", BASIC, {}, BASIC_AUTHN, id="refuse: basic, an empty object offers nothing"),
        pytest.param("refuse", BASIC, None, BASIC_AUTHN, id="refuse: basic, null offers nothing"),
        pytest.param("refuse", BASIC, {"token": None, "tfa": ""}, BASIC_AUTHN, id="refuse: basic, nulls offer nothing"),
        pytest.param("refuse", BASIC, {"token": "x"}, POLICY, id="refuse: basic, a token"),
        pytest.param("refuse", BASIC, {"tfa": "x"}, POLICY, id="refuse: basic, a tfa token"),
        pytest.param("refuse", BASIC, {"xsrfToken": "x"}, POLICY, id="refuse: basic, an XSRF token"),
        pytest.param("refuse", JWT, {"token": JWT.token}, POLICY, id="refuse: jwt, even the same token"),
        pytest.param("refuse", OPEN, {"xsrfToken": "x"}, {"xsrfToken": "x"}, id="refuse: open cookie, the other half"),
        pytest.param(
            "refuse", OPEN, {"xsrfToken": "x", "token": "y"}, POLICY, id="refuse: open cookie, more than the half"
        ),
        pytest.param("refuse", OPEN, NOTHING, NO_CREDENTIAL, id="refuse: open cookie, nothing"),
        pytest.param("refuse", CLOSED, {"xsrfToken": "x"}, {"xsrfToken": "header"}, id="refuse: closed cookie, a half"),
        pytest.param("refuse", CLOSED, {"token": "x"}, POLICY, id="refuse: closed cookie, a token"),
        pytest.param("override", None, THEIRS, THEIRS, id="the client's own connection: theirs"),
        pytest.param("override", None, NOTHING, None, id="the client's own connection: nothing"),
        pytest.param("override", None, {}, None, id="the client's own connection: an empty object"),
        pytest.param("override", None, "text", None, id="the client's own connection: a text"),
        pytest.param("fill", None, THEIRS, THEIRS, id="the client's own connection, fill: theirs"),
    ],
)
def test_authn_that_goes_up(
    policy: str, credential: Credential | None, theirs: object, expected: Mapping[str, object] | str | None, form: Form
) -> None:
    negotiating = negotiation_with(credential, client_authn=ClientAuthn(policy))
    up = negotiating.from_client(form(handshake(theirs, ack=True)), 5.0)
    if isinstance(expected, str):
        assert [(outcome.verdict, outcome.reason) for outcome in up.outcomes] == [("refused", expected)]
        assert up.payload is None or not handshakes_in(up.payload)
        assert [reply["successful"] for reply in replies_of(up)] == [False]
        assert not negotiating.pending
    else:
        [sent] = handshakes_in(up.payload)
        assert sent["ext"] == {"ack": True} | ({} if expected is None else {AUTHN: expected})
        assert sent["id"] == "1"
        assert sent["version"] == "1.0"
        assert up.replies == []
        assert up.outcomes == []
        assert negotiating.pending


@pytest.mark.parametrize(
    ("reason", "theirs", "credential", "advice"),
    [
        pytest.param("policy", THEIRS, BASIC, {"reconnect": "none"}, id="policy is lasting"),
        pytest.param(
            "no_credential", {}, OPEN, {"reconnect": "handshake", "interval": 777}, id="a missing half is passing"
        ),
    ],
)
def test_refusal_tells_the_client_what_to_do(
    reason: str, theirs: object, credential: Credential, advice: object, form: Form
) -> None:
    negotiating = negotiation_with(credential, client_authn=ClientAuthn.REFUSE, retry_ms=777)
    up = negotiating.from_client(form(handshake(theirs)), 0.0)
    [reply] = replies_of(up)
    assert reply["error"].startswith("403::")
    assert {name: reply[name] for name in ("channel", "id", "successful", "advice")} == {
        "channel": "/meta/handshake",
        "id": "1",
        "successful": False,
        "advice": advice,
    }
    assert list(up.outcomes) == [Outcome("refused", reason, 0.0)]  # type: ignore[arg-type] # one of the table's
    assert b"their" not in encode(up.replies)


@pytest.mark.parametrize(
    "ext", [b'"text"', b"5", b"[]", b'[{"com.cumulocity.authn":{"token":"x"}}]', b"true", b"false"]
)
def test_handshake_whose_ext_is_no_object_is_refused(ext: bytes, form: Form) -> None:
    up = negotiation_with().from_client(form(b'{"channel":"/meta/handshake","id":"1","ext":%b}' % ext), 0.0)
    assert [outcome.reason for outcome in up.outcomes] == ["malformed"]
    assert [reply["advice"] for reply in replies_of(up)] == [{"reconnect": "none"}]


@pytest.mark.parametrize(
    "ext", [b"", b',"ext":null', b',"ext":{}', b',"ext": { } '], ids=["none", "null", "empty", "spaces"]
)
def test_handshake_without_ext_gets_one(ext: bytes) -> None:
    up = negotiation_with().from_client(b'{"channel":"/meta/handshake"%b}' % ext, 0.0)
    assert read(up.payload) == [{"channel": "/meta/handshake", "ext": {AUTHN: BASIC_AUTHN}}]


def test_clients_own_handshake_without_ext_goes_up_without() -> None:
    up = negotiation_with(None).from_client(b'{"channel":"/meta/handshake"}', 0.0)
    assert up.payload == b'[{"channel":"/meta/handshake"}]'


@pytest.mark.parametrize(
    "sibling",
    [
        b'"ack":true',
        b'"timesync":{"tc":1700000000000.10, "l":0 ,"o":-0}',
        b'"unknown":"\\/\\u0041"',
        b'"com.cumulocity.other":{"token":"x"}',
        b'"COM.CUMULOCITY.AUTHN":{"token":"x"}',
        b'"":null',
    ],
)
def test_sibling_ext_survives_byte_for_byte(sibling: bytes) -> None:
    for message in (
        b'{"channel":"/meta/handshake","ext":{%b}}',
        b'{"channel":"/meta/handshake","ext":{%b,"com.cumulocity.authn":{"token":"x"}}}',
        b'{"channel":"/meta/connect","ext":{"com.cumulocity.authn":{"token":"x"},%b}}',
    ):
        for payload in (message % sibling, b"[" + message % sibling + b"]"):
            up = negotiation_with().from_client(payload, 0.0)
            assert up.payload is not None
            assert sibling in up.payload


def test_unknown_fields_of_a_handshake_survive_byte_for_byte() -> None:
    rest = (
        b'"mininumVersion":"1.0","advice":{"timeout":60000 },"supportedConnectionTypes":["websocket", "long-polling"]'
    )
    up = negotiation_with().from_client(b'[{"channel":"/meta/handshake",%b}]' % rest, 0.0)
    assert up.payload is not None
    assert rest in up.payload


def test_client_authn_under_fill_goes_up_byte_for_byte() -> None:
    authn = b'{"token":"a\\/b","tfa":null,"n":1.0}'
    up = negotiation_with(BASIC, client_authn=ClientAuthn.FILL).from_client(
        b'[{"channel":"/meta/handshake","ext":{"com.cumulocity.authn":%b}}]' % authn, 0.0
    )
    assert up.payload is not None
    assert authn in up.payload


@pytest.mark.parametrize("duplicate", [b'"com.cumulocity.authn"', b'"com\\u002ecumulocity.authn"'])
def test_duplicate_authn_cannot_pass(duplicate: bytes) -> None:
    message = b'{"channel":"%b","ext":{"com.cumulocity.authn":{"token":"a"},%b:{"token":"b"}}}'
    up = negotiation_with().from_client(message % (b"/meta/handshake", duplicate), 0.0)
    assert up.payload is not None
    assert up.payload.count(b"authn") == 1
    assert read(up.payload)[0]["ext"] == {AUTHN: BASIC_AUTHN}
    up = negotiation_with().from_client(message % (b"/meta/connect", duplicate), 0.0)
    assert up.payload == b'[{"channel":"/meta/connect","ext":{}}]'


@pytest.mark.parametrize(
    ("configured", "theirs", "sent"),
    [
        pytest.param("metric", NOTHING, "metric", id="configured fills the gap"),
        pytest.param("metric", "imperial", "imperial", id="the client's valid value wins"),
        pytest.param("imperial", "imperial", "imperial", id="the same value"),
        pytest.param("metric", "IMPERIAL", "metric", id="other case is invalid and replaced"),
        pytest.param("metric", "furlongs", "metric", id="an unknown value is replaced"),
        pytest.param("metric", "", "metric", id="an empty value is replaced"),
        pytest.param("metric", None, "metric", id="null is replaced"),
        pytest.param("metric", 5, "metric", id="a number is replaced"),
        pytest.param("metric", ["imperial"], "metric", id="an array is replaced"),
        pytest.param(None, NOTHING, NOTHING, id="nothing is added when nothing is configured"),
        pytest.param(None, "imperial", "imperial", id="a valid value passes"),
        pytest.param(None, "furlongs", "furlongs", id="an unknown value passes when nothing is configured"),
        pytest.param(None, None, None, id="null passes when nothing is configured"),
    ],
)
@pytest.mark.parametrize("credential", [BASIC, JWT, CLOSED, None], ids=["basic", "jwt", "cookie", "the client's own"])
def test_system_of_units(
    configured: str | None, theirs: object, sent: object, credential: Credential | None, form: Form
) -> None:
    ext = {} if theirs is NOTHING else {"systemOfUnits": theirs}
    negotiating = negotiation_with(credential, system_of_units=configured)
    [message] = handshakes_in(negotiating.from_client(form(handshake(THEIRS, **ext)), 0.0).payload)
    assert message["ext"].get("systemOfUnits", NOTHING) == sent
    assert "systemOfUnits" not in message["ext"][AUTHN]


@pytest.mark.parametrize("authn", [b'{"token":"x"}', b"{}", b"null", b'"x"', b'[{"token":"x"}]'])
@pytest.mark.parametrize("channel", [b"/meta/connect", b"/meta/subscribe", b"/meta/disconnect", b"/alarms/1", b""])
def test_authn_is_stripped_from_what_is_no_handshake(channel: bytes, authn: bytes, form: Form) -> None:
    message = b'{"channel":"%b","id":"1","ext":{"ack":1,"com.cumulocity.authn":%b,"x":{}}}' % (channel, authn)
    for credential, policy in product((BASIC, OPEN, None), ClientAuthn):
        up = negotiation_with(credential, client_authn=policy).from_client(form(message), 0.0)
        assert up.payload is not None
        assert b"authn" not in up.payload
        [sent] = [one for one in read(up.payload) if one.get("id") == "1"]
        assert sent["ext"] == {"ack": 1, "x": {}}
        assert up.outcomes == []
        assert up.replies == []


@pytest.mark.parametrize("ext", [b'{ "ack" : 1.0 }', b"null", b"{ }", b'"x"', b"[ 1 ]"])
def test_ext_without_authn_is_left_alone(ext: bytes) -> None:
    up = negotiation_with().from_client(b'{"channel":"/meta/connect","ext":%b}' % ext, 0.0)
    assert up.payload == b'[{"channel":"/meta/connect","ext":%b}]' % ext


@pytest.mark.parametrize("place", range(4))
def test_handshake_is_filled_anywhere_in_a_batch(place: int) -> None:
    batch = [
        b'{"channel":"/meta/subscribe","id":"a"}',
        b'{"channel":"/x","id":"b"}',
        b'{"channel":"/meta/connect","id":"c"}',
    ]
    batch.insert(place, handshake())
    negotiating = negotiation_with()
    sent = read(negotiating.from_client(b"[" + b",".join(batch) + b"]", 0.0).payload)
    assert [message["id"] for message in sent] == [*"abc"[:place], "1", *"abc"[place:]]
    assert [AUTHN in message.get("ext", {}) for message in sent] == [index == place for index in range(4)]


def test_two_handshakes_in_a_batch_are_both_filled_and_both_awaited() -> None:
    negotiating = negotiation_with()
    up = negotiating.from_client(b"[" + handshake() + b"," + handshake(THEIRS) + b"]", 3.0)
    assert [message["ext"] for message in read(up.payload)] == [{AUTHN: BASIC_AUTHN}] * 2
    down = negotiating.from_upstream(b'[{"channel":"/meta/handshake","successful":true}]', 4.0)
    assert list(down.outcomes) == [Outcome("accepted", "ok", 1.0)]
    assert negotiating.pending
    down = negotiating.from_upstream(b'[{"channel":"/meta/handshake","successful":false}]', 5.0)
    assert list(down.outcomes) == [Outcome("rejected", "other", 2.0)]
    assert not negotiating.pending


def test_neighbours_of_a_refused_handshake_go_up() -> None:
    negotiating = negotiation_with(client_authn=ClientAuthn.REFUSE)
    payload = b'[{"channel":"/a"},' + handshake(THEIRS) + b"," + handshake() + b',{"channel":"/b"}]'
    up = negotiating.from_client(payload, 0.0)
    assert [message["channel"] for message in read(up.payload)] == ["/a", "/meta/handshake", "/b"]
    assert [message["channel"] for message in replies_of(up)] == ["/meta/handshake"]
    assert [outcome.verdict for outcome in up.outcomes] == ["refused"]
    assert len(negotiating.abandon(1.0, "client_gone")) == 1


def test_nothing_goes_up_when_all_was_refused() -> None:
    negotiating = negotiation_with(client_authn=ClientAuthn.REFUSE)
    up = negotiating.from_client(b"[" + handshake(THEIRS) + b"," + handshake(THEIRS) + b"]", 0.0)
    assert up.payload is None
    assert len(up.replies) == len(up.outcomes) == 2


def test_heartbeat_goes_up_as_it_came() -> None:
    up = negotiation_with().from_client(b"[]", 0.0)
    assert up == Up(b"[]", [], [], [], [])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[1]",
        b'[{"channel":"/meta/handshake"},{}]',
        b'[{"channel":"/meta/handshake"},{"channel":"/META/x"}]',
    ],
)
def test_malformed_batch_leaves_no_handshake_behind(payload: bytes) -> None:
    negotiating = negotiation_with()
    with pytest.raises(MalformedBatch):
        negotiating.from_client(payload, 0.0)
    assert not negotiating.pending
    assert negotiating.abandon(1.0, "client_gone") == []


def test_open_credential_is_closed_once_for_the_whole_connection() -> None:
    negotiating = negotiation_with(OPEN)
    negotiating.from_client(handshake({"xsrfToken": "first"}), 0.0)
    assert negotiating.credential == OAuthCookie("cookie", xsrf_token="first")
    for later in ({}, {"xsrfToken": "second"}):
        [sent] = handshakes_in(negotiating.from_client(handshake(later), 1.0).payload)
        assert sent["ext"] == {AUTHN: {"xsrfToken": "first"}}


def test_refused_handshake_does_not_close_an_open_credential() -> None:
    negotiating = negotiation_with(OPEN, client_authn=ClientAuthn.REFUSE)
    negotiating.from_client(handshake(THEIRS), 0.0)
    assert negotiating.credential == OPEN


# What comes down ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "verdict", "reason"),
    [
        pytest.param(b'"successful":true,"clientId":"c"', "accepted", "ok", id="accepted"),
        pytest.param(b'"successful": true ', "accepted", "ok", id="accepted, among spaces"),
        pytest.param(b'"successful":false,"successful":true', "accepted", "ok", id="the last of duplicates"),
        pytest.param(b'"successful":false,"error":"403::Handshake denied"', "rejected", "denied", id="403, Cumulocity"),
        pytest.param(b'"successful":false,"error":"403::handshake_denied"', "rejected", "denied", id="403, CometD"),
        pytest.param(b'"successful":false,"error":"401::Unauthorized"', "rejected", "denied", id="401"),
        pytest.param(b'"successful":false,"error":"\\u0034\\u00303:x:y"', "rejected", "denied", id="403 with escapes"),
        pytest.param(b'"successful":false,"error":"402::Unknown client"', "rejected", "unknown_client", id="402"),
        pytest.param(b'"successful":false,"error":"500::Internal"', "rejected", "other", id="500"),
        pytest.param(b'"successful":false,"error":"Handshake denied"', "rejected", "other", id="text alone"),
        pytest.param(b'"successful":false,"error":""', "rejected", "other", id="an empty error"),
        pytest.param(b'"successful":false,"error":403', "rejected", "other", id="a number"),
        pytest.param(b'"successful":false', "rejected", "other", id="no error"),
        pytest.param(b'"error":"403::denied"', "rejected", "denied", id="no successful"),
        pytest.param(b'"id":"1"', "rejected", "other", id="neither"),
        pytest.param(b'"successful":"true"', "rejected", "other", id="successful as a text"),
        pytest.param(b'"successful":1', "rejected", "other", id="successful as a number"),
        pytest.param(b'"successful":null', "rejected", "other", id="successful null"),
    ],
)
def test_answer_settles_a_handshake(answer: bytes, verdict: str, reason: str, form: Form) -> None:
    negotiating = awaiting(since=10.0)
    payload = form(b'{"channel":"/meta/handshake",%b}' % answer)
    down = negotiating.from_upstream(payload, 12.5)
    assert [(outcome.verdict, outcome.reason, outcome.seconds) for outcome in down.outcomes] == [(verdict, reason, 2.5)]
    assert not negotiating.pending


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"[ ]",
        b'[{"channel":"/meta/connect","successful":true}]',
        b'[{"channel":"/alarms/1","data":{"channel":"/meta/handshake","successful":true}}]',
        b'[{"channel":"/meta/handshake/","successful":true}]',
        b'[{"channel":["/meta/handshake"],"successful":true}]',
        b'[{"successful":true}]',
        b"",
        b"  ",
        b"<html>",
        b'[{"channel":"/meta/handshake","successful":true}',
        b'[[{"channel":"/meta/handshake","successful":true}]]',
        b"[" * 100_000,
        b"\xff",
    ],
    ids=lambda payload: payload[:60].decode(errors="replace"),
)
def test_what_is_no_answer_passes_untouched_and_settles_nothing(payload: bytes) -> None:
    negotiating = awaiting()
    down = negotiating.from_upstream(payload, 1.0)
    assert down.payload == payload
    assert list(down.outcomes) == []
    assert negotiating.pending


def test_answers_are_matched_in_order_and_not_by_id() -> None:
    negotiating = negotiation_with()
    for moment, number in ((1.0, b"7"), (2.0, b"8"), (4.0, b"9")):
        negotiating.from_client(b'[{"channel":"/meta/handshake","id":"%b"}]' % number, moment)
    down = negotiating.from_upstream(b'[{"channel":"/meta/handshake","id":"9","successful":true}]', 10.0)
    assert list(down.outcomes) == [Outcome("accepted", "ok", 9.0)]
    down = negotiating.from_upstream(
        b'[{"channel":"/x","id":"8"},{"channel":"/meta/handshake","id":"?","error":"403::"},{"channel":"/meta/connect"},'
        b'{"channel":"/meta/handshake","successful":true}]',
        11.0,
    )
    assert list(down.outcomes) == [Outcome("rejected", "denied", 9.0), Outcome("accepted", "ok", 7.0)]
    assert not negotiating.pending


def test_answer_too_many_settles_nothing() -> None:
    negotiating = awaiting()
    twice = b'[{"channel":"/meta/handshake","successful":true},{"channel":"/meta/handshake","successful":true}]'
    assert len(negotiating.from_upstream(twice, 1.0).outcomes) == 1
    assert len(negotiating.from_upstream(twice, 2.0).outcomes) == 0


def test_whose_credential_went_up_is_told() -> None:
    negotiating = negotiation_with(client_authn=ClientAuthn.FILL)
    negotiating.from_client(b"[" + handshake(THEIRS) + b"," + handshake() + b"]", 0.0)
    denied = b'[{"channel":"/meta/handshake","error":"403::Handshake denied"}]'
    assert [outcome.ours for outcome in negotiating.from_upstream(denied, 1.0).outcomes] == [False]
    assert [outcome.ours for outcome in negotiating.from_upstream(denied, 1.0).outcomes] == [True]


@pytest.mark.parametrize("status", [401, 403])
def test_denial_by_status_rejects_every_handshake(status: int) -> None:
    negotiating = awaiting(2, since=1.0)
    assert negotiating.answered_with_status(status, 4.0) == [Outcome("rejected", "denied", 3.0)] * 2
    assert not negotiating.pending


@pytest.mark.parametrize("status", [204, 301, 400, 402, 404, 407, 500, 502, 503])
def test_other_status_rejects_too(status: int) -> None:
    assert awaiting().answered_with_status(status, 1.0) == [Outcome("rejected", "other", 1.0)]


@pytest.mark.parametrize("reason", get_args(UnansweredReason))
def test_unanswered_is_settled_once(reason: UnansweredReason) -> None:
    negotiating = awaiting(2, since=1.0)
    assert negotiating.abandon(3.0, reason) == [Outcome("unanswered", reason, 2.0)] * 2
    assert negotiating.abandon(4.0, reason) == []
    assert negotiating.answered_with_status(401, 4.0) == []
    assert not negotiating.pending


@pytest.mark.parametrize(
    ("echo", "passed"),
    [
        pytest.param(b'{"com.cumulocity.authn":{"token":"dDE="}}', b"{}", id="alone"),
        pytest.param(
            b'{"ack":true,"com.cumulocity.authn":{"token":"dDE="},"n":1.0}', b'{"ack":true,"n":1.0}', id="among others"
        ),
        pytest.param(b'{"com\\u002ecumulocity.authn":"dDE="}', b"{}", id="with escapes"),
        pytest.param(b'{"com.cumulocity.authn":null}', b"{}", id="null"),
    ],
)
@pytest.mark.parametrize("channel", [b"/meta/handshake", b"/meta/connect", b"/alarms/1"])
def test_echoed_authn_never_comes_down(channel: bytes, echo: bytes, passed: bytes, form: Form) -> None:
    down = awaiting().from_upstream(form(b'{"channel":"%b","id":"1","ext":%b}' % (channel, echo)), 1.0)
    assert b"dDE=" not in down.payload
    assert AUTHN.encode() not in down.payload
    [message] = [one for one in read(down.payload) if one.get("id") == "1"]
    assert message["ext"] == msgspec.json.decode(passed)


def test_rest_of_a_scrubbed_payload_survives_byte_for_byte() -> None:
    payload = (
        b'[{"channel":"/meta/handshake","successful":true,"advice":{"interval":0.0 },"ext":{"com.cumulocity.authn":1}}]'
    )
    assert awaiting().from_upstream(payload, 1.0).payload == (
        b'[{"channel":"/meta/handshake","successful":true,"advice":{"interval":0.0 },"ext":{}}]'
    )


@pytest.mark.parametrize(
    "payload",
    [
        b' [ {"channel":"/meta/handshake" , "successful":true,"ext":{"ack":true} } ] ',
        b'{"channel":"/meta/handshake","successful":true,"ext":null}',
        b'[{"channel":"/a","channel":"/meta/handshake","successful":true}]',
        b'[{"channel":"/meta/handshake","successful":false,"error":"403::Handshake denied"}]',
    ],
)
def test_answer_without_echo_passes_untouched(payload: bytes) -> None:
    down = awaiting().from_upstream(payload, 1.0)
    assert down.payload == payload
    assert len(down.outcomes) == 1


@PROPERTY
@given(st.binary(max_size=50) | st.text().map(str.encode))
def test_any_upstream_payload_passes(payload: bytes) -> None:
    assert awaiting().from_upstream(payload, 1.0).payload == payload


# The end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", get_args(RefusalReason))
def test_refused_payload_gets_a_reply_for_each_message_and_an_outcome_for_each_handshake(reason: RefusalReason) -> None:
    payload = b"[" + handshake(THEIRS) + b',{"channel":"/meta/connect","id":"2","clientId":"c"},' + handshake() + b"]"
    up = negotiation.refuse(payload, Refusal(reason, "Not now", 100))
    assert up.payload is None
    assert [reply["channel"] for reply in replies_of(up)] == ["/meta/handshake", "/meta/connect", "/meta/handshake"]
    assert [reply["advice"]["reconnect"] for reply in replies_of(up)] == ["handshake"] * 3
    assert all(not reply["successful"] and reply["error"] == "403::Not now" for reply in replies_of(up))
    assert list(up.outcomes) == [Outcome("refused", reason, 0.0)] * 2


def test_refused_payload_in_every_form(form: Form) -> None:
    up = negotiation.refuse(form(handshake()), Refusal("limit", "Full", 100))
    assert [outcome.reason for outcome in up.outcomes] == ["limit"]


def test_malformed_payload_cannot_even_be_refused() -> None:
    with pytest.raises(MalformedBatch):
        negotiation.refuse(b"[{]", Refusal("limit", "Full"))


def test_batch_is_a_list() -> None:
    """Replies are a batch of their own, so that one writer serves all payloads."""
    replies: Batch = negotiation_with(OPEN).from_client(handshake(), 0.0).replies
    assert encode(replies).startswith(b"[{")


def test_no_more_than_eight_handshakes_wait_for_their_answers() -> None:
    negotiation = Negotiation(JWT)
    up = negotiation.from_client(b"[" + b",".join([b'{"channel":"/meta/handshake"}'] * 20) + b"]", 1.0)
    assert len(up.batch) == 8
    assert [(outcome.verdict, outcome.reason) for outcome in up.outcomes] == [("refused", "limit")] * 12
    assert len(up.replies) == 12
    negotiation.from_upstream(b'[{"channel":"/meta/handshake","successful":true}]', 2.0)
    assert len(negotiation.from_client(b'{"channel":"/meta/handshake"}', 3.0).batch) == 1


@pytest.mark.parametrize(
    ("quoted", "told"),
    [
        pytest.param("to/k.e.n==", "***", id="as it is"),
        pytest.param(r"to\/k.e.n==", "***", id="slashes escaped"),
        pytest.param(r"to\u002fk.e.n\u003d\u003D", "***", id="as a writer of pages does"),
        pytest.param(r"\u0074\u006f\u002f\u006b.e.n==", "***", id="as code points"),
        pytest.param(r"\\to\/k.e.n==\"", r"\\***\"", id="among other escapes"),
        pytest.param(r"\u0041 to/k.e.n== \/", r"\u0041 *** \/", id="other escapes stay"),
        pytest.param(r"\\u0074o/k.e.n==", r"\\u0074o/k.e.n==", id="what is another text stays"),
    ],
)
def test_token_that_upstream_quotes_is_redacted(quoted: str, told: str) -> None:
    negotiation = Negotiation(Jwt("to/k.e.n=="))
    negotiation.from_client(b'{"channel":"/meta/handshake"}', 1.0)
    down = negotiation.from_upstream(b'[{"channel":"/meta/handshake","error":"403::%b"}]' % quoted.encode(), 2.0)
    assert down.payload == b'[{"channel":"/meta/handshake","error":"403::%b"}]' % told.encode()
    assert [outcome.reason for outcome in down.outcomes] == ["denied"]


@pytest.mark.parametrize("half", ["true", "successful", "c", ":", "/meta/handshake", "["])
def test_answer_counts_as_upstream_wrote_it_whatever_the_clients_half_is(half: str) -> None:
    negotiation = Negotiation(OPEN)
    negotiation.from_client(handshake({"xsrfToken": half}), 1.0)
    down = negotiation.from_upstream(b'[{"channel":"/meta/handshake","successful":true}]', 2.0)
    assert [outcome.reason for outcome in down.outcomes] == ["ok"]
    assert half.encode() not in down.payload


# What a client may not say --------------------------------------------------------------------------------------------

NOT_HERE: Final = MessageRefusal("publish", "Not here")


def not_below_a(name: str, _message: Message) -> MessageRefusal | None:
    return NOT_HERE if name.startswith("/a") else None


def test_what_is_forbidden_is_answered_here_and_the_rest_goes_up_as_it_came() -> None:
    negotiating = negotiation_with(forbidden=not_below_a)
    up = negotiating.from_client(
        b'[{"channel":"/b","n":1.0},{"channel":"\\u002fa","id":"2","clientId":"c","data":{"secret":1}},'
        b'{"channel":"/meta/connect","id":"3"},{"channel":"/a/x","id":4}]',
        0.0,
    )
    assert up.payload == b'[{"channel":"/b","n":1.0},{"channel":"/meta/connect","id":"3"}]'
    assert encode(up.batch) == up.payload
    assert encode(up.replies) == (
        b'[{"channel":"\\u002fa","successful":false,"id":"2","clientId":"c","error":"403::Not here"},'
        b'{"channel":"/a/x","successful":false,"id":4,"error":"403::Not here"}]'
    )
    assert list(up.refused) == ["publish", "publish"]
    assert list(up.outcomes) == []
    assert not negotiating.pending


def test_nothing_goes_up_of_a_payload_that_is_forbidden_whole() -> None:
    up = negotiation_with(forbidden=not_below_a).from_client(b'{"channel":"/a"}', 0.0)
    assert (up.payload, up.batch, up.refused) == (None, [], ["publish"])


def test_heartbeat_goes_up_though_there_is_nothing_in_it() -> None:
    negotiating = negotiation_with(forbidden=lambda _name, _message: NOT_HERE, ownership=OWNERSHIP)
    assert negotiating.from_client(b"[]", 0.0).payload == b"[]"


def test_what_may_go_up_is_asked_of_every_message_but_handshakes(form: Form) -> None:
    asked: list[tuple[str, Any]] = []

    def forbidden(name: str, message: Message) -> None:
        asked.append((name, msgspec.json.decode(encode([message]))[0].get("id")))

    negotiation_with(forbidden=forbidden).from_client(form(b'{"channel":"/meta/handshake","id":"1"}'), 0.0)
    assert all(one == ("/meta/connect", "neighbour") for one in asked)
    asked.clear()
    negotiation_with(forbidden=forbidden).from_client(form(b'{"channel":"/meta/subscribe","id":"1"}'), 0.0)
    assert asked.count(("/meta/subscribe", "1")) == 1


def test_refused_handshake_does_not_take_its_batch_along() -> None:
    up = negotiation_with(withheld=lambda _: Refusal("limit", "Later", 100)).from_client(
        b'[{"channel":"/meta/handshake"},{"channel":"/meta/connect"}]', 0.0
    )
    assert up.payload == b'[{"channel":"/meta/connect"}]'
    assert [outcome.reason for outcome in up.outcomes] == ["limit"]


@pytest.mark.parametrize(
    ("credential", "policy", "theirs", "offers"),
    [
        pytest.param(BASIC, "override", THEIRS, True, id="ours in place of theirs"),
        pytest.param(BASIC, "fill", NOTHING, True, id="ours where there is none"),
        pytest.param(BASIC, "fill", THEIRS, False, id="theirs"),
        pytest.param(None, "override", NOTHING, False, id="nothing of ours"),
    ],
)
def test_withholding_is_told_whether_ours_would_go_up(
    credential: Credential | None, policy: str, theirs: object, *, offers: bool
) -> None:
    told: list[bool] = []
    negotiating = negotiation_with(credential, client_authn=ClientAuthn(policy), withheld=told.append)
    up = negotiating.from_client(b'[{"channel":"/meta/connect"},' + handshake(theirs) + b"]", 0.0)
    assert told == [offers]
    assert up.offers is offers


def test_nothing_is_offered_without_a_handshake_that_goes_up() -> None:
    assert not negotiation_with().from_client(b'{"channel":"/meta/connect"}', 0.0).offers
    refusing = negotiation_with(withheld=lambda _: Refusal("limit", "Later", 100))
    assert not refusing.from_client(handshake(), 0.0).offers


def test_batch_is_no_longer_than_it_may_be() -> None:
    negotiating = negotiation_with(batch_messages=2)
    assert len(negotiating.from_client(b'[{"channel":"/a"},{"channel":"/b"}]', 0.0).batch) == 2
    with pytest.raises(BatchTooLong):
        negotiating.from_client(b'[{"channel":"/meta/handshake"},{"channel":"/b"},{"channel":"/c"}]', 0.0)
    assert not negotiating.pending
    with pytest.raises(BatchTooLong):
        negotiation.refuse(b'[{"channel":"/a"},{"channel":"/b"}]', Refusal("limit", "Full"), batch_messages=1)


# Whose a clientId is --------------------------------------------------------------------------------------------------

OWNERSHIP: Final = Ownership([b"0123456789abcdef"], "ann", "", "default", "t1")
ANOTHERS: Final = Ownership([b"0123456789abcdef"], "bob", "", "default", "t1")
KINDS: Final = ("/meta/connect", "/meta/disconnect", "/meta/subscribe", "/meta/unsubscribe", "/a/b", "/service/x")


def owned(**policy: Any) -> Negotiation[Credential]:
    return negotiation_with(ownership=OWNERSHIP, **policy)


@pytest.mark.parametrize("channel", KINDS)
@pytest.mark.parametrize("client_id", ["c", "a.b.c", '"\\/\x00', "x" * 10_000], ids=lambda text: text[:8])
def test_clientid_goes_up_as_upstream_knows_it(channel: str, client_id: str, form: Form) -> None:
    message = msgspec.json.encode({"channel": channel, "id": "1", "clientId": OWNERSHIP.tagged(client_id)})
    batch = read(owned().from_client(form(message), 0.0).payload)
    assert [(one["channel"], one["clientId"]) for one in batch if one["id"] == "1"] == [(channel, client_id)]


def test_rest_of_a_message_survives_byte_for_byte() -> None:
    message = b'[{"n":1.0 ,"channel":"\\/a","clientId":"%b","data":{ "v" : 1.50e+05 },"ext":{"ack": 1}}]'
    up = owned().from_client(message % OWNERSHIP.tagged("c").encode(), 0.0)
    assert up.payload == b'[{"n":1.0,"channel":"\\/a","clientId":"c","data":{ "v" : 1.50e+05 },"ext":{"ack": 1}}]'


@pytest.mark.parametrize("channel", KINDS)
@pytest.mark.parametrize(
    "client_id",
    [
        pytest.param(b"", id="missing"),
        pytest.param(b"null", id="null"),
        pytest.param(b"5", id="a number"),
        pytest.param(b"true", id="true"),
        pytest.param(b'""', id="an empty text"),
        pytest.param(b'"c"', id="without a tag"),
        pytest.param(b'"c."', id="an empty tag"),
        pytest.param(b'"%b"' % ANOTHERS.tagged("c").encode(), id="another's"),
        pytest.param(b'["%b"]' % OWNERSHIP.tagged("c").encode(), id="an array of one's own"),
        pytest.param(b'{"0":"%b"}' % OWNERSHIP.tagged("c").encode(), id="an object of one's own"),
    ],
)
def test_clientid_that_is_not_ones_own_is_unknown(channel: str, client_id: bytes) -> None:
    given_as = b',"clientId":' + client_id if client_id else b""
    up = owned().from_client(b'[{"channel":"%b","id":"1"%b}]' % (channel.encode(), given_as), 0.0)
    assert up.payload is None
    assert list(up.refused) == ["client_id"]
    [reply] = replies_of(up)
    assert {name: reply[name] for name in ("channel", "successful", "error", "advice")} == {
        "channel": channel,
        "successful": False,
        "error": "402::Unknown client",
        "advice": {"reconnect": "handshake", "interval": 0},
    }
    assert reply.get("clientId") == (msgspec.json.decode(client_id) if client_id else None)


def test_clientid_is_judged_again_with_every_message() -> None:
    mine, other, theirs = (
        b'{"channel":"/a","clientId":"%b"}' % tagged.encode()
        for tagged in (OWNERSHIP.tagged("m"), OWNERSHIP.tagged("o"), ANOTHERS.tagged("m"))
    )
    negotiating = owned()
    for batch, gone_up in (
        ((mine, theirs, mine, b'{"channel":"/a"}', other, mine), ["m", "m", "o", "m"]),
        ((b'{"channel":"/a"}', theirs, b'{"channel":"/a","clientId":"m"}', other), ["o"]),
    ):
        up = negotiating.from_client(b"[" + b",".join(batch) + b"]", 0.0)
        assert [message["clientId"] for message in read(up.payload)] == gone_up
        assert len(up.refused) == len(batch) - len(gone_up)


def test_of_two_clientids_in_a_message_the_one_that_was_judged_goes_up() -> None:
    mine, theirs = OWNERSHIP.tagged("m").encode(), ANOTHERS.tagged("t").encode()
    message = b'{"channel":"/a","clientId":"%b","client\\u0049d":"%b"}'
    assert owned().from_client(message % (theirs, mine), 0.0).payload == b'[{"channel":"/a","clientId":"m"}]'
    assert owned().from_client(message % (mine, theirs), 0.0).payload is None


def test_what_a_client_may_not_say_is_told_before_whose_its_clientid_is() -> None:
    up = owned(forbidden=not_below_a).from_client(b'[{"channel":"/a"},{"channel":"/b"}]', 0.0)
    assert list(up.refused) == ["publish", "client_id"]


@pytest.mark.parametrize("client_id", [b'"c"', b'"%b"' % ANOTHERS.tagged("c").encode(), b"5", b"null"])
def test_handshake_takes_no_older_session_up(client_id: bytes) -> None:
    up = owned(credential=None).from_client(b'{"channel":"/meta/handshake","clientId":%b,"id":"1"}' % client_id, 0.0)
    assert up.payload == b'[{"channel":"/meta/handshake","id":"1"}]'


def test_without_identities_clientids_cross_as_they_are() -> None:
    payload = b'[{"channel":"/meta/handshake","clientId":"c"},{"channel":"/a","clientId":5},{"channel":"/b"}]'
    negotiating = negotiation_with(None)
    assert negotiating.from_client(payload, 0.0).payload == payload
    answer = b'[{"channel":"/meta/handshake","successful":true,"clientId":"c"}]'
    assert negotiating.from_upstream(answer, 1.0).payload == answer


def test_accepted_reply_names_the_clientid_as_its_owner_is_to_say_it_and_is_the_same_elsewhere() -> None:
    negotiating = owned()
    negotiating.from_client(handshake(), 0.0)
    down = negotiating.from_upstream(
        b'[{"channel":"/meta/handshake","n":1.50e+05 ,"clientId":"c\\u002e1","advice":{ "interval":0.0 },'
        b'"successful":true,"t":"\\/\xc3\xa4"},{"channel":"/x","clientId":"c.1","data":1.0}]',
        1.0,
    )
    assert down.payload == (
        b'[{"channel":"/meta/handshake","n":1.50e+05,"clientId":"%b","advice":{ "interval":0.0 },'
        b'"successful":true,"t":"\\/\xc3\xa4"},{"channel":"/x","clientId":"c.1","data":1.0}]'
        % OWNERSHIP.tagged("c.1").encode()
    )
    up = negotiating.from_client(
        msgspec.json.encode({"channel": "/meta/connect", "clientId": read(down.payload)[0]["clientId"]}), 2.0
    )
    assert read(up.payload)[0]["clientId"] == "c.1"


@pytest.mark.parametrize("client_id", [b"", b',"clientId":null', b',"clientId":5', b',"clientId":["c"]'])
def test_answer_without_a_clientid_passes_untouched(client_id: bytes) -> None:
    negotiating = owned()
    negotiating.from_client(handshake(), 0.0)
    answer = b'[{"channel":"/meta/handshake" ,"successful":false%b}]' % client_id
    assert negotiating.from_upstream(answer, 1.0).payload == answer


@PROPERTY
@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_any_clientid_comes_back_as_it_was(client_id: str) -> None:
    negotiating = owned()
    negotiating.from_client(handshake(), 0.0)
    answer = {"channel": "/meta/handshake", "successful": True, "clientId": client_id}
    [told] = read(negotiating.from_upstream(msgspec.json.encode([answer]), 1.0).payload)
    up = negotiating.from_client(msgspec.json.encode({"channel": "/a", "clientId": told["clientId"]}), 2.0)
    assert read(up.payload) == [{"channel": "/a", "clientId": client_id}]


def test_own_replies_to_what_went_up_name_the_clientid_as_it_was_sent() -> None:
    negotiating = owned()
    tagged = OWNERSHIP.tagged("c")
    up = negotiating.from_client(
        b'[{"channel":"/meta/handshake","id":"1"},{"channel":"/meta/connect","id":"2","clientId":"%b"}]'
        % tagged.encode(),
        0.0,
    )
    sent = [msgspec.json.decode(encode([one]))[0] for one in negotiating.as_sent(up.batch)]
    assert [(one["id"], one.get("clientId")) for one in sent] == [("1", None), ("2", tagged)]
    assert read(encode(up.batch))[1]["clientId"] == "c"
    assert negotiation_with().as_sent(up.batch) == up.batch


# What can be had here -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "left"),
    [
        pytest.param(b'["websocket","callback-polling","long-polling"]', b'["websocket","long-polling"]', id="JSONP"),
        pytest.param(b'["callback\\u002dpolling"]', b"[]", id="JSONP with escapes, alone"),
        pytest.param(b'"callback-polling"', b"[]", id="JSONP as a text"),
        pytest.param(b'["flash","websocket"]', b'["websocket"]', id="one that nobody knows"),
        pytest.param(b'["WebSocket","websocket"]', b'["websocket"]', id="other case"),
    ],
)
def test_connection_types_that_are_not_served_are_taken_out_of_the_answer(types: bytes, left: bytes) -> None:
    answer = b'[{"channel":"/meta/handshake","successful":true,"supportedConnectionTypes":%b,"n":1.0}]'
    assert awaiting().from_upstream(answer % types, 1.0).payload == answer % left


@pytest.mark.parametrize(
    "types", [b'[ "websocket", "long-polling" ]', b"[]", b"null", b"5", b'["websocket",5]', b'"websocket"']
)
def test_other_connection_types_pass_untouched(types: bytes) -> None:
    answer = b'[{"channel":"/meta/handshake","successful":true,"supportedConnectionTypes":%b}]' % types
    assert awaiting().from_upstream(answer, 1.0).payload == answer


def test_only_answers_to_handshakes_are_narrowed() -> None:
    answer = b'[{"channel":"/a","supportedConnectionTypes":["callback-polling"]}]'
    assert awaiting().from_upstream(answer, 1.0).payload == answer


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("Bad credentials {token}", "Bad credentials ***", id="whole"),
        pytest.param("{token} is bad, {token} is", "***", id="with more behind it"),
        pytest.param("Bad credentials {begun}", "Bad credentials ***", id="cut short"),
        pytest.param("Bad credentials", "Bad credentials", id="not quoted"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_text_that_may_be_cut_short_quotes_no_beginning_of_a_token(text: str, told: str) -> None:
    token = JWT.token
    quoted = text.format(token=token, begun=token[:8])
    assert Negotiation(JWT).unquoted(quoted.encode()) == told.encode()
    assert Negotiation[Credential](None).unquoted(quoted.encode()) == quoted.encode()


@pytest.mark.parametrize("shown", [repr, str], ids=["repr", "str"])
def test_what_goes_up_does_not_show_its_credential(shown: Callable[[object], str]) -> None:
    up = negotiation_with(Jwt("canary-token")).from_client(handshake(), 0.0)
    assert up.payload is not None
    assert b"canary-token" in up.payload
    assert shown(up) == "Up(1 up, 0 down, outcomes=[])"
