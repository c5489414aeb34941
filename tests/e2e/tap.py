"""A wire tap on the way up: passes bytes on unchanged, and keeps them."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from proxy.relay.frames import FrameReader


_BETWEEN_CHUNKS = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")


class Tap:
    """`down` holds, for each connection in the order of their opening, the bytes that went to the client; `up` those
    that came from it.
    """

    def __init__(self, upwards: int) -> None:
        self.down: list[bytearray] = []
        self.up: list[bytearray] = []
        self.port = 0
        self._upwards = upwards
        self._open: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None] | None] = set()

    def sent(self) -> list[bytes]:
        """What went down on each connection so far, without the marks of HTTP chunks: they may part anything."""
        return [_BETWEEN_CHUNKS.sub(b"", connection) for connection in self.down]

    def count(self, fragment: bytes, *, upgraded: bool = False) -> int:
        """How often a fragment went to clients; on WebSockets alone, if `upgraded`."""
        begin = b"HTTP/1.1 101 " if upgraded else b""
        return sum(connection.count(fragment) for connection in self.sent() if connection.startswith(begin))

    def said(self) -> bytes:
        """All that was said upwards so far: on WebSockets without the masks, which hide it."""
        return b"".join(map(_unmasked, self.up))

    def lead_to(self, port: int) -> None:
        """Carry connections that are opened from now on to another port."""
        self._upwards = port

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client connection until either side ends it."""
        carrying = asyncio.current_task()
        self._carrying.add(carrying)
        try:
            await self._carry(reader, writer)
        finally:
            self._carrying.discard(carrying)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upwards)
        except ConnectionError:
            writer.close()
            return
        kept, said = bytearray(), bytearray()
        self.down.append(kept)
        self.up.append(said)
        self._open |= {writer, up_writer}
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(_pump(reader, up_writer, said))
            pumps.create_task(_pump(up_reader, writer, kept))
        self._open -= {writer, up_writer}

    def cut(self) -> None:
        """Close what is open."""
        for writer in tuple(self._open):
            writer.close()

    async def end(self) -> None:
        """Carry nothing any more, whoever still takes or sends something."""
        while carrying := [task for task in self._carrying if task is not None]:
            for writer in tuple(self._open):
                writer.transport.abort()
            await asyncio.wait(carrying, timeout=0.1)


def _unmasked(connection: bytes | bytearray) -> bytes:
    head, end, rest = bytes(connection).partition(b"\r\n\r\n")
    if b"sec-websocket-key" not in head.lower():
        return bytes(connection)
    reader = FrameReader(masked=True, limit=sys.maxsize)
    reader.feed(rest)
    return b"\n".join([head, end, *(bytes(frame.payload) for frame in iter(reader.read, None))])


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    # Either side may reset its connection: the other then sees its own closed.
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            kept += data
            writer.write(data)
            await writer.drain()
    with suppress(ConnectionError):
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def tapped(port: int) -> AsyncIterator[Tap]:
    """Listen on a free port of loopback, in front of the given one."""
    tap = Tap(port)
    listener = await asyncio.start_server(tap.carry, "127.0.0.1", 0)
    tap.port = listener.sockets[0].getsockname()[1]
    try:
        yield tap
    finally:
        listener.close()
        await tap.end()
        await listener.wait_closed()
