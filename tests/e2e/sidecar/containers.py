"""Processes that find what a container finds: a root that they cannot write to, its user, and no more rights.

The files are this machine's, and those of our environment, where an image would have its own; whoever starts these has
to be root, as a container runtime is.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from ctypes import CDLL, get_errno
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.e2e.programs import Program, running
from tests.test_deploy import ROOT


POD_ADDRESS: Final = "10.244.0.7"
"""Where a pod is reached from outside; its containers also have loopback."""

_IP: Final = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "ip"
_CLONE_NEWNET: Final = 0x40000000
_SYSTEM: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/usr", "/opt", "/etc", "/proc", "/dev")
_IMAGE: Final = "/image"
_SEARCHED: Final = f"{_IMAGE}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_START: Final = """
root=$1; shift
mount -t tmpfs -o mode=755 container "$root"
while [ "$1" != -- ]; do
    if [ -L "$1" ]; then
        cp -P "$1" "$root$2"
    else
        mkdir -p "$root$2"
        mount --rbind "$1" "$root$2"
        mount -o "remount,bind,$3" "$root$2"
    fi
    shift 3
done
shift
mount -o remount,ro "$root"
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory of this machine, and where a container finds it."""

    source: Path
    target: str
    is_read_only: bool = True


@dataclass(frozen=True, slots=True)
class User:
    """Who a process is. `group_of_files` is the one that it is in besides."""

    uid: int
    gid: int
    group_of_files: int | None = None

    def becoming(self) -> list[str]:
        """What starts a command as this user, who cannot become anybody else."""
        groups = "--clear-groups" if self.group_of_files is None else f"--groups={self.group_of_files}"
        ids = [f"--reuid={self.uid}", f"--regid={self.gid}", groups]
        return ["setpriv", *ids, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]


@contextmanager
def pod_network() -> Iterator[None]:
    """What this thread and its children open meanwhile is in a network that nobody else is in, with a pod's address."""
    libc = CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise PermissionError(get_errno(), "Pods have a network of their own: run these tests as root")
        try:
            for arguments in ("link set lo up", f"address add {POD_ADDRESS}/32 dev lo"):
                subprocess.run([_IP, *arguments.split()], check=True, timeout=10)  # noqa: S603 - our own words
            yield
        finally:
            assert libc.setns(before.fileno(), _CLONE_NEWNET) == 0


@asynccontextmanager
async def contained(
    root: Path,
    command: Sequence[str],
    *,
    user: User,
    environment: Mapping[str, str],
    mounts: Sequence[Mount],
    image: Path | None = None,
) -> AsyncIterator[Program]:
    """Start a command within an empty directory that becomes its root. `image` has programs of its own."""
    found = [*_files(), *([Mount(image, _IMAGE)] if image else [])]
    arguments = [
        text
        for mount in (*found, *mounts)
        for text in (str(mount.source), mount.target, "ro" if mount.is_read_only else "rw")
    ]
    script = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", _START, "container", str(root)]
    given = {"PATH": _SEARCHED, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | dict(environment)
    async with running(*script, *arguments, "--", *user.becoming(), *command, environment=given) as program:
        yield program


def _files() -> list[Mount]:
    """The system, Python, our environment and our sources, each where it is; less what lies in another of these."""
    system = {Path(path) for path in _SYSTEM if os.path.lexists(path)}
    ours = {ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    ours = {place for place in ours if not {place, *place.parents} & (system | ours - {place})}
    return [Mount(place, str(place)) for place in sorted(system | ours)]
