"""A credential as clients would get it: fetched where it has to be, and given back afterwards.

A proxy that runs may have a platform session by the same credential, of which only `vault.sessions_file` tells. It is
neither ended nor renewed here, and nothing is written there:

1. One that is kept there, and too young to be renewed by a request, is used as it is, and not logged out.
2. Beside one that is older, and beside one of other values where the tenant allows but one, nobody logs in here.
3. Where none is kept, or none that is good still, a session is begun, and logged out at the end.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from proxy.config import Config, source_of
from proxy.credentials.kinds import Credential, PlatformSessionCookie
from proxy.credentials.login import login_from
from proxy.credentials.sealing import BadKeys, CannotOpen, Kind
from proxy.credentials.sources import Coming, CredentialSource, NoCredential
from proxy.credentials.stored import BrokenCredential
from proxy.credentials.vault import SealedFile
from proxy.doctor.findings import Finding, Verdict
from proxy.head import Head
from proxy.upstream.platform import Denied, Platform, SessionRules, claims_of
from proxy.upstream.posts import UpstreamUnavailable
from proxy.wiring import Wiring, Worker, store_of, vault_keys


_FETCH_SECONDS: Final = 15.0
"""How long a credential is waited for; each request of it takes five at most."""

_CAREFUL_SECONDS: Final = 60.0
"""How much earlier than the tenant says a session counts as one that a request may renew."""

_CAREFUL_PART: Final = 1 / 4
"""After which part of its life it counts so where the tenant does not say."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A platform session that is kept, and whether the values that are stored now began it."""

    credential: PlatformSessionCookie
    is_of_these_values: bool


@asynccontextmanager
async def logged_in(
    config: Config, name: str, wiring: Wiring, unix_now: Callable[[], float]
) -> AsyncIterator[tuple[Finding, Credential | None]]:
    """The credential as clients would get it, until this is left; None where there is none to go on with.

    `wiring` has no keeper of sessions, and `unix_now` gives the time as it is at upstream.
    """
    platform = wiring.way.platform
    login = _Login(config, name, wiring)
    async with AsyncExitStack() as stack:
        match source_of(config.credentials[name]):
            case "cookie":
                text = "A browser or a microservice has to log in; open its page through the proxy to try that"
                yield login.finding(Verdict.SKIPPED, text), None
            case "session":
                text = "People sign in at the front door; do so in a browser, at /sign-in, to try that"
                yield login.finding(Verdict.SKIPPED, text), None
            case "login":
                finding, credential = await _kept_or_none(login, platform, unix_now)
                if finding is not None:
                    yield finding, credential
                    return
                yield await login.fetched(stack, "Upstream began a session, which is logged out at the end")
            case "device":
                yield await login.fetched(stack, "Upstream gave a token for the certificate")
            case "subscriptions":
                text = "Upstream told the bootstrap user of the service user in this tenant"
                yield await login.fetched(stack, text)
            case _:
                yield await _recognised(login, platform)


class _Login:
    """One credential on its way here."""

    def __init__(self, config: Config, name: str, wiring: Wiring) -> None:
        self.config = config
        self.name = name
        self.settings = config.credentials[name]
        self.sessions_file = config.vault.sessions_file
        self.source: CredentialSource = wiring.provisions[name].source
        self._workers = [each for each in (*wiring.pollers.values(), self.source) if isinstance(each, Worker)]

    def finding(self, verdict: Verdict, sentence: str, remedy: str = "") -> Finding:
        return Finding("login", verdict, sentence, remedy, self.name)

    def failed(self, told: str) -> Finding:
        """What a room of ours told is wrong; what helps stands in its last part, or it is for upstream to mend."""
        told = told[:1].upper() + told[1:]
        sentence, found, remedy = told.partition(". ")
        if not found:
            sentence, found, remedy = told.partition(": check ")
            remedy = f"Check {remedy}" if found else ""
        if not remedy and self.settings.tenant is not None:
            remedy = f"Have it subscribe, or check credentials.{self.name}.tenant"
        return self.finding(Verdict.FAILED, sentence, remedy or "Try again in a while: upstream has to mend it")

    async def fetched(self, stack: AsyncExitStack, sentence: str) -> tuple[Finding, Credential | None]:
        """Have the source fetch it; `stack` stops that, which logs a session out."""
        for worker in self._workers:
            stack.push_async_callback(worker.stop)
            await worker.start()
        try:
            credential = await self.obtained()
        except (NoCredential, TimeoutError) as problem:
            return self.failed(self.source.complaint or str(problem) or "It did not come in time"), None
        return self.finding(Verdict.OK, sentence), credential

    async def obtained(self) -> Credential:
        """Raises NoCredential and TimeoutError."""
        endpoint = self.settings.endpoints[0]
        head = Head("GET", endpoint, ())
        async with asyncio.timeout(_FETCH_SECONDS):
            while True:
                try:
                    return self.source.obtain(head, endpoint)
                except Coming as coming:
                    await coming.arrival.wait()


async def _recognised(login: _Login, platform: Platform) -> tuple[Finding, Credential | None]:
    """Ask upstream whether it knows a credential that is at hand."""
    try:
        credential = await login.obtained()
    except (NoCredential, TimeoutError) as problem:
        return login.failed(login.source.complaint or str(problem)), None
    try:
        await platform.recognise(_proof(credential))
    except Denied as denied:
        if denied.kind != "forbidden":
            text = str(denied)
            if denied.kind == "credentials" and "token" in (credential.authn() or {}) and not _is_basic(credential):
                text = (
                    "Upstream denied the token. Store a fresh one, and check that it is of the tenant in upstream.url"
                )
            return login.failed(text), None
        text = "Upstream knows the user, who may not read the own account (HTTP 403); real time does not need that"
        return login.finding(Verdict.OK, text), credential
    except UpstreamUnavailable as gone:
        return login.failed(str(gone)), None
    return login.finding(Verdict.OK, "Upstream knows the user"), credential


def _is_basic(credential: Credential) -> bool:
    return credential.headers().get("Authorization", "").startswith("Basic ")


def _proof(credential: Credential) -> dict[str, str]:
    cookies = "; ".join(f"{name}={value}" for name, value in credential.cookies().items())
    return dict(credential.headers()) | ({"Cookie": cookies} if cookies else {})


# Sessions that are kept -----------------------------------------------------------------------------------------------


async def _kept_or_none(
    login: _Login, platform: Platform, unix_now: Callable[[], float]
) -> tuple[Finding | None, Credential | None]:
    """What can be said without logging in; no finding where that is to be done."""
    try:
        kept = _kept(login.config, login.name)
        if kept is not None:
            finding, credential = await _left_alone(login, platform, kept, unix_now())
            if finding is not None:
                return finding, credential
    except (CannotOpen, BadKeys, BrokenCredential, UpstreamUnavailable) as problem:
        return login.failed(str(problem)), None
    except OSError as error:
        text = f"{error.filename or login.sessions_file} cannot be read: {error.strerror}"
        return login.failed(f"{text}. Run this as the user of the proxy"), None
    if "tfa_code" in store_of(login.config, login.name).read():
        text = "The tfa_code is good for one login, which is left to the proxy"
        return login.finding(Verdict.SKIPPED, text, "Store a totp_secret in its place to have logins tried"), None
    return None, None


async def _left_alone(
    login: _Login, platform: Platform, kept: _Kept, now: float
) -> tuple[Finding | None, Credential | None]:
    """What comes of a session that is kept; no finding where nothing hinders another. Raises UpstreamUnavailable."""
    rules = SessionRules()
    with suppress(Denied):
        rules = await platform.session_rules()
    if not kept.is_of_these_values:
        if rules.most != 1:
            return None, None
        text = f"A session of other values is kept in {login.sessions_file}, and the tenant allows one: it is left"
        return login.finding(Verdict.SKIPPED, text, _LET_IT), None
    if _may_be_renewed(kept.credential.token, rules.renewal_seconds, now):
        text = f"A session is kept in {login.sessions_file}, and asking could take it from a running proxy"
        return login.finding(Verdict.SKIPPED, text, _LET_IT), None
    try:
        await platform.recognise(_proof(kept.credential))
    except Denied as denied:
        if denied.kind != "forbidden":
            return None, None
    text = f"The session that is kept in {login.sessions_file} is good; it is used, and not logged out"
    return login.finding(Verdict.OK, text), kept.credential


_LET_IT: Final = "Try again once a running proxy has renewed it, or remove that file if none runs"


def _may_be_renewed(token: str, renewal_seconds: float | None, now: float) -> bool:
    """Whether a request with this token may bring another in its place, and so end it."""
    claims = claims_of(token)
    if claims.issued_at is None:
        return True
    if renewal_seconds is not None:
        return now >= claims.issued_at + renewal_seconds - _CAREFUL_SECONDS
    return claims.expires_at is None or now >= claims.issued_at + (claims.expires_at - claims.issued_at) * _CAREFUL_PART


def _kept(config: Config, name: str) -> _Kept | None:
    """The session that is kept by a credential. Raises CannotOpen, BadKeys and OSError.

    Not by what the proxy reads it with: that puts aside what it cannot open.
    """
    file, keys = config.vault.sessions_file, vault_keys(config.vault)
    if file is None or keys is None or not file.exists():
        return None
    opened = SealedFile(file, keys, Kind.SESSIONS).open()
    if not opened.has(name):
        return None
    values, login = opened.values(name), login_from(store_of(config, name).read())
    token, mark = values.get("token", ""), values.get("mark", "")
    credential = PlatformSessionCookie(token, values.get("xsrf_token", ""), tenant=login.tenant)
    return _Kept(credential, login.mark(token) == mark)
