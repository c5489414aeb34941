"""Stored values: replaced under way, rejected, missing, and never shown."""

import asyncio
import resource
import signal
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.attacks.ways import (
    AUTHN,
    CONNECT,
    PAGE,
    SHAKE,
    TOKEN,
    WAYS,
    Ask,
    Stage,
    Tenant,
    accept,
    as_head,
    batch,
    holds_canary,
    staged,
    upgrade,
    written,
)
from tests.conftest import VALUES
from tests.credentials.test_stored import project, write
from tests.relay.raw import SECONDS, recording
from tests.test_cli import FREE_PORTS, serving


DENIAL = written([{"channel": "/meta/handshake", "successful": False, "error": "403::Handshake denied"}])


def token(password: str) -> str:
    return b64encode(f"t0815/service:{password}".encode()).decode()


def offered(stage: Stage) -> list[str]:
    """The tokens that the tenant was offered, in order."""
    return [batch(payload)[0]["ext"][AUTHN]["token"] for payload in stage.tenant.payloads]


def reloads(stage: Stage, result: str) -> float:
    return stage.proxied.count("credential_reloads_total", source="stored", result=result)


# S-41: replaced -------------------------------------------------------------------------------------------------------


def swap(mount: Path, password: str) -> None:
    project(mount, f"..{password}", tenant="t0815", user="service", password=password)


def rename(mount: Path, password: str) -> None:
    write(mount, tenant="t0815", user="service")
    write(mount, new=password)
    (mount / "new").rename(mount / "password")


def edit(mount: Path, password: str) -> None:
    write(mount, tenant="t0815", user="service", password=password)


@pytest.mark.parametrize("change", [swap, rename, edit], ids=["symlink swap", "rename", "edit in place"])
async def test_s41_a_value_replaced_on_disk_is_the_one_that_goes_up_next(
    ask: Ask, change: Callable[[Path, str], None], tmp_path: Path
) -> None:
    change(tmp_path, "first")
    async with staged({"credentials.default.directory": str(tmp_path)}, values={}) as stage:
        await ask(stage.proxied, SHAKE)
        change(tmp_path, "second")
        await ask(stage.proxied, SHAKE)
        change(tmp_path, "third")
        await ask(stage.proxied, SHAKE)
        assert offered(stage) == [token("first"), token("second"), token("third")]


@pytest.mark.parametrize(
    "breaking",
    [
        pytest.param(lambda mount: write(mount, password=""), id="empty"),
        pytest.param(lambda mount: (mount / "password").unlink(), id="gone"),
        pytest.param(lambda mount: write(mount, token="a.b.c"), id="a token beside it"),
        pytest.param(lambda mount: write(mount, user="a:b"), id="no user"),
        pytest.param(lambda mount: (mount / "password").write_bytes(b"\xff\xfe"), id="no text"),
        pytest.param(lambda mount: mount.rename(mount.with_name("elsewhere")), id="no directory"),
    ],
)
@pytest.mark.logs_errors
async def test_s41_a_broken_value_leaves_the_last_good_one_and_is_counted(
    ask: Ask, breaking: Callable[[Path], object], tmp_path: Path
) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    edit(mount, "first")
    async with staged({"credentials.default.directory": str(mount)}, values={}) as stage:
        await ask(stage.proxied, SHAKE)
        assert reloads(stage, "failed") == 0
        breaking(mount)
        await ask(stage.proxied, SHAKE)
        assert offered(stage) == [token("first")] * 2
        assert (reloads(stage, "ok"), reloads(stage, "failed")) == (1, 1)


# S-42: newlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r"], ids=ascii)
async def test_s42_a_newline_behind_a_stored_value_goes_nowhere(ask: Ask, end: str, tmp_path: Path) -> None:
    write(tmp_path, tenant=f"t0815{end}", user=f"service{end}", password=f"first{end}")
    async with staged({"credentials.default.directory": str(tmp_path)}, values={}) as stage:
        await ask(stage.proxied, SHAKE)
        assert offered(stage) == [token("first")]


# S-43: rejected -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized"])
@pytest.mark.logs_errors
async def test_s43_a_rejected_value_goes_up_again_only_when_it_changed_or_has_rested(
    ask: Ask, status: str, tmp_path: Path
) -> None:
    now = 1000.0
    edit(tmp_path, "wrong")
    settings = {"credentials.default.directory": str(tmp_path), "credentials.default.cooldown_seconds": 60}
    async with staged(settings, values={}, clock=lambda: now, reply=lambda _: DENIAL, status=status) as stage:
        await WAYS["long-polling"](stage.proxied, SHAKE)
        for _ in range(20):
            told = await ask(stage.proxied, SHAKE)
            assert told.is_turned_away
            assert DENIAL not in told.payload
        assert offered(stage) == [token("wrong")]
        now += 61
        stage.tenant.status = "200 OK"
        await ask(stage.proxied, SHAKE)
        await ask(stage.proxied, SHAKE)
        assert offered(stage) == [token("wrong")] * 2
        edit(tmp_path, "right")
        stage.tenant.reply = accept
        await ask(stage.proxied, SHAKE)
        assert offered(stage)[2:] == [token("right")]


@pytest.mark.logs_errors
async def test_s43_a_thousand_handshakes_on_open_sockets_cost_no_more_attempts() -> None:
    """In one payload, too: until the value has proved to be good, one goes up at a time."""
    many = b"[" + b",".join([SHAKE[1:-1]] * 1000) + b"]"
    async with staged(reply=lambda _: DENIAL) as stage:
        for ask in WAYS.values():
            told = await ask(stage.proxied, many)
            assert told.payload
        assert len(offered(stage)) == 1
        assert len(batch(stage.tenant.payloads[0])) == 1


@pytest.mark.logs_errors
async def test_s43_twenty_clients_at_once_cost_one_attempt(ask: Ask) -> None:
    """Each on a connection of its own, before anybody knows that the value is wrong."""
    async with staged(reply=lambda _: DENIAL) as stage:
        told = await asyncio.gather(*(ask(stage.proxied, SHAKE) for _ in range(20)))
        assert all(each.is_turned_away for each in told)
        assert len(offered(stage)) == 1


# S-44: never shown ----------------------------------------------------------------------------------------------------


async def test_s44_the_process_shows_no_secret_whatever_is_said_to_it() -> None:
    """At the most talkative level, with a tenant that quotes what it was sent."""
    theirs = b"theirs-c2VjcmV0"
    quoting = written([{"channel": "/meta/handshake", "successful": False, "error": f"403::{TOKEN}"}])
    environment = FREE_PORTS | dict(VALUES) | {"C8Y_REALTIME_PROXY__LOG__LEVEL": "DEBUG"}
    post = (
        "POST /cep/realtime HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        "Connection: close",
    )
    origin = f"Origin: {PAGE}"
    secret = theirs.decode()
    requests = [
        as_head(*post, f"Cookie: authorization={secret}{'x' * 70_000}"),
        as_head(*post, f"Cookie : authorization={secret}"),
        as_head(*post, f"Authorization: Basic {secret}", f"Authorization: Basic {secret}", "Content-Length: 2") + b"[]",
        as_head(*post, origin, f"Cookie: authorization={secret}", "Content-Length: 2") + b"[]",
        as_head(*post, "Content-Length: 37") + b'[{"channel":"/meta/' + theirs + b'"}]',
        as_head(*post, f"Content-Length: {len(SHAKE)}", f"X-XSRF-TOKEN: {secret}") + SHAKE,
        as_head("GET /" + secret, "Host: localhost"),
        as_head("GET /notification/realtime?token=" + secret, "Host: localhost"),
        as_head(f"GET /{secret} HTTP/1.1", f"Host: {secret}.example.com"),
        upgrade(f"Sec-WebSocket-Protocol: {secret}") + b"\xc1\x80" + theirs,
        theirs * 100 + b"\r\n\r\n",
    ]
    async with recording(Tenant(reply=lambda up: quoting if b"handshake" in up else b"[]")) as upstream:
        async with serving(environment | {"C8Y_BASEURL": upstream.url}) as (process, url):
            proc = Path(f"/proc/{process.pid}")
            assert not holds_canary((proc / "cmdline").read_bytes())
            assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)
            port = int(url.rpartition(":")[2])
            for request in requests:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                async with asyncio.timeout(SECONDS):
                    told = await reader.read()
                assert theirs not in told
                assert TOKEN.encode() not in told
                writer.close()
            process.send_signal(signal.SIGTERM)
            _, errors = await asyncio.wait_for(process.communicate(), 25)
        assert upstream.requests
    assert b"(refused, malformed, status 4" in errors
    assert not holds_canary(errors)
    assert theirs not in errors
    assert process.returncode == 0


# S-45: missing --------------------------------------------------------------------------------------------------------


@pytest.mark.logs_errors
async def test_s45_without_a_credential_it_lives_says_so_and_recovers(ask: Ask, tmp_path: Path) -> None:
    async def probe(path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as client, client.get(f"{stage.proxied.admin_url}{path}") as response:
            return response.status, await response.text()

    async with staged({"credentials.default.directory": str(tmp_path)}, values={}) as stage:
        assert (await probe("/livez"))[0] == (await probe("/startupz"))[0] == 200
        assert await probe("/readyz") == (503, "no usable credential: see the log\n")
        told = await ask(stage.proxied, SHAKE)
        if ask.transport == "websocket":
            assert (told.status, told.payload) == (401, b"No credential is stored yet\n")
        else:
            [answer] = batch(told.payload)
            assert answer["error"] == "403::No credential is stored yet"
            assert answer["advice"]["reconnect"] == "handshake"
            assert (await ask(stage.proxied, written([CONNECT]))).status == 401
        assert stage.upstream.connections == 0
        edit(tmp_path, "first")
        assert (await probe("/readyz"))[0] == 200
        await ask(stage.proxied, SHAKE)
        assert offered(stage) == [token("first")]
