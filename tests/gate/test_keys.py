"""Keys of clients."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.gate.keys import digest_of, generated, is_key, name_in, stored


NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


@given(NAMES)
def test_generated_key_is_that_of_its_client(name: str) -> None:
    key = generated(name)
    assert name_in(key) == name
    assert len(key) == len(name) + 1 + 43  # 256 bits in base64url
    assert is_key(key, digest_of(stored(key)))


def test_no_two_keys_are_the_same() -> None:
    assert len({generated("a") for _ in range(1000)}) == 1000


@given(NAMES, st.data())
def test_no_other_key_is_taken_for_it(name: str, data: st.DataObject) -> None:
    key = generated(name)
    other = data.draw(st.one_of(st.just(key.swapcase()), st.just(key[:-1]), st.just(key + "A"), st.text()))
    assert is_key(other, digest_of(stored(key))) is (other == key) if other.isascii() else True


def test_without_a_digest_nothing_is_a_key() -> None:
    assert is_key(generated("a"), None) is False


def test_what_is_kept_does_not_hold_the_key() -> None:
    key = generated("a")
    assert key not in stored(key)
    assert key.partition(".")[2] not in stored(key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a.",
        f".{'x' * 43}",
        f"a.{'x' * 42}",
        f"a.{'x' * 44}",
        f"a b.{'x' * 43}",
        f"a.{'x' * 42}=",
        f"ä.{'x' * 43}",
    ],
)
def test_what_is_no_key_names_nobody(text: str) -> None:
    assert name_in(text) is None


@pytest.mark.parametrize(
    "kept",
    ["", "sha256:", f"sha256:{'0' * 63}", f"sha256:{'0' * 65}", f"sha256:{'G' * 64}", "0" * 64, f"sha1:{'0' * 64}"],
)
def test_what_is_no_digest_is_told_and_not_quoted(kept: str) -> None:
    with pytest.raises(ValueError, match="expected sha256: and 64 hexadecimal digits"):
        digest_of(kept)
