"""Logging: one line per event on standard error.

Secrets are kept out where values are made. What still comes this way, in a text of ours or of a library, in a
traceback, or past all handlers, is hidden here, at the root, whatever the level.
"""

import logging
import re
import sys
import threading
from types import TracebackType
from typing import Final

from proxy.operations.redaction import Redaction, Secrets


_LONGEST_MESSAGE: Final = 16 * 1024
_LONGEST_TRACEBACK: Final = 64 * 1024
"""In characters. What is longer is cut."""

# C0, C1, and what else breaks a line or turns its direction.
_CONTROLS: Final = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTROLS_IN_A_LINE: Final = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

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
            head = f"{self.formatTime(record)} {record.levelname} {record.name}: {self._message(record)}"
            return self.redaction.hide_known("\n ".join([head, *self._below(record)]))
        except Exception as problem:  # noqa: BLE001 - logging would print the record, as it is, in place of it
            return f"An event could not be written: {type(problem).__name__}"

    def _message(self, record: logging.LogRecord) -> str:
        try:
            message = record.getMessage()
        except Exception as problem:  # noqa: BLE001 - see above
            message = f"{record.msg} (its arguments do not fit: {type(problem).__name__})"
        return _CONTROLS.sub(_escaped, self.redaction.hide(message.rstrip("\r\n"), _LONGEST_MESSAGE))

    def _below(self, record: logging.LogRecord) -> list[str]:
        told = [self.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
        if record.stack_info:
            told.append(self.formatStack(record.stack_info))
        if not told:
            return []
        text = self.redaction.hide("\n".join(told), _LONGEST_TRACEBACK)
        return _CONTROLS_IN_A_LINE.sub(_escaped, text).split("\n")


def configure(level: str) -> None:
    """Set up the root logger, and send all there that Python would print by itself; `level` is a name such as INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine(Redaction()))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.raiseExceptions = False  # what cannot be written would be printed, as it is
    # The relay logs in its own words; these would be told by who reads a request, and by who sends one.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _uncaught_in_thread


def set_level(level: str) -> None:
    """Write what is at least as severe from now on."""
    logging.getLogger().setLevel(level)


def redact(secrets: Secrets) -> None:
    """From now on, hide what `secrets` yields at the moment of an event; it must be quick, and must not log."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, OneLine):
            handler.formatter.redaction = Redaction(secrets)


def _escaped(control: re.Match[str]) -> str:
    return repr(control[0])[1:-1]


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("Ended by an exception that nobody caught", exc_info=(kind, error, traceback))


def _unraisable(problem: "sys.UnraisableHookArgs") -> None:
    log.error("%s", problem.err_msg or "An exception was ignored", exc_info=problem.exc_value)


def _uncaught_in_thread(problem: threading.ExceptHookArgs) -> None:
    if problem.exc_type is SystemExit:  # how a thread is ended
        return
    log.error("A thread ended by an exception that nobody caught", exc_info=problem.exc_value)
