"""Frames of WebSockets: the reader, the walk and a plain second reading agree, however the bytes come.

An input is what one side of a WebSocket sends.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from operator import xor
from typing import Final

from proxy.relay.frames import BINARY, CONTINUATION, TEXT, Frame, FrameError, FrameReader, FrameWalk, frame
from tests.fuzz.cutting import cuttings


WORDS: Final = (
    b"\x81\x00",
    b"\x81\x02[]",
    b"\x81\x80\x37\xfa\x21\x3d",
    b"\x01\x01[",
    b"\x80\x01]",
    b"\x00\x00",
    b"\x82\x00",
    b"\x88\x02\x03\xe8",
    b"\x89\x00",
    b"\x8a\x00",
    b"\x81\x7e\x00\x7e",
    b"\x81\x7e\x00\x7d",
    b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00",
    b"\x81\x7f\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\x81\xfe\x00\x7e",
)
LIMITS: Final = (3, 200)
"""Bytes of a message: one that a small input can exceed, and one that it hardly does."""

_OPCODES: Final = frozenset({0x0, 0x1, 0x2, 0x8, 0x9, 0xA})


@dataclass(frozen=True, slots=True)
class Part:
    """One frame, and where it stands."""

    first: int
    mask: bytes
    payload: bytes
    start: int
    end: int

    @property
    def opcode(self) -> int:
        return self.first & 0x0F

    @property
    def is_control(self) -> bool:
        return self.opcode >= 0x8

    @property
    def is_last(self) -> bool:
        return self.first >= 0x80


@dataclass(frozen=True, slots=True)
class Reading:
    """What bytes are by RFC 6455, 5.2: whole frames, and then an error, a piece of a frame, or nothing.

    `ahead` is how long the payload of that piece is to be, where its head is whole.
    """

    parts: list[Part]
    error: int | None = None
    ahead: int | None = None

    @property
    def end(self) -> int:
        return self.parts[-1].end if self.parts else 0

    @property
    def is_within_message(self) -> bool:
        return any(not last.is_last for last in [part for part in self.parts if not part.is_control][-1:])

    def messages(self) -> list[Frame]:
        """Messages put together, and control frames."""
        whole, gathered, opcode = [], b"", 0
        for part in self.parts:
            if part.is_control:
                whole.append(Frame(part.opcode, part.payload))
                continue
            opcode = part.opcode or opcode
            gathered += part.payload
            if part.is_last:
                whole.append(Frame(opcode, gathered))
                gathered = b""
        return whole


def reading(data: bytes, *, is_masked: bool, limit: int) -> Reading:
    """Read all of the data at once, by the letter of the RFC."""
    parts: list[Part] = []
    at, gathered = 0, -1  # bytes of the message that is open; less than none when there is none
    while len(data) - at >= 2:
        first, short = data[at], data[at + 1] & 0x7F
        opcode, is_control = first & 0x0F, first & 0x08
        if (
            (first & 0x70 or opcode not in _OPCODES or (data[at + 1] >= 0x80) is not is_masked)
            or (is_control and (first < 0x80 or short > 125))
            or (not is_control and (opcode == CONTINUATION) is not (gathered >= 0))
        ):
            return Reading(parts, 1002)
        width = {126: 2, 127: 8}.get(short, 0)
        start = at + 2 + width
        if len(data) < start:
            return Reading(parts)
        length = int.from_bytes(data[at + 2 : start]) if width else short
        if width and not {2: 126, 8: 1 << 16}[width] <= length < 1 << 63:
            return Reading(parts, 1002)
        if not is_control and max(gathered, 0) + length > limit:
            return Reading(parts, 1009)
        mask = data[start : start + 4] if is_masked else b""
        start += 4 if is_masked else 0
        if len(data) < start + length:
            return Reading(parts, ahead=length)
        laid = data[start : start + length]
        payload = bytes(map(xor, laid, cycle(mask))) if is_masked else laid
        parts.append(Part(first, mask, payload, at, start + length))
        at = start + length
        if not is_control:
            gathered = -1 if first >= 0x80 else max(gathered, 0) + length
    return Reading(parts)


@dataclass(frozen=True, slots=True)
class Followed:
    """What is to come of following bytes: those that pass, how many control frames are read, where a message of our own
    could stand, and how it ends.
    """

    passed: bytes
    read: int
    messages: int
    size: int
    boundaries: set[int]
    is_at_frame: bool
    is_at_boundary: bool
    error: int | None


def check(data: bytes) -> None:
    """Read and follow in every way. Raises AssertionError where two of them differ."""
    for is_masked in (True, False):
        for limit in LIMITS:
            expected = reading(data, is_masked=is_masked, limit=limit)
            for came in cuttings(data):
                _check_reader(came, data, expected, is_masked=is_masked, limit=limit)
            _check_written(data, expected.parts)
    expected_of_walk = followed(data)
    for owes in (False, True):
        for came in cuttings(data):
            _check_walk(came, expected_of_walk, owes=owes)


def _check_reader(came: Iterable[bytes], data: bytes, expected: Reading, *, is_masked: bool, limit: int) -> None:
    reader, frames, error = FrameReader(masked=is_masked, limit=limit), [], None
    try:
        for piece in came:
            reader.feed(piece)
            while (read := reader.read()) is not None:
                frames.append(read)
    except FrameError as broken:
        error = broken.code
    assert frames == expected.messages()
    assert error == expected.error
    if error is None:
        assert reader.is_within_message is expected.is_within_message
        assert reader.release() == data[expected.end :]


def _check_written(data: bytes, parts: Iterable[Part]) -> None:
    for part in parts:
        if part.is_last:
            assert frame(part.opcode, part.payload, mask=part.mask) == data[part.start : part.end]


# Following ------------------------------------------------------------------------------------------------------------


def followed(data: bytes) -> Followed:
    """Follow all of the data at once: text passes, with as much of its last frame as is there, if its head is whole."""
    read = reading(data, is_masked=False, limit=1 << 63)
    parts, rest = read.parts, data[read.end :]
    error = _fault(read, rest)
    binary = next((place for place, part in enumerate(parts) if part.opcode == BINARY), None)
    if binary is not None:
        read, error = Reading(parts[:binary]), 1003
        parts, rest = read.parts, b""
    texts = [part for part in parts if not part.is_control]
    is_passing = error is None and read.ahead is not None and not rest[0] & 0x08
    is_last = is_passing and rest[0] >= 0x80
    return Followed(
        passed=b"".join([data[part.start : part.end] for part in texts] + [rest] * is_passing),
        read=len(parts) - len(texts),
        messages=sum(part.is_last for part in texts) + is_last,
        size=sum(len(part.payload) for part in texts) + (read.ahead or 0) * is_passing,
        boundaries=set(_boundaries(parts)),
        is_at_frame=not is_passing,
        is_at_boundary=not is_passing and not read.is_within_message,
        error=error,
    )


def _boundaries(parts: Iterable[Part]) -> Iterator[int]:
    """Where no message is open."""
    is_open = False
    yield 0
    for part in parts:
        is_open = is_open if part.is_control else not part.is_last
        if not is_open:
            yield part.end


def _fault(read: Reading, rest: bytes) -> int | None:
    """What is wrong with what follows the last whole frame: a walk looks for text first, and need not wait for more."""
    if not rest or rest[0] & 0x08:
        return read.error
    if rest[0] & 0x7F == BINARY and not read.is_within_message:
        return 1003
    return read.error if rest[0] & 0x7F == (CONTINUATION if read.is_within_message else TEXT) else 1002


class Relay:
    """Passes over what may pass and reads the control frames in between, as the relay does.

    While it `owes` a message of our own, it stops at the next boundary; `replied` tells where those stood.
    """

    def __init__(self) -> None:
        self.walk = FrameWalk()
        self.passed = self.held = b""
        self.taken = 0
        self.read = 0
        self.owes = False
        self.replied: list[int] = []
        self.error: int | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        self.held += data
        try:
            while self.error is None and self._goes_on():
                pass
        except FrameError as broken:
            self.error = broken.code

    def _goes_on(self) -> bool:
        passed = self.walk.pass_over(self.held, to_boundary=self.owes)
        self._take(passed)
        self.passed += self._latest
        if self.owes and self.walk.is_at_boundary:
            self.owes = False
            self.replied.append(self.taken)
            return True
        if self.held and self.held[0] & 0x08 and self.walk.is_at_frame:
            reader = FrameReader(masked=False, limit=0)
            reader.feed(self.held)
            if reader.read() is None:
                return False
            self._take(len(self.held) - len(reader.release()))
            self.read += 1
            return True
        return passed > 0 and bool(self.held)

    def _take(self, size: int) -> None:
        self._latest, self.held = self.held[:size], self.held[size:]
        self.taken += size


def check_followed(relay: Relay, expected: Followed) -> None:
    """A relay has come as far as it was to come. Raises AssertionError."""
    walk = relay.walk
    assert relay.error == expected.error
    assert relay.passed == expected.passed
    assert relay.read == expected.read
    assert (walk.messages, walk.size) == (expected.messages, expected.size)
    assert (walk.is_at_frame, walk.is_at_boundary) == (expected.is_at_frame, expected.is_at_boundary)
    assert set(relay.replied) <= expected.boundaries


def _check_walk(came: Iterable[bytes], expected: Followed, *, owes: bool) -> None:
    relay = Relay()
    for piece in came:
        relay.owes = owes
        relay.feed(piece)
    check_followed(relay, expected)
