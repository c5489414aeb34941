"""Which headers and cookies cross, both ways. Everything else stays where it came from.

Header names are matched whole and in lower case, so no spelling with an underscore, a dot or other case can pass for
one of ours, and a `Connection` header cannot name one away: the upstream request is built, not edited.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

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

_SECONDS: Final = re.compile(r"-?[0-9]+", re.ASCII)
_BEGINNING_OF_TIME: Final = re.compile(r"\b1970\b")

AUTHORIZATION_COOKIE: Final = "authorization"
HOST_AUTHORIZATION_COOKIE: Final = "__Host-authorization"
"""What `authorization` is called on its way between a browser and us. By that prefix a browser takes it over TLS only,
from this very host, and for all of its paths: neither a sibling host nor a network in between can put another there.
"""

XSRF_COOKIE: Final = "XSRF-TOKEN"
_SESSION_COOKIES: Final = (AUTHORIZATION_COOKIE, XSRF_COOKIE)

_OURS: Final = "__host-c8y-"
"""What the cookies of this proxy's own begin with, in lower case."""

COOKIE_BYTES: Final = 4096
"""The longest cookie that browsers are sure to keep, with its name and attributes (RFC 6265, 6.1)."""


def is_relayable(name: str) -> bool:
    """Whether a cookie of that name may cross for being named. Credentials cross as such only, and ours stay here;
    browsers take a prefix in any case.
    """
    known = name.lower()
    return not known.startswith(_OURS) and known not in {
        each.lower() for each in (*_SESSION_COOKIES, HOST_AUTHORIZATION_COOKIE)
    }


class Crossing:
    """The allow-lists of one proxy.

    `relayed_cookies` cross both ways (the browser session of CometD, a load balancer's mark). `is_clients_own` tells
    whether the credential source is the client's own: only then does its User-Agent go up, for a platform session may
    be bound to it, and only then do renewed session cookies come down. `application_key` fills the gap of clients that
    send none; without one the platform takes them for devices. `on_long_cookie` is told the first time that one of
    these session cookies is longer than a browser keeps.
    """

    def __init__(
        self,
        *,
        relayed_cookies: Collection[str],
        is_clients_own: bool,
        application_key: str | None = None,
        on_long_cookie: Callable[[], None] = lambda: None,
    ) -> None:
        self._relayed = frozenset(name for name in relayed_cookies if is_relayable(name))
        self._is_clients_own = is_clients_own
        self._application_key = application_key
        self._on_long_cookie = on_long_cookie
        self._has_told = False

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
            if name == "set-cookie":
                crossing += [(spelled, fitted) for fitted in self.cookies_down(value, secure=secure)]
            else:
                crossing.append((spelled, value))
        return crossing

    def cookies_down(self, cookie: str, *, secure: bool) -> list[str]:
        """What comes down for one `Set-Cookie` of upstream's: nothing, where it is not named, nor of the client's own
        session.
        """
        came = _read(cookie)
        if self._is_clients_own and came.name in _SESSION_COOKIES:
            fitted = session_cookies(cookie, secure=secure)
            if not self._has_told and any(_bytes(each) > COOKIE_BYTES for each in fitted):
                self._has_told = True
                self._on_long_cookie()
            return fitted
        return [_fitted(came, secure=secure)] if came.name in self._relayed else []

    @staticmethod
    def renewed(headers: Iterable[tuple[str, str]]) -> tuple[str, str | None] | None:
        """The `authorization` cookie that upstream's answer brings, if it does, with the XSRF token beside it."""
        brought = dict.fromkeys(_SESSION_COOKIES, "")
        for name, value in headers:
            if name != "set-cookie":
                continue
            came = _read(value)
            if came.name in brought and not _ends(came):
                brought[came.name] = came.value.strip(' "')
        token, xsrf_token = (brought[name] for name in _SESSION_COOKIES)
        return (token, xsrf_token or None) if token else None

    def _user_agent(self, head: Head) -> str:
        theirs = _joined(head, "user-agent") if self._is_clients_own else None
        return theirs or USER_AGENT


def session_cookies(cookie: str, *, secure: bool) -> list[str]:
    """The `Set-Cookie` values that put a cookie of the client's own platform session where a browser keeps it for our
    origin, whatever upstream said of Domain, Path and SameSite; nothing for another cookie.

    `authorization` is called `__Host-authorization` where the client's connection is encrypted. Taken away, it goes by
    both names. A token that is too long for a browser goes by the platform's own name, and whatever was there by the
    other is taken away: it would come first, and upstream gives it up; clients that keep longer cookies go on.
    """
    came = _read(cookie)
    if came.name == XSRF_COOKIE:
        lifetime = ["Max-Age=0"] if _ends(came) else _lifetime(came)
        return [_session_cookie(XSRF_COOKIE, "" if _ends(came) else came.value, lifetime, secure=secure)]
    if came.name != AUTHORIZATION_COOKIE:
        return []
    gone = _session_cookie(HOST_AUTHORIZATION_COOKIE, "", ["Max-Age=0"], secure=True)
    if _ends(came):
        return [gone, _session_cookie(AUTHORIZATION_COOKIE, "", ["Max-Age=0"], secure=secure)]
    unnamed = _session_cookie(AUTHORIZATION_COOKIE, came.value, _lifetime(came), secure=secure)
    if not secure:  # no browser would keep the other
        return [unnamed]
    ours = _session_cookie(HOST_AUTHORIZATION_COOKIE, came.value, _lifetime(came), secure=True)
    return [ours] if _bytes(ours) <= COOKIE_BYTES else [gone, unnamed]


def _session_cookie(name: str, value: str, lifetime: Iterable[str], *, secure: bool) -> str:
    attributes = ["Path=/", "Secure" if secure else "", "" if name == XSRF_COOKIE else "HttpOnly", "SameSite=Lax"]
    return "; ".join([f"{name}={value}", *filter(None, attributes), *lifetime])


class _Cookie(NamedTuple):
    """A `Set-Cookie` value: `first` is name and value as they stood there."""

    first: str
    name: str
    value: str
    attributes: list[str]

    def last(self, name: str) -> str:
        """What an attribute says; of several the last, as browsers have it."""
        said = [
            value.strip()
            for known, _, value in (each.partition("=") for each in self.attributes)
            if known.strip().lower() == name
        ]
        return said[-1] if said else ""


def _read(cookie: str) -> _Cookie:
    first, *attributes = [part.strip() for part in cookie.split(";")]
    name, equals, value = first.partition("=")
    return _Cookie(first, name.strip() if equals else "", value.strip(), attributes)


def _ends(cookie: _Cookie) -> bool:
    """Whether a cookie is taken away: what stands in it is the same for everybody then, and nobody's proof."""
    if not cookie.value.strip('"'):
        return True
    seconds = cookie.last("max-age")
    if _SECONDS.fullmatch(seconds):  # it comes before Expires
        return seconds.startswith("-") or not seconds.strip("0")
    return _BEGINNING_OF_TIME.search(cookie.last("expires")) is not None


def _lifetime(cookie: _Cookie) -> list[str]:
    seconds, expires = cookie.last("max-age"), cookie.last("expires")
    told = [f"Max-Age={seconds}"] if _SECONDS.fullmatch(seconds) else []
    return [*told, f"Expires={expires}"] if expires else told


def _fitted(cookie: _Cookie, *, secure: bool) -> str:
    """A `Set-Cookie` value that a client of ours keeps: without upstream's Domain, and without `Secure` (and what needs
    it, `SameSite=None` and `Partitioned`) where the client's connection is not encrypted.
    """
    dropped = {"domain"} if secure else {"domain", "secure", "partitioned"}
    kept = [each for each in cookie.attributes if each.partition("=")[0].strip().lower() not in dropped]
    if not secure:
        kept = [each for each in kept if each.replace(" ", "").lower() != "samesite=none"]
    return "; ".join([cookie.first, *kept])


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _joined(head: Head, name: str) -> str:
    """The values of a header that may be repeated, as one; those that cannot stand in a request of ours left out."""
    return ", ".join(value for value in head.values(name) if _is_plain(value))


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable()
