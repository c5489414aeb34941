"""Logging: one line per event on standard error. Secrets are kept out where values are made, not here."""

import logging


def configure(level: str) -> None:
    """Set up the root logger; `level` is a name such as INFO."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=level, force=True)
    # It writes request lines, and its errors quote header values; the relay logs in its own words.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    logging.captureWarnings(capture=True)
