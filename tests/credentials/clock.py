"""Time that is moved by hand, for sources that do something of their own when it has come."""

import asyncio
from contextlib import suppress


UNIX: int = 1_700_000_010  # a period of one-time codes begins here


class Clock:
    """Monotonic seconds, and those since 1970; whoever waits by it is woken when it is moved far enough."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._waiting: list[tuple[asyncio.Event, float]] = []
        self._moved = asyncio.Event()
        self._changed = asyncio.Event()

    def __call__(self) -> float:
        return self.now

    def unix(self) -> float:
        return UNIX + self.now - 1000.0

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """What takes the place of real waiting."""
        waiting = event, self.now + seconds
        self._waiting.append(waiting)
        try:
            while not self._is_over(waiting):
                self._changed.set()
                await _either(event, self._moved)
        finally:
            self._waiting.remove(waiting)

    async def settle(self, sources: int = 1) -> None:
        """Wait until so many sources have nothing left to do before this clock is moved."""
        async with asyncio.timeout(10):
            while len(self._waiting) < sources or any(map(self._is_over, self._waiting)):
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.005):  # an event may be set without a word to us
                        await self._changed.wait()

    async def move(self, seconds: float, sources: int = 1) -> None:
        """Let time pass, with all that is to happen meanwhile."""
        target = self.now + seconds
        await self.settle(sources)
        while (soonest := min((until for _, until in self._waiting), default=target)) < target:
            await self._move_to(soonest, sources)
        await self._move_to(target, sources)

    async def _move_to(self, now: float, sources: int) -> None:
        self.now = max(now, self.now)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        await self.settle(sources)

    def _is_over(self, waiting: tuple[asyncio.Event, float]) -> bool:
        event, until = waiting
        return event.is_set() or self.now >= until


async def _either(*events: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
