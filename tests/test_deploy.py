"""The image and the manifests say what the proxy does: names, ports, paths, users and versions do not drift apart."""

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import pytest
import yaml

from proxy import __version__
from proxy.config import PREFIX, BadConfiguration, Config, load
from proxy.credentials.stored import NAMES, credential_from
from proxy.gate.admission import Gate, Hosts, is_loopback
from proxy.gate.endpoints import endpoint_of
from proxy.head import Head
from proxy.operations.admin import Admin
from proxy.operations.live import Live
from proxy.operations.metrics import Metrics
from proxy.operations.status import StatusPage
from tests.conftest import VALUES, Running


ROOT: Final = Path(__file__).parents[1]
INSTRUCTIONS: Final = [
    (words[0].upper(), words[1].strip())
    for line in re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    .replace("\\\n", " ")
    .splitlines()
    if len(words := line.split(maxsplit=1)) > 1
]
FINAL_STAGE: Final = INSTRUCTIONS[max(n for n, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]
LONGEST_EXIT_SECONDS: Final = 25


def said(instruction: str) -> str:
    """The one instruction of that name in the final stage."""
    [argument] = [argument for name, argument in FINAL_STAGE if name == instruction]
    return argument


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", said("ENV")))


def manifest(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "deploy/kubernetes" / name).read_text())
    return document


POD: Final[dict[str, Any]] = manifest("sidecar.yaml")["spec"]["template"]["spec"]
[SIDECAR] = POD["initContainers"]
[APPLICATION] = POD["containers"]
ENVIRONMENT: Final[dict[str, str]] = {variable["name"]: variable["value"] for variable in SIDECAR["env"]}


def sidecar_configuration() -> Config:
    return load(None, image_environment() | ENVIRONMENT)


class TestImage:
    def test_it_leaves_every_default_alone(self) -> None:
        given = {"C8Y_BASEURL": "https://tenant.example.com", **VALUES}
        assert load(None, image_environment() | given) == load(None, given)
        assert not [name for name in image_environment() if name.startswith(("C8Y_", PREFIX))]

    def test_it_exposes_the_default_ports(self) -> None:
        assert said("EXPOSE").split() == [str(Config().listen.port), str(Config().admin.port)]

    def test_it_starts_the_installed_command_without_a_shell(self) -> None:
        [entrypoint] = msgspec.json.decode(said("ENTRYPOINT"))
        assert entrypoint in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        assert msgspec.json.decode(said("CMD")) == ["run"]

    def test_its_user_is_a_number_and_not_root(self) -> None:
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", said("USER"))

    def test_it_names_no_registry_and_the_minor_version_of_its_base(self) -> None:
        name, _, tag = next(value for name, value in INSTRUCTIONS if name == "ARG").removeprefix("BASE=").partition(":")
        assert name == "python"
        assert re.match(r"3\.\d+-slim-\w+$", tag)

    def test_all_that_it_copies_passes_dockerignore(self) -> None:
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        admitted = {line.removeprefix("!") for line in lines if line.startswith("!")}
        copied = {
            source.rstrip("/")
            for name, value in INSTRUCTIONS
            if name == "COPY" and not value.startswith("--from")
            for source in value.split()[:-1]
        }
        assert copied
        for source in copied:
            assert (ROOT / source).exists()
            assert any(entry == source or entry.startswith(f"{source}/") for entry in admitted), source
        assert all((ROOT / entry).exists() for entry in admitted)

    def test_nothing_but_what_is_copied_passes_dockerignore(self) -> None:
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        admitted = [line.removeprefix("!") for line in lines if line.startswith("!")]
        forbidden = [line for line in lines if not line.startswith(("#", "!"))]
        copied = " ".join(value for name, value in INSTRUCTIONS if name == "COPY" and not value.startswith("--from"))
        assert [entry for entry in admitted if entry.partition("/")[0] not in copied] == []
        assert forbidden[0] == "*"
        assert any(fnmatch("proxy/__pycache__", line) for line in forbidden)

    @pytest.mark.parametrize(("moved", "code"), [(False, 0), (True, 1)], ids=["admin listener", "nobody there"])
    async def test_its_health_check_tells_whether_the_proxy_lives(
        self, proxied: Running, unused_tcp_port: int, *, moved: bool, code: int
    ) -> None:
        [command] = re.findall(r"CMD (\[.*\])$", said("HEALTHCHECK"))
        interpreter, *arguments = msgspec.json.decode(command)
        assert interpreter == "python3"
        port = unused_tcp_port if moved else proxied.proxy.admin_port
        # It asks loopback itself: a proxy for the way out, as many environments have one, must not be asked instead.
        environment = {
            f"{PREFIX}ADMIN__HOST": "0.0.0.0",  # noqa: S104 - what a pod says; nothing listens there
            f"{PREFIX}ADMIN__PORT": str(port),
            "http_proxy": "http://127.0.0.1:9",
        }
        check = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env=os.environ | environment, stderr=subprocess.DEVNULL
        )
        assert await asyncio.wait_for(check.wait(), 10) == code


class TestSidecar:
    def test_its_environment_is_a_valid_configuration(self) -> None:
        assert sidecar_configuration().upstream.url

    def test_a_variable_that_drifted_would_be_found(self) -> None:
        with pytest.raises(BadConfiguration):
            load(None, ENVIRONMENT | {f"{PREFIX}ADMIN__PORTS": ""})

    def test_it_is_a_native_sidecar_of_this_version(self) -> None:
        assert SIDECAR["restartPolicy"] == "Always"
        assert SIDECAR["image"] == f"c8y-realtime-proxy:{__version__}"

    def test_its_user_is_the_one_of_the_image(self) -> None:
        context = SIDECAR["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == said("USER")

    def test_clients_outside_of_the_pod_reach_only_the_admin_listener(self) -> None:
        config = sidecar_configuration()
        assert is_loopback(config.listen.host)
        assert not is_loopback(config.admin.host)
        assert SIDECAR["ports"] == [{"name": "admin", "containerPort": config.admin.port}]

    @pytest.mark.parametrize(
        ("probe", "path"), [("startupProbe", "/startupz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
    )
    def test_each_probe_asks_a_path_of_the_admin_listener(self, probe: str, path: str) -> None:
        hosts = Hosts((), listening_on="127.0.0.1", key="")
        metrics = Metrics("stored")
        status = StatusPage(
            metrics.history, Live(metrics), credentials=lambda: (), unready=lambda: None, secrets=lambda: ()
        )
        admin = Admin(metrics.registry, hosts, is_started=lambda: True, unready=lambda: None, status=status)
        assert ("GET", path) in admin.routes
        assert SIDECAR[probe]["httpGet"] == {"path": path, "port": "admin"}

    def test_the_credential_directory_is_the_mounted_secret(self) -> None:
        [mount] = SIDECAR["volumeMounts"]
        [volume] = POD["volumes"]
        assert mount == {
            "name": volume["name"],
            "mountPath": str(sidecar_configuration().credentials["default"].directory),
            "readOnly": True,
        }
        assert volume["secret"]["secretName"] == manifest("secret.example.yaml")["metadata"]["name"]

    def test_the_secret_is_readable_through_its_group_and_by_nobody_else(self) -> None:
        assert POD["volumes"][0]["secret"]["defaultMode"] == 0o440
        assert POD["securityContext"]["fsGroup"] == SIDECAR["securityContext"]["runAsGroup"]

    def test_the_pod_has_time_for_the_longest_exit(self) -> None:
        assert POD["terminationGracePeriodSeconds"] > LONGEST_EXIT_SECONDS

    @pytest.mark.parametrize("container", [SIDECAR, APPLICATION], ids=lambda container: str(container["name"]))
    def test_no_container_has_more_rights_than_it_needs(self, container: dict[str, Any]) -> None:
        context = container["securityContext"]
        assert context["runAsUser"] > 0
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert POD["securityContext"]["runAsNonRoot"] is True
        assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert POD["automountServiceAccountToken"] is False

    def test_the_application_holds_no_key(self) -> None:
        assert "volumeMounts" not in APPLICATION
        assert "envFrom" not in APPLICATION
        assert all(variable.keys() == {"name", "value"} for variable in APPLICATION["env"])
        assert APPLICATION["securityContext"]["runAsUser"] != SIDECAR["securityContext"]["runAsUser"]

    def test_the_applications_address_leads_through_the_gate(self) -> None:
        config = sidecar_configuration()
        [address] = [urlsplit(variable["value"]) for variable in APPLICATION["env"]]
        assert (address.scheme, address.port) == ("http", config.listen.port)
        assert endpoint_of(address.path) is not None
        gate = Gate(
            listening_on=config.listen.host,
            hosts=config.gate.hosts,
            origins=config.gate.origins,
            relayed_cookies=config.upstream.relayed_cookies,
        )
        gate.admit(Head("POST", address.path, (("host", address.netloc),), peer="127.0.0.1"))


class TestSecretExample:
    def test_its_entries_make_a_credential(self) -> None:
        values = manifest("secret.example.yaml")["stringData"]
        assert values.keys() <= set(NAMES)
        credential_from(values)

    def test_its_values_are_placeholders(self) -> None:
        for value in manifest("secret.example.yaml")["stringData"].values():
            assert re.fullmatch(r"PUT-THE-[A-Z-]+-HERE", value)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "deploy/kubernetes").iterdir()), ids=lambda path: str(getattr(path, "name", path))
)
def test_no_manifest_mounts_by_sub_path(path: Path) -> None:
    assert not re.search(r"^\s*-?\s*subPath(Expr)?:", path.read_text(), re.MULTILINE)
