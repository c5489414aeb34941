"""A gateway with a credential of every source, each for a client of its own, and what its operator does to it."""

import asyncio
import base64
import secrets
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from proxy.demo.accounts import Account, User
from tests.demo.authority import Authority, Device

from .clients import Keys
from .origin import OTHER_TENANT, TENANT, Origin, secrets_of
from .programs import running
from .stage import COMMAND, Client, Evidence, Leg, Stage, environment_of, staged


NAMES = ("plain", "sealed", "person", "operator", "device", "service", "guest")
"""The credentials, and the clients that are called like them: values in files and in the vault; a platform session with
and without one-time codes; a certificate; and a microservice in two tenants, of which one comes later.
"""

POLLING = Leg("c8y", "node", "long-polling")
SOCKET = Leg("cometd", "node", "websocket")
CHANGING = Leg("faye", "node", "websocket")
"""Handshakes by long-polling, and goes on by WebSocket."""

_CONFIGURATION = """
[upstream]
url = "{url}"
ca_file = "{authority}"

[vault]
file = "{state}/vault.json"
sessions_file = "{state}/sessions.json"
key_file = "{hidden}/vault-key"

[credentials.plain]
source = "stored"
directory = "{hidden}/plain"

[credentials.sealed]
source = "vault"

[credentials.person]
source = "login"
entry = "person"

[credentials.operator]
source = "login"
directory = "{hidden}/operator"

[credentials.device]
source = "device"
certificate_file = "{device.certificate_file}"
key_file = "{device.key_file}"
token_url = "{device_url}"

[credentials.service]
source = "subscriptions"
directory = "{hidden}/bootstrap"
tenant = "{tenant}"
poll_seconds = 1

[credentials.guest]
source = "subscriptions"
directory = "{hidden}/bootstrap"
tenant = "{other_tenant}"
poll_seconds = 1

[gate]
identity = ["basic", "bearer"]
client_id_key_file = "{hidden}/client-id-key"
"""

_CLIENT = """
[[clients]]
name = "{name}"
key = "{key}"
credentials = ["{name}"]
"""


@dataclass
class Listener:
    """A client program that hears its own channel; `number` is that of the measurement which comes next."""

    name: str
    channel: str
    client: Client
    number: int = 0

    async def hear(self, origin: Origin, count: int = 1) -> None:
        """Publish so many, and wait for them: nothing else may happen to it meanwhile."""
        await origin.publish(self.channel, self.number, count)
        await self.client.receive(self.channel, self.number, count)
        self.number += count


class Gateway:
    """The files of a gateway in front of a platform. What may hold secrets is in `hidden`, all else in `state`."""

    def __init__(self, folder: Path, origin: Origin, authority: Authority, evidence: Evidence) -> None:
        self.origin = origin
        self.keys = Keys(NAMES)
        self.file = folder / "gateway.toml"
        self.hidden, self.state = folder / "hidden", folder / "state"
        self._folder = folder
        self._authority = authority
        self._evidence = evidence
        self._channels = 0
        evidence.secrets += self.keys.secrets()
        for path in (self.hidden, self.state, *(self.hidden / name for name in ("plain", "operator", "bootstrap"))):
            path.mkdir()
        self.device = self.new_device()
        for name, text in (("vault-key", self.new_key()), ("client-id-key", secrets.token_urlsafe(32))):
            self.hide(name, text)
            evidence.secrets.append(text.encode())
        self._configure()

    # What the platform knows ------------------------------------------------------------------------------------------

    def new_account(self, user: str, *, with_codes: bool = False) -> Account:
        """Let the platform know a user by another password, beside those that it knows."""
        account = self.origin.new_account(user, with_codes=with_codes)
        self._evidence.secrets += secrets_of(account)
        return account

    def forget(self, account: Account) -> None:
        """Let the platform know a user by this password no longer."""
        known = self.origin.simulator.accounts
        others = [each for each in known.others if each is not account]
        self.origin.simulator.accounts = replace(known, others=others)

    def new_device(self) -> Device:
        """Another certificate in the same files."""
        return self._authority.device(self.hidden)

    # What is stored ---------------------------------------------------------------------------------------------------

    def new_key(self) -> str:
        """A key for the vault."""
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        self._evidence.secrets.append(key.encode())
        return key

    def hide(self, name: str, *lines: str) -> None:
        """Write a file that nobody else may read."""
        file = self.hidden / name
        file.touch(mode=0o600)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def store(self, name: str, values: Mapping[str, str]) -> None:
        """Write one file for each value, as a mounted secret changes: by names that are moved."""
        for value, text in values.items():
            fresh = self.hidden / name / f".{value}"
            fresh.write_text(text, encoding="utf-8")
            fresh.rename(self.hidden / name / value)

    async def command(self, *words: str, piped: Mapping[str, str] | None = None) -> None:
        """Run a command of the product on the configuration file, with values piped in."""
        command = [COMMAND, *words, "--config", str(self.file)]
        async with running(*command, environment=environment_of({})) as program:
            for name, value in (piped or {}).items():
                await program.write_line(f"{name}={value}".encode())
            code = await program.wait(seconds=20)
        self._evidence.given += [("stdout", bytes(program.stdout)), ("stderr", bytes(program.stderr))]
        assert code == 0, program.stderr

    async def fill(self) -> dict[str, Account]:
        """Make an account for each credential that has one, and store it; returns them by the credentials' names."""
        accounts = {name: self.new_account(name, with_codes=name == "person") for name in NAMES[:4]}
        bootstrap = self.origin.simulator.subscriptions
        bootstrap.subscribe(TENANT)
        self.store("bootstrap", {"tenant": TENANT, "user": bootstrap.user, "password": bootstrap.password})
        for name in ("plain", "operator"):
            self.store(name, values_of(accounts[name]))
        for name in ("sealed", "person"):
            await self.command("credentials", "add", name, piped=values_of(accounts[name]))
        return accounts

    def _configure(self) -> None:
        text = _CONFIGURATION.format(
            url=self.origin.url,
            authority=self._authority.ca_file(self._folder),
            state=self.state,
            hidden=self.hidden,
            device=self.device,
            device_url=self.origin.simulator.device_url,
            tenant=TENANT,
            other_tenant=OTHER_TENANT,
        )
        text += "".join(_CLIENT.format(name=name, key=self.keys.stored(name)) for name in NAMES)
        self.file.write_text(text, encoding="utf-8")

    # What runs --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stage]:
        """The proxy of this gateway, as its users start it."""
        settings = {"gate.client_id_key_file": str(self.hidden / "client-id-key"), "drain.spread_seconds": 0.1}
        try:
            async with staged(self.origin, settings, browser=None, evidence=self._evidence, file=self.file) as stage:
                yield stage
        finally:
            self._evidence.secrets += self.origin.secrets()
            open_to_all = [path for path in self._folder.rglob("*") if self.hidden not in path.parents]
            self._evidence.given += [(path.name, path.read_bytes()) for path in open_to_all if path.is_file()]

    @staticmethod
    def reload(stage: Stage) -> None:
        """Have the configuration read again."""
        stage.proxy.program.process.send_signal(signal.SIGHUP)

    @asynccontextmanager
    async def listening(self, stage: Stage, *clients: tuple[str, Leg]) -> AsyncIterator[list[Listener]]:
        """Clients by their names, each subscribed to a channel of its own."""
        async with AsyncExitStack() as programs:

            async def start(name: str, leg: Leg, channel: str) -> Listener:
                client = await programs.enter_async_context(stage.client(leg, **self.keys.options(leg, name)))
                await client.start(channel)
                return Listener(name, channel, client)

            first, self._channels = self._channels, self._channels + len(clients)
            async with asyncio.TaskGroup() as group:
                starting = [
                    group.create_task(start(*each, f"/measurements/{number}"))
                    for number, each in enumerate(clients, first)
                ]
            yield [each.result() for each in starting]


def values_of(account: Account) -> dict[str, str]:
    """What is stored of an account."""
    values = {"tenant": account.tenant, "user": account.user, "password": account.password}
    return values if account.totp is None else values | {"totp_secret": account.totp}


def user_of(name: str) -> User:
    """The platform's user for a credential."""
    return User(TENANT, name)


async def hear(origin: Origin, *listeners: Listener, count: int = 1) -> None:
    """Publish so many to each, and wait for them."""
    async with asyncio.TaskGroup() as group:
        for listener in listeners:
            group.create_task(listener.hear(origin, count))


class Flow:
    """Measurements that never cease: each listener gets the next one when it has got the one before."""

    def __init__(self, origin: Origin, listeners: Sequence[Listener]) -> None:
        self._origin = origin
        self._listeners = listeners
        self._is_over = False
        self._heard = asyncio.Condition()

    async def run(self, listener: Listener) -> None:
        while not self._is_over:
            await listener.hear(self._origin)
            async with self._heard:
                self._heard.notify_all()

    async def goes_on(self) -> None:
        """Wait until each has heard two more: the second was asked for by now."""
        goals = [(listener, listener.number + 2) for listener in self._listeners]
        async with asyncio.timeout(20), self._heard:
            await self._heard.wait_for(lambda: all(each.number >= goal for each, goal in goals))

    def end(self) -> None:
        self._is_over = True


@asynccontextmanager
async def flowing(origin: Origin, listeners: Sequence[Listener]) -> AsyncIterator[Flow]:
    """Let measurements flow; fails when anything else happens to a listener, or one is missing."""
    flow = Flow(origin, listeners)
    async with asyncio.TaskGroup() as tasks:
        for listener in listeners:
            tasks.create_task(flow.run(listener))
        yield flow
        await flow.goes_on()
        flow.end()
