"""The image says what the proxy does, and the examples in config/ what the manifests in deploy/ say: names, ports,
paths and users do not drift apart.

More is asked of the manifests where they are rendered, in tests/e2e/sidecar/ and tests/e2e/helm/.
"""

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import msgspec
import pytest
import yaml

from proxy import __version__
from proxy.config import PREFIX, Config, load
from tests.conftest import ENDING_SECONDS, VALUES, Running


ROOT: Final = Path(__file__).parents[1]
INSTRUCTIONS: Final = [
    (words[0].upper(), words[1].strip())
    for line in re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    .replace("\\\n", " ")
    .splitlines()
    if len(words := line.split(maxsplit=1)) > 1
]
CHART: Final = ROOT / "deploy/helm/c8y-realtime-proxy"
COMPONENT: Final = ROOT / "deploy/kubernetes/component"
KUBERNETES_GRACE_SECONDS: Final = 30
"""What a pod has that says nothing."""

FINAL_STAGE: Final = INSTRUCTIONS[max(n for n, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]


def said(instruction: str) -> str:
    """The one instruction of that name in the final stage."""
    [argument] = [argument for name, argument in FINAL_STAGE if name == instruction]
    return argument


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", said("ENV")))


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
        entrypoint, *arguments = msgspec.json.decode(command)
        assert [entrypoint] == msgspec.json.decode(said("ENTRYPOINT"))
        port = unused_tcp_port if moved else proxied.proxy.admin_port
        # It asks loopback itself: a proxy for the way out, as many environments have one, must not be asked instead.
        environment = {
            f"{PREFIX}ADMIN__HOST": "0.0.0.0",  # noqa: S104 - what a pod says; nothing listens there
            f"{PREFIX}ADMIN__PORT": str(port),
            "http_proxy": "http://127.0.0.1:9",
        }
        check = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", *arguments, env=os.environ | environment, stderr=subprocess.DEVNULL
        )
        assert await asyncio.wait_for(check.wait(), 10) == code

    def test_its_last_stage_has_nothing_but_what_was_gathered_and_what_its_base_trusts(self) -> None:
        assert FINAL_STAGE[0] == ("FROM", "scratch")
        assert not [name for name, _ in FINAL_STAGE if name == "RUN"]
        copied = [value.split() for name, value in FINAL_STAGE if name == "COPY"]
        assert [(origin, target) for origin, *_, target in copied] == [
            ("--from=gathered", "/"),
            ("--from=base", "/etc/ssl/certs/"),
            ("--from=base", "/usr/share/ca-certificates/"),
            ("--from=installed", "/opt/c8y-realtime-proxy/"),
        ]

    def test_the_wheel_comes_out_of_one_stage_and_is_tested_where_it_is_installed(self) -> None:
        assert len([value for name, value in INSTRUCTIONS if name == "RUN" and "pip wheel" in value]) == 1
        [installed] = [value for name, value in INSTRUCTIONS if name == "COPY" and value.startswith("--from=wheel")]
        assert installed == "--from=wheel / dist/"
        assert {"installed AS tested", "installed AS gathered"} <= {
            value for name, value in INSTRUCTIONS if name == "FROM"
        }

    def test_it_is_tested_by_what_tests_the_wheel(self) -> None:
        listed = "tests/compiled.txt"
        tested = [
            line for line in (ROOT / "Makefile").read_text().splitlines() if "pytest" in line and f"@{listed}" in line
        ]
        tested += [value for name, value in INSTRUCTIONS if name == "RUN" and f"@{listed}" in value]
        assert len(tested) == len(("make test-wheel", "Dockerfile"))
        assert all((ROOT / path).exists() for path in (ROOT / listed).read_text().split())

    def test_the_user_in_its_files_is_the_one_that_runs_it(self) -> None:
        user, group = said("USER").split(":")
        accounts = (ROOT / "deploy/image/root.py").read_text()
        assert f"c8y-realtime-proxy:x:{user}:{group}:" in accounts
        assert f"c8y-realtime-proxy:x:{group}:" in accounts

    def test_what_is_said_of_the_bill_of_materials_is_where_it_is(self) -> None:
        [where] = re.findall(r'^WHERE: Final = f"(.*)"$', (ROOT / "deploy/image/sbom.py").read_text(), re.MULTILINE)
        path = Path("/", where.replace("{NAME}", "c8y-realtime-proxy"))
        assert f"`{path}`" in (ROOT / "docs/howto-image.md").read_text()
        assert any(value.endswith(f"{path.parent}/ /") for name, value in INSTRUCTIONS if name == "COPY")

    def test_the_page_names_it_as_the_build_does(self) -> None:
        [tag] = re.findall(r'--tag "(.*)"$', (ROOT / "deploy/image/build").read_text(), re.MULTILINE)
        page = (ROOT / "docs/howto-image.md").read_text()
        named = re.findall(r"\bc8y-realtime-proxy:[\w.]+", page)
        named += re.findall(r"^  (c8y-realtime-proxy\S*)$", page, re.MULTILINE)
        named += re.findall(r"--tag (\S+)", page)
        assert set(named) == {tag.replace("$version", __version__)}

    def test_what_the_page_says_of_its_base_is_so(self) -> None:
        base = next(value for name, value in INSTRUCTIONS if name == "ARG").removeprefix("BASE=")
        assert f"`{base}`" in (ROOT / "docs/howto-image.md").read_text()


def kept(home: str) -> dict[str, Any]:
    """What an example configuration says."""
    return tomllib.loads((ROOT / f"config/{home}.toml").read_text(encoding="utf-8"))


def sidecars() -> dict[str, Any]:
    """Both sidecars of the component, each before it is put into a pod."""
    pod = yaml.safe_load((COMPONENT / "sidecar.yaml").read_text(encoding="utf-8"))["template"]["spec"]
    named = {"native": pod["initContainers"], "classic": pod["containers"]}
    return {kind: next(it for it in its if it["name"] == "c8y-realtime-proxy") for kind, its in named.items()}


def probes() -> dict[str, Any]:
    """What says probes, by its name. Those of the chart are the same whatever the values are."""
    template = (CHART / "templates/deployment.yaml").read_text(encoding="utf-8")
    [probes] = re.findall(r"^( +startupProbe:.*?)^ +securityContext:", template, re.MULTILINE | re.DOTALL)
    return {**sidecars(), "chart": yaml.safe_load(dedent(probes))}


class TestExamples:
    @pytest.mark.parametrize("home", ["frontdoor", "frontdoor-cookie"])
    def test_a_front_door_waits_for_the_ingress_as_the_chart_and_the_page_on_drain_have_it(self, home: str) -> None:
        chart = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["config"]
        seconds = kept(home)["drain"]["accept_seconds"]
        assert seconds == chart["drain"]["accept_seconds"]
        page = (ROOT / "docs/drain.md").read_text(encoding="utf-8")
        [(least, most)] = re.findall(r"^\| behind a Service or an ingress \| (\d+) to (\d+) \|", page, re.MULTILINE)
        assert int(least) <= seconds <= int(most)

    def test_a_sidecar_ends_well_inside_what_kubernetes_grants_by_default(self) -> None:
        drain = load(ROOT / "config/sidecar.toml", {}).drain
        longest = drain.accept_seconds + drain.timeout_seconds + ENDING_SECONDS
        assert longest <= KUBERNETES_GRACE_SECONDS - 5

    @pytest.mark.parametrize("kind", ["native", "classic"])
    def test_a_sidecar_finds_its_credential_where_the_component_puts_it(self, kind: str) -> None:
        [mount] = [it for it in sidecars()[kind]["volumeMounts"] if it["name"] == "c8y-credential"]
        assert kept("sidecar")["credentials"]["default"]["directory"] == mount["mountPath"]


@pytest.mark.parametrize("of", probes())
class TestProbes:
    def test_a_start_may_take_a_minute(self, of: str) -> None:
        assert bears_seconds(probes()[of]["startupProbe"]) >= 60

    def test_a_process_may_stand_still_for_twenty_seconds_before_it_is_started_again(self, of: str) -> None:
        assert bears_seconds(probes()[of]["livenessProbe"]) >= 20

    def test_one_that_is_not_ready_is_known_to_be_so_within_ten_seconds(self, of: str) -> None:
        probe = probes()[of]["readinessProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] <= 10

    def test_none_is_lost_for_a_hiccup(self, of: str) -> None:
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = probes()[of][name]
            assert probe["timeoutSeconds"] >= 2, name
            assert probe["failureThreshold"] >= 2, name


def bears_seconds(probe: dict[str, Any]) -> int:
    """For how long the kubelet may get no answer, and not give up: the first probe that is missed may come at once."""
    seconds: int = (probe["failureThreshold"] - 1) * probe["periodSeconds"] + probe["timeoutSeconds"]
    return seconds


def test_the_wheel_is_made_anew_when_anything_in_it_changes() -> None:
    told = subprocess.run(
        ["make", "--print-data-base", "--question"],  # noqa: S607 - whichever runs these tests
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    [prerequisites] = re.findall(r"^build/shipped/\.installed: (.*)$", told.stdout, re.MULTILINE)
    packed = {str(it.relative_to(ROOT)) for it in (ROOT / "proxy").rglob("*") if it.is_file()}
    packed = {name for name in packed if "__pycache__" not in name} | {"pyproject.toml"}
    assert {Path(name).suffix for name in packed} > {".py", ".html", ".css"}
    assert packed <= set(prerequisites.split())
