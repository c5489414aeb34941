"""Who the simulated tenant admits: one user, a few tokens, a few browser sessions."""

import base64
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


def _same(presented: object, expected: str) -> bool:
    return isinstance(presented, str) and hmac.compare_digest(presented.encode(), expected.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Every credential that the simulator admits, and the rules by which it judges one.

    `sessions` maps the value of an `authorization` cookie to the XSRF token that belongs to it.
    `tfa` is asked for beside user and password only: a token was issued after the second factor.
    """

    tenant: str
    user: str
    password: str = field(repr=False)
    tfa: str | None = field(default=None, repr=False)
    tokens: Collection[str] = field(default=(), repr=False)
    sessions: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def basic(self) -> str:
        """What stands behind "Basic " in a header, and alone in `token`: base64 of UTF-8 tenant/user:password."""
        return base64.b64encode(f"{self.tenant}/{self.user}:{self.password}".encode()).decode()

    def admit_authn(self, authn: object, *, cookies: Mapping[str, str]) -> bool:
        """Judge ext["com.cumulocity.authn"] of a handshake on a WebSocket that was opened with `cookies`.

        Headers of the upgrade play no part: the platform documents the ext as the credential of WebSockets.
        """
        if not isinstance(authn, Mapping):
            return False
        token, xsrf_token = authn.get("token"), authn.get("xsrfToken")
        if token is None:
            return self._admit_session(cookies.get("authorization"), xsrf_token)
        if _same(token, self.basic):
            return self.tfa is None or _same(authn.get("tfa"), self.tfa)
        return self._admit_token(token) or self._admit_session(token, xsrf_token)

    def admit_headers(self, headers: Mapping[str, str], *, cookies: Mapping[str, str]) -> bool:
        """Judge one long-polling request; `headers` must look names up without regard to case."""
        authorization = headers.get("Authorization")
        if authorization is None:
            return self._admit_session(cookies.get("authorization"), headers.get("X-XSRF-TOKEN"))
        scheme, _, value = authorization.partition(" ")
        match scheme.lower():
            case "basic":
                second_factor = self.tfa is None or _same(headers.get("tfatoken"), self.tfa)
                return _same(value, self.basic) and second_factor
            case "bearer":
                return self._admit_token(value)
            case _:
                return False

    def _admit_token(self, token: object) -> bool:
        return any(_same(token, known) for known in self.tokens)

    def _admit_session(self, cookie: object, xsrf_token: object) -> bool:
        expected = self.sessions.get(cookie) if isinstance(cookie, str) else None
        return expected is not None and _same(xsrf_token, expected)
