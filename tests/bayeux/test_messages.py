"""Payloads become batches or `MalformedBatch`, and batches become the payloads that were judged."""

import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.bayeux import messages
from proxy.bayeux.messages import Batch, BatchTooLong, MalformedBatch


Form = Callable[[bytes], bytes]

PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=60)
CANARY: Final = "canary-in-the-payload"

WHITESPACE: Final = st.text(" \t\r\n", max_size=3)
NUMBERS: Final = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,5})?", fullmatch=True)
TEXTS: Final = st.text(st.characters(codec="utf-8"), max_size=6)
RAW_TEXTS: Final = TEXTS.map(lambda text: msgspec.json.encode(text).decode())
RAW_VALUES: Final[st.SearchStrategy[str]] = st.recursive(
    st.sampled_from(["null", "true", "false", '"\\/"', '"\\ud83d\\ude00"', '"\\u0000"']) | NUMBERS | RAW_TEXTS,
    lambda inner: (
        st.tuples(WHITESPACE, st.lists(inner, max_size=3)).map(lambda drawn: f"[{drawn[0]}{','.join(drawn[1])}]")
        | st.tuples(WHITESPACE, st.lists(st.tuples(RAW_TEXTS, inner), max_size=3)).map(
            lambda drawn: "{" + drawn[0] + ",".join(f"{name}:{value}" for name, value in drawn[1]) + "}"
        )
    ),
    max_leaves=5,
)
MESSAGES: Final = st.dictionaries(TEXTS.filter(lambda name: name != "channel"), RAW_VALUES, max_size=4)


def written(message: dict[str, str]) -> bytes:
    members = {'"channel"': '"/alarms/1"'} | {
        msgspec.json.encode(name).decode(): value for name, value in message.items()
    }
    return ("{" + ",".join(f"{name} : {value}" for name, value in members.items()) + "}").encode()


def read_anew(payload: bytes) -> Any:
    return msgspec.json.decode(payload)


def decoded(payload: bytes) -> Batch | None:
    """What `decode` makes of it; any exception but the one that it may raise fails the test."""
    try:
        return messages.decode(payload)
    except MalformedBatch:
        return None


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + closing * depth


@pytest.mark.parametrize(
    ("payload", "channels"),
    [
        pytest.param(b'[{"channel":"/a"}]', ["/a"], id="an array of one"),
        pytest.param(b'{"channel":"/a"}', ["/a"], id="a lone object"),
        pytest.param(b'[{"channel":"/a"},{"channel":"/b"}]', ["/a", "/b"], id="an array of two"),
        pytest.param(b"[]", [], id="Faye's heartbeat, an empty array"),
        pytest.param(b" [ ] ", [], id="an empty array among spaces"),
        pytest.param(b'\r\n\t [{"channel":"/a"}] \n', ["/a"], id="white space around"),
        pytest.param(b'[{"channel":"\\/a"}]', ["/a"], id="an escaped slash"),
        pytest.param(b'[{"ch\\u0061nnel":"\\u002fa"}]', ["/a"], id="code points in key and value"),
        pytest.param(b'[{"channel":"/a","channel":"/b"}]', ["/b"], id="the last of duplicate keys"),
        pytest.param(b'[{"channel":5,"channel":"/b"}]', ["/b"], id="a bad duplicate before a good one"),
        pytest.param('[{"channel":"/ä/😀"}]'.encode(), ["/ä/😀"], id="UTF-8 beyond ASCII"),
    ],
)
def test_batch_is_read(payload: bytes, channels: list[str]) -> None:
    assert [messages.channel(message) for message in messages.decode(payload)] == channels


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b" \r\n", id="white space alone"),
        pytest.param(b"null", id="null"),
        pytest.param(b"5", id="a number"),
        pytest.param(b'"/meta/handshake"', id="a text"),
        pytest.param(b"[null]", id="null in an array"),
        pytest.param(b"[5]", id="a number in an array"),
        pytest.param(b'[["/a"]]', id="an array in an array"),
        pytest.param(b'[[{"channel":"/a"}]]', id="a message in two arrays"),
        pytest.param(b"{}", id="an object without channel"),
        pytest.param(b'[{"channel":"/a"},{}]', id="one of two without channel"),
        pytest.param(b'[{"channel":null}]', id="channel null"),
        pytest.param(b'[{"channel":5}]', id="channel a number"),
        pytest.param(b'[{"channel":["/a"]}]', id="channel an array"),
        pytest.param(b'[{"channel":"/a","channel":5}]', id="a bad duplicate after a good one"),
        pytest.param(b'[{"Channel":"/a"}]', id="channel in other case"),
        pytest.param(b'[{"channel":"/a"}', id="cut off"),
        pytest.param(b'[{"channel":"/a"}]]', id="a bracket too many"),
        pytest.param(b'[{"channel":"/a"}][{"channel":"/b"}]', id="two arrays"),
        pytest.param(b'{"channel":"/a"}\n{"channel":"/b"}', id="two lines"),
        pytest.param(b'[{"channel":"/a"},]', id="a comma too many"),
        pytest.param(b'[{"channel":"/a","d":[1,]}]', id="a comma too many, deeper"),
        pytest.param(b'[{"channel":"/a",}]', id="a comma before the brace"),
        pytest.param(b"[{'channel':'/a'}]", id="single quotes"),
        pytest.param(b'[{channel:"/a"}]', id="a bare key"),
        pytest.param(b'[{"channel":"/a"}/**/]', id="a comment"),
        pytest.param(b'[{"channel":"/a","d":NaN}]', id="NaN"),
        pytest.param(b'[{"channel":"/a","d":Infinity}]', id="Infinity"),
        pytest.param(b'[{"channel":"/a","d":-Infinity}]', id="minus Infinity"),
        pytest.param(b'[{"channel":"/a","d":01}]', id="a leading zero"),
        pytest.param(b'[{"channel":"/a","d":+1}]', id="a leading plus"),
        pytest.param(b'[{"channel":"/a","d":1.}]', id="a trailing point"),
        pytest.param(b'[{"channel":"/a","d":0x1}]', id="a hexadecimal number"),
        pytest.param(b'[{"channel":"/a","d":tru}]', id="half a literal"),
        pytest.param(b'[{"channel":"/a","d":"\\x41"}]', id="an unknown escape"),
        pytest.param(b'[{"channel":"/a","d":"\n"}]', id="a raw line break in a text"),
        pytest.param(b'[{"channel":"/a","d":"\x00"}]', id="a raw NUL in a text"),
        pytest.param(b'[{"channel":"/a","d":"\\ud800"}]', id="a lone surrogate in a value"),
        pytest.param(b'[{"channel":"/a","\\udc00":1}]', id="a lone surrogate in a key"),
        pytest.param(b'[{"channel":"/a","ext":{"\\ud800":1}}]', id="a lone surrogate in a key of ext"),
        pytest.param(b'[{"channel":"/\\ud800\\u0041"}]', id="half a surrogate pair in the channel"),
        pytest.param(b"\xef\xbb\xbf[]", id="a byte order mark"),
        pytest.param('[{"channel":"/a"}]'.encode("utf-16"), id="UTF-16 with its mark"),
        pytest.param('[{"channel":"/a"}]'.encode("utf-16-le"), id="UTF-16, little end first"),
        pytest.param('[{"channel":"/a"}]'.encode("utf-16-be"), id="UTF-16, big end first"),
        pytest.param('[{"channel":"/a"}]'.encode("utf-32"), id="UTF-32"),
        pytest.param(b'[{"channel":"/a","d":"\xff"}]', id="a byte that UTF-8 never has"),
        pytest.param(b'[{"channel":"/a","d":"\xc0\xaf"}]', id="an overlong slash"),
        pytest.param(b'[{"channel":"/a","d":"\xed\xa0\x80"}]', id="a surrogate in UTF-8"),
        pytest.param(b'[{"channel":"/a","ext":{"d":{"e":["\xe4"]}}}]', id="Latin-1 deep in a value"),
        pytest.param(nested(100_000), id="100,000 arrays"),
        pytest.param(b"[" * 100_000, id="100,000 brackets that never close"),
        pytest.param(nested(100_000, b'{"a":', b"}"), id="100,000 objects"),
        pytest.param(b'[{"channel":"/a","d":' + nested(100_000) + b"}]", id="100,000 arrays in a value"),
        pytest.param(b'{"channel":"/a","ext":' + nested(100_000, b'{"a":', b"}") + b"}", id="100,000 objects in ext"),
    ],
)
def test_anything_else_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedBatch):
        messages.decode(payload)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(f'[{{"channel":"/a"}}, {CANARY}]', id="syntax"),
        pytest.param(f'[{{"channel":["{CANARY}"]}}]', id="channel of another type"),
        pytest.param(f'[{{"{CANARY}":1}}]', id="no channel"),
        pytest.param(f'[{{"channel":"/META/{CANARY}"}}]', id="lookalike"),
        pytest.param(f'"{CANARY}"', id="a text"),
        pytest.param(f'["{CANARY}\udcff"]', id="not UTF-8"),
    ],
)
def test_malformed_batch_quotes_nothing(payload: str) -> None:
    with pytest.raises(MalformedBatch) as caught:
        messages.decode(payload.encode(errors="surrogateescape"))
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("payload", "most"),
    [
        pytest.param(b"[" + b",".join([b'{"channel":"/a"}'] * 3) + b"]", 2, id="one more"),
        pytest.param(b"[" + b",".join([b"{}"] * 300_000) + b"]", 1000, id="very many, each of them wrong"),
        pytest.param(b'[{"channel":"/a"},{"channel":"/META"}]', 1, id="too long before it is wrong"),
    ],
)
def test_batch_has_no_more_messages_than_it_may(payload: bytes, most: int) -> None:
    with pytest.raises(BatchTooLong, match=rf"more than {most} messages \(limits\.batch_messages\)"):
        messages.decode(payload, most=most)


@pytest.mark.parametrize(
    ("payload", "most"),
    [
        pytest.param(b"[" + b",".join([b'{"channel":"/a"}'] * 2) + b"]", 2, id="as many as may be"),
        pytest.param(b'{"channel":"/a"}', 1, id="one alone"),
        pytest.param(b"[]", 1, id="none"),
        pytest.param(b"[" + b",".join([b'{"channel":"/a"}'] * 5000) + b"]", None, id="no limit"),
    ],
)
def test_batch_within_the_limit_is_read(payload: bytes, most: int | None) -> None:
    assert messages.decode(payload, most=most) == messages.decode(payload)


def test_handshake_is_seen_in_every_form(form: Form) -> None:
    batch = messages.decode(form(b'{"channel":"/meta/handshake","version":"1.0"}'))
    assert [messages.channel(message) for message in batch].count("/meta/handshake") == 1


@pytest.mark.parametrize(
    "number",
    [
        "0",
        "-0",
        "-0.0",
        "1e400",
        "-1E-400",
        "1.0",
        "1.10",
        "1e5",
        "1E+05",
        "9007199254740993",
        "1" * 5000,
        "0." + "3" * 500,
    ],
    ids=lambda number: number[:20],
)
def test_numbers_survive_to_the_digit(number: str, form: Form) -> None:
    encoded = messages.encode(
        messages.decode(form(f'{{"channel":"/a","data":{{"v":{number}}},"id":{number}}}'.encode()))
    )
    assert f'"channel":"/a","data":{{"v":{number}}},"id":{number}}}'.encode() in unescaped(encoded)


def unescaped(payload: bytes) -> bytes:
    """Raw values keep their escapes; without them every form of a message reads alike."""
    escapes = {f"\\u{code:04x}".encode(): bytes([code]) for code in range(32, 127)}
    payload = payload.replace(b"\\/", b"/")
    for escape, character in escapes.items():
        payload = payload.replace(escape, character)
    return payload


@pytest.mark.parametrize(
    ("payload", "encoded"),
    [
        pytest.param(b"[]", b"[]", id="the heartbeat"),
        pytest.param(b'{"channel":"/a"}', b'[{"channel":"/a"}]', id="a lone message becomes an array"),
        pytest.param(
            b'{"channel":"/a","d": { "x" : 1 } }', b'[{"channel":"/a","d":{ "x" : 1 }}]', id="spaces in a value"
        ),
        pytest.param(b'{"channel":"\\/a"}', b'[{"channel":"\\/a"}]', id="escapes in a value"),
        pytest.param(b'{"ch\\u0061nnel":"/a"}', b'[{"channel":"/a"}]', id="escapes in a key are spelled out"),
        pytest.param(
            b'{"channel":"/b","x":1,"x":2,"channel":"/a"}', b'[{"channel":"/a","x":2}]', id="duplicates are gone"
        ),
        pytest.param(
            b'{"channel":"/a","d":{"x":1,"x":2}}', b'[{"channel":"/a","d":{"x":1,"x":2}}]', id="not deeper ones"
        ),
        pytest.param('{"channel":"/a","é":"😀"}'.encode(), '[{"channel":"/a","é":"😀"}]'.encode(), id="beyond ASCII"),
        pytest.param(b'{"channel":"/a","":0}', b'[{"channel":"/a","":0}]', id="an empty key"),
        pytest.param(
            b'{"channel":"/a","\\u0000\\"":0}', b'[{"channel":"/a","\\u0000\\"":0}]', id="a key that needs escapes"
        ),
    ],
)
def test_what_was_judged_is_what_is_written(payload: bytes, encoded: bytes) -> None:
    assert messages.encode(messages.decode(payload)) == encoded


@settings(PROPERTY, max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_batch_or_malformed_batch(payload: bytes) -> None:
    decoded(payload)
    messages.read(payload)


@PROPERTY
@given(
    message=MESSAGES,
    cut=st.integers(0, 400),
    junk=st.sampled_from([b"", b"[", b"}", b'"', b"\\", b",", b"\xff", b"\x00", b"NaN", b"\\ud800", b"\xef\xbb\xbf"]),
)
def test_a_payload_damaged_anywhere_gives_a_batch_or_malformed_batch(
    message: dict[str, str], cut: int, junk: bytes
) -> None:
    payload = written(message)
    for damaged in (payload[:cut], payload[:cut] + junk + payload[cut:], payload[:cut] + junk + payload[cut + 1 :]):
        if (batch := decoded(damaged)) is not None:
            assert decoded(messages.encode(batch)) == batch


@PROPERTY
@given(st.lists(MESSAGES, max_size=3))
def test_values_survive_byte_for_byte(drawn: list[dict[str, str]]) -> None:
    batch = messages.decode(b"[" + b" , ".join(map(written, drawn)) + b"]")
    for sent in (batch, messages.decode(messages.encode(batch))):
        assert [{name: bytes(value).decode() for name, value in message.items()} for message in sent] == [
            {"channel": '"/alarms/1"', **message} for message in drawn
        ]


@PROPERTY
@given(NUMBERS)
def test_every_number_survives_to_the_digit(number: str) -> None:
    assert messages.encode(messages.decode(f'{{"channel":"/a","v":{number}}}'.encode())) == (
        f'[{{"channel":"/a","v":{number}}}]'.encode()
    )


@pytest.mark.parametrize("around", [b"%b", b"[%b]"], ids=["alone", "in an array"])
@pytest.mark.parametrize("channel", [b"/alarms/1", b"/meta/handshake"])
def test_what_nests_as_deeply_as_a_batch_may_can_still_be_opened(around: bytes, channel: bytes) -> None:
    """A batch that was let in, and an ext that cannot be read in it, would carry a client's authn past us."""
    limit = sys.getrecursionlimit()
    accepted = 0
    for depth in range(limit - 100, limit + 10):
        message = b'{"channel":"%b","ext":{"com.cumulocity.authn":{},"deep":%b}}' % (channel, nested(depth))
        if (batch := decoded(around % message)) is not None:
            accepted += 1
            assert messages.members(batch[0]["ext"])
    assert accepted


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param(b'[{"channel":"/a"}]', 1, id="an array"),
        pytest.param(b'{"channel":"/a"}', 1, id="a lone object"),
        pytest.param(b'[{"data":1},{}]', 2, id="messages without channel"),
        pytest.param(b'[{"channel":"/META/x"}]', 1, id="lookalikes are upstream's business"),
        pytest.param(b"[]", 0, id="an empty array"),
        pytest.param(b"   [] ", 0, id="keep-alive spaces in front"),
    ],
)
def test_upstream_payload_is_read(payload: bytes, expected: int) -> None:
    batch = messages.read(payload)
    assert batch is not None
    assert len(batch) == expected


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>", id="a page"),
        pytest.param(b"[1]", id="a number"),
        pytest.param(b'[{"channel":"/a"', id="cut off"),
        pytest.param(nested(100_000), id="100,000 arrays"),
        pytest.param(b'[{"\xff":1}]', id="not UTF-8 in a key"),
    ],
)
def test_upstream_payload_that_cannot_be_read_is_no_batch(payload: bytes) -> None:
    assert messages.read(payload) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, None, id="absent"),
        pytest.param(b'"a"', "a", id="a text"),
        pytest.param(b'""', "", id="an empty text"),
        pytest.param(b'"\\u0061\\/"', "a/", id="escapes"),
        pytest.param(b"null", None, id="null"),
        pytest.param(b"5", None, id="a number"),
        pytest.param(b'["a"]', None, id="an array"),
        pytest.param(b'"\xff"', None, id="not UTF-8"),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_string_is_a_text_or_none(value: bytes | None, expected: str | None) -> None:
    assert messages.string(None if value is None else msgspec.Raw(value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, {}, id="absent"),
        pytest.param(b"null", {}, id="null"),
        pytest.param(b"{}", {}, id="empty"),
        pytest.param(b'{"a":[1.0]}', {"a": b"[1.0]"}, id="an object"),
        pytest.param(b'{"a":1,"a":2}', {"a": b"2"}, id="the last of duplicate keys"),
        pytest.param(b"[]", None, id="an array"),
        pytest.param(b'"{}"', None, id="a text"),
        pytest.param(b"false", None, id="false"),
        pytest.param(b'{"\xff":1}', None, id="not UTF-8"),
        pytest.param(nested(100_000, b'{"a":', b"}"), None, id="100,000 objects"),
    ],
)
def test_members_are_those_of_an_object_or_none(value: bytes | None, expected: dict[str, bytes] | None) -> None:
    members = messages.members(None if value is None else msgspec.Raw(value))
    assert members == (None if expected is None else {name: msgspec.Raw(raw) for name, raw in expected.items()})


def test_own_values_stand_as_json() -> None:
    batch = [{"channel": messages.raw("/ä\n"), "advice": messages.raw({"interval": 5, "on": True})}]
    assert read_anew(messages.encode(batch)) == [{"channel": "/ä\n", "advice": {"interval": 5, "on": True}}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, None, id="absent"),
        pytest.param(b'"/a"', ["/a"], id="a text"),
        pytest.param(b'""', [""], id="an empty text"),
        pytest.param(b'["/a","/b"]', ["/a", "/b"], id="texts"),
        pytest.param(b"[]", [], id="no texts"),
        pytest.param(b' [ "\\u002fa" , "\\/b" ] ', ["/a", "/b"], id="escapes and spaces"),
        pytest.param(b"null", None, id="null"),
        pytest.param(b"5", None, id="a number"),
        pytest.param(b'["/a",5]', None, id="a number among texts"),
        pytest.param(b'["/a",null]', None, id="null among texts"),
        pytest.param(b'[["/a"]]', None, id="an array in an array"),
        pytest.param(b'{"0":"/a"}', None, id="an object"),
        pytest.param(b'["\xff"]', None, id="not UTF-8"),
        pytest.param(nested(100_000), None, id="100,000 arrays"),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_texts_of_a_raw_value(value: bytes | None, expected: list[str] | None) -> None:
    assert messages.strings(None if value is None else msgspec.Raw(value)) == expected
