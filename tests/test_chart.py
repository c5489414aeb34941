"""The chart of the front door, as far as it can be judged without Helm; tests/e2e/helm renders and starts it."""

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from proxy import __version__
from proxy.config.tree import FrontDoorSettings
from proxy.frontdoor.signing import SESSION, SIGN_IN, SIGN_OUT
from proxy.gate.endpoints import ENDPOINTS


ROOT: Final = Path(__file__).parents[1]
CHART: Final = ROOT / "deploy/helm/c8y-realtime-proxy"
REFERENCE: Final = ROOT / "deploy/helm/reference.py"

EXPLAINED_TOGETHER: Final = {
    "autoscaling.behavior": [
        f"{way}.{name}" for way in ("scaleUp", "scaleDown") for name in ("stabilizationWindowSeconds", "policies")
    ],
    "ingress.annotations": [
        f"nginx.ingress.kubernetes.io/proxy-{name}"
        for name in ("read-timeout", "send-timeout", "buffering", "buffer-size")
    ],
}
"""Values that are one thing, by the block that says what it is; all others say it themselves."""


def test_it_is_for_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_its_schema_and_the_table_of_its_values_are_up_to_date() -> None:
    check = [sys.executable, str(REFERENCE), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    assert (done.returncode, done.stderr) == (0, "")


def test_every_value_is_explained() -> None:
    text = (CHART / "values.yaml").read_text()
    explained = runpy.run_path(str(REFERENCE))["comments"](text).keys()
    assert {*leaves(yaml.safe_load(text))} - explained == {
        f"{block}.{name}" for block, names in EXPLAINED_TOGETHER.items() for name in names
    }
    assert EXPLAINED_TOGETHER.keys() <= explained


def test_all_that_the_proxy_serves_gets_through_its_ingress_and_nothing_else() -> None:
    default = FrontDoorSettings.model_fields["platform_paths"].default
    served = [*ENDPOINTS, SIGN_IN, SIGN_OUT, SESSION, *(path.partition(" ")[2] for path in default)]
    led = yaml.safe_load((CHART / "values.yaml").read_text())["ingress"]["paths"]
    for path in served:
        assert any(path == prefix or path.startswith(f"{prefix}/") for prefix in led), path
    for prefix in led:
        assert any(path == prefix or path.startswith(f"{prefix}/") for path in served), prefix


def leaves(tree: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{name}.")
        else:
            yield path + name
