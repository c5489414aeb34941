"""What a credential is made from, before anybody is asked whether it is good."""

import ssl
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from proxy.config import Config, entry_of, source_of
from proxy.credentials.kinds import Jwt
from proxy.credentials.login import login_from
from proxy.credentials.stored import NAMES, BrokenCredential, credential_from
from proxy.credentials.subscriptions import bootstrap_from
from proxy.doctor.findings import Finding, Verdict, listed
from proxy.doctor.network import SOON_SECONDS
from proxy.upstream.platform import claims_of
from proxy.wiring import store_of


_BROUGHT: Final = {
    "cookie": "Clients bring their own: the authorization cookie of a platform session, and the XSRF token of it",
    "session": "Who signs in has one; nothing is stored for it",
}


def shape(config: Config, name: str, clock: Callable[[], float] = time.time) -> Finding:
    """Look at what a credential is made from; `clock` gives Unix time."""
    settings = config.credentials[name]
    try:
        match source_of(settings):
            case "cookie" | "session" as source:
                return Finding("shape", Verdict.SKIPPED, _BROUGHT[source], credential=name)
            case "device" if settings.certificate_file is not None:
                return _certificate(name, settings.certificate_file, clock())
            case "login":
                values = store_of(config, name).read()
                login_from(values)
            case "subscriptions":
                values = store_of(config, name).read()
                bootstrap_from(values)
            case _:
                values = store_of(config, name).read()
                credential = credential_from(values)
                if isinstance(credential, Jwt):
                    return _token(name, credential, clock())
                if credential.tenant is None:
                    text = "User and password are there without a tenant, so upstream goes by the name in upstream.url"
                    return Finding("shape", Verdict.WARNING, text, "Store the tenant, too", name)
    except BrokenCredential as problem:
        return Finding("shape", Verdict.FAILED, str(problem), _mending(config, name), name)
    return Finding("shape", Verdict.OK, f"{_listed(values)} are there", credential=name)


def _mending(config: Config, name: str) -> str:
    """Where it can be mended."""
    if entry_of(name, config.credentials[name]) is not None:
        return "Mend vault.file, or what opens it"
    if config.credentials[name].directory is not None:
        return f"Mend what credentials.{name}.directory holds"
    return "Mend the environment that the proxy is started with"


def _listed(values: Iterable[str]) -> str:
    told = listed([value for value in NAMES if value in values])
    return told[:1].upper() + told[1:]


def _token(name: str, token: Jwt, now: float) -> Finding:
    expires_at = claims_of(token.token).expires_at
    if expires_at is None:
        text = "A token is there; until when it is good it does not say"
        return Finding("shape", Verdict.OK, text, credential=name)
    if expires_at <= now:
        text = (
            f"The token that is stored expired at {_moment(expires_at)}, and this machine's clock says {_moment(now)}"
        )
        return Finding("shape", Verdict.FAILED, text, "Store a fresh one, or set this machine's clock", name)
    return Finding("shape", Verdict.OK, f"A token is there, good until {_moment(expires_at)}", credential=name)


def _certificate(name: str, file: Path, now: float) -> Finding:
    """The key was compared with it when the configuration was read."""
    try:
        certificate = x509.load_pem_x509_certificates(file.read_bytes())[0]
    except (OSError, ValueError, ssl.SSLError):
        text = f"{file} holds no certificate that can be read"
        return Finding("shape", Verdict.FAILED, text, "Put the device's certificate with its chain there, in PEM", name)
    since, until = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if not since <= now < until:
        told = f"expired at {_moment(until)}" if now >= until else f"is not good before {_moment(since)}"
        text = f"The certificate of the device {told}, and this machine's clock says {_moment(now)}"
        return Finding("shape", Verdict.FAILED, text, "Have it issued anew, or set this machine's clock", name)
    text = f"The certificate of the device is good until {_moment(until)}, and its key belongs to it"
    if until - now < SOON_SECONDS:
        return Finding("shape", Verdict.WARNING, text, "Have it issued anew before that", name)
    return Finding("shape", Verdict.OK, text, credential=name)


def _moment(moment: float) -> str:
    """A time as people read it, also one that no calendar has."""
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M UTC}"
    except (OverflowError, OSError, ValueError):
        return "a time that no calendar has"
