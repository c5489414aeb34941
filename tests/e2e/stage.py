"""The proxy on its stage: the command as users start it, an upstream behind it, a tap and clients before it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from .programs import Program, running
from .tap import Tap, tapped
from .upstreams import EXACT, HERE, TEXT, Upstream


COMMAND = str(Path(sys.executable).with_name("c8y-realtime-proxy"))
STOPS_WITHIN_SECONDS = 25
_EVENT_SECONDS = 20

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


class FellSilent(Exception):
    """A client program told nothing more, while an event of it was awaited."""

    def __init__(self, program: Program) -> None:
        told = bytes(program.stdout[-3000:]).decode(errors="replace")
        super().__init__(f"{program.command} told nothing more. Its last events:\n{told}")


class Client:
    """A client program. Its events are taken in the order in which it tells them."""

    def __init__(self, program: Program) -> None:
        self._program = program

    async def start(self, *channels: str) -> None:
        """Handshake and subscribe, and wait for all of it to succeed."""
        await self.attempt(*channels)
        handshake = await self.next("handshake")
        assert handshake.successful, handshake
        await self.subscribed(*channels)

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

    async def recovered(self, *channels: str) -> None:
        """Wait for a handshake that succeeds, after however many that did not, and for its subscriptions."""
        while not (await self._next_of("handshake")).successful:
            pass
        missing = set(channels)
        while missing:
            event = await self._next_of("subscribe")
            missing -= {str(event.channel)} if event.successful else set()

    async def unsubscribe(self, channel: str) -> None:
        await self._order({"do": "unsubscribe", "channel": channel})
        event = await self.next("unsubscribe")
        assert event.successful, event

    async def disconnect(self) -> None:
        await self._order({"do": "disconnect"})
        await self.next("disconnect")

    async def receive(self, channel: str, first: int, count: int) -> None:
        """Wait for so many measurements: complete, in order, intact, and nothing else between them."""
        for number in range(first, first + count):
            event = await self.next("message")
            expected = Data(realtime_action="CREATE", data=Measurement(number, TEXT, float(EXACT)))
            assert (event.channel, event.data) == (channel, expected), f"not number {number} of {channel}: {event}"

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


@dataclass
class Evidence:
    """All that left the proxy in one test, by where it went, and the secrets that must not be in it."""

    secrets: list[bytes] = field(default_factory=list)
    given: list[tuple[str, bytes]] = field(default_factory=list)

    def leaks(self) -> list[str]:
        """Where a secret turned up."""
        return [where for where, what in self.given if any(secret in what for secret in self.secrets)]


Handshakes = dict[tuple[str, str, str, str], int]


class Stage:
    """What a test works with: `tap.port` is where clients connect."""

    def __init__(self, proxy: Program, tap: Tap, admin_port: int, browser: Browser | None) -> None:
        self.proxy = proxy
        self.tap = tap
        self.last_metrics = ""
        self._admin = f"http://127.0.0.1:{admin_port}"
        self._browser = browser

    @property
    def url(self) -> str:
        return f"http://localhost:{self.tap.port}"

    async def metrics(self) -> str:
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            return await (await session.get(f"{self._admin}/metrics")).text()

    async def handshakes(self) -> Handshakes:
        """The handshakes counted so far, by transport, source, outcome and reason."""
        return {
            (labels["transport"], labels["source"], labels["outcome"], labels["reason"]): int(sample.value)
            for family in text_string_to_metric_families(await self.metrics())
            for sample in family.samples
            if sample.name == "c8y_realtime_proxy_handshakes_total" and sample.value
            for labels in (sample.labels,)
        }

    async def stop(self) -> None:
        """Stop the proxy as an operator does: it ends in order and in time."""
        self.last_metrics = await self.metrics()
        self.proxy.process.send_signal(signal.SIGTERM)
        assert await self.proxy.wait(seconds=STOPS_WITHIN_SECONDS) == 0

    async def readiness(self) -> int:
        """The status of the readiness probe."""
        async with aiohttp.ClientSession() as session:
            return (await session.get(f"{self._admin}/readyz")).status

    @asynccontextmanager
    async def client(
        self,
        leg: Leg,
        *,
        path: str = "/notification/realtime",
        auth: str = "empty",
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Client]:
        """A client program that is ready to start.

        `path` is for CometD's and Faye's own: the official client has its path. `cookies` are those of its browser,
        for the proxy's host.
        """
        options: dict[str, Any] = {
            "library": leg.library,
            "place": leg.place,
            "transport": leg.transport,
            "url": self.url,
            "path": path,
            "auth": auth,
            "headers": headers or {},
        }
        if leg.place == "chromium":
            assert self._browser
            jar = [{"name": name, "value": value, "url": self.url} for name, value in (cookies or {}).items()]
            options |= {"browser": self._browser.endpoint, "page": self._browser.page, "cookies": jar}
        arguments = msgspec.json.encode(options).decode()
        async with running("node", str(HERE / "node/client.mjs"), arguments) as program:
            client = Client(program)
            await client.next("ready")
            yield client
            await program.wait(seconds=10)


def store(directory: Path, values: Mapping[str, str]) -> dict[str, object]:
    """Write one file per value, as a mounted secret has them; returns the settings that say so."""
    for name, value in values.items():
        (directory / name).write_text(value, encoding="utf-8")
    return {"credentials.default.source": "stored", "credentials.default.directory": str(directory)}


@asynccontextmanager
async def staged(
    upstream: Upstream,
    settings: Mapping[str, object],
    *,
    browser: Browser | None,
    evidence: Evidence,
) -> AsyncIterator[Stage]:
    """Start the proxy; at the end stop it, as an operator does, and keep the evidence."""
    given: dict[str, object] = {
        "listen.port": 0,
        "admin.port": 0,
        "upstream.url": upstream.url,
        "gate.origins": [browser.page] if browser else [],
    } | dict(settings)
    environment = {
        f"C8Y_REALTIME_PROXY__{key.upper().replace('.', '__')}": _text(value) for key, value in given.items()
    }
    environment |= {name: value for name, value in os.environ.items() if not name.startswith("C8Y_")}
    async with running(COMMAND, "run", environment=environment) as proxy:
        ports = await _listening(proxy)
        async with tapped(ports["public"]) as tap:
            stage = Stage(proxy, tap, ports["admin"], browser)
            try:
                yield stage
                if proxy.process.returncode is None:
                    await stage.stop()
                assert not _compressed(tap.sent())
            finally:
                await proxy.kill()
                evidence.given += [(f"connection {number}", sent) for number, sent in enumerate(tap.sent())]
                evidence.given += [("stdout", bytes(proxy.stdout)), ("log", bytes(proxy.stderr))]
                evidence.given.append(("metrics", stage.last_metrics.encode()))


def _compressed(sent: Sequence[bytes]) -> bool:
    """Whether anything was compressed on its way to clients: the tap could not see secrets in it."""
    signs = (b"sec-websocket-extensions:", b"content-encoding:")
    return any(sign in connection.lower() for connection in sent for sign in signs)


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
