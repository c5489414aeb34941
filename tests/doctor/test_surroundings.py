"""What is warned of although the configuration is valid."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from proxy.doctor import Verdict
from proxy.doctor.surroundings import surroundings
from tests.conftest import VALUES
from tests.doctor.examined import configured


HOSTS = {"listen.host": "0.0.0.0", "gate.hosts": ["proxy.example.com"], "gate.admit_anyone": "true"}  # noqa: S104
ANYONE = HOSTS | {"gate.identity": ["none"]}


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


@pytest.fixture
def secret(open_directory: Path) -> Path:
    """A directory with a credential for the user of the proxy alone."""
    for name in ("user", "password"):
        file = open_directory / name
        file.write_text("x")
        file.chmod(0o600)
    return open_directory


@pytest.fixture
def front_door(open_directory: Path) -> dict[str, object]:
    """A front door that keeps sessions in memory."""
    file = open_directory / "client-id-key"
    file.write_text("A" * 43 + "=")
    file.chmod(0o600)
    return {
        "credentials.default.source": "session",
        "frontdoor.public_origin": "https://app.example.com",
        "gate.client_id_key_file": str(file),
    }


def warned(settings: dict[str, object], mounts: str = "", directory: Path | None = None) -> list[str]:
    """The warnings on a configuration, with that said of mounts."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(mounts)
        file.flush()
        config = configured("https://tenant.example.com", settings, {} if directory else VALUES)
        told = list(surroundings(config, Path(file.name)))
    assert told[0].verdict is Verdict.OK
    assert all(each.verdict is Verdict.WARNING and each.remedy for each in told[1:])
    return list(map(str, told[1:]))


def stored(directory: Path) -> dict[str, object]:
    return {"credentials.default.directory": str(directory)}


def test_what_is_well_is_not_warned_of(secret: Path) -> None:
    assert warned(stored(secret), directory=secret) == []


def test_a_value_that_anybody_may_read_is_warned_of(secret: Path) -> None:
    (secret / "password").chmod(0o644)
    [told] = warned(stored(secret), directory=secret)
    assert told.startswith(f"credentials.default.directory: anybody on this machine may read {secret}/password. chmod")


def test_a_value_in_a_directory_that_lets_nobody_in_is_not_warned_of(secret: Path) -> None:
    (secret / "password").chmod(0o644)
    secret.chmod(0o700)
    assert warned(stored(secret), directory=secret) == []


@pytest.mark.parametrize("key", ["vault.file", "vault.key_file", "vault.sessions_file"])
def test_a_vault_that_anybody_may_read_is_warned_of(open_directory: Path, key: str) -> None:
    settings: dict[str, object] = {}
    for each in ("vault.file", "vault.key_file", "vault.sessions_file"):
        file = open_directory / each
        file.write_text("A" * 43 + "=")
        file.chmod(0o644 if each == key else 0o600)
        settings[each] = str(file)
    [told] = warned(settings)
    assert told.startswith(f"{key}: anybody on this machine may read")


@pytest.mark.parametrize(
    ("store", "files", "secrets"),
    [
        pytest.param({}, ["session_key_file", "sessions_file"], ["session_key_file", "sessions_file"], id="a file"),
        pytest.param(
            {"frontdoor.redis_url": "rediss://redis.example.com"},
            ["redis_ca_file", "redis_password_file", "session_key_file"],
            ["redis_password_file", "session_key_file"],
            id="Redis",
        ),
    ],
)
def test_a_secret_of_the_front_door_that_anybody_may_read_is_warned_of(
    front_door: dict[str, object], open_directory: Path, store: dict[str, object], files: list[str], secrets: list[str]
) -> None:
    settings = front_door | store
    for name in files:
        file = open_directory / name
        trustme.CA().cert_pem.write_to_path(file)
        file.chmod(0o644)
        settings[f"frontdoor.{name}"] = str(file)
    told = sorted(warned(settings, directory=open_directory))
    assert [each.partition(": anybody on this machine may read ")[0] for each in told] == [
        f"frontdoor.{name}" for name in secrets
    ]


def test_an_authority_of_redis_that_is_mounted_by_sub_path_is_warned_of(
    front_door: dict[str, object], open_directory: Path
) -> None:
    file, key = open_directory / "ca.pem", open_directory / "session-key"
    trustme.CA().cert_pem.write_to_path(file)
    key.write_text("A" * 43 + "=")
    key.chmod(0o600)
    redis = {"redis_url": "rediss://redis.example.com", "redis_ca_file": str(file), "session_key_file": str(key)}
    settings = front_door | {f"frontdoor.{name}": value for name, value in redis.items()}
    [told] = warned(settings, line(str(file)), open_directory)
    assert told.startswith(f"frontdoor.redis_ca_file: {file} is mounted by itself (by subPath")


def test_what_is_no_secret_may_be_read_by_anybody(open_directory: Path) -> None:
    file = open_directory / "ca.pem"
    trustme.CA().cert_pem.write_to_path(file)
    file.chmod(0o644)
    assert warned({"upstream.ca_file": str(file)}) == []


def line(point: str) -> str:
    """A mount as Linux lists it."""
    return f"36 35 98:0 /..2026_01_01/password {point} ro,noatime master:1 - tmpfs tmpfs rw\n"


def test_a_value_that_is_mounted_by_sub_path_is_warned_of(secret: Path) -> None:
    [told] = warned(stored(secret), line("/proc") + line(f"{secret}/password"), secret)
    assert told.startswith(f"credentials.default.directory: {secret}/password is mounted by itself (by subPath")


def test_a_place_with_a_space_is_known_as_linux_writes_it(secret: Path) -> None:
    spaced = secret / "a b"
    spaced.mkdir()
    for name in ("user", "password"):
        (secret / name).rename(spaced / name)
    [told] = warned(stored(spaced), line(str(spaced / "user").replace(" ", "\\040")), spaced)
    assert "/a b/user is mounted by itself" in told


def test_a_secret_that_is_mounted_as_a_whole_is_not_warned_of(secret: Path) -> None:
    generation = secret / "..2026"
    generation.mkdir()
    for name in ("user", "password"):
        (secret / name).rename(generation / name)
        (secret / name).symlink_to(f"..data/{name}")
    (secret / "..data").symlink_to("..2026")
    assert warned(stored(secret), line(str(secret)), secret) == []


def test_without_a_list_of_mounts_nothing_is_warned_of(secret: Path) -> None:
    config = configured("https://tenant.example.com", stored(secret), {})
    assert len(list(surroundings(config, secret / "nothing"))) == 1


def test_on_this_machine_the_list_of_mounts_is_read(secret: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    point = next(each.split(" ")[4] for each in mounts.splitlines() if Path(each.split(" ")[4]).is_dir())
    assert point
    assert os.path.realpath(point) == point
    assert warned(stored(secret), mounts, secret) == []


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        pytest.param(ANYONE, 1, id="in the open"),
        pytest.param(ANYONE | {"gate.trusted_proxies": ["10.0.0.0/8"]}, 0, id="behind what ends TLS"),
        pytest.param({}, 0, id="on loopback"),
    ],
)
def test_listening_beyond_loopback_without_tls_is_warned_of(settings: dict[str, object], count: int) -> None:
    told = warned(settings)
    assert len(told) == count
    assert all("listen.tls" in each for each in told)
