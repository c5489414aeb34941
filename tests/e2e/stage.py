"""The proxy on its stage: the command as users start it, an upstream behind it, a tap and clients before it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from .programs import Program, running
from .tap import Tap, tapped
from .upstreams import EXACT, HERE, TEXT


COMMAND = str(Path(sys.executable).with_name("c8y-realtime-proxy"))
STOPS_WITHIN_SECONDS = 25
_EVENT_SECONDS = 20
_LOST_SECONDS = 0.5
_TO_CLIENTS = ("connection ", "browser ")

Library = Literal["c8y", "cometd", "faye"]
Place = Literal["node", "chromium"]
Transport = Literal["websocket", "long-polling"]


@dataclass(frozen=True, slots=True)
class Leg:
    """One way for a client to come: whose client, where it runs, and its transport."""

    library: Library
    place: Place
    transport: Transport

    def __str__(self) -> str:
        return f"{self.library}-{self.place}-{self.transport}"


@dataclass(frozen=True, slots=True)
class Browser:
    """The one Chromium of all tests: where to drive it, and the page that it is to open."""

    endpoint: str
    page: str


class Measurement(msgspec.Struct, frozen=True):
    number: int
    text: str
    exact: float


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    realtime_action: str = msgspec.field(name="realtimeAction")
    data: Measurement


class Advice(msgspec.Struct):
    reconnect: str
    interval: int = 0


class Event(msgspec.Struct, kw_only=True):
    """What a client program tells; absent means that the message had no such field."""

    event: str
    successful: bool | None = None
    channel: str | None = None
    error: str | None = None
    advice: Advice | None = None
    failure: str | None = None
    data: Data | None = None
    client_id: str | None = msgspec.field(name="clientId", default=None)
    status: str | None = None
    who: int = 0


class FellSilent(Exception):
    """A client program told nothing more, while an event of it was awaited."""

    def __init__(self, program: "Spoken") -> None:
        told = bytes(program.stdout[-3000:]).decode(errors="replace")
        super().__init__(f"{program.command} told nothing more. Its last events:\n{told}")


class Spoken(Protocol):
    """What is spoken to in lines of text, as a program is."""

    @property
    def command(self) -> str: ...

    @property
    def stdout(self) -> bytes | bytearray: ...

    async def line(self) -> bytes: ...

    async def write_line(self, line: bytes) -> None: ...


class Client:
    """A client program. Its events are taken in the order in which it tells them."""

    def __init__(self, program: Spoken) -> None:
        self._program = program

    async def start(self, *channels: str) -> str:
        """Handshake and subscribe, and wait for all of it to succeed. Returns the clientId as the client got it."""
        await self.attempt(*channels)
        handshake = await self.next("handshake")
        assert handshake.successful, handshake
        await self.subscribed(*channels)
        assert handshake.client_id
        return handshake.client_id

    async def attempt(self, *channels: str) -> None:
        """Handshake, and subscribe once that has succeeded."""
        await self._order({"do": "start", "channels": channels})

    async def subscribed(self, *channels: str) -> None:
        """Wait until these channels have been subscribed to, in any order."""
        missing = set(channels)
        while missing:
            event = await self.next("subscribe")
            assert event.successful, event
            missing -= {str(event.channel)}

    async def answered(self) -> Event:
        """The answer to the next handshake that is answered; those that find their socket closed are not."""
        event = await self.next("handshake")
        while not event.successful and event.error is None:
            event = await self.next("handshake")
        return event

    async def recovered(self, *channels: str) -> str:
        """Wait for a handshake that succeeds, after however many that did not, and for its subscriptions.

        Returns its clientId.
        """
        while not (handshake := await self._next_of("handshake")).successful:
            pass
        missing = set(channels)
        while missing:
            event = await self._next_of("subscribe")
            missing -= {str(event.channel)} if event.successful else set()
        assert handshake.client_id
        return handshake.client_id

    async def unsubscribe(self, channel: str) -> None:
        await self._order({"do": "unsubscribe", "channel": channel})
        event = await self.next("unsubscribe")
        assert event.successful, event

    async def disconnect(self) -> None:
        await self._order({"do": "disconnect"})
        await self.next("disconnect")

    async def gave_up(self) -> None:
        """Make sure that it does not try any more. CometD's clients know that of themselves."""
        await self._order({"do": "status"})
        assert (await self.next("status")).status == "disconnected"

    async def receive(self, channel: str, first: int, count: int) -> None:
        """Wait for so many measurements: complete, in order, intact, and nothing else between them."""
        for number in range(first, first + count):
            event = await self.next("message")
            expected = Data(realtime_action="CREATE", data=Measurement(number, TEXT, float(EXACT)))
            assert (event.channel, event.data) == (channel, expected), f"not number {number} of {channel}: {event}"

    async def goes_on(self, publish: Callable[[int], Awaitable[None]], first: int) -> int:
        """Have measurements published until one comes, and with it the session on; nothing else may happen meanwhile.

        What upstream sends into a connection that has just broken is lost, wherever there is no acknowledgement.
        Returns the number that is next.
        """
        number = first
        came = -1
        async with asyncio.timeout(_EVENT_SECONDS):
            while came < 0:
                await publish(number)
                number += 1
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOST_SECONDS):
                        came = await self._number()
            while came < number - 1:
                came = await self._number()
        return number

    async def _number(self) -> int:
        event = await self.next("message")
        assert event.data
        return event.data.data.number

    async def next(self, name: str) -> Event:
        """The next event, which must be of that name. Clients may say twice that they have subscribed."""
        event = await self._read()
        while event.event == "subscribe" != name:
            event = await self._read()
        assert event.event == name, event
        return event

    async def _next_of(self, name: str) -> Event:
        while (event := await self._read()).event != name:
            pass
        return event

    async def _read(self) -> Event:
        try:
            async with asyncio.timeout(_EVENT_SECONDS):
                return msgspec.json.decode(await self._program.line(), type=Event)
        except TimeoutError:
            raise FellSilent(self._program) from None

    async def _order(self, order: Mapping[str, object]) -> None:
        await self._program.write_line(msgspec.json.encode(order))


class Crowd(Client):
    """Many sessions in one client program: each of its events is that of one of them."""

    def __init__(self, program: Program, size: int) -> None:
        super().__init__(program)
        self._size = size

    async def all(self, name: str, *, successful: bool | None) -> None:
        """Wait until each session has told such an event, whatever it tells meanwhile."""
        missing = set(range(self._size))
        while missing:
            event = await self._next_of(name)
            missing -= {event.who} if event.successful is successful else set()


@dataclass
class Evidence:
    """All that left the proxy in one test, by where it went, and the secrets that must not be in it.

    `clients_own` are those that clients may be told: they must be nowhere but on the way to them.
    """

    secrets: list[bytes] = field(default_factory=list)
    clients_own: list[bytes] = field(default_factory=list)
    given: list[tuple[str, bytes]] = field(default_factory=list)

    def leaks(self) -> list[str]:
        """Where a secret turned up."""
        return [where for where, what in self.given if any(secret in what for secret in self._secrets_beyond(where))]

    def _secrets_beyond(self, where: str) -> list[bytes]:
        return self.secrets if where.startswith(_TO_CLIENTS) else [*self.secrets, *self.clients_own]


Handshakes = dict[tuple[str, str, str, str], int]


@dataclass
class Proxy:
    """One running proxy: where it listens, and what its metrics were when it was stopped."""

    program: Program
    port: int
    admin_port: int
    last_metrics: str = ""

    async def metrics(self) -> str:
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            return await (await session.get(f"http://127.0.0.1:{self.admin_port}/metrics")).text()

    async def stop(self) -> None:
        """Stop it as an operator does: it ends in order and in time."""
        if self.program.process.returncode is None:
            self.last_metrics = await self.metrics()
            self.program.process.send_signal(signal.SIGTERM)
            assert await self.program.wait(seconds=STOPS_WITHIN_SECONDS) == 0


class Reachable(Protocol):
    """An upstream, by where it is reached."""

    @property
    def url(self) -> str: ...


Starting = Callable[[Mapping[str, object]], Awaitable[Proxy]]


class Stage:
    """What a test works with: `tap.port` is where clients connect.

    `start` starts one more proxy, with settings that replace those of the stage.
    """

    def __init__(self, start: Starting, tap: Tap, browser: Browser | None, scheme: str) -> None:
        self.proxies: list[Proxy] = []
        self.tap = tap
        self.url = f"{scheme}://localhost:{tap.port}"
        self._start = start
        self._browser = browser

    @property
    def proxy(self) -> Proxy:
        """The proxy that clients reach now."""
        return self.proxies[-1]

    async def metrics(self) -> str:
        return await self.proxy.metrics()

    async def handshakes(self) -> Handshakes:
        """The handshakes counted so far, by transport, source, outcome and reason."""
        return {
            (labels["transport"], labels["source"], labels["outcome"], labels["reason"]): int(sample.value)
            for labels, sample in await self._samples("handshakes_total")
        }

    async def upgrades(self) -> dict[tuple[str, str], int]:
        """The upgrades counted so far, by outcome and reason."""
        return {
            (labels["outcome"], labels["reason"]): int(sample.value)
            for labels, sample in await self._samples("upgrades_total")
        }

    async def start(self, settings: Mapping[str, object]) -> None:
        """Start a proxy, and lead clients to it from now on."""
        self.proxies.append(await self._start(settings))
        self.tap.lead_to(self.proxy.port)

    async def stop(self) -> None:
        """Stop the proxy as an operator does."""
        await self.proxy.stop()

    async def restart(self, settings: Mapping[str, object] | None = None) -> None:
        """Stop the proxy and start it again, to its clients at the same address."""
        await self.stop()
        await self.start(settings or {})

    async def hand_over(self, settings: Mapping[str, object] | None = None) -> None:
        """Start another proxy, and let the connections of all clients break: at the same address they find that one."""
        await self.start(settings or {})
        self.tap.cut()

    async def readiness(self) -> int:
        """The status of the readiness probe."""
        async with aiohttp.ClientSession() as session:
            return (await session.get(f"http://127.0.0.1:{self.proxy.admin_port}/readyz")).status

    async def _samples(self, name: str) -> list[tuple[Mapping[str, str], Any]]:
        return [
            (sample.labels, sample)
            for family in text_string_to_metric_families(await self.metrics())
            for sample in family.samples
            if sample.name == f"c8y_realtime_proxy_{name}" and sample.value
        ]

    @asynccontextmanager
    async def client(
        self,
        leg: Leg,
        *,
        path: str = "/notification/realtime",
        auth: str | Mapping[str, str] = "empty",
        headers: Mapping[str, str] | None = None,
        tls: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Client]:
        """A client program that is ready to start.

        `path` is for CometD's and Faye's own: the official client has its path. `auth` is for that alone: its kind, or
        user and password. `headers` and `tls` (`ca`, `cert` and `key` in PEM) are for Node, and go with upgrades, too.
        `cookies` are those of its browser, for the proxy's host.
        """
        async with self._program(leg, path=path, auth=auth, headers=headers, tls=tls, cookies=cookies) as program:
            client = Client(program)
            await client.next("ready")
            yield client
            await program.wait(seconds=10)

    @asynccontextmanager
    async def crowd(self, leg: Leg, size: int, *, path: str = "/notification/realtime") -> AsyncIterator[Crowd]:
        """Many clients of one kind that are ready to start."""
        async with self._program(leg, path=path, size=size) as program:
            crowd = Crowd(program, size)
            await crowd.next("ready")
            yield crowd
            await program.wait(seconds=10)

    @asynccontextmanager
    async def _program(
        self,
        leg: Leg,
        *,
        path: str,
        size: int = 1,
        auth: str | Mapping[str, str] = "empty",
        headers: Mapping[str, str] | None = None,
        tls: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Program]:
        options: dict[str, Any] = {
            "library": leg.library,
            "place": leg.place,
            "transport": leg.transport,
            "url": self.url,
            "path": path,
            "size": size,
            "auth": auth,
            "headers": headers or {},
            "tls": tls or {},
        }
        if leg.place == "chromium":
            assert self._browser
            jar = [{"name": name, "value": value, "url": self.url} for name, value in (cookies or {}).items()]
            options |= {"browser": self._browser.endpoint, "page": self._browser.page, "cookies": jar}
        arguments = msgspec.json.encode(options).decode()
        async with running("node", str(HERE / "node/client.mjs"), arguments) as program:
            yield program


def store(directory: Path, values: Mapping[str, str]) -> dict[str, object]:
    """Write one file per value, as a mounted secret has them; returns the settings that say so."""
    for name, value in values.items():
        (directory / name).write_text(value, encoding="utf-8")
    return {"credentials.default.source": "stored", "credentials.default.directory": str(directory)}


@asynccontextmanager
async def staged(
    upstream: Reachable,
    settings: Mapping[str, object],
    *,
    browser: Browser | None,
    evidence: Evidence,
    file: Path | None = None,
    tap: Tap | None = None,
) -> AsyncIterator[Stage]:
    """Start the proxy, with a configuration file if there is one, behind a tap that is there already or another; at the
    end stop it, as an operator does, and keep the evidence.
    """
    given: dict[str, object] = {
        "listen.port": 0,
        "admin.port": 0,
        "upstream.url": upstream.url,
        "gate.origins": [browser.page] if browser else [],
        "gate.client_id_key_file": str(Path(__file__).parents[1] / "client-id-key"),
    } | dict(settings)
    scheme = "https" if "listen.tls.certificate_file" in given else "http"
    async with AsyncExitStack() as programs:
        if tap is None:
            tap = await programs.enter_async_context(tapped(0))

        async def start(changed: Mapping[str, object]) -> Proxy:
            environment = environment_of(given | dict(changed))
            command = [COMMAND, "run"] if file is None else [COMMAND, "run", "--config", str(file)]
            program = await programs.enter_async_context(running(*command, environment=environment))
            evidence.given.append(("command line", _command_line(program)))
            ports = await _listening(program)
            return Proxy(program, ports["public"], ports["admin"])

        stage = Stage(start, tap, browser, scheme)
        try:
            await stage.start({})
            yield stage
            for proxy in stage.proxies:
                await proxy.stop()
            assert not _compressed(tap.sent())
        finally:
            evidence.given += [(f"connection {number}", sent) for number, sent in enumerate(tap.sent())]
            for proxy in stage.proxies:
                await proxy.program.kill()
                evidence.given += [("stdout", bytes(proxy.program.stdout)), ("log", bytes(proxy.program.stderr))]
                evidence.given.append(("metrics", proxy.last_metrics.encode()))


def environment_of(settings: Mapping[str, object]) -> dict[str, str]:
    """What says the settings, in the surroundings of the tests."""
    environment = {
        f"C8Y_REALTIME_PROXY__{key.upper().replace('.', '__')}": _text(value) for key, value in settings.items()
    }
    return environment | {name: value for name, value in os.environ.items() if not name.startswith("C8Y_")}


def _compressed(sent: Sequence[bytes]) -> bool:
    """Whether anything was compressed on its way to clients: the tap could not see secrets in it."""
    signs = (b"sec-websocket-extensions:", b"content-encoding:")
    return any(sign in connection.lower() for connection in sent for sign in signs)


def _command_line(program: Program) -> bytes:
    """What everybody on this machine can read of a process."""
    return Path(f"/proc/{program.process.pid}/cmdline").read_bytes()


async def _listening(proxy: Program) -> dict[str, int]:
    """Wait for the log to name the ports of both listeners."""
    ports: dict[str, int] = {}
    while len(ports) < len(("public", "admin")):
        async with asyncio.timeout(_EVENT_SECONDS):
            words = (await proxy.error_line()).decode().split()
        if "listener" in words:
            ports[words[words.index("listener") - 1]] = int(words[-1].rpartition(":")[2])
    return ports


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
