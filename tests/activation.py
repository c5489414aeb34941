"""Sockets that a process is started with, as systemd starts it."""

import fcntl
import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final


_FIRST: Final = 3  # sd_listen_fds(3)


@contextmanager
def handing_over(
    *sockets: socket.socket, names: str | None = None, pid: str = "$$"
) -> Iterator[tuple[list[str], list[int]]]:
    """What to put before a command to have it get these sockets, and the descriptors to pass on to that.

    `pid` is for whom they are: the command itself, unless said otherwise.
    """
    told = f"LISTEN_PID={pid} LISTEN_FDS={len(sockets)}"
    if names is not None:
        told += f" LISTEN_FDNAMES={shlex.quote(names)}"
    beyond = _FIRST + len(sockets)  # so that none is in the place of another
    descriptors = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, beyond) for each in sockets]
    places = " ".join(f"{_FIRST + place}<&{descriptor}-" for place, descriptor in enumerate(descriptors))
    try:
        yield ["/bin/bash", "-c", f'{told} exec "$@" {places}', "bash"], descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
