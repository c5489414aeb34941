"""By which credential a request or a handshake is admitted, and in whose name: one rule for all that is served."""

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.demo.accounts import Accounts, Unauthorized, User, same
from proxy.demo.devices import Devices
from proxy.demo.logins import Logins
from proxy.demo.subscriptions import Subscriptions
from proxy.demo.tokens import Token


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who is admitted; `token` if that was by one which the simulator issued."""

    user: User
    token: Token | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The credentials that are good at this moment."""

    accounts: Accounts
    logins: Logins
    devices: Devices
    subscriptions: Subscriptions

    def by_authn(self, authn: object, *, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Admitted:
        """Judge ext["com.cumulocity.authn"] of a handshake on a WebSocket that was opened with these. Raises
        Unauthorized.

        An Authorization header of the upgrade plays no part: the platform documents the ext as the credential of
        WebSockets.
        """
        if not isinstance(authn, Mapping):
            raise Unauthorized
        token, xsrf_token, agent = authn.get("token"), authn.get("xsrfToken"), headers.get("User-Agent")
        if token is None:
            return self._by_cookie(cookies.get("authorization"), xsrf_token, user_agent=agent)
        if (admitted := self._by_token(token, user_agent=agent)) is not None:
            return admitted
        if (owner := self.accounts.of_session(token, xsrf_token)) is not None:
            return Admitted(owner)
        return self._by_basic(token, tfa=authn.get("tfa"))

    def by_headers(self, headers: Mapping[str, str], *, cookies: Mapping[str, str]) -> Admitted:
        """Judge one HTTP request; `headers` must look names up without regard to case. Raises Unauthorized."""
        authorization, agent = headers.get("Authorization"), headers.get("User-Agent")
        if authorization is None:
            return self._by_cookie(cookies.get("authorization"), headers.get("X-XSRF-TOKEN"), user_agent=agent)
        scheme, _, value = authorization.partition(" ")
        match scheme.lower():
            case "basic":
                return self._by_basic(value, tfa=headers.get("tfatoken"))
            case "bearer" if (admitted := self._by_token(value, user_agent=agent)) is not None:
                return admitted
            case _:
                raise Unauthorized

    def _by_basic(self, value: object, *, tfa: object) -> Admitted:
        service = self.subscriptions.of_basic(value)
        return Admitted(service or self.accounts.of_basic(value, tfa=tfa))

    def _by_token(self, value: object, *, user_agent: str | None) -> Admitted | None:
        if (owner := self.accounts.of_token(value)) is not None:
            return Admitted(owner)
        token = self.logins.judge(value, user_agent=user_agent) or self.devices.judge(value)
        return None if token is None else Admitted(token.user, token)

    def _by_cookie(self, cookie: str | None, xsrf_token: object, *, user_agent: str | None) -> Admitted:
        if (owner := self.accounts.of_session(cookie, xsrf_token)) is not None:
            return Admitted(owner)
        token = self.logins.judge(cookie, user_agent=user_agent)
        if token is None or not same(xsrf_token, token.xsrf_token):
            raise Unauthorized
        return Admitted(token.user, token)
