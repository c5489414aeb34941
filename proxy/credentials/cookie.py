"""The client's own platform session: its `authorization` cookie with the XSRF token that belongs to it."""

from typing import Final

from proxy.credentials.kinds import (
    AUTHORIZATION_COOKIE,
    HOST_AUTHORIZATION_COOKIE,
    XSRF_COOKIE,
    Credential,
    OAuthCookie,
    is_token,
)
from proxy.credentials.sources import NoCredential, SignedOut
from proxy.head import AmbiguousHeader, Head
from proxy.upstream.platform import claims_of


class CookieSource:
    """Takes the pair from the request.

    1. The session is the `__Host-authorization` cookie, which came through us. Without one it is the platform's own
       `authorization`, which browsers send where the tenant shares our domain; beside the former that is not looked at,
       for a sibling host may have set it.
    2. The XSRF token is that of the `X-XSRF-TOKEN` header, else of the handshake, else of the `XSRF-TOKEN` cookie. The
       last counts only when an Origin was sent (which the gate then admitted): a browser attaches it to any page's
       request, so by itself it proves nothing.
    3. An XSRF token is the one that the session's token claims, if that can be read. A wrong one is refused, but for
       that of the cookie, which is none then: it, too, may be a sibling's. A claim takes the place of none.
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
            ours, platforms = head.cookie(HOST_AUTHORIZATION_COOKIE), head.cookie(AUTHORIZATION_COOKIE)
            header = head.value("x-xsrf-token")
            cookie = head.cookie(XSRF_COOKIE)
            comes_from_a_page = head.value("origin") is not None
        except AmbiguousHeader as ambiguous:
            raise NoCredential(f"No clear credential: {ambiguous}") from None
        token = platforms if ours is None else ours
        if not token or not is_token(token):
            raise SignedOut("No authorization cookie: sign in to Cumulocity first")
        claimed = claims_of(token).xsrf_token
        session = OAuthCookie(token, claimed_xsrf_token=claimed)
        if header and claimed is not None and not session.goes_with(header):
            raise NoCredential(
                "X-XSRF-TOKEN is not that of the session: reload the page, or sign in to Cumulocity again"
            )
        return OAuthCookie(
            token,
            xsrf_token=header if header and session.goes_with(header) else None,
            spare_xsrf_token=cookie if cookie and comes_from_a_page and session.goes_with(cookie) else None,
            claimed_xsrf_token=claimed,
        )

    def recheck(self, credential: Credential, endpoint: str) -> None:
        """It is as good as when it came."""

    def guard(self, credential: Credential, endpoint: str) -> None:
        """A client's own credential is nobody else's: nothing is held against it."""
