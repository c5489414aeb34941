"""What is told about the configuration: a JSON schema for editors, and the reference page of the docs."""

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, get_args, get_origin

import msgspec
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from proxy.config.tree import Config, keys_of, tables_of
from proxy.gate.endpoints import ENDPOINTS


_INTRODUCTION = """\
# Configuration

Every key can stand in a TOML file (`c8y-realtime-proxy run --config FILE.toml`, or `C8Y_REALTIME_PROXY_CONFIG`, which
names the file for all commands) and in an environment variable, which wins: `gate.hosts` is
`C8Y_REALTIME_PROXY__GATE__HOSTS`, and as it is a list, its value is JSON (`["one", "two"]`). So is that of a list of
tables: `C8Y_REALTIME_PROXY__CLIENTS` holds `[{"name": "one", "key": "sha256:..."}]`.
`c8y-realtime-proxy check --config FILE.toml` prints every problem at once. `config/` has a commented example for each
home, and a schema for editors. This page is generated from the code by `make reference`.

In place of `NAME` stands what you call a credential, by 1 to 64 small letters, digits, `-` and `_`. In a variable it is
in capitals, with `_` for `-`: `credentials.hall-2.source` is `C8Y_REALTIME_PROXY__CREDENTIALS__HALL_2__SOURCE`. Where
the file has no `hall-2`, that is the source of `hall_2`. Paths that do not begin with `/` go by the working directory
of the process, whatever directory the file is in.

The platform's own `C8Y_BASEURL`, `C8Y_TENANT`, `C8Y_USER`, `C8Y_PASSWORD` and `C8Y_TOKEN` count where the keys they
stand for (`upstream.url`, `credentials.default.directory`) are not set; with them alone, nothing else is needed. Any
variable that is set to nothing counts as not set.
"""


def schema() -> str:
    """The JSON schema of the configuration file, indented."""
    tree = Config.model_json_schema() | {"title": "c8y-realtime-proxy"}
    return msgspec.json.format(msgspec.json.encode(tree), indent=2).decode() + "\n"


def reference() -> str:
    """The reference page in Markdown: a table for each section."""
    return "".join(_page())


_TABLE: Final = "| key | expects | default | |\n|---|---|---|---|\n"


def _page() -> Iterator[str]:
    yield _INTRODUCTION
    section = None
    for key, field in keys_of(Config):
        if "." not in key:  # a list of tables, told below
            continue
        if section != (section := key.rpartition(".")[0]):
            yield f"\n## {section}\n\n{_TABLE}"
        yield _row(key, field)
    for key, table in tables_of(Config):
        yield f"\n## {key}\n\n{_introduced(key, table)} In TOML, each is a `[[{key}]]` of its own.\n\n{_TABLE}"
        for name, field in keys_of(table):
            yield _row(name, field)


def _introduced(key: str, table: type[BaseModel]) -> str:
    """What a list of tables is for, in one sentence."""
    said = (table.__doc__ or "").strip().rstrip(".")
    return f"A list of tables. {said}{' for the client above it' if key == 'clients.grants' else ''}."


def _row(key: str, field: FieldInfo) -> str:
    return f"| `{key}` | {_expected(field.annotation)} | {_default(field)} | {field.description} |\n"


def _expected(annotation: object) -> str:
    """What a key expects, in words."""
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if get_origin(annotation) is tuple:
        [entry, *_] = arguments
        if get_origin(entry) is Literal:
            return f"list of {_expected(entry)}"
        return "list of tables" if isinstance(entry, type) and issubclass(entry, BaseModel) else "list of texts"
    if arguments:  # optional, or annotated with its bounds
        return _expected(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " or ".join(f"`{member.value}`" for member in annotation)
    return _WORDS[annotation]


_WORDS: dict[object, str] = {bool: "true or false", float: "number", int: "whole number", str: "text", Path: "path"}


def _default(field: FieldInfo) -> str:
    default = field.get_default()
    match default:
        case None | "" | ():
            return ""
        case tuple() if default == ENDPOINTS:
            return "all"
        case bool():
            return f"`{str(default).lower()}`"
        case tuple():
            return ", ".join(f"`{part}`" for part in default)
        case _:
            return f"`{default}`"
