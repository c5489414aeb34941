"""Child processes that are spoken to in lines of text, and that never outlive the test that started them."""

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager


# What a program may say before anybody reads it; beyond that it would be made to wait, and seem to hang.
_UNREAD_BYTES = 64 * 1024 * 1024


class EndedEarly(Exception):
    """A program ended, or closed the stream, while a line of it was awaited."""

    def __init__(self, command: str, stderr: bytes) -> None:
        super().__init__(f"{command} ended early, saying:\n{stderr.decode(errors='replace')}")


class Program:
    """A running child process. `stdout` and `stderr` keep all that it has been read to say."""

    def __init__(self, process: Process, command: str) -> None:
        self.process = process
        self.command = command
        self.stdout = bytearray()
        self.stderr = bytearray()

    async def line(self) -> bytes:
        """The next line of stdout. Raises EndedEarly."""
        assert self.process.stdout
        line = await self.process.stdout.readline()
        self.stdout += line
        return await self._whole(line)

    async def error_line(self) -> bytes:
        """The next line of stderr. Raises EndedEarly."""
        assert self.process.stderr
        line = await self.process.stderr.readline()
        self.stderr += line
        return await self._whole(line)

    async def write_line(self, line: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + b"\n")
        await self.process.stdin.drain()

    async def wait(self, *, seconds: float) -> int:
        """Wait for the end, which closing stdin asks for; returns the exit code. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            # Empty input, not none: only then Python 3.11 closes stdin.
            stdout, stderr = await self.process.communicate(b"")
        self.stdout += stdout
        self.stderr += stderr
        assert self.process.returncode is not None
        return self.process.returncode

    async def kill(self) -> None:
        """End it at once, unless it has ended."""
        if self.process.returncode is None:
            self.process.kill()
            await self.wait(seconds=10)

    async def _whole(self, line: bytes) -> bytes:
        if not line.endswith(b"\n"):
            await self.kill()
            raise EndedEarly(self.command, bytes(self.stderr))
        return line


@asynccontextmanager
async def running(*command: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Program]:
    """Start a program; it is killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=_UNREAD_BYTES
    )
    program = Program(process, " ".join(command[:2]))
    try:
        yield program
    finally:
        await program.kill()
