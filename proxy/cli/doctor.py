"""A real handshake, step by step: each step is a line as soon as it is done."""

import argparse
import asyncio
import os
import signal
import sys
from typing import Final

from proxy.cli.options import Commands, add_config
from proxy.config import Config, load
from proxy.doctor import Finding, Verdict, examine
from proxy.operations import logs
from proxy.operations.memory import keep_memory_private


_FAILED: Final = 1
_MISUSED: Final = 2


def add_parser(commands: Commands) -> None:
    """What can be said to doctor on the command line."""
    parser = commands.add_parser("doctor", help="a real handshake step by step: what is wrong, and what to change")
    add_config(parser)
    parser.add_argument("--credential", metavar="NAME", help="this one alone; without it, every one there is")


def run(options: argparse.Namespace) -> int:
    """Returns the exit code: 0 all well, 1 something failed, 2 misused. Raises BadConfiguration."""
    keep_memory_private()
    config = load(options.config, os.environ)
    if options.credential is not None and options.credential not in config.credentials:
        print(f"--credential: expected one of {', '.join(config.credentials)}", file=sys.stderr)
        return _MISUSED
    logs.configure("CRITICAL")  # what the rooms would log is told in findings
    names = list(config.credentials) if options.credential is None else [options.credential]
    printed = _Printed(config)
    try:
        asyncio.run(_until_signalled(config, names, printed))
    except asyncio.CancelledError:
        print("Ended before all steps were done", file=sys.stderr)
        return _FAILED
    return _FAILED if printed.has_failure else 0


class _Printed:
    """Prints findings in columns, and knows whether a step failed."""

    def __init__(self, config: Config) -> None:
        self.has_failure = False
        self._width = max(len("configuration"), *(len(f"{name}: handshake") for name in config.credentials))

    def __call__(self, finding: Finding) -> None:
        self.has_failure |= finding.verdict is Verdict.FAILED
        verdict = finding.verdict.ljust(max(map(len, Verdict)))
        print(f"{verdict}  {finding.subject.ljust(self._width)}  {finding}", flush=True)


async def _until_signalled(config: Config, names: list[str], printed: _Printed) -> None:
    """Raises CancelledError when a signal ends it: a session that was begun is logged out all the same."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - who awaits is one
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await examine(config, names, printed)
