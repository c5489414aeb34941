"""The command as its user runs it."""

import asyncio
import os
import re
import resource
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from proxy import __version__
from proxy.demo.simulator import Simulator
from tests.conftest import PASSWORD, VALUES, exchange, handshake


FREE_PORTS = {"C8Y_REALTIME_PROXY__LISTEN__PORT": "0", "C8Y_REALTIME_PROXY__ADMIN__PORT": "0"}


async def command(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run the command to its end; returns exit code, output and errors."""
    process = await start(*arguments, environment=environment)
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def start(*arguments: str, environment: dict[str, str] | None = None) -> Process:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("C8Y_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", *arguments, stdout=PIPE, stderr=PIPE, env=inherited | (environment or {})
    )


@asynccontextmanager
async def serving(environment: dict[str, str], *arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """A running proxy and the URL of its public listener; killed if the test did not end it."""
    process = await start("run", *arguments, environment=environment)
    assert process.stderr is not None
    try:
        while True:
            line = (await process.stderr.readline()).decode()
            assert line, "it ended before it listened"
            if found := re.search(r"public listener on (\S+)", line):
                yield process, found[1]
                break
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_platform_environment_is_configuration_enough_and_sigterm_ends_in_order(upstream: Simulator) -> None:
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": upstream.url}
    async with serving(environment) as (process, url), aiohttp.ClientSession() as client:
        async with client.ws_connect(f"{url}/notification/realtime", autoclose=False) as socket:
            [answer] = await exchange(socket, [handshake()])
            assert answer["successful"] is True
            process.send_signal(signal.SIGTERM)
            frame = await socket.receive(timeout=10)
            assert frame.data == 1001
        _, errors = await asyncio.wait_for(process.communicate(), 25)
    assert process.returncode == 0
    assert PASSWORD not in errors.decode()


async def test_it_may_open_as_many_files_as_the_system_lets_it(upstream: Simulator) -> None:
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": upstream.url}
    async with serving(environment) as (process, _):
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 25) == 0


async def test_second_signal_changes_nothing(upstream: Simulator) -> None:
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": upstream.url}
    async with serving(environment) as (process, _):
        assert process.stderr is not None
        process.send_signal(signal.SIGTERM)
        while b"Draining" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 25) == 0


async def test_check_prints_every_problem_at_once_and_exits_2(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(f"""
        [listen]
        prot = 8080
        host = "0.0.0.0"
        [upstream]
        url = "ftp://tenant.example.com"
        [handshake]
        system_of_units = "{PASSWORD}"
    """)
    code, output, errors = await command("check", "--config", str(file))

    assert code == 2
    assert output == ""
    assert errors.splitlines() == [
        "listen.prot: is not a key of ours; did you mean listen.port?",
        "upstream.url: expected scheme, host and port alone, such as https://app.example.com",
        "handshake.system_of_units: expected 'imperial' or 'metric'",
        (
            "credentials.default.source: expected stored or cookie: no stored values were found to go by "
            "(credentials.default.directory, or C8Y_TENANT, C8Y_USER and C8Y_PASSWORD)"
        ),
        "gate.hosts: expected the names this proxy is reached by, since it listens beyond loopback",
        "5 problems in the configuration",
    ]


async def test_run_without_anything_says_what_it_needs() -> None:
    code, _, errors = await command("run")

    assert code == 2
    assert "upstream.url: expected the address of the tenant: set it, or C8Y_BASEURL" in errors


async def test_missing_file_is_named(tmp_path: Path) -> None:
    code, _, errors = await command("check", "--config", str(tmp_path / "nowhere.toml"))

    assert code == 2
    assert f"{tmp_path / 'nowhere.toml'}: cannot be read: No such file or directory" in errors


async def test_occupied_port_exits_1_with_the_remedy(upstream: Simulator) -> None:
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": upstream.url}
    environment["C8Y_REALTIME_PROXY__LISTEN__HOST"] = "localhost"
    environment["C8Y_REALTIME_PROXY__LISTEN__PORT"] = str(upstream.port)
    code, _, errors = await command("run", environment=environment)

    assert code == 1
    assert "listen.port: cannot listen on" in errors.splitlines()[-1]


async def test_version_is_told() -> None:
    assert await command("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("home", ["sidecar", "edge", "frontdoor"])
async def test_every_example_configuration_passes_check(home: str) -> None:
    file = Path(__file__).parent.parent / "config" / f"{home}.toml"
    code, output, errors = await command("check", "--config", str(file))

    assert (code, output, errors) == (0, "The configuration is valid\n", "")
