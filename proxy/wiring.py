"""From a configuration to collaborators, in reading order. Nothing is opened or started here."""

import logging
from collections import ChainMap
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, runtime_checkable
from urllib.parse import unquote, urlsplit

from proxy import entrance
from proxy.config import (
    OWN_SOURCES,
    UNIX,
    Config,
    CredentialSettings,
    GrantSettings,
    JwtSettings,
    VaultSettings,
    credentials_for,
    identity_of,
    secrets_in,
    source_of,
)
from proxy.credentials.cookie import CookieSource
from proxy.credentials.device import DeviceSource
from proxy.credentials.login import LoginSource
from proxy.credentials.sealing import KeyFile
from proxy.credentials.session import SessionSource
from proxy.credentials.sources import CredentialSource, SourceOptions
from proxy.credentials.stored import FixedValues, SecretDirectory, Store, StoredSource
from proxy.credentials.subscriptions import Subscriptions, SubscriptionSource
from proxy.credentials.vault import SealedFile, Sessions, VaultEntry
from proxy.deadlines import TimeLimit
from proxy.entrance import Reception, admitted_hosts, admitted_origins, owner_cookies
from proxy.files import Reloaded
from proxy.gate.admission import Gate
from proxy.gate.crossing import COOKIE_BYTES, Crossing
from proxy.gate.endpoints import ENDPOINTS
from proxy.gate.identity import Entry, Identities
from proxy.gate.keys import digest_of
from proxy.gate.limits import Limits, Shares
from proxy.gate.peers import TrustedProxies
from proxy.gate.policy import DEFAULT, Grant, Policy
from proxy.gate.tokens import KeySet, Tokens
from proxy.operations.live import Live
from proxy.operations.metrics import Metrics
from proxy.operations.uses import Uses
from proxy.relay.carriage import ARRIVAL_SECONDS, Carriage, unix_now
from proxy.relay.front import Front
from proxy.relay.handshakes import Handshakes, Rates
from proxy.relay.pages import Routes
from proxy.relay.provisions import Provision
from proxy.tls import Trust, trust_in, trusting
from proxy.upstream.client import Upstream
from proxy.upstream.jwks import KeysAtUrl, KeysInFile
from proxy.upstream.platform import Platform
from proxy.vitality import Vitality


log = logging.getLogger(__name__)

TokenKeys = KeysInFile[KeySet] | KeysAtUrl[KeySet]
Value = TypeVar("Value")


@runtime_checkable
class Worker(Protocol):
    """What does something in the background between its start and its stop."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Lasting:
    """What outlives every change of the configuration: what is counted, who is there, how often they came, and what
    files amounted to when they were good.

    `pages` are extra paths; `clock` gives monotonic seconds.
    """

    def __init__(self, config: Config, pages: Routes, clock: Callable[[], float]) -> None:
        # The kinds of sources are known before anything else, since they label every metric.
        self.metrics: Final = Metrics(*kinds(config))
        self.live: Final = Live(self.metrics)
        self.platform: Platform | None = None  # as it is reached now
        limits = limits_of(config)
        self.shares: Final = Shares(limits.client_connections)
        self.rates: Final = Rates(limits)
        self.arrivals: Final = TimeLimit(ARRIVAL_SECONDS)
        self.pages: Final = pages
        self.clock: Final = clock
        self._files: Final[dict[str, Reloaded[Any]]] = {}
        self.reception: Final = Reception(
            config,
            self.live,
            keys=_session_keys(config, self),
            trust=partial(self.trust, "frontdoor.redis_ca_file", config.frontdoor.redis_ca_file),
            platform=self._platform_now,
            clock=clock,
        )

    def _platform_now(self) -> Platform:
        if self.platform is None:
            raise AssertionError("nothing was wired yet")
        return self.platform

    def reloaded(self, key: str, file: Path, read: Callable[[Path], Value]) -> Reloaded[Value]:
        """What a file amounts to, which `key` names. It is looked at now: where it is broken later, there is a last
        good value, and where it takes the place of another file, that is the value of the other.
        """
        known = self._files.get(key)
        if known is None or known.files != (file,):
            last = None if known is None else known.current()
            on_load = partial(self.metrics.file_loaded, key)
            known = self._files[key] = Reloaded([file], lambda: read(file), key=key, on_load=on_load, last=last)
            known.current()
        return known

    def trust(self, key: str, authorities: Path | None) -> Trust:
        """What trusts the certificate authorities of a file, which `key` names, or those of the system."""
        if authorities is None:
            return trusting(None, key=key, on_load=partial(self.metrics.file_loaded, key))
        return self.reloaded(key, authorities, trust_in).current


@dataclass(frozen=True, slots=True)
class Way:
    """The way to upstream: without jar, redirects or limits of its own for clients, and with plain requests of ours."""

    upstream: Upstream
    platform: Platform


@dataclass(frozen=True, slots=True)
class Wiring:
    """The collaborators that one configuration amounts to."""

    config: Config
    identities: Identities
    token_keys: TokenKeys | None
    way: Way
    pollers: Mapping[Hashable, Subscriptions]
    provisions: Mapping[str, Provision]
    carriage: Carriage
    front: Front
    routes: Routes

    def workers(self) -> list[Worker]:
        """What works in the background."""
        sources = (provision.source for provision in self.provisions.values())
        return [each for each in (self.token_keys, *self.pollers.values(), *sources) if isinstance(each, Worker)]

    def secrets(self) -> Iterator[str]:
        """What is held now and no log may show."""
        for provision in self.provisions.values():
            yield from provision.source.secrets()
        if (url := self.config.upstream.proxy_url) and (password := urlsplit(url).password):
            yield from (password, unquote(password))


def wire(config: Config, lasting: Lasting, before: Wiring | None = None) -> Wiring:
    """The collaborators for a configuration. What is configured as `before` is taken over from there."""
    way = _way(config, lasting, before)
    lasting.platform = way.platform
    making = _Making(config, lasting, way, before)
    provisions = _provisions(config, lasting, making)
    token_keys = _token_keys(config, lasting, before)
    identities = _identities(config, token_keys, before)
    limits = limits_of(config)
    handshakes = Handshakes(
        lasting.metrics,
        limits,
        lasting.rates,
        client_authn=config.handshake.client_authn,
        system_of_units=config.handshake.system_of_units,
        client_id_keys=_client_id_keys(config, lasting),
    )
    carriage = Carriage(
        identities,
        provisions,
        handshakes,
        way.upstream,
        limits,
        lasting.metrics,
        lasting.live,
        lasting.shares,
        lasting.arrivals,
    )
    routes = ChainMap(lasting.pages, _front_door(config, lasting, way.platform, identities, provisions))
    front = Front(
        gate=Gate(
            listening_on=config.listen.host,
            hosts=admitted_hosts(config),
            origins=admitted_origins(config),
            relayed_cookies=config.upstream.relayed_cookies,
        ),
        identify=identities.identify,
        metrics=lasting.metrics,
        trusted_proxies=_trusted_proxies(config),
        pages=routes,
        always_secure=(config.frontdoor.public_origin or "").startswith("https:"),
    )
    return Wiring(config, identities, token_keys, way, making.pollers, provisions, carriage, front, routes)


def _trusted_proxies(config: Config) -> TrustedProxies:
    named = config.gate.trusted_proxies
    return TrustedProxies((ip_network(each) for each in named if each != UNIX), unix=UNIX in named)


def _front_door(
    config: Config, lasting: Lasting, platform: Platform, identities: Identities, provisions: Mapping[str, Provision]
) -> Routes:
    """What the front door serves. Its credential is the only one: all are somebody's own there."""
    return entrance.routes(
        config,
        lasting.reception,
        platform=platform,
        crossing=next(iter(provisions.values())).crossing,
        identities=identities,
        metrics=lasting.metrics,
        clock=lasting.clock,
    )


def kinds(config: Config) -> list[str]:
    """The kinds of the credential sources, each once."""
    return list(dict.fromkeys(source_of(settings) or "stored" for settings in config.credentials.values()))


def limits_of(config: Config) -> Limits:
    """How much and how long."""
    return Limits(**config.limits.model_dump(), handshake_seconds=config.handshake.timeout_seconds)


def vitality_of(config: Config) -> Vitality:
    """How one is given up who vanished without a word. Who merely does not read is given up before that, by
    `limits.stalled_seconds`.
    """
    limits = config.limits
    return Vitality(limits.heartbeat_seconds, 2 * max(limits.heartbeat_seconds, limits.stalled_seconds))


# Credentials ----------------------------------------------------------------------------------------------------------


def _provisions(config: Config, lasting: Lasting, making: "_Making") -> dict[str, Provision]:
    provisions = {}
    for name, settings in config.credentials.items():
        source = making.source(name)
        crossing = Crossing(
            relayed_cookies=config.upstream.relayed_cookies,
            is_clients_own=source.is_clients_own,
            application_key=config.upstream.application_key,
            on_long_cookie=_tell_of_long_cookie,
        )
        # Where each client has its own, there is no one user of the platform whose connections could be too many.
        uses = None if source.name in OWN_SOURCES else _uses(name, lasting, making.before)
        provisions[name] = Provision(
            name, source, crossing, uses=uses, endpoints=settings.endpoints, hosts=settings.hosts
        )
    return provisions


def _tell_of_long_cookie() -> None:
    log.warning(
        "The platform's token is longer than a browser keeps: expected no more than %d bytes with the name and the "
        "attributes of its cookie. Browsers lose their session with it; have the platform issue a shorter one, or keep "
        'the tokens here (credentials.NAME.source = "session")',
        COOKIE_BYTES,
    )


def _uses(name: str, lasting: Lasting, before: Wiring | None) -> Uses:
    """How often a credential is in use, also by connections that were opened before."""
    known = None if before is None else before.provisions.get(name)
    if known is not None and known.uses is not None:
        return known.uses
    uses = Uses(name, lasting.clock)
    lasting.metrics.using(name, uses.count)
    return uses


def _known(name: str, config: Config, before: Wiring) -> CredentialSource | None:
    """The source that there was by this name, if it was configured in the same way."""
    was, now = before.config, config
    if name not in was.credentials or _origin(was.credentials[name]) != _origin(now.credentials[name]):
        return None
    if source_of(now.credentials[name]) in {"vault", "login"} and was.vault != now.vault:
        return None
    if source_of(now.credentials[name]) in {"login", "device", "subscriptions"} and was.upstream != now.upstream:
        return None
    return before.provisions[name].source


def _origin(settings: CredentialSettings) -> tuple[object, ...]:
    """All that tells where a credential comes from."""
    said = settings.model_dump(exclude={"endpoints", "hosts"})
    return source_of(settings), said, dict(settings.platform_values)


class _Making:
    """Makes the sources of one configuration, or takes them over from what there was before."""

    def __init__(self, config: Config, lasting: Lasting, way: Way, before: Wiring | None) -> None:
        self.before = before
        self.pollers: dict[Hashable, Subscriptions] = {}
        self._config = config
        self._lasting = lasting
        self._way = way
        self._keys = vault_keys(config.vault)

    def source(self, name: str) -> CredentialSource:
        """The source of the credential with this name."""
        settings = self._config.credentials[name]
        kind = source_of(settings) or "stored"
        if kind in OWN_SOURCES:
            sessions = self._lasting.reception.sessions
            return CookieSource() if sessions is None else SessionSource(sessions)
        poller = self._poller(name, settings) if kind == "subscriptions" else None
        known = None if self.before is None else _known(name, self._config, self.before)
        if known is not None:
            return known
        common = SourceOptions(
            credential=name,
            cooldown_seconds=settings.cooldown_seconds,
            clock=self._lasting.clock,
            on_load=partial(self._lasting.metrics.credential_loaded, kind, name),
        )
        if poller is not None:
            return SubscriptionSource(poller, settings.tenant or "", **common)
        if kind == "login":
            return LoginSource(store_of(self._config, name), self._way.platform, keeper=self._keeper(), **common)
        if kind == "device" and settings.certificate_file is not None and settings.key_file is not None:
            return DeviceSource(
                self._way.platform,
                url=settings.token_url or _device_url(self._config.upstream.url),
                certificate_file=settings.certificate_file,
                key_file=settings.key_file,
                **common,
            )
        return StoredSource(store_of(self._config, name), kind=kind, **common)

    def _keeper(self) -> Sessions | None:
        """Where platform sessions are kept."""
        file = self._config.vault.sessions_file
        return None if file is None or self._keys is None else Sessions(file, self._keys, unix_now)

    def _poller(self, name: str, settings: CredentialSettings) -> Subscriptions:
        """Who asks for the service users of a bootstrap user, for all credentials that go by it."""
        told = settings.poll_seconds, settings.cooldown_seconds
        key = settings.directory, *sorted(settings.platform_values.items()), *told
        if key not in self.pollers:
            before = self.before
            is_known = before is not None and before.config.upstream == self._config.upstream
            known = before.pollers.get(key) if before is not None and is_known else None
            self.pollers[key] = known or Subscriptions(
                store_of(self._config, name),
                self._way.platform,
                called=name,
                poll_seconds=settings.poll_seconds,
                cooldown_seconds=settings.cooldown_seconds,
                clock=self._lasting.clock,
                on_load=partial(self._lasting.metrics.credential_loaded, "subscriptions", name),
            )
        return self.pollers[key]


def store_of(config: Config, name: str) -> Store:
    """Where the values of a credential are kept."""
    settings, keys = config.credentials[name], vault_keys(config.vault)
    if source_of(settings) == "vault" or settings.entry is not None:
        if config.vault.file is None or keys is None:
            raise AssertionError("the configuration says where the vault is, and what opens it")
        return VaultEntry(SealedFile(config.vault.file, keys), settings.entry or name)
    return SecretDirectory(settings.directory) if settings.directory else FixedValues(settings.platform_values)


def vault_keys(vault: VaultSettings) -> KeyFile | None:
    """What opens the vault, and what the process keeps itself; None where nothing does."""
    if vault.passphrase_file is not None:
        return KeyFile(vault.passphrase_file, holds_passphrases=True)
    return None if vault.keys_path is None else KeyFile(vault.keys_path)


def _device_url(upstream: str) -> str:
    """Where the platform gives tokens to devices: the same host, at port 8443."""
    host = urlsplit(upstream).hostname or ""
    return f"https://{f'[{host}]' if ':' in host else host}:8443"


# Clients --------------------------------------------------------------------------------------------------------------


def _token_keys(config: Config, lasting: Lasting, before: Wiring | None) -> TokenKeys | None:
    """Where the keys come from that tokens of clients are judged by; None where none are."""
    jwt = config.gate.jwt
    if before is not None and _whence(jwt) == _whence(before.config.gate.jwt):
        return before.token_keys
    if jwt.jwks_url is not None:
        return KeysAtUrl(jwt.jwks_url, KeySet, tls=lasting.trust("gate.jwt.ca_file", jwt.ca_file))
    if jwt.jwks_file is not None:
        return KeysInFile(jwt.jwks_file, KeySet, on_load=partial(lasting.metrics.file_loaded, "gate.jwt.jwks_file"))
    return None


def _whence(jwt: JwtSettings) -> tuple[object, ...]:
    """All that tells where the keys come from that tokens of clients are judged by."""
    return jwt.jwks_file, jwt.jwks_url, jwt.ca_file


def _identities(config: Config, token_keys: TokenKeys | None, before: Wiring | None) -> Identities:
    """How clients are identified."""
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
                credentials=credentials_for(config, client),
                policies=common if client.grants is None else _policies(client.grants),
            )
            for client in config.clients
        ),
        policies=common,
        credentials=credentials_for(config, None),
        tokens=Tokens(token_keys, issuer=jwt.issuer or "", audience=jwt.audience or "", clock=unix_now)
        if token_keys is not None
        else None,
        clock=unix_now,
        owner_cookies=owner_cookies(config),
        before=None if before is None else before.identities,
    )


def _policies(grants: Iterable[GrantSettings]) -> dict[str, Policy]:
    """What is granted, by endpoint."""
    return {
        endpoint: Policy(
            Grant(grant.subscribe, grant.publish, grant.call) for grant in grants if endpoint in grant.endpoints
        )
        for endpoint in ENDPOINTS
    }


def _session_keys(config: Config, lasting: Lasting) -> Callable[[], Sequence[bytes] | None] | None:
    """What sessions are sealed with; None where nothing of them outlives the process."""
    file = config.frontdoor.session_key_file
    return None if file is None else lasting.reloaded("frontdoor.session_key_file", file, secrets_in).current


def _client_id_keys(config: Config, lasting: Lasting) -> Callable[[], Sequence[bytes] | None]:
    """What clientIds are tied to clients with, the one in use first."""
    file = config.gate.client_id_key_file
    return tuple if file is None else lasting.reloaded("gate.client_id_key_file", file, secrets_in).current


# Upstream -------------------------------------------------------------------------------------------------------------


def _way(config: Config, lasting: Lasting, before: Wiring | None) -> Way:
    settings, limit, vitality = config.upstream, config.limits.head_bytes, vitality_of(config)
    if before is not None:
        was = before.config
        if (settings, limit, vitality) == (was.upstream, was.limits.head_bytes, vitality_of(was)):
            return before.way
    trust = lasting.trust("upstream.ca_file", settings.ca_file)
    upstream = Upstream(
        settings.url,
        tls=trust,
        proxy_url=settings.proxy_url,
        open_seconds=settings.open_timeout_seconds,
        idle_seconds=settings.poll_idle_timeout_seconds,
        max_head_bytes=limit,
        vitality=vitality,
    )
    return Way(upstream, Platform(settings.url, tls=trust, ca_file=settings.ca_file, proxy_url=settings.proxy_url))
