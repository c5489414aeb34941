"""Who vanishes without a word is noticed by TCP, also where nothing is said for hours.

What TCP does then is proved by `tests/soak`, which can take a network away; here, that it is told to, and when.
"""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme

from proxy.demo.simulator import Simulator
from proxy.vitality import Vitality
from proxy.wiring import vitality_of
from tests.conftest import PASSWORD, Running, configured, exchange, handshake, running


LIMITS = {"limits.heartbeat_seconds": 20, "limits.stalled_seconds": 30}
WATCHED = [1, 20, 10, 4, 60_000]
OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
]


def watched(transport: asyncio.BaseTransport) -> list[int]:
    """How TCP watches over a connection."""
    kernel = transport.get_extra_info("socket")
    return [kernel.getsockopt(level, option) for level, option in OPTIONS]


def of_sockets(proxied: Running) -> Sequence[asyncio.BaseTransport]:
    [relayed] = proxied.proxy._websockets.sockets
    return relayed.client.transport, relayed.upstream.transport


def of_polls(proxied: Running) -> Sequence[asyncio.BaseTransport]:
    [door], [wire] = proxied.proxy._listener.doors, proxied.proxy._wiring.carriage.upstream._pool._wires
    return door.transport, wire._transport


@pytest.fixture(params=["plain", "tls"])
def authority(request: pytest.FixtureRequest) -> trustme.CA | None:
    return trustme.CA() if request.param == "tls" else None


async def test_who_cannot_be_asked_by_a_ping_is_asked_by_tcp_after_a_beat_and_given_up(
    authority: trustme.CA | None, tmp_path: Path
) -> None:
    settings: dict[str, object] = dict(LIMITS)
    context, trusting = None, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is not None:
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        authority.configure_trust(trusting)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issued.configure_cert(context)
        settings |= {
            "listen.tls.key_file": str(tmp_path / "key.pem"),
            "listen.tls.certificate_file": str(tmp_path / "certificate.pem"),
            "upstream.ca_file": str(tmp_path / "ca.pem"),
        }
    async with (
        Simulator(password=PASSWORD, ssl_context=context) as upstream,
        running(upstream.url, settings, client_tls=trusting) as proxied,
    ):
        async with proxied.socket() as opened:
            await exchange(opened, [handshake()])
            client, up = of_sockets(proxied)
            # What a client is going to be is not known when it is let in; upstream has heartbeats on this way.
            assert (watched(client), watched(up)[0]) == (WATCHED, 0)
        async with proxied.post([handshake()]) as response:
            await response.read()
        assert [watched(transport) for transport in of_polls(proxied)] == [WATCHED, WATCHED]


async def test_connections_that_begin_after_a_change_are_watched_by_it(upstream: Simulator) -> None:
    async with running(upstream.url, LIMITS) as proxied:
        await proxied.proxy.change(configured(upstream.url, LIMITS | {"limits.heartbeat_seconds": 10}))
        async with proxied.post([handshake()]) as response:
            await response.read()
        assert [watched(transport)[1:3] for transport in of_polls(proxied)] == [[10, 12], [10, 12]]


@pytest.mark.parametrize(
    ("heartbeat", "stalled", "gone"), [(30, 60, 120), (60, 30, 120), (0.1, 0.1, 0.2)], ids=["usual", "slow", "quick"]
)
def test_who_does_not_read_is_given_up_for_that_before_tcp_gives_up(
    heartbeat: float, stalled: float, gone: float
) -> None:
    settings = {"limits.heartbeat_seconds": heartbeat, "limits.stalled_seconds": stalled}
    vitality = vitality_of(configured("http://localhost:1", settings))
    assert vitality == Vitality(heartbeat, gone)
    assert vitality.gone_seconds > stalled


async def test_unix_socket_is_not_watched_and_works() -> None:
    one, other = socket.socketpair()
    with one, other:
        Vitality(1, 2).watch(one)
        one.send(b"still there")
        assert other.recv(100) == b"still there"
