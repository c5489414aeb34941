"""The front door, as one configuration has it. Nothing is opened or started here."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from secrets import token_bytes
from typing import Final
from urllib.parse import urlsplit

from proxy import files
from proxy.config import Config, source_of
from proxy.credentials.session import TICKET_COOKIE
from proxy.frontdoor.calls import LOGIN, CookieCalls, Means, SessionCalls
from proxy.frontdoor.destinations import destination
from proxy.frontdoor.pages import Pages
from proxy.frontdoor.sealing import Sealing
from proxy.frontdoor.sessions import Sessions
from proxy.frontdoor.signing import Manners, Signing
from proxy.frontdoor.sqlite_store import SqliteStore
from proxy.frontdoor.storage import TicketStorage
from proxy.frontdoor.stores import SessionStore
from proxy.frontdoor.turnstile import Turnstile
from proxy.gate.crossing import AUTHORIZATION_COOKIE, HOST_AUTHORIZATION_COOKIE, Crossing
from proxy.gate.identity import Identities, SessionEnded
from proxy.operations.live import Live
from proxy.operations.metrics import Metrics
from proxy.relay.carriage import unix_now
from proxy.relay.pages import Routes
from proxy.tls import Trust
from proxy.upstream.platform import Platform


_PASSWORD_BYTES: Final = 4096


def keeps_sessions(config: Config) -> bool:
    """Whether people sign in here."""
    return any(source_of(settings) == "session" for settings in config.credentials.values())


def admitted_origins(config: Config) -> tuple[str, ...]:
    """The origins whose pages may come in."""
    own = config.frontdoor.public_origin
    return config.gate.origins if own is None else tuple(dict.fromkeys((own, *config.gate.origins)))


def admitted_hosts(config: Config) -> tuple[str, ...]:
    """The names that this proxy answers to."""
    own = config.frontdoor.public_origin
    return config.gate.hosts if own is None else (urlsplit(own).netloc, *config.gate.hosts)


def owner_cookies(config: Config) -> tuple[str, ...]:
    """By which cookies the owner of a session is known."""
    return (TICKET_COOKIE,) if keeps_sessions(config) else (HOST_AUTHORIZATION_COOKIE, AUTHORIZATION_COOKIE)


class Reception:
    """What outlives every change of the configuration: sessions, and how often somebody tried to sign in.

    `keys` gives what sessions are sealed with; it is None where nothing of them outlives this process. `trust` gives
    what Redis is trusted by, and `platform` the way there is to the platform now.
    """

    def __init__(
        self,
        config: Config,
        live: Live,
        *,
        keys: Callable[[], Sequence[bytes] | None] | None,
        trust: Callable[[], Trust],
        platform: Callable[[], Platform],
        clock: Callable[[], float],
    ) -> None:
        self._live = live
        made = [token_bytes(32)]
        secrets_now: Callable[[], Sequence[bytes]] = (lambda: made) if keys is None else (lambda: keys() or ())
        self.turnstile: Final = Turnstile(secrets_now, clock=clock, unix_clock=unix_now)
        self.sessions: Final = (
            Sessions(
                _store(config, trust),
                Sealing(secrets_now),
                platform,
                idle_seconds=config.frontdoor.idle_seconds,
                absolute_seconds=config.frontdoor.absolute_seconds,
                in_use=self._in_use,
                on_ended=self.part,
                clock=clock,
                unix_clock=unix_now,
            )
            if keeps_sessions(config)
            else None
        )

    def part(self, subjects: Collection[str]) -> None:
        """End the connections of those who signed out, or whose session ended."""
        problem = SessionEnded("Signed out, or the session has ended: sign in again")
        self._live.revoke(lambda connection: problem if connection.who.subject in subjects else None)

    def _in_use(self) -> set[str]:
        return {connection.who.subject for connection in self._live if connection.who.subject}


def _store(config: Config, trust: Callable[[], Trust]) -> SessionStore:
    settings = config.frontdoor
    if settings.redis_url is None:
        return SqliteStore(settings.sessions_file)
    file = settings.redis_password_file

    def password() -> str | None:
        return None if file is None else files.content(file, limit=_PASSWORD_BYTES).decode().strip()

    from proxy.frontdoor.redis_store import RedisStore  # noqa: PLC0415 - a tenth of a second for those who have one

    return RedisStore(settings.redis_url, password=password, trust=trust())


def routes(
    config: Config,
    reception: Reception,
    *,
    platform: Platform,
    crossing: Crossing,
    identities: Identities,
    metrics: Metrics,
    clock: Callable[[], float],
) -> Routes:
    """What the front door serves; nothing where there is none."""
    settings = config.frontdoor
    if settings.public_origin is None:
        return {}
    origins = admitted_origins(config)
    means = Means(
        platform=platform,
        crossing=crossing,
        turnstile=reception.turnstile,
        tenant=settings.tenant or "",
        destination=partial(destination, home=settings.home, origins=origins),
        metrics=metrics,
    )
    if reception.sessions is None:
        return CookieCalls(settings.platform_paths, means, owners=identities, on_signed_out=reception.part).routes
    manners = Manners(
        tenant=settings.tenant or "",
        asks_tenant=settings.asks_tenant,
        offers_single_sign_on=f"GET {LOGIN}" in settings.platform_paths,
        home=settings.home,
        origins=origins,
    )
    pages = Pages(title=settings.title, platform_url=config.upstream.url, form_targets=config.gate.origins)
    signing = Signing(
        TicketStorage(reception.sessions),
        platform,
        pages,
        manners,
        reception.turnstile,
        metrics=metrics,
        clock=clock,
    )
    calls = SessionCalls(settings.platform_paths, means, signing=signing, sessions=reception.sessions)
    return {**calls.routes, **signing.routes}
