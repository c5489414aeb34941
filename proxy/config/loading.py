"""File and environment to one validated tree, or to a list of everything that is wrong."""

import difflib
import ssl
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import BaseModel, ValidationError

from proxy.bayeux.negotiation import ClientAuthn
from proxy.config.identities import content_problems, identity_contradictions
from proxy.config.problems import Problem, Told
from proxy.config.tree import (
    PREFIX,
    ClientSettings,
    Config,
    is_list,
    keys_of,
    source_of,
    table_of,
    tables_of,
    variable_of,
)
from proxy.credentials.stored import BrokenCredential, credential_from
from proxy.gate.admission import is_loopback


_CLIENTS: Final = "clients"
_PLATFORM_VALUES: Final = {
    "C8Y_TENANT": "tenant",
    "C8Y_USER": "user",
    "C8Y_PASSWORD": "password",
    "C8Y_TOKEN": "token",
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
    config = loading.validated()
    # A frozen section's private part is set once, here, before anybody else sees it.
    config.credentials.default._platform_values = {  # noqa: SLF001
        name: environment[variable] for variable, name in _PLATFORM_VALUES.items() if environment.get(variable)
    }
    loading.look_for_contradictions(config)
    if loading.problems:
        raise BadConfiguration(loading.problems)
    return config


def clients_in(file: Path) -> tuple[ClientSettings, ...]:
    """The clients that a file has, whatever is wrong beside them. Raises BadConfiguration for what is wrong in them."""
    loading = _Loading()
    loading.read(file)
    config = loading.validated()
    if wrong := [problem for problem in loading.problems if problem.where.startswith((_CLIENTS, str(file)))]:
        raise BadConfiguration(wrong)
    return config.clients


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
            if variable not in known:
                self.problems.append(Problem(variable, f"is not a variable of ours{_nearest(variable, known)}"))
                continue
            if not environment[variable]:
                continue
            key, field = known[variable]
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

    def validated(self) -> Config:
        """The configuration, with defaults in place of what is wrong, so that the rest can be judged too."""
        while True:
            try:
                return Config.model_validate(self._tree)
            except ValidationError as error:
                for fault in error.errors(include_url=False, include_input=False):
                    path, entries = _split(fault["loc"])
                    self._note(_written(path), _told(fault, path, entries))
                    _drop(self._tree, path)

    def look_for_contradictions(self, config: Config) -> None:
        """Find what is wrong only when keys are seen together, unless it follows from one that is wrong by itself, or
        from a file that could not be read.
        """
        if not self._is_whole:
            return
        for problem, *sources in _contradictions(config):
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
    message = _EXPECTED.get(fault["type"]) or str(fault["msg"])
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    told = [f" (entry {part + 1})" for part in entries if isinstance(part, int)]
    return (message if message.startswith("expected") else f"expected {message}") + "".join(told)


def _keys_beside(path: _Path) -> list[str]:
    """The keys that could have been meant by one that is none."""
    within = max((place for place, part in enumerate(path) if isinstance(part, int)), default=-1)
    if within < 0:
        return [key for key, _ in keys_of(Config)]
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
    yield from _source_contradictions(config)
    if not is_loopback(config.listen.host) and not config.gate.hosts:
        text = "expected the names this proxy is reached by, since it listens beyond loopback"
        yield Problem("gate.hosts", text), "listen.host"
    if (config.admin.host, config.admin.port) == (config.listen.host, config.listen.port) and config.admin.port:
        yield Problem("admin.port", "expected another port than that of listen.port"), "listen.port", "admin.host"
    yield from identity_contradictions(config)
    yield from ((problem,) for problem in _file_problems(config))


def _source_contradictions(config: Config) -> Iterator[Told]:
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
        case "stored" if settings.directory and settings.directory.exists() and not settings.directory.is_dir():
            yield (Problem(directory_key, "expected a directory, with one file per value"),)
        case "stored" if settings.directory is None:
            # Unlike a directory, an environment cannot be mended while the process runs.
            if not settings.platform_values.keys() - {"tenant"}:
                text = "expected a directory, or C8Y_TENANT, C8Y_USER and C8Y_PASSWORD to be set"
                yield Problem(directory_key, text), source_key
                return
            try:
                credential_from(settings.platform_values)
            except BrokenCredential as problem:
                yield (Problem(", ".join(_PLATFORM_VALUES), str(problem)),)


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
    }
    unreadable = {key: reason for key, file in files.items() if file and (reason := _unreadable(file))}
    yield from (Problem(key, f"cannot be read: {reason}") for key, reason in unreadable.items())
    if (
        tls.certificate_file
        and tls.key_file
        and not unreadable.keys() & {"listen.tls.certificate_file", "listen.tls.key_file"}
    ):
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                tls.certificate_file, tls.key_file, password=""
            )
        except ssl.SSLError as error:
            foreign = error.reason == "KEY_VALUES_MISMATCH"
            text = "the key of certificate_file" if foreign else "PEM in both files, and the key without a passphrase"
            yield Problem("listen.tls.key_file" if foreign else "listen.tls", f"expected {text}")
    for key in ("upstream.ca_file", "listen.tls.client_ca_file", "gate.jwt.ca_file"):
        if (file := files[key]) and key not in unreadable:
            try:
                ssl.create_default_context(cafile=file)
            except ssl.SSLError:
                yield Problem(key, "expected certificates in PEM")
    yield from content_problems(config, unreadable)


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
