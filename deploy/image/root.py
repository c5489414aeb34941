"""Gathers what the image holds of its base: the interpreter, what that and the environment load, and who made it.

    python3 root.py ENVIRONMENT DIRECTORY

It runs in a stage of the Dockerfile, with the interpreter of the base, and fills DIRECTORY. Nothing comes along but
what is named or loaded: no shell, no package manager, no program with setuid. The certificate authorities are left to
the Dockerfile, which copies them from the base itself: those that a build sees may be its machine's.
"""

import compileall
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final


# Parts of the standard library that nothing here runs, some of which bring libraries with them; and bytecode, which is
# made anew.
LEFT_OUT: Final = shutil.ignore_patterns(
    *("__pycache__", "config-*", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages"),
    *("test", "tests", "tkinter", "turtledemo", "xxlimited*.so"),
    *("_curses*.so", "_dbm*.so", "_gdbm*.so", "_test*.so", "_tkinter*.so", "readline*.so"),
)
AS_THEY_ARE: Final = (
    *("/etc/debian_version", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/nsswitch.conf", "/etc/os-release"),
    *("/usr/lib/ssl/cert.pem", "/usr/lib/ssl/certs", "/usr/lib/ssl/openssl.cnf"),
)
NOT_FOLLOWED: Final = {Path("/usr/lib/ssl/cert.pem"), Path("/usr/lib/ssl/certs")}
EMPTY: Final = ("dev", "proc", "run", "sys", "tmp")
ACCOUNTS: Final = {
    "passwd": "root:x:0:0::/:/nonexistent\nc8y-realtime-proxy:x:65532:65532::/:/nonexistent\n",
    "group": "root:x:0:\nc8y-realtime-proxy:x:65532:\n",
}


class Root:
    """The root to be; `came` are the paths of the base that are in it, with no link on the way to them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.came: set[Path] = set()

    def take(self, path: Path) -> None:
        """Take a file, a directory without what is left out, or a link with what it leads to."""
        path = real(path)
        if path in self.came:
            return
        self.came.add(path)
        there = self.directory / path.relative_to("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            there.symlink_to(path.readlink())
            if path not in NOT_FOLLOWED:
                self.take(path.parent / path.readlink())
        elif path.is_dir():
            names = sorted(each.name for each in path.iterdir())
            for name in sorted({*names} - LEFT_OUT(str(path), names)):
                self.take(path / name)
        else:
            shutil.copy2(path, there)
            if not is_machine_code(path):
                there.chmod(0o644)


def real(path: Path) -> Path:
    """The path without a link on the way; it may be one itself."""
    return path.parent.resolve() / path.name


def is_machine_code(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"


def files_among(paths: Iterable[Path]) -> list[Path]:
    return [path for path in sorted(paths) if path.is_file() and not path.is_symlink()]


def loaded_by(files: Iterable[Path]) -> Iterator[Path]:
    """The shared libraries, and their loader, that programs and modules among these files name and the base has."""
    for file in filter(is_machine_code, files):
        told = subprocess.run(["ldd", file], stdout=subprocess.PIPE, text=True, check=False).stdout  # noqa: S603, S607 - the base's own
        yield from (Path(path) for path in re.findall(r"^\s*(?:\S+ => )?(/\S+) \(0x", told, re.MULTILINE))


def packages_of(paths: set[Path]) -> set[str]:
    """Debian's packages that own these."""
    packages = set()
    for listing in Path("/var/lib/dpkg/info").glob("*.list"):
        owned = {real(Path(line)) for line in listing.read_text(encoding="utf-8").splitlines()}
        if any(path in paths and not path.is_dir() for path in owned):
            packages.add(listing.stem.partition(":")[0])
    return packages


def describe(root: Root) -> None:
    """Put dpkg's words about the packages that something came of where scanners look, and their licences beside."""
    packages = {"ca-certificates", *packages_of(root.came)}
    known = Path("/var/lib/dpkg/status").read_text(encoding="utf-8").strip().split("\n\n")
    stanzas = [each for each in known if each.partition("\n")[0].removeprefix("Package: ") in packages]
    database = root.directory / "var/lib/dpkg"
    database.mkdir(parents=True)
    (database / "status").write_text("\n\n".join([*stanzas, ""]), encoding="utf-8")
    for licence in (Path("/usr/share/doc", name, "copyright") for name in sorted(packages)):
        there = root.directory / licence.relative_to("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(licence, there)


def main(environment: Path, directory: Path) -> None:
    directory.mkdir(parents=True)
    root = Root(directory)
    for name in EMPTY:
        (directory / name).mkdir()
    # Where /lib and its like are links into /usr, paths through them stay good.
    for link in (path for path in Path("/").glob("lib*") if path.is_symlink()):
        (directory / link.name).symlink_to(link.readlink())

    library, interpreter = Path(sysconfig.get_path("stdlib")), (environment / "bin/python3").readlink()
    root.take(library)
    root.take(interpreter)
    for file in loaded_by([*files_among(root.came), *files_among(environment.rglob("*"))]):
        root.take(file)
    for path in map(Path, AS_THEY_ARE):
        if path.is_symlink() or path.exists():
            root.take(path)
    for name, text in ACCOUNTS.items():
        (directory / "etc" / name).write_text(text, encoding="utf-8")
    describe(root)

    compiled = compileall.compile_dir(
        directory / library.relative_to("/"),
        quiet=1,
        stripdir=directory,
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        sys.exit("root.py: the standard library of the base does not compile")
    subprocess.run(["ldconfig", "-r", directory], check=True)  # noqa: S603, S607 - the base's own


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
