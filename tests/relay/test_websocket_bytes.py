"""WebSockets through the proxy, byte by byte: what no library on either side would send or show."""

import asyncio
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha1
from typing import Any

import msgspec
import pytest

from proxy.relay.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, FrameReader, close_frame, frame
from tests.conftest import EVERYTHING, Running, handshake, running, until


MASK = b"\x01\x02\x03\x04"
SHAKE = frame(TEXT, msgspec.json.encode([handshake()]), mask=MASK)
ACCEPTED = b'[{"channel":"/meta/handshake","successful":true,"clientId":"c"}]'
SECONDS = 5


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream of these tests answers a close frame only where the test says so; nobody waits long for that."""
    monkeypatch.setattr("proxy.relay.sockets.LAST_ANSWER_SECONDS", 0.25)


class Side:
    """One end of a WebSocket, as bytes and as frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, masked: bool) -> None:
        self.reader = reader
        self.writer = writer
        self._frames = FrameReader(masked=masked, limit=1 << 30)

    @property
    def address(self) -> object:
        """Whom it speaks to."""
        return self.writer.get_extra_info("peername")

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> Frame:
        """The next message or control frame."""
        async with asyncio.timeout(SECONDS):
            while (read := self._frames.read()) is None:
                data = await self.reader.read(1 << 16)
                assert data, "the connection ended"
                self._frames.feed(data)
        return read

    async def take(self, count: int) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self.reader.readexactly(count)

    async def rest(self) -> bytes:
        """Everything until the connection ends."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def relayed(settings: dict[str, Any] | None = None) -> AsyncIterator[tuple[Running, Side, Side]]:
    """A proxy with one open WebSocket: the proxy, the client's end and upstream's."""
    async with raw_upstream() as (url, accepted), running(url, settings) as proxied:
        client = await connected(proxied)
        upstream = await accepted()
        try:
            yield proxied, client, upstream
        finally:
            await cut_off(proxied, client, upstream)


async def cut_off(proxied: Running, *sides: Side) -> None:
    for side in sides:
        side.writer.transport.abort()
    await until(lambda: proxied.count("connections", transport="websocket") == 0)


@asynccontextmanager
async def raw_upstream(greeting: bytes = b"") -> AsyncIterator[tuple[str, Callable[[], Awaitable[Side]]]]:
    """An upstream that accepts every upgrade, and sends a greeting behind that; yields its URL, and how to get at the
    next socket that it accepted.
    """
    sides: asyncio.Queue[Side] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        [key] = [line[19:] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: ")]
        answer = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(head + b"Sec-WebSocket-Accept: " + answer + b"\r\n\r\n" + greeting)
        sides.put_nowait(Side(reader, writer, masked=True))

    async with await asyncio.start_server(accept, "localhost", 0, family=socket.AF_INET) as server:
        yield f"http://localhost:{server.sockets[0].getsockname()[1]}", sides.get


async def connected(proxied: Running, early: bytes = b"") -> Side:
    reader, writer = await asyncio.open_connection("localhost", proxied.proxy.public_port)
    writer.write(
        b"GET /cep/realtime HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" + early
    )
    async with asyncio.timeout(SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n" in head
    return Side(reader, writer, masked=False)


def fragment(opcode: int, payload: bytes) -> bytes:
    whole = frame(opcode, payload)
    return bytes([whole[0] & 0x7F]) + whole[1:]


async def shaken(client: Side, upstream: Side) -> None:
    client.send(SHAKE)
    assert (await upstream.receive()).opcode == TEXT
    upstream.send(frame(TEXT, ACCEPTED))
    assert await client.receive() == Frame(TEXT, ACCEPTED)


# What crosses ---------------------------------------------------------------------------------------------------------


async def test_bytes_come_down_as_they_are_and_as_they_come() -> None:
    async with relayed() as (proxied, client, upstream):
        await shaken(client, upstream)
        sent = fragment(TEXT, b"a" * 300) + fragment(CONTINUATION, b"") + frame(CONTINUATION, b"b") + frame(TEXT, b"")
        for place in range(len(sent)):
            upstream.send(sent[place : place + 1])
            await upstream.writer.drain()
        assert await client.take(len(sent)) == sent
        assert proxied.crossed("websocket", "down") == (3, len(ACCEPTED) + 301)


async def test_first_part_of_a_message_passes_before_the_last_has_come() -> None:
    async with relayed() as (_, client, upstream):
        first = frame(TEXT, b"x" * 100_000)[:50_000]
        upstream.send(first)
        assert await client.take(len(first)) == first


async def test_what_a_client_sends_before_it_is_accepted_is_not_lost() -> None:
    async with raw_upstream() as (url, accepted), running(url) as proxied:
        client = await connected(proxied, SHAKE)
        upstream = await accepted()
        assert b"com.cumulocity.authn" in (await upstream.receive()).payload
        await cut_off(proxied, client, upstream)


async def test_much_that_a_client_sends_before_it_is_accepted_is_not_lost() -> None:
    publish = b'[{"channel":"/service/x","data":"' + b"x" * 50_000 + b'"}]'
    async with raw_upstream() as (url, accepted), running(url, {"gate.grants": [EVERYTHING]}) as proxied:
        client = await connected(proxied, SHAKE + frame(TEXT, publish, mask=MASK) * 10)
        upstream = await accepted()
        assert b"com.cumulocity.authn" in (await upstream.receive()).payload
        for _ in range(10):
            assert await upstream.receive() == Frame(TEXT, publish)
        await cut_off(proxied, client, upstream)


async def test_upstream_may_close_in_the_same_breath_as_it_accepts() -> None:
    async with raw_upstream(close_frame(1013, b"full")) as (url, accepted), running(url) as proxied:
        client = await connected(proxied)
        assert await client.receive() == Frame(CLOSE, (1013).to_bytes(2) + b"full")
        await cut_off(proxied, client, await accepted())


async def test_handshake_in_fragments_is_filled_in() -> None:
    async with relayed() as (_, client, upstream):
        text = msgspec.json.encode([handshake()])
        head = frame(TEXT, text[:20], mask=MASK)
        client.send(bytes([head[0] & 0x7F]) + head[1:] + frame(PING, b"?", mask=MASK))
        client.send(frame(CONTINUATION, text[20:], mask=MASK))
        assert await upstream.receive() == Frame(PING, b"?")
        assert b"com.cumulocity.authn" in (await upstream.receive()).payload


async def test_what_goes_up_is_masked_anew() -> None:
    async with relayed() as (_, client, upstream):
        connect = b'[{"channel":"/meta/connect","clientId":"c"}]'
        for _ in range(3):
            client.send(frame(TEXT, connect, mask=MASK))
        sent = [await upstream.take(2 + 4 + len(connect)) for _ in range(3)]
        masks = {data[2:6] for data in sent}
        assert len(masks) == 3
        assert MASK not in masks


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_pings_and_pongs_pass_end_to_end(opcode: int) -> None:
    async with relayed() as (_, client, upstream):
        client.send(frame(opcode, b"from below", mask=MASK))
        assert await upstream.receive() == Frame(opcode, b"from below")
        upstream.send(frame(TEXT, b"[]") + frame(opcode, b"from above") + frame(TEXT, b"[1]"))
        assert [(await client.receive()).payload for _ in range(3)] == [b"[]", b"from above", b"[1]"]


# Reading begins at the next boundary ----------------------------------------------------------------------------------


async def test_answer_is_observed_behind_a_message_that_was_already_under_way() -> None:
    async with relayed() as (proxied, client, upstream):
        upstream.send(fragment(TEXT, b"[1,"))
        assert await client.take(5) == fragment(TEXT, b"[1,")
        client.send(SHAKE)
        await upstream.receive()
        echoed = b'[{"channel":"/meta/handshake","successful":true,"ext":{"com.cumulocity.authn":{"token":"x"}}}]'
        upstream.send(frame(CONTINUATION, b"2]") + frame(TEXT, echoed) + frame(TEXT, b"[3]"))
        assert await client.take(4) == frame(CONTINUATION, b"2]")
        assert await client.receive() == Frame(TEXT, b'[{"channel":"/meta/handshake","successful":true,"ext":{}}]')
        assert await client.receive() == Frame(TEXT, b"[3]")
        assert proxied.handshakes() == {("accepted", "ok"): 1}


async def test_answer_in_fragments_with_a_ping_between_is_observed() -> None:
    async with relayed() as (proxied, client, upstream):
        client.send(SHAKE)
        await upstream.receive()
        upstream.send(fragment(TEXT, ACCEPTED[:9]) + frame(PING, b"?") + fragment(CONTINUATION, ACCEPTED[9:20]))
        assert await client.receive() == Frame(PING, b"?")
        upstream.send(frame(CONTINUATION, ACCEPTED[20:]) + frame(TEXT, b"[]"))
        assert await client.receive() == Frame(TEXT, ACCEPTED)
        assert await client.receive() == Frame(TEXT, b"[]")
        assert proxied.handshakes() == {("accepted", "ok"): 1}


async def test_our_own_reply_waits_for_the_message_that_is_under_way() -> None:
    async with relayed({"handshake.client_authn": "refuse"}) as (_, client, upstream):
        upstream.send(fragment(TEXT, b"[1,"))
        assert await client.take(5) == fragment(TEXT, b"[1,")
        own = handshake(ext={"com.cumulocity.authn": {"token": "b3du"}})
        client.send(frame(TEXT, msgspec.json.encode([handshake(), own]), mask=MASK))
        await upstream.receive()
        upstream.send(frame(CONTINUATION, b"2]") + frame(TEXT, ACCEPTED))
        assert await client.take(4) == frame(CONTINUATION, b"2]")
        assert b'"successful":false' in (await client.receive()).payload
        assert await client.receive() == Frame(TEXT, ACCEPTED)
        assert (await client.receive()).opcode == CLOSE


# The end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(frame(TEXT, b"[]"), 1002, id="unmasked"),
        pytest.param(b"\xc1\x80" + MASK, 1002, id="compressed"),
        pytest.param(b"\x83\x80" + MASK, 1002, id="unknown opcode"),
        pytest.param(frame(CONTINUATION, b"", mask=MASK), 1002, id="fragment of nothing"),
        pytest.param(b"\x81\xff" + (1 << 40).to_bytes(8) + MASK, 1009, id="announced as endless"),
        pytest.param(frame(TEXT, b"\xff", mask=MASK), 1007, id="no UTF-8"),
        pytest.param(frame(BINARY, b"", mask=MASK), 1003, id="binary"),
        pytest.param(frame(CLOSE, (1005).to_bytes(2), mask=MASK), 1002, id="code that must not be sent"),
        pytest.param(close_frame(1000, b"\xff", mask=MASK), 1007, id="reason that is no UTF-8"),
    ],
)
async def test_what_a_client_breaks_is_told_by_its_code(sent: bytes, code: int) -> None:
    async with relayed() as (_, client, upstream):
        client.send(sent + frame(TEXT, b"[]", mask=MASK))
        closing = await client.receive()
        assert (closing.opcode, int.from_bytes(closing.payload[:2])) == (CLOSE, code)
        told = await upstream.receive()
        assert (told.opcode, int.from_bytes(told.payload[:2])) == (CLOSE, 1001)


async def test_client_that_broke_the_protocol_is_heard_no_more_and_told_why() -> None:
    async with relayed() as (proxied, client, upstream):
        [relayed_socket] = proxied.proxy._websockets.sockets
        client.send(frame(TEXT, b"[]") + b"x" * 1_000_000)
        assert (await upstream.receive()).opcode == CLOSE
        assert (await client.receive()).payload[:2] == (1002).to_bytes(2)
        client.send(b"x" * 1_000_000)
        await client.writer.drain()
        assert len(relayed_socket._reader.release()) <= 1_000_000
        client.send(b"x" * 1_000_000)
        await client.writer.drain()
        assert relayed_socket._reader.release() == b""


@pytest.mark.parametrize(
    ("last", "code"),
    [
        pytest.param(close_frame(4321, mask=MASK), 4321, id="close"),
        pytest.param(b"\x83\x80" + MASK, 1002, id="violation"),
    ],
)
async def test_what_answers_the_last_message_of_a_client_comes_down_before_the_end(last: bytes, code: int) -> None:
    async with relayed() as (_, client, upstream):
        client.send(frame(TEXT, b"[]", mask=MASK) + frame(PING, b"?", mask=MASK) + last)
        assert [(await upstream.receive()).opcode for _ in range(3)] == [TEXT, PING, CLOSE]
        upstream.send(frame(TEXT, b"[1]") + frame(PONG, b"?") + close_frame(code))
        assert [await client.receive() for _ in range(2)] == [Frame(TEXT, b"[1]"), Frame(PONG, b"?")]
        assert await client.receive() == Frame(CLOSE, code.to_bytes(2))
        assert (await client.rest(), await upstream.rest()) == (b"", b"")


async def test_client_that_ends_it_waits_for_upstream_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.relay.sockets.LAST_ANSWER_SECONDS", 0.05)
    async with relayed() as (_, client, upstream):
        client.send(close_frame(4321, mask=MASK))
        assert await upstream.receive() == Frame(CLOSE, (4321).to_bytes(2))
        assert await client.receive() == Frame(CLOSE, (4321).to_bytes(2))
        assert await client.rest() == b""


@pytest.mark.parametrize("is_client", [True, False], ids=["client", "upstream"])
async def test_side_that_broke_the_protocol_is_told_at_once_that_nothing_more_comes(
    monkeypatch: pytest.MonkeyPatch, *, is_client: bool
) -> None:
    monkeypatch.setattr("proxy.relay.sockets.CLOSE_SECONDS", 60)
    async with relayed() as (_, client, upstream):
        breaking = client if is_client else upstream
        breaking.send(b"\xf3" * 1_000_000)  # with much behind it that is not read as frames any more
        assert (await breaking.receive()).payload[:2] == (1002).to_bytes(2)
        assert await breaking.rest() == b""


@pytest.mark.parametrize(
    ("sent", "code", "below"),
    [
        pytest.param(frame(TEXT, b"[]", mask=MASK), 1002, 1011, id="masked"),
        pytest.param(b"\xc1\x00", 1002, 1011, id="compressed"),
        pytest.param(frame(CONTINUATION, b""), 1002, 1011, id="fragment of nothing"),
        pytest.param(frame(BINARY, b"x"), 1003, 1011, id="binary"),
    ],
)
async def test_what_upstream_breaks_is_told_by_its_code(sent: bytes, code: int, below: int) -> None:
    async with relayed() as (_, client, upstream):
        upstream.send(frame(TEXT, b"[1]") + sent)
        assert await upstream.receive() == Frame(CLOSE, code.to_bytes(2))
        assert await client.receive() == Frame(TEXT, b"[1]")
        assert int.from_bytes((await client.receive()).payload[:2]) == below


@pytest.mark.parametrize("is_client", [True, False], ids=["client", "upstream"])
@pytest.mark.parametrize("code", [1000, 1001, 4321])
async def test_close_crosses_and_both_connections_end(code: int, *, is_client: bool) -> None:
    async with relayed() as (_, client, upstream):
        await shaken(client, upstream)
        one, other = (client, upstream) if is_client else (upstream, client)
        one.send(close_frame(code, b"why", mask=MASK if is_client else b""))
        assert await other.receive() == Frame(CLOSE, code.to_bytes(2) + b"why")
        other.send(close_frame(code, mask=b"" if is_client else MASK))
        assert (await one.receive()).payload[:2] == code.to_bytes(2)
        assert (await one.rest(), await other.rest()) == (b"", b"")


@pytest.mark.parametrize("is_client", [True, False], ids=["client", "upstream"])
async def test_side_that_vanishes_is_told_to_the_other(*, is_client: bool) -> None:
    async with relayed() as (_, client, upstream):
        await shaken(client, upstream)
        one, other = (client, upstream) if is_client else (upstream, client)
        one.writer.transport.abort()
        closing = await other.receive()
        assert (closing.opcode, int.from_bytes(closing.payload)) == (CLOSE, 1001 if is_client else 1011)


async def test_upstream_that_vanishes_within_a_frame_ends_the_client_without_a_frame_inside_it() -> None:
    async with relayed() as (_, client, upstream):
        part = frame(TEXT, b"x" * 1000)[:500]
        upstream.send(part)
        assert await client.take(500) == part
        upstream.writer.transport.abort()
        assert await client.rest() == b""


async def test_side_that_answers_no_close_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.relay.sockets.CLOSE_SECONDS", 0.05)
    async with relayed() as (proxied, client, upstream):
        client.send(close_frame(1000, mask=MASK))
        assert (await upstream.receive()).opcode == CLOSE
        assert await upstream.rest() == b""
        await until(lambda: proxied.count("connections", transport="websocket") == 0)


# Who takes nothing, and who says nothing ------------------------------------------------------------------------------


async def test_client_that_does_not_read_pauses_its_upstream_and_nobody_else() -> None:
    async with raw_upstream() as (url, accepted), running(url) as proxied:
        deaf, flooding = await connected(proxied), await accepted()
        other, its_upstream = await connected(proxied), await accepted()
        deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]
        [stalled] = [
            each
            for each in proxied.proxy._websockets.sockets
            if each.upstream.transport.get_extra_info("sockname") == flooding.writer.get_extra_info("peername")
        ]
        await until_stalled(flooding, frame(TEXT, b"x" * 60_000))
        held = stalled.client.transport.get_write_buffer_size()
        assert 0 < held < 512 * 1024
        its_upstream.send(frame(TEXT, b"[]"))
        assert await other.receive() == Frame(TEXT, b"[]")
        deaf.reader._transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(20):
            assert (await deaf.receive()).payload == b"x" * 60_000
        await cut_off(proxied, deaf, flooding, other, its_upstream)


async def test_client_that_does_not_read_pauses_its_upstream_when_it_ends_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.relay.sockets.LAST_ANSWER_SECONDS", 60)
    async with relayed() as (proxied, client, upstream):
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await until_stalled(upstream, frame(TEXT, b"x" * 60_000))
        client.send(close_frame(1000, mask=MASK))
        assert (await upstream.receive()).opcode == CLOSE
        await until_stalled(upstream, frame(TEXT, b"x" * 60_000))
        [relayed_socket] = proxied.proxy._websockets.sockets
        assert 0 < relayed_socket.client.transport.get_write_buffer_size() < 512 * 1024


async def until_stalled(side: Side, data: bytes) -> None:
    """Send until nothing is taken any more."""
    for _ in range(2000):
        side.send(data)
        try:
            async with asyncio.timeout(0.2):
                await side.writer.drain()
        except TimeoutError:
            return
    raise AssertionError("all of it was taken")


async def test_quiet_sides_are_asked_whether_they_are_there() -> None:
    async with relayed({"limits.heartbeat_seconds": 0.2}) as (_, client, upstream):
        for _ in range(3):
            for side, mask in ((client, MASK), (upstream, b"")):
                ping = await side.receive()
                assert ping.opcode == PING
                side.send(frame(PONG, ping.payload, mask=mask))
        client.send(frame(PONG, b"mine", mask=MASK))
        while (read := await upstream.receive()).opcode == PING:  # our pongs stay with us
            upstream.send(frame(PONG, read.payload))
        assert read == Frame(PONG, b"mine")


async def test_side_that_answers_no_ping_is_given_up() -> None:
    async with relayed({"limits.heartbeat_seconds": 0.2}) as (_, client, upstream):
        while (read := await upstream.receive()).opcode == PING:
            upstream.send(frame(PONG, read.payload))
        assert read == Frame(CLOSE, (1001).to_bytes(2))
        assert (await client.receive()).opcode == PING


async def test_small_messages_wait_for_nobody() -> None:
    """Nagle's algorithm against delayed acknowledgements would be 40 ms for every message."""
    async with relayed() as (proxied, _, _):
        [relayed_socket] = proxied.proxy._websockets.sockets
        for leg in (relayed_socket.client, relayed_socket.upstream):
            kernel = leg.transport.get_extra_info("socket")
            assert kernel.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
