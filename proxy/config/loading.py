"""File and environment to one validated tree, or to a list of everything that is wrong."""

import difflib
import re
import ssl
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import BaseModel, ValidationError

from proxy.config.frontdoor import frontdoor_contradictions
from proxy.config.identities import content_problems, identity_contradictions
from proxy.config.problems import Problem, Told
from proxy.config.sources import source_contradictions, vault_contradictions
from proxy.config.tree import (
    NAMED,
    PREFIX,
    Admin,
    Config,
    CredentialSettings,
    is_list,
    keys_of,
    table_of,
    tables_of,
    variable_of,
)
from proxy.config.values import UNIX
from proxy.gate.admission import is_loopback
from proxy.gate.clients import DEFAULT_CREDENTIAL


_CLIENTS: Final = "clients"
_CREDENTIALS: Final = "credentials"
_VAULT: Final = "vault"
_SYSTEMD_CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
_OF_A_CREDENTIAL: Final = re.compile(rf"(?P<before>{PREFIX}CREDENTIALS__)(?P<name>[A-Z0-9_]+?)(?P<after>__[A-Z_]+)")
_PLATFORM_VALUES: Final = {
    "C8Y_TENANT": "tenant",
    "C8Y_USER": "user",
    "C8Y_PASSWORD": "password",
    "C8Y_TOKEN": "token",
}
_BOOTSTRAP_VALUES: Final = {
    "C8Y_BOOTSTRAP_TENANT": "tenant",
    "C8Y_BOOTSTRAP_USER": "user",
    "C8Y_BOOTSTRAP_PASSWORD": "password",
}


class BadConfiguration(Exception):
    """The configuration cannot be used; `problems` lists everything that was found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def load(file: Path | None, environment: Mapping[str, str]) -> Config:
    """Read the file, lay the environment over it, and validate. Raises BadConfiguration."""
    loading = _Loading()
    if file is not None:
        loading.read(file)
    loading.overlay(environment)
    config = loading.surrounded(environment)
    loading.look_for_contradictions(_contradictions(config))
    if loading.problems:
        raise BadConfiguration(loading.problems)
    return config


def clients_in(file: Path) -> Config:
    """What a file says of clients, whatever is wrong beside that. Raises BadConfiguration for what is wrong in it."""
    loading = _Loading()
    loading.read(file)
    config = loading.validated()
    if wrong := [problem for problem in loading.problems if problem.where.startswith((_CLIENTS, str(file)))]:
        raise BadConfiguration(wrong)
    return config


def admin_in(file: Path | None, environment: Mapping[str, str]) -> Admin:
    """What a file and an environment say of the admin listener, whatever is wrong beside that. Raises BadConfiguration
    for what is wrong in it.
    """
    loading = _Loading()
    if file is not None:
        loading.read(file)
    loading.overlay(environment)
    config = loading.validated()
    places = ["admin.", variable_of("admin")] + ([] if file is None else [str(file)])
    if wrong := [problem for problem in loading.problems if problem.where.startswith(tuple(places))]:
        raise BadConfiguration(wrong)
    return config.admin


def vault_in(file: Path | None, environment: Mapping[str, str]) -> Config:
    """What a file and an environment say of the vault and of credentials, whatever is wrong beside that.

    Raises BadConfiguration for what is wrong in it, and where there is no vault, or nothing that could open it.
    """
    loading = _Loading()
    if file is not None:
        loading.read(file)
    loading.overlay(environment)
    config = loading.surrounded(environment)
    loading.look_for_contradictions(_missing_for_the_vault(config))
    places = [place for name in (_VAULT, _CREDENTIALS) for place in (name, variable_of(name))]
    places += [] if file is None else [str(file)]
    if wrong := [problem for problem in loading.problems if problem.where.startswith(tuple(places))]:
        raise BadConfiguration(wrong)
    return config


def _missing_for_the_vault(config: Config) -> Iterator[Told]:
    if config.vault.file is None:
        yield (Problem("vault.file", "expected the file of the vault; `credentials add` makes it where there is none"),)
    yield from vault_contradictions(config)


class _Loading:
    """The tree as it is put together, the variable that each key came from, and what is wrong so far."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._tree: dict[str, Any] = {}
        self._is_whole = True
        self._variables: dict[str, str] = {}
        self._wrong: set[str] = set()

    def read(self, file: Path) -> None:
        """Take the tree from a TOML file."""
        try:
            tree = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            text = f"cannot be read: {error.strerror}"
        except UnicodeDecodeError:
            text = "is not UTF-8 text"
        except tomllib.TOMLDecodeError as error:
            text = f"is not TOML: {error}"
        except (ValueError, RecursionError):  # a number of thousands of digits, tables in tables without end
            text = "is TOML beyond all bounds: expected a few short keys"
        else:
            self._tree = tree
            return
        self._is_whole = False
        self.problems.append(Problem(str(file), text))

    def overlay(self, environment: Mapping[str, str]) -> None:
        """Put our own variables into the tree, and the platform's where its key is still empty.

        A variable that is set to nothing counts as not set.
        """
        known = {variable_of(key): (key, field) for key, field in keys_of(Config)}
        for variable in sorted(name for name in environment if name.startswith(PREFIX)):
            spelled, name = self._unnamed(variable)
            if spelled not in known:
                self.problems.append(Problem(variable, f"is not a variable of ours{_nearest(variable, known)}"))
                continue
            if not environment[variable]:
                continue
            key, field = known[spelled]
            key = key.replace(f".{NAMED}.", f".{name}.")
            self._variables[key] = variable
            value: object = environment[variable]
            if is_list(field):
                kind, told = _IN_JSON[table_of(field) is not None]
                try:
                    value = msgspec.json.decode(environment[variable], type=kind)
                except (msgspec.MsgspecError, UnicodeError, RecursionError):
                    self._note(key, told)
                    continue
            _set(self._tree, key, value)
        if not _get(self._tree, "upstream.url") and environment.get("C8Y_BASEURL"):
            _set(self._tree, "upstream.url", environment["C8Y_BASEURL"])
            self._variables["upstream.url"] = "C8Y_BASEURL"

    def _unnamed(self, variable: str) -> tuple[str, str]:
        """A variable with NAME in place of the name of a credential, and that. Where the file has a name that is
        spelled like this in variables, it is meant.
        """
        found = _OF_A_CREDENTIAL.fullmatch(variable)
        if found is None:
            return variable, ""
        spelled = found["name"].lower()
        named = self._tree.get(_CREDENTIALS)
        names = [name for name in named if name.lower().replace("-", "_") == spelled] if isinstance(named, dict) else []
        return f"{found['before']}{NAMED}{found['after']}", (names or [spelled])[0]

    def validated(self) -> Config:
        """The configuration, with defaults in place of what is wrong, so that the rest can be judged too."""
        while True:
            try:
                return Config.model_validate(self._tree)
            except ValidationError as error:
                for fault in error.errors(include_url=False, include_input=False):
                    path, entries = _split(tuple(part for part in fault["loc"] if part != "[key]"))
                    self._note(_written(path), _told(fault, path, entries))
                    _drop(self._tree, path)

    def surrounded(self, environment: Mapping[str, str]) -> Config:
        """What is valid, with what the platform and systemd say beside it."""
        config = self.validated()
        # A frozen section's private part is set once, here, before anybody else sees it.
        config.vault._credentials_directory = environment.get(_SYSTEMD_CREDENTIALS, "")  # noqa: SLF001
        for name, settings in config.credentials.items():
            variables = _BOOTSTRAP_VALUES if settings.source == "subscriptions" else _PLATFORM_VALUES
            if variables is _BOOTSTRAP_VALUES or name == DEFAULT_CREDENTIAL:
                settings._platform_values = {  # noqa: SLF001
                    value: environment[variable] for variable, value in variables.items() if environment.get(variable)
                }
        return config

    def look_for_contradictions(self, found: Iterable[Told]) -> None:
        """Take note of what is wrong only when keys are seen together, unless it follows from one that is wrong by
        itself, or from a file that could not be read.
        """
        if not self._is_whole:
            return
        for problem, *sources in found:
            keys = (problem.where, *sources)
            if not any(
                key == wrong or key.startswith((f"{wrong}.", f"{wrong}[")) for key in keys for wrong in self._wrong
            ):
                self.problems.append(problem)

    def _note(self, key: str, text: str) -> None:
        self._wrong.add(key)
        base, bracket, entry = key.partition("[")
        self.problems.append(Problem(self._variables.get(base, base) + bracket + entry, text))


_IN_JSON: Final[dict[bool, tuple[Any, str]]] = {
    False: (list[str], 'expected a JSON list of texts, such as ["one", "two"]'),
    True: (list[dict[str, Any]], 'expected a JSON list of tables, such as [{"name": "one"}]'),
}
"""What the value of a list is in the environment, of texts and of tables."""

_Path = tuple[str | int, ...]


def _split(loc: _Path) -> tuple[_Path, _Path]:
    """Where a fault is: the path of its key, and the entries within the value of that."""
    last = max((place for place, part in enumerate(loc) if isinstance(part, str)), default=-1)
    return loc[: last + 1], loc[last + 1 :]


def _written(path: _Path) -> str:
    """A path as people write it. Entries are counted from 1."""
    return "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _told(fault: Mapping[str, Any], path: _Path, entries: _Path) -> str:
    """A fault that pydantic found, in our words."""
    if fault["type"] == "extra_forbidden":
        known = _keys_beside(path)
        key = _written(path)
        if key in known:
            return "is quoted as one name: write it without the quotes, or as a key of its table"
        return f"is not a key of ours{_nearest(key, known)}"
    if fault["type"] == "model_type" and path[:-1] == (_CREDENTIALS,) and path[-1] in CredentialSettings.model_fields:
        return f"is a key of a credential; did you mean {_CREDENTIALS}.{DEFAULT_CREDENTIAL}.{path[-1]}?"
    message = _EXPECTED.get(fault["type"]) or str(fault["msg"])
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    told = [f" (entry {part + 1})" for part in entries if isinstance(part, int)]
    return (message if message.startswith("expected") else f"expected {message}") + "".join(told)


def _keys_beside(path: _Path) -> list[str]:
    """The keys that could have been meant by one that is none."""
    within = max((place for place, part in enumerate(path) if isinstance(part, int)), default=-1)
    if within < 0:
        name = str(path[1]) if path[0] == _CREDENTIALS and len(path) > 1 else NAMED
        return [key.replace(f".{NAMED}.", f".{name}.") for key, _ in keys_of(Config)]
    name = ".".join(part for part in path[:within] if isinstance(part, str))
    table: type[BaseModel] = dict(tables_of(Config))[name]
    return [f"{_written(path[: within + 1])}.{key}" for key, _ in keys_of(table)]


_EXPECTED: Final = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "model_type": "a table of keys",
    "string_type": "text",
    "string_unicode": "UTF-8 text",
    "tuple_type": "a list",
}
"""What pydantic's types of fault amount to, where its own messages speak to programmers."""


def _contradictions(config: Config) -> Iterator[Told]:
    """What is wrong when keys are seen together, each with the further keys that it follows from."""
    if not config.upstream.url:
        yield (Problem("upstream.url", "expected the address of the tenant: set it, or C8Y_BASEURL"),)
    yield from source_contradictions(config)
    yield from frontdoor_contradictions(config)
    if not is_loopback(config.listen.host) and not (config.gate.hosts or config.frontdoor.public_origin):
        text = "expected the names this proxy is reached by, since it listens beyond loopback"
        yield Problem("gate.hosts", text), "listen.host"
    yield from _socket_contradictions(config)
    is_one = (config.admin.host, config.admin.port) == (config.listen.host, config.listen.port)
    if is_one and config.admin.port and config.listen.socket is None:
        yield Problem("admin.port", "expected another port than that of listen.port"), "listen.port", "admin.host"
    yield from identity_contradictions(config)
    yield from ((problem,) for problem in _file_problems(config))


def _socket_contradictions(config: Config) -> Iterator[Told]:
    listen, admin = config.listen, config.admin
    if listen.socket is None:
        if UNIX in config.gate.trusted_proxies:
            yield Problem("gate.trusted_proxies", "expected unix only with listen.socket"), "listen.socket"
        return
    for key in ("host", "port"):
        if key in listen.model_fields_set:
            yield Problem(f"listen.{key}", "expected not beside listen.socket: it is one or the other"), "listen.socket"
    if listen.tls.certificate_file is not None or listen.tls.key_file is not None:
        text = "expected without listen.tls: what ends TLS stands in front of a unix socket"
        yield Problem("listen.socket", text), "listen.tls.certificate_file", "listen.tls.key_file"
    if listen.socket == admin.socket:
        yield Problem("admin.socket", "expected another path than that of listen.socket"), "listen.socket"


def _file_problems(config: Config) -> Iterator[Problem]:
    tls = config.listen.tls
    if (tls.certificate_file is None) != (tls.key_file is None):
        missing = "key_file" if tls.key_file is None else "certificate_file"
        yield Problem(f"listen.tls.{missing}", "expected beside the other: a certificate and its key go together")
    files = {
        "listen.tls.certificate_file": tls.certificate_file,
        "listen.tls.key_file": tls.key_file,
        "listen.tls.client_ca_file": tls.client_ca_file,
        "upstream.ca_file": config.upstream.ca_file,
        "gate.client_id_key_file": config.gate.client_id_key_file,
        "gate.jwt.jwks_file": config.gate.jwt.jwks_file,
        "gate.jwt.ca_file": config.gate.jwt.ca_file,
        "frontdoor.session_key_file": config.frontdoor.session_key_file,
        "frontdoor.redis_password_file": config.frontdoor.redis_password_file,
        "frontdoor.redis_ca_file": config.frontdoor.redis_ca_file,
    }
    for name, settings in config.credentials.items():
        files |= {
            f"credentials.{name}.certificate_file": settings.certificate_file,
            f"credentials.{name}.key_file": settings.key_file,
        }
    unreadable = {key: reason for key, file in files.items() if file and (reason := _unreadable(file))}
    yield from (Problem(key, f"cannot be read: {reason}") for key, reason in unreadable.items())
    for section in ("listen.tls", *(f"credentials.{name}" for name in config.credentials)):
        pair = f"{section}.certificate_file", f"{section}.key_file"
        certificate, private = map(files.get, pair)
        if certificate and private and not unreadable.keys() & set(pair):
            yield from _pair_problems(section, certificate, private)
    for key in ("upstream.ca_file", "listen.tls.client_ca_file", "gate.jwt.ca_file", "frontdoor.redis_ca_file"):
        if (file := files[key]) and key not in unreadable:
            try:
                ssl.create_default_context(cafile=file)
            except ssl.SSLError:
                yield Problem(key, "expected certificates in PEM")
    yield from content_problems(config, unreadable)


def _pair_problems(section: str, certificate: Path, key: Path) -> Iterator[Problem]:
    """What is wrong with a certificate and its key."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        foreign = error.reason == "KEY_VALUES_MISMATCH"
        text = "the key of certificate_file" if foreign else "PEM in both files, and the key without a passphrase"
        yield Problem(f"{section}.key_file" if foreign else section, f"expected {text}")


def _unreadable(file: Path) -> str | None:
    """Why a file cannot be read, or None."""
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as error:
        return error.strerror
    return None


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _get(tree: Mapping[str, Any], key: str) -> object:
    value: object = tree
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _set(tree: dict[str, Any], key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            return  # a fault of the file, which validation tells
    tree[name] = value


def _drop(tree: Any, path: _Path) -> None:
    """Take a key out, unless what it stands in was taken out before."""
    for part in path[:-1]:
        tree = tree[part] if isinstance(part, int) and isinstance(tree, list) else tree.get(part, {})
    tree.pop(path[-1], None)
