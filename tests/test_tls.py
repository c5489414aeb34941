"""TLS of the public listener, with files that change while it is open: by each TLS handshake for itself."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, cast

import pytest
import trustme

from proxy.tls import ServerTls, trust_in, trusting


NOT_LET_IN: Final = (ssl.SSLError, ConnectionError)
VERSIONS: Final = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


class _Echo(asyncio.Protocol):
    """Says a byte, so that the client knows that it is let in, and returns what it is sent."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(b"!")

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Listening:
    """A listener, its files, who certified it, and whom clients may be certified by."""

    def __init__(self, directory: Path, *, client_ca: Path | None = None, demands: bool = False) -> None:
        self.directory = directory
        self.authority, self.told = trustme.CA(), list[bool]()
        self.port = 0
        self.issue(self.authority)
        self.tls = ServerTls(
            directory / "certificate.pem",
            directory / "key.pem",
            client_ca=client_ca,
            demands_certificate=demands,
            key="listen.tls",
            on_load=self.told.append,
        )
        self.open: list[ssl.SSLSocket] = []

    def issue(self, authority: trustme.CA, *, key: bool = True, certificate: bool = True, suffix: str = "") -> None:
        issued = authority.issue_cert("localhost")
        if certificate:
            issued.cert_chain_pems[0].write_to_path(self.directory / f"certificate{suffix}.pem")
        if key:
            issued.private_key_pem.write_to_path(self.directory / f"key{suffix}.pem")

    def client(self, *trusted: trustme.CA, shown: trustme.LeafCert | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for authority in trusted or (self.authority,):
            authority.configure_trust(context)
        if shown is not None:
            shown.configure_cert(context)
        return context

    async def connect(
        self, client: ssl.SSLContext, session: ssl.SSLSession | None = None, *, name: str | None = "localhost"
    ) -> ssl.SSLSocket:
        """A connection on which a byte has come and one went back and forth. Raises OSError, also where the TLS
        handshake fails.
        """
        return await asyncio.to_thread(self._connect, client, session, name)

    def _connect(self, client: ssl.SSLContext, session: ssl.SSLSession | None, name: str | None) -> ssl.SSLSocket:
        client.check_hostname = name is not None
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        try:
            secure = client.wrap_socket(raw, server_hostname=name, session=session)
        except BaseException:
            raw.close()
            raise
        self.open.append(secure)
        secure.send(b"?")
        if not (secure.recv(1) and secure.recv(1)):
            raise ConnectionAbortedError
        return secure


@asynccontextmanager
async def serving(listening: Listening) -> AsyncIterator[Listening]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Echo, "127.0.0.1", 0, ssl=listening.tls.context)
    listening.port = server.sockets[0].getsockname()[1]
    try:
        yield listening
    finally:
        for one in listening.open:
            one.close()
        server.close()


def serial(connection: ssl.SSLSocket) -> object:
    certificate = connection.getpeercert()
    assert certificate is not None
    return certificate["serialNumber"]


async def test_certificate_that_was_replaced_is_shown_to_the_next_client_and_open_connections_stay(
    tmp_path: Path,
) -> None:
    async with serving(Listening(tmp_path)) as listening:
        other = trustme.CA()
        before = await listening.connect(listening.client())
        listening.issue(other)
        with pytest.raises(ssl.SSLCertVerificationError):
            await listening.connect(listening.client())
        after = await listening.connect(listening.client(other))
        assert serial(before) != serial(after)
        before.send(b"x")
        assert await asyncio.to_thread(before.recv, 1) == b"x"
        assert listening.told == [True, True]


@pytest.mark.logs_errors
async def test_half_written_pair_keeps_the_last_good_one_until_the_other_half_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Listening(tmp_path)) as listening:
        first = serial(await listening.connect(listening.client()))
        issued = listening.authority.issue_cert("localhost")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
        for _ in range(2):
            assert serial(await listening.connect(listening.client())) == first
        problems = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert problems == [
            (
                "listen.tls: expected PEM in each file, and the key of the certificate without a passphrase. "
                "The last good one stays"
            )
        ]
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        assert serial(await listening.connect(listening.client())) != first
        assert listening.told == [True, False, True]


@pytest.mark.logs_errors
async def test_other_files_count_from_when_they_are_good(tmp_path: Path) -> None:
    async with serving(Listening(tmp_path)) as listening:
        first = serial(await listening.connect(listening.client()))
        listening.issue(listening.authority, key=False, suffix="-2")
        (tmp_path / "key-2.pem").write_text("")
        listening.tls.change(tmp_path / "certificate-2.pem", tmp_path / "key-2.pem", None)
        assert serial(await listening.connect(listening.client())) == first
        listening.issue(listening.authority, suffix="-2")
        assert serial(await listening.connect(listening.client())) != first


async def test_same_files_are_not_read_again_because_they_are_said_again(tmp_path: Path) -> None:
    listening = Listening(tmp_path)
    for _ in range(100):
        listening.tls.change(tmp_path / "certificate.pem", tmp_path / "key.pem", None)
    assert listening.told == [True]


@pytest.mark.logs_errors
def test_listener_is_not_opened_with_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "clients.pem").write_text("")
    with pytest.raises(ValueError, match=r"listen\.tls: cannot be used: see the log"):
        Listening(tmp_path, client_ca=tmp_path / "clients.pem")


# Whose certificates of clients are believed ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["localhost", None], ids=["by name", "without a name"])
@pytest.mark.parametrize("asked", ["demanded", "asked for"])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_authority_that_was_taken_out_lets_nobody_in_any_more_not_by_an_earlier_tls_session_either(
    tmp_path: Path, version: ssl.TLSVersion, asked: str, name: str | None
) -> None:
    old, new, file = trustme.CA(), trustme.CA(), tmp_path / "clients.pem"
    file.write_bytes(old.cert_pem.bytes() + new.cert_pem.bytes())
    async with serving(Listening(tmp_path, client_ca=file, demands=asked == "demanded")) as listening:
        gone = listening.client(shown=old.issue_cert(common_name="press-7"))
        staying = listening.client(shown=new.issue_cert(common_name="press-8"))
        gone.minimum_version = gone.maximum_version = version
        staying.minimum_version = staying.maximum_version = version
        first = await listening.connect(gone, name=name)
        session = first.session
        again = await listening.connect(gone, session, name=name)
        assert again.session_reused is (version is ssl.TLSVersion.TLSv1_2)

        new.cert_pem.write_to_path(file)

        for known in (None, session, again.session):
            with pytest.raises(NOT_LET_IN):
                await listening.connect(gone, known, name=name)
        await listening.connect(staying, name=name)


async def test_tls_sessions_of_after_the_change_are_resumed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that speaks TLS 1.2 only must not meet an alert each time it comes back."""
    authority, file = trustme.CA(), tmp_path / "clients.pem"
    authority.cert_pem.write_to_path(file)
    async with serving(Listening(tmp_path, client_ca=file)) as listening:
        client = listening.client(shown=authority.issue_cert(common_name="press-7"))
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_2
        await listening.connect(client)
        monkeypatch.setattr("proxy.tls.time.time", lambda: 1_000_000.0)  # read long before the session began
        file.write_bytes(authority.cert_pem.bytes() * 2)
        first = await listening.connect(client)
        assert (await listening.connect(client, first.session)).session_reused


async def test_authority_that_was_added_lets_its_clients_in(tmp_path: Path) -> None:
    old, new, file = trustme.CA(), trustme.CA(), tmp_path / "clients.pem"
    old.cert_pem.write_to_path(file)
    async with serving(Listening(tmp_path, client_ca=file, demands=True)) as listening:
        client = listening.client(shown=new.issue_cert(common_name="press-8"))
        with pytest.raises(NOT_LET_IN):
            await listening.connect(client)
        file.write_bytes(old.cert_pem.bytes() + new.cert_pem.bytes())
        await listening.connect(client)


# Whom we trust --------------------------------------------------------------------------------------------------------


def trusted(context: ssl.SSLContext | None) -> int:
    assert context is not None
    return len(context.get_ca_certs())


@pytest.mark.logs_errors
@pytest.mark.parametrize("broken", ["", "canary", "-----BEGIN CERTIFICATE-----\n"], ids=["empty", "text", "cut off"])
def test_authorities_that_cannot_be_read_leave_those_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    file, told = tmp_path / "ca.pem", list[bool]()
    trustme.CA().cert_pem.write_to_path(file)
    trust = trusting(file, key="upstream.ca_file", on_load=told.append)
    good = trust()
    file.write_text(broken)
    assert trust() is good
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "upstream.ca_file: expected certificates in PEM. The last good one stays"
    ]
    file.write_bytes(b"".join(trustme.CA().cert_pem.bytes() for _ in range(2)))
    assert trusted(trust()) == 2
    assert told == [True, False, True]


def test_an_authority_of_ones_own_is_held_to_no_more_by_a_newer_python(tmp_path: Path) -> None:
    authority = tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    listening = Listening(tmp_path, client_ca=authority)
    for context in (trust_in(authority), listening.tls.context):
        assert not context.verify_flags & ssl.VERIFY_X509_STRICT
