"""What is sealed opens with its keys and in its place alone, and nothing that was changed about it goes unnoticed."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.credentials import sealing
from proxy.credentials.sealing import (
    BadKeys,
    CannotOpen,
    KeyFile,
    Kind,
    NoKeyOpens,
    NoSuchEntry,
    NotSealed,
    Opener,
    OtherVersion,
    Sealed,
    Tampered,
)


CANARY: Final = "canary-of-the-vault"
PASSPHRASE: Final = "canary of passphrases, which is long"
MOMENT: Final = datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)
KEY: Final = bytes(range(32))
KEYS: Final[Sequence[Opener]] = [sealing._Key(1, KEY)]
OTHERS: Final[Sequence[Opener]] = [sealing._Key(2, bytes(32))]
WORDS: Final[Sequence[Opener]] = [sealing._Passphrase(1, PASSPHRASE.encode())]
VALUES: Final = {"tenant": "t1", "user": "ann", "password": CANARY}


def sealed(keys: Sequence[Opener] = KEYS, **entries: dict[str, str]) -> Sealed:
    """A vault with entries."""
    vault = Sealed.new(Kind.VAULT, keys, "v.json")
    for name, values in entries.items():
        vault = vault.put(name, values, MOMENT)
    return vault


BY_WORDS: Final = sealed(WORDS, one=VALUES).text()
TEXT: Final = sealed(one=VALUES, two={"token": "e.y.J"}, three={"user": "u", "password": "p"}).text()


def opened(text: bytes, keys: Sequence[Opener] = KEYS, kind: Kind = Kind.VAULT) -> Sealed:
    return Sealed.open(text, kind, keys, "v.json")


def changed(change: Callable[[dict[str, Any]], None], text: bytes = TEXT) -> bytes:
    """The text after its tree was changed, written just as it is written here."""
    tree = msgspec.json.decode(text)
    change(tree)
    return msgspec.json.format(msgspec.json.encode(tree), indent=2) + b"\n"


# What opens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [KEYS, WORDS], ids=["by a key", "by a passphrase"])
def test_values_come_out_as_they_went_in(keys: Sequence[Opener]) -> None:
    vault = opened(sealed(keys, a=VALUES, b={}).text(), keys)
    assert [(entry.name, entry.changed) for entry in vault.entries] == [("a", MOMENT), ("b", MOMENT)]
    assert (vault.values("a"), vault.values("b")) == (VALUES, {})


@given(st.dictionaries(st.from_regex(r"\A[a-z]{1,8}\Z"), st.dictionaries(st.text(), st.text(), max_size=3), max_size=4))
def test_any_values_come_out_as_they_went_in(entries: dict[str, dict[str, str]]) -> None:
    vault = opened(sealed(KEYS, **entries).text())
    assert {entry.name: vault.values(entry.name) for entry in vault.entries} == entries


def test_entry_is_replaced_in_its_place_and_removed() -> None:
    vault = opened(TEXT).put("one", {"token": "x"}, MOMENT)
    assert [entry.name for entry in vault.entries] == ["one", "two", "three"]
    assert vault.values("one") == {"token": "x"}
    vault = opened(vault.without("one").text())
    assert [entry.name for entry in vault.entries] == ["two", "three"]
    with pytest.raises(NoSuchEntry):
        vault.values("one")


def test_nothing_secret_can_be_read_in_the_text_and_no_two_are_alike() -> None:
    assert CANARY.encode() not in TEXT
    assert b64encode(CANARY.encode())[:-4] not in TEXT
    again = sealed(one=VALUES, two=VALUES)
    assert len({again.entries[0].sealed, again.entries[1].sealed, opened(TEXT).entries[0].sealed}) == 3


def test_length_of_a_value_does_not_show() -> None:
    vault = sealed(short={"user": "u", "password": "p"}, long={"user": "u", "password": "p" * 100})
    assert len(vault.entries[0].sealed) == len(vault.entries[1].sealed)


@pytest.mark.parametrize(("kept", "keys"), [("key", KEYS), ("passphrase", WORDS)], ids=["by a key", "by a passphrase"])
def test_vault_that_was_made_by_the_first_version_opens(kept: str, keys: Sequence[Opener]) -> None:
    text = (Path(__file__).parent / "vaults" / f"{kept}.json").read_bytes()
    assert opened(text, keys).values("default") == VALUES


# What is noticed ------------------------------------------------------------------------------------------------------


def test_any_byte_that_is_flipped_is_noticed() -> None:
    for place, byte in enumerate(TEXT):
        with pytest.raises(CannotOpen):
            opened(TEXT[:place] + bytes([byte ^ 1]) + TEXT[place + 1 :])


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 255))
def test_any_bits_of_a_byte_that_are_flipped_are_noticed(place: int, flipped: int) -> None:
    with pytest.raises(CannotOpen):
        opened(TEXT[:place] + bytes([TEXT[place] ^ flipped]) + TEXT[place + 1 :])


def test_any_truncation_is_noticed() -> None:
    for length in range(len(TEXT)):
        with pytest.raises(CannotOpen):
            opened(TEXT[:length])


@given(st.binary(min_size=1, max_size=8), st.integers(0, len(TEXT)))
def test_anything_that_is_put_in_is_noticed(added: bytes, place: int) -> None:
    with pytest.raises(CannotOpen):
        opened(TEXT[:place] + added + TEXT[place:])


@pytest.mark.parametrize(
    "spelled",
    [
        pytest.param(TEXT + b"\n", id="a line more"),
        pytest.param(TEXT[:-1], id="a line less"),
        pytest.param(TEXT.replace(b"  ", b"\t"), id="tabs"),
        pytest.param(msgspec.json.format(TEXT, indent=0), id="in one line"),
        pytest.param(TEXT.replace(b'"one"', b'"\\u006fne"'), id="an escape"),
        pytest.param(TEXT.replace(b'"version": 1,', b'"version": 1, "version": 1,'), id="a key twice"),
        pytest.param(TEXT.replace(b'05:06Z"', b'05:06+00:00"'), id="another spelling of UTC"),
    ],
)
def test_no_other_spelling_of_the_same_is_taken(spelled: bytes) -> None:
    assert msgspec.json.decode(spelled, type=sealing._Text) == msgspec.json.decode(TEXT, type=sealing._Text)
    with pytest.raises(Tampered):
        opened(spelled)


def entries_of(tree: dict[str, Any]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = tree["entries"]
    return entries


def swap_values(tree: dict[str, Any]) -> None:
    first, second, *_ = entries_of(tree)
    first["sealed"], second["sealed"] = second["sealed"], first["sealed"]


OLDER: Final = msgspec.json.decode(opened(TEXT).put("one", {"token": "old"}, MOMENT).text())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(swap_values, id="values of two entries swapped"),
        pytest.param(lambda tree: entries_of(tree).pop(0), id="first entry dropped"),
        pytest.param(lambda tree: entries_of(tree).pop(), id="last entry dropped"),
        pytest.param(lambda tree: entries_of(tree).clear(), id="all entries dropped"),
        pytest.param(lambda tree: entries_of(tree).reverse(), id="entries in another order"),
        pytest.param(lambda tree: entries_of(tree).append(entries_of(tree)[0]), id="an entry twice"),
        pytest.param(lambda tree: entries_of(tree)[0].update(name="four"), id="an entry renamed"),
        pytest.param(lambda tree: entries_of(tree)[0].update(changed="2024-02-03T04:05:07Z"), id="another time"),
        pytest.param(lambda tree: entries_of(tree).__setitem__(0, entries_of(OLDER)[0]), id="an older entry put back"),
        pytest.param(lambda tree: tree.update(id=b64encode(bytes(16)).decode()), id="another id"),
        pytest.param(lambda tree: tree.update(mac=b64encode(bytes(32)).decode()), id="another MAC"),
        pytest.param(lambda tree: tree.update(mac=""), id="no MAC"),
        pytest.param(lambda tree: tree.update(more=1), id="one key more"),
    ],
)
def test_change_of_the_listing_is_noticed(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(CannotOpen):
        opened(changed(change))
    assert opened(changed(lambda _: None)).values("one") == VALUES


@pytest.mark.parametrize(
    "made_up",
    [
        pytest.param(lambda one, two: (replace_entry(one, name="two"), two), id="renamed"),
        pytest.param(lambda one, two: (replace_entry(one, sealed=two.sealed), two), id="swapped"),
    ],
)
def test_value_opens_under_no_other_name_even_where_the_listing_is_right(made_up: Callable[..., Any]) -> None:
    vault = sealed(one=VALUES, two=VALUES)
    vault = opened(replace(vault, entries=made_up(*vault.entries)).text())
    with pytest.raises(Tampered):
        vault.values(vault.entries[0].name)


def replace_entry(entry: sealing.Entry, **given: Any) -> sealing.Entry:
    return msgspec.structs.replace(entry, **given)


def test_value_opens_in_no_other_vault() -> None:
    one, other = sealed(one=VALUES), sealed(one=VALUES)
    with pytest.raises(Tampered):
        opened(replace(one, entries=other.entries).text()).values("one")
    same_keys = replace(other, _data_key=one._data_key)
    with pytest.raises(Tampered):
        replace(same_keys, entries=one.entries).values("one")


def test_sessions_are_no_vault() -> None:
    text = Sealed.new(Kind.SESSIONS, KEYS, "s.json").put("default", {"token": "x"}, MOMENT).text()
    assert opened(text, kind=Kind.SESSIONS).values("default") == {"token": "x"}
    with pytest.raises(NotSealed):
        opened(text)
    with pytest.raises(CannotOpen):
        opened(text.replace(b"proxy sessions", b"proxy vault"))


# What is told ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem", "told"),
    [
        pytest.param(b"", NotSealed, "v.json is not a vault file of c8y-realtime-proxy", id="empty"),
        pytest.param(b"[" * 100_000, NotSealed, "is not a vault file", id="deep"),
        pytest.param(b'{"format": "x", "version": 1}', NotSealed, "is not a vault file", id="another JSON"),
        pytest.param(TEXT[:-9], Tampered, "changed or cut off; put a copy in its place", id="cut off"),
        pytest.param(TEXT + b"x", Tampered, "changed or cut off", id="followed by something"),
        pytest.param(TEXT.replace(b'"version": 1', b'"version": 2'), OtherVersion, "in format 2; this", id="newer"),
        pytest.param(sealed(OTHERS).text(), NoKeyOpens, "by none of the 1 lines of its keys: bring", id="other key"),
        pytest.param(BY_WORDS, NoKeyOpens, "by a passphrase: set vault.passphrase_file", id="other kind"),
    ],
)
def test_what_is_wrong_is_told_with_the_remedy(text: bytes, problem: type[CannotOpen], told: str) -> None:
    with pytest.raises(problem, match=told):
        opened(text)


def test_nothing_shows_a_secret() -> None:
    shown = repr([KEYS, WORDS, opened(TEXT), sealed(WORDS, a=VALUES), KeyFile(Path("k"))])
    for secret in (CANARY, PASSPHRASE, repr(KEY)[2:20], repr(opened(TEXT)._data_key)):
        assert secret not in shown


# Keys -----------------------------------------------------------------------------------------------------------------


def key_file(tmp_path: Path, *lines: bytes, holds_passphrases: bool = False) -> KeyFile:
    file = tmp_path / "keys"
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return KeyFile(file, holds_passphrases=holds_passphrases)


def line(key: bytes) -> bytes:
    return b64encode(key)


def test_first_key_seals_and_all_open(tmp_path: Path) -> None:
    keys = key_file(tmp_path, line(bytes(32)), b"", line(KEY)).read()
    vault = opened(TEXT, keys)
    assert vault.opened_by == 3
    vault = opened(vault.sealed_by(keys).text(), keys)
    assert vault.opened_by == 1
    assert opened(vault.text(), OTHERS).values("one") == VALUES
    with pytest.raises(NoKeyOpens):
        opened(vault.text(), KEYS)


def test_another_key_leaves_values_sealed_as_they_are() -> None:
    before = opened(TEXT)
    after = opened(before.sealed_by([*OTHERS, *KEYS]).text(), OTHERS)
    assert after.entries == before.entries


@pytest.mark.parametrize("name", ["first", "second"])
def test_all_passphrases_open(tmp_path: Path, name: str) -> None:
    first, second = b"the first of passphrases", PASSPHRASE.encode()
    keys = key_file(tmp_path, first, second, holds_passphrases=True).read()
    text = sealed(keys if name == "first" else WORDS, one=VALUES).text()
    vault = opened(text, keys)
    assert (vault.opened_by, vault.values("one")) == (1 if name == "first" else 2, VALUES)
    assert opened(vault.sealed_by(keys).text(), keys[:1]).values("one") == VALUES


@pytest.mark.parametrize(
    ("lines", "holds_passphrases", "told"),
    [
        pytest.param([], False, "is empty: expected a key: make one with .*head -c 32", id="nothing"),
        pytest.param([b"", b" "], True, "is empty: expected a passphrase", id="empty lines"),
        pytest.param([line(KEY), line(KEY[1:])], False, "line 2 is no key: expected 32 bytes in base64", id="short"),
        pytest.param([line(KEY * 2)], False, "line 1 is no key", id="long"),
        pytest.param([CANARY.encode()], False, "line 1 is no key", id="no base64"),
        pytest.param([line(KEY)[:-1] + b"\xff"], False, "line 1 is no key", id="no ASCII"),
        pytest.param(
            [PASSPHRASE.encode(), b"canary"], True, "line 2 is no passphrase: expected at least 12", id="weak"
        ),
    ],
)
def test_line_that_is_none_is_named_and_not_quoted(
    tmp_path: Path, lines: list[bytes], *, holds_passphrases: bool, told: str
) -> None:
    with pytest.raises(BadKeys, match=told) as caught:
        key_file(tmp_path, *lines, holds_passphrases=holds_passphrases).read()
    assert "canary" not in str(caught.value)
    assert str(tmp_path / "keys") in str(caught.value)


def test_passphrase_costs_what_the_rfc_recommends_and_has_a_salt_of_its_own() -> None:
    one, other = (msgspec.json.decode(text)["key"] for text in (BY_WORDS, sealed(WORDS).text()))
    assert (one["memory_kib"], one["iterations"], one["lanes"]) == (65536, 3, 4)
    assert one["salt"] != other["salt"]


def test_key_of_a_passphrase_is_made_once() -> None:
    text = opened(BY_WORDS, WORDS).text()
    before = sealing._derived.cache_info().misses
    for _ in range(3):
        text = opened(text, WORDS).put("two", VALUES, MOMENT).sealed_by(WORDS).text()
    assert sealing._derived.cache_info().misses == before


@pytest.mark.parametrize(
    "asked",
    [
        {"iterations": 0},
        {"iterations": 10_000},
        {"lanes": 10_000},
        {"lanes": 0},
        {"salt": ""},
        {"salt": b64encode(bytes(1000)).decode()},
        {"memory_kib": 8},
        {"memory_kib": 2**22},
    ],
    ids=str,
)
def test_text_that_asks_for_too_much_work_is_not_worked_on(asked: dict[str, Any]) -> None:
    text = changed(lambda tree: tree["key"].update(asked), BY_WORDS)
    before = sealing._derived.cache_info().misses
    with pytest.raises(Tampered):
        opened(text, WORDS)
    assert sealing._derived.cache_info().misses == before


@pytest.mark.parametrize("asked", [{"memory_kib": 32}, {"iterations": 1}, {"lanes": 1}], ids=str)
def test_parameter_that_was_changed_is_noticed(asked: dict[str, Any]) -> None:
    with pytest.raises(NoKeyOpens):
        opened(changed(lambda tree: tree["key"].update(asked), BY_WORDS), WORDS)


def test_cheaper_parameters_of_before_are_raised_with_the_next_write(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(sealing, "_ITERATIONS", 1)
        vault = opened(sealed(WORDS, one=VALUES).text(), WORDS)
    vault = opened(vault.sealed_by(WORDS).text(), WORDS)
    assert vault._key.parameters == (65536, 3, 4)
    assert vault.values("one") == VALUES
