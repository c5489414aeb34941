"""What a process of the proxy is seen to hold and to do, second by second."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec


EVERY_SECONDS: Final = 1.0
_PREFIX: Final = "c8y_realtime_proxy_"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_KIB: Final = 1024


class Sample(msgspec.Struct):
    """One look: `at` in seconds since the soak began, memory in MiB, lateness and probe in seconds."""

    at: float
    memory: float
    cpu_seconds: float
    descriptors: int
    tasks: int
    late: float
    probe: float
    connections: Mapping[str, float]


@dataclass
class Watched:
    """One proxy: `base` is where its admin listener is, `window` the socket of the launcher."""

    name: str
    pid: int
    base: str
    window: Path
    http: aiohttp.ClientSession
    began: float
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    is_leaving: bool = False
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self) -> Sample:
        """Take one sample."""
        async with self._looking:  # so that nobody counts the connections of another look
            return await self._look()

    async def _look(self) -> Sample:
        told = await self.ask(b"look")
        probe = await self._probe()
        connections = {
            series.partition("{")[2]: value
            for series, value in (await self.metrics()).items()
            if series.startswith("connections{")
        }
        sample = Sample(
            time.monotonic() - self.began,
            self.memory(),
            self._cpu(),
            told["descriptors"],
            told["tasks"],
            told["late"],
            probe,
            connections,
        )
        self.samples.append(sample)
        return sample

    def memory(self) -> float:
        """Resident memory in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / _KIB

    async def ask(self, what: bytes) -> dict[str, Any]:
        """Look through the window."""
        reader, writer = await asyncio.open_unix_connection(str(self.window))
        try:
            writer.write(what + b"\n")
            async with asyncio.timeout(10):
                told: dict[str, Any] = msgspec.json.decode(await reader.readline())
            return told
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def metrics(self) -> dict[str, float]:
        """All series by name and labels, without the prefix."""
        async with self.http.get(f"{self.base}/metrics") as response:
            text = await response.text()
        found = {}
        for line in text.splitlines():
            if line.startswith(_PREFIX):
                series, _, value = line.removeprefix(_PREFIX).rpartition(" ")
                found[series] = float(value)
        return found

    async def _probe(self) -> float:
        began = time.monotonic()
        try:
            async with asyncio.timeout(5), self.http.get(f"{self.base}/livez") as response:
                if response.status != 200:
                    self.failures.append(f"/livez said {response.status}")
        except (TimeoutError, aiohttp.ClientError) as problem:
            self.failures.append(f"/livez: {type(problem).__name__}")
        return time.monotonic() - began

    def _cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@asynccontextmanager
async def watching(proxies: list[Watched]) -> AsyncIterator[None]:
    """Look at them all the time."""

    async def watch() -> None:
        while True:
            for proxy in proxies:
                if proxy.is_leaving:
                    continue
                try:
                    await proxy.look()
                except (OSError, TimeoutError, aiohttp.ClientError) as problem:
                    proxy.failures.append(f"could not be looked at: {type(problem).__name__}: {problem}")
            await asyncio.sleep(EVERY_SECONDS)

    looking = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking


def seconds_waited() -> float | None:
    """For how many seconds something has waited for a core since the machine was started."""
    try:
        some = Path("/proc/pressure/cpu").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    return int(some.rpartition("total=")[2]) / 1e6


def counted(metrics: Mapping[str, float], series: str) -> float:
    """The sum of all series of a name that have these labels: `handshakes_total{outcome="rejected"}`."""
    name, _, labels = series.partition("{")
    wanted = [label for label in labels.rstrip("}").split(",") if label]
    return sum(
        value
        for known, value in metrics.items()
        if known.partition("{")[0] == name and all(label in known for label in wanted)
    )
