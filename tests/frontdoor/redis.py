"""A real Redis of one's own, on loopback, which may die, stand still, and come back.

with running_redis(tmp_path, password="...") as server:
    ...RedisStore(server.url, password=lambda: server.password)
"""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.ports import unused_ports


class RedisServer:
    """Redis as a child process; the same port again after each `start`. It keeps nothing beyond its life, unless it
    `keeps` what it was told.

    With `tls`, a certificate for `localhost` and its key, it speaks nothing else.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        password: str | None = None,
        tls: tuple[Path, Path] | None = None,
        keeps: bool = False,
    ) -> None:
        self.port = port
        self.password = password
        self._keeps = keeps
        self._folder = folder
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{'redis' if self._tls is None else 'rediss'}://localhost:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = shutil.which("redis-server")
        assert program, "no redis-server: run tests/e2e/setup"
        self._process = process = subprocess.Popen(  # noqa: S603 - as it is installed
            [program, "-"], cwd=self._folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin
        assert process.stdout
        with process.stdin:
            process.stdin.write("".join(f"{line}\n" for line in self._configuration()).encode())
        process.stdin = None  # nobody needs to close it any more
        if not any(b"Ready to accept connections" in line for line in process.stdout):
            self.kill()
            raise AssertionError("redis-server does not start")

    def kill(self) -> None:
        """To its clients this is a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=10)
            self._process = None

    def stand_still(self) -> None:
        """Answer nothing, though it is there."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def tell(self, *command: str) -> Any:
        """Have it do something, as its operator may."""
        with redis.Redis(port=self.port, password=self.password) as client:
            return client.execute_command(*command)

    def _configuration(self) -> Iterator[str]:
        yield "bind 127.0.0.1"
        yield 'save ""'
        yield f"appendonly {'yes' if self._keeps else 'no'}"
        yield "appendfsync no"  # to outlive the process is enough, and a busy disk holds nobody up
        if self.password is not None:
            yield f"requirepass {self.password}"
        if self._tls is None:
            yield f"port {self.port}"
        else:
            certificate, key = self._tls
            yield from ("port 0", f"tls-port {self.port}", "tls-auth-clients no")
            yield from (f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {certificate}")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)


@contextmanager
def running_redis(
    folder: Path, *, password: str | None = None, tls: tuple[Path, Path] | None = None, keeps: bool = False
) -> Iterator[RedisServer]:
    """One that runs, and is gone afterwards."""
    with unused_ports() as port:
        server = RedisServer(folder, port, password=password, tls=tls, keeps=keeps)
        server.start()
        try:
            yield server
        finally:
            server.kill()
