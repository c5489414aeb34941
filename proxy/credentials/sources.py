"""What a credential source is, whichever it is."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol, TypedDict

from proxy.credentials.guard import Guard
from proxy.credentials.kinds import Credential
from proxy.head import Head


class NoCredential(Exception):
    """There is no usable credential for this client now. The text tells the client what is missing."""


class SignedOut(NoCredential):
    """The client has no session, and will not get one by coming again: somebody has to sign in."""


class CoolingDown(NoCredential):
    """Upstream rejected the value, or what it is fetched with; that is not offered again for `seconds`, or until it
    changes.
    """

    def __init__(
        self, seconds: float, text: str = "Upstream rejected the stored credential; it is not offered again for a while"
    ) -> None:
        super().__init__(text)
        self.seconds = seconds


class NotNow(NoCredential):
    """Whether there is one cannot be told now, and may be in a moment."""


class Coming(NotNow):
    """The credential is on its way. `arrival` is set when it is here, or known not to come: then ask again, once."""

    def __init__(self, arrival: asyncio.Event) -> None:
        super().__init__("The credential is not here yet")
        self.arrival = arrival


class SourceOptions(TypedDict):
    """What every source is told but the client's own: `credential` is its name in the configuration, `clock` gives
    monotonic seconds, and `on_load` is told of every attempt to load or to fetch, whether it went well.
    """

    credential: str
    cooldown_seconds: float
    clock: Callable[[], float]
    on_load: Callable[[bool], None]


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

    @property
    def is_revoked(self) -> bool:
        """Whether what this gave out must be used no longer, also on connections that are open; as of the last look."""
        ...

    @property
    def complaint(self) -> str:
        """What is wrong, as the log tells it; empty while all is well."""
        ...

    def is_usable(self) -> bool:
        """Whether this source could serve a client that brings what it must. Looks where the credential is kept."""
        ...

    def retire(self) -> None:
        """Give out nothing any more: another source took the place of this one, or none did."""
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
