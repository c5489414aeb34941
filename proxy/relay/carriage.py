"""What both transports share."""

import time
from dataclasses import dataclass
from typing import Final

from proxy.gate.clients import Client
from proxy.gate.crossing import Crossing
from proxy.gate.identity import Identities
from proxy.gate.limits import Limits, Shares
from proxy.http1 import AnswerHead
from proxy.operations.live import Live
from proxy.operations.metrics import Metrics
from proxy.operations.uses import Uses
from proxy.relay.handshakes import Handshakes
from proxy.upstream.client import Upstream


@dataclass(frozen=True, slots=True)
class Carriage:
    """The collaborators of one public listener: who clients are, how handshakes are filled in, where requests go and
    what of them crosses, how much and how long, what is counted, and who is there: in all, by client, and by
    stored credential.
    """

    identities: Identities
    handshakes: Handshakes
    upstream: Upstream
    crossing: Crossing
    limits: Limits
    metrics: Metrics
    live: Live
    shares: Shares
    uses: Uses | None

    def note_renewal(self, client: Client, answer: AnswerHead) -> None:
        """Know a client again whose platform session upstream renews with this answer."""
        token = self.crossing.renewed_token(answer.headers)
        if token is not None:
            self.identities.renewed(client, token)


unix_now: Final = time.time
"""Unix time, which certificates and tokens go by."""

now: Final = time.monotonic
"""Seconds, for how long something took: finer than the clock of the event loop, which stands still within a turn."""
