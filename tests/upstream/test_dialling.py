"""What can go wrong on the way to upstream, before it has answered."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme

from proxy.upstream.dialling import DialFailed, Dialler


UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    serving = set()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        try:
            with suppress(ConnectionError):
                await serve(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(served, "localhost", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]
        async with asyncio.timeout(5):
            await asyncio.gather(*filter(None, serving))


def saying(answer: bytes) -> Serve:
    """Read the head of a request, say this, and wait for the end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await reader.read()

    return serve


def dialler(url: str, *, tls: ssl.SSLContext | None = None, proxy_url: str | None = None) -> Dialler:
    return Dialler(url, tls=lambda: tls or ssl.create_default_context(), proxy_url=proxy_url, max_head_bytes=1000)


class Taker(asyncio.Protocol):
    """Takes a line over, and keeps what comes."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost.set_result(None)


async def test_what_comes_behind_the_head_is_handed_over() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /x HTTP/1.1\r\nHost: a\r\n")
        for piece in (UPGRADE[:30], UPGRADE[30:] + b"first", b"second"):
            writer.write(piece)
            await writer.drain()

    async with listening(serve) as port:
        line = await dialler(f"http://localhost:{port}").ask("/x", [("Host", "a")])
        assert line.answer.status == 101
        taker = Taker()
        line.hand_over(taker)
        await taker.lost
        assert taker.data == b"firstsecond"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 101 x\r\nA: " + b"x" * 2000, id="endless head"),
        pytest.param(b"HTTP/1.1 101 x\r\nA : b\r\n\r\n", id="malformed head"),
    ],
)
async def test_answer_that_is_none_is_told(answer: bytes) -> None:
    async with listening(saying(answer)) as port:
        with pytest.raises(DialFailed):
            await dialler(f"http://localhost:{port}").ask("/x", [])


async def test_upstream_that_hangs_up_is_told() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
        await reader.readuntil(b"\r\n\r\n")

    async with listening(serve) as port:
        with pytest.raises(DialFailed, match="ended"):
            await dialler(f"http://localhost:{port}").ask("/x", [])


async def test_whoever_stops_waiting_leaves_no_connection() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        assert await reader.read() == b""
        gone.set()

    async with listening(serve) as port:
        waiting = asyncio.get_running_loop().create_task(dialler(f"http://localhost:{port}").ask("/x", []))
        await asked.wait()
        waiting.cancel()
        await asyncio.wait_for(gone.wait(), 5)


async def test_certificate_that_nobody_vouches_for_is_an_error(tmp_path: Path) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(server)
    stranger = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    tls = ssl.create_default_context(cafile=stranger)
    async with listening(saying(UPGRADE), server) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await dialler(f"https://localhost:{port}", tls=tls).ask("/x", [])


@pytest.mark.parametrize("answer", [b"HTTP/1.1 407 No\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nearly", b"no\r\n\r\n"])
async def test_http_proxy_that_lets_nobody_through_is_told(answer: bytes) -> None:
    async with listening(saying(answer)) as port:
        with pytest.raises(DialFailed):
            await dialler("http://upstream.invalid", proxy_url=f"http://localhost:{port}").ask("/x", [])


async def test_http_proxy_is_told_who_we_are_and_upstream_is_not() -> None:
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(UPGRADE)
        await reader.read()

    async with listening(serve) as port:
        way = dialler("http://upstream.invalid:81", proxy_url=f"http://us%65r:pass@localhost:{port}")
        line = await way.ask("/x", [("Host", way.host)])
        line.transport.abort()
    told = b"Host: upstream.invalid:81\r\nProxy-Authorization: Basic dXNlcjpwYXNz\r\n\r\n"
    assert heads == [
        b"CONNECT upstream.invalid:81 HTTP/1.1\r\n" + told,
        b"GET /x HTTP/1.1\r\nHost: upstream.invalid:81\r\n\r\n",
    ]


async def test_every_address_of_a_name_is_tried_and_the_name_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    resolve = asyncio.get_running_loop().getaddrinfo

    async def resolved(host: str, port: int, **more: int) -> list[tuple[object, ...]]:
        if host != "upstream.test":
            return list(await resolve(host, port, **more))
        asked.append(host)
        return [(0, 0, 0, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1", "::1")]

    async with listening(saying(UPGRADE)) as port:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
        way = dialler(f"http://upstream.test:{port}")
        for _ in range(2):
            line = await way.ask("/x", [])
            line.transport.abort()
    assert asked == ["upstream.test"]
