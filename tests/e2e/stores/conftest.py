"""Redis, for all tests or for one; and what must not be seen of it."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.frontdoor.redis import RedisServer, running_redis


def a_password() -> str:
    return f"canary-{secrets.token_hex(16)}"


@pytest.fixture(autouse=True)
def evidence(clean_log: list[str]) -> list[str]:
    """What must not be in the log; here this takes the place of what a proxy leaves."""
    clean_log.append("canary")
    return clean_log


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for tests that leave it running."""
    with running_redis(tmp_path_factory.mktemp("redis"), password=a_password()) as it:
        yield it


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of one's own, to be killed and started again."""
    with running_redis(tmp_path, password=a_password()) as it:
        yield it
