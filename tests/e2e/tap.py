"""A wire tap between the clients and the proxy: passes bytes on unchanged, and keeps those that go down."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


_BETWEEN_CHUNKS = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")


class Tap:
    """`down` holds, for each connection in the order of their opening, the bytes that went to the client."""

    def __init__(self, upwards: int) -> None:
        self.down: list[bytearray] = []
        self.port = 0
        self._upwards = upwards
        self._open: set[asyncio.StreamWriter] = set()

    def sent(self) -> list[bytes]:
        """What went down on each connection so far, without the marks of HTTP chunks: they may part anything."""
        return [_BETWEEN_CHUNKS.sub(b"", connection) for connection in self.down]

    def count(self, fragment: bytes, *, upgraded: bool = False) -> int:
        """How often a fragment went to clients; on WebSockets alone, if `upgraded`."""
        begin = b"HTTP/1.1 101 " if upgraded else b""
        return sum(connection.count(fragment) for connection in self.sent() if connection.startswith(begin))

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client connection until either side ends it."""
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upwards)
        except ConnectionError:
            writer.close()
            return
        kept = bytearray()
        self.down.append(kept)
        self._open |= {writer, up_writer}
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(_pump(reader, up_writer, bytearray()))
            pumps.create_task(_pump(up_reader, writer, kept))
        self._open -= {writer, up_writer}

    def cut(self) -> None:
        """Close what is still open."""
        for writer in self._open:
            writer.close()


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
        tap.cut()
        listener.close()
        await listener.wait_closed()
