"""What is known of a run, and by what it is judged."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tests.soak.watching import Sample


LATE_SECONDS: Final = {"probe": 1.0, "late": 2.0}
"""How late an answer to `/livez`, and an event loop, may be."""

MEMORY_SLOPE: Final = 1.0
"""MiB a cycle that a proxy may grow by, in the later half of a run."""

OBJECTS_SLOPE: Final = 500.0
"""Live objects a cycle."""

TRANSPORTS: Final = ("websocket", "long-polling")


class Settled(msgspec.Struct):
    """What a proxy holds while nobody is there."""

    at: float
    descriptors: int
    tasks: int
    objects: int
    memory: float


class Happened(msgspec.Struct):
    """One fault that was. `recovered` is in seconds from its end on; None where all was not well in time. `noticed`
    says how often clients of each kind failed meanwhile.
    """

    cycle: int
    name: str
    began: float
    mended: float
    recovered: float | None
    raised: dict[str, float]
    noticed: dict[str, int]
    problems: list[str]


class Handshakes(msgspec.Struct):
    """Of one transport. By clients: `sent`, `answered`, and `welcomed` with success; by the metrics: `counted` in all,
    and `accepted`.
    """

    sent: float = 0
    counted: float = 0
    answered: float = 0
    accepted: float = 0
    welcomed: float = 0

    def problems(self, transport: str) -> list[str]:
        """What does not add up. Some were never read, since the connection broke before; some answers never came."""
        adds_up = self.answered <= self.counted <= self.sent and self.welcomed <= self.accepted
        return [] if adds_up else [f"{transport} handshakes do not add up: {self}"]


class Run(msgspec.Struct):
    """All that is known of a run."""

    command: str
    seed: int
    seconds: float
    cycles: int
    size: float
    is_compiled: bool
    is_root: bool
    happened: list[Happened]
    settled: dict[str, list[Settled]]
    problems: list[str]
    handshakes: dict[str, Handshakes]
    lies: dict[str, int]
    forgotten: list[float]
    samples: dict[str, list[Sample]]
    exits: dict[str, int]
    waited: float | None = None
    """For which part of the time something on the machine waited for a core; None where the kernel does not say."""


def failures(counts: Mapping[str, int]) -> dict[str, int]:
    """How often lives of each kind of client have failed, by what a population told."""
    failed: dict[str, int] = {}
    for name, count in counts.items():
        kind, colon, _ = name.partition(": ")
        if colon and not kind.startswith("sign-in"):
            failed[kind] = failed.get(kind, 0) + count
    return failed


def growth(settled: Sequence[Settled], what: str) -> float | None:
    """By how much something grows from cycle to cycle, once it is warm; None where there were too few."""
    later = [float(getattr(each, what)) for each in settled[len(settled) // 2 :]]
    return slope(later) if len(later) > 2 else None


def slope(values: Sequence[float]) -> float:
    """By how much each is more than the one before, by least squares."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    above = sum((n - middle) * (value - mean) for n, value in enumerate(values))
    return above / sum((n - middle) ** 2 for n in range(len(values)))
