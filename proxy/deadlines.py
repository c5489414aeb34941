"""One timer for all who are waited for equally long."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar


Waiting = TypeVar("Waiting")
Result = TypeVar("Result")


class Deadlines(Generic[Waiting]):
    """Who is waited for, `seconds` each, in the order in which their time runs out; `expired` is told of those whose
    time did. Used on one event loop only.

    A timer for each would cost more than the rest of what is known of an idle connection.
    """

    def __init__(self, seconds: float, expired: Callable[[Waiting], None]) -> None:
        self.seconds: float = seconds
        self._expired = expired
        self._waiting: dict[Waiting, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # kept: to ask for it takes a system call each time

    def change(self, seconds: float) -> None:
        """Wait so long from now on, also for whoever was to be waited for longer than that still."""
        self.seconds = seconds
        loop = self._loop
        if loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        latest = loop.time() + seconds
        for who, when in self._waiting.items():
            self._waiting[who] = min(when, latest)  # which leaves them in order
        if self._waiting:
            self._timer = loop.call_at(min(self._waiting.values()), self._look)

    def start(self, who: Waiting) -> None:
        """Wait for somebody from now on, also for whoever was waited for already."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        waiting = self._waiting
        waiting.pop(who, None)  # so that it goes to the end
        waiting[who] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._look)

    def stop(self, who: Waiting) -> None:
        """Wait no longer for somebody; of no effect when nobody does."""
        self._waiting.pop(who, None)

    def close(self) -> None:
        """Wait for nobody any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        loop = self._loop or asyncio.get_running_loop()
        now = loop.time()
        late = []
        self._timer = None
        for who, when in self._waiting.items():
            if when > now:
                self._timer = loop.call_at(when, self._look)
                break
            late.append(who)
        for who in late:
            if self._waiting.get(who, now + 1) > now:  # stopped, or started anew, by one before
                continue
            del self._waiting[who]
            try:
                self._expired(who)
            except Exception as fault:  # noqa: BLE001 - the others are told all the same
                loop.call_exception_handler({"message": "Who was late could not be told", "exception": fault})


class TimeLimit:
    """Bounds what tasks wait for, `seconds` each: as `asyncio.timeout` does, for the price of a dictionary entry."""

    def __init__(self, seconds: float) -> None:
        self._deadlines: Deadlines[asyncio.Task[Any]] = Deadlines(seconds, self._cancel)
        self._late: set[asyncio.Task[Any]] = set()

    async def within(self, awaited: Awaitable[Result]) -> Result:
        """The result of what is awaited. Raises TimeoutError when it does not come in time."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - who awaits is one
        self._deadlines.start(task)
        try:
            return await awaited
        except asyncio.CancelledError:
            if task in self._late and not task.uncancel():
                raise TimeoutError from None
            raise
        finally:
            self._deadlines.stop(task)
            self._late.discard(task)

    def close(self) -> None:
        """Bound nobody's waiting any more."""
        self._deadlines.close()

    def _cancel(self, task: "asyncio.Task[Any]") -> None:
        self._late.add(task)
        task.cancel()
