"""What the chart renders is what Kubernetes takes, fits together, and says what the proxy does."""

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from proxy import __version__
from proxy.config import Config, load
from proxy.gate.crossing import COOKIE_BYTES
from tests.conftest import ENDING_SECONDS
from tests.demo.authority import Authority

from .chart import (
    CHART,
    COOKIE,
    EVERYTHING,
    INGRESS,
    MINIMUM,
    NAMESPACE,
    OLDEST,
    PROMETHEUS,
    RELEASE,
    REPLICAS,
    ROOT,
    SETS,
    VERSIONS,
    Refused,
    Rendered,
    linted,
    merged,
    rendered,
    selected_by,
    set_at,
    validate,
)


KINDS: Final = (
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "Ingress",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Service",
    "ServiceMonitor",
)

every_set = pytest.mark.parametrize("name", SETS)


@pytest.fixture(autouse=True)
def evidence() -> None:
    """Nothing is started here that could leave any."""


class TestValidity:
    def test_the_supported_versions_begin_where_the_chart_says(self) -> None:
        assert VERSIONS[0] == f"1.{OLDEST}"
        assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == f">={VERSIONS[0]}.0-0"
        with pytest.raises(Refused, match="kubeVersion"):
            rendered(MINIMUM, version=f"1.{OLDEST - 1}")

    @every_set
    def test_lint_finds_no_fault(self, name: str) -> None:
        assert "0 chart(s) failed" in linted(SETS[name])

    @pytest.mark.parametrize("version", VERSIONS)
    @every_set
    def test_every_supported_version_takes_every_document(self, name: str, version: str) -> None:
        for document in rendered(SETS[name], version=version).documents:
            validate(document, version)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_field_that_drifted_would_be_found(self, kind: str) -> None:
        document = copy.deepcopy(rendered(EVERYTHING).all(kind)[-1])
        document["metadata" if kind == "ConfigMap" else "spec"]["hostNames"] = {}
        with pytest.raises(jsonschema.ValidationError, match="hostNames"):
            validate(document, VERSIONS[-1])

    def test_everything_is_everything(self) -> None:
        assert {document["kind"] for document in rendered(EVERYTHING).documents} == set(KINDS)
        assert {path.stem for path in (CHART / "templates").glob("*.yaml")} == {kind.lower() for kind in KINDS}

    def test_it_is_for_the_image_of_this_version(self) -> None:
        assert rendered(MINIMUM).container["image"] == f"c8y-realtime-proxy:{__version__}"
        tagged = merged(MINIMUM, {"image": {"tag": "0.0.9"}})
        assert rendered(tagged).container["image"] == "c8y-realtime-proxy:0.0.9"
        digest = EVERYTHING["image"]["digest"]
        assert rendered(EVERYTHING).container["image"] == f"registry.example.com/c8y-realtime-proxy@{digest}"

    def test_a_long_name_stays_a_name_for_every_document(self) -> None:
        for document in rendered(EVERYTHING, release="r" * 53).documents:
            assert len(document["metadata"]["name"]) <= 63
        renamed = rendered(merged(EVERYTHING, {"fullnameOverride": "front-door"})).documents
        assert {document["metadata"]["name"] for document in renamed} == {"front-door", "front-door-admin"}


class TestConfiguration:
    @every_set
    def test_it_is_one_that_the_proxy_takes(self, name: str, tmp_path: Path) -> None:
        assert loaded(rendered(SETS[name]), tmp_path).upstream.url == "https://tenant.example.com"

    def test_the_values_of_the_docs_are_taken_each_and_together(self, tmp_path: Path) -> None:
        page = (ROOT / "docs/howto-helm.md").read_text(encoding="utf-8")
        first, *others = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL))
        assert others
        for number, values in enumerate([first, *(merged(first, other) for other in others), merged(first, *others)]):
            folder = tmp_path / str(number)
            folder.mkdir()
            assert loaded(rendered(values), folder).frontdoor.title == "the plant"

    def test_whatever_stands_under_config_arrives_as_it_is(self, tmp_path: Path) -> None:
        config, given = loaded(rendered(EVERYTHING), tmp_path), EVERYTHING["config"]
        assert config.frontdoor.title == given["frontdoor"]["title"]
        assert list(config.frontdoor.platform_paths) == given["frontdoor"]["platform_paths"]
        assert config.gate.grants
        assert [grant.subscribe for grant in config.gate.grants] == [("/measurements/*",)]
        for name, value in given["limits"].items():
            assert getattr(config.limits, name) == value
        assert (config.drain.accept_seconds, config.drain.timeout_seconds) == (7.5, 20)

    @every_set
    def test_browsers_reach_it_by_the_host_of_the_ingress(self, name: str, tmp_path: Path) -> None:
        door = rendered(SETS[name])
        origin = loaded(door, tmp_path).frontdoor.public_origin
        hosts = [rule["host"] for ingress in door.all("Ingress") for rule in ingress["spec"]["rules"]]
        assert [origin] == ([f"https://{host}" for host in hosts] or ["https://app.example.com:8443"])

    @every_set
    def test_the_files_that_it_names_are_those_of_the_secrets_and_no_others_are_mounted(
        self, name: str, tmp_path: Path
    ) -> None:
        door = rendered(SETS[name])
        config, root = loaded(door, tmp_path), str(tmp_path)
        named = [
            config.gate.client_id_key_file,
            config.frontdoor.session_key_file,
            config.frontdoor.redis_password_file,
            config.frontdoor.redis_ca_file,
        ]
        assert {str(path).removeprefix(root) for path in named if path} == set(door.secret_files())

    def test_each_file_is_the_entry_that_the_values_name(self) -> None:
        own = {"keys": {"clientIdKey": "one", "sessionKey": "two"}, "redis": {"password": {"key": "three"}}}
        run = "/run/c8y-realtime-proxy/secrets"
        assert rendered(merged(EVERYTHING, own)).secret_files() == {
            f"{run}/client-id-key": ("front-door-keys", "one"),
            f"{run}/session-key": ("front-door-keys", "two"),
            f"{run}/redis-password": ("front-door-redis", "three"),
            f"{run}/redis-ca.crt": ("redis-ca", "ca.crt"),
        }
        assert rendered(COOKIE).secret_files() == {f"{run}/client-id-key": ("front-door-keys", "client-id-key")}

    @every_set
    def test_no_secret_is_rendered_and_none_comes_by_the_environment(self, name: str) -> None:
        door = rendered(SETS[name])
        assert not door.all("Secret")
        assert [variable.keys() for variable in door.container["env"]] == [{"name", "value"}]
        assert "envFrom" not in door.container

    def test_the_environment_leads_to_the_file(self) -> None:
        door = rendered(MINIMUM)
        [mount] = [each for each in door.container["volumeMounts"] if each["name"] == "config"]
        [volume] = [each for each in door.pod["spec"]["volumes"] if each["name"] == "config"]
        assert volume["configMap"]["name"] == door.the("ConfigMap")["metadata"]["name"]
        assert door.container["env"] == [
            {"name": "C8Y_REALTIME_PROXY_CONFIG", "value": f"{mount['mountPath']}/config.toml"}
        ]

    def test_a_change_of_it_and_nothing_else_is_a_rollout(self) -> None:
        changed = merged(MINIMUM, set_at("config.limits.connections", 5))
        assert rendered(changed).pod["metadata"] != rendered(MINIMUM).pod["metadata"]
        scaled = merged(MINIMUM, {"service": {"port": 8080}, "ingress": {"className": "nginx"}})
        assert rendered(scaled).pod == rendered(MINIMUM).pod

    def test_logs_are_for_machines(self, tmp_path: Path) -> None:
        assert loaded(rendered(MINIMUM), tmp_path).log.format == "json"


class TestPod:
    def test_an_upgrade_takes_no_replica_away_before_there_is_another(self) -> None:
        strategy = rendered(MINIMUM).the("Deployment")["spec"]["strategy"]
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}

    @every_set
    def test_it_has_time_to_take_leave(self, name: str, tmp_path: Path) -> None:
        door = rendered(SETS[name])
        drain = loaded(door, tmp_path).drain
        needed = drain.accept_seconds + drain.timeout_seconds + ENDING_SECONDS
        assert needed < door.pod["spec"]["terminationGracePeriodSeconds"] <= math.ceil(needed) + 10
        # A Service and an ingress need some time to notice.
        assert drain.accept_seconds >= 5

    def test_the_time_follows_the_settings_where_these_are_left_to_the_proxy(self, tmp_path: Path) -> None:
        left = merged(MINIMUM, set_at("config.drain", None))
        default = Config().drain
        door = rendered(left)
        assert loaded(door, tmp_path).drain == default
        longest = default.accept_seconds + default.timeout_seconds + ENDING_SECONDS
        assert door.pod["spec"]["terminationGracePeriodSeconds"] > longest

    @every_set
    def test_it_has_no_more_rights_than_it_needs(self, name: str) -> None:
        pod, container = rendered(SETS[name]).pod["spec"], rendered(SETS[name]).container
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container["securityContext"] == {
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()

    @every_set
    def test_secrets_are_readable_through_their_group_and_replaced_when_they_change(self, name: str) -> None:
        door = rendered(SETS[name])
        [volume] = [each for each in door.pod["spec"]["volumes"] if each["name"] == "secrets"]
        assert volume["projected"]["defaultMode"] == 0o440
        for mount in door.container["volumeMounts"]:
            assert mount["readOnly"] is True
            assert not {"subPath", "subPathExpr"} & mount.keys()

    def test_it_says_what_it_needs_and_is_not_throttled(self) -> None:
        resources = rendered(MINIMUM).container["resources"]
        assert resources["requests"].keys() == {"cpu", "memory"}
        assert resources["limits"].keys() == {"memory"}

    def test_replicas_are_spread_as_far_as_possible(self) -> None:
        door = rendered(REPLICAS)
        constraints = door.pod["spec"]["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in constraints] == [
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
        ]
        for each in constraints:
            assert each["whenUnsatisfiable"] == "ScheduleAnyway"
            assert selected_by(each["labelSelector"]["matchLabels"], door.pod["metadata"]["labels"])
        own = {"topologyKey": "rack", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}
        chosen = rendered(merged(REPLICAS, {"topologySpreadConstraints": [own]}))
        assert chosen.pod["spec"]["topologySpreadConstraints"] == [own]

    def test_what_is_said_of_nodes_and_of_the_pod_arrives(self) -> None:
        pod = rendered(EVERYTHING).pod
        for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "imagePullSecrets"):
            assert pod["spec"][name] == EVERYTHING[name]
        assert EVERYTHING["podLabels"].items() <= pod["metadata"]["labels"].items()
        assert EVERYTHING["podAnnotations"].items() <= pod["metadata"]["annotations"].items()


class TestReferences:
    @every_set
    def test_whatever_selects_pods_selects_these(self, name: str) -> None:
        door = rendered(SETS[name])
        selectors = [
            door.the("Deployment")["spec"]["selector"]["matchLabels"],
            *(service["spec"]["selector"] for service in door.all("Service")),
            *(budget["spec"]["selector"]["matchLabels"] for budget in door.all("PodDisruptionBudget")),
            *(policy["spec"]["podSelector"]["matchLabels"] for policy in door.all("NetworkPolicy")),
        ]
        assert len(selectors) >= 3
        for selector in selectors:
            assert selected_by(selector, door.pod["metadata"]["labels"])

    def test_pods_of_another_release_are_not_selected(self) -> None:
        other = rendered(EVERYTHING, release="other").pod["metadata"]["labels"]
        for service in rendered(EVERYTHING).all("Service"):
            assert not selected_by(service["spec"]["selector"], other)

    @every_set
    def test_every_port_that_is_named_exists(self, name: str) -> None:
        door = rendered(SETS[name])
        named = [port["targetPort"] for service in door.all("Service") for port in service["spec"]["ports"]]
        named += [door.container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "liveness", "readiness")]
        for policy in door.all("NetworkPolicy"):
            named += [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
        assert set(named) <= set(door.ports)

    @every_set
    def test_the_containers_ports_are_those_of_the_configuration(self, name: str, tmp_path: Path) -> None:
        door = rendered(SETS[name])
        config = loaded(door, tmp_path)
        assert door.ports == {"http": config.listen.port, "admin": config.admin.port}
        moved = merged(SETS[name], {"config": {"listen": {"port": 8000}, "admin": {"port": 9000}}})
        assert rendered(moved).ports == {"http": 8000, "admin": 9000}

    @every_set
    def test_the_autoscaler_has_its_deployment_to_itself(self, name: str) -> None:
        door = rendered(SETS[name])
        deployment = door.the("Deployment")
        targets = [scaler["spec"]["scaleTargetRef"] for scaler in door.all("HorizontalPodAutoscaler")]
        for target in targets:
            assert target == {
                "apiVersion": deployment["apiVersion"],
                "kind": "Deployment",
                "name": deployment["metadata"]["name"],
            }
        assert ("replicas" in deployment["spec"]) is not bool(targets)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_the_autoscaler_goes_by_further_metrics_as_well_such_as_that_of_the_docs(self, version: str) -> None:
        [example] = re.findall(r"```yaml\n(metrics:.*?)```", (ROOT / "docs/scaling.md").read_text(), flags=re.DOTALL)
        pods = [metric for metric in yaml.safe_load(example)["metrics"] if metric["type"] == "Pods"]
        assert pods
        values = merged(EVERYTHING, set_at("autoscaling.metrics", pods))
        scaler = rendered(values, version=version).the("HorizontalPodAutoscaler")
        validate(scaler, version)
        [cpu] = rendered(EVERYTHING, version=version).the("HorizontalPodAutoscaler")["spec"]["metrics"]
        assert scaler["spec"]["metrics"] == [cpu, *pods]

    def test_pods_leave_slowly_and_come_one_by_one(self) -> None:
        behavior = rendered(EVERYTHING).the("HorizontalPodAutoscaler")["spec"]["behavior"]
        for way in ("scaleUp", "scaleDown"):
            assert [policy["value"] for policy in behavior[way]["policies"]] == [1]
        assert behavior["scaleDown"]["stabilizationWindowSeconds"] > behavior["scaleUp"]["stabilizationWindowSeconds"]

    def test_one_replica_does_not_keep_its_node_from_being_emptied(self) -> None:
        budget = rendered(MINIMUM).the("PodDisruptionBudget")["spec"]
        assert (budget["maxUnavailable"], "minAvailable" in budget) == (1, False)


class TestWaysIn:
    @every_set
    def test_the_service_leads_to_the_public_listener_alone(self, name: str) -> None:
        door = rendered(SETS[name])
        assert [port["targetPort"] for port in door.the("Service")["spec"]["ports"]] == ["http"]
        for service in door.all("Service"):
            if "admin" in {port["targetPort"] for port in service["spec"]["ports"]}:
                assert service["spec"]["clusterIP"] == "None"

    @every_set
    def test_the_ingress_leads_to_the_service_alone(self, name: str) -> None:
        door = rendered(SETS[name])
        service = door.the("Service")
        for path in paths_of(door):
            backend = path["backend"]["service"]
            assert backend["name"] == service["metadata"]["name"]
            assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}

    def test_the_ingress_leads_all_that_the_values_list(self) -> None:
        listed = yaml.safe_load((CHART / "values.yaml").read_text())["ingress"]["paths"]
        assert [(path["path"], path["pathType"]) for path in paths_of(rendered(MINIMUM))] == [
            (path, "Prefix") for path in listed
        ]
        assert [path["path"] for path in paths_of(rendered(EVERYTHING))] == ["/"]

    def test_the_rest_of_the_host_is_left_to_the_application(self) -> None:
        assert "/" not in [path["path"] for path in paths_of(rendered(MINIMUM))]

    @every_set
    def test_the_ingress_ends_tls_for_its_host_unless_something_else_does(self, name: str) -> None:
        for ingress in rendered(SETS[name]).all("Ingress"):
            [rule] = ingress["spec"]["rules"]
            ends = name != "TLS ends elsewhere"
            assert [host for tls in ingress["spec"].get("tls", []) for host in tls["hosts"]] == [rule["host"]] * ends
        [tls] = rendered(EVERYTHING).the("Ingress")["spec"]["tls"]
        assert tls["secretName"] == EVERYTHING["ingress"]["tls"]["secret"]

    def test_the_ingress_waits_for_as_long_as_the_platform_holds_a_connect(self) -> None:
        annotations = rendered(MINIMUM).the("Ingress")["metadata"]["annotations"]
        for name in ("proxy-read-timeout", "proxy-send-timeout"):
            assert int(annotations[f"nginx.ingress.kubernetes.io/{name}"]) == 2 * 3600
        assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"

    def test_the_ingress_takes_an_answer_with_three_cookies_as_long_as_browsers_keep_them(self) -> None:
        annotations = rendered(COOKIE).the("Ingress")["metadata"]["annotations"]
        size = annotations["nginx.ingress.kubernetes.io/proxy-buffer-size"]
        assert int(size.removesuffix("k")) * 1024 > 3 * COOKIE_BYTES

    def test_nobody_has_to_remember_where_a_client_went(self) -> None:
        for values in (REPLICAS, EVERYTHING, COOKIE):
            door = rendered(values)
            assert "sessionAffinity" not in door.the("Service")["spec"]
            assert not [name for name in door.the("Ingress")["metadata"]["annotations"] if "affinity" in name]

    def test_the_policy_lets_in_the_ingress_and_prometheus_and_out_what_is_needed(self) -> None:
        dns = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]
        policy = rendered(EVERYTHING).the("NetworkPolicy")["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert policy["ingress"] == [
            {"from": INGRESS, "ports": [{"port": "http", "protocol": "TCP"}]},
            {"from": PROMETHEUS, "ports": [{"port": "admin", "protocol": "TCP"}]},
        ]
        assert policy["egress"] == [
            {"to": dns, "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
            {"to": EVERYTHING["networkPolicy"]["upstreamTo"], "ports": [{"port": 443, "protocol": "TCP"}]},
            {"to": EVERYTHING["networkPolicy"]["redisTo"], "ports": [{"port": 6380, "protocol": "TCP"}]},
        ]

    def test_without_prometheus_and_redis_the_policy_knows_neither(self) -> None:
        policy = {"networkPolicy": {"enabled": True, "ingressFrom": INGRESS}}
        spec = rendered(merged(MINIMUM, policy)).the("NetworkPolicy")["spec"]
        assert [rule["from"] for rule in spec["ingress"]] == [INGRESS]
        assert [[port["port"] for port in rule["ports"]] for rule in spec["egress"]] == [[53, 53], [443]]

    @pytest.mark.parametrize(
        ("upstream", "redis", "ports"),
        [
            ({"url": "http://tenant.example.com"}, "redis://redis", [80, 6379]),
            ({"url": "https://tenant.example.com:8443"}, "redis://someone@[::1]", [8443, 6379]),
            ({"url": "https://[2001:db8::1]"}, "rediss://[2001:db8::2]:6390/3", [443, 6390]),
            ({"proxy_url": "http://proxy.example.com:3128"}, "redis://redis:6380", [3128, 6380]),
        ],
    )
    def test_the_policy_has_the_ports_of_the_addresses(
        self, upstream: dict[str, str], redis: str, ports: list[int]
    ) -> None:
        policy = {"networkPolicy": {"enabled": True, "ingressFrom": INGRESS}}
        values = merged(REPLICAS, policy, {"config": {"upstream": upstream}, "redis": {"url": redis}})
        egress = rendered(values).the("NetworkPolicy")["spec"]["egress"]
        assert [rule["ports"][0]["port"] for rule in egress[1:]] == ports

    def test_prometheus_finds_the_admin_listener_of_every_pod_also_while_it_drains(self) -> None:
        door = rendered(EVERYTHING)
        monitor = door.the("ServiceMonitor")
        [endpoint] = monitor["spec"]["endpoints"]
        selector = monitor["spec"]["selector"]["matchLabels"]
        [service] = [each for each in door.all("Service") if selected_by(selector, each["metadata"]["labels"])]
        [port] = [each for each in service["spec"]["ports"] if each["name"] == endpoint["port"]]
        assert (port["targetPort"], endpoint["path"]) == ("admin", "/metrics")
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}
        assert monitor["metadata"]["labels"]["release"] == "prometheus"

    def test_the_alert_about_a_pod_that_is_down_goes_by_the_job_whatever_the_release_is_called(self) -> None:
        [group] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
        [down] = [rule for rule in group["rules"] if rule.get("alert") == "C8yRealtimeProxyDown"]
        [job] = re.findall(r'job=~"([^"]+)"', down["expr"])
        door = rendered(merged(EVERYTHING, {"fullnameOverride": "front-door"}))
        [endpoint] = door.the("ServiceMonitor")["spec"]["endpoints"]
        [relabelling] = endpoint["relabelings"]
        assert relabelling["targetLabel"] == "job"
        assert re.fullmatch(job, relabelling["replacement"])

    def test_nothing_is_named_for_prometheus_where_there_is_none(self) -> None:
        door = rendered(MINIMUM)
        assert not door.all("ServiceMonitor")
        assert [each["metadata"]["name"] for each in door.all("Service")] == [f"{RELEASE}-c8y-realtime-proxy"]


def paths_of(door: Rendered) -> Iterator[dict[str, Any]]:
    for ingress in door.all("Ingress"):
        for rule in ingress["spec"]["rules"]:
            yield from rule["http"]["paths"]


def loaded(door: Rendered, root: Path) -> Config:
    """The configuration as the proxy reads it, where every file that is mounted lies below a root."""
    text = door.config
    for mount in door.container["volumeMounts"]:
        directory = root / mount["mountPath"].lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        text = text.replace(f'"{mount["mountPath"]}/', f'"{directory}/')
        if mount["name"].endswith("ca"):
            Authority().ca_file(directory).rename(directory / "ca.crt")
    for path in door.secret_files():
        file = root / path.lstrip("/")
        if urlsplit(path).path.endswith(".crt"):
            Authority().ca_file(file.parent).rename(file)
        else:
            file.write_text(f"{path} of 32 letters, or even more of them\n", encoding="utf-8")
    config = root / "config.toml"
    config.write_text(text, encoding="utf-8")
    return load(config, {})
