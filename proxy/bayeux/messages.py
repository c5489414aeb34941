"""Payloads to batches and back.

A batch is a list of messages; a message is a map whose values stay raw, so that numbers survive to the digit and
unknown fields byte for byte. A duplicate key cannot mean one thing here and another to upstream, because the map
that was judged is the one that is written.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from proxy.bayeux import channels


Message = dict[str, msgspec.Raw]
Batch = list[Message]

_batch_or_message: Final = msgspec.json.Decoder(list[Message] | Message)
_message: Final = msgspec.json.Decoder(Message)
_string: Final = msgspec.json.Decoder(str)
_strings: Final = msgspec.json.Decoder(str | list[str])
_encoder: Final = msgspec.json.Encoder()


class MalformedBatch(ValueError):
    """A payload that is not a Bayeux batch. The text says what is wrong and quotes nothing of the payload."""


class BatchTooLong(MalformedBatch):
    """A batch of more messages than the limit allows."""


def decode(payload: bytes, *, most: int | None = None) -> Batch:
    """Read a client's payload: an array of messages or, as real clients also send, one message alone.

    UTF-8 only, without a byte order mark; every message needs a string `channel`. An empty array is a batch:
    Faye sends it as a heartbeat. `most` is how many messages it may have. Raises MalformedBatch.
    """
    if not payload.isascii() and not _is_utf8(payload):  # msgspec does not look at values that stay raw
        raise MalformedBatch("the payload is not UTF-8")
    decoded = _decoded(payload)
    if decoded is None:
        raise MalformedBatch("the payload is neither a JSON array of objects nor one JSON object")
    batch = decoded if isinstance(decoded, list) else [decoded]
    if most is not None and len(batch) > most:
        raise BatchTooLong(f"the batch has more than {most} messages (limits.batch_messages)")
    for message in batch:
        if channels.is_lookalike(channel(message)):
            raise MalformedBatch("a channel resembles a meta channel but is none")
    return batch


def read(payload: bytes) -> Batch | None:
    """Read an upstream payload for observation: None when it cannot be read, for then it is no answer."""
    decoded = _decoded(payload)
    return [decoded] if isinstance(decoded, dict) else decoded


def encode(batch: Sequence[Message]) -> bytes:
    """Write a batch as a JSON array (a message that came alone goes on as an array of one)."""
    return _encoder.encode(batch)


def channel(message: Message) -> str:
    """The channel of a message. Raises MalformedBatch when it has none or it is not a string."""
    text = string(message.get("channel"))
    if text is None:
        raise MalformedBatch("a message has no channel, or a channel that is not a string")
    return text


def string(value: msgspec.Raw | None) -> str | None:
    """The text of a raw value, or None when it is absent or not a string."""
    if value is None:
        return None
    try:
        return _string.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def strings(value: msgspec.Raw | None) -> list[str] | None:
    """The texts of a raw value that is one text or a list of them; None when it is neither."""
    if value is None:
        return None
    try:
        texts = _strings.decode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return [texts] if isinstance(texts, str) else texts


def members(value: msgspec.Raw | None) -> Message | None:
    """The members of a raw object, values raw; empty for an absent one or null; None for anything else."""
    if value is None or bytes(value) == b"null":
        return {}
    try:
        return _message.decode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def raw(value: object) -> msgspec.Raw:
    """A value of our own as it stands in a message."""
    return msgspec.Raw(_encoder.encode(value))


# Errors of the library are caught here and raised anew above, outside of their handling: they quote what they read, and
# must not hang on to an error of ours.


def _decoded(payload: bytes) -> Batch | Message | None:
    try:
        decoded: Batch | Message = _batch_or_message.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return decoded


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
