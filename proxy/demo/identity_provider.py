"""An identity provider in miniature, to which the simulated platform sends people: a server of its own on loopback.

OpenID Connect by the authorization code flow, as far as a platform that signs people on needs it (RFC 6749, sections
4.1 and 5; OpenID Connect Core 1.0, section 3.1): `GET /authorize` shows a login page, which posts back to it and leads
to the `redirect_uri` with `code` and `state`, or with `error` and `state` where somebody declines. `POST /token` gives
an ID token for a code: once, and only for the client with the secret. An unknown client, or a redirect URI that is not
registered, is refused on a page, and nobody is sent anywhere.

Simpler than real ones: one client, which proves itself in the form; no session of its own, so that each login asks for
the password; ID tokens signed with the client's secret (HS256), where the platform is documented to want RSA.
"""

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from html import escape
from string import Template
from types import TracebackType
from typing import Self, TypeVar

import jwt
from aiohttp import web
from yarl import URL

from proxy.demo.accounts import same
from proxy.demo.listening import abort_connections, listen, url_of


_T = TypeVar("_T")
_REMEMBERED = 10_000
_HEADERS = {
    "Cache-Control": "no-store",
    # No form-action: browsers would hold the redirect that answers the form to it.
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_PAGE = Template("""<!doctype html>
<html lang="en">
<title>Simulated identity provider</title>
<h1>Simulated identity provider</h1>
<p role="alert">$problem</p>
<form method="post" action="/authorize">
<input type="hidden" name="request" value="$request">
<p><label>User <input name="username" autocomplete="username"></label></p>
<p><label>Password <input name="password" type="password" autocomplete="current-password"></label></p>
<p><button name="answer" value="log-in">Log in</button> <button name="answer" value="decline">Decline</button></p>
</form>
</html>
""")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a client asked for, and what goes back with the answer."""

    redirect_uri: str
    state: str | None
    nonce: str | None

    def answered(self, **fields: str) -> web.Response:
        """The redirect that takes an answer back."""
        state = {} if self.state is None else {"state": self.state}
        location = str(URL(self.redirect_uri).update_query(fields | state))
        return web.Response(status=302, headers={**_HEADERS, "Location": location})


@dataclass(frozen=True, slots=True)
class _Granted:
    """Who logged in for what was asked, and until when that may be redeemed, in Unix time."""

    asked: _Asked
    user: str
    expires: float


class IdentityProvider:
    """Everybody in `users`, by password, may sign on to the one client. Start and stop it as a simulator.

    `users`, `redirect_uris` (each exact, as they are compared), `client_id`, `client_secret` and `code_seconds` may be
    changed at any time. `pages` counts the login pages that were shown, `asked` the calls of the token endpoint, and
    `redeemed` those of them that succeeded. `clock` gives Unix time.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, str],
        redirect_uris: Collection[str] = (),
        client_id: str = "simulated-platform",
        client_secret: str | None = None,
        code_seconds: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.users = users
        self.redirect_uris = redirect_uris
        self.client_id = client_id
        self.client_secret = client_secret or secrets.token_urlsafe(32)
        self.code_seconds = code_seconds
        self.pages = 0
        self.asked = 0
        self.redeemed = 0
        self._clock = clock
        self._open: dict[str, _Asked] = {}
        self._codes: dict[str, _Granted] = {}
        self._runner: web.AppRunner | None = None
        self._address: tuple[str, int] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, host: str = "localhost", port: int = 0) -> None:
        """Listen on one address of `host`; port 0 takes a free one. A stopped one may start again."""
        app = web.Application()
        app.router.add_get("/authorize", self._show_page, allow_head=False)
        app.router.add_post("/authorize", self._take_login)
        app.router.add_post("/token", self._redeem)
        listening = await listen(host, port)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()
        self._address = host, listening.getsockname()[1]

    async def stop(self) -> None:
        """Abort every connection and listen no more. What was asked for and granted stays."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in tuple(runner.sites):
            await site.stop()
        abort_connections([runner])
        await runner.cleanup()

    @property
    def port(self) -> int:
        """The port listened on; after a stop, the one listened on last."""
        return self._listened_on()[1]

    @property
    def url(self) -> str:
        """Scheme, host and port, which is also what it calls itself in ID tokens."""
        return url_of("http", *self._listened_on())

    def _listened_on(self) -> tuple[str, int]:
        if self._address is None:
            raise RuntimeError("the identity provider has not been started")
        return self._address

    async def _show_page(self, request: web.Request) -> web.Response:
        asked = _Asked(request.query.get("redirect_uri", ""), request.query.get("state"), request.query.get("nonce"))
        if request.query.get("client_id") != self.client_id:
            return _refused("This client is not known here.")
        if asked.redirect_uri not in self.redirect_uris:
            return _refused("This redirect URI is not registered for the client.")
        if request.query.get("response_type") != "code":
            return asked.answered(error="unsupported_response_type")
        self.pages += 1
        key = secrets.token_urlsafe(16)
        _remember(self._open, key, asked)
        return _page(key)

    async def _take_login(self, request: web.Request) -> web.Response:
        fields = await _fields(request)
        key = fields.get("request", "")
        asked = self._open.get(key)
        if asked is None:
            return _refused("This login has ended. Go back to where it began.")
        if fields.get("answer") == "decline":
            del self._open[key]
            return asked.answered(error="access_denied")
        user = fields.get("username", "")
        if user not in self.users or not same(fields.get("password"), self.users[user]):
            return _page(key, problem="User or password is wrong.", status=401)
        del self._open[key]
        code = secrets.token_urlsafe(24)
        _remember(self._codes, code, _Granted(asked, user, self._clock() + self.code_seconds))
        return asked.answered(code=code)

    async def _redeem(self, request: web.Request) -> web.Response:
        self.asked += 1
        fields = await _fields(request)
        if fields.get("client_id") != self.client_id or not same(fields.get("client_secret"), self.client_secret):
            return web.json_response({"error": "invalid_client"}, status=401, headers={"Cache-Control": "no-store"})
        if fields.get("grant_type") != "authorization_code":
            return _denied("unsupported_grant_type")
        granted = self._codes.pop(fields.get("code", ""), None)
        if granted is None or self._clock() >= granted.expires:
            return _denied("invalid_grant")
        if fields.get("redirect_uri") != granted.asked.redirect_uri:
            return _denied("invalid_grant")
        self.redeemed += 1
        told = {
            "access_token": secrets.token_urlsafe(24),
            "token_type": "Bearer",
            "expires_in": 300,
            "id_token": self._id_token(granted),
        }
        return web.json_response(told, headers={"Cache-Control": "no-store"})

    def _id_token(self, granted: _Granted) -> str:
        now = int(self._clock())
        claims = {"iss": self.url, "aud": self.client_id, "sub": granted.user, "iat": now, "exp": now + 300}
        nonce = {} if granted.asked.nonce is None else {"nonce": granted.asked.nonce}
        return jwt.encode(claims | nonce, self.client_secret, algorithm="HS256")


async def _fields(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in (await request.post()).items() if isinstance(value, str)}


def _remember(remembered: dict[str, _T], key: str, value: _T) -> None:
    remembered[key] = value
    while len(remembered) > _REMEMBERED:
        del remembered[next(iter(remembered))]


def _page(key: str, *, problem: str = "", status: int = 200) -> web.Response:
    text = _PAGE.substitute(problem=escape(problem), request=escape(key))
    return web.Response(status=status, text=text, content_type="text/html", headers=_HEADERS)


def _refused(why: str) -> web.Response:
    return web.Response(status=400, text=why, headers=_HEADERS)


def _denied(error: str) -> web.Response:
    return web.json_response({"error": error}, status=400, headers={"Cache-Control": "no-store"})
