"""Certificates for tests: a platform that can be trusted, and devices that it trusts.

authority = Authority()
device = authority.device(tmp_path)
async with Simulator(ssl_context=authority.server(), device_ssl_context=authority.listener()) as simulator:
    ...post(simulator.device_url + "/devicecontrol/deviceAccessToken", ssl=authority.client(device))
"""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Device:
    """PEM files of one device: its certificate with the chain behind it, and its key."""

    common_name: str
    certificate_file: Path
    key_file: Path

    @property
    def header(self) -> str:
        """The chain as X-Ssl-Cert-Chain carries it, in one line."""
        return self.certificate_file.read_text().replace("\n", " ").strip()


class Authority:
    """The platform's own certificate authority, and the one that a tenant uploaded for its devices."""

    def __init__(self) -> None:
        self._servers = trustme.CA()
        self._devices = trustme.CA()

    def server(self) -> ssl.SSLContext:
        """For a simulator that is called `localhost`."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._servers.issue_cert("localhost").configure_cert(context)
        return context

    def server_files(self, folder: Path) -> tuple[Path, Path]:
        """The same as PEM files, certificate and key, for another program that is called `localhost`."""
        issued = self._servers.issue_cert("localhost")
        certificate, key = folder / "platform.crt", folder / "platform.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    def listener(self) -> ssl.SSLContext:
        """For its listener for devices: demands a certificate of a trusted device."""
        context = self.server()
        context.verify_mode = ssl.CERT_REQUIRED
        self._devices.configure_trust(context)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # devices have no other name, and the list of those is empty
        return context

    def client(self, device: Device | None = None) -> ssl.SSLContext:
        """For a client that trusts the platform, with a device's certificate if it is one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._servers.configure_trust(context)
        if device is not None:
            context.load_cert_chain(device.certificate_file, device.key_file)
        return context

    def ca_file(self, folder: Path) -> Path:
        """The platform's authority as a PEM file, for clients that are configured with one."""
        path = folder / "platform-ca.pem"
        self._servers.cert_pem.write_to_path(path)
        return path

    def device(self, folder: Path, common_name: str = "gateway-1", *, expired: bool = False) -> Device:
        """Write a trusted device's files; written again under the same name, they are another certificate and key."""
        now = datetime.now(UTC)
        issued = self._devices.issue_cert(
            common_name=common_name,
            not_before=now - timedelta(days=2) if expired else None,
            not_after=now - timedelta(days=1) if expired else None,
        )
        return _written(issued, common_name, folder)

    @staticmethod
    def stranger(folder: Path, common_name: str = "gateway-1") -> Device:
        """Write the files of a device that nobody trusts."""
        return _written(trustme.CA().issue_cert(common_name=common_name), common_name, folder)


def _written(issued: trustme.LeafCert, common_name: str, folder: Path) -> Device:
    device = Device(common_name, folder / f"{common_name}.crt", folder / f"{common_name}.key")
    device.certificate_file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(device.key_file)
    device.key_file.chmod(0o600)
    return device
