"""What becomes of sessions: by real stores, with the simulator upstream, while time is moved by hand."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from proxy.credentials.sources import Coming, CoolingDown, NoCredential, NotNow
from proxy.demo.faults import Fault
from proxy.demo.simulator import SessionRules, Simulator
from proxy.frontdoor.kept import opened
from proxy.frontdoor.sealing import Sealing
from proxy.frontdoor.sqlite_store import SqliteStore
from proxy.frontdoor.stores import StoreUnavailable
from tests.conftest import PASSWORD, until
from tests.demo.clock import Clock
from tests.frontdoor.processes import (
    ABSOLUTE,
    CURRENT_USER,
    ENDPOINT,
    IDLE,
    OTHER_ENDPOINT,
    SECRET,
    Process,
    process,
)


LIFE: Final = 7200.0
"""How long a token lives that the platform renews after ten minutes; half of it is over after an hour."""

RENEWING: Final = SessionRules(token_seconds=LIFE, renewal_seconds=600.0)

Another = Callable[..., AbstractAsyncContextManager[Process]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def upstream(clock: Clock) -> AsyncIterator[Simulator]:
    async with Simulator(password=PASSWORD, clock=clock, rules=RENEWING) as simulator:
        yield simulator


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def another(upstream: Simulator, file: Path, clock: Clock) -> Another:
    """One more process that shares the file."""

    def start(**more: Any) -> AbstractAsyncContextManager[Process]:
        return process(upstream, SqliteStore(file, clock=clock), clock, **more)

    return start


@pytest.fixture
async def here(another: Another) -> AsyncIterator[Process]:
    async with another() as process:
        yield process


@pytest.fixture
async def there(another: Another, here: Process) -> AsyncIterator[Process]:
    del here  # which is there before
    async with another() as process:
        yield process


@pytest.fixture(autouse=True)
def told_nobody(upstream: Simulator, clean_log: list[str]) -> Iterator[None]:
    """No log line holds anything of the platform's."""
    yield
    for token in upstream.logins.tokens:
        clean_log += [token.value, token.xsrf_token]


def calls(upstream: Simulator, path: str = CURRENT_USER) -> int:
    return sum(call.path == path for call in upstream.calls)


def newest(upstream: Simulator) -> str:
    return upstream.logins.tokens[-1].value


# Tickets --------------------------------------------------------------------------------------------------------------


async def test_a_ticket_stands_for_who_signed_in(here: Process, upstream: Simulator) -> None:
    ticket, begun = await here.sign_in()
    assert await here.sessions.found(ticket) == begun
    assert (begun.user, begun.tenant) == ("service", "t0815")
    credential = await here.credential(ticket)
    assert (credential.token, credential.tenant, credential.owner) == (newest(upstream), "t0815", begun.key)


async def test_no_other_ticket_does(here: Process) -> None:
    ticket, begun = await here.sign_in()
    for other in ("", "x", begun.key, ticket[:-1], ticket + "=", ticket.swapcase(), "\udc80", "x" * 100_000):
        assert await here.sessions.found(other) is None
        with pytest.raises(NoCredential, match="sign in"):
            await here.credential(other)


async def test_every_sign_in_has_a_ticket_and_a_token_of_its_own(here: Process) -> None:
    begun = [await here.sign_in() for _ in range(5)]
    assert len({ticket for ticket, _ in begun}) == len({session.csrf_token for _, session in begun}) == 5
    assert not {ticket for ticket, _ in begun} & {session.csrf_token for _, session in begun}


async def test_what_is_kept_tells_neither_tickets_nor_tokens(here: Process, upstream: Simulator, file: Path) -> None:
    ticket, begun = await here.sign_in()
    here.sessions.renewed_by_upstream(begun.credential, "renewed-canary", "xsrf-canary")
    await here.rest()
    kept = b"".join(each.read_bytes() for each in file.parent.iterdir())
    assert begun.key.encode() in kept
    [token] = upstream.logins.tokens
    for secret in (ticket, token.value, token.xsrf_token, begun.csrf_token, "renewed-canary", "xsrf-canary"):
        assert secret.encode() not in kept
    for shown in (repr(begun), repr(begun.credential)):
        assert token.value not in shown
        assert token.xsrf_token not in shown
        assert begun.csrf_token not in shown


async def test_a_ticket_outlives_the_process(another: Another) -> None:
    async with another() as first:
        ticket, begun = await first.sign_in()
    async with another() as second:
        assert await second.sessions.found(ticket) == begun


async def test_many_who_ask_at_once_share_one_look(here: Process, there: Process) -> None:
    ticket, begun = await here.sign_in()
    found = await asyncio.gather(*(there.sessions.found(ticket) for _ in range(100)))
    opened = await asyncio.gather(*(there.credential(ticket) for _ in range(100)))
    assert {session.key for session in found if session} == {each.owner for each in opened} == {begun.key}
    assert there.store.asked.count("load") == 1


# What is kept was sealed by us ----------------------------------------------------------------------------------------


async def test_what_somebody_wrote_into_the_store_is_no_session(here: Process, there: Process, clock: Clock) -> None:
    ticket, begun = await here.sign_in()
    sealed = await here.store.load(begun.key)
    assert sealed is not None
    for place in range(0, len(sealed), 37):
        changed = bytearray(sealed)
        changed[place] ^= 1
        await here.store.replace(begun.key, bytes(changed))
        clock.advance(2)
        assert await there.sessions.found(ticket) is None
        await here.store.replace(begun.key, sealed)
        clock.advance(2)
        assert await there.sessions.found(ticket) == begun


async def test_a_session_in_the_place_of_another_is_none(here: Process, there: Process) -> None:
    ticket, begun = await here.sign_in()
    _, other = await here.sign_in()
    sealed = await here.store.load(other.key)
    assert sealed is not None
    await here.store.replace(begun.key, sealed)
    assert await there.sessions.found(ticket) is None


async def test_what_another_version_of_this_proxy_kept_is_no_session(
    here: Process, there: Process, clock: Clock
) -> None:
    ticket, begun = await here.sign_in()
    sealing = Sealing(lambda: [SECRET])
    sealed = await here.store.load(begun.key)
    assert sealed is not None
    assert opened(begun.key, sealed, sealing) == begun
    for plain in (b"", b"{}", b'{"more": 1}', msgspec.json.encode({"user": 1, "tenant": 2})):
        await here.store.replace(begun.key, sealing.seal(begun.key, plain))
        clock.advance(2)
        assert await there.sessions.found(ticket) is None


async def test_keys_take_over_from_each_other(another: Another) -> None:
    secrets = [b"old" * 11]
    async with another(sealing=Sealing(lambda: secrets)) as here:
        ticket, begun = await here.sign_in()
        secrets[:] = [b"new" * 11, b"old" * 11]
        await here.rest()
        async with another(sealing=Sealing(lambda: secrets)) as there:
            assert await there.sessions.found(ticket) == begun
            renewed_ticket, renewed = await there.sign_in()
            secrets[:] = [b"new" * 11]
        async with another(sealing=Sealing(lambda: secrets)) as last:
            assert await last.sessions.found(ticket) is None
            assert await last.sessions.found(renewed_ticket) == renewed


# How long they last ---------------------------------------------------------------------------------------------------


async def test_a_session_that_nobody_uses_ends(here: Process, clock: Clock) -> None:
    ticket, _ = await here.sign_in()
    clock.advance(IDLE)
    assert await here.sessions.found(ticket) is None
    with pytest.raises(NoCredential, match="sign in"):
        await here.credential(ticket)


@pytest.mark.parametrize("way", ["request", "connection"])
async def test_whoever_uses_it_keeps_it(here: Process, clock: Clock, way: str) -> None:
    ticket, begun = await here.sign_in()
    for _ in range(8):
        clock.advance(IDLE - 1)
        if way == "request":
            assert await here.sessions.found(ticket) is not None
        else:
            assert (await here.credential(ticket)).owner == begun.key
        await here.rest()
        here.sessions.doubt(await here.credential(ticket))  # which has it renewed
        await here.rest()
    clock.advance(IDLE)
    assert await here.sessions.found(ticket) is None


async def test_it_is_kept_now_and_then_only(here: Process, clock: Clock) -> None:
    ticket, _ = await here.sign_in()
    for _ in range(100):
        clock.advance(1.0)
        await here.credential(ticket)
    await here.rest()
    assert here.store.asked.count("keep") == 1


async def test_an_open_connection_alone_keeps_it(here: Process, clock: Clock) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    for _ in range(20):
        clock.advance(IDLE / 3)
        await here.look()
        assert not here.is_over(begun.key)
    here.in_use.clear()
    clock.advance(IDLE / 2)
    assert await here.sessions.found(ticket) is not None
    await here.rest()
    clock.advance(IDLE)
    assert await here.sessions.found(ticket) is None


async def test_connections_end_when_its_absolute_time_is_over(here: Process, there: Process, clock: Clock) -> None:
    ticket, begun = await here.sign_in()
    for each in (here, there):
        each.in_use.add(begun.key)
    for _ in range(13):
        clock.advance(ABSOLUTE / 13 - 1)
        await asyncio.gather(here.look(), there.look())
    assert not here.ended
    assert not there.ended
    assert await there.sessions.found(ticket) is not None
    clock.advance(13)
    await asyncio.gather(here.look(), there.look())
    for each in (here, there):
        assert each.is_over(begun.key)
        assert await each.sessions.found(ticket) is None
    await until(lambda: here.upstream.logins.live() == 0)


async def test_nothing_is_kept_longer_than_that(here: Process, clock: Clock) -> None:
    ticket, _ = await here.sign_in()
    here.sessions.absolute_seconds = 100.0  # type: ignore[misc] # as for one that has so much left
    clock.advance(90)
    assert await here.sessions.found(ticket) is not None
    await here.rest()
    clock.advance(10)
    assert await here.store.load((await here.sign_in())[1].key) is not None
    assert await here.sessions.found(ticket) is None


async def test_it_ends_with_its_token_where_the_platform_renews_none(here: Process, clock: Clock) -> None:
    here.upstream.logins.rules = SessionRules(token_seconds=1000.0)
    _, begun = await here.sign_in()
    here.in_use.add(begun.key)
    clock.advance(999)
    await here.look()
    assert not here.ended
    clock.advance(1)
    await here.look()
    assert here.is_over(begun.key)
    assert await here.store.missing({begun.key}) == {begun.key}


async def test_processes_need_not_agree_on_the_time(here: Process, another: Another, clock: Clock) -> None:
    async with another(clock=lambda: clock() - 1e9, unix_clock=lambda: clock() - 600) as behind:
        ticket, begun = await here.sign_in()
        assert await behind.sessions.found(ticket) == begun
        behind.in_use.add(begun.key)
        clock.advance(LIFE / 2 + 600)
        await behind.look()
        assert (await behind.credential(ticket)).token == newest(here.upstream) != begun.pair.token
        clock.advance(2)  # after which what is known is looked up, whatever was told
        assert (await here.credential(ticket)).token == newest(here.upstream)


# Signing out ----------------------------------------------------------------------------------------------------------


async def test_who_signs_out_has_no_session_anywhere_and_no_connection(here: Process, there: Process) -> None:
    ticket, begun = await here.sign_in()
    _, other = await here.sign_in()
    assert await there.sessions.found(ticket) == begun
    for each in (here, there):
        each.in_use |= {begun.key, other.key}
    await here.sessions.end(ticket)
    assert {*here.ended} == {begun.key}
    assert here.upstream.logins.live() == 1
    await until(lambda: there.is_over(begun.key), seconds=1.0)
    assert set(there.ended) == {begun.key}
    for each in (here, there):
        assert await each.sessions.found(ticket) is None
        with pytest.raises(NoCredential, match="sign in"):
            await each.credential(ticket)
        with pytest.raises(NoCredential, match="sign in"):
            each.sessions.recheck(begun.credential, ENDPOINT)
        assert each.sessions.guard(begun.credential, ENDPOINT) is None


async def test_word_that_was_lost_is_made_up_for(here: Process, there: Process, clock: Clock) -> None:
    ticket, begun = await here.sign_in()
    _, stays = await here.sign_in()
    await there.credential(ticket)
    there.in_use |= {begun.key, stays.key}
    await there.look()
    there.store.is_deaf = True
    await here.sessions.end(ticket)
    clock.advance(15)
    await there.look()
    assert {*there.ended} == {begun.key}


async def test_after_a_time_without_word_all_is_looked_at(here: Process, there: Process) -> None:
    ticket, begun = await here.sign_in()
    other_ticket, other = await here.sign_in()
    there.in_use |= {begun.key, other.key}
    await there.look()
    there.store.is_deaf = True
    await here.sessions.end(ticket)
    here.sessions.renewed_by_upstream(other.credential, "renewed", "xsrf")
    await here.rest()
    there.store.tell(None)
    await there.look()
    assert {*there.ended} == {begun.key}
    assert there.sessions.guard(other.credential, ENDPOINT) is None  # for there is a newer pair
    assert (await there.credential(other_ticket)).token == "renewed"


async def test_signing_out_twice_at_once_is_signing_out(here: Process, there: Process) -> None:
    ticket, begun = await here.sign_in()
    await asyncio.gather(*(each.sessions.end(ticket) for each in (here, there, here, there)))
    assert await here.sessions.found(ticket) is None
    assert here.upstream.logins.live() == 0
    assert await here.store.missing({begun.key}) == {begun.key}


async def test_a_new_session_ends_the_one_that_it_takes_the_place_of(here: Process) -> None:
    ticket, before = await here.sign_in()
    here.in_use.add(before.key)
    after_ticket, after = await here.sign_in(instead_of=ticket)
    assert before.key != after.key
    assert {*here.ended} == {before.key}
    assert await here.sessions.found(ticket) is None
    assert await here.sessions.found(after_ticket) == after
    assert here.upstream.logins.live() == 1


async def test_who_signs_out_while_the_session_is_looked_up_is_signed_out(here: Process, there: Process) -> None:
    ticket, begun = await here.sign_in()
    late = there.store.after["load"] = asyncio.Event()
    looking = asyncio.get_running_loop().create_task(there.credential(ticket))
    await there.until_asked("load")
    await here.sessions.end(ticket)
    await until(lambda: there.sessions._known(begun.key).has_changed)
    late.set()
    with pytest.raises(NoCredential, match="sign in"):
        await looking


async def test_who_signs_out_here_while_it_is_looked_up_is_signed_out(here: Process, clock: Clock) -> None:
    ticket, begun = await here.sign_in()
    clock.advance(5)
    late = here.store.after["load"] = asyncio.Event()
    looking = asyncio.get_running_loop().create_task(here.credential(ticket))
    await here.until_asked("load")
    here.store.is_deaf = True
    await here.store.store.remove(begun.key)
    here.sessions._ended({begun.key})
    late.set()
    with pytest.raises(NoCredential, match="sign in"):
        await looking
    assert here.store.asked.count("load") > 1


async def test_a_connection_that_was_opening_when_its_session_ended_ends_too(
    here: Process, there: Process, clock: Clock
) -> None:
    ticket, begun = await here.sign_in()
    await there.credential(ticket)
    await here.sessions.end(ticket)
    await until(lambda: there.is_over(begun.key), seconds=1.0)
    for opens_after in (0.5, 2, 100):
        clock.advance(opens_after)
        await there.look()
        there.ended.clear()
        there.in_use.add(begun.key)
        await until(lambda: there.is_over(begun.key), seconds=1.0)
        assert not there.in_use


# Renewal --------------------------------------------------------------------------------------------------------------


async def test_a_session_is_renewed_while_only_a_connection_is_open(
    here: Process, there: Process, clock: Clock, upstream: Simulator
) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    clock.advance(LIFE / 2 - 1)
    await here.look()
    assert calls(upstream) == 0
    clock.advance(2)
    await here.look()
    assert (calls(upstream), len(upstream.logins.tokens)) == (1, 2)
    for each in (here, there):
        assert (await each.credential(ticket)).token == newest(upstream)
    kept = await there.sessions.found(ticket)
    assert kept is not None
    assert kept.pair.xsrf_token == upstream.logins.tokens[-1].xsrf_token
    assert kept.csrf_token == begun.csrf_token
    assert kept.began == begun.began
    assert not here.ended


async def test_what_was_renewed_counts_for_a_while_on_connections_that_are_open(here: Process, clock: Clock) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    here.sessions.renewed_by_upstream(begun.credential, "renewed", "xsrf")
    here.sessions.recheck(begun.credential, ENDPOINT)
    clock.advance(29)
    here.sessions.recheck(begun.credential, ENDPOINT)
    clock.advance(1)
    with pytest.raises(NoCredential, match="renewed"):
        here.sessions.recheck(begun.credential, ENDPOINT)
    here.sessions.recheck(await here.credential(ticket), ENDPOINT)


async def test_it_goes_on_for_as_long_as_the_platform_renews_it(here: Process, clock: Clock) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    while clock.now < begun.began + ABSOLUTE - 700:
        clock.advance(600)
        await here.look()
    assert not here.ended
    assert len(here.upstream.logins.tokens) == 1 + int(ABSOLUTE // (LIFE / 2)) - 1
    assert (await here.credential(ticket)).token == newest(here.upstream)


async def test_processes_renew_it_once(here: Process, there: Process, clock: Clock, upstream: Simulator) -> None:
    ticket, begun = await here.sign_in()
    for each in (here, there):
        each.in_use.add(begun.key)
        await each.credential(ticket)
    answered = asyncio.Event()
    upstream.faults[CURRENT_USER] = Fault(until=answered)
    clock.advance(LIFE / 2 + 1)
    await asyncio.gather(here.until_asked("claim"), there.until_asked("claim"))
    await asyncio.gather(here.pass_ticks(), there.pass_ticks())
    assert calls(upstream) == 1
    answered.set()
    for each in (here, there):
        await until(partial(lambda process: not process.sessions.guard(begun.credential, ENDPOINT), each), seconds=1.0)
        assert (await each.credential(ticket)).token == newest(upstream)
    assert (calls(upstream), len(upstream.logins.tokens)) == (1, 2)


async def test_who_claimed_it_and_is_gone_holds_up_nobody_for_long(
    here: Process, clock: Clock, upstream: Simulator
) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    await here.store.claim(begun.key, seconds=15)
    clock.advance(14)
    here.sessions._known(begun.key).due = clock.now
    await here.look()
    assert calls(upstream) == 0
    clock.advance(LIFE / 2)
    await here.look()
    assert (await here.credential(ticket)).token == newest(upstream) != begun.pair.token


async def test_a_renewal_that_fails_is_tried_again(here: Process, clock: Clock, upstream: Simulator) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    for status in (503, 403, 404):
        upstream.faults[CURRENT_USER] = Fault(status=status)
        clock.advance(LIFE / 2 + 1 if status == 503 else 400)
        await here.look()
        assert not here.ended
    assert calls(upstream) == 3
    del upstream.faults[CURRENT_USER]
    clock.advance(400)
    await here.look()
    assert (await here.credential(ticket)).token == newest(upstream) != begun.pair.token


async def test_what_came_along_with_an_answer_is_kept_and_used_next(here: Process, there: Process) -> None:
    ticket, begun = await here.sign_in()
    old = await there.credential(ticket)
    here.sessions.renewed_by_upstream(begun.credential, "renewed", "xsrf")
    assert (await here.credential(ticket)).token == "renewed"
    await until(lambda: there.sessions.guard(old, ENDPOINT) is None, seconds=1.0)
    renewed = await there.credential(ticket)
    assert (renewed.token, renewed.xsrf_token) == ("renewed", "xsrf")
    # What is renewed of what was renewed already comes late, or from nobody.
    here.sessions.renewed_by_upstream(begun.credential, "late", "xsrf")
    assert (await here.credential(ticket)).token == "renewed"


@pytest.mark.parametrize("token", ["", "a b", 'a"b', "a;b", "a,b", "ä", "a\r\nb"])
async def test_what_is_no_token_renews_nothing(here: Process, token: str) -> None:
    ticket, begun = await here.sign_in()
    here.sessions.renewed_by_upstream(begun.credential, token, "xsrf")
    assert await here.credential(ticket) == begun.credential


async def test_what_came_with_an_answer_counts_more_than_what_we_asked_for(
    here: Process, clock: Clock, upstream: Simulator
) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    answered = asyncio.Event()
    upstream.faults[CURRENT_USER] = Fault(until=answered)
    clock.advance(LIFE / 2 + 1)
    await upstream.until(lambda: calls(upstream) == 1)
    here.sessions.renewed_by_upstream(begun.credential, "renewed", "xsrf")
    answered.set()
    await here.look()
    assert (await here.credential(ticket)).token == "renewed"


async def test_a_denial_of_what_was_renewed_meanwhile_ends_nothing(
    here: Process, there: Process, clock: Clock, upstream: Simulator
) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    answered = asyncio.Event()
    upstream.faults[CURRENT_USER] = Fault(until=answered, status=401)
    clock.advance(LIFE / 2 + 1)
    await upstream.until(lambda: calls(upstream) == 1)
    await there.credential(ticket)
    there.sessions.renewed_by_upstream(begun.credential, "renewed", "xsrf")
    await there.rest()
    here.store.is_deaf = True
    answered.set()
    await here.look()
    assert not here.ended
    assert (await here.credential(ticket)).token == "renewed"


@pytest.mark.parametrize("where", ["here", "there"])
async def test_who_signs_out_while_it_is_renewed_is_signed_out(
    here: Process, there: Process, clock: Clock, upstream: Simulator, where: str
) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    answered = asyncio.Event()
    upstream.faults[CURRENT_USER] = Fault(until=answered, afterwards=True)
    clock.advance(LIFE / 2 + 1)
    await upstream.until(lambda: len(upstream.logins.tokens) == 2)
    await {"here": here, "there": there}[where].sessions.end(ticket)
    answered.set()
    await here.look()
    for each in (here, there):
        assert await each.sessions.found(ticket) is None
    assert upstream.logins.live() == 0
    assert await here.store.missing({begun.key}) == {begun.key}


async def test_a_newer_pair_of_who_signed_out_elsewhere_is_logged_out(
    here: Process, there: Process, upstream: Simulator, clock: Clock
) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    await there.credential(ticket)
    clock.advance(700)
    here.store.is_away = True
    await here.renew(begun)
    clock.advance(61)  # after which the platform takes the older one no more
    await here.look()
    here.store.is_deaf = True
    await there.sessions.end(ticket)
    assert upstream.logins.live() == 1
    here.store.is_away = False
    await here.look()
    assert upstream.logins.live() == 0
    assert here.is_over(begun.key)


async def test_who_signs_out_while_it_is_renewed_along_with_an_answer_is_signed_out(
    here: Process, upstream: Simulator, clock: Clock
) -> None:
    upstream.logins.rules = replace(RENEWING, revocation_seconds=0.0)
    ticket, begun = await here.sign_in()
    clock.advance(700)
    late = here.store.before["remove"] = asyncio.Event()
    leaving = asyncio.get_running_loop().create_task(here.sessions.end(ticket))
    await here.until_asked("remove")
    await here.renew(begun)
    await here.until_asked("replace")
    late.set()
    await leaving
    await here.rest()
    assert upstream.logins.live() == 0
    assert await here.sessions.found(ticket) is None


# What upstream denies -------------------------------------------------------------------------------------------------


async def test_what_the_platform_ended_ends_here_and_everywhere(
    here: Process, there: Process, upstream: Simulator
) -> None:
    ticket, begun = await here.sign_in()
    await there.credential(ticket)
    here.in_use.add(begun.key)
    upstream.logins.terminate()
    guard = here.sessions.guard(begun.credential, ENDPOINT)
    assert guard is not None
    guard.denied()
    await until(lambda: here.is_over(begun.key) and there.is_over(begun.key), seconds=1.0)
    for each in (here, there):
        with pytest.raises(NoCredential, match="sign in"):
            await each.credential(ticket)


async def test_what_one_endpoint_denies_rests_there_and_nowhere_else(
    here: Process, upstream: Simulator, clock: Clock
) -> None:
    ticket, begun = await here.sign_in()
    guard = here.sessions.guard(begun.credential, ENDPOINT)
    assert guard is not None
    guard.denied()
    await here.rest()
    assert calls(upstream) == 1
    assert not here.ended
    with pytest.raises(CoolingDown) as resting:
        await here.credential(ticket)
    assert resting.value.seconds == 60
    with pytest.raises(CoolingDown):
        here.sessions.recheck(begun.credential, ENDPOINT)
    assert await here.credential(ticket, OTHER_ENDPOINT) == begun.credential
    here.sessions.recheck(begun.credential, OTHER_ENDPOINT)
    clock.advance(60)
    assert await here.credential(ticket) == begun.credential


async def test_many_doubts_at_once_are_one_question_and_one_more(here: Process, upstream: Simulator) -> None:
    _, begun = await here.sign_in()
    answered = asyncio.Event()
    upstream.faults[CURRENT_USER] = Fault(until=answered)
    here.sessions.doubt(begun.credential)
    await upstream.until(lambda: calls(upstream) == 1)
    for _ in range(20):
        here.sessions.doubt(begun.credential)
        await here.pass_ticks(1)
    assert calls(upstream) == 1
    answered.set()
    await here.look()
    assert calls(upstream) == 2


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
async def test_only_a_denial_of_the_session_itself_ends_it(here: Process, upstream: Simulator, status: int) -> None:
    ticket, begun = await here.sign_in()
    upstream.faults[CURRENT_USER] = Fault(status=status)
    here.sessions.doubt(begun.credential)
    await here.rest()
    assert calls(upstream) == 1
    assert await here.credential(ticket) == begun.credential


async def test_a_doubt_that_comes_while_it_is_looked_at_is_looked_at_too(
    here: Process, clock: Clock, upstream: Simulator
) -> None:
    _, begun = await here.sign_in()
    here.in_use.add(begun.key)
    answered = asyncio.Event()
    upstream.faults[CURRENT_USER] = Fault(until=answered)
    clock.advance(LIFE / 2 + 1)
    upstream.logins.rules = SessionRules(token_seconds=LIFE)
    await upstream.until(lambda: calls(upstream) == 1)
    here.sessions.doubt(begun.credential)
    answered.set()
    await here.look()
    assert calls(upstream) == 2


async def test_what_the_platform_ended_ends_here_though_the_store_is_away(
    here: Process, upstream: Simulator, clock: Clock
) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    upstream.logins.terminate()
    here.store.is_away = True
    here.sessions.doubt(begun.credential)
    await here.look()
    assert here.is_over(begun.key)
    with pytest.raises(NoCredential, match="sign in"):
        await here.credential(ticket)
    here.store.is_away = False
    clock.advance(2)
    here.sessions.doubt(await here.credential(ticket))  # it is in the store still, and is found out again
    await here.rest()
    assert await here.sessions.found(ticket) is None
    assert await here.store.missing({begun.key}) == {begun.key}


class Waiting:
    """An attempt that waits for how another one fares."""

    def __init__(self) -> None:
        self.came: list[str] = []

    def go_up(self) -> None:
        self.came.append("goes up")

    def call_off(self) -> None:
        self.came.append("called off")


async def test_who_waits_goes_up_when_upstream_renews_the_session_and_is_called_off_when_it_ends(here: Process) -> None:
    ticket, begun = await here.sign_in()
    guard = here.sessions.guard(begun.credential, ENDPOINT)
    assert guard is not None
    first, second = Waiting(), Waiting()
    assert guard.may_go_up(first)
    assert not guard.may_go_up(second)
    here.sessions.renewed_by_upstream(begun.credential, "renewed", "xsrf")
    assert second.came == ["goes up"]
    renewed = here.sessions.guard(await here.credential(ticket), ENDPOINT)
    assert renewed is not None
    assert renewed is not guard
    assert renewed.may_go_up(first)
    assert not renewed.may_go_up(second)
    await here.sessions.end(ticket)
    assert second.came == ["goes up", "called off"]


# While the store is away ----------------------------------------------------------------------------------------------


async def test_while_the_store_is_away_what_is_open_stays_and_nothing_opens(
    here: Process, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    await here.look()
    here.store.is_away = True
    for _ in range(10):
        clock.advance(5)
        await here.look()
        with pytest.raises(NotNow, match="try again"):
            await here.credential(ticket)
        with pytest.raises(StoreUnavailable):
            await here.sessions.found(ticket)
        with pytest.raises(StoreUnavailable):
            await here.sessions.end(ticket)
        here.sessions.recheck(begun.credential, ENDPOINT)
    assert not here.ended
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage().partition(":")[0] for record in said] == ["Sessions cannot be looked up or kept"]
    here.store.is_away = False
    clock.advance(2)
    assert await here.credential(ticket) == begun.credential
    assert await here.sessions.found(ticket) == begun
    assert here.upstream.logins.live() == 1


async def test_a_store_that_is_away_is_not_asked_by_everybody(here: Process, clock: Clock) -> None:
    ticket, _ = await here.sign_in()
    here.store.is_away = True
    clock.advance(2)
    for _ in range(50):
        with pytest.raises(NotNow):
            await here.credential(ticket)
    assert here.store.asked.count("load") == 1


@pytest.mark.parametrize("has_a_session", [False, True])
async def test_who_cannot_be_let_in_for_the_store_leaves_no_session_at_the_platform(
    here: Process, clock: Clock, *, has_a_session: bool
) -> None:
    ticket = (await here.sign_in())[0] if has_a_session else None
    clock.advance(2)
    here.store.is_away = True
    with pytest.raises(StoreUnavailable):
        await here.sign_in(instead_of=ticket)
    assert here.upstream.logins.live() == has_a_session
    here.store.is_away = False
    assert here.store.asked.count("add") == 1


async def test_what_was_renewed_while_the_store_was_away_is_kept_when_it_is_back(
    here: Process, there: Process, clock: Clock
) -> None:
    ticket, begun = await here.sign_in()
    here.in_use.add(begun.key)
    here.store.is_away = True
    here.sessions.renewed_by_upstream(begun.credential, "renewed", "xsrf")
    await here.look()
    assert (await there.credential(ticket)).token == begun.pair.token
    here.store.is_away = False
    clock.advance(2)
    assert (await here.credential(ticket)).token == "renewed"
    await here.look()
    clock.advance(2)
    assert (await there.credential(ticket)).token == "renewed"


# Under way ------------------------------------------------------------------------------------------------------------


async def test_nothing_is_done_twice_while_the_store_is_slow(here: Process, clock: Clock) -> None:
    _, begun = await here.sign_in()
    here.in_use.add(begun.key)
    slow = {name: asyncio.Event() for name in ("missing", "replace", "claim")}
    here.store.before.update(slow)
    for _ in range(5):
        clock.advance(20)
        await here.pass_ticks(2)
    assert here.store.asked.count("missing") == 1
    clock.advance(600)
    await here.renew(begun)
    clock.advance(LIFE / 2)
    await here.pass_ticks(5)
    assert here.store.asked.count("replace") == 1
    slow["replace"].set()
    await here.until_asked("claim")
    await here.pass_ticks(5)
    assert here.store.asked.count("claim") == 1
    for event in slow.values():
        event.set()
    await here.look()
    assert not here.ended


async def test_a_newer_pair_that_comes_while_one_is_being_kept_is_kept_too(here: Process, there: Process) -> None:
    ticket, begun = await here.sign_in()
    slow = here.store.before["replace"] = asyncio.Event()
    here.sessions.renewed_by_upstream(begun.credential, "second", "xsrf")
    here.sessions.renewed_by_upstream(await here.credential(ticket), "third", "xsrf")
    slow.set()
    await here.look()
    assert (await there.credential(ticket)).token == "third"


async def test_what_nobody_uses_is_forgotten_here(here: Process, clock: Clock) -> None:
    ticket, begun = await here.sign_in()
    for number in range(1000):
        with pytest.raises(Coming):
            here.sessions.credential_of(f"made up {number}", ENDPOINT)
    await here.rest()
    assert len(here.sessions._sessions) == 1001
    clock.advance(1.5)
    await here.look()
    assert set(here.sessions._sessions) == {begun.key}
    clock.advance(31)
    await here.look()
    assert not here.sessions._sessions
    assert await here.sessions.found(ticket) == begun
    assert not here.ended  # nobody was asked to look for connections of what never was there


async def test_what_somebody_waits_for_is_not_forgotten(here: Process, clock: Clock) -> None:
    ticket, begun = await here.sign_in()
    clock.advance(100)
    late = here.store.before["load"] = asyncio.Event()
    looking = asyncio.get_running_loop().create_task(here.credential(ticket))
    await here.until_asked("load")
    await here.pass_ticks()
    late.set()
    assert await looking == begun.credential


async def test_what_is_renewed_though_it_was_forgotten_is_kept(
    here: Process, clock: Clock, upstream: Simulator
) -> None:
    ticket, begun = await here.sign_in()
    answered = asyncio.Event()
    upstream.faults[CURRENT_USER] = Fault(until=answered)
    clock.advance(LIFE / 3)
    here.sessions.doubt(begun.credential)
    await here.pass_ticks(2)
    answered.set()
    await here.rest()
    assert (await here.credential(ticket)).token == newest(upstream) != begun.pair.token


@pytest.mark.parametrize("name", ["load", "keep", "replace", "claim", "missing", "remove", "platform"])
async def test_what_is_under_way_ends_with_the_process(
    another: Another, clock: Clock, upstream: Simulator, name: str
) -> None:
    before = asyncio.all_tasks()
    async with another() as here:
        ticket, begun = await here.sign_in()
        here.in_use.add(begun.key)
        clock.advance(700)
        here.store.before[name] = asyncio.Event()
        if name == "platform":
            upstream.faults[CURRENT_USER] = Fault(silent=True)
        elif name == "replace":
            await here.renew(begun)
        with pytest.raises(Coming):
            here.sessions.credential_of(ticket, ENDPOINT)
        if name in {"claim", "platform"}:
            clock.advance(LIFE / 2)
        elif name == "remove":
            upstream.logins.terminate()
            here.sessions.doubt(begun.credential)
        if name == "platform":
            await upstream.until(lambda: calls(upstream) > 0)
        else:
            await here.until_asked(name)
        assert here.sessions._tasks
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


@pytest.mark.logs_errors
async def test_a_fault_of_ours_is_told_and_holds_nobody_up(
    here: Process, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket, begun = await here.sign_in()
    clock.advance(2)

    async def fail(_: str) -> bytes | None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as broken:
        broken.setattr(here.store, "load", fail)
        with pytest.raises(Coming) as coming:
            here.sessions.credential_of(ticket, ENDPOINT)
        await asyncio.wait_for(coming.value.arrival.wait(), 1)
    assert "by a fault of ours" in caplog.text
    clock.advance(2)
    assert await here.credential(ticket) == begun.credential


async def test_sessions_are_kept_in_memory_too(upstream: Simulator, clock: Clock) -> None:
    async with process(upstream, SqliteStore(None, clock=clock), clock) as alone:
        ticket, begun = await alone.sign_in()
        clock.advance(2)
        assert await alone.sessions.found(ticket) == begun
        await alone.sessions.end(ticket)
        assert await alone.sessions.found(ticket) is None
