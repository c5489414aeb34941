"""Shares and rates: what each may have and do, and what is remembered of it."""

from collections.abc import Iterable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.tree import LimitSettings
from proxy.gate.clients import Client
from proxy.gate.limits import Limits, Rate, Shares, TooMany
from proxy.operations.metrics import LIMITS


NOBODY: Final = Client("", "", (), {})


def client(name: str = "sensor", subject: str = "") -> Client:
    return Client(name, subject, (), {})


def test_every_limit_of_the_configuration_is_counted_when_it_is_reached() -> None:
    assert {*LIMITS} == LimitSettings.model_fields.keys() - {"heartbeat_seconds"}


def test_every_limit_of_the_configuration_is_kept() -> None:
    """The names are the same, so that one is made of the other."""
    assert {*Limits.__slots__} == LimitSettings.model_fields.keys() | {"handshake_seconds"}


# Shares ---------------------------------------------------------------------------------------------------------------


def test_client_gets_its_share_and_no_more() -> None:
    shares = Shares(2)
    shares.take(client())
    shares.take(client())
    with pytest.raises(TooMany, match=r"limits\.client_connections") as many:
        shares.take(client())
    assert many.value.limit == "client_connections"
    shares.give_back(client())
    shares.take(client())  # what was refused was not counted


def test_what_tells_clients_apart_gives_each_its_own_share() -> None:
    shares = Shares(1)
    for each in (client("a"), client("b"), client("a", "x"), client("a", "y"), client("", "x")):
        shares.take(each)
        with pytest.raises(TooMany):
            shares.take(each)


def test_clients_without_identity_have_no_share() -> None:
    shares = Shares(1)
    for _ in range(3):
        shares.take(NOBODY)
    shares.give_back(NOBODY)
    assert not shares._taken


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_nobody_has_more_than_the_most_and_who_has_nothing_is_forgotten(steps: Iterable[tuple[bool, str]]) -> None:
    shares, taken = Shares(3), dict.fromkeys("abc", 0)
    for takes, name in steps:
        if takes and taken[name] < 3:
            shares.take(client(name))
            taken[name] += 1
        elif takes:
            with pytest.raises(TooMany):
                shares.take(client(name))
        elif taken[name]:
            shares.give_back(client(name))
            taken[name] -= 1
        assert shares._taken == {(name, ""): count for name, count in taken.items() if count}


# Rate -----------------------------------------------------------------------------------------------------------------


def test_all_of_a_minute_may_come_at_once_and_then_one_by_one() -> None:
    rate = Rate(60)
    assert [rate.take("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rate.take("a", 0.0) == pytest.approx(1.0)
    assert rate.take("a", 0.25) == pytest.approx(0.75)
    assert rate.take("a", 1.0) == 0.0
    assert rate.take("a", 1.0) == pytest.approx(1.0)
    assert rate.take("b", 1.0) == 0.0


def test_who_is_refused_is_not_held_back_longer_for_asking() -> None:
    rate = Rate(1)
    assert rate.take("a", 0.0) == 0.0
    for second in range(1, 60):
        assert rate.take("a", float(second)) == pytest.approx(60.0 - second)
    assert rate.take("a", 60.0) == 0.0


STEPS: Final = st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.5, 1.0, 7.3, 60.0]), max_size=200)


@given(STEPS, st.integers(1, 20))
def test_never_more_in_any_span_than_a_burst_and_what_it_refills(pauses: Iterable[float], per_minute: int) -> None:
    rate, now, taken = Rate(per_minute), 1000.0, []
    for pause in pauses:
        now += pause
        if not rate.take("a", now):
            taken.append(now)
    for first, since in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= per_minute + (taken[last] - since) * per_minute / 60 + 1e-6


@given(STEPS, st.integers(1, 20))
def test_whoever_waits_as_long_as_it_is_told_comes_through(pauses: Iterable[float], per_minute: int) -> None:
    rate, now = Rate(per_minute), 1000.0
    for pause in pauses:
        now += pause
        if seconds := rate.take("a", now):
            assert 0 < seconds <= 60 / per_minute + 1e-6
            now += seconds + 1e-6
            assert rate.take("a", now) == 0.0


def test_as_many_are_remembered_as_is_bounded_and_the_first_to_be_forgotten_is_who_was_away_longest() -> None:
    rate = Rate(1)
    for number in range(10_000):
        assert rate.take(str(number), 0.0) == 0.0
    assert rate.take("0", 0.0) > 0  # which makes it the last to be forgotten, also by a refusal
    for number in range(10_000, 10_005):
        assert rate.take(str(number), 0.0) == 0.0
    assert len(rate._used) == 10_000
    assert rate.take("0", 0.0) > 0
    assert rate.take("1", 0.0) == 0.0
