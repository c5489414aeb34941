"""Heads of HTTP/1.1 messages (RFC 9112), read from bytes and written to them. PURE.

A head is read when it is whole, by llhttp in its strict mode: no folded lines, no bare line feeds, no second length, no
length beside chunks. So nothing here can be read in two ways.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import httptools


END: Final = b"\r\n\r\n"
"""What a head ends with."""

Headers = tuple[tuple[str, str], ...]

_VERSIONS: Final = frozenset({"1.0", "1.1"})


class MalformedHead(ValueError):
    """Bytes that are no head. The text quotes nothing of them."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Method, target and headers (names in lower case) of a request."""

    method: str
    target: str
    version: str
    headers: Headers = field(repr=False)  # they hold credentials


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Status and headers (names as they were sent) of an answer."""

    status: int
    headers: Headers = field(repr=False)

    def value(self, name: str) -> str | None:
        """The first value of a header, whatever the case of its name."""
        return next((value for known, value in self.headers if known.lower() == name), None)


def read_request(head: bytes) -> RequestHead:
    """Read the head of a request, the empty line included. Raises MalformedHead."""
    seen = _Seen()
    parser = httptools.HttpRequestParser(seen)
    _feed(parser, head)
    version = parser.get_http_version()
    if not seen.is_whole or version not in _VERSIONS:
        raise MalformedHead("the request is none of HTTP/1.1")
    headers = tuple((name.lower(), value) for name, value in seen.headers)
    return RequestHead(parser.get_method().decode("ascii"), seen.target.decode("latin-1"), version, headers)


def read_answer(head: bytes) -> AnswerHead:
    """Read the head of an answer, the empty line included. Raises MalformedHead."""
    seen = _Seen()
    parser = httptools.HttpResponseParser(seen)
    _feed(parser, head)
    if not seen.is_whole or parser.get_http_version() not in _VERSIONS:
        raise MalformedHead("the answer is none of HTTP/1.1")
    return AnswerHead(parser.get_status_code(), tuple(seen.headers))


def write_request(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The head of a request."""
    return _head(f"{method} {target} HTTP/1.1", headers)


def write_answer(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """The head of an answer."""
    return _head(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", headers)


class _Seen:
    """What a parser has told of one head."""

    __slots__ = ("headers", "is_whole", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[str, str]] = []
        self.is_whole = False

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("ascii"), value.decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        self.is_whole = True


def _feed(parser: httptools.HttpRequestParser | httptools.HttpResponseParser, head: bytes) -> None:
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:  # what follows is no HTTP any more, and it is not here
        pass
    except (httptools.HttpParserError, httptools.HttpParserCallbackError):
        raise MalformedHead("the head is none of HTTP/1.1") from None


def _head(line: str, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [line, *(f"{name}: {value}" for name, value in headers)]
    if any("\r" in text or "\n" in text for text in lines):
        raise MalformedHead("a header to be sent has more than one line")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")
