"""Guessing is slow from anywhere, and no stranger can make the owner of an account wait on a device of its own."""

import re
from collections.abc import Callable, Iterable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from proxy.frontdoor import attempts as module
from proxy.frontdoor.attempts import Attempts, Budget, Pauses, device_proof, is_device


START: Final = 1_000.0
HOUR: Final = 3_600
ALICE: Final = "t0815/alice"
HERE: Final = "192.0.2.1"
WIDE: Final = Budget(1_000_000, 1.0)  # a limit that is out of the way
FREE: Final = Pauses(1_000_000, 1.0, 1.0)


def begin(
    attempts: Attempts, now: float = START, *, account: str = ALICE, address: str | None = HERE, known: bool = False
) -> float:
    return attempts.begin(account=account, address=address, is_known_device=known, now=now)


def succeed(attempts: Attempts, *, account: str = ALICE, address: str | None = HERE, known: bool = False) -> None:
    attempts.succeeded(account=account, address=address, is_known_device=known)


def other(number: int) -> str:
    """One of many addresses that share no network."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def made_within(seconds: int, attempt: Callable[[float], float]) -> int:
    """How many attempts somebody makes who tries again each second."""
    return sum(attempt(START + second) == 0.0 for second in range(seconds))


# Of an account from an address ----------------------------------------------------------------------------------------


def test_after_five_attempts_come_pauses_that_double_up_to_a_quarter_of_an_hour() -> None:
    attempts, now, pauses = Attempts(), START, []
    assert [begin(attempts) for _ in range(5)] == [0.0] * 5
    for _ in range(12):
        pauses.append(begin(attempts, now))
        now += pauses[-1]
        assert begin(attempts, now) == 0.0
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 900.0, 900.0]


def test_whoever_asks_during_a_pause_does_not_wait_longer_for_that() -> None:
    attempts = Attempts()
    for _ in range(5):
        begin(attempts)
    assert begin(attempts, START + 0.25) == 1.0  # seconds are whole
    assert begin(attempts, START + 0.5) == 1.0
    assert begin(attempts, START + 1.0) == 0.0
    assert begin(attempts, START + 1.5) == 2.0


def test_pauses_of_who_never_gives_up_stay_as_long_as_the_longest() -> None:
    attempts = Attempts(pauses=Pauses(1, 1.0, 2.0), address=WIDE, strangers=WIDE)
    for number in range(1_100):  # two to the power of which is beyond what a float holds
        assert begin(attempts, START + 2.0 * number) == 0.0
    assert begin(attempts, START + 2.0 * 1_099) == 2.0


def test_guesser_at_one_address_gets_seventeen_guesses_in_an_hour_and_then_four() -> None:
    attempts = Attempts()
    assert made_within(HOUR, lambda now: begin(attempts, now)) <= 17
    assert made_within(HOUR, lambda now: begin(attempts, now + HOUR)) <= 4


def test_guesser_gains_nothing_by_waiting_until_it_is_forgotten() -> None:
    attempts = Attempts()
    for _ in range(5):
        begin(attempts)
    assert begin(attempts, START + 23 * HOUR) == 0.0
    assert begin(attempts, START + 23 * HOUR) == 2.0  # the pauses go on where they were
    assert begin(attempts, START + 46 * HOUR) == 0.0
    assert begin(attempts, START + 46 * HOUR) == 4.0
    later = START + 71 * HOUR  # a day after the last
    assert [begin(attempts, later) for _ in range(5)] == [0.0] * 5
    assert begin(attempts, later) == 1.0


def test_sign_in_forgives_what_was_tried_on_that_account_from_that_address_alone() -> None:
    attempts = Attempts()
    for account in (ALICE, "t0815/bob"):
        for _ in range(4):
            begin(attempts, account=account)
    begin(attempts)
    succeed(attempts)
    assert [begin(attempts) for _ in range(5)] == [0.0] * 5
    assert begin(attempts) == 1.0
    begin(attempts, account="t0815/bob")
    assert begin(attempts, account="t0815/bob") == 1.0


def test_attempt_that_told_nobody_anything_is_given_back_alone() -> None:
    attempts = Attempts()
    for _ in range(5):
        begin(attempts)
    attempts.withdrawn(account=ALICE, address=HERE, is_known_device=False)
    assert begin(attempts) == 0.0
    assert begin(attempts) == 1.0


# Of an address --------------------------------------------------------------------------------------------------------


def test_one_password_on_everybody_is_tried_thirty_times_in_ten_minutes() -> None:
    attempts = Attempts()
    accounts = iter(range(100_000))

    def spray(now: float) -> float:
        return begin(attempts, now, account=f"t0815/user{next(accounts)}")

    assert [spray(START) for _ in range(30)] == [0.0] * 30
    assert spray(START) == 20.0
    assert made_within(600, spray) == 29  # one each twenty seconds, the first of them after twenty
    assert made_within(HOUR, lambda now: spray(now + 600)) == 180


def test_sign_ins_of_a_whole_office_are_not_counted() -> None:
    attempts = Attempts()
    for number in range(500):
        assert begin(attempts, account=f"t0815/user{number}") == 0.0
        succeed(attempts, account=f"t0815/user{number}")


def test_own_account_buys_nobody_more_guesses_at_those_of_others() -> None:
    attempts, made = Attempts(), 0
    for number in range(100):
        made += begin(attempts, account=f"t0815/user{number}") == 0.0
        if begin(attempts, account="t0815/mallory") == 0.0:
            succeed(attempts, account="t0815/mallory")
    assert made == 30


@pytest.mark.parametrize(
    ("one", "another", "are_same"),
    [
        (HERE, "192.0.2.2", False),
        (HERE, f"::ffff:{HERE}", True),
        ("2001:db8::1", "2001:db8:0:0:ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:DB8:0::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("unknown", "unknown", True),
        ("unknown", "_hidden", False),
    ],
)
def test_address_is_that_of_a_host(one: str, another: str, are_same: bool) -> None:  # noqa: FBT001 - a table
    attempts = Attempts(pauses=Pauses(1, 60.0, 60.0))
    assert begin(attempts, address=one) == 0.0
    assert (begin(attempts, address=another) > 0) is are_same
    attempts = Attempts(address=Budget(1, 60.0))
    assert begin(attempts, address=one) == 0.0
    assert (begin(attempts, address=another, account="t0815/bob") > 0) is are_same


@pytest.mark.parametrize("address", [None, "", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_loopback_has_the_limit_of_the_account_alone(address: str | None) -> None:
    attempts = Attempts()
    for number in range(100):
        assert begin(attempts, address=address, account=f"t0815/user{number}") == 0.0
    assert [begin(attempts, address=address) for _ in range(30)] == [0.0] * 30
    assert begin(attempts, address=address) == 20.0


# Of an account --------------------------------------------------------------------------------------------------------


def test_many_addresses_that_guess_together_get_thirty_guesses_and_then_one_each_twenty_seconds() -> None:
    attempts = Attempts()
    addresses = iter(range(100_000))

    def guess(now: float) -> float:
        return begin(attempts, now, address=other(next(addresses)))

    assert [guess(START) for _ in range(30)] == [0.0] * 30
    assert guess(START) == 20.0
    assert made_within(HOUR, guess) == 179


def test_who_signs_in_buys_strangers_no_more_guesses_at_its_account() -> None:
    attempts = Attempts(pauses=FREE)
    for _ in range(30):
        begin(attempts)
    succeed(attempts)
    assert begin(attempts, address=other(1)) == 0.0
    assert begin(attempts, address=other(2)) == 20.0


@pytest.mark.parametrize(
    ("spelling", "is_same"),
    [
        ("t0815/Alice", True),
        ("T0815/ALICE", True),
        (" t0815/ alice ", True),
        ("t0815/\uff41lice", True),  # a full-width letter
        ("t0815/alic\u00e9", False),
        ("t0816/alice", False),
        ("alice", False),
        ("t0815/alice/", False),
    ],
)
def test_spellings_of_an_account_share_its_limits(spelling: str, is_same: bool) -> None:  # noqa: FBT001 - a table
    for known in (False, True):
        attempts = Attempts(strangers=Budget(1, 60.0), devices=Budget(1, 60.0))
        assert begin(attempts, known=known) == 0.0
        assert (begin(attempts, account=spelling, address=other(1), known=known) > 0) is is_same


@pytest.mark.parametrize(
    ("one", "another"),
    [("t0815/stra\u00dfe", "t0815/STRASSE"), ("t0815/\u00e9va", "t0815/e\u0301va"), ("t0815/\ufb01n", "t0815/FIN")],
)
def test_letters_beyond_ascii_have_one_spelling(one: str, another: str) -> None:
    attempts = Attempts(strangers=Budget(1, 60.0))
    assert begin(attempts, account=one) == 0.0
    assert begin(attempts, account=another) > 0


def test_any_text_is_an_account() -> None:
    for account in ("", "/", "\ud800", "\x00", "x" * 1_000_000):
        assert begin(Attempts(), account=account) == 0.0


# Of a known device ----------------------------------------------------------------------------------------------------


def test_known_device_has_ten_attempts_and_then_one_a_minute() -> None:
    attempts = Attempts()
    assert [begin(attempts, known=True) for _ in range(10)] == [0.0] * 10
    assert begin(attempts, known=True, address=other(1)) == 60.0
    assert made_within(HOUR, lambda now: begin(attempts, now, known=True)) == 59


def test_sign_in_on_a_known_device_is_not_counted() -> None:
    attempts = Attempts()
    for _ in range(100):
        assert begin(attempts, known=True) == 0.0
        succeed(attempts, known=True)


def test_known_device_leaves_strangers_what_they_have_and_takes_none_of_it() -> None:
    attempts = Attempts()
    for _ in range(5):
        begin(attempts)
    begin(attempts, known=True)
    succeed(attempts, known=True)
    assert begin(attempts) == 1.0  # what a stranger at the same address did is not forgiven


ACCOUNTS: Final = st.sampled_from([ALICE, "T0815/ALICE ", "t0815/bob", "t0815/carol"])
ADDRESSES: Final = st.sampled_from([HERE, f"::ffff:{HERE}", "192.0.2.2", "2001:db8::1", None])
NARROW: Final = {"pauses": Pauses(2, 1.0, 8.0), "address": Budget(3, 20.0), "strangers": Budget(4, 20.0)}


class Crowd(RuleBasedStateMachine):
    """Strangers do what they like, with the owner's address and name too; she signs in on a device that knows her."""

    @initialize(most=st.sampled_from([1, 3, 10_000]))
    def start(self, most: int) -> None:
        self.attempts = Attempts(**NARROW, devices=Budget(1, 3600.0), most_remembered=most)  # type: ignore[arg-type]
        self.now = START

    @rule(account=ACCOUNTS, address=ADDRESSES, often=st.integers(1, 8), pause=st.sampled_from([0.0, 0.0, 0.4, 7.0]))
    def guess(self, account: str, address: str | None, often: int, pause: float) -> None:
        for _ in range(often):
            self.now += pause
            seconds = begin(self.attempts, self.now, account=account, address=address)
            assert seconds == int(seconds) >= 0

    @rule(address=ADDRESSES, succeeds=st.booleans())
    def sign_in_as_mallory(self, address: str | None, succeeds: bool) -> None:  # noqa: FBT001 - hypothesis's
        if begin(self.attempts, self.now, account="t0815/mallory", address=address) == 0.0:
            end = self.attempts.succeeded if succeeds else self.attempts.withdrawn
            end(account="t0815/mallory", address=address, is_known_device=False)

    @rule(seconds=st.sampled_from([1.0, 30.0, 900.0, 90_000.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(address=ADDRESSES)
    def sign_in_on_a_known_device(self, address: str | None) -> None:
        assert begin(self.attempts, self.now, address=address, known=True) == 0.0
        succeed(self.attempts, address=address, known=True)

    @rule(account=ACCOUNTS, address=ADDRESSES)
    def wait_as_told(self, account: str, address: str | None) -> None:
        if seconds := begin(self.attempts, self.now, account=account, address=address):
            self.now += seconds
            assert begin(self.attempts, self.now, account=account, address=address) == 0.0


Crowd.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=40)
TestCrowd = Crowd.TestCase


STEPS: Final = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.3, 1.0, 19.0, 400.0]), ADDRESSES, st.booleans()), max_size=150
)


@given(STEPS)
def test_never_more_on_an_account_in_any_span_than_a_burst_and_what_comes_back(
    steps: Iterable[tuple[float, str | None, bool]],
) -> None:
    attempts, now = Attempts(**NARROW, devices=Budget(2, 30.0)), START  # type: ignore[arg-type]
    made: dict[bool, list[float]] = {True: [], False: []}
    for pause, address, known in steps:
        now += pause
        if begin(attempts, now, address=address, known=known) == 0.0:
            made[known].append(now)
    for known, burst, each in ((True, 2, 30.0), (False, 4, 20.0)):
        times = made[known]
        for first, since in enumerate(times):
            for last in range(first, len(times)):
                assert last - first + 1 <= burst + (times[last] - since) / each + 1e-6


def test_attempt_that_may_be_made_is_counted_however_time_rounds() -> None:
    attempts, now = Attempts(strangers=Budget(1, 0.1)), 0.0
    for _ in range(1_000):
        assert begin(attempts, now, address=None) == 0.0
        assert begin(attempts, now, address=None) == 1.0
        now += 0.1


def test_whole_seconds_to_wait_are_no_more_however_time_rounds() -> None:
    for number in range(1_000):
        attempts, now = Attempts(strangers=Budget(1, 3.0)), 0.1 * number
        assert begin(attempts, now, address=None) == 0.0
        assert begin(attempts, now, address=None) == 3.0


# All at once ----------------------------------------------------------------------------------------------------------


def test_attempts_that_are_under_way_count_already() -> None:
    attempts = Attempts()
    assert sum(begin(attempts) == 0.0 for _ in range(100)) == 5
    assert sum(begin(attempts, account=f"t0815/user{number}") == 0.0 for number in range(100)) == 25
    assert sum(begin(attempts, address=other(number)) == 0.0 for number in range(100)) == 25
    assert sum(begin(attempts, known=True) == 0.0 for _ in range(100)) == 10


def test_what_is_refused_by_one_limit_is_not_counted_by_another() -> None:
    attempts = Attempts()
    for _ in range(100):
        begin(attempts)  # of which five were made
    assert sum(begin(attempts, account=f"t0815/user{number}") == 0.0 for number in range(100)) == 25
    assert sum(begin(attempts, address=other(number)) == 0.0 for number in range(100)) == 25
    for number in range(100):
        begin(attempts, account=f"t0816/user{number}")  # for which the address has nothing left
    assert len(attempts._strangers._full_at) == 26
    assert len(attempts._pairs._tried) == 51


# Memory ---------------------------------------------------------------------------------------------------------------


def remembered(attempts: Attempts) -> list[int]:
    spent = (attempts._addresses, attempts._strangers, attempts._devices)
    return [*(len(limit._full_at) for limit in spent), len(attempts._pairs._tried)]


def test_as_many_are_remembered_as_is_bounded() -> None:
    attempts = Attempts(most_remembered=100)
    for number in range(1_000):
        for known in (False, True):
            assert begin(attempts, account=f"t0815/user{number}", address=other(number), known=known) == 0.0
        assert max(remembered(attempts)) <= 100
    assert min(remembered(attempts)) > 80


def test_long_name_takes_no_more_room_than_a_short_one() -> None:
    attempts = Attempts()
    begin(attempts, account="x" * 100_000, address="y" * 100_000)
    assert max(len(key) for key in (*attempts._strangers._full_at, *attempts._pairs._tried)) == 32


def test_flood_of_made_up_accounts_does_not_have_one_forgotten_that_is_under_attack() -> None:
    attempts = Attempts(address=WIDE, most_remembered=100)
    for _ in range(5):
        begin(attempts)
    for number in range(3):
        begin(attempts, address=other(number))
    for number in range(10_000):
        assert begin(attempts, START, account=f"t0815/user{number}", address=HERE) == 0.0
    assert begin(attempts) == 1.0  # the pauses of the pair
    assert sum(begin(attempts, address=other(100 + number)) == 0.0 for number in range(100)) == 22  # of thirty


def test_flood_of_addresses_does_not_have_one_forgotten_that_did_more() -> None:
    attempts = Attempts(pauses=FREE, strangers=WIDE, most_remembered=100)
    for _ in range(30):
        begin(attempts)
    for number in range(10_000):
        assert begin(attempts, address=other(number)) == 0.0
    assert begin(attempts) == 20.0


def test_who_is_remembered_pushes_nobody_out() -> None:
    attempts = Attempts(address=WIDE, most_remembered=10)
    for number in range(10):
        begin(attempts, account=f"t0815/user{number}")
    for _ in range(4):
        assert begin(attempts, account="t0815/user0") == 0.0
    assert len(attempts._strangers._full_at) == len(attempts._pairs._tried) == 10


def test_those_go_first_who_would_be_free_by_themselves() -> None:
    attempts = Attempts(address=WIDE, most_remembered=10)
    for number in range(10):
        begin(attempts, account=f"t0815/user{number}", address=other(number))
    later = START + 20.0
    begin(attempts, later, address=other(99))
    assert len(attempts._strangers._full_at) == 1
    assert len(attempts._pairs._tried) == 10  # those last for a day
    begin(attempts, START + 100_000.0, account="t0815/bob", address=other(98))
    assert len(attempts._pairs._tried) == 1


# The proof of a device ------------------------------------------------------------------------------------------------

KEY: Final = b"0123456789abcdef"
OTHER_KEY: Final = b"fedcba9876543210"
NOW: Final = 1_900_000_000
DAYS: Final = 86_400


def test_device_proves_itself_for_ninety_days() -> None:
    proof = device_proof([KEY], ALICE, NOW + 0.9)
    assert is_device([KEY], proof, ALICE, NOW)
    assert is_device([KEY], proof, ALICE, NOW + 90 * DAYS)
    assert not is_device([KEY], proof, ALICE, NOW + 90 * DAYS + 1)
    assert is_device([KEY], proof, ALICE, NOW - 300)  # as a replica's clock may have it
    assert not is_device([KEY], proof, ALICE, NOW - 301)


def test_proof_is_the_same_everywhere() -> None:
    """Replicas, and what is started next, know it; so this value is never to change."""
    assert device_proof([KEY], ALICE, NOW) == "1900000000.Yd-JiO5q5ZqzvY0u9GfaYw"


def test_proof_fits_into_a_cookie() -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", device_proof([KEY], "t0815/" + "\u00e4 ;" * 1_000, NOW))


@pytest.mark.parametrize("other_account", ["t0815/bob", "t0816/alice", "", "alice", "t0815", "0/t0815/alice"])
def test_proof_is_worth_nothing_for_another_account(other_account: str) -> None:
    assert not is_device([KEY], device_proof([KEY], ALICE, NOW), other_account, NOW)


def test_proof_is_good_for_each_spelling_of_the_account() -> None:
    assert is_device([KEY], device_proof([KEY], " T0815/Alice", NOW), ALICE, NOW)


def test_new_key_takes_over_from_an_old_one() -> None:
    old, new = device_proof([KEY], ALICE, NOW), device_proof([OTHER_KEY, KEY], ALICE, NOW)
    assert old != new
    for proof in (old, new):
        assert is_device([OTHER_KEY, KEY], proof, ALICE, NOW)
    assert not is_device([OTHER_KEY], old, ALICE, NOW)
    assert not is_device([], old, ALICE, NOW)


def test_one_key_never_serves_two_purposes(monkeypatch: pytest.MonkeyPatch) -> None:
    proof = device_proof([KEY], ALICE, NOW)
    monkeypatch.setattr(module, "_MARK", b"c8y-realtime-proxy clientId\0")
    assert not is_device([KEY], proof, ALICE, NOW)


GENUINE: Final = device_proof([KEY], ALICE, NOW)
ISSUED, _, TAG = GENUINE.partition(".")


@pytest.mark.parametrize(
    "proof",
    [
        "",
        ".",
        ISSUED,
        TAG,
        f"{ISSUED}.",
        f".{TAG}",
        f"{NOW + 1}.{TAG}",
        f"0{ISSUED}.{TAG}",
        f"+{ISSUED}.{TAG}",
        f" {GENUINE}",
        f"{GENUINE}\n",
        f"{GENUINE}=",
        f"{ISSUED}.{TAG[:-1]}",
        f"{ISSUED}.{TAG.swapcase()}",
        f"{ISSUED}.{'A' * 22}",
        f"{ISSUED}.{TAG[:-1]}\u00e9",
        f"{''.join(chr(0x660 + int(digit)) for digit in ISSUED)}.{TAG}",  # other digits
        f"{'9' * 12}.{TAG}",
        f"{'9' * 5_000}.{TAG}",
        f"nan.{TAG}",
        "\ud800",
    ],
)
def test_what_is_not_the_very_proof_proves_nothing(proof: str) -> None:
    assert not is_device([KEY], proof, ALICE, NOW)


@given(st.text(max_size=80), st.floats(allow_nan=False, allow_infinity=False))
def test_no_text_is_ever_an_error(proof: str, now: float) -> None:
    assert not is_device([KEY], proof, ALICE, now)


@given(st.integers(0, len(GENUINE) - 1), st.characters(codec="ascii"))
def test_no_character_of_a_proof_can_change(index: int, character: str) -> None:
    changed = GENUINE[:index] + character + GENUINE[index + 1 :]
    assert is_device([KEY], changed, ALICE, NOW) is (changed == GENUINE)
