"""Memory stays where it is, however much has passed."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.bench.modes import Load, Mode, Upstream
from tests.bench.peers import Running


SIZE = 2000
GROWTH_KIB = 3 * 1024  # what the allocator may round up; a leak of 32 bytes per connection would be as much


@contextmanager
def loaded(mode: Mode) -> Iterator[tuple[Running, Load]]:
    """The proxy as it is installed, under a load of that kind."""
    upstream = Upstream()
    try:
        with (
            Running("proxy", upstream=upstream.port, tls=False) as running,
            Load(running, upstream.port, mode) as load,
        ):
            yield running, load
            load.end()
    finally:
        upstream.close()


def worked(load: Load, wanted: int) -> None:
    """Let it work until so many operations are done."""
    while wanted > 0:
        wanted -= load.work(2).done


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mode", "first", "then"),
    [
        pytest.param(Mode("flood", 1, size=SIZE), 50_000, (1 << 30) // SIZE, id="1 GiB through one WebSocket"),
        pytest.param(Mode("handshake", 16), 5_000, 100_000, id="100,000 WebSockets opened and closed"),
        pytest.param(Mode("longpoll", 16), 5_000, 300_000, id="300,000 POSTs"),
    ],
)
def test_memory_does_not_grow(mode: Mode, first: int, then: int) -> None:
    with loaded(mode) as (running, load):
        worked(load, first)
        before = running.pss_kib()
        worked(load, then)
        grown = running.pss_kib() - before
    print(f"grown by {grown} KiB")
    assert grown < GROWTH_KIB
