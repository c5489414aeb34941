"""Kills writers of sealed files before each of their system calls, one after the other, and tells what was left.

Run as a program with a directory to work in: `pytest` has threads, and a process with threads should not fork.
"""

import os
import shutil
import signal
import sys
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from proxy.credentials.sealing import KeyFile
from proxy.credentials.vault import SealedFile


CANARY: Final = "canary-of-a-killed-writer"
CHANGED: Final = datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)

_ROOMS: Final = {"posix", "fcntl", "_io"}
"""Where Python keeps what may be a system call."""


@dataclass
class Aftermath:
    """What was there after a writer was killed: the values, and how many files beside the vault."""

    killed: bool
    values: dict[str, str]
    left: int
    showed: bool
    then: dict[str, str]


def add(vault: SealedFile) -> None:
    vault.change(lambda opened: opened.put("new", {"token": CANARY}, CHANGED))


def replace(vault: SealedFile) -> None:
    vault.change(lambda opened: opened.put("old", {"token": f"{CANARY}-2"}, CHANGED))


def remove(vault: SealedFile) -> None:
    vault.change(lambda opened: opened.without("old"))


def rotate(vault: SealedFile) -> None:
    vault.rotate()


WAYS: Final[dict[str, Callable[[SealedFile], None]]] = {
    "create": add,
    "add": add,
    "replace": replace,
    "remove": remove,
    "rotate": rotate,
}


def values_in(vault: SealedFile) -> dict[str, str]:
    if not vault.path.exists():
        return {}
    opened = vault.open()
    return {entry.name: opened.values(entry.name)["token"] for entry in opened.entries}


def kill_before(call: int) -> None:
    """End this process before its next system call but so many."""
    left = call

    def on_event(_: FrameType, event: str, called: Any) -> None:
        nonlocal left
        if event != "c_call":
            return
        room = getattr(called, "__module__", None) or type(getattr(called, "__self__", None)).__module__
        if room in _ROOMS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(on_event)


def killed(directory: Path, way: str, call: int) -> Aftermath:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    keys = directory / "keys"
    first, second = (b64encode(os.urandom(32)).decode() for _ in range(2))
    keys.write_text(f"{first}\n")
    vault = SealedFile(directory / "vault.json", KeyFile(keys))
    if way != "create":
        vault.change(lambda opened: opened.put("old", {"token": CANARY}, CHANGED))
    keys.write_text(f"{second}\n{first}\n")
    child = os.fork()
    if child == 0:
        kill_before(call)
        WAYS[way](vault)
        sys.setprofile(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    values = values_in(vault)
    left = [file for file in directory.iterdir() if file not in {keys, vault.path}]
    showed = any(CANARY.encode() in file.read_bytes() for file in directory.iterdir())
    vault.change(lambda opened: opened.put("next", {"token": CANARY}, CHANGED))
    return Aftermath(os.WIFSIGNALED(status), values, len(left), showed, values_in(vault))


def main() -> None:
    os.fsync = os.fstat  # type: ignore[assignment]  # a call still, and no power fails here: the disk need not be waited for
    told: dict[str, list[Aftermath]] = {}
    for way in WAYS:
        told[way] = []
        while not told[way] or told[way][-1].killed:
            told[way].append(killed(Path(sys.argv[1]) / way, way, len(told[way])))
    sys.stdout.buffer.write(msgspec.json.encode(told))


if __name__ == "__main__":
    main()
