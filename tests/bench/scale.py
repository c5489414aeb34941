"""What a client takes of one process, on either transport, with TLS on either side: `python -m tests.bench.scale`.

The others of this directory compare; this one is for who has to say how much memory a process gets. Upstream is the
simulator of the demo in a process of its own, which holds connects as the platform does.
"""

import argparse
import asyncio
import resource
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack
from typing import Final

import aiohttp

from proxy.demo.simulator import Simulator
from tests.bench.peers import CERTIFICATE, KEY, Running


_PATH: Final = "/notification/realtime"
_AT_A_TIME: Final = 64
_WARM_UP: Final = 4
_FILES: Final = 500
_SETTLE_SECONDS: Final = 0.5
_PREFIX: Final = "C8Y_REALTIME_PROXY__"
_TITLE: Final = (
    "| clients | transport | TLS to clients | TLS to upstream | memory of a client | CPU to connect one"
    " | drained after |\n|---|---|---|---|---|---|---|"
)

Listening = Coroutine[None, None, object]
Client = Callable[[aiohttp.ClientSession, str, AsyncExitStack], Awaitable[Listening]]
"""Connects; what it returns listens until it is over."""


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description="What a client takes.")
    parser.add_argument("--clients", type=int, default=1000, help="of each run (1000)")
    parser.add_argument("--upstream", choices=["plain", "tls"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * options.clients + _FILES
    if most < wanted:
        parser.error(
            f"a process may open {most:,} files, and {wanted:,} are needed: raise 'ulimit -n', or say --clients"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.upstream:
        asyncio.run(_serve(tls=options.upstream == "tls"))
        return 0
    print(_TITLE)
    for name, client in (("WebSocket", _websocket), ("long polling", _parked)):
        for to_clients in (False, True):
            for to_upstream in (False, True):
                row = asyncio.run(_measured(client, options.clients, to_clients=to_clients, to_upstream=to_upstream))
                marks = " | ".join("yes" if mark else "no" for mark in (to_clients, to_upstream))
                print(f"| {options.clients:,} | {name} | {marks} | {row} |", flush=True)
    return 0


async def _serve(*, tls: bool) -> None:
    """Be upstream, until standard input ends."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE, KEY)
    async with Simulator(tenant="t123", user="bench", password="secret", ssl_context=context) as simulator:
        print(simulator.url.rpartition(":")[2], flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def _measured(client: Client, count: int, *, to_clients: bool, to_upstream: bool) -> str:
    """The last columns of a row."""
    settings = {f"{_PREFIX}DRAIN__SPREAD_SECONDS": "5"}
    if to_clients:
        settings |= {f"{_PREFIX}LISTEN__TLS__CERTIFICATE_FILE": str(CERTIFICATE)}
        settings |= {f"{_PREFIX}LISTEN__TLS__KEY_FILE": str(KEY)}
    with ExitStack() as programs:
        upstream = programs.enter_context(
            subprocess.Popen(  # noqa: S603, ASYNC220 - ourselves
                [sys.executable, "-m", "tests.bench.scale", "--upstream", "tls" if to_upstream else "plain"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert upstream.stdin
        assert upstream.stdout
        programs.callback(upstream.kill)
        port = int(upstream.stdout.readline())
        running = programs.enter_context(Running("proxy", upstream=port, tls=to_upstream, more=settings))
        url = f"{'https' if to_clients else 'http'}://localhost:{running.port}{_PATH}"
        trust = ssl.create_default_context(cafile=CERTIFICATE)
        async with AsyncExitStack() as opened:
            session = await opened.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0, ssl=trust),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=None),
                )
            )
            async with AsyncExitStack() as first:
                for _ in range(_WARM_UP):
                    (await client(session, url, first)).close()
            await asyncio.sleep(_SETTLE_SECONDS)
            without, cpu = running.pss_kib(), running.cpu_seconds()
            places = asyncio.Semaphore(_AT_A_TIME)
            listeners = await opened.enter_async_context(asyncio.TaskGroup())

            async def connect() -> None:
                async with places:
                    listening = await client(session, url, opened)
                listeners.create_task(listening)

            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(connect())
            cpu = running.cpu_seconds() - cpu
            await asyncio.sleep(_SETTLE_SECONDS)
            kib = (running.pss_kib() - without) / count
            ended = await asyncio.to_thread(running.end)
    print(f"without clients: {without / 1024:.0f} MiB", file=sys.stderr)
    return f"{kib:.1f} KiB | {cpu / count * 1e3:.2f} ms | {ended:.1f} s"


async def _websocket(session: aiohttp.ClientSession, url: str, opened: AsyncExitStack) -> Listening:
    """One that has subscribed, and hears nothing."""
    socket = await opened.enter_async_context(session.ws_connect(url, autoclose=True))

    async def asked(**message: object) -> dict[str, object]:
        await socket.send_json([message])
        [answer] = await socket.receive_json()
        assert answer["successful"], answer
        return dict(answer)

    shaken = await asked(channel="/meta/handshake", version="1.0", supportedConnectionTypes=["websocket"])
    me = {"clientId": shaken["clientId"], "connectionType": "websocket"}
    await asked(channel="/meta/subscribe", subscription="/bench/1", **me)
    await socket.send_json([{"channel": "/meta/connect", **me}])
    return socket.receive()


async def _parked(session: aiohttp.ClientSession, url: str, opened: AsyncExitStack) -> Listening:
    """One whose connect is held."""
    headers = {"Accept": "application/json"}

    async def asked(**message: object) -> dict[str, object]:
        async with session.post(url, json=[message], headers=headers) as response:
            [answer] = await response.json()
            assert answer["successful"], answer
            if cookie := response.cookies.get("BAYEUX_BROWSER"):
                headers["Cookie"] = f"{cookie.key}={cookie.value}"
            return dict(answer)

    shaken = await asked(channel="/meta/handshake", version="1.0", supportedConnectionTypes=["long-polling"])
    me = {"clientId": shaken["clientId"], "connectionType": "long-polling"}
    await asked(channel="/meta/subscribe", subscription="/bench/1", **me)
    response = await session.post(url, json=[{"channel": "/meta/connect", **me}], headers=headers)
    opened.callback(response.close)
    return response.read()


if __name__ == "__main__":
    sys.exit(main())
