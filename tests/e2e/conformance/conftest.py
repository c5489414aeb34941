"""The ways to the echo server, for all tests at once."""

from collections.abc import Iterator, Mapping

import pytest

from .ways import GENEROUS, Way, echoing, through_nginx, through_the_proxy


@pytest.fixture(autouse=True)
def evidence() -> None:
    """No secret crosses here, and nothing is judged: what is looked for elsewhere cannot be found here."""


@pytest.fixture(scope="session")
def echo() -> Iterator[int]:
    """The port of the echo server."""
    with echoing() as port:
        yield port


@pytest.fixture(scope="session")
def ways(echo: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[Way, int]]:
    """The port of each way. The proxy says of nothing that comes that it were a fault of its own."""
    limits = {"client_payload_bytes": GENEROUS, "upstream_payload_bytes": GENEROUS, "fragments": GENEROUS}
    with through_nginx(echo, tmp_path_factory.mktemp("nginx")) as nginx, through_the_proxy(echo, limits) as relay:
        yield {"direct": echo, "nginx": nginx, "proxy": relay.port}
    assert [line for line in relay.log if " ERROR " in line] == []
