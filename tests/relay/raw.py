"""Both ends of the proxy byte by byte: clients that say anything, and an upstream that keeps all it is told."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from tests.conftest import Running


SECONDS: Final = 10

EMPTY: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"
"""What upstream answers where that does not matter."""

UPGRADE: Final = (
    b"GET /cep/realtime HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def head(*lines: str, version: str = "1.1", host: str = "localhost") -> bytes:
    """The head of a POST with some more lines, but for its end."""
    known = [f"POST /cep/realtime HTTP/{version}", f"Host: {host}", "Content-Type: application/json"]
    return "".join(f"{line}\r\n" for line in (*known, *lines)).encode("latin-1")


def post(body: bytes = b"[]", *lines: str, version: str = "1.1", host: str = "localhost") -> bytes:
    """A whole POST."""
    return head(*lines, f"Content-Length: {len(body)}", version=version, host=host) + b"\r\n" + body


@dataclass(frozen=True, slots=True)
class Answer:
    """What came down, once: `headers` have their names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        """The next whole answer. Raises IncompleteReadError or ConnectionError where it is cut short."""
        async with asyncio.timeout(SECONDS):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
            status = int(first.split(" ")[1])
            return Answer(status, headers, await self._body(status, headers))

    async def _body(self, status: int, headers: dict[str, str]) -> bytes:
        if status in {100, 101, 204, 304}:
            return b""
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        if "transfer-encoding" not in headers:
            return await self.reader.read()
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def answers(self) -> list[Answer]:
        """All answers until the connection ends, which it must behind a whole one."""
        found = []
        while True:
            try:
                found.append(await self.answer())
            except asyncio.IncompleteReadError as ended:
                if ended.partial:
                    raise
                return found

    async def statuses(self) -> list[int]:
        return [answer.status for answer in await self.answers()]

    async def rest(self) -> bytes:
        """Everything until the connection ends, in whatever way."""
        came = b""
        async with asyncio.timeout(SECONDS):
            try:
                while data := await self.reader.read(1 << 16):
                    came += data
            except ConnectionResetError:
                pass
        return came


@asynccontextmanager
async def client(proxied: Running) -> AsyncIterator[Client]:
    """A fresh connection to the public listener."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxied.proxy.public_port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came up by the connection of that number, and the way to answer it."""

    number: int
    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


Answering = Callable[[Asked], Awaitable[None]]


async def answer_empty(asked: Asked) -> None:
    asked.writer.write(EMPTY)


async def hold(_: Asked) -> None:
    """Leave it to the test to answer; another request may come before."""


async def hold_on(asked: Asked) -> None:
    """Leave it to the test to answer, and to read what else comes."""
    await asked.writer.wait_closed()
    raise ConnectionAbortedError


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a reset, where closing it would do without."""
    kernel = writer.get_extra_info("socket")
    kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Upstream:
    """Reads requests as strictly as can be: `torn` is what was none."""

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.url = ""
        self.connections = 0
        self.requests: list[Asked] = []
        self.torn: list[bytes] = []
        self.asked: asyncio.Queue[Asked] = asyncio.Queue()
        self._serving: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    @property
    def bodies(self) -> list[bytes]:
        return [asked.body for asked in self.requests]

    async def next(self) -> Asked:
        """The next request, once it has come."""
        return await asyncio.wait_for(self.asked.get(), SECONDS)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving[asyncio.current_task()] = writer
        self.connections += 1
        number = self.connections
        try:
            while True:
                asked = await self._read(number, reader, writer)
                self.requests.append(asked)
                self.asked.put_nowait(asked)
                await self.answering(asked)
        except asyncio.IncompleteReadError as ended:
            if ended.partial:
                self.torn.append(ended.partial)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async def _read(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)\r\n\r\n$", head)
        body = await reader.readexactly(int(length[1])) if length and self.reads_bodies else b""
        return Asked(number, head, body, reader, writer)

    reads_bodies = True

    async def over(self) -> None:
        """Cut off whoever is still there, and wait for everybody."""
        for writer in self._serving.values():
            writer.transport.abort()
        if self._serving:
            await asyncio.wait([task for task in self._serving if task is not None])


@asynccontextmanager
async def recording(answering: Answering = answer_empty) -> AsyncIterator[Upstream]:
    """An upstream that answers each request by a function, which may return when another may come."""
    upstream = Upstream(answering)
    async with await asyncio.start_server(upstream.serve, "localhost", 0, family=socket.AF_INET) as server:
        upstream.url = f"http://localhost:{server.sockets[0].getsockname()[1]}"
        try:
            yield upstream
        finally:
            await upstream.over()


def is_as_we_write(asked: Asked) -> bool:
    """Whether a POST came up in the one way in which we frame it."""
    lines = asked.head.lower().split(b"\r\n")
    names = [line.partition(b":")[0] for line in lines[1:] if line]
    return (
        lines[0] == b"post /cep/realtime http/1.1"
        and names.count(b"content-length") == names.count(b"host") == 1
        and not {b"transfer-encoding", b"upgrade", b"connection", b"expect", b"te", b"trailer"} & {*names}
    )
