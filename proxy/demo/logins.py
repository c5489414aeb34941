"""Logging in by OAI-Secure: platform sessions, how many a user may have, and how their tokens are renewed and end.

From the platform's page on OAI-Secure: the absolute timeout is 14 days, the renewal timeout one day, a token's lifespan
two days; a user may have five parallel sessions, and one more ends the oldest. A token is renewed by any HTTP request
that is made with it before it expires and after the renewal timeout; the old one stays good for another minute. Without
session configuration nothing is renewed. Tokens that came in a body have a lifespan of their own and count as sessions
like those in cookies; the cookie's lifespan, two weeks, is a third.

Inferred: a request with a Bearer token renews like one with the cookie (a command line tool that knows only Bearer saw
its tokens revoked by renewals), one with a token that was renewed already renews nothing; the limit holds without
session configuration, too; the absolute timeout does not shorten `exp`. The texts of 401s are those that users of that
tool reported, as far as there are any: `not present` for a session that had to make room, `is terminated` for a token
that a renewal revoked.
"""

import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from proxy.demo.accounts import Account, Accounts, Unauthorized, User, require_second_factor, same
from proxy.demo.tokens import Token, issue
from proxy.demo.totp import OneTimeCodes


_DAY = 86_400.0
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRules:
    """A tenant's settings of OAI-Secure, in seconds. Without `renewal_seconds` there is no session configuration.

    `token_seconds` is the lifespan of a token in a cookie, `body_token_seconds` of one in a body, the same unless
    given; `cookie_seconds` how long a browser keeps the cookies, for its own life if negative.
    `revocation_seconds` is how long a renewed token stays good. `renews_upgrades` lets an upgrade renew like any other
    HTTP request, if its headers hold a whole credential: the documents make no exception. A browser's cookie comes
    alone there, and renews only with `renews_lone_cookies`, of which the documents say nothing.
    """

    token_seconds: float = 2 * _DAY
    body_token_seconds: float | None = None
    cookie_seconds: float = 14 * _DAY
    renewal_seconds: float | None = None
    absolute_seconds: float = 14 * _DAY
    revocation_seconds: float = 60.0
    parallel: int = 5
    validates_user_agent: bool = False
    renews_upgrades: bool = True
    renews_lone_cookies: bool = False


_Ended = Literal["logged out", "made room", "terminated"]


@dataclass(eq=False, slots=True)
class PlatformSession:
    """What one login began. Its tokens are in order; all but the newest are revoked, or soon will be."""

    user: User
    user_agent: str | None
    started: float
    token_seconds: float
    tfa: bool
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    tokens: list[Token] = field(default_factory=list)
    revocations: dict[Token, float] = field(default_factory=dict)
    ended: _Ended | None = None

    def revoke(self, moment: float) -> None:
        """End every token at this time, unless it ends before."""
        for token in self.tokens:
            self.revocations[token] = min(moment, self.revocations.get(token, moment))

    def end(self, moment: float, how: _Ended) -> None:
        self.ended = how
        self.revoke(moment)


class Logins:
    """Every login that was asked for, and what became of those that succeeded.

    `asked`, `succeeded` and `user_agents` (of those that asked, in order) are records for tests. `rules` may be
    replaced at any time. `clock` gives Unix time.
    """

    def __init__(self, *, rules: SessionRules, clock: Callable[[], float]) -> None:
        self.rules = rules
        self.asked = 0
        self.succeeded = 0
        self.user_agents: list[str | None] = []
        self._clock = clock
        self._codes = OneTimeCodes(clock)
        self._sessions: list[PlatformSession] = []
        self._by_token: dict[str, tuple[PlatformSession, Token]] = {}
        self._most: Counter[User] = Counter()

    @property
    def tokens(self) -> list[Token]:
        """Every token that was issued, in order."""
        return [token for _, token in self._by_token.values()]

    def live(self, user: User | None = None) -> int:
        """How many sessions are live now, of one user or of all."""
        return len(self._live(user))

    def most(self, user: User) -> int:
        """The most sessions of this user that were ever live at once."""
        return self._most[user]

    def ask(self, user_agent: str | None) -> None:
        """Count a login before anything is decided about it."""
        self.asked += 1
        self.user_agents.append(user_agent)
        del self.user_agents[:-_REMEMBERED]

    def log_in(
        self,
        accounts: Accounts,
        *,
        user: User,
        password: str,
        code: str | None = None,
        user_agent: str | None = None,
        in_body: bool = False,
    ) -> Token:
        """Begin a session, and end the oldest if there is one too many. Raises Unauthorized."""
        account = next((each for each in accounts if each.owner == user and same(password, each.password)), None)
        if account is None:
            raise Unauthorized
        self._check_second_factor(account, code)
        return self.begin(user, user_agent=user_agent, in_body=in_body, tfa=account.totp is not None)

    def begin(self, user: User, *, user_agent: str | None = None, in_body: bool = False, tfa: bool = False) -> Token:
        """Begin a session for somebody who has proved who they are."""
        now = self._clock()
        others = self._live(user)
        for oldest in others[: max(0, len(others) - self.rules.parallel + 1)]:
            oldest.end(now, "made room")
        seconds = self.rules.body_token_seconds if in_body else None
        session = PlatformSession(user, user_agent, now, seconds or self.rules.token_seconds, tfa=tfa)
        self._sessions.append(session)
        self.succeeded += 1
        token = self._issue(session)
        self._most[user] = max(self._most[user], self.live(user))
        return token

    def judge(self, value: object, *, user_agent: str | None) -> Token | None:
        """The token of that value, None if it is none of ours. Raises Unauthorized if it has ended."""
        known = self._by_token.get(value) if isinstance(value, str) else None
        if known is None:
            return None
        session, token = known
        now = self._clock()
        if session.ended == "logged out":
            raise Unauthorized("Invalid credentials! : User has been logged out")
        if session.ended == "made room":
            raise Unauthorized(f"Token '{token.id}' not present for user '{token.user.name}'.")
        if (revoked := session.revocations.get(token)) is not None and revoked <= now:
            raise Unauthorized(_terminated(token, revoked), error="Authentication failed/Unauthorized")
        if now >= token.expires or now >= session.started + self.rules.absolute_seconds:
            raise Unauthorized
        if self.rules.validates_user_agent and user_agent != session.user_agent:
            raise Unauthorized("SessionAuth: User agent has changed.", error="Authentication failed/Unauthorized")
        return token

    def renew(self, token: Token) -> Token | None:
        """A successor for a judged token whose renewal timeout is over; None for any other."""
        session, _ = self._by_token.get(token.value, (None, None))
        if session is None or self.rules.renewal_seconds is None or token is not session.tokens[-1]:
            return None
        now = self._clock()
        if now - token.issued <= self.rules.renewal_seconds:
            return None
        session.revoke(now + self.rules.revocation_seconds)
        return self._issue(session)

    def log_out(self, token: Token) -> None:
        """End the session that this token belongs to, if there is one."""
        session, _ = self._by_token.get(token.value, (None, None))
        if session is not None:
            session.end(self._clock(), "logged out")

    def terminate(self, user: User | None = None) -> None:
        """End the sessions of one user, or of all, as an administrator may."""
        for session in self._live(user):
            session.end(self._clock(), "terminated")

    def _live(self, user: User | None) -> list[PlatformSession]:
        """Oldest first."""
        return [each for each in self._sessions if user in {None, each.user} and self._is_live(each)]

    def _is_live(self, session: PlatformSession) -> bool:
        now = self._clock()
        return now < session.started + self.rules.absolute_seconds and any(
            now < min(token.expires, session.revocations.get(token, token.expires)) for token in session.tokens
        )

    def _issue(self, session: PlatformSession) -> Token:
        token = issue(
            session.user, now=self._clock(), seconds=session.token_seconds, tfa=session.tfa, session=session.id
        )
        session.tokens.append(token)
        self._by_token[token.value] = session, token
        return token

    def _check_second_factor(self, account: Account, code: str | None) -> None:
        require_second_factor(account, given=code is not None)
        if account.totp is not None and code is not None:
            self._codes.use(account.totp, code)


def _terminated(token: Token, revoked: float) -> str:
    return (
        f"SessionAuth: Token is terminated. Tenant id: {token.user.tenant}. Username: {token.user.name}. "
        f"Token id: {token.id}, issued at: {_written(token.issued)}, valid until: {_written(token.expires)}, "
        f"revoked at: {_written(revoked)}."
    )


def _written(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
