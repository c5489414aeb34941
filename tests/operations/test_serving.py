"""What aiohttp would quote never leaves: neither to the client nor into the log."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp.web import BaseRequest, Response, ServerRunner, StreamResponse, TCPSite

from proxy.operations.serving import PlainServer
from tests.conftest import PASSWORD, Running, pages_of, running


CANARY = PASSWORD.encode()
HOST = b"Host: localhost\r\n"

UNREAD = [
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Cookie: authorization=" + CANARY * 1000 + b"\r\n\r\n", id="cookie"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + CANARY * 1000 + b": x\r\n\r\n", id="name of a header"),
    pytest.param(b"GET /" + CANARY * 1000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", id="target too long"),
    pytest.param(b"GET /?token=" + CANARY + b" HTTP/9.9\r\n" + HOST + b"\r\n", id="another version"),
    pytest.param(b"GET http://" + CANARY + b"@[::1/ HTTP/1.1\r\n" + HOST + b"\r\n", id="target that is no URL"),
    pytest.param(CANARY + b" / HTTP/1.1\r\n" + HOST + b"\r\n", id="method"),
    pytest.param(b"\x16\x03\x01" + CANARY + b"\r\n\r\n", id="TLS where none is spoken"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Cookie : " + CANARY + b"\r\n\r\n", id="space behind a name"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Cookie: " + CANARY + b"\0\r\n\r\n", id="null in a value"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + CANARY + b"\r\n\r\n", id="header without a colon"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Cookie: a\r\n " + CANARY + b"\r\n\r\n", id="folded header"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: " + CANARY + b"\r\n\r\n", id="length"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: " + CANARY + b"\r\nHost: " + CANARY + b"\r\n\r\n", id="two hosts"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: " + CANARY + b"\r\n\r\n", id="encoding"),
    pytest.param(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CANARY + b"\r\n", id="chunk"),
    pytest.param(
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Encoding: gzip\r\nContent-Length: 16\r\n\r\n" + CANARY, id="gzip"
    ),
    pytest.param(b"GET /?token=" + CANARY + b"\r\n\r\n", id="no version"),
    pytest.param(
        b"GET //" + CANARY + b"@[x] HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", id="target that is a host"
    ),
    pytest.param(
        b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 200 + b"Cookie: " + CANARY + b"\r\n\r\n", id="too many headers"
    ),
]


async def answer_to(port: int, request: bytes) -> bytes:
    """Everything that is said to the bytes, until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        said = await reader.read()
    except ConnectionResetError:
        said = b""
    writer.close()
    return said


@asynccontextmanager
async def serving(handler: Callable[[BaseRequest], Awaitable[StreamResponse]]) -> AsyncIterator[int]:
    runner = ServerRunner(PlainServer(handler))
    await runner.setup()
    await TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def echo(request: BaseRequest) -> Response:
    response = Response(body=await request.read(), headers={"Server": "echo"})
    response.force_close()
    return response


async def never(_: BaseRequest) -> Response:
    raise AssertionError


@pytest.fixture(params=["admin", "pages", "reading"])
async def port(request: pytest.FixtureRequest) -> AsyncIterator[int]:
    """The listeners that aiohttp serves, and one whose handler reads bodies."""
    if request.param == "reading":
        async with serving(echo) as port:
            yield port
        return
    pages = pages_of(**{"root": Response, PASSWORD * 1000: Response})
    async with running("http://localhost:1", {"limits.head_bytes": 65_536}, pages=pages) as proxied:
        yield proxied.proxy.admin_port if request.param == "admin" else proxied.proxy.public_port


@pytest.mark.parametrize("request_", UNREAD)
async def test_nothing_that_was_read_is_quoted(port: int, request_: bytes, caplog: pytest.LogCaptureFixture) -> None:
    for asked in (request_, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n" + request_):  # alone, and behind another
        said = await answer_to(port, asked)
        assert CANARY not in said
        assert b"aiohttp" not in said
        assert b"bytes when reading" not in said
    assert PASSWORD not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("aiohttp")]


@pytest.mark.parametrize("request_", UNREAD[:8])
async def test_what_cannot_be_read_is_answered_in_our_words(request_: bytes) -> None:
    async with serving(never) as port:
        said = await answer_to(port, request_)
    assert said.startswith(b"HTTP/1.0 400 ")
    assert b"\r\nX-Content-Type-Options: nosniff\r\n" in said
    assert said.endswith(b"\r\n\r\nThe request could not be read: send HTTP/1.1, and less of it\n")


async def test_pages_take_a_long_cookie() -> None:
    """What aiohttp reads of a request for a page is none of the client's."""
    cookie = b"Cookie: authorization=" + CANARY * 1000
    async with running("http://localhost:1", pages=pages_of(root=Response)) as proxied:
        said = await answer_to(proxied.proxy.public_port, b"GET / HTTP/1.1\r\n" + HOST + cookie + b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")


class Broken(Exception):
    """A fault of ours."""


async def fail(_: BaseRequest) -> Response:
    raise Broken("a detail")


async def time_out(_: BaseRequest) -> Response:
    raise TimeoutError("a detail")


@pytest.mark.logs_errors
@pytest.mark.parametrize(("handler", "logged"), [(fail, "Broken: a detail"), (time_out, "by a fault of ours")])
async def test_handler_that_fails_is_told_to_our_log_alone(
    handler: Callable[[BaseRequest], Awaitable[StreamResponse]], logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(handler) as port:
        said = await answer_to(port, b"GET / HTTP/1.1\r\nConnection: close\r\nAccept: text/html\r\n" + HOST + b"\r\n")
    assert said.startswith(b"HTTP/1.1 500 ")
    assert said.endswith(b"\r\n\r\nInternal error\n")
    assert logged in caplog.text
    assert [record.levelno for record in caplog.records if record.name.startswith("proxy")] == [logging.ERROR]


@pytest.mark.logs_errors
async def test_answer_that_fails_when_it_has_begun_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def begin(request: BaseRequest) -> StreamResponse:
        response = StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        raise Broken("a detail")

    async with serving(begin) as port:
        said = await answer_to(port, b"GET / HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"Internal error" not in said
    assert b"a detail" not in said
    assert "Broken: a detail" in caplog.text


@pytest.mark.logs_errors
async def test_answer_that_is_none_is_told_to_our_log(caplog: pytest.LogCaptureFixture) -> None:
    async def nothing(_: BaseRequest) -> StreamResponse:
        return None  # type: ignore[return-value]

    async with serving(nothing) as port:
        said = await answer_to(port, b"GET / HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
    assert b" 500 " in said
    assert "fault of ours" in caplog.text


async def test_proxy_serves_nothing_by_aiohttp_as_it_comes(proxied: Running) -> None:
    said = await answer_to(proxied.proxy.admin_port, b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    assert b"\r\nServer: c8y-realtime-proxy\r\n" in said
