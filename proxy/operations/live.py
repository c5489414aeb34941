"""The connections that are open now, and how they leave."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from proxy.gate.clients import Client
from proxy.operations.metrics import Metrics, Transport


log = logging.getLogger(__name__)


class Connection(Protocol):
    """What can be asked to leave. `who` is the client, and `credential` names what goes up for it, if that is known."""

    @property
    def who(self) -> Client: ...

    @property
    def credential(self) -> str | None: ...

    def leave(self) -> None:
        """End soon. Called once, or never; at once by `Live.join` while draining."""
        ...

    def revoke(self, problem: Exception) -> None:
        """End now, for this reason."""
        ...


_LONGEST_PAUSE: Final = 0.05


class Live:
    """Knows every open WebSocket and every POST being answered, so that each can be asked to leave."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._there: dict[Connection, Transport] = {}
        self._gone: asyncio.Event | None = None  # while draining
        self.draining = False

    def __len__(self) -> int:
        return len(self._there)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._there))

    def join(self, transport: Transport, connection: Connection) -> None:
        """Count a connection from now on."""
        self._there[connection] = transport
        self._metrics.connected[transport] += 1
        if self.draining:
            connection.leave()

    def part(self, transport: Transport, connection: Connection) -> None:
        """Count it no more."""
        self._metrics.connected[transport] -= 1
        self._there.pop(connection, None)
        if self._gone is not None and not self._there:
            self._gone.set()

    def counts(self) -> dict[tuple[Transport, str | None], int]:
        """How many there are now, by transport and by the name of their credential. It looks at each of them."""
        counts: dict[tuple[Transport, str | None], int] = {}
        for connection, transport in self._there.items():
            kind = transport, connection.credential
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def revoke(self, problem_of: Callable[[Connection], Exception | None]) -> int:
        """End those that may not be there any more; `problem_of` says why one may not. Returns how many."""
        revoked = [(connection, problem) for connection in self._there if (problem := problem_of(connection))]
        for connection, problem in revoked:
            try:
                connection.revoke(problem)
            except Exception:  # nobody is spared because of another
                log.exception("A connection that was revoked could not be ended")
        return len(revoked)

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
        now = asyncio.get_running_loop().time
        due = now()
        try:
            async with asyncio.timeout(timeout_seconds):
                for connection in leaving:
                    if connection in self._there:
                        try:
                            connection.leave()
                        except Exception:  # nobody goes without a goodbye because of another
                            log.exception("A connection could not be asked to leave")
                        due += pause  # by the clock: what a goodbye takes is not to lengthen the window
                        await asyncio.sleep(max(due - now(), 0))
                while self._there:
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            pass
        return len(self._there)
