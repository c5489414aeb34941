"""TLS on both sides, with files that may change while it is in use: each TLS handshake goes by what they hold then."""

import contextlib
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from cryptography import x509

from proxy.files import Reloaded


Trust = Callable[[], ssl.SSLContext | None]
"""Gives what a connection to somebody is opened with; None while there is nothing to trust."""

# Of Python's own accord since 3.13. An authority of one's own, as `openssl req -x509` makes it, does not say what its
# key is for, nor its devices' certificates by which key they were signed: they need not, on any Python.
_STRICT: Final = ssl.VERIFY_X509_STRICT


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a listener shows, and when its certificate is over, in Unix time."""

    context: ssl.SSLContext
    expires_at: float


class ServerTls:
    """What a listener speaks TLS with.

    `client_ca` are those who certify clients, where these may show certificates; with `demands_certificate` they must.
    `key` names the files in the log, as the configuration does, and `on_load` is told of every attempt to read them.
    """

    def __init__(
        self,
        certificate: Path,
        private_key: Path,
        *,
        client_ca: Path | None = None,
        demands_certificate: bool = False,
        key: str,
        on_load: Callable[[bool], None],
    ) -> None:
        """Raises ValueError for files that cannot be used."""
        self._asks = client_ca is not None
        self._read_at = 0.0
        self._demands_certificate = demands_certificate
        self._key = key
        self._on_load = on_load
        self._files = self._reloaded(certificate, private_key, client_ca)
        shown = self._files.current()
        if shown is None:
            raise ValueError(f"{key}: cannot be used: see the log")
        shown.context.sni_callback = self._choose
        self.context: Final = shown.context
        """What the listener is opened with; it stays, and each TLS handshake goes by what the files hold by then."""

    def change(self, certificate: Path, private_key: Path, client_ca: Path | None) -> None:
        """Go by other files from now on, but by those before until these can be used; the log tells."""
        files = self._reloaded(certificate, private_key, client_ca, self._files.current())
        if files.files != self._files.files:
            self._files = files
            self._files.current()

    def expires_at(self) -> float:
        """When the certificate that is shown now is over, in Unix time; 0 where it does not say."""
        shown = self._files.current()
        return 0.0 if shown is None else shown.expires_at

    def _choose(self, connection: ssl.SSLObject, *_: object) -> int | None:
        """Go by what the files hold by now; returns the alert that ends the TLS handshake, if one does."""
        current = self._files.current()
        if current is None or current.context is self.context:
            return None
        connection.context = current.context
        if self._asks and connection.session_reused:
            # Nobody verifies its certificate again, and whoever certified it may not be trusted since.
            session = connection.session
            if session is None or session.time <= self._read_at:
                return ssl.ALERT_DESCRIPTION_CERTIFICATE_REVOKED
        return None

    def _reloaded(
        self, certificate: Path, private_key: Path, client_ca: Path | None, last: _Shown | None = None
    ) -> Reloaded[_Shown]:
        files = [certificate, private_key] if client_ca is None else [certificate, private_key, client_ca]

        def read() -> _Shown:
            self._read_at = time.time()  # by which TLS sessions tell their age, in whole seconds
            try:
                context = _context(certificate, private_key, client_ca, demands_certificate=self._demands_certificate)
            except ssl.SSLError:  # an OSError, but not one that may pass by itself
                raise ValueError(
                    "expected PEM in each file, and the key of the certificate without a passphrase"
                ) from None
            return _Shown(context, expiry_of(certificate.read_bytes()))

        return Reloaded(files, read, key=self._key, on_load=self._on_load, last=last)


def expiry_of(certificate: bytes) -> float:
    """When the first certificate of a file in PEM is over, in Unix time; 0 where it does not say."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
    except ValueError:  # what OpenSSL can show need not be what is understood here
        return 0.0


def _context(
    certificate: Path, private_key: Path, client_ca: Path | None, *, demands_certificate: bool
) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, private_key, password="")  # never asks a terminal
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_flags &= ~_STRICT
        context.verify_mode = ssl.CERT_REQUIRED if demands_certificate else ssl.CERT_OPTIONAL
        # A session that is resumed is not verified again, though its authority may have been taken out since.
        context.options |= ssl.OP_NO_TICKET
        with contextlib.suppress(AttributeError):  # not every library has it
            context.num_tickets = 0
    return context


def trusting(authorities: Path | None, *, key: str, on_load: Callable[[bool], None]) -> Trust:
    """What trusts these certificate authorities alone, as the file has them by then; None for those of the system."""
    if authorities is None:
        return cache(ssl.create_default_context)
    return Reloaded([authorities], lambda: trust_in(authorities), key=key, on_load=on_load).current


def trust_in(authorities: Path) -> ssl.SSLContext:
    """What trusts the certificate authorities of a file alone. Raises OSError, and ValueError for what is none."""
    try:
        context = ssl.create_default_context(cafile=authorities)
    except ssl.SSLError:  # an OSError, but not one that may pass by itself
        raise ValueError("expected certificates in PEM") from None
    context.verify_flags &= ~_STRICT
    return context
