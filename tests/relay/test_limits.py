"""Every limit on both transports: what the client is told, and that it is counted once."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec
import pytest

from proxy.gate.keys import generated, stored
from proxy.http1 import chunk
from proxy.relay.frames import CLOSE, CONTINUATION, PING, TEXT, Frame, close_code, close_frame, frame
from tests.conftest import EVERYTHING, Running, handshake, running, until
from tests.relay.raw import (
    EMPTY,
    SECONDS,
    UPGRADE,
    Answer,
    Asked,
    Client,
    client,
    head,
    hold_on,
    post,
    recording,
    reset,
)
from tests.relay.test_door import deafen, flood
from tests.relay.test_websocket_bytes import (
    MASK,
    SHAKE,
    Side,
    cut_off,
    raw_upstream,
    relayed,
    shaken,
    until_stalled,
)


HANDSHAKE: Final = msgspec.json.encode([handshake()])
CONNECT: Final = b'[{"channel":"/meta/connect","id":"3","clientId":"c","connectionType":"long-polling"}]'
KEYS: Final = {name: generated(name) for name in ("sensor", "other")}
IDENTIFIED: Final[dict[str, Any]] = {
    "gate.identity": ["bearer"],
    "clients": [{"name": name, "key": stored(key)} for name, key in KEYS.items()],
    "gate.grants": [EVERYTHING],
}
BEHIND_A_PROXY: Final = {"gate.trusted_proxies": ["127.0.0.0/8"]}


def key(name: str = "sensor") -> str:
    """The header that proves who a client is."""
    return f"Authorization: Bearer {KEYS[name]}"


def upgrade(*lines: str) -> bytes:
    return UPGRADE.replace(b"\r\n\r\n", b"\r\n" + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n")


def reached(proxied: Running) -> dict[str, float]:
    """How often each limit was reached that was."""
    return {
        sample.labels["limit"]: sample.value
        for family in proxied.proxy.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "c8y_realtime_proxy_limits_reached_total" and sample.value
    }


def is_passing_refusal(answer: Answer, limit: str) -> bool:
    """Whether a handshake was refused in the shape of Bayeux, for a while, by the name of a limit."""
    [reply] = msgspec.json.decode(answer.body)
    return (
        answer.status == 200
        and reply["successful"] is False
        and f"limits.{limit}" in reply["error"]
        and reply["advice"]["reconnect"] == "handshake"
        and reply["advice"]["interval"] > 0
    )


async def closed(side: Side) -> tuple[int | None, bytes]:
    """Code and text of the close frame that comes next, but for pings."""
    while (read := await side.receive()).opcode == PING:
        pass
    assert read.opcode == CLOSE, read
    return close_code(read.payload)


async def is_cut_off(one: Client) -> bool:
    """Whether the connection ends without a word."""
    return await one.rest() == b""


async def pause(seconds: float) -> None:
    """Let time pass in which nothing is to happen."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


# Connections in total -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [post(HANDSHAKE), UPGRADE], ids=["POST", "upgrade"])
async def test_connection_too_many_is_told_to_come_back(asked: bytes) -> None:
    async with recording(hold_on) as upstream, running(upstream.url, {"limits.connections": 1}) as proxied:
        async with client(proxied) as first, client(proxied) as second:
            first.send(post())
            await upstream.next()
            second.send(asked)
            [answer] = await second.answers()
            assert (answer.status, b"limits.connections" in answer.body) == (429, True)
            assert answer.headers["retry-after"]
        assert reached(proxied) == {"connections": 1}
        assert proxied.upgrades() == ({("refused", "limit"): 1} if asked is UPGRADE else {})
        assert len(upstream.requests) == 1


async def test_connection_too_many_is_judged_before_who_it_is_and_what_it_sends() -> None:
    settings = IDENTIFIED | {"limits.connections": 1}
    async with recording() as upstream, running(upstream.url, settings) as proxied:
        async with client(proxied), client(proxied) as second:
            second.send(head("Content-Length: 1000000", "Authorization: Bearer nonsense") + b"\r\n")
            assert await second.statuses() == [429]


async def test_websockets_count_among_the_connections_until_they_end() -> None:
    async with relayed({"limits.connections": 1}) as (proxied, one, upstream):
        async with client(proxied) as second:
            second.send(post())
            assert await second.statuses() == [429]
        await cut_off(proxied, one, upstream)
        async with client(proxied) as third:
            third.send(post(b"nonsense"))
            assert await third.statuses() == [400]


# Strangers ------------------------------------------------------------------------------------------------------------


async def test_oldest_stranger_makes_room() -> None:
    async with recording() as upstream, running(upstream.url, {"limits.strangers": 2}) as proxied:
        async with client(proxied) as first:
            await until(lambda: len(proxied.proxy._listener.doors) == 1)
            first.send(head())
            async with client(proxied) as second, client(proxied) as third:
                assert await is_cut_off(first)
                for one in (second, third):
                    one.send(post())
                    assert (await one.answer()).status == 200
        assert reached(proxied) == {"strangers": 1}


async def test_strangers_who_come_at_once_are_no_more_than_the_limit() -> None:
    """They are accepted many in one turn of the event loop, before the first of those cut off is told."""
    async with recording() as upstream, running(upstream.url, {"limits.strangers": 5}) as proxied:
        sockets = [socket.create_connection(("127.0.0.1", proxied.proxy.public_port)) for _ in range(60)]
        await until(lambda: reached(proxied) == {"strangers": 55})
        await until(lambda: len(proxied.proxy._listener.doors) == 5)
        assert len(proxied.proxy._listener.strangers) == 5
        for each in sockets:
            each.close()
        await until(lambda: not proxied.proxy._listener.doors)


async def test_who_may_come_in_makes_room_for_nobody() -> None:
    async with recording() as upstream, running(upstream.url, {"limits.strangers": 1}) as proxied:
        async with client(proxied) as known:
            known.send(post())
            assert (await known.answer()).status == 200
            async with client(proxied) as first, client(proxied):
                assert await is_cut_off(first)
                known.send(post())
                assert (await known.answer()).status == 200


async def test_who_did_not_say_who_it_is_stays_a_stranger() -> None:
    settings = IDENTIFIED | {"limits.strangers": 1}
    async with recording() as upstream, running(upstream.url, settings) as proxied:
        async with client(proxied) as nobody, client(proxied) as known:
            assert await is_cut_off(nobody)
            known.send(post(HANDSHAKE))
            [refused] = msgspec.json.decode((await known.answer()).body)
            assert refused["successful"] is False
            assert len(proxied.proxy._listener.strangers) == 1
            known.send(post(b"[]", key()))
            assert (await known.answer()).status == 200
            assert not proxied.proxy._listener.strangers
        assert reached(proxied) == {"strangers": 1}


async def test_thousand_strangers_hold_no_more_than_a_head_each() -> None:
    settings = {"limits.head_bytes": 1000}
    async with recording() as upstream, running(upstream.url, settings) as proxied, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(proxied)) for _ in range(200)]
        for number, one in enumerate(clients):
            one.send(b"POST /cep/realtime HTTP/1.1\r\nCookie: " + b"x" * (900 if number % 2 else 50_000))
        doors = proxied.proxy._listener.doors
        await until(lambda: sum(len(door._buffer) > 900 for door in doors) == 100)
        await until(lambda: reached(proxied) == {"head_bytes": 100})
        assert sum(len(door._buffer) + len(door._came) for door in doors) < 200 * 1000


# Connections of a client ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def sharing(
    settings: dict[str, Any] | None = None,
) -> AsyncIterator[tuple[Running, Callable[[], Awaitable[Side]]]]:
    """A proxy whose clients may have one connection each; yields how to get at upstream's WebSockets, too."""
    async with raw_upstream() as (url, accepted):
        async with running(url, IDENTIFIED | {"limits.client_connections": 1} | (settings or {})) as proxied:
            yield proxied, accepted


def taken(proxied: Running) -> dict[tuple[str, str], int]:
    return proxied.proxy._websockets.carriage.shares._taken


async def opened(proxied: Running, name: str = "sensor") -> Side:
    """A WebSocket of a client with a key."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxied.proxy.public_port)
    writer.write(upgrade(key(name)))
    async with asyncio.timeout(SECONDS):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return Side(reader, writer, masked=False)


async def test_client_with_too_many_connections_is_told_so() -> None:
    async with sharing() as (proxied, accepted):
        side = await opened(proxied)
        upstream = await accepted()
        async with client(proxied) as one, client(proxied) as another:
            one.send(post(HANDSHAKE, key()))
            assert is_passing_refusal(await one.answer(), "client_connections")
            assert proxied.handshakes("long-polling") == {("refused", "limit"): 1}
            one.send(post(CONNECT, key()))
            [answer] = await one.answers()
            assert (answer.status, b"limits.client_connections" in answer.body) == (429, True)
            another.send(upgrade(key()))
            [answer] = await another.answers()
            assert (answer.status, b"limits.client_connections" in answer.body) == (429, True)
        assert reached(proxied) == {"client_connections": 3}
        assert proxied.upgrades() == {("accepted", "ok"): 1, ("refused", "limit"): 1}
        others = await opened(proxied, "other")
        await cut_off(proxied, side, upstream, others, await accepted())
        assert taken(proxied) == {}


async def test_posts_and_websockets_count_together() -> None:
    settings = IDENTIFIED | {"limits.client_connections": 1}
    async with recording(hold_on) as upstream, running(upstream.url, settings) as proxied:
        async with client(proxied) as one, client(proxied) as another:
            one.send(post(b"[]", key()))
            asked = await upstream.next()
            another.send(upgrade(key()))
            assert await another.statuses() == [429]
            asked.writer.write(EMPTY)
            assert (await one.answer()).status == 200
            assert taken(proxied) == {}


Ending = Callable[[Running, Side, Side], Awaitable[None]]


async def client_closes(_: Running, side: Side, upstream: Side) -> None:
    side.send(close_frame(1000, mask=MASK))
    upstream.send(close_frame(1000))


async def client_is_gone(_: Running, side: Side, __: Side) -> None:
    reset(side.writer)


async def upstream_is_gone(_: Running, __: Side, upstream: Side) -> None:
    reset(upstream.writer)


async def client_says_nonsense(_: Running, side: Side, __: Side) -> None:
    side.send(frame(TEXT, b"nonsense", mask=MASK))
    await closed(side)
    side.send(close_frame(1007, mask=MASK))


async def we_leave(proxied: Running, side: Side, upstream: Side) -> None:
    leaving = asyncio.get_running_loop().create_task(proxied.proxy.drain())
    await closed(side)
    side.send(close_frame(1001, mask=MASK))
    upstream.send(close_frame(1001))
    await leaving


@pytest.mark.parametrize("end", [client_closes, client_is_gone, upstream_is_gone, client_says_nonsense, we_leave])
async def test_share_is_given_back_however_a_websocket_ends(end: Ending) -> None:
    async with sharing() as (proxied, accepted):
        side = await opened(proxied)
        upstream = await accepted()
        assert taken(proxied) == {("sensor", ""): 1}
        await end(proxied, side, upstream)
        side.writer.close()
        upstream.writer.close()
        await until(lambda: taken(proxied) == {})


async def answer_503(asked: Asked) -> None:
    asked.writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")


async def hang_up(asked: Asked) -> None:
    asked.writer.transport.abort()


@pytest.mark.parametrize("sent", [upgrade(key()), post(b"[]", key()), post(HANDSHAKE, key())])
@pytest.mark.parametrize("answering", [answer_503, hang_up])
async def test_share_is_given_back_when_upstream_does_not_serve(
    sent: bytes, answering: Callable[[Asked], Awaitable[None]]
) -> None:
    settings = IDENTIFIED | {"limits.client_connections": 1}
    async with recording(answering) as upstream, running(upstream.url, settings) as proxied:
        for _ in range(2):
            async with client(proxied) as one:
                one.send(sent)
                assert (await one.answer()).status in {200, 502, 503}
        assert taken(proxied) == {}
        assert reached(proxied) == {}


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(upgrade(key()), id="while a WebSocket is opened"),
        pytest.param(post(b"[]", key()), id="while a POST is held"),
    ],
)
async def test_share_is_given_back_by_who_leaves(sent: bytes) -> None:
    settings = IDENTIFIED | {"limits.client_connections": 1}
    async with recording(hold_on) as upstream, running(upstream.url, settings) as proxied:
        async with client(proxied) as one:
            one.send(sent)
            await upstream.next()
            assert taken(proxied) == {("sensor", ""): 1}
        await until(lambda: taken(proxied) == {})


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(post(b"nonsense", key()), 400, id="nonsense"),
        pytest.param(post(b"[]", key(), "X-Id: device"), 403, id="SmartREST"),
        pytest.param(upgrade(key()).replace(b"Version: 13", b"Version: 8"), 400, id="upgrade of another version"),
        pytest.param(post(HANDSHAKE.replace(b'"id"', b'"ext":1,"id"'), key()), 200, id="malformed handshake"),
    ],
)
async def test_share_is_given_back_by_what_we_refuse(sent: bytes, status: int) -> None:
    settings = IDENTIFIED | {"limits.client_connections": 1}
    async with recording() as upstream, running(upstream.url, settings) as proxied:
        for _ in range(2):
            async with client(proxied) as one:
                one.send(sent)
                assert (await one.answer()).status == status
        assert taken(proxied) == {}
        assert upstream.requests == []


# Handshakes -----------------------------------------------------------------------------------------------------------


async def test_client_with_too_many_handshakes_is_told_when_to_come_back() -> None:
    async with raw_upstream() as (url, accepted):
        async with running(url, IDENTIFIED | {"limits.client_handshakes": 1}) as proxied:
            side = await opened(proxied)
            upstream = await accepted()
            await shaken_as(side, upstream)
            side.send(SHAKE)
            answer = Answer(200, {}, (await side.receive()).payload)
            assert is_passing_refusal(answer, "client_handshakes")
            assert (await closed(side))[0] == 1008
            async with client(proxied) as one:
                one.send(post(HANDSHAKE, key()))
                answer = await one.answer()
                assert is_passing_refusal(answer, "client_handshakes")
                [reply] = msgspec.json.decode(answer.body)
                assert 50_000 < reply["advice"]["interval"] <= 90_000
            assert reached(proxied) == {"client_handshakes": 2}
            assert proxied.handshakes() == {("accepted", "ok"): 1, ("refused", "limit"): 1}
            assert proxied.handshakes("long-polling") == {("refused", "limit"): 1}
            others, others_upstream = await opened(proxied, "other"), await accepted()
            await shaken_as(others, others_upstream)
            await cut_off(proxied, side, upstream, others, others_upstream)


async def shaken_as(side: Side, upstream: Side) -> None:
    """Have a handshake accepted, whose clientId comes down with a tag."""
    side.send(SHAKE)
    assert (await upstream.receive()).opcode == TEXT
    upstream.send(frame(TEXT, b'[{"channel":"/meta/handshake","successful":true,"clientId":"c"}]'))
    assert b'"successful":true' in (await side.receive()).payload


@pytest.mark.parametrize(
    ("first", "second", "are_same"),
    [
        pytest.param("192.0.2.1", "192.0.2.1", True, id="one address"),
        pytest.param("192.0.2.1", "192.0.2.2", False, id="two addresses"),
        pytest.param("192.0.2.1", "::ffff:192.0.2.1", True, id="one address in two spellings"),
        pytest.param("2001:db8::1", "2001:db8::ffff:1", True, id="one network of IPv6"),
        pytest.param("2001:db8::1", "2001:db8:0:1::1", False, id="two networks of IPv6"),
        pytest.param("192.0.2.1:5001", "192.0.2.1:5002", True, id="one address with ports"),
        pytest.param("[2001:db8::1]:5001", "[2001:db8::1]:5002", True, id="one address of IPv6 with ports"),
        pytest.param("unknown", "unknown", True, id="no address"),
        pytest.param("127.0.0.2", "127.0.0.2", False, id="this machine"),
        pytest.param("::1", "::1", False, id="this machine by IPv6"),
        pytest.param("::ffff:127.0.0.1", "::ffff:127.0.0.1", False, id="this machine in another spelling"),
    ],
)
async def test_address_with_too_many_handshakes_is_told_so(first: str, second: str, *, are_same: bool) -> None:
    settings = BEHIND_A_PROXY | {"limits.address_handshakes": 1}
    async with recording() as upstream, running(upstream.url, settings) as proxied, client(proxied) as one:
        one.send(post(HANDSHAKE, f"X-Forwarded-For: {first}"))
        assert (await one.answer()).body == b"[]"
        one.send(post(HANDSHAKE, f"X-Forwarded-For: {second}"))
        answer = await one.answer()
        assert len(upstream.requests) == (1 if are_same else 2)
        if are_same:
            assert is_passing_refusal(answer, "address_handshakes")
        assert reached(proxied) == ({"address_handshakes": 1} if are_same else {})


async def test_address_has_its_handshakes_on_websockets_too() -> None:
    settings: dict[str, Any] = BEHIND_A_PROXY | {"limits.address_handshakes": 1}
    async with raw_upstream() as (url, accepted), running(url, settings) as proxied:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxied.proxy.public_port)
        writer.write(upgrade("X-Forwarded-For: 192.0.2.1"))
        await reader.readuntil(b"\r\n\r\n")
        side, upstream = Side(reader, writer, masked=False), await accepted()
        await shaken(side, upstream)
        side.send(SHAKE)
        assert is_passing_refusal(Answer(200, {}, (await side.receive()).payload), "address_handshakes")
        assert (await closed(side))[0] == 1008
        assert reached(proxied) == {"address_handshakes": 1}
        await cut_off(proxied, side, upstream)


# Time to the head, the payload, and the first message -----------------------------------------------------------------


async def test_idle_connections_are_counted() -> None:
    async with recording() as upstream, running(upstream.url, {"limits.idle_seconds": 0.1}) as proxied:
        async with client(proxied) as never, client(proxied) as once:
            once.send(post())
            assert (await once.answer()).status == 200
            assert await is_cut_off(never)
            assert await is_cut_off(once)
        assert reached(proxied) == {"idle_seconds": 2}


async def test_head_that_comes_slowly_is_refused_by_name() -> None:
    settings = {"limits.head_seconds": 1, "limits.idle_seconds": 0.5}
    async with recording() as upstream, running(upstream.url, settings) as proxied, client(proxied) as one:
        one.send(b"P")
        await pause(0.7)
        one.send(b"O")  # which does not prolong it
        started = asyncio.get_running_loop().time()
        [answer] = await one.answers()
        assert asyncio.get_running_loop().time() - started < 0.99
        assert (answer.status, b"limits.head_seconds" in answer.body) == (408, True)
        assert reached(proxied) == {"head_seconds": 1}


async def test_body_that_comes_slowly_is_refused_by_name() -> None:
    async with recording() as upstream, running(upstream.url, {"limits.payload_seconds": 1}) as proxied:
        async with client(proxied) as one:
            one.send(head("Content-Length: 10") + b"\r\n[")
            await pause(0.7)
            one.send(b" ")
            started = asyncio.get_running_loop().time()
            [answer] = await one.answers()
            assert asyncio.get_running_loop().time() - started < 0.99
            assert (answer.status, b"limits.payload_seconds" in answer.body) == (408, True)
        assert reached(proxied) == {"payload_seconds": 1}


async def test_websocket_without_a_message_is_ended_by_name() -> None:
    async with relayed({"limits.first_message_seconds": 0.2}) as (proxied, side, upstream):
        side.send(frame(PING, b"here", mask=MASK))  # which is no message
        assert await upstream.receive() == Frame(PING, b"here")
        code, text = await closed(side)
        assert (code, b"limits.first_message_seconds" in text) == (1008, True)
        assert (await closed(upstream))[0] == 1001
        assert reached(proxied) == {"first_message_seconds": 1}


async def test_websocket_with_a_message_may_be_silent_after() -> None:
    async with relayed({"limits.first_message_seconds": 0.5, "limits.payload_seconds": 0.5}) as (_, side, upstream):
        await shaken(side, upstream)
        await pause(0.7)
        upstream.send(frame(TEXT, b"[]"))
        assert await side.receive() == Frame(TEXT, b"[]")


@pytest.mark.parametrize("part", [frame(TEXT, CONNECT, mask=MASK)[:1], frame(TEXT, CONNECT, mask=MASK)[:20]])
async def test_message_in_pieces_that_do_not_end_is_ended_by_name(part: bytes) -> None:
    async with relayed({"limits.payload_seconds": 0.2}) as (proxied, side, upstream):
        await shaken(side, upstream)
        side.send(part)
        code, text = await closed(side)
        assert (code, b"limits.payload_seconds" in text) == (1008, True)
        assert (await closed(upstream))[0] == 1001
        assert reached(proxied) == {"payload_seconds": 1}


def masked_fragment(opcode: int, payload: bytes) -> bytes:
    whole = frame(opcode, payload, mask=MASK)
    return bytes([whole[0] & 0x7F]) + whole[1:]


async def test_fragments_and_pings_in_between_do_not_prolong_a_message() -> None:
    async with relayed({"limits.payload_seconds": 1}) as (proxied, side, upstream):
        await shaken(side, upstream)
        side.send(masked_fragment(TEXT, b"["))
        started = 0.0
        for _ in range(2):
            await pause(0.35)
            started = asyncio.get_running_loop().time()
            side.send(masked_fragment(CONTINUATION, b" ") + frame(PING, b"here", mask=MASK))
        assert (await closed(side))[0] == 1008
        assert asyncio.get_running_loop().time() - started < 0.99
        assert reached(proxied) == {"payload_seconds": 1}


async def test_messages_whose_frames_are_cut_by_the_network_have_their_time_each() -> None:
    async with relayed({"limits.payload_seconds": 1, "gate.grants": [EVERYTHING]}) as (proxied, side, upstream):
        await shaken(side, upstream)
        whole = frame(TEXT, CONNECT, mask=MASK)
        side.send(whole[:10])
        for _ in range(8):
            await pause(0.15)
            side.send(whole[10:] + whole[:10])  # at no time is there none begun
        for _ in range(8):
            assert await upstream.receive() == Frame(TEXT, CONNECT)
        assert reached(proxied) == {}


async def test_message_that_we_do_not_read_is_not_slow() -> None:
    """Upstream takes nothing, so the client is held back in the middle of a message."""
    settings = {"limits.payload_seconds": 0.1, "gate.grants": [EVERYTHING]}
    async with relayed(settings) as (proxied, side, upstream):
        await shaken(side, upstream)
        upstream.writer.transport.pause_reading()  # type: ignore[attr-defined]
        text = b'[{"channel":"/meta/connect","clientId":"c","x":"%b"}]' % (b"x" * 100_000)
        await until_stalled(side, frame(TEXT, text, mask=MASK))
        await pause(0.4)
        assert reached(proxied) == {}
        upstream.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(3):
            assert len((await upstream.receive()).payload) > 100_000


# Who does not take what it is sent ------------------------------------------------------------------------------------


async def test_websocket_client_that_does_not_read_is_cut_off() -> None:
    async with relayed({"limits.stalled_seconds": 0.3}) as (proxied, side, upstream):
        side.writer.transport.pause_reading()  # type: ignore[attr-defined]
        flooding = asyncio.get_running_loop().create_task(until_stalled(upstream, frame(TEXT, b"x" * 60_000)))
        [relayed_socket] = proxied.proxy._websockets.sockets
        await until(lambda: relayed_socket.client.is_full)
        assert relayed_socket.client.transport.get_write_buffer_size() < 256 * 1024
        await until(lambda: reached(proxied) == {"stalled_seconds": 1})
        upstream.reader._transport.resume_reading()  # type: ignore[attr-defined]
        flooding.cancel()
        assert (await closed(upstream))[0] == 1001
        upstream.writer.transport.abort()
        await until(lambda: not proxied.proxy._websockets.sockets)
        assert reached(proxied) == {"stalled_seconds": 1}


async def upstream_takes_nothing(proxied: Running, side: Side, upstream: Side) -> None:
    """Shake hands, and send so much that what upstream does not read fills the proxy."""
    await shaken(side, upstream)
    upstream.writer.transport.pause_reading()  # type: ignore[attr-defined]
    text = b'[{"channel":"/meta/connect","clientId":"c","x":"%b"}]' % (b"x" * 100_000)
    [relayed_socket] = proxied.proxy._websockets.sockets
    while not relayed_socket.upstream.is_full:
        side.send(frame(TEXT, text, mask=MASK))
        await asyncio.sleep(0)


async def test_upstream_that_does_not_read_a_websocket_is_cut_off() -> None:
    settings = {"limits.stalled_seconds": 0.3, "gate.grants": [EVERYTHING]}
    async with relayed(settings) as (proxied, side, upstream):
        await upstream_takes_nothing(proxied, side, upstream)
        [relayed_socket] = proxied.proxy._websockets.sockets
        assert relayed_socket.upstream.transport.get_write_buffer_size() < 1024 * 1024
        assert (await closed(side))[0] == 1011
        assert reached(proxied) == {"stalled_seconds": 1}


async def test_answer_that_is_not_taken_is_cut_off_and_counted() -> None:
    async with recording(flood) as upstream, running(upstream.url, {"limits.stalled_seconds": 0.2}) as proxied:
        async with client(proxied) as one:
            deafen(one)
            one.send(post())
            await upstream.next()
            await until(lambda: not proxied.proxy._listener.doors)
            assert reached(proxied) == {"stalled_seconds": 1}


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\r\n"], ids=["that goes on", "that is whole"])
async def test_head_that_is_too_long_is_refused_by_name(end: str) -> None:
    async with recording() as upstream, running(upstream.url, {"limits.head_bytes": 1000}) as proxied:
        async with client(proxied) as one:
            one.send(head("Cookie: " + "x" * 1000) + end.encode())
            [answer] = await one.answers()
            assert (answer.status, b"limits.head_bytes" in answer.body) == (431, True)
        assert reached(proxied) == {"head_bytes": 1}


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(head("Content-Length: 1001") + b"\r\n", id="as announced"),
        pytest.param(head("Transfer-Encoding: chunked") + b"\r\n" + chunk(b" " * 1001), id="in chunks"),
    ],
)
async def test_body_that_is_too_big_is_refused_by_name(sent: bytes) -> None:
    async with recording() as upstream, running(upstream.url, {"limits.client_payload_bytes": 1000}) as proxied:
        async with client(proxied) as one:
            one.send(sent)
            [answer] = await one.answers()
            assert (answer.status, b"limits.client_payload_bytes" in answer.body) == (413, True)
        assert reached(proxied) == {"client_payload_bytes": 1}


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(frame(TEXT, b" " * 1001, mask=MASK)[:8], id="as announced"),
        pytest.param(masked_fragment(TEXT, b" " * 600) + masked_fragment(CONTINUATION, b" " * 600), id="in fragments"),
    ],
)
async def test_message_that_is_too_big_ends_a_websocket_by_name(sent: bytes) -> None:
    async with relayed({"limits.client_payload_bytes": 1000}) as (proxied, side, upstream):
        side.send(sent)
        assert await closed(upstream) == (1001, b"limits.client_payload_bytes")
        upstream.send(close_frame(1001))
        assert await closed(side) == (1009, b"limits.client_payload_bytes")
        assert reached(proxied) == {"client_payload_bytes": 1}


async def test_message_in_too_many_fragments_ends_a_websocket_by_name() -> None:
    async with relayed({"limits.fragments": 3, "gate.grants": [EVERYTHING]}) as (proxied, side, upstream):
        whole = masked_fragment(TEXT, b"[") + masked_fragment(CONTINUATION, b"") + frame(CONTINUATION, b"]", mask=MASK)
        side.send(whole * 2)
        for _ in range(2):
            assert await upstream.receive() == Frame(TEXT, b"[]")
        side.send(masked_fragment(TEXT, b"[") + masked_fragment(CONTINUATION, b"") * 2)
        assert await closed(upstream) == (1001, b"limits.fragments")
        upstream.send(close_frame(1001))
        assert await closed(side) == (1009, b"limits.fragments")
        assert reached(proxied) == {"fragments": 1}


async def test_batch_that_is_too_long_is_refused_by_name() -> None:
    batch = b"[" + b",".join([CONNECT[1:-1]] * 4) + b"]"
    async with relayed({"limits.batch_messages": 3}) as (proxied, side, upstream):
        async with client(proxied) as one:
            one.send(post(batch))
            [answer] = await one.answers()
            assert (answer.status, b"limits.batch_messages" in answer.body) == (413, True)
        side.send(frame(TEXT, batch, mask=MASK))
        code, text = await closed(side)
        assert (code, b"limits.batch_messages" in text) == (1009, True)
        assert (await closed(upstream))[0] == 1001
        assert reached(proxied) == {"batch_messages": 2}


async def test_batch_that_is_too_long_is_refused_before_who_sends_it_matters() -> None:
    batch = b"[" + b",".join([HANDSHAKE[1:-1]] * 4) + b"]"
    async with recording() as upstream, running(upstream.url, IDENTIFIED | {"limits.batch_messages": 3}) as proxied:
        async with client(proxied) as one:
            one.send(post(batch))
            assert await one.statuses() == [413]
        assert reached(proxied) == {"batch_messages": 1}
        assert proxied.handshakes("long-polling") == {}


async def test_answer_to_a_handshake_that_is_too_big_ends_a_websocket() -> None:
    async with relayed({"limits.upstream_payload_bytes": 1000}) as (proxied, side, upstream):
        side.send(SHAKE)
        await upstream.receive()
        upstream.send(frame(TEXT, b" " * 1001)[:8])
        assert (await closed(side))[0] == 1001
        assert (await closed(upstream))[0] == 1009
        assert proxied.handshakes() == {("unanswered", "upstream_gone"): 1}
        assert reached(proxied) == {"upstream_payload_bytes": 1}


async def test_what_is_not_read_may_be_of_any_size() -> None:
    async with relayed({"limits.upstream_payload_bytes": 1000}) as (proxied, side, upstream):
        await shaken(side, upstream)
        upstream.send(frame(TEXT, b" " * 100_000))
        assert len((await side.receive()).payload) == 100_000
        assert reached(proxied) == {}


async def test_answer_to_a_handshake_by_post_that_is_too_big_is_a_passing_refusal() -> None:
    async def too_big(asked: Asked) -> None:
        asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"[" * 2000)

    settings = {"limits.upstream_payload_bytes": 1000}
    async with recording(too_big) as upstream, running(upstream.url, settings) as proxied, client(proxied) as one:
        one.send(post(HANDSHAKE))
        assert is_passing_refusal(await one.answer(), "upstream_payload_bytes")
        assert proxied.handshakes("long-polling") == {("unanswered", "upstream_gone"): 1}
        assert reached(proxied) == {"upstream_payload_bytes": 1}
