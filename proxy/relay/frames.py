"""WebSocket frames as bytes (RFC 6455, section 5). PURE.

Up, every frame is read: strictly, unmasked, and put together to messages within a limit. Down, frames are followed by
their heads alone, so that their bytes pass as they came and reading can begin at the next boundary.
"""

import struct
from typing import Final, NamedTuple

from aiohttp._websocket.helpers import websocket_mask  # in C: eight times as fast as any way in Python


CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_FIN: Final = 0x80
_WHOLE_TEXT: Final = _FIN | TEXT
_CONTROL: Final = 0x08
_OPCODES: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_MASKED: Final = 0x80
_CONTROL_LIMIT: Final = 125
_TWO_BYTES: Final = 126  # in place of a length: it stands in the next two bytes, or in the next eight
_EIGHT_BYTES: Final = 127

_PROTOCOL_ERROR: Final = 1002
_UNSUPPORTED_DATA: Final = 1003
_INVALID_TEXT: Final = 1007
_MESSAGE_TOO_BIG: Final = 1009

_NOT_SHORTEST: Final = "a length is not written in its shortest form"


class FrameError(Exception):
    """Bytes that break the protocol or a limit. `code` is the close code that says so (RFC 6455, 7.4.1), and `limit`
    the key of the limit.
    """

    def __init__(self, code: int, text: str, *, limit: str | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.limit = limit


class Frame(NamedTuple):
    """A whole message, put together from its fragments, or a control frame."""

    opcode: int
    payload: bytes


class FrameReader:
    """Reads frames out of bytes as they come.

    `masked` tells from which side they come (a client must mask, upstream must not); `limit` is the most bytes that a
    message may have, and `fragments` of how many frames it may consist. What is announced as bigger is refused before
    it is there.
    """

    __slots__ = ("_at", "_buffer", "_fragments", "_key", "_left", "_limit", "_masked", "_message", "_opcode")

    def __init__(self, *, masked: bool, limit: int, fragments: int = 4096) -> None:
        self._masked = masked
        self._limit = limit
        self._key = "client_payload_bytes" if masked else "upstream_payload_bytes"
        self._fragments = fragments
        self._left = 0  # how many fragments more the message that is being gathered may have
        self._buffer: bytes | bytearray = b""
        self._at = 0
        self._opcode = CONTINUATION  # of the message whose fragments are being gathered
        self._message: bytearray | None = None

    @property
    def is_within_message(self) -> bool:
        """Whether fragments wait for their last one."""
        return self._message is not None

    @property
    def is_begun(self) -> bool:
        """Whether there is a part of something that is not whole yet, once all was read that is."""
        return self._message is not None or self._buffer != b""

    @property
    def backlog(self) -> int:
        """How many bytes wait to be read."""
        return len(self._buffer) - self._at

    def feed(self, data: bytes) -> None:
        """Take bytes; `read` gives the frames that they complete."""
        if not self._buffer:
            self._buffer = data
            return
        if isinstance(self._buffer, bytes):  # grows in place: a long message comes in many pieces
            self._buffer = bytearray(self._buffer)
        self._buffer += data

    def read(self) -> Frame | None:
        """The next message or control frame, or None until more has come. Raises FrameError."""
        while (came := self._next()) is not None:
            first, payload = came
            if first == _WHOLE_TEXT or first & _CONTROL or (first & _FIN and self._message is None):
                return Frame(first & 0x0F, payload)
            if self._message is None:
                self._opcode, self._message = first & 0x0F, bytearray(payload)
                self._left = self._fragments
            else:
                self._message += payload
            if first & _FIN == 0:
                self._count_fragment()
            else:
                whole, self._message = bytes(self._message), None
                return Frame(self._opcode, whole)
        return None

    def release(self) -> bytes:
        """The bytes that were not read, which this reader then forgets."""
        rest, self._buffer, self._at = bytes(self._buffer[self._at :]), b"", 0
        return rest

    def _next(self) -> tuple[int, bytes] | None:
        """The first byte and the payload of the next frame."""
        buffer, at = self._buffer, self._at
        size = len(buffer)
        if size - at < 2:  # noqa: PLR2004 - the two bytes that every frame has
            self._let_go()
            return None
        first, second = buffer[at], buffer[at + 1]
        if first != _WHOLE_TEXT or self._message is not None or second < _MASKED or not self._masked:
            self._check(first, second)
        length, start = second & ~_MASKED, at + 2
        if length >= _TWO_BYTES:
            start += 2 if length == _TWO_BYTES else 8
            if size < start:
                self._let_go()
                return None
            length = self._long(length, buffer[at + 2 : start])
        if length > self._limit or self._message:
            self._check_size(first, length)
        if self._masked:
            start += 4
        end = start + length
        if size < end:
            self._let_go()
            return None
        payload = bytes(buffer[start:end])
        if self._masked:
            payload = masked(payload, buffer[start - 4 : start])
        if end == size:
            self._buffer, self._at = b"", 0
        else:
            self._at = end
        return first, payload

    def _count_fragment(self) -> None:
        """Raises FrameError where more fragments are to come than may."""
        self._left -= 1
        if self._left <= 0:
            raise FrameError(_MESSAGE_TOO_BIG, "a message is in too many pieces", limit="fragments")

    def _check_size(self, first: int, length: int) -> None:
        """Raises FrameError for a message that exceeds the limit, before it is there."""
        if length + len(self._message or b"") > self._limit and not first & _CONTROL:
            raise FrameError(_MESSAGE_TOO_BIG, "a message is bigger than the limit", limit=self._key)

    def _let_go(self) -> None:
        """Let go of what was read, and of nothing else."""
        if self._at:
            self._buffer, self._at = self._buffer[self._at :], 0

    def _long(self, short: int, written: bytes | bytearray) -> int:
        length = int.from_bytes(written)
        if length < _TWO_BYTES or (short == _EIGHT_BYTES and not length >> 16) or length >> 63:
            raise FrameError(_PROTOCOL_ERROR, _NOT_SHORTEST)
        return length

    def _check(self, first: int, second: int) -> None:
        """Raises FrameError for what no frame may begin with, here and now."""
        opcode = first & 0x0F
        if first & 0x70 or opcode not in _OPCODES:
            raise FrameError(_PROTOCOL_ERROR, "a frame has a bit or an opcode that was not agreed upon")
        if bool(second & _MASKED) is not self._masked:
            raise FrameError(_PROTOCOL_ERROR, "a client must mask its frames, and nobody else may")
        if opcode & _CONTROL:
            if not first & _FIN or second & ~_MASKED > _CONTROL_LIMIT:
                raise FrameError(_PROTOCOL_ERROR, "a control frame is fragmented or too long")
        elif (opcode == CONTINUATION) is not self.is_within_message:
            raise FrameError(_PROTOCOL_ERROR, "a fragment does not follow the one before")


class FrameWalk:
    """Follows what upstream sends, by the heads of its frames.

    `messages` and `size` count the messages that have passed and their bytes, from when their heads were seen; whoever
    takes them sets them back.
    """

    __slots__ = ("_left", "_within_message", "messages", "size")

    def __init__(self) -> None:
        self._left = 0  # bytes of the payload of the current frame that are still to come
        self._within_message = False
        self.messages = 0
        self.size = 0

    @property
    def is_at_boundary(self) -> bool:
        """Whether a message of our own could stand here."""
        return not self._left and not self._within_message

    @property
    def is_at_frame(self) -> bool:
        """Whether a control frame of our own could stand here."""
        return not self._left

    def pass_over(self, data: bytes, *, to_boundary: bool = False) -> int:
        """How many bytes in front of `data` may pass as they are.

        What follows them is to be read: a control frame, or, with `to_boundary`, whatever stands at the next boundary
        between messages. Otherwise, when nothing may pass, it is the head of a frame that is not whole yet: feed it
        again with what follows. Raises FrameError for what is no frame of text.
        """
        end, at = len(data), self._left
        within, messages, size = self._within_message, 0, 0
        try:
            while at < end:
                first = data[at]
                if first != _WHOLE_TEXT or within or to_boundary:
                    if first & _CONTROL or (to_boundary and not within):
                        break
                    _check_follows(first, within=within)
                length, start = data[at + 1], at + 2
                if length >= _TWO_BYTES:
                    if length == _TWO_BYTES and (long := data[at + 2] << 8 | data[at + 3]) >= _TWO_BYTES:
                        length, start = long, at + 4
                    else:
                        start = at + 10
                        length = _long(length, data[at + 2 : start])
                within = first < _FIN
                messages += not within
                size += length
                at = start + length
        except IndexError:
            pass  # the head of a frame is not whole yet
        except FrameError:
            if not at:
                raise
            # What stands in front of it passes first.
        self._within_message = within
        self.messages += messages
        self.size += size
        self._left = at - end if at > end else 0
        return min(end, at)


def _check_follows(first: int, *, within: bool) -> None:
    """Raises FrameError when this is no head of a text, or of its next fragment."""
    if first & ~_FIN != (CONTINUATION if within else TEXT):
        code = _UNSUPPORTED_DATA if first & ~_FIN == BINARY and not within else _PROTOCOL_ERROR
        raise FrameError(code, "a frame is not the text that was to follow")


def _long(length: int, data: bytes) -> int:
    """A length of eight bytes. Raises FrameError for any other or a masked one, IndexError when it is not whole."""
    if length == _TWO_BYTES:
        raise FrameError(_PROTOCOL_ERROR, _NOT_SHORTEST)
    if length != _EIGHT_BYTES:
        raise FrameError(_PROTOCOL_ERROR, "upstream must not mask its frames")
    if len(data) < 8:  # noqa: PLR2004
        raise IndexError
    long = int.from_bytes(data)
    if not long >> 16 or long >> 63:
        raise FrameError(_PROTOCOL_ERROR, _NOT_SHORTEST)
    return long


def frame(opcode: int, payload: bytes, *, mask: bytes = b"") -> bytes:
    """One whole frame; with four bytes of `mask` as a client sends it."""
    length = len(payload)
    bit = _MASKED if mask else 0
    if length < _TWO_BYTES:
        head = bytes((_FIN | opcode, bit | length))
    elif length < 1 << 16:
        head = struct.pack("!BBH", _FIN | opcode, bit | _TWO_BYTES, length)
    else:
        head = struct.pack("!BBQ", _FIN | opcode, bit | _EIGHT_BYTES, length)
    return head + mask + masked(payload, mask) if mask else head + payload


def masked(payload: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    """The payload with the mask laid over it, or taken off (RFC 6455, 5.3)."""
    laid = bytearray(payload)
    websocket_mask(bytes(mask), laid)
    return bytes(laid)


def close_frame(code: int, text: bytes = b"", *, mask: bytes = b"") -> bytes:
    """A close frame; the text is cut where it does not fit."""
    while len(text) > _CONTROL_LIMIT - 2:
        text = text[: _CONTROL_LIMIT - 2].decode(errors="ignore").encode()
    return frame(CLOSE, code.to_bytes(2) + text, mask=mask)


def close_code(payload: bytes) -> tuple[int | None, bytes]:
    """Code and text of a close frame; None for a frame without a code. Raises FrameError."""
    if not payload:
        return None, b""
    code, text = int.from_bytes(payload[:2]), payload[2:]
    if len(payload) == 1 or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):  # noqa: PLR2004
        raise FrameError(_PROTOCOL_ERROR, "a close code is none that may be sent")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise FrameError(_INVALID_TEXT, "the text of a close frame is not UTF-8") from None
    return code, text
