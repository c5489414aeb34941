"""The life of one relayed POST: judged whole going up, streamed coming down."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final, cast

from proxy.bayeux.channels import CONNECT, DISCONNECT, HANDSHAKE
from proxy.bayeux.messages import Batch, Message, channel, encode, string
from proxy.bayeux.negotiation import ClientAuthn, Negotiation, Outcome, brings_token, refuse
from proxy.bayeux.replies import Joiner, Refusal, dismissal, goodbye
from proxy.credentials.guard import Guard
from proxy.credentials.kinds import Credential
from proxy.credentials.sources import Coming, NoCredential, SignedOut
from proxy.deadlines import Deadlines
from proxy.gate.crossing import ALWAYS_DOWN, Crossing
from proxy.gate.limits import TooMany
from proxy.head import Head
from proxy.http1 import AnswerHead, write_answer
from proxy.relay.carriage import Carriage, now
from proxy.relay.door import Door
from proxy.relay.endings import (
    ANSWERED,
    CLIENT_GONE,
    DRAINED,
    TOO_BIG,
    UPSTREAM_GONE,
    Ending,
    ending_of,
    events,
    of_handshake,
    of_status,
    revoked,
    tell,
)
from proxy.relay.failures import BadRequest, Draining, HandshakeTimeout, http_failure, limit_of
from proxy.relay.front import Request
from proxy.relay.handshakes import crowded, no_credential, unavailable, unidentified, withheld
from proxy.relay.provisions import Provision, chosen
from proxy.upstream.posts import Prepared, UpstreamUnavailable, Wire


log = logging.getLogger(__name__)

JSON: Final = "application/json;charset=UTF-8"
_OUR_HEAD: Final = write_answer(HTTPStatus.OK, [*ALWAYS_DOWN, ("Content-Type", JSON)])
_LAST_ANSWER_SECONDS: Final = 1.0


class PollingRelay:
    """Relays long-polling POSTs; one instance for all.

    `smartrest` lets requests with an `X-Id` header pass as text, unread: around every check of messages.
    """

    def __init__(self, carriage: Carriage, *, smartrest: bool = False) -> None:
        self.carriage = carriage
        self.patience = Deadlines(carriage.limits.handshake_seconds, Poll.expired)
        self._smartrest = smartrest
        self._known: tuple[AnswerHead | None, Crossing | None, bool, bytes] = None, None, False, b""
        self.without_credential: Final[Negotiation[Credential]] = Negotiation(None)

    def check(self, request: Request) -> None:
        """Judge a request before its body is read. Raises BadRequest, and NotIdentified for one of SmartREST."""
        if request.head.value("x-id") is None:
            _check_content(request.head)
        elif not self._smartrest:
            raise BadRequest(403, "SmartREST is switched off here: set handshake.smartrest to let it pass unread")
        elif request.unidentified is not None:
            raise request.unidentified
        elif not request.client.policies[request.endpoint].permits_all:
            raise BadRequest(403, "SmartREST passes unread: only clients that are granted everything may use it")

    def change(self, carriage: Carriage, *, smartrest: bool) -> None:
        """Relay in another way from now on; what is being answered goes on as it is."""
        self.carriage = carriage
        self._smartrest = smartrest
        self.patience.change(carriage.limits.handshake_seconds)

    def poll(self, door: Door, request: Request) -> "Poll":
        """Take a request."""
        return Poll(self, door, request)

    def head_of(self, answer: AnswerHead, crossing: Crossing, *, secure: bool) -> bytes:
        """What goes down of the head of upstream's answer; the last one is kept, as is the answer itself."""
        known, by, was_secure, head = self._known
        if known is not answer or by is not crossing or was_secure is not secure:
            head = write_answer(answer.status, crossing.down_headers(answer.headers, secure=secure))
            self._known = answer, crossing, secure, head
        return head

    def close(self) -> None:
        """Wait for nobody any more."""
        self.patience.close()


class Poll:
    """One POST on its way."""

    __slots__ = (
        "_batch",
        "_body",
        "_carriage",
        "_client_ids",
        "_cut",
        "_dialling",
        "_door",
        "_endpoint",
        "_goodbye",
        "_head",
        "_held",
        "_is_flowing",
        "_is_held",
        "_is_over",
        "_is_shared",
        "_joiner",
        "_leaving",
        "_negotiation",
        "_offer",
        "_provision",
        "_relay",
        "_replies",
        "_request",
        "_shaken",
        "_size",
        "_status",
        "_wire",
        "who",
    )

    def __init__(self, relay: PollingRelay, door: Door, request: Request) -> None:
        self._relay = relay
        self._carriage = relay.carriage
        self._door = door
        self._request = request
        self.who = request.client
        self._body: bytes | None = None  # until it goes up, or waits for how a handshake in it fares
        self._provision: Provision | None = None  # until one is chosen, and with it the credential
        self._head = request.head
        self._endpoint = request.endpoint
        self._negotiation = relay.without_credential
        self._batch: Batch = []  # what went up
        self._replies: Batch = []  # our own, which go in front of upstream's
        self._client_ids: list[str] = []  # of the sessions whose connect is held by this
        self._offer: tuple[Prepared, bytes] | None = None  # what waits until the credential has proved to be good
        self._is_shared = False  # whether this counts among the connections of its client
        self._dialling: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._goodbye: asyncio.TimerHandle | None = None
        self._leaving = False
        self._joiner: Joiner | None = None
        self._is_held = False  # whether the answer is held until it is whole
        self._held = bytearray()
        self._status = 0  # that of the answer whose head has gone down
        self._is_flowing = False  # whether more than space has
        self._is_over = False
        self._shaken: Outcome | None = None  # how a handshake in this ended; the first that was not accepted, if any
        self._cut: Ending | None = None  # how this is going to end, where the problem will not say
        self._size = 0

    @property
    def credential(self) -> str | None:
        """The name of the credential that goes up with this; None until it is chosen."""
        return None if self._provision is None else self._provision.name

    # Up: judged whole -------------------------------------------------------------------------------------------------

    def begin(self, body: bytes) -> None:
        """Judge the body and send it up, or answer it ourselves. Every handshake in it is settled in the end, whatever
        that is.
        """
        carriage = self._carriage
        carriage.live.join("long-polling", self)
        try:
            turned_away = self._turned_away()
            if self._head.value("x-id") is not None:
                self._pass_through(body, turned_away)
            elif turned_away is not None:
                self._refuse(body, *turned_away)
            else:
                self._judge(body)
        except Exception as problem:  # noqa: BLE001 - the table decides; what it does not know is logged
            self._fail(problem)

    def _turned_away(self) -> tuple[Refusal, Exception] | None:
        """Why nothing of this goes up, whatever it says; else it counts among the connections of its client."""
        carriage, problem = self._carriage, self._request.unidentified
        if problem is not None:
            return unidentified(problem), problem
        if carriage.live.draining:
            return unavailable("This proxy is going down"), Draining()
        try:
            carriage.shares.take(self.who)
        except TooMany as many:
            return crowded(many), many
        self._is_shared = True
        return None

    def _judge(self, body: bytes) -> None:
        """Choose the credential, let the body go up as far as it may; what we refuse of it is answered by ourselves."""
        own = self._own_headers()
        try:
            provision = self._choose_credential(own=bool(own) or self._brings_token(body))
            up = self._negotiation.from_client(body, now())
            post = self._prepared(provision, own)
        except Coming as coming:
            if self._dialling is None:
                self._body = body
                self._dialling = asyncio.get_running_loop().create_task(self._judge_later(body))
            else:  # it was waited for
                self._refuse(body, no_credential(coming), coming)
            return
        except NoCredential as problem:
            self._negotiation.refuse_pending("no_credential")  # counted below, with the whole body
            self._refuse(body, no_credential(problem), problem)
            return
        self._settle(up.outcomes)
        self._carriage.metrics.refused("long-polling", up.refused)
        if up.payload is None:
            self._finish(up.replies, ANSWERED if up.outcomes else Ending("refused", up.refused[0]))
            return
        self._batch, self._replies = up.batch, up.replies
        # With another credential it would go up in the same way, but for handshakes, and for what was refused of it.
        self._body = None if self._negotiation.pending or up.replies else body
        self._send(post, up.payload)

    async def _judge_later(self, body: bytes) -> None:
        """Judge the body once the credential is here."""
        with contextlib.suppress(NoCredential):  # which is said again
            await self._carriage.obtained(cast("Provision", self._provision), self._request)
        self._judge_anew(body)

    def _judge_anew(self, body: bytes) -> None:
        """Judge the body after a wait, by what the configuration has become."""
        try:
            if (turned_away := self._turned_away_by_now()) is not None:
                self._refuse(body, *turned_away)
            else:
                self._judge(body)
        except Exception as problem:  # noqa: BLE001 - the table decides; what it does not know is logged
            self._fail(problem)

    def _turned_away_by_now(self) -> tuple[Refusal, Exception] | None:
        if self._carriage is self._relay.carriage:
            return None
        self._carriage.shares.give_back(self.who)
        self._is_shared = False
        self._door.judge_again(self._request)
        self._carriage, self.who = self._relay.carriage, self._request.client
        return self._turned_away()

    def _pass_through(self, body: bytes, turned_away: tuple[Refusal, Exception] | None) -> None:
        """Let a SmartREST body go up as it is, with the credential in the headers."""
        if turned_away is not None:
            raise turned_away[1]
        self._send(self._prepared(self._choose_credential(own=False), {}), body)

    def _send(self, post: Prepared, payload: bytes) -> None:
        """Send it up, or have it wait while another one finds out whether upstream accepts the credential."""
        if self._negotiation.pending:
            self._relay.patience.start(self)
        guard = self._guard()
        if guard is None or guard.may_go_up(self):
            self._send_now(post, payload)
        else:
            self._offer = post, payload

    def go_up(self) -> None:
        """Wait no longer with what is to be sent."""
        if self._offer is not None and not self._is_over:
            (post, payload), self._offer = self._offer, None
            self._send_now(post, payload)

    def call_off(self) -> None:
        """Answer what waited, and is not sent after all."""
        if self._is_over or self._provision is None:
            return
        if (body := self._body) is not None and self._goes_up_otherwise(self._provision):
            self._offer = self._dialling = None
            self._judge_anew(body)
            return
        problem, refusal = withheld(self._provision.source, self._negotiation.credential, self._endpoint)
        self._settle(self._negotiation.refuse_pending(refusal.reason))
        self._answer_ourselves(problem, refusal, Ending("refused", refusal.reason))

    def _goes_up_otherwise(self, provision: Provision) -> bool:
        """Whether there is another credential by now than the one which is not offered, or one is coming."""
        if self._carriage is not self._relay.carriage:
            return True
        try:
            return provision.source.obtain(self._head, self._endpoint) != self._negotiation.credential
        except NoCredential as problem:
            return isinstance(problem, Coming)

    def _send_now(self, post: Prepared, payload: bytes) -> None:
        self._body = None
        self._note_uses()
        wire = self._carriage.upstream.pooled(post)
        if wire is not None:
            self._ask(wire, post, payload)
        else:
            self._dialling = asyncio.get_running_loop().create_task(self._dial(post, payload))

    async def _dial(self, post: Prepared, payload: bytes) -> None:
        try:
            self._ask(await self._carriage.upstream.connect(post), post, payload)
        except Exception as problem:  # noqa: BLE001 - the table decides; what it does not know is logged
            self.failed(problem)

    def _ask(self, wire: Wire, post: Prepared, payload: bytes) -> None:
        self._wire = wire
        self._carriage.metrics.relayed("long-polling", "up", len(payload))
        wire.ask(post, payload, self)
        if not self._negotiation.pending and (guard := self._guard()) is not None:
            guard.held(self)

    # Down: streamed ---------------------------------------------------------------------------------------------------

    def answered(self, answer: AnswerHead, length: int | None) -> None:
        """Send the head of upstream's answer down. The body follows as it comes, unless it must be read first: when
        there is the answer to a handshake in it, or words about a status, which may quote our credential.

        Only a 200 is read by clients, so our own replies stand in front of no other status.
        """
        provision = cast("Provision", self._provision)
        self._carriage.note_renewal(provision, self._negotiation.credential, self.who, answer)
        is_good = answer.status == HTTPStatus.OK
        if is_good and not self._negotiation.pending and (guard := self._guard()) is not None:
            guard.accepted()
        self._is_held = self._negotiation.pending or not is_good
        self._joiner = Joiner(self._replies) if self._replies and is_good else None
        if not is_good:
            self._note_status(answer.status)
        if self._is_held or self._joiner is not None:
            length = None
        self._is_flowing = length is not None or not is_good
        self._status = answer.status
        head = self._relay.head_of(answer, provision.crossing, secure=self._head.secure)
        self._door.start(answer.status, head, length)

    def came(self, data: bytes) -> None:
        """Take a piece of upstream's answer."""
        self._size += len(data)
        if not self._is_held:
            self._flow(data)
        elif not self._held and data.isspace():  # the keep-alive of a held connect
            self._door.send(data)
        else:
            self._held += data
            if len(self._held) > self._carriage.limits.upstream_payload_bytes:
                self._let_go()
                self._carriage.metrics.limit("upstream_payload_bytes")
                self._cut = TOO_BIG
                self.failed(
                    UpstreamUnavailable("Upstream's answer to a handshake exceeds limits.upstream_payload_bytes")
                )

    def _flow(self, data: bytes) -> None:
        self._is_flowing = self._is_flowing or not data.isspace()
        if down := self._joiner.feed(data) if self._joiner is not None else data:
            self._door.send(down)

    def flush(self) -> None:
        """Let go what has come so far."""
        self._door.flush()

    def ended(self) -> None:
        """Complete the answer."""
        self._wire = None
        if self._is_held:
            down = self._negotiation.from_upstream(bytes(self._held), now())
            self._settle([*down.outcomes, *self._negotiation.abandon(now(), "upstream_gone")])
            if (guard := self._guard()) is not None:
                guard.undecided(self)  # unless it was decided by what came
            if down.payload:
                self._flow(down.payload)
        if self._joiner is not None and (owed := self._joiner.end()):
            self._door.send(owed)
        self._end(of_status(self._status))
        self._door.finish()

    def hold_back(self) -> None:
        """Backpressure: a client that does not take what is sent makes upstream wait."""
        if self._wire is not None:
            self._wire.hold_back()

    def go_on(self) -> None:
        if self._wire is not None:
            self._wire.go_on()

    # The end, where it is another -------------------------------------------------------------------------------------

    def failed(self, error: Exception) -> None:
        """Answer in upstream's place, which will not."""
        self._wire = None
        if (guard := self._guard()) is not None:
            guard.unreachable(self)
        was_asked = not isinstance(error, UpstreamUnavailable) or error.was_asked
        self._settle(
            self._negotiation.abandon(now(), "upstream_gone")
            if was_asked
            else self._negotiation.refuse_pending("unavailable")
        )
        is_gone = was_asked and isinstance(error, UpstreamUnavailable)
        ending = self._cut or (UPSTREAM_GONE if is_gone else ending_of(error))
        self._answer_ourselves(error, unavailable(str(error)), ending)

    def expired(self) -> None:
        """Wait no longer: upstream is silent over a handshake, or we leave."""
        if self._is_over or self._is_flowing:
            return
        if self._body is not None and not self._batch:
            self._refuse_body(self._body, unavailable("This proxy is going down"), Draining())
            return
        self._settle(self._negotiation.abandon(now(), "drained" if self._leaving else "timeout"))
        self._let_go()
        problem = Draining() if self._leaving else HandshakeTimeout()
        ending = DRAINED if self._leaving else ending_of(problem)
        self._answer_ourselves(problem, unavailable("Upstream did not answer in time"), ending)

    def leave(self) -> None:
        """End a held connect at once, with advice to come back; leave anything else a moment to be answered."""
        self._leaving = True
        if self._wire is None and self._dialling is None and self._offer is None:
            return
        pause = 0.0 if any(channel(message) == CONNECT for message in self._batch) else _LAST_ANSWER_SECONDS
        self._goodbye = asyncio.get_running_loop().call_later(pause, self.expired)

    def revoke(self, problem: Exception) -> None:
        """End, because the client may not be here any more, or not with this credential."""
        if self._is_over:
            return
        refusal = (
            no_credential(problem) if isinstance(problem, NoCredential) else Refusal("identity", str(problem), None)
        )
        if self._body is not None and not self._batch:
            self._refuse_body(self._body, refusal, problem)
            return
        self._settle(
            self._negotiation.refuse_pending(refusal.reason)
            if self._offer is not None
            else self._negotiation.abandon(now(), "client_gone")
        )
        self._let_go()
        self._answer_ourselves(problem, refusal, revoked(problem), replying=dismissal)

    def is_cut_off(self, ending: Ending) -> None:
        """Take note why the connection is going to be cut off by us."""
        self._cut = ending

    def client_gone(self) -> None:
        """Stop: nobody is there to be answered."""
        self._settle(self._negotiation.abandon(now(), "drained" if self._leaving else "client_gone"))
        self._end(self._cut or (DRAINED if self._leaving else CLIENT_GONE), has_gone=True)

    def _answer_ourselves(
        self,
        problem: Exception,
        refusal: Refusal,
        ending: Ending,
        *,
        replying: Callable[[Message, Refusal], Message] | None = None,
    ) -> None:
        """Answer in the shape of Bayeux, by a refusal, where that is understood, else by an HTTP status. With
        `replying`, which makes the reply to a message, it is understood wherever there is a message.

        Where a part of upstream's answer has gone down already, it is broken off.
        """
        if self._is_flowing or (self._status and not self._batch):
            if http_failure(problem) is None:
                log.error("An answer was broken off by a fault of ours", exc_info=problem)
            self._end(ending)
            self._door.break_off()
            return
        has_handshake = any(channel(message) == HANDSHAKE for message in (*self._batch, *self._replies))
        if self._leaving and replying is None:
            replying = goodbye
        if not self._status and not has_handshake and not (replying and self._batch):
            self._fail(problem, ending)
            return
        sent = self._negotiation.as_sent(self._batch)
        answers = [replying(message, refusal) if replying else refusal.reply(message) for message in sent]
        self._finish([*self._replies, *answers], ending)

    def _refuse(self, body: bytes, refusal: Refusal, problem: Exception) -> None:
        """Refuse the whole body in the shape of Bayeux if there is a handshake in it, or nobody is signed in any more:
        clients would come again for ever. Else it is by an HTTP status.
        """
        refused = refuse(body, refusal, batch_messages=self._carriage.handshakes.batch_messages)
        if not refused.outcomes and not isinstance(problem, SignedOut):
            raise problem
        if (limit := limit_of(problem)) is not None:
            self._carriage.metrics.limit(limit)
        self._settle(refused.outcomes)
        self._finish(refused.replies, ending_of(problem))

    def _refuse_body(self, body: bytes, refusal: Refusal, problem: Exception) -> None:
        """Refuse what was not judged yet."""
        try:
            self._refuse(body, refusal, problem)
        except Exception as failure:  # noqa: BLE001 - the table decides; what it does not know is logged
            self._fail(failure)

    def _finish(self, replies: Batch, ending: Ending) -> None:
        """Answer with replies of our own, or end with them an answer of which only space has gone down."""
        payload = encode(replies)
        if not self._status:
            self._status = 200
            self._door.start(HTTPStatus.OK, _OUR_HEAD, len(payload))
        self._door.send(payload)
        self._end(ending)
        self._door.finish()

    def _fail(self, problem: Exception, ending: Ending | None = None) -> None:
        """Answer by an HTTP status."""
        failure = http_failure(problem)
        self._status = 500 if failure is None else failure.status
        self._end(ending or ending_of(problem))
        self._door.refuse(problem, is_told=True)

    def _let_go(self) -> None:
        """Let upstream know that nobody waits for its answer any more."""
        if self._dialling is not None:
            self._dialling.cancel()
        if self._wire is not None:
            self._wire.cut_off()
            self._wire = None

    def _end(self, ending: Ending, *, has_gone: bool = False) -> None:
        """Leave nothing behind, and tell how it ended; once."""
        if self._is_over:
            return
        self._is_over = True
        self._tell(ending)
        self._offer = self._body = None
        self._let_go()
        if (guard := self._guard()) is not None:
            guard.left(self)
        if self._is_shared:
            self._carriage.shares.give_back(self.who)
        if self._provision is not None and (uses := self._provision.uses) is not None:
            for client_id in self._client_ids:
                uses.gone(client_id) if has_gone else uses.answered(client_id)
        self._relay.patience.stop(self)
        if self._goodbye is not None:
            self._goodbye.cancel()
        if self._size:
            self._carriage.metrics.relayed("long-polling", "down", self._size)
        self._carriage.live.part("long-polling", self)

    def _tell(self, ending: Ending) -> None:
        """Tell how it ended: as the handshake in it did, where it was answered."""
        if ending is ANSWERED and self._shaken is not None:
            ending = of_handshake(self._shaken)
        if ending is ANSWERED and not events.isEnabledFor(logging.DEBUG):
            return
        tell(
            "long-polling",
            ending,
            endpoint=self._endpoint,
            seconds=now() - self._request.begun_at,
            client=self.who,
            credential=self.credential,
            peer=self._head.peer,
            status=self._status,
        )

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            for outcome in outcomes:
                if self._shaken is None or self._shaken.verdict == "accepted":
                    self._shaken = outcome
            self._relay.patience.stop(self)
            self._carriage.handshakes.settle(
                "long-polling", outcomes, provision=self._provision, guard=self._guard(), attempt=self
            )

    # The credential ---------------------------------------------------------------------------------------------------

    def _note_status(self, status: int) -> None:
        """Settle what upstream says by HTTP status; a 401 is about the credential, whatever was asked."""
        self._settle(self._negotiation.answered_with_status(status, now()))
        if status == HTTPStatus.UNAUTHORIZED and (guard := self._guard()) is not None:
            guard.denied()

    def _guard(self) -> Guard | None:
        """What stands between the credential of this and upstream, if anything does."""
        credential = self._negotiation.credential
        if self._provision is None or credential is None:
            return None
        return self._provision.source.guard(credential, self._endpoint)

    def _note_uses(self) -> None:
        """Count the sessions that this holds, while the credential is a stored one."""
        uses = None if self._provision is None else self._provision.uses
        if uses is None or self._negotiation.credential is None:
            return
        for message in self._batch:
            name = channel(message)
            if name not in {CONNECT, DISCONNECT} or not (client_id := string(message.get("clientId"))):
                continue
            if name == CONNECT:
                uses.held(client_id)
                self._client_ids.append(client_id)
            else:
                uses.gone(client_id)

    def _choose_credential(self, *, own: bool) -> Provision:
        """Begin with the source's credential, or with none where the client brings its own. Raises NoCredential."""
        carriage = self._carriage
        provision = self._provision = chosen(carriage.provisions, self._request)
        credential = None if own else provision.source.obtain(self._head, self._endpoint)
        self._negotiation = carriage.handshakes.negotiation(provision, credential, self._request)
        return provision

    def _own_headers(self) -> dict[str, str]:
        """The client's own credential headers where they count: under `fill`, and when there is something in them."""
        if self._carriage.handshakes.client_authn is not ClientAuthn.FILL:
            return {}
        scheme, _, value = (self._head.value("authorization") or "").partition(" ")
        if not value.strip():
            return {}
        tfa = self._head.value("tfatoken")
        return {"Authorization": f"{scheme} {value.strip()}"} | ({"tfatoken": tfa} if tfa else {})

    def _brings_token(self, body: bytes) -> bool:
        """Whether a handshake brings the client's own token where that counts; then nothing of ours goes with it."""
        return self._carriage.handshakes.client_authn is ClientAuthn.FILL and brings_token(body)

    def _prepared(self, provision: Provision, own: Mapping[str, str]) -> Prepared:
        """The POST that goes up, with one kind of credential. Raises NoCredential while a half of it is missing."""
        credential = self._negotiation.credential
        known = self._request.prepared
        if known is not None and (known[0] is credential or known[0] == credential):
            return known[1]
        head, crossing = self._head, provision.crossing
        if credential is None:
            headers = crossing.post_headers(head, own, {})
        elif credential.authn() is None:
            raise NoCredential(
                "No XSRF token, or not that of the session: send it as X-XSRF-TOKEN or in com.cumulocity.authn. "
                "Reload the page if it has changed"
            )
        else:
            headers = crossing.post_headers(head, credential.headers(), credential.cookies())
        x_id = head.value("x-id")
        more = {"Content-Type": JSON} if x_id is None else {"X-Id": x_id, "Content-Type": "text/plain"}
        post = self._carriage.upstream.prepare(head.path, headers | more)
        if credential is not None:
            self._request.prepared = credential, post
        return post


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
