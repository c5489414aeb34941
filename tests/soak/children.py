"""Processes that are spoken to in lines of JSON, and that say the rest into a file."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec


_LINE_BYTES = 1024 * 1024


class Child:
    """One such process. What it tells by itself is in `told`, the newest only."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.told: dict[str, Any] = {}
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._changed = asyncio.Event()

    @property
    def pid(self) -> int:
        """Its number, as the kernel has it."""
        return self.process.pid

    async def listen(self) -> None:
        """Take in what it tells, until it is no more."""
        assert self.process.stdout
        while line := await self.process.stdout.readline():
            told = msgspec.json.decode(line)
            if "answer" in told:
                self._answers.put_nowait(told["answer"])
            else:
                self.told = told
                self._changed.set()
                self._changed = asyncio.Event()

    async def ask(self, **order: Any) -> dict[str, Any]:
        """Have it do something, and wait until it has."""
        assert self.process.stdin
        self.process.stdin.write(msgspec.json.encode(order) + b"\n")
        async with asyncio.timeout(30):
            return await self._answers.get()

    async def tell_more(self, *, seconds: float = 10.0) -> dict[str, Any]:
        """What it tells next."""
        async with asyncio.timeout(seconds):
            await self._changed.wait()
        return self.told

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def child(
    name: str, command: Sequence[str], folder: Path, environment: dict[str, str] | None = None
) -> AsyncIterator[Child]:
    """Start one; it is killed at the end if it still runs."""
    log = folder / f"{name}.log"
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=file, limit=_LINE_BYTES, env=environment
        )
    started = Child(name, process, log)
    listening = asyncio.get_running_loop().create_task(started.listen())
    try:
        yield started
    finally:
        await started.kill()
        listening.cancel()
        await asyncio.wait([listening])


async def orders() -> AsyncIterator[dict[str, Any]]:
    """In a child: what it is asked to do. Each has to be answered."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield msgspec.json.decode(line)


def say(**told: Any) -> None:
    """In a child: tell something."""
    print(msgspec.json.encode(told).decode(), flush=True)
