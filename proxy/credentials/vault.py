"""The vault: one file of sealed entries, read again when it or its keys change; and a file like it for what the process
itself keeps across restarts.

1. The file is replaced as a whole or not at all, by one writer at a time. What a killed writer leaves behind is a file
   beside it, of sealed bytes alone; nothing reads it, and it may be removed.
2. Keys and values are read as they are at one moment, also where both files are replaced meanwhile.
3. An entry that is not in a vault that opens well was taken away on purpose. Whatever else is wrong with it was not.
4. What the process cannot open of its own is put aside, never deleted, and begun anew.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from proxy import files
from proxy.credentials.sealing import BadKeys, CannotOpen, KeyFile, Kind, NoSuchEntry, Opener, Sealed
from proxy.credentials.stored import BrokenCredential, RevokedCredential, UnreadableCredential


ENTRY_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FILE_LIMIT: Final = 4 * 1024 * 1024
_READ_ATTEMPTS: Final = 3

log = logging.getLogger(__name__)


class SealedFile:
    """A file of sealed entries, and the keys that open it. Both are looked at with every call."""

    def __init__(self, path: Path, keys: KeyFile, kind: Kind = Kind.VAULT) -> None:
        self.path: Final = path
        self.keys: Final = keys
        self._kind: Final = kind

    def fingerprint(self) -> files.Fingerprint:
        """What changes when the file or its keys do."""
        return files.fingerprint(self.path, self.keys.path)

    def open(self) -> Sealed:
        """As it is at this moment. Raises CannotOpen, BadKeys and OSError."""
        attempts = _READ_ATTEMPTS
        while True:
            seen = self.fingerprint()
            try:
                return self._opened(files.content(self.path, limit=_FILE_LIMIT), self.keys.read())
            except (CannotOpen, BadKeys, OSError):
                attempts -= 1
                if not attempts or self.fingerprint() == seen:
                    raise

    def change(self, change: Callable[[Sealed], Sealed]) -> None:
        """Replace it by what `change` makes of it, sealed by the first key. It is made where there is none.

        Raises CannotOpen, BadKeys, OSError, and what `change` raises.
        """
        while True:
            try:
                self._replace(change)
            except FileNotFoundError:
                if not self.keys.path.exists():  # else it is the file itself, which somebody may have made by now
                    raise
            else:
                return
            made = change(Sealed.new(self._kind, self.keys.read(), str(self.path)))
            try:
                files.create(self.path.resolve(), made.text())
            except FileExistsError:
                continue  # somebody else was faster
            return

    def rotate(self) -> tuple[int, tuple[int, ...]]:
        """Have it sealed by the first key; returns the line that sealed it, and those that it needs no longer.

        Raises CannotOpen, BadKeys and OSError.
        """
        before, keys = self._replace(lambda opened: opened)
        return before.opened_by, tuple(key.line for key in keys[1:])

    def _replace(self, change: Callable[[Sealed], Sealed]) -> tuple[Sealed, Sequence[Opener]]:
        """Returns what was there, and the keys of that moment."""
        with files.locked(self.path) as (file, target):
            keys = self.keys.read()
            before = self._opened(file.read(_FILE_LIMIT), keys)
            after = change(before).sealed_by(keys)
            if after != before:
                files.replace(target, after.text(), like=file.fileno())
        return before, keys

    def put_aside(self) -> tuple[Path, CannotOpen] | None:
        """Give it another name, if it cannot be opened still; returns that, and why. Raises BadKeys and OSError."""
        with files.locked(self.path) as (file, target):
            try:
                self._opened(file.read(_FILE_LIMIT), self.keys.read())
            except CannotOpen as problem:
                return files.put_aside(target), problem
        return None

    def _opened(self, text: bytes, keys: Sequence[Opener]) -> Sealed:
        return Sealed.open(text, self._kind, keys, str(self.path))


def moment(unix_now: float) -> datetime:
    """A time as entries carry it."""
    return datetime.fromtimestamp(int(unix_now), UTC)


class VaultEntry:
    """The values of one entry of a vault, as a `Store`."""

    def __init__(self, vault: SealedFile, name: str) -> None:
        self._vault = vault
        self._name = name

    def fingerprint(self) -> files.Fingerprint:
        return self._vault.fingerprint()

    def read(self) -> dict[str, str]:
        """Raises BrokenCredential."""
        try:
            return self._vault.open().values(self._name)
        except NoSuchEntry:
            raise RevokedCredential(
                f"The entry {self._name} is not in {self._vault.path}: "
                f"`c8y-realtime-proxy credentials add {self._name}` puts it there"
            ) from None
        except (CannotOpen, BadKeys) as problem:
            raise BrokenCredential(str(problem)) from None
        except OSError as error:
            raise UnreadableCredential(
                f"{error.filename or self._vault.path} cannot be read: {error.strerror}"
            ) from None


class Sessions:
    """What the process itself keeps across restarts, by name. `clock` gives Unix time.

    Each call reads the disk or writes to it, and may make a key of a passphrase: not for the event loop.
    """

    def __init__(self, path: Path, keys: KeyFile, clock: Callable[[], float]) -> None:
        self._file = SealedFile(path, keys, Kind.SESSIONS)
        self._clock = clock

    def load(self, name: str) -> dict[str, str] | None:
        """What was kept by this name. Raises BadKeys and OSError."""
        while True:
            try:
                opened = self._file.open()
                return opened.values(name) if opened.has(name) else None
            except FileNotFoundError:
                if self._file.path.exists():
                    raise  # it is the keys that are missing
                return None
            except CannotOpen:
                self._put_aside()

    def keep(self, name: str, values: Mapping[str, str]) -> None:
        """Keep this by that name, in place of what was. Raises BadKeys and OSError."""
        self._change(lambda kept: kept.put(name, values, moment(self._clock())))

    def forget(self, name: str) -> None:
        """Keep nothing by this name. Raises BadKeys and OSError."""
        if self._file.path.exists():
            self._change(lambda kept: kept.without(name))

    def _change(self, change: Callable[[Sealed], Sealed]) -> None:
        while True:
            try:
                self._file.change(change)
            except CannotOpen:
                self._put_aside()
            else:
                return

    def _put_aside(self) -> None:
        try:
            put = self._file.put_aside()
        except FileNotFoundError:
            return  # somebody else did
        if put is not None:
            aside, problem = put
            log.error("%s. It is called %s from now on, and sessions are kept anew", problem, aside)
