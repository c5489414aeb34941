"""The memory of a process that serves: no core dump, and closed to others."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
# 3 is PR_GET_DUMPABLE; where there is no prctl, there is nothing to ask.
ASKED = (
    "import ctypes; asked = getattr(ctypes.CDLL(None), 'prctl', lambda _: 0)(3); "
    "print(asked, resource.getrlimit(resource.RLIMIT_CORE))"
)


def child(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that may leave core dumps, in a directory of its own."""

    def allow_dumps() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))

    return subprocess.run(  # noqa: S603 - a program of this test
        [sys.executable, "-c", f"import os, resource, sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=directory,
        preexec_fn=allow_dumps,
    )


KEPT = "from proxy.operations.memory import keep_memory_private; keep_memory_private()"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(f"{KEPT}\n{ASKED}", id="by itself"),
        pytest.param(
            f"from proxy.cli import commands as cli\nasync def serve(stop):\n    {ASKED}\nsys.exit(cli._serve(serve))",
            id="while it serves",
        ),
    ],
)
def test_process_is_not_dumpable(code: str, tmp_path: Path) -> None:
    asked = child(code, tmp_path)
    assert asked.stdout == "0 (0, 0)\n", asked.stderr


def test_process_that_aborts_leaves_no_core(tmp_path: Path) -> None:
    aborted = child(f"{KEPT}\nos.abort()", tmp_path)
    assert aborted.returncode == -signal.SIGABRT
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_prctl_the_limit_is_all_there_is(tmp_path: Path) -> None:
    without = "import ctypes; ctypes.CDLL = lambda _: object()"
    asked = child(f"{without}\n{KEPT}\nprint(resource.getrlimit(resource.RLIMIT_CORE))", tmp_path)
    assert asked.stdout == "(0, 0)\n", asked.stderr
