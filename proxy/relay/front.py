"""The public listener: every request comes through here, is judged, and goes to its transport or nowhere."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import HttpVersion11, web
from aiohttp.web import BaseRequest, Response, StreamResponse
from aiohttp.web_protocol import RequestHandler

from proxy.gate.admission import Gate
from proxy.gate.crossing import ALWAYS_DOWN
from proxy.gate.endpoints import endpoint_of
from proxy.gate.limits import Limits
from proxy.gate.peers import TrustedProxies
from proxy.head import Head
from proxy.operations.metrics import UPGRADE_REASONS, Metrics
from proxy.relay.failures import BadRequest, Crowded, HttpFailure, http_failure
from proxy.relay.polling import PollingRelay
from proxy.relay.websocket import WebSocketRelay


log = logging.getLogger(__name__)

Page = Callable[[], Response]
"""A page of the demo, for GET: made anew for each request."""

_LINGER_SECONDS: Final = 2.0  # how long an unread body is drained so that the refusal in front of it is seen


class Front:
    """Judges each request and hands it to its transport.

    The gate stands before both, and before a body is read. `pages` are extra paths for GET, open to everybody who
    reaches the listener by an admitted Host.
    """

    def __init__(
        self,
        *,
        gate: Gate,
        websocket: WebSocketRelay,
        polling: PollingRelay,
        metrics: Metrics,
        trusted_proxies: TrustedProxies,
        pages: Mapping[str, Page],
    ) -> None:
        self._gate = gate
        self._websocket = websocket
        self._polling = polling
        self._metrics = metrics
        self._trusted_proxies = trusted_proxies
        self._pages = pages

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request, whatever becomes of it."""
        head = self._head(request)
        is_upgrade = head.method == "GET" and _is_upgrade(head)
        headers: dict[str, str] = {}
        try:
            headers = self._gate.cross_origin_headers(head)
            return await self._dispatch(request, head, headers, is_upgrade=is_upgrade)
        except Exception as error:  # noqa: BLE001 - the table decides; what it does not know is logged
            response = self._failed(error, head, headers, is_upgrade=is_upgrade)
            if request.writer.output_size > 0 and request.transport is not None:
                request.transport.abort()  # an answer is under way: a second one inside it would be taken for data
            return response

    async def _dispatch(
        self, request: BaseRequest, head: Head, headers: Mapping[str, str], *, is_upgrade: bool
    ) -> StreamResponse:
        if isinstance(request.protocol, Door) and request.protocol.is_crowded:
            raise Crowded
        if (page := self._pages.get(head.path)) is not None and head.method == "GET":
            self._gate.admit_host(head)
            response = page()
            response.headers.update(ALWAYS_DOWN)
            return response
        endpoint = endpoint_of(head.path)
        if endpoint is None:
            raise BadRequest(404, "Nothing is served at this path")
        if head.method == "OPTIONS":
            return Response(status=204, headers=self._gate.preflight_headers(head) | dict(ALWAYS_DOWN))
        self._gate.admit(head)
        if is_upgrade:
            if request.version < HttpVersion11 or request.body_exists:
                raise BadRequest(400, "A WebSocket is opened with HTTP/1.1, and without a body")
            return await self._websocket.handle(request, head, endpoint)
        if head.method == "POST":
            return await self._polling.handle(request, head, endpoint, headers)
        raise BadRequest(405, "Only POST and WebSocket upgrades are served at this path", allow="GET, OPTIONS, POST")

    def _failed(self, error: Exception, head: Head, headers: dict[str, str], *, is_upgrade: bool) -> Response:
        failure = http_failure(error)
        if failure is None:
            log.error("A request failed by a fault of ours", exc_info=error)
        if is_upgrade:
            reason = failure.reason if failure else "unavailable"
            outcome = next(outcome for outcome, reasons in UPGRADE_REASONS.items() if reason in reasons)
            self._metrics.upgrade(outcome, reason)
        failure = failure or HttpFailure(500, "unavailable", "Internal error")
        log.info("Refused with %d (%s) for %s", failure.status, failure.reason, head.peer)
        response = Response(
            status=failure.status,
            text=f"{failure.text}\n",
            headers=headers | dict(ALWAYS_DOWN) | dict(failure.headers),
        )
        response.force_close()  # what follows a refused upgrade or an unread body is no request
        return response

    def _head(self, request: BaseRequest) -> Head:
        given = tuple((name.lower(), value) for name, value in request.headers.items())
        peer = request.transport.get_extra_info("peername") if request.transport else None
        address, secure = self._trusted_proxies.resolve(
            str(peer[0]) if isinstance(peer, tuple) else "", given, secure=request.secure
        )
        return Head(request.method, request.raw_path.partition("?")[0], given, peer=address, secure=secure)


class Door(RequestHandler):
    """One client connection: aiohttp's protocol, with its errors in our own words.

    The stock texts quote what could not be parsed, to the client and to the log: that may be a cookie.
    """

    __slots__ = ("_elsewhere", "_limit", "is_crowded")

    def __init__(self, manager: web.Server, *, limit: int, elsewhere: Callable[[], int], **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._limit = limit
        self._elsewhere = elsewhere
        self.is_crowded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._manager is not None  # noqa: S101 - until the connection is lost
        here = len(self._manager._connections)  # noqa: SLF001 - the property copies them all
        self.is_crowded = here + self._elsewhere() > self._limit

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes the request
    ) -> StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is already under way")
        log.info("A request was refused as malformed HTTP (%s)", type(exc).__name__)
        response = Response(status=status, text="Malformed HTTP request\n", headers=dict(ALWAYS_DOWN))
        response.force_close()
        return response


class Listener(web.Server):
    """The protocol factory of the public listener. `elsewhere` counts client connections that it no longer has."""

    def __init__(
        self,
        handle: Callable[[BaseRequest], Awaitable[StreamResponse]],
        limits: Limits,
        *,
        elsewhere: Callable[[], int],
    ) -> None:
        super().__init__(
            handle,
            handler_cancellation=True,  # a client that goes ends its held connect upstream, too
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=limits.idle_seconds,
            lingering_time=_LINGER_SECONDS,
            max_field_size=limits.head_bytes,
            max_line_size=limits.head_bytes,
        )
        self._limit = limits.connections
        self._elsewhere = elsewhere

    def __call__(self) -> RequestHandler:
        return Door(self, loop=self._loop, limit=self._limit, elsewhere=self._elsewhere, **self._kwargs)


def _is_upgrade(head: Head) -> bool:
    upgrade = ",".join(head.values("upgrade")).lower()
    connection = ",".join(head.values("connection")).lower()
    return upgrade.strip() == "websocket" and "upgrade" in {token.strip() for token in connection.split(",")}
