"""What `make soak` claims can be claimed: it runs too long to find that out by running it."""

import socket

import pytest
from prometheus_client import generate_latest

from proxy.operations.metrics import Metrics
from tests.soak.faults import FAULTS, Fault
from tests.soak.lies import POST_LIES, UPGRADE_LIES
from tests.soak.population import Population
from tests.soak.report import _page
from tests.soak.run import Handshakes, Happened, Run, Settled, failures, growth, slope
from tests.soak.stage import established, plan_of
from tests.soak.watching import Sample, counted


PROXIES = {"sidecar", "door", "replica"}


@pytest.fixture(scope="module")
def series() -> dict[str, float]:
    """All series of a proxy, each once."""
    lines = generate_latest(Metrics("login").registry).decode().splitlines()
    return {line.rpartition(" ")[0].removeprefix("c8y_realtime_proxy_"): 1.0 for line in lines if line[0] != "#"}


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_what_a_fault_is_to_raise_exists(fault: Fault, series: dict[str, float]) -> None:
    for proxy, _, name in (each.partition(" ") for group in fault.raised for each in group):
        assert proxy in PROXIES
        assert counted(series, name), name


def test_who_must_not_notice_is_among_the_clients() -> None:
    population = Population(plan_of(1, dict.fromkeys(PROXIES, 1)))
    kinds = {client.kind for client in population._clients()}
    assert {kind for fault in FAULTS for kind in fault.undisturbed} <= kinds


def test_faults_and_lies_are_told_apart_by_their_names() -> None:
    for names in ([fault.name for fault in FAULTS], [*POST_LIES, *UPGRADE_LIES]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 2, 3], 1), ([5, 5, 5, 5], 0), ([4, 1, 1, 4], 0), ([3, 2, 1], -1)], ids=str
)
def test_growth_is_the_slope_of_the_line_that_fits_best(values: list[float], expected: float) -> None:
    assert slope(values) == pytest.approx(expected)


def settled(memory: float) -> Settled:
    return Settled(1.0, 20, 3, 1000, memory)


def test_growth_is_that_of_the_later_half_and_nothing_after_three_cycles() -> None:
    warm_then_level = [settled(memory) for memory in (50.0, 60.0, 70.0, 70.0, 70.0, 70.0)]
    assert growth(warm_then_level, "memory") == pytest.approx(0)
    assert growth(warm_then_level[:4], "memory") is None


def test_failures_are_those_of_lives_by_kind() -> None:
    counts = {"busy: Unwell": 2, "busy: TimeoutError": 1, "sign-in 401: visitor at the door": 5, "sent websocket": 9}
    assert failures(counts) == {"busy": 3}


@pytest.mark.parametrize(
    ("handshakes", "is_right"),
    [
        (Handshakes(sent=10, counted=9, answered=8, accepted=7, welcomed=6), True),
        (Handshakes(sent=10, counted=10, answered=10, accepted=10, welcomed=10), True),
        (Handshakes(sent=10, counted=11, answered=8, accepted=7, welcomed=6), False),
        (Handshakes(sent=10, counted=7, answered=8, accepted=7, welcomed=6), False),
        (Handshakes(sent=10, counted=9, answered=8, accepted=5, welcomed=6), False),
    ],
    ids=str,
)
def test_handshakes_add_up(handshakes: Handshakes, is_right: bool) -> None:  # noqa: FBT001 - a row of a table
    assert bool(handshakes.problems("websocket")) is not is_right


def test_established_connections_are_told_apart_by_peer_and_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert established("127.0.0.1", far_port=port) == 0
        with socket.create_connection(("127.0.0.1", port)):
            assert established("127.0.0.1", far_port=port) == established("127.0.0.1", port=port) == 1
            assert established("127.0.0.2", far_port=port) == 0


def test_series_are_counted_by_the_labels_that_are_named_in_any_order() -> None:
    known = {'a_total{x="1",y="2"}': 3.0, 'a_total{x="1",y="3"}': 4.0, 'ab_total{x="1",y="2"}': 5.0}
    assert counted(known, 'a_total{x="1"}') == 7
    assert counted(known, 'a_total{y="2",x="1"}') == 3
    assert counted(known, "a_total") == 7


@pytest.fixture
def run() -> Run:
    """One in which every fault happened once, and nothing was wrong."""
    samples = [Sample(at, 70.0, at / 2, 20, 3, 0.01, 0.002, {}) for at in (1.0, 2.0)]
    return Run(
        command="make soak",
        seed=7,
        seconds=300.0,
        cycles=1,
        size=1.0,
        is_compiled=True,
        is_root=True,
        happened=[Happened(1, fault.name, 1.0, 5.0, 2.0, {}, {}, []) for fault in FAULTS],
        settled={name: [settled(70.0)] * 2 for name in PROXIES},
        problems=[],
        handshakes={},
        lies={},
        forgotten=[],
        samples=dict.fromkeys(PROXIES, samples),
        exits={},
    )


def test_page_tells_what_was_wrong_and_every_fault_that_happened(run: Run) -> None:
    page = _page(run)
    assert "Nothing was wrong" in page
    for fault in FAULTS:
        assert f"**{fault.name}**" in page
    run.happened[3].problems.append("something in particular")
    page = _page(run)
    assert "Nothing was wrong" not in page
    assert f"- {FAULTS[3].name}, cycle 1: something in particular" in page


def test_page_says_of_growth_only_what_was_judged(run: Run) -> None:
    assert "cannot be said after so few" in _page(run)
    run.settled = {name: [settled(70.0)] * 5 for name in PROXIES}
    assert "cannot be said after so few" not in _page(run)


def test_page_does_not_say_that_nobody_noticed_where_something_was_wrong(run: Run) -> None:
    place, fault = next((place, fault) for place, fault in enumerate(FAULTS) if fault.undisturbed and fault.seen)
    before = _page(run)
    run.happened[place].problems.append("poller: 3 failed")
    page = _page(run)
    assert before.count(fault.seen) - page.count(fault.seen) == 1
    assert before.count("nobody who stays noticed") - page.count("nobody who stays noticed") == 1
