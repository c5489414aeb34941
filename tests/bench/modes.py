"""What is done to each proxy, and one measured run of it."""

import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from tests.bench.peers import CERTIFICATE, KEY, TARGET, Running, cpu_seconds, free_port, machine_cpu_seconds


_SETUP_SECONDS: Final = 60  # what the load generator may take to set up, and to end after its time
_LIFE_SECONDS: Final = 300.0
_SETTLE_SECONDS: Final = 0.5
_WARM_UP_SECONDS: Final = 0.25  # of the same load, unmeasured, for what is compiled while it runs
_IDLE_SECONDS: Final = 0.2  # what an idle client takes, it takes at once


@dataclass(frozen=True, slots=True)
class Mode:
    """One kind of load. `load` is the load generator's word for it; `rate` is in messages a second, `size` in bytes.

    `counts_memory` means a fresh process for each run, and its PSS with and without the clients; `once`, that the first
    repetition is enough. `peers` are those that are measured, where it is not all.
    """

    load: str
    clients: int
    size: int = 500
    rate: int = 5000
    counts_memory: bool = False
    once: bool = False
    peers: tuple[str, ...] | None = None

    def is_for(self, peer: str, repetition: int) -> bool:
        """Whether a peer is measured in this mode and repetition."""
        return (self.peers is None or peer in self.peers) and not (self.once and repetition)


_RATES: Final = (100, 1000, 5000)
_IDLE: Final = ("nginx", "haproxy", "proxy")
_GROWING: Final = (*_IDLE, "node-ws")
_STALLED: Final = (*_GROWING, "nginx64k", "node-http-proxy")
_USUAL: Final = ("direct", *_GROWING, "node-http-proxy")  # nginx's buffers do not matter to what is small
_RELAYING: Final = (*_USUAL, "nginx64k")
_ENDING: Final = (*_USUAL, "proxy-logging")  # a line of the log is for the end of a connection

MODES: Final = (
    {
        "handshake": Mode("handshake", 64, peers=_ENDING),
        "flood": Mode("flood", 50, peers=_RELAYING),
        "paced": Mode("paced", 100, peers=_USUAL),
        "burst": Mode("paced", 100, rate=15_000, peers=_USUAL),
        "burst16k": Mode("paced", 100, size=16_000, peers=_RELAYING),
        "echo": Mode("echo", 50, size=200, peers=_USUAL),
        "longpoll": Mode("longpoll", 50, peers=_USUAL),
    }
    | {
        f"idle-{clients}": Mode("idle", clients, counts_memory=True, once=once, peers=_IDLE)
        for clients, once in ((1000, False), (5000, True), (9000, True))
    }
    | {"stalled": Mode("stalled", 20, size=2000, counts_memory=True, peers=_STALLED)}
    | {
        f"growth-{clients}": Mode("paced", clients, counts_memory=True, peers=_GROWING)
        for clients in (10, 100, 1000, 5000)
    }
    | {f"rate-{rate}": Mode("paced", 100, rate=rate, peers=_IDLE) for rate in _RATES}
)


@dataclass(frozen=True, slots=True)
class Case:
    """A mode, with upstream plain or behind TLS."""

    mode: str
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.mode}-tls" if self.tls else self.mode


WHOLE: Final = (
    *(Case(mode) for mode in MODES if not mode.startswith("rate")),
    Case("handshake", tls=True),
    *(Case(mode, tls=True) for mode in MODES if mode.startswith("idle")),
)
"""What is measured when nothing else is asked for."""


def cases_of(names: Iterable[str], *, tls: bool) -> Iterator[Case]:
    """The cases that are asked for: `paced`, `idle` for all of that kind, `paced-tls`. Raises ValueError."""
    for name in names:
        kind = name.removesuffix("-tls")
        modes = [mode for mode in MODES if mode == kind or mode.startswith(f"{kind}-")]
        if not modes:
            raise ValueError(f"no mode {name}: there are {', '.join(MODES)}, each with -tls too")
        yield from (Case(mode, tls or kind != name) for mode in modes)


class Row(msgspec.Struct):
    """What one run of one case showed of one proxy. Times in seconds, latencies in microseconds, memory in KiB (PSS);
    `others` is how many cores were taken meanwhile by whoever has no part in it. `failure` tells why there is nothing
    else.
    """

    repetition: int
    case: str
    peer: str
    clients: int
    failure: str = ""
    done: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    others: float = 0.0
    kib_without: int = 0
    kib_with: int = 0
    p50: float | None = None
    p99: float | None = None
    max: float | None = None


class _Said(msgspec.Struct):
    """A line of the load generator."""

    ready: int = 0
    done: int = 0
    seconds: float = 0.0
    p50: float | None = None
    p99: float | None = None
    max: float | None = None
    failure: str = ""


class LoadFailed(Exception):
    """The load generator saw something that must not be, or did not end."""


class Upstream:
    """The fake upstream as a child process: `port` is plain, `tls_port` is behind TLS."""

    def __init__(self) -> None:
        self.port = free_port()
        self.tls_port = free_port()
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [TARGET / "upstream", str(self.port), str(self.tls_port), CERTIFICATE, KEY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("upstream does not start")

    @property
    def process(self) -> int:
        """Its id."""
        return self._process.pid

    def port_for(self, *, tls: bool) -> int:
        """Where a proxy finds it."""
        return self.tls_port if tls else self.port

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=10)


class Load:
    """The load generator as a child process, with its clients set up. Raises LoadFailed."""

    def __init__(self, running: Running, upstream: int, mode: Mode) -> None:
        options = {
            "port": running.port,
            "upstream": upstream,
            "clients": mode.clients,
            "size": mode.size,
            "rate": mode.rate,
            "authn": int(not running.peer.injects),
            "limit": _SETUP_SECONDS,
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [TARGET / "load", mode.load, *(f"{name}={value}" for name, value in options.items())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._watchdog = threading.Timer(_LIFE_SECONDS, self._process.kill)
        self._watchdog.start()
        try:
            self._hear()
        except LoadFailed:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self._process.kill()
        self._process.communicate()

    @property
    def process(self) -> int:
        """Its id."""
        return self._process.pid

    def work(self, seconds: float) -> _Said:
        """Let it work for a time, and return what it says of it. Raises LoadFailed."""
        assert self._process.stdin
        self._process.stdin.write(b"%d\n" % round(seconds * 1000))
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> _Said:
        assert self._process.stdout
        line = self._process.stdout.readline()
        said = msgspec.json.decode(line, type=_Said) if line else _Said(failure="the load generator died")
        if said.failure:
            raise LoadFailed(said.failure)
        return said

    def end(self) -> None:
        """Let it look at what is left, and end. Raises LoadFailed."""
        said, _ = self._process.communicate(b"end\n")
        if self._process.returncode:
            raise LoadFailed(msgspec.json.decode(said, type=_Said).failure if said else "the load generator died")


def measure(case: Case, running: Running, upstream: Upstream, *, seconds: float, repetition: int) -> Row:
    """One run of one case on a proxy that runs already."""
    mode = MODES[case.mode]
    row = Row(repetition, str(case), running.name, mode.clients)
    try:
        if mode.counts_memory:
            _warm_up(running, upstream)
            time.sleep(_SETTLE_SECONDS)
            row.kib_without = running.pss_kib()
        with Load(running, upstream.port, mode) as load:
            if mode.counts_memory:
                time.sleep(_SETTLE_SECONDS)
                row.kib_with = running.pss_kib()
            if mode.load not in {"idle", "stalled"}:
                load.work(_WARM_UP_SECONDS)
            programs = (load.process, upstream.process)
            before, machine = running.cpu_seconds(), machine_cpu_seconds() - cpu_seconds(programs)
            said = load.work(_IDLE_SECONDS if mode.load == "idle" else seconds)
            row.cpu_seconds = running.cpu_seconds() - before
            machine = machine_cpu_seconds() - cpu_seconds(programs) - machine
            row.others = max(0.0, (machine - row.cpu_seconds) / said.seconds)
            if mode.load == "stalled":
                row.kib_with = running.pss_kib()
            load.end()
    except LoadFailed as failure:
        row.failure = str(failure)
        return row
    row.done, row.seconds, row.p50, row.p99, row.max = said.done, said.seconds, said.p50, said.p99, said.max
    return row


def _warm_up(running: Running, upstream: Upstream) -> None:
    """A few handshakes, so that what a proxy allocates once is not counted as its clients'. Not more: what they leave
    free would be there for the clients to come, and not be counted at all.
    """
    with Load(running, upstream.port, Mode("handshake", 4)) as load:
        load.work(0.02)
        load.end()
