"""Listening for the simulated servers: one socket on one address each."""

import asyncio
import socket
from collections.abc import Iterable

from aiohttp import web


def url_of(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def abort_connections(runners: Iterable[web.AppRunner]) -> None:
    """Abort what is connected, as a pulled cable does."""
    for server in (runner.server for runner in runners if runner.server is not None):
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()


async def listen(host: str, port: int) -> socket.socket:
    """One listening socket: with port 0, asyncio would take another port for each address of `localhost`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] is not socket.AF_INET)
    # asyncio sets TCP_NODELAY only on sockets that say that they are TCP.
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.setblocking(False)  # noqa: FBT003 - that is how it is called
    except OSError:
        listening.close()
        raise
    return listening
