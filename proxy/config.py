"""File and environment to one frozen tree. All validation is here, and nothing else reads the environment.

Every problem is found at once and named by its key, or by the variable that it came from; values are never quoted,
since a secret may stand in the wrong place.
"""

import difflib
import ssl
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_origin
from urllib.parse import urlsplit

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from proxy.bayeux.negotiation import ClientAuthn
from proxy.gate.admission import is_loopback


PREFIX: Final = "C8Y_REALTIME_PROXY__"
_PLATFORM_VALUES: Final = {
    "C8Y_TENANT": "tenant",
    "C8Y_USER": "user",
    "C8Y_PASSWORD": "password",
    "C8Y_TOKEN": "token",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the key or variable, and what was expected."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class BadConfiguration(Exception):
    """The configuration cannot be used; `problems` lists everything that was found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def _origin(text: str) -> str:
    parts = urlsplit(text)
    port = f":{parts.port}" if parts.port is not None and parts.port != _DEFAULT_PORTS.get(parts.scheme) else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    if (
        parts.scheme not in _DEFAULT_PORTS
        or not host
        or text.lower().rstrip("/") != f"{parts.scheme}://{parts.netloc}".lower()
    ):
        raise ValueError("expected scheme, host and port alone, such as https://app.example.com")
    return f"{parts.scheme}://{host}{port}"


_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def _upstream_url(text: str) -> str:
    if "@" in text:
        raise ValueError("expected no user or password in it: credentials have keys of their own")
    return _origin(text)


def _proxy_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError("expected the address of an HTTP proxy, such as http://proxy.example.com:3128")
    return text


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError:
        raise ValueError("expected an address or a network, such as 10.0.0.0/8") from None


def _host(text: str) -> str:
    if not text or "/" in text or any(character.isspace() for character in text):
        raise ValueError("expected a name or address, with or without a port, such as proxy.example.com")
    return text.lower()


Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Tls(_Section):
    """The certificate of the public listener; both files or neither."""

    certificate_file: Path | None = Field(None, description="Certificate chain in PEM.")
    key_file: Path | None = Field(None, description="Its private key in PEM.")


class Listen(_Section):
    """The public listener."""

    host: str = Field("127.0.0.1", description="Address or name to listen on.")
    port: Port = Field(8080, description="Port; 0 takes a free one.")
    tls: Tls = Field(default_factory=Tls)


class Admin(_Section):
    """The listener of metrics and probes."""

    host: str = Field("127.0.0.1", description="Address or name to listen on.")
    port: Port = Field(9090, description="Port; 0 takes a free one.")


class Upstream(_Section):
    """Cumulocity."""

    url: Annotated[str, AfterValidator(_upstream_url)] = Field(
        "", description="Scheme, host and port of the tenant. C8Y_BASEURL where it is not set."
    )
    ca_file: Path | None = Field(None, description="Certificate authorities in PEM, in place of the system's.")
    proxy_url: Annotated[str, AfterValidator(_proxy_url)] | None = Field(
        None, repr=False, description="An HTTP proxy on the way to upstream."
    )
    relayed_cookies: tuple[str, ...] = Field(
        ("BAYEUX_BROWSER",), description="Cookies that cross both ways by name; add a load balancer's here."
    )
    application_key: str | None = Field(None, description="X-Cumulocity-Application-Key for clients that send none.")
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
    directory: Path | None = Field(None, description="One file per value: tenant, user, password, tfa, token.")
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
        ClientAuthn.OVERRIDE, description="override, fill or refuse the authn object that a client sends."
    )
    system_of_units: Literal["imperial", "metric"] | None = Field(None, description="For clients that name none.")
    smartrest: bool = Field(
        default=False, description="Let SmartREST (X-Id) pass, unread: around every check of messages."
    )
    timeout_seconds: Seconds = Field(30.0, description="How long upstream may take over a handshake.")


class GateSettings(_Section):
    """Who may come in."""

    origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        (), description="Origins of the pages that may come in. Empty: no browser at all."
    )
    hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        (), description="Host names that this proxy answers to, beside localhost. Required beyond loopback."
    )
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        (), description="Networks whose X-Forwarded-For and X-Forwarded-Proto are believed. Empty: none is."
    )


class LimitSettings(_Section):
    """How much and how long."""

    connections: int = Field(10_000, gt=0, description="Client connections; those beyond it get 429.")
    head_bytes: Bytes = Field(65_536, description="One line of a request head. SSO cookies are long.")
    idle_seconds: Seconds = Field(75.0, description="A client connection without a complete request head.")
    client_payload_bytes: Bytes = Field(1024 * 1024, description="One message or POST of a client.")
    body_seconds: Seconds = Field(10.0, description="For the body of a POST to arrive.")
    upstream_payload_bytes: Bytes = Field(
        32 * 1024 * 1024, description="One message from upstream. The platform's own limit is 16 MB."
    )
    heartbeat_seconds: Seconds = Field(30.0, description="Between pings on a quiet WebSocket, on either side.")


class Drain(_Section):
    """The way out after SIGTERM."""

    spread_seconds: Annotated[float, Field(ge=0)] = Field(5.0, description="Goodbyes are spread over this time.")
    timeout_seconds: Annotated[float, Field(gt=0, le=20)] = Field(
        15.0, description="After this whoever is left is cut off. The whole exit stays within 25 s."
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


def load(file: Path | None, environment: Mapping[str, str]) -> Config:
    """Read the file, lay the environment over it, and validate. Raises BadConfiguration."""
    problems: list[Problem] = []
    tree = _read(file, problems) if file is not None else {}
    origins = _overlay(tree, environment, problems)
    if not _get(tree, ("upstream", "url")) and environment.get("C8Y_BASEURL"):
        _set(tree, ("upstream", "url"), environment["C8Y_BASEURL"])
        origins["upstream.url"] = "C8Y_BASEURL"
    config = _validated(tree, origins, problems)
    stored = {name: environment[variable] for variable, name in _PLATFORM_VALUES.items() if environment.get(variable)}
    # A frozen section's private part is set once, here, before anybody else sees it.
    config.credentials.default._platform_values = stored  # noqa: SLF001
    wrong = {problem.where for problem in problems}
    problems += [
        problem for problem in _contradictions(config) if origins.get(problem.where, problem.where) not in wrong
    ]
    if problems:
        raise BadConfiguration(problems)
    return config


def source_of(settings: CredentialSettings) -> Literal["stored", "cookie"] | None:
    """The credential source that the settings amount to; None when it has to be said."""
    if settings.source is None and (settings.directory or settings.platform_values.keys() - {"tenant"}):
        return "stored"
    return settings.source


def schema() -> dict[str, Any]:
    """The JSON schema of the configuration file, for editors."""
    return Config.model_json_schema() | {"title": "c8y-realtime-proxy"}


def _read(file: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(Problem(str(file), f"cannot be read: {error.strerror}"))
    except UnicodeDecodeError:
        problems.append(Problem(str(file), "is not UTF-8 text"))
    except tomllib.TOMLDecodeError as error:
        problems.append(Problem(str(file), f"is not TOML: {error}"))
    return {}


def _overlay(tree: dict[str, Any], environment: Mapping[str, str], problems: list[Problem]) -> dict[str, str]:
    """Put our variables into the tree; returns the variable that each key came from."""
    known = {PREFIX + key.upper().replace(".", "__"): (key, field) for key, field in _keys(Config)}
    origins = {}
    for variable in sorted(environment):
        if not variable.startswith(PREFIX):
            continue
        if variable not in known:
            problems.append(Problem(variable, f"is not a variable of ours{_nearest(variable, known)}"))
            continue
        key, field = known[variable]
        value: object = environment[variable]
        if get_origin(field.annotation) is tuple:
            try:
                value = msgspec.json.decode(environment[variable], type=list[str])
            except msgspec.MsgspecError:
                problems.append(Problem(variable, 'expected a JSON list of texts, such as ["one", "two"]'))
                continue
        _set(tree, tuple(key.split(".")), value)
        origins[key] = variable
    return origins


def _validated(tree: dict[str, Any], origins: Mapping[str, str], problems: list[Problem]) -> Config:
    """The configuration, with defaults in place of what is wrong, so that the rest can be judged too."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        known = [key for key, _ in _keys(Config)]
        for fault in error.errors(include_url=False, include_input=False):
            path = tuple(str(part) for part in fault["loc"] if isinstance(part, str))
            key = ".".join(path)
            text = f"is not a key of ours{_nearest(key, known)}" if fault["type"] == "extra_forbidden" else _told(fault)
            problems.append(Problem(origins.get(key, key), text))
            _drop(tree, path)
    return _validated(tree, origins, problems)


def _told(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return message if message.startswith("expected") else f"expected {message}"


def _contradictions(config: Config) -> Iterator[Problem]:
    """What is wrong only when keys are seen together, or when the files they name are opened."""
    if not config.upstream.url:
        yield Problem("upstream.url", "expected the address of the tenant: set it, or C8Y_BASEURL")
    settings = config.credentials.default
    source = source_of(settings)
    if source is None:
        yield Problem(
            "credentials.default.source",
            "expected stored or cookie: no stored values were found to go by (credentials.default.directory, or "
            "C8Y_TENANT, C8Y_USER and C8Y_PASSWORD)",
        )
    if source == "stored" and not settings.directory and not settings.platform_values:
        yield Problem(
            "credentials.default.directory", "expected a directory, or C8Y_TENANT, C8Y_USER and C8Y_PASSWORD to be set"
        )
    if source == "cookie" and config.handshake.client_authn is ClientAuthn.FILL:
        yield Problem(
            "handshake.client_authn",
            "expected override or refuse: with source = cookie all credentials are the client's",
        )
    if not is_loopback(config.listen.host) and not config.gate.hosts:
        yield Problem("gate.hosts", "expected the names this proxy is reached by, since it listens beyond loopback")
    yield from _file_problems(config)


def _file_problems(config: Config) -> Iterator[Problem]:
    tls = config.listen.tls
    if (tls.certificate_file is None) != (tls.key_file is None):
        missing = "key_file" if tls.key_file is None else "certificate_file"
        yield Problem(f"listen.tls.{missing}", "expected beside the other: a certificate and its key go together")
    elif tls.certificate_file is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.certificate_file, tls.key_file)
        except (OSError, ssl.SSLError) as error:
            yield Problem("listen.tls", f"certificate and key cannot be used: {_reason(error)}")
    if config.upstream.ca_file is not None:
        try:
            ssl.create_default_context(cafile=config.upstream.ca_file)
        except (OSError, ssl.SSLError) as error:
            yield Problem("upstream.ca_file", f"cannot be used: {_reason(error)}")


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or "not PEM"


def _keys(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the tree, dotted, with its field."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{path}{name}.")
        else:
            yield path + name, field


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _get(tree: Mapping[str, Any], path: tuple[str, ...]) -> object:
    value: object = tree
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _set(tree: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[path[-1]] = value


def _drop(tree: dict[str, Any], path: tuple[str, ...]) -> None:
    holder = _get(tree, path[:-1])
    if isinstance(holder, dict):
        holder.pop(path[-1], None)


if __name__ == "__main__":
    print(msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode())  # noqa: T201 - its output
