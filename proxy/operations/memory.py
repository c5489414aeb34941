"""The memory of this process, which holds keys."""

import ctypes
import resource
from typing import Final


_SET_DUMPABLE: Final = 4  # PR_SET_DUMPABLE of prctl(2)


def keep_memory_private() -> None:
    """Leave no core dump, and let no other process of the same user read the memory or the environment.

    A limit of 0 is not enough: Linux does not look at it where core dumps go to a program, as with systemd-coredump.
    Where there is no prctl, the limit is all there is. It lasts until another program is executed.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_SET_DUMPABLE, *[ctypes.c_ulong(0)] * 4)
