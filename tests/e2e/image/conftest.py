"""A container of the image that `make image` built, with its files and its words."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from proxy import __version__
from tests.e2e import stage


NAME: Final = f"localhost/c8y-realtime-proxy:{__version__}"


@dataclass(frozen=True)
class Image:
    """`root` is where its files are, in a container that nobody has written to; `config` what it says of itself."""

    root: Path
    config: dict[str, Any]


def _buildah(*words: str) -> str:
    return subprocess.run(["buildah", *words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()  # noqa: S603, S607


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """The image as it was built."""
    assert shutil.which("buildah"), "no buildah: run tests/e2e/image/setup"
    container = _buildah("from", "--pull-never", NAME)
    try:
        inspected = msgspec.json.decode(_buildah("inspect", container))
        yield Image(Path(_buildah("mount", container)), inspected["Docker"]["config"])
    finally:
        _buildah("rm", container)


@pytest.fixture(scope="session")
def container(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The command that runs the image's own in a container; the tests' files are there, too, at the same path."""
    ours = _buildah("from", "--pull-never", NAME)
    told = {
        "root": _buildah("mount", ours),
        "shared": str(tmp_path_factory.getbasetemp()),
        "user": [int(number) for number in image.config["User"].split(":")],
        "command": image.config["Entrypoint"],
        "environment": dict(each.split("=", 1) for each in image.config["Env"]),
    }
    directory = tmp_path_factory.mktemp("container")
    (directory / "image.json").write_bytes(msgspec.json.encode(told))
    program = Path(__file__).with_name("run.py")
    command = directory / "run"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {program} {directory}/image.json "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    try:
        yield command
    finally:
        _buildah("rm", ours)


@pytest.fixture(autouse=True)
def _in_a_container(
    container: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stage starts is the image's own command, and its user may read what a test writes."""
    monkeypatch.setattr(stage, "COMMAND", str(container))
    for directory in (tmp_path, tmp_path_factory.getbasetemp()):
        directory.chmod(0o755)
