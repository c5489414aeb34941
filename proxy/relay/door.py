"""The life of one client connection, from its first byte until a WebSocket takes it over or it ends.

It is the door of the house, so it is strict: what comes is bounded before it is kept, one request is read at a time, a
request that fails is the last one, and what stands behind an upgrade is not looked at until that is decided.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, Literal, Protocol, cast

from proxy.deadlines import Deadlines
from proxy.gate.limits import Limits, TooMany
from proxy.head import certificate_of
from proxy.http1 import BODILESS, END, LAST_CHUNK, Chunked, MalformedHead, Sized, chunk
from proxy.relay.endings import CUT_OFF, SENT_AHEAD, STALLED, Ending
from proxy.relay.failures import BadRequest, Draining
from proxy.relay.front import Front, Request


_BACKLOG_BYTES: Final = 64 * 1024
_PAGE_BODY_BYTES: Final = 64 * 1024
_LINGER_SECONDS: Final = 2.0  # how long an unread body is drained so that the refusal in front of it is seen
_RESET: Final = struct.pack("ii", 1, 0)  # on, and linger for no time

State = Literal["head", "body", "opening", "answering", "resting", "deaf"]


class Answering(Protocol):
    """What answers a POST."""

    def begin(self, body: bytes) -> None:
        """Answer a request with this body, by the door's `start`, `send` and `finish`, or by `refuse`."""
        ...

    def hold_back(self) -> None:
        """Wait: the client does not take what is sent."""
        ...

    def go_on(self) -> None:
        """Wait no longer."""
        ...

    def is_cut_off(self, ending: Ending) -> None:
        """Take note why the connection is going to be cut off by us."""
        ...

    def client_gone(self) -> None:
        """Stop: nobody is there to be answered."""
        ...


class Polling(Protocol):
    """Where POSTs go."""

    def check(self, request: Request) -> None:
        """Judge a request before its body is read. Raises what `failures.http_failure` knows."""
        ...

    def poll(self, door: "Door", request: Request) -> Answering:
        """Take a request."""
        ...


class Pages(Protocol):
    """Where go what is neither upgrade nor POST to an endpoint."""

    def protocol(self, asked: Request, body: bytes) -> asyncio.Protocol:
        """What takes over a connection with a request, and answers that."""
        ...

    def __len__(self) -> int:
        """How many of the listener's connections are theirs by now."""
        ...


class WebSockets(Protocol):
    """Where upgrades go."""

    async def open(self, door: "Door", request: Request) -> None:
        """Open a WebSocket and take the door's connection over by `give_up`, or `refuse`."""
        ...

    def __len__(self) -> int:
        """How many of the listener's connections are theirs by now."""
        ...


class Listener:
    """The public listener: makes a door for each connection, and knows which are open."""

    def __init__(
        self,
        front: Front,
        limits: Limits,
        *,
        websockets: WebSockets,
        polling: Polling,
        pages: Pages,
    ) -> None:
        self.front = front
        self.limits = limits
        self.websockets = websockets
        self.polling = polling
        self.pages = pages
        self.doors: set[Door] = set()
        self.strangers: dict[Door, None] = {}  # those that have not sent a request that may come in, the oldest first
        self.idle = Deadlines(limits.idle_seconds, Door.is_idle)
        self.heads = Deadlines(limits.head_seconds, Door.head_is_late)
        self.bodies = Deadlines(limits.payload_seconds, Door.body_is_late)
        self.takers = Deadlines(limits.stalled_seconds, Door.is_stalled)
        self.leavers = Deadlines(_LINGER_SECONDS, Door.break_off)
        self.parting = Deadlines(limits.stalled_seconds, Door.is_stalled)

    def change(self, front: Front, limits: Limits) -> None:
        """Judge requests in another way from now on, also those on connections that are open."""
        self.front = front
        self.limits = limits
        self.idle.change(limits.idle_seconds)
        self.heads.change(limits.head_seconds)
        self.bodies.change(limits.payload_seconds)
        self.takers.change(limits.stalled_seconds)
        self.parting.change(limits.stalled_seconds)

    def __call__(self) -> "Door":
        return Door(self)

    @property
    def deadlines(self) -> "Sequence[Deadlines[Door]]":
        """All that a connection may be waited for."""
        return self.idle, self.heads, self.bodies, self.takers, self.leavers, self.parting

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self.doors) + len(self.websockets) + len(self.pages)

    @property
    def is_crowded(self) -> bool:
        """Whether there are more connections than the limit allows."""
        return self.connections > self.limits.connections

    def welcome(self, door: "Door") -> None:
        """Have a new connection. Where too many have not shown yet what they want, the one that had most time for it
        makes room: it is the cheapest way to be rid of many who never will.
        """
        self.doors.add(door)
        self.strangers[door] = None
        if len(self.strangers) > self.limits.strangers:
            oldest = next(iter(self.strangers))
            del self.strangers[oldest]  # at once: more may come before its connection is lost
            self.front.metrics.limit("strangers")
            oldest.break_off()

    def close(self) -> None:
        """Part with whoever is still there."""
        for door in tuple(self.doors):
            door.leave()
        for deadlines in self.deadlines:
            deadlines.close()


class Door(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_answering",
        "_body",
        "_buffer",
        "_came",
        "_is_chunking",
        "_is_crowded",
        "_is_full",
        "_is_head_awaited",
        "_is_last",
        "_known",
        "_known_as",
        "_listener",
        "_opening",
        "_owed",
        "_request",
        "_state",
        "is_leaving",
        "transport",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._state: State = "head"
        self._buffer = b""  # what has come and was not looked at yet
        self._is_crowded = False
        self._request: Request | None = None  # the one that is being read or answered
        self._known: Request | None = None  # the last one, and its bytes: a polling client says the same every time
        self._known_as = b""
        self._body: Sized | Chunked = Sized(0)
        self._came = bytearray()  # what has come of the body
        self._opening: asyncio.Task[None] | None = None
        self.is_leaving = False  # whether it is us who end what is being opened
        self._answering: Answering | None = None
        self._is_last = False
        self._is_chunking = False
        self._is_head_awaited = False  # a head has begun to come
        self._is_full = False  # what was sent waits to be taken
        self._owed = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        listener = self._listener
        listener.welcome(self)
        listener.idle.start(self)
        self._is_crowded = listener.is_crowded

    # What comes -------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            if self._state == "head":
                self._read_head()
            elif self._state == "body":
                self._read_body()
            elif self._state == "deaf":
                self._buffer = b""
            elif len(self._buffer) > _BACKLOG_BYTES:
                self._hold_off()
        except Exception as error:  # noqa: BLE001 - the table decides; what it does not know is logged
            self.refuse(error)

    def _hold_off(self) -> None:
        """Take no more for now. Before an upgrade is decided that is soon over; but a client that sends requests ahead
        of their answers could go unnoticed, for as long as one is held.
        """
        if self._state == "opening":
            self.transport.pause_reading()
        else:
            self.cut_off(SENT_AHEAD)

    def _read_head(self) -> None:
        buffer, limit = self._buffer, self._listener.limits.head_bytes
        end = buffer.find(END) + len(END)
        if end < len(END):
            if b"\n\n" in buffer:
                raise MalformedHead("the lines of a head end with CR and LF")
            end = len(buffer)
        if end > limit:
            raise BadRequest(431, f"The head of the request is longer than {limit} bytes", limit="head_bytes")
        listener = self._listener
        if not buffer.endswith(END, 0, end):
            if buffer and not self._is_head_awaited:
                self._is_head_awaited = True
                listener.heads.start(self)
            return
        listener.idle.stop(self)
        if self._is_head_awaited:
            self._is_head_awaited = False
            listener.heads.stop(self)
        raw, self._buffer = buffer[:end], buffer[end:]
        if raw != self._known_as or self._known is None or not listener.front.holds_still(self._known):
            self._known, self._known_as = None, raw
            self._request = self._judged(raw)
            self._known = self._request
            if self._known.unidentified is None:
                listener.strangers.pop(self, None)
        else:
            self._known.begun_at = time.monotonic()
        self._request = self._known
        self._dispatch(self._known)

    def _judged(self, raw: bytes) -> Request:
        peer = self.transport.get_extra_info("peername")
        request = self._request = self._listener.front.read(
            raw,
            str(peer[0]) if isinstance(peer, tuple) else "",
            secure=self.transport.get_extra_info("sslcontext") is not None,
            certificate=certificate_of(self.transport.get_extra_info("peercert")),
        )
        if self._is_crowded:
            raise TooMany("connections", "Too many connections: try again later")
        self._admit(request)
        return request

    def _admit(self, request: Request) -> None:
        self._listener.front.admit(request)
        if request.endpoint and request.asked.method == "POST":
            self._listener.polling.check(request)

    def judge_again(self, request: Request) -> None:
        """Judge a request by what the configuration has become since. Raises what `Front.admit` does."""
        if request.judged_by is not self._listener.front:
            self._admit(request)

    def _dispatch(self, request: Request) -> None:
        """Hand a request that may come in to where it belongs."""
        listener = self._listener
        self._is_last = request.asked.is_last
        if request.is_upgrade:
            self._state = "opening"
            self._opening = asyncio.get_running_loop().create_task(listener.websockets.open(self, request))
        else:
            self._body = request.asked.body()
            self._check_size(request.asked.length or 0)
            self._expect(request)
            self._state = "body"
            self._read_body()
            if self._state == "body":
                listener.bodies.start(self)

    def _check_size(self, size: int) -> None:
        limit = self._listener.limits.client_payload_bytes
        if self._request is not None and not self._request.endpoint:
            limit = min(limit, _PAGE_BODY_BYTES)
        if size > limit:
            raise BadRequest(413, f"The payload is bigger than {limit} bytes", limit="client_payload_bytes")

    def _expect(self, request: Request) -> None:
        expected = request.head.value("expect")
        if expected is None or request.asked.version == "1.0":
            return
        if expected.lower() != "100-continue":
            raise BadRequest(417, "Expect nothing, or 100-continue")
        if not self._buffer:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read_body(self) -> None:
        body = self._body
        came = body.feed(self._buffer)
        self._buffer = b""
        self._check_size(body.length or len(self._came) + len(came))
        if not body.is_over:
            self._came += came
            return
        self._listener.bodies.stop(self)
        self._buffer = body.rest
        if self._came:
            came, self._came = bytes(self._came + came), bytearray()
        self._answer(came)

    def _answer(self, body: bytes) -> None:
        request = cast("Request", self._request)
        self.judge_again(request)
        self._state = "answering"
        if request.head.method == "OPTIONS":
            self.start(HTTPStatus.NO_CONTENT, self._listener.front.preflight(request), None)
            self.finish()
        elif request.endpoint:
            answering = self._answering = self._listener.polling.poll(self, request)
            answering.begin(body)
        else:
            self._hand_over(request, body)

    def is_idle(self) -> None:
        """End a connection on which no request was begun in time."""
        if not self._is_head_awaited:
            self._listener.front.metrics.limit("idle_seconds")
            self._part()

    def head_is_late(self) -> None:
        """Refuse a request whose head has not come in time."""
        self.refuse(BadRequest(408, "The head of the request did not arrive in time", limit="head_seconds"))

    def body_is_late(self) -> None:
        """Refuse a request whose body has not come in time."""
        self.refuse(BadRequest(408, "The body did not arrive in time", limit="payload_seconds"))

    def is_stalled(self) -> None:
        """Cut off a client that does not take what it was sent."""
        self._listener.front.metrics.limit("stalled_seconds")
        self.cut_off(STALLED["client"])

    # What is answered -------------------------------------------------------------------------------------------------

    def start(self, status: int, head: bytes, length: int | None) -> None:
        """Begin an answer with its head, but for the empty line at its end; `length` is that of its body, or None where
        only its end will tell. What is sent gathers until `flush`.
        """
        request = cast("Request", self._request)
        framing = b""
        if status not in BODILESS:
            if length is not None:
                framing = b"Content-Length: %d\r\n" % length
            elif request.asked.version != "1.0":
                framing = b"Transfer-Encoding: chunked\r\n"
                self._is_chunking = True
        if self._is_last:
            framing += b"Connection: close\r\n"
        self._owed = b"%b%b%b\r\n" % (head, request.cross_origin, framing)

    def send(self, data: bytes) -> None:
        """Send a piece of the body of an answer, at least one byte."""
        self._owed += chunk(data) if self._is_chunking else data

    def flush(self) -> None:
        """Let go what has gathered."""
        if self._owed:
            self.transport.write(self._owed)
            self._owed = b""

    def finish(self) -> None:
        """End an answer."""
        if self._is_chunking:
            self._owed += LAST_CHUNK
        self.flush()
        self._next()

    def _next(self) -> None:
        """Wait for the next request.

        One that is there already is looked at in a turn of its own, since a thousand in one piece would nest as deep,
        and only by then: while they come faster, they count as sent ahead of their answers. Nor is it while the client
        does not take what it was sent, since nothing would hold the next answer back.
        """
        self._answering = None
        self._request = None
        self._is_chunking = False
        if self._is_last:
            self._part()
            return
        self._listener.idle.start(self)
        self._state = "head"
        if self._buffer or self._is_full:
            self._state = "resting"
            asyncio.get_running_loop().call_soon(self._look_again)

    def _look_again(self) -> None:
        if self._state == "resting" and not self._is_full and not self.transport.is_closing():
            self._state = "head"
            self.data_received(b"")

    def refuse(self, error: Exception, *, is_told: bool = False) -> None:
        """Answer with a failure in words, of which the log tells unless it `is_told`; what follows is no request."""
        if self.transport.is_closing():
            return
        self.transport.write(self._listener.front.refusal(error, self._request, is_told=is_told))
        self._be_deaf()
        self.transport.resume_reading()  # closed with bytes unread, a connection is reset, and the answer may be lost
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._listener.leavers.start(self)

    def _part(self) -> None:
        """End the connection once what was sent is taken, which a client may never do."""
        self._be_deaf()
        self._listener.parting.start(self)
        self.transport.close()

    def _be_deaf(self) -> None:
        self._state = "deaf"
        self._buffer = b""
        self._answering = None
        self._came = bytearray()
        self._listener.idle.stop(self)
        self._listener.heads.stop(self)
        self._listener.bodies.stop(self)

    def leave(self) -> None:
        """End the connection because this process ends: with a word to whoever has asked for something, and without a
        reset where all is answered, since some systems forget what was said last once that is there.
        """
        if self._opening is not None and self._state == "opening":
            self.is_leaving = True
            self._opening.cancel()
        elif self._state == "body":
            self.refuse(Draining())
        elif self._state == "head" and not self._buffer:
            self._part()
        else:
            self.cut_off(CUT_OFF)

    def cut_off(self, ending: Ending) -> None:
        """End the connection at once; `ending` is what the log says of what was being answered."""
        if self._answering is not None:
            self._answering.is_cut_off(ending)
        self.break_off()

    def break_off(self) -> None:
        """End the connection so that nobody takes what was sent for complete: by a reset, for to a client of HTTP/1.0
        the end of an answer is that of its connection.
        """
        kernel = self.transport.get_extra_info("socket")  # none behind TLS that has ended
        if kernel is not None:
            with contextlib.suppress(OSError):  # closed by now
                kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def pause_writing(self) -> None:
        self._is_full = True
        self._listener.takers.start(self)
        if self._answering is not None:
            self._answering.hold_back()

    def resume_writing(self) -> None:
        self._is_full = False
        self._listener.takers.stop(self)
        if self._answering is not None:
            self._answering.go_on()
        elif self._state == "resting":
            asyncio.get_running_loop().call_soon(self._look_again)

    # The end ----------------------------------------------------------------------------------------------------------

    def give_up(self, taker: asyncio.BaseProtocol) -> bytes:
        """Let another protocol have the connection; returns what has come for it already."""
        self._forget()
        self.transport.set_protocol(taker)
        early, self._buffer = self._buffer, b""
        return early

    def _hand_over(self, request: Request, body: bytes) -> None:
        """Let a page be served. It ends the connection with its answer; what came behind is no request."""
        page = self._listener.pages.protocol(request, body)
        self.give_up(page)
        page.connection_made(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - what it was changes nothing
        self._forget()
        if self._opening is not None:
            self._opening.cancel()
        if self._answering is not None:
            self._answering.client_gone()

    def _forget(self) -> None:
        listener = self._listener
        listener.doors.discard(self)
        listener.strangers.pop(self, None)
        for deadlines in listener.deadlines:
            deadlines.stop(self)
