"""What both transports share."""

import time
from dataclasses import dataclass
from typing import Final

from proxy.gate.crossing import Crossing
from proxy.gate.limits import Limits
from proxy.operations.live import Live
from proxy.operations.metrics import Metrics
from proxy.relay.handshakes import Handshakes
from proxy.upstream.client import Upstream


@dataclass(frozen=True, slots=True)
class Carriage:
    """The collaborators of one public listener: how handshakes are filled in, where requests go and what of them
    crosses, how much and how long, what is counted, and who is there.
    """

    handshakes: Handshakes
    upstream: Upstream
    crossing: Crossing
    limits: Limits
    metrics: Metrics
    live: Live


now: Final = time.monotonic
"""Seconds, for how long something took: finer than the clock of the event loop, which stands still within a turn."""
