"""What a login says that passes through, and where a single sign-on leads.

It is read in one way or not at all: what could be one login to us and another to upstream is refused.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, parse_qsl, urlsplit

import msgspec

from proxy.frontdoor.turnstile import cookie_in
from proxy.head import Head
from proxy.relay.pages import Visit
from proxy.upstream.platform import Relayed


SIGN_ON_COOKIE: Final = "__Host-c8y-sign-on"

PASSWORD: Final = "PASSWORD"  # noqa: S105 - the name of a way to log in
_BY_CODE: Final = "AUTHORIZATION_CODE"

FORM: Final = "application/x-www-form-urlencoded"
_ONLY_IN_FORMS: Final = frozenset({"username", "password", "tfa_code", "tfa_token"})
"""What a query must not hold: it stands in logs, and in the history of browsers."""

_MOST_FIELDS: Final = 50
_PORTS: Final = {"http": 80, "https": 443}

_BY_SCRIPT: Final = (["cors"], ["same-origin"])
"""What `Sec-Fetch-Mode` says where a script asks, and not a browser that is sent somewhere."""


class Unclear(ValueError):
    """A login that can be read in more ways than one, or in none. The text says what to send."""


# What a login says ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Login:
    """What a login says: all `fields`, in the query or else, and of those the ones of its `form`, if it has one."""

    fields: Mapping[str, str] = field(repr=False)
    form: Mapping[str, str] | None = field(repr=False)

    @property
    def grant(self) -> str:
        return self.fields.get("grant_type", "").upper()

    @property
    def is_begun(self) -> bool:
        """Whether it comes back from the identity provider."""
        return "code" in self.fields or "error" in self.fields


def read_login(visit: Visit) -> Login:
    """What a request to log in says, in the one way that it can be read. Raises Unclear."""
    head = visit.asked.head
    query, form = _pairs(visit.query), None
    if visit.body:
        if ", ".join(head.values("content-type")).partition(";")[0].strip().lower() != FORM:
            raise Unclear(f"Send a login as {FORM}")
        try:
            form = _pairs(visit.body.decode())
        except UnicodeDecodeError:
            raise Unclear("Send a login in UTF-8") from None
    fields = dict([*query, *(form or [])])
    if len(fields) != len(query) + len(form or []):
        raise Unclear("Send each field of a login once")
    if not _ONLY_IN_FORMS.isdisjoint(dict(query)):
        raise Unclear("Send user and password in the body, never in the query")
    login = Login(fields, None if form is None else dict(form))
    if head.method == "GET":
        if login.grant not in {"", _BY_CODE}:
            raise Unclear("Send a login with a password by POST")
    elif login.grant not in {PASSWORD, _BY_CODE}:
        raise Unclear(f"Send grant_type: {PASSWORD} or {_BY_CODE}")
    elif login.grant == _BY_CODE and ("code" not in fields or "password" in fields):
        raise Unclear(f"Send a code with {_BY_CODE}, and no password")
    return login


def _pairs(encoded: str) -> list[tuple[str, str]]:
    """Names and values of a query or a form. Raises Unclear."""
    try:
        return parse_qsl(encoded, keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except ValueError:
        raise Unclear("Send the fields of a login percent-encoded in UTF-8, and no more than it has") from None


# Where a login leads --------------------------------------------------------------------------------------------------


class _Elsewhere(msgspec.Struct):
    """Where the platform sends a browser whose application asked by script."""

    redirect_to: str = msgspec.field(name="redirectTo")


def address_in(answer: Relayed) -> str:
    """Where an answer sends whoever asked, be it a browser or a script; empty where it does not."""
    if is_elsewhere(answer):
        return location_of(answer)
    if answer.status != HTTPStatus.OK:
        return ""
    try:
        return msgspec.json.decode(answer.content, type=_Elsewhere).redirect_to
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


def is_elsewhere(answer: Relayed) -> bool:
    """Whether an answer sends a browser on."""
    return HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST


def location_of(answer: Relayed) -> str:
    """What its `Location` says."""
    return next((value for name, value in answer.headers if name == "location"), "")


def origin_of(address: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of an address; None for what is none, or could be read in more ways than one."""
    if not (address.isascii() and address.isprintable()) or " " in address or "\\" in address:
        return None
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, _PORTS[parts.scheme] if port is None else port


def is_sent_from_here(head: Head, state: str | None) -> bool:
    """Whether a browser that comes back from the identity provider was sent there by us, with that state.

    A script of an admitted page need not say the state: it has its own way to tell whose answer it has got. But that a
    sign-on was begun here has to be so even then. Where the platform sends no state, that is all there is to know.
    """
    mark = cookie_in(head, SIGN_ON_COOKIE).encode(errors="replace")
    if state is None and (head.method == "POST" or list(head.values("sec-fetch-mode")) in _BY_SCRIPT):
        return bool(mark)
    return any(hmac.compare_digest(mark, mark_of(known).encode()) for known in {"", state or ""})


def state_in(address: str) -> str:
    """The state that an identity provider is to give back."""
    return parse_qs(urlsplit(address).query).get("state", [""])[-1]


def mark_of(state: str) -> str:
    """What a browser remembers of a state."""
    return sha256(b"c8y-realtime-proxy state\0" + state.encode(errors="surrogatepass")).hexdigest()
