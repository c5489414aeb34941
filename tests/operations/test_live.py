"""Connections that are open, and how they are asked to leave."""

from dataclasses import dataclass, field

from proxy.operations.live import Live
from proxy.operations.metrics import Metrics


@dataclass(eq=False)
class Asked:
    """A connection that remembers how often it was asked to leave, and stays."""

    times: list[None] = field(default_factory=list)

    def leave(self) -> None:
        self.times.append(None)


async def test_who_joins_while_draining_is_asked_to_leave_at_once() -> None:
    live = Live(Metrics("stored"))
    assert await live.drain(spread_seconds=0, timeout_seconds=1) == 0
    asked = Asked()
    live.join("websocket", asked)
    assert len(asked.times) == 1
    assert len(live) == 1
    live.part("websocket", asked)
    assert len(live) == 0


async def test_everybody_gets_a_goodbye_however_long_the_spread() -> None:
    live = Live(Metrics("stored"))
    connections = [Asked() for _ in range(20)]
    for connection in connections:
        live.join("websocket", connection)
    assert await live.drain(spread_seconds=600, timeout_seconds=0.2) == 20
    assert [len(connection.times) for connection in connections] == [1] * 20
