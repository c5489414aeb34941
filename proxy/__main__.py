"""What is run as `c8y-realtime-proxy`, and as `python -m proxy`."""

import os
import signal
import sys


def main() -> int:
    """Run one command; returns its exit code."""
    if sys.argv[1:2] == ["run"]:
        # By itself, SIGHUP would end the process while the rest is imported; the configuration is read after that.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # And SIGTERM would end it with an error, or, as process 1 of a container, not at all. There is nothing to drain
        # before the event loop has its own handlers.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(0))
    from proxy import cli  # noqa: PLC0415 - see above

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
