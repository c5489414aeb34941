"""The platform session of who signed in at the front door: the client brings a ticket, and nothing of the session."""

from typing import Final, Protocol

from proxy.credentials.guard import Guard
from proxy.credentials.kinds import Credential, PlatformSessionCookie
from proxy.credentials.sources import NoCredential, SignedOut
from proxy.head import AmbiguousHeader, Head


TICKET_COOKIE: Final = "__Host-c8y-session"


class SignedIn(Protocol):
    """Whoever has signed in."""

    def credential_of(self, ticket: str, endpoint: str) -> PlatformSessionCookie:
        """What the session with this ticket has for upstream, where that endpoint takes it.

        Raises NoCredential, and NotNow, Coming and CoolingDown as kinds of it.
        """
        ...

    def recheck(self, credential: PlatformSessionCookie, endpoint: str) -> None:
        """Whether that is good there still. Raises NoCredential, and CoolingDown as a kind of it."""
        ...

    def guard(self, credential: PlatformSessionCookie, endpoint: str) -> Guard | None:
        """What stands between it and an endpoint."""
        ...

    def renewed_by_upstream(self, credential: PlatformSessionCookie, token: str, xsrf_token: str | None) -> None:
        """Go on with another pair, which came along with an answer to a client."""
        ...


class SessionSource:
    """Takes the ticket from the request, and gives what `signed_in` has for it."""

    name: Final = "session"
    is_clients_own: Final = False
    is_revoked: Final = False
    complaint: Final = ""

    def __init__(self, signed_in: SignedIn) -> None:
        self._signed_in = signed_in

    def retire(self) -> None:
        """Sessions end by themselves."""

    def is_usable(self) -> bool:
        return True

    def secrets(self) -> tuple[str, ...]:
        return ()

    def obtain(self, head: Head, endpoint: str) -> Credential:
        """Raises NoCredential, and NotNow, Coming and CoolingDown as kinds of it."""
        return self._signed_in.credential_of(ticket_in(head), endpoint)

    def recheck(self, credential: Credential, endpoint: str) -> None:
        """Raises NoCredential when who signed in has signed out, or the pair was replaced a while ago; and CoolingDown
        as `obtain` does.
        """
        if isinstance(credential, PlatformSessionCookie):
            self._signed_in.recheck(credential, endpoint)

    def guard(self, credential: Credential, endpoint: str) -> Guard | None:
        return self._signed_in.guard(credential, endpoint) if isinstance(credential, PlatformSessionCookie) else None

    def renewed_by_upstream(self, credential: Credential, token: str, xsrf_token: str | None) -> None:
        """Go on with another pair, which came along with an answer to a client."""
        if isinstance(credential, PlatformSessionCookie):
            self._signed_in.renewed_by_upstream(credential, token, xsrf_token)


def ticket_in(head: Head) -> str:
    """The ticket that a request brings. Raises NoCredential."""
    try:
        ticket = head.cookie(TICKET_COOKIE)
    except AmbiguousHeader as ambiguous:
        raise NoCredential(f"No clear session: {ambiguous}") from None
    if not ticket:
        raise SignedOut("Nobody is signed in: sign in first")
    return ticket
