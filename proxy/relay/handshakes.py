"""What both transports do about handshakes: how they are filled in, recorded, and what a rejection means."""

import random
from collections.abc import Sequence
from typing import Final

from proxy.bayeux.negotiation import ClientAuthn, Negotiation, Outcome
from proxy.bayeux.replies import Refusal
from proxy.credentials.kinds import Credential
from proxy.credentials.sources import CoolingDown, CredentialSource, NoCredential
from proxy.operations.metrics import Metrics, Transport


_RETRY_MS: Final = 5_000


class Handshakes:
    """The handshake policy of one proxy. `system_of_units` fills the gap of clients that name none."""

    def __init__(
        self,
        source: CredentialSource,
        metrics: Metrics,
        *,
        client_authn: ClientAuthn = ClientAuthn.OVERRIDE,
        system_of_units: str | None = None,
    ) -> None:
        self.source = source
        self.client_authn = client_authn
        self._metrics = metrics
        self._system_of_units = system_of_units

    def negotiation(self, credential: Credential | None, endpoint: str) -> Negotiation[Credential]:
        """A fresh negotiation for one upstream connection; see `Negotiation` for a credential of None."""

        def withheld() -> Refusal | None:
            try:
                if credential is not None:
                    self.source.recheck(credential, endpoint)
            except NoCredential as problem:
                return no_credential(problem)
            return None

        return Negotiation(
            credential,
            client_authn=self.client_authn,
            system_of_units=self._system_of_units,
            withheld=withheld,
            retry_ms=jittered(_RETRY_MS),
        )

    def settle(
        self, transport: Transport, outcomes: Sequence[Outcome], credential: Credential | None, endpoint: str
    ) -> None:
        """Record outcomes, and tell the source when upstream denied what was ours."""
        self._metrics.settle(transport, outcomes)
        if credential is not None and any(outcome.ours and outcome.reason == "denied" for outcome in outcomes):
            self.source.reject(credential, endpoint)


def no_credential(problem: NoCredential) -> Refusal:
    """The refusal for a missing credential: passing, since it may come."""
    if isinstance(problem, CoolingDown):
        return Refusal("cooldown", str(problem), jittered(int(problem.seconds * 1000)))
    return Refusal("no_credential", str(problem), jittered(_RETRY_MS))


def unavailable(text: str) -> Refusal:
    """The refusal while upstream, or we, cannot serve."""
    return Refusal("unavailable", text, jittered(_RETRY_MS))


def jittered(milliseconds: int) -> int:
    """A pause somewhat longer than that, so that clients do not return as one."""
    return milliseconds + int(random.random() * (milliseconds // 2 + 1))  # noqa: S311 - spreads load, hides nothing
