"""A thousand idle WebSockets and a thousand held connects, when their replica is told to leave."""

import asyncio
import logging
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from tests.conftest import LONGEST_EXIT_SECONDS, handshake

from .conftest import StageOpener
from .stage import Stage, store
from .upstreams import ACCOUNT, Upstream


log = logging.getLogger(__name__)

EACH: Final = 1000
SPREAD_SECONDS: Final = 3.0
MOST_LATE: Final = 2  # times the window, on a machine that has other things to do
AT_ONCE: Final = 50  # how many open their connection at the same time

Message = dict[str, Any]


@dataclass
class Session(ABC):
    """A client without a library: what official ones do, a thousand times in one process.

    `went` is when its goodbye came, `came` when it was back, both in seconds of the monotonic clock.
    """

    http: aiohttp.ClientSession
    client_id: str = ""
    cookie: dict[str, str] = field(default_factory=dict)
    went: float = 0.0
    came: float = 0.0

    def connect(self, **more: Any) -> Message:
        return {"channel": "/meta/connect", "clientId": self.client_id, "connectionType": self.transport} | more

    @property
    @abstractmethod
    def transport(self) -> str: ...

    @abstractmethod
    async def open(self, url: str) -> None:
        """Handshake, and have the next connect held."""

    @abstractmethod
    async def leave(self) -> None:
        """Wait for the goodbye, whatever is proper for the transport."""

    @abstractmethod
    async def come_back(self, url: str) -> None:
        """Go on at another replica with the clientId, as if nothing had been."""


class Socket(Session):
    """A session over WebSocket."""

    transport = "websocket"
    _socket: aiohttp.ClientWebSocketResponse

    async def open(self, url: str) -> None:
        self._socket = await self.http.ws_connect(url, autoclose=False)
        [shaken] = await self._exchange([handshake()])
        self.client_id = shaken["clientId"]
        [answer] = await self._exchange([self.connect(advice={"timeout": 0})])
        assert answer["successful"], answer
        await self._send([self.connect()])

    async def leave(self) -> None:
        frame = await self._socket.receive()
        self.went = time.monotonic()
        assert (frame.type, frame.data, frame.extra) == (aiohttp.WSMsgType.CLOSE, 1001, "Connect again")
        await self._socket.close()

    async def come_back(self, url: str) -> None:
        self._socket = await self.http.ws_connect(url)
        [answer] = await self._exchange([self.connect(advice={"timeout": 0})])
        self.came = time.monotonic()
        assert answer["successful"], answer
        await self._socket.close()

    async def _send(self, batch: list[Message]) -> None:
        await self._socket.send_str(msgspec.json.encode(batch).decode())

    async def _exchange(self, batch: list[Message]) -> list[Message]:
        await self._send(batch)
        answer: list[Message] = msgspec.json.decode(await self._socket.receive_str())
        return answer


class Poll(Session):
    """A session over long-polling."""

    transport = "long-polling"
    _held: asyncio.Task[list[Message]]

    async def open(self, url: str) -> None:
        [shaken] = await self._post(url, [handshake()])
        self.client_id = shaken["clientId"]
        [answer] = await self._post(url, [self.connect(advice={"timeout": 0})])
        assert answer["successful"], answer
        self._held = asyncio.get_running_loop().create_task(self._post(url, [self.connect(id="held")]))

    async def leave(self) -> None:
        [goodbye] = await self._held
        self.went = time.monotonic()
        assert (goodbye["id"], goodbye["successful"], goodbye["advice"]["reconnect"]) == ("held", True, "retry")
        await asyncio.sleep(goodbye["advice"]["interval"] / 1000)  # as clients do

    async def come_back(self, url: str) -> None:
        [answer] = await self._post(url, [self.connect(advice={"timeout": 0})])
        self.came = time.monotonic()
        assert answer["successful"], answer

    async def _post(self, url: str, batch: list[Message]) -> list[Message]:
        async with self.http.post(f"{url}/", json=batch, headers=self.cookie) as response:
            assert response.status == 200
            if (given := response.cookies.get("BAYEUX_BROWSER")) is not None:
                self.cookie = {"Cookie": f"BAYEUX_BROWSER={given.value}"}
            answer: list[Message] = msgspec.json.decode(await response.read())
            return answer


async def each(sessions: Iterable[Session], do: Callable[[Session], Awaitable[None]], *, at_once: int) -> None:
    """Do something for all, so many at the same time."""
    turn = asyncio.Semaphore(at_once)

    async def one(session: Session) -> None:
        async with turn:
            await do(session)

    async with asyncio.TaskGroup() as group:
        for session in sessions:
            group.create_task(one(session))


def address_of(stage: Stage) -> str:
    """Where a replica is reached itself: there is nothing to look for on the way of so many."""
    return f"http://127.0.0.1:{stage.proxy.port}/notification/realtime"


async def test_two_thousand_clients_are_told_goodbye_in_time_and_are_back_elsewhere_with_their_client_ids(
    open_stage: StageOpener, cometd: Upstream, directory: Path
) -> None:
    settings = store(directory, ACCOUNT.files()) | {"drain.spread_seconds": SPREAD_SECONDS}
    async with (
        open_stage(cometd, settings) as leaving,
        open_stage(cometd, settings) as staying,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()) as http,
    ):
        there, elsewhere = address_of(leaving), address_of(staying)
        sessions = [kind(http) for kind in (Socket, Poll) for _ in repeat(None, EACH)]
        await each(sessions, lambda session: session.open(there), at_once=AT_ONCE)
        process = leaving.proxy.program.process

        process.send_signal(signal.SIGTERM)
        told = time.monotonic()

        async def go(session: Session) -> None:
            await session.leave()
            await session.come_back(elsewhere)

        async def end() -> float:
            assert await leaving.proxy.program.wait(seconds=LONGEST_EXIT_SECONDS) == 0
            return time.monotonic() - told

        async with asyncio.TaskGroup() as group:
            ending = group.create_task(end())
            group.create_task(each(sessions, go, at_once=len(sessions)))

        went = sorted(session.went - told for session in sessions)
        assert went[-1] < MOST_LATE * SPREAD_SECONDS
        for kind in (Socket, Poll):
            of_kind = [session.went - told for session in sessions if isinstance(session, kind)]
            # Nobody comes back as one: half of the window apart at least, where an even spread is the whole of it.
            assert max(of_kind) - min(of_kind) > SPREAD_SECONDS / 2
        assert {reason for *_, reason in await staying.handshakes()} == set()
        log.info(
            "%d WebSockets and %d held connects: goodbyes %.2f s to %.2f s after SIGTERM, the end after %.2f s, the "
            "last client back after %.2f s",
            *(EACH, EACH, went[0], went[-1], ending.result(), max(session.came for session in sessions) - told),
        )
