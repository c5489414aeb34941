"""The docs say what the code does."""

import logging
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from proxy.bayeux.replies import MessageReason
from proxy.cli.reference import reference as commands
from proxy.config.reference import reference as configuration
from proxy.config.reference import schema
from proxy.gate.clients import Client
from proxy.gate.crossing import DOWN_ON_POST, UP_ON_POST, Crossing
from proxy.gate.endpoints import ENDPOINTS
from proxy.head import Head
from proxy.operations.logs import OneLine, OneObject
from proxy.operations.metrics import (
    HANDSHAKE_REASONS,
    SIGN_IN_OUTCOMES,
    UPGRADE_REASONS,
    CredentialState,
    Metrics,
)
from proxy.operations.reasons import HANDSHAKES, MESSAGES, SIGN_INS, UPGRADES, Told
from proxy.operations.redaction import Redaction
from proxy.operations.reference import STATES
from proxy.operations.reference import reference as reference_of_metrics
from proxy.relay.endings import ENDINGS, Ending, level_of, tell, tell_refusal
from tests.attacks.guards import is_there


ROOT = Path(__file__).parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "made"),
    [
        pytest.param("docs/configuration.md", configuration, id="docs/configuration.md"),
        pytest.param("config/schema.json", schema, id="config/schema.json"),
        pytest.param("docs/commands.md", commands, id="docs/commands.md"),
        pytest.param("docs/metrics.md", reference_of_metrics, id="docs/metrics.md"),
    ],
)
def test_what_is_generated_is_up_to_date(name: str, made: object) -> None:
    assert callable(made)
    assert text(name) == made(), "run `make reference`"


def test_every_metric_and_no_other_is_described() -> None:
    registered = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Metrics("stored").registry.collect()
    }
    assert (
        set(re.findall(r"^\| `((?:c8y_realtime_proxy|process)_\w+)` \|", text("docs/metrics.md"), re.MULTILINE))
        == registered
    )


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        pytest.param(HANDSHAKES, HANDSHAKE_REASONS, id="handshakes"),
        pytest.param(UPGRADES, UPGRADE_REASONS, id="upgrades"),
    ],
)
def test_every_way_to_end_is_told_in_words(
    told: Mapping[tuple[str, str], Told], counted: Mapping[str, tuple[str, ...]]
) -> None:
    assert list(told) == [(outcome, reason) for outcome, reasons in counted.items() for reason in reasons]


def test_all_else_that_is_counted_by_reason_is_told_in_words() -> None:
    assert tuple(MESSAGES) == get_args(MessageReason)
    assert tuple(SIGN_INS) == SIGN_IN_OUTCOMES
    assert tuple(STATES) == get_args(CredentialState)


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


PAGES = [*(file.name for file in ROOT.glob("*.md")), *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_no_link_in_the_docs_is_broken(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", text(page)):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def entries(nav: Any) -> Iterator[str]:
    """The pages that the navigation of the site names, or names by a pattern."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(part)


def test_every_page_has_its_place_in_the_navigation_and_every_place_its_page() -> None:
    named = list(entries(yaml.safe_load(text("mkdocs.yml"))["nav"]))
    pages = {file.name for file in (ROOT / "docs").glob("*.md")}
    elsewhere = {str(file.relative_to(ROOT)) for file in [*ROOT.glob("*.md"), *(ROOT / "tests").glob("*/*.md")]}
    assert sorted(set(named)) == sorted(named)
    assert {entry for entry in named if "*" not in entry} <= pages | elsewhere
    assert [page for page in pages if not any(fnmatch(page, entry) for entry in named)] == []


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


def rows_of(section: str) -> list[list[str]]:
    """The rows of the tables in a section of the page on logs, but for their heads."""
    found = text("docs/logs.md").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines() if line[:1] == "|"]
    return [row for row in rows if set(row[0]) != {"-"} and row[0] not in {"field", "outcome"}]


def test_every_way_in_which_a_connection_ends_is_described_with_its_level() -> None:
    described: dict[str, set[str]] = {}
    outcome = ""
    for named, reasons, *_, level in [row for row in rows_of("`connection_ended`") if len(row) == 4]:
        outcome = named.strip("`") or outcome
        described.setdefault(outcome, set()).update(re.findall(r"`(\w+)`", reasons))
        assert level == logging.getLevelName(level_of(outcome))
    assert described == {outcome: set(reasons) for outcome, reasons in ENDINGS.items()}


def test_examples_of_the_log_are_what_is_written(caplog: pytest.LogCaptureFixture) -> None:
    tell(
        "websocket",
        Ending("closed", "by_upstream"),
        endpoint="/notification/realtime",
        seconds=512.204,
        client=Client("hall-2", "", (), {}),
        credential="default",
        peer="10.1.2.3",
        codes=(1001, 1001),
    )
    tell_refusal(Ending("refused", "malformed"), status=404, peer="10.1.2.3")
    examples = re.findall(r"^```(?:json)?\n(.+)\n```$", text("docs/logs.md"), flags=re.MULTILINE)
    ended, refused = caplog.records
    for record, formatter, example in zip(
        (ended, ended, refused), (OneLine, OneObject, OneLine), examples, strict=True
    ):
        assert without_time(formatter(Redaction()).format(record)) == without_time(example)
    fields = {*re.findall(r"`(\w+)`", " ".join(row[0] for row in rows_of("`connection_ended`") if len(row) == 3))}
    assert ended.__dict__["fields"].keys() | {"limit", "status"} == fields | {"event"}
    assert {row[0].strip("`") for row in rows_of("An event as JSON")} == {
        *("time", "level", "logger", "message", "exception", "event")
    }


def without_time(line: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d[ T][\d:]+[.,]\d{3}", "", line)
