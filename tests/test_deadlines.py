"""One timer for all who are waited for equally long."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.deadlines import Deadlines, TimeLimit
from tests.upstream.test_client import Clock


Pass = Callable[[float], Awaitable[None]]


@pytest.fixture
async def passing() -> Pass:
    """Lets time pass, at once."""
    clock = Clock(asyncio.get_running_loop())

    async def let_pass(seconds: float) -> None:
        clock.put_forward(seconds)
        for _ in range(5):  # turns in which timers that are due are run, and what they wake
            await asyncio.sleep(0)

    return let_pass


async def test_those_whose_time_is_over_are_told_in_their_order(passing: Pass) -> None:
    told: list[str] = []
    deadlines = Deadlines(10, told.append)
    for who in "abc":
        deadlines.start(who)
        await passing(4)
    assert told == ["a"]
    await passing(3)
    assert told == ["a", "b"]
    await passing(100)
    assert told == ["a", "b", "c"]


async def test_lower_limit_counts_for_those_who_are_waited_for_too(passing: Pass) -> None:
    told: list[str] = []
    deadlines = Deadlines(60, told.append)
    deadlines.start("a")
    await passing(57)
    deadlines.start("b")
    deadlines.change(5)
    deadlines.start("c")
    await passing(3.1)
    assert told == ["a"]  # no later than it was told
    await passing(2)
    assert told == ["a", "b", "c"]


async def test_higher_limit_counts_for_those_who_come_later(passing: Pass) -> None:
    told: list[str] = []
    deadlines = Deadlines(5, told.append)
    deadlines.start("a")
    deadlines.change(60)
    deadlines.start("b")
    await passing(5.1)
    assert told == ["a"]
    await passing(55)
    assert told == ["a", "b"]


async def test_limit_changes_while_nobody_is_waited_for(passing: Pass) -> None:
    told: list[str] = []
    deadlines = Deadlines(60, told.append)
    deadlines.change(5)
    deadlines.start("a")
    deadlines.stop("a")
    deadlines.change(3)
    deadlines.start("b")
    await passing(3.1)
    assert told == ["b"]


async def test_nobody_is_told_before_the_time_is_over(passing: Pass) -> None:
    told: list[str] = []
    deadlines = Deadlines(10, told.append)
    deadlines.start("a")
    await passing(9.9)
    assert told == []
    await passing(0.2)
    assert told == ["a"]
    await passing(100)
    assert told == ["a"]


async def test_who_is_stopped_is_not_told_and_delays_nobody(passing: Pass) -> None:
    told: list[str] = []
    deadlines = Deadlines(10, told.append)
    for who in "abc":
        deadlines.start(who)
    deadlines.stop("a")
    deadlines.stop("c")
    deadlines.stop("nobody")
    await passing(11)
    assert told == ["b"]


async def test_who_is_started_again_has_all_the_time_again_and_stands_behind(passing: Pass) -> None:
    told: list[str] = []
    deadlines = Deadlines(10, told.append)
    deadlines.start("a")
    deadlines.start("b")
    await passing(6)
    deadlines.start("a")
    await passing(6)
    assert told == ["b"]
    await passing(6)
    assert told == ["b", "a"]


async def test_who_is_told_may_be_started_again_from_there(passing: Pass) -> None:
    told: list[str] = []

    def again(who: str) -> None:
        told.append(who)
        deadlines.start(who)

    deadlines = Deadlines(10, again)
    deadlines.start("a")
    for times in (1, 2, 3):
        await passing(11)
        assert told == ["a"] * times
    deadlines.close()


@pytest.mark.logs_errors
async def test_fault_over_one_leaves_nobody_else_untold(passing: Pass) -> None:
    told: list[str] = []

    def tell(who: str) -> None:
        told.append(who)
        assert who != "a", "a fault"

    deadlines = Deadlines(10, tell)
    for who in "ab":
        deadlines.start(who)
    await passing(11)
    assert told == ["a", "b"]


async def test_who_is_stopped_by_one_told_in_the_same_turn_is_not_told(passing: Pass) -> None:
    told: list[str] = []

    def tell(who: str) -> None:
        told.append(who)
        deadlines.stop("b")

    deadlines: Deadlines[str] = Deadlines(10, tell)
    for who in "abc":
        deadlines.start(who)
    await passing(11)
    assert told == ["a", "c"]


async def test_one_timer_serves_all(passing: Pass) -> None:
    told: list[int] = []
    deadlines = Deadlines(10, told.append)
    deadlines.start(-1)
    timer = deadlines._timer
    assert timer is not None
    for who in range(1000):
        deadlines.start(who)
        deadlines.stop(who - 1)
    assert deadlines._timer is timer
    await passing(11)
    assert told == [999]
    assert deadlines._timer is None


async def test_nobody_is_told_once_it_is_closed(passing: Pass) -> None:
    told: list[str] = []
    deadlines = Deadlines(10, told.append)
    deadlines.start("a")
    timer = deadlines._timer
    deadlines.close()
    assert timer is not None
    assert timer.cancelled()
    await passing(11)
    assert told == []
    deadlines.start("b")
    await passing(11)
    assert told == ["b"]


# A bound for tasks ----------------------------------------------------------------------------------------------------


async def never() -> None:
    await asyncio.Event().wait()


async def test_result_that_comes_in_time_is_given_and_nothing_is_left(passing: Pass) -> None:
    limit = TimeLimit(10)
    assert await limit.within(asyncio.sleep(0, "done")) == "done"
    await passing(11)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    assert not limit._deadlines._waiting


async def test_error_that_comes_in_time_is_given(passing: Pass) -> None:
    async def failing() -> None:
        raise OSError

    limit = TimeLimit(10)
    with pytest.raises(OSError):  # noqa: PT011 - it has no text
        await limit.within(failing())
    await passing(11)
    assert not limit._deadlines._waiting


async def test_what_does_not_come_in_time_is_a_timeout_and_whoever_waited_goes_on(passing: Pass) -> None:
    limit = TimeLimit(10)

    async def waiting() -> int:
        with pytest.raises(TimeoutError):
            await limit.within(never())
        await asyncio.sleep(0)
        return asyncio.current_task().cancelling()  # type: ignore[union-attr]

    async with asyncio.TaskGroup() as group:
        task = group.create_task(waiting())
        await asyncio.sleep(0)
        await passing(11)
    assert task.result() == 0
    assert not limit._late


@pytest.mark.parametrize("is_late", [False, True], ids=["in time", "in the turn in which its time is over"])
async def test_who_is_cancelled_from_outside_is_cancelled(passing: Pass, *, is_late: bool) -> None:
    limit = TimeLimit(10)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(limit.within(never()))
        await asyncio.sleep(0)
        if is_late:
            limit._cancel(task)
        task.cancel()
        await passing(0)
    assert task.cancelled()
    assert not limit._late
    assert not limit._deadlines._waiting


async def test_time_of_one_is_not_that_of_another(passing: Pass) -> None:
    limit, let_go = TimeLimit(10), asyncio.Event()
    async with asyncio.TaskGroup() as group:

        async def late() -> None:
            with pytest.raises(TimeoutError):
                await limit.within(never())

        group.create_task(late())
        await asyncio.sleep(0)
        await passing(6)
        in_time = group.create_task(limit.within(let_go.wait()))
        await asyncio.sleep(0)
        await passing(6)
        let_go.set()
    assert in_time.result() is True
