"""One side of a WebSocket says what it likes, and it comes as it likes: reader and walk beside a plain reading."""

from collections.abc import Callable
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.relay.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, FrameError, FrameReader, frame
from tests.fuzz.frames import Relay, check_followed, followed, reading


MASK: Final = b"\x37\xfa\x21\x3d"
LIMITS: Final = (200, 66_000)
SIZES: Final = st.sampled_from([0, 1, 2, 3, 7, 20, 200]) | st.sampled_from([0, 1 << 20])
PAYLOADS: Final = st.binary(max_size=20) | st.sampled_from([125, 126, 150, 65_535, 65_536]).map(bytes)
NONSENSE: Final = (
    b"\xc1\x00",  # a reserved bit
    b"\x83\x00",  # an unknown kind of data
    b"\x8b\x80",  # an unknown kind of control
    b"\x09\x00",  # a ping in fragments
    b"\x89\x7e\x00\x7e",  # a long ping
    b"\x81\x02[]",
    b"\x81\x82" + MASK + b"[]",
    b"\x80\x00",
    b"\x80\x80" + MASK,
    b"\x81\x7e\x00\x7d",  # lengths that are not in their shortest form
    b"\x81\xfe\x00\x7d",
    b"\x81\x7f\x00\x00\x00\x00\x00\x00\xff\xff",
    b"\x81\xff\x00\x00\x00\x00\x00\x00\xff\xff",
    b"\x81\x7f\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\x81\xff\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\x81\x7f\x00\x00\x00\x00\x00\x02\x00\x00",  # more than the limit
    b"\x81\xff\x00\x00\x00\x00\x00\x02\x00\x00",
    b"GET / HTTP/1.1\r\n",
)


class Saying(RuleBasedStateMachine):
    """What is said, and how much of it has come."""

    take: Callable[[bytes], None]
    """Feeds what has come to what is tested."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = b""
        self.said = b""
        self.came = b""
        self.is_within_message = False
        self.is_broken = False

    @precondition(lambda self: not self.is_within_message)
    @rule(opcode=st.sampled_from([TEXT, TEXT, TEXT, BINARY]), payload=PAYLOADS, is_last=st.booleans(), size=SIZES)
    def begin(self, opcode: int, payload: bytes, size: int, *, is_last: bool) -> None:
        self.say(opcode, payload, is_last=is_last)
        self.deliver(size)

    @precondition(lambda self: self.is_within_message)
    @rule(payload=PAYLOADS, is_last=st.booleans(), size=SIZES)
    def go_on(self, payload: bytes, size: int, *, is_last: bool) -> None:
        self.say(CONTINUATION, payload, is_last=is_last)
        self.deliver(size)

    def say(self, opcode: int, payload: bytes, *, is_last: bool) -> None:
        whole = frame(opcode, payload, mask=self.mask)
        self.said += whole if is_last else bytes([whole[0] & 0x7F]) + whole[1:]
        self.is_within_message = not is_last

    @rule(opcode=st.sampled_from([CLOSE, PING, PONG]), payload=st.binary(max_size=5) | st.just(bytes(125)), size=SIZES)
    def interject(self, opcode: int, payload: bytes, size: int) -> None:
        self.said += frame(opcode, payload, mask=self.mask)
        self.deliver(size)

    @precondition(lambda self: len(self.said) > 20)  # so that there is something in front of it
    @rule(nonsense=st.sampled_from(NONSENSE), size=SIZES)
    def talk_nonsense(self, nonsense: bytes, size: int) -> None:
        self.said += nonsense
        self.deliver(size)

    @rule(size=SIZES)
    def deliver(self, size: int) -> None:
        piece = self.said[len(self.came) :][:size]
        if piece and not self.is_broken:
            self.came += piece
            self.take(piece)

    @precondition(lambda self: len(self.said) > len(self.came) and not self.is_broken)
    @rule()
    def deliver_byte_by_byte(self) -> None:
        for _ in range(min(len(self.said) - len(self.came), 40)):
            self.deliver(1)


class Reading(Saying):
    """A reader takes the frames that are whole, and the fault where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.code: int | None = None

    @initialize(is_masked=st.booleans(), limit=st.sampled_from(LIMITS))
    def open(self, limit: int, *, is_masked: bool) -> None:
        self.mask = MASK if is_masked else b""
        self.limit = limit
        self.reader = FrameReader(masked=is_masked, limit=limit)

    def take(self, piece: bytes) -> None:
        self.reader.feed(piece)
        self.read()
        before = self.code, len(self.frames)
        self.read()  # says nothing new
        assert (self.code, len(self.frames)) == before

    def read(self) -> None:
        try:
            while (read := self.reader.read()) is not None:
                self.frames.append(read)
        except FrameError as broken:
            self.is_broken, self.code = True, broken.code

    @precondition(lambda self: self.came and not self.is_broken)
    @rule()
    def give_back(self) -> None:
        rest = self.reader.release()
        assert rest == self.came[reading(self.came, is_masked=bool(self.mask), limit=self.limit).end :]
        assert self.reader.release() == b""
        self.reader.feed(rest)

    @invariant()
    def frames_are_those_of_a_plain_reading(self) -> None:
        expected = reading(self.came, is_masked=bool(self.mask), limit=self.limit)
        assert self.frames == expected.messages()
        assert self.code == expected.error
        assert self.reader.is_within_message is expected.is_within_message


class Following(Saying):
    """A walk passes text as it came, stops at what is to be read, and knows where a message of ours could stand."""

    def __init__(self) -> None:
        super().__init__()
        self.relay = Relay()
        self.asked: list[int] = []  # where the relay was when a message of ours came up

    def take(self, piece: bytes) -> None:
        self.relay.feed(piece)
        self.is_broken = self.relay.error is not None

    @precondition(lambda self: not (self.is_broken or self.relay.owes or self.relay.walk.is_at_boundary))
    @rule()
    def owe_a_message(self) -> None:
        self.asked.append(self.relay.taken)
        self.relay.owes = True
        self.take(b"")

    @invariant()
    def what_a_reader_would_take_has_passed(self) -> None:
        expected = followed(self.came)
        check_followed(self.relay, expected)
        assert len(self.came) - self.relay.taken < 127 or self.is_broken  # the head of a frame, or a control frame
        replied = self.relay.replied
        assert replied == [
            min(place for place in expected.boundaries if place >= asked) for asked in self.asked[: len(replied)]
        ]
        assert len(self.asked) - len(replied) == self.relay.owes


TestReading = Reading.TestCase
TestFollowing = Following.TestCase
TestReading.settings = TestFollowing.settings = settings(
    max_examples=150, stateful_step_count=20, deadline=None, derandomize=True
)
