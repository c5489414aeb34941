"""A caller of the simulated platform that says what it is told to say, and keeps no cookies of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any

import aiohttp
import jwt
import msgspec

from proxy.demo.simulator import Simulator


REALTIME = "/notification/realtime"
CURRENT_USER = "/user/currentUser"

Message = dict[str, Any]
Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answered:
    """A status, a body (decoded if it is JSON, None if there was none), and the cookies that were set."""

    status: int
    body: Any
    headers: Mapping[str, str]
    cookies: SimpleCookie

    @property
    def pair(self) -> "Pair":
        return Pair(self.cookies["authorization"].value, self.cookies["XSRF-TOKEN"].value)

    @property
    def message(self) -> str:
        return str(self.body["message"])


@dataclass(frozen=True, slots=True)
class Pair:
    """What a login gave in cookies."""

    authorization: str = field(repr=False)
    xsrf_token: str = field(repr=False)

    @property
    def cookie(self) -> dict[str, str]:
        return {"Cookie": f"authorization={self.authorization}; XSRF-TOKEN={self.xsrf_token}"}

    @property
    def headers(self) -> dict[str, str]:
        return {**self.cookie, "X-XSRF-TOKEN": self.xsrf_token}

    @property
    def claims(self) -> dict[str, Any]:
        return claims_of(self.authorization)


def claims_of(token: str) -> dict[str, Any]:
    """What a JWT says, whoever signed it."""
    return jwt.decode(token, options={"verify_signature": False})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Calls one simulator."""

    http: aiohttp.ClientSession
    simulator: Simulator

    async def call(self, method: str, path: str, headers: Headers | None = None, **options: Any) -> Answered:
        async with self.http.request(method, self.simulator.url + path, headers=headers, **options) as response:
            body: Any = await response.read() or None
            if body is not None and response.content_type.endswith("json"):
                body = msgspec.json.decode(body)
            return Answered(response.status, body, response.headers, response.cookies)

    async def get(self, path: str = CURRENT_USER, headers: Headers | None = None) -> Answered:
        return await self.call("GET", path, headers)

    async def log_in(
        self,
        fields: Headers | None = None,
        *,
        path: str = "/tenant/oauth?tenant_id=t0815",
        headers: Headers | None = None,
    ) -> Answered:
        """Log the simulator's first user in, unless other fields are given."""
        accounts = self.simulator.accounts
        form = {"grant_type": "PASSWORD", "username": accounts.user, "password": accounts.password} | dict(fields or {})
        return await self.call("POST", path, headers, data=form)

    async def shake(self, authn: object, headers: Headers | None = None) -> bool:
        """Shake hands on a new WebSocket, opened with these headers, and close it; was it successful?"""
        async with self.http.ws_connect(self.simulator.url + REALTIME, headers=headers) as socket:
            await socket.send_json([handshake(authn)])
            (reply,) = await socket.receive_json(timeout=5)
            assert reply["successful"] or reply["error"] == "403::Handshake denied"
            return bool(reply["successful"])

    async def poll(self, *messages: Message, headers: Headers) -> Answered:
        return await self.call("POST", f"{REALTIME}/", headers, json=list(messages))


def handshake(authn: object = None) -> Message:
    message: Message = {"channel": "/meta/handshake", "version": "1.0"}
    return message if authn is None else {**message, "ext": {"com.cumulocity.authn": authn}}
