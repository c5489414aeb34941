"""The pages of signing in and out: what they hold, how they are heard, and what they may do."""

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from importlib import resources
from typing import Any, Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.frontdoor.pages import Page, Pages, Problem, SignInForm


TITLE: Final = "Tools & <Things>"
PLATFORM: Final = "https://t0815.example.com/"
PAGES: Final = Pages(title=TITLE, platform_url=PLATFORM, form_targets=("https://app.example.com",))
PROBLEMS: Final[tuple[Problem, ...]] = get_args(Problem)
HOSTILE: Final = "\"'><script>alert(1)</script><b onclick=x>{{ 7 * 7 }}{% raw %}&amp;"

VOID: Final = {"meta", "link", "input", "br", "circle", "rect", "path"}

Attributes = dict[str, str | None]


class Reader(HTMLParser):
    """What a browser finds in a page: its elements in their order, and its text."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes]] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {}
        self.feed(page.body.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), attrs
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in {*self.open}:
            self.texts[tag] = self.texts.get(tag, "") + data

    def all(self, tag: str, **having: str) -> list[Attributes]:
        return [found for name, found in self.elements if name == tag and having.items() <= found.items()]

    def one(self, tag: str, **having: str) -> Attributes:
        found = self.all(tag, **having)
        assert len(found) == 1, (tag, having, found)
        return found[0]

    @property
    def fields(self) -> dict[str, Attributes]:
        return {str(found["name"]): found for found in self.all("input")}


def sign_in(*, seconds: int = 45, **values: Any) -> Reader:
    return Reader(PAGES.sign_in(SignInForm(csrf_token="token", **values), seconds=seconds))


def every_page() -> Iterator[tuple[str, Page]]:
    yield "signed in", PAGES.signed_in("alice", "t0815", "token", "/apps/")
    yield "signed out", PAGES.signed_out()
    for problem in (None, *PROBLEMS):
        for number in range(16):
            form = SignInForm(
                csrf_token="token",
                return_to="/x" if number & 1 else "",
                user="alice" if number & 2 else "",
                asks_tenant=bool(number & 4),
                asks_code=bool(number & 8),
                problem=problem,
                sso=[("Example ID", "https://login.example.com/")] if number & 2 else [],
            )
            yield f"{problem} {number}", PAGES.sign_in(form, seconds=45)


EVERY: Final = [pytest.param(page, id=name) for name, page in every_page()]


# What every page is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", EVERY)
def test_page_is_whole_and_says_what_it_is(page: Page) -> None:
    read = Reader(page)
    assert page.body.startswith(b"<!doctype html>\n")
    assert read.one("html") == {"lang": "en"}
    assert read.one("meta", name="viewport")["content"] == "width=device-width, initial-scale=1"
    assert read.texts["title"].endswith(f" - {TITLE}")
    assert len(read.all("main")) == len(read.all("h1")) == 1
    ids = [found["id"] for _, found in read.elements if "id" in found]
    assert len({*ids}) == len(ids)


@pytest.mark.parametrize("page", EVERY)
def test_page_needs_nothing_that_its_policy_forbids(page: Page) -> None:
    read = Reader(page)
    assert {tag for tag, _ in read.elements}.isdisjoint({"script", "iframe", "object", "embed", "base", "img", "video"})
    for _, found in read.elements:
        assert not [name for name in found if name.startswith("on") or name == "style"]
    style = page.body.decode().partition("<style>")[2].partition("</style>")[0]
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"url\(|@import|expression", style)
    assert all(str(found["href"]).startswith("data:image/svg+xml,") for found in read.all("link"))


@pytest.mark.parametrize("page", EVERY)
def test_keyboard_begins_at_one_place(page: Page) -> None:
    read = Reader(page)
    assert len([found for _, found in read.elements if "autofocus" in found]) == 1
    assert not [found for _, found in read.elements if "tabindex" in found]


@pytest.mark.parametrize("page", EVERY)
def test_what_is_described_elsewhere_is_there(page: Page) -> None:
    read = Reader(page)
    ids = {found["id"] for _, found in read.elements if "id" in found}
    for _, found in read.elements:
        if "aria-describedby" in found:
            assert ids.issuperset(str(found["aria-describedby"]).split())
    labelled = {found["for"] for found in read.all("label")}
    for found in read.all("input"):
        assert found.get("type") == "hidden" or found["id"] in labelled


def test_headers_allow_what_a_page_needs_and_no_more() -> None:
    headers = dict(PAGES.signed_out().headers)
    policy = headers.pop("Content-Security-Policy")
    assert re.sub(r"sha256-[A-Za-z0-9+/]{43}=", "DIGEST", policy).split("; ") == [
        "default-src 'none'",
        "style-src 'DIGEST'",
        "img-src data:",
        "form-action 'self' https://app.example.com",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
    assert headers == {
        "Cache-Control": "no-store",
        "Content-Type": "text/html; charset=utf-8",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), display-capture=(), fullscreen=(), geolocation=(), microphone=(), "
        "payment=(), usb=()",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def test_form_goes_to_us_alone_where_no_other_origin_is_named() -> None:
    page = Pages(title=TITLE, platform_url="").signed_out()
    assert "form-action 'self';" in page.headers["Content-Security-Policy"]


# The form -------------------------------------------------------------------------------------------------------------


def test_form_asks_for_user_and_password_and_sends_the_rest_along() -> None:
    read = sign_in(return_to="/apps/?x=1&y=2#z", user="alice")
    assert read.one("form") == {"method": "post", "action": "/sign-in"}
    assert {name: found.get("value") for name, found in read.fields.items()} == {
        "csrf_token": "token",
        "return_to": "/apps/?x=1&y=2#z",
        "user": "alice",
        "password": None,
    }
    assert read.one("button")["type"] == "submit"
    assert read.texts["title"] == f"Sign in - {TITLE}"
    assert not read.all("div", role="alert")
    assert not [found for found in read.all("input") if "aria-invalid" in found]


def test_form_asks_for_tenant_and_code_where_they_are_needed() -> None:
    fields = sign_in(asks_tenant=True, tenant="t0815", asks_code=True).fields
    assert list(fields) == ["csrf_token", "tenant", "user", "password", "code"]
    assert fields["tenant"]["value"] == "t0815"
    assert "value" not in fields["code"]


def test_password_managers_and_phones_know_the_fields() -> None:
    fields = sign_in(asks_tenant=True, asks_code=True).fields
    assert fields["user"]["autocomplete"] == "username"
    assert fields["password"]["type"] == "password"
    assert fields["password"]["autocomplete"] == "current-password"
    assert fields["code"]["autocomplete"] == "one-time-code"
    assert fields["code"]["inputmode"] == "numeric"
    for name in ("tenant", "user"):
        assert fields[name]["autocapitalize"] == "none"
        assert fields[name]["spellcheck"] == "false"


@pytest.mark.parametrize(
    ("code", "is_taken"), [("123456", True), ("123 456", True), ("12345678", True), ("12345x", False), ("123", False)]
)
def test_browser_takes_digits_for_a_code(code: str, is_taken: bool) -> None:  # noqa: FBT001 - a table
    pattern = str(sign_in(asks_code=True).fields["code"]["pattern"])
    assert bool(re.fullmatch(pattern, code)) is is_taken


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ({}, "user"),
        ({"user": "alice"}, "password"),
        ({"asks_tenant": True}, "tenant"),
        ({"asks_tenant": True, "user": "alice"}, "tenant"),
        ({"asks_tenant": True, "tenant": "t0815"}, "user"),
        ({"asks_tenant": True, "tenant": "t0815", "user": "alice"}, "password"),
        ({"user": "alice", "asks_code": True, "problem": "code_required"}, "password"),
    ],
)
def test_keyboard_begins_at_the_first_field_to_fill_in(values: dict[str, Any], first: str) -> None:
    assert [name for name, found in sign_in(**values).fields.items() if "autofocus" in found] == [first]


def test_other_ways_to_sign_in_are_links() -> None:
    ways = [("A & B", "https://login.example.com/a?b&c"), ("C", "/c"), ("D", "http://localhost/d")]
    read = sign_in(sso=ways)
    assert [found["href"] for found in read.all("a")] == [url for _, url in ways]
    assert read.texts["a"] == "A & BCD"
    assert not sign_in().all("a")


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "JavaScript:alert(1)", " https://x", "data:text/html,x", "", "x"]
)
def test_way_to_sign_in_that_is_no_address_is_left_out(url: str) -> None:
    assert not sign_in(sso=[("X", url)]).all("a")


# What is wrong --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problem_is_heard_first(problem: Problem) -> None:
    """By the title, by its role, and with the field that the keyboard is at."""
    read = sign_in(problem=problem, user="alice", asks_code=True)
    state = "Next step" if problem in {"code_required", "setup_required"} else "Error"
    summary = read.texts["strong"].removeprefix(TITLE)
    assert summary
    assert read.texts["title"] == f"{state}: {summary} - {TITLE}"
    assert read.one("div", role="alert")["id"] == "problem"
    assert "problem" in str(read.fields["password"]["aria-describedby"]).split()
    assert "{" not in summary + read.texts["div"]


@pytest.mark.parametrize(
    ("problem", "wrong"),
    [
        ("credentials", ["tenant", "user", "password"]),
        ("code_wrong", ["code"]),
        *((problem, []) for problem in PROBLEMS if problem not in {"credentials", "code_wrong"}),
    ],
)
def test_fields_that_are_wrong_are_marked(problem: Problem, wrong: list[str]) -> None:
    fields = sign_in(problem=problem, asks_tenant=True, asks_code=True).fields
    assert [name for name, found in fields.items() if "aria-invalid" in found] == wrong
    for name in wrong:
        assert fields[name]["aria-invalid"] == "true"
        assert "problem" in str(fields[name]["aria-describedby"]).split()


def test_all_that_can_be_wrong_with_credentials_is_one_text() -> None:
    assert "Wrong user name or password" in sign_in(problem="credentials").texts["div"]
    assert "Wrong tenant, user name or password" in sign_in(problem="credentials", asks_tenant=True).texts["div"]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (1, "in 1 second."),
        (45, "in 45 seconds."),
        (119, "in 119 seconds."),
        (120, "in 2 minutes."),
        (121, "in 3 minutes."),
        (900, "in 15 minutes."),
    ],
)
def test_who_tried_too_often_is_told_how_long_to_wait(seconds: int, told: str) -> None:
    page = PAGES.sign_in(SignInForm(csrf_token="token", problem="too_many"), seconds=seconds)
    assert told in Reader(page).texts["div"]
    assert page.headers["Retry-After"] == str(seconds)
    assert "Retry-After" not in PAGES.sign_in(SignInForm(csrf_token="token")).headers


def test_platform_is_linked_to_where_something_is_to_be_set_up_there() -> None:
    assert [found["href"] for found in sign_in(problem="setup_required").all("a")] == [PLATFORM]
    assert not sign_in(problem="forbidden").all("a")
    unknown = Pages(title=TITLE, platform_url="").sign_in(SignInForm(csrf_token="token", problem="setup_required"))
    assert not Reader(unknown).all("a")


# Signed in and out ----------------------------------------------------------------------------------------------------


def test_who_is_signed_in_goes_on_or_out() -> None:
    read = Reader(PAGES.signed_in("alice", "t0815", "token", "/apps/?x&y"))
    assert "aliceint0815" in re.sub(r"\s|tenant", "", read.texts["p"])
    assert read.one("a")["href"] == "/apps/?x&y"
    assert read.one("form") == {"method": "post", "action": "/sign-out"}
    assert read.fields == {"csrf_token": {"type": "hidden", "name": "csrf_token", "value": "token"}}
    assert read.texts["title"] == f"Signed in - {TITLE}"
    assert "tenant" not in Reader(PAGES.signed_in("alice", "", "token", "/")).texts["p"]


def test_who_is_signed_out_may_sign_in_again() -> None:
    read = Reader(PAGES.signed_out())
    assert read.one("a")["href"] == "/sign-in"
    assert read.texts["title"] == f"Signed out - {TITLE}"
    assert not read.all("form")


# What is filled in ----------------------------------------------------------------------------------------------------


def shape(page: Page) -> list[tuple[str, list[str]]]:
    return [(tag, sorted(found)) for tag, found in Reader(page).elements]


def filled(text: str) -> list[Page]:
    form = SignInForm(
        csrf_token=text,
        return_to=text,
        tenant=text,
        user=text,
        asks_tenant=True,
        asks_code=True,
        problem="setup_required",
        sso=[(text, f"/{text}")],
    )
    pages = Pages(title=text, platform_url=PLATFORM + text)
    return [pages.sign_in(form), pages.signed_in(text, text, text, f"/{text}"), pages.signed_out()]


TEXTS: Final = st.text(st.sampled_from("<>\"'&`= {}%#-!/\\\n\0a\u2028\ud800\U0001f600"), min_size=1, max_size=30)


@given(TEXTS)
def test_no_text_changes_what_a_page_is_made_of(text: str) -> None:
    assert [shape(page) for page in filled(text)] == [shape(page) for page in filled("x")]


def test_text_is_shown_as_it_is() -> None:
    """Neither what HTML nor what a template would read."""
    page, signed_in, _ = filled(HOSTILE)
    fields = Reader(page).fields
    assert {fields[name]["value"] for name in ("csrf_token", "return_to", "tenant", "user")} == {HOSTILE}
    assert HOSTILE in Reader(page).texts["a"]
    assert HOSTILE in Reader(signed_in).texts["strong"]
    assert Reader(signed_in).one("a")["href"] == f"/{HOSTILE}"


def test_secret_of_a_form_is_not_in_its_repr() -> None:
    form = SignInForm(csrf_token="canary", user="alice")
    assert "canary" not in repr(form)
    assert "canary" not in repr(PAGES.sign_in(form))


# The templates --------------------------------------------------------------------------------------------------------


def test_templates_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(title=TITLE, platform_url="")

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("jinja2.PackageLoader.get_source", never)
    for page in (pages.sign_in(SignInForm(csrf_token="x", problem="expired")), pages.signed_out()):
        assert page.body
    assert pages.signed_in("alice", "t0815", "x", "/").body


def luminance(color: str) -> float:
    digits = color if len(color) == 6 else "".join(digit * 2 for digit in color)
    red, green, blue = (int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4))

    def linear(part: float) -> float:
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "paper", "least"),
    [
        ("ink", "card", 7.0),
        ("soft", "card", 4.5),
        ("ink", "field", 7.0),
        ("edge", "card", 3.0),
        ("on-accent", "accent", 4.5),
        ("on-accent", "deep", 4.5),
        ("deep", "card", 4.5),
        ("accent", "card", 3.0),
        ("ink", "bad-wash", 7.0),
        ("bad", "bad-wash", 4.5),
        ("bad", "card", 3.0),
        ("ink", "note-wash", 7.0),
        ("note", "note-wash", 4.5),
    ],
)
def test_colors_are_told_apart_by_weak_eyes(*, is_dark: bool, ink: str, paper: str, least: float) -> None:
    """The contrasts that WCAG 2.2 asks for (AA: 4.5 for text, 3 for what surrounds a field)."""
    style = resources.files("proxy.frontdoor").joinpath("templates/style.css").read_text()
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    colors = dict(re.findall(r"--([a-z-]+): #([0-9a-f]{3,6});", light))
    if is_dark:
        colors |= dict(re.findall(r"--([a-z-]+): #([0-9a-f]{3,6});", dark))
    bright, dim = sorted((luminance(colors[ink]), luminance(colors[paper])), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) >= least
