"""What others ask of a proxy that runs: wait, healthcheck, shutdown; and what is behind them."""

import asyncio
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import pytest

from proxy.app import CannotListen, Proxy
from proxy.config import Config
from proxy.demo.simulator import Simulator
from tests.activation import handing_over
from tests.conftest import VALUES, closed, configured, exchange, handshake, running
from tests.relay.raw import Client, post
from tests.test_cli import FREE_PORTS, command, line_with, serving, start


ADMIN_SOCKET: Final = "C8Y_REALTIME_PROXY__ADMIN__SOCKET"
LISTEN_SOCKET: Final = "C8Y_REALTIME_PROXY__LISTEN__SOCKET"
ACCEPT: Final = "C8Y_REALTIME_PROXY__DRAIN__ACCEPT_SECONDS"

Environment = dict[str, str]


@pytest.fixture
def environment(upstream: Simulator, tmp_path: Path) -> Environment:
    """A configuration with an admin socket."""
    told = {"C8Y_BASEURL": upstream.url, ADMIN_SOCKET: str(tmp_path / "admin.sock")}
    return FREE_PORTS | dict(VALUES) | told


def tail(text: str) -> str:
    return text.strip().splitlines()[-1]


def is_there(path: str) -> bool:
    return Path(path).exists()


class TestWait:
    async def test_it_ends_once_the_proxy_is_ready(self, environment: Environment) -> None:
        waiting = asyncio.get_running_loop().create_task(command("wait", environment=environment))
        async with serving(environment):
            assert await waiting == (0, "", "")

    async def test_it_gives_up_and_says_where_nobody_answers(self, environment: Environment) -> None:
        code, output, errors = await command("wait", "--seconds", "0.2", environment=environment)
        assert (code, output) == (1, "")
        path = environment[ADMIN_SOCKET]
        assert tail(errors) == f"Not ready after 0.2 s: nobody answers at {path}: No such file or directory"

    @pytest.mark.logs_errors
    async def test_it_gives_up_and_says_what_is_missing(self, environment: Environment, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        lacking = {name: value for name, value in environment.items() if name not in VALUES}
        lacking["C8Y_REALTIME_PROXY__CREDENTIALS__DEFAULT__DIRECTORY"] = str(empty)
        async with serving(lacking):
            code, _, errors = await command("wait", "--seconds", "0", environment=lacking)
        assert (code, tail(errors)) == (1, "Not ready after 0 s: no usable credential: see the log")

    @pytest.mark.parametrize("seconds", ["-1", "inf", "nan", "soon"])
    async def test_time_that_is_none_is_refused(self, environment: Environment, seconds: str) -> None:
        code, _, errors = await command("wait", f"--seconds={seconds}", environment=environment)
        assert code == 2
        assert tail(errors).endswith("wait: error: argument --seconds: expected a number of seconds, such as 60")


class TestHealthcheck:
    async def test_it_tells_life_and_readiness_apart(self, environment: Environment) -> None:
        async with serving(environment | {ACCEPT: "20"}) as (process, _):
            assert await command("healthcheck", environment=environment) == (0, "", "")
            assert await command("healthcheck", "--ready", environment=environment) == (0, "", "")
            process.send_signal(signal.SIGTERM)
            await line_with(b"Draining", process)
            assert await command("healthcheck", environment=environment) == (0, "", "")
            assert await command("healthcheck", "--ready", environment=environment) == (1, "", "draining\n")

    @pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])  # noqa: S104 - as pods say
    async def test_it_finds_the_port_wherever_that_is(
        self, upstream: Simulator, unused_tcp_port: int, host: str
    ) -> None:
        environment = dict(VALUES) | {
            "C8Y_BASEURL": upstream.url,
            "C8Y_REALTIME_PROXY__LISTEN__PORT": "0",
            "C8Y_REALTIME_PROXY__ADMIN__HOST": host,
            "C8Y_REALTIME_PROXY__ADMIN__PORT": str(unused_tcp_port),
        }
        asked = {"http_proxy": "http://127.0.0.1:9"}  # what many environments have must not be asked instead
        async with serving(environment):
            assert await command("healthcheck", environment=environment | asked) == (0, "", "")

    async def test_it_fails_where_nobody_is(self, unused_tcp_port: int) -> None:
        port = {"C8Y_REALTIME_PROXY__ADMIN__PORT": str(unused_tcp_port)}
        code, _, errors = await command("healthcheck", environment=port)
        place = f"127.0.0.1:{unused_tcp_port} (admin.host, admin.port)"
        assert (code, errors) == (1, f"nobody answers at {place}: Connection refused\n")

    async def test_it_fails_where_somebody_else_is(self, unused_tcp_port: int) -> None:
        async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-somebody\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(say, "127.0.0.1", unused_tcp_port):
            code, _, errors = await command(
                "healthcheck", environment={"C8Y_REALTIME_PROXY__ADMIN__PORT": str(unused_tcp_port)}
            )
        assert code == 1
        assert "is no proxy of ours" in errors

    async def test_what_is_wrong_elsewhere_in_the_configuration_is_none_of_its_business(
        self, environment: Environment, tmp_path: Path
    ) -> None:
        file = tmp_path / "proxy.toml"
        file.write_text("[log]\n")
        async with serving(environment, "--config", str(file)):
            file.write_text('[listen.tls]\ncertificate_file = "/gone"\n[nonsense]\n')
            told = environment | {"C8Y_REALTIME_PROXY_CONFIG": str(file)}
            assert await command("healthcheck", environment=told) == (0, "", "")

    async def test_what_is_wrong_about_the_admin_listener_is_told(self, environment: Environment) -> None:
        wrong = environment | {"C8Y_REALTIME_PROXY__ADMIN__PORT": "many"}
        code, _, errors = await command("healthcheck", environment=wrong)
        assert (code, errors) == (2, "C8Y_REALTIME_PROXY__ADMIN__PORT: expected a whole number\n")

    async def test_it_imports_no_more_than_it_needs(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-X", "importtime", "-m", "proxy", "healthcheck", stderr=PIPE, env=os.environ
        )
        _, errors = await process.communicate()
        imported = set(re.findall(r"\| +([\w.]+)$", errors.decode(), re.MULTILINE))
        assert "proxy.config.tree" in imported
        assert imported & {"aiohttp.web", "proxy.app", "proxy.demo", "prometheus_client", "redis", "jinja2"} == set()


class TestShutdown:
    async def test_it_ends_the_proxy_in_order_and_waits_for_that(self, environment: Environment) -> None:
        async with serving(environment) as (process, url), aiohttp.ClientSession() as client:
            async with client.ws_connect(f"{url}/notification/realtime", autoclose=False) as socket:
                await exchange(socket, [handshake()])
                ending = asyncio.get_running_loop().create_task(command("shutdown", environment=environment))
                assert await closed(socket) == (1001, "Connect again")
                await socket.close()
            assert await ending == (0, "", "")
            assert await asyncio.wait_for(process.wait(), 10) == 0
        assert not is_there(environment[ADMIN_SOCKET])

    async def test_again_and_again_does_no_harm(self, environment: Environment) -> None:
        async with serving(environment | {ACCEPT: "0"}) as (process, url), aiohttp.ClientSession() as client:
            async with client.ws_connect(f"{url}/notification/realtime", autoclose=False) as socket:
                asking = [asyncio.create_task(command("shutdown", environment=environment)) for _ in range(3)]  # noqa: TID251
                assert await closed(socket) == (1001, "Connect again")
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGHUP)
                await socket.close()
            assert {code for code, _, _ in await asyncio.gather(*asking)} <= {0, 1}  # 1: it was gone by then
            assert await asyncio.wait_for(process.wait(), 25) == 0

    async def test_it_ends_the_time_for_newcomers_at_once(self, environment: Environment) -> None:
        async with serving(environment | {ACCEPT: "3600"}) as (process, _):
            process.send_signal(signal.SIGTERM)
            await line_with(b"Draining", process)
            assert (await command("shutdown", environment=environment))[0] == 0
            assert await asyncio.wait_for(process.wait(), 10) == 0

    async def test_nobody_there_is_told(self, environment: Environment) -> None:
        code, _, errors = await command("shutdown", environment=environment)
        assert code == 1
        assert errors.endswith("expected a proxy that runs with this admin.socket\n")

    async def test_who_is_about_to_be_gone_counts_as_told(self, environment: Environment) -> None:
        path = environment[ADMIN_SOCKET]

        async def go(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            os.unlink(path)  # noqa: PTH108 - nobody else is kept waiting
            writer.close()

        async with await asyncio.start_unix_server(go, path):
            assert await command("shutdown", environment=environment) == (0, "", "")

    async def test_without_an_admin_socket_it_says_what_is_missing(self) -> None:
        code, _, errors = await command("shutdown", environment={})
        assert code == 2
        assert errors.startswith("admin.socket: expected the path of a unix socket, which takes the word to end: ")
        assert errors.endswith("or end the proxy by SIGTERM\n")

    async def test_it_gives_up_in_the_end(self, environment: Environment) -> None:
        async with serving(environment) as (process, _):
            process.send_signal(signal.SIGSTOP)  # its socket takes connections, and nobody answers
            code, _, errors = await command("shutdown", "--seconds", "0", environment=environment)
            assert code == 1
            assert errors.startswith("no answer from ")

    async def test_who_takes_its_time_is_not_taken_for_gone(self, environment: Environment) -> None:
        async with serving(environment) as (process, url), aiohttp.ClientSession() as client:
            async with client.ws_connect(f"{url}/notification/realtime", autoclose=False):  # which keeps it there
                asking = command("shutdown", "--seconds", "1", environment=environment)
                ending = asyncio.get_running_loop().create_task(asking)
                await line_with(b"Draining", process)
                process.send_signal(signal.SIGSTOP)
                code, _, errors = await ending
                process.send_signal(signal.SIGCONT)
            assert (code, errors) == (1, "The proxy is told to end, and still there after 1 s\n")


async def told(path: str, method: str, url: str, headers: dict[str, str]) -> int:
    """The status of an answer by a unix socket."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as client,
        client.request(method, f"http://localhost{url}", headers=headers) as response,
    ):
        return response.status


QUIT: Final = {"X-C8y-Realtime-Proxy": "quit"}


class TestQuit:
    @pytest.mark.parametrize(
        ("method", "headers", "status"),
        [
            pytest.param("GET", QUIT, 405, id="GET"),
            pytest.param("PUT", QUIT, 405, id="PUT"),
            pytest.param("POST", {}, 403, id="without the header"),
            pytest.param("POST", {"X-C8y-Realtime-Proxy": "1"}, 403, id="with another value"),
            pytest.param("POST", QUIT | {"Origin": "http://localhost"}, 403, id="from a page"),
            pytest.param("POST", QUIT | {"Origin": "null"}, 403, id="from a page that hides itself"),
            pytest.param("POST", QUIT | {"Host": "rebound.example"}, 403, id="by a foreign name"),
        ],
    )
    async def test_s50_nothing_but_the_one_request_ends_it(
        self, upstream: Simulator, tmp_path: Path, method: str, headers: dict[str, str], status: int
    ) -> None:
        asked: list[bool] = []
        path = str(tmp_path / "admin.sock")
        settings = {"admin.socket": path}
        async with running(upstream.url, settings, quit_now=lambda: asked.append(True)) as proxied:
            assert await told(path, method, "/quit", headers) == status
            assert asked == []
            for listener in (proxied.url, proxied.admin_url):
                async with proxied.client.post(f"{listener}/quit", headers=QUIT) as response:
                    assert response.status == 404
            assert asked == []
            assert await told(path, "POST", "/quit", QUIT) == 202
            assert asked == [True]

    async def test_the_socket_answers_what_the_port_does(self, upstream: Simulator, tmp_path: Path) -> None:
        path = str(tmp_path / "admin.sock")
        async with running(upstream.url, {"admin.socket": path}):
            for page in ("/livez", "/readyz", "/startupz", "/metrics", "/"):
                assert await told(path, "GET", page, {}) == 200


class TestSignals:
    @pytest.mark.parametrize("module", ["proxy.cli", "pydantic", "proxy.config.tree", "aiohttp", "proxy.app", "uvloop"])
    async def test_sigterm_during_the_start_ends_with_0(self, environment: Environment, module: str) -> None:
        """While this module is imported."""
        program = """
import os, runpy, signal, sys
wanted = sys.argv[1]
class Impatient:
    def find_spec(self, name, *_):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Impatient())
sys.argv = ["proxy", "run"]
runpy.run_module("proxy", run_name="__main__", alter_sys=True)
"""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, module, stderr=PIPE, env=os.environ | environment
        )
        assert (await process.communicate())[1] == b""
        assert process.returncode == 0

    @pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
    async def test_signals_while_handlers_are_let_go_of_change_nothing(self, loop: str) -> None:
        """Each comes again in the very moment in which it would end the process."""
        program = """
import os, signal, sys
if sys.argv[1] == "asyncio":
    sys.modules["uvloop"] = None
handle = signal.signal
def impatient(number, handler):
    before = handle(number, handler)
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        os.kill(os.getpid(), number)
    return before
signal.signal = impatient
from proxy.cli import commands
async def serve(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
sys.exit(commands._serve(serve))
"""
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, loop, stderr=PIPE)
        assert (await asyncio.wait_for(process.communicate(), 20))[1] == b""
        assert process.returncode == 0

    @pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
    async def test_thread_that_never_ends_does_not_hold_up_the_end(self, loop: str) -> None:
        """As one that asks a resolver which does not answer."""
        program = """
import asyncio, sys, threading
if sys.argv[1] == "asyncio":
    sys.modules["uvloop"] = None
from proxy.cli import commands
async def serve(stop):
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
sys.exit(commands._serve(serve))
"""
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, loop, stderr=PIPE)
        try:
            assert (await asyncio.wait_for(process.communicate(), 20))[1] == b""
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        assert process.returncode == 0

    async def test_sigterm_while_redis_does_not_answer_ends_with_0(
        self, environment: Environment, tmp_path: Path
    ) -> None:
        key = tmp_path / "key"
        key.write_text("k" * 40)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            waiting = {name: value for name, value in environment.items() if name not in VALUES} | {
                "C8Y_REALTIME_PROXY__CREDENTIALS__DEFAULT__SOURCE": "session",
                "C8Y_REALTIME_PROXY__FRONTDOOR__PUBLIC_ORIGIN": "http://localhost:8080",
                "C8Y_REALTIME_PROXY__FRONTDOOR__REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}",
                "C8Y_REALTIME_PROXY__FRONTDOOR__SESSION_KEY_FILE": str(key),
                "C8Y_REALTIME_PROXY__GATE__CLIENT_ID_KEY_FILE": str(key),
            }
            process = await start("run", environment=waiting)
            await line_with(b"admin listener", process)
            silent.settimeout(10)
            silent.accept()[0].close()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 25) == 0
            await process.communicate()


class TestAcceptSeconds:
    async def test_s47_newcomers_are_served_while_it_is_unready_already(self, environment: Environment) -> None:
        async with serving(environment | {ACCEPT: "3600"}) as (process, url), aiohttp.ClientSession() as client:
            path = f"{url}/notification/realtime"
            async with client.ws_connect(path, autoclose=False) as before:
                await exchange(before, [handshake()])
                process.send_signal(signal.SIGTERM)
                await line_with(b"Draining", process)
                assert (await command("healthcheck", "--ready", environment=environment))[0] == 1
                async with client.ws_connect(path, autoclose=False) as newcomer:
                    for socket_ in (newcomer, before):
                        [answer] = await exchange(socket_, [handshake()])
                        assert answer["successful"] is True
                    await told(environment[ADMIN_SOCKET], "POST", "/quit", QUIT)
                    for socket_ in (newcomer, before):
                        assert await closed(socket_) == (1001, "Connect again")
            assert await asyncio.wait_for(process.wait(), 25) == 0


class TestListenSocket:
    async def test_clients_come_by_the_path(self, upstream: Simulator, tmp_path: Path) -> None:
        path = tmp_path / "listen.sock"
        async with (
            Proxy(configured_at(upstream, path)) as proxy,
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
        ):
            assert proxy.public_port == 0
            async with client.ws_connect("http://localhost/notification/realtime") as socket:
                [answer] = await exchange(socket, [handshake()])
                assert answer["successful"] is True
            foreign = {"Host": "rebound.example"}
            async with client.post("http://localhost/cep/realtime", json=[], headers=foreign) as response:
                assert response.status == 403
        assert not path.exists()

    async def test_address_of_a_client_is_believed_of_who_is_in_front_where_that_is_said(
        self, upstream: Simulator, tmp_path: Path
    ) -> None:
        path = tmp_path / "listen.sock"
        for trusted, limited in (([], False), (["unix"], True)):
            config = configured_at(upstream, path, {"gate.trusted_proxies": trusted, "limits.address_handshakes": 1})
            async with (
                Proxy(config),
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
            ):
                answers = []
                for _ in range(2):
                    headers = {"X-Forwarded-For": "192.0.2.7"}
                    async with client.post("http://localhost/cep/realtime", json=[handshake()], headers=headers) as it:
                        answers += await it.json()
            assert [answer["successful"] for answer in answers] == [True, not limited]

    @pytest.mark.parametrize("kind", ["file", "missing"])
    async def test_path_where_nothing_can_listen_is_told_by_its_key(
        self, upstream: Simulator, tmp_path: Path, kind: str
    ) -> None:
        path = tmp_path / ("file" if kind == "file" else "missing/listen.sock")
        if kind == "file":
            path.touch()
        for key in ("listen.socket", "admin.socket"):
            with pytest.raises(CannotListen, match=rf"^{key}: "):
                async with Proxy(configured(upstream.url, {key: str(path)} | ports_beside(key))):
                    pass


def ports_beside(key: str) -> dict[str, object]:
    """What `configured` says of ports must not stand beside listen.socket."""
    return {"listen.port": ""} if key == "listen.socket" else {}


def configured_at(upstream: Simulator, path: Path, settings: Mapping[str, object] | None = None) -> Config:
    return configured(upstream.url, {"listen.socket": str(path), "listen.port": ""} | dict(settings or {}))


@asynccontextmanager
async def connection(host: str, port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.close()


@asynccontextmanager
async def activated(environment: Environment, *listening: socket.socket, names: str) -> AsyncIterator[Process]:
    """The command, started with listening sockets as systemd does it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("C8Y_")}
    with handing_over(*listening, names=names) as (command, descriptors):
        process = await asyncio.create_subprocess_exec(
            *(*command, sys.executable, "-m", "proxy", "run"),
            env=inherited | environment,
            pass_fds=descriptors,
            stderr=PIPE,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def at(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    return listening


class TestActivation:
    async def test_who_comes_while_one_process_follows_another_is_served_by_the_next(
        self, environment: Environment
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/notification/realtime"
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(aiohttp.ClientSession())
                first = await stack.enter_async_context(activated(environment, listening, names="listen"))
                await line_with(b"public listener", first)
                async with client.ws_connect(url, autoclose=False) as socket_:
                    await exchange(socket_, [handshake()])
                    first.send_signal(signal.SIGTERM)
                    assert await closed(socket_) == (1001, "Connect again")
                    again = asyncio.get_running_loop().create_task(client.ws_connect(url, autoclose=False))
                    await socket_.close()
                assert await asyncio.wait_for(first.wait(), 25) == 0
                assert not again.done()
                second = await stack.enter_async_context(activated(environment, listening, names="listen"))
                await line_with(b"public listener", second)
                async with await again as socket_:
                    [answer] = await exchange(socket_, [handshake()])
                    assert answer["successful"] is True

    async def test_who_has_just_connected_when_one_process_follows_another_is_served_by_the_first(
        self, environment: Environment
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            async with activated(environment, listening, names="listen") as process, AsyncExitStack() as stack:
                await line_with(b"public listener", process)
                place = "127.0.0.1", listening.getsockname()[1]
                connected, after = [Client(*await stack.enter_async_context(connection(*place))) for _ in range(2)]
                after.send(post())  # which is answered once both were taken from the queue
                await after.answer()
                process.send_signal(signal.SIGTERM)
                await line_with(b"Draining", process)
                assert await told(environment[ADMIN_SOCKET], "GET", "/readyz", {}) == 503  # it has gone on since
                connected.send(post(msgspec.json.encode([handshake()])))
                [answer] = msgspec.json.decode((await connected.answer()).body)
                assert answer["successful"] is True
                assert await asyncio.wait_for(process.wait(), 25) == 0

    async def test_unix_socket_that_is_handed_over_is_still_there_for_the_next(
        self, environment: Environment, tmp_path: Path
    ) -> None:
        path = tmp_path / "given.sock"
        at_path = environment | {LISTEN_SOCKET: str(path), "C8Y_REALTIME_PROXY__LISTEN__PORT": ""}
        with at(path) as listening:
            for _ in range(2):
                async with (
                    activated(at_path, listening, names="listen") as process,
                    aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
                ):
                    await line_with(b"public listener", process)
                    async with client.ws_connect("http://localhost/notification/realtime") as socket_:
                        [answer] = await exchange(socket_, [handshake()])
                        assert answer["successful"] is True
                    process.send_signal(signal.SIGTERM)
                    assert await asyncio.wait_for(process.wait(), 25) == 0
                assert is_there(str(path))

    async def test_log_says_where_a_socket_listens_that_is_handed_over(self, environment: Environment) -> None:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
            async with activated(environment, listening, names="listen") as process:
                line = await line_with(b"public listener", process)
                port = listening.getsockname()[1]
        assert f"public listener on http://[::1]:{port}" in line.decode()

    async def test_who_was_let_in_already_is_served_while_who_comes_waits(self, environment: Environment) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            host, port = listening.getsockname()
            url = f"http://{host}:{port}/notification/realtime"
            head = f"GET /notification/realtime HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\n"
            rest = (
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            async with (
                aiohttp.ClientSession() as client,
                activated(environment | {ACCEPT: "3600"}, listening, names="listen") as process,
            ):
                await line_with(b"public listener", process)
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(head.encode())
                async with client.ws_connect(url) as later:  # so the one before was let in
                    await exchange(later, [handshake()])
                    process.send_signal(signal.SIGTERM)
                    await line_with(b"Draining", process)
                    waiting = asyncio.get_running_loop().create_task(client.ws_connect(url))
                    writer.write(rest.encode())
                    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 101 ")
                    [answer] = await exchange(later, [handshake()])
                    assert answer["successful"] is True
                    assert not waiting.done()
                writer.close()
                waiting.cancel()
                await asyncio.wait([waiting])

    async def test_both_listeners_can_be_handed_over(self, environment: Environment) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            async with activated(environment, one, two, names="admin:listen") as process:
                await line_with(b"public listener", process)
                async with (
                    aiohttp.ClientSession() as client,
                    client.get(f"http://127.0.0.1:{one.getsockname()[1]}/readyz") as response,
                ):
                    assert response.status == 200

    @pytest.mark.parametrize(
        ("make", "settings", "said"),
        [
            pytest.param(
                lambda _: socket.create_server(("0.0.0.0", 0)),  # noqa: S104 - the point
                {},
                r"listen\.host: the socket that is handed over listens on 0\.0\.0\.0, beyond loopback: say so here",
                id="beyond loopback, and the configuration knows nothing of it",
            ),
            pytest.param(at, {}, r"listen: .* is a unix socket: say so in listen\.socket", id="a path unsaid"),
            pytest.param(at, {}, r"admin: .* is a unix socket: expected a port", id="a path for admin"),
            pytest.param(
                lambda _: socket.create_server(("127.0.0.1", 0)),
                {LISTEN_SOCKET: "/run/x", "C8Y_REALTIME_PROXY__LISTEN__PORT": ""},
                r"listen\.socket: the socket that is handed over is no unix socket: leave this out",
                id="a port, and a path said",
            ),
        ],
    )
    async def test_socket_that_the_configuration_was_not_judged_by_is_refused(
        self,
        environment: Environment,
        tmp_path: Path,
        make: Callable[[Path], socket.socket],
        settings: Environment,
        said: str,
    ) -> None:
        with make(tmp_path / "given.sock") as listening:
            names = "admin" if said.startswith("admin") else "listen"
            async with activated(environment | settings, listening, names=names) as process:
                _, errors = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 1
        assert re.search(said, errors.decode())
