"""The proxies that are measured: how each is started, and what a process tree takes of the machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self


HERE: Final = Path(__file__).parent
TARGET: Final = HERE / "target"
RUNS: Final = TARGET / "runs"
"""A directory for each process: its configuration and what it says."""

CERTIFICATE: Final = TARGET / "certificate.pem"
KEY: Final = TARGET / "key.pem"

TOKEN: Final = "dDEyMy9iZW5jaDpzZWNyZXQ="
"""The credential that the fake upstream accepts: t123/bench:secret in base64."""

_START_SECONDS: Final = 15.0
_END_SECONDS: Final = 30.0
_PORTS: Final = iter(range(21_000, 32_000))  # below those that the kernel gives to outgoing connections


@dataclass(frozen=True, slots=True)
class Place:
    """Where one proxy stands: its port, upstream's port, whether that one speaks TLS, and a directory of its own."""

    port: int
    upstream: int
    tls: bool
    directory: Path

    @property
    def scheme(self) -> str:
        """Of upstream's URL."""
        return "https" if self.tls else "http"


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that is measured. `injects` tells that it puts the credential in; else the clients must bring it."""

    command: Callable[[Place], list[str]] | None
    injects: bool = False
    configuration: Callable[[Place], str] | None = None
    environment: Callable[[Place], Mapping[str, str]] = field(default=lambda _: {})


def _nginx(buffers: str) -> Callable[[Place], str]:
    def configuration(place: Place) -> str:
        verified = (
            f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {CERTIFICATE}; proxy_ssl_name localhost;"
            if place.tls
            else ""
        )
        temporary = " ".join(
            f"{kind}_temp_path {place.directory}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return f"""
            daemon off;
            worker_processes 1;
            worker_rlimit_nofile 20000;
            pid {place.directory}/pid;
            error_log {place.directory}/errors crit;
            events {{ worker_connections 19900; }}
            http {{
                access_log off;
                {temporary}
                keepalive_requests 1000000000;
                map $http_upgrade $connection_up {{ "" ""; default upgrade; }}
                upstream bayeux {{
                    server 127.0.0.1:{place.upstream};
                    keepalive 100;
                    keepalive_requests 1000000000;
                }}
                server {{
                    listen 127.0.0.1:{place.port} backlog=4096;
                    location / {{
                        proxy_pass {place.scheme}://bayeux;
                        proxy_http_version 1.1;
                        proxy_set_header Host $http_host;
                        proxy_set_header Upgrade $http_upgrade;
                        proxy_set_header Connection $connection_up;
                        proxy_read_timeout 1h;
                        proxy_send_timeout 1h;
                        {buffers}
                        {verified}
                    }}
                }}
            }}
        """

    return configuration


def _nginx_command(place: Place) -> list[str]:
    return ["nginx", "-c", f"{place.directory}/configuration", "-p", str(place.directory), "-e", "stderr"]


def _haproxy(place: Place) -> str:
    tls = f" ssl verify required ca-file {CERTIFICATE} sni str(localhost)" if place.tls else ""
    return f"""
global
    nbthread 1
    maxconn 9900
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    http-reuse always
frontend clients
    bind 127.0.0.1:{place.port} backlog 4096
    default_backend bayeux
backend bayeux
    server upstream 127.0.0.1:{place.upstream}{tls}
"""


def _node(program: str, *more: str) -> Callable[[Place], list[str]]:
    return lambda place: [
        "node",
        str(HERE / "node" / program),
        str(place.port),
        f"{place.scheme}://127.0.0.1:{place.upstream}",
        *more,
    ]


def _trusted_by_node(_: Place) -> Mapping[str, str]:
    return {"NODE_EXTRA_CA_CERTS": str(CERTIFICATE)}


def _proxy(place: Place) -> Mapping[str, str]:
    prefix = "C8Y_REALTIME_PROXY__"
    return {
        "C8Y_BASEURL": f"{place.scheme}://localhost:{place.upstream}",
        "C8Y_TENANT": "t123",
        "C8Y_USER": "bench",
        "C8Y_PASSWORD": "secret",
        f"{prefix}LISTEN__PORT": str(place.port),
        f"{prefix}ADMIN__PORT": "0",
        f"{prefix}LOG__LEVEL": "WARNING",
        f"{prefix}LIMITS__CONNECTIONS": "20000",
        f"{prefix}LIMITS__IDLE_SECONDS": "300",
        f"{prefix}GATE__GRANTS": '[{"subscribe": ["/bench/*"], "call": ["/service/echo"]}]',
    } | ({f"{prefix}UPSTREAM__CA_FILE": str(CERTIFICATE)} if place.tls else {})


def _logging_proxy(place: Place) -> Mapping[str, str]:
    prefix = "C8Y_REALTIME_PROXY__LOG__"
    return {**_proxy(place), f"{prefix}LEVEL": "INFO", f"{prefix}FORMAT": "json"}


_PROXY: Final = Peer(
    lambda _: [str(Path(sys.executable).parent / "c8y-realtime-proxy"), "run"], injects=True, environment=_proxy
)

PEERS: Final[Mapping[str, Peer]] = {
    "direct": Peer(None),
    "nginx": Peer(_nginx_command, configuration=_nginx("")),
    "nginx64k": Peer(
        _nginx_command,
        configuration=_nginx("proxy_buffer_size 64k; proxy_buffers 4 64k; proxy_busy_buffers_size 64k;"),
    ),
    "haproxy": Peer(lambda place: ["haproxy", "-db", "-f", f"{place.directory}/configuration"], configuration=_haproxy),
    "node-http-proxy": Peer(_node("http-proxy.mjs"), environment=_trusted_by_node),
    "node-ws": Peer(_node("ws.mjs", TOKEN), injects=True, environment=_trusted_by_node),
    "proxy": _PROXY,
    "proxy-logging": replace(_PROXY, environment=_logging_proxy),
}
"""By name. All have one worker or one thread, keep connections to upstream for POSTs, and write no access log but the
last one, which tells of every connection; with TLS they verify upstream's certificate and resume sessions as they do by
default.
"""


class Running:
    """One proxy as a process of its own, with its children; `more` is put into its environment."""

    def __init__(self, name: str, *, upstream: int, tls: bool, more: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._more = more or {}
        self.peer = PEERS[name]
        self.port = upstream
        self._process: subprocess.Popen[bytes] | None = None
        if self.peer.command is not None:
            self.port = free_port()
            self._start(self.peer.command, upstream, tls=tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, command: Callable[[Place], list[str]], upstream: int, *, tls: bool) -> None:
        directory = RUNS / f"{self.name}-{self.port}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        place = Place(self.port, upstream, tls, directory)
        if self.peer.configuration is not None:
            (directory / "configuration").write_text(self.peer.configuration(place), encoding="utf-8")
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the table above
                command(place),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": f"{os.environ['PATH']}:/usr/sbin", **self.peer.environment(place), **self._more},
            )
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.stop()
            raise

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if time.monotonic() > deadline or self._process is None or self._process.poll() is not None:
                log = RUNS / f"{self.name}-{self.port}/log"
                raise RuntimeError(f"{self.name} does not start: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, its children with it."""
        if self._process is None or self._process.poll() is not None:
            return
        for process in _tree(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()

    def end(self) -> float:
        """Ask it to end by SIGTERM; returns the seconds that it took. Raises subprocess.TimeoutExpired."""
        assert self._process is not None
        began = time.monotonic()
        self._process.terminate()
        self._process.wait(_END_SECONDS)
        return time.monotonic() - began

    def cpu_seconds(self) -> float:
        """CPU time of all threads of the process tree since it started, user and system."""
        return cpu_seconds(self._tree())

    def pss_kib(self) -> int:
        """Resident memory of the process tree in KiB; what is shared counts in proportion (PSS).

        A process that keeps its memory private, as ours does, tells only root what it shares: for others all of it
        counts.
        """
        return sum(map(_pss_kib, self._tree()))

    def _tree(self) -> list[int]:
        return [] if self._process is None else _tree(self._process.pid)


def _pss_kib(process: int) -> int:
    for file, name in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        with suppress(OSError):
            lines = Path(f"/proc/{process}/{file}").read_text(encoding="utf-8").splitlines()
            return sum(int(line.split()[1]) for line in lines if line.startswith(name))
    return 0


def free_port() -> int:
    """A port of loopback on which nobody listens, and that was not given out before."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


def cpu_seconds(processes: Iterable[int]) -> float:
    """CPU time of all threads of the processes since they started, user and system."""
    nanoseconds = 0
    for process in processes:
        for statistics in Path(f"/proc/{process}/task").glob("*/schedstat"):
            with suppress(OSError):
                nanoseconds += int(statistics.read_text(encoding="ascii").split()[0])
    return nanoseconds / 1e9


def machine_cpu_seconds() -> float:
    """CPU time of everything on the machine since it started, in ticks of some 10 ms."""
    ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    idle, waiting = ticks[3:5]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def _tree(root: int) -> list[int]:
    """A process and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for statistics in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            text = statistics.read_text(encoding="utf-8", errors="replace")
            parent = int(text.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(statistics.parent.name))
    tree = [root]
    for process in tree:
        tree.extend(children.get(process, []))
    return tree
