"""How doctor speaks with an upstream that does not make it easy."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import WSCloseCode, web

from proxy.credentials.kinds import Basic
from proxy.doctor.carriers import AnsweredWithStatus, NoAnswer, Polling, Socket, dial
from proxy.gate.crossing import Crossing
from proxy.upstream.client import Upstream
from tests.doctor.servers import listening, saying


PATH = "/notification/realtime"
CROSSING = Crossing(relayed_cookies=["BAYEUX_BROWSER"], is_clients_own=False)
USER = Basic("service", "secret")
ANSWER = msgspec.json.encode([{"channel": "/meta/connect", "successful": True}])

Speak = Callable[[web.WebSocketResponse], Awaitable[None]]


def upstream_at(port: int) -> Upstream:
    return Upstream(
        f"http://localhost:{port}", tls=ssl.create_default_context, open_seconds=5, idle_seconds=5, max_head_bytes=9999
    )


@asynccontextmanager
async def socket_to(speak: Speak, *, limit: int = 10_000) -> AsyncIterator[Socket]:
    """A WebSocket to somebody who speaks like this."""

    async def answer(request: web.Request) -> web.StreamResponse:
        opened = web.WebSocketResponse(autoping=False, autoclose=False)
        await opened.prepare(request)
        await speak(opened)
        return opened

    app = web.Application()
    app.router.add_get(PATH, answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "localhost", 0).start()
    try:
        line = await dial(upstream_at(runner.addresses[0][1]), CROSSING, PATH, USER)
        yield Socket(line, limit)
    finally:
        await runner.cleanup()


async def test_what_comes_before_the_answer_is_passed_over() -> None:
    async def speak(opened: web.WebSocketResponse) -> None:
        await opened.receive()
        await opened.send_str('[{"channel":"/events/1","data":{}}]')
        await opened.send_str("no JSON")
        await opened.send_str(ANSWER.decode())
        await opened.receive()

    async with socket_to(speak) as socket:
        assert await socket.ask(b"[]", "/meta/connect") == ANSWER
        await socket.close()


async def test_a_ping_is_answered_and_the_goodbye_is_polite() -> None:
    heard = []

    async def speak(opened: web.WebSocketResponse) -> None:
        await opened.receive()
        await opened.ping(b"there?")
        pong = await opened.receive()
        heard.append((pong.type.name, pong.data))
        await opened.send_str(ANSWER.decode())
        goodbye = await opened.receive()
        heard.append((goodbye.type.name, goodbye.data))
        await opened.close()

    async with socket_to(speak) as socket:
        await socket.ask(b"[]", "/meta/connect")
        await socket.close()
    assert heard == [("PONG", b"there?"), ("CLOSE", 1000)]


async def test_a_close_frame_in_place_of_an_answer_is_told_by_its_code() -> None:
    async def speak(opened: web.WebSocketResponse) -> None:
        await opened.receive()
        await opened.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"canary")

    async with socket_to(speak) as socket:
        for _ in range(2):  # it stays closed
            with pytest.raises(NoAnswer, match=r"^closed the WebSocket with code 1013$"):
                await socket.ask(b"[]", "/meta/connect")


@pytest.mark.parametrize("limit", [10_000, 1_000_000])
async def test_more_than_the_limit_is_no_answer(limit: int) -> None:
    answer = '[{"channel":"/meta/connect","x":"' + "x" * 100_000 + '"}]'

    async def speak(opened: web.WebSocketResponse) -> None:
        await opened.receive()
        await opened.send_str(answer)
        await opened.receive()

    async with socket_to(speak, limit=limit) as socket:
        if limit > len(answer):
            assert await socket.ask(b"[]", "/meta/connect") == answer.encode()
        else:
            with pytest.raises(NoAnswer, match="no WebSocket frame"):
                await socket.ask(b"[]", "/meta/connect")


def polling(port: int) -> Polling:
    return Polling(upstream_at(port), CROSSING, PATH, USER, limit=1000)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 5000, "more than limits", id="flood"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "no Bayeux", id="no Bayeux"),
        pytest.param(b"no HTTP\r\n\r\n", "ended the connection", id="no HTTP"),
        pytest.param(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "HTTP 407", id="status"),
    ],
)
async def test_what_is_no_answer_to_a_post_is_told(answer: bytes, told: str) -> None:
    async with listening(saying(answer)) as port:
        with pytest.raises(NoAnswer, match=told) as caught:
            await polling(port).ask(b"[]", "/meta/connect")
    assert isinstance(caught.value, AnsweredWithStatus) is (told == "HTTP 407")


async def test_whoever_waits_no_longer_leaves_no_connection() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            while await reader.read(100):
                pass
        except ConnectionError:
            pass
        gone.set()

    async with listening(serve) as port:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(polling(port).ask(b"[]", "/meta/connect"), 0.2)
        await asyncio.wait_for(gone.wait(), 2)
