"""The sections and keys, each with its default, its bounds and a sentence about it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr
from pydantic.fields import FieldInfo

from proxy.bayeux.negotiation import ClientAuthn
from proxy.config.values import (
    Bytes,
    ClientName,
    CookieName,
    Count,
    CredentialName,
    Endpoint,
    EntryName,
    FilePath,
    HeaderValue,
    Host,
    JwksUrl,
    ListeningHost,
    Network,
    Number,
    Origin,
    Pattern,
    PlatformPath,
    Port,
    ProxyUrl,
    RedisUrl,
    Said,
    Seconds,
    StoredKey,
    UrlPath,
)
from proxy.gate.clients import DEFAULT_CREDENTIAL
from proxy.gate.endpoints import ENDPOINTS


PREFIX: Final = "C8Y_REALTIME_PROXY__"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Tls(_Section):
    """The certificate of the public listener, both files or neither; and whose certificates clients may show."""

    certificate_file: FilePath | None = Field(None, description="Certificate chain in PEM.")
    key_file: FilePath | None = Field(None, description="Its private key in PEM.")
    client_ca_file: FilePath | None = Field(
        None, description="Certificate authorities in PEM that certificates of clients are verified by, for mtls."
    )


class Listen(_Section):
    """The public listener."""

    host: ListeningHost = Field("127.0.0.1", description="Address or name to listen on.")
    port: Port = Field(8080, description="Port; 0 takes a free one.")
    socket: FilePath | None = Field(
        None, description="Or the path of a unix socket, in place of both: for its owner and its group."
    )
    tls: Tls = Field(default_factory=Tls)


class Admin(_Section):
    """The listener of metrics and probes."""

    host: ListeningHost = Field("127.0.0.1", description="Address or name to listen on.")
    port: Port = Field(9090, description="Port; 0 takes a free one.")
    hosts: tuple[Host, ...] = Field(
        (), description="Host names that this listener answers to, beside localhost and any address."
    )
    socket: FilePath | None = Field(
        None,
        description="The path of a unix socket that answers the same, and alone takes POST /quit, which `shutdown` "
        "sends. Left out, nobody ends this process but by a signal.",
    )


class Upstream(_Section):
    """Cumulocity."""

    url: Origin = Field("", description="Scheme, host and port of the tenant. C8Y_BASEURL where it is not set.")
    ca_file: FilePath | None = Field(None, description="Certificate authorities in PEM, in place of the system's.")
    proxy_url: ProxyUrl | None = Field(None, repr=False, description="An HTTP proxy on the way to upstream.")
    relayed_cookies: tuple[CookieName, ...] = Field(
        ("BAYEUX_BROWSER",), description="Cookies that cross both ways by name; add a load balancer's here."
    )
    application_key: HeaderValue | None = Field(
        None, description="X-Cumulocity-Application-Key for clients that send none."
    )
    open_timeout_seconds: Seconds = Field(
        8.0, description="DNS, TCP, TLS and upgrade together. Clients give up after 10."
    )
    poll_idle_timeout_seconds: Seconds = Field(
        7500.0, description="Silence within an answer to a POST. The platform holds a connect for up to two hours."
    )


Source = Literal["stored", "cookie", "session", "vault", "login", "device", "subscriptions"]


class CredentialSettings(_Section):
    """Where one credential comes from, and for which requests it may be chosen."""

    source: Source | None = Field(
        None,
        description="stored: values from the directory or the platform's environment; cookie: the client's own "
        "platform session; session: the platform session of who signed in at the front door; vault: values of an entry "
        "of the vault; login: a platform session (OAI-Secure), logged in to with such values; device: a token for a "
        "device certificate; subscriptions: a service user that the platform gives to a microservice. Where stored "
        "values are found, stored is the default.",
    )
    directory: FilePath | None = Field(
        None,
        description="For stored, login and subscriptions. One file per value: tenant, user, password, tfa, token; for "
        "login tfa_code or totp_secret, too.",
    )
    entry: EntryName | None = Field(
        None,
        description="For vault, and for login in place of a directory: the entry of the vault. For vault, the name of "
        "the credential if unset.",
    )
    certificate_file: FilePath | None = Field(None, description="For device: its certificate with its chain, in PEM.")
    key_file: FilePath | None = Field(None, description="For device: the private key of that, in PEM.")
    token_url: Origin | None = Field(
        None, description="For device: where tokens are issued; port 8443 of upstream.url if unset."
    )
    tenant: Said | None = Field(None, description="For subscriptions: the tenant whose service user this is.")
    poll_seconds: Seconds = Field(
        60.0, description="For subscriptions: how often the platform is asked which tenants there are."
    )
    endpoints: tuple[Endpoint, ...] = Field(
        ENDPOINTS, description="Requests at other endpoints do not get it; everywhere when it is left out."
    )
    hosts: tuple[Host, ...] = Field(
        (), description="Requests with another Host do not get it; with any when it is left out."
    )
    cooldown_seconds: Seconds = Field(
        60.0, description="How long a value that upstream rejected is not offered again, unless it changes."
    )
    _platform_values: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def platform_values(self) -> Mapping[str, str]:
        """The stored values that the platform's own environment holds."""
        return self._platform_values

    @property
    def has_platform_values(self) -> bool:
        """Whether there is more among them than a tenant, which is set for other reasons, too."""
        return bool(self.platform_values.keys() - {"tenant"})


class VaultSettings(_Section):
    """Secrets at rest, sealed with a key that is kept elsewhere."""

    file: FilePath | None = Field(None, description="The vault, which `credentials add` makes.")
    sessions_file: FilePath | None = Field(
        None, description="Where platform sessions of login are kept across restarts, sealed like the vault."
    )
    key_file: FilePath | None = Field(
        None, description="Keys that open it: 32 bytes in base64 per line; the first one seals what is written."
    )
    key_credential: Said | None = Field(None, description="Or the name of a systemd credential that holds such keys.")
    passphrase_file: FilePath | None = Field(
        None, description="Or passphrases, one per line: slower by the tenth of a second, and as good as they are long."
    )
    _credentials_directory: str = PrivateAttr(default="")

    @property
    def keys_path(self) -> Path | None:
        """The file with keys, wherever it is said; None where none is, or systemd handed none over."""
        if self.key_credential is not None:
            return Path(self._credentials_directory, self.key_credential) if self._credentials_directory else None
        return self.key_file


class FrontDoorSettings(_Section):
    """Browsers: where they reach this proxy, and what it keeps of who signs in. Only a restart changes this."""

    public_origin: Origin | None = Field(
        None,
        description="Scheme, host and port by which browsers reach this proxy, maybe through an ingress. It counts "
        "among gate.origins, and its host among gate.hosts.",
    )
    sessions_file: FilePath | None = Field(
        None,
        description="For session: the SQLite file that sessions are kept in. Left out, and without redis_url, they are "
        "kept in memory, and everybody has to sign in again after a restart.",
    )
    redis_url: RedisUrl | None = Field(
        None,
        repr=False,
        description="For session: the Redis that all replicas keep sessions in, such as "
        "redis://redis.example.com:6379; rediss:// for TLS.",
    )
    redis_password_file: FilePath | None = Field(
        None, description="For session: the password of Redis; looked at when connecting."
    )
    redis_ca_file: FilePath | None = Field(
        None, description="For session: the certificate authorities of Redis in PEM, in place of the system's."
    )
    session_key_file: FilePath | None = Field(
        None,
        description="For session: what sessions are sealed with, and browsers known again by: a secret per line, the "
        "first one seals. Required where sessions are kept beyond memory.",
    )
    idle_seconds: Seconds = Field(
        3600.0, description="For session: it ends after so long without a request or an open connection."
    )
    absolute_seconds: Seconds = Field(
        43_200.0, description="For session: it ends so long after signing in at the latest."
    )
    tenant: Said | None = Field(
        None, description="For session: where people sign in to, if the host of upstream.url does not say that."
    )
    asks_tenant: bool = Field(default=False, description="For session: ask for the tenant when signing in.")
    title: Said = Field("Cumulocity", description="For session: what people sign in to, as the pages call it.")
    home: UrlPath = Field(
        "/", description="For session: where people go who have signed in, unless they were on their way."
    )
    platform_paths: tuple[PlatformPath, ...] = Field(
        (
            "GET /tenant/loginOptions",
            "GET /tenant/oauth",
            "POST /tenant/oauth",
            "POST /user/logout",
            "GET /user/currentUser",
            "GET /tenant/currentTenant",
        ),
        description="What else of the platform is relayed, by method and path: for the session of who asks.",
    )


class Handshake(_Section):
    """What happens to handshakes."""

    client_authn: ClientAuthn = Field(
        ClientAuthn.OVERRIDE,
        description="The authn object that a client sends is replaced, kept where it holds a token, or refused.",
    )
    system_of_units: Literal["imperial", "metric"] | None = Field(None, description="For clients that name none.")
    smartrest: bool = Field(
        default=False, description="Let SmartREST (X-Id) pass, unread: around every check of messages."
    )
    timeout_seconds: Seconds = Field(30.0, description="How long upstream may take over a handshake.")


class GrantSettings(_Section):
    """What may be done at some endpoints."""

    endpoints: tuple[Endpoint, ...] = Field(
        ENDPOINTS, description="Where this is granted; everywhere when it is left out."
    )
    subscribe: tuple[Pattern, ...] = Field((), description="Channels to hear.")
    publish: tuple[Pattern, ...] = Field((), description="Channels to publish to.")
    call: tuple[Pattern, ...] = Field((), description="Services to call, each beginning with /service/.")


class JwtSettings(_Section):
    """Whose JSON Web Tokens are believed, for jwt."""

    jwks_file: FilePath | None = Field(None, description="A JSON Web Key Set; looked at again with every token.")
    jwks_url: JwksUrl | None = Field(
        None,
        repr=False,
        description="Or where to fetch one: every hour, and when a token names a key that is not there.",
    )
    ca_file: FilePath | None = Field(None, description="Certificate authorities in PEM for that, not the system's.")
    issuer: Said | None = Field(None, description="The `iss` that a token must have.")
    audience: Said | None = Field(None, description="The `aud` that a token must have, alone or among others.")


IdentityMethod = Literal["none", "own", "basic", "bearer", "mtls", "jwt"]


class ClientSettings(_Section):
    """A client, how it proves itself, and what it may do."""

    name: ClientName = Field("", description="Letters, digits, - and _, at most 64.")
    key: StoredKey | None = Field(
        None, repr=False, description="The digest of its key, for basic and bearer; `clients add` makes both."
    )
    certificates: tuple[Said, ...] = Field(
        (), description="Names in its certificate, for mtls: common name, DNS, URI or email. `*`: any certificate."
    )
    subjects: tuple[Said, ...] = Field((), description="The `sub` of its tokens, for jwt. `*`: any token.")
    credentials: tuple[CredentialName, ...] = Field(
        (),
        description="The credentials that may go up for it: of those that are for the endpoint and the Host asked, the "
        "first. Left out, it is default, or the only one there is.",
    )
    grants: tuple[GrantSettings, ...] | None = Field(
        None, description="What it may do; `gate.grants` when it is left out."
    )


class GateSettings(_Section):
    """Who may come in."""

    identity: tuple[IdentityMethod, ...] = Field(
        (),
        description="How clients prove who they are: none, own, or any of basic, bearer, mtls and jwt. Left out, it is "
        "own where the source of the credential is cookie or session, and none elsewhere.",
    )
    admit_anyone: bool = Field(
        default=False, description="Beyond loopback, none has to be said twice: here, and in gate.identity."
    )
    client_id_key_file: FilePath | None = Field(
        None,
        description="What clientIds are bound to their client with: a secret per line, the first one signs. Required "
        "unless identity is none.",
    )

    origins: tuple[Origin, ...] = Field(
        (), description="Origins of the pages that may come in. Empty: no browser at all."
    )
    hosts: tuple[Host, ...] = Field(
        (), description="Host names that this proxy answers to, beside localhost. Required beyond loopback."
    )
    trusted_proxies: tuple[Network, ...] = Field(
        (),
        description="Networks whose X-Forwarded-For and X-Forwarded-Proto are believed; unix for whoever comes through "
        "listen.socket. Empty: none is.",
    )
    grants: tuple[GrantSettings, ...] | None = Field(
        None,
        description="What clients may do without grants of their own. Left out: hear the platform's data channels.",
    )
    jwt: JwtSettings = Field(default_factory=JwtSettings)


class LimitSettings(_Section):
    """How much and how long."""

    connections: Count = Field(10_000, description="Client connections; those beyond it get 429.")
    strangers: Count = Field(
        2_000,
        description="Client connections that sent no request that may come in; beyond it the oldest is cut off.",
    )
    client_connections: Count = Field(
        1_000, description="Open WebSockets and POSTs being answered, of one client that has an identity."
    )
    client_handshakes: Count = Field(600, description="Handshakes per minute of one client that has an identity.")
    address_handshakes: Count = Field(600, description="Handshakes per minute from one address beyond loopback.")
    idle_seconds: Seconds = Field(75.0, description="A client connection on which no request was begun.")
    head_seconds: Seconds = Field(10.0, description="For the head of a request to arrive, once it was begun.")
    first_message_seconds: Seconds = Field(30.0, description="For the first message of a WebSocket to arrive.")
    payload_seconds: Seconds = Field(
        10.0, description="For a payload of a client to arrive: the body of a POST, or a message once it was begun."
    )
    stalled_seconds: Seconds = Field(
        60.0, description="For a side to take what it was sent, once it holds the other up."
    )
    head_bytes: Bytes = Field(65_536, description="The head of a request, or of an answer. SSO cookies are long.")
    client_payload_bytes: Bytes = Field(
        1024 * 1024, description="One payload of a client: a message of a WebSocket, or the body of a POST."
    )
    upstream_payload_bytes: Bytes = Field(
        32 * 1024 * 1024, description="One payload from upstream. The platform's own limit is 16 MB."
    )
    batch_messages: Count = Field(1_000, description="Messages in one payload of a client.")
    fragments: Count = Field(4_096, description="Frames that one message of a client may come in.")
    heartbeat_seconds: Seconds = Field(
        30.0,
        description="Between pings on a quiet WebSocket, on either side; and until TCP asks on other connections.",
    )


class Drain(_Section):
    """The way out after SIGTERM."""

    accept_seconds: Number = Field(
        0.0,
        ge=0,
        description="For so long everything goes on, new connections too, while /readyz says already that we leave. "
        "Then the goodbyes begin.",
    )
    spread_seconds: Number = Field(
        5.0, ge=0, description="Goodbyes are spread over at most this time, which is a part of the next."
    )
    timeout_seconds: Seconds = Field(
        15.0,
        le=20,
        description="After this whoever is left is cut off; at most 20. The whole exit takes no more than 25 s, and "
        "drain.accept_seconds.",
    )


class Log(_Section):
    """What is written to standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="The least severity written.")
    format: Literal["text", "json"] = Field(
        "text", description="Lines for people, or a JSON object per line for programs."
    )


def _at_least_one(credentials: dict[str, CredentialSettings]) -> dict[str, CredentialSettings]:
    return credentials or {DEFAULT_CREDENTIAL: CredentialSettings()}


class Config(_Section):
    """The whole configuration."""

    listen: Listen = Field(default_factory=Listen)
    admin: Admin = Field(default_factory=Admin)
    upstream: Upstream = Field(default_factory=Upstream)
    credentials: Annotated[dict[CredentialName, CredentialSettings], AfterValidator(_at_least_one)] = Field(
        default_factory=lambda: _at_least_one({}), description="The credentials of this process by name."
    )
    vault: VaultSettings = Field(default_factory=VaultSettings)
    frontdoor: FrontDoorSettings = Field(default_factory=FrontDoorSettings)
    handshake: Handshake = Field(default_factory=Handshake)
    gate: GateSettings = Field(default_factory=GateSettings)
    clients: tuple[ClientSettings, ...] = Field((), description="The clients, for basic, bearer, mtls and jwt.")
    limits: LimitSettings = Field(default_factory=LimitSettings)
    drain: Drain = Field(default_factory=Drain)
    log: Log = Field(default_factory=Log)


def source_of(settings: CredentialSettings) -> Source | None:
    """The credential source that the settings amount to; None when it has to be said."""
    if settings.source is None and (settings.directory or settings.has_platform_values):
        return "stored"
    return settings.source


def entry_of(name: str, settings: CredentialSettings) -> str | None:
    """The entry of the vault that a credential comes from; None for any other."""
    if source_of(settings) == "vault":
        return settings.entry or name
    return settings.entry if source_of(settings) == "login" else None


def credentials_for(config: Config, client: ClientSettings | None) -> tuple[str, ...]:
    """The names of the credentials that may go up for a client, or for one without an entry."""
    if client is not None and client.credentials:
        return tuple(dict.fromkeys(client.credentials))
    return (DEFAULT_CREDENTIAL,) if DEFAULT_CREDENTIAL in config.credentials else tuple(config.credentials)[:1]


def identity_of(config: Config) -> tuple[IdentityMethod, ...]:
    """The ways to prove an identity that the settings amount to."""
    if config.gate.identity:
        return tuple(dict.fromkeys(config.gate.identity))
    sources = {source_of(settings) for settings in config.credentials.values()}
    return ("own",) if sources and sources <= OWN_SOURCES else ("none",)


OWN_SOURCES: Final = frozenset({"cookie", "session"})
"""The sources of credentials that are the session of who asks."""


NAMED: Final = "NAME"
"""What stands for the name of a credential in the key of one of its settings."""


def keys_of(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the tree, dotted, with its field."""
    for name, field in section.model_fields.items():
        if (entry := _entry_of(field)) is not None:
            yield from keys_of(entry, f"{path}{name}.{NAMED}.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{path}{name}.")
        else:
            yield path + name, field


def _entry_of(field: FieldInfo) -> type[BaseModel] | None:
    """What each entry of a table of tables is; None for any other key."""
    return get_args(field.annotation)[1] if get_origin(field.annotation) is dict else None


def is_list(field: FieldInfo) -> bool:
    """Whether a key holds a list."""
    return any(get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation)))


def table_of(field: FieldInfo) -> type[BaseModel] | None:
    """What each entry of a list of tables is; None for any other key."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is tuple and isinstance(entry := get_args(kind)[0], type) and issubclass(entry, BaseModel):
            return entry
    return None


def tables_of(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every list of tables of the tree, with what its entries are; those within entries, too."""
    for key, field in keys_of(section, path):
        if table := table_of(field):
            yield key, table
            yield from tables_of(table, f"{key}.")


def variable_of(key: str) -> str:
    """The environment variable of a dotted key."""
    return PREFIX + key.upper().replace(".", "__")
