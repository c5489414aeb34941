"""What each request of the public listener is, and what it gets when it must not go on."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from math import inf
from typing import Final, Literal, Protocol

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
from proxy.relay.endings import Ending, ending_of, tell, tell_refusal
from proxy.relay.failures import BadRequest, HttpFailure, http_failure, limit_of
from proxy.upstream.posts import Prepared


log = logging.getLogger(__name__)

Admission = Literal["anyone", "reading", "changing"]
"""Who may ask for a page: everybody who reaches the listener by an admitted Host; nobody but pages of admitted origins
where the answer is for its own user; or, where it changes something, as with the endpoints.
"""

TEXT: Final = "text/plain; charset=utf-8"
_NOBODY: Final = Client("", "", (), {})


class Admitting(Protocol):
    """A page, as far as it matters here."""

    @property
    def admits(self) -> Admission: ...


@dataclass(slots=True, eq=False)
class Request:
    """One request that may come in, before its body.

    `endpoint` is empty for a page. `cross_origin` are the CORS headers of its answer, as lines. `client` is who asks;
    where that is not known, `unidentified` says why. `judged_by` is who said that. `credential` names the one that an
    upgrade goes up with, once it is chosen. `prepared` is how a POST goes up with a credential: kept for the next one
    that says the same, as a polling client does. `begun_at` is when its head was here, by the monotonic clock.
    """

    asked: RequestHead
    head: Head
    endpoint: str
    is_upgrade: bool
    cross_origin: bytes
    client: Client = _NOBODY
    unidentified: NotIdentified | None = None
    judged_by: "Front | None" = None
    credential: str | None = None
    prepared: tuple[Credential, Prepared] | None = None
    begun_at: float = field(default_factory=time.monotonic)


class Front:
    """Reads and judges the heads of requests. The gate stands before both transports, and before a body is read.

    `identify` tells who asks. `pages` are what else is served, by method and path. With `always_secure`, connections of
    clients count as encrypted: something in front of us sees to that, whatever it says. `clock` gives Unix time.
    """

    def __init__(
        self,
        *,
        gate: Gate,
        identify: Callable[[Head], Client],
        metrics: Metrics,
        trusted_proxies: TrustedProxies,
        pages: Mapping[tuple[str, str], Admitting],
        always_secure: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._gate = gate
        self._identify = identify
        self._clock = clock
        self.metrics = metrics
        self._trusted_proxies = trusted_proxies
        self._pages = pages
        self._always_secure = always_secure

    def read(self, raw: bytes, peer: str, *, secure: bool, certificate: Certificate | None = None) -> Request:
        """Read the head of a request that came from `peer`, on an encrypted connection or not. Raises MalformedHead."""
        asked = read_request(raw)
        peer, secure = self._trusted_proxies.resolve(peer, asked.headers, secure=secure)
        path = asked.target.partition("?")[0]
        secure = secure or self._always_secure
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
        if not request.endpoint:
            self._admit_to_page(request)
            return
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

    def _admit_to_page(self, request: Request) -> None:
        head = request.head
        methods = self._methods(head.path)
        if not methods or request.is_upgrade:
            raise BadRequest(HTTPStatus.NOT_FOUND, "Nothing is served at this path")
        if head.method == "OPTIONS":
            self._gate.admit(head)
            return
        page = self._pages.get((head.method, head.path))
        if page is None:
            text = f"Only {' and '.join(methods)} {'is' if len(methods) == 1 else 'are'} served at this path"
            raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED, text, allow=", ".join([*methods, "OPTIONS"]))
        if "#" in request.asked.target:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "A fragment stays with who asks")
        if head.method == "GET" and (request.asked.length or request.asked.is_chunked):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "A GET has no body")
        if (head.value("content-encoding") or "identity").lower() != "identity":
            raise BadRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send the body without Content-Encoding")
        match page.admits:
            case "anyone":
                self._gate.admit_host(head)
            case "reading":
                self._gate.admit_reading(head)
            case "changing":
                self._gate.admit(head)

    def _methods(self, path: str) -> list[str]:
        """How a page is asked for."""
        return sorted(method for method, known in self._pages if known == path)

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
        methods = "POST" if request.endpoint else ", ".join(self._methods(request.head.path))
        headers = [*self._gate.preflight_headers(request.head, methods).items(), *ALWAYS_DOWN]
        return write_answer(HTTPStatus.NO_CONTENT, headers)

    def refusal(self, error: Exception, request: Request | None, *, is_told: bool = False) -> bytes:
        """The answer in words to a request that fails; the connection ends with it. The log tells of that, unless it
        `is_told` already.
        """
        failure = http_failure(error)
        if failure is None:
            log.error("A request failed by a fault of ours", exc_info=error)
        if (limit := limit_of(error)) is not None:
            self.metrics.limit(limit)
        if request is not None and request.is_upgrade:
            reason = failure.reason if failure else "unavailable"
            outcome = next(outcome for outcome, reasons in UPGRADE_REASONS.items() if reason in reasons)
            self.metrics.upgrade(outcome, reason, request.credential)
        failure = failure or HttpFailure(500, "unavailable", "Internal error")
        if not is_told:
            _tell(ending_of(error), failure.status, request)
        text = f"{failure.text}\n".encode()
        headers = [*ALWAYS_DOWN, *failure.headers.items(), ("Connection", "close")]
        if request is not None and request.head.method == "HEAD":  # whose answer has no body (RFC 9110, 9.3.2)
            text = b""
        else:
            headers += [("Content-Type", TEXT), ("Content-Length", str(len(text)))]
        cross_origin = request.cross_origin if request is not None else b""
        return write_answer(failure.status, headers) + cross_origin + LINE_END + text


def _tell(ending: Ending, status: int, request: Request | None) -> None:
    """Tell of a request that is refused with this status."""
    is_upgrade = request is not None and request.is_upgrade
    if request is None or not (is_upgrade or (request.endpoint and request.head.method == "POST")):
        tell_refusal(ending, status=status, peer="" if request is None else request.head.peer)
        return
    tell(
        "websocket" if is_upgrade else "long-polling",
        ending,
        endpoint=request.endpoint,
        seconds=time.monotonic() - request.begun_at,
        client=request.client,
        credential=request.credential,
        peer=request.head.peer,
        status=status,
    )
