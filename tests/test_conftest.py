"""What all tests share keeps its word: what is checked after each test would be noticed."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.conftest import PASSWORD


TESTS: Final = Path(__file__).parent

LOGGING: Final = f"""
import logging
import pytest
from tests.relay.test_endings import told


@pytest.fixture
def before():
    logging.getLogger("any").debug("{PASSWORD}")


@pytest.fixture
def after():
    yield
    logging.getLogger("any").debug("{PASSWORD}")


def test_that_is_clean():
    logging.getLogger("any").warning("Nothing")


def test_with_the_password():
    logging.getLogger("any").debug("%s", "{PASSWORD}")


def test_with_the_password_in_a_traceback():
    try:
        raise ValueError("{PASSWORD}")
    except ValueError:
        logging.getLogger("any").debug("Oh", exc_info=True)


def test_with_the_password_before_it_begins(before):
    pass


def test_with_the_password_after_it_has_ended(after):
    pass


def test_with_a_secret_of_its_own(clean_log):
    clean_log.append("their-own")
    logging.getLogger("any").debug("This is their-own")


def test_with_an_error():
    logging.getLogger("any").error("Oh")


def test_with_an_ending_that_is_none(told):
    logging.getLogger("any").debug("Oh", extra={{"fields": {{"event": "request_refused", "outcome": "refused", "reason": "none"}}}})
"""  # noqa: E501 - a line of that file


def test_whatever_must_not_be_in_the_log_of_a_test_fails_it_once_it_is_over(tmp_path: Path) -> None:
    (tmp_path / "test_logging.py").write_text(LOGGING)
    options = ("-p", "tests.conftest", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=no", "-rpE")
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-m", "pytest", *options, "test_logging.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    names = re.findall(r"^def (test_\w+)", LOGGING, flags=re.MULTILINE)
    assert re.findall(r"^PASSED .*::(\w+)", done.stdout, flags=re.MULTILINE) == names, done.stdout + done.stderr
    assert re.findall(r"^ERROR .*::(\w+)", done.stdout, flags=re.MULTILINE) == names[1:], done.stdout


def test_no_fixture_asks_for_the_log_of_one_phase_alone() -> None:
    """See `logged`: after the `yield` there is nothing in it, so nothing is found."""
    files = {file: file.read_text(encoding="utf-8") for file in TESTS.rglob("*.py")}
    asked = [
        f"{file.relative_to(TESTS)}:{asking.lineno}"
        for file, text in files.items()
        if "caplog" in text
        for function in ast.walk(ast.parse(text))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(isinstance(node, ast.Yield) for node in ast.walk(function))
        for asking in ast.walk(function)
        if isinstance(asking, ast.Attribute)
        and asking.attr in {"records", "text", "messages", "record_tuples"}
        and isinstance(asking.value, ast.Name)
        and asking.value.id == "caplog"
    ]
    assert asked == []
