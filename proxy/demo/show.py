"""The demo as a whole: a simulated tenant with an identity provider, a proxy with the right password, one with a wrong
one, one that people sign in at, and the pages.
"""

import asyncio
import logging
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from proxy.app import CannotListen, Proxy
from proxy.config import PREFIX, Config, load
from proxy.demo.feed import feed
from proxy.demo.identity_provider import IdentityProvider
from proxy.demo.logins import SessionRules
from proxy.demo.page import OUTCOMES_PATH, PEOPLE_PATH, demo_page, door_page, outcomes_of, people_of
from proxy.demo.people import Person, people
from proxy.demo.simulator import Simulator
from proxy.demo.single_sign_on import SingleSignOn
from proxy.relay.pages import Page


PUBLIC_PORT: Final = 8080
ADMIN_PORT: Final = 9090

_RULES: Final = SessionRules(token_seconds=300.0, renewal_seconds=60.0)
"""Short, so that a renewal can be waited for."""

log = logging.getLogger(__name__)


async def show(
    stop: asyncio.Event,
    *,
    public_port: int = PUBLIC_PORT,
    admin_port: int = ADMIN_PORT,
    those: Collection[Person] | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Run the demo until `stop` is set, on these ports and the two above each; the tenant is on the one above that, for
    other proxies to try. `those` may sign in; `clock` gives Unix time. Raises CannotListen.
    """
    those = people() if those is None else those
    wrong_port, door_port = public_port + 1, public_port + 2
    origins = [f"http://{host}:{public_port}" for host in ("127.0.0.1", "localhost")]
    door_origin = f"http://localhost:{door_port}"
    pages: dict[tuple[str, str], Page] = {}
    async with AsyncExitStack() as opened:
        directory = opened.enter_context(tempfile.TemporaryDirectory())
        simulator = await opened.enter_async_context(running_upstream(public_port + 3, those=those, clock=clock))
        await opened.enter_async_context(_signing_on(simulator, those, origin=door_origin, clock=clock))
        right = Proxy(_configuration(simulator, public_port, admin_port, origins), pages=pages)
        wrong = Proxy(_configuration(simulator, wrong_port, admin_port + 1, origins, wrong=True))
        door = Proxy(
            _door_configuration(simulator, door_port, admin_port + 2, door_origin, Path(directory, "client-id-key")),
            pages={("GET", "/"): door_page(demo_port=public_port)},
        )
        pages |= {
            ("GET", "/"): demo_page(wrong_port=wrong_port, door_port=door_port),
            ("GET", OUTCOMES_PATH): outcomes_of({"here": right.metrics, "wrong": wrong.metrics, "door": door.metrics}),
            ("GET", PEOPLE_PATH): people_of(those, clock),
        }
        for proxy in (right, wrong, door):
            await opened.enter_async_context(proxy)
        log.info("The demo page is at http://localhost:%d/ (Ctrl-C ends the demo)", right.public_port)
        _tell_people(those, door_origin)
        log.info("The tenant is at %s, for proxies of your own", simulator.url)
        await stop.wait()
        await asyncio.gather(right.drain(), wrong.drain(), door.drain())


def _tell_people(those: Collection[Person], origin: str) -> None:
    """Say who may sign in. Nobody else can know it, and nothing real is behind it."""
    for each in those:
        log.info("Sign in at %s/sign-in as %s: type %s (%s)", origin, each.user, each.password, each.about)


@asynccontextmanager
async def running_upstream(
    port: int = 0,
    *,
    seconds_between: float = 0.7,
    those: Collection[Person] = (),
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Simulator]:
    """A simulator on a loopback port, with a password nobody knows beforehand, and notifications coming in.

    `those` have accounts of its tenant; port 0 takes a free one. Raises CannotListen.
    """
    tenant = "t0815"
    accounts = [each.account(tenant) for each in those if not each.is_of_provider]
    simulator = Simulator(tenant=tenant, password=secrets.token_urlsafe(24), others=accounts, rules=_RULES, clock=clock)
    try:
        await simulator.start(port=port)
    except OSError:
        raise CannotListen(f"the demo's tenant cannot listen on localhost:{port}: end what listens there") from None
    try:
        # No TaskGroup: it would wrap what the body raises into a group that callers do not expect.
        feeding = asyncio.get_running_loop().create_task(feed(simulator, seconds_between=seconds_between))
        try:
            yield simulator
        finally:
            feeding.cancel()
            await asyncio.wait({feeding})
            if not feeding.cancelled():
                feeding.result()
    finally:
        await simulator.stop()


@asynccontextmanager
async def _signing_on(
    simulator: Simulator, those: Collection[Person], *, origin: str, clock: Callable[[], float]
) -> AsyncIterator[None]:
    """An identity provider on a free loopback port, which people sign on to the simulator at, and come back to us."""
    passwords = {each.user: each.password for each in those if each.is_of_provider}
    redirect_uri = f"{origin}/tenant/oauth"
    async with IdentityProvider(users=passwords, redirect_uris=[redirect_uri], clock=clock) as provider:
        simulator.sso = SingleSignOn(
            issuer=provider.url,
            client_id=provider.client_id,
            client_secret=provider.client_secret,
            redirect_uri=redirect_uri,
        )
        yield


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
            f"{PREFIX}LISTEN__PORT": str(port),
            f"{PREFIX}ADMIN__PORT": str(admin_port),
            f"{PREFIX}GATE__ORIGINS": msgspec.json.encode(origins).decode(),
            f"{PREFIX}CREDENTIALS__DEFAULT__COOLDOWN_SECONDS": "10",
        },
    )


def _door_configuration(simulator: Simulator, port: int, admin_port: int, origin: str, key_file: Path) -> Config:
    """The configuration of the front door, made in the same way. Sessions are kept in memory."""
    key_file.write_text(secrets.token_urlsafe(32))
    return load(
        None,
        {
            "C8Y_BASEURL": simulator.url,
            f"{PREFIX}LISTEN__PORT": str(port),
            f"{PREFIX}ADMIN__PORT": str(admin_port),
            f"{PREFIX}CREDENTIALS__DEFAULT__SOURCE": "session",
            f"{PREFIX}FRONTDOOR__PUBLIC_ORIGIN": origin,
            f"{PREFIX}FRONTDOOR__TENANT": simulator.accounts.tenant,
            f"{PREFIX}FRONTDOOR__TITLE": "the demo",
            f"{PREFIX}GATE__CLIENT_ID_KEY_FILE": str(key_file),
        },
    )
