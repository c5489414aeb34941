"""The connections that are open now, and how they leave."""

import asyncio
import random
from typing import Final, Protocol

from proxy.operations.metrics import Metrics, Transport


class Connection(Protocol):
    """What can be asked to leave."""

    def leave(self) -> None:
        """End soon. Called once, or never; at once by `Live.join` while draining."""
        ...


_LONGEST_PAUSE: Final = 0.05


class Live:
    """Knows every open WebSocket and every POST being answered, so that each can be asked to leave."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._there: set[Connection] = set()
        self._gone: asyncio.Event | None = None  # while draining
        self.draining = False

    def __len__(self) -> int:
        return len(self._there)

    def join(self, transport: Transport, connection: Connection) -> None:
        """Count a connection from now on."""
        self._there.add(connection)
        self._metrics.connected[transport] += 1
        if self.draining:
            connection.leave()

    def part(self, transport: Transport, connection: Connection) -> None:
        """Count it no more."""
        self._metrics.connected[transport] -= 1
        self._there.discard(connection)
        if self._gone is not None and not self._there:
            self._gone.set()

    async def drain(self, *, spread_seconds: float, timeout_seconds: float) -> int:
        """Ask all to leave, in random order and spread over the window so that they do not come back as one, and
        wait until they have. Returns how many were still there when the time was over.
        """
        self.draining = True
        self._gone = asyncio.Event()
        leaving = list(self._there)
        random.shuffle(leaving)
        # Nobody is left without a goodbye for want of time, and a few have no stampede to fear.
        pause = min(min(spread_seconds, timeout_seconds / 2) / max(len(leaving), 1), _LONGEST_PAUSE)
        try:
            async with asyncio.timeout(timeout_seconds):
                for connection in leaving:
                    if connection in self._there:
                        connection.leave()
                        await asyncio.sleep(pause)
                while self._there:
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            pass
        return len(self._there)
