"""Which headers and cookies cross, both ways. Everything else stays where it came from.

Header names are matched whole and in lower case, so no spelling with an underscore, a dot or other case can pass for
one of ours, and a `Connection` header cannot name one away: the upstream request is built, not edited.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from proxy import USER_AGENT
from proxy.head import Head


APPLICATION_KEY: Final = "X-Cumulocity-Application-Key"

UP_ON_POST: Final = ("accept", "accept-language", "usexbasic")
DOWN_ON_POST: Final = ("cache-control", "content-language", "content-type", "expires", "pragma", "retry-after")
_SPELLED: Final = {name: name.title() for name in (*DOWN_ON_POST, "set-cookie")}

ALWAYS_DOWN: Final = (("Server", "c8y-realtime-proxy"), ("X-Content-Type-Options", "nosniff"))
"""What every answer of ours carries."""

_COOKIE_VALUE: Final = re.compile(r"[!#-+\--:<-\[\]-~]*")
"""What RFC 6265, 4.1.1 lets stand in a cookie: no comma, quote or space, which older readers take for its end."""

_ENDS_A_COOKIE: Final = re.compile(r"max-age\s*=\s*[-0]|expires\s*=[^;]*\b1970\b", re.IGNORECASE)
"""What a cookie is taken away by: the value beside it is the same for everybody, and nobody's proof."""

AUTHORIZATION_COOKIE: Final = "authorization"
_SESSION_COOKIES: Final = (AUTHORIZATION_COOKIE, "XSRF-TOKEN")


class Crossing:
    """The allow-lists of one proxy.

    `relayed_cookies` cross both ways (the browser session of CometD, a load balancer's mark). `is_clients_own` tells
    whether the credential source is the client's own: only then does its User-Agent go up, for a platform session may
    be bound to it, and only then do renewed session cookies come down. `application_key` fills the gap of clients that
    send none; without one the platform takes them for devices.
    """

    def __init__(
        self, *, relayed_cookies: Collection[str], is_clients_own: bool, application_key: str | None = None
    ) -> None:
        session = frozenset(name.lower() for name in _SESSION_COOKIES)  # those cross as a credential only
        self._relayed = frozenset(name for name in relayed_cookies if name.lower() not in session)
        self._down = self._relayed | (frozenset(_SESSION_COOKIES) if is_clients_own else frozenset())
        self._is_clients_own = is_clients_own
        self._application_key = application_key

    def upgrade_headers(self, head: Head, cookies: Mapping[str, str]) -> dict[str, str]:
        """The headers of an upgrade going up, with the credential's cookies."""
        headers = {"User-Agent": self._user_agent(head)}
        theirs = head.value(APPLICATION_KEY.lower())
        if application_key := theirs if theirs and _is_plain(theirs) else self._application_key:
            headers[APPLICATION_KEY] = application_key
        theirs_by_name = [(name, value) for name, value in head.cookies() if name in self._relayed]
        pairs = [(name, value) for name, value in theirs_by_name if _COOKIE_VALUE.fullmatch(value)]
        pairs += cookies.items()
        if pairs:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in pairs)
        return headers

    def post_headers(self, head: Head, credential: Mapping[str, str], cookies: Mapping[str, str]) -> dict[str, str]:
        """The headers of a POST going up, with the credential's headers and cookies.

        Without `Accept` the platform answers with an empty body, which clients take for a broken transport.
        """
        headers = {name.title(): value for name in UP_ON_POST if (value := _joined(head, name))}
        headers.setdefault("Accept", "application/json")
        headers["Accept-Encoding"] = "identity"  # what we observe must be readable as it comes
        return headers | self.upgrade_headers(head, cookies) | dict(credential)

    def down_headers(self, headers: Iterable[tuple[str, str]], *, secure: bool) -> list[tuple[str, str]]:
        """The headers of upstream's answer (names in lower case) that come down; cookies by name, fitted to our own
        origin.
        """
        crossing = list(ALWAYS_DOWN)
        for name, value in headers:
            if (spelled := _SPELLED.get(name)) is None:
                continue
            if name != "set-cookie":
                crossing.append((spelled, value))
            elif fitted := self._fitted(value, secure=secure):
                crossing.append((spelled, fitted))
        return crossing

    @staticmethod
    def renewed(headers: Iterable[tuple[str, str]]) -> tuple[str, str | None] | None:
        """The `authorization` cookie that upstream's answer brings, if it does, with the XSRF token beside it."""
        brought = dict.fromkeys(_SESSION_COOKIES, "")
        for name, value in headers:
            called, _, rest = value.partition("=")
            if name == "set-cookie" and called in brought:
                token, _, attributes = rest.partition(";")
                if not _ENDS_A_COOKIE.search(attributes):
                    brought[called] = token.strip(' "')
        token, xsrf_token = (brought[name] for name in _SESSION_COOKIES)
        return (token, xsrf_token or None) if token else None

    def _fitted(self, cookie: str, *, secure: bool) -> str | None:
        """A `Set-Cookie` value that a client of ours keeps: without upstream's Domain, and without `Secure` (and
        what needs it, `SameSite=None` and `Partitioned`) where the client's connection is not encrypted.
        """
        first, *attributes = [part.strip() for part in cookie.split(";")]
        if first.partition("=")[0].strip() not in self._down:
            return None
        dropped = {"domain"} if secure else {"domain", "secure", "partitioned"}
        kept = [attribute for attribute in attributes if attribute.partition("=")[0].strip().lower() not in dropped]
        if not secure:
            kept = [attribute for attribute in kept if attribute.replace(" ", "").lower() != "samesite=none"]
        return "; ".join([first, *kept])

    def _user_agent(self, head: Head) -> str:
        theirs = _joined(head, "user-agent") if self._is_clients_own else None
        return theirs or USER_AGENT


def _joined(head: Head, name: str) -> str:
    """The values of a header that may be repeated, as one; those that cannot stand in a request of ours left out."""
    return ", ".join(value for value in head.values(name) if _is_plain(value))


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable()
