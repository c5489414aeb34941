"""The two ways through the front door, byte by byte, and a tenant that keeps all it is told on either.

Every case speaks to the proxy as started for production. What an attacker is told is kept, whole and raw, so that a
fixture can search all of it for the canary.
"""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any, Final, Protocol

import msgspec

from proxy.relay.frames import CLOSE, PING, PONG, TEXT, FrameReader, close_frame, frame
from tests.conftest import PASSWORD, Running, handshake, running
from tests.relay.raw import SECONDS, Asked, Client, Upstream, client, recording


TARGET: Final = "/notification/realtime"
AUTHN: Final = "com.cumulocity.authn"
TOKEN: Final = b64encode(f"t0815/service:{PASSWORD}".encode()).decode()
PAGE: Final = "https://app.example.com"
CONNECT: Final = {"id": "2", "channel": "/meta/connect", "clientId": "c", "connectionType": "long-polling"}
SESSION: Final = {"credentials.default.source": "cookie", "gate.origins": [PAGE]}
"""The settings of a proxy whose clients bring their own platform session."""
OWN: Final = (f"Origin: {PAGE}", "Cookie: authorization=own-session", "X-XSRF-TOKEN: own-xsrf")
"""What such a client brings."""

_MASK: Final = b"\x01\x02\x03\x04"
_CANARIES: Final = (PASSWORD.encode(), TOKEN.rstrip("=").encode())

came_down: Final[list[bytes]] = []
"""All that any client was told in the current test."""


def written(value: object) -> bytes:
    return msgspec.json.encode(value)


def batch(payload: bytes) -> list[dict[str, Any]]:
    """A payload as messages, one alone included."""
    decoded = msgspec.json.decode(payload)
    messages: list[dict[str, Any]] = decoded if isinstance(decoded, list) else [decoded]
    return messages


def holds_canary(data: bytes) -> bool:
    return any(canary in data for canary in _CANARIES)


# The client -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """What came of one request: `payload` is the body of a POST's answer, or the first message of a WebSocket, and
    `code` the close code where we ended that one before the client did.
    """

    status: int
    headers: bytes
    payload: bytes = b""
    code: int | None = None

    @property
    def is_turned_away(self) -> bool:
        """Whether nothing of it was served: a refusal by status, by close code, or in the shape of Bayeux."""
        if self.status >= 400 or self.code in {1002, 1003, 1007, 1008, 1009}:
            return True
        return bool(self.payload) and all(message.get("successful") is False for message in batch(self.payload))


class Ask(Protocol):
    """One request with one payload, by one of the two ways."""

    transport: str

    async def __call__(
        self, proxied: Running, payload: bytes, *lines: str, target: str = TARGET, host: str = "localhost"
    ) -> Told: ...


class Poll:
    """A POST."""

    transport = "long-polling"

    async def __call__(
        self, proxied: Running, payload: bytes, *lines: str, target: str = TARGET, host: str = "localhost"
    ) -> Told:
        head = [f"POST {target} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
        async with client(proxied) as one:
            one.send(as_head(*head, *lines, f"Content-Length: {len(payload)}") + payload)
            status, headers = await head_of(one)
            answer = await _body_of(one, headers)
        return Told(status, headers, answer)


class Converse:
    """A WebSocket for one message, closed by the client unless we do it first."""

    transport = "websocket"

    async def __call__(
        self, proxied: Running, payload: bytes, *lines: str, target: str = TARGET, host: str = "localhost"
    ) -> Told:
        async with client(proxied) as one:
            one.send(upgrade(*lines, target=target, host=host))
            status, headers = await head_of(one)
            if status != 101:
                return Told(status, headers, await _body_of(one, headers))
            one.send(frame(TEXT, payload, mask=_MASK))
            return await self._conversed(one, headers)

    async def _conversed(self, one: Client, headers: bytes) -> Told:
        frames, message = FrameReader(masked=False, limit=1 << 30), b""
        has_closed = False
        async with asyncio.timeout(SECONDS):
            while True:
                while (read := frames.read()) is None:
                    data = await one.reader.read(1 << 16)
                    came_down.append(data)
                    if not data:
                        return Told(101, headers, message, 1006)
                    frames.feed(data)
                if read.opcode == CLOSE:
                    code = int.from_bytes(read.payload[:2], "big")
                    if not has_closed:
                        one.send(close_frame(code if code != 0 else 1000, b"", mask=_MASK))
                    return Told(101, headers, message, None if has_closed and code == 1000 else code)
                if read.opcode == TEXT and not message:
                    message = read.payload
                    has_closed = True
                    one.send(close_frame(1000, b"", mask=_MASK))


WAYS: Final[Mapping[str, Ask]] = {"long-polling": Poll(), "websocket": Converse()}


def as_head(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


def upgrade(*lines: str, target: str = TARGET, host: str = "localhost") -> bytes:
    """The head of an upgrade; a `Connection` line of the caller's stands in place of the usual."""
    usual = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    if not any(line.startswith("Connection:") for line in lines):
        usual.append("Connection: Upgrade")
    return as_head(f"GET {target} HTTP/1.1", f"Host: {host}", *usual, *lines)


async def head_of(one: Client) -> tuple[int, bytes]:
    """The head of the next answer."""
    async with asyncio.timeout(SECONDS):
        head = await one.reader.readuntil(b"\r\n\r\n")
    came_down.append(head)
    return int(head.split(b" ")[1]), head


async def _body_of(one: Client, head: bytes) -> bytes:
    if b"chunked" not in head:
        length = value_of(head, "content-length")
        body = await (one.reader.readexactly(int(length)) if length else one.reader.read())
        came_down.append(body)
        return body
    body = b""
    async with asyncio.timeout(SECONDS):
        while size := int(await one.reader.readuntil(b"\r\n"), 16):
            body += (await one.reader.readexactly(size + 2))[:-2]
    came_down.append(body)
    return body


async def close_code_of(one: Client) -> int | None:
    """The code by which a socket is ended; None where the connection just goes."""
    frames = FrameReader(masked=False, limit=1 << 30)
    async with asyncio.timeout(SECONDS):
        while True:
            while (read := frames.read()) is None:
                data = await one.reader.read(1 << 16)
                if not data:
                    return None
                came_down.append(data)
                frames.feed(data)
            if read.opcode == CLOSE:
                one.send(close_frame(1000, mask=_MASK))
                return int.from_bytes(read.payload[:2])


# Upstream -------------------------------------------------------------------------------------------------------------


def fields_of(head: bytes) -> list[tuple[str, str]]:
    """The header fields of a head, names in lower case."""
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]


def names_of(head: bytes) -> set[str]:
    """The names of the headers of a head, which must not be repeated."""
    names = [name for name, _ in fields_of(head)]
    assert len(names) == len(set(names)), names
    return set(names)


def value_of(head: bytes, name: str) -> str | None:
    return dict(fields_of(head)).get(name)


def target_of(head: bytes) -> str:
    return head.decode("latin-1").split(" ")[1]


def accept(payload: bytes) -> bytes:
    """Say yes to everything."""
    return written([answer(message) for message in batch(payload)])


def answer(message: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    reply = {"channel": message["channel"], "successful": True} | more
    return reply | ({"clientId": "c"} if message["channel"] == "/meta/handshake" else {})


@dataclass(slots=True, eq=False)
class Tenant:
    """Answers both transports: `reply` makes of each payload what is answered, `lines` stand in each head, `status` is
    that of a POST's answer, and with `ending` a WebSocket is closed in place of an answer.
    """

    reply: Callable[[bytes], bytes] = accept
    lines: tuple[str, ...] = ()
    status: str = "200 OK"
    ending: tuple[int, bytes] | None = None
    payloads: list[bytes] = field(default_factory=list, init=False)
    codes: list[int] = field(default_factory=list, init=False)

    async def __call__(self, asked: Asked) -> None:
        if asked.head.startswith(b"GET "):
            await self._converse(asked)
            return
        self.payloads.append(asked.body)
        body = self.reply(asked.body)
        head = (
            f"HTTP/1.1 {self.status}",
            "Content-Type: application/json",
            *self.lines,
            f"Content-Length: {len(body)}",
        )
        asked.writer.write(as_head(*head) + body)

    async def _converse(self, asked: Asked) -> None:
        asked.writer.write(switching(asked.head, *self.lines))
        frames = FrameReader(masked=True, limit=1 << 30)
        while True:
            while (read := frames.read()) is None:
                data = await asked.reader.read(1 << 16)
                if not data:
                    raise ConnectionAbortedError
                frames.feed(data)
            if read.opcode == CLOSE:
                self.codes.append(int.from_bytes(read.payload[:2], "big"))
                asked.writer.write(frame(CLOSE, read.payload))
                await asked.writer.drain()
                raise ConnectionAbortedError
            if read.opcode == TEXT:
                self.payloads.append(read.payload)
                down = close_frame(*self.ending) if self.ending else frame(TEXT, self.reply(read.payload))
                asked.writer.write(down)
            elif read.opcode == PING:
                asked.writer.write(frame(PONG, read.payload))


def switching(head: bytes, *lines: str) -> bytes:
    """The 101 to an upgrade."""
    key = (value_of(head, "sec-websocket-key") or "").encode()
    proof = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()).decode()
    usual = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {proof}")
    return as_head("HTTP/1.1 101 Switching Protocols", *usual, *lines)


@dataclass(frozen=True, slots=True)
class Stage:
    """A proxy and the tenant behind it."""

    proxied: Running
    tenant: Tenant
    upstream: Upstream

    @property
    def heads(self) -> list[bytes]:
        """Of all requests that reached the tenant."""
        return [asked.head for asked in self.upstream.requests]

    def reached(self) -> bytes:
        """All that reached the tenant."""
        return b"".join([*self.heads, *self.tenant.payloads])


@asynccontextmanager
async def staged(settings: Mapping[str, object] | None = None, **more: Any) -> AsyncIterator[Stage]:
    """A proxy with these settings in front of a tenant with those manners."""
    proxys = {name: more.pop(name) for name in ("values", "pages", "clock") if name in more}
    tenant = Tenant(**more)
    async with recording(tenant) as upstream, running(upstream.url, settings, **proxys) as proxied:
        yield Stage(proxied, tenant, upstream)


SHAKE: Final = written([handshake()])


async def proved(stage: Stage) -> None:
    """Have the tenant accept the credential, and forget what it was told: until then one handshake goes up at once."""
    await WAYS["long-polling"](stage.proxied, SHAKE)
    stage.tenant.payloads.clear()
