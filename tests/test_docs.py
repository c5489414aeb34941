"""The docs say what the code does."""

import re
from pathlib import Path

import pytest

from proxy.config.reference import reference, schema
from proxy.gate.crossing import DOWN_ON_POST, UP_ON_POST, Crossing
from proxy.gate.endpoints import ENDPOINTS
from proxy.head import Head
from proxy.operations.metrics import HANDSHAKE_REASONS, UPGRADE_REASONS, Metrics
from tests.attacks.guards import is_there


ROOT = Path(__file__).parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "made"), [("docs/configuration.md", reference), ("config/schema.json", schema)], ids=str
)
def test_what_is_generated_is_up_to_date(name: str, made: object) -> None:
    assert callable(made)
    assert text(name) == made(), "run `make reference`"


def test_every_metric_and_no_other_is_described() -> None:
    registered = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Metrics("stored").registry.collect()
    }
    assert set(re.findall(r"\| `(c8y_realtime_proxy_\w+)` \|", text("docs/metrics.md"))) == registered


@pytest.mark.parametrize("reasons", [HANDSHAKE_REASONS, UPGRADE_REASONS], ids=["handshakes", "upgrades"])
def test_every_reason_is_described(reasons: dict[str, tuple[str, ...]]) -> None:
    title = "## How an upgrade ended" if reasons is UPGRADE_REASONS else "## How a handshake ended"
    section = text("docs/metrics.md").partition(title)[2].partition("## ")[0]
    described: dict[str, set[str]] = {}
    outcome = ""
    for named, told in re.findall(r"^\| (`\w+`)? ?\| ([^|]+) \|", section, flags=re.MULTILINE):
        outcome = named.strip("`") or outcome
        described.setdefault(outcome, set()).update(re.findall(r"`(\w+)`", told))
    assert described == {outcome: set(names) for outcome, names in reasons.items()}


def named_in(section: str) -> set[str]:
    """The headers that a section of the page on crossing names."""
    return {name.lower() for name in re.findall(r"`([A-Z][A-Za-z-]+)[`:]", section)}


def test_every_header_and_endpoint_that_crosses_is_published() -> None:
    published = text("docs/crossing.md")
    up = published.partition("## Headers going up")[2].partition("Nothing else")[0]
    down = published.partition("## Headers coming down")[2].partition(" on answers")[0]
    client = Head("POST", "/", (("cookie", "BAYEUX_BROWSER=a"), *((name, "x") for name in UP_ON_POST)))
    crossing = Crossing(relayed_cookies=["BAYEUX_BROWSER"], is_clients_own=False, application_key="k")
    sent = {name.lower() for name in crossing.post_headers(client, {}, {})}
    assert named_in(up) == sent | {"content-type", "x-id"}
    assert named_in(down) == set(DOWN_ON_POST)
    for name in ENDPOINTS:
        assert f"`{name}`" in published


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))])
def test_no_link_in_the_docs_is_broken(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", text(page)):
        assert (ROOT / page).parent.joinpath(target).exists(), target


PROMISES = re.findall(r"^\| (.+?) \| .+ \| (.*`tests/.+) \|$", text("docs/threat-model.md"), flags=re.MULTILINE)


def test_the_threat_model_makes_promises_and_each_names_its_tests() -> None:
    section = text("docs/threat-model.md").partition("## Promises")[2]
    rows = re.findall(r"^\| (?!promise|---)", section, flags=re.MULTILINE)
    assert len(rows) == len(PROMISES) > 20


@pytest.mark.parametrize(("promise", "tests"), PROMISES, ids=[promise for promise, _ in PROMISES])
def test_what_shows_a_promise_is_there(promise: str, tests: str) -> None:
    for name in re.findall(r"`(tests/[^`]+)`", tests):
        assert is_there(name) if "::" in name else (ROOT / name).is_file(), f"{promise}: {name}"


def test_every_runtime_dependency_has_its_reason() -> None:
    declared = re.findall(r'^    "([a-z-]+)(?:\[\w+\])?>=', text("pyproject.toml"), flags=re.MULTILINE)
    assert len(declared) >= 4
    for name in declared:
        assert f"| {name} |" in text("docs/dependencies.md")


def test_the_lock_names_no_index() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in file.read_text()
