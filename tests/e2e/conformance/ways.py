"""The ways to an echo server: directly, through nginx as a plain proxy, and through ours in relay mode.

Each is a child process that listens on loopback and is yielded as the port to connect to.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO, Literal

from tests.e2e.upstreams import HERE


Way = Literal["direct", "nginx", "proxy"]

PATH = "/notification/realtime"
"""Where WebSockets are opened, whichever way."""

GENEROUS = 32 * 1024 * 1024
"""More than any message of these tests has, as a limit of payloads."""

_STOPS_WITHIN_SECONDS = 10

# Plain: what its own documentation tells to write for WebSockets, and nothing but loopback and its own directory.
_NGINX = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {server}
}}
"""

_TO_ECHO = """
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }}
    }}
"""


@dataclass
class Relay:
    """The proxy in relay mode; `log` is what it has logged so far."""

    port: int = 0
    log: list[str] = field(default_factory=list)


@contextmanager
def echoing() -> Iterator[int]:
    """The echo server itself."""
    command = ["node", str(HERE / "node/echo-server.mjs")]
    with _running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith(b"listening "), "the echo server did not start: has tests/e2e/setup been run?"
        yield int(line.split()[1])


@contextmanager
def through_nginx(upstream: int, directory: Path) -> Iterator[int]:
    """Nginx in front of the echo server, with its files in a directory."""
    with nginx(_TO_ECHO, directory, upstream=upstream) as port:
        yield port


@contextmanager
def nginx(server: str, directory: Path, **settings: object) -> Iterator[int]:
    """Nginx with its files in a directory; `server` says what it serves, with its `port` and these settings put in."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "no nginx: run tests/e2e/setup"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        text = _NGINX.format(server=server.format(port=port, **settings))
        (directory / "nginx.conf").write_text(text, encoding="utf-8")
        command = [program, "-p", str(directory), "-e", "stderr", "-c", "nginx.conf"]
        # It takes over a socket that listens already, as it does when it is upgraded: nobody has to wait for it.
        inherited = listener.fileno()
        with _running(command, environment={"NGINX": f"{inherited};"}, inherited=inherited):
            listener.close()
            yield port


@contextmanager
def through_the_proxy(upstream: int, limits: Mapping[str, int]) -> Iterator[Relay]:
    """The proxy in relay mode in front of the echo server."""
    settings = {"listen.port": 0, "admin.port": 0} | {f"limits.{name}": limit for name, limit in limits.items()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("C8Y_")}
    environment |= {
        "C8Y_BASEURL": f"http://localhost:{upstream}",
        "C8Y_TENANT": "t0815",
        "C8Y_USER": "service",
        "C8Y_PASSWORD": "of no use",
    }
    environment |= {
        f"C8Y_REALTIME_PROXY__{key.upper().replace('.', '__')}": str(value) for key, value in settings.items()
    }
    command = [sys.executable, str(HERE / "conformance/relay.py")]
    relay = Relay()
    with _running(command, environment=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr
        for line in process.stderr:
            relay.log.append(line.decode())
            if "public listener" in relay.log[-1]:
                relay.port = int(relay.log[-1].rpartition(":")[2])
                break
        assert relay.port, "".join(relay.log)
        # Its log is read, so that it never has to wait for room in the pipe.
        reader = Thread(target=_keep, args=(process.stderr, relay.log))
        reader.start()
        yield relay
    reader.join(_STOPS_WITHIN_SECONDS)


def _keep(stream: IO[bytes], log: list[str]) -> None:
    log.extend(line.decode() for line in stream)


@contextmanager
def _running(
    command: list[str],
    *,
    environment: Mapping[str, str] | None = None,
    inherited: int | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, and stop it at the end: in order if it can, by force if it does not."""
    with subprocess.Popen(  # noqa: S603 - our own programs, in our own words
        command,
        env=environment,
        pass_fds=() if inherited is None else (inherited,),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOPS_WITHIN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
