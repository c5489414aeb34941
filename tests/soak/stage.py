"""All that plays a part: three proxies, the way to one upstream, Redis, disks that can be full, and clients.

The way stands in a network namespace of its own where we are root, so that it, and clients that are there, can vanish
as they do when a cable is pulled: nobody on the other side hears a word.
"""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from tests.frontdoor.redis import RedisServer, running_redis
from tests.ports import unused_ports
from tests.soak.children import Child, child
from tests.soak.upstream import MACHINE, PASSWORD, TENANT
from tests.soak.watching import Watched, watching


HERE: Final = Path(__file__).parent
_OURS: Final = os.getpid()  # two at a time do not meet
NAMESPACE: Final = f"c8y-soak-{_OURS}"
NAME: Final = "upstream.example.test"
"""What upstream is called where we are root: then the proxies see hosts and name servers of their own."""

_NETWORK: Final = f"10.{217 + (_OURS >> 14) % 32}.{(_OURS >> 6) % 256}"
HOST_SIDE: Final = f"{_NETWORK}.{_OURS % 64 * 4 + 1}"
FAR_SIDE: Final = f"{_NETWORK}.{_OURS % 64 * 4 + 2}"
_LINK: Final = f"c8y{_OURS}x"
_DISK_BYTES: Final = 16 * 2**20
STARTS_WITHIN_SECONDS: Final = 30.0

LIMITS: Final[Mapping[str, object]] = {
    "handshake.timeout_seconds": 3,
    "upstream.open_timeout_seconds": 3,
    "limits.heartbeat_seconds": 4,
    "limits.stalled_seconds": 6,
    "limits.upstream_payload_bytes": 2**20,
    "credentials.default.cooldown_seconds": 3,
    "drain.spread_seconds": 1,
    "log.level": "WARNING",
}
"""Shorter than the defaults, so that what takes minutes in production is seen within seconds."""


class NotReady(Exception):
    """Something did not come to pass in time."""


async def until(condition: Callable[[], bool], what: str, *, seconds: float) -> float:
    """Wait until this is so; returns how long that took. Raises NotReady."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise NotReady(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(0.1)
    return time.monotonic() - began


class Disk:
    """A small file system of its own, which can be full; a mere directory where we are not root."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filling = path / "filling"

    def fill(self) -> None:
        """Take all the room there is."""
        with self._filling.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 4096)

    def clear(self) -> None:
        """Give it back."""
        self._filling.unlink(missing_ok=True)


class Names:
    """What names the proxies can resolve: those of one file, and no name server answers."""

    def __init__(self, folder: Path, address: str) -> None:
        self._hosts, self._servers = folder / "hosts", folder / "resolv.conf"
        self._address = address
        self._servers.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n", encoding="ascii")
        self.find()

    @property
    def command(self) -> Sequence[str]:
        """What a command is begun with that is to see them: it gets mounts of its own."""
        mounts = f"mount --bind {self._hosts} /etc/hosts && mount --bind {self._servers} /etc/resolv.conf"
        return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]

    def lose(self) -> None:
        """Know nothing of upstream any more."""
        self._hosts.write_text("127.0.0.1 localhost\n", encoding="ascii")

    def find(self) -> None:
        """Know it again."""
        self._hosts.write_text(f"127.0.0.1 localhost\n{self._address} {NAME}\n", encoding="ascii")


@dataclass
class Stage:
    """What faults are done to. `size` is that of the population, and `notes` what faults remember."""

    folder: Path
    proxies: dict[str, Watched]
    disks: dict[str, Disk]
    redis: RedisServer
    way: Child
    upstream: Child
    upstream_port: int
    upstream_host: str
    is_root: bool
    began: float
    seed: int
    size: float
    ports: Mapping[str, int]
    names: "Names | None"
    vault: Mapping[str, str]
    children: Mapping[str, Child] = field(default_factory=dict)
    population: Child | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def now(self) -> float:
        """In seconds since it began."""
        return time.monotonic() - self.began

    async def start_upstream(self) -> None:
        """Start the platform again where it was."""
        self.upstream = await self._stack.enter_async_context(
            child(
                "upstream",
                [sys.executable, "-m", "tests.soak.upstream", self.upstream_host, str(self.upstream_port)],
                self.folder,
            )
        )
        await until(lambda: "port" in self.upstream.told, "upstream starts", seconds=STARTS_WITHIN_SECONDS)

    @asynccontextmanager
    async def populated(self, plan: Mapping[str, Any], name: str, *, far: bool = False) -> AsyncIterator[Child]:
        """Clients of these kinds; from beyond the network if they are `far`."""
        prefix = ["ip", "netns", "exec", NAMESPACE] if far else []
        command = [*prefix, sys.executable, "-m", "tests.soak.population"]
        async with child(name, command, self.folder) as population:
            assert population.process.stdin
            population.process.stdin.write(msgspec.json.encode(plan) + b"\n")
            yield population

    async def block(self, *rules: str) -> None:
        """Have the network drop what these rules of iptables match, in the far namespace."""
        for rule in rules:
            await asyncio.to_thread(_in_namespace, "iptables", "-A", *rule.split(), "-j", "DROP")

    async def unblock(self) -> None:
        """Let everything pass again."""
        await asyncio.to_thread(_in_namespace, "iptables", "-F")

    async def metrics(self) -> dict[str, dict[str, float]]:
        """All series of each proxy, by name and labels, without the prefix."""
        return {name: await proxy.metrics() for name, proxy in self.proxies.items()}


def plan_of(seed: int, ports: Mapping[str, int], *, size: float = 1.0) -> dict[str, Any]:
    """Who there is in the main population."""

    def many(count: int) -> int:
        return max(1, round(count * size))

    doors = {
        name: {
            "url": f"http://localhost:{ports[name]}",
            "origin": f"http://localhost:{ports[name]}",
            "people": many(10),
            "visitors": many(2),
        }
        for name in ("door", "replica")
    }
    return {
        "seed": seed,
        "sidecar": f"http://localhost:{ports['sidecar']}",
        "websocket": many(180),
        "busy": many(20),
        "poller": many(100),
        "again": many(6),
        "doors": doors,
    }


@asynccontextmanager
async def staged(folder: Path, seed: int, size: float) -> AsyncIterator[Stage]:
    """Everything running but the clients. The proxy is the one that is installed for this Python."""
    began = time.monotonic()
    is_root = os.geteuid() == 0
    async with AsyncExitStack() as stack:
        if is_root:
            stack.enter_context(_network())
        up_host, way_host = (HOST_SIDE, FAR_SIDE) if is_root else ("127.0.0.1", "127.0.0.1")
        disks = {name: stack.enter_context(_disk(folder / name, is_own=is_root)) for name in ("sidecar", "door")}
        (folder / "redis").mkdir()
        redis = stack.enter_context(running_redis(folder / "redis", password="canary-redis", keeps=True))
        upstream = await stack.enter_async_context(
            child("upstream", [sys.executable, "-m", "tests.soak.upstream", up_host, "0"], folder)
        )
        await until(lambda: "port" in upstream.told, "upstream starts", seconds=STARTS_WITHIN_SECONDS)
        prefix = ["ip", "netns", "exec", NAMESPACE] if is_root else []
        command = [*prefix, sys.executable, "-m", "tests.soak.way", way_host, "0", up_host, str(upstream.told["port"])]
        way = await stack.enter_async_context(child("way", command, folder))
        await until(lambda: "port" in way.told, "the way opens", seconds=STARTS_WITHIN_SECONDS)
        names = Names(folder, way_host) if is_root else None
        url = f"http://{NAME if names else way_host}:{way.told['port']}"
        ports = {name: stack.enter_context(unused_ports()) for name in ("sidecar", "door", "replica")}
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)))
        configurations = _configurations(folder, url, ports, redis)
        vault = _environment(configurations["sidecar"])
        assert add_to_vault(vault, "machine").returncode == 0
        proxies, children = {}, {}
        for name, settings in configurations.items():
            window, admin = folder / f"{name}.window", stack.enter_context(unused_ports())
            environment = _environment(settings | {"listen.port": ports[name], "admin.port": admin})
            launcher = [sys.executable, "-P", str(HERE / "launcher.py"), str(window), "run"]
            launched = [*(names.command if names else ()), *launcher]
            children[name] = await stack.enter_async_context(child(name, launched, folder, environment))
            proxies[name] = Watched(
                name, children[name].pid, f"http://127.0.0.1:{admin}", window, http=http, began=began
            )
        for proxy in proxies.values():
            await _ready(proxy)
        stage = Stage(
            folder,
            proxies,
            disks,
            redis,
            way,
            upstream,
            upstream_port=upstream.told["port"],
            upstream_host=up_host,
            is_root=is_root,
            began=began,
            seed=seed,
            size=size,
            ports=ports,
            names=names,
            vault=vault,
            children=children,
        )
        await stack.enter_async_context(stage._stack)
        async with watching(list(proxies.values())):
            yield stage


async def leave(stage: Stage) -> dict[str, int]:
    """Have the proxies leave as an operator does; returns their exit codes."""
    codes = {}
    for name, process in stage.children.items():
        stage.proxies[name].is_leaving = True
        await stage.proxies[name].look()  # the last one, and no other is under way
        process.signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            codes[name] = await process.process.wait()
    return codes


async def _ready(proxy: Watched) -> None:
    began = time.monotonic()
    while time.monotonic() - began < STARTS_WITHIN_SECONDS:
        with suppress(aiohttp.ClientError):
            async with proxy.http.get(f"{proxy.base}/readyz") as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.1)
    raise NotReady(f"{proxy.name} is not ready: see its log")


def _configurations(
    folder: Path, url: str, ports: Mapping[str, int], redis: RedisServer
) -> dict[str, dict[str, object]]:
    """Of each proxy: one with a login in a vault, and one of each store of sessions."""
    for name, content in {
        "vault-key": b64encode(secrets.token_bytes(32)).decode(),
        "session-key": secrets.token_urlsafe(32),
        "redis-password": redis.password or "",
    }.items():
        file = folder / name
        file.touch(mode=0o600)
        file.write_text(f"{content}\n", encoding="ascii")
    common = dict(LIMITS) | {"upstream.url": url}
    sidecar: dict[str, object] = {
        "listen.host": "0.0.0.0",  # noqa: S104 - a namespace of its own has to reach it
        "gate.identity": ["none"],
        "gate.admit_anyone": True,
        "gate.hosts": [HOST_SIDE],
        "credentials.default.source": "login",
        "credentials.default.entry": "machine",
        "vault.file": str(folder / "sidecar" / "vault.json"),
        "vault.key_file": str(folder / "vault-key"),
        "vault.sessions_file": str(folder / "sidecar" / "sessions.json"),
    }
    doors = {
        name: {
            "credentials.default.source": "session",
            "gate.client_id_key_file": str(folder / "session-key"),
            "frontdoor.public_origin": f"http://localhost:{ports[name]}",
            "frontdoor.session_key_file": str(folder / "session-key"),
            "frontdoor.tenant": TENANT,
        }
        for name in ("door", "replica")
    }
    doors["door"]["frontdoor.sessions_file"] = str(folder / "door" / "sessions.sqlite")
    doors["replica"] |= {
        "frontdoor.redis_url": redis.url,
        "frontdoor.redis_password_file": str(folder / "redis-password"),
    }
    return {"sidecar": common | sidecar} | {name: common | settings for name, settings in doors.items()}


def _environment(settings: Mapping[str, object]) -> dict[str, str]:
    given = {
        "C8Y_REALTIME_PROXY__" + key.upper().replace(".", "__"): value
        if isinstance(value, str)
        else msgspec.json.encode(value).decode()
        for key, value in settings.items()
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("C8Y_")} | given


def add_to_vault(environment: Mapping[str, str], entry: str) -> subprocess.CompletedProcess[bytes]:
    """Have the command put an entry into the vault, as an operator does."""
    values = f"tenant={TENANT}\nuser={MACHINE}\npassword={PASSWORD}\n"
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "proxy", "credentials", "add", entry, "--replace"],
        env=environment,
        input=values.encode(),
        capture_output=True,
        check=False,
    )


def established(peer: str, *, port: int | None = None, far_port: int | None = None) -> int:
    """How many established TCP connections this machine has with a peer by IPv4, as its kernel knows them: at a port of
    ours, or to one of the peer's.
    """
    lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    address = int.from_bytes(socket.inet_aton(peer), "little")
    return sum(
        far.startswith(f"{address:08X}:")
        and state == "01"
        and (port is None or near.endswith(f":{port:04X}"))
        and (far_port is None or far.endswith(f":{far_port:04X}"))
        for _, near, far, state, *_ in lines
    )


# Network and disks, for root ------------------------------------------------------------------------------------------


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own words


def _in_namespace(*command: str) -> None:
    _run("ip", "netns", "exec", NAMESPACE, *command)


@contextmanager
def _network() -> Iterator[None]:
    """A network of two, this machine and the far side."""
    try:
        _run("ip", "netns", "add", NAMESPACE)
        _run("ip", "link", "add", f"{_LINK}0", "type", "veth", "peer", "name", f"{_LINK}1")
        _run("ip", "link", "set", f"{_LINK}1", "netns", NAMESPACE)
        _run("ip", "addr", "add", f"{HOST_SIDE}/30", "dev", f"{_LINK}0")
        _run("ip", "link", "set", f"{_LINK}0", "up")
        _in_namespace("ip", "addr", "add", f"{FAR_SIDE}/30", "dev", f"{_LINK}1")
        _in_namespace("ip", "link", "set", f"{_LINK}1", "up")
        _in_namespace("ip", "link", "set", "lo", "up")
        yield
    finally:
        for command in (("link", "del", f"{_LINK}0"), ("netns", "del", NAMESPACE)):
            subprocess.run(["ip", *command], check=False, stderr=subprocess.DEVNULL)  # noqa: S603, S607


@contextmanager
def _disk(path: Path, *, is_own: bool) -> Iterator[Disk]:
    """A file system in a directory that is made for it."""
    path.mkdir()
    if is_own:
        _run("mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES},mode=700", "tmpfs", str(path))
    try:
        yield Disk(path)
    finally:
        if is_own:
            _run("umount", "--lazy", str(path))
