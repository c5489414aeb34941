"""Connections that are open, and how they are asked to leave."""

from dataclasses import dataclass, field

import pytest

from proxy.gate.clients import Client
from proxy.operations.live import Connection, Live
from proxy.operations.metrics import Metrics


NOBODY = Client("", "", (), {})


@dataclass(eq=False)
class Asked:
    """A connection that remembers how often it was asked to leave, and stays; and why it was revoked."""

    who: Client = NOBODY
    credential: str | None = "default"
    times: list[None] = field(default_factory=list)
    problems: list[Exception] = field(default_factory=list)

    def leave(self) -> None:
        self.times.append(None)

    def revoke(self, problem: Exception) -> None:
        self.problems.append(problem)


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


async def test_only_those_that_there_is_a_problem_with_are_revoked() -> None:
    live = Live(Metrics("stored"))
    staying, going = Asked(), Asked(credential="removed")
    for connection in (staying, going):
        live.join("websocket", connection)
    problem = ValueError("removed")

    def problem_of(connection: Connection) -> Exception | None:
        return problem if connection.credential == "removed" else None

    assert live.revoke(problem_of) == 1
    assert (staying.problems, going.problems) == ([], [problem])


@pytest.mark.logs_errors
async def test_nobody_is_spared_because_another_could_not_be_ended() -> None:
    class Stubborn(Asked):
        def revoke(self, problem: Exception) -> None:
            raise problem

    live = Live(Metrics("stored"))
    connections = [Stubborn() if number % 2 else Asked() for number in range(10)]
    for connection in connections:
        live.join("websocket", connection)
    live.revoke(lambda _: ValueError("removed"))
    assert [len(one.problems) for one in connections if not isinstance(one, Stubborn)] == [1] * 5


@pytest.mark.logs_errors
async def test_nobody_goes_without_a_goodbye_because_another_could_not_be_asked() -> None:
    class Stubborn(Asked):
        def leave(self) -> None:
            raise ValueError

    live = Live(Metrics("stored"))
    connections = [Stubborn() if number % 2 else Asked() for number in range(10)]
    for connection in connections:
        live.join("websocket", connection)
    await live.drain(spread_seconds=0, timeout_seconds=0.1)
    assert [len(one.times) for one in connections if not isinstance(one, Stubborn)] == [1] * 5
