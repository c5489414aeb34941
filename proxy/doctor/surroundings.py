"""What a valid configuration does not say: who else may read its files, and whether they can change at all."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy.config import Config
from proxy.credentials.stored import NAMES
from proxy.doctor.findings import Finding, Verdict
from proxy.gate.admission import is_loopback


_MOUNTS: Final = Path("/proc/self/mountinfo")
_POINT: Final = 4
"""Where a line of that has the place of a mount; proc_pid_mountinfo(5)."""

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


def surroundings(config: Config, mounts: Path = _MOUNTS) -> Iterator[Finding]:
    """What a person wants to hear about a configuration that is valid; `mounts` is where Linux lists them."""
    count = len(config.credentials)
    credentials = "one credential" if count == 1 else f"{count} credentials"
    yield Finding(
        "configuration", Verdict.OK, f"The configuration is valid, with {credentials} for {config.upstream.url}"
    )
    points = _mount_points(mounts)
    for key, file, is_secret in _files(config):
        if is_secret and _is_open_to_all(file):
            yield _warning(
                f"{key}: anybody on this machine may read {file}",
                "chmod o= it (defaultMode: 0440 in Kubernetes), and change what it holds if others were here",
            )
        if os.path.realpath(file) in points:
            yield _warning(
                f"{key}: {file} is mounted by itself (by subPath, or as one file), so no change of it ever arrives",
                "Mount the directory that it is in",
            )
    is_beyond = not is_loopback(config.listen.host)
    if is_beyond and config.listen.tls.certificate_file is None and not config.gate.trusted_proxies:
        yield _warning(
            "listen.host is beyond loopback, and without listen.tls: who is on the way reads notifications, and keys",
            "Set listen.tls, or gate.trusted_proxies to what ends TLS in front of this proxy",
        )


def _warning(sentence: str, remedy: str) -> Finding:
    return Finding("configuration", Verdict.WARNING, sentence, remedy)


def _files(config: Config) -> Iterator[tuple[str, Path, bool]]:
    """The files that there are, by the key that leads to them, and whether they hold secrets."""
    named = {
        "listen.tls.certificate_file": (config.listen.tls.certificate_file, False),
        "listen.tls.key_file": (config.listen.tls.key_file, True),
        "listen.tls.client_ca_file": (config.listen.tls.client_ca_file, False),
        "upstream.ca_file": (config.upstream.ca_file, False),
        "gate.client_id_key_file": (config.gate.client_id_key_file, True),
        "gate.jwt.jwks_file": (config.gate.jwt.jwks_file, False),
        "gate.jwt.ca_file": (config.gate.jwt.ca_file, False),
        "vault.file": (config.vault.file, True),
        "vault.sessions_file": (config.vault.sessions_file, True),
        "vault.key_file": (config.vault.key_file, True),
        "vault.passphrase_file": (config.vault.passphrase_file, True),
        "frontdoor.sessions_file": (config.frontdoor.sessions_file, True),
        "frontdoor.session_key_file": (config.frontdoor.session_key_file, True),
        "frontdoor.redis_password_file": (config.frontdoor.redis_password_file, True),
        "frontdoor.redis_ca_file": (config.frontdoor.redis_ca_file, False),
    }
    for name, settings in config.credentials.items():
        where = f"credentials.{name}"
        named[f"{where}.certificate_file"] = settings.certificate_file, False
        named[f"{where}.key_file"] = settings.key_file, True
        if settings.directory is not None:
            yield from ((f"{where}.directory", settings.directory / value, True) for value in _in(settings.directory))
    yield from ((key, file, is_secret) for key, (file, is_secret) in named.items() if file and file.exists())


def _in(directory: Path) -> list[str]:
    """The values that a directory has; what is wrong with it is told of the credential."""
    return [name for name in NAMES if (directory / name).exists()]


def _is_open_to_all(file: Path) -> bool:
    """Whether everybody on this machine may read it: also the directories above have to let them through."""
    real = Path(os.path.realpath(file))
    try:
        return bool(real.stat().st_mode & stat.S_IROTH) and all(
            parent.stat().st_mode & stat.S_IXOTH for parent in real.parents
        )
    except OSError:
        return False


def _mount_points(mounts: Path) -> set[str]:
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # only Linux has it
        return set()
    fields = (line.split(" ") for line in lines)
    return {_ESCAPE.sub(lambda found: chr(int(found[1], 8)), each[_POINT]) for each in fields if len(each) > _POINT}
