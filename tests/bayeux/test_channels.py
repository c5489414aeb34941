"""A channel of the meta family is spelled exactly, or it is refused."""

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.bayeux import channels, messages


PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=200)
META: Final = ("/meta/handshake", "/meta/connect", "/meta/disconnect", "/meta/subscribe", "/meta/unsubscribe")


@pytest.mark.parametrize("channel", META)
def test_meta_channel_is_itself(channel: str) -> None:
    assert not channels.is_lookalike(channel)


@pytest.mark.parametrize(
    "channel",
    [
        "/alarms/*",
        "/managedobjects/12345",
        "/measurements/meta",
        "/alarms/meta/handshake",
        "/service/meta/handshake",
        "/metadata/handshake",
        "/metering/1",
        "/m/eta/handshake",
        "/**",
        "/",
        "",
        "/ü/😀",
    ],
)
def test_other_channels_pass(channel: str) -> None:
    assert not channels.is_lookalike(channel)


@pytest.mark.parametrize(
    "channel",
    [
        pytest.param("/meta/handshake/", id="a slash at the end"),
        pytest.param("/meta/handshake/x", id="a segment more"),
        pytest.param("/meta//handshake", id="an empty segment"),
        pytest.param("//meta/handshake", id="two slashes in front"),
        pytest.param("meta/handshake", id="no slash in front"),
        pytest.param("/META/handshake", id="upper case"),
        pytest.param("/Meta/Handshake", id="mixed case"),
        pytest.param("/meta/Handshake", id="mixed case at the end"),
        pytest.param(" /meta/handshake", id="a space in front"),
        pytest.param("/meta/handshake ", id="a space behind"),
        pytest.param("/ meta /handshake", id="spaces within"),
        pytest.param("/\tmeta/handshake\n", id="other white space"),
        pytest.param("/\u00a0meta/handshake", id="a no-break space"),
        pytest.param("/meta", id="meta alone"),
        pytest.param("/meta/", id="meta and a slash"),
        pytest.param("/meta/*", id="a wildcard"),
        pytest.param("/meta/**", id="a deep wildcard"),
        pytest.param("/meta/publish", id="an unknown meta channel"),
        pytest.param("/meta/handshake\x00", id="NUL behind"),
        pytest.param("/meta/handshake?x", id="a query"),
    ],
)
def test_lookalike_is_never_relayed_as_no_handshake(channel: str) -> None:
    assert channels.is_lookalike(channel)
    for message in ({"channel": channel}, {"id": "1", "channel": channel}):
        alone = messages.encode([{name: messages.raw(value) for name, value in message.items()}])[1:-1]
        escaped = alone.replace(b"/", b"\\/")
        for payload in (alone, b"[" + alone + b"]", b'[{"channel":"/a"},' + alone + b"]", escaped):
            with pytest.raises(messages.MalformedBatch):
                messages.decode(payload)


@PROPERTY
@given(st.sampled_from(META), st.data())
def test_no_other_spelling_of_a_meta_channel_passes(channel: str, data: st.DataObject) -> None:
    spelling = list(channel)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(spelling) - 1))
        spelling[position] = data.draw(
            st.sampled_from(
                [spelling[position].upper(), spelling[position] + "/", spelling[position] + " "]
                if spelling[position] == "/"
                else [spelling[position].upper()]
            )
        )
    assert ("".join(spelling) in META) != channels.is_lookalike("".join(spelling))
