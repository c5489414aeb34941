"""File and environment to one validated tree, or to a list of everything that is wrong."""

import difflib
import ssl
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_origin

import msgspec
from pydantic import ValidationError

from proxy.bayeux.negotiation import ClientAuthn
from proxy.config.tree import PREFIX, Config, keys_of, source_of, variable_of
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
    known = {variable_of(key): (key, field) for key, field in keys_of(Config)}
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
        known = [key for key, _ in keys_of(Config)]
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


def _nearest(name: str, known: Iterable[str]) -> str:
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
