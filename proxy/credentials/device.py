"""A device's token: given by the platform for its certificate, fetched again long before it is over.

1. The token is read to plan by, never to judge: when upstream does not take it, that is what counts.
2. The files of the certificate are looked at whenever the source is. When they have changed, a token is fetched for the
   new certificate at once; the old one serves until it is here, and for as long as it is good if the new certificate
   is broken.
"""

import hashlib
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Unpack

from proxy.credentials.fetched import FetchDenied, Fetched, FetchedSource, FetchingOptions
from proxy.credentials.kinds import Credential, Jwt
from proxy.credentials.stored import BrokenCredential, UnreadableCredential
from proxy.files import fingerprint
from proxy.tls import expiry_of
from proxy.upstream.platform import Denied, Platform, claims_of


_PART: Final = 2 / 3
"""Of the life of a token, after which another is fetched."""

_UNKNOWN_SECONDS: Final = 1800.0
"""After so long another is fetched for a token that does not say how long it lives; by default it is an hour."""

_LEAST_LIFE: Final = 60.0
"""What lives shorter does not know what it says: the platform gives no token for less than five minutes."""

_MOST_SECONDS: Final = 86_400.0


class DeviceSource(FetchedSource):
    """The token that is given at `url` for the device certificate in two files, in PEM.

    `unix_clock` gives Unix time; the rest is as `FetchedSource` has it.
    """

    def __init__(
        self,
        platform: Platform,
        *,
        url: str,
        certificate_file: Path,
        key_file: Path,
        unix_clock: Callable[[], float] = time.time,
        **options: Unpack[FetchingOptions],
    ) -> None:
        super().__init__(kind="device", **options)
        self._platform = platform
        self._url = url
        self._files = certificate_file, key_file
        self._unix_clock = unix_clock
        self._digest = b""
        self.expires_at = 0.0
        """When the certificate is over, in Unix time; 0 before one was read."""

    def fingerprint(self) -> object:
        return fingerprint(*self._files)

    def reread(self) -> bool:
        """Raises BrokenCredential."""
        before, self._digest = self._digest, self._read()
        return self._digest != before

    async def renewed(self, credential: Credential) -> Fetched:  # noqa: ARG002 - a token says nothing about the next
        """Another one, while the one before serves."""
        return await self.fetch()

    async def fetch(self) -> Fetched:
        try:
            token = await self._platform.device_token(self._url, *self._files)
        except Denied as denied:
            raise FetchDenied(str(denied)) from None
        life = self._life_of(token)
        if life is None:
            return Fetched(Jwt(token), again_seconds=_UNKNOWN_SECONDS)
        spread = 1 - self._chance() / 10  # so that devices that were switched on together do not ask together
        return Fetched(Jwt(token), again_seconds=min(life * _PART * spread, _MOST_SECONDS), good_seconds=life)

    def _life_of(self, token: str) -> float | None:
        """For how many seconds a fresh token is good; None where it does not say so.

        By its own account alone, if it has one: the clock of a gateway may be wrong.
        """
        claims = claims_of(token)
        if claims.expires_at is None:
            return None
        life = claims.expires_at - (self._unix_clock() if claims.issued_at is None else claims.issued_at)
        return life if life >= _LEAST_LIFE else None

    def _read(self) -> bytes:
        """What tells this pair of files from others; they are not kept, but for its end. Raises BrokenCredential."""
        certificate, key = self._files
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")  # asks no terminal
            shown, hidden = certificate.read_bytes(), key.read_bytes()
            self.expires_at = expiry_of(shown)
            return hashlib.sha256(shown + hidden).digest()
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise BrokenCredential("key_file is not the key of certificate_file") from None
            text = "expected PEM in certificate_file and key_file, and the key without a passphrase"
            raise BrokenCredential(text) from None
        except OSError as error:
            raise UnreadableCredential(f"certificate_file or key_file cannot be read: {error.strerror}") from None
