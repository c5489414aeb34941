"""What reaches standard error: one line per event, and no secret by any way."""

import logging
import re
import subprocess
import sys
from types import TracebackType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.operations.logs import OneLine
from proxy.operations.redaction import SHORTEST, Redaction


SECRET = "hunter2-of-ours"
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def written(
    message: object,
    *arguments: object,
    error: BaseException | None = None,
    stack: str | None = None,
    secret: str = SECRET,
) -> str:
    """An event as it is written."""
    exc_info: ExcInfo | None = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("room", logging.INFO, "", 0, message, arguments, exc_info, sinfo=stack)
    return OneLine(Redaction(lambda: (secret,))).format(record)


def raised(text: str) -> BaseException:
    """An exception with a traceback, a cause and a note, each with the text."""
    problem = ValueError(text)
    problem.add_note(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - it is this one
        raise problem from KeyError(text)
    return caught.value


def test_event_has_time_severity_and_origin() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO room: 5 left", written("%d left", 5))


def test_known_secret_and_likely_one_are_hidden_in_message_arguments_traceback_and_stack() -> None:
    told = written(f"{SECRET} %s %r", SECRET, {"token": "likely-one"}, error=raised(SECRET), stack=f"Stack: {SECRET}")
    assert SECRET not in told
    assert "likely-one" not in told
    assert "ValueError: ***" in told
    assert "KeyError: '***'" in told
    assert "Stack: ***" in told


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param("a\nb", r"a\nb", id="line feed"),
        pytest.param("a\r\nb", r"a\r\nb", id="carriage return"),
        pytest.param("a\x1b[2Kb", r"a\x1b[2Kb", id="escape"),
        pytest.param("a\tb\0c\x7f", r"a\tb\x00c\x7f", id="other C0"),
        pytest.param("a\x85b\x9bc", r"a\x85b\x9bc", id="C1"),
        pytest.param("a\u2028b\u2029c", r"a\u2028b\u2029c", id="line separators"),
        pytest.param("a\u202eb", r"a\u202eb", id="another direction"),
        pytest.param("Zürich ☃", "Zürich ☃", id="letters stay"),
    ],
)
def test_controls_are_escaped(message: str, expected: str) -> None:
    assert written("%s", message).endswith(f" INFO room: {expected}")


FORGED = "2026-01-01 00:00:00,000 INFO proxy.app: all is well"


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\x85", "\u2028"])
def test_nobody_forges_an_event(separator: str) -> None:
    text = f"x{separator}{FORGED}"
    told = written(text, error=raised(text), stack=f"Stack{separator}{FORGED}")
    first, *others = told.splitlines()
    assert FORGED in first
    assert others
    assert all(line.startswith(" ") for line in others)


def test_secret_that_escaping_makes_is_hidden() -> None:
    assert written("a\nb", secret=r"a\nb").endswith(" INFO room: ***")


def test_traceback_keeps_its_lines() -> None:
    lines = written("x", error=raised("why")).split("\n")
    assert " Traceback (most recent call last):" in lines
    assert " ValueError: why" in lines
    assert any(line.startswith('   File "') for line in lines)


def test_what_is_huge_is_cut() -> None:
    told = written("x" * 1_000_000, error=raised("y" * 1_000_000))
    assert len(told) < 100_000
    assert "[1000000 characters in all]" in told


class Unspeakable:
    """What cannot be written."""

    def __str__(self) -> str:
        raise RuntimeError(SECRET)

    __repr__ = __str__


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        pytest.param("%s", (Unspeakable(),), id="an argument"),
        pytest.param("%d", (SECRET,), id="an argument of the wrong kind"),
        pytest.param("%s %s", (SECRET,), id="an argument too few"),
        pytest.param("x", (SECRET,), id="an argument too many"),
        pytest.param(Unspeakable(), (), id="the message"),
        pytest.param(Unspeakable(), (SECRET,), id="the message, with an argument"),
        pytest.param("\ud800", (), id="no text that can be encoded"),
    ],
)
def test_what_cannot_be_written_fails_nothing(message: object, arguments: tuple[object, ...]) -> None:
    told = written(message, *arguments, error=raised(SECRET))
    assert SECRET not in told
    assert told


def test_record_stays_as_it_is_for_other_handlers() -> None:
    problem = raised(SECRET)
    record = logging.LogRecord(
        "room", logging.INFO, "", 0, "%s\n", (SECRET,), (type(problem), problem, problem.__traceback__)
    )
    before = dict(record.__dict__)
    OneLine(Redaction(lambda: (SECRET,))).format(record)
    assert record.__dict__ == before


@given(
    st.text(min_size=SHORTEST, max_size=30),
    st.text(max_size=30),
    st.sampled_from(["message", "argument", "repr", "mapping", "exception", "stack"]),
)
def test_known_secret_is_never_written(secret: str, around: str, where: str) -> None:
    text = f"{around}{secret}{around}"
    match where:
        case "message":
            told = written(text.replace("%", "%%"), secret=secret)
            told += written(text, secret=secret)
        case "argument":
            told = written("%s %s", around, text, secret=secret)
        case "repr":
            told = written("%r %r", [text], text.encode("utf-8", "surrogatepass"), secret=secret)
        case "mapping":
            told = written("%(a)s", {"a": text}, secret=secret)
        case "exception":
            told = written("x", error=raised(text), secret=secret)
        case _:
            told = written("x", stack=text, secret=secret)
    assert secret not in told


CHILD = f"""
import asyncio, gc, logging, sys, threading, warnings
from proxy.operations import logs

SECRET = "{SECRET}"
LIKELY = "authorization=likely-one"

class Broken:
    def __del__(self):
        raise ValueError(SECRET)

async def fail():
    raise ValueError(SECRET)

async def forgotten():
    loop = asyncio.get_running_loop()
    loop.call_soon(int, SECRET)                  # ends in the exception handler
    task = loop.create_task(fail(), name=SECRET)
    await asyncio.sleep(0.01)
    del task
    gc.collect()                                 # "Task exception was never retrieved"
    loop.call_exception_handler({{"message": SECRET, "future": LIKELY}})

def thread():
    raise ValueError(SECRET)
"""


def told_by_child(code: str, *, fails: bool = False) -> str:
    """What a process of its own writes to standard error."""
    child = subprocess.run(  # noqa: S603 - a program of this test
        [sys.executable, "-X", "dev", "-W", "always", "-c", CHILD + code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert child.stdout == ""
    assert (child.returncode != 0) is fails, child.stderr
    return child.stderr


WAYS = {
    "logger": ("logging.getLogger('x').debug('%s %s', SECRET, LIKELY)", "DEBUG x: *** authorization=***"),
    "aiohttp": (
        "logging.getLogger('aiohttp.server').critical('%s', SECRET, exc_info=ValueError(SECRET))",
        "ValueError: ***",
    ),
    "asyncio": ("logging.getLogger('asyncio').debug('%s', SECRET)", "DEBUG asyncio: ***"),
    "a level of its own": (
        "logging.getLogger('aiohttp').setLevel(1); logging.getLogger('aiohttp.client').debug(LIKELY)",
        "DEBUG aiohttp.client: authorization=***",
    ),
    "warning": ("warnings.warn(SECRET)", "UserWarning: ***"),
    "thread": (
        "t = threading.Thread(target=thread); t.start(); t.join()",
        "ERROR proxy.operations.logs: A thread ended",
    ),
    "unraisable": ("Broken()", "ERROR proxy.operations.logs: "),
    "event loop": ("asyncio.run(forgotten(), debug=True)", "Task exception was never retrieved"),
    "uvloop": ("import uvloop; uvloop.run(forgotten(), debug=True)", "Task exception was never retrieved"),
    "arguments that do not fit": ("logging.getLogger('x').info('%d', SECRET)", "do not fit"),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_standard_error_passes_by(way: str) -> None:
    code, expected = WAYS[way]
    told = told_by_child(f"logs.configure('DEBUG'); logs.redact(lambda: (SECRET,))\n{code}\n")
    assert expected in told
    assert SECRET not in told
    assert "likely-one" not in told
    assert all(re.match(r" |\d{4}-", line) for line in told.splitlines())


def test_uncaught_exception_ends_the_process_without_the_secret() -> None:
    told = told_by_child(
        "logs.configure('DEBUG'); logs.redact(lambda: (SECRET,))\nraise ValueError(SECRET)\n", fails=True
    )
    assert "CRITICAL proxy.operations.logs: Ended by an exception" in told
    assert "ValueError: ***" in told
    assert SECRET not in told


def test_thread_that_ends_itself_is_no_event() -> None:
    assert told_by_child("logs.configure('DEBUG')\nt = threading.Thread(target=sys.exit)\nt.start()\nt.join()\n") == ""


def test_closed_standard_error_fails_nothing() -> None:
    assert told_by_child("logs.configure('DEBUG')\nsys.stderr.close()\nlogging.error('x')\nsys.stderr = None\n") == ""


def test_what_is_redacted_can_be_told_late() -> None:
    told = told_by_child(
        "logs.configure('INFO')\nlogging.error('one')\nlogs.redact(lambda: (SECRET,))\nlogging.error(SECRET)\n"
    )
    assert "ERROR root: one\n" in told
    assert "ERROR root: ***\n" in told
