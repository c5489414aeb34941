"""Replies of our own say what clients obey, and stand in front of upstream's."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.bayeux import messages, replies
from proxy.bayeux.replies import Joiner, Refusal, RefusalReason


Form = Callable[[bytes], bytes]

PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=150)
OURS: Final[list[Any]] = [{"channel": "/meta/handshake", "successful": False}, {"channel": "/meta/connect", "id": "]"}]

WHITESPACE: Final = st.text(" \t\r\n", max_size=4)
VALUES: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a[]{},:"\\', max_size=4), inner, max_size=3),
    max_leaves=6,
)
THEIRS: Final = st.dictionaries(st.text("abc[]{}", max_size=4), VALUES, max_size=4)


def message(**members: object) -> messages.Message:
    return {name: messages.raw(value) for name, value in members.items()}


def read(payload: bytes) -> Any:
    return msgspec.json.decode(payload)


def joiner() -> Joiner:
    return Joiner([message(**ours) for ours in OURS])


def joined(*chunks: bytes) -> bytes:
    joining = joiner()
    return b"".join([*map(joining.feed, chunks), joining.end()])


@pytest.mark.parametrize(
    ("retry_ms", "advice"),
    [
        pytest.param(None, {"reconnect": "none"}, id="a lasting one stops the client"),
        pytest.param(7000, {"reconnect": "handshake", "interval": 7000}, id="a passing one names the pause"),
        pytest.param(0, {"reconnect": "handshake", "interval": 0}, id="a pause of nothing is still passing"),
    ],
)
@pytest.mark.parametrize("reason", get_args(RefusalReason))
def test_refused_handshake_is_bayeux_shaped(
    reason: RefusalReason, retry_ms: int | None, advice: dict[str, object], form: Form
) -> None:
    refusal = Refusal(reason, "Not here", retry_ms)
    batch = messages.decode(form(b'{"channel":"/meta/handshake","id":"7","version":"1.0","ext":{"secret":1}}'))
    [handshake] = [one for one in batch if messages.channel(one) == "/meta/handshake"]
    assert read(messages.encode([refusal.reply(handshake)])) == [
        {"channel": "/meta/handshake", "successful": False, "id": "7", "error": "403::Not here", "advice": advice}
    ]


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        pytest.param(
            {"channel": "/meta/connect", "id": "1", "clientId": "c", "connectionType": "websocket"},
            {"channel": "/meta/connect", "id": "1", "clientId": "c"},
            id="connect",
        ),
        pytest.param(
            {"channel": "/meta/subscribe", "subscription": ["/a", "/b"], "clientId": "c"},
            {"channel": "/meta/subscribe", "subscription": ["/a", "/b"], "clientId": "c"},
            id="subscribe to several, without id",
        ),
        pytest.param(
            {"channel": "/a", "data": {"x": 1}, "id": 5}, {"channel": "/a", "id": 5}, id="publish, id a number"
        ),
        pytest.param({"channel": "/a", "id": None}, {"channel": "/a", "id": None}, id="id null"),
    ],
)
def test_refused_neighbour_gets_no_advice(asked: dict[str, object], reply: dict[str, object]) -> None:
    given_back = Refusal("policy", "No").reply(message(**asked))
    assert read(messages.encode([given_back])) == [reply | {"successful": False, "error": "403::No"}]


def test_goodbye_keeps_the_session_and_asks_for_another_connect(form: Form) -> None:
    batch = messages.decode(
        form(b'{"channel":"/meta/connect","id":"9","clientId":"mine","connectionType":"websocket"}')
    )
    [connect] = [one for one in batch if messages.string(one.get("id")) == "9"]
    assert read(messages.encode([replies.goodbye(connect, Refusal("unavailable", "going", 1500))])) == [
        {
            "channel": "/meta/connect",
            "successful": True,
            "id": "9",
            "clientId": "mine",
            "advice": {"reconnect": "retry", "interval": 1500},
        }
    ]


@pytest.mark.parametrize(
    ("body", "theirs"),
    [
        pytest.param(b"", [], id="an empty body"),
        pytest.param(b"   \r\n\t", [], id="spaces alone"),
        pytest.param(b"[]", [], id="an empty array"),
        pytest.param(b" [ \n ] ", [], id="an empty array among spaces"),
        pytest.param(b'[{"a":1}]', [{"a": 1}], id="one message"),
        pytest.param(b'  [ {"a":1} , {"b":[]} ]\n', [{"a": 1}, {"b": []}], id="two messages among spaces"),
        pytest.param(b'{"a":[1,{"b":2}]}', [{"a": [1, {"b": 2}]}], id="a lone object"),
        pytest.param(b' \n{"a":"]"} \n', [{"a": "]"}], id="a lone object among spaces"),
        pytest.param(b"[[]]", [[]], id="an array first in the array"),
        pytest.param(b'["]"]', ["]"], id="a bracket in a text"),
    ],
)
def test_our_replies_stand_in_front(body: bytes, theirs: list[object]) -> None:
    assert read(joined(body)) == OURS + theirs
    assert joined(*(bytes([byte]) for byte in body)) == joined(body)
    for cut in range(len(body) + 1):
        assert joined(body[:cut], b"", body[cut:]) == joined(body)


@PROPERTY
@given(
    theirs=st.lists(THEIRS, max_size=3),
    alone=st.booleans(),
    spaces=st.tuples(WHITESPACE, WHITESPACE, WHITESPACE, WHITESPACE),
    cuts=st.lists(st.integers(0, 200), max_size=6).map(sorted),
)
def test_however_the_body_is_cut_the_join_is_the_same_json(
    theirs: list[dict[str, object]], *, alone: bool, spaces: tuple[str, str, str, str], cuts: list[int]
) -> None:
    front, inner, end, back = (space.encode() for space in spaces)
    if alone and theirs:
        theirs = theirs[:1]
        body = front + msgspec.json.encode(theirs[0]) + back
    else:
        body = front + b"[" + inner + msgspec.json.encode(theirs)[1:-1] + end + b"]" + back
    edges = [0, *(min(cut, len(body)) for cut in cuts), len(body)]
    chunks = [body[start:stop] for start, stop in pairwise(edges)]
    assert read(joined(body)) == OURS + theirs
    assert joined(*chunks) == joined(body)
    assert joined(*(bytes([byte]) for byte in body)) == joined(body)


def test_spaces_of_a_held_connect_pass_at_once() -> None:
    joining = joiner()
    assert joining.feed(b" ") == b" "
    assert joining.feed(b"\r\n") == b"\r\n"
    opened = joining.feed(b"[")
    assert opened.startswith(b"[")
    assert joining.feed(b" ") == b" "
    assert read(opened + joining.feed(b'{"a":1}]') + joining.end()) == [*OURS, {"a": 1}]


def test_nothing_is_withheld() -> None:
    joining = joiner()
    assert joining.feed(b'[{"a').endswith(b'{"a')
    assert joining.feed(b'":1}') == b'":1}'
    assert joining.feed(b"]") == b"]"
    assert joining.end() == b""


def test_upstream_bytes_cross_as_they_are() -> None:
    body = b'[{"v": 1.50e+05 , "t":"\\u002f\xc3\xa4"}]'
    assert joined(body).endswith(body[1:])
