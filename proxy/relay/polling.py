"""The life of one relayed POST: judged whole going up, streamed coming down."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from aiohttp.web import BaseRequest, StreamResponse

from proxy.bayeux.messages import encode
from proxy.bayeux.negotiation import ClientAuthn, Outcome, Up, refuse
from proxy.bayeux.replies import Joiner, Refusal
from proxy.credentials.sources import NoCredential
from proxy.head import Head
from proxy.relay.carriage import Carriage, now
from proxy.relay.failures import BadRequest, Draining
from proxy.relay.handshakes import jittered, no_credential, unavailable
from proxy.upstream.client import Answer, UpstreamUnavailable


JSON: Final = "application/json;charset=UTF-8"
_GOODBYE_MS: Final = 1_000


class PollingRelay:
    """Relays long-polling POSTs; one instance for all, each life in one call of `handle`.

    `smartrest` lets requests with an `X-Id` header pass as text, unread: around every check of messages.
    """

    def __init__(self, carriage: Carriage, *, smartrest: bool = False) -> None:
        self._carriage = carriage
        self._smartrest = smartrest

    async def handle(
        self, request: BaseRequest, head: Head, endpoint: str, headers: Mapping[str, str]
    ) -> StreamResponse:
        """Relay one POST; `headers` (CORS) go with its answer. Raises what `failures.http_failure` knows."""
        is_smartrest = self._is_smartrest(head)
        if not is_smartrest:
            _check_content(head)
        body = await self._body(request)
        self._carriage.metrics.relayed("long-polling", "up", len(body))
        poll = _Poll(self._carriage, request, head, endpoint, headers)
        with self._carriage.live.joined("long-polling", poll.leave):
            return await (poll.pass_through(body) if is_smartrest else poll.relay(body))

    def _is_smartrest(self, head: Head) -> bool:
        if head.value("x-id") is None:
            return False
        if not self._smartrest:
            raise BadRequest(403, "SmartREST is switched off here: set handshake.smartrest to let it pass unread")
        return True

    async def _body(self, request: BaseRequest) -> bytes:
        """The whole body. Raises BadRequest when it is too big or too slow."""
        limit = self._carriage.limits.client_payload_bytes
        too_big = BadRequest(413, f"The payload is bigger than {limit} bytes (limits.client_payload_bytes)")
        if (request.content_length or 0) > limit:
            raise too_big
        body = bytearray()
        try:
            async with asyncio.timeout(self._carriage.limits.body_seconds):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        raise too_big
        except TimeoutError:
            raise BadRequest(408, "The body did not arrive in time (limits.body_seconds)") from None
        return bytes(body)


class _Poll:
    """One POST on its way."""

    def __init__(
        self, carriage: Carriage, request: BaseRequest, head: Head, endpoint: str, headers: Mapping[str, str]
    ) -> None:
        self._carriage = carriage
        self._request = request
        self._head = head
        self._endpoint = endpoint
        self._headers = headers
        self._negotiation = carriage.handshakes.negotiation(None)
        self._patience = asyncio.timeout(None)  # runs out when upstream is silent over a handshake, or when we leave
        self._parked = False
        self._leaving = False
        self._response: StreamResponse | None = None

    async def relay(self, body: bytes) -> StreamResponse:
        """Judge the body, relay it, answer. Every handshake in it is settled when this ends, however it ends."""
        if self._carriage.live.draining:
            return await self._refused(body, unavailable("This proxy is going down"), Draining())
        own = self._own_credential()
        try:
            credential = None if own else await self._carriage.handshakes.source.obtain(self._head, self._endpoint)
            self._negotiation = self._carriage.handshakes.negotiation(credential)
            up = self._negotiation.from_client(body, now())
            headers = self._up_headers(own) | {"Content-Type": JSON}
        except NoCredential as problem:
            return await self._refused(body, no_credential(problem), problem)
        if up.payload is None:
            self._settle(up.outcomes)
            return await self._finish(encode(up.replies))
        try:
            return await self._exchange(body, headers, up.payload, up)
        finally:
            # Only a cancellation leaves any: the client is gone, or our time to drain is over.
            self._settle(self._negotiation.abandon(now(), "drained" if self._leaving else "client_gone"))

    async def pass_through(self, body: bytes) -> StreamResponse:
        """Relay a SmartREST body as it is, with the credential in the headers."""
        if self._carriage.live.draining:
            raise Draining
        credential = await self._carriage.handshakes.source.obtain(self._head, self._endpoint)
        self._negotiation = self._carriage.handshakes.negotiation(credential)
        headers = self._up_headers({}) | {"X-Id": self._head.value("x-id") or "", "Content-Type": "text/plain"}
        async with self._carriage.upstream.post(self._head.path, headers, body) as answer:
            self._note_status(answer.status)
            return await self._stream(answer, None)

    def leave(self) -> None:
        """End a held connect with advice to come back; anything else is soon over by itself."""
        self._leaving = True
        if self._parked and not self._patience.expired():
            self._patience.reschedule(now())

    async def _exchange(self, body: bytes, headers: Mapping[str, str], payload: bytes, up: Up) -> StreamResponse:
        """Send the judged payload up and its answer down; `body` is as the client sent it, for a refusal."""
        try:
            async with self._patience:
                self._parked = self._negotiation.goodbye(0) is not None
                if self._negotiation.pending:
                    self._patience.reschedule(now() + self._carriage.limits.handshake_seconds)
                async with self._carriage.upstream.post(self._head.path, headers, payload) as answer:
                    self._settle(up.outcomes)
                    self._note_status(answer.status)
                    return await self._stream(answer, Joiner(up.replies) if up.replies else None)
        except TimeoutError:
            if goodbye := self._negotiation.goodbye(jittered(_GOODBYE_MS)):
                return await self._finish(goodbye)
            self._settle(self._negotiation.abandon(now(), "timeout"))
            replies = refuse(body, unavailable("Upstream did not answer in time")).replies
            return self._break_off() if self._response else await self._finish(encode(replies))
        except UpstreamUnavailable as problem:
            if self._response is None:
                return await self._refused(body, unavailable(str(problem)), problem)
            self._settle(self._negotiation.abandon(now(), "upstream_gone"))
            return self._break_off()
        except ConnectionError:  # the client's: it is gone
            return self._break_off()
        finally:
            self._parked = False

    async def _stream(self, answer: Answer, joiner: Joiner | None) -> StreamResponse:
        """Send upstream's answer down as it comes, behind our own replies where there are any."""
        rewritten = self._negotiation.pending or joiner is not None
        response = await self._start(answer.status, answer.headers, None if rewritten else answer.length)
        size = 0
        async for chunk in self._observed(answer) if self._negotiation.pending else answer.chunks:
            size += len(chunk)
            self._parked = self._parked and chunk.isspace()
            if down := joiner.feed(chunk) if joiner else chunk:
                await response.write(down)
        if joiner is not None:
            await response.write(joiner.end())
        await response.write_eof()
        self._carriage.metrics.relayed("long-polling", "down", size)
        return response

    async def _observed(self, answer: Answer) -> AsyncIterator[bytes]:
        """A body with the answer to a handshake in it: held until it is whole, but for the space in front."""
        held = b""
        async for chunk in answer.chunks:
            if not held and chunk.isspace():
                yield chunk
                continue
            held += chunk
            if len(held) > self._carriage.limits.upstream_payload_bytes:
                raise UpstreamUnavailable("Upstream's answer to a handshake exceeds limits.upstream_payload_bytes")
        down = self._negotiation.from_upstream(held, now())
        self._settle([*down.outcomes, *self._negotiation.abandon(now(), "upstream_gone")])
        if down.payload:
            yield down.payload

    async def _start(self, status: int, headers: Iterable[tuple[str, str]], length: int | None) -> StreamResponse:
        response = StreamResponse(status=status, headers=self._headers)
        response.headers.extend(self._carriage.crossing.down_headers(headers, secure=self._head.secure))
        response.content_length = length
        self._response = response
        self._parked = self._parked and length is None
        await response.prepare(self._request)
        return response

    async def _finish(self, payload: bytes) -> StreamResponse:
        """Answer with a payload of our own, or end with it an answer of which only space has gone down."""
        response = self._response or await self._start(200, [("Content-Type", JSON)], len(payload))
        await response.write(payload)
        await response.write_eof()
        return response

    async def _refused(self, body: bytes, refusal: Refusal, problem: Exception) -> StreamResponse:
        """Refuse the whole body in the shape of Bayeux if there is a handshake in it, else by an HTTP status."""
        self._negotiation.abandon(now(), "upstream_gone")  # they count as refused instead
        refused = refuse(body, refusal)
        if not refused.outcomes:
            raise problem
        self._settle(refused.outcomes)
        return await self._finish(encode(refused.replies))

    def _break_off(self) -> StreamResponse:
        """End an answer that cannot be completed so that the client does not take it for complete."""
        if self._request.transport is not None:
            self._request.transport.abort()
        return self._response or StreamResponse()

    def _note_status(self, status: int) -> None:
        """Settle what upstream says by HTTP status; a 401 is about the credential, whatever was asked."""
        if status != HTTPStatus.OK:
            self._settle(self._negotiation.answered_with_status(status, now()))
        credential = self._negotiation.credential
        if status == HTTPStatus.UNAUTHORIZED and credential is not None:
            self._carriage.handshakes.source.reject(credential, self._endpoint)

    def _own_credential(self) -> dict[str, str]:
        """The client's own credential headers where they count: under `fill`, and when there is something in them."""
        scheme, _, value = (self._head.value("authorization") or "").partition(" ")
        if self._carriage.handshakes.client_authn is not ClientAuthn.FILL or not value.strip():
            return {}
        tfa = self._head.value("tfatoken")
        return {"Authorization": f"{scheme} {value.strip()}"} | ({"tfatoken": tfa} if tfa else {})

    def _up_headers(self, own: Mapping[str, str]) -> dict[str, str]:
        """The headers that go up, with one kind of credential. Raises NoCredential while a half of it is missing."""
        credential = self._negotiation.credential
        if credential is None:
            return self._carriage.crossing.post_headers(self._head, own, {})
        if credential.authn() is None:
            raise NoCredential("No XSRF token: send it as X-XSRF-TOKEN, or in the handshake")
        return self._carriage.crossing.post_headers(self._head, credential.headers(), credential.cookies())

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        self._carriage.handshakes.settle("long-polling", outcomes, self._negotiation.credential, self._endpoint)


def _check_content(head: Head) -> None:
    """Raises BadRequest for a body that is not plain JSON: forms and text need no CORS preflight."""
    kind, _, parameters = (head.value("content-type") or "").partition(";")
    name, _, charset = parameters.strip().partition("=")
    if kind.strip().lower() != "application/json" or (
        name.strip().lower() == "charset" and charset.strip(' "').lower() != "utf-8"
    ):
        raise BadRequest(415, "Send Content-Type: application/json, in UTF-8")
    if (head.value("content-encoding") or "identity").lower() != "identity":
        raise BadRequest(415, "Send the body without Content-Encoding")
