"""A browser in miniature: cookies as browsers keep them for one origin, and what it says of itself."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from http.cookies import Morsel, SimpleCookie
from typing import Any, Final

import aiohttp
import msgspec

from proxy.demo.simulator import Simulator
from tests.conftest import PASSWORD, Message, Running, exchange, handshake, running


ORIGIN: Final = "http://localhost:8080"
SETTINGS: Final[Mapping[str, object]] = {
    "credentials.default.source": "session",
    "frontdoor.public_origin": ORIGIN,
}
TICKET: Final = "__Host-c8y-session"


@dataclass
class Browser:
    """One person's browser, on a page of `origin`."""

    proxied: Running
    origin: str = ORIGIN
    cookies: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, "Morsel[str]"] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        jar = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return {"Origin": self.origin, "Sec-Fetch-Site": "same-origin"} | ({"Cookie": jar} if jar else {})

    async def get(self, path: str, **more: str) -> "Answered":
        """Ask as a page of the same origin does: without an Origin."""
        headers = {name: value for name, value in self.headers.items() if name != "Origin"} | more
        return await self._ask("GET", path, headers)

    async def send(self, path: str, content: object = None, *, method: str = "POST", **more: str) -> "Answered":
        headers = self.headers | {"Content-Type": "application/json"} | more
        return await self._ask(method, path, headers, data=b"" if content is None else msgspec.json.encode(content))

    async def submit(self, path: str, fields: Mapping[str, str], **more: str) -> "Answered":
        return await self._ask("POST", path, self.headers | more, data=dict(fields))

    async def sign_in(self, user: str = "service", password: str = PASSWORD, **more: str) -> "Answered":
        """Sign in as a script does."""
        return await self.send("/sign-in", {"user": user, "password": password, **more})

    async def csrf_token(self) -> str:
        told: dict[str, str] = msgspec.json.decode((await self.get("/session")).body)
        return told["csrfToken"]

    def socket(self) -> AbstractAsyncContextManager[aiohttp.ClientWebSocketResponse]:
        return self.proxied.socket(headers=self.headers)

    async def shake_hands(self, socket: aiohttp.ClientWebSocketResponse) -> Message:
        [answer] = await exchange(socket, [handshake()])
        return answer

    async def poll(self, batch: object) -> aiohttp.ClientResponse:
        async with self.proxied.post(batch, headers=self.headers) as response:
            await response.read()
            return response

    async def _ask(self, method: str, path: str, headers: Mapping[str, str], **more: Any) -> "Answered":
        url = f"{self.proxied.url}{path}"
        async with self.proxied.client.request(method, url, headers=headers, allow_redirects=False, **more) as response:
            for line in response.headers.getall("Set-Cookie", ()):
                self._keep(line)
            return Answered(response.status, response.headers, await response.read())

    def _keep(self, line: str) -> None:
        for name, morsel in SimpleCookie(line).items():
            if name.startswith("__Host-"):
                assert (morsel["secure"], morsel["path"], morsel["domain"]) == (True, "/", ""), line
            if morsel["max-age"] == "0":
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = morsel.value
                self.attributes[name] = morsel


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def told(self) -> dict[str, str]:
        decoded: dict[str, str] = msgspec.json.decode(self.body)
        return decoded


@asynccontextmanager
async def front_door(upstream: Simulator, settings: Mapping[str, object] | None = None) -> AsyncIterator[Running]:
    """A proxy that people sign in at."""
    async with running(upstream.url, dict(SETTINGS) | dict(settings or {}), values={}) as proxied:
        yield proxied
