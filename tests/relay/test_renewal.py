"""A platform session whose cookie upstream renews is the same client still, and its clientId stays good."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.conftest import Message, Running, configured, handshake, running


PAGE = "https://app.example.com"
SETTINGS = {"credentials.default.source": "cookie", "gate.origins": [PAGE]}
CLIENT_ID = "5k2"
RENEWED = "authorization=second; Path=/; HttpOnly"


def brings(token: str) -> dict[str, str]:
    return {"Origin": PAGE, "Cookie": f"authorization={token}; XSRF-TOKEN=x"}


class Renewing:
    """An upstream that accepts everything, and renews the cookie of every upgrade and of every connect."""

    def __init__(self) -> None:
        self.client_ids: list[str | None] = []
        self.renewal = RENEWED

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            socket = web.WebSocketResponse()
            socket.headers["Set-Cookie"] = self.renewal
            await socket.prepare(request)
            async for frame in socket:
                await socket.send_str(msgspec.json.encode(self.replies(frame.data)).decode())
            return socket
        asked = await request.read()
        renews = {"Set-Cookie": self.renewal} if b"/meta/connect" in asked else {}
        return web.Response(body=msgspec.json.encode(self.replies(asked)), headers=renews)

    def replies(self, asked: str | bytes) -> list[Message]:
        batch: list[Message] = msgspec.json.decode(asked)
        self.client_ids += [message.get("clientId") for message in batch]
        return [{"channel": message["channel"], "successful": True, "clientId": CLIENT_ID} for message in batch]


@pytest.fixture
async def renewing() -> AsyncIterator[tuple[Renewing, str]]:
    upstream = Renewing()
    server = TestServer(web.Application(), host="localhost")
    server.app.router.add_route("*", "/{path:.*}", upstream.answer)
    await server.start_server()
    yield upstream, str(server.make_url(""))
    await server.close()


async def polled(proxied: Running, token: str, **message: str) -> Message:
    """The reply to one message that a client sends with its cookie."""
    asked = [handshake() if not message else {"channel": "/meta/connect", **message}]
    async with proxied.post(asked, headers=brings(token)) as response:
        [reply] = msgspec.json.decode(await response.read(), type=list[Message])
        return reply


async def test_renewed_cookie_is_of_the_same_client_on_long_polling(renewing: tuple[Renewing, str]) -> None:
    upstream, url = renewing
    async with running(url, SETTINGS, values={}) as proxied:
        client_id = (await polled(proxied, "first"))["clientId"]
        assert client_id.startswith(f"{CLIENT_ID}.")
        assert (await polled(proxied, "second", clientId=client_id))["error"] == "402::Unknown client"
        assert (await polled(proxied, "first", clientId=client_id))["successful"] is True  # renews the cookie
        assert (await polled(proxied, "second", clientId=client_id))["successful"] is True
        assert (await polled(proxied, "third", clientId=client_id))["error"] == "402::Unknown client"
    assert upstream.client_ids == [None, CLIENT_ID, CLIENT_ID]


async def test_renewed_cookie_is_of_the_same_client_on_websockets(renewing: tuple[Renewing, str]) -> None:
    upstream, url = renewing
    connect = {"channel": "/meta/connect", "connectionType": "websocket"}
    async with running(url, SETTINGS, values={}) as proxied:
        async with proxied.socket(headers=brings("first")) as socket:  # renews the cookie
            await socket.send_json([handshake()])
            [shaken] = await socket.receive_json()
        async with proxied.socket(headers=brings("second")) as socket:
            await socket.send_json([connect | {"clientId": shaken["clientId"]}])
            assert (await socket.receive_json())[0]["successful"] is True
        async with proxied.socket(headers=brings("third")) as socket:
            await socket.send_json([connect | {"clientId": shaken["clientId"]}])
            assert (await socket.receive_json())[0]["error"] == "402::Unknown client"
    assert upstream.client_ids == [None, CLIENT_ID]


async def test_renewed_cookie_is_of_the_same_client_after_the_configuration_was_read_again(
    renewing: tuple[Renewing, str],
) -> None:
    """Those who renewed it before, and those whose connections were opened before."""
    _, url = renewing
    changed = [configured(url, SETTINGS | {"limits.batch_messages": most}, {}) for most in (7, 8)]
    async with running(url, SETTINGS, values={}) as proxied:
        client_id = (await polled(proxied, "first"))["clientId"]
        await polled(proxied, "first", clientId=client_id)  # renews the cookie
        await proxied.proxy.change(changed[0])
        assert (await polled(proxied, "second", clientId=client_id))["successful"] is True
        async with proxied.socket(headers=brings("second")) as socket:
            await proxied.proxy.change(changed[1])
            await socket.send_json([{"channel": "/meta/connect", "clientId": client_id}])
            assert (await socket.receive_json())[0]["successful"] is True


@pytest.mark.parametrize(
    "attributes",
    [
        "Max-Age=0",
        "Path=/; max-age = 0; HttpOnly",
        "Max-Age=-1",
        "Expires=Thu, 01 Jan 1970 00:00:10 GMT",
        "expires=Thu, 1-Jan-1970 00:00:00 GMT; Path=/",
    ],
)
async def test_what_stands_in_a_cookie_that_ends_a_session_is_nobody(
    renewing: tuple[Renewing, str], attributes: str
) -> None:
    """It is the same for everybody, so whoever brings it would be whose session ended last."""
    upstream, url = renewing
    upstream.renewal = f"authorization=deleted; {attributes}"
    async with running(url, SETTINGS, values={}) as proxied:
        client_id = (await polled(proxied, "first"))["clientId"]
        assert (await polled(proxied, "first", clientId=client_id))["successful"] is True  # ends the session
        assert (await polled(proxied, "deleted", clientId=client_id))["error"] == "402::Unknown client"
    assert upstream.client_ids == [None, CLIENT_ID]
