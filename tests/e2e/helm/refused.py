"""Values that cannot be meant are refused before anything is installed, in words that tell what to do."""

from typing import Any, Final

import pytest

from .chart import COOKIE, EVERYTHING, MINIMUM, REPLICAS, Refused, Values, merged, rendered, set_at, validate


SESSION_KEYS: Final = "keys.secret"

MISSING: Final = [
    ("config.upstream.url", "", "config.upstream.url: expected the address of the tenant"),
    ("config.gate.trusted_proxies", [], "config.gate.trusted_proxies: expected the networks of the ingress controller"),
    ("ingress.host", "", "ingress.host: expected the host by which browsers reach this"),
    (
        "keys.secret",
        "",
        "keys.secret: expected the name of a Secret with the entry client-id-key, and session-key where sessions",
    ),
]

CONTRADICTIONS: Final[list[tuple[Values, str]]] = [
    # Sessions, and where they are.
    (merged(MINIMUM, {"replicas": 2}), "redis.url: expected, since there may be more than one replica"),
    (merged(MINIMUM, {"autoscaling": {"enabled": True}}), "redis.url: expected, since there may be more than one"),
    (
        merged(COOKIE, set_at("redis.url", "redis://redis")),
        "redis.url: expected with config.credentials.default.source",
    ),
    (merged(MINIMUM, set_at("redis.password.secret", "a")), "redis.url: expected, since its password or its authority"),
    (merged(MINIMUM, set_at("redis.ca.configMap", "a")), "redis.url: expected, since its password or its authority"),
    (merged(EVERYTHING, set_at("redis.ca.secret", "a")), "redis.ca: expected a Secret or a ConfigMap, not both"),
    (
        merged(REPLICAS, set_at("redis.ca.secret", "a")),
        "redis.ca: expected with a redis.url that begins with rediss://",
    ),
    (
        merged(MINIMUM, set_at("config.credentials.default.source", "stored")),
        "config.credentials.default.source: expected session or cookie",
    ),
    # What the chart says itself.
    *(
        (merged(MINIMUM, set_at(f"config.{key}", value)), f"config.{key}: expected in its place {place}")
        for key, value, place in [
            ("frontdoor.redis_url", "redis://redis", "redis.url"),
            ("frontdoor.redis_password_file", "/a", "redis.password.secret"),
            ("frontdoor.redis_ca_file", "/a", "redis.ca.secret"),
            ("frontdoor.sessions_file", "/a", "redis.url, since a pod keeps no files"),
            ("frontdoor.session_key_file", "/a", SESSION_KEYS),
            ("gate.client_id_key_file", "/a", SESSION_KEYS),
        ]
    ),
    # Listeners.
    (merged(MINIMUM, set_at("config.listen.host", "127.0.0.1")), "config.listen.host: expected an address beyond"),
    (merged(MINIMUM, set_at("config.admin.host", "localhost")), "config.admin.host: expected an address beyond"),
    (merged(MINIMUM, set_at("config.listen.port", 0)), "config.listen.port: expected a port, and not any free one"),
    (merged(MINIMUM, set_at("config.admin.port", 8080)), "config.admin.port: expected another port than that of"),
    (merged(MINIMUM, set_at("config.listen.socket", "/run/a")), "config.listen.socket: expected none"),
    # Where browsers come from.
    (
        merged(MINIMUM, set_at("config.frontdoor.public_origin", "https://other.example.com")),
        "config.frontdoor.public_origin: expected the host of ingress.host",
    ),
    (
        merged(MINIMUM, {"ingress": {"enabled": False}}),
        "config.frontdoor.public_origin: expected the origin by which browsers reach this",
    ),
    (
        merged(MINIMUM, set_at("config.frontdoor.platform_paths", ["GET /tenants", "GET /user/currentUser"])),
        "ingress.paths: expected one that /tenants is below",
    ),
    # What goes by what else is said.
    (
        merged(EVERYTHING, set_at("autoscaling.minReplicas", 7)),
        "autoscaling.minReplicas: expected no more than autoscaling.maxReplicas",
    ),
    (
        merged(EVERYTHING, set_at("resources.requests.cpu", None)),
        "resources.requests.cpu: expected, since autoscaling goes by the percentage of it",
    ),
    (merged(MINIMUM, {"networkPolicy": {"enabled": True}}), "networkPolicy.ingressFrom: expected who the ingress"),
    (
        merged(EVERYTHING, set_at("networkPolicy.monitoringFrom", [])),
        "networkPolicy.monitoringFrom: expected who Prometheus is",
    ),
]

WRONG: Final = [
    ("replica", 2, "additional properties 'replica' not allowed"),
    ("replicas", 0, "'/replicas': minimum: got 0, want 1"),
    ("replicas", "2", "'/replicas': got string, want integer"),
    ("image.pullPolicy", "Sometimes", "'/image/pullPolicy': value must be one of 'IfNotPresent', 'Always', 'Never'"),
    ("image.digest", "sha256:12", "'/image/digest': 'sha256:12' does not match pattern"),
    ("ingress.host", "https://app.example.com", "'/ingress/host': 'https://app.example.com' does not match pattern"),
    ("ingress.paths", [], "'/ingress/paths': minItems: got 0, want 1"),
    ("ingress.tls.secret", "My Secret", "'/ingress/tls/secret': 'My Secret' does not match pattern"),
    ("service.type", "ExternalName", "'/service/type': value must be one of 'ClusterIP', 'NodePort', 'LoadBalancer'"),
    ("serviceMonitor.interval", "half a minute", "'/serviceMonitor/interval': 'half a minute' does not match pattern"),
    ("keys.sessionKey", "a/b", "'/keys/sessionKey': 'a/b' does not match pattern"),
    ("networkPolicy.ingressFrom", [{"namespace": {}}], "additional properties 'namespace' not allowed"),
    # These are the proxy's own.
    ("config.limits.conections", 5, "'/config/limits': additional properties 'conections' not allowed"),
    ("config.limits.connections", 0, "'/config/limits/connections': exclusiveMinimum: got 0, want 0"),
    ("config.limits.connections", 0.5, "'/config/limits/connections': got number, want integer"),
    ("config.log.level", "LOUD", "'/config/log/level': value must be one of 'DEBUG', 'INFO', 'WARNING', 'ERROR'"),
    ("config.drain.timeout_seconds", 60, "'/config/drain/timeout_seconds': maximum: got 60, want 20"),
]

SECTIONS: Final = [
    *("image", "config", "config.listen", "config.admin", "config.upstream", "config.credentials"),
    *("config.credentials.default", "config.gate", "config.drain", "config.log", "keys", "redis", "redis.password"),
    *("redis.ca", "autoscaling", "service", "ingress", "ingress.tls", "podDisruptionBudget", "networkPolicy"),
    *("serviceMonitor", "resources", "resources.requests"),
]


@pytest.fixture(autouse=True)
def evidence() -> None:
    """Nothing is started here that could leave any."""


@pytest.mark.parametrize(("path", "nothing", "told"), MISSING, ids=[path for path, _, _ in MISSING])
def test_what_has_to_be_said_is_asked_for(path: str, nothing: object, told: str) -> None:
    assert told in refusal(merged(MINIMUM, set_at(path, nothing)))


def test_all_of_it_is_asked_for_at_once() -> None:
    text = refusal({})
    assert [told for _, _, told in MISSING if told not in text] == []


@pytest.mark.parametrize(("values", "told"), CONTRADICTIONS, ids=[told for _, told in CONTRADICTIONS])
def test_what_contradicts_itself_is_refused(values: dict[str, Any], told: str) -> None:
    assert [line for line in refusal(values).splitlines() if line.startswith(told)]


@pytest.mark.parametrize(("path", "value", "told"), WRONG, ids=[f"{path}={value}" for path, value, _ in WRONG])
def test_what_is_no_such_value_is_refused(path: str, value: object, told: str) -> None:
    assert told in refusal(merged(MINIMUM, set_at(path, value)))


@pytest.mark.parametrize("path", SECTIONS)
def test_a_section_that_is_taken_away_is_missed_by_its_name_or_not_at_all(path: str) -> None:
    values = merged(MINIMUM, set_at(path, None))
    if told := told_of(values):
        assert [line for line in told.splitlines() if line.startswith(f"{path}.") or "missing property" in line]
    else:
        for document in rendered(values).documents:
            validate(document)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("redis.url", "rediss://default:canary@redis.example.com", "redis.url: expected no password within it"),
        ("redis.url", "redis://:canary@redis.example.com", "redis.url: expected no password within it"),
        (
            "config.upstream.proxy_url",
            "http://proxy:canary@proxy.example.com:3128",
            "config.upstream.proxy_url: expected no user and password within it",
        ),
    ],
)
def test_a_secret_among_the_values_is_refused_and_not_repeated(path: str, value: str, told: str) -> None:
    text = refusal(merged(REPLICAS, set_at(path, value)))
    assert told in text
    assert "canary" not in text


@pytest.mark.parametrize("path", ["keys.clientId", "redis.password.value", "ingress.tls.key", "keys.session"])
def test_there_is_no_value_for_a_secret(path: str) -> None:
    assert f"additional properties '{path.rpartition('.')[2]}' not allowed" in refusal(
        merged(MINIMUM, set_at(path, ""))
    )


def refusal(values: Values) -> str:
    told = told_of(values)
    assert told, "it was rendered"
    return told


def told_of(values: Values) -> str:
    """Why it is refused; nothing where it is not."""
    try:
        rendered(values)
    except Refused as refused:
        return str(refused)
    return ""
