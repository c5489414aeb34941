"""Runs the image's command in a container of it, as an engine would.

    run.py IMAGE ARGUMENT...

IMAGE is a file that tells what the image is; the arguments replace its own. The command is the first process of its own
namespace, its root is read-only, and it has the image's user and no right beside; the network is ours. Signals are
passed on to it, and its exit code is ours. It ends when we do.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec


# Names of the kernel's, from sched.h and prctl.h.
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
HOSTS: Final = "/etc/hosts"
PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

LIBC: Final = ctypes.CDLL(None, use_errno=True)


def ask(function: str, *arguments: int) -> None:
    """Ask the kernel, with all that prctl may look at."""
    if getattr(LIBC, function)(*map(ctypes.c_ulong, [*arguments, 0, 0, 0, 0][:5])) < 0:
        raise OSError(ctypes.get_errno(), f"{function}{arguments}: {os.strerror(ctypes.get_errno())}")


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)  # noqa: S603, S607 - our own words


def enclose(root: str, shared: str) -> None:
    """Make the root, in this namespace, what an engine makes of it; `shared` is at its own path there, too."""
    mount("--make-rprivate", "/")
    Path(f"{root}{shared}").mkdir(parents=True, exist_ok=True)
    Path(f"{root}{HOSTS}").touch()
    mount("--bind", root, root)
    for path in ("", shared, HOSTS):
        if path:
            mount("--bind", path, f"{root}{path}")
        mount("-o", "remount,bind,ro,nosuid,nodev", f"{root}{path}")
    mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", f"{root}/proc")


def become(user: int, group: int, *, last_capability: int) -> None:
    """Keep no right, nor a way to any."""
    for capability in range(last_capability + 1):
        ask("prctl", PR_CAPBSET_DROP, capability)
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    ask("prctl", PR_SET_NO_NEW_PRIVS, 1)
    ask("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    image = msgspec.json.decode(Path(sys.argv[1]).read_bytes())
    ask("unshare", CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID)
    first = os.fork()
    if first == 0:
        last_capability = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
        enclose(image["root"], image["shared"])
        os.chroot(image["root"])
        os.chdir("/")
        become(*image["user"], last_capability=last_capability)
        settings = {name: value for name, value in os.environ.items() if name.startswith("C8Y_")}
        command, environment = [*image["command"], *sys.argv[2:]], image["environment"] | settings
        os.environ["PATH"] = environment["PATH"]
        os.execvpe(command[0], command, environment)  # noqa: S606 - the image has no shell

    for each in PASSED_ON:
        signal.signal(each, lambda number, _: os.kill(first, number))
    _, status = os.waitpid(first, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
