"""How a peer that vanished is noticed where nothing is said for hours: by TCP itself.

A cable that was pulled, a machine without power, a firewall that forgot a connection: none of them says goodbye. An
open WebSocket is asked by pings of our own; a held connect is a request that waits for its answer, for up to two hours,
and nothing in HTTP asks whether anybody is still there.
"""

import contextlib
import socket
from dataclasses import dataclass
from typing import Final, Protocol


_PROBES: Final = 4
"""How many questions are asked within the time that a peer has; one of them may be lost."""


class Socket(Protocol):
    """What event loops give as that of a transport or a server."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Vitality:
    """When TCP asks a peer whether it is there, and when it gives up, both in seconds: after `quiet_seconds` without a
    word, and after `gone_seconds` without an answer. The latter also holds for what was sent and is not taken.
    """

    quiet_seconds: float
    gone_seconds: float

    def watch(self, watched: Socket) -> None:
        """Have a connection watched, or, on a listening socket, every one that is accepted there. Of no effect on a
        unix socket, whose other end cannot vanish.
        """
        quiet = max(1, round(self.quiet_seconds))
        between = max(1, round((self.gone_seconds - self.quiet_seconds) / _PROBES))
        options = (
            ("TCP_KEEPIDLE", quiet),
            ("TCP_KEEPINTVL", between),
            ("TCP_KEEPCNT", _PROBES),
            ("TCP_USER_TIMEOUT", max(1, round(self.gone_seconds * 1000))),
        )
        with contextlib.suppress(OSError):  # no TCP, or closed by now
            watched.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in options:
                if (option := getattr(socket, name, None)) is not None:  # not every system has all of them
                    watched.setsockopt(socket.IPPROTO_TCP, option, value)
