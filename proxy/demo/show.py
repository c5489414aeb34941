"""The demo as a whole: a simulated tenant, a proxy with the right password, one with a wrong one, and the page."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final

import msgspec

from proxy.app import Proxy
from proxy.config import Config, load
from proxy.demo.feed import feed
from proxy.demo.page import OUTCOMES_PATH, demo_page, outcomes_of
from proxy.demo.simulator import Simulator
from proxy.relay.pages import Page


PUBLIC_PORT: Final = 8080
ADMIN_PORT: Final = 9090

log = logging.getLogger(__name__)


async def show(stop: asyncio.Event, *, public_port: int = PUBLIC_PORT, admin_port: int = ADMIN_PORT) -> None:
    """Run the demo until `stop` is set, on these ports and the ones above them. Raises CannotListen."""
    origins = [f"http://{host}:{public_port}" for host in ("127.0.0.1", "localhost")]
    pages: dict[str, Page] = {}
    async with running_upstream() as simulator:
        right = Proxy(_configuration(simulator, public_port, admin_port, origins), pages=pages)
        wrong = Proxy(_configuration(simulator, public_port + 1, admin_port + 1, origins, wrong=True))
        pages |= {
            "/": demo_page(wrong_port=public_port + 1),
            OUTCOMES_PATH: outcomes_of({"here": right.metrics, "wrong": wrong.metrics}),
        }
        async with right, wrong:
            log.info("The demo page is at http://localhost:%d/ (Ctrl-C ends the demo)", right.public_port)
            await stop.wait()
            await asyncio.gather(right.drain(), wrong.drain())


@asynccontextmanager
async def running_upstream(*, seconds_between: float = 0.7) -> AsyncIterator[Simulator]:
    """A simulator on a free loopback port, with a password nobody knows beforehand, and notifications coming in."""
    async with Simulator(password=secrets.token_urlsafe(24)) as simulator:
        # No TaskGroup: it would wrap what the body raises into a group that callers do not expect.
        feeding = asyncio.get_running_loop().create_task(feed(simulator, seconds_between=seconds_between))
        try:
            yield simulator
        finally:
            feeding.cancel()
            await asyncio.wait({feeding})
            if not feeding.cancelled():
                feeding.result()


def stored_values(simulator: Simulator, *, wrong: bool = False) -> Mapping[str, str]:
    """The values of a stored credential for this simulator by their file names; a wrong one differs in its password."""
    accounts = simulator.accounts
    password = secrets.token_urlsafe(24) if wrong else accounts.password
    return MappingProxyType({"tenant": accounts.tenant, "user": accounts.user, "password": password})


def _configuration(
    simulator: Simulator, port: int, admin_port: int, origins: Sequence[str], *, wrong: bool = False
) -> Config:
    """The configuration of one proxy, made the way a user makes it: from an environment."""
    stored = stored_values(simulator, wrong=wrong)
    return load(
        None,
        {f"C8Y_{name.upper()}": value for name, value in stored.items()}
        | {
            "C8Y_BASEURL": simulator.url,
            "C8Y_REALTIME_PROXY__LISTEN__PORT": str(port),
            "C8Y_REALTIME_PROXY__ADMIN__PORT": str(admin_port),
            "C8Y_REALTIME_PROXY__GATE__ORIGINS": msgspec.json.encode(origins).decode(),
            "C8Y_REALTIME_PROXY__CREDENTIALS__DEFAULT__COOLDOWN_SECONDS": "10",
        },
    )
