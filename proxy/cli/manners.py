"""What others ask of a proxy that runs: wait until it is ready, is it well, and please end."""

import argparse
import http.client
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from proxy.cli.options import Commands, Parser, add_config
from proxy.config import BadConfiguration, admin_in
from proxy.operations.quitting import QUIT_HEADERS, QUIT_PATH


COMMANDS: Final = ("wait", "healthcheck", "shutdown")

_FAILED: Final = 1
_MISCONFIGURED: Final = 2
_ASKING_SECONDS: Final = 3.0
_PAUSE_SECONDS: Final = 0.1
_TEXT_BYTES: Final = 1000
_NO_SOCKET: Final = (
    "admin.socket: expected the path of a unix socket, which takes the word to end: name one in the configuration, and "
    "start the proxy with it; or end the proxy by SIGTERM"
)


class _NoAnswer(Exception):
    """Nobody answers; the text says where, and why."""


class _NoAnswerAnyMore(_NoAnswer):
    """Somebody was there, and left before it had answered."""


class _NoAnswerYet(_NoAnswer):
    """Somebody is there, and takes its time."""


def add_parsers(commands: Commands) -> None:
    """What can be said to these on the command line."""
    waiting = commands.add_parser("wait", help="wait until the proxy is ready to serve")
    health = commands.add_parser("healthcheck", help="ask the proxy once whether it lives; made for probes")
    health.add_argument("--ready", action="store_true", help="ask whether it can serve instead")
    ending = commands.add_parser("shutdown", help="have the proxy drain and end, by its admin.socket")
    for parser in (waiting, health, ending):
        add_config(parser)
    for parser in (waiting, ending):
        parser.add_argument(
            "--seconds", type=_seconds, default=60.0, metavar="N", help="give up after so many; 60 if unsaid"
        )


def main(arguments: Sequence[str]) -> int:
    """Run one of these commands; returns its exit code."""
    parser = Parser(prog="c8y-realtime-proxy")
    add_parsers(parser.add_subparsers(dest="command", required=True))
    options = parser.parse_known(arguments)
    try:
        return _run(options)
    except BadConfiguration as bad:
        print(bad, file=sys.stderr)
        return _MISCONFIGURED


def _run(options: argparse.Namespace) -> int:
    admin = admin_in(options.config, os.environ)
    match options.command:
        case "wait":
            return _wait(_Asking(admin.host, admin.port, admin.socket), options.seconds)
        case "healthcheck":
            return _check(_Asking(admin.host, admin.port, admin.socket), "/readyz" if options.ready else "/livez")
        case _:
            if admin.socket is None:
                print(_NO_SOCKET, file=sys.stderr)
                return _MISCONFIGURED
            return _shut_down(_Asking(admin.host, admin.port, admin.socket), options.seconds)


@dataclass(frozen=True, slots=True)
class _Asking:
    """Asks an admin listener: at its unix socket where it has one."""

    host: str
    port: int
    path: Path | None

    def ask(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """The status and the text of an answer. Raises _NoAnswer."""
        try:
            connection = self._connection()
            try:
                connection.request(method, path, headers=dict(headers))
                answer = connection.getresponse()
                return answer.status, answer.read(_TEXT_BYTES).decode(errors="replace").strip()
            finally:
                connection.close()
        except (TimeoutError, BlockingIOError):  # the latter while the queue of a unix socket is full
            raise _NoAnswerYet(f"no answer from {self}") from None
        except (ConnectionResetError, BrokenPipeError):
            raise _NoAnswerAnyMore(f"no answer from {self}, which left") from None
        except OSError as problem:
            raise _NoAnswer(f"nobody answers at {self}: {problem.strerror or problem}") from None
        except http.client.HTTPException:
            raise _NoAnswer(f"what answers at {self} is no proxy of ours") from None

    def _connection(self) -> http.client.HTTPConnection:
        if self.path is not None:
            return _AtPath(self.path)
        return http.client.HTTPConnection(_reached_at(self.host), self.port, timeout=_ASKING_SECONDS)

    def __str__(self) -> str:
        return f"{self.host}:{self.port} (admin.host, admin.port)" if self.path is None else f"{self.path}"


class _AtPath(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ASKING_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _reached_at(host: str) -> str:
    """Where a listener of this machine is reached that may listen on every address."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004 - the version of the protocol


def _check(admin: _Asking, path: str) -> int:
    try:
        status, text = admin.ask("GET", path, {})
    except _NoAnswer as problem:
        print(problem, file=sys.stderr)
        return _FAILED
    if status != HTTPStatus.OK:
        print(text, file=sys.stderr)
        return _FAILED
    return 0


def _wait(admin: _Asking, seconds: float) -> int:
    end = time.monotonic() + seconds
    while True:
        try:
            status, text = admin.ask("GET", "/readyz", {})
        except _NoAnswer as problem:
            status, text = 0, str(problem)
        if status == HTTPStatus.OK:
            return 0
        if time.monotonic() >= end:
            print(f"Not ready after {seconds:g} s: {text}", file=sys.stderr)
            return _FAILED
        time.sleep(_PAUSE_SECONDS)


def _shut_down(admin: _Asking, seconds: float) -> int:
    end = time.monotonic() + seconds
    try:
        status, text = admin.ask("POST", QUIT_PATH, QUIT_HEADERS)
    except _NoAnswerAnyMore:  # it ends already
        status, text = HTTPStatus.ACCEPTED, ""
    except _NoAnswer as problem:
        print(f"{problem}: expected a proxy that runs with this admin.socket", file=sys.stderr)
        return _FAILED
    if status != HTTPStatus.ACCEPTED:
        print(f"The proxy does not end: {text}", file=sys.stderr)
        return _FAILED
    while time.monotonic() < end:
        try:
            admin.ask("GET", "/livez", {})
        except _NoAnswerYet:
            pass
        except _NoAnswer:
            return 0
        time.sleep(_PAUSE_SECONDS)
    print(f"The proxy is told to end, and still there after {seconds:g} s", file=sys.stderr)
    return _FAILED


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError("expected a number of seconds, such as 60")
    return seconds
