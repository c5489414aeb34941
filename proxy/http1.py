"""Messages of HTTP/1.1 (RFC 9112), read from bytes and written to them. PURE.

A head is read when it is whole, by llhttp in its strict mode: no folded lines, no bare line feeds, no second length, no
length beside chunks. A body is as long as its head says, in one of three ways. So nothing here can be read in two ways.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal

import httptools


LINE_END: Final = b"\r\n"
END: Final = b"\r\n\r\n"
"""What a head ends with: the end of its last line, and an empty line."""

LAST_CHUNK: Final = b"0\r\n\r\n"

Headers = tuple[tuple[str, str], ...]

_SPACES: Final = 2  # in the first line of a request
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_CHUNK_HEAD: Final = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[\t -~]*)?\r\n")
_CHUNK_LINE_LIMIT: Final = 256
_TRAILERS_LIMIT: Final = 8192
_LONG_LINE: Final = "a line between chunks is too long"
BODILESS: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
"""Statuses of answers without a body, whatever their headers say."""


class MalformedHead(ValueError):
    """Bytes that are no head. The text quotes nothing of them."""


class MalformedBody(ValueError):
    """Bytes that are no body. The text quotes nothing of them."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Method, target and headers (names in lower case) of a request, and what they say of the connection.

    `upgrade` is what the connection is to become, in lower case, or empty. `is_last` tells whether it ends with the
    answer. `length` of the body is None when there is none, or when it comes in chunks.
    """

    method: str
    target: str
    version: str
    headers: Headers = field(repr=False)  # they hold credentials
    upgrade: str
    is_last: bool
    length: int | None
    is_chunked: bool

    def body(self) -> "Sized | Chunked":
        """A reader for the body of one such request."""
        return Chunked() if self.is_chunked else Sized(self.length or 0)


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Status and headers (names in lower case) of an answer; the rest as for a request."""

    status: int
    headers: Headers = field(repr=False)
    is_last: bool
    length: int | None
    is_chunked: bool

    def body(self) -> "Sized | Chunked | Unbounded":
        """A reader for the body of one such answer to a POST."""
        if self.is_chunked:
            return Chunked()
        return Unbounded() if self.length is None else Sized(self.length)

    def value(self, name: str) -> str | None:
        """The first value of a header, by its name in lower case."""
        return next((value for known, value in self.headers if known == name), None)


def read_request(head: bytes) -> RequestHead:
    """Read the head of a request, the empty line included. Raises MalformedHead.

    One empty line may stand in front of it, for some clients send one behind a body (RFC 9112, 2.2).
    """
    seen = _Seen()
    parser = httptools.HttpRequestParser(seen)
    head = head.removeprefix(LINE_END)
    version = _feed(parser, seen, head)
    if head.count(b" ", 0, head.index(LINE_END)) != _SPACES:  # llhttp skips others in front of the version
        raise MalformedHead("the first line of the head is none")
    headers = tuple(seen.headers)
    upgrade = ",".join([value for name, value in headers if name == "upgrade"]) if parser.should_upgrade() else ""
    length, is_chunked = _framing(headers, version)
    return RequestHead(
        parser.get_method().decode("ascii"),
        seen.target.decode("latin-1"),
        version,
        headers,
        _folded(upgrade.strip(" \t")),
        not parser.should_keep_alive(),
        length,
        is_chunked,
    )


def read_answer(head: bytes) -> AnswerHead:
    """Read the head of an answer, the empty line included. Raises MalformedHead."""
    seen = _Seen()
    parser = httptools.HttpResponseParser(seen)
    version = _feed(parser, seen, head)
    headers, status = tuple(seen.headers), parser.get_status_code()
    if status < HTTPStatus.CONTINUE:  # it has three digits, and written again it would have fewer
        raise MalformedHead("the status of the answer is none")
    length, is_chunked = (0, False) if status in BODILESS else _framing(headers, version)
    return AnswerHead(status, headers, not parser.should_keep_alive(), length, is_chunked)


def write_request(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The head of a request, but for the empty line at its end. Raises MalformedHead."""
    return f"{method} {target} HTTP/1.1\r\n".encode("ascii") + write_headers(headers)


def write_answer(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """The head of an answer, but for the empty line at its end. Raises MalformedHead."""
    return f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode("ascii") + write_headers(headers)


def write_headers(headers: Iterable[tuple[str, str]]) -> bytes:
    """Headers as lines. Raises MalformedHead when one would take more than a line."""
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    written = "".join(lines)
    if written.count("\r") != len(lines) or written.count("\n") != len(lines):
        raise MalformedHead("a header to be sent has more than one line")
    return written.encode("utf-8", "surrogateescape")


class Sized:
    """A body whose length was told.

    As with each reader of a body, `length` is its length in bytes where that is known from the start, `is_over` tells
    that it has ended, and `rest` is what came behind it.
    """

    __slots__ = ("_left", "length", "rest")

    def __init__(self, length: int) -> None:
        self.length = self._left = length
        self.rest = b""

    @property
    def is_over(self) -> bool:
        return not self._left

    def feed(self, data: bytes) -> bytes:
        """Take bytes; returns those of them that belong to the body."""
        if len(data) > self._left:
            data, self.rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        return data


class Unbounded:
    """A body that ends with the connection."""

    length: Final = None
    is_over: Final = False
    rest: Final = b""

    def feed(self, data: bytes) -> bytes:
        return data


class Chunked:
    """A body in chunks (RFC 9112, 7.1). What stands beside their sizes, and trailers, are dropped."""

    __slots__ = ("_dropped", "_held", "_left", "_state", "is_over", "rest")

    length: Final = None

    def __init__(self) -> None:
        self._state: Literal["head", "data", "end", "trailers"] = "head"
        self._left = 0  # bytes of the current chunk that are still to come
        self._held = b""  # a piece of a line
        self._dropped = 0  # bytes of trailers
        self.is_over = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes; returns those of them that belong to the body. Raises MalformedBody."""
        body: list[bytes] = []
        if self._held:
            data, self._held = self._held + data, b""
        at, end = 0, len(data)  # a place rather than a rest: with many small chunks, rests would be copied for ever
        while at < end and not self.is_over:
            if self._state == "data":
                body.append(data[at : at + self._left])
                at, self._left = at + len(body[-1]), self._left - len(body[-1])
                if not self._left:
                    self._state = "end"
                continue
            line_end = data.find(b"\n", at) + 1
            if not line_end:
                if end - at > _CHUNK_LINE_LIMIT:
                    raise MalformedBody(_LONG_LINE)
                self._held = data[at:]
                break
            self._between(data[at:line_end])
            at = line_end
        if self.is_over:
            self.rest = data[at:]
        return b"".join(body)

    def _between(self, line: bytes) -> None:
        """Take a line that is no part of the body."""
        if len(line) > _CHUNK_LINE_LIMIT:
            raise MalformedBody(_LONG_LINE)
        if self._state == "head":
            size = _CHUNK_HEAD.fullmatch(line)
            if size is None:
                raise MalformedBody("the size of a chunk is none")
            self._left = int(size[1], 16)
            self._state = "data" if self._left else "trailers"
        elif not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise MalformedBody("a line between chunks does not end as it must")
        elif line == b"\r\n":
            self.is_over = self._state == "trailers"
            self._state = "head"
        else:
            self._dropped += len(line)
            if self._state == "end" or self._dropped > _TRAILERS_LIMIT:
                raise MalformedBody("a chunk is longer than it said, or too much follows the last")


def chunk(data: bytes) -> bytes:
    """Some bytes, at least one, as a chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


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
        self.headers.append((name.decode("ascii").lower(), value.decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        self.is_whole = True


def _feed(parser: httptools.HttpRequestParser | httptools.HttpResponseParser, seen: _Seen, head: bytes) -> str:
    """Have a head read; returns its version. Raises MalformedHead."""
    if head.startswith(
        (b"\r", b"\n")
    ):  # llhttp skips any number of either: what one message left would pass in the next
        raise MalformedHead("the head does not begin with its first line")
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:  # what follows is no HTTP any more, and it is not here
        pass
    except (httptools.HttpParserError, httptools.HttpParserCallbackError):
        raise MalformedHead("the head is none of HTTP/1.1") from None
    version = parser.get_http_version()
    if not seen.is_whole or version not in _VERSIONS:
        raise MalformedHead("the head is none of HTTP/1.1")
    return version


def _folded(word: str) -> str:
    """A word in lower case; but the Kelvin sign is no k, though Unicode lowers it to one."""
    return word.lower() if word.isascii() else word


def _framing(headers: Headers, version: str) -> tuple[int | None, bool]:
    """The length that a head tells, and whether the body comes in chunks. Raises MalformedHead."""
    lengths = [value for name, value in headers if name == "content-length"]
    codings = [value for name, value in headers if name == "transfer-encoding"]
    if codings:
        if lengths or version == "1.0" or [_folded(coding) for coding in codings] != ["chunked"]:
            raise MalformedHead("the body is in a transfer coding that is not understood here")
        return None, True
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
        raise MalformedHead("the length of the body is none")
    return (int(lengths[0]) if lengths else None), False


_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
