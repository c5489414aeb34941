"""Cumulocity's real-time endpoint in miniature: the demo's upstream, and the honest one of the tests.

It speaks Bayeux over WebSocket and long polling as the platform is documented to: which credential it wants on
which transport, how it denies a handshake, how it holds a connect. Nothing here knows of the proxy.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import TracebackType
from typing import Self

from aiohttp import WSCloseCode, web

from proxy.demo.accounts import Account, Accounts
from proxy.demo.devices import Devices
from proxy.demo.faults import Fault
from proxy.demo.listening import abort_connections, listen, url_of
from proxy.demo.logins import Logins, SessionRules
from proxy.demo.platform import device_routes, routes
from proxy.demo.polling import poll
from proxy.demo.sessions import Sessions
from proxy.demo.single_sign_on import SignOns, SingleSignOn
from proxy.demo.sockets import CLOSE_SECONDS, converse
from proxy.demo.tenant import Request, Tenant


__all__ = [
    "ENDINGS",
    "PATHS",
    "Account",
    "Accounts",
    "Fault",
    "Request",
    "SessionRules",
    "Simulator",
    "SingleSignOn",
]

PATHS = (
    "/notification/realtime",
    "/cep/realtime",
    "/notification/operations",
    "/devicecontrol/notifications",
    "/cep/notifications",
)
ENDINGS = ("", "/", "/handshake", "/connect", "/disconnect")

_BODY_LIMIT = 32 * 2**20  # above the 16 MB that the platform documents as its limit of a document
_HEADER_LIMIT = 64 * 2**10  # cookies of a single sign-on outgrow aiohttp's default of 8190 bytes


class Simulator(Tenant):
    """One tenant with one user, listening. Start and stop it, publish into it, look at what reached it.

    `hold_seconds` is how long a connect waits, `keepalive_seconds` how often a space is sent meanwhile, and
    `max_interval_seconds` how long a client may stay away between two connects. `totp` is the base32 secret of the
    user's second factor, `others` are more users, also of other tenants; `sso` has people of the first tenant sign on
    at an identity provider as well. `clock` gives the Unix time by which tokens and one-time codes live. With
    `device_ssl_context`, which has to demand certificates, devices get tokens at `device_url`.
    """

    def __init__(
        self,
        *,
        tenant: str = "t0815",
        user: str = "service",
        password: str = "correct-horse",  # noqa: S107 - the key of an invented house
        tfa: str | None = None,
        tokens: Collection[str] = (),
        sessions: Mapping[str, str] | None = None,
        hold_seconds: float = 5400.0,
        keepalive_seconds: float = 600.0,
        max_interval_seconds: float = 10.0,
        session_cookie: bool = True,
        totp: str | None = None,
        others: Collection[Account] = (),
        rules: SessionRules | None = None,
        sso: SingleSignOn | None = None,
        clock: Callable[[], float] = time.time,
        device_token_seconds: float = 3600.0,
        ssl_context: ssl.SSLContext | None = None,
        device_ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(
            accounts=Accounts(
                tenant=tenant,
                user=user,
                password=password,
                tfa=tfa,
                tokens=tokens,
                sessions=sessions or {},
                totp=totp,
                others=others,
            ),
            logins=Logins(rules=rules or SessionRules(), clock=clock),
            sso=sso,
            sign_ons=SignOns(clock=clock),
            devices=Devices(tenant=tenant, token_seconds=device_token_seconds, clock=clock),
            sessions=Sessions(hold_seconds=hold_seconds, max_interval_seconds=max_interval_seconds),
            keepalive_seconds=keepalive_seconds,
            session_cookie=session_cookie,
        )
        self._ssl_context = ssl_context
        self._device_ssl_context = device_ssl_context
        self._runners: list[web.AppRunner] = []
        self._address: tuple[str, int] | None = None
        self._device_address: tuple[str, int] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, host: str = "localhost", port: int = 0, *, device_port: int = 0) -> None:
        """Listen on one address of `host`; port 0 takes a free one. A stopped simulator may start again."""
        app = web.Application(client_max_size=_BODY_LIMIT)
        for path in (path + ending for path in PATHS for ending in ENDINGS):
            app.router.add_route("GET", path, partial(converse, self))
            app.router.add_route("POST", path, partial(poll, self))
        app.router.add_routes(routes(self))
        self._address = await self._serve(app, host, port, ssl_context=self._ssl_context)
        if self._device_ssl_context is not None:
            app = web.Application()
            app.router.add_routes(device_routes(self))
            self._device_address = await self._serve(app, host, device_port, ssl_context=self._device_ssl_context)

    async def stop(self) -> None:
        """Say goodbye on open WebSockets, abort every other connection, and forget all sessions."""
        runners, self._runners = self._runners, []
        if not runners:
            return
        for site in (site for runner in runners for site in tuple(runner.sites)):
            await site.stop()
        async with asyncio.TaskGroup() as group:
            for opened in tuple(self.sockets):
                group.create_task(opened.close(code=WSCloseCode.GOING_AWAY))
        abort_connections(runners)
        self.forget_sessions()
        for runner in runners:
            await runner.cleanup()

    @property
    def port(self) -> int:
        """The port listened on; after a stop, the one listened on last."""
        return self._listened_on()[1]

    @property
    def url(self) -> str:
        """Scheme, host and port, as a client would configure its tenant."""
        return url_of("https" if self._ssl_context else "http", *self._listened_on())

    @property
    def device_url(self) -> str:
        """Scheme, host and port of the listener for devices."""
        if self._device_address is None:
            raise RuntimeError("no listener for devices has been started")
        return url_of("https", *self._device_address)

    def drop_all(self) -> None:
        """Abort every connection, as a pulled cable does. Sessions live on for their clients to come back to."""
        abort_connections(self._runners)

    async def _serve(
        self, app: web.Application, host: str, port: int, *, ssl_context: ssl.SSLContext | None
    ) -> tuple[str, int]:
        listening = await listen(host, port)
        # Without handler_cancellation a held connect would outlive its client.
        runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=CLOSE_SECONDS,
            max_line_size=_HEADER_LIMIT,
            max_field_size=_HEADER_LIMIT,
        )
        self._runners.append(runner)
        await runner.setup()
        await web.SockSite(runner, listening, ssl_context=ssl_context).start()
        return host, listening.getsockname()[1]

    def _listened_on(self) -> tuple[str, int]:
        if self._address is None:
            raise RuntimeError("the simulator has not been started")
        return self._address
