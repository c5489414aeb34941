"""A client session for talking to the simulator, a simulator whose time stands still, and a caller of it."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from proxy.demo.simulator import Simulator
from tests.demo.caller import Caller
from tests.demo.clock import Clock


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def simulator(clock: Clock) -> AsyncIterator[Simulator]:
    async with Simulator(clock=clock) as simulator:
        yield simulator


@pytest.fixture
def caller(http: aiohttp.ClientSession, simulator: Simulator) -> Caller:
    return Caller(http, simulator)
