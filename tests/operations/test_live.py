"""Connections that are open, and how they are asked to leave."""

from contextlib import ExitStack
from functools import partial

from proxy.operations.live import Live
from proxy.operations.metrics import Metrics


async def test_who_joins_while_draining_is_asked_to_leave_at_once() -> None:
    live = Live(Metrics("stored"))
    assert await live.drain(spread_seconds=0, timeout_seconds=1) == 0
    asked: list[None] = []
    with live.joined("websocket", lambda: asked.append(None)):
        assert len(asked) == 1
        assert len(live) == 1
    assert len(live) == 0


async def test_everybody_gets_a_goodbye_however_long_the_spread() -> None:
    live = Live(Metrics("stored"))
    asked: list[int] = []
    with ExitStack() as open_connections:
        for number in range(20):
            open_connections.enter_context(live.joined("websocket", partial(asked.append, number)))
        assert await live.drain(spread_seconds=600, timeout_seconds=0.2) == 20
    assert sorted(asked) == list(range(20))
