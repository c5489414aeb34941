"""The chart of the front door as the real Helm renders it, and values for it.

door = rendered(MINIMUM)
door.the("Deployment")["spec"]
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import yaml


ROOT: Final = Path(__file__).parents[3]
CHART: Final = ROOT / "deploy/helm/c8y-realtime-proxy"
HELM: Final = ROOT / "build/tools/helm"
RELEASE, NAMESPACE = "plant", "doors"

OLDEST: Final = 29
VERSIONS: Final = sorted(
    {
        f"1.{minor}"
        for version in kubernetes_validate.utils.all_versions()
        if (minor := int(version.split(".")[1])) >= OLDEST
    }
)
"""The versions of Kubernetes that are supported, as far as there are schemas for them."""

Values = Mapping[str, Any]

_SERVICE_MONITOR: Final = jsonschema.Draft202012Validator(
    json.loads(Path(__file__).with_name("servicemonitor.schema.json").read_text(encoding="utf-8"))  # noqa: TID251 - ours
)


class Refused(Exception):
    """Helm refuses to render; the text is what a user reads."""


@dataclass(frozen=True)
class Rendered:
    documents: list[dict[str, Any]]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [document for document in self.documents if document["kind"] == kind]

    def the(self, kind: str) -> dict[str, Any]:
        """The only one of its kind, but for the Service that is for Prometheus alone."""
        [document] = [each for each in self.all(kind) if not each["metadata"]["name"].endswith("-admin")]
        return document

    @property
    def pod(self) -> dict[str, Any]:
        pod: dict[str, Any] = self.the("Deployment")["spec"]["template"]
        return pod

    @property
    def container(self) -> dict[str, Any]:
        [container] = self.pod["spec"]["containers"]
        assert isinstance(container, dict)
        return container

    @property
    def ports(self) -> dict[str, int]:
        """The ports of the container by their names."""
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}

    @property
    def config(self) -> str:
        """The file of the configuration."""
        data = self.the("ConfigMap")["data"]
        assert list(data) == ["config.toml"]
        return str(data["config.toml"])

    def secret_files(self) -> dict[str, tuple[str, str]]:
        """The Secret, or ConfigMap, and the entry of it that each file in the pod is, by its path."""
        [volume] = [each for each in self.pod["spec"]["volumes"] if each["name"] == "secrets"]
        [mount] = [each for each in self.container["volumeMounts"] if each["name"] == "secrets"]
        return {
            f"{mount['mountPath']}/{item['path']}": (source["name"], item["key"])
            for projected in volume["projected"]["sources"]
            for source in projected.values()
            for item in source["items"]
        }


def rendered(values: Values, *, version: str = VERSIONS[-1], release: str = RELEASE) -> Rendered:
    """What `helm template` makes of values. Raises Refused."""
    return _rendered(json.dumps(values), version, release)


@cache
def _rendered(values: str, version: str, release: str) -> Rendered:
    told = _helm(
        *("template", release, str(CHART), "--namespace", NAMESPACE, "--kube-version", version, "--values", "-"),
        values=values,
    )
    if told.returncode:
        raise Refused(told.stderr)
    assert not told.stderr
    return Rendered([document for document in yaml.safe_load_all(told.stdout) if document])


def validate(document: dict[str, Any], version: str = VERSIONS[-1]) -> None:
    """Raises a ValidationError where Kubernetes would not take it."""
    if document["kind"] == "ServiceMonitor":
        _SERVICE_MONITOR.validate(document)
    else:
        kubernetes_validate.validate(document, version, strict=True)


def linted(values: Values) -> str:
    """What `helm lint --strict` says of values. Raises Refused where it finds fault."""
    told = _helm("lint", "--strict", str(CHART), "--values", "-", values=json.dumps(values))
    if told.returncode:
        raise Refused(told.stdout)
    return told.stdout


def _helm(*arguments: str, values: str) -> subprocess.CompletedProcess[str]:
    assert HELM.exists(), "no build/tools/helm: run tests/e2e/helm/setup"
    return subprocess.run(  # noqa: S603 - as it was built
        [HELM, *arguments], input=values, capture_output=True, text=True, check=False
    )


def merged(values: Values, *others: Values) -> dict[str, Any]:
    """Values with others laid over them, as Helm does it."""
    result = dict(values)
    for other in others:
        for name, value in other.items():
            below = result.get(name)
            result[name] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def set_at(path: str, value: object) -> dict[str, Any]:
    """Values that say one thing, by its dotted path."""
    tree: Any = value
    for name in reversed(path.split(".")):
        tree = {name: tree}
    assert isinstance(tree, dict)
    return tree


MINIMUM: Final[Values] = {
    "config": {"upstream": {"url": "https://tenant.example.com"}, "gate": {"trusted_proxies": ["10.0.0.0/8"]}},
    "ingress": {"host": "app.example.com"},
    "keys": {"secret": "front-door-keys"},
}
REPLICAS: Final = merged(
    MINIMUM, {"replicas": 2, "redis": {"url": "redis://redis.example.com", "password": {"secret": "front-door-redis"}}}
)
COOKIE: Final = merged(MINIMUM, {"replicas": 2}, set_at("config.credentials.default.source", "cookie"))
INGRESS: Final = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}]
PROMETHEUS: Final = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
EVERYTHING: Final = merged(
    REPLICAS,
    {
        "image": {"repository": "registry.example.com/c8y-realtime-proxy", "digest": f"sha256:{'0' * 64}"},
        "imagePullSecrets": [{"name": "registry"}],
        "config": {
            "upstream": {"ca_file": "/run/ca/ca.crt"},
            "frontdoor": {
                "title": 'The "plant" <é>',
                "platform_paths": ["GET /tenant/currentTenant", "GET /inventory/managedObjects"],
            },
            "gate": {"grants": [{"subscribe": ["/measurements/*"], "publish": []}]},
            "limits": {"connections": 20_000, "upstream_payload_bytes": 67_108_864, "heartbeat_seconds": 12.5},
            "drain": {"accept_seconds": 7.5, "timeout_seconds": 20},
        },
        "redis": {"url": "rediss://redis.example.com:6380/1", "ca": {"configMap": "redis-ca"}},
        "autoscaling": {"enabled": True},
        "service": {"type": "LoadBalancer", "annotations": {"example.com/of": "the Service"}},
        "ingress": {"className": "nginx", "paths": ["/"], "tls": {"secret": "app-example-com"}},
        "networkPolicy": {
            "enabled": True,
            "ingressFrom": INGRESS,
            "monitoringFrom": PROMETHEUS,
            "upstreamTo": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
            "redisTo": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "redis"}}}],
        },
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podLabels": {"team": "plant"},
        "podAnnotations": {"example.com/of": "the pod"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "doors", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "doors",
        "extraVolumes": [{"name": "ca", "configMap": {"name": "tenant-ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/run/ca", "readOnly": True}],
    },
)
SETS: Final[Mapping[str, Values]] = {
    "minimum": MINIMUM,
    "replicas": REPLICAS,
    "redis with a certificate of a Secret": merged(
        REPLICAS,
        {"redis": {"url": "rediss://redis.example.com", "password": {"secret": ""}, "ca": {"secret": "redis"}}},
    ),
    "cookie": COOKIE,
    "no ingress": merged(
        MINIMUM,
        {"ingress": {"enabled": False, "host": ""}},
        set_at("config.frontdoor.public_origin", "https://app.example.com:8443"),
    ),
    "TLS ends elsewhere": merged(MINIMUM, {"ingress": {"tls": {"enabled": False}}}),
    "everything": EVERYTHING,
    "everything with cookie": merged(
        EVERYTHING | {"config": EVERYTHING["config"] | {"frontdoor": {}}},
        set_at("config.credentials.default.source", "cookie"),
        {"redis": {"url": "", "password": {"secret": ""}, "ca": {"configMap": ""}}},
    ),
}


def selected_by(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether labels are what a selector selects; one that is empty would select everything."""
    return bool(selector) and selector.items() <= labels.items()
