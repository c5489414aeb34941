"""The way to upstream: pooling, proxies, and holds of hours."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.demo.simulator import Simulator
from tests.conftest import PASSWORD, exchange, handshake, running


ORIGIN = {"Origin": "https://app.example.com"}


@pytest.fixture
async def recorder() -> AsyncIterator[tuple[TestServer, list[tuple[str, int]]]]:
    """An upstream that remembers by which connection each cookie came."""
    seen: list[tuple[str, int]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        assert request.transport is not None
        seen.append((request.headers.get("Cookie", ""), request.transport.get_extra_info("peername")[1]))
        return web.json_response([])

    server = TestServer(web.Application(), host="localhost")
    server.app.router.add_post("/{path:.*}", answer)
    await server.start_server()
    yield server, seen
    await server.close()


async def test_pooled_connection_serves_one_credential_only(
    recorder: tuple[TestServer, list[tuple[str, int]]],
) -> None:
    server, seen = recorder
    settings = {"credentials.default.source": "cookie", "gate.origins": list(ORIGIN.values())}
    async with running(str(server.make_url("")), settings, values={}) as proxied:
        for user in ("a", "b", "a", "b"):
            headers = ORIGIN | {"Cookie": f"authorization={user}", "X-XSRF-TOKEN": user}
            async with proxied.post([], headers=headers) as response:
                assert response.status == 200

    (one, first), (two, second), (three, third), (four, fourth) = seen
    assert (one, two) == (three, four) == ("authorization=a", "authorization=b")
    assert (first, second) == (third, fourth)
    assert first != second


async def test_answer_that_nobody_asked_for_is_given_to_nobody() -> None:
    """aiohttp would keep it, and give it to the next request of whoever shares the connection."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n[%d]"
    answered, over = asyncio.Event(), asyncio.Event()
    number = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        number += 1
        await reader.readuntil(b"[]")
        writer.write(answer % number)
        await answered.wait()
        if number == 1:
            writer.write(answer % 0)
            assert await reader.read() == b""
            over.set()
        writer.close()

    async with await asyncio.start_server(serve, "localhost", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with running(f"http://localhost:{port}") as proxied:
            for expected in (1, 2):
                async with proxied.post([]) as response:
                    assert await response.json() == [expected]
                answered.set()
                await asyncio.wait_for(over.wait(), 5)  # the surplus ended the connection


@asynccontextmanager
async def forward_proxy() -> AsyncIterator[tuple[str, list[bytes]]]:
    """An HTTP proxy that tunnels by CONNECT; yields its URL and the request lines it was given."""
    lines: list[bytes] = []
    serving: set[asyncio.Task[None] | None] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        lines.append(head.partition(b"\r\n")[0])
        host, _, port = head.split(b" ")[1].partition(b":")
        upstream_reader, upstream_writer = await asyncio.open_connection(host.decode(), int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pipe(reader, upstream_writer), pipe(upstream_reader, writer), return_exceptions=True)

    async with await asyncio.start_server(serve, "localhost", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://localhost:{port}", lines
        await asyncio.wait({task for task in serving if task is not None})


async def test_upstream_is_reached_through_an_http_proxy(tmp_path: Path) -> None:
    authority, server = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with (
        Simulator(password=PASSWORD, ssl_context=server) as upstream,
        forward_proxy() as (proxy_url, lines),
        running(
            upstream.url, {"upstream.ca_file": str(tmp_path / "ca.pem"), "upstream.proxy_url": proxy_url}
        ) as proxied,
    ):
        async with proxied.socket() as socket:
            [answer] = await exchange(socket, [handshake()])
            assert answer["successful"] is True
        async with proxied.post([handshake()]) as response:
            assert (await response.json())[0]["successful"] is True
    assert lines == [f"CONNECT localhost:{upstream.port} HTTP/1.1".encode()] * 2


class Clock:
    """The clock of the running loop, which can be put forward."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._time = loop.time
        self._ahead = 0.0
        loop.time = self  # type: ignore[method-assign]

    def __call__(self) -> float:
        return self._time() + self._ahead

    def put_forward(self, seconds: float) -> None:
        self._ahead += seconds


@pytest.fixture
async def clock() -> Clock:
    return Clock(asyncio.get_running_loop())


@pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop's clock cannot be put forward
async def test_connect_is_held_for_two_hours_with_a_space_every_ten_minutes(clock: Clock) -> None:
    patient = aiohttp.ClientTimeout(total=None)
    async with Simulator(password=PASSWORD, hold_seconds=7200) as upstream, running(upstream.url) as proxied:
        async with proxied.post([handshake()]) as response:
            [shaken] = await response.json()
            cookies = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
        connect = {"channel": "/meta/connect", "id": "7", "clientId": shaken["clientId"]}
        async with proxied.post([connect], headers=cookies, timeout=patient) as response:
            for _ in range(11):
                clock.put_forward(601)
                assert await response.content.readexactly(1) == b" "
            clock.put_forward(601)
            [reply] = msgspec.json.decode(await response.content.read())
    assert (reply["id"], reply["successful"]) == ("7", True)


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_connect_is_held_for_two_hours_in_silence(clock: Clock) -> None:
    """CometD's own server sends no spaces, nor even its headers, while it holds a connect."""
    let_go = asyncio.Event()
    arrived = asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        await request.read()
        arrived.set()
        await let_go.wait()
        return web.json_response([{"channel": "/meta/connect", "successful": True}])

    server = TestServer(web.Application(), host="localhost")
    server.app.router.add_post("/{path:.*}", hold)
    await server.start_server()
    async with running(str(server.make_url(""))) as proxied, asyncio.TaskGroup() as group:
        patient = aiohttp.ClientTimeout(total=None)

        async def poll() -> bytes:
            async with proxied.post([{"channel": "/meta/connect"}], timeout=patient) as response:
                return await response.read()

        polling = group.create_task(poll())
        await arrived.wait()
        clock.put_forward(7200)
        async with proxied.client.get(f"{proxied.admin_url}/livez") as alive:  # a turn for every timer that is due
            assert alive.status == 200
        let_go.set()
        assert b'"successful": true' in await polling
    await server.close()
