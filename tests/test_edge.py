"""The units of an edge gateway, its configuration and the page that installs them say the same."""

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest
import trustme

from proxy import __version__
from proxy.app import _BACKLOG
from proxy.cli.commands import command_line
from proxy.config import Config, load
from tests.conftest import LONGEST_EXIT_SECONDS


ROOT: Final = Path(__file__).parents[1]
UNITS: Final = ROOT / "deploy/systemd"
NAME: Final = "c8y-realtime-proxy"
ETC: Final = f"/etc/{NAME}/"
HANDED_OVER: Final = f"/run/credentials/{NAME}.service/"
PAGE: Final = (ROOT / "docs/howto-edge.md").read_text(encoding="utf-8")
SCALING: Final = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
EDGE: Final = (ROOT / "config/edge.toml").read_text(encoding="utf-8")
CLIENTS_GIVE_UP_SECONDS: Final = 10
START_SECONDS: Final = 3  # which a start may take on a slow gateway
START_CPU_SECONDS: Final = 0.9  # of one that fails for its configuration, measured on a core of a virtual machine
DEFAULT_CREDENTIAL: Final = re.compile(r"^\[credentials\.default\]\n.*?(?=^\[)", re.MULTILINE | re.DOTALL)


def unit(name: str) -> dict[tuple[str, str], list[str]]:
    """What a unit says, by section and name; a name may be there more than once."""
    said: dict[tuple[str, str], list[str]] = {}
    section = ""
    for line in (UNITS / name).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if found := re.fullmatch(r"\[(Unit|Service|Socket|Path|Install)\]", line):
            section = found[1]
            continue
        found = re.fullmatch(r"([A-Z][A-Za-z]+)=(.*)", line)
        assert found, f"{name}: {line}"
        assert section, f"{name}: {line} is in no section"
        said.setdefault((section, found[1]), []).append(found[2])
    return said


SERVICE: Final = unit(f"{NAME}.service")
SOCKET: Final = unit(f"{NAME}.socket")


def one(said: dict[tuple[str, str], list[str]], section: str, name: str) -> str:
    [value] = said[section, name]
    return value


def blocks(language: str) -> list[str]:
    """The code of the page in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def configured(gateway: Path, table: str = "") -> Config:
    """What config/edge.toml amounts to on a gateway, with a table in the place of where its credential comes from."""
    text = EDGE
    if table:
        text, count = DEFAULT_CREDENTIAL.subn(lambda _: table, text)
        assert count == 1
    file = gateway / "proxy.toml"
    file.write_text(text.replace(ETC, f"{gateway}/").replace(HANDED_OVER, f"{gateway}/"), encoding="utf-8")
    return load(file, {"CREDENTIALS_DIRECTORY": str(gateway)})


@pytest.fixture
def gateway(tmp_path: Path) -> Path:
    """What lies under /etc on a gateway, but for the configuration, and what systemd hands over."""
    issued = trustme.CA().issue_cert("gateway.example.com")
    for name in ("key.pem", "device-key"):
        issued.private_key_pem.write_to_path(tmp_path / name)
    for name in ("certificate.pem", "device-certificate"):
        issued.cert_chain_pems[0].write_to_path(tmp_path / name)
    (tmp_path / "client-id-key").write_text("a secret of tests, which is none\n")
    return tmp_path


def handed_over(drop_in: str) -> set[str]:
    """The names of the systemd credentials that a drop-in has the service get."""
    said = unit(drop_in)
    loaded = [*said.get(("Service", "LoadCredential"), ()), *said.get(("Service", "LoadCredentialEncrypted"), ())]
    assert loaded
    return {name for name, _, _ in (value.partition(":") for value in loaded)}


class TestService:
    def test_it_runs_the_installed_command_with_options_that_there_are(self) -> None:
        command, *arguments = one(SERVICE, "Service", "ExecStart").split()
        assert Path(command).name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        options = command_line().parse_args(arguments)
        assert (options.command, options.config) == ("run", Path(ETC, "proxy.toml"))
        assert f"ln -sfn /opt/{NAME}/$VERSION/bin/{NAME} {command}\n" in PAGE

    def test_systemd_waits_for_the_longest_exit(self, gateway: Path) -> None:
        longest = configured(gateway).drain.accept_seconds + LONGEST_EXIT_SECONDS
        assert int(one(SERVICE, "Service", "TimeoutStopSec")) > longest

    def test_as_many_clients_as_are_admitted_fit_into_memory_and_descriptors(self, gateway: Path) -> None:
        admitted = configured(gateway).limits.connections
        [idle_mib] = map(int, re.findall(r"^\| memory \| (\d+) MiB,", SCALING, flags=re.MULTILINE))
        each_kib = max(map(int, re.findall(r"\| yes \| yes \| (\d+) KiB \|", SCALING)))  # TLS on both sides
        high, most = (int(one(SERVICE, "Service", name).removesuffix("M")) for name in ("MemoryHigh", "MemoryMax"))
        assert idle_mib + admitted * each_kib / 1024 < high < most
        assert f"a client takes some {each_kib} KiB" in EDGE
        assert 2.5 * admitted < int(one(SERVICE, "Service", "LimitNOFILE"))

    def test_it_is_ready_when_it_says_so_and_watched_from_then_on(self) -> None:
        assert one(SERVICE, "Service", "Type") == "notify"
        assert int(one(SERVICE, "Service", "WatchdogSec")) >= 10  # an interpreter on a slow gateway may stand still

    def test_what_it_may_leave_behind_holds_no_memory(self) -> None:
        assert one(SERVICE, "Service", "WatchdogSignal") == "SIGKILL"
        assert one(SERVICE, "Service", "LimitCORE") == "0"

    def test_reloading_it_is_sighup(self) -> None:
        assert one(SERVICE, "Service", "ExecReload") == "/bin/sh -c 'kill -HUP $MAINPID'"

    def test_whoever_connects_after_it_failed_is_served_before_it_gives_up(self) -> None:
        pause = one(SERVICE, "Service", "RestartSec")
        assert int(pause) + START_SECONDS < CLIENTS_GIVE_UP_SECONDS
        assert f"is started again after {pause} seconds, for ever.\nThose who connect meanwhile wait." in PAGE

    def test_between_starts_that_fail_it_rests(self) -> None:
        assert int(one(SERVICE, "Service", "RestartSec")) > START_CPU_SECONDS

    def test_its_own_restarts_never_reach_the_limit_after_which_it_stays_away(self) -> None:
        restarts = int(one(SERVICE, "Unit", "StartLimitIntervalSec")) / int(one(SERVICE, "Service", "RestartSec"))
        assert restarts < int(one(SERVICE, "Unit", "StartLimitBurst"))

    def test_its_user_is_the_one_that_is_made_and_not_root(self) -> None:
        lines = (UNITS / f"{NAME}.sysusers").read_text().splitlines()
        [made] = [line.split() for line in lines if not line.startswith("#")]
        assert made[:2] == ["u", one(SERVICE, "Service", "User")]
        assert one(SERVICE, "Service", "Group") == made[1] != "root"

    def test_it_may_write_where_the_vault_is_and_nobody_else_may_look(self) -> None:
        state = f"/var/lib/{one(SERVICE, 'Service', 'StateDirectory')}/"
        for kept in re.findall(r'"(/var/[^"]+)"', EDGE + PAGE):
            assert kept.startswith(state), kept
        assert one(SERVICE, "Service", "StateDirectoryMode") == "0700"
        assert one(SERVICE, "Service", "ProtectSystem") == "strict"

    def test_it_has_no_capability(self) -> None:
        assert one(SERVICE, "Service", "CapabilityBoundingSet") == ""
        assert one(SERVICE, "Service", "AmbientCapabilities") == ""
        assert one(SERVICE, "Service", "NoNewPrivileges") == "true"


class TestSocket:
    def test_it_is_where_the_configuration_says(self, gateway: Path) -> None:
        listen = configured(gateway).listen
        assert one(SOCKET, "Socket", "ListenStream") == f"{listen.host}:{listen.port}"

    def test_it_is_handed_over_as_the_public_listener(self) -> None:
        assert one(SOCKET, "Socket", "FileDescriptorName") == "listen"
        assert one(SERVICE, "Service", "Sockets") == f"{NAME}.socket"
        assert one(SERVICE, "Install", "Also") == f"{NAME}.socket"

    def test_as_many_may_wait_as_for_a_listener_of_the_proxys_own(self) -> None:
        assert int(one(SOCKET, "Socket", "Backlog")) == _BACKLOG
        assert one(SOCKET, "Socket", "NoDelay") == "true"

    def test_whoever_waits_while_the_proxy_drains_is_served_before_it_gives_up(self, gateway: Path) -> None:
        drain = configured(gateway).drain
        assert drain.spread_seconds <= drain.timeout_seconds
        assert drain.accept_seconds + drain.timeout_seconds < CLIENTS_GIVE_UP_SECONDS - START_SECONDS

    def test_whoever_was_let_in_just_before_has_time_to_say_what_for(self, gateway: Path) -> None:
        assert configured(gateway).drain.accept_seconds > 0


class TestCredentials:
    @pytest.mark.parametrize("table", blocks("toml"), ids=lambda table: re.findall(r'source = "(\w+)"', table)[0])
    def test_what_the_page_puts_in_place_is_valid_and_in_the_example(self, gateway: Path, table: str) -> None:
        configured(gateway, table)
        commented = {line.removeprefix("# ").partition("    #")[0] for line in EDGE.splitlines()}
        assert {line for line in table.splitlines() if line} <= commented

    def test_the_key_of_the_vault_has_the_name_that_is_configured(self, gateway: Path) -> None:
        [table] = [table for table in blocks("toml") if "[vault]" in table]
        assert handed_over("vault-key.conf") == {configured(gateway, table).vault.key_credential}
        [encrypted] = unit("vault-key.conf")["Service", "LoadCredentialEncrypted"]
        assert f"--property=LoadCredentialEncrypted={encrypted} " in PAGE

    def test_the_device_certificate_is_where_it_is_handed_over(self, gateway: Path) -> None:
        [table] = [table for table in blocks("toml") if '"device"' in table]
        settings = configured(gateway, table).credentials["default"]
        assert {settings.certificate_file, settings.key_file} == {
            gateway / name for name in handed_over("thin-edge.conf")
        }
        assert all(f'"{HANDED_OVER}{name}"' in table for name in handed_over("thin-edge.conf"))

    def test_every_file_that_is_handed_over_is_looked_at_when_it_is_renewed(self) -> None:
        loaded = {value.partition(":")[2] for value in unit("thin-edge.conf")["Service", "LoadCredential"]}
        assert set(unit(f"{NAME}-renewal.path")["Path", "PathChanged"]) == loaded
        restart = one(unit(f"{NAME}-renewal.service"), "Service", "ExecStart")
        assert restart == f"/bin/systemctl --no-block try-restart {NAME}.service"


class TestPage:
    def test_it_installs_this_version(self) -> None:
        assert f"\nVERSION={__version__}\n" in PAGE

    def test_it_says_what_the_example_says_of_the_places_that_it_changes(self) -> None:
        for place in re.findall(r"s\|(.+?)\|\$", PAGE):
            assert place in EDGE, place

    def test_it_installs_every_unit(self) -> None:
        for file in UNITS.iterdir():
            assert f"deploy/systemd/{file.name} " in PAGE.replace("\\\n", " "), file.name

    def test_its_commands_leave_the_shell_where_it_is(self) -> None:
        assert not [line for block in blocks("sh") for line in block.splitlines() if line.startswith("cd ")]
