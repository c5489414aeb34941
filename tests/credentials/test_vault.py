"""The vault is read as it is at one moment, written whole by one at a time, and sessions are never lost with it."""

import base64
import errno
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import IO, Final

import msgspec
import pytest

from proxy import files
from proxy.credentials import sealing
from proxy.credentials.kinds import Basic
from proxy.credentials.sealing import BadKeys, KeyFile, Kind, NoKeyOpens, Sealed, Tampered
from proxy.credentials.sources import NoCredential
from proxy.credentials.stored import BrokenCredential, RevokedCredential, StoredSource, UnreadableCredential
from proxy.credentials.vault import SealedFile, Sessions, VaultEntry, moment
from proxy.head import Head
from tests.credentials.killed import CANARY, WAYS, Aftermath


ROOT: Final = Path(__file__).parent.parent.parent
HEAD: Final = Head("GET", "/notification/realtime", ())
VALUES: Final = {"user": "ann", "password": CANARY}
NOW: Final = 1_700_000_000.0


def a_key() -> bytes:
    return base64.b64encode(os.urandom(32)) + b"\n"


def replaced(file: Path, content: bytes) -> None:
    """Put a file in its place as most people do it."""
    fresh = file.with_name(f"{file.name}.fresh")
    fresh.write_bytes(content)
    fresh.rename(file)


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    file = tmp_path / "keys"
    file.write_bytes(a_key())
    return KeyFile(file)


@pytest.fixture
def vault(tmp_path: Path, keys: KeyFile) -> SealedFile:
    """A vault with the entry `default`."""
    made = SealedFile(tmp_path / "vault.json", keys)
    put(made, "default")
    return made


def put(vault: SealedFile, name: str, **values: str) -> None:
    vault.change(lambda opened: opened.put(name, values or VALUES, moment(NOW)))


def remove(vault: SealedFile, name: str) -> None:
    vault.change(lambda opened: opened.without(name))


def names(vault: SealedFile) -> list[str]:
    return [entry.name for entry in vault.open().entries]


# What is written ------------------------------------------------------------------------------------------------------


def test_vault_is_made_for_its_owner_alone(vault: SealedFile) -> None:
    assert stat.S_IMODE(vault.path.stat().st_mode) == 0o600
    assert vault.open().values("default") == VALUES


def test_mode_and_links_stay_as_they_are(vault: SealedFile) -> None:
    vault.path.chmod(0o640)
    real = vault.path.rename(vault.path.with_name("real.json"))
    vault.path.symlink_to(real)
    put(vault, "more")
    assert vault.path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert names(vault) == ["default", "more"]


def test_link_that_points_nowhere_yet_is_followed(tmp_path: Path, keys: KeyFile) -> None:
    vault = SealedFile(tmp_path / "vault.json", keys)
    vault.path.symlink_to(tmp_path / "real.json")
    put(vault, "default")
    assert vault.path.is_symlink()
    assert (tmp_path / "real.json").is_file()


def test_all_who_write_at_once_are_heard(tmp_path: Path, keys: KeyFile) -> None:
    vault = SealedFile(tmp_path / "vault.json", keys)
    writers = [threading.Thread(target=put, args=(vault, f"entry-{number}")) for number in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(names(vault)) == sorted(f"entry-{number}" for number in range(12))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["keys", "vault.json"]


def test_vault_that_somebody_makes_just_before_us_is_changed_like_any_other(
    tmp_path: Path, keys: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, locked = SealedFile(tmp_path / "vault.json", keys), files.locked

    def too_late(file: Path) -> AbstractContextManager[tuple[IO[bytes], Path]]:
        monkeypatch.setattr(files, "locked", locked)
        put(vault, "theirs")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))

    monkeypatch.setattr(files, "locked", too_late)
    put(vault, "ours")
    assert sorted(names(vault)) == ["ours", "theirs"]


def test_what_a_change_refuses_changes_nothing(vault: SealedFile) -> None:
    before = vault.path.read_bytes()

    def refuse(_: Sealed) -> Sealed:
        raise LookupError

    with pytest.raises(LookupError):
        vault.change(refuse)
    assert vault.path.read_bytes() == before


def test_vault_that_does_not_open_is_not_written(vault: SealedFile) -> None:
    vault.path.write_bytes(vault.path.read_bytes()[:-20])
    before = vault.path.read_bytes()
    with pytest.raises(Tampered):
        put(vault, "more")
    assert vault.path.read_bytes() == before


@cache
def aftermaths() -> dict[str, list[Aftermath]]:
    """What writers left that were killed before each of their calls."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-m", "tests.credentials.killed", directory], cwd=ROOT, capture_output=True, check=True
        )
    return msgspec.json.decode(done.stdout, type=dict[str, list[Aftermath]])


@pytest.mark.parametrize(
    ("way", "old", "new"),
    [
        pytest.param("create", {}, {"new": CANARY}, id="create"),
        pytest.param("add", {"old": CANARY}, {"old": CANARY, "new": CANARY}, id="add"),
        pytest.param("replace", {"old": CANARY}, {"old": f"{CANARY}-2"}, id="replace"),
        pytest.param("remove", {"old": CANARY}, {}, id="remove"),
        pytest.param("rotate", {"old": CANARY}, {"old": CANARY}, id="rotate"),
    ],
)
def test_killed_writer_leaves_all_of_the_old_or_all_of_the_new(
    way: str, old: dict[str, str], new: dict[str, str]
) -> None:
    *killed, done = aftermaths()[way]
    assert len(killed) > 20
    found = [aftermath.values for aftermath in killed]
    written = found.index(new) if old != new else len(found)
    assert found == [old] * written + [new] * (len(found) - written)
    assert old == new or 0 < written < len(found)  # it was killed before it was in place, and behind that
    assert done == Aftermath(killed=False, values=new, left=0, showed=False, then=new | {"next": CANARY})


@pytest.mark.parametrize("way", WAYS)
def test_killed_writer_is_in_nobodys_way_and_leaves_nothing_readable(way: str) -> None:
    assert any(aftermath.left for aftermath in aftermaths()[way])
    for aftermath in aftermaths()[way]:
        assert aftermath.then == aftermath.values | {"next": CANARY}
        assert not aftermath.showed


# Keys that change -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_sealed_by_the_first_key(vault: SealedFile) -> None:
    old = vault.keys.path.read_bytes()
    vault.keys.path.write_bytes(a_key() + old)
    assert vault.open().opened_by == 2
    put(vault, "more")
    assert vault.open().opened_by == 1
    vault.keys.path.write_bytes(old)
    with pytest.raises(NoKeyOpens):
        vault.open()


def test_rotation_tells_which_line_sealed_it_and_which_are_needed_no_longer(vault: SealedFile) -> None:
    old = vault.keys.path.read_bytes()
    vault.keys.path.write_bytes(a_key() + b"\n" + old + a_key())
    before = vault.open().entries
    assert vault.rotate() == (3, (3, 4))
    assert vault.rotate() == (1, (3, 4))
    vault.keys.path.write_bytes(vault.keys.path.read_bytes().splitlines(keepends=True)[0])
    assert vault.rotate() == (1, ())
    assert vault.open().entries == before


def swap_keys_and_vault(vault: SealedFile, other: SealedFile) -> None:
    replaced(vault.keys.path, other.keys.path.read_bytes())
    replaced(vault.path, other.path.read_bytes())


def rotate_to_the_end(vault: SealedFile, _: SealedFile) -> None:
    old, new = vault.keys.path.read_bytes(), a_key()
    replaced(vault.keys.path, new + old)
    vault.rotate()
    replaced(vault.keys.path, new)


@pytest.mark.parametrize("change", [swap_keys_and_vault, rotate_to_the_end])
@pytest.mark.parametrize("read_before", ["vault.json", "keys"])
def test_both_files_may_be_replaced_between_two_looks(
    vault: SealedFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[SealedFile, SealedFile], None],
    read_before: str,
) -> None:
    (tmp_path / "other").mkdir()
    other = SealedFile(tmp_path / "other" / "vault.json", KeyFile(tmp_path / "other" / "keys"))
    other.keys.path.write_bytes(a_key())
    put(other, "default")
    content = files.content

    def content_and_then(file: Path, *, limit: int) -> bytes:
        read = content(file, limit=limit)
        if file.name == read_before:
            monkeypatch.setattr(files, "content", content)
            change(vault, other)
        return read

    monkeypatch.setattr(files, "content", content_and_then)
    assert vault.open().values("default") == VALUES
    assert files.content is content


def test_files_that_never_rest_are_given_up(vault: SealedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    content = files.content

    def other_keys(file: Path, *, limit: int) -> bytes:
        if file == vault.path:
            replaced(vault.keys.path, a_key())
        return content(file, limit=limit)

    monkeypatch.setattr(files, "content", other_keys)
    with pytest.raises(NoKeyOpens):
        vault.open()


# An entry as a store --------------------------------------------------------------------------------------------------


class Stored:
    """A source of the entry `default`, and what it told of its loads."""

    def __init__(self, vault: SealedFile) -> None:
        self.loads: list[bool] = []
        self.source = StoredSource(
            VaultEntry(vault, "default"),
            credential="default",
            cooldown_seconds=60,
            clock=lambda: 0.0,
            on_load=self.loads.append,
        )

    def password(self) -> str:
        credential = self.source.obtain(HEAD, HEAD.path)
        assert isinstance(credential, Basic)
        return credential.password


def test_entry_that_changes_is_the_next_that_is_used(vault: SealedFile) -> None:
    stored = Stored(vault)
    assert stored.password() == CANARY
    put(vault, "other")
    put(vault, "default", user="ann", password=f"{CANARY}-2")
    assert stored.password() == f"{CANARY}-2"
    assert stored.loads == [True, True]


@pytest.mark.logs_errors
def test_entry_that_is_removed_is_revoked_until_it_is_back(vault: SealedFile, caplog: pytest.LogCaptureFixture) -> None:
    stored = Stored(vault)
    assert stored.password() == CANARY
    remove(vault, "default")
    with pytest.raises(NoCredential):
        stored.password()
    assert stored.source.is_revoked
    assert "`c8y-realtime-proxy credentials add default` puts it there" in caplog.text
    put(vault, "default")
    assert stored.password() == CANARY
    assert not stored.source.is_revoked


def cut_off(vault: SealedFile) -> None:
    vault.path.write_bytes(vault.path.read_bytes()[:-20])


def take_away(vault: SealedFile) -> None:
    vault.path.unlink()


def lose_the_keys(vault: SealedFile) -> None:
    vault.keys.path.unlink()


def change_the_keys(vault: SealedFile) -> None:
    replaced(vault.keys.path, a_key())


def spoil_the_keys(vault: SealedFile) -> None:
    replaced(vault.keys.path, CANARY.encode())


def make_a_pipe(vault: SealedFile) -> None:
    vault.path.unlink()
    os.mkfifo(vault.path)


def make_it_endless(vault: SealedFile) -> None:
    with vault.path.open("ab") as file:
        file.truncate(5 * 1024 * 1024)


def blow_up_the_keys(vault: SealedFile) -> None:
    replaced(vault.keys.path, b"\n" * 100_000)


@pytest.mark.logs_errors
@pytest.mark.parametrize(
    ("spoil", "problem", "told"),
    [
        pytest.param(cut_off, BrokenCredential, "vault.json is not as it was written", id="cut off"),
        pytest.param(take_away, UnreadableCredential, "vault.json cannot be read: No such file", id="gone"),
        pytest.param(lose_the_keys, UnreadableCredential, "keys cannot be read: No such file", id="no keys"),
        pytest.param(change_the_keys, BrokenCredential, "is opened by none of the 1 lines", id="other keys"),
        pytest.param(spoil_the_keys, BrokenCredential, "keys: line 1 is no key", id="broken keys"),
        pytest.param(make_a_pipe, UnreadableCredential, "vault.json cannot be read: Not a file", id="a pipe"),
        pytest.param(make_it_endless, UnreadableCredential, "vault.json cannot be read: File too large", id="too long"),
        pytest.param(blow_up_the_keys, UnreadableCredential, "keys cannot be read: File too large", id="long keys"),
    ],
)
def test_what_is_broken_is_told_and_leaves_the_last_good_value(
    vault: SealedFile,
    spoil: Callable[[SealedFile], None],
    problem: type[BrokenCredential],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored = Stored(vault)
    assert stored.password() == CANARY
    spoil(vault)
    with pytest.raises(BrokenCredential, match=told) as caught:
        VaultEntry(vault, "default").read()
    assert type(caught.value) is problem
    assert stored.password() == CANARY
    assert stored.loads == [True, False]
    assert CANARY not in caplog.text


def test_passphrase_that_there_is_no_memory_for_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("a canary of a passphrase\n")
    vault = SealedFile(tmp_path / "vault.json", KeyFile(tmp_path / "keys", holds_passphrases=True))
    put(vault, "default")
    sealing._derived.cache_clear()
    with monkeypatch.context() as now:
        now.setattr(sealing, "Argon2id", NoMemory)
        with pytest.raises(UnreadableCredential, match="Cannot allocate memory"):
            VaultEntry(vault, "default").read()
    assert VaultEntry(vault, "default").read() == VALUES


class NoMemory:
    def __init__(self, **_: object) -> None: ...

    def derive(self, _: bytes) -> bytes:
        raise MemoryError


def test_fingerprint_follows_links_and_covers_the_keys(vault: SealedFile, tmp_path: Path) -> None:
    entry = VaultEntry(vault, "default")
    (tmp_path / "link").symlink_to(vault.path)
    linked = VaultEntry(SealedFile(tmp_path / "link", vault.keys), "default")
    seen = entry.fingerprint()
    assert linked.fingerprint() == seen
    put(vault, "more")
    assert linked.fingerprint() == entry.fingerprint() != seen
    seen = entry.fingerprint()
    replaced(vault.keys.path, vault.keys.path.read_bytes())
    assert entry.fingerprint() != seen


# Sessions -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sessions(tmp_path: Path, keys: KeyFile) -> Sessions:
    return Sessions(tmp_path / "sessions.json", keys, lambda: NOW)


SESSION: Final = {"token": CANARY, "xsrf_token": "x"}


def test_session_is_kept_across_a_restart_until_it_is_forgotten(
    sessions: Sessions, keys: KeyFile, tmp_path: Path
) -> None:
    assert sessions.load("default") is None
    sessions.keep("default", SESSION)
    sessions.keep("other", {"token": "y"})
    again = Sessions(tmp_path / "sessions.json", keys, lambda: NOW)
    assert again.load("default") == SESSION
    again.forget("default")
    assert sessions.load("default") is None
    assert sessions.load("other") == {"token": "y"}
    text = (tmp_path / "sessions.json").read_bytes()
    assert CANARY.encode() not in text
    assert stat.S_IMODE((tmp_path / "sessions.json").stat().st_mode) == 0o600


def test_nothing_is_made_to_forget_what_was_never_kept(sessions: Sessions, tmp_path: Path) -> None:
    sessions.forget("default")
    assert not (tmp_path / "sessions.json").exists()
    sessions.keep("default", SESSION)
    before = (tmp_path / "sessions.json").stat()
    sessions.forget("other")
    assert os.path.samestat(before, (tmp_path / "sessions.json").stat())


def test_sessions_of_several_credentials_are_kept_at_once(sessions: Sessions) -> None:
    writers = [threading.Thread(target=sessions.keep, args=(f"c{number}", SESSION)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert all(sessions.load(f"c{number}") == SESSION for number in range(8))


def with_other_keys(file: Path, keys: Path) -> None:
    assert file.exists()
    replaced(keys, a_key())


def with_an_end_cut_off(file: Path, keys: Path) -> None:
    assert keys.exists()
    file.write_bytes(file.read_bytes()[:-20])


def with_something_else(file: Path, keys: Path) -> None:
    shutil.copy(keys, file)


@pytest.mark.logs_errors
@pytest.mark.parametrize("spoil", [with_other_keys, with_an_end_cut_off, with_something_else])
@pytest.mark.parametrize("begin", ["load", "keep", "forget"])
def test_sessions_that_do_not_open_are_put_aside_and_begun_anew(
    sessions: Sessions,
    tmp_path: Path,
    spoil: Callable[[Path, Path], None],
    begin: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "sessions.json"
    sessions.keep("default", SESSION)
    spoil(file, tmp_path / "keys")
    spoiled = file.read_bytes()
    match begin:
        case "load":
            assert sessions.load("default") is None
        case "keep":
            sessions.keep("default", {"token": "new"})
        case _:
            sessions.forget("default")
    assert (tmp_path / "sessions.json.aside-1").read_bytes() == spoiled
    sessions.keep("default", {"token": "new"})
    assert sessions.load("default") == {"token": "new"}
    [told] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert str(tmp_path / "sessions.json.aside-1") in told.getMessage()


@pytest.mark.logs_errors
def test_what_was_put_aside_before_stays(sessions: Sessions, tmp_path: Path) -> None:
    file = tmp_path / "sessions.json"
    for number in (1, 2, 3):
        file.write_text(f"broken {number}")
        assert sessions.load("default") is None
        assert (tmp_path / f"sessions.json.aside-{number}").read_text() == f"broken {number}"
    assert (tmp_path / "sessions.json.aside-1").read_text() == "broken 1"


@pytest.mark.parametrize(("keys_now", "problem"), [(None, FileNotFoundError), (b"broken", BadKeys)], ids=str)
def test_sessions_stay_where_they_are_while_there_are_no_keys(
    sessions: Sessions, tmp_path: Path, keys_now: bytes | None, problem: type[Exception]
) -> None:
    sessions.keep("default", SESSION)
    good = (tmp_path / "keys").read_bytes()
    (tmp_path / "keys").unlink()
    if keys_now is not None:
        (tmp_path / "keys").write_bytes(keys_now)
    attempts: list[Callable[[], object]] = [
        lambda: sessions.load("default"),
        lambda: sessions.keep("default", {}),
        lambda: sessions.forget("default"),
    ]
    for attempt in attempts:
        with pytest.raises(problem):
            attempt()
    (tmp_path / "keys").write_bytes(good)
    assert sessions.load("default") == SESSION


def test_nothing_shows_a_secret(vault: SealedFile, sessions: Sessions) -> None:
    key = vault.keys.path.read_text().strip()
    shown = repr([vault, vault.keys, vault.open(), VaultEntry(vault, "default"), sessions, vault.keys.read()])
    assert CANARY not in shown
    assert key not in shown
    assert repr(base64.b64decode(key))[2:-1] not in shown


def test_vault_is_not_taken_for_sessions(vault: SealedFile) -> None:
    with pytest.raises(ValueError, match="is not a sessions file"):
        SealedFile(vault.path, vault.keys, Kind.SESSIONS).open()


def test_entry_that_was_never_there_is_told_with_what_to_do(vault: SealedFile) -> None:
    with pytest.raises(
        RevokedCredential, match=r"The entry nix is not in .*: `c8y-realtime-proxy credentials add nix`"
    ):
        VaultEntry(vault, "nix").read()
