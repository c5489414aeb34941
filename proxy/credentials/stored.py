"""Stored values: a directory with one file per value, or values given once.

1. The directory is looked at each time a connection opens; there is no watcher to race. Looking costs a handful of
   `stat` calls; the few small files are read again only when the fingerprint changed. Both are done in place rather
   than in a thread, so that no other task can see a half-made change.
2. Everything is read relative to the *resolved* directory and its fingerprint is compared again afterwards, so user
   and password never tear: not under Kubernetes' `..data` symlink swap, a rename, or an edit in place.
3. A broken directory keeps the last good value and is counted, once per change; what could not be read for a reason
   that may pass (no descriptor left, say) is tried again at each look.
4. A value that upstream denied is not offered again at that endpoint until it changes or has cooled down, and one that
   may be denied is offered by one client at a time; see `guard`.
"""

import logging
import os
import stat
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from proxy.credentials.guard import Guard
from proxy.credentials.kinds import Basic, Credential, Jwt, is_token
from proxy.credentials.sources import CoolingDown, NoCredential
from proxy.head import Head


NAMES: Final = ("tenant", "user", "password", "tfa", "token")
_FILE_LIMIT: Final = 64 * 1024
_READ_ATTEMPTS: Final = 3

log = logging.getLogger(__name__)


class BrokenCredential(ValueError):
    """Stored values that make no credential. The text names the values, never their content."""


class UnreadableCredential(BrokenCredential):
    """Stored values that could not be read for a reason that may pass by itself."""


def credential_from(values: Mapping[str, str]) -> Basic | Jwt:
    """Make the one credential that the values describe. Raises BrokenCredential.

    `token` alone makes a Jwt; `user` and `password`, with an optional `tenant` and `tfa`, make a Basic.
    """
    for name, value in values.items():
        if not _is_utf8(value):
            raise BrokenCredential(f"{name} is not UTF-8 text")
    if "token" in values:
        others = [name for name in ("user", "password", "tfa") if name in values]
        if others:
            raise BrokenCredential(
                f"token and {', '.join(others)} are both there: keep the token, or user and password"
            )
        if not is_token(values["token"]):
            raise BrokenCredential("token is not a JSON Web Token: it holds characters that none has")
        return Jwt(values["token"])
    missing = [name for name in ("user", "password") if name not in values]
    if missing:
        raise BrokenCredential(f"{' and '.join(missing)} missing: store user and password, or a token")
    for name in ("tenant", "user"):
        if ":" in values.get(name, ""):
            raise BrokenCredential(f"{name} contains a colon, which basic authentication cannot carry")
    if not is_token(values.get("tfa", "x")):
        raise BrokenCredential("tfa is not a token: it holds characters that no header carries")
    return Basic(values["user"], values["password"], tenant=values.get("tenant"), tfa=values.get("tfa"))


def _is_utf8(value: str) -> bool:
    """An environment may hold any bytes; Python smuggles those that are no UTF-8 into texts as surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


Fingerprint = tuple[object, ...]


class SecretDirectory:
    """A directory as a mounted Kubernetes Secret lays it out: one file per value, named as in `NAMES`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fingerprint(self) -> Fingerprint | None:
        """What changes when any value does; None when the directory cannot be opened."""
        try:
            directory = self._open()
        except OSError:
            return None
        try:
            return _fingerprint(directory)
        finally:
            os.close(directory)

    def read(self) -> dict[str, str]:
        """All values at one moment. Raises BrokenCredential."""
        for _ in range(_READ_ATTEMPTS):
            try:
                directory = self._open()
            except OSError as error:
                raise UnreadableCredential(f"{self._path} cannot be opened: {error.strerror}") from None
            try:
                before = _fingerprint(directory)
                values = {name: value for name in NAMES if (value := self._value(name, directory)) is not None}
                if before == _fingerprint(directory) == self.fingerprint():
                    return values
            finally:
                os.close(directory)
        raise BrokenCredential(f"{self._path} kept changing while it was read")

    def _open(self) -> int:
        # Kubernetes points `..data` at the current generation; its entries all change at once with that link.
        generation = self._path / "..data"
        return os.open(
            os.path.realpath(generation if generation.is_dir() else self._path), os.O_RDONLY | os.O_DIRECTORY
        )

    def _value(self, name: str, directory: int) -> str | None:
        try:
            file = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=directory)  # a pipe must not hold us up
        except FileNotFoundError:
            if name not in os.listdir(directory):
                return None
            raise BrokenCredential(f"{self._path / name} points nowhere") from None
        except OSError as error:
            raise self._unreadable(name, error) from None
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise BrokenCredential(f"{self._path / name} is not a file")
            content = os.read(file, _FILE_LIMIT)
            value = content.decode().rstrip("\r\n")
        except OSError as error:
            raise self._unreadable(name, error) from None
        except UnicodeDecodeError:
            raise BrokenCredential(f"{self._path / name} is not UTF-8 text") from None
        finally:
            os.close(file)
        if not value or len(content) == _FILE_LIMIT:
            raise BrokenCredential(f"{self._path / name} is {'too long' if value else 'empty'}")
        return value

    def _unreadable(self, name: str, error: OSError) -> UnreadableCredential:
        return UnreadableCredential(f"{self._path / name} cannot be read: {error.strerror}")


def _fingerprint(directory: int) -> Fingerprint:
    return tuple(_identity(name, directory) for name in NAMES)


def _identity(name: str, directory: int) -> tuple[int, ...] | None:
    try:
        status = os.stat(name, dir_fd=directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class StoredSource:
    """One stored credential for all clients.

    `clock` gives monotonic seconds; `on_load` is told of every attempt to load, whether it went well.
    """

    name: Final = "stored"
    is_clients_own: Final = False

    def __init__(
        self,
        store: SecretDirectory | Mapping[str, str],
        *,
        cooldown_seconds: float,
        clock: Callable[[], float],
        on_load: Callable[[bool], None],
    ) -> None:
        self._store = store
        self._cooldown = cooldown_seconds
        self._clock = clock
        self._on_load = on_load
        self._seen: Fingerprint | None = ("never looked",)
        self._credential: Basic | Jwt | None = None
        self._guards: dict[str, Guard] = {}
        self._complaint = ""

    def is_usable(self) -> bool:
        self._look()
        return self._credential is not None

    def secrets(self) -> tuple[str, ...]:
        if self._credential is None:
            return ()
        sent = tuple(self._credential.authn().values())
        return (self._credential.password, *sent) if isinstance(self._credential, Basic) else sent

    def obtain(self, head: Head, endpoint: str) -> Credential:  # noqa: ARG002 - one credential for all clients
        """Raises NoCredential, and CoolingDown as one kind of it."""
        self._look()
        if self._credential is None:
            raise NoCredential("No credential is stored yet")
        self._check_rest(endpoint)
        return self._credential

    def recheck(self, credential: Credential, endpoint: str) -> None:
        """Raises NoCredential when the stored value has changed since, and CoolingDown."""
        self._look()
        if credential != self._credential:
            raise NoCredential("The stored credential has changed: connect again")
        self._check_rest(endpoint)

    def guard(self, credential: Credential, endpoint: str) -> Guard | None:
        if credential is not self._credential and credential != self._credential:
            return None
        guard = self._guards.get(endpoint)
        if guard is None:
            guard = self._guards[endpoint] = Guard(self._cooldown, self._clock, partial(self._tell_denied, endpoint))
        return guard

    def _check_rest(self, endpoint: str) -> None:
        guard = self._guards.get(endpoint)
        if guard is not None and (seconds := guard.resting_seconds):
            raise CoolingDown(seconds)

    def _tell_denied(self, endpoint: str) -> None:
        log.error(
            "Upstream rejected the stored credential at %s; it is not offered there for %g s unless it changes",
            endpoint,
            self._cooldown,
        )

    def _look(self) -> None:
        seen = self._store.fingerprint() if isinstance(self._store, SecretDirectory) else ()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            credential = credential_from(
                self._store.read() if isinstance(self._store, SecretDirectory) else self._store
            )
        except BrokenCredential as problem:
            self._complain(problem)
            return
        self._complaint = ""
        if credential != self._credential:
            self._credential = credential
            guards, self._guards = self._guards, {}
            for guard in guards.values():  # what waits has the old value in hand
                guard.call_off()
        self._on_load(True)  # noqa: FBT003 - the callback's one argument

    def _complain(self, problem: BrokenCredential) -> None:
        """Log and count what is wrong; what may pass by itself is looked at again, but told only once."""
        if isinstance(problem, UnreadableCredential):
            self._seen = ("look again",)
            if str(problem) == self._complaint:
                return
        self._complaint = str(problem)
        remedy = "Handshakes are refused until it is mended" if self._credential is None else "The last good one stays"
        log.error("The stored credential is broken: %s. %s", problem, remedy)
        self._on_load(False)  # noqa: FBT003 - see above
