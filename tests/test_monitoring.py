"""Alert rules, dashboard and runbooks name what there is: metrics, labels, values, configuration keys, each other."""

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

from proxy.config.tree import Config, keys_of
from proxy.operations.reference import example


ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
PREFIX: Final = "C8yRealtimeProxy"
OF_TARGETS: Final = {"job", "instance"}
NOT_SHOWN: Final = {
    "c8y_realtime_proxy_file_reloads_total",  # whether the last of them went well is
    "process_virtual_memory_bytes",  # says little of a process that reserves what it never uses
}
SECTIONS: Final = ("## What it means", "## How to see it", "## What to do", "## How to prevent it")

RULES: Final = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS: Final[dict[str, dict[str, Any]]] = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS: Final = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
CASES: Final = yaml.safe_load((ROOT / "deploy/prometheus/alerts_test.yaml").read_text(encoding="utf-8"))["tests"]
BOARD: Final[dict[str, Any]] = msgspec.json.decode((ROOT / "deploy/grafana/c8y-realtime-proxy.json").read_bytes())
PANELS: Final[list[dict[str, Any]]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
SITE: Final = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
RUNBOOKS: Final = {file.name: file.read_text(encoding="utf-8") for file in DOCS.glob("runbook-*.md")}


def runbook_of(alert: str) -> str:
    """The name of the page about an alert: its own, in lower case and with hyphens."""
    return "runbook" + re.sub(r"[A-Z]", lambda match: f"-{match[0].lower()}", alert.removeprefix(PREFIX))


def known() -> dict[str, dict[str, set[str] | None]]:
    """The labels of each series by its name, with their values where these are a closed list."""
    found: dict[str, dict[str, set[str] | None]] = {}
    for family in example().registry.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                values = found.setdefault(sample.name, {}).setdefault(label, set())
                assert values is not None
                values.add(value)
            found.setdefault(sample.name, {})
    for labels in found.values():
        for label in labels.keys() & {"certificate", "credential", "source", "version", "le"}:
            labels[label] = None
    return found


KNOWN: Final = known()


def queries() -> Iterator[tuple[str, str]]:
    """Every expression that is written down, by where."""
    yield from ((alert, rule["expr"]) for alert, rule in ALERTS.items())
    yield from RECORDS.items()
    for panel in PANELS:
        yield from ((f"{panel['title']} {target['refId']}", target["expr"]) for target in panel["targets"])
    for name, text in RUNBOOKS.items():
        yield from ((name, query) for query in re.findall(r"```promql\n(.+?)```", text, re.DOTALL))


_SELECTOR: Final = re.compile(r"\b((?:instance:)?c8y_realtime_proxy_\w+(?::\w+)?|process_\w+)(?:\{(.*?)\})?", re.DOTALL)


def selected(query: str) -> list[tuple[str, str]]:
    """The series that an expression selects, by name, with what stands in braces behind it."""
    return _SELECTOR.findall(query)


QUERIES: Final = list(queries())


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_every_series_label_and_value_that_is_asked_for_exists(where: str, query: str) -> None:
    names = [name for name, _ in selected(query)]
    assert names or "up{" in query, f"{where} asks for nothing of ours"
    labels = set(OF_TARGETS)
    for name, matchers in selected(query):
        if name in RECORDS:
            continue
        assert name in KNOWN, name
        labels |= KNOWN[name].keys()
        for label, operator, said in re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"(.*?)"', matchers):
            if label in OF_TARGETS:
                continue
            assert label in KNOWN[name], f"{name} has no label {label}"
            values = KNOWN[name][label]
            for value in said.split("|") if operator.endswith("~") else [said]:
                assert values is None or value in values, f"{label} of {name} is never {value}"
    for inner in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^()]*)\)", query):
        assert {label.strip() for label in inner.split(",")} <= labels | {"le"}, inner


def test_a_name_that_drifted_would_be_found() -> None:
    for query in (
        "c8y_realtime_proxy_handshake_total",
        'c8y_realtime_proxy_handshakes_total{outcome="accept"}',
        'c8y_realtime_proxy_handshakes_total{result="ok"}',
        'c8y_realtime_proxy_handshakes_total{outcome=~"accepted|refuse"}',
        "sum by (reasons) (c8y_realtime_proxy_handshakes_total)",
    ):
        with pytest.raises(AssertionError):
            test_every_series_label_and_value_that_is_asked_for_exists("here", query)


# Alerts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alert", ALERTS)
class TestAlert:
    def test_it_says_what_is_wrong_how_bad_that_is_and_where_to_read_on(self, alert: str) -> None:
        rule = ALERTS[alert]
        assert alert.startswith(PREFIX)
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert re.fullmatch(r"\d+[mh]", rule["for"])
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"{{{{ $externalLabels.docs }}}}/{runbook_of(alert)}.html"
        assert "use_directory_urls: false" in SITE  # which is what makes it end like that

    def test_it_has_cases_that_fire_it_to_the_minute_and_one_that_nearly_does(self, alert: str) -> None:
        fires, is_silent = [], []
        for case in CASES:
            checks = [check for check in case["alert_rule_test"] if check["alertname"] == alert]
            if any(check["exp_alerts"] for check in checks):
                fires.append([bool(check["exp_alerts"]) for check in checks])
            elif checks:
                is_silent.append(case)
        assert fires == [[False, True]]
        assert is_silent

    def test_its_runbook_tells_what_it_means_how_to_see_it_and_what_to_do(self, alert: str) -> None:
        text = RUNBOOKS[f"{runbook_of(alert)}.md"]
        assert text.startswith(f"# {alert}\n")
        assert tuple(re.findall(r"^## .+$", text, re.MULTILINE)) == SECTIONS
        assert "```promql" in text

    def test_the_docs_list_it(self, alert: str) -> None:
        name, severity = alert.removeprefix(PREFIX), ALERTS[alert]["labels"]["severity"]
        row = rf"^\| \[{name}\]\({runbook_of(alert)}\.md\) \| {severity} \|"
        assert re.search(row, (DOCS / "monitoring.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_no_runbook_is_about_an_alert_that_is_gone() -> None:
    assert RUNBOOKS.keys() == {f"{runbook_of(alert)}.md" for alert in ALERTS}


@pytest.mark.parametrize("page", [*RUNBOOKS, "monitoring.md"])
def test_configuration_keys_that_a_page_names_exist(page: str) -> None:
    sections = {key.partition(".")[0] for key, _ in keys_of(Config)} - {"credentials"}
    keys = {key for key, _ in keys_of(Config)} | sections | {"listen.tls", "gate.jwt"}
    named = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", (DOCS / page).read_text(encoding="utf-8"))
    assert {name for name in named if name.partition(".")[0] in sections} <= keys


def test_the_sidecar_has_the_port_that_the_pod_monitor_goes_by() -> None:
    page = (DOCS / "monitoring.md").read_text(encoding="utf-8")
    [monitor] = [
        text for text in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if "PodMonitor" in text
    ]
    sidecars = (ROOT / "deploy/kubernetes/component/sidecar.yaml").read_text(encoding="utf-8")
    template = yaml.safe_load(sidecars)["template"]["spec"]
    for endpoint in yaml.safe_load(monitor)["spec"]["podMetricsEndpoints"]:
        for kind in ("initContainers", "containers"):
            assert endpoint["port"] in {port["name"] for port in template[kind][-1]["ports"]}


# Dashboard ------------------------------------------------------------------------------------------------------------


def test_the_dashboard_is_for_any_data_source_and_for_grafana_10_or_newer() -> None:
    assert BOARD["schemaVersion"] >= 39
    assert [variable["name"] for variable in BOARD["templating"]["list"]] == ["datasource", "job", "instance"]
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert all(panel["datasource"] == chosen for panel in PANELS)
    assert "__inputs" not in BOARD
    assert "id" not in BOARD


def test_every_metric_is_shown_or_is_known_not_to_be() -> None:
    expressions = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    shown = {name.removesuffix("_bucket") for name, _ in selected(expressions)}
    there = {re.sub(r"_(bucket|sum|count)$", "", name) for name in KNOWN}
    assert there - shown == NOT_SHOWN


def test_panels_are_numbered_and_do_not_cover_each_other() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for one, other in combinations((panel["gridPos"] for panel in BOARD["panels"]), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in BOARD["panels"])


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
class TestPanel:
    def test_it_says_what_it_shows_and_in_what_unit(self, panel: Mapping[str, Any]) -> None:
        assert re.fullmatch(r"[A-Z].*[^.]", panel["title"])
        assert re.fullmatch(r"[A-Z].*\.", panel["description"])
        assert panel["fieldConfig"]["defaults"]["unit"]

    def test_it_keeps_to_what_was_chosen(self, panel: Mapping[str, Any]) -> None:
        for target in panel["targets"]:
            for _, matchers in selected(target["expr"]):
                assert matchers.startswith('job=~"$job", instance=~"$instance"')

    def test_its_legends_name_labels_that_are_left(self, panel: Mapping[str, Any]) -> None:
        for target in panel["targets"]:
            grouped = re.findall(r"\bby \(([^()]*)\)", target["expr"])
            left = (
                {label.strip() for label in grouped[0].split(",")}
                if grouped
                else OF_TARGETS.union(*(KNOWN[name] for name, _ in selected(target["expr"])))
            )
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left
