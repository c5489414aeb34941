"""Bayeux sessions of the simulator: what each message does to them, whatever carried it.

Written from the Bayeux specification and from what is documented of the platform, and sharing no code with
the proxy: two independent readings of the protocol can disagree, one reading cannot.
"""

import asyncio
import secrets
import string
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from proxy.demo.accounts import User


Message = dict[str, Any]
Outgoing = Mapping[str, object] | msgspec.Raw
"""A reply, or a notification that was encoded once for all who receive it."""

CONNECTION_TYPES = ("long-polling", "smartrest-long-polling", "websocket")
_BASE_36 = string.digits + string.ascii_lowercase
_NULL = msgspec.Raw(b"null")
_BATCHES = msgspec.json.Decoder(list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw])
# JSON sets no bound to numbers; left alone, msgspec takes one beyond a double for an error.
_VALUES = msgspec.json.Decoder(float_hook=float)


class MalformedPayload(Exception):
    """The payload is not one Bayeux message or a list of them."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One decoded message; `data` is kept as it was written, so that echoed numbers survive to the digit."""

    message: Message
    data: msgspec.Raw

    @property
    def channel(self) -> str:
        channel: str = self.message["channel"]
        return channel


def read_batch(payload: bytes) -> list[Incoming]:
    """Decode a list of messages, or a single one, which real clients send too."""
    try:
        batch = _BATCHES.decode(payload)
        incoming = [
            Incoming({key: _VALUES.decode(raw) for key, raw in fields.items()}, fields.get("data", _NULL))
            for fields in ([batch] if isinstance(batch, dict) else batch)
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPayload(str(error)) from error
    if not all(isinstance(each.message.get("channel"), str) for each in incoming):
        raise MalformedPayload("a message has no channel")
    return incoming


def channel_matches(subscription: str, channel: str) -> bool:
    """`/a/*` means exactly one more segment, `/a/**` one or more; elsewhere a star is only a star."""
    prefix, _, last = subscription.rpartition("/")
    match last:
        case "*":
            return channel.startswith(f"{prefix}/") and "/" not in channel[len(prefix) + 1 :]
        case "**":
            return channel.startswith(f"{prefix}/")
        case _:
            return subscription == channel


@dataclass(eq=False, slots=True)
class HeldConnect:
    """A `/meta/connect` that waits: for something to deliver, for its time, or for the end of its session."""

    message: Message
    session: "Session"
    seconds: float
    woken: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False, slots=True)
class Session:
    """One client that shook hands.

    `deliver` takes notifications at once while the client is on a WebSocket; without it they wait in
    `undelivered` for the next `/meta/connect`. `verdict` is what a held connect is told once the session is over.
    """

    client_id: str
    user: User
    browser: str | None
    idle_since: float
    subscriptions: set[str] = field(default_factory=set)
    undelivered: list[Outgoing] = field(default_factory=list)
    deliver: Callable[[list[Outgoing]], None] | None = None
    held: HeldConnect | None = None
    verdict: Mapping[str, object] | None = None

    def take(self) -> list[Outgoing]:
        """Hand over what waits for delivery; nothing is delivered twice."""
        taken, self.undelivered = self.undelivered, []
        return taken

    def receive(self, notification: Outgoing) -> None:
        if self.deliver is not None:
            self.deliver([notification])
            return
        self.undelivered.append(notification)
        self.wake()

    def wake(self) -> None:
        if self.held is not None:
            self.held.woken.set()


@dataclass(frozen=True, slots=True, eq=False)
class Carrier:
    """What carried a batch: it judges handshakes, knows which sessions may be continued over it, and takes
    notifications as they come if it is a WebSocket.
    """

    admits: Callable[[Message], User | None]
    may_continue: Callable[[Session], bool]
    browser: str | None = None
    deliver: Callable[[list[Outgoing]], None] | None = None


class Sessions:
    """Every session of the simulator. A client that stays away for `max_interval_seconds` loses its own."""

    def __init__(
        self, *, hold_seconds: float, max_interval_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hold_seconds = hold_seconds
        self._max_interval_seconds = max_interval_seconds
        self._clock = clock
        self._by_client_id: dict[str, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._by_client_id.values()))

    def publish(self, channel: str, data: object, *, tenant: str) -> int:
        """Deliver to every subscribed session of a tenant, or keep for its next connect; returns how many there are."""
        self._sweep()
        notification = msgspec.Raw(msgspec.json.encode({"channel": channel, "data": data}))
        receivers = [
            session
            for session in self
            if session.user.tenant == tenant
            and any(channel_matches(subscription, channel) for subscription in session.subscriptions)
        ]
        for session in receivers:
            session.receive(notification)
        return len(receivers)

    def answer(self, incoming: Incoming, carrier: Carrier) -> Outgoing | HeldConnect:
        """Do what one message asks; a connect that has to wait is returned as such, for its carrier to hold."""
        self._sweep()
        message = incoming.message
        if incoming.channel == "/meta/handshake":
            return self._open(message, carrier)
        session = self._by_client_id.get(str(message.get("clientId")))
        if session is None or not carrier.may_continue(session):
            return _reply(message, **_unknown_client(incoming.channel))
        return self._answer_known(incoming, session, carrier)

    def settle(self, held: HeldConnect) -> Outgoing:
        """The reply to a connect that waited; the session's time to come back starts here."""
        self.release(held)
        if held.session.verdict is not None:
            return _reply(held.message, **held.session.verdict)
        return _reply(held.message, successful=True, advice=self._advice())

    def release(self, held: HeldConnect) -> None:
        """Stop waiting, also when the client went away and nobody is left to be told."""
        session = held.session
        if session.held is held:
            session.held = None
            session.idle_since = self._clock()

    def detach(self, deliver: Callable[[list[Outgoing]], None]) -> None:
        """A WebSocket closed: what is published now waits until its sessions come back on another carrier."""
        for session in self:
            if session.deliver is deliver:
                session.deliver = None
                session.idle_since = self._clock()

    def forget(self) -> None:
        """Know no clientId any more, as after a restart; held connects are told so."""
        for session in self:
            self._end(session, _unknown_client("/meta/connect"))

    def _open(self, message: Message, carrier: Carrier) -> Outgoing:
        user = carrier.admits(message)
        if user is None:
            return _reply(message, successful=False, error="403::Handshake denied")
        client_id = "".join(secrets.choice(_BASE_36) for _ in range(26 + secrets.randbelow(8)))
        session = Session(client_id, user, carrier.browser, self._clock(), deliver=carrier.deliver)
        self._by_client_id[client_id] = session
        ext = message.get("ext")
        return _reply(
            message,
            version="1.0",
            minimumVersion="1.0",
            supportedConnectionTypes=CONNECTION_TYPES,
            clientId=client_id,
            successful=True,
            advice=self._advice(),
            **({"ext": {"ack": True}} if isinstance(ext, dict) and ext.get("ack") is True else {}),
        )

    def _answer_known(self, incoming: Incoming, session: Session, carrier: Carrier) -> Outgoing | HeldConnect:
        message = incoming.message
        match incoming.channel:
            case "/meta/connect":
                return self._connect(message, session, carrier)
            case "/meta/subscribe":
                return _subscribe(message, session)
            case "/meta/unsubscribe":
                session.subscriptions.difference_update(_channels_of(message))
                return _reply(message, successful=True, subscription=message.get("subscription"))
            case "/meta/disconnect":
                self._end(session, {"successful": True, "advice": {"reconnect": "none", "interval": 0}})
            case _:
                return self._publish_from_client(incoming, session)
        return _reply(message, successful=True)

    def _connect(self, message: Message, session: Session, carrier: Carrier) -> HeldConnect:
        session.wake()  # one connect per session: a second one ends the wait of the first
        session.deliver = carrier.deliver
        if carrier.deliver is not None and (missed := session.take()):
            carrier.deliver(missed)
        held = HeldConnect(message, session, self._seconds_to_hold(message))
        session.held = held
        if session.undelivered:
            held.woken.set()
        return held

    def _publish_from_client(self, incoming: Incoming, session: Session) -> Outgoing:
        if incoming.channel.startswith("/meta/"):
            return _reply(incoming.message, successful=False, error="404::Unknown meta channel")
        if not incoming.channel.startswith("/service/"):
            self.publish(incoming.channel, incoming.data, tenant=session.user.tenant)
        return _reply(incoming.message, successful=True)

    def _seconds_to_hold(self, message: Message) -> float:
        advice = message.get("advice")
        timeout = advice.get("timeout") if isinstance(advice, dict) else None
        if isinstance(timeout, int | float) and timeout >= 0:
            return min(timeout / 1000, self._hold_seconds)
        return self._hold_seconds

    def _end(self, session: Session, verdict: Mapping[str, object]) -> None:
        del self._by_client_id[session.client_id]
        session.verdict = verdict
        session.wake()

    def _sweep(self) -> None:
        latest = self._clock() - self._max_interval_seconds
        for session in self:
            if session.deliver is None and session.held is None and session.idle_since < latest:
                self._end(session, _unknown_client("/meta/connect"))

    def _advice(self) -> Mapping[str, object]:
        return {"interval": 0, "timeout": round(self._hold_seconds * 1000), "reconnect": "retry"}


def _reply(message: Message, **fields: object) -> Outgoing:
    """A reply on the channel of what it answers, with its id if there was one."""
    return {"channel": message["channel"], **({"id": message["id"]} if "id" in message else {}), **fields}


def _unknown_client(channel: str) -> Mapping[str, object]:
    """The platform advises a new handshake in answers to connects, and gives no advice in others."""
    verdict = {"successful": False, "error": "402::Unknown client"}
    if channel == "/meta/connect":
        return {**verdict, "advice": {"interval": 0, "reconnect": "handshake"}}
    return verdict


def _channels_of(message: Message) -> list[str]:
    subscription = message.get("subscription")
    named = subscription if isinstance(subscription, list) else [subscription]
    return [each for each in named if isinstance(each, str)]


def _subscribe(message: Message, session: Session) -> Outgoing:
    subscription = message.get("subscription")
    channels = _channels_of(message)
    if not channels or not all(map(_can_be_subscribed, channels)):
        return _reply(message, successful=False, subscription=subscription, error="403::Subscription denied")
    session.subscriptions.update(channels)
    return _reply(message, successful=True, subscription=subscription)


def _can_be_subscribed(channel: str) -> bool:
    return channel.startswith("/") and not channel.startswith("/meta/") and "" not in channel.split("/")[1:]
