"""The command as its user runs it."""

import argparse
import asyncio
import base64
import os
import re
import resource
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent

import aiohttp
import msgspec
import pytest
import trustme

from proxy import __version__
from proxy.cli import commands
from proxy.demo.simulator import Simulator
from proxy.gate.keys import generated, name_in, stored
from tests.conftest import CLIENT_ID_KEY_FILE, PASSWORD, VALUES, closed, exchange, handshake


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


def command_line_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


async def test_secrets_are_not_on_the_command_line_nor_in_the_log(upstream: Simulator) -> None:
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": upstream.url, "C8Y_REALTIME_PROXY__LOG__LEVEL": "DEBUG"}
    async with serving(environment | {"PYTHONASYNCIODEBUG": "1"}) as (process, url):
        assert PASSWORD not in command_line_of(process.pid)
        async with aiohttp.ClientSession() as client, client.get(url, headers={"Cookie": PASSWORD * 1000}) as response:
            assert PASSWORD not in await response.text()
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), 25)
    assert b"Draining" in errors
    assert PASSWORD.encode() not in errors


async def test_log_of_a_running_proxy_hides_what_is_stored() -> None:
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": "http://localhost:1"}
    sent = base64.b64encode(f"t0815/service:{PASSWORD}".encode()).decode()
    program = f"""
import logging, sys, proxy.app, proxy.cli
drain = proxy.app.Proxy.drain
async def telling(self):
    logging.error("We know %s and %s", {PASSWORD!r}, {sent!r})
    await drain(self)
proxy.app.Proxy.drain = telling
sys.exit(proxy.cli.main(["run"]))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stderr=PIPE, env=os.environ | environment
    )
    assert process.stderr is not None
    while b"public listener" not in await process.stderr.readline():
        pass
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.communicate(), 25)
    assert b"We know *** and ***\n" in errors
    assert process.returncode == 0


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every option and argument of a parser and of its commands."""
    found: set[str] = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(options_of, action.choices.values()))
        else:
            found.update(action.option_strings or [action.dest])
    return found


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["--password", PASSWORD], "unrecognized arguments: --password", id="a name and a value"),
        pytest.param([f"--token={PASSWORD}"], "unrecognized arguments: --token", id="in one word"),
        pytest.param([PASSWORD], "unrecognized arguments", id="a value"),
    ],
)
async def test_value_that_no_option_takes_is_not_repeated(arguments: list[str], told: str) -> None:
    code, output, errors = await command("run", *arguments)

    assert (code, output) == (2, "")
    assert errors.splitlines()[-1] == f"c8y-realtime-proxy: error: {told}"
    assert PASSWORD not in errors


def test_no_option_takes_a_secret() -> None:
    assert options_of(commands.command_line()) == {
        *("-h", "--help", "--version", "--config", "--replace", "--credential", "name", "--ready", "--seconds")
    }


async def test_second_signal_changes_nothing(upstream: Simulator) -> None:
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": upstream.url}
    async with serving(environment) as (process, _):
        assert process.stderr is not None
        process.send_signal(signal.SIGTERM)
        while b"Draining" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 25) == 0


async def line_with(text: bytes, process: Process) -> bytes:
    """The next line of its log that holds a text."""
    assert process.stderr is not None
    async with asyncio.timeout(10):
        while text not in (line := await process.stderr.readline()):
            assert line, "it ended"
    return line


async def test_sighup_has_the_file_read_again_and_parts_from_those_who_are_not_in_it_any_more(
    upstream: Simulator, tmp_path: Path
) -> None:
    keys = {name: generated(name) for name in ("ann", "bob")}
    entries = {name: f'[[clients]]\nname = "{name}"\nkey = "{stored(key)}"\n' for name, key in keys.items()}
    common = f'[gate]\nidentity = ["bearer"]\nclient_id_key_file = "{CLIENT_ID_KEY_FILE}"\n'
    file = tmp_path / "proxy.toml"
    file.write_text(common + entries["ann"] + entries["bob"])
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": upstream.url}
    async with serving(environment, "--config", str(file)) as (process, url), aiohttp.ClientSession() as client:
        path = f"{url}/notification/realtime"
        headers = {name: {"Authorization": f"Bearer {key}"} for name, key in keys.items()}
        async with (
            client.ws_connect(path, headers=headers["ann"], autoclose=False) as ann,
            client.ws_connect(path, headers=headers["bob"], autoclose=False) as bob,
        ):
            [answer] = await exchange(bob, [handshake()])

            file.write_text("[gate\n")
            process.send_signal(signal.SIGHUP)
            assert b"The configuration stays as it was: " in await line_with(b"ERROR", process)
            file.write_text(common + entries["bob"])
            process.send_signal(signal.SIGHUP)
            assert (await closed(ann))[0] == 1008
            await line_with(b"The configuration was read again", process)

            connect = {"channel": "/meta/connect", "clientId": answer["clientId"], "advice": {"timeout": 0}}
            [answer] = await exchange(bob, [connect])
            assert answer["successful"] is True
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
                process.send_signal(number)
            await closed(bob)
        assert await asyncio.wait_for(process.wait(), 25) == 0


async def test_log_is_json_where_that_is_wanted_and_sighup_changes_it(upstream: Simulator, tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text('[log]\nformat = "json"\n')
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": upstream.url}
    async with serving(environment, "--config", str(file)) as (process, _):
        process.send_signal(signal.SIGHUP)
        told = msgspec.json.decode(await line_with(b"read again", process))
        assert (told["level"], told["logger"]) == ("INFO", "proxy.app")
        assert told["message"] == "The configuration was read again"
        file.write_text('[log]\nformat = "text"\n')
        process.send_signal(signal.SIGHUP)
        told = await line_with(b"read again", process)
        assert told.endswith(b" INFO proxy.app: The configuration was read again\n")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 25) == 0


async def test_sighup_while_it_is_imported_ends_nothing(upstream: Simulator) -> None:
    program = """
import os, runpy, signal, sys
class Impatient:
    def find_spec(self, name, *_):
        if name == "proxy.cli":
            os.kill(os.getpid(), signal.SIGHUP)
sys.meta_path.insert(0, Impatient())
sys.argv = ["proxy", "run"]
runpy.run_module("proxy", run_name="__main__", alter_sys=True)
"""
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": upstream.url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stderr=PIPE, env=os.environ | environment
    )
    await line_with(b"public listener", process)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 25) == 0
    await process.communicate()


async def test_sighup_before_the_listener_is_up_is_heard_once_it_is(upstream: Simulator) -> None:
    program = """
import os, signal, sys, proxy.cli
from proxy.cli import commands
load = commands.load
def loading(*given):
    os.kill(os.getpid(), signal.SIGHUP)
    return load(*given)
commands.load = loading
sys.exit(proxy.cli.main(["run"]))
"""
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_BASEURL": upstream.url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stderr=PIPE, env=os.environ | environment
    )
    await line_with(b"public listener", process)
    await line_with(b"The configuration was read again", process)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 25) == 0
    await process.communicate()


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
            "credentials.default.source: expected where the credential comes from, such as stored or cookie: "
            "no stored values were found to go by "
            "(credentials.default.directory, or C8Y_TENANT, C8Y_USER and C8Y_PASSWORD)"
        ),
        "gate.hosts: expected the names this proxy is reached by, since it listens beyond loopback",
        (
            "gate.identity: expected some of basic, bearer, mtls and jwt, since this listens beyond loopback; "
            'to let anyone in who reaches it, say ["none"] here and admit_anyone = true beside it'
        ),
        "6 problems in the configuration",
    ]


async def test_check_goes_by_the_environment_where_there_is_no_file() -> None:
    environment = dict(VALUES) | {"C8Y_BASEURL": "https://tenant.example.com"}
    assert await command("check", environment=environment) == (0, "The configuration is valid\n", "")
    code, _, errors = await command("check", environment=environment | {"C8Y_REALTIME_PROXY__LISTEN__PORT": "many"})
    assert (code, errors.splitlines()[0]) == (2, "C8Y_REALTIME_PROXY__LISTEN__PORT: expected a whole number")


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


@pytest.mark.parametrize("home", ["sidecar", "edge", "frontdoor", "frontdoor-cookie"])
async def test_every_example_configuration_passes_check_with_its_files_in_place(home: str, tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("gateway.example.com")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    for name in ("client-id-key", "session-key", "redis-password"):
        (tmp_path / name).write_text("a secret of tests, which is none\n")
    example = (Path(__file__).parent.parent / "config" / f"{home}.toml").read_text()
    file = tmp_path / "proxy.toml"
    file.write_text(example.replace("/etc/c8y-realtime-proxy/", f"{tmp_path}/"))
    code, output, errors = await command("check", "--config", str(file))

    assert (code, output, errors) == (0, "The configuration is valid\n", "")


# Clients --------------------------------------------------------------------------------------------------------------


def text_of(file: Path) -> str:
    return file.read_text()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration that asks for keys."""
    made = tmp_path / "proxy.toml"
    made.write_text(
        dedent(f"""
        [upstream]
        url = "https://tenant.example.com"
        [credentials.default]
        directory = "{tmp_path}"
        [gate]
        identity = ["basic", "bearer"]
        client_id_key_file = "{CLIENT_ID_KEY_FILE}"
        [[clients]]
        name = "press"
        key = "sha256:{"0" * 64}"
        [[clients.grants]]
        subscribe = ["/alarms/*", "/measurements/4711"]
        endpoints = ["/cep/realtime"]
        [[clients.grants]]
        call = ["/service/x"]
        """)
    )
    return made


async def test_added_client_may_come_in_with_the_key_that_is_alone_on_standard_output(file: Path) -> None:
    code, output, errors = await command("clients", "add", "hall-2", "--config", str(file))

    assert code == 0
    key = output.removesuffix("\n")
    assert name_in(key) == "hall-2"
    assert key not in errors
    for said in ("Authorization: Bearer", "hall-2 as user", "SIGHUP", "cannot be shown again"):
        assert said in errors
    assert f'name = "hall-2"\nkey = "{stored(key)}"\n' in text_of(file)
    assert key not in text_of(file)
    assert (await command("check", "--config", str(file)))[0] == 0


async def test_without_a_file_what_belongs_into_it_is_told() -> None:
    code, output, errors = await command("clients", "add", "hall-2")

    assert code == 0
    assert f'[[clients]]\nname = "hall-2"\nkey = "{stored(output.strip())}"\n' in errors


async def test_clients_are_listed_without_their_digests(file: Path) -> None:
    await command("clients", "add", "hall-2", "--config", str(file))
    code, output, errors = await command("clients", "list", "--config", str(file))

    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        "NAME    PROVED BY  CREDENTIAL  MAY",
        ("press   a key      default     subscribe /alarms/*, /measurements/4711 at /cep/realtime; call /service/x"),
        "hall-2  a key      default     as gate.grants says",
    ]


async def test_removed_client_is_gone(file: Path) -> None:
    before = text_of(file)
    await command("clients", "add", "hall-2", "--config", str(file))
    code, output, errors = await command("clients", "remove", "hall-2", "--config", str(file))

    assert (code, output) == (0, "")
    assert "Its key is good until the proxy reads its configuration again (SIGHUP)" in errors
    assert text_of(file) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(("add", "press"), "press: expected a new name", id="taken"),
        pytest.param(("add", "PRESS"), "by more than upper and lower case", id="taken in other case"),
        pytest.param(("add", "a b"), "NAME: expected 1 to 64 letters, digits, - and _", id="no name"),
        pytest.param(("remove", "nobody"), "nobody: expected the name of a client", id="unknown"),
    ],
)
async def test_what_cannot_be_done_is_told_and_changes_nothing(
    file: Path, arguments: tuple[str, str], told: str
) -> None:
    before = text_of(file)
    code, output, errors = await command("clients", *arguments, "--config", str(file))

    assert (code, output) == (2, "")
    assert told in errors
    assert text_of(file) == before


@pytest.mark.parametrize("action", [("add", "x"), ("list",), ("remove", "x")], ids=lambda action: str(action[0]))
async def test_file_that_is_not_there_or_no_toml_is_named(tmp_path: Path, action: tuple[str, ...]) -> None:
    for file in (tmp_path / "none.toml", Path(__file__)):
        code, output, errors = await command("clients", *action, "--config", str(file))
        assert (code, output) == (2, "")
        assert str(file) in errors


async def test_clients_of_the_environment_are_told_to_count_in_place_of_those_of_the_file(file: Path) -> None:
    variable = "C8Y_REALTIME_PROXY__CLIENTS"
    _, _, errors = await command("clients", "add", "x", "--config", str(file), environment={variable: "[]"})
    assert f"{variable} is set" in errors
