"""The sections and keys, each with its default, its bounds and a sentence about it."""

from collections.abc import Iterator, Mapping
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic.fields import FieldInfo

from proxy.bayeux.negotiation import ClientAuthn
from proxy.config.values import (
    Bytes,
    CookieName,
    FilePath,
    HeaderValue,
    Host,
    ListeningHost,
    Network,
    Number,
    Origin,
    Port,
    ProxyUrl,
    Seconds,
    WholeNumber,
)


PREFIX: Final = "C8Y_REALTIME_PROXY__"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Tls(_Section):
    """The certificate of the public listener; both files or neither."""

    certificate_file: FilePath | None = Field(None, description="Certificate chain in PEM.")
    key_file: FilePath | None = Field(None, description="Its private key in PEM.")


class Listen(_Section):
    """The public listener."""

    host: ListeningHost = Field("127.0.0.1", description="Address or name to listen on.")
    port: Port = Field(8080, description="Port; 0 takes a free one.")
    tls: Tls = Field(default_factory=Tls)


class Admin(_Section):
    """The listener of metrics and probes."""

    host: ListeningHost = Field("127.0.0.1", description="Address or name to listen on.")
    port: Port = Field(9090, description="Port; 0 takes a free one.")


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


class CredentialSettings(_Section):
    """Where the credential comes from."""

    source: Literal["stored", "cookie"] | None = Field(
        None,
        description="stored: values from the directory or the platform's environment; cookie: the client's own "
        "platform session. Where stored values are found, stored is the default.",
    )
    directory: FilePath | None = Field(None, description="One file per value: tenant, user, password, tfa, token.")
    cooldown_seconds: Seconds = Field(
        60.0, description="How long a stored value that upstream rejected is not offered again, unless it changes."
    )
    _platform_values: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def platform_values(self) -> Mapping[str, str]:
        """The stored values that the platform's own environment holds."""
        return self._platform_values


class Credentials(_Section):
    """The credentials of this process."""

    default: CredentialSettings = Field(default_factory=CredentialSettings)


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


class GateSettings(_Section):
    """Who may come in."""

    origins: tuple[Origin, ...] = Field(
        (), description="Origins of the pages that may come in. Empty: no browser at all."
    )
    hosts: tuple[Host, ...] = Field(
        (), description="Host names that this proxy answers to, beside localhost. Required beyond loopback."
    )
    trusted_proxies: tuple[Network, ...] = Field(
        (), description="Networks whose X-Forwarded-For and X-Forwarded-Proto are believed. Empty: none is."
    )


class LimitSettings(_Section):
    """How much and how long."""

    connections: WholeNumber = Field(10_000, gt=0, lt=2**31, description="Client connections; those beyond it get 429.")
    head_bytes: Bytes = Field(65_536, description="The head of a request, or of an answer. SSO cookies are long.")
    idle_seconds: Seconds = Field(75.0, description="A client connection without a complete request head.")
    client_payload_bytes: Bytes = Field(
        1024 * 1024, description="One payload of a client: a message of a WebSocket, or the body of a POST."
    )
    body_seconds: Seconds = Field(10.0, description="For the body of a POST to arrive.")
    upstream_payload_bytes: Bytes = Field(
        32 * 1024 * 1024, description="One payload from upstream. The platform's own limit is 16 MB."
    )
    heartbeat_seconds: Seconds = Field(30.0, description="Between pings on a quiet WebSocket, on either side.")


class Drain(_Section):
    """The way out after SIGTERM."""

    spread_seconds: Number = Field(
        5.0, ge=0, description="Goodbyes are spread over at most this time, which is a part of the next."
    )
    timeout_seconds: Seconds = Field(
        15.0, le=20, description="After this whoever is left is cut off; at most 20. The whole exit stays within 25 s."
    )


class Log(_Section):
    """What is written to standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="The least severity written.")


class Config(_Section):
    """The whole configuration."""

    listen: Listen = Field(default_factory=Listen)
    admin: Admin = Field(default_factory=Admin)
    upstream: Upstream = Field(default_factory=Upstream)
    credentials: Credentials = Field(default_factory=Credentials)
    handshake: Handshake = Field(default_factory=Handshake)
    gate: GateSettings = Field(default_factory=GateSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    drain: Drain = Field(default_factory=Drain)
    log: Log = Field(default_factory=Log)


def source_of(settings: CredentialSettings) -> Literal["stored", "cookie"] | None:
    """The credential source that the settings amount to; None when it has to be said."""
    if settings.source is None and (settings.directory or settings.platform_values.keys() - {"tenant"}):
        return "stored"
    return settings.source


def keys_of(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the tree, dotted, with its field."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{path}{name}.")
        else:
            yield path + name, field


def variable_of(key: str) -> str:
    """The environment variable of a dotted key."""
    return PREFIX + key.upper().replace(".", "__")
