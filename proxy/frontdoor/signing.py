"""Signing in and out, and who is signed in.

1. What a stranger is told about a sign-in that failed is the same for every user, whether there is one or not.
2. A password is taken to the platform, and kept nowhere: not for as long as it takes to type a one-time code.
3. A form shows that it is ours by a token beside a cookie that no other site can read or set. Scripts send JSON, which
   no page of another origin may send without being listed. What a session does is told by its own token.
"""

import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from math import inf
from typing import Final, cast
from urllib.parse import parse_qs

import msgspec
from aiohttp import web
from aiohttp.web import Response
from aiohttp_session import get_session, new_session, session_middleware

from proxy.credentials.session import TICKET_COOKIE
from proxy.frontdoor.destinations import destination
from proxy.frontdoor.kept import BrowserSession
from proxy.frontdoor.pages import Page as Shown
from proxy.frontdoor.pages import Pages, Problem, SignInForm
from proxy.frontdoor.storage import TicketStorage
from proxy.frontdoor.stores import StoreUnavailable
from proxy.frontdoor.turnstile import Attempt, Turnstile, cookie_in
from proxy.head import AmbiguousHeader, Head
from proxy.operations.metrics import Metrics
from proxy.relay.pages import Page, Routes, Visit
from proxy.upstream.platform import Denied, Platform, PlatformSession, SingleSignOn, claims_of
from proxy.upstream.posts import UpstreamUnavailable


SIGN_IN: Final = "/sign-in"
SIGN_OUT: Final = "/sign-out"
SESSION: Final = "/session"

FORM_COOKIE: Final = "__Host-c8y-sign-in"
CSRF_HEADER: Final = "x-xsrf-token"

_OPTIONS_SECONDS: Final = 60.0
_FORM_BYTES: Final = 18
_MOST_FIELDS: Final = 20
_LONGEST: Final = 1024
_FORM: Final = "application/x-www-form-urlencoded"
_JSON: Final = "application/json"

Handler = Callable[[Visit], Awaitable[Response]]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Asked:
    """What somebody signs in with."""

    user: str
    password: str = field(repr=False)
    tenant: str = ""
    code: str = field(default="", repr=False)
    return_to: str = ""
    csrf_token: str = field(default="", repr=False)

    @property
    def is_complete(self) -> bool:
        return bool(self.user and self.password)


class Unreadable(ValueError):
    """What was sent is no sign-in. The text says what to send; `status` is that of HTTP."""

    def __init__(self, text: str, *, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Failed:
    """A sign-in that failed: why, and how many seconds to wait where that is it."""

    problem: Problem
    seconds: int = 0


_STATUSES: Final[Mapping[Problem, int]] = {
    "credentials": HTTPStatus.UNAUTHORIZED,
    "code_required": HTTPStatus.UNAUTHORIZED,
    "code_wrong": HTTPStatus.UNAUTHORIZED,
    "setup_required": HTTPStatus.FORBIDDEN,
    "forbidden": HTTPStatus.FORBIDDEN,
    "too_many": HTTPStatus.TOO_MANY_REQUESTS,
    "expired": HTTPStatus.BAD_REQUEST,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How people sign in: to which tenant, if that is said, or asked; whether by single sign-on, too, where the tenant
    has that; where they go then (`home`), and to which other origins they may.
    """

    tenant: str = ""
    asks_tenant: bool = False
    offers_single_sign_on: bool = False
    home: str = "/"
    origins: Collection[str] = ()


class Signing:
    """The routes of signing in and out. `clock` gives monotonic seconds."""

    def __init__(
        self,
        storage: TicketStorage,
        platform: Platform,
        pages: Pages,
        manners: Manners,
        turnstile: Turnstile,
        *,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._platform = platform
        self._pages = pages
        self._manners = manners
        self._metrics = metrics
        self._clock = clock
        self._turnstile = turnstile
        self._ways: Sequence[SingleSignOn] = ()
        self._ask_again = -inf
        self._middleware = session_middleware(storage)

    @property
    def routes(self) -> Routes:
        return {
            ("GET", SIGN_IN): Page(self.with_session(self._show)),
            ("POST", SIGN_IN): Page(self.with_session(self._sign_in), admits="changing"),
            ("POST", SIGN_OUT): Page(self.with_session(self.sign_out), admits="changing"),
            ("GET", SESSION): Page(self.with_session(self._tell), admits="reading"),
        }

    def with_session(self, handler: Handler) -> Handler:
        """A handler around which sessions are found, and kept."""

        async def serve(visit: Visit) -> Response:
            async def handle(_: web.Request) -> web.StreamResponse:
                return await handler(visit)

            try:
                response = await self._middleware(cast("web.Request", visit.base), handle)
            except StoreUnavailable:  # which is in the log already
                if (visit.asked.head.method, visit.asked.head.path) == ("POST", SIGN_IN):
                    self._metrics.signed_in("unavailable")
                return await self._failure(visit, Failed("unavailable"), _Asked("", ""))
            if (ticket := response.cookies.get(TICKET_COOKIE)) is not None and ticket.value:  # a session has begun
                self._metrics.signed_in("ok")
            return cast("Response", response)

        return serve

    # The page ---------------------------------------------------------------------------------------------------------

    async def _show(self, visit: Visit) -> Response:
        """The sign-in page; or, to who is signed in, who that is."""
        query = query_fields(visit)
        return_to = query.get("return_to", "")
        session = await self.session_of(visit)
        if session is not None:
            home = self.destination(return_to)
            return _page(self._pages.signed_in(session.user, session.tenant, session.csrf_token, home))
        if "signed_out" in query:
            return _page(self._pages.signed_out())
        form = SignInForm(csrf_token="", return_to=return_to, asks_tenant=self._manners.asks_tenant)
        return await self._form(visit, form)

    async def _form(self, visit: Visit, form: SignInForm, *, status: int = HTTPStatus.OK, seconds: int = 0) -> Response:
        """The sign-in page, with a token of its own, which its cookie goes with."""
        sso = [(each.label, each.path) for each in await self._single_sign_ons()]
        token = cookie_in(visit.asked.head, FORM_COOKIE) or secrets.token_urlsafe(_FORM_BYTES)
        shown = self._pages.sign_in(replace(form, csrf_token=token, sso=sso), seconds=seconds)
        response = _page(shown, status=status)
        response.set_cookie(FORM_COOKIE, token, secure=True, httponly=True, samesite="Strict", path="/")
        return response

    async def _single_sign_ons(self) -> Sequence[SingleSignOn]:
        """How else people sign in; as far as is known, for a sign-in page has to be shown in any case."""
        now = self._clock()
        if self._manners.offers_single_sign_on and now >= self._ask_again:
            self._ask_again = now + _OPTIONS_SECONDS
            try:
                self._ways = await self._platform.single_sign_ons()
            except (Denied, UpstreamUnavailable) as problem:
                log.info("Upstream did not tell how people sign in: %s", problem)
        return self._ways

    # Signing in -------------------------------------------------------------------------------------------------------

    async def _sign_in(self, visit: Visit) -> Response:
        try:
            asked = _read(visit)
        except Unreadable as unreadable:
            return told(unreadable.status, "unreadable", str(unreadable))
        if not _is_json(visit) and not _is_same(asked.csrf_token, cookie_in(visit.asked.head, FORM_COOKIE)):
            return await self._failure(visit, Failed("expired"), asked)
        result = await self._logged_in(visit.asked.head, asked)
        if isinstance(result, Failed):
            self._metrics.signed_in(result.problem)
            return await self._failure(visit, result, asked)
        pair, attempt = result
        await self.begin(visit, pair, user=asked.user, tenant=self._tenant(asked))
        response = _done(visit, self.destination(asked.return_to))
        attempt.remember(response)
        response.del_cookie(FORM_COOKIE, path="/", secure=True, httponly=True, samesite="Strict")
        return response

    async def begin(self, visit: Visit, pair: PlatformSession, *, user: str, tenant: str) -> None:
        """Begin a session with this answer, in place of the one that there is."""
        claims = claims_of(pair.token)
        session = await new_session(cast("web.Request", visit.base))
        session["user"] = claims.user or user.rpartition("/")[2]
        session["tenant"] = claims.tenant or tenant
        session["token"], session["xsrf_token"] = pair.token, pair.xsrf_token

    async def _logged_in(self, head: Head, asked: _Asked) -> tuple[PlatformSession, Attempt] | Failed:
        """Have the platform say whether this is who it is. What was tried counts from when it begins."""
        if not (asked.is_complete and self._may_be(asked)):
            return Failed("credentials")
        attempt = self._turnstile.enter(head, user=asked.user, tenant=self._tenant(asked))
        if attempt.wait:
            return Failed("too_many", attempt.wait)
        try:
            pair = await self._platform.log_in(
                tenant=self._tenant(asked) or None,
                user=asked.user,
                password=asked.password,
                code=asked.code or None,
            )
        except Denied as denied:
            failed = _failed(denied, asked)
            if failed.problem == "code_required":  # nothing was guessed
                attempt.withdraw()
            return failed
        except UpstreamUnavailable as gone:
            log.warning("Nobody can sign in: %s", gone)
            attempt.withdraw()
            return Failed("unavailable")
        attempt.succeed()
        return pair, attempt

    async def session_of(self, visit: Visit) -> BrowserSession | None:
        """Whose request it is. Raises StoreUnavailable."""
        return await self._storage.session_of(visit.base)

    def _tenant(self, asked: _Asked) -> str:
        return self._manners.tenant or asked.tenant

    def _may_be(self, asked: _Asked) -> bool:
        """Whether somebody may be who they say: where the tenant is said, nobody is of another."""
        named, slash, _ = asked.user.rpartition("/")
        return not (self._manners.tenant and slash) or named == self._manners.tenant

    def destination(self, asked: str) -> str:
        """Where a browser is sent that asked for this."""
        return destination(asked, home=self._manners.home, origins=self._manners.origins)

    async def _failure(self, visit: Visit, failed: Failed, asked: _Asked) -> Response:
        """Say why it failed, in the form in which it was asked."""
        status = _STATUSES[failed.problem]
        if visit.asked.head.path != SIGN_IN or _is_json(visit):
            response = told(status, failed.problem, _WORDS[failed.problem])
        else:
            form = SignInForm(
                csrf_token="",
                return_to=asked.return_to,
                tenant=asked.tenant,
                user=asked.user,
                asks_tenant=self._manners.asks_tenant,
                asks_code=failed.problem in {"code_required", "code_wrong"} or bool(asked.code),
                problem=failed.problem,
            )
            response = await self._form(visit, form, status=status, seconds=failed.seconds)
        if failed.seconds:
            response.headers["Retry-After"] = str(failed.seconds)
        return response

    # Signing out, and who is signed in --------------------------------------------------------------------------------

    async def sign_out(self, visit: Visit) -> Response:
        """End the session. Where there is none, that is well, too."""
        session = await self.session_of(visit)
        if session is not None and not proves(visit, session):
            return told(HTTPStatus.FORBIDDEN, "csrf", f"Send the token of the session as {CSRF_HEADER.upper()}")
        (await get_session(cast("web.Request", visit.base))).invalidate()
        return _done(visit, f"{SIGN_IN}?signed_out=1")

    async def _tell(self, visit: Visit) -> Response:
        session = await self.session_of(visit)
        if session is None:
            return told(HTTPStatus.UNAUTHORIZED, "signed_out", f"Nobody is signed in: sign in at {SIGN_IN} first")
        who = {"user": session.user, "tenant": session.tenant, "csrfToken": session.csrf_token}
        return Response(body=msgspec.json.encode(who), content_type=_JSON, headers=PRIVATE)


PRIVATE: Final = {"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"}

_WORDS: Final[Mapping[Problem, str]] = {
    "credentials": "User, password or tenant is wrong",
    "code_required": "A one-time code is needed: send user, password and code",
    "code_wrong": "The one-time code was not accepted: send a fresh one",
    "setup_required": "This user has to set up two-factor authentication in the platform's own login page first",
    "forbidden": "The platform does not let this user in here",
    "too_many": "Too many attempts: try again later",
    "expired": "The form was open for too long: load it again",
    "unavailable": "Nobody can sign in now: try again in a moment",
}


def proves(visit: Visit, session: BrowserSession) -> bool:
    """Whether who asks knows the token of the session, which no page of another origin does."""
    head = visit.asked.head
    try:
        shown = head.value(CSRF_HEADER)
    except AmbiguousHeader:
        return False
    if shown is None and _is_form(visit):
        shown = form_fields(visit).get("csrf_token")
    return _is_same(shown or "", session.csrf_token)


def _failed(denied: Denied, asked: _Asked) -> Failed:
    problem: Problem
    match denied.kind:
        case "code_required":
            problem = "code_wrong" if asked.code else "code_required"
        case "setup_required":
            problem = "setup_required"
        case "forbidden":
            problem = "forbidden"
        case "credentials":
            problem = "credentials"
        case _:
            log.warning("Nobody can sign in: %s", denied)
            problem = "unavailable"
    return Failed(problem)


def _read(visit: Visit) -> _Asked:
    """Raises Unreadable."""
    if _is_json(visit):
        try:
            asked = msgspec.json.decode(visit.body.decode(), type=_Asked)
        except (ValueError, msgspec.MsgspecError, RecursionError):
            raise Unreadable('Send {"user": .., "password": ..}, with "tenant" and "code" where needed') from None
    elif _is_form(visit):
        fields = form_fields(visit)
        names = {"user", "password", "tenant", "code", "return_to", "csrf_token"} & fields.keys()
        asked = _Asked(**{"user": "", "password": ""} | {name: fields[name] for name in names})
    else:
        raise Unreadable(f"Send a form, or {_JSON}", status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    if any(len(value) > _LONGEST for value in (asked.user, asked.password, asked.tenant, asked.code)):
        raise Unreadable(f"Send no more than {_LONGEST} characters of each")
    asked.code = "".join(asked.code.split())
    asked.user, asked.tenant = asked.user.strip(), asked.tenant.strip()
    return asked


def form_fields(visit: Visit) -> dict[str, str]:
    """The fields of a form; of two by one name the last. What is none, or cannot be read, has none."""
    return _fields(visit.body) if _is_form(visit) else {}


def query_fields(visit: Visit) -> dict[str, str]:
    """What stands in the query; of two by one name the last."""
    return _fields(visit.query.encode())


def _fields(encoded: bytes) -> dict[str, str]:
    try:
        read = parse_qs(encoded.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except ValueError:
        return {}
    return {name: values[-1] for name, values in read.items()}


def _kind(visit: Visit) -> str:
    return ", ".join(visit.asked.head.values("content-type")).partition(";")[0].strip().lower()


def _is_json(visit: Visit) -> bool:
    return _kind(visit) == _JSON


def _is_form(visit: Visit) -> bool:
    return _kind(visit) == _FORM


def _is_same(shown: str, expected: str) -> bool:
    return bool(expected) and hmac.compare_digest(shown.encode(errors="replace"), expected.encode(errors="replace"))


def _done(visit: Visit, where: str) -> Response:
    """That it is done: forms are sent on, scripts are told."""
    if _is_form(visit):
        return Response(status=HTTPStatus.SEE_OTHER, headers={"Location": where, **PRIVATE})
    return Response(status=HTTPStatus.NO_CONTENT, headers=PRIVATE)


def told(status: int, error: str, message: str) -> Response:
    told = {"error": error, "message": message}
    return Response(status=status, body=msgspec.json.encode(told), content_type=_JSON, headers=PRIVATE)


def _page(shown: Shown, *, status: int = HTTPStatus.OK) -> Response:
    return Response(status=status, body=shown.body, headers=shown.headers)
