"""Logging: one line per event on standard error, as text or as JSON.

What an event is about rides on its record: `extra={"fields": {...}}`, with `event` for its name. A text is complete
without them; JSON has them beside the rest.

Secrets are kept out where values are made. What still comes this way, in a text of ours or of a library, in a
traceback, or past all handlers, is hidden here, at the root, whatever the level.
"""

import logging
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Final, Literal

import msgspec

from proxy.operations.redaction import HIDDEN, Redaction, Secrets


Format = Literal["text", "json"]

_LONGEST_MESSAGE: Final = 16 * 1024
_LONGEST_TRACEBACK: Final = 64 * 1024
"""In characters. What is longer is cut."""

# C0, C1, and what else breaks a line or turns its direction.
_CONTROLS: Final = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTROLS_IN_A_LINE: Final = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_PLAIN: Final = (int, float, type(None))
"""What stands in JSON as it is."""

log = logging.getLogger(__name__)


class OneLine(logging.Formatter):
    """An event as one line without secrets, with its traceback set in below it.

    Whoever puts a line break into a message, or into the text of an exception, gets no line of the log for it: controls
    are escaped, and lines of a traceback begin with a space, as no event does. The record stays as it is.
    """

    def __init__(self, redaction: Redaction) -> None:
        super().__init__()
        self.redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self._written(record)
        except Exception as problem:  # noqa: BLE001 - logging would print the record, as it is, in place of it
            return self._unwritten(f"An event could not be written: {type(problem).__name__}")

    def _written(self, record: logging.LogRecord) -> str:
        head = f"{self.formatTime(record)} {record.levelname} {record.name}: {self._message(record)}"
        return self.redaction.hide_known("\n ".join([head, *self._below(record)]))

    def _unwritten(self, text: str) -> str:
        """What stands in place of an event that cannot be written."""
        return text

    def _message(self, record: logging.LogRecord) -> str:
        return _CONTROLS.sub(_escaped, self.redaction.hide(self._said(record), _LONGEST_MESSAGE))

    def _said(self, record: logging.LogRecord) -> str:
        """The message as it is."""
        try:
            message = record.getMessage()
        except Exception as problem:  # noqa: BLE001 - see above
            message = f"{record.msg} (its arguments do not fit: {type(problem).__name__})"
        return message.rstrip("\r\n")

    def _below(self, record: logging.LogRecord) -> list[str]:
        told = [self.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
        if record.stack_info:
            told.append(self.formatStack(record.stack_info))
        if not told:
            return []
        text = self.redaction.hide("\n".join(told), _LONGEST_TRACEBACK)
        return _CONTROLS_IN_A_LINE.sub(_escaped, text).split("\n")


class OneObject(OneLine):
    """An event as one JSON object on one line, without secrets: in no text as it is read, nor as it is written.

    Controls are escaped within the texts, too: whoever decodes a line and prints what was in it is as safe as with
    text. A traceback keeps its line breaks.
    """

    def _written(self, record: logging.LogRecord) -> str:
        told: dict[str, object] = {
            "time": _as_rfc3339(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname,
            "logger": record.name,
            "message": self._said(record),
        }
        for name, value in _fields_of(record).items():
            told.setdefault(name, value)
        texts = {name: _as_text(value) for name, value in told.items() if not isinstance(value, _PLAIN)}
        hidden = self.redaction.hide_each(texts.values(), _LONGEST_MESSAGE)
        if not " ".join(hidden).isprintable():  # as no control is, nor what UTF-8 cannot tell
            hidden = [_whole(_CONTROLS.sub(_escaped, text)) for text in hidden]
        told.update(zip(texts, hidden, strict=True))
        if below := self._below(record):
            told["exception"] = _whole("\n".join(below))
        line = _encoded(told)
        if self.redaction.hide_known(line) != line:  # as a secret of ours may be written, or as escaping makes one
            line = _encoded({name: self._hidden_as_written(value) for name, value in told.items()})
        return line

    def _unwritten(self, text: str) -> str:
        moment = _as_rfc3339(datetime.now(UTC))
        return _encoded({"time": moment, "level": "ERROR", "logger": __name__, "message": _whole(text)})

    def _hidden_as_written(self, value: object) -> object:
        """A value, or nothing of it where it holds a secret as it is written: a part of it might end in an escape."""
        if not isinstance(value, str):
            return value
        written = _encoded(value)[1:-1]
        return value if self.redaction.hide_known(written) == written else HIDDEN


_FORMATTERS: Final[Mapping[Format, type[OneLine]]] = MappingProxyType({"text": OneLine, "json": OneObject})


def configure(level: str, form: Format = "text") -> None:
    """Set up the root logger, and send all there that Python would print by itself; `level` is a name such as INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMATTERS[form](Redaction()))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.raiseExceptions = False  # what cannot be written would be printed, as it is
    # The relay logs in its own words; these would be told by who reads a request, and by who sends one.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _uncaught_in_thread


def change(level: str, form: Format) -> None:
    """Write what is at least as severe from now on, in this form."""
    root = logging.getLogger()
    root.setLevel(level)
    for handler in root.handlers:
        if isinstance(handler.formatter, OneLine):
            handler.setFormatter(_FORMATTERS[form](handler.formatter.redaction))


def redact(secrets: Secrets) -> None:
    """From now on, hide what `secrets` yields at the moment of an event; it must be quick, and must not log."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, OneLine):
            handler.formatter.redaction = Redaction(secrets)


def _escaped(control: re.Match[str]) -> str:
    return repr(control[0])[1:-1]


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, Mapping) else {}


def _as_text(value: object) -> str:
    try:
        return str(value)
    except Exception as problem:  # noqa: BLE001 - one field is no reason to lose the others
        return f"It cannot be told: {type(problem).__name__}"


def _encoded(told: object) -> str:
    return msgspec.json.encode(told).decode()


def _whole(text: str) -> str:
    """A text that UTF-8 can tell."""
    return text.encode("utf-8", "backslashreplace").decode()


def _as_rfc3339(moment: datetime) -> str:
    return f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("Ended by an exception that nobody caught", exc_info=(kind, error, traceback))


def _unraisable(problem: "sys.UnraisableHookArgs") -> None:
    log.error("%s", problem.err_msg or "An exception was ignored", exc_info=problem.exc_value)


def _uncaught_in_thread(problem: threading.ExceptHookArgs) -> None:
    if problem.exc_type is SystemExit:  # how a thread is ended
        return
    log.error("A thread ended by an exception that nobody caught", exc_info=problem.exc_value)
