"""What kustomize makes of the component and of the examples says what the proxy does, and leaves the rest alone."""

import copy
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes_validate.utils import ValidationError, all_versions, validate

from proxy import __version__
from proxy.config import PREFIX, BadConfiguration, load
from proxy.credentials.stored import NAMES, credential_from
from proxy.gate.admission import Gate, Hosts, is_loopback
from proxy.gate.endpoints import endpoint_of
from proxy.head import Head
from proxy.operations.admin import Admin
from proxy.operations.live import Live
from proxy.operations.metrics import Metrics
from proxy.operations.status import StatusPage
from tests.conftest import LONGEST_EXIT_SECONDS
from tests.test_deploy import ROOT, said

from .rendering import (
    COMPONENT,
    MANIFESTS,
    NAME,
    SECRET,
    Manifest,
    Refused,
    Workload,
    example,
    kustomization,
    rendered,
    workloads,
)


MINORS: Final = sorted({int(version.split(".")[1]) for version in all_versions()})
NATIVE_SINCE: Final = 29
VERSIONS: Final = [f"1.{minor}" for minor in MINORS if minor >= NATIVE_SINCE]
EARLIER_VERSIONS: Final = [f"1.{minor}" for minor in MINORS if minor < NATIVE_SINCE]
EXAMPLES: Final = sorted(path.name for path in (MANIFESTS / "examples").iterdir())
KINDS: Final = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
LABELS: Final = ("sidecar", "classic-sidecar")
SETTINGS: Final = {f"{PREFIX}UPSTREAM__URL": "https://tenant.example.com"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`workload` is each of all examples; it is rendered here, so that there is one test for each."""
    if "workload" in metafunc.fixturenames:
        found = [workload for name in EXAMPLES for workload in workloads(example(name))]
        metafunc.parametrize("workload", found, ids=str)


def config_map(settings: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": NAME, "literals": [f"{name}={value}" for name, value in settings.items()]}]


def application(kind: str, label: str | None) -> Manifest:
    """An application that has thought about its pod, and not of us."""
    pod: Manifest = {
        "serviceAccountName": "its-own",
        "terminationGracePeriodSeconds": 120,
        "securityContext": {"runAsUser": 4711, "fsGroup": 4712, "supplementalGroups": [4713]},
        "initContainers": [
            {"name": "migrate", "image": "migrate:2", "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
            {"name": "other-sidecar", "image": "other:3", "restartPolicy": "Always"},
        ],
        "containers": [
            {
                "name": "web",
                "image": "web:4",
                "command": ["/web"],
                "env": [{"name": f"{PREFIX}ADMIN__HOST", "value": "not-for-the-sidecar"}, {"name": "A", "value": "1"}],
                "envFrom": [{"configMapRef": {"name": "its-own"}}],
                "ports": [{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 9000}],
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "securityContext": {"readOnlyRootFilesystem": False},
            },
            {"name": "worker", "image": "web:4", "args": ["work"]},
        ],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "its-secret", "secret": {"secretName": "its-own"}}],
    }
    metadata: Manifest = {"name": "awkward", "labels": {"app": "awkward"}}
    template = {"metadata": {"labels": {"app": "awkward"}}, "spec": pod}
    if label:
        metadata["labels"][NAME] = label
    selector: Manifest = {"selector": {"matchLabels": {"app": "awkward"}}}
    match kind:
        case "Job" | "CronJob":
            pod["restartPolicy"] = "OnFailure"
            job = {"backoffLimit": 7, "template": template}
            spec = job if kind == "Job" else {"schedule": "0 4 * * *", "jobTemplate": {"spec": job}}
        case "StatefulSet":
            spec = selector | {"serviceName": "awkward", "template": template}
        case _:
            spec = selector | {"template": template}
    version = "batch/v1" if kind.endswith("Job") else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def with_component(directory: Path, *manifests: Manifest, **more: Any) -> Workload:
    """What comes of one workload whose kustomization names the component."""
    more = {"configMapGenerator": config_map(SETTINGS)} | more
    [workload] = workloads(rendered(kustomization(directory, manifests, components=[COMPONENT], **more)))
    return workload


def without_ours(workload: Workload) -> Manifest:
    """The workload, less the sidecar and its volumes."""
    left = Workload(copy.deepcopy(workload.manifest), {})
    left.pod["initContainers" if left.is_native else "containers"].remove(left.sidecar)
    left.pod["volumes"] = [volume for volume in left.pod["volumes"] if not volume["name"].startswith("c8y-")]
    return left.manifest


class TestEveryExample:
    def test_it_is_accepted_by_every_supported_version(self, workload: Workload) -> None:
        versions = VERSIONS if workload.is_native else EARLIER_VERSIONS + VERSIONS
        for version in versions:
            assert validate(workload.manifest, version, strict=True) == version

    def test_a_word_that_kubernetes_does_not_know_would_be_found(self, workload: Workload) -> None:
        wrong = copy.deepcopy(workload)
        wrong.sidecar["readynessProbe"] = wrong.sidecar.pop("readinessProbe")
        with pytest.raises(ValidationError):
            validate(wrong.manifest, VERSIONS[-1], strict=True)

    def test_its_environment_is_a_valid_configuration(self, workload: Workload) -> None:
        assert workload.configuration().upstream.url

    def test_a_variable_that_drifted_would_be_found(self, workload: Workload) -> None:
        with pytest.raises(BadConfiguration):
            load(None, workload.environment(workload.sidecar) | {f"{PREFIX}ADMIN__PORTS": ""})

    def test_its_sidecar_comes_first(self, workload: Workload) -> None:
        first, *_ = workload.pod["initContainers" if workload.is_native else "containers"]
        assert first == workload.sidecar
        assert ("postStart" in first.get("lifecycle", {})) is not workload.is_native

    def test_its_sidecar_is_native_where_a_label_says_so(self, workload: Workload) -> None:
        label = workload.manifest["metadata"]["labels"][NAME]
        assert workload.is_native == (label == "sidecar")
        assert workload.sidecar.get("restartPolicy") == ("Always" if workload.is_native else None)

    def test_its_images_are_where_it_says(self, workload: Workload) -> None:
        assert workload.sidecar["image"] == f"registry.example.com/c8y-realtime-proxy:{__version__}"

    def test_its_user_is_the_one_of_the_image(self, workload: Workload) -> None:
        context = workload.sidecar["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == said("USER")

    def test_clients_outside_of_the_pod_reach_only_the_admin_listener(self, workload: Workload) -> None:
        config = workload.configuration()
        assert is_loopback(config.listen.host)
        assert not is_loopback(config.admin.host)
        [port] = workload.sidecar["ports"]
        assert port == {"name": "c8y-proxy-admin", "containerPort": config.admin.port}

    @pytest.mark.parametrize(
        ("probe", "path"), [("startupProbe", "/startupz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
    )
    def test_each_probe_asks_a_path_of_the_admin_listener(self, workload: Workload, probe: str, path: str) -> None:
        hosts = Hosts((), listening_on="127.0.0.1", key="")
        metrics = Metrics("stored")
        status = StatusPage(
            metrics.history, Live(metrics), credentials=lambda: (), unready=lambda: None, secrets=lambda: ()
        )
        admin = Admin(metrics.registry, hosts, is_started=lambda: True, unready=lambda: None, status=status)
        assert ("GET", path) in admin.routes
        assert workload.sidecar[probe]["httpGet"] == {"path": path, "port": "c8y-proxy-admin"}

    def test_the_credential_directory_is_the_mounted_secret(self, workload: Workload) -> None:
        [volume] = [volume for volume in workload.pod["volumes"] if "secret" in volume]
        assert volume["secret"]["secretName"] == SECRET["metadata"]["name"]
        [mount] = [mount for mount in workload.sidecar["volumeMounts"] if mount["name"] == volume["name"]]
        directory = workload.configuration().credentials["default"].directory
        assert mount == {"name": volume["name"], "mountPath": str(directory), "readOnly": True}

    def test_the_secret_is_readable_for_a_user_that_owns_nothing_and_writable_for_nobody(
        self, workload: Workload
    ) -> None:
        [volume] = [volume for volume in workload.pod["volumes"] if "secret" in volume]
        assert volume["secret"]["defaultMode"] == 0o444

    def test_nobody_else_mounts_the_secret(self, workload: Workload) -> None:
        for container in workload.applications:
            assert "c8y-credential" not in [mount["name"] for mount in container.get("volumeMounts", ())]
            assert "envFrom" not in container
            assert all(variable.keys() == {"name", "value"} for variable in container["env"])
            assert container["securityContext"]["runAsUser"] != workload.sidecar["securityContext"]["runAsUser"]

    def test_no_volume_is_mounted_by_sub_path(self, workload: Workload) -> None:
        for container in (workload.sidecar, *workload.applications):
            for mount in container.get("volumeMounts", ()):
                assert not {"subPath", "subPathExpr"} & mount.keys()

    def test_the_pod_has_time_for_the_longest_exit(self, workload: Workload) -> None:
        longest = workload.configuration().drain.accept_seconds + LONGEST_EXIT_SECONDS
        assert workload.pod["terminationGracePeriodSeconds"] > longest

    def test_only_a_classic_sidecar_goes_on_to_accept_while_the_application_ends(self, workload: Workload) -> None:
        assert (workload.configuration().drain.accept_seconds == 0) is workload.is_native

    def test_a_job_ends_one_day_though_nobody_told_its_classic_sidecar(self, workload: Workload) -> None:
        if workload.manifest["kind"] == "Job":
            assert ("activeDeadlineSeconds" in workload.manifest["spec"]) is not workload.is_native

    def test_only_a_classic_sidecar_can_be_told_to_quit_and_by_those_who_mount_its_volume(
        self, workload: Workload
    ) -> None:
        socket = workload.configuration().admin.socket
        if workload.is_native:
            assert socket is None
            return
        [mount] = [mount for mount in workload.sidecar["volumeMounts"] if mount["name"] == NAME]
        assert mount == {"name": NAME, "mountPath": str(Path(str(socket)).parent)}
        assert {"name": NAME, "emptyDir": {}} in workload.pod["volumes"]

    def test_no_container_has_more_rights_than_it_needs(self, workload: Workload) -> None:
        for container in (workload.sidecar, *workload.applications):
            context = container["securityContext"]
            assert context["runAsUser"] > 0
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            both = workload.pod["securityContext"] | context
            assert both["runAsNonRoot"] is True
            assert both["seccompProfile"] == {"type": "RuntimeDefault"}
        assert workload.pod["automountServiceAccountToken"] is False

    def test_the_applications_address_leads_through_the_gate(self, workload: Workload) -> None:
        config = workload.configuration()
        for container in workload.applications:
            address = urlsplit(workload.environment(container)["REALTIME_URL"])
            assert (address.scheme, address.port) == ("http", config.listen.port)
            assert endpoint_of(address.path) is not None
            gate = Gate(
                listening_on=config.listen.host,
                hosts=config.gate.hosts,
                origins=config.gate.origins,
                relayed_cookies=config.upstream.relayed_cookies,
            )
            gate.admit(Head("POST", address.path, (("host", address.netloc),), peer="127.0.0.1"))


@dataclass(frozen=True)
class Built:
    """What comes of one application of each kind: with the component, without it, and with images and names moved."""

    label: str
    ours: dict[str, Workload]
    plain: dict[str, Workload]
    moved: dict[str, Workload]


@pytest.fixture(scope="module", params=LABELS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    applications = [application(kind, request.param) for kind in KINDS]

    def build(*others: Manifest, **more: Any) -> dict[str, Workload]:
        directory = kustomization(tmp_path_factory.mktemp("built"), [*applications, *others], **more)
        return {it.manifest["kind"]: it for it in workloads(rendered(directory))}

    with_it = {"components": [COMPONENT], "configMapGenerator": config_map(SETTINGS)}
    images = [{"name": NAME, "newName": "elsewhere"}]
    return Built(
        request.param,
        ours=build(**with_it),
        plain=build(),
        moved=build(SECRET, **with_it, images=images, namePrefix="blue-"),
    )


@pytest.mark.parametrize("kind", KINDS)
class TestAnyApplication:
    def test_nothing_of_it_is_changed(self, built: Built, kind: str) -> None:
        assert without_ours(built.ours[kind]) == built.plain[kind].manifest

    def test_the_sidecar_comes_before_its_own(self, built: Built, kind: str) -> None:
        workload = built.ours[kind]
        containers = workload.pod["initContainers" if workload.is_native else "containers"]
        others = ["migrate", "other-sidecar"] if workload.is_native else ["web", "worker"]
        assert [container["name"] for container in containers] == [NAME, *others]

    def test_the_sidecar_is_that_of_the_example(self, built: Built, kind: str) -> None:
        [known, *_] = workloads(example("deployment" if built.label == "sidecar" else "classic"))
        sidecar = built.moved[kind].sidecar
        assert sidecar == known.sidecar | {"image": f"elsewhere:{__version__}", "envFrom": sidecar["envFrom"]}

    def test_its_pod_is_accepted_by_kubernetes(self, built: Built, kind: str) -> None:
        for version in (VERSIONS[0], VERSIONS[-1]):
            assert validate(built.ours[kind].manifest, version, strict=True) == version

    def test_names_that_kustomize_makes_are_followed(self, built: Built, kind: str) -> None:
        workload = built.moved[kind]
        assert workload.configuration().upstream.url == SETTINGS[f"{PREFIX}UPSTREAM__URL"]
        assert [name for name in workload.config_maps if re.fullmatch(rf"blue-{NAME}-\w+", name)]
        [volume] = [volume for volume in workload.pod["volumes"] if volume["name"] == "c8y-credential"]
        assert volume["secret"]["secretName"] == "blue-c8y-credential"


class TestWhoGetsOne:
    def test_nobody_who_does_not_ask(self, tmp_path: Path) -> None:
        asking, other = application("Deployment", "sidecar"), application("Job", None)
        made = rendered(
            kustomization(tmp_path, [asking, other], components=[COMPONENT], configMapGenerator=config_map(SETTINGS))
        )
        [job] = [it for it in made if it["kind"] == "Job"]
        [alone] = rendered(kustomization(tmp_path / "alone", [other]))
        assert job == alone

    def test_nothing_but_the_workloads_comes_out(self, tmp_path: Path) -> None:
        made = rendered(kustomization(tmp_path, [application("Job", "sidecar")], components=[COMPONENT]))
        assert [it["kind"] for it in made] == ["Job"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_misspelt_kind_of_sidecar_is_refused(self, tmp_path: Path, kind: str) -> None:
        with pytest.raises(Refused, match="c8y-credential"):
            with_component(tmp_path, application(kind, "side-car"))


class TestSettingsOfTheUser:
    def test_the_config_map_says_any_but_those_that_belong_to_the_manifest(self, tmp_path: Path) -> None:
        settings = SETTINGS | {
            f"{PREFIX}LISTEN__PORT": "8081",
            f"{PREFIX}DRAIN__SPREAD_SECONDS": "1",
            f"{PREFIX}CREDENTIALS__DEFAULT__DIRECTORY": "/elsewhere",
        }
        workload = with_component(
            tmp_path, application("Deployment", "sidecar"), configMapGenerator=config_map(settings)
        )
        config = workload.configuration()
        assert (config.listen.port, config.drain.spread_seconds) == (8081, 1)
        assert config.credentials["default"].directory == Path("/run/c8y-credential")

    def test_a_patch_changes_what_the_component_says(self, tmp_path: Path) -> None:
        """With the words of the how-to."""
        [patch] = [it for it in snippets("howto-kubernetes.md") if "patches" in it]
        workload = with_component(tmp_path, application("Deployment", "sidecar"), **patch)
        assert workload.configuration().limits.connections == 500
        assert workload.sidecar["resources"]["limits"] == {"memory": "1Gi"}
        assert workload.sidecar["resources"]["requests"] == {"cpu": "20m", "memory": "64Mi"}
        [volume] = [volume for volume in workload.pod["volumes"] if volume["name"] == "c8y-credential"]
        assert volume["secret"] == {"secretName": "another-credential", "defaultMode": 0o444}
        assert workload.sidecar["image"] == f"c8y-realtime-proxy:{__version__}"


def snippets(page: str) -> list[Manifest]:
    """The YAML of a page of the documentation."""
    found = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)
    return [document for text in found for document in yaml.safe_load_all(text)]


class TestHowTo:
    def test_what_it_says_of_versions_is_what_is_tested(self) -> None:
        page = (ROOT / "docs/howto-kubernetes.md").read_text()
        assert f"Kubernetes {VERSIONS[0]} to {VERSIONS[-1]}" in page
        assert f"{EARLIER_VERSIONS[0]} to {VERSIONS[-1]} for the classic one" in page

    def test_its_manifests_are_accepted_by_kubernetes(self) -> None:
        whole = [it for it in snippets("howto-kubernetes.md") if "spec" in it and "apiVersion" in it]
        assert whole
        for manifest in whole:
            for version in VERSIONS:
                assert validate(manifest, version, strict=True) == version

    def test_its_files_make_a_sidecar_as_they_stand_there(self, tmp_path: Path) -> None:
        manifest, kustomization_of_it, *_ = snippets("howto-kubernetes.md")
        (tmp_path / "application.yaml").write_text(yaml.safe_dump(manifest))
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization_of_it))
        shutil.copytree(MANIFESTS, tmp_path / "deploy/kubernetes")
        [workload] = workloads(rendered(tmp_path))
        assert workload.is_native
        assert workload.sidecar["image"] == f"registry.example.com/{NAME}:{__version__}"
        assert workload.configuration().upstream.url


class TestSecretExample:
    def test_its_entries_make_a_credential(self) -> None:
        values = SECRET["stringData"]
        assert values.keys() <= set(NAMES)
        credential_from(values)

    def test_its_values_are_placeholders(self) -> None:
        for value in SECRET["stringData"].values():
            assert re.fullmatch(r"PUT-THE-[A-Z-]+-HERE", value)

    def test_it_is_accepted_by_kubernetes(self) -> None:
        for version in EARLIER_VERSIONS + VERSIONS:
            assert validate(SECRET, version, strict=True) == version


def test_no_manifest_holds_a_secret() -> None:
    for name in EXAMPLES:
        assert "Secret" not in [it["kind"] for it in example(name)]


def test_every_label_is_known_in_the_manifests() -> None:
    known = {
        workload.manifest["metadata"]["labels"][NAME] for name in EXAMPLES for workload in workloads(example(name))
    }
    assert known == set(LABELS)
