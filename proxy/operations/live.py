"""The connections that are open now, and how they leave."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from proxy.operations.metrics import Metrics, Transport


Leave = Callable[[], None]

_LONGEST_PAUSE: Final = 0.05


class Live:
    """Knows every open WebSocket and every POST being answered, so that each can be asked to leave."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._leaving: set[Leave] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._leaving)

    def join(self, transport: Transport, leave: Leave) -> None:
        """Count a connection from now on. `leave` asks it to end soon; it may be called once, or never, and is called
        at once while draining.
        """
        self._leaving.add(leave)
        self._empty.clear()
        self._metrics.connections(transport).inc()
        if self.draining:
            leave()

    def part(self, transport: Transport, leave: Leave) -> None:
        """Count it no more; `leave` is what it joined with."""
        self._metrics.connections(transport).dec()
        self._leaving.discard(leave)
        if not self._leaving:
            self._empty.set()

    @contextmanager
    def joined(self, transport: Transport, leave: Leave) -> Iterator[None]:
        """Count a connection while it lasts."""
        self.join(transport, leave)
        try:
            yield
        finally:
            self.part(transport, leave)

    async def drain(self, *, spread_seconds: float, timeout_seconds: float) -> int:
        """Ask all to leave, in random order and spread over the window so that they do not come back as one, and
        wait until they have. Returns how many were still there when the time was over.
        """
        self.draining = True
        leaving = list(self._leaving)
        random.shuffle(leaving)
        # Nobody is left without a goodbye for want of time, and a few have no stampede to fear.
        pause = min(min(spread_seconds, timeout_seconds / 2) / max(len(leaving), 1), _LONGEST_PAUSE)
        try:
            async with asyncio.timeout(timeout_seconds):
                for leave in leaving:
                    if leave in self._leaving:
                        leave()
                        await asyncio.sleep(pause)
                await self._empty.wait()
        except TimeoutError:
            pass
        return len(self._leaving)
