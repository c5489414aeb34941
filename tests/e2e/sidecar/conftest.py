"""Pods, and what must not be seen of them."""

from collections.abc import Iterator

import pytest

from tests.e2e.stage import Evidence


@pytest.fixture(autouse=True)
def evidence() -> Iterator[Evidence]:
    """No secret is in anything that left a sidecar; manifests leave nothing."""
    found = Evidence()
    yield found
    assert found.leaks() == []
