"""Whoever asks is told at once, there is one fetch at a time, and no denial makes a storm."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from proxy.credentials.fetched import FetchDenied, Fetched, FetchedSource, FetchUnanswered, NotYet, event_or_seconds
from proxy.credentials.kinds import Credential, Jwt
from proxy.credentials.sources import Coming, CoolingDown, NoCredential
from proxy.credentials.stored import BrokenCredential, RevokedCredential, UnreadableCredential
from proxy.head import Head
from proxy.upstream.posts import UpstreamUnavailable
from tests.credentials.clock import Clock


HEAD: Final = Head("GET", "/notification/realtime", ())
REALTIME: Final = "/notification/realtime"
OPERATIONS: Final = "/notification/operations"
COOLDOWN: Final = 60.0
LIFE: Final = 1000.0
AGAIN: Final = 600.0
GONE: Final = UpstreamUnavailable("Upstream is not reachable")


class Tokens(FetchedSource):
    """Fetches a token with `values`, the next one each time.

    `answers` are raised first, one for each fetch; `dead` are tokens that are good no longer; `open` lets fetches end.
    """

    def __init__(self, clock: Clock, **more: Any) -> None:
        self.loads: list[bool] = []
        settings: dict[str, Any] = {"chance": lambda: 1.0, "wait": clock.wait, "cooldown_seconds": COOLDOWN} | more
        super().__init__(kind="device", credential="line-3", clock=clock, on_load=self.loads.append, **settings)
        self.values: str | BrokenCredential = "first"
        self.fetched: list[str] = []
        self.answers: list[Exception] = []
        self.checked: list[Credential] = []
        self.dead: set[Credential] = set()
        self.successor: Credential | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.began = asyncio.Event()
        self.at_once = self.most_at_once = 0
        self.goodbyes: list[bool] = []
        self.goodbye: Callable[[], None] = lambda: None
        self._read = ""

    def fingerprint(self) -> object:
        return self.values if isinstance(self.values, str) else id(self.values)

    def reread(self) -> bool:
        if isinstance(self.values, BrokenCredential):
            raise self.values
        before, self._read = self._read, self.values
        return before != self._read

    async def renewed(self, credential: Credential) -> Fetched | None:
        self.checked.append(credential)
        if credential in self.dead:
            return None
        if self._clock() >= self._good_until - LIFE + AGAIN:
            return None
        if self.successor is not None:
            credential, self.successor = self.successor, None
        return Fetched(credential, AGAIN, LIFE)

    async def fetch(self) -> Fetched:
        self.fetched.append(self._read)
        token = Jwt(f"token-{len(self.fetched)}")
        self.began.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.open.wait()
        finally:
            self.at_once -= 1
        if self.answers:
            raise self.answers.pop(0)
        return Fetched(token, AGAIN, LIFE)

    async def leave(self, *, for_good: bool) -> None:
        self.goodbyes.append(for_good)
        self.goodbye()

    def ask(self, endpoint: str = REALTIME) -> Credential:
        return self.obtain(HEAD, endpoint)

    def deny(self, endpoint: str = REALTIME) -> None:
        """Take note, as a relay does, that upstream denied what is given out."""
        guard = self.guard(self.ask(endpoint), endpoint)
        assert guard is not None
        guard.denied()


@asynccontextmanager
async def started(clock: Clock, *answers: Exception, **more: Any) -> AsyncIterator[Tokens]:
    tokens = Tokens(clock, **more)
    tokens.answers.extend(answers)
    await tokens.start()
    try:
        await clock.settle()
        yield tokens
    finally:
        await tokens.stop()


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tokens(clock: Clock) -> AsyncIterator[Tokens]:
    async with started(clock) as source:
        yield source


def told(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == level and each.name.startswith("proxy")]


# What is here ---------------------------------------------------------------------------------------------------------


async def test_nothing_is_fetched_before_the_start(clock: Clock) -> None:
    tokens = Tokens(clock)
    assert not tokens.is_usable()
    assert tokens.secrets() == ()
    with pytest.raises(Coming):  # which it is about to
        tokens.ask()
    await tokens.stop()
    assert tokens.fetched == []


async def test_what_is_here_is_given_out(tokens: Tokens) -> None:
    assert tokens.is_usable()
    assert tokens.ask() == Jwt("token-1")
    tokens.recheck(Jwt("token-1"), REALTIME)
    assert tokens.secrets() == ("token-1",)
    assert (tokens.name, tokens.is_clients_own, tokens.is_revoked) == ("device", False, False)


async def test_a_thousand_who_ask_cost_one_fetch_and_are_told_when_it_is_over(clock: Clock) -> None:
    tokens = Tokens(clock)
    tokens.open.clear()

    async def asking() -> Credential:
        try:
            return tokens.ask()
        except Coming as coming:
            await coming.arrival.wait()
        return tokens.ask()

    await tokens.start()
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(asking()) for _ in range(1000)]
        await asyncio.sleep(0)
        tokens.open.set()
    assert {task.result() for task in asked} == {Jwt("token-1")}
    assert len(tokens.fetched) == tokens.most_at_once == 1
    await tokens.stop()


async def test_it_is_seen_about_when_its_time_has_come_and_not_before(clock: Clock, tokens: Tokens) -> None:
    await clock.move(AGAIN - 1)
    assert len(tokens.fetched) == 1
    await clock.move(1)
    assert tokens.ask() == Jwt("token-2")


async def test_the_present_one_is_given_out_while_the_next_is_fetched(clock: Clock, tokens: Tokens) -> None:
    tokens.open.clear()
    tokens.began.clear()
    clock_moved = asyncio.get_running_loop().create_task(clock.move(AGAIN))
    await tokens.began.wait()
    assert tokens.ask() == Jwt("token-1")
    tokens.open.set()
    await clock_moved
    assert tokens.ask() == Jwt("token-2")


async def test_what_has_run_out_is_not_given_out(clock: Clock, tokens: Tokens) -> None:
    tokens.answers = [GONE] * 20
    await clock.move(LIFE - 1)
    assert tokens.ask() == Jwt("token-1")
    await clock.move(1)
    assert not tokens.is_usable()
    with pytest.raises(NoCredential):
        tokens.ask()
    with pytest.raises(NoCredential):
        tokens.recheck(Jwt("token-1"), REALTIME)


async def test_one_that_was_renewed_is_good_for_a_moment_still_on_connections_that_were_opened_with_it(
    clock: Clock, tokens: Tokens
) -> None:
    before = tokens.ask()
    await clock.move(AGAIN)
    assert tokens.ask() == Jwt("token-2")
    tokens.recheck(before, REALTIME)
    assert tokens.guard(before, REALTIME) is None
    await clock.move(29)
    tokens.recheck(before, REALTIME)
    await clock.move(1)
    with pytest.raises(NoCredential, match="connect again"):
        tokens.recheck(before, REALTIME)
    tokens.recheck(Jwt("token-2"), REALTIME)


async def test_one_that_was_dropped_or_retired_is_good_no_longer_though_it_was_renewed_just_now(
    clock: Clock, tokens: Tokens
) -> None:
    before = tokens.ask()
    await clock.move(AGAIN)
    tokens.drop()
    for renewed in (before, Jwt("token-2")):
        with pytest.raises(NoCredential):
            tokens.recheck(renewed, REALTIME)
    tokens.take(Fetched(before, AGAIN, LIFE))
    tokens.take(Fetched(Jwt("token-2"), AGAIN, LIFE))
    tokens.recheck(before, REALTIME)
    tokens.retire()
    with pytest.raises(NoCredential):
        tokens.recheck(before, REALTIME)


async def test_one_that_wants_to_be_seen_about_at_once_is_not_seen_about_all_the_time(clock: Clock) -> None:
    class Hasty(Tokens):
        async def fetch(self) -> Fetched:
            return Fetched((await super().fetch()).credential, 0.0)

        async def renewed(self, credential: Credential) -> None:
            """Fetches a fresh one each time."""

    tokens = Hasty(clock)
    await tokens.start()
    await clock.move(9.5)
    assert len(tokens.fetched) == 10
    await tokens.stop()


# Upstream is away -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chance", "pauses"),
    [
        pytest.param(1.0, [1, 2, 4, 8, 16, 32, 60, 60, 60], id="long ones"),
        pytest.param(0.0, [0.5, 1, 2, 4, 8, 16, 30, 30, 30], id="short ones"),
    ],
)
async def test_upstream_that_is_away_is_asked_after_pauses(clock: Clock, chance: float, pauses: list[float]) -> None:
    async with started(clock, *[GONE] * len(pauses), chance=lambda: chance) as tokens:
        for number, pause in enumerate(pauses, 1):
            with pytest.raises(NoCredential, match="unreachable"):
                tokens.ask()
            assert len(tokens.fetched) == number
            await clock.move(pause * 0.99)
            assert len(tokens.fetched) == number
            await clock.move(pause * 0.01)
        assert tokens.ask() == Jwt(f"token-{len(pauses) + 1}")


async def test_pauses_begin_anew_once_something_came(clock: Clock, tokens: Tokens) -> None:
    for _ in range(2):
        tokens.answers = [GONE] * 3
        before = len(tokens.fetched)
        await clock.move(AGAIN + 6.9)
        assert len(tokens.fetched) == before + 3
        await clock.move(0.1)
        assert len(tokens.fetched) == before + 4


async def test_upstream_that_is_away_is_told_once_and_so_is_its_return(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(clock, *[GONE] * 5) as tokens:
        await clock.move(100)
        assert tokens.loads == [False] * 5 + [True]
    assert told(caplog, logging.WARNING) == [
        "The credential line-3 cannot be fetched: Upstream is not reachable. Handshakes are refused for now"
    ]
    assert told(caplog, logging.INFO) == ["The credential line-3 is here"]


async def test_one_that_may_have_come_and_did_not_arrive_rests(clock: Clock) -> None:
    async with started(clock, FetchUnanswered("Upstream did not answer in time")) as tokens:
        with pytest.raises(CoolingDown):
            tokens.ask()
        await clock.move(COOLDOWN - 1)
        assert len(tokens.fetched) == 1
        await clock.move(1)
        assert tokens.ask() == Jwt("token-2")


@pytest.mark.logs_errors
async def test_a_fault_of_ours_is_told_and_ends_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async with started(clock, ZeroDivisionError()) as tokens:
        assert "The credential line-3 could not be fetched" in caplog.text
        await clock.move(1)
        assert tokens.ask() == Jwt("token-2")


# Denials --------------------------------------------------------------------------------------------------------------


@pytest.mark.logs_errors
async def test_a_denial_rests_and_longer_each_time(clock: Clock) -> None:
    rests = [60, 120, 240, 480, 480]
    async with started(clock, *[FetchDenied("No")] * len(rests)) as tokens:
        for number, rest in enumerate(rests, 1):
            with pytest.raises(CoolingDown) as cooling:
                tokens.ask()
            assert cooling.value.seconds == rest
            await clock.move(rest - 1)
            assert len(tokens.fetched) == number
            await clock.move(1)
        assert tokens.ask() == Jwt("token-6")


@pytest.mark.logs_errors
async def test_a_denial_ends_when_what_it_was_about_changes(clock: Clock) -> None:
    async with started(clock, FetchDenied("No")) as tokens:
        tokens.values = "second"
        with pytest.raises(Coming) as coming:
            tokens.ask()
        await coming.value.arrival.wait()
        assert tokens.ask() == Jwt("token-2")
        assert tokens.fetched == ["first", "second"]


@pytest.mark.logs_errors
async def test_a_final_denial_is_not_tried_again_before_something_changes(clock: Clock) -> None:
    async with started(clock, FetchDenied("Used up", is_final=True)) as tokens:
        await clock.move(1_000_000)
        assert len(tokens.fetched) == 1
        with pytest.raises(NoCredential) as refused:
            tokens.ask()
        assert not isinstance(refused.value, Coming | CoolingDown)
        tokens.values = "second"
        assert not tokens.is_usable()
        await clock.settle()
        assert tokens.is_usable()


@pytest.mark.logs_errors
async def test_a_denial_is_told_once_in_the_log_and_not_to_clients(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(clock, *[FetchDenied("Upstream denied it. Mend it")] * 3) as tokens:
        with pytest.raises(CoolingDown) as cooling:
            tokens.ask()
        assert "Mend it" not in str(cooling.value)
        await clock.move(COOLDOWN * 4)
        assert tokens.loads == [False] * 3
    assert told(caplog, logging.ERROR) == [
        "The credential line-3 cannot be fetched: Upstream denied it. Mend it. Handshakes are refused for now"
    ]


@pytest.mark.logs_errors
async def test_the_present_one_stays_when_the_next_is_denied(clock: Clock, tokens: Tokens) -> None:
    tokens.answers = [FetchDenied("No")]
    await clock.move(AGAIN)
    assert tokens.ask() == Jwt("token-1")
    await clock.move(COOLDOWN)
    assert tokens.ask() == Jwt("token-3")


async def test_what_cannot_be_fetched_yet_is_waited_for_in_silence(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(clock, NotYet(12)) as tokens:
        with pytest.raises(CoolingDown) as cooling:
            tokens.ask()
        assert cooling.value.seconds == 12
        await clock.move(12)
        assert tokens.ask() == Jwt("token-2")
        assert tokens.loads == [True]
    assert told(caplog, logging.WARNING) == []


# Doubt ----------------------------------------------------------------------------------------------------------------


@pytest.mark.logs_errors
async def test_one_that_is_good_cools_at_the_endpoint_that_denied_it(
    clock: Clock, tokens: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    tokens.deny(REALTIME)
    await clock.settle()
    assert tokens.checked == [Jwt("token-1")]
    with pytest.raises(CoolingDown):
        tokens.ask(REALTIME)
    assert tokens.ask(OPERATIONS) == Jwt("token-1")
    assert len(tokens.fetched) == 1
    [problem] = told(caplog, logging.ERROR)
    assert REALTIME in problem


async def test_one_that_is_good_no_longer_is_replaced_at_once_and_everywhere(clock: Clock, tokens: Tokens) -> None:
    tokens.dead.add(Jwt("token-1"))
    tokens.deny(REALTIME)
    await clock.settle()
    assert tokens.ask(REALTIME) == tokens.ask(OPERATIONS) == Jwt("token-2")


async def test_one_in_doubt_is_waited_for_where_it_was_denied(tokens: Tokens) -> None:
    tokens.dead.add(Jwt("token-1"))
    tokens.deny(REALTIME)
    with pytest.raises(Coming):
        tokens.recheck(Jwt("token-1"), REALTIME)
    with pytest.raises(Coming) as coming:
        tokens.ask()
    await coming.value.arrival.wait()
    assert tokens.ask() == Jwt("token-2")


async def test_one_known_to_be_dead_is_not_given_out_while_upstream_is_away(clock: Clock, tokens: Tokens) -> None:
    tokens.dead.add(Jwt("token-1"))
    tokens.answers = [GONE]
    tokens.deny(REALTIME)
    await clock.settle()
    for endpoint in (REALTIME, OPERATIONS):
        with pytest.raises(NoCredential):
            tokens.ask(endpoint)
    await clock.move(1)
    assert tokens.ask(REALTIME) == Jwt("token-3")


@pytest.mark.logs_errors
async def test_one_that_is_renewed_when_it_is_checked_counts_as_another(clock: Clock, tokens: Tokens) -> None:
    tokens.successor = Jwt("successor")
    tokens.deny(REALTIME)
    await clock.settle()
    assert tokens.ask(REALTIME) == Jwt("successor")
    tokens.successor = Jwt("storm")
    tokens.deny(REALTIME)
    await clock.move(COOLDOWN - 1)
    assert tokens.ask(OPERATIONS) == Jwt("successor")


async def test_a_storm_of_denials_costs_one_fetch_in_a_cool_down(clock: Clock, tokens: Tokens) -> None:
    """Upstream denies everything everywhere, also what it gave out a moment ago."""
    seconds = 600
    endpoints = [f"/{number}" for number in range(5)]
    offered = 0
    for _ in range(seconds):
        for endpoint in endpoints:
            for _ in range(10):
                try:
                    tokens.dead.add(tokens.ask(endpoint))
                except NoCredential:
                    continue
                offered += 1
                tokens.deny(endpoint)
        await clock.move(1)
    most = seconds / COOLDOWN + 1
    assert 2 <= len(tokens.fetched) <= most + 1
    assert offered <= len(endpoints) * 2 * most


@pytest.mark.logs_errors
async def test_doubt_does_not_shorten_the_rest_of_a_denial(clock: Clock, tokens: Tokens) -> None:
    tokens.answers = [FetchDenied("No")]
    await clock.move(AGAIN)
    assert len(tokens.fetched) == 2
    tokens.deny(REALTIME)
    await clock.move(COOLDOWN - 1)
    assert len(tokens.fetched) == 2
    await clock.move(1)
    assert tokens.ask() == Jwt("token-3")


# What it is fetched with ----------------------------------------------------------------------------------------------


async def test_another_value_to_fetch_with_is_noticed_on_use_and_the_present_one_stays_until_then(
    clock: Clock, tokens: Tokens
) -> None:
    tokens.dead.add(Jwt("token-1"))  # as who asks with other values says
    tokens.values = "second"
    assert tokens.ask() == Jwt("token-1")
    await clock.settle()
    assert tokens.ask() == Jwt("token-2")
    assert tokens.fetched == ["first", "second"]


@pytest.mark.logs_errors
@pytest.mark.parametrize("answer", [None, FetchDenied("No"), GONE], ids=["given", "denied", "away"])
async def test_a_change_under_way_is_not_lost(clock: Clock, answer: Exception | None) -> None:
    tokens = Tokens(clock)
    tokens.open.clear()
    await tokens.start()
    await tokens.began.wait()
    tokens.values = "second"
    assert not tokens.is_usable()
    tokens.dead.add(Jwt("token-1"))
    tokens.answers = [answer] if answer else []
    tokens.open.set()
    await clock.settle()
    assert tokens.fetched == ["first", "second"]
    assert tokens.ask() == Jwt("token-2")
    await tokens.stop()


@pytest.mark.logs_errors
async def test_broken_values_keep_the_last_good_ones(
    clock: Clock, tokens: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    tokens.values = BrokenCredential("password missing")
    assert [tokens.ask() for _ in range(3)] == [Jwt("token-1")] * 3
    await clock.move(AGAIN)
    assert tokens.ask() == Jwt("token-2")
    assert tokens.fetched == ["first", "first"]
    assert tokens.loads == [True, False, True]
    assert told(caplog, logging.ERROR) == ["The credential line-3 is broken: password missing. The last good one stays"]


@pytest.mark.logs_errors
async def test_values_that_were_never_good_give_nothing_until_they_are_mended(clock: Clock) -> None:
    tokens = Tokens(clock)
    tokens.values = BrokenCredential("password missing")
    await tokens.start()
    await clock.move(10_000)
    with pytest.raises(NoCredential) as refused:
        tokens.ask()
    assert not isinstance(refused.value, Coming | CoolingDown)
    assert "password" not in str(refused.value)
    assert (tokens.fetched, tokens.loads) == ([], [False])
    tokens.values = "mended"
    with pytest.raises(Coming):
        tokens.ask()
    await clock.settle()
    assert tokens.ask() == Jwt("token-1")
    await tokens.stop()


@pytest.mark.logs_errors
async def test_values_that_cannot_be_read_are_looked_at_again_and_told_once(clock: Clock, tokens: Tokens) -> None:
    tokens.values = UnreadableCredential("no descriptor left")
    for _ in range(3):
        assert tokens.is_usable()
    assert tokens.loads == [True, False]
    tokens.values = "first"
    assert tokens.is_usable()
    await clock.settle()
    assert tokens.fetched == ["first"]


@pytest.mark.logs_errors
async def test_revoked_values_end_everything_at_once_and_for_good(clock: Clock, tokens: Tokens) -> None:
    tokens.values = RevokedCredential("it was revoked")
    assert not tokens.is_usable()
    assert tokens.is_revoked
    with pytest.raises(NoCredential):
        tokens.recheck(Jwt("token-1"), REALTIME)
    assert tokens.guard(Jwt("token-1"), REALTIME) is None
    await clock.move(10_000)
    assert tokens.goodbyes == [True]
    tokens.values = "first"  # the very same again
    assert not tokens.is_usable()
    await clock.settle()
    assert tokens.ask() == Jwt("token-2")
    assert not tokens.is_revoked


@pytest.mark.logs_errors
async def test_upstream_that_is_away_is_told_later_that_all_is_over(clock: Clock, tokens: Tokens) -> None:
    def unheard() -> None:
        if len(tokens.goodbyes) < 3:
            raise GONE

    tokens.goodbye = unheard
    tokens.values = RevokedCredential("it was revoked")
    assert not tokens.is_usable()
    await clock.move(3)
    assert tokens.goodbyes == [True] * 3
    await clock.move(1000)
    assert tokens.goodbyes == [True] * 3


# The end --------------------------------------------------------------------------------------------------------------


async def test_stop_leaves_no_task_behind_and_says_goodbye(clock: Clock) -> None:
    before = asyncio.all_tasks()
    async with started(clock) as tokens:
        pass
    await tokens.stop()
    assert asyncio.all_tasks() == before
    assert tokens.goodbyes == [False]


async def test_what_is_under_way_may_end_before_the_stop(clock: Clock) -> None:
    tokens = Tokens(clock)
    tokens.open.clear()
    await tokens.start()
    await tokens.began.wait()
    stopping = asyncio.get_running_loop().create_task(tokens.stop())
    await asyncio.sleep(0)
    tokens.open.set()
    await stopping
    assert tokens.ask() == Jwt("token-1")
    assert tokens.goodbyes == [False]


async def test_stop_does_not_wait_for_ever_and_lets_those_know_who_do(clock: Clock) -> None:
    before = asyncio.all_tasks()
    tokens = Tokens(clock, leaving_seconds=0.01)
    tokens.open.clear()
    await tokens.start()
    await tokens.began.wait()
    with pytest.raises(Coming) as coming:
        tokens.ask()
    await tokens.stop()
    assert coming.value.arrival.is_set()
    assert asyncio.all_tasks() == before
    assert tokens.goodbyes == []


async def test_stop_that_is_cancelled_ends_the_task_all_the_same(clock: Clock) -> None:
    before = asyncio.all_tasks()
    tokens = Tokens(clock)
    tokens.open.clear()
    await tokens.start()
    await tokens.began.wait()
    stopping = asyncio.get_running_loop().create_task(tokens.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert asyncio.all_tasks() == before


async def test_a_stopped_one_starts_again(clock: Clock) -> None:
    async with started(clock) as tokens:
        await tokens.stop()
        await clock.move(AGAIN, sources=0)
        await tokens.start()
        await clock.settle()
        assert tokens.ask() == Jwt("token-2")


async def test_a_retired_one_gives_out_nothing_and_says_goodbye_for_good(tokens: Tokens) -> None:
    credential = tokens.ask()
    guard = tokens.guard(credential, REALTIME)
    assert guard is not None
    tokens.retire()
    assert not tokens.is_usable()
    for refused in (tokens.ask, lambda: tokens.recheck(credential, REALTIME)):
        with pytest.raises(NoCredential) as why:
            refused()
        assert not isinstance(why.value, Coming)
    assert tokens.guard(credential, REALTIME) is None
    await tokens.stop()
    assert tokens.goodbyes == [True]


async def test_goodbye_that_upstream_does_not_hear_is_told(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def unheard() -> None:
        raise GONE

    async with started(clock) as tokens:
        tokens.goodbye = unheard
    assert "Upstream was not told that the credential line-3 is done with" in caplog.text


# Waiting itself -------------------------------------------------------------------------------------------------------


async def test_waiting_ends_with_the_event_or_with_the_time() -> None:
    event = asyncio.Event()
    await event_or_seconds(event, 0.001)
    asyncio.get_running_loop().call_soon(event.set)
    await event_or_seconds(event, math.inf)
    await event_or_seconds(event, 0)


async def test_waiting_that_is_cancelled_as_the_event_comes_is_cancelled() -> None:
    event = asyncio.Event()
    waiting = asyncio.get_running_loop().create_task(event_or_seconds(event, 1000))
    await asyncio.sleep(0)
    event.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
