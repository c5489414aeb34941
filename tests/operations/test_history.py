"""What is remembered of the last hour, and that it is bounded."""

from dataclasses import dataclass
from itertools import product
from typing import get_args

import pytest

from proxy.bayeux.negotiation import Outcome, RejectedReason
from proxy.operations.history import MINUTES, MOST_FAILURES, History
from proxy.operations.metrics import HANDSHAKE_REASONS, UPGRADE_REASONS, Metrics


START = 1_800_000_000.0  # the beginning of a minute

ACCEPTED = Outcome("accepted", "ok", 0.1)
DENIED = Outcome("rejected", "denied", 0.1)
TIMEOUT = Outcome("unanswered", "timeout", 5.0)


@dataclass
class Clock:
    """Unix time that stands still unless it is moved."""

    now: float = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(clock: Clock) -> History:
    return History(clock)


def totals(history: History) -> list[int]:
    """How much was counted in each minute of the last hour."""
    return [sum(minute.counts.values()) for minute in history.minutes()]


def test_minutes_are_those_of_the_last_hour_the_oldest_first(history: History, clock: Clock) -> None:
    history.settled("websocket", "default", ACCEPTED)
    clock.now += 60
    history.settled("websocket", "default", ACCEPTED)
    history.settled("long-polling", None, TIMEOUT)
    *before, last = history.minutes()
    assert len(before) == MINUTES - 1
    assert [minute.begun_at for minute in before] == [START + 60 * ago for ago in range(-58, 1)]
    assert before[-1].counts == {("handshake", "websocket", "default", "accepted"): 1}
    assert last.counts == {
        ("handshake", "websocket", "default", "accepted"): 1,
        ("handshake", "long-polling", None, "unanswered"): 1,
    }


@pytest.mark.parametrize(("later", "there"), [(0, 1), (59 * 60 + 59, 1), (60 * 60, 0), (120 * 60, 0), (10**9, 0)])
def test_minute_is_counted_for_an_hour(history: History, clock: Clock, later: float, there: int) -> None:
    history.settled("websocket", "default", ACCEPTED)
    clock.now += later
    assert sum(totals(history)) == there


def test_minute_takes_the_place_of_the_one_an_hour_before(history: History, clock: Clock) -> None:
    history.settled("websocket", "default", TIMEOUT)
    clock.now += 60 * MINUTES
    history.settled("websocket", "default", ACCEPTED)
    assert totals(history) == [0] * 59 + [1]


def test_clock_that_is_set_back_a_little_loses_nothing(history: History, clock: Clock) -> None:
    history.settled("websocket", "default", ACCEPTED)
    clock.now -= 1
    history.settled("websocket", "default", ACCEPTED)
    clock.now += 1
    history.settled("websocket", "default", ACCEPTED)
    assert totals(history)[-2:] == [1, 2]


def test_openings_are_counted_apart_from_handshakes(history: History) -> None:
    history.upgraded("default", "rejected", "denied")
    *_, last = history.minutes()
    assert last.counts == {("upgrade", "websocket", "default", "rejected"): 1}


def test_what_went_well_is_no_failure(history: History) -> None:
    history.settled("websocket", "default", ACCEPTED)
    assert list(history.failures()) == []


def test_same_failure_again_is_counted_where_it_stands_and_is_the_latest(history: History, clock: Clock) -> None:
    history.settled("websocket", "default", DENIED)
    clock.now += 1
    history.settled("websocket", "default", TIMEOUT)
    clock.now += 1
    history.settled("websocket", "default", DENIED)
    first, second = history.failures()
    assert (first.reason, first.times, first.first_at, first.last_at) == ("denied", 2, START, START + 2)
    assert (second.reason, second.times, second.first_at, second.last_at) == ("timeout", 1, START + 1, START + 1)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("long-polling", "default", DENIED), id="another transport"),
        pytest.param(("websocket", "other", DENIED), id="another credential"),
        pytest.param(("websocket", None, DENIED), id="no credential"),
        pytest.param(("websocket", "default", TIMEOUT), id="another end"),
        pytest.param(("websocket", "default", Outcome("rejected", "other", 0.1)), id="another reason"),
    ],
)
def test_failures_that_differ_stand_apart(history: History, other: tuple[str, str | None, Outcome]) -> None:
    history.settled("websocket", "default", DENIED)
    history.settled(*other)
    assert [failure.times for failure in history.failures()] == [1, 1]


def test_opening_and_handshake_that_end_alike_stand_apart(history: History) -> None:
    history.settled("websocket", "default", DENIED)
    history.upgraded("default", "rejected", "denied")
    assert [failure.event for failure in history.failures()] == ["upgrade", "handshake"]


def test_oldest_failure_makes_room(history: History) -> None:
    for number in range(MOST_FAILURES + 1):
        history.settled("websocket", f"c{number}", DENIED)
        history.settled("websocket", "kept", TIMEOUT)
    names = [failure.credential for failure in history.failures()]
    assert len(names) == MOST_FAILURES
    assert names[0] == "kept"
    assert {"c0", "c1"}.isdisjoint(names)


def test_flood_takes_no_memory_and_washes_no_other_failure_out(clock: Clock) -> None:
    history = History(clock)
    history.settled("websocket", "default", TIMEOUT)
    reasons = get_args(RejectedReason)
    for number in range(100_000):
        clock.now += 0.7
        history.settled("websocket", "default", Outcome("rejected", reasons[number % 3], 0.1))
    assert {failure.reason for failure in history.failures()} == {"timeout", *reasons}
    assert sum(failure.times for failure in history.failures()) == 100_001
    assert (len(history._ring), max(len(counts) for _, counts in history._ring)) == (MINUTES, 1)


def test_flood_of_all_that_can_happen_stays_within_its_bounds(clock: Clock) -> None:
    names = [f"c{number}" for number in range(20)]
    ways = [(verdict, reason) for verdict, reasons in HANDSHAKE_REASONS.items() for reason in reasons]
    metrics = Metrics("stored", history=History(clock))
    kinds = list(product(("websocket", "long-polling"), names, ways))
    for number in range(100_000):
        transport, name, (verdict, reason) = kinds[number % len(kinds)]
        outcome = Outcome(verdict, reason, 0.1)  # type: ignore[arg-type] # from the closed sets
        metrics.history.settled(transport, name, outcome)
        clock.now += 0.1
    assert len(list(metrics.history.failures())) == MOST_FAILURES
    assert max(len(counts) for _, counts in metrics.history._ring) <= 2 * len(names) * len(HANDSHAKE_REASONS)
    assert metrics.history._denied <= set(names)


def test_what_the_client_sent_of_its_own_says_nothing_of_ours(history: History) -> None:
    history.settled("websocket", "default", Outcome("rejected", "denied", 0.1, ours=False))
    [failure] = history.failures()
    assert failure.credential is None
    assert not history.is_denied("default")


@pytest.mark.parametrize("how", ["accepted", "loaded"])
def test_denial_holds_until_upstream_accepts_or_another_value_is_loaded(history: History, how: str) -> None:
    for name in ("default", "other"):
        history.settled("websocket", name, DENIED)
    assert history.is_denied("default")
    if how == "accepted":
        history.settled("long-polling", "default", ACCEPTED)
    else:
        history.loaded("stored", "default")
    assert (history.is_denied("default"), history.is_denied("other")) == (False, True)


def test_refused_opening_is_a_denial_too(history: History) -> None:
    history.upgraded("default", "rejected", "denied")
    history.upgraded(None, "rejected", "denied")
    assert history.is_denied("default")


def test_loading_is_remembered_by_source_and_name(history: History, clock: Clock) -> None:
    clock.now += 5
    history.loaded("stored", "default")
    assert history.loaded_at("stored", "default") == START + 5
    assert history.loaded_at("login", "default") is None
    assert history.loaded_at("stored", "other") is None


# Fed by the metrics ---------------------------------------------------------------------------------------------------


def test_metrics_tell_what_they_count(clock: Clock) -> None:
    metrics = Metrics("stored", history=History(clock))
    metrics.settle("websocket", "stored", [ACCEPTED, DENIED], credential="default")
    metrics.settle("long-polling", None, [Outcome("refused", "identity", 0.0)])
    metrics.upgrade("accepted", "ok", "default")
    metrics.upgrade("refused", "origin")
    metrics.credential_loaded("stored", "default", well=True)
    metrics.credential_loaded("stored", "broken", well=False)
    told = [(each.event, each.credential, each.outcome, each.reason) for each in metrics.history.failures()]
    assert told == [
        ("upgrade", None, "refused", "origin"),
        ("handshake", None, "refused", "identity"),
        ("handshake", "default", "rejected", "denied"),
    ]
    assert sum(totals(metrics.history)) == 4
    assert metrics.history.loaded_at("stored", "default") == START
    assert metrics.history.loaded_at("stored", "broken") is None


def test_every_reason_is_one_that_can_be_remembered(history: History) -> None:
    for verdict, reasons in UPGRADE_REASONS.items():
        for reason in reasons:
            if verdict != "accepted":
                history.upgraded(None, verdict, reason)
    expected = {(verdict, reason) for verdict, reasons in UPGRADE_REASONS.items() for reason in reasons}
    assert {(each.outcome, each.reason) for each in history.failures()} == expected - {("accepted", "ok")}
