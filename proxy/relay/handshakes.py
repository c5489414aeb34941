"""What both transports do about handshakes: how they are filled in, recorded, and what a rejection means."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from proxy.bayeux.negotiation import ClientAuthn, Negotiation, Outcome
from proxy.bayeux.ownership import Ownership
from proxy.bayeux.replies import Refusal
from proxy.credentials.guard import Attempt, Guard
from proxy.credentials.kinds import Credential
from proxy.credentials.sources import CoolingDown, CredentialSource, NoCredential, SignedOut
from proxy.gate.clients import Client
from proxy.gate.identity import IdentityUnavailable, NotIdentified
from proxy.gate.limits import Limits, Rate, TooMany
from proxy.gate.peers import network_of
from proxy.operations.metrics import Metrics, Transport
from proxy.relay.front import Request
from proxy.relay.provisions import Provision
from proxy.upstream.posts import UpstreamUnavailable


_RETRY_MS: Final = 5_000
_ONE_BY_ONE: Final = "Another handshake waits for its answer on this connection"  # each is an attempt to log in


class Rates:
    """How often each client, and each address, may send a handshake."""

    def __init__(self, limits: Limits) -> None:
        self.clients = Rate(limits.client_handshakes)
        self.addresses = Rate(limits.address_handshakes)

    def change(self, limits: Limits) -> None:
        """Allow so much from now on."""
        self.clients.per_minute = limits.client_handshakes
        self.addresses.per_minute = limits.address_handshakes


class Handshakes:
    """The handshake policy of one proxy.

    `client_id_keys` gives the keys that tie clientIds to clients, where these have identities. `system_of_units` fills
    the gap of clients that name none.
    """

    def __init__(
        self,
        metrics: Metrics,
        limits: Limits,
        rates: Rates,
        *,
        client_authn: ClientAuthn = ClientAuthn.OVERRIDE,
        system_of_units: str | None = None,
        client_id_keys: Callable[[], Sequence[bytes] | None],
    ) -> None:
        self.client_authn = client_authn
        self._metrics = metrics
        self._rates = rates
        self._system_of_units = system_of_units
        self._client_id_keys = client_id_keys
        self.batch_messages = limits.batch_messages

    def negotiation(
        self, provision: Provision, credential: Credential | None, request: Request
    ) -> Negotiation[Credential]:
        """A fresh negotiation for one upstream connection; see `Negotiation` for a credential of None."""
        # The request itself would be kept for as long as a WebSocket is open.
        client, endpoint, peer = request.client, request.endpoint, request.head.peer
        source = provision.source

        def withheld(is_ours: bool) -> Refusal | None:  # noqa: FBT001 - the callback's one argument
            if (refusal := self._too_often(client, peer)) is not None:
                return refusal
            try:
                if is_ours and credential is not None:
                    source.recheck(credential, endpoint)
                    if negotiation.pending and _may_be_denied(source, credential, endpoint):
                        return Refusal("limit", _ONE_BY_ONE, jittered(_RETRY_MS))
            except NoCredential as problem:
                return no_credential(problem)
            return None

        negotiation: Negotiation[Credential] = Negotiation(
            credential,
            client_authn=self.client_authn,
            system_of_units=self._system_of_units,
            withheld=withheld,
            forbidden=client.policies[endpoint].refusal,
            ownership=self._ownership(client, provision, credential),
            retry_ms=jittered(_RETRY_MS),
            batch_messages=self.batch_messages,
        )
        return negotiation

    def settle(
        self,
        transport: Transport,
        outcomes: Sequence[Outcome],
        *,
        provision: Provision | None,
        guard: Guard | None,
        attempt: Attempt,
    ) -> None:
        """Record outcomes by the kind of source and the credential, where one was chosen, and tell the guard what
        upstream said of a credential that was ours.
        """
        if provision is None:
            self._metrics.settle(transport, None, outcomes)
        else:
            self._metrics.settle(transport, provision.source.name, outcomes, credential=provision.name)
        if guard is None:
            return
        for outcome in outcomes:
            if not outcome.ours:
                continue
            if outcome.verdict == "accepted":
                guard.accepted()
            elif outcome.reason == "denied":
                guard.denied()
            elif outcome.verdict == "rejected":
                guard.undecided(attempt)

    def _ownership(self, client: Client, provision: Provision, credential: Credential | None) -> Ownership | None:
        if not client.is_known:
            return None
        # Under `fill` a session may be of another tenant than our credential, and what follows does not say of which.
        tenant = None if credential is None or self.client_authn is ClientAuthn.FILL else credential.tenant
        keys = self._client_id_keys() or ()
        return Ownership(keys, client.name, client.subject, provision.name, tenant or "")

    def _too_often(self, client: Client, peer: str) -> Refusal | None:
        """The refusal of one handshake too many within a minute, of this client or from this address."""
        now = time.monotonic()
        address = network_of(peer)
        seconds = self._rates.addresses.take(address, now) if address is not None else 0.0
        limit = "address_handshakes"
        if not seconds and client.is_known:
            seconds = self._rates.clients.take(f"{client.name}/{client.subject}", now)
            limit = "client_handshakes"
        if not seconds:
            return None
        self._metrics.limit(limit)
        return Refusal("limit", f"Too many handshakes (limits.{limit})", jittered(int(seconds * 1000)), limit)


def _may_be_denied(source: CredentialSource, credential: Credential, endpoint: str) -> bool:
    guard = source.guard(credential, endpoint)
    return guard is not None and not guard.is_proven


def withheld(source: CredentialSource, credential: Credential | None, endpoint: str) -> tuple[Exception, Refusal]:
    """Why a credential is not offered after all that waited for its turn."""
    try:
        if credential is not None:
            source.recheck(credential, endpoint)
    except NoCredential as problem:
        return problem, no_credential(problem)
    gone = UpstreamUnavailable("Upstream is not reachable")
    return gone, unavailable(str(gone))


def no_credential(problem: NoCredential) -> Refusal:
    """The refusal for a missing credential: passing, since it may come; unless somebody has to sign in for that."""
    if isinstance(problem, SignedOut):
        return Refusal("no_credential", str(problem))
    if isinstance(problem, CoolingDown):
        return Refusal("cooldown", str(problem), jittered(int(problem.seconds * 1000)))
    return Refusal("no_credential", str(problem), jittered(_RETRY_MS))


def unidentified(problem: NotIdentified) -> Refusal:
    """The refusal for somebody who is not known: lasting, unless it is only that this cannot be judged now."""
    retry_ms = jittered(_RETRY_MS) if isinstance(problem, IdentityUnavailable) else None
    return Refusal("identity", str(problem), retry_ms)


def crowded(problem: TooMany) -> Refusal:
    """The refusal while there are too many."""
    return Refusal("limit", str(problem), jittered(_RETRY_MS))


def unavailable(text: str) -> Refusal:
    """The refusal while upstream, or we, cannot serve."""
    return Refusal("unavailable", text, jittered(_RETRY_MS))


def jittered(milliseconds: int) -> int:
    """A pause somewhat longer than that, so that clients do not return as one."""
    return milliseconds + int(random.random() * (milliseconds // 2 + 1))  # noqa: S311 - spreads load, hides nothing
