"""Who reads the store reads nothing, and who writes to it puts nothing into it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.frontdoor.sealing import Sealing
from tests.conftest import PASSWORD


KEY = "0123456789abcdef0123456789abcdef"
OLD, NEW, OTHER = (letter * 32 for letter in (b"o", b"n", b"x"))
PLAIN = PASSWORD.encode()


def sealing(*secrets: bytes) -> Sealing:
    return Sealing(lambda: secrets)


@given(st.binary(max_size=1000), st.text(max_size=40))
def test_what_was_sealed_opens_as_it_was(plain: bytes, key: str) -> None:
    ours = sealing(NEW)
    assert ours.unseal(key, ours.seal(key, plain)) == plain


def test_nothing_of_it_can_be_read() -> None:
    assert PLAIN not in sealing(NEW).seal(KEY, PLAIN)


def test_the_same_is_never_sealed_alike() -> None:
    ours = sealing(NEW)
    assert len({ours.seal(KEY, PLAIN) for _ in range(100)}) == 100


def test_how_long_it_is_tells_little() -> None:
    ours = sealing(NEW)
    assert len({len(ours.seal(KEY, bytes(size))) for size in range(500, 700)}) <= 2


def test_no_bit_of_it_may_be_another() -> None:
    ours = sealing(NEW)
    sealed = ours.seal(KEY, PLAIN)
    for place in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[place // 8] ^= 1 << place % 8
        assert ours.unseal(KEY, bytes(changed)) is None, place


@pytest.mark.parametrize("sealed", [b"", b"x", bytes(12), bytes(28), bytes(1000)], ids=len)
def test_what_was_never_sealed_opens_to_nothing(sealed: bytes) -> None:
    assert sealing(NEW).unseal(KEY, sealed) is None


def test_no_part_of_it_opens_and_nothing_may_be_added() -> None:
    ours = sealing(NEW)
    sealed = ours.seal(KEY, PLAIN)
    assert all(ours.unseal(KEY, sealed[:length]) is None for length in range(len(sealed)))
    assert ours.unseal(KEY, sealed + b"\0") is None


def test_it_opens_in_no_other_place() -> None:
    ours = sealing(NEW)
    assert ours.unseal(KEY.replace("0", "1", 1), ours.seal(KEY, PLAIN)) is None


def test_a_secret_takes_over_from_another_while_both_are_there() -> None:
    before, both, after = sealing(OLD), sealing(NEW, OLD), sealing(NEW)
    assert both.unseal(KEY, before.seal(KEY, PLAIN)) == PLAIN
    assert after.unseal(KEY, both.seal(KEY, PLAIN)) == PLAIN
    assert before.unseal(KEY, both.seal(KEY, PLAIN)) is None
    assert after.unseal(KEY, before.seal(KEY, PLAIN)) is None


def test_the_secrets_are_those_of_the_moment() -> None:
    secrets = [OLD]
    ours = Sealing(lambda: secrets)
    sealed = ours.seal(KEY, PLAIN)
    secrets[:] = [NEW, OLD]
    assert ours.unseal(KEY, sealed) == PLAIN
    secrets[:] = [NEW]
    assert ours.unseal(KEY, sealed) is None
    secrets[:] = [OTHER, OLD]
    assert ours.unseal(KEY, sealed) == PLAIN


def test_without_a_secret_nothing_opens() -> None:
    sealed = sealing(NEW).seal(KEY, PLAIN)
    assert Sealing(lambda: None).unseal(KEY, sealed) is None
    assert sealing().unseal(KEY, sealed) is None
