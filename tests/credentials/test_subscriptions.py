"""The service users of a microservice come and go as its tenants do, and one poller asks for all of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from proxy.credentials.kinds import Basic
from proxy.credentials.sources import Coming, CoolingDown, NoCredential
from proxy.credentials.stored import FixedValues, SecretDirectory
from proxy.credentials.subscriptions import Subscriptions, SubscriptionSource
from proxy.demo.simulator import Fault, Simulator
from proxy.head import Head
from proxy.upstream.platform import Platform
from tests.credentials.clock import Clock


HEAD: Final = Head("GET", "/notification/realtime", ())
REALTIME: Final = "/notification/realtime"
OPERATIONS: Final = "/notification/operations"
PATH: Final = "/application/currentApplication/subscriptions"
POLL: Final = 100.0
COOLDOWN: Final = 60.0
CANARY: Final = "canary-Of_a-tenant"
BOOTSTRAP: Final = "canary-Of_a-bootstrap"


class Polling(Subscriptions):
    """The poller under test, its clock, and what it and its sources told."""

    def __init__(self, store: Any, upstream: Simulator, clock: Clock) -> None:
        self.clock = clock
        self.loads: list[bool] = []
        super().__init__(
            store,
            Platform(upstream.url, tls=lambda: None),
            called="tests",
            poll_seconds=POLL,
            cooldown_seconds=COOLDOWN,
            clock=clock,
            on_load=self.loads.append,
            wait=clock.wait,
            chance=lambda: 1.0,
        )

    def source(self, tenant: str) -> "Source":
        return Source(self, tenant)


class Source(SubscriptionSource):
    def __init__(self, polling: Polling, tenant: str) -> None:
        self.loads: list[bool] = []
        super().__init__(
            polling,
            tenant,
            credential=f"for-{tenant}",
            cooldown_seconds=COOLDOWN,
            clock=polling.clock,
            on_load=self.loads.append,
        )

    def password(self, endpoint: str = REALTIME) -> str:
        credential = self.obtain(HEAD, endpoint)
        assert isinstance(credential, Basic)
        return credential.password

    def deny(self, endpoint: str = REALTIME) -> None:
        """Take note, as a relay does, that upstream denied what is given out."""
        guard = self.guard(self.obtain(HEAD, endpoint), endpoint)
        assert guard is not None
        guard.denied()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    """A platform where two tenants have subscribed."""
    async with Simulator() as simulator:
        simulator.subscriptions.password = BOOTSTRAP
        simulator.subscriptions.subscribe("t1", f"{CANARY}-1")
        simulator.subscriptions.subscribe("t2", f"{CANARY}-2", user="service_other")
        yield simulator


def values(upstream: Simulator, **more: str) -> dict[str, str]:
    return {"tenant": upstream.subscriptions.tenant, "user": upstream.subscriptions.user, "password": BOOTSTRAP} | more


@asynccontextmanager
async def started(polling: Polling) -> AsyncIterator[Polling]:
    await polling.start()
    try:
        await polling.clock.settle()
        yield polling
    finally:
        await polling.stop()


@pytest.fixture
async def polling(upstream: Simulator, clock: Clock) -> AsyncIterator[Polling]:
    async with started(Polling(FixedValues(values(upstream)), upstream, clock)) as subscriptions:
        yield subscriptions


@pytest.fixture(autouse=True)
def nothing_is_quoted(clean_log: list[str]) -> None:
    clean_log += [CANARY, BOOTSTRAP]


def told(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def written(directory: Path, stored: Mapping[str, str]) -> None:
    for name, value in stored.items():
        (directory / name).write_text(value)


# Who there is ---------------------------------------------------------------------------------------------------------


async def test_each_credential_is_the_service_user_of_its_tenant(polling: Polling) -> None:
    one, two = polling.source("t1"), polling.source("t2")
    assert one.obtain(HEAD, REALTIME) == Basic("service_proxy", f"{CANARY}-1", tenant="t1")
    assert two.obtain(HEAD, REALTIME) == Basic("service_other", f"{CANARY}-2", tenant="t2")
    assert (one.name, one.is_usable(), one.is_revoked, one.loads) == ("subscriptions", True, False, [True])


async def test_one_poller_asks_for_all(polling: Polling, upstream: Simulator) -> None:
    sources = [polling.source(tenant) for tenant in ("t1", "t2", "t1")]
    await polling.clock.move(POLL * 3 - 1)
    assert all(source.is_usable() for source in sources)
    assert len(upstream.calls) == 3


async def test_whoever_asks_before_the_first_answer_waits(upstream: Simulator, clock: Clock) -> None:
    upstream.faults[PATH] = Fault(until=(let := asyncio.Event()))
    polling = Polling(FixedValues(values(upstream)), upstream, clock)
    source = polling.source("t1")
    with pytest.raises(Coming) as early:
        source.password()
    await polling.start()
    try:
        await upstream.until(lambda: bool(upstream.calls))
        with pytest.raises(Coming) as caught:
            source.password()
        assert not source.is_usable()
        assert not source.is_revoked
        let.set()
        for coming in (early, caught):
            await asyncio.wait_for(coming.value.arrival.wait(), 10)
        assert source.password() == f"{CANARY}-1"
    finally:
        await polling.stop()


@pytest.mark.logs_errors
async def test_tenant_that_unsubscribes_is_revoked_and_usable_again_when_it_comes_back(
    polling: Polling, upstream: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = polling.source("t1"), polling.source("t2")
    before = one.obtain(HEAD, REALTIME)
    assert two.password()
    upstream.subscriptions.unsubscribe("t1")
    await polling.clock.move(POLL)
    assert (one.is_usable(), one.is_revoked) == (False, True)
    assert (two.is_usable(), two.is_revoked) == (True, False)
    with pytest.raises(NoCredential, match="has not subscribed"):
        one.password()
    with pytest.raises(NoCredential):
        one.recheck(before, REALTIME)
    assert one.guard(before, REALTIME) is None
    assert one.loads == [True, False]
    await polling.clock.move(POLL * 3)
    assert not one.is_usable()
    assert [line for line in told(caplog) if "for-t1" in line] == told(caplog)
    assert len(told(caplog)) == 1
    upstream.subscriptions.subscribe("t1", f"{CANARY}-again")
    await polling.clock.move(POLL)
    assert (one.is_usable(), one.is_revoked) == (True, False)
    assert one.password() == f"{CANARY}-again"


@pytest.mark.logs_errors
async def test_tenant_that_never_subscribed_has_no_credential_until_it_does(
    polling: Polling, upstream: Simulator
) -> None:
    source = polling.source("t3")
    with pytest.raises(NoCredential, match="has not subscribed"):
        source.password()
    upstream.subscriptions.subscribe("t3", f"{CANARY}-3")
    await polling.clock.move(POLL)
    assert source.password() == f"{CANARY}-3"


async def test_password_that_was_changed_is_another_value(polling: Polling, upstream: Simulator) -> None:
    source = polling.source("t1")
    before = source.obtain(HEAD, REALTIME)
    guard = source.guard(before, REALTIME)
    upstream.subscriptions.subscribe("t1", f"{CANARY}-rotated")
    await polling.clock.move(POLL)
    assert source.password() == f"{CANARY}-rotated"
    with pytest.raises(NoCredential, match="changed"):
        source.recheck(before, REALTIME)
    assert source.guard(before, REALTIME) is None
    assert source.guard(source.obtain(HEAD, REALTIME), REALTIME) is not guard
    assert source.loads == [True, True]


@pytest.mark.logs_errors
async def test_service_user_that_no_header_carries_is_told_and_others_are_served(
    polling: Polling, upstream: Simulator
) -> None:
    one, two = polling.source("t1"), polling.source("t2")
    assert one.password()
    body = {
        "users": [
            {"tenant": "t1", "name": "with:colon", "password": CANARY},
            {"tenant": "t2", "name": "two", "password": f"{CANARY}-2"},
        ]
    }
    upstream.faults[PATH] = Fault(body=msgspec.json.encode(body))
    await polling.clock.move(POLL)
    assert two.obtain(HEAD, REALTIME) == Basic("two", f"{CANARY}-2", tenant="t2")
    assert one.password() == f"{CANARY}-1"
    assert not one.is_revoked


# Upstream is away, or lies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503),
        Fault(body=b""),
        Fault(body=b"{}"),
        Fault(body=b'{"users":null}'),
        Fault(body=b'{"users":[{"tenant":"t1"}]}'),
        Fault(body=b"<html>"),
        Fault(status=302),
    ],
    ids=str,
)
async def test_upstream_that_cannot_be_asked_revokes_nobody(
    polling: Polling, upstream: Simulator, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = polling.source("t1"), polling.source("t2")
    assert (one.password(), two.password()) == (f"{CANARY}-1", f"{CANARY}-2")
    upstream.faults[PATH] = fault
    upstream.subscriptions.unsubscribe("t1")
    await polling.clock.move(POLL * 5)
    assert (one.password(), two.password()) == (f"{CANARY}-1", f"{CANARY}-2")
    assert len(told(caplog)) == 1
    assert "The last ones stay" in told(caplog)[0]
    assert set(polling.loads) == {False}
    assert len(polling.loads) == len(upstream.calls) - 1
    del upstream.faults[PATH]
    upstream.subscriptions.subscribe("t1", f"{CANARY}-new")
    await polling.clock.move(POLL)
    assert one.password() == f"{CANARY}-new"


async def test_upstream_that_is_away_is_asked_again_after_a_pause_that_doubles(
    upstream: Simulator, clock: Clock
) -> None:
    upstream.faults[PATH] = Fault(status=503)
    async with started(Polling(FixedValues(values(upstream)), upstream, clock)) as polling:
        for seconds, asked in ((0.5, 1), (1, 2), (2, 3), (4, 4), (8, 5), (16, 6), (32, 7), (60, 8), (60, 9)):
            await clock.move(seconds)
            assert len(upstream.calls) == asked
        assert not polling.source("t1").is_usable()
        del upstream.faults[PATH]
        await clock.move(60)
        assert polling.source("t1").is_usable()
        await clock.move(POLL - 1)
        assert len(upstream.calls) == 10


# The bootstrap user ---------------------------------------------------------------------------------------------------


@pytest.mark.logs_errors
async def test_bootstrap_user_that_is_denied_rests_and_is_told_once(
    upstream: Simulator, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    stored = FixedValues(values(upstream, password=f"{BOOTSTRAP}-wrong"))
    async with started(Polling(stored, upstream, clock)) as polling:
        source = polling.source("t1")
        for _ in range(3):
            with pytest.raises(CoolingDown) as caught:
                source.password()
            assert caught.value.seconds == COOLDOWN
        polling.see_about()
        await clock.move(COOLDOWN - 1)
        assert len(upstream.calls) == 1
        await clock.move(COOLDOWN * 2)
        assert len(upstream.calls) == 3
        assert polling.loads == [False] * 3
        [complaint] = told(caplog)
        assert "user and password" in complaint
        upstream.subscriptions.password = f"{BOOTSTRAP}-wrong"
        await clock.move(COOLDOWN)
        assert source.password() == f"{CANARY}-1"


@pytest.mark.logs_errors
async def test_bootstrap_user_that_is_denied_later_revokes_nobody(polling: Polling, upstream: Simulator) -> None:
    source = polling.source("t1")
    upstream.subscriptions.password = f"{BOOTSTRAP}-other"
    await polling.clock.move(POLL * 3)
    assert source.password() == f"{CANARY}-1"


@pytest.mark.logs_errors
async def test_bootstrap_values_that_change_are_tried_at_once(
    upstream: Simulator, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, values(upstream, password=f"{BOOTSTRAP}-wrong"))
    async with started(Polling(SecretDirectory(tmp_path), upstream, clock)) as polling:
        source = polling.source("t1")
        assert not source.is_usable()
        (tmp_path / "password").write_text(f"{BOOTSTRAP}-wrong, too")
        assert not source.is_usable()
        await clock.settle()
        assert (len(upstream.calls), len(told(caplog))) == (2, 2)
        (tmp_path / "password").write_text(BOOTSTRAP)
        with pytest.raises(Coming):
            source.password()
        await clock.settle()
        assert source.password() == f"{CANARY}-1"


async def test_bootstrap_values_are_looked_at_before_each_poll(
    upstream: Simulator, clock: Clock, tmp_path: Path
) -> None:
    written(tmp_path, values(upstream))
    async with started(Polling(SecretDirectory(tmp_path), upstream, clock)):
        upstream.subscriptions.password = f"{BOOTSTRAP}-rotated"
        (tmp_path / "password").write_text(f"{BOOTSTRAP}-rotated\n")
        await clock.move(POLL)
        assert len(upstream.calls) == 2
        authorized = [call.headers["Authorization"] for call in upstream.calls]
        assert authorized[1] == f"Basic {upstream.subscriptions.basic}"


@pytest.mark.logs_errors
async def test_denial_of_old_values_is_nothing_to_new_ones(upstream: Simulator, clock: Clock, tmp_path: Path) -> None:
    written(tmp_path, values(upstream, password=f"{BOOTSTRAP}-wrong"))
    upstream.faults[PATH] = Fault(status=401, until=(let := asyncio.Event()))
    polling = Polling(SecretDirectory(tmp_path), upstream, clock)
    source = polling.source("t1")
    await polling.start()
    try:
        await upstream.until(lambda: bool(upstream.calls))
        (tmp_path / "password").write_text(BOOTSTRAP)
        assert not source.is_usable()
        del upstream.faults[PATH]
        let.set()
        await clock.settle()
        assert source.password() == f"{CANARY}-1"
    finally:
        await polling.stop()


@pytest.mark.logs_errors
@pytest.mark.parametrize(
    ("stored", "missing"),
    [
        ({"password": ""}, "password is empty"),
        ({"user": "with:colon"}, "colon"),
        ({"tfa": "123"}, "nothing else"),
        ({"token": CANARY}, "token"),
        ({"tfa_code": "123456"}, "tfa_code"),
    ],
    ids=str,
)
async def test_broken_values_keep_the_last_good_ones_and_are_told_once(
    upstream: Simulator,
    clock: Clock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    stored: Mapping[str, str],
    missing: str,
) -> None:
    written(tmp_path, values(upstream))
    async with started(Polling(SecretDirectory(tmp_path), upstream, clock)) as polling:
        source = polling.source("t1")
        written(tmp_path, stored)
        assert [source.password() for _ in range(3)] == [f"{CANARY}-1"] * 3
        await clock.move(POLL * 2)
        [complaint] = told(caplog)
        assert missing in complaint
        assert "The last good ones stay" in complaint
        assert polling.loads == [False]
        assert len(upstream.calls) == 3


@pytest.mark.logs_errors
@pytest.mark.parametrize("missing", ["tenant", "user", "password"])
async def test_without_a_bootstrap_user_nobody_is_asked_until_there_is_one(
    upstream: Simulator, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    written(tmp_path, values(upstream))
    (tmp_path / missing).unlink()
    async with started(Polling(SecretDirectory(tmp_path), upstream, clock)) as polling:
        source = polling.source("t1")
        with pytest.raises(NoCredential) as caught:
            source.password()
        assert not isinstance(caught.value, Coming)
        await clock.move(POLL * 3)
        assert (upstream.calls, len(told(caplog))) == ([], 1)
        written(tmp_path, values(upstream))
        await clock.move(POLL)
        assert source.password() == f"{CANARY}-1"


@pytest.mark.logs_errors
async def test_directory_that_is_away_for_a_while_is_told_once(
    upstream: Simulator, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "bootstrap"
    async with started(Polling(SecretDirectory(directory), upstream, clock)) as polling:
        source = polling.source("t1")
        assert [source.is_usable() for _ in range(3)] == [False] * 3
        assert len(told(caplog)) == 1
        directory.mkdir()
        written(directory, values(upstream))
        assert not source.is_usable()
        await clock.settle()
        assert source.is_usable()


# Denials of service users ---------------------------------------------------------------------------------------------


@pytest.mark.logs_errors
async def test_service_user_that_is_denied_has_the_platform_asked_at_once(
    polling: Polling, upstream: Simulator
) -> None:
    source = polling.source("t1")
    assert source.password()
    upstream.subscriptions.subscribe("t1", f"{CANARY}-rotated")
    source.deny()
    with pytest.raises(Coming):
        source.password()
    await polling.clock.settle()
    assert source.password() == f"{CANARY}-rotated"
    assert len(upstream.calls) == 2
    await polling.clock.move(POLL - 1)
    assert len(upstream.calls) == 2


@pytest.mark.logs_errors
async def test_service_user_that_is_denied_and_did_not_change_rests(polling: Polling, upstream: Simulator) -> None:
    one, two = polling.source("t1"), polling.source("t2")
    guard = one.guard(one.obtain(HEAD, REALTIME), REALTIME)
    assert guard is not None
    for _ in range(5):
        guard.denied()
        await polling.clock.settle()
    with pytest.raises(CoolingDown):
        one.password()
    assert len(upstream.calls) == 2
    assert one.password(OPERATIONS)
    assert two.password()
    await polling.clock.move(COOLDOWN)
    assert one.password()


@pytest.mark.logs_errors
async def test_denial_while_the_platform_is_being_asked_has_it_asked_once_more(
    polling: Polling, upstream: Simulator
) -> None:
    """What it is about to answer may be older than the denial."""
    source = polling.source("t1")
    assert source.password()
    stale = {"users": [{"tenant": "t1", "name": "service_proxy", "password": f"{CANARY}-1"}]}
    upstream.faults[PATH] = Fault(body=msgspec.json.encode(stale), until=(let := asyncio.Event()))
    polling.see_about()
    await upstream.until(lambda: len(upstream.calls) == 2)
    upstream.subscriptions.subscribe("t1", f"{CANARY}-rotated")
    source.deny()
    del upstream.faults[PATH]
    let.set()
    await polling.clock.settle()
    assert source.password() == f"{CANARY}-rotated"
    assert len(upstream.calls) == 3


@pytest.mark.logs_errors
async def test_denied_service_user_does_not_wake_a_denied_bootstrap_user(polling: Polling, upstream: Simulator) -> None:
    source = polling.source("t1")
    assert source.password()
    upstream.subscriptions.password = f"{BOOTSTRAP}-other"
    polling.see_about()
    await polling.clock.settle()
    source.deny()
    await polling.clock.move(COOLDOWN - 1)
    assert len(upstream.calls) == 2
    await polling.clock.move(2)
    assert len(upstream.calls) == 3


# What it holds --------------------------------------------------------------------------------------------------------


async def test_secrets_are_known_and_shown_nowhere(polling: Polling) -> None:
    source = polling.source("t1")
    credential = source.obtain(HEAD, REALTIME)
    assert isinstance(credential, Basic)
    assert {BOOTSTRAP, f"{CANARY}-1", credential.authn()["token"]} < set(source.secrets())
    assert not any(f"{CANARY}-2" in secret for secret in source.secrets())
    shown = f"{polling!r} {source!r} {credential!r} {polling.users!r}"
    assert CANARY not in shown
    assert BOOTSTRAP not in shown


async def test_poller_that_was_stopped_asks_no_more_and_lets_nobody_wait(upstream: Simulator, clock: Clock) -> None:
    upstream.faults[PATH] = Fault(silent=True)
    polling = Polling(FixedValues(values(upstream)), upstream, clock)
    source = polling.source("t1")
    await polling.start()
    await upstream.until(lambda: bool(upstream.calls))
    with pytest.raises(Coming) as caught:
        source.password()
    await polling.stop()
    assert caught.value.arrival.is_set()
    with pytest.raises(NoCredential) as late:
        source.password()
    assert not isinstance(late.value, Coming)
    await polling.stop()
