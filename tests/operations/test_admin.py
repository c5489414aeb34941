"""The admin listener: who may ask, and what may change something."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp.web import Response, ServerRunner, TCPSite
from prometheus_client import CollectorRegistry

from proxy.gate.admission import Hosts
from proxy.operations.admin import HOSTS_KEY, Admin
from proxy.operations.history import History
from proxy.operations.live import Live
from proxy.operations.metrics import Metrics
from proxy.operations.status import StatusPage
from tests.conftest import Running, running


PATHS = ["/", "/status", "/status/still", "/metrics", "/livez", "/startupz", "/readyz", "/nowhere"]


async def told(port: int, request: bytes) -> tuple[int, dict[str, str], str]:
    """Send the bytes of one request; returns status, headers (names in lower case) and text of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"])) if not request.startswith(b"HEAD") else b""
    writer.close()
    await writer.wait_closed()
    return int(status.split()[1]), headers, body.decode()


async def asked(port: int, *headers: str, method: str = "GET", path: str = "/livez") -> tuple[int, dict[str, str], str]:
    lines = [f"{method} {path} HTTP/1.1", *headers, "", ""]
    return await told(port, "\r\n".join(lines).encode())


@pytest.fixture
async def admin() -> AsyncIterator[tuple[Admin, int]]:
    """An admin listener that a name is configured for, and its port; with one route that changes something."""
    hosts = Hosts(("metrics.example", "other.example:9090"), listening_on="0.0.0.0", key=HOSTS_KEY, any_address=True)  # noqa: S104
    status = StatusPage(History(), Live(Metrics("stored")), credentials=tuple, unready=lambda: None)
    admin = Admin(CollectorRegistry(), hosts, is_started=lambda: True, unready=lambda: None, status=status)
    admin.routes = {**admin.routes, ("POST", "/change"): lambda _: Response(text="changed\n")}
    runner = ServerRunner(admin.server())
    await runner.setup()
    await TCPSite(runner, "127.0.0.1", 0).start()
    yield admin, runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("10.1.2.3:9090", id="the address of a pod, as kubelet and Prometheus send it"),
        pytest.param("10.1.2.3", id="an address without port"),
        pytest.param("[2001:db8::9]:9090", id="an IPv6 address"),
        pytest.param("[::1]", id="loopback of IPv6"),
        pytest.param("127.0.0.1:9090", id="loopback"),
        pytest.param("localhost:9090", id="localhost"),
        pytest.param("LOCALHOST", id="localhost in other case"),
        pytest.param("metrics.example", id="a listed name"),
        pytest.param("Metrics.Example:80", id="a listed name with any port"),
        pytest.param("other.example:9090", id="a name listed with its port"),
    ],
)
async def test_addresses_and_listed_names_may_ask(admin: tuple[Admin, int], host: str) -> None:
    assert (await asked(admin[1], f"Host: {host}"))[0] == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="none"),
        pytest.param(["Host: localhost", "Host: localhost"], id="two"),
        pytest.param(["Host: localhost", "HOST: evil.example"], id="two that differ"),
        pytest.param(["Host: "], id="an empty one"),
        pytest.param(["Host: evil.example"], id="a name rebound to us"),
        pytest.param(["Host: evil.example:9090"], id="the same with our port"),
        pytest.param(["Host: localhost.evil.example"], id="localhost in front"),
        pytest.param(["Host: 127.0.0.1.evil.example"], id="an address in front"),
        pytest.param(["Host: x.metrics.example"], id="a name below a listed one"),
        pytest.param(["Host: other.example:80"], id="another port than the listed one"),
        pytest.param(["Host: 127.1"], id="a short address, which is a name"),
        pytest.param(["Host: 2130706433"], id="an address as one number, which is a name"),
        pytest.param(["Host: user@localhost"], id="a user in front"),
    ],
)
async def test_any_other_name_is_refused_whatever_it_asks_for(
    admin: tuple[Admin, int], headers: list[str], method: str, path: str
) -> None:
    status, answered, text = await asked(admin[1], *headers, method=method, path=path)
    assert status == 403
    assert "admin.hosts" in text or method == "HEAD"
    assert "evil" not in text
    assert (answered["cache-control"], answered["x-content-type-options"]) == ("no-store", "nosniff")


async def test_request_of_http_1_0_without_a_host_is_refused(admin: tuple[Admin, int]) -> None:
    status, _, text = await told(admin[1], b"GET /livez HTTP/1.0\r\n\r\n")
    assert status == 403
    assert "admin.hosts" in text


@pytest.mark.parametrize("path", ["/change", *PATHS])
@pytest.mark.parametrize("origin", ["https://app.example.com", "http://localhost:9090", "null", ""])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_pages_may_change_nothing_whatever_the_path(
    admin: tuple[Admin, int], method: str, origin: str, path: str
) -> None:
    status, headers, text = await asked(admin[1], "Host: localhost", f"Origin: {origin}", method=method, path=path)
    assert status == 403
    assert "without an Origin" in text
    assert not any(name.startswith("access-control-") for name in headers)


async def test_route_that_changes_something_is_open_to_whom_no_page_sent(admin: tuple[Admin, int]) -> None:
    status, headers, text = await asked(admin[1], "Host: localhost", method="POST", path="/change")
    assert (status, text) == (200, "changed\n")
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_is_neither_kept_nor_guessed_at(admin: tuple[Admin, int], method: str, path: str) -> None:
    status, headers, text = await asked(admin[1], "Host: localhost", method=method, path=path)
    assert status == (404 if path == "/nowhere" else 405 if method == "POST" else 200)
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert headers["server"] == "c8y-realtime-proxy"
    assert headers.get("allow") == ("GET" if status == 405 else None)
    assert "aiohttp" not in text


async def test_connection_stays_open_for_the_next_probe(admin: tuple[Admin, int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", admin[1])
    for _ in range(2):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: 10.1.2.3\r\n\r\n")
        assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()


async def test_configured_names_are_asked_by_their_key(proxied: Running) -> None:
    assert (await asked(proxied.proxy.admin_port, "Host: metrics.example"))[0] == 403
    settings = {"admin.hosts": ["metrics.example"]}
    async with running("http://localhost:1", settings) as named:
        assert (await asked(named.proxy.admin_port, "Host: metrics.example"))[0] == 200
        assert (await asked(named.proxy.admin_port, "Host: other.example"))[0] == 403


async def test_names_of_the_gate_are_none_of_the_admin_listener() -> None:
    async with running("http://localhost:1", {"gate.hosts": ["proxy.example.com"]}) as named:
        assert (await asked(named.proxy.admin_port, "Host: proxy.example.com"))[0] == 403


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/metrics"])
async def test_probes_and_scrapers_ask_by_the_address_of_the_pod(proxied: Running, path: str) -> None:
    assert (await asked(proxied.proxy.admin_port, "Host: 10.1.2.3:9090", path=path))[0] == 200
