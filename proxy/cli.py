"""The command line: run, check, demo."""

import argparse
import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from proxy import __version__
from proxy.app import CannotListen, Proxy, run
from proxy.config import BadConfiguration, Config, load
from proxy.demo.show import show
from proxy.operations import logs


_FAILED: Final = 1
_MISCONFIGURED: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 could not serve, 2 misconfigured."""
    options = _parser().parse_args(arguments)
    if options.command == "demo":
        logs.configure("INFO")
        return _serve(show)
    try:
        config = load(options.config, os.environ)
    except BadConfiguration as bad:
        for problem in bad.problems:
            print(problem, file=sys.stderr)
        count = len(bad.problems)
        print(f"{count} problem{'s' if count > 1 else ''} in the configuration", file=sys.stderr)
        return _MISCONFIGURED
    if options.command == "check":
        print("The configuration is valid")
        return 0
    return _run(config)


def _run(config: Config) -> int:
    logs.configure(config.log.level)
    return _serve(lambda stop: run(Proxy(config), stop))


def _serve(serving: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    # A core dump of this process would hold keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A client takes two descriptors; when they run out, probes go unanswered, too.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What is here now stays: looking through it for cycles again and again took a seventh of the time of a relay.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    try:
        with asyncio.Runner(loop_factory=_new_loop()) as runner:
            runner.run(_until_signalled(serving))
    except CannotListen as problem:
        print(problem, file=sys.stderr)
        return _FAILED
    return 0


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

    def leave() -> None:
        stop.set()
        for number in signals:  # a second one changes nothing, not even after the loop has let go of its handlers
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    for number in signals:
        loop.add_signal_handler(number, leave)
    await serving(stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="c8y-realtime-proxy",
        description="Stands in front of Cumulocity's real-time notifications and keeps the keys for its clients.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    run_command = commands.add_parser("run", help="serve until SIGTERM")
    run_command.add_argument("--config", type=Path, metavar="FILE.toml", help="the environment alone will do, too")
    check = commands.add_parser("check", help="validate a configuration and print every problem")
    check.add_argument("--config", type=Path, metavar="FILE.toml", required=True)
    commands.add_parser("demo", help="a simulated tenant, two proxies in front of it, and a page to watch them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
