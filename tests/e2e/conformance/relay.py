"""The proxy in relay mode: the product as users start it, but what its WebSockets carry is not judged as Bayeux.

A program. It takes the configuration of the product out of the environment, and relays text and binary messages as
they are; the handling of frames, fragments, control frames and closing is the product's own. All that it changes of
the product stands in `change`.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final

from proxy import cli
from proxy.bayeux.messages import MalformedBatch
from proxy.bayeux.negotiation import Outcome, Up
from proxy.relay import frames, sockets
from proxy.relay.frames import BINARY, TEXT, Frame
from proxy.relay.handshakes import Handshakes


class Unjudged:
    """Stands in for a Negotiation: every text goes up as it is, and no answer is ever awaited."""

    pending: Final = False
    waiting_since: Final = None

    def __init__(self, credential: object) -> None:
        self.credential = credential

    @staticmethod
    def from_client(payload: bytes, now: float) -> Up:  # noqa: ARG004 - as a Negotiation is asked
        """Raises MalformedBatch for what is not UTF-8, as reading a batch does."""
        try:
            payload.decode()
        except UnicodeDecodeError:
            raise MalformedBatch("the payload is not UTF-8") from None
        return Up(payload, [], [], ())

    @staticmethod
    def abandon(now: float, reason: object) -> Sequence[Outcome]:  # noqa: ARG004 - as above
        return ()


def change() -> None:
    """Judge no payload, and let binary messages pass like text; nothing else."""
    came_up = sockets.RelayedSocket._came_up
    check_follows = frames._check_follows

    def came_up_unjudged(socket: Any, read: Frame) -> None:
        if read.opcode != BINARY:
            came_up(socket, read)
        elif not socket._is_over:
            socket.upstream.send(BINARY, read.payload)

    def check_follows_as_text(first: int, *, within: bool) -> None:
        check_follows(first - BINARY + TEXT if first & 0x0F == BINARY else first, within=within)

    for owner, name, changed in (
        (Handshakes, "negotiation", lambda _, provision, credential, request: Unjudged(credential)),  # noqa: ARG005 - as it is asked
        (sockets.RelayedSocket, "_came_up", came_up_unjudged),
        (frames, "_check_follows", check_follows_as_text),
    ):
        setattr(owner, name, changed)


if __name__ == "__main__":
    change()
    sys.exit(cli.main(["run"]))
