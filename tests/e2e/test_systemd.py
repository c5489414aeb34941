"""The units of the edge gateway as systemd reads and rates them, and the proxy as systemd's own programs start it."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from yarl import URL

from proxy.demo.simulator import Simulator
from proxy.gate.keys import generated, stored
from tests.conftest import closed

from .crowd import Visitor, shaken
from .programs import running
from .stage import Evidence


UNITS: Final = Path(__file__).parents[2] / "deploy/systemd"
INSTALLED: Final = "/usr/local/bin/c8y-realtime-proxy"
COMMAND: Final = Path(sys.executable).with_name("c8y-realtime-proxy")
MOST_EXPOSURE: Final = 2.0


@pytest.fixture(autouse=True)
def evidence() -> Iterator[Evidence]:
    """No secret is in what is told to systemd, or logged, where a proxy is started at all."""
    found = Evidence()
    yield found
    assert found.leaks() == []


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    assert program, "no systemd-analyze: run tests/e2e/setup"
    return subprocess.run(  # noqa: S603 - our own units
        [program, "--no-pager", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """All units and drop-ins as they are installed, but for where the command is."""
    for file in UNITS.iterdir():
        drop_in = tmp_path / "c8y-realtime-proxy.service.d"
        folder = drop_in if file.suffix == ".conf" else tmp_path
        folder.mkdir(exist_ok=True)
        (folder / file.name).write_text(file.read_text().replace(INSTALLED, str(COMMAND)))
    return tmp_path


def test_systemd_knows_every_directive_and_every_command_is_there(units: Path) -> None:
    found = sorted(
        str(file) for file in units.glob("c8y-realtime-proxy*.*") if file.suffix in {".service", ".socket", ".path"}
    )
    assert len(found) == 4
    told = analyze("verify", *found)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_a_directive_that_drifted_would_be_found(units: Path) -> None:
    service = units / "c8y-realtime-proxy.service"
    service.write_text(service.read_text().replace("ProtectClock=", "ProtectClocks="))
    assert "ProtectClocks" in analyze("verify", service).stderr


def test_the_service_is_rated_below_2(units: Path) -> None:
    told = analyze(
        "security", "--offline=true", f"--threshold={int(MOST_EXPOSURE * 10)}", units / "c8y-realtime-proxy.service"
    )
    assert told.returncode == 0, told.stdout
    assert exposure_in(told.stdout) < MOST_EXPOSURE


def test_a_service_without_its_restrictions_would_be_rated_higher(units: Path) -> None:
    service = units / "c8y-realtime-proxy.service"
    text = service.read_text()
    service.write_text("\n".join(line for line in text.splitlines() if not line.startswith(("Protect", "SystemCall"))))
    told = analyze("security", "--offline=true", f"--threshold={int(MOST_EXPOSURE * 10)}", service)
    assert told.returncode != 0
    assert exposure_in(told.stdout) > MOST_EXPOSURE


def exposure_in(text: str) -> float:
    """The rating that ends a report."""
    return float(text.rpartition("Overall exposure level for ")[2].partition(": ")[2].split()[0])


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd would be told at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


async def told(manager: socket.socket, until: str) -> list[str]:
    """What the manager is told up to that line, but for signs of life."""
    lines: list[str] = []
    while until not in lines:
        lines += (await asyncio.to_thread(manager.recv, 1000)).decode().splitlines()
    return [line for line in lines if line != "WATCHDOG=1"]


async def test_the_first_connection_starts_it_and_systemd_hears_how_it_goes(
    manager: socket.socket, evidence: Evidence, unused_tcp_port: int, tmp_path: Path
) -> None:
    program = shutil.which("systemd-socket-activate")
    assert program, "no systemd-socket-activate: run tests/e2e/setup"
    key, password = generated("one"), generated("password")
    evidence.secrets += [key.encode(), password.encode()]
    visitor = Visitor(URL(f"http://127.0.0.1:{unused_tcp_port}/notification/realtime"), key)
    (tmp_path / "client-id-key").write_text(generated("client-id"))
    file = tmp_path / "proxy.toml"
    async with Simulator(password=password) as platform:
        file.write_text(
            f"""
            [admin]
            port = 0
            [upstream]
            url = "{platform.url}"
            [gate]
            identity = ["bearer"]
            client_id_key_file = "{tmp_path / "client-id-key"}"
            [[clients]]
            name = "one"
            key = "{stored(key)}"
            """
        )
        given = {
            "NOTIFY_SOCKET": str(manager.getsockname()),
            "WATCHDOG_USEC": "1000000",
            "C8Y_TENANT": "t0815",
            "C8Y_USER": "service",
            "C8Y_PASSWORD": password,
        }
        passed = [f"--setenv={name}" for name in (*given, "PYTHONPATH") if name in os.environ | given]
        command = [program, f"--listen=127.0.0.1:{unused_tcp_port}", "--fdname=listen", *passed]
        command += [sys.executable, "-m", "proxy", "run", "--config", str(file)]
        async with running(*command, environment=dict(os.environ) | given) as activated:
            while b"Listening on" not in await activated.error_line():
                pass
            # It answers on the socket that systemd's program listened on before there was a proxy.
            async with visitor.session() as session, session.ws_connect(visitor.url) as client:
                await shaken(client)
                assert "READY=1" in await told(manager, "READY=1")
                activated.process.send_signal(signal.SIGHUP)
                assert "RELOADING=1" in await told(manager, "READY=1")
                activated.process.send_signal(signal.SIGTERM)
                assert "STOPPING=1" in await told(manager, "STOPPING=1")
                assert await closed(client) == (1001, "Connect again")
            assert await activated.wait(seconds=25) == 0
    evidence.given.append(("log", bytes(activated.stderr)))
