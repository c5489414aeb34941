"""A WebSocket client that sends whatever it is told to, and knows no more of frames than it takes to write and read
them: it shares nothing with the proxy.
"""

import os
import socket
from base64 import b64encode
from collections.abc import Iterable
from typing import NamedTuple, Self

from .ways import PATH


CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

SECONDS = 10.0
"""How long a frame may take to come."""

END_SECONDS = 2.0
"""How long the end of the connection may take once it is due: who waits for what cannot come any more is to be seen."""


class Came(NamedTuple):
    """A frame that came: always a whole message, or a control frame."""

    opcode: int
    payload: bytes


def framed(
    opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, masked: bool = True, size: int = 0
) -> bytes:
    """One frame. `reserved` are its three reserved bits, `size` the bytes that its length shall take at least."""
    length = len(payload)
    needed = 1 if length < 126 else 3 if length < 1 << 16 else 9
    match max(needed, size):
        case 1:
            written = bytes([length | masked << 7])
        case 3:
            written = bytes([126 | masked << 7]) + length.to_bytes(2)
        case _:
            written = bytes([127 | masked << 7]) + length.to_bytes(8)
    head = bytes([fin << 7 | reserved << 4 | opcode]) + written
    if not masked:
        return head + payload
    mask = os.urandom(4)
    stream = (mask * (length // 4 + 1))[:length]
    return head + mask + (int.from_bytes(payload) ^ int.from_bytes(stream)).to_bytes(length)


def closing(code: int, reason: bytes = b"") -> bytes:
    """A close frame."""
    return framed(CLOSE, code.to_bytes(2) + reason)


class Wire:
    """An open WebSocket, as bytes up and frames down. Every wait is bounded, by a TimeoutError."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._came = b""
        key = b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {PATH} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._came:
            assert self._read(), "the connection ended within the upgrade"
        head, self._came = self._came.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 101 "), head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def send(self, pieces: Iterable[bytes]) -> None:
        """Send bytes, each piece by itself. An end of the connection on the way is left to be seen by `receive`."""
        try:
            for piece in pieces:
                self._socket.sendall(piece)
        except ConnectionError:
            pass

    def receive(self) -> Came | None:
        """The next frame, or None at the end of the connection."""
        if not self._have(2):
            return None
        first, second = self._came[:2]
        assert first & 0xF0 == 0x80, "a frame with reserved bits, or a fragment"
        assert second < 0x80, "a masked frame"
        start = {126: 4, 127: 10}.get(second, 2)
        assert self._have(start), "the connection ended within a frame"
        length = second if start == 2 else int.from_bytes(self._came[2:start])
        assert self._have(start + length), "the connection ended within a frame"
        payload, self._came = self._came[start : start + length], self._came[start + length :]
        return Came(first & 0x0F, payload)

    def has_ended(self) -> bool:
        """Whether the connection ends, and nothing more comes before."""
        self._socket.settimeout(END_SECONDS)
        return not self._have(1)

    def _have(self, count: int) -> bool:
        while len(self._came) < count:
            if not self._read():
                return False
        return True

    def _read(self) -> bool:
        try:
            data = self._socket.recv(1 << 20)
        except ConnectionError:
            return False
        self._came += data
        return bool(data)
