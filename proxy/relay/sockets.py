"""The life of relayed WebSockets, from when both sides are connected to the last close frame.

No task lives on by then: what comes in on one side goes out on the other in the same turn of the event loop. Up, every
frame is read and judged. Down, bytes pass as they come; only while an answer is awaited they are read, from the next
boundary between messages on.
"""

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from math import inf
from typing import Final, cast

from proxy.bayeux.messages import encode
from proxy.bayeux.negotiation import Negotiation, Outcome, Up
from proxy.bayeux.replies import Refusal
from proxy.credentials.guard import Guard
from proxy.credentials.kinds import Credential
from proxy.deadlines import Deadlines
from proxy.gate.identity import NotIdentified
from proxy.gate.limits import Limits
from proxy.relay.carriage import Carriage, now, unix_now
from proxy.relay.endings import (
    CUT_OFF,
    DRAINED,
    SILENT,
    STALLED,
    Ending,
    close_codes,
    ending_of,
    revoked,
    tell,
)
from proxy.relay.failures import (
    FAULT,
    BinaryMessage,
    Closing,
    Draining,
    HandshakeRefused,
    HandshakeRejected,
    HandshakeTimeout,
    LegEnded,
    ProofEnded,
    Side,
    Silent,
    TooSlow,
    closing,
    limit_of,
)
from proxy.relay.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Frame,
    FrameError,
    FrameReader,
    FrameWalk,
    close_code,
    close_frame,
    frame,
)
from proxy.relay.front import Request
from proxy.relay.handshakes import withheld
from proxy.relay.provisions import Provision
from proxy.upstream.dialling import Line


log = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 3.0
"""How long a closing WebSocket waits for the other side's close frame."""

LAST_ANSWER_SECONDS: Final = 1.0
"""How long a client that ends it waits for upstream's close frame, and so for the answers in front of that."""

_WRITE_BUFFER_BYTES: Final = 4 * 1024  # more that a side does not take pauses the other
_READ_BYTES: Final = 64 * 1024
_BACKLOG_BYTES: Final = 64 * 1024  # what a client may send ahead while its handshake waits
_HEARTBEAT: Final = b"c8y-realtime-proxy"  # what our own pings say, so that their pongs are told from others
_QUIET: Final = 1
_ASKED: Final = 2
_NO_STATUS: Final = 1005  # a close frame without a code, as RFC 6455, 7.1.5 calls it


class Sockets:
    """Those that are open, and how long each of them is waited for."""

    def __init__(self, limits: Limits) -> None:
        self.there: set[RelayedSocket] = set()
        self.first_messages = Deadlines(limits.first_message_seconds, RelayedSocket.is_silent)
        self.payloads = Deadlines(limits.payload_seconds, RelayedSocket.is_too_slow)
        self.takers = Deadlines(limits.stalled_seconds, _Leg.is_stalled)
        self.patience = Deadlines(limits.handshake_seconds, RelayedSocket.is_kept_waiting)
        self.last_answers = Deadlines(LAST_ANSWER_SECONDS, RelayedSocket.close_client)
        self.closing = Deadlines(CLOSE_SECONDS, RelayedSocket.cut_off)
        self._heartbeat_seconds = limits.heartbeat_seconds
        self._next_beat: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self.there)

    def __iter__(self) -> Iterator["RelayedSocket"]:
        return iter(self.there)

    def change(self, limits: Limits) -> None:
        """Wait so long from now on."""
        self.first_messages.change(limits.first_message_seconds)
        self.payloads.change(limits.payload_seconds)
        self.takers.change(limits.stalled_seconds)
        self.patience.change(limits.handshake_seconds)
        self._heartbeat_seconds = limits.heartbeat_seconds

    def close(self) -> None:
        """Cut off whoever is still there."""
        if self._next_beat is not None:
            self._next_beat.cancel()
        for deadlines in (self.first_messages, self.payloads, self.patience, self.last_answers, self.closing):
            deadlines.close()
        self.takers.close()
        for socket in tuple(self.there):
            socket.cut_off()

    def count(self) -> None:
        """Bring what crossed since the last time into the metrics."""
        for socket in self.there:
            socket.count()

    def beat_from_now_on(self) -> None:
        """One timer serves the heartbeats of all: a leg that was quiet from one beat to the next is asked."""
        if self._next_beat is None:
            self._next_beat = asyncio.get_running_loop().call_later(self._heartbeat_seconds / 2, self._beat)

    def _beat(self) -> None:
        self._next_beat = None
        for socket in tuple(self.there):
            socket.beat()
        if self.there:
            self.beat_from_now_on()


class RelayedSocket:
    """Both legs of one WebSocket and the handshakes in flight on it."""

    __slots__ = (
        "_begun_at",
        "_bytes_up",
        "_carriage",
        "_credential",
        "_cut",
        "_endpoint",
        "_has_spoken",
        "_held",
        "_is_begun",
        "_is_over",
        "_messages_up",
        "_negotiation",
        "_offer",
        "_owed",
        "_passes",
        "_peer",
        "_provision",
        "_reader",
        "_reading",
        "_refused",
        "_unsaid",
        "_waited_since",
        "_walk",
        "client",
        "sockets",
        "upstream",
        "who",
    )

    def __init__(
        self,
        carriage: Carriage,
        sockets: "Sockets",
        provision: Provision,
        credential: Credential,
        request: Request,
    ) -> None:
        self._carriage = carriage
        self.sockets = sockets
        self.who = request.client
        self._provision = provision
        self._endpoint = request.endpoint
        self._peer = request.head.peer
        self._begun_at = request.begun_at
        self._credential = credential
        self._negotiation: Negotiation[Credential] = carriage.handshakes.negotiation(provision, credential, request)
        limits = carriage.limits
        self._reader = FrameReader(masked=True, limit=limits.client_payload_bytes, fragments=limits.fragments)
        self._has_spoken = False  # whether the client has sent a message
        self._is_begun = False  # it has begun one
        self._offer: Up | None = None  # what waits until the credential has proved to be good
        self._walk = FrameWalk()
        self._reading: FrameReader | None = None  # while something that came down is read rather than passed
        self._held = b""  # a piece of a frame's head that came down
        self._owed = b""  # our own replies, until the next boundary
        self._passes = True  # whether what comes down need not be looked at, but for the heads of its frames
        self._messages_up = self._bytes_up = 0
        self._refused: Outcome | None = None  # how the first handshake ended that we refused
        self._cut: Ending | None = None  # why a leg was cut off by us, which it will not say
        self._is_over = False
        self._unsaid: tuple[Closing, LegEnded | None] | None = None  # why it is over, until the client is told
        self._waited_since: float | None = None  # when the handshake was read whose answer is waited for
        self.client = _ClientLeg(self)
        self.upstream = _UpstreamLeg(self)

    @property
    def credential(self) -> str:
        """The name of the credential that this was opened with."""
        return self._provision.name

    def open(self, client: asyncio.Transport, line: Line, early: bytes) -> None:
        """Begin to relay; `early` is what the client sent before it was accepted."""
        self.sockets.there.add(self)
        self.client.begin(client)
        self.upstream.begin(line.transport)
        self.sockets.first_messages.start(self)
        if self._provision.uses is not None:
            self._provision.uses.opened()
        self._carriage.live.join("websocket", self)
        line.hand_over(self.upstream)
        if early:
            self.climb(early)
        self.client.let_come()

    # Up: every frame is read ------------------------------------------------------------------------------------------

    def climb(self, data: bytes) -> None:
        """Take what the client sent."""
        try:
            self._reader.feed(data)
            came = False
            while self._offer is None and (read := self._reader.read()) is not None:
                self._came_up(read)
                came = came or read.opcode == TEXT
            if self._offer is not None:
                if self.holds_client_back:
                    self.client.hold_back()
            elif self._is_begun or self._reader.is_begun:
                self._watch_payload(came=came)
        except Exception as problem:  # noqa: BLE001 - the table decides; what it does not know is logged
            self._end(_as_ended(problem, "client"))

    def _came_up(self, read: Frame) -> None:
        if read.opcode == CLOSE:
            code, text = close_code(read.payload)
            raise LegEnded("client", code or _NO_STATUS, text)
        if self._is_over:
            return
        if read.opcode == TEXT:
            self._judge(read.payload)
        elif read.opcode == BINARY:
            raise BinaryMessage
        elif not (read.opcode == PONG and read.payload == _HEARTBEAT):
            self.upstream.send(read.opcode, read.payload)

    def _judge(self, payload: bytes) -> None:
        """Let a payload go up as far as it may; what we refuse of it is answered by ourselves."""
        if not self._has_spoken:
            self._has_spoken = True
            self.sockets.first_messages.stop(self)
        up = self._negotiation.from_client(payload, now())
        if up.payload is not None:
            if up.offers and (guard := self._guard()) is not None and not guard.may_go_up(self):
                self._offer = up
            else:
                self._send_up(up.payload)
        if self._negotiation.pending:
            self._passes = False
            self._be_patient()
        if up.replies:
            self._refuse(up)
        if self._refused is not None:
            self._end_if_refused()

    def _send_up(self, payload: bytes) -> None:
        self._messages_up += 1
        self._bytes_up += len(payload)
        self.upstream.send(TEXT, payload)

    def _refuse(self, up: Up) -> None:
        """Tell what does not go up of a payload."""
        self._settle(up.outcomes)
        self._carriage.metrics.refused("websocket", up.refused)
        self._reply(frame(TEXT, encode(up.replies)))
        if self._refused is None and up.outcomes:
            self._refused = up.outcomes[0]

    def _guard(self) -> Guard | None:
        """What stands between the credential of this and upstream, if anything does."""
        return self._provision.source.guard(self._credential, self._endpoint)

    def go_up(self) -> None:
        """Wait no longer with a handshake, nor with what stands behind it."""
        up, self._offer = self._offer, None
        if up is None or up.payload is None or self._is_over:
            return
        self._send_up(up.payload)
        self.climb(b"")
        self.client.let_come()

    def call_off(self) -> None:
        """Refuse a handshake that waited, with all that came with it."""
        up, self._offer = self._offer, None
        if up is None or self._is_over:
            return
        _, refusal = withheld(self._provision.source, self._credential, self._endpoint)
        replies = [refusal.reply(message) for message in self._negotiation.as_sent(up.batch)]
        try:
            self._refuse(Up(None, [], replies, self._negotiation.refuse_pending(refusal.reason)))
            self._end_if_refused()
        except Exception as problem:  # noqa: BLE001 - as above
            self._end(problem)

    def _watch_payload(self, *, came: bool) -> None:
        """Have a message that was begun end in time; `came` tells that another one did in between."""
        was_begun, self._is_begun = self._is_begun, self._reader.is_begun
        if not self._is_begun:
            self.sockets.payloads.stop(self)
        elif came or not was_begun:
            self.sockets.payloads.start(self)

    @property
    def holds_client_back(self) -> bool:
        """Whether there is a reason not to read what the client sends. While a handshake waits there is none at first:
        only who is read is seen to leave.
        """
        return self.upstream.is_full or (self._offer is not None and self._reader.backlog > _BACKLOG_BYTES)

    def heard_again(self) -> None:
        """Give a message that was begun its time anew, since it was we who did not read it."""
        if self._is_begun and not self._is_over:
            self.sockets.payloads.start(self)

    def _reply(self, reply: bytes) -> None:
        """Send a reply of our own, in between what comes from upstream."""
        if self._walk.is_at_boundary:
            self.client.write(reply)
        else:
            self._owed += reply
            self._passes = False

    # Down: bytes pass as they come ------------------------------------------------------------------------------------

    def descend(self, data: bytes) -> None:
        """Take what upstream sent."""
        try:
            if self._passes:
                passed = self._walk.pass_over(data)
                if passed == len(data):
                    self.client.transport.write(data)
                    return
                data = self._pass_down(data, passed)
            if self._held:
                data, self._held = self._held + data, b""
            while data:
                data = self._look_down(data)
            self._consider()
        except Exception as problem:  # noqa: BLE001 - as above
            self._end(_as_ended(problem, "upstream"))

    def _consider(self) -> None:
        """Let what comes down pass from now on, unless there is a reason to look at it."""
        self._passes = not (self._is_over or self._reading or self._held or self._owed or self._negotiation.pending)

    def _look_down(self, data: bytes) -> bytes:
        """Pass on what need not be read, and read what must be; returns what is still to be looked at."""
        if self._reading is not None:
            return self._read_down(data)
        awaited = self._negotiation.pending
        return self._pass_down(data, self._walk.pass_over(data, to_boundary=awaited or self._owed != b""))

    def _pass_down(self, data: bytes, passed: int) -> bytes:
        """Pass on so many bytes, and find out what those behind them are; returns what is still to be looked at."""
        walk = self._walk
        if passed:
            self.client.write(data[:passed])
            data = data[passed:]
        if self._owed and walk.is_at_boundary:
            self.client.write(self._owed)
            self._owed = b""
        elif data and (data[0] & CLOSE or (self._negotiation.pending and walk.is_at_boundary)):
            self._reading = FrameReader(masked=False, limit=self._carriage.limits.upstream_payload_bytes)
        elif not passed:
            self._held = data
            return b""
        return data

    def _read_down(self, data: bytes) -> bytes:
        reading = cast("FrameReader", self._reading)
        reading.feed(data)
        while (read := reading.read()) is not None:
            self._came_down(read)
            if not reading.is_within_message:
                self._reading = None
                return reading.release()
        return b""

    def _came_down(self, read: Frame) -> None:
        if read.opcode == CLOSE:
            code, text = close_code(read.payload)
            raise LegEnded("upstream", code or _NO_STATUS, self._negotiation.unquoted(text))
        if read.opcode in {PING, PONG}:
            if read.payload != _HEARTBEAT or read.opcode == PING:
                self.client.write(frame(read.opcode, read.payload))
            return
        if self._is_over:
            return
        if read.opcode == BINARY:
            raise LegEnded("upstream", None)
        self._walk.messages += 1
        self._walk.size += len(read.payload)
        down = self._negotiation.from_upstream(read.payload, now())
        self._settle(down.outcomes)
        self._be_patient()
        self.client.write(frame(TEXT, down.payload))
        for outcome in down.outcomes:
            if outcome.verdict == "rejected":
                raise HandshakeRejected(outcome.reason)
        self._end_if_refused()

    # The end ----------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Say goodbye, because we leave."""
        self._end(Draining(), DRAINED)

    def revoke(self, problem: Exception) -> None:
        """End, because the client may not be here any more, or not with this credential.

        Who is to stay away is told so in the shape of Bayeux, too: the official client takes a close frame, whatever
        its code, for a reason to come back, and a refused upgrade for one to try again, for ever.
        """
        if isinstance(problem, NotIdentified) and not self._is_over and self._is_between:
            farewell = self._negotiation.farewell(Refusal("identity", str(problem)))
            if farewell is not None:
                self.client.write(frame(TEXT, encode([farewell])))
        self._end(problem, revoked(problem))

    @property
    def _is_between(self) -> bool:
        """Whether nothing has gone down of a message that is to go on."""
        return self._walk.is_at_boundary and not self._held and self._reading is None

    def lost(self, leg: "_Leg") -> None:
        """Take note that the connection of a leg is no more."""
        self.sockets.takers.stop(leg)
        if self._unsaid is not None or not self._is_over:
            self._end(LegEnded(leg.side, None), self._cut)
        if self.client.is_lost and self.upstream.is_lost:
            self.sockets.closing.stop(self)
            self.count()
            self.sockets.there.discard(self)
            self._carriage.live.part("websocket", self)
            if self._provision.uses is not None:
                self._provision.uses.closed()
            self._carriage.shares.give_back(self.who)

    def stalled(self, leg: "_Leg") -> None:
        """Cut off a side that does not take what it was sent: it would not take a goodbye either."""
        self._carriage.metrics.limit("stalled_seconds")
        self._cut = STALLED[leg.side]
        leg.transport.abort()

    def other(self, leg: "_Leg") -> "_Leg":
        """The other side."""
        return self.upstream if leg is self.client else self.client

    def cut_off(self) -> None:
        """End both connections at once."""
        self._cut = CUT_OFF
        self.client.transport.abort()
        self.upstream.transport.abort()

    def count(self) -> None:
        """Bring what crossed since the last time into the metrics."""
        walk, relayed = self._walk, self._carriage.metrics.relayed
        relayed("websocket", "down", walk.size, walk.messages)
        relayed("websocket", "up", self._bytes_up, self._messages_up)
        walk.messages = walk.size = self._bytes_up = self._messages_up = 0

    def beat(self) -> None:
        """Part from a client that was identified for a time that is over; else ask each side that said nothing since
        the last beat whether it is still there.
        """
        if self._is_over:
            return
        if self.who.until < inf and self.who.until <= unix_now():
            self._end(ProofEnded())
            return
        for leg in (self.client, self.upstream):
            if self._is_held_back(leg):  # its pong would not be seen
                leg.quiet_beats = 0
            elif leg.quiet_beats == _ASKED:
                self._cut = SILENT[leg.side]
                leg.transport.abort()
            elif leg.quiet_beats == 0:
                leg.quiet_beats = _QUIET
            elif not leg.is_full and (leg is self.upstream or self._walk.is_at_frame):
                leg.quiet_beats = _ASKED
                leg.send(PING, _HEARTBEAT)

    def _is_held_back(self, leg: "_Leg") -> bool:
        return self.holds_client_back if leg is self.client else self.client.is_full

    def _end(self, problem: Exception, ending: Ending | None = None) -> None:
        """Record what got no answer, and close both legs, each in its own words; once. `ending` is what the log says of
        it, where that is not to be seen by the problem.

        A client that ends it is told last, behind the answers to what it had sent before.
        """
        ended = problem if isinstance(problem, LegEnded) else None
        if self._is_over:
            self._end_again(ended)
            return
        self._is_over = True
        self._passes = False
        end = closing(problem)
        if end is None:
            log.error("A relayed WebSocket ended by a fault of ours", exc_info=problem)
            end = FAULT
        if (limit := limit_of(problem)) is not None:
            self._carriage.metrics.limit(limit)
        self._settle(self._negotiation.abandon(now(), end.unanswered))
        for deadlines in (self.sockets.patience, self.sockets.first_messages, self.sockets.payloads):
            deadlines.stop(self)
        self._offer = None
        if (guard := self._guard()) is not None:
            guard.left(self)
            if ended is not None and ended.side == "upstream":
                guard.doubt()
        self._unsaid = end, ended
        tell(
            "websocket",
            ending or ending_of(problem),
            endpoint=self._endpoint,
            seconds=now() - self._begun_at,
            client=self.who,
            credential=self._provision.name,
            peer=self._peer,
            codes=close_codes(ended, end.client, end.upstream),
        )
        self.upstream.close(end.upstream, end.text)
        if ended is None or ended.side == "upstream" or ended.code is None:
            self.close_client()
            return
        self.client.is_deaf = ended.violated
        if self.client.is_full:
            self.upstream.hold_back()
        self.sockets.last_answers.start(self)

    def _end_again(self, ended: LegEnded | None) -> None:
        """Take note of how a side ended while both are closing."""
        if ended is None:
            return
        if ended.side == "upstream" or ended.code is None:  # no last answers are to be waited for
            self.close_client()
        elif ended.violated:
            self.client.is_deaf = True
        if ended.code is not None and self._unsaid is None:
            self._part(ended)

    def close_client(self) -> None:
        """Tell the client that it is over, unless it has been told."""
        if self._unsaid is None:
            return
        (end, ended), self._unsaid = self._unsaid, None
        self.sockets.last_answers.stop(self)
        self.sockets.closing.start(self)
        self.client.close(end.client, end.text, can_speak=self._walk.is_at_frame)
        self.upstream.let_come()
        if ended is not None and ended.code is not None:
            self._part(ended)

    def _part(self, ended: LegEnded) -> None:
        """Part from the side that ended it: both close frames have crossed, or no other can be read any more."""
        leg = self._leg(ended.side)
        if ended.violated:
            leg.give_up()
        else:
            leg.hang_up()

    def _end_if_refused(self) -> None:
        """Raises HandshakeRefused once a refusal is out and no other handshake waits for its answer."""
        if self._refused is not None and not self._negotiation.pending:
            raise HandshakeRefused(self._refused.reason, limit=self._refused.limit)

    def _leg(self, side: Side) -> "_Leg":
        return self.client if side == "client" else self.upstream

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            self._carriage.handshakes.settle(
                "websocket", outcomes, provision=self._provision, guard=self._guard(), attempt=self
            )

    def _be_patient(self) -> None:
        """Wait no longer than for the oldest handshake without an answer."""
        since = self._negotiation.waiting_since
        if since != self._waited_since:
            self._waited_since = since
            if since is None:
                self.sockets.patience.stop(self)
            else:
                self.sockets.patience.start(self)

    def is_kept_waiting(self) -> None:
        """Give up a handshake that upstream does not answer."""
        self._end(HandshakeTimeout())

    def is_silent(self) -> None:
        """Part from a client that says nothing."""
        self._end(Silent())

    def is_too_slow(self) -> None:
        """Part from a client that does not end its message, unless it is we who do not read it."""
        if self.upstream.is_full or self._offer is not None:
            self.sockets.payloads.start(self)
        else:
            self._end(TooSlow())


class _Leg(asyncio.BaseProtocol):
    """One side of a WebSocket: its transport, and what is known of it."""

    __slots__ = ("_socket", "is_deaf", "is_full", "is_lost", "is_silent", "quiet_beats", "transport")

    side: Side

    def __init__(self, socket: RelayedSocket) -> None:
        self._socket = socket
        self.transport: asyncio.Transport
        self.is_lost = False
        self.is_silent = False  # nothing more is sent: the close frame is out
        self.is_deaf = False  # nothing that comes can be read any more, since something in it broke the protocol
        self.is_full = False  # what was sent waits to be taken
        self.quiet_beats = 0  # _QUIET when nothing came since the last heartbeat, _ASKED when our ping is not answered

    def begin(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def write(self, data: bytes) -> None:
        """Send bytes as they are, unless the close frame is out."""
        if not self.is_silent:
            self.transport.write(data)

    def send(self, opcode: int, payload: bytes) -> None:
        """Send a frame of our own."""
        self.write(frame(opcode, payload, mask=self.new_mask()))

    def new_mask(self) -> bytes:
        """What a frame is masked with on its way to this side: nothing, but to upstream."""
        return b""

    def close(self, code: int, text: bytes, *, can_speak: bool = True) -> None:
        """Say why it ends; what comes after that is read for a close frame only."""
        if can_speak:
            self.write(close_frame(code, text, mask=self.new_mask()))
        self.is_silent = True
        if can_speak:
            self.let_come()
        else:
            self.transport.close()

    def hold_back(self) -> None:
        """Read nothing for now."""
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def let_come(self) -> None:
        """Read again."""
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def hang_up(self) -> None:
        """End the connection once what was sent is out: both close frames have crossed."""
        self.transport.close()

    def give_up(self) -> None:
        """Say that nothing more comes, and read no sense into what still does (RFC 6455, 7.1.7).

        It is taken all the same: closed with bytes unread, a connection is reset, and the close frame may be lost.
        """
        self.is_deaf = True
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Backpressure: who does not take what is sent makes the other side wait."""
        self.is_full = True
        self._socket.sockets.takers.start(self)
        if not self.is_silent:
            self._socket.other(self).hold_back()

    def resume_writing(self) -> None:
        self.is_full = False
        self._socket.sockets.takers.stop(self)
        self._socket.other(self).let_come()

    def is_stalled(self) -> None:
        """Give up a side that does not take what it was sent."""
        self._socket.stalled(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - what it was changes nothing
        self.is_lost = self.is_silent = True
        self._socket.lost(self)


class _ClientLeg(_Leg, asyncio.Protocol):
    __slots__ = ()

    side: Side = "client"

    def let_come(self) -> None:
        """Read again, unless there is another reason not to; once it is closing, there is none."""
        if self.is_silent or not self._socket.holds_client_back:
            super().let_come()
            self._socket.heard_again()

    def data_received(self, data: bytes) -> None:
        self.quiet_beats = 0
        if not self.is_deaf:
            self._socket.climb(data)


class _UpstreamLeg(_Leg, asyncio.BufferedProtocol):
    """Reads no more at a time than a client that does not read may make us hold."""

    __slots__ = ()

    side: Side = "upstream"

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - as much as we want to hold
        return _read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.quiet_beats = 0
        if not self.is_deaf:
            self._socket.descend(bytes(_read_buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        self.quiet_beats = 0
        if not self.is_deaf:
            self._socket.descend(data)

    def new_mask(self) -> bytes:
        """Four bytes that nobody can foretell (RFC 6455, 5.3); drawn in bulk."""
        if not _masks:
            _masks[:] = os.urandom(4096)
        mask = bytes(_masks[-4:])
        del _masks[-4:]
        return mask


_read_buffer: Final = memoryview(bytearray(_READ_BYTES))  # one for all: what is read is taken out in the same turn
_masks: Final = bytearray()


def _as_ended(problem: Exception, side: Side) -> Exception:
    if isinstance(problem, FrameError):
        return LegEnded(side, problem.code, violated=True, limit=problem.limit)
    return problem
