"""What is run as `c8y-realtime-proxy`, and as `python -m proxy`."""

import signal
import sys


def main() -> int:
    """Run one command; returns its exit code."""
    if sys.argv[1:2] == ["run"]:
        # By itself, SIGHUP would end the process while the rest is imported; the configuration is read after that.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from proxy import cli  # noqa: PLC0415 - see above

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
