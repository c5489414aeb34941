"""The proxy as its command starts it, with a window into its event loop: `python -P launcher.py SOCKET run ...`.

Whoever connects to the unix socket and sends a line is told whether the proxy is compiled, and how many tasks and
descriptors there are; where the line says `look`, how late the event loop was at worst since the last look; and where
it says `objects`, how many objects are alive once nothing is garbage. Nothing else of `tests` is imported: the proxy is
the one that is installed.
"""

import asyncio
import faulthandler
import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import uvloop

from proxy.__main__ import main
from proxy.relay import sockets


_TICK_SECONDS = 0.02
_LOOK_SECONDS = 0.25
_LONG_SECONDS = 0.7
_kept: list[asyncio.AbstractServer] = []  # a server that nobody holds is closed


class _Window(asyncio.Protocol):
    """One who looks in. Makes no task of its own."""

    def __init__(self, lateness: "_Lateness") -> None:
        self._lateness = lateness
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        told: dict[str, object] = {
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "compiled": not sockets.__file__.endswith(".py"),
        }
        if b"look" in data:
            told["late"] = self._lateness.take()
        if b"objects" in data:
            gc.collect()
            told["objects"] = len(gc.get_objects())
        cast("asyncio.WriteTransport", self._transport).write(json.dumps(told).encode() + b"\n")


class _Lateness:
    """How late a timer was at worst."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._worst = 0.0
        self._due = loop.time() + _TICK_SECONDS
        self._seen = time.monotonic()
        loop.call_at(self._due, self._tick)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def _tick(self) -> None:
        now = self._loop.time()
        self._worst = max(self._worst, now - self._due)
        self._seen = time.monotonic()
        self._due = now + _TICK_SECONDS
        self._loop.call_at(self._due, self._tick)

    def _watch(self) -> None:
        """From a thread: have the log say where a loop is that does not come back for long."""
        while True:
            time.sleep(_LOOK_SECONDS)
            if time.monotonic() - self._seen > _LONG_SECONDS:
                print(f"The event loop is late by {time.monotonic() - self._seen:.2f} s:", file=sys.stderr)
                faulthandler.dump_traceback(all_threads=True)

    def take(self) -> float:
        worst, self._worst = self._worst, 0.0
        return worst


def _with_window(path: str, make: Callable[[], uvloop.Loop]) -> Callable[[], uvloop.Loop]:
    def made() -> uvloop.Loop:
        loop = make()
        lateness = _Lateness(loop)
        _kept.append(loop.run_until_complete(loop.create_unix_server(lambda: _Window(lateness), path)))
        return loop

    return made


if __name__ == "__main__":
    window, *arguments = sys.argv[1:]
    uvloop.new_event_loop = _with_window(window, uvloop.new_event_loop)
    sys.argv[1:] = arguments
    sys.exit(main())
