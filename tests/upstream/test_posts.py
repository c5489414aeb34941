"""Connections that wait for their next POST."""

import asyncio

from proxy.upstream.posts import Pool, UpstreamUnavailable


async def test_connection_that_has_just_ended_is_given_to_nobody() -> None:
    loop = asyncio.get_running_loop()
    pool = Pool(idle_seconds=60, max_head_bytes=1000, unavailable=lambda _: UpstreamUnavailable("gone"))
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
    wire = pool.add(("key",), transport)
    pool.give_back(wire)
    assert pool.take(("key",)) is wire
    pool.give_back(wire)
    transport.close()  # of which the pool is told in the next turn only
    assert pool.take(("key",)) is None
    pool.close()
    server.close()
    await asyncio.sleep(0)
