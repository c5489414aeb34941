"""A device with a certificate in files, for those who show it and for those who are shown it."""

import ssl
from pathlib import Path
from typing import Any

import trustme

from proxy.tls import trusting
from proxy.upstream.platform import Platform


class Device:
    """The certificate of a device in files, and what it trusts."""

    def __init__(self, authority: trustme.CA, directory: Path) -> None:
        self.authority = authority
        self.ca_file = directory / "ca.pem"
        self.certificate_file = directory / "device.pem"
        self.key_file = directory / "device-key.pem"
        self.files = self.certificate_file, self.key_file
        authority.cert_pem.write_to_path(self.ca_file)
        self.named("line-3")

    def named(self, name: str, issuer: trustme.CA | None = None) -> None:
        """Have a certificate of that name from now on, with its chain."""
        leaf = (issuer or self.authority).issue_cert(common_name=name)
        self.certificate_file.write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
        self.key_file.write_bytes(leaf.private_key_pem.bytes())

    def listening(self, trusted: trustme.CA | None = None) -> ssl.SSLContext:
        """What upstream speaks TLS with; with somebody `trusted`, it wants certificates from there."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert("localhost").configure_cert(context)
        if trusted is not None:
            trusted.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
            # These have no other name, and the list of those is empty: no devices are like that.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    def platform(self, url: str = "https://localhost:1", **more: Any) -> Platform:
        trust = trusting(self.ca_file, key="upstream.ca_file", on_load=lambda _: None)
        settings: dict[str, Any] = {"tls": trust, "ca_file": self.ca_file} | more
        return Platform(url, **settings)
