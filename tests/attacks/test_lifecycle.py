"""The way out, and what must not end anything."""

import asyncio
import re
import signal
import time
from contextlib import AsyncExitStack
from itertools import product

import aiohttp
import pytest

from proxy.config.tree import Config
from proxy.relay.frames import CLOSE, PING, PONG, FrameReader, close_frame, frame
from tests.attacks.ways import (
    CONNECT,
    Tenant,
    as_head,
    batch,
    staged,
    upgrade,
    written,
)
from tests.conftest import VALUES
from tests.relay.raw import SECONDS, Asked, recording
from tests.relay.test_websocket_bytes import MASK, Side, relayed
from tests.test_cli import FREE_PORTS, serving


# S-46: the way out ----------------------------------------------------------------------------------------------------

MANY = 150


async def test_s46_everybody_gets_a_goodbye_of_their_kind_and_the_exit_is_in_order() -> None:
    parked, opened = asyncio.Semaphore(0), Tenant()

    async def park(asked: Asked) -> None:
        parked.release()
        if asked.head.startswith(b"GET "):
            await opened(asked)
        else:
            await asked.writer.wait_closed()
            raise ConnectionAbortedError

    environment = FREE_PORTS | dict(VALUES) | {"C8Y_REALTIME_PROXY__DRAIN__SPREAD_SECONDS": "0.5"}
    body = written([CONNECT])
    posting = as_head(
        "POST /cep/realtime HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(recording(park))
        process, url = await stack.enter_async_context(serving(environment | {"C8Y_BASEURL": upstream.url}))
        port = int(url.rpartition(":")[2])

        async def talk(opening: bytes) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.transport.abort)
            writers[reader] = writer
            writer.write(opening)
            return reader

        writers: dict[asyncio.StreamReader, asyncio.StreamWriter] = {}
        sockets = [await talk(upgrade()) for _ in range(MANY)]
        polls = [await talk(posting + body) for _ in range(MANY)]
        async with asyncio.timeout(SECONDS):
            for _ in range(2 * MANY):
                await parked.acquire()
            for reader in sockets:
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        process.send_signal(signal.SIGTERM)
        started, ends = time.monotonic(), []

        async def goodbye(reader: asyncio.StreamReader) -> None:
            frames = FrameReader(masked=False, limit=1 << 20)
            frames.feed(await reader.readexactly(2 + 2 + len("Connect again")))
            read = frames.read()
            assert read == (CLOSE, (1001).to_bytes(2) + b"Connect again")
            ends.append(time.monotonic() - started)
            writers[reader].write(close_frame(1001, mask=MASK))

        async def advice(reader: asyncio.StreamReader) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            found = re.search(rb"Content-Length: (\d+)", head)
            assert found is not None
            [reply] = batch(await reader.readexactly(int(found[1])))
            assert (reply["successful"], reply["advice"]["reconnect"]) == (True, "retry")
            ends.append(time.monotonic() - started)

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for reader in sockets:
                group.create_task(goodbye(reader))
            for reader in polls:
                group.create_task(advice(reader))
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert len(ends) == 2 * MANY
        assert max(ends) - min(ends) > 0.25  # spread over the half second


# S-50: no way out for others ------------------------------------------------------------------------------------------


QUITTING = ("/quit", "/quitquitquit", "/shutdown", "/-/quit", "/stop", "/drain", "/-/reload", "/debug/pprof/")
STEERING = ("POST", "PUT", "DELETE", "PATCH")


async def test_s50_nothing_ends_the_process_over_http() -> None:
    async with staged() as stage, aiohttp.ClientSession() as session:
        for path, method in product(QUITTING, ("GET", *STEERING)):
            for listener in (stage.proxied.url, stage.proxied.admin_url):
                async with session.request(method, f"{listener}{path}") as response:
                    assert response.status in {404, 405}, path
        async with session.get(f"{stage.proxied.admin_url}/readyz") as response:
            assert response.status == 200


async def test_s50_there_is_nothing_to_steer_at_the_admin_listener() -> None:
    async with staged() as stage, aiohttp.ClientSession() as session:
        for path, method in product(("/livez", "/readyz", "/startupz", "/metrics"), (*STEERING, "OPTIONS")):
            async with session.request(method, f"{stage.proxied.admin_url}{path}") as response:
                assert response.status == 405, path


# S-53: who vanishes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_client", [True, False], ids=["client", "upstream"])
async def test_s53_a_side_that_is_silent_without_an_end_is_noticed_and_the_other_told(*, is_client: bool) -> None:
    async with relayed({"limits.heartbeat_seconds": 0.2}) as (proxied, client, upstream):
        there, code = (upstream, 1001) if is_client else (client, 1011)
        mask = b"" if is_client else MASK
        async with asyncio.timeout(SECONDS):
            while (read := await there.receive()).opcode == PING:
                there.send(frame(PONG, read.payload, mask=mask))
        assert (read.opcode, read.payload[:2]) == (CLOSE, code.to_bytes(2))
        there.send(close_frame(code, mask=mask))
        gone: Side = client if is_client else upstream
        assert (await gone.rest()).count(b"\x89") >= 1
    assert proxied.count("connections", transport="websocket") == 0


def test_s53_heartbeats_come_more_often_than_idle_connections_are_cut() -> None:
    assert Config().limits.heartbeat_seconds <= 30
