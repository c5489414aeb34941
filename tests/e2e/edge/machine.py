"""A gateway: a Debian that systemd has booted, in a container that is gone when it is left."""

import asyncio
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final


ROOT: Final = Path(__file__).parents[3]
DEBIAN: Final = ROOT / "build/gateway/root"
_BOOT_SECONDS: Final = 60
_OFF_SECONDS: Final = 20
_COMMAND_SECONDS: Final = 120
_TURNS_SECONDS: Final = 0.05


class CommandFailed(Exception):
    """A command inside of the gateway had another exit code than 0."""

    def __init__(self, script: str, code: int, output: str) -> None:
        super().__init__(f"exit code {code} of:\n{script}\n\n{output}")


class Gateway:
    """The booted system, by the process that is its first one."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.files = Path(f"/proc/{leader}/root")

    async def sh(self, script: str, *, stdin: str = "", environment: Mapping[str, str] | None = None) -> str:
        """Run a script as root, in the directory with what is to be installed; returns what it wrote.

        Raises CommandFailed, and TimeoutError.
        """
        command = ["nsenter", f"--target={self.leader}", "--all", "--", "env", "--chdir=/release", "-i"]
        known = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        command += [f"{name}={value}" for name, value in (known | dict(environment or {})).items()]
        process = await asyncio.create_subprocess_exec(
            *command, "bash", "-euo", "pipefail", "-c", script, stdin=PIPE, stdout=PIPE, stderr=STDOUT
        )
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                output, _ = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        told = output.decode(errors="replace")
        if process.returncode:
            raise CommandFailed(script, process.returncode, told)
        return told

    async def property_of(self, unit: str, name: str) -> str:
        """What systemd says of a unit."""
        return (await self.sh(f"systemctl show --value --property={name} {unit}")).strip()

    async def until(self, unit: str, seconds: float = 60, **properties: str) -> None:
        """Wait until systemd says all this of a unit. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while [await self.property_of(unit, name) for name in properties] != list(properties.values()):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(_TURNS_SECONDS)


@asynccontextmanager
async def booted(release: Path) -> AsyncIterator[Gateway]:
    """Boot the system that `setup` made, with that directory as /release; whatever happens in it leaves no trace."""
    with tempfile.TemporaryFile() as console:
        container = await asyncio.create_subprocess_exec(
            "systemd-nspawn",
            *("--quiet", "--register=no", "--keep-unit", "--console=read-only", "--machine=gateway", "--boot"),
            *(f"--directory={DEBIAN}", "--volatile=overlay", f"--bind-ro={release}:/release"),
            stdin=DEVNULL,
            stdout=console,
            stderr=console,
        )
        try:
            gateway = Gateway(await _leader_of(container.pid))
            async with asyncio.timeout(_BOOT_SECONDS):
                await _up(gateway)
            yield gateway
        except TimeoutError as late:
            console.seek(0)
            late.add_note(console.read().decode(errors="replace"))
            raise
        finally:
            await _ended(container)


async def _ended(container: Process) -> None:
    """Switch the system off; what takes too long is killed."""
    if container.returncode is not None:
        return
    container.terminate()
    try:
        async with asyncio.timeout(_OFF_SECONDS):
            await container.wait()
    except TimeoutError:
        container.kill()
        await container.wait()


async def _leader_of(container: int) -> int:
    """The first process of a container, once it is the one of its own that counts."""
    children = Path(f"/proc/{container}/task/{container}/children")
    async with asyncio.timeout(_BOOT_SECONDS):
        while True:
            for child in children.read_text().split():  # noqa: ASYNC240 - what the kernel makes up blocks nobody
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":  # noqa: ASYNC240 - see above
                    return int(child)
            await asyncio.sleep(_TURNS_SECONDS)


async def _up(gateway: Gateway) -> None:
    while True:
        try:
            if (await gateway.sh("systemctl is-system-running --wait")).strip() == "running":
                return
        except CommandFailed:
            await asyncio.sleep(_TURNS_SECONDS)
