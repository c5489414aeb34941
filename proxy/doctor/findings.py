"""What a step found."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal


Step = Literal["configuration", "DNS", "TCP", "TLS", "clock", "shape", "login", "upgrade", "handshake", "connect"]

OF_UPSTREAM: Final[tuple[Step, ...]] = ("DNS", "TCP", "TLS", "clock")
"""The steps on the way to upstream, each of which needs those before it."""

OF_A_CREDENTIAL: Final[tuple[Step, ...]] = ("shape", "login", "upgrade", "handshake", "connect")
"""The steps of one credential, likewise."""


class Verdict(StrEnum):
    """How a step ended."""

    OK = "ok"
    WARNING = "warning"
    """It went well, and yet somebody should know."""
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a step found, in a sentence, and what to change where it is not well. `credential` is the name of the one
    that it is about, empty where it is the same for all.
    """

    step: Step
    verdict: Verdict
    sentence: str
    remedy: str = ""
    credential: str = ""

    def __str__(self) -> str:
        return f"{self.sentence}. {self.remedy}" if self.remedy else self.sentence

    @property
    def subject(self) -> str:
        """The step, with the credential that it is about."""
        return f"{self.credential}: {self.step}" if self.credential else self.step


Tell = Callable[[Finding], None]
"""Is told of each finding as soon as there is one."""


def needs(step: Step, other: Step, credential: str = "") -> Finding:
    """A step that was left out because of another one."""
    return Finding(step, Verdict.SKIPPED, f"It needs {other} first", credential=credential)


def listed(words: list[str]) -> str:
    """Words as people list them."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
