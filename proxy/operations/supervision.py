"""What a service manager is told: readiness, reloads, the end, and that the event loop still turns (sd_notify(3))."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Mapping
from typing import Final


log = logging.getLogger(__name__)

_MICROSECONDS: Final = 1_000_000


class Supervision:
    """Tells systemd how we are, where it asked to be told: by datagrams to `address`.

    `watchdog_seconds` is how long it waits for a sign of life before it takes us for hung.
    """

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._beat_seconds = watchdog_seconds / 2
        self._next_beat: asyncio.TimerHandle | None = None
        self._status = ""

    @classmethod
    def asked_for(cls, environment: Mapping[str, str], pid: int) -> "Supervision":
        """What the environment of the process `pid` asks for, which may be nothing."""
        microseconds = 0
        if environment.get("WATCHDOG_PID", str(pid)) == str(pid):
            with contextlib.suppress(ValueError):
                microseconds = int(environment.get("WATCHDOG_USEC", ""))
        return cls(environment.get("NOTIFY_SOCKET", ""), microseconds / _MICROSECONDS)

    def ready(self) -> None:
        """All listeners are open. From now on there are signs of life."""
        self._tell("READY=1")
        if self._beat_seconds and self._next_beat is None:
            self._beat()

    def reloading(self) -> None:
        """The configuration is read again; `ready` comes after that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """We leave."""
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """How it goes, in words, for `systemctl status`."""
        if text != self._status:
            self._status = text
            self._tell(f"STATUS={text}")

    def close(self) -> None:
        """Give no more signs of life."""
        if self._next_beat is not None:
            self._next_beat.cancel()

    def _beat(self) -> None:
        self._next_beat = asyncio.get_running_loop().call_later(self._beat_seconds, self._beat)
        self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
                telling.settimeout(0)
                telling.sendto("\n".join(lines).encode(), self._address)
        except OSError as problem:  # it is not there, or takes nothing: no reason to stop serving
            log.warning("The service manager could not be told %s: %s", lines[0], problem.strerror)
