"""What each request of the public listener is, and what it gets when it must not go on."""

import logging
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from http import HTTPStatus
from math import inf
from typing import Final

from proxy.credentials.kinds import Credential
from proxy.gate.admission import Gate
from proxy.gate.clients import Client
from proxy.gate.crossing import ALWAYS_DOWN
from proxy.gate.endpoints import endpoint_of
from proxy.gate.identity import NotIdentified
from proxy.gate.peers import TrustedProxies
from proxy.head import AmbiguousHeader, Certificate, Head
from proxy.http1 import LINE_END, RequestHead, read_request, write_answer, write_headers
from proxy.operations.metrics import UPGRADE_REASONS, Metrics
from proxy.relay.failures import BadRequest, HttpFailure, http_failure, limit_of
from proxy.upstream.posts import Prepared


log = logging.getLogger(__name__)

TEXT: Final = "text/plain; charset=utf-8"
_NOBODY: Final = Client("", "", (), {})


@dataclass(slots=True, eq=False)
class Request:
    """One request that may come in, before its body.

    `endpoint` is empty for a page. `cross_origin` are the CORS headers of its answer, as lines. `client` is who asks;
    where that is not known, `unidentified` says why. `judged_by` is who said that. `prepared` is how it goes up with a
    credential: kept for the next one that says the same, as a polling client does.
    """

    asked: RequestHead
    head: Head
    endpoint: str
    is_upgrade: bool
    cross_origin: bytes
    client: Client = _NOBODY
    unidentified: NotIdentified | None = None
    judged_by: "Front | None" = None
    prepared: tuple[Credential, Prepared] | None = None


class Front:
    """Reads and judges the heads of requests. The gate stands before both transports, and before a body is read.

    `identify` tells who asks. `pages` are extra paths for GET, open to everybody who reaches the listener by an
    admitted Host. `clock` gives Unix time.
    """

    def __init__(
        self,
        *,
        gate: Gate,
        identify: Callable[[Head], Client],
        metrics: Metrics,
        trusted_proxies: TrustedProxies,
        pages: Container[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._gate = gate
        self._identify = identify
        self._clock = clock
        self.metrics = metrics
        self._trusted_proxies = trusted_proxies
        self._pages = pages

    def read(self, raw: bytes, peer: str, *, secure: bool, certificate: Certificate | None = None) -> Request:
        """Read the head of a request that came from `peer`, on an encrypted connection or not. Raises MalformedHead."""
        asked = read_request(raw)
        peer, secure = self._trusted_proxies.resolve(peer, asked.headers, secure=secure)
        path = asked.target.partition("?")[0]
        head = Head(asked.method, path, asked.headers, peer=peer, secure=secure, certificate=certificate)
        try:
            cross_origin = write_headers(self._gate.cross_origin_headers(head).items())
        except AmbiguousHeader:  # which `admit` is going to say
            cross_origin = b""
        is_upgrade = asked.method == "GET" and asked.upgrade == "websocket"
        return Request(asked, head, endpoint_of(head.path) or "", is_upgrade, cross_origin)

    def admit(self, request: Request) -> None:
        """Raises what `failures.http_failure` knows for a request that must not come in."""
        head = request.head
        request.judged_by, request.unidentified, request.prepared = self, None, None
        if head.path in self._pages and head.method == "GET" and not request.is_upgrade:
            self._gate.admit_host(head)
            return
        if not request.endpoint:
            raise BadRequest(HTTPStatus.NOT_FOUND, "Nothing is served at this path")
        self._gate.admit(head)
        if request.is_upgrade:
            if request.asked.version == "1.0" or request.asked.length or request.asked.is_chunked:
                raise BadRequest(400, "A WebSocket is opened with HTTP/1.1, and without a body")
        elif head.method not in {"OPTIONS", "POST"}:
            raise BadRequest(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "Only POST and WebSocket upgrades are served at this path",
                allow="GET, OPTIONS, POST",
            )
        if head.method != "OPTIONS":
            self._find_out_who(request)

    def holds_still(self, request: Request) -> bool:
        """Whether what was judged of a request holds for another one that says the same, now."""
        until = request.client.until
        return request.judged_by is self and request.unidentified is None and (until == inf or self._clock() < until)

    def _find_out_who(self, request: Request) -> None:
        """Raises NotIdentified for an upgrade; a POST may hold a handshake, whose answer is to have another shape."""
        try:
            request.client = self._identify(request.head)
        except NotIdentified as problem:
            if request.is_upgrade:
                raise
            request.unidentified = problem

    def preflight(self, request: Request) -> bytes:
        """The answer to a preflight."""
        headers = [*self._gate.preflight_headers(request.head).items(), *ALWAYS_DOWN]
        return write_answer(HTTPStatus.NO_CONTENT, headers)

    def refusal(self, error: Exception, request: Request | None) -> bytes:
        """The answer in words to a request that fails; the connection ends with it."""
        failure = http_failure(error)
        if failure is None:
            log.error("A request failed by a fault of ours", exc_info=error)
        if (limit := limit_of(error)) is not None:
            self.metrics.limit(limit)
        if request is not None and request.is_upgrade:
            reason = failure.reason if failure else "unavailable"
            outcome = next(outcome for outcome, reasons in UPGRADE_REASONS.items() if reason in reasons)
            self.metrics.upgrade(outcome, reason)
        failure = failure or HttpFailure(500, "unavailable", "Internal error")
        peer = request.head.peer if request is not None else "a client"
        log.info("Refused with %d (%s) for %s", failure.status, failure.reason, peer)
        text = f"{failure.text}\n".encode()
        headers = [
            *ALWAYS_DOWN,
            *failure.headers.items(),
            ("Content-Type", TEXT),
            ("Content-Length", str(len(text))),
            ("Connection", "close"),
        ]
        cross_origin = request.cross_origin if request is not None else b""
        return write_answer(failure.status, headers) + cross_origin + LINE_END + text
