"""Both ways through the front door, and the canary that no client may ever see."""

from collections.abc import Iterator

import pytest

from tests.attacks.ways import WAYS, Ask, came_down, holds_canary


@pytest.fixture(params=list(WAYS))
def ask(request: pytest.FixtureRequest) -> Ask:
    """One of the two ways."""
    return WAYS[request.param]


@pytest.fixture(autouse=True)
def no_canary_comes_down() -> Iterator[None]:
    """No byte that any client was told holds a stored value, plain or encoded."""
    came_down.clear()
    yield
    assert not holds_canary(b"".join(came_down))
