"""A running proxy takes what its vault holds, and what is changed there, at once."""

import base64
import os
from pathlib import Path

import pytest

from proxy.credentials.sealing import KeyFile
from proxy.credentials.vault import SealedFile, moment
from proxy.demo.simulator import Simulator
from tests.conftest import PASSWORD, Running, exchange, handshake, running


NOW = 1_700_000_000.0


@pytest.fixture
def vault(tmp_path: Path) -> SealedFile:
    (tmp_path / "keys").write_bytes(base64.b64encode(os.urandom(32)) + b"\n")
    return SealedFile(tmp_path / "vault.json", KeyFile(tmp_path / "keys"))


def put(vault: SealedFile, password: str) -> None:
    values = {"tenant": "t0815", "user": "service", "password": password}
    vault.change(lambda opened: opened.put("gateway", values, moment(NOW)))


async def outcome(proxied: Running) -> bool:
    """Whether a handshake is accepted."""
    async with proxied.post([handshake()]) as response:
        [answer] = await response.json()
    return bool(answer["successful"])


@pytest.mark.logs_errors
async def test_every_change_of_the_vault_counts_with_the_next_connection(
    upstream: Simulator, vault: SealedFile
) -> None:
    settings = {
        "credentials.default.source": "vault",
        "credentials.default.entry": "gateway",
        "vault.file": str(vault.path),
        "vault.key_file": str(vault.keys.path),
    }
    async with running(upstream.url, settings, values={}) as proxied:
        assert not await outcome(proxied)  # there is no vault yet
        put(vault, PASSWORD)
        async with proxied.socket() as socket:
            assert (await exchange(socket, [handshake()]))[0]["successful"] is True
        put(vault, "stale")
        assert not await outcome(proxied)
        put(vault, PASSWORD)
        assert await outcome(proxied)
        vault.keys.path.write_bytes(base64.b64encode(os.urandom(32)) + b"\n" + vault.keys.path.read_bytes())
        vault.rotate()
        assert await outcome(proxied)
        vault.change(lambda opened: opened.without("gateway"))
        assert not await outcome(proxied)
        assert proxied.handshakes(transport="long-polling", source="vault")["refused", "no_credential"] == 2
