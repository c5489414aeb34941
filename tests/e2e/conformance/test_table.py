"""What RFC 6455 says of frames, messages and closing, as a table: directly, through nginx, and through the proxy.

That the echo server and nginx pass shows that the table asks nothing of the proxy which others do not do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest

from .ways import Way, through_the_proxy
from .wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Came, Wire, closing, framed


PROTOCOL_ERROR, INVALID_TEXT, TOO_BIG = 1002, 1007, 1009
GOODBYE, NO_STATUS = 1000, 1005
LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent, in pieces; what has to come back for that; and the code with which the other side then closes.

    Without a code it is the client that closes, when all has come back.
    """

    id: str
    sent: Sequence[bytes]
    back: Sequence[Came] = ()
    code: int | None = None


def text(payload: bytes) -> Came:
    return Came(TEXT, payload)


def bytewise(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


def in_fragments(opcode: int, parts: Sequence[bytes], between: bytes = b"") -> bytes:
    """A message in fragments, with something between any two of them."""
    frames = [
        framed(opcode if place == 0 else CONTINUATION, part, fin=place == len(parts) - 1)
        for place, part in enumerate(parts)
    ]
    return between.join(frames)


def _lengths() -> Iterator[Case]:
    for length in (0, 1, 125, 126, 127, 128, 65_535, 65_536, 1 << 20):
        for opcode, name in ((TEXT, "text"), (BINARY, "binary")):
            payload = (b"*" if opcode == TEXT else b"\xfe") * length
            yield Case(f"{name} of {length} bytes", [framed(opcode, payload)], [Came(opcode, payload)])
    yield Case("text byte by byte", bytewise(framed(TEXT, b"x" * 130)), [text(b"x" * 130)])
    large = bytes(range(256)) * (1 << 14)
    yield Case(
        "4 MiB in 64 fragments",
        [in_fragments(BINARY, [large[place : place + (1 << 16)] for place in range(0, len(large), 1 << 16)])],
        [Came(BINARY, large)],
    )
    many = [str(number).encode() for number in range(1000)]
    yield Case("1000 messages at once", [b"".join(framed(TEXT, one) for one in many)], [text(one) for one in many])


def _pings() -> Iterator[Case]:
    for name, payload in (("nothing", b""), ("text", b"Hello"), ("binary", b"\x00\xff\xfe"), ("125 bytes", b"p" * 125)):
        yield Case(f"ping with {name}", [framed(PING, payload)], [Came(PONG, payload)])
    yield Case("ping with 126 bytes", [framed(PING, b"p" * 126)], code=PROTOCOL_ERROR)
    yield Case("ping byte by byte", bytewise(framed(PING, b"p" * 125)), [Came(PONG, b"p" * 125)])
    asked = [str(number).encode() for number in range(10)]
    yield Case("ten pings at once", [b"".join(framed(PING, one) for one in asked)], [Came(PONG, one) for one in asked])
    for name, payload in (("nothing", b""), ("text", b"unsolicited")):
        yield Case(f"pong with {name} that nobody asked for", [framed(PONG, payload), framed(TEXT, b"x")], [text(b"x")])
    yield Case("pong of 126 bytes", [framed(PONG, b"p" * 126)], code=PROTOCOL_ERROR)


def _heads() -> Iterator[Case]:
    """What no frame may begin with, alone and behind a message that is still answered."""
    wrong = [
        *((f"reserved bits {bits:03b} on text", framed(TEXT, b"x", reserved=bits)) for bits in range(1, 8)),
        *((f"reserved bits {bits:03b} on a ping", framed(PING, reserved=bits)) for bits in (1, 2, 4)),
        ("a reserved bit on a close", framed(CLOSE, reserved=1)),
        *((f"opcode {opcode}", framed(opcode, b"x")) for opcode in (*range(3, 8), *range(11, 16))),
        *((f"opcode {opcode} without a payload", framed(opcode)) for opcode in (3, 11)),
        ("no mask", framed(TEXT, b"x", masked=False)),
        ("no mask on a ping", framed(PING, masked=False)),
    ]
    for name, frame in wrong:
        yield Case(name, [frame], code=PROTOCOL_ERROR)
        yield Case(f"{name}, behind a message", [framed(TEXT, b"x") + frame], [text(b"x")], PROTOCOL_ERROR)


def _fragments() -> Iterator[Case]:
    ping = framed(PING, b"here?")
    pong = Came(PONG, b"here?")
    for opcode, name in ((TEXT, "text"), (BINARY, "binary")):
        whole = Came(opcode, b"one two")
        yield Case(f"{name} in two fragments", [in_fragments(opcode, [b"one ", b"two"])], [whole])
        yield Case(f"{name} in empty fragments", [in_fragments(opcode, [b"", b"", b"one two", b""])], [whole])
        yield Case(f"{name} of nothing in three fragments", [in_fragments(opcode, [b""] * 3)], [Came(opcode, b"")])
    whole = text(b"one two")
    yield Case("ping between fragments", [in_fragments(TEXT, [b"one ", b"two"], ping)], [pong, whole])
    yield Case(
        "pings between fragments, byte by byte",
        bytewise(in_fragments(TEXT, [b"one", b" ", b"two"], ping)),
        [pong, pong, whole],
    )
    yield Case("ping in fragments", [in_fragments(PING, [b"a", b"b"])], code=PROTOCOL_ERROR)
    yield Case("pong in fragments", [in_fragments(PONG, [b"a", b"b"])], code=PROTOCOL_ERROR)
    yield Case("close in fragments", [framed(CLOSE, fin=False)], code=PROTOCOL_ERROR)
    for fin in (True, False):
        name = "last fragment" if fin else "fragment"
        yield Case(f"{name} of nothing", [framed(CONTINUATION, b"x", fin=fin)], code=PROTOCOL_ERROR)
        yield Case(
            f"{name} behind a message",
            [in_fragments(TEXT, [b"one ", b"two"]) + framed(CONTINUATION, b"x", fin=fin)],
            [whole],
            PROTOCOL_ERROR,
        )
        yield Case(
            f"message within another's fragments, its {name}",
            [framed(TEXT, b"one", fin=False) + framed(TEXT, b"two", fin=fin)],
            code=PROTOCOL_ERROR,
        )


_VALID_TEXT = {
    "two, three and four bytes": "zß水🍌",
    "ends of each length": "\x00\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff",
    "around the surrogates": "\ud7ff\ue000",
    "noncharacters": "\ufffe\uffff\U0001fffe\U0010fffe",
    "a byte order mark": "\ufeffx",
}
_INVALID_TEXT = {
    "lone continuation": b"x\x80",
    "first byte alone": b"x\xe6\xb0",
    "cut short by another": b"\xe6\xb0x",
    "surrogate": b"\xed\xa0\x80",
    "surrogate pair": b"\xed\xa0\xbd\xed\xb8\x80",
    "two bytes for one": b"\xc0\xaf",
    "three bytes for two": b"\xe0\x9f\xbf",
    "four bytes for three": b"\xf0\x8f\xbf\xbf",
    "beyond the last": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "no first byte": b"\xfe\xff",
}


def _texts() -> Iterator[Case]:
    for name, told in _VALID_TEXT.items():
        payload = told.encode()
        yield Case(f"valid: {name}", [framed(TEXT, payload)], [text(payload)])
        yield Case(f"valid: {name}, each byte a fragment", [in_fragments(TEXT, bytewise(payload))], [text(payload)])
        yield Case(f"valid: {name}, byte by byte", bytewise(framed(TEXT, payload)), [text(payload)])
    for name, payload in _INVALID_TEXT.items():
        around = b"before " + payload + b" behind" if name != "first byte alone" else payload
        yield Case(f"invalid: {name}", [framed(TEXT, around)], code=INVALID_TEXT)
        yield Case(f"invalid: {name}, each byte a fragment", [in_fragments(TEXT, bytewise(around))], code=INVALID_TEXT)
        yield Case(f"invalid: {name}, byte by byte", bytewise(framed(TEXT, around)), code=INVALID_TEXT)
        yield Case(f"binary: {name}", [framed(BINARY, around)], [Came(BINARY, around)])
    yield Case(
        "valid in each message, though a character were whole only across two",
        [framed(TEXT, b"\xe6\xb0"), framed(TEXT, b"\xb4")],
        code=INVALID_TEXT,
    )


def _closings() -> Iterator[Case]:
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        yield Case(f"close with {code}", [closing(code)], code=code)
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535):
        yield Case(f"close with {code}, which must not be sent", [closing(code)], code=PROTOCOL_ERROR)
    yield Case("close without a code", [framed(CLOSE)], code=NO_STATUS)
    yield Case("close with half a code", [framed(CLOSE, b"\x03")], code=PROTOCOL_ERROR)
    yield Case("close with a text", [closing(3000, "tschüß".encode())], code=3000)
    yield Case("close with the longest text", [closing(3000, b"x" * 123)], code=3000)
    yield Case("close with a text too long", [closing(3000, b"x" * 124)], code=PROTOCOL_ERROR)
    for name, payload in _INVALID_TEXT.items():
        yield Case(f"close with a text that is no UTF-8: {name}", [closing(3000, payload)], code=INVALID_TEXT)
    yield Case("close byte by byte", bytewise(closing(3000, b"why")), code=3000)
    goodbye = closing(3000)
    for name, frame in (("text", framed(TEXT, b"x")), ("ping", framed(PING)), ("close", closing(3001))):
        yield Case(f"{name} behind a close", [goodbye + frame], code=3000)
        yield Case(f"{name} behind a close, by itself", [goodbye, frame], code=3000)
    yield Case("close within a message", [framed(TEXT, b"x", fin=False) + goodbye], code=3000)
    yield Case("nonsense behind a close", [goodbye, b"\xff" * 1000], code=3000)
    yield Case("close right behind a ping", [framed(PING, b"p") + goodbye], [Came(PONG, b"p")], 3000)
    yield Case("close right behind a message", [framed(TEXT, b"x") + goodbye], [text(b"x")], 3000)


CASES = [*_lengths(), *_pings(), *_heads(), *_fragments(), *_texts(), *_closings()]

# A close frame without a code may be answered by another such, or by the code that says as little.
ANSWERS: Mapping[int | None, set[int]] = {None: {GOODBYE}, NO_STATUS: {0, GOODBYE}}

# Where nginx and the echo server are more lenient, or have other limits than ours.
OURS = [
    Case("length of one byte in three", [framed(TEXT, b"x", size=3)], code=PROTOCOL_ERROR),
    Case("length of one byte in nine", [framed(TEXT, b"x", size=9)], code=PROTOCOL_ERROR),
    Case("length of three bytes in nine", [framed(TEXT, b"x" * 200, size=9)], code=PROTOCOL_ERROR),
    Case("highest bit of a length", [b"\x81\xff" + (1 << 63).to_bytes(8) + b"mask"], code=PROTOCOL_ERROR),
    Case("as big as the limit", [framed(TEXT, b"x" * LIMIT)], [text(b"x" * LIMIT)]),
    Case("bigger than the limit", [framed(TEXT, b"x" * (LIMIT + 1))], code=TOO_BIG),
    Case("announced as bigger than memory", [b"\x81\xff" + (1 << 62).to_bytes(8)], code=TOO_BIG),
    Case("bigger in fragments", [in_fragments(TEXT, [b"x" * 600] * 2)], code=TOO_BIG),
    Case(
        "bigger in endless fragments",
        [framed(BINARY, fin=False), framed(CONTINUATION, b"x", fin=False) * (LIMIT + 1)],
        code=TOO_BIG,
    ),
    Case(
        "as big as the limit in fragments, with a ping between",
        [in_fragments(TEXT, [b"x" * (LIMIT // 2)] * 2, framed(PING, b"p" * 125))],
        [Came(PONG, b"p" * 125), text(b"x" * LIMIT)],
    ),
]


def play(case: Case, port: int) -> None:
    """Play one case. The connection ends by itself once the close frames are out, and not a while later."""
    with Wire(port) as wire:
        wire.send(case.sent)
        for expected in case.back:
            came = wire.receive()
            # Compared by parts, so that a failure does not print what is large.
            assert came is not None
            assert (came.opcode, len(came.payload)) == (expected.opcode, len(expected.payload)), came.payload[:125]
            assert came.payload == expected.payload
        if case.code is None:
            wire.send([closing(GOODBYE)])
        last = wire.receive()
        assert last is not None, "the connection ended without a close frame"
        assert last.opcode == CLOSE, last.payload[:125]
        assert int.from_bytes(last.payload[:2]) in ANSWERS.get(case.code, {case.code})
        wire.send([framed(CLOSE, last.payload)])  # as a client answers; where it has closed before, it is not heard
        assert wire.has_ended()


@pytest.mark.parametrize("way", ["direct", "nginx", "proxy"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_frames_are_answered_as_the_protocol_says(ways: Mapping[Way, int], way: Way, case: Case) -> None:
    play(case, ways[way])


@pytest.fixture(scope="module")
def strict(echo: int) -> Iterator[int]:
    """The port of a proxy that takes no more than so many bytes in a message."""
    with through_the_proxy(echo, {"client_payload_bytes": LIMIT}) as relay:
        yield relay.port


@pytest.mark.parametrize("case", OURS, ids=lambda case: case.id)
def test_the_proxy_keeps_limits_and_reads_lengths_strictly(strict: int, case: Case) -> None:
    play(case, strict)
