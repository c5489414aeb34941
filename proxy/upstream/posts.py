"""POSTs to upstream: pooled connections, and the answers on them as they come.

A connection is used again only by who carries the same credential, and only after an answer that ended as it must: it
is thrown away after an abort, an early answer, a byte too many, or a doubt about where an answer ends.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

from proxy.deadlines import Deadlines
from proxy.http1 import (
    END,
    AnswerHead,
    Chunked,
    MalformedBody,
    MalformedHead,
    Sized,
    Unbounded,
    read_answer,
    write_request,
)


_POOLED_SECONDS: Final = 15.0
"""How long a connection waits for its next POST: less than upstreams keep one that is idle."""

Key = tuple[str | None, ...]

_CARRIED: Final = ("Authorization", "Cookie", "X-XSRF-TOKEN", "tfatoken")


class UpstreamUnavailable(Exception):
    """Upstream could not be reached, or went away.

    `timed_out` tells silence from refusal; `was_asked` whether the request may have arrived all the same.
    """

    def __init__(self, text: str, *, timed_out: bool = False, was_asked: bool = True) -> None:
        super().__init__(text)
        self.timed_out = timed_out
        self.was_asked = was_asked


class BadAnswer(Exception):
    """An answer that cannot be read in one way only, or is none. The text quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A POST but for its body: what tells apart connections that carry different credentials and cookies, and the
    head, but for the value of `Content-Length` at its end.
    """

    key: Key = field(repr=False)  # both hold the credential
    head: bytes = field(repr=False)


def prepare(path: str, headers: Mapping[str, str]) -> Prepared:
    """Make a POST out of its headers. Raises MalformedHead."""
    key = tuple(headers.get(name) for name in _CARRIED)
    return Prepared(key, write_request("POST", path, headers.items()) + b"Content-Length: ")


class Asker(Protocol):
    """Who asked, and is told what comes of it: once `answered`, then `came` for each piece of the body, then `ended`;
    or at any time `failed`, which is the last. `flush` says that there is no more for now.
    """

    def answered(self, answer: AnswerHead, length: int | None) -> None:
        """Take the head of the answer, and the length of its body where that is known."""
        ...

    def came(self, data: bytes) -> None:
        """Take a piece of the body, at least one byte."""
        ...

    def flush(self) -> None:
        """Pass on what has gathered."""
        ...

    def ended(self) -> None:
        """Take note that the answer is complete."""
        ...

    def failed(self, error: Exception) -> None:
        """Take note that there will be no complete answer: UpstreamUnavailable, or what the asker itself raised."""
        ...


class Pool:
    """The connections to upstream that wait for their next POST.

    `idle_seconds` bounds the silence within an answer, `max_head_bytes` the head of one; `unavailable` makes of an
    error what an asker is told.
    """

    def __init__(
        self, *, idle_seconds: float, max_head_bytes: int, unavailable: Callable[[Exception], UpstreamUnavailable]
    ) -> None:
        self.max_head_bytes = max_head_bytes
        self.unavailable = unavailable
        self.silent = Deadlines(idle_seconds, Wire.is_silent)
        self._known: tuple[bytes, AnswerHead] | None = None
        self._unused = Deadlines(_POOLED_SECONDS, Wire.close)
        self._waiting: dict[Key, list[Wire]] = {}
        self._wires: set[Wire] = set()
        self._is_retired = False

    def __len__(self) -> int:
        return len(self._wires)

    def take(self, key: Key) -> "Wire | None":
        """A connection that waits, and carried nothing but the same credential; the one that was used last."""
        waiting = self._waiting.get(key, [])
        while waiting:
            wire = waiting.pop()
            if not waiting:
                del self._waiting[key]
            self._unused.stop(wire)
            if not wire.is_closing:
                return wire
        return None

    def add(self, key: Key, transport: asyncio.Transport) -> "Wire":
        """Take a fresh connection into account."""
        wire = Wire(self, key, transport)
        transport.set_protocol(wire)
        self._wires.add(wire)
        return wire

    def read(self, head: bytes) -> AnswerHead:
        """Read the head of an answer. Raises MalformedHead.

        Under load, many say the same: the last one is kept, so that those are read once, and are one object.
        """
        if self._known is None or self._known[0] != head:
            self._known = head, read_answer(head)
        return self._known[1]

    def give_back(self, wire: "Wire") -> None:
        """Let a connection wait for its next POST."""
        if self._is_retired:
            wire.close()
            return
        self._waiting.setdefault(wire.key, []).append(wire)
        self._unused.start(wire)

    def forget(self, wire: "Wire") -> None:
        """Take note that a connection is no more."""
        self._wires.discard(wire)
        self._unused.stop(wire)
        self.silent.stop(wire)
        waiting = self._waiting.get(wire.key, [])
        if wire in waiting:
            waiting.remove(wire)
            if not waiting:
                del self._waiting[wire.key]

    def retire(self) -> None:
        """Let no connection wait any more."""
        self._is_retired = True
        for wire in [wire for waiting in self._waiting.values() for wire in waiting]:
            wire.close()

    def close(self) -> None:
        """Cut off what is still there."""
        self.silent.close()
        self._unused.close()
        for wire in tuple(self._wires):
            wire.cut_off()


class Wire(asyncio.Protocol):
    """One pooled connection to upstream, with at most one POST on it."""

    __slots__ = ("_answer", "_asker", "_body", "_head", "_pool", "_transport", "key")

    def __init__(self, pool: Pool, key: Key, transport: asyncio.Transport) -> None:
        self.key = key
        self._pool = pool
        self._transport = transport
        self._asker: Asker | None = None
        self._head = b""
        self._answer: AnswerHead | None = None
        self._body: Sized | Chunked | Unbounded | None = None

    @property
    def is_closing(self) -> bool:
        """Whether the connection has ended, also where nobody was told yet."""
        return self._transport.is_closing()

    def ask(self, post: Prepared, body: bytes, asker: Asker) -> None:
        """Send a POST."""
        self._asker = asker
        self._pool.silent.start(self)
        self._transport.write(b"%b%d\r\n\r\n%b" % (post.head, len(body), body))

    def hold_back(self) -> None:
        """Read nothing for now."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """End a connection that nobody uses."""
        self._transport.close()

    def cut_off(self) -> None:
        """End the connection in the middle, which tells upstream that nobody waits for the answer any more."""
        self._asker = None
        self._transport.abort()

    def is_silent(self) -> None:
        """Give an answer up in which nothing has come for too long."""
        self._fail(TimeoutError())

    def data_received(self, data: bytes) -> None:
        if self._asker is None:  # nobody asked, so nobody may be given it
            self._transport.abort()
            return
        asker = self._asker
        try:
            if self._body is None:
                self._read_head(data)
            else:
                self._read_body(self._body, data)
            if self._asker is not None:
                self._pool.silent.start(self)
                self._asker.flush()
        except (MalformedHead, MalformedBody, BadAnswer) as problem:
            self._fail(BadAnswer(str(problem)))
        except Exception as fault:  # noqa: BLE001 - if the asker did not hear of it, its client would wait for ever
            self.cut_off()
            asker.failed(fault)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        if self._asker is None:
            return
        if isinstance(self._body, Unbounded) and exc is None:
            asker, self._asker = self._asker, None
            asker.ended()
        else:
            self._fail(BadAnswer("Upstream ended the connection"))

    def _read_head(self, data: bytes) -> None:
        self._head += data
        head, found, rest = self._head.partition(END)
        if len(head) > self._pool.max_head_bytes:
            raise BadAnswer("the head of the answer is too long")
        if not found:
            return
        self._head = b""
        answer = self._answer = self._pool.read(head + found)
        if answer.status < HTTPStatus.OK or (answer.value("content-encoding") or "identity") != "identity":
            raise BadAnswer("the answer is none that was asked for")
        body = self._body = answer.body()
        if self._asker is not None:
            self._asker.answered(answer, body.length)
        self._read_body(body, rest)

    def _read_body(self, body: "Sized | Chunked | Unbounded", data: bytes) -> None:
        came = body.feed(data) if data else b""
        if came and self._asker is not None:
            self._asker.came(came)
        if body.is_over:
            self._end(body)

    def _end(self, body: "Sized | Chunked | Unbounded") -> None:
        asker, answer = self._asker, self._answer
        self._asker = self._answer = self._body = None
        self._pool.silent.stop(self)
        is_doubtful = body.rest or answer is None or answer.is_last or self._transport.get_write_buffer_size()
        if is_doubtful or self._transport.is_closing():
            self._transport.abort()
        else:
            self.go_on()
            self._pool.give_back(self)
        if asker is not None:
            asker.ended()

    def _fail(self, error: Exception) -> None:
        asker, self._asker = self._asker, None
        self._transport.abort()
        if asker is not None:
            asker.failed(self._pool.unavailable(error))
