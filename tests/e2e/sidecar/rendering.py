"""What kustomize makes of manifests, as a cluster would get it."""

import os
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from proxy.config import Config, load
from tests.test_deploy import ROOT, image_environment


KUSTOMIZE: Final = ROOT / "build/tools/kustomize"
MANIFESTS: Final = ROOT / "deploy/kubernetes"
COMPONENT: Final = MANIFESTS / "component"
NAME: Final = "c8y-realtime-proxy"
SECRET: Final[dict[str, Any]] = yaml.safe_load((MANIFESTS / "secret.example.yaml").read_text())
_TEMPLATES: Final = {"CronJob": ("jobTemplate", "spec", "template", "spec")}

Manifest = dict[str, Any]


class Refused(Exception):
    """kustomize did not build it; the text is its own."""


def rendered(directory: Path) -> list[Manifest]:
    """The resources of a kustomization. Raises Refused."""
    assert KUSTOMIZE.exists(), "no kustomize: run tests/e2e/setup"
    done = subprocess.run(  # noqa: S603 - our own tool, on our own files
        [KUSTOMIZE, "build", directory], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode != 0:
        raise Refused(done.stderr)
    return list(yaml.safe_load_all(done.stdout))


@cache
def example(name: str) -> tuple[Manifest, ...]:
    """What one of our examples makes."""
    return tuple(rendered(MANIFESTS / "examples" / name))


def kustomization(directory: Path, manifests: Collection[Manifest] = (), **said: Any) -> Path:
    """Write a kustomization of these manifests; of the paths in `resources` and `components`, kustomize wants relative
    ones.
    """
    directory.mkdir(exist_ok=True)
    (directory / "manifests.yaml").write_text(yaml.safe_dump_all(manifests), encoding="utf-8")
    for paths in ("resources", "components"):
        # Relative to where it really is: kustomize follows symbolic links first.
        said[paths] = [os.path.relpath(path, directory.resolve()) for path in said.get(paths, ())]
    said["resources"] += ["manifests.yaml"] if manifests else []
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    return directory


@dataclass(frozen=True, slots=True)
class Workload:
    """One resource that runs pods, and what is in such a pod. `config_maps` are those that were rendered with it."""

    manifest: Manifest
    config_maps: Mapping[str, Mapping[str, str]]

    def __str__(self) -> str:
        return f"{self.manifest['kind']} {self.manifest['metadata']['labels'].get(NAME, '')}"

    @property
    def pod(self) -> Manifest:
        """The pod's specification."""
        found: Manifest = self.manifest["spec"]
        for key in _TEMPLATES.get(self.manifest["kind"], ("template", "spec")):
            found = found[key]
        return found

    @property
    def is_native(self) -> bool:
        return any(container["name"] == NAME for container in self.pod.get("initContainers", ()))

    @property
    def sidecar(self) -> Manifest:
        containers = [*self.pod.get("initContainers", ()), *self.pod["containers"]]
        found: Manifest = next(container for container in containers if container["name"] == NAME)
        return found

    @property
    def applications(self) -> list[Manifest]:
        """The other containers that run beside it."""
        return [container for container in self.pod["containers"] if container["name"] != NAME]

    def environment(self, container: Manifest) -> dict[str, str]:
        """The variables of a container, without those of its image."""
        told: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            told |= self.config_maps[source["configMapRef"]["name"]]
        return told | {variable["name"]: variable["value"] for variable in container.get("env", ())}

    def configuration(self) -> Config:
        """What the sidecar is told."""
        return load(None, image_environment() | self.environment(self.sidecar))


def workloads(manifests: Collection[Manifest]) -> list[Workload]:
    """Those that run pods."""
    config_maps = {it["metadata"]["name"]: it["data"] for it in manifests if it["kind"] == "ConfigMap"}
    return [Workload(it, config_maps) for it in manifests if it["kind"] not in {"ConfigMap", "Secret"}]
