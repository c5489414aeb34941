"""The life of one relayed POST: judged whole going up, streamed coming down."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from aiohttp import HttpVersion11
from aiohttp.web import BaseRequest, StreamResponse

from proxy.bayeux.channels import CONNECT, HANDSHAKE
from proxy.bayeux.messages import Batch, channel, encode
from proxy.bayeux.negotiation import ClientAuthn, Outcome, Up, brings_token, refuse
from proxy.bayeux.replies import Joiner, Refusal, goodbye
from proxy.credentials.sources import NoCredential
from proxy.head import Head
from proxy.relay.carriage import Carriage, now
from proxy.relay.failures import BadRequest, Draining, HandshakeTimeout
from proxy.relay.handshakes import no_credential, unavailable
from proxy.upstream.client import Answer, UpstreamUnavailable


JSON: Final = "application/json;charset=UTF-8"
_LAST_ANSWER_SECONDS: Final = 1.0


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
        body = await self._body(request, head)
        poll = _Poll(self._carriage, request, head, endpoint, headers)
        with self._carriage.live.joined("long-polling", poll.leave):
            return await (poll.pass_through(body) if is_smartrest else poll.relay(body))

    def _is_smartrest(self, head: Head) -> bool:
        if head.value("x-id") is None:
            return False
        if not self._smartrest:
            raise BadRequest(403, "SmartREST is switched off here: set handshake.smartrest to let it pass unread")
        return True

    async def _body(self, request: BaseRequest, head: Head) -> bytes:
        """The whole body. Raises BadRequest when it is too big or too slow."""
        limit = self._carriage.limits.client_payload_bytes
        too_big = BadRequest(413, f"The payload is bigger than {limit} bytes (limits.client_payload_bytes)")
        if (request.content_length or 0) > limit:
            raise too_big
        if request.version >= HttpVersion11 and (expected := head.value("expect")) is not None:
            if expected.lower() != "100-continue":
                raise BadRequest(417, "Expect nothing, or 100-continue")
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # that was no part of the answer
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
        self._negotiation = carriage.handshakes.negotiation(None, endpoint)
        self._patience = asyncio.timeout(None)  # runs out when upstream is silent over a handshake, or when we leave
        self._is_waiting = False
        self._holds_connect = False
        self._leaving = False
        self._flowing = False  # whether more than space has gone down
        self._response: StreamResponse | None = None

    async def relay(self, body: bytes) -> StreamResponse:
        """Judge the body, relay it, answer. Every handshake in it is settled when this ends, however it ends."""
        if self._carriage.live.draining:
            return await self._refused(body, unavailable("This proxy is going down"), Draining())
        try:
            await self._choose_credential(own=self._own_headers() or self._brings_token(body))
            up = self._negotiation.from_client(body, now())
            headers = self._up_headers(self._own_headers()) | {"Content-Type": JSON}
        except NoCredential as problem:
            self._negotiation.refuse_pending("no_credential")  # counted below, with the whole body
            return await self._refused(body, no_credential(problem), problem)
        self._settle(up.outcomes)
        if up.payload is None:
            return await self._finish(up.replies)
        return await self._exchange(headers, up)

    async def pass_through(self, body: bytes) -> StreamResponse:
        """Relay a SmartREST body as it is, with the credential in the headers."""
        if self._carriage.live.draining:
            raise Draining
        await self._choose_credential(own=False)
        headers = self._up_headers({}) | {"X-Id": self._head.value("x-id") or "", "Content-Type": "text/plain"}
        return await self._exchange(headers, Up(body, [], [], ()))

    def leave(self) -> None:
        """End a held connect at once, with advice to come back; leave anything else a moment to be answered."""
        self._leaving = True
        self._be_patient()

    async def _exchange(self, headers: Mapping[str, str], up: Up) -> StreamResponse:
        """Send the judged payload up and its answer down."""
        try:
            return await self._carry(headers, up)
        except TimeoutError:
            self._settle(self._negotiation.abandon(now(), "drained" if self._leaving else "timeout"))
            return await self._answer_ourselves(up, Draining() if self._leaving else HandshakeTimeout())
        except UpstreamUnavailable as problem:
            was_asked = problem.was_asked or self._response is not None
            self._settle(
                self._negotiation.abandon(now(), "upstream_gone")
                if was_asked
                else self._negotiation.refuse_pending("unavailable")
            )
            return await self._answer_ourselves(up, problem)
        except ConnectionError:  # the client's: it is gone
            return self._break_off()
        except asyncio.CancelledError:  # the client is gone, or our time to drain is over
            self._settle(self._negotiation.abandon(now(), "drained" if self._leaving else "client_gone"))
            raise
        finally:
            self._settle(self._negotiation.abandon(now(), "client_gone"))

    async def _carry(self, headers: Mapping[str, str], up: Up) -> StreamResponse:
        async with self._patience:
            self._is_waiting = True
            self._holds_connect = any(channel(message) == CONNECT for message in up.batch)
            self._be_patient()
            payload = up.payload or b""
            try:
                async with self._carriage.upstream.post(self._head.path, headers, payload) as answer:
                    self._carriage.metrics.relayed("long-polling", "up", len(payload))
                    self._note_status(answer.status)
                    return await self._stream(answer, up.replies)
            finally:
                self._is_waiting = False

    async def _stream(self, answer: Answer, replies: Batch) -> StreamResponse:
        """Send upstream's answer down as it comes; our own replies, where there are any, in front.

        Only a 200 is read by clients, so our replies stand in front of no other status.
        """
        joiner = Joiner(replies) if replies and answer.status == HTTPStatus.OK else None
        held = self._negotiation.pending or answer.status != HTTPStatus.OK
        rewritten = held or joiner is not None
        response = await self._start(answer.status, answer.headers, None if rewritten else answer.length)
        size = 0
        try:
            async for chunk in self._observed(answer) if held else answer.chunks:
                size += len(chunk)
                self._flowing = self._flowing or not chunk.isspace()
                if down := joiner.feed(chunk) if joiner else chunk:
                    await response.write(down)
            if joiner is not None:
                self._flowing = True
                await response.write(joiner.end())
            await response.write_eof()
        finally:
            self._carriage.metrics.relayed("long-polling", "down", size)
        return response

    async def _observed(self, answer: Answer) -> AsyncIterator[bytes]:
        """A body with the answer to a handshake in it, or with words about a status, which may quote our credential:
        held until it is whole, but for the space in front.
        """
        held = bytearray()
        async for chunk in answer.chunks:
            if not held and chunk.isspace():
                yield chunk
                continue
            held += chunk
            if len(held) > self._carriage.limits.upstream_payload_bytes:
                raise UpstreamUnavailable("Upstream's answer to a handshake exceeds limits.upstream_payload_bytes")
        down = self._negotiation.from_upstream(bytes(held), now())
        self._settle([*down.outcomes, *self._negotiation.abandon(now(), "upstream_gone")])
        if down.payload:
            yield down.payload

    async def _answer_ourselves(self, up: Up, problem: Exception) -> StreamResponse:
        """Answer in upstream's place: in the shape of Bayeux where that is understood, else by an HTTP status.

        Where a part of upstream's answer has gone down already, it is broken off.
        """
        if self._flowing or (self._response is not None and not up.batch):
            return self._break_off()
        has_handshake = any(channel(message) == HANDSHAKE for message in (*up.batch, *up.replies))
        if self._response is None and not has_handshake and not (self._leaving and up.batch):
            raise problem
        refusal = unavailable(str(problem) or "Upstream did not answer in time")
        answers = [goodbye(message, refusal) if self._leaving else refusal.reply(message) for message in up.batch]
        return await self._finish([*up.replies, *answers])

    async def _start(self, status: int, headers: Iterable[tuple[str, str]], length: int | None) -> StreamResponse:
        response = StreamResponse(status=status, headers=self._headers)
        response.headers.extend(self._carriage.crossing.down_headers(headers, secure=self._head.secure))
        response.content_length = length
        self._response = response
        self._flowing = length is not None or status != HTTPStatus.OK
        await response.prepare(self._request)
        return response

    async def _finish(self, replies: Batch) -> StreamResponse:
        """Answer with replies of our own, or end with them an answer of which only space has gone down."""
        payload = encode(replies)
        response = self._response or await self._start(200, [("Content-Type", JSON)], len(payload))
        await response.write(payload)
        await response.write_eof()
        return response

    async def _refused(self, body: bytes, refusal: Refusal, problem: Exception) -> StreamResponse:
        """Refuse the whole body in the shape of Bayeux if there is a handshake in it, else by an HTTP status."""
        refused = refuse(body, refusal)
        if not refused.outcomes:
            raise problem
        self._settle(refused.outcomes)
        return await self._finish(refused.replies)

    def _break_off(self) -> StreamResponse:
        """End an answer that cannot be completed so that the client does not take it for complete."""
        if self._request.transport is not None:
            self._request.transport.abort()
        return self._response or StreamResponse()

    def _be_patient(self) -> None:
        """Wait no longer than for the oldest handshake without an answer, and hardly when we leave."""
        if not self._is_waiting or self._flowing or self._patience.expired():
            return
        since = self._negotiation.waiting_since
        deadline = None if since is None else since + self._carriage.limits.handshake_seconds
        if self._leaving:
            deadline = now() + (0 if self._holds_connect else _LAST_ANSWER_SECONDS)
        self._patience.reschedule(deadline)

    def _note_status(self, status: int) -> None:
        """Settle what upstream says by HTTP status; a 401 is about the credential, whatever was asked."""
        if status != HTTPStatus.OK:
            self._settle(self._negotiation.answered_with_status(status, now()))
        credential = self._negotiation.credential
        if status == HTTPStatus.UNAUTHORIZED and credential is not None:
            self._carriage.handshakes.source.reject(credential, self._endpoint)

    async def _choose_credential(self, *, own: object) -> None:
        """Begin with the source's credential, or with none where the client brings its own. Raises NoCredential."""
        handshakes = self._carriage.handshakes
        credential = None if own else await handshakes.source.obtain(self._head, self._endpoint)
        self._negotiation = handshakes.negotiation(credential, self._endpoint)

    def _own_headers(self) -> dict[str, str]:
        """The client's own credential headers where they count: under `fill`, and when there is something in them."""
        scheme, _, value = (self._head.value("authorization") or "").partition(" ")
        if self._carriage.handshakes.client_authn is not ClientAuthn.FILL or not value.strip():
            return {}
        tfa = self._head.value("tfatoken")
        return {"Authorization": f"{scheme} {value.strip()}"} | ({"tfatoken": tfa} if tfa else {})

    def _brings_token(self, body: bytes) -> bool:
        """Whether a handshake brings the client's own token where that counts; then nothing of ours goes with it."""
        return self._carriage.handshakes.client_authn is ClientAuthn.FILL and brings_token(body)

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
