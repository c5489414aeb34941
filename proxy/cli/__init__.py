"""The command line: run, check, wait, healthcheck, shutdown, doctor, clients, credentials, demo."""

import sys
from collections.abc import Sequence

from proxy.cli import manners


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 could not be done, 2 misconfigured or misused."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in manners.COMMANDS:  # probes come every few seconds: they import no more than they need
        return manners.main(words)
    from proxy.cli import commands  # noqa: PLC0415 - see above

    return commands.main(words)
