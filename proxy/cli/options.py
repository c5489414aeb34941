"""How the command line is read."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias


_WRONG_CHOICE: Final = re.compile(r"invalid choice: .*\(choose from (.*)\)", re.DOTALL)
_WITH_VALUE: Final = re.compile(r"ignored explicit argument .*", re.DOTALL)
_CONFIG: Final = "C8Y_REALTIME_PROXY_CONFIG"


class Parser(argparse.ArgumentParser):
    """One that takes options by their whole names, and repeats nothing that was typed: it may be a secret."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        message = _WRONG_CHOICE.sub(r"expected one of \1", message)
        super().error(_WITH_VALUE.sub("takes no value", message))

    def parse_known(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Leaves the process where there is an argument that is none of ours: its name is told, but no value."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            names = [word.partition("=")[0] for word in unknown if word.startswith("--")]
            self.error(" ".join(["unrecognized arguments:", *names]) if names else "unrecognized arguments")
        return options


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001 - it has no other name
"""Where commands are added."""


def add_config(parser: argparse.ArgumentParser, *, without: str | None = "the environment alone will do, too") -> None:
    """Let a command be told its configuration file; `without` says what it does when there is none, None that it needs
    one. The environment can name it for all commands.
    """
    file = os.environ.get(_CONFIG)
    told = f"{without}; " if without else ""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.toml",
        default=Path(file) if file else None,
        required=without is None and not file,
        help=f"{told}{_CONFIG} can say it instead",
    )
