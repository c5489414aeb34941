"""The only place that wires: collaborators, listeners, start and drain, in reading order."""

import asyncio
import errno
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from aiohttp import web

from proxy.config import Config, GrantSettings, identity_of, secrets_in, source_of
from proxy.credentials.cookie import CookieSource
from proxy.credentials.sources import CredentialSource
from proxy.credentials.stored import SecretDirectory, StoredSource
from proxy.gate.admission import Gate, Hosts
from proxy.gate.clients import DEFAULT_CREDENTIAL
from proxy.gate.crossing import Crossing
from proxy.gate.endpoints import ENDPOINTS
from proxy.gate.identity import Entry, Identities
from proxy.gate.keys import digest_of
from proxy.gate.limits import Limits, Shares
from proxy.gate.peers import TrustedProxies
from proxy.gate.policy import DEFAULT, Grant, Policy
from proxy.gate.tokens import KeySet, Tokens
from proxy.operations.admin import HOSTS_KEY, Admin
from proxy.operations.live import Live
from proxy.operations.metrics import Metrics
from proxy.operations.uses import Uses
from proxy.relay.carriage import Carriage
from proxy.relay.door import Listener
from proxy.relay.front import Front
from proxy.relay.handshakes import Handshakes
from proxy.relay.pages import Page, Pages
from proxy.relay.polling import PollingRelay
from proxy.relay.websocket import WebSocketRelay
from proxy.upstream.client import Upstream
from proxy.upstream.jwks import KeysAtUrl, KeysInFile


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
        self._uses = None if self._source.is_clients_own else Uses(DEFAULT_CREDENTIAL, clock)
        if self._uses is not None:
            self.metrics.using(DEFAULT_CREDENTIAL, self._uses.count)
        # One way up, without jar, redirects or limits of its own.
        self._upstream = Upstream(
            config.upstream.url,
            tls=_trusting(config.upstream.ca_file),
            proxy_url=config.upstream.proxy_url,
            open_seconds=config.upstream.open_timeout_seconds,
            idle_seconds=config.upstream.poll_idle_timeout_seconds,
            max_head_bytes=config.limits.head_bytes,
        )
        self._limits = _limits(config)
        self._token_keys = _token_keys(config)
        self._identities = _identities(config, self._token_keys)
        self._pages = Pages({} if pages is None else pages)
        self._listener = self._wire()
        self._started = False
        self._closing = AsyncExitStack()
        self.public_port = config.listen.port
        self.admin_port = config.admin.port

    def _wire(self) -> Listener:
        config = self._config
        carriage = Carriage(
            self._identities,
            Handshakes(
                self._source,
                self.metrics,
                self._limits,
                client_authn=config.handshake.client_authn,
                system_of_units=config.handshake.system_of_units,
                client_id_keys=_client_id_keys(config),
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
            Shares(config.limits.client_connections),
            self._uses,
        )
        front = Front(
            gate=Gate(
                listening_on=config.listen.host,
                hosts=config.gate.hosts,
                origins=config.gate.origins,
                relayed_cookies=config.upstream.relayed_cookies,
            ),
            identify=self._identities.identify,
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
            if isinstance(self._token_keys, KeysAtUrl):
                await opened.enter_async_context(self._token_keys)
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

    def secrets(self) -> Iterator[str]:
        """What this process holds now and no log may show."""
        yield from self._source.secrets()
        if (url := self._config.upstream.proxy_url) and (password := urlsplit(url).password):
            yield from (password, unquote(password))

    def _unready(self) -> str | None:
        """Why we cannot serve, or None."""
        if self._live.draining:
            return "draining"
        if not self._started:
            return "starting"
        return None if self._source.is_usable() else "no usable credential: see the log"

    async def _serve_admin(self, opened: AsyncExitStack) -> int:
        settings = self._config.admin
        admin = Admin(
            self.metrics.registry,
            Hosts(settings.hosts, listening_on=settings.host, key=HOSTS_KEY, any_address=True),
            is_started=lambda: self._started,
            unready=self._unready,
        )
        runner = web.ServerRunner(admin.server(), shutdown_timeout=_CUT_OFF_SECONDS)
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


TokenKeys = KeysInFile[KeySet] | KeysAtUrl[KeySet]


def _token_keys(config: Config) -> TokenKeys | None:
    """Where the keys come from that tokens of clients are judged by; None where none are."""
    jwt = config.gate.jwt
    if jwt.jwks_url is not None:
        return KeysAtUrl(jwt.jwks_url, KeySet, tls=_trusting(jwt.ca_file))
    return KeysInFile(jwt.jwks_file, KeySet) if jwt.jwks_file is not None else None


def _identities(config: Config, token_keys: TokenKeys | None, *, clock: Callable[[], float] = time.time) -> Identities:
    """How clients are identified. `clock` gives Unix time, which certificates and tokens go by."""
    jwt = config.gate.jwt
    common = {endpoint: Policy([grant]) for endpoint, grant in DEFAULT.items()}
    if config.gate.grants is not None:
        common = _policies(config.gate.grants)
    return Identities(
        identity_of(config),
        (
            Entry(
                client.name,
                digest=digest_of(client.key) if client.key else None,
                certificates=frozenset(client.certificates),
                subjects=frozenset(client.subjects),
                credential=client.credential,
                policies=common if client.grants is None else _policies(client.grants),
            )
            for client in config.clients
        ),
        policies=common,
        tokens=Tokens(token_keys, issuer=jwt.issuer or "", audience=jwt.audience or "", clock=clock)
        if token_keys is not None
        else None,
        clock=clock,
    )


def _client_id_keys(config: Config) -> list[bytes]:
    """What clientIds are tied to clients with, the one in use first."""
    file = config.gate.client_id_key_file
    return [] if file is None else secrets_in(file)


def _policies(grants: Iterable[GrantSettings]) -> dict[str, Policy]:
    """What is granted, by endpoint."""
    return {
        endpoint: Policy(
            Grant(grant.subscribe, grant.publish, grant.call) for grant in grants if endpoint in grant.endpoints
        )
        for endpoint in ENDPOINTS
    }


def _limits(config: Config) -> Limits:
    limits = config.limits
    return Limits(**limits.model_dump(), handshake_seconds=config.handshake.timeout_seconds)


def _listener_tls(config: Config) -> ssl.SSLContext | None:
    tls = config.listen.tls
    if tls.certificate_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.certificate_file, tls.key_file, password="")  # never asks a terminal
    if tls.client_ca_file is not None:
        context.load_verify_locations(tls.client_ca_file)
        # Where there are other proofs, too, a client may come without a certificate, but not with a bad one.
        context.verify_mode = ssl.CERT_REQUIRED if identity_of(config) == ("mtls",) else ssl.CERT_OPTIONAL
    return context


def _trusting(authorities: Path | None) -> ssl.SSLContext | None:
    """What trusts these certificate authorities alone; None for the system's."""
    return None if authorities is None else ssl.create_default_context(cafile=authorities)
