"""Replies of our own say what clients obey, and stand in front of upstream's."""

from collections.abc import Callable
from typing import Any, Final, get_args

import msgspec
import pytest

from proxy.bayeux import messages, replies
from proxy.bayeux.replies import UNKNOWN_CLIENT, Joiner, MessageReason, MessageRefusal, Refusal, RefusalReason


Form = Callable[[bytes], bytes]

OURS: Final[list[Any]] = [{"channel": "/meta/handshake", "successful": False}, {"channel": "/meta/connect", "id": "]"}]


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


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        pytest.param(
            {"channel": "/meta/subscribe", "id": "2", "clientId": "c.t", "subscription": ["/a", 5], "ext": {"x": 1}},
            {"channel": "/meta/subscribe", "id": "2", "clientId": "c.t", "subscription": ["/a", 5]},
            id="subscribe",
        ),
        pytest.param(
            {"channel": "/service/a", "data": {"secret": 1}, "clientId": None},
            {"channel": "/service/a", "clientId": None},
            id="a service, clientId null",
        ),
        pytest.param({"channel": "/a", "id": 7, "data": 1}, {"channel": "/a", "id": 7}, id="publish"),
    ],
)
@pytest.mark.parametrize("reason", get_args(MessageReason))
def test_refused_message_gets_a_failed_reply_of_its_own(
    reason: MessageReason, asked: dict[str, object], reply: dict[str, object]
) -> None:
    given_back = MessageRefusal(reason, "Not you").reply(message(**asked))
    assert read(messages.encode([given_back])) == [reply | {"successful": False, "error": "403::Not you"}]


@pytest.mark.parametrize("channel", ["/meta/connect", "/meta/subscribe", "/a"])
def test_client_with_an_unknown_clientid_is_told_to_handshake(channel: str) -> None:
    given_back = UNKNOWN_CLIENT.reply(message(channel=channel, clientId="c"))
    assert read(messages.encode([given_back])) == [
        {
            "channel": channel,
            "successful": False,
            "clientId": "c",
            "error": "402::Unknown client",
            "advice": {"reconnect": "handshake", "interval": 0},
        }
    ]


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
