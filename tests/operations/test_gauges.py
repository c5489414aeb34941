"""What the metrics say of the moment is what the probes and the status page say of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, get_args

import pytest
import trustme

from proxy.demo.simulator import Simulator
from proxy.operations.metrics import CredentialState
from tests.conftest import PASSWORD, Running, exchange, handshake, running, until
from tests.frontdoor.browsing import Browser, front_door


STORED: Final = {"tenant": "t0815", "user": "service", "password": PASSWORD}


def state(proxied: Running, credential: str = "default") -> str:
    """The one state that a credential is in."""
    [found] = [
        each
        for each in get_args(CredentialState)
        if proxied.count("credential_state", credential=credential, state=each) == 1.0
    ]
    return str(found)


async def asked(proxied: Running, path: str) -> tuple[int, str]:
    async with proxied.client.get(f"{proxied.admin_url}{path}") as response:
        return response.status, await response.text()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    directory = tmp_path / "secret"
    directory.mkdir()
    for name, value in STORED.items():
        (directory / name).write_text(value)
    return directory


@pytest.mark.logs_errors
async def test_state_of_a_credential_is_the_one_of_the_status_page(upstream: Simulator, secret: Path) -> None:
    async with running(upstream.url, {"credentials.default.directory": str(secret)}, values={}) as proxied:
        words = {"usable": "Usable", "old_value": "Old value", "denied": "Denied", "unusable": "Unusable"}

        async def is_shown(expected: str) -> None:
            assert state(proxied) == expected
            assert words[expected] in (await asked(proxied, "/status/still"))[1]

        await is_shown("usable")
        (secret / "password").write_text("")
        await is_shown("old_value")
        (secret / "password").write_text(PASSWORD)
        await is_shown("usable")
        upstream.accounts = replace(upstream.accounts, password="changed-canary")
        async with proxied.post([handshake()]) as response:
            await response.read()
        await is_shown("denied")
        assert proxied.count("ready") == 1.0


@pytest.mark.logs_errors
async def test_without_a_credential_to_send_it_is_not_ready(upstream: Simulator, secret: Path) -> None:
    (secret / "password").unlink()
    async with running(upstream.url, {"credentials.default.directory": str(secret)}, values={}) as proxied:
        assert (state(proxied), proxied.count("ready")) == ("unusable", 0.0)
        assert (await asked(proxied, "/readyz"))[0] == 503
        (secret / "password").write_text(PASSWORD)
        assert (state(proxied), proxied.count("ready")) == ("usable", 1.0)
        assert (await asked(proxied, "/readyz"))[0] == 200
        await proxied.proxy.drain()
        assert proxied.count("ready") == 0.0


async def test_connections_of_the_listener_are_those_that_its_limit_counts(upstream: Simulator) -> None:
    async with running(upstream.url, {"limits.connections": 7}) as proxied:
        assert (proxied.count("listener_connections"), proxied.count("listener_connections_limit")) == (0.0, 7.0)
        async with proxied.socket() as socket:
            await exchange(socket, [handshake()])
            async with proxied.post([handshake()]) as response:
                await response.read()
            # The connection of the POST is kept open for the next one, and counts though nothing is being answered.
            assert proxied.count("connections", transport="long-polling") == 0.0
            assert proxied.count("listener_connections") == 2.0
        await until(lambda: proxied.count("listener_connections") == 1.0)  # the WebSocket is gone


class Issued:
    """The files of a certificate and its key, which can be issued anew."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self._files = {name: directory / f"{name}.pem" for name in ("certificate", "key")}

    def settings(self, section: str) -> dict[str, object]:
        return {f"{section}.{name}_file": str(path) for name, path in self._files.items()}

    def for_days(self, days: int) -> float:
        """Returns when it is over, in Unix time."""
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
        issued = self._authority.issue_cert("localhost", not_after=end)
        issued.private_key_pem.write_to_path(self._files["key"])
        issued.cert_chain_pems[0].write_to_path(self._files["certificate"])
        return end.timestamp()


async def test_certificate_tells_when_it_is_over_also_after_it_was_replaced(
    upstream: Simulator, tmp_path: Path
) -> None:
    issued = Issued(tmp_path)
    end = issued.for_days(3)
    async with running(upstream.url, issued.settings("listen.tls")) as proxied:
        assert proxied.count("certificate_expiry_timestamp_seconds", certificate="listen.tls") == end
        end = issued.for_days(90)
        assert proxied.count("certificate_expiry_timestamp_seconds", certificate="listen.tls") == end


async def test_certificate_of_a_device_tells_when_it_is_over_also_after_it_was_replaced(
    upstream: Simulator, tmp_path: Path
) -> None:
    issued = Issued(tmp_path)
    end = issued.for_days(3)
    settings = issued.settings("credentials.default") | {
        "credentials.default.source": "device",
        "credentials.default.token_url": "https://localhost:1",
    }
    async with running(upstream.url, settings, values={}) as proxied:
        name, labels = "certificate_expiry_timestamp_seconds", {"certificate": "credentials.default"}
        assert proxied.count(name, **labels) == end
        end = issued.for_days(90)
        assert proxied.count("ready") == 0.0  # which looks at all credentials, as it is done every few seconds
        assert proxied.count(name, **labels) == end


async def test_without_tls_there_is_no_certificate_to_be_over(proxied: Running) -> None:
    assert proxied.count("certificate_expiry_timestamp_seconds", certificate="listen.tls") == 0.0


async def test_sessions_of_many_people_are_not_many_uses_of_one_credential(upstream: Simulator) -> None:
    async with front_door(upstream) as proxied:
        browser = Browser(proxied)
        await browser.sign_in()
        async with browser.socket() as socket:
            assert (await browser.shake_hands(socket))["successful"] is True
            name, labels = "c8y_realtime_proxy_credential_uses", {"credential": "default"}
            assert proxied.proxy.metrics.registry.get_sample_value(name, labels) is None
