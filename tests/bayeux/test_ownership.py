"""A clientId is its owner's: no other text, owner or key makes its tag good."""

import re
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.bayeux.ownership import Ownership


PROPERTY: Final = settings(derandomize=True, deadline=None, max_examples=200)

KEY: Final = b"0123456789abcdef"
OTHER_KEY: Final = b"fedcba9876543210"
OWNER: Final = ("hall", "device-7", "default", "t0815")
CLIENT_ID: Final = "8h3x0fq2p7n1k5v9c4m6z8b2a1"
TAG: Final = re.compile(r"[A-Za-z0-9_-]{22}")

TEXTS: Final = st.text(st.characters(codec="utf-8"), max_size=12)


def ownership(*owner: str, keys: tuple[bytes, ...] = (KEY,)) -> Ownership:
    return Ownership(keys, *(owner or OWNER))


@pytest.mark.parametrize(
    "client_id",
    [
        pytest.param(CLIENT_ID, id="one of Cumulocity's"),
        pytest.param("a.b", id="a dot"),
        pytest.param(".", id="a dot alone"),
        pytest.param("a.", id="a dot behind"),
        pytest.param("...a...", id="many dots"),
        pytest.param("", id="nothing"),
        pytest.param("\u00e4\U0001f600", id="beyond ASCII"),
        pytest.param("a\x00b\r\n", id="control characters"),
        pytest.param('"\\/', id="what JSON escapes"),
        pytest.param("x" * 1_000_000, id="a million characters"),
    ],
)
def test_owner_gets_back_what_upstream_knows(client_id: str) -> None:
    tagged = ownership().tagged(client_id)
    known, _, tag = tagged.rpartition(".")
    assert known == client_id
    assert TAG.fullmatch(tag)
    assert ownership().untagged(tagged) == client_id


def test_tag_is_the_same_everywhere() -> None:
    """Replicas, and what is started next, know it; so this value is never to change."""
    assert ownership().tagged(CLIENT_ID) == f"{CLIENT_ID}.V2NwaQYOwDozkfM4hH-pMg"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("hall-2", "device-7", "default", "t0815"), id="another client"),
        pytest.param(("hall", "device-8", "default", "t0815"), id="another subject"),
        pytest.param(("hall", "", "default", "t0815"), id="no subject"),
        pytest.param(("", "device-7", "default", "t0815"), id="no name"),
        pytest.param(("hall", "device-7", "second", "t0815"), id="another credential"),
        pytest.param(("hall", "device-7", "default", "t0816"), id="another tenant"),
        pytest.param(("hall", "device-7", "default", ""), id="no tenant"),
        pytest.param(("Hall", "device-7", "default", "t0815"), id="other case"),
        pytest.param(("device-7", "hall", "default", "t0815"), id="another order"),
        pytest.param(("halld", "evice-7", "default", "t0815"), id="cut elsewhere"),
        pytest.param(("hall", "device-7default", "", "t0815"), id="run together"),
        pytest.param(("hall", "device-7", "default"), id="a text less"),
        pytest.param(("hall", "device-7", "default", "t0815", ""), id="a text more"),
        pytest.param(("4:hall", "device-7", "default", "t0815"), id="a length in the text"),
        pytest.param(("hall8:device-7", "", "default", "t0815"), id="a frame in the text"),
    ],
)
def test_clientid_is_worth_nothing_to_another_owner(other: tuple[str, ...]) -> None:
    assert ownership(*other).untagged(ownership().tagged(CLIENT_ID)) is None
    assert ownership().untagged(ownership(*other).tagged(CLIENT_ID)) is None


GOOD: Final = ownership().tagged(CLIENT_ID)
ANOTHERS: Final = ownership().tagged("another").rpartition(".")[2]


@pytest.mark.parametrize(
    "tagged",
    [
        pytest.param("", id="nothing"),
        pytest.param(".", id="a dot"),
        pytest.param(CLIENT_ID, id="no tag"),
        pytest.param(f"{CLIENT_ID}.", id="an empty tag"),
        pytest.param(GOOD[:-1], id="a tag cut short"),
        pytest.param(GOOD + "A", id="a tag that goes on"),
        pytest.param(GOOD + "==", id="a tag with padding"),
        pytest.param(GOOD + "\n", id="a line break behind"),
        pytest.param(GOOD + ".", id="a dot behind"),
        pytest.param(f"{GOOD}.{GOOD.rpartition('.')[2]}", id="the tag twice"),
        pytest.param(GOOD.rpartition(".")[2], id="the tag alone"),
        pytest.param(f".{GOOD.rpartition('.')[2]}", id="the tag of nothing"),
        pytest.param(f"{CLIENT_ID}.{ANOTHERS}", id="the tag of another clientId"),
        pytest.param(f"{CLIENT_ID[:-1]}.{GOOD.rpartition('.')[2]}", id="a clientId cut short"),
        pytest.param(f"{CLIENT_ID.upper()}.{GOOD.rpartition('.')[2]}", id="a clientId in other case"),
        pytest.param(f" {GOOD}", id="a space in front"),
        pytest.param(f"{CLIENT_ID}.{'A' * 22}", id="a guess"),
        pytest.param(f"{CLIENT_ID}.{'ä' * 22}", id="a tag beyond ASCII"),
        pytest.param(f"{CLIENT_ID}.\ud800", id="a lone surrogate"),
        pytest.param(f"{CLIENT_ID}.{'A' * 1_000_000}", id="a very long tag"),
    ],
)
def test_anything_but_the_whole_tag_of_this_clientid_is_nobodys(tagged: str) -> None:
    assert ownership().untagged(tagged) is None


def test_no_letter_of_a_tagged_clientid_can_be_another() -> None:
    for place, letter in enumerate(GOOD):
        for other in {"A", "B", ".", "-", "_", letter.swapcase()} - {letter}:
            assert ownership().untagged(GOOD[:place] + other + GOOD[place + 1 :]) is None


def test_keys_are_changed_one_after_another() -> None:
    old = ownership().tagged(CLIENT_ID)
    changing = ownership(keys=(OTHER_KEY, KEY))
    assert changing.untagged(old) == CLIENT_ID
    new = changing.tagged(CLIENT_ID)
    assert new != old
    assert ownership(keys=(OTHER_KEY,)).untagged(new) == CLIENT_ID
    assert ownership(keys=(OTHER_KEY,)).untagged(old) is None
    assert ownership().untagged(new) is None


def test_without_a_key_nothing_is_anybodys() -> None:
    assert ownership(keys=()).untagged(GOOD) is None


@PROPERTY
@given(st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=4), TEXTS, TEXTS)
def test_tag_is_good_for_its_own_clientid_and_owner_alone(
    owner: list[str], other: list[str], client_id: str, another: str
) -> None:
    tagged = Ownership([KEY], *owner).tagged(client_id)
    assert Ownership([KEY], *owner).untagged(tagged) == client_id
    if other != owner:
        assert Ownership([KEY], *other).untagged(tagged) is None
    if another != client_id:
        assert Ownership([KEY], *owner).untagged(f"{another}.{tagged.rpartition('.')[2]}") is None


@PROPERTY
@given(st.lists(TEXTS, min_size=2, max_size=4), TEXTS, st.data())
def test_texts_that_read_alike_in_a_row_are_different_owners(
    owner: list[str], client_id: str, data: st.DataObject
) -> None:
    """Letters move from one text to the next, or from the last one to the clientId."""
    texts = [*owner, client_id]
    run_together = "".join(texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(run_together)), min_size=len(owner), max_size=len(owner))))
    moved = [run_together[start:stop] for start, stop in zip([0, *cuts], [*cuts, None], strict=True)]
    tag = Ownership([KEY], *owner).tagged(client_id).rpartition(".")[2]
    is_same = moved == texts
    assert (Ownership([KEY], *moved[:-1]).untagged(f"{moved[-1]}.{tag}") is not None) is is_same


@PROPERTY
@given(TEXTS | st.text(max_size=40), st.sampled_from([str, lambda text: f"{CLIENT_ID}.{text}"]))
def test_nothing_made_up_is_anybodys(text: str, shape: Callable[[str], str]) -> None:
    assert ownership().untagged(shape(text)) is None
