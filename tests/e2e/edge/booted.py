"""The page on the edge gateway, followed word by word on a Debian that systemd has booted.

The commands are those of docs/howto-edge.md, section by section, so the tests build on each other in their order.
Clients and the tenant are here, outside of the gateway, on the same loopback. What systemd promises is real:
notification and watchdog, credentials, the socket, and every restriction of the unit but the limits of memory.

It needs root, and what `setup` makes, so it is not found by itself: `make e2e-full` has `run` start it.
"""

import asyncio
import logging
import re
import secrets
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from proxy.demo.simulator import Simulator
from tests.demo.authority import Authority
from tests.e2e.crowd import Crowd, Visitor

from .machine import ROOT, CommandFailed, Gateway, booted


pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

log = logging.getLogger(__name__)

SERVICE: Final = "c8y-realtime-proxy.service"
ETC: Final = Path("/etc/c8y-realtime-proxy")
ENDPOINT: Final = URL("https://localhost:8443/notification/realtime")
PASSWORD: Final = f"canary-{secrets.token_hex(16)}"
OFFLINE: Final = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
PAGE: Final = {
    title: re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    for title, _, text in (
        section.partition("\n") for section in (ROOT / "docs/howto-edge.md").read_text(encoding="utf-8").split("\n## ")
    )
}
"""The code of the page, by section: language and text."""


class Installed:
    """A gateway on which the page is followed, and what came of it."""

    def __init__(self, gateway: Gateway, platform: Simulator, authority: Authority) -> None:
        self.gateway = gateway
        self.platform = platform
        self.authority = authority
        names = PAGE["What is needed"][-1][1]
        names = re.sub(r"(?<=TENANT=)\S+", platform.url, names)
        self._names = re.sub(r"(?<=NAME=)\S+", "localhost", names)
        self.visitor: Visitor

    async def follow(self, section: str, *, stdin: str = "") -> str:
        """Do what a section says in shell, and return what was written. Raises CommandFailed."""
        output = ""
        for language, text in PAGE[section]:
            if language == "sh":
                wants = "read -r" in text
                output += await self.gateway.sh(self._names + text, stdin=stdin if wants else "", environment=OFFLINE)
        return output

    def put_in_place(self, section: str, *more: str) -> None:
        """Put what a section has in TOML in the place of where the credential comes from, and `more` behind it."""
        [table] = [text for language, text in PAGE[section] if language == "toml"]
        file = self.etc("proxy.toml")
        text = re.sub(
            r"^(\[vault\]\n.*?)?\[credentials\.default\]\n.*?(?=^\[handshake)",
            "",
            file.read_text(),
            flags=re.MULTILINE | re.DOTALL,
        )
        file.write_text(text.replace("[handshake]", "\n".join([table, *more, "[handshake]"])))

    def etc(self, name: str) -> Path:
        """A file of the configuration, as it is reached from outside."""
        return self.gateway.files / ETC.relative_to("/") / name

    async def main_pid(self) -> int:
        return int(await self.gateway.property_of(SERVICE, "MainPID"))

    async def logged(self, text: str) -> None:
        """Wait until the service has logged this. Raises TimeoutError."""
        async with asyncio.timeout(10):
            while text not in await self.journal():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.05)

    async def journal(self) -> str:
        return await self.gateway.sh(f"journalctl --unit={SERVICE} --no-pager --output=cat")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page has in `release.tar`, unpacked."""
    folder = tmp_path_factory.mktemp("release")
    [packing] = [
        line for _, text in PAGE["What is needed"] for line in text.splitlines() if line.strip().startswith("tar ")
    ]
    for pattern in packing.split()[3:]:
        found = list(ROOT.glob(pattern))
        assert len(found) == 1, f"{pattern}: make wheel"
        target = folder / found[0].relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if found[0].is_dir() else shutil.copy)(found[0], target)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed(release: Path) -> AsyncIterator[Installed]:
    """The page was followed up to where clients are served."""
    authority = Authority()
    async with (
        Simulator(
            password=PASSWORD, ssl_context=authority.server(), device_ssl_context=authority.listener()
        ) as platform,
        booted(release) as gateway,
    ):
        it = Installed(gateway, platform, authority)
        for section in ("The program", "The user and the units"):
            await it.follow(section)
        told = await it.follow("The configuration", stdin=f"t0815\nservice\n{PASSWORD}\n")
        [key] = re.findall(r"hall-2\.\S+", told)
        it.visitor = Visitor(ENDPOINT, key, ssl.create_default_context(cadata=it.etc("certificate.pem").read_text()))
        # Which authority a tenant of tests has is the one thing that the page cannot know.
        it.etc("authorities.pem").write_bytes(authority.ca_file(release).read_bytes())
        it.etc("proxy.toml").write_text(it.etc("proxy.toml").read_text().replace("# ca_file", "ca_file"))
        await it.follow("Start")
        yield it


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def evidence(installed: Installed) -> AsyncIterator[None]:
    """No secret is in the log, and no error that the test did not provoke."""
    yield
    log = await installed.journal()
    assert PASSWORD not in log
    assert installed.visitor.key not in log
    assert " ERROR " not in log


async def test_clients_are_served_over_tls_and_by_their_keys_alone(installed: Installed) -> None:
    await installed.visitor.shake()
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await Visitor(ENDPOINT, "hall-2.wrong", installed.visitor.trusting).shake()


async def test_it_is_among_what_a_gateway_starts_when_it_boots(installed: Installed) -> None:
    await installed.gateway.sh(f"systemctl stop {SERVICE} c8y-realtime-proxy.socket")
    with pytest.raises(aiohttp.ClientConnectorError):
        await installed.visitor.shake()
    await installed.gateway.sh("systemctl isolate default.target")  # as booting does
    for unit in ("c8y-realtime-proxy.socket", SERVICE):
        await installed.gateway.until(unit, ActiveState="active")
    await installed.visitor.shake()


async def test_what_the_page_looks_at_is_well(installed: Installed) -> None:
    told = await installed.follow("Watch it")
    assert "active (running)" in told
    [exposure] = re.findall(r"Overall exposure level for \S+ (\d+\.\d+)", told)
    assert float(exposure) < 2


async def test_the_process_has_no_more_rights_than_it_needs(installed: Installed) -> None:
    pid = await installed.main_pid()
    status = dict(
        line.split(":\t") for line in (installed.gateway.files / f"proc/{pid}/status").read_text().splitlines()
    )
    assert int(status["Uid"].split()[0]) > 0
    assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    inside = f"nsenter --target={pid} --mount -- "
    await installed.gateway.sh(f"{inside} touch /var/lib/c8y-realtime-proxy/there")
    for place in ("/etc/c8y-realtime-proxy", "/usr", "/opt", "/var/log", "/home", "/root", "/dev"):
        await installed.gateway.sh(f"! {inside} touch {place}/there 2>/dev/null")


async def test_reload_lets_a_new_client_in_and_has_nobody_leave(installed: Installed) -> None:
    told = await installed.gateway.sh(f"c8y-realtime-proxy clients add hall-3 --config {ETC}/proxy.toml")
    [key] = re.findall(r"hall-3\.\S+", told)
    newcomer = Visitor(ENDPOINT, key, installed.visitor.trusting)
    async with Crowd(installed.visitor) as crowd:
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await newcomer.shake()
        await installed.gateway.sh("systemctl reload c8y-realtime-proxy")
        await installed.logged("The configuration was read again")
        await newcomer.shake()
    assert crowd.goodbyes == []
    assert crowd.refused == []


async def test_a_process_that_stands_still_is_replaced_and_nobody_refused_meanwhile(installed: Installed) -> None:
    async with watched_closely(installed.gateway):
        before = await installed.main_pid()
        async with Crowd(installed.visitor) as crowd:
            await installed.gateway.sh(f"kill -STOP {before}")
            await installed.gateway.until(SERVICE, ActiveState="active", NRestarts="1")
            await crowd.all_here(after=1)
        assert await installed.main_pid() != before
    assert crowd.refused == []
    assert "Failed with result 'watchdog'" in await installed.journal()


@asynccontextmanager
async def watched_closely(gateway: Gateway) -> AsyncIterator[None]:
    """Have the service be missed after two seconds without a sign of life; at the end it is as the page has it."""
    folder = f"/run/systemd/system/{SERVICE}.d"
    await gateway.sh(
        f"mkdir {folder}\n"
        f"printf '[Service]\\nWatchdogSec=2\\n' > {folder}/quick.conf\n"
        f"systemctl daemon-reload\nsystemctl restart {SERVICE}"
    )
    try:
        yield
    finally:
        await gateway.sh(f"rm -r {folder}\nsystemctl daemon-reload\nsystemctl restart {SERVICE}")


async def test_a_broken_configuration_is_told_and_a_mended_one_served_without_help(
    installed: Installed,
) -> None:
    file = installed.etc("proxy.toml")
    good = file.read_text()
    file.write_text(good.replace("[gate]", "[gates]"))
    with pytest.raises(CommandFailed):
        await installed.gateway.sh(f"systemctl restart {SERVICE}")
    await installed.logged("gates: is not a key of ours")
    waiting = asyncio.get_running_loop().create_task(installed.visitor.shake())
    file.write_text(good)
    await waiting


async def test_the_password_lies_on_the_disk_only_sealed(installed: Installed) -> None:
    installed.put_in_place("A sealed password")
    await installed.follow("A sealed password")
    await installed.visitor.shake()
    await installed.gateway.sh(
        f"! grep --recursive --files-with-matches --fixed-strings {PASSWORD} /etc /var /run /opt"
    )


async def test_the_device_certificate_of_thin_edge_takes_the_place_of_a_password_and_is_renewed(
    installed: Installed, tmp_path: Path
) -> None:
    gateway, devices = installed.gateway, installed.platform.devices
    await gateway.sh("useradd --system mosquitto; mkdir --parents /etc/tedge/device-certs")
    await renew(installed, tmp_path)
    installed.put_in_place("Beside thin-edge.io", f'token_url = "{installed.platform.device_url}"')
    await installed.follow("Beside thin-edge.io")
    await installed.gateway.sh(f"c8y-realtime-proxy wait --config {ETC}/proxy.toml")
    await installed.visitor.shake()
    asked = len(devices.asked)
    assert set(devices.asked) == {"gateway-1"}

    before = await installed.main_pid()
    async with Crowd(installed.visitor) as crowd:
        await renew(installed, tmp_path)
        await crowd.all_here(after=1)
    assert crowd.refused == []
    assert crowd.failed == []
    assert crowd.goodbyes == [1001] * crowd.stay
    assert await installed.main_pid() != before
    assert len(devices.asked) > asked


async def renew(installed: Installed, folder: Path) -> None:
    """Put another certificate and key in place as thin-edge.io does."""
    device = installed.authority.device(folder)
    there = installed.gateway.files / "etc/tedge/device-certs"
    (there / "tedge-private-key.pem.new").write_bytes(device.key_file.read_bytes())
    (there / "tedge-certificate.pem.new").write_bytes(device.certificate_file.read_bytes())
    await installed.gateway.sh(
        "cd /etc/tedge/device-certs\n"
        "chown mosquitto: *.new; chmod 400 tedge-private-key.pem.new; chmod 444 tedge-certificate.pem.new\n"
        "mv tedge-private-key.pem.new tedge-private-key.pem; mv tedge-certificate.pem.new tedge-certificate.pem"
    )


async def test_upgrade_refuses_nobody_and_open_sockets_get_1001_and_return(installed: Installed) -> None:
    before = await installed.main_pid()
    async with Crowd(installed.visitor, stay=50) as crowd:
        await installed.follow("Upgrade")
        await crowd.all_here(after=1)
    assert crowd.refused == []
    assert crowd.failed == []
    assert crowd.goodbyes == [1001] * crowd.stay
    assert crowd.served > 0
    log.info("%d clients were back after at most %.1f s", crowd.stay, max(crowd.away))
    after = await installed.main_pid()
    assert after != before
    assert b"/0.2.0/" in (installed.gateway.files / f"proc/{after}/cmdline").read_bytes()
    assert await installed.gateway.property_of(SERVICE, "NRestarts") == "0"


async def test_nothing_stays_behind(installed: Installed) -> None:
    await installed.follow("Take it off")
    left = await installed.gateway.sh(
        "find / /run/systemd -xdev -name '*c8y-realtime-proxy*' "
        "-not -path '/release/*' -not -path '/proc/*' -not -path '/sys/*'"
    )
    assert left == ""
    assert "c8y-realtime-proxy" not in await installed.gateway.sh("cat /etc/passwd; systemctl list-units --all")
