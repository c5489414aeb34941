"""Messages follow each other on a connection, and come as they like: heads and bodies beside what was sent."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.http1 import (
    END,
    LINE_END,
    AnswerHead,
    Chunked,
    MalformedBody,
    MalformedHead,
    RequestHead,
    Sized,
    Unbounded,
    chunk,
    read_answer,
    read_request,
    write_answer,
    write_request,
)


Lines = Sequence[tuple[str, str]]

NAMES: Final = st.sampled_from(["Host", "Cookie", "X-Id", "connection", "A!#$%&'*+-.^_`|~1"])
VALUES: Final = st.sampled_from(["", "a", "close", "keep-alive", "a: b", "a\tb  c", "ä€", "\udcff\udcfe", "chunked"])
HEADERS: Final = st.lists(st.tuples(NAMES, VALUES), max_size=3)
BODIES: Final = st.binary(max_size=40) | st.sampled_from(
    [b"", b"0\r\n\r\n", b"\r\n", b"GET / HTTP/1.1\r\n\r\n", bytes(5000)]
)
CHUNKED: Final = (("Transfer-Encoding", "Chunked"),)
BROKEN_HEADS: Final = (
    b"\n",
    b"\rGET / HTTP/1.1\r\n\r\n",
    b"GET /  HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 002 OK\r\n\r\n",
    b"A: b\r\n\r\n",
    b"\r\n\r\n",
    b"\x81\x02[]\r\n\r\n",
)
BROKEN_CHUNKS: Final = (
    b"x\r\n",
    b"+1\r\n",
    b"1\n",
    b"1;\0\r\n",
    b"1\r\nab\r\n",
    b"1\r\na\r1\r\n",
    b"0\r\nA: b\n",
    b"0\r\nA: " + b"b" * 300 + b"\r\n",
    b"1" * 300,
)


@dataclass(slots=True)
class Sent:
    """A message that was sent: its headers, where in the stream its head and it end (None: with the connection), and
    which bytes of the stream are its body.
    """

    headers: tuple[tuple[str, str], ...]
    head_end: int
    length: int | None
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    end: int | None = None

    def body(self, came: int) -> bytes:
        """As much of the body as is among so many bytes of the stream."""
        return b"".join(data[: max(came - start, 0)] for start, data in self.pieces)


@dataclass(slots=True)
class Read:
    """A message as it was read so far."""

    head: RequestHead | AnswerHead
    reader: Sized | Chunked | Unbounded
    body: bytes = b""


class Connection(RuleBasedStateMachine):
    """One direction of a connection, from whoever sends to whoever reads."""

    def __init__(self) -> None:
        super().__init__()
        self.are_answers = False
        self.begin_anew()

    @precondition(lambda self: self.error is not None or (self.came == len(self.stream) and not self.may_send))
    @rule()
    def begin_anew(self) -> None:
        self.stream = b""
        self.came = 0
        self.sent: list[Sent] = []
        self.broken_from: int | None = None  # the byte by which what is sent can be seen to be none
        self.buffer = b""
        self.read: list[Read] = []
        self.error: type[Exception] | None = None

    @initialize(are_answers=st.booleans())
    def open(self, *, are_answers: bool) -> None:
        self.are_answers = are_answers

    # Sending ----------------------------------------------------------------------------------------------------------

    @property
    def may_send(self) -> bool:
        return self.broken_from is None and not (self.sent and self.sent[-1].end is None)

    def send_head(self, headers: Lines, framing: Lines, length: int | None) -> Sent:
        every = (*headers, *framing)
        self.stream += write_answer(200, every) if self.are_answers else write_request("POST", "/cep/realtime/", every)
        self.stream += LINE_END
        sent = Sent(tuple((name.lower(), value) for name, value in every), len(self.stream), length)
        self.sent.append(sent)
        return sent

    @precondition(lambda self: self.may_send)
    @rule(headers=HEADERS, body=BODIES)
    def send_sized(self, headers: Lines, body: bytes) -> None:
        sent = self.send_head(headers, (("Content-Length", str(len(body))),), len(body))
        sent.pieces.append((len(self.stream), body))
        self.stream += body
        sent.end = len(self.stream)

    @precondition(lambda self: self.may_send)
    @rule(
        headers=HEADERS,
        pieces=st.lists(BODIES.filter(bool), max_size=3),
        extension=st.sampled_from([b"", b";a=b", b' ; a="b"', b";" + b"x" * 200]),
        trailers=st.lists(st.sampled_from([b"A: b", b"X: " + b"y" * 200]), max_size=2),
    )
    def send_chunked(self, headers: Lines, pieces: list[bytes], extension: bytes, trailers: list[bytes]) -> None:
        sent = self.send_head(headers, CHUNKED, None)
        for piece in pieces:
            size, line_end, rest = chunk(piece).partition(LINE_END)
            self.stream += size + extension + line_end
            sent.pieces.append((len(self.stream), piece))
            self.stream += rest
        self.stream += b"00" + extension + LINE_END + b"".join(trailer + LINE_END for trailer in trailers) + LINE_END
        sent.end = len(self.stream)

    @precondition(lambda self: self.may_send and self.are_answers)
    @rule(headers=HEADERS, body=BODIES)
    def send_the_last(self, headers: Lines, body: bytes) -> None:
        sent = self.send_head(headers, (), None)
        sent.pieces.append((len(self.stream), body))
        self.stream += body

    @precondition(lambda self: self.may_send)
    @rule(head=st.sampled_from(BROKEN_HEADS), is_meant=st.sampled_from([True, False, False]))
    def send_what_is_no_head(self, head: bytes, *, is_meant: bool) -> None:
        if is_meant:
            self.stream += head if head.endswith(END) else head + END
            self.broken_from = len(self.stream)

    @precondition(lambda self: self.may_send)
    @rule(headers=HEADERS, chunks=st.sampled_from(BROKEN_CHUNKS), is_meant=st.sampled_from([True, False, False]))
    def send_what_are_no_chunks(self, headers: Lines, chunks: bytes, *, is_meant: bool) -> None:
        if is_meant:
            self.send_head(headers, CHUNKED, None)
            self.stream += chunks
            self.broken_from = len(self.stream)

    # Coming -----------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.stream) > self.came and self.error is None)
    @rule(size=st.sampled_from([1, 1, 2, 3, 10, 40, 100, 6000, 1 << 20]))
    def deliver(self, size: int) -> None:
        self.buffer += self.stream[self.came : self.came + size]
        self.came = min(self.came + size, len(self.stream))
        try:
            while self.buffer and self.goes_on():
                pass
        except (MalformedHead, MalformedBody) as malformed:
            self.error = type(malformed)

    def goes_on(self) -> bool:
        if self.read and not self.read[-1].reader.is_over:
            message = self.read[-1]
            message.body += message.reader.feed(self.buffer)
            self.buffer = message.reader.rest
            return True
        end = self.buffer.find(END) + len(END)
        if end < len(END):
            return False
        head = read_answer(self.buffer[:end]) if self.are_answers else read_request(self.buffer[:end])
        self.buffer = self.buffer[end:]
        self.read.append(Read(head, head.body()))
        return True

    # What is expected -------------------------------------------------------------------------------------------------

    @invariant()
    def what_has_come_is_read_as_it_was_sent(self) -> None:
        began = [sent for sent in self.sent if sent.head_end <= self.came]
        assert len(self.read) == len(began)
        for read, sent in zip(self.read, began, strict=True):
            assert read.head.headers == sent.headers
            assert read.reader.length == sent.length
            if self.broken_from is None or sent.end is not None:
                assert read.body == sent.body(self.came)
                assert read.reader.is_over is (sent.end is not None and sent.end <= self.came)

    @invariant()
    def what_is_broken_is_found_when_it_is_there(self) -> None:
        assert self.error is None or self.broken_from is not None
        if self.broken_from is not None and self.came >= self.broken_from:
            assert self.error is (MalformedBody if self.sent and self.sent[-1].end is None else MalformedHead)

    @invariant()
    def head_that_was_read_is_written_and_read_again_the_same(self) -> None:
        for head in [read.head for read in self.read[-1:]]:
            if isinstance(head, AnswerHead):
                assert read_answer(write_answer(head.status, head.headers) + LINE_END) == head
            else:
                assert read_request(write_request(head.method, head.target, head.headers) + LINE_END) == head


TestConnection = Connection.TestCase
TestConnection.settings = settings(max_examples=80, stateful_step_count=25, deadline=None, derandomize=True)
