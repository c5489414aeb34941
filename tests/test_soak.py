"""What `make soak` claims can be claimed: it runs too long to find that out by running it."""

import pytest
from prometheus_client import generate_latest

from proxy.operations.metrics import Metrics
from tests.soak.faults import FAULTS, Fault
from tests.soak.lies import POST_LIES, UPGRADE_LIES
from tests.soak.population import Population
from tests.soak.report import _page
from tests.soak.run import Happened, Run, Settled, slope
from tests.soak.stage import plan_of
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


def test_series_are_counted_by_the_labels_that_are_named_in_any_order() -> None:
    known = {'a_total{x="1",y="2"}': 3.0, 'a_total{x="1",y="3"}': 4.0, 'ab_total{x="1",y="2"}': 5.0}
    assert counted(known, 'a_total{x="1"}') == 7
    assert counted(known, 'a_total{y="2",x="1"}') == 3
    assert counted(known, "a_total") == 7


def test_page_tells_what_was_wrong_and_every_fault_that_happened() -> None:
    sample = Sample(1.0, 70.0, 0.5, 20, 3, 0.01, 0.002, {})
    settled = Settled(1.0, 20, 3, 1000, 70.0)
    run = Run(
        command="make soak",
        seed=7,
        seconds=300.0,
        cycles=1,
        is_compiled=True,
        is_root=True,
        happened=[Happened(1, fault.name, 1.0, 5.0, 2.0, {}, []) for fault in FAULTS],
        settled={name: [settled, settled] for name in PROXIES},
        problems=[],
        handshakes={},
        lies={},
        forgotten=[],
        samples={name: [sample, sample.__class__(2.0, 70.0, 0.6, 20, 3, 0.01, 0.002, {})] for name in PROXIES},
        exits={},
    )
    page = _page(run)
    assert "Nothing was wrong" in page
    for fault in FAULTS:
        assert f"**{fault.name}**" in page
    run.happened[3].problems.append("something in particular")
    page = _page(run)
    assert "Nothing was wrong" not in page
    assert f"- {FAULTS[3].name}, cycle 1: something in particular" in page
