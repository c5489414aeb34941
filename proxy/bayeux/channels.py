"""Channel names and patterns, compared by the protocol's own rules, in one place.

Faye's server and its extensions once compared channels by different rules, which let a subscription pass
unseen (GHSA-qpg4-4w7w-2mq5). Here a channel of the `/meta` family is either spelled exactly or not a channel, and a
pattern is judged segment by segment.
"""

import re
from typing import Final


HANDSHAKE: Final = "/meta/handshake"
CONNECT: Final = "/meta/connect"
DISCONNECT: Final = "/meta/disconnect"
SUBSCRIBE: Final = "/meta/subscribe"
UNSUBSCRIBE: Final = "/meta/unsubscribe"

ONE: Final = "*"
"""Stands for any one segment."""
MANY: Final = "**"
"""Stands for any segments, one at least; only at the end."""
ID: Final = "{id}"
"""In a grant: any one segment that is no wildcard."""

_META: Final = frozenset({HANDSHAKE, CONNECT, DISCONNECT, SUBSCRIBE, UNSUBSCRIBE})

_ORDINARY: Final = re.compile(r"/(?!meta(?:/|$))[!-.0-~][!-~]*", re.ASCII | re.IGNORECASE)
"""A channel in plain spelling, of another family: what nearly every message has."""


def is_lookalike(channel: str) -> bool:
    """Whether a channel resembles a meta channel without being one: `/meta//handshake`, `/META/handshake`.

    A lenient upstream could take it for the real one, so it must not pass as "not a handshake".
    """
    if channel in _META or _ORDINARY.fullmatch(channel):
        return False
    visible = "".join(character for character in channel if character.isprintable() and not character.isspace())
    segments = [segment for segment in visible.split("/") if segment]
    return bool(segments) and segments[0].casefold() == "meta"


Segments = tuple[str, ...]

_SEGMENT: Final = re.compile(r"[!-~]+", re.ASCII)
_NO_PART_OF_A_SEGMENT: Final = re.compile(r"[*{}\\]")
_RESERVED: Final = frozenset({"meta", "service"})


def requested(channel: str) -> Segments | None:
    """The segments of a channel or pattern that a client names; None when it is none.

    Wildcards stand at the end only (Bayeux, section 2.2.2), and every other segment is plain: what an upstream could
    read in a second way, such as `/a//b` or CometD's own `/a/{b}`, is no channel here.
    """
    *front, last = _split(channel) or ("",)
    if all(map(_is_plain, front)) and (_is_plain(last) or last in {ONE, MANY}):
        return (*front, last)
    return None


def granted(pattern: str) -> Segments | None:
    """The segments of a pattern that a grant names, where `{id}` and `*` may stand anywhere; None when it is none."""
    *front, last = _split(pattern) or ("",)
    if all(_is_plain(segment) or segment in {ONE, ID} for segment in front) and (
        _is_plain(last) or last in {ONE, ID, MANY}
    ):
        return (*front, last)
    return None


def is_plain(segments: Segments) -> bool:
    """Whether this is one channel, and no pattern."""
    return segments[-1] not in {ONE, MANY}


def is_service(segments: Segments) -> bool:
    """Whether a message on this channel is for a service of upstream rather than for subscribers."""
    return segments[0] == "service"


def covers(grant: Segments, asked: Segments) -> bool:
    """Whether all that is asked for is granted: every channel that `asked` matches, `grant` matches too.

    A wildcard in front covers neither `/meta` nor `/service`: those are granted by name or not at all.
    """
    if asked[0].casefold() in _RESERVED and grant[0] != asked[0]:
        return False
    open_ended = grant[-1] == MANY
    fixed = grant[:-1] if open_ended else grant
    if len(asked) < len(grant) or (len(asked) > len(grant) and not open_ended):
        return False
    return all(_covers_segment(one, other) for one, other in zip(fixed, asked, strict=False))


def _covers_segment(grant: str, asked: str) -> bool:
    if grant == ONE:
        return asked != MANY
    if grant == ID:
        return asked not in {ONE, MANY}
    return grant == asked


def _split(channel: str) -> list[str] | None:
    """The segments, or None without a slash in front."""
    return channel[1:].split("/") if channel.startswith("/") else None


def _is_plain(segment: str) -> bool:
    return (
        _SEGMENT.fullmatch(segment) is not None
        and _NO_PART_OF_A_SEGMENT.search(segment) is None
        and segment not in {".", ".."}
    )
