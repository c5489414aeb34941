"""What is wrong about credentials and their sources when keys are seen together."""

from collections.abc import Iterator, Mapping
from typing import Final

from proxy.bayeux.negotiation import ClientAuthn
from proxy.config.problems import A_KEY, Problem, Told
from proxy.config.tree import OWN_SOURCES, Config, CredentialSettings, Source, source_of
from proxy.credentials.stored import BrokenCredential, credential_from


_VALUES: Final = "C8Y_TENANT, C8Y_USER and C8Y_PASSWORD"
_BOOTSTRAP_VALUES: Final = "C8Y_BOOTSTRAP_TENANT, C8Y_BOOTSTRAP_USER and C8Y_BOOTSTRAP_PASSWORD"
_PLATFORM_VARIABLES: Final = "C8Y_TENANT, C8Y_USER, C8Y_PASSWORD, C8Y_TOKEN"

_MEANT_FOR: Final[Mapping[str, frozenset[Source]]] = {
    "directory": frozenset({"stored", "login", "subscriptions"}),
    "entry": frozenset({"vault", "login"}),
    "certificate_file": frozenset({"device"}),
    "key_file": frozenset({"device"}),
    "token_url": frozenset({"device"}),
    "tenant": frozenset({"subscriptions"}),
    "poll_seconds": frozenset({"subscriptions"}),
}
"""The keys that mean nothing to other sources."""


def source_contradictions(config: Config) -> Iterator[Told]:
    """What contradicts what, each with the further keys that it follows from."""
    for name, settings in config.credentials.items():
        yield from _of_one(config, f"credentials.{name}", settings)
    yield from vault_contradictions(config)


def _of_one(config: Config, where: str, settings: CredentialSettings) -> Iterator[Told]:
    source = source_of(settings)
    source_key = f"{where}.source"
    if source is None:
        text = (
            "expected where the credential comes from, such as stored or cookie: no stored values were found to go by "
            f"({where}.directory, or {_VALUES})"
        )
        yield Problem(source_key, text), f"{where}.directory"
        return
    for key, sources in _MEANT_FOR.items():
        if key in settings.model_fields_set and getattr(settings, key) is not None and source not in sources:
            text = f"expected with source = {' or '.join(sorted(sources))} only"
            yield Problem(f"{where}.{key}", text), source_key
    if source in OWN_SOURCES and config.handshake.client_authn is ClientAuthn.FILL:
        text = f"expected override or refuse: with source = {source} all credentials are the client's"
        yield Problem("handshake.client_authn", text), source_key
    if not settings.endpoints:
        yield (Problem(f"{where}.endpoints", "expected at least one, or all by leaving it out"),)
    if settings.directory and settings.directory.exists() and not settings.directory.is_dir():
        yield (Problem(f"{where}.directory", "expected a directory, with one file per value"),)
    yield from _missing(config, where, settings, source)


def _missing(config: Config, where: str, settings: CredentialSettings, source: Source) -> Iterator[Told]:
    """What a source cannot do without."""
    source_key = f"{where}.source"
    match source:
        case "stored" if settings.directory is None:
            yield from _value_contradictions(where, settings)
        case "vault" if config.vault.file is None:
            yield Problem("vault.file", f"expected the vault that {source_key} names"), source_key
        case "login":
            yield from _login_contradictions(config, where, settings)
        case "device":
            yield from _device_contradictions(config, where, settings)
        case "subscriptions":
            if settings.tenant is None:
                yield Problem(f"{where}.tenant", "expected the tenant whose service user this is"), source_key
            if settings.directory is None and settings.platform_values.keys() < {"tenant", "user", "password"}:
                text = f"expected a directory, or {_BOOTSTRAP_VALUES} to be set"
                yield Problem(f"{where}.directory", text), source_key
        case _:
            pass


def _login_contradictions(config: Config, where: str, settings: CredentialSettings) -> Iterator[Told]:
    entry, directory = f"{where}.entry", f"{where}.directory"
    if settings.entry is not None:
        if settings.directory is not None:
            yield Problem(entry, "expected without a directory, which holds the values"), directory
        elif config.vault.file is None:
            yield Problem("vault.file", f"expected the vault that {entry} is in"), entry
    elif settings.directory is None and not settings.has_platform_values:
        text = f"expected where user and password are: a directory, an entry of the vault, or {_VALUES}"
        yield Problem(directory, text), f"{where}.source", entry


def _device_contradictions(config: Config, where: str, settings: CredentialSettings) -> Iterator[Told]:
    for key in ("certificate_file", "key_file"):
        if getattr(settings, key) is None:
            yield Problem(f"{where}.{key}", "expected, since source is device"), f"{where}.source"
    if not (settings.token_url or config.upstream.url or "https:").startswith("https:"):
        yield Problem(f"{where}.token_url", "expected an https URL, where the certificate can be shown"), "upstream.url"


def _value_contradictions(where: str, settings: CredentialSettings) -> Iterator[Told]:
    """What is wrong with values of the environment: unlike a directory, it cannot be mended while the process runs."""
    if not settings.has_platform_values:
        yield Problem(f"{where}.directory", f"expected a directory, or {_VALUES} to be set"), f"{where}.source"
        return
    try:
        credential_from(settings.platform_values)
    except BrokenCredential as problem:
        yield (Problem(_PLATFORM_VARIABLES, str(problem)),)


def vault_contradictions(config: Config) -> Iterator[Told]:
    """What is wrong with how the vault is opened."""
    vault = config.vault
    openers = {
        "key_file": vault.key_file,
        "key_credential": vault.key_credential,
        "passphrase_file": vault.passphrase_file,
    }
    given = [f"vault.{key}" for key, value in openers.items() if value is not None]
    if (vault.file or vault.sessions_file) and not given:
        text = f"expected what opens the vault: one of {', '.join(openers)}; make one with `{A_KEY}`"
        yield Problem("vault.key_file", text), "vault.file", "vault.sessions_file"
    if vault.key_credential is not None and vault.keys_path is None:
        text = "expected to be run by systemd with LoadCredential, which sets CREDENTIALS_DIRECTORY; see docs/vault.md"
        yield (Problem("vault.key_credential", text),)
    if len(given) > 1:
        yield Problem(given[1], f"expected one way to open the vault, and there is {given[0]}"), given[0]
