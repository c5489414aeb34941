"""Frames are read strictly, followed by their heads, and written as RFC 6455 says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.relay.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    FrameError,
    FrameReader,
    FrameWalk,
    close_code,
    close_frame,
    frame,
    masked,
)


MASK = b"\x37\xfa\x21\x3d"
LENGTHS = (0, 1, 125, 126, 127, 65_535, 65_536, 70_000)


def fragment(opcode: int, payload: bytes, *, mask: bytes = b"") -> bytes:
    """A frame that is not the last of its message."""
    whole = frame(opcode, payload, mask=mask)
    return bytes([whole[0] & 0x7F]) + whole[1:]


def read_all(reader: FrameReader, *pieces: bytes) -> list[Frame]:
    frames = []
    for piece in pieces:
        reader.feed(piece)
        while (read := reader.read()) is not None:
            frames.append(read)
    return frames


# Reading --------------------------------------------------------------------------------------------------------------


def test_examples_of_the_rfc_are_read() -> None:
    """RFC 6455, section 5.7."""
    reader = FrameReader(masked=True, limit=100)
    assert read_all(reader, bytes.fromhex("818537fa213d7f9f4d5158")) == [Frame(TEXT, b"Hello")]
    reader = FrameReader(masked=False, limit=100)
    assert read_all(reader, bytes.fromhex("010348656c80026c6f")) == [Frame(TEXT, b"Hello")]
    assert read_all(reader, bytes.fromhex("890548656c6c6f")) == [Frame(PING, b"Hello")]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("mask", [b"", MASK], ids=["plain", "masked"])
def test_what_is_written_is_read(length: int, mask: bytes) -> None:
    payload = bytes(range(256)) * (length // 256 + 1)
    payload = payload[:length]
    reader = FrameReader(masked=bool(mask), limit=length)
    assert read_all(reader, frame(TEXT, payload, mask=mask)) == [Frame(TEXT, payload)]
    assert reader.release() == b""


def test_frame_is_not_read_before_its_last_byte_has_come() -> None:
    for sent in (frame(TEXT, b"", mask=MASK), frame(PING, b"", mask=MASK), frame(TEXT, b"x" * 126, mask=MASK)):
        reader = FrameReader(masked=True, limit=1000)
        assert read_all(reader, *(bytes([byte]) for byte in sent[:-1])) == []
        assert len(read_all(reader, sent[-1:])) == 1


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(TEXT, b"x"), 1002, id="without a mask"),
        pytest.param(b"\xc1\x80" + MASK, 1002, id="compressed, though nobody agreed to that"),
        pytest.param(b"\xa1\x80" + MASK, 1002, id="second reserved bit"),
        pytest.param(b"\x83\x80" + MASK, 1002, id="unknown kind of data"),
        pytest.param(b"\x8b\x80" + MASK, 1002, id="unknown kind of control"),
        pytest.param(b"\x09\x80" + MASK, 1002, id="ping in fragments"),
        pytest.param(b"\x89\xfe\x00\x7e" + MASK, 1002, id="ping of 126 bytes"),
        pytest.param(b"\x81\xfe\x00\x7d" + MASK, 1002, id="two bytes for a length that fits one"),
        pytest.param(b"\x81\xff" + (65_535).to_bytes(8), 1002, id="eight bytes for a length that fits two"),
        pytest.param(b"\x81\xff" + (1 << 63).to_bytes(8), 1002, id="highest bit of a length"),
        pytest.param(b"\x81\xff" + (70_000).to_bytes(8), 1009, id="announced as too big"),
        pytest.param(frame(TEXT, b"x" * 101, mask=MASK), 1009, id="too big"),
        pytest.param(
            fragment(TEXT, b"x" * 60, mask=MASK) + frame(CONTINUATION, b"x" * 60, mask=MASK),
            1009,
            id="too big together",
        ),
        pytest.param(frame(CONTINUATION, b"x", mask=MASK), 1002, id="fragment of nothing"),
        pytest.param(fragment(TEXT, b"x", mask=MASK) + frame(TEXT, b"x", mask=MASK), 1002, id="message in a message"),
    ],
)
def test_what_breaks_the_protocol_or_the_limit_is_told_by_its_code(data: bytes, code: int) -> None:
    with pytest.raises(FrameError) as broken:
        read_all(FrameReader(masked=True, limit=100), data)
    assert broken.value.code == code


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_message_may_have_so_many_fragments_and_not_one_more(most: int) -> None:
    def message(count: int) -> bytes:
        opcodes = [TEXT, *[CONTINUATION] * (count - 1)]
        return b"".join(fragment(opcode, b"x", mask=MASK) for opcode in opcodes[:-1]) + frame(
            opcodes[-1], b"x", mask=MASK
        )

    reader = FrameReader(masked=True, limit=100, fragments=most)
    assert read_all(reader, message(most) * 2) == [Frame(TEXT, b"x" * most)] * 2
    with pytest.raises(FrameError) as broken:
        read_all(reader, message(most + 1))
    assert (broken.value.code, broken.value.limit) == (1009, "fragments")


def test_masked_bytes_from_upstream_break_the_protocol() -> None:
    with pytest.raises(FrameError, match="mask"):
        read_all(FrameReader(masked=False, limit=100), frame(TEXT, b"x", mask=MASK))


def test_endless_fragments_of_nothing_cost_nothing() -> None:
    reader = FrameReader(masked=False, limit=10)
    assert read_all(reader, fragment(TEXT, b""), *[fragment(CONTINUATION, b"")] * 1000) == []
    assert reader.release() == b""


def test_unread_bytes_are_given_back() -> None:
    reader = FrameReader(masked=False, limit=100)
    reader.feed(frame(PING, b"1") + b"\x81")
    assert reader.read() == Frame(PING, b"1")
    assert reader.release() == b"\x81"
    assert reader.read() is None


# Following ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
@pytest.mark.parametrize(
    "before", [b"", frame(TEXT, b"x" * 130), fragment(TEXT, b"y")], ids=["nothing", "text", "part"]
)
def test_control_frame_is_left_to_be_read(opcode: int, before: bytes) -> None:
    walk = FrameWalk()
    assert walk.pass_over(before + frame(opcode, b"") + b"\x81") == len(before)
    assert walk.is_at_frame


def test_boundary_between_messages_is_where_nothing_is_open() -> None:
    one, two = fragment(TEXT, b"a") + frame(CONTINUATION, b"b"), frame(TEXT, b"c")
    for split in range(len(one)):
        walk = FrameWalk()
        passed = walk.pass_over(one[:split])
        assert walk.is_at_boundary is (passed == 0)
        passed += walk.pass_over(one[passed:] + two, to_boundary=True)
        assert passed == (0 if split < 2 else len(one))
        assert walk.is_at_boundary


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(BINARY, b"x"), 1003, id="binary"),
        pytest.param(frame(CONTINUATION, b"x"), 1002, id="fragment of nothing"),
        pytest.param(fragment(TEXT, b"x") + frame(TEXT, b"x"), 1002, id="message in a message"),
        pytest.param(frame(TEXT, b"x", mask=MASK), 1002, id="masked"),
        pytest.param(frame(TEXT, b"x" * 200, mask=MASK), 1002, id="masked and long"),
        pytest.param(frame(TEXT, b"x" * 70_000, mask=MASK), 1002, id="masked and very long"),
        pytest.param(b"\xc1\x00", 1002, id="compressed"),
        pytest.param(b"\x81\x7e\x00\x7d", 1002, id="two bytes for a length that fits one"),
        pytest.param(b"\x81\x7f" + (65_535).to_bytes(8), 1002, id="eight bytes for a length that fits two"),
        pytest.param(b"\x81\x7f" + (1 << 63).to_bytes(8), 1002, id="highest bit of a length"),
    ],
)
def test_what_is_no_text_does_not_pass(data: bytes, code: int) -> None:
    walk = FrameWalk()
    with pytest.raises(FrameError) as broken:
        walk.pass_over(data[walk.pass_over(data) :])  # what stands in front of it may pass
    assert broken.value.code == code


# Writing --------------------------------------------------------------------------------------------------------------


@given(payload=st.binary(max_size=100), mask=st.binary(min_size=4, max_size=4))
def test_mask_is_laid_byte_by_byte(payload: bytes, mask: bytes) -> None:
    assert masked(payload, mask) == bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    assert masked(masked(payload, mask), mask) == payload


@pytest.mark.parametrize("text", [b"", b"Handshake rejected", "ä".encode() * 100], ids=["none", "short", "too long"])
def test_close_frame_says_code_and_text(text: bytes) -> None:
    [read] = read_all(FrameReader(masked=False, limit=0), close_frame(1008, text))
    assert read.opcode == CLOSE
    code, told = close_code(read.payload)
    assert code == 1008
    assert text.startswith(told)
    assert told or not text


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 4999])
def test_close_code_that_may_be_sent_is_read(code: int) -> None:
    assert close_code(code.to_bytes(2) + b"why") == (code, b"why")


@pytest.mark.parametrize(
    "payload", [b"\x03", *(code.to_bytes(2) for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000))]
)
def test_close_code_that_must_not_be_sent_breaks_the_protocol(payload: bytes) -> None:
    with pytest.raises(FrameError) as broken:
        close_code(payload)
    assert broken.value.code == 1002


def test_close_without_a_code_has_none() -> None:
    assert close_code(b"") == (None, b"")


def test_close_text_that_is_no_utf8_is_told_by_its_code() -> None:
    with pytest.raises(FrameError) as broken:
        close_code(b"\x03\xe8\xff")
    assert broken.value.code == 1007
