"""The platform's own requests: logging in and out, tokens for device certificates, service users of a microservice.

1. Each request has a session of the HTTP client to itself: no cookie and no connection outlives it.
2. What comes back is bounded in size and time, and believed only where it is what the platform is documented to say.
3. Nothing that came, and nothing that was sent, stands in an error: its text is ours.
"""

import re
import ssl
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp.http import HttpProcessingError
from yarl import URL

from proxy import USER_AGENT
from proxy.tls import Trust, trust_in
from proxy.upstream.posts import UpstreamUnavailable


Why = Literal["credentials", "code_required", "setup_required", "forbidden", "ended", "other"]

_T = TypeVar("_T")

_SIZE_LIMIT: Final = 4 * 1024 * 1024
"""Of the body of an answer, in bytes: the service users of ten thousand tenants fit."""

_HEADER_LIMIT: Final = 64 * 1024
_WORDS_LIMIT: Final = 4096
"""How much of a denial is read."""

_OAUTH: Final = "/tenant/oauth"
_DEVICES: Final = "/devicecontrol/deviceAccessToken"
_AUTHORIZATION: Final = "authorization"
_XSRF: Final = "XSRF-TOKEN"

_token: Final = re.compile(r"[!#-+\--:<-~]+")
"""What can stand in a header and in a cookie: visible ASCII but for the quote, the comma and the semicolon."""

_certificate: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")

_STATUSES: Final = range(200, 600)
"""Of answers that somebody else can be given."""

_PASSING: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
"""Denials of the moment, which say nothing about what was asked."""

_MEANINGS: Final[tuple[tuple[bytes, Why], ...]] = (
    (b"totp setup required", "setup_required"),
    (b"tfa", "code_required"),
    (b"totp", "code_required"),
    (b"user has been logged out", "ended"),
    (b"token is terminated", "ended"),
    (b"not present for user", "ended"),
    (b"change in authentication strategy", "ended"),
    (b"no access from outside the platform", "forbidden"),
)
"""What the platform says beside HTTP 401, in lower case, and what it means by it. Mostly "Invalid credentials! : "
stands before, so that by itself says nothing.
"""

_REMEDIES: Final[Mapping[Why, str]] = {
    "credentials": "Upstream denied user and password. Check both, and the tenant",
    "code_required": "Upstream wants a TOTP code, or did not take the one it was given. Give this user a totp_secret, "
    "or a fresh tfa_code, and check the clock",
    "setup_required": "Upstream wants this user to set up two-factor authentication first. Do so in the platform's own "
    "login page, or take a user who need not",
    "forbidden": "Upstream knows this user, and forbids what was asked. Check the permissions of the user, and whether "
    "the tenant may be reached from outside the platform",
    "ended": "Upstream ended the session of this user, or wants another kind of login. Check the login options of the "
    "tenant if a fresh login does not help",
}


@dataclass(frozen=True, slots=True)
class PlatformSession:
    """What a login brings: the value of the `authorization` cookie, a JSON Web Token, and that of `XSRF-TOKEN`."""

    token: str = field(repr=False)
    xsrf_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServiceUser:
    """Who a microservice is in one tenant."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionRules:
    """How a tenant wants sessions (OAI-Secure), as far as it says so: how old a token may be before a request renews
    it, in seconds, and how many sessions a user may have at once.
    """

    renewal_seconds: float | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class SingleSignOn:
    """A way to log in by an identity provider: what the button says, and the path of the platform that
    it begins at.
    """

    label: str
    path: str


@dataclass(frozen=True, slots=True)
class Relayed:
    """An answer of the platform to somebody else's request. Names of `headers` are in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    content: bytes = field(repr=False)

    @property
    def session(self) -> PlatformSession | None:
        """The session that it begins, if it does."""
        if self.status >= HTTPStatus.BAD_REQUEST:
            return None
        values = [value for name, value in self.headers if name == "set-cookie"]
        session = _session_in(_Answer(self.status, _cookies(values), b""), PlatformSession("", ""))
        return session if session.token and session.xsrf_token else None


class Denied(Exception):
    """The platform said no. The text says what is wrong and what helps; it quotes nothing.

    `kind` tells what is wrong: who asked and with what (`credentials`); a second factor that was not given, or was
    never set up; what is forbidden to one who is known; a session that has ended; or something else.
    """

    def __init__(self, text: str, *, kind: Why) -> None:
        super().__init__(text)
        self.kind: Why = kind


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says about itself, times in seconds since 1970; None for what it does not say.

    Nobody verified it. It may serve to plan by, and proves nothing.
    """

    expires_at: float | None = None
    issued_at: float | None = None
    xsrf_token: str | None = field(default=None, repr=False)
    user: str | None = None
    tenant: str | None = None


def claims_of(token: str) -> Claims:
    """Read what a token says about itself, which is nothing where it cannot be read."""
    try:
        _, payload, _ = token.split(".")
        content = urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        said = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return Claims()
    xsrf_token = _claim(said, "xsrfToken", str)
    return Claims(
        expires_at=_claim(said, "exp", float),
        issued_at=_claim(said, "iat", float),
        xsrf_token=xsrf_token if _is_token(xsrf_token) else None,
        user=_claim(said, "sub", str),
        tenant=_claim(said, "ten", str),
    )


def _claim(said: Mapping[str, msgspec.Raw], name: str, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(said[name], type=kind) if name in said else None
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None


def _is_token(text: str | None) -> bool:
    return text is not None and _token.fullmatch(text) is not None


class Platform:
    """Cumulocity at `url`, through the HTTP proxy at `proxy_url` where there is one.

    `tls` gives what is trusted, and is asked at each request. Where a certificate is shown, that needs a context of its
    own, which trusts the authorities in `ca_file`, or without one those of the system. `seconds` bounds each request,
    from the look-up of the name to the last byte.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: Trust,
        ca_file: Path | None = None,
        proxy_url: str | None = None,
        seconds: float = 5.0,
    ) -> None:
        self.url: Final = url
        self._tls = tls
        self._ca_file = ca_file
        self._proxy_url = proxy_url
        self._timeout = aiohttp.ClientTimeout(total=seconds)

    async def log_in(self, *, tenant: str | None, user: str, password: str, code: str | None) -> PlatformSession:
        """Begin a session (OAI-Secure), with the `code` of a second factor where there is one.

        Raises Denied and UpstreamUnavailable.
        """
        form = {"grant_type": "PASSWORD", "username": user, "password": password}
        if code is not None:
            form["tfa_code"] = code
        answer = await self._ask(
            "POST", f"{self.url}{_OAUTH}", query={"tenant_id": tenant} if tenant else {}, form=form
        )
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise _denied(answer)
        session = _session_in(answer, PlatformSession("", ""))
        if not (session.token and session.xsrf_token):
            raise UpstreamUnavailable("Upstream answered a login without a session: check that upstream.url is right")
        return session

    async def renewed(self, session: PlatformSession) -> PlatformSession:
        """The session that goes on from this one: itself, where the platform did not renew it.

        Raises Denied, of kind `ended` where it is good no longer, and UpstreamUnavailable.
        """
        answer = await self._ask("GET", f"{self.url}/user/currentUser", _proof_of(session))
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise _denied_session(answer)
        _read(answer, dict[str, msgspec.Raw])
        return _session_in(answer, session)

    async def recognise(self, proof: Mapping[str, str]) -> None:
        """Have the platform say whether it knows who sends these headers.

        Raises Denied, of kind `forbidden` where it knows, and gives no account of them; and UpstreamUnavailable.
        """
        answer = await self._ask("GET", f"{self.url}/user/currentUser", proof)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise _denied(answer)
        _read(answer, dict[str, msgspec.Raw])

    async def session_rules(self) -> SessionRules:
        """How the tenant wants sessions, which it tells everybody. Raises Denied and UpstreamUnavailable."""
        for option in await self._login_options():
            if option.type == "OAUTH2_INTERNAL" and (told := option.session_configuration) is not None:
                renewal = told.renewal_timeout_millis
                most = told.maximum_number_of_parallel_sessions
                return SessionRules(None if renewal is None else renewal / 1000, most)
        return SessionRules()

    async def _login_options(self) -> "list[_LoginOption]":
        answer = await self._ask("GET", f"{self.url}/tenant/loginOptions")
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise _denied(answer)
        return _read(answer, _LoginOptions).login_options

    async def single_sign_ons(self) -> list[SingleSignOn]:
        """How else than with a password people log in to the tenant, which it tells everybody.

        Raises Denied and UpstreamUnavailable.
        """
        options = await self._login_options()
        return [
            SingleSignOn(option.button_name or "Single sign-on", path)
            for option in options
            if option.type == "OAUTH2" and option.visible_on_login_page is not False
            if (path := _sign_on_path(option.init_request or "")) is not None
        ]

    async def log_out(self, session: PlatformSession) -> None:
        """End a session, also one that has ended already. Raises Denied and UpstreamUnavailable."""
        answer = await self._ask("POST", f"{self.url}/user/logout", _proof_of(session))
        if answer.status >= HTTPStatus.BAD_REQUEST and answer.status != HTTPStatus.UNAUTHORIZED:
            raise _denied_session(answer)

    async def device_token(self, url: str, certificate_file: Path, key_file: Path) -> str:
        """A token for the device whose certificate this is, from where `url` is. The files are read each time.

        Raises Denied, also where the files are broken, and UpstreamUnavailable.
        """
        tls, headers = self._as_device(certificate_file, key_file)
        answer = await self._ask("POST", f"{url}{_DEVICES}", headers, tls=tls)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise _denied_certificate(answer.status)
        token = _read(answer, _DeviceToken).access_token
        if not _is_token(token):
            raise _unexpected()
        return token

    def within(self, location: str) -> str:
        """Where within the platform a `Location` leads: its path, as it would be on our origin; else what it says."""
        return location.removeprefix(self.url) or "/" if location.startswith(f"{self.url}/") else location

    async def relay(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Relayed:
        """Ask in the name of somebody else. `target` is a path with its query, which go up as they are.

        Raises UpstreamUnavailable.
        """
        url = URL(f"{self.url}{target}", encoded=True)
        answer = await self._exchange(method, url, headers, data=body or None)
        if answer.status not in _STATUSES:
            raise UpstreamUnavailable(f"Upstream answered with HTTP {answer.status}")
        return answer

    async def service_users(self, *, tenant: str, user: str, password: str) -> dict[str, ServiceUser]:
        """Who the microservice is in each tenant that subscribed to it; asked for with its bootstrap user.

        Raises Denied and UpstreamUnavailable.
        """
        basic = b64encode(f"{tenant}/{user}:{password}".encode()).decode()
        answer = await self._ask(
            "GET",
            f"{self.url}/application/currentApplication/subscriptions",
            {"Authorization": f"Basic {basic}"},
        )
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise _denied(answer)
        return {each.tenant: ServiceUser(each.name, each.password) for each in _read(answer, _Subscriptions).users}

    def _as_device(self, certificate_file: Path, key_file: Path) -> tuple[ssl.SSLContext, dict[str, str]]:
        """What shows the certificate, on the way there and behind it. Raises Denied and UpstreamUnavailable."""
        try:
            context = ssl.create_default_context() if self._ca_file is None else trust_in(self._ca_file)
        except (OSError, ValueError) as error:
            raise UpstreamUnavailable(
                f"upstream.ca_file cannot be used: {type(error).__name__}", was_asked=False
            ) from None
        try:
            context.load_cert_chain(certificate_file, key_file, password="")  # never asks a terminal
            return context, _chain_in(certificate_file.read_bytes())
        except OSError as error:
            text = f"The certificate of the device, or its key, cannot be used: {type(error).__name__}"
            raise Denied(text, kind="other") from None

    async def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> "_Answer":
        """What the platform says, which is yes (2xx) or no (4xx). Raises UpstreamUnavailable."""
        asked = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        told = await self._exchange(method, URL(url).with_query(query), asked | dict(headers or {}), data=form, tls=tls)
        _check_status(told.status)
        cookies = _cookies(value for name, value in told.headers if name == "set-cookie")
        return _Answer(told.status, cookies, told.content)

    async def _exchange(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        data: Mapping[str, str] | bytes | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Relayed:
        """One request and its answer, whatever that is. Raises UpstreamUnavailable."""
        is_encrypted = url.scheme == "https"
        trusted = tls or (self._tls() if is_encrypted else None)
        if is_encrypted and trusted is None:
            raise UpstreamUnavailable(
                "There is no certificate authority to trust: see upstream.ca_file", was_asked=False
            )
        try:
            async with (
                aiohttp.ClientSession(
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=self._timeout,
                    auto_decompress=False,
                    trust_env=False,
                    max_line_size=_HEADER_LIMIT,
                    max_field_size=_HEADER_LIMIT,
                ) as session,
                session.request(
                    method,
                    url,
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                    ssl=trusted or True,
                    proxy=self._proxy_url,
                ) as response,
            ):
                answered = tuple((name.lower(), value) for name, value in response.headers.items())
                return Relayed(response.status, answered, await _content(response))
        except TimeoutError:
            raise UpstreamUnavailable("Upstream did not answer in time", timed_out=True) from None
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            if tls is not None and any(map(_is_about_our_certificate, _behind(error))):
                raise _denied_certificate() from None
            raise _unavailable(error) from None


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    cookies: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


class _DeviceToken(msgspec.Struct, rename="camel"):
    access_token: str


class _SessionConfiguration(msgspec.Struct, rename="camel"):
    renewal_timeout_millis: float | None = None
    maximum_number_of_parallel_sessions: int | None = None


class _LoginOption(msgspec.Struct, rename="camel"):
    type: str = ""
    session_configuration: _SessionConfiguration | None = None
    button_name: str | None = None
    init_request: str | None = None
    visible_on_login_page: bool | None = None


class _LoginOptions(msgspec.Struct, rename="camel"):
    login_options: list[_LoginOption]


class _Subscription(msgspec.Struct):
    tenant: str
    name: str
    password: str


class _Subscriptions(msgspec.Struct):
    users: list[_Subscription]


def _sign_on_path(address: str) -> str | None:
    """The path, with its query, that a sign-on begins at; None where that is none of the platform's own."""
    try:
        url = urlsplit(address)
    except ValueError:
        return None
    return f"{_OAUTH}?{url.query}" if url.path == _OAUTH else None


async def _content(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for piece in response.content.iter_any():
        content += piece
        if len(content) > _SIZE_LIMIT:
            raise UpstreamUnavailable(f"Upstream answered with more than {_SIZE_LIMIT} bytes")
    return bytes(content)


def _cookies(fields: Iterable[str]) -> dict[str, str]:
    """The cookies that are set, by name; of two with one name the last, as a browser has it (RFC 6265, 5.3)."""
    pairs = (each.partition(";")[0].partition("=") for each in fields)
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def _read(answer: _Answer, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(answer.content.decode(), type=kind)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise _unexpected() from None


def _unexpected() -> UpstreamUnavailable:
    return UpstreamUnavailable("Upstream answered with what the platform would not: check that upstream.url is right")


def _check_status(status: int) -> None:
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        raise UpstreamUnavailable(f"Upstream sends us elsewhere (HTTP {status}): check that upstream.url is right")
    if not HTTPStatus.OK <= status < HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING:
        raise UpstreamUnavailable(f"Upstream answered with HTTP {status}")


def _proof_of(session: PlatformSession) -> dict[str, str]:
    return {"Cookie": f"{_AUTHORIZATION}={session.token}", "X-XSRF-TOKEN": session.xsrf_token}


def _session_in(answer: _Answer, before: PlatformSession) -> PlatformSession:
    """The session that an answer sets, as far as it does."""
    token, xsrf_token = answer.cookies.get(_AUTHORIZATION), answer.cookies.get(_XSRF)
    if not _is_token(token):
        token = None
    if not _is_token(xsrf_token):
        xsrf_token = claims_of(token).xsrf_token if token else None
    return PlatformSession(token or before.token, xsrf_token or before.xsrf_token)


def _denied(answer: _Answer) -> Denied:
    """What a denial of a user means."""
    kind: Why = "other"
    if answer.status == HTTPStatus.FORBIDDEN:
        kind = "forbidden"
    elif answer.status == HTTPStatus.UNAUTHORIZED:
        words = answer.content[:_WORDS_LIMIT].lower()
        kind = next((meaning for text, meaning in _MEANINGS if text in words), "credentials")
    return Denied(_REMEDIES.get(kind) or _unheard_of(answer.status), kind=kind)


def _denied_session(answer: _Answer) -> Denied:
    """What a denial of a session means: whatever is said beside HTTP 401, a fresh login tells more."""
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return Denied(_REMEDIES["ended"], kind="ended")
    return _denied(answer)


def _unheard_of(status: int) -> str:
    return f"Upstream answered with HTTP {status}. Check that upstream.url is right, and that the tenant allows this"


def _denied_certificate(status: int | None = None) -> Denied:
    """What a denial of a device certificate means; without a status, it came within the TLS handshake."""
    match status:
        case HTTPStatus.FORBIDDEN:
            return Denied("Upstream forbids tokens to this device. Check the user of the device", kind="forbidden")
        case HTTPStatus.NOT_FOUND:
            return Denied(
                "Upstream issues no device tokens there (HTTP 404). Check token_url, and that the platform has them on",
                kind="other",
            )
        case None | HTTPStatus.UNAUTHORIZED | HTTPStatus.UNPROCESSABLE_ENTITY:
            return Denied(
                "Upstream denied the certificate of the device. Check that it has neither expired nor been revoked, "
                "that certificate_file holds its whole chain, and that the tenant trusts who issued it",
                kind="credentials",
            )
        case _:
            return Denied(_unheard_of(status), kind="other")


def _chain_in(content: bytes) -> dict[str, str]:
    """The header that a certificate with its chain is sent in, lines being spaces, for a tenant that trusts only one
    further up; none for a certificate alone.
    """
    chain = [b" ".join(each.split()) for each in _certificate.findall(content)]
    return {"X-Ssl-Cert-Chain": b" ".join(chain).decode()} if len(chain) > 1 else {}


def _unavailable(error: Exception) -> UpstreamUnavailable:
    """What a foreign error means. Its text may quote what was sent or came, so only its kind is told."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        text = "Upstream's certificate is not one to trust: check upstream.ca_file, and the name in upstream.url"
        return UpstreamUnavailable(text, was_asked=False)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        text = "The HTTP proxy on the way to upstream did not let us through: check upstream.proxy_url"
        return UpstreamUnavailable(text, was_asked=False)
    was_asked = not isinstance(error, aiohttp.ClientConnectorError)
    return UpstreamUnavailable(f"Upstream cannot be asked: {type(error).__name__}", was_asked=was_asked)


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was made of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_about_our_certificate(error: BaseException) -> bool:
    """Whether the other side ended the TLS handshake, or the connection behind it, because of what we showed."""
    reason = getattr(error, "reason", None)
    return (
        isinstance(error, ssl.SSLError)
        and isinstance(reason, str)
        and "ALERT" in reason
        and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED"))
    )
