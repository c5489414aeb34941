"""What reaches standard error: one line per event, and no secret by any way."""

import logging
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.operations.logs import Format, OneLine, OneObject
from proxy.operations.redaction import SHORTEST, Redaction


SECRET = "hunter2-of-ours"
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

FORMATTERS: dict[Format, type[OneLine]] = {"text": OneLine, "json": OneObject}
in_both_forms = pytest.mark.parametrize("form", get_args(Format))


def record_of(
    message: object,
    *arguments: object,
    error: BaseException | None = None,
    stack: str | None = None,
    fields: object = None,
) -> logging.LogRecord:
    exc_info: ExcInfo | None = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("room", logging.INFO, "", 0, message, arguments, exc_info, sinfo=stack)
    if fields is not None:
        record.fields = fields
    return record


def written(message: object, *arguments: object, form: Format = "text", secret: str = SECRET, **more: Any) -> str:
    """An event as it is written."""
    return FORMATTERS[form](Redaction(lambda: (secret,))).format(record_of(message, *arguments, **more))


def read(message: object, *arguments: object, **more: Any) -> dict[str, Any]:
    """An event as it is read again from JSON."""
    return decoded(written(message, *arguments, form="json", **more))


def decoded(line: str) -> dict[str, Any]:
    """What a line of JSON says; it must be one."""
    assert len(line.splitlines()) == 1
    told: dict[str, Any] = msgspec.json.decode(line)
    return told


def raised(text: str) -> BaseException:
    """An exception with a traceback, a cause and a note, each with the text."""
    problem = ValueError(text)
    problem.add_note(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - it is this one
        raise problem from KeyError(text)
    return caught.value


def test_event_has_time_severity_and_origin() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO room: 5 left", written("%d left", 5))


def test_event_as_json_has_time_severity_origin_and_its_fields() -> None:
    told = read("%d left", 5, fields={"event": "some_left", "left": 5, "seconds": 0.5, "who": None, "is": True})
    moment = datetime.fromisoformat(told.pop("time"))
    assert timedelta(0) <= datetime.now(UTC) - moment < timedelta(minutes=1)
    assert told == {
        "level": "INFO",
        "logger": "room",
        "message": "5 left",
        "event": "some_left",
        "left": 5,
        "seconds": 0.5,
        "who": None,
        "is": True,
    }


def test_time_as_json_is_that_of_rfc_3339_to_the_millisecond() -> None:
    record = record_of("x")
    record.created = 1_767_225_600.0004
    assert decoded(OneObject(Redaction()).format(record))["time"] == "2026-01-01T00:00:00.000Z"


def test_field_takes_the_place_of_nothing_that_every_event_has() -> None:
    told = read("x", error=raised("why"), fields={"level": "forged", "message": "forged", "exception": "forged"})
    assert (told["level"], told["message"]) == ("INFO", "x")
    assert "ValueError: why" in told["exception"]


@pytest.mark.parametrize("fields", ["text", 5, ("a", "b"), {}], ids=repr)
def test_fields_that_are_none_add_nothing(fields: object) -> None:
    assert set(read("x", fields=fields)) == {"time", "level", "logger", "message"}


def test_secret_is_hidden_in_fields() -> None:
    told = read("x", fields={"a": f"<{SECRET}>", "b": [SECRET], "c": {"token": "likely-one"}, "d": "Bearer likely-one"})
    assert (told["a"], told["b"], told["c"], told["d"]) == ("<***>", "['***']", "{'token': '***'}", "Bearer ***")


@in_both_forms
def test_known_secret_and_likely_one_are_hidden_in_message_arguments_traceback_and_stack(form: Format) -> None:
    told = written(
        f"{SECRET} %s %r",
        SECRET,
        {"token": "likely-one"},
        form=form,
        error=raised(SECRET),
        stack=f"Stack: {SECRET}",
        fields={"one": SECRET, "two": "token=likely-one"},
    )
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
    told = read("%s", message, fields={"what": message})
    assert (told["message"], told["what"]) == (expected, expected)


FORGED = "2026-01-01 00:00:00,000 INFO proxy.app: all is well"


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\x85", "\u2028"])
def test_nobody_forges_an_event(separator: str) -> None:
    text = f"x{separator}{FORGED}"
    told = written(text, error=raised(text), stack=f"Stack{separator}{FORGED}")
    first, *others = told.splitlines()
    assert FORGED in first
    assert others
    assert all(line.startswith(" ") for line in others)
    assert FORGED in read(text, error=raised(text), stack=f"Stack{separator}{FORGED}", fields={"x": text})["x"]


def test_secret_that_escaping_makes_is_hidden() -> None:
    assert written("a\nb", secret=r"a\nb").endswith(" INFO room: ***")
    told = read("a\nb", secret=r"a\nb", fields={"x": "a\nb"})
    assert (told["message"], told["x"]) == ("***", "***")


@pytest.mark.parametrize("secret", [r"\"and", r"\\\\", 'and"', '"},"', '","x":"', "message", "INFO", '{"time":"'])
def test_secret_that_stands_in_the_way_of_json_is_hidden_in_texts_and_leaves_it_whole(secret: str) -> None:
    told = read("%s", f'this "and that \\\\ {secret}', secret=secret, fields={"x": f"a{secret}b", "n": 5})
    assert told["n"] == 5
    assert all(secret not in text for name, text in told.items() if isinstance(text, str))


def test_traceback_keeps_its_lines() -> None:
    lines = written("x", error=raised("why")).split("\n")
    assert " Traceback (most recent call last):" in lines
    assert " ValueError: why" in lines
    assert any(line.startswith('   File "') for line in lines)
    told = read("x", error=raised("why"))["exception"].split("\n")
    assert told == [line.removeprefix(" ") for line in lines[1:]]


@in_both_forms
def test_what_is_huge_is_cut(form: Format) -> None:
    told = written("x" * 1_000_000, form=form, error=raised("y" * 1_000_000), fields={"z": "z" * 1_000_000})
    assert len(told) < 120_000
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
@in_both_forms
def test_what_cannot_be_written_fails_nothing(form: Format, message: object, arguments: tuple[object, ...]) -> None:
    told = written(message, *arguments, form=form, error=raised(SECRET))
    assert SECRET not in told
    assert told
    if form == "json":
        assert decoded(told)["message"]


@pytest.mark.parametrize(
    "value",
    [Unspeakable(), "\ud800", float("nan"), 1 << 70, b"\xff", {SECRET: SECRET}, object(), ("a", SECRET)],
    ids=lambda value: type(value).__name__,
)
def test_field_that_cannot_be_written_fails_nothing(value: object) -> None:
    told = written("x", form="json", fields={"one": value, "event": "odd"})
    assert SECRET not in told
    assert decoded(told)["message"]


def test_event_that_cannot_be_written_is_told_as_one_in_json_too() -> None:
    record = record_of("x")
    record.created = float("inf")
    told = decoded(OneObject(Redaction()).format(record))
    assert (told["level"], told["message"]) == ("ERROR", "An event could not be written: OverflowError")
    assert told["time"]


@in_both_forms
def test_record_stays_as_it_is_for_other_handlers(form: Format) -> None:
    record = record_of("%s\n", SECRET, error=raised(SECRET), fields={"one": SECRET})
    before = dict(record.__dict__)
    FORMATTERS[form](Redaction(lambda: (SECRET,))).format(record)
    assert record.__dict__ == before
    assert before["fields"] == {"one": SECRET}


@in_both_forms
@given(
    secret=st.text(min_size=SHORTEST, max_size=30),
    around=st.text(max_size=30),
    where=st.sampled_from(["message", "argument", "repr", "mapping", "exception", "stack", "fields"]),
)
def test_known_secret_is_never_written(form: Format, secret: str, around: str, where: str) -> None:
    text = f"{around}{secret}{around}"
    match where:
        case "message":
            told = [written(text.replace("%", "%%"), form=form, secret=secret), written(text, form=form, secret=secret)]
        case "argument":
            told = [written("%s %s", around, text, form=form, secret=secret)]
        case "repr":
            told = [written("%r %r", [text], text.encode("utf-8", "surrogatepass"), form=form, secret=secret)]
        case "mapping":
            told = [written("%(a)s", {"a": text}, form=form, secret=secret)]
        case "exception":
            told = [written("x", error=raised(text), form=form, secret=secret)]
        case "stack":
            told = [written("x", stack=text, form=form, secret=secret)]
        case _:
            told = [written("x", fields={"a": text, "b": [text]}, form=form, secret=secret)]
    assert not any(secret in line for line in told)
    if form == "json":
        assert not any(secret in str(value) for line in told for value in decoded(line).values())


@given(st.text(max_size=200), st.text(max_size=200))
def test_whatever_comes_is_one_line_of_json_without_a_control(message: str, field: str) -> None:
    told = read("%s", message, error=raised(message), fields={"x": field})
    assert not any(0x7F <= ord(letter) < 0xA0 or ord(letter) < 0x20 for letter in told["message"] + told["x"])


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


@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_standard_error_passes_by_json(way: str) -> None:
    code, expected = WAYS[way]
    told = told_by_child(f"logs.configure('DEBUG', 'json'); logs.redact(lambda: (SECRET,))\n{code}\n")
    assert SECRET not in told
    assert "likely-one" not in told
    events = [decoded(line) for line in told.splitlines()]
    assert any(
        expected in f"{event['level']} {event['logger']}: {event['message']}\n{event.get('exception')}"
        for event in events
    )


def test_form_and_level_change_while_it_runs_and_secrets_stay_hidden() -> None:
    told = told_by_child(
        "logs.configure('INFO')\nlogs.redact(lambda: (SECRET,))\nlogging.debug('unheard')\n"
        "logs.change('DEBUG', 'json')\nlogging.debug('one %s', SECRET)\n"
        "logs.change('INFO', 'text')\nlogging.debug('unheard')\nlogging.info('two %s', SECRET)\n"
    )
    first, second = told.splitlines()
    assert decoded(first)["message"] == "one ***"
    assert second.endswith(" INFO root: two ***")


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
