"""A proxy that loses or changes anything has no figures: the load generator ends with a failure."""

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from tests.bench.modes import Upstream
from tests.bench.peers import TARGET


Tampering = Callable[[bytes], bytes]
UNTOUCHED_BYTES = 3000  # so that the fault comes when all is set up


def unchanged(data: bytes) -> bytes:
    return data


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def shortened(data: bytes) -> bytes:
    return data[:-1]


def lost(_: bytes) -> bytes:
    return b""


def doubled(data: bytes) -> bytes:
    return data + data


@asynccontextmanager
async def relay(upstream: int, *, up: Tampering, down: Tampering) -> AsyncIterator[int]:
    """A relay that changes one read of each connection, in either way; yields its port."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Tampering) -> None:
        passed, is_due = 0, True
        try:
            while data := await reader.read(65536):
                passed += len(data)
                if passed > UNTOUCHED_BYTES and is_due:
                    data, is_due = change(data), False
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beyond_reader, beyond_writer = await asyncio.open_connection("127.0.0.1", upstream)
        await asyncio.gather(carry(reader, beyond_writer, up), carry(beyond_reader, writer, down))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def load(mode: str, *, up: Tampering = unchanged, down: Tampering = unchanged) -> bytes:
    """What the load generator says of a short run through such a relay."""
    upstream = Upstream()
    try:
        async with relay(upstream.port, up=up, down=down) as port:
            options = [f"port={port}", f"upstream={upstream.port}", "clients=5", "size=200", "authn=1", "limit=1"]
            process = await asyncio.create_subprocess_exec(
                TARGET / "load", mode, *options, stdin=PIPE, stdout=PIPE, stderr=PIPE
            )
            said, _ = await process.communicate(b"200\nend\n")
    finally:
        upstream.close()
    return said.splitlines()[-1]


MODES = ["paced", "flood", "echo", "longpoll"]


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_relayed_as_it_came_is_measured(mode: str) -> None:
    assert msgspec.json.decode(await load(mode), type=dict[str, float])["done"] > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("down", [flipped, shortened, lost, doubled])
async def test_what_comes_down_otherwise_than_it_was_sent_is_a_failure(mode: str, down: Tampering) -> None:
    assert msgspec.json.decode(await load(mode, down=down), type=dict[str, str])["failure"]


@pytest.mark.parametrize("up", [flipped, shortened, lost, doubled])
async def test_what_goes_up_otherwise_than_it_was_sent_is_a_failure(up: Tampering) -> None:
    assert msgspec.json.decode(await load("echo", up=up), type=dict[str, str])["failure"]
