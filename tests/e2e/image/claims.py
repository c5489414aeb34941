"""The image as it was built, and run read-only, without any right, as its own user: what is in it, and that it works.

Building it takes minutes, so this file is not found by itself: `make e2e-image` builds the image and names it.
"""

import base64
import csv
import hashlib
import os
import re
import signal
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from proxy import __version__
from tests.conftest import until
from tests.e2e import stage as on_stage
from tests.e2e.conftest import StageOpener
from tests.e2e.programs import Program, running
from tests.e2e.stage import Evidence, store
from tests.e2e.test_sessions import (  # noqa: F401 - claims that hold in the image, too
    test_a_session_without_credentials_lives_from_handshake_to_handshake,
    test_a_wrong_password_is_denied_in_upstreams_words_offered_once_and_cured_by_its_correction,
    test_the_proxy_stops_in_order_under_connected_clients,
)
from tests.e2e.upstreams import ACCOUNT, Upstream

from .conftest import Image


ROOT: Final = Path(__file__).parents[3]
BUILT: Final = ROOT / "build/image"
ENVIRONMENT: Final = "opt/c8y-realtime-proxy"
BILL: Final = "usr/share/sbom/c8y-realtime-proxy.cdx.json"
LABEL: Final = "org.opencontainers.image."
IMPORTS: Final = """
import importlib, pkgutil, sqlite3, ssl, proxy
for module in pkgutil.walk_packages(proxy.__path__, "proxy."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert ssl.create_default_context().cert_store_stats()["x509_ca"] > 100
"""


def files_of(image: Image) -> Iterator[Path]:
    """All that is neither a directory nor a link."""
    for directory, _, names in os.walk(image.root):
        yield from (path for name in names if not (path := Path(directory, name)).is_symlink())


def distributions_of(image: Image) -> dict[tuple[str, str], Distribution]:
    [packages] = (image.root / ENVIRONMENT).glob("lib/python3.*/site-packages")
    return {(found.name, found.version): found for found in map(Distribution.at, sorted(packages.glob("*.dist-info")))}


def bill_of(image: Image, *, debian: bool) -> dict[tuple[str, str], dict[str, Any]]:
    """The components in the bill of materials that are Debian's packages, or the others."""
    components = msgspec.json.decode((image.root / BILL).read_bytes())["components"]
    return {
        (each["name"], each["version"]): each
        for each in components
        if each.get("purl", "").startswith("pkg:deb/debian/") is debian
    }


def wheel() -> Path:
    [path] = (BUILT / "wheel").glob("*.whl")
    return path


class TestFiles:
    @pytest.fixture(autouse=True)
    def evidence(self) -> None:
        """Nothing is started here."""

    def test_the_product_is_the_wheel_that_was_tested_file_by_file(self, image: Image) -> None:
        [packages] = (image.root / ENVIRONMENT).glob("lib/python3.*/site-packages")
        with zipfile.ZipFile(wheel()) as archive:
            [record] = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
            rows = list(csv.reader(archive.read(record).decode().splitlines()))
        digests = {name: digest.removeprefix("sha256=") for name, digest, _ in rows if digest}
        assert any(name.endswith(".so") for name in digests)
        for name, digest in digests.items():
            found = hashlib.sha256((packages / name).read_bytes()).digest()
            assert base64.urlsafe_b64encode(found).rstrip(b"=").decode() == digest, name

    def test_the_bill_names_every_distribution_with_licence_and_digest_and_no_other(self, image: Image) -> None:
        bill, distributions = bill_of(image, debian=False), distributions_of(image)
        assert bill.keys() == distributions.keys()
        locked = (ROOT / "requirements/run.txt").read_text()
        own = hashlib.sha256(wheel().read_bytes()).hexdigest()
        for (name, version), component in bill.items():
            [digest] = component["hashes"]
            assert digest["alg"] == "SHA-256"
            if name == "c8y-realtime-proxy":
                assert (version, digest["content"]) == (__version__, own)
            else:
                pin = f"{re.sub('[-_.]+', '-', name.lower())}=={version} "
                [pinned] = re.findall(rf"^{re.escape(pin)}.*\n((?:    --hash=.*\n?)+)", locked, re.MULTILINE)
                assert digest["content"] in pinned
            assert component["licenses"], name

    def test_the_bill_names_the_packages_of_all_else_and_no_other(self, image: Image) -> None:
        text = (image.root / "var/lib/dpkg/status").read_text()
        known = set(re.findall(r"^Package: (\S+)\n(?:.*\n)*?Version: (\S+)$", text, re.MULTILINE))
        assert {"libc6", "ca-certificates"} < {name for name, _ in known}
        assert bill_of(image, debian=True).keys() == known
        for name, _ in known:
            assert (image.root / "usr/share/doc" / name / "copyright").stat().st_size

    def test_the_bill_beside_the_image_is_the_one_in_it(self, image: Image) -> None:
        assert (BUILT / Path(BILL).name).read_bytes() == (image.root / BILL).read_bytes()

    def test_nothing_can_be_executed_but_python_and_our_command(self, image: Image) -> None:
        executable = {
            str(path.relative_to(image.root))
            for path in files_of(image)
            if path.stat().st_mode & 0o111 and not re.search(r"\.so(\.|$)", path.name)
        }
        [python] = (name for name in executable if re.fullmatch(r"usr/(local/)?bin/python3\.\d+", name))
        assert executable - {python} == {f"{ENVIRONMENT}/bin/c8y-realtime-proxy"}
        assert not list((image.root / ENVIRONMENT).rglob("pip"))

    def test_nothing_raises_rights_belongs_to_its_user_or_can_be_written_by_it(self, image: Image) -> None:
        for directory, names, files in os.walk(image.root):
            for path in (Path(directory, name) for name in [".", *names, *files]):
                status = path.lstat()
                assert (status.st_uid, status.st_gid) == (0, 0), path
                if not path.is_symlink():
                    assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH), path
                    assert "security.capability" not in os.listxattr(path), path

    def test_all_that_python_may_import_is_compiled(self, image: Image) -> None:
        libraries = (image.root / "usr/lib", image.root / ENVIRONMENT / "lib")
        sources = [path for library in libraries for path in library.rglob("*.py")]
        assert sources
        bare = [path for path in sources if not list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-3*.pyc"))]
        assert bare == []

    def test_it_trusts_who_its_base_trusts_and_not_who_the_builder_does(self, image: Image) -> None:
        certificate = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+")
        base = [path.read_text() for path in (image.root / "usr/share/ca-certificates").rglob("*.crt")]
        known = {found.strip() for text in base for found in certificate.findall(text)}
        trusted = {
            found.strip()
            for found in certificate.findall((image.root / "etc/ssl/certs/ca-certificates.crt").read_text())
        }
        assert trusted
        assert trusted <= known

    def test_nothing_of_the_builders_configuration_is_left(self, image: Image) -> None:
        left = {path.name for path in files_of(image)} & {"pip.conf", ".netrc", "sources.list", "resolv.conf"}
        assert left == set()
        assert not list(image.root.glob("etc/apt"))

    def test_its_python_lacks_nothing_that_the_product_imports(self, image: Image) -> None:
        python = f"/{ENVIRONMENT}/bin/python3"
        subprocess.run(["chroot", "--userspec=65532:65532", image.root, python, "-I", "-c", IMPORTS], check=True)  # noqa: S603, S607

    def test_it_says_what_it_is(self, image: Image) -> None:
        labels = image.config["Labels"]
        assert labels[f"{LABEL}title"] == "c8y-realtime-proxy"
        assert labels[f"{LABEL}version"] == __version__
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels[f"{LABEL}revision"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels[f"{LABEL}created"])
        assert image.config["User"] == "65532:65532"
        assert image.config["Healthcheck"]["Test"] == ["CMD", "c8y-realtime-proxy", "healthcheck"]


class TestRunning:
    async def test_it_has_no_right_and_nowhere_to_write(
        self, open_stage: StageOpener, faye: Upstream, directory: Path
    ) -> None:
        async with open_stage(faye, store(directory, ACCOUNT.files())) as stage:
            process = first_process(stage.proxy.program)
            assert process
            status = dict(re.findall(r"^(\w+):\t(.*)$", told_of(process, "status"), re.MULTILINE))
            assert status["NSpid"].split()[-1] == "1"
            assert {*status["Uid"].split(), *status["Gid"].split()} == {"65532"}
            assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
            assert status["NoNewPrivs"] == "1"
            mounts = [line.split() for line in told_of(process, "mountinfo").splitlines()]
            [options] = [words[5] for words in mounts if words[4] == "/"]
            assert "ro" in options.split(",")

    async def test_the_health_check_of_the_image_tells_whether_it_lives(
        self, open_stage: StageOpener, faye: Upstream, directory: Path, image: Image
    ) -> None:
        async with open_stage(faye, store(directory, ACCOUNT.files())) as stage:
            port = stage.proxy.admin_port
            assert await ended(*health_check(image), admin_port=port) == 0
            assert await ended(*health_check(image), "--ready", admin_port=port) == 0
            await stage.stop()
            assert await ended(*health_check(image), admin_port=port) == 1

    async def test_the_health_check_goes_by_the_file_that_the_environment_names(
        self, open_stage: StageOpener, faye: Upstream, directory: Path, image: Image, tmp_path: Path
    ) -> None:
        file = tmp_path / "image.toml"
        async with open_stage(faye, store(directory, ACCOUNT.files())) as stage:
            file.write_text(f"[admin]\nport = {stage.proxy.admin_port}\n[upstream]\nurl = {faye.url!r}\n")
            assert await ended(*health_check(image), configuration=str(file)) == 0

    async def test_told_to_end_as_soon_as_it_can_hear_it_ends_well(
        self, faye: Upstream, directory: Path, evidence: Evidence, new_key_file: Callable[[], str]
    ) -> None:
        settings = store(directory, ACCOUNT.files()) | {
            "listen.port": 0,
            "admin.port": 0,
            "upstream.url": faye.url,
            "gate.client_id_key_file": new_key_file(),
        }
        async with running(on_stage.COMMAND, "run", environment=on_stage.environment_of(settings)) as program:
            await until(lambda: hears_the_end(first_process(program)), seconds=20)  # the kernel tells who asks
            program.process.send_signal(signal.SIGTERM)
            assert await program.wait(seconds=on_stage.STOPS_WITHIN_SECONDS) == 0
        evidence.given.append(("log", bytes(program.stderr)))


def first_process(program: Program) -> int | None:
    """Outside of the container, the number of the process that is the first one inside."""
    outer = program.process.pid
    inner = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
    return int(inner[0]) if inner else None


def told_of(process: int, what: str) -> str:
    """What the kernel tells of a process."""
    return Path(f"/proc/{process}/{what}").read_text(encoding="ascii")


def hears_the_end(process: int | None) -> bool:
    """Whether it does something about SIGTERM: the first process of a namespace is spared what it does not ask for."""
    if process is None:
        return False
    [caught] = re.findall(r"^SigCgt:\t(\w+)$", told_of(process, "status"), re.MULTILINE)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def health_check(image: Image) -> list[str]:
    """The arguments of our command in the image's health check."""
    command: str
    arguments: list[str]
    _, command, *arguments = image.config["Healthcheck"]["Test"]
    assert image.config["Entrypoint"] == [command]
    return arguments


async def ended(*arguments: str, admin_port: int | None = None, configuration: str | None = None) -> int:
    """The exit code of our command in another container, which shares the network with the first."""
    environment = on_stage.environment_of({} if admin_port is None else {"admin.port": admin_port})
    if configuration is not None:
        environment["C8Y_REALTIME_PROXY_CONFIG"] = configuration
    async with running(on_stage.COMMAND, *arguments, environment=environment) as program:
        return await program.wait(seconds=20)
