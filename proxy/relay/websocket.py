"""The life of one relayed WebSocket, from the upgrade to the last close frame."""

import asyncio
import binascii
import logging
from base64 import b64decode
from collections.abc import Awaitable, Sequence
from typing import Final, NoReturn

from aiohttp import WSCloseCode, WSMsgType
from aiohttp.http_websocket import WebSocketError
from aiohttp.web import BaseRequest, WebSocketResponse

from proxy.bayeux.messages import encode
from proxy.bayeux.negotiation import Outcome
from proxy.credentials.kinds import Credential
from proxy.head import Head
from proxy.relay.carriage import Carriage, now
from proxy.relay.failures import (
    FAULT,
    BadRequest,
    BinaryMessage,
    Closing,
    Draining,
    HandshakeRefused,
    HandshakeRejected,
    HandshakeTimeout,
    LegEnded,
    Side,
    closing,
)
from proxy.upstream.client import CLOSE_SECONDS, UpstreamSocket


log = logging.getLogger(__name__)

_KEY_BYTES: Final = 16


class WebSocketRelay:
    """Relays WebSockets; one instance for all, each life in one call of `handle`."""

    def __init__(self, carriage: Carriage) -> None:
        self._carriage = carriage

    async def handle(self, request: BaseRequest, head: Head, endpoint: str) -> WebSocketResponse:
        """Open, relay and close one WebSocket.

        Raises what `failures.http_failure` knows while an HTTP status can still be answered; once the client is
        accepted, every ending is a close code.
        """
        try:
            client, upstream, credential = await self._open(request, head, endpoint)
        except asyncio.CancelledError:
            self._carriage.metrics.upgrade("unanswered", "client_gone")
            raise
        self._carriage.metrics.upgrade("accepted", "ok")
        await _Connection(self._carriage, client, upstream, credential, endpoint).relay()
        return client

    async def _open(
        self, request: BaseRequest, head: Head, endpoint: str
    ) -> tuple[WebSocketResponse, UpstreamSocket, Credential]:
        """Choose the credential, dial upstream, and only then accept the client."""
        _check_upgrade(head)
        carriage = self._carriage
        if carriage.live.draining:
            raise Draining
        credential = await carriage.handshakes.source.obtain(head, endpoint)
        headers = carriage.crossing.upgrade_headers(head, credential.cookies())
        upstream = await carriage.upstream.dial(head.path, headers)
        if carriage.live.draining:  # by now
            await upstream.close(code=WSCloseCode.GOING_AWAY)
            raise Draining
        client = WebSocketResponse(
            autoclose=False,
            compress=False,  # it would hide messages, and costs 100 KiB a pair
            decode_text=False,
            heartbeat=carriage.limits.heartbeat_seconds,
            max_msg_size=carriage.limits.client_payload_bytes,
            timeout=CLOSE_SECONDS,
        )
        client.headers.extend(carriage.crossing.down_headers(upstream.headers, secure=head.secure))
        try:
            await client.prepare(request)
        except BaseException:
            await upstream.close(code=WSCloseCode.GOING_AWAY)
            raise
        return client, upstream, credential


class _Connection:
    """Both legs of one WebSocket and the handshakes in flight on it."""

    __slots__ = (
        "_carriage",
        "_client",
        "_endpoint",
        "_has_refused",
        "_leaving",
        "_negotiation",
        "_patience",
        "_relaying",
        "_upstream",
    )

    def __init__(
        self,
        carriage: Carriage,
        client: WebSocketResponse,
        upstream: UpstreamSocket,
        credential: Credential,
        endpoint: str,
    ) -> None:
        self._carriage = carriage
        self._client = client
        self._upstream = upstream
        self._endpoint = endpoint
        self._negotiation = carriage.handshakes.negotiation(credential, endpoint)
        self._patience = asyncio.timeout(None)  # runs out when upstream is silent over a handshake, or when we leave
        self._leaving = False
        self._has_refused = False
        self._relaying = False

    async def relay(self) -> None:
        """Relay until it ends, for whatever reason; then record what got no answer, and close both legs."""
        end = FAULT
        with self._carriage.live.joined("websocket", self._leave):
            try:
                end = await self._ending()
            except asyncio.CancelledError:  # the client's transport is gone, or our time to drain is over
                end = closing(Draining() if self._leaving else LegEnded("client", None)) or FAULT
                raise
            finally:
                self._relaying = False
                self._settle(self._negotiation.abandon(now(), end.unanswered))
                await asyncio.gather(
                    self._upstream.close(code=end.upstream, message=end.text),
                    self._client.close(code=end.client, message=end.text),
                )

    async def _ending(self) -> Closing:
        """Run both pumps until one of them ends; returns how to close."""
        ended: BaseException
        try:
            async with self._patience, asyncio.TaskGroup() as pumps:
                self._relaying = True
                self._be_patient()
                pumps.create_task(self._climb())
                pumps.create_task(self._descend())
            raise AssertionError("a pump ends by an exception")
        except TimeoutError:
            ended = Draining() if self._leaving else HandshakeTimeout()
        except BaseExceptionGroup as group:
            ended = group.exceptions[0]
        if (end := closing(ended)) is None:
            log.error("A relayed WebSocket ended by a fault of ours", exc_info=ended)
            return FAULT
        return end

    async def _climb(self) -> NoReturn:
        """Client to upstream: every payload judged."""
        while True:
            payload = await _receive(self._client, "client")
            up = self._negotiation.from_client(payload, now())
            self._settle(up.outcomes)
            if self._negotiation.pending:
                self._be_patient()
            if up.payload is not None:
                self._carriage.metrics.relayed("websocket", "up", len(up.payload))
                await _sent("upstream", self._upstream.send_frame(up.payload, WSMsgType.TEXT))
            if up.replies:
                await _sent("client", self._client.send_frame(encode(up.replies), WSMsgType.TEXT))
                self._has_refused = True
            self._end_if_refused()

    async def _descend(self) -> NoReturn:
        """Upstream to client: as it comes, observed only while an answer is awaited."""
        while True:
            payload = await _receive(self._upstream, "upstream")
            self._carriage.metrics.relayed("websocket", "down", len(payload))
            outcomes: Sequence[Outcome] = ()
            if self._negotiation.pending:
                down = self._negotiation.from_upstream(payload, now())
                payload, outcomes = down.payload, down.outcomes
                self._settle(outcomes)
                self._be_patient()
            await _sent("client", self._client.send_frame(payload, WSMsgType.TEXT))
            if any(outcome.verdict == "rejected" for outcome in outcomes):
                raise HandshakeRejected
            self._end_if_refused()

    def _end_if_refused(self) -> None:
        """Raises HandshakeRefused once a refusal is out and no other handshake waits for its answer."""
        if self._has_refused and not self._negotiation.pending:
            raise HandshakeRefused

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        self._carriage.handshakes.settle("websocket", outcomes, self._negotiation.credential, self._endpoint)

    def _leave(self) -> None:
        self._leaving = True
        self._be_patient()

    def _be_patient(self) -> None:
        """Wait no longer than for the oldest handshake without an answer; not at all when we leave."""
        if not self._relaying or self._patience.expired():
            return
        since = self._negotiation.waiting_since
        deadline = None if since is None else since + self._carriage.limits.handshake_seconds
        self._patience.reschedule(now() if self._leaving else deadline)


async def _receive(leg: WebSocketResponse | UpstreamSocket, side: Side) -> bytes:
    """The next text message of a leg. Raises LegEnded and BinaryMessage."""
    message = await leg.receive()
    match message.type:
        case WSMsgType.TEXT:
            return bytes(message.data)
        case WSMsgType.BINARY:
            raise BinaryMessage if side == "client" else LegEnded(side, None)
        case WSMsgType.CLOSE:
            raise LegEnded(side, message.data, (message.extra or "").encode())
        case WSMsgType.ERROR if isinstance(message.data, WebSocketError):
            raise LegEnded(side, message.data.code, violated=True)
        case _:
            raise LegEnded(side, None)


async def _sent(side: Side, sending: Awaitable[None]) -> None:
    """Await a send. Raises LegEnded when that leg is gone."""
    try:
        await sending
    except ConnectionError:
        raise LegEnded(side, None) from None


def _check_upgrade(head: Head) -> None:
    """Raises BadRequest for what RFC 6455, section 4.2.1 does not allow; nothing is dialled for that."""
    if head.value("sec-websocket-version") != "13":
        raise BadRequest(400, "Only WebSocket version 13 is spoken here")
    try:
        key = b64decode(head.value("sec-websocket-key") or "", validate=True)
    except binascii.Error:
        key = b""
    if len(key) != _KEY_BYTES:
        raise BadRequest(400, "Sec-WebSocket-Key is not 16 bytes of base64")
