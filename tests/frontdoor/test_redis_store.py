"""Sessions in Redis, as far as there need be none; tests/e2e/stores has the rest."""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis import exceptions

from proxy.frontdoor.redis_store import RedisStore, _explained
from proxy.frontdoor.stores import StoreUnavailable

from .store_claims import opened, until_unavailable


@pytest.mark.parametrize(
    "url",
    [
        "",
        "canary",
        "http://canary",
        "unix:///canary",
        "redis://",
        "redis://canary:port",
        "redis://canary:99999",
        "redis://canary/database",
        "redis://user:canary@localhost",
        "redis://localhost?password=canary",
        "rediss://localhost?ssl_cert_reqs=none#canary",
    ],
)
def test_what_is_no_address_of_a_redis_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"such as redis://redis\.example\.com:6379/0") as refused:
        RedisStore(url)
    assert "canary" not in str(refused.value)


def caused(problem: Exception, cause: Exception) -> Exception:
    problem.__cause__ = cause
    return problem


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (exceptions.AuthenticationError("canary"), "does not take the user and password"),
        (exceptions.NoPermissionError("canary"), "may not do what is needed"),
        (exceptions.OutOfMemoryError("canary"), "is full"),
        (exceptions.ReadOnlyError("canary"), "is a replica"),
        (exceptions.BusyLoadingError("canary"), "still loading"),
        (exceptions.MovedError("1 canary:1"), "is a cluster"),
        (exceptions.ClusterDownError("canary"), "lost the others"),
        (exceptions.MasterDownError("canary"), "lost the others"),
        (exceptions.TimeoutError("canary"), "did not answer within 2 s"),
        (TimeoutError("canary"), "did not answer within 2 s"),
        (exceptions.ConnectionError("canary"), "ended the connection"),
        (exceptions.InvalidResponse("canary"), "refused a command"),
        (exceptions.ResponseError("canary"), "refused a command"),
        (OSError(errno.EHOSTUNREACH, "canary"), "cannot be reached: No route to host"),
        (OSError("canary"), "cannot be reached"),
        (caused(exceptions.ConnectionError("canary"), socket.gaierror(-2, "canary")), "name of Redis is not known"),
        (caused(exceptions.ConnectionError("canary"), ssl.SSLCertVerificationError("canary")), "is not trusted"),
        (caused(exceptions.ConnectionError("canary"), ssl.SSLError("canary")), "does not speak TLS"),
        (caused(exceptions.ConnectionError("canary"), OSError(errno.ECONNREFUSED, "canary")), "Connection refused"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_is_wrong_is_told_in_our_words(problem: Exception, told: str) -> None:
    assert told in _explained(problem)
    assert "canary" not in _explained(problem)


Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


@asynccontextmanager
async def listening(say: bytes, *, after: float = 0.0) -> AsyncIterator[str]:
    """What accepts connections at that address, says this after so many seconds, and nothing more."""
    writers: list[asyncio.StreamWriter] = []

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        asyncio.get_running_loop().call_later(after, writer.write, say)

    server = await asyncio.start_server(accept, "127.0.0.1")
    try:
        yield f"redis://localhost:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


async def test_one_who_does_not_answer_is_told_in_time() -> None:
    async with listening(b"") as url:
        store = RedisStore(url, password=lambda: "canary")
        async with asyncio.timeout(2.5):
            await store.open(lambda _: None)
        try:
            assert "did not answer within 2 s" in str(await until_unavailable(store))
        finally:
            async with asyncio.timeout(1):
                await store.close()


async def test_one_who_takes_his_time_for_each_answer_is_told_in_time() -> None:
    async with listening(b"+OK\r\n", after=1.5) as url:
        store = RedisStore(url, password=lambda: "canary")
        async with opened(store):
            assert "did not answer within 2 s" in str(await until_unavailable(store))


@pytest.mark.parametrize(
    "say",
    [
        pytest.param(b"HTTP/1.1 400 canary\r\n\r\n", id="another protocol"),
        pytest.param(b"-ERR canary\r\n", id="an error"),
        pytest.param(b"-LOADING canary\r\n", id="loading"),
        pytest.param(b"+canary\r\n", id="no answer to this"),
        pytest.param(b"$9\r\ncanary", id="half an answer"),
    ],
)
async def test_one_who_is_no_redis_is_told_in_time(say: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with listening(say) as url:
        store = RedisStore(url, password=lambda: "canary-password")
        async with opened(store):
            unavailable = await until_unavailable(store)
    assert "canary" not in f"{unavailable!r} {caplog.text}"


async def test_one_who_sends_everybody_away_is_left_alone_for_longer_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    came: list[float] = []
    is_enough = asyncio.Event()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        came.append(loop.time())
        if len(came) == 6:
            is_enough.set()

    async with await asyncio.start_server(accept, "127.0.0.1") as server:
        store = RedisStore(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with opened(store), asyncio.timeout(10):
            await is_enough.wait()
    assert 1.55 <= came[5] - came[0] <= 6
    assert caplog.text.count("It is tried again until it answers") == 1


async def test_one_who_is_away_is_told_at_once_and_logged_once(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisStore(f"redis://canary@localhost:{unused_tcp_port}")
    async with opened(store):
        for _ in range(20):
            async with asyncio.timeout(1):
                with pytest.raises(StoreUnavailable, match="Redis cannot be reached"):
                    await store.load("one")
    logged = [record for record in caplog.records if record.name == "proxy.frontdoor.redis_store"]
    assert [record.levelno for record in logged] == [logging.WARNING]
    assert "canary" not in caplog.text
