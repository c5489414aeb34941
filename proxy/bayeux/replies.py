"""Replies of our own: refusals, goodbyes, and how they join upstream's replies.

A refusal is Bayeux-shaped because the official client treats an HTTP 401, or a failure without advice, as a
passing fault and retries for ever; `advice` is what it obeys (measured with @c8y/client 1023 and cometd 4).
"""

from dataclasses import dataclass
from typing import Final, Literal

from proxy.bayeux import channels
from proxy.bayeux.messages import Batch, Message, channel, encode, raw


RefusalReason = Literal["identity", "policy", "no_credential", "cooldown", "limit", "unavailable", "malformed"]
MessageReason = Literal["subscribe", "publish", "call", "client_id"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a handshake does not go up, in words for the client, and when it may try again.

    `retry_ms` is None for a lasting refusal (`advice.reconnect` is `none`: the client stops) and the advised pause
    in milliseconds for a passing one (`handshake`). `limit` is the key of the limit that was reached, if one was.
    """

    reason: RefusalReason
    text: str
    retry_ms: int | None = None
    limit: str | None = None

    @property
    def advice(self) -> dict[str, str | int]:
        if self.retry_ms is None:
            return {"reconnect": "none"}
        return {"reconnect": "handshake", "interval": self.retry_ms}

    def reply(self, message: Message) -> Message:
        """The failed reply to one message; only a handshake gets advice."""
        reply = _reply(message, successful=False)
        reply["error"] = raw(f"403::{self.text}")
        if channel(message) == channels.HANDSHAKE:
            reply["advice"] = raw(self.advice)
        return reply


@dataclass(frozen=True, slots=True)
class MessageRefusal:
    """Why a message other than a handshake does not go up, in words for the client. The others of its batch do."""

    reason: MessageReason
    text: str
    code: int = 403
    rehandshake: bool = False

    def reply(self, message: Message) -> Message:
        """The failed reply to one message."""
        reply = _reply(message, successful=False)
        reply["error"] = raw(f"{self.code}::{self.text}")
        if self.rehandshake:
            reply["advice"] = raw({"reconnect": "handshake", "interval": 0})
        return reply


UNKNOWN_CLIENT: Final = MessageRefusal("client_id", "Unknown client", 402, rehandshake=True)
"""What upstream itself says to a clientId that it does not know, so that clients do what they do then."""


def goodbye(message: Message, refusal: Refusal) -> Message:
    """The reply to a message that we do not wait out because we leave.

    A held `/meta/connect` is told to ask again after the pause of the (passing) refusal: its clientId stays good
    upstream, so the client is back with its session wherever the retry lands. Anything else has failed.
    """
    if channel(message) != channels.CONNECT:
        return refusal.reply(message)
    reply = _reply(message, successful=True)
    reply["advice"] = raw({"reconnect": "retry", "interval": refusal.retry_ms})
    return reply


def dismissal(message: Message, refusal: Refusal) -> Message:
    """The reply to a message whose session may not go on: also what a held `/meta/connect` gets has the advice."""
    reply = refusal.reply(message)
    if channel(message) == channels.CONNECT:
        reply["advice"] = raw(refusal.advice)
    return reply


def _reply(message: Message, *, successful: bool) -> Message:
    reply = {"channel": message["channel"], "successful": raw(successful)}
    for name in ("id", "clientId", "subscription"):
        if name in message:
            reply[name] = message[name]
    return reply


class Joiner:
    """Puts our replies, at least one, in front of upstream's first array element while the body streams by.

    Whitespace in front passes at once, for it is the keep-alive of a held connect. A lone object becomes an array;
    an empty body becomes our replies alone.
    """

    __slots__ = ("_close", "_ours", "_state")

    def __init__(self, replies: Batch) -> None:
        self._ours = encode(replies)[1:-1]
        self._close = b""
        self._state: Literal["blank", "opened", "through"] = "blank"

    def feed(self, chunk: bytes) -> bytes:
        if self._state == "through":
            return chunk
        rest = chunk.lstrip(b" \t\r\n")
        blank = chunk[: len(chunk) - len(rest)]
        if not rest:
            return blank
        if self._state == "blank":
            if rest.startswith(b"["):
                self._state = "opened"
                return blank + b"[" + self._ours + self.feed(rest[1:])
            self._state, self._close = "through", b"]"
            return blank + b"[" + self._ours + b"," + rest
        self._state = "through"
        return blank + (rest if rest.startswith(b"]") else b"," + rest)

    def end(self) -> bytes:
        """What is still owed when the body has ended."""
        return b"[" + self._ours + b"]" if self._state == "blank" else self._close
