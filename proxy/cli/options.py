"""How the command line is read."""

import argparse
import re
from typing import Any, Final, NoReturn, TypeAlias


_WRONG_CHOICE: Final = re.compile(r"invalid choice: .*\(choose from (.*)\)", re.DOTALL)
_WITH_VALUE: Final = re.compile(r"ignored explicit argument .*", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """One that takes options by their whole names, and repeats nothing that was typed: it may be a secret."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        message = _WRONG_CHOICE.sub(r"expected one of \1", message)
        super().error(_WITH_VALUE.sub("takes no value", message))


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001 - it has no other name
"""Where commands are added."""
