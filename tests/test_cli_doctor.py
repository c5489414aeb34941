"""`doctor` as its user runs it."""

import asyncio
import signal
from pathlib import Path

import pytest

from proxy.demo.simulator import Simulator
from tests.conftest import PASSWORD, VALUES
from tests.test_cli import command, start


@pytest.fixture
def environment(upstream: Simulator) -> dict[str, str]:
    return dict(VALUES) | {"C8Y_BASEURL": upstream.url}


async def test_all_well_is_a_line_per_step_in_columns_and_exit_code_0(environment: dict[str, str]) -> None:
    code, output, errors = await command("doctor", environment=environment)
    lines = output.splitlines()
    assert (code, errors) == (0, "")
    assert [line[:29].split(maxsplit=1)[1].strip() for line in lines] == [
        "configuration",
        "DNS",
        "TCP",
        "TLS",
        "clock",
        "default: shape",
        "default: login",
        "default: upgrade",
        "default: handshake",
        "default: connect",
    ]
    assert {line[:9].strip() for line in lines} == {"ok", "skipped"}
    assert all(line[7:9] == line[27:29] == "  " and line[29] != " " for line in lines)


async def test_a_failure_is_exit_code_1_and_quotes_no_secret(environment: dict[str, str], upstream: Simulator) -> None:
    environment["C8Y_PASSWORD"] = "canary-wrong"
    code, output, errors = await command("doctor", environment=environment)
    assert (code, errors) == (1, "")
    assert "FAILED   default: login      Upstream denied user and password. Check both, and the tenant" in output
    assert "canary" not in output
    assert len(upstream.calls) == 2  # the clock's, and one attempt


async def test_problems_of_the_configuration_are_told_as_check_does_and_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[upstream]\nurl = 1\n")
    checked = await command("check", "--config", str(file))
    assert await command("doctor", "--config", str(file)) == checked
    assert checked[0] == 2


async def test_one_credential_is_examined_where_it_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[credentials.default]\nsource = "stored"\n[credentials.other]\nsource = "stored"\ndirectory = "/nowhere"\n'
        f'[gate]\nidentity = ["bearer"]\nclient_id_key_file = "{tmp_path}/key"\n'
        f'[[clients]]\nname = "a"\nkey = "sha256:{"0" * 64}"\n'
    )
    (tmp_path / "key").write_text("k" * 44)
    arguments = ("doctor", "--config", str(file))
    code, output, _ = await command(*arguments, environment=environment)
    assert (code, "default: login" in output, "other: login" in output) == (1, True, True)
    code, output, _ = await command(*arguments, "--credential", "default", environment=environment)
    assert (code, "default: login" in output, "other: login" in output) == (0, True, False)


async def test_a_credential_that_there_is_not_is_exit_code_2(environment: dict[str, str]) -> None:
    code, output, errors = await command("doctor", "--credential", "other", environment=environment)
    assert (code, output, errors) == (2, "", "--credential: expected one of default\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_ends_it_and_logs_out(
    environment: dict[str, str], upstream: Simulator, number: signal.Signals
) -> None:
    upstream.answers_handshakes = False
    environment["C8Y_REALTIME_PROXY__CREDENTIALS__DEFAULT__SOURCE"] = "login"
    process = await start("doctor", environment=environment)
    await upstream.until(lambda: any(each["channel"] == "/meta/handshake" for each in upstream.messages), seconds=15)
    assert upstream.logins.live() == 1
    process.send_signal(number)
    output, errors = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, errors.decode()) == (1, "Ended before all steps were done\n")
    assert "default: login" in output.decode()
    assert "default: handshake" not in output.decode()
    assert upstream.logins.live() == 0
    assert PASSWORD not in output.decode()
