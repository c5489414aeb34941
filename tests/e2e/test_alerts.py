"""The alert rules in the eyes of promtool, which comes with Prometheus."""

import subprocess

import pytest

from .prometheus import EXAMPLE, RULES


@pytest.fixture(autouse=True)
def evidence() -> None:
    """No proxy is started here, so nothing can be given away."""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["check", "config", EXAMPLE.name], id="the example loads the rules"),
        pytest.param(["check", "rules", "--lint=all", "--lint-fatal", RULES.name], id="the rules are valid"),
        pytest.param(["test", "rules", "alerts_test.yaml"], id="each alert fires when it should, and else it does not"),
    ],
)
def test_promtool_finds_nothing_wrong(command: list[str]) -> None:
    done = subprocess.run(  # noqa: S603 - Debian's program, in our own words
        ["promtool", *command],  # noqa: S607 - wherever it is installed
        cwd=RULES.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
