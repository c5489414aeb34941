"""Files that change while they are used: read again when they did, and replaced as a whole or not at all.

1. What is made of files is looked at each time it is asked for; there is no watcher to race. A look costs a `stat` for
   each file.
2. What is broken keeps the last good value; it is logged and counted once per change. What could not be read for a
   reason that may pass (no descriptor left, say) is tried again at each look.
3. A file is written beside its place, flushed to the disk, and then put there: whoever reads, and whoever is killed at
   any point, finds the old one or the new one. Two who write at once wait for each other.
"""

import errno
import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Final, Generic, TypeVar


Value = TypeVar("Value")
Fingerprint = tuple[tuple[int, ...] | None, ...]

_READ_ATTEMPTS: Final = 3

log = logging.getLogger(__name__)


def fingerprint(*files: Path) -> Fingerprint:
    """What changes when one of the files does; None for one that cannot be looked at."""
    return tuple(map(_identity, files))


def _identity(file: Path) -> tuple[int, ...] | None:
    try:
        return identity_of(os.stat(file))  # noqa: PTH116 - a third of the time of Path's
    except OSError:
        return None


def identity_of(status: os.stat_result) -> tuple[int, ...]:
    """What tells a file, and a state of it, from others."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Reloaded(Generic[Value]):
    """What `read` makes of files, made again when one of them has changed.

    `read` raises ValueError for what is broken, with a text that quotes nothing, and OSError. `key` names the files in
    the log, as the configuration does; `on_load` is told of every attempt, whether it went well. `last` is what others
    amounted to whose place these take: it serves until these are good.
    """

    def __init__(
        self,
        files: Sequence[Path],
        read: Callable[[], Value],
        *,
        key: str,
        on_load: Callable[[bool], None],
        last: Value | None = None,
    ) -> None:
        self.files: Final = tuple(files)
        self._read = read
        self._key = key
        self._on_load = on_load
        self._seen: Fingerprint | None = None
        self._value: Value | None = last
        self._complaint = ""

    def current(self) -> Value | None:
        """What the files amount to now; None while they were never good."""
        seen = fingerprint(*self.files)
        if seen != self._seen:
            self._look(seen)
        return self._value

    def _look(self, seen: Fingerprint) -> None:
        for _ in range(_READ_ATTEMPTS):
            self._seen = seen
            try:
                value = self._read()
            except (OSError, ValueError) as problem:
                if (now := fingerprint(*self.files)) == seen:
                    self._complain(problem)
                    return
            else:
                if (now := fingerprint(*self.files)) == seen:
                    self._value = value
                    self._complaint = ""
                    self._on_load(True)  # noqa: FBT003 - the callback's one argument
                    return
            seen = now
        self._complain(OSError(errno.EAGAIN, "They kept changing while they were read"))

    def _complain(self, problem: OSError | ValueError) -> None:
        may_pass = isinstance(problem, OSError)
        if may_pass:
            self._seen = None
        text = f"cannot be read: {problem.strerror}" if isinstance(problem, OSError) else str(problem)
        if may_pass and text == self._complaint:
            return
        self._complaint = text
        remedy = "There is none until it is mended" if self._value is None else "The last good one stays"
        log.error("%s: %s. %s", self._key, text, remedy)
        self._on_load(False)  # noqa: FBT003 - see above


def content(file: Path, *, limit: int) -> bytes:
    """What a file holds. Raises OSError, also for what is no file, or longer than that many bytes."""
    opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hold us up
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(errno.EINVAL, "Not a file", str(file))
        with open(opened, "rb", closefd=False) as reading:
            read = reading.read(limit + 1)
    finally:
        os.close(opened)
    if len(read) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(file))
    return read


@contextmanager
def locked(file: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A file that nobody else replaces meanwhile, opened for reading, and where it really is. Raises OSError."""
    opened, target = _open_locked(file)
    with opened:
        yield opened, target


def _open_locked(file: Path) -> tuple[IO[bytes], Path]:
    while True:
        target = file.resolve(strict=True)
        if not target.is_file():  # a device must not be replaced
            raise OSError(errno.EINVAL, "Not a file")
        opened = target.open("rb")
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(opened.fileno()), target.stat()):
                return opened, target
        except BaseException:
            opened.close()
            raise
        opened.close()  # it was replaced while we waited for it


def replace(target: Path, content: bytes, *, like: int, judge: Callable[[Path], None] = lambda _: None) -> None:
    """Put a file with this content in the place of another one, with the mode and owner of the open file `like`.

    `judge` sees it before it is in place, and may raise to have nothing changed. Raises OSError.
    """
    status = os.fstat(like)
    with _beside(target, content, mode=status.st_mode & 0o7777, owner=(status.st_uid, status.st_gid)) as fresh:
        judge(fresh)
        fresh.replace(target)
    _flush_directory(target.parent)


def create(target: Path, content: bytes) -> None:
    """Make a file that only its owner may read. Raises OSError, FileExistsError where there is one already."""
    with _beside(target, content, mode=0o600) as fresh:
        target.hardlink_to(fresh)
    _flush_directory(target.parent)


def put_aside(target: Path) -> Path:
    """Give a file another name beside its place, which nothing has yet; returns that. Raises OSError."""
    for number in count(1):
        aside = target.with_name(f"{target.name}.aside-{number}")
        try:
            aside.hardlink_to(target)
        except FileExistsError:
            continue
        target.unlink()
        _flush_directory(target.parent)
        return aside
    raise AssertionError


@contextmanager
def _beside(target: Path, content: bytes, *, mode: int, owner: tuple[int, int] | None = None) -> Iterator[Path]:
    """A file beside another one, on the disk with all its content; gone afterwards, unless it was moved."""
    name = ""
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as fresh:
            name = fresh.name
            fresh.write(content)
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(fresh.fileno(), *owner)
            os.fchmod(fresh.fileno(), mode)
            fresh.flush()
            os.fsync(fresh.fileno())
        yield Path(name)
    finally:
        if name:
            with suppress(OSError):
                Path(name).unlink()


def _flush_directory(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
