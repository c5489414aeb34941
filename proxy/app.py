"""The life of a proxy: listeners, start, change of configuration and drain, in reading order."""

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Final, Self

from aiohttp import web

from proxy.config import OWN_SOURCES, BadConfiguration, Config, identity_of
from proxy.credentials.login import LoginSource
from proxy.credentials.sources import NoCredential
from proxy.entrance import keeps_sessions
from proxy.frontdoor.stores import StoreUnavailable
from proxy.gate.admission import Hosts
from proxy.gate.identity import NotIdentified
from proxy.operations.admin import HOSTS_KEY, Admin
from proxy.operations.live import Connection
from proxy.operations.status import CredentialStatus, StatusPage
from proxy.relay.door import Listener
from proxy.relay.pages import Pages, Routes
from proxy.relay.polling import PollingRelay
from proxy.relay.websocket import WebSocketRelay
from proxy.tls import ServerTls
from proxy.wiring import Lasting, Wiring, Worker, kinds, limits_of, wire


log = logging.getLogger(__name__)

_CUT_OFF_SECONDS: Final = 2.0
"""How long requests to the admin listener, and for pages, get to end once they are cancelled."""

_TLS_SECONDS: Final = 10.0
"""How long a client may take over the TLS handshake at most."""

_BACKLOG: Final = 1024
"""How many connections may wait to be accepted: a fleet of clients comes back at once."""

LOOK_SECONDS: Final = 5.0
"""How often credentials are looked at without being asked for, to part from connections with one that was revoked."""


class CannotListen(Exception):
    """A listener could not be opened; the text names its key and the remedy."""


class Proxy:
    """One proxy: a public listener, an admin listener and what stands between, as an asynchronous context manager.

    Entering opens both listeners; leaving cuts off whatever is left. `drain` comes in between for a polite end.
    `pages` are for the demo. Raises CannotListen on entering.
    """

    def __init__(
        self,
        config: Config,
        *,
        pages: Routes | None = None,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._lasting = Lasting(config, {} if pages is None else pages, clock)
        self.metrics = self._lasting.metrics
        self._live = self._lasting.live
        self._wiring = wire(config, self._lasting)
        self._pages = Pages(self._wiring.routes)
        carriage = self._wiring.carriage
        self._websockets = WebSocketRelay(carriage)
        self._polling = PollingRelay(carriage, smartrest=config.handshake.smartrest)
        self._listener = Listener(
            self._wiring.front,
            carriage.limits,
            websockets=self._websockets,
            polling=self._polling,
            pages=self._pages,
        )
        self._upstreams = {carriage.upstream}
        self._working: list[Worker] = []
        self._tls: ServerTls | None = None
        self._started = False
        self._look_seconds = look_seconds
        self._next_look: asyncio.TimerHandle | None = None
        self._closing = AsyncExitStack()
        self.public_port = config.listen.port
        self.admin_port = config.admin.port

    @property
    def config(self) -> Config:
        """What this serves by now."""
        return self._wiring.config

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            # Admin first: probes can be answered while the rest is not there yet.
            self.admin_port = await self._listen("admin", opened, self._serve_admin)
            await self._open_sessions(opened)
            opened.push_async_callback(self._stop_working)
            opened.callback(self._close_upstreams)
            for room in (self._lasting.arrivals, self._websockets, self._polling, self._listener):
                opened.callback(room.close)
            opened.push_async_callback(self._pages.shutdown, _CUT_OFF_SECONDS)
            await self._work(self._wiring.workers())
            self.public_port = await self._listen("listen", opened, self._serve_clients)
            self._closing = opened.pop_all()
        self._started = True
        self._look()  # says in the log what is wrong with stored values, before the first client does
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        await self._closing.aclose()

    async def drain(self) -> None:
        """Turn unready, ask every connection to leave, and wait for them as long as drain.timeout_seconds says."""
        drain = self.config.drain
        left = await self._live.drain(spread_seconds=drain.spread_seconds, timeout_seconds=drain.timeout_seconds)
        if left:
            log.warning("%d connections did not leave in time and are cut off", left)

    def secrets(self) -> Iterator[str]:
        """What this process holds now and no log may show."""
        return self._wiring.secrets()

    # Change -----------------------------------------------------------------------------------------------------------

    async def reload(self, load: Callable[[], Config]) -> None:
        """Read the configuration again, and serve by it; one that has problems changes nothing."""
        try:
            config = load()
        except BadConfiguration as bad:
            self.metrics.file_loaded("configuration", well=False)
            for problem in bad.problems:
                log.error("The configuration stays as it was: %s", problem)  # noqa: TRY400 - the texts say it all
            return
        await self.change(config)
        self.metrics.file_loaded("configuration", well=True)
        log.info("The configuration was read again")

    async def change(self, config: Config) -> None:
        """Serve by another configuration from now on.

        Connections stay, but for those of clients and credentials that it has no more. What cannot be changed without
        a restart stays as it was, and is told in the log.
        """
        config = _with_what_stays(config, self.config)
        limits = limits_of(config)
        self.metrics.know(kinds(config))
        self._lasting.shares.most = limits.client_connections
        self._lasting.rates.change(limits)
        before, self._wiring = self._wiring, wire(config, self._lasting, self._wiring)
        carriage = self._wiring.carriage
        if carriage.upstream is not before.carriage.upstream:
            before.carriage.upstream.retire()
            self._upstreams = {upstream for upstream in self._upstreams if upstream.is_in_use} | {carriage.upstream}
        self._pages.routes = self._wiring.routes
        self._websockets.change(carriage)
        self._polling.change(carriage, smartrest=config.handshake.smartrest)
        self._listener.change(self._wiring.front, limits)
        tls = config.listen.tls
        if self._tls is not None and tls.certificate_file is not None and tls.key_file is not None:
            self._tls.change(tls.certificate_file, tls.key_file, tls.client_ca_file)
        self._part_with_revoked(before)
        after = self._wiring.workers()
        await self._work(worker for worker in after if not isinstance(worker, LoginSource))
        # One at a time: the platform counts sessions. Until the new ones are there, requests wait.
        await self._retire(before)
        await self._work(after)

    async def _work(self, workers: Iterable[Worker]) -> None:
        """Have these work in the background."""
        for worker in workers:
            if worker not in self._working:
                self._working.append(worker)
                await worker.start()

    async def _retire(self, before: Wiring) -> None:
        """Let go what was configured before and is no more."""
        after = self._wiring
        for name, provision in before.provisions.items():
            now = after.provisions.get(name)
            if provision.uses is not None and (now is None or now.uses is None):
                self.metrics.used_no_longer(name)
            if now is None or now.source is not provision.source:
                provision.source.retire()
        staying = after.workers()
        for worker in [worker for worker in self._working if worker not in staying]:
            self._working.remove(worker)
            await _stopped(worker)

    async def _stop_working(self) -> None:
        await asyncio.gather(*map(_stopped, self._working))  # each may say goodbye to upstream, which takes its time

    def _close_upstreams(self) -> None:
        for upstream in self._upstreams:
            upstream.close()

    # Revocation -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at all credentials, and part from connections with one that was revoked; again in a while."""
        self._next_look = asyncio.get_running_loop().call_later(self._look_seconds, self._look)
        for provision in self._wiring.provisions.values():
            provision.source.is_usable()
        self._part_with_revoked(self._wiring)

    def _part_with_revoked(self, before: Wiring) -> None:
        """End the connections of clients and credentials that are not what they were `before`."""
        if revoked := self._live.revoke(partial(self._problem_of, before)):
            log.info("Ended %d connections whose client or credential was revoked", revoked)

    def _problem_of(self, before: Wiring, connection: Connection) -> Exception | None:
        """Why a connection may not stay; None when it may."""
        name, wiring = connection.credential, self._wiring
        if name is not None and (name not in wiring.provisions or wiring.provisions[name].source.is_revoked):
            return NoCredential("The credential was taken away: connect again")
        if wiring is before:
            return None
        if not wiring.identities.still_knows(connection.who, before.identities):
            return NotIdentified("This client was removed, or what proved it does so no longer")
        if not wiring.identities.still_permits(connection.who, name):
            return NoCredential("This client may do less than before, or with another credential: connect again")
        return None

    # Listeners --------------------------------------------------------------------------------------------------------

    def _unready(self) -> str | None:
        """Why we cannot serve, or None."""
        if self._live.draining:
            return "draining"
        if not self._started:
            return "starting"
        unusable = [name for name, each in self._wiring.provisions.items() if not each.source.is_usable()]
        if len(unusable) == len(self._wiring.provisions):
            return "no usable credential: see the log"
        return None

    def _credentials(self) -> Iterator[CredentialStatus]:
        """What the credentials are like now."""
        for name, provision in self._wiring.provisions.items():
            source, is_usable = provision.source, provision.source.is_usable()
            yield CredentialStatus(
                name,
                source.name,
                is_clients_own=source.name in OWN_SOURCES,
                is_usable=is_usable,
                complaint=source.complaint,
            )

    def _server_tls(self) -> ServerTls | None:
        """What the public listener speaks TLS with, if it does. Raises CannotListen."""
        tls = self.config.listen.tls
        if tls.certificate_file is None or tls.key_file is None:
            return None
        try:
            return ServerTls(
                tls.certificate_file,
                tls.key_file,
                client_ca=tls.client_ca_file,
                # Where there are other proofs, too, a client may come without a certificate, but not with a bad one.
                demands_certificate=identity_of(self.config) == ("mtls",),
                key="listen.tls",
                on_load=partial(self.metrics.file_loaded, "listen.tls"),
            )
        except ValueError as problem:
            raise CannotListen(str(problem)) from None

    async def _serve_admin(self, opened: AsyncExitStack) -> int:
        settings = self.config.admin
        admin = Admin(
            self.metrics.registry,
            Hosts(settings.hosts, listening_on=settings.host, key=HOSTS_KEY, any_address=True),
            is_started=lambda: self._started,
            unready=self._unready,
            status=StatusPage(
                self.metrics.history,
                self._live,
                credentials=self._credentials,
                unready=self._unready,
                secrets=self.secrets,
            ),
        )
        runner = web.ServerRunner(admin.server(), shutdown_timeout=_CUT_OFF_SECONDS)
        await runner.setup()
        opened.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, settings.host, settings.port).start()
        port: int = runner.addresses[0][1]
        return port

    async def _serve_clients(self, opened: AsyncExitStack) -> int:
        settings = self.config.listen
        self._tls = self._server_tls()
        tls = None if self._tls is None else self._tls.context
        server = await asyncio.get_running_loop().create_server(
            self._listener,
            settings.host,
            settings.port,
            ssl=tls,
            ssl_handshake_timeout=min(self.config.limits.idle_seconds, _TLS_SECONDS) if tls else None,
            backlog=_BACKLOG,
        )
        opened.callback(server.close)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _open_sessions(self, opened: AsyncExitStack) -> None:
        """Look after the sessions of those who sign in, where anybody does. Raises CannotListen."""
        sessions = self._lasting.reception.sessions
        if sessions is None:
            return
        opened.push_async_callback(sessions.stop)
        try:
            await sessions.start()
        except StoreUnavailable as problem:
            raise CannotListen(str(problem)) from None

    async def _listen(
        self, section: str, opened: AsyncExitStack, serve: Callable[[AsyncExitStack], Awaitable[int]]
    ) -> int:
        """Open a listener; returns its port. Raises CannotListen."""
        settings = getattr(self.config, section)
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
            "https" if section == "listen" and self.config.listen.tls.certificate_file else "http",
            settings.host,
            port,
        )
        return port


async def _stopped(worker: Worker) -> None:
    """Stop something; that it had failed is no reason for others not to be stopped, or started."""
    try:
        await worker.stop()
    except Exception:
        log.exception("What worked in the background had ended by a fault of ours")


def _with_what_stays(config: Config, was: Config) -> Config:
    """A configuration with what only a restart changes as it was."""
    stays: dict[str, object] = {}
    if config.admin != was.admin:
        stays["admin"] = was.admin
    if config.frontdoor != was.frontdoor or keeps_sessions(config) is not keeps_sessions(was):
        stays |= {"frontdoor": was.frontdoor, "credentials": was.credentials, "gate": was.gate}
    if _socket(config) != _socket(was):
        stays["listen"] = was.listen
    for section in stays:
        log.warning("%s stays as it was until the proxy is started again", section)
    return config.model_copy(update=stays)


def _socket(config: Config) -> tuple[object, ...]:
    """What the public listener was opened with, and keeps."""
    listen = config.listen
    speaks_tls, asks = listen.tls.certificate_file is not None, listen.tls.client_ca_file is not None
    return listen.host, listen.port, speaks_tls, asks, identity_of(config) == ("mtls",)


async def run(proxy: Proxy, stop: asyncio.Event, reread: asyncio.Event, load: Callable[[], Config]) -> None:
    """Serve until `stop` is set, then drain; whenever `reread` is, serve by what `load` makes of the configuration.

    Raises CannotListen.
    """
    async with proxy:
        reading = asyncio.get_running_loop().create_task(_read_again(proxy, reread, load))
        try:
            await stop.wait()
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        log.info("Draining")
        await proxy.drain()


async def _read_again(proxy: Proxy, reread: asyncio.Event, load: Callable[[], Config]) -> None:
    while await reread.wait():
        reread.clear()
        try:
            await proxy.reload(load)
        except Exception:
            proxy.metrics.file_loaded("configuration", well=False)
            log.exception("The configuration was not taken over by a fault of ours")
