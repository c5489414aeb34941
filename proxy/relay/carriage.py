"""What both transports share."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proxy.credentials.kinds import Credential
from proxy.credentials.sources import Coming
from proxy.deadlines import TimeLimit
from proxy.gate.clients import Client
from proxy.gate.identity import Identities
from proxy.gate.limits import Limits, Shares
from proxy.http1 import AnswerHead
from proxy.operations.live import Live
from proxy.operations.metrics import Metrics
from proxy.relay.front import Request
from proxy.relay.handshakes import Handshakes
from proxy.relay.provisions import Provision, Renewable
from proxy.upstream.client import Upstream


@dataclass(frozen=True, slots=True)
class Carriage:
    """The collaborators of one public listener: who clients are, the named credentials, how handshakes are filled in,
    where requests go, how much and how long, what is counted, who is there, in all and by client, and how long a
    request waits for a credential that is on its way.

    Another one takes its place when the configuration changes; connections keep the one that they began with.
    """

    identities: Identities
    provisions: Mapping[str, Provision]
    handshakes: Handshakes
    upstream: Upstream
    limits: Limits
    metrics: Metrics
    live: Live
    shares: Shares
    arrivals: TimeLimit

    def note_renewal(
        self, provision: Provision, credential: Credential | None, client: Client, answer: AnswerHead
    ) -> None:
        """Take note that upstream renews a platform session with this answer: know the client again whose own it is,
        or go on with it, if it is ours.
        """
        if not provision.is_session or (renewed := provision.crossing.renewed(answer.headers)) is None:
            return
        if provision.source.is_clients_own:
            self.identities.renewed(client, renewed[0])
        elif credential is not None and isinstance(provision.source, Renewable):
            provision.source.renewed_by_upstream(credential, *renewed)

    async def obtained(self, provision: Provision, request: Request) -> Credential:
        """The credential for a request, after a short wait where it is on its way; after another one where it changed
        just when it arrived. Raises NoCredential.
        """
        for _ in range(_WAITS):
            try:
                return provision.source.obtain(request.head, request.endpoint)
            except Coming as coming:
                await self.arrival(coming)
        return provision.source.obtain(request.head, request.endpoint)

    async def arrival(self, coming: Coming) -> None:
        """Wait for a credential that is on its way. Raises it again when it takes too long."""
        try:
            await self.arrivals.within(coming.arrival.wait())
        except TimeoutError:
            raise coming from None


ARRIVAL_SECONDS: Final = 2.0
"""How long a request waits for a credential. With the time to open a connection, that is what clients wait for."""

_WAITS: Final = 3

unix_now: Final = time.time
"""Unix time, which certificates and tokens go by."""

now: Final = time.monotonic
"""Seconds, for how long something took: finer than the clock of the event loop, which stands still within a turn."""
