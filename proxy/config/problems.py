"""What is wrong with a configuration, as it is told."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the key or variable, and what was expected."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


Told = tuple[Problem, *tuple[str, ...]]
"""A problem of keys that are seen together, with the further keys that it follows from."""


def told(problem: Problem, *keys: str) -> Told:
    """A problem with however many keys."""
    return (problem, *keys)


A_KEY: Final = "head -c 32 /dev/urandom | base64 > FILE"
"""How to make a key, as problems tell it."""
