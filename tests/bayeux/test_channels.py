"""A channel of the meta family is spelled exactly, or it is refused; a grant covers what it says and no more."""

import re
from itertools import product
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


# Names that clients ask for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "segments"),
    [
        pytest.param("/alarms/12", ("alarms", "12"), id="a channel"),
        pytest.param("/12", ("12",), id="one segment"),
        pytest.param("/alarms/*", ("alarms", "*"), id="a wildcard for one"),
        pytest.param("/alarms/**", ("alarms", "**"), id="a wildcard for many"),
        pytest.param("/*", ("*",), id="the wildcard for one alone"),
        pytest.param("/**", ("**",), id="the wildcard for many alone"),
        pytest.param("/meta/connect", ("meta", "connect"), id="a meta channel"),
        pytest.param("/a.b/...", ("a.b", "..."), id="dots among others"),
        pytest.param("/a-_!~()$@%2f", ("a-_!~()$@%2f",), id="marks"),
    ],
)
def test_channel_is_taken_apart(channel: str, segments: channels.Segments) -> None:
    assert channels.requested(channel) == segments
    assert channels.granted(channel) == segments


@pytest.mark.parametrize(
    "channel",
    [
        pytest.param("", id="nothing"),
        pytest.param("/", id="a slash"),
        pytest.param("//", id="two slashes"),
        pytest.param("alarms/1", id="no slash in front"),
        pytest.param("alarms", id="a word"),
        pytest.param("*", id="a bare wildcard"),
        pytest.param("**", id="a bare deep wildcard"),
        pytest.param("/alarms//1", id="an empty segment"),
        pytest.param("//alarms/1", id="an empty segment in front"),
        pytest.param("/alarms/", id="an empty segment behind"),
        pytest.param("/alarms/*/", id="a slash behind a wildcard"),
        pytest.param("/a*", id="a wildcard within a segment"),
        pytest.param("/*a", id="a segment that begins with one"),
        pytest.param("/a/***", id="three stars"),
        pytest.param("/a/{b}", id="a variable of CometD"),
        pytest.param("/{", id="a brace"),
        pytest.param("/a/.", id="a dot"),
        pytest.param("/a/../b", id="two dots"),
        pytest.param("/a\\b", id="a backslash"),
        pytest.param("/a b", id="a space"),
        pytest.param("/a\n", id="a line break behind"),
        pytest.param("/a\x00", id="NUL"),
        pytest.param("/a\x7f", id="DEL"),
        pytest.param("/\u00e4", id="beyond ASCII"),
        pytest.param("/a\u2044b", id="a slash of another kind"),
        pytest.param("/\uff0a", id="a star of another kind"),
    ],
)
def test_what_could_be_read_in_two_ways_is_no_channel(channel: str) -> None:
    assert channels.requested(channel) is None
    assert channels.granted(channel) is None


@pytest.mark.parametrize(
    ("pattern", "segments"),
    [
        pytest.param("/*/a", ("*", "a"), id="a wildcard in front"),
        pytest.param("/a/*/*", ("a", "*", "*"), id="two wildcards"),
        pytest.param("/a/{id}", ("a", "{id}"), id="an id behind"),
        pytest.param("/{id}/a", ("{id}", "a"), id="an id in front"),
        pytest.param("/{id}", ("{id}",), id="an id alone"),
        pytest.param("/a/{id}/**", ("a", "{id}", "**"), id="an id before many"),
    ],
)
def test_only_a_grant_has_wildcards_anywhere(pattern: str, segments: channels.Segments) -> None:
    assert channels.granted(pattern) == segments
    assert channels.requested(pattern) is None


@pytest.mark.parametrize("pattern", ["/**/a", "/a/**/*", "/**/**", "/a/{name}", "/{ID}", "/{id}x", "/a/{id"])
def test_what_is_no_grant_is_none(pattern: str) -> None:
    assert channels.granted(pattern) is None


@pytest.mark.parametrize(
    ("channel", "plain", "service"),
    [
        ("/a/b", True, False),
        ("/a/*", False, False),
        ("/**", False, False),
        ("/service", True, True),
        ("/service/a", True, True),
        ("/service/*", False, True),
        ("/services/a", True, False),
        ("/a/service", True, False),
    ],
)
def test_kinds_of_channels_are_told_apart(channel: str, *, plain: bool, service: bool) -> None:
    segments = channels.requested(channel)
    assert segments is not None
    assert (channels.is_plain(segments), channels.is_service(segments)) == (plain, service)


@PROPERTY
@given(st.text(st.sampled_from("/a*{}id.\\\u00e4 "), max_size=8) | st.text(max_size=8))
def test_any_text_is_a_channel_as_it_stands_or_none(text: str) -> None:
    for segments in (channels.requested(text), channels.granted(text)):
        assert segments is None or "/" + "/".join(segments) == text
    if channels.requested(text) is not None:
        assert channels.granted(text) == channels.requested(text)


# What a grant covers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grant", "asked", "covered"),
    [
        pytest.param("/measurements/*", "/measurements/*", True, id="the same pattern"),
        pytest.param("/measurements/*", "/measurements/1", True, id="one of them"),
        pytest.param("/measurements/*", "/**", False, id="everything"),
        pytest.param("/measurements/*", "/measurements/**", False, id="deeper ones, too"),
        pytest.param("/measurements/*", "/*", False, id="one segment"),
        pytest.param("/measurements/*", "/measurements", False, id="a segment less"),
        pytest.param("/measurements/*", "/measurements/1/2", False, id="a segment more"),
        pytest.param("/measurements/*", "/Measurements/1", False, id="other case"),
        pytest.param("/measurements/1", "/measurements/*", False, id="a wildcard where one is granted"),
        pytest.param("/measurements/**", "/measurements/*", True, id="many cover one"),
        pytest.param("/measurements/**", "/measurements/1/2/3", True, id="many cover several"),
        pytest.param("/measurements/**", "/measurements", False, id="many are one at least"),
        pytest.param("/{id}", "/12", True, id="an id"),
        pytest.param("/{id}", "/*", False, id="any id is none"),
        pytest.param("/{id}", "/**", False, id="many are no id"),
        pytest.param("/{id}/**", "/12/**", True, id="all of an id"),
        pytest.param("/*/1", "/alarms/1", True, id="any kind"),
        pytest.param("/**", "/**", True, id="everything, granted"),
        pytest.param("/**", "/meta/**", False, id="the meta family is not in everything"),
        pytest.param("/**", "/meta/connect", False, id="nor is a channel of it"),
        pytest.param("/**", "/service/x", False, id="nor a service"),
        pytest.param("/**", "/service/**", False, id="nor all services"),
        pytest.param("/**", "/service", False, id="nor the word alone"),
        pytest.param("/**", "/SERVICE/x", False, id="nor a service in other case"),
        pytest.param("/**", "/META/x", False, id="nor a meta channel in other case"),
        pytest.param("/*/x", "/service/x", False, id="nor is it any segment"),
        pytest.param("/{id}/x", "/service/x", False, id="nor an id"),
        pytest.param("/service/**", "/service/x/y", True, id="services by name"),
        pytest.param("/service/**", "/meta/x", False, id="services are not the meta family"),
        pytest.param("/meta/**", "/meta/**", True, id="the meta family by name"),
        pytest.param("/a/service/*", "/a/service/1", True, id="the word elsewhere is a word"),
    ],
)
def test_grant_covers_what_it_says(grant: str, asked: str, *, covered: bool) -> None:
    granted, requested = channels.granted(grant), channels.requested(asked)
    assert granted is not None
    assert requested is not None
    assert channels.covers(granted, requested) is covered


WORDS: Final = ("a", "meta", "service")
FAMILIES: Final = ("meta", "service")


def all_of(fronts: tuple[str, ...], lasts: tuple[str, ...]) -> list[channels.Segments]:
    """Every pattern of up to three segments."""
    return [(*front, last) for length in range(3) for front in product(fronts, repeat=length) for last in lasts]


CONCRETE: Final = ["/" + "/".join(each) for length in range(1, 5) for each in product((*WORDS, "z"), repeat=length)]
"""Every channel of up to four segments, also of one that no pattern names."""


def matched_by(pattern: channels.Segments) -> int:
    """Which of those channels a pattern matches, read as a regular expression: a set, as the bits of a number."""
    parts = {"*": "/[^/]+", "{id}": "/[^/]+", "**": "(?:/[^/]+)+"}
    expression = re.compile("".join(parts.get(segment, f"/{segment}") for segment in pattern))
    return sum(1 << place for place, channel in enumerate(CONCRETE) if expression.fullmatch(channel))


def test_everything_that_a_covered_pattern_matches_is_granted_and_nothing_else_is_refused() -> None:
    """All grants against all that can be asked for, by an independent reading of both."""
    asked_for = {asked: matched_by(asked) for asked in all_of(WORDS, (*WORDS, "*", "**"))}
    for grant in all_of((*WORDS, "*", "{id}"), (*WORDS, "*", "{id}", "**")):
        granted = matched_by(grant)
        for asked, matched in asked_for.items():
            is_within = matched & ~granted == 0
            is_by_name = asked[0] not in FAMILIES or grant[0] == asked[0]
            is_any_id = any(
                (one, other) in {("{id}", "*"), ("{id}", "**")} for one, other in zip(grant, asked, strict=False)
            )
            assert channels.covers(grant, asked) is (is_within and is_by_name and not is_any_id), (grant, asked)
