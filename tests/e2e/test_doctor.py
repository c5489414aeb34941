"""What doctor says of a real CometD server that is well, and of one that denies the credential."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from .programs import running
from .stage import COMMAND, Evidence
from .upstreams import ACCOUNT, WRONG, Account, Upstream


STEPS = ("configuration", "DNS", "TCP", "TLS", "clock", "shape", "login", "upgrade", "handshake", "connect")


@asynccontextmanager
async def with_accounts(upstream: Upstream) -> AsyncIterator[str]:
    """The server, with what the platform has beside real time: it knows everybody. Gives the URL."""
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /user/currentUser "):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            else:
                there, back = await asyncio.open_connection("localhost", upstream.port)
                back.write(head)
                await asyncio.gather(_copied(reader, back), _copied(there, writer))
        writer.close()

    async with await asyncio.start_server(serve, "localhost", 0) as server:
        yield f"http://localhost:{server.sockets[0].getsockname()[1]}"
        await asyncio.wait_for(asyncio.gather(*filter(None, serving)), 10)


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    ("account", "expected"),
    [
        pytest.param(ACCOUNT, {"handshake": "ok", "connect": "ok"}, id="well"),
        pytest.param(WRONG, {"handshake": "FAILED", "connect": "skipped"}, id="denied"),
    ],
)
async def test_a_real_server_is_examined_step_by_step(
    cometd: Upstream, evidence: Evidence, account: Account, expected: dict[str, str]
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("C8Y_")}
    values = {f"C8Y_{name.upper()}": value for name, value in account.files().items()}
    async with with_accounts(cometd) as url:
        environment = inherited | values | {"C8Y_BASEURL": url}
        async with running(COMMAND, "doctor", environment=environment) as program:
            code = await program.wait(seconds=40)
        evidence.given += [("stdout", bytes(program.stdout)), ("log", bytes(program.stderr))]
    lines = program.stdout.decode().splitlines()
    told = {step: line.split()[0] for line in lines for step in STEPS if f" {step}  " in line[:32]}
    assert told == dict.fromkeys(STEPS, "ok") | {"TLS": "skipped"} | expected
    assert (code, bytes(program.stderr)) == ("FAILED" in expected.values(), b"")
    seen = await cometd.seen()
    assert (seen.accepted, seen.denied) == ((1, 0) if account is ACCOUNT else (0, 1))
