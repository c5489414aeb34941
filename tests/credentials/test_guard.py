"""A value that upstream may deny is offered by one at a time until that is known, and nobody waits for ever."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.credentials.guard import FRESH_SECONDS, SILENCE_SECONDS, TURN_SECONDS, Guard
from tests.upstream.test_client import Clock as LoopClock


COOLDOWN: Final = 60.0
MANY: Final = 1500  # more than Python nests


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Attempt:
    """What it was told, in order; `then` is what it does at once when it goes up or is called off."""

    def __init__(self, then: Callable[["Attempt"], None] = lambda _: None) -> None:
        self.told: list[str] = []
        self._then = then

    def go_up(self) -> None:
        self.told.append("go up")
        self._then(self)

    def call_off(self) -> None:
        self.told.append("call off")
        self._then(self)


class Stand:
    """A guard, its clock, and how often it told of a denial."""

    def __init__(self, cooldown: float = COOLDOWN) -> None:
        self.clock = Clock()
        self.denials = 0
        self.guard = Guard(cooldown, self.clock, self._count)

    def _count(self) -> None:
        self.denials += 1

    def probe(self) -> Attempt:
        """The attempt that goes up first."""
        attempt = Attempt()
        assert self.guard.may_go_up(attempt)
        return attempt

    def waiting(self, count: int, then: Callable[[Attempt], None] = lambda _: None) -> list[Attempt]:
        """Attempts that must wait."""
        attempts = [Attempt(then) for _ in range(count)]
        assert not any(self.guard.may_go_up(attempt) for attempt in attempts)
        return attempts


def told(attempts: list[Attempt]) -> list[list[str]]:
    return [attempt.told for attempt in attempts]


@pytest.fixture
async def stand() -> Stand:
    return Stand()


Pass = Callable[[float], Awaitable[None]]


@pytest.fixture
async def passing(stand: Stand) -> Pass:
    """Lets time pass on the loop and on the guard's clock, at once."""
    loop_clock = LoopClock(asyncio.get_running_loop())

    async def let_pass(seconds: float) -> None:
        stand.clock.now += seconds
        loop_clock.put_forward(seconds)
        for _ in range(5):  # turns in which timers that are due are run
            await asyncio.sleep(0)

    return let_pass


# What upstream says ---------------------------------------------------------------------------------------------------


async def test_first_goes_up_and_the_others_wait_for_its_answer(stand: Stand) -> None:
    stand.probe()
    assert told(stand.waiting(3)) == [[], [], []]


async def test_what_goes_up_may_offer_the_value_again(stand: Stand) -> None:
    assert stand.guard.may_go_up(stand.probe())
    assert not stand.guard.may_go_up(Attempt())


async def test_once_it_is_accepted_all_go_up_in_their_order(stand: Stand) -> None:
    order: list[Attempt] = []
    stand.probe()
    waiting = stand.waiting(3, order.append)
    stand.guard.accepted()
    assert order == waiting
    assert told(waiting) == [["go up"]] * 3
    assert stand.guard.may_go_up(Attempt())


async def test_once_it_is_denied_nobody_goes_up_until_the_cool_down_is_over(stand: Stand) -> None:
    stand.probe()
    waiting = stand.waiting(3)
    stand.guard.denied()
    assert told(waiting) == [["call off"]] * 3
    assert stand.guard.resting_seconds == COOLDOWN
    stand.clock.now += COOLDOWN - 1
    assert stand.guard.resting_seconds == 1
    stand.clock.now += 1
    assert stand.guard.resting_seconds == 0
    stand.probe()
    stand.waiting(1)


async def test_denial_ends_a_proof() -> None:
    """Also where a proof would have lasted longer than the cool-down."""
    stand = Stand(cooldown=FRESH_SECONDS / 2)
    stand.probe()
    stand.guard.accepted()
    stand.guard.denied()
    stand.clock.now += FRESH_SECONDS / 2
    stand.probe()
    stand.waiting(1)


async def test_more_denials_are_told_once_and_prolong_nothing(stand: Stand) -> None:
    stand.probe()
    stand.guard.denied()
    stand.clock.now += 10
    stand.guard.denied()
    assert (stand.denials, stand.guard.resting_seconds) == (1, COOLDOWN - 10)
    stand.clock.now += COOLDOWN
    stand.probe()
    stand.guard.denied()
    assert (stand.denials, stand.guard.resting_seconds) == (2, COOLDOWN)


async def test_late_acceptance_neither_ends_a_cool_down_nor_proves_anything_after_it() -> None:
    stand = Stand(cooldown=FRESH_SECONDS / 2)
    stand.probe()
    stand.guard.denied()
    stand.guard.accepted()
    assert stand.guard.resting_seconds == FRESH_SECONDS / 2
    stand.clock.now += FRESH_SECONDS / 2
    stand.probe()
    stand.waiting(1)


async def test_proof_goes_stale_unless_it_is_renewed(stand: Stand) -> None:
    stand.guard.accepted()
    stand.clock.now += FRESH_SECONDS - 1
    stand.guard.accepted()
    stand.clock.now += FRESH_SECONDS - 1
    assert stand.guard.may_go_up(Attempt())
    stand.clock.now += 1
    stand.probe()
    stand.waiting(1)


async def test_acceptance_of_an_older_attempt_is_as_good(stand: Stand) -> None:
    stand.probe()
    stand.guard.accepted()
    stand.clock.now += FRESH_SECONDS
    stand.probe()
    waiting = stand.waiting(2)
    stand.guard.accepted()
    assert told(waiting) == [["go up"]] * 2


async def test_answer_without_a_word_about_the_value_lets_the_next_one_try(stand: Stand) -> None:
    probe = stand.probe()
    first, second = stand.waiting(2)
    stand.guard.undecided(probe)
    assert (first.told, second.told) == (["go up"], [])
    stand.guard.undecided(probe)  # has had its turn
    assert second.told == []
    stand.guard.undecided(first)
    assert second.told == ["go up"]


async def test_doubt_has_one_go_first_again(stand: Stand) -> None:
    stand.guard.accepted()
    stand.guard.doubt()
    stand.probe()
    stand.waiting(1)


async def test_upstream_that_the_first_cannot_reach_is_not_asked_by_those_who_wait(stand: Stand) -> None:
    probe = stand.probe()
    waiting = stand.waiting(3)
    stand.guard.unreachable(probe)
    assert told(waiting) == [["call off"]] * 3
    assert stand.guard.resting_seconds == 0
    stand.probe()


async def test_upstream_that_another_cannot_reach_may_still_answer_the_first(stand: Stand) -> None:
    stand.guard.accepted()
    late = Attempt()
    assert stand.guard.may_go_up(late)
    stand.clock.now += FRESH_SECONDS
    stand.probe()
    waiting = stand.waiting(1)
    stand.guard.unreachable(late)
    assert told(waiting) == [[]]


# Who leaves -----------------------------------------------------------------------------------------------------------


async def test_who_leaves_while_it_waits_is_told_nothing(stand: Stand) -> None:
    stand.probe()
    gone, staying = stand.waiting(2)
    stand.guard.left(gone)
    stand.guard.accepted()
    assert (gone.told, staying.told) == ([], ["go up"])


async def test_who_leaves_while_it_is_up_keeps_its_turn(stand: Stand, passing: Pass) -> None:
    """What it offered is with upstream all the same: a thousand who come and go would offer it as often."""
    probe = stand.probe()
    waiting = stand.waiting(2)
    stand.guard.left(probe)
    assert told(waiting) == [[], []]
    await passing(TURN_SECONDS - 1)
    assert told(waiting) == [[], []]
    await passing(1)
    assert told(waiting) == [["go up"], []]


async def test_thousand_who_leave_at_once_offer_nothing(stand: Stand, passing: Pass) -> None:
    probe = stand.probe()
    waiting = stand.waiting(MANY)
    for attempt in (probe, *waiting):
        stand.guard.left(attempt)
    await passing(TURN_SECONDS)
    assert not any(told(waiting))
    stand.probe()


async def test_who_left_is_not_taken_for_held(stand: Stand, passing: Pass) -> None:
    probe = stand.probe()
    waiting = stand.waiting(2)
    stand.guard.held(probe)
    stand.guard.left(probe)
    await passing(SILENCE_SECONDS)
    assert told(waiting) == [[], []]


# Time -----------------------------------------------------------------------------------------------------------------


async def test_upstream_that_takes_long_is_asked_once_more_each_turn(stand: Stand, passing: Pass) -> None:
    stand.probe()
    waiting = stand.waiting(3)
    for turn in range(3):
        await passing(TURN_SECONDS - 0.1)
        assert told(waiting) == [["go up"]] * turn + [[]] * (3 - turn)
        await passing(0.1)
        assert told(waiting) == [["go up"]] * (turn + 1) + [[]] * (2 - turn)


async def test_silence_over_a_request_that_upstream_holds_is_consent(stand: Stand, passing: Pass) -> None:
    probe = stand.probe()
    waiting = stand.waiting(3)
    stand.guard.held(probe)
    await passing(SILENCE_SECONDS - 0.1)
    assert told(waiting) == [[]] * 3
    await passing(0.1)
    assert told(waiting) == [["go up"]] * 3


async def test_silence_before_upstream_was_asked_is_none(stand: Stand, passing: Pass) -> None:
    stand.probe()
    waiting = stand.waiting(1)
    await passing(SILENCE_SECONDS)
    assert told(waiting) == [[]]


async def test_silence_over_one_that_has_had_its_turn_is_none(stand: Stand, passing: Pass) -> None:
    probe = stand.probe()
    first, second = stand.waiting(2)
    stand.guard.undecided(probe)
    stand.guard.held(probe)
    await passing(SILENCE_SECONDS)
    assert (first.told, second.told) == (["go up"], [])


async def test_denial_within_the_silence_counts(stand: Stand, passing: Pass) -> None:
    probe = stand.probe()
    stand.guard.held(probe)
    stand.guard.denied()
    await passing(COOLDOWN)
    stand.probe()
    stand.waiting(1)


async def test_turns_are_as_long_as_they_are_told_to_be() -> None:
    clock = Clock()
    guard = Guard(COOLDOWN, clock, lambda: None, fresh_seconds=0.01, silence_seconds=0.02, turn_seconds=0.03)
    gone_up = asyncio.Event()
    assert guard.may_go_up(Attempt())
    waiting = Attempt(lambda _: gone_up.set())
    assert not guard.may_go_up(waiting)
    await asyncio.wait_for(gone_up.wait(), 5)
    gone_up.clear()
    following = Attempt(lambda _: gone_up.set())
    assert not guard.may_go_up(following)
    guard.held(waiting)
    await asyncio.wait_for(gone_up.wait(), 5)
    assert guard.may_go_up(Attempt())
    clock.now += 0.01
    assert guard.may_go_up(Attempt())
    assert not guard.may_go_up(Attempt())


# What they do at once -------------------------------------------------------------------------------------------------


async def test_thousand_who_end_their_turn_at_once_do_not_nest(stand: Stand) -> None:
    probe = stand.probe()
    waiting = stand.waiting(MANY, stand.guard.undecided)
    stand.guard.undecided(probe)
    assert told(waiting) == [["go up"]] * MANY


async def test_denial_while_all_go_up_calls_off_the_rest(stand: Stand) -> None:
    denied_by: list[Attempt] = []

    def deny(attempt: Attempt) -> None:
        if not denied_by:
            denied_by.append(attempt)
            stand.guard.denied()

    stand.probe()
    waiting = stand.waiting(3, deny)
    stand.guard.accepted()
    assert told(waiting) == [["go up"], ["call off"], ["call off"]]


async def test_doubt_while_all_go_up_has_one_go_first_again(stand: Stand) -> None:
    stand.probe()
    waiting = stand.waiting(3, lambda _: stand.guard.doubt())
    stand.guard.accepted()
    assert told(waiting) == [["go up"], ["go up"], []]


async def test_acceptance_at_once_lets_all_go_up_once(stand: Stand) -> None:
    probe = stand.probe()
    waiting = stand.waiting(3, lambda _: stand.guard.accepted())
    stand.guard.undecided(probe)
    assert told(waiting) == [["go up"]] * 3


async def test_who_leaves_because_another_was_told_is_told_nothing(stand: Stand) -> None:
    stand.probe()
    first, second, third = stand.waiting(3, lambda _: stand.guard.left(second))
    stand.guard.accepted()
    assert (first.told, second.told, third.told) == (["go up"], [], ["go up"])


async def test_who_is_called_off_may_ask_again(stand: Stand) -> None:
    probe = stand.probe()
    again = Attempt()
    answers: list[bool] = []
    stand.waiting(2, lambda _: answers.append(stand.guard.may_go_up(again)))
    stand.guard.unreachable(probe)
    assert answers == [True, True]


# Any order ------------------------------------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """Attempts come, go and are answered in any order; what is counted here is what the guard promises."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stand = Stand()
        self.loop.time = self.stand.clock  # type: ignore[method-assign]
        self.waiting: list[Attempt] = []
        self.up: list[Attempt] = []  # not answered, whether their clients are there or not
        self.unproven: dict[Attempt, float] = {}  # those that went up without a proof since the last one, and when
        self.proven_until = 0.0
        self.do(lambda: None)

    def teardown(self) -> None:
        self.do(lambda: None)
        self.loop.close()

    def do(self, act: Callable[[], object]) -> None:
        """Do it within the loop, and let what is due happen."""

        async def run() -> None:
            act()
            for _ in range(3):
                await asyncio.sleep(0)

        self.loop.run_until_complete(run())

    @property
    def now(self) -> float:
        return self.stand.clock.now

    def went_up(self, attempt: Attempt) -> None:
        """Judge one that is told to go up, or needs not to wait."""
        assert not self.stand.guard.resting_seconds, "a value that rests went up"
        if self.now >= self.proven_until:
            for since in self.unproven.values():
                assert self.now - since >= TURN_SECONDS, "two are up within a turn, without a proof"
            self.unproven[attempt] = self.now
        self.up.append(attempt)

    def prove(self) -> None:
        self.proven_until = self.now + FRESH_SECONDS
        self.unproven.clear()

    def tell(self, attempt: Attempt) -> None:
        assert attempt in self.waiting, "told, and does not wait"
        self.waiting.remove(attempt)
        if attempt.told == ["go up"]:
            self.went_up(attempt)
        assert len(attempt.told) == 1

    @precondition(lambda self: not self.stand.guard.resting_seconds)
    @rule(is_held=st.booleans())
    def come(self, is_held: bool) -> None:  # noqa: FBT001 - as it is drawn
        def act() -> None:
            attempt = Attempt(self.tell)
            if self.stand.guard.may_go_up(attempt):
                self.went_up(attempt)
                if is_held:
                    self.stand.guard.held(attempt)
            else:
                self.waiting.append(attempt)

        self.do(act)

    @precondition(lambda self: self.up)
    @rule(data=st.data(), word=st.sampled_from(["accepted", "denied", "undecided", "unreachable"]))
    def answer(self, data: st.DataObject, word: str) -> None:
        attempt = data.draw(st.sampled_from(self.up))

        def act() -> None:
            self.up.remove(attempt)
            self.unproven.pop(attempt, None)
            guard = self.stand.guard
            if word == "accepted":
                if not guard.resting_seconds:
                    self.prove()
                guard.accepted()
                if self.now < self.proven_until:
                    assert not self.waiting
            elif word == "denied":
                self.proven_until = 0.0
                guard.denied()
                assert not self.waiting
                assert guard.resting_seconds
            elif word == "undecided":
                guard.undecided(attempt)
            else:
                self.proven_until = 0.0
                guard.unreachable(attempt)

        self.do(act)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave_while_waiting(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.waiting))

        def act() -> None:
            self.waiting.remove(attempt)
            self.stand.guard.left(attempt)

        self.do(act)

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def leave_while_up(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.up))
        self.do(lambda: self.stand.guard.left(attempt))

    @rule()
    def doubt(self) -> None:
        self.proven_until = 0.0
        self.do(self.stand.guard.doubt)

    @rule(seconds=st.sampled_from([0.1, 1.0, SILENCE_SECONDS, TURN_SECONDS, FRESH_SECONDS, COOLDOWN]))
    def pass_time(self, seconds: float) -> None:
        def act() -> None:
            self.stand.clock.now += seconds
            probe, silent = self.stand.guard._trying, self.stand.guard._silences._waiting
            if probe is not None and silent.get(probe, math.inf) <= self.now:  # silence is consent
                self.prove()

        self.do(act)

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        """Who waits does so behind one whose turn will be over."""
        guard = self.stand.guard
        assert list(guard._waiting) == self.waiting
        if self.waiting:
            assert guard._trying is not None
            assert guard._turns._timer is not None
            assert guard._trying in guard._turns._waiting


TestAnyOrder = Model.TestCase
