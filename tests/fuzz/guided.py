"""Fuzz one target with atheris, guided by the coverage of the room and of the target's own second reading.

Started by `tests.fuzz.__main__`, with the name of the target, that of a program that does the
same, and libFuzzer's arguments: libFuzzer ends the process.
"""

import importlib
import sys
from collections.abc import Callable

import atheris


def main(target: str, program: str, *arguments: str) -> None:
    """Fuzz until libFuzzer has enough, or a finding."""
    with atheris.instrument_imports(include=["proxy", "tests.fuzz"]):
        check: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.{target}").check
    atheris.Setup([program, *arguments], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
