"""The kinds of credential, and how each appears in `ext`, in headers and in cookies. PURE."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hmac import compare_digest
from typing import ClassVar, Final, Protocol, Self


AUTHORIZATION_COOKIE: Final = "authorization"
HOST_AUTHORIZATION_COOKIE: Final = "__Host-authorization"
"""What the same is called between browsers and this proxy: no other host, and no page without TLS, can set that."""

XSRF_COOKIE: Final = "XSRF-TOKEN"

_token: Final = re.compile(r"[!-~]+")


def is_token(text: str) -> bool:
    """Whether a text can stand in a header and a cookie: visible ASCII, and neither `;` nor `,` nor `"`."""
    return _token.fullmatch(text) is not None and not any(mark in text for mark in ';,"')


class _Secrets:
    """Tells what of an authn object must not come down."""

    __slots__ = ()

    def secrets(self: "_WithAuthn") -> list[bytes]:
        """The values of the authn object, the longest first. Padding says nothing, so it may be missing."""
        known = []
        for value in (self.authn() or {}).values():
            known.append(value.encode())
            bare = value.rstrip("=")
            if bare and bare != value:
                known.append(bare.encode())
        known.sort(key=len, reverse=True)
        return known


class _WithAuthn(Protocol):
    def authn(self) -> dict[str, str] | None: ...


class _Complete(_Secrets):
    """A credential that needs nothing from the client."""

    __slots__ = ()
    completed_by: ClassVar[frozenset[str]] = frozenset()

    def completed(self, offered: Mapping[str, str]) -> Self:  # noqa: ARG002 - nothing is missing
        return self

    def cookies(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True)
class Basic(_Complete):
    """User and password, with the token of SMS two-factor authentication where the tenant asks for it.

    The tenant prefixes the user because behind a proxy the host name no longer identifies it.
    """

    user: str
    password: str = field(repr=False)
    tenant: str | None = None
    tfa: str | None = field(default=None, repr=False)
    _encoded: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        user = f"{self.tenant}/{self.user}" if self.tenant else self.user
        encoded = base64.b64encode(f"{user}:{self.password}".encode()).decode()
        object.__setattr__(self, "_encoded", encoded)

    def authn(self) -> dict[str, str]:
        token = {"token": self._encoded}
        return token | {"tfa": self.tfa} if self.tfa else token

    def headers(self) -> dict[str, str]:
        authorization = {"Authorization": f"Basic {self._encoded}"}
        return authorization | {"tfatoken": self.tfa} if self.tfa else authorization


@dataclass(frozen=True, slots=True)
class Jwt(_Complete):
    """A JSON Web Token. In `ext` it stands in the same field as Basic, raw, without the word Bearer."""

    tenant: ClassVar[None] = None  # upstream reads it out of the token

    token: str = field(repr=False)

    def authn(self) -> dict[str, str]:
        return {"token": self.token}

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True, slots=True)
class OAuthCookie(_Secrets):
    """The client's own `authorization` cookie and the XSRF token of the same platform session.

    It is *open* while `xsrf_token` is missing: browsers send that only inside the handshake, after we have dialled.
    `spare_xsrf_token` is what the client's `XSRF-TOKEN` cookie says, used when nothing better comes.
    `claimed_xsrf_token` is what the session's token says of itself: what comes is compared with it. It never stands in
    for what did not come, for that is the step which an attacker cannot take.
    """

    completed_by: ClassVar[frozenset[str]] = frozenset({"xsrfToken"})
    tenant: ClassVar[None] = None  # see Jwt

    token: str = field(repr=False)
    xsrf_token: str | None = field(default=None, repr=False)
    spare_xsrf_token: str | None = field(default=None, repr=False)
    claimed_xsrf_token: str | None = field(default=None, repr=False)

    def goes_with(self, xsrf_token: str) -> bool:
        """Whether an XSRF token may belong to this session, as far as the session tells."""
        if not is_token(xsrf_token):
            return False
        return self.claimed_xsrf_token is None or compare_digest(xsrf_token, self.claimed_xsrf_token)

    def completed(self, offered: Mapping[str, str]) -> Self:
        """The credential with the XSRF token of a handshake, if it lacks one.

        One that is known to be wrong leaves it open, and the spare does not make up for that.
        """
        xsrf_token = offered.get("xsrfToken", "")
        if self.xsrf_token or not xsrf_token:
            return self
        if self.goes_with(xsrf_token):
            return replace(self, xsrf_token=xsrf_token)
        return self if self.claimed_xsrf_token is None else replace(self, spare_xsrf_token=None)

    def authn(self) -> dict[str, str] | None:
        xsrf_token = self.xsrf_token or self.spare_xsrf_token
        return {"xsrfToken": xsrf_token} if xsrf_token else None

    def headers(self) -> dict[str, str]:
        xsrf_token = self.xsrf_token or self.spare_xsrf_token
        return {"X-XSRF-TOKEN": xsrf_token} if xsrf_token else {}

    def cookies(self) -> dict[str, str]:
        return {AUTHORIZATION_COOKIE: self.token}


@dataclass(frozen=True, slots=True)
class PlatformSessionCookie(_Complete):
    """A platform session of this proxy's own: its `authorization` cookie and the XSRF token that belongs to it.

    Unlike with `OAuthCookie`, nothing of it is the client's: what a client offers neither completes nor replaces it.
    `owner` tells whose it is, where it is not the proxy's alone: the key of the session of who signed in.
    """

    token: str = field(repr=False)
    xsrf_token: str = field(repr=False)
    tenant: str | None = None
    owner: str = field(default="", repr=False)

    def authn(self) -> dict[str, str]:
        return {"xsrfToken": self.xsrf_token}

    def headers(self) -> dict[str, str]:
        return {"X-XSRF-TOKEN": self.xsrf_token}

    def cookies(self) -> dict[str, str]:
        return {AUTHORIZATION_COOKIE: self.token}

    def secrets(self) -> list[bytes]:
        """The cookie, too: no client knows it, and upstream quotes one that it does not like."""
        return sorted([self.token.encode(), *_Complete.secrets(self)], key=len, reverse=True)


Credential = Basic | Jwt | OAuthCookie | PlatformSessionCookie
