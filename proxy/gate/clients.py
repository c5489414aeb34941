"""Who a client is, once that is known."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final

from proxy.gate.policy import Policy


@dataclass(frozen=True, slots=True)
class Client:
    """One client, as a request showed it to be.

    `name` is that of its entry in the configuration, empty for a client without one; `subject` tells it from others
    under the same name (the subject of a JSON Web Token, the name in a certificate, a digest of its own cookie). Both
    empty: it has no identity, and nothing tells it from anybody. `credentials` names those that may go up for it, the
    first choice first, and `policies` says by endpoint what it may do. `until` is the Unix time up to which its proof
    is good, and `proofs` are the ways in which it proved its identity.
    """

    name: str
    subject: str
    credentials: tuple[str, ...]
    policies: Mapping[str, Policy]
    until: float = inf
    proofs: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def is_known(self) -> bool:
        """Whether it has an identity at all."""
        return bool(self.name or self.subject)


DEFAULT_CREDENTIAL: Final = "default"
