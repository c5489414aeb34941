"""Sealing: many values in one text, opened by keys that are kept elsewhere.

1. Each entry is sealed by itself, with AES-256-GCM and a random nonce, by keys that are derived from one random data
   key. That is sealed in turn: by a key of a file, or by one that Argon2id makes of a passphrase. Another key or
   passphrase means that one small value is sealed anew.
2. What is sealed is tied to its text, format, version and name, and opens in no other place.
3. A MAC over all the rest ties the text together, and only the very bytes count that would be written here. So what
   was changed, cut off, left out, added or moved is noticed. A whole older text is as good as it was then.
4. Values are padded, so that their length tells little. No error and no repr holds a key or a value.
"""

import base64
import errno
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Final, Protocol, Self

import msgspec
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from proxy import files


KEY_BYTES: Final = 32
_LEAST_PASSPHRASE_BYTES: Final = 12

_VERSION: Final = 1
_ID_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_SALT_BYTES: Final = 16
_PADDED_TO: Final = 256
_KEY_FILE_LIMIT: Final = 64 * 1024

# RFC 9106, section 4: the second recommended option, for where memory is scarce.
_MEMORY_KIB: Final = 64 * 1024
_ITERATIONS: Final = 3
_LANES: Final = 4

# What a text may ask for at most, so that one that was made up takes neither the memory nor the day.
_MOST_MEMORY_KIB: Final = 4 * _MEMORY_KIB
_MOST_ITERATIONS: Final = 16
_MOST_LANES: Final = 16
_SALT_LENGTHS: Final = range(_SALT_BYTES, 65)

MAKE_A_KEY: Final = "`(umask 077; head -c 32 /dev/urandom | base64 > FILE)`"


class CannotOpen(ValueError):
    """A sealed text that cannot be opened. The text of this says why, and what to do; it quotes nothing."""


class NotSealed(CannotOpen):
    """Something else altogether."""


class OtherVersion(CannotOpen):
    """Written by another version of this program."""


class Tampered(CannotOpen):
    """Not what was written: changed, cut off, or put together from others."""


class NoKeyOpens(CannotOpen):
    """Sealed by another key or passphrase than those that there are."""


class BadKeys(ValueError):
    """A file of keys or passphrases that is none. The text says which line is wrong, and what to do."""


class NoSuchEntry(LookupError):
    """There is no entry of that name."""


class Kind(StrEnum):
    """What a sealed text is for; one is never taken for the other."""

    VAULT = "vault"
    SESSIONS = "sessions"


# The text -------------------------------------------------------------------------------------------------------------


class _ByKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="key"):
    """A data key that was sealed by a key."""

    sealed: bytes

    @property
    def parameters(self) -> tuple[int, ...]:
        return ()


class _ByPassphrase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="passphrase"):
    """A data key that was sealed by a passphrase, and how a key is made of that by Argon2id."""

    memory_kib: int
    iterations: int
    lanes: int
    salt: bytes
    sealed: bytes

    @property
    def parameters(self) -> tuple[int, ...]:
        return self.memory_kib, self.iterations, self.lanes

    @property
    def is_bounded(self) -> bool:
        return (
            1 <= self.lanes <= _MOST_LANES
            and 8 * self.lanes <= self.memory_kib <= _MOST_MEMORY_KIB
            and 1 <= self.iterations <= _MOST_ITERATIONS
            and len(self.salt) in _SALT_LENGTHS
        )


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name, when its values were changed, and the values, sealed."""

    name: str
    changed: datetime
    sealed: bytes


class _Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    version: int
    id: bytes
    key: _ByKey | _ByPassphrase
    entries: tuple[Entry, ...]
    mac: bytes = b""

    def written(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


class _Beginning(msgspec.Struct):
    format: str
    version: int


def _format(kind: Kind) -> str:
    return f"c8y-realtime-proxy {kind}"


def _read(text: bytes, kind: Kind, called: str) -> _Text:
    """Raises CannotOpen."""
    try:
        beginning = msgspec.json.decode(text, type=_Beginning)
    except (ValueError, RecursionError):
        if f'"format": "{_format(kind)}"'.encode() in text:
            raise _tampered(called) from None
        raise _not_sealed(kind, called) from None
    if beginning.format != _format(kind):
        raise _not_sealed(kind, called)
    if beginning.version != _VERSION:
        raise OtherVersion(
            f"{called} was written by another version, in format {beginning.version}; "
            f"this one reads format {_VERSION}: use that version, or a copy of the file from before"
        )
    try:
        read = msgspec.json.decode(text, type=_Text)
    except (ValueError, RecursionError):
        raise _tampered(called) from None
    if read.written() != text or len(read.id) != _ID_BYTES:
        raise _tampered(called)
    return read


def _not_sealed(kind: Kind, called: str) -> NotSealed:
    return NotSealed(f"{called} is not a {kind} file of c8y-realtime-proxy: expected one that it made, or no file yet")


def _tampered(called: str) -> Tampered:
    return Tampered(f"{called} is not as it was written: it was changed or cut off; put a copy in its place")


def _tie(kind: Kind, identity: bytes, *purpose: str) -> bytes:
    """What ties something sealed to its place; it has to be the same when it is opened."""
    return msgspec.json.encode([_format(kind), _VERSION, identity, *purpose])


def _seal(key: bytes, plain: bytes, tie: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, tie)


def _unseal(key: bytes, sealed: bytes, tie: bytes) -> bytes | None:
    """None for what was not sealed so."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], tie)
    except (InvalidTag, ValueError):
        return None


# Keys -----------------------------------------------------------------------------------------------------------------


class Opener(Protocol):
    """A line of a file that opens what was sealed by it."""

    @property
    def line(self) -> int:
        """Its number, from 1."""
        ...

    @property
    def sealer(self) -> type[_ByKey | _ByPassphrase]:
        """How it seals."""
        ...

    def seal(self, data_key: bytes, tie: bytes) -> _ByKey | _ByPassphrase: ...

    def unseal(self, sealed: _ByKey | _ByPassphrase, tie: bytes) -> bytes | None:
        """The data key; None where another line sealed it."""
        ...

    def is_up_to_date(self, sealed: _ByKey | _ByPassphrase) -> bool:
        """Whether it would be sealed in the same way now."""
        ...


@dataclass(frozen=True, slots=True)
class _Key:
    sealer: ClassVar[type[_ByKey]] = _ByKey

    line: int
    key: bytes = field(repr=False)

    def seal(self, data_key: bytes, tie: bytes) -> _ByKey:
        return _ByKey(_seal(self.key, data_key, tie))

    def unseal(self, sealed: _ByKey | _ByPassphrase, tie: bytes) -> bytes | None:
        return _unseal(self.key, sealed.sealed, tie) if isinstance(sealed, _ByKey) else None

    def is_up_to_date(self, sealed: _ByKey | _ByPassphrase) -> bool:
        return isinstance(sealed, _ByKey)


@dataclass(frozen=True, slots=True)
class _Passphrase:
    sealer: ClassVar[type[_ByPassphrase]] = _ByPassphrase

    line: int
    passphrase: bytes = field(repr=False)

    def seal(self, data_key: bytes, tie: bytes) -> _ByPassphrase:
        unsealed = _ByPassphrase(_MEMORY_KIB, _ITERATIONS, _LANES, secrets.token_bytes(_SALT_BYTES), b"")
        return msgspec.structs.replace(unsealed, sealed=_seal(self._key(unsealed), data_key, tie))

    def unseal(self, sealed: _ByKey | _ByPassphrase, tie: bytes) -> bytes | None:
        return _unseal(self._key(sealed), sealed.sealed, tie) if isinstance(sealed, _ByPassphrase) else None

    def is_up_to_date(self, sealed: _ByKey | _ByPassphrase) -> bool:
        return sealed.parameters == (_MEMORY_KIB, _ITERATIONS, _LANES)

    def _key(self, sealed: _ByPassphrase) -> bytes:
        return _derived(self.passphrase, sealed.salt, *sealed.parameters)


@lru_cache(maxsize=16)
def _derived(passphrase: bytes, salt: bytes, memory_kib: int, iterations: int, lanes: int) -> bytes:
    """The key that a passphrase amounts to. It takes the tenth of a second, so it is remembered.

    Raises BadKeys, and OSError where there is no memory for it now.
    """
    try:
        made = Argon2id(salt=salt, length=KEY_BYTES, iterations=iterations, lanes=lanes, memory_cost=memory_kib)
    except UnsupportedAlgorithm:
        raise BadKeys(
            "Passphrases need Argon2id, which the cryptography library here lacks: use vault.key_file"
        ) from None
    try:
        return made.derive(passphrase)
    except MemoryError:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None


@dataclass(frozen=True, slots=True)
class KeyFile:
    """Where keys are kept, or passphrases: one per line, of which the first seals, and all open."""

    path: Path
    holds_passphrases: bool = False

    def read(self) -> Sequence[Opener]:
        """The lines at this moment. Raises BadKeys and OSError."""
        lines = files.content(self.path, limit=_KEY_FILE_LIMIT).splitlines()
        made = _passphrase if self.holds_passphrases else _key
        openers = [made(number, line, self.path) for number, line in enumerate(lines, 1) if line.strip()]
        if not openers:
            what = "a passphrase in its first line" if self.holds_passphrases else f"a key: make one with {MAKE_A_KEY}"
            raise BadKeys(f"{self.path} is empty: expected {what}")
        return openers


def _key(number: int, line: bytes, file: Path) -> _Key:
    """Raises BadKeys."""
    try:
        key = base64.b64decode(line.strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise BadKeys(
            f"{file}: line {number} is no key: expected {KEY_BYTES} bytes in base64, as {MAKE_A_KEY} makes them"
        )
    return _Key(number, key)


def _passphrase(number: int, line: bytes, file: Path) -> _Passphrase:
    """Raises BadKeys."""
    if len(line.strip()) < _LEAST_PASSPHRASE_BYTES:
        raise BadKeys(f"{file}: line {number} is no passphrase: expected at least {_LEAST_PASSPHRASE_BYTES} characters")
    return _Passphrase(number, line)


# What is open ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed text that is open. `opened_by` is the line of the key that opened it; `called` is for errors."""

    called: str
    kind: Kind
    entries: tuple[Entry, ...]
    opened_by: int
    _id: bytes
    _key: _ByKey | _ByPassphrase
    _data_key: bytes = field(repr=False)

    @classmethod
    def new(cls, kind: Kind, keys: Sequence[Opener], called: str) -> Self:
        """One without entries."""
        identity, data_key = secrets.token_bytes(_ID_BYTES), secrets.token_bytes(KEY_BYTES)
        return cls(
            called, kind, (), keys[0].line, identity, keys[0].seal(data_key, _tie(kind, identity, "key")), data_key
        )

    @classmethod
    def open(cls, text: bytes, kind: Kind, keys: Sequence[Opener], called: str) -> Self:
        """Raises CannotOpen, and with passphrases BadKeys and OSError."""
        read = _read(text, kind, called)
        if isinstance(read.key, _ByPassphrase) and not read.key.is_bounded:
            raise _tampered(called)
        if keys[0].sealer is not type(read.key):
            is_by_key = isinstance(read.key, _ByKey)
            was, key = ("a key", "key_file") if is_by_key else ("a passphrase", "passphrase_file")
            raise NoKeyOpens(f"{called} is sealed by {was}: set vault.{key}")
        tie = _tie(kind, read.id, "key")
        for opener in keys:
            if (data_key := opener.unseal(read.key, tie)) is None:
                continue
            opened = cls(called, kind, read.entries, opener.line, read.id, read.key, data_key)
            if not hmac.compare_digest(opened._mac(), read.mac):
                raise _tampered(called)
            return opened
        raise NoKeyOpens(
            f"{called} is opened by none of the {len(keys)} lines of its keys: bring the line back that sealed it, "
            "or put a copy of the file in its place"
        )

    def text(self) -> bytes:
        """As it is written."""
        return msgspec.structs.replace(self._unsigned(), mac=self._mac()).written()

    def values(self, name: str) -> dict[str, str]:
        """The values of an entry. Raises NoSuchEntry, and CannotOpen."""
        plain = _unseal(self._derived("values"), self.entry(name).sealed, _tie(self.kind, self._id, "entry", name))
        if plain is None:
            raise _tampered(self.called)
        return msgspec.json.decode(plain, type=dict[str, str])

    def entry(self, name: str) -> Entry:
        """Raises NoSuchEntry."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise NoSuchEntry(name)

    def has(self, name: str) -> bool:
        return any(entry.name == name for entry in self.entries)

    def put(self, name: str, values: Mapping[str, str], changed: datetime) -> Self:
        """With these values by that name, in the place of those that there are."""
        plain = msgspec.json.encode(dict(values))
        plain += b" " * (-len(plain) % _PADDED_TO)
        sealed = _seal(self._derived("values"), plain, _tie(self.kind, self._id, "entry", name))
        fresh = Entry(name, changed.replace(microsecond=0), sealed)
        if not self.has(name):
            return replace(self, entries=(*self.entries, fresh))
        return replace(self, entries=tuple(fresh if entry.name == name else entry for entry in self.entries))

    def without(self, name: str) -> Self:
        return replace(self, entries=tuple(entry for entry in self.entries if entry.name != name))

    def sealed_by(self, keys: Sequence[Opener]) -> Self:
        """The same under the first of these keys; the entries stay sealed as they are."""
        if self.opened_by == keys[0].line and keys[0].is_up_to_date(self._key):
            return self
        return replace(
            self, opened_by=keys[0].line, _key=keys[0].seal(self._data_key, _tie(self.kind, self._id, "key"))
        )

    def _unsigned(self) -> _Text:
        return _Text(_format(self.kind), _VERSION, self._id, self._key, self.entries)

    def _mac(self) -> bytes:
        return hmac.digest(self._derived("listing"), msgspec.json.encode(self._unsigned()), "sha256")

    def _derived(self, purpose: str) -> bytes:
        """A key for one purpose only."""
        return HKDFExpand(SHA256(), KEY_BYTES, f"c8y-realtime-proxy {purpose}".encode()).derive(self._data_key)
