"""The pages of signing in and out: rendered from templates, and nothing else. They work without a script, and have
none.

1. Whatever is filled in is escaped. A password is not among it: it is typed each time, and stands in no page.
2. Each page says by its headers what it may do: no script, nothing from elsewhere, a form that goes to us alone.
3. One text stands for all that can be wrong with a user, a password and a tenant, or pages would tell which exist.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from typing import Final, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


Problem = Literal[
    "credentials",
    "code_required",
    "code_wrong",
    "setup_required",
    "too_many",
    "expired",
    "unavailable",
    "forbidden",
]
"""What stands between somebody and a session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInForm:
    """What the form holds, beside what it asks for: `tenant` where that is not known, `user`, `password`, and `code`
    as a second factor.

    It sends `csrf_token` and `return_to` along. `sso` are labels and addresses of other ways to sign in.
    """

    csrf_token: str = field(repr=False)
    return_to: str = ""
    tenant: str = ""
    user: str = ""
    asks_tenant: bool = False
    asks_code: bool = False
    problem: Problem | None = None
    sso: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A page as it is sent, whatever its status is."""

    body: bytes = field(repr=False)
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Told:
    """How a problem is told, and which fields it is about. It is no error where all is well so far."""

    summary: str
    advice: str
    wrong: frozenset[str] = frozenset()
    is_error: bool = True


_PROBLEMS: Final[Mapping[Problem, _Told]] = {
    "credentials": _Told(
        "Wrong {credentials}", "Check what you typed, and try again.", frozenset({"tenant", "user", "password"})
    ),
    "code_required": _Told(
        "A code is needed, too",
        "Type your password once more, and the code. The password was not kept in between.",
        is_error=False,
    ),
    "code_wrong": _Told(
        "The code is wrong or too old",
        "Wait for a new one, and type it together with your password.",
        frozenset({"code"}),
    ),
    "setup_required": _Told(
        "Set up two-factor authentication first",
        "Your account has to use it. It is set up where the platform itself signs you in; then come back here.",
        is_error=False,
    ),
    "too_many": _Told("Too many attempts", "Try again in {wait}."),
    "expired": _Told("This page was open for too long", "Nothing was done. Sign in once more."),
    "unavailable": _Told(
        "Nobody can sign in right now",
        "Something that is needed cannot be reached. It is not your password: try again in a minute.",
    ),
    "forbidden": _Told(
        "You may not sign in here", "If you think that you should, ask those who run this service to let you in."
    ),
}

_FROM_A_MINUTE_ON: Final = 120  # seconds, which are told in minutes

_LINKS: Final = ("https://", "http://", "/")

_NEEDLESS: Final = ("camera", "display-capture", "fullscreen", "geolocation", "microphone", "payment", "usb")


class Pages:
    """The pages of one front door.

    `title` is what people sign in to, and `platform_url` where the platform has a page of its own, if that is known.
    `form_targets` are the origins that browsers may be sent on to when a form was sent.
    """

    def __init__(self, *, title: str, platform_url: str, form_targets: Sequence[str] = ()) -> None:
        environment = _environment()
        self._title = title
        self._platform_url = platform_url
        self._sign_in, self._signed_in, self._signed_out = (
            environment.get_template(name) for name in ("sign_in.html", "signed_in.html", "signed_out.html")
        )
        environment.get_template("page.html")  # all are read here, and none later
        self._headers = _headers(environment.get_template("style.css").render(), form_targets)

    def sign_in(self, form: SignInForm, *, seconds: int = 0) -> Page:
        """The form; `seconds` are those to wait after too many attempts."""
        page = self._page(
            self._sign_in,
            form=form,
            problem=_told(form, seconds),
            first=_first(form),
            setup_url=self._platform_url if form.problem == "setup_required" else "",
            sso=[(label, url) for label, url in form.sso if url.startswith(_LINKS)],
        )
        if form.problem == "too_many":
            return replace(page, headers={**page.headers, "Retry-After": str(seconds)})
        return page

    def signed_in(self, user: str, tenant: str, csrf_token: str, home: str) -> Page:
        """Who is signed in, the way on, and the way out."""
        return self._page(self._signed_in, user=user, tenant=tenant, csrf_token=csrf_token, home=home)

    def signed_out(self) -> Page:
        """What follows when somebody has signed out."""
        return self._page(self._signed_out)

    def _page(self, template: Template, **values: object) -> Page:
        return Page(template.render(values, title=self._title).encode(errors="replace"), self._headers)


@cache
def _environment() -> Environment:
    """Where templates are read and compiled, once for all front doors of this process."""
    return Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _headers(style: str, form_targets: Sequence[str]) -> Mapping[str, str]:
    policy = {
        "default-src": "'none'",
        "style-src": f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'",
        "img-src": "data:",
        "form-action": " ".join(("'self'", *form_targets)),
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Content-Type": "text/html; charset=utf-8",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": ", ".join(f"{name}=()" for name in _NEEDLESS),
        "Referrer-Policy": "same-origin",  # with no-referrer, browsers send forms with an Origin of null
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def _told(form: SignInForm, seconds: int) -> _Told | None:
    if form.problem is None:
        return None
    told = _PROBLEMS[form.problem]
    credentials = "tenant, user name or password" if form.asks_tenant else "user name or password"
    return replace(
        told, summary=told.summary.format(credentials=credentials), advice=told.advice.format(wait=_wait(seconds))
    )


def _first(form: SignInForm) -> str:
    """The first field that is to be filled in."""
    if form.asks_tenant and not form.tenant:
        return "tenant"
    return "password" if form.user else "user"


def _wait(seconds: int) -> str:
    if seconds >= _FROM_A_MINUTE_ON:
        return f"{-(-seconds // 60)} minutes"
    return "1 second" if seconds == 1 else f"{seconds} seconds"
