"""Clients that talk on either transport in the same words."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Final

import aiohttp
import msgspec

from proxy.gate.keys import generated, stored
from tests.conftest import Message, Running, handshake, receive


TRANSPORTS: Final = ("websocket", "long-polling")
ENDPOINT: Final = "/notification/realtime"

KEYS: Final = {name: generated(name) for name in ("ann", "bob")}
BY_KEY: Final[dict[str, Any]] = {
    "gate.identity": ["basic", "bearer"],
    "gate.origins": ["https://app.example.com"],  # cookies are for browsers
    "clients": [{"name": name, "key": stored(key)} for name, key in KEYS.items()],
}
"""Settings by which two clients are known."""

PAGE: Final = "https://app.example.com"
ANN: Final = {"Origin": PAGE, "Authorization": f"Bearer {KEYS['ann']}"}
BOB: Final = {"Origin": PAGE, "Authorization": f"Bearer {KEYS['bob']}"}


class Talk:
    """Says a batch, given as messages or as it is written; waits for as many replies as it has messages, and returns
    all that came until then.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.cookie = ""
        self._socket = socket

    async def __call__(self, *batch: Message | bytes) -> list[Message]:
        await self._socket.send_str(written(batch).decode())
        came: list[Message] = []
        while sum("successful" in message for message in came) < len(batch):
            came += await receive(self._socket)
        return came


class PollingTalk(Talk):
    """The same by long-polling; the session cookie is kept."""

    def __init__(self, proxied: Running, endpoint: str, headers: Mapping[str, str]) -> None:
        self.cookie = ""
        self._proxied = proxied
        self._endpoint = endpoint
        self._headers = headers

    async def __call__(self, *batch: Message | bytes) -> list[Message]:
        headers = with_cookie(self._headers, self.cookie)
        async with self._proxied.post(written(batch), f"{self._endpoint}/", headers=headers) as response:
            assert response.status == 200, await response.text()
            self.cookie = response.headers.get("Set-Cookie", self.cookie).partition(";")[0]
            came: list[Message] = msgspec.json.decode(await response.read())
            return came


@asynccontextmanager
async def talking(
    proxied: Running, transport: str, endpoint: str = ENDPOINT, headers: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Talk]:
    """A client on a WebSocket of its own, or one that polls."""
    if transport == "long-polling":
        yield PollingTalk(proxied, endpoint, headers)
    else:
        async with proxied.socket(endpoint, headers=headers) as socket:
            yield Talk(socket)


def with_cookie(headers: Mapping[str, str], cookie: str) -> dict[str, str]:
    """Headers with one cookie more, if there is one."""
    cookies = "; ".join(filter(None, (headers.get("Cookie"), cookie)))
    return {**headers, "Cookie": cookies} if cookies else dict(headers)


def written(batch: tuple[Message | bytes, ...]) -> bytes:
    """A batch as an array, with what is given as it is written."""
    return b"[" + b",".join(one if isinstance(one, bytes) else msgspec.json.encode(one) for one in batch) + b"]"


async def shaken(talk: Talk) -> str:
    """Handshake; returns the clientId."""
    [answer] = await talk(handshake())
    assert answer["successful"] is True
    client_id: str = answer["clientId"]
    return client_id


def connect(client_id: str, transport: str = "long-polling") -> Message:
    """A connect that is answered at once."""
    message = {"channel": "/meta/connect", "id": "c", "clientId": client_id, "connectionType": transport}
    return message | {"advice": {"timeout": 0}}


def subscribe(client_id: str, subscription: object, number: str = "s") -> Message:
    return {"channel": "/meta/subscribe", "id": number, "clientId": client_id, "subscription": subscription}
