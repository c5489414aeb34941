"""What is granted may be said, and nothing else."""

import tracemalloc
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.bayeux.channels import covers, granted, requested
from proxy.bayeux.messages import Message, decode
from proxy.gate.endpoints import ENDPOINTS
from proxy.gate.policy import DEFAULT, Grant, Policy


PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=150)

AGENTS: Final = {"/notification/operations", "/devicecontrol/notifications"}
DATA: Final = sorted(set(ENDPOINTS) - AGENTS)
NOTHING: Final = object()


def message(payload: bytes) -> Message:
    [one] = decode(payload)
    return one


def refused(policy: Policy, channel: str, subscription: object = NOTHING) -> str | None:
    """Why a message does not go up; None when it does."""
    asked: dict[str, Any] = {"channel": channel}
    if subscription is not NOTHING:
        asked["subscription"] = subscription
    refusal = policy.refusal(channel, message(msgspec.json.encode(asked)))
    assert refusal is None or (refusal.code == 403 and not refusal.rehandshake)
    return None if refusal is None else refusal.reason


def subscribing(*patterns: str) -> Policy:
    return Policy([Grant(subscribe=patterns)])


def by_default(endpoint: str) -> Policy:
    return Policy([DEFAULT[endpoint]])


# The default ----------------------------------------------------------------------------------------------------------


def test_there_is_a_default_for_every_endpoint() -> None:
    assert set(DEFAULT) == set(ENDPOINTS)


@pytest.mark.parametrize("endpoint", DATA)
@pytest.mark.parametrize(
    ("subscription", "reason"),
    [
        *[
            pytest.param(f"/{kind}/{last}", None, id=f"{kind}, {last}")
            for kind in (
                "alarms",
                "alarmsWithChildren",
                "applications",
                "bulkOperations",
                "events",
                "eventsWithChildren",
                "managedobjects",
                "measurements",
                "operations",
            )
            for last in ("12", "*")
        ],
        pytest.param("/measurements/**", "subscribe", id="deeper than the data channels"),
        pytest.param("/measurements", "subscribe", id="the word alone"),
        pytest.param("/*", "subscribe", id="one segment"),
        pytest.param("/12", "subscribe", id="an agent, elsewhere"),
        pytest.param("/**", "subscribe", id="everything"),
        pytest.param("/meta/**", "subscribe", id="the meta family"),
        pytest.param("/service/**", "subscribe", id="services"),
        pytest.param("/others/1", "subscribe", id="another channel"),
        pytest.param("/alarms//1", "subscribe", id="no channel"),
    ],
)
def test_default_is_to_hear_the_data_channels(endpoint: str, subscription: str, reason: str | None) -> None:
    assert refused(by_default(endpoint), "/meta/subscribe", subscription) == reason


@pytest.mark.parametrize("endpoint", sorted(AGENTS))
@pytest.mark.parametrize(
    ("subscription", "reason"),
    [
        pytest.param("/12345", None, id="an agent"),
        pytest.param("/*", "subscribe", id="any agent"),
        pytest.param("/**", "subscribe", id="everything"),
        pytest.param("/12345/1", "subscribe", id="a segment more"),
        pytest.param("/alarms/1", "subscribe", id="a data channel"),
        pytest.param("/meta", "subscribe", id="the meta family"),
        pytest.param("/service", "subscribe", id="the word of services"),
        pytest.param("/{id}", "subscribe", id="a variable"),
        pytest.param("/", "subscribe", id="nobody"),
    ],
)
def test_default_of_agents_is_to_hear_one(endpoint: str, subscription: str, reason: str | None) -> None:
    assert refused(by_default(endpoint), "/meta/subscribe", subscription) == reason


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("channel", "reason"),
    [
        pytest.param("/meta/connect", None, id="connect"),
        pytest.param("/meta/disconnect", None, id="disconnect"),
        pytest.param("/meta/unsubscribe", None, id="unsubscribe"),
        pytest.param("/alarms/1", "publish", id="publish to a data channel"),
        pytest.param("/12", "publish", id="publish to an agent"),
        pytest.param("/alarms/*", "publish", id="publish to a pattern"),
        pytest.param("/service/a", "call", id="a service"),
        pytest.param("/service", "call", id="the word of services"),
        pytest.param("/SERVICE/a", "publish", id="a service in other case"),
        pytest.param("", "publish", id="nothing"),
        pytest.param("/\u00e4", "publish", id="beyond ASCII"),
    ],
)
def test_default_is_to_send_nothing(endpoint: str, channel: str, reason: str | None) -> None:
    assert refused(by_default(endpoint), channel, "/**") == reason


# What is granted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subscription", "reason"),
    [
        pytest.param(["/a/1"], None, id="one in a list"),
        pytest.param(["/a/1", "/a/*", "/b"], None, id="all of a list"),
        pytest.param(["/a/1", "/c"], "subscribe", id="the last is too much"),
        pytest.param(["/c", "/a/1"], "subscribe", id="the first is too much"),
        pytest.param(["/a/1", "/a//1"], "subscribe", id="one is no channel"),
        pytest.param(["/a/1", ["/b"]], "subscribe", id="a list in a list"),
        pytest.param(["/a/1", None], "subscribe", id="null in a list"),
        pytest.param([], "subscribe", id="an empty list"),
        pytest.param("", "subscribe", id="an empty text"),
        pytest.param(None, "subscribe", id="null"),
        pytest.param(5, "subscribe", id="a number"),
        pytest.param({"/a/1": 1}, "subscribe", id="an object"),
        pytest.param(NOTHING, "subscribe", id="nothing"),
        pytest.param("/a/1,/c", "subscribe", id="a list in a text"),
        pytest.param("/a/1 /c", "subscribe", id="a list in a text, with a space"),
    ],
)
def test_every_element_of_a_subscription_must_be_granted(subscription: object, reason: str | None) -> None:
    assert refused(subscribing("/a/*", "/b"), "/meta/subscribe", subscription) == reason


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(rb'"\u002fa\u002f1"', None, id="code points"),
        pytest.param(rb'"\/a\/\u002a"', None, id="escaped slashes, a star as a code point"),
        pytest.param(rb'"\/\u002a\u002a"', "subscribe", id="stars as code points"),
        pytest.param(rb'"/a/1\u0000"', "subscribe", id="NUL behind"),
        pytest.param(rb'"/a/1","subscription":"/c"', "subscribe", id="the last of two counts, refused"),
        pytest.param(rb'"/c","subscr\u0069ption":"/a/1"', None, id="the last of two counts, granted"),
        pytest.param(rb'"/a/1","Subscription":"/c"', None, id="other case is another member"),
    ],
)
def test_subscription_is_judged_as_it_is_read(payload: bytes, reason: str | None) -> None:
    asked = message(b'{"channel":"/meta/subscribe","subscription":' + payload + b"}")
    refusal = subscribing("/a/*").refusal("/meta/subscribe", asked)
    assert (None if refusal is None else refusal.reason) == reason


def test_kinds_of_grants_do_not_mix() -> None:
    policy = Policy([Grant(subscribe=("/hear/*",), publish=("/say/*",), call=("/service/do/*",))])
    assert [refused(policy, "/meta/subscribe", name) for name in ("/hear/1", "/say/1", "/service/do/1")] == [
        None,
        "subscribe",
        "subscribe",
    ]
    assert [refused(policy, name) for name in ("/hear/1", "/say/1", "/service/do/1", "/service/1")] == [
        "publish",
        None,
        None,
        "call",
    ]


def test_grants_add_up() -> None:
    policy = Policy([Grant(subscribe=("/a",)), Grant(publish=("/b",)), Grant(subscribe=("/c",))])
    assert refused(policy, "/meta/subscribe", ["/a", "/c"]) is None
    assert refused(policy, "/meta/subscribe", ["/a", "/b"]) == "subscribe"
    assert refused(policy, "/b") is None


def test_nothing_granted_is_nothing() -> None:
    assert refused(Policy([]), "/meta/subscribe", "/a") == "subscribe"
    assert refused(Policy([]), "/a") == "publish"
    assert refused(Policy([]), "/meta/connect") is None


@pytest.mark.parametrize(
    ("publish", "call", "channel", "reason"),
    [
        pytest.param(("/**",), (), "/a/b/c", None, id="publish anywhere"),
        pytest.param(("/**",), (), "/service/a", "call", id="but call no service"),
        pytest.param(("/**",), (), "/service/*", "publish", id="nor all of them"),
        pytest.param(("/**",), (), "/a/*", "publish", id="nor to a pattern"),
        pytest.param(("/**",), (), "/**", "publish", id="nor to everything"),
        pytest.param(("/**",), (), "/a/{id}", "publish", id="nor to a variable"),
        pytest.param((), ("/service/**",), "/service/a/b", None, id="call any service"),
        pytest.param((), ("/service/**",), "/service", "call", id="but not the word alone"),
        pytest.param((), ("/service/*",), "/service/a/b", "call", id="nor a deeper one than granted"),
        pytest.param(("/service/**",), (), "/service/a", "call", id="a service is not published to"),
        pytest.param((), ("/**",), "/service/a", "call", id="services are granted by name"),
    ],
)
def test_messages_are_sent_where_it_is_granted(
    publish: tuple[str, ...], call: tuple[str, ...], channel: str, reason: str | None
) -> None:
    policy = Policy([Grant(publish=publish, call=call)])
    for _ in range(2):  # the second time it is remembered
        assert refused(policy, channel) == reason


@pytest.mark.parametrize("pattern", ["", "a", "/", "/a//b", "/**/a", "/{name}", "/a b"])
@pytest.mark.parametrize("kind", ["subscribe", "publish", "call"])
def test_grant_that_is_no_pattern_is_told(kind: str, pattern: str) -> None:
    with pytest.raises(ValueError, match="is no pattern"):
        Policy([Grant(**{kind: (pattern,)})])


ALL: Final[dict[str, tuple[str, ...]]] = {"subscribe": ("/**",), "publish": ("/**",), "call": ("/service/**",)}


@pytest.mark.parametrize(
    ("grants", "permits_all"),
    [
        pytest.param([ALL], True, id="all in one grant"),
        pytest.param([{kind: patterns} for kind, patterns in ALL.items()], True, id="all in three"),
        *[pytest.param([{k: v for k, v in ALL.items() if k != kind}], False, id=f"but {kind}") for kind in ALL],
        pytest.param([ALL | {"subscribe": ("/*", "/*/**")}], False, id="less, in other words"),
        pytest.param([ALL | {"call": ("/service/*",)}], False, id="less of services"),
        pytest.param([], False, id="nothing"),
    ],
)
def test_client_is_granted_everything_or_not(
    grants: Iterable[Mapping[str, tuple[str, ...]]], *, permits_all: bool
) -> None:
    assert Policy(Grant(**grant) for grant in grants).permits_all is permits_all


SEGMENTS: Final = st.sampled_from(["a", "b", "meta", "service"])


@PROPERTY
@given(
    grants=st.lists(st.lists(SEGMENTS | st.sampled_from(["*", "{id}"]), min_size=1, max_size=3), max_size=3),
    channels=st.lists(st.lists(SEGMENTS, min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_list_is_granted_when_each_of_it_is(grants: list[list[str]], channels: list[list[str]]) -> None:
    patterns = tuple("/" + "/".join(grant) for grant in grants)
    names = ["/" + "/".join(channel) for channel in channels]
    each = [any(covers(granted(pattern) or (), requested(name) or ()) for pattern in patterns) for name in names]
    assert (refused(subscribing(*patterns), "/meta/subscribe", names) is None) is all(each)
    assert [refused(subscribing(*patterns), "/meta/subscribe", name) is None for name in names] == each


@PROPERTY
@given(st.text(max_size=20))
def test_any_name_is_judged(name: str) -> None:
    everything = Policy([Grant(**ALL)])
    assert refused(Policy([]), name) in {"publish", "call"}
    assert refused(Policy([]), "/meta/subscribe", name) == "subscribe"
    assert requested(name) is not None or refused(everything, name) == "publish"
    assert (refused(everything, "/meta/subscribe", name) is None) <= (requested(name) is not None)


def test_names_that_clients_make_up_are_not_kept() -> None:
    """There are as many as they like, each as long as a payload."""
    policy = Policy([Grant(publish=("/**",))])
    tracemalloc.start()
    try:
        for number in range(2000):
            assert refused(policy, f"/service/{number}") == "call"
        for number in range(100):
            assert refused(policy, f"/{number}/{'x' * 100_000}") is None
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000
