"""Files are read again when they have changed, and replaced whole, in an order that a power cut cannot turn around."""

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy import files
from proxy.files import Reloaded


# Read again -----------------------------------------------------------------------------------------------------------


def number_in(file: Path) -> Callable[[], int]:
    def read() -> int:
        try:
            return int(file.read_bytes())
        except ValueError:
            raise ValueError("expected a number") from None

    return read


class Watched:
    """One file that ought to hold a number, and what was told of it."""

    def __init__(self, file: Path, *, last: int | None = None) -> None:
        self.file = file
        self.told: list[bool] = []
        self.reads = 0
        read = number_in(file)

        def counted() -> int:
            self.reads += 1
            return read()

        self.reloaded = Reloaded([file], counted, key="a.number_file", on_load=self.told.append, last=last)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    (tmp_path / "number").write_text("1")
    return Watched(tmp_path / "number")


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_file_that_stays_is_read_once(watched: Watched) -> None:
    assert [watched.reloaded.current() for _ in range(10)] == [1] * 10
    assert (watched.reads, watched.told) == (1, [True])


@pytest.mark.parametrize("way", ["edited", "renamed over", "linked"])
def test_file_that_changed_in_any_way_is_read_at_the_next_look(tmp_path: Path, way: str) -> None:
    one, two, file = tmp_path / "one", tmp_path / "two", tmp_path / "number"
    one.write_text("1")
    two.write_text("2")
    file.symlink_to(one)
    watched = Watched(file)
    assert watched.reloaded.current() == 1
    if way == "edited":
        one.write_text("2")
    elif way == "renamed over":
        two.rename(one)
    else:
        (tmp_path / "new").symlink_to(two)
        (tmp_path / "new").rename(file)
    assert watched.reloaded.current() == 2
    assert watched.told == [True, True]


@pytest.mark.logs_errors
def test_broken_file_keeps_the_last_good_value_and_is_told_once_until_it_is_mended(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.reloaded.current()
    watched.file.write_text("canary")
    assert [watched.reloaded.current() for _ in range(3)] == [1] * 3
    assert errors(caplog) == ["a.number_file: expected a number. The last good one stays"]
    watched.file.write_text("22")
    assert watched.reloaded.current() == 22
    assert watched.told == [True, False, True]


@pytest.mark.logs_errors
def test_file_that_cannot_be_read_for_now_is_tried_again_though_it_looks_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "number"
    file.write_text("1")
    is_short = True

    def read() -> int:
        if is_short:
            raise OSError(24, os.strerror(24))
        return int(file.read_text())

    reloaded = Reloaded([file], read, key="a.number_file", on_load=lambda _: None)
    assert [reloaded.current() for _ in range(3)] == [None] * 3
    assert errors(caplog) == ["a.number_file: cannot be read: Too many open files. There is none until it is mended"]
    is_short = False
    assert reloaded.current() == 1


@pytest.mark.logs_errors
def test_value_of_another_file_serves_until_the_one_in_its_place_is_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path / "number", last=7)
    assert watched.reloaded.current() == 7
    assert errors(caplog) == ["a.number_file: cannot be read: No such file or directory. The last good one stays"]
    watched.file.write_text("8")
    assert watched.reloaded.current() == 8


def test_what_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("old")
    two.write_text("old")
    seen: list[str] = []

    def read() -> tuple[str, str]:
        first = one.read_text()
        if not seen:
            one.write_text("new!")
            two.write_text("new!")
        seen.append(first)
        return first, two.read_text()

    reloaded = Reloaded([one, two], read, key="a.pair", on_load=lambda _: None)
    assert reloaded.current() == ("new!", "new!")


# Replaced -------------------------------------------------------------------------------------------------------------


def test_content_is_on_the_disk_before_its_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    happened: list[str] = []
    fsync, rename, link = os.fsync, os.replace, os.link

    def syncing(descriptor: int) -> None:
        status = os.fstat(descriptor)
        happened.append("directory" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes")
        fsync(descriptor)

    def named(old: Path, new: Path) -> None:
        happened.append("name")
        (rename if new.exists() else link)(old, new)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", named)
    monkeypatch.setattr(os, "link", named)
    files.create(target, b"one")
    with files.locked(target) as (opened, real):
        files.replace(real, b"three", like=opened.fileno())
    assert happened == ["3 bytes", "name", "directory", "5 bytes", "name", "directory"]
    assert target.read_bytes() == b"three"


def test_file_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    target = tmp_path / "file"
    files.create(target, b"one")
    with pytest.raises(FileExistsError):
        files.create(target, b"two")
    assert target.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [target]


def test_file_that_is_put_aside_keeps_its_content_and_takes_no_other_name(tmp_path: Path) -> None:
    target = tmp_path / "file"
    for number in (1, 2, 3):
        target.write_text(str(number))
        assert files.put_aside(target) == tmp_path / f"file.aside-{number}"
    assert [(tmp_path / f"file.aside-{number}").read_text() for number in (1, 2, 3)] == ["1", "2", "3"]
    assert not target.exists()


def test_content_is_that_of_a_file_within_its_bounds(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    assert files.content(tmp_path / "file", limit=5) == b"12345"
    for name, limit in (("file", 4), ("pipe", 5), (".", 5), ("nowhere", 5)):
        with pytest.raises(OSError, match=r"\w") as caught:
            files.content(tmp_path / name, limit=limit)
        assert str(caught.value.filename) == str(tmp_path / name)
