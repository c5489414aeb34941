"""Sealed values: who reads the store reads nothing, and who writes to it puts nothing into it."""

import secrets
from collections.abc import Callable, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_PADDED_TO: Final = 256
_PURPOSE: Final = b"c8y-realtime-proxy session\0"  # one secret never serves two purposes

Secrets = Callable[[], Sequence[bytes] | None]
"""Gives the secrets of this moment: the first one seals, and each of them opens."""


class Sealing:
    """Seals values, by AES-256-GCM, each tied to the key that it is stored by: it opens in no other place."""

    def __init__(self, secrets_now: Secrets) -> None:
        self._secrets_now = secrets_now
        self._made: dict[bytes, AESGCM] = {}

    def seal(self, key: str, plain: bytes) -> bytes:
        """A value as it is stored by that key; how long it is tells little."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        padded = len(plain).to_bytes(4, "big") + plain + bytes(-(len(plain) + 4) % _PADDED_TO)
        return nonce + self._ciphers()[0].encrypt(nonce, padded, _tie(key))

    def unseal(self, key: str, sealed: bytes) -> bytes | None:
        """The value; None for what was not sealed so, or by a secret that is gone."""
        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        for cipher in self._ciphers():
            try:
                padded = cipher.decrypt(nonce, rest, _tie(key))
            except (InvalidTag, ValueError):
                continue
            return padded[4 : 4 + int.from_bytes(padded[:4], "big")]
        return None

    def _ciphers(self) -> list[AESGCM]:
        known = list(self._secrets_now() or ())
        self._made = {secret: self._made.get(secret) or _cipher(secret) for secret in known}
        return list(self._made.values())


def _cipher(secret: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), _KEY_BYTES, salt=None, info=_PURPOSE).derive(secret))


def _tie(key: str) -> bytes:
    return _PURPOSE + key.encode()
