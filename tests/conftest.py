"""What all tests share: a proxy started through its production entry, in front of the simulator."""

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp.web import Response
from hypothesis import settings

from proxy.app import Proxy
from proxy.config import PREFIX, Config, load
from proxy.demo.simulator import Simulator
from proxy.relay.pages import Page, Routes, Visit
from tests.ports import unused_ports


settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")

PASSWORD = "canary-Zm9vYmFy"  # what must never be seen where a client, a log or a scraper looks
VALUES = MappingProxyType({"C8Y_TENANT": "t0815", "C8Y_USER": "service", "C8Y_PASSWORD": PASSWORD})

CLIENT_ID_KEY_FILE = Path(__file__).parent / "client-id-key"  # a secret of tests, which is none

EVERYTHING = MappingProxyType({"subscribe": ["/**"], "publish": ["/**"], "call": ["/service/**"]})
"""A grant of all that there is."""

ENDING_SECONDS = 5
"""What the proxy needs at most to end, beyond drain.accept_seconds and drain.timeout_seconds: see docs/drain.md."""

LONGEST_EXIT_SECONDS = 20 + ENDING_SECONDS
"""The same with the longest drain.timeout_seconds that there can be, beyond drain.accept_seconds."""

Message = dict[str, Any]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What carries bytes is tested on both event loops that the proxy runs on, the rest on asyncio's own."""
    loops = {"asyncio": asyncio.new_event_loop}
    if item.path.parent.name in {"relay", "upstream"} or item.path.name in {
        "test_app.py",
        "test_reload.py",
        "test_tls.py",
    }:
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two processes more than there are cores, since a test often waits for time to pass; each takes 5 s to collect."""
    return (os.cpu_count() or 1) + 2


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was collected stays until the end: it takes the collector of garbage 0.2 s to look at it, which a test with
    a short time to keep would have to wait for.
    """
    gc.collect()
    gc.freeze()


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that serves, and a client session for talking to it (without any manners of its own)."""

    proxy: Proxy
    client: aiohttp.ClientSession
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.proxy.public_port}"

    @property
    def admin_url(self) -> str:
        return f"http://localhost:{self.proxy.admin_port}"

    def count(self, name: str, **labels: str) -> float:
        """The value of one series, which must exist."""
        value = self.proxy.metrics.registry.get_sample_value(f"c8y_realtime_proxy_{name}", labels)
        assert value is not None, f"no series {name} {labels}"
        return value

    def crossed(self, transport: str, direction: str) -> tuple[float, float]:
        """How many payloads, and how many bytes of them, were relayed so far."""
        labels = {"transport": transport, "direction": direction}
        return self.count("payloads_total", **labels), self.count("bytes_total", **labels)

    def handshakes(self, transport: str = "websocket", source: str = "stored") -> dict[tuple[str, str], float]:
        """The handshakes that ended so far, by outcome and reason."""
        return {
            (sample.labels["outcome"], sample.labels["reason"]): sample.value
            for family in self.proxy.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "c8y_realtime_proxy_handshakes_total"
            and sample.value
            and sample.labels["transport"] == transport
            and sample.labels["source"] == source
        }

    def upgrades(self) -> dict[tuple[str, str], float]:
        """The upgrades that ended so far, by outcome and reason."""
        return {
            (sample.labels["outcome"], sample.labels["reason"]): sample.value
            for family in self.proxy.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "c8y_realtime_proxy_upgrades_total" and sample.value
        }

    def socket(
        self, path: str = "/notification/realtime", **options: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientWebSocketResponse]:
        """An open WebSocket through the proxy."""
        return self.client.ws_connect(f"{self.url}{path}", autoclose=False, max_msg_size=0, **options)

    def post(
        self, batch: object, path: str = "/notification/realtime/", **options: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """A long-polling POST through the proxy; bytes go as they are."""
        body = batch if isinstance(batch, bytes) else msgspec.json.encode(batch)
        headers = {"Content-Type": "application/json"} | dict(options.pop("headers", {}))
        return self.client.post(f"{self.url}{path}", data=body, headers=headers, **options)


def configured(
    upstream: str, settings: Mapping[str, object] | None = None, values: Mapping[str, str] = VALUES
) -> Config:
    """A configuration as a user makes it: by an environment.

    `settings` maps dotted keys to values; `values` are the platform's own variables.
    """
    given: dict[str, object] = {"listen.port": 0, "admin.port": 0, "drain.timeout_seconds": 5} | dict(settings or {})
    given.setdefault("gate.client_id_key_file", str(CLIENT_ID_KEY_FILE))
    environment = {
        PREFIX + key.upper().replace(".", "__"): value
        if isinstance(value, str)
        else msgspec.json.encode(value, enc_hook=dict).decode()
        for key, value in given.items()
    }
    return load(None, environment | {"C8Y_BASEURL": upstream} | dict(values))


@asynccontextmanager
async def running(
    upstream: str,
    settings: Mapping[str, object] | None = None,
    *,
    values: Mapping[str, str] = VALUES,
    pages: Routes | None = None,
    **more: Any,
) -> AsyncIterator[Running]:
    """A proxy in front of `upstream`, with settings and values as `configured` has them."""
    config = configured(upstream, settings, values)
    connector = aiohttp.TCPConnector(limit=0, ssl=more.pop("client_tls", True))
    async with (
        Proxy(config, pages=pages, **more) as proxy,
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as client,
    ):
        yield Running(proxy, client, "https" if config.listen.tls.key_file else "http")


def pages_of(**answers: Callable[[], Response]) -> Routes:
    """Pages that anybody may read, each by what its path is called; `root` is that of `/`."""

    def page(make: Callable[[], Response]) -> Page:
        async def serve(_: Visit) -> Response:
            return make()

        return Page(serve)

    return {("GET", f"/{'' if name == 'root' else name}"): page(make) for name, make in answers.items()}


async def until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    """Wait until this is so, of which nothing tells us. Raises TimeoutError if it does not come to that."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.001)


@pytest.fixture
def unused_tcp_port() -> Iterator[int]:
    """In place of pytest-asyncio's, which lets go of the port before it is used."""
    with unused_ports() as port:
        yield port


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    """A simulated tenant that admits the stored values."""
    async with Simulator(password=PASSWORD) as simulator:
        yield simulator


@pytest.fixture
async def proxied(upstream: Simulator) -> AsyncIterator[Running]:
    """A proxy with stored values and default settings in front of the simulated tenant."""
    async with running(upstream.url) as proxy:
        yield proxy


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """All that was logged since the test began to be set up.

    A fixture that looks at the log after its `yield` needs this: `caplog.records` and `caplog.text` hold what came in
    the phase of the test that runs, and are empty once it is over.
    """
    return [record for phase in ("setup", "call", "teardown") for record in caplog.get_records(phase)]


@pytest.fixture(autouse=True)
def clean_log(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """A test that logs an error fails, unless it says that it does; no log line ever holds the password, nor what the
    test or a fixture of its own adds to this list.
    """
    caplog.set_level(logging.DEBUG)
    hidden = [PASSWORD]
    yield hidden
    records = logged(caplog)
    lines = [caplog.handler.format(record) for record in records]
    assert [secret for secret in hidden if any(secret in line for line in lines)] == []
    if request.node.get_closest_marker("logs_errors") is None:
        assert [record.getMessage() for record in records if record.levelno >= logging.ERROR] == []


def handshake(**more: Any) -> Message:
    """A handshake as CometD's client sends it."""
    return {
        "id": "1",
        "version": "1.0",
        "minimumVersion": "1.0",
        "channel": "/meta/handshake",
        "supportedConnectionTypes": ["websocket", "long-polling"],
        "advice": {"timeout": 60000, "interval": 0},
    } | more


async def exchange(socket: aiohttp.ClientWebSocketResponse, batch: object) -> list[Message]:
    """Send a batch and wait for the next payload."""
    await socket.send_str(msgspec.json.encode(batch).decode())
    return await receive(socket)


async def receive(socket: aiohttp.ClientWebSocketResponse) -> list[Message]:
    """The next payload, which must be a text frame."""
    frame = await socket.receive(timeout=10)
    assert frame.type is aiohttp.WSMsgType.TEXT, frame
    decoded: list[Message] = msgspec.json.decode(frame.data)
    return decoded


async def closed(socket: aiohttp.ClientWebSocketResponse) -> tuple[int, str]:
    """Wait for the close frame; returns its code and reason."""
    frame = await socket.receive(timeout=10)
    assert frame.type is aiohttp.WSMsgType.CLOSE, frame
    return frame.data, frame.extra or ""


Opened = Callable[[], AbstractAsyncContextManager[Running]]
