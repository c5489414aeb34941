"""The client's own platform session: its `authorization` cookie with the XSRF token that belongs to it."""

from typing import Final

from proxy.credentials.kinds import AUTHORIZATION_COOKIE, XSRF_COOKIE, Credential, OAuthCookie, is_token
from proxy.credentials.sources import NoCredential
from proxy.head import AmbiguousHeader, Head


class CookieSource:
    """Takes the pair from the request: the XSRF token from the `X-XSRF-TOKEN` header, else from the handshake,
    else from the `XSRF-TOKEN` cookie.

    The cookie counts only when an Origin was sent (which the gate then admitted): a browser attaches it to any
    page's request, so by itself it proves nothing.
    """

    name: Final = "cookie"
    is_clients_own: Final = True
    is_revoked: Final = False
    complaint: Final = ""

    def retire(self) -> None:
        """The credential is the client's, and stays as good as it was."""

    def is_usable(self) -> bool:
        return True

    def secrets(self) -> tuple[str, ...]:
        return ()

    def obtain(self, head: Head, endpoint: str) -> Credential:  # noqa: ARG002 - a cookie is good for all
        """Raises NoCredential, also when there are two of what must be one."""
        try:
            token = head.cookie(AUTHORIZATION_COOKIE)
            header = head.value("x-xsrf-token")
            cookie = head.cookie(XSRF_COOKIE) if head.value("origin") is not None else None
        except AmbiguousHeader as ambiguous:
            raise NoCredential(f"No clear credential: {ambiguous}") from None
        if not token or not is_token(token):
            raise NoCredential("No authorization cookie: sign in to Cumulocity first")
        return OAuthCookie(
            token,
            xsrf_token=header if header and is_token(header) else None,
            spare_xsrf_token=cookie if cookie and is_token(cookie) else None,
        )

    def recheck(self, credential: Credential, endpoint: str) -> None:
        """It is as good as when it came."""

    def guard(self, credential: Credential, endpoint: str) -> None:
        """A client's own credential is nobody else's: nothing is held against it."""
