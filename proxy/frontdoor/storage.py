"""How aiohttp-session finds a session, and has it kept: a cookie holds the ticket, and nothing else.

Its own storages put values into cookies, which outgrow what browsers keep, or cannot change their keys.
"""

import warnings
from typing import Final, cast

from aiohttp import web
from aiohttp.web_exceptions import NotAppKeyWarning
from aiohttp_session import AbstractStorage, Session

from proxy.credentials.session import TICKET_COOKIE
from proxy.frontdoor.kept import BrowserSession
from proxy.frontdoor.sessions import Sessions
from proxy.head import AmbiguousHeader
from proxy.operations.serving import PlainHandler
from proxy.relay.front import Request
from proxy.upstream.platform import PlatformSession


# aiohttp-session keeps what it finds by names that aiohttp would have typed by now; that concerns nobody who runs this.
warnings.filterwarnings("ignore", category=NotAppKeyWarning, module="aiohttp_session")

CSRF_COOKIE: Final = "XSRF-TOKEN"
"""What the platform calls its own, so that its clients show ours without knowing of it."""


class TicketStorage(AbstractStorage):
    """Sessions of `sessions`.

    A new one gets a ticket of its own when it is saved, and ends what it takes the place of; an empty one has ended.
    """

    def __init__(self, sessions: Sessions) -> None:
        super().__init__(
            cookie_name=TICKET_COOKIE,
            max_age=round(sessions.absolute_seconds),
            secure=True,
            httponly=True,
            samesite="Strict",
        )
        self._sessions = sessions

    async def session_of(self, request: web.BaseRequest) -> BrowserSession | None:
        """Whose request it is. Raises StoreUnavailable."""
        ticket = self.load_cookie(cast("web.Request", request))
        return None if ticket is None else await self._sessions.found(ticket)

    def load_cookie(self, request: web.Request) -> str | None:
        asked = cast("Request", cast("PlainHandler", request.protocol).asked)
        try:
            return asked.head.cookie(TICKET_COOKIE) or None
        except AmbiguousHeader:  # one of the two is none of ours
            return None

    async def load_session(self, request: web.Request) -> Session:
        """Raises StoreUnavailable."""
        session = await self.session_of(request)
        if session is None:
            return Session(None, data=None, new=True)
        kept = {"user": session.user, "tenant": session.tenant, "csrf_token": session.csrf_token}
        return Session(session, data={"created": int(session.began), "session": kept}, new=False)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Raises StoreUnavailable."""
        before = self.load_cookie(request)
        if not session.empty:
            pair = PlatformSession(session["token"], session["xsrf_token"])
            ticket, begun = await self._sessions.begin(
                pair, user=session["user"], tenant=session["tenant"], instead_of=before
            )
            self.save_cookie(response, ticket, max_age=self.max_age)
            response.set_cookie(
                CSRF_COOKIE, begun.csrf_token, max_age=self.max_age, secure=True, samesite="Strict", path="/"
            )
        else:
            if before is not None:
                await self._sessions.end(before)
            response.del_cookie(TICKET_COOKIE, path="/", secure=True, httponly=True, samesite="Strict")
            response.del_cookie(CSRF_COOKIE, path="/", secure=True, samesite="Strict")
