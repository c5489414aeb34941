"""A platform session of this proxy's own (OAI-Secure): logged in to with stored values, renewed, and kept sealed.

        begin ----- what was kept is good still -----+       +---- renewed: on our asking from half of its life on,
          |                                          v       v     or along with what clients send
          |  nothing was kept,                      live ----+
          |  or it has ended                         | |
          v                                          | |  it has ended
       log in  <------- log out first ---------------+ |
          ^             its time is nearly over,       |
          |             or other values are stored     |
          +--------------------------------------------+

1. A source never has more than one live session: the old one is logged out before a new one is begun, and a restart
   goes on with the one that was kept. Where nothing keeps it, it is logged out at the end.
2. The password goes up when there is no other way. A denial rests, and so does a login that was not answered.
3. A code is sent once: of those that are made from a secret, the next one is waited for.
4. Whoever stores another user or password wants the session of the old one ended, so that is logged out although the
   new one may be wrong. Values that are no login at all end nothing.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, Self, Unpack

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from proxy.credentials.fetched import FetchDenied, Fetched, FetchedSource, FetchingOptions, FetchUnanswered, NotYet
from proxy.credentials.kinds import Credential, PlatformSessionCookie, is_token
from proxy.credentials.lifetimes import UNKNOWN_LIFE, interval_of, life_of
from proxy.credentials.stored import BrokenCredential, Store, check_text
from proxy.upstream.platform import Denied, Platform, PlatformSession, claims_of
from proxy.upstream.posts import UpstreamUnavailable


_PERIOD_SECONDS: Final = 30
_DIGITS: Final = 6

log = logging.getLogger(__name__)


# What is stored -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in, and with what. `totp_secret` is in base32, and `tfa_code` good for one login."""

    tenant: str | None
    user: str
    password: str = field(repr=False)
    totp_secret: str | None = field(default=None, repr=False)
    tfa_code: str | None = field(default=None, repr=False)

    @property
    def who(self) -> tuple[str, str, str]:
        """What a session is the session of; another code makes no other."""
        return self.tenant or "", self.user, self.password

    def mark(self, token: str) -> str:
        """What tells, beside a token, whether its session was begun as this user and with this password."""
        return hmac.digest(token.encode(), "\0".join(self.who).encode(), "sha256").hex()

    def code(self, unix_now: float) -> str | None:
        """The code of this moment."""
        if self.totp_secret is None:
            return self.tfa_code
        # SHA-1, six digits and half a minute are what every authenticator and the platform take for granted.
        codes = TOTP(_key(self.totp_secret), _DIGITS, SHA1(), _PERIOD_SECONDS, enforce_key_length=False)  # noqa: S303
        return codes.generate(int(unix_now)).decode()


def login_from(values: Mapping[str, str]) -> Login:
    """Make the login that the values describe. Raises BrokenCredential."""
    check_text(values)
    for name, what in (("token", "a token"), ("tfa", "a token of SMS two-factor authentication")):
        if name in values:
            raise BrokenCredential(
                f"{name} is there, and a login takes no {what[2:]}: take it away, or choose source = stored"
            )
    missing = [name for name in ("user", "password") if name not in values]
    if missing:
        raise BrokenCredential(f"{' and '.join(missing)} missing: store user and password")
    if "tfa_code" in values and "totp_secret" in values:
        raise BrokenCredential("tfa_code and totp_secret are both there: keep one of them")
    if not is_token(values.get("tfa_code", "x")):
        raise BrokenCredential("tfa_code is no code: it holds characters that none has")
    secret = values.get("totp_secret")
    if secret is not None:
        try:
            _key(secret)
        except ValueError:
            raise BrokenCredential("totp_secret is not base32, as the platform shows it when TOTP is set up") from None
    return Login(values.get("tenant"), values["user"], values["password"], secret, values.get("tfa_code"))


def _key(secret: str) -> bytes:
    """The key in a secret as people copy it, in groups and in any case. Raises ValueError."""
    bare = "".join(secret.split()).replace("-", "").rstrip("=").upper()
    key = base64.b32decode(bare + "=" * (-len(bare) % 8))
    if not key:
        raise binascii.Error("Nothing")
    return key


# What is kept ---------------------------------------------------------------------------------------------------------


class SessionKeeper(Protocol):
    """Where sessions are kept across restarts, sealed. Each may raise OSError, and ValueError with a text that quotes
    nothing.
    """

    def load(self, name: str) -> Mapping[str, str] | None:
        """What was kept under a name."""
        ...

    def keep(self, name: str, values: Mapping[str, str]) -> None:
        """Keep this under a name, in place of what was there."""
        ...

    def forget(self, name: str) -> None:
        """Keep nothing under a name."""
        ...


@dataclass(frozen=True, slots=True)
class _Session:
    """A platform session: its token and XSRF token, who logged in, and since when (in monotonic seconds) and for how
    long the token is good.
    """

    pair: PlatformSession
    login: Login
    since: float
    life: float

    def seconds_left(self, now: float) -> float:
        return self.since + self.life - now

    @property
    def margin(self) -> float:
        """How long before its end a new one is begun: ten minutes, and less where it lives shortly."""
        return min(600.0, max(self.life / 20, 30.0), self.life / 4)

    @property
    def interval(self) -> float:
        """How often the platform is asked to renew it, once half of its life is over."""
        return interval_of(self.life)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A session as it is kept: the mark of who logged in, and since when its token is good, in Unix time."""

    pair: PlatformSession
    mark: str
    since: float

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Self:
        """Raises ValueError."""
        try:
            kept = cls(PlatformSession(values["token"], values["xsrf_token"]), values["mark"], float(values["since"]))
        except (KeyError, ValueError):
            raise ValueError("what was kept is no session") from None
        if not (is_token(kept.pair.token) and is_token(kept.pair.xsrf_token)):
            raise ValueError("what was kept is no session")
        return kept

    def values(self) -> dict[str, str]:
        return {
            "token": self.pair.token,
            "xsrf_token": self.pair.xsrf_token,
            "mark": self.mark,
            "since": str(self.since),
        }


# The source -----------------------------------------------------------------------------------------------------------


class LoginSource(FetchedSource):
    """The platform session that the login in `store` begins, one for all clients.

    `keeper` keeps it across restarts, under the name of the credential; each process needs one of its own. `clock`
    gives monotonic seconds and `unix_clock` Unix time; the rest is as `FetchedSource` has it.
    """

    def __init__(
        self,
        store: Store,
        platform: Platform,
        *,
        keeper: SessionKeeper | None,
        unix_clock: Callable[[], float] = time.time,
        **options: Unpack[FetchingOptions],
    ) -> None:
        super().__init__(kind="login", **options)
        self._store = store
        self._platform = platform
        self._keeper = keeper
        self._unix_clock = unix_clock
        self._login: Login | None = None
        self._session: _Session | None = None
        self._renewed_from: PlatformSession | None = None  # what was renewed last, and is good for a minute still
        self._spent_code: str | None = None
        self._is_resumed = False  # whether what was kept has been looked at
        self._is_kept = False  # whether the present session is
        self._tended: _Session | None = None  # the one that was kept last, or could not be

    def fingerprint(self) -> object:
        return self._store.fingerprint()

    def reread(self) -> bool:
        login = login_from(self._store.read())
        before, self._login = self._login, login
        return login != before

    def secrets(self) -> tuple[str, ...]:
        login, before = self._login, self._renewed_from
        stored = () if login is None else (login.password, login.totp_secret, login.tfa_code)
        renewed = () if before is None else (before.token, before.xsrf_token)
        return (*super().secrets(), *(secret for secret in stored if secret), *renewed)

    def renewed_by_upstream(self, used: Credential, token: str, xsrf_token: str | None = None) -> None:
        """Take over the cookies that an answer of upstream brought to a request with the credential `used`. What they
        take the place of is revoked a minute later.
        """
        session = self._session
        if session is None or used != self.current() or not is_token(token) or token == session.pair.token:
            return
        if xsrf_token is None or not is_token(xsrf_token):
            xsrf_token = claims_of(token).xsrf_token or session.pair.xsrf_token
        self._replace(PlatformSession(token, xsrf_token), session.login)
        self.take(self._fetched())
        log.info("The credential %s is renewed", self.called)
        self.wake()  # to have it kept

    # Fetching ---------------------------------------------------------------------------------------------------------

    async def renewed(self, credential: Credential) -> Fetched | None:  # noqa: ARG002 - it is that of the session
        session, login = self._session, self._login
        if session is None or login is None or login.who != session.login.who:
            return None
        if session.seconds_left(self._clock()) <= session.margin:
            return None
        return await self._checked(session)

    async def fetch(self) -> Fetched:
        login = self._login
        assert login is not None  # noqa: S101 - there are values to fetch with
        if not self._is_resumed:
            await self._resume(login)
            self._is_resumed = True
            if self._session is not None:
                return self._fetched()
        code = self._code(login)  # which may have to be waited for: nothing is ended before
        await self._end_for_another()
        self._replace(await self._logged_in(login, code), login)
        await self._keep_it()
        return self._fetched()

    async def tend(self) -> None:
        if self._session is not self._tended:
            self._tended = self._session
            if not self._is_kept:
                await self._keep_it()

    async def leave(self, *, for_good: bool) -> None:
        if for_good and not self._is_resumed:
            if (kept := await self._loaded()) is not None:
                await self._log_out(kept.pair)
            self._is_resumed = True
        if not for_good:
            await self.tend()
        session = self._session
        if session is not None and (for_good or not self._is_kept):
            self.drop()
            await self._log_out(session.pair)
            self._session = None

    async def _checked(self, session: _Session) -> Fetched | None:
        """Whether a session is good still: it, or what it was renewed to."""
        pair = await self._asked_about(session.pair)
        if pair is None:
            self._session = None
            self.drop()
            return None
        if pair != session.pair:
            self._replace(pair, session.login)
            await self._keep_it()
        # Else it is the one that we asked with, or one that came along with an answer to a client meanwhile.
        return self._fetched()

    async def _asked_about(self, pair: PlatformSession) -> PlatformSession | None:
        """What the platform makes of a session: itself, or what it was renewed to; None where it has ended."""
        try:
            return await self._platform.renewed(pair)
        except Denied as denied:
            if denied.kind == "forbidden":  # so the platform knows whose it is
                return pair
            if denied.kind == "other":
                raise FetchDenied(str(denied)) from None
        log.info("The platform session of the credential %s has ended", self.called)
        await self._forget()
        return None

    async def _logged_in(self, login: Login, code: str | None) -> PlatformSession:
        try:
            pair = await self._platform.log_in(tenant=login.tenant, user=login.user, password=login.password, code=code)
        except Denied as denied:
            self._spent_code = code
            raise FetchDenied(_explained(denied, login), is_final=login.tfa_code is not None) from None
        except UpstreamUnavailable as gone:
            if gone.was_asked:
                self._spent_code = code
            if gone.was_asked and gone.timed_out:
                raise FetchUnanswered(str(gone), timed_out=True) from None
            raise
        self._spent_code = code
        if login.tfa_code is not None:
            log.warning(
                "The tfa_code of the credential %s is used up, and the next login needs another: store that in its "
                "place, or a totp_secret",
                self.called,
            )
        return pair

    def _code(self, login: Login) -> str | None:
        """A code that was not sent yet. Raises NotYet, and FetchDenied where another one has to be stored."""
        now = self._unix_clock()
        code = login.code(now)
        if code is None or code != self._spent_code:
            return code
        if login.totp_secret is not None:
            raise NotYet(_PERIOD_SECONDS - now % _PERIOD_SECONDS)
        raise FetchDenied("Its tfa_code is used up: store another, or a totp_secret", is_final=True)

    # The session ------------------------------------------------------------------------------------------------------

    def _replace(self, pair: PlatformSession, login: Login, *, age: float = 0.0) -> None:
        """Go on with another session, or another token of this one, of that age in seconds by this machine's clock."""
        if self._session is not None:
            self._renewed_from = self._session.pair
        life = life_of(pair.token)
        if not 0 <= age < life:  # the clock was wrong, then or now: it was good a moment ago
            age, life = 0.0, math.inf
        self._session = _Session(pair, login, self._clock() - age, life)
        self._is_kept = False

    def _fetched(self) -> Fetched:
        """The session as it is given out: seen about when half of its life is over, and then now and then."""
        session = self._session
        assert session is not None  # noqa: S101 - whoever asks has made one
        left = session.seconds_left(self._clock())
        life = session.life if math.isfinite(session.life) else UNKNOWN_LIFE
        spread = 1 + self._chance() / 10  # so that processes that were started together do not ask together
        until_half = left - life / 2 if math.isfinite(left) else life / 2
        again = until_half if until_half > 0 else session.interval
        return Fetched(
            PlatformSessionCookie(session.pair.token, session.pair.xsrf_token, tenant=session.login.tenant),
            again_seconds=min(again * spread, left - session.margin),
            good_seconds=left,
        )

    async def _end_for_another(self) -> None:
        """Log the present session out, so that there are never two. Raises UpstreamUnavailable; then it goes on."""
        session = self._session
        if session is None:
            return
        self.drop()  # whoever asks now waits for the next one
        try:
            await self._log_out(session.pair)
        except UpstreamUnavailable:
            self.take(self._fetched())
            raise
        self._session = None

    async def _log_out(self, pair: PlatformSession) -> None:
        """End a session, and keep it no longer. Raises UpstreamUnavailable."""
        try:
            await self._platform.log_out(pair)
        except Denied as denied:
            if denied.kind != "ended":
                log.warning("A platform session of the credential %s was not logged out: %s", self.called, denied)
        await self._forget()

    # Keeping it -------------------------------------------------------------------------------------------------------

    async def _resume(self, login: Login) -> None:
        """Go on with the session that was kept, where it is good still. Raises UpstreamUnavailable and FetchDenied."""
        kept = await self._loaded()
        if kept is None:
            return
        if not hmac.compare_digest(login.mark(kept.pair.token), kept.mark):
            await self._log_out(kept.pair)
            return
        pair = await self._asked_about(kept.pair)
        if pair is None:
            return
        age = 0.0 if pair != kept.pair else self._unix_clock() - kept.since
        self._replace(pair, login, age=age)
        if pair != kept.pair:
            await self._keep_it()
        self._is_kept = True

    async def _loaded(self) -> _Kept | None:
        if self._keeper is None:
            return None
        try:
            values = await asyncio.to_thread(self._keeper.load, self.called)
            return None if values is None else _Kept.of(values)
        except (OSError, ValueError) as problem:
            self._tell_of_keeping(problem, "A platform session that was kept there may live on until it ends by itself")
            return None

    async def _keep_it(self) -> None:
        session = self._session
        if self._keeper is None or session is None:
            return
        since = self._unix_clock() - (self._clock() - session.since)
        kept = _Kept(session.pair, session.login.mark(session.pair.token), since)
        try:
            await asyncio.to_thread(self._keeper.keep, self.called, kept.values())
        except (OSError, ValueError) as problem:
            self._tell_of_keeping(problem, "The next start of this proxy will log in anew")
        else:
            self._is_kept = session is self._session

    async def _forget(self) -> None:
        if self._keeper is None:
            return
        try:
            await asyncio.to_thread(self._keeper.forget, self.called)
        except (OSError, ValueError) as problem:
            self._tell_of_keeping(problem, "What is kept there has ended")

    def _tell_of_keeping(self, problem: OSError | ValueError, consequence: str) -> None:
        text = f"cannot be used: {problem.strerror}" if isinstance(problem, OSError) else str(problem)
        log.warning("The session of the credential %s is not kept: %s. %s", self.called, text, consequence)


def _explained(denied: Denied, login: Login) -> str:
    """Why a login was denied, and what helps."""
    match denied.kind:
        case "code_required" if login.totp_secret is not None:
            return (
                "Upstream did not take the code that was made from its totp_secret. Check the secret, and the clock of "
                "this machine"
            )
        case "code_required" if login.tfa_code is not None:
            return "Upstream did not take its tfa_code. Store another, or a totp_secret"
        case "credentials" if login.tfa_code is not None:
            return f"{denied}, and store another tfa_code with them: a code is good for one login"
        case _:
            return str(denied)
