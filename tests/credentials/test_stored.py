"""Stored values are picked up when they change, never torn, and rested when upstream rejected them."""

import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from proxy.credentials.kinds import Basic, Credential, Jwt
from proxy.credentials.sources import CoolingDown, NoCredential
from proxy.credentials.stored import BrokenCredential, FixedValues, SecretDirectory, StoredSource, credential_from
from proxy.head import Head


HEAD: Final = Head("GET", "/notification/realtime", ())
REALTIME: Final = "/notification/realtime"
OPERATIONS: Final = "/notification/operations"
CANARY: Final = "canary-of-the-store"

_moments: Final = count(1_700_000_000_000_000_000, 1_000_000_000)


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """A stored source, the clock that it sees, and what it told of its loads."""

    def __init__(self, kept: SecretDirectory | Mapping[str, str], *, cooldown: float = 60.0) -> None:
        self.loads: list[bool] = []
        self.clock = Clock()
        store = kept if isinstance(kept, SecretDirectory) else FixedValues(kept)
        self.source = StoredSource(
            store, credential="default", cooldown_seconds=cooldown, clock=self.clock, on_load=self.loads.append
        )

    async def obtain(self, endpoint: str = REALTIME) -> Credential:
        return self.source.obtain(HEAD, endpoint)

    def reject(self, credential: Credential, endpoint: str) -> None:
        """Take note, as a relay does, that upstream denied a credential at an endpoint."""
        guard = self.source.guard(credential, endpoint)
        if guard is not None:
            guard.denied()


def write(directory: Path, **values: str) -> None:
    """Write in place; each file's time differs from all before, as it does when people and not tests write."""
    for name, value in values.items():
        file = directory / name
        file.write_text(value, encoding="utf-8")
        moment = next(_moments)
        os.utime(file, ns=(moment, moment))


def project(mount: Path, generation: str, **values: str) -> None:
    """Lay a Secret out as the kubelet does, and swap `..data` as it does."""
    before = (mount / "..data").resolve() if (mount / "..data").exists() else None
    (mount / generation).mkdir()
    write(mount / generation, **values)
    (mount / "..data_tmp").symlink_to(generation)
    (mount / "..data_tmp").rename(mount / "..data")
    for name in values:
        if not (mount / name).is_symlink():
            (mount / name).symlink_to(Path("..data") / name)
    if before is not None:
        shutil.rmtree(before)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path, user="ann", password="first")
    return tmp_path


@pytest.fixture
def store(directory: Path) -> Store:
    return Store(SecretDirectory(directory))


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "credential"),
    [
        pytest.param({"user": "u", "password": "p"}, Basic("u", "p"), id="user and password"),
        pytest.param(
            {"tenant": "t", "user": "u", "password": "p:w", "tfa": "1"},
            Basic("u", "p:w", tenant="t", tfa="1"),
            id="all",
        ),
        pytest.param({"token": "e.y.J"}, Jwt("e.y.J"), id="a token"),
        pytest.param({"token": "e.y.J", "tenant": "t"}, Jwt("e.y.J"), id="a token beside the tenant"),
        pytest.param({"user": "u", "password": " p\tä "}, Basic("u", " p\tä "), id="spaces belong to a password"),
    ],
)
def test_values_make_one_credential(values: dict[str, str], credential: Credential) -> None:
    assert credential_from(values) == credential


@pytest.mark.parametrize(
    ("values", "named"),
    [
        pytest.param({}, ["user", "password"], id="nothing"),
        pytest.param({"tenant": CANARY}, ["user", "password"], id="the tenant alone"),
        pytest.param({"user": CANARY}, ["password"], id="no password"),
        pytest.param({"password": CANARY}, ["user"], id="no user"),
        pytest.param(
            {"token": CANARY, "user": CANARY, "password": CANARY}, ["token", "user", "password"], id="two kinds"
        ),
        pytest.param({"token": CANARY, "tfa": CANARY}, ["token", "tfa"], id="a token with tfa"),
        pytest.param({"token": f"Bearer {CANARY}"}, ["token"], id="a token with Bearer in front"),
        pytest.param({"token": f"{CANARY}\nx"}, ["token"], id="a token of two lines"),
        pytest.param({"user": f"{CANARY}:x", "password": "p"}, ["user"], id="a colon in the user"),
        pytest.param({"user": "u", "password": "p", "tfa": f"{CANARY}\r\nx: y"}, ["tfa"], id="a line break in tfa"),
        pytest.param(
            {"user": "u", "password": "p", "totp_secret": CANARY}, ["totp_secret", "login"], id="a secret for logins"
        ),
        pytest.param({"token": "t", "tfa_code": CANARY}, ["tfa_code", "login"], id="a code for a login"),
        pytest.param({"tenant": f"{CANARY}:x", "user": "u", "password": "p"}, ["tenant"], id="a colon in the tenant"),
        pytest.param({"user": "u", "password": f"{CANARY}\udcff"}, ["password"], id="a password that is not UTF-8"),
        pytest.param({"user": f"{CANARY}\udcff", "password": "p"}, ["user"], id="a user that is not UTF-8"),
    ],
)
def test_values_that_make_none_are_named_and_not_quoted(values: dict[str, str], named: list[str]) -> None:
    with pytest.raises(BrokenCredential) as caught:
        credential_from(values)
    assert all(name in str(caught.value) for name in named)
    assert CANARY not in str(caught.value)


async def test_values_given_once_are_loaded_once() -> None:
    store = Store({"tenant": "t1", "user": "u", "password": "p"})
    assert [await store.obtain() for _ in range(3)] == [Basic("u", "p", tenant="t1")] * 3
    assert store.loads == [True]


@pytest.mark.logs_errors
async def test_broken_values_given_once_are_counted_once() -> None:
    store = Store({"user": "u"})
    for _ in range(3):
        with pytest.raises(NoCredential):
            await store.obtain()
    assert not store.source.is_usable()
    assert store.loads == [False]


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"], ids=repr)
async def test_newline_at_the_end_of_a_file_is_harmless(tmp_path: Path, end: str) -> None:
    write(tmp_path, tenant="t1" + end, user="ann" + end, password=" pass:word\t" + end, tfa="123" + end)
    assert await Store(SecretDirectory(tmp_path)).obtain() == Basic("ann", " pass:word\t", tenant="t1", tfa="123")


async def test_unchanged_directory_is_read_once(store: Store) -> None:
    assert [await store.obtain() for _ in range(3)] == [Basic("ann", "first")] * 3
    assert store.source.is_usable()
    assert store.loads == [True]


async def test_other_files_in_the_directory_do_not_matter(directory: Path, store: Store) -> None:
    await store.obtain()
    write(directory, note=CANARY)
    (directory / "sub").mkdir()
    assert await store.obtain() == Basic("ann", "first")
    assert store.loads == [True]


async def test_edit_in_place_is_picked_up(directory: Path, store: Store) -> None:
    await store.obtain()
    write(directory, password="other")
    assert await store.obtain() == Basic("ann", "other")
    assert store.loads == [True, True]


async def test_edit_that_keeps_size_and_time_is_picked_up(directory: Path, store: Store) -> None:
    await store.obtain()
    status = (directory / "password").stat()
    replacement = directory / "next"
    replacement.write_text("other", encoding="utf-8")
    os.utime(replacement, ns=(status.st_atime_ns, status.st_mtime_ns))
    replacement.rename(directory / "password")
    assert await store.obtain() == Basic("ann", "other")


async def test_rename_over_a_file_is_picked_up(directory: Path, store: Store) -> None:
    await store.obtain()
    write(directory, new="other")
    (directory / "new").rename(directory / "password")
    assert await store.obtain() == Basic("ann", "other")


async def test_rename_of_the_whole_directory_is_picked_up(tmp_path: Path) -> None:
    for name, password in (("current", "first"), ("next", "other")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, user="ann", password=password)
    store = Store(SecretDirectory(tmp_path / "current"))
    assert await store.obtain() == Basic("ann", "first")
    (tmp_path / "current").rename(tmp_path / "old")
    (tmp_path / "next").rename(tmp_path / "current")
    assert await store.obtain() == Basic("ann", "other")


async def test_symlink_to_another_directory_is_picked_up(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, user="ann", password=name)
    (tmp_path / "current").symlink_to("a")
    store = Store(SecretDirectory(tmp_path / "current"))
    assert await store.obtain() == Basic("ann", "a")
    (tmp_path / "next").symlink_to("b")
    (tmp_path / "next").rename(tmp_path / "current")
    assert await store.obtain() == Basic("ann", "b")


async def test_value_added_and_removed_is_picked_up(directory: Path, store: Store) -> None:
    await store.obtain()
    write(directory, tenant="t1", tfa="1")
    assert await store.obtain() == Basic("ann", "first", tenant="t1", tfa="1")
    (directory / "tfa").unlink()
    assert await store.obtain() == Basic("ann", "first", tenant="t1")


async def test_kubernetes_swap_is_picked_up(tmp_path: Path) -> None:
    project(tmp_path, "..2026_01", tenant="t1", user="ann", password="first")
    store = Store(SecretDirectory(tmp_path))
    assert await store.obtain() == Basic("ann", "first", tenant="t1")
    project(tmp_path, "..2026_02", tenant="t1", user="bob", password="other")
    assert await store.obtain() == Basic("bob", "other", tenant="t1")
    project(tmp_path, "..2026_03", token="e.y.J")
    assert await store.obtain() == Jwt("e.y.J")
    assert store.loads == [True] * 3


@pytest.mark.logs_errors
async def test_kubernetes_swap_to_the_same_values_changes_nothing(tmp_path: Path) -> None:
    project(tmp_path, "..2026_01", user="ann", password="first")
    store = Store(SecretDirectory(tmp_path))
    store.reject(await store.obtain(), REALTIME)
    project(tmp_path, "..2026_02", user="ann", password="first")
    with pytest.raises(CoolingDown):
        await store.obtain()


class Interrupted(SecretDirectory):
    """A directory that somebody changes after its user was read and before its password is."""

    def __init__(self, path: Path, change: Callable[[], None]) -> None:
        super().__init__(path)
        self._change = change

    def _value(self, name: str, directory: int) -> str | None:
        if name == "password":
            self._change()
        return super()._value(name, directory)


class Once:
    """A change that happens the first time only."""

    def __init__(self, change: Callable[[], None]) -> None:
        self._changes = [change]

    def __call__(self) -> None:
        if self._changes:
            self._changes.pop()()


def swap(mount: Path) -> None:
    project(mount, "..2026_02", user="bob", password="other")


def edit(mount: Path) -> None:
    write(mount, user="bob", password="other")


def replace_files(mount: Path) -> None:
    for name, value in (("user", "bob"), ("password", "other")):
        write(mount, new=value)
        (mount / "new").rename(mount / name)


@pytest.mark.parametrize("change", [swap, edit, replace_files])
async def test_user_and_password_never_tear(tmp_path: Path, change: Callable[[Path], None]) -> None:
    if change is swap:
        project(tmp_path, "..2026_01", user="ann", password="first")
    else:
        write(tmp_path, user="ann", password="first")
    store = Store(Interrupted(tmp_path, Once(lambda: change(tmp_path))))
    assert await store.obtain() == Basic("bob", "other")
    assert await store.obtain() == Basic("bob", "other")


@pytest.mark.logs_errors
async def test_directory_that_never_rests_keeps_the_last_good_value(directory: Path) -> None:
    numbers = count()

    def change() -> None:
        if (number := next(numbers)) > 0:
            write(directory, user=f"user-{number}", password=f"password-{number}")

    store = Store(Interrupted(directory, change))
    assert await store.obtain() == Basic("ann", "first")
    write(directory, tenant="t1")
    assert await store.obtain() == Basic("ann", "first")
    assert store.loads == [True, False]


def empty(directory: Path) -> None:
    write(directory, password="")


def blank(directory: Path) -> None:
    write(directory, password="\n")


def missing(directory: Path) -> None:
    (directory / "password").unlink()


def not_text(directory: Path) -> None:
    (directory / "password").write_bytes(b"\xff\xfe" + CANARY.encode())


def too_long(directory: Path) -> None:
    write(directory, password=CANARY * 10_000)


def a_directory(directory: Path) -> None:
    (directory / "password").unlink()
    (directory / "password").mkdir()


def dangling(directory: Path) -> None:
    (directory / "password").unlink()
    (directory / "password").symlink_to("nowhere")


def two_kinds(directory: Path) -> None:
    write(directory, token=CANARY)


def gone(directory: Path) -> None:
    shutil.rmtree(directory)


def renew(directory: Path, **values: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    write(directory, **values)


DAMAGES: Final = [empty, blank, missing, not_text, too_long, a_directory, dangling, two_kinds, gone]


@pytest.mark.logs_errors
@pytest.mark.parametrize("damage", DAMAGES)
async def test_broken_directory_keeps_the_last_good_value_and_is_counted_once(
    directory: Path, store: Store, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    await store.obtain()
    damage(directory)
    assert [await store.obtain() for _ in range(3)] == [Basic("ann", "first")] * 3
    assert store.source.is_usable()
    assert store.loads == [True, False]
    assert [record.levelno for record in caplog.records if record.name.startswith("proxy")] == [logging.ERROR]
    assert CANARY not in caplog.text
    assert "first" not in caplog.text


@pytest.mark.logs_errors
@pytest.mark.parametrize("damage", DAMAGES)
async def test_directory_broken_from_the_start_gives_no_credential_until_it_is_mended(
    directory: Path, store: Store, damage: Callable[[Path], None]
) -> None:
    damage(directory)
    for _ in range(2):
        with pytest.raises(NoCredential):
            await store.obtain()
    assert not store.source.is_usable()
    assert store.loads == [False]
    renew(directory, user="ann", password="mended")
    assert await store.obtain() == Basic("ann", "mended")
    assert store.source.is_usable()
    assert store.loads == [False, True]


@pytest.mark.logs_errors
async def test_each_change_to_another_broken_state_is_counted(directory: Path, store: Store) -> None:
    await store.obtain()
    for damage in (empty, two_kinds, missing):
        damage(directory)
        await store.obtain()
        await store.obtain()
    assert store.loads == [True, False, False, False]


@pytest.mark.logs_errors
async def test_directory_that_appears_later_is_found(tmp_path: Path) -> None:
    store = Store(SecretDirectory(tmp_path / "later"))
    with pytest.raises(NoCredential):
        await store.obtain()
    (tmp_path / "later").mkdir()
    write(tmp_path / "later", token="e.y.J")
    assert await store.obtain() == Jwt("e.y.J")


@contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """So many files can still be opened at a time."""
    lowest_free = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.logs_errors
async def test_values_that_could_not_be_read_in_passing_are_read_at_the_next_look(
    directory: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.obtain()
    write(directory, password="second")
    with descriptors_left(1):  # for the directory, and none for its files
        assert [await store.obtain() for _ in range(3)] == [Basic("ann", "first")] * 3
    assert await store.obtain() == Basic("ann", "second")
    assert store.loads == [True, False, True]
    assert [record.levelno for record in caplog.records if record.name.startswith("proxy")] == [logging.ERROR]


# Cool-down ------------------------------------------------------------------------------------------------------------


@pytest.mark.logs_errors
async def test_rejected_value_rests_at_that_endpoint_until_it_has_cooled_down(store: Store) -> None:
    store.reject(await store.obtain(), REALTIME)
    for later, remaining in ((0.0, 60.0), (20.0, 40.0), (59.0, 1.0)):
        store.clock.now = 1000.0 + later
        with pytest.raises(CoolingDown) as caught:
            await store.obtain()
        assert caught.value.seconds == pytest.approx(remaining)
        assert await store.obtain(OPERATIONS) == Basic("ann", "first")
    store.clock.now = 1060.0
    assert await store.obtain() == Basic("ann", "first")


@pytest.mark.logs_errors
async def test_cooldown_is_one_kind_of_no_credential_and_shows_no_secret(store: Store) -> None:
    store.reject(await store.obtain(), REALTIME)
    with pytest.raises(NoCredential) as caught:
        await store.obtain()
    assert "first" not in str(caught.value)


@pytest.mark.logs_errors
async def test_change_ends_the_cooldown_everywhere(directory: Path, store: Store) -> None:
    credential = await store.obtain()
    store.reject(credential, REALTIME)
    store.reject(credential, OPERATIONS)
    write(directory, password="other")
    assert await store.obtain() == await store.obtain(OPERATIONS) == Basic("ann", "other")


@pytest.mark.logs_errors
async def test_touch_or_breakage_does_not_end_the_cooldown(directory: Path, store: Store) -> None:
    store.reject(await store.obtain(), REALTIME)
    write(directory, password="first\n")
    with pytest.raises(CoolingDown):
        await store.obtain()
    empty(directory)
    with pytest.raises(CoolingDown):
        await store.obtain()


async def test_late_rejection_of_an_old_value_does_not_touch_the_new_one(directory: Path, store: Store) -> None:
    old = await store.obtain()
    write(directory, password="other")
    new = await store.obtain()
    store.reject(old, REALTIME)
    assert await store.obtain() == new


@pytest.mark.logs_errors
async def test_rejection_is_logged_without_the_secret(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.reject(await store.obtain(), REALTIME)
    assert [record.levelno for record in caplog.records if record.name.startswith("proxy")] == [logging.ERROR]
    assert REALTIME in caplog.text
    assert "first" not in caplog.text


def test_stored_values_are_nobodys_own(store: Store) -> None:
    assert not store.source.is_clients_own
    assert store.source.name == "stored"


@pytest.mark.logs_errors
async def test_pipe_in_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "user").write_text("u")
    os.mkfifo(tmp_path / "password")
    with pytest.raises(BrokenCredential, match="password is not a file"):
        SecretDirectory(tmp_path).read()
