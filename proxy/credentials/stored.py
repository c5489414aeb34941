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
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar, Unpack

from proxy.credentials.guard import Guard
from proxy.credentials.guards import Guards
from proxy.credentials.kinds import Basic, Credential, Jwt, is_token
from proxy.credentials.sources import CoolingDown, NoCredential, SourceOptions
from proxy.files import identity_of
from proxy.head import Head


NAMES: Final = ("tenant", "user", "password", "tfa", "token", "tfa_code", "totp_secret")
_FOR_LOGIN_ONLY: Final = ("tfa_code", "totp_secret")
_FILE_LIMIT: Final = 64 * 1024
_READ_ATTEMPTS: Final = 3

Value = TypeVar("Value")

log = logging.getLogger(__name__)


class BrokenCredential(ValueError):
    """Stored values that make no credential. The text names the values, never their content."""


class RevokedCredential(BrokenCredential):
    """Stored values that were taken away on purpose: those before must be used no longer."""


class UnreadableCredential(BrokenCredential):
    """Stored values that could not be read for a reason that may pass by itself."""


def credential_from(values: Mapping[str, str]) -> Basic | Jwt:
    """Make the one credential that the values describe. Raises BrokenCredential.

    `token` alone makes a Jwt; `user` and `password`, with an optional `tenant` and `tfa`, make a Basic.
    """
    check_text(values)
    for name in _FOR_LOGIN_ONLY:
        if name in values:
            raise BrokenCredential(f"{name} is for a login (source = login), and means nothing here: take it away")
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


def check_text(values: Mapping[str, str]) -> None:
    """Raises BrokenCredential where a value is no text."""
    for name, value in values.items():
        if not _is_utf8(value):
            raise BrokenCredential(f"{name} is not UTF-8 text")


def _is_utf8(value: str) -> bool:
    """An environment may hold any bytes; Python smuggles those that are no UTF-8 into texts as surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


Fingerprint = tuple[object, ...]


class Store(Protocol):
    """Where values are kept."""

    def fingerprint(self) -> Fingerprint | None:
        """What changes when any value does; None when there is nothing to look at."""
        ...

    def read(self) -> Mapping[str, str]:
        """All values at one moment, by the names of `NAMES`. Raises BrokenCredential."""
        ...


class FixedValues:
    """Values given once, as those of an environment are."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def fingerprint(self) -> Fingerprint:
        return ()

    def read(self) -> Mapping[str, str]:
        return self._values


class Watched(Generic[Value]):
    """What `read` makes of values. They are looked at each time, and read again when `fingerprint` says that they have
    changed.

    `read` raises BrokenCredential, of which `tell` is told once per change. What could not be read for a reason that
    may pass is read again at each look.
    """

    def __init__(
        self, fingerprint: Callable[[], object], read: Callable[[], Value], tell: Callable[[BrokenCredential], None]
    ) -> None:
        self._fingerprint = fingerprint
        self._read = read
        self._tell = tell
        self._seen: object = ("never looked",)
        self.complaint = ""
        """What is wrong with the values; empty while they are well."""

    def look(self) -> Value | None:
        """What the values amount to, where they have changed since the last look, and are well."""
        seen = self._fingerprint()
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            value = self._read()
        except BrokenCredential as problem:
            told, self.complaint = self.complaint, str(problem)
            may_pass = isinstance(problem, UnreadableCredential)
            if may_pass:
                self._seen = ("look again",)
            if not (may_pass and told == self.complaint):
                self._tell(problem)
            return None
        self.complaint = ""
        return value


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
        return identity_of(os.stat(name, dir_fd=directory))
    except OSError:
        return None


class StoredSource:
    """One stored credential for all clients; `kind` is what metrics call the source."""

    is_clients_own: Final = False

    def __init__(self, store: Store, *, kind: str = "stored", **options: Unpack[SourceOptions]) -> None:
        self.name: Final = kind
        self.is_revoked = False
        self._called = options["credential"]
        self._cooldown = options["cooldown_seconds"]
        self._on_load = options["on_load"]
        self._values = Watched(store.fingerprint, lambda: credential_from(store.read()), self._complain)
        self._credential: Basic | Jwt | None = None
        self._guards = Guards(self._cooldown, options["clock"], self._tell_denied)
        self._is_retired = False

    def is_usable(self) -> bool:
        self._look()
        return self._credential is not None

    def retire(self) -> None:
        self._is_retired = True
        self._guards.renew()

    @property
    def complaint(self) -> str:
        """What is wrong with the values, as the log tells it; empty while they are well."""
        return self._values.complaint

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
        if credential != self._credential or self._is_retired:
            raise NoCredential("The stored credential has changed: connect again")
        self._check_rest(endpoint)

    def guard(self, credential: Credential, endpoint: str) -> Guard | None:
        if self._is_retired or (credential is not self._credential and credential != self._credential):
            return None
        return self._guards.at(endpoint)

    def _check_rest(self, endpoint: str) -> None:
        if seconds := self._guards.resting_seconds(endpoint):
            raise CoolingDown(seconds)

    def _tell_denied(self, endpoint: str) -> None:
        log.error(
            "Upstream rejected the credential %s at %s; it is not offered there for %g s unless it changes",
            self._called,
            endpoint,
            self._cooldown,
        )

    def _look(self) -> None:
        credential = self._values.look()
        if credential is not None:
            self.is_revoked = False
            self._take(credential)
            self._on_load(True)  # noqa: FBT003 - the callback's one argument

    def _take(self, credential: Basic | Jwt | None) -> None:
        if credential != self._credential:
            self._credential = credential
            self._guards.renew()

    def _complain(self, problem: BrokenCredential) -> None:
        """Log and count what is wrong."""
        if isinstance(problem, RevokedCredential):
            self.is_revoked = True
            self._take(None)
        remedy = "Handshakes are refused until it is mended" if self._credential is None else "The last good one stays"
        log.error("The credential %s is broken: %s. %s", self._called, problem, remedy)
        self._on_load(False)  # noqa: FBT003 - see above
