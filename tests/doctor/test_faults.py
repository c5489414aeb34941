"""One thing wrong at a time: the step that fails, and what it says."""

import asyncio
import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest

from proxy.credentials.sealing import KeyFile
from proxy.credentials.vault import SealedFile
from proxy.demo.simulator import Fault, Simulator
from proxy.doctor import Verdict
from tests.conftest import CLIENT_ID_KEY_FILE, PASSWORD
from tests.demo.authority import Authority
from tests.doctor.examined import examined
from tests.doctor.servers import Certified, listening, saying, scripted, self_signed, silent, without_upgrades


SECRET = "JBSWY3DPEHPK3PXP"
LOGIN = {"credentials.default.source": "login"}
SHORT = {"upstream.open_timeout_seconds": 0.3, "handshake.timeout_seconds": 0.3}
VALUES = {"C8Y_TENANT": "t0815", "C8Y_USER": "service", "C8Y_PASSWORD": PASSWORD}


@dataclass
class Setup:
    """Where upstream is, and what is configured beside that."""

    url: str
    settings: Mapping[str, object] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=lambda: dict(VALUES))


Broken = Callable[[Path], AbstractAsyncContextManager[Setup]]
CASES: list[Any] = []


def case(step: str, *phrases: str) -> Callable[[Callable[[Path], AsyncIterator[Setup]]], Broken]:
    """Add a set-up to the table, with the step that fails and what it says, underscores being spaces."""

    def add(broken: Callable[[Path], AsyncIterator[Setup]]) -> Broken:
        staged = asynccontextmanager(broken)
        CASES.append(pytest.param(staged, step, phrases, id=broken.__name__.replace("_", " ")))
        return staged

    return add


@pytest.mark.logs_errors
@pytest.mark.parametrize(("broken", "step", "phrases"), CASES)
async def test_what_is_wrong_is_told_at_its_step_with_what_helps(
    broken: Broken, step: str, phrases: tuple[str, ...], tmp_path: Path
) -> None:
    async with broken(tmp_path) as setup:
        findings = await examined(setup.url, setup.settings, values=setup.values)
    assert findings.failed[:1] == [step], findings.text
    told = str(findings[step])
    for phrase in phrases:
        assert phrase in told
    assert findings[step].remedy
    assert PASSWORD not in findings.text


# The way to upstream --------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


@case("DNS", "tenant.invalid does not resolve", "upstream.url")
async def name_that_does_not_resolve(_: Path) -> AsyncIterator[Setup]:
    yield Setup("https://tenant.invalid")


@case("DNS", "proxy.invalid does not resolve", "upstream.proxy_url")
async def name_of_the_http_proxy_that_does_not_resolve(_: Path) -> AsyncIterator[Setup]:
    yield Setup("https://tenant.invalid", {"upstream.proxy_url": "http://proxy.invalid:3128"})


@case("TCP", "connection was refused", "the port in upstream.url")
async def port_that_is_closed(_: Path) -> AsyncIterator[Setup]:
    yield Setup(f"http://localhost:{closed_port()}")


@case("TCP", "connection was refused", "the port in upstream.proxy_url")
async def http_proxy_that_is_not_there(_: Path) -> AsyncIterator[Setup]:
    yield Setup("https://tenant.invalid", {"upstream.proxy_url": f"http://localhost:{closed_port()}"})


@case("TCP", "did not let us through (HTTP 407), to tenant.invalid:443", "user and password in upstream.proxy_url")
async def http_proxy_that_refuses(_: Path) -> AsyncIterator[Setup]:
    async with listening(saying(b"HTTP/1.1 407 No\r\n\r\n")) as port:
        yield Setup("https://tenant.invalid", {"upstream.proxy_url": f"http://me:{PASSWORD}@localhost:{port}"})


@case("TCP", "did not answer within 0.3 s", "upstream.proxy_url")
async def http_proxy_that_is_silent(_: Path) -> AsyncIterator[Setup]:
    async with listening(silent) as port:
        yield Setup("https://tenant.invalid", SHORT | {"upstream.proxy_url": f"http://localhost:{port}"})


@case("TLS", "speaks no TLS", "upstream.url")
async def plain_http_where_https_is_said(_: Path) -> AsyncIterator[Setup]:
    async with Simulator() as simulator:
        yield Setup(f"https://localhost:{simulator.port}")


@case("TLS", "authority that is not among those of the system", "Set upstream.ca_file")
async def authority_that_nobody_named(directory: Path) -> AsyncIterator[Setup]:
    async with Simulator(ssl_context=Certified(directory).tls()) as simulator:
        yield Setup(simulator.url)


@case("TLS", "authority that is not among those of the system", "Set upstream.ca_file")
async def certificate_that_vouches_for_itself(directory: Path) -> AsyncIterator[Setup]:
    async with Simulator(ssl_context=self_signed(directory)) as simulator:
        yield Setup(simulator.url)


@case("TLS", "authority that is not in upstream.ca_file", "Put that authority into the file")
async def authority_that_is_another(directory: Path) -> AsyncIterator[Setup]:
    (directory / "other").mkdir()
    other = Certified(directory / "other")
    async with Simulator(ssl_context=Certified(directory).tls()) as simulator:
        yield Setup(simulator.url, {"upstream.ca_file": str(other.ca_file)})


@case("TLS", "is for other.example.com, not for localhost", "into upstream.url")
async def certificate_of_another_name(directory: Path) -> AsyncIterator[Setup]:
    certified = Certified(directory)
    async with Simulator(ssl_context=certified.tls("other.example.com")) as simulator:
        yield Setup(simulator.url, {"upstream.ca_file": str(certified.ca_file)})


@case("TLS", "expired on 20", "this machine's clock says 20", "renewed, or set this machine's clock")
async def certificate_that_has_expired(directory: Path) -> AsyncIterator[Setup]:
    certified = Certified(directory)
    async with Simulator(ssl_context=certified.tls(days=(-20, -10))) as simulator:
        yield Setup(simulator.url, {"upstream.ca_file": str(certified.ca_file)})


@case("TLS", "is not good before 20", "set this machine's clock")
async def certificate_of_days_to_come(directory: Path) -> AsyncIterator[Setup]:
    certified = Certified(directory)
    async with Simulator(ssl_context=certified.tls(days=(10, 20))) as simulator:
        yield Setup(simulator.url, {"upstream.ca_file": str(certified.ca_file)})


@case("TLS", "did not finish the TLS handshake within 0.3 s")
async def silence_where_tls_was_to_be_spoken(_: Path) -> AsyncIterator[Setup]:
    async with listening(silent) as port:
        yield Setup(f"https://localhost:{port}", SHORT)


@case("TLS", "ended the connection within the TLS handshake")
async def connection_that_ends_within_the_tls_handshake(_: Path) -> AsyncIterator[Setup]:
    async def serve(reader: Any, writer: Any) -> None:
        await reader.read(10)
        writer.transport.abort()

    async with listening(serve) as port:
        yield Setup(f"https://localhost:{port}")


@case("clock", "did not answer a plain request within 0.3 s")
async def silence_where_http_was_to_be_spoken(_: Path) -> AsyncIterator[Setup]:
    async with listening(silent) as port:
        yield Setup(f"http://localhost:{port}", SHORT)


@case("clock", "speaks no HTTP", "write https there")
async def no_http(_: Path) -> AsyncIterator[Setup]:
    async with listening(saying(b"SSH-2.0-OpenSSH\r\n\r\n")) as port:
        yield Setup(f"http://localhost:{port}")


@case("clock", "clock is 10 minutes behind upstream's", "NTP")
async def clock_that_is_behind(_: Path) -> AsyncIterator[Setup]:
    async with scripted({}, date=600) as url:
        yield Setup(url)


@case("clock", "clock is 3 days ahead of upstream's")
async def clock_that_is_ahead(_: Path) -> AsyncIterator[Setup]:
    async with scripted({}, date=-3 * 86_400) as url:
        yield Setup(url)


async def test_name_servers_that_are_silent_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    looking: list[threading.Thread] = []

    def look_up(*_: object, **__: object) -> list[object]:
        looking.append(threading.current_thread())
        over.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    findings = await examined("https://tenant.example.com", SHORT)
    assert str(findings["DNS"]).startswith("The name tenant.example.com did not resolve within 0.3 s")
    assert looking[0].daemon  # so that the process does not wait for it either
    over.set()


# What credentials are made from ---------------------------------------------------------------------------------------


@case("shape", "password missing", "Mend what credentials.default.directory holds")
async def directory_without_a_password(directory: Path) -> AsyncIterator[Setup]:
    (directory / "user").write_text("service")
    async with Simulator() as simulator:
        yield Setup(simulator.url, {"credentials.default.directory": str(directory)}, {})


@case("shape", "The token that is stored expired at 2001-09-09 01:46 UTC", "Store a fresh one")
async def token_that_has_expired(_: Path) -> AsyncIterator[Setup]:
    token = jwt.encode({"exp": 1_000_000_000}, "k" * 32)
    async with Simulator() as simulator:
        yield Setup(simulator.url, {}, {"C8Y_TOKEN": token})


@case("shape", "totp_secret is not base32")
async def totp_secret_that_is_none(directory: Path) -> AsyncIterator[Setup]:
    for name, value in {"user": "service", "password": PASSWORD, "totp_secret": "0189"}.items():
        (directory / name).write_text(value)
    async with Simulator() as simulator:
        yield Setup(simulator.url, LOGIN | {"credentials.default.directory": str(directory)}, {})


@case("shape", "expected tenant, user and password of the bootstrap user")
async def bootstrap_user_without_a_tenant(directory: Path) -> AsyncIterator[Setup]:
    for name in ("user", "password"):
        (directory / name).write_text("x")
    settings = {"source": "subscriptions", "directory": str(directory), "tenant": "t1"}
    async with Simulator() as simulator:
        yield Setup(simulator.url, {f"credentials.default.{key}": value for key, value in settings.items()}, {})


@case("shape", "The certificate of the device expired at 20", "issued anew")
async def certificate_of_a_device_that_has_expired(directory: Path) -> AsyncIterator[Setup]:
    device = Authority().device(directory, expired=True)
    settings = {
        "source": "device",
        "certificate_file": str(device.certificate_file),
        "key_file": str(device.key_file),
        "token_url": "https://localhost:1",
    }
    async with Simulator() as simulator:
        yield Setup(simulator.url, {f"credentials.default.{key}": value for key, value in settings.items()}, {})


@case("shape", "is opened by none of the 1 lines of its keys", "Mend vault.file, or what opens it")
async def vault_that_another_key_has_sealed(directory: Path) -> AsyncIterator[Setup]:
    key = directory / "key"
    key.write_text("A" * 43 + "=\n")
    SealedFile(directory / "vault", KeyFile(key)).change(lambda sealed: sealed)
    key.write_text("B" * 42 + "A=\n")
    settings = {"vault.file": str(directory / "vault"), "vault.key_file": str(key)}
    async with Simulator() as simulator:
        yield Setup(simulator.url, settings | {"credentials.default.source": "vault"}, {})


# Logins ---------------------------------------------------------------------------------------------------------------


@case("login", "denied user and password", "Check both, and the tenant")
async def wrong_password(_: Path) -> AsyncIterator[Setup]:
    async with Simulator(password="another") as simulator:
        yield Setup(simulator.url)


@case("login", "denied the token", "Store a fresh one")
async def token_that_upstream_does_not_know(_: Path) -> AsyncIterator[Setup]:
    async with Simulator() as simulator:
        yield Setup(simulator.url, {}, {"C8Y_TOKEN": "a.b.c"})


@case("login", "denied user and password")
async def wrong_password_of_a_login(_: Path) -> AsyncIterator[Setup]:
    async with Simulator(password="another") as simulator:
        yield Setup(simulator.url, LOGIN)


@case("login", "wants a TOTP code", "totp_secret")
async def login_without_its_totp_secret(_: Path) -> AsyncIterator[Setup]:
    async with Simulator(password=PASSWORD, totp=SECRET) as simulator:
        yield Setup(simulator.url, LOGIN)


@case("login", "did not take the code that was made from its totp_secret", "the clock of this machine")
async def login_with_another_totp_secret(directory: Path) -> AsyncIterator[Setup]:
    for name, value in {"user": "service", "password": PASSWORD, "totp_secret": "MFRGGZDFMZTWQ2LK"}.items():
        (directory / name).write_text(value)
    async with Simulator(password=PASSWORD, totp=SECRET) as simulator:
        yield Setup(simulator.url, LOGIN | {"credentials.default.directory": str(directory)}, {})


@case("login", "The tenant t4711 has not subscribed")
async def tenant_that_has_not_subscribed(directory: Path) -> AsyncIterator[Setup]:
    async with Simulator() as simulator:
        bootstrap = simulator.subscriptions
        told = {"tenant": bootstrap.tenant, "user": bootstrap.user, "password": bootstrap.password}
        for name, value in told.items():
            (directory / name).write_text(value)
        settings = {"source": "subscriptions", "directory": str(directory), "tenant": "t4711"}
        yield Setup(simulator.url, {f"credentials.default.{key}": value for key, value in settings.items()}, {})


@case("login", "denied the certificate of the device", "the tenant trusts who issued it")
async def device_that_is_not_registered(directory: Path) -> AsyncIterator[Setup]:
    authority = Authority()
    device = authority.device(directory)
    async with Simulator(ssl_context=authority.server(), device_ssl_context=authority.listener()) as simulator:
        simulator.devices.unregistered.add(device.common_name)
        settings = {
            "source": "device",
            "certificate_file": str(device.certificate_file),
            "key_file": str(device.key_file),
            "token_url": simulator.device_url,
        }
        given = {f"credentials.default.{key}": value for key, value in settings.items()}
        yield Setup(simulator.url, given | {"upstream.ca_file": str(authority.ca_file(directory))}, {})


@case("login", "Upstream answered with HTTP 503")
async def platform_that_is_away(_: Path) -> AsyncIterator[Setup]:
    async with Simulator(password=PASSWORD) as simulator:
        simulator.faults["/tenant/oauth"] = Fault(status=503)
        yield Setup(simulator.url, LOGIN)


# Real time ------------------------------------------------------------------------------------------------------------


@case("upgrade", "with HTTP 403, not with a WebSocket, while long-polling gets through", "let upgrades pass")
async def upgrade_that_is_denied_on_the_way(_: Path) -> AsyncIterator[Setup]:
    async with (
        Simulator(password=PASSWORD) as simulator,
        listening(without_upgrades(simulator.port, "403 Forbidden")) as port,
    ):
        yield Setup(f"http://localhost:{port}")


@case("upgrade", "with HTTP 200, not with a WebSocket, while long-polling gets through", "let upgrades pass")
async def upgrade_that_is_stripped_on_the_way(_: Path) -> AsyncIterator[Setup]:
    async with (
        Simulator(password=PASSWORD) as simulator,
        listening(without_upgrades(simulator.port, "200 OK")) as port,
    ):
        yield Setup(f"http://localhost:{port}")


@case("upgrade", "with HTTP 503, not with a WebSocket", "upstream.url")
async def real_time_that_is_away(_: Path) -> AsyncIterator[Setup]:
    async with Simulator(password=PASSWORD) as simulator:
        simulator.answers_with_status = 503
        yield Setup(simulator.url)


@case("handshake", "denied the handshake by websocket (403)", "may use real-time notifications")
async def handshake_that_is_denied(_: Path) -> AsyncIterator[Setup]:
    async with Simulator(password="another") as simulator:
        simulator.faults["/user/currentUser"] = Fault(body=b"{}")
        yield Setup(simulator.url)


@case("handshake", "rejected the handshake by websocket (500)", "restarting")
async def handshake_that_is_rejected(_: Path) -> AsyncIterator[Setup]:
    async with scripted({"/meta/handshake": {"successful": False, "error": f"500:{PASSWORD}:no"}}) as url:
        yield Setup(url)


@case("handshake", "did not answer the handshake within 0.3 s", "clients give up")
async def handshake_that_is_not_answered(_: Path) -> AsyncIterator[Setup]:
    async with Simulator(password=PASSWORD) as simulator:
        simulator.answers_handshakes = False
        yield Setup(simulator.url, {"handshake.timeout_seconds": 0.3})


@case("connect", "does not know the session that it had just begun (402)", "upstream.relayed_cookies")
async def session_that_is_forgotten_at_once(_: Path) -> AsyncIterator[Setup]:
    unknown = {"successful": False, "error": "402::Unknown client"}
    replies = {
        "/meta/handshake": {"successful": True, "clientId": "c"},
        "/meta/connect": unknown,
        "/meta/disconnect": unknown,
    }
    async with scripted(replies) as url:
        yield Setup(url)


# What follows from a failure ------------------------------------------------------------------------------------------


async def test_what_needs_a_step_that_failed_is_left_out_and_the_rest_goes_on() -> None:
    findings = await examined(f"http://localhost:{closed_port()}")
    assert findings.verdicts("") == {
        "configuration": "ok",
        "DNS": "ok",
        "TCP": "FAILED",
        "TLS": "skipped",
        "clock": "skipped",
    }
    assert findings.verdicts() == {
        "shape": "ok",
        "login": "skipped",
        "upgrade": "skipped",
        "handshake": "skipped",
        "connect": "skipped",
    }
    assert str(findings["login"]) == "It needs TCP first"


async def test_a_clock_that_is_a_minute_off_is_warned_of_and_all_goes_on() -> None:
    accepted = {"/meta/handshake": {"successful": True, "clientId": "c"}}
    answered = {"/meta/connect": {"successful": True}, "/meta/disconnect": {"successful": True}}
    async with scripted(accepted | answered, date=60) as url:
        findings = await examined(url)
    assert findings["clock"].verdict is Verdict.WARNING
    assert "60 s behind" in str(findings["clock"]).replace("59 s", "60 s").replace("61 s", "60 s")
    assert findings.failed == []


async def test_a_clock_that_is_wrong_hinders_nothing_else() -> None:
    async with scripted({"/meta/handshake": {"successful": False, "error": "403::no"}}, date=600) as url:
        assert (await examined(url)).failed == ["clock", "handshake"]


async def test_a_certificate_that_ends_soon_is_warned_of(tmp_path: Path) -> None:
    certified = Certified(tmp_path)
    async with Simulator(password=PASSWORD, ssl_context=certified.tls(days=(-1, 10))) as simulator:
        findings = await examined(simulator.url, {"upstream.ca_file": str(certified.ca_file)})
    assert findings["TLS"].verdict is Verdict.WARNING
    assert findings.failed == []


async def test_where_no_websocket_gets_through_the_rest_goes_by_long_polling() -> None:
    serving: set[asyncio.Task[None]] = set()
    async with (
        Simulator(password=PASSWORD) as simulator,
        listening(without_upgrades(simulator.port, "403 Forbidden"), serving=serving) as port,
    ):
        findings = await examined(f"http://localhost:{port}")
        assert simulator.client_ids == frozenset()  # it said goodbye
        async with asyncio.timeout(5):
            await asyncio.gather(*serving)  # and hung up
    assert findings.failed == ["upgrade"]
    assert "by long-polling" in str(findings["handshake"])
    assert findings["connect"].verdict is Verdict.OK


@pytest.mark.logs_errors
async def test_one_credential_that_fails_hinders_no_other(tmp_path: Path) -> None:
    for name, value in {"tenant": "t0815", "user": "service", "password": "wrong"}.items():
        (tmp_path / name).write_text(value)
    async with Simulator(password=PASSWORD) as simulator:
        findings = await examined(
            simulator.url,
            {
                "credentials.wrong.directory": str(tmp_path),
                "credentials.default.source": "stored",
                "gate.identity": ["bearer"],
                "gate.client_id_key_file": str(CLIENT_ID_KEY_FILE),
                "clients": [{"name": "a", "key": f"sha256:{hashlib.sha256(b'a').hexdigest()}"}],
            },
        )
    assert set(findings.verdicts("wrong").values()) == {"ok", "FAILED", "skipped"}
    assert set(findings.verdicts().values()) == {"ok"}
