"""Sockets to listen on that are no plain port: paths of our own, and what systemd hands over when it starts us."""

import contextlib
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final


_FIRST_DESCRIPTOR: Final = 3
"""Where descriptors that are handed over begin (sd_listen_fds(3))."""

_UNNAMED: Final = "unknown"
"""What systemd calls a socket whose unit gives it no name."""

_MODE: Final = 0o660
_BACKLOG: Final = 1024
_ALONE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.01


class PathTaken(OSError):
    """Something lives at the path of a socket already; the text says what, and what to do."""


@contextlib.contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """Listen at a path, for its owner and its group; it is gone at the end.

    What a process left behind that is no more is put out of the way. Raises PathTaken for anything else that is there,
    and OSError.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _alone_in(path.parent):
            if path.is_symlink() or path.exists():
                _clear(path)
            mask = os.umask(0o777 & ~_MODE)  # from its first moment nobody else can connect
            try:
                listening.bind(str(path))
            finally:
                os.umask(mask)
            made = path.stat()
            listening.listen(_BACKLOG)
        yield listening
    finally:
        listening.close()
        with contextlib.suppress(UnboundLocalError, OSError):
            if os.path.samestat(made, path.stat()):  # a successor may listen there by now
                path.unlink()


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Have others of us wait: two that start together would each take the socket of the other, on which nobody listens
    yet, for one that was left behind. Raises PathTaken where somebody does not let go.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + _ALONE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise PathTaken(f"another process keeps {directory} locked: choose another directory") from None
                time.sleep(_PAUSE_SECONDS)
            else:
                break
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Remove a socket on which nobody listens. Raises PathTaken."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise PathTaken(f"{path} is there already, and no socket: choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(0)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # its queue is full: somebody is there
            pass
    raise PathTaken(f"another process listens on {path}: end it, or choose another path")


def handed_over(environment: Mapping[str, str], pid: int, names: Iterable[str]) -> dict[str, socket.socket]:
    """The listening sockets that systemd opened for the process `pid`, by name; sd_listen_fds(3).

    One that has no name takes the first of `names`. Raises ValueError for others, and for what is no listening socket.
    """
    if environment.get("LISTEN_PID") != str(pid):
        return {}
    count = environment.get("LISTEN_FDS", "0")
    if not (count.isascii() and count.isdecimal()):
        raise ValueError("LISTEN_FDS: expected the number of sockets that are handed over, since LISTEN_PID is set")
    called = environment.get("LISTEN_FDNAMES", "").split(":")
    first, *_ = known = tuple(names)
    sockets: dict[str, socket.socket] = {}
    for place in range(int(count)):
        name = called[place] if place < len(called) and called[place] not in {"", _UNNAMED} else first
        descriptor = _FIRST_DESCRIPTOR + place
        if name not in known or name in sockets:
            raise ValueError(
                f"FileDescriptorName: expected each of {' and '.join(known)} at most once among the sockets that are "
                "handed over"
            )
        sockets[name] = _listening(name, descriptor)
    return sockets


def _listening(name: str, descriptor: int) -> socket.socket:
    """A socket by its descriptor. Raises ValueError."""
    with contextlib.suppress(OSError):
        found = socket.socket(fileno=descriptor)
        if found.type == socket.SOCK_STREAM and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.settimeout(0)
            return found
    raise ValueError(
        f"{name}: expected a stream socket that listens among those that are handed over (ListenStream, Accept=no)"
    )
