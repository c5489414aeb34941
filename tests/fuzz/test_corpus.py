"""What was found once, or was made to be, is read in one way only."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import batches, frames, heads
from tests.fuzz.__main__ import KEPT, TARGETS


CHECKS: dict[str, Callable[[bytes], None]] = {
    "heads": heads.check,
    "frames": frames.check,
    "batches": batches.check,
}


def test_every_target_is_tried() -> None:
    assert set(CHECKS) == set(TARGETS) == {place.name for place in KEPT.iterdir()}


@pytest.mark.parametrize(
    ("target", "kept"),
    [(target, kept) for target in TARGETS for kept in sorted((KEPT / target).iterdir())],
    ids=lambda part: part if isinstance(part, str) else part.name[:40],
)
def test_kept_input_is_read_in_one_way(target: str, kept: Path) -> None:
    CHECKS[target](kept.read_bytes())
