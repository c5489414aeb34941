"""The entries of the vault: add, list, show and remove them, have them sealed by another key, and look at all of it.

No secret is an argument: values are typed where nobody sees them, or piped in. None is ever printed.
"""

import argparse
import getpass
import os
import stat
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from proxy.cli.options import Commands, add_config
from proxy.cli.table import table
from proxy.config import Config, entry_of, source_of, vault_in
from proxy.credentials.login import login_from
from proxy.credentials.sealing import MAKE_A_KEY, BadKeys, CannotOpen, Entry, KeyFile, Kind, NoSuchEntry, Sealed
from proxy.credentials.stored import NAMES, BrokenCredential, credential_from
from proxy.credentials.vault import ENTRY_NAME, SealedFile, moment
from proxy.operations.memory import keep_memory_private
from proxy.wiring import vault_keys


_FAILED: Final = 1
_MISUSED: Final = 2
_INPUT_LIMIT: Final = 64 * 1024


class _Refused(Exception):
    """What was asked for is not done. The text says why, and what to do."""


def add_parser(commands: Commands) -> None:
    """What can be said of the vault on the command line."""
    credentials = commands.add_parser("credentials", help="add, list, show and remove the entries of the vault")
    actions = credentials.add_subparsers(dest="action", required=True)
    told = {
        "add": "put values in, typed without echo or piped in as lines of NAME=VALUE; makes the vault if there is none",
        "list": "print the entries, what they hold, and which are missing",
        "show": "print what an entry holds, but nothing secret",
        "remove": "take an entry out",
        "rotate-key": "seal the vault by the first key of the key file, and print which keys are needed no longer",
        "verify": "open everything, and see whether each credential has its entry; exit code 1 if not",
    }
    for action, text in told.items():
        parser = actions.add_parser(action, help=text)
        if action in {"add", "show", "remove"}:
            parser.add_argument("name", metavar="NAME", help="letters, digits, -, _ and .")
        if action == "add":
            parser.add_argument("--replace", action="store_true", help="in place of the values that are there")
        add_config(parser)


def run(options: argparse.Namespace) -> int:
    """Raises BadConfiguration."""
    keep_memory_private()
    vault = _Vault(vault_in(options.config, os.environ))
    try:
        return vault.do(options)
    except _Refused as refused:
        print(refused, file=sys.stderr)
        return _MISUSED
    except NoSuchEntry:
        print(f"{options.name}: expected the name of an entry; `credentials list` tells them", file=sys.stderr)
        return _MISUSED
    except (CannotOpen, BadKeys, OSError) as problem:
        print(vault.told(problem), file=sys.stderr)
        return _FAILED


class _Vault:
    """The vault of a configuration, and the credentials that come from it."""

    def __init__(self, config: Config) -> None:
        settings = config.vault
        self._keys = vault_keys(settings) or KeyFile(Path())
        self._file = SealedFile(settings.file or Path(), self._keys)
        self._sessions = SealedFile(settings.sessions_file or Path(), self._keys, Kind.SESSIONS)
        self._users = {
            name: (entry, source_of(given))
            for name, given in config.credentials.items()
            if (entry := entry_of(name, given)) is not None
        }

    def do(self, options: argparse.Namespace) -> int:
        """Returns the exit code. Raises _Refused, NoSuchEntry, CannotOpen, BadKeys and OSError."""
        if "name" in options and not ENTRY_NAME.fullmatch(options.name):
            raise _Refused("NAME: expected 1 to 64 letters, digits, -, _ and .")
        if not self._keys.path.exists():
            how = "write a passphrase into it" if self._keys.holds_passphrases else f"make a key with {MAKE_A_KEY}"
            raise _Refused(f"{self._keys.path}: there is no such file; {how}, and keep a copy apart from the vault")
        match options.action:
            case "add":
                self._add(options.name, is_replacing=options.replace)
            case "list":
                self._list()
            case "show":
                self._show(options.name)
            case "remove":
                self._remove(options.name)
            case "rotate-key":
                self._rotate()
            case _:
                return self._verify()
        return 0

    def told(self, problem: Exception) -> str:
        """What is wrong, and what to do."""
        if not isinstance(problem, OSError):
            return str(problem)
        where = problem.filename or self._file.path
        if isinstance(problem, FileNotFoundError):
            return f"{where}: {problem.strerror}; `credentials add NAME` makes the vault, where its directory is there"
        return f"{where}: {problem.strerror}; run this as the user of the proxy, with the files and directory its own"

    def _add(self, name: str, *, is_replacing: bool) -> None:
        if not is_replacing and self._file.path.exists():
            _refuse_taken(name, self._file.open())  # nobody shall type a password in vain
        values = _typed() if sys.stdin.isatty() else _piped(sys.stdin.buffer)
        try:
            self._check(name, values)
        except BrokenCredential as problem:
            raise _Refused(f"{name}: {problem}") from None

        def change(opened: Sealed) -> Sealed:
            if not is_replacing:
                _refuse_taken(name, opened)
            return opened.put(name, values, moment(time.time()))

        self._file.change(change)
        _say(f"{name} is in {self._file.path}: {_what(values)}. A running proxy takes it at once")
        if not self._users_of(name):
            _say(f'No credential comes from it yet: that takes source = "vault" and entry = "{name}"')

    def _check(self, name: str, values: Mapping[str, str]) -> None:
        """Raises BrokenCredential for values that whoever uses the entry could not use."""
        sources = set(self._users_of(name).values())
        if not sources:
            sources = {"login"} if "tfa_code" in values or "totp_secret" in values else {"vault"}
        for source in sources:
            if source == "login":
                login_from(values)
            else:
                credential_from(values)

    def _list(self) -> None:
        opened = self._file.open()
        rows = [("NAME", "WHAT", "TENANT", "CHANGED")]
        for entry in opened.entries:
            values = opened.values(entry.name)
            rows.append((entry.name, _what(values), _shown(values, "tenant"), _time(entry)))
        print(table(rows))
        for problem in self._missing(opened):
            _say(problem)

    def _show(self, name: str) -> None:
        opened = self._file.open()
        values = opened.values(name)
        users = ", ".join(f"credentials.{user}" for user in self._users_of(name))
        print(
            table(
                [
                    ("entry", name),
                    ("holds", _listed([value for value in NAMES if value in values])),
                    ("tenant", _shown(values, "tenant")),
                    ("user", _shown(values, "user")),
                    ("changed", _time(opened.entry(name))),
                    ("used by", users or "-"),
                ]
            )
        )

    def _remove(self, name: str) -> None:
        def change(opened: Sealed) -> Sealed:
            opened.entry(name)
            return opened.without(name)

        self._file.open()  # none is made in order to take something out of it
        self._file.change(change)
        _say(f"{name} is removed. A running proxy uses it no longer")
        for user in self._users_of(name):
            _say(f"credentials.{user} comes from it still: take that out of the configuration, too")

    def _rotate(self) -> None:
        keys, spare = self._keys.path, ""
        for file in self._sealed_files():
            line, others = file.rotate()
            spare = _listed(list(map(str, others)))
            was = f", and was by line {line}" if line in others else ""
            print(f"{file.path} is sealed by the first line of {keys}{was}")
        if spare:
            print(f"Of {keys}, no longer needed but for older copies of these files: line {spare}")
        else:
            print(f"{keys} has no other line: to change the key, put a new one in front, and run this again")

    def _verify(self) -> int:
        problems = [self._exposed()] if self._exposed() else []
        for file in self._sealed_files():
            try:
                opened = file.open()
                for entry in opened.entries:
                    opened.values(entry.name)
            except (CannotOpen, BadKeys, OSError) as problem:
                problems.append(self.told(problem))
                continue
            count = len(opened.entries)
            entries = "1 entry opens" if count == 1 else f"{count} entries open"
            print(f"{file.path}: {entries}, by line {opened.opened_by} of {self._keys.path}")
            if file is self._file:
                problems += [*self._missing(opened), *self._unfit(opened)]
        for told in problems:
            _say(told)
        return _FAILED if problems else 0

    def _sealed_files(self) -> list[SealedFile]:
        return [self._file, self._sessions] if self._sessions.path.is_file() else [self._file]

    def _users_of(self, name: str) -> dict[str, str | None]:
        """The credentials that come from an entry, and their sources."""
        return {user: source for user, (entry, source) in self._users.items() if entry == name}

    def _missing(self, opened: Sealed) -> list[str]:
        return [
            f"credentials.{user}: expected an entry {entry} in {opened.called}; `credentials add {entry}` puts it there"
            for user, (entry, _) in self._users.items()
            if not opened.has(entry)
        ]

    def _unfit(self, opened: Sealed) -> Iterator[str]:
        for entry in opened.entries:
            try:
                self._check(entry.name, opened.values(entry.name))
            except BrokenCredential as problem:
                yield f"{entry.name}: {problem}; `credentials add {entry.name} --replace` puts others in their place"

    def _exposed(self) -> str:
        if self._keys.path.stat().st_mode & stat.S_IROTH:
            return f"{self._keys.path}: anybody on this machine may read it; chmod o= it, and change the key"
        return ""


# What comes in --------------------------------------------------------------------------------------------------------


def _typed() -> dict[str, str]:
    """Ask for values on a terminal. Raises _Refused."""
    try:
        values = {"tenant": _answer("Tenant, such as t0815"), "user": _answer("User; nothing for a token instead")}
        if values["user"]:
            values |= {"password": _hidden("Password"), "totp_secret": _hidden("TOTP secret, if it logs in with one")}
        else:
            values["token"] = _hidden("Token")
    except (EOFError, KeyboardInterrupt):
        raise _Refused("\nNothing is added") from None
    return {name: value for name, value in values.items() if value}


def _answer(question: str) -> str:
    print(f"{question}: ", end="", file=sys.stderr, flush=True)
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.strip()


def _hidden(question: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(f"{question} (not shown): ")
        except getpass.GetPassWarning:
            raise _Refused("This terminal would show what is typed: pipe the values in, see docs/vault.md") from None


def _piped(stream: IO[bytes]) -> dict[str, str]:
    """The values of lines of NAME=VALUE. Raises _Refused, and quotes nothing."""
    text = stream.read(_INPUT_LIMIT + 1)
    if len(text) > _INPUT_LIMIT:
        raise _Refused(f"standard input: expected at most {_INPUT_LIMIT} bytes")
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            name, _, value = line.decode().partition("=")
        except UnicodeDecodeError:
            raise _Refused(f"standard input, line {number}: expected UTF-8 text") from None
        if not line.strip():
            continue
        if name not in NAMES or name in values or not value:
            expected = f"NAME=VALUE, with one of {', '.join(NAMES)} as name, and each but once"
            raise _Refused(f"standard input, line {number}: expected {expected}")
        values[name] = value
    if not values:
        raise _Refused("standard input: expected values, in lines of NAME=VALUE")
    return values


def _refuse_taken(name: str, opened: Sealed) -> None:
    if opened.has(name):
        raise _Refused(f"{name}: expected a new name, and there is this entry; --replace has it hold other values")


# What is told ---------------------------------------------------------------------------------------------------------


def _what(values: Mapping[str, str]) -> str:
    """The names of all values but the tenant's, which stands by itself."""
    return _listed([name for name in NAMES if name in values and name != "tenant"])


def _shown(values: Mapping[str, str], name: str) -> str:
    """A value that is no secret, without anything that a terminal would obey."""
    value = values.get(name, "-")
    return value if value.isprintable() else value.encode("unicode_escape").decode()


def _time(entry: Entry) -> str:
    return f"{entry.changed:%Y-%m-%dT%H:%M:%SZ}"


def _listed(words: Sequence[str]) -> str:
    """As people list words."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
