"""The few paths of the platform that a web application needs beside real-time, relayed for the session of who asks.

1. What is relayed is listed, by method and path, and passes the same gate as everything else. What changes something
   shows the token of its session, unless it begins one.
2. Where sessions are kept here, the platform's tokens stay here: a login that passes through begins a session, and a
   logout ends it. Else both are the browser's own, by cookies that are fitted to our origin.
3. A login that passes through counts like one at the sign-in page. So it is read, and goes up as it was read: what
   could be one login to us and another to upstream is refused.
4. Whatever comes down runs no script in our origin, and is nobody's to keep.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import urlencode

from aiohttp.web import Response

from proxy.credentials.cookie import CookieSource
from proxy.credentials.kinds import AUTHORIZATION_COOKIE, XSRF_COOKIE, Credential, OAuthCookie, PlatformSessionCookie
from proxy.credentials.sources import NoCredential
from proxy.frontdoor.logins import (
    FORM,
    PASSWORD,
    SIGN_ON_COOKIE,
    Login,
    Unclear,
    address_in,
    is_elsewhere,
    is_sent_from_here,
    location_of,
    mark_of,
    origin_of,
    read_login,
    state_in,
)
from proxy.frontdoor.sessions import Sessions
from proxy.frontdoor.signing import (
    PRIVATE,
    Handler,
    Signing,
    proves,
    told,
)
from proxy.frontdoor.turnstile import Turnstile
from proxy.gate.clients import Client
from proxy.gate.crossing import Crossing
from proxy.head import Head
from proxy.operations.metrics import Metrics
from proxy.relay.pages import Page, Routes, Visit
from proxy.upstream.platform import Platform, Relayed
from proxy.upstream.posts import UpstreamUnavailable


LOGIN: Final = "/tenant/oauth"
LOGOUT: Final = "/user/logout"

_FOR_ANYBODY: Final = frozenset({"/tenant/loginOptions", LOGIN})
"""What the platform tells, or does, without a session."""

_SIGN_ON_SECONDS: Final = 600

_HARMLESS: Final = (("Content-Security-Policy", "default-src 'none'; sandbox"),)
_KINDS: Final = ("application/", "multipart/form-data", "text/plain")
_PASSING: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)}
)
"""What upstream answers a login with where it says nothing about who logs in."""

_GONE: Final = tuple(("set-cookie", f"{name}=; Max-Age=0") for name in (AUTHORIZATION_COOKIE, XSRF_COOKIE))
_HIDDEN: Final = b"***"

log = logging.getLogger(__name__)


class NotPermitted(Exception):
    """A call that changes something without showing the token of its session. The text says what to send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What calls are relayed by: the way to the platform, what crosses, and how often somebody may log in, to `tenant`
    where the login does not say. `destination` says where a browser may be sent that is on its way somewhere.
    """

    platform: Platform
    crossing: Crossing
    turnstile: Turnstile
    tenant: str
    destination: Callable[[str], str]
    metrics: Metrics


class Calls(ABC):
    """The relayed paths, each written as its method, a space and its path."""

    def __init__(self, paths: Collection[str], means: Means) -> None:
        self._paths = paths
        self._means = means

    @property
    def routes(self) -> Routes:
        pages = {}
        for written in self._paths:
            method, _, path = written.partition(" ")
            serve = self._serve_login if path == LOGIN else self._serve
            if (method, path) == ("POST", LOGOUT):
                serve = self.log_out
            pages[method, path] = Page(self.around(serve), admits="reading" if method == "GET" else "changing")
        return pages

    def around(self, serve: Handler) -> Handler:
        """What a handler needs around it."""
        return serve

    @abstractmethod
    async def credential(self, visit: Visit) -> Credential:
        """What goes up for who asks. Raises NoCredential, and NotPermitted."""

    @abstractmethod
    def note(self, visit: Visit, credential: Credential, answer: Relayed) -> None:
        """Take note of what an answer says of the session that was shown for it."""

    @abstractmethod
    async def log_out(self, visit: Visit) -> Response:
        """End the session of who asks."""

    @abstractmethod
    async def logged_in(self, visit: Visit, answer: Relayed, *, user: str, tenant: str) -> Response:
        """Answer a login that the platform let in."""

    async def relayed(self, visit: Visit) -> Relayed | Response:
        """What the platform answers to who asks; or what we do, where it is not asked."""
        try:
            credential: Credential | None = await self.credential(visit)
        except NoCredential as problem:
            if visit.asked.head.path not in _FOR_ANYBODY:
                return told(HTTPStatus.UNAUTHORIZED, "signed_out", str(problem))
            credential = None
        except NotPermitted as problem:
            return told(HTTPStatus.FORBIDDEN, "csrf", str(problem))
        answer = await self.ask(visit, credential)
        if credential is not None and isinstance(answer, Relayed):
            self.note(visit, credential, answer)
        return answer

    async def _serve(self, visit: Visit) -> Response:
        answer = await self.relayed(visit)
        return answer if isinstance(answer, Response) else self.answer(visit, answer)

    # Logging in -------------------------------------------------------------------------------------------------------

    async def _serve_login(self, visit: Visit) -> Response:
        """Let a login pass: with a password, or by single sign-on, which begins here and comes back with a code."""
        try:
            login = read_login(visit)
        except Unclear as unclear:
            return told(HTTPStatus.BAD_REQUEST, "unreadable", str(unclear))
        if login.grant == PASSWORD:
            return await self._log_in(visit, login)
        if login.is_begun:
            return await self._end_sign_on(visit, login)
        return await self._begin_sign_on(visit, login)

    async def _log_in(self, visit: Visit, login: Login) -> Response:
        means, head = self._means, visit.asked.head
        user, tenant = login.fields.get("username", ""), login.fields.get("tenant_id", "") or means.tenant
        attempt = means.turnstile.enter(head, user=user, tenant=tenant)
        if attempt.wait:
            means.metrics.signed_in("too_many")
            refusal = told(HTTPStatus.TOO_MANY_REQUESTS, "too_many", "Too many attempts: try again later")
            refusal.headers["Retry-After"] = str(attempt.wait)
            return refusal
        answer = await self.ask(visit, None, form=login.form)
        if isinstance(answer, Response) or answer.status in _PASSING:
            attempt.withdraw()
            means.metrics.signed_in("unavailable")
            return answer if isinstance(answer, Response) else self.answer(visit, answer)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            means.metrics.signed_in("forbidden" if answer.status == HTTPStatus.FORBIDDEN else "credentials")
            return self.answer(visit, answer)
        if answer.session is None:
            means.metrics.signed_in("unavailable")
            return _unexpected("Upstream answered a login without a session")
        attempt.succeed()
        response = await self.logged_in(visit, answer, user=user, tenant=tenant)
        attempt.remember(response)
        return response

    async def _begin_sign_on(self, visit: Visit, login: Login) -> Response:
        """Send a browser to the identity provider, and have it remember that it went, and with which state: whoever
        comes back without that was sent by somebody else, who would have them signed in as himself.
        """
        answer = await self.ask(visit, None, form=login.form)
        if isinstance(answer, Response):
            return answer
        if self._means.crossing.renewed(answer.headers) is not None:
            return _unexpected("Upstream began a session for somebody who has yet to sign on: it is kept from them")
        response = self.answer(visit, answer)
        provider = self._provider_in(answer, login.fields) if login.fields.get("response_type") == "code" else None
        if provider is None:
            self._send_on(response, answer)
            return response
        if is_elsewhere(answer):
            response.headers["Location"] = provider
        mark = mark_of(state_in(provider))
        response.set_cookie(
            SIGN_ON_COOKIE, mark, max_age=_SIGN_ON_SECONDS, secure=True, httponly=True, samesite="Lax", path="/"
        )
        return response

    async def _end_sign_on(self, visit: Visit, login: Login) -> Response:
        """Let the platform redeem a code, or tell that there is none, for the browser that was sent for it."""
        if not is_sent_from_here(visit.asked.head, login.fields.get("state")):
            return told(HTTPStatus.FORBIDDEN, "state", "This sign-on was not begun in this browser: begin it again")
        answer = await self.ask(visit, None, form=login.form)
        if isinstance(answer, Response):
            return answer
        if answer.session is None:
            response = self.answer(visit, answer)
        else:
            tenant = login.fields.get("tenant_id", "") or self._means.tenant
            response = await self.logged_in(visit, answer, user="", tenant=tenant)
        self._send_on(response, answer)
        response.del_cookie(SIGN_ON_COOKIE, path="/", secure=True, httponly=True, samesite="Lax")
        return response

    def _send_on(self, response: Response, answer: Relayed) -> None:
        """Send a browser on where the platform sends it, as far as that is among our own."""
        if is_elsewhere(answer):
            within = self._means.platform.within(location_of(answer))
            response.set_status(answer.status)
            response.headers["Location"] = self._means.destination("" if within == "/" else within)

    def _provider_in(self, answer: Relayed, fields: Mapping[str, str]) -> str | None:
        """The address of the identity provider that an answer sends a browser to, if it does. It is neither within the
        platform, nor of an origin that who asks brought along.
        """
        address = address_in(answer)
        origin = origin_of(address)
        is_brought = origin in {origin_of(value) for value in fields.values()}
        return None if origin is None or is_brought or self._means.platform.within(address) != address else address

    # Asking -----------------------------------------------------------------------------------------------------------

    async def ask(
        self, visit: Visit, credential: Credential | None, *, form: Mapping[str, str] | None = None
    ) -> Relayed | Response:
        """Have the platform answer, to a `form` in place of the body; where it cannot be asked, that is the answer."""
        head, body = visit.asked.head, visit.body
        shown = ({}, {}) if credential is None else (credential.headers(), credential.cookies())
        headers = self._means.crossing.post_headers(head, *shown)
        kind = ", ".join(head.values("content-type"))
        if form is not None:
            kind, body = FORM, urlencode(form).encode()
        if body and kind.isascii() and kind.isprintable() and kind.lower().startswith(_KINDS):
            headers["Content-Type"] = kind
        try:
            return await self._means.platform.relay(head.method, visit.asked.asked.target, headers, body)
        except UpstreamUnavailable as gone:
            log.warning("A request for %s was not answered by upstream: %s", head.path, gone)
            status = HTTPStatus.GATEWAY_TIMEOUT if gone.timed_out else HTTPStatus.BAD_GATEWAY
            return told(status, "unavailable", "Upstream cannot be asked now: try again in a moment")

    def answer(self, visit: Visit, answer: Relayed) -> Response:
        """What comes down of an answer. Whatever upstream says of how it may be kept: whom it is for is told by a
        cookie, and what varies by that is for no cache.
        """
        response = Response(status=answer.status, body=answer.content, headers={**PRIVATE, **dict(_HARMLESS)})
        for name, value in self._means.crossing.down_headers(answer.headers, secure=visit.asked.head.secure):
            if name in {"Cache-Control", "Expires", "Pragma"} or not (value.isascii() and value.isprintable()):
                continue
            if name == "Set-Cookie":
                response.headers.add(name, value)
            else:
                response.headers[name] = value
        return response


class SessionCalls(Calls):
    """For `sessions` that are kept here, and begun and ended by `signing`."""

    def __init__(self, paths: Collection[str], means: Means, *, signing: Signing, sessions: Sessions) -> None:
        super().__init__(paths, means)
        self._signing = signing
        self._sessions = sessions

    def around(self, serve: Handler) -> Handler:
        return self._signing.with_session(serve)

    async def credential(self, visit: Visit) -> Credential:
        session = await self._signing.session_of(visit)
        if session is None:
            raise NoCredential("Nobody is signed in: sign in first")
        if visit.asked.head.method != "GET" and not proves(visit, session):
            raise NotPermitted("Send the token of the session as X-XSRF-TOKEN: GET /session tells it")
        return session.credential

    def note(self, visit: Visit, credential: Credential, answer: Relayed) -> None:  # noqa: ARG002 - the credential tells
        """Go on with another pair where there is one; and where this one was denied, see whether it is good still."""
        if not isinstance(credential, PlatformSessionCookie):
            return
        if answer.status == HTTPStatus.UNAUTHORIZED:
            self._sessions.doubt(credential)
        elif renewed := self._means.crossing.renewed(answer.headers):
            self._sessions.renewed_by_upstream(credential, *renewed)

    async def ask(
        self, visit: Visit, credential: Credential | None, *, form: Mapping[str, str] | None = None
    ) -> Relayed | Response:
        """As with all; but upstream quotes what it does not like, and no token of the platform is to come down."""
        answer = await super().ask(visit, credential, form=form)
        if isinstance(answer, Response):
            return answer
        secrets = [] if credential is None else credential.secrets()
        if (begun := answer.session) is not None:
            secrets += [begun.token.encode(), begun.xsrf_token.encode()]
        return replace(answer, content=_without(answer.content, secrets))

    async def log_out(self, visit: Visit) -> Response:
        return await self._signing.sign_out(visit)

    async def logged_in(self, visit: Visit, answer: Relayed, *, user: str, tenant: str) -> Response:
        if answer.session is not None:
            await self._signing.begin(visit, answer.session, user=user, tenant=tenant)
        return Response(headers=PRIVATE)


class Owners(Protocol):
    """Who is whose session known to belong to."""

    def identify(self, head: Head) -> Client:
        """Whose request it is."""
        ...

    def renewed(self, client: Client, token: str) -> None:
        """Take note that upstream gave somebody another cookie."""
        ...


class CookieCalls(Calls):
    """For sessions that are the browser's own, each known to be that of one of `owners`; `on_signed_out` is told who
    left.
    """

    def __init__(
        self,
        paths: Collection[str],
        means: Means,
        *,
        owners: Owners,
        on_signed_out: Callable[[Collection[str]], None],
    ) -> None:
        super().__init__(paths, means)
        self._source = CookieSource()
        self._owners = owners
        self._on_signed_out = on_signed_out

    async def credential(self, visit: Visit) -> Credential:
        head = visit.asked.head
        credential = self._source.obtain(head, "")
        if head.method != "GET" and isinstance(credential, OAuthCookie) and credential.xsrf_token is None:
            raise NotPermitted("Send what the XSRF-TOKEN cookie says as X-XSRF-TOKEN")
        return credential

    def note(self, visit: Visit, credential: Credential, answer: Relayed) -> None:  # noqa: ARG002 - the cookie tells
        """Know the owner of a session again, who gets another cookie by this answer."""
        if renewed := self._means.crossing.renewed(answer.headers):
            self._owners.renewed(self._owners.identify(visit.asked.head), renewed[0])

    async def log_out(self, visit: Visit) -> Response:
        """End the session at the platform, and what is open by it here. Where it has ended before, that is well, too:
        the browser is rid of it in any case.
        """
        answer = await self.relayed(visit)
        if isinstance(answer, Response):
            return answer
        if answer.status >= HTTPStatus.BAD_REQUEST and answer.status != HTTPStatus.UNAUTHORIZED:
            return self.answer(visit, answer)
        if subject := self._owners.identify(visit.asked.head).subject:
            self._on_signed_out({subject})
        others = tuple((name, value) for name, value in answer.headers if name != "set-cookie")
        return self.answer(visit, replace(answer, headers=others + _GONE))

    async def logged_in(self, visit: Visit, answer: Relayed, *, user: str, tenant: str) -> Response:  # noqa: ARG002
        self._means.metrics.signed_in("ok")
        return self.answer(visit, answer)


def _unexpected(what: str) -> Response:
    """The answer where upstream did what the platform would not."""
    log.warning("%s", what)
    return told(HTTPStatus.BAD_GATEWAY, "unavailable", "Upstream answered with what the platform would not")


def _without(content: bytes, secrets: Iterable[bytes]) -> bytes:
    for secret in secrets:
        content = content.replace(secret, _HIDDEN)
    return content
