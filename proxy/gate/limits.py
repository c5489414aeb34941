"""How much and how long. Sizes in bytes, times in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one public listener.

    `connections` counts client connections; those beyond it get 429. `head_bytes` bounds each line of a request head,
    `idle_seconds` a connection without a complete one. `client_payload_bytes` and `body_seconds` bound what a client
    sends in one message or POST; `upstream_payload_bytes` bounds one message from upstream, and the answer to a POST
    with a handshake, which is held until it is whole. `handshake_seconds` is how long upstream may take over a
    handshake, and `heartbeat_seconds` how often each side of a quiet WebSocket is asked whether it is still there.
    """

    connections: int
    head_bytes: int
    idle_seconds: float
    client_payload_bytes: int
    body_seconds: float
    upstream_payload_bytes: int
    handshake_seconds: float
    heartbeat_seconds: float
