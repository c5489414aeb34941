"""File and environment to one validated tree, or to a list of everything that is wrong."""

import difflib
import ssl
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_origin

import msgspec
from pydantic import ValidationError

from proxy.bayeux.negotiation import ClientAuthn
from proxy.config.tree import PREFIX, Config, keys_of, source_of, variable_of
from proxy.credentials.stored import BrokenCredential, credential_from
from proxy.gate.admission import is_loopback


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


def load(file: Path | None, environment: Mapping[str, str]) -> Config:
    """Read the file, lay the environment over it, and validate. Raises BadConfiguration."""
    loading = _Loading({} if file is None else _read(file))
    loading.overlay(environment)
    config = loading.validated()
    # A frozen section's private part is set once, here, before anybody else sees it.
    config.credentials.default._platform_values = {  # noqa: SLF001
        name: environment[variable] for variable, name in _PLATFORM_VALUES.items() if environment.get(variable)
    }
    loading.look_for_contradictions(config)
    if loading.problems:
        raise BadConfiguration(loading.problems)
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    except tomllib.TOMLDecodeError as error:
        problem = f"is not TOML: {error}"
    raise BadConfiguration([Problem(str(file), problem)])


class _Loading:
    """The tree as it is put together, the variable that each key came from, and what is wrong so far."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.problems: list[Problem] = []
        self._tree = tree
        self._variables: dict[str, str] = {}
        self._wrong: set[str] = set()

    def overlay(self, environment: Mapping[str, str]) -> None:
        """Put our own variables into the tree, and the platform's where its key is still empty."""
        known = {variable_of(key): (key, field) for key, field in keys_of(Config)}
        for variable in sorted(name for name in environment if name.startswith(PREFIX)):
            if variable not in known:
                self.problems.append(Problem(variable, f"is not a variable of ours{_nearest(variable, known)}"))
                continue
            key, field = known[variable]
            self._variables[key] = variable
            value: object = environment[variable]
            if get_origin(field.annotation) is tuple:
                try:
                    value = msgspec.json.decode(environment[variable], type=list[str])
                except msgspec.MsgspecError:
                    self._note(key, 'expected a JSON list of texts, such as ["one", "two"]')
                    continue
            _set(self._tree, key, value)
        if not _get(self._tree, "upstream.url") and environment.get("C8Y_BASEURL"):
            _set(self._tree, "upstream.url", environment["C8Y_BASEURL"])
            self._variables["upstream.url"] = "C8Y_BASEURL"

    def validated(self) -> Config:
        """The configuration, with defaults in place of what is wrong, so that the rest can be judged too."""
        known = [key for key, _ in keys_of(Config)]
        while True:
            try:
                return Config.model_validate(self._tree)
            except ValidationError as error:
                for fault in error.errors(include_url=False, include_input=False):
                    path = [part for part in fault["loc"] if isinstance(part, str)]
                    key = ".".join(path)
                    unknown = fault["type"] == "extra_forbidden"
                    self._note(key, f"is not a key of ours{_nearest(key, known)}" if unknown else _told(fault))
                    _drop(self._tree, path)

    def look_for_contradictions(self, config: Config) -> None:
        """Find what is wrong only when keys are seen together, unless it follows from one that is wrong by itself."""
        for problem, *sources in _contradictions(config):
            keys = (problem.where, *sources)
            if not any(key == wrong or key.startswith(f"{wrong}.") for key in keys for wrong in self._wrong):
                self.problems.append(problem)

    def _note(self, key: str, text: str) -> None:
        self._wrong.add(key)
        self.problems.append(Problem(self._variables.get(key, key), text))


def _told(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return message if message.startswith("expected") else f"expected {message}"


def _contradictions(config: Config) -> Iterator[tuple[Problem, *tuple[str, ...]]]:
    """What is wrong when keys are seen together, each with the further keys that it follows from."""
    if not config.upstream.url:
        yield (Problem("upstream.url", "expected the address of the tenant: set it, or C8Y_BASEURL"),)
    yield from _source_contradictions(config)
    if not is_loopback(config.listen.host) and not config.gate.hosts:
        text = "expected the names this proxy is reached by, since it listens beyond loopback"
        yield Problem("gate.hosts", text), "listen.host"
    yield from ((problem,) for problem in _file_problems(config))


def _source_contradictions(config: Config) -> Iterator[tuple[Problem, *tuple[str, ...]]]:
    settings = config.credentials.default
    source_key, directory_key = "credentials.default.source", "credentials.default.directory"
    match source_of(settings):
        case None:
            text = (
                "expected stored or cookie: no stored values were found to go by "
                "(credentials.default.directory, or C8Y_TENANT, C8Y_USER and C8Y_PASSWORD)"
            )
            yield Problem(source_key, text), directory_key
        case "cookie" if config.handshake.client_authn is ClientAuthn.FILL:
            text = "expected override or refuse: with source = cookie all credentials are the client's"
            yield Problem("handshake.client_authn", text), source_key
        case "stored" if settings.directory is None:
            # Unlike a directory, an environment cannot be mended while the process runs.
            if not settings.platform_values.keys() - {"tenant"}:
                text = "expected a directory, or C8Y_TENANT, C8Y_USER and C8Y_PASSWORD to be set"
                yield Problem(directory_key, text), source_key
                return
            try:
                credential_from(settings.platform_values)
            except BrokenCredential as problem:
                yield (Problem("C8Y_USER, C8Y_PASSWORD, C8Y_TOKEN", str(problem)),)


def _file_problems(config: Config) -> Iterator[Problem]:
    tls = config.listen.tls
    if (tls.certificate_file is None) != (tls.key_file is None):
        missing = "key_file" if tls.key_file is None else "certificate_file"
        yield Problem(f"listen.tls.{missing}", "expected beside the other: a certificate and its key go together")
    elif tls.certificate_file is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                tls.certificate_file, tls.key_file, password=""
            )
        except (OSError, ssl.SSLError) as error:
            yield Problem("listen.tls", f"certificate and key cannot be used: {_reason(error)}")
    if config.upstream.ca_file is not None:
        try:
            ssl.create_default_context(cafile=config.upstream.ca_file)
        except (OSError, ssl.SSLError) as error:
            yield Problem("upstream.ca_file", f"cannot be used: {_reason(error)}")


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or "not PEM"


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
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[name] = value


def _drop(tree: dict[str, Any], path: Sequence[str]) -> None:
    for section in path[:-1]:
        tree = tree.get(section, {})
    tree.pop(path[-1], None)
