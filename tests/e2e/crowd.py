"""Clients that keep coming, and what happens to them while the proxy is replaced."""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from typing import Any, Final, Self

import aiohttp
from yarl import URL

from tests.conftest import handshake, receive


_GIVES_UP_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.5  # of all of them together, limits.client_handshakes lets so many in
_KNOCK_SECONDS: Final = 0.005


class NotAccepted(Exception):
    """A handshake was answered, but not with success."""


@dataclass
class Visitor:
    """Who comes to `url`: `key` proves who it is, `trusting` is what it knows of the proxy's certificate, with TLS."""

    url: URL
    key: str
    trusting: ssl.SSLContext | None = None

    def session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self.key}"},
            connector=aiohttp.TCPConnector(ssl=self.trusting or True, limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=_GIVES_UP_SECONDS),
        )

    async def shake(self) -> None:
        """Come, be accepted, and go. Raises aiohttp.ClientError, NotAccepted and TimeoutError."""
        async with self.session() as session, session.ws_connect(self.url) as socket:
            await shaken(socket)


async def shaken(socket: aiohttp.ClientWebSocketResponse) -> str:
    """Handshake on a new WebSocket; returns the clientId. Raises NotAccepted."""
    async with asyncio.timeout(_GIVES_UP_SECONDS):
        await socket.send_json([handshake()])
        [answer] = await receive(socket)
    if answer["successful"] is not True:
        raise NotAccepted(answer.get("error"))
    client_id: str = answer["clientId"]
    return client_id


@dataclass
class Crowd:
    """Clients that stay, others that come and go without a pause, and bare connections.

    `refused` are the connections that nobody took; `failed` whatever else went wrong for those who come and go;
    `goodbyes` the close codes of those who stay; `away` for how many seconds each of these was gone each time.
    """

    visitor: Visitor
    stay: int = 20
    come: int = 4
    served: int = 0
    refused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    goodbyes: list[int | None] = field(default_factory=list)
    away: list[float] = field(default_factory=list)
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    _staying: int = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        every = [self._stay] * self.stay + [self._come_and_go] * self.come + [self._knock]
        self._tasks = [loop.create_task(each()) for each in every]
        await self.all_here()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for problem in ended:
            if isinstance(problem, Exception):
                raise problem

    async def all_here(self, *, after: int = 0) -> None:
        """Wait until all who stay have been parted from that often each, and are back. Raises TimeoutError."""
        async with asyncio.timeout(60):
            while self._staying < self.stay or len(self.away) < after * self.stay:
                self._raise_what_failed()
                await asyncio.sleep(0.01)

    def _raise_what_failed(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def _stay(self) -> None:
        gone_at: float | None = None
        async with self.visitor.session() as session:
            while True:
                async with session.ws_connect(self.visitor.url) as socket:
                    await shaken(socket)
                    if gone_at is not None:
                        self.away.append(time.monotonic() - gone_at)
                    self._staying += 1
                    async for _ in socket:
                        pass
                    self._staying -= 1
                gone_at = time.monotonic()
                self.goodbyes.append(socket.close_code)

    async def _come_and_go(self) -> None:
        while True:
            try:
                await self.visitor.shake()
                self.served += 1
            except (aiohttp.ClientError, NotAccepted, TimeoutError) as problem:
                self._note(problem)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _knock(self) -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection(self.visitor.url.host, self.visitor.url.port)
                writer.close()
            except OSError as problem:
                self._note(problem)
            await asyncio.sleep(_KNOCK_SECONDS)

    def _note(self, problem: Exception) -> None:
        cause = problem.os_error if isinstance(problem, aiohttp.ClientConnectorError) else problem
        into = self.refused if isinstance(cause, ConnectionRefusedError) else self.failed
        into.append(repr(problem))
