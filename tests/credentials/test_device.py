"""A device's token is fetched for the certificate of the moment, and again long before its end."""

import asyncio
import base64
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import trustme

from proxy.credentials.device import DeviceSource
from proxy.credentials.kinds import Jwt
from proxy.credentials.sources import Coming, CoolingDown, NoCredential
from proxy.demo.simulator import Fault, Simulator
from proxy.head import Head
from tests.credentials.clock import Clock
from tests.upstream.devices import Device


HEAD: Final = Head("GET", "/notification/realtime", ())
REALTIME: Final = "/notification/realtime"
OPERATIONS: Final = "/notification/operations"
PATH: Final = "/devicecontrol/deviceAccessToken"
COOLDOWN: Final = 60.0
LIFE: Final = 3600.0
CANARY: Final = "canary-Of_a-device"


class Fetching(DeviceSource):
    """The source under test, and what it told."""

    def __init__(self, upstream: Simulator, device: Device, clock: Clock, **more: Any) -> None:
        self.loads: list[bool] = []
        settings: dict[str, Any] = {"unix_clock": clock.unix, "chance": lambda: 0.0} | more
        super().__init__(
            device.platform(),
            url=upstream.device_url,
            certificate_file=device.certificate_file,
            key_file=device.key_file,
            credential="line-3",
            cooldown_seconds=COOLDOWN,
            clock=clock,
            on_load=self.loads.append,
            wait=clock.wait,
            **settings,
        )

    def token(self, endpoint: str = REALTIME) -> str:
        credential = self.obtain(HEAD, endpoint)
        assert isinstance(credential, Jwt)
        return credential.token

    def deny(self, endpoint: str = REALTIME) -> None:
        """Take note, as a relay does, that upstream denied what is given out."""
        guard = self.guard(self.obtain(HEAD, endpoint), endpoint)
        assert guard is not None
        guard.denied()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(trustme.CA(), tmp_path)


@pytest.fixture
async def upstream(device: Device, clock: Clock) -> AsyncIterator[Simulator]:
    async with Simulator(device_ssl_context=device.listening(device.authority), clock=clock.unix) as simulator:
        yield simulator


@asynccontextmanager
async def started(upstream: Simulator, device: Device, clock: Clock, **more: Any) -> AsyncIterator[Fetching]:
    source = Fetching(upstream, device, clock, **more)
    await source.start()
    try:
        await clock.settle()
        yield source
    finally:
        await source.stop()


@pytest.fixture
async def source(upstream: Simulator, device: Device, clock: Clock) -> AsyncIterator[Fetching]:
    async with started(upstream, device, clock) as fetching:
        yield fetching


@pytest.fixture(autouse=True)
def nothing_is_quoted(clean_log: list[str]) -> None:
    clean_log += [CANARY, "eyJ"]  # how every token begins


def told(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def saying(claims: object) -> Fault:
    """An endpoint that gives out a token with these claims, which nobody signed."""
    payload = base64.urlsafe_b64encode(msgspec.json.encode(claims)).decode().rstrip("=")
    return Fault(body=msgspec.json.encode({"accessToken": f"{CANARY}.{payload}.c2ln"}))


# For how long ---------------------------------------------------------------------------------------------------------


async def test_token_goes_up_as_one(source: Fetching, upstream: Simulator) -> None:
    token = source.token()
    assert upstream.devices.judge(token) is not None
    assert source.obtain(HEAD, REALTIME).headers() == {"Authorization": f"Bearer {token}"}
    assert source.obtain(HEAD, REALTIME).authn() == {"token": token}
    assert (source.name, source.is_usable(), source.loads) == ("device", True, [True])


async def test_whoever_asks_before_it_is_here_waits(upstream: Simulator, device: Device, clock: Clock) -> None:
    upstream.faults[PATH] = Fault(until=(let := asyncio.Event()))
    source = Fetching(upstream, device, clock)
    await source.start()
    try:
        await upstream.until(lambda: bool(upstream.devices.asked))
        with pytest.raises(Coming) as caught:
            source.token()
        let.set()
        await asyncio.wait_for(caught.value.arrival.wait(), 10)
        assert source.token()
    finally:
        await source.stop()


async def test_another_is_fetched_at_two_thirds_of_its_life(
    source: Fetching, upstream: Simulator, clock: Clock
) -> None:
    first = source.token()
    await clock.move(LIFE * 2 / 3 - 1)
    assert (source.token(), len(upstream.devices.asked)) == (first, 1)
    await clock.move(2)
    assert source.token() != first
    await clock.move(LIFE * 10)
    assert len(upstream.devices.asked) == 2 + 15
    assert source.is_usable()


async def test_devices_do_not_ask_together(upstream: Simulator, device: Device, clock: Clock) -> None:
    async with started(upstream, device, clock, chance=lambda: 1.0) as source:
        first = source.token()
        await clock.move(LIFE * 0.6 + 1)
        assert source.token() != first


@pytest.mark.parametrize(
    ("claims", "seconds"),
    [
        pytest.param({"exp": 1_700_003_610, "iat": 1_700_000_010}, 2400, id="an hour"),
        pytest.param({"exp": 103_600, "iat": 100_000}, 2400, id="an hour, by a clock that is far off"),
        pytest.param({"exp": 1_700_003_610}, 2400, id="an hour by our clock"),
        pytest.param({"exp": 1_700_000_310, "iat": 1_700_000_010}, 200, id="five minutes"),
        pytest.param({"iat": 1_700_000_010}, 1800, id="no end"),
        pytest.param({}, 1800, id="nothing"),
        pytest.param({"exp": "soon", "iat": 1_700_000_010}, 1800, id="no number"),
        pytest.param({"exp": 1_700_000_010, "iat": 1_700_003_610}, 1800, id="over before it began"),
        pytest.param({"exp": 1_700_000_011, "iat": 1_700_000_010}, 1800, id="a second"),
        pytest.param({"exp": 5}, 1800, id="over, by our clock"),
        pytest.param({"exp": 1e300, "iat": 0}, 86_400, id="for ever"),
    ],
)
async def test_time_is_taken_from_the_token(
    upstream: Simulator, device: Device, clock: Clock, claims: dict[str, object], seconds: float
) -> None:
    upstream.faults[PATH] = saying(claims)
    async with started(upstream, device, clock) as source:
        await clock.move(seconds - 1)
        assert (len(upstream.calls), source.is_usable()) == (1, True)
        await clock.move(2)
        assert (len(upstream.calls), source.is_usable()) == (2, True)


async def test_token_that_is_none_to_read_is_given_out_all_the_same(
    upstream: Simulator, device: Device, clock: Clock
) -> None:
    upstream.faults[PATH] = Fault(body=msgspec.json.encode({"accessToken": f"{CANARY}!"}))
    async with started(upstream, device, clock) as source:
        assert source.token() == f"{CANARY}!"
        assert CANARY not in repr(source.obtain(HEAD, REALTIME))
        await clock.move(1801)
        assert len(upstream.calls) == 2


async def test_token_is_given_out_to_its_end_while_upstream_is_away(
    source: Fetching, upstream: Simulator, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    first = source.token()
    upstream.faults[PATH] = Fault(status=503)
    await clock.move(LIFE - 1)
    assert source.token() == first
    assert len(told(caplog)) == 1
    await clock.move(2)
    assert not source.is_usable()
    with pytest.raises(NoCredential):
        source.token()
    del upstream.faults[PATH]
    await clock.move(60)
    assert source.token() != first


# The certificate ------------------------------------------------------------------------------------------------------


async def test_another_certificate_has_a_token_fetched_at_once_and_the_old_one_serves_meanwhile(
    source: Fetching, upstream: Simulator, device: Device, clock: Clock
) -> None:
    first = source.token()
    upstream.faults[PATH] = Fault(until=(let := asyncio.Event()))
    device.named("line-4")
    assert source.is_usable()
    await upstream.until(lambda: upstream.devices.asked == ["line-3", "line-4"])
    assert source.token() == first
    let.set()
    await clock.settle()
    assert source.token() != first
    assert source.loads == [True, True]


async def test_certificate_is_looked_at_whenever_somebody_asks(
    source: Fetching, upstream: Simulator, device: Device, clock: Clock
) -> None:
    looks: list[Callable[[], object]] = [
        source.is_usable,
        source.token,
        lambda: source.recheck(source.obtain(HEAD, REALTIME), REALTIME),
    ]
    for number, look in enumerate(looks):
        device.named(f"line-{number}")
        look()
        await clock.settle()
        assert upstream.devices.asked[-1] == f"line-{number}"


async def test_files_that_say_the_same_change_nothing(
    source: Fetching, upstream: Simulator, device: Device, clock: Clock
) -> None:
    for file in device.files:
        os.utime(file, (1, 1))
    assert source.is_usable()
    await clock.move(60)
    assert len(upstream.devices.asked) == 1


@pytest.mark.logs_errors
@pytest.mark.parametrize("broken", ["gone", "no PEM", "another key"])
async def test_broken_certificate_keeps_the_token_and_is_told_once(
    source: Fetching, upstream: Simulator, device: Device, clock: Clock, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    first = source.token()
    match broken:
        case "gone":
            device.key_file.unlink()
        case "no PEM":
            device.certificate_file.write_text(CANARY)
        case _:
            device.key_file.write_bytes(device.authority.issue_cert(common_name="x").private_key_pem.bytes())
    assert [source.token() for _ in range(3)] == [first] * 3
    await clock.settle()
    [complaint] = told(caplog)
    assert "The credential line-3 is broken" in complaint
    assert "The last good one stays" in complaint
    assert source.loads == [True, False]
    await clock.move(LIFE - 1)
    assert source.token() == first
    assert upstream.devices.asked == ["line-3"]
    device.named("line-4")
    source.is_usable()
    await clock.settle()
    assert source.token() != first
    assert upstream.devices.asked == ["line-3", "line-4"]


@pytest.mark.logs_errors
async def test_without_a_certificate_nobody_is_asked_until_there_is_one(
    upstream: Simulator, device: Device, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = device.certificate_file.read_bytes()
    device.certificate_file.unlink()
    async with started(upstream, device, clock) as source:
        for _ in range(3):
            with pytest.raises(NoCredential):
                source.token()
        await clock.move(LIFE)
        assert (len(told(caplog)), upstream.devices.asked) == (1, [])
        device.certificate_file.write_bytes(certificate)
        source.is_usable()
        await clock.settle()
        assert source.token()


# Denials --------------------------------------------------------------------------------------------------------------


@pytest.mark.logs_errors
async def test_certificate_that_is_denied_rests_unless_it_changes(
    upstream: Simulator, device: Device, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.devices.unregistered.add("line-3")
    async with started(upstream, device, clock) as source:
        with pytest.raises(CoolingDown) as caught:
            source.token()
        assert caught.value.seconds == COOLDOWN
        await clock.move(COOLDOWN - 1)
        assert len(upstream.devices.asked) == 1
        await clock.move(2)
        assert len(upstream.devices.asked) == 2
        [complaint] = told(caplog)
        assert "denied the certificate" in complaint
        device.named("line-4")
        source.is_usable()
        await clock.settle()
        assert source.token()
        assert source.loads == [False, False, True]


@pytest.mark.logs_errors
async def test_certificate_that_is_denied_later_keeps_its_token_to_the_end(
    source: Fetching, upstream: Simulator, clock: Clock
) -> None:
    first = source.token()
    upstream.devices.unregistered.add("line-3")
    await clock.move(LIFE - 1)
    assert source.token() == first
    await clock.move(2)
    with pytest.raises(NoCredential):
        source.token()


async def test_token_that_upstream_denies_is_replaced_and_serves_elsewhere_meanwhile(
    source: Fetching, upstream: Simulator, clock: Clock
) -> None:
    first = source.token()
    upstream.faults[PATH] = Fault(until=(let := asyncio.Event()))
    source.deny(REALTIME)
    await upstream.until(lambda: len(upstream.devices.asked) == 2)
    assert source.token(OPERATIONS) == first
    with pytest.raises(Coming):
        source.token(REALTIME)
    let.set()
    await clock.settle()
    assert source.token(REALTIME) != first


async def test_denials_of_a_token_make_one_fetch_in_a_cooldown(
    source: Fetching, upstream: Simulator, clock: Clock
) -> None:
    for endpoint in (REALTIME, OPERATIONS):
        source.deny(endpoint)
        await clock.settle()
        assert len(upstream.devices.asked) == 2
    with pytest.raises(CoolingDown):
        source.token(OPERATIONS)
    assert source.token(REALTIME)
    await clock.move(COOLDOWN - 1)
    assert len(upstream.devices.asked) == 2
    await clock.move(2)
    assert len(upstream.devices.asked) == 3
    assert source.token(OPERATIONS)


async def test_denied_token_serves_elsewhere_while_no_other_is_to_be_had(
    source: Fetching, upstream: Simulator, clock: Clock
) -> None:
    first = source.token()
    upstream.faults[PATH] = Fault(status=503)
    source.deny(REALTIME)
    await clock.move(10)
    assert source.token(OPERATIONS) == first


# What it holds --------------------------------------------------------------------------------------------------------


async def test_token_is_known_as_a_secret_and_shown_nowhere(source: Fetching) -> None:
    token = source.token()
    assert token in source.secrets()
    assert token not in f"{source!r} {source.obtain(HEAD, REALTIME)!r}"


async def test_source_that_was_retired_gives_out_nothing_and_asks_no_more(
    upstream: Simulator, device: Device, clock: Clock
) -> None:
    async with started(upstream, device, clock) as source:
        source.retire()
        device.named("line-4")
        assert not source.is_usable()
        with pytest.raises(NoCredential):
            source.token()
    clock.now += LIFE
    assert upstream.devices.asked == ["line-3"]
