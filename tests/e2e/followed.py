"""A page of the docs, followed word for word: its files are written, its commands typed, and what they say is compared.

A file is a block of code below a line that holds its name alone, and a colon. What is marked `sh` is typed into one
bash, and a block without a mark that comes next is what it has to say; `...` stands for anything there.
"""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .programs import running


_STEP: Final = re.compile(r"(?:^`([\w./-]+)`:\n\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND_SECONDS: Final = 60
_TYPED: Final = "\x1e"
# Loopback of a new network is down.
_HOLD: Final = """
import fcntl, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS: IFF_UP
print("up", flush=True)
sys.stdin.read()
"""


class NotAsWritten(Exception):
    """What a page has typed did not end well, or says something else."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a page has its reader do next: write a file, or type commands and see what they say."""

    text: str
    file: str = ""
    says: str | None = None


def steps_of(page: str) -> list[Step]:
    """All steps of a page in their order."""
    steps: list[Step] = []
    for name, language, text in _STEP.findall(page):
        if name:
            steps.append(Step(text, file=name))
        elif language == "sh":
            steps.append(Step(text))
        elif not language and steps and not steps[-1].file:
            steps[-1] = Step(steps[-1].text, says=text)
    return steps


@asynccontextmanager
async def own_network() -> AsyncIterator[Sequence[str]]:
    """What a command is put behind to run in a network of its own, so that every port of a page is free; nothing where
    the system gives none.
    """
    user = () if os.geteuid() == 0 else ("--map-root-user",)
    async with running("unshare", *user, "--net", sys.executable, "-c", _HOLD) as holder:
        assert holder.process.stdout
        if await holder.process.stdout.readline() != b"up\n":
            yield ()
            return
        entering = ("--user", "--preserve-credentials") if user else ()
        yield ("nsenter", "--target", str(holder.process.pid), *entering, "--net")


class Reader:
    """Somebody who follows a page in one terminal."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def follow(self, steps: Sequence[Step]) -> None:
        """Raises NotAsWritten."""
        for step in steps:
            if step.file:
                (await self._here() / step.file).write_text(step.text)
            else:
                said = await self.type(step.text)
                if step.says is not None and not _pattern(step.says).fullmatch(said.strip()):
                    raise NotAsWritten(f"{step.text}should say\n{step.says}and said\n{said}")

    async def type(self, commands: str) -> str:
        """What they said. Raises NotAsWritten when one of them fails, or does not end."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{commands}\nprintf '{_TYPED}\\n'\n".encode())
        await self._process.stdin.drain()
        said = b""
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                while not said.endswith(f"{_TYPED}\n".encode()):
                    line = await self._process.stdout.readline()
                    if not line:
                        raise NotAsWritten(f"{commands}failed, saying\n{said.decode()}")
                    said += line
        except TimeoutError:
            raise NotAsWritten(f"{commands}did not end, saying\n{said.decode()}") from None
        return said.decode().removesuffix(f"{_TYPED}\n")

    async def _here(self) -> Path:
        return Path((await self.type("pwd")).strip())


def _pattern(says: str) -> re.Pattern[str]:
    return re.compile(re.escape(says.strip()).replace(r"\.\.\.", ".*"), re.DOTALL)


@asynccontextmanager
async def reader(folder: Path, network: Sequence[str]) -> AsyncIterator[Reader]:
    """Somebody with a copy of the repository in which everything is installed; all that was started ends with them."""
    (folder / "Makefile").write_text("install:\n\t@true\n")
    (folder / ".venv").symlink_to(sys.prefix)
    process = await asyncio.create_subprocess_exec(
        *network, "bash", "-eu", cwd=folder, stdin=PIPE, stdout=PIPE, stderr=STDOUT, start_new_session=True
    )
    try:
        yield Reader(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
