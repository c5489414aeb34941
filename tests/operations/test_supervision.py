"""What a service manager is told, over a real socket."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.operations.supervision import Supervision


class Manager:
    """Takes what is told, as systemd does."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(5)

    def told(self) -> list[str]:
        return self._socket.recv(1000).decode().split("\n")

    async def told_next(self) -> list[str]:
        return await asyncio.to_thread(self.told)

    def was_told_nothing_more(self) -> bool:
        self._socket.settimeout(0)
        try:
            self._socket.recv(1000)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def supervision(manager: Manager, **more: str) -> Supervision:
    return Supervision.asked_for({"NOTIFY_SOCKET": manager.address} | more, 42)


async def test_each_step_is_told_in_the_words_of_systemd(manager: Manager) -> None:
    told = supervision(manager)
    told.ready()
    assert manager.told() == ["READY=1"]
    told.reloading()
    [first, second] = manager.told()
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
    told.stopping()
    assert manager.told() == ["STOPPING=1"]


async def test_status_is_told_when_it_changes(manager: Manager) -> None:
    told = supervision(manager)
    for text in ("Serving", "Serving", "Draining"):
        told.status(text)
    assert manager.told() == ["STATUS=Serving"]
    assert manager.told() == ["STATUS=Draining"]
    assert manager.was_told_nothing_more()


async def test_signs_of_life_come_from_the_loop_once_it_is_ready_until_the_end(
    manager: Manager, tmp_path: Path
) -> None:
    told = supervision(manager, WATCHDOG_USEC="20000")
    assert manager.was_told_nothing_more()
    told.ready()
    manager._socket.settimeout(5)
    assert [await manager.told_next() for _ in range(4)] == [["READY=1"], *[["WATCHDOG=1"]] * 3]
    told.ready()
    while (line := await manager.told_next()) == ["WATCHDOG=1"]:
        pass
    assert line == ["READY=1"]
    told.close()
    while not manager.was_told_nothing_more():
        pass  # what it was told before that
    with closing(Manager(tmp_path / "later")) as later:
        other = supervision(later, WATCHDOG_USEC="20000")
        other.ready()
        assert [await later.told_next() for _ in range(4)] == [["READY=1"], *[["WATCHDOG=1"]] * 3]
        other.close()
    assert manager.was_told_nothing_more()


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="nobody asks"),
        pytest.param({"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "7"}, id="another process is asked"),
        pytest.param({"WATCHDOG_USEC": "soon"}, id="nonsense"),
        pytest.param({"WATCHDOG_USEC": "0"}, id="nothing"),
    ],
)
async def test_no_sign_of_life_unless_asked(manager: Manager, environment: dict[str, str]) -> None:
    told = supervision(manager, **environment)
    told.ready()
    assert manager.told() == ["READY=1"]
    assert told._next_beat is None


async def test_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel chooses an abstract address that nobody has
        Supervision(f"@{manager.getsockname()[1:].decode()}").ready()
        assert manager.recv(100) == b"READY=1"


async def test_manager_that_is_gone_is_no_reason_to_fail(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    Supervision(str(tmp_path / "gone")).ready()
    assert "could not be told READY=1: No such file or directory" in caplog.text


async def test_without_a_manager_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    Supervision.asked_for({}, 42).ready()
    assert caplog.text == ""
