"""Clients added to a configuration file and removed from it, in place.

1. What a person wrote stays: comments, order, spelling.
2. The file is replaced as a whole or not at all, and only by one that says what was asked for, and has no problem that
   the old one had not. One that has problems already may be edited, since `check` is there to tell them.
3. Two who edit at once wait for each other.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final
from uuid import uuid4

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Comment, InlineTable, Table, Trivia

from proxy import files
from proxy.config.loading import BadConfiguration, load
from proxy.config.tree import variable_of


_CLIENTS: Final = "clients"
_NUMBERED: Final = re.compile(r"\[\d+\]")
_WRITTEN_OTHERWISE: Final = (TOMLKitError, ValueError, KeyError, TypeError, AttributeError)
_BY_HAND: Final = "edit it by hand, and write each client as [[clients]]"


class CannotEdit(Exception):
    """A file was not changed. The text says why, and what to do."""


def add(file: Path, name: str, key: str, environment: Mapping[str, str]) -> None:
    """Add a client with the digest of its key. Raises CannotEdit."""

    def change(text: str) -> str:
        names = _names(text)
        if name in names:
            raise CannotEdit(
                f"{name}: expected a new name, and {file} has it already; remove it first, or take another"
            )
        if name.lower() in map(str.lower, names):
            raise CannotEdit(
                f"{name}: expected a name that differs from all in {file} by more than upper and lower case"
            )
        return _with(text, name, key)

    _edit(file, change, lambda clients: [*clients, {"name": name, "key": key}], environment)


def remove(file: Path, name: str, environment: Mapping[str, str]) -> None:
    """Remove a client. Raises CannotEdit."""

    def change(text: str) -> str:
        if name not in _names(text):
            raise CannotEdit(f"{name}: expected the name of a client in {file}; `clients list` shows which there are")
        return _without(text, name)

    _edit(file, change, lambda clients: [client for client in clients if client.get("name") != name], environment)


def block(name: str, key: str) -> str:
    """A client as it stands in a configuration file."""
    return f'[[{_CLIENTS}]]\nname = "{name}"\nkey = "{key}"\n'


def _edit(
    file: Path,
    change: Callable[[str], str],
    expected: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    environment: Mapping[str, str],
) -> None:
    """Replace a file by what `change` makes of its text, if that says what is `expected` of the list of clients."""
    with _locked(file) as (opened, target):
        try:
            text = opened.read().decode()
            tree = tomllib.loads(text)
        except UnicodeDecodeError:
            raise CannotEdit(f"{file}: expected UTF-8 text; {_BY_HAND}") from None
        except (ValueError, RecursionError) as error:
            where = f" ({error})" if isinstance(error, tomllib.TOMLDecodeError) else ""
            raise CannotEdit(f"{file}: expected TOML{where}; mend it first") from None
        clients = tree.get(_CLIENTS, [])
        if not isinstance(clients, list) or not all(isinstance(client, dict) for client in clients):
            raise CannotEdit(f"{file}: expected clients to be a list of tables; {_BY_HAND}")
        changed = change(text)
        wanted = expected(clients)
        if _tree(changed) != (tree | {_CLIENTS: wanted} if wanted else _bare(tree)):
            raise CannotEdit(
                f"{file}: is written in a way that cannot be edited without a change to the rest; {_BY_HAND}"
            )
        _replace(file, target, opened, changed, environment)


def _bare(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != _CLIENTS}


def _tree(text: str) -> dict[str, Any]:
    """What a text says, without an empty list of clients; nothing when it is no TOML."""
    try:
        tree = tomllib.loads(text)
    except ValueError:
        return {}
    return tree if tree.get(_CLIENTS) else _bare(tree)


def _names(text: str) -> list[str]:
    return [str(client.get("name")) for client in tomllib.loads(text).get(_CLIENTS, [])]


# What the file says ---------------------------------------------------------------------------------------------------


def _with(text: str, name: str, key: str) -> str:
    """The text with a client behind all others, or at its end."""
    ending = "\r\n" if "\r\n" in text else "\n"
    entry = block(name, key).replace("\n", ending)
    try:
        document = _parsed(text)
        clients = document.get(_CLIENTS)
        if isinstance(clients, AoT):
            mark = f"# {uuid4()}"
            _mark_end(clients.body[-1], mark)
            before, _, after = tomlkit.dumps(document).partition(mark)
            return before + ending + entry + _behind(after)
        if clients is not None:
            inline = tomlkit.inline_table()
            inline.update({"name": name, "key": key})
            clients.append(inline)
            return tomlkit.dumps(document)
    except _WRITTEN_OTHERWISE:
        pass  # a table of the top level may stand at the end of any text
    gap = "" if not text else ending if text.endswith("\n") else ending * 2
    return text + gap + entry


def _without(text: str, name: str) -> str:
    """The text without a client. What stands behind its last key, up to what comes next, is not its own and stays."""
    try:
        document = _parsed(text)
        clients = document[_CLIENTS]
        [place] = [number for number, client in enumerate(clients) if client.get("name") == name]
        if not isinstance(clients, AoT):
            del clients[place]
            return tomlkit.dumps(document)
        first, last = f"# {uuid4()}", f"# {uuid4()}"
        table = clients.body[place]
        table.trivia.comment_ws, table.trivia.comment = " ", first
        _mark_end(table, last)
        marked = tomlkit.dumps(document)
    except _WRITTEN_OTHERWISE:
        return ""
    before = marked[: marked.rfind("\n", 0, marked.index(first)) + 1]
    after = _behind(marked.partition(last)[2])
    ending = "\r\n" if "\r\n" in text else "\n"
    if before.endswith(ending * 2) and (not after or after.startswith(ending)):
        before = before.removesuffix(ending)  # the empty line that parted it from the one above
    return before + after


def _parsed(text: str) -> tomlkit.TOMLDocument:
    """Raises ValueError for a text that would not be written again as it is: one with tables out of their order."""
    document = tomlkit.parse(text)
    if tomlkit.dumps(document) != text:
        raise ValueError
    return document


def _behind(text: str) -> str:
    """What stands behind the line with a mark."""
    return text.removeprefix("\r").removeprefix("\n")


def _mark_end(table: Table, mark: str) -> None:
    """Put a comment behind the last key in a table, or in the last table within it."""
    body = table.value.body
    last = max((place for place, (key, _) in enumerate(body) if key is not None), default=-1)
    inner = body[last][1] if last >= 0 else None
    if isinstance(inner, AoT):
        _mark_end(inner.body[-1], mark)
    elif isinstance(inner, Table) and not isinstance(inner, InlineTable):
        _mark_end(inner, mark)
    else:
        body.insert(last + 1, (None, Comment(Trivia(comment=mark))))


# The file itself ------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(file: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A file that nobody else edits now, opened, and where it really is. Raises CannotEdit."""
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(files.locked(file))
        except OSError as error:
            text = f"{file}: cannot be opened: {error.strerror}; expected a configuration file that this user may read"
            raise CannotEdit(text) from None
        yield opened


def _replace(file: Path, target: Path, opened: IO[bytes], text: str, environment: Mapping[str, str]) -> None:
    """Put a text in the place of a file, with its mode and owner. Raises CannotEdit."""
    try:
        files.replace(target, text.encode(), like=opened.fileno(), judge=lambda fresh: _judge(file, fresh, environment))
    except OSError as error:
        text = "cannot be replaced, nor can a file be made beside it"
        raise CannotEdit(
            f"{file}: {text}: {error.strerror}; run this as the owner of the file and its directory"
        ) from None


def _judge(old: Path, new: Path, environment: Mapping[str, str]) -> None:
    """Raises CannotEdit for a new file that has problems of a kind that the old one has not.

    A list of clients in the environment would hide that of the file, so it is left out.
    """
    alone = {name: value for name, value in environment.items() if name != variable_of(_CLIENTS)}
    known = [_NUMBERED.sub("", problem) for problem in _problems(old, alone)]
    fresh = [problem for problem in _problems(new, alone) if _NUMBERED.sub("", problem) not in known]
    if fresh:
        raise CannotEdit("\n".join([*fresh, f"{old}: is not changed, since that is what would be wrong with it"]))


def _problems(file: Path, environment: Mapping[str, str]) -> list[str]:
    try:
        load(file, environment)
    except BadConfiguration as bad:
        return [str(problem) for problem in bad.problems]
    return []
