"""The way to upstream, on which everything can happen that happens to connections.

`python -m tests.soak.way HOST PORT UPSTREAM_HOST UPSTREAM_PORT` carries connections as a network does. Orders on stdin
say what goes wrong from now on: `{"do": "pass"}` ends it, and whatever was held up goes on.
"""

import asyncio
import itertools
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import uvloop

from tests.soak.children import orders, say
from tests.soak.lies import GARBAGE, Asked, lie_to_post, lie_to_upgrade


_RESET: Final = struct.pack("ii", 1, 0)
_PIECE_SECONDS: Final = 0.004
_LATENCY_SECONDS: Final = 0.25
_SLOWEST: Final = 8  # one connection in so many is carried byte by byte
_REALTIME: Final = (b"/notification/", b"/cep/")
_END: Final = b"\r\n\r\n"

GONE: Final = (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, RuntimeError)
"""How reading and writing end; uvloop's way to say that a connection is closed is RuntimeError."""


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST."""
    kernel = writer.get_extra_info("socket")
    if kernel is not None and kernel.fileno() >= 0:
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


class Way:
    """What is carried now, and what goes wrong with it: `fault` is empty when nothing does."""

    def __init__(self, host: str, port: int, up_host: str, up_port: int) -> None:
        self._host, self._port = host, port
        self._upstream = up_host, up_port
        self.fault = ""
        self.status = 0
        self.mended = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._carried: set[_Carried] = set()
        self._answered: set[asyncio.StreamWriter] = set()
        self._numbers = itertools.count()
        self._lies = {"POST": itertools.count(), "GET": itertools.count()}
        self._lies_told: dict[str, int] = {}

    async def listen(self) -> int:
        """Listen, unless that is done already; returns the port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self._host, self._port, backlog=1024)
            self._port = self._server.sockets[0].getsockname()[1]
        return self._port

    async def do(self, order: dict[str, Any]) -> dict[str, Any]:
        """Have something go wrong from now on, or go well again."""
        fault = order["do"]
        if fault == "cut":  # at this moment, and nothing else
            self._cut()
            return {}
        self.mended.set()
        self.mended = asyncio.Event()
        self.fault = "" if fault == "pass" else fault
        self.status = order.get("status", 0)
        for writer in tuple(self._answered):  # no lie is told once the fault is over
            reset(writer)
        if fault in {"refuse", "gone"}:
            if self._server is not None:
                self._server.close()
                self._server = None
        else:
            await self.listen()
        if fault == "lie":
            for number, carried in enumerate(tuple(self._carried)):
                carried.blurt(GARBAGE[number % len(GARBAGE)])
        if fault in {"gone", "status", "lie"}:
            self._cut()
        elif fault == "half-close":
            for carried in tuple(self._carried):
                carried.half_close()
        told, self._lies_told = self._lies_told, {}
        return {"lies": told}

    def _cut(self) -> None:
        for carried in tuple(self._carried):
            carried.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.fault == "silent":
                await self.mended.wait()
                reset(writer)
            elif self.fault in {"lie", "status"}:
                await self._answer(reader, writer)
            else:
                await self._carry(reader, writer, b"")
        except asyncio.IncompleteReadError:
            writer.close()
        except GONE:
            reset(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, begun: bytes) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            reset(writer)
            return
        up_writer.write(begun)
        carried = _Carried(self, next(self._numbers), writer, up_writer)
        self._carried.add(carried)
        try:
            await asyncio.gather(carried.up(reader), carried.down(up_reader))
        finally:
            self._carried.discard(carried)
            carried.end()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer in upstream's place, until the fault is another, or over."""
        self._answered.add(writer)
        try:
            while True:
                head = await reader.readuntil(_END)
                asked = Asked.read(head)
                if self.fault == "lie" and not asked.path.startswith(_REALTIME):
                    self._answered.discard(writer)
                    await self._carry(reader, writer, head)
                    return
                asked.body = await reader.readexactly(asked.length)
                if self.fault == "status":
                    writer.write(b"HTTP/1.1 %d Told\r\nContent-Length: 2\r\n\r\n{}" % self.status)
                    continue
                lie = lie_to_upgrade if asked.is_upgrade else lie_to_post
                name, lying = lie(next(self._lies["GET" if asked.is_upgrade else "POST"]))
                self._lies_told[name] = self._lies_told.get(name, 0) + 1
                await self._tell(lying, asked, reader, writer)
        finally:
            self._answered.discard(writer)
            writer.close()

    async def _tell(
        self,
        lying: Callable[[Asked, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]],
        asked: Asked,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Lie; a WebSocket on which that was done stays until who asked goes, or the fault is over."""
        stays = await lying(asked, reader, writer)
        if stays and asked.is_upgrade:
            while await reader.read(65536):
                pass
        if asked.is_upgrade or not stays:
            writer.close()
            raise asyncio.IncompleteReadError(b"", None)


class _Carried:
    """One connection, in both directions."""

    def __init__(self, way: Way, number: int, writer: asyncio.StreamWriter, up_writer: asyncio.StreamWriter) -> None:
        self._way = way
        self._number = number
        self._writer = writer
        self._up_writer = up_writer
        self._is_upgraded = self._is_half_closed = False

    async def up(self, reader: asyncio.StreamReader) -> None:
        """Carry what the proxy says, until its end."""
        with suppress(*GONE):
            while data := await reader.read(65536):
                self._up_writer.write(data)
                await self._up_writer.drain()
            self._up_writer.write_eof()
            return
        self.cut()

    async def down(self, reader: asyncio.StreamReader) -> None:
        """Carry what upstream says, until its end, as the fault has it."""
        with suppress(*GONE):
            while data := await reader.read(65536):
                self._is_upgraded = self._is_upgraded or data.startswith(b"HTTP/1.1 101 ")
                if not self._is_half_closed:
                    await self._pass_down(data)
            if not self._is_half_closed:
                self._writer.write_eof()
            return
        self.cut()

    async def _pass_down(self, data: bytes) -> None:
        way = self._way
        if way.fault == "stall":
            middle = len(data) // 2
            self._writer.write(data[:middle])
            await way.mended.wait()
            data = data[middle:]
        elif way.fault == "slow" and self._number % _SLOWEST == 0:
            for position in range(len(data)):
                if way.fault != "slow":
                    data = data[position:]
                    break
                self._writer.write(data[position : position + 1])
                await asyncio.sleep(_PIECE_SECONDS)
            else:
                return
        elif way.fault == "slow":
            await asyncio.sleep(_LATENCY_SECONDS)
        self._writer.write(data)
        await self._writer.drain()
        if way.fault == "half-close":
            self.half_close()

    def half_close(self) -> None:
        """Say FIN to the proxy, and go on reading."""
        if not self._is_half_closed:
            self._is_half_closed = True
            with suppress(*GONE):
                self._writer.write_eof()

    def blurt(self, garbage: bytes) -> None:
        """Say what upstream never said, on a WebSocket."""
        if self._is_upgraded:
            self._writer.write(garbage)

    def cut(self) -> None:
        """Reset both sides."""
        reset(self._writer)
        reset(self._up_writer)

    def end(self) -> None:
        """Close both sides, once what was written is out."""
        self._writer.close()
        self._up_writer.close()


async def main(host: str, port: int, up_host: str, up_port: int) -> None:
    """Carry until stdin ends."""
    way = Way(host, port, up_host, up_port)
    say(port=await way.listen())
    async for order in orders():
        say(answer=await way.do(order))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
