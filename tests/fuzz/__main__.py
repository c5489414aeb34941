"""`make fuzz`: every target for a while, from the kept corpus on.

What is found goes to `build/fuzz/`, which may be lost; `--keep` takes from there into the kept corpus what reaches more
of the code than that does.
"""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final


TARGETS: Final = ("heads", "frames", "batches")
KEPT: Final = Path(__file__).parent / "corpus"
FOUND: Final = Path("build/fuzz")

_LONGEST: Final = {"heads": 1024, "frames": 320, "batches": 1024}
"""Bytes of an input: all that a room tells apart fits, but for a whole frame of 64 KiB."""


def main() -> int:
    """Fuzz what was asked for; returns the exit code, which tells whether there was a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="how long each target is fuzzed (60)")
    parser.add_argument("--keep", action="store_true", help="fuzz nothing: take what was found into the kept corpus")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    work = _keep if asked.keep else lambda target: _fuzz(target, asked.seconds)
    return max([work(target) for target in asked.targets or TARGETS])


def _fuzz(target: str, seconds: int) -> int:
    place = FOUND / target
    inputs = place / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    words = place / "words"
    words.write_text(_dictionary(importlib.import_module(f"tests.fuzz.{target}").WORDS), encoding="ascii")
    ended, log = _guided(
        target, inputs, KEPT / target, f"-max_total_time={seconds}", f"-dict={words}", f"-artifact_prefix={place}/"
    )
    (place / "log").write_text(log, encoding="utf-8")
    tried = re.search(r"^Done (\d+) runs", log, flags=re.MULTILINE)
    if ended == 0 and tried is not None:
        print(f"{target}: {int(tried[1]):,} inputs tried in {seconds} s, no finding")
        return 0
    written = re.search(r"Test unit written to (\S+)", log)
    print(re.sub(r"(?s).*(?= === Uncaught)", "", log))
    print(f"{target}: a finding; all that was said is in {place / 'log'}")
    print(f"Copy {written[1] if written else 'the input'} to {KEPT / target}/ and `make test` shows it.")
    return 1


def _keep(target: str) -> int:
    kept = KEPT / target
    before = len(list(kept.iterdir()))
    ended, log = _guided(target, kept, FOUND / target / "inputs", "-merge=1")
    print(f"{target}: {before} inputs were kept, now {len(list(kept.iterdir()))} are" if ended == 0 else log)
    return ended


def _guided(target: str, *arguments: str | Path) -> tuple[int, str]:
    """Have libFuzzer work on a target, in a process of its own; returns its exit code and what it says.

    It starts itself anew, by the name that it was started by, to compare inputs: so it gets one that can be started.
    """
    bounds = (f"-max_len={_LONGEST[target]}", "-timeout=10", "-rss_limit_mb=1024")
    again = FOUND / target / "again"
    again.parent.mkdir(parents=True, exist_ok=True)
    again.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.fuzz.guided {target} "$0" "$@"\n', encoding="utf-8"
    )
    again.chmod(0o755)
    command = [str(again), *bounds, *map(str, arguments)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # noqa: S603 - ours
    return ended.returncode, ended.stdout.decode(errors="replace")


def _dictionary(words: tuple[bytes, ...]) -> str:
    """Words that a target knows, for libFuzzer to play with."""
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)


if __name__ == "__main__":
    sys.exit(main())
