"""The life of one relayed WebSocket, from the upgrade to the last close frame.

Once both sides are connected no task lives on: what comes in on one side goes out on the other in the same turn of the
event loop. Up, every frame is read and judged. Down, bytes pass as they come; only while an answer is awaited they are
read, from the next boundary between messages on.
"""

import asyncio
import binascii
import logging
import os
from base64 import b64decode
from collections.abc import Sequence
from typing import Final, cast

from proxy.bayeux.messages import encode
from proxy.bayeux.negotiation import Negotiation, Outcome
from proxy.credentials.kinds import Credential
from proxy.deadlines import Deadlines
from proxy.head import Head
from proxy.http1 import LINE_END, write_answer
from proxy.relay.carriage import Carriage, now
from proxy.relay.door import Door
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
from proxy.upstream.dialling import Line


log = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 3.0
"""How long a closing WebSocket waits for the other side's close frame."""

LAST_ANSWER_SECONDS: Final = 1.0
"""How long a client that ends it waits for upstream's close frame, and so for the answers in front of that."""

_KEY_BYTES: Final = 16
_WRITE_BUFFER_BYTES: Final = 4 * 1024  # more that a side does not take pauses the other
_READ_BYTES: Final = 64 * 1024
_HEARTBEAT: Final = b"c8y-realtime-proxy"  # what our own pings say, so that their pongs are told from others
_QUIET: Final = 1
_ASKED: Final = 2
_NO_STATUS: Final = 1005  # a close frame without a code, as RFC 6455, 7.1.5 calls it


class WebSocketRelay:
    """Relays WebSockets; one instance for all."""

    def __init__(self, carriage: Carriage) -> None:
        self._carriage = carriage
        self.sockets: set[_Socket] = set()
        self.patience = Deadlines(carriage.limits.handshake_seconds, _Socket.is_kept_waiting)
        self.last_answers = Deadlines(LAST_ANSWER_SECONDS, _Socket.close_client)
        self.closing = Deadlines(CLOSE_SECONDS, _Socket.cut_off)
        self._next_beat: asyncio.TimerHandle | None = None
        carriage.metrics.before_collecting(self._count)

    def __len__(self) -> int:
        return len(self.sockets)

    async def open(self, door: Door, request: Request) -> None:
        """Open one WebSocket and take the door's connection over.

        While an HTTP status can still be answered, a failure is one; once the client is accepted, every ending is a
        close code.
        """
        try:
            line, credential = await self._dial(request.head, request.endpoint)
        except asyncio.CancelledError:
            self._carriage.metrics.upgrade("unanswered", "client_gone")
            raise
        except Exception as problem:  # noqa: BLE001 - the table decides; what it does not know is logged
            door.refuse(problem)
            return
        client = door.transport
        socket = _Socket(self._carriage, self, credential, request.endpoint)
        client.write(self._accepting(request.head, line))
        self._carriage.metrics.upgrade("accepted", "ok")
        self._beat_from_now_on()
        socket.open(client, line, door.give_up(socket.client))

    def close(self) -> None:
        """Cut off whoever is still there."""
        if self._next_beat is not None:
            self._next_beat.cancel()
        for deadlines in (self.patience, self.last_answers, self.closing):
            deadlines.close()
        for socket in tuple(self.sockets):
            socket.cut_off()

    async def _dial(self, head: Head, endpoint: str) -> tuple[Line, Credential]:
        """Choose the credential, and dial upstream with it."""
        _check_upgrade(head)
        carriage = self._carriage
        if carriage.live.draining:
            raise Draining
        credential = carriage.handshakes.source.obtain(head, endpoint)
        headers = carriage.crossing.upgrade_headers(head, credential.cookies())
        line = await carriage.upstream.dial(head.path, head.value("sec-websocket-key") or "", headers)
        if carriage.live.draining:  # by now
            line.transport.abort()
            raise Draining
        return line, credential

    def _accepting(self, head: Head, line: Line) -> bytes:
        headers = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", line.answer.value("sec-websocket-accept") or ""),
            *self._carriage.crossing.down_headers(line.answer.headers, secure=head.secure),
        ]
        return write_answer(101, headers) + LINE_END

    def _count(self) -> None:
        for socket in self.sockets:
            socket.count()

    def _beat_from_now_on(self) -> None:
        """One timer serves the heartbeats of all: a leg that was quiet from one beat to the next is asked."""
        if self._next_beat is None:
            seconds = self._carriage.limits.heartbeat_seconds / 2
            self._next_beat = asyncio.get_running_loop().call_later(seconds, self._beat)

    def _beat(self) -> None:
        self._next_beat = None
        for socket in tuple(self.sockets):
            socket.beat()
        if self.sockets:
            self._beat_from_now_on()


class _Socket:
    """Both legs of one WebSocket and the handshakes in flight on it."""

    __slots__ = (
        "_bytes_up",
        "_carriage",
        "_endpoint",
        "_has_refused",
        "_held",
        "_is_over",
        "_messages_up",
        "_negotiation",
        "_owed",
        "_passes",
        "_reader",
        "_reading",
        "_relay",
        "_unsaid",
        "_waited_since",
        "_walk",
        "client",
        "upstream",
    )

    def __init__(self, carriage: Carriage, relay: WebSocketRelay, credential: Credential, endpoint: str) -> None:
        self._carriage = carriage
        self._relay = relay
        self._endpoint = endpoint
        self._negotiation: Negotiation[Credential] = carriage.handshakes.negotiation(credential, endpoint)
        self._reader = FrameReader(masked=True, limit=carriage.limits.client_payload_bytes)
        self._walk = FrameWalk()
        self._reading: FrameReader | None = None  # while something that came down is read rather than passed
        self._held = b""  # a piece of a frame's head that came down
        self._owed = b""  # our own replies, until the next boundary
        self._passes = True  # whether what comes down need not be looked at, but for the heads of its frames
        self._messages_up = self._bytes_up = 0
        self._has_refused = False
        self._is_over = False
        self._unsaid: tuple[Closing, LegEnded | None] | None = None  # why it is over, until the client is told
        self._waited_since: float | None = None  # when the handshake was read whose answer is waited for
        self.client = _ClientLeg(self)
        self.upstream = _UpstreamLeg(self)

    def open(self, client: asyncio.Transport, line: Line, early: bytes) -> None:
        """Begin to relay; `early` is what the client sent before it was accepted."""
        self._relay.sockets.add(self)
        self.client.begin(client)
        self.upstream.begin(line.transport)
        self._carriage.live.join("websocket", self)
        line.hand_over(self.upstream)
        if early:
            self.climb(early)
        if not self.upstream.is_full:
            self.client.let_come()

    # Up: every frame is read ------------------------------------------------------------------------------------------

    def climb(self, data: bytes) -> None:
        """Take what the client sent."""
        try:
            self._reader.feed(data)
            while (read := self._reader.read()) is not None:
                self._came_up(read)
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
        up = self._negotiation.from_client(payload, now())
        if up.payload is not None:
            self._messages_up += 1
            self._bytes_up += len(up.payload)
            self.upstream.send(TEXT, up.payload)
        if self._negotiation.pending:
            self._passes = False
            self._be_patient()
        if up.replies:
            self._settle(up.outcomes)
            self._reply(frame(TEXT, encode(up.replies)))
            self._has_refused = True
        if self._has_refused:
            self._end_if_refused()

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
            raise LegEnded("upstream", code or _NO_STATUS, text)
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
        if any(outcome.verdict == "rejected" for outcome in down.outcomes):
            raise HandshakeRejected
        self._end_if_refused()

    # The end ----------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Say goodbye, because we leave."""
        self._end(Draining())

    def lost(self, leg: "_Leg") -> None:
        """Take note that the connection of a leg is no more."""
        if self._unsaid is not None or not self._is_over:
            self._end(LegEnded(leg.side, None))
        if self.client.is_lost and self.upstream.is_lost:
            self._relay.closing.stop(self)
            self.count()
            self._relay.sockets.discard(self)
            self._carriage.live.part("websocket", self)

    def other(self, leg: "_Leg") -> "_Leg":
        """The other side."""
        return self.upstream if leg is self.client else self.client

    def cut_off(self) -> None:
        """End both connections at once."""
        self.client.transport.abort()
        self.upstream.transport.abort()

    def count(self) -> None:
        """Bring what crossed since the last time into the metrics."""
        walk, relayed = self._walk, self._carriage.metrics.relayed
        relayed("websocket", "down", walk.size, walk.messages)
        relayed("websocket", "up", self._bytes_up, self._messages_up)
        walk.messages = walk.size = self._bytes_up = self._messages_up = 0

    def beat(self) -> None:
        """Ask each side that said nothing since the last time whether it is still there."""
        if self._is_over:
            return
        for leg in (self.client, self.upstream):
            if self.other(leg).is_full:  # then it is not read, and its pong would not be seen
                leg.quiet_beats = 0
            elif leg.quiet_beats == _ASKED:
                leg.transport.abort()
            elif leg.quiet_beats == 0:
                leg.quiet_beats = _QUIET
            elif not leg.is_full and (leg is self.upstream or self._walk.is_at_frame):
                leg.quiet_beats = _ASKED
                leg.send(PING, _HEARTBEAT)

    def _end(self, problem: Exception) -> None:
        """Record what got no answer, and close both legs, each in its own words; once.

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
        self._settle(self._negotiation.abandon(now(), end.unanswered))
        self._relay.patience.stop(self)
        self._unsaid = end, ended
        self.upstream.close(end.upstream, end.text)
        if ended is None or ended.side == "upstream" or ended.code is None:
            self.close_client()
            return
        self.client.is_deaf = ended.violated
        if self.client.is_full:
            self.upstream.hold_back()
        self._relay.last_answers.start(self)

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
        self._relay.last_answers.stop(self)
        self._relay.closing.start(self)
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
        if self._has_refused and not self._negotiation.pending:
            raise HandshakeRefused

    def _leg(self, side: Side) -> "_Leg":
        return self.client if side == "client" else self.upstream

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            self._carriage.handshakes.settle("websocket", outcomes, self._negotiation.credential, self._endpoint)

    def _be_patient(self) -> None:
        """Wait no longer than for the oldest handshake without an answer."""
        since = self._negotiation.waiting_since
        if since != self._waited_since:
            self._waited_since = since
            if since is None:
                self._relay.patience.stop(self)
            else:
                self._relay.patience.start(self)

    def is_kept_waiting(self) -> None:
        """Give up a handshake that upstream does not answer."""
        self._end(HandshakeTimeout())


class _Leg(asyncio.BaseProtocol):
    """One side of a WebSocket: its transport, and what is known of it."""

    __slots__ = ("_socket", "is_deaf", "is_full", "is_lost", "is_silent", "quiet_beats", "transport")

    side: Side

    def __init__(self, socket: _Socket) -> None:
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
        if not self.is_silent:
            self._socket.other(self).hold_back()

    def resume_writing(self) -> None:
        self.is_full = False
        self._socket.other(self).let_come()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - what it was changes nothing
        self.is_lost = self.is_silent = True
        self._socket.lost(self)


class _ClientLeg(_Leg, asyncio.Protocol):
    __slots__ = ()

    side: Side = "client"

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
    return LegEnded(side, problem.code, violated=True) if isinstance(problem, FrameError) else problem


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
