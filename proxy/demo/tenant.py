"""The state behind the simulated endpoint, whatever the transport: who is admitted, which sessions there are,
what has arrived, and how it fails on purpose.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from aiohttp import WSCloseCode, web
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.demo.accounts import Accounts
from proxy.demo.admission import Admission, Admitted
from proxy.demo.devices import Devices
from proxy.demo.faults import Fault
from proxy.demo.logins import Logins
from proxy.demo.sessions import Carrier, HeldConnect, Incoming, Message, Outgoing, Sessions, read_batch
from proxy.demo.single_sign_on import SignOns, SingleSignOn
from proxy.demo.subscriptions import Subscriptions


_REMEMBERED = 10_000  # a demo runs for weeks
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Request:
    """One upgrade, real-time POST or call of the platform's other HTTP as it arrived."""

    kind: Literal["upgrade", "post", "call"]
    method: str
    path: str
    query: str
    headers: CIMultiDictProxy[str]


class Tenant:
    """What both transports ask and tell. Each record is in order of arrival; `requests` are upgrades and real-time
    POSTs, `calls` what reached the platform's other HTTP, `payloads` real-time bodies and frames, byte for byte.
    `sockets` maps each open WebSocket to whether the credentials of its handshakes are good still.

    Fault switches, for tests:

    - `accounts` may be replaced at any time, as when a password is changed, and so may `sso`;
    - `answers_handshakes = False`: handshakes are read and never answered;
    - `answers_with_status = 503`: every upgrade and real-time POST gets this status and nothing else;
    - `faults["/tenant/oauth"] = Fault(...)`: one of the other endpoints fails, see there;
    - `closes_sockets = True`: a WebSocket is closed when a credential of its handshakes ends (the documents do not say
      what the platform does; left alone, the simulator keeps it open);
    - `forget_sessions()`: every clientId becomes unknown.
    """

    def __init__(
        self,
        *,
        accounts: Accounts,
        sessions: Sessions,
        logins: Logins,
        sso: SingleSignOn | None,
        sign_ons: SignOns,
        devices: Devices,
        keepalive_seconds: float,
        session_cookie: bool,
    ) -> None:
        self.accounts = accounts
        self.logins = logins
        self.sso = sso
        self.sign_ons = sign_ons
        self.devices = devices
        self.subscriptions = Subscriptions(tenant=accounts.tenant)
        self.answers_handshakes = True
        self.answers_with_status: int | None = None
        self.faults: dict[str, Fault] = {}
        self.closes_sockets = False
        self.requests: list[Request] = []
        self.calls: list[Request] = []
        self.messages: list[Message] = []
        self.payloads: list[bytes] = []
        self.sessions = sessions
        self.sockets: dict[web.WebSocketResponse, list[Callable[[], bool]]] = {}
        self.keepalive_seconds = keepalive_seconds
        self.session_cookie = session_cookie
        self._changed = asyncio.Event()

    @property
    def client_ids(self) -> frozenset[str]:
        """The clientIds that are known now."""
        return frozenset(session.client_id for session in self.sessions)

    @property
    def open_sockets(self) -> int:
        """How many WebSockets are open now."""
        return len(self.sockets)

    @property
    def held_connects(self) -> int:
        """How many connects wait now, on either transport."""
        return sum(session.held is not None for session in self.sessions)

    def publish(self, channel: str, data: object, *, tenant: str | None = None) -> int:
        """Send one notification of a tenant, the first one unless told, to every session of that tenant which is
        subscribed to its channel; returns how many those are.
        """
        return self.sessions.publish(channel, data, tenant=tenant or self.accounts.tenant)

    @property
    def admission(self) -> Admission:
        """The credentials that are good now."""
        return Admission(
            accounts=self.accounts, logins=self.logins, devices=self.devices, subscriptions=self.subscriptions
        )

    def admit(self, request: web.Request) -> Admitted:
        """Judge one HTTP request by its headers. Raises Unauthorized."""
        return self.admission.by_headers(request.headers, cookies=request.cookies)

    def forget_sessions(self) -> None:
        """Make every clientId unknown, as a restart does; connections stay open."""
        self.sessions.forget()
        self.note_change()

    async def close_ended_sockets(self) -> None:
        """Close every WebSocket on which somebody shook hands with what is no longer good."""
        for opened, credentials in tuple(self.sockets.items()):
            if not all(is_good() for is_good in credentials):
                await opened.close(code=WSCloseCode.POLICY_VIOLATION)

    async def until(self, condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
        """Wait until something that happened here makes the condition true; TimeoutError if nothing does."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self._changed.wait()

    def note_change(self) -> None:
        """Let those who wait in `until` look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def record(self, request: web.Request, kind: Literal["upgrade", "post", "call"]) -> None:
        """Remember a request before anything is decided about it."""
        headers = CIMultiDictProxy(CIMultiDict(request.headers))
        arrived = Request(kind, request.method, request.path, request.query_string, headers)
        _remember(self.calls if kind == "call" else self.requests, arrived)
        self.note_change()

    def read(self, payload: bytes) -> list[Incoming]:
        """Decode and remember a payload; MalformedPayload if it is no batch."""
        _remember(self.payloads, payload)
        batch = read_batch(payload)
        for incoming in batch:
            _remember(self.messages, incoming.message)
        self.note_change()
        return batch

    def answer(self, batch: Iterable[Incoming], carrier: Carrier) -> list[Outgoing | HeldConnect]:
        """Answer message by message, wherever in the batch a handshake stands."""
        answers = [
            self.sessions.answer(incoming, carrier)
            for incoming in batch
            if self.answers_handshakes or incoming.channel != "/meta/handshake"
        ]
        self.note_change()
        return answers


def _remember(remembered: list[_T], value: _T) -> None:
    remembered.append(value)
    del remembered[:-_REMEMBERED]
