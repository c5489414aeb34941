"""Channel names, compared by the protocol's own rules, in one place.

Faye's server and its extensions once compared channels by different rules, which let a subscription pass
unseen (GHSA-qpg4-4w7w-2mq5). Here a channel of the `/meta` family is either spelled exactly or not a channel.
"""

import re
from typing import Final


HANDSHAKE: Final = "/meta/handshake"
CONNECT: Final = "/meta/connect"

_META: Final = frozenset({HANDSHAKE, CONNECT, "/meta/disconnect", "/meta/subscribe", "/meta/unsubscribe"})

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
