"""Connections that are open, and how they are asked to leave."""

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
