"""A browser with a platform session of its own: its cookies go up by the platform's names, and come down by ours."""

import asyncio
import ssl
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.conftest import Message, Running, handshake, running


PAGE: Final = "https://app.example.com"
SETTINGS: Final[dict[str, object]] = {"credentials.default.source": "cookie", "gate.origins": [PAGE]}
AUTHN: Final = "com.cumulocity.authn"
CLIENT_ID: Final = "5k2"
HOST: Final = "__Host-authorization"
KEPT: Final = "Path=/; Secure; HttpOnly; SameSite=Lax"


def token(xsrf_token: str, *, size: int = 0) -> str:
    """A session's token as the platform makes it, which claims that XSRF token."""
    claims = msgspec.json.encode({"xsrfToken": xsrf_token, "more": "m" * size})
    return f"e30.{urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


FIRST: Final = token("first-xsrf")
SECOND: Final = token("second-xsrf")
LONG: Final = token("second-xsrf", size=4000)
RENEWED: Final = (
    f"authorization={SECOND}; Max-Age=1200; Domain=.tenant.example.com; Path=/tenant; HttpOnly; SameSite=None; Secure",
    "XSRF-TOKEN=second-xsrf; Max-Age=1200; Domain=.tenant.example.com; Secure",
    "JSESSIONID=j; Path=/",
)
ENDED: Final = ("authorization=deleted; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:10 GMT", "XSRF-TOKEN=; Max-Age=0")


@dataclass(eq=False)
class Tenant:
    """An upstream that accepts everything, sets these cookies on each answer, and keeps what it is sent.

    The answer to a connect begins at once, and ends when it is let go.
    """

    cookies: tuple[str, ...] = RENEWED
    heads: list[dict[str, str]] = field(default_factory=list)
    authn: list[object] = field(default_factory=list)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.heads.append({name.lower(): value for name, value in request.headers.items()})
        if request.method == "GET":
            socket = web.WebSocketResponse()
            self._set(socket)
            await socket.prepare(request)
            async for frame in socket:
                await socket.send_str(self._replies(frame.data).decode())
            return socket
        asked = await request.read()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        self._set(response)
        await response.prepare(request)
        if b"/meta/connect" in asked:
            await response.write(b" ")
            await self.let_go.wait()
        await response.write(self._replies(asked))
        return response

    def _set(self, response: web.StreamResponse) -> None:
        for cookie in self.cookies:
            response.headers.add("Set-Cookie", cookie)

    def _replies(self, asked: str | bytes) -> bytes:
        batch: list[Message] = msgspec.json.decode(asked)
        self.authn += [message.get("ext", {}).get(AUTHN) for message in batch]
        return msgspec.json.encode(
            [{"channel": each["channel"], "successful": True, "clientId": CLIENT_ID} for each in batch]
        )


@pytest.fixture
async def tenant() -> AsyncIterator[Tenant]:
    upstream = Tenant()
    server = TestServer(web.Application(), host="localhost")
    server.app.router.add_route("*", "/{path:.*}", upstream.answer)
    await server.start_server()
    upstream.url = str(server.make_url("")).rstrip("/")
    yield upstream
    await server.close()


Encrypted = Callable[[Tenant], AbstractAsyncContextManager[Running]]


@pytest.fixture
def encrypted(tmp_path: Path) -> Encrypted:
    """A proxy whose listener speaks TLS."""
    authority, trusts = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusts)
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    files = {
        "listen.tls.key_file": str(tmp_path / "key.pem"),
        "listen.tls.certificate_file": str(tmp_path / "certificate.pem"),
    }
    return lambda tenant: running(tenant.url, SETTINGS | files, values={}, client_tls=trusts)


def brings(cookies: str, xsrf_token: str | None = None) -> dict[str, str]:
    return {"Origin": PAGE, "Cookie": cookies} | ({"X-XSRF-TOKEN": xsrf_token} if xsrf_token else {})


def cookies_of(headers: Any) -> list[str]:
    set_cookies: Iterable[str] = headers.getall("Set-Cookie", ())
    return list(set_cookies)


@asynccontextmanager
async def answered(
    proxied: Running, transport: str, cookies: str = f"{HOST}={FIRST}; XSRF-TOKEN=first-xsrf", **ext: Any
) -> AsyncIterator[tuple[list[str], Message]]:
    """The cookies of the answer to a handshake, or to the upgrade before it, and the reply."""
    asked = handshake(ext={AUTHN: ext}) if ext else handshake()
    if transport == "websocket":
        async with proxied.socket(headers=brings(cookies)) as socket:
            await socket.send_json([asked])
            [reply] = await socket.receive_json()
            yield cookies_of(socket._response.headers), reply
    else:
        async with proxied.post([asked], headers=brings(cookies)) as response:
            [reply] = await response.json()
            yield cookies_of(response.headers), reply


both_ways: Final = pytest.mark.parametrize("transport", ["websocket", "long-polling"])


@both_ways
async def test_renewed_session_comes_down_by_a_name_that_is_for_this_host_alone(
    encrypted: Encrypted, tenant: Tenant, transport: str
) -> None:
    async with encrypted(tenant) as proxied, answered(proxied, transport) as (cookies, reply):
        assert reply["successful"] is True
        assert cookies == [
            f"{HOST}={SECOND}; {KEPT}; Max-Age=1200",
            "XSRF-TOKEN=second-xsrf; Path=/; Secure; SameSite=Lax; Max-Age=1200",
        ]


@both_ways
async def test_without_tls_it_keeps_the_name_that_browsers_keep(tenant: Tenant, transport: str) -> None:
    async with running(tenant.url, SETTINGS, values={}) as proxied, answered(proxied, transport) as (cookies, _):
        assert cookies == [
            f"authorization={SECOND}; Path=/; HttpOnly; SameSite=Lax; Max-Age=1200",
            "XSRF-TOKEN=second-xsrf; Path=/; SameSite=Lax; Max-Age=1200",
        ]


@both_ways
async def test_session_that_ended_is_taken_away_by_both_names(
    encrypted: Encrypted, tenant: Tenant, transport: str
) -> None:
    tenant.cookies = ENDED
    async with encrypted(tenant) as proxied, answered(proxied, transport) as (cookies, _):
        assert cookies == [
            f"{HOST}=; {KEPT}; Max-Age=0",
            f"authorization=; {KEPT}; Max-Age=0",
            "XSRF-TOKEN=; Path=/; Secure; SameSite=Lax; Max-Age=0",
        ]


async def test_renewed_session_comes_down_with_the_head_of_an_answer_that_is_held(
    encrypted: Encrypted, tenant: Tenant
) -> None:
    """Whoever had to wait for the end of it would still have the old one when that is revoked."""
    async with encrypted(tenant) as proxied:
        headers = brings(f"{HOST}={FIRST}", "first-xsrf")
        async with proxied.post([handshake()], headers=headers) as response:
            [shaken] = await response.json()
        connect = {"channel": "/meta/connect", "clientId": shaken["clientId"], "connectionType": "long-polling"}
        async with proxied.post([connect], headers=headers) as response:
            assert cookies_of(response.headers)[0] == f"{HOST}={SECOND}; {KEPT}; Max-Age=1200"
            assert not tenant.let_go.is_set()
            tenant.let_go.set()
            assert (await response.json())[0]["successful"] is True
        tenant.let_go.set()
        renewed = brings(f"{HOST}={SECOND}; XSRF-TOKEN=second-xsrf")
        async with proxied.post([connect], headers=renewed) as response:  # it is the same client still
            assert (await response.json())[0]["successful"] is True
        assert tenant.heads[-1]["cookie"] == f"authorization={SECOND}"


@both_ways
async def test_token_that_no_browser_keeps_comes_down_whole_and_is_told_of_once(
    encrypted: Encrypted, tenant: Tenant, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    tenant.cookies = (f"authorization={LONG}; Path=/",)
    async with encrypted(tenant) as proxied:
        for _ in range(2):
            async with answered(proxied, transport) as (cookies, _):
                assert cookies == [f"{HOST}=; {KEPT}; Max-Age=0", f"authorization={LONG}; {KEPT}"]
    told = [record.getMessage() for record in caplog.records if "longer than a browser keeps" in record.getMessage()]
    assert len(told) == 1
    assert "no more than 4096 bytes" in told[0]
    assert 'credentials.NAME.source = "session"' in told[0]
    assert LONG not in caplog.text


@both_ways
@pytest.mark.parametrize(
    "cookies",
    [
        pytest.param(f"{HOST}={FIRST}", id="the one that came through us"),
        pytest.param(f"authorization={FIRST}", id="the platform's own, where the tenant shares our domain"),
        pytest.param(f"authorization={SECOND}; {HOST}={FIRST}", id="both: a sibling host cannot have set ours"),
        pytest.param(f"__HOST-authorization={SECOND}; {HOST}={FIRST}", id="another one of nearly that name"),
        pytest.param(
            f"{HOST}={FIRST}; __Host-c8y-session=s; __Host-c8y-device=d; __Host-c8y-sign-in=n", id="beside our own"
        ),
    ],
)
async def test_one_session_goes_up_by_the_platforms_name_and_nothing_beside_it(
    encrypted: Encrypted, tenant: Tenant, transport: str, cookies: str
) -> None:
    asked = f"{cookies}; XSRF-TOKEN=first-xsrf"
    async with encrypted(tenant) as proxied, answered(proxied, transport, asked) as (_, reply):
        assert reply["successful"] is True
    assert [head["cookie"] for head in tenant.heads] == [f"authorization={FIRST}"]
    assert tenant.authn == [{"xsrfToken": "first-xsrf"}]


@pytest.mark.parametrize(
    "cookies",
    [
        f"{HOST}={FIRST}; {HOST}={SECOND}; XSRF-TOKEN=first-xsrf",
        f"{HOST}={FIRST}; {HOST}={FIRST}; XSRF-TOKEN=first-xsrf",
        f"authorization={FIRST}; authorization={SECOND}; XSRF-TOKEN=first-xsrf",
        f"{HOST}={FIRST}; authorization={SECOND}; authorization={SECOND}; XSRF-TOKEN=first-xsrf",
        f"{HOST}={FIRST}; XSRF-TOKEN=first-xsrf; XSRF-TOKEN=second-xsrf",
    ],
    ids=["two of ours", "the same twice", "two of the platform's", "two beside ours", "two XSRF tokens"],
)
async def test_two_cookies_of_one_name_open_nothing(encrypted: Encrypted, tenant: Tenant, cookies: str) -> None:
    async with encrypted(tenant) as proxied:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with proxied.socket(headers=brings(cookies)):
                pass
        assert refused.value.status == 401
        async with proxied.post([handshake()], headers=brings(cookies, "first-xsrf")) as response:
            [reply] = await response.json()
            assert reply["successful"] is False
            assert "sent more than once" in reply["error"]
        assert proxied.handshakes("long-polling", "cookie") == {("refused", "no_credential"): 1}
    assert tenant.heads == []


@both_ways
async def test_wrong_xsrf_token_in_a_handshake_is_refused_whatever_the_cookie_says(
    encrypted: Encrypted, tenant: Tenant, transport: str
) -> None:
    async with encrypted(tenant) as proxied:
        async with answered(proxied, transport, xsrfToken="second-xsrf") as (_, reply):
            assert reply["successful"] is False
            assert reply["advice"]["reconnect"] == "handshake"
            assert "Reload the page" in reply["error"]
            assert "xsrf" not in reply["error"]
        assert proxied.handshakes(transport, "cookie") == {("refused", "no_credential"): 1}
        assert tenant.authn == []
        async with answered(proxied, transport, xsrfToken="first-xsrf") as (_, reply):
            assert reply["successful"] is True


async def test_wrong_xsrf_token_in_a_header_is_refused(encrypted: Encrypted, tenant: Tenant) -> None:
    headers = brings(f"{HOST}={FIRST}; XSRF-TOKEN=first-xsrf", "second-xsrf")
    async with encrypted(tenant) as proxied:
        async with proxied.post([handshake()], headers=headers) as response:
            [reply] = await response.json()
            assert reply["successful"] is False
            assert "reload the page" in reply["error"]
        async with proxied.post([{"channel": "/meta/connect", "clientId": "c"}], headers=headers) as response:
            assert response.status == 401
        assert proxied.handshakes("long-polling", "cookie") == {("refused", "no_credential"): 1}
    assert tenant.heads == []


@both_ways
async def test_xsrf_cookie_that_somebody_tossed_is_no_spare(
    encrypted: Encrypted, tenant: Tenant, transport: str
) -> None:
    tossed = f"{HOST}={FIRST}; XSRF-TOKEN=second-xsrf"
    async with encrypted(tenant) as proxied, answered(proxied, transport, tossed) as (_, reply):
        assert reply["successful"] is False
        assert proxied.handshakes(transport, "cookie") == {("refused", "no_credential"): 1}
    assert tenant.authn == []


@both_ways
async def test_claim_of_the_session_fills_no_gap(encrypted: Encrypted, tenant: Tenant, transport: str) -> None:
    """It is there in every request that a browser sends, whoever made it: a page of anybody's, too."""
    async with encrypted(tenant) as proxied, answered(proxied, transport, f"{HOST}={FIRST}") as (_, reply):
        assert reply["successful"] is False
    assert tenant.authn == []
