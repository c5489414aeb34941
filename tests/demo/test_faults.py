"""Every endpoint of the platform's HTTP can be made to fail, in every way that tests need."""

import asyncio

import pytest

from proxy.demo.simulator import Fault, Simulator
from tests.demo.caller import Caller


PATH = "/tenant/oauth"


async def raw_log_in(caller: Caller) -> tuple[int, bytes]:
    form = {"grant_type": "PASSWORD", "username": "service", "password": caller.simulator.accounts.password}
    async with caller.http.post(caller.simulator.url + PATH, data=form) as response:
        return response.status, await response.read()


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        pytest.param(Fault(status=503), 503, b"", id="status"),
        pytest.param(Fault(body=b"<html>"), 200, b"<html>", id="garbage"),
        pytest.param(Fault(status=502, body=b"<html>"), 502, b"<html>", id="both"),
    ],
)
async def test_answer_is_replaced(
    caller: Caller, simulator: Simulator, *, fault: Fault, status: int, body: bytes
) -> None:
    simulator.faults[PATH] = fault
    assert await raw_log_in(caller) == (status, body)
    assert (simulator.logins.asked, simulator.logins.succeeded) == (1, 0)
    assert (await caller.get("/tenant/loginOptions")).status == 200
    del simulator.faults[PATH]
    assert await raw_log_in(caller) == (200, b"")


async def test_answer_gets_lost_after_the_deed(caller: Caller, simulator: Simulator) -> None:
    simulator.faults[PATH] = Fault(status=504, afterwards=True)
    assert await raw_log_in(caller) == (504, b"")
    assert simulator.logins.live() == 1


@pytest.mark.parametrize("afterwards", [True, False])
async def test_silence_lasts_as_long_as_the_clients_patience(
    caller: Caller, simulator: Simulator, *, afterwards: bool
) -> None:
    simulator.faults[PATH] = Fault(silent=True, afterwards=afterwards)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(raw_log_in(caller))
        await simulator.until(lambda: len(simulator.calls) == 1 and simulator.logins.live() == afterwards)
        assert not waiting.done()
        waiting.cancel()
    assert simulator.logins.asked == 1


async def test_slow_answer_is_true_in_the_end(caller: Caller, simulator: Simulator) -> None:
    let_go = asyncio.Event()
    simulator.faults[PATH] = Fault(until=let_go)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(raw_log_in(caller))
        await simulator.until(lambda: len(simulator.calls) == 1)
        assert not waiting.done()
        assert simulator.logins.live() == 0
        let_go.set()
    assert waiting.result() == (200, b"")
    assert simulator.logins.live() == 1


async def test_calls_are_on_record_beside_realtime_requests(caller: Caller, simulator: Simulator) -> None:
    await caller.get("/tenant/loginOptions?x=1", {"X-Probe": "a"})
    (call,) = simulator.calls
    assert (call.kind, call.method, call.path, call.query) == ("call", "GET", "/tenant/loginOptions", "x=1")
    assert call.headers["x-probe"] == "a"
    assert simulator.requests == []
