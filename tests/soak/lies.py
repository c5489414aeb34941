"""What an upstream can say that is not true, or no sense at all. Nothing of it may bring the proxy down, or
answer anybody but who asked.
"""

import asyncio
import gzip
import hashlib
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from proxy.relay.frames import TEXT, FrameReader


HUGE: Final = 2 * 2**20
"""Bytes of an answer that exceeds what the proxies of the soak take (limits.upstream_payload_bytes)."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_JSON: Final = b"Content-Type: application/json\r\n"
_PROXY_LIMIT: Final = 2**20


@dataclass
class Asked:
    """A request, as far as one has to understand it to lie."""

    path: bytes
    is_upgrade: bool
    length: int
    key: bytes
    body: bytes = b""

    @classmethod
    def read(cls, head: bytes) -> "Asked":
        line, *fields = head.split(b"\r\n")
        known = {name.strip().lower(): value.strip() for name, _, value in (field.partition(b":") for field in fields)}
        length = int(known.get(b"content-length", b"0"))
        return cls(line.split(b" ")[1], b"upgrade" in known, length, known.get(b"sec-websocket-key", b""))

    def replies(self, **more: Any) -> bytes:
        """Replies of success to all messages of the body."""
        try:
            batch = msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            batch = []
        batch = batch if isinstance(batch, list) else [batch]
        return msgspec.json.encode(
            [{"channel": each.get("channel"), "id": each.get("id"), "successful": True} | more for each in batch]
        )


Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Lie = Callable[[Asked, Reader, Writer], Awaitable[bool]]
"""Tells a lie; returns whether the connection stays open."""


def _whole(body: bytes, headers: bytes = _JSON) -> bytes:
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (headers, len(body), body)


def _saying(make: Callable[[Asked], bytes], *, stays: bool = True) -> Lie:
    async def lie(asked: Asked, _: Reader, writer: Writer) -> bool:
        writer.write(make(asked))
        await writer.drain()
        return stays

    return lie


def _too_long(asked: Asked) -> bytes:
    return _whole(asked.replies()).replace(b"Content-Length: ", b"Content-Length: 9", 1)


def _too_short(asked: Asked) -> bytes:
    body = asked.replies()
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (_JSON, len(body) - 5, body)


def _twice(asked: Asked) -> bytes:
    return _whole(asked.replies(clientId="somebodyElses000000000000000")) * 2


def _both_ways(asked: Asked) -> bytes:
    return _whole(asked.replies(), _JSON + b"Transfer-Encoding: chunked\r\n")


_CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SOMEBODYS_ID: Final = "somebodys"
"""The id of a message that nobody sent."""

_UNASKED: Final = msgspec.json.encode(
    [{"channel": "/meta/connect", "id": SOMEBODYS_ID, "clientId": "nobodys0000000000000000", "successful": True}]
)

POST_LIES: Final[Mapping[str, Lie]] = {
    "a Content-Length that is too long": _saying(_too_long, stays=False),
    "a Content-Length that is too short": _saying(_too_short),
    "two answers to one question": _saying(_twice),
    "an answer to nobody's question": _saying(lambda _: _whole(_UNASKED)),
    "HTML with status 200": _saying(lambda _: _whole(b"<!doctype html><p>Sign in", b"Content-Type: text/html\r\n")),
    "JSON that is too deep": _saying(lambda _: _whole(b"[" * 100_000 + b"]" * 100_000)),
    "an answer of two megabytes": _saying(lambda asked: _whole(asked.replies(filling="x" * HUGE))),
    "no HTTP at all": _saying(lambda _: b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "Content-Length and chunks at once": _saying(_both_ways),
    "a chunk whose size is no number": _saying(lambda _: _CHUNKED + b"xyz\r\n[]\r\n0\r\n\r\n"),
    "a head without an end": _saying(lambda _: b"HTTP/1.1 200 OK\r\n" + b"X-Filling: none\r\n" * 10_000),
    "gzip that nobody asked for": _saying(
        lambda asked: _whole(gzip.compress(asked.replies()), _JSON + b"Content-Encoding: gzip\r\n")
    ),
    "a handshake without a clientId": _saying(lambda asked: _whole(asked.replies())),
    "a clientId that is a number": _saying(lambda asked: _whole(asked.replies(clientId=4711))),
    "a clientId of another session": _saying(lambda asked: _whole(asked.replies(clientId="wrong00000000000000000000"))),
    "100 Continue for ever": _saying(lambda _: b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "101 to a POST": _saying(lambda _: b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
    "an end before an answer": _saying(lambda _: b"", stays=False),
    "half of JSON": _saying(lambda _: _whole(b'[{"channel":"/meta/hands')),
}


def _switched(asked: Asked, accept: bytes | None = None, headers: bytes = b"") -> bytes:
    right = b64encode(hashlib.sha1(asked.key + _GUID, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (right if accept is None else accept, headers)
    )


def _framed(payload: bytes, first: int = 0x81) -> bytes:
    """A frame that is not masked."""
    size = len(payload)
    if size < 126:
        return bytes([first, size]) + payload
    if size < 2**16:
        return bytes([first, 126]) + size.to_bytes(2, "big") + payload
    return bytes([first, 127]) + size.to_bytes(8, "big") + payload


def _then(said: bytes) -> Lie:
    """A WebSocket that opens well, and this on it."""
    return _saying(lambda asked: _switched(asked) + said)


def _answering(make: Callable[[Asked], bytes]) -> Lie:
    """A WebSocket that opens well, and this in answer to the first message."""

    async def lie(asked: Asked, reader: Reader, writer: Writer) -> bool:
        writer.write(_switched(asked))
        frames = FrameReader(masked=True, limit=_PROXY_LIMIT)
        while (read := frames.read()) is None or read.opcode != TEXT:
            if not (data := await reader.read(65536)):
                return False
            frames.feed(data)
        asked.body = read.payload
        writer.write(make(asked))
        await writer.drain()
        return True

    return lie


GARBAGE: Final = (
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x81\xfe\x00\x7e1234" + b"x" * 126,
    b"\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x82\x04none",
    b"\x88\x01\x00",
    b"\x89\x7e\x01\x00" + b"x" * 256,
    b"HTTP/1.1 200 OK\r\n\r\n",
)
"""What is no frame of upstream's: reserved bits, masked, of nine exabytes, binary, a close of one byte, a long ping."""

UPGRADE_LIES: Final[Mapping[str, Lie]] = {
    "a wrong Sec-WebSocket-Accept": _saying(lambda asked: _switched(asked, b"AAAAAAAAAAAAAAAAAAAAAAAAAAA=")),
    "200 to an upgrade": _saying(lambda _: _whole(b"<!doctype html>", b"Content-Type: text/html\r\n")),
    "an extension that nobody asked for": _saying(
        lambda asked: _switched(asked, headers=b"Sec-WebSocket-Extensions: permessage-deflate\r\n")
    ),
    "a subprotocol that nobody asked for": _saying(
        lambda asked: _switched(asked, headers=b"Sec-WebSocket-Protocol: smtp\r\n")
    ),
    "an end right after 101": _saying(_switched, stays=False),
    "a head that does not end": _saying(lambda _: b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 20_000),
    **{f"garbage frames ({number})": _then(garbage) for number, garbage in enumerate(GARBAGE, 1)},
    "HTML in answer to a handshake": _answering(lambda _: _framed(b"<!doctype html>")),
    "text that is no UTF-8": _answering(lambda _: _framed(b"\xff\xfe[]")),
    "JSON that is too deep, in a frame": _answering(lambda _: _framed(b"[" * 50_000 + b"]" * 50_000)),
    "two megabytes in a frame": _answering(lambda asked: _framed(asked.replies(filling="x" * HUGE))),
    "a handshake without a clientId, in a frame": _answering(lambda asked: _framed(asked.replies())),
    "a clientId of another session, in a frame": _answering(
        lambda asked: _framed(asked.replies(clientId="wrong00000000000000000000"))
    ),
    "a message that does not end": _answering(lambda _: _framed(b'[{"channel":', 0x01)),
}


def lie_to_post(number: int) -> tuple[str, Lie]:
    """The next lie to a POST, by its name."""
    return list(POST_LIES.items())[number % len(POST_LIES)]


def lie_to_upgrade(number: int) -> tuple[str, Lie]:
    """The next lie to an upgrade, by its name."""
    return list(UPGRADE_LIES.items())[number % len(UPGRADE_LIES)]
