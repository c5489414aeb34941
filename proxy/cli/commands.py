"""All commands but the quick ones: run, check, doctor, clients, credentials, demo."""

import argparse
import asyncio
import contextlib
import gc
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from importlib import metadata
from typing import Final

from proxy import __version__, listening
from proxy.app import CannotListen, Proxy, run
from proxy.cli import clients, credentials, doctor, manners
from proxy.cli.options import Parser, add_config
from proxy.config import BadConfiguration, Config, editing, load
from proxy.demo.show import show
from proxy.operations import logs
from proxy.operations.memory import keep_memory_private
from proxy.operations.supervision import Supervision


_FAILED: Final = 1
_MISCONFIGURED: Final = 2

_LAST_SECONDS: Final = 0.5
"""How long closing the event loop may take, once all that is ours has ended."""

_DISTRIBUTION: Final = "c8y-realtime-proxy"
_FLOOR: Final = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9.]+)")
_RELEASE: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 could not be done, 2 misconfigured or misused."""
    options = command_line().parse_known(arguments)
    try:
        match options.command:
            case "clients":
                return clients.run(options)
            case "credentials":
                return credentials.run(options)
            case "doctor":
                return doctor.run(options)
            case "check":
                load(options.config, os.environ)
                print("The configuration is valid")
                return 0
            case _:
                return _run(options)
    except BadConfiguration as bad:
        for problem in bad.problems:
            print(problem, file=sys.stderr)
        count = len(bad.problems)
        print(f"{count} problem{'s' if count > 1 else ''} in the configuration", file=sys.stderr)
    except editing.CannotEdit as refused:
        print(refused, file=sys.stderr)
    return _MISCONFIGURED


def _outdated() -> list[str]:
    """Which libraries are older than our own distribution wants: below its floors, there are published ways in.

    Whoever installs by the lock has none of them; another package that is installed later may bring one back.
    """
    problems = []
    with contextlib.suppress(metadata.PackageNotFoundError):  # a source tree that nobody installed
        for found in filter(None, map(_FLOOR.match, metadata.requires(_DISTRIBUTION) or ())):
            name, floor = found.groups()
            with contextlib.suppress(metadata.PackageNotFoundError):  # it is not needed on this platform
                if _release(installed := metadata.version(name)) < _release(floor):
                    problems.append(f"{name} {installed} is older than {floor}: install {_DISTRIBUTION} anew")
    return problems


def _release(version: str) -> list[int]:
    """The numbers that a version begins with."""
    found = _RELEASE.match(version)
    return [int(number) for number in found[0].split(".")] if found else []


def _run(options: argparse.Namespace) -> int:
    """Serve, for real or as a demo. Raises BadConfiguration."""
    if outdated := _outdated():
        print("\n".join(outdated), file=sys.stderr)
        return _FAILED
    if options.command == "demo":
        logs.configure("INFO")
        return _serve(show)
    reread = asyncio.Event()
    # From now on: by itself, it would end a process that has not come far yet.
    signal.signal(signal.SIGHUP, lambda *_: reread.set())
    config = load(options.config, os.environ)
    logs.configure(config.log.level, config.log.format)

    try:
        handed_over = listening.handed_over(os.environ, os.getpid(), ("listen", "admin"))
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return _FAILED
    supervision = Supervision.asked_for(os.environ, os.getpid())

    async def serve(stop: asyncio.Event) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reread.set)
        proxy = Proxy(config, handed_over=handed_over, supervision=supervision, quit_now=stop.set)
        logs.redact(proxy.secrets)
        await run(proxy, stop, reread, load_again)

    def load_again() -> Config:
        config = load(options.config, os.environ)
        logs.change(config.log.level, config.log.format)
        return config

    return _serve(serve)


def _serve(serving: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    keep_memory_private()
    # A client takes two descriptors; when they run out, probes go unanswered, too.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What is here now stays: looking through it for cycles again and again took a seventh of the time of a relay.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    code = 0
    with asyncio.Runner(loop_factory=_new_loop()) as runner:
        try:
            runner.run(_until_signalled(serving))
        except CannotListen as problem:
            print(problem, file=sys.stderr)
            code = _FAILED
        # All that is ours has ended. Closing the loop waits for its threads, one of which may ask for an address, and a
        # resolver that does not answer keeps it for half a minute.
        last = threading.Timer(_LAST_SECONDS, os._exit, [code])
        last.daemon = True
        last.start()
    last.cancel()
    return code


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where there is one: an idle client with TLS upstream costs 40 KiB there, and 280 on asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - it does not exist for every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _until_signalled(serving: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    ignored = (*signals, signal.SIGHUP)

    def ignore() -> None:
        # What comes from now on changes nothing, not even after the loop has let go of its handlers: in their place it
        # puts those of the system for a moment, which end the process.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
        for number in ignored:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def leave() -> None:
        stop.set()
        ignore()

    for number in signals:
        loop.add_signal_handler(number, leave)
    try:
        await serving(stop)
    finally:
        ignore()


def command_line() -> Parser:
    """What can be said on the command line, the quick commands among it."""
    parser = Parser(
        prog="c8y-realtime-proxy",
        description="Stands in front of Cumulocity's real-time notifications and keeps the keys for its clients.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    run_command = commands.add_parser("run", help="serve until SIGTERM")
    add_config(run_command)
    check = commands.add_parser("check", help="validate a configuration and print every problem")
    add_config(check)
    manners.add_parsers(commands)
    doctor.add_parser(commands)
    clients.add_parser(commands)
    credentials.add_parser(commands)
    commands.add_parser(
        "demo", help="a simulated tenant, three proxies in front of it, and pages to watch them and to sign in"
    )
    return parser
