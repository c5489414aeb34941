"""Single sign-on: how the platform sends somebody to an identity provider, and what it makes of the code they bring.

From the platform's documents on single sign-on, its OpenAPI description and its web applications: login options have
one of type OAUTH2, whose `initRequest` is `GET /tenant/oauth?tenant_id=...&response_type=code`. That leads to the
provider, by a redirect, or by `{"redirectTo": URL}` where the tenant lets the application control the flow. The
provider leads back to the redirect URI, which the tenant registers there: a page of an application, or the platform's
own `/tenant/oauth`. A page hands the code on with `POST /tenant/oauth` (AUTHORIZATION_CODE), or with
`GET /tenant/oauth?code=...`. The platform redeems it and begins a session with the usual pair of cookies. A user whom
it does not know yet becomes one by that.

Inferred:

- the platform names a `state`, which may be handed in with the code, and a `nonce`, which has to be in the ID token.
  Each sign-on is good for one session within ten minutes. Nobody documents that a page hands the state in, and without
  it the platform cannot tell whose sign-on the code belongs to: it is for the page to compare. For the same reason
  there is no PKCE;
- `originUri` says where a browser goes after `GET /tenant/oauth?code=...`, if it has the origin of the redirect URI,
  otherwise to `/`. Where the application controls the flow, real tenants take it for the redirect URI, too; here that
  stays the registered one;
- what is wrong with a code is a 401 like that of a wrong password, and a provider that does not answer a 502.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
import jwt
import msgspec
from jwt.types import Options
from yarl import URL

from proxy.demo.accounts import Unauthorized, same


_SECONDS = 600.0
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_REMEMBERED = 10_000
_UNTIMED: Options = {
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
}  # by our clock, not by the machine's


class ProviderUnavailable(Exception):
    """The identity provider gave no answer to go by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleSignOn:
    """A tenant's settings of single sign-on: the client that it is to the identity provider at `issuer`, and where
    that leads back to.
    """

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    scope: str = "openid"
    provider_name: str = "Simulated identity provider"
    button_name: str = "Log in with the simulated identity provider"
    is_visible: bool = True
    flow_controlled_by_ui: bool = False


@dataclass(frozen=True, slots=True)
class SignedOn:
    """Whose code it was, and where their browser may go on."""

    user: str
    returns_to: str


@dataclass(frozen=True, slots=True)
class _Begun:
    """A sign-on on its way; `moment` is when it began."""

    nonce: str = field(repr=False)
    redirect_uri: str
    returns_to: str
    moment: float


class _IdToken(msgspec.Struct):
    """What the platform wants to know of one."""

    sub: str
    exp: float
    nonce: str = ""


class _Answer(msgspec.Struct):
    id_token: str


class SignOns:
    """The sign-ons on their way. `begun` and `finished` count all that ever were, for tests; `clock` is Unix time."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self.begun = 0
        self.finished = 0
        self._clock = clock
        self._by_state: dict[str, _Begun] = {}

    def begin(self, settings: SingleSignOn, *, returns_to: str | None = None) -> str:
        """Where at the identity provider a browser has to go."""
        state, nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self._by_state[state] = _Begun(
            nonce, settings.redirect_uri, _checked(returns_to, settings.redirect_uri), self._clock()
        )
        self.begun += 1
        for oldest in list(self._by_state)[:-_REMEMBERED]:
            del self._by_state[oldest]
        asked = {
            "client_id": settings.client_id,
            "redirect_uri": settings.redirect_uri,
            "response_type": "code",
            "scope": settings.scope,
            "state": state,
            "nonce": nonce,
        }
        return str(URL(f"{settings.issuer}/authorize").with_query(asked))

    async def finish(self, settings: SingleSignOn, *, code: str, state: str | None = None) -> SignedOn:
        """Redeem a code at the identity provider. Raises Unauthorized and ProviderUnavailable.

        A sign-on ends with the first code that is brought with its state, good or not.
        """
        begun = None if state is None else self._taken(state)
        told = await self._redeem(settings, code, begun.redirect_uri if begun else settings.redirect_uri)
        if begun is None:
            begun = self._taken(self._state_with(told.nonce))
        if not same(told.nonce, begun.nonce):
            raise Unauthorized
        self.finished += 1
        return SignedOn(told.sub, begun.returns_to)

    def _taken(self, state: str) -> _Begun:
        begun = self._by_state.pop(state, None)
        if begun is None or self._clock() >= begun.moment + _SECONDS:
            raise Unauthorized
        return begun

    def _state_with(self, nonce: str) -> str:
        return next((state for state, begun in self._by_state.items() if same(nonce, begun.nonce)), "")

    async def _redeem(self, settings: SingleSignOn, code: str, redirect_uri: str) -> _IdToken:
        form = {
            "grant_type": "authorization_code",
            "client_id": settings.client_id,
            "client_secret": settings.client_secret,
            "redirect_uri": redirect_uri,
            "code": code,
        }
        try:
            async with (
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), timeout=_TIMEOUT) as http,
                http.post(f"{settings.issuer}/token", data=form, allow_redirects=False) as response,
            ):
                status, body = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ProviderUnavailable(type(error).__name__) from error
        if status in {400, 401}:
            raise Unauthorized
        try:
            token = msgspec.json.decode(body, type=_Answer).id_token
        except msgspec.DecodeError as error:
            raise ProviderUnavailable(f"status {status}, and no ID token") from error
        return self._verified(settings, token)

    def _verified(self, settings: SingleSignOn, token: str) -> _IdToken:
        """What an ID token says that is meant for us, and signed by the provider. Raises Unauthorized."""
        try:
            claims = jwt.decode(
                token,
                settings.client_secret,
                algorithms=["HS256"],
                audience=settings.client_id,
                issuer=settings.issuer,
                options=_UNTIMED,
            )
            told = msgspec.convert(claims, _IdToken)
        except (jwt.InvalidTokenError, msgspec.ValidationError):
            raise Unauthorized from None
        if self._clock() >= told.exp:
            raise Unauthorized
        return told


def _checked(returns_to: str | None, redirect_uri: str) -> str:
    """Where a browser may be sent afterwards: nowhere but where the tenant registered."""
    try:
        return returns_to if returns_to and URL(returns_to).origin() == URL(redirect_uri).origin() else "/"
    except ValueError:
        return "/"
