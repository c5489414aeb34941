"""Takes the guards of `guards.toml` away one by one, and expects the tests to notice.

For each guard, its snippet is replaced in a copy of the tree (never in this one), and the tests that it names are run
there: each must fail, while `test_control.py` shows that the proxy still serves. So a case that would pass whatever the
proxy does is found, and so is a guard that nothing watches. It also is the pytest plugin that these runs report by.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

import msgspec
import pytest


ROOT: Final = Path(__file__).parent.parent.parent
ATTACKS: Final = "tests/attacks"
TABLE: Final = ROOT / ATTACKS / "guards.toml"
CONTROL: Final = f"{ATTACKS}/test_control.py::test_a_client_without_keys_is_served"

_COPIED: Final = ("proxy", "tests", "config", "docs", "deploy", "requirements", "pyproject.toml", "README.md")
_NOT_COPIED: Final = shutil.ignore_patterns("__pycache__", "node_modules", ".*", "e2e", "bench")
_RESULTS: Final = "results.json"
_SECONDS: Final = 120  # for one run of pytest, which takes two or three
_TEST_SECONDS: Final = 20
_SOME_FAILED: Final = 1  # pytest's exit code


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard: where it is, what to put in its place, and what must turn red then.

    `stands_for` are the statements of the README, and the laws of the house, that it keeps.
    """

    name: str
    stands_for: tuple[str, ...]
    file: str
    snippet: str
    replacement: str
    red: tuple[str, ...]

    def disable(self, tree: Path) -> None:
        """Take it away in a copy of the tree."""
        file = tree / self.file
        file.write_text(file.read_text(encoding="utf-8").replace(self.snippet, self.replacement), encoding="utf-8")


def guards() -> list[Guard]:
    """The rows of the table."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))["guard"]
    return [Guard(**row | {"stands_for": tuple(row["stands_for"]), "red": tuple(row["red"])}) for row in rows]


@cache
def functions(file: Path) -> list[str]:
    """The tests of a file, by name; those of a class behind its name."""
    names = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        inner = [(f"{node.name}::", each) for each in node.body] if isinstance(node, ast.ClassDef) else [("", node)]
        names += [
            prefix + each.name
            for prefix, each in inner
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test_")
        ]
    return names


def cases() -> list[str]:
    """Every case of this directory, as `path::name`."""
    return [
        f"{ATTACKS}/{file.name}::{name}"
        for file in sorted((ROOT / ATTACKS).glob("test_*.py"))
        for name in functions(file)
        if f"{ATTACKS}/{file.name}::{name}" != CONTROL
    ]


def is_there(test: str) -> bool:
    """Whether there is a test of that name."""
    path, _, name = test.partition("::")
    return (ROOT / path).is_file() and name in functions(ROOT / path)


def problems(table: Sequence[Guard]) -> Iterator[str]:
    """What is wrong with the table itself."""
    for guard in table:
        found = (ROOT / guard.file).read_text(encoding="utf-8").count(guard.snippet)
        if found != 1:
            yield f"{guard.name}: its snippet is found {found} times in {guard.file}, not once"
        for test in guard.red:
            if not is_there(test):
                yield f"{guard.name}: there is no test {test}"
    for name in {guard.name for guard in table}:
        if sum(guard.name == name for guard in table) > 1:
            yield f"{name}: two guards have this name"
    watched = {test for guard in table for test in guard.red}
    for case in cases():
        if case not in watched:
            yield f"{case} is turned red by no guard"


# What a run tells -----------------------------------------------------------------------------------------------------

_told: dict[str, str] = {}
"""Of each test: `green`, `red` once one of its cases failed, or `broken` where it could not even begin."""


def _function(nodeid: str) -> str:
    return nodeid.partition("[")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """One red case of a test is enough: the others need not be called."""
    return True if _told.get(_function(pyfuncitem.nodeid)) == "red" else None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    function = _function(report.nodeid)
    if report.failed and _told.get(function) != "red":
        _told[function] = "broken" if report.when == "setup" else "red"
    else:
        _told.setdefault(function, "green")


def pytest_sessionfinish(session: pytest.Session) -> None:
    (session.config.rootpath / _RESULTS).write_bytes(msgspec.json.encode(_told))


# The runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of pytest told: its exit code, a verdict for each test, its last words and its seconds."""

    code: int
    verdicts: dict[str, str]
    words: str
    seconds: float


def copy(source: Path, tree: Path) -> None:
    """Copy what tests need of a tree."""
    for name in _COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, tree / name, ignore=_NOT_COPIED)
        else:
            shutil.copy2(source / name, tree / name)


def run(source: Path, tests: Collection[str], guard: Guard | None = None) -> Run:
    """Run tests in a copy of a tree, without that guard."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="guards-") as directory:
        tree = Path(directory)
        copy(source, tree)
        if guard is not None:
            guard.disable(tree)
        # The directory of `-m` comes first on sys.path, so the copy is what is tested.
        command = [sys.executable, "-m", "pytest", "-p", "tests.attacks.guards", "-p", "no:cacheprovider"]
        command += ["-p", "no:randomly", "-q", "--tb=line", f"--timeout={_TEST_SECONDS}", *sorted(tests)]
        try:
            done = subprocess.run(  # noqa: S603 - our own words
                command,
                cwd=tree,
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Run(-1, {}, f"it took longer than {_SECONDS} s", _SECONDS)
        results = tree / _RESULTS
        verdicts = msgspec.json.decode(results.read_bytes(), type=dict[str, str]) if results.exists() else {}
    return Run(done.returncode, verdicts, (done.stdout + done.stderr)[-2000:], time.monotonic() - started)


def judged(guard: Guard, told: Run) -> list[str]:
    """What is wrong with how a guard's removal went; nothing where all named tests noticed it, and only that."""
    if told.verdicts.get(CONTROL) != "green":
        return [f"it breaks the proxy, not only the guard (exit code {told.code})\n{told.words}"]
    wrong = [
        f"{test} {'does not notice' if told.verdicts.get(test) == 'green' else 'could not be run'}"
        for test in guard.red
        if told.verdicts.get(test) != "red"
    ]
    return wrong or ([] if told.code == _SOME_FAILED else [f"pytest ended with {told.code}\n{told.words}"])


def remove(source: Path, guard: Guard) -> list[str]:
    """Take one guard away, tell what came of it, and return what is wrong."""
    told = run(source, [*guard.red, CONTROL], guard)
    wrong = judged(guard, told)
    told_of = " ".join(guard.stands_for)
    print(f"{'WRONG' if wrong else 'red  '} {told.seconds:5.1f} s  {told_of:<14} {guard.name}", flush=True)
    return [f"{guard.name}: {problem}" for problem in wrong]


def main() -> int:
    """Returns 0 when every removal was noticed, and else 1."""
    parser = argparse.ArgumentParser(prog="guards", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="TEXT", default="", help="guards with this in their name, statement or test")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    options = parser.parse_args()
    table = guards()
    wrong = list(problems(table))
    chosen = [
        guard for guard in table if options.only in {*guard.stands_for} or options.only in f"{guard.name} {guard.red}"
    ]
    if wrong or not chosen:
        print("\n".join(wrong or ["there is no such guard"]))
        return 1
    # The tree as it is now: somebody may go on working in it.
    with tempfile.TemporaryDirectory(prefix="guards-") as directory, ThreadPoolExecutor(options.jobs) as pool:
        source = Path(directory)
        copy(ROOT, source)
        named = sorted({CONTROL, *(test for guard in chosen for test in guard.red)})
        shares = [named[share :: options.jobs] for share in range(min(options.jobs, len(named)))]
        for told in pool.map(partial(run, source), shares):
            if told.code:
                print(f"There are red tests with every guard in its place\n{told.words}")
                return 1
        print(f"{len(named)} tests are green; now without {len(chosen)} guards, one by one", flush=True)
        wrong = [problem for found in pool.map(partial(remove, source), chosen) for problem in found]
    print("\n".join([*wrong, f"{len(wrong)} problems" if wrong else "every removal was noticed"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
