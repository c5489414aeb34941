"""Every way in which a WebSocket ends: what each side is told, how its handshake counts, and that nothing is left."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from proxy.relay.frames import BINARY, CLOSE, TEXT, FrameReader, close_frame, frame
from tests.conftest import Running, running, until
from tests.relay.raw import UPGRADE, client, head, hold_on, post, recording, reset
from tests.relay.test_websocket_bytes import (
    ACCEPTED,
    MASK,
    SECONDS,
    SHAKE,
    Side,
    connected,
    raw_upstream,
    shaken,
)


PARTLY = slice(0, -3)
UP = frame(TEXT, b'[{"channel":"/service/x"}]', mask=MASK)
DOWN = frame(TEXT, b"[1,2,3]")


def files() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - no path is wanted


def is_nothing_left(proxied: Running) -> bool:
    proxy = proxied.proxy
    return (
        not proxy._websockets.sockets
        and not proxy._listener.doors
        and not len(proxy._live)
        and proxied.count("connections", transport="websocket") == 0
    )


@asynccontextmanager
async def ending() -> AsyncIterator[tuple[Running, Side, Side]]:
    """An open WebSocket, of which nothing must be left in the end, by itself."""
    async with raw_upstream() as (url, accepted), running(url) as proxied:
        before = files()
        client = await connected(proxied)
        upstream = await accepted()
        [relayed] = proxied.proxy._websockets.sockets
        yield proxied, client, upstream
        await until(lambda: is_nothing_left(proxied))
        for deadlines in (proxied.proxy._websockets.sockets.patience, proxied.proxy._websockets.sockets.closing):
            assert not deadlines._waiting
        assert relayed.client.transport.is_closing()
        assert relayed.upstream.transport.is_closing()
        for side in (client, upstream):
            side.writer.transport.abort()
        await until(lambda: files() <= before)


async def told(side: Side, mask: bytes = b"") -> bytes | None:
    """What the close frame says, if one comes before the connection ends; it is answered as RFC 6455 wants it."""
    frames = FrameReader(masked=not mask, limit=1 << 20)
    async with asyncio.timeout(SECONDS):
        try:
            while data := await side.reader.read(1 << 16):
                frames.feed(data)
                while (read := frames.read()) is not None:
                    if read.opcode == CLOSE:
                        with contextlib.suppress(RuntimeError):  # it has said that it says no more
                            side.send(frame(CLOSE, read.payload[:2], mask=mask))
                        assert await side.rest() == b""
                        side.writer.close()
                        return read.payload
        except ConnectionError:
            pass
    side.writer.close()
    return None


Act = Callable[[Running, Side, Side], Awaitable[None]]


def does(client: bytes = b"", upstream: bytes = b"", *, then: str = "", each: int = 1 << 20) -> Act:
    """What both sides send, in pieces of that many bytes, and what they do then: `client eof`, `upstream reset`, ..."""

    async def act(_: Running, below: Side, above: Side) -> None:
        for side, data in ((below, client), (above, upstream)):
            for at in range(0, len(data), each):
                side.send(data[at : at + each])
                await side.writer.drain()
        for name, side in (("client", below), ("upstream", above)):
            if f"{name} eof" in then:
                side.writer.write_eof()
            if f"{name} reset" in then:
                reset(side.writer)

    return act


async def drain(proxied: Running, _below: Side, _above: Side) -> None:
    proxied.proxy._live.draining = True
    for connection in tuple(proxied.proxy._live._there):
        connection.leave()


def said(code: int, text: bytes = b"") -> bytes:
    return code.to_bytes(2) + text


NO_CODE = frame(CLOSE, b"")
NO_CODE_UP = frame(CLOSE, b"", mask=MASK)
EITHER = "client_gone", "upstream_gone"

# id, what happens, what the client and upstream are told by a close frame, why a pending handshake gets no answer
ENDINGS = [
    ("client closes", does(close_frame(4321, b"why", mask=MASK)), said(4321, b"why"), said(4321, b"why"),
     "client_gone"),
    ("client closes without a code", does(NO_CODE_UP), said(1000), said(1000), "client_gone"),
    ("client closes in pieces", does(close_frame(4321, b"why", mask=MASK), each=1), said(4321, b"why"),
     said(4321, b"why"), "client_gone"),
    ("client closes and says no more", does(close_frame(4321, mask=MASK), then="client eof"), None, said(4321),
     "client_gone"),
    ("client closes and is gone", does(close_frame(4321, mask=MASK), then="client reset"), None,
     (said(4321), said(1001)), "client_gone"),
    ("client closes twice", does(close_frame(4321, mask=MASK) + close_frame(4322, mask=MASK)), said(4321), said(4321),
     "client_gone"),
    ("client closes within a message", does(bytes([UP[0] & 0x7F]) + UP[1:] + close_frame(4321, mask=MASK)), said(4321),
     said(4321), "client_gone"),
    ("client says no more", does(then="client eof"), None, said(1001), "client_gone"),
    ("client is gone", does(then="client reset"), None, said(1001), "client_gone"),
    ("client says no more within a frame", does(UP[PARTLY], then="client eof"), None, said(1001), "client_gone"),
    ("client is gone within a frame", does(UP[PARTLY], then="client reset"), None, said(1001), "client_gone"),
    ("client is gone within a close frame", does(close_frame(4321, mask=MASK)[PARTLY], then="client reset"), None,
     said(1001), "client_gone"),
    ("client breaks the protocol", does(DOWN), said(1002), said(1001), "client_gone"),
    ("client sends binary", does(frame(BINARY, b"x", mask=MASK)), said(1003, b"Send text"), said(1001, b"Send text"),
     "client_gone"),
    ("client closes by a code that must not be sent", does(frame(CLOSE, said(1006), mask=MASK)), said(1002), said(1001),
     "client_gone"),
    ("upstream closes", does(upstream=close_frame(4321, b"why")), said(4321, b"why"), said(4321, b"why"),
     "upstream_gone"),
    ("upstream closes without a code", does(upstream=NO_CODE), said(1000), said(1000), "upstream_gone"),
    ("upstream closes in pieces", does(upstream=close_frame(4321, b"why"), each=1), said(4321, b"why"),
     said(4321, b"why"), "upstream_gone"),
    ("upstream closes and says no more", does(upstream=close_frame(4321), then="upstream eof"), said(4321), said(4321),
     "upstream_gone"),
    ("upstream says no more", does(then="upstream eof"), said(1011), None, "upstream_gone"),
    ("upstream is gone", does(then="upstream reset"), said(1011), None, "upstream_gone"),
    ("upstream says no more within a close frame", does(upstream=close_frame(4321)[PARTLY], then="upstream eof"),
     said(1011), None, "upstream_gone"),
    ("upstream breaks the protocol", does(upstream=UP), said(1011), said(1002), "upstream_gone"),
    ("upstream closes by a code that must not be sent", does(upstream=frame(CLOSE, said(1005))), said(1011), said(1002),
     "upstream_gone"),
    ("both close", does(close_frame(1000, mask=MASK), close_frame(1000)), said(1000), said(1000), EITHER),
    ("both say no more", does(then="client eof, upstream eof"), None, (said(1001), None), EITHER),
    ("both are gone", does(then="client reset, upstream reset"), None, None, EITHER),
    ("client closes, upstream is gone", does(close_frame(4321, mask=MASK), then="upstream reset"),
     (said(4321), said(1011)), None, EITHER),
    ("client is gone, upstream closes", does(upstream=close_frame(4321), then="client reset"), None,
     (said(4321), said(1001)), EITHER),
    ("client breaks the protocol and is gone", does(DOWN, then="client reset"), None, said(1001), "client_gone"),
    ("both break the protocol", does(DOWN, UP), (said(1002), said(1011)), (said(1002), said(1001)), EITHER),
    ("we leave", drain, said(1001, b"Connect again"), said(1001, b"Connect again"), "drained"),
]  # fmt: skip


def among(expected: object) -> tuple[object, ...]:
    """What may be; sides that act at once are heard in any order."""
    return expected if isinstance(expected, tuple) else (expected,)


@pytest.mark.parametrize("pending", [False, True], ids=["", "within a handshake"])
@pytest.mark.parametrize(("act", "below", "above", "reason"), [pytest.param(*row, id=name) for name, *row in ENDINGS])
async def test_each_side_is_told_its_code_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, act: Act, below: object, above: object, reason: object, *, pending: bool
) -> None:
    monkeypatch.setattr("proxy.relay.sockets.CLOSE_SECONDS", 60)  # nobody has to be cut off
    monkeypatch.setattr("proxy.relay.sockets.LAST_ANSWER_SECONDS", 60)
    async with ending() as (proxied, client, upstream):
        if pending:
            client.send(SHAKE)
            assert (await upstream.receive()).opcode == TEXT
        else:
            await shaken(client, upstream)
        await act(proxied, client, upstream)
        async with asyncio.TaskGroup() as group:
            client_told = group.create_task(told(client, MASK))
            upstream_told = group.create_task(told(upstream))
        assert client_told.result() in among(below)
        assert upstream_told.result() in among(above)
    [outcome] = proxied.handshakes()
    assert outcome in ([("unanswered", each) for each in among(reason)] if pending else [("accepted", "ok")])
    assert sum(proxied.handshakes().values()) == 1


@pytest.mark.parametrize("then", ["upstream eof", "upstream reset"])
async def test_client_is_told_nothing_within_a_frame_that_upstream_does_not_end(then: str) -> None:
    async with ending() as (proxied, client, upstream):
        await shaken(client, upstream)
        upstream.send(DOWN[PARTLY])
        assert await client.take(len(DOWN) - 3) == DOWN[PARTLY]
        await does(then=then)(proxied, client, upstream)
        assert await client.rest() == b""


@pytest.mark.parametrize("then", ["client eof", "client reset"])
async def test_answer_to_a_handshake_that_comes_when_the_client_is_gone_does_not_count(then: str) -> None:
    async with ending() as (proxied, client, upstream):
        client.send(SHAKE)
        assert (await upstream.receive()).opcode == TEXT
        await does(then=then)(proxied, client, upstream)
        assert (await upstream.receive()).opcode == CLOSE
        upstream.send(frame(TEXT, ACCEPTED) + close_frame(1001))
        assert await upstream.rest() == b""
    assert proxied.handshakes() == {("unanswered", "client_gone"): 1}


@pytest.mark.parametrize("is_client", [True, False], ids=["client", "upstream"])
async def test_side_that_is_told_and_says_nothing_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, *, is_client: bool
) -> None:
    monkeypatch.setattr("proxy.relay.sockets.CLOSE_SECONDS", 0.1)
    monkeypatch.setattr("proxy.relay.sockets.LAST_ANSWER_SECONDS", 0.1)
    async with ending() as (_, client, upstream):
        one, other = (upstream, client) if is_client else (client, upstream)
        one.send(close_frame(4321, mask=b"" if is_client else MASK))
        assert (await other.receive()).payload == said(4321)
        assert await other.rest() == b""


# When this process ends -----------------------------------------------------------------------------------------------


async def test_who_has_asked_for_something_when_this_process_ends_is_told_to_come_again() -> None:
    async with recording(hold_on) as upstream, AsyncExitStack() as stack:
        async with running(upstream.url) as proxied:
            asking = [await stack.enter_async_context(client(proxied)) for _ in range(2)]
            asking[0].send(UPGRADE)
            await upstream.next()
            asking[1].send(head("Content-Length: 10") + b"\r\n[")
            await until(lambda: all(door._state in {"opening", "body"} for door in proxied.proxy._listener.doors))
        for each in asking:
            answer = await each.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert proxied.upgrades() == {("refused", "draining"): 1}


async def test_who_asks_for_nothing_when_this_process_ends_is_not_reset() -> None:
    async with recording() as upstream, AsyncExitStack() as stack:
        async with running(upstream.url) as proxied:
            idle = await stack.enter_async_context(client(proxied))
            idle.send(post())
            assert (await idle.answer()).status == 200
        assert await asyncio.wait_for(idle.reader.read(), SECONDS) == b""


# Before it is open ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [b"", SHAKE], ids=["", "behind a handshake"])
@pytest.mark.parametrize("is_reset", [True, False], ids=["gone", "says no more"])
async def test_client_that_goes_while_upstream_is_dialled_leaves_nothing(early: bytes, *, is_reset: bool) -> None:
    async with recording(hold_on) as upstream, running(upstream.url) as proxied:
        before = files()
        async with client(proxied) as one:
            one.send(UPGRADE + early)
            asked = await upstream.next()
            if is_reset:
                reset(one.writer)
            else:
                one.writer.write_eof()
            assert await asyncio.wait_for(asked.reader.read(), SECONDS) == b""
            asked.writer.transport.abort()
        await until(lambda: is_nothing_left(proxied))
        await until(lambda: files() <= before)
        assert proxied.upgrades() == {("unanswered", "client_gone"): 1}
        assert proxied.handshakes() == {}


@pytest.mark.parametrize("said_first", [b"", b"HTTP/1.1 101 Switching"], ids=["", "within its answer"])
async def test_upstream_that_goes_while_it_is_dialled_leaves_nothing(said_first: bytes) -> None:
    async with recording(hold_on) as upstream, running(upstream.url) as proxied:
        before = files()
        async with client(proxied) as one:
            one.send(UPGRADE + SHAKE)
            asked = await upstream.next()
            asked.writer.write(said_first)
            await asked.writer.drain()
            reset(asked.writer)
            assert await one.statuses() == [502]
        await until(lambda: is_nothing_left(proxied))
        await until(lambda: files() <= before)
        assert proxied.upgrades() == {("refused", "unavailable"): 1}
        assert proxied.handshakes() == {}
