"""The life of one client connection, seen from both ends."""

import asyncio

import pytest

from proxy.http1 import LAST_CHUNK, chunk
from proxy.relay.door import Door
from tests.conftest import Running, running, until
from tests.relay.raw import (
    EMPTY,
    Asked,
    Client,
    answer_empty,
    client,
    head,
    hold,
    hold_on,
    post,
    recording,
)


PAGE = "https://app.example.com"
IN_CHUNKS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
HIGH_WATER = 64 * 1024
BROKEN = (asyncio.IncompleteReadError, ConnectionError)


def only_door(proxied: Running) -> Door:
    [door] = proxied.proxy._listener.doors
    return door


def is_over(proxied: Running) -> bool:
    return not proxied.proxy._listener.doors and proxied.count("connections", transport="long-polling") == 0


# What comes -----------------------------------------------------------------------------------------------------------


async def test_client_that_says_the_same_is_judged_once_and_anew_when_it_says_something_else() -> None:
    async with recording() as upstream, running(upstream.url, {"gate.origins": [PAGE]}) as proxied:
        async with client(proxied) as one:
            judged = []
            for lines in ([], [], [f"Origin: {PAGE}"], [f"Origin: {PAGE}"], []):
                one.send(post(b"[]", *lines))
                answer = await one.answer()
                assert answer.headers.get("access-control-allow-origin") == (PAGE if lines else None)
                judged.append(only_door(proxied)._known)
            assert judged[0] is judged[1] is not judged[2]
            assert judged[2] is judged[3] is not judged[4]
            one.send(post(host="evil.example"))
            assert await one.statuses() == [403]
        assert len(upstream.requests) == 5


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [pytest.param(b"", [], id="nothing"), pytest.param(head(), [408], id="half a head")],
)
async def test_connection_that_waits_for_its_next_request_is_ended_after_a_while(
    sent: bytes, statuses: list[int]
) -> None:
    async with (
        recording() as upstream,
        running(upstream.url, {"limits.idle_seconds": 0.1, "limits.head_seconds": 0.1}) as proxied,
    ):
        async with client(proxied) as one:
            one.send(post())
            assert (await one.answer()).status == 200
            one.send(sent)
            assert await one.statuses() == statuses


async def test_held_connection_is_not_taken_for_an_idle_one() -> None:
    async with recording(hold_on) as upstream, running(upstream.url, {"limits.idle_seconds": 0.05}) as proxied:
        async with client(proxied) as one:
            one.send(post())
            asked = await upstream.next()
            async with client(proxied) as another:
                assert await another.rest() == b""  # its time has run out
            asked.writer.write(EMPTY)
            assert (await one.answer()).status == 200


async def test_body_in_chunks_is_refused_once_it_is_too_big_and_not_when_it_is_whole() -> None:
    async with recording() as upstream, running(upstream.url, {"limits.client_payload_bytes": 100}) as proxied:
        async with client(proxied) as one:
            one.send(head("Transfer-Encoding: chunked") + b"\r\n1\r\n \r\nffff\r\n" + b" " * 99)
            await until(lambda: len(only_door(proxied)._came) == 100)
            one.send(b" ")
            assert await one.statuses() == [413]
    assert upstream.connections == 0


async def test_body_that_stops_in_the_middle_of_a_chunk_is_given_up() -> None:
    async with recording() as upstream, running(upstream.url, {"limits.payload_seconds": 0.05}) as proxied:
        async with client(proxied) as one:
            one.send(head("Transfer-Encoding: chunked") + b"\r\n2\r\n[")
            assert await one.statuses() == [408]
    assert upstream.connections == 0


# What is answered -----------------------------------------------------------------------------------------------------


async def test_client_of_http_1_0_gets_no_chunks_and_the_end_of_the_connection() -> None:
    async def in_chunks(asked: Asked) -> None:
        asked.writer.write(IN_CHUNKS + chunk(b"[") + chunk(b"]") + LAST_CHUNK)

    async with recording(in_chunks) as upstream, running(upstream.url) as proxied, client(proxied) as one:
        one.send(post(version="1.0"))
        [answer] = await one.answers()
        assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"[]", "close")
        assert not {"transfer-encoding", "content-length"} & {*answer.headers}


SIZE = 64 * 1024 * 1024


async def flood(asked: Asked) -> None:
    """Answer with more than anybody holds."""
    asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
    for _ in range(SIZE // 65536):
        if asked.writer.is_closing():  # uvloop takes no more then
            return
        asked.writer.write(b" " * 65536)
        await asked.writer.drain()


def deafen(one: Client) -> None:
    """Take nothing of what comes."""
    one.reader._transport.pause_reading()  # type: ignore[attr-defined]


async def test_client_that_does_not_read_makes_upstream_wait_and_gets_all_once_it_reads() -> None:
    async with recording(flood) as upstream, running(upstream.url) as proxied, client(proxied) as one:
        deafen(one)
        one.send(post())
        await upstream.next()
        door = only_door(proxied)
        await until(lambda: door._is_full)
        assert HIGH_WATER < door.transport.get_write_buffer_size() < 16 * HIGH_WATER
        one.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert len((await one.answer()).body) == SIZE


async def test_client_that_reads_nothing_for_too_long_is_cut_off() -> None:
    async with recording(flood) as upstream, running(upstream.url, {"limits.stalled_seconds": 0.2}) as proxied:
        async with client(proxied) as one:
            deafen(one)
            one.send(post())
            asked = await upstream.next()
            await until(lambda: is_over(proxied))
            await until(asked.writer.is_closing)
            one.reader._transport.resume_reading()  # type: ignore[attr-defined]
            with pytest.raises(BROKEN):
                await one.answer()


async def stuck(proxied: Running, one: Client, asked: Asked) -> Door:
    """Answer in small pieces, until the client's side of the kernel takes no more; what is left is less than would make
    upstream wait.
    """
    deafen(one)
    asked.writer.write(IN_CHUNKS)
    door = only_door(proxied)
    while door.transport.get_write_buffer_size() < 16_000:
        asked.writer.write(chunk(b" " * 16_000))
        await asked.writer.drain()
        await asyncio.sleep(0)
    return door


@pytest.mark.parametrize("lines", [[], ["Connection: close"]], ids=["kept alive", "told to close"])
async def test_client_that_does_not_take_the_end_of_its_answer_is_cut_off(lines: list[str]) -> None:
    async with (
        recording(hold_on) as upstream,
        running(upstream.url, {"limits.stalled_seconds": 0.3, "limits.idle_seconds": 0.3}) as proxied,
    ):
        async with client(proxied) as one:
            one.send(post(b"[]", *lines))
            asked = await upstream.next()
            await stuck(proxied, one, asked)
            asked.writer.write(LAST_CHUNK)
            await until(lambda: is_over(proxied))


async def test_nothing_goes_up_for_a_client_that_does_not_take_the_answer_before() -> None:
    """Nothing would hold back what comes of it."""
    async with recording(hold) as upstream, running(upstream.url) as proxied, client(proxied) as one:
        one.send(post() + post())
        asked = await upstream.next()
        door = await stuck(proxied, one, asked)
        upstream.answering = answer_empty
        asked.writer.write(chunk(b"x" * 60_000) + LAST_CHUNK)
        await until(lambda: door.transport.get_write_buffer_size() > HIGH_WATER)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(upstream.requests) == 1
        one.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert (await one.answer()).body.endswith(b"x" * 60_000)
        assert (await one.answer()).body == b"[]"


# Ahead of the answer --------------------------------------------------------------------------------------------------


async def test_some_bytes_ahead_of_the_answer_wait_for_it() -> None:
    async with recording(hold_on) as upstream, running(upstream.url) as proxied, client(proxied) as one:
        one.send(post())
        asked = await upstream.next()
        one.send(post(b"[" + b" " * 60_000 + b"]", "Connection: close"))
        await until(lambda: len(only_door(proxied)._buffer) > 60_000)
        upstream.answering = answer_empty
        asked.writer.write(EMPTY.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        assert await one.statuses() == [200, 200]


async def test_too_many_bytes_ahead_of_the_answer_end_the_connection() -> None:
    async with recording(hold_on) as upstream, running(upstream.url) as proxied, client(proxied) as one:
        one.send(post())
        asked = await upstream.next()
        one.send(b" " * (HIGH_WATER + 1))
        assert await one.rest() == b""
        assert await asked.reader.read() == b""
        await until(lambda: is_over(proxied))


@pytest.mark.parametrize("ahead", [b"", post() * 100], ids=["", "behind requests"])
async def test_client_that_goes_while_its_answer_is_held_is_noticed(ahead: bytes) -> None:
    async with recording(hold_on) as upstream, running(upstream.url) as proxied, client(proxied) as one:
        one.send(post())
        asked = await upstream.next()
        one.send(ahead)
        await until(lambda: len(only_door(proxied)._buffer) == len(ahead))
        one.writer.transport.abort()
        assert await asked.reader.read() == b""
        await until(lambda: is_over(proxied))
        assert upstream.bodies == [b"[]"]
