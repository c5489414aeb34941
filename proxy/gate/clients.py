"""Who a client is, once that is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from proxy.gate.policy import Policy


@dataclass(frozen=True, slots=True)
class Client:
    """One client, as a request showed it to be.

    `name` is that of its entry in the configuration, empty for a client without one; `subject` tells it from others
    under the same name (the subject of a JSON Web Token, the name in a certificate, a digest of its own cookie). Both
    empty: it has no identity, and nothing tells it from anybody. `credential` names the credential that goes up for it,
    and `policies` says by endpoint what it may do. `until` is the Unix time up to which its proof is good.
    """

    name: str
    subject: str
    credential: str
    policies: Mapping[str, Policy]
    until: float = inf

    @property
    def is_known(self) -> bool:
        """Whether it has an identity at all."""
        return bool(self.name or self.subject)


DEFAULT_CREDENTIAL: Final = "default"
