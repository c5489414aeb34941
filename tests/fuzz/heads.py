"""Heads and bodies of HTTP: read in one way only, however they come, and written as they were read.

An input is what may stand on a connection: a head and what follows it, or a body in chunks.
"""

import re
from collections.abc import Iterable
from typing import Final

import httptools

from proxy.http1 import (
    END,
    LINE_END,
    Chunked,
    Headers,
    MalformedBody,
    MalformedHead,
    Sized,
    Unbounded,
    read_answer,
    read_request,
    write_answer,
    write_request,
)
from tests.fuzz.cutting import cuttings


WORDS: Final = (
    b"GET / HTTP/1.1\r\n",
    b"POST /cep/realtime/ HTTP/1.1\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 101 \r\n",
    b"HTTP/1.0 ",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n\r\n",
    b"\r\n0\r\n\r\n",
    b"\r\n ",
    b";a=b",
)

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_ASKED: Final = re.compile(rb"(?:\r\n)?(" + _TOKEN + rb") ([!-~]+) HTTP/(1\.[01])\r\n")
_ANSWERED: Final = re.compile(rb"HTTP/(1\.[01]) ([0-9]{3})(?: [^\r\n]*)?\r\n")
_FIELD: Final = re.compile(rb"(" + _TOKEN + rb"):[ \t]*((?:[!-~\x80-\xff][\t -~\x80-\xff]*)?)\r\n")
"""A line of a head. Blanks behind a value stay, and so are no part of a framing that is understood."""

Body = Sized | Chunked | Unbounded
Ended = tuple[bytes, bytes, bool] | None


def check(data: bytes) -> None:
    """Read and write in every way. Raises AssertionError where two of them differ."""
    end = data.find(END) + len(END)
    whole = end >= len(END)
    head, behind = (data[:end], data[end:]) if whole else (data, b"")
    _check_request(head, behind, whole=whole)
    _check_answer(head, behind, whole=whole)
    _check_chunks(data)


def _check_request(head: bytes, behind: bytes, *, whole: bool) -> None:
    try:
        read = read_request(head)
    except MalformedHead:
        return
    asked = _ASKED.match(head)
    assert whole
    assert asked is not None
    assert (read.method.encode(), read.target.encode(), read.version.encode()) == asked.groups()
    assert read.headers == _fields(head[asked.end() :])
    _check_framing(read.headers, read.length, is_chunked=read.is_chunked)
    _check_body(read.body(), behind)
    if read.upgrade:
        asked_for = ",".join(value for name, value in read.headers if name == "upgrade").strip(" \t")
        assert (read.upgrade == "websocket") is (asked_for.encode(errors="surrogateescape").lower() == b"websocket")
    if read.version == "1.1":
        assert read_request(write_request(read.method, read.target, read.headers) + LINE_END) == read


def _check_answer(head: bytes, behind: bytes, *, whole: bool) -> None:
    try:
        read = read_answer(head)
    except MalformedHead:
        return
    answered = _ANSWERED.match(head)
    assert whole
    assert answered is not None
    assert read.status == int(answered[2])
    assert read.headers == _fields(head[answered.end() :])
    if read.status not in {204, 304}:
        _check_framing(read.headers, read.length, is_chunked=read.is_chunked)
    _check_body(read.body(), behind)
    if answered[1] == b"1.1":
        assert read_answer(write_answer(read.status, read.headers) + LINE_END) == read


def _fields(lines: bytes) -> Headers:
    """The headers of a head, by nothing but the grammar (RFC 9112, 5)."""
    fields, at = [], 0
    while lines[at:] != LINE_END:
        field = _FIELD.match(lines, at)
        assert field is not None, "a line that is no header was read as one"
        fields.append((field[1].decode().lower(), field[2].decode("utf-8", "surrogateescape")))
        at = field.end()
    return tuple(fields)


def _check_framing(headers: Headers, length: int | None, *, is_chunked: bool) -> None:
    """There is one way to tell where a body ends, in plain spelling (RFC 9112, 6)."""
    told = [(name, value) for name, value in headers if name in {"content-length", "transfer-encoding"}]
    if not told:
        assert (length, is_chunked) == (None, False)
        return
    [(name, value)] = told
    if name == "content-length":
        assert not is_chunked
        assert re.fullmatch("[0-9]+", value)
        assert length == int(value)
    else:
        assert (length, is_chunked) == (None, True)
        assert re.fullmatch("chunked", value, re.IGNORECASE | re.ASCII)


def _ended(body: Body, came: Iterable[bytes]) -> Ended:
    """The body, what stands behind it, and whether it is over; None for what is no body."""
    read, behind = b"", b""
    try:
        for piece in came:
            if body.is_over:
                behind += piece
                continue
            read += body.feed(piece)
            behind += body.rest
    except MalformedBody:
        return None
    return read, behind, body.is_over


def _check_body(body: Body, data: bytes) -> None:
    ended = _ended(body, [data])
    if isinstance(body, Chunked):
        _check_chunks(data)
    elif isinstance(body, Unbounded):
        assert ended == (data, b"", False)
    else:
        length = body.length
        assert ended == (data[:length], data[length:], len(data) >= length)
        assert all(_ended(Sized(length), came) == ended for came in cuttings(data))


def _check_chunks(data: bytes) -> None:
    ended, *others = (_ended(Chunked(), came) for came in cuttings(data))
    assert all(other == ended for other in others)
    if ended is not None:
        read, behind, is_over = ended
        told = _Told(data[: len(data) - len(behind)])
        assert read.startswith(told.body)
        assert told.is_broken or (told.body, told.is_over) == (read, is_over)


class _Told:
    """What llhttp tells of a body in chunks, up to what it finds broken.

    It looks at a line while that is coming, and takes no blanks behind a size.
    """

    def __init__(self, chunks: bytes) -> None:
        self.body = b""
        self.is_over = self.is_broken = False
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            parser.feed_data(chunks)
        except httptools.HttpParserError:
            self.is_broken = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.is_over = True
