"""The life of a proxy: listeners, start, change of configuration and drain, in reading order."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from aiohttp import web

from proxy.config import OWN_SOURCES, BadConfiguration, Config, identity_of
from proxy.credentials.device import DeviceSource
from proxy.credentials.login import LoginSource
from proxy.credentials.sources import NoCredential
from proxy.entrance import keeps_sessions
from proxy.frontdoor.stores import StoreUnavailable
from proxy.gate.admission import Hosts, is_loopback
from proxy.gate.identity import NotIdentified
from proxy.listening import PathTaken, unix_socket
from proxy.operations.admin import HOSTS_KEY, Admin
from proxy.operations.live import Connection
from proxy.operations.status import CredentialStatus, StatusPage, state_of
from proxy.operations.supervision import Supervision
from proxy.relay.door import Listener
from proxy.relay.pages import Pages, Routes
from proxy.relay.polling import PollingRelay
from proxy.relay.websocket import WebSocketRelay
from proxy.tls import ServerTls
from proxy.wiring import Lasting, Wiring, Worker, kinds, limits_of, vitality_of, wire


log = logging.getLogger(__name__)

_CUT_OFF_SECONDS: Final = 2.0
"""How long requests for pages get to end once they are cancelled."""

_ADMIN_CUT_OFF_SECONDS: Final = 0.5
"""As long for those to the admin listener, which are answered at once: who is there still has not said all."""

_TLS_SECONDS: Final = 10.0
"""How long a client may take over the TLS handshake at most."""

_BACKLOG: Final = 1024
"""How many connections may wait to be accepted: a fleet of clients comes back at once."""

_ASKING_SECONDS: Final = 1.0
"""How long whoever has just connected may take to ask for something, where our successor would have answered it."""

LOOK_SECONDS: Final = 5.0
"""How often credentials are looked at without being asked for, to part from connections with one that was revoked."""


class CannotListen(Exception):
    """A listener could not be opened; the text names its key and the remedy."""


class Proxy:
    """One proxy: a public listener, an admin listener and what stands between, as an asynchronous context manager.

    Entering opens both listeners; leaving cuts off whatever is left. `drain` comes in between for a polite end.
    `pages` are for the demo. `handed_over` are listening sockets that take the place of those of `listen` and `admin`;
    `supervision` is told how it goes, and `quit_now` is called for who asks by the admin socket. Raises CannotListen on
    entering.
    """

    def __init__(
        self,
        config: Config,
        *,
        pages: Routes | None = None,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
        handed_over: Mapping[str, socket.socket] | None = None,
        supervision: Supervision | None = None,
        quit_now: Callable[[], None] | None = None,
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
        self._admin: list[web.ServerRunner] = []
        self._handed_over = handed_over or {}
        self.supervision = supervision or Supervision()
        self._quit_now = quit_now
        self._tls: ServerTls | None = None
        self._server: asyncio.Server | None = None
        self._started = False
        self._leaving = False
        self._is_told_to_quit = asyncio.Event()
        self._look_seconds = look_seconds
        self._next_look: asyncio.TimerHandle | None = None
        self._closing = AsyncExitStack()
        self.public_port = config.listen.port
        self.admin_port = config.admin.port
        self.metrics.ask(
            is_ready=lambda: self._unready() is None,
            connections=lambda: self._listener.connections,
            connections_limit=lambda: self.config.limits.connections,
            expiries=self._expiries,
            states=lambda: ((each.name, state_of(each, self.metrics.history)) for each in self._credentials()),
        )

    @property
    def config(self) -> Config:
        """What this serves by now."""
        return self._wiring.config

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            opened.callback(self.supervision.close)
            # Admin first: probes can be answered while the rest is not there yet.
            self.admin_port = await self._serve_admin(opened)
            await self._open_sessions(opened)
            opened.push_async_callback(self._stop_working)
            opened.callback(self._close_upstreams)
            for room in (self._lasting.arrivals, self._websockets, self._polling, self._listener):
                opened.callback(room.close)
            opened.push_async_callback(self._pages.shutdown, _CUT_OFF_SECONDS)
            await self._work(self._wiring.workers())
            self.public_port = await self._serve_clients(opened)
            self._closing = opened.pop_all()
        self._started = True
        self._look()  # says in the log what is wrong with stored values, before the first client does
        self.supervision.ready()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        await self._closing.aclose()

    async def drain(self) -> None:
        """Turn unready, go on for as long as drain.accept_seconds says, then ask every connection to leave, and wait
        for them as long as drain.timeout_seconds says. Whoever asks to quit by the admin socket needs us no longer:
        that ends the first part. A listening socket that was handed over is given up before all that.
        """
        drain = self.config.drain
        seconds = drain.accept_seconds
        self._leaving = True
        self.supervision.stopping()
        self.supervision.status("draining")
        log.info("Draining")
        if "listen" in self._handed_over and self._server is not None:
            # Who comes from now on waits in the queue of the socket, which is not ours alone, for our successor. Who
            # came just before that has yet to say what it wants, and is served.
            self._server.close()
            seconds = max(seconds, _ASKING_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_told_to_quit.wait()
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
        self._watch_over_clients()
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
        self.supervision.status(self._unready() or "serving")

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
        if self._leaving:
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

    def _expiries(self) -> Iterator[tuple[str, float]]:
        """When each certificate of ours is over, in Unix time; 0 where there is none."""
        yield "listen.tls", 0.0 if self._tls is None else self._tls.expires_at()
        for name, provision in self._wiring.provisions.items():
            if isinstance(provision.source, DeviceSource):
                yield f"credentials.{name}", provision.source.expires_at

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
        """Open the admin listener, and its unix socket if it has one; returns its port. Raises CannotListen."""
        settings, at_path = self.config.admin, None
        if settings.socket is not None:
            with _telling("admin.socket", settings.socket):
                at_path = opened.enter_context(unix_socket(settings.socket))
        opened.push_async_callback(self._close_admin)
        runner = await self._admin_runner(quit_now=None)
        with _telling("admin", settings.host, settings.port):
            if (given := self._handed_over.get("admin")) is not None:
                await web.SockSite(runner, _agreed("admin", given, settings.host, None)).start()
            else:
                await web.TCPSite(runner, settings.host, settings.port).start()
        port = _port_of(runner.addresses[0])
        log.info("admin listener on http://%s:%d", settings.host, port)
        if at_path is not None:
            runner = await self._admin_runner(quit_now=self._quit)
            await web.SockSite(runner, at_path).start()
            log.info("admin listener on %s", settings.socket)
        return port

    async def _admin_runner(self, *, quit_now: Callable[[], None] | None) -> web.ServerRunner:
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
            quit_now=quit_now,
        )
        runner = web.ServerRunner(admin.server(), shutdown_timeout=_ADMIN_CUT_OFF_SECONDS)
        await runner.setup()
        self._admin.append(runner)
        return runner

    async def _close_admin(self) -> None:
        """Both at once: nobody is told by one of them that we are there, and by the other that we are gone."""
        await asyncio.gather(*(runner.cleanup() for runner in self._admin))

    def _quit(self) -> None:
        self._is_told_to_quit.set()
        if self._quit_now is not None:
            self._quit_now()

    async def _serve_clients(self, opened: AsyncExitStack) -> int:
        """Open the public listener; returns its port, 0 for a unix socket. Raises CannotListen."""
        settings = self.config.listen
        self._tls = self._server_tls()
        tls = None if self._tls is None else self._tls.context
        listening = self._handed_over.get("listen")
        if listening is not None:
            _agreed("listen", listening, settings.host, settings.socket)
        elif settings.socket is not None:
            with _telling("listen.socket", settings.socket):
                listening = opened.enter_context(unix_socket(settings.socket))
        # Not create_unix_server for a path: from Python 3.13 on, that removes it on closing, which is for us, or for
        # whoever handed it over, to do: no successor could be reached there.
        where = {"sock": listening} if listening else {"host": settings.host, "port": settings.port}
        with _telling("listen", settings.host, settings.port):
            self._server = await asyncio.get_running_loop().create_server(
                self._listener,
                **where,
                ssl=tls,
                ssl_handshake_timeout=min(self.config.limits.idle_seconds, _TLS_SECONDS) if tls else None,
                backlog=_BACKLOG,
            )
        opened.callback(self._server.close)
        self._watch_over_clients()
        address = self._server.sockets[0].getsockname()
        if settings.socket is not None:
            log.info("public listener on %s", address)
            return 0
        host, port = settings.host, _port_of(address)
        if listening is not None:
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
        log.info("public listener on %s://%s:%d", "https" if tls else "http", host, port)
        return port

    def _watch_over_clients(self) -> None:
        """Have clients noticed that vanish, from the next one on: what is accepted inherits that."""
        vitality = vitality_of(self.config)
        for listening in () if self._server is None else self._server.sockets:
            vitality.watch(listening)

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


@contextlib.contextmanager
def _telling(section: str, host: str | Path, port: int | None = None) -> Iterator[None]:
    """Say what is wrong with a listener by its key. Raises CannotListen."""
    try:
        yield
    except PathTaken as problem:
        raise CannotListen(f"{section}: {problem}") from None
    except OSError as error:
        # From Python 3.13 on, asyncio has words of its own, and no number, for an address that is not this machine's.
        is_name = isinstance(error, socket.gaierror) or error.errno in {errno.EADDRNOTAVAIL, None}
        reason = (error.strerror if is_name or error.errno is None else os.strerror(error.errno)) or error
        if port is None:
            remedy = "expected a directory that this user may write to, and a path of no more than 107 bytes"
            raise CannotListen(f"{section}: cannot listen on {host}: {reason}; {remedy}") from None
        key, remedy = ("host", "an address of this machine") if is_name else ("port", "a free one")
        if error.errno == errno.EACCES:
            remedy = "one of 1024 or above, which takes no right, or have systemd hand the socket over"
        raise CannotListen(f"{section}.{key}: cannot listen on {host}:{port}: {reason}; choose {remedy}") from None


def _agreed(section: str, given: socket.socket, host: str, path: Path | None) -> socket.socket:
    """A socket that was handed over, if it is what the configuration was judged by. Raises CannotListen."""
    if given.family == socket.AF_UNIX:
        if path is None:
            remedy = "say so in listen.socket" if section == "listen" else "expected a port; admin.socket is our own"
            raise CannotListen(f"{section}: the socket that is handed over is a unix socket: {remedy}")
        return given
    if path is not None:
        raise CannotListen(f"{section}.socket: the socket that is handed over is no unix socket: leave this out")
    address = str(given.getsockname()[0])
    if is_loopback(host) and not is_loopback(address):
        raise CannotListen(
            f"{section}.host: the socket that is handed over listens on {address}, beyond loopback: say so here, since "
            "the rest of the configuration is judged by it"
        )
    return given


def _port_of(address: Any) -> int:
    """The port of an address, 0 for that of a unix socket."""
    return int(address[1]) if isinstance(address, tuple) else 0


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
    return listen.host, listen.port, listen.socket, speaks_tls, asks, identity_of(config) == ("mtls",)


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
        await proxy.drain()


async def _read_again(proxy: Proxy, reread: asyncio.Event, load: Callable[[], Config]) -> None:
    while await reread.wait():
        reread.clear()
        proxy.supervision.reloading()
        try:
            await proxy.reload(load)
        except Exception:
            proxy.metrics.file_loaded("configuration", well=False)
            log.exception("The configuration was not taken over by a fault of ours")
        proxy.supervision.ready()
