"""The only place that wires: collaborators, listeners, start and drain, in reading order."""

import asyncio
import errno
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from ipaddress import ip_network
from typing import Final, Self

from aiohttp import web

from proxy.config import Config, source_of
from proxy.credentials.cookie import CookieSource
from proxy.credentials.sources import CredentialSource
from proxy.credentials.stored import SecretDirectory, StoredSource
from proxy.gate.admission import Gate
from proxy.gate.crossing import Crossing
from proxy.gate.limits import Limits
from proxy.gate.peers import TrustedProxies
from proxy.operations.admin import admin_application
from proxy.operations.live import Live
from proxy.operations.metrics import Metrics
from proxy.relay.carriage import Carriage
from proxy.relay.door import Listener
from proxy.relay.front import Front
from proxy.relay.handshakes import Handshakes
from proxy.relay.pages import Page, Pages
from proxy.relay.polling import PollingRelay
from proxy.relay.websocket import WebSocketRelay
from proxy.upstream.client import Upstream


log = logging.getLogger(__name__)

_CUT_OFF_SECONDS: Final = 2.0
"""How long requests to the admin listener, and for pages, get to end once they are cancelled."""

_TLS_SECONDS: Final = 10.0
"""How long a client may take over the TLS handshake at most."""

_BACKLOG: Final = 1024
"""How many connections may wait to be accepted: a fleet of clients comes back at once."""


class CannotListen(Exception):
    """A listener could not be opened; the text names its key and the remedy."""


class Proxy:
    """One proxy: a public listener, an admin listener and what stands between, as an asynchronous context manager.

    Entering opens both listeners; leaving cuts off whatever is left. `drain` comes in between for a polite end.
    `pages` are for the demo. Raises CannotListen on entering.
    """

    def __init__(
        self, config: Config, *, pages: Mapping[str, Page] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        # The kind of source is known before anything else, since it labels every metric.
        self.metrics = Metrics(source_of(config.credentials.default) or "stored")
        self._source = _source(config, self.metrics, clock)
        self._live = Live(self.metrics)
        # One way up, without jar, redirects or limits of its own.
        self._upstream = Upstream(
            config.upstream.url,
            tls=ssl.create_default_context(cafile=config.upstream.ca_file) if config.upstream.ca_file else None,
            proxy_url=config.upstream.proxy_url,
            open_seconds=config.upstream.open_timeout_seconds,
            idle_seconds=config.upstream.poll_idle_timeout_seconds,
            max_head_bytes=config.limits.head_bytes,
        )
        self._limits = _limits(config)
        self._pages = Pages({} if pages is None else pages)
        self._listener = self._wire()
        self._started = False
        self._closing = AsyncExitStack()
        self.public_port = config.listen.port
        self.admin_port = config.admin.port

    def _wire(self) -> Listener:
        config = self._config
        carriage = Carriage(
            Handshakes(
                self._source,
                self.metrics,
                client_authn=config.handshake.client_authn,
                system_of_units=config.handshake.system_of_units,
            ),
            self._upstream,
            Crossing(
                relayed_cookies=config.upstream.relayed_cookies,
                is_clients_own=self._source.is_clients_own,
                application_key=config.upstream.application_key,
            ),
            self._limits,
            self.metrics,
            self._live,
        )
        front = Front(
            gate=Gate(
                listening_on=config.listen.host,
                hosts=config.gate.hosts,
                origins=config.gate.origins,
                relayed_cookies=config.upstream.relayed_cookies,
            ),
            metrics=self.metrics,
            trusted_proxies=TrustedProxies(map(ip_network, config.gate.trusted_proxies)),
            pages=self._pages.paths,
        )
        self._websockets = WebSocketRelay(carriage)
        self._polling = PollingRelay(carriage, smartrest=config.handshake.smartrest)
        return Listener(
            front, self._limits, websockets=self._websockets, polling=self._polling, pages=self._pages.protocol
        )

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            # Admin first: probes can be answered while the rest is not there yet.
            self.admin_port = await self._listen("admin", opened, self._serve_admin)
            for room in (self._upstream, self._websockets, self._polling, self._listener):
                opened.callback(room.close)
            opened.push_async_callback(self._pages.shutdown, _CUT_OFF_SECONDS)
            self.public_port = await self._listen("listen", opened, self._serve_clients)
            self._closing = opened.pop_all()
        self._started = True
        self._source.is_usable()  # says in the log what is wrong with stored values, before the first client does
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._closing.aclose()

    async def drain(self) -> None:
        """Turn unready, ask every connection to leave, and wait for them as long as drain.timeout_seconds says."""
        left = await self._live.drain(
            spread_seconds=self._config.drain.spread_seconds, timeout_seconds=self._config.drain.timeout_seconds
        )
        if left:
            log.warning("%d connections did not leave in time and are cut off", left)

    def _unready(self) -> str | None:
        """Why we cannot serve, or None."""
        if self._live.draining:
            return "draining"
        if not self._started:
            return "starting"
        return None if self._source.is_usable() else "no usable credential: see the log"

    async def _serve_admin(self, opened: AsyncExitStack) -> int:
        settings = self._config.admin
        application = admin_application(self.metrics.registry, is_started=lambda: self._started, unready=self._unready)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=_CUT_OFF_SECONDS)
        await runner.setup()
        opened.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, settings.host, settings.port).start()
        port: int = runner.addresses[0][1]
        return port

    async def _serve_clients(self, opened: AsyncExitStack) -> int:
        settings, tls = self._config.listen, _listener_tls(self._config)
        server = await asyncio.get_running_loop().create_server(
            self._listener,
            settings.host,
            settings.port,
            ssl=tls,
            ssl_handshake_timeout=min(self._limits.idle_seconds, _TLS_SECONDS) if tls else None,
            backlog=_BACKLOG,
        )
        opened.callback(server.close)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _listen(
        self, section: str, opened: AsyncExitStack, serve: Callable[[AsyncExitStack], Awaitable[int]]
    ) -> int:
        """Open a listener; returns its port. Raises CannotListen."""
        settings = getattr(self._config, section)
        try:
            port = await serve(opened)
        except OSError as error:
            is_name = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            key, remedy = ("host", "an address of this machine") if is_name else ("port", "a free one")
            reason = error.strerror if is_name or error.errno is None else os.strerror(error.errno)
            raise CannotListen(
                f"{section}.{key}: cannot listen on {settings.host}:{settings.port}: {reason}; choose {remedy}"
            ) from None
        log.info(
            "%s listener on %s://%s:%d",
            "public" if section == "listen" else section,
            "https" if section == "listen" and self._config.listen.tls.certificate_file else "http",
            settings.host,
            port,
        )
        return port


async def run(proxy: Proxy, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then drain. Raises CannotListen."""
    async with proxy:
        await stop.wait()
        log.info("Draining")
        await proxy.drain()


def _source(config: Config, metrics: Metrics, clock: Callable[[], float]) -> CredentialSource:
    settings = config.credentials.default
    if source_of(settings) == "cookie":
        return CookieSource()
    return StoredSource(
        SecretDirectory(settings.directory) if settings.directory else settings.platform_values,
        cooldown_seconds=settings.cooldown_seconds,
        clock=clock,
        on_load=metrics.credential_loaded,
    )


def _limits(config: Config) -> Limits:
    limits = config.limits
    return Limits(
        connections=limits.connections,
        head_bytes=limits.head_bytes,
        idle_seconds=limits.idle_seconds,
        client_payload_bytes=limits.client_payload_bytes,
        body_seconds=limits.body_seconds,
        upstream_payload_bytes=limits.upstream_payload_bytes,
        handshake_seconds=config.handshake.timeout_seconds,
        heartbeat_seconds=limits.heartbeat_seconds,
    )


def _listener_tls(config: Config) -> ssl.SSLContext | None:
    tls = config.listen.tls
    if tls.certificate_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.certificate_file, tls.key_file, password="")  # never asks a terminal
    return context
