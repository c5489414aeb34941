"""What a credential source is, whichever it is."""

from collections.abc import Iterable
from typing import Protocol

from proxy.credentials.guard import Guard
from proxy.credentials.kinds import Credential
from proxy.head import Head


class NoCredential(Exception):
    """There is no usable credential for this client now. The text tells the client what is missing."""


class CoolingDown(NoCredential):
    """Upstream rejected the stored value; it is not offered again for `seconds`, or until it changes."""

    def __init__(self, seconds: float) -> None:
        super().__init__("Upstream rejected the stored credential; it is not offered again for a while")
        self.seconds = seconds


class CredentialSource(Protocol):
    """Where the credential of an upstream connection comes from."""

    @property
    def name(self) -> str:
        """The kind of source, as metrics call it."""
        ...

    @property
    def is_clients_own(self) -> bool:
        """Whether the credential is the client's: its User-Agent and renewed cookies then pass through."""
        ...

    def is_usable(self) -> bool:
        """Whether this source could serve a client that brings what it must."""
        ...

    def secrets(self) -> Iterable[str]:
        """What this source holds now and nobody may see, in each form that goes up. Reads nothing."""
        ...

    def obtain(self, head: Head, endpoint: str) -> Credential:
        """The credential for one upstream connection, chosen before it is dialled. Raises NoCredential."""
        ...

    def recheck(self, credential: Credential, endpoint: str) -> None:
        """Whether a credential obtained earlier may be offered again, on the same connection. Raises NoCredential."""
        ...

    def guard(self, credential: Credential, endpoint: str) -> Guard | None:
        """What stands between this credential and that endpoint; None when nothing does, or it is not used any more."""
        ...
