"""The live uses of a stored credential, and the warning near the platform's limit."""

import logging
from typing import Final

import pytest

from proxy.operations.uses import _BETWEEN_CONNECTS_SECONDS, _CALM_AT, _MOST_KNOWN, _WARN_AT, PLATFORM_LIMIT, Uses


NAME: Final = "default"


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uses(clock: Clock) -> Uses:
    return Uses(NAME, clock)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_websockets_count_while_they_are_open(uses: Uses) -> None:
    uses.opened()
    uses.opened()
    assert uses.count() == 2
    uses.closed()
    assert uses.count() == 1


def test_session_counts_while_its_connect_is_held_however_long(uses: Uses, clock: Clock) -> None:
    uses.held("c")
    clock.now += 7200
    assert uses.count() == 1


def test_session_counts_a_moment_longer_than_its_connect(uses: Uses, clock: Clock) -> None:
    uses.held("c")
    uses.answered("c")
    clock.now += _BETWEEN_CONNECTS_SECONDS
    assert uses.count() == 1
    clock.now += 0.1
    assert uses.count() == 0


def test_session_that_comes_back_in_time_is_one(uses: Uses, clock: Clock) -> None:
    for _ in range(5):
        uses.held("c")
        assert uses.count() == 1
        uses.answered("c")
        clock.now += 10
        assert uses.count() == 1


def test_session_with_two_connects_counts_until_both_are_answered(uses: Uses, clock: Clock) -> None:
    uses.held("c")
    uses.held("c")
    uses.answered("c")
    clock.now += 100
    assert uses.count() == 1
    uses.answered("c")
    clock.now += 100
    assert uses.count() == 0


@pytest.mark.parametrize("is_held", [True, False])
def test_session_that_ends_counts_no_more(uses: Uses, *, is_held: bool) -> None:
    uses.held("c")
    if not is_held:
        uses.answered("c")
    uses.gone("c")
    assert uses.count() == 0
    uses.answered("c")  # of its connect, which is told last
    assert uses.count() == 0


def test_sessions_are_forgotten_one_after_the_other(uses: Uses, clock: Clock) -> None:
    for client_id in "abc":
        uses.held(client_id)
    for client_id in "bca":
        uses.answered(client_id)
        clock.now += 5
    assert [uses.count(), _advanced(clock, 1, uses), _advanced(clock, 5, uses), _advanced(clock, 5, uses)] == [
        3,
        2,
        1,
        0,
    ]


def _advanced(clock: Clock, seconds: float, uses: Uses) -> int:
    clock.now += seconds
    return uses.count()


def test_what_is_known_of_sessions_is_bounded_and_those_that_are_away_make_room(uses: Uses) -> None:
    for number in range(_MOST_KNOWN):
        uses.held(str(number))
    uses.answered("0")
    uses.held("one more")
    assert (uses.count(), len(uses._held), len(uses._away)) == (_MOST_KNOWN, _MOST_KNOWN, 0)
    uses.held("and one")
    assert uses.count() == _MOST_KNOWN
    uses.answered("and one")  # which is not counted, and takes nobody's place
    assert uses.count() == _MOST_KNOWN


def test_warning_comes_once_near_the_limit_of_the_platform(uses: Uses, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(_WARN_AT - 2):
        uses.opened()
    uses.held("c")
    assert warnings(caplog) == []
    uses.opened()
    uses.opened()
    uses.held("d")
    [text] = warnings(caplog)
    assert NAME in text
    assert f"{_WARN_AT} times" in text
    assert f"more than {PLATFORM_LIMIT}" in text


def test_warning_comes_again_only_after_it_was_calm(uses: Uses, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def rise() -> None:
        while uses.count() < _WARN_AT:
            uses.opened()

    def fall(to: int) -> None:
        while uses.count() > to:
            uses.closed()

    rise()
    fall(_CALM_AT - 1)
    rise()
    assert len(warnings(caplog)) == 1
    fall(_CALM_AT - 2)
    rise()
    assert len(warnings(caplog)) == 2
    fall(0)
    for number in range(_WARN_AT):
        uses.held(str(number))
    assert len(warnings(caplog)) == 3
    for number in range(_WARN_AT):
        uses.answered(str(number))
    clock.now += 100
    rise()
    assert len(warnings(caplog)) == 4


def test_sessions_that_have_gone_by_themselves_do_not_warn(
    uses: Uses, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        uses.held(str(number))
        uses.answered(str(number))
        clock.now += 5
    assert warnings(caplog) == []
