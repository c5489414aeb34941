"""The catalogue of attacks names what is there, and the table of guards fits the source."""

import re
from dataclasses import replace
from typing import Any

import pytest

from tests.attacks.guards import ATTACKS, CONTROL, ROOT, Guard, Run, cases, guards, is_there, judged, problems


ROWS = re.findall(
    r"^\| (S-\d+) \| (.+) \| (.+) \|$", (ROOT / ATTACKS / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
)
NAMED = [name for *_, where in ROWS for name in re.findall(r"`(tests/[^`]+)`", where)]


def test_every_statement_has_its_row_once_and_in_order() -> None:
    assert [statement for statement, *_ in ROWS] == [f"S-{number}" for number in range(1, 61)]


@pytest.mark.parametrize("name", NAMED)
def test_what_a_row_names_is_there(name: str) -> None:
    assert is_there(name) if "::" in name else (ROOT / name).exists()


@pytest.mark.parametrize(("statement", "what", "where"), ROWS, ids=[statement for statement, *_ in ROWS])
def test_every_row_says_who_keeps_the_statement(statement: str, what: str, where: str) -> None:
    assert what.strip()
    assert "`tests/" in where or re.search(r"\*[^*]+\*", where), statement


def test_every_case_is_in_the_row_of_its_statement() -> None:
    for case in cases():
        number = re.search(r"::test_s(\d\d)_", case)
        assert number is not None, f"{case} names no statement"
        [where] = [where for statement, _, where in ROWS if statement == f"S-{int(number[1])}"]
        assert f"`{case}`" in where


def test_every_guard_is_where_the_table_says_and_every_case_is_watched() -> None:
    assert list(problems(guards())) == []


# What a removal amounts to --------------------------------------------------------------------------------------------

GUARD = Guard("a guard", ("S-1",), "proxy/app.py", "", "", ("a::b", "a::c"))


@pytest.mark.parametrize(
    ("code", "verdicts", "problem"),
    [
        pytest.param(1, {CONTROL: "green", "a::b": "red", "a::c": "red"}, None, id="noticed"),
        pytest.param(1, {CONTROL: "green", "a::b": "red", "a::c": "green"}, "a::c does not notice", id="by one of two"),
        pytest.param(1, {CONTROL: "green", "a::b": "red"}, "a::c could not be run", id="not run"),
        pytest.param(1, {CONTROL: "green", "a::b": "red", "a::c": "broken"}, "a::c could not be run", id="broken"),
        pytest.param(1, {CONTROL: "red", "a::b": "red", "a::c": "red"}, "it breaks the proxy", id="all is red"),
        pytest.param(2, {}, "it breaks the proxy", id="nothing was collected"),
        pytest.param(2, {CONTROL: "green", "a::b": "red", "a::c": "red"}, "pytest ended with 2", id="interrupted"),
    ],
)
def test_removal_counts_when_every_named_test_noticed_it_and_only_that(
    code: int, verdicts: dict[str, str], problem: str | None
) -> None:
    found = judged(GUARD, Run(code, verdicts, "", 0.0))
    assert (not found) if problem is None else found[0].startswith(problem)


@pytest.mark.parametrize(
    ("guard", "problem"),
    [
        pytest.param({"snippet": "no such thing anywhere"}, "is found 0 times", id="not there"),
        pytest.param({"snippet": "import"}, "times in proxy/app.py, not once", id="there often"),
        pytest.param({"red": ("tests/test_app.py::test_nothing",)}, "there is no test", id="no such test"),
        pytest.param({"red": ("tests/test_nothing.py::test_it",)}, "there is no test", id="no such file"),
        pytest.param({"name": guards()[0].name}, "two guards have this name", id="a name twice"),
    ],
)
def test_row_that_does_not_fit_is_told(guard: dict[str, Any], problem: str) -> None:
    row = replace(Guard("x", (), "proxy/app.py", "class Proxy:", "", ()), **guard)
    assert any(problem in told for told in problems([*guards(), row]))


def test_case_that_no_guard_watches_is_told() -> None:
    first, *others = cases()
    table = [Guard("all but one", (), "proxy/app.py", "class Proxy:", "", tuple(others))]
    assert list(problems(table)) == [f"{first} is turned red by no guard"]
