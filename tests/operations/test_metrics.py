"""Names and labels are public API: every series exists from the start, and no other ever comes."""

import math
import re
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Final, Literal, get_args

import pytest
from prometheus_client import generate_latest

from proxy import __version__
from proxy.bayeux.negotiation import Outcome, Reason, Verdict
from proxy.operations.metrics import (
    FILES,
    HANDSHAKE_REASONS,
    LIMITS,
    SIGN_IN_OUTCOMES,
    UPGRADE_REASONS,
    CredentialState,
    Metrics,
    Process,
    Transport,
)


PREFIX: Final = "c8y_realtime_proxy_"
OF_THE_PROCESS: Final = "process_"
TRANSPORTS: Final = ("websocket", "long-polling")
HANDSHAKES: Final[dict[Verdict, tuple[Reason, ...]]] = {
    "accepted": ("ok",),
    "rejected": ("denied", "unknown_client", "other"),
    "unanswered": ("client_gone", "upstream_gone", "timeout", "drained"),
    "refused": ("identity", "policy", "no_credential", "cooldown", "limit", "unavailable", "malformed"),
}
ENDINGS: Final = [(verdict, reason) for verdict, reasons in HANDSHAKES.items() for reason in reasons]

Labels = frozenset[tuple[str, str]]


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics("stored")
    made.using("default", lambda: 0)
    made.ask(
        is_ready=lambda: False,
        connections=lambda: 0,
        connections_limit=lambda: 0,
        expiries=lambda: [("listen.tls", 0)],
        states=lambda: [("default", "usable")],
    )
    return made


def labels(**given: str) -> Labels:
    return frozenset(given.items())


def series(metrics: Metrics) -> dict[str, dict[Labels, float]]:
    """Every sample of ours by name, without the prefix, and labels."""
    found: dict[str, dict[Labels, float]] = {}
    for family in metrics.registry.collect():
        if family.name.startswith(OF_THE_PROCESS):
            continue
        for sample in family.samples:
            assert sample.name.startswith(PREFIX)
            found.setdefault(sample.name.removeprefix(PREFIX), {})[frozenset(sample.labels.items())] = sample.value
    return found


def changed(metrics: Metrics, before: dict[str, dict[Labels, float]]) -> Iterator[tuple[str, Labels, float]]:
    for name, samples in series(metrics).items():
        for marks, value in samples.items():
            if value != before[name][marks]:
                yield name, marks, value - before[name][marks]


def expected_series() -> dict[str, set[Labels]]:
    transports = {labels(transport=transport) for transport in TRANSPORTS}
    crossings = {labels(transport=transport, direction=way) for transport, way in product(TRANSPORTS, ("up", "down"))}
    return {
        "handshakes_total": {
            labels(transport=transport, source="stored", outcome=verdict, reason=reason)
            for transport, (verdict, reason) in product(TRANSPORTS, ENDINGS)
        },
        "handshake_duration_seconds_count": transports,
        "handshake_duration_seconds_sum": transports,
        "connections": transports,
        "payloads_total": crossings,
        "bytes_total": crossings,
        "credential_reloads_total": {labels(source="stored", result="ok"), labels(source="stored", result="failed")},
        "credential_last_loaded_timestamp_seconds": {labels(source="stored")},
        "credential_uses": {labels(credential="default")},
        "credential_state": {labels(credential="default", state=state) for state in get_args(CredentialState)},
        "ready": {labels()},
        "listener_connections": {labels()},
        "listener_connections_limit": {labels()},
        "certificate_expiry_timestamp_seconds": {labels(certificate="listen.tls")},
        "file_is_current": {labels(file=file) for file in FILES},
        "file_reloads_total": {labels(file=file, result=result) for file, result in product(FILES, ("ok", "failed"))},
        "limits_reached_total": {labels(limit=limit) for limit in LIMITS},
        "messages_refused_total": {
            labels(transport=transport, reason=reason)
            for transport, reason in product(TRANSPORTS, ("subscribe", "publish", "call", "client_id"))
        },
        "sign_ins_total": {labels(outcome=outcome) for outcome in SIGN_IN_OUTCOMES},
        "build_info": {labels(version=__version__)},
        "upgrades_total": {
            labels(outcome=outcome, reason=reason) for outcome, reasons in UPGRADE_REASONS.items() for reason in reasons
        },
    }


def test_every_series_exists_from_the_start(metrics: Metrics) -> None:
    found = series(metrics)
    buckets = found.pop("handshake_duration_seconds_bucket")
    assert {name: set(samples) for name, samples in found.items()} == expected_series()
    assert {dict(marks)["transport"] for marks in buckets} == set(TRANSPORTS)
    assert list(found.pop("build_info").values()) == [1.0]
    assert set(found.pop("file_is_current").values()) == {1.0}
    assert sum(found.pop("credential_state").values()) == 1.0
    assert all(value == 0.0 for samples in found.values() for value in samples.values())


def test_reasons_are_the_closed_lists() -> None:
    assert HANDSHAKE_REASONS == HANDSHAKES
    assert set(get_args(Verdict)) == set(HANDSHAKES) == set(UPGRADE_REASONS)
    assert get_args(Transport) == TRANSPORTS


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("verdict", "reason"), ENDINGS)
def test_each_outcome_is_counted_once_where_it_belongs(
    metrics: Metrics, transport: Transport, verdict: Verdict, reason: Reason
) -> None:
    before = series(metrics)
    metrics.settle(transport, "stored", [Outcome(verdict, reason, 0.2)])
    marks = labels(transport=transport, source="stored", outcome=verdict, reason=reason)
    counted = {(name, where): value for name, where, value in changed(metrics, before) if "duration" not in name}
    assert counted == {("handshakes_total", marks): 1.0}
    answered = series(metrics)["handshake_duration_seconds_count"][labels(transport=transport)]
    assert answered == (verdict in {"accepted", "rejected"})


def test_no_outcomes_count_nothing(metrics: Metrics) -> None:
    before = series(metrics)
    metrics.settle("websocket", "stored", ())
    assert list(changed(metrics, before)) == []


def test_several_outcomes_add_up(metrics: Metrics) -> None:
    outcomes = [Outcome("accepted", "ok", 0.5), Outcome("accepted", "ok", 1.5), Outcome("unanswered", "timeout", 30.0)]
    metrics.settle("websocket", "stored", outcomes)
    metrics.settle("websocket", "stored", iter(outcomes[:1]))
    found = series(metrics)
    seconds = labels(transport="websocket")
    assert sum(found["handshakes_total"].values()) == 4
    assert found["handshake_duration_seconds_count"][seconds] == 3
    assert math.isclose(found["handshake_duration_seconds_sum"][seconds], 2.5)


def test_whose_credential_it_was_adds_no_series(metrics: Metrics) -> None:
    before = {name: set(samples) for name, samples in series(metrics).items()}
    metrics.settle("websocket", "stored", [Outcome("rejected", "denied", 0.1, ours=False)])
    assert {name: set(samples) for name, samples in series(metrics).items()} == before


def test_no_use_of_the_instruments_adds_a_series(metrics: Metrics) -> None:
    before = {name: set(samples) for name, samples in series(metrics).items()}
    transports: tuple[Transport, ...] = get_args(Transport)
    ways: tuple[Literal["up", "down"], ...] = ("up", "down")
    for transport, (verdict, reason) in product(transports, ENDINGS):
        metrics.settle(transport, "stored", [Outcome(verdict, reason, 1.0)])
        metrics.connected[transport] += 1
        for way in ways:
            metrics.relayed(transport, way, 10)
    for outcome, reasons in UPGRADE_REASONS.items():
        for reason_of_upgrade in reasons:
            metrics.upgrade(outcome, reason_of_upgrade)
    metrics.credential_loaded("stored", "default", well=True)
    metrics.credential_loaded("stored", "default", well=False)
    assert {name: set(samples) for name, samples in series(metrics).items()} == before


@pytest.mark.parametrize(
    ("outcome", "reason"), [(outcome, one) for outcome, all_ in UPGRADE_REASONS.items() for one in all_]
)
def test_upgrade_is_counted(metrics: Metrics, outcome: str, reason: str) -> None:
    before = series(metrics)
    metrics.upgrade(outcome, reason)
    assert list(changed(metrics, before)) == [("upgrades_total", labels(outcome=outcome, reason=reason), 1.0)]


def test_relayed_payload_counts_itself_and_its_bytes(metrics: Metrics) -> None:
    before = series(metrics)
    metrics.relayed("long-polling", "down", 1234)
    metrics.relayed("long-polling", "down", 0)
    marks = labels(transport="long-polling", direction="down")
    assert set(changed(metrics, before)) == {("payloads_total", marks, 2.0), ("bytes_total", marks, 1234.0)}


def test_connections_go_up_and_down(metrics: Metrics) -> None:
    metrics.connected["websocket"] += 1
    assert series(metrics)["connections"] == {
        labels(transport="websocket"): 1.0,
        labels(transport="long-polling"): 0.0,
    }
    metrics.connected["websocket"] -= 1
    assert series(metrics)["connections"][labels(transport="websocket")] == 0.0


def test_only_a_good_load_moves_the_timestamp(metrics: Metrics) -> None:
    source = labels(source="stored")
    metrics.credential_loaded("stored", "default", well=False)
    assert series(metrics)["credential_last_loaded_timestamp_seconds"][source] == 0.0
    metrics.credential_loaded("stored", "default", well=True)
    assert series(metrics)["credential_last_loaded_timestamp_seconds"][source] > 1_700_000_000
    assert series(metrics)["credential_reloads_total"] == {
        labels(source="stored", result="ok"): 1.0,
        labels(source="stored", result="failed"): 1.0,
    }


def test_a_file_is_current_from_its_last_good_reading_on(metrics: Metrics) -> None:
    for well in (True, False, False, True):
        metrics.file_loaded("listen.tls", well)
        current = series(metrics)["file_is_current"]
        assert current.pop(labels(file="listen.tls")) == float(well)
        assert set(current.values()) == {1.0}


def test_what_is_so_at_the_moment_is_asked_for_each_time(metrics: Metrics) -> None:
    now: dict[str, CredentialState] = {}
    numbers = iter(range(1, 7))
    metrics.ask(
        is_ready=lambda: True,
        connections=lambda: next(numbers),
        connections_limit=lambda: 10,
        expiries=lambda: [(f"credentials.{name}", 2e9) for name in now],
        states=now.items,
    )
    for count, state in enumerate(get_args(CredentialState), 1):
        now["default"] = state
        now["other"] = "usable"
        found = series(metrics)
        assert found["ready"] == {labels(): 1.0}
        assert found["listener_connections"] == {labels(): count}
        assert found["listener_connections_limit"] == {labels(): 10.0}
        assert found["certificate_expiry_timestamp_seconds"] == {
            labels(certificate=f"credentials.{name}"): 2e9 for name in now
        }
        states = [dict(marks) for marks, is_so in found["credential_state"].items() if is_so]
        assert {each["credential"]: each["state"] for each in states} == now
    now.clear()
    assert "credential_state" not in series(metrics)


def test_the_process_tells_of_itself(metrics: Metrics) -> None:
    names = {family.name for family in metrics.registry.collect() if family.name.startswith(OF_THE_PROCESS)}
    assert {"process_open_fds", "process_max_fds", "process_resident_memory_bytes", "process_cpu_seconds"} <= names


def test_the_process_tells_of_itself_where_it_sees_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("/proc/self")  # and no `stat` beside it, as systemd has it for services
    told = {family.name: family.samples[0].value for family in Process(proc=str(tmp_path), registry=None).collect()}
    assert {
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_cpu_seconds",
    } <= told.keys()
    assert 0 < time.time() - told["process_start_time_seconds"] < 86_400


def test_two_proxies_count_apart() -> None:
    one, other = Metrics("stored"), Metrics("cookie")
    before = series(other)
    one.settle("websocket", "stored", [Outcome("accepted", "ok", 0.1)])
    assert list(changed(other, before)) == []
    assert all(dict(marks)["source"] == "cookie" for marks in before["handshakes_total"])


def test_exposition_is_ours_alone(metrics: Metrics) -> None:
    lines = generate_latest(metrics.registry).decode().splitlines()
    names = {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}
    assert all(name.startswith((PREFIX, OF_THE_PROCESS)) for name in names)
    assert not any(name.endswith("_created") for name in names)
    helped = {line.split()[2] for line in lines if line.startswith("# HELP")}
    assert helped == {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert all(len(line.split()) > 4 for line in lines if line.startswith("# HELP"))


def test_long_lived_connections_stay_out_of_the_histogram(metrics: Metrics) -> None:
    metrics.settle("websocket", "stored", [Outcome("unanswered", "drained", 7200.0), Outcome("refused", "limit", 0.0)])
    assert series(metrics)["handshake_duration_seconds_sum"][labels(transport="websocket")] == 0.0


def test_several_kinds_of_sources_count_apart_and_what_had_none_yet_by_itself() -> None:
    metrics = Metrics("stored", "login")
    metrics.settle("websocket", "login", [Outcome("accepted", "ok", 0.1)])
    metrics.settle("websocket", None, [Outcome("refused", "identity", 0.0)])
    counted = {marks: value for marks, value in series(metrics)["handshakes_total"].items() if value}
    assert counted == {
        labels(transport="websocket", source="login", outcome="accepted", reason="ok"): 1.0,
        labels(transport="websocket", source="none", outcome="refused", reason="identity"): 1.0,
    }


def test_what_had_no_source_yet_counts_with_the_only_kind_there_is(metrics: Metrics) -> None:
    metrics.settle("websocket", None, [Outcome("refused", "identity", 0.0)])
    marks = labels(transport="websocket", source="stored", outcome="refused", reason="identity")
    assert series(metrics)["handshakes_total"][marks] == 1.0


def test_kinds_that_come_later_have_all_their_series(metrics: Metrics) -> None:
    metrics.know(["stored", "device"])
    sources = {dict(marks)["source"] for marks in series(metrics)["handshakes_total"]}
    assert sources == {"stored", "device", "none"}
    assert labels(source="device", result="failed") in series(metrics)["credential_reloads_total"]
